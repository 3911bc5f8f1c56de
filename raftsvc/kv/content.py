"""What the key-value store holds, as transactions and time change it.

Deterministic: what happens depends on what is held, the instruction, its index and its log
time.  Knows no threads; who may look when is `KeyValueState`'s business.

Invariants:
- A key's version is the index of the entry that wrote its value; none has 0.
- Every key that expires exists.
- Whatever is refused has changed nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from raftsvc.kv.events import DELETED, EXPIRED, WRITTEN, Change
from raftsvc.kv.expiry import Expiries, deadline_of
from raftsvc.kv.holds import CLAIM_BYTES, Holds, numbers_of
from raftsvc.kv.instructions import (
    ALLOW,
    ALONE,
    CLAIM,
    DELETE,
    DISALLOW,
    END,
    IF_HELD,
    INCR,
    KEEP,
    LIMIT,
    MAX_NUMBER,
    MIN_NUMBER,
    NUMBERS,
    OPEN,
    RELEASE,
    SET,
    SET_EXPIRING,
    SIZE,
    TOUCH,
    WHICH,
    conflict,
    no_number,
    no_room,
    over_quota,
)
from raftsvc.kv.orders import BEGIN, CLOCK, FINISH, PLAN, PLANS, Order
from raftsvc.kv.pages import PagedMap
from raftsvc.kv.runs import Runs
from raftsvc.process import give_way

KEY_BYTES = 100
"""What a key takes in memory beside itself and its value: the heads of both objects, their places in a page."""

HISTORY_SHARE = 8
"""What was run takes at most such a part of what the whole may take, but for the last run of each job."""

_STRETCH = 64  # effects of a transaction between two looks at whether another thread waits

_NUMBER = re.compile(rb"-?[0-9]{1,19}")


class Content:
    """Keys with their values, when they expire, who holds what under leases, jobs, and the addresses that may join.

    max_bytes: what `size_bytes` may grow to; 0: it may without end.
    changes:   of keys, since they were last taken out, in their order.
    """

    __slots__ = ("allowed", "changes", "expiries", "holds", "keys", "max_bytes", "runs")

    def __init__(
        self,
        keys: PagedMap | None = None,
        expiries: Expiries | None = None,
        allowed: frozenset[str] = frozenset(),
        max_bytes: int = 0,
        holds: Holds | None = None,
        runs: Runs | None = None,
    ) -> None:
        self.max_bytes = max_bytes
        self.keys = PagedMap() if keys is None else keys
        self.expiries = Expiries() if expiries is None else expiries
        self.holds = Holds() if holds is None else holds
        self.runs = Runs() if runs is None else runs
        self.allowed = allowed
        self.changes: list[Change] = []

    @property
    def size_bytes(self) -> int:
        """Keys, values, and KEY_BYTES for each; leases and claims; jobs and their runs."""
        return self.keys.size_bytes + KEY_BYTES * len(self.keys) + self.holds.size_bytes + self.runs.size_bytes

    def has_room(self, instruction_bytes: int) -> bool:
        """Whether there is room for certain for what an instruction of that length sets one key to."""
        return self.size_bytes + instruction_bytes + KEY_BYTES <= self.max_bytes

    def expire(self, time_ms: int) -> None:
        """Delete some of what is due by `time_ms`, in the order of deadlines and then of keys."""
        for key in self.expiries.take(time_ms):
            former = self.keys.delete(key)
            assert former is not None, "every key that expires exists"
            self.changes.append((EXPIRED, key, None, former))

    def transact(
        self,
        conditions: list[tuple[int, str, int]],
        effects: list[tuple[int, str, bytes, int]],
        index: int,
        time_ms: int,
    ) -> object:  # compiled, what is a bool or an int is an int
        """Have all effects take place in their order, or raise Rejected.

        Returns the number that the last INCR made; of a DELETE or TOUCH that is alone whether there was such
        a key, of a CLAIM its fence, of a RELEASE or END whether there was one; else True.
        """
        for position, (code, key, expected) in enumerate(conditions):
            if code == IF_HELD:
                if not self.holds.is_held(key, expected) and not self.runs.is_under_way(key, expected):
                    raise conflict(position, 0)
            else:
                version = self.keys.version(key)
                if version != expected:
                    raise conflict(position, version)
        if len(effects) == 1 and effects[0][0] in ALONE:
            self.holds.turn_to(index, time_ms)
            answer_of_hold = self._hold(*effects[0], time_ms)
            self.runs.leave(self.holds, time_ms)
            return answer_of_hold
        answer: bool | int = True
        numbers = self._count(effects) if any(effect[0] == INCR for effect in effects) else {}
        if self.max_bytes:
            self._check_quota(effects, numbers)
        if len(effects) == 1 and effects[0][0] in (DELETE, TOUCH):
            answer = self.keys.version(effects[0][1]) != 0
        for position, (code, key, data, ttl_ms) in enumerate(effects):
            if position % _STRETCH == _STRETCH - 1:
                give_way()
            if code in (SET, SET_EXPIRING):
                self._set(key, data, index, deadline_of(time_ms, ttl_ms) if ttl_ms else 0)
            elif code == DELETE:
                self._delete(key)
            elif code == TOUCH:
                if self.keys.version(key):
                    self.expiries.set(key, deadline_of(time_ms, ttl_ms) if ttl_ms else 0)
            elif code == INCR:
                answer = numbers[position]
                if ttl_ms and not self.keys.version(key):
                    self.expiries.set(key, deadline_of(time_ms, ttl_ms))
                number = b"%d" % answer
                self.changes.append((WRITTEN, key, number, self.keys.set(key, number, index)))
            elif code == ALLOW:
                self.allowed |= {key}
            elif code == DISALLOW:
                self.allowed -= {key}
            else:
                assert code == LIMIT, "these are all"
                (self.max_bytes,) = SIZE.unpack(data)
        return answer

    def _hold(self, code: int, key: str, data: bytes, ttl_ms: int, time_ms: int) -> object:
        """What is said of a lease, or of a claim under it."""
        holds = self.holds
        if code == CLAIM:
            growth_bytes = holds.growth_bytes(key, data) if self.max_bytes else 0
            if growth_bytes and self.size_bytes + growth_bytes > self.max_bytes:
                raise over_quota(self.size_bytes + growth_bytes, self.max_bytes)
            return holds.claim(key, data)
        if code == RELEASE:
            lease, number = WHICH.unpack(data)
            return holds.release(key, lease.decode(), number)
        if code == KEEP:
            holds.keep(key, *numbers_of(data), time_ms)
            return True
        if code == OPEN:
            if self.max_bytes and not holds.has(key) and self.size_bytes + CLAIM_BYTES > self.max_bytes:
                raise over_quota(self.size_bytes + CLAIM_BYTES, self.max_bytes)
            holds.open(key, ttl_ms, time_ms)
            return True
        assert code == END, "these are all"
        return holds.end(key)

    def order(self, order: Order, index: int, time_ms: int) -> object:
        """What is said of jobs, or by a clock; see `Runs` for what it returns.  Raises Rejected over the quota."""
        runs = self.runs
        if order.kind in (BEGIN, FINISH):
            answer: object = runs.begin(order, index, time_ms) if order.kind == BEGIN else runs.finish(order, time_ms)
            if self.max_bytes and (
                self.size_bytes > self.max_bytes or runs.history_bytes > self.max_bytes // HISTORY_SHARE
            ):
                runs.shed(order.job)
            return answer
        if order.kind == CLOCK:
            node_id, shown_ms = order.numbers
            return runs.tell(node_id, shown_ms, index, time_ms)
        if order.kind in (PLAN, PLANS):
            return self._plan(order.plans if order.kind == PLANS else (order,), index, time_ms)
        return runs.forget(order.job)

    def _plan(self, plans: tuple[Order, ...], index: int, time_ms: int) -> object:
        """All of them, or none."""
        runs = self.runs
        growth_bytes = 0
        for plan in plans:
            runs.check(plan)
            growth_bytes += runs.growth_bytes(plan) if self.max_bytes else 0
        if growth_bytes > 0 and self.size_bytes + growth_bytes > self.max_bytes:
            raise over_quota(self.size_bytes + growth_bytes, self.max_bytes)
        answer = 0
        for plan in plans:
            answer = runs.plan(plan, self.holds, index, time_ms)
        return answer

    def _check_quota(self, effects: Iterable[tuple[int, str, bytes, int]], numbers: dict[int, int]) -> None:
        """Raise Rejected if they would have the content grow to more than it may have."""
        lengths: dict[str, int] = {}  # of what is written, with its key and all; 0: it is deleted
        for position, (code, key, data, _) in enumerate(effects):
            if code in (SET, SET_EXPIRING):
                lengths[key] = _size_of(key, data)
            elif code == INCR:
                lengths[key] = _size_of(key, b"%d" % numbers[position])
            elif code == DELETE:
                lengths[key] = 0
        growth_bytes = 0
        for key, length in lengths.items():
            value = self.keys.get(key)
            growth_bytes += length - (0 if value is None else _size_of(key, value.data))
        if growth_bytes > 0 and self.size_bytes + growth_bytes > self.max_bytes:
            raise over_quota(self.size_bytes + growth_bytes, self.max_bytes)

    def _set(self, key: str, data: bytes, index: int, deadline_ms: int) -> None:
        self.changes.append((WRITTEN, key, data, self.keys.set(key, data, index)))
        self.expiries.set(key, deadline_ms)

    def _delete(self, key: str) -> None:
        former = self.keys.delete(key)
        if former is not None:
            self.changes.append((DELETED, key, None, former))
            self.expiries.set(key, 0)

    def _count(self, effects: Iterable[tuple[int, str, bytes, int]]) -> dict[int, int]:
        """The number that each INCR will make, by its position.  Raises Rejected if one cannot, before anything is."""
        numbers: dict[int, int] = {}
        written: dict[str, bytes | None] = {}  # by the effects before it
        for position, (code, key, data, _) in enumerate(effects):
            if code == INCR:
                delta, initial = NUMBERS.unpack(data)
                if key in written:
                    former = written[key]
                else:
                    value = self.keys.get(key)
                    former = None if value is None else value.data
                number = initial + delta if former is None else _number(former, position) + delta
                if not MIN_NUMBER <= number <= MAX_NUMBER:
                    raise no_room(position)
                numbers[position] = number
                written[key] = b"%d" % number
            elif code in (SET, SET_EXPIRING):
                written[key] = data
            elif code == DELETE:
                written[key] = None
        return numbers


def _size_of(key: str, data: bytes) -> int:
    return len(key.encode()) + len(data) + KEY_BYTES


def _number(data: bytes, position: int) -> int:
    """What `data` says in decimal: digits, and maybe a minus before them; Python's own reading takes much more."""
    if _NUMBER.fullmatch(data) and MIN_NUMBER <= (number := int(data)) <= MAX_NUMBER:
        return number
    raise no_number(position)
