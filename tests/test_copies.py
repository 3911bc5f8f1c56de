"""What clients copy of a node is open as long as it is read, and little of it."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from raftsvc.client.copying import FarFiles
from raftsvc.copies import Copies
from raftsvc.errors import OverloadedError, Rejected
from raftsvc.transport.visits import NO_COPY, Piece, decode_copy


class Stored:
    """A snapshot of ten bytes."""

    size_bytes = 10

    def __init__(self) -> None:
        self.is_open = True

    def read(self, offset: int, size: int) -> bytes:
        assert self.is_open and offset < 2**63, "as of a file"
        return b"0123456789"[offset : offset + size]

    def close(self) -> None:
        self.is_open = False


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_nobody_reads_is_closed_and_what_is_read_is_not() -> None:
    clock, stored = Clock(), [Stored() for _ in range(4)]
    given: Any = stored
    copies = Copies(threading.Event(), clock)
    tokens = [copies.begin(each) for each in given]
    late: Any = Stored()
    with pytest.raises(OverloadedError, match="already"):
        copies.begin(late)
    with pytest.raises(OverloadedError, match="already"):
        copies.check_room()
    assert not late.is_open
    clock.now = 59.0
    assert copies.read(tokens[0], 4) == (10, b"456789")
    assert copies.read(tokens[0], 2**64 - 2) == (10, b"")
    copies.end(tokens[1])
    clock.now = 61.0
    assert copies.sweep()
    assert [each.is_open for each in stored] == [True, False, False, False]
    with pytest.raises(Rejected, match="begin anew"):
        copies.read(tokens[2], 0)
    copies.end(tokens[2])
    clock.now = 120.0
    assert not copies.sweep()
    assert not stored[0].is_open


def test_what_is_opened_again_from_elsewhere_is_another_copy() -> None:
    """The second try of a backup is for what the first found damaged, or was told is not open any more."""
    begun: list[bytes] = []
    copies = {b"1" * 16: b"damaged", b"2" * 16: b"whole"}

    def ask(question: bytes, is_first: bool) -> bytes:
        token, offset = decode_copy(question)
        if token == NO_COPY:
            assert is_first
            token = list(copies)[len(begun)]
            begun.append(token)
        data = b"" if offset is None else copies[token][offset : offset + 4]
        return Piece(token, len(copies[token]), 7, data).encode()

    files = FarFiles(ask)
    for content in copies.values():
        fd = files.open_to_read("snap")
        assert files.read(fd, 100, 0) == content
    assert begun == list(copies)


def test_all_are_closed_once_the_node_stops() -> None:
    stopped, stored = threading.Event(), Stored()
    given: Any = stored
    copies = Copies(stopped, Clock())
    copies.begin(given)
    assert copies.sweep()
    stopped.set()
    assert not copies.sweep()
    assert not stored.is_open
