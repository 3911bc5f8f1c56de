"""What is sent at once follows the link: never so much that an answer is late, never so little that the link idles."""

from __future__ import annotations

from collections import deque

import pytest

from raftsvc.core.pace import Pace, Window

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
    link = Link(Pace(64 * KIB), rate, latency)
    link.run(300)  # slow ones take a while until they are known
    link.carried, link.delays = 0, []
    link.run(200)
    assert max(link.delays) <= latency + max(6, 3 * latency)
    assert link.carried >= 0.4 * min(rate * 200, 64 * 64 * KIB)


def test_a_link_that_became_slow_is_not_filled_with_what_it_carried_once() -> None:
    link = Link(Pace(64 * KIB), 10_000 * KIB, 0)
    link.run(50)
    assert link.pace.size_bytes > 1000 * KIB
    for _ in range(20):  # heartbeats that are answered at once, and nothing to send
        link.tick += 1
        link.pace.answered(link.tick, link.tick)
    assert link.pace.size_bytes == 64 * KIB


def test_one_burst_of_late_answers_counts_once() -> None:
    pace = Pace(64 * KIB)
    pace.answered(0, 0)
    for _ in range(10):
        pace.answered(1, 9)
    assert pace.size_bytes == 32 * KIB


def test_nothing_makes_it_nothing() -> None:
    pace = Pace(64 * KIB)
    for _ in range(100):
        pace.slow_down()
    assert pace.size_bytes == pace.least_bytes == 2 * KIB
    assert Pace(1).least_bytes == 1


def test_a_heartbeat_that_waits_behind_entries_makes_the_window_smaller() -> None:
    window = Window(1000)
    window.pulse(1, 0)
    window.pulse_answered(1, 0)
    assert window.room_bytes(10, 10_000) == 1000
    window.sent(5, 900)
    assert window.room_bytes(10, 10_000) == 0, "a remainder is not worth a message"
    window.pulse(2, 1)
    window.pulse(3, 2)  # the first that is not answered counts
    window.pulse_answered(1, 8)
    window.acknowledged(5)
    assert window.room_bytes(10, 10_000) == 1000
    window.pulse_answered(3, 9)
    assert window.room_bytes(10, 10_000) == 500
