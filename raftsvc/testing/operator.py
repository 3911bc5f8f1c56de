"""Whoever looks after the cluster: founds it, changes its membership, and sees to members that are broken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from raftsvc.core.membership import ConfChange, ConfOp
from raftsvc.core.messages import EntryKind, HardState, make_entry
from raftsvc.core.raft import ProposalRefused
from raftsvc.core.versions import FIRST, Versions
from raftsvc.errors import DivergedError, OutdatedError, SupersededError
from raftsvc.member.engine import Engine
from raftsvc.member.health import Condition
from raftsvc.testing.cluster import Cluster
from raftsvc.testing.invariants import Violation
from raftsvc.testing.node import SimulatedNode
from raftsvc.testing.process import SimulatedProcess
from raftsvc.testing.schedule import MILLISECOND, SECOND
from raftsvc.testing.world import PATIENCE, World, between

_INTERVAL = 50 * MILLISECOND
_CONVICTION = 30 * SECOND
"""Virtual time within which a healed cluster convicts a member that differs; it needs an election timeout or two."""
_ATTENTION = 5 * SECOND
"""Virtual time after which the operator of a healed cluster sees to a member whose damage others cannot show."""
_LONG = 20 * SECOND
"""The same, though another change of membership is under way."""


class Operator:
    """Whoever founds the cluster, adds and removes members, and replaces broken ones."""

    def __init__(self, world: World, cluster: Cluster) -> None:
        self._world = world
        self._cluster = cluster
        self._tasks: list[Callable[[], bool]] = []
        self.leaving: list[int] = []
        """Who is to be evicted, and is not yet."""
        self._next_token = 0
        self._since: dict[SimulatedNode, int] = {}
        self._waited: Counter[tuple[SimulatedProcess, bool]] = Counter()

    @property
    def is_busy(self) -> bool:
        """Whether something is still to be done."""
        nodes = [node for node in self._cluster.nodes.values() if not node.is_gone]
        return bool(self._tasks) or any(
            node.refusal or node.has_damaged_state or node.doubles.is_put_back or node.doubles.twin for node in nodes
        )

    @property
    def task_count(self) -> int:
        """How many changes of membership are under way."""
        return len(self._tasks)

    def found(self, size: int) -> None:
        """A cluster of `size` voters, as `init` and `join` would make it."""
        cluster = self._cluster
        code = self._world.latest_code
        founding = ConfChange(ConfOp.ADD_VOTER, 1, "n1", versions=code)
        cluster.create(1, HardState(term=1, commit=1), [make_entry(1, 1, EntryKind.CONFIG, founding.encode())], code)
        for _ in range(size - 1):
            self.add()
        self.begin()
        done = self._world.schedule.run_until(
            PATIENCE, lambda: not self._tasks and len(cluster.configuration().voters) == size
        )
        if not done:
            raise Violation("liveness: the cluster did not form")

    def begin(self) -> None:
        """Look after everything from now on."""
        self._work()

    def _work(self) -> None:
        """Look after everything now and then."""
        if not self._world.absent:  # those who are left have enough to do
            for task in list(self._tasks):  # several at once: which comes first is up to the leader
                if task():
                    self._tasks.remove(task)
        for node in list(self._cluster.nodes.values()):
            if node.is_gone:
                pass
            elif node.process is not None:
                self._look_after(node, node.process)
            elif node.refusal is not None:
                self._look_after_refusal(node)
        if self._world.is_healed and not self._world.absent:
            self._go_on_upgrading()
        self._world.schedule.at(_INTERVAL, self._work)

    def _look_after(self, node: SimulatedNode, process: SimulatedProcess) -> None:
        """A node that runs may have no place any more, or have stopped taking part, or differ from the others."""
        engine = process.engine
        if engine.core.is_removed:
            node.note("is removed, and stopped")
            node.retire()
        elif engine.health.error_of(Condition.SUPERSEDED) is not None:
            if node.doubles.twin is not None:
                self._end_both(node, node.doubles.twin)
            elif not self._tasks:
                self._world.report.counts["found out"] += 1
                node.kill()
                if self._world.random.random() < 0.5:
                    node.restart_later()  # in vain, says its directory
                else:
                    self.replace(node)
        elif isinstance(engine.health.halted, DivergedError):
            if self._world.schedule.now - process.halted_at >= SECOND:
                self._mend(node, process)
        elif isinstance(engine.health.halted, OutdatedError):
            self._world.report.counts["outdated"] += 1
            self._upgrade(node, engine.health.halted)
        elif engine.health.failure is not None or engine.health.halted is not None:
            node.note(f"is restarted after: {engine.health.err()}")
            node.kill()
            node.restart_later()
        elif self._world.is_healed and self._is_alone_and_lost(node, process):
            node.note("is told where it is, and restarted")
            node.kill()
            node.restart_later()
        elif process.replica.is_damaged and self._world.is_healed:
            self._await_conviction(node, process)
        elif self._world.is_healed and node.doubles.twin is not None and self._reaches_nobody(node, process):
            self._end_lost(node, node.doubles.twin)

    def _is_alone_and_lost(self, node: SimulatedNode, process: SimulatedProcess) -> bool:
        """Whether the only member mistakes its own address, which nobody else can tell."""
        alone = list(self._cluster.configuration().members) == [node.node_id]
        return alone and process.ways.own_addr != node.place.addr and not node.place.mistaken

    def _look_after_refusal(self, node: SimulatedNode) -> None:
        """A node that did not start can be started again, unless its storage is damaged."""
        if isinstance(node.refusal, OutdatedError):
            self._world.report.counts["outdated"] += 1
            self._upgrade(node, node.refusal)
        elif node.doubles.twin is not None and node.is_found_out:
            self._end_both(node, node.doubles.twin)
        elif not node.is_damaged and not isinstance(node.refusal, SupersededError):
            node.refusal = None
            node.restart_later()
        elif not self._tasks:
            self.replace(node)

    def _end_both(self, node: SimulatedNode, twin: SimulatedNode) -> None:
        """A member runs twice.  Stop it, here and there, once both know: each is to find out by itself.

        Who refused the copy may have been struck before that was in the log.  Then the original hears of nothing,
        rightly, for the copy never comes again; people do what the copy says.
        """
        self._since.setdefault(node, self._world.schedule.now)
        is_alone = node.is_copy and self._world.schedule.now - self._since[node] > _LONG
        if not self._tasks and (twin.is_found_out or is_alone):
            self._world.report.counts["copies found out" if twin.is_found_out else "copies found out alone"] += 1
            copy, original = (node, twin) if node.is_copy else (twin, node)
            self._cluster.forget_copy(copy)
            original.kill()
            self.replace(original)

    def _reaches_nobody(self, node: SimulatedNode, process: SimulatedProcess) -> bool:
        """Whether all other members that it knows are gone, or where it does not know: nobody tells it that it is two.

        At the addresses that it has for them is no member then, for whoever was there would have said where he is.
        """
        others = process.engine.core.config.members.keys() - {node.node_id}
        return all(
            (other := self._cluster.nodes.get(i)) is None or other.is_gone or not process.ways.leads_to(i)
            for i in others
        )

    def _end_lost(self, node: SimulatedNode, twin: SimulatedNode) -> None:
        """One of two reaches nobody, and says that it is out of touch.  It is stopped; the other one never knows."""
        self._since.setdefault(node, self._world.schedule.now)
        is_lost = node.engine is not None and node.engine.health.error_of(Condition.OUT_OF_TOUCH) is not None
        if not is_lost or self._tasks or twin.is_found_out or self._world.schedule.now - self._since[node] <= _LONG:
            return
        self._world.report.counts["copies found out of touch"] += 1
        if node.is_copy:
            self._cluster.forget_copy(node)
        else:
            self._cluster.forget_copy(twin)
            node.kill()
            self.replace(node)

    def _await_conviction(self, node: SimulatedNode, process: SimulatedProcess) -> None:
        """A member differs, and a majority of healthy voters can tell: they must.  Else people find out sometime."""
        cluster = self._cluster
        engine = process.engine
        config = cluster.configuration()
        witnesses = [
            other
            for i in config.voters
            if (other := cluster.nodes[i].engine) is not None
            and i != node.node_id
            and other.health.halted is None
            and other.applying.applied_index >= engine.applying.applied_index - 20
        ]
        can_be_told = (
            self._world.watch.digests.differs(engine)
            and len(witnesses) >= max(config.quorum(), 2)
            and cluster.leader() is not None
        )
        self._waited[process, can_be_told] += _INTERVAL
        if self._waited[process, True] > _CONVICTION:
            raise Violation(f"liveness: a member that differs is not convicted; {node.describe()}")
        if self._waited[process, False] > _ATTENTION:
            self._mend(node, process)

    def _mend(self, node: SimulatedNode, process: SimulatedProcess) -> None:
        """A restart makes the State whole, unless it was damaged before its last snapshot: then another member does."""
        if not process.replica.began_damaged:
            node.note("is restarted, for its State is damaged")
            # Attached processes, whose States may come from its snapshot, are started anew with it, or go on from here.
            node.kill(with_attached=self._world.is_healed or process.halted_at % 2 == 0)
            node.restart_later()
        elif not self._tasks or self._waited[process, False] > _LONG:
            # Others have their turn first; but nothing may come of that while it leads, and sends no snapshot.
            node.kill(with_attached=True)
            self.replace(node)

    # -- code

    def _upgrade(self, node: SimulatedNode, why: object) -> None:
        node.note(f"is started with {self._world.latest_code} after: {why}")
        node.code = self._world.latest_code
        node.refusal = None
        node.kill()
        node.restart_later()

    @property
    def is_all_upgraded(self) -> bool:
        """Whether every node runs the latest code."""
        latest = self._world.latest_code
        nodes = [node for node in self._cluster.nodes.values() if not node.is_gone]
        return all(node.engine is not None and node.engine.upgrades.own == latest for node in nodes)

    def _go_on_upgrading(self) -> None:
        """Once nothing goes wrong any more, start one node after the other with the latest code."""
        nodes = [node for node in self._cluster.nodes.values() if not node.is_gone]
        if self.is_busy or not all(node.is_ready and node.engine is not None for node in nodes):
            return
        for node in nodes:
            # One attached process may know more than what is installed now, and own the directory.
            known = (node.code, node.engine.upgrades.own) if node.engine is not None else ()
            if any(versions != self._world.latest_code for versions in known):
                self._upgrade(node, "all is well")
                return

    # -- membership

    def add(self) -> None:
        """Have a new member join: a learner first, which the leader promotes."""
        self._next_token += 1
        token = self._next_token.to_bytes(16, "big")
        # As the latest, or as any before: what is below the effective version is refused, and comes again later.
        codes = [self._world.latest_code]
        if self._world.random.random() < 0.5 and not self._world.is_healed:
            codes.insert(0, between(self._world.random, FIRST, codes[0]))
        self._tasks.append(lambda: self._try_to_add(token, codes))

    def _try_to_add(self, token: bytes, codes: list[Versions]) -> bool:
        cluster = self._cluster
        config = cluster.configuration()
        for node_id, member in config.members.items():
            if member.token == token:
                former = cluster.nodes.get(node_id)
                if former is None or former.is_gone:
                    self._world.report.counts["joined"] += 1
                    cluster.create(node_id, HardState(), [], codes[0])
                return True
        node_id = config.highest_id + 1
        self._attempt(ConfChange(ConfOp.ADD_LEARNER, node_id, f"n{node_id}", token, codes[0]))
        if not codes[0].covers(config.versions):
            self._world.report.counts["refused to join"] += 1
            if self._world.random.random() < 0.2:
                if len(codes) > 1:
                    del codes[0]
                else:
                    codes[0] = self._world.latest_code  # which was another when this was begun
        return False

    def remove(self, node_id: int) -> None:
        """Have a member evicted."""
        self.leaving.append(node_id)
        self._tasks.append(lambda: self._try_to_remove(node_id))

    def _try_to_remove(self, node_id: int) -> bool:
        config = self._cluster.configuration()
        if config.voters == {node_id}:
            self.leaving.remove(node_id)
            return True  # it cannot be: the others left meanwhile
        if node_id > config.highest_id and self._is_known():
            self.leaving.remove(node_id)
            return True  # it was none: the list of the others is without it
        if config.was_removed(node_id):
            self._world.report.counts["evicted"] += 1
            self.leaving.remove(node_id)
            node = self._cluster.nodes[node_id]
            if node.process is None:
                node.retire()
            return True
        self._attempt(ConfChange(ConfOp.REMOVE, node_id))
        return False

    def replace(self, node: SimulatedNode) -> None:
        """Evict a member whose storage is lost, and have a new one join."""
        node.note("is replaced")
        self._world.watch.consensus.lost(node.node_id)
        node.refusal = None
        node.is_gone = True
        self.remove(node.node_id)
        self.add()

    def _is_known(self) -> bool:
        """Whether a leader has committed something, so that all that was committed before is known (section 8)."""
        leader = self._cluster.leader()
        engine = leader.engine if leader is not None else None
        return engine is not None and engine.core.log.term_at(engine.core.log.commit_index) == engine.core.term

    def _attempt(self, change: ConfChange) -> None:
        """Ask some node to have it done; what comes of it shows in the configuration."""
        ready = self._cluster.ready()
        if ready:
            node = self._world.random.choice(ready)
            node.do(lambda engine: engine.changes.end(engine.changes.attempt(change)))

    def hand_over(self) -> None:
        """Have the leader hand over to some other voter."""
        rng = self._world.random
        leader = self._cluster.leader()
        if leader is None or leader.engine is None or not leader.is_ready:
            return
        others = sorted(leader.engine.core.config.voters - {leader.node_id})
        if others and rng.random() < 0.9:
            target = rng.choice(others)
            leader.note(f"hands over to n{target}")

            def transfer(engine: Engine) -> None:
                with suppress(ProposalRefused):
                    engine.time.note()
                    engine.core.transfer_leadership(target)

            leader.do(transfer)
