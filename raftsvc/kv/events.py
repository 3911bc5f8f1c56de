"""What changed of late in the key-value store, entry by entry, and who waits for more of it.

Each process keeps the last changes that it applied, as a history bounded in number and in bytes.  It is no part of the
replicated state: positions in it are log indexes, so a reader goes on with the history of any node, from where it
was.  All changes of one entry, what expired before it included, are one unit, that is seen whole or not at all.

A reader is a position, and little is kept for it: a slow one holds what it took at once.  If what it has not read
yet was dropped, it is told so.  One that has read all waits by a cursor, and is looked for by what it waits for: so
whoever waits for other keys costs next to nothing, and has read whatever happened meanwhile.

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
from weakref import ReferenceType

from raftsvc.errors import RaftError
from raftsvc.kv.pages import Former, Value

WRITTEN, DELETED, EXPIRED = range(3)
_KINDS = ("set", "delete", "expire")

MAX_EVENTS = 10_000
MAX_EVENT_BYTES = 16 * 1024 * 1024
_CHANGE_BYTES = 150
"""What a change takes in memory beside its texts and values."""
_FEW = 64
"""So many cursors may wait before those are looked for whose owners are gone."""
_AT_ONCE, _BYTES_AT_ONCE = 256, 256 * 1024
"""Units that a reader takes at once, and then holds."""

Change: TypeAlias = tuple[int, str, bytes | None, Former]
"""What happened, to which key, what it has now, and what it had."""
Unit: TypeAlias = tuple[int, tuple[Change, ...], int]
"""Index of the entry, what it changed, and how large that is."""


class Compacted(RaftError):
    """What is asked for from `index` on is not kept any more, or is of another cluster.  List anew, and go on there.

    kept_after: the oldest position from which this process has all; None: of that cluster it has nothing.
    """

    http_status = 410
    http_detail = "What happened since then is not kept any more; list anew."

    def __init__(self, message: str, kept_after: int | None) -> None:
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
    is_listed: whether this is not how it came about, but what there is, or is no more, as it was found by listing:
               what `KeyValue.on_change` tells first, and where something was missed.  Then there is no `previous`.
    """

    kind: str
    key: str
    value: bytes | None
    index: int
    previous: Value | None
    is_listed: bool = False


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
        "_count",
        "_lengths",
        "_max_bytes",
        "_max_events",
        "_prefixes",
        "_prune_at",
        "_size_bytes",
        "_units",
        "_waiting",
        "_waiting_count",
        "floor",
    )

    def __init__(self, max_events: int, max_bytes: int) -> None:
        """The newest unit is kept, however large."""
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._units: deque[Unit] = deque()
        self._count = 0
        self._size_bytes = 0
        self.floor = 0
        self._waiting: dict[str, dict[Cursor, None]] = {}
        self._waiting_count = 0
        self._prune_at = _FEW
        self._prefixes: dict[int, int] = {}  # how many prefixes that are waited for have a length
        self._lengths: tuple[int, ...] = ()  # those lengths

    def add(self, index: int, changed: list[Change]) -> list[Cursor]:
        """All that entry `index` changed.  Returns those who are to be woken for it."""
        changes = _settled(changed) if len(changed) > 1 else (changed[0],)
        if not changes:
            return []
        added_bytes = 0
        for _, key, value, former in changes:
            added_bytes += _CHANGE_BYTES + len(key)
            if value is not None:
                added_bytes += len(value)
            if former is not None:
                added_bytes += len(former[0])
        units = self._units
        units.append((index, changes, added_bytes))
        count, size_bytes = self._count + len(changes), self._size_bytes + added_bytes
        while (count > self._max_events or size_bytes > self._max_bytes) and len(units) > 1:
            self.floor, dropped, dropped_bytes = units.popleft()
            count -= len(dropped)
            size_bytes -= dropped_bytes
        self._count, self._size_bytes = count, size_bytes
        waiting = self._waiting
        if not waiting:
            return []
        found: list[Cursor] = []
        for _, key, _, _ in changes:
            for length in self._lengths:
                prefix = key[:length]
                if prefix in waiting:
                    found += self._take_out(prefix)
        for cursor in found:
            cursor.is_waiting = False
            cursor.idle_until = index - 1
        return found

    def reset(self, index: int) -> list[Signal]:
        """The state became that of `index` at once: nobody knows what happened.  Returns all who waited."""
        self._units.clear()
        self._count = self._size_bytes = 0
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
        some: list[Unit] = []
        size_bytes = 0
        for unit in islice(units, start, start + _AT_ONCE):
            some.append(unit)
            size_bytes += unit[2]
            if size_bytes >= _BYTES_AT_ONCE:
                break
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
