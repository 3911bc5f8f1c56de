"""What stands in queues: items in the order in which they came, until who had one says that it is done.

Who waits for an item, who has one, and until when, is the business of `kv.holds`: a queue is a name there that can be
granted once for each item that nobody has.  What was given back stands where it stood before: at its place in the
order of ids.  An item that was given back untold times, its limit, goes to the end of another queue, that of the dead.

An item's id follows the log: it is the index of the entry with which the item came, or the next number if that one is
taken.  So it is never given again, after a backup was restored neither.  How often an item was handed out is its fence:
it rises with each time, and nobody has two items of one id.  Where a cluster goes on from a backup it rises above all
that were given out since, of which nothing is known (`base`).

Deterministic; knows no threads.  Snapshots freeze the items at once (`kv.pages`).

Invariants:
- An item is ready or taken, and never both.
- No id is above `last_id`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from heapq import heappop, heappush
from typing import Final

from raftsvc.kv.pages import Page, PagedMap, records_of
from raftsvc.process import give_way

ITEM_BYTES: Final = 200
"""What an item takes in memory beside its name and value."""
DEAD: Final = ":dead"
"""What the name of a queue has at its end where those items of it are that were given back too often."""
ID_DIGITS: Final = 16
"""Of an item's id, in hexadecimal, in the name of the item: that of the queue, a slash, and this."""
MAX_TRIES: Final = 2**16 - 1
_MAX_FENCE: Final = 2**32 - 1
_NAME: Final = re.compile(rf"(.+)/([0-9a-f]{{{ID_DIGITS}}})", re.DOTALL)


def name_of(queue: str, item: int) -> str:
    """Of an item, in the whole store."""
    return f"{queue}/{item:0{ID_DIGITS}x}"


def _packed(max_tries: int, failures: int, fence: int) -> int:
    return max_tries << 48 | failures << 32 | fence


def unpacked(version: int) -> tuple[int, int, int]:
    """How often an item may be tried (0: for ever), how often it was given back, and how often handed out."""
    return version >> 48, version >> 32 & MAX_TRIES, version & _MAX_FENCE


class Items:
    """The items of all queues.

    last_id: of the item that came last.
    base:    what is added to how often an item was handed out, for a fence.
    """

    __slots__ = ("_items", "_ready", "_taken", "base", "last_id")

    def __init__(self) -> None:
        self._items = PagedMap()  # by their names; what `_packed` made is the version
        self._ready: dict[str, list[int]] = {}  # the ids of those that nobody has, of each queue, as a heap
        self._taken: dict[str, set[int]] = {}  # the ids of those that somebody has
        self.last_id = 0
        self.base = 0

    @classmethod
    def of(
        cls, records: Iterable[tuple[str, bytes, int]], last_id: int, taken: set[tuple[str, int]], base: int = 0
    ) -> Items:
        """Those of the names, which ascend.  taken: queue and id of those that somebody has.

        Raises ValueError if one of these is not there, or a name is that of no item.
        """
        made = cls()
        made._items = PagedMap.of(records)
        made.last_id = last_id
        made.base = base
        for page in made._items.freeze():
            for name, _, _ in records_of(page):
                found = _NAME.fullmatch(name)
                if found is None or not 0 < int(found[2], 16) <= last_id:
                    raise ValueError(f"{name!r} is no item of a queue")
                queue, item = found[1], int(found[2], 16)
                if (queue, item) in taken:
                    made._taken.setdefault(queue, set()).add(item)
                else:
                    made._ready.setdefault(queue, []).append(item)  # they ascend, so it is a heap
            give_way()
        if sum(map(len, made._taken.values())) != len(taken):
            raise ValueError("an item that somebody has is not there")
        return made

    def freeze(self) -> list[Page]:
        """All as they are now."""
        return self._items.freeze()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def size_bytes(self) -> int:
        """About what they take in memory."""
        return self._items.size_bytes + ITEM_BYTES * len(self._items)

    def counts(self, queue: str) -> tuple[int, int]:
        """How many of its items nobody has, and how many somebody."""
        return len(self._ready.get(queue, ())), len(self._taken.get(queue, ()))

    def ready(self, queue: str) -> int:
        """How many of its items nobody has."""
        return len(self._ready.get(queue, ()))

    def put(self, queue: str, data: bytes, max_tries: int, index: int) -> int:
        """Have another item at its end; returns the id.  max_tries: then it goes to the dead; 0: it never does."""
        self.last_id = item = max(self.last_id + 1, index)
        self._items.set(name_of(queue, item), data, _packed(max_tries, 0, 0))
        heappush(self._ready.setdefault(queue, []), item)
        return item

    def take(self, queue: str) -> int:
        """Hand out the first of those that nobody has."""
        ready = self._ready[queue]
        item = heappop(ready)
        if not ready:
            del self._ready[queue]
        name = name_of(queue, item)
        found = self._items.get(name)
        assert found is not None, "whatever is ready is there"
        max_tries, failures, fence = unpacked(found.version)
        self._items.set(name, found.data, _packed(max_tries, failures, min(fence + 1, _MAX_FENCE)))
        self._taken.setdefault(queue, set()).add(item)
        return item

    def give_back(self, queue: str, item: int, index: int, is_failure: bool) -> str:
        """Somebody has it no more, and it is not done; returns in which queue it is ready now.

        is_failure: whether that counts as a try.
        """
        name = name_of(queue, item)
        data, version = self.get(queue, item)
        max_tries, failures, fence = unpacked(version)
        failures = min(failures + is_failure, MAX_TRIES)
        self._let_go(queue, item)
        if max_tries and failures >= max_tries:
            self._items.delete(name)
            self.put(queue + DEAD, data, 0, index)
            return queue + DEAD
        self._items.set(name, data, _packed(max_tries, failures, fence))
        heappush(self._ready.setdefault(queue, []), item)
        return queue

    def remove(self, queue: str, item: int) -> None:
        """Whoever has it is done with it."""
        self._items.delete(name_of(queue, item))
        self._let_go(queue, item)

    def get(self, queue: str, item: int) -> tuple[bytes, int]:
        """What it says, and what `unpacked` reads, of one that somebody has."""
        found = self._items.get(name_of(queue, item))
        assert found is not None, "whatever is taken is there"
        return found.data, found.version

    def is_taken(self, name: str, fence: int) -> bool:
        """Whether somebody has the item of that name, and it was handed out with that fence."""
        found = self._items.get(name)
        if found is None or self.base + unpacked(found.version)[2] != fence:
            return False
        return int(name[-ID_DIGITS:], 16) in self._taken.get(name[: -ID_DIGITS - 1], ())

    def _let_go(self, queue: str, item: int) -> None:
        taken = self._taken[queue]
        taken.remove(item)
        if not taken:
            del self._taken[queue]
