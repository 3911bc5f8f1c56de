"""How long a body may be that is sent to a peer: as long as nothing on the way refuses it (413).

What refuses may be gone the next day, or allow more.  So something longer is tried again now and
then, after twice the time whenever it is refused once more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

from raftsvc.transport.wire import MAX_BODY_BYTES

_LEAST_BYTES: Final = 2 * 1024
"""What refuses less than that lets no node through."""
_PATIENCE_SECONDS = 60.0
_MOST_PATIENCE_SECONDS = 3600.0
_REMEMBERED_SECONDS = 2 * _MOST_PATIENCE_SECONDS
"""So long after something was refused last it counts, though nothing longer was sent."""


class Limit(NamedTuple):
    """refused_bytes: the shortest body that was refused; passes_bytes: what is sent instead."""

    refused_bytes: int
    passes_bytes: int


class BodyLimit:
    """Of one way.  Used by one thread, save for `known`."""

    __slots__ = ("_clock", "_limit", "_patience", "_refused_at")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._patience = _PATIENCE_SECONDS
        self._refused_at = 0.0
        self._limit: Limit | None = None

    @property
    def known(self) -> Limit | None:
        """What there is, if something was refused; forgotten when nothing longer was sent for long."""
        limit = self._limit
        return limit if limit and self._clock() - self._refused_at < _REMEMBERED_SECONDS else None

    def size_bytes(self) -> int:
        """How long a body may be now."""
        limit = self.known
        if limit is None:
            return MAX_BODY_BYTES
        is_to_try = self._clock() - self._refused_at >= self._patience
        return min(MAX_BODY_BYTES, 2 * limit.passes_bytes) if is_to_try else limit.passes_bytes

    def passed(self, size_bytes: int) -> None:
        """A body of that size did."""
        limit = self._limit
        if limit is not None and size_bytes > limit.passes_bytes:
            self._limit = Limit(limit.refused_bytes, size_bytes) if size_bytes < limit.refused_bytes else None

    def forget(self) -> None:
        """It is another way."""
        self._limit = None

    def refused(self, size_bytes: int) -> bool:
        """One of that size was; whether a shorter one may pass."""
        limit = self.known
        self._refused_at = self._clock()
        if limit is not None and size_bytes > limit.passes_bytes:
            self._patience = min(_MOST_PATIENCE_SECONDS, 2 * self._patience)
            self._limit = Limit(min(limit.refused_bytes, size_bytes), limit.passes_bytes)
            return True
        self._patience = _PATIENCE_SECONDS
        self._limit = Limit(size_bytes, max(_LEAST_BYTES, size_bytes // 2))
        return size_bytes > _LEAST_BYTES
