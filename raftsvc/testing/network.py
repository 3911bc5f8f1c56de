"""The network between the nodes.  It carries bytes and knows neither nodes nor what they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from raftsvc.core.messages import Life, Lineage
from raftsvc.testing.schedule import SECOND
from raftsvc.testing.world import World
from raftsvc.transport import SnapshotChunk

USUAL_DELAY = 300
"""Mean, microseconds."""
MOST_QUEUED = 20 * SECOND
"""What would wait longer for a slow link is lost."""


def member_at(port_id: int) -> int:
    """The node of a port: a copy of a node has one of its own, with a minus."""
    return abs(port_id)


def name_of(port_id: int) -> str:
    """For people."""
    return f"n{member_at(port_id)}" + ("'" if port_id < 0 else "")


class Acquaintance(Protocol):
    """A process that can be asked who it is."""

    @property
    def own_lineage(self) -> Lineage: ...
    @property
    def own_addr(self) -> str: ...
    def meet(self, other_id: int, lineage: Lineage, addr: str) -> None: ...


class Place:
    """Where the processes of a node listen, and what they are told; stays when they end.

    mistaken: what they say of that instead; empty: nothing else.
    hints:    where others are, as the operator says.
    ways:     of the process that runs.
    """

    def __init__(self, addr: str) -> None:
        self.addr = addr
        self.mistaken = ""
        self.hints: dict[int, str] = {}
        self.ways: Acquaintance | None = None

    @property
    def advertised(self) -> str:
        """What the next process says."""
        return self.mistaken or self.addr


class Port(Protocol):
    """Where a node can be reached, whether its process runs or not."""

    @property
    def place(self) -> Place: ...
    def hear(self, source_id: int, lineage: Lineage, addr: str, data: bytes) -> None:
        """Encoded messages of one life of a node, which says that it is reached at `addr`, arrive."""

    def speaks_as(self, life: Life) -> bool:
        """Whether that life of the node runs."""

    def refused(self, by_id: int, is_removed: bool) -> None:
        """Another node says that nothing which this one says counts: it was removed, or its directory lives twice."""

    def take(self, lineage: Lineage, chunk: SnapshotChunk, reply: Callable[[int | None], None]) -> None:
        """A piece of a snapshot arrives; `reply` is told the offset wanted next, or None if the piece is refused."""


class Network:
    """Links that delay, lose, duplicate and reorder, or pass nothing at all in one direction or both.

    They are between ports, of which each node has one, and a copy of its directory another.

    rate: bytes a second that each link carries in each direction; what is sent meanwhile waits.  0: any number.
    delay:    of chance, mean.
    distance: what every message takes beside that, about; it may last when all else is healed.
    is_paced: one batch at a time goes from one node to another, and the next leaves when the answer
              to that could have come back: as requests do, and streams do not.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.ports: dict[int, Port] = {}
        self.cut: set[tuple[int, int]] = set()
        self.loss = 0.0
        self.duplication = 0.0
        self.delay = USUAL_DELAY
        self.distance = 0
        self.is_paced = False
        self._behind: dict[tuple[int, Lineage, str, int], list[bytes]] = {}  # by link that is busy: what leaves next
        self.rate = 0
        self._busy_until: dict[tuple[int, int], int] = {}

    def transmission(self, source_id: int, target_id: int, size_bytes: int) -> int | None:
        """How long it is until so much has passed a link, behind what was sent before; None if it is lost."""
        if not self.rate:
            return 0
        now = self._world.schedule.now
        link = source_id, target_id
        queued = max(0, self._busy_until.get(link, 0) - now)
        if queued > MOST_QUEUED:
            return None
        # With the time that it takes anyway, lest what is behind it overtakes it: such a link is one connection.
        time = queued + size_bytes * SECOND // self.rate + 50
        self._busy_until[link] = now + time
        return time

    def latency(self) -> int:
        """How long one message takes, beside its transmission."""
        if self.rate and self.delay == USUAL_DELAY and not self.distance:
            return 0
        rng = self._world.random
        far = int(self.distance * rng.uniform(0.9, 1.1)) if self.distance else 0
        return 50 + far + int(rng.expovariate(1 / self.delay))

    def occupant(self, addr: str) -> int | None:
        """The port whose process listens at `addr`."""
        places = [(i, port.place) for i, port in self.ports.items()]
        return next((i for i, place in places if place.addr == addr and place.ways is not None), None)

    def introduce(self, source_id: int, target_id: int, astray: Callable[[], None]) -> None:
        """`source_id` asks where it expects another: each hears of the other, if request and answer pass.

        astray: called with the answer.
        """
        asking, asked = self.ports[source_id].place.ways, self.ports[target_id].place.ways
        assert asking is not None and asked is not None, "both run"

        def is_there(node_id: int, ways: Acquaintance) -> bool:
            port = self.ports.get(node_id)  # None: a copy, which is gone
            return port is not None and port.place.ways is ways

        def arrive() -> None:
            if is_there(target_id, asked):
                asked.meet(member_at(source_id), asking.own_lineage, asking.own_addr)
                if self.passes(target_id, source_id):
                    self._world.schedule.at(self.latency(), answer)

        def answer() -> None:
            if is_there(source_id, asking):
                asking.meet(member_at(target_id), asked.own_lineage, asked.own_addr)
                astray()

        if self.passes(source_id, target_id):
            self._world.schedule.at(self.latency(), arrive)

    def send(self, source_id: int, lineage: Lineage, addr: str, target_id: int, data: bytes) -> bool:
        """Carry `data`, perhaps twice; False if it is lost."""
        link = (source_id, lineage, addr, target_id)
        if self.is_paced:
            if link in self._behind:
                self._behind[link].append(data)
                return True
            self._behind[link] = []
            self._world.schedule.at(2 * self.distance, lambda: self._free(link))
        return self._carry(source_id, lineage, addr, target_id, data)

    def _free(self, link: tuple[int, Lineage, str, int]) -> None:
        behind = self._behind.pop(link)
        if behind:
            self.send(*link, b"".join(behind))

    def _carry(self, source_id: int, lineage: Lineage, addr: str, target_id: int, data: bytes) -> bool:
        rng = self._world.random
        copies = 1 + (rng.random() < self.duplication)
        time = self.transmission(source_id, target_id, len(data) * copies)
        if (source_id, target_id) in self.cut or rng.random() < self.loss or time is None:
            self._world.report.counts["batches lost"] += 1
            return False
        for _ in range(copies):

            def arrive() -> None:
                self._deliver(source_id, lineage, addr, target_id, data)

            self._world.schedule.at(time + self.latency(), arrive)
        return True

    def _deliver(self, source_id: int, lineage: Lineage, addr: str, target_id: int, data: bytes) -> None:
        port = self.ports.get(target_id)
        if port is not None and (source_id, target_id) not in self.cut:
            port.hear(member_at(source_id), lineage, addr, data)

    def port_of(self, node_id: int, life: Life) -> int:
        """From where that life of a node speaks."""
        copy = self.ports.get(-node_id)
        return -node_id if copy is not None and copy.speaks_as(life) else node_id

    def refuse(self, by_id: int, source_id: int, life: Life, told: Callable[[Port], None]) -> None:
        """Answer that what `life` said, from port `source_id`, is refused at `by_id`, if the answer passes.

        told: what the answer does there, if that life still runs.
        """

        def answer() -> None:
            port = self.ports.get(source_id)
            if port is not None and port.speaks_as(life):
                told(port)

        if self.passes(by_id, source_id):
            self._world.schedule.at(self.latency(), answer)

    def passes(self, source_id: int, target_id: int) -> bool:
        """Whether one request, or its answer, passes now."""
        return (source_id, target_id) not in self.cut and self._world.random.random() >= self.loss

    def shorten(self) -> None:
        """Messages are as fast as they usually are."""
        self.distance = 0
        self.is_paced = False

    def heal(self) -> None:
        """All links are as they should be, if long."""
        self.cut.clear()
        self.loss = self.duplication = 0.0
        self.delay = USUAL_DELAY
        self.set_rate(0)

    def set_rate(self, rate: int) -> None:
        """From now on each link carries so much."""
        self.rate = rate
        self._busy_until.clear()
