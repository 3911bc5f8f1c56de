"""What a node runs on and what outlives its processes: a disk and a clock, each with its weaknesses."""

from __future__ import annotations

from random import Random

from raftsvc.testing.disk import SimulatedDisk
from raftsvc.testing.times import FASTEST, SLOWEST
from raftsvc.testing.world import TICK

USUAL_WRITE_DELAY = 400
USUAL_APPLY_DELAY = 50


class Clock:
    """One of those that log time is measured by: it may run at any rate, and be set."""

    def __init__(self, rate: float) -> None:
        self._right_rate = self._rate = rate
        self._shown_ns = self._seen_us = 0

    def show(self, now: int) -> int:
        """What it shows at `now`, in nanoseconds."""
        self._shown_ns += int((now - self._seen_us) * 1000 * self._rate)
        self._seen_us = now
        return self._shown_ns

    def bend(self, now: int, rate: float | None) -> None:
        """Have it run at another rate from now on; None: as it should."""
        self.show(now)
        self._rate = self._right_rate if rate is None else rate

    def jump(self, seconds: float) -> None:
        """Have it show something else all at once."""
        self._shown_ns += int(1e9 * seconds)


class Computer:
    """The disk and the clock of one node.

    write_delay:     mean, microseconds.
    is_hung:         the disk does not answer.
    apply_delay:     mean, microseconds, for each batch that the State applies.
    is_state_hung:   the State does not answer.
    elapsed:         the clocks that log time is measured by; the first is never ahead of what is right.
    tick_rate:       how many times longer than it should be the time between two ticks is.
    spoilt_snapshots: which of the snapshots that were stored, by index, are of a damaged State.
    """

    def __init__(self, random: Random) -> None:
        self.disk = SimulatedDisk()
        self.write_delay = USUAL_WRITE_DELAY
        self.is_hung = False
        self.apply_delay = USUAL_APPLY_DELAY
        self.is_state_hung = False
        self.tick_rate = 1.0
        self.spoilt_snapshots: set[int] = set()
        # What leases allow: clocks that differ in rate by a tenth, and in what they show by anything.
        self._clock_rate = random.uniform(SLOWEST, FASTEST)
        self._clock_start = random.randrange(10**9)
        self.elapsed = Clock(self._clock_rate), Clock(self._clock_rate)

    def clock(self, now: int) -> int:
        """What the clock shows at `now`, in nanoseconds."""
        return int(1000 * (self._clock_start + now * self._clock_rate))

    def tick_delay(self) -> int:
        """How long it is until the next tick."""
        return int(TICK * self.tick_rate / self._clock_rate)

    def elapsed_clocks(self, now: int) -> tuple[int, ...]:
        """What those show by which log time is measured."""
        first, second = self.elapsed
        return second.show(now), first.show(now)

    def heal(self, now: int) -> None:
        """Everything works as it should, from now on."""
        self.disk.heal()
        self.is_hung = self.is_state_hung = False
        self.write_delay = USUAL_WRITE_DELAY
        self.apply_delay = USUAL_APPLY_DELAY
        self.tick_rate = 1.0
        for clock in self.elapsed:
            clock.bend(now, None)
