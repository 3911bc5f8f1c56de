"""One node: a computer that stays, and processes that come and go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from raftsvc.core.messages import Entry, HardState, Life, Lineage, decode_messages
from raftsvc.core.versions import FIRST, Versions
from raftsvc.errors import DamagedStorageError, OutdatedError, StorageError, SupersededError
from raftsvc.member.engine import Engine
from raftsvc.member.health import Condition
from raftsvc.member.live import Live, NotContinuedError
from raftsvc.storage import Store
from raftsvc.testing.computer import Computer
from raftsvc.testing.disk import PowerLoss, SimulatedDisk
from raftsvc.testing.network import Network, Place, member_at, name_of
from raftsvc.testing.process import Caller, SimulatedProcess, open_store
from raftsvc.testing.schedule import MILLISECOND
from raftsvc.testing.workers import Host, Worker
from raftsvc.testing.world import World
from raftsvc.transport import SnapshotChunk


class Cradle(Protocol):
    """What starts on a node that is to found a cluster with others, until it is a member that speaks."""

    def start(self) -> bool:
        """Start a process that belongs to no cluster; False if the directory is that of a member that speaks."""

    def end(self) -> None:
        """Such a process is gone."""


class Doubles:
    """What else there is of a node's directory.

    copy:        as it was before its last start, and which life had it; None: there is none.
    is_put_back: what is stored is such a copy.
    twin:        a node whose directory was copied from this one's, or the one that this one's was copied from.
    """

    def __init__(self) -> None:
        self.copy: tuple[Life, SimulatedDisk] | None = None
        self.is_put_back = False
        self.twin: SimulatedNode | None = None


class SimulatedNode:
    """A member of the cluster, or one that was.

    process:    None while it is down.
    refusal:    why it did not start, if so.
    options:    what it is started with next; other nodes may have others.
    code:       the versions of the code that it is started with next.
    is_gone:    its process does not start again, ever.
    is_damaged: what is stored is, as far as nobody looked at it yet.
    doubles:    what else there is of its directory.
    place:      where its processes listen.
    host:       its attached processes, if there are any.
    cradle:     of a node that may found a cluster with others yet.
    """

    def __init__(
        self, world: World, network: Network, port_id: int, callers: Sequence[Caller], code: Versions = FIRST
    ) -> None:
        """port_id: its id, or the negative of it, for a copy."""
        self._world = world
        self._network = network
        self._callers = callers
        self.port_id = port_id
        self.node_id = member_at(port_id)
        self.computer = Computer(world.random)
        self.options = world.conditions.options
        self.code = code
        self.process: SimulatedProcess | None = None
        self.refusal: StorageError | SupersededError | OutdatedError | None = None
        self.is_gone = False
        self.is_damaged = False
        self.doubles = Doubles()
        self.place = Place(self.name)
        self.host: Host | None = None
        self.cradle: Cradle | None = None
        network.ports[port_id] = self

    # -- what is known

    @property
    def name(self) -> str:
        """For the trace; and as its first address."""
        return name_of(self.port_id)

    @property
    def is_copy(self) -> bool:
        """Whether its directory is one that was copied from a member, which goes on."""
        return self.port_id < 0

    @property
    def is_found_out(self) -> bool:
        """Whether it knows that its directory is not the only one of its member."""
        engine = self.engine
        if engine is None:
            return isinstance(self.refusal, SupersededError)
        return engine.health.error_of(Condition.SUPERSEDED) is not None

    @property
    def engine(self) -> Engine | None:
        """What runs, even if it is paused."""
        return self.process.engine if self.process is not None else None

    @property
    def is_ready(self) -> bool:
        """Whether its process runs, and is not paused."""
        return self.process is not None and not self.process.life.is_paused

    @property
    def has_damaged_state(self) -> bool:
        """Whether it runs with a State that is not what was applied."""
        return self.process is not None and self.process.replica.is_damaged

    @property
    def is_untrustworthy(self) -> bool:
        """Whether something of it is not what it should be, and nobody saw to that yet."""
        return self.is_damaged or self.has_damaged_state or self.doubles.is_put_back or self.doubles.twin is not None

    def describe(self) -> str:
        """One line for people."""
        engine = self.engine
        if engine is None:
            return f"{self.name} is down ({self.refusal})" if self.refusal else f"{self.name} is down"
        core = engine.core
        return (
            f"{self.name} {core.role.value} term={core.term} log={core.log.offset}..{core.log.last_index} "
            f"commit={core.log.commit_index} applied={engine.applying.applied_index} err={engine.health.err()}"
        )

    def note(self, what: str) -> None:
        """Write a line of the trace."""
        self._world.schedule.note(self.name, what)

    # -- life

    def create(self, cluster_id: int, hard_state: HardState, entries: Sequence[Entry]) -> None:
        """Make the directory of a member, as `init` and `join` do."""
        store = open_store(self._world, self.computer)
        store.create(self.node_id, cluster_id, hard_state, entries)
        store.close()

    def start(self, worker: Worker | None = None, live: Live | None = None) -> None:
        """Start the process, unless it runs; it may refuse, or the power may go meanwhile.

        worker: the attached process that becomes it, with what is `live` there.  Raises NotContinuedError if
                the directory does not go on from that.
        """
        if self.process is not None or self.is_gone:
            return
        self.refusal = None
        try:
            if self.cradle is not None:
                self.cradle.end()
                if self.cradle.start():
                    return
            self.process = SimulatedProcess(
                self._world,
                self._network,
                self.port_id,
                self.computer,
                self.options._replace(library_version=self.code.library),
                self.code.of_part(),
                self._callers,
                self.lose_power,
                self.place,
                worker,
                live,
            )
        except PowerLoss:
            self.lose_power()
            return
        except NotContinuedError:
            self.computer.disk.kill_process()
            raise
        except (StorageError, SupersededError, OutdatedError) as error:
            self.note(f"refuses to start: {error}")
            self._world.report.counts["refused to start"] += 1
            self.refusal = error
            self.computer.disk.kill_process()
            return
        if worker is not None:
            worker.heir = self.process
        self.place.ways = self.process.ways
        # Everything stored was looked at, save the data of a snapshot that who takes over does not need.
        self.is_damaged = self.is_damaged and worker is not None and not _has_whole_snapshot(self.process.store)
        self.note("starts: " + self.describe())
        self.process.start()

    def restart_later(self) -> None:
        """Start the process some time after it ended, unless it is to stay dead."""
        world = self._world
        delay = 100 if world.is_healed else world.random.choice((50, 500, 3000))
        world.schedule.at(delay * MILLISECOND, lambda: None if self.port_id in world.absent else self.start())

    def kill(self, with_attached: bool = False) -> None:
        """The process ends at once, and those that are attached to it too if so; the computer goes on."""
        if self.process is not None or self.cradle is not None:
            self.note("killed")
            self._end(with_attached)
            self.computer.disk.kill_process()

    def retire(self) -> None:
        """End all processes, for good."""
        self.kill()
        self._end(with_attached=True)
        self.is_gone = True
        self.refusal = None

    def cut_power(self) -> None:
        """The computer ends at once, and starts again later."""
        self.lose_power()

    def lose_power(self) -> None:
        rng, disk = self._world.random, self.computer.disk
        if disk.is_dead and disk.crash_kills:
            self.note("killed in a change of its disk")
            self._end()
            disk.kill_process()
            self.restart_later()
            return
        share = rng.choice((0.0, 0.3, 0.7, 1.0))
        self.note(f"loses power; {share:.0%} of what was not synced stays")
        self._end(with_attached=True)
        disk.lose_power(lambda: rng.random() < share)
        self.restart_later()

    def _end(self, with_attached: bool = False) -> None:
        if with_attached and self.host is not None:
            self.host.end()
        process, self.process = self.process, None
        self.place.ways = None
        if self.cradle is not None:
            self.cradle.end()
        if process is not None:
            process.end()

    # -- what happens to it

    def hear(self, source_id: int, lineage: Lineage, addr: str, data: bytes) -> None:
        """Messages arrive; as a Port."""
        process = self.process
        if process is not None:
            process.life.when_running(lambda: process.hear(source_id, lineage, addr, decode_messages(data)))

    def speaks_as(self, life: Life) -> bool:
        """Whether that life of the node runs; as a Port."""
        return self.is_ready and self.engine is not None and self.engine.lives.own == life

    def refused(self, by_id: int, is_removed: bool) -> None:
        """Nothing that it says counts at another; as a Port."""
        self.note(f"is told by n{by_id} that it " + ("was removed" if is_removed else "is void"))
        if is_removed:
            self.do_when_running(lambda engine: engine.core.mark_removed())
        else:
            self.do_when_running(lambda engine: engine.lives.supersede(f"node {by_id} knows another life of it"))

    def take(self, lineage: Lineage, chunk: SnapshotChunk, reply: Callable[[int | None], None]) -> None:
        """A piece of a snapshot arrives; as a Port."""
        process = self.process
        if process is not None:
            process.life.when_running(lambda: process.take(lineage, chunk, reply))

    def put_back(self) -> None:
        """End the process, and put the copy in the place of the directory."""
        doubles = self.doubles
        assert doubles.copy is not None, "there is one"
        self.kill()
        self._end(with_attached=True)
        self.computer.disk.become(doubles.copy[1])
        doubles.copy = None
        doubles.is_put_back = True
        self._world.watch.consensus.put_back(self.node_id)

    def take_over(self, copy: SimulatedDisk, twin: SimulatedNode) -> None:
        """Be the one that a copy of another's directory is on, beside it."""
        self.computer.disk.become(copy)
        self.doubles.twin, twin.doubles.twin = twin, self

    def do(self, step: Callable[[Engine], None]) -> None:
        """One step of the engine, if there is one."""
        if self.process is not None:
            self.process.do(step)

    def do_when_running(self, step: Callable[[Engine], None]) -> None:
        """The same, or after a pause."""
        process = self.process
        if process is not None:
            process.life.when_running(lambda: process.do(step))

    def pause(self) -> None:
        """SIGSTOP."""
        if self.process is not None:
            self.process.life.is_paused = True

    def resume(self) -> None:
        """SIGCONT: everything that came meanwhile comes now, after what callers may do first."""
        process = self.process
        if process is None:
            return
        if process.life.is_paused:
            process.life.is_paused = False
            for caller in self._callers:
                caller.process_resumed(process)
        process.life.catch_up()

    def damage_state(self, again: bool = False) -> bool:
        """Break something in the State; `again`: as often as it takes until answers depend on it."""
        return self.process is not None and self.process.replica.damage(again)


def _has_whole_snapshot(store: Store) -> bool:
    try:
        with store.open_snapshot() as snapshot:
            snapshot.verify()
    except FileNotFoundError:
        return True  # there is none
    except DamagedStorageError:
        return False
    return True
