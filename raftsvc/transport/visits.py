"""What crosses between a connected client and a member: requests, and the answers to them.

Request: what is asked (1 byte; its highest bit: of a key-value store, and of no other State), for how many milliseconds
(4), then what the kind of it says:

    HELLO, STATUS, READ   nothing
    LOOK, QUERY           what the State is asked: of what is applied there, or once that is current
    BRING                 an envelope and its data, see `raftsvc.member.envelopes`, under CLIENT
    COPY                  which copy of what is stored (16), zeros: one that begins now; from where on (8), all ones:
                          it is not read any more

The answer to BRING is the index of the entry (8), its time (8) and the outcome; to HELLO and STATUS it is JSON, to
QUERY and LOOK what the State said; to COPY which it is (16), how many bytes it has (8), the node's id (8) and some of
the bytes.  All integers are big-endian.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from raftsvc.core.messages import MalformedError
from raftsvc.transport.wire import MAX_BODY_BYTES

HELLO, STATUS, READ, LOOK, QUERY, BRING, COPY = 1, 2, 3, 4, 5, 6, 7

_OF_STORE: Final = 0x80
_HEAD: Final = struct.Struct(">BI")
_PLACE: Final = struct.Struct(">QQ")
_COPY: Final = struct.Struct(">16sQ")
_PIECE: Final = struct.Struct(">16sQQ")
_NOWHERE: Final = 2**64 - 1
NO_COPY: Final = bytes(16)
_MAX_TIMEOUT_MS: Final = 3_600_000
MAX_PAYLOAD_BYTES: Final = MAX_BODY_BYTES - _HEAD.size
"""Of a request."""
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
"""Of an answer over HTTP; one that has more is refused where it is made."""


class Visit(NamedTuple):
    """One request of a client.  of_store: it is written for the key-value store, and brought to no other State."""

    kind: int
    timeout: float
    payload: bytes = b""
    of_store: bool = False

    def encode(self) -> bytes:
        timeout_ms = min(max(int(self.timeout * 1000), 0), _MAX_TIMEOUT_MS)
        return _HEAD.pack(self.kind | (_OF_STORE if self.of_store else 0), timeout_ms) + self.payload

    @classmethod
    def decode(cls, body: bytes) -> Visit:
        """Raises MalformedError."""
        if len(body) < _HEAD.size:
            raise MalformedError("a client's request is cut short")
        head, timeout_ms = _HEAD.unpack_from(body)
        kind = head & ~_OF_STORE
        if not HELLO <= kind <= COPY or timeout_ms > _MAX_TIMEOUT_MS:
            raise MalformedError("a client's request does not decode")
        return cls(kind, timeout_ms / 1000, body[_HEAD.size :], head != kind)


def encode_place(index: int, time_ms: int, outcome: bytes) -> bytes:
    """The answer to BRING."""
    return _PLACE.pack(index, time_ms) + outcome


def decode_place(body: bytes) -> tuple[int, int, bytes]:
    """Index, time and outcome; raises MalformedError."""
    if len(body) < _PLACE.size:
        raise MalformedError("an outcome is cut short")
    index, time_ms = _PLACE.unpack_from(body)
    return index, time_ms, body[_PLACE.size :]


class Piece(NamedTuple):
    """The answer to COPY."""

    token: bytes
    size_bytes: int
    node_id: int
    data: bytes

    def encode(self) -> bytes:
        return _PIECE.pack(self.token, self.size_bytes, self.node_id) + self.data


def decode_piece(body: bytes) -> Piece:
    """Raises MalformedError."""
    if len(body) < _PIECE.size:
        raise MalformedError("a piece is cut short")
    token, size_bytes, node_id = _PIECE.unpack_from(body)
    return Piece(token, size_bytes, node_id, body[_PIECE.size :])


def encode_copy(token: bytes, offset: int | None) -> bytes:
    """What COPY asks; offset: None: it is not read any more."""
    return _COPY.pack(token, _NOWHERE if offset is None else offset)


def decode_copy(payload: bytes) -> tuple[bytes, int | None]:
    """Raises MalformedError."""
    if len(payload) != _COPY.size:
        raise MalformedError("a client's request does not decode")
    token, offset = _COPY.unpack(payload)
    return token, None if offset == _NOWHERE else offset
