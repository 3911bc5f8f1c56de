"""A receiver that records, and requests as a peer, a stranger or an enemy makes them."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Sequence
from typing import Any

from raftsvc.core import founding
from raftsvc.core.founding import Question, Standing
from raftsvc.core.messages import KEPT_LIVES, Claim, Life, Lineage, Message, MessageKind
from raftsvc.transport import App, Authenticator, Identity, JoinReply, JoinRequest, Problem, SnapshotChunk
from raftsvc.transport.auth import AUTH_HEADER, Envelope
from raftsvc.transport.wire import CONTENT_TYPE, PROTOCOL_VERSION

SECRET = "a secret of the tests, long enough"
CLUSTER, NODE, PEER = 0xC1, 1, 2
LIFE, PEER_LIFE = Life(4, 0xA), Life(9, 0xB)
_numbers = itertools.count(1)


def lineage_of(life: Life) -> Lineage:
    """That of a directory whose other starts nobody knows of."""
    return Lineage(life.counter, (life.nonce, *[0] * (KEPT_LIVES - 1)))


class Recorder:
    """A Receiver of node 1 in cluster 0xc1, which knows peer 2 and removed 7."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.is_initialized = True
        self.leads = True
        self.error: Exception | None = None
        self.life = LIFE
        self.lives: dict[int, Life] = {}
        self.wrong: list[str] = []
        self.claims: list[tuple[str, int]] = []
        self.heard_addrs: set[tuple[int, str]] = set()

    def check_process(self) -> None:
        pass

    def identity(self) -> Identity | None:
        return Identity(CLUSTER, NODE, lineage_of(self.life), "node.example:1") if self.is_initialized else None

    def join_proof(self) -> str:
        return ""

    def hear_from(self, node_id: int, claim: Claim, addr: str, proves_now: bool) -> str:
        if addr:
            self.heard_addrs.add((node_id, addr))
        life = claim.life
        latest = self.latest_life(node_id)
        if life.counter < latest.counter:
            return "void" if proves_now else "late"
        if life.counter == latest.counter and life != latest:
            return "void"
        self.lives[node_id] = life
        return {PEER: "member", 7: "removed"}.get(node_id, "unknown")

    def latest_life(self, node_id: int) -> Life:
        return self.lives.get(node_id, Life())

    def addr_of(self, node_id: int) -> str | None:
        return "peer.example:1" if node_id == PEER else None

    def receive(self, from_id: int, messages: Sequence[Message]) -> list[Message]:
        if self.error is not None:
            raise self.error
        self.calls.append((from_id, list(messages)))
        return [Message(MessageKind.APPEND_REPLY, from_id, NODE, term=1, index=len(messages))]

    def receive_chunk(self, from_id: int, chunk: SnapshotChunk) -> tuple[int, list[Message]]:
        self.calls.append((from_id, chunk))
        return chunk.offset + len(chunk.data), []

    def admit(self, request: JoinRequest) -> JoinReply:
        self.calls.append(request)
        return JoinReply(5, CLUSTER)

    def form(self, question: Question) -> founding.Answer:
        self.calls.append(question)
        return founding.Answer("node.example:1", Standing.UNLISTED, round=question.round)

    def hand_over(self, to: str) -> None:
        self.calls.append(to)
        if not self.leads:
            raise Problem(409, "not_transferred", "this node does not lead")

    def check_leader(self) -> None:
        if not self.leads:
            raise Problem(421, "not_leader", "ask the leader", leader="leader.example:9")

    def status(self) -> dict[str, object]:
        return {"role": "leader"}

    def metrics(self) -> tuple[str, bytes]:
        if self.error is not None:
            raise self.error
        return "text/plain; version=1.0.0; charset=utf-8", b"raftsvc_live 1.0\n"

    def is_live(self) -> bool:
        return True

    def is_ready(self) -> bool:
        return self.is_initialized

    def conditions(self) -> Sequence[str]:
        return self.wrong

    def note_claim(self, cluster: str, from_id: int) -> None:
        self.claims.append((cluster, from_id))


def make_app(recorder: Recorder, secret: Any = SECRET, **options: Any) -> App:
    auth = Authenticator(secret, options.get("judge"), options.get("mutual_tls", False), options.get("insecure", False))
    return App(recorder, auth, bearers=options.get("bearers", ()))


class Answer:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def code(self) -> str:
        assert self.headers["Content-Type"] == "application/problem+json"
        fields = json.loads(self.body)
        assert fields["status"] == self.status and set(fields) >= {"type", "title", "detail", "code"}
        return str(fields["code"])


def call(app: App, environ: dict[str, Any]) -> Answer:
    """Call the WSGI callable as a server does, and check that it read its whole body."""
    got: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> None:
        got[:] = [int(status.split()[0]), dict(headers)]

    body = b"".join(app(environ, start_response))
    assert got[1]["Content-Length"] == str(len(body)) or environ["REQUEST_METHOD"] == "HEAD"
    return Answer(got[0], got[1], body)


def envelope_of(path: str, **changes: str) -> Envelope:
    """Of a request of node 2 to node 1 which nobody has seen yet."""
    values = {
        "method": "POST",
        "path": path,
        "version": PROTOCOL_VERSION,
        "cluster": f"{CLUSTER:016x}",
        "sender": str(PEER),
        "to": str(NODE),
        "part": "",
        "life": str(PEER_LIFE),
        "addr": "peer.example:1",
        "epoch": str(LIFE),
        "number": str(next(_numbers)),
    }
    assert set(changes) <= set(values)
    return Envelope(**{**values, **changes})


def request(path: str, body: bytes, secret: Any = SECRET, **changes: Any) -> dict[str, Any]:
    """The environ of a signed request of node 2; `changes` alter it before it is signed, `raw_...` after."""
    raw = {k[4:]: v for k, v in changes.items() if k.startswith("raw_")}
    envelope = envelope_of(path, **{k: v for k, v in changes.items() if not k.startswith("raw_") and k != "judge"})
    mac = Authenticator(secret, None, False).sign(envelope, body) if secret else ""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": envelope.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": f"/{path}",
        "CONTENT_TYPE": CONTENT_TYPE,
        "CONTENT_LENGTH": str(len(body)),
        "REMOTE_ADDR": "127.0.0.1",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "127.0.0.1:8001",
        "wsgi.input": io.BytesIO(body),
    }
    for name, value in {**envelope.headers(), AUTH_HEADER: mac}.items():
        environ["HTTP_" + name.upper().replace("-", "_")] = value
    for name, value in raw.items():
        if value is None:
            environ.pop(name, None)
        else:
            environ[name] = value
    return environ


def message(**fields: Any) -> Message:
    values = {"kind": MessageKind.APPEND, "to_id": NODE, "from_id": PEER, "term": 1, **fields}
    return Message(**values)
