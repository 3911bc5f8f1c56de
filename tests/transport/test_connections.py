"""Who has to leave the listener, when, and for whom: by a fake clock, and against a real port."""

from __future__ import annotations

import io
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import requests

import raftsvc
from raftsvc.transport import connections as connections_module
from raftsvc.transport import listener as listener_module
from raftsvc.transport.connections import (
    HANDSHAKE_SECONDS,
    HEAD_SECONDS,
    IDLE_SECONDS,
    TRANSFER_BYTES_PER_SECOND,
    TRANSFER_SECONDS,
    Connection,
    Connections,
    origin_of,
)
from raftsvc.transport.listener import Listener
from raftsvc.transport.wire import JoinRequest
from tests.service.harness import SECRET, ListState, eventually, free_address
from tests.transport.harness import Recorder, call, make_app, request

PATIENCE = 60.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Guest:
    """The other end of a connection, and whether it was shown the door."""

    def __init__(self, room: Connections, host: str = "192.0.2.1") -> None:
        self.is_out = False
        self.record: Connection | None = room.admit(host, self)

    def break_off(self) -> None:
        self.is_out = True

    @property
    def here(self) -> Connection:
        assert self.record is not None
        return self.record


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def room(clock: Clock) -> Connections:
    return Connections(4, clock)


# -- deadlines


@pytest.mark.parametrize(
    ("begin", "seconds"),
    [
        (lambda record: None, HANDSHAKE_SECONDS),
        (lambda record: record.expects_head(), HEAD_SECONDS),
        (lambda record: record.takes_body(40_960), TRANSFER_SECONDS + 40_960 / TRANSFER_BYTES_PER_SECOND),
        (lambda record: record.takes_answer(4096), TRANSFER_SECONDS + 4096 / TRANSFER_BYTES_PER_SECOND),
        (lambda record: record.is_done(), IDLE_SECONDS),
    ],
    ids=["handshake", "head", "body", "answer", "idle"],
)
def test_whatever_a_client_is_at_has_an_end(
    room: Connections, clock: Clock, begin: Callable[[Connection], None], seconds: float
) -> None:
    guest = Guest(room)
    begin(guest.here)
    clock.now += seconds
    room.sweep()
    assert not guest.is_out
    clock.now += 0.1
    room.sweep()
    assert guest.is_out


@pytest.mark.parametrize("begin", [Connection.has_request, Connection.streams], ids=["its answer is made", "a stream"])
def test_what_is_not_up_to_the_client_takes_as_long_as_it_takes(
    room: Connections, clock: Clock, begin: Callable[[Connection], None]
) -> None:
    guest = Guest(room)
    begin(guest.here)
    clock.now += 1e6
    room.sweep()
    assert not guest.is_out


def test_a_body_announced_as_endless_is_not_given_endless_time(room: Connections, clock: Clock) -> None:
    guest = Guest(room)
    room.announce_body(guest.here, 10**18)
    clock.now += 600
    room.sweep()
    assert guest.is_out


# -- when there are too many


def test_the_longest_idle_stranger_makes_room(room: Connections, clock: Clock) -> None:
    guests = []
    for _ in range(4):
        guests.append(Guest(room))
        clock.now += 1
    guests[0].here.is_done()  # it was served just now
    newcomer = Guest(room)
    assert newcomer.record is not None
    assert [guest.is_out for guest in guests] == [False, True, False, False]


def test_a_peer_never_has_to_go_nor_a_stream(room: Connections, clock: Clock) -> None:
    peers = [Guest(room) for _ in range(3)]
    for peer in peers[:2]:
        peer.here.vouch()
    peers[2].here.streams()
    clock.now += 1000
    for _ in range(10):
        stranger = Guest(room)
        assert stranger.record is not None
    assert not any(peer.is_out for peer in peers)
    stranger.here.vouch()
    assert Guest(room).record is None, "only peers are there: who comes has to wait"
    room.make_room()
    assert not stranger.is_out


def test_who_has_most_connections_loses_one_be_they_ever_so_busy(room: Connections, clock: Clock) -> None:
    quiet = Guest(room, "198.51.100.7")
    clock.now += 100
    crowd = [Guest(room) for _ in range(3)]
    for busy in crowd:
        busy.here.is_done()
    for n in range(5):
        assert Guest(room, f"203.0.113.{n}").record is not None
        assert not quiet.is_out or n > 1, "the crowd is thinned before who came alone"
    assert sum(busy.is_out for busy in crowd) >= 2


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "192.0.2.9"])
def test_all_may_come_through_one_address(clock: Clock, host: str) -> None:
    """As they do from this machine, and behind a balancer."""
    room = Connections(100, clock)
    guests = [Guest(room, host) for _ in range(100)]
    assert not any(guest.is_out for guest in guests)
    assert Guest(room, host).record is not None


def test_addresses_that_one_host_can_have_count_as_one() -> None:
    assert origin_of("2001:db8:1:2:3::4") == origin_of("2001:db8:1:2:ffff::1%eth0")
    assert origin_of("2001:db8:1:2::1") != origin_of("2001:db8:1:3::1")
    assert origin_of("::ffff:192.0.2.1") == origin_of("192.0.2.1") != origin_of("192.0.2.2")


def test_strangers_send_so_much_at_a_time_and_no_more(clock: Clock) -> None:
    room = Connections(200, clock)
    senders = []
    for _ in range(100):
        clock.now += 0.01
        senders.append(Guest(room))
        room.announce_body(senders[-1].here, 768 * 1024)
    pending = [one for one in senders if not one.is_out]
    assert len(pending) * 768 * 1024 <= connections_module.MAX_STRANGE_BYTES
    assert pending == senders[-len(pending) :], "who has been sending for longest went"
    pending[0].here.has_request()
    room.announce_body(Guest(room).here, 700 * 1024)
    assert not any(one.is_out for one in pending), "what has arrived does not count any more"


def test_what_peers_send_is_not_counted(clock: Clock) -> None:
    room = Connections(200, clock)
    peers = [Guest(room) for _ in range(100)]
    for peer in peers:
        peer.here.vouch()
        room.announce_body(peer.here, 768 * 1024)
    room.announce_body(Guest(room).here, 768 * 1024)
    assert not any(peer.is_out for peer in peers)


# -- against a real port


def echo(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    start_response("200 OK", [("Content-Length", str(len(body) + 2))])
    return [body + b"ok"]


@pytest.fixture
def serve(clock: Clock) -> Iterator[Callable[..., Listener]]:
    made: list[Listener] = []

    def make(app: Any = echo, context: ssl.SSLContext | None = None) -> Listener:
        listener = Listener(app, "127.0.0.1:0", context, clock=clock)
        made.append(listener)
        listener.start()
        assert listener.wait_bound(PATIENCE)
        return listener

    yield make
    for listener in made:
        listener.stop()


@pytest.fixture(scope="module")
def server_context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    path = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=n1 -keyout key.pem -out cert.pem"
    subprocess.run(command.split(), cwd=path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path / "cert.pem", path / "key.pem")
    return context


def connect(listener: Listener) -> socket.socket:
    assert listener.address is not None
    return socket.create_connection(listener.address, timeout=PATIENCE)


def drips_until_it_is_ended(connection: socket.socket, clock: Clock, drop: bytes) -> None:
    """Send `drop` each second of the listener's clock, and read nothing but the end."""
    connection.settimeout(0.05)
    for _ in range(400):
        clock.now += 1
        try:
            connection.sendall(drop)
        except TimeoutError:
            continue  # it takes no more just now, but lives
        except OSError:
            return
        try:
            if connection.recv(1, socket.MSG_PEEK) == b"":
                return
        except TimeoutError:
            continue
        except OSError:
            return
    raise AssertionError("it goes on for ever")


def test_an_application_is_told_that_its_client_is_gone(serve: Callable[..., Listener]) -> None:
    asked: Queue[Callable[[], bool]] = Queue()
    goes_on = threading.Event()

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        asked.put(environ["raftsvc.is_gone"])
        assert goes_on.wait(PATIENCE)
        return echo(environ, start_response)

    listener = serve(app)
    try:
        for resets in (False, True):
            connection = connect(listener)
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            is_gone = asked.get(timeout=PATIENCE)
            assert not is_gone()
            if resets:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
            eventually(is_gone, "it is seen")
        with connect(listener) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / ")  # the next request begins
            assert not asked.get(timeout=PATIENCE)()
    finally:
        goes_on.set()


@pytest.mark.parametrize(
    ("beginning", "drop"),
    [
        (b"", b"G"),
        (b"GET / HTTP/1.1\r\n", b"a: b\r\n"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nCookie: ", b"a"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n", b"x"),
    ],
    ids=["request line", "headers", "one header", "body"],
)
def test_a_client_that_sends_bit_by_bit_is_ended(
    serve: Callable[..., Listener], clock: Clock, beginning: bytes, drop: bytes
) -> None:
    with connect(serve()) as connection:
        connection.sendall(beginning)
        drips_until_it_is_ended(connection, clock, drop)


def test_a_handshake_that_comes_bit_by_bit_is_ended(
    serve: Callable[..., Listener], clock: Clock, server_context: ssl.SSLContext
) -> None:
    with connect(serve(context=server_context)) as connection:
        connection.sendall(b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03")  # a record of 16 KiB begins
        drips_until_it_is_ended(connection, clock, b"x")


def test_the_second_request_of_a_connection_has_its_time_too(serve: Callable[..., Listener], clock: Clock) -> None:
    with connect(serve()) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        while not connection.recv(4096).endswith(b"ok"):
            pass
        clock.now += IDLE_SECONDS - 20  # a pause is allowed
        connection.sendall(b"GET / HTTP/1.1\r\n")
        drips_until_it_is_ended(connection, clock, b"a: b\r\n")


def test_a_client_that_asks_and_asks_and_reads_nothing_is_ended(serve: Callable[..., Listener], clock: Clock) -> None:
    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n" + bytes(60_000)
    listener = serve()
    with connect(listener) as connection, connect(listener) as other:
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            while True:
                connection.sendall(request)
        other.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert other.recv(12) == b"HTTP/1.1 200"

        def is_ended() -> bool:
            clock.now += 1
            try:
                connection.send(b"x", socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError:
                return True
            return False

        eventually(is_ended, "the end of who does not read")


def test_a_connection_over_tls_counts_once(
    serve: Callable[..., Listener], server_context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "MAX_CONNECTIONS", 4)
    listener = serve(context=server_context)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    four = [client.wrap_socket(connect(listener)) for _ in range(4)]
    for one in four:
        one.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert one.recv(12) == b"HTTP/1.1 200"
    for one in four:
        one.close()


# -- who is no stranger


@pytest.mark.parametrize("path", ["msg", "confirm"])
def test_only_a_request_that_is_new_makes_a_connection_a_peer_s(path: str) -> None:
    app = make_app(Recorder())
    said: list[str] = []

    def ask(environ: dict[str, Any], body: bytes = b"") -> list[str]:
        said.clear()
        call(app, {**environ, "raftsvc.vouch": lambda: said.append("a peer's"), "wsgi.input": io.BytesIO(body)})
        return said

    recorded = request(path, b"")
    assert ask(recorded) == ["a peer's"]
    assert ask(recorded) == [], "it was heard before"
    assert ask(request(path, b"", secret="of some other cluster")) == []
    asked = JoinRequest("peer.example:1", bytes(16)).encode()
    assert ask(request("join", asked), asked) == [], "the challenge is to be met yet"


def test_where_everybody_is_served_nobody_is_known(room: Connections) -> None:
    said: list[str] = []
    environ = {**request("msg", b"", secret=None), "raftsvc.vouch": lambda: said.append("a peer's")}
    assert call(make_app(Recorder(), secret=None, insecure=True), environ).status == 200
    assert not said


# -- the size of what is not known yet


def answer_to(listener: Listener, data: bytes) -> bytes:
    with connect(listener) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it had enough
        parts = []
        try:
            while part := connection.recv(65536):
                parts.append(part)
        except ConnectionResetError:
            pass
        return b"".join(parts)


def head_of(length: int, lines: int) -> bytes:
    """A head of so many bytes in all, spread over so many headers."""
    beginning, end = b"GET / HTTP/1.1\r\nHost: x\r\n", b"\r\n"
    rest = length - len(beginning) - len(end)
    sizes = [rest // lines + (n < rest % lines) for n in range(lines)]
    return beginning + b"".join(b"a:" + b"x" * (size - 4) + b"\r\n" for size in sizes) + end


def test_the_bound_of_a_head_is_small() -> None:
    assert listener_module.MAX_HEAD_BYTES == 16 * 1024


@pytest.mark.parametrize("lines", [1, 3, 90])
def test_a_head_has_so_many_bytes_however_they_are_spread(serve: Callable[..., Listener], lines: int) -> None:
    listener = serve()
    limit = listener_module.MAX_HEAD_BYTES
    assert answer_to(listener, head_of(limit, lines)).startswith(b"HTTP/1.1 200 ")
    assert b" 431 " in answer_to(listener, head_of(limit + 1, lines)).split(b"\r\n")[0]


def test_a_long_address_counts_as_the_headers_do(serve: Callable[..., Listener]) -> None:
    half = listener_module.MAX_HEAD_BYTES // 2
    answer = answer_to(serve(), b"GET /" + b"p" * half + b" HTTP/1.1\r\nHost: x\r\na: " + b"x" * half + b"\r\n\r\n")
    assert b" 431 " in answer.split(b"\r\n")[0]


def test_a_hundred_long_lines_are_not_read(serve: Callable[..., Listener]) -> None:
    answer = answer_to(serve(), b"GET / HTTP/1.1\r\n" + (b"a: " + b"x" * 60_000 + b"\r\n") * 100 + b"\r\n")
    assert answer == b"" or b" 431 " in answer.split(b"\r\n")[0]
    assert b" 200 " not in answer


@pytest.mark.parametrize(
    "header",
    [b"Raft-Part: 1\r\n 2", b"Raft-Part: 1\r\n\t2", b"a: b\rContent-Length: 20", b"a: b\x00c", b"a: \x1b[2J", b" a: b"],
)
def test_a_header_that_another_would_read_differently_is_refused(serve: Callable[..., Listener], header: bytes) -> None:
    answer = answer_to(serve(), b"GET / HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1 ") == 1


# -- all together


def test_a_crowd_that_only_keeps_connections_shuts_out_neither_probes_nor_peers_nor_who_joins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "MAX_CONNECTIONS", 64)
    services = []
    for n in range(3):
        addr = free_address()
        services.append(
            raftsvc.start(
                addr, tmp_path / f"n{n}", None, ListState(), secret=SECRET, listen=addr, election_timeout=10.0
            )
        )
    crowd: list[socket.socket] = []
    host, port = str(services[0].status()["addr"]).split(":")
    try:
        services[0].init()
        services[1].join(str(services[0].status()["addr"]), PATIENCE)

        def has_streams() -> bool:
            pair = [services[0].status()["streams"].get("2"), services[1].status()["streams"].get("1")]
            return pair == [{"in": True, "out": True}] * 2

        eventually(has_streams, "streams")
        before = services[0].status()["term"]
        for _ in range(100):
            crowd.append(socket.create_connection((host, int(port)), timeout=PATIENCE))
            crowd[-1].sendall(b"G")
        for _ in range(3):
            assert requests.get(f"http://{host}:{port}/raft/readyz", timeout=PATIENCE).status_code == 200
        services[2].join(f"{host}:{port}", PATIENCE)
        assert services[1].exec(b"meanwhile", timeout=PATIENCE)
        assert services[0].status()["term"] == before
        assert has_streams(), "no peer had to go"
    finally:
        for connection in crowd:
            connection.close()
        for service in services:
            service.stop()
