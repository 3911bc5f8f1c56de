"""The way in: the WSGI callable for everything under `/raft/`.

    POST msg        messages from a peer; the answer holds its replies
    POST snapshot   a piece of a snapshot; the answer says which is wanted next
    POST join       a node asks for membership
    POST form       a node with a list of all asks how this one is; see core.founding
    GET  stream     a peer holds this open, and gets what it is told as it is said; see stream
    POST confirm    it got the first frame of that stream
    POST client     a connected client asks for something; see door
    GET  status     a picture of the node, for peers and operators
    POST transfer   the leader is to hand over, as an operator at another member wants it
    GET  metrics    the same as numbers, for Prometheus: to whom status is told, and to who brings a key for that
    GET  livez, readyz   for load balancers; no secret needed, nothing told
    operator, and what is below it   the operator's page, which lets in by keys of its own; see raftsvc.operator

Routes on the last word of the path, so it works at the root, under a mount and
behind a dispatcher.  A body is read to its announced length, which is bounded,
before anything is answered: an unread one would spoil the connection for the
next request.  Every error is a problem of RFC 9457 with a stable code.  What is
refused has changed nothing.

A node without a secret, or what replaces one, answers `local_only` to all but
livez and readyz unless the request comes from its own machine; see local.
"""

from __future__ import annotations

import hmac
import io
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, NoReturn, Protocol

from raftsvc.core.founding import Answer, Question
from raftsvc.core.messages import Claim, Life, MalformedError, Message, MessageKind, decode_messages
from raftsvc.errors import DamagedStorageError, NotApplied, OverloadedError, RaftError
from raftsvc.keys import ClientKey
from raftsvc.transport.auth import AUTH_HEADER, WAYS_TO_BE_REACHED, Authenticator, Envelope, MisnamedError
from raftsvc.transport.door import Door
from raftsvc.transport.freshness import Freshness
from raftsvc.transport.local import BROKEN
from raftsvc.transport.stream import ServedStream
from raftsvc.transport.wire import (
    CONTENT_TYPE,
    MAX_BODY_BYTES,
    MAX_JOIN_BYTES,
    PROTOCOL_VERSION,
    SNAPSHOT_PIECE_BYTES,
    Identity,
    JoinReply,
    JoinRequest,
    Part,
    Problem,
    SnapshotChunk,
    encode_chunk_reply,
)

logger = logging.getLogger("raftsvc.transport")

StartResponse = Callable[..., object]
Page = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]
_MAX_PARTIAL_BATCHES: Final = 16
_SNAPSHOT_OVERHEAD_BYTES: Final = 256 * 1024
_ALARM_SECONDS: Final = 3600.0
_PROBES: Final = ("livez", "readyz")

_METHODS: Final = {
    "msg": "POST",
    "snapshot": "POST",
    "join": "POST",
    "form": "POST",
    "stream": "GET",
    "confirm": "POST",
    "client": "POST",
    "status": "GET",
    "transfer": "POST",
    "metrics": "GET",
    "livez": "GET",
    "readyz": "GET",
}
_LIMITS: Final = {
    "msg": MAX_BODY_BYTES,
    "snapshot": SNAPSHOT_PIECE_BYTES + _SNAPSHOT_OVERHEAD_BYTES,
    "join": MAX_JOIN_BYTES,
    "form": MAX_BODY_BYTES,
    "client": MAX_BODY_BYTES,
}


_CLUSTER: Final = re.compile("[0-9a-f]{16}")
_OF_OPERATORS: Final = re.compile("(?P<page>(?:.*/)?operator)(?P<below>(?:/[a-z]*)?)")


class Receiver(Protocol):
    """What the app asks of the Service."""

    def check_process(self) -> None:
        """Raise a Problem if this is not the node's process."""

    def identity(self) -> Identity | None:
        """Who this node is, or None while it belongs to no cluster."""

    def join_proof(self) -> str:
        """What shows that this node, which belongs to no cluster, is the one that asks to join; see wire."""

    def hear_from(self, node_id: int, claim: Claim, addr: str, proves_now: bool) -> str:
        """Who speaks as a life of `node_id`: `member`, `unknown`, `removed`, `late`, `void`, `unproven`.

        node_id:    or this node's own: a peer takes that life for one of it, which is `void` if it is none.
        addr:       where it says that it is reached.
        proves_now: it answers what was asked after `latest_life` had been heard.
        """

    def latest_life(self, node_id: int) -> Life:
        """The latest life of another member that is known here."""

    def addr_of(self, node_id: int) -> str | None:
        """Where a member is reached."""

    def receive(self, from_id: int, messages: Sequence[Message]) -> list[Message]:
        """Step messages; replies once what they promise is durable."""

    def receive_chunk(self, from_id: int, chunk: SnapshotChunk) -> tuple[int, list[Message]]:
        """Take a piece of a snapshot."""

    def serve_stream(self, from_id: int, envelope: Envelope, secret: bytes, environ: Mapping[str, Any]) -> ServedStream:
        """Open a stream for a member; raises Problem, `no_stream` if none are offered here."""

    def confirm_stream(self, from_id: int, nonce: bytes) -> bool:
        """Its first frame arrived there; False if there is no such stream."""

    def admit(self, request: JoinRequest) -> JoinReply:
        """Make who asks a member; raises Problem."""

    def form(self, question: Question) -> Answer:
        """How this node is, to one that is to found a cluster with it, or to join it; raises Problem."""

    def note_claim(self, cluster: str, from_id: int) -> None:
        """A member of another cluster takes this node for one of its own."""

    def hand_over(self, to: str) -> None:
        """Hand leadership over to the member of that id or address; raises Problem."""

    def check_leader(self) -> None:
        """Raise Problem `not_leader`, which names the leader, if this node does not lead."""

    def status(self) -> dict[str, object]: ...

    def metrics(self) -> tuple[str, bytes]:
        """The content type and the text that monitors read; raises Problem if nothing here can make it."""

    def is_live(self) -> bool: ...
    def is_ready(self) -> bool: ...
    def conditions(self) -> Sequence[str]: ...


class App:
    """WSGI callable; thread-safe."""

    def __init__(
        self, receiver: Receiver, auth: Authenticator, door: Door | None = None, bearers: Sequence[str] = ()
    ) -> None:
        """door: of connected clients; None: there are none.  bearers: who sends one of these may read the metrics."""
        self._receiver = receiver
        self._door = door
        self.renew_bearers(bearers)
        self._auth = auth
        self._freshness = Freshness()
        self._lock = threading.Lock()  # guards the two below
        self._partial: dict[int, tuple[int, int, bytearray]] = {}
        self._alarmed_at: dict[str, float] = {}
        self._page: Page | None = None
        self._monitors: list[bytes] = []

    def open_page(self, page: Page, keys: Sequence[str]) -> None:
        """Serve what is below `operator` by `page`, which sees to it who may; called again when others may.

        keys: who sends one of these may also read the status and the metrics.
        """
        self._page = page
        self._monitors = [b"Bearer " + key.encode() for key in keys]

    def renew_bearers(self, bearers: Sequence[str]) -> None:
        """Have who sends one of these read the metrics, and nobody else by what he sends."""
        self._bearers = [b"Bearer " + key.encode() for key in bearers]

    def __call__(self, environ: Mapping[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        secret = b""
        content_type = CONTENT_TYPE
        headers: list[tuple[str, str]] = []
        try:
            operated = self._find_operators(environ)
            if operated is not None and self._page is not None:
                return self._page(operated, start_response)
            status, content_type, body, secret = self._answer(environ)
            if not isinstance(body, bytes):
                # No length: the server sends it chunk by chunk, as it comes, if nothing keeps it back.
                headers = [("Content-Type", content_type), ("Cache-Control", "no-store, no-transform")]
                start_response("200 OK", [*headers, ("X-Accel-Buffering", "no")])
                return body
        except _Refused as refused:
            problem, secret = refused.problem, refused.secret
            status, content_type, body = problem.status, "application/problem+json", problem.encode()
            if problem.status == 405:
                headers.append(("Allow", problem.extra["allow"]))
            if problem.status == 503:
                headers.append(("Retry-After", "1"))
        except Exception:
            logger.exception("a request under %.100r failed", environ.get("PATH_INFO"))
            status, content_type, body = 500, "application/problem+json", Problem(500, "internal").encode()
        mac = self._auth.sign_answer(secret, str(environ.get("HTTP_RAFT_AUTH", "")), status, body)
        if mac:
            headers.append((AUTH_HEADER, mac))
        headers += [("Content-Type", content_type), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")]
        start_response(f"{status} {HTTPStatus(status).phrase}", headers)
        return [b""] if environ.get("REQUEST_METHOD") == "HEAD" else [body]

    def _find_operators(self, environ: Mapping[str, Any]) -> dict[str, Any] | None:
        """The request as the operator's page has it, its body read, if it is for that."""
        found = _OF_OPERATORS.fullmatch(str(environ.get("PATH_INFO", "")))
        if found is None or self._page is None:
            return None
        body, trouble = _read_body(environ, MAX_JOIN_BYTES, is_required=environ.get("REQUEST_METHOD") == "POST")
        self._check_process()
        self._refuse_outside("operator", environ)
        if trouble is not None:
            raise _Refused(trouble)
        place = {"SCRIPT_NAME": str(environ.get("SCRIPT_NAME", "")) + found["page"], "PATH_INFO": found["below"]}
        return {**environ, **place, "wsgi.input": io.BytesIO(body)}

    def _answer(self, environ: Mapping[str, Any]) -> tuple[int, str, bytes | ServedStream, bytes]:
        path = str(environ.get("PATH_INFO", "")).rstrip("/").rpartition("/")[2]
        method = str(environ.get("REQUEST_METHOD", ""))
        limit = _LIMITS.get(path, MAX_JOIN_BYTES)
        body, trouble = _read_body(environ, limit, is_required=method == "POST")
        self._check_process()  # before any lock, which another thread of the parent may have held
        if path not in _METHODS:
            raise _Refused(Problem(404, "not_found", "no such endpoint of raftsvc"))
        allowed = _METHODS[path]
        if method != allowed and not (allowed == "GET" and method == "HEAD" and path != "stream"):
            raise _Refused(Problem(405, "method_not_allowed", f"{path} takes {allowed}", allow=allowed))
        if path not in _PROBES:
            self._refuse_outside(path, environ)
        if trouble is not None:
            raise _Refused(trouble)
        if path in _PROBES:
            is_good = self._receiver.is_live() if path == "livez" else self._receiver.is_ready()
            bad = "not live" if path == "livez" else "not ready"
            lines = ["ok" if is_good else bad, *(f"[!] {name}" for name in self._receiver.conditions())]
            return (200 if is_good else 503), "text/plain; charset=utf-8", ("\n".join(lines) + "\n").encode(), b""
        try:
            envelope = Envelope.from_environ(method, path, environ)
        except MalformedError as malformed:
            raise _Refused(Problem(400, "malformed", str(malformed))) from malformed
        secret, key, is_bearer = b"", None, self._is_bearer(path, environ)
        if path == "client":
            key, secret = self._identify(envelope, body, environ)
        elif not is_bearer:
            secret = self._authenticate(envelope, body, environ)
        try:
            if is_bearer:
                return (200, *_told(self._receiver, path), secret)
            if key is not None and self._door is not None:
                return 200, CONTENT_TYPE, self._door.serve(key, envelope, body), secret
            return (200, *self._serve(path, envelope, body, environ, secret), secret)
        except Problem as problem:
            raise _Refused(problem, secret) from problem
        except (MalformedError, DamagedStorageError) as damage:
            raise _Refused(Problem(400, "malformed", str(damage)), secret) from damage
        except OverloadedError as overload:
            raise _Refused(Problem(503, "overloaded", str(overload)), secret) from overload
        except (NotApplied, RaftError, OSError) as error:
            logger.warning("a %s was not served: %s", path, error)
            raise _Refused(Problem(503, "unavailable", "this node cannot serve now"), secret) from error

    def _is_bearer(self, path: str, environ: Mapping[str, Any]) -> bool:
        """Whether who asks sends a key that lets him read just that."""
        given = str(environ.get("HTTP_AUTHORIZATION", "")).encode(errors="replace")
        known = {"metrics": [*self._bearers, *self._monitors], "status": self._monitors}.get(path, [])
        found = [hmac.compare_digest(key, given) for key in known]  # all, so that it takes as long for each
        return any(found)

    def _check_process(self) -> None:
        try:
            self._receiver.check_process()
        except Problem as problem:
            raise _Refused(problem) from problem

    def _refuse_outside(self, path: str, environ: Mapping[str, Any]) -> None:
        """Refuse what may come from another machine, if this node serves none."""
        trace = self._auth.trace_of_outside(environ)
        if trace is None:
            return
        if trace != BROKEN:
            self._alarm(path, trace)
        # Without the trace, in which may stand what a proxy told this server and not its client.
        served = "straight from its own machine: from a loopback address, to a loopback Host, through no proxy"
        raise _Refused(
            Problem(
                403, "local_only", f"this node has no secret and serves only what comes {served}; {WAYS_TO_BE_REACHED}"
            )
        )

    def _alarm(self, path: str, trace: str) -> None:
        """Say that the server is reached from elsewhere.

        Not of each request, or strangers filled the log; but again after an hour, for what was
        said weeks ago has been rotated away while the server is still reached.
        """
        if not self._is_due("outside"):
            return
        logger.error(
            "a request for %s was refused, since %s: this node has no secret, so it serves its own machine only, but "
            "its server is reached from elsewhere. Bind the server to 127.0.0.1, or %s. More are refused without a "
            "word for an hour.",
            path,
            trace,
            WAYS_TO_BE_REACHED,
        )

    def _is_due(self, alarm: str) -> bool:
        """Whether it is to be said now: for an hour it is not said again."""
        now = time.monotonic()
        with self._lock:
            said_at = self._alarmed_at.get(alarm)
            if said_at is not None and now - said_at < _ALARM_SECONDS:
                return False
            self._alarmed_at[alarm] = now
            return True

    def _identify(self, envelope: Envelope, body: bytes, environ: Mapping[str, Any]) -> tuple[ClientKey, bytes]:
        """The key of a client, and what its answer is signed with."""
        found = self._door.identify(envelope, body, environ) if self._door is not None else None
        if found is None:
            if envelope.version not in ("", PROTOCOL_VERSION):
                raise _Refused(_other_version())
            raise _Refused(Problem(401, "unknown_key", "the request is not signed by a client key that is known here"))
        return found

    def _authenticate(self, envelope: Envelope, body: bytes, environ: Mapping[str, Any]) -> bytes:
        try:
            secret = self._auth.admit(envelope, body, environ, lambda: self._addr_of_sender(envelope, body))
        except MisnamedError as error:
            raise self._refuse_misnamed(error, envelope) from error
        if secret is None:
            if envelope.version not in ("", PROTOCOL_VERSION):
                # Another version may sign otherwise: say that, and not that the secrets differ.
                raise _Refused(_other_version())
            raise _Refused(Problem(401, "unauthenticated", "the request is not one of a peer's"))
        return secret

    def _addr_of_sender(self, envelope: Envelope, body: bytes) -> str | None:
        """Where the sender is known to be reached; asked once all else says that it is one of ours."""
        if envelope.path in ("join", "form"):
            try:
                return JoinRequest.decode(body).addr if envelope.path == "join" else Question.decode(body).asker
            except MalformedError:
                return None  # refused later
        addr = self._receiver.addr_of(int(envelope.sender)) if _is_number(envelope.sender) else None
        return addr or "" if envelope.path == "transfer" else addr  # no certificate is for nowhere

    def _refuse_misnamed(self, error: MisnamedError, envelope: Envelope) -> _Refused:
        """What is said to who has a certificate of the CA, so that it, and whoever operates this node, knows why."""
        if envelope.path in ("join", "form"):
            what = f"{error}, where the node that asks to join says that it is reached"
        elif error.secret:
            what = f"{error}, where node {envelope.sender} says that it is reached"
        else:
            what = (
                f"{error}, the host that is recorded for node {envelope.sender}: to move, it is started with a "
                "certificate for both, the former host and the new one"
            )
        if self._is_due("misnamed"):
            logger.warning("a request for %s was refused: %s", envelope.path, what)
        return _Refused(Problem(401, "wrong_certificate", what), error.secret)

    def _serve(
        self, path: str, envelope: Envelope, body: bytes, environ: Mapping[str, Any], secret: bytes
    ) -> tuple[str, bytes | ServedStream]:
        receiver = self._receiver
        vouch = environ.get("raftsvc.vouch", _nobody_asks) if self._auth.can_tell else _nobody_asks
        if path in ("status", "metrics"):
            if secret:  # else nothing was signed that could have been recorded
                self._challenge_stranger(envelope)
            vouch()
            return _told(receiver, path)
        if envelope.version != PROTOCOL_VERSION:
            raise _other_version()
        if path != "stream" and str(environ.get("CONTENT_TYPE", "")).split(";")[0].strip() != CONTENT_TYPE:
            raise Problem(415, "unsupported_media_type", f"a body is {CONTENT_TYPE}")
        if path == "form":
            self._challenge_stranger(envelope)
            vouch()
            return CONTENT_TYPE, receiver.form(Question.decode(body)).encode()
        identity = receiver.identity()
        if identity is None:
            status = 503 if path != "join" else 409
            raise Problem(status, "uninitialized", "this node belongs to no cluster yet", proof=receiver.join_proof())
        if path == "join":
            return CONTENT_TYPE, self._serve_join(body, envelope, identity, vouch)
        if path == "transfer":
            self._serve_transfer(body, envelope, identity, vouch)
            return CONTENT_TYPE, b""
        from_id = self._admit_peer(envelope, identity)
        vouch()
        node_id = identity.node_id
        if path == "msg":
            return CONTENT_TYPE, self._serve_messages(from_id, node_id, envelope.part, body)
        if path == "stream":
            return CONTENT_TYPE, receiver.serve_stream(from_id, envelope, secret, environ)
        if path == "confirm":
            if not receiver.confirm_stream(from_id, body):
                raise Problem(409, "no_stream", "there is no such stream, or no longer")
            return CONTENT_TYPE, b""
        chunk = SnapshotChunk.decode(body)
        _check_ends([chunk.message], from_id, node_id)
        next_offset, replies = receiver.receive_chunk(from_id, chunk)
        return CONTENT_TYPE, encode_chunk_reply(next_offset, _encode(replies))

    def _admit_peer(self, envelope: Envelope, identity: Identity) -> int:
        """The member that speaks, to this life of this node, and not for the second time; raises Problem."""
        receiver = self._receiver
        if envelope.cluster != identity.cluster:
            self._hear_other_cluster(envelope)
        if _number(envelope.to, "Raft-To") != identity.node_id:
            self._hear_who_is_astray(envelope, identity)
            # Who expected another one here may look for it elsewhere, and knows where we are.
            here = {"node": str(identity.node_id), "life": str(identity.claim()), "addr": identity.addr}
            raise Problem(412, "wrong_node", f"this is node {identity.node_id}", **here)
        from_id = _number(envelope.sender, "Raft-From")
        claim = Claim.parse(envelope.life)
        if from_id in (0, identity.node_id) or claim is None:
            raise Problem(400, "malformed", "a peer names itself in Raft-From, and its life in Raft-Life")
        life = claim.life
        number = _number(envelope.number, "Raft-Number")
        epoch = str(identity.life)
        latest = receiver.latest_life(from_id)
        proves_now = hmac.compare_digest(envelope.epoch, self._freshness.proof_for(from_id, life, latest))
        if envelope.epoch != epoch and not proves_now:
            self._hear_of_itself(envelope.epoch, identity.node_id)
            # All that it goes on from: two that were both started more than once may have nothing else to go by.
            own = {"epoch": epoch, "lineage": identity.lineage.encode().hex()}
            raise Problem(409, "epoch", "this is another start of the node", **own)
        standing = receiver.hear_from(from_id, claim, envelope.addr, proves_now)
        if standing == "removed":
            raise Problem(410, "removed", f"node {from_id} was removed from the cluster")
        if standing == "void":
            raise Problem(409, "void", f"node {from_id} has two lives, or forgot one: nothing that it says counts")
        if standing == "unproven":
            counter = receiver.latest_life(from_id).counter
            what = f"start number {counter} of node {from_id} is known here: say which one that was"
            raise Problem(409, "descent", what, counter=str(counter))
        if standing == "late":
            proof = self._freshness.proof_for(from_id, life, receiver.latest_life(from_id))
            raise Problem(409, "late", f"a later start of node {from_id} was heard", challenge=proof)
        self._freshness.take(from_id, life, envelope.path, number)
        return from_id

    def _hear_other_cluster(self, envelope: Envelope) -> NoReturn:
        """A member of another cluster, which knows the secret, takes this node for one of its own.

        That may keep this node from being ready, so it is noted only of one that answers a challenge.
        """
        what = "this node belongs to another cluster"
        if not self._freshness.redeem(envelope.epoch):
            raise Problem(412, "wrong_cluster", what, challenge=self._freshness.challenge())
        if _is_number(envelope.sender) and _CLUSTER.fullmatch(envelope.cluster):
            self._receiver.note_claim(envelope.cluster, int(envelope.sender))
        raise Problem(412, "wrong_cluster", what)

    def _hear_of_itself(self, epoch: str, node_id: int) -> None:
        """A peer speaks to another life of this node, which it heard, lately or long ago; raises Problem if it is none.

        So it does not matter either if that is a recorded request.
        """
        life = Life.parse(epoch)
        if life is not None and self._receiver.hear_from(node_id, Claim(life), "", False) == "void":
            raise Problem(503, "unavailable", "this node takes no part any more")

    def _hear_who_is_astray(self, envelope: Envelope, identity: Identity) -> None:
        """A member of this cluster looks for another one here, and says where it is itself.

        A life has one address, so it does not matter if that is a recorded request.
        """
        claim = Claim.parse(envelope.life)
        if claim is not None and _is_number(envelope.sender) and int(envelope.sender) not in (0, identity.node_id):
            self._receiver.hear_from(int(envelope.sender), claim, envelope.addr, False)

    def _challenge_stranger(self, envelope: Envelope, **extra: str) -> None:
        """Raise Problem `challenge`, unless the request answers one of ours, which serves once."""
        if not self._freshness.redeem(envelope.epoch):
            challenge = self._freshness.challenge()
            raise Problem(409, "challenge", "send it again with this as its epoch", challenge=challenge, **extra)

    def _serve_messages(self, from_id: int, node_id: int, part_text: str, body: bytes) -> bytes:
        if part_text:
            whole = self._assemble(from_id, Part.decode(part_text), body)
            if whole is None:
                return b""
            body = whole
        messages = decode_messages(body)
        _check_ends(messages, from_id, node_id)
        if any(message.kind is MessageKind.SNAPSHOT for message in messages):
            raise MalformedError("a SNAPSHOT comes with its data, in pieces")  # without it nothing could be installed
        return _encode(self._receiver.receive(from_id, messages))

    def _assemble(self, from_id: int, part: Part, body: bytes) -> bytes | None:
        """Put a part behind those before it; the whole once it is complete.  One batch per peer at a time."""
        if not body or part.offset + len(body) > part.total_bytes:
            raise MalformedError("a part is out of bounds")
        with self._lock:
            batch_id, total, data = self._partial.pop(from_id, (0, 0, bytearray()))
            if part.offset == 0:
                if len(self._partial) >= _MAX_PARTIAL_BATCHES:
                    del self._partial[next(iter(self._partial))]
                data = bytearray()
            elif (batch_id, total, len(data)) != (part.batch_id, part.total_bytes, part.offset):
                raise Problem(409, "wrong_part", "the part does not continue what came before")
            data += body
            if len(data) < part.total_bytes:
                self._partial[from_id] = (part.batch_id, part.total_bytes, data)
                return None
        return bytes(data)

    def _serve_transfer(self, body: bytes, envelope: Envelope, identity: Identity, vouch: Callable[[], None]) -> None:
        """Hand over, as a member asks that answers a challenge of ours.

        Any process of that member's may ask, so it is not looked at which life of it does.
        """
        self._challenge_stranger(envelope)
        if envelope.cluster != identity.cluster:
            raise Problem(412, "wrong_cluster", "this node belongs to another cluster")
        if self._receiver.addr_of(_number(envelope.sender, "Raft-From")) is None:
            raise Problem(403, "no_member", "only a member of the cluster may ask for that")
        vouch()
        self._receiver.hand_over(body.decode(errors="replace"))

    def _serve_join(self, body: bytes, envelope: Envelope, identity: Identity, vouch: Callable[[], None]) -> bytes:
        """Admit a node that answers a challenge of ours, addressed to this cluster and node.

        So a recorded request is worth nothing, and one that was meant for another cluster neither.
        """
        self._receiver.check_leader()
        self._challenge_stranger(envelope, cluster=identity.cluster, node=str(identity.node_id))
        if (envelope.cluster, envelope.to) != (identity.cluster, str(identity.node_id)):
            raise Problem(412, "wrong_cluster", "the request is for another node, or another cluster")
        vouch()
        return self._receiver.admit(JoinRequest.decode(body)).encode()


def _told(receiver: Receiver, path: str) -> tuple[str, bytes]:
    """The status or the metrics."""
    if path == "metrics":
        return receiver.metrics()
    return "application/json", json.dumps(receiver.status()).encode()


class _Refused(Exception):
    def __init__(self, problem: Problem, secret: bytes = b"") -> None:
        super().__init__(problem)
        self.problem = problem
        self.secret = secret


def _read_body(environ: Mapping[str, Any], limit: int, is_required: bool) -> tuple[bytes, Problem | None]:
    """The body, read to its announced length; some servers hand over a shorter one without an error."""
    text = str(environ.get("CONTENT_LENGTH") or "")
    if not text:
        return b"", Problem(411, "length_required", "send a Content-Length") if is_required else None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        return b"", Problem(400, "malformed", "Content-Length is no number")
    length = int(text)
    stream = environ["wsgi.input"]
    # Drain what is too long, within reason, so that the answer arrives.
    kept = []
    left = min(length, 4 * MAX_BODY_BYTES)
    while left:
        try:
            piece = stream.read(min(left, 65536))
        except Exception:  # that the client is gone each server says with an exception of its own
            piece = b""
        if not piece:
            return b"", Problem(400, "body_cut_short", "the body is shorter than its Content-Length")
        left -= len(piece)
        if length <= limit:
            kept.append(piece)
    if length > limit:
        return b"", Problem(413, "too_large", f"a body here has at most {limit} bytes")
    return b"".join(kept), None


def _other_version() -> Problem:
    return Problem(400, "unsupported_version", f"this node speaks version {PROTOCOL_VERSION} of the protocol")


def _nobody_asks() -> None:
    """In the place of what the listener wants to be told: that the connection is a peer's."""


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 19


def _number(text: str, name: str) -> int:
    if not _is_number(text):
        raise Problem(400, "malformed", f"{name} is no member id")
    return int(text)


def _check_ends(messages: Iterable[Message], from_id: int, node_id: int) -> None:
    """A message is from who sent the request and to this node; no peer speaks for another."""
    if any(message.from_id != from_id or message.to_id != node_id for message in messages):
        raise MalformedError("a message is not from its sender to this node")


def _encode(messages: Iterable[Message]) -> bytes:
    return b"".join([message.encode() for message in messages])
