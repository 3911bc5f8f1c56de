"""A cluster goes on from a backup of a stopped node: what it has, what it has no more, and what is higher."""

from __future__ import annotations

import json
import shutil
import time
from itertools import pairwise
from pathlib import Path

import pytest

from raftsvc import kv as store_of_keys
from raftsvc import rescue
from raftsvc.core.membership import Configuration
from raftsvc.core.messages import data_of, index_of, time_of
from raftsvc.errors import ConfigurationError, DamagedStorageError, ExistingClusterError, StorageError
from raftsvc.kv import KeyValueState
from raftsvc.member.envelopes import wrap_anew
from raftsvc.storage import Store
from raftsvc.testing.disk import PowerLoss
from tests.rescue.harness import (
    ADDRS,
    CLUSTER_ID,
    NOW,
    OPENED,
    below,
    clock_at,
    history,
    items_of,
    leave,
    served,
    store_in,
    two_of,
)
from tests.service.harness import PATIENCE, ListState, eventually, free_address
from tests.storage.faults import Disk, losses
from tests.storage.test_store import SEGMENT_BYTES, disk_at

ITEMS = [b"one", b"two", b"three"]
LAST = OPENED + len(ITEMS)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path)


@pytest.fixture
def disk(path: str) -> Disk:
    """With the backup of a directory, `backup`, taken at `NOW`."""
    disk = disk_at(path)
    below(disk, f"{path}/old")
    below(disk, f"{path}/new")
    leave(f"{path}/old", disk, history(ITEMS, time_ms=9), commit=4)
    rescue.back_up(f"{path}/old", f"{path}/backup", ListState(), files=disk, clock=clock_at(NOW))
    return disk


def restore(path: str, disk: Disk, after: float = 60.0, above_index: int | None = None) -> rescue.Remade:
    return rescue.restore(
        f"{path}/backup",
        f"{path}/new",
        ADDRS[0],
        above_index=above_index,
        files=disk,
        clock=clock_at(NOW + after),
        segment_bytes=SEGMENT_BYTES,
    )


def test_the_directory_is_of_another_cluster_far_above_at_the_same_log_time(path: str, disk: Disk) -> None:
    made = restore(path, disk)
    assert made.index == int((NOW + 60) * 1e6)
    assert (made.former_cluster_id, made.former_index) == (CLUSTER_ID, LAST)
    store = Store.open(f"{path}/new", disk, 0)
    loaded = store.load(1)
    store.close()
    assert loaded.cluster_id == made.cluster_id not in (0, CLUSTER_ID)
    assert loaded.node_id == made.node_id == 4, "no former member had it"
    snapshot = loaded.snapshot
    assert snapshot is not None
    assert (snapshot.index, snapshot.time_ms, snapshot.cluster_id) == (made.index, 9, made.cluster_id)
    config = Configuration.decode(snapshot.config)
    assert [(i, m.addr) for i, m in config.members.items()] == [(4, ADDRS[0])]
    assert config.vacant == {ADDRS[1]: True, ADDRS[2]: True}
    (first,) = loaded.entries
    assert (index_of(first), time_of(first)) == (made.index + 1, 9)
    assert data_of(first) == wrap_anew(CLUSTER_ID, LAST)
    assert loaded.hard_state.commit == made.index + 1
    assert items_of(f"{path}/new", disk) == ITEMS
    origin = json.loads(disk.content(f"{path}/new/origin.json"))
    assert origin["made_by"] == "restore" and origin["former_members"]["2"] == ADDRS[1]


def test_two_that_are_made_of_one_backup_give_out_nothing_twice(path: str, disk: Disk) -> None:
    """Also of a backup whose indexes are above what the clock says, as of what was restored a moment ago."""
    restore(path, disk)
    high = f"{path}/high"
    with rescue.BackupFile(f"{path}/backup", disk) as file:
        backup = rescue.Backup(int(NOW * 1e6), 1, 9, CLUSTER_ID, 1, 4, int(NOW * 1000), file.backup.config)
        rescue.save_backup(backup, file.chunks(), high, disk)
    indexes = []
    for after in (1.0, 2.0, 3.0):
        below(disk, f"{path}/{after}")
        made = rescue.restore(
            high, f"{path}/{after}", ADDRS[0], files=disk, clock=clock_at(NOW + after), segment_bytes=SEGMENT_BYTES
        )
        indexes.append(made.index)
    assert indexes[0] >= backup.index + 10**9
    assert [later - earlier for earlier, later in pairwise(indexes)] == [10**6, 10**6]


def test_a_clock_that_is_behind_the_backup_is_refused_unless_an_index_is_given(path: str, disk: Disk) -> None:
    with pytest.raises(ConfigurationError, match="the clock of this computer is wrong"):
        restore(path, disk, after=-1.0)
    assert disk.list_dir(f"{path}/new") == []
    for odd in (-1, 2**62, True, "1"):
        with pytest.raises(ConfigurationError, match="above_index"):
            restore(path, disk, above_index=odd)  # type: ignore[arg-type]
    assert restore(path, disk, after=-1.0, above_index=2**55).index == 2**55 + 1


def test_a_low_index_that_is_given_is_raised_above_the_backup(path: str, disk: Disk) -> None:
    assert restore(path, disk, above_index=0).index == LAST + 10**9


def test_a_directory_with_a_node_is_refused_and_stays(path: str, disk: Disk) -> None:
    made = restore(path, disk)
    before = disk.content(f"{path}/new/snap")
    assert restore(path, disk, after=120.0) == made, "who made it may have ended before he said so"
    for addr, above in ((ADDRS[1], None), (ADDRS[0], 5)):
        with pytest.raises(ExistingClusterError, match="Restore into an empty directory"):
            rescue.restore(f"{path}/backup", f"{path}/new", addr, above_index=above, files=disk, clock=clock_at(NOW))
    store = Store.open(f"{path}/new", disk, 0, SEGMENT_BYTES)
    store.load(1)
    store.close()
    with pytest.raises(ExistingClusterError, match="Restore into an empty directory"):
        restore(path, disk, after=120.0)
    assert disk.content(f"{path}/new/snap") == before


def test_of_a_damaged_backup_nothing_is_made(path: str, disk: Disk) -> None:
    disk.rot(f"{path}/backup", len(disk.content(f"{path}/backup")) - 40, 0)
    with pytest.raises(DamagedStorageError, match="no whole backup"):
        restore(path, disk)
    assert disk.list_dir(f"{path}/new") == []
    with pytest.raises(StorageError, match="cannot be read"):
        rescue.restore(f"{path}/missing", f"{path}/new", ADDRS[0], files=disk, clock=clock_at(NOW))


def test_after_a_crash_at_any_operation_it_is_repeated_and_there_is_one_cluster(path: str, disk: Disk) -> None:
    whole = disk.copy()
    operation = 0
    while True:
        operation += 1
        for way, keep in two_of([*losses(operation), ("killed", None)], operation):
            disk.become(whole.copy())
            below(disk, f"{path}/new")
            disk.crash_at = operation
            try:
                restore(path, disk)
            except PowerLoss:
                if keep is None:
                    disk.kill_process()
                else:
                    disk.lose_power(keep)
            else:
                assert operation > 30
                return
            try:
                restore(path, disk, after=120.0)
                disk.lose_power(lambda: False)
                assert items_of(f"{path}/new", disk) == ITEMS
                assert rescue.verify(f"{path}/new", files=disk) == []
            except Exception as error:
                raise AssertionError(f"it ended at operation {operation}: {way}") from error


def test_what_was_decided_before_a_crash_is_what_a_repeated_restore_answers(path: str, disk: Disk) -> None:
    whole = disk.copy()
    disk.operations.clear()
    restore(path, disk)
    decided_at = disk.operations.index(("rename", f"{path}/new/anew")) + 2
    disk.become(whole)
    below(disk, f"{path}/new")
    disk.crash_at = decided_at
    with pytest.raises(PowerLoss):
        restore(path, disk)
    disk.lose_power(lambda: True)
    with pytest.raises(StorageError, match="not finished"):
        rescue.inspect(f"{path}/new", files=disk)
    made = restore(path, disk, after=120.0)
    assert made.index == int((NOW + 60) * 1e6), "it is that of the attempt that was interrupted"


def test_others_join_and_members_of_the_former_cluster_are_refused_on_both_sides(tmp_path: Path) -> None:
    first, second = free_address(), free_address()
    former = ListState()
    with served(tmp_path / "old1", first, former) as one:
        one.init()
        with served(tmp_path / "old2", second, ListState()) as two:
            two.join(first, PATIENCE)
            one.exec(b"before", PATIENCE)
            eventually(lambda: len(one.status()["members"]) == 2)  # type: ignore[arg-type]
            one.backup(tmp_path / "backup", PATIENCE)
    rescue.restore(tmp_path / "backup", tmp_path / "new", first)
    state = ListState()
    with served(tmp_path / "new", first, state) as one:
        one.wait_read(PATIENCE)
        assert state.items == [b"before"]
        with served(tmp_path / "old2", second, ListState()) as two:  # was not told
            eventually(lambda: "wrong-cluster" in two.status()["conditions"])  # type: ignore[operator]
            assert one.exec(b"after", PATIENCE)
            eventually(lambda: one.err() is None)
            assert len(one.status()["members"]) == 1  # type: ignore[arg-type]
        joined = ListState()
        with served(tmp_path / "new2", second, joined) as two:
            two.join(first, PATIENCE)
            two.wait_read(PATIENCE)
            assert joined.items == [b"before", b"after"]
            applied = one.propose(b"more", PATIENCE)
            assert applied.index > 10**15


def test_what_was_written_is_there_and_every_version_and_fence_is_higher_than_any_before(tmp_path: Path) -> None:
    addr = free_address()
    with store_in(tmp_path / "old", addr, founds=True) as kv:
        kv.allow("127.0.0.1:7")
        kv.set("a", b"1")
        kv.set("b", b"2")
        assert kv.incr("n") == 1
        fences = []
        for _ in range(3):
            with kv.lock("l", ttl=30) as lock:
                fences.append(lock.fence)
        kv.queue("q").put(b"work")
        item = kv.queue("q", ttl=30).get(timeout=PATIENCE)
        assert item is not None
        fences.append(item.fence)
        versions = [value.version for value in kv.list().values()]
        last = int(str(kv.service.status()["applied_index"]))
    before_us = int(time.time() * 1e6)
    rescue.back_up(tmp_path / "old", tmp_path / "backup", KeyValueState())
    made = rescue.restore(tmp_path / "backup", tmp_path / "new", addr)
    assert made.index >= before_us
    with store_in(tmp_path / "new", addr) as kv:
        assert {key: value.data for key, value in kv.list().items()} == {"a": b"1", "b": b"2", "n": b"1"}
        assert kv.allowed() == {"127.0.0.1:7"}
        assert [value.version for value in kv.list().values()] == versions, "what is unchanged keeps its version"
        written = kv.set("a", b"3")
        assert written > made.index > max(*versions, *fences, last)
        with kv.lock("l", ttl=30) as lock:
            assert lock.fence > made.index
        assert kv.incr("n") == 2
        again = kv.queue("q", ttl=30).get(timeout=PATIENCE)
        assert again is not None and (again.name, again.value) == (item.name, b"work")
        assert again.fence > made.index
        with pytest.raises(store_of_keys.LostError):
            kv.transaction([store_of_keys.if_held(item), store_of_keys.set("a", b"by the dead")])
        kv.transaction([store_of_keys.if_held(again), store_of_keys.set("a", b"4")])
        status = kv.service.status()
        assert status["node_id"] == 2 and status["cluster_id"] == f"{made.cluster_id:016x}"
    assert rescue.verify(tmp_path / "new") == []
    with store_in(tmp_path / "new", addr) as kv:
        assert kv.get("a").data == b"4"


def test_what_processes_held_has_ended_and_time_to_live_goes_on(tmp_path: Path) -> None:
    addr = free_address()
    with store_in(tmp_path / "old", addr, founds=True) as kv:
        kv.set("passing", b"1", ttl=3600.0)
        lease = kv.lease(3600.0)
        kv.set("leased", b"1", lease=lease)
        held = kv.lock("l", ttl=3600)
        assert held.acquire()
        queue = kv.queue("q")
        queue.put(b"job")
        assert queue.get(timeout=PATIENCE).value == b"job"
        log_time = kv.service.log_time()
        # As if the process was killed: nothing is given back.
        shutil.copytree(tmp_path / "old", tmp_path / "killed", ignore=shutil.ignore_patterns("socket"))
    state = KeyValueState()
    rescue.back_up(tmp_path / "killed", tmp_path / "backup", state)
    assert state.claims("lock:l") and state.get("leased") is not None
    rescue.restore(tmp_path / "backup", tmp_path / "new", addr)
    with store_in(tmp_path / "new", addr) as kv:
        assert kv.get("leased") is None
        assert kv.lock("l", ttl=30).acquire(blocking=False)
        assert kv.queue("q").get(timeout=PATIENCE).value == b"job"
        assert kv.get("passing").data == b"1"
        assert kv.service.log_time() >= log_time
        kv.service.wait_read(PATIENCE)
