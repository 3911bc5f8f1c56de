"""What the disk refused of a batch is written again as it was, from there on, and nothing comes before it."""

from __future__ import annotations

import errno
import importlib
from itertools import count

import pytest

from raftsvc.core.messages import HardState
from raftsvc.core.raft import Ready, SnapshotMeta
from raftsvc.errors import DiskRefusedError
from raftsvc.member.handoff import Inbox
from raftsvc.member.health import Health
from raftsvc.member.writes import SnapshotMark, Writes
from raftsvc.storage import Store
from tests.storage.faults import Disk, PowerLoss, losses
from tests.storage.logs import batch
from tests.storage.test_store import data_up_to, header, member, receive

pytestmark = pytest.mark.pure

SEGMENT = f"{1:016d}.wal"


def ready(token: int, first: int, count: int, snapshot: SnapshotMeta | None = None) -> Ready:
    return Ready(token, True, HardState(1, 1, 0), batch(first, count), snapshot, (), (), (), ())


def attempt(writes: Writes, tries: int = 0) -> bool:
    """Write what is due; whether it was not refused."""
    taken = writes.begin()
    try:
        writes.write(taken)
    except DiskRefusedError:
        writes.put_off(1)
        return False
    writes.end()
    return True


@pytest.fixture
def disk(tmp_path: object) -> Disk:
    disk = Disk()
    disk.add_dirs(str(tmp_path))
    return disk


def make(path: str, disk: Disk) -> tuple[Store, Writes]:
    store = member(path, disk, 3)
    health = Health()
    return store, Writes(store, Inbox(health), health)


@pytest.mark.parametrize("skip", [0, 1, 2])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.ENOMEM])
def test_it_goes_on_where_it_was_refused(tmp_path: object, disk: Disk, skip: int, code: int) -> None:
    path = str(tmp_path)
    store, writes = make(path, disk)
    store.save_snapshot(header(2), [data_up_to(2)])
    items = [ready(1, 4, 2), SnapshotMark(2, 1), ready(2, 6, 1)]
    for item in items:
        writes.add(item)
    disk.fail_next("write", SEGMENT, code, skip=skip)
    assert writes.is_due and not attempt(writes)
    writes.add(ready(3, 7, 2))
    assert not writes.is_due and writes.is_under_way, "it rests first"
    writes.tick()
    assert writes.is_due
    disk.operations.clear()
    assert attempt(writes)
    assert disk.count("write", SEGMENT) == len(items) - skip, "what was written is not written twice"
    assert writes.is_due and attempt(writes), "then comes what came later"
    store.close()
    disk.lose_power(lambda: False)
    loaded = Store.open(path, disk, lock_timeout=0, segment_bytes=1400).load(1)
    assert list(loaded.entries) == batch(1, 8)


def test_a_snapshot_that_was_installed_before_its_mark_was_refused_is_not_installed_twice(
    tmp_path: object, disk: Disk
) -> None:
    path = str(tmp_path)
    store, writes = make(path, disk)
    receive(store, header(9, 2), data_up_to(9))
    writes.add(ready(1, 10, 2, SnapshotMeta(9, 2)))
    disk.fail_next("write", SEGMENT, errno.ENOSPC)
    assert not attempt(writes)
    writes.tick()
    disk.operations.clear()
    assert attempt(writes)
    assert not disk.count("rename")
    store.close()
    disk.lose_power(lambda: False)
    loaded = Store.open(path, disk, lock_timeout=0, segment_bytes=1400).load(1)
    assert loaded.snapshot == header(9, 2)
    assert list(loaded.entries) == batch(10, 2)


@pytest.mark.parametrize("is_after_entries", [False, True])
@pytest.mark.parametrize("loss", range(5))
def test_the_power_may_go_at_any_operation_of_installing_a_snapshot(
    tmp_path: object, loss: int, is_after_entries: bool
) -> None:
    path = str(tmp_path)
    for operation in count(1):
        disk = Disk()
        disk.add_dirs(path)
        store, writes = make(path, disk)
        receive(store, header(9, 2), data_up_to(9))
        if is_after_entries:
            writes.add(ready(1, 4, 2))
        writes.add(ready(2, 10, 2, SnapshotMeta(9, 2)))
        disk.operations.clear()
        disk.crash_at = operation
        try:
            is_whole = attempt(writes)
        except PowerLoss:
            is_whole = False
        store._dir_lock.release()
        disk.lose_power(losses(operation)[loss][1])
        store = Store.open(path, disk, lock_timeout=0, segment_bytes=1400)
        loaded = store.load(1)  # whatever is left is the directory of a member that goes on
        last = loaded.snapshot.index if loaded.snapshot else 0
        assert last in (0, 9)
        assert len(loaded.entries) >= 3 or last == 9, "what was acknowledged before"
        store.close()
        if is_whole:
            assert (last, list(loaded.entries)) == (9, batch(10, 2))
            break
    assert operation > 4


def test_it_rests_longer_each_time(tmp_path: object, disk: Disk) -> None:
    _, writes = make(str(tmp_path), disk)
    writes.add(ready(1, 4, 1))
    rests = []
    for _ in range(6):
        disk.fail_next("write", SEGMENT, errno.ENOSPC)
        taken = writes.begin()
        with pytest.raises(DiskRefusedError):
            writes.write(taken)
        writes.put_off(10)
        ticks = 0
        while not writes.is_due:
            writes.tick()
            ticks += 1
        rests.append(ticks)
    assert rests == [1, 2, 4, 8, 10, 10]


@pytest.mark.parametrize("function", ["wal.encode_record", "wal.closing_record", "spare.write_zeros"])
def test_without_memory_for_a_moment_it_is_as_with_a_full_disk(
    tmp_path: object, disk: Disk, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    path = str(tmp_path)
    store, writes = make(path, disk)
    writes.add(ready(1, 4, 60))
    failing = 1
    module, _, name = function.partition(".")
    real = getattr(importlib.import_module(f"raftsvc.storage.{module}"), name)

    def fails(*args: object) -> object:
        nonlocal failing
        if failing:
            failing -= 1
            raise MemoryError
        return real(*args)

    monkeypatch.setattr(f"raftsvc.storage.{function}", fails)
    assert not attempt(writes)
    writes.tick()
    assert attempt(writes)
    store.close()
    disk.lose_power(lambda: False)
    assert list(Store.open(path, disk, lock_timeout=0, segment_bytes=1400).load(1).entries) == batch(1, 63)
