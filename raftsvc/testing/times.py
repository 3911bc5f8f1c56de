"""What must be true of log time, seen from outside: the watch knows how much time really passed.

It never goes back along the log, and between any two entries it grew by no more than what passed
between the moments when they were appended, by the fastest clock that is right.
"""

from __future__ import annotations

from collections.abc import Callable

from raftsvc.core.messages import Entry, index_of, term_of, time_of
from raftsvc.member.engine import Engine
from raftsvc.testing.violation import require

SLOWEST, FASTEST = 0.95, 1.05
"""At what rates clocks run that are right."""
_US_PER_MS = 1000


class LogTimes:
    """When entries were appended, and what they say of it."""

    def __init__(self, now: Callable[[], int]) -> None:
        """now: microseconds that passed, save those that nobody noticed but the clocks."""
        self._now = now
        self._slept: int = 0
        self._appended: dict[tuple[int, int], int] = {}
        self._committed: dict[int, int] = {}
        self._when: dict[int, int] = {}  # of what is committed: when it was appended
        self._ended: dict[tuple[int, int], int] = {}  # by where a timer was set, and for how long: where it ran down
        self._last_ms = 0
        self._least = 0.0  # of all entries that are committed: how far their time is ahead of the truth
        self._counted: dict[int, tuple[int, int]] = {}  # by node: the term it leads, and what time it is there

    @property
    def real_us(self) -> int:
        """How much time really passed."""
        return self._now() + self._slept

    def slept(self, us: int) -> None:
        """So much time passed in a moment."""
        self._slept += us

    def appended(self, entry: Entry) -> None:
        """An entry is in some log; where it is seen first it was made."""
        self._appended.setdefault((index_of(entry), term_of(entry)), self.real_us)

    def committed(self, entry: Entry) -> None:
        """An entry is known to be committed; called in the order of the log, once for each."""
        index, time_ms = index_of(entry), time_of(entry)
        require(time_ms >= self._last_ms, f"log time goes back at entry {index}, from {self._last_ms} to {time_ms}")
        ahead = time_ms * _US_PER_MS - self._appended[index, term_of(entry)] * FASTEST
        require(
            ahead <= self._least + _US_PER_MS,
            f"log time runs ahead: at entry {index} it is {(ahead - self._least) / _US_PER_MS:.3f} ms too late",
        )
        self._last_ms, self._least = time_ms, min(self._least, ahead)
        self._committed[index] = time_ms
        self._when[index] = self._appended[index, term_of(entry)]

    def look(self, engine: Engine) -> None:
        """A node did something: no more time passed for it at once than an election timeout."""
        leader = engine.core.leader
        if leader is None:
            return
        settings = engine.core.settings
        term, before_ms = self._counted.get(engine.node_id, (0, 0))
        now_ms = leader.time.now_ms
        require(
            term != engine.core.term or now_ms - before_ms <= settings.election_ticks * settings.tick_ms,
            f"log time: {now_ms - before_ms} ms passed at once for leader {engine.node_id}",
        )
        self._counted[engine.node_id] = engine.core.term, now_ms

    def look_at_snapshot(self, engine: Engine) -> None:
        """What a node's snapshot says of log time is what its last entry says."""
        snapshot = engine.core.log.snapshot
        require(
            snapshot.time_ms == self._committed.get(snapshot.index, 0),
            f"log time: the snapshot of node {engine.node_id} at {snapshot.index} says {snapshot.time_ms}",
        )

    def ran_down(self, node_id: int, since: int, ttl_ms: int, index: int) -> None:
        """At `index` something ends that was to last for `ttl_ms` since `since`: not early, and there on all nodes."""
        first = self._ended.setdefault((since, ttl_ms), index)
        require(first == index, f"log time: what {since} began ends at {first} and, on node {node_id}, at {index}")
        lasted = (self._when[index] - self._when[since]) * FASTEST / _US_PER_MS
        require(
            lasted >= ttl_ms - 1,
            f"log time: what was to last for {ttl_ms} ms since entry {since} is over after {lasted:.1f}, at {index}",
        )

    def applied(self, engine: Engine) -> None:
        """A node applied a batch, or restored a snapshot: it knows the log time of the last entry."""
        machine = engine.applying.machine
        time_ms = self._committed.get(machine.applied_index, 0)
        require(
            machine.applied_time_ms == time_ms,
            f"log time: node {engine.node_id} says {machine.applied_time_ms} at {machine.applied_index}, not {time_ms}",
        )
