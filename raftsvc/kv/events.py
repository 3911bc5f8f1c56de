"""What changed of late in the key-value store, entry by entry, and who waits for more of it.

Each process keeps the last changes that it applied, as a history bounded in number and in bytes.  It is no part of the
replicated state: positions in it are log indexes, so a reader goes on with the history of any node, from where it
was.  All changes of one entry, what expired before it included, are one unit, that is seen whole or not at all.

A reader is a cursor, and nothing is kept for it: a slow one costs nothing.  If what it has not read yet was
dropped, it is told so.  One that has read all waits, and is looked for by what it waits for: so whoever waits for
other keys costs nothing either, and has read whatever happened meanwhile.

Not thread-safe, but for `Signal`: whoever applies has a lock, `KeyValueState` its own.

Invariants:
- `_units` ascends by index, and has every change after `floor`.
- A cursor waits if and only if nothing that it waits for happened since.
"""

from __future__ import annotations

from _thread import allocate_lock
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

from raftsvc.errors import RaftError
from raftsvc.kv.pages import Former, Value

WRITTEN, DELETED, EXPIRED = range(3)
_KINDS = ("set", "delete", "expire")

MAX_EVENTS = 10_000
MAX_EVENT_BYTES = 16 * 1024 * 1024
_CHANGE_BYTES = 150
"""What a change takes in memory beside its texts and values."""
_FEW = 16
"""So many prefixes are looked through for the lengths that they have; of more, lengths that none has any more stay."""
_AT_ONCE = 256
"""Units that are copied under one hold of the lock."""

Change: TypeAlias = tuple[int, str, bytes | None, Former]
"""What happened, to which key, what it has now, and what it had."""
Unit: TypeAlias = tuple[int, tuple[Change, ...], int]
"""Index of the entry, what it changed, and how large that is."""


class Compacted(RaftError):
    """What is asked for from `index` on is not kept any more, or is of another cluster.  List anew, and go on there.

    kept_after: the oldest position from which this process has all.
    """

    http_status = 410
    http_detail = "What happened since then is not kept any more; list anew."

    def __init__(self, message: str, kept_after: int) -> None:
        super().__init__(message)
        self.kept_after = kept_after


@dataclass(frozen=True, slots=True)
class Event:
    """One key changed.

    kind:     "set": it was written, by a counter too; "delete"; "expire": its time was over.
    key:      which.
    value:    what it has now; None: there is no such key any more.
    index:    of the log entry that did it: the version of what was written.
    previous: what it had before, with its version; None: there was no such key.
    """

    kind: str
    key: str
    value: bytes | None
    index: int
    previous: Value | None


Happened: TypeAlias = list[tuple[int, list[Event]]]
"""The events of some entries, each with its index."""


def event_of(change: Change, index: int, cut: int) -> Event:
    """The event, with the first `cut` characters of the key left out."""
    kind, key, value, former = change
    return Event(_KINDS[kind], key[cut:], value, index, None if former is None else Value(*former))


def _settled(changes: Iterable[Change]) -> tuple[Change, ...]:
    """What one entry changed in all: what expired, and of each key what the instructions made of it together."""
    expired: list[Change] = []
    last: dict[str, Change] = {}
    for change in changes:
        kind, key, value, former = change
        if kind == EXPIRED:  # which comes first
            expired.append(change)
        else:
            first = last.get(key)
            last[key] = (kind, key, value, former if first is None else first[3])
    return (*expired, *(change for change in last.values() if change[2] is not None or change[3] is not None))


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
    """How far somebody has read of what begins with `prefix`.

    after:      all up to this index was read.
    is_waiting: whether nothing came since: then all was read up to what is applied.
    """

    __slots__ = ("after", "is_waiting", "prefix", "signal")

    def __init__(self, prefix: str, after: int, signal: Signal) -> None:
        self.prefix = prefix
        self.after = after
        self.signal = signal
        self.is_waiting = False


class History:
    """The last changes, and the cursors that wait for the next.

    floor: what changed up to this index is not kept.
    """

    __slots__ = ("_count", "_lengths", "_max_bytes", "_max_events", "_size_bytes", "_units", "_waiting", "floor")

    def __init__(self, max_events: int, max_bytes: int) -> None:
        """The newest unit is kept, however large."""
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._units: deque[Unit] = deque()
        self._count = 0
        self._size_bytes = 0
        self.floor = 0
        self._waiting: dict[str, dict[Cursor, None]] = {}
        self._lengths: tuple[int, ...] = ()  # of the prefixes that are waited for

    def add(self, index: int, changed: list[Change]) -> list[Cursor]:
        """All that entry `index` changed.  Returns those who are to be woken for it."""
        changes = _settled(changed) if len(changed) > 1 else (changed[0],)
        if not changes:
            return []
        size_bytes = 0
        for _, key, value, former in changes:
            size_bytes += _CHANGE_BYTES + len(key)
            if value is not None:
                size_bytes += len(value)
            if former is not None:
                size_bytes += len(former[0])
        units = self._units
        units.append((index, changes, size_bytes))
        self._count += len(changes)
        self._size_bytes += size_bytes
        while (self._count > self._max_events or self._size_bytes > self._max_bytes) and len(units) > 1:
            self.floor, dropped, dropped_bytes = units.popleft()
            self._count -= len(dropped)
            self._size_bytes -= dropped_bytes
        found: list[Cursor] = []
        waiting = self._waiting
        if waiting:
            for _, key, _, _ in changes:
                for length in self._lengths:
                    if key[:length] in waiting:
                        found += waiting.pop(key[:length])
        if found:
            self._note_lengths()
            for cursor in found:
                cursor.is_waiting = False
                cursor.after = index - 1
        return found

    def reset(self, index: int) -> list[Cursor]:
        """The state became that of `index` at once.  Returns all who waited."""
        self._units.clear()
        self._count = self._size_bytes = 0
        self.floor = index
        return self.leave_all()

    def leave_all(self) -> list[Cursor]:
        """All who waited, and do no longer."""
        found = [cursor for cursors in self._waiting.values() for cursor in cursors]
        for cursor in found:
            cursor.is_waiting = False
        self._waiting.clear()
        self._lengths = ()
        return found

    def some_after(self, index: int) -> list[Unit]:
        """The next units after `index`, not all at once.  Raises Compacted."""
        if index < self.floor:
            raise Compacted(
                f"what changed after entry {index} is kept only from {self.floor} on: list anew, and go on there",
                self.floor,
            )
        units = self._units
        if not units or units[-1][0] <= index:
            return []
        start = bisect_right(units, index, key=lambda unit: unit[0])
        return list(islice(units, start, start + _AT_ONCE))

    def wait(self, cursor: Cursor) -> None:
        """Have it woken by the next change that it waits for."""
        prefix = cursor.prefix
        cursor.is_waiting = True
        cursors = self._waiting.get(prefix)
        if cursors is None:
            cursors = self._waiting[prefix] = {}
            if len(prefix) not in self._lengths:
                self._lengths = (*self._lengths, len(prefix))
        cursors[cursor] = None

    def leave(self, cursor: Cursor) -> None:
        """It waits no longer, if it did."""
        if not cursor.is_waiting:
            return
        cursor.is_waiting = False
        prefix = cursor.prefix
        cursors = self._waiting[prefix]
        del cursors[cursor]
        if not cursors:
            del self._waiting[prefix]
            self._note_lengths()

    def _note_lengths(self) -> None:
        if not self._waiting:
            self._lengths = ()
        elif len(self._waiting) <= _FEW:
            self._lengths = tuple({len(prefix) for prefix in self._waiting})


def wake(cursors: Iterable[Cursor]) -> None:
    """Wake those who were waiting; under no lock."""
    for cursor in cursors:
        cursor.signal.set()
