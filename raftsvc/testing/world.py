"""What all parts of a simulation share: its time, its chance, its laws and what is known of it.

It knows none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from raftsvc.core.versions import FIRST, Versions
from raftsvc.member.engine import EngineOptions
from raftsvc.testing.invariants import Watch
from raftsvc.testing.report import Report
from raftsvc.testing.schedule import MILLISECOND, SECOND, Schedule
from raftsvc.testing.workload import Workload

TICK = 100 * MILLISECOND
LEAST_ELECTION_TICKS = 5
MAX_CLIENTS = 4
"""Sessions of connected clients, so few that some are forgotten while they are in use."""
PATIENCE = 120 * SECOND
"""Virtual time that a cluster without faults has to do what is asked; it needs a few seconds."""

FEW_ENTRIES = 80
FEW_BYTES = 4000
"""Less than may be written while a snapshot is on its way: as long as that goes on nobody who gets it arrives."""
LITTLE_BYTES = 24
"""Less than most instructions have."""
LEISURE = 5 * SECOND
"""What clients think about the next thing, on average, while what they do is too much."""


def draw_options(rng: Random, may_lease: bool, is_changed: bool = False) -> EngineOptions:
    """Those of a node that is started; `is_changed`: by somebody who has other ideas of them."""
    return EngineOptions(
        election_ticks=rng.choice((LEAST_ELECTION_TICKS, 10, 30) if is_changed else (LEAST_ELECTION_TICKS, 10)),
        snapshot_entries=rng.choice((8, 30, 100, 1000)),
        trailing_entries=rng.choice((0, 5, 50)),
        trailing_bytes=rng.choice((0, 600, 1 << 24)),
        max_pinned_entries=rng.choice((FEW_ENTRIES // 2, FEW_ENTRIES, 100_000)),
        max_pinned_bytes=rng.choice((FEW_BYTES, 1 << 26)),
        start_bytes=rng.choice((8, LITTLE_BYTES, 400, 1 << 16)),
        max_uncommitted_bytes=rng.choice((600, 1 << 20)),
        max_backlog_bytes=rng.choice((1000, 1 << 20)),
        tick_ns=1000 * TICK,
        tick_ms=TICK // MILLISECOND,
        lease_reads=may_lease and (not is_changed or rng.random() < 0.8),
        max_clients=MAX_CLIENTS,
    )


@dataclass
class Conditions:
    """What is the same throughout a seed, and differs from one to the next.

    piece_bytes:  of a snapshot, in one request.
    think_time:   mean, of clients.  Some bugs need a cluster in which seldom something is written.
    least_voters: so many are left whatever is removed.
    """

    options: EngineOptions
    segment_bytes: int
    sync_bytes: int
    piece_bytes: int
    think_time: int
    client_count: int
    least_voters: int

    @classmethod
    def drawn_from(cls, rng: Random) -> Conditions:
        """Those of a seed."""
        return cls(
            draw_options(rng, may_lease=rng.random() < 0.4),
            segment_bytes=rng.choice((4096, 8192, 32768)),
            sync_bytes=rng.choice((100, 500, 1 << 20)),
            piece_bytes=rng.choice((60, 200, 200, 1 << 20)),
            think_time=rng.choice((20, 40, 40, 40, 1500)) * MILLISECOND,
            client_count=rng.randint(3, 6),
            least_voters=rng.choice((1, 2, 3, 3)),
        )


LATER = Versions.of(FIRST.library + 1, {})
"""The library of which some clusters begin, whatever the State is."""


def between(rng: Random, least: Versions, most: Versions) -> Versions:
    """Some code that knows `least`, and no more than `most`."""
    return Versions.of(
        rng.randint(least.library, most.library),
        {"": rng.randint(least.of_part(), most.of_part())},
    )


class World:
    """Time, chance, the State and its clients' actions, the watch, the report; and whether there is trouble.

    is_healed: nothing goes wrong any more.
    absent:    those that stay dead after that, until they are brought back.
    latest_code: the versions of the library and the State that a node can be upgraded to.
    """

    def __init__(self, seed: int, workload: Workload, keep_trace: bool) -> None:
        self.schedule = Schedule(keep_trace)
        self.random = Random(f"raftsvc {seed}")
        self.workload = workload
        self.conditions = Conditions.drawn_from(self.random)
        self.watch = Watch(lambda: self.schedule.now)
        self.report = Report(seed)
        self.is_healed = False
        self.latest_code = FIRST
        self.absent: frozenset[int] = frozenset()
