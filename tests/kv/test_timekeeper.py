"""What time it is for a process, and which process of a host tells its clock: with clocks set by hand."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

import pytest

from raftsvc.errors import ReadTimeoutError
from raftsvc.kv import timekeeper
from raftsvc.kv.timekeeper import COUNTS_SECONDS, TELL_SECONDS, Timekeeper
from raftsvc.kv.transactions import MAX_TTL_MS
from tests.kv.test_runs import NOON, A, Log, clock, plan

DAY = 86_400


class Host:
    """A machine, the node on it, and its processes, one of which applies a log.  now: seconds that passed."""

    def __init__(self, voters: int = 1) -> None:
        self.log = Log(voters)
        self.now = 0.0
        self.wall_ms = NOON
        self.told = 0
        self.is_reached = True
        self.latency = 0.0
        self.sent: list[bytes] = []

    def keeper(self) -> Timekeeper:
        made = Timekeeper(self, self.log.state, lambda: None)
        made.wall = lambda: self.wall_ms
        return made

    def status(self) -> dict[str, object]:
        return {"node_id": 1}

    def wait_read(self, timeout: float = 5.0) -> None:
        if not self.is_reached:
            raise ReadTimeoutError("nobody answers")

    def propose(self, instruction: bytes, timeout: float = 10.0) -> Any:
        self.told += 1
        if self.latency:
            self.sent.append(instruction)
        else:
            self.log.now(instruction)

    def arrive(self) -> None:
        sent, self.sent = self.sent, []
        for instruction in sent:
            self.log.now(instruction)

    def passes(self, seconds: float, *, in_the_log: bool = True) -> None:
        self.now += seconds
        self.wall_ms += int(seconds * 1000)
        if in_the_log:
            self.log.time_ms += int(seconds * 1000)

    def tell(self, *node_ids: int) -> None:
        for node_id in node_ids:
            self.log.now(clock(node_id, self.wall_ms))


@pytest.fixture
def make_host(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Host]:
    def make(voters: int = 1) -> Host:
        host = Host(voters)
        monkeypatch.setattr(timekeeper, "read_clocks", lambda: (int(host.now * 1e9),))
        monkeypatch.setattr(timekeeper, "seconds_since", lambda readings: host.now - readings[0] / 1e9)
        host.log.join(A, MAX_TTL_MS)
        host.log.now(plan(A))
        return host

    return make


def test_what_was_told_before_a_process_began_does_not_count(make_host: Callable[..., Host]) -> None:
    host = make_host()
    before = host.keeper()
    before.look()
    assert before.now_ms() == NOON
    host.passes(3 * DAY, in_the_log=False)
    assert host.log.state.clock(1).now_ms == NOON, "as the log has it no time has passed"
    after = host.keeper()
    assert after.now_ms() is None
    after.look()
    assert after.now_ms() == NOON + 3 * DAY * 1000, "it was told at once"


def test_what_was_told_before_nobody_led_for_a_while_does_not_count(make_host: Callable[..., Host]) -> None:
    host = make_host(3)
    keeper = host.keeper()
    keeper.look()
    host.tell(2, 3)
    assert keeper.now_ms() == NOON
    host.is_reached = False
    host.passes(600, in_the_log=False)
    assert keeper.now_ms() is None
    host.is_reached = True
    keeper.look()
    assert keeper.now_ms() is None, "the own clock is no majority, and those of the others are old"
    host.tell(2)
    assert keeper.now_ms() == NOON + 600_000


def test_what_arrives_late_does_not_count_as_told_just_now(make_host: Callable[..., Host]) -> None:
    host = make_host(3)
    keeper = host.keeper()
    keeper.look()
    host.is_reached = False
    old = [clock(node_id, NOON) for node_id in (1, 2, 3)]
    for _ in range(3600):  # cut off, it goes on looking
        host.passes(1, in_the_log=False)
        keeper.look()
    for each in old:
        host.log.now(each)
    assert keeper.now_ms() is None
    host.is_reached = True
    keeper.look()
    assert keeper.now_ms() is None
    host.tell(2)
    assert keeper.now_ms() == host.wall_ms


def test_the_time_is_not_known_once_a_majority_tells_its_clock_no_more(make_host: Callable[..., Host]) -> None:
    host = make_host(3)
    keeper = host.keeper()
    keeper.look()
    host.tell(2)
    for _ in range(int(COUNTS_SECONDS) - 15):
        host.passes(1)
        keeper.look()
        assert keeper.now_ms() == host.wall_ms
    for _ in range(30):
        host.passes(1)
        keeper.look()
    assert keeper.now_ms() is None
    host.tell(3)
    assert keeper.now_ms() == host.wall_ms


def test_one_process_of_a_host_tells_the_clock_for_all(
    make_host: Callable[..., Host],
) -> None:
    host = make_host()
    host.latency = 0.02
    keepers = [host.keeper() for _ in range(8)]
    looks = []
    for number, keeper in enumerate(keepers):
        keeper._chance = random.Random(number)
        looks.append((keeper.first_pause(), number))
    heapq.heapify(looks)
    arrivals: list[float] = []
    while host.now < 100:
        at, number = heapq.heappop(looks)
        while arrivals and arrivals[0] <= at:
            moment = arrivals.pop(0)
            host.passes(moment - host.now)
            host.arrive()
        host.passes(at - host.now)
        told = host.told
        keepers[number].look()
        if host.told > told:
            arrivals.append(at + host.latency)
        heapq.heappush(looks, (at + keepers[number].pause(), number))
    assert 100 / (TELL_SECONDS + 1) <= host.told <= 100 / TELL_SECONDS + 8


def test_looks_come_at_times_that_differ(make_host: Callable[..., Host]) -> None:
    keeper: Any = make_host().keeper()
    pauses = [keeper.pause() for _ in range(1000)]
    assert 0.5 <= min(pauses) < 0.6 < 1.4 < max(pauses) <= 1.5
