"""The power goes during any operation of the log, and again while it recovers."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from raftsvc.core.messages import HardState, index_of, term_of
from raftsvc.storage.wal import Wal
from tests.effort import turn_of
from tests.storage.faults import Disk, PowerLoss, losses
from tests.storage.logs import CLUSTER_ID, DIR, NODE_ID, Model, batch, entry, new_disk

SEGMENT_BYTES = 1400


def live(disk: Disk, model: Model, seed: int) -> None:
    """A life of a log: appends, truncations, marks, preparations, rotations, releases; the model runs beside it."""
    chance = random.Random(seed)
    prepared = random.Random(seed)
    wal, _ = Wal.open(disk, DIR, SEGMENT_BYTES)
    term, marked = 1, 0
    for _ in range(30):
        for _ in range(prepared.randrange(3)):
            wal.prepare()
        step = chance.random()
        if step < 0.55:
            last = model.last_index
            first = last + 1
            state = None
            if chance.random() < 0.3 and last > marked + 1:
                first = chance.randrange(marked + 1, last + 1)
            if first <= last or chance.random() < 0.2:
                term += 1
                state = HardState(term, chance.randrange(4), marked)
            data = chance.choice([None, b"", bytes(chance.randrange(1500)), chance.randbytes(chance.randrange(900))])
            entries = batch(first, chance.randrange(1, 4), term, data)
            model.append(state, entries)
            wal.append(state, entries)
        elif step < 0.8:
            wal.sync()
            model.durable = len(model.states) - 1
        else:
            held = [e for e in model.last.entries if index_of(e) > marked]
            if held and chance.random() < 0.7:
                marked, marked_term = (index_of(chance.choice(held)), 0)
                marked_term = next(term_of(e) for e in held if index_of(e) == marked)
            else:  # from a leader, ahead of this log
                marked, marked_term = model.last_index + chance.randrange(1, 5), term
            model.mark(marked, marked_term)
            wal.mark_snapshot(marked, marked_term)
            wal.sync()
            model.durable = len(model.states) - 1
            model.released = max(model.released, marked - chance.randrange(3))
            wal.release_before(model.released)


def crashed(seed: int, crash_at: int) -> tuple[Disk, Model] | None:
    """The disk at the moment of the crash; None if the life ended before it."""
    disk = new_disk()
    Wal.create(disk, DIR, CLUSTER_ID, NODE_ID, HardState(term=1), [], SEGMENT_BYTES)
    disk.kill_process()
    disk.crash_at = crash_at
    model = Model()
    try:
        live(disk, model, seed)
    except PowerLoss:
        return disk, model
    return None


def every_crash(seed: int) -> list[int]:
    disk = new_disk()
    Wal.create(disk, DIR, CLUSTER_ID, NODE_ID, HardState(term=1), [], SEGMENT_BYTES)
    disk.kill_process()
    live(disk, Model(), seed)
    assert disk.count("rename") > 2
    assert disk.count("remove") > 0
    return list(range(1, len(disk.operations) + 1))


def check_goes_on(disk: Disk, model: Model) -> None:
    wal, found = Wal.open(disk, DIR, SEGMENT_BYTES)
    assert model.allows(found)
    last = found.base + len(found.entries)
    wal.append(HardState(99, 1, 0), [entry(last + 1, term=99)])
    wal.sync()
    disk.lose_power(lambda: False)
    _, again = Wal.open(disk, DIR, SEGMENT_BYTES)
    assert again.entries == [*found.entries, entry(last + 1, term=99)]
    assert (again.hard_state, again.mark) == (HardState(99, 1, 0), found.mark)


@pytest.mark.parametrize("seed", range(6))
def test_everything_synced_survives_a_power_loss_at_any_operation(seed: int) -> None:
    for crash_at in every_crash(seed):
        for n, (_, keep) in enumerate(losses(crash_at)):
            state = crashed(seed, crash_at)
            assert state is not None
            disk, model = state
            disk.lose_power(keep)
            try:
                check_goes_on(disk, model)
            except Exception as error:
                raise AssertionError(f"power lost at operation {crash_at}, way {n}") from error


@pytest.mark.parametrize("seed", range(2)[turn_of(2)])
def test_a_power_loss_while_recovering_from_one_changes_nothing(seed: int) -> None:
    for crash_at in every_crash(seed)[turn_of(2)]:
        for way in range(len(losses(0))):
            operation = 0
            while True:
                operation += 1
                state = crashed(seed, crash_at)
                assert state is not None
                disk, model = state
                disk.lose_power(losses(crash_at)[way][1])
                disk.crash_at = operation
                try:
                    Wal.open(disk, DIR, SEGMENT_BYTES)
                except PowerLoss:
                    disk.lose_power(losses(operation)[-1 - way][1])
                    check_goes_on(disk, model)
                else:
                    break


@pytest.mark.parametrize("seed", range(6))
def test_what_a_restart_after_a_kill_has_seen_survives_a_power_loss(seed: int) -> None:
    for crash_at in every_crash(seed):
        state = crashed(seed, crash_at)
        assert state is not None
        disk, model = state
        disk.kill_process()
        _, found = Wal.open(disk, DIR, SEGMENT_BYTES)
        assert model.allows(found)
        disk.lose_power(lambda: False)
        assert Wal.open(disk, DIR, SEGMENT_BYTES)[1] == found


@pytest.mark.parametrize("way", range(5))
def test_a_log_being_made_is_whole_once_create_returned(way: int) -> None:
    entries = batch(1, 30)
    disk = new_disk()
    Wal.create(disk, DIR, CLUSTER_ID, NODE_ID, HardState(1, 1, 1), entries, SEGMENT_BYTES)
    keep: Callable[[], bool] = losses(1)[way][1]
    disk.lose_power(keep)
    _, found = Wal.open(disk, DIR, SEGMENT_BYTES)
    assert (found.hard_state, found.entries) == (HardState(1, 1, 1), entries)
