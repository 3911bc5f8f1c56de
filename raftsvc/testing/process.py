"""One life of a node: an engine, and whoever runs it as the threads of a real process do.

What a process knows it forgets when it ends: it is an object that lasts no longer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Protocol

from raftsvc.core.messages import Lineage, Message
from raftsvc.errors import DivergedError, StorageError
from raftsvc.logs import NOTHING
from raftsvc.member.engine import Engine, EngineOptions
from raftsvc.member.live import Live
from raftsvc.member.lives import Speaker
from raftsvc.member.snapshots import Capture
from raftsvc.storage import Ahead, Store
from raftsvc.testing.bounds import look_at_bounds
from raftsvc.testing.computer import Computer
from raftsvc.testing.disk import PowerLoss
from raftsvc.testing.invariants import Violation, require
from raftsvc.testing.network import Network, Place, Port, member_at, name_of
from raftsvc.testing.replica import Replica
from raftsvc.testing.schedule import MILLISECOND, Lifetime
from raftsvc.testing.serving import Serving
from raftsvc.testing.transfer import Reception, Transfer
from raftsvc.testing.ways import Ways
from raftsvc.testing.workload import RegisterState, VersionedWorkload
from raftsvc.testing.world import World
from raftsvc.transport import SnapshotChunk

logger = logging.getLogger("raftsvc.node")


class Caller(Protocol):
    """A caller's thread, in whatever process it calls."""

    def process_applied(self, process: Serving) -> None:
        """Something was applied: was it what this caller waits for?"""

    def process_resumed(self, process: Serving) -> None:
        """After a pause callers may be the first to run."""

    def process_ended(self, process: Serving) -> None:
        """It is gone, and who called in it with it."""


class Heir(Serving, Protocol):
    """An attached process that became the owner."""

    def catch_up(self, live: Live) -> None:
        """Read the stored snapshot, if that is ahead."""

    def take_ahead(self) -> Ahead | None:
        """What it read of the log before."""


class Crew:
    """The processes attached to one, and the one that it was itself.

    heir:       what it was, if it was attached; None if it was started as the owner.
    is_pumping: something is about to be sent to them.
    """

    def __init__(self, heir: Heir | None) -> None:
        self.heir = heir
        self.links: dict[int, Link] = {}
        self.is_pumping = False


class Link(Protocol):
    """The connection of an attached process."""

    def pump(self, engine: Engine) -> None:
        """Send what there is for it, as far as it reads."""

    def end(self) -> None:
        """The connection is over."""


class SimulatedProcess:
    """The engine's Runner, as long as one process lives.

    port_id:   by which it is reached; that of a copy of a node is below 0.
    halted_at: when its engine did, because it differs from the others; 0: it did not.
    """

    def __init__(
        self,
        world: World,
        network: Network,
        port_id: int,
        computer: Computer,
        options: EngineOptions,
        state_version: int,
        callers: Sequence[Caller],
        power_lost: Callable[[], None],
        place: Place,
        heir: Heir | None = None,
        live: Live | None = None,
    ) -> None:
        """Recover from the disk, which may raise StorageError, OutdatedError, or PowerLoss.

        state_version: what the code of the State knows.
        heir:       the attached process that becomes this one, with what is `live` in it.
        power_lost: called when the power goes in the midst of a step; it is to end this process.
        place:      where it listens.
        """
        self._world = world
        self._network = network
        self.computer = computer
        self._callers = callers
        self._power_lost = power_lost
        self.port_id = port_id
        self.life = Lifetime(world.schedule) if heir is None else heir.life
        self.crew = Crew(heir)
        self.halted_at = 0
        self.is_applying = False
        self.reception = Reception(world, self)
        state = world.workload.make_state() if live is None else live.machine.state
        if live is None and isinstance(world.workload, VersionedWorkload):
            world.workload.set_code(state, state_version)
        self.store = open_store(world, computer)
        seed = Random(world.random.getrandbits(64))
        if live is not None:
            assert heir is not None, "something is live in it"
            live = live.opened(self.store, seed.getrandbits(64), heir.take_ahead())
            heir.catch_up(live)
        self.engine = Engine(place.advertised, self.store, state, options, seed, self, live)
        self._found_index = self.engine.core.log.last_index
        self.ways = Ways(world, network, self, place)
        self.replica = (
            Replica(world, port_id, state, computer.spoilt_snapshots, self.engine.applying.applied_index)
            if heir is None
            else heir.replica
        )

    @property
    def name(self) -> str:
        """For people."""
        return name_of(self.port_id)

    @property
    def node_id(self) -> int:
        """Of which member it is a process."""
        return member_at(self.port_id)

    @property
    def is_copy(self) -> bool:
        """Whether its directory is one that was copied from a member, which goes on."""
        return self.port_id < 0

    def start(self) -> None:
        """Begin to take part."""
        watch = self._world.watch
        if not self.is_copy:
            watch.consensus.started(self.engine, self.now)
        watch.versions.started(self.engine)
        self._have_applied_watched()
        self.do(lambda engine: engine.start())
        self._schedule_tick()

    def end(self) -> None:
        """It does nothing any more, and who waits in it waits in vain."""
        self.life.end()
        if not self.is_copy:
            self._world.watch.consensus.ended(self.node_id)
        for link in list(self.crew.links.values()):
            link.end()
        for caller in self._callers:
            for process in self.names:
                caller.process_ended(process)

    @property
    def names(self) -> Sequence[Serving]:
        """By whom callers know it: itself, and what it was before."""
        return (self,) if self.crew.heir is None else (self, self.crew.heir)

    def note(self, what: str) -> None:
        """Write a line of the trace."""
        self._world.schedule.note(self.name, what)

    # -- doing something

    def do(self, step: Callable[[Engine], None]) -> None:
        """One step of the engine, and all that follows from it at once."""
        if self.life.is_over:
            return
        engine = self.engine
        try:
            step(engine)
            engine.advance()
            if engine.writes.is_due:
                self._begin_write()
            if engine.snapshots.is_due and not self.is_applying:
                self._begin_snapshot()
            if engine.applying.is_due and not self.is_applying:
                self._begin_apply()
        except PowerLoss:
            self._power_lost()
            return
        self._have_it_watched()
        rng = self._world.random
        for waiter in engine.inbox.finished.take():
            waiter.wake()
            if rng.random() < 0.98:  # else its caller was interrupted
                self.life.later(rng.randrange(1, 1000), self._awake)

    def _have_it_watched(self) -> None:
        engine = self.engine
        watch = self._world.watch
        if self.is_copy:
            watch.consensus.look_at_copy(engine)
        else:
            watch.consensus.look(engine)
        watch.bounds.look(engine)
        watch.versions.look(engine)
        hasty = self.computer.disk.hasty
        require(not hasty, f"durability: {self.name} gives {hasty} a name before what is in it is on disk")
        if not self.halted_at and isinstance(engine.health.halted, DivergedError):
            self.halted_at = self._world.schedule.now
            self._world.report.counts["convicted"] += 1
            self.note(str(engine.health.halted))
            watch.digests.convicted(engine, engine.health.halted.index, self.replica.is_damaged)
        if engine.digests.disagreement is not None:
            watch.digests.disagrees(engine)

    def _have_applied_watched(self) -> None:
        watch = self._world.watch
        watch.digests.applied(self.engine, self.replica.is_damaged)
        state = self.replica.state
        watch.versions.applied(self.engine, state.version if isinstance(state, RegisterState) else None)

    def _awake(self) -> None:
        if self.engine.note_awake():
            self.do(lambda engine: None)

    def _schedule_tick(self) -> None:
        def count(engine: Engine) -> None:
            engine.tick()
            self.ways.tick()

        def tick() -> None:
            self._schedule_tick()
            self.do(count)
            look_at_bounds(self.engine, self._found_index)

        self.life.later(self.computer.tick_delay(), tick)

    # -- what comes from others

    def hear(self, source_id: int, lineage: Lineage, addr: str, messages: Sequence[Message]) -> None:
        """Messages arrive."""
        if not self._may_speak(source_id, lineage):
            return
        self.ways.hear(source_id, addr)
        if self._world.schedule.is_traced:
            for message in messages:
                self.note(f"<- {message!r}")
        self.do(lambda engine: engine.step(messages))

    def _may_speak(self, source_id: int, lineage: Lineage) -> bool:
        """Whether what its life says counts.  One that is late may still speak, and then says it again."""
        if self.life.is_over:
            return False
        network, own_id, life = self._network, self.port_id, lineage.life
        source = network.port_of(source_id, life)
        if self.engine.core.committed_config.was_removed(source_id):
            network.refuse(own_id, source, life, lambda port: port.refused(own_id, is_removed=True))
            return self._world.random.random() < 0.5  # a stream that was opened before goes on
        claim = lineage.claim(self.engine.lives.highest(source_id).counter)
        speaker = self.engine.lives.judge(source_id, claim)
        if speaker is Speaker.CURRENT:
            return True

        def repeated() -> None:
            """It says so again, in answer to the refusal."""
            if not self.life.is_over and self.engine.lives.judge(source_id, claim, proves_now=True) is Speaker.VOID:
                network.refuse(own_id, source, life, lambda port: port.refused(own_id, is_removed=False))

        def told(port: Port) -> None:
            if speaker is not Speaker.LATE:
                port.refused(own_id, is_removed=False)
            elif network.passes(source, own_id):
                self._world.schedule.at(network.latency(), repeated)

        self.note(f"refuses n{source_id} {life}: {speaker.name.lower()}")
        network.refuse(own_id, source, life, told)
        return False

    def take(self, lineage: Lineage, chunk: SnapshotChunk, reply: Callable[[int | None], None]) -> None:
        """A piece of a snapshot arrives, and may have to wait until another was received."""
        if self._may_speak(chunk.message.from_id, lineage):
            self.do(lambda engine: self.reception.take(engine, chunk, reply))
        else:
            reply(None)

    # -- slow work

    def _begin_write(self) -> None:
        computer = self.computer
        batch = self.engine.writes.begin()
        delay = 20 + int(self._world.random.expovariate(1 / computer.write_delay))

        def finish() -> None:
            if computer.is_hung:
                self.life.later(20 * MILLISECOND, finish)
            else:
                self.do(write)

        def write(engine: Engine) -> None:
            failure: BaseException | None = None
            try:
                engine.writes.write(batch)
            except PowerLoss:
                raise
            except BaseException as error:
                failure = error
                self.note(f"writing failed: {error}")
            if failure is None:
                self._world.watch.consensus.wrote(engine.node_id, batch)
            engine.end_write(batch, failure)

        self.life.later(delay, finish)

    def _begin_apply(self) -> None:
        replica = self.replica
        work = self.engine.applying.begin()
        self.is_applying = True

        def finish(engine: Engine) -> None:
            self.is_applying = False
            answers, error = engine.applying.apply(work)
            if isinstance(error, (Violation, PowerLoss)):
                raise error
            self._have_applied_watched()
            digests = self._world.watch.digests
            engine.end_apply(answers, error)
            for caller in self._callers:
                for process in self.names:
                    caller.process_applied(process)
            replica.damage_further(digests.differs(engine))

        def work_off() -> None:
            if self.computer.is_state_hung:
                self.life.later(20 * MILLISECOND, work_off)
                return
            self.do(finish)
            # Not before all were told: a snapshot in the midst of a batch may have made the State whole.
            replica.is_suspect = replica.is_damaged

        self.life.later(5 + int(self._world.random.expovariate(1 / self.computer.apply_delay)), work_off)

    def _begin_snapshot(self) -> None:
        spoilt = self.computer.spoilt_snapshots
        capture = self.engine.snapshots.capture()
        index = capture.header.index
        self.note(f"takes a snapshot at {index}")
        is_whole = not self.replica.is_damaged
        if not is_whole:
            spoilt.add(index)

        def finish(engine: Engine) -> None:
            saved: Capture | None = None
            failure: Exception | None = None
            if not is_whole:
                spoilt.add(index)  # also in place of one of that index that came from elsewhere meanwhile
            try:
                if engine.snapshots.save(capture):
                    saved = capture
                    if is_whole:
                        spoilt.discard(index)
            except Exception as error:
                failure = error
            self._world.report.counts["snapshots"] += saved is not None
            engine.end_snapshot(saved, failure)

        self.life.later(int(self._world.random.expovariate(1 / (20 * MILLISECOND))), lambda: self.do(finish))

    # -- what the engine asks

    def post(self, peer_id: int, messages: Sequence[Message]) -> bool:
        """Send through the network."""
        if not self.is_copy:
            self._world.watch.consensus.said(self.engine, messages)
        if self._world.schedule.is_traced:
            for message in messages:
                self.note(f"-> {message!r}")
        self.ways.send(peer_id, messages)
        return True

    def send_snapshot(self, message: Message) -> bool:
        """Send the stored snapshot piece by piece, as a transfer thread does."""
        if message.to_id in self.ways.transferring or not self.ways.leads_to(message.to_id):
            return False
        self._world.watch.digests.sends_snapshot(self.engine)
        self.ways.transferring.add(message.to_id)
        Transfer(self._world, self._network, self, message).start()
        return True

    def end_transfer(self, peer_id: int, succeeded: bool, damage: Exception | None) -> None:
        """A transfer came to its end."""
        self.ways.transferring.discard(peer_id)
        self.do(lambda engine: engine.report_snapshot(peer_id, succeeded, (), damage))

    def look_at_room(self) -> None:
        """Ask the disk a little later."""
        self.life.later(MILLISECOND, lambda: self.do(lambda engine: engine.vigil.note_room(*engine.writes.room())))

    def release_log(self, index: int) -> None:
        """Delete old segments a little later."""

        def release(engine: Engine) -> None:
            try:
                engine.writes.release(index)
            except StorageError as error:
                self.note(f"releasing failed: {error}")
                engine.vigil.note_release(index, error)
            else:
                engine.vigil.note_release(index, None)

        self.life.later(MILLISECOND, lambda: self.do(release))

    def prepare_log(self) -> None:
        """Prepare the next segment piece by piece, so slowly at times that the log needs it before."""
        rng = self._world.random
        mean = self.computer.write_delay * rng.choice((1, 10, 100))

        def go_on() -> None:
            self.life.later(20 + int(rng.expovariate(1 / mean)), piece)

        def piece() -> None:
            if self.computer.is_hung:
                go_on()
            else:
                self.do(prepare)

        def prepare(engine: Engine) -> None:
            if engine.writes.prepare():
                go_on()

        go_on()

    def end_directory(self, why: str) -> None:
        """Have every later start refused, a little later."""

        def end(engine: Engine) -> None:
            try:
                engine.writes.end_directory(why)
            except (OSError, StorageError) as error:
                self.note(f"its end cannot be kept: {error}")

        self.life.later(MILLISECOND, lambda: self.do(end))

    def members_changed(self) -> None:
        """Nothing to keep."""

    def state_changed(self) -> None:
        """Nobody is asleep."""

    def feed_due(self) -> None:
        """Have those who are attached sent what there is, a little later."""
        if self.crew.links and not self.crew.is_pumping:
            self.crew.is_pumping = True
            self.life.later(20, self._pump)

    def _pump(self) -> None:
        self.crew.is_pumping = False
        for link in list(self.crew.links.values()):
            link.pump(self.engine)

    def now(self) -> int:
        """The clock that leases are measured by."""
        return self.computer.clock(self._world.schedule.now)

    def glance(self) -> int:
        """The same: nobody else looks at it."""
        return self.now()

    @property
    def elapsed_clocks(self) -> Callable[[], tuple[int, ...]]:
        """Those that log time is measured by."""
        return lambda: self.computer.elapsed_clocks(self._world.schedule.now)

    def say(
        self,
        level: int,
        message: str,
        error: BaseException | None = None,
        fields: Mapping[str, object] = NOTHING,
    ) -> None:
        """Log it at once: nothing is locked."""
        logger.log(level, "%s", message, exc_info=error, extra=dict(fields))


def open_store(world: World, computer: Computer) -> Store:
    """The directory of a member."""
    conditions = world.conditions
    return Store.open("/data", computer.disk, segment_bytes=conditions.segment_bytes, sync_bytes=conditions.sync_bytes)
