"""An ordered map of keys that can be frozen at once and serialized at leisure.

Keys are kept in order in pages of a few hundred.  `freeze` takes the list of pages
and starts a new epoch; a page of an earlier epoch is copied before it is changed,
so whoever holds the frozen pages sees that moment for good, and pays for no more
than the pages changed meanwhile.  Nobody has to say that a frozen view is done with:
it is gone when its last reference is.

A page holds three parallel sequences rather than an object for each key: a million
keys are then not a million things for the garbage collector to visit, nor is
copying a page more than copying three arrays of references.

Not thread-safe, but for frozen pages, which nobody changes.

Invariants: `_bounds[0]` is empty and `_bounds` ascends; each key of page i is at
least `_bounds[i]` and below `_bounds[i + 1]`; keys within a page ascend.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_left, bisect_right
from typing import Any, NamedTuple

MAX_PAGE_KEYS = 512


class Value(NamedTuple):
    """A value, and the version of its key: the index of the log entry that wrote it."""

    data: bytes
    version: int

    def json(self) -> Any:
        """What the data says as JSON; raises ValueError if it is none."""
        return json.loads(self.data)


class Page:
    """Some neighbouring keys in order, with their data and versions."""

    __slots__ = ("datas", "epoch", "keys", "versions")

    def __init__(self, epoch: int, keys: list[str], datas: list[bytes], versions: array[int]) -> None:
        self.epoch = epoch
        self.keys = keys
        self.datas = datas
        self.versions = versions

    def part(self, epoch: int, start: int, stop: int | None = None) -> Page:
        """A copy of the keys from position `start` to `stop`, of that epoch."""
        return Page(epoch, self.keys[start:stop], self.datas[start:stop], self.versions[start:stop])


class PagedMap:
    """Keys in order, each with data and a version."""

    __slots__ = ("_bounds", "_count", "_epoch", "_pages")

    def __init__(self) -> None:
        self._epoch = 0
        self._bounds = [""]
        self._pages = [Page(0, [], [], array("Q"))]
        self._count = 0

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
        page = self._own(number)
        position = bisect_left(page.keys, key)
        if position < len(page.keys) and page.keys[position] == key:
            page.datas[position] = data
            page.versions[position] = version
            return
        if len(page.keys) >= MAX_PAGE_KEYS:
            self._split(number, key)
            self.set(key, data, version)
            return
        self._count += 1
        page.keys.insert(position, key)
        page.datas.insert(position, data)
        page.versions.insert(position, version)

    def delete(self, key: str) -> None:
        """Have no such key."""
        number = bisect_right(self._bounds, key) - 1
        page = self._pages[number]
        position = bisect_left(page.keys, key)
        if position == len(page.keys) or page.keys[position] != key:
            return
        self._count -= 1
        if len(page.keys) == 1 and len(self._pages) > 1:
            del self._pages[number]
            del self._bounds[number]
            self._bounds[0] = ""
            return
        page = self._own(number)
        del page.keys[position]
        del page.datas[position]
        del page.versions[position]

    def freeze(self, prefix: str = "") -> list[Page]:
        """The pages, as they are now and remain, that hold every key that starts with `prefix`."""
        self._epoch += 1
        start = bisect_right(self._bounds, prefix) - 1
        # Of the bounds above the prefix, those that start with it come first.
        stop = bisect_left(self._bounds, True, lo=start + 1, key=lambda bound: not bound.startswith(prefix))
        return self._pages[start:stop]

    def _own(self, number: int) -> Page:
        """That page, fit to be changed: copied first if a frozen view may hold it."""
        page = self._pages[number]
        if page.epoch != self._epoch:
            page = self._pages[number] = page.part(self._epoch, 0)
        return page

    def _split(self, number: int, key: str) -> None:
        """Make two pages of a full one of this epoch; `key`, not in it, is about to be added."""
        page = self._pages[number]
        is_appended = number == len(self._pages) - 1 and key > page.keys[-1]
        # Keys that arrive in order leave full pages behind, not halves.
        middle = len(page.keys) if is_appended else len(page.keys) // 2
        rest = page.part(self._epoch, middle)
        del page.keys[middle:], page.datas[middle:], page.versions[middle:]
        self._pages.insert(number + 1, rest)
        self._bounds.insert(number + 1, key if is_appended else rest.keys[0])
