"""Virtual time: what happens when, and the trace of it.

Time is counted in microseconds from 0.  What is due at the same moment happens in the
order in which it was arranged, so that nothing depends on the machine, on the hash seed
or on what ran before.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from raftsvc.testing.invariants import Violation

MILLISECOND = 1000
SECOND = 1000 * MILLISECOND

MAX_STEPS = 1_000_000
"""Of one seed, which has 7,000 on an average: nodes that answer each other for ever fill the memory."""


class Schedule:
    """What is to happen, by the time when it does."""

    def __init__(self, keep_trace: bool) -> None:
        self.now = 0
        self.steps = 0
        self.trace: list[str] = []
        self.is_traced = keep_trace
        """Whether it is worth its cost to say what happens."""
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._event_count = 0

    def at(self, delay: int, action: Callable[[], None]) -> None:
        """Have `action` called `delay` microseconds from now."""
        self._event_count += 1
        heapq.heappush(self._events, (self.now + delay, self._event_count, action))

    def note(self, who: str, what: str) -> None:
        """Write a line of the trace, if it is kept."""
        if self.is_traced:
            self.trace.append(f"{self.now / SECOND:11.6f} {who:4} {what}")

    def run_until(self, time: int, condition: Callable[[], bool] | None = None) -> bool:
        """Let time pass until `time`, or until `condition` holds; whether it does."""
        while self._events and self._events[0][0] <= time:
            if condition is not None and condition():
                return True
            self.now, _, action = heapq.heappop(self._events)
            self.steps += 1
            if self.steps > MAX_STEPS:
                raise Violation(f"liveness: no end after {MAX_STEPS:,} steps")
            action()
        self.now = max(self.now, min(time, self._events[0][0] if self._events else time))
        return condition is not None and condition()


class Lifetime:
    """The time of one process: nothing happens in it while it is stopped, nor after its end."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._deferred: list[Callable[[], None]] = []
        self.is_paused = False
        self.is_over = False

    def later(self, delay: int, action: Callable[[], None]) -> None:
        """Have `action` called in `delay` microseconds, or after a pause that lasts longer."""

        def fire() -> None:
            if self.is_over:
                return
            if self.is_paused:
                self._deferred.append(fire)
            else:
                action()

        self._schedule.at(delay, fire)

    def when_running(self, action: Callable[[], None]) -> None:
        """Have `action` called now, or after a pause."""
        self.later(0, action) if self.is_paused else action()

    def catch_up(self) -> None:
        """Do everything that came during a pause that is over."""
        deferred, self._deferred = self._deferred, []
        for action in deferred:
            action()

    def end(self) -> None:
        """Nothing of what was arranged happens any more."""
        self.is_over = True
        self.is_paused = False
        self._deferred.clear()
