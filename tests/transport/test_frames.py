"""The bytes of a stream: however they are cut, what was sent comes out; of what was touched, nothing does."""

from __future__ import annotations

import hashlib
import hmac
import random
import struct
from collections.abc import Callable

import pytest

from raftsvc.core.messages import MalformedError
from raftsvc.transport.auth import Authenticator, Envelope
from raftsvc.transport.frames import ChunkDecoder, FrameReader, FrameWriter, Seal, fresh_stream_nonce
from raftsvc.transport.wire import MAX_BATCH_BYTES, MAX_BODY_BYTES

BODIES = [b"first", b"", b"x" * 1000, b"", b"last"]
KEYS = pytest.mark.parametrize("key", [b"k" * 32, b""], ids=["authenticated", "checksummed"])


def seal(key: bytes, nonce: bytes) -> Seal:
    return Seal(key and key + nonce, nonce)


class Stream:
    """Both ends of one stream."""

    def __init__(self, key: bytes) -> None:
        self.nonce = fresh_stream_nonce()
        self.writer = FrameWriter(seal(key, self.nonce))
        self.reader = FrameReader(lambda nonce: seal(key, nonce))
        self.hello = self.writer.encode(self.nonce)[0]


def feed_all(feed: Callable[[bytes], list[bytes]], pieces: list[bytes]) -> list[bytes]:
    return [body for piece in pieces for body in feed(piece)]


def cut(data: bytes, rng: random.Random, longest: int) -> list[bytes]:
    pieces = []
    while data:
        size = rng.randint(1, longest)
        pieces.append(data[:size])
        data = data[size:]
    return pieces


@KEYS
@pytest.mark.parametrize("longest", [1, 20, 300, 10_000])
def test_bodies_come_out_as_they_went_in_however_the_bytes_are_cut(key: bytes, longest: int) -> None:
    stream = Stream(key)
    data = stream.hello + b"".join(frame for body in BODIES for frame in stream.writer.encode(body))
    assert feed_all(stream.reader.feed, cut(data, random.Random(longest), longest)) == [stream.nonce, *BODIES]


@pytest.mark.parametrize("size", [0, 1, 2047, 2048, 5000, 64 * 1024, 64 * 1024 + 1, MAX_BODY_BYTES])
@pytest.mark.parametrize("key", [b"k", b"k" * 32, b"k" * 64])
def test_a_tag_is_the_hmac_of_head_and_body(key: bytes, size: int) -> None:
    head, body = b"head", random.Random(size).randbytes(size)
    tag = hmac.new(key, head + body, hashlib.sha256).digest()[:16]
    assert Seal(key, b"nonce").tag(head, body) == tag
    assert Seal(key, b"nonce").tag(head, body) == tag, "a seal may be used again"


@KEYS
def test_a_body_too_long_for_one_frame_comes_in_several(key: bytes) -> None:
    stream = Stream(key)
    body = random.Random(1).randbytes(3 * MAX_BODY_BYTES + 5)
    frames = stream.writer.encode(body)
    assert max(len(frame) for frame in frames) <= MAX_BODY_BYTES + 64
    pieces = cut(stream.hello + b"".join(frames) + stream.writer.encode(b"next")[0], random.Random(2), 100_000)
    assert feed_all(stream.reader.feed, pieces) == [stream.nonce, body, b"next"]


def touched(frames: list[bytes], other: list[bytes]) -> dict[str, list[bytes]]:
    """What somebody on the way may make of the third of `frames`; `other` are those of another stream."""
    before, frame, after = frames[:2], frames[2], frames[3:]
    return {
        "repeated": [*before, frames[1], frame, *after],
        "left out": [*before, *after],
        "swapped": [*before, after[0], frame, *after[1:]],
        "moved from another stream": [*before, other[2], *after],
        "begun anew": [*before, frames[0], frame, *after],
        "lengthened": [*before, frame + b"x", *after],
        **{
            f"altered at byte {i}": [*before, frame[:i] + bytes([frame[i] ^ 1]) + frame[i + 1 :], *after]
            for i in range(len(frame))
        },
    }


@KEYS
def test_a_frame_that_was_touched_ends_the_stream_before_it_is_believed(key: bytes) -> None:
    def frames() -> tuple[Stream, list[bytes]]:
        stream = Stream(key)
        return stream, [stream.hello, *(stream.writer.encode(b"body %d" % n)[0] for n in range(4))]

    _, other = frames()
    _, sent = frames()
    for what, pieces in touched(sent, other).items():
        reader = FrameReader(lambda nonce: seal(key, nonce))
        bodies: list[bytes] = []
        try:
            for piece in pieces:
                bodies += reader.feed(piece)
            ended = len(bodies) < len(sent)  # a length that was made larger: it waits for the rest
        except MalformedError:
            ended = True
        assert ended, what
        expected = [sent[0][-16:], b"body 0", b"body 1"]
        assert bodies == expected[: len(bodies)], what


@KEYS
def test_a_frame_cut_short_says_nothing(key: bytes) -> None:
    stream = Stream(key)
    frame = stream.writer.encode(b"body")[0]
    stream.reader.feed(stream.hello)
    for n in range(len(frame) - 1):
        assert stream.reader.feed(frame[n : n + 1]) == []


@KEYS
def test_lengths_are_bounded_before_anything_is_kept(key: bytes) -> None:
    tag = bytes(Seal(key, b"").tag_bytes)
    for length in (MAX_BODY_BYTES + 1, 2**31 - 1, 2**32 - 1):
        stream = Stream(key)
        stream.reader.feed(stream.hello)
        with pytest.raises(MalformedError):
            stream.reader.feed(struct.pack(">IQ", length, 1) + tag)
    stream = Stream(key)
    stream.reader.feed(stream.hello)
    frames = stream.writer.encode(bytes(MAX_BATCH_BYTES + 1))
    with pytest.raises(MalformedError):
        feed_all(stream.reader.feed, frames)


def test_a_key_belongs_to_one_request_one_answer_and_one_secret() -> None:
    def key(secret: str, envelope: Envelope, nonce: bytes) -> bytes:
        return Authenticator(secret, None, False).seal_stream(envelope, nonce).tag(b"", b"")

    base = ("GET", "stream", "1", "c1", "2", "1", "", "7.00", "a:1", "8.00", "abc")
    tags = {key("s" * 16, Envelope(*base), b"n" * 16), key("t" * 16, Envelope(*base), b"n" * 16)}
    tags.add(key("s" * 16, Envelope(*base), b"m" * 16))
    for i in range(len(base)):
        tags.add(key("s" * 16, Envelope(*base[:i], "other", *base[i + 1 :]), b"n" * 16))
    assert len(tags) == 3 + len(base)
    rotating = Authenticator(["t" * 16, "s" * 16], None, False)
    assert rotating.seal_stream(Envelope(*base), b"n" * 16, b"s" * 16).tag(b"", b"") in tags


@pytest.mark.parametrize("longest", [1, 3, 50])
def test_chunks_are_undone_however_the_bytes_are_cut(longest: int) -> None:
    decoder = ChunkDecoder()
    coded = b"5\r\nhello\r\n1;name=value\r\n \r\n00A\r\n0123456789\r\n0\r\n\r\n"
    assert b"".join(decoder.feed(piece) for piece in cut(coded, random.Random(3), longest)) == b"hello 0123456789"
    assert decoder.is_over


@pytest.mark.parametrize(
    "coded",
    [
        b"x\r\n",
        b"\r\n",
        b"-1\r\n",
        b"+5\r\nhello",
        b"0x5\r\nhello",
        b"123456789\r\n",
        b"1\r\nabc",
        b"2\r\nab\n\n",
        b"1" * 300,
    ],
)
def test_chunks_that_make_no_sense_are_refused(coded: bytes) -> None:
    with pytest.raises(MalformedError):
        ChunkDecoder().feed(coded)
