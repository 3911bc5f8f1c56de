"""Clients of simulated clusters that run jobs: they join, tell clocks, claim slots and end runs, or are lost.

    python -m raftsvc.testing --workload tests.testing.jobs:JobsWorkload --seeds 100

What must hold is checked by each replica, after each entry, and across all of them: no slot is claimed twice, slots and
fences rise together, none is claimed far ahead of the time or while no majority told its clock, what is under way is so
under a lease that lasts, and what died is not.  What time it is each replica computes for itself, from what was told.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from raftsvc import kv
from raftsvc.kv import instructions, orders
from raftsvc.kv.instructions import encode
from raftsvc.kv.orders import BEGIN, CLOCK, DIED, DONE, FAILED, FINISH, PLAN, RUNNING, Order, Place
from raftsvc.kv.transactions import MAX_UNITS
from raftsvc.state import State
from raftsvc.testing import Action, KeyValueModel, Violation

LEASES = [f"{number:016x}" for number in range(1, 4)]
JOBS = ("job:a", "job:b")
NAME = "jobs:workers"
EPOCH_MS = 1_800_000_000_000
HOUR_MS = 3_600_000
AHEAD_MS, CLOCK_MS = 30_000, 60_000
SKEWS_MS = {1: 0, 2: HOUR_MS, 3: -700, 4: 900, 5: -HOUR_MS}


class Ledger:
    """What all replicas say was claimed: by job and fence slot, attempt and place; and what clients go by."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.claims: dict[str, dict[int, tuple[int, int, Place]]] = {job: {} for job in JOBS}
        self.died: set[tuple[str, int]] = set()
        self.places: list[Place] = []
        self.time_ms = 0

    def note(self, job: str, fence: int, slot_ms: int, attempt: int, place: Place) -> None:
        claims = self.claims[job]
        said = slot_ms, attempt, place
        if claims.setdefault(fence, said) != said:
            raise Violation(f"jobs: replicas differ on who claimed what of {job} at {fence}")
        in_order = [claims[each][:2] for each in sorted(claims)]
        if in_order != sorted(set(in_order)):
            raise Violation(f"jobs: a slot of {job} was claimed twice, or after a later one: {said[:2]} at {fence}")


class CheckedState(kv.KeyValueState):
    """A store that looks at its jobs after each entry."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger
        self.voters: frozenset[int] = frozenset()
        self.told: dict[int, tuple[int, int]] = {}

    def is_allowed_member(self, addr: str) -> bool:
        return True

    def set_voters(self, voters: frozenset[int]) -> None:
        super().set_voters(voters)
        self.voters = voters
        self.told = {node_id: told for node_id, told in self.told.items() if node_id in voters}

    def restore_chunks(self, chunks: Iterator[bytes], index: int) -> None:
        super().restore_chunks(chunks, index)
        self.told = {told.node_id: (told.shown_ms, told.at_ms) for told in self._applying.content.runs.freeze().clocks}

    def apply_at(self, data: bytes, index: int, time_ms: int) -> int:
        answer = 0
        try:
            answer = super().apply_at(data, index, time_ms)
            return answer
        finally:
            self.check(index, time_ms)
            if orders.is_order(data):
                self.check_order(orders.decode(data), answer, index, time_ms)

    def pass_time(self, index: int, time_ms: int) -> None:
        super().pass_time(index, time_ms)
        self.check(index, time_ms)

    def check_order(self, order: Order, answer: int, index: int, time_ms: int) -> None:
        if order.kind == CLOCK and order.numbers[0] in self.voters:
            self.told[order.numbers[0]] = order.numbers[1], time_ms
        if order.kind != BEGIN or answer <= 0:
            return
        slot_ms, attempt, *_ = order.numbers
        self.ledger.note(order.job, answer, slot_ms, attempt, order.place)
        if answer != index:
            return  # it was claimed before
        shown = sorted(shown + time_ms - at for shown, at in self.told.values() if time_ms - at <= CLOCK_MS)
        if 2 * len(shown) <= len(self.voters):
            raise Violation(f"jobs: {len(shown)} clocks of {len(self.voters)} voters were enough at entry {index}")
        if slot_ms > shown[(len(shown) - 1) // 2] + AHEAD_MS:
            raise Violation(f"jobs: a slot was claimed far ahead of the time, at entry {index}")

    def check(self, index: int, time_ms: int) -> None:
        ledger = self.ledger
        if time_ms >= ledger.time_ms:
            ledger.time_ms = time_ms
            ledger.places = [(NAME, claim.lease, claim.number) for claim in self.claims(NAME) if claim.fence]
        held = {(NAME, claim.lease, claim.number) for claim in self.claims(NAME) if claim.fence}
        for job in JOBS:
            for run in self.job(job)[1]:
                if (run.state == RUNNING and run.place not in held) or (run.state == DIED and run.place in held):
                    raise Violation(f"jobs: a run of {job} is {run.state} at entry {index}, and its place is not so")
                if run.state == DIED:
                    ledger.died.add((job, run.fence))
                elif (job, run.fence) in ledger.died and run.state != RUNNING:
                    raise Violation(f"jobs: what died of {job} ended otherwise, at entry {index}")


class JobsWorkload:
    """Some clients read and write, some run jobs: claims come late, twice, for who is gone, by wrong clocks."""

    def __init__(self) -> None:
        self.model = KeyValueModel()
        self.ledger = Ledger()
        self.serial = 0

    def make_state(self) -> State:
        """An empty State."""
        return CheckedState(self.ledger)

    def next_action(self, random: Random, serial: int) -> Action:
        """A quarter of it reads and writes."""
        if serial < self.serial:  # the same seed once more, for its trace
            self.ledger.clear()
        self.serial = serial
        key = random.choice(("a", "b"))
        chance = random.random()
        if chance < 0.15:
            return Action(("get", key), None)
        if chance < 0.25:
            return Action(("set", key, serial), encode([kv.set(key, b"%d" % serial)]))
        return Action(("job",), self._act(random, serial), is_judged=False)

    def _act(self, random: Random, serial: int) -> bytes:
        lease, job = random.choice(LEASES), random.choice(JOBS)
        places = self.ledger.places or [(NAME, lease, serial)]
        place = random.choice(places) if random.random() < 0.95 else (NAME, lease, 1)
        now_ms = EPOCH_MS + self.ledger.time_ms
        chance = random.random() * (1.0 if self.ledger.places else 0.3)
        if chance < 0.08:
            return encode([instructions.open_lease(lease, random.choice((2_000, 10_000, 10_000)))])
        if chance < 0.16:
            return encode([instructions.claim(NAME, lease, serial, MAX_UNITS)])
        if chance < 0.24:
            wanted = [number for _, of, number in places if of == lease and random.random() < 0.8]
            return encode([instructions.keep_lease(lease, random.choice((0, 0, 0, 2**63)), wanted)])
        if chance < 0.25:
            return encode([instructions.end_lease(lease)])
        if chance < 0.40:
            schedule = b"other" if random.random() < 0.05 else b"one"
            return orders.encode(Order(PLAN, (random.choice((0, 0, now_ms)),), job, place, schedule))
        if chance < 0.52:
            node_id, skew_ms = random.choice(list(SKEWS_MS.items()))
            shown_ms = now_ms + skew_ms + random.randrange(-1_000, 1_000)
            return orders.encode(Order(CLOCK, (node_id, shown_ms)))
        if chance < 0.85:
            known = self.ledger.claims[job]
            slot_ms, attempt, _ = known[max(known)] if known else (0, 0, None)
            if random.random() < 0.6:
                ahead_ms = random.choice((0, 0, 0, 200, 200, -5_000, 5_000, 20_000, 40_000, HOUR_MS))
                slot_ms = (max(now_ms, slot_ms) + ahead_ms) // 200 * 200
                attempt = random.choice((0, 1, 1, 1))
            else:
                attempt += random.choice((0, 1, 1))
            numbers = slot_ms, attempt, 1, random.choice((0, 3)), random.choice((1, 2, 50))
            return orders.encode(Order(BEGIN, numbers, job, place, b"client"))
        fence = random.choice(list(self.ledger.claims[job])[-3:] or [1])
        if random.random() < 0.7 and fence in self.ledger.claims[job]:
            place = self.ledger.claims[job][fence][2]
        return orders.encode(Order(FINISH, (fence, random.choice((DONE, FAILED))), job, place, b""))

    def output_of(self, action: Action, is_satisfied: bool) -> Any:
        """Writes tell nothing."""
        return None

    def read(self, state: State, action: Action) -> Any:
        """The value of a key, None if there is none."""
        assert isinstance(state, kv.KeyValueState)
        value = state.get(action.input[1])
        return None if value is None else int(value.data)
