"""Log time in virtual time: what runs down and when, whoever leads, and that nothing is written where nobody waits.

What the watch checks in all of it: no timer runs down early, and log time is never ahead of the truth.
"""

from __future__ import annotations

import json

import pytest

from raftsvc.testing import Faults, RegisterWorkload
from raftsvc.testing.clients import SimulatedCall
from raftsvc.testing.node import SimulatedNode
from raftsvc.testing.schedule import MILLISECOND, SECOND
from raftsvc.testing.simulation import Simulation
from raftsvc.testing.workload import TimerState

HOUR = 3600 * SECOND


class Play:
    """Three nodes that nobody uses but this test."""

    def __init__(self, seed: int) -> None:
        self.simulation = simulation = Simulation(seed, RegisterWorkload(), Faults(kinds=()), keep_trace=False)
        simulation.operator.found(3)
        assert simulation.run_until(60 * SECOND, lambda: simulation.leader() is not None)
        assert simulation.run_until(60 * SECOND, lambda: len(simulation.configuration().voters) == 3)
        simulation.run_until(simulation.now + 5 * SECOND)

    @property
    def nodes(self) -> list[SimulatedNode]:
        return list(self.simulation.nodes.values())

    @property
    def leader(self) -> SimulatedNode:
        leader = self.simulation.leader()
        assert leader is not None
        return leader

    def wait(self, seconds: float) -> None:
        self.simulation.run_until(self.simulation.now + int(seconds * SECOND))

    def states(self) -> list[TimerState]:
        found = [node.process.replica.state for node in self.nodes if node.process is not None]
        return [state for state in found if isinstance(state, TimerState)]

    def set_timer(self, ttl_ms: int) -> None:
        call = SimulatedCall([json.dumps(["timer", "k", ttl_ms]).encode()], lambda: None)
        self.simulation.watch.sessions.asks(call)
        self.leader.do(lambda engine: engine.submit(call))
        assert self.simulation.run_until(
            self.simulation.now + 10 * SECOND, lambda: all(state.timers for state in self.states())
        )

    def until_run_down(self, most_seconds: float) -> float:
        """Seconds until that is so at all nodes."""
        began = self.simulation.now
        assert self.simulation.run_until(
            began + int(most_seconds * SECOND),
            lambda: len(self.states()) == 3 and not any(state.timers for state in self.states()),
        ), [node.describe() for node in self.nodes]
        return (self.simulation.now - began) / SECOND

    def last_indexes(self) -> list[int]:
        return [node.engine.core.log.last_index for node in self.nodes if node.engine is not None]


def test_an_idle_cluster_in_which_nothing_waits_writes_nothing() -> None:
    play = Play(1)
    before = play.last_indexes()
    writes = [node.engine.writes.fsync_count for node in play.nodes if node.engine is not None]
    play.wait(60)
    assert play.last_indexes() == before
    assert [node.engine.writes.fsync_count for node in play.nodes if node.engine is not None] == writes


@pytest.mark.parametrize("ttl_ms", [1, 2_000, 30_000])
def test_a_timer_runs_down_in_an_idle_cluster_for_few_entries(ttl_ms: int) -> None:
    play = Play(2)
    play.wait(20)  # time goes on for a leader whether or not it is written
    play.set_timer(ttl_ms)
    before = play.last_indexes()[0]
    assert ttl_ms / 1000 / 1.06 - 0.1 <= play.until_run_down(ttl_ms / 1000 / 0.94 + 1)
    pulses = play.last_indexes()[0] - before
    assert pulses <= 60, "each a tenth of what remained"
    play.wait(20)
    assert play.last_indexes()[0] == before + pulses, "nothing waits any more"


def test_the_hour_in_which_all_nodes_were_down_is_no_time() -> None:
    play = Play(3)
    play.set_timer(5_000)
    play.wait(2)
    for node in play.nodes:
        node.kill()
    play.wait(3600)
    for node in play.nodes:
        for clock in node.computer.elapsed:
            clock.show(play.simulation.now)
        node.start()
    until = play.simulation.now + 10 * SECOND
    assert play.simulation.run_until(until, lambda: all(state.timers for state in play.states())), "it is still set"
    assert play.until_run_down(10) > 2.5, "most of what remained, remains"


@pytest.mark.parametrize("seed", [4, 5, 6])
def test_a_timer_comes_though_it_outlasts_every_leader(seed: int) -> None:
    play = Play(seed)
    play.set_timer(6_000)
    deadline = play.simulation.now + 20 * SECOND

    def hand_over() -> None:
        if play.simulation.now < deadline:
            play.simulation.operator.hand_over()
            play.simulation.world.schedule.at(700 * MILLISECOND, hand_over)

    hand_over()
    assert play.until_run_down(15) >= 5.6


def test_a_timer_comes_though_every_leader_is_killed_before_it_is_due() -> None:
    play = Play(7)
    play.set_timer(20_000)
    began = play.simulation.now
    kills = 0
    while any(state.timers for state in play.states()):
        assert play.simulation.now < began + 120 * SECOND
        play.wait(4)
        if kills < 12:
            play.leader.kill()
            kills += 1
            play.wait(1)
        for node in play.nodes:
            node.start()
        assert play.simulation.run_until(
            play.simulation.now + 20 * SECOND, lambda: play.simulation.leader() is not None
        )
    assert kills >= 4
    assert play.until_run_down(10) >= 0


def test_a_leader_that_freezes_for_longer_than_any_timer_ends_none_early() -> None:
    play = Play(8)
    play.set_timer(3_000)
    frozen = play.leader
    frozen.pause()
    play.wait(0.2)
    for clock in frozen.computer.elapsed:
        clock.jump(3600)
    play.simulation.watch.times.slept(HOUR)
    frozen.resume()
    engine = frozen.engine
    assert engine is not None
    play.wait(0.1)
    assert all(state.timers for state in play.states()), "an election timeout at the most was counted"
    assert play.until_run_down(10) > 0.5


def test_clocks_that_stand_still_let_no_time_pass_and_do_no_other_harm() -> None:
    play = Play(9)
    play.set_timer(1_000)
    for node in play.nodes:
        node.computer.elapsed[0].bend(play.simulation.now, 0.0)
    before = play.last_indexes()[0]
    play.wait(30)
    assert all(state.timers for state in play.states())
    assert play.last_indexes()[0] <= before + 12
    for node in play.nodes:
        node.computer.elapsed[0].bend(play.simulation.now, None)
    play.until_run_down(5)
