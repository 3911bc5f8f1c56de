"""A directory that was put back, beside one that knows of the later start only from its log."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from raftsvc.core.messages import ENTRY_OVERHEAD_BYTES, EntryKind, Life, kind_of
from raftsvc.core.raft import Role
from raftsvc.member.engine import Engine
from raftsvc.member.envelopes import ENVELOPE, INSTRUCTION, OPEN, VOID, wrap, wrap_void
from raftsvc.member.health import Condition
from raftsvc.testing import Faults, RegisterWorkload
from raftsvc.testing.node import SimulatedNode
from raftsvc.testing.schedule import SECOND
from raftsvc.testing.simulation import Simulation


def engine_of(node: SimulatedNode) -> Engine:
    assert node.engine is not None, node.describe()
    return node.engine


class Trio:
    """A leader, a member of which an older directory is kept, and a third, which never hears from that itself."""

    def __init__(self, seed: int) -> None:
        self.simulation = simulation = Simulation(seed, RegisterWorkload(), Faults(kinds=()), keep_trace=False)
        simulation.conditions.options = simulation.conditions.options._replace(snapshot_entries=1000)
        simulation.operator.found(3)
        self.until(lambda: simulation.leader() is not None)
        leader = simulation.leader()
        assert leader is not None
        self.leader = leader
        self.member, self.third = (node for node in simulation.nodes.values() if node is not leader)
        self.until(lambda: all(self.life_at(node) == engine_of(self.member).lives.own for node in self.all))
        self.until(lambda: engine_of(self.leader).core.log.commit_index == engine_of(self.leader).core.log.last_index)
        self.older = engine_of(self.member).lives.own

    @property
    def all(self) -> list[SimulatedNode]:
        return [self.leader, self.member, self.third]

    def life_at(self, node: SimulatedNode) -> Life:
        return engine_of(node).applying.machine.life_of(self.member.node_id)

    def until(self, condition: Callable[[], bool], seconds: int = 60) -> None:
        assert self.simulation.run_until(self.simulation.now + seconds * SECOND, condition)

    def cut(self, one: SimulatedNode, other: SimulatedNode) -> None:
        self.simulation.network.cut |= {(one.node_id, other.node_id), (other.node_id, one.node_id)}

    def log_holds(self, node: SimulatedNode, op: int, number: int) -> bool:
        """Whether its log holds an entry of that kind, on disk, whose third number is that."""
        log = engine_of(node).core.log
        entries = [e for e in log.newest_first() if kind_of(e) is EntryKind.NORMAL][: log.stable_index - log.offset]
        said = [ENVELOPE.unpack_from(e, ENTRY_OVERHEAD_BYTES) for e in entries]
        return any(each[0] == op and each[1] == self.member.node_id and each[3] == number for each in said)

    def start_member_again(self) -> None:
        """Keep a copy of its directory, and start it; the third hears of that from the leader alone."""
        self.cut(self.member, self.third)
        self.member.doubles.copy = self.older, self.member.computer.disk.copy()
        self.member.kill()
        self.member.start()

    def acknowledge(self) -> None:
        """The leader and the member commit something that the third does not have."""
        index = engine_of(self.leader).core.log.last_index + 1
        proposal = EntryKind.NORMAL, wrap(INSTRUCTION, 1, 1, 1, 1, b"[]")
        self.leader.do(lambda engine: engine.core.propose([proposal]))
        self.until(lambda: engine_of(self.leader).core.log.commit_index >= index)

    def leave_the_two_alone(self) -> None:
        """The directory is put back, and the leader is gone."""
        self.member.put_back()
        self.leader.kill()
        self.simulation.network.cut.clear()
        for node in (self.member, self.third):
            node.start()


def is_doubted(node: SimulatedNode) -> bool:
    return engine_of(node).health.error_of(Condition.DOUBLED) is not None


def strike(third: SimulatedNode, how: str) -> None:
    if how == "is killed":
        third.kill()
    elif how == "loses power":
        third._end()
        third.computer.disk.lose_power(lambda: False)


@pytest.mark.parametrize("how", ["is killed", "loses power", "runs on"])
@pytest.mark.parametrize("seed", [1, 2])
def test_whoever_has_a_later_start_in_its_log_counts_no_earlier_one_though_it_knows_of_no_commit(
    seed: int, how: str
) -> None:
    trio = Trio(seed)
    trio.start_member_again()
    start = engine_of(trio.member).lives.own.counter
    if how == "runs on":
        trio.until(lambda: trio.log_holds(trio.third, OPEN, start))
        trio.cut(trio.leader, trio.third)  # before it is told that this is committed
        trio.until(lambda: trio.life_at(trio.leader).counter == start)
        assert trio.life_at(trio.third) == trio.older
    else:
        trio.until(lambda: trio.life_at(trio.third).counter == start)
        strike(trio.third, how)  # it has applied it, and wrote nothing since
    trio.acknowledge()
    trio.leave_the_two_alone()
    trio.until(lambda: trio.member.is_found_out)
    trio.simulation.run_until(trio.simulation.now + 20 * SECOND)
    assert engine_of(trio.third).core.role is not Role.LEADER
    trio.leader.start()
    trio.until(lambda: trio.simulation.leader() is not None)
    trio.until(lambda: engine_of(trio.third).core.log.commit_index > trio.simulation.watch.consensus.last_committed - 1)
    assert all(engine_of(n).health.error_of(Condition.FAILED) is None for n in (trio.leader, trio.third))


@pytest.mark.parametrize("how", ["is killed", "loses power"])
def test_whoever_has_in_its_log_that_a_member_is_void_counts_nothing_of_it_after_a_restart(how: str) -> None:
    trio = Trio(3)
    trio.member.kill()
    trio.leader.do(lambda engine: engine.core.propose([(EntryKind.NORMAL, wrap_void(trio.member.node_id))]))
    trio.until(lambda: trio.log_holds(trio.third, VOID, 0))
    trio.until(lambda: is_doubted(trio.third))
    strike(trio.third, how)
    trio.leader.kill()
    trio.third.start()
    trio.member.start()  # it heard nothing of it
    trio.until(lambda: trio.member.is_found_out)
    assert is_doubted(trio.third)
    assert engine_of(trio.third).core.role is not Role.LEADER


@pytest.mark.pure
def test_a_copy_that_is_gone_hears_no_answer_to_what_it_asked() -> None:
    simulation = Simulation(1, RegisterWorkload(), Faults(kinds=()), keep_trace=False)
    network, told = simulation.network, list[int]()
    ports: Any = network.ports
    for port_id in (-1, -2):
        ports[port_id] = SimpleNamespace(place=SimpleNamespace(ways=Mock(), addr="nowhere"))
    asked = ports[-2].place.ways
    network.introduce(-1, -2, lambda: told.append(1))
    simulation.run_until(simulation.now + SECOND)
    assert told == [1]
    network.introduce(-1, -2, lambda: told.append(2))
    del ports[-1]
    simulation.run_until(simulation.now + SECOND)
    assert asked.meet.call_count == 2
    assert told == [1]
