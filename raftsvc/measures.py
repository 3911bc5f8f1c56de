"""What a process counts and times while it works, for people: nothing is decided by it.

Here are the numbers that cannot be read off a node when somebody asks; all others are in its `status`, and
`raftsvc.metrics` makes both into what monitors read.  None of these has a lock of its own: each is noted by whoever
holds one anyway, or by one thread at a time, as it is said where it is made, or is a `Tally`.  They are looked at
without any: what is seen is of a moment ago, and each picture is consistent in itself.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import count
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


class Histogram:
    """How often something took how long.  Noted by one thread at a time."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        """bounds: in ascending order; each counts what is at most that."""
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    def note(self, value: float) -> None:
        """It took so long once."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def picture(self) -> dict[str, object]:
        """Bounds, how many fell below each and above the last, and the sum; JSON-compatible."""
        return {"bounds": list(self._bounds), "counts": list(self._counts), "sum": self._total}


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
    """How calls of one kind ended, and how long their callers waited.  Noted by one thread at a time."""

    __slots__ = ("_outcomes", "_seconds")

    def __init__(self, outcomes: Sequence[str]) -> None:
        self._outcomes = dict.fromkeys(outcomes, 0)
        self._seconds = Histogram(CALL_SECONDS)

    def note(self, outcome: str, seconds: float) -> None:
        """One ended so, after so long."""
        self._outcomes[outcome] += 1
        self._seconds.note(seconds)

    def picture(self) -> dict[str, object]:
        """JSON-compatible."""
        return {"outcomes": dict(self._outcomes), "seconds": self._seconds.picture()}


class Usage:
    """What the callers of one process did.  The first three, and `refusals`, are noted under the lock of admission.

    rounds:      reads that asked the leader; waits: those for an index that somebody was told.
    futures:     of calls that nobody waited in; noted by those who complete them, under a lock of theirs.
    lease_reads: reads that a lease answered at once, without a lock; to time them would cost as much as they do.
    refusals:    callers for whom there was no place.
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
    """What happened at one node since it was made.  Noted under the node's lock, save `syncs`.

    syncs:   of the log, each by who writes it, and one does at a time.
    batches: of entries given to the State, by who applies.  entries: in all of them.
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
