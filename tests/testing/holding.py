"""Clients of simulated clusters that hold things: leases, claims and conditions on them, beside reads and writes.

At every replica some watch what changes (`tests.testing.watchers`): keys that end by their time or with a lease, too.

    python -m raftsvc.testing --workload tests.testing.holding:HoldingWorkload --seeds 100

What must hold is checked by each replica, after each entry, and across all of them: nobody is granted more than there
is, fences rise, who came first is granted it first, every replica grants the same at the same entry, and no lease ends
before its time or outlasts it.
"""

from __future__ import annotations

from random import Random
from types import SimpleNamespace
from typing import Any

from raftsvc import kv
from raftsvc.kv import instructions
from raftsvc.kv.holds import Claim
from raftsvc.kv.instructions import encode
from raftsvc.kv.transactions import END, EVICT, PROLONG, TICKET, WHICH, WITHDRAW, WITHDRAWN, decode
from raftsvc.state import State
from raftsvc.testing import Action, KeyValueModel, Violation
from tests.testing.watchers import KEPT, Told, Watcher

LEASES = [f"{number:016x}" for number in range(1, 7)]
TICKETS = LEASES[4:]
"""Leases that have one claim alone, as those over HTTP have."""
SIZES = {"lock": 1, "gate": 3, "catalog": 2**31 - 1}
EVER = 2**63
Placed = tuple[str, str, int]
"""A claim, by name, lease and number."""


WATCHED = [f"watched/{number}" for number in range(3)]


class Grants:
    """What all replicas granted: to whom, by name and fence.  told: to those who watch them."""

    def __init__(self) -> None:
        self.owners: dict[tuple[str, int], tuple[str, int]] = {}
        self.told = Told()

    def note(self, name: str, fence: int, owner: tuple[str, int]) -> None:
        known = self.owners.setdefault((name, fence), owner)
        if known != owner:
            raise Violation(f"holds: {name!r} is granted to {known} at {fence}, and to {owner} on another replica")


class CheckedState(kv.KeyValueState):
    """A store that looks at what it holds after each entry."""

    def __init__(self, grants: Grants) -> None:
        super().__init__(max_events=KEPT)
        self.grants = grants
        self.watchers = [Watcher(self, grants.told) for _ in range(2)]

    def is_allowed_member(self, addr: str) -> bool:
        return True

    def apply_at(self, data: bytes, index: int, time_ms: int) -> object:
        before, claims = self.deadlines(), self.placed()
        effects = decode(data)[1]
        ended = {key for code, key, *_ in effects if code == END}
        # Those that end a lease together with its last claim.
        ended |= {WITHDRAWN.unpack(effect[2])[0].decode() for effect in effects if effect[0] == WITHDRAW}
        if any(code == EVICT for code, *_ in effects):
            ended |= {lease for _, lease, number in claims if number == TICKET}
        try:
            return super().apply_at(data, index, time_ms)
        finally:
            self.check(before, ended, index, time_ms)
            if len(effects) == 1 and effects[0][0] in (WITHDRAW, PROLONG, EVICT):
                alive = {lease for lease, deadline_ms in before.items() if deadline_ms > time_ms}
                self.check_ticket(effects[0], claims, alive, before, index)

    def pass_time(self, index: int, time_ms: int) -> None:
        before = self.deadlines()
        super().pass_time(index, time_ms)
        self.check(before, set(), index, time_ms)

    def deadlines(self) -> dict[str, int]:
        return {lease: at for lease, _, at in self._applying.content.holds.freeze().leases}

    def placed(self) -> dict[Placed, Claim]:
        """By name, lease and number."""
        holds = self._applying.content.holds
        return {(name, claim.lease, claim.number): claim for name in SIZES for claim in holds.claims(name)}

    def check_ticket(
        self,
        effect: Any,
        claims: dict[Placed, Claim],
        alive: set[str],
        before: dict[str, int],
        index: int,
    ) -> None:
        """What was held by a ticket ends by who gives up that, and by nobody else.

        effect: alone in the entry.  claims, before: as they were, and of which leases are `alive`.
        """
        code, name, data = effect[:3]
        gone = {key for key in claims if key[1] in alive} - self.placed().keys()
        deadlines = self.deadlines()
        if code == PROLONG:
            lease = WHICH.unpack(data)[0].decode()
            if gone or any(deadlines[other] != before[other] for other in alive - {lease}):
                raise Violation(f"holds: to prolong {lease} changed something else at entry {index}")
            if lease in alive and deadlines[lease] < before[lease]:
                raise Violation(f"holds: {lease} was prolonged, and ends sooner, at entry {index}")
        elif code == WITHDRAW:
            lease, number, attempt = WITHDRAWN.unpack(data)
            key = (name, lease.decode(), number)
            if gone - {key}:
                raise Violation(f"holds: to withdraw {key} took {gone - {key}} at entry {index}")
            claim = claims.get(key)
            if key in gone and attempt and claim is not None and (claim.fence or claim.attempt != attempt):
                raise Violation(f"holds: {claim} was withdrawn by attempt {attempt} at entry {index}")
        elif any(key[0] != name or key[2] != TICKET or claims[key].fence == 0 for key in gone) or len(gone) > 1:
            raise Violation(f"holds: who was to be evicted of {name!r} were {gone} at entry {index}")

    def check(self, before: dict[str, int], ended: set[str], index: int, time_ms: int) -> None:
        for watcher in self.watchers:
            watcher.applied()
        after = self.deadlines()
        for lease, deadline_ms in before.items():
            if lease not in after and lease not in ended and deadline_ms > time_ms:
                raise Violation(f"holds: lease {lease} ended at {time_ms}, and lasts until {deadline_ms}")
        if any(deadline_ms <= time_ms for deadline_ms in after.values()):
            raise Violation(f"holds: a lease outlasts its time at {time_ms}")
        for name, size in SIZES.items():
            claims = self._applying.content.holds.claims(name)
            held = [claim for claim in claims if claim.fence]
            if sum(claim.units for claim in held) > size:
                raise Violation(f"holds: more than {size} of {name!r} are held at entry {index}")
            if len({claim.fence for claim in held}) < len(held):
                raise Violation(f"holds: {name!r} has two grants of one fence at entry {index}")
            first = min((claim.placed for claim in claims if not claim.fence), default=EVER)
            for claim in held:
                if claim.placed > first:
                    raise Violation(f"holds: {claim} has some of {name!r}, who came after one who waits since {first}")
                self.grants.note(name, claim.fence, (claim.lease, claim.number))


class HoldingWorkload:
    """Clients that open, keep and end leases, claim and release under them, and write by what is held."""

    def __init__(self) -> None:
        self.model = KeyValueModel()
        self.grants = Grants()

    def make_state(self) -> State:
        """An empty State."""
        return CheckedState(self.grants)

    def next_action(self, random: Random, serial: int) -> Action:
        """Half of it reads and writes, half of it holds."""
        key = random.choice(("a", "b"))
        chance = random.random()
        if chance < 0.3:
            return Action(("get", key), None)
        if chance < 0.5:
            return Action(("set", key, serial), encode([kv.set(key, b"%d" % serial)]))
        if chance < 0.6:
            return Action(("change",), encode(self._change(random, b"%d" % serial)), is_judged=False)
        return Action(("hold",), encode(self._hold(random)), is_judged=False)

    def _change(self, random: Random, value: bytes) -> list[Any]:
        """Something for those who watch."""
        key, other = random.sample(WATCHED, 2)
        chance = random.random()
        if chance < 0.4:
            return [kv.set(key, value, ttl=random.choice((None, 0.2, 3.0)))]
        if chance < 0.55:
            return [kv.set(key, value, lease=SimpleNamespace(id=random.choice(LEASES)))]
        if chance < 0.7:
            return [kv.delete(key)]
        if chance < 0.85:
            return [kv.set(key, value), kv.delete(other), kv.incr("number")]
        return [instructions.if_not_exists(key), kv.set(other, value)]

    def _hold(self, random: Random) -> list[Any]:
        lease, number = random.choice(LEASES), random.randrange(1, 4)
        name = list(SIZES)[number - 1]
        if lease in TICKETS:
            number = TICKET
        size = SIZES[name]
        chance = random.random()
        if chance < 0.2:
            return [instructions.open_lease(lease, random.choice((300, 2_000, 10_000)))]
        if chance < 0.55:
            units = random.choice((1, 1, min(size, 2), size))
            attempt = random.choice((0, 1, 2))
            return [instructions.claim(name, lease, number, size, units, waits=random.random() < 0.8, attempt=attempt)]
        if chance < 0.75:
            return [instructions.release(name, lease, number)]
        if chance < 0.79:
            return [instructions.withdraw(name, lease, number, random.choice((0, 1, 2)))]
        if chance < 0.82:
            return [instructions.prolong(name, lease, number)]
        if chance < 0.84:
            fences = [fence for granted, fence in self.grants.owners if granted == name]
            return [instructions.evict(name, random.choice(fences[-3:] or [1]))]
        if chance < 0.9:
            wanted = [number for number in range(1, 4) if random.random() < 0.7]
            return [instructions.keep_lease(lease, random.choice((0, EVER)), wanted)]
        if chance < 0.93:
            return [instructions.end_lease(lease)]
        fences = [fence for granted, fence in self.grants.owners if granted == name]
        condition = kv.Condition(name, random.choice(fences[-3:] or [1]), instructions.Code.IF_HELD)
        return [condition, kv.set("by-holder", b"")]

    def output_of(self, action: Action, is_satisfied: bool) -> Any:
        """Writes tell nothing."""
        return None

    def read(self, state: State, action: Action) -> Any:
        """The value of a key, None if there is none."""
        assert isinstance(state, kv.KeyValueState)
        value = state.get(action.input[1])
        return None if value is None else int(value.data)
