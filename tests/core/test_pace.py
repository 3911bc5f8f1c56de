"""What is sent at once follows the link: never so much that an answer is late, never so little that the link idles."""

from __future__ import annotations

from collections import deque

import pytest

from raftsvc.core.pace import Pace, Window
from raftsvc.member.forwards import Forwards
from raftsvc.member.pieces import Pieces
from raftsvc.member.waiters import Call

KIB = 1024


class Link:
    """A way that carries so many bytes in a tick, after some ticks that it always takes, and a sender that has more."""

    def __init__(self, pace: Pace, rate: int, latency: int) -> None:
        self.pace = pace
        self.rate = rate
        self.latency = latency
        self.tick = 0
        self.carried = 0
        self.delays: list[int] = []
        self._queue: deque[list[int]] = deque()  # bytes left, when it was sent, and bytes in all
        self._answers: deque[tuple[int, int, int]] = deque()  # when it arrives, bytes, when it was sent
        self._on_way = 0

    def run(self, ticks: int, has_more: bool = True) -> None:
        for _ in range(ticks):
            self.tick += 1
            while self._answers and self._answers[0][0] <= self.tick:
                _, size, sent = self._answers.popleft()
                self._on_way -= size
                self.carried += size
                self.delays.append(self.tick - sent)
                self.pace.answered(sent, self.tick)
            while has_more and self._on_way < self.pace.size_bytes:
                size = max(1, self.pace.size_bytes // 4)
                self._queue.append([size, self.tick, size])
                self._on_way += size
            if has_more:
                self.pace.note_short()
            room = self.rate
            while self._queue and room:
                moved = min(room, self._queue[0][0])
                room -= moved
                self._queue[0][0] -= moved
                if not self._queue[0][0]:
                    _, sent, size = self._queue.popleft()
                    self._answers.append((self.tick + self.latency, size, sent))


@pytest.mark.parametrize("latency", [0, 1, 3, 8])
@pytest.mark.parametrize("rate", [3 * KIB, 6 * KIB, 19 * KIB, 40 * KIB, 500 * KIB])
def test_answers_are_not_late_and_the_link_does_not_idle(rate: int, latency: int) -> None:
    link = Link(Pace(16 * KIB), rate, latency)
    link.run(300)  # slow ones take a while until they are known
    link.carried, link.delays = 0, []
    link.run(200)
    assert max(link.delays) <= latency + max(6, 3 * latency)
    assert link.carried >= 0.4 * min(rate * 200, 64 * 64 * KIB)


def test_a_link_that_became_slow_is_not_filled_with_what_it_carried_once() -> None:
    link = Link(Pace(16 * KIB), 10_000 * KIB, 0)
    link.run(50)
    assert link.pace.size_bytes > 1000 * KIB
    for _ in range(20):  # heartbeats that are answered at once, and nothing to send
        link.tick += 1
        link.pace.answered(link.tick, link.tick)
    assert link.pace.size_bytes == 16 * KIB


def test_one_burst_of_late_answers_counts_once() -> None:
    pace = Pace(16 * KIB)
    pace.answered(0, 0)
    for _ in range(10):
        pace.answered(1, 9)
    assert pace.size_bytes == 8 * KIB


def test_nothing_makes_it_nothing() -> None:
    pace = Pace(16 * KIB)
    for _ in range(100):
        pace.slow_down()
    assert pace.size_bytes == pace.least_bytes == 2 * KIB
    assert Pace(1).least_bytes == 1


def test_a_heartbeat_that_waits_behind_entries_makes_the_window_smaller() -> None:
    window = Window(1000)
    window.pulse(1, 0)
    window.pulse_answered(1, 0)
    assert window.room_bytes(10, 10_000) == 1000
    window.sent(5, 900, 1)
    assert window.room_bytes(10, 10_000) == 0, "a remainder is not worth a message"
    window.pulse(2, 1)
    window.pulse(3, 2)  # the first that is not answered counts
    window.pulse_answered(1, 8)
    window.acknowledged(5, 8)
    assert window.room_bytes(10, 10_000) == 1000
    window.pulse_answered(3, 9)
    assert window.room_bytes(10, 10_000) == 500


@pytest.mark.parametrize(("before", "after"), [(0, 4), (0, 9), (2, 8), (1, 30)])
def test_a_way_that_takes_longer_than_it_did_is_not_taken_for_full(before: int, after: int) -> None:
    link = Link(Pace(16 * KIB), 500 * KIB, before)
    link.run(100)
    link.latency = after
    link.run(1000)
    link.carried = 0
    link.run(200)
    assert link.carried >= 200 * 16 * KIB / (after + 1), "at least what it began with, in each round"


def test_one_that_goes_elsewhere_knows_nothing_of_the_way_before() -> None:
    pace = Pace(16 * KIB)
    pace.answered(0, 0)
    pace.slow_down()
    pace = pace.anew()
    assert pace.is_unknown and pace.size_bytes == 16 * KIB


@pytest.mark.parametrize("answers", [2, 20])
def test_a_burst_of_answers_in_one_tick_takes_nothing_back(answers: int) -> None:
    pace = Pace(16 * KIB)
    for tick in range(1, 11):
        pace.note_short()
        for _ in range(answers):
            pace.answered(tick, tick)
    assert pace.size_bytes == 4096 * KIB


@pytest.mark.parametrize("pause", [5, 50])
def test_what_was_not_used_for_a_while_begins_anew(pause: int) -> None:
    pieces = Pieces(16 * KIB, 5, 40)
    forwards = Forwards(16 * KIB, 5)
    for tick in range(1, 9):
        call = Call(bytes(1_000_000))
        call.number = tick
        pieces.takes(call)
        while batch := pieces.take(1 << 20, tick, 1 << 20):
            pieces.note_held(batch[-1].offset + len(batch[-1].data), tick)
        pieces.remove(call, tick)
        forwards.add(tick, (), forwards.room_bytes, tick)
        assert not forwards.room_bytes
        forwards.pop(tick, tick)
    assert forwards.room_bytes > 1000 * KIB
    for tick in range(9, 9 + pause):
        pieces.retry(tick)
        forwards.tick(tick)
    pieces.takes(Call(bytes(1_000_000)))
    limit = 16 * KIB if pause > 10 else 128 * KIB
    assert sum(len(piece.data) for piece in pieces.take(1 << 20, 9 + pause, 1 << 20)) <= limit
    assert forwards.room_bytes <= limit


def test_what_is_acknowledged_at_once_makes_the_window_larger_without_a_heartbeat() -> None:
    window = Window(1000)
    for index in range(1, 6):
        window.sent(index, window.room_bytes(10, 100_000), 7)
        window.pace.note_short()
        window.acknowledged(index, 7)
    assert window.room_bytes(10, 100_000) == 32_000
    window.sent(6, 32_000, 7)
    window.pace.note_short()
    window.acknowledged(6, 30)
    assert window.room_bytes(10, 100_000) == 32_000, "a slow disk is no slow way"
