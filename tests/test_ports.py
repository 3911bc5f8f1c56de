"""A port that is kept: who is forked has it, one process at a time accepts there, and nobody is refused meanwhile."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from raftsvc import ports
from raftsvc.errors import ConfigurationError, NotListeningError
from raftsvc.transport.listener import Listener
from tests.attached.hosts import ROOT, eventually, free_port

PATIENCE = 60.0


@pytest.fixture
def place() -> Iterator[ports.Place]:
    """Of a port that this process keeps."""
    place = ("127.0.0.1", free_port())
    ports.keep(f"127.0.0.1:{place[1]}")
    yield place
    if (port := ports.kept_at(place)) is not None:
        port.close()


def kept(place: ports.Place) -> ports.Port:
    port = ports.kept_at(place)
    assert port is not None
    return port


def spell(place: ports.Place) -> str:
    return f"{place[0]}:{place[1]}"


class Child:
    """A process that is forked from this one, as workers are: it does something, says so, and stays."""

    def __init__(self, action: Callable[[], object]) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                os.write(writing, repr(action()).encode())
                signal.alarm(int(PATIENCE))
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.pause()
            finally:
                os._exit(1)
        os.close(writing)
        self.said = os.read(reading, 1000).decode()
        os.close(reading)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def greet(name: bytes) -> Any:
    def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", str(len(name)))])
        return [name]

    return app


def ask(place: ports.Place) -> bytes:
    connection = http.client.HTTPConnection(*place, timeout=PATIENCE)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read()
    finally:
        connection.close()


def test_of_all_that_have_it_one_process_accepts_until_it_ends(place: ports.Place) -> None:
    first = Child(lambda: kept(place).claim() is not None)
    try:
        second = Child(lambda: kept(place).claim())
        try:
            assert (first.said, second.said) == ("True", "None")
            assert kept(place).claim() is None
        finally:
            second.kill()
        assert kept(place).claim() is None, "the end of one that did not accept lets nobody in"
    finally:
        first.kill()
    sockets = kept(place).claim()
    assert sockets is not None, "what a killed process had is free"
    third = Child(lambda: kept(place).claim())
    third.kill()
    assert third.said == "None", "a fork of who accepts does not"
    for each in sockets:
        each.close()


def test_two_listeners_of_one_process_do_not_accept_at_once(place: ports.Place) -> None:
    sockets = kept(place).claim()
    assert sockets is not None
    assert kept(place).claim() is None
    for each in sockets:
        each.close()
    kept(place).release()
    again = kept(place).claim()
    assert again is not None
    for each in again:
        each.close()
    kept(place).release()


def test_who_comes_while_nobody_listens_waits_for_the_next_that_does(place: ports.Place) -> None:
    told: list[NotListeningError | None] = []
    for name in (b"first", b"second"):
        with socket.create_connection(place, PATIENCE) as early:
            early.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            listener = Listener(greet(name), spell(place), on_trouble=told.append)
            listener.start()
            try:
                parts = b""
                while part := early.recv(1000):
                    parts += part
                assert parts.endswith(name)
                assert ask(place) == name
                assert listener.address == place
            finally:
                listener.stop()
    assert not told


def test_a_listener_waits_until_the_former_process_has_left_and_nobody_is_refused(place: ports.Place) -> None:
    def serve() -> bool:
        listener = Listener(greet(b"former"), spell(place))
        listener.start()
        return listener.wait_bound(PATIENCE)

    former = Child(serve)
    told: list[NotListeningError | None] = []
    listener = Listener(greet(b"later"), spell(place), on_trouble=told.append)
    try:
        assert former.said == "True"
        listener.start()
        assert not listener.wait_bound(0.2)
        assert ask(place) == b"former"
    finally:
        former.kill()
    try:
        assert ask(place) == b"later", "though it was asked at once"
        assert not told
    finally:
        listener.stop()


def test_a_child_of_a_process_with_a_listener_has_nothing_of_it(place: ports.Place) -> None:
    listener = Listener(greet(b"parent"), spell(place))
    listener.start()
    assert listener.wait_bound(PATIENCE)
    child = Child(lambda: ports.kept_at(place))
    try:
        assert child.said == "None"
        assert ask(place) == b"parent"
        listener.stop()
        kept(place).close()
        with socket.socket() as other:  # no SO_REUSEADDR helps against one that listens
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(place)
            other.listen()
    finally:
        child.kill()


def test_a_worker_has_it_and_no_child_of_a_worker_whenever_that_is_forked(place: ports.Place) -> None:
    def fork_early() -> object:
        child = Child(lambda: (ports.kept_at(place), [fd for fd in descriptors if is_of(fd, place)]))
        child.kill()
        return child.said, ports.kept_at(place) is not None, sum(is_of(fd, place) for fd in descriptors)

    descriptors = kept(place).descriptors()[:-1]
    worker = Child(fork_early)
    worker.kill()
    assert worker.said == repr((repr((None, [])), True, 1))


def is_of(fd: int, place: ports.Place) -> bool:
    try:
        with socket.socket(fileno=os.dup(fd)) as found:
            return bool(found.getsockname() == place)
    except OSError:
        return False


def test_who_keeps_none_any_more_frees_the_port(place: ports.Place) -> None:
    ports.keep("")
    assert ports.kept_at(place) is None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(place, PATIENCE)


def test_a_process_takes_what_was_handed_to_its_parent_which_does_not_know_it(place: ports.Place) -> None:
    """As a worker does of a server that was executed anew, and has no hooks by now."""
    environ: dict[str, str] = {}
    ports.hand_on(environ)

    def take(environ: dict[str, str]) -> object:
        inherited = ports._kept.pop(place)  # it is open, and nothing is known of it
        ports.adopt(environ)
        port = ports.kept_at(place)
        if port is None:
            return None
        accepting = port.claim() or []
        child = Child(lambda: ports.kept_at(place))
        child.kill()
        inheritable = [os.get_inheritable(fd) for fd in port.descriptors()]
        return len(accepting), child.said, inheritable, inherited.place == place

    worker = Child(lambda: take(environ))
    worker.kill()
    assert worker.said == repr((1, "None", [False, False], True))
    to_another = {ports.VARIABLE: environ[ports.VARIABLE].replace(str(os.getpid()), "1")}
    stranger = Child(lambda: take(to_another))
    stranger.kill()
    assert stranger.said == "None"
    with open(__file__, "rb") as file:  # which has a name
        last = kept(place).descriptors()[-1]
        said = environ[ports.VARIABLE].replace(f", {last}]", f", {file.fileno()}]")
        assert said != environ[ports.VARIABLE]
        other = Child(lambda: take({ports.VARIABLE: said}))
        other.kill()
    assert other.said == "None"


@pytest.mark.parametrize(
    "said",
    ["", "[[[", "[" * 100_000, "7", '[{pid}, [["a", 1e400, 3, 4]]]', "[{pid}, [[1, 2, -7, 99999999999999999999]]]"],
)
def test_what_makes_no_sense_is_left_alone(said: str) -> None:
    before = dict(ports._kept)
    ports.adopt({ports.VARIABLE: said.replace("{pid}", str(os.getpid()))})
    assert ports._kept == before


def test_the_port_of_another_host_is_told_with_what_to_write(place: ports.Place) -> None:
    told: list[NotListeningError | None] = []
    listener = Listener(greet(b""), f"0.0.0.0:{place[1]}", on_trouble=told.append)
    listener.start()
    try:
        eventually(lambda: told, "it is told")
        assert f"listen='127.0.0.1:{place[1]}'" in str(told[0])
    finally:
        listener.stop()


def test_the_same_port_of_another_address_is_not_in_the_way(place: ports.Place) -> None:
    listener = Listener(greet(b"other"), f"127.0.0.2:{place[1]}")
    listener.start()
    try:
        assert listener.wait_bound(PATIENCE)
        assert ask(("127.0.0.2", place[1])) == b"other"
    finally:
        listener.stop()


def test_another_port_that_is_kept_takes_the_place_of_the_former(place: ports.Place) -> None:
    ports.keep(spell(place))
    other = ("127.0.0.1", free_port())
    ports.keep(spell(other))
    try:
        assert ports.kept_at(place) is None
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(place, PATIENCE)
        socket.create_connection(other, PATIENCE).close()
    finally:
        kept(other).close()
    with pytest.raises(ConfigurationError, match="names no port"):
        ports.keep("127.0.0.1:0")


NEXT = """
import os, socket, sys
from raftsvc import ports
place = ("127.0.0.1", int(sys.argv[1]))
ports.adopt(os.environ)
assert ports.VARIABLE not in os.environ
port = ports.kept_at(place)
print("nothing" if port is None else [os.get_inheritable(fd) for fd in port.descriptors()])
if port is not None:
    (accepting,) = port.claim()
    client = socket.create_connection(place)
    accepting.setblocking(True)
    accepting.accept()[0].sendall(b"hello")
    print(client.recv(10).decode())
"""
FIRST = """
import os, sys
from raftsvc import ports
number, how, code = sys.argv[1:]
ports.keep(f"127.0.0.1:{number}")
environ = dict(os.environ)
ports.hand_on(environ)
if how == "to another":
    environ[ports.VARIABLE] = environ[ports.VARIABLE].replace(str(os.getpid()), "1")
elif how == "no sockets":
    descriptors = str(ports.kept_at(("127.0.0.1", int(number))).descriptors())[1:-1]
    environ[ports.VARIABLE] = environ[ports.VARIABLE].replace(descriptors, "0, 1")
elif how == "nonsense":
    environ[ports.VARIABLE] = "[[["
os.execve(sys.executable, [sys.executable, "-c", code, number], environ)
"""


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("as it is", ["[False, False]", "hello"]),
        ("to another", ["nothing"]),
        ("no sockets", ["nothing"]),
        ("nonsense", ["nothing"]),
    ],
)
def test_a_program_that_is_executed_goes_on_with_it_and_takes_nothing_else(how: str, expected: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FIRST, str(free_port()), how, NEXT],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stdout.splitlines() == expected, done.stderr


def test_what_is_executed_otherwise_does_not_inherit_it(place: ports.Place) -> None:
    descriptors = kept(place).descriptors()
    code = f"import os\nfor fd in {descriptors}:\n  try: print(os.fstat(fd).st_ino)\n  except OSError: pass"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, close_fds=False, check=True)
    numbers = {os.fstat(fd).st_ino for fd in descriptors}
    assert not numbers & {int(line) for line in found.stdout.split()}
    with suppress(OSError):
        assert not any(os.get_inheritable(fd) for fd in descriptors)
