"""What an entry of kind NORMAL says to the machine: an operation, whose it is, and its data.

Envelope: op (1 byte), then four numbers of 8 bytes, which mean

    INSTRUCTION, LIST  the session's id and nonce, number, low; the data follows
    PIECE              the same; then, of 8 bytes each, the number of what has to be settled before this
                       begins (0: nothing), offset, size of the whole; op of the whole (1), the part
    OPEN               member, nonce, counter of its start (0: a session that is not the owner's), index; then,
                       of a process that applies, the versions that its code knows
    CLOSE              the session's id and nonce, 0, 0
    VOID               member, 0, 0, 0
    ANEW               the id of the cluster that this one goes on from, where its history ended, 0, 0: it was made of a
                       backup, or of what a member had, and no process that had anything there is of this one
    CLIENT             the same as INSTRUCTION, of the session of who carries it; what follows is an envelope
                       once more, what a connected client brought, which has a session of its own: an
                       INSTRUCTION, or
                         OPEN   0, nonce, 0, 0: to be answered with the session's id
                         CLOSE  the session's id and nonce, 0, 0

A LIST is several instructions: how many (2 bytes), then each one's length (4) and bytes.  All
integers are big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from raftsvc.core.messages import ENTRY_OVERHEAD_BYTES, Entry
from raftsvc.core.versions import Versions

ENVELOPE: Final = struct.Struct(">BQQQQ")
ENVELOPE_BYTES: Final = ENVELOPE.size
"""Bytes that an envelope adds to an instruction."""
INSTRUCTION_OFFSET: Final = ENTRY_OVERHEAD_BYTES + ENVELOPE_BYTES
"""Where, in an entry, what follows the envelope begins."""
INSTRUCTION, OPEN, VOID, PIECE, LIST, CLOSE, CLIENT, ANEW = 1, 2, 3, 4, 5, 6, 7, 8
MAX_LISTED: Final = 1000
"""Instructions in one list."""

_PLACE_IN_WHOLE: Final = struct.Struct(">QQQB")
PIECE_OVERHEAD_BYTES: Final = ENVELOPE_BYTES + _PLACE_IN_WHOLE.size
_COUNT: Final = struct.Struct(">H")
_LENGTH: Final = struct.Struct(">I")


def wrap(op: int, session_id: int, nonce: int, number: int, low: int, data: bytes) -> bytes:
    """The data of an entry that carries an INSTRUCTION or a LIST as `number` of a session; lower than `low` is settled.

    The instructions of a list have the numbers from `number` on.
    """
    return ENVELOPE.pack(op, session_id, nonce, number, low) + data


def wrap_piece(
    op: int,
    session_id: int,
    nonce: int,
    number: int,
    low: int,
    previous: int,
    offset: int,
    whole_bytes: int,
    piece: bytes,
) -> bytes:
    """The data of an entry that carries a part of `whole_bytes` of what `wrap` would carry whole.

    previous: the number of the one in pieces that has to be settled before this begins; 0: none.
    """
    envelope = ENVELOPE.pack(PIECE, session_id, nonce, number, low)
    return b"".join((envelope, _PLACE_IN_WHOLE.pack(previous, offset, whole_bytes, op), piece))


def wrap_open(member: int, nonce: int, counter: int, index: int, versions: Versions | None = None) -> bytes:
    """The data of an entry that opens a session of `member`, asked for when `index` was applied there.

    nonce:   random, by which who asked knows the session again.
    counter: of the member's start, whose nonce this is then; 0 for a session that is not the owner's.
    versions: what the code of that process knows; None for one that applies nothing.
    """
    return ENVELOPE.pack(OPEN, member, nonce, counter, index) + (versions.encode() if versions is not None else b"")


def wrap_close(session_id: int, nonce: int) -> bytes:
    """The data of an entry that closes a session."""
    return ENVELOPE.pack(CLOSE, session_id, nonce, 0, 0)


def wrap_client_open(nonce: int) -> bytes:
    """What opens a session of a connected client, under CLIENT."""
    return ENVELOPE.pack(OPEN, 0, nonce, 0, 0)


def wrap_void(member: int) -> bytes:
    """The data of an entry after which no life of `member` counts any more."""
    return ENVELOPE.pack(VOID, member, 0, 0, 0)


def wrap_anew(cluster_id: int, index: int) -> bytes:
    """The data of the first entry of a cluster that goes on from what `cluster_id` had at `index`."""
    return ENVELOPE.pack(ANEW, cluster_id, index, 0, 0)


class Part(NamedTuple):
    """A part of `whole_bytes`; see `wrap_piece`."""

    previous: int
    offset: int
    whole_bytes: int
    op: int
    data: bytes


def read_piece(data: bytes, start: int = 0) -> Part | None:
    """The piece in what an entry carries, which begins at `start`; None if it carries none."""
    begin = start + PIECE_OVERHEAD_BYTES
    if len(data) < begin or data[start] != PIECE:
        return None
    previous, offset, whole_bytes, op = _PLACE_IN_WHOLE.unpack_from(data, start + ENVELOPE_BYTES)
    return Part(previous, offset, whole_bytes, op, data[begin:])


def read_envelope(data: bytes) -> tuple[int, int, int]:
    """Session, nonce and number of the instruction, list or piece that an entry carries."""
    _, session_id, nonce, number, _ = ENVELOPE.unpack_from(data)
    return session_id, nonce, number


def whole_of(entry: Entry) -> bytes:
    """What follows the envelope."""
    return entry[INSTRUCTION_OFFSET:]


def encode_list(instructions: Sequence[bytes]) -> bytes:
    """The data of a LIST."""
    parts = [_COUNT.pack(len(instructions))]
    for instruction in instructions:
        parts += (_LENGTH.pack(len(instruction)), instruction)
    return b"".join(parts)


def decode_list(data: bytes) -> list[bytes] | None:
    """The instructions of a LIST; None if it is none that `encode_list` made."""
    if len(data) < _COUNT.size:
        return None
    (count,) = _COUNT.unpack_from(data)
    offset = _COUNT.size
    instructions = []
    for _ in range(count):
        if offset + _LENGTH.size > len(data):
            return None
        (length,) = _LENGTH.unpack_from(data, offset)
        offset += _LENGTH.size
        if offset + length > len(data):
            return None
        instructions.append(data[offset : offset + length])
        offset += length
    return instructions if 0 < count <= MAX_LISTED and offset == len(data) else None
