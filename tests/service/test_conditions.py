"""What is wrong with a node is said by `err`, `status`, readiness and one log line, and passes when it is over."""

from __future__ import annotations

import errno
import logging
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

import raftsvc
from raftsvc.host import servers
from raftsvc.host.admission import Admission
from raftsvc.host.servers import HostPool, serves
from raftsvc.host.watch import ServerWatch
from raftsvc.storage import Store
from raftsvc.transport.listener import Listener
from tests.service.harness import (
    PATIENCE,
    SECRET,
    Cluster,
    ListState,
    Member,
    eventually,
    free_address,
    has_streams,
    in_background,
)

ELECTION = 0.4
OTHER_SECRET = "another secret, that is long enough, too"


@pytest.fixture
def quick(make_cluster: Callable[..., Cluster]) -> Cluster:
    return make_cluster(election_timeout=ELECTION)


def told(member: Member, kind: type[raftsvc.RaftError], label: str) -> raftsvc.RaftError:
    """The error of that kind, once the node says so, in its status too."""
    error: Any = eventually(
        lambda: isinstance(e := member.service.err(), kind) and label in member.status["conditions"] and e,
        f"{kind.__name__} is told",
    )
    return error  # type: ignore[no-any-return]


def well(*members: Member) -> None:
    for member in members:
        eventually(
            lambda m=member: m.service.err() is None and m.service.is_ready() and not m.status["conditions"],
            "it is over",
        )


@contextmanager
def said_once(caplog: pytest.LogCaptureFixture, begins: str, ends: str, of: Member | None = None) -> Iterator[None]:
    """One line when it begins and one when it is over; of one node, if others may say the same of themselves."""
    caplog.clear()
    beginning = "" if of is None else f"node {of.status['node_id']}: "
    with caplog.at_level(logging.WARNING):
        yield

    def count(text: str) -> int:
        lines = [record.getMessage() for record in caplog.records]
        return sum(text in line for line in lines if line.startswith(beginning))

    eventually(lambda: count(ends) >= 1, "it is said that it is over")
    assert (count(begins), count(ends)) == (1, 1)


# -- the disk


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.ENOMEM])
def test_a_disk_that_refuses_for_a_while_stops_nobody_for_good(
    quick: Cluster, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    quick.form(3)
    writer, refused = quick.leader(), quick.follower()
    with said_once(caplog, "writes to the log of node", "answers in time again", refused):
        refused.files.write_error = code
        assert writer.service.exec(b"meanwhile", timeout=PATIENCE)
        told(refused, raftsvc.DiskStalledError, "refused")
        assert not refused.service.is_ready()
        refused.files.write_error = None
        well(refused)
    assert refused.read() == [b"meanwhile"]


def test_equal_nodes_whose_disks_are_full_at_the_same_time_go_on_once_there_is_room(quick: Cluster) -> None:
    members = quick.form(3)
    for member in members:
        member.files.write_error = errno.ENOSPC
    waits = in_background(lambda: members[0].service.exec(b"waits", timeout=PATIENCE))
    for member in members:
        told(member, raftsvc.DiskStalledError, "stalled")
    for member in members:
        member.files.write_error = None
    well(*members)
    assert waits() is True
    assert [member.read() for member in members] == [[b"waits"]] * 3


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EROFS])
def test_a_segment_that_cannot_be_made_for_a_moment_keeps_its_callers_waiting_and_loses_nothing(
    quick: Cluster, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftsvc.service.Store", partial(Store, segment_bytes=4096))
    node = quick.add()
    node.service.init()
    node.files.create_error = code
    written = []

    def write() -> None:
        for n in range(80):
            assert node.service.exec(b"%100d" % n, timeout=PATIENCE)
            written.append(n)

    writing = in_background(write)
    told(node, raftsvc.StorageError, "refused")
    assert len(written) < 80
    node.files.create_error = None
    writing()
    well(node)
    node.restart()
    assert [int(item) for item in node.read()] == list(range(80))


def test_a_snapshot_that_finds_no_room_is_taken_later_without_anything_being_written(
    make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftsvc.member.engine._SNAPSHOT_RETRY", 1)
    node = make_cluster(election_timeout=ELECTION, snapshot_entries=5).add()
    node.service.init()
    node.files.create_error = errno.ENOSPC
    for n in range(6):
        node.service.exec(b"%d" % n)
    told(node, raftsvc.StorageError, "unsaved")
    assert node.service.is_ready(), "it serves as well as before"
    node.files.create_error = None
    well(node)
    eventually(lambda: node.status["snapshot_index"] > 0, "it is taken")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EMFILE, errno.EACCES, errno.EIO])
def test_a_snapshot_of_the_leader_that_cannot_be_stored_is_an_error_until_it_can(
    make_cluster: Callable[..., Cluster], caplog: pytest.LogCaptureFixture, code: int
) -> None:
    cluster = make_cluster(election_timeout=ELECTION, snapshot_entries=10, trailing_entries=5)
    members = cluster.form(3)
    away = cluster.follower()
    cluster.cut(away, [m for m in members if m is not away])
    for n in range(30):
        cluster.leader().service.exec(b"%d" % n, timeout=PATIENCE)
    eventually(lambda: cluster.leader().status["snapshot_index"] > 20, "what it lacks is compacted away")
    away.files.create_error = code
    with said_once(caplog, "snapshot cannot be stored", "nothing keeps it from storing", away):
        cluster.heal()
        told(away, raftsvc.StorageError, "unreceived")
        assert not away.service.is_ready()
        away.files.create_error = None
        well(away)
    assert len(away.read()) == 30


def test_a_disk_that_is_nearly_full_is_told_of_before_it_is(
    quick: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("raftsvc.member.vigil._LOOK_AT_ROOM", 1)
    node = quick.add()
    node.service.init()
    with said_once(caplog, "bytes are left on the disk", "there is room"):
        node.files.free = 40_000_000
        eventually(lambda: "low-room" in node.status["conditions"], "it is told")
        assert node.service.err() is None and node.service.is_ready()
        node.files.free = None
        eventually(lambda: not node.status["conditions"], "it is over")


# -- the State


class Gate(ListState):
    """A State that stands still while the gate is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()

    def apply(self, data: bytes, index: int) -> bool:
        self.gate.wait(PATIENCE)
        return super().apply(data, index)


def test_a_leader_whose_state_hangs_leaves_leading_to_others_and_comes_back(
    quick: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    members = quick.form(3)
    for member in members:
        member.make_state = Gate
        member.restart()
    leader = quick.leader()
    state: Any = leader.state
    with said_once(caplog, "the State of node", "the State goes on", leader):
        state.gate.clear()
        with pytest.raises(raftsvc.OutcomeUnknown, match=r"the State of (this )?node|hangs"):
            leader.service.exec(b"hangs", timeout=6 * ELECTION)
        told(leader, raftsvc.StateStalledError, "state-stalled")
        assert not leader.service.is_ready()
        rest = [m for m in members if m is not leader]
        eventually(lambda: any(m.is_leader for m in rest), "another leads")
        assert rest[0].service.exec(b"after", timeout=PATIENCE)
        with pytest.raises(raftsvc.ReadTimeoutError, match="applied here"):
            leader.service.wait_read(timeout=10 * ELECTION)  # it may take an election until somebody confirms it
        state.gate.set()
        well(leader)
    assert leader.read() == rest[0].read() == [b"hangs", b"after"]


# -- the others


def test_a_node_that_nobody_reaches_says_so_and_why_until_it_is_over(
    quick: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    members = quick.form(3)
    alone = quick.follower()
    others = [m for m in members if m is not alone]
    with said_once(caplog, "out of touch with any leader", "it hears a leader again", alone):
        quick.cut(alone, others)
        error = told(alone, raftsvc.OutOfTouchError, "out-of-touch")
        assert not alone.service.is_ready()
        eventually(
            lambda: all(f"{other.addr}: cut by the test" in str(alone.service.err()) for other in others), "it says why"
        )
        with pytest.raises(raftsvc.NotApplied, match=r"no leader is known .*out of touch"):
            alone.service.exec(b"a", timeout=0.2)
        assert isinstance(error, raftsvc.OutOfTouchError)
        eventually(lambda: quick.leader().service.err() is None, "to the others it is one that is away")
        gone = {str(alone.status["node_id"])}
        eventually(lambda: set(quick.leader().status["unreachable"]) == gone, "whom they do not reach")
        quick.heal()
        well(alone)
    eventually(lambda: not quick.leader().status["unreachable"], "and it is reached again")


@pytest.mark.parametrize("count", [3])
def test_who_has_nothing_to_say_to_a_member_learns_all_the_same_that_it_answers_again(
    make_cluster: Callable[..., Cluster], count: int
) -> None:
    quick = make_cluster(election_timeout=ELECTION, has_streams=False)
    members = quick.form(count)
    alone = quick.follower()
    quick.cut(alone, [m for m in members if m is not alone])
    told(alone, raftsvc.OutOfTouchError, "out-of-touch")
    eventually(lambda: len(alone.status["unreachable"]) == count - 1, "it knows who does not answer")
    quick.heal()
    well(alone)
    for member in members:
        eventually(lambda m=member: not m.status["unreachable"], "all answer")


def test_a_node_without_others_says_so(quick: Cluster) -> None:
    members = quick.form(3)
    for member in members[1:]:
        member.service.stop()
    told(members[0], raftsvc.OutOfTouchError, "out-of-touch")
    eventually(lambda: all(m.addr in str(members[0].service.err()) for m in members[1:]), "with whom")
    for member in members[1:]:
        member.start()
    well(*members)


def test_a_node_with_another_secret_is_told_of_on_both_sides_until_it_has_the_same(quick: Cluster) -> None:
    members = quick.form(3)
    odd = quick.follower()
    odd.service.stop()
    odd.options = {**odd.options, "secret": OTHER_SECRET}
    odd.start()
    error = told(odd, raftsvc.OutOfTouchError, "out-of-touch")
    eventually(lambda: "secret differs" in str(odd.service.err()), f"it says why, not only {error}")
    eventually(lambda: "wrong-secret" in odd.status["conditions"], "it is told")
    leader = quick.leader()
    assert odd.addr in str(told(leader, raftsvc.WrongSecretError, "wrong-secret"))
    eventually(leader.service.is_ready, "it serves all the same")
    odd.options = {**odd.options, "secret": SECRET}
    odd.restart()
    well(*members)


def test_a_node_of_another_version_is_told_of_on_both_sides_until_it_is_of_the_same(quick: Cluster) -> None:
    members = quick.form(3)
    leader, odd = quick.leader(), quick.follower()
    sends = {id(member): member.session.send for member in members}
    for member in members:
        # Those between it and the others, as another version would send them: it may sign otherwise, too.
        def send(request: Any, member: Member = member, **options: Any) -> Any:
            if member is odd or odd.addr in request.url:
                request.headers["Raft-Version"] = "1"
            return sends[id(member)](request, **options)

        member.session.send = send  # type: ignore[method-assign]
    odd.restart()
    eventually(lambda: "different versions of raftsvc" in str(odd.service.err()), "it says why")
    eventually(lambda: "wrong-version" in odd.status["conditions"], "it is told")
    leader = quick.leader()
    assert odd.addr in str(told(leader, raftsvc.WrongVersionError, "wrong-version"))
    eventually(leader.service.is_ready, "it serves all the same")
    for member in members:
        member.session.send = sends[id(member)]  # type: ignore[method-assign]
    well(*members)


def test_a_founder_that_lost_its_disk_and_founds_again_is_found_out_on_both_sides(quick: Cluster) -> None:
    members = quick.form(3)
    quick.leader().service.exec(b"kept")
    founder, *rest = members
    founder.service.stop()
    shutil.rmtree(founder.path)
    founder.start()
    founder.service.init()
    error = told(founder, raftsvc.WrongClusterError, "claimed")
    assert "join" in str(error)
    assert not founder.service.is_ready(), "nobody is to be served by an empty cluster"
    for member in rest:
        assert founder.addr in str(told(member, raftsvc.WrongClusterError, "wrong-cluster"))
    assert rest[0].service.exec(b"served", timeout=PATIENCE)
    eventually(lambda: all(member.service.is_ready() for member in rest), "who holds the data serves it")
    founder.service.stop()
    for member in rest:
        eventually(lambda m=member: "wrong-cluster" not in m.status["conditions"], "it is over")


def test_one_of_two_that_lost_its_disk_and_founds_a_cluster_is_found_out_by_the_other(quick: Cluster) -> None:
    """That has no majority without it, and keeps saying why."""
    first, second = quick.form(2)
    first.service.exec(b"kept")
    second.service.stop()
    shutil.rmtree(second.path)
    second.start()
    second.service.init()
    assert "join" in str(told(second, raftsvc.WrongClusterError, "claimed"))
    assert not second.service.is_ready()
    # Also once it is out of touch with any leader, which is graver: for that reason.
    eventually(lambda: second.addr in first.status["conditions"].get("wrong-cluster", ""), "the first is told")
    eventually(lambda: f"{second.addr}: 412 wrong_cluster" in str(first.service.err()), "and says why")
    second.service.stop()
    eventually(lambda: "wrong-cluster" not in first.status["conditions"], "it is over")


def test_trouble_in_a_sender_s_loop_does_not_end_it(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    members = cluster.form(3)
    failures = []

    def fails(self: object) -> None:
        if len(failures) < 3:
            failures.append(self)
            raise RuntimeError("of the library itself")

    monkeypatch.setattr("raftsvc.transport.peer.Peer._watch_streams", fails)
    monkeypatch.setattr("raftsvc.transport.peer._MAX_BACKOFF_SECONDS", 0.1)
    eventually(lambda: len(failures) == 3, "it fails")
    for member in members:
        assert member.service.exec(b"a", timeout=PATIENCE)
    assert len([t for t in threading.enumerate() if t.name.startswith("raftsvc-send-")]) >= 6


# -- where others reach it


def test_a_port_that_is_taken_is_an_error_of_the_node_until_it_is_free(
    quick: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    node = quick.add()
    node.service.init()
    node.service.stop()
    host, _, port = node.addr.rpartition(":")
    with said_once(caplog, "cannot be bound", "its listener is bound"), socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((host, int(port)))
        other.listen()
        node.start()
        told(node, raftsvc.NotListeningError, "not-listening")
        assert not node.service.is_ready()
        other.close()
        well(node)


@pytest.mark.parametrize("listen", ["192.0.2.1:8001", "no-such-host.invalid:8001"])
def test_an_address_that_is_not_here_is_an_error_even_before_there_is_a_cluster(quick: Cluster, listen: str) -> None:
    node = quick.add(listen=listen)
    assert isinstance(eventually(node.service.err), raftsvc.NotListeningError)
    assert not node.service.is_ready()
    node.service.init()
    assert isinstance(eventually(node.service.err), raftsvc.NotListeningError)


def test_a_node_leaves_once_the_requests_of_its_server_are_over_or_half_of_the_grace_is() -> None:
    for grace, is_serving in ((2 * PATIENCE, [True]), (0.2, [True])):
        left, is_stopping = threading.Event(), [False]
        watch = ServerWatch(Admission(0, None, has_listener=False), left.set, left)
        pool = HostPool("a server", 4, grace, lambda of=is_stopping: of[0], is_serving=lambda of=is_serving: of[0])  # type: ignore[misc]
        watch.begin(pool)
        is_stopping[0] = True
        if grace > 1:
            assert not left.wait(0.5), "what is under way is served"
            is_serving[0] = False
        assert left.wait(PATIENCE)


def test_whoever_serves_a_request_is_seen_unless_it_lasts_until_the_node_ends_it() -> None:
    begun, over = threading.Event(), threading.Event()

    def handle_request() -> None:
        begun.set()
        over.wait(PATIENCE)

    def under(*modules: str) -> bool:
        """Whether a request is seen on a thread with frames of these modules, the outermost first."""
        begun.clear()
        over.clear()
        call: Any = None
        for module in reversed(modules):
            names = {"__name__": module, "call": call or handle_request}
            exec("def handle_request():\n    call()", names)
            call = names["handle_request"]
        thread = threading.Thread(target=call)
        thread.start()
        assert begun.wait(PATIENCE)
        found = serves()
        over.set()
        thread.join(PATIENCE)
        return found

    assert under("gunicorn.workers.gthread", "an.application")
    assert under("gunicorn.workers.sync")
    assert not under("gunicorn.workers.gthread", "raftsvc.transport.app")
    assert not under("gunicorn.workers.gthread", "an.application", "raftsvc.web.watching")
    assert not under("an.application")
    assert not serves()


def test_a_node_that_drains_and_hears_nothing_tells_its_callers_at_once() -> None:
    admission = Admission(0, None, has_listener=False)
    left = threading.Event()
    hears = [True]
    is_stopping = [False]
    watch = ServerWatch(admission, left.set, left, lambda: hears[0])
    with admission:
        watch.begin(HostPool("a server", 4, PATIENCE, lambda: is_stopping[0]))
        assert not left.wait(0.3)
        is_stopping[0] = True
        assert not left.wait(0.5), "it is given its time while it hears"
        hears[0] = False
        assert left.wait(PATIENCE / 10)


@pytest.mark.parametrize("way", ["requests", "a stream", "a port of its own"])
def test_who_waits_at_a_node_whose_server_ends_is_served_if_the_node_is_reached_and_told_at_once_if_not(
    make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    cluster = make_cluster(has_streams=way == "a stream", election_timeout=10.0)
    leader = cluster.add()
    leader.service.init()
    is_stopping = threading.Event()
    pool = HostPool("a server", 8, PATIENCE, is_stopping.is_set)
    with monkeypatch.context() as patch:
        patch.setattr(servers, "find_host", lambda environ=None: pool)
        member = cluster.add() if way == "a port of its own" else cluster.add(listen=None)
    server = Listener(member.service.wsgi_app, member.addr) if way != "a port of its own" else None
    if server is not None:
        server.start()
    try:
        member.service.join(leader.addr, PATIENCE)
        assert member.service.exec(b"before", PATIENCE)
        if way == "a stream":
            eventually(lambda: has_streams([leader, member]), "streams are up")
        stopped = member.service._membership.stopped
        leader.files.gate.clear()
        result = in_background(lambda: member.service.exec(b"waits", PATIENCE))
        eventually(lambda: leader.status["last_index"] > leader.status["commit_index"], "it is on its way")
        since = time.monotonic()
        is_stopping.set()
        if way == "requests":
            with pytest.raises(raftsvc.RaftError):
                result()
            assert time.monotonic() - since < PATIENCE / 6, "of the half of its grace"
        else:
            assert not stopped.wait(1.0), "it is given its time"
            leader.files.gate.set()
            assert result()
            assert stopped.wait(PATIENCE), "it leaves then"
    finally:
        leader.files.gate.set()
        if server is not None:
            server.stop()


# -- the start


class Unfinished:
    """Looks like a State, and is none."""

    def apply(self, data: bytes, index: int) -> bool:
        return True


class WithoutBase(ListState):
    def __init__(self) -> None:
        self.items = []


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (ListState, "an instance"),
        (WithoutBase(), "super"),
        (Unfinished(), "snapshot"),
        (None, "state="),
        (dict, "an instance"),
    ],
    ids=["class", "no base", "unfinished", "none", "other class"],
)
def test_what_is_no_state_is_refused_before_anything_is_written(tmp_path: Any, state: Any, why: str) -> None:
    with pytest.raises(raftsvc.ConfigurationError, match=why):
        raftsvc.start(free_address(), tmp_path / "n", None, state, secret=SECRET)
    assert not (tmp_path / "n").exists()


@contextmanager
def no_thread(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[None]:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith(name):
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        yield


_OTHERS = ("raftsvc-listener", "raftsvc-main", "raftsvc-workers")  # that of the port, and of the process


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("raftsvc-") and not t.name.startswith(_OTHERS)]


@pytest.mark.parametrize("thread", ["raftsvc-ticker", "raftsvc-log", "raftsvc-apply"])
def test_an_init_that_fails_leaves_nothing_and_can_be_repeated(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, thread: str
) -> None:
    node = cluster.add()
    with no_thread(monkeypatch, thread):
        for _ in range(2):
            with pytest.raises(raftsvc.StartFailedError, match="new thread"):
                node.service.init()
    eventually(lambda: not threads(), "no thread is left")
    assert not (node.path / "wal").exists()
    node.service.init()
    assert node.service.exec(b"a", timeout=PATIENCE)


@pytest.mark.parametrize("thread", ["raftsvc-ticker", "raftsvc-apply"])
def test_a_join_that_fails_to_start_can_be_repeated(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, thread: str
) -> None:
    first = cluster.add()
    first.service.init()
    node = cluster.add()
    with no_thread(monkeypatch, thread), pytest.raises(raftsvc.StartFailedError):
        node.service.join(first.addr, PATIENCE)
    with pytest.raises(raftsvc.StorageError):
        node.service.init()
    node.service.join(first.addr, PATIENCE)
    assert node.service.exec(b"a", timeout=PATIENCE)
    assert len(first.status["members"]) == 2


@pytest.mark.parametrize("thread", ["raftsvc-ticker", "raftsvc-apply", "raftsvc-listener"])
def test_a_start_that_fails_lets_the_directory_go(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, thread: str
) -> None:
    node = cluster.add()
    node.service.init()
    node.service.exec(b"a")
    node.service.stop()
    with no_thread(monkeypatch, thread), pytest.raises(raftsvc.StartFailedError):
        node.start()
    eventually(lambda: not threads(), "no thread is left")
    node.start()
    assert node.read() == [b"a"]


@pytest.mark.parametrize("streams", [True, False])
def test_what_a_follower_hears_without_a_request_comes_through_a_stream(
    make_cluster: Callable[..., Cluster], streams: bool
) -> None:
    cluster = make_cluster(has_streams=streams, election_timeout=5.0)  # nobody else is elected meanwhile
    cluster.form(3)
    leader, follower = cluster.leader(), cluster.follower()

    def hears(member: Member) -> bool:
        node = member.service._node
        assert node is not None
        return node.vitals.hears_leader_by_itself()

    if streams:
        eventually(lambda: hears(follower), "its stream is open")
    assert (hears(leader), hears(follower)) == (True, streams)
