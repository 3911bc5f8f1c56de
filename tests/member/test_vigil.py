"""When work is too slow for a leader, and when it is not any more."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import pytest

from raftsvc.core.raft import Role
from raftsvc.errors import DiskRefusedError, NodeFailedError, OutOfTouchError, RaftError
from raftsvc.logs import NOTHING
from raftsvc.member.engine import Engine
from raftsvc.member.health import Condition
from raftsvc.member.vigil import Lines, Stall
from raftsvc.testing import Faults, RegisterWorkload
from raftsvc.testing.node import SimulatedNode
from raftsvc.testing.schedule import SECOND
from raftsvc.testing.simulation import Simulation

PATIENCE = 10


def work(stall: Stall, ticks: int, pause: int = 0) -> bool:
    """Something takes `ticks`, then nothing is to be done for `pause`; whether it was stalled meanwhile."""
    was_stalled = False
    for _ in range(ticks):
        stall.tick(True)
        was_stalled |= stall.is_stalled
    stall.advanced()
    for _ in range(pause):
        stall.tick(False)
    return was_stalled


def test_what_hangs_is_stalled_after_twice_the_patience_and_no_earlier() -> None:
    stall = Stall(PATIENCE)
    assert not work(stall, 2 * PATIENCE - 1)
    assert work(Stall(PATIENCE), 2 * PATIENCE)


@pytest.mark.parametrize("ticks", [11, 12, 15, 19])
@pytest.mark.parametrize("pause", [0, 1, 5])
def test_what_is_always_late_is_stalled_though_it_never_hangs(ticks: int, pause: int) -> None:
    stall = Stall(PATIENCE)
    assert not work(stall, ticks, pause), "once is not always"
    assert any(work(stall, ticks, pause) for _ in range(2 * PATIENCE))


@pytest.mark.parametrize("ticks", [1, 9, 10])
def test_what_is_done_in_time_is_never_stalled(ticks: int) -> None:
    stall = Stall(PATIENCE)
    assert not any(work(stall, ticks) for _ in range(100))


def test_now_and_then_one_that_is_late_is_no_stall() -> None:
    stall = Stall(PATIENCE)
    assert not any(work(stall, 19) or work(stall, 1) for _ in range(50))


@pytest.mark.parametrize("ticks", [20, 60])
def test_it_is_over_with_the_first_that_is_done_in_time_or_after_a_while_without_work(ticks: int) -> None:
    for pause, again, is_over in ((0, 3, True), (PATIENCE, 0, True), (PATIENCE - 1, 0, False)):
        stall = Stall(PATIENCE)
        work(stall, ticks, pause)
        if again:
            work(stall, again)
        assert stall.is_stalled is not is_over


@pytest.mark.parametrize(("members", "is_mistaken"), [(1, True), (3, False)])
def test_only_a_node_that_is_alone_can_be_one_that_lost_its_directory(members: int, is_mistaken: bool) -> None:
    """Else whoever mixes up two clusters of one secret could have a sound one take its nodes for unready."""
    simulation = Simulation(3, RegisterWorkload(), Faults(kinds=()), keep_trace=False)
    simulation.operator.found(members)
    assert simulation.run_until(60 * SECOND, lambda: simulation.leader() is not None)
    leader = simulation.leader()
    assert leader is not None and leader.engine is not None
    engine = leader.engine
    engine.vigil.note_claim("00000000000000c2", 2)
    assert (Condition.CLAIMED.label in engine.health.conditions()) is is_mistaken
    assert engine.health.may_be_ready is not is_mistaken
    assert simulation.run_until(simulation.now + 60 * SECOND, lambda: not engine.health.conditions())


def test_a_node_that_is_drained_leads_as_long_as_no_other_can() -> None:
    """It was not stopped after all, and may have the longest log of those that are left."""
    simulation = Simulation(3, RegisterWorkload(), Faults(kinds=()), keep_trace=False)
    simulation.operator.found(3)

    def leads(node: SimulatedNode) -> bool:
        return node.engine is not None and node.engine.core.role is Role.LEADER

    def engine_of(node: SimulatedNode) -> Engine:
        assert node.engine is not None
        return node.engine

    assert simulation.run_until(60 * SECOND, lambda: simulation.leader() is not None)
    leader = simulation.leader()
    assert leader is not None
    drained = [node for node in simulation.nodes.values() if node is not leader]
    assert simulation.run_until(simulation.now + 60 * SECOND, lambda: engine_of(drained[0]).core.leader_id != 0)
    for node in drained:
        node.do(lambda engine: engine.vigil.begin(Condition.DRAINING, NodeFailedError("drained"), logging.WARNING))
    leader.pause()
    assert simulation.run_until(simulation.now + 60 * SECOND, lambda: any(map(leads, drained)))
    one = next(filter(leads, drained))
    leader.resume()
    assert simulation.run_until(simulation.now + 60 * SECOND, lambda: engine_of(leader).core.leader_id == one.node_id)
    assert leads(one)

    def hand_over(engine: Engine) -> None:
        engine.time.note()
        engine.core.transfer_leadership(leader.node_id)

    one.do(hand_over)
    assert simulation.run_until(simulation.now + 60 * SECOND, lambda: leads(leader))
    assert simulation.run_until(
        simulation.now + 60 * SECOND, lambda: not any(engine_of(node).core.is_fit_to_lead for node in drained)
    )
    assert not any(engine_of(node).health.may_be_ready for node in drained)


def test_that_nobody_leads_is_told_anew_as_reasons_change_or_it_lasts_and_not_all_the_time() -> None:
    """Whoever listens to `err` is told of each of these: a ring of a hundred events is not full of one."""
    simulation = Simulation(3, RegisterWorkload(), Faults(kinds=()), keep_trace=False)
    simulation.operator.found(3)
    assert simulation.run_until(60 * SECOND, lambda: simulation.leader() is not None)
    alone, *others = simulation.nodes.values()
    for node in others:
        node.pause()
    told: list[RaftError] = []

    def look() -> bool:
        assert alone.engine is not None
        error = alone.engine.health.err()
        if isinstance(error, OutOfTouchError) and error not in told:
            told.append(error)
        return False

    ends_at = simulation.now + 200 * SECOND
    assert not simulation.run_until(ends_at, look)
    whys = [str(error).partition(" or more, because: ")[2] for error in told]
    counts = [int(str(error).partition(" election timeouts")[0].rpartition(" ")[2]) for error in told]
    assert all(whys) and counts[0] == 3 and counts[-1] >= 96
    assert all(whys[n] != whys[n - 1] or counts[n] == 2 * counts[n - 1] for n in range(1, len(told)))


class Log:
    """What is said, and how loud."""

    def __init__(self) -> None:
        self.levels: list[int] = []
        self.fields: list[Mapping[str, object]] = []

    def say(
        self,
        level: int,
        message: str,
        error: BaseException | None = None,
        fields: Mapping[str, object] = NOTHING,
    ) -> None:
        self.levels.append(level)
        self.fields.append(fields)


@pytest.mark.parametrize(
    ("condition", "error", "level"),
    [
        (Condition.REFUSED, DiskRefusedError("full"), logging.ERROR),
        (Condition.OUT_OF_TOUCH, OutOfTouchError("alone"), logging.ERROR),
        (Condition.LOW_ROOM, DiskRefusedError("soon"), logging.WARNING),
    ],
)
def test_what_comes_and_goes_all_the_time_does_not_fill_the_log(
    condition: Condition, error: RaftError, level: int
) -> None:
    log = Log()
    lines = Lines(log, 1, 600)  # type: ignore[arg-type]
    for tick in range(500):
        lines.begin(condition, error, level, tick)
        lines.end(condition)
    assert [said for said in log.levels if said > logging.INFO] == [level, logging.WARNING] * 3
    assert len(log.levels) == 1000, "nothing is kept from who wants to know"
    log.levels.clear()
    lines.begin(Condition.STALLED, error, logging.ERROR, 500)
    assert log.levels == [logging.ERROR], "another is another"
    lines.begin(condition, error, level, 2000)
    lines.end(condition)
    assert log.levels[1:] == [level, logging.WARNING], "it is news again"
