"""A snapshot on its way to a peer, piece by piece, each a POST that says which is wanted next."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from raftsvc.core.messages import MalformedError, Message
from raftsvc.errors import StorageError
from raftsvc.storage import StoredSnapshot
from raftsvc.transport.wire import SNAPSHOT_PIECE_BYTES, Problem, SnapshotChunk, UnreachableError, decode_chunk_reply

logger = logging.getLogger("raftsvc.transport")

_TRIES = 4
_UNREADABLE = frozenset((errno.ENOENT, errno.EIO))


class Line(Protocol):
    """The requests that reach the peer."""

    def post(self, path: str, body: bytes) -> bytes:
        """Raises Problem, UnreachableError."""

    def check(self, replies: Sequence[Message]) -> None:
        """Raise MalformedError if these are not replies of that peer."""


class Transfer:
    """Sends one snapshot, on a thread of its own, and tells of its end."""

    def __init__(
        self,
        peer_id: int,
        line: Line,
        message: Message,
        open_snapshot: Callable[[], StoredSnapshot],
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
            with self._open_snapshot() as snapshot:
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

    def _send(self, snapshot: StoredSnapshot) -> list[Message]:
        """Send piece after piece from where the peer says; its replies to the whole.

        Each is tried a few times, and as often in all the peer may want one again.
        """
        offset, size = 0, 0  # an empty piece asks where to go on
        tries, setbacks = 0, 0
        announced = self._announced(snapshot)
        while not self._stopping.is_set():
            data = snapshot.read(offset, size)
            chunk = SnapshotChunk(announced, snapshot.size_bytes, snapshot.crc, offset, data)
            try:
                wanted, replies = decode_chunk_reply(self._line.post("snapshot", chunk.encode()))
            except (Problem, UnreachableError) as error:
                tries += 1
                if tries >= _TRIES or (isinstance(error, Problem) and error.status < 500):
                    raise
                self._stopping.wait(0.1 * 2.0**tries)
                continue
            if wanted >= snapshot.size_bytes:
                return replies
            tries = 0
            setbacks += bool(size) and wanted <= offset
            if setbacks >= _TRIES:
                raise UnreachableError("the peer keeps asking for pieces that it was sent")
            offset, size = wanted, SNAPSHOT_PIECE_BYTES
        raise UnreachableError("this node is stopping")

    def _announced(self, snapshot: StoredSnapshot) -> Message:
        """The message for the snapshot that is stored by now, which may be newer."""
        header, message = snapshot.header, self._message
        return Message(
            message.kind,
            message.to_id,
            message.from_id,
            message.term,
            index=header.index,
            log_term=header.term,
            payload=header.config,
        )
