"""Frames: messages as they travel on a stream, a long-lived response that one node holds open on another.

A frame is a head, a tag and a body.  The head has the length of the body, whose
top bit says that the body goes on in the next frame, and the number of the frame.
The first frame is the hello, whose body is a nonce of the server; an empty one
keeps a quiet stream alive; any other body is messages.

The tag binds each frame to its place in its own stream: with a secret it is an
HMAC under a key that both nonces, both nodes and the cluster went into, without
one it is a checksum.  So nothing can be altered, repeated, left out or moved.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from collections.abc import Callable
from typing import Final
from zlib import crc32

from raftsvc.core.messages import MalformedError
from raftsvc.transport.wire import MAX_BATCH_BYTES, MAX_BODY_BYTES

_HEAD: Final = struct.Struct(">IQ")
_HEAD_BYTES: Final = _HEAD.size
_CRC: Final = struct.Struct(">I")
_GOES_ON: Final = 1 << 31
_MAC_BYTES: Final = 16
_MAX_CHUNK_HEAD_BYTES: Final = 256
_HASH_BLOCK_BYTES: Final = 64
_HASH_PIECE_BYTES: Final = 2047
"""As much as hashlib takes at once without letting go of the interpreter,"""
_MAX_HELD_BYTES: Final = 64 * 1024
"""and of how much that is worth it: 50 µs."""
NONCE_BYTES: Final = 16
FRAME_BYTES: Final = 16 * 1024
"""A longer body is cut: who writes to a slow connection is seen to come on."""


def fresh_stream_nonce() -> bytes:
    """Names a stream and makes its key unique."""
    return secrets.token_bytes(NONCE_BYTES)


class Seal:
    """Makes the tags of one stream.

    HMAC-SHA-256 (RFC 2104) from its two hashes, each with the key in it already.  That
    is half the work of `hmac.digest`, which also lets go of the interpreter, and the
    thread that carries everybody's messages then queues for it behind every caller.
    """

    def __init__(self, key: bytes, nonce: bytes) -> None:
        """key: at most 64 bytes; empty for a mere checksum."""
        self._seed = crc32(nonce)
        self.tag_bytes = _MAC_BYTES if key else _CRC.size
        padded = key.ljust(_HASH_BLOCK_BYTES, b"\x00")
        self._inner = hashlib.sha256(bytes([byte ^ 0x36 for byte in padded])) if key else None
        self._outer = hashlib.sha256(bytes([byte ^ 0x5C for byte in padded]))

    def tag(self, head: bytes, body: bytes) -> bytes:
        if self._inner is None:
            return _CRC.pack(crc32(body, crc32(head, self._seed)))
        inner = self._inner.copy()
        if len(head) + len(body) <= _HASH_PIECE_BYTES:
            inner.update(head + body)
        else:
            inner.update(head)
            piece_bytes = _HASH_PIECE_BYTES if len(body) <= _MAX_HELD_BYTES else len(body)
            for start in range(0, len(body), piece_bytes):
                inner.update(body[start : start + piece_bytes])
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.digest()[:_MAC_BYTES]


class FrameWriter:
    """The serving end of one stream."""

    def __init__(self, seal: Seal) -> None:
        self._seal = seal
        self._number = 0

    def encode(self, body: bytes) -> list[bytes]:
        """The frame for `body`; several if it is too long for one."""
        if len(body) <= FRAME_BYTES:
            return [self._frame(body, len(body))]
        pieces = [body[start : start + FRAME_BYTES] for start in range(0, len(body), FRAME_BYTES)]
        last = pieces.pop()
        return [*(self._frame(piece, len(piece) | _GOES_ON) for piece in pieces), self._frame(last, len(last))]

    def _frame(self, body: bytes, length: int) -> bytes:
        head = _HEAD.pack(length, self._number)
        self._number += 1
        return b"".join((head, self._seal.tag(head, body), body))


class FrameReader:
    """The receiving end of one stream: bytes in, however they were cut; whole bodies out."""

    def __init__(self, make_seal: Callable[[bytes], Seal]) -> None:
        """make_seal: from the server's nonce."""
        self._make_seal = make_seal
        self._seal: Seal | None = None
        self._overhead = _HEAD_BYTES + make_seal(bytes(NONCE_BYTES)).tag_bytes
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._wanted_bytes = self._overhead
        self._number = 0
        self._parts: list[bytes] = []
        self._parts_bytes = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies that are whole by now, the hello's included.

        Raises MalformedError, after which the stream is of no use.
        """
        if self._pending:
            self._pending.append(data)
            self._pending_bytes += len(data)
            if self._pending_bytes < self._wanted_bytes:
                return []  # joined once, not with every piece
            data = b"".join(self._pending)
            self._pending.clear()
        self._wanted_bytes = overhead = self._overhead
        bodies: list[bytes] = []
        offset = 0
        size = len(data)
        while size - offset >= overhead:
            length, number = _HEAD.unpack_from(data, offset)
            goes_on = length & _GOES_ON
            length ^= goes_on
            # Before anything is kept for it.
            if length > MAX_BODY_BYTES or self._parts_bytes + length > MAX_BATCH_BYTES:
                raise MalformedError("a frame is too long")
            if number != self._number:
                raise MalformedError(f"frame {number} came in the place of frame {self._number}")
            start = offset + overhead
            stop = start + length
            if stop > size:
                self._wanted_bytes = stop - offset
                break
            body = data[start:stop]
            middle = offset + _HEAD_BYTES
            self._verify(data[offset:middle], data[middle:start], body)
            self._number += 1
            offset = stop
            if goes_on:
                if not body:
                    raise MalformedError("a frame that goes on is empty")
                self._parts.append(body)
                self._parts_bytes += length
                continue
            if self._parts:
                body = b"".join((*self._parts, body))
                self._parts.clear()
                self._parts_bytes = 0
            bodies.append(body)
        if offset < size:
            self._pending.append(data[offset:])
            self._pending_bytes = size - offset
        return bodies

    def _verify(self, head: bytes, tag: bytes, body: bytes) -> None:
        seal = self._seal
        if seal is None:
            if len(body) != NONCE_BYTES:
                raise MalformedError("a stream begins with a nonce")
            seal = self._seal = self._make_seal(body)
        if not hmac.compare_digest(seal.tag(head, body), tag):
            raise MalformedError(f"frame {self._number} is not what was sent")


class ChunkDecoder:
    """Undoes HTTP's chunked transfer coding (RFC 9112, section 7.1), whatever pieces it comes in."""

    def __init__(self) -> None:
        self._pending = b""
        self._left = 0  # bytes of the present chunk, its line end included
        self.is_over = False

    def feed(self, data: bytes) -> bytes:
        """What the chunks in `data` hold.  Raises MalformedError."""
        if self._pending:
            data, self._pending = self._pending + data, b""
        contents: list[bytes] = []
        offset = 0
        while offset < len(data) and not self.is_over:
            if self._left > 2:
                content = data[offset : offset + self._left - 2]
                contents.append(content)
                offset += len(content)
                self._left -= len(content)
            elif self._left:
                end = data[offset : offset + self._left]
                if not b"\r\n"[2 - self._left :].startswith(end):
                    raise MalformedError("a chunk does not end with its line")
                offset += len(end)
                self._left -= len(end)
            else:
                stop = data.find(b"\r\n", offset)
                if stop < 0:
                    self._pending = data[offset:]
                    if len(self._pending) > _MAX_CHUNK_HEAD_BYTES:
                        raise MalformedError("the head of a chunk is too long")
                    break
                size = _chunk_bytes(data[offset:stop])
                offset = stop + 2
                end_of_chunk = offset + size
                if size and data[end_of_chunk : end_of_chunk + 2] == b"\r\n":  # all of it is there, as it mostly is
                    contents.append(data[offset:end_of_chunk])
                    offset = end_of_chunk + 2
                else:
                    self._left = size + 2
                    self.is_over = not size
        return contents[0] if len(contents) == 1 else b"".join(contents)


def _chunk_bytes(head: bytes) -> int:
    digits = head.partition(b";")[0].strip()
    if not 0 < len(digits) <= 8 or digits.strip(b"0123456789abcdefABCDEF"):
        raise MalformedError("a chunk has no length")
    return int(digits, 16)
