"""Rolling upgrades in virtual time: when the effective version rises, and who is too old for it.

The watch checks in all of it that every member reported a version before it is effective, that it is at
the same entry everywhere, and that no State is given what its code does not know.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from raftsvc.core.membership import ConfChange, ConfOp
from raftsvc.core.messages import Claim, EntryKind, Life
from raftsvc.core.raft import Refusal
from raftsvc.errors import OutdatedError
from raftsvc.member.engine import Engine
from raftsvc.member.envelopes import wrap_open
from raftsvc.testing import Faults, RegisterWorkload
from raftsvc.testing.clients import SimulatedCall
from raftsvc.testing.node import SimulatedNode
from raftsvc.testing.schedule import SECOND
from raftsvc.testing.simulation import Simulation
from raftsvc.versions import FIRST, Versions

LATER = {
    "library": Versions.of(2, {}),
    "State": Versions.of(1, {"": 2}),
    "both": Versions.of(3, {"": 2}),
}
later = pytest.mark.parametrize("code", LATER.values(), ids=LATER.keys())


class Play:
    """Three nodes that nobody uses but this test, and of which the operator upgrades none."""

    def __init__(self, seed: int = 1) -> None:
        self.simulation = simulation = Simulation(seed, RegisterWorkload(), Faults(kinds=()), keep_trace=False)
        simulation.operator.found(3)
        self.until(lambda: simulation.leader() is not None and len(simulation.configuration().voters) == 3)
        self.wait(5)

    @property
    def nodes(self) -> list[SimulatedNode]:
        return [node for node in self.simulation.nodes.values() if not node.is_gone]

    @property
    def leader(self) -> SimulatedNode:
        leader = self.simulation.leader()
        assert leader is not None
        return leader

    @property
    def followers(self) -> list[SimulatedNode]:
        return [node for node in self.nodes if node is not self.leader]

    @property
    def effective(self) -> set[Versions]:
        """As those that run have it."""
        return {node.engine.upgrades.effective for node in self.nodes if node.engine is not None}

    def wait(self, seconds: float) -> None:
        self.simulation.run_until(self.simulation.now + int(seconds * SECOND))

    def until(self, condition: Callable[[], bool]) -> None:
        assert self.simulation.run_until(self.simulation.now + 60 * SECOND, condition), [
            node.describe() for node in self.nodes
        ]

    def start(self, node: SimulatedNode, code: Versions) -> None:
        """End its process, and start it with other code, under load."""
        node.kill()
        self.write()
        node.code = code
        node.start()

    def upgrade(self, node: SimulatedNode, code: Versions) -> None:
        """The same, and wait until it has said so."""
        self.simulation.world.latest_code = code
        self.start(node, code)
        self.until(lambda: (engine := node.engine) is not None and engine.calls.session_id != 0)

    def attempt(self, *changes: ConfChange) -> list[Refusal | None]:
        """Propose them in one step of the leader; why each was refused."""
        refused: list[Refusal | None] = []

        def propose(engine: Engine) -> None:
            for change in changes:
                attempt = engine.changes.attempt(change)
                refused.append(attempt.refusal)
                engine.changes.end(attempt)

        self.leader.do(propose)
        return refused

    def write(self, key: str = "a") -> None:
        self.until(lambda: self.simulation.leader() is not None)
        process = self.leader.process
        assert process is not None
        workload = self.simulation.world.workload
        assert isinstance(workload, RegisterWorkload)
        instruction = workload.in_form(json.dumps(["add", key, 1]).encode(), process.replica.state)
        call = SimulatedCall([instruction], lambda: None)
        self.simulation.watch.sessions.asks(call)
        process.do(lambda engine: engine.submit(call))


def test_of_one_code_there_is_nothing_to_raise_and_nothing_is_written() -> None:
    play = Play()
    engines = [node.engine for node in play.nodes if node.engine is not None]
    last = [engine.core.log.last_index for engine in engines]
    play.wait(60)
    assert [engine.core.log.last_index for engine in engines] == last
    assert play.effective == {FIRST} and all(engine.upgrades.held_back_by() == {} for engine in engines)


@later
def test_the_version_rises_once_the_last_member_runs_the_later_code(code: Versions) -> None:
    play = Play()
    for node in [*play.followers, play.leader]:
        assert play.effective == {FIRST}
        play.upgrade(node, code)
        play.write()
        if node is not play.leader:
            play.wait(2)
    play.until(lambda: play.effective == {code})
    play.write()
    play.wait(1)
    assert play.effective == {code}


@later
def test_who_holds_the_raise_back_is_named(code: Versions) -> None:
    play = Play()
    last, *others = play.followers
    for node in [*others, play.leader]:
        play.upgrade(node, code)
    play.wait(3)
    engine = play.leader.engine
    assert engine is not None and play.effective == {FIRST}
    assert engine.upgrades.held_back_by() == {last.node_id: f"its code knows {FIRST}"}
    last.kill()
    play.wait(3)
    assert play.effective == {FIRST}, "what one that is down reported last counts"
    play.upgrade(last, code)
    play.until(lambda: play.effective == {code})
    assert play.leader.engine is not None and play.leader.engine.upgrades.held_back_by() == {}


@later
def test_before_the_raise_every_node_may_go_back(code: Versions) -> None:
    play = Play()
    one, two = play.followers
    play.upgrade(one, code)
    play.upgrade(two, code)
    play.upgrade(one, FIRST)
    play.upgrade(play.leader, code)
    play.wait(5)
    assert play.effective == {FIRST}
    for node in (two, play.leader):
        play.upgrade(node, FIRST)
    play.wait(5)
    assert play.effective == {FIRST}
    assert all(node.engine is not None and node.engine.health.err() is None for node in play.nodes)


@later
def test_after_the_raise_older_code_does_not_start(code: Versions) -> None:
    play = Play()
    for node in [*play.followers, play.leader]:
        play.upgrade(node, code)
    play.until(lambda: play.effective == {code})
    play.wait(2)  # nothing more is written
    node = play.followers[0]
    before = node.engine.applying.applied_index if node.engine is not None else 0
    play.start(node, FIRST)
    assert node.process is None and isinstance(node.refusal, OutdatedError)
    assert str(FIRST) in str(node.refusal) and str(code) in str(node.refusal)
    play.until(lambda: node.process is not None and node.engine is not None)  # the operator starts the latest
    play.until(lambda: node.engine is not None and node.engine.applying.applied_index > before)


@later
def test_who_meets_the_raise_with_older_code_stops_there(code: Versions) -> None:
    play = Play(2)
    last, other = play.followers
    for node in (other, play.leader):
        play.upgrade(node, code)
    play.upgrade(last, code)
    play.until(lambda: (engine := play.leader.engine) is not None and engine.core.config.versions == code)
    # It goes back at the moment at which the version rises, of which its directory may say nothing.
    last.kill()
    last.code = FIRST
    last.start()
    engine = last.engine
    if engine is not None:
        play.until(lambda: last.engine is not engine)  # the operator starts the latest
        halted = engine.health.halted
        assert isinstance(halted, OutdatedError) and str(code) in str(halted)
        assert engine.applying.machine.versions == FIRST
    play.until(lambda: play.effective == {code} and len(play.nodes) == 3)


@later
def test_what_a_life_reported_is_void_once_a_later_one_is_heard_of(code: Versions) -> None:
    play = Play()
    one, two = play.followers
    leader = play.leader
    for node in (one, two):
        play.upgrade(node, code)
    engine = one.engine
    assert engine is not None
    former = engine.lives.own
    one.kill()
    leader.kill()
    leader.code = code
    leader.start()
    # The others hear one word of its next start, of which nothing is in the log.
    for node in (two, leader):
        node.do(lambda engine: engine.lives.judge(one.node_id, Claim(Life(former.counter + 1, 99), former)))
    play.wait(10)
    assert play.effective == {FIRST}
    assert play.leader.engine is not None
    assert play.leader.engine.upgrades.held_back_by() == {one.node_id: "it has not said yet what its code knows"}


@later
def test_a_report_that_is_in_the_log_and_not_applied_is_waited_for(code: Versions) -> None:
    play = Play()
    for node in play.followers:
        play.upgrade(node, code)
    play.start(play.leader, code)

    def have_all_reported() -> bool:
        leader = play.simulation.leader()
        if leader is None or leader.engine is None:
            return False
        sessions = leader.engine.applying.machine.sessions
        return all(sessions.versions_of(node.node_id) == code for node in play.nodes)

    play.until(have_all_reported)  # and no tick passed since
    one = play.followers[0]

    def report_and_tick(engine: Engine) -> None:
        """Of `one` a later start says that it runs older code."""
        life = engine.lives.highest(one.node_id)
        data = wrap_open(one.node_id, 99, life.counter + 1, engine.applying.applied_index, FIRST)
        engine.core.propose([(EntryKind.NORMAL, data)])
        engine.upgrades.tick()

    leader = play.leader
    assert leader.engine is not None and leader.engine.core.config.versions == FIRST
    leader.do(report_and_tick)
    assert leader.engine.core.config.versions == FIRST


@later
def test_who_is_slow_to_report_holds_the_raise_back(code: Versions) -> None:
    play = Play()
    for node in play.followers:
        play.upgrade(node, code)
    one = play.followers[0]
    one.kill()
    one.code = FIRST
    one.computer.is_state_hung = True
    one.start()
    play.upgrade(play.leader, code)
    play.wait(2)
    assert play.effective == {FIRST}
    one.computer.is_state_hung = False
    play.wait(5)
    assert play.effective == {FIRST}
    play.upgrade(one, code)
    play.until(lambda: play.effective == {code})


@later
def test_a_joiner_below_the_effective_version_is_not_let_in(code: Versions) -> None:
    play = Play()
    for node in [*play.followers, play.leader]:
        play.upgrade(node, code)
    play.until(lambda: play.effective == {code})
    config = play.simulation.configuration()
    change = ConfChange(ConfOp.ADD_LEARNER, config.highest_id + 1, "n9", b"t" * 16, FIRST)
    assert play.attempt(change) == [Refusal.INVALID_CHANGE]
    play.wait(1)
    assert play.simulation.configuration() == config
    play.attempt(change._replace(versions=code))
    play.until(lambda: config.highest_id + 1 in play.simulation.configuration().members)


@later
def test_a_learner_that_has_not_reported_holds_the_raise_back(code: Versions) -> None:
    play = Play()
    for node in play.followers:
        play.upgrade(node, code)
    # It never comes: nobody made its directory.
    change = ConfChange(ConfOp.ADD_LEARNER, 4, "n4", b"t" * 16, code)
    play.attempt(change)
    play.until(lambda: 4 in play.simulation.configuration().members)
    play.upgrade(play.leader, code)
    play.wait(5)
    assert play.effective == {FIRST}
    assert play.leader.engine is not None
    assert play.leader.engine.upgrades.held_back_by() == {4: "it has not said yet what its code knows"}
    play.attempt(ConfChange(ConfOp.REMOVE, 4))
    play.until(lambda: play.effective == {code})


@later
def test_no_version_rises_beside_a_change_of_members_that_is_not_committed(code: Versions) -> None:
    play = Play()
    for node in play.followers:
        play.upgrade(node, code)
    change = ConfChange(ConfOp.ADD_LEARNER, 4, "n4", b"t" * 16, code)
    assert play.attempt(change, ConfChange.to_raise(code)) == [None, Refusal.CHANGE_PENDING]
    play.wait(1)
    assert play.effective == {FIRST}
    play.attempt(ConfChange(ConfOp.REMOVE, 4))
    play.upgrade(play.leader, code)
    play.until(lambda: play.effective == {code})
