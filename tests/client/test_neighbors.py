"""A process of the same host and user asks the node of its directory, without a key."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import raftsvc
from raftsvc import kv
from raftsvc.attached import sockets
from raftsvc.client.owner import Owner
from raftsvc.member.attachment import Ask, Told
from tests.attached.hosts import Host, final_items
from tests.attached.test_lock_and_socket import feed_server
from tests.client.harness import OpenStore
from tests.service.harness import PATIENCE, SECRET, eventually, free_address, in_background
from tests.service.test_forks import in_child


class Neighborhood:
    """One node with a port of its own, in this process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.addr = free_address()
        self.start()

    def start(self) -> None:
        self.state = OpenStore()
        self.service = raftsvc.start(self.addr, self.path, state=self.state, secret=SECRET, listen=self.addr)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Neighborhood]:
    made = Neighborhood(tmp_path / "node")
    yield made
    made.service.stop()


def test_a_process_of_the_host_has_the_face_of_the_store_and_all_rights(node: Neighborhood) -> None:
    store = raftsvc.connect(node.path)
    node.service.init()
    assert store.incr("n", timeout=PATIENCE) == 1
    version = store.set("a", b"x" * 300_000)
    assert store.get("a") == kv.Value(b"x" * 300_000, version)
    assert list(raftsvc.connect(str(node.path)).list()) == ["a", "n"]
    store.allow("127.0.0.1:9")
    assert store.allowed() == {"127.0.0.1:9"}
    assert store.service.status()["addr"] == node.addr
    with pytest.raises(kv.ConflictError):
        store.set("a", b"", kv.if_not_exists("a"))
    with pytest.raises(raftsvc.Rejected):
        store.service.query(b"no question")
    in_child(lambda: store.incr("n", timeout=PATIENCE))
    assert store.incr("n") == 3


def test_an_owner_sees_that_a_call_is_over_whoever_was_forked_meanwhile(
    node: Neighborhood, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftsvc.attached.server._HELLO_SECONDS", 10 * PATIENCE)  # it cuts nobody off
    node.service.init()
    server = feed_server(node.service)
    connect, copies = sockets.connect, []

    def connect_and_fork(directory: str, timeout: float) -> socket.socket | None:
        connection = connect(directory, timeout)
        if connection is not None:
            in_child(look)
            copies.append(connection.dup())  # as one has that was forked past Python
        return connection

    def look() -> None:
        for name in set(os.listdir("/proc/self/fd")) - {str(each.fileno()) for each in copies}:
            with suppress(OSError):  # it is no socket, or ended meanwhile
                there = socket.socket(fileno=os.dup(int(name)))
                with there, suppress(OSError):  # it listens
                    assert there.getpeername() != str(node.path / sockets.NAME), "it keeps none"

    monkeypatch.setattr(sockets, "connect", connect_and_fork)
    for number in range(1, 4):
        assert raftsvc.connect(node.path).incr("n", timeout=PATIENCE) == number
    assert len(copies) >= 3
    eventually(lambda: not server._connections, "nobody is there any more")
    for each in copies:
        each.close()


LATE: dict[str, Callable[[Path], object]] = {
    "drain": lambda path: Owner(path).drain(timeout=0.2),
    "transfer": lambda path: Owner(path).transfer(timeout=0.2),
    "evict": lambda path: Owner(path).evict("127.0.0.1:9", timeout=0.2),
    "backup": lambda path: Owner(path).backup(str(path.parent / "backup"), timeout=0.2),
    "client": lambda path: raftsvc.connect(path).incr("n", timeout=0.2),
}


@pytest.mark.parametrize("what", LATE)
def test_what_an_owner_that_was_suspended_comes_to_too_late_is_not_done(
    node: Neighborhood, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    node.service.init()
    desk = feed_server(node.service)._house.desk
    goes_on = threading.Event()
    told: list[bytes] = []
    answer = desk.answer

    def answer_later(ask: Ask, tell: Callable[[Told], None]) -> None:
        assert goes_on.wait(PATIENCE)
        answer(ask, lambda said: (told.append(said.result), tell(said))[1])

    monkeypatch.setattr(desk, "answer", answer_later)
    with pytest.raises((raftsvc.OutcomeUnknown, raftsvc.NotApplied)):
        LATE[what](node.path)
    goes_on.set()
    eventually(lambda: told, "it came to it")
    assert all(b"too late" in each for each in told), told


def test_an_answer_that_is_too_large_is_refused_at_once(node: Neighborhood) -> None:
    node.service.init()
    store = raftsvc.connect(node.path)
    for number in range(7):
        store.set(f"{number}", b"x" * 500_000, timeout=PATIENCE)
    for ask in (lambda: store.list(timeout=PATIENCE), lambda: store.get_many(map(str, range(7)), PATIENCE)):
        with pytest.raises(raftsvc.Rejected, match="less at once"):
            ask()
    assert len(store.list(max_bytes=2_000_000, timeout=PATIENCE)) == 5


def test_where_there_is_no_node_nothing_was_done(node: Neighborhood, tmp_path: Path) -> None:
    for place in (tmp_path / "nowhere", tmp_path, str(tmp_path)):
        store = raftsvc.connect(place)
        with pytest.raises(raftsvc.NotApplied):
            store.set("a", b"", timeout=0.3)
        with pytest.raises(raftsvc.ReadTimeoutError):
            store.get("a", 0.3)
    begun = time.monotonic()
    with pytest.raises(raftsvc.NotApplied, match="init"):
        raftsvc.connect(node.path).set("a", b"", timeout=3.0)
    assert time.monotonic() - begun < PATIENCE / 4
    with pytest.raises(raftsvc.ConfigurationError, match="name:key"):
        raftsvc.connect(["127.0.0.1:1", node.path])
    with pytest.raises(raftsvc.ConfigurationError, match=r"a directory begins with / or a dot, as \./data-1 does"):
        raftsvc.connect("data-1")
    with pytest.raises(raftsvc.ConfigurationError, match=r"https://host:port/prefix\Z"):
        raftsvc.connect("ftp://data-1")


def test_calls_wait_for_a_node_that_is_started_again(node: Neighborhood) -> None:
    node.service.init()
    store = raftsvc.connect(node.path)
    assert store.incr("n", timeout=PATIENCE) == 1
    node.service.stop()
    call = in_background(lambda: store.incr("n", timeout=PATIENCE))
    node.start()
    assert call() == 2


def test_calls_go_on_and_count_once_while_owners_of_the_directory_are_killed(tmp_path: Path) -> None:
    host = Host(tmp_path / "host", threads=0)
    try:
        host.start("init").wait_ready()
        for _ in range(2):
            host.start().wait_ready()
        connection = raftsvc.connect(host.directory).service
        names: list[str] = []
        stopping = threading.Event()

        def work() -> None:
            while not stopping.is_set():
                name = f"c{len(names)}"
                connection.propose(name.encode(), PATIENCE)
                names.append(name)

        working = in_background(work)
        for _ in range(2):
            goal = len(names) + 10
            eventually(lambda: len(names) >= goal, "calls are served")  # noqa: B023 - it is called at once
            host.owner().kill()
        goal = len(names) + 10
        eventually(lambda: len(names) >= goal, "calls are served by the last")
        stopping.set()
        working()
        for process in host.living:
            process.stop()
        assert final_items(host)[0] == names
    finally:
        host.end()
