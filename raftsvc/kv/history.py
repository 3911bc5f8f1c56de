"""The last changes of the key-value store, entry by entry, and who waits for more of them.

Each process keeps the last changes that it applied, bounded in number and in bytes.  It is no part of the
replicated state: positions in it are log indexes, so a reader goes on with the history of any node, from where it
was.  All changes of one entry, what expired before it included, are one unit, that is seen whole or not at all.

A reader is a position, and little is kept for it: a slow one holds what it took at once.  If what it has not read
yet was dropped, it is told so.  One that has read all waits by a cursor, and is looked for by what it waits for: so
whoever waits for other keys costs next to nothing, and has read whatever happened meanwhile.

Not thread-safe, but for `Signal`: whoever applies has a lock.

Invariants:
- `_changes` ascends by index, and has every change after `floor`.
- A cursor waits if and only if nothing that it waits for happened since.
"""

from __future__ import annotations

from _thread import allocate_lock
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from itertools import groupby, islice
from operator import itemgetter
from typing import Final, TypeAlias
from weakref import ReferenceType

from raftsvc.kv.pages import Former
from raftsvc.process import give_way

WRITTEN: Final = 0
DELETED: Final = 1
EXPIRED: Final = 2

_CHANGE_BYTES: Final = 150
"""What a change takes in memory beside its texts and values."""
_STRETCH: Final = 256
"""Changes between two looks at whether another thread waits."""
_FEW: Final = 64
"""So many cursors may wait before those are looked for whose owners are gone."""
_AT_ONCE: Final = 256
_BYTES_AT_ONCE: Final = 256 * 1024
"""So much a reader takes at once, or one entry, and then holds."""

Change: TypeAlias = tuple[int, int, str, bytes | None, Former]
"""By which entry what happened, to which key, what it has now, and what it had."""

_index_of = itemgetter(0)
_key_of, _value_of, _former_of = itemgetter(2), itemgetter(3), itemgetter(4)


def _settled(changes: list[Change]) -> list[Change]:
    """What each entry changed in all: what expired, and of each key what the instructions made of it together."""
    settled: list[Change] = []
    for index, of_entry in groupby(changes, _index_of):
        last: dict[str, Change] = {}
        for position, change in enumerate(of_entry):
            if position % _STRETCH == _STRETCH - 1:
                give_way()
            _, kind, key, value, former = change
            if kind == EXPIRED:  # which comes first
                settled.append(change)
            else:
                first = last.get(key)
                last[key] = (index, kind, key, value, former if first is None else first[4])
        settled += [change for change in last.values() if change[3] is not None or change[4] is not None]
    return settled


def _size_of(change: Change) -> int:
    """About what it takes in memory."""
    _, _, key, value, former = change
    return _CHANGE_BYTES + len(key) + len(value or b"") + (len(former[0]) if former else 0)


def _size_of_all(changes: list[Change]) -> int:
    """The same of several, without a call for each."""
    texts = sum(map(len, map(_key_of, changes))) + sum(map(len, filter(None, map(_value_of, changes))))
    return _CHANGE_BYTES * len(changes) + texts + sum([len(had[0]) for had in map(_former_of, changes) if had])


class Signal:
    """Wakes one thread that waits, or is about to.  Any thread may."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._lock.acquire()

    def arm(self) -> None:
        """Wait for what comes from now on."""
        self._lock.acquire(blocking=False)

    def set(self) -> None:
        """Wake it."""
        with suppress(RuntimeError):  # it was woken already
            self._lock.release()

    def wait(self, seconds: float) -> None:
        """Return once it is woken, or the time is over."""
        self._lock.acquire(timeout=max(seconds, 0.0))


class Cursor:
    """Somebody who reads what begins with `prefix`, and may be waiting for more of it.

    owner:      who is woken by its signal, if that one may be gone without a word.
    is_waiting: whether it is to be woken.
    idle_until: up to this index nothing happened that it waits for, since it began to wait last.
    """

    __slots__ = ("idle_until", "is_waiting", "owner", "prefix", "signal")

    def __init__(self, prefix: str, signal: Signal, owner: ReferenceType[object] | None = None) -> None:
        self.prefix = prefix
        self.signal = signal
        self.owner = owner
        self.is_waiting = False
        self.idle_until = 0

    @property
    def is_gone(self) -> bool:
        """Whether nobody reads by it any more."""
        return self.owner is not None and self.owner() is None


class History:
    """The last changes, and the cursors that wait for the next.

    floor: what changed up to this index is not kept.
    """

    __slots__ = (
        "_changes",
        "_lengths",
        "_max_bytes",
        "_max_events",
        "_prefixes",
        "_prune_at",
        "_size_bytes",
        "_waiting",
        "_waiting_count",
        "floor",
    )

    def __init__(self, max_events: int, max_bytes: int) -> None:
        """The newest unit is kept, however large."""
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._changes: deque[Change] = deque()
        self._size_bytes = 0  # of all of these
        self.floor = 0
        self._waiting: dict[str, dict[Cursor, None]] = {}
        self._waiting_count = 0
        self._prune_at = _FEW
        self._prefixes: dict[int, int] = {}  # how many prefixes that are waited for have a length
        self._lengths: tuple[int, ...] = ()  # those lengths

    def add(self, changes: list[Change]) -> list[Cursor]:
        """All that some entries changed, in order.  Returns those who are to be woken for it."""
        if len(changes) > 1 and len(set(map(_index_of, changes))) < len(changes):
            changes = _settled(changes)
        self._changes += changes
        for start in range(0, len(changes), _STRETCH):
            self._size_bytes += _size_of_all(changes[start : start + _STRETCH])
            give_way()
        if len(self._changes) > self._max_events or self._size_bytes > self._max_bytes:
            self._drop_some()
        return self._take_woken(changes) if self._waiting else []

    def _drop_some(self) -> None:
        """Keep no more than may be."""
        changes = self._changes
        newest: int = changes[-1][0]
        oldest: int = changes[0][0]
        while oldest != newest and (len(changes) > self._max_events or self._size_bytes > self._max_bytes):
            self.floor = oldest
            while changes[0][0] == self.floor:
                self._size_bytes -= _size_of(changes.popleft())
            oldest = changes[0][0]

    def _take_woken(self, changes: list[Change]) -> list[Cursor]:
        """Those who waited for any of these, and do no longer."""
        waiting = self._waiting
        found: list[Cursor] = []
        for index, _, key, _, _ in changes:
            for length in self._lengths:
                prefix = key[:length]
                if prefix in waiting:
                    for cursor in self._take_out(prefix):
                        cursor.is_waiting = False
                        cursor.idle_until = index - 1
                        found.append(cursor)
        return found

    def reset(self, index: int) -> list[Signal]:
        """The state became that of `index` at once: nobody knows what happened.  Returns all who waited."""
        self._changes.clear()
        self._size_bytes = 0
        self.floor = index
        return self._leave_all(0)

    def wake_all(self, complete: int) -> list[Signal]:
        """All who waited, while all was applied up to `complete`, and do no longer."""
        return self._leave_all(complete)

    def _leave_all(self, idle_until: int) -> list[Signal]:
        found = [cursor for prefix in list(self._waiting) for cursor in self._take_out(prefix)]
        for cursor in found:
            cursor.is_waiting = False
            cursor.idle_until = idle_until
        return [cursor.signal for cursor in found]

    def some_after(self, index: int) -> list[Change] | None:
        """The next changes after `index`, whole entries, not all at once; None: they are not all kept."""
        if index < self.floor:
            return None
        changes = self._changes
        if not changes or changes[-1][0] <= index:
            return []
        start = bisect_right(changes, index, key=_index_of)
        some: list[Change] = []
        size_bytes = 0
        for change in islice(changes, start, None):
            if (len(some) >= _AT_ONCE or size_bytes >= _BYTES_AT_ONCE) and some[-1][0] != change[0]:
                break
            some.append(change)
            size_bytes += _size_of(change)
        return some

    def wait(self, cursor: Cursor) -> None:
        """Have it woken by the next change that it waits for."""
        prefix = cursor.prefix
        cursor.is_waiting = True
        cursors = self._waiting.get(prefix)
        if cursors is None:
            cursors = self._waiting[prefix] = {}
            length = len(prefix)
            self._prefixes[length] = self._prefixes.get(length, 0) + 1
            if self._prefixes[length] == 1:
                self._lengths = tuple(self._prefixes)
        cursors[cursor] = None
        self._waiting_count += 1
        if self._waiting_count > self._prune_at:
            self._prune()

    def leave(self, cursor: Cursor, complete: int) -> None:
        """It waits no longer, if it did, while all was applied up to `complete`."""
        if not cursor.is_waiting:
            return
        cursor.is_waiting = False
        cursor.idle_until = complete
        cursors = self._waiting[cursor.prefix]
        del cursors[cursor]
        self._waiting_count -= 1
        if not cursors:
            self._take_out(cursor.prefix)

    def _take_out(self, prefix: str) -> dict[Cursor, None]:
        cursors = self._waiting.pop(prefix)
        self._waiting_count -= len(cursors)
        length = len(prefix)
        self._prefixes[length] -= 1
        if not self._prefixes[length]:
            del self._prefixes[length]
            self._lengths = tuple(self._prefixes)
        return cursors

    def _prune(self) -> None:
        """Forget those whose owners are gone; now and then, so that it costs each of them little."""
        for cursor in [each for cursors in self._waiting.values() for each in cursors if each.is_gone]:
            self.leave(cursor, 0)
        self._prune_at = max(2 * self._waiting_count, _FEW)


def wake(signals: Iterable[Signal]) -> None:
    """Wake those who were waiting; under no lock."""
    for signal in signals:
        signal.set()
