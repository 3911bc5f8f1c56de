"""What waits to be said to one peer.

`put` never blocks and the box is bounded: Raft repeats what matters, so the
newest state wins and the oldest requests are dropped.  Replies have a lane of
their own, for they can ride in the response to a request of that very peer, and
then no request of ours is needed.

One drain at a time empties the box: the sender thread, which is always there, or
a stream while one is attached.  A stream that is attached waits until the sender
is done with what it took, so that nothing is overtaken.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from raftsvc.core.messages import Message, MessageKind
from raftsvc.transport.wire import MAX_BODY_BYTES

MAX_QUEUED_BYTES: Final = 16 * 1024 * 1024
MAX_QUEUED_MESSAGES: Final = 4096

_REPLIES: Final = frozenset(kind for kind in MessageKind if kind.name.endswith("_REPLY"))


class Drain:
    """A stream as its outbox sees it: waiting, then attached, then over."""

    def __init__(self, outbox: Outbox, push: Callable[[Sequence[Message]], bool] | None = None) -> None:
        """push: sends messages at once, from any thread, without waiting.

        False if it could not send all: then the stream's own thread, woken, has to go on.
        """
        self._outbox = outbox
        self._wake = threading.Condition(outbox._lock)
        self._is_over = False
        self._busy_since = 0.0  # when it last left `take_streamed`; 0: it is in there
        self._push = push
        self._is_pushing = False  # some thread is in `push`
        self._has_rest = False  # what `push` could not send is to be sent before anything else

    @property
    def is_attached(self) -> bool:
        return self._outbox._drain is self

    def note_progress(self) -> None:
        """Some of what it took has left: the peer reads, however slowly."""
        self._busy_since = time.monotonic()

    @property
    def is_busy(self) -> bool:
        """Whether it is at work with what it took."""
        return self._busy_since > 0.0


class Outbox:
    """Two bounded queues.  Thread-safe; its lock comes after the node's in the order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards all below, and every Drain of this box
        self._filled = threading.Condition(self._lock)  # the sender waits for it
        self._drain: Drain | None = None  # None: the sender
        self._is_posting = False  # whether the sender has something that it took
        self._has_lost = False
        self._requests: deque[Message] = deque()
        self._replies: deque[Message] = deque()
        self._bytes = 0
        self._responders = 0
        self._closed = False

    def put(self, messages: Iterable[Message], wake: bool = True) -> bool:
        """Queue `messages`; False if older requests had to be dropped for them.

        wake: have them sent; else `flush` has to follow.
        """
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
            if wake:
                self._wake()
        return not dropped

    def _wake(self) -> None:
        if self._drain is not None:
            self._drain._wake.notify()
        elif self._requests or (self._replies and not self._responders):
            self._filled.notify()

    def flush(self) -> None:
        """Have what was put leave: through the stream by this very thread, if that needs no waiting.

        A thread that is woken to do so costs more than the sending (README of benchmarks:
        one caller, half of the time of a write).
        """
        with self._lock:
            drain = self._drain
            if (
                drain is None
                or drain._push is None
                or drain._busy_since
                or drain._is_pushing
                or drain._has_rest
                or not self._may_stream(drain)
            ):
                self._wake()
                return
            taken = self._take_all(MAX_BODY_BYTES)
            drain._is_pushing = True
        is_sent = False
        try:
            is_sent = drain._push(taken)
        except BaseException:
            self.break_off(drain)  # of what it had to say, nobody knows what was said
            raise
        finally:
            with self._lock:
                drain._is_pushing = False
                drain._has_rest = not is_sent
                if drain._has_rest or drain._is_over or self._requests or self._replies:
                    drain._wake.notify_all()

    def take(self, max_bytes: int, timeout: float) -> list[Message]:
        """For the sender: wait up to `timeout` seconds for something to send, and take it, replies first.

        At least one message if there is any, else up to `max_bytes`.  Nothing while
        a stream is attached; returns early if one was lost.  `posted` has to follow.
        """
        with self._lock:
            if not self._has_work():
                self._filled.wait_for(self._has_work, timeout)
            taken: list[Message] = []
            if self._drain is None:
                if not self._responders:
                    max_bytes = self._take_from(self._replies, max_bytes, taken)
                self._take_from(self._requests, max_bytes, taken)
                self._is_posting = bool(taken)
            return taken

    def posted(self) -> None:
        """The sender is done with what it took."""
        with self._lock:
            self._is_posting = False
            if self._drain is not None:
                self._drain._wake.notify()

    def take_streamed(self, drain: Drain, max_bytes: int, timeout: float) -> list[Message] | None:
        """For a stream: as `take`, but empty until it is attached, and None once it is over."""
        with self._lock:
            drain._busy_since = 0.0
            if not self._may_stream(drain) and not drain._is_over:
                drain._wake.wait(timeout)
            while drain._is_pushing:  # not for long
                drain._wake.wait(timeout)
            if drain._is_over:
                return None
            taken: list[Message] = []
            if self._may_stream(drain) and not drain._has_rest:
                taken = self._take_all(max_bytes)
            drain._has_rest = False  # the caller sends it before what it took
            drain._busy_since = time.monotonic()
            return taken

    def _may_stream(self, drain: Drain) -> bool:
        return (
            self._drain is drain and not self._is_posting and bool(self._requests or self._replies or drain._has_rest)
        )

    def _take_all(self, max_bytes: int) -> list[Message]:
        taken: list[Message] = []
        max_bytes = self._take_from(self._replies, max_bytes, taken)
        self._take_from(self._requests, max_bytes, taken)
        return taken

    def attach(self, drain: Drain) -> bool:
        """Let a stream empty the box from now on, instead of the sender or an earlier one; False if it is over."""
        with self._lock:
            if drain._is_over or self._closed:
                return False
            if self._drain not in (None, drain):
                self._end(self._drain)
            self._drain = drain
            drain._wake.notify()
            return True

    def detach(self, drain: Drain) -> bool:
        """The stream is over, and what it had is lost; whether it was not before."""
        with self._lock:
            is_news = not drain._is_over
            if is_news:
                self._end(drain)
            while drain._is_pushing:  # from now on nobody touches the connection
                drain._wake.wait(1.0)
            return is_news

    def break_off(self, drain: Drain) -> None:
        """As `detach`, by whoever is in `push`."""
        with self._lock:
            if not drain._is_over:
                self._end(drain)

    def _end(self, drain: Drain | None) -> None:
        assert drain is not None
        drain._is_over = True
        drain._wake.notify_all()
        if self._drain is drain:
            self._drain = None
            self._has_lost = True
            self._filled.notify()

    def stuck_drain(self, seconds: float) -> Drain | None:
        """The attached stream, if it has not come back for that long."""
        drain = self._drain
        since = drain._busy_since if drain is not None else 0.0
        return drain if since and time.monotonic() - since > seconds else None

    def take_loss(self) -> bool:
        """Whether, since the last call, a stream ended from which messages may have been lost."""
        with self._lock:
            has_lost, self._has_lost = self._has_lost, False
            return has_lost

    @property
    def is_streaming(self) -> bool:
        """Whether a stream is attached."""
        return self._drain is not None

    def take_replies(self, max_bytes: int) -> list[Message]:
        """Take what may ride in a response, nothing while a stream is attached; does not wait."""
        with self._lock:
            taken: list[Message] = []
            if self._drain is None:
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
                if self._replies and not self._responders and self._drain is None:
                    self._filled.notify()

    @property
    def is_responding(self) -> bool:
        return self._responders > 0

    @property
    def size_bytes(self) -> int:
        """Bytes of messages queued."""
        return self._bytes

    def close(self) -> None:
        """Wake whoever waits in `take`, and end the stream that is attached."""
        with self._lock:
            self._closed = True
            if self._drain is not None:
                self._end(self._drain)
            self._filled.notify_all()

    def _has_work(self) -> bool:
        if self._closed or self._has_lost:
            return True
        return self._drain is None and bool(self._requests or (self._replies and not self._responders))

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
