"""Who holds what, who waits for it, and for how long: leases and the claims that stand under them, as the log has them.

A lease belongs to a process, which keeps it.  Under it stand claims, each on a name, for as many of its units as it
takes: a lock has one unit, a semaphore several, a lock for readers and a writer as many as there may be
readers.  Who comes first is served first, and whoever waits for several units is overtaken by nobody.

A claim that is granted has a fence, the index of the entry that granted it: it rises with each grant of a name, so what
is protected refuses whoever comes with a lower one than it has seen.  That is why a name has one grant in an entry;
what could be granted besides is due at once, which is what has the leader append the next entry (a pulse).

There are two more kinds of names.  A queue is granted once for each of its items that nobody has (`kv.items`), and
whoever lets go of it gives his item back; an item has a fence of its own, so a queue may be granted often in an entry.
A meeting is granted to as many at once as it has units, by one fence, once so many wait for it.

A lease ends when nobody kept it for its TTL, in log time: before the entry that is after that takes effect, all
leases that are due are taken out of everything, and only then is what they held granted to others.

Deterministic, as `Content` is; knows no threads.

Invariants:
- The units that are held of a name are no more than it has.
- Every claim stands under a lease that is there, and no other has its number there.
- A name is in `_grantable` if and only if who is next there could be served.
- A queue is claimed by somebody for each item that is taken.
- Whatever is refused has changed nothing.
"""

from __future__ import annotations

import struct
from itertools import islice
from typing import Final, NamedTuple

from raftsvc.kv.expiry import Expiries, deadline_of
from raftsvc.kv.items import Items
from raftsvc.kv.pages import records_of
from raftsvc.kv.transactions import (
    ASKED,
    ITEMS,
    KEPT,
    MEETING,
    NUMBER,
    UNITS,
    no_lease,
    other_size,
    used_number,
)

CLAIM_BYTES: Final = 400
"""What a claim takes in memory beside its texts, a lease as well, and a name on which there are some."""
_SOME: Final = 64
"""So many leases end, or names are granted, under one hold of whoever's lock."""


class Claim(NamedTuple):
    """Somebody who holds some of a name, or waits for that.

    lease:  under which it stands.
    number: which of that lease's.
    units:  how many it takes.
    placed: index of the entry with which it came.
    fence:  index of the entry with which it was granted; 0: it waits.
    data:   what it says of who has it.
    item:   of a queue, the id of that which was handed out to it; else 0.
    attempt: who asked for it last, of several that may give it up while it waits; 0: none may.
    """

    lease: str
    number: int
    units: int
    placed: int
    fence: int
    data: bytes
    item: int = 0
    attempt: int = 0


class Standing(NamedTuple):
    """How a name stands: some of those who hold it, how many do, and how many wait."""

    name: str
    holders: list[Claim]
    held: int
    waiting: int


class _Name:
    """What is claimed: how many units it has, how many are held, and by whom; and who waits, in order."""

    __slots__ = ("held", "held_units", "kind", "size", "waiting")

    def __init__(self, size: int, kind: int) -> None:
        self.size = size
        self.kind = kind
        self.held_units = 0
        self.held: dict[tuple[str, int], Claim] = {}
        self.waiting: dict[tuple[str, int], Claim] = {}

    def next(self, item_count: int) -> Claim | None:
        """Who is to be served now, if somebody can be.  item_count: how many of its items nobody has."""
        for claim in self.waiting.values():
            return claim if self.can_serve(claim.units, item_count, len(self.waiting)) else None
        return None

    def can_serve(self, units: int, item_count: int, waiting_count: int) -> bool:
        """Whether who comes first can be served while so many wait."""
        if self.kind == ITEMS:
            return item_count > 0
        if self.kind == MEETING:
            return waiting_count >= self.size
        return self.held_units + units <= self.size

    def serve(self, claim: Claim) -> None:
        """That waits no longer."""
        key = claim.lease, claim.number
        del self.waiting[key]
        self.held[key] = claim
        self.held_units += claim.units


class _Lease:
    """How long it lives from each time it is kept, and its claims: the name of each."""

    __slots__ = ("claims", "ttl_ms")

    def __init__(self, ttl_ms: int) -> None:
        self.ttl_ms = ttl_ms
        self.claims: dict[int, str] = {}

    def in_order(self) -> list[tuple[int, str]]:
        """Its claims by their numbers: in what order they came here depends on whether they came by a snapshot."""
        return sorted(self.claims.items())


class Frozen(NamedTuple):
    """All of a moment, for a snapshot.

    leases: id, TTL and deadline; names: size, kind, and claims, who holds first.
    """

    leases: list[tuple[str, int, int]]
    names: list[tuple[str, int, int, list[Claim]]]

    def taken(self) -> set[tuple[str, int]]:
        """Queue and id of the items that somebody has."""
        return {(name, claim.item) for name, _, _, claims in self.names for claim in claims if claim.item}


class Holds:
    """Leases and claims.

    items:      what stands in queues, of which claims are granted some.
    size_bytes: about what leases, claims and names take in memory.
    due_ms:     the log time from which on `end_some` or `grant_some` has something to do.
    changed:    since it was last taken out, the claims that were granted or are no more, with their names: for those
                who wait, and taken out as it suits whoever applies.
    dropped:    since they were last taken out, the claims that are no more: for what runs under them (`kv.runs`), and
                taken out with each instruction, however they are batched.
    over:       since they were last taken out, the leases that ended because it was time.
    """

    __slots__ = (
        "_claim_count",
        "_deadlines",
        "_ended",
        "_entry",
        "_exhausted",
        "_grantable",
        "_granted",
        "_leases",
        "_names",
        "_time_ms",
        "changed",
        "dropped",
        "items",
        "over",
        "size_bytes",
    )

    def __init__(self, items: Items | None = None) -> None:
        self._leases: dict[str, _Lease] = {}
        self._names: dict[str, _Name] = {}
        self._deadlines = Expiries()  # of the leases
        self._grantable: dict[str, None] = {}
        self._ended: dict[str, None] = {}  # names that have less claims on them, while leases end
        self._entry = 0  # the entry that is applied
        self._granted: set[str] = set()  # names that had a grant in it
        self._exhausted = 0  # the entry in which nobody could be granted anything more
        self._claim_count = 0
        self._time_ms = 0
        self.size_bytes = 0
        self.items = Items() if items is None else items
        self.changed: list[tuple[str, str, int]] = []
        self.dropped: list[tuple[str, str, int]] = []
        self.over: list[str] = []

    @classmethod
    def of(cls, frozen: Frozen, items: Items) -> Holds:
        """As it was then, with what stood in queues."""
        made = cls(items)
        made._deadlines = Expiries.of((lease, deadline_ms) for lease, _, deadline_ms in frozen.leases)
        for lease, ttl_ms, _ in frozen.leases:
            made._leases[lease] = _Lease(ttl_ms)
            made.size_bytes += CLAIM_BYTES
        for name, size, kind, claims in frozen.names:
            made._names[name] = found = _Name(size, kind)
            made.size_bytes += size_of(name)
            for claim in claims:
                made._leases[claim.lease].claims[claim.number] = name
                made._claim_count += 1
                made.size_bytes += size_of(name, claim.data)
                if claim.fence:
                    found.held[claim[:2]] = claim
                    found.held_units += claim.units
                else:
                    found.waiting[claim[:2]] = claim
            if found.next(items.ready(name)) is not None:
                made._grantable[name] = None
        return made

    def freeze(self) -> Frozen:
        """All as it is now, in an order that depends on nothing else."""
        deadlines = {lease: at for page in self._deadlines.freeze() for lease, _, at in records_of(page)}
        return Frozen(
            [(lease, self._leases[lease].ttl_ms, deadlines[lease]) for lease in sorted(self._leases)],
            [(name, self._names[name].size, self._names[name].kind, self.claims(name)) for name in sorted(self._names)],
        )

    # -- time

    @property
    def due_ms(self) -> int:
        """See above."""
        return 0 if self._grantable or self._ended else self._deadlines.next_ms

    @property
    def next_ms(self) -> int:
        """The log time that is waited for.  It changes with each entry that leaves somebody to be granted."""
        return self._time_ms + 1 if self._grantable else self._deadlines.next_ms

    def turn_to(self, index: int, time_ms: int) -> None:
        """What comes belongs to that entry."""
        if index != self._entry:
            self._entry = index
            self._granted.clear()
        self._time_ms = time_ms

    def end_some(self, time_ms: int) -> bool:
        """Have some leases end that are due by then; whether there were any.  Nothing is granted meanwhile."""
        due = self._deadlines.take(time_ms)
        for lease in due:
            self._end(lease)
        self.over += due
        return bool(due)

    def grant_some(self) -> bool:
        """Grant what can be, some of it; whether there was anything to look at."""
        if self.grant_ended():
            return True
        if self._exhausted == self._entry:  # whatever can be granted since then was granted in it
            return False
        names = list(islice((name for name in self._grantable if name not in self._granted), _SOME))
        for name in names:
            self.grant(name)
        if not names:
            self._exhausted = self._entry
        return bool(names)

    def grant_ended(self) -> bool:
        """Grant some of what leases held that ended; whether there was anything to look at."""
        names = list(islice(self._ended, _SOME))
        for name in names:
            del self._ended[name]
            self.grant(name)
        return bool(names)

    # -- leases

    def has(self, lease: str) -> bool:
        """Whether there is such a lease."""
        return lease in self._leases

    def open(self, lease: str, ttl_ms: int, time_ms: int) -> None:
        """Have that lease, from now on; one that is there is kept."""
        if lease not in self._leases:
            self._leases[lease] = _Lease(ttl_ms)
            self.size_bytes += CLAIM_BYTES
        self._deadlines.set(lease, deadline_of(time_ms, self._leases[lease].ttl_ms))

    def keep(self, lease: str, placed: int, wanted: frozenset[int], time_ms: int) -> None:
        """Have it last for its TTL from now on, without those of its claims placed up to then that are not `wanted`.

        Raises Rejected if there is no such lease.
        """
        found = self._leases.get(lease)
        if found is None:
            raise no_lease(lease)
        self._deadlines.set(lease, deadline_of(time_ms, found.ttl_ms))
        for number, name in [each for each in found.in_order() if each[0] not in wanted]:
            claim = self.claim_of(name, lease, number)
            if claim is not None and claim.placed <= placed:
                self.release(name, lease, number, is_failure=False)

    def end(self, lease: str) -> None:
        """Have no such lease, which is there, and none of its claims; `grant_ended` is to follow.

        What it had of queues counts as no try: it is said where nothing under it is wanted any more.
        """
        self._deadlines.set(lease, 0)
        self._end(lease, is_failure=False)

    def _end(self, lease: str, is_failure: bool = True) -> None:
        self.size_bytes -= CLAIM_BYTES
        for number, name in self._leases[lease].in_order():
            self._ended[self._take_out(name, lease, number, is_failure)] = None
            self._ended[name] = None  # though what it had may be elsewhere
        del self._leases[lease]

    # -- claims

    def claim(self, name: str, asked: bytes) -> int:
        """Place a claim, if it is not there; returns its fence, 0 if it waits, or is not placed since it would have to.

        One that is there and waits belongs to this attempt from now on, unless it belongs to none.
        Raises Rejected if there is no such lease, the name has another size, or the number is one of another name.
        """
        text, number, size, units, waits, kind, attempt = ASKED.unpack_from(asked)
        lease = text.decode()
        key = lease, number
        if lease not in self._leases:
            raise no_lease(lease)
        if self._leases[lease].claims.get(number, name) != name:
            raise used_number(number)
        found = self._names.get(name)
        if found is None:
            found = _Name(size, kind)
        elif found.size != size or found.kind != kind:
            raise other_size(found.size)
        there = self.claim_of(name, lease, number)
        if there is not None:
            if not there.fence and there.attempt:
                found.waiting[key] = there._replace(attempt=attempt)
            return there.fence
        is_next = (not found.waiting or kind == MEETING) and (kind == ITEMS or name not in self._granted)
        if not waits and not (is_next and found.can_serve(units, self.items.ready(name), len(found.waiting) + 1)):
            return 0
        if not found.held and not found.waiting:
            self._names[name] = found
            self.size_bytes += size_of(name)
        claim = found.waiting[key] = Claim(lease, number, units, self._entry, 0, asked[ASKED.size :], 0, attempt)
        self._leases[lease].claims[number] = name
        self._claim_count += 1
        self.size_bytes += size_of(name, claim.data)
        self.grant(name)
        if key in found.held:
            return found.held[key].fence
        self.changed.append((name, *key))  # there is one more who waits
        return 0

    def growth_bytes(self, name: str, asked: bytes) -> int:
        """How much larger all would be once that claim was placed; nothing if it is there."""
        text, number, *_ = ASKED.unpack_from(asked)
        if self.claim_of(name, text.decode(), number) is not None:
            return 0
        return size_of(name, asked[ASKED.size :]) + (0 if name in self._names else size_of(name))

    def release(self, name: str, lease: str, number: int, is_failure: bool = True) -> bool:
        """Have no such claim, held or waiting; whether there was one.

        is_failure: whether that counts as a try of the item, if it has one.
        """
        if self.claim_of(name, lease, number) is None:
            return False
        where = self._take_out(name, lease, number, is_failure)
        self.grant(name)
        if where != name:
            self.grant(where)
        return True

    def is_held(self, name: str, fence: int) -> bool:
        """Whether the grant of that fence is held, or the item of that name was handed out so often, and is.

        A name that is claimed may be that of an item, too.  A fence that `is_shared` shows of nobody that he holds it.
        """
        found = self._names.get(name)
        is_granted = found is not None and found.kind == UNITS and _has_fence(found, fence)
        return is_granted or self.items.is_taken(name, fence)

    def is_shared(self, name: str, fence: int) -> bool:
        """Whether that was granted of a queue or a meeting, and is held: others may have been granted some by it."""
        found = self._names.get(name)
        return found is not None and found.kind != UNITS and _has_fence(found, fence)

    def claims(self, name: str) -> list[Claim]:
        """All claims on a name, who holds first, then who waits, in the order in which they came to."""
        found = self._names.get(name)
        return [] if found is None else [*found.held.values(), *found.waiting.values()]

    def claim_of(self, name: str, lease: str, number: int) -> Claim | None:
        """That claim; None: there is none."""
        found, key = self._names.get(name), (lease, number)
        return None if found is None else found.held.get(key) or found.waiting.get(key)

    def counts(self) -> tuple[int, int]:
        """How many leases there are, and how many claims."""
        return len(self._leases), self._claim_count

    def _take_out(self, name: str, lease: str, number: int, is_failure: bool = True) -> str:
        """Have no such claim, and grant nothing yet; returns where somebody may be granted something for it."""
        claim = self.drop(name, lease, number)
        return self.items.give_back(name, claim.item, self._entry, is_failure) if claim.item else name

    def drop(self, name: str, lease: str, number: int) -> Claim:
        """Have no such claim, whatever becomes of its item; returns it.  `grant` is to follow."""
        found, key = self._names[name], (lease, number)
        claim = found.held.pop(key, None)
        if claim is not None:
            found.held_units -= claim.units
        else:
            claim = found.waiting.pop(key)
        del self._leases[lease].claims[number]
        self._claim_count -= 1
        self.size_bytes -= size_of(name, claim.data)
        self.changed.append((name, lease, number))
        self.dropped.append((name, lease, number))
        return claim

    def grant(self, name: str) -> None:
        """Serve who is next on a name, if he can be and none was in this entry; else note that, or that nobody can."""
        found = self._names.get(name)
        if found is None:
            return
        claim = found.next(self.items.ready(name))
        while claim is not None and (name not in self._granted or found.kind == ITEMS):
            for served in [*found.waiting.values()][: found.size] if found.kind == MEETING else [claim]:
                item = self.items.take(name) if found.kind == ITEMS else 0
                found.serve(served._replace(fence=self._entry, item=item))
                self.changed.append((name, served.lease, served.number))
            self._granted.add(name)
            claim = found.next(self.items.ready(name))
        if claim is not None:
            self._grantable[name] = None
        else:
            self._grantable.pop(name, None)
        if not found.held and not found.waiting:
            del self._names[name]
            self.size_bytes -= size_of(name)


def standing(holds: Holds, limit: int, holders: int) -> list[Standing]:
    """So many of the names on which there are claims, the longest claimed first, and so many holders of each."""
    found: list[Standing] = []
    for name, claimed in holds._names.items():
        if len(found) >= limit:
            break
        some = list(islice(claimed.held.values(), holders))
        found.append(Standing(name, some, len(claimed.held), len(claimed.waiting)))
    return found


def checked(frozen: Frozen, index: int) -> str | None:
    """What is wrong with what was read of a snapshot of that index; None: nothing."""
    leases = [lease for lease, _, _ in frozen.leases]
    names = [name for name, *_ in frozen.names]
    if leases != sorted(set(leases)) or names != sorted(set(names)):
        return "leases or names that are claimed are out of order"
    known = set(leases)
    seen: set[tuple[str, int]] = set()
    items = [claim.item for _, _, _, claims in frozen.names for claim in claims if claim.item]
    if len(items) != len(frozen.taken()):
        return "an item is had by two"
    for name, size, kind, claims in frozen.names:
        is_waiting = [not claim.fence for claim in claims]
        held = sum(claim.units for claim in claims if claim.fence)
        if not claims or is_waiting != sorted(is_waiting) or (kind == UNITS and held > size) or kind > MEETING:
            return f"{name!r} is claimed by nobody, held by too many, or by some after those who wait"
        for claim in claims:
            key = claim.lease, claim.number
            if claim.lease not in known or key in seen or not 0 < claim.units <= size:
                return f"a claim on {name!r} is under no lease, there twice, or of no size"
            if (claim.item != 0) != (kind == ITEMS and claim.fence != 0):
                return f"a claim on {name!r} has an item without a grant, or a grant without an item"
            if not 0 < claim.placed <= index or claim.fence > index or 0 < claim.fence < claim.placed:
                return f"a claim on {name!r} was placed or granted after entry {index}, or never"
            seen.add(key)
    return None


def numbers_of(kept: bytes) -> tuple[int, frozenset[int]]:
    """What a KEEP says: up to which index it names all claims that are wanted, and these."""
    (placed,) = KEPT.unpack_from(kept)
    return placed, frozenset(struct.unpack_from(f">{(len(kept) - KEPT.size) // NUMBER.size}Q", kept, KEPT.size))


def has_no_other(holds: Holds, lease: str, number: int | None) -> bool:
    """Whether there is such a lease, and no claim under it but that one."""
    found = holds._leases.get(lease)
    return found is not None and all(each == number for each in found.claims)


def _has_fence(found: _Name, fence: int) -> bool:
    return any(claim.fence == fence for claim in found.held.values())


def size_of(name: str, data: bytes = b"") -> int:
    """What a claim on that name takes in memory that says so much, or the name."""
    return CLAIM_BYTES + len(name) + len(data)
