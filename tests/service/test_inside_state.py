"""The State's own code may not call what would wait for it to return; it is told so at once, by name."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

import raftsvc
from raftsvc.member.node import Node

from .face import calls_of
from .harness import PATIENCE, Cluster, ListState, Member, eventually, in_background

ANSWERING = {
    "__call__",
    "add_listener",
    "aio",
    "before_stop",
    "err",
    "is_leader",
    "is_live",
    "is_ready",
    "log_time",
    "operator_app",
    "status",
    "watch_file",
    "wsgi_app",
}
"""What waits for nothing.  All else is told that it may not be called."""
CALLS = calls_of(raftsvc.Service)


class Calling(ListState):
    """Calls its Service where `calls` says, and keeps what that raises."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, Callable[[], object]] = {}
        self.is_patient = True
        self.raised: list[BaseException] = []
        self.calls_ended = 0

    def come_to(self, place: str) -> None:
        call = self.calls.get(place)
        if call is None:
            return
        try:
            call()
        except raftsvc.RaftError as error:
            self.raised.append(error)
            if not self.is_patient:
                raise
        finally:
            self.calls_ended += 1

    def apply(self, data: bytes, index: int) -> bool:
        self.come_to("apply")
        return super().apply(data, index)

    def snapshot(self) -> tuple[bytes, int]:
        self.come_to("snapshot")
        return super().snapshot()

    def restore_snapshot(self, data: bytes, index: int) -> None:
        self.come_to("restore")
        super().restore_snapshot(data, index)

    def applied_index(self) -> int:
        self.come_to("applied_index")
        return super().applied_index()

    def set_peer_addr(self, node_id: int, addr: str) -> None:
        self.come_to("set_peer_addr")
        super().set_peer_addr(node_id, addr)


@pytest.fixture
def node(cluster: Cluster) -> Member:
    node = cluster.add(snapshot_entries=20, trailing_entries=5)
    node.make_state = Calling
    node.restart()
    node.service.init()
    return node


def test_every_method_that_answers_there_is_one() -> None:
    assert not ANSWERING - set(CALLS)


def call_at(node: Member, place: str, name: str) -> Calling:
    state = node.state
    assert isinstance(state, Calling)
    state.calls[place] = lambda: CALLS[name](node.service)
    return state


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("place", ["apply", "snapshot"])
def test_the_state_s_own_code_is_told_at_once_what_it_may_not_call(node: Member, place: str, name: str) -> None:
    state = call_at(node, place, name)
    started = time.monotonic()
    for n in range(30):
        assert node.service.exec(b"%d" % n, timeout=PATIENCE)
    eventually(lambda: state.calls_ended)
    assert time.monotonic() - started < PATIENCE / 2, "nobody waited"
    assert bool(state.raised) is (name not in ANSWERING)
    for error in state.raised:
        assert isinstance(error, raftsvc.InsideStateError) and isinstance(error, raftsvc.NotApplied)
        assert error.what == name and name in str(error)
    assert node.service.err() is None
    assert b"main" not in node.read(), "nothing was proposed"


def test_so_it_is_when_a_snapshot_arrives_and_a_member_comes(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(snapshot_entries=20, trailing_entries=5)
    cluster.form(2)
    writer = cluster.leader()
    for n in range(60):
        writer.service.exec(b"%d" % n, timeout=PATIENCE)
    eventually(
        lambda: writer.service.exec(b"more", timeout=PATIENCE) and writer.status["snapshot_index"] > 20, "a snapshot"
    )
    late = cluster.add()
    late.make_state = Calling
    late.restart()
    raised = call_at(late, "restore", "wait_read").raised
    call_at(late, "set_peer_addr", "exec")
    late.service.join(writer.addr, PATIENCE)
    assert late.read() == writer.read()
    assert {error.what for error in raised if isinstance(error, raftsvc.InsideStateError)} == {"wait_read", "exec"}
    assert late.service.exec(b"after", timeout=PATIENCE)


@pytest.mark.pure
@pytest.mark.parametrize("place", ["applied_index", "set_peer_addr"])
def test_so_it_is_while_the_node_is_started(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    node = cluster.add()
    node.make_state = Calling
    node.restart()
    state = node.state
    assert isinstance(state, Calling)
    answered: list[str] = []
    called = threading.Event()

    def call_all() -> None:
        del state.calls[place]
        for name, call in CALLS.items():
            try:
                call(node.service)
                answered.append(name)
            except raftsvc.RaftError as error:
                state.raised.append(error)
        called.set()

    # What applies does so before the start is over.
    start = Node.start
    monkeypatch.setattr(Node, "start", lambda self: (start(self), called.wait(PATIENCE)))
    state.calls[place] = call_all
    started = time.monotonic()
    node.service.init()
    assert time.monotonic() - started < PATIENCE / 2, "nobody waited"
    inside = {error.what for error in state.raised if isinstance(error, raftsvc.InsideStateError)}
    assert inside == {"init", "join", "stop", "wait_formed"}
    assert all(isinstance(error, raftsvc.NotApplied) for error in state.raised)
    assert answered == [name for name in CALLS if name in ANSWERING]
    assert node.service.exec(b"after", timeout=PATIENCE)


def test_a_state_that_lets_it_out_stops_at_that_entry_until_it_is_repaired(node: Member) -> None:
    state = call_at(node, "apply", "exec")
    state.is_patient = False
    with pytest.raises(raftsvc.RaftError):
        node.service.exec(b"a", timeout=PATIENCE)
    error = node.service.err()
    assert isinstance(error, raftsvc.ApplyHaltedError) and isinstance(error.__cause__, raftsvc.InsideStateError)
    node.restart()  # with code that does not call
    assert node.read() == [b"a"]
    assert node.service.exec(b"b", timeout=PATIENCE)


def test_others_are_served_as_ever_while_the_state_is_at_work(node: Member) -> None:
    begun, gate = threading.Event(), threading.Event()
    state = node.state
    assert isinstance(state, Calling)

    def wait() -> None:
        begun.set()
        gate.wait(PATIENCE)

    state.calls["apply"] = wait
    writer = in_background(lambda: node.service.exec(b"a", PATIENCE))
    assert begun.wait(PATIENCE)
    reader = in_background(lambda: node.service.wait_read(PATIENCE))
    assert node.service.status()["role"] == "leader"
    gate.set()
    assert writer()
    reader()
