"""A whole cluster in one thread and in virtual time, every accident of it drawn from one seed.

What runs is the real thing: the engine with core, machine, sessions and readers, and
the storage code, over simulated disks.  Simulated are the disks, the network
between the nodes (messages are encoded and decoded as on the wire), the clocks, the
clients and an operator who adds, removes and repairs nodes.  Not run are the
threads, locks and sockets around the engine; real processes are for those.

Time is counted in microseconds from 0.  Nothing depends on the machine, on the
hash seed or on what ran before: a seed is a history, the same each time.
"""

from __future__ import annotations

import heapq
import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from raftsvc.core.membership import ConfChange, Configuration, ConfOp
from raftsvc.core.messages import NO_NODE, Entry, EntryKind, HardState, Message, decode_messages, make_entry
from raftsvc.core.raft import Role
from raftsvc.errors import DivergedError, NotApplied, RaftError, Rejected, StorageError
from raftsvc.member.engine import Engine, EngineOptions
from raftsvc.member.machine import read_envelope
from raftsvc.member.snapshots import Capture
from raftsvc.member.waiters import Call, Read
from raftsvc.state import StreamingState
from raftsvc.storage import Store
from raftsvc.testing.disk import PowerLoss, SimulatedDisk
from raftsvc.testing.faults import Faults, Nemesis
from raftsvc.testing.invariants import Violation, Watch
from raftsvc.testing.linearizability import Operation, check
from raftsvc.testing.workload import Action, DamagingWorkload, RegisterWorkload, Workload
from raftsvc.transport import SnapshotChunk

logger = logging.getLogger("raftsvc.node")

MILLISECOND = 1000
SECOND = 1000 * MILLISECOND
TICK = 100 * MILLISECOND
_CLUSTER_ID = 7
_PATIENCE = 120 * SECOND
"""Virtual time that a healed cluster has to serve everybody; it needs a few seconds."""
_CONVICTION = 30 * SECOND
"""Virtual time within which a healed cluster convicts a member that differs; it needs an election timeout or two."""
_ATTENTION = 5 * SECOND
"""Virtual time after which the operator of a healed cluster sees to a member whose damage others cannot show."""
_MAX_STEPS = 1_000_000
"""Of one seed, which has 7,000 on an average: nodes that answer each other for ever fill the memory."""


@dataclass
class Report:
    """What a simulation did.

    history: what the clients saw, for the linearizability check.
    faults:  how many of each kind were injected.
    counts:  operations by outcome, and other things worth counting.
    trace:   every event, if it was to be kept.
    """

    seed: int
    virtual_seconds: float = 0.0
    steps: int = 0
    history: list[Operation] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    trace: list[str] = field(default_factory=list)


class SimulationFailed(Exception):
    """A seed in which something went wrong; `str` tells what, and `trace` how it came to it."""

    def __init__(self, seed: int, what: str, trace: Sequence[str]) -> None:
        super().__init__(f"seed {seed}: {what}")
        self.seed = seed
        self.what = what
        self.trace = trace


def simulate(
    seed: int,
    workload: Workload | None = None,
    faults: Faults | None = None,
    keep_trace: bool = False,
) -> Report:
    """Run the history of `seed` and check it; raises SimulationFailed.

    workload:   the State, and what clients do to it; None: registers and counters.
    faults:     what may go wrong; None: everything.
    keep_trace: remember every event, which is slower; a failure is run again with it.
    """
    simulation = Simulation(seed, workload or RegisterWorkload(), faults or Faults(), keep_trace)
    try:
        return simulation.run()
    except Exception as error:
        if not keep_trace:
            return simulate(seed, workload, faults, keep_trace=True)
        what = str(error) if isinstance(error, Violation) else f"{type(error).__name__}: {error}"
        raise SimulationFailed(seed, f"at {simulation.now / SECOND:.6f} s: {what}", simulation.trace) from error


class Simulation:
    """Time, the network, the nodes, the clients and the operator of one seed."""

    def __init__(self, seed: int, workload: Workload, faults: Faults, keep_trace: bool) -> None:
        self.seed = seed
        self.workload = workload
        self.faults = faults
        self.trace: list[str] = []
        self._keep_trace = keep_trace
        self.now = 0
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._event_count = 0
        self.random = Random(f"raftsvc {seed}")
        self.report = Report(seed)
        self.watch = Watch()
        self.nodes: dict[int, SimulatedNode] = {}
        self.network = Network(self)
        self.not_applied: list[tuple[int, int, int]] = []
        rng = self.random
        self.options = EngineOptions(
            election_ticks=rng.choice((5, 10)),
            snapshot_entries=rng.choice((8, 30, 100, 1000)),
            trailing_entries=rng.choice((0, 5, 50)),
            max_uncommitted_bytes=rng.choice((2000, 1 << 20)),
            tick_ns=1000 * TICK,
            lease_reads=rng.random() < 0.4,
        )
        self.segment_bytes = rng.choice((4096, 8192, 32768))
        self.sync_bytes = rng.choice((100, 500, 1 << 20))
        # Mean, of clients.  Some bugs need a cluster in which seldom something is written.
        self.think_time = rng.choice((20, 40, 40, 40, 1500)) * MILLISECOND
        self.clients = [Client(self, n) for n in range(rng.randint(3, 6))]
        self.least_voters = rng.choice((1, 2, 3, 3))
        self.operator = Operator(self)
        self.nemesis = Nemesis(self)

    # -- time

    def at(self, delay: int, action: Callable[[], None]) -> None:
        """Have `action` called `delay` microseconds from now."""
        self._event_count += 1
        heapq.heappush(self._events, (self.now + delay, self._event_count, action))

    def note(self, who: str, what: str) -> None:
        """Write a line of the trace."""
        line = f"{self.now / SECOND:11.6f} {who:4} {what}"
        self.trace.append(line)

    @property
    def is_traced(self) -> bool:
        """Whether `note` is worth its cost."""
        return self._keep_trace

    def run_until(self, time: int, condition: Callable[[], bool] | None = None) -> bool:
        """Let time pass until `time`, or until `condition` holds; whether it does."""
        while self._events and self._events[0][0] <= time:
            if condition is not None and condition():
                return True
            self.now, _, action = heapq.heappop(self._events)
            self.report.steps += 1
            if self.report.steps > _MAX_STEPS:
                raise Violation(f"liveness: no end after {_MAX_STEPS:,} steps")
            action()
        self.now = max(self.now, min(time, self._events[0][0] if self._events else time))
        return condition is not None and condition()

    # -- the whole

    def run(self) -> Report:
        """A cluster forms, suffers, is healed, and is judged."""
        report = self.report
        size = self.random.choice((3, 3, 3, 5))
        self.operator.found(size)
        for client in self.clients:
            client.start()
        self.nemesis.start()
        self.run_until(self.now + self.faults.seconds * SECOND)
        self.nemesis.heal()
        healed = self.now
        if self.nemesis.absent:
            self._expect(
                self._all_clients_are_served,
                "liveness: a client was not served by the majority that was left",
                healed + _PATIENCE,
            )
            self.nemesis.bring_back()
            for client in self.clients:
                client.served_since_heal = 0
        self._expect(self._everybody_is_served, "liveness: a client was not served", self.now + _PATIENCE)
        for client in self.clients:
            client.is_stopping = True
        self._expect(self._all_agree, "liveness: the nodes did not come to the same state", self.now + _PATIENCE)
        self._judge()
        report.virtual_seconds = self.now / SECOND
        report.counts["seconds to heal"] = (self.now - healed) // SECOND
        report.trace = self.trace
        return report

    def _expect(self, condition: Callable[[], bool], what: str, deadline: int) -> None:
        if not self.run_until(deadline, condition):
            raise Violation(f"{what}; " + "; ".join(node.describe() for node in self.nodes.values()))

    def _everybody_is_served(self) -> bool:
        return not self.operator.is_busy and self._all_clients_are_served()

    def _all_clients_are_served(self) -> bool:
        return all(client.served_since_heal >= 2 for client in self.clients)

    def _all_agree(self) -> bool:
        leader = self.leader()
        if leader is None or self.operator.is_busy or any(client.is_waiting for client in self.clients):
            return False
        applied = leader.engine.applied_index if leader.engine else 0
        members = self.configuration().members
        return applied == self.watch.last_committed and all(
            (engine := self.nodes[i].engine) is not None
            and engine.applied_index == applied
            and engine.core.log.commit_index == applied
            and engine.digests.disagreement is None
            for i in members
        )

    def _judge(self) -> None:
        members = [self.nodes[i] for i in sorted(self.configuration().members)]
        states = {node.state.snapshot()[0] for node in members}
        if len(states) != 1:
            raise Violation("state machine safety: at the same index the States differ")
        for key in self.not_applied:
            if key in self.watch.executed:
                raise Violation(f"instruction {key[2]} of node {key[0]} was reported NotApplied, and applied")
        verdict = check(self.report.history, self.workload.model)
        if not verdict.is_linearizable:
            raise Violation(f"the history is not linearizable: {verdict}")

    def leader(self) -> SimulatedNode | None:
        """Whoever leads in the latest term."""
        leading = [n for n in self.nodes.values() if n.engine is not None and n.engine.core.role is Role.LEADER]
        return max(leading, key=lambda n: n.engine.core.term if n.engine else 0, default=None)

    def is_live(self, node_ids: Collection[int]) -> bool:
        """Whether those, all of them at work, are a majority by whatever is in force, or may be soon.

        That is the configuration that is committed, and what comes after it in the logs of those
        who vote in it: it may be committed too.  Then what is on its way:
        learners that a leader may promote, before it notices who died, and removals asked for.
        """
        engines = [node.engine for i in node_ids if (node := self.nodes[i]).engine is not None]
        configs = {self.configuration()}
        since = max((engine.core.log.commit_index for engine in engines), default=0)
        for engine in engines:
            log = engine.core.log
            later = log.configs.since(min(since, log.last_index))
            configs |= {config for config in later if engine.node_id in config.voters}
        for node_id in self.operator.leaving:
            change = ConfChange(ConfOp.REMOVE, node_id)
            configs |= {c.changed(change) for c in configs if node_id in c.members and c.voters != {node_id}}
        for learner in {i for config in configs for i in config.learners}:
            change = ConfChange(ConfOp.PROMOTE, learner)
            configs |= {config.changed(change) for config in configs if learner in config.learners}
        return all(len(config.voters.intersection(node_ids)) >= config.quorum() for config in configs)

    def configuration(self) -> Configuration:
        """The latest one that any running node knows to be committed."""
        engines = [node.engine for node in self.nodes.values() if node.engine is not None]
        known = [(engine.core.log.commit_index, engine.core.committed_config) for engine in engines]
        return max(known, key=lambda pair: pair[0], default=(0, Configuration()))[1]


class Network:
    """Links that delay, lose, duplicate and reorder, or pass nothing at all in one direction or both."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self.cut: set[tuple[int, int]] = set()
        self.loss = 0.0
        self.duplication = 0.0
        self.delay = 300  # mean, microseconds

    def latency(self) -> int:
        """How long one message takes."""
        return 50 + int(self._simulation.random.expovariate(1 / self.delay))

    def send(self, source: SimulatedNode, target_id: int, messages: Sequence[Message]) -> None:
        """Carry `messages`, in one piece, or lose them."""
        simulation = self._simulation
        rng = simulation.random
        data = b"".join([message.encode() for message in messages])
        copies = 1 + (rng.random() < self.duplication)
        if (source.node_id, target_id) in self.cut or rng.random() < self.loss:
            simulation.report.counts["batches lost"] += 1
            copies = 0
            if rng.random() < 0.5:  # a connection that breaks is noticed, a request on its way may not be
                source.later(self.latency(), lambda: source.do(lambda engine: engine.report_unreachable(target_id)))
        for _ in range(copies):
            simulation.at(self.latency(), lambda: self._deliver(source.node_id, target_id, data))

    def _deliver(self, source_id: int, target_id: int, data: bytes) -> None:
        target = self._simulation.nodes.get(target_id)
        if target is None or (source_id, target_id) in self.cut:
            return
        target.when_running(lambda: target.hear(source_id, decode_messages(data)))

    def passes(self, source_id: int, target_id: int) -> bool:
        """Whether one request, or its answer, passes now."""
        return (source_id, target_id) not in self.cut and self._simulation.random.random() >= self.loss


class SimulatedCall(Call):
    """An instruction whose caller is called back instead of woken."""

    __slots__ = ("_done",)

    def __init__(self, instruction: bytes, done: Callable[[], None]) -> None:
        super().__init__(instruction)
        self._done = done

    def wake(self) -> None:
        self._done()


class SimulatedRead(Read):
    """A read whose caller is called back instead of woken."""

    __slots__ = ("_done",)

    def __init__(self, done: Callable[[], None]) -> None:
        super().__init__()
        self._done = done

    def wake(self) -> None:
        self._done()


class SimulatedNode:
    """One node: a disk that stays, and an engine that comes and goes.  The engine's Runner."""

    def __init__(self, simulation: Simulation, node_id: int) -> None:
        self.simulation = simulation
        self.node_id = node_id
        self.name = f"n{node_id}"
        self.disk = SimulatedDisk()
        self.engine: Engine | None = None
        self.state: Any = None
        self.store: Store | None = None
        self.refusal: StorageError | None = None
        self.is_paused = False
        self.is_gone = False
        self.is_damaged = False  # what is stored
        self.has_damaged_state = False
        self.is_suspect = False  # what it tells callers may come from a damaged State
        self.has_damaged_snapshot = False  # it started from one
        self.halted_at = 0
        self.tick_rate = 1.0
        # What leases allow: clocks that differ in rate by a tenth, and in what they show by anything.
        self._clock_rate = simulation.random.uniform(0.95, 1.05)
        self._clock_start = simulation.random.randrange(10**9)
        self.write_delay = 400  # mean, microseconds
        self.is_hung = False
        self.life = 0
        self._deferred: list[Callable[[], None]] = []
        self._is_applying = False
        self._transferring: set[int] = set()
        self._is_damaged_again = False
        self._damaged_snapshots: set[int] = set()  # that a damaged State made; by index

    @property
    def is_up(self) -> bool:
        """Whether the process runs, even if it is paused."""
        return self.engine is not None

    def describe(self) -> str:
        """One line for people."""
        engine = self.engine
        if engine is None:
            return f"{self.name} is down ({self.refusal})" if self.refusal else f"{self.name} is down"
        core = engine.core
        return (
            f"{self.name} {core.role.value} term={core.term} log={core.log.offset}..{core.log.last_index} "
            f"commit={core.log.commit_index} applied={engine.applied_index} err={engine.err()}"
        )

    def note(self, what: str) -> None:
        """Write a line of the trace."""
        if self.simulation.is_traced:
            self.simulation.note(self.name, what)

    # -- life

    def create(self, hard_state: HardState, entries: Sequence[Entry]) -> None:
        """Make the directory of a member, as `init` and `join` do."""
        store = self._open_store()
        store.create(self.node_id, _CLUSTER_ID, hard_state, entries)
        store.close()

    def _open_store(self) -> Store:
        simulation = self.simulation
        return Store.open("/data", self.disk, segment_bytes=simulation.segment_bytes, sync_bytes=simulation.sync_bytes)

    def start(self) -> None:
        """Start the process, unless it runs; it may refuse, or the power may go meanwhile."""
        if self.engine is not None or self.is_gone:
            return
        simulation = self.simulation
        self.life += 1
        self.refusal = None
        self.state = simulation.workload.make_state()
        self._is_applying = False
        self._transferring.clear()
        try:
            self.store = self._open_store()
            seed = Random(simulation.random.getrandbits(64))
            self.engine = Engine(self.name, self.store, self.state, simulation.options, seed, self)
        except PowerLoss:
            self._lose_power()
            return
        except StorageError as error:
            self.note(f"refuses to start: {error}")
            simulation.report.counts["refused to start"] += 1
            self.refusal = error
            self.disk.kill_process()
            return
        self.is_damaged = False  # everything stored was looked at
        self._restored(self.engine.applied_index)
        self.has_damaged_snapshot = self.is_suspect = self.has_damaged_state
        self._watch_state()
        self.note("starts: " + self.describe())
        simulation.watch.started(self.engine)
        simulation.watch.applied(self.engine, self.has_damaged_state)
        self.do(lambda engine: engine.start())
        self._schedule_tick()

    def _watch_state(self) -> None:
        """Have every instruction that reaches the State seen."""
        apply = self.state.apply

        def seen(data: bytes, index: int) -> bool:
            watch = self.simulation.watch
            watch.executes(self.node_id, data, index)
            if self.has_damaged_state:
                return bool(apply(data, index))
            try:
                satisfied = bool(apply(data, index))
            except Rejected:
                watch.decides(index, None)
                raise
            watch.decides(index, satisfied)
            return satisfied

        def watched(restore: Callable[[Any, int], None]) -> Callable[[Any, int], None]:
            def restored(data: Any, index: int) -> None:
                restore(data, index)
                self._restored(index)

            return restored

        self.state.apply = seen
        self.state.restore_snapshot = watched(self.state.restore_snapshot)
        if isinstance(self.state, StreamingState):
            state: Any = self.state
            state.restore_chunks = watched(state.restore_chunks)

    def damage_state(self, again: bool = False) -> bool:
        """Break something in the State; `again`: as often as it takes until answers depend on it."""
        simulation = self.simulation
        workload = simulation.workload
        if not isinstance(workload, DamagingWorkload) or not workload.damage(self.state, simulation.random):
            return False
        self.has_damaged_state = self.is_suspect = simulation.watch.was_damaged = True
        self._is_damaged_again = again
        return True

    def _restored(self, index: int) -> None:
        """The State is what the snapshot at `index` was."""
        self.has_damaged_state = index in self._damaged_snapshots
        self._is_damaged_again = False

    def holds_damage(self, index: int) -> bool:
        """Whether the stored snapshot at `index` is of a damaged State."""
        return index in self._damaged_snapshots

    def received(self, index: int) -> None:
        """A whole snapshot came from another, at `index`."""
        self._damaged_snapshots.discard(index)

    def kill(self) -> None:
        """The process ends at once; the machine goes on."""
        if self.engine is not None:
            self.note("killed")
            self._end()
            self.disk.kill_process()

    def cut_power(self) -> None:
        """The machine ends at once."""
        if self.engine is not None:
            self._end()
        self._lose_power()

    def _lose_power(self) -> None:
        rng = self.simulation.random
        share = rng.choice((0.0, 0.3, 0.7, 1.0))
        self.note(f"loses power; {share:.0%} of what was not synced stays")
        self._end()
        self.disk.lose_power(lambda: rng.random() < share)
        self.simulation.nemesis.restart_later(self)

    def _end(self) -> None:
        self.life += 1
        self.engine = None
        self.has_damaged_state = self.is_suspect = False
        self.halted_at = 0
        self.is_paused = False
        self._deferred.clear()
        for client in self.simulation.clients:
            client.lost_node(self.node_id)

    def pause(self) -> None:
        """SIGSTOP."""
        self.is_paused = True

    def resume(self) -> None:
        """SIGCONT: everything that came meanwhile comes now, after what callers may do first."""
        if self.is_paused:
            self.is_paused = False
            for client in self.simulation.clients:
                client.act_at_once(self)
        deferred, self._deferred = self._deferred, []
        for action in deferred:
            action()

    # -- doing something

    def when_running(self, action: Callable[[], None]) -> None:
        """Now, or after a pause; never in a later life of this node."""
        if self.engine is not None:
            self.later(0, action) if self.is_paused else action()

    def later(self, delay: int, action: Callable[[], None]) -> None:
        """In `delay` microseconds, in this life of the node."""
        life = self.life

        def fire() -> None:
            if self.life != life:
                return
            if self.is_paused:
                self._deferred.append(fire)
            else:
                action()

        self.simulation.at(delay, fire)

    def do(self, step: Callable[[Engine], None]) -> None:
        """One step of the engine, and all that follows from it at once."""
        engine = self.engine
        if engine is None:
            return
        try:
            step(engine)
            engine.advance()
            if engine.has_writes:
                self._begin_write(engine)
            if engine.snapshot_due and not self._is_applying:
                self._begin_snapshot(engine)
            if engine.has_work and not self._is_applying:
                self._begin_apply(engine)
        except PowerLoss:
            self._lose_power()
            return
        watch = self.simulation.watch
        latest_led = watch.latest_led
        watch.look(engine)
        if watch.latest_led != latest_led:
            for node in self.simulation.nodes.values():
                if node.engine is not None:
                    watch.look_at_lease(node.engine, node.now())
        watch.look_at_lease(engine, self.now())
        if not self.halted_at and isinstance(engine.halted, DivergedError):
            self.halted_at = self.simulation.now
            self.simulation.report.counts["convicted"] += 1
            self.note(str(engine.halted))
            watch.convicted(engine, engine.halted.index, self.has_damaged_state)
        if engine.digests.disagreement is not None:
            watch.disagrees(engine)
        for waiter in engine.take_finished():
            waiter.wake()
            if self.simulation.random.random() < 0.98:  # else its caller was interrupted
                self.later(self.simulation.random.randrange(1, 1000), self._awake)

    def _awake(self) -> None:
        if self.engine is not None and self.engine.note_awake():
            self.do(lambda engine: None)

    def hear(self, source_id: int, messages: Sequence[Message]) -> None:
        """Messages arrive."""
        if self.simulation.is_traced:
            for message in messages:
                self.note(f"<- {message!r}")
        self.do(lambda engine: engine.step(messages))

    def _schedule_tick(self) -> None:
        def tick() -> None:
            self._schedule_tick()
            self.do(lambda engine: engine.tick())

        self.later(int(TICK * self.tick_rate / self._clock_rate), tick)

    # -- slow work

    def _begin_write(self, engine: Engine) -> None:
        batch = engine.begin_write()
        delay = 20 + int(self.simulation.random.expovariate(1 / self.write_delay))

        def finish() -> None:
            if self.is_hung:
                self.later(20 * MILLISECOND, finish)
            else:
                self.do(write)

        def write(engine: Engine) -> None:
            failure: BaseException | None = None
            try:
                engine.write(batch)
            except PowerLoss:
                raise
            except BaseException as error:
                failure = error
                self.note(f"writing failed: {error}")
            engine.end_write(batch, failure)

        self.later(delay, finish)

    def _begin_apply(self, engine: Engine) -> None:
        work = engine.begin_apply()
        self._is_applying = True

        def finish(engine: Engine) -> None:
            self._is_applying = False
            answers, error = engine.apply(work)
            if isinstance(error, (Violation, PowerLoss)):
                raise error
            watch = self.simulation.watch
            watch.applied(engine, self.has_damaged_state)
            engine.end_apply(answers, error)
            for client in self.simulation.clients:
                client.look(self)
            if self._is_damaged_again and not watch.differs(engine):
                self.damage_state(again=True)

        def work_off() -> None:
            self.do(finish)
            # Not before all were told: a snapshot in the midst of a batch may have made the State whole.
            self.is_suspect = self.has_damaged_state

        self.later(5 + int(self.simulation.random.expovariate(1 / 50)), work_off)

    def _begin_snapshot(self, engine: Engine) -> None:
        capture = engine.capture()
        index = capture.header.index
        self.note(f"takes a snapshot at {index}")
        is_whole = not self.has_damaged_state
        if not is_whole:
            self._damaged_snapshots.add(index)

        def finish(engine: Engine) -> None:
            saved: Capture | None = None
            failure: Exception | None = None
            try:
                if engine.save(capture):
                    saved = capture
                    if is_whole:
                        self._damaged_snapshots.discard(index)
            except Exception as error:
                failure = error
            self.simulation.report.counts["snapshots"] += saved is not None
            engine.end_snapshot(saved, failure)

        self.later(int(self.simulation.random.expovariate(1 / (20 * MILLISECOND))), lambda: self.do(finish))

    # -- what the engine asks

    def post(self, peer_id: int, messages: Sequence[Message]) -> bool:
        """Send through the network."""
        assert self.engine is not None
        self.simulation.watch.said(self.engine, messages)
        if self.simulation.is_traced:
            for message in messages:
                self.note(f"-> {message!r}")
        self.simulation.network.send(self, peer_id, messages)
        return True

    def release_log(self, index: int) -> None:
        """Delete old segments a little later."""

        def release(engine: Engine) -> None:
            try:
                engine.release(index)
            except StorageError as error:
                self.note(f"releasing failed: {error}")

        self.later(MILLISECOND, lambda: self.do(release))

    def prepare_log(self) -> None:
        """Prepare the next segment piece by piece, so slowly at times that the log needs it before."""
        rng = self.simulation.random
        mean = self.write_delay * rng.choice((1, 10, 100))

        def go_on() -> None:
            self.later(20 + int(rng.expovariate(1 / mean)), piece)

        def piece() -> None:
            if self.is_hung:
                go_on()
            else:
                self.do(prepare)

        def prepare(engine: Engine) -> None:
            if engine.prepare():
                go_on()

        go_on()

    def members_changed(self) -> None:
        """Nothing to keep."""

    def state_changed(self) -> None:
        """Nobody is asleep."""

    def log_work(self) -> None:
        """Seen after each step."""

    def apply_work(self) -> None:
        """Seen after each step."""

    def now(self) -> int:
        """The clock that leases are measured by."""
        return int(1000 * (self._clock_start + self.simulation.now * self._clock_rate))

    def say(self, level: int, message: str, error: BaseException | None = None) -> None:
        """Log it at once: nothing is locked."""
        logger.log(level, "%s", message, exc_info=error)

    # -- snapshots to others

    def send_snapshot(self, message: Message) -> bool:
        """Send the stored snapshot piece by piece, as a transfer thread does."""
        if message.to_id in self._transferring or self.store is None or self.engine is None:
            return False
        self.simulation.watch.sends_snapshot(self.engine)
        self._transferring.add(message.to_id)
        Transfer(self, message).start()
        return True

    def end_transfer(self, peer_id: int, succeeded: bool, damage: Exception | None) -> None:
        """A transfer came to its end."""
        self._transferring.discard(peer_id)
        self.do(lambda engine: engine.report_snapshot(peer_id, succeeded, (), damage))


class Transfer:
    """The stored snapshot of one node on its way to another."""

    PIECE_BYTES = 200
    TRIES = 4

    def __init__(self, node: SimulatedNode, message: Message) -> None:
        self._node = node
        self._message = message
        self._life = node.life
        self._tries = 0
        self._request = 0
        self._is_refused = False

    def start(self) -> None:
        """Begin with the question where to go on."""
        self._node.later(MILLISECOND, self._open)

    def _open(self) -> None:
        node = self._node
        assert node.store is not None
        try:
            self._snapshot = node.store.open_snapshot()
        except (StorageError, OSError) as error:
            node.note(f"the snapshot cannot be sent: {error}")
            self._end(False, error)
            return
        header = self._snapshot.header
        if node.holds_damage(header.index):
            # It would damage another State: more than one is too many for anybody to tell who is right.
            node.note("the snapshot is of a damaged State, and lost on its way")
            node.simulation.report.counts["damaged snapshots lost"] += 1
            self._end(False)
            return
        m = self._message
        self._message = Message(
            m.kind, m.to_id, m.from_id, m.term, index=header.index, log_term=header.term, payload=header.config
        )
        self._send(0, 0)

    def _send(self, offset: int, size: int) -> None:
        node = self._node
        network = node.simulation.network
        data = self._snapshot.read(offset, size)
        message = self._message
        copy = decode_messages(message.encode())[0]
        chunk = SnapshotChunk(copy, self._snapshot.size_bytes, self._snapshot.crc, offset, data)
        self._request = request = self._request + 1
        node.later(500 * MILLISECOND, lambda: self._time_out(request, offset, size))
        target = node.simulation.nodes.get(message.to_id)
        if target is not None and network.passes(node.node_id, message.to_id):
            node.simulation.at(
                network.latency(), lambda: target.when_running(lambda: self._arrive(target, chunk, request))
            )

    def _time_out(self, request: int, offset: int, size: int) -> None:
        if request == self._request:
            self._tries += 1
            if self._tries >= self.TRIES:
                self._end(False, self._look_for_damage() if self._is_refused else None)
            else:
                self._send(offset, size)

    def _arrive(self, target: SimulatedNode, chunk: SnapshotChunk, request: int) -> None:
        answer: list[int] = []

        def receive(engine: Engine) -> None:
            if not engine.wants(chunk.message):
                engine.drop_incoming()
                wanted = chunk.size_bytes
            else:
                try:
                    wanted = engine.receive_chunk(chunk)
                except (ValueError, OSError, StorageError) as error:
                    target.note(f"a piece of a snapshot is refused: {error}")
                    self._is_refused = True
                    return
            answer.append(wanted)
            if wanted == chunk.size_bytes:
                target.received(chunk.message.index)
                engine.step([chunk.message])

        target.do(receive)
        network = self._node.simulation.network
        if answer and self._node.life == self._life and network.passes(target.node_id, self._node.node_id):
            self._node.later(network.latency(), lambda: self._answered(request, answer[0]))

    def _answered(self, request: int, wanted: int) -> None:
        if request != self._request:
            return
        if wanted >= self._snapshot.size_bytes:
            self._end(True)
        else:
            self._send(wanted, self.PIECE_BYTES)

    def _look_for_damage(self) -> Exception | None:
        try:
            self._snapshot.verify()
        except StorageError as error:
            return error
        return None

    def _end(self, succeeded: bool, damage: Exception | None = None) -> None:
        self._request = 0
        self._node.note(f"the snapshot for n{self._message.to_id} {'arrived' if succeeded else 'did not arrive'}")
        self._node.end_transfer(self._message.to_id, succeeded, damage)


class Client:
    """One caller after the other: thinks, acts, waits for the outcome or gives up, and does the next thing."""

    def __init__(self, simulation: Simulation, number: int) -> None:
        self._simulation = simulation
        self.number = number
        self.is_stopping = False
        self.is_waiting = False
        self.served_since_heal = 0
        self._node: SimulatedNode | None = None
        self._action = Action(None, None)
        self._called = 0
        self._serial = 0
        self._call: SimulatedCall | None = None
        self._read: SimulatedRead | None = None
        self._read_floor = 0
        self._plan = 0

    def start(self) -> None:
        """Do one thing after the other from now on."""
        rng = self._simulation.random
        self._plan = plan = self._plan + 1
        if not self.is_stopping:
            self._simulation.at(int(rng.expovariate(1 / self._simulation.think_time)), lambda: self._go_on(plan))

    def _go_on(self, plan: int) -> None:
        if plan != self._plan:
            return
        ready = [n for _, n in sorted(self._simulation.nodes.items()) if n.is_up and not n.is_paused]
        if ready and not self.is_stopping:
            self._act(self._simulation.random.choice(ready))
        else:
            self.start()

    def act_at_once(self, node: SimulatedNode) -> None:
        """Act at `node` now, unless something is under way or all is over."""
        if not self.is_waiting and not self.is_stopping:
            self._plan += 1
            self._act(node)

    def _act(self, node: SimulatedNode) -> None:
        simulation = self._simulation
        rng = simulation.random
        self._node = node
        simulation.report.counts["operations"] += 1
        serial = simulation.report.counts["operations"]
        self._serial += 1
        self._action = action = simulation.workload.next_action(rng, serial)
        self._called = simulation.now
        self.is_waiting = True
        if simulation.is_traced:
            simulation.note(f"c{self.number}", f"{action.input} at {node.name}")
        node.do(self._submit)
        mine = self._serial
        node.later(rng.choice((300 * MILLISECOND, 2 * SECOND, 5 * SECOND)), lambda: self._give_up(mine))

    def _submit(self, engine: Engine) -> None:
        action = self._action
        try:
            if action.instruction is None:
                self._read = SimulatedRead(self._read_confirmed)
                self._read_floor = self._simulation.watch.last_committed
                if self._simulation.random.random() < 0.5 and engine.is_current():
                    self._read.index = engine.applied_index
                    self._read_confirmed()
                else:
                    engine.submit_read(self._read)
            else:
                self._call = SimulatedCall(action.instruction, self._call_finished)
                engine.submit(self._call)
        except NotApplied as error:
            self._end("refused", error)

    def _give_up(self, serial: int) -> None:
        """The timeout of `exec` or `wait_read` passed, by the clock of the caller."""
        node = self._node
        if serial != self._serial or not self.is_waiting or node is None or node.engine is None:
            return
        if self._read is not None:
            if node.engine.reads.withdraw(self._read):
                self._end("timed out", None)
        elif self._call is not None and node.engine.calls.withdraw(self._call):
            self._settle(self._call, self._call.unsettled == 0)

    def _read_confirmed(self) -> None:
        read, node = self._read, self._node
        assert read is not None and node is not None
        if read.error is not None:
            self._end("refused", read.error)
            return
        if read.index < self._read_floor:
            raise Violation(
                f"a read is served at {read.index}, and {self._read_floor} was committed when it was asked for"
            )
        mine = self._serial
        # The caller's thread wakes a little later, and looks at the State then.
        node.later(self._simulation.random.randrange(1, 2000), lambda: self._look(mine))

    def _look(self, serial: int) -> None:
        node = self._node
        if serial == self._serial and self.is_waiting and node is not None:
            output = self._simulation.workload.read(node.state, self._action)
            self._end("misread" if node.is_suspect else "done", None, output)

    def _call_finished(self) -> None:
        call, node = self._call, self._node
        assert call is not None and node is not None and node.engine is not None
        if call.error is None and node.is_suspect:
            self._end("unknown", None)  # to the history: it took effect, but the answer may be wrong
        elif call.error is None:
            outcome = self._simulation.watch.answered(node.engine, call)
            if outcome.rejection is not None:
                self._end("rejected", None)
            else:
                self._end("done", None, self._simulation.workload.output_of(self._action, outcome.satisfied))
        else:
            self._settle(call, isinstance(call.error, NotApplied))

    def _settle(self, call: SimulatedCall, is_not_applied: bool) -> None:
        """It ended without an outcome: for certain, or not."""
        if is_not_applied and call.data:
            self._simulation.not_applied.append(read_envelope(call.data))
        self._end("not applied" if is_not_applied else "unknown", call.error)

    def look(self, node: SimulatedNode) -> None:
        """`node` applied something: was it what this caller waits for?"""
        if self._call is not None and self._node is node and node.engine is not None:
            self._simulation.watch.waits(node.engine, self._call)

    def lost_node(self, node_id: int) -> None:
        """The process in which this caller waited is gone."""
        if self.is_waiting and self._node is not None and self._node.node_id == node_id:
            self._end("refused" if self._read is not None else "unknown", None)

    def _end(self, result: str, error: RaftError | None, output: Any = None) -> None:
        simulation = self._simulation
        simulation.report.counts[result] += 1
        if simulation.is_traced:
            simulation.note(f"c{self.number}", f"{self._action.input} {result} {output} {error or ''}")
        if result in ("done", "unknown") and self._action.is_judged:
            returned = simulation.now if result == "done" else math.inf
            simulation.report.history.append(Operation(self.number, self._called, returned, self._action.input, output))
        if result in ("done", "rejected") and simulation.nemesis.is_over:
            self.served_since_heal += 1
        self.is_waiting = False
        self._call = self._read = None
        self.start()


class Operator:
    """Whoever founds the cluster, adds and removes members, and replaces broken ones."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._tasks: list[Callable[[], bool]] = []
        self.leaving: list[int] = []
        """Who is to be evicted, and is not yet."""
        self._next_token = 0
        self._waited: Counter[tuple[int, int, bool]] = Counter()

    @property
    def is_busy(self) -> bool:
        """Whether something is still to be done."""
        nodes = [node for node in self._simulation.nodes.values() if not node.is_gone]
        return bool(self._tasks) or any(node.refusal or node.has_damaged_state for node in nodes)

    @property
    def task_count(self) -> int:
        """How many changes of membership are under way."""
        return len(self._tasks)

    def found(self, size: int) -> None:
        """A cluster of `size` voters, as `init` and `join` would make it."""
        simulation = self._simulation
        entries = [make_entry(1, 1, EntryKind.CONFIG, ConfChange(ConfOp.ADD_VOTER, 1, "n1").encode())]
        self._create(1, HardState(term=1, commit=1), entries)
        for _ in range(size - 1):
            self.add()
        self._work()
        done = simulation.run_until(
            _PATIENCE, lambda: not self._tasks and len(simulation.configuration().voters) == size
        )
        if not done:
            raise Violation("liveness: the cluster did not form")

    def _create(self, node_id: int, hard_state: HardState, entries: Sequence[Entry]) -> None:
        node = self._simulation.nodes[node_id] = SimulatedNode(self._simulation, node_id)
        node.create(hard_state, entries)
        node.start()

    def _work(self) -> None:
        """Look after everything now and then."""
        simulation = self._simulation
        if not simulation.nemesis.absent:  # those who are left have enough to do
            for task in list(self._tasks):  # several at once: which comes first is up to the leader
                if task():
                    self._tasks.remove(task)
        for node in list(simulation.nodes.values()):
            engine = node.engine
            if engine is not None and engine.core.is_removed and not node.is_gone:
                node.note("is removed, and stopped")
                self._retire(node)
            elif engine is not None and (engine.failure is not None or engine.halted is not None):
                if isinstance(engine.halted, DivergedError):
                    if simulation.now - node.halted_at >= SECOND:
                        self._mend(node)
                    continue
                node.note(f"is restarted after: {engine.err()}")
                node.kill()
                simulation.nemesis.restart_later(node)
            elif node.refusal is not None and not node.is_gone:
                if not node.is_damaged:
                    node.refusal = None
                    simulation.nemesis.restart_later(node)
                elif not self._tasks:
                    self.replace(node)
            elif node.has_damaged_state and simulation.nemesis.is_over and not node.is_gone:
                self._await_conviction(node)
        simulation.at(50 * MILLISECOND, self._work)

    def _await_conviction(self, node: SimulatedNode) -> None:
        """A member differs, and a majority of healthy voters can tell: they must.  Else people find out sometime."""
        simulation = self._simulation
        engine = node.engine
        assert engine is not None
        config = simulation.configuration()
        witnesses = [
            other
            for i in config.voters
            if (other := simulation.nodes[i].engine) is not None
            and i != node.node_id
            and other.halted is None
            and other.applied_index >= engine.applied_index - 20
        ]
        can_be_told = (
            simulation.watch.differs(engine)
            and len(witnesses) >= max(config.quorum(), 2)
            and simulation.leader() is not None
        )
        self._waited[node.node_id, node.life, can_be_told] += 50 * MILLISECOND
        if self._waited[node.node_id, node.life, True] > _CONVICTION:
            raise Violation(f"liveness: a member that differs is not convicted; {node.describe()}")
        if self._waited[node.node_id, node.life, False] > _ATTENTION:
            self._mend(node)

    def _mend(self, node: SimulatedNode) -> None:
        """A restart makes the State whole, unless it was damaged before its last snapshot: then another member does."""
        if not node.has_damaged_snapshot:
            node.note("is restarted, for its State is damaged")
            node.kill()
            self._simulation.nemesis.restart_later(node)
        elif not self._tasks:
            node.kill()
            self.replace(node)

    def _retire(self, node: SimulatedNode) -> None:
        node.kill()
        node.is_gone = True
        node.refusal = None

    def add(self) -> None:
        """Have a new member join: a learner first, which the leader promotes."""
        self._next_token += 1
        token = self._next_token.to_bytes(16, "big")
        self._tasks.append(lambda: self._try_to_add(token))

    def _try_to_add(self, token: bytes) -> bool:
        simulation = self._simulation
        config = simulation.configuration()
        for node_id, member in config.members.items():
            if member.token == token:
                if node_id not in simulation.nodes:
                    simulation.report.counts["joined"] += 1
                    self._create(node_id, HardState(), [])
                return True
        node_id = config.highest_id + 1
        self._attempt(ConfChange(ConfOp.ADD_LEARNER, node_id, f"n{node_id}", token))
        return False

    def remove(self, node_id: int) -> None:
        """Have a member evicted."""
        self.leaving.append(node_id)
        self._tasks.append(lambda: self._try_to_remove(node_id))

    def _try_to_remove(self, node_id: int) -> bool:
        simulation = self._simulation
        config = simulation.configuration()
        if config.voters == {node_id}:
            self.leaving.remove(node_id)
            return True  # it cannot be: the others left meanwhile
        if config.was_removed(node_id):
            simulation.report.counts["evicted"] += 1
            self.leaving.remove(node_id)
            node = simulation.nodes[node_id]
            if node.engine is None:
                self._retire(node)
            return True
        self._attempt(ConfChange(ConfOp.REMOVE, node_id))
        return False

    def replace(self, node: SimulatedNode) -> None:
        """Evict a member whose storage is lost, and have a new one join."""
        node.note("is replaced")
        self._simulation.watch.lost(node.node_id)
        node.refusal = None
        node.is_gone = True
        self.remove(node.node_id)
        self.add()

    def _attempt(self, change: ConfChange) -> None:
        """Ask some node to have it done; what comes of it shows in the configuration."""
        simulation = self._simulation
        up = [n for _, n in sorted(simulation.nodes.items()) if n.engine is not None and not n.is_paused]
        if up:
            node = simulation.random.choice(up)
            node.do(lambda engine: engine.end_attempt(engine.attempt_change(change)))

    def hand_over(self) -> None:
        """Have the leader hand over to some other voter."""
        leader = self._simulation.leader()
        if leader is None or leader.engine is None or leader.is_paused:
            return
        others = sorted(leader.engine.core.config.voters - {leader.node_id})
        if others and self._simulation.random.random() < 0.9:
            target = self._simulation.random.choice(others)
            leader.note(f"hands over to n{target}")
            leader.do(lambda engine: engine.hand_over(target))


def merged(reports: Iterable[Report]) -> Report:
    """The sums over several seeds."""
    total = Report(NO_NODE)
    for report in reports:
        total.virtual_seconds += report.virtual_seconds
        total.steps += report.steps
        total.faults += report.faults
        total.counts += report.counts
    return total
