"""What waits to be said to one peer.

`put` never blocks and the box is bounded: Raft repeats what matters, so the
newest state wins and the oldest requests are dropped.  Replies have a lane of
their own, for they can ride in the response to a request of that very peer, and
then no request of ours is needed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from raftsvc.core.messages import Message, MessageKind

MAX_QUEUED_BYTES = 16 * 1024 * 1024
MAX_QUEUED_MESSAGES = 4096

_REPLIES = frozenset(kind for kind in MessageKind if kind.name.endswith("_REPLY"))


class Outbox:
    """Two bounded queues.  Thread-safe; its lock comes after the node's in the order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards all below
        self._filled = threading.Condition(self._lock)
        self._requests: deque[Message] = deque()
        self._replies: deque[Message] = deque()
        self._bytes = 0
        self._responders = 0
        self._closed = False

    def put(self, messages: Iterable[Message]) -> bool:
        """Queue `messages`; False if older requests had to be dropped for them."""
        dropped = False
        with self._lock:
            for message in messages:
                queue = self._replies if message.kind in _REPLIES else self._requests
                if queue and _supersedes(message, queue[-1]):
                    self._bytes -= queue.pop().size_bytes()
                queue.append(message)
                self._bytes += message.size_bytes()
            while len(self._replies) > MAX_QUEUED_MESSAGES:
                self._bytes -= self._replies.popleft().size_bytes()
            while self._requests and (self._bytes > MAX_QUEUED_BYTES or len(self._requests) > MAX_QUEUED_MESSAGES):
                self._bytes -= self._requests.popleft().size_bytes()
                dropped = True
            if self._requests or (self._replies and not self._responders):
                self._filled.notify()
        return not dropped

    def take(self, max_bytes: int, timeout: float) -> list[Message]:
        """Wait up to `timeout` seconds for something to send, and take it, replies first.

        At least one message if there is any, else up to `max_bytes`.
        """
        with self._lock:
            if not self._has_work():
                self._filled.wait_for(self._has_work, timeout)
            taken: list[Message] = []
            if not self._responders:
                max_bytes = self._take_from(self._replies, max_bytes, taken)
            self._take_from(self._requests, max_bytes, taken)
            return taken

    def take_replies(self, max_bytes: int) -> list[Message]:
        """Take what may ride in a response; does not wait."""
        with self._lock:
            taken: list[Message] = []
            self._take_from(self._replies, max_bytes, taken)
            return taken

    @contextmanager
    def responding(self) -> Iterator[None]:
        """While a request of the peer is served its replies wait for `take_replies`."""
        with self._lock:
            self._responders += 1
        try:
            yield
        finally:
            with self._lock:
                self._responders -= 1
                if self._replies and not self._responders:
                    self._filled.notify()

    @property
    def is_responding(self) -> bool:
        return self._responders > 0

    @property
    def size_bytes(self) -> int:
        """Bytes of messages queued."""
        return self._bytes

    def close(self) -> None:
        """Wake whoever waits in `take`."""
        with self._lock:
            self._closed = True
            self._filled.notify_all()

    def _has_work(self) -> bool:
        return bool(self._requests or (self._replies and not self._responders) or self._closed)

    def _take_from(self, queue: deque[Message], max_bytes: int, taken: list[Message]) -> int:
        while queue:
            size = queue[0].size_bytes()
            if size > max_bytes and taken:
                return 0
            taken.append(queue.popleft())
            self._bytes -= size
            max_bytes -= size
        return max_bytes


def _supersedes(new: Message, old: Message) -> bool:
    """Whether `old`, not sent yet, says nothing that `new` does not say better.

    A later heartbeat carries the later commit and read round; a request for votes
    of a later term makes that of an earlier one void.
    """
    if new.kind is not old.kind or new.term < old.term:
        return False
    if new.kind is MessageKind.APPEND:
        return not new.entries and not old.entries
    if new.kind is MessageKind.APPEND_REPLY:
        return (
            not new.reject
            and not old.reject
            and new.term == old.term
            and new.index >= old.index
            and new.context >= old.context
        )
    return new.kind in (MessageKind.PRE_VOTE, MessageKind.VOTE) or (new.kind is MessageKind.DIGEST and not old.reject)
