"""What the key-value store holds, as transactions and time change it.

Deterministic: what happens depends on what is held, the instruction, its index and its log
time.  Knows no threads; who may look when is `KeyValueState`'s business.

Invariants:
- A key's version is the index of the entry that wrote its value; none has 0.
- Every key that expires exists, as does every key that has a lease, and that lease.
- Whatever is refused has changed nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from raftsvc.kv import queues
from raftsvc.kv.expiry import NEVER, Expiries, deadline_of
from raftsvc.kv.history import DELETED, EXPIRED, WRITTEN, Change
from raftsvc.kv.holds import CLAIM_BYTES, Holds, has_no_other, numbers_of
from raftsvc.kv.leased import LeasedKeys
from raftsvc.kv.limits import Limits
from raftsvc.kv.orders import BEGIN, CLOCK, FINISH, PLAN, PLANS, Order
from raftsvc.kv.pages import PagedMap
from raftsvc.kv.runs import Runs
from raftsvc.kv.transactions import (
    ACK,
    ADMIT,
    ALLOW,
    ALONE,
    ASKED,
    ASKED_OF_LIMIT,
    CLAIM,
    DELETE,
    DISALLOW,
    END,
    ENDED,
    EVICT,
    FENCE,
    IF_HELD,
    INCR,
    ITEMS,
    KEEP,
    LEASE_DIGITS,
    LIMIT,
    MAX_NUMBER,
    MIN_NUMBER,
    NOTHING,
    NUMBERS,
    OPEN,
    PROLONG,
    PUT,
    RELEASE,
    SET,
    SET_EXPIRING,
    SET_LEASED,
    SHARED,
    SIZE,
    TICKET,
    TOUCH,
    TRIES,
    WAITS_ON,
    WHICH,
    WITHDRAW,
    WITHDRAWN,
    conflict,
    no_lease,
    no_number,
    no_room,
    over_quota,
)
from raftsvc.process import give_way

KEY_BYTES: Final = 100
"""What a key takes in memory beside itself and its value: the heads of both objects, their places in a page."""

RESERVE_BYTES: Final = 256 * 1024
"""More than the state may have, for leases and for who waits at a queue: else a store that is full of work could not be
worked off by a process that comes then."""

HISTORY_SHARE: Final = 8
"""What was run takes at most such a part of what the whole may take, but for the last run of each job."""

_STRETCH: Final = 64  # effects of a transaction between two looks at whether another thread waits

_NUMBER: Final = re.compile(rb"-?[0-9]{1,19}")


class Content:
    """Keys with their values, when and with what lease they end, who holds what, queues, limits, jobs, who may join.

    max_bytes: what `size_bytes` may grow to; 0: it may without end.
    index:     of the entry that is being applied.
    changes:   of keys, since they were last taken out, in their order.
    ending:    the lease that an END has end, until `end_some` has nothing to do any more; else empty.
    """

    __slots__ = (
        "allowed",
        "changes",
        "ending",
        "expiries",
        "holds",
        "index",
        "keys",
        "leased",
        "limits",
        "max_bytes",
        "runs",
    )

    def __init__(
        self,
        keys: PagedMap | None = None,
        expiries: Expiries | None = None,
        allowed: frozenset[str] = frozenset(),
        max_bytes: int = 0,
        holds: Holds | None = None,
        leased: LeasedKeys | None = None,
        limits: Limits | None = None,
        runs: Runs | None = None,
    ) -> None:
        self.max_bytes = max_bytes
        self.keys = PagedMap() if keys is None else keys
        self.expiries = Expiries() if expiries is None else expiries
        self.holds = Holds() if holds is None else holds
        self.leased = LeasedKeys() if leased is None else leased
        self.limits = Limits() if limits is None else limits
        self.runs = Runs() if runs is None else runs
        self.allowed = allowed
        self.index = 0
        self.changes: list[Change] = []
        self.ending = ""

    @property
    def size_bytes(self) -> int:
        """Keys, values, and KEY_BYTES for each; leases and what is under them; items of queues; limits; jobs."""
        keys_bytes = self.keys.size_bytes + KEY_BYTES * len(self.keys) + self.leased.size_bytes
        held_bytes = self.holds.size_bytes + self.holds.items.size_bytes
        return keys_bytes + held_bytes + self.limits.size_bytes + self.runs.size_bytes

    @property
    def is_plain(self) -> bool:
        """Whether nothing here will ever be due, no key is anybody's, and all of it may grow: as with keys alone."""
        is_bounded = bool(self.max_bytes or self.leased.size_bytes or self.holds.size_bytes)
        return not is_bounded and self.expiries.next_ms == self.limits.empty.next_ms == NEVER

    def is_due(self, time_ms: int) -> bool:
        """Whether something is to expire by `time_ms`."""
        holds = self.holds
        return (
            self.expiries.next_ms <= time_ms
            or self.limits.empty.next_ms <= time_ms
            or (holds.size_bytes > 0 and holds.due_ms <= time_ms)
        )

    def has_room(self, instruction_bytes: int) -> bool:
        """Whether there is room for certain for what an instruction of that length sets one key to."""
        return self.size_bytes + instruction_bytes + KEY_BYTES <= self.max_bytes

    def expire(self, time_ms: int) -> bool:
        """Delete some of what is due by `time_ms`, in the order of deadlines and then of keys: whether it was any."""
        if self.limits.empty.next_ms <= time_ms:
            self.limits.forget_some(time_ms)
            return True
        keys = self.expiries.take(time_ms) if self.expiries.next_ms <= time_ms else []
        for key in keys:
            was_there = self._remove(key, EXPIRED)
            assert was_there, "every key that expires exists"
        return bool(keys)

    def follow(self, kind: int) -> bool:
        """Delete some of the keys whose leases are over, lease by lease and in order; whether there was one to look at.

        kind: of what happens to them.
        """
        over = self.holds.over
        if not over:
            return False
        keys = self.leased.take(over[0])
        for key in keys:
            was_there = self._remove(key, kind)
            assert was_there, "every key that has a lease exists"
        if not keys:
            del over[0]
        return True

    def transact(
        self,
        conditions: list[tuple[int, str, int]],
        effects: list[tuple[int, str, bytes, int]],
        index: int,
        time_ms: int,
    ) -> object:  # compiled, what is a bool or an int is an int
        """Have all effects take place in their order, or raise Rejected.

        Returns the number that the last INCR made, or the id of the item that the last PUT did; of a DELETE, TOUCH or
        ACK that is alone whether there was such a key or item, of a CLAIM its fence, of a RELEASE or END whether there
        was one (which is still to end: `end_some`), of a WITHDRAW what `transactions` says, of a PROLONG the fence, of
        an EVICT whether there was one, of an ADMIT what `limits.ADMITTED` reads; else True.
        """
        self.index = index
        for position, (code, key, expected) in enumerate(conditions):
            if code == IF_HELD:
                if not self.holds.is_held(key, expected) and not self.runs.is_under_way(key, expected):
                    raise conflict(position, SHARED if self.holds.is_shared(key, expected) else 0)
            else:
                version = self.keys.version(key)
                if version != expected:
                    raise conflict(position, version)
        if len(effects) == 1 and effects[0][0] in ALONE:
            self.holds.turn_to(index, time_ms)
            answer_of_one = self._do_alone(*effects[0], time_ms)
            self.runs.leave(self.holds, time_ms)
            return answer_of_one
        for code, _, data, _ in effects:
            if code == SET_LEASED and not self.holds.has(data[:LEASE_DIGITS].decode()):
                raise no_lease(data[:LEASE_DIGITS].decode())
        answer: object = True  # compiled, what is a bool or an int is an int
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
                self.leased.detach(key)
            elif code == SET_LEASED:
                self._set(key, data[LEASE_DIGITS:], index, 0)
                self.leased.attach(key, data[:LEASE_DIGITS].decode())
            elif code == DELETE:
                self._remove(key, DELETED)
            elif code == TOUCH:
                if self.keys.version(key):
                    self.expiries.set(key, deadline_of(time_ms, ttl_ms) if ttl_ms else 0)
            elif code == INCR:
                answer = numbers[position]
                if ttl_ms and not self.keys.version(key):
                    self.expiries.set(key, deadline_of(time_ms, ttl_ms))
                number = b"%d" % numbers[position]
                self.changes.append((index, WRITTEN, key, number, self.keys.set(key, number, index)))
            elif code in (PUT, ACK):
                self.holds.turn_to(index, time_ms)
                done = self._queue(code, key, data, index)
                answer = done if code == PUT or len(effects) == 1 else answer
            else:
                self._govern(code, key, data)
        self.runs.leave(self.holds, time_ms)  # an ACK ends a claim
        return answer

    def _govern(self, code: int, key: str, data: bytes) -> None:
        """What is said of the whole."""
        if code == ALLOW:
            self.allowed |= {key}
        elif code == DISALLOW:
            self.allowed -= {key}
        else:
            assert code == LIMIT, "these are all"
            (self.max_bytes,) = SIZE.unpack(data)

    def _queue(self, code: int, key: str, data: bytes, index: int) -> object:
        """What is said of a queue: the id of the item that came, or whether there was one that is done."""
        if code == PUT:
            (max_tries,) = TRIES.unpack_from(data)
            return queues.put(self.holds, key, data[TRIES.size :], max_tries, index)
        lease, number = WHICH.unpack(data)
        return queues.ack(self.holds, key, lease.decode(), number)

    def _do_alone(self, code: int, key: str, data: bytes, ttl_ms: int, time_ms: int) -> object:
        """What is said of a lease, of a claim under it, or of a limit."""
        holds = self.holds
        if code == ADMIT:
            n, per_ms, cost = ASKED_OF_LIMIT.unpack(data)
            if self.max_bytes:
                self._check_room(self.limits.growth_bytes(key))
            return self.limits.admit(key, n, per_ms, cost, time_ms)
        if code == CLAIM:
            is_work = ASKED.unpack_from(data)[5] == ITEMS
            if self.max_bytes and not (is_work and holds.items.ready(key)):  # by which room is made
                self._check_room(holds.growth_bytes(key, data), RESERVE_BYTES if is_work else 0)
            return holds.claim(key, data)
        if code == RELEASE:
            lease, number = WHICH.unpack(data)
            return holds.release(key, lease.decode(), number)
        if code == KEEP:
            holds.keep(key, *numbers_of(data), time_ms)
            return True
        if code == OPEN:
            if self.max_bytes and not holds.has(key):
                self._check_room(CLAIM_BYTES, RESERVE_BYTES)
            holds.open(key, ttl_ms, time_ms)
            return True
        if code == PROLONG:
            lease, number = WHICH.unpack(data)
            return self._prolong(key, lease.decode(), number, time_ms)
        if code == WITHDRAW:
            lease, number, attempt = WITHDRAWN.unpack(data)
            return self._withdraw(key, lease.decode(), number, attempt)
        if code == EVICT:
            return self._evict(key, *FENCE.unpack(data))
        assert code == END, "these are all"
        was_there = holds.has(key)
        if was_there:
            self._begin_end(key)
        return was_there

    def _prolong(self, name: str, lease: str, number: int, time_ms: int) -> int:
        """See `instructions.prolong`; the fence."""
        claim = self.holds.claim_of(name, lease, number)
        if claim is None:
            raise no_lease(lease)
        self.holds.keep(lease, 0, frozenset(), time_ms)  # up to entry 0 no claim was placed
        return claim.fence

    def _evict(self, name: str, fence: int) -> bool:
        """See `instructions.evict`."""
        for claim in self.holds.claims(name):
            if claim.fence == fence and claim.number == TICKET:
                return self._withdraw(name, claim.lease, TICKET, 0) == ENDED
        return False

    def _withdraw(self, name: str, lease: str, number: int, attempt: int) -> int:
        """See `instructions.withdraw`."""
        claim = self.holds.claim_of(name, lease, number)
        if claim is not None and attempt:
            if claim.fence:
                return claim.fence
            if claim.attempt != attempt:
                return WAITS_ON
        if has_no_other(self.holds, lease, number if claim is not None else None):
            self._begin_end(lease)
        elif claim is not None:
            self.holds.release(name, lease, number, is_failure=False)
        return NOTHING if claim is None else ENDED

    def _begin_end(self, lease: str) -> None:
        """Its keys are gone before others have what it held."""
        self.ending = lease
        self.holds.over.append(lease)

    def order(self, order: Order, index: int, time_ms: int) -> object:
        """What is said of jobs, or by a clock; see `Runs` for what it returns.  Raises Rejected over the quota."""
        runs = self.runs
        if order.kind == BEGIN:
            fence = runs.begin(order, index, time_ms)
            self._shed(order.job)
            return fence
        if order.kind == FINISH:
            was_under_way = runs.finish(order, time_ms)
            self._shed(order.job)
            return was_under_way
        if order.kind == CLOCK:
            node_id, shown_ms = order.numbers
            return runs.tell(node_id, shown_ms, index, time_ms)
        if order.kind in (PLAN, PLANS):
            return self._plan(order.plans if order.kind == PLANS else (order,), index, time_ms)
        return runs.forget(order.job)

    def end_some(self) -> bool:
        """Go on with the end of the lease that is `ending`, some of it; whether there was anything to do."""
        if self.follow(DELETED):
            return True
        if self.ending:
            self.holds.end(self.ending)
            self.ending = ""
            return True
        return self.holds.grant_ended()

    def _shed(self, job: str) -> None:
        """Keep less of what was run where there is too little room."""
        runs = self.runs
        if self.max_bytes and (
            self.size_bytes > self.max_bytes or runs.history_bytes > self.max_bytes // HISTORY_SHARE
        ):
            runs.shed(job)

    def _plan(self, plans: tuple[Order, ...], index: int, time_ms: int) -> object:
        """All of them, or none."""
        runs = self.runs
        growth_bytes = 0
        for plan in plans:
            runs.check(plan)
            growth_bytes += runs.growth_bytes(plan) if self.max_bytes else 0
        self._check_room(growth_bytes)
        answer = 0
        for plan in plans:
            answer = runs.plan(plan, self.holds, index, time_ms)
        return answer

    def _check_quota(self, effects: Iterable[tuple[int, str, bytes, int]], numbers: dict[int, int]) -> None:
        """Raise Rejected if they would have the content grow to more than it may have."""
        lengths: dict[str, int] = {}  # of what is written, with its key and all; 0: it is deleted
        leased: dict[str, bool] = {}  # whether what is written has a lease
        acked: dict[tuple[str, bytes], None] = {}
        growth_bytes = 0
        for position, (code, key, data, _) in enumerate(effects):
            if code in (SET, SET_EXPIRING):
                lengths[key] = _size_of(key, data)
                leased[key] = False
            elif code == SET_LEASED:
                lengths[key] = _size_of(key, data) - LEASE_DIGITS
                leased[key] = True
            elif code == INCR:
                lengths[key] = _size_of(key, b"%d" % numbers[position])
            elif code == DELETE:
                lengths[key] = 0
                leased[key] = False
            elif code == PUT:
                growth_bytes += queues.growth_bytes(key, data) - TRIES.size
            elif code == ACK:
                acked[key, data] = None
        for key, which in acked:
            lease, number = WHICH.unpack(which)
            growth_bytes -= queues.freed_bytes(self.holds, key, lease.decode(), number)
        for key, is_leased in leased.items():
            growth_bytes += self.leased.growth_bytes(key, is_leased)
        for key, length in lengths.items():
            value = self.keys.get(key)
            growth_bytes += length - (0 if value is None else _size_of(key, value.data))
        self._check_room(growth_bytes)

    def _check_room(self, growth_bytes: int, reserve_bytes: int = 0) -> None:
        """Raise Rejected if by that much more it would have more than it may, and that much beyond."""
        most_bytes = self.max_bytes + reserve_bytes
        if growth_bytes > 0 and self.size_bytes + growth_bytes > most_bytes:
            raise over_quota(self.size_bytes + growth_bytes, most_bytes)

    def _set(self, key: str, data: bytes, index: int, deadline_ms: int) -> None:
        self.changes.append((index, WRITTEN, key, data, self.keys.set(key, data, index)))
        self.expiries.set(key, deadline_ms)

    def _remove(self, key: str, kind: int) -> bool:
        """Have no such key; whether there was one, to which that kind of thing has happened."""
        former = self.keys.delete(key)
        if former is not None:
            self.changes.append((self.index, kind, key, None, former))
            self.expiries.set(key, 0)
            self.leased.detach(key)
        return former is not None

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
            elif code == SET_LEASED:
                written[key] = data[LEASE_DIGITS:]
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
