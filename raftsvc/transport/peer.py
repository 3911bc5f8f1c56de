"""The way out to one peer: an outbox, the thread that empties it, and transfers of snapshots.

Each batch is one POST to the peer's `msg`, and the response carries the peer's
replies, so that a commit never depends on an inbound request finding a free
thread.  A peer that does not answer holds up its own thread and no one else.
While the peer holds a stream open on this node, that empties the outbox instead;
see stream.
"""

from __future__ import annotations

import itertools
import logging
import queue
import random
import secrets
import socket
import ssl
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

import requests

from raftsvc.addresses import peer_url
from raftsvc.core.messages import NO_NODE, Claim, Life, Lineage, MalformedError, Message, MessageKind, decode_messages
from raftsvc.process import close_in_children
from raftsvc.transport.auth import AUTH_HEADER, Authenticator, Envelope
from raftsvc.transport.contact import Contact, PeerTrouble
from raftsvc.transport.frames import fresh_stream_nonce
from raftsvc.transport.limit import BodyLimit
from raftsvc.transport.outbox import Outbox
from raftsvc.transport.reach import Reach, reason_of
from raftsvc.transport.session import make_session
from raftsvc.transport.stream import (
    HeldStream,
    NoAnswerError,
    NotOfferedError,
    ServedStream,
    StreamHolder,
    refusal_of,
    tune,
)
from raftsvc.transport.transfer import Sendable, Transfer
from raftsvc.transport.wire import (
    CONTENT_TYPE,
    MAX_BODY_BYTES,
    PROTOCOL_VERSION,
    Identity,
    Part,
    Problem,
    TooLargeError,
    UnreachableError,
    UnsignedError,
    decode_problem,
)

logger = logging.getLogger("raftsvc.transport")

_MAX_ANSWER_BYTES = 2 * 1024 * 1024
_MAX_UNSIGNED_BYTES = 65536
"""No problem is longer; and of what nobody signed no more is looked at."""
_MAX_BACKOFF_SECONDS = 1.0
_MAX_SIGNINGS = 4
_MAX_ASKING = 8
"""So many requests to one address are waited for; others would only be answered as slowly."""
_Answer = TypeVar("_Answer")
_BELIEVED_UNSIGNED = frozenset({"unsupported_version"})
"""Who signs in another way cannot sign that for us; who only says so could as well see to it that no answer comes."""


class Listener(Protocol):
    """What a peer tells its node."""

    @property
    def identity(self) -> Identity: ...
    def counts(self, peer_id: int, life: Life) -> bool: ...
    def latest_life(self, peer_id: int) -> Life: ...
    def hear_from(self, peer_id: int, claim: Claim, addr: str, proves_now: bool) -> str: ...
    def report_reached(self, peer_id: int, addr: str) -> None: ...
    def report_missed(self, peer_id: int, addr: str, other_id: int) -> None: ...
    def report_void(self, peer_id: int) -> None: ...
    def receive_replies(self, from_id: int, messages: Sequence[Message]) -> None: ...
    def receive_stream(self, from_id: int, messages: Sequence[Message]) -> None: ...
    def report_unreachable(self, peer_id: int) -> None: ...
    def report_removed(self, peer_id: int) -> None: ...
    def report_snapshot(
        self, peer_id: int, succeeded: bool, replies: Sequence[Message], damage: Exception | None
    ) -> None: ...


class Network:
    """What all requests of this node share: the Session, the authentication, the timeouts."""

    def __init__(
        self,
        session: requests.Session | None,
        auth: Authenticator,
        connect_timeout: float,
        read_timeout: float,
        max_answer_bytes: int = _MAX_ANSWER_BYTES,
        find_context: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        """find_context: tells by what TLS is spoken, where there is no Session that says it."""
        self.auth = auth
        self._max_answer_bytes = max_answer_bytes
        self._session = session or make_session(find_context)
        self._owns_session = session is None
        self._timeout = (connect_timeout, read_timeout)
        self._lock = threading.Lock()  # guards _peers and _asking; the last in the order
        self._peers: dict[int, Peer] = {}
        self._asking: dict[str, list[threading.Thread]] = {}  # by URL: see `post_within`
        self._numbers = itertools.count(1)  # taken by one call of C: no lock
        self._template = requests.Request("POST", "http://127.0.0.1/").prepare()
        self._sockets: WeakSet[socket.socket] = WeakSet()  # of every connection that ever brought an answer
        close_in_children(self)

    @property
    def silence_seconds(self) -> float:
        """How long a peer may say nothing where something is expected."""
        return self._timeout[1]

    def take_descriptors(self) -> Iterable[int]:
        """See `raftsvc.process.HoldsDescriptors`.

        With a copy of them in a child that outlives this process, peers would not see that it
        ended: what they say through a stream that it held goes nowhere, unnoticed.
        """
        return [fd for fd in [connection.detach() for connection in list(self._sockets)] if fd >= 0]

    def open_peer(self, node: Listener, peer_id: int, addr: str | None) -> Peer:
        """A peer with its sender running, or, without an address, one that only gets responses."""
        peer = Peer(self, node, peer_id, addr)
        with self._lock:
            self._peers[peer_id] = peer
        return peer

    def peer(self, peer_id: int) -> Peer | None:
        """The peer as it was opened last, unless it was stopped."""
        with self._lock:
            return self._peers.get(peer_id)

    def forget(self, peer: Peer) -> None:
        """`peer` was stopped."""
        with self._lock:
            self._peers = {i: other for i, other in self._peers.items() if other is not peer}

    def streams(self) -> dict[int, tuple[bool, bool]]:
        """By peer: whether what it says comes through a stream, and whether what it is told leaves through one."""
        with self._lock:
            return {i: (peer.hears_stream, peer.is_streaming) for i, peer in sorted(self._peers.items())}

    def next_number(self) -> str:
        """What makes the next request of this process differ from all others."""
        return str(next(self._numbers))

    def renew(self, secrets: Sequence[bytes]) -> None:
        """Sign and verify with these from now on; see `Authenticator.renew`."""
        self.auth.renew(secrets)
        self.end_outdated()

    def reconnect(self) -> None:
        """Have no more requests sent by connections as they are, and end the streams: others take their place."""
        with self._lock:
            peers = list(self._peers.values())
        for peer in peers:
            _end_outdated(peer, ())
        self.close()  # of what waits in the pools; what is on its way ends by the connection that it has

    def end_outdated(self) -> None:
        """End the streams whose frames a secret vouches for that is not accepted any more; others take their place.

        To be repeated: one that is just being opened is not seen.
        """
        accepted = frozenset(self.auth.secrets)
        with self._lock:
            peers = list(self._peers.values())
        for peer in peers if accepted else ():
            _end_outdated(peer, accepted)

    def is_refused(self) -> bool:
        """Whether some peer does not know what this node signs with, and no other takes what it is told."""
        with self._lock:
            troubles = [peer.trouble for peer in self._peers.values() if peer.addr is not None]
        codes = [trouble.code for trouble in troubles if trouble is not None]
        return "unauthenticated" in codes and len(codes) == len(troubles)

    def hears_all(self) -> bool:
        """Whether all that peers say comes through streams."""
        with self._lock:
            return all(peer.hears_stream for peer in self._peers.values())

    def post(
        self, base_url: str, envelope: Envelope, body: bytes, timeout: float | None = None, secret: bytes | None = None
    ) -> bytes:
        """POST `body` and return the authentic answer's body.

        secret: of those that are accepted here, to sign with; None: what signs now.

        Raises Problem for an authentic error answer, TooLargeError where something on the way
        refuses bodies of that size, UnreachableError for everything else.
        """
        limits = self._timeout if timeout is None else (min(self._timeout[0], timeout), timeout)
        secret = self.auth.signing if secret is None else secret
        response, mac = self._send(base_url, envelope, body, limits, secret)
        answer, is_authentic = self._read(response, mac, secret)
        if not is_authentic:
            status = response.status_code
            if status == 413:
                raise TooLargeError(f"something on the way refuses bodies of {len(body)} bytes (413)", status)
            problem = decode_problem(status, answer[:_MAX_UNSIGNED_BYTES])
            raise problem if problem.code in _BELIEVED_UNSIGNED else UnsignedError(problem)
        if response.status_code != 200:
            raise decode_problem(response.status_code, answer)
        return answer

    def post_within(
        self, base_url: str, envelope: Envelope, body: bytes, timeout: float, secret: bytes | None = None
    ) -> bytes:
        """As `post`, but `timeout` seconds in all, from the look-up of the name to the last byte.

        In a thread of its own: no timeout of a socket ends a look-up, and with a Session of the application's
        it begins anew with each byte.
        """
        outcome: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

        def run() -> None:
            try:
                outcome.put(self.post(base_url, envelope, body, timeout, secret))
            except Exception as error:
                outcome.put(error)

        thread = threading.Thread(target=run, name="raftsvc-ask", daemon=True)
        with self._lock:
            asking = [other for other in self._asking.pop(base_url, ()) if other.is_alive()]
            if len(asking) < _MAX_ASKING:
                try:
                    thread.start()
                except RuntimeError as error:
                    raise UnreachableError(f"no thread can be started: {error}") from error
                asking.append(thread)
            self._asking[base_url] = asking
        if thread not in asking:
            raise UnreachableError("earlier requests are still being answered, drop by drop")
        try:
            answer = outcome.get(timeout=max(0.0, timeout))
        except queue.Empty:
            raise UnreachableError(f"no whole answer within {timeout:.3g} s") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def open_stream(self, base_url: str, envelope: Envelope) -> HeldStream:
        """Ask for a stream and return it once the answer began.

        Raises Problem, UnreachableError, NotOfferedError.
        """
        if getattr(self._session.get_adapter(base_url), "_pool_block", False):
            # The stream would keep a connection for which others wait for ever.
            raise NotOfferedError("the pool of the Session blocks")
        secret = self.auth.signing
        try:
            response, mac = self._send(base_url, envelope, None, self._timeout, secret)
        except UnreachableError as error:
            if isinstance(error.__cause__, requests.ReadTimeout):
                raise NoAnswerError("the answer did not begin") from error
            raise
        if response.status_code == 200:
            return HeldStream(response, lambda nonce: self.auth.seal_stream(envelope, nonce, secret), secret)
        answer, is_authentic = self._read(response, mac, secret)
        problem = decode_problem(response.status_code, answer if is_authentic else answer[:_MAX_UNSIGNED_BYTES])
        is_believed = is_authentic or problem.code in _BELIEVED_UNSIGNED
        raise refusal_of(response.status_code, problem if is_believed else None)

    def _send(
        self, base_url: str, envelope: Envelope, body: bytes | None, limits: tuple[float, float], secret: bytes
    ) -> tuple[requests.Response, str]:
        """Send a request that `secret` signs; its response, unread, and the MAC that its answer is bound to."""
        mac = self.auth.sign(envelope, body or b"", secret)
        headers = {**envelope.headers(), AUTH_HEADER: mac or "none", "Content-Type": CONTENT_TYPE}
        options: dict[str, Any] = {"proxies": {}}
        if not self._owns_session:
            options = {"verify": self._session.verify, "cert": self._session.cert, "proxies": self._session.proxies}
        try:
            request = self._prepare(envelope.method, f"{base_url}/{envelope.path}", headers, body)
            # A redirect would take the request, and its meaning, to another node.
            response = self._session.send(request, timeout=limits, allow_redirects=False, stream=True, **options)
        except (requests.RequestException, OSError, ValueError) as error:
            raise UnreachableError(reason_of(error)) from error
        except Exception as error:  # urllib3's own errors, should any pass through
            raise UnreachableError(f"{type(error).__name__}: {error}") from error
        connection = getattr(getattr(response.raw, "connection", None), "sock", None)
        if isinstance(connection, socket.socket):
            self._sockets.add(connection)
        return response, mac

    def _read(self, response: requests.Response, mac: str, secret: bytes) -> tuple[bytes, bool]:
        """The whole answer, and whether a peer signed it, with what signed the request."""
        try:
            answer = response.raw.read(self._max_answer_bytes + 1, decode_content=False)
        except Exception as error:  # urllib3's own errors pass through when the raw body is read
            raise UnreachableError(f"{type(error).__name__}: {error}") from error
        if len(answer) > self._max_answer_bytes:
            response.close()
            raise UnreachableError("the answer is too long")
        signature = response.headers.get(AUTH_HEADER, "")
        return bytes(answer), self.auth.verify_answer(mac, response.status_code, answer, signature, secret)

    def _prepare(self, method: str, url: str, headers: dict[str, str], body: bytes | None) -> requests.PreparedRequest:
        if not self._owns_session:
            # Its headers and its auth are what an `authenticate` callable of the peers judges by.
            headers = {**headers, "Accept-Encoding": "identity"}  # the answer is verified as it came
            return self._session.prepare_request(requests.Request(method, url, headers=headers, data=body))
        # 4 µs instead of 75 (timeit of this method); there is nothing of the Session's to add.
        request = self._template.copy()
        request.method = method
        request.url = url
        request.body = body
        if body is not None:
            headers = {**headers, "Content-Length": str(len(body))}
        request.headers = requests.structures.CaseInsensitiveDict(headers)
        return request

    def close(self) -> None:
        """Close the Session if it is the library's own."""
        if self._owns_session:
            self._session.close()


class Line:
    """Requests of this node to one peer: addressed to this life of it, and what they bring checked to be its own."""

    def __init__(
        self, network: Network, node: Listener, peer_id: int, addr: str | None, stopping: threading.Event
    ) -> None:
        """stopping: set before another process can be this member."""
        self._place = (addr, False)  # and whether that is a guess; taken at once, by whoever sends
        self._network = network
        self._node = node
        self._peer_id = peer_id
        self._stopping = stopping
        self._epoch = ""  # the life that the peer speaks as, as far as it is known
        self._late: Life | None = None  # one that answered although a later one had been heard
        self._answered = (
            threading.local()
        )  # the last request of the thread; at: see `tried`, by: which life answered it
        self._stream_life: Life | None = None
        self._reached = ""  # where the peer answered last
        self.body_limit = BodyLimit()

    @property
    def silence_seconds(self) -> float:
        """How long the peer may say nothing."""
        return self._network.silence_seconds

    @property
    def addr(self) -> str | None:
        """Where requests go."""
        return self._place[0]

    @property
    def tried(self) -> str:
        """Where the last request of this thread went; empty if that was a guess."""
        return str(getattr(self._answered, "at", ""))

    def move(self, addr: str, is_guess: bool) -> None:
        """The peer is reached elsewhere, perhaps by another way."""
        if addr != self.addr:
            self.body_limit.forget()
        self._place = (addr, is_guess)

    def post(self, path: str, body: bytes, part: str = "") -> bytes:
        """POST `body` and return the answer's.  Raises Problem, UnreachableError."""
        return self._request("POST", path, part, lambda url, envelope: self._network.post(url, envelope, body))

    def _request(self, method: str, path: str, part: str, send: Callable[[str, Envelope], _Answer]) -> _Answer:
        """Have a request sent, signed for who is there, and signed again if that is another start of the peer."""
        me = self._node.identity
        claim = me.claim()
        proof = ""
        for attempt in range(_MAX_SIGNINGS):
            epoch = proof or self._epoch
            envelope = Envelope(
                method,
                path,
                PROTOCOL_VERSION,
                me.cluster,
                str(me.node_id),
                str(self._peer_id),
                part,
                str(claim),
                me.addr,
                epoch,
                self._network.next_number(),
            )
            late = self._late
            addr, is_guess = self._place
            assert addr is not None, "only peers with an address are sent to"
            self._answered.at = "" if is_guess else addr
            try:
                answer = send(peer_url(addr), envelope)
                if addr != self._reached and path != "stream":
                    self._reached = addr
                    self._say(self._node.report_reached, addr)
                self._answered.by = Life.parse(epoch)
                return answer
            except (NoAnswerError, TooLargeError):
                raise  # what is kept back, or refused on the way, says nothing of where the peer is
            except UnreachableError:
                self._reached = ""
                self._say(self._node.report_missed, addr, NO_NODE)
                raise
            except Problem as problem:
                if problem.code == "wrong_node":
                    self._learn_who_is_there(problem, addr)
                if attempt + 1 == _MAX_SIGNINGS or self._stopping.is_set():
                    raise
                proof = ""
                if problem.code in ("late", "wrong_cluster") and "challenge" in problem.extra:
                    proof = problem.extra["challenge"]  # we do say so now, whatever was heard later
                elif problem.code == "epoch":
                    self._learn_epoch(problem, late)
                elif problem.code == "descent" and problem.extra.get("counter", "").isdecimal():
                    claim = me.claim(int(problem.extra["counter"]))
                elif problem.code != "too_old" and not (problem.code == "seen" and path != "msg"):
                    raise
        raise AssertionError("unreachable")

    def _learn_who_is_there(self, problem: Problem, addr: str) -> None:
        """Another node answered at `addr`, and says who it is and where."""
        node, claim = problem.extra.get("node", ""), Claim.parse(problem.extra.get("life", ""))
        if claim is not None and node.isascii() and node.isdigit() and len(node) < 20:
            if int(node) != self._node.identity.node_id:
                self._node.hear_from(int(node), claim, problem.extra.get("addr", ""), False)
            self._reached = ""
            self._say(self._node.report_missed, addr, int(node))

    def _say(self, report: Callable[..., None], *args: object) -> None:
        """Tell the node where the peer is; trouble of its own takes nothing from what the peer answered."""
        try:
            report(self._peer_id, *args)
        except Exception:
            logger.exception("a report about node %d failed", self._peer_id)

    def _learn_epoch(self, problem: Problem, late: Life | None) -> None:
        """Another life of the peer answered: speak to it, unless a later one was heard.

        late: one of that kind that was known before the request was sent, which so shows that it still speaks.
        """
        try:
            lineage = Lineage.decode(bytes.fromhex(problem.extra.get("lineage", "")))
        except ValueError:
            raise problem from None
        known = self._node.latest_life(self._peer_id).counter
        claim = lineage.claim(known)
        standing = self._node.hear_from(self._peer_id, claim, "", claim.life == late)
        if standing not in ("member", "unknown"):
            self._late = claim.life if standing == "late" else None
            # From the next request it hears which life of it is known: so it learns that it was put back.
            self._epoch = str(self._node.latest_life(self._peer_id))
            raise problem
        self._epoch, self._late = str(claim.life), None

    def deliver(self, batch: Sequence[Message]) -> list[Message]:
        """POST messages, in parts if they are too many for one body; the replies to them."""
        body = b"".join([message.encode() for message in batch])
        while True:
            limit = self.body_limit
            size = min(len(body), limit.size_bytes())
            try:
                replies = decode_messages(self._post_messages(body, size))
                limit.passed(size)
                break
            except TooLargeError:
                if not limit.refused(size):
                    raise
        self.check(replies)
        return replies

    def _post_messages(self, body: bytes, size: int) -> bytes:
        if len(body) <= size:
            return self._post_part(body)
        batch_id = secrets.randbits(63)
        for offset in range(0, len(body), size):
            answer = self._post_part(body[offset : offset + size], Part(batch_id, offset, len(body)).encode())
        return answer

    def _post_part(self, body: bytes, part: str = "") -> bytes:
        try:
            return self.post("msg", body, part)
        except Problem as problem:
            if problem.code == "seen":
                return b""  # delivered, and the answer lost: Raft repeats what matters
            raise

    def check(self, replies: Sequence[Message]) -> None:
        """Raise MalformedError if these answers to this thread are no peer's, UnreachableError if it does not count.

        None speaks for another.
        """
        self._check(replies, self._answered.by)

    def check_stream(self, messages: Sequence[Message]) -> None:
        """The same of what came through the stream that was opened last."""
        self._check(messages, self._stream_life)

    def _check(self, replies: Sequence[Message], life: Life | None) -> None:
        if life is None or not self._node.counts(self._peer_id, life):
            raise UnreachableError("what answered is no start of the node that counts")
        peer_id, node_id = self._peer_id, self._node.identity.node_id
        for m in replies:
            if m.from_id != peer_id or m.to_id != node_id:
                raise MalformedError("the answer holds messages of another node")
            if m.kind is MessageKind.SNAPSHOT:
                raise MalformedError("the answer holds a SNAPSHOT, which comes with its data, in pieces")

    def open_stream(self) -> HeldStream:
        """Ask for a stream; raises as `Network.open_stream`."""
        held = self._request("GET", "stream", "", self._network.open_stream)
        self._stream_life = self._answered.by
        try:
            self.check_stream(
                ()
            )  # else what it says is to come by requests, which are answered by what is wrong with it
        except UnreachableError:
            held.close()
            raise
        return held

    def confirm_stream(self, nonce: bytes) -> None:
        """Say that its first frame came.  Raises Problem, UnreachableError, NotOfferedError."""
        try:
            self.post("confirm", nonce)
        except Problem as problem:
            if problem.code == "no_stream":
                raise NotOfferedError("what the peer sends is kept back on its way") from problem
            raise


class Peer:
    """One peer as this node speaks to it."""

    def __init__(self, network: Network, node: Listener, peer_id: int, addr: str | None) -> None:
        self._stopping = threading.Event()
        self._line = Line(network, node, peer_id, addr, self._stopping)
        self.body_limit = self._line.body_limit
        self._network = network
        self._node = node
        self._peer_id = peer_id
        self._outbox = Outbox()
        self._contact = Contact()
        self._sender: threading.Thread | None = None
        self._transfer: Transfer | None = None
        self._holder: StreamHolder | None = None
        self._lock = threading.Lock()  # guards _served; before the outbox lock
        self._served: list[ServedStream] = []
        self.is_to_knock = False
        """Have the peer asked soon whether it is there, though there be nothing to say to it."""
        if addr is not None:
            self._start()

    @property
    def addr(self) -> str | None:
        """Where the peer is reached; None if that is not known."""
        return self._line.addr

    @property
    def trouble(self) -> PeerTrouble | None:
        """What keeps it from being reached, as far as that was tried of late."""
        return self._contact.trouble

    def _start(self) -> None:
        """Raises RuntimeError if no thread can be started; then this peer is stopped."""
        try:
            thread = threading.Thread(target=self._run, name=f"raftsvc-send-{self._peer_id}", daemon=True)
            thread.start()
            self._sender = thread
            self._holder = StreamHolder(
                f"raftsvc-stream-{self._peer_id}",
                self._line.open_stream,
                self._line.confirm_stream,
                self._hear_stream,
                self._hear_refusal,
                self._network.silence_seconds,
            )
        except RuntimeError:
            self.stop(wait=False)
            raise

    def put(self, messages: Sequence[Message]) -> bool:
        """Queue messages; False if some were lost for want of room."""
        return self._outbox.put(messages)

    def queue(self, messages: Sequence[Message]) -> bool:
        """As `put`, but `flush` has to follow."""
        return self._outbox.put(messages, wake=False)

    def flush(self) -> None:
        """Send what is queued, or have it sent.  Does not wait."""
        self._outbox.flush()

    def responding(self) -> AbstractContextManager[None]:
        """While a request of this peer is served, its replies wait for `take_replies`."""
        if self._holder is not None:
            self._holder.note_alive()
        return self._outbox.responding()

    @property
    def is_responding(self) -> bool:
        return self._outbox.is_responding

    def take_replies(self) -> list[Message]:
        """Replies that fit a response."""
        return self._outbox.take_replies(MAX_BODY_BYTES)

    def move(self, addr: str, is_guess: bool = False, is_news: bool = True) -> None:
        """The peer is reached at `addr` from now on.  Raises RuntimeError as a new one would.

        is_guess: it is only looked for there because others were: that it is not there is no trouble.
        is_news:  somebody said so; else it is the next place because it did not answer at another.
        """
        is_elsewhere = addr != self.addr
        self._line.move(addr, is_guess)
        if self._holder is None:
            self._start()
        elif is_elsewhere:
            self._holder.reopen(at_once=is_news)

    def stop(self, wait: bool = True) -> None:
        """End the sender; waits a moment unless `wait` is false.  A request under way ends by its own timeout."""
        self._stopping.set()
        self._network.forget(self)
        with self._lock:
            served, self._served = self._served, []
        for stream in served:
            stream.end()
        self._outbox.close()
        if self._holder is not None:
            self._holder.stop()
        for thread in (self._sender, self._transfer, self._holder):
            if wait and thread is not None and thread is not threading.current_thread():
                thread.join(0.5)

    # -- messages

    def _run(self) -> None:
        failures = 0
        reach = Reach(self._peer_id)
        while not self._stopping.is_set():
            try:
                failures = self._send_next(failures, reach)
            except Exception:  # nobody else would send: what was to be sent is repeated
                logger.exception("sending to node %d failed", self._peer_id)
                self._outbox.posted()
                self._report(self._node.report_unreachable, self._peer_id)
                self._stopping.wait(_MAX_BACKOFF_SECONDS)

    def _send_next(self, failures: int, reach: Reach) -> int:
        """Send what there is, or wait a moment for something; how many attempts in a row have failed by then."""
        batch = self._outbox.take(MAX_BODY_BYTES, min(1.0, self._network.silence_seconds / 2))
        self._watch_streams()
        if self._outbox.take_loss():
            self._report(self._node.report_unreachable, self._peer_id)
        if self._outbox.is_streaming and self._contact.trouble is None:  # a peer that is stopped keeps its stream
            reach.succeeded(self.addr)
        is_knocking, self.is_to_knock = self.is_to_knock, False
        if not (batch or is_knocking) or self._stopping.is_set():
            return failures
        why: Exception | None = None
        try:
            replies = self._line.deliver(batch)
            self._contact.answered()
            if replies:
                self._node.receive_replies(self._peer_id, replies)
        except Problem as problem:
            self._hear_problem(problem)
            why = problem
        except (UnreachableError, MalformedError) as error:
            why = error
        except Exception as error:
            logger.exception("sending to node %d failed", self._peer_id)
            why = error
        self._outbox.posted()
        if why is None:
            reach.succeeded(self.addr)
            return 0
        tried = self._line.tried
        if tried and self._contact.failed(tried, why):
            reach.failed(tried, str(why), why.code if isinstance(why, Problem) else "")
        return self._back_off(failures)

    def _back_off(self, failures: int) -> int:
        """Tell the node that messages were lost, and wait a moment, longer each time.

        The outbox goes on taking what is put, within its bounds.
        """
        self._report(self._node.report_unreachable, self._peer_id)
        self._stopping.wait(min(_MAX_BACKOFF_SECONDS, 0.05 * 2.0 ** min(failures, 10)) * random.uniform(0.5, 1.0))
        return failures + 1

    def _hear_problem(self, problem: Problem) -> None:
        # The code, for without a secret a 410 may be some proxy's.
        if (problem.status, problem.code) == (410, "removed"):
            self._report(self._node.report_removed, self._peer_id)
        elif (problem.status, problem.code) == (409, "void"):
            self._report(self._node.report_void, self._peer_id)

    def _hear_refusal(self, error: Exception) -> None:
        """No stream could be held: of weight where nothing else is asked of the peer."""
        if tried := self._line.tried:
            self._contact.failed(tried, error, self._network.silence_seconds)
        if isinstance(error, Problem):
            self._hear_problem(error)

    def _report(self, report: Callable[..., None], *args: object) -> None:
        """Tell the node; trouble of its own does not end the thread that tells it."""
        try:
            report(*args)
        except Exception:
            logger.exception("a report about node %d failed", self._peer_id)

    # -- the stream that the peer holds open here

    def serve_stream(
        self, envelope: Envelope, secret: bytes, connection: Any, on_end: Callable[[], None], is_ours: bool = False
    ) -> ServedStream:
        """The body of the answer to the peer's request, which `secret` verified, for a stream.

        connection: the server's socket, if it shows it.
        is_ours:    it is the library's own server.
        on_end:     called when the server's thread is free again.
        """
        nonce = fresh_stream_nonce()
        silence = self._network.silence_seconds
        seal = self._network.auth.seal_stream(envelope, nonce, secret)
        tune(connection, silence)
        can_push = is_ours and type(connection) is socket.socket and connection.gettimeout() is not None
        stream = ServedStream(self._outbox, nonce, seal, silence, silence / 4, connection, can_push, on_end, secret)
        with self._lock:
            # An attached one goes on until this one is confirmed: the request may be a recorded one.
            superseded = [other for other in self._served if not other.is_attached]
            self._served = [other for other in self._served if other.is_attached] + [stream]
        for other in superseded:
            other.end()
        if self._stopping.is_set():
            stream.end()
        return stream

    def confirm_stream(self, nonce: bytes) -> bool:
        """The peer got the first frame of the stream with that nonce; False if there is none."""
        with self._lock:
            stream = next((one for one in self._served if one.nonce == nonce), None)
            if stream is None or not stream.confirm():
                return False
            former, self._served = [one for one in self._served if one is not stream], [stream]
        self._contact.answered()
        for other in former:
            other.end()
        if self._holder is not None:
            self._holder.poke()
        return True

    def _watch_streams(self) -> None:
        silence = self._network.silence_seconds
        stuck = self._outbox.stuck_drain(silence)
        if stuck is not None:
            logger.warning("node %d does not read its stream", self._peer_id)
            with self._lock:
                ended = [one for one in self._served if one.drain is stuck]
            for stream in ended:
                stream.end()
        if self._holder is not None:
            self._holder.give_up_if_stuck(silence / 2)

    @property
    def is_streaming(self) -> bool:
        """Whether what is put leaves through a stream."""
        return self._outbox.is_streaming

    # -- the stream that this node holds open there

    @property
    def hears_stream(self) -> bool:
        """Whether a stream brings what the peer says."""
        return self._holder is not None and self._holder.is_open

    def _hear_stream(self, messages: Sequence[Message]) -> None:
        self._line.check_stream(messages)
        if self._contact.trouble is not None and self.is_streaming:
            self._contact.answered()
        self._node.receive_stream(self._peer_id, messages)

    # -- snapshots

    def send_snapshot(self, message: Message, open_snapshot: Callable[[], Sendable]) -> bool:
        """Begin to transfer the stored snapshot; False if one is under way, or there is no address or no thread for it.

        Its end is reported to the node.
        """
        if self.addr is None or self._stopping.is_set() or (self._transfer is not None and self._transfer.is_under_way):
            return False
        report = partial(self._report, self._node.report_snapshot, self._peer_id)
        try:
            self._transfer = Transfer(self._peer_id, self._line, message, open_snapshot, report, self._stopping)
        except RuntimeError:
            return False
        return True


def _end_outdated(peer: Peer, accepted: Collection[bytes]) -> None:
    """End its streams for which none of those secrets vouches."""
    with peer._lock:
        ended = [one for one in peer._served if one.secret not in accepted]
    for stream in ended:
        stream.end()
    if peer._holder is not None:
        peer._holder.reopen_unless(accepted)
