"""What is missing of a log is missed: the end of a segment, or all of it; and no crash is taken for such a loss."""

from __future__ import annotations

import copy
import itertools
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from raftsvc.core.messages import HardState, index_of
from raftsvc.errors import REPLACE_MEMBER, DamagedStorageError, StorageError
from raftsvc.storage.files import Files
from raftsvc.storage.records import BODY, CLOSING_BYTES
from raftsvc.storage.wal import Wal
from tests.storage.faults import SECTOR_BYTES, Disk, PowerLoss, losses
from tests.storage.logs import CLUSTER_ID, DIR, FIRST_STATE, NODE_ID, batch, entry, new_disk, new_log
from tests.storage.test_wal_crash import crashed, every_crash

SEGMENT_BYTES = 1024


def name_of(number: int) -> str:
    return f"{DIR}/{number:016d}.wal"


def log_of_segments(count: int, segment_bytes: int = SEGMENT_BYTES) -> tuple[Disk, int]:
    """A closed log of so many segments, everything synced, and the index of its last entry."""
    disk = new_disk()
    wal = new_log(disk, segment_bytes=segment_bytes)
    index = 0
    while len(wal._segments) < count or wal._tail.offset < wal._tail.size // 2:
        index += 1
        wal.append(HardState(1, 1, index - 1), [entry(index, data=os.urandom(90))])
        wal.sync()
    wal.close()
    disk.kill_process()
    return disk, index


def assert_refused(disk: Disk, path: str, segment_bytes: int = SEGMENT_BYTES) -> DamagedStorageError:
    disk.kill_process()
    with pytest.raises(DamagedStorageError) as refusal:
        Wal.open(disk, DIR, segment_bytes)
    assert refusal.value.path == path
    assert REPLACE_MEMBER in str(refusal.value)
    return refusal.value


# -- a segment of another size


@pytest.mark.parametrize("number", [1, 2, 3], ids=["first", "middle", "last"])
@pytest.mark.parametrize("more", [b"\x00", b"\xa5", bytes(512), bytes(5 * SEGMENT_BYTES)], ids=len)
def test_a_segment_that_is_longer_than_its_head_says_is_refused(number: int, more: bytes) -> None:
    disk, _ = log_of_segments(3)
    disk.put(name_of(number), disk.content(name_of(number)) + more)
    assert assert_refused(disk, name_of(number)).offset == SEGMENT_BYTES


@pytest.mark.parametrize("now", [512, 4096, 1 << 20])
def test_what_size_a_segment_has_is_what_its_log_was_written_with(now: int) -> None:
    disk, last = log_of_segments(3)
    wal, found = Wal.open(disk, DIR, now)
    assert index_of(found.entries[-1]) == last
    more = 0
    while len(wal._segments) < 5:
        more += 1
        wal.append(None, [entry(last + more, data=bytes(now // 3))])
        wal.sync()
    for segment_bytes in (now, SEGMENT_BYTES):
        disk.kill_process()
        assert index_of(Wal.open(disk, DIR, segment_bytes)[1].entries[-1]) == last + more
    for number, size in ((3, 700), (5, BODY), (5, len(disk.content(name_of(5))) - 1)):
        cut = copy.deepcopy(disk)
        cut.put(name_of(number), cut.content(name_of(number))[:size])
        assert_refused(cut, name_of(number), now)


@pytest.mark.parametrize("size", [0, 51, BODY, SEGMENT_BYTES, 9999])
def test_a_segment_made_for_a_large_batch_has_that_size(size: int) -> None:
    disk = new_disk()
    wal = new_log(disk, segment_bytes=SEGMENT_BYTES)
    wal.append(None, [entry(1, data=os.urandom(10_000))])
    wal.sync()
    assert len(disk.content(name_of(2))) > 10_000
    disk.put(name_of(2), disk.content(name_of(2))[:size])
    assert_refused(disk, name_of(2))


@pytest.mark.parametrize("size", [0, 4096, (16 << 20) - 1])
def test_a_log_of_the_usual_size_that_was_cut_is_refused(tmp_path: Path, size: int) -> None:
    path = str(tmp_path)
    Wal.create(Files(), path, CLUSTER_ID, NODE_ID, FIRST_STATE, [])
    wal, _ = Wal.open(Files(), path)
    for n in range(1, 101):
        wal.append(HardState(1, 1, n - 1), [entry(n, data=bytes(100))])
        wal.sync()
    wal.close()
    segment = tmp_path / f"{1:016d}.wal"
    assert segment.stat().st_size == 16 << 20
    os.truncate(segment, size)
    with pytest.raises(DamagedStorageError) as refusal:
        Wal.open(Files(), path)
    assert (refusal.value.path, refusal.value.offset) == (str(segment), size)
    assert segment.stat().st_size == size, "and it is left as it was found"


# -- a segment that is lost


@pytest.mark.parametrize(
    "lost", [c for count in range(1, 5) for c in itertools.combinations((1, 2, 3, 4), count)], ids=str
)
def test_segments_that_are_lost_are_missed(lost: tuple[int, ...]) -> None:
    disk, _ = log_of_segments(4)
    for number in lost:
        disk.delete(name_of(number))
    left = sorted({1, 2, 3, 4} - set(lost))
    behind_gaps = [number for number in left[1:] if number - 1 in lost]
    if not left:
        path = DIR
    elif behind_gaps:
        path = name_of(behind_gaps[0])
    else:
        path = name_of(left[-1] + 1 if 4 in lost else left[0])
    assert_refused(disk, path)


def test_a_lost_segment_is_missed_even_if_another_one_was_being_prepared() -> None:
    disk = new_disk()
    wal = new_log(disk, segment_bytes=SEGMENT_BYTES)
    wal.append(None, batch(1, 30))
    wal.append(None, [entry(31)])
    wal.sync()
    while wal.prepare():
        pass
    newest = wal._segments[-1].path
    disk.delete(newest)
    assert_refused(disk, newest)


def test_a_lost_segment_is_missed_after_those_before_were_deleted_behind_a_snapshot() -> None:
    disk = new_disk()
    wal = new_log(disk, segment_bytes=SEGMENT_BYTES)
    for n in range(1, 101):
        wal.append(None, [entry(n)])
    wal.mark_snapshot(100, 1)
    wal.sync()
    wal.release_before(80)
    assert len(wal._segments) >= 2
    for segment in reversed(wal._segments):
        disk.delete(segment.path)
        assert_refused(disk, segment.path if len(disk.list_dir(DIR)) else DIR)


@pytest.mark.parametrize("number", [1, 2])
def test_a_segment_that_others_follow_is_refused_if_nothing_closes_it(number: int) -> None:
    disk, _ = log_of_segments(3)
    content = disk.content(name_of(number))
    end = len(content.rstrip(b"\x00"))
    start = end - CLOSING_BYTES + 3  # its end mark, and the padding behind
    disk.put(name_of(number), content[:start].ljust(len(content), b"\x00"))
    assert assert_refused(disk, name_of(number)).offset == start


def test_nothing_follows_the_record_that_closes_a_segment() -> None:
    disk, _ = log_of_segments(2)
    content = bytearray(disk.content(name_of(1)))
    for offset in range(len(content.rstrip(b"\x00")) + 8, len(content), 8):
        content[offset] = 1
        disk.put(name_of(1), bytes(content))
        assert_refused(disk, name_of(1))
        content[offset] = 0


# -- no crash is taken for a loss


def lost_or_cut(disk: Disk, seed: int) -> list[Callable[[Disk], object]]:
    """Ways to lose part of the log that is on `disk`."""
    chance = random.Random(seed)
    paths = [f"{DIR}/{name}" for name in disk.list_dir(DIR) if name.endswith(".wal")]
    tails = [paths[n:] for n in range(1, len(paths))]
    singles = [[path] for path in paths]
    ways: list[Callable[[Disk], object]] = [
        lambda disk, lost=lost: [disk.delete(path) for path in lost]  # type: ignore[misc]
        for lost in (*tails, *singles)
    ]
    for path in (paths[-1], chance.choice(paths)):
        size = chance.randrange(len(disk.content(path)))
        ways.append(lambda disk, path=path, size=size: disk.cut(path, size))  # type: ignore[misc]
    return ways


@pytest.mark.parametrize("seed", range(3))
def test_what_is_lost_after_any_crash_was_not_promised_or_is_missed(seed: int) -> None:
    missed = 0
    for crash_at in every_crash(seed):
        ways = [*losses(crash_at), ("killed", None)]
        for name, keep in ways[crash_at % 2 :: 2]:
            state = crashed(seed, crash_at)
            assert state is not None
            disk, model = state
            disk.kill_process() if keep is None else disk.lose_power(keep)
            for lose in lost_or_cut(disk, crash_at):
                damaged = copy.deepcopy(disk)
                lose(damaged)
                try:
                    found = Wal.open(damaged, DIR, SEGMENT_BYTES)[1]
                except DamagedStorageError:
                    missed += 1
                    continue
                # What a snapshot covers may be gone as if it had been released.
                model.released = max(model.released, found.mark.index)
                assert model.allows(found), (crash_at, name)
    assert missed > 100


def closed_at_a_crash(shift: int) -> tuple[Disk, int]:
    """A log that lost power when its first segment, with an entry of 8 * `shift` bytes, was closed; and where."""
    disk = new_disk()
    wal = new_log(disk, [entry(1, data=bytes(8 * shift))], 4096)
    closed_at = wal._tail.offset
    real_write = disk.write

    def write(fd: int, data: bytes, offset: int) -> None:
        if len(wal._segments) == 2:
            raise PowerLoss
        real_write(fd, data, offset)

    disk.write = write  # type: ignore[method-assign]
    with pytest.raises(PowerLoss):
        wal.append(HardState(2, 1, 0), [entry(2, data=bytes(4096))])
    del disk.write  # type: ignore[method-assign]
    disk.lose_power(lambda: False)
    return disk, closed_at


@pytest.mark.parametrize("shift", range(64))
def test_a_closing_record_that_was_torn_is_written_again(shift: int) -> None:
    disk, closed_at = closed_at_a_crash(shift)
    whole = disk.content(name_of(1))
    border = closed_at + -closed_at % SECTOR_BYTES
    end = closed_at + CLOSING_BYTES
    for kept in itertools.product((False, True), repeat=2):
        content = bytearray(whole)
        for is_kept, start, stop in ((kept[0], closed_at, min(border, end)), (kept[1], min(border, end), end)):
            if not is_kept:
                content[start:stop] = bytes(stop - start)
        torn = copy.deepcopy(disk)
        torn.put(name_of(1), bytes(content))
        wal, found = Wal.open(torn, DIR, 4096)
        assert found.entries == [entry(1, data=bytes(8 * shift))]
        assert torn.content(name_of(1)) == whole
        wal.append(None, [entry(2)])
        wal.sync()
        torn.lose_power(lambda: False)
        assert Wal.open(torn, DIR, 4096)[1].entries[1:] == [entry(2)]
        torn.delete(name_of(2))
        assert_refused(torn, name_of(2), 4096)


@pytest.mark.parametrize("shift", [0, 37, 38, 39, 40])
@pytest.mark.parametrize("bit", range(8))
def test_a_closing_record_that_rotted_is_not_taken_for_a_torn_one(shift: int, bit: int) -> None:
    disk, closed_at = closed_at_a_crash(shift)
    whole = disk.content(name_of(1))
    for offset in range(closed_at, closed_at + CLOSING_BYTES):
        rotten = copy.deepcopy(disk)
        rotten.rot(name_of(1), offset, bit)
        sector = offset - offset % SECTOR_BYTES
        if any(rotten.content(name_of(1))[max(closed_at, sector) : sector + SECTOR_BYTES]):
            assert_refused(rotten, name_of(1), 4096)
        else:  # the only bit that was set in its sector
            Wal.open(rotten, DIR, 4096)
            assert rotten.content(name_of(1)) == whole


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_a_closing_record_that_could_not_be_synced_is_made_durable_before_a_restart_believes_it(operation: str) -> None:
    # A failed fsync leaves it in the page cache, where it is read and from where nothing writes it any more.
    disk = new_disk()
    wal = new_log(disk, batch(1, 3), 4096)
    real_rename = disk.rename

    def rename(source: str, target: str) -> None:
        real_rename(source, target)
        disk.fail_next(operation, name_of(1))

    disk.rename = rename  # type: ignore[method-assign]
    with pytest.raises(StorageError):
        wal.append(None, [entry(4, data=bytes(4096))])
    disk.kill_process()
    wal, found = Wal.open(disk, DIR, 4096)
    assert found.entries == batch(1, 3)
    wal.append(HardState(2, 2, 0), [entry(4, term=2)])
    wal.sync()
    disk.lose_power(lambda: False)
    found = Wal.open(disk, DIR, 4096)[1]
    assert (found.hard_state, found.entries[-1]) == (HardState(2, 2, 0), entry(4, term=2))
