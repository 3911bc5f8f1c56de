"""A number that many count."""

from __future__ import annotations

from raftsvc.kv import KeyValue


class Counter:
    """A number of 64 bits with its sign.  Made by `KeyValue.counter`.

        visits = store.counter("visits")
        print(visits.incr())
        visits.decr(2)
        print(visits.value())
        visits.reset()

    Each of these is one write or one read, and each write counts exactly once, however often it had to be sent: a
    caller that gets OutcomeUnknown does not know whether it counted, and nobody else is harmed by that.  What is
    returned was the number at one moment, and no two callers of `incr` are returned the same.
    """

    def __init__(self, store: KeyValue, name: str) -> None:
        """It is the key "counter:NAME", so whoever lists or watches keys sees it."""
        self._store = store
        self._key = f"counter:{name}"

    def incr(self, by: int = 1, timeout: float = 10.0) -> int:
        """Add `by`, and return what it became.  Raises CounterError if that is too large, and as `KeyValue.incr`."""
        return self._store.incr(self._key, by, timeout=timeout)

    def decr(self, by: int = 1, timeout: float = 10.0) -> int:
        """As `incr`, of the same number less than 0."""
        if isinstance(by, int) and not isinstance(by, bool):
            by = -by
        return self._store.incr(self._key, by, timeout=timeout)

    def value(self, timeout: float = 5.0, *, max_age: float | None = None) -> int:
        """What it is, 0 if nobody counted, as of a moment no earlier than this call, or than `max_age` seconds ago."""
        found = self._store.get(self._key, timeout, max_age=max_age)
        return 0 if found is None else int(found.data)

    def reset(self, to: int = 0, timeout: float = 10.0) -> None:
        """Have it be that, whatever it was.  What is counted at the same time comes before it, or after."""
        if not isinstance(to, int) or isinstance(to, bool) or not -(2**63) <= to < 2**63:
            raise TypeError(f"a counter is an int of 64 bits, not {to!r:.100}")
        self._store.set(self._key, b"%d" % to, timeout=timeout)
