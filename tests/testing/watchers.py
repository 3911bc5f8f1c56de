"""Who watches the stores of simulated clusters: some at every replica, each with a copy that it makes of what it hears.

After any entry one may look, and what it is told must be, as etcd's robustness tests name it: ordered and unique (no
entry again, nor one before another), atomic (all events of an entry at once, the same at every replica), reliable
(whoever came as far as its replica has the keys, values and versions that this has, and each event says what was there
before) and resumable (one goes on where another, at any replica and any time, had come to).  Who fell behind what is
kept is told, and lists anew.

They draw from a Random of their own: that they look changes nothing.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from raftsvc import kv
from raftsvc.kv.events import Compacted, Event
from raftsvc.kv.history import Cursor, Signal
from raftsvc.testing import Violation

PREFIXES = ("", "watched/")
KEPT = 25
"""Changes that are kept at a replica: few, so that whoever is slow falls behind."""
_MOST_PLACES = 20


class Place(NamedTuple):
    """Up to where one had come, and its copy there."""

    after: int
    copy: dict[str, kv.Value]


class Told:
    """What all of them were told.

    units: the events of an entry, by prefix and index.
    counts: of what happened to watchers.
    """

    def __init__(self) -> None:
        self.units: dict[tuple[str, int], list[Event]] = {}
        self.counts = {"resumed": 0, "compacted": 0, "compared": 0}
        self.watchers = 0
        self._places: dict[str, list[Place]] = {prefix: [] for prefix in PREFIXES}

    def note(self, prefix: str, index: int, events: list[Event]) -> None:
        known = self.units.setdefault((prefix, index), events)
        if known != events:
            raise Violation(f"watch: entry {index} is told as {events}, and as {known} at another replica")

    def leave(self, prefix: str, place: Place) -> None:
        """Somebody may go on from there."""
        places = self._places[prefix]
        places.append(place)
        del places[:-_MOST_PLACES]

    def resume(self, prefix: str, random: Random) -> Place:
        places = self._places[prefix]
        if not places or random.random() < 0.3:
            return Place(0, {})
        self.counts["resumed"] += 1
        return random.choice(places)


class Watcher:
    """One who watches at one replica."""

    def __init__(self, state: kv.KeyValueState, told: Told) -> None:
        told.watchers += 1
        self._random = random = Random(f"raftsvc watcher {told.watchers}")
        self._state = state
        self._told = told
        self._prefix = random.choice(PREFIXES)
        self._begin()

    def _begin(self) -> None:
        self._cursor = Cursor(self._prefix, Signal())
        self._after, copy = self._told.resume(self._prefix, self._random)
        self._copy = dict(copy)

    def applied(self) -> None:
        """Its replica went on: it may look, or not yet."""
        chance = self._random.random()
        if chance < 0.3:
            self._look()
        elif chance < 0.32:
            self._told.leave(self._prefix, Place(self._after, dict(self._copy)))
        elif chance < 0.34:
            self._state.leave(self._cursor)
            self._begin()

    def _look(self) -> None:
        state, prefix, counts = self._state, self._prefix, self._told.counts
        try:
            units, after = state.advance(self._cursor, self._after)
        except Compacted:
            counts["compacted"] += 1
            self._copy, self._after = state.list_at(prefix)
            return
        if after < self._after:
            raise Violation(f"watch: one who has what was up to {self._after} is at {after}")
        for index, events in units:
            if not self._after < index <= after:
                raise Violation(f"watch: entry {index} is told to one who has what was up to {self._after}")
            self._told.note(prefix, index, events)
            for event in events:
                self._take(event, index)
            self._after = index
        self._after = after
        there, index = state.list_at(prefix)
        if index == self._after:
            counts["compared"] += 1
            if there != self._copy:
                raise Violation(f"watch: who was told all up to {index} has {self._copy}, and there is {there}")

    def _take(self, event: Event, index: int) -> None:
        if event.index != index or event.is_listed or event.previous != self._copy.get(event.key):
            raise Violation(f"watch: {event} in entry {index}, and there was {self._copy.get(event.key)}")
        if (event.kind == "set") is (event.value is None):
            raise Violation(f"watch: {event} has what its kind has not")
        if event.value is None:
            self._copy.pop(event.key, None)
        else:
            self._copy[event.key] = kv.Value(event.value, index)
