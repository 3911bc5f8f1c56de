"""A stored snapshot on its way from one node to another, piece by piece, as threads send and receive it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from raftsvc.core.messages import Message, decode_messages
from raftsvc.errors import StorageError
from raftsvc.member.engine import Engine, would_install
from raftsvc.storage import Store
from raftsvc.testing.computer import Computer
from raftsvc.testing.network import Network
from raftsvc.testing.schedule import MILLISECOND, Lifetime
from raftsvc.testing.world import World
from raftsvc.transport import SnapshotChunk, Stride

TRIES = 4
TIMEOUT = 500 * MILLISECOND
SLOW = 100 * MILLISECOND


class Sender(Protocol):
    """The process that sends a snapshot."""

    port_id: int
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
        most = world.conditions.piece_bytes
        self._stride = Stride(max(60, most // 8), 60, most, SLOW)
        self._began = 0
        self._offset = -1
        self._setbacks = 0

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
            m.kind,
            m.to_id,
            m.from_id,
            m.term,
            index=header.index,
            log_term=header.term,
            hint=header.time_ms,
            payload=header.config,
        )
        self._send(0, 0)

    def _send(self, offset: int, size: int) -> None:
        network, lineage = self._network, self._sender.engine.lives.lineage
        data = self._snapshot.read(offset, size)
        message = self._message
        copy = decode_messages(message.encode())[0]
        chunk = SnapshotChunk(copy, self._snapshot.size_bytes, self._snapshot.crc, offset, data)
        self._request = request = self._request + 1
        self._offset = offset if size else -1
        self._began = self._world.schedule.now
        patience = TIMEOUT + 3 * network.distance
        self._sender.life.later(patience, lambda: self._time_out(request, offset, size))
        port = network.ports.get(message.to_id)
        time = network.transmission(self._sender.port_id, message.to_id, len(chunk.encode()))
        if port is not None and time is not None and network.passes(self._sender.port_id, message.to_id):
            self._world.schedule.at(
                time + network.latency(),
                lambda: port.take(lineage, chunk, lambda wanted: self._replied(request, wanted)),
            )

    def _time_out(self, request: int, offset: int, size: int) -> None:
        if request == self._request:
            self._tries += 1
            if self._tries >= TRIES:
                self._end(False)
            else:
                self._stride.shorten()
                self._send(offset, min(size, self._stride.size_bytes))

    def _replied(self, request: int, wanted: int | None) -> None:
        """An answer sets out; None: it is refused."""
        life = self._sender.life
        if not life.is_over and self._network.passes(self._message.to_id, self._sender.port_id):
            life.later(self._network.latency(), lambda: self._answered(request, wanted))

    def _answered(self, request: int, wanted: int | None) -> None:
        if request != self._request:
            return
        if wanted is None:  # it was whole, and not what it should be: is it here?
            self._end(False, self._look_for_damage())
        elif wanted >= self._snapshot.size_bytes:
            self._end(True)
        elif self._setbacks + (wanted <= self._offset) >= TRIES:
            self._end(False)  # it keeps asking for what it was sent
        else:
            self._stride.passed(self._world.schedule.now - self._began)
            self._tries = 0
            self._setbacks += wanted <= self._offset
            self._send(wanted, self._stride.size_bytes)

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


class Receiver(Protocol):
    """The process that receives snapshots."""

    life: Lifetime
    engine: Engine
    computer: Computer

    def note(self, what: str) -> None:
        """Write a line of the trace."""

    def do(self, step: Callable[[Engine], None]) -> None:
        """One step of the engine."""


class Reception:
    """What serves the pieces that arrive, as `member.peers` does: one at a time, the others wait for their turn.

    To ask whether a piece is wanted, to receive it and to step what it is for are events of
    their own: anything may come between them.
    """

    def __init__(self, world: World, receiver: Receiver) -> None:
        self._world = world
        self._receiver = receiver
        self._waiting: deque[tuple[SnapshotChunk, Callable[[int | None], None]]] = deque()
        self._is_busy = False

    def take(self, engine: Engine, chunk: SnapshotChunk, reply: Callable[[int | None], None]) -> None:
        """A piece arrives."""
        if not would_install(engine, chunk.message):
            if not self._is_busy:
                engine.snapshots.arrivals.drop()
            self._step(engine, chunk, reply)
        elif self._is_busy:
            self._waiting.append((chunk, reply))
        else:
            self._begin(chunk, reply)

    def _begin(self, chunk: SnapshotChunk, reply: Callable[[int | None], None]) -> None:
        self._is_busy = True
        self._later(lambda engine: self._receive(engine, chunk, reply))

    def _later(self, step: Callable[[Engine], None]) -> None:
        rng = self._world.random
        delay = int(rng.expovariate(1 / rng.choice((100, 100, 20 * MILLISECOND))))
        self._receiver.life.later(delay, lambda: self._receiver.do(step))

    def _receive(self, engine: Engine, chunk: SnapshotChunk, reply: Callable[[int | None], None]) -> None:
        receiver = self._receiver
        try:
            wanted = engine.snapshots.arrivals.receive_chunk(chunk, lambda: would_install(engine, chunk.message))
        except (ValueError, OSError, StorageError) as error:
            receiver.note(f"a piece of a snapshot is refused: {error}")
            self._end()
            reply(None)
            return
        if wanted is not None and wanted < chunk.size_bytes:
            self._end()
            reply(wanted)
            return
        if wanted is not None:
            receiver.computer.spoilt_snapshots.discard(chunk.message.index)

        def finish(engine: Engine) -> None:
            self._step(engine, chunk, reply)
            self._end_later()

        self._later(finish)

    def _step(self, engine: Engine, chunk: SnapshotChunk, reply: Callable[[int | None], None]) -> None:
        engine.step([chunk.message])
        reply(chunk.size_bytes)

    def _end_later(self) -> None:
        """Whoever received the last piece waits until it is durable, or for an election timeout."""
        rng = self._world.random
        self._receiver.life.later(int(rng.expovariate(1 / (20 * MILLISECOND))), lambda: self._end())

    def _end(self) -> None:
        self._is_busy = False
        if self._waiting:
            self._begin(*self._waiting.popleft())
