"""Instructions whose carriers die: a process that holds no log has its instructions brought by whichever node lives."""

from __future__ import annotations

import json
from random import Random

import pytest

from raftsvc.core.messages import EntryKind
from raftsvc.core.raft import ProposalRefused, Role
from raftsvc.member.attachment import Hello
from raftsvc.member.engine import Engine
from raftsvc.member.envelopes import INSTRUCTION, wrap, wrap_open
from raftsvc.member.sessions import MAX_OUTCOMES, Outcome
from raftsvc.testing import Faults, RegisterWorkload
from raftsvc.testing.node import SimulatedNode
from raftsvc.testing.schedule import MILLISECOND, SECOND
from raftsvc.testing.simulation import Simulation
from raftsvc.testing.workload import RegisterState

CALLS = 1000
NONCE = 0xABCDEF
KEY, PID = 1, 1


class Worker:
    """A process with a session under a member, and no node of its own.

    It brings its calls, each with the number it had from the beginning, to a relay, and learns of outcomes as the
    relay's machine records them; it takes another relay when that one dies, and whenever it likes.  It is attached at
    its member, as often as that is started: else its session would be closed, as that of a process that is gone.
    """

    def __init__(self, seed: int, kinds: tuple[str, ...]) -> None:
        self.random = Random(seed)
        self.simulation = Simulation(seed, RegisterWorkload(), Faults(kinds=kinds), keep_trace=False)
        self.simulation.operator.found(3)
        self.member = 0
        self.session = 0
        self.low = 1
        self.outcomes: dict[int, Outcome] = {}
        self.relay: SimulatedNode | None = None
        self.relays = 0
        self.contexts = seed << 32

    def take_relay(self) -> SimulatedNode:
        """The one there is, or another if that is dead, or now and then."""
        living = [
            node for node in self.simulation.nodes.values() if node.engine is not None and node.engine.core.leader_id
        ]
        if self.relay not in living or self.random.random() < 0.02:
            self.relay = self.random.choice(living) if living else None
            self.relays += 1
        assert self.relay is not None
        return self.relay

    def step(self) -> None:
        """Learn what is known, and have some of what is not done brought again."""
        if not any(node.engine is not None and node.engine.core.leader_id for node in self.simulation.nodes.values()):
            return
        relay = self.take_relay()
        self.attach()
        relay.do(self.act)

    def attach(self) -> None:
        """Be there where its member runs, as an attached process is."""
        node = self.simulation.nodes.get(self.member)
        if node is not None and node.engine is not None and not node.engine.feed.is_wanted:
            node.do(lambda engine: engine.feed.hear(KEY, Hello(PID, nonce=NONCE)))

    def act(self, engine: Engine) -> None:
        machine = engine.applying.machine
        if not self.session:
            self.member = self.member or engine.node_id
            self.session = machine.sessions.find(self.member, NONCE)
            if not self.session:
                self.bring(engine, [wrap_open(self.member, NONCE, 0, engine.applying.applied_index)])
                return
        for number in range(self.low, min(self.low + MAX_OUTCOMES, CALLS + 1)):
            outcome = machine.sessions.recorded(self.session, number)
            if outcome is not None:
                assert self.outcomes.setdefault(number, outcome) == outcome, "the same, whoever says it"
        while self.low in self.outcomes:
            self.low += 1
        open_numbers = [n for n in range(self.low, min(self.low + 50, CALLS + 1)) if n not in self.outcomes]
        sent = self.random.sample(open_numbers, min(len(open_numbers), 10))
        self.bring(engine, [wrap(INSTRUCTION, self.session, NONCE, n, self.low, self.instruction(n)) for n in sent])

    def instruction(self, number: int) -> bytes:
        return json.dumps(["add", "count", number]).encode()

    def bring(self, engine: Engine, entries: list[bytes]) -> None:
        if not entries:
            return
        proposals = [(EntryKind.NORMAL, data) for data in entries]
        self.contexts += 1
        engine.time.note()  # as before whatever may append
        try:
            if engine.core.role is Role.LEADER:
                engine.core.propose(proposals)
            else:
                engine.core.forward(proposals, self.contexts)
        except ProposalRefused:
            pass  # brought again


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kinds", [(), ("kill", "loss", "duplication", "delay and reordering", "leadership transfer")])
def test_a_relay_that_dies_in_the_middle_of_a_thousand_calls_loses_and_doubles_none(
    seed: int, kinds: tuple[str, ...]
) -> None:
    worker = Worker(seed, kinds)
    simulation = worker.simulation
    assert simulation.run_until(simulation.now + 10 * SECOND, lambda: simulation.leader() is not None)
    if kinds:
        simulation.nemesis.start()
    deadline = simulation.now + 600 * SECOND
    deaths = steps = 0
    while worker.low <= CALLS and simulation.now < deadline:
        worker.step()
        steps += 1
        if worker.relay is not None and worker.relay.engine is not None and steps % 20 == 0:
            deaths += 1
            worker.relay.kill()
            worker.relay.restart_later()
        simulation.run_until(simulation.now + 20 * MILLISECOND)
    assert worker.low > CALLS and deaths > 3 and worker.relays > 3
    simulation.nemesis.heal()
    last = max(outcome.entry_index for outcome in worker.outcomes.values())

    def applied() -> SimulatedNode | None:
        node = simulation.leader()
        engine = node.engine if node is not None else None
        return node if engine is not None and engine.applying.applied_index >= last else None

    assert simulation.run_until(simulation.now + 60 * SECOND, lambda: applied() is not None)
    node = applied()
    assert node is not None and node.process is not None
    state = node.process.replica.state
    assert isinstance(state, RegisterState)
    assert state.values["count"] == sum(range(1, CALLS + 1)), "each once"
    assert len({outcome.entry_index for outcome in worker.outcomes.values()}) == CALLS
