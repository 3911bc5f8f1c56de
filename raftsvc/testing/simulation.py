"""A whole cluster in one thread and in virtual time, every accident of it drawn from one seed.

What runs is the real thing: the engine with core, machine, sessions and readers, and
the storage code, over simulated disks.  Simulated are the disks, the network
between the nodes (messages are encoded and decoded as on the wire), the clocks, the
clients and an operator who adds, removes and repairs nodes.  Not run are the
threads, locks and sockets around the engine; real processes are for those.

Nothing depends on the machine, on the hash seed or on what ran before: a seed is a
history, the same each time.  The parts, each of which knows those before it:

    schedule      virtual time, and the trace
    world         what all share: time, chance, the conditions of a seed, the watch (`invariants`), the report
    network       carries bytes
    computer      what outlives a process: disk and clock
    bounds        what a node may remember
    transfer      a snapshot on its way
    replica       the State in a process
    ways          how what a process says finds the way, whoever is where
    process       one life of a node: runs an engine, as its threads do
    node          a computer, and the processes that come and go on it
    cluster       all nodes
    clients, operator    who use it, and who looks after it
    visits, connected, outside   who use it without a replica of their own
    forming       how it founds itself, where nobody does so by hand
    injections, nemesis  what may go wrong, and who chooses
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from random import Random
from typing import Any, NoReturn

from raftsvc.core.membership import Configuration
from raftsvc.member.engine import Engine
from raftsvc.member.health import Condition
from raftsvc.state import WaitingState
from raftsvc.testing.clients import Client, Probe
from raftsvc.testing.cluster import Cluster
from raftsvc.testing.faults import Faults
from raftsvc.testing.forming import Forming
from raftsvc.testing.invariants import Violation
from raftsvc.testing.linearizability import check
from raftsvc.testing.nemesis import Nemesis
from raftsvc.testing.network import Network
from raftsvc.testing.node import SimulatedNode
from raftsvc.testing.operator import Operator
from raftsvc.testing.outside import Outside, count_of
from raftsvc.testing.process import Caller
from raftsvc.testing.report import Report, SimulationFailed
from raftsvc.testing.schedule import SECOND
from raftsvc.testing.workload import RegisterWorkload, Workload
from raftsvc.testing.world import FEW_BYTES, FEW_ENTRIES, LATER, LEISURE, LITTLE_BYTES, PATIENCE, World

FORMING_SHARE = 0.3
"""Of the seeds, in which the cluster founds itself."""


def simulate(
    seed: int,
    workload: Workload | None = None,
    faults: Faults | None = None,
    keep_trace: bool = False,
    attached: int = 0,
    connected: int | None = None,
) -> Report:
    """Run the history of `seed` and check it; raises SimulationFailed.

    workload:   the State, and what clients do to it; None: registers and counters.
    faults:     what may go wrong; None: everything.
    attached:   how many processes are attached to each node's, which take its place when it ends.
    connected:  how many processes use the cluster from outside, as connected clients; None: some, in some seeds.
    keep_trace: remember every event, which is slower; a failure is run again with it, and with a copy of the
                workload as it was before.
    """
    workload, faults = workload or RegisterWorkload(), faults or Faults()
    unused = None if keep_trace else _copied(workload)  # which knows nothing of what comes now
    simulation = Simulation(seed, workload, faults, keep_trace, attached, connected)
    try:
        return simulation.run()
    except Exception as error:
        what, trace = simulation.what_failed(error), simulation.world.schedule.trace
        if unused is not None:
            what, trace = _run_again(what, Simulation(seed, unused, faults, True, attached, connected))
        raise SimulationFailed(seed, what, trace) from error


def _copied(workload: Workload) -> Workload:
    """One that remembers the same; itself, where something in it cannot be copied."""
    try:
        return deepcopy(workload)
    except Exception:
        return workload


def _run_again(what: str, simulation: Simulation) -> tuple[str, list[str]]:
    """Have what failed happen once more, with a trace: what is to be said of it, and that."""
    after = "it passed"
    try:
        simulation.run()
    except Exception as error:
        after = simulation.what_failed(error)
    if after != what:
        what += f"; and run again, which should come to the same: {after}"
    return what, simulation.world.schedule.trace


class Simulation:
    """Everything that one seed is about; to be run as a whole, or played scene by scene."""

    def __init__(
        self,
        seed: int,
        workload: Workload,
        faults: Faults,
        keep_trace: bool,
        attached: int = 0,
        connected: int | None = None,
    ) -> None:
        self.world = world = World(seed, workload, keep_trace)
        self.conditions = world.conditions
        self.watch = world.watch
        self.report = world.report
        self.network = Network(world)
        callers: list[Caller] = []  # the clients, who come last: nodes know no more of them
        self.cluster = Cluster(world, self.network, callers, attached)
        self.nodes = self.cluster.nodes
        self.clients = [Client(world, self.cluster, n) for n in range(world.conditions.client_count)]
        callers += self.clients
        self.outside = Outside(world, self.cluster, count_of(seed) if connected is None else connected)
        callers.append(self.outside)
        self.operator = Operator(world, self.cluster)
        self.nemesis = Nemesis(world, self.network, self.cluster, self.operator, faults)
        self._faults = faults
        self._probes: dict[int, Probe] = {}

    # -- for scenes

    @property
    def now(self) -> int:
        """Microseconds since the beginning."""
        return self.world.schedule.now

    def run_until(self, time: int, condition: Callable[[], bool] | None = None) -> bool:
        """Let time pass until `time`, or until `condition` holds; whether it does."""
        return self.world.schedule.run_until(time, condition)

    def leader(self) -> SimulatedNode | None:
        """Whoever leads in the latest term."""
        return self.cluster.leader()

    def configuration(self) -> Configuration:
        """The latest one that any running node knows to be committed."""
        return self.cluster.configuration()

    def what_failed(self, error: Exception) -> str:
        """When and how, for people."""
        what = str(error) if isinstance(error, Violation) else f"{type(error).__name__}: {error}"
        return f"at {self.now / SECOND:.6f} s: {what}"

    # -- the whole

    def run(self) -> Report:
        """A cluster forms, suffers, is healed, and is judged."""
        world, report = self.world, self.report
        size = world.random.choice((3, 3, 3, 5))
        if world.random.random() < 0.25:
            world.latest_code = LATER  # there was older code, which somebody may start again
        self._found(size)
        for client in self.clients:
            client.start()
        self.outside.start()
        self.nemesis.start()
        self.run_until(self.now + self._faults.seconds * SECOND)
        self.nemesis.heal()
        self.outside.heal()
        healed = self.now
        if world.absent:
            self._expect_of_busy(
                self._all_clients_are_served,
                "liveness: a client was not served by the majority that was left",
                self._is_narrow,
            )
            self.nemesis.bring_back()
            for client in self.clients:
                client.served_since_heal = 0
            self.outside.count_anew()
        self._expect_of_busy(self._everybody_is_served, "liveness: a client was not served", self._is_narrow)
        self._expect_of_busy(self._every_member_serves_reads, "liveness: a read was not served", self._some_are_outrun)
        for client in self.clients:
            client.is_stopping = True
        self.outside.stop()
        self._expect(self._all_agree, "liveness: the nodes did not come to the same state")
        self._judge()
        report.virtual_seconds = self.now / SECOND
        report.steps = world.schedule.steps
        report.counts["seconds to heal"] = (self.now - healed) // SECOND
        report.trace = world.schedule.trace
        return report

    def _found(self, size: int) -> None:
        # Of its own, so that what comes after is the same history in the seeds that begin by hand.
        rng = Random(f"formation {self.report.seed}")
        if rng.random() < FORMING_SHARE:
            self.form(rng, size)
        else:
            self.operator.found(size)

    def form(self, random: Random, size: int) -> None:
        """A cluster of `size` founds itself, with all that may go wrong meanwhile."""
        self.report.counts["formed by themselves"] += 1
        self.operator.begin()
        Forming(self.world, self.network, self.cluster, self.operator, random, size).run()

    def _expect(self, condition: Callable[[], bool], what: str) -> None:
        if not self.run_until(self.now + PATIENCE, condition):
            self._fail(what)

    def _fail(self, what: str) -> NoReturn:
        raise Violation(f"{what}; " + "; ".join(node.describe() for node in self.nodes.values()))

    def _expect_of_busy(self, condition: Callable[[], bool], what: str, are_too_fast: Callable[[], bool]) -> None:
        """While clients go on; at leisure, if they want more than options and links let through."""
        if self.run_until(self.now + PATIENCE, condition):
            return
        if not are_too_fast():
            self._fail(what)
        self.conditions.think_time = LEISURE
        self.report.counts["slowed down"] += 1
        if self.run_until(self.now + PATIENCE, condition):
            return
        if not self._is_narrow():
            self._fail(f"{what}, at leisure")
        # What nodes write by themselves, such as renewals, may be all that the links let through.
        self.network.distance = 0
        self.report.counts["brought together"] += 1
        self._expect(condition, f"{what}, at leisure and near each other")

    def _is_narrow(self) -> bool:
        """Whether all are far apart, and so little may be on its way at once that an instruction takes many rounds."""
        leader = self.leader()
        if leader is None or leader.engine is None or not any(client.served_since_heal for client in self.clients):
            return False
        return self.network.distance > 0 and leader.engine.options.start_bytes <= LITTLE_BYTES

    def _some_are_outrun(self) -> bool:
        """Whether a snapshot is on its way to all who do not serve reads, and options have more written meanwhile than
        is kept for who gets one: then it is sent another, as often as that is so.
        """
        leader = self.leader()
        if leader is None or leader.engine is None or leader.engine.core.leader is None:
            return False
        options, progress = leader.engine.options, leader.engine.core.leader.replication.progress
        if options.max_pinned_entries > FEW_ENTRIES and options.max_pinned_bytes > FEW_BYTES:
            return False
        behind = [i for i, probe in self._probes.items() if not probe.is_served and i in progress]
        return bool(behind) and all(progress[i].snapshot_index for i in behind)

    def _everybody_is_served(self) -> bool:
        return not self.operator.is_busy and self._all_clients_are_served()

    def _all_clients_are_served(self) -> bool:
        return self.outside.is_served and all(client.served_since_heal >= 2 for client in self.clients)

    def _every_member_serves_reads(self) -> bool:
        if self.operator.is_busy:
            return False
        members = self.configuration().members
        for i in members:
            if i not in self._probes:
                self._probes[i] = Probe(self.world, self.cluster, i)
        return all(self._probes[i].is_served for i in members)

    def _all_agree(self) -> bool:
        leader = self.leader()
        if leader is None or self.operator.is_busy or any(client.is_waiting for client in self.clients):
            return False
        if self.outside.is_waiting:
            return False
        state: Any = leader.process.replica.state if leader.process else None
        if isinstance(state, WaitingState) and state.next_deadline() is not None:
            return False
        if not self.operator.is_all_upgraded or self.watch.versions.latest != self.world.latest_code:
            return False
        applied = leader.engine.applying.applied_index if leader.engine else 0
        members = self.configuration().members
        # One that is left alone is found by nobody, who would record where.
        if len(members) > 1 and any(member.addr != self.nodes[i].place.addr for i, member in members.items()):
            return False
        return applied == self.watch.consensus.last_committed and all(
            (engine := self.nodes[i].engine) is not None
            and engine.applying.applied_index == applied
            and engine.core.log.commit_index == applied
            and engine.digests.disagreement is None
            and not self._is_held_against(engine)
            and ((host := self.nodes[i].host) is None or host.agrees(applied))
            for i in members
        )

    def _is_held_against(self, engine: Engine) -> bool:
        """Whether something that was over when all was healed is still said of a node."""
        if engine.snapshots.is_resting or "until a restart" in str(engine.health.error_of(Condition.UNRELEASED)):
            return False
        return bool(engine.health.conditions())

    def _judge(self) -> None:
        processes = [self.nodes[i].process for i in sorted(self.configuration().members)]
        states = {process.replica.state.snapshot()[0] for process in processes if process is not None}
        if len(states) != 1:
            raise Violation("state machine safety: at the same index the States differ")
        self.watch.sessions.judge()
        verdict = check(self.report.history, self.world.workload.model)
        if not verdict.is_linearizable:
            raise Violation(f"the history is not linearizable: {verdict}")
