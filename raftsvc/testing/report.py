"""What a simulation tells of itself: counts and histories where it passed, what and where if it failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from raftsvc.testing.linearizability import Operation


@dataclass
class Report:
    """What a simulation did.

    history: what the clients saw, for the linearizability check.
    faults:  how many of each kind were injected.
    counts:  operations by outcome, and other things worth counting.
    trace:   every event, if it was to be kept.
    """

    seed: int
    virtual_seconds: float = 0.0
    steps: int = 0
    history: list[Operation] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    trace: list[str] = field(default_factory=list)


class SimulationFailed(Exception):
    """A seed in which something went wrong; `str` tells what, and `trace` how it came to it."""

    def __init__(self, seed: int, what: str, trace: Sequence[str]) -> None:
        super().__init__(f"seed {seed}: {what}")
        self.seed = seed
        self.what = what
        self.trace = trace


def merged(reports: Iterable[Report]) -> Report:
    """The sums over several seeds."""
    total = Report(0)
    for report in reports:
        total.virtual_seconds += report.virtual_seconds
        total.steps += report.steps
        total.faults += report.faults
        total.counts += report.counts
    return total
