"""The connection of an attached process to its owner: what is sent by it, and what does not leave at once.

That is kept, in its order, until the owner reads again; whoever brings more looks first whether it does (`is_clogged`),
so that it is never much.  What has not begun to leave may be taken back, as long as it is only asked for.
"""

from __future__ import annotations

import select
import socket
import threading
from collections import deque
from collections.abc import Iterable
from contextlib import suppress

from raftsvc.process import close_in_children

_READ_BYTES = 256 * 1024
_CLOGGED_BYTES = 64 * 1024


class Pipe:
    """Read by one thread, written to by whoever has something to say.

    unsent_bytes: how much is kept.
    """

    def __init__(self) -> None:
        close_in_children(self)
        self.lock = threading.Lock()  # who sends; before the lock of the replica
        self._connection: socket.socket | None = None
        self._unsent: deque[tuple[memoryview, bool]] = deque()
        self._is_begun = False  # of the first of them some left
        self.unsent_bytes = 0

    def take_descriptors(self) -> Iterable[int]:
        """See `raftsvc.process.HoldsDescriptors`."""
        connection, self._connection = self._connection, None
        return [connection.detach()] if connection is not None else []

    def begin(self, connection: socket.socket) -> None:
        """It is there."""
        with self.lock:
            connection.setblocking(False)
            self._connection = connection
            self._clear()

    def _clear(self) -> None:
        self._unsent.clear()
        self._is_begun = False
        self.unsent_bytes = 0

    def is_clogged(self) -> bool:
        """Whether no more is to be said for now.  Callable without the lock."""
        return self.unsent_bytes > _CLOGGED_BYTES

    def send(self, data: bytes, is_asked: bool = False) -> bool:
        """Send, or keep what does not leave at once; under `lock`.  False if there is no connection.

        is_asked: it may be taken back.
        """
        if self._connection is None:
            return False
        self._unsent.append((memoryview(data), is_asked))
        self.unsent_bytes += len(data)
        self._push()
        return True

    def take_back(self) -> None:
        """Whatever was only asked for, and has not begun to leave, is not sent; under `lock`."""
        kept = [each for place, each in enumerate(self._unsent) if not each[1] or (self._is_begun and not place)]
        self._unsent = deque(kept)
        self.unsent_bytes = sum(len(data) for data, _ in kept)

    def _push(self) -> None:
        connection, unsent = self._connection, self._unsent
        while connection is not None and unsent:
            data, is_asked = unsent[0]
            try:
                sent = connection.send(data)
            except OSError:
                return  # it takes no more for now; or it is over, which who reads sees
            self.unsent_bytes -= sent
            self._is_begun = sent < len(data)
            if self._is_begun:
                unsent[0] = data[sent:], is_asked
            else:
                unsent.popleft()

    def receive(self, timeout: float) -> bytes | None:
        """The next bytes, none at the end; None after `timeout` seconds without any, or when what was left was sent."""
        connection = self._connection
        if connection is None:
            return b""
        poll = select.poll()
        poll.register(connection, select.POLLIN | (select.POLLOUT if self.unsent_bytes else 0))
        found = poll.poll(1e3 * timeout)
        if any(events & select.POLLOUT for _, events in found):
            with self.lock:
                self._push()
        if not any(events & ~select.POLLOUT for _, events in found):
            return None
        try:
            return connection.recv(_READ_BYTES)
        except BlockingIOError:
            return None

    def end(self) -> None:
        """Have who reads see the end."""
        connection = self._connection
        if connection is not None:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """It is over."""
        with self.lock:
            connection, self._connection = self._connection, None
            self._clear()
        if connection is not None:
            connection.close()
