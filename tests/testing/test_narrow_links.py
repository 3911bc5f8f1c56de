"""Links that carry 1.5 Mbit/s: what is long arrives, what is short is not held up, nobody loses the lead for it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from raftsvc.member.engine import EngineOptions
from raftsvc.testing import Faults, RegisterWorkload
from raftsvc.testing.clients import SimulatedCall
from raftsvc.testing.node import SimulatedNode
from raftsvc.testing.schedule import MILLISECOND, SECOND
from raftsvc.testing.simulation import Simulation
from raftsvc.testing.world import TICK

MEGABIT = 1_000_000 // 8
LONG_BYTES = 1_000_000


class Writers:
    """A cluster of three, its slow links, and who writes to it."""

    def __init__(self, seed: int, rate: int, **options: int) -> None:
        self.simulation = simulation = Simulation(seed, RegisterWorkload(), Faults(kinds=()), keep_trace=False)
        conditions = simulation.conditions
        conditions.options = EngineOptions(tick_ns=1000 * TICK, **options)
        conditions.segment_bytes = 4 << 20
        conditions.sync_bytes = conditions.piece_bytes = 256 * 1024
        simulation.operator.found(3)
        assert simulation.run_until(simulation.now + 10 * SECOND, lambda: simulation.leader() is not None)
        simulation.run_until(simulation.now + SECOND)
        simulation.network.set_rate(rate)
        self.latencies: list[int] = []
        self.longest_silence = 0
        self.serial = 0
        self.leader = simulation.leader()
        assert self.leader is not None and self.leader.engine is not None
        self.term = self.leader.engine.core.term

    @property
    def followers(self) -> list[SimulatedNode]:
        return [node for node in self.simulation.nodes.values() if node is not self.leader]

    def write(
        self, node: SimulatedNode, size: int = 0, done: Callable[[int], None] | None = None, key: str = "k"
    ) -> SimulatedCall:
        """Set a register by an instruction of at least `size` bytes; `done` is told how long it took."""
        self.serial += 1
        instruction = json.dumps(["set", key, self.serial]).encode().ljust(size)
        began = self.simulation.now
        call = SimulatedCall([instruction], lambda: done(self.simulation.now - began) if done else None)
        node.do(lambda engine: engine.submit(call))
        return call

    def write_little_all_the_time(self, but_at: SimulatedNode | None = None) -> None:
        """At every node, ten times a second."""

        def write() -> None:
            for node in self.simulation.nodes.values():
                if node is not but_at:
                    self.write(node, done=self.latencies.append)
                if node.engine is not None and node is not self.leader:
                    self.longest_silence = max(self.longest_silence, node.engine.core.election.leader_elapsed)
            self.simulation.world.schedule.at(100 * MILLISECOND, write)

        write()

    def run_until_done(self, call: SimulatedCall, seconds: int) -> None:
        simulation = self.simulation
        assert simulation.run_until(simulation.now + seconds * SECOND, lambda: call.is_finished), "it did not arrive"
        assert call.outcome is not None, call.error

    def check_nobody_lost_the_lead(self) -> None:
        terms = {node.engine.core.term for node in self.simulation.nodes.values() if node.engine is not None}
        assert terms == {self.term} and self.simulation.leader() is self.leader
        assert self.longest_silence < 8, "ticks, of ten"


@pytest.mark.parametrize("at_leader", [True, False])
@pytest.mark.parametrize("rate", [MEGABIT // 2, 3 * MEGABIT // 2, 3 * MEGABIT])
def test_a_megabyte_arrives_and_holds_nobody_up(rate: int, at_leader: bool) -> None:
    writers = Writers(3, rate)
    assert writers.leader is not None
    writers.write_little_all_the_time()
    long = writers.write(writers.leader if at_leader else writers.followers[0], LONG_BYTES)
    writers.run_until_done(long, 4 * LONG_BYTES // rate)
    writers.check_nobody_lost_the_lead()
    assert len(writers.latencies) > 60
    assert max(writers.latencies) < (SECOND if rate > MEGABIT else 2 * SECOND)


@pytest.mark.parametrize("at_leader", [True, False])
@pytest.mark.parametrize("rate", [25_000, 40_000])
def test_below_what_links_have_today_what_is_long_costs_no_election_either(rate: int, at_leader: bool) -> None:
    writers = Writers(3, rate)
    assert writers.leader is not None
    writers.write_little_all_the_time()
    long = writers.write(writers.leader if at_leader else writers.followers[0], 10 * rate)
    writers.run_until_done(long, 40)
    writers.check_nobody_lost_the_lead()
    assert max(writers.latencies) < 3 * SECOND


@pytest.mark.parametrize("at_leader", [True, False])
def test_a_link_that_became_slow_since_the_last_long_one_is_measured_anew(at_leader: bool) -> None:
    writers = Writers(3, 0)
    assert writers.leader is not None
    node = writers.leader if at_leader else writers.followers[0]
    for _ in range(8):
        writers.run_until_done(writers.write(node, LONG_BYTES), 5)
    writers.simulation.run_until(writers.simulation.now + 3 * SECOND)
    writers.simulation.network.set_rate(3 * MEGABIT // 2)
    writers.write_little_all_the_time()
    writers.run_until_done(writers.write(node, LONG_BYTES), 20)
    writers.check_nobody_lost_the_lead()
    assert max(writers.latencies) < SECOND


def test_what_was_given_up_does_not_go_on_filling_the_link() -> None:
    writers = Writers(5, 3 * MEGABIT // 2)
    simulation = writers.simulation
    node = writers.followers[0]
    long = writers.write(node, LONG_BYTES)
    simulation.run_until(simulation.now + SECOND)
    assert node.engine is not None and node.engine.calls.withdraw(long)
    assert long.unsettled == 0, "it is certain that it takes no effect"
    simulation.run_until(simulation.now + SECOND)
    for each in simulation.nodes.values():
        writers.run_until_done(writers.write(each, done=writers.latencies.append), 1)
    assert max(writers.latencies) < 300 * MILLISECOND
    simulation.run_until(simulation.now + 10 * SECOND)
    assert long.outcome is None


@pytest.mark.parametrize("at_leader", [True, False])
def test_pieces_that_were_lost_are_sent_again(at_leader: bool) -> None:
    writers = Writers(8, 0)
    network = writers.simulation.network
    node = writers.leader if at_leader else writers.followers[0]
    assert node is not None
    network.loss = 0.1
    for _ in range(3):
        writers.run_until_done(writers.write(node, 200_000), 60)
        writers.run_until_done(writers.write(node), 20)


def test_a_new_leader_goes_on_where_the_one_before_ended() -> None:
    writers = Writers(6, 3 * MEGABIT // 2)
    simulation = writers.simulation
    node = writers.followers[0]
    long = writers.write(node, LONG_BYTES)
    engine = node.engine
    assert engine is not None and writers.leader is not None

    def held() -> int:
        return engine.applying.machine.sessions.held_of(engine.calls.session_id, long.number)

    assert simulation.run_until(simulation.now + 20 * SECOND, lambda: held() > LONG_BYTES // 2)
    writers.leader.kill()
    assert held() > LONG_BYTES // 2
    begins_anew: list[int] = []

    def is_done() -> bool:
        if not long.is_finished and held() <= LONG_BYTES // 2:
            begins_anew.append(simulation.now)
        return long.is_finished

    assert simulation.run_until(simulation.now + 10 * SECOND, is_done), "the whole takes longer"
    assert long.outcome is not None and not begins_anew


@pytest.mark.parametrize("rate", [3 * MEGABIT // 2, MEGABIT // 2])
def test_who_was_away_catches_up_and_holds_nobody_up(rate: int) -> None:
    writers = Writers(4, 0)
    simulation = writers.simulation
    away = writers.followers[0]
    links = {(away.node_id, i) for i in simulation.nodes} | {(i, away.node_id) for i in simulation.nodes}
    simulation.network.cut |= links
    assert writers.leader is not None
    for _ in range(40):
        writers.run_until_done(writers.write(writers.leader, 50_000 * rate // (3 * MEGABIT // 2)), 1)
    simulation.network.set_rate(rate)
    writers.term = writers.leader.engine.core.term if writers.leader.engine else 0
    simulation.network.cut -= links
    simulation.run_until(simulation.now + SECOND)  # it campaigned, perhaps
    writers.write_little_all_the_time()
    engine = away.engine
    assert engine is not None

    def is_up_to_date() -> bool:
        leader = writers.leader.engine if writers.leader else None
        return leader is not None and engine.core.log.last_index >= leader.core.log.commit_index - 3

    assert simulation.run_until(simulation.now + 30 * SECOND, is_up_to_date)
    writers.check_nobody_lost_the_lead()


def test_a_snapshot_passes_a_slow_link_and_holds_nobody_up() -> None:
    writers = Writers(4, 0, snapshot_entries=10, trailing_entries=0)
    simulation = writers.simulation
    away = writers.followers[0]
    links = {(away.node_id, i) for i in simulation.nodes} | {(i, away.node_id) for i in simulation.nodes}
    simulation.network.cut |= links
    assert writers.leader is not None
    for n in range(100):
        writers.run_until_done(writers.write(writers.leader, key=f"{n}" * 3000), 1)
    simulation.network.set_rate(3 * MEGABIT // 2)
    simulation.network.cut -= links
    simulation.run_until(simulation.now + 300 * MILLISECOND)
    writers.write_little_all_the_time(but_at=away)
    engine = away.engine
    assert engine is not None
    assert simulation.run_until(simulation.now + 30 * SECOND, lambda: engine.core.log.offset > 30)
    simulation.run_until(simulation.now + SECOND)
    writers.check_nobody_lost_the_lead()
    assert max(writers.latencies) < SECOND
