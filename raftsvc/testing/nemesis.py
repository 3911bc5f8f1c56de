"""Who has things go wrong: which, when, and whom they strike, all drawn from the seed; and who heals them."""

from __future__ import annotations

from raftsvc.testing.cluster import Cluster
from raftsvc.testing.faults import FOCUSES, Faults
from raftsvc.testing.injections import Changes, Damage, Injection, NetworkFaults, NodeFaults, Upgrades
from raftsvc.testing.network import Network
from raftsvc.testing.operator import Operator
from raftsvc.testing.schedule import MILLISECOND
from raftsvc.testing.world import World


class Nemesis:
    """Injects one fault after the other, several at a time, each for a while."""

    def __init__(self, world: World, network: Network, cluster: Cluster, operator: Operator, faults: Faults) -> None:
        self._world = world
        self._network = network
        self._cluster = cluster
        self._operator = operator
        rng = world.random
        self._mean_pause = rng.choice((150, 400, 1000)) * MILLISECOND
        # A seed has a few kinds of trouble, so that these meet more often than all kinds would.
        kinds = faults.kinds
        self._kinds = rng.sample(kinds, min(len(kinds), rng.randint(2, 10)))
        focus = rng.choice(FOCUSES)
        if rng.random() < 0.3 and set(focus) <= set(kinds):
            self._kinds = list(focus)
        self._injections: dict[str, Injection] = {
            **NetworkFaults(world, network, cluster).injections,
            **NodeFaults(world).injections,
            **Damage(world, cluster, operator).injections,
            **Changes(world, cluster, operator).injections,
            **Upgrades(world, cluster).injections,
        }

    def start(self) -> None:
        """Begin."""
        if self._kinds:
            self._wait()

    def _wait(self) -> None:
        self._world.schedule.at(int(self._world.random.expovariate(1 / self._mean_pause)), self._strike)

    def _strike(self) -> None:
        world = self._world
        if world.is_healed:
            return
        rng = world.random
        kind = rng.choice(self._kinds)
        up = self._cluster.up()
        if up:
            leader = self._cluster.leader()
            node = leader if leader is not None and rng.random() < 0.4 else rng.choice(up)
            if self._injections[kind](node):
                world.report.faults[kind] += 1
                node.note(f"FAULT {kind}")
        self._wait()

    def heal(self) -> None:
        """From now on nothing goes wrong, save that some may stay dead where the others are a majority."""
        self._world.is_healed = True
        self._network.heal()
        for node in self._cluster.nodes.values():
            node.computer.heal(self._world.schedule.now)
            node.resume()
            node.restart_later()
        if self._world.random.random() < 0.5:
            self._leave_some_dead()

    def _leave_some_dead(self) -> None:
        """As few go on as are needed: those who were dead already, and others by chance, are missing."""
        world = self._world
        nodes = self._cluster.nodes
        leaving = self._operator.leaving
        ids = sorted(i for i, node in nodes.items() if not node.is_gone)
        # Who is damaged goes on, and is not counted on: it may have to be replaced meanwhile.
        damaged = {i for i in ids if nodes[i].is_untrustworthy}
        alive = {i for i in ids if (engine := nodes[i].engine) is not None and engine.health.err() is None} - damaged
        for i in world.random.sample(ids, len(ids)):
            if self._cluster.is_live(alive - {i}, leaving):
                alive.discard(i)
        if not self._cluster.is_live(alive, leaving) or not self._cluster.know_the_way(alive):
            return
        world.absent = frozenset(ids) - alive - damaged
        for i in world.absent:
            nodes[i].note("stays dead for now")
            nodes[i].kill()
            # Nothing comes from them any more, not even what they said before.
            self._network.cut |= {(i, j) for j in ids} | {(j, i) for j in ids}

    def bring_back(self) -> None:
        """Start those that were left dead."""
        absent, self._world.absent = self._world.absent, frozenset()
        self._network.cut.clear()
        for i in sorted(absent):
            self._cluster.nodes[i].restart_later()
