"""The log in ordinary life: what is written is read back, and disk errors stop it for good."""

from __future__ import annotations

import copy
import errno
import os

import pytest

from raftsvc.core.messages import HardState, index_of
from raftsvc.errors import DamagedStorageError, DiskRefusedError, StorageError
from raftsvc.storage.files import Files
from raftsvc.storage.segments import Mark
from raftsvc.storage.wal import Wal
from tests.storage.faults import Disk
from tests.storage.logs import CLUSTER_ID, DIR, NODE_ID, append_beside, batch, entry, new_disk, new_log


def reopened(disk: Disk, segment_bytes: int = 1536):
    disk.kill_process()
    return Wal.open(disk, DIR, segment_bytes)


def test_a_new_log_holds_what_it_was_made_with() -> None:
    disk = new_disk()
    Wal.create(disk, DIR, CLUSTER_ID, NODE_ID, HardState(3, 2, 1), batch(1, 2, term=3), 4096)
    disk.lose_power(lambda: False)
    _, found = Wal.open(disk, DIR, 4096)
    assert (found.cluster_id, found.node_id, found.base) == (CLUSTER_ID, NODE_ID, 0)
    assert found.hard_state == HardState(3, 2, 1)
    assert found.entries == batch(1, 2, term=3)
    assert found.mark == Mark()


def test_what_was_synced_is_read_back_over_many_segments() -> None:
    disk = new_disk()
    wal = new_log(disk)
    for n in range(60):
        wal.append(HardState(1, 1, n), batch(2 * n + 1, 2))
        wal.sync()
    disk.lose_power(lambda: False)
    _, found = Wal.open(disk, DIR)
    assert len(disk.list_dir(DIR)) > 3
    assert found.hard_state == HardState(1, 1, 59)
    assert found.entries == batch(1, 120)


def test_entries_that_do_not_follow_the_last_one_replace_the_tail() -> None:
    disk = new_disk()
    wal = new_log(disk, batch(1, 10))
    wal.append(HardState(term=2), batch(6, 2, term=2))
    wal.sync()
    _, found = reopened(disk)
    assert found.entries == batch(1, 5) + batch(6, 2, term=2)


def test_entries_that_leave_a_gap_are_refused_before_anything_is_written() -> None:
    disk = new_disk()
    wal = new_log(disk, batch(1, 3))
    before = disk.content(f"{DIR}/{1:016d}.wal")
    with pytest.raises(StorageError, match="entries after 3 are missing"):
        wal.append(None, [entry(5)])
    assert disk.content(f"{DIR}/{1:016d}.wal") == before


def test_a_batch_larger_than_a_segment_gets_a_segment_of_its_size() -> None:
    disk = new_disk()
    wal = new_log(disk)
    large = entry(1, data=os.urandom(10_000))
    wal.append(None, [large])
    wal.append(None, [entry(2)])
    wal.sync()
    _, found = reopened(disk)
    assert found.entries == [large, entry(2)]


def test_a_batch_is_one_write_and_one_sync_and_changes_no_size() -> None:
    disk = new_disk()
    wal = new_log(disk, segment_bytes=1 << 20)
    size = len(disk.content(f"{DIR}/{1:016d}.wal"))
    assert size == 1 << 20
    disk.operations.clear()
    fsyncs = wal.fsync_count
    wal.append(HardState(2, 1, 0), batch(1, 50, term=2))
    wal.sync()
    assert [operation for operation, _ in disk.operations] == ["write", "sync"]
    assert wal.fsync_count == fsyncs + 1
    assert len(disk.content(f"{DIR}/{1:016d}.wal")) == size


# -- snapshot marks


def test_a_mark_whose_entry_the_log_holds_keeps_the_log() -> None:
    disk = new_disk()
    wal = new_log(disk, batch(1, 10))
    assert wal.mark_snapshot(6, 1)
    wal.append(None, [entry(11)])
    wal.sync()
    _, found = reopened(disk)
    assert found.mark == Mark(6, 1)
    assert found.entries == batch(1, 11)


@pytest.mark.parametrize(("index", "term"), [(12, 1), (6, 2)], ids=["beyond the log", "of another term"])
def test_a_mark_whose_entry_the_log_lacks_starts_it_anew(index: int, term: int) -> None:
    disk = new_disk()
    wal = new_log(disk, batch(1, 10))
    assert not wal.mark_snapshot(index, term)
    wal.sync()
    _, found = reopened(disk)
    assert (found.mark, found.base, found.entries) == (Mark(index, term), index, [])
    wal, _ = reopened(disk)
    wal.append(HardState(term=3), [entry(index + 1, term=3)])
    wal.sync()
    _, found = reopened(disk)
    assert (found.base, found.entries) == (index, [entry(index + 1, term=3)])


def test_an_older_mark_changes_nothing() -> None:
    disk = new_disk()
    wal = new_log(disk, batch(1, 10))
    wal.mark_snapshot(8, 1)
    wal.mark_snapshot(5, 1)
    wal.sync()
    assert reopened(disk)[1].mark == Mark(8, 1)


def test_segments_wholly_covered_are_deleted_and_the_rest_reads_on() -> None:
    disk = new_disk()
    wal = new_log(disk)
    for n in range(1, 101):
        wal.append(HardState(1, 0, n), [entry(n)])
    wal.mark_snapshot(80, 1)
    wal.sync()
    before = len(disk.list_dir(DIR))
    wal.release_before(60)
    left = len(disk.list_dir(DIR))
    assert 1 < left < before
    _, found = reopened(disk)
    assert found.mark == Mark(80, 1)
    assert found.hard_state == HardState(1, 0, 100)
    assert found.base <= 60
    assert found.entries == batch(found.base + 1, 100 - found.base)


def test_a_segment_that_once_held_a_higher_index_is_kept_until_that_is_covered() -> None:
    disk = new_disk()
    wal = new_log(disk, batch(1, 20))
    wal.append(HardState(term=2), batch(5, 1, term=2))
    for n in range(6, 80):
        wal.append(None, [entry(n, term=2)])
    wal.mark_snapshot(10, 2)
    wal.sync()
    wal.release_before(10)
    assert reopened(disk)[1].entries == batch(1, 4) + batch(5, 75, term=2)


def test_nothing_is_deleted_that_no_durable_mark_covers() -> None:
    disk = new_disk()
    wal = new_log(disk)
    for n in range(1, 101):
        wal.append(None, [entry(n)])
    wal.sync()
    names = disk.list_dir(DIR)
    wal.mark_snapshot(100, 1)
    wal.release_before(100)
    assert disk.list_dir(DIR) == names
    wal.sync()
    wal.release_before(100)
    assert len(disk.list_dir(DIR)) == 1


def test_a_release_that_failed_goes_on_where_it_stopped() -> None:
    disk = new_disk()
    wal = new_log(disk)
    for n in range(1, 101):
        wal.append(None, [entry(n)])
    wal.mark_snapshot(100, 1)
    wal.sync()
    disk.fail_next("remove")
    with pytest.raises(StorageError):
        wal.release_before(50)
    assert reopened_copy(disk).entries[-1] == entry(100)
    wal.release_before(100)
    assert len(disk.list_dir(DIR)) == 1


@pytest.mark.parametrize("after", [0, 1, 3])
def test_names_whose_sync_failed_are_not_taken_for_durable_later(after: int) -> None:
    """What a directory's next fsync says does not cover them, so a power loss could leave a gap in the numbers."""
    disk = new_disk()
    wal = new_log(disk)
    for n in range(1, 101):
        wal.append(None, [entry(n)])
    wal.mark_snapshot(100, 1)
    wal.sync()
    disk.fail_next("sync_dir", skip=after)
    for _ in range(3):
        with pytest.raises(StorageError, match=r"deleting old segments failed|until a restart"):
            wal.release_before(100)
    wal.append(None, [entry(101)])
    wal.sync()
    disk.lose_power(lambda: False)
    _, found = Wal.open(disk, DIR)
    assert found.entries[-1] == entry(101)


def test_entries_that_the_snapshot_covers_are_not_written_again() -> None:
    disk = new_disk()
    wal = new_log(disk, batch(1, 8))
    wal.mark_snapshot(8, 1)
    with pytest.raises(StorageError, match="entry 4 is covered by the snapshot already"):
        wal.append(None, [entry(4)])
    wal.append(None, [entry(9)])


def reopened_copy(disk: Disk):
    other, found = Wal.open(disk, DIR)
    other.close()
    return found


def test_a_batch_with_a_gap_is_refused() -> None:
    disk = new_disk()
    wal = new_log(disk)
    wal.append(None, [entry(1), entry(2), entry(4)])
    wal.sync()
    wal.close()
    with pytest.raises(DamagedStorageError, match="gaps"):
        reopened_copy(disk)


def test_releasing_beside_appending_loses_nothing(tmp_path) -> None:
    path = str(tmp_path)
    Wal.create(Files(), path, CLUSTER_ID, NODE_ID, HardState(term=1), [], 4096)
    wal, _ = Wal.open(Files(), path, 4096)
    append_beside(wal, 1000, wal.release_before, threads=2)
    _, found = Wal.open(Files(), path, 4096)
    assert found.mark.index == 990
    assert found.entries == batch(found.base + 1, 1000 - found.base)
    assert found.base <= 990


# -- a disk that fails


def append_until_it_fails(wal: Wal, first: int) -> int:
    """Append and sync entries from `first` on; the index of the last that was synced."""
    for index in range(first, first + 100):
        try:
            wal.append(None, [entry(index)])
            wal.sync()
        except StorageError:
            return index - 1
    raise AssertionError("the disk did not fail")


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_after_a_failed_write_or_fsync_nothing_more_is_written_or_synced(operation: str) -> None:
    disk = new_disk()
    wal = new_log(disk, batch(1, 3))
    disk.fail_next(operation)
    assert append_until_it_fails(wal, 4) == 3
    disk.operations.clear()
    for attempt in (lambda: wal.append(None, [entry(4)]), lambda: wal.mark_snapshot(2, 1), wal.sync, wal.sync):
        with pytest.raises(StorageError):
            attempt()
    assert disk.operations == []


def test_what_a_failed_fsync_left_in_the_cache_is_made_durable_before_a_restart_believes_it() -> None:
    # The kernel marks pages of a failed fsync clean: the data is read back, and no later fsync writes it.
    disk = new_disk()
    wal = new_log(disk, batch(1, 3))
    wal.append(HardState(2, 2, 0), batch(4, 3, term=2))
    disk.fail_next("sync")
    with pytest.raises(StorageError):
        wal.sync()
    _, found = reopened(disk)
    disk.lose_power(lambda: False)
    _, again = Wal.open(disk, DIR)
    assert again == found


def test_what_a_killed_process_did_not_sync_is_made_durable_before_a_restart_believes_it() -> None:
    disk = new_disk()
    wal = new_log(disk, batch(1, 3))
    wal.append(HardState(2, 2, 0), batch(4, 40, term=2))  # into a new segment
    _, found = reopened(disk)
    assert index_of(found.entries[-1]) == 43
    disk.lose_power(lambda: False)
    assert Wal.open(disk, DIR)[1] == found


FIRST, SECOND = f"{DIR}/{1:016d}.wal", f"{DIR}/{2:016d}.wal"
REFUSALS = [
    *[("create", "next.tmp", code) for code in (errno.ENOSPC, errno.EMFILE, errno.ENOMEM, errno.EIO, errno.EROFS)],
    *[("write", "next.tmp", code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EIO)],
    *[("sync", "next.tmp", code) for code in (errno.ENOSPC, errno.EIO)],
    *[("rename", SECOND, code) for code in (errno.ENOSPC, errno.ENFILE)],
    *[("sync_dir", DIR, code) for code in (errno.EMFILE, errno.ENFILE)],
    *[("write", FIRST, code) for code in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)],
]


def append_until_refused(wal: Wal, disk: Disk, operation: str, name: str, code: int) -> int:
    """Append and sync entries from 4 on until `operation` is refused while the next segment is made; which was."""
    wal.append(None, batch(4, 15))
    wal.sync()
    disk.fail_next(operation, name, code, skip=operation == "write" and name == FIRST)
    for index in range(19, 60):
        try:
            wal.append(HardState(2, index, 3), [entry(index, 2)])
        except DiskRefusedError:
            return index
        wal.sync()
    raise AssertionError("the disk refused nothing")


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize(("operation", "name", "code"), REFUSALS)
def test_what_was_refused_before_it_took_effect_is_asked_for_again_and_nothing_is_lost(
    operation: str, name: str, code: int, times: int
) -> None:
    disk = new_disk()
    wal = new_log(disk, batch(1, 3))
    refused = append_until_refused(wal, disk, operation, name, code)
    expected = [*batch(1, 18), *batch(19, refused - 19, term=2)]
    for _ in range(times - 1):
        disk.fail_next(operation, name, code)
        with pytest.raises(DiskRefusedError):
            wal.append(HardState(2, refused, 3), [entry(refused, 2)])
    for keep in (lambda: False, lambda: True):
        crashed = copy.deepcopy(disk)
        crashed.lose_power(keep)
        found = Wal.open(crashed, DIR, 1536)[1].entries
        assert found[: len(expected)] == expected, "what was synced stays, whenever the power goes"
    wal.append(HardState(2, refused, 3), [entry(refused, 2)])
    wal.append(None, batch(refused + 1, 30, term=2))
    wal.sync()
    disk.lose_power(lambda: False)
    found = Wal.open(disk, DIR)[1]
    assert found.entries == [*expected, *batch(refused, 31, term=2)]
    assert found.hard_state == HardState(2, refused, 3)
    assert "next.tmp" not in disk.list_dir(DIR)


class HalfDisk(Disk):
    """Takes a part of the next write to a file, and refuses the rest."""

    part = -1

    def write(self, fd: int, data: bytes, offset: int) -> None:
        if self.part >= 0:
            part, self.part = self.part, -1
            super().write(fd, data[:part], offset)
            raise OSError(errno.ENOSPC, "no space", self.fd_paths[fd])
        super().write(fd, data, offset)


@pytest.mark.parametrize("part", [0, 1, 30, 600, 1300])
@pytest.mark.parametrize("stays", [True, False])
def test_a_record_of_which_a_part_was_refused_is_written_again_in_its_place(part: int, stays: bool) -> None:
    disk = HalfDisk()
    disk.add_dirs(DIR)
    wal = new_log(disk, batch(1, 3), 8192)
    large = [entry(4, data=bytes(range(256)) * 5)]
    disk.part = part
    with pytest.raises(DiskRefusedError):
        wal.append(None, large)
    crashed = copy.deepcopy(disk)
    crashed.lose_power(lambda: stays)
    assert Wal.open(crashed, DIR, 8192)[1].entries == batch(1, 3), "a torn last write"
    wal.append(None, large)
    wal.sync()
    disk.lose_power(lambda: False)
    assert Wal.open(disk, DIR, 8192)[1].entries == batch(1, 3) + large


def test_a_mark_that_was_refused_is_not_taken_to_be_written() -> None:
    disk = new_disk()
    wal = new_log(disk, batch(1, 9))
    for index, goes_on in ((5, True), (20, False)):
        disk.fail_next("write", FIRST, errno.ENOSPC)
        with pytest.raises(DiskRefusedError):
            wal.mark_snapshot(index, 1)
        assert wal.mark_snapshot(index, 1) is goes_on
        wal.sync()
        crashed = copy.deepcopy(disk)
        crashed.lose_power(lambda: False)
        assert Wal.open(crashed, DIR, 1536)[1].mark == Mark(index, 1)


@pytest.mark.parametrize(
    ("operation", "name", "code"),
    [
        ("sync", FIRST, errno.ENOSPC),
        ("sync", FIRST, errno.EDQUOT),
        ("sync_dir", DIR, errno.ENOSPC),
        ("sync_dir", DIR, errno.ENOMEM),
        ("sync_dir", DIR, errno.EIO),
        ("create", "next.tmp", errno.ESTALE),
        ("write", FIRST, errno.EIO),
    ],
)
def test_what_leaves_a_doubt_while_a_segment_is_made_stops_the_log_and_loses_nothing_synced(
    operation: str, name: str, code: int
) -> None:
    disk = new_disk()
    wal = new_log(disk, batch(1, 3))
    disk.fail_next(operation, name, code)
    synced = append_until_it_fails(wal, 4)
    for _ in range(2):
        with pytest.raises(StorageError) as caught:
            wal.append(None, [entry(synced + 1)])
        assert not isinstance(caught.value, DiskRefusedError)
    disk.lose_power(lambda: False)
    _, found = reopened(disk)
    assert found.entries == batch(1, synced)
    assert "next.tmp" not in disk.list_dir(DIR)


@pytest.mark.parametrize("skip", range(3))
def test_a_segment_whose_name_could_not_be_synced_is_durable_before_the_next_process_writes_to_it(skip: int) -> None:
    disk = new_disk()
    wal = new_log(disk, batch(1, 3))
    disk.fail_next("sync_dir", DIR, skip=skip)
    synced = append_until_it_fails(wal, 4)
    disk.kill_process()  # and the machine goes on
    wal, found = reopened(disk)
    assert found.entries == batch(1, synced)
    wal.append(None, [entry(synced + 1)])
    wal.sync()
    disk.lose_power(lambda: False)
    assert reopened(disk)[1].entries == batch(1, synced + 1)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
def test_a_release_for_which_the_directory_could_not_be_opened_is_repeated(code: int) -> None:
    disk = new_disk()
    wal = new_log(disk, batch(1, 60))
    wal.append(None, batch(61, 60))
    wal.mark_snapshot(100, 1)
    wal.sync()
    before = len(disk.list_dir(DIR))
    disk.fail_next("sync_dir", DIR, code)
    with pytest.raises(StorageError):
        wal.release_before(100)
    wal.release_before(100)
    assert len(disk.list_dir(DIR)) < before
    disk.lose_power(lambda: False)
    assert Wal.open(disk, DIR, 1536)[1].mark == Mark(100, 1)


def test_a_full_disk_stops_the_log_and_a_restart_with_room_goes_on() -> None:
    disk = new_disk()
    wal = new_log(disk, batch(1, 3))
    disk.free_bytes = 1000
    synced = append_until_it_fails(wal, 4)
    disk.free_bytes = None
    wal, found = reopened(disk)
    assert found.entries == batch(1, synced)
    wal.append(None, batch(synced + 1, 50))
    wal.sync()
    assert reopened(disk)[1].entries == batch(1, synced + 50)


def test_a_closed_log_takes_nothing_more() -> None:
    wal = new_log(new_disk())
    wal.close()
    wal.close()
    with pytest.raises(StorageError):
        wal.append(None, [entry(1)])


def test_a_closed_log_deletes_nothing_more() -> None:
    # Its directory may be another process's by then.
    disk = new_disk()
    wal = new_log(disk)
    for n in range(1, 101):
        wal.append(None, [entry(n)])
    wal.mark_snapshot(100, 1)
    wal.sync()
    names = disk.list_dir(DIR)
    wal.close()
    wal.release_before(100)
    assert disk.list_dir(DIR) == names


# -- what does not belong together


def test_a_missing_segment_is_refused() -> None:
    disk = log_of_four_segments()
    names = disk.list_dir(DIR)
    disk.delete(f"{DIR}/{names[1]}")
    with pytest.raises(DamagedStorageError, match="missing"):
        Wal.open(disk, DIR)


def test_a_log_without_segments_is_refused() -> None:
    with pytest.raises(DamagedStorageError, match="no segment"):
        Wal.open(new_disk(), DIR)


def test_a_segment_of_another_log_is_refused() -> None:
    disk = log_of_four_segments()
    other = log_of_four_segments(data=b"other")
    name = disk.list_dir(DIR)[2]
    disk.put(f"{DIR}/{name}", other.content(f"{DIR}/{name}"))
    with pytest.raises(DamagedStorageError, match="does not continue"):
        Wal.open(disk, DIR)


def test_a_segment_under_another_number_is_refused() -> None:
    disk = log_of_four_segments()
    names = disk.list_dir(DIR)
    disk.put(f"{DIR}/{names[-1]}", disk.content(f"{DIR}/{names[-2]}"))
    with pytest.raises(DamagedStorageError, match="another segment"):
        Wal.open(disk, DIR)
    disk.put(f"{DIR}/1.wal", b"")
    with pytest.raises(DamagedStorageError, match="not the name"):
        Wal.open(disk, DIR)


def log_of_four_segments(data: bytes = b"x") -> Disk:
    disk = new_disk()
    wal = new_log(disk, segment_bytes=512)
    n = 0
    while len(disk.list_dir(DIR)) < 4:
        n += 1
        wal.append(None, [entry(n, data=data)])
        wal.sync()
    disk.kill_process()
    return disk


def test_a_segment_begins_with_the_life_of_its_time() -> None:
    disk = new_disk()
    wal = new_log(disk, batch(1, 1), segment_bytes=4096)
    for nonce in (7, 8, 9):
        life = wal.begin_life(nonce)
    assert (life.counter, life.nonces[:4]) == (3, (9, 8, 7, 0))
    index = 1
    while len(disk.list_dir(DIR)) < 4:
        index += 1
        wal.append(None, batch(index, 1))
        wal.sync()
    wal.mark_snapshot(index, 1)
    wal.sync()
    wal.release_before(index)
    assert len(disk.list_dir(DIR)) == 1, "the segments in which it was counted are gone"
    again, found = Wal.open(disk, DIR, 4096)
    assert found.life == life
    assert again.begin_life(10).life == (4, 10)
