"""Where a process listens, and how what it says finds the way: to whoever is at an address, be it another.

A message goes to the address at which `member.addresses` has its addressee, as in a real node.  Whoever is
there in the place of that one says who it is.  What answers something needs no address: it rides in
the response.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from raftsvc.core.messages import NO_NODE, Lineage, Message
from raftsvc.member.addresses import Addresses
from raftsvc.member.engine import Engine
from raftsvc.member.lives import Speaker
from raftsvc.testing.network import Network, Place, member_at
from raftsvc.testing.schedule import Lifetime
from raftsvc.testing.world import World


class Process(Protocol):
    """Whose ways they are."""

    port_id: int
    life: Lifetime
    engine: Engine

    @property
    def node_id(self) -> int: ...
    def do(self, step: Callable[[Engine], None]) -> None: ...


class Ways:
    """What one process knows of where others are, and how it sends."""

    def __init__(self, world: World, network: Network, process: Process, place: Place) -> None:
        self._world = world
        self._network = network
        self._process = process
        self.transferring: set[int] = set()
        """To whom a snapshot is on its way."""
        self._last: dict[int, str] = {}
        self.addresses = Addresses(process.node_id, place.advertised, place.hints)

    @property
    def own_lineage(self) -> Lineage:
        """As which life it speaks, and what that goes on from."""
        return self._process.engine.lives.lineage

    @property
    def own_addr(self) -> str:
        """Where it says that it is."""
        return self.addresses.own_addr

    def _way_to(self, peer_id: int) -> str:
        """Where to send; who leaves is told so where it was last."""
        addr = self.addresses.wanted(self._process.engine.core.config).get(peer_id)
        if addr is not None:
            self._last[peer_id] = addr
        return self._last.get(peer_id, "")

    def leads_to(self, peer_id: int) -> bool:
        """Whether what is sent to that node would reach it, if it passes."""
        there = self._network.occupant(self._way_to(peer_id))
        return there is not None and member_at(there) == peer_id

    def hear(self, source_id: int, addr: str) -> None:
        """A member, in its current life, says where it is."""
        self.addresses.hear(source_id, addr, self._process.engine.core.config)

    def meet(self, other_id: int, lineage: Lineage, addr: str) -> None:
        """A node that looked for another one, or was found in the place of one, says who and where it is."""
        process = self._process

        def met() -> None:
            if process.life.is_over:
                return
            known = process.engine.lives.highest(other_id).counter
            if process.engine.lives.judge(other_id, lineage.claim(known)) is Speaker.CURRENT:
                self.hear(other_id, addr)

        process.life.when_running(met)

    def tick(self) -> None:
        """Now and then have recorded where others were found, and look for those who were not."""
        engine = self._process.engine
        if engine.ticks % engine.options.election_ticks == 0:
            config = engine.core.config
            for change in self.addresses.corrections(config):
                engine.changes.suggest(change)
            core = engine.core
            for peer_id in self.addresses.to_address(config, core.leader is not None or core.election.hears_leader):
                self.send(peer_id, ())

    def send(self, peer_id: int, messages: Sequence[Message]) -> None:
        """Send to where the peer may be; no messages: only to see whether it is there."""
        network, process = self._network, self._process
        addr = self._way_to(peer_id)
        port_id = network.occupant(addr)
        there = None if port_id is None else member_at(port_id)

        def missed(engine: Engine) -> None:
            self.addresses.contradicted(peer_id, addr, there or NO_NODE)
            self.addresses.failed(peer_id, addr, engine.core.config)
            engine.core.report_unreachable(peer_id)

        is_lost = False
        if there != peer_id:
            answers = [m for m in messages if m.kind.name.endswith("_REPLY")]
            has_requests = len(answers) < len(messages) or not messages
            is_lost = has_requests and there is None
            if has_requests and port_id is not None:
                network.introduce(process.port_id, port_id, lambda: process.do(missed))
            messages = answers
        if messages or there == peer_id:
            data = b"".join([message.encode() for message in messages])
            own_addr = self.addresses.own_addr
            target_id = port_id if port_id is not None and there == peer_id else peer_id
            is_lost |= not network.send(process.port_id, self.own_lineage, own_addr, target_id, data)
        # A connection that breaks is noticed, a request on its way may not be.
        if is_lost and self._world.random.random() < 0.5:
            process.life.later(network.latency(), lambda: process.do(missed))

        def answered() -> None:
            if network.occupant(addr) == port_id:
                self.addresses.reached(peer_id, addr)

        is_news = there == peer_id and not is_lost and self.addresses.answered.get(peer_id) != addr
        if is_news and network.passes(port_id or peer_id, process.port_id):
            process.life.later(2 * network.latency(), answered)
