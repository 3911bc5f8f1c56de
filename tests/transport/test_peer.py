"""The way out: what a sender makes of every kind of answer, and of none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from raftsvc.core.messages import Entry, EntryKind, Message, MessageKind
from raftsvc.transport import App, Authenticator, Network, Peer, Problem
from raftsvc.transport.listener import Listener
from raftsvc.transport.peer import UnreachableError
from tests.transport.harness import CLUSTER, NODE, PEER, SECRET, Recorder, make_app

PATIENCE = 60.0
WsgiApp = Callable[[dict[str, Any], Callable[..., object]], Sequence[bytes]]


class NodeStub:
    """Node 2, which sends to node 1 and notes what it is told."""

    node_id = PEER
    cluster_id = CLUSTER

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.happened = threading.Condition()

    def _note(self, *event: Any) -> None:
        with self.happened:
            self.events.append(event)
            self.happened.notify_all()

    def receive_replies(self, from_id: int, messages: Sequence[Message]) -> None:
        self._note("replies", from_id, list(messages))

    def report_unreachable(self, peer_id: int) -> None:
        self._note("unreachable", peer_id)

    def report_removed(self, peer_id: int) -> None:
        self._note("removed", peer_id)

    def report_snapshot(self, peer_id: int, succeeded: bool, replies: Sequence[Message]) -> None:
        self._note("snapshot", peer_id, succeeded, list(replies))

    def wait_for(self, kind: str) -> tuple[Any, ...]:
        with self.happened:
            assert self.happened.wait_for(lambda: any(e[0] == kind for e in self.events), PATIENCE), self.events
            return next(e for e in self.events if e[0] == kind)


@pytest.fixture
def talk() -> Iterator[Callable[..., tuple[NodeStub, Peer]]]:
    """A sender to a server that runs the given app."""
    opened: list[Any] = []

    def make(app: Any, secret: Any = SECRET) -> tuple[NodeStub, Peer]:
        listener = Listener(app, "127.0.0.1:0")
        listener.start()
        assert listener.wait_bound(PATIENCE) and listener.address is not None
        node = NodeStub()
        network = Network(None, Authenticator(secret, None, False), 5.0, 5.0)
        peer = network.open_peer(node, NODE, f"http://127.0.0.1:{listener.address[1]}")
        opened.extend((peer, listener))
        return node, peer

    yield make
    for one in opened:
        one.stop()


def heartbeat(index: int = 0, entries: Sequence[Entry] = ()) -> Message:
    return Message(MessageKind.APPEND, NODE, PEER, term=1, index=index, entries=entries)


def answering(status: str, body: bytes, headers: Sequence[tuple[str, str]] = ()) -> WsgiApp:
    def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Sequence[bytes]:
        environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        start_response(status, [("Content-Length", str(len(body))), *headers])
        return [body]

    return app


def test_messages_arrive_and_replies_come_back(talk: Callable[..., tuple[NodeStub, Peer]]) -> None:
    recorder = Recorder()
    node, peer = talk(make_app(recorder))
    peer.put([heartbeat(3)])
    assert node.wait_for("replies")[1] == NODE
    assert recorder.calls[0] == (PEER, [heartbeat(3)])


def test_an_entry_larger_than_a_body_arrives_whole(talk: Callable[..., tuple[NodeStub, Peer]]) -> None:
    recorder = Recorder()
    node, peer = talk(make_app(recorder))
    big = heartbeat(0, [Entry.make(1, 1, EntryKind.NORMAL, bytes(3_000_000))])
    peer.put([big])
    node.wait_for("replies")
    assert recorder.calls == [(PEER, [big])]


@pytest.mark.parametrize(
    "app",
    [
        answering("200 OK", b"garbage"),
        answering("200 OK", b"", [("Raft-Auth", "0" * 64)]),
        answering("500 Internal Server Error", b"<html>"),
        answering("410 Gone", b'{"code": "removed", "detail": "says somebody"}'),
        answering("307 Temporary Redirect", b"", [("Location", "http://127.0.0.1:9/msg")]),
        answering("200 OK", bytes(5_000_000)),
    ],
    ids=["unsigned", "wrongly signed", "an error page", "a forged removal", "a redirect", "an endless answer"],
)
def test_what_no_peer_signed_counts_as_no_answer(talk: Callable[..., tuple[NodeStub, Peer]], app: WsgiApp) -> None:
    node, peer = talk(app)
    peer.put([heartbeat()])
    assert node.wait_for("unreachable") == ("unreachable", NODE)
    assert {event[0] for event in node.events} == {"unreachable"}


def test_a_removed_node_is_told_by_a_peer(talk: Callable[..., tuple[NodeStub, Peer]]) -> None:
    class Removed(Recorder):
        def standing_of(self, node_id: int) -> str:
            return "removed"

    node, peer = talk(make_app(Removed()))
    peer.put([heartbeat()])
    assert node.wait_for("removed") == ("removed", NODE)


def test_replies_in_the_name_of_another_are_dropped(talk: Callable[..., tuple[NodeStub, Peer]]) -> None:
    class Liar(Recorder):
        def receive(self, from_id: int, messages: Sequence[Message]) -> list[Message]:
            return [Message(MessageKind.APPEND_REPLY, from_id, 9, term=1)]

    node, peer = talk(make_app(Liar()))
    peer.put([heartbeat()])
    node.wait_for("unreachable")
    assert not [event for event in node.events if event[0] == "replies"]


def test_it_goes_on_after_a_failure(talk: Callable[..., tuple[NodeStub, Peer]]) -> None:
    recorder = Recorder()
    good = make_app(recorder)
    calls: list[int] = []

    def flaky(environ: dict[str, Any], start_response: Callable[..., object]) -> Any:
        calls.append(1)
        bad = answering("500 Internal Server Error", b"")
        return bad(environ, start_response) if len(calls) <= 2 else good(environ, start_response)

    node, peer = talk(flaky)
    for n in range(5):
        peer.put([heartbeat(n)])
        with node.happened:
            node.happened.wait_for(lambda n=n: len(node.events) > n, PATIENCE)
    node.wait_for("replies")


def test_a_problem_of_a_peer_is_told_apart_from_silence() -> None:
    network = Network(None, Authenticator(SECRET, None, False), 1.0, 1.0)
    with pytest.raises(UnreachableError):
        network.post("http://127.0.0.1:9", "msg", b"", "", 1, 2)
    recorder = Recorder()
    recorder.is_initialized = False
    listener = Listener(App(recorder, Authenticator(SECRET, None, False)), "127.0.0.1:0")
    listener.start()
    try:
        assert listener.wait_bound(PATIENCE) and listener.address is not None
        with pytest.raises(Problem) as caught:
            network.post(f"http://127.0.0.1:{listener.address[1]}", "msg", b"", "", 1, 2)
        assert caught.value.code == "uninitialized"
    finally:
        listener.stop()
        network.close()
