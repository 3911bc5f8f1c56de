"""The frames of a host's processes: what is said comes out as it went in, and nothing else comes out."""

from __future__ import annotations

import struct
from random import Random
from zlib import crc32

import pytest

from raftsvc.attached.frames import MAX_FRAME_BYTES, MAX_TEXT_BYTES, Decoder, encode
from raftsvc.core.messages import EntryKind, MalformedError, make_entry
from raftsvc.member.attachment import (
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

SAID: list[Said] = [
    Hello(17),
    Hello(2**31, 2**63 - 1, 5, 4, 2**32 - 1, 2**63 - 1, "how it is configured: é"),
    Welcome(1, 7, 99, True),
    Welcome(1, 7, 99, False, "it is of another cluster: é"),
    Entries([make_entry(5, 2, EntryKind.NORMAL, b"x" * 40, 3), make_entry(6, 2, EntryKind.EMPTY, b"", 9)]),
    Propose(2**62, [b"", b"abc", bytes(range(256))]),
    Propose(0, []),
    Answer(3, 0),
    Answer(3, 4),
    AskIndex(8),
    Index(8, 1000),
    News(),
    News(3, 2, 9, True, True, False, True, 8, 0xDEADBEEF, 7, 0xFEEDBEEF, "n2:8001", "StorageError: the disk is full"),
    News(3, 0, 9, is_removed=True),
    Farewell(),
    Farewell("the server is shutting down"),
    Farewell("the owner was stopped: é", 4711),
    Prepare(),
    Prepared(True),
    Prepared(False),
    Wait(99, 2, "the node is about to start"),
    Ask(5, "évict", b'{"addr": "n1"}'),
    Told(2**62, b'{"result": {}}'),
    Unreadable("snap: damaged at offset 0"),
]


def framed(kind: int, body: bytes, version: int = 1, magic: int = 0x5257) -> bytes:
    head = struct.pack(">HBBI", magic, version, kind, len(body))
    return head + struct.pack(">I", crc32(body, crc32(head))) + body


@pytest.mark.parametrize("said", SAID, ids=lambda said: type(said).__name__)
def test_what_is_said_comes_out_as_it_went_in(said: Said) -> None:
    assert Decoder().feed(encode(said)) == [said]


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_it_may_come_in_any_pieces(step: int) -> None:
    data = b"".join(map(encode, SAID))
    decoder, heard = Decoder(), []
    for start in range(0, len(data), step):
        heard += decoder.feed(data[start : start + step])
    assert heard == SAID
    assert decoder.is_between


@pytest.mark.parametrize("said", SAID, ids=lambda said: type(said).__name__)
def test_every_flipped_bit_is_noticed(said: Said) -> None:
    data = encode(said)
    for place in range(len(data)):
        for bit in range(8):
            altered = bytearray(data)
            altered[place] ^= 1 << bit
            decoder = Decoder()
            try:
                assert decoder.feed(bytes(altered)) == []
            except MalformedError:
                continue
            # It claims to be longer than it is: then what follows is taken for its end.
            with pytest.raises(MalformedError):
                decoder.feed(bytes(MAX_FRAME_BYTES))


@pytest.mark.parametrize(
    "data",
    [
        framed(3, b""),
        framed(3, make_entry(5, 2, EntryKind.NORMAL, b"x") + make_entry(7, 2, EntryKind.NORMAL, b"x")),
        framed(3, make_entry(5, 2, EntryKind.NORMAL, b"x", 9) + make_entry(6, 2, EntryKind.NORMAL, b"x", 3)),
        framed(3, make_entry(5, 2, EntryKind.NORMAL, b"x")[:-1]),
        framed(4, bytes(8) + struct.pack(">I", 5) + b"four"),
        framed(4, bytes(7)),
        framed(6, b"\xff" * 8),
        framed(7, bytes(15)),
        framed(7, bytes(17)),
        framed(8, bytes(37) + struct.pack(">H", 1)),
        framed(9, bytes(3)),
        framed(9, bytes(4) + b"\xff"),
        framed(2, bytes(20) + b"\x02"),
        framed(2, bytes(20) + b"\xff"),
        framed(1, bytes(39)),
        framed(1, bytes(40) + b"\xff"),
        framed(9, b"x" * (4 + MAX_TEXT_BYTES + 1)),
        framed(14, b"x"),
        framed(15, b""),
        framed(15, b"\x02"),
        framed(0, b""),
        framed(10, b""),
        struct.pack(">HBBI", 0x5257, 1, 9, MAX_FRAME_BYTES + 1) + bytes(4),
        framed(9, b"", magic=0x1603),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_what_is_not_exactly_a_frame_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        Decoder().feed(data)


def test_another_version_is_refused_with_both_named() -> None:
    with pytest.raises(MalformedError, match=r"version 2 .*this one 1"):
        Decoder().feed(framed(9, b"", version=2))


def test_a_text_that_is_too_long_is_cut_between_characters() -> None:
    (said,) = Decoder().feed(encode(Farewell("é" * MAX_TEXT_BYTES)))
    assert said == Farewell("é" * (MAX_TEXT_BYTES // 2))


def test_garbage_ends_in_one_error_and_nothing_else() -> None:
    random = Random(7)
    frames = [encode(said) for said in SAID]
    for _ in range(20_000):
        kind, body = random.randrange(15), bytearray(random.choice(frames)[12:])
        for _ in range(random.randrange(4)):
            if body and random.random() < 0.7:
                body[random.randrange(len(body))] = random.randrange(256)
            elif random.random() < 0.5:
                del body[random.randrange(len(body) + 1) :]
            else:
                body += random.randbytes(random.randrange(40))
        try:
            heard = Decoder().feed(framed(kind, bytes(body)))
        except MalformedError:
            continue
        assert [Decoder().feed(encode(said)) for said in heard] == [heard]
