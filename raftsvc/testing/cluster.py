"""The nodes of a cluster, and what all of them together know of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from raftsvc.core.membership import ConfChange, Configuration, ConfOp
from raftsvc.core.messages import Entry, HardState
from raftsvc.core.raft import Role
from raftsvc.core.versions import Versions
from raftsvc.testing.network import Network
from raftsvc.testing.node import SimulatedNode
from raftsvc.testing.process import Caller
from raftsvc.testing.serving import Serving
from raftsvc.testing.workers import Host
from raftsvc.testing.world import World


class Cluster:
    """All nodes that ever were, by their ids."""

    def __init__(self, world: World, network: Network, callers: Sequence[Caller], attached_count: int = 0) -> None:
        """attached_count: how many processes are attached to each node's."""
        self._world = world
        self._network = network
        self._callers = callers
        self.attached_count = attached_count
        self.nodes: dict[int, SimulatedNode] = {}
        self.cluster_id = 7

    def place(self, node_id: int, code: Versions) -> SimulatedNode:
        """Set up a computer for a member."""
        node = self.nodes[node_id] = SimulatedNode(self._world, self._network, node_id, self._callers, code)
        return node

    def create(self, node_id: int, hard_state: HardState, entries: Sequence[Entry], code: Versions) -> None:
        """Set up a member and start it."""
        node = self.place(node_id, code)
        node.create(self.cluster_id, hard_state, entries)
        node.start()
        if self.attached_count:
            node.host = Host(self._world, node, self._callers, self.attached_count)
            node.host.start()

    def clone(self, node: SimulatedNode) -> SimulatedNode:
        """Set up another computer, with what was copied of a member's directory before its last start."""
        assert node.doubles.copy is not None, "there is a copy"
        port_id = -node.node_id
        copy = self.nodes[port_id] = SimulatedNode(self._world, self._network, port_id, self._callers, node.code)
        copy.options = node.options
        copy.take_over(node.doubles.copy[1], node)
        node.doubles.copy = None
        return copy

    def forget_copy(self, copy: SimulatedNode) -> None:
        """It is stopped for good."""
        copy.retire()
        if (original := copy.doubles.twin) is not None:
            original.doubles.twin = copy.doubles.twin = None
        del self.nodes[copy.port_id], self._network.ports[copy.port_id]

    def up(self) -> list[SimulatedNode]:
        """Those whose process runs, even if it is paused."""
        return [node for _, node in sorted(self.nodes.items()) if node.process is not None]

    def ready(self) -> list[SimulatedNode]:
        """Those who can be asked something."""
        return [node for _, node in sorted(self.nodes.items()) if node.is_ready]

    def serving(self) -> list[Serving]:
        """The processes that can be asked something."""
        owners: list[Serving] = [node.process for node in self.ready() if node.process is not None]
        hosts = [node.host for _, node in sorted(self.nodes.items()) if node.host is not None]
        return owners + [worker for host in hosts for worker in host.ready()]

    def leader(self) -> SimulatedNode | None:
        """Whoever leads in the latest term."""
        leading = [n for n in self.nodes.values() if n.engine is not None and n.engine.core.role is Role.LEADER]
        return max(leading, key=lambda n: n.engine.core.term if n.engine else 0, default=None)

    def configuration(self) -> Configuration:
        """The latest one that any running node knows to be committed."""
        engines = [node.engine for node in self.nodes.values() if node.engine is not None]
        known = [(engine.core.log.commit_index, engine.core.committed_config) for engine in engines]
        return max(known, key=lambda pair: pair[0], default=(0, Configuration()))[1]

    def is_live(self, node_ids: Collection[int], leaving: Collection[int]) -> bool:
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
        for node_id in leaving:
            change = ConfChange(ConfOp.REMOVE, node_id)
            configs |= {c.changed(change) for c in configs if node_id in c.members and c.voters != {node_id}}
        for learner in {i for config in configs for i in config.learners}:
            change = ConfChange(ConfOp.PROMOTE, learner)
            configs |= {config.changed(change) for config in configs if learner in config.learners}
        return all(len(config.voters.intersection(node_ids)) >= config.quorum() for config in configs)

    def know_the_way(self, node_ids: Collection[int]) -> bool:
        """Whether each of those sends to where the others are: who moved is found by those who are where they were."""
        running = [process for i in node_ids if (process := self.nodes[i].process) is not None]
        return all(process.ways.leads_to(i) for process in running for i in node_ids if i != process.node_id)
