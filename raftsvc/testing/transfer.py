"""A stored snapshot on its way from one node to another, piece by piece, as a transfer thread sends it."""

from __future__ import annotations

from typing import Protocol

from raftsvc.core.messages import Message, decode_messages
from raftsvc.errors import StorageError
from raftsvc.member.engine import Engine
from raftsvc.storage import Store
from raftsvc.testing.computer import Computer
from raftsvc.testing.network import Network
from raftsvc.testing.schedule import MILLISECOND, Lifetime
from raftsvc.testing.world import World
from raftsvc.transport import SnapshotChunk

PIECE_BYTES = 200
TRIES = 4
TIMEOUT = 500 * MILLISECOND


class Sender(Protocol):
    """The process that sends a snapshot."""

    node_id: int
    life: Lifetime
    engine: Engine
    store: Store
    computer: Computer

    def note(self, what: str) -> None:
        """Write a line of the trace."""

    def end_transfer(self, peer_id: int, succeeded: bool, damage: Exception | None) -> None:
        """A transfer came to its end; `damage` is why the stored snapshot cannot be read, if so."""


class Transfer:
    """One attempt, which ends with the life of the process that makes it."""

    def __init__(self, world: World, network: Network, sender: Sender, message: Message) -> None:
        self._world = world
        self._network = network
        self._sender = sender
        self._message = message
        self._tries = 0
        self._request = 0
        self._is_refused = False

    def start(self) -> None:
        """Begin with the question where to go on."""
        self._sender.life.later(MILLISECOND, self._open)

    def _open(self) -> None:
        sender = self._sender
        try:
            self._snapshot = sender.store.open_snapshot()
        except (StorageError, OSError) as error:
            sender.note(f"the snapshot cannot be sent: {error}")
            self._end(False, error)
            return
        header = self._snapshot.header
        if header.index in sender.computer.spoilt_snapshots:
            # It would damage another State: more than one is too many for anybody to tell who is right.
            sender.note("the snapshot is of a damaged State, and lost on its way")
            self._world.report.counts["damaged snapshots lost"] += 1
            self._end(False)
            return
        m = self._message
        self._message = Message(
            m.kind, m.to_id, m.from_id, m.term, index=header.index, log_term=header.term, payload=header.config
        )
        self._send(0, 0)

    def _send(self, offset: int, size: int) -> None:
        network, life = self._network, self._sender.engine.lives.own
        data = self._snapshot.read(offset, size)
        message = self._message
        copy = decode_messages(message.encode())[0]
        chunk = SnapshotChunk(copy, self._snapshot.size_bytes, self._snapshot.crc, offset, data)
        self._request = request = self._request + 1
        patience = TIMEOUT + 3 * network.distance
        self._sender.life.later(patience, lambda: self._time_out(request, offset, size))
        port = network.ports.get(message.to_id)
        if port is not None and network.passes(self._sender.node_id, message.to_id):
            self._world.schedule.at(
                network.latency(),
                lambda: port.take(life, chunk, lambda wanted: self._replied(request, wanted)),
            )

    def _time_out(self, request: int, offset: int, size: int) -> None:
        if request == self._request:
            self._tries += 1
            if self._tries >= TRIES:
                self._end(False, self._look_for_damage() if self._is_refused else None)
            else:
                self._send(offset, size)

    def _replied(self, request: int, wanted: int | None) -> None:
        """An answer sets out."""
        life = self._sender.life
        if wanted is None:
            self._is_refused = True
        elif not life.is_over and self._network.passes(self._message.to_id, self._sender.node_id):
            life.later(self._network.latency(), lambda: self._answered(request, wanted))

    def _answered(self, request: int, wanted: int) -> None:
        if request != self._request:
            return
        if wanted >= self._snapshot.size_bytes:
            self._end(True)
        else:
            self._send(wanted, PIECE_BYTES)

    def _look_for_damage(self) -> Exception | None:
        try:
            self._snapshot.verify()
        except StorageError as error:
            return error
        return None

    def _end(self, succeeded: bool, damage: Exception | None = None) -> None:
        self._request = 0
        self._sender.note(f"the snapshot for n{self._message.to_id} {'arrived' if succeeded else 'did not arrive'}")
        self._sender.end_transfer(self._message.to_id, succeeded, damage)
