"""Records and segments of the log as bytes, and what a crash may have left of a record.

    head    magic and version, cluster id, node id, segment number, first index, size of the
            segment, last CRC of the segment before (the closing one aside), CRC-32 of the head
    record  length of the payload (4), type (1), how many sectors of the payload are
            all zero (3), how many bytes of the segment were durable before this
            write (4), CRC-32 (4), CRC-32 of the fields before, seeded with the
            record's offset and the segment's salt (4); payload; a byte 0xA5; zeros up to a
            multiple of 8

A record's CRC covers its fields and payload and continues that of the record
before, across segments: nothing can be missing or misplaced unnoticed.

The salt is the CRC of the segment's head.  So no value that an application writes can
look like the head of a record at the place where it comes to stand: it would have to
know the ids of cluster and node, and every CRC before.

Values only: nothing here touches a disk.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Final, NamedTuple
from zlib import crc32

from raftsvc.core.messages import Lineage
from raftsvc.errors import REPLACE_MEMBER
from raftsvc.process import give_way

SECTOR_BYTES: Final = 512
MAGIC: Final = b"raftwal"
VERSION: Final = b"6"
SEGMENT_HEAD: Final = struct.Struct(">7scQQQQIII")
HARD_STATE: Final = struct.Struct(">QQQQ")
MARK: Final = struct.Struct(">QQ")
ENTRIES, STATE, SNAPSHOT_MARK, CLOSING, LIFE = 1, 2, 3, 4, 5
"""Types of records."""
_KINDS: Final = frozenset((ENTRIES, STATE, SNAPSHOT_MARK, CLOSING, LIFE))
ADVICE: Final = f"{REPLACE_MEMBER} Do not delete parts of the log."
_STRETCH_BYTES: Final = 64 * 1024  # searched between two looks at whether another thread waits
_ZERO_SECTOR: Final = bytes(SECTOR_BYTES)
_ZEROS: Final = bytes(64 * 1024)
_FIELDS: Final = struct.Struct(">IIII")
_RECORD_HEAD: Final = struct.Struct(">IIIII")
RECORD_HEAD_BYTES: Final = _RECORD_HEAD.size
END_MARK: Final = b"\xa5"
"""What ends a record, so that its last sector is never all zero."""
_ENDS: Final = tuple(END_MARK + bytes(padding) for padding in range(8))


def _aligned(size: int) -> int:
    return -(-size // 8) * 8


def record_size(payload_size: int) -> int:
    """How many bytes a record with such a payload takes."""
    return _aligned(_RECORD_HEAD.size + payload_size + len(END_MARK))


START: Final = _aligned(SEGMENT_HEAD.size)
"""Offset of a segment's first record."""
BODY: Final = START + record_size(HARD_STATE.size) + record_size(MARK.size) + record_size(len(Lineage().encode()))
"""Offset of a segment's first appended record, behind the three that it begins with."""
CLOSING_BYTES: Final = record_size(0)


class Record(NamedTuple):
    """One record that was read.

    durable: how many bytes of the segment were so when it was written.
    chain:   its CRC, which the next one continues.
    end:     where the next one begins.
    mark_at: where its end mark is missing, though the rest is whole; else 0.
    """

    kind: int
    payload: bytes
    durable: int
    chain: int
    end: int
    mark_at: int = 0


def is_zero(data: bytes, start: int = 0) -> bool:
    """Whether `data` is all zeros from `start` on."""
    # Compared in pieces: of what a segment has left, some 16 MB, it takes 2 ms, and `strip` 80.
    whole = start + (len(data) - start) // len(_ZEROS) * len(_ZEROS)
    return all(data.startswith(_ZEROS, piece) for piece in range(start, whole, len(_ZEROS))) and not data[whole:].strip(
        b"\x00"
    )


def _zero_sectors(data: bytes, offset: int) -> int:
    """How many whole sectors are all zero in `data`, which lies at `offset` of its file."""
    if _ZERO_SECTOR not in data:
        return 0
    first = -offset % SECTOR_BYTES
    return sum(
        [data.startswith(_ZERO_SECTOR, start) for start in range(first, len(data) - SECTOR_BYTES + 1, SECTOR_BYTES)]
    )


def encode_record(kind: int, payload: bytes, offset: int, durable: int, chain: int, salt: int) -> tuple[bytes, int]:
    """A record for `offset`, and the chained CRC after it."""
    size = len(payload)
    kind_and_zeros = kind << 24
    if size >= SECTOR_BYTES:
        kind_and_zeros |= _zero_sectors(payload, offset + RECORD_HEAD_BYTES)
    chain = crc32(payload, crc32(_FIELDS.pack(size, kind_and_zeros, durable, 0), chain))
    fields = _FIELDS.pack(size, kind_and_zeros, durable, chain)
    head_crc = crc32(fields, offset ^ salt)
    end = _ENDS[-(RECORD_HEAD_BYTES + size + len(END_MARK)) % 8]
    return b"".join((fields, head_crc.to_bytes(4, "big"), payload, end)), chain


def closing_record(offset: int, chain: int, salt: int) -> bytes:
    """The record that closes a segment at `offset`; everything before it is durable."""
    return encode_record(CLOSING, b"", offset, offset, chain, salt)[0]


def read_record(data: bytes, offset: int, chain: int, salt: int) -> Record | str | None:
    """The record at `offset`, or what is wrong with it; None at the end of the log."""
    start = offset + _RECORD_HEAD.size
    head = data[offset:start]
    if not head.strip(b"\x00"):
        # Nothing was written here.  If something was behind, it is torn or damaged.
        return None if is_zero(data, offset) else "data behind the end of the log"
    if len(head) < _RECORD_HEAD.size:
        return "a record's head is cut short"
    size, kind_and_zeros, durable, crc, head_crc = _RECORD_HEAD.unpack(head)
    kind = kind_and_zeros >> 24
    if head_crc != crc32(head[:-4], offset ^ salt) or kind not in _KINDS:
        return "a record's head does not match its checksum"
    stop = start + size
    end = offset + record_size(size)
    if end > len(data):
        return "a record is cut short"
    payload = data[start:stop]
    if crc32(payload, crc32(_FIELDS.pack(size, kind_and_zeros, durable, 0), chain)) != crc:
        return "a record's checksum does not match"
    if data[stop:end] != _ENDS[end - stop - 1]:
        if is_zero(data, stop):
            return Record(kind, payload, durable, crc, end, stop)  # by its CRC nothing that counts is lost
        return "a record's end does not match"
    return Record(kind, payload, durable, crc, end)


def is_torn(data: bytes, offset: int, salt: int) -> bool:
    """Whether a crash before a sync explains the bad record at `offset`.

    The process may have been killed in the middle of the write: then everything from some
    byte on is zero, and what comes before that is whole.  Or the power went: then any of
    its sectors are zero.  In neither case does a later record say that this one was durable.
    """
    head = data[offset : offset + _RECORD_HEAD.size].ljust(_RECORD_HEAD.size, b"\x00")
    size, kind_and_zeros, _, _, head_crc = _RECORD_HEAD.unpack(head)
    written_end = len(data.rstrip(b"\x00"))  # of all that is there
    if head_crc == crc32(head[:-4], offset ^ salt):
        mark = offset + _RECORD_HEAD.size + size  # every record ends with a byte that is not zero
        stop = offset + record_size(size)
        searched = stop  # what is in its payload is no record, whatever it looks like
        written_zeros = kind_and_zeros & 0xFFFFFF
    else:  # how far it went is unknown: look at its head
        mark = offset + _RECORD_HEAD.size
        stop = min(mark + -mark % SECTOR_BYTES, len(data))
        searched = offset + 8
        written_zeros = 0
    if stop > len(data):
        return False  # no write goes beyond its segment
    if _proves_durable(data, searched, written_end, offset, salt):
        return False
    in_first = -offset % SECTOR_BYTES
    if 0 < in_first < _RECORD_HEAD.size and is_zero(head[in_first:]):
        return True  # a start was cutting it off, and of its head only the second sector was
    if written_end <= mark or is_zero(head):
        return True  # zero from some byte on; or from its first on, by a start that was cutting it off, up to some byte
    borders = [offset, *range(offset - offset % SECTOR_BYTES + SECTOR_BYTES, stop, SECTOR_BYTES), stop]
    zero_sectors = sum([is_zero(data[start:end]) for start, end in pairwise(borders)])
    return zero_sectors > int(written_zeros)


def _proves_durable(data: bytes, start: int, stop: int, offset: int, salt: int) -> bool:
    """Whether the head of a record between `start` and `stop` says that the one at `offset` was durable before it."""
    for first in range(start, stop - 4, _STRETCH_BYTES):
        give_way()
        for later in range(first, min(first + _STRETCH_BYTES, stop - 4), 8):
            if data[later + 4] in _KINDS:  # perhaps the head of a record
                head = data[later : later + _RECORD_HEAD.size].ljust(_RECORD_HEAD.size, b"\x00")
                _, _, durable, _, head_crc = _RECORD_HEAD.unpack(head)
                if head_crc == crc32(head[:-4], later ^ salt) and offset < durable <= later:
                    return True
    return False


def is_torn_closing(data: bytes, offset: int, chain: int, salt: int) -> bool:
    """Whether all that `data` has from `offset` on is what reached the disk of the record that closes it."""
    record = closing_record(offset, chain, salt)
    end = offset + len(record)
    if not is_zero(data, end):
        return False
    found = data[offset:end]
    if record.startswith(found.rstrip(b"\x00")):
        return True  # the process was killed in the middle of the write
    border = min(end, offset + SECTOR_BYTES - offset % SECTOR_BYTES)
    return all(
        record[start - offset : stop - offset].startswith(data[start:stop].rstrip(b"\x00"))
        for start, stop in ((offset, border), (border, end))
    )
