"""Becoming a member, and a busy life as one, when the power goes at any operation, and again at the next start."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import raftsvc
from raftsvc import formation
from raftsvc.core.messages import HardState
from raftsvc.errors import ExistingClusterError, RaftError
from raftsvc.storage import Store
from raftsvc.transport import JoinReply, JoinRequest
from tests.effort import turn_of
from tests.service.harness import SECRET, ListState
from tests.storage import test_store
from tests.storage.faults import Disk, PowerLoss, losses
from tests.storage.logs import batch
from tests.storage.test_store import (
    CLUSTER_ID,
    STATE,
    Life,
    data_up_to,
    disk_at,
    header,
    open_store,
    receive,
)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path)


# -- becoming a member


class Leader:
    """Gives each token an id of its own, as a cluster does."""

    def __init__(self) -> None:
        self.ids: dict[bytes, int] = {}

    def admit(self, token: bytes) -> int:
        return self.ids.setdefault(token, 7 + len(self.ids))


class Joining:
    """A node that joins, however often it must begin anew, and the cluster it joins."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.disk = disk_at(path)
        self.leader = Leader()
        self.lives = 0

    def attempt(self) -> None:
        store = open_store(self.path, self.disk)
        try:
            if not store.is_initialized:
                node_id = self.leader.admit(store.join_token())
                store.create(node_id, CLUSTER_ID, HardState(), [])
            loaded = store.load(1)
            assert (loaded.node_id, loaded.cluster_id) == (7, CLUSTER_ID)
            assert (loaded.snapshot, list(loaded.entries)) == (None, [])
            assert loaded.life.counter > self.lives, "no two starts that may have spoken share a number"
            self.lives = loaded.life.counter
        finally:
            store._dir_lock.release()

    def check(self) -> None:
        assert set(self.leader.ids.values()) <= {7}, "a node never joins twice"


class Founding:
    """A node that founds a cluster, each attempt another one."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.disk = disk_at(path)
        self.attempts = 0
        self.founded: int | None = None
        self.lives = 0

    def attempt(self) -> None:
        store = open_store(self.path, self.disk)
        try:
            if not store.is_initialized:
                assert self.founded is None, "what was reported founded stays"
                self.attempts += 1
                store.create(1, self.attempts, STATE, batch(1, 1))
                self.founded = self.attempts
            loaded = store.load(1)
            assert (loaded.node_id, loaded.cluster_id) == (1, self.founded or self.attempts)
            self.founded = loaded.cluster_id
            assert loaded.life.counter > self.lives, "no two starts that may have spoken share a number"
            self.lives = loaded.life.counter
            assert (loaded.hard_state, list(loaded.entries)) == (STATE, batch(1, 1))
        finally:
            store._dir_lock.release()

    def check(self) -> None:
        pass


def crash(life: Joining | Founding, operation: int) -> bool:
    """Whether the power went during the attempt."""
    life.disk.crash_at = operation
    try:
        life.attempt()
    except PowerLoss:
        return True
    return False


@pytest.mark.parametrize("way", range(len(losses(0)) + 1)[turn_of(2)])
@pytest.mark.parametrize("kind", [Joining, Founding])
def test_two_crashes_at_any_operations_leave_a_node_that_becomes_a_member_once(
    path: str, kind: Callable[[str], Joining | Founding], way: int
) -> None:
    def go_down(disk: Disk, way: int, seed: int) -> None:
        ways = losses(seed)
        if way % (len(ways) + 1) == len(ways):
            disk.kill_process()  # the page cache stays
        else:
            disk.lose_power(ways[way % (len(ways) + 1)][1])

    first = 0
    while True:
        first += 1
        second = 0
        while True:
            second += 1
            life = kind(path)
            if not crash(life, first):
                assert first > 15, "every operation was a place to crash at"
                return
            go_down(life.disk, way, first)
            went_again = crash(life, second)
            go_down(life.disk, way + second, first + second)
            try:
                life.attempt()
                life.check()
                go_down(life.disk, 0, 0)
                life.attempt()
                life.check()
            except Exception as error:
                raise AssertionError(f"the power went at operation {first}, then at {second}") from error
            if not went_again:
                break


def named_log_at(path: str) -> int:
    """The number of the operation by which the log of a node that joins has its name."""
    life = Joining(path)
    life.attempt()
    return life.disk.operations.index(("rename", f"{path}/wal")) + 1


@pytest.mark.parametrize("after", range(1, 12))
def test_the_token_stays_until_the_name_of_the_log_lasts(path: str, after: int) -> None:
    """The process is killed before it has synced that name, and then the power goes, `after` operations further on."""
    named_at = named_log_at(path)
    for seed in range(30):
        life = Joining(path)
        assert crash(life, named_at)
        life.disk.kill_process()
        crash(life, after)
        chance = random.Random(seed)
        life.disk.lose_power(lambda chance=chance: chance.random() < 0.5)  # type: ignore[misc]
        life.attempt()
        life.check()


# -- a busy life


class BusyLife(Life):
    """As Life, and also: snapshots given up, overtaken, and received one on top of another; marks not synced."""

    def step(self, store: Store, chance: random.Random) -> None:
        for _ in range(2):
            self.half_step(store, chance)

    def half_step(self, store: Store, chance: random.Random) -> None:
        kind = chance.random()
        wal = store.wal
        if kind < 0.6:
            super().step(store, chance)
        elif kind < 0.7:  # a leader vanishes amid its snapshot
            index = self.written + 3
            receive(store, header(index), data_up_to(index), upto=chance.randrange(90))
        elif kind < 0.8:  # the State fails while it is written
            with suppress(ZeroDivisionError):
                store.save_snapshot(header(self.durable), _broken_chunks())
        elif kind < 0.9:  # a second snapshot is whole before the first was installed
            first, second = self.written + 1, self.written + 4
            for index in (first, second):
                receive(store, header(index), data_up_to(index))
            self.written = second
            for index in (first, second):
                store.install_incoming(index)
                wal.mark_snapshot(index, 1)
                wal.sync()
                self.durable = self.snapshot_index = index if index == second else self.snapshot_index
            assert not store.save_snapshot(header(first), [data_up_to(first)]), "overtaken"
        elif self.durable > self.snapshot_index:
            index = self.durable
            assert store.save_snapshot(header(index), [data_up_to(index)])
            self.snapshot_index = index
            wal.mark_snapshot(index, 1)
            wal.release_before(index)  # only what a durable mark covers


def _broken_chunks() -> Iterator[bytes]:
    yield b"half"
    raise ZeroDivisionError


@pytest.mark.parametrize("seed", range(3)[turn_of(3)])
def test_a_busy_life_keeps_its_promises_over_two_power_losses(
    path: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_store, "SEGMENT_BYTES", 600)
    disk = disk_at(path)
    BusyLife().live(path, disk, seed)
    assert disk.count("rename", ".wal") > 2
    assert disk.count("remove", ".wal") > 0
    assert disk.count("rename", "snap") > 2
    for crash_at in range(1, len(disk.operations) + 1)[turn_of(4)]:
        again = 0
        went_again = True
        while went_again:
            again += 1
            disk = disk_at(path)
            disk.crash_at = crash_at
            life = BusyLife()
            with pytest.raises(PowerLoss):
                life.live(path, disk, seed)
            ways = losses(crash_at)
            disk.lose_power(ways[crash_at % len(ways)][1])
            disk.crash_at = again
            try:
                started_again(path, disk)
                went_again = False
            except PowerLoss:
                pass
            disk.lose_power(ways[(crash_at + again) % len(ways)][1])
            try:
                life.check(path, disk)
            except Exception as error:
                raise AssertionError(f"the power went at operation {crash_at}, then at {again}") from error


def started_again(path: str, disk: Disk) -> None:
    store = open_store(path, disk)
    try:
        if store.is_initialized:
            store.load(1)
    finally:
        store._dir_lock.release()


# -- the whole Service


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk in memory need not hold 16 MiB of zeros."""
    monkeypatch.setattr("raftsvc.service.Store", partial(Store, segment_bytes=4096))


def start(path: str, disk: Disk) -> tuple[raftsvc.Service, ListState]:
    state = ListState()
    return raftsvc.start("127.0.0.1:1", path, None, state, secret=SECRET, files=disk), state


def stop(service: raftsvc.Service) -> None:
    """Also where the machine is off, and nothing can be closed any more."""
    with suppress(PowerLoss):
        service.stop()
    service._membership._store._dir_lock.release()


def lives_of(path: str, live: Callable[[Disk], Any]) -> Iterator[tuple[int, Disk]]:
    """The disks that remain of `live` when the power goes at each of its operations, in each way."""
    crash_at = 0
    while True:
        crash_at += 1
        for way in range(len(losses(0))):
            disk = disk_at(path)
            disk.crash_at = crash_at
            live(disk)
            if not disk.is_dead:
                assert crash_at > 15, "every operation was a place to crash at"
                return
            disk.lose_power(losses(crash_at)[way][1])
            yield crash_at, disk


@pytest.mark.usefixtures("small_segments")
def test_init_that_lost_power_at_any_operation_can_be_repeated_and_keeps_what_it_acknowledged(path: str) -> None:
    acknowledged: list[bytes] = []

    def live(disk: Disk) -> None:
        acknowledged.clear()
        service = None
        try:
            service, _ = start(path, disk)
            service.init()
            acknowledged.append(b"")
            for item in (b"a", b"b"):
                if service.exec(item, timeout=60.0):
                    acknowledged.append(item)
        except (PowerLoss, RaftError):
            pass
        finally:
            if service is not None:
                stop(service)

    for crash_at, disk in lives_of(path, live):
        service, state = start(path, disk)
        try:
            if service.status()["role"] == "uninitialized":
                assert not acknowledged, crash_at
                service.init()
            else:
                with pytest.raises(ExistingClusterError):
                    service.init()
            assert service.exec(b"last", timeout=60.0)
            assert [item for item in state.items if item in acknowledged] == acknowledged[1:], crash_at
            assert state.items[-1] == b"last"
        finally:
            stop(service)


@pytest.mark.usefixtures("small_segments")
def test_a_join_that_lost_power_at_any_operation_finds_the_same_membership(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = Leader()

    def request_join(network: object, boot_url: str, request: JoinRequest, *rest: object) -> JoinReply:
        return JoinReply(leader.admit(request.token), CLUSTER_ID)

    monkeypatch.setattr(formation, "request_join", request_join)

    def join(service: raftsvc.Service) -> None:
        with suppress(raftsvc.JoinFailedError):  # no such leader will ever reach this node
            service.join("127.0.0.1:2", timeout=0.0)

    def live(disk: Disk) -> None:
        leader.ids.clear()
        service = None
        try:
            service, _ = start(path, disk)
            join(service)
        except PowerLoss:
            pass
        finally:
            if service is not None:
                stop(service)

    for crash_at, disk in lives_of(path, live):
        service, _ = start(path, disk)
        try:
            if service.status()["role"] == "uninitialized":
                join(service)
            status = service.status()
            assert (status["cluster_id"], status["node_id"]) == (f"{CLUSTER_ID:016x}", 7), crash_at
            assert set(leader.ids.values()) == {7}, crash_at
        finally:
            stop(service)
