"""What crosses the network besides the messages themselves: headers, problems, pieces of snapshots, joins.

Every length is checked before it is used.  A body holds at most MAX_BODY_BYTES,
which proxies let through; a batch that is larger, because one entry is, travels
in parts, and a snapshot as many pieces.
"""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Final, NamedTuple

from raftsvc.addresses import canonical_addr
from raftsvc.core.messages import (
    MAX_NUMBER,
    Claim,
    Life,
    Lineage,
    MalformedError,
    Message,
    MessageKind,
    decode_messages,
)
from raftsvc.core.versions import FIRST, Versions

PROTOCOL_VERSION: Final = "4"
"""Another one with each change of what messages and entries mean: members of two would apply one log differently."""
CONTENT_TYPE: Final = "application/x-raftsvc"
MAX_BODY_BYTES: Final = 512 * 1024
MAX_BATCH_BYTES: Final = 8 * 1024 * 1024
"""The most that parts may add up to, hence the largest entry."""
MAX_JOIN_BYTES: Final = 16 * 1024
SNAPSHOT_PIECE_BYTES: Final = 256 * 1024


_EXTRAS: Final = frozenset(
    {"leader", "challenge", "epoch", "lineage", "cluster", "node", "counter", "life", "addr", "proof"}
)
"""What an error answer may say besides its code and detail."""


class Problem(Exception):
    """A request is answered by an error.  `code` is stable; see RFC 9457 for the body's form."""

    def __init__(self, status: int, code: str, detail: str = "", **extra: str) -> None:
        super().__init__(f"{status} {code}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail
        self.extra = extra

    def encode(self) -> bytes:
        title = self.code.replace("_", " ").capitalize()
        body = {"type": "about:blank", "title": title, "status": self.status, "detail": self.detail, "code": self.code}
        return json.dumps({**body, **self.extra}).encode()


def decode_problem(status: int, body: bytes) -> Problem:
    """The problem in an error answer; code `unknown` if there is none."""
    try:
        fields = json.loads(body)
        code, detail = fields["code"], fields["detail"]
        extra = {key: value for key, value in fields.items() if isinstance(value, str) and key in _EXTRAS}
        if isinstance(code, str) and isinstance(detail, str):
            return Problem(status, code, detail, **extra)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return Problem(status, "unknown", "the answer is not one of raftsvc's")


class Identity(NamedTuple):
    """Who a node is, to other nodes."""

    cluster_id: int
    node_id: int
    lineage: Lineage
    addr: str

    @property
    def life(self) -> Life:
        """Which start of it goes on."""
        return self.lineage.life

    def claim(self, known: int | None = None) -> Claim:
        """What it says of itself to whom knows of its start number `known`; None: to whom knows of the last, maybe."""
        lineage = self.lineage
        if known is None:
            return Claim(lineage.life, lineage.at(lineage.counter - 1))
        return lineage.claim(known)

    @property
    def cluster(self) -> str:
        """The cluster as requests name it."""
        return f"{self.cluster_id:016x}"


class UnreachableError(Exception):
    """No authentic answer came; whether the request was acted on is unknown.

    status: of an answer that nobody vouches for; 0 if there was none.
    """

    def __init__(self, what: str = "", status: int = 0) -> None:
        super().__init__(what)
        self.status = status


class TooLargeError(UnreachableError):
    """Something on the way, a proxy most likely, refuses bodies of that size: 413, signed by nobody."""


class UnsignedError(UnreachableError):
    """An answer came, and no peer signed it.  `problem` is what it says, of which nobody knows who said it."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"status {problem.status}, and the answer is not signed by a peer", problem.status)
        self.problem = problem


class Part(NamedTuple):
    """Which part of a large batch a body is."""

    batch_id: int
    offset: int
    total_bytes: int

    def encode(self) -> str:
        return f"{self.batch_id} {self.offset} {self.total_bytes}"

    @classmethod
    def decode(cls, text: str) -> Part:
        """Raises MalformedError."""
        fields = text.split(" ")
        if len(fields) != 3 or not all(field.isascii() and field.isdigit() and len(field) < 20 for field in fields):
            raise MalformedError("Raft-Part does not decode")
        part = cls(*map(int, fields))
        if not part.offset < part.total_bytes <= MAX_BATCH_BYTES:
            raise MalformedError("Raft-Part is out of bounds")
        return part


_CHUNK: Final = struct.Struct(">QIQI")


class SnapshotChunk(NamedTuple):
    """A piece of a snapshot file, and the message that it is for."""

    message: Message
    size_bytes: int
    crc: int
    offset: int
    data: bytes

    def encode(self) -> bytes:
        message = self.message.encode()
        return _CHUNK.pack(self.size_bytes, self.crc, self.offset, len(message)) + message + self.data

    @classmethod
    def decode(cls, body: bytes) -> SnapshotChunk:
        """Raises MalformedError."""
        if len(body) < _CHUNK.size:
            raise MalformedError("a snapshot piece is cut short")
        size_bytes, crc, offset, length = _CHUNK.unpack_from(body)
        end = _CHUNK.size + length
        if end > len(body) or offset + len(body) - end > size_bytes:
            raise MalformedError("a snapshot piece is out of bounds")
        messages = decode_messages(body[_CHUNK.size : end])
        if len(messages) != 1 or messages[0].kind is not MessageKind.SNAPSHOT:
            raise MalformedError("a snapshot piece belongs to one SNAPSHOT message")
        return cls(messages[0], size_bytes, crc, offset, body[end:])


class JoinRequest(NamedTuple):
    """A node asks to become a member.

    token: names the node before it has an id; a repeated request finds the same membership.
    versions: what its code knows.
    """

    addr: str
    token: bytes
    versions: Versions = FIRST

    def encode(self) -> bytes:
        fields = {"addr": self.addr, "token": self.token.hex(), "versions": self.versions.encode().hex()}
        return json.dumps(fields).encode()

    @classmethod
    def decode(cls, body: bytes) -> JoinRequest:
        """Raises MalformedError."""
        fields = _decode_object(body)
        addr, token, versions = fields.get("addr"), fields.get("token"), fields.get("versions")
        if not isinstance(addr, str) or not isinstance(token, str) or not isinstance(versions, str):
            raise MalformedError("a join names an address, a token and versions")
        try:
            addr = canonical_addr(addr)
            raw = bytes.fromhex(token)
            known = Versions.decode(bytes.fromhex(versions))
        except ValueError as error:
            raise MalformedError(f"a join does not decode: {error}") from error
        if len(raw) != 16:
            raise MalformedError("a join token has 16 bytes")
        return cls(addr, raw, known)


def join_proof(token: bytes) -> str:
    """What a node that asks to join answers by whoever it is asked, until it belongs to a cluster.

    Only who was shown the token knows of whom that is.
    """
    return hashlib.sha256(b"raftsvc join\n" + token).hexdigest()


class JoinReply(NamedTuple):
    """The leader's answer to a join: the id that was given, and the cluster it is in."""

    node_id: int
    cluster_id: int

    def encode(self) -> bytes:
        return json.dumps({"node_id": str(self.node_id), "cluster_id": f"{self.cluster_id:016x}"}).encode()

    @classmethod
    def decode(cls, body: bytes) -> JoinReply:
        """Raises MalformedError."""
        fields = _decode_object(body)
        try:
            reply = cls(int(str(fields["node_id"])), int(str(fields["cluster_id"]), 16))
        except (KeyError, ValueError) as error:
            raise MalformedError("the answer to a join does not decode") from error
        if not 0 < reply.node_id <= MAX_NUMBER or not 0 < reply.cluster_id < 2**64:
            raise MalformedError("the answer to a join is out of bounds")
        return reply


def _decode_object(body: bytes) -> dict[str, object]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedError("not JSON") from error
    if not isinstance(fields, dict):
        raise MalformedError("not a JSON object")
    return fields


_NEXT: Final = struct.Struct(">Q")


def encode_chunk_reply(next_offset: int, replies: bytes) -> bytes:
    """The answer to a snapshot piece: the offset wanted next, then reply messages."""
    return _NEXT.pack(next_offset) + replies


def decode_chunk_reply(body: bytes) -> tuple[int, list[Message]]:
    """Raises MalformedError."""
    if len(body) < _NEXT.size:
        raise MalformedError("the answer to a snapshot piece is cut short")
    return int(_NEXT.unpack_from(body)[0]), decode_messages(body[_NEXT.size :])
