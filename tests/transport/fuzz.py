"""Requests as an enemy makes them: valid ones, altered before or after they were signed, and plain garbage."""

from __future__ import annotations

import io
import random
from collections.abc import Iterable
from typing import Any, NamedTuple

from raftsvc.core.messages import Entry, EntryKind, Message, MessageKind, make_entry
from raftsvc.transport import SnapshotChunk
from raftsvc.transport.wire import JoinRequest, Part
from tests.transport.harness import CLUSTER, NODE, PEER, SECRET, message, request

METHODS = ["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "get", "POST ", "", "\u00e9"]
NUMBERS = [
    "",
    "0",
    "1",
    "2",
    "3",
    "7",
    "-1",
    "1e3",
    "2 ",
    "\u0665",
    "9" * 19,
    "9" * 20,
    str(2**63),
    str(2**64),
    "x" * 300,
]
LENGTHS = [
    "",
    "0",
    "1",
    "5",
    "-5",
    "+5",
    "1e3",
    "0x10",
    " 5",
    "9" * 18,
    "9" * 40,
    "9" * 5000,
    str(10**15),
    str(2**31),
    "\u00b2",
]
PATHS = ["/msg", "/snapshot", "/join", "/status", "/metrics", "/livez", "/readyz"]
STRANGE_PATHS = ["//msg", "/", "", "/MSG", "/msg/", "/../msg", "/\u00e9", "/msg;x", "/x" * 999]
SIGNED = ["VERSION", "CLUSTER", "FROM", "TO", "PART", "LIFE", "ADDR", "EPOCH", "NUMBER"]


class Attempt(NamedTuple):
    """One request, and whether it is what some peer signed."""

    environ: dict[str, Any]
    is_authentic: bool


class Stream:
    """A body that comes in pieces of any size, may break, and may never end."""

    def __init__(self, rng: random.Random, body: bytes) -> None:
        self._rng = rng
        self._file = io.BytesIO(body)
        self._breaks_after = rng.randrange(20) if rng.random() < 0.05 else 10**9
        self.is_endless = rng.random() < 0.02

    def read(self, size: int = -1) -> bytes:
        self._breaks_after -= 1
        if self._breaks_after < 0:
            raise self._rng.choice([OSError("gone"), EOFError(), ValueError("closed"), RuntimeError("the server's")])
        if self.is_endless:
            return bytes(size)
        return self._file.read(self._rng.randrange(1, size + 1) if size > 1 and self._rng.random() < 0.5 else size)


class Enemy:
    """Makes requests by seed, for a node whose cluster, ids and secret are the harness's unless given."""

    def __init__(self, seed: int, cluster: int = CLUSTER, node: int = NODE, secret: str = SECRET) -> None:
        self.rng = random.Random(seed)
        self._cluster = cluster
        self._node = node
        self._secret = secret

    # -- bodies

    def messages(self) -> bytes:
        rng = self.rng
        said = []
        for _ in range(rng.randrange(4)):
            kind = rng.choice(list(MessageKind))
            entries: list[Entry] = []
            index = rng.choice([0, 1, 5, 2**63 - 1, 2**64 - 1, rng.getrandbits(40)])
            if kind in (MessageKind.APPEND, MessageKind.PROPOSE):
                entries = [
                    make_entry(min(i, 2**64 - 1), rng.randrange(3), rng.choice(list(EntryKind)), rng.randbytes(9))
                    for i in range(index + 1, index + rng.randrange(1, 4))
                ]
            said.append(
                message(
                    kind=kind,
                    index=index,
                    entries=entries,
                    to_id=self._node,
                    term=rng.choice([0, 1, 9, 2**63, 2**64 - 1]),
                    commit=rng.choice([0, 2**64 - 1, 3]),
                    payload=rng.randbytes(5) if kind is MessageKind.SNAPSHOT else b"",
                )
            )
        return b"".join(m.encode() for m in said)

    def valid_body(self, path: str) -> bytes:
        rng = self.rng
        if path == "/msg":
            return self.messages()
        if path == "/snapshot":
            announced = Message(MessageKind.SNAPSHOT, self._node, PEER, term=3, index=9, log_term=2, payload=b"config")
            offset = rng.choice([0, 50, 2**40, 2**64 - 9])
            return SnapshotChunk(announced, min(offset + 8, 2**64 - 1), 5, offset, b"data").encode()
        if path == "/join":
            return JoinRequest("new.example:1", b"t" * 16).encode()
        return b""

    def spoil(self, body: bytes) -> bytes:
        rng = self.rng
        if not body or rng.random() < 0.1:
            return rng.randbytes(rng.randrange(60))
        raw = bytearray(body)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(raw) + 1)
            raw[at : at + rng.randrange(3)] = rng.choice([b"\xff" * 8, bytes(4), rng.randbytes(2), b"{", b'"', b""])
        return bytes(raw[: rng.randrange(len(raw) + 1)] if rng.random() < 0.3 else raw)

    # -- requests to the WSGI callable

    def attempt(self, prefix: str = "") -> Attempt:
        rng = self.rng
        path = rng.choice(PATHS)
        body = self.valid_body(path)
        if rng.random() < 0.4:
            body = self.spoil(body)
        if rng.random() < 0.01:
            body = rng.randbytes(rng.choice([600_000, 3_000_000]))
        changes: dict[str, Any] = {}
        for field in ("version", "cluster", "sender", "to", "part", "method"):
            if rng.random() < 0.07:
                changes[field] = self.strange(field)
        signer = rng.choice([self._secret, self._secret, self._secret, "another secret, long enough", None])
        changes = {"cluster": f"{self._cluster:016x}", "to": str(self._node), **changes}
        if path[1:] in ("status", "metrics", "livez", "readyz"):
            changes.setdefault("method", "GET")
        environ = request(path[1:], body, signer, **changes)
        environ["PATH_INFO"] = prefix + environ["PATH_INFO"]
        before = self.meaning(environ, body)
        delivered = self.tamper(environ, body, prefix) if rng.random() < 0.5 else body
        is_authentic = signer == self._secret and self.meaning(environ, delivered) == before
        environ["wsgi.input"] = Stream(rng, delivered)
        return Attempt(environ, is_authentic)

    def strange(self, field: str) -> str:
        rng = self.rng
        if field == "method":
            return rng.choice(METHODS)
        if field == "part" and rng.random() < 0.7:
            total = rng.choice([1, 30, 8 * 1024 * 1024, 8 * 1024 * 1024 + 1, 2**63])
            return Part(rng.randrange(3), rng.randrange(total), total).encode()
        if rng.random() < 0.2:
            return "".join(chr(rng.randrange(1, 0x3000)) for _ in range(rng.randrange(1, 30)))
        return rng.choice(NUMBERS)

    def meaning(self, environ: dict[str, Any], body: bytes) -> object:
        """What a signature vouches for."""
        word = environ["PATH_INFO"].rstrip("/").rpartition("/")[2]
        length = environ.get("CONTENT_LENGTH") or "0"
        body = body[: int(length)] if length.isascii() and length.isdigit() and len(length) < 19 else b""
        headers = [str(environ.get(f"HTTP_RAFT_{name}", ""))[:100] for name in SIGNED]
        return (environ["REQUEST_METHOD"], word, headers, environ.get("HTTP_RAFT_AUTH"), body)

    def tamper(self, environ: dict[str, Any], body: bytes, prefix: str) -> bytes:
        """Alter a request on its way; returns the body that then arrives."""
        rng = self.rng
        for _ in range(rng.randrange(1, 4)):
            what = rng.randrange(7)
            if what == 0:
                name = rng.choice(SIGNED).lower()
                environ[f"HTTP_RAFT_{name.upper()}"] = self.strange(name)
            elif what == 1:
                environ["REQUEST_METHOD"] = rng.choice(METHODS)
            elif what == 2:
                environ["CONTENT_LENGTH"] = rng.choice(LENGTHS)
            elif what == 3:
                environ["CONTENT_TYPE"] = rng.choice(["", "text/plain", "application/x-raftsvc; q=1", "\u00e9", ";"])
            elif what == 4:
                tail = rng.choice([*PATHS, *STRANGE_PATHS])
                environ["PATH_INFO"] = prefix + tail
            elif what == 5:
                body = self.spoil(body)
                if rng.random() < 0.8:
                    environ["CONTENT_LENGTH"] = str(len(body))
            else:
                mac = environ.get("HTTP_RAFT_AUTH", "")
                environ["HTTP_RAFT_AUTH"] = rng.choice(["", mac[:-1], mac.upper() + " ", "\u00e9" * 64, "0" * 10_000])
        return body

    # -- bytes to a socket

    def connection(self) -> list[bytes]:
        """What a client sends over one connection, piece by piece."""
        rng = self.rng
        sent = b"".join(self.raw_request() for _ in range(rng.choice([1, 1, 1, 2, 5])))
        if rng.random() < 0.2:
            sent = sent[: rng.randrange(len(sent) + 1)]
        if rng.random() < 0.2:
            at = rng.randrange(len(sent) + 1)
            sent = sent[:at] + rng.choice([b"\r\n", b"\x00", b"\n\n", rng.randbytes(5)]) + sent[at + 1 :]
        if rng.random() < 0.15 and len(sent) < 2000:
            return [sent[n : n + 7] for n in range(0, len(sent), 7)]
        return [sent]

    def raw_request(self) -> bytes:
        rng = self.rng
        chance = rng.random()
        if chance < 0.1:
            return rng.choice(
                [
                    rng.randbytes(50),
                    b"\r\n" * 40,
                    b"\x16\x03\x01\x02\x00\x01\x00" + rng.randbytes(40),
                    b"GET /raft/livez\r\n",
                    b"GET\r\n\r\n",
                    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                    b"GET / HTTP/9.9\r\n\r\n",
                    b"GET / HTTP/1.1.1\r\n\r\n",
                    b"GET / HTTP/-1.1\r\n\r\n",
                    b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
                    b"BREW / HTTP/1.1\r\n\r\n",
                    b"CONNECT a:1 HTTP/1.1\r\n\r\n",
                ]
            )
        attempt = self.attempt("/raft")
        environ = attempt.environ
        stream = environ["wsgi.input"]
        body = b"" if stream.is_endless else stream._file.read()
        target = environ["PATH_INFO"].encode("latin-1", "replace")
        lines = [b"%s %s HTTP/1.1" % (environ["REQUEST_METHOD"].encode("latin-1", "replace"), target)]
        if "HTTP_HOST" not in environ:
            lines.append(b"Host: x")
        for name, value in environ.items():
            if name.startswith("HTTP_"):
                header = name[5:].replace("_", "-").title()
                lines.append(f"{header}: {value}".encode("latin-1", "replace"))
        if environ.get("CONTENT_TYPE"):
            lines.append(b"Content-Type: " + environ["CONTENT_TYPE"].encode("latin-1", "replace"))
        if environ.get("CONTENT_LENGTH"):
            lines.append(b"Content-Length: " + environ["CONTENT_LENGTH"].encode("latin-1", "replace"))
        lines += self.strange_headers()
        return b"\r\n".join(lines) + b"\r\n\r\n" + body

    def strange_headers(self) -> Iterable[bytes]:
        rng = self.rng
        if rng.random() < 0.8:
            return []
        return rng.choice(
            [
                [b"Transfer-Encoding: chunked"],
                [b"Expect: 100-continue"],
                [b"Connection: close"],
                [b"Content-Length: 3"],
                [b"Content-Length : 4"],
                [b" folded"],
                [b"no colon"],
                [b": no name"],
                [b"X: " + b"y" * 70_000],
                [b"X-%d: y" % n for n in range(150)],
                [b"X-\xff\xfe: \x80\x81"],
                [b"Raft-From: 3", b"Raft-From: 2"],
            ]
        )
