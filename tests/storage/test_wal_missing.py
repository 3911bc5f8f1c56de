"""What is missing of a log is missed."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest

from raftsvc.core.messages import HardState, index_of
from raftsvc.errors import DamagedStorageError
from raftsvc.storage.files import Files
from raftsvc.storage.wal import _BODY, Wal
from tests.storage.faults import Disk
from tests.storage.logs import CLUSTER_ID, DIR, FIRST_STATE, NODE_ID, entry, new_disk, new_log

SEGMENT_BYTES = 1024


def name_of(number: int) -> str:
    return f"{DIR}/{number:016d}.wal"


def log_of_segments(count: int, segment_bytes: int = SEGMENT_BYTES) -> tuple[Disk, int]:
    """A closed log of so many segments, everything synced, and the index of its last entry."""
    disk = new_disk()
    wal = new_log(disk, segment_bytes=segment_bytes)
    index = 0
    while len(wal._segments) < count or wal._offset < wal._current_size // 2:
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
    assert "Evict this member and join with an empty directory" in str(refusal.value)
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
    for number, size in ((3, 700), (5, _BODY), (5, len(disk.content(name_of(5))) - 1)):
        cut = copy.deepcopy(disk)
        cut.put(name_of(number), cut.content(name_of(number))[:size])
        assert_refused(cut, name_of(number), now)


@pytest.mark.parametrize("size", [0, 51, _BODY, SEGMENT_BYTES, 9999])
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
