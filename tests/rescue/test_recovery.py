"""A majority is lost: what is left is told truly, and a new cluster goes on from one directory, or nothing changed."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest

from raftsvc import rescue
from raftsvc.core.messages import EntryKind, make_entry
from raftsvc.errors import ConfigurationError, StorageError
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
    brought,
    clock_at,
    history,
    items_of,
    leave,
    leave_snapshot,
    served,
    store_in,
    two_of,
)
from tests.service.harness import PATIENCE, ListState, eventually, free_address
from tests.storage.faults import Disk, losses
from tests.storage.test_store import SEGMENT_BYTES, disk_at

ITEMS = [b"one", b"two", b"three", b"four"]
LAST = OPENED + len(ITEMS)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path)


@pytest.fixture
def disk(path: str) -> Disk:
    disk = disk_at(path)
    for name in ("n1", "n2", "n3"):
        below(disk, f"{path}/{name}")
    return disk


def recover(path: str, disk: Disk, name: str, *others: str, accept_loss: bool = False) -> rescue.Remade:
    return rescue.recover(
        f"{path}/{name}",
        ADDRS[0],
        ListState(),
        others=[f"{path}/{each}" for each in others],
        accept_loss=accept_loss,
        files=disk,
        clock=clock_at(NOW),
        segment_bytes=SEGMENT_BYTES,
    )


def test_the_best_is_of_the_latest_term_and_then_the_longest_and_what_others_lose_is_said(
    path: str, disk: Disk
) -> None:
    """n1 led in term 1 and wrote what reached nobody; n2 led in term 2, and n3 had only some of that."""
    shared = history(ITEMS[:2])
    leave(f"{path}/n1", disk, [*shared, *brought([b"lost", b"lost", b"lost"], 3, 5)], commit=3, node_id=1)
    leave(f"{path}/n2", disk, [*shared, *brought([b"three", b"four"], 3, 5, term=2)], commit=5, node_id=2)
    leave(f"{path}/n3", disk, shared, commit=4, node_id=3, term=2)
    found = rescue.survey([f"{path}/{name}" for name in ("n1", "n2", "n3")], files=disk)
    assert found.best is not None and found.best.directory == f"{path}/n2"
    assert [each.rank for each in found.survivors] == [(1, 7), (2, 6), (1, 4)]
    assert [each.uncertain for each in found.survivors] == [4, 1, 0]
    assert found.missing == {} and found.highest_index == 7
    assert found.losses(f"{path}/n2") == [rescue.Loss(f"{path}/n1", 5, 7, 0)]
    assert found.losses(f"{path}/n1") == [rescue.Loss(f"{path}/n2", 5, 6, 1)]
    assert found.losses(f"{path}/n3") == [rescue.Loss(f"{path}/n1", 5, 7, 0), rescue.Loss(f"{path}/n2", 5, 6, 1)]
    assert json.loads(json.dumps(found.facts()))["best"] == f"{path}/n2"


def test_of_those_that_are_not_there_it_tells_who_and_what_cannot_be_read_is_said(path: str, disk: Disk) -> None:
    leave(f"{path}/n1", disk, history(ITEMS), commit=4)
    leave(f"{path}/n2", disk, history(ITEMS), commit=4, node_id=2)
    disk.rot(f"{path}/n2/id", 3, 1)
    found = rescue.survey([f"{path}/{name}" for name in ("n1", "n2", "n3")], files=disk)
    assert found.missing == {2: ADDRS[1], 3: ADDRS[2]}
    assert [bool(each.held) for each in found.survivors] == [True, False, False]
    assert "checksum" in found.survivors[1].problem and "no node" in found.survivors[2].problem
    with pytest.raises(ConfigurationError, match="no directory that could be gone on from"):
        found.losses(f"{path}/n2")
    with pytest.raises(ConfigurationError, match="twice"):
        rescue.survey([f"{path}/n1", f"{path}/n1"], files=disk)


def test_a_snapshot_and_a_log_that_agree_lose_nothing(path: str, disk: Disk) -> None:
    leave_snapshot(f"{path}/n1", disk, LAST, b"", bytes(4), brought([b"five"], 5, LAST + 1))
    leave(f"{path}/n2", disk, history(ITEMS), commit=4, node_id=2)
    found = rescue.survey([f"{path}/n1", f"{path}/n2"], files=disk)
    assert found.losses(f"{path}/n1") == []
    assert found.losses(f"{path}/n2") == [rescue.Loss(f"{path}/n1", LAST + 1, LAST + 1, 1)]


def test_directories_of_two_clusters_are_told_apart(path: str, disk: Disk) -> None:
    leave(f"{path}/n1", disk, history(ITEMS), commit=4)
    leave(f"{path}/n2", disk, history(ITEMS), commit=4, node_id=2)
    recover(path, disk, "n2")
    with pytest.raises(ConfigurationError, match="several clusters"):
        rescue.survey([f"{path}/n1", f"{path}/n2"], files=disk)


def test_all_that_it_has_is_kept_and_what_it_was_is_beside_it(path: str, disk: Disk) -> None:
    leave(f"{path}/n1", disk, history(ITEMS), commit=4)
    leave(f"{path}/n2", disk, history([*ITEMS, b"five"]), commit=4, node_id=2)
    former = disk.content(f"{path}/n1/id")
    with pytest.raises(ConfigurationError, match="would be lost"):
        recover(path, disk, "n1", "n2")
    made = recover(path, disk, "n1", "n2", accept_loss=True)
    assert made.index == int(NOW * 1e6) and made.node_id == 4
    assert items_of(f"{path}/n1", disk) == ITEMS
    ending = f"before-{made.cluster_id:016x}"
    assert disk.content(f"{path}/n1/id.{ending}") == former
    assert disk.list_dir(f"{path}/n1/wal.{ending}") == ["0000000000000001.wal"]
    report = json.loads(disk.content(f"{path}/n1/origin.json"))
    assert report["former_cluster"] == f"{CLUSTER_ID:016x}" and report["former_index"] == LAST
    assert report["lost"] == [{"other": f"{path}/n2", "first": LAST + 1, "last": LAST + 1, "committed": 0}]
    assert [each["uncertain_entries"] for each in report["survey"]["survivors"]] == [LAST - 4, LAST - 3]
    assert rescue.verify(f"{path}/n1", files=disk) == []


def test_indexes_go_on_above_those_of_all_that_is_left(path: str, disk: Disk) -> None:
    high = int(NOW * 1e6) + 5
    first = make_entry(high + 1, 1, EntryKind.NORMAL, wrap_anew(1, 1))
    leave_snapshot(f"{path}/n1", disk, high, b"", bytes(4), [first])
    leave_snapshot(f"{path}/n2", disk, high + 10, b"", bytes(4), [])
    made = recover(path, disk, "n1", "n2", accept_loss=True)
    assert made.index == high + 10 + 10**9


def test_a_directory_that_may_not_be_started_any_more_can_be_recovered(path: str, disk: Disk) -> None:
    leave(f"{path}/n1", disk, history(ITEMS), commit=4)
    disk.put(f"{path}/n1/wal/ended", b"its directory was copied")
    assert any("copied" in problem for problem in rescue.verify(f"{path}/n1", files=disk))
    made = recover(path, disk, "n1")
    store = Store.open(f"{path}/n1", disk, 0)
    assert store.load(1).cluster_id == made.cluster_id
    store.close()


def test_a_clock_that_is_not_set_is_refused(path: str, disk: Disk) -> None:
    leave(f"{path}/n1", disk, history(ITEMS), commit=4)
    with pytest.raises(ConfigurationError, match="the clock of this computer is wrong"):
        rescue.recover(f"{path}/n1", ADDRS[0], ListState(), files=disk, clock=clock_at(1000.0))
    with pytest.raises(ConfigurationError, match="Give one"):
        rescue.recover(f"{path}/n1", ADDRS[0], files=disk, clock=clock_at(NOW))


def test_after_a_crash_at_any_operation_it_is_repeated_and_nothing_is_lost(path: str, disk: Disk) -> None:
    leave(f"{path}/n1", disk, history(ITEMS), commit=4)
    whole = disk.copy()
    operation = 0
    while True:
        operation += 1
        for way, keep in two_of([*losses(operation), ("killed", None)], operation):
            disk.become(whole.copy())
            disk.crash_at = operation
            try:
                recover(path, disk, "n1")
            except PowerLoss:
                if keep is None:
                    disk.kill_process()
                else:
                    disk.lose_power(keep)
            else:
                assert operation > 30
                return
            try:
                made = recover(path, disk, "n1")
                disk.lose_power(lambda: False)
                assert items_of(f"{path}/n1", disk) == ITEMS
                assert made.former_cluster_id, "the answer is the same"
                assert rescue.verify(f"{path}/n1", files=disk) == []
                assert [name for name in disk.list_dir(f"{path}/n1") if name.startswith("wal.before-")] == [
                    f"wal.before-{made.cluster_id:016x}"
                ], "it is done once"
            except Exception as error:
                raise AssertionError(f"it ended at operation {operation}: {way}") from error


def test_on_a_full_disk_the_directory_stays_what_it_was(path: str, disk: Disk) -> None:
    leave(f"{path}/n1", disk, history(ITEMS), commit=4)
    before = {name: disk.content(name) for name in disk.paths()}
    for free in range(0, 3000, 100):
        disk.free_bytes = free
        with suppress(StorageError):
            recover(path, disk, "n1")
            assert free > 1000
            return
        assert {name: disk.content(name) for name in disk.paths()} == before
    raise AssertionError("there was room in the end")


def test_a_survivor_of_three_goes_on_and_the_others_join_it_empty(tmp_path: Path) -> None:
    addrs = [free_address() for _ in range(3)]
    with store_in(tmp_path / "n1", addrs[0], founds=True) as kv:
        for addr in addrs:
            kv.allow(addr)
    with (
        store_in(tmp_path / "n1", addrs[0]) as kv,
        served(tmp_path / "m2", addrs[1], KeyValueState()) as two,
        served(tmp_path / "m3", addrs[2], KeyValueState()) as three,
    ):
        two.join(addrs[0], PATIENCE)
        three.join(addrs[0], PATIENCE)
        before = kv.set("a", b"1")
        two.wait_applied(before, PATIENCE)
    made = rescue.recover(tmp_path / "m2", addrs[1], KeyValueState())
    with store_in(tmp_path / "m2", addrs[1]) as kv:
        assert kv.get("a").data == b"1"  # type: ignore[union-attr]
        assert kv.set("a", b"2") > made.index > before
        with served(tmp_path / "n1", addrs[0], KeyValueState()) as old:  # nobody told it
            eventually(lambda: "wrong-cluster" in old.status()["conditions"])  # type: ignore[operator]
            assert list(kv.service.status()["members"]) == [str(made.node_id)]  # type: ignore[call-overload]
        with served(tmp_path / "new", addrs[0], KeyValueState()) as one:
            one.join(addrs[1], PATIENCE)
            eventually(lambda: len(kv.service.status()["members"]) == 2)  # type: ignore[arg-type]
