"""Each fault, one function: how it comes about, for how long, and what ends it.

They are gathered by what they strike.  Each is given a node that is up, leaders more often
than others, and says whether anything came of it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from raftsvc.core.versions import FIRST, Versions
from raftsvc.testing.cluster import Cluster
from raftsvc.testing.computer import USUAL_APPLY_DELAY, USUAL_WRITE_DELAY
from raftsvc.testing.network import USUAL_DELAY, Network
from raftsvc.testing.node import SimulatedNode
from raftsvc.testing.operator import Operator
from raftsvc.testing.schedule import MILLISECOND, SECOND
from raftsvc.testing.workload import VersionedWorkload
from raftsvc.testing.world import LEAST_ELECTION_TICKS, TICK, World, between, draw_options

HOUR = 3600
"""In seconds."""
Injection = Callable[[SimulatedNode], bool]
_SYNCED = (
    *[("sync", path_end) for path_end in ("", "", "", "/snap.part", "/snap.tmp")],
    *[("sync_dir", path_end) for path_end in ("", "/data", "/wal")],
)
"""Which fsync fails: the next one, or that of such a file, at work seldom and in pieces; or that of names."""
_CUT = (".wal", ".wal", ".wal", "/snap", "/snap.part", "/snap.new", "/snap.new", "/snap.tmp", "/next.tmp")
"""Near which write the power goes: the log's next, or one of a file at which work is seldom done."""
_REFUSED = (
    *[("create", "/next.tmp", code) for code in (errno.ENOSPC, errno.EMFILE, errno.ENOMEM)],
    *[("write", ".wal", code) for code in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)],
    *[("rename", end, errno.ENOSPC) for end in (".wal", "/snap", "/snap.new")],
    *[("sync_dir", "", code) for code in (errno.EMFILE, errno.ENFILE)],
    *[("create", end, errno.EMFILE) for end in ("/snap.tmp", "/snap.part")],
    *[("remove", end, errno.EIO) for end in (".wal", "/snap.tmp", "/snap.part")],
)
"""What may be refused for want of something, with nothing in doubt after it."""


def for_a_while(world: World, undo: Callable[[], None], longest: int = 3000) -> None:
    """Have `undo` called after up to `longest` milliseconds, unless everything is healed by then."""

    def end() -> None:
        if not world.is_healed:
            undo()

    world.schedule.at(world.random.randrange(100, longest) * MILLISECOND, end)


def kill(node: SimulatedNode) -> bool:
    """End its process, and have it started again."""
    node.kill()
    node.restart_later()
    return True


class NetworkFaults:
    """What may happen to links."""

    def __init__(self, world: World, network: Network, cluster: Cluster) -> None:
        self._world = world
        self._network = network
        self._cluster = cluster
        self.injections: dict[str, Injection] = {
            "loss": self._lose,
            "duplication": self._duplicate,
            "delay and reordering": self._delay,
            "slow links": self._slow_links,
            "narrow links": self._narrow,
            "partition": self._partition,
            "one-way cut": self._cut_one_way,
            "leader cut off": self._cut_off_leader,
            "leader unheard by one": self._cut_leader_from_one,
        }

    def _lose(self, node: SimulatedNode) -> bool:
        self._network.loss = self._world.random.choice((0.02, 0.1, 0.4))
        for_a_while(self._world, lambda: setattr(self._network, "loss", 0.0))
        return True

    def _duplicate(self, node: SimulatedNode) -> bool:
        self._network.duplication = 0.3
        for_a_while(self._world, lambda: setattr(self._network, "duplication", 0.0))
        return True

    def _delay(self, node: SimulatedNode) -> bool:
        self._network.delay = self._world.random.choice((5, 40, 300, 1000)) * MILLISECOND
        for_a_while(self._world, lambda: setattr(self._network, "delay", USUAL_DELAY))
        return True

    def _slow_links(self, node: SimulatedNode) -> bool:
        """A question and its answers take longer than it is until the question is asked again.

        Less than an election timeout, though: else nobody can lead.  Half of the time it stays so.
        """
        rng = self._world.random
        network = self._network
        network.is_paced = rng.random() < 0.5
        shares = (0.06, 0.09, 0.12) if network.is_paced else (0.12, 0.2, 0.3)
        network.distance = int(rng.choice(shares) * LEAST_ELECTION_TICKS * TICK)
        if rng.random() < 0.5:
            for_a_while(self._world, network.shorten, longest=5000)
        return True

    def _narrow(self, node: SimulatedNode) -> bool:
        self._network.set_rate(self._world.random.choice((3_000, 10_000, 40_000)))
        for_a_while(self._world, lambda: self._network.set_rate(0), longest=6000)
        return True

    def _cut(self, links: set[tuple[int, int]]) -> bool:
        cut = self._network.cut
        cut |= links
        for_a_while(self._world, lambda: cut.difference_update(links), longest=5000)
        return bool(links)

    def _partition(self, node: SimulatedNode) -> bool:
        rng = self._world.random
        side = {i for i in self._cluster.nodes if rng.random() < 0.5}
        others = set(self._cluster.nodes) - side
        return self._cut({(a, b) for a in side for b in others} | {(b, a) for a in side for b in others})

    def _cut_one_way(self, node: SimulatedNode) -> bool:
        rng = self._world.random
        others = [i for i in self._cluster.nodes if i != node.port_id]
        chosen = rng.sample(others, rng.randint(1, len(others))) if others else []
        if rng.random() < 0.5:
            return self._cut({(node.port_id, other) for other in chosen})
        return self._cut({(other, node.port_id) for other in chosen})

    def _cut_off_leader(self, node: SimulatedNode) -> bool:
        leader = self._cluster.leader()
        if leader is None:
            return False
        me = leader.port_id
        others = set(self._cluster.nodes) - {me}
        return self._cut({(me, other) for other in others} | {(other, me) for other in others})

    def _cut_leader_from_one(self, node: SimulatedNode) -> bool:
        leader = self._cluster.leader()
        others = [i for i in self._cluster.configuration().voters if leader is None or i != leader.node_id]
        if leader is None or not others:
            return False
        return self._cut({(leader.node_id, self._world.random.choice(sorted(others)))})


class NodeFaults:
    """What may happen to processes and computers, without anything being damaged."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.injections: dict[str, Injection] = {
            "kill": kill,
            "power cut": self._cut_power,
            "power cut in a write": self._cut_power_in_a_write,
            "options changed": self._change_options,
            "fsync error": lambda node: self._fail(node, *world.random.choice(_SYNCED), errno.EIO),
            "write error": lambda node: self._fail(node, "write", "", errno.EIO),
            "full disk": self._fill_disk,
            "nothing left": self._refuse,
            "slow disk": self._slow_disk,
            "hung disk": self._hang_disk,
            "slow State": self._slow_state,
            "hung State": self._hang_state,
            "pause": self._pause,
            "clock drift": self._drift,
            "clock jump": self._jump,
            "elapsed clock bent": self._bend,
            "machine frozen": self._freeze,
        }

    def _cut_power(self, node: SimulatedNode) -> bool:
        node.cut_power()
        return True

    def _cut_power_in_a_write(self, node: SimulatedNode) -> bool:
        disk = node.computer.disk
        rng = self._world.random
        disk.crash_near(rng.choice(_CUT), rng.randrange(6))
        return True

    def _change_options(self, node: SimulatedNode) -> bool:
        """One node is started again with other options than it had, and than the others have."""
        conditions = self._world.conditions
        node.options = draw_options(self._world.random, may_lease=conditions.options.lease_reads, is_changed=True)
        return kill(node)

    def _fail(self, node: SimulatedNode, operation: str, path_end: str, code: int) -> bool:
        node.computer.disk.fail_next(operation, path_end, code)
        return True

    def _fill_disk(self, node: SimulatedNode) -> bool:
        disk = node.computer.disk
        disk.free_bytes = self._world.random.randrange(3000)
        for_a_while(self._world, lambda: setattr(disk, "free_bytes", None))
        return True

    def _refuse(self, node: SimulatedNode) -> bool:
        """No descriptor, memory or quota is left for what comes next, once or several times."""
        rng = self._world.random
        operation, path_end, code = rng.choice(_REFUSED)
        for _ in range(rng.randint(1, 4)):
            node.computer.disk.fail_next(operation, path_end, code, skip=rng.randrange(2))
        return True

    def _slow_state(self, node: SimulatedNode) -> bool:
        computer = node.computer
        computer.apply_delay = self._world.random.choice((20, 200, 1500)) * MILLISECOND
        for_a_while(self._world, lambda: setattr(computer, "apply_delay", USUAL_APPLY_DELAY), longest=6000)
        return True

    def _hang_state(self, node: SimulatedNode) -> bool:
        computer = node.computer
        computer.is_state_hung = True
        for_a_while(self._world, lambda: setattr(computer, "is_state_hung", False), longest=8000)
        return True

    def _slow_disk(self, node: SimulatedNode) -> bool:
        computer = node.computer
        computer.write_delay = self._world.random.choice((20, 200, 800)) * MILLISECOND
        for_a_while(self._world, lambda: setattr(computer, "write_delay", USUAL_WRITE_DELAY))
        return True

    def _hang_disk(self, node: SimulatedNode) -> bool:
        computer = node.computer
        computer.is_hung = True
        for_a_while(self._world, lambda: setattr(computer, "is_hung", False), longest=6000)
        return True

    def _pause(self, node: SimulatedNode) -> bool:
        if not node.is_ready:
            return False
        node.pause()
        for_a_while(self._world, node.resume, longest=5000)
        return True

    def _drift(self, node: SimulatedNode) -> bool:
        computer = node.computer
        rates = (1.25, 2.0, 5.0) if self._world.conditions.options.lease_reads else (0.5, 0.8, 1.25, 2.0)
        computer.tick_rate = self._world.random.choice(rates)
        for_a_while(self._world, lambda: setattr(computer, "tick_rate", 1.0), longest=5000)
        return True

    def _jump(self, node: SimulatedNode) -> bool:
        """A jump counts as one tick, however far it goes; or ticks hardly come for a while."""
        computer = node.computer
        if self._world.random.random() < 0.5 and not self._world.conditions.options.lease_reads:
            node.do_when_running(lambda engine: engine.tick())
        else:
            computer.tick_rate = 30.0
            for_a_while(self._world, lambda: setattr(computer, "tick_rate", 1.0))
        return True

    def _bend(self, node: SimulatedNode) -> bool:
        """A clock that log time is measured by is wrong: the second in any way, the first only behind."""
        schedule, rng = self._world.schedule, self._world.random
        first, second = node.computer.elapsed
        clock = rng.choice((first, second))
        if rng.random() < 0.4:
            clock.jump(-rng.choice((0.01, 3, 4000)) if clock is first else rng.choice((-4000, 0.2, 3, 4000)))
            return True
        clock.bend(schedule.now, rng.choice((0.0, 0.3, -1.0) if clock is first else (0.0, 0.5, 1.3, 30.0)))
        for_a_while(self._world, lambda: clock.bend(schedule.now, None), longest=6000)
        return True

    def _freeze(self, node: SimulatedNode) -> bool:
        """It stands still for an hour, of which all its clocks know; the others saw no more than a pause."""
        if not node.is_ready:
            return False
        node.pause()

        def end() -> None:
            for clock in node.computer.elapsed:
                clock.jump(HOUR)
            self._world.watch.times.slept(HOUR * SECOND)
            node.resume()

        for_a_while(self._world, end, longest=5000)
        return True


class Damage:
    """What may happen to what is stored, and to the State in memory.

    No more than one node loses either at a time, and the others are a majority: more nobody promises to survive.
    """

    def __init__(self, world: World, cluster: Cluster, operator: Operator) -> None:
        self._world = world
        self._cluster = cluster
        self._operator = operator
        self.injections: dict[str, Injection] = {
            "bit rot in the log": lambda node: self._rot(node, "wal"),
            "bit rot in the snapshot": lambda node: self._rot(node, "snap"),
            "log cut short": self._cut_log,
            "State damaged": self._damage_state,
            "directory put back": self._put_back,
            "directory cloned": self._clone,
        }

    def _may_damage(self) -> bool:
        config = self._cluster.configuration()
        members = [self._cluster.nodes.get(i) for i in config.members]
        return (
            len(config.voters) >= 3
            and not self._operator.is_busy
            and all(m is not None and m.process is not None and not m.is_untrustworthy for m in members)
        )

    def _rot(self, node: SimulatedNode, what: str) -> bool:
        """Flip a bit in one node's storage."""
        rng = self._world.random
        disk = node.computer.disk
        paths = [path for path in disk.paths() if f"/{what}" in path and path.endswith((".wal", "/snap"))]
        if not self._may_damage() or not paths:
            return False
        path = rng.choice(paths)
        content = disk.content(path)
        # Mostly where something was written; the rest of a segment is zeros.
        end = len(content.rstrip(b"\x00")) if rng.random() < 0.9 else len(content)
        offset = rng.randrange(end)
        disk.rot(path, offset, rng.randrange(8))
        node.is_damaged = True
        node.note(f"bit rot at {offset} of {path}")
        if rng.random() < 0.7:
            kill(node)
        return True

    def _cut_log(self, node: SimulatedNode) -> bool:
        """Take the newest segment of one node's log away, or the end of one, while its process is down."""
        if not self._may_damage():
            return False
        rng = self._world.random
        disk = node.computer.disk
        kill(node)
        paths = [path for path in disk.paths() if path.endswith(".wal")]
        path = paths[-1] if rng.random() < 0.8 else rng.choice(paths)
        if path == paths[-1] and rng.random() < 0.5:
            disk.delete(path)
            node.note(f"{path} is lost")
        else:
            content = disk.content(path)
            size = rng.randrange(len(content.rstrip(b"\x00")) if rng.random() < 0.9 else len(content))
            disk.cut(path, size)
            node.note(f"{path} is cut at {size}")
        node.is_damaged = True
        return True

    def _put_back(self, node: SimulatedNode) -> bool:
        """Put one node's directory back to what it was before its last start."""

        def put_back() -> None:
            node.put_back()
            self._start_in_vain(node)
            node.restart_later()

        return self._use_copy(node, "put back to", put_back)

    def _clone(self, node: SimulatedNode) -> bool:
        """Start a process on what one node's directory was before its last start, beside that node."""

        def clone() -> None:
            copy = self._cluster.clone(node)
            self._start_in_vain(copy)
            copy.start()

        return self._use_copy(node, "cloned from", clone)

    def _start_in_vain(self, node: SimulatedNode) -> None:
        for _ in range(self._world.random.choice((0, 0, 1, 5))):
            node.start()  # as often as its supervisor tries, before it can say anything
            node.kill()

    def _use_copy(self, node: SimulatedNode, how: str, use: Callable[[], None]) -> bool:
        """Do something with a copy of a directory, of before its last start, if all others know of that start.

        What comes first is the copy, and a restart.
        """
        if node.node_id not in self._cluster.configuration().voters or not self._may_damage():
            return False
        assert node.engine is not None, "who may be damaged runs"
        if node.doubles.copy is None:
            node.doubles.copy = node.engine.lives.own, node.computer.disk.copy()
            return kill(node)
        life, own = node.doubles.copy[0], node.engine.lives.own
        others = [other.engine for i, other in self._cluster.nodes.items() if i != node.node_id and not other.is_gone]
        if life.counter >= own.counter or not all(
            engine is not None and engine.applying.machine.life_of(node.node_id) == own for engine in others
        ):
            return False
        node.note(f"its directory is {how} that of {life}, and now is of {own}")
        use()
        return True

    def _damage_state(self, node: SimulatedNode) -> bool:
        """Change something in the State of one member; enough others can tell."""
        if node.node_id not in self._cluster.configuration().members or not self._may_damage():
            return False
        return node.damage_state(again=self._world.random.random() < 0.8)


class Upgrades:
    """What people may do with the code that nodes run, which pretends to have versions."""

    def __init__(self, world: World, cluster: Cluster) -> None:
        self._world = world
        self._cluster = cluster
        self.injections: dict[str, Injection] = {
            "code upgraded": self._upgrade,
            "code rolled back": self._roll_back,
            "code too old": self._start_too_old,
        }

    def _restart(self, node: SimulatedNode, code: Versions) -> bool:
        node.note(f"runs {code} from here on, and ran {node.code}")
        node.code = code
        return kill(node)

    def _upgrade(self, node: SimulatedNode) -> bool:
        """Start a node with later code, of the library, the State or both; a later one comes out if all have it."""
        world = self._world
        rng = world.random
        if all(each.is_gone or each.code == world.latest_code for each in self._cluster.nodes.values()):
            ahead = rng.choice(((1, 0), (0, 1), (1, 1)))
            if not isinstance(world.workload, VersionedWorkload):
                ahead = (1, 0)  # its State is the same in all code
            latest = world.latest_code
            world.latest_code = Versions.of(latest.library + ahead[0], {"": latest.of_part() + ahead[1]})
        behind = [each for each in self._cluster.up() if each.code != world.latest_code]
        if not behind:
            return False
        if len(behind) == 1 and rng.random() < 0.4:
            self._fall_back([each for each in self._cluster.up() if each not in behind])
        node = rng.choice(behind)
        code = world.latest_code if rng.random() < 0.8 else between(rng, node.code, world.latest_code)
        return code != node.code and self._restart(node, code)

    def _fall_back(self, others: list[SimulatedNode]) -> None:
        """One that has reported ends just before the last does, and comes back with older code, maybe too late."""
        if others:
            self._roll_back(self._world.random.choice(others))

    def _roll_back(self, node: SimulatedNode) -> bool:
        """Start a node with older code, as is allowed until what it knew is effective."""
        effective = self._world.watch.versions.latest
        ahead = [each for each in self._cluster.up() if each.code != effective and each.code.covers(effective)]
        if not ahead:
            return False
        if node not in ahead:
            node = self._world.random.choice(ahead)
        code = between(self._world.random, effective, node.code)
        return code != node.code and self._restart(node, code)

    def _start_too_old(self, node: SimulatedNode) -> bool:
        """Start a node with code that does not know what is effective."""
        effective = self._world.watch.versions.latest
        code = between(self._world.random, FIRST, node.code)
        return not code.covers(effective) and self._restart(node, code)


class Changes:
    """What people may do to a cluster at any time."""

    def __init__(self, world: World, cluster: Cluster, operator: Operator) -> None:
        self._address_count = 0
        self._world = world
        self._cluster = cluster
        self._operator = operator
        self.injections: dict[str, Injection] = {
            "member added": self._add,
            "member removed": self._remove,
            "leadership transfer": self._hand_over,
            "cluster down for an hour": self._end_all,
            "addresses changed": self._change_addresses,
            "address mistaken": self._mistake_address,
        }

    def _add(self, node: SimulatedNode) -> bool:
        under_way = self._operator.task_count
        if len(self._cluster.configuration().members) + under_way >= 7 or under_way >= 3:
            return False
        self._operator.add()
        return True

    def _remove(self, node: SimulatedNode) -> bool:
        world = self._world
        config = self._cluster.configuration()
        damaged = any(n.is_untrustworthy and not n.is_gone for n in self._cluster.nodes.values())
        under_way = self._operator.task_count
        if len(config.voters) - under_way <= world.conditions.least_voters or under_way >= 3 or damaged:
            return False
        # `node` leads more often than others: one that removes itself is a case of its own (R10).
        leaves = node.node_id if node.node_id in config.members else world.random.choice(sorted(config.members))
        self._operator.remove(leaves)
        return True

    def _are_addresses_known(self) -> bool:
        """Whether every member runs and has, in force, the addresses that all are reached at."""
        nodes = self._cluster.nodes
        members = [nodes.get(i) for i in self._cluster.configuration().members]
        places = {node.node_id: node.place.addr for node in members if node is not None}
        return all(
            node is not None
            and node.engine is not None
            and {i: member.addr for i, member in node.engine.core.config.members.items()} == places
            for node in members
        )

    def _change_addresses(self, node: SimulatedNode) -> bool:
        """End some processes and start them at each other's addresses, or at new ones.

        Where nobody might be left at an address that everybody knows, the operator tells them.
        """
        rng = self._world.random
        nodes = [n for n in self._cluster.nodes.values() if not n.is_gone]
        chosen = rng.sample(nodes, rng.choice((len(nodes), rng.randint(1, len(nodes)))))
        known = {n.place.addr for n in nodes} if self._are_addresses_known() else set()
        for each in chosen:
            each.kill()
        places = [each.place.addr for each in chosen]
        turn = rng.randrange(len(places))
        places = places[turn:] + places[:turn]
        share = rng.choice((0.0, 0.0, 0.3, 1.0))
        any_new = False
        for each, place in zip(chosen, places, strict=True):
            self._address_count += 1
            is_new = rng.random() < share
            any_new = any_new or is_new
            each.place.addr = f"{each.name}.{self._address_count}" if is_new else place
            each.place.mistaken = ""
        # Whoever is left where everybody knows may be the next to die.
        needs_hints = any_new or not any(n.place.addr in known for n in nodes)
        for each in chosen:
            each.place.hints = {n.node_id: n.place.addr for n in nodes if not n.is_copy} if needs_hints else {}
            each.note(f"is at {each.place.addr} now" + (", and told where the others are" if needs_hints else ""))
            each.restart_later()
        return True

    def _mistake_address(self, node: SimulatedNode) -> bool:
        """Start a process that says it is reached where another is."""
        others = [n for n in self._cluster.nodes.values() if n is not node and not n.is_gone]
        if not others or node.node_id not in self._cluster.configuration().members or not self._are_addresses_known():
            return False
        node.place.mistaken = self._world.random.choice(others).place.addr
        for_a_while(self._world, lambda: setattr(node.place, "mistaken", ""))
        return kill(node)

    def _end_all(self, node: SimulatedNode) -> bool:
        """All processes end, and start again when it is an hour later by all clocks.  To log time that is no time."""
        for each in self._cluster.up():
            each.kill()
        for each in self._cluster.nodes.values():
            for clock in each.computer.elapsed:
                clock.jump(HOUR)
            each.restart_later()
        return True

    def _hand_over(self, node: SimulatedNode) -> bool:
        self._operator.hand_over()
        return True
