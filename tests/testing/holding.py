"""Clients of simulated clusters that hold things: leases, claims and conditions on them, beside reads and writes.

    python -m raftsvc.testing --workload tests.testing.holding:HoldingWorkload --seeds 100

What must hold is checked by each replica, after each entry, and across all of them: nobody is granted more than there
is, fences rise, every replica grants the same at the same entry, and no lease ends before its time or outlasts it.
"""

from __future__ import annotations

from random import Random
from typing import Any

from raftsvc import kv
from raftsvc.kv import instructions
from raftsvc.kv.instructions import encode
from raftsvc.kv.transactions import END, decode
from raftsvc.state import State
from raftsvc.testing import Action, KeyValueModel, Violation

LEASES = [f"{number:016x}" for number in range(1, 7)]
SIZES = {"lock": 1, "gate": 3, "catalog": 2**31 - 1}
EVER = 2**63


class Grants:
    """What all replicas granted: to whom, by name and fence."""

    def __init__(self) -> None:
        self.owners: dict[tuple[str, int], tuple[str, int]] = {}

    def note(self, name: str, fence: int, owner: tuple[str, int]) -> None:
        known = self.owners.setdefault((name, fence), owner)
        if known != owner:
            raise Violation(f"holds: {name!r} is granted to {known} at {fence}, and to {owner} on another replica")


class CheckedState(kv.KeyValueState):
    """A store that looks at what it holds after each entry."""

    def __init__(self, grants: Grants) -> None:
        super().__init__()
        self.grants = grants

    def is_allowed_member(self, addr: str) -> bool:
        return True

    def apply_at(self, data: bytes, index: int, time_ms: int) -> int:
        before = self.deadlines()
        ended = {key for code, key, *_ in decode(data)[1] if code == END}
        try:
            return super().apply_at(data, index, time_ms)
        finally:
            self.check(before, ended, index, time_ms)

    def pass_time(self, index: int, time_ms: int) -> None:
        before = self.deadlines()
        super().pass_time(index, time_ms)
        self.check(before, set(), index, time_ms)

    def deadlines(self) -> dict[str, int]:
        return {lease: at for lease, _, at in self._applying.content.holds.freeze().leases}

    def check(self, before: dict[str, int], ended: set[str], index: int, time_ms: int) -> None:
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
            for claim in held:
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
        return Action(("hold",), encode(self._hold(random)), is_judged=False)

    def _hold(self, random: Random) -> list[Any]:
        lease, number = random.choice(LEASES), random.randrange(1, 4)
        name = list(SIZES)[number - 1]
        size = SIZES[name]
        chance = random.random()
        if chance < 0.2:
            return [instructions.open_lease(lease, random.choice((300, 2_000, 10_000)))]
        if chance < 0.55:
            units = random.choice((1, 1, min(size, 2), size))
            return [instructions.claim(name, lease, number, size, units, waits=random.random() < 0.8)]
        if chance < 0.75:
            return [instructions.release(name, lease, number)]
        if chance < 0.88:
            wanted = [number for number in range(1, 4) if random.random() < 0.7]
            return [instructions.keep_lease(lease, random.choice((0, EVER)), wanted)]
        if chance < 0.92:
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
