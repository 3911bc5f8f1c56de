"""Asking for membership: through anybody, past anything that is answered, and never longer than allowed."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import raftsvc
from raftsvc.transport import (
    App,
    Authenticator,
    JoinReply,
    JoinRequest,
    Network,
    Problem,
    request_join,
    stranger_envelope,
)
from raftsvc.transport.listener import Listener
from raftsvc.transport.wire import UnsignedError
from tests.transport.harness import CLUSTER, SECRET, Recorder, make_app
from tests.transport.test_peer import PATIENCE, answering

TOKEN = b"t" * 16
Serve = Callable[[Any], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve a WSGI callable; returns its base URL."""
    listeners: list[Listener] = []

    def run(app: Any) -> str:
        listener = Listener(app, "127.0.0.1:0")
        listeners.append(listener)
        listener.start()
        assert listener.wait_bound(PATIENCE) and listener.address is not None
        return f"http://127.0.0.1:{listener.address[1]}"

    yield run
    for listener in listeners:
        listener.stop()


def ask(url: str, timeout: float = PATIENCE, secret: Any = SECRET, stopped: threading.Event | None = None) -> JoinReply:
    network = Network(None, Authenticator(secret, None, False), 5.0, 5.0)
    try:
        return request_join(network, url, JoinRequest("new.example:1", TOKEN), timeout, stopped or threading.Event())
    finally:
        network.close()


def refusing(problem: Problem) -> tuple[App, list[Any]]:
    """An app that answers every join by `problem`, signed, and what it was asked."""

    class Refusing(Recorder):
        def check_leader(self) -> None:
            self.calls.append(problem)
            raise problem

    return make_app(recorder := Refusing()), recorder.calls


def test_a_leader_admits_whoever_meets_its_challenge(serve: Serve) -> None:
    recorder = Recorder()
    assert ask(serve(make_app(recorder))) == JoinReply(5, CLUSTER)
    assert recorder.calls == [JoinRequest("new.example:1", TOKEN)]


def test_a_follower_shows_the_way_to_the_leader(serve: Serve) -> None:
    leader = serve(make_app(Recorder()))
    follower = serve(refusing(Problem(421, "not_leader", "ask the leader", leader=leader))[0])
    assert ask(follower) == JoinReply(5, CLUSTER)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("address_not_allowed", raftsvc.AddressNotAllowedError),
        ("address_in_use", raftsvc.AddressInUseError),
        ("uninitialized", raftsvc.PeerUninitializedError),
    ],
)
def test_a_final_answer_ends_it(serve: Serve, code: str, error: type[Exception]) -> None:
    app, calls = refusing(Problem(409, code, "because"))
    with pytest.raises(error, match="because"):
        ask(serve(app))
    assert len(calls) == 1


@pytest.mark.parametrize("leader", ["", "nonsense", "ftp://a:1", "[::1:80", "http://\u2100/raft", "http://u:p@a:1"])
def test_a_leader_that_is_no_address_is_not_followed(serve: Serve, leader: str) -> None:
    with pytest.raises(raftsvc.JoinFailedError, match="not_leader"):
        ask(serve(refusing(Problem(421, "not_leader", "over there", leader=leader))[0]), timeout=1.0)


def test_an_attached_process_shows_the_way_to_the_node_of_its_host(serve: Serve) -> None:
    leader = serve(make_app(Recorder()))
    node = serve(refusing(Problem(421, "not_leader", "ask the leader", leader=leader))[0])
    for addr, known in ((node, ""), (node, "http://127.0.0.1:1"), ("no address", leader), ("", leader)):
        attached = serve(refusing(Problem(421, "attached", "ask the node", addr=addr, leader=known))[0])
        assert ask(attached) == JoinReply(5, CLUSTER)


def test_an_attached_process_that_names_itself_is_asked_again_or_else_the_leader(serve: Serve) -> None:
    leader = serve(make_app(Recorder()))
    named = {"leader": leader}
    urls: list[str] = []

    class Attached(Recorder):
        def check_leader(self) -> None:
            self.calls.append("asked")
            raise Problem(421, "attached", "ask the node", addr=urls[0], **named)

    urls.append(serve(make_app(attached := Attached())))
    assert ask(urls[0]) == JoinReply(5, CLUSTER)
    assert attached.calls == ["asked"]
    named["leader"] = ""
    with pytest.raises(raftsvc.JoinFailedError, match="attached"):
        ask(urls[0], timeout=1.0)
    assert len(attached.calls) < 30, "and not as fast as it can"


def test_followers_that_name_each_other_are_left_in_time(serve: Serve) -> None:
    hints: dict[str, str] = {}
    urls = []
    for name in ("a", "b"):

        class Lost(Recorder):
            def check_leader(self, name: str = name) -> None:
                self.calls.append(name)
                raise Problem(421, "not_leader", "ask the other", leader=hints[name])

        urls.append(serve(make_app(Lost())))
    hints.update(a=urls[1], b=urls[0])
    with pytest.raises(raftsvc.JoinFailedError):
        ask(urls[0], timeout=0.5)


def test_who_never_stops_challenging_is_not_asked_without_a_pause(serve: Serve) -> None:
    asked: list[int] = []
    endless = answering("409 Conflict", Problem(409, "challenge", "again", challenge="c").encode())

    def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Any:
        asked.append(1)
        return endless(environ, start_response)

    with pytest.raises(raftsvc.JoinFailedError):
        ask(serve(app), timeout=1.0, secret=None)
    assert len(asked) < 40, "pauses that grow, not a busy loop"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        ("200 OK", b"{}"),
        ("200 OK", b'{"node_id": "0", "cluster_id": "c1"}'),
        ("200 OK", b'{"node_id": "' + b"9" * 50 + b'", "cluster_id": "c1"}'),
        ("200 OK", b"[" * 100_000),
        ("200 OK", b"\xff\xfe"),
        ("307 Temporary Redirect", b""),
        ("401 Unauthorized", b"<html>"),
    ],
)
@pytest.mark.parametrize("secret", [SECRET, None])
def test_nonsense_is_no_admission(serve: Serve, status: str, body: bytes, secret: str | None) -> None:
    with pytest.raises(raftsvc.JoinFailedError, match="within"):
        ask(serve(answering(status, body)), timeout=0.2, secret=secret)


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"], ids=["headers", "body"])
def test_an_answer_that_comes_drop_by_drop_is_not_waited_for(start: bytes) -> None:
    is_over = threading.Event()

    def drip(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(start or b"HTTP/1.1 200 OK\r\nX: ")
            try:
                while not is_over.wait(0.05):
                    connection.sendall(b"x")
            except OSError:
                pass

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, args=(server,))
        thread.start()
        outcome: list[Exception] = []

        def join() -> None:
            try:
                ask(f"http://127.0.0.1:{server.getsockname()[1]}", timeout=0.5)
            except Exception as error:
                outcome.append(error)

        joining = threading.Thread(target=join)
        joining.start()
        joining.join(PATIENCE)
        came_back = not joining.is_alive()
        is_over.set()
        thread.join(PATIENCE)
        joining.join(PATIENCE)
    assert came_back
    assert isinstance(outcome[0], raftsvc.JoinFailedError)


def test_stopping_ends_it(serve: Serve) -> None:
    stopped = threading.Event()
    app, calls = refusing(Problem(503, "busy", "later"))
    url = serve(app)
    outcome: list[Exception] = []

    def join() -> None:
        try:
            ask(url, stopped=stopped)
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=join)
    thread.start()
    deadline = time.monotonic() + PATIENCE
    while not calls and time.monotonic() < deadline:
        pass
    stopped.set()
    thread.join(PATIENCE / 2)
    assert isinstance(outcome[0], raftsvc.StoppedError)


def test_who_would_join_another_version_hears_of_the_version_at_once(serve: Serve) -> None:
    other = Problem(400, "unsupported_version", "this node speaks version 3 of the protocol")
    with pytest.raises(raftsvc.ConfigurationError, match="speaks version 3"):
        ask(serve(answering("400 Bad Request", other.encode())))


@pytest.mark.parametrize("size", [100, 1_000_000])
def test_of_an_answer_that_nobody_signed_not_much_is_looked_at(serve: Serve, size: int) -> None:
    problem = Problem(401, "unauthenticated", "x" * size)
    network = Network(None, Authenticator(SECRET, None, False), 5.0, 5.0)
    url = serve(answering("401 Unauthorized", problem.encode()))
    with pytest.raises(UnsignedError) as raised:
        network.post(url, stranger_envelope("POST", "msg"), b"")
    assert raised.value.problem.code == ("unauthenticated" if size == 100 else "unknown")
    network.close()
