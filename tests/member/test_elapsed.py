"""How much time passed: by the clock that moved least, never rounded up, and none for who did not lead.

For who holds a lease by the one that moved most.
"""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from raftsvc import clocks
from raftsvc.clocks import read_clocks
from raftsvc.member.elapsed import Elapsed, FastestClock, Timekeeper

pytestmark = pytest.mark.pure

MS = 1_000_000


class Clocks:
    def __init__(self, *shown: int) -> None:
        self.shown = list(shown)

    def __call__(self) -> tuple[int, ...]:
        return tuple(self.shown)

    def move(self, *by: int) -> None:
        self.shown = [shown + ns for shown, ns in zip(self.shown, by, strict=True)]


@pytest.mark.parametrize(
    ("moves", "expected"),
    [
        ([(3 * MS, 3 * MS)], [3]),
        ([(3600_000 * MS, 2 * MS), (2 * MS, 3600_000 * MS)], [2, 2]),
        ([(-5 * MS, 4 * MS), (4 * MS, 4 * MS)], [0, 4]),
        ([(0, 9 * MS)], [0]),
        ([(MS // 2, MS // 2)] * 5, [0, 1, 0, 1, 0]),
        ([(MS - 1, MS - 1), (1, 1)], [0, 1]),
    ],
)
def test_what_passed_is_what_the_slower_clock_says(moves: list[tuple[int, int]], expected: list[int]) -> None:
    clocks = Clocks(10**12, 7)
    passed = Elapsed(clocks)
    assert passed.take_ms() == 0
    told = []
    for move in moves:
        clocks.move(*move)
        told.append(passed.take_ms())
    assert told == expected


@pytest.mark.parametrize(
    ("moves", "expected"),
    [
        ([(3, 3)], [3]),
        ([(3600, 2), (2, 3600)], [3600, 7200]),  # each stood still in another's hour
        ([(-5, 4), (4, 4)], [4, 8]),
        ([(-5, -4), (4, 4)], [0, 4]),
    ],
)
def test_a_lease_is_over_by_the_clock_that_moved_most(moves: list[tuple[int, int]], expected: list[int]) -> None:
    clocks = Clocks(10**12, 7)
    clock = FastestClock(clocks)
    told = []
    for move in moves:
        clocks.move(*move)
        told.append(clock.glance())
        assert clock.look() == told[-1]
    assert told == expected


@pytest.mark.parametrize("moves", [[(50, 1)], [(50, 1), (1, 50)], [(0, 0)]])
def test_a_glance_is_no_earlier_than_what_was_seen_while_it_was_taken(moves: list[tuple[int, int]]) -> None:
    shown = Clocks(0, 0)
    meanwhile: list[tuple[int, int]] = []
    seen: list[int] = []

    def clocks() -> tuple[int, ...]:
        readings = shown()
        if meanwhile:
            move = meanwhile.pop()
            shown.move(*move)
            seen.append(clock.look())
        return readings

    clock = FastestClock(clocks)
    shown.move(1, 50)
    meanwhile += moves
    assert clock.glance() >= max(seen), "of what began then no more may seem to be left than is"
    shown.move(1, 2)
    assert clock.look() >= max(seen) + 2


def test_no_fraction_is_carried_over_a_stop() -> None:
    clocks = Clocks(0)
    passed = Elapsed(clocks)
    passed.take_ms()
    clocks.move(MS - 1)
    passed.take_ms()
    passed.stop()
    clocks.move(10 * MS)
    assert passed.take_ms() == 0
    clocks.move(MS - 1)
    assert passed.take_ms() == 0


def test_time_counts_for_who_leads_and_from_when_it_is_seen_to_lead() -> None:
    clocks, told = Clocks(0), list[int]()
    core: Any = SimpleNamespace(leader=None, advance=told.append, now=0)
    keeper = Timekeeper(core, clocks, None)
    steps = [(None, []), ("a", [0]), ("a", [50]), (None, []), ("b", [0]), ("c", [0]), ("c", [50]), ("b", [0])]
    for leader, expected in steps:
        core.leader = leader
        clocks.move(50 * MS)
        told.clear()
        keeper.note()
        assert told == expected, (leader, expected)


def test_the_clock_of_leases_is_told_to_everybody_where_there_are_leases() -> None:
    core: Any = SimpleNamespace(leader=None, now=0)
    Timekeeper(core, Clocks(0), lambda: 77).note()
    assert core.now == 77


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other clocks")
def test_clocks_of_this_system_that_nobody_sets_are_read() -> None:
    boot, raw = read_clocks()
    assert boot <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert raw <= time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)


@pytest.mark.parametrize("missing", ["CLOCK_BOOTTIME", "CLOCK_MONOTONIC_RAW"])
def test_a_clock_that_is_missing_is_done_without(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delattr(time, missing, raising=False)
    there = clocks._clock_ids()
    monkeypatch.setattr(clocks, "_IDS", there)
    assert len(read_clocks()) == max(1, len(there))


def test_without_any_such_clock_there_is_the_monotonic_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(clock: int) -> int:
        raise OSError(22, "no such clock")

    monkeypatch.setattr(time, "clock_gettime_ns", unknown)
    assert clocks._clock_ids() == ()
    monkeypatch.setattr(clocks, "_IDS", ())
    before = time.monotonic_ns()
    assert before <= read_clocks()[0] <= time.monotonic_ns()
