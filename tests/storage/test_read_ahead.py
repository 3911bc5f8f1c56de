"""What was read of a log ahead is not read again, where it is the same; and counts for nothing where it is not."""

from __future__ import annotations

import threading

import pytest

from raftsvc.core.messages import HardState
from raftsvc.errors import StorageError
from raftsvc.storage import read_log_ahead
from raftsvc.storage.segments import Ahead, Recovered, read_ahead
from raftsvc.storage.wal import Wal
from tests.storage.faults import Disk
from tests.storage.logs import CLUSTER_ID, DIR, FIRST_STATE, NODE_ID, batch, entry, new_disk, new_log

SEGMENT_BYTES = 1536


class Count:
    """How many entries are decoded."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.entries = 0
        take = Recovered.take

        def count(found: Recovered, kind: int, payload: bytes) -> int:
            before = len(found.entries)
            index = take(found, kind, payload)
            self.entries += max(0, len(found.entries) - before)
            return index

        patch.setattr(Recovered, "take", count)

    def of_open(self, disk: Disk, ahead: Ahead | None) -> int:
        self.entries = 0
        disk.kill_process()
        Wal.open(disk, DIR, SEGMENT_BYTES, ahead)
        return self.entries


@pytest.fixture
def written() -> tuple[Disk, Wal]:
    """A log of several segments."""
    disk = new_disk()
    wal = new_log(disk, segment_bytes=SEGMENT_BYTES)
    for n in range(1, 61):
        wal.append(None, [entry(n)])
    wal.sync()
    return disk, wal


def test_only_what_came_later_is_decoded(written: tuple[Disk, Wal], monkeypatch: pytest.MonkeyPatch) -> None:
    disk, wal = written
    assert len(disk.list_dir(DIR)) > 3
    ahead = read_ahead(disk, DIR, lambda: False)
    for n in range(61, 91):  # some more segments
        wal.append(HardState(1, 1, n), [entry(n)])
    wal.sync()
    count = Count(monkeypatch)
    assert count.of_open(disk, ahead) == 30
    assert count.of_open(disk, None) == 90


def test_nothing_that_was_read_counts_once_a_byte_of_it_is_another(
    written: tuple[Disk, Wal], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, _ = written
    count = Count(monkeypatch)
    assert count.of_open(disk, read_ahead(disk, DIR, lambda: False)) == 0
    ahead = read_ahead(disk, DIR, lambda: False)
    path = sorted(f"{DIR}/{name}" for name in disk.list_dir(DIR))[1]
    fd = disk.open(path)
    disk.write(fd, b"\xff", 700)
    disk.close(fd)
    with pytest.raises(StorageError, match=path):
        count.of_open(disk, ahead)


def test_a_log_of_another_beginning_is_read_anew(written: tuple[Disk, Wal], monkeypatch: pytest.MonkeyPatch) -> None:
    disk, wal = written
    ahead = read_ahead(disk, DIR, lambda: False)
    wal.mark_snapshot(40, 1)
    wal.sync()
    wal.release_before(40)
    count = Count(monkeypatch)
    assert 20 <= count.of_open(disk, ahead) < 60
    anew = new_disk()
    Wal.create(anew, DIR, CLUSTER_ID + 1, NODE_ID, FIRST_STATE, batch(1, 3), SEGMENT_BYTES)
    assert count.of_open(anew, ahead) == 3


def test_it_is_read_while_it_is_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = new_disk()
    wal = new_log(disk, segment_bytes=SEGMENT_BYTES)
    ahead = [read_ahead(disk, DIR, lambda: False)]
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            try:
                ahead.append(read_ahead(disk, DIR, lambda: False))
            except (OSError, StorageError):  # a segment was begun, or given up, just then
                continue

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for n in range(1, 801):
            wal.append(None, [entry(n)])
            if n % 100 == 0:
                wal.sync()
                wal.mark_snapshot(n - 20, 1)
                wal.sync()
                wal.release_before(n - 60)
    finally:
        is_over.set()
        thread.join()
    disk.kill_process()
    held = [each.found.base + len(each.found.entries) for each in ahead]
    assert held == sorted(held)
    _, expected = Wal.open(disk, DIR, SEGMENT_BYTES)
    for each in ahead[-3:]:
        disk.kill_process()
        assert Wal.open(disk, DIR, SEGMENT_BYTES, each)[1] == expected


def test_what_cannot_be_read_now_is_none(written: tuple[Disk, Wal]) -> None:
    disk, _ = written
    assert read_log_ahead("/node", disk) is not None
    before = sorted(disk.list_dir(DIR))
    disk.remove(f"{DIR}/{before[1]}")
    assert read_log_ahead("/node", disk) is None
    assert read_log_ahead("/elsewhere", disk) is None


def test_bytes_that_were_compared_are_those_that_it_goes_on_from(
    written: tuple[Disk, Wal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read once more they may be others, where a sync had failed and only the page cache held them."""
    disk, wal = written
    wal.append(None, [entry(61)])
    ahead = read_ahead(disk, DIR, lambda: False)
    last = sorted(disk.list_dir(DIR))[-1]
    reads: list[str] = []
    read, open_to_read, open_file = disk.read, disk.open_to_read, disk.open
    paths: dict[int, str] = {}

    def opened(path: str, *arguments: bool) -> int:
        fd = open_to_read(path, *arguments)
        paths[fd] = path
        return fd

    def opened_to_write(path: str) -> int:
        fd = open_file(path)
        paths[fd] = path
        return fd

    def count(fd: int, size: int, offset: int) -> bytes:
        reads.append(paths[fd])
        return read(fd, size, offset)

    disk.kill_process()
    monkeypatch.setattr(disk, "open_to_read", opened)
    monkeypatch.setattr(disk, "open", opened_to_write)
    monkeypatch.setattr(disk, "read", count)
    _, found = Wal.open(disk, DIR, SEGMENT_BYTES, ahead)
    assert found.entries[-1] == entry(61)
    assert reads.count(f"{DIR}/{last}") == 1
