"""Who waits, in this process, for something to happen to claims: to one of its own, or to any on a name.

A waiter is woken once, and looks how things are.  Not thread-safe: whoever applies has a lock.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from raftsvc.kv.history import Signal

Place: TypeAlias = str | tuple[str, str, int]
"""What is waited for: a name, or a name, a lease and the number of a claim."""


class Waiters:
    """Signals, by what they wait for."""

    __slots__ = ("_signals",)

    def __init__(self) -> None:
        self._signals: dict[Place, list[Signal]] = {}

    def wait(self, place: Place, signal: Signal) -> None:
        """Have it set once something happens there."""
        signals = self._signals.setdefault(place, [])
        if signal not in signals:
            signals.append(signal)

    def leave(self, place: Place, signal: Signal) -> None:
        """It waits no longer, if it did."""
        signals = self._signals.get(place)
        if signals is not None and signal in signals:
            signals.remove(signal)
            if not signals:
                del self._signals[place]

    def take(self, changed: Iterable[tuple[str, str, int]]) -> list[Signal]:
        """Those who wait for one of these claims, or for its name; they wait no longer."""
        if not self._signals:
            return []
        found: list[Signal] = []
        for claim in changed:
            found += self._signals.pop(claim, ())
            found += self._signals.pop(claim[0], ())
        return found

    def take_all(self) -> list[Signal]:
        """All who wait; they do no longer."""
        found = [signal for signals in self._signals.values() for signal in signals]
        self._signals.clear()
        return found
