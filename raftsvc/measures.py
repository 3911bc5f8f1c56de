"""What a process counts and times while it works, for people: nothing is decided by it.

Here are the numbers that cannot be read off a node when somebody asks; all others are in its `status`, and
`raftsvc.metrics` makes both into what monitors read.  Whoever notes something waits for nobody: a `Histogram`, an
`Account` and a `Tally` are raised by any number of threads at once.  The other numbers are noted by whoever holds a
lock anyway, as it is said where they are.  What is seen is of a moment ago, and each picture is consistent in itself.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from itertools import count, islice
from threading import Lock
from typing import Final

SYNC_SECONDS: Final = tuple(0.0001 * 2**power for power in range(15))
"""Bounds for what a disk takes: 0.1 ms to 1.6 s; fast ones need a tenth of a millisecond."""
CALL_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""For what callers wait: the greatest is the default timeout of `exec`."""
APPLY_SECONDS: Final = tuple(0.0001 * 4**power for power in range(9))
"""For what the State takes: 0.1 ms to 6.6 s."""
SNAPSHOT_SECONDS: Final = tuple(0.01 * 4**power for power in range(9))
"""For work on a whole State: 10 ms to 11 minutes."""
DELAY_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""For how late a thread runs."""

APPLIED: Final = "applied"
REFUSED: Final = "refused"
NOT_APPLIED: Final = "not_applied"
UNKNOWN: Final = "unknown"
OVERLOADED: Final = "overloaded"
OUTCOMES: Final = (APPLIED, REFUSED, NOT_APPLIED, UNKNOWN, OVERLOADED)
"""How a proposal may end."""
DONE: Final = "done"
FAILED: Final = "failed"


_FRESH: Final = 256
"""So many durations are kept as they are: to sort them in together costs a tenth of what it does one by one."""


class Histogram:
    """How often something took how long.  Any number of threads note at once."""

    __slots__ = ("_bounds", "_counts", "_fresh", "_lock", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        """bounds: in ascending order; each counts what is at most that."""
        self._bounds = tuple(bounds)
        self._fresh: deque[float] = deque()  # what was noted, and is not counted yet
        self._lock = Lock()  # guards the two below, and who takes out of the one above
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    def note(self, value: float) -> None:
        """It took so long once."""
        self._fresh.append(value)
        if len(self._fresh) >= _FRESH:
            self.counted()

    def counted(self) -> tuple[list[int], float]:
        """How many fell below each bound and above the last, and the sum of all."""
        with self._lock:
            fresh = sorted(islice(iter(self._fresh.popleft, None), len(self._fresh)))
            if fresh:
                below = 0
                for position, bound in enumerate(self._bounds):
                    reached = bisect_right(fresh, bound)
                    self._counts[position] += reached - below
                    below = reached
                self._counts[-1] += len(fresh) - below
                self._total += sum(fresh)
            return list(self._counts), self._total

    def picture(self) -> dict[str, object]:
        """Bounds, how many fell below each and above the last, and the sum; JSON-compatible."""
        counts, total = self.counted()
        return {"bounds": list(self._bounds), "counts": counts, "sum": total}


class Tally:
    """A count that any number of threads raise at once, without a lock: each calls `next(tally.raised)`."""

    __slots__ = ("_lock", "_looks", "raised")

    def __init__(self) -> None:
        self.raised = count()
        self._lock = Lock()  # guards the one below, among those who look
        self._looks = 0

    def value(self) -> int:
        """How often it was raised.  Looking raises it too, which is taken off again."""
        with self._lock:
            self._looks += 1
            return next(self.raised) - (self._looks - 1)


class Account:
    """How calls of one kind ended, and how long their callers waited.  Any number of threads note at once."""

    __slots__ = ("_ended",)

    def __init__(self, outcomes: Sequence[str]) -> None:
        self._ended = {outcome: Histogram(CALL_SECONDS) for outcome in outcomes}

    def note(self, outcome: str, seconds: float) -> None:
        """One ended so, after so long."""
        self._ended[outcome].note(seconds)

    def picture(self) -> dict[str, object]:
        """JSON-compatible."""
        counted = {outcome: found.counted() for outcome, found in self._ended.items()}
        counts = [sum(below) for below in zip(*[counts for counts, _ in counted.values()], strict=True)]
        total = sum([total for _, total in counted.values()])
        return {
            "outcomes": {outcome: sum(counts) for outcome, (counts, _) in counted.items()},
            "seconds": {"bounds": list(CALL_SECONDS), "counts": counts, "sum": total},
        }


class Usage:
    """What the callers of one process did.

    rounds:      reads that asked the leader; waits: those for an index that somebody was told.
    futures:     of calls that nobody waited in.
    lease_reads: reads that a lease answered at once; to time them would cost as much as they do.
    refusals:    callers for whom there was no place; noted under the lock of admission.
    """

    __slots__ = ("futures", "lease_reads", "proposals", "refusals", "rounds", "waits")

    def __init__(self) -> None:
        self.proposals = Account(OUTCOMES)
        self.rounds = Account((DONE, FAILED))
        self.waits = Account((DONE, FAILED))
        self.futures = Account(OUTCOMES)
        self.lease_reads = Tally()
        self.refusals = 0

    def picture(self) -> dict[str, object]:
        """JSON-compatible."""
        return {
            "proposals": self.proposals.picture(),
            "futures": self.futures.picture(),
            "reads": {"round": self.rounds.picture(), "applied": self.waits.picture()},
            "lease_reads": self.lease_reads.value(),
            "refusals": self.refusals,
        }


class Records:
    """What happened at one node since it was made.  What is no `Histogram` is noted under the node's lock.

    syncs:   of the log.
    batches: of entries given to the State.  entries: in all of them.
    delays:  by how much ticks came later than they should.
    """

    __slots__ = (
        "_lead",
        "batches",
        "delays",
        "elections",
        "entries",
        "leads",
        "snapshot_failures",
        "snapshots",
        "syncs",
    )

    def __init__(self) -> None:
        self.syncs = Histogram(SYNC_SECONDS)
        self.batches = Histogram(APPLY_SECONDS)
        self.delays = Histogram(DELAY_SECONDS)
        self.entries = 0
        self.snapshots = {phase: Histogram(SNAPSHOT_SECONDS) for phase in ("capture", "save", "restore")}
        self.snapshot_failures = 0
        self.elections = {"won": 0, "lost": 0}
        self.leads = 0
        self._lead = (0, 0)

    def note_lead(self, term: int, leader_id: int) -> None:
        """So it is known now; 0: nobody leads, as far as this node knows."""
        if leader_id and (term, leader_id) != self._lead:
            self._lead = (term, leader_id)
            self.leads += 1

    def picture(self) -> dict[str, object]:
        """JSON-compatible."""
        return {
            "fsync_seconds": self.syncs.picture(),
            "apply_seconds": self.batches.picture(),
            "tick_delay_seconds": self.delays.picture(),
            "snapshot_seconds": {phase: found.picture() for phase, found in self.snapshots.items()},
            "snapshot_failures": self.snapshot_failures,
            "applied_entries": self.entries,
            "elections": dict(self.elections),
            "leader_changes": self.leads,
        }
