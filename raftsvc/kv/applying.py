"""Applying transactions to the content of the key-value store, entry by entry, and noting what they changed.

Keys expire by log time, and only while something is applied: before an entry takes effect, what is
due by its time is gone.  Until such an entry was applied here a key that is due is still shown.

Invariants:
- A transaction takes effect within one hold of the lock.  What expires goes one key after another, and so does
  what a lease has that is ended.
- While the content is plain (`Content.is_plain`) nothing is due, and a lone SET changes nothing but its key.
- What an entry changes, by one instruction or by several, is in the history once all of it was applied, and as soon
  as whoever applies says so (`settle`); what is not yet is in `content.changes`.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from functools import partial
from operator import itemgetter
from typing import Final

from raftsvc.kv.content import Content
from raftsvc.kv.expiry import NEVER
from raftsvc.kv.history import EXPIRED, WRITTEN, History, Signal
from raftsvc.kv.orders import decode as decode_order
from raftsvc.kv.orders import is_order
from raftsvc.kv.transactions import decode, decode_lone_set
from raftsvc.kv.waiters import Waiters
from raftsvc.process import give_way

_MANY: Final = 256
"""Changes that wait to be noted; else a log that is replayed would hold all of its own."""

_index_of = itemgetter(0)


class Applying:
    """The content of a store, its history, and who waits for more.

    lock:          held by whoever looks at any of them, but the two numbers, and never during I/O.
    applied_index: of the last entry that was applied.
    complete:      up to which entry all of what was changed is in the history.
    """

    __slots__ = ("_is_plain", "_woken", "applied_index", "complete", "content", "history", "lock", "waiters")

    def __init__(self, max_events: int, max_event_bytes: int) -> None:
        self.lock = threading.Lock()
        self.content = Content()
        self._is_plain = True
        self.history = History(max_events, max_event_bytes)
        self.waiters = Waiters()
        self._woken: list[Signal] = []  # to be woken once what is applied together was applied
        self.applied_index = 0
        self.complete = 0

    def apply_at(self, data: bytes, index: int, time_ms: int) -> object:
        """See `KeyValueState.apply_at`."""
        content = self.content
        if len(content.changes) >= _MANY:
            self._note_before(index)
        is_plain = self._is_plain
        if not is_plain and content.is_due(time_ms):
            self._have_expire(index, time_ms)
        lone = decode_lone_set(data)
        if lone is not None and (is_plain or not content.max_bytes or content.has_room(len(data))):
            key, value = lone
            with self.lock:
                content.changes.append((index, WRITTEN, key, value, content.keys.set(key, value, index)))
                if not is_plain:
                    content.expiries.set(key, 0)
                    content.leased.detach(key)
                self.applied_index = index
            return True
        return self._apply(data, index, time_ms)

    def _apply(self, data: bytes, index: int, time_ms: int) -> object:
        """Apply what is no lone SET."""
        content = self.content
        order = decode_order(data) if is_order(data) else None
        conditions, effects = decode(data) if order is None else ([], [])
        with self.lock:
            try:
                if order is not None:
                    answer = content.order(order, index, time_ms)
                else:
                    answer = content.transact(conditions, effects, index, time_ms)
            finally:
                self._is_plain = content.is_plain
            if not content.ending:
                self.applied_index = index
        if content.ending:  # some under each hold of the lock, as with what expires
            is_more = True
            while is_more:
                with self.lock:
                    is_more = content.end_some()
                give_way()
            with self.lock:
                content.runs.leave(content.holds, time_ms)
                self.applied_index = index
        return answer

    def pass_time(self, index: int, time_ms: int) -> None:
        """Have what is due by `time_ms` expire."""
        if len(self.content.changes) >= _MANY:
            self._note_before(index)
        self._have_expire(index, time_ms)
        self.applied_index = index

    def begin_anew(self, index: int, time_ms: int) -> None:
        """Have all leases end, whenever they would: who had them is gone.  So nobody is left to be granted anything."""
        if len(self.content.changes) >= _MANY:
            self._note_before(index)
        self._have_expire(index, time_ms, leases_until_ms=NEVER)
        with self.lock:
            self.content.holds.items.base = index  # above all fences that may have been given out since
            self.applied_index = index

    def _have_expire(self, index: int, time_ms: int, leases_until_ms: int = 0) -> None:
        """Some under each hold of the lock, so that readers get their turn.

        leases_until_ms: leases end that would by then, if that is later.
        """
        content, holds = self.content, self.content.holds
        content.index = index
        # Leases end, all that are due, then their keys, and only then is granted what they held.
        steps = (
            partial(content.expire, time_ms),
            partial(holds.end_some, max(time_ms, leases_until_ms)),
            partial(content.follow, EXPIRED),
            holds.grant_some,
        )
        for step in steps:
            is_more = True
            while is_more:
                with self.lock:
                    holds.turn_to(index, time_ms)
                    is_more = step()
        if holds.dropped:
            with self.lock:
                content.runs.leave(holds, time_ms)

    def settle(self, index: int) -> list[Signal]:
        """Everything up to `index` has been applied; returns those who wait for what was."""
        woken = self._woken
        content = self.content
        if woken or content.changes or content.holds.changed:
            with self.lock:
                self._note(index)
                woken, self._woken = self._woken, []
        self.complete = self.applied_index = index
        return woken

    def _note_before(self, index: int) -> None:
        """All before entry `index` is done, and much of it waits."""
        with self.lock:
            self._note(index - 1)

    def _note(self, index: int) -> None:
        """All up to entry `index` is done.  Called under the lock."""
        content = self.content
        changes = content.changes
        if changes and changes[0][0] <= index:
            content.changes = []
            if changes[-1][0] > index:  # the node stops in the middle of an entry, or an entry has many instructions
                count = bisect_right(changes, index, key=_index_of)
                content.changes = changes[count:]
                del changes[count:]
            found = self.history.add(changes)
            if found:
                self._woken += [cursor.signal for cursor in found]
        holds = content.holds
        if holds.changed and content.index <= index:
            self._woken += self.waiters.take(holds.changed)
            holds.changed = []
        self.complete = max(self.complete, index)

    def replace(self, content: Content, index: int) -> list[Signal]:
        """Have that content, as of entry `index`; returns those who waited."""
        with self.lock:
            self.content = content
            self._is_plain = content.is_plain
            self.complete = self.applied_index = index
            return self.history.reset(index) + self.waiters.take_all()
