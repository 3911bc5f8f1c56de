"""An answer that comes drop by drop holds nobody longer than one deadline, whoever asks and for what."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
import requests

from raftsvc.core.founding import Question
from raftsvc.errors import JoinFailedError
from raftsvc.transport import (
    Authenticator,
    JoinRequest,
    Network,
    UnansweredError,
    ask,
    request_join,
    stranger_envelope,
    who_answers,
)
from raftsvc.transport.stream import NotOfferedError
from raftsvc.transport.wire import UnreachableError
from tests.transport.harness import SECRET
from tests.transport.test_peer import PATIENCE, NodeStub

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
STARTS = {
    "status": b"",
    "headers": b"HTTP/1.1 200 OK\r\nX: ",
    "body": HEAD,
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n",
    "error": b"HTTP/1.1 409 Conflict\r\nContent-Length: 100000\r\n\r\n",
}
SECONDS = 0.4


@contextmanager
def dripping(start: bytes) -> Iterator[tuple[str, Callable[[], None]]]:
    """One that begins its answers by `start` and goes on by a byte now and then: where it is, and to end its listening.

    Its connections go on until all is over.
    """
    is_over = threading.Event()

    def drip(connection: socket.socket) -> None:
        with connection:
            try:
                connection.sendall(start)
                while not is_over.wait(SECONDS / 8):
                    connection.sendall(b"x")
            except OSError:
                pass

    def serve(server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=drip, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}", lambda: (server.shutdown(socket.SHUT_RDWR), server.close())[1]
        finally:
            is_over.set()
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)


def form(network: Network, addr: str) -> None:
    ask(network, Question(addr, "n2:8001", (addr, "n2:8001"), 1, b"", b""), SECONDS)


def join(network: Network, addr: str) -> None:
    request_join(network, addr, JoinRequest("n2:8001", b"t" * 16), SECONDS, threading.Event())


def look(network: Network, addr: str) -> None:
    found = who_answers(network, NodeStub.identity, [addr], SECONDS)[addr]
    assert not found.code
    raise UnreachableError("nobody")


def message(network: Network, addr: str) -> None:
    network.post(f"http://{addr}/raft", stranger_envelope("POST", "msg"), b"x" * 1000)


def stream(network: Network, addr: str) -> None:
    held = network.open_stream(f"http://{addr}/raft", stranger_envelope("GET", "stream"))
    held.close()
    raise UnreachableError("it is one, as far as is known by now")


def is_over_in_time(
    do: Callable[[Network, str], None], start: bytes, session: requests.Session | None = None
) -> BaseException | None:
    """By which error it ended; fails unless that came in time, and, but with a Session of others, no thread is left."""
    network = Network(session, Authenticator(SECRET, None, False), SECONDS, SECONDS)
    outcome: list[BaseException] = []

    def run() -> None:
        try:
            do(network, addr)
        except Exception as error:
            outcome.append(error)

    with dripping(start) as (addr, _):
        former = set(threading.enumerate())
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(20 * SECONDS)
        assert not thread.is_alive(), "it is held by who drips"
        deadline = time.monotonic() + 20 * SECONDS
        while session is None and (
            left := [t for t in set(threading.enumerate()) - former if t.name.startswith("raftsvc-")]
        ):
            assert time.monotonic() < deadline, f"{left} are held by who drips"
            left[0].join(0.05)
    network.close()
    return outcome[0] if outcome else None


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
@pytest.mark.parametrize("do", [form, join, look, message, stream])
def test_an_answer_that_drips_holds_nobody(do: Callable[[Network, str], None], start: bytes) -> None:
    error = is_over_in_time(do, start)
    assert isinstance(error, (UnansweredError, UnreachableError, NotOfferedError, JoinFailedError))


@pytest.mark.parametrize("start", [STARTS["headers"], STARTS["body"]], ids=["headers", "body"])
@pytest.mark.parametrize("do", [form, join, look])
def test_nor_with_a_session_of_the_applications_own(do: Callable[[Network, str], None], start: bytes) -> None:
    assert is_over_in_time(do, start, requests.Session()) is not None


def test_who_drips_for_ever_costs_a_few_threads_and_no_more() -> None:
    network = Network(requests.Session(), Authenticator(SECRET, None, False), SECONDS, SECONDS)
    with dripping(STARTS["headers"]) as (addr, _):
        former = set(threading.enumerate())
        for _ in range(20):
            with pytest.raises(UnansweredError, match=r"drop by drop|no whole answer"):
                ask(network, Question(addr, "n2:8001", (addr, "n2:8001"), 1, b"", b""), 0.1)
        asking = [t for t in set(threading.enumerate()) - former if t.name == "raftsvc-ask"]
        assert len(asking) <= 8
    for thread in asking:
        thread.join(PATIENCE)


def test_an_answer_that_is_slow_and_gets_on_is_waited_for() -> None:
    """As over a link that others fill: in pieces, each in time, at a rate that gets it there."""
    pieces, seconds = 9, 10 * SECONDS
    is_given_up: list[OSError] = []

    def serve(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            try:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (4096 * pieces))
                for _ in range(pieces):
                    threading.Event().wait(seconds / 8)
                    connection.sendall(b"x" * 4096)
            except OSError as error:
                is_given_up.append(error)

    network = Network(None, Authenticator(None, None, True), seconds, seconds)
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        answer = network.post(url, stranger_envelope("POST", "msg"), b"")
        thread.join(PATIENCE)
    assert len(answer) == 4096 * pieces and not is_given_up
    network.close()
