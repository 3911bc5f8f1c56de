"""Which keys live and die with which lease.

Two ordered maps that say the same, as with keys that expire: the lease of each key that has one, and for each lease
its keys in order.  They are pages like those of the keys, so a snapshot freezes them at once.

Not thread-safe, but for frozen pages.

Invariant: `_by_key` has `key` with a lease if and only if `_by_lease` has both as one text.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from raftsvc.kv.pages import Page, PagedMap, records_of
from raftsvc.kv.transactions import LEASE_DIGITS
from raftsvc.process import give_way

LEASED_BYTES: Final = 200
"""What it takes in memory that a key has a lease, beside the key itself, twice."""
_SOME: Final = 128


def _size_of(key: str) -> int:
    return LEASED_BYTES + 2 * len(key.encode())


class LeasedKeys:
    """Keys that have a lease.

    size_bytes: about what they take in memory.
    """

    __slots__ = ("_by_key", "_by_lease", "size_bytes")

    def __init__(self) -> None:
        self._by_key = PagedMap()
        self._by_lease = PagedMap()
        self.size_bytes = 0

    @classmethod
    def of(cls, records: Iterable[tuple[str, bytes, int]]) -> LeasedKeys:
        """Those of the keys, which ascend, each with its lease for data."""
        made = cls()
        made._by_key = PagedMap.of(records)
        for page in made._by_key.freeze():
            for key, lease, _ in records_of(page):
                made._by_lease.set(lease.decode() + key, b"", 1)
                made.size_bytes += _size_of(key)
            give_way()
        return made

    def __len__(self) -> int:
        return len(self._by_key)

    def growth_bytes(self, key: str, is_leased: bool) -> int:
        """How much larger it would be if `key` had a lease from now on, or none."""
        has = self._by_key.version(key) != 0
        return _size_of(key) * (int(is_leased) - int(has))

    def attach(self, key: str, lease: str) -> None:
        """Have it live and die with that lease, and no other."""
        self.detach(key)
        self._by_key.set(key, lease.encode(), 1)
        self._by_lease.set(lease + key, b"", 1)
        self.size_bytes += _size_of(key)

    def detach(self, key: str) -> None:
        """It has no lease any more, if it had one."""
        if not self.size_bytes:
            return
        former = self._by_key.delete(key)
        if former is not None:
            self._by_lease.delete(former[0].decode() + key)
            self.size_bytes -= _size_of(key)

    def take(self, lease: str) -> list[str]:
        """Take out some of its keys, in their order; none: there are no more."""
        if not self.size_bytes:
            return []
        texts: list[str] = []
        for page in self._by_lease.freeze(lease):
            texts += [text for text, _, _ in records_of(page) if text.startswith(lease)]
            if len(texts) >= _SOME:
                break
        keys = [text[LEASE_DIGITS:] for text in texts]
        for key in keys:
            self.detach(key)
        return keys

    def freeze(self) -> list[Page]:
        """The keys as they are now, each with its lease for data."""
        return self._by_key.freeze()
