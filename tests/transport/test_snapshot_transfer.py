"""A snapshot on its way: in bounded pieces, from where the peer says, and to an end in any case."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from raftsvc.core.messages import MalformedError, Message, MessageKind
from raftsvc.errors import DamagedStorageError, OverloadedError
from raftsvc.storage import SnapshotHeader
from raftsvc.transport import Authenticator, Network, SnapshotChunk
from raftsvc.transport.listener import Listener
from raftsvc.transport.wire import SNAPSHOT_PIECE_BYTES, Problem
from tests.transport.harness import NODE, PEER, SECRET, Recorder, make_app
from tests.transport.test_peer import PATIENCE, NodeStub

DATA = bytes(range(251)) * 4000  # about a megabyte, and no two pieces alike
ANNOUNCEMENT = Message(MessageKind.SNAPSHOT, NODE, PEER, term=3, index=1, payload=b"older")


class Stored:
    """A stored snapshot, as the transfer reads it."""

    header = SnapshotHeader(index=9, term=2, cluster_id=5, config=b"config", sessions=b"", digest=0, time_ms=7)
    size_bytes = len(DATA)
    crc = 77

    def __init__(self) -> None:
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True

    def read(self, offset: int, size: int) -> bytes:
        return DATA[offset : offset + size]

    def verify(self) -> None: ...


class Store(Recorder):
    """Receives a snapshot as the Service does: a piece that is not the one wanted changes nothing."""

    def __init__(self, data: bytes = b"") -> None:
        super().__init__()
        self.data = data
        self.faults: Iterator[Exception | None] = iter(())

    def receive_chunk(self, from_id: int, chunk: SnapshotChunk) -> tuple[int, list[Message]]:
        self.calls.append(chunk)
        fault = next(self.faults, None)
        if fault is not None:
            raise fault
        if chunk.offset == len(self.data):
            self.data += chunk.data
        if len(self.data) < chunk.size_bytes:
            return len(self.data), []
        return chunk.size_bytes, [Message(MessageKind.APPEND_REPLY, from_id, NODE, term=3, index=9)]


Transfer = Callable[[Any], tuple[tuple[Any, ...], Stored]]


@pytest.fixture
def transfer() -> Iterator[Transfer]:
    """Transfer DATA to a receiver; returns what the node was told of its end."""
    opened: list[Any] = []

    def run(receiver: Any) -> tuple[tuple[Any, ...], Stored]:
        listener = Listener(make_app(receiver), "127.0.0.1:0")
        listener.start()
        assert listener.wait_bound(PATIENCE) and listener.address is not None
        node = NodeStub()
        network = Network(None, Authenticator(SECRET, None, False), 5.0, 5.0)
        peer = network.open_peer(node, NODE, f"http://127.0.0.1:{listener.address[1]}")
        opened.extend((peer, listener))
        stored = Stored()
        assert peer.send_snapshot(ANNOUNCEMENT, lambda: stored)
        return node.wait_for("snapshot"), stored

    yield run
    for one in opened:
        one.stop()


def test_it_arrives_whole_in_bounded_pieces_and_the_reply_comes_back(transfer: Transfer) -> None:
    store = Store()
    (_, peer_id, succeeded, replies), stored = transfer(store)
    assert (peer_id, succeeded, store.data) == (NODE, True, DATA)
    assert [reply.index for reply in replies] == [9]
    assert max(len(chunk.data) for chunk in store.calls) <= SNAPSHOT_PIECE_BYTES
    assert stored.is_closed


def test_every_piece_says_what_it_belongs_to(transfer: Transfer) -> None:
    store = Store()
    transfer(store)
    for chunk in store.calls:
        assert (chunk.size_bytes, chunk.crc, chunk.message.term) == (len(DATA), 77, 3)
        # What is stored now, which may be newer than what was to be sent.
        assert (chunk.message.index, chunk.message.log_term, chunk.message.payload) == (9, 2, b"config")


def test_it_goes_on_from_what_the_peer_has(transfer: Transfer) -> None:
    store = Store(DATA[:600_000])
    (_, _, succeeded, _), _ = transfer(store)
    assert succeeded and store.data == DATA
    assert sum(len(chunk.data) for chunk in store.calls) == len(DATA) - 600_000


def test_a_peer_that_is_busy_for_a_moment_is_asked_again(transfer: Transfer) -> None:
    store = Store()
    store.faults = iter([OverloadedError("busy"), None, OverloadedError("busy"), None, OSError("disk")])
    (_, _, succeeded, _), _ = transfer(store)
    assert succeeded and store.data == DATA


def test_a_peer_that_refuses_ends_it_at_once(transfer: Transfer) -> None:
    store = Store()
    store.faults = iter([None, MalformedError("not what was announced")])
    (_, _, succeeded, replies), stored = transfer(store)
    assert (succeeded, replies, len(store.calls)) == (False, [], 2)
    assert stored.is_closed


def test_a_peer_that_stays_busy_ends_it(transfer: Transfer) -> None:
    store = Store()
    store.faults = iter([OverloadedError("busy")] * 1000)
    (_, _, succeeded, _), _ = transfer(store)
    assert not succeeded and len(store.calls) < 20


@pytest.mark.parametrize("is_forth_and_back", [False, True])
def test_a_peer_that_wants_the_same_again_and_again_ends_it(transfer: Transfer, is_forth_and_back: bool) -> None:
    class Forgetful(Recorder):
        def receive_chunk(self, from_id: int, chunk: SnapshotChunk) -> tuple[int, list[Message]]:
            self.calls.append(chunk)
            return (SNAPSHOT_PIECE_BYTES if is_forth_and_back and chunk.data and not chunk.offset else 0), []

    receiver = Forgetful()
    (_, _, succeeded, _), _ = transfer(receiver)
    assert not succeeded and len(receiver.calls) < 50


def test_replies_in_the_name_of_another_fail_it(transfer: Transfer) -> None:
    class Liar(Recorder):
        def receive_chunk(self, from_id: int, chunk: SnapshotChunk) -> tuple[int, list[Message]]:
            return chunk.size_bytes, [Message(MessageKind.APPEND_REPLY, from_id, 9, term=3)]

    (_, _, succeeded, replies), _ = transfer(Liar())
    assert (succeeded, replies) == (False, [])


def test_a_snapshot_that_cannot_be_opened_is_reported() -> None:
    node = NodeStub()
    network = Network(None, Authenticator(SECRET, None, False), 5.0, 5.0)
    peer = network.open_peer(node, NODE, "http://127.0.0.1:9")

    def fail() -> Any:
        raise OSError("no such file")

    assert peer.send_snapshot(ANNOUNCEMENT, fail)
    assert node.wait_for("snapshot") == ("snapshot", NODE, False, [])
    peer.stop()


@pytest.mark.parametrize(
    ("status", "error", "is_damage"),
    [
        (400, DamagedStorageError("snap", 9, "rotten", "advice"), True),  # the peer got what this node has
        (400, None, False),
        (403, DamagedStorageError("snap", 9, "rotten", "advice"), False),  # nobody looked
    ],
)
def test_a_snapshot_that_a_peer_finds_damaged_is_looked_at_here(
    transfer: Transfer, status: int, error: Exception | None, is_damage: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify(stored: Stored) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(Stored, "verify", verify)
    store = Store()
    store.faults = iter([None, Problem(status, "malformed", "not what was announced")])
    assert transfer(store)[0] == ("snapshot", NODE, False, [], *([error] if is_damage else []))


@pytest.mark.parametrize(
    ("error", "is_damage"),
    [
        (DamagedStorageError("snap", 0, "rotten", "advice"), True),
        (FileNotFoundError(errno.ENOENT, "gone"), True),
        (OSError(errno.EMFILE, "too many open files"), False),
    ],
)
def test_a_snapshot_that_cannot_be_read_is_told_from_a_system_that_cannot(error: Exception, is_damage: bool) -> None:
    node = NodeStub()
    peer = Network(None, Authenticator(SECRET, None, False), 5.0, 5.0).open_peer(node, NODE, "http://127.0.0.1:9")

    def fail() -> Any:
        raise error

    assert peer.send_snapshot(ANNOUNCEMENT, fail)
    assert node.wait_for("snapshot")[4:] == ((error,) if is_damage else ())
    peer.stop()


def test_one_transfer_at_a_time_and_none_to_a_peer_without_an_address() -> None:
    network = Network(None, Authenticator(SECRET, None, False), 5.0, 5.0)
    node = NodeStub()
    nowhere = network.open_peer(node, NODE, None)
    assert not nowhere.send_snapshot(ANNOUNCEMENT, Stored)
    gate = threading.Event()

    def wait() -> Any:
        gate.wait(PATIENCE)
        raise OSError("enough")

    peer = network.open_peer(node, NODE, "http://127.0.0.1:9")
    assert peer.send_snapshot(ANNOUNCEMENT, wait)
    assert not peer.send_snapshot(ANNOUNCEMENT, wait)
    gate.set()
    node.wait_for("snapshot")
    peer.stop()
