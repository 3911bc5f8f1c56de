"""A stored snapshot whose data rotted, on a computer where processes have the State without it."""

from __future__ import annotations

from collections.abc import Callable

from raftsvc.testing import Faults, RegisterWorkload
from raftsvc.testing.node import SimulatedNode
from raftsvc.testing.schedule import SECOND
from raftsvc.testing.simulation import Simulation
from raftsvc.testing.workers import Host

END_BYTES = 16
"""Of a stored snapshot: what stands behind the data."""


class Scene:
    """Three members with an attached process each; one has a snapshot, without which no log goes on, and it rots."""

    def __init__(self) -> None:
        self.simulation = simulation = Simulation(5, RegisterWorkload(), Faults(kinds=()), False, attached=1)
        conditions = simulation.conditions
        conditions.options = conditions.options._replace(snapshot_entries=1000, trailing_entries=0, trailing_bytes=0)
        simulation.world.is_healed = True  # nothing else happens to those who are attached
        simulation.operator.found(3)
        for client in simulation.clients:
            client.start()
        self.until(lambda: simulation.report.counts["done"] > 50)
        for client in simulation.clients:
            client.is_stopping = True
        self.until(self.is_quiet)
        self.node.do(lambda engine: engine.snapshots.want())
        disk = self.node.computer.disk
        self.until(lambda: "/data/snap" in disk.paths() and self.log_begins_at() > 0)
        self.node.is_damaged = True
        disk.rot("/data/snap", len(disk.content("/data/snap")) - END_BYTES - 1, 0)

    @property
    def node(self) -> SimulatedNode:
        return self.simulation.nodes[2]

    @property
    def host(self) -> Host:
        assert self.node.host is not None
        return self.node.host

    def until(self, condition: Callable[[], bool], seconds: int = 30) -> None:
        assert self.simulation.run_until(self.simulation.now + seconds * SECOND, condition)

    def applied_index(self) -> int:
        return self.node.engine.applying.applied_index if self.node.engine is not None else 0

    def log_begins_at(self) -> int:
        return self.node.engine.core.log.offset if self.node.engine is not None else 0

    def is_quiet(self) -> bool:
        """Whether nobody waits for anything, and everything is applied on that computer."""
        last = self.simulation.watch.consensus.last_committed
        is_waiting = any(client.is_waiting for client in self.simulation.clients)
        return not is_waiting and self.applied_index() == last and self.host.agrees(last)


def test_another_is_taken_for_a_process_that_needs_it() -> None:
    scene = Scene()
    (former,) = scene.host.workers
    former.end()
    scene.until(lambda: former not in scene.host.workers and scene.host.agrees(scene.applied_index()))
    assert scene.log_begins_at() > 0, "it was not fed from the beginning"


def test_a_takeover_does_not_look_at_it_and_a_start_does() -> None:
    scene = Scene()
    node, (worker,) = scene.node, scene.host.workers
    node.kill()
    scene.until(lambda: node.process is not None)
    assert worker.heir is node.process
    assert node.is_damaged
    node.kill(with_attached=True)
    node.restart_later()
    scene.until(lambda: scene.simulation.configuration().voters == {1, 3, 4})
    assert node.is_gone
