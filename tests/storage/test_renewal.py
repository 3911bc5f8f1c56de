"""Another member's content in a directory: the power goes at any operation, and again; the disk fails at any."""

from __future__ import annotations

import errno
import random
from contextlib import suppress
from pathlib import Path

import pytest

from raftsvc.core.messages import HardState
from raftsvc.errors import StorageError
from raftsvc.storage import Made, Renewal, SnapshotHeader
from raftsvc.testing.disk import PowerLoss
from tests.storage.faults import Disk, losses
from tests.storage.logs import batch
from tests.storage.test_store import CLUSTER_ID, SEGMENT_BYTES, disk_at, header, member, open_store

NODE = 8
HIGH = 5000
FORMER = ("snap", "id", "wal/0000000000000001.wal")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path)


def made(cluster_id: int) -> Made:
    head = SnapshotHeader(HIGH, 3, cluster_id, b"config", b"sessions", 0, 7)
    return Made(NODE, head, [b"first", b"second"], HardState(3, 0, HIGH + 1), batch(HIGH + 1, 1, 3), b"{}")


def renewal(path: str, disk: Disk) -> Renewal:
    return Renewal(disk, path, SEGMENT_BYTES)


class Place:
    """A directory that is to be renewed, of a member or of nobody, until it is."""

    def __init__(self, path: str, is_member: bool) -> None:
        self.path = path
        self.disk = disk_at(path)
        self.attempts = 0
        self.is_member = is_member
        if is_member:
            store = member(path, self.disk, 5)
            store.save_snapshot(header(2), [b"of the former"])
            store.close()
        self.disk.kill_process()
        self.former = {name: self.disk.content(f"{path}/{name}") for name in FORMER} if is_member else {}

    def attempt(self) -> None:
        """As who restores or recovers does it, again and again."""
        store = open_store(self.path, self.disk)
        try:
            if not self.is_renewed():
                self.attempts += 1
                renewal(self.path, self.disk).make(made(self.attempts))
        finally:
            store._dir_lock.release()

    def is_renewed(self) -> bool:
        return self.disk.exists(f"{self.path}/origin.json")

    def check(self) -> None:
        """It is all the one or all the other, and what it was is there."""
        store = open_store(self.path, self.disk)
        try:
            self.check_owned(store.is_initialized)
            if not store.is_initialized:
                return
            copy = self.disk.copy()
        finally:
            store._dir_lock.release()
        copy.add_dirs(self.path)
        opened = open_store(self.path, copy)  # type: ignore[arg-type]
        loaded = opened.load(1)
        with opened.open_snapshot() as snapshot:
            data = b"".join(snapshot.chunks())
        opened.unload()
        opened._dir_lock.release()
        if self.is_renewed():
            assert (loaded.node_id, loaded.snapshot, data) == (NODE, made(loaded.cluster_id).header, b"firstsecond")
            assert list(loaded.entries) == batch(HIGH + 1, 1, 3)
            assert loaded.hard_state == HardState(3, 0, HIGH + 1)
        else:
            assert (loaded.node_id, loaded.cluster_id, data) == (7, CLUSTER_ID, b"of the former")
            assert list(loaded.entries) == batch(1, 5)

    def check_owned(self, is_initialized: bool) -> None:
        names = self.disk.list_dir(self.path)
        assert not [name for name in names if "anew" in name or name.endswith(".tmp")], names
        assert is_initialized == (self.is_member or self.is_renewed())
        endings = {name.rpartition(".before-")[2] for name in names if ".before-" in name}
        assert len(endings) == (self.is_member and self.is_renewed())
        for name, content in self.former.items():
            top, slash, rest = name.partition("/")
            now = f"{top}.before-{endings.copy().pop()}" if endings else top
            found = self.disk.content(f"{self.path}/{now}{slash}{rest}")
            assert found == content or top == "wal", f"{name} is as it was"  # an opened log has one more life


def go_down(disk: Disk, way: int, seed: int) -> None:
    ways = losses(seed)
    if way % (len(ways) + 1) == len(ways):
        disk.kill_process()
    else:
        disk.lose_power(ways[way % (len(ways) + 1)][1])


def crash(place: Place, operation: int) -> bool:
    """Whether it ended during the attempt."""
    place.disk.crash_at = operation
    try:
        place.attempt()
    except PowerLoss:
        return True
    return False


@pytest.mark.parametrize("way", range(len(losses(0)) + 1))
@pytest.mark.parametrize("is_member", [False, True])
def test_a_crash_at_any_operation_leaves_all_of_one_or_all_of_the_other(path: str, is_member: bool, way: int) -> None:
    first = 0
    while True:
        first += 1
        place = Place(path, is_member)
        if not crash(place, first):
            assert first > 30, "every operation was a place to crash at"
            return
        go_down(place.disk, way, first)
        try:
            place.check()
            place.disk.kill_process()
            place.attempt()
            assert place.is_renewed()
            go_down(place.disk, 0, 0)
            place.check()
            assert place.is_renewed(), "what was reported made stays"
        except Exception as error:
            raise AssertionError(f"it ended at operation {first}") from error


@pytest.mark.parametrize("way", [0, 3, len(losses(0))])
def test_a_crash_while_what_a_crash_left_is_finished_does_no_harm(path: str, way: int) -> None:
    """From the name that decides on, at which each start goes on."""
    place = Place(path, True)
    place.attempt()
    decided_at = place.disk.operations.index(("rename", f"{path}/anew")) + 1
    last = len(place.disk.operations)
    for first in range(decided_at, last + 1):
        second = -(first % 3)
        while True:
            second += 3
            place = Place(path, True)
            assert crash(place, first)
            go_down(place.disk, way, first)
            went_again = crash(place, second)
            go_down(place.disk, way + second, first + second)
            try:
                place.check()
                place.disk.kill_process()
                place.attempt()
                place.check()
                assert place.is_renewed()
            except Exception as error:
                raise AssertionError(f"it ended at operation {first}, then at {second}") from error
            if not went_again:
                break


@pytest.mark.parametrize("is_member", [False, True])
def test_a_disk_that_fails_at_any_operation_leaves_what_was_there_or_what_is_to_be(path: str, is_member: bool) -> None:
    def attempt(place: Place) -> None:
        store = open_store(path, place.disk)
        place.disk.operations.clear()
        try:
            renewal(path, place.disk).make(made(1))
        finally:
            store._dir_lock.release()

    whole = Place(path, is_member)
    attempt(whole)
    operations = whole.disk.operations[:]
    assert len(operations) > 30
    for number, (operation, where) in enumerate(operations):
        for code in (errno.ENOSPC, errno.EIO):
            place = Place(path, is_member)
            skip = operations[:number].count((operation, where))
            store = open_store(path, place.disk)
            store._dir_lock.release()
            place.disk.fail_next(operation, where, code, skip)
            with suppress(StorageError):
                attempt(place)
            place.disk.heal()
            go_down(place.disk, number, number)
            place.check()


def test_a_full_disk_has_its_room_back(path: str) -> None:
    place = Place(path, True)
    store = open_store(path, place.disk)
    before = place.disk.paths()
    for free in range(0, 6000, 200):
        place.disk.free_bytes = free
        try:
            renewal(path, place.disk).make(made(1))
        except StorageError:
            assert place.disk.paths() == before
            assert place.disk.free_bytes == free
        else:
            assert free > 1000
            return
        finally:
            store._dir_lock.release()
    raise AssertionError("there was room in the end")


@pytest.mark.parametrize("after", [0, 1])
def test_what_is_decided_is_there_whatever_else_the_power_took(path: str, after: int) -> None:
    """The power goes as the name that decides is given, or is made to last."""
    place = Place(path, True)
    place.attempt()
    decided_at = place.disk.operations.index(("rename", f"{path}/anew")) + 1
    for seed in range(30):
        place = Place(path, True)
        assert crash(place, decided_at + after)
        chance = random.Random(seed)
        place.disk.lose_power(lambda chance=chance: chance.random() < 0.5)  # type: ignore[misc]
        place.check()
