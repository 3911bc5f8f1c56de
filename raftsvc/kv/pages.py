"""An ordered map of keys that can be frozen at once and serialized at leisure.

Keys are kept in order in pages of about a hundred.  A page never changes: a write
puts another in its place, so a copy of the list of pages shows its moment for good
to whoever holds it, and holds no more than the pages replaced meanwhile.  Nobody has
to say that a frozen view is done with: it is gone when its last reference is.

A page holds three parallel sequences rather than an object for each key, two of them
tuples of strings and bytes: these the garbage collector looks at once, and then never
again.  A full collection beside a million keys takes 8 ms; with lists in place of the
tuples, whose every element is visited each time, it stopped all threads for 60 ms.

Not thread-safe, but for frozen pages.

Invariants: `_bounds[0]` is empty and `_bounds` ascends; each key of page i is at
least `_bounds[i]` and below `_bounds[i + 1]`; keys within a page ascend.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import islice
from typing import Any, NamedTuple

MAX_PAGE_KEYS = 128


class Value(NamedTuple):
    """A value, and the version of its key: the index of the log entry that wrote it."""

    data: bytes
    version: int

    def json(self) -> Any:
        """What the data says as JSON; raises ValueError if it is none."""
        return json.loads(self.data)


class Page:
    """Some neighbouring keys in order, with their data and versions; not to be changed."""

    __slots__ = ("datas", "keys", "versions")

    def __init__(self, keys: tuple[str, ...], datas: tuple[bytes, ...], versions: array[int]) -> None:
        self.keys = keys
        self.datas = datas
        self.versions = versions

    def find(self, key: str) -> tuple[int, bool]:
        """The position where `key` is or would be, and whether it is there."""
        position = bisect_left(self.keys, key)
        return position, position < len(self.keys) and self.keys[position] == key

    def part(self, start: int, stop: int | None = None) -> Page:
        """The keys from position `start` to `stop`."""
        return Page(self.keys[start:stop], self.datas[start:stop], self.versions[start:stop])

    def replaced(self, position: int, data: bytes, version: int) -> Page:
        """With another value at `position`."""
        datas = list(self.datas)
        datas[position] = data
        versions = self.versions[:]
        versions[position] = version
        return Page(self.keys, tuple(datas), versions)

    def inserted(self, position: int, key: str, data: bytes, version: int) -> Page:
        """With one key more, before `position`."""
        keys, datas = list(self.keys), list(self.datas)
        keys.insert(position, key)
        datas.insert(position, data)
        versions = self.versions[:]
        versions.insert(position, version)
        return Page(tuple(keys), tuple(datas), versions)

    def deleted(self, position: int) -> Page:
        """Without the key at `position`."""
        versions = self.versions[:]
        del versions[position]
        keys, datas = self.keys, self.datas
        return Page(keys[:position] + keys[position + 1 :], datas[:position] + datas[position + 1 :], versions)


class PagedMap:
    """Keys in order, each with data and a version."""

    __slots__ = ("_bounds", "_count", "_pages")

    def __init__(self) -> None:
        self._bounds = [""]
        self._pages = [Page((), (), array("Q"))]
        self._count = 0

    @classmethod
    def of(cls, records: Iterable[tuple[str, bytes, int]]) -> PagedMap:
        """The map of those keys, which ascend, with data and version."""
        made = cls()
        ascending = iter(records)
        while some := tuple(islice(ascending, MAX_PAGE_KEYS)):
            keys, datas, versions = zip(*some, strict=True)
            made._bounds.append(keys[0])
            made._pages.append(Page(keys, datas, array("Q", versions)))
            made._count += len(keys)
        if made._count:
            del made._pages[0], made._bounds[0]
            made._bounds[0] = ""
        return made

    def __len__(self) -> int:
        return self._count

    def get(self, key: str) -> Value | None:
        """The value of `key`."""
        page = self._pages[bisect_right(self._bounds, key) - 1]
        position = bisect_left(page.keys, key)
        if position == len(page.keys) or page.keys[position] != key:
            return None
        return Value(page.datas[position], page.versions[position])

    def version(self, key: str) -> int:
        """The version of `key`; 0 if there is none."""
        value = self.get(key)
        return value.version if value else 0

    def set(self, key: str, data: bytes, version: int) -> None:
        """Give `key` this value."""
        number = bisect_right(self._bounds, key) - 1
        page = self._pages[number]
        keys = page.keys
        position = bisect_left(keys, key)
        if position < len(keys) and keys[position] == key:
            self._pages[number] = page.replaced(position, data, version)
        elif len(keys) >= MAX_PAGE_KEYS:
            self._split(number, key)
            self.set(key, data, version)
        else:
            self._count += 1
            self._pages[number] = page.inserted(position, key, data, version)

    def delete(self, key: str) -> None:
        """Have no such key."""
        number = bisect_right(self._bounds, key) - 1
        page = self._pages[number]
        position, exists = page.find(key)
        if not exists:
            return
        self._count -= 1
        if len(page.keys) == 1 and len(self._pages) > 1:
            del self._pages[number]
            del self._bounds[number]
            self._bounds[0] = ""
        else:
            self._pages[number] = page.deleted(position)

    def freeze(self, prefix: str = "") -> list[Page]:
        """The pages, as they are now, that hold every key that starts with `prefix`."""
        start = bisect_right(self._bounds, prefix) - 1
        # Of the bounds above the prefix, those that start with it come first.
        stop = bisect_left(self._bounds, True, lo=start + 1, key=lambda bound: not bound.startswith(prefix))
        return self._pages[start:stop]

    def _split(self, number: int, key: str) -> None:
        """Make two pages of a full one; `key`, not in it, is about to be added."""
        page = self._pages[number]
        is_appended = number == len(self._pages) - 1 and key > page.keys[-1]
        # Keys that arrive in order leave full pages behind, not halves.
        middle = len(page.keys) if is_appended else len(page.keys) // 2
        rest = page.part(middle)
        self._pages[number : number + 1] = page.part(0, middle), rest
        self._bounds.insert(number + 1, key if is_appended else rest.keys[0])
