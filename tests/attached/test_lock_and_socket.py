"""What an attached process does about an owner that is none, or cannot be reached: the lock says who owns."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import raftsvc
from raftsvc.attached import server as server_module
from raftsvc.attached import sockets
from raftsvc.attached.asking import encode_result
from raftsvc.attached.frames import Decoder, encode
from raftsvc.attached.pipe import Pipe
from raftsvc.attached.server import FeedServer
from raftsvc.errors import ConfigurationError
from raftsvc.kv import KeyValue, KeyValueState
from raftsvc.member.attachment import (
    IS_REFUSED,
    WAITS_FOR_CALL,
    Ask,
    AskIndex,
    Hello,
    News,
    Propose,
    Told,
    Wait,
    Welcome,
)
from raftsvc.member.waiters import Call, Read
from raftsvc.storage import Store
from tests.attached.hosts import eventually, free_port
from tests.attached.stranger import Stranger
from tests.attached.test_choreography import ADD, Attached
from tests.attached.test_feed_server import Stranger as Speaker
from tests.pulse import Pulse

pytestmark = pytest.mark.processes

PATIENCE = 30.0
SECRET = "a secret of the tests, long enough"


def start(directory: Path) -> tuple[raftsvc.Service, KeyValue]:
    addr, state = f"127.0.0.1:{free_port()}", KeyValueState()
    service = raftsvc.start(
        addr, directory, state=state, listen=addr, secret=SECRET, max_waiting=0, election_timeout=0.3
    )
    return service, KeyValue(service, state)


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Stranger]:
    stranger = Stranger(tmp_path)
    try:
        yield stranger
    finally:
        stranger.end()


@pytest.fixture
def attached(tmp_path: Path, stranger: Stranger) -> Iterator[tuple[raftsvc.Service, KeyValue]]:
    """Attached to a process that has the lock, and lets whoever comes wait without a word."""
    stranger.do(f"lock process {stranger.pid} on {socket.gethostname()}")
    stranger.do("listen")
    service, kv = start(tmp_path)
    try:
        eventually(lambda: "does not answer" in str(service.err()))
        yield service, kv
    finally:
        service.stop()


def owner_pid(service: raftsvc.Service) -> Any:
    process = service.status()["process"]
    assert isinstance(process, dict)
    return process["owner_pid"]


def test_who_has_the_socket_and_not_the_lock_keeps_nobody_from_the_directory(
    attached: tuple[raftsvc.Service, KeyValue], stranger: Stranger
) -> None:
    service, kv = attached
    stranger.do("unlock")
    eventually(lambda: owner_pid(service) == os.getpid())
    service.init()
    assert kv.incr("key") == 1


def test_another_socket_in_the_place_of_a_silent_one_is_tried(
    attached: tuple[raftsvc.Service, KeyValue], stranger: Stranger
) -> None:
    service, _ = attached
    stranger.do(f"wait {WAITS_FOR_CALL} for a call of init")
    eventually(lambda: service.err() is None)
    with pytest.raises(raftsvc.UninitializedError, match="for a call of init"):
        service.exec(b"")


def test_who_keeps_the_lock_of_an_owner_that_has_ended_is_named(tmp_path: Path, stranger: Stranger) -> None:
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    stranger.do(f"lock process {ended.pid} on {socket.gethostname()}")
    # As a worker sees it whose owner has ended, and left its socket and its lock to a forked child.
    stranger.do(f"wait {WAITS_FOR_CALL} x")
    service, _ = start(tmp_path)
    try:
        worker = service._membership._sharing._worker  # type: ignore[union-attr]
        assert worker is not None
        eventually(lambda: worker.replica.link.wait is not None, "it was told to wait, and by whom")
        assert worker.replica.owner_pid == stranger.pid
        worker.replica.owner_pid = ended.pid
        eventually(lambda: f"process {stranger.pid} (" in str(service.err()))
        assert "was forked from" in str(service.err())
    finally:
        service.stop()


def test_who_is_sent_away_comes_back_after_a_pause(tmp_path: Path, stranger: Stranger) -> None:
    stranger.do(f"lock process {stranger.pid} on {socket.gethostname()}")
    stranger.do("end")
    service, _ = start(tmp_path)
    try:
        before = int(stranger.do("count"))
        eventually(lambda: int(stranger.do("count")) > before + 3)
        assert int(stranger.do("count")) < 400, "and not as fast as it can"
    finally:
        service.stop()


def test_who_is_let_in_nowhere_says_why(tmp_path: Path, stranger: Stranger) -> None:
    stranger.do(f"lock process {stranger.pid} on {socket.gethostname()}")
    stranger.do(f"wait {IS_REFUSED} there are too many")
    service, _ = start(tmp_path)
    try:
        eventually(lambda: "there are too many" in str(service.err()))
        with pytest.raises(raftsvc.NodeFailedError, match="there are too many"):
            service.exec(b"")
        assert not service.is_ready()
        stranger.do("unlock")
        stranger.end()
        eventually(lambda: owner_pid(service) == os.getpid())
        eventually(lambda: service.err() is None)
    finally:
        service.stop()


PASSING = {
    "descriptors": OSError(errno.EMFILE, "Too many open files"),
    "memory": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "access": OSError(errno.EACCES, "Permission denied"),
    "user": ConfigurationError("the process at the other end is of user 4711"),
}


@pytest.mark.parametrize("where", ["connect", "own"])
@pytest.mark.parametrize("what", PASSING)
def test_what_keeps_a_process_from_an_owner_for_a_while_is_told_once_and_passes(
    tmp_path: Path,
    stranger: Stranger,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: str,
    what: str,
) -> None:
    stranger.do(f"lock process {stranger.pid} on {socket.gethostname()}")
    stranger.do(f"wait {WAITS_FOR_CALL} x")
    service, kv = start(tmp_path)

    def fail(*_: object) -> None:
        raise PASSING[what]

    try:
        with monkeypatch.context() as patch:
            patch.setattr(*((sockets, "connect", fail) if where == "connect" else (Store, "own", fail)))
            if where == "own":  # who listens is gone, and who has the lock with him
                stranger.end()
            else:  # the connection is over, and the lock another's
                stranger.do("drop")
            eventually(lambda: str(PASSING[what]) in str(service.err()))
            eventually(lambda: [str(PASSING[what]) in record.getMessage() for record in caplog.records].count(True))
        if where == "connect":
            eventually(lambda: service.err() is None, "it is attached again")
            stranger.end()
        eventually(lambda: owner_pid(service) == os.getpid())
        service.init()
        assert kv.incr("key") == 1
        assert [str(PASSING[what]) in record.getMessage() for record in caplog.records].count(True) == 1
    finally:
        service.stop()


# -- at the owner


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[tuple[raftsvc.Service, KeyValue, Path]]:
    service, kv = start(tmp_path)
    try:
        yield service, kv, tmp_path
    finally:
        service.stop()


def feed_server(service: raftsvc.Service) -> FeedServer:
    sharing = service._membership._sharing
    assert sharing is not None
    assert sharing._server is not None
    return sharing._server


def test_one_too_many_is_told_so_and_who_cannot_be_served_leaves_no_trace(
    owner: tuple[raftsvc.Service, KeyValue, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, _, directory = owner
    service.init()
    server = feed_server(service)

    def no_thread(connection: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(server_module, "MAX_VISITING", 3)
        patch.setattr(server_module._Connection, "start", no_thread)
        for _ in range(5):
            refused = Speaker(directory)
            said = refused.hear(Wait)
            assert (said.reason, "can't start new thread" in said.why) == (IS_REFUSED, True)
            refused.await_end()
            refused.close()
        assert not server._connections
    with monkeypatch.context() as patch:
        patch.setattr(server_module, "MAX_ATTACHED", 1)
        welcome = Speaker(directory).say(Hello(17))
        assert welcome.hear(Welcome).is_current
        refused = Speaker(directory).say(Hello(18))
        said = refused.hear(Wait)
        assert (said.reason, "1 already" in said.why) == (IS_REFUSED, True)
        refused.await_end()
        refused.close()
        assert raftsvc.connect(directory).incr("key", timeout=PATIENCE) == 1, "clients are no such processes"
        welcome.close()
    welcome = Speaker(directory).say(Hello(17))
    assert welcome.hear(Welcome).is_current
    welcome.close()


def test_an_owner_whose_directory_was_moved_away_leaves_the_socket_of_the_next_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory, moved = tmp_path / "data", tmp_path / "data.old"
    former, theirs = start(directory)
    former.init()
    theirs.set("who", b"former")
    directory.rename(moved)
    following, ours = start(directory)
    try:
        following.init()
        ours.set("who", b"next")
        inode = sockets.inode_of(str(directory))
        eventually(lambda: "moved, replaced or deleted" in caplog.text, "the former owner says so")
        assert who_is_at(directory) == b"next"
        former.stop()
        assert sockets.is_in_place(str(directory), inode), "it is the one that it was"
        assert who_is_at(directory) == b"next"
        assert "another is made" not in caplog.text
    finally:
        former.stop()
        following.stop()


def who_is_at(directory: Path) -> bytes:
    value = raftsvc.connect(directory).get("who", PATIENCE)
    assert value is not None
    return value.data


def test_an_owner_whose_directory_is_brought_back_is_reached_there_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "data"
    service, kv = start(directory)
    try:
        service.init()
        kv.set("who", b"it")
        directory.rename(tmp_path / "elsewhere")
        eventually(lambda: "moved, replaced or deleted" in caplog.text, "it says so")
        (tmp_path / "elsewhere").rename(directory)
        assert who_is_at(directory) == b"it"
    finally:
        service.stop()


@pytest.mark.parametrize("is_replaced", [False, True])
def test_nothing_is_acknowledged_once_the_directory_was_deleted_or_moved(tmp_path: Path, is_replaced: bool) -> None:
    directory = tmp_path / "data"
    service, kv = start(directory)
    try:
        service.init()
        kv.set("who", b"it")
        directory.rename(tmp_path / "elsewhere")
        if is_replaced:
            shutil.copytree(tmp_path / "elsewhere", directory, ignore=shutil.ignore_patterns("*.sock", "sock*"))
        with pytest.raises(raftsvc.RaftError) as caught:
            kv.set("who", b"nobody", timeout=PATIENCE)
        assert not isinstance(caught.value, raftsvc.NotApplied)
        failure = eventually(service.err, "the node says why it works no more")
        assert "no start finds what is written" in str(failure)
        assert not service.is_ready()
    finally:
        service.stop()


def test_clients_keep_no_attached_process_out_however_many_they_are(
    owner: tuple[raftsvc.Service, KeyValue, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, _, directory = owner
    service.init()
    monkeypatch.setattr(server_module, "MAX_VISITING", 3)
    asked, answer = threading.Event(), threading.Event()
    server = feed_server(service)
    do = server._house.desk._do

    def do_when_told(what: str, arguments: Mapping[str, object]) -> Mapping[str, object]:
        asked.set()
        answer.wait(PATIENCE)
        return do(what, arguments)

    monkeypatch.setattr(server._house.desk, "_do", do_when_told)
    asking = Speaker(directory).say(Ask(1, "status", b"{}"))
    assert asked.wait(PATIENCE)
    idle = [Speaker(directory) for _ in range(6)]
    for each in idle[:4]:  # the oldest
        each.await_end()
    for pid in (17, 18, 19):
        one = Speaker(directory).say(Hello(pid))
        assert one.hear(Welcome).is_current
        idle.append(one)
    assert sorted(service.status()["process"]["attached"]) == [17, 18, 19]  # type: ignore[index, call-overload]
    answer.set()
    assert asking.hear(Told).context == 1
    for each in [asking, *idle]:
        each.close()


@pytest.mark.parametrize("has_node", [False, True])
def test_who_neither_says_hello_nor_asks_anything_is_cut_off_after_a_while(
    owner: tuple[raftsvc.Service, KeyValue, Path], monkeypatch: pytest.MonkeyPatch, has_node: bool
) -> None:
    service, _, directory = owner
    if has_node:
        service.init()
    monkeypatch.setattr(server_module, "_HELLO_SECONDS", 0.2)
    monkeypatch.setattr(server_module, "_PATIENCE_SECONDS", 0.1)
    server = feed_server(service)
    answer = threading.Event()
    do = server._house.desk._do

    def do_when_told(what: str, arguments: Mapping[str, object]) -> Mapping[str, object]:
        answer.wait(PATIENCE)
        return do(what, arguments)

    monkeypatch.setattr(server._house.desk, "_do", do_when_told)
    asking = Speaker(directory).say(Ask(1, "status", b"{}"))
    attached = Speaker(directory).say(Hello(17))
    for _ in range(3):
        silent = Speaker(directory)
        silent.await_end()
        silent.close()
    answer.set()
    assert asking.hear(Told).context == 1, "who waits for an answer gets it"
    asking.await_end()
    attached.hear(News if has_node else Wait)
    eventually(lambda: [each.pid for each in server._connections] == [17])
    for each in (asking, attached):
        each.close()


def test_farewells_to_many_who_do_not_read_take_no_longer_than_to_one(tmp_path: Path) -> None:
    pairs = [socket.socketpair() for _ in range(20)]
    server = FeedServer(str(tmp_path), server_module.House(lambda: None, lambda: ConfigurationError(""), None))  # type: ignore[arg-type]
    hooks = server_module._Hooks(lambda *_: None, lambda _: None)
    for one, _ in pairs:
        connection = server_module._Connection(one, server._house, 1, server._stopping, hooks)
        one.setblocking(False)
        try:
            while True:
                one.send(bytes(65536))
        except BlockingIOError:
            one.settimeout(10.0)
        server._connections.add(connection)
    with Pulse() as pulse:
        server.stop("the owner was stopped")
        assert pulse.seconds < 2.0
    for pair in pairs:
        for each in pair:
            each.close()


def test_what_was_asked_too_long_ago_is_not_done(owner: tuple[raftsvc.Service, KeyValue, Path]) -> None:
    service, _, directory = owner
    speaker = Speaker(directory)
    speaker.say(Ask(1, "init", b'{"timeout": 5, "deadline": 0.001}'))
    assert b"too late" in speaker.hear(Told).result
    with pytest.raises(raftsvc.UninitializedError):
        service.exec(b"")
    speaker.say(Ask(2, "init", b'{"timeout": 5, "deadline": 1e300}'))
    assert speaker.hear(Told).result == encode_result({})
    speaker.close()


def test_a_node_that_failed_goes_on_saying_so_to_who_is_attached(owner: tuple[raftsvc.Service, KeyValue, Path]) -> None:
    service, _, directory = owner
    service.init()
    speaker = Speaker(directory).say(Hello(17))
    speaker.hear(Welcome)
    node: Any = service._membership.node
    node._note_failure(OSError(errno.EIO, "the disk is gone"), "a test")
    while "the disk is gone" not in speaker.hear(News).trouble:
        pass  # what was said before
    for _ in range(10):  # News is a sign of life
        assert "the disk is gone" in speaker.hear(News).trouble
    speaker.close()


# -- what is handed to an owner that does not read


def test_what_does_not_leave_is_bounded_and_what_is_not_under_way_can_be_taken_back() -> None:
    ours, theirs = socket.socketpair()
    pipe = Pipe()
    pipe.begin(ours)
    hello, asked = encode(Hello(1)), encode(Propose(1, [bytes(60_000)]))
    with pipe.lock:
        pipe.send(hello)
        while not pipe.is_clogged():
            pipe.send(asked, is_asked=True)
        pipe.send(hello)
        before = pipe.unsent_bytes
        pipe.take_back()
        assert pipe.unsent_bytes < before
        assert pipe.unsent_bytes <= len(asked) + len(hello)
    theirs.setblocking(False)
    decoder = Decoder()
    said: list[object] = []
    while pipe.unsent_bytes or not isinstance(said[-1], Hello):
        said += decoder.feed(theirs.recv(1 << 20))
        with pipe.lock:
            pipe._push()
    assert decoder.is_between, "frames are whole"
    assert [isinstance(each, Hello) for each in said] == [True, *[False] * (len(said) - 2), True], "in their order"
    pipe.close()
    theirs.close()


@pytest.mark.parametrize("how", ["silent", "clogged"])
def test_nothing_is_handed_to_an_owner_that_does_not_take_it_and_who_gives_up_was_never_proposed(how: str) -> None:
    attached = Attached().welcomed()
    replica = attached.replica
    replica.core.outbox.clear()
    is_clogged = how == "clogged"
    replica.core.is_clogged = lambda: is_clogged
    if how == "silent":
        for _ in range(20):
            replica.tick()
        assert replica.core.is_silent
    call, read, kept = Call(ADD), Read(), Call(ADD)
    for each in (call, kept):
        replica.submit(each)
    replica.submit_read(read)
    for _ in range(200):
        replica.advance()
        replica.tick()
        if how == "clogged":
            attached.hear(News(1, 1, is_ready=True))
    assert not replica.core.outbox
    assert replica.calls.withdraw(call)
    assert not call.unsettled, "so it is NotApplied"
    is_clogged = False
    attached.hear(News(1, 1, is_ready=True))
    for _ in range(10):
        replica.tick()
        attached.hear(News(1, 1, is_ready=True))
    proposed = [data for each in replica.core.outbox if isinstance(each, Propose) for data in each.proposals]
    assert len(set(proposed)) == 1
    assert any(isinstance(each, AskIndex) for each in replica.core.outbox)
