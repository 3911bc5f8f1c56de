"""The library's own server: correct, bounded, and undisturbed by whatever its clients do."""

from __future__ import annotations

import errno
import http.client
import json
import os
import signal
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from wsgiref.validate import validator

import pytest

import raftsvc
from raftsvc.transport import listener as listener_module
from raftsvc.transport.listener import Listener
from tests.service.harness import eventually

PATIENCE = 60.0


def echo(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/stream":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return (b"%d." % n for n in range(5))
    length = int(environ.get("CONTENT_LENGTH") or 0)
    body = environ["wsgi.input"].read(length) if length and environ["PATH_INFO"] != "/unread" else b""
    subject = environ.get("raftsvc.peer_certificate") or {}
    answer = b"%s %s %d %s" % (
        environ["REQUEST_METHOD"].encode(),
        environ["PATH_INFO"].encode(),
        len(body),
        str(subject.get("subject", "")).encode(),
    )
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer]


@pytest.fixture
def serve() -> Iterator[Callable[..., Listener]]:
    made: list[Listener] = []

    def make(app: Any = echo, address: str = "127.0.0.1:0", context: ssl.SSLContext | None = None) -> Listener:
        listener = Listener(app, address, context)
        made.append(listener)
        listener.start()
        return listener

    yield make
    for listener in made:
        listener.stop()


def connect(listener: Listener) -> http.client.HTTPConnection:
    assert listener.wait_bound(PATIENCE)
    assert listener.address is not None
    return http.client.HTTPConnection(*listener.address, timeout=PATIENCE)


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection.request(method, path, body)
    response = connection.getresponse()
    return response.status, response.read()


def raw(listener: Listener, data: bytes) -> bytes:
    """Send bytes, and everything that comes back until the server closes."""
    assert listener.wait_bound(PATIENCE) and listener.address is not None
    with socket.create_connection(listener.address, timeout=PATIENCE) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        parts = []
        try:
            while part := connection.recv(65536):
                parts.append(part)
        except ConnectionResetError:
            pass
        return b"".join(parts)


def test_requests_share_a_connection(serve: Callable[..., Listener]) -> None:
    connection = connect(serve())
    for n in range(5):
        assert ask(connection, "POST", "/a", bytes(n * 50_000)) == (200, b"POST /a %d " % (n * 50_000))
    assert ask(connection, "GET", "/b?c=d") == (200, b"GET /b 0 ")
    port = connection.sock.getsockname()[1]
    ask(connection, "GET", "/")
    assert connection.sock.getsockname()[1] == port, "kept alive"


def test_it_follows_the_wsgi_standard(serve: Callable[..., Listener]) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body]

    assert ask(connect(serve(validator(app))), "POST", "/x", b"content") == (200, b"content")


def test_a_response_without_a_length_streams(serve: Callable[..., Listener]) -> None:
    connection = connect(serve())
    assert ask(connection, "GET", "/stream") == (200, b"0.1.2.3.4.")
    assert ask(connection, "GET", "/after")[0] == 200


def test_a_body_that_the_app_left_does_not_spoil_the_next_request(serve: Callable[..., Listener]) -> None:
    connection = connect(serve())
    assert ask(connection, "POST", "/unread", bytes(1000))[0] == 200
    assert ask(connection, "POST", "/a", b"xyz") == (200, b"POST /a 3 ")


def test_requests_that_it_cannot_serve_are_refused(serve: Callable[..., Listener]) -> None:
    listener = serve()
    assert b" 411 " in raw(listener, b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    for coding in (b"", b" ", b"identity"):
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:" + coding + b"\r\nContent-Length: 5\r\n\r\n"
        assert b" 411 " in raw(listener, head + b"0\r\n\r\n")
    assert b" 400 " in raw(listener, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n")
    assert b" 400 " in raw(listener, b"\x16\x03\x01 garbage\r\n\r\n")
    assert b" 414 " in raw(listener, b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n")
    assert b" 431 " in raw(listener, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n")
    for twice in (b"Content-Length: 0", b"Host: x", b"Authorization: a", b"Idempotency-Key: k"):
        assert b" 400 " in raw(listener, b"GET / HTTP/1.1\r\n" + 2 * (twice + b"\r\n") + b"\r\n")
    assert raw(listener, b"GET / HTTP/1.1\r\nHost: x\r\n") == b"", "cut short: more may have been said"
    multipart = b"GET / HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
    assert b" 200 " in raw(listener, multipart)
    raw(listener, b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\nhalf")
    assert ask(connect(listener), "GET", "/")[0] == 200


@pytest.mark.parametrize(
    "headers",
    [b"Content-Length : 20", b"Content-Length: 0\r\nContent-Length: 20", b"nonsense\r\nContent-Length: 20"],
)
def test_a_request_whose_end_is_not_clear_is_refused_and_nothing_in_it_served(
    serve: Callable[..., Listener], headers: bytes
) -> None:
    answer = raw(serve(), b"POST / HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n\r\nGET /in HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"GET /in" not in answer


def test_what_it_refuses_is_a_problem_in_json(serve: Callable[..., Listener]) -> None:
    listener = serve()
    for request, status in (
        (b"nonsense here too\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 505),
        (b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
    ):
        head, _, body = raw(listener, request).partition(b"\r\n\r\n")
        said = json.loads(body)
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert b"content-type: application/problem+json" in head.lower()
        assert said["status"] == status and set(said) == {"type", "title", "status", "detail", "code"}
    head, _, body = raw(listener, b"HEAD / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ") and not body


def test_a_client_that_knows_no_chunks_gets_none(serve: Callable[..., Listener]) -> None:
    for line in (b"GET /stream HTTP/1.0\r\n", b"GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n"):
        head, _, body = raw(serve(), line + b"\r\n").partition(b"\r\n\r\n")
        assert body == b"0.1.2.3.4.", "the end of the connection is its end"
        assert b"transfer-encoding" not in head.lower() and b"connection: close" in head.lower()


@pytest.mark.parametrize("is_refused", [False, True])
def test_an_answer_reaches_a_client_that_is_still_sending(serve: Callable[..., Listener], is_refused: bool) -> None:
    """Who closes with something unread has the system forget what he said."""
    listener = serve()
    assert listener.wait_bound(PATIENCE) and listener.address is not None
    length = 8 * 1024 * 1024
    for _ in range(3):
        with socket.create_connection(listener.address, timeout=PATIENCE) as connection:
            twice = b"Content-Length: %d\r\n" % length * (1 + is_refused)
            connection.sendall(b"POST /unread HTTP/1.1\r\nHost: x\r\n" + twice + b"\r\n")
            connection.sendall(bytes(length))
            answer = b""
            while part := connection.recv(65536):
                answer += part
            assert answer.startswith(b"HTTP/1.1 400 " if is_refused else b"HTTP/1.1 200 ")
            assert b"connection: close" in answer.lower()


def test_a_body_is_asked_for_once_the_application_wants_it(serve: Callable[..., Listener]) -> None:
    listener = serve()
    for path, begin in ((b"/unread", b"HTTP/1.1 200 "), (b"/read", b"HTTP/1.1 100 ")):
        assert listener.wait_bound(PATIENCE) and listener.address is not None
        with socket.create_connection(listener.address, timeout=PATIENCE) as connection:
            connection.sendall(
                b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
            )
            answer = connection.recv(65536)
            assert answer.startswith(begin)
            if path == b"/read":
                connection.sendall(b"abc")
                assert b"POST /read 3 " in connection.recv(65536)


def test_a_body_that_is_read_once_the_answer_began_is_empty_if_it_was_not_asked_for(
    serve: Callable[..., Listener],
) -> None:
    """The line that asks for it would stand within the answer."""

    def late(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        start_response("200 OK", [])
        yield b"begun"
        body = environ["wsgi.input"]
        yield b"%d" % len(body.readline() + body.read(3) + body.read())

    answer = raw(serve(late), b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ") and b"connection: close" in head.lower()
    assert body == b"5\r\nbegun\r\n1\r\n0\r\n0\r\n\r\n"


def test_silent_clients_hold_up_nobody_and_are_bounded(
    serve: Callable[..., Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "MAX_CONNECTIONS", 5)
    listener = serve()
    assert listener.wait_bound(PATIENCE) and listener.address is not None
    silent = [socket.create_connection(listener.address, timeout=PATIENCE) for _ in range(20)]
    assert ask(connect(listener), "GET", "/")[0] == 200
    for one in silent[:15]:
        assert is_closed(one), "over the limit the longest idle go"
    for one in silent:
        one.close()


def is_closed(connection: socket.socket) -> bool:
    """Whether the server ends it without a word, which is waited for."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_connections_for_which_there_was_no_thread_do_not_count(
    serve: Callable[..., Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "MAX_CONNECTIONS", 5)
    listener = serve()
    assert listener.wait_bound(PATIENCE) and listener.address is not None

    def no_thread(*args: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(socketserver.ThreadingMixIn, "process_request", no_thread)
        for _ in range(5):
            with socket.create_connection(listener.address, timeout=PATIENCE) as refused:
                assert refused.recv(1) == b""
    assert ask(connect(listener), "GET", "/")[0] == 200


def test_a_connection_that_cannot_be_accepted_is_not_tried_without_a_pause(
    serve: Callable[..., Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    paused = threading.Event()

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        paused.set()
        time.sleep(seconds)

    def refuse(server: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    listener = serve()
    assert listener.wait_bound(PATIENCE) and listener.address is not None
    with monkeypatch.context() as patch:
        patch.setattr(socketserver.TCPServer, "get_request", refuse)
        patch.setattr(listener_module, "time", SimpleNamespace(sleep=pause))
        connection = socket.create_connection(listener.address, timeout=PATIENCE)
        assert paused.wait(PATIENCE)
    with connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200", "it waited, and is served now"
    assert min(pauses) >= 0.05


def test_the_port_is_taken_as_soon_as_it_is_free(serve: Callable[..., Listener]) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        listener = serve(address=f"127.0.0.1:{port}")
        assert not listener.wait_bound(0.2)
        assert listener.address is None
    assert listener.wait_bound(PATIENCE)
    assert ask(connect(listener), "GET", "/")[0] == 200


def test_stop_ends_open_connections(serve: Callable[..., Listener]) -> None:
    listener = serve()
    connection = connect(listener)
    ask(connection, "GET", "/")
    assert listener.address is not None
    listener.stop()
    listener.stop()
    assert connection.sock.recv(1) == b""
    with pytest.raises(OSError):
        socket.create_connection(listener.address, timeout=5.0)


def test_a_wrong_address_is_refused() -> None:
    for address in (
        "host",
        ":1",
        "host:",
        "host:x",
        "host:65536",
        "host:999999",
        "host:\u00b2",
        "host:\u0668",
        "host:-1",
    ):
        with pytest.raises(raftsvc.ConfigurationError):
            Listener(echo, address)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 and localhost that vouches for itself."""
    path = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=n1 -keyout key.pem -out cert.pem "
    command += "-addext subjectAltName=IP:127.0.0.1,DNS:localhost"
    subprocess.run(command.split(), cwd=path, check=True, capture_output=True)
    return path


def contexts(path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context in (server, client):
        context.load_cert_chain(path / "cert.pem", path / "key.pem")
        context.load_verify_locations(path / "cert.pem")
    server.verify_mode = ssl.CERT_REQUIRED
    return server, client


def test_mutual_tls_tells_the_app_who_came(serve: Callable[..., Listener], certificates: Path) -> None:
    server, client = contexts(certificates)
    listener = serve(context=server)
    assert listener.wait_bound(PATIENCE) and listener.address is not None
    silent = socket.create_connection(listener.address)  # never begins its handshake
    connection = http.client.HTTPSConnection(*listener.address, context=client, timeout=PATIENCE)
    status, answer = ask(connection, "GET", "/")
    assert status == 200 and b"commonName" in answer
    nameless = ssl.create_default_context(cafile=str(certificates / "cert.pem"))
    with pytest.raises((ssl.SSLError, OSError)):
        ask(http.client.HTTPSConnection(*listener.address, context=nameless, timeout=PATIENCE), "GET", "/")
    silent.close()


def test_nothing_is_sent_in_the_clear_over_a_connection_that_stop_ends(
    serve: Callable[..., Listener], certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[ssl.SSLSocket] = []

    def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        served.append(environ["raftsvc.socket"])
        return echo(environ, start_response)

    server, client = contexts(certificates)
    listener = serve(app=app, context=server)
    assert listener.wait_bound(PATIENCE) and listener.address is not None
    connection = http.client.HTTPSConnection(*listener.address, context=client, timeout=PATIENCE)
    assert ask(connection, "GET", "/")[0] == 200
    was_encrypted: list[bool] = []
    shutdown = socket.socket.shutdown

    def spy(self: socket.socket, how: int) -> None:
        if self is served[0] and how == socket.SHUT_RDWR:
            was_encrypted.append(served[0].version() is not None)
        shutdown(self, how)

    monkeypatch.setattr(socket.socket, "shutdown", spy)
    listener.stop()
    assert was_encrypted == [True]


def test_a_cluster_over_mutual_tls(certificates: Path, tmp_path: Path) -> None:
    from tests.service.harness import ListState, eventually, free_address

    services, states = [], []
    try:
        for n in range(2):
            server, _ = contexts(certificates)
            session = raftsvc.transport.peer.make_session()
            session.cert = (str(certificates / "cert.pem"), str(certificates / "key.pem"))
            session.verify = str(certificates / "cert.pem")
            port = free_address().rpartition(":")[2]
            address = f"127.0.0.1:{port}"
            states.append(ListState())
            services.append(
                raftsvc.start(
                    f"https://{address}/raft",
                    tmp_path / f"n{n}",
                    session,
                    states[-1],
                    mutual_tls=True,
                    listen=address,
                    listen_ssl=server,
                )
            )
        services[0].init()
        services[1].join(str(services[0].status()["addr"]), PATIENCE)
        assert services[1].exec(b"over tls", timeout=PATIENCE)
        services[0].wait_read()
        assert states[0].items == [b"over tls"]

        def has_streams() -> bool:
            return all(s["in"] and s["out"] for service in services for s in service.status()["streams"].values())

        eventually(has_streams, "streams over TLS both ways")
        assert services[1].exec(bytes(800_000), timeout=PATIENCE)
        services[0].wait_read()
        assert len(states[0].items[-1]) == 800_000
    finally:
        for service in services:
            service.stop()


def test_many_clients_at_once_are_all_served(serve: Callable[..., Listener]) -> None:
    listener = serve()
    failures: list[object] = []

    def work() -> None:
        try:
            connection = connect(listener)
            for _ in range(20):
                assert ask(connection, "POST", "/a", b"x" * 300) == (200, b"POST /a 300 ")
            connection.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not failures


def test_a_forked_child_keeps_neither_the_port_nor_a_connection(serve: Callable[..., Listener]) -> None:
    """A view may start a process that outlives the worker; the next one needs the port."""
    listener = serve()
    assert listener.wait_bound(PATIENCE)
    address = listener.address
    assert address is not None
    with socket.create_connection(address, timeout=PATIENCE) as connection:
        connection.sendall(b"GET /one HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"
        child = os.fork()
        if child == 0:
            time.sleep(2 * PATIENCE)
            os._exit(0)
        try:
            listener.stop()
            while connection.recv(65536):
                pass
            again = serve(address=f"{address[0]}:{address[1]}")
            assert again.wait_bound(PATIENCE)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def resolve_to(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Have every name mean all of `hosts`."""

    def found(host: str, port: int, **options: Any) -> list[Any]:
        kinds = [(socket.AF_INET6, (h, port, 0, 0)) if ":" in h else (socket.AF_INET, (h, port)) for h in hosts]
        return [(family, socket.SOCK_STREAM, 6, "", address) for family, address in kinds]

    monkeypatch.setattr(listener_module.socket, "getaddrinfo", found)


def answers(host: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((host, port), 5) as connection:
        connection.sendall(b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        return connection.recv(1000).startswith(b"HTTP/1.1 200")
    return False


@pytest.mark.parametrize(
    ("hosts", "served"),
    [
        (("127.0.0.5", "127.0.0.6"), ("127.0.0.5", "127.0.0.6")),
        (("127.0.0.5", "127.0.0.5"), ("127.0.0.5",)),
        (("192.0.2.1", "127.0.0.5"), ("127.0.0.5",)),
        (("2001:db8::1", "127.0.0.5", "127.0.0.7"), ("127.0.0.5", "127.0.0.7")),
    ],
)
def test_all_addresses_of_its_host_that_are_here_are_served_at_one_port(
    monkeypatch: pytest.MonkeyPatch, hosts: tuple[str, ...], served: tuple[str, ...]
) -> None:
    create = socket.create_connection
    with monkeypatch.context() as patch:
        resolve_to(patch, *hosts)
        listener = Listener(echo, "a-name:0")
        listener.start()
        assert listener.wait_bound(PATIENCE)
    try:
        assert listener.address is not None
        port = listener.address[1]
        assert create is socket.create_connection
        assert all(answers(host, port) for host in served)
    finally:
        listener.stop()
    assert not any(answers(host, port) for host in served)


@pytest.mark.parametrize("taken", [0, 1])
def test_an_address_that_is_taken_is_told_once_and_none_is_served_until_it_is_free(
    monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    hosts = ("127.0.0.5", "127.0.0.6")
    resolve_to(monkeypatch, *hosts)
    told: list[raftsvc.NotListeningError | None] = []
    with socket.socket() as other:
        other.bind((hosts[taken], 0))
        other.listen()
        port = other.getsockname()[1]
        listener = Listener(echo, f"a-name:{port}", on_trouble=told.append)
        listener.start()
        try:
            deadline = time.monotonic() + PATIENCE
            while not told and time.monotonic() < deadline:
                listener.wait_bound(0.01)
            assert len(told) == 1 and "in use" in str(told[0])
            other.close()
            assert listener.wait_bound(PATIENCE)
            assert told[1:] == [None]
        finally:
            listener.stop()


def test_a_port_that_who_had_it_is_about_to_leave_is_no_trouble() -> None:
    told: list[raftsvc.NotListeningError | None] = []
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        listener = Listener(echo, f"127.0.0.1:{other.getsockname()[1]}", on_trouble=told.append)
        refused = 0
        serve = listener._listen

        def listen() -> None:
            nonlocal refused
            try:
                serve()
            except OSError:
                refused += 1
                if refused == 2:
                    other.close()
                raise

        listener._listen = listen  # type: ignore[method-assign]
        listener.start()
        try:
            assert listener.wait_bound(PATIENCE)
            assert (refused, told) == (2, [])
        finally:
            listener.stop()


@pytest.mark.parametrize("host", ["a..name", "n" * 64, "\u2488.name"])
def test_a_host_that_can_be_none_is_told_of_and_not_the_end_of_a_thread(host: str) -> None:
    told: list[raftsvc.NotListeningError | None] = []
    listener = Listener(echo, f"{host}:80", on_trouble=told.append)
    listener.start()
    try:
        eventually(lambda: told, "it is told of")
        assert "cannot be bound" in str(told[0])
        assert listener._thread.is_alive()
    finally:
        listener.stop()


def test_a_listener_that_breaks_says_so_and_begins_anew() -> None:
    told: list[raftsvc.NotListeningError | None] = []
    broken = [MemoryError("no more"), RuntimeError("set changed size")]
    is_well = threading.Event()  # it is broken no more

    def clock() -> float:
        if broken:
            raise broken.pop()
        is_well.set()
        return time.monotonic()

    listener = Listener(echo, "127.0.0.1:0", on_trouble=told.append, clock=clock)
    listener.start()
    try:
        eventually(lambda: is_well.is_set() and told[-1:] == [None], "it was in trouble, and is over it")
        assert isinstance(told[0], raftsvc.NotListeningError)
        assert ask(connect(listener), "GET", "/")[0] == 200
    finally:
        listener.stop()


def test_a_client_whose_time_is_over_while_tls_takes_its_socket_is_ended(
    monkeypatch: pytest.MonkeyPatch, certificates: Path
) -> None:
    now = [0.0]
    handshakes: list[str] = []

    class Slow(ssl.SSLContext):
        def wrap_socket(self, sock: socket.socket, *args: Any, **options: Any) -> ssl.SSLSocket:
            wrapped = super().wrap_socket(sock, *args, **options)
            now[0] += 1000.0
            listener._connections.sweep()  # which has no socket to end just now
            monkeypatch.setattr(wrapped, "do_handshake", lambda *rest: handshakes.append("begun"))
            return wrapped

    context = Slow(ssl.PROTOCOL_TLS_SERVER)
    listener = Listener(echo, "127.0.0.1:0", context, clock=lambda: now[0])
    listener.start()
    try:
        assert listener.wait_bound(PATIENCE) and listener.address is not None
        with socket.create_connection(listener.address, timeout=PATIENCE) as client:
            assert client.recv(1) == b"", "it is ended"
        assert not handshakes
    finally:
        listener.stop()
