"""What goes wrong in a simulation, when, and for how long: all drawn from the seed."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raftsvc.testing.simulation import SimulatedNode, Simulation

_MS = 1000
_SECOND = 1000 * _MS
_SYNCED = ("", "", "", "/snap.part", "/snap.tmp")
"""Which fsync fails: the next one, or that of such a file, at work seldom and in pieces."""

KINDS = (
    "loss",
    "duplication",
    "delay and reordering",
    "partition",
    "one-way cut",
    "leader cut off",
    "leader unheard by one",
    "kill",
    "power cut",
    "power cut in a write",
    "fsync error",
    "write error",
    "full disk",
    "slow disk",
    "hung disk",
    "bit rot in the log",
    "bit rot in the snapshot",
    "log cut short",
    "State damaged",
    "pause",
    "clock drift",
    "clock jump",
    "member added",
    "member removed",
    "leadership transfer",
)


FOCUSES: tuple[tuple[str, ...], ...] = (
    ("power cut in a write", "power cut", "leader cut off", "partition", "kill"),
    ("slow disk", "leader cut off", "power cut", "partition", "kill", "leadership transfer"),
    ("member added", "member removed", "leadership transfer", "partition", "kill", "loss"),
    ("pause", "leader cut off", "one-way cut", "clock drift", "delay and reordering", "leadership transfer"),
    ("leader unheard by one", "kill", "leadership transfer", "delay and reordering"),
    ("State damaged", "leader cut off", "partition", "delay and reordering", "kill", "member added"),
)
"""Kinds that some bugs take to show, and that chance alone brings together too seldom."""


@dataclass(frozen=True)
class Faults:
    """What may go wrong.

    kinds:   some of KINDS.
    seconds: virtual time until everything is healed.
    """

    kinds: tuple[str, ...] = KINDS
    seconds: int = 12


class Nemesis:
    """Injects one fault after the other, several at a time, each for a while."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self.is_over = False
        self.absent: frozenset[int] = frozenset()
        """Those that stay dead after everything else is healed, until `bring_back`."""
        rng = simulation.random
        self._mean_pause = rng.choice((150, 400, 1000)) * _MS
        # A seed has a few kinds of trouble, so that these meet more often than all kinds would.
        kinds = simulation.faults.kinds
        self._kinds = rng.sample(kinds, min(len(kinds), rng.randint(2, 10)))
        focus = rng.choice(FOCUSES)
        if rng.random() < 0.3 and set(focus) <= set(kinds):
            self._kinds = list(focus)
        self._injections: dict[str, Callable[[SimulatedNode], bool]] = {
            "loss": self._lose,
            "duplication": self._duplicate,
            "delay and reordering": self._delay,
            "partition": self._partition,
            "one-way cut": self._cut_one_way,
            "leader cut off": self._cut_off_leader,
            "leader unheard by one": self._cut_leader_from_one,
            "kill": self._kill,
            "power cut": self._cut_power,
            "power cut in a write": self._cut_power_in_a_write,
            "fsync error": lambda node: self._fail(node, "sync", errno.EIO, rng.choice(_SYNCED)),
            "write error": lambda node: self._fail(node, "write", errno.EIO),
            "full disk": self._fill_disk,
            "slow disk": self._slow_disk,
            "hung disk": self._hang_disk,
            "bit rot in the log": lambda node: self._rot(node, "wal"),
            "bit rot in the snapshot": lambda node: self._rot(node, "snap"),
            "log cut short": self._cut_log,
            "State damaged": self._damage_state,
            "pause": self._pause,
            "clock drift": self._drift,
            "clock jump": self._jump,
            "member added": self._add,
            "member removed": self._remove,
            "leadership transfer": self._hand_over,
        }

    def start(self) -> None:
        """Begin."""
        if self._kinds:
            self._wait()

    def _wait(self) -> None:
        self._simulation.at(int(self._simulation.random.expovariate(1 / self._mean_pause)), self._strike)

    def _strike(self) -> None:
        if self.is_over:
            return
        simulation = self._simulation
        rng = simulation.random
        kind = rng.choice(self._kinds)
        up = [node for _, node in sorted(simulation.nodes.items()) if node.is_up]
        if up:
            leader = simulation.leader()
            node = leader if leader is not None and rng.random() < 0.4 else rng.choice(up)
            if self._injections[kind](node):
                simulation.report.faults[kind] += 1
                node.note(f"FAULT {kind}")
        self._wait()

    def heal(self) -> None:
        """From now on nothing goes wrong, save that some may stay dead where the others are a majority."""
        self.is_over = True
        simulation = self._simulation
        network = simulation.network
        network.cut.clear()
        network.loss = network.duplication = 0.0
        network.delay = 300
        for node in simulation.nodes.values():
            node.disk.heal()
            node.is_hung = False
            node.write_delay = 400
            node.tick_rate = 1.0
            node.resume()
            self.restart_later(node)
        if simulation.random.random() < 0.5:
            self._leave_some_dead()

    def _leave_some_dead(self) -> None:
        """As few go on as are needed: those who were dead already, and others by chance, are missing."""
        simulation = self._simulation
        ids = sorted(i for i, node in simulation.nodes.items() if not node.is_gone)
        # Who is damaged goes on, and is not counted on: it may have to be replaced meanwhile.
        damaged = {i for i in ids if (node := simulation.nodes[i]).is_damaged or node.has_damaged_state}
        alive = {i for i in ids if (engine := simulation.nodes[i].engine) is not None and engine.err() is None}
        alive -= damaged
        for i in simulation.random.sample(ids, len(ids)):
            if simulation.is_live(alive - {i}):
                alive.discard(i)
        if not simulation.is_live(alive):
            return
        self.absent = frozenset(ids) - alive - damaged
        for i in self.absent:
            simulation.nodes[i].note("stays dead for now")
            simulation.nodes[i].kill()
            # Nothing comes from them any more, not even what they said before.
            simulation.network.cut |= {(i, j) for j in ids} | {(j, i) for j in ids}

    def bring_back(self) -> None:
        """Start those that were left dead."""
        absent, self.absent = self.absent, frozenset()
        self._simulation.network.cut.clear()
        for i in sorted(absent):
            self.restart_later(self._simulation.nodes[i])

    def restart_later(self, node: SimulatedNode) -> None:
        """Start the node's process some time after it ended."""
        delay = 100 if self.is_over else self._simulation.random.choice((50, 500, 3000))
        self._simulation.at(delay * _MS, lambda: None if node.node_id in self.absent else node.start())

    def _for_a_while(self, undo: Callable[[], None], longest: int = 3000) -> None:
        def end() -> None:
            if not self.is_over:
                undo()

        self._simulation.at(self._simulation.random.randrange(100, longest) * _MS, end)

    # -- the network

    def _lose(self, node: SimulatedNode) -> bool:
        network = self._simulation.network
        network.loss = self._simulation.random.choice((0.02, 0.1, 0.4))
        self._for_a_while(lambda: setattr(network, "loss", 0.0))
        return True

    def _duplicate(self, node: SimulatedNode) -> bool:
        network = self._simulation.network
        network.duplication = 0.3
        self._for_a_while(lambda: setattr(network, "duplication", 0.0))
        return True

    def _delay(self, node: SimulatedNode) -> bool:
        network = self._simulation.network
        network.delay = self._simulation.random.choice((5, 40, 300, 1000)) * _MS
        self._for_a_while(lambda: setattr(network, "delay", 300))
        return True

    def _cut(self, links: set[tuple[int, int]]) -> bool:
        network = self._simulation.network
        network.cut |= links
        self._for_a_while(lambda: network.cut.difference_update(links), longest=5000)
        return bool(links)

    def _partition(self, node: SimulatedNode) -> bool:
        rng = self._simulation.random
        side = {i for i in self._simulation.nodes if rng.random() < 0.5}
        others = set(self._simulation.nodes) - side
        return self._cut({(a, b) for a in side for b in others} | {(b, a) for a in side for b in others})

    def _cut_one_way(self, node: SimulatedNode) -> bool:
        rng = self._simulation.random
        others = [i for i in self._simulation.nodes if i != node.node_id]
        chosen = rng.sample(others, rng.randint(1, len(others))) if others else []
        if rng.random() < 0.5:
            return self._cut({(node.node_id, other) for other in chosen})
        return self._cut({(other, node.node_id) for other in chosen})

    def _cut_off_leader(self, node: SimulatedNode) -> bool:
        leader = self._simulation.leader()
        if leader is None:
            return False
        me = leader.node_id
        others = set(self._simulation.nodes) - {me}
        return self._cut({(me, other) for other in others} | {(other, me) for other in others})

    def _cut_leader_from_one(self, node: SimulatedNode) -> bool:
        leader = self._simulation.leader()
        others = [i for i in self._simulation.configuration().voters if leader is None or i != leader.node_id]
        if leader is None or not others:
            return False
        return self._cut({(leader.node_id, self._simulation.random.choice(sorted(others)))})

    # -- processes and machines

    def _kill(self, node: SimulatedNode) -> bool:
        node.kill()
        self.restart_later(node)
        return True

    def _cut_power(self, node: SimulatedNode) -> bool:
        node.cut_power()
        return True

    def _cut_power_in_a_write(self, node: SimulatedNode) -> bool:
        node.disk.crash_at = len(node.disk.operations) + 1 + self._simulation.random.randrange(12)
        return True

    def _pause(self, node: SimulatedNode) -> bool:
        if node.is_paused:
            return False
        node.pause()
        self._for_a_while(node.resume, longest=5000)
        return True

    # -- disks

    def _fail(self, node: SimulatedNode, operation: str, code: int, path_end: str = "") -> bool:
        node.disk.fail_next(operation, path_end, code)
        return True

    def _fill_disk(self, node: SimulatedNode) -> bool:
        node.disk.free_bytes = self._simulation.random.randrange(3000)
        self._for_a_while(lambda: setattr(node.disk, "free_bytes", None))
        return True

    def _slow_disk(self, node: SimulatedNode) -> bool:
        node.write_delay = self._simulation.random.choice((20, 200, 800)) * _MS
        self._for_a_while(lambda: setattr(node, "write_delay", 400))
        return True

    def _hang_disk(self, node: SimulatedNode) -> bool:
        node.is_hung = True
        self._for_a_while(lambda: setattr(node, "is_hung", False), longest=6000)
        return True

    def _may_damage(self) -> bool:
        """No more than one node loses its storage at a time, and the others are a majority."""
        simulation = self._simulation
        config = simulation.configuration()
        members = [simulation.nodes.get(i) for i in config.members]
        return (
            len(config.voters) >= 3
            and not simulation.operator.is_busy
            and all(m is not None and m.is_up and not (m.is_damaged or m.has_damaged_state) for m in members)
        )

    def _rot(self, node: SimulatedNode, what: str) -> bool:
        """Flip a bit in one node's storage."""
        rng = self._simulation.random
        paths = [path for path in node.disk.paths() if f"/{what}" in path and path.endswith((".wal", "/snap"))]
        if not self._may_damage() or not paths:
            return False
        path = rng.choice(paths)
        content = node.disk.content(path)
        # Mostly where something was written; the rest of a segment is zeros.
        end = len(content.rstrip(b"\x00")) if rng.random() < 0.9 else len(content)
        offset = rng.randrange(end)
        node.disk.rot(path, offset, rng.randrange(8))
        node.is_damaged = True
        node.note(f"bit rot at {offset} of {path}")
        if rng.random() < 0.7:
            self._kill(node)
        return True

    def _cut_log(self, node: SimulatedNode) -> bool:
        """Take the newest segment of one node's log away, or the end of one, while its process is down."""
        if not self._may_damage():
            return False
        rng = self._simulation.random
        self._kill(node)
        paths = [path for path in node.disk.paths() if path.endswith(".wal")]
        path = paths[-1] if rng.random() < 0.8 else rng.choice(paths)
        if path == paths[-1] and rng.random() < 0.5:
            node.disk.delete(path)
            node.note(f"{path} is lost")
        else:
            content = node.disk.content(path)
            size = rng.randrange(len(content.rstrip(b"\x00")) if rng.random() < 0.9 else len(content))
            node.disk.cut(path, size)
            node.note(f"{path} is cut at {size}")
        node.is_damaged = True
        return True

    # -- memory

    def _damage_state(self, node: SimulatedNode) -> bool:
        """Change something in one node's State; no more than one is damaged at a time, and enough others can tell."""
        simulation = self._simulation
        if node.node_id not in simulation.configuration().members or not self._may_damage():
            return False
        return node.damage_state(again=simulation.random.random() < 0.8)

    # -- clocks

    def _drift(self, node: SimulatedNode) -> bool:
        rates = (1.25, 2.0, 5.0) if self._simulation.options.lease_reads else (0.5, 0.8, 1.25, 2.0)
        node.tick_rate = self._simulation.random.choice(rates)
        self._for_a_while(lambda: setattr(node, "tick_rate", 1.0), longest=5000)
        return True

    def _jump(self, node: SimulatedNode) -> bool:
        """A jump counts as one tick, however far it goes; or ticks hardly come for a while."""
        if self._simulation.random.random() < 0.5 and not self._simulation.options.lease_reads:
            node.when_running(lambda: node.do(lambda engine: engine.tick()))
        else:
            node.tick_rate = 30.0
            self._for_a_while(lambda: setattr(node, "tick_rate", 1.0))
        return True

    # -- membership

    def _add(self, node: SimulatedNode) -> bool:
        simulation = self._simulation
        under_way = simulation.operator.task_count
        if len(simulation.configuration().members) + under_way >= 7 or under_way >= 3:
            return False
        simulation.operator.add()
        return True

    def _remove(self, node: SimulatedNode) -> bool:
        simulation = self._simulation
        config = simulation.configuration()
        damaged = any((n.is_damaged or n.has_damaged_state) and not n.is_gone for n in simulation.nodes.values())
        under_way = simulation.operator.task_count
        if len(config.voters) - under_way <= simulation.least_voters or under_way >= 3 or damaged:
            return False
        # `node` leads more often than others: one that removes itself is a case of its own (R10).
        leaves = node.node_id if node.node_id in config.members else simulation.random.choice(sorted(config.members))
        simulation.operator.remove(leaves)
        return True

    def _hand_over(self, node: SimulatedNode) -> bool:
        self._simulation.operator.hand_over()
        return True
