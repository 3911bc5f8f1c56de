"""What an owner and attached processes say to each other, as bytes on a socket of their host.

A frame is a head, a checksum and a body; the head has the version of the protocol, the kind of what is
said, and the length of the body, which is bounded before anything is made of it.  The checksum, of head and
body, is against mistakes; against strangers there are the socket's mode and who its peer is
(`raftsvc.attached.sockets`).  Nothing is evaluated.  What is not exactly what `encode` makes is refused, and
ends the connection: after a frame that cannot be read nobody knows where the next begins.

A process of another version of this protocol is refused by the first frame, with both versions named.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any
from zlib import crc32

from raftsvc.core.messages import MAX_NUMBER, MalformedError, decode_entries, entries_follow, index_of
from raftsvc.member.attachment import (
    WAITS,
    Answer,
    Ask,
    AskIndex,
    Entries,
    Farewell,
    Hello,
    Index,
    News,
    Prepare,
    Prepared,
    Propose,
    Said,
    Told,
    Unreadable,
    Wait,
    Welcome,
)

VERSION = 1
MAX_FRAME_BYTES = 8 * 1024 * 1024
"""Of a body: more than the longest entry, which is never cut."""
MAX_TEXT_BYTES = 4096
MAX_PROPOSALS = 100_000
MAX_PICTURE_BYTES = 4 * 1024 * 1024
"""Of what is asked or told."""

_MAGIC = 0x5257
_HEAD = struct.Struct(">HBBI")
_CRC = struct.Struct(">I")
_HELLO = struct.Struct(">IQQQIQ")
_WELCOME = struct.Struct(">QQI?")
_CONTEXT = struct.Struct(">Q")
_ANSWER = struct.Struct(">QB")
_INDEX = struct.Struct(">QQ")
_NEWS = struct.Struct(">QQQ????QIQIH")
_LENGTH = struct.Struct(">I")
_WAIT = struct.Struct(">IB")
_ASK = struct.Struct(">QB")
_FAREWELL = struct.Struct(">I")
_PREPARED = struct.Struct(">?")
HEAD_BYTES = _HEAD.size + _CRC.size


def encode(said: Said) -> bytes:
    """The frame that says it."""
    kind, body = _encode_body(said)
    if len(body) > MAX_FRAME_BYTES:  # who makes it keeps to the bound
        raise ValueError(f"{type(said).__name__} has {len(body)} bytes, of at most {MAX_FRAME_BYTES}")
    head = _HEAD.pack(_MAGIC, VERSION, kind, len(body))
    return b"".join((head, _CRC.pack(crc32(body, crc32(head))), body))


def _encode_body(said: Said) -> tuple[int, bytes]:
    if isinstance(said, Entries):
        return 3, b"".join(said.entries)
    if isinstance(said, Propose):
        parts = [_CONTEXT.pack(said.context)]
        for data in said.proposals:
            parts += (_LENGTH.pack(len(data)), data)
        return 4, b"".join(parts)
    if isinstance(said, Answer):
        return 5, _ANSWER.pack(*said)
    if isinstance(said, AskIndex):
        return 6, _CONTEXT.pack(said.context)
    if isinstance(said, Index):
        return 7, _INDEX.pack(*said)
    if isinstance(said, News):
        addr = _cut(said.leader_addr)
        return 8, _NEWS.pack(*said[:11], len(addr)) + addr + _cut(said.trouble)
    if isinstance(said, Hello):
        return 1, _HELLO.pack(*said[:6]) + _cut(said.likeness)
    if isinstance(said, Welcome):
        return 2, _WELCOME.pack(*said[:4]) + _cut(said.refusal)
    if isinstance(said, Wait):
        return 10, _WAIT.pack(*said[:2]) + _cut(said.why)
    if isinstance(said, Ask):
        what = _cut(said.what)[:255]
        return 11, _ASK.pack(said.context, len(what)) + what + said.arguments
    if isinstance(said, Told):
        return 12, _CONTEXT.pack(said.context) + said.result
    if isinstance(said, Unreadable):
        return 13, _cut(said.why)
    if isinstance(said, Prepare):
        return 14, b""
    if isinstance(said, Prepared):
        return 15, _PREPARED.pack(*said)
    return 9, _FAREWELL.pack(said.heir) + _cut(said.why)


def _cut(text: str) -> bytes:
    return text.encode(errors="replace")[:MAX_TEXT_BYTES].decode(errors="ignore").encode()


class Decoder:
    """Takes bytes as they come, and gives what they say."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def is_between(self) -> bool:
        """Whether no frame has begun and not ended."""
        return not self._buffer

    def feed(self, data: bytes) -> list[Said]:
        """All that is complete with `data`; raises MalformedError, after which there is nothing more."""
        buffer = self._buffer
        buffer += data
        said: list[Said] = []
        offset = 0
        while len(buffer) - offset >= HEAD_BYTES:
            magic, version, kind, length = _HEAD.unpack_from(buffer, offset)
            if magic != _MAGIC:
                raise MalformedError("what comes from the other process of this host is none of ours")
            if version != VERSION:
                raise MalformedError(
                    f"the other process of this host speaks version {version} of the protocol, and this one {VERSION}: "
                    "both are to run one version of raftsvc"
                )
            if length > MAX_FRAME_BYTES:
                raise MalformedError(f"a frame claims {length} bytes")
            end = offset + HEAD_BYTES + length
            if len(buffer) < end:
                break
            body = bytes(buffer[offset + HEAD_BYTES : end])
            (crc,) = _CRC.unpack_from(buffer, offset + _HEAD.size)
            if crc32(body, crc32(bytes(buffer[offset : offset + _HEAD.size]))) != crc:
                raise MalformedError("the checksum of a frame does not match")
            said.append(decode(kind, body))
            offset = end
        del buffer[:offset]
        return said


def decode(kind: int, body: bytes) -> Said:
    """What a body of that kind says; raises MalformedError."""
    read = _READERS.get(kind)
    if read is None:
        raise MalformedError(f"a frame of an unknown kind {kind}")
    try:
        return read(body)
    except (struct.error, UnicodeDecodeError) as error:
        raise MalformedError(f"a frame of kind {kind} does not decode: {error}") from error


def _numbers(fields: struct.Struct, body: bytes, is_all: bool = True) -> Sequence[Any]:
    if is_all and len(body) != fields.size:
        raise MalformedError(f"a frame of {len(body)} bytes, where {fields.size} are right")
    numbers = fields.unpack_from(body)
    if "?" in fields.format and fields.pack(*numbers) != body[: fields.size]:
        raise MalformedError("what is true or false is neither")
    if any(number > MAX_NUMBER for number in numbers):
        raise MalformedError("a number is too large")
    return numbers


def _text(data: bytes) -> str:
    if len(data) > MAX_TEXT_BYTES:
        raise MalformedError("a text is too long")
    return data.decode()


def _hello(body: bytes) -> Hello:
    pid, cluster_id, index, term, crc, nonce = _numbers(_HELLO, body, is_all=False)
    return Hello(pid, cluster_id, index, term, crc, nonce, _text(body[_HELLO.size :]))


def _entries(body: bytes) -> Entries:
    entries = decode_entries(body)
    if not entries or not index_of(entries[0]) or not entries_follow(entries, index_of(entries[0]) - 1):
        raise MalformedError("entries do not follow each other")
    return Entries(entries)


def _propose(body: bytes) -> Propose:
    (context,) = _numbers(_CONTEXT, body, is_all=False)
    proposals: list[bytes] = []
    offset = _CONTEXT.size
    while offset < len(body):
        (length,) = _LENGTH.unpack_from(body, offset)
        offset += _LENGTH.size
        if offset + length > len(body) or len(proposals) >= MAX_PROPOSALS:
            raise MalformedError("a proposal is cut short, or there are too many")
        proposals.append(body[offset : offset + length])
        offset += length
    return Propose(context, proposals)


def _welcome(body: bytes) -> Welcome:
    node_id, cluster_id, pid, is_current = _numbers(_WELCOME, body, is_all=False)
    return Welcome(node_id, cluster_id, pid, is_current, _text(body[_WELCOME.size :]))


def _news(body: bytes) -> News:
    *numbers, length = _numbers(_NEWS, body, is_all=False)
    rest = body[_NEWS.size :]
    if length > len(rest):
        raise MalformedError("an address is cut short")
    addr, trouble = _text(rest[:length]), _text(rest[length:])
    return News._make((*numbers, addr, trouble))


def _farewell(body: bytes) -> Farewell:
    (heir,) = _numbers(_FAREWELL, body, is_all=False)
    return Farewell(_text(body[_FAREWELL.size :]), heir)


def _prepare(body: bytes) -> Prepare:
    if body:
        raise MalformedError("there is something behind what is all")
    return Prepare()


def _wait(body: bytes) -> Wait:
    pid, reason = _numbers(_WAIT, body, is_all=False)
    if reason not in WAITS:
        raise MalformedError(f"an owner waits for what is unknown, {reason}")
    return Wait(pid, reason, _text(body[_WAIT.size :]))


def _ask(body: bytes) -> Ask:
    context, length = _numbers(_ASK, body, is_all=False)
    rest = body[_ASK.size :]
    if length > len(rest):
        raise MalformedError("a name is cut short")
    return Ask(context, _text(rest[:length]), _picture(rest[length:]))


def _told(body: bytes) -> Told:
    (context,) = _numbers(_CONTEXT, body, is_all=False)
    return Told(context, _picture(body[_CONTEXT.size :]))


def _picture(data: bytes) -> bytes:
    if len(data) > MAX_PICTURE_BYTES:
        raise MalformedError("what is asked or told is too long")
    return data


_READERS: dict[int, Callable[[bytes], Said]] = {
    1: _hello,
    2: _welcome,
    3: _entries,
    4: _propose,
    5: lambda body: Answer(*_numbers(_ANSWER, body)),
    6: lambda body: AskIndex(*_numbers(_CONTEXT, body)),
    7: lambda body: Index(*_numbers(_INDEX, body)),
    8: _news,
    9: _farewell,
    10: _wait,
    11: _ask,
    12: _told,
    13: lambda body: Unreadable(_text(body)),
    14: _prepare,
    15: lambda body: Prepared(*_numbers(_PREPARED, body)),
}
