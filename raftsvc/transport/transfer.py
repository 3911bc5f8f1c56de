"""A snapshot on its way to a peer, piece by piece, each a POST that says which is wanted next."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Final, Protocol

from raftsvc.core.messages import MalformedError, Message
from raftsvc.errors import StorageError
from raftsvc.storage import SnapshotHeader
from raftsvc.transport.wire import (
    SNAPSHOT_PIECE_BYTES,
    Problem,
    SnapshotChunk,
    TooLargeError,
    UnreachableError,
    decode_chunk_reply,
)

logger = logging.getLogger("raftsvc.transport")

_TRIES: Final = 4
_FIRST_PIECE_BYTES: Final = 32 * 1024
_LEAST_PIECE_BYTES: Final = 2 * 1024
_SLOW_SHARE: Final = 8
_UNREADABLE: Final = frozenset((errno.ENOENT, errno.EIO))


class Stride:
    """How large the next piece is: as large as passes quickly, for heartbeats may have to wait behind it.

    first, least, most: bytes.
    """

    __slots__ = ("_least", "_most", "_slow", "size_bytes")

    def __init__(self, first: int, least: int, most: int, slow: float) -> None:
        """slow: how long a piece takes that is too large; half of that is not quick enough for a larger one."""
        self.size_bytes = first
        self._least = least
        self._most = most
        self._slow = slow

    def passed(self, elapsed: float) -> None:
        """A piece took that long, its answer included."""
        if elapsed > self._slow:
            self.shorten()
        elif 2 * elapsed < self._slow:
            self.size_bytes = min(self._most, 2 * self.size_bytes)

    def shorten(self) -> bool:
        """It was too large; whether it can be smaller."""
        before, self.size_bytes = self.size_bytes, max(self._least, self.size_bytes // 2)
        return self.size_bytes < before

    def refused(self) -> bool:
        """Something on the way refuses pieces of this size, today and tomorrow; whether it can be smaller."""
        self._most = max(self._least, self.size_bytes // 2)
        return self.shorten()


class Line(Protocol):
    """The requests that reach the peer."""

    @property
    def silence_seconds(self) -> float:
        """How long the peer may say nothing."""

    def post(self, path: str, body: bytes) -> bytes:
        """Raises Problem, TooLargeError, UnreachableError."""

    def check(self, replies: Sequence[Message]) -> None:
        """Raise MalformedError if these are not replies of that peer."""


class Sendable(Protocol):
    """A snapshot that is stored here, open for reading."""

    @property
    def header(self) -> SnapshotHeader:
        """What it says of itself."""

    @property
    def size_bytes(self) -> int:
        """Of the whole file."""

    @property
    def crc(self) -> int:
        """Tells it from another of the same size."""

    def read(self, offset: int, size: int) -> bytes:
        """Raw bytes of the file."""

    def verify(self) -> None:
        """Raises DamagedStorageError unless it is whole."""

    def close(self) -> None: ...


class Transfer:
    """Sends one snapshot, on a thread of its own, and tells of its end."""

    def __init__(
        self,
        peer_id: int,
        line: Line,
        message: Message,
        open_snapshot: Callable[[], Sendable],
        report: Callable[[bool, Sequence[Message], Exception | None], None],
        stopping: threading.Event,
    ) -> None:
        """Begins at once.  Raises RuntimeError if no thread can be started.

        message: announces the snapshot.
        report:  told whether it arrived, the peer's replies, and why what is stored cannot be read, if so.
        """
        self._peer_id = peer_id
        self._line = line
        self._message = message
        self._open_snapshot = open_snapshot
        self._report = report
        self._stopping = stopping
        self._sender = threading.Thread(target=self._run, name=f"raftsvc-transfer-{peer_id}", daemon=True)
        self._sender.start()

    @property
    def is_under_way(self) -> bool:
        return self._sender.is_alive()

    def join(self, timeout: float) -> None:
        if self._sender is not threading.current_thread():
            self._sender.join(timeout)

    def _run(self) -> None:
        replies: Sequence[Message] = ()
        succeeded = False
        damage: Exception | None = None
        try:
            with closing(self._open_snapshot()) as snapshot:
                try:
                    replies = self._send(snapshot)
                except Problem as problem:
                    if problem.status == 400:
                        snapshot.verify()  # it was whole, and not what it should be: is it here?
                    raise
            self._line.check(replies)
            succeeded = True
        except (Problem, UnreachableError, MalformedError, StorageError, OSError) as error:
            logger.warning("the snapshot for node %d did not arrive: %s", self._peer_id, error)
            if isinstance(error, StorageError) or getattr(error, "errno", None) in _UNREADABLE:
                damage = error
        except Exception:
            logger.exception("the transfer of a snapshot to node %d failed", self._peer_id)
        self._report(succeeded, replies if succeeded else (), damage)

    def _send(self, snapshot: Sendable) -> list[Message]:
        """Send piece after piece from where the peer says; its replies to the whole.

        Each is tried a few times, and as often in all the peer may want one again.
        """
        offset, size = 0, 0  # an empty piece asks where to go on
        tries, setbacks = 0, 0
        stride = Stride(
            _FIRST_PIECE_BYTES, _LEAST_PIECE_BYTES, SNAPSHOT_PIECE_BYTES, self._line.silence_seconds / _SLOW_SHARE
        )
        announced = self._announced(snapshot)
        while not self._stopping.is_set():
            data = snapshot.read(offset, size)
            chunk = SnapshotChunk(announced, snapshot.size_bytes, snapshot.crc, offset, data)
            began = time.monotonic()
            try:
                wanted, replies = decode_chunk_reply(self._line.post("snapshot", chunk.encode()))
            except TooLargeError as refusal:
                if not stride.refused():
                    raise
                logger.warning("node %d: %s; smaller pieces of the snapshot follow", self._peer_id, refusal)
                size = min(size, stride.size_bytes)
                continue
            except (Problem, UnreachableError) as error:
                tries += 1
                if tries >= _TRIES or (isinstance(error, Problem) and error.status < 500):
                    raise
                stride.shorten()
                size = min(size, stride.size_bytes)
                self._stopping.wait(0.1 * 2.0**tries)
                continue
            if size:
                stride.passed(time.monotonic() - began)
            if wanted >= snapshot.size_bytes:
                return replies
            tries = 0
            setbacks += bool(size) and wanted <= offset
            if setbacks >= _TRIES:
                raise UnreachableError("the peer keeps asking for pieces that it was sent")
            offset, size = wanted, stride.size_bytes
        raise UnreachableError("this node is stopping")

    def _announced(self, snapshot: Sendable) -> Message:
        """The message for the snapshot that is stored by now, which may be newer."""
        header, message = snapshot.header, self._message
        return Message(
            message.kind,
            message.to_id,
            message.from_id,
            message.term,
            index=header.index,
            log_term=header.term,
            hint=header.time_ms,
            payload=header.config,
        )
