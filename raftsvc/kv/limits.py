"""How much of what is limited to so many in some time is used: leaky buckets, by log time.

A bucket of `n` takes one in for each use, and loses them evenly, all of `n` in `per_ms`; what would have it overflow is
not allowed, and leaves it as it was.  So in any stretch of t there are at most n + n * t / per_ms uses, never more than
n at once, and n in each `per_ms` over time.  A window with a fixed begin would allow 2 n within a moment, one half at
its end and one at the begin of the next, and have all come back at once; one that slides exactly has to keep each use.

All is counted in whole numbers, in units of which one use is `per_ms`, and n are lost in a millisecond: nothing is ever
rounded.  A bucket that is empty is as one that is not there, so it is taken out as soon as log time says so; nobody
waits for that, so nothing is written for it.

Deterministic; knows no threads.  Snapshots freeze the buckets at once (`kv.pages`).

Invariant: every bucket that is there expires when it is empty, and in its record use is at most `n * per_ms`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from raftsvc.kv.expiry import MAX_DEADLINE_MS, Expiries
from raftsvc.kv.pages import Page, PagedMap, records_of
from raftsvc.process import give_way

LIMIT_BYTES: Final = 400
"""What a bucket takes in memory beside its name, which is there three times."""
LEVEL: Final = struct.Struct(">QQQQ")
"""What is kept of a bucket: n, per_ms, how much of it is used, and at which log time that was."""
ADMITTED: Final = struct.Struct(">?QQQ")
"""The answer: whether it is allowed, how many more are, when all will be again, and when that would be (0: it is)."""


class Limits:
    """Buckets by their names.

    empty: when each is.
    """

    __slots__ = ("_levels", "empty")

    def __init__(self) -> None:
        self._levels = PagedMap()
        self.empty = Expiries()

    @classmethod
    def of(cls, records: Iterable[tuple[str, bytes, int]]) -> Limits:
        """Those of the names, which ascend."""
        made = cls()
        made._levels = PagedMap.of(records)
        for page in made._levels.freeze():
            for name, data, _ in records_of(page):
                n, _, used, at_ms = LEVEL.unpack(data)
                made.empty.set(name, _empty_ms(n, used, at_ms))
            give_way()
        return made

    def freeze(self) -> list[Page]:
        """All as they are now."""
        return self._levels.freeze()

    def __len__(self) -> int:
        return len(self._levels)

    @property
    def size_bytes(self) -> int:
        """About what they take in memory."""
        return 3 * self._levels.size_bytes + LIMIT_BYTES * len(self._levels)

    def forget_some(self, time_ms: int) -> None:
        """Take out some of those that are empty by then."""
        for name in self.empty.take(time_ms):
            self._levels.delete(name)

    def growth_bytes(self, name: str) -> int:
        """How much larger all would be once that one was used."""
        if self._levels.version(name):
            return 0
        return LIMIT_BYTES + 3 * (len(name.encode()) + LEVEL.size)

    def admit(self, name: str, n: int, per_ms: int, cost: int, time_ms: int) -> bytes:
        """Use it so often, if that is allowed; returns what `ADMITTED` reads.

        Where it was another n or per_ms, the same share of it is used as was.
        """
        most = n * per_ms
        used = 0
        found = self._levels.get(name)
        if found is not None:
            former_n, former_per_ms, used, at_ms = LEVEL.unpack(found.data)
            used = max(used - former_n * (time_ms - at_ms), 0)
            if (former_n, former_per_ms) != (n, per_ms):
                used = _ceil(used * most, former_n * former_per_ms)
        needed = used + cost * per_ms
        is_allowed = needed <= most
        if is_allowed:
            used = needed
        if used:
            self._levels.set(name, LEVEL.pack(n, per_ms, used, time_ms), 1)
            self.empty.set(name, _empty_ms(n, used, time_ms))
        return ADMITTED.pack(
            is_allowed, (most - used) // per_ms, _ceil(used, n), 0 if is_allowed else _ceil(needed - most, n)
        )


def _empty_ms(n: int, used: int, at_ms: int) -> int:
    return min(at_ms + _ceil(used, n), MAX_DEADLINE_MS)


def _ceil(number: int, divisor: int) -> int:
    return -(-number // divisor)


def checked(data: bytes) -> bytes:
    """The same; raises ValueError if it is the record of no bucket."""
    if len(data) != LEVEL.size:
        raise ValueError("the record of a limit has another length")
    n, per_ms, used, at_ms = LEVEL.unpack(data)
    if not n or not per_ms or not 0 < used <= n * per_ms < 2**63 or at_ms > MAX_DEADLINE_MS:
        raise ValueError("the record of a limit makes no sense")
    return data
