"""Streams: a long-lived response of each node to each other, through which its outbox leaves at once.

A node asks `GET stream` of a peer and holds it open; the peer answers with
frames, chunk by chunk, for as long as both live.  `ServedStream` is the body of
that answer, `StreamHolder` the thread that reads it.

Servers and proxies that keep responses back cannot be told from others by
asking.  So the first frame is a probe: until the holder has confirmed, by a
request of its own, that just this frame reached it, messages go by POST, as
they do again the moment the stream ends.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from typing import Any, Final, Protocol

import requests

from raftsvc.core.messages import MalformedError, Message, decode_messages
from raftsvc.transport.chunks import RawChunk
from raftsvc.transport.frames import FRAME_BYTES, ChunkDecoder, FrameReader, FrameWriter, Seal
from raftsvc.transport.outbox import Drain, Outbox
from raftsvc.transport.session import Incoming
from raftsvc.transport.wire import MAX_BODY_BYTES, Problem, UnreachableError

logger = logging.getLogger("raftsvc.transport")

_RECEIVE_BYTES: Final = 64 * 1024
"""As much as malloc still takes from its heap: 1.5 µs a read, where twice as much costs 15 (timeit)."""
_MAX_BACKOFF_SECONDS = 2.0
NOT_OFFERED_SECONDS = 30.0
"""How long a peer is left alone that does not offer streams."""
_NOT_OFFERED_STATUSES: Final = frozenset({404, 405, 409, 501})


class NotOfferedError(Exception):
    """The peer, or what stands before it, has no streams to offer."""


class NoAnswerError(UnreachableError):
    """The peer took the request and said nothing, as does a server that keeps back, or one that is suspended."""


class ServedStream:
    """The body of an answer to `GET stream`; an iterator for a WSGI server."""

    def __init__(
        self,
        outbox: Outbox,
        nonce: bytes,
        seal: Seal,
        confirm_seconds: float,
        keep_alive_seconds: float,
        connection: Any,
        can_push: bool,
        on_end: Callable[[], None],
        secret: bytes = b"",
    ) -> None:
        """connection: the server's socket, if it shows it.

        can_push: any thread may write to it, chunk by chunk, while none of `__next__` is being
                sent: it is a plain socket with a timeout, and the server sends RawChunk as it is.
        on_end: called once, when the server's thread is free again.
        secret: by which the seal vouches; empty: by none.
        """
        self.nonce = nonce
        self.secret = secret
        self._outbox = outbox
        self.drain = Drain(outbox, self._push if can_push else None)
        self._rest = b""
        self._writer = FrameWriter(seal)
        self._frames = deque(self._writer.encode(nonce))
        self._confirm_seconds = confirm_seconds
        self._keep_alive_seconds = keep_alive_seconds
        self._connection = connection
        self._on_end: Callable[[], None] | None = on_end

    def __iter__(self) -> ServedStream:
        return self

    def __next__(self) -> bytes:
        if self._frames:  # the hello, or the rest of a long body
            self.drain.note_progress()
            return self._frames.popleft()
        drain = self.drain
        is_attached = drain.is_attached
        batch = self._outbox.take_streamed(
            drain, MAX_BODY_BYTES, self._keep_alive_seconds if is_attached else self._confirm_seconds
        )
        if self._rest and batch is not None:
            unsent, self._rest = self._rest, b""
            self._frames.extend(
                RawChunk(unsent[start : start + FRAME_BYTES]) for start in range(0, len(unsent), FRAME_BYTES)
            )
            return self._frames.popleft()
        if batch is None or not (is_attached or drain.is_attached):
            self.close()
            raise StopIteration
        # Nothing to say: an empty frame, so that the holder knows we live.
        first, *rest = self._writer.encode(b"".join([message.encode() for message in batch]))
        self._frames.extend(rest)
        return first

    def _push(self, batch: Sequence[Message]) -> bool:
        """Send a batch from the thread that made it, as far as the kernel takes it at once."""
        frames = self._writer.encode(b"".join([message.encode() for message in batch]))
        data = b"".join([b"%x\r\n%b\r\n" % (len(frame), frame) for frame in frames])
        connection = self._connection
        try:
            # Not `send`, which would wait: a socket with a timeout is non-blocking underneath.
            # The descriptor stays this connection's: `close` waits for us, and the server for `close`.
            sent = os.write(connection.fileno(), data) if connection is not None else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._outbox.break_off(self.drain)
            return True
        self._rest = data[sent:]
        return not self._rest

    @property
    def is_attached(self) -> bool:
        """Whether the outbox leaves this way."""
        return self.drain.is_attached

    def confirm(self) -> bool:
        """The holder got the first frame; False if that is too late."""
        return self._outbox.attach(self.drain)

    def end(self) -> None:
        """Let the server's thread go, at once."""
        self._outbox.detach(self.drain)
        connection = self._connection
        if self.drain.is_busy and connection is not None:
            # It may be in the middle of a write that the peer does not take.
            with suppress(OSError):
                shut_down(connection)

    def close(self) -> None:
        """The server is done with the body, or could not write the last chunk."""
        self._outbox.detach(self.drain)
        self._connection = None  # the server may go on to use it
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end()


def connection_of(environ: Mapping[str, Any]) -> Any:
    """The socket that a request came through, if the server shows it."""
    for name in ("raftsvc.socket", "gunicorn.socket", "werkzeug.socket"):
        connection = environ.get(name)
        if hasattr(connection, "shutdown"):
            return connection
    return None


def tune(connection: Any, silence_seconds: float) -> None:
    """Have the kernel send each frame at once, and break the connection if none is acknowledged for that long.

    As far as server and system allow.  With Nagle's algorithm, which werkzeug's
    server leaves on, a frame would wait 40 ms for the one before it.
    """
    options = [(socket.TCP_NODELAY, 1)]
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        options.append((socket.TCP_USER_TIMEOUT, int(silence_seconds * 1000)))
    for option, value in options:
        with suppress(OSError, AttributeError):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def shut_down(connection: Any) -> None:
    """End a connection that another thread may be using, in both directions."""
    # Not SSLSocket's own, which takes the TLS state away: what that thread sends next would be sent in the clear.
    if isinstance(connection, socket.socket):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
    else:
        connection.shutdown(socket.SHUT_RDWR)


class HeldStream:
    """The holder's end: an open response, read as its bytes arrive."""

    def __init__(self, response: requests.Response, make_seal: Callable[[bytes], Seal], secret: bytes = b"") -> None:
        """secret: by which the seal vouches.  Raises NotOfferedError if the response cannot be read that way."""
        self.secret = secret
        self._response = response
        self._chunks = ChunkDecoder()
        self._frames = FrameReader(make_seal)
        # Below urllib3, whose readers wait for as many bytes as were asked for, or
        # stop after each chunk although there are more.
        file: Any = getattr(getattr(response.raw, "_fp", None), "fp", None)
        self._connection = getattr(getattr(file, "raw", None), "_sock", None)
        if not getattr(response.raw, "chunked", False) or not hasattr(file, "read1"):
            response.close()
            raise NotOfferedError("the answer does not come in chunks")
        if isinstance(file.raw, Incoming):
            file.raw.lift_deadline()
        self._read: Callable[[int], bytes] = file.read1
        # Read in the place of the file, once what came with the response's head has been read.
        self._next_source = self._connection if type(self._connection) is socket.socket else None

    def receive(self) -> list[bytes]:
        """The bodies of whole frames, all that have arrived; waits for some bytes.

        Raises MalformedError, UnreachableError at the end of the stream.
        """
        try:
            data = self._read(_RECEIVE_BYTES)
            if self._next_source is not None:
                source, self._next_source = self._next_source, None
                with suppress(OSError):  # a system that is told the time in other words
                    self._read = _direct_reader(source)
        except (OSError, ValueError) as error:
            raise UnreachableError(f"the stream broke: {error}") from error
        bodies = self._frames.feed(self._chunks.feed(data))
        if not data or (self._chunks.is_over and not bodies):
            raise UnreachableError("the stream ended")
        return bodies

    def interrupt(self) -> None:
        """Have `receive` in another thread return."""
        if self._connection is not None:
            with suppress(OSError):
                shut_down(self._connection)

    def close(self) -> None:
        self._response.close()


def _direct_reader(connection: socket.socket) -> Callable[[int], bytes]:
    """Its `recv`, with the kernel keeping the timeout: else Python asks for each read whether there is something.

    That is one system call less, and lets go of the interpreter once instead of twice.
    """
    timeout = connection.gettimeout()
    if timeout is not None:
        seconds, rest = divmod(timeout, 1.0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", int(seconds), int(1e6 * rest)))
        connection.settimeout(None)
    return connection.recv


class _Last(Enum):
    """How the last attempt to hold a stream ended."""

    BROKE_OFF = 0  # or goes on
    REFUSED = 1
    UNANSWERED = 2


class OpenStream(Protocol):
    """A HeldStream."""

    @property
    def secret(self) -> bytes:
        """By which the seal of its frames vouches."""

    def receive(self) -> list[bytes]:
        """The bodies that arrived; raises MalformedError, UnreachableError."""

    def interrupt(self) -> None: ...
    def close(self) -> None: ...


class StreamHolder:
    """The thread that holds a stream open on one peer and hands on what comes through it."""

    def __init__(
        self,
        name: str,
        open_stream: Callable[[], OpenStream],
        confirm: Callable[[bytes], None],
        hear: Callable[[Sequence[Message]], None],
        on_trouble: Callable[[Exception], None],
        hello_seconds: float,
    ) -> None:
        """hear: called with the messages of the frames that came together.

        on_trouble: called with the Problem or UnreachableError of an attempt.
        open_stream, confirm: raise Problem, UnreachableError, NotOfferedError.
        hear: raises MalformedError for what is no message of that peer.
        """
        self._name = name
        self._open_stream = open_stream
        self._confirm = confirm
        self._hear = hear
        self._on_trouble = on_trouble
        self._hello_seconds = hello_seconds
        self._lock = threading.Lock()  # guards _held and _is_over
        self._held: OpenStream | None = None
        self._is_over = False
        self._last = _Last.BROKE_OFF
        self._trusts_word = False  # since a stream was open nothing that the peer said had us try in vain
        self._wake = threading.Event()
        self.is_open = False
        self._heard_at = 0.0  # when what is being handed on came; 0: nothing is
        self._reader = threading.Thread(target=self._run, name=name, daemon=True)
        self._reader.start()

    def poke(self) -> None:
        """The peer is known to be there: if no stream is open, and none was refused, try at once."""
        if self._last is not _Last.REFUSED:
            self._wake.set()

    def note_alive(self) -> None:
        """The peer said something, by POST: if it left our last request unanswered, ask again at once.

        It was suspended, most likely, for before that it had answered.  If it is in vain something
        on the way keeps answers back since then, and would do so each time.
        """
        if self._last is _Last.UNANSWERED and self._trusts_word:
            self._trusts_word = False
            self._wake.set()

    def reopen(self, at_once: bool = True) -> None:
        """The peer is elsewhere from now on; at_once: which is news, and no choice made because an attempt failed.

        After those it is waited as after any that fails: of a peer that is down there is always another choice.  But
        what was refused, or not answered, where it was asked before says nothing of another place.
        """
        with self._lock:
            held = self._held
        if held is not None:
            held.interrupt()
        if at_once or self._last is not _Last.BROKE_OFF:
            self._wake.set()

    def reopen_unless(self, accepted: Collection[bytes]) -> None:
        """If one of those secrets does not vouch for what comes through the stream, have another opened."""
        with self._lock:
            held = self._held
        if held is not None and held.secret not in accepted:
            self.reopen()

    def give_up_if_stuck(self, seconds: float) -> None:
        """Close the stream if what came through it has been in work for that long, say by a disk that hangs.

        Then the peer sends what it has to say by POST, which other threads serve.
        """
        since = self._heard_at
        if since and time.monotonic() - since > seconds:
            with self._lock:
                held = self._held
            if held is not None:
                self.is_open = False
                held.interrupt()

    def stop(self) -> None:
        """End the thread, soon; a request under way ends by its own timeout."""
        with self._lock:
            self._is_over = True
            held = self._held
        if held is not None:
            held.interrupt()
        self._wake.set()

    def join(self, timeout: float) -> None:
        if self._reader is not threading.current_thread():
            self._reader.join(timeout)

    def _run(self) -> None:
        failures = 0
        while not self._is_over:
            pause = min(_MAX_BACKOFF_SECONDS, 0.05 * 2.0 ** min(failures, 10))
            failures += 1
            self._wake.clear()
            former, self._last = self._last, _Last.BROKE_OFF
            try:
                self._hold()
            except NotOfferedError as refusal:
                logger.debug("%s: %s", self._name, refusal)
                # Else that request may have been served just now, in the place of this one.
                if former is not _Last.UNANSWERED:
                    self._last = _Last.REFUSED
                    self._wake.clear()
                    pause = NOT_OFFERED_SECONDS
            except NoAnswerError as silence:
                self._last = _Last.UNANSWERED
                logger.debug("%s: %s", self._name, silence)
                pause = NOT_OFFERED_SECONDS
            except Problem as problem:
                logger.debug("%s: %s", self._name, problem)
                self._on_trouble(problem)
            except (UnreachableError, MalformedError) as error:
                logger.debug("%s: %s", self._name, error)
                self._on_trouble(error)
            except Exception:
                logger.exception("%s failed", self._name)
            if self.is_open:
                self.is_open = False
                failures = 0
                pause = 0.05
            if not self._is_over:
                self._wake.wait(pause * random.uniform(0.5, 1.0))

    def _hold(self) -> None:
        """Open a stream and read it until it ends, which is always by an exception."""
        held = self._open_stream()
        try:
            with self._lock:
                if self._is_over:
                    return
                self._held = held
            bodies = self._receive_hello(held)
            self._confirm(bodies.pop(0))
            self.is_open = self._trusts_word = True
            while not self._is_over:
                messages: list[Message] = []
                for body in bodies:
                    messages += decode_messages(body)
                if messages:
                    self._heard_at = time.monotonic()
                    self._hear(messages)
                    self._heard_at = 0.0
                bodies = held.receive()
        finally:
            self._heard_at = 0.0
            with self._lock:
                self._held = None
            held.close()

    def _receive_hello(self, held: OpenStream) -> list[bytes]:
        deadline = time.monotonic() + self._hello_seconds
        while time.monotonic() < deadline:
            bodies = held.receive()
            if bodies:
                return bodies
        raise NotOfferedError("the first frame did not come")


def refusal_of(status: int, problem: Problem | None) -> Exception:
    """What an error answer to `GET stream` means; `problem` if it is a peer's, verified."""
    if problem is not None and status == 409 and problem.code != "no_stream":
        return problem  # of who speaks to whom: see app
    if status in _NOT_OFFERED_STATUSES or (problem is not None and problem.code == "no_stream"):
        return NotOfferedError(f"status {status}")
    return problem or UnreachableError(f"status {status}, and the answer is not signed by a peer", status)
