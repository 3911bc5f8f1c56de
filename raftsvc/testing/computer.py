"""What a node runs on and what outlives its processes: a disk and a clock, each with its weaknesses."""

from __future__ import annotations

from random import Random

from raftsvc.testing.disk import SimulatedDisk
from raftsvc.testing.world import TICK

USUAL_WRITE_DELAY = 400
USUAL_APPLY_DELAY = 50


class Computer:
    """The disk and the clock of one node.

    write_delay:     mean, microseconds.
    is_hung:         the disk does not answer.
    apply_delay:     mean, microseconds, for each batch that the State applies.
    is_state_hung:   the State does not answer.
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
        self._clock_rate = random.uniform(0.95, 1.05)
        self._clock_start = random.randrange(10**9)

    def clock(self, now: int) -> int:
        """What the clock shows at `now`, in nanoseconds."""
        return int(1000 * (self._clock_start + now * self._clock_rate))

    def tick_delay(self) -> int:
        """How long it is until the next tick."""
        return int(TICK * self.tick_rate / self._clock_rate)

    def heal(self) -> None:
        """Everything works as it should, from now on."""
        self.disk.heal()
        self.is_hung = self.is_state_hung = False
        self.write_delay = USUAL_WRITE_DELAY
        self.apply_delay = USUAL_APPLY_DELAY
        self.tick_rate = 1.0
