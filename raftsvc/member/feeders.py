"""How connections of attached processes reach the feed of a running node: each in turns, as peers do."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Final

from raftsvc.member.applier import Applier
from raftsvc.member.attachment import Said
from raftsvc.member.engine import Engine
from raftsvc.member.errands import Errands
from raftsvc.member.feed import FeedError
from raftsvc.member.handoff import Signal
from raftsvc.member.turns import Turn

_BATCH_BYTES: Final = 256 * 1024


class Feeders:
    """The connections of attached processes at one node."""

    __slots__ = ("_applier", "_engine", "_errands", "_keys", "_turn")

    def __init__(self, engine: Engine, turn: Turn, applier: Applier, errands: Errands) -> None:
        self._engine = engine
        self._turn = turn
        self._applier = applier
        self._errands = errands
        self._keys = count(1)

    @property
    def pids(self) -> list[int]:
        """The processes that are attached."""
        with self._turn.lock:
            return self._engine.feed.pids

    def open(self, signal: Signal) -> int:
        """A connection is there; `signal` is given whenever there may be something to `take`."""
        with self._turn.lock:
            self._errands.feeders.append(signal)
            return next(self._keys)

    def close(self, key: int, signal: Signal) -> None:
        """It is over."""
        with self._turn.lock:
            self._engine.feed.detach(key)
            if signal in self._errands.feeders:
                self._errands.feeders.remove(signal)

    def hear(self, key: int, said: Sequence[Said]) -> None:
        """Take what came by a connection; this thread writes to the log if nobody does.

        Raises FeedError if it said what it may not, which is nobody's trouble but its own: it is heard no more.
        """
        turn, feed = self._turn, self._engine.feed
        refused: FeedError | None = None
        with turn:
            try:
                for each in said:
                    feed.hear(key, each)
            except FeedError as error:  # caught in the turn, for what leaves that is an error of the node
                feed.detach(key)
                refused = error
            turn.hands.applies_later = turn.hands.is_quick
            turn.drive(inline=True)
            turn.hands.applies_later = False
            work = self._applier.take_little_work()
        if work is not None:
            self._applier.apply(work)
        if refused is not None:
            raise refused

    def take(self, key: int) -> list[Said]:
        """What is to be sent next by a connection; nothing if there is nothing.  Raises FeedError."""
        with self._turn.lock:
            feed = self._engine.feed
            return feed.take(key, _BATCH_BYTES) if feed.is_due(key) else []
