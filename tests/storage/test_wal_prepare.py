"""The next segment, prepared ahead: it makes a rotation quick, and whatever befalls it harms nobody."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from raftsvc.core.messages import HardState, index_of
from raftsvc.errors import StorageError
from raftsvc.storage.files import Files
from raftsvc.storage.wal import Wal
from tests.storage.faults import SECTOR_BYTES, Disk
from tests.storage.logs import CLUSTER_ID, DIR, NODE_ID, append_beside, batch, entry, new_disk, new_log

SEGMENT_BYTES = 4096
PIECES = SEGMENT_BYTES // SECTOR_BYTES
NEXT = f"{DIR}/next.tmp"


def fill(wal: Wal, first: int) -> int:
    """Append until the log is about to rotate; the index that does so."""
    index = first
    need = len(entry(index, data=bytes(300))) + 100
    while wal._tail.offset + need <= SEGMENT_BYTES:
        wal.append(None, [entry(index, data=bytes(300))])
        wal.sync()
        index += 1
    return index


def prepare(wal: Wal) -> int:
    """Prepare to the end; how many pieces that took."""
    pieces = 1
    while wal.prepare():
        pieces += 1
    return pieces


def rotate(wal: Wal, index: int) -> None:
    segments = len(wal._segments)
    wal.append(None, [entry(index, data=bytes(400))])
    wal.sync()
    assert len(wal._segments) == segments + 1


def indices(disk: Disk) -> list[int]:
    disk.lose_power(lambda: False)
    return [index_of(e) for e in Wal.open(disk, DIR, SEGMENT_BYTES)[1].entries]


def test_a_rotation_into_a_prepared_segment_writes_no_zeros() -> None:
    disk = new_disk()
    wal = new_log(disk, segment_bytes=SEGMENT_BYTES)
    index = fill(wal, 1)
    assert prepare(wal) == PIECES
    assert not wal.prepare()
    old, new = f"{DIR}/{1:016d}.wal", f"{DIR}/{2:016d}.wal"
    disk.operations.clear()
    rotate(wal, index)
    assert disk.operations == [
        ("sync", old),
        ("write", NEXT),  # the head
        ("sync", NEXT),
        ("rename", new),
        ("sync_dir", DIR),
        ("write", old),  # what closes it
        ("sync", old),
        ("write", NEXT),  # opened by that name
        ("sync", NEXT),
    ]
    assert len(disk.content(new)) == SEGMENT_BYTES
    assert indices(disk) == list(range(1, index + 1))


@pytest.mark.parametrize("pieces", range(PIECES + 1))
def test_a_rotation_completes_what_was_prepared_in_part(pieces: int) -> None:
    disk = new_disk()
    wal = new_log(disk, segment_bytes=SEGMENT_BYTES)
    index = fill(wal, 1)
    for _ in range(pieces):
        wal.prepare()
    disk.free_bytes = SEGMENT_BYTES - pieces * SECTOR_BYTES
    rotate(wal, index)
    assert disk.free_bytes == 0, "it takes no more of the disk than one segment"
    assert disk.list_dir(DIR) == [f"{1:016d}.wal", f"{2:016d}.wal"]
    assert indices(disk) == list(range(1, index + 1))


def test_a_batch_larger_than_a_segment_gets_a_prepared_one_that_is_made_longer() -> None:
    disk = new_disk()
    wal = new_log(disk, segment_bytes=SEGMENT_BYTES)
    prepare(wal)
    large = entry(1, data=os.urandom(3 * SEGMENT_BYTES))
    wal.append(None, [large])
    wal.append(None, [entry(2)])
    wal.sync()
    disk.lose_power(lambda: False)
    assert Wal.open(disk, DIR, SEGMENT_BYTES)[1].entries == [large, entry(2)]


def test_it_is_due_from_half_of_a_segment_on_until_it_is_complete() -> None:
    wal = new_log(new_disk(), segment_bytes=SEGMENT_BYTES)
    for _ in range(2):
        assert not wal.is_prepare_due
        index = wal._extent.last + 1
        while wal._tail.offset < SEGMENT_BYTES // 2:
            assert not wal.is_prepare_due
            wal.append(None, [entry(index)])
            index += 1
        assert wal.is_prepare_due
        wal.prepare()
        assert wal.is_prepare_due
        prepare(wal)
        assert not wal.is_prepare_due
        rotate(wal, fill(wal, index))


# -- what a crash leaves


@pytest.mark.parametrize("pieces", [1, 3, PIECES])
@pytest.mark.parametrize("is_kept", [False, True])
def test_what_a_crash_left_is_removed_and_made_anew(pieces: int, is_kept: bool) -> None:
    disk = new_disk()
    wal = new_log(disk, batch(1, 3), SEGMENT_BYTES)
    for _ in range(pieces):
        wal.prepare()
    disk.lose_power(lambda: is_kept)
    wal, found = Wal.open(disk, DIR, SEGMENT_BYTES)
    assert found.entries == batch(1, 3)
    assert disk.list_dir(DIR) == [f"{1:016d}.wal"]
    assert prepare(wal) == PIECES
    rotate(wal, fill(wal, 4))


def test_what_is_under_the_temporary_name_is_never_read() -> None:
    disk = new_disk()
    new_log(disk, batch(1, 3), SEGMENT_BYTES)
    disk.put(NEXT, disk.content(f"{DIR}/{1:016d}.wal"))
    disk.kill_process()
    assert Wal.open(disk, DIR, SEGMENT_BYTES)[1].entries == batch(1, 3)
    assert not disk.exists(NEXT)


# -- a disk that refuses


def test_a_disk_too_full_to_prepare_stops_the_log_only_when_it_needs_the_space() -> None:
    disk = new_disk()
    wal = new_log(disk, segment_bytes=SEGMENT_BYTES)
    free = disk.free_bytes = SEGMENT_BYTES - 100
    assert prepare(wal) == PIECES
    assert disk.free_bytes == free, "what it took is given back"
    assert not wal.prepare() and not wal.is_prepare_due, "one attempt a segment"
    index = fill(wal, 1)
    with pytest.raises(StorageError):
        rotate(wal, index)
    assert indices(disk) == list(range(1, index))


def test_a_disk_that_was_too_full_only_while_preparing_stops_nothing() -> None:
    disk = new_disk()
    wal = new_log(disk, segment_bytes=SEGMENT_BYTES)
    disk.free_bytes = 1000
    prepare(wal)
    disk.free_bytes = None
    index = fill(wal, 1)
    rotate(wal, index)
    assert prepare(wal) == PIECES, "after a rotation it is tried again"
    index = fill(wal, index + 1)
    rotate(wal, index)
    assert indices(disk) == list(range(1, index + 1))


@pytest.mark.parametrize(("operation", "pieces"), [("create", 0), ("write", 0), ("write", 3), ("sync", 0), ("sync", 3)])
def test_a_file_that_failed_while_it_was_prepared_is_not_used(operation: str, pieces: int) -> None:
    disk = new_disk()
    wal = new_log(disk, segment_bytes=SEGMENT_BYTES)
    for _ in range(pieces):
        wal.prepare()
    disk.fail_next(operation, "next.tmp", errno.EIO)
    assert not wal.prepare()
    assert not disk.exists(NEXT)
    assert len(disk.fds) == 1, "only the segment in use is open"
    index = fill(wal, 1)
    disk.operations.clear()
    rotate(wal, index)
    assert disk.count("create", "next.tmp") == 1
    assert indices(disk) == list(range(1, index + 1))


# -- the end


@pytest.mark.parametrize("pieces", [0, 1, PIECES])
def test_a_closed_log_prepares_nothing_more_and_leaves_nothing_open(pieces: int) -> None:
    disk = new_disk()
    wal = new_log(disk, segment_bytes=SEGMENT_BYTES)
    for _ in range(pieces):
        wal.prepare()
    wal.close()
    disk.operations.clear()
    assert not wal.prepare()
    assert disk.operations == []
    assert not disk.fds


def test_a_log_that_failed_prepares_nothing_more() -> None:
    disk = new_disk()
    wal = new_log(disk, segment_bytes=SEGMENT_BYTES)
    wal.prepare()
    disk.fail_next("sync")
    with pytest.raises(StorageError):
        wal.sync()
    assert not wal.prepare()
    wal.close()
    assert not disk.fds


class HeldFiles(Files):
    """Calls `during` in the midst of the first piece; remembers what is open, and the last segment at each piece."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = str(path)
        self.during: Callable[[], None] = lambda: None
        self.next_fd = -1
        self.open_fds: set[int] = set()
        self.pieces: list[str] = []

    def create(self, path: str) -> int:
        self.next_fd = fd = super().create(path)
        self.open_fds.add(fd)
        return fd

    def open(self, path: str) -> int:
        fd = super().open(path)
        self.open_fds.add(fd)
        return fd

    def close(self, fd: int) -> None:
        self.open_fds.remove(fd)
        super().close(fd)

    def write(self, fd: int, data: bytes, offset: int) -> None:
        if fd == self.next_fd and threading.current_thread().name == "preparing":
            self.pieces.append(max(name for name in self.list_dir(self.path) if name.endswith(".wal")))
            if len(self.pieces) == 1:
                self.during()
        super().write(fd, data, offset)


def real_log(path: Path, files: Files) -> Wal:
    Wal.create(Files(), str(path), CLUSTER_ID, NODE_ID, HardState(term=1), [], SEGMENT_BYTES)
    return Wal.open(files, str(path), SEGMENT_BYTES)[0]


def preparing(wal: Wal) -> threading.Thread:
    thread = threading.Thread(target=prepare, args=(wal,), name="preparing", daemon=True)
    thread.start()
    return thread


def test_closing_while_a_piece_is_written_waits_for_it_and_nothing_appears_afterwards(tmp_path: Path) -> None:
    files = HeldFiles(tmp_path)
    wal = real_log(tmp_path, files)
    closing = threading.Thread(target=wal.close, daemon=True)

    def close() -> None:
        closing.start()
        while wal._failure is None:
            pass  # until close has begun

    files.during = close
    thread = preparing(wal)
    thread.join()
    closing.join()
    assert len(files.pieces) == 1
    assert not files.open_fds
    (tmp_path / "next.tmp").unlink()
    assert not wal.prepare()
    assert os.listdir(tmp_path) == [f"{1:016d}.wal"]


def test_a_rotation_waits_for_one_piece_only(tmp_path: Path) -> None:
    # A lock is not fair: who lets go of it and takes it again at once wins over who waits.
    files = HeldFiles(tmp_path)
    wal = real_log(tmp_path, files)
    index = fill(wal, 1)
    rotating = threading.Thread(target=rotate, args=(wal, index), daemon=True)

    def begin_to_rotate() -> None:
        rotating.start()
        while wal._spare._may_prepare:
            pass

    files.during = begin_to_rotate
    thread = preparing(wal)
    thread.join()
    rotating.join()
    assert files.pieces.count(f"{1:016d}.wal") == 1, "the others are of the segment after"
    wal.close()
    assert not files.open_fds
    assert [index_of(e) for e in Wal.open(Files(), str(tmp_path), SEGMENT_BYTES)[1].entries] == list(
        range(1, index + 1)
    )


def test_preparing_and_releasing_beside_appending_lose_nothing(tmp_path: Path) -> None:
    wal = real_log(tmp_path, Files())

    def prepare_and_release(marked: int) -> None:
        wal.prepare()
        wal.release_before(marked)

    append_beside(wal, 1500, prepare_and_release)
    _, found = Wal.open(Files(), str(tmp_path), SEGMENT_BYTES)
    assert found.entries == batch(found.base + 1, 1500 - found.base)
    assert found.base <= 1490
