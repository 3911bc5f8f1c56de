"""How a simulated cluster founds itself: nodes with a list, and what may go wrong until they are members.

Each listed node is a computer like any other, on which a process runs that belongs to no cluster
(`core.founding`), until it speaks as a member: from then on it is a process like any other.  What goes
wrong meanwhile is drawn from a generator of its own: orders of starts, crashes at any write, lost disks, links,
lists that differ, processes that mistake their address, addresses that lead elsewhere, messages that come twice or
long after.  What must hold is said by `Foundings`.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from raftsvc.core.founding import (
    Answer,
    Deed,
    Founding,
    Nascent,
    Question,
    Standing,
    Work,
    answer_as_member,
    founding_in,
    never_storing,
)
from raftsvc.core.messages import HardState
from raftsvc.errors import StorageError
from raftsvc.testing.cluster import Cluster
from raftsvc.testing.disk import PowerLoss, SimulatedDisk
from raftsvc.testing.network import Network
from raftsvc.testing.node import SimulatedNode
from raftsvc.testing.operator import Operator
from raftsvc.testing.process import open_store
from raftsvc.testing.schedule import MILLISECOND, SECOND, Lifetime
from raftsvc.testing.violation import Violation, require
from raftsvc.testing.world import PATIENCE, World

_ROUND = 200 * MILLISECOND
_HOLD = SECOND
"""For so long after it answered a founder a node answers no other process of it."""
_ROUNDS_TOLD = 5
"""Rounds after which the operator does what a node is told."""


class Foundings:
    """What must be true of everything that is founded, as is known from outside."""

    def __init__(self) -> None:
        self.founded: dict[int, Founding] = {}
        self.stored: dict[int, set[int]] = {}
        """By cluster, who has its entry; not who lost it."""
        self._ever: dict[int, set[int]] = {}
        self._tokens: dict[int, bytes] = {}  # with which a node answered a founder last
        self.spoken: set[int] = set()
        """The clusters of which some member speaks."""

    def store(self, node_id: int, founding: Founding, answered: set[bytes]) -> None:
        """A node has stored an entry; answered: the tokens that this process of it answered with, so far."""
        addr, token = founding.founders.members[node_id - 1]
        require(token in answered, f"founding: node {node_id} at {addr} stores what names no token of its process")
        self.recover(node_id, founding)

    def recover(self, node_id: int, founding: Founding) -> None:
        """A node has an entry stored, and finds it there if it is started anew."""
        addr, token = founding.founders.members[node_id - 1]
        require(
            self._tokens.get(node_id, token) == token,
            f"founding: node {node_id} at {addr} has an entry from before it answered another founder",
        )
        first = self.founded.setdefault(founding.cluster_id, founding)
        require(first.entry == founding.entry, f"founding: the entry of cluster {founding.cluster_id:x} was changed")
        holders = self.stored.setdefault(founding.cluster_id, set())
        holders.add(node_id)
        self._ever.setdefault(founding.cluster_id, set()).add(node_id)
        total = len(founding.founders.members)
        for other, having in self.stored.items():
            require(
                other == founding.cluster_id or len(having) <= total // 2 or len(holders) <= total // 2,
                f"founding: two entries of one list are stored by majorities, {sorted(having)} and {sorted(holders)}",
            )

    def find_nothing(self, node_id: int) -> None:
        """The directory of a node is that of no member."""
        forgotten = [cluster_id for cluster_id, having in self.stored.items() if node_id in having]
        require(not forgotten, f"founding: node {node_id} forgot an entry that it had said it has stored")

    def speak(self, node_id: int, founding: Founding) -> None:
        """A node is about to speak as a member."""
        have = self._ever.get(founding.cluster_id, set())
        require(node_id in have, f"founding: node {node_id} speaks of what it has not stored")
        require(
            founding.cluster_id in self.spoken or len(have) > len(founding.founders.members) // 2,
            f"founding: node {node_id} speaks although only {sorted(have)} have stored the entry",
        )
        self.spoken.add(founding.cluster_id)
        require(len(self.spoken) == 1, "founding: members of two clusters speak that were founded from one list")

    def answer(self, node_id: int, token: bytes) -> None:
        """A node that is of no cluster has answered a founder with that token."""
        self._tokens[node_id] = token

    def lose(self, node_id: int) -> None:
        """The disk of a node is gone."""
        for having in self.stored.values():
            having.discard(node_id)

    def hand(self, asker_id: int, answer: Answer, has_spoken: bool) -> None:
        """A member that speaks answers a node that does not."""
        require(
            not (answer.entry and has_spoken),
            f"founding: the entry is handed to node {asker_id}, which had spoken, and lost its memory",
        )


class NascentProcess:
    """A process of a listed node that belongs to no cluster, or is silent yet."""

    def __init__(self, forming: Forming, node: SimulatedNode, members: tuple[str, ...]) -> None:
        """May raise StorageError, or PowerLoss."""
        self._forming = forming
        self._node = node
        self._world = forming.world
        self.life = Lifetime(forming.world.schedule)
        self._store = open_store(forming.world, node.computer)
        stored = founding_in(self._store.founded.entry()) if self._store.is_initialized else None
        self.room = Nascent(node.place.advertised, members, node.code, Random(forming.random.getrandbits(64)), stored)
        if stored is not None:
            forming.foundings.recover(node.node_id, stored)
        self._answered: set[bytes] = set()
        self._rounds_told = 0
        self._founder_heard_at = 0
        self.life.later(forming.random.randrange(_ROUND), self._ask)

    def _try(self, step: Callable[[], None]) -> None:
        if not self.life.is_over:
            try:
                step()
            except PowerLoss:
                self._node.cut_power()

    # -- to ask

    def _ask(self) -> None:
        room = self.room
        self.life.later(_ROUND + self._forming.random.randrange(_ROUND), self._ask)
        if room.work is not None:
            return
        self._look_after(room)
        if self.life.is_over or not self._settle():
            return
        work = room.next_work(is_over=True)
        if work is not None:
            self._do(work)
            return
        for addr, question in room.questions().items():

            def hear(answer: Answer, addr: str = addr) -> None:
                if not self.life.is_over:
                    room.hear(addr, answer)
                    self._try(self._go_on)

            self._forming.carry(self._node, addr, question, hear)
        self._try(self._go_on)

    def _look_after(self, room: Nascent) -> None:
        """The operator does what a node says has to be done: evict its former self, or empty all directories."""
        stored = room.stored
        if stored is not None:
            self._rounds_told += bool(never_storing(stored, room.answers))
        else:
            self._rounds_told += any(a.is_known and a.standing is Standing.FORMED for a in room.answers.values())
        if self._rounds_told > _ROUNDS_TOLD:
            self._rounds_told = 0
            if stored is None:
                self._forming.replace(self._node)
            else:
                self._forming.begin_anew()

    def _settle(self) -> bool:
        """Nothing is left of what could not be stored; nobody is answered before."""
        try:
            if self._store.is_in_doubt:
                self._store.undo_create()
        except StorageError as error:
            self._node.note(f"cannot be undone: {error}")
        except PowerLoss:
            self._node.cut_power()
            return False
        return not self._store.is_in_doubt

    def _go_on(self) -> None:
        work = self.room.next_work()
        if work is not None:
            self._do(work)

    def _do(self, work: Work) -> None:
        """Takes a while, as disks do; meanwhile nothing else happens here."""
        self._node.note(f"{work.deed.name} {work.founding.cluster_id if work.founding else work.addr}")
        self.room.begin(work)
        delay = self._forming.random.randrange(1, 5) * MILLISECOND
        self.life.later(delay, lambda: self._try(lambda: self._carry_out(work)))

    def _carry_out(self, work: Work) -> None:
        foundings, node, store, founding = self._forming.foundings, self._node, self._store, work.founding
        if work.deed is Deed.JOIN:
            self._forming.replace(node)
            return
        assert founding is not None, "all else is about an entry"
        try:
            if work.deed is Deed.STORE:
                own_id = founding.id_of(self.room.addr)
                require(own_id == node.node_id, f"founding: {node.name} becomes member {own_id}")
                self._answered |= self._forming.own_tokens(self.room, founding)
                store.create(own_id, founding.cluster_id, HardState(1, 0, 1), [founding.entry], founding.entry)
                foundings.store(node.node_id, founding, self._answered)
            else:
                store.founded.speak()
        except StorageError as error:
            node.note(f"{work.deed.name} failed: {error}")
            self.room.end(False)
            return
        self.room.end(True)
        if self.room.is_over:
            self._forming.speak(node)

    # -- to be asked

    def take(self, question: Question, reply: Callable[[Answer], None]) -> None:
        """A question came."""
        room = self.room
        if self.life.is_over or (room.work is not None and room.work.deed is not Deed.JOIN):
            return
        work = room.consider(question) if room.work is None else None
        if work is None:
            self._answer(question, reply)
            return
        self._do(work)
        self.life.later(6 * MILLISECOND, lambda: self._answer(question, reply))

    def _answer(self, question: Question, reply: Callable[[Answer], None]) -> None:
        if self.room.work is None and not self.room.is_over and not self._store.is_in_doubt:
            now = self._world.schedule.now
            if self.room.is_of_another_attempt(question) and now - self._founder_heard_at < _HOLD:
                return
            answer = self.room.answer(question)
            self._answered.add(answer.token)
            if answer.token:
                self._founder_heard_at = now
                self._forming.foundings.answer(self._node.node_id, answer.token)
            reply(answer)

    def end(self) -> None:
        """The process is gone."""
        self.life.end()


class Listed:
    """The cradle of a node: what starts on it while it is no member that speaks."""

    def __init__(self, forming: Forming, node: SimulatedNode, members: tuple[str, ...]) -> None:
        self._forming = forming
        self._node = node
        self.members = members
        self.process: NascentProcess | None = None

    def start(self) -> bool:
        """Start a process that belongs to no cluster; False if it is time for one that does."""
        store = open_store(self._forming.world, self._node.computer)
        is_member = store.is_initialized and not store.founded.is_silent
        founding = founding_in(store.founded.entry()) if is_member else None
        if not store.is_initialized:
            self._forming.foundings.find_nothing(self._node.node_id)
        store.close()
        if founding is not None:  # also where the power went right after that was durable
            self._forming.foundings.recover(self._node.node_id, founding)
            self._forming.foundings.speak(self._node.node_id, founding)
            self._forming.adopt(founding)
        if is_member:
            return False
        self.process = NascentProcess(self._forming, self._node, self.members)
        return True

    def end(self) -> None:
        """Its process is gone."""
        process, self.process = self.process, None
        if process is not None:
            process.end()


class Forming:
    """Everything that the nodes of one list do until they are a cluster."""

    def __init__(
        self, world: World, network: Network, cluster: Cluster, operator: Operator, random: Random, size: int
    ) -> None:
        self.world = world
        self.random = random
        self.foundings = Foundings()
        self._network = network
        self._cluster = cluster
        self._operator = operator
        self.members = tuple(f"n{i}" for i in range(1, size + 1))
        self.listed = {i: self._add(i) for i in range(1, size + 1)}
        self.astray: dict[str, int] = {}  # addresses that lead to others for a while
        self.replaced: set[int] = set()
        self._is_late = random.random() < 0.3

    def _add(self, node_id: int) -> Listed:
        node = self._cluster.place(node_id, self.world.latest_code)
        cradle = Listed(self, node, self.members)
        node.cradle = cradle
        return cradle

    def run(self) -> None:
        """Have all nodes started, in whatever order, and much go wrong, until they are a cluster."""
        world, rng = self.world, self.random
        for node in self.nodes():
            world.schedule.at(rng.choice((0, 1, rng.randrange(3000))) * MILLISECOND, node.start)
        faults = rng.sample(_Faults(self, world, self._network, self._cluster).all(), rng.randint(0, 4))
        for _ in range(rng.randint(0, 12) if faults else 0):
            world.schedule.run_until(world.schedule.now + rng.randrange(1, 700) * MILLISECOND)
            rng.choice(faults)()
        self._heal()
        if not world.schedule.run_until(world.schedule.now + PATIENCE, self._is_formed):
            state = "; ".join(f"{n.describe()} {self._said(n)}" for n in self.nodes())
            raise Violation(f"liveness: the cluster did not form; {state}")
        for node in self.nodes():
            node.cradle = None
        self._judge()

    def nodes(self) -> list[SimulatedNode]:
        """Those that were listed first and are there yet."""
        return [node for i in sorted(self.listed) if not (node := self._cluster.nodes[i]).is_gone]

    def _said(self, node: SimulatedNode) -> str:
        process = self.listed[node.node_id].process
        return "" if process is None else f"stored={process.room.stored is not None} {process.room.answers}"

    def _is_formed(self) -> bool:
        return (
            not self._operator.is_busy
            and len(self._cluster.configuration().voters) == len(self.members)
            and all(node.process is not None for node in self.nodes())
        )

    def _judge(self) -> None:
        """The bytes of the entry are the same everywhere, also in the log of those who have it yet."""
        (cluster_id,) = self.foundings.spoken
        founding = self.foundings.founded[cluster_id]
        for node in self.nodes():
            if node.process is not None and node.node_id not in self.replaced:
                require(
                    node.process.store.founded.entry() == founding.entry,
                    f"founding: {node.name} keeps other bytes of the entry",
                )

    # -- what goes between

    def carry(self, source: SimulatedNode, addr: str, question: Question, hear: Callable[[Answer], None]) -> None:
        """Carry a question to whoever is at `addr`, and what is answered back; perhaps twice, perhaps never."""
        network, schedule = self._network, self.world.schedule
        wire = question.encode()

        def reply(answer: Answer) -> None:
            data = answer.encode()
            if network.passes(there(), source.node_id):
                for _ in range(self._copies()):
                    schedule.at(self._delay(), lambda: hear(Answer.decode(data)))

        def there() -> int:
            return self.astray.get(addr, int(addr[1:]) if addr[1:].isdigit() else 0)

        def arrive() -> None:
            node = self._cluster.nodes.get(there())
            if node is not None:
                self._ask(node, source.node_id, Question.decode(wire), reply)

        if network.passes(source.node_id, there()):
            for _ in range(self._copies()):
                schedule.at(self._delay(), arrive)

    def _copies(self) -> int:
        return 1 + (self._network.duplication > self.random.random())

    def _delay(self) -> int:
        is_late = self._is_late and not self.world.is_healed and self.random.random() < 0.1
        return self._network.latency() + (self.random.randrange(5 * SECOND) if is_late else 0)

    def _ask(self, node: SimulatedNode, asker_id: int, question: Question, reply: Callable[[Answer], None]) -> None:
        cradle = self.listed.get(node.node_id)
        if cradle is not None and cradle.process is not None:
            cradle.process.take(question, reply)
        elif node.process is not None:
            engine = node.process.engine
            founding = founding_in(node.process.store.founded.entry())
            answer = answer_as_member(
                question,
                node.place.advertised,
                engine.snapshots.cluster_id,
                founding,
                engine.core.committed_config,
                engine.core.is_removed,
                lambda i: engine.lives.highest(i).counter > 0,
            )
            life = engine.applying.machine.life_of(asker_id) if asker_id in self.listed else None
            self.foundings.hand(asker_id, answer, life is not None and life.counter > 0)
            reply(answer)

    def own_tokens(self, room: Nascent, founding: Founding) -> set[bytes]:
        """The token of who founds alone, which nobody else is told."""
        if len(room.members) > 1:
            return set()
        token = founding.founders.members[0][1]
        self.foundings.answer(1, token)
        return {token}

    # -- what becomes of nodes

    def adopt(self, founding: Founding) -> None:
        """Members of that cluster speak: who joins later joins that."""
        self._cluster.cluster_id = founding.cluster_id

    def speak(self, node: SimulatedNode) -> None:
        """It is a member like any other from here on."""
        self.listed[node.node_id].end()
        node.computer.disk.kill_process()
        node.start()

    def replace(self, node: SimulatedNode) -> None:
        """Its former self is evicted, and it joins anew."""
        if node.node_id not in self.replaced:
            self.replaced.add(node.node_id)
            self.world.report.counts["joined what was formed without them"] += 1
            node.kill()
            node.cradle = None
            self._operator.replace(node)

    def begin_anew(self) -> None:
        """What is founded cannot come to be: all are stopped and, unless one of them spoke, start with nothing."""
        self.world.report.counts["founded again from empty directories"] += 1
        for node in self.nodes():
            node.kill()
        try:
            stores = [open_store(self.world, node.computer) for node in self.nodes()]
            is_safe = all(store.founded.is_silent or not store.is_initialized for store in stores)
        except StorageError:
            is_safe = False
        for node in self.nodes():
            if is_safe:
                self.lose_disk(node)
            node.restart_later()

    def lose_disk(self, node: SimulatedNode) -> None:
        """It is not running, and has another disk."""
        node.note("loses its disk")
        node.computer.disk.become(SimulatedDisk())
        self.foundings.lose(node.node_id)
        self.world.watch.consensus.lost(node.node_id)
        node.refusal = None

    def _heal(self) -> None:
        self.world.schedule.note("", "formation is healed")
        self.astray = {}
        self._is_late = False
        self._network.heal()
        for i, cradle in self.listed.items():
            node = self._cluster.nodes[i]
            if node.is_gone:
                continue
            room = cradle.process.room if cradle.process is not None else None
            cradle.members = self.members
            node.place.mistaken = ""
            node.computer.heal(self.world.schedule.now)
            if room is not None and (room.members != self.members or room.addr != node.name):
                node.kill()
            if node.process is None and cradle.process is None:
                node.restart_later()


class _Faults:
    """What may go wrong with nodes that are founding a cluster."""

    def __init__(self, forming: Forming, world: World, network: Network, cluster: Cluster) -> None:
        self._forming = forming
        self._world = world
        self._network = network
        self._cluster = cluster
        self._random = forming.random

    def all(self) -> list[Callable[[], None]]:
        """Each of them, once."""
        return [
            self._kill,
            self._kill_all,
            self._cut_power,
            self._cut_power_in_a_write,
            self._kill_then_cut_power,
            self._lose_disk,
            self._cut_links,
            self._lose_messages,
            self._differ,
            self._mistake_address,
            self._lead_astray,
            self._fail_disk,
            self._fail_to_store,
        ]

    def _any(self) -> SimulatedNode:
        nodes = self._forming.nodes()
        founder = self._cluster.nodes[1]
        return founder if not founder.is_gone and self._random.random() < 0.4 else self._random.choice(nodes)

    def _kill(self) -> None:
        node = self._any()
        node.kill()
        node.restart_later()

    def _kill_all(self) -> None:
        for node in self._forming.nodes():
            node.kill()
            node.restart_later()

    def _cut_power(self) -> None:
        self._any().cut_power()

    def _cut_power_in_a_write(self) -> None:
        disk = self._any().computer.disk
        disk.crash_at = len(disk.operations) + self._random.randrange(1, 25)

    def _kill_then_cut_power(self) -> None:
        """A process is killed in the midst of a change of its directory, and under the next one the power goes."""
        node = self._any()
        disk = node.computer.disk
        disk.crash_at = len(disk.operations) + self._random.randrange(1, 25)
        disk.crash_kills = True
        delay = self._random.randrange(50, 4000) * MILLISECOND
        self._world.schedule.at(delay, lambda: self._cut_power_of(node))

    def _cut_power_of(self, node: SimulatedNode) -> None:
        if node.cradle is not None and not node.is_gone:
            node.cut_power()

    def _fail_disk(self) -> None:
        operation = self._random.choice(("write", "sync", "rename", "sync_dir", "remove"))
        self._any().computer.disk.fail_next(operation, skip=self._random.randrange(6))

    def _fail_to_store(self) -> None:
        """A node cannot make durable that it has the entry, nor that it has not; then the power goes."""
        schedule = self._world.schedule
        node, founder = self._any(), self._cluster.nodes[1]
        for _ in range(self._random.randint(1, 2)):
            node.computer.disk.fail_next("sync_dir", "/data", skip=1)

        def restart() -> None:
            if founder.cradle is not None and not founder.is_gone:
                founder.kill()
                founder.restart_later()

        schedule.at(self._random.randrange(3000) * MILLISECOND, restart)
        schedule.at(self._random.randrange(6000) * MILLISECOND, lambda: self._cut_power_of(node))

    def _lose_disk(self) -> None:
        """A disk is lost, or put back to before: as long as that does not lose what a cluster needs to go on."""
        node = self._any()
        majority = len(self._forming.members) // 2 + 1
        having = [have - {node.node_id} for have in self._forming.foundings.stored.values() if len(have) >= majority]
        if any(len(have) < majority for have in having) or self._forming.replaced:
            return
        node.kill()
        self._forming.lose_disk(node)
        node.restart_later()

    def _cut_links(self) -> None:
        ids = sorted(self._forming.listed)
        pair = (self._random.choice(ids), self._random.choice(ids))
        self._network.cut ^= {pair}

    def _lose_messages(self) -> None:
        self._network.loss = self._random.choice((0.0, 0.2, 0.6))
        self._network.duplication = self._random.choice((0.0, 0.3))

    def _differ(self) -> None:
        """One node has another list for a while: with one more, with one less, with another name for one."""
        for cradle in self._forming.listed.values():
            cradle.members = self._forming.members
        node = self._any()
        node.place.mistaken = ""
        others = [addr for addr in self._forming.members if addr != node.name]
        kept = others[: self._random.randrange(len(others) + 1)]
        more = self._random.choice(((), ("n0",), ("x9",), (f"{self._random.choice(others)}.alias",) if others else ()))
        members = (node.name, *kept, *more)
        # Alone it would rightly be a cluster of its own.
        self._forming.listed[node.node_id].members = members if len(members) > 1 else (*members, "x9")
        node.kill()
        node.restart_later()

    def _mistake_address(self) -> None:
        """A process says that it is reached where another node is."""
        for node in self._forming.nodes():
            node.place.mistaken = ""
        node = self._any()
        self._forming.listed[node.node_id].members = self._forming.members
        if self._forming.listed[node.node_id].process is None:
            return
        node.place.mistaken = self._random.choice(self._forming.listed[node.node_id].members)
        node.kill()
        node.restart_later()

    def _lead_astray(self) -> None:
        """What is sent to one address arrives at another."""
        self._forming.astray = {
            self._random.choice(self._forming.members): self._random.choice(sorted(self._forming.listed))
        }
