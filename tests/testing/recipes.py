"""Clients of simulated clusters that use queues, keys with leases and limits, beside what `holding` does.

    python -m raftsvc.testing --workload tests.testing.recipes:RecipesWorkload --seeds 100

What must hold is checked by each replica, after each instruction, and across all of them: no item is lost, there twice,
or handed out after it was acknowledged, nobody has one that another has, all know each by the same id, a key is there
as long as its lease and no longer, and no stretch of log time has more than a limit allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from raftsvc import kv
from raftsvc.kv import instructions, transactions
from raftsvc.kv.instructions import encode
from raftsvc.kv.items import DEAD
from raftsvc.kv.limits import ADMITTED
from raftsvc.kv.pages import Page, records_of
from raftsvc.kv.transactions import ACK, ADMIT, DELETE, PUT, SET_LEASED, TRIES, decode
from raftsvc.state import State
from raftsvc.testing import Action, Violation
from tests.testing.holding import EVER, LEASES, CheckedState, Grants, HoldingWorkload

QUEUES = ("queue:a", "queue:b")
EVERY = [*QUEUES, *(queue + DEAD for queue in QUEUES)]
MANY = 2**31 - 1
N, PER_MS = 3, 2_000
LEASED = "leased/"

Place = tuple[int, int]
"""An entry, and which of its instructions."""


class Course:
    """What any replica saw first, and all others see so too."""

    def __init__(self) -> None:
        self.put: dict[bytes, Place] = {}
        self.done: dict[bytes, Place] = {}
        self.handed_out: dict[tuple[str, int], tuple[str, str, int]] = {}
        self.names: dict[Place, dict[bytes, str]] = {}
        self.admitted: dict[str, dict[Place, tuple[int, bool]]] = {}
        self.allowed: dict[str, list[int]] = {}

    def note_put(self, value: bytes, place: Place) -> None:
        if self.put.setdefault(value, place) != place:
            raise Violation(f"queues: {value!r} was put at {self.put[value]}, and again at {place}")

    def note_done(self, value: bytes, place: Place) -> None:
        if self.done.setdefault(value, place) != place:
            raise Violation(f"queues: {value!r} was done at {self.done[value]}, and again at {place}")

    def note_handed_out(self, item: str, fence: int, owner: tuple[str, str, int]) -> None:
        if self.handed_out.setdefault((item, fence), owner) != owner:
            raise Violation(f"queues: {item} was handed out to two by the fence {fence}")

    def note_names(self, place: Place, names: dict[bytes, str]) -> None:
        if self.names.setdefault(place, names) != names:
            raise Violation(f"queues: two replicas have items of other names at {place}")

    def note_admitted(self, name: str, place: Place, time_ms: int, allowed: bool) -> None:
        seen = self.admitted.setdefault(name, {})
        is_new = place not in seen
        if seen.setdefault(place, (time_ms, allowed)) != (time_ms, allowed):
            raise Violation(f"limits: two replicas differ at {place}")
        if not is_new or not allowed:
            return
        times = self.allowed.setdefault(name, [])
        times.append(time_ms)
        for count, at in enumerate(reversed(times[-30:]), 1):
            if count > N + N * (time_ms - at) / PER_MS:
                raise Violation(f"limits: {count} of {name!r} in {time_ms - at} ms")

    def there(self, place: Place) -> set[bytes]:
        """What is in some queue, after that."""
        put = {value for value, at in self.put.items() if at <= place}
        return put - {value for value, at in self.done.items() if at <= place}


def records(pages: list[Page]) -> list[tuple[str, bytes, int]]:
    return [record for page in pages for record in records_of(page)]


class CourseState(CheckedState):
    """A store that looks at its queues, keys and limits after each instruction."""

    def __init__(self, grants: Grants, course: Course) -> None:
        super().__init__(grants)
        self.course = course
        self.place: Place = (0, 0)
        self.expected: set[bytes] | None = None  # to be found out

    def restore_chunks(self, chunks: Iterator[bytes], index: int) -> None:
        super().restore_chunks(chunks, index)
        self.place, self.expected = (index, 0), None

    def apply_at(self, data: bytes, index: int, time_ms: int) -> int:
        self.place = (index, self.place[1] + 1 if self.place[0] == index else 0)
        effects = decode(data)[1]
        leases, leased = self.deadlines(), self.leased()
        acks = any(code == ACK for code, *_ in effects)
        there = self.values() if acks else {}
        answer: Any = None
        try:
            answer = super().apply_at(data, index, time_ms)
        finally:
            is_done = answer is not None
            for code, key, content, _ in effects if is_done else ():
                if code == PUT:
                    self.course.note_put(content[TRIES.size :], self.place)
                    if self.expected is not None:
                        self.expected.add(content[TRIES.size :])
                elif code == ADMIT:
                    self.course.note_admitted(key, self.place, time_ms, ADMITTED.unpack(answer)[0])
            if is_done and acks:
                for value in there.keys() - self.values().keys():
                    self.course.note_done(value, self.place)
                    if self.expected is not None:
                        self.expected.discard(value)
            written = {key for code, key, *_ in effects if code in (SET_LEASED, DELETE)}
            self.look(leases, leased, written)
        return int(answer) if isinstance(answer, bool) else answer

    def pass_time(self, index: int, time_ms: int) -> None:
        self.place = (index, 0)
        leases, leased = self.deadlines(), self.leased()
        super().pass_time(index, time_ms)
        self.look(leases, leased, set())

    def leased(self) -> dict[str, str]:
        return {key: value.data.decode() for key, value in self.list(LEASED).items()}

    def values(self) -> dict[bytes, str]:
        found: dict[bytes, str] = {}
        for name, value, _ in records(self._applying.content.holds.items.freeze()):
            if value in found:
                raise Violation(f"queues: {value!r} is there twice at {self.place}")
            found[value] = name
        return found

    def look(self, leases: dict[str, int], leased: dict[str, str], written: set[str]) -> None:
        place, after = self.place, self.deadlines()
        if self.expected is None:
            self.expected = self.course.there(place)
        expected = self.expected
        is_close = len(self._applying.content.holds.items) != len(expected) or place[0] % 8 == 0
        names = self.values() if is_close else {}
        there = set(names) if is_close else expected
        if there != expected:
            raise Violation(f"queues: {expected - there} are lost, and {there - expected} are back, at {place}")
        if is_close:
            self.course.note_names(place, names)
        for queue in EVERY:
            items: set[int] = set()
            for claim in self.claims(queue):
                item = self.item_of((queue, claim.lease, claim.number))
                if claim.lease not in after:
                    raise Violation(f"queues: {claim} stands under no lease at {place}")
                if item is None:
                    if claim.fence or self.item_counts(queue)[0]:
                        raise Violation(f"queues: {claim} on {queue} waits beside items, or has none, at {place}")
                    continue
                if item.id in items:
                    raise Violation(f"queues: two have {item.name} at {place}")
                items.add(item.id)
                self.course.note_handed_out(item.name, item.fence, (queue, claim.lease, claim.number))
        now = self.leased()
        for key, lease in now.items():
            if lease not in after:
                raise Violation(f"leased: {key!r} outlasts its lease {lease} at {place}")
        for key, lease in leased.items():
            if key not in written and lease in after and lease in leases and now.get(key) != lease:
                raise Violation(f"leased: {key!r} is gone, and its lease {lease} is not, at {place}")


class RecipesWorkload(HoldingWorkload):
    """Clients that put, take and acknowledge items, keep keys with leases, and use limits."""

    def __init__(self) -> None:
        super().__init__()
        self.course = Course()

    def make_state(self) -> State:
        return CourseState(self.grants, self.course)

    def next_action(self, random: Random, serial: int) -> Action:
        if random.random() < 0.4:
            return super().next_action(random, serial)
        return Action(("recipe",), encode(self._use(random, serial)), is_judged=False)

    def _use(self, random: Random, serial: int) -> list[Any]:
        lease, chance = random.choice(LEASES), random.random()
        place = random.randrange(len(EVERY) if random.random() < 0.3 else len(QUEUES))
        queue, number = EVERY[place], 10 + 2 * place + random.randrange(2)
        if chance < 0.1:
            return [instructions.open_lease(lease, random.choice((300, 2_000, 10_000)))]
        if chance < 0.25:
            return [instructions.put(QUEUES[place % 2], b"%d" % serial, random.choice((None, None, 1, 2)))]
        if chance < 0.5:
            kind, waits = transactions.ITEMS, random.random() < 0.7
            return [instructions.claim(queue, lease, number, MANY, waits=waits, kind=kind)]
        if chance < 0.55:
            return [instructions.ack(queue, lease, number)]
        if chance < 0.7:
            return self._ack_by_fence(random)
        if chance < 0.76:
            return [instructions.release(queue, lease, number)]
        if chance < 0.8:
            wanted = [each for each in range(10, 18) if random.random() < 0.8]
            return [instructions.keep_lease(lease, random.choice((0, EVER)), wanted)]
        key = f"{LEASED}{random.randrange(4)}"
        if chance < 0.88:
            return [kv.Effect(instructions.Code.SET_LEASED, key, 2 * lease.encode())]
        if chance < 0.9:
            return [kv.delete(key)]
        return [instructions.admit(f"limit:{random.randrange(2)}", N, PER_MS, 1)]

    def _ack_by_fence(self, random: Random) -> list[Any]:
        """As whoever was handed out one of late, and may not have it any more."""
        known = list(self.course.handed_out.items())[-6:]
        if not known:
            return [kv.set("by-holder", b"")]
        (item, fence), (queue, lease, number) = random.choice(known)
        condition = kv.Condition(item, fence, instructions.Code.IF_HELD)
        return [condition, instructions.ack(queue, lease, number), kv.set("by-holder", item.encode())]
