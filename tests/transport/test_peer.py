"""The way out: what a sender makes of every kind of answer, and of none."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import requests

from raftsvc.core.messages import Claim, Entry, EntryKind, Life, Message, MessageKind, make_entry
from raftsvc.transport import App, Authenticator, Identity, Network, Peer, Problem
from raftsvc.transport.listener import Listener
from raftsvc.transport.peer import UnreachableError
from raftsvc.transport.reach import Reach
from raftsvc.transport.wire import PROTOCOL_VERSION
from tests.transport.harness import CLUSTER, NODE, PEER, PEER_LIFE, SECRET, Recorder, envelope_of, lineage_of, make_app

PATIENCE = 60.0
WsgiApp = Callable[[dict[str, Any], Callable[..., object]], Sequence[bytes]]


class NodeStub:
    """Node 2, which sends to node 1 and notes what it is told."""

    identity = Identity(CLUSTER, PEER, lineage_of(PEER_LIFE), "peer.example:1")

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.lives: dict[int, Life] = {}
        self.happened = threading.Condition()

    def _note(self, *event: Any) -> None:
        with self.happened:
            self.events.append(event)
            self.happened.notify_all()

    def receive_replies(self, from_id: int, messages: Sequence[Message]) -> None:
        self._note("replies", from_id, list(messages))

    def receive_stream(self, from_id: int, messages: Sequence[Message]) -> None:
        self._note("stream", from_id, list(messages))

    def report_unreachable(self, peer_id: int) -> None:
        self._note("unreachable", peer_id)

    def report_removed(self, peer_id: int) -> None:
        self._note("removed", peer_id)

    def report_void(self, peer_id: int) -> None:
        self._note("void", peer_id)

    def latest_life(self, peer_id: int) -> Life:
        return self.lives.get(peer_id, Life())

    def counts(self, peer_id: int, life: Life) -> bool:
        return life == self.lives.get(peer_id)

    def report_reached(self, peer_id: int, addr: str) -> None:
        self._note("reached", peer_id, addr)

    def report_missed(self, peer_id: int, addr: str, other_id: int) -> None:
        self._note("missed", peer_id, addr, other_id)

    def hear_from(self, peer_id: int, claim: Claim, addr: str, proves_now: bool) -> str:
        life = claim.life
        self._note("life", peer_id, life, proves_now)
        if life.counter < self.lives.get(peer_id, Life()).counter:
            return "void" if proves_now else "late"
        self.lives[peer_id] = life
        return "member"

    def report_snapshot(
        self, peer_id: int, succeeded: bool, replies: Sequence[Message], damage: Exception | None
    ) -> None:
        self._note("snapshot", peer_id, succeeded, list(replies), *([damage] if damage else []))

    def wait_for(self, kind: str) -> tuple[Any, ...]:
        with self.happened:
            assert self.happened.wait_for(lambda: any(e[0] == kind for e in self.events), PATIENCE), self.events
            return next(e for e in self.events if e[0] == kind)


@pytest.fixture
def talk() -> Iterator[Callable[..., tuple[NodeStub, Peer]]]:
    """A sender to a server that runs the given app, without streams."""
    opened: list[Any] = []

    def make(app: Any, secret: Any = SECRET) -> tuple[NodeStub, Peer]:
        def posts_only(environ: dict[str, Any], start_response: Callable[..., object]) -> Any:
            if environ["REQUEST_METHOD"] == "POST":
                return app(environ, start_response)
            start_response("404 Not Found", [("Content-Length", "0")])
            return [b""]

        listener = Listener(posts_only, "127.0.0.1:0")
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
    big = heartbeat(0, [make_entry(1, 1, EntryKind.NORMAL, bytes(3_000_000))])
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
    assert {event[0] for event in node.events} - {"life", "missed", "reached"} == {"unreachable"}


def test_who_answers_as_an_earlier_start_is_told_which_one_is_known(
    talk: Callable[..., tuple[NodeStub, Peer]],
) -> None:
    recorder = Recorder()
    known = Life(recorder.life.counter + 2, 0xF)
    app = make_app(recorder)
    epochs: list[str] = []

    def spy(environ: dict[str, Any], start_response: Callable[..., object]) -> Any:
        if environ["REQUEST_METHOD"] == "POST":
            epochs.append(str(environ.get("HTTP_RAFT_EPOCH", "")))
        return app(environ, start_response)

    node, peer = talk(spy)
    node.lives[NODE] = known
    for n in range(2):
        peer.put([heartbeat()])
        with node.happened:
            assert node.happened.wait_for(lambda n=n: sum(e[0] == "unreachable" for e in node.events) > n, PATIENCE)
    assert epochs[0] == "" and str(known) in epochs[1:]
    assert recorder.calls == []


def test_a_node_that_takes_one_of_another_cluster_for_its_own_says_so_when_it_is_asked_whether_it_is_there(
    talk: Callable[..., tuple[NodeStub, Peer]],
) -> None:
    class Other(Recorder):
        def identity(self) -> Identity | None:
            return Identity(0xC2, NODE, lineage_of(self.life), "node.example:1")

    recorder = Other()
    node, peer = talk(make_app(recorder))
    peer.put([heartbeat()])
    node.wait_for("unreachable")
    assert recorder.claims == [(f"{CLUSTER:016x}", PEER)]
    assert peer.trouble is not None and peer.trouble.code == "wrong_cluster"


@pytest.mark.parametrize("secret", [SECRET, None], ids=["nobody signed", "nobody signs"])
def test_a_peer_of_another_version_says_so_though_it_signs_otherwise(
    talk: Callable[..., tuple[NodeStub, Peer]], secret: str | None
) -> None:
    other = Problem(400, "unsupported_version", "this node speaks version 3 of the protocol")
    node, peer = talk(answering("400 Bad Request", other.encode()), secret)
    peer.put([heartbeat()])
    node.wait_for("unreachable")
    assert peer.trouble is not None and peer.trouble.code == "unsupported_version"
    assert "speaks version 3" in peer.trouble.why and f"this one version {PROTOCOL_VERSION}" in peer.trouble.why


def test_a_removed_node_is_told_by_a_peer(talk: Callable[..., tuple[NodeStub, Peer]]) -> None:
    class Removed(Recorder):
        def hear_from(self, node_id: int, claim: Claim, addr: str, proves_now: bool) -> str:
            return "removed"

    node, peer = talk(make_app(Removed()))
    peer.put([heartbeat()])
    assert node.wait_for("removed") == ("removed", NODE)


@pytest.mark.parametrize("status", ["410 Gone", "404 Not Found", "502 Bad Gateway"])
def test_without_a_secret_a_page_of_some_proxy_removes_nobody(
    talk: Callable[..., tuple[NodeStub, Peer]], status: str
) -> None:
    node, peer = talk(answering(status, b"<html>gone</html>"), None)
    peer.put([heartbeat()])
    node.wait_for("unreachable")
    assert {event[0] for event in node.events} - {"life", "missed", "reached"} == {"unreachable"}


def test_without_a_secret_a_peer_can_still_tell_of_a_removal(talk: Callable[..., tuple[NodeStub, Peer]]) -> None:
    class Removed(Recorder):
        def hear_from(self, node_id: int, claim: Claim, addr: str, proves_now: bool) -> str:
            return "removed"

    node, peer = talk(make_app(Removed(), secret=None), None)
    peer.put([heartbeat()])
    assert node.wait_for("removed") == ("removed", NODE)


def test_trouble_of_the_node_does_not_end_its_sender(talk: Callable[..., tuple[NodeStub, Peer]]) -> None:
    good = make_app(Recorder(), secret=None)
    answers = iter([answering("410 Gone", Problem(410, "removed").encode()), answering("500 Oops", b"")])

    def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Any:
        if environ["REQUEST_METHOD"] != "POST":
            return good(environ, start_response)
        return next(answers, good)(environ, start_response)

    node, peer = talk(app, None)
    noted = node._note

    def troubled(*event: Any) -> None:
        noted(*event)
        if event[0] not in ("replies", "life"):
            raise RuntimeError("trouble")

    node._note = troubled  # type: ignore[method-assign]
    for n in range(3):
        peer.put([heartbeat(n, [make_entry(n + 1, 1, EntryKind.NORMAL, b"")])])
        with node.happened:
            assert node.happened.wait_for(
                lambda n=n: sum(e[0] == "unreachable" for e in node.events) > n or n == 2, PATIENCE
            )
    node.wait_for("replies")


def test_a_given_session_is_used_with_its_headers_and_auth() -> None:
    seen: list[dict[str, Any]] = []
    app = make_app(Recorder(), judge=lambda environ: environ.get("HTTP_X_PEER") == "yes")

    def spy(environ: dict[str, Any], start_response: Callable[..., object]) -> Any:
        seen.append(dict(environ))
        return app(environ, start_response)

    listener = Listener(spy, "127.0.0.1:0")
    listener.start()
    try:
        assert listener.wait_bound(PATIENCE) and listener.address is not None
        with requests.Session() as session:
            session.headers.update({"X-Peer": "yes", "Raft-From": "9", "Content-Type": "text/plain"})
            session.auth = ("user", "password")
            network = Network(session, Authenticator(SECRET, None, False), 5.0, 5.0)
            node = NodeStub()
            peer = network.open_peer(node, NODE, f"http://127.0.0.1:{listener.address[1]}")
            peer.put([heartbeat()])
            node.wait_for("replies")  # the judge agreed, and nothing of the session's displaced what is signed
            peer.stop()
        assert seen[0]["HTTP_AUTHORIZATION"].startswith("Basic ")
    finally:
        listener.stop()


def test_a_peer_that_accepts_and_never_answers_holds_up_nobody_else(
    talk: Callable[..., tuple[NodeStub, Peer]],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        network = Network(None, Authenticator(SECRET, None, False), 5.0, PATIENCE)
        stuck = NodeStub()
        mute = network.open_peer(stuck, 3, f"http://127.0.0.1:{silent.getsockname()[1]}")
        mute.put([Message(MessageKind.APPEND, 3, PEER, term=1)])
        connection, _ = silent.accept()
        with connection:
            assert connection.recv(1), "the request is under way"
            for n in range(10_000):
                mute.put([Message(MessageKind.APPEND, 3, PEER, term=1, index=n)])
            node, peer = talk(make_app(Recorder()))
            peer.put([heartbeat()])
            node.wait_for("replies")
            assert stuck.events == []
            started = time.monotonic()
            mute.stop()
            assert time.monotonic() - started < PATIENCE / 2, "it does not wait for the answer"
        network.close()


def test_a_peer_that_is_slow_to_answer_counts_as_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        node = NodeStub()
        network = Network(None, Authenticator(SECRET, None, False), 5.0, 0.2)
        peer = network.open_peer(node, NODE, f"http://127.0.0.1:{silent.getsockname()[1]}")
        peer.put([heartbeat()])
        assert node.wait_for("unreachable") == ("unreachable", NODE)
        peer.stop()
        network.close()


def test_connections_are_kept_open_whatever_was_answered(talk: Callable[..., tuple[NodeStub, Peer]]) -> None:
    threads: list[str] = []  # the listener has one for each connection
    good, bad = make_app(Recorder()), answering("503 Service Unavailable", b"later")

    def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Any:
        if environ["REQUEST_METHOD"] != "POST":  # the request for a stream, refused
            return bad(environ, start_response)
        threads.append(threading.current_thread().name)
        return (bad if len(threads) % 2 else good)(environ, start_response)

    node, peer = talk(app)
    answered = ("replies", "unreachable")
    for n in range(4):
        peer.put([heartbeat(n)])
        with node.happened:
            assert node.happened.wait_for(lambda n=n: sum(e[0] in answered for e in node.events) > n, PATIENCE)
    # The request for a stream may have come meanwhile, and its connection is as good as the other.
    assert len(threads) >= 4 and len(set(threads)) <= 2


def test_replies_in_the_name_of_another_are_dropped(talk: Callable[..., tuple[NodeStub, Peer]]) -> None:
    class Liar(Recorder):
        def receive(self, from_id: int, messages: Sequence[Message]) -> list[Message]:
            return [Message(MessageKind.APPEND_REPLY, from_id, 9, term=1)]

    node, peer = talk(make_app(Liar()))
    peer.put([heartbeat()])
    node.wait_for("unreachable")
    assert not [event for event in node.events if event[0] == "replies"]


def test_a_snapshot_in_an_answer_is_dropped(talk: Callable[..., tuple[NodeStub, Peer]]) -> None:
    class Confused(Recorder):
        def receive(self, from_id: int, messages: Sequence[Message]) -> list[Message]:
            return [Message(MessageKind.SNAPSHOT, from_id, NODE, term=1, index=9)]

    node, peer = talk(make_app(Confused()))
    peer.put([Message(MessageKind.APPEND, NODE, PEER, term=1)])
    node.wait_for("unreachable")
    assert not [e for e in node.events if e[0] == "replies"]


@pytest.mark.parametrize("by_stream", [False, True])
@pytest.mark.parametrize("there", ["another node", "nobody"])
def test_that_it_is_not_where_others_were_is_no_trouble_of_a_peer(
    caplog: pytest.LogCaptureFixture, there: str, by_stream: bool
) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Any:
        tried.append(environ["REQUEST_METHOD"])
        if there == "another node":
            return node_1(environ, start_response)
        raise ConnectionError

    tried: list[str] = []
    node_1 = make_app(Recorder())
    listener = Listener(app, "127.0.0.1:0")
    listener.start()
    assert listener.wait_bound(PATIENCE) and listener.address is not None
    addr = f"http://127.0.0.1:{listener.address[1]}"
    # The holder of streams counts only once it has been silent.
    network = Network(None, Authenticator(SECRET, None, False), 5.0, 0.1 if by_stream else 5.0)
    peer = network.open_peer(NodeStub(), 3, None)

    def wait_until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline
            if not by_stream:
                peer.put([heartbeat()])
            time.sleep(0.01)

    def is_tried_again() -> bool:
        return tried.count("GET" if by_stream else "POST") >= 3

    try:
        peer.move(addr, is_guess=True)
        wait_until(is_tried_again)
        assert peer.trouble is None
        assert "is not reached" not in caplog.text
        peer.move(addr)  # it says that it is there
        wait_until(lambda: peer.trouble is not None)
        trouble = peer.trouble
        assert trouble is not None and trouble.addr == addr
        assert by_stream or trouble.code == ("wrong_node" if there == "another node" else "unreachable")
    finally:
        peer.stop()
        listener.stop()


def test_a_peer_that_is_looked_for_elsewhere_in_between_has_trouble_where_it_should_be(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Searching(NodeStub):
        """Has the peer tried at the other place as soon as it fails at one."""

        def report_missed(self, peer_id: int, addr: str, other_id: int) -> None:
            super().report_missed(peer_id, addr, other_id)
            is_guess = addr != guess
            peer.move(guess if is_guess else home, is_guess)

    def said() -> list[str]:
        return [record.getMessage() for record in caplog.records if "not reached" in record.getMessage()]

    listener = Listener(make_app(Recorder()), "127.0.0.1:0")
    listener.start()
    assert listener.wait_bound(PATIENCE) and listener.address is not None
    guess = f"http://127.0.0.1:{listener.address[1]}"
    node = Searching()
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        home = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        peer = Network(None, Authenticator(SECRET, None, False), 5.0, 5.0).open_peer(node, 3, None)
        try:
            peer.move(guess, is_guess=True)
            deadline = time.monotonic() + PATIENCE
            while node.events.count(("missed", 3, guess, NODE)) < 4 or peer.trouble is None or not said():
                assert time.monotonic() < deadline, node.events
                assert peer.trouble is None or (peer.trouble.addr, peer.trouble.code) == (home, "unreachable")
                peer.put([heartbeat()])
                time.sleep(0.01)
        finally:
            peer.stop()
            listener.stop()
    assert said() == [f"node 3 at {home} is not reached: Connection refused"]


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
            node.happened.wait_for(lambda n=n: sum(e[0] != "life" for e in node.events) > n, PATIENCE)
    node.wait_for("replies")


def test_a_problem_of_a_peer_is_told_apart_from_silence() -> None:
    network = Network(None, Authenticator(SECRET, None, False), 1.0, 1.0)
    with pytest.raises(UnreachableError):
        network.post("http://127.0.0.1:9", envelope_of("msg"), b"")
    recorder = Recorder()
    recorder.is_initialized = False
    listener = Listener(App(recorder, Authenticator(SECRET, None, False)), "127.0.0.1:0")
    listener.start()
    try:
        assert listener.wait_bound(PATIENCE) and listener.address is not None
        with pytest.raises(Problem) as caught:
            network.post(f"http://127.0.0.1:{listener.address[1]}", envelope_of("msg"), b"")
        assert caught.value.code == "uninitialized"
    finally:
        listener.stop()
        network.close()


@pytest.mark.parametrize("lacking", ["raftsvc-send", "raftsvc-stream"])
def test_a_peer_for_which_there_is_no_thread_leaves_none_behind(monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    network = Network(None, Authenticator(SECRET, None, False), 5.0, 5.0)
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith(lacking):
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    stranger = network.open_peer(NodeStub(), NODE, None)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            network.open_peer(NodeStub(), NODE, "http://127.0.0.1:9")
        with pytest.raises(RuntimeError):
            stranger.move("http://127.0.0.1:9")
    for thread in started:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    stranger.stop()


def narrow(app: Any, limit: int, refused: list[int]) -> WsgiApp:
    """What stands before `app` and refuses longer bodies, with a page that no peer signed."""

    def answer(environ: dict[str, Any], start_response: Callable[..., object]) -> Sequence[bytes]:
        if int(environ["CONTENT_LENGTH"]) <= limit:
            return app(environ, start_response)  # type: ignore[no-any-return]
        refused.append(int(environ["CONTENT_LENGTH"]))
        environ["wsgi.input"].read(refused[-1])
        start_response("413 Request Entity Too Large", [("Content-Length", "6"), ("Content-Type", "text/html")])
        return [b"<html>"]

    return answer


@pytest.mark.parametrize("limit", [65536, 10_000, 2048])
def test_what_is_too_large_for_a_proxy_arrives_in_smaller_parts(
    talk: Callable[..., tuple[NodeStub, Peer]], limit: int
) -> None:
    recorder = Recorder()
    refused: list[int] = []
    node, peer = talk(narrow(make_app(recorder), limit, refused))
    big = heartbeat(0, [make_entry(1, 1, EntryKind.NORMAL, bytes(200_000))])
    peer.put([big])
    node.wait_for("replies")
    assert recorder.calls == [(PEER, [big])]
    learnt = len(refused)
    assert refused == sorted(refused, reverse=True), "smaller each time"
    node.events.clear()
    peer.put([big])
    node.wait_for("replies")
    assert len(refused) == learnt, "it is known by now"
    assert {event[0] for event in node.events} - {"reached"} == {"replies"}


def test_a_proxy_that_refuses_everything_is_none_to_be_passed(talk: Callable[..., tuple[NodeStub, Peer]]) -> None:
    recorder = Recorder()
    refused: list[int] = []
    node, peer = talk(narrow(make_app(recorder), 0, refused))
    peer.put([heartbeat(0, [make_entry(1, 1, EntryKind.NORMAL, bytes(200_000))])])
    node.wait_for("unreachable")
    assert recorder.calls == []
    assert min(refused) == 2048


def test_a_stream_that_is_open_says_nothing_of_a_peer_that_does_not_answer(
    talk: Callable[..., tuple[NodeStub, Peer]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As of one whose process is stopped: it has its stream still, and is neither reached nor lost again and again."""
    _, peer = talk(answering("503 Service Unavailable", b""))
    monkeypatch.setattr(Network, "silence_seconds", 0.02)
    monkeypatch.setattr(type(peer._outbox), "is_streaming", property(lambda outbox: True))
    reach = Reach(NODE)
    with caplog.at_level(logging.INFO, "raftsvc.transport"):
        failures = 0
        for _ in range(3):
            peer.is_to_knock = True
            failures = peer._send_next(failures, reach)
            failures = peer._send_next(failures, reach)
        lines = [record.getMessage() for record in caplog.records if record.name == "raftsvc.transport"]
        assert [("again" in line) for line in lines] == [False]
        peer._contact.answered()
        peer._send_next(failures, reach)
        assert "is reached again" in caplog.text
