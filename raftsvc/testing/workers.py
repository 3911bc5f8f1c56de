"""The other processes of a node's computer: attached to the one that owns its directory, until one of them does.

What they and the owner say to each other is encoded and decoded as on the socket, comes in order, and may take
its time.  When the owner ends, whoever of them comes first opens the directory with the State that it has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Protocol

from raftsvc.attached.frames import Decoder, encode
from raftsvc.attached.replica import FeedBrokenError, needs_restart
from raftsvc.attached.replica import Replica as Attached
from raftsvc.core.messages import index_of
from raftsvc.core.versions import Versions
from raftsvc.errors import DivergedError, OutdatedError, StorageError, SupersededError
from raftsvc.member.attachment import Entries, Said, Unreadable
from raftsvc.member.engine import Engine, EngineOptions
from raftsvc.member.feed import FeedError
from raftsvc.member.health import Condition
from raftsvc.member.live import Live, NotContinuedError
from raftsvc.storage import Ahead, Store, read_log_ahead
from raftsvc.testing.computer import Computer
from raftsvc.testing.disk import PowerLoss
from raftsvc.testing.invariants import Violation, require
from raftsvc.testing.process import Caller, SimulatedProcess
from raftsvc.testing.replica import Replica
from raftsvc.testing.schedule import MILLISECOND, SECOND, Lifetime
from raftsvc.testing.workload import VersionedWorkload
from raftsvc.testing.world import TICK, World

_WINDOW = 8
"""So many frames are on their way to one who does not read; then the owner waits, and after `_PATIENCE` cuts it off."""
_PATIENCE = 2 * SECOND
_FRAME_BYTES = 400


class HostNode(Protocol):
    """The node on whose computer they are."""

    node_id: int
    computer: Computer
    options: EngineOptions
    process: SimulatedProcess | None
    is_gone: bool
    code: Versions
    refusal: StorageError | SupersededError | OutdatedError | None

    @property
    def name(self) -> str: ...
    def start(self, worker: Worker | None = None, live: Live | None = None) -> None: ...
    def restart_later(self) -> None: ...
    def kill(self) -> None: ...
    def lose_power(self) -> None: ...


class Link:
    """One connection between an attached process and the owner of its time."""

    def __init__(self, worker: Worker, owner: SimulatedProcess, key: int) -> None:
        self.owner = owner
        self.key = key
        self._worker = worker
        self._decoders = Decoder(), Decoder()
        self._due = [0, 0]
        self.on_way = 0
        self.stuck_since = 0
        self.is_over = False

    def to_owner(self, said: Sequence[Said]) -> None:
        """The attached process says something."""
        for each in said:
            self._carry(0, encode(each), self.owner.life, self._heard_by_owner)

    def to_worker(self, said: Sequence[Said]) -> None:
        """The owner does."""
        for each in said:
            self.on_way += 1
            self._carry(1, encode(each), self._worker.life, self._heard_by_worker)

    def _carry(self, way: int, frame: bytes, life: Lifetime, hear: Callable[[bytes], None]) -> None:
        schedule, rng = self._worker.world.schedule, self._worker.random
        self._due[way] = due = max(self._due[way], schedule.now + 20 + int(rng.expovariate(1 / 100)))
        life.later(due - schedule.now, lambda: hear(frame))

    def _heard_by_owner(self, frame: bytes) -> None:
        if self.is_over:
            return

        def hear(engine: Engine) -> None:
            try:
                for said in self._decoders[0].feed(frame):
                    engine.feed.hear(self.key, said)
            except FeedError as error:
                raise Violation(f"{self._worker.name} says what it may not: {error}") from error

        self.owner.do(hear)

    def _heard_by_worker(self, frame: bytes) -> None:
        self.on_way -= 1
        self.stuck_since = 0
        if not self.is_over:
            self._worker.hear(self, self._decoders[1].feed(frame))
            self.owner.feed_due()

    def pump(self, engine: Engine) -> None:
        """Send what there is for the attached process, as far as it reads; cut off one that does not."""
        while engine.feed.is_due(self.key) and self.on_way < _WINDOW:
            said = engine.feed.take(self.key, _FRAME_BYTES)
            _look_at(engine, said)
            self.to_worker(said)
        now = self._worker.world.schedule.now
        if self.on_way >= _WINDOW and not self.stuck_since:
            self.stuck_since = now
        elif self.stuck_since and now - self.stuck_since > _PATIENCE:
            self._worker.note("does not read, and is cut off")
            self.end()

    def end(self) -> None:
        """The connection is over; the worker notices a little later."""
        if not self.is_over:
            self.is_over = True
            self.owner.crew.links.pop(self.key, None)
            self.owner.do(lambda engine: engine.feed.detach(self.key))
            self._worker.life.later(self._worker.random.randrange(10, 3000), lambda: self._worker.lost(self))


class Worker:
    """One attached process; and the owner, from when it is that.

    link: to the owner, if there is one.
    heir: what it has become.
    """

    def __init__(self, world: World, node: HostNode, callers: Sequence[Caller], serial: int, random: Random):
        self.world = world
        self.random = random
        self.node = node
        self._callers = callers
        self.name = f"{node.name}w{serial}"
        self.watch_id = 1000 * serial + node.node_id
        self.life = Lifetime(world.schedule)
        store = Store("/data", node.computer.disk)
        seed = Random(random.getrandbits(64))
        state = world.workload.make_state()
        if isinstance(world.workload, VersionedWorkload):
            world.workload.set_code(state, node.code.of_part())
        options = node.options._replace(library_version=node.code.library)
        self.attached = Attached(store, state, options, seed, serial)
        machine = self.attached.applying.machine
        self.replica = Replica(world, self.watch_id, machine.state, node.computer.spoilt_snapshots, 0)
        self.link: Link | None = None
        self.heir: SimulatedProcess | None = None
        # Of its own: what is read ahead changes nothing, nor the history of a seed.
        self._reader = Random(f"raftsvc ahead {self.name} {world.report.seed}")
        self._ahead: Ahead | None = None
        self._is_applying = False
        self._applied_index = 0

    @property
    def engine(self) -> Any:
        """What serves its callers: that of an attached process, or of the owner."""
        return self.attached if self.heir is None else self.heir.engine

    def start(self) -> None:
        """Begin to look for an owner."""
        self.note("starts, attached")
        self._tick()
        self._look_for_owner()

    def note(self, what: str) -> None:
        """Write a line of the trace."""
        self.world.schedule.note(self.name, what)

    def _tick(self) -> None:
        self.life.later(int(TICK * self.random.uniform(0.95, 1.05)), self._tick)
        if self.heir is None:
            self.do(lambda attached: attached.tick())
            if self._reader.random() < 0.02:  # as before its owner leaves, and whatever comes then
                self._ahead = read_log_ahead("/data", self.node.computer.disk)

    # -- doing something

    def do(self, step: Callable[[Any], None]) -> None:
        """One step of what serves here, and all that follows from it at once."""
        if self.life.is_over:
            return
        if self.heir is not None:
            self.heir.do(step)
            return
        attached = self.attached
        step(attached)
        attached.advance()
        self._note_difference()
        self._say(attached.core.outbox)
        if attached.applying.is_due and not self._is_applying:
            self._begin_apply()
        for waiter in attached.inbox.finished.take():
            waiter.wake()

    def _note_difference(self) -> None:
        health = self.attached.health
        if isinstance(health.halted, DivergedError):
            whole = f"{self.name} halts as diverged, and its State is whole: {health.halted}"
            require(self.replica.is_damaged, whole)
        counts, differs = self.world.report.counts, health.error_of(Condition.DIFFERS) is not None
        if differs:
            self._look_at_doubt()
        if differs != self.replica.is_doubted:
            self.replica.is_doubted = differs
            counts["attached that differ" if differs else "attached found to be right"] += 1
            self.note("differs from its owner" if differs else "does not differ any more")

    def _look_at_doubt(self) -> None:
        """It differs from its owner: some State is damaged then, and who is whole is told so once that is known."""
        attached = self.attached
        require(self.world.watch.digests.was_damaged, f"no State was ever damaged, and {self.name} differs")
        told = attached.news.right_index
        has_digest = attached.snapshots.restored_index < told <= attached.applying.applied_index
        require(
            self.replica.is_damaged or not (attached.news.is_wrong and has_digest),
            f"{self.name} is whole and in doubt, and its owner is known to be wrong at {told}",
        )

    @property
    def is_lost(self) -> bool:
        """Whether only starting it anew helps."""
        return needs_restart(self.attached) or not (self.attached.health.may_serve or self.replica.is_doubted)

    def _say(self, outbox: list[Said]) -> None:
        said = list(outbox)
        outbox.clear()
        if self.link is not None and not self.link.is_over:
            self.link.to_owner(said)

    def _begin_apply(self) -> None:
        work = self.attached.applying.begin()
        self._is_applying = True

        def finish() -> None:
            answers, error = self.attached.applying.apply(work)
            if isinstance(error, PowerLoss):
                self.node.lose_power()
                return
            if isinstance(error, Violation):
                raise error
            self._is_applying = False
            self.do(lambda attached: attached.end_apply(work, answers, error))
            self._look()
            for caller in self._callers:
                caller.process_applied(self)
            self.replica.is_suspect = self.replica.is_damaged
            self._go_on()

        self.life.later(5 + int(self.random.expovariate(1 / self.node.computer.apply_delay)), finish)

    def _look(self) -> None:
        machine = self.attached.applying.machine
        require(machine.applied_index >= self._applied_index, f"{self.name}: its State went back")
        self._applied_index = machine.applied_index
        self.world.watch.digests.replicated(self.name, machine, self.replica.is_damaged)

    def _go_on(self) -> None:
        """Everything that came is applied: read a snapshot, or say Hello again, if that is what is next."""
        attached, link = self.attached, self.link
        if self._is_applying or self.heir is not None or link is None or link.is_over or attached.health.is_over:
            return
        if attached.link.needs_snapshot and not attached.applying.is_at_work:
            try:
                attached.snapshots.check_stored()
            except (OSError, StorageError, PowerLoss) as error:
                link.to_owner([Unreadable(str(error))])
                self.life.later(20 * MILLISECOND, self._go_on)
                return
            attached.read_snapshot()
            self.do(lambda attached: None)
        elif attached.link.needs_hello and not attached.applying.is_at_work and attached.health.may_apply:
            attached.link.needs_hello = False
            link.to_owner([attached.hello()])

    # -- the owner

    def _look_for_owner(self) -> None:
        """Take the directory if nobody has it, else attach to who has."""
        if self.heir is not None or self.link is not None:
            return
        node, attached = self.node, self.attached
        if attached.health.may_apply and not node.is_gone and node.node_id not in self.world.absent:
            if node.process is None:
                if attached.may_own and not attached.applying.is_at_work and not self._is_applying:
                    self._take_over()
            else:
                self._attach(node.process)
        self.life.later(self.random.randrange(1000, 20_000), self._look_for_owner)

    def _attach(self, owner: SimulatedProcess) -> None:
        if self.attached.applying.is_at_work or self._is_applying:
            return  # Hello says where it stands
        key = self.random.getrandbits(60)
        self.link = link = owner.crew.links[key] = Link(self, owner, key)
        self.attached.link.was_asked = True
        link.to_owner([self.attached.hello()])

    def hear(self, link: Link, said: Sequence[Said]) -> None:
        """The owner says something."""
        if link is not self.link or self.heir is not None:
            return

        def hear(attached: Attached) -> None:
            for each in said:
                try:
                    attached.hear(each)
                except FeedBrokenError as error:
                    raise Violation(f"{self.name} is told what cannot be: {error}") from error

        self.do(hear)
        self._go_on()

    def lost(self, link: Link) -> None:
        """The end of the connection is noticed."""
        if link is self.link and self.heir is None:
            self.note("loses its owner")
            self.link = None
            self.attached.lost()
            self.life.later(self.random.randrange(10, 20_000), self._look_for_owner)

    def catch_up(self, live: Live) -> None:
        """Read the stored snapshot, if that is ahead."""
        if live.is_behind:
            attached = self.attached
            attached.snapshots.check_stored()
            attached.read_snapshot()
            work = attached.applying.begin()
            answers, error = attached.applying.apply(work)
            if error is not None:
                raise error
            attached.end_apply(work, answers, None)
            self._look()
        if not self.attached.may_own:
            raise StorageError(f"{self.name} differs by now, and is not taken over")

    def take_ahead(self) -> Ahead | None:
        """What it read of the log, long ago or just now."""
        ahead, self._ahead = self._ahead, None
        self.world.report.counts["logs read ahead"] += ahead is not None
        return ahead

    def _take_over(self) -> None:
        live = self.attached.live
        before = live.machine.applied_index
        self.note(f"takes over at {before}")
        try:
            self.node.start(self, live)
        except NotContinuedError as error:
            self.note(str(error))
            self.world.report.counts["not continued"] += 1
            self.attached.fail(error)
            return
        if self.heir is None:  # it could not be opened, or not now
            if isinstance(self.node.refusal, OutdatedError):
                self.attached.halt(self.node.refusal)
            return
        self.world.report.counts["takeovers"] += 1
        require(self.engine.applying.applied_index >= before, f"{self.name}: its State went back in the takeover")

    def end(self) -> None:
        """It is gone, and who called in it with it."""
        if self.heir is None and not self.life.is_over:
            self.note("ends")
            self.life.end()
            if self.link is not None:
                self.link.end()
            for caller in self._callers:
                caller.process_ended(self)


class Host:
    """All attached processes of one node's computer; their number is kept up."""

    def __init__(self, world: World, node: HostNode, callers: Sequence[Caller], count: int) -> None:
        self._world = world
        self._node = node
        self._callers = callers
        self._count = count
        self._serials = 0
        # Of its own: without attached processes a seed is the history that it always was.
        self.random = Random(f"raftsvc host {node.node_id} {world.report.seed}")
        self.workers: list[Worker] = []

    def start(self) -> None:
        """Keep up their number from now on, and have some of them go wrong."""
        self._replenish()

    def _replenish(self) -> None:
        world, node, rng = self._world, self._node, self.random
        world.schedule.at(rng.randrange(20, 400) * MILLISECOND, self._replenish)
        self.workers = [w for w in self.workers if not w.life.is_over and w.heir is None]
        if node.is_gone or node.node_id in world.absent:
            self.end()
            return
        for worker in list(self.workers):
            # Who runs other code than is installed is started anew sooner or later, as by a reload.
            is_of_other_code = worker.attached.applying.machine.own != node.code
            if worker.is_lost and rng.random() < 0.3:
                worker.end()
            elif is_of_other_code and rng.random() < (0.5 if world.is_healed else 0.05):
                worker.note("is started anew, with other code")
                worker.end()
        if node.process is None and not self.workers and node.refusal is None:
            node.restart_later()  # the last of them ended before it became the owner
        if len(self.workers) < self._count and node.process is not None:
            self._serials += 1
            worker = Worker(world, node, self._callers, self._serials, rng)
            self.workers.append(worker)
            worker.start()
        if not world.is_healed and rng.random() < 0.25 and self.workers:
            self._strike(rng.choice(self.workers))

    def _strike(self, worker: Worker) -> None:
        """Something happens to one attached process."""
        rng = self.random
        kind = rng.choice(("ends", "pauses", "is cut off", "owner ends"))
        worker.note(f"FAULT attached process {kind}")
        self._world.report.faults[f"attached process {kind}"] += 1
        if kind == "ends":
            worker.end()
        elif kind == "pauses":
            worker.life.is_paused = True
            self._world.schedule.at(rng.randrange(10, 5000) * MILLISECOND, lambda: self._resume(worker))
        elif kind == "is cut off" and worker.link is not None:
            worker.link.end()
        elif kind == "owner ends":
            self._node.kill()

    def _resume(self, worker: Worker) -> None:
        if not worker.life.is_over and worker.life.is_paused:
            worker.life.is_paused = False
            worker.life.catch_up()

    def ready(self) -> list[Worker]:
        """Those who can be asked something."""
        self.workers = [w for w in self.workers if not w.life.is_over]
        return [w for w in self.workers if w.heir is None and not w.life.is_paused]

    def agrees(self, applied_index: int) -> bool:
        """Whether all of them are there, attached, and have applied that much."""
        workers = self.ready()
        return len(workers) == self._count and all(
            w.attached.link.is_fed
            and w.attached.applying.applied_index == applied_index
            and not w.attached.health.err()
            for w in workers
        )

    def end(self) -> None:
        """All of them end."""
        for worker in self.workers:
            worker.end()
        self.workers.clear()


def _look_at(engine: Engine, said: Sequence[Said]) -> None:
    """What is sent is committed, and durable where it comes from."""
    log = engine.core.log
    for each in said:
        if isinstance(each, Entries):
            last = index_of(each.entries[-1])
            require(
                last <= min(log.commit_index, log.stable_index),
                f"node {engine.node_id} feeds entry {last}, and {log.commit_index} are committed, "
                f"{log.stable_index} durable there",
            )
