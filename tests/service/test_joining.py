"""Who may come in: authorized by what is current, found where it says it is, and told at once what will not change."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
import requests

import raftsvc
from raftsvc.transport.listener import Listener
from tests.service.harness import PATIENCE, Cluster, ListState, Member, eventually, free_address, in_background, voters

_ports = itertools.count()


def lone_address() -> str:
    """As `free_address`, with a port that nobody has at any address, nor is given: below those of the kernel."""
    host = free_address().rpartition(":")[0]
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = 20_000 + 200 * (worker % 50) + next(_ports) % 200
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("0.0.0.0", port))
            return f"{host}:{port}"


@pytest.fixture
def lone_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes may listen at all addresses."""
    monkeypatch.setattr("tests.service.harness.free_address", lone_address)


def anywhere(addr: str) -> str:
    return "0.0.0.0:" + addr.rpartition(":")[2]


def elsewhere(addr: str) -> str:
    """Another address of this machine with the same port."""
    host, _, port = addr.rpartition(":")
    return f"{host.rpartition('.')[0]}.{(int(host.rpartition('.')[2]) + 1) % 250 + 1}:{port}"


def is_blank(member: Member) -> bool:
    return sorted(p.name for p in member.path.iterdir() if p.name not in ("lock", "socket", "wal.tmp")) == []


def test_a_node_that_mistook_its_own_address_is_not_let_in_and_may_correct_it(cluster: Cluster) -> None:
    one, two = cluster.add(), cluster.add()
    one.service.init()
    right = two.addr
    two.options = {**two.options, "listen": right}
    two.addr = free_address()
    two.restart()
    with pytest.raises(raftsvc.JoinFailedError, match=f"nobody answers at {two.addr}: is that the address"):
        two.service.join(one.addr, timeout=3.0)
    assert is_blank(two) and len(one.status["members"]) == 1
    two.addr = right
    two.restart()
    two.service.join(one.addr, PATIENCE)
    assert two.status["node_id"] == 2, "no id was burned"
    assert voters(one) == [one.addr, right]


@pytest.mark.usefixtures("lone_ports")
@pytest.mark.parametrize("who", ["a member", "a stranger"])
def test_a_node_whose_address_is_anothers_is_told_who_answers_there(cluster: Cluster, who: str) -> None:
    one, two, three = cluster.add(), cluster.add(), cluster.add()
    for member in (one, three):
        member.options = {**member.options, "listen": anywhere(member.addr)}
        member.restart()
    one.service.init()
    other, expected = (one, "node 1 of the cluster") if who == "a member" else (three, "another node")
    two.options = {**two.options, "listen": two.addr}
    two.addr = elsewhere(other.addr)
    two.restart()
    with pytest.raises(raftsvc.JoinFailedError, match=f"{expected} answers at {two.addr}"):
        two.service.join(one.addr, timeout=3.0)
    assert is_blank(two) and len(one.status["members"]) == 1


@pytest.mark.parametrize("whose", ["the leader", "a follower", "one that is down"])
def test_a_node_with_the_address_of_a_member_is_told_to_evict_it_only_if_that_does_not_answer(
    cluster: Cluster, whose: str
) -> None:
    """As by a configuration that was copied, or 127.0.0.1 on two machines."""
    cluster.form(3)
    leader, follower = cluster.leader(), cluster.follower()
    member = leader if whose == "the leader" else follower
    node_id = member.status["node_id"]
    is_down = whose == "one that is down"
    if is_down:
        member.service.stop()
    other = cluster.add()
    other.options = {**other.options, "listen": other.addr}
    other.addr = member.addr
    other.restart()
    with pytest.raises(raftsvc.AddressInUseError, match=f"is member {node_id}") as caught:
        other.service.join(leader.addr, PATIENCE)
    assert "an address of its own" in str(caught.value)
    assert ("evict" in str(caught.value)) is is_down
    assert ("nobody answers there now: if that member's directory is lost for good" in str(caught.value)) is is_down
    assert is_blank(other)
    assert len(leader.status["members"]) == 3


def test_a_node_whose_server_begins_to_listen_only_later_joins(cluster: Cluster) -> None:
    one, two = cluster.add(), cluster.add()
    one.service.init()
    two.options = {**two.options, "listen": None}
    two.restart()
    asked = threading.Event()
    send = one.session.send

    def watched(request: requests.PreparedRequest, **options: Any) -> requests.Response:
        asked.set()
        return send(request, **options)

    one.session.send = watched  # type: ignore[method-assign]
    joining = in_background(lambda: two.service.join(one.addr, PATIENCE))
    assert asked.wait(PATIENCE), "the leader looks for it in vain"
    server = Listener(two.service.wsgi_app, two.addr)
    server.start()
    try:
        joining()
        assert two.addr in voters(one)
    finally:
        two.service.stop()
        server.stop()


@pytest.mark.usefixtures("lone_ports")
def test_a_node_that_lost_its_disk_is_not_let_in_beside_its_ghost_under_another_name(cluster: Cluster) -> None:
    cluster.form(3)
    gone = cluster.follower()
    node_id = gone.status["node_id"]
    others = [m for m in cluster.members if m is not gone]
    gone.service.stop()
    shutil.rmtree(gone.path)
    former = gone.addr
    gone.options = {**gone.options, "listen": anywhere(former)}
    gone.addr = elsewhere(former)
    gone.start()
    with pytest.raises(raftsvc.AddressInUseError, match=f"where member {node_id} is known as {former}.*evict it first"):
        gone.service.join(others[0].addr, PATIENCE)
    cluster.leader().service.evict(former, PATIENCE)
    gone.service.join(others[0].addr, PATIENCE)
    assert gone.addr in voters(gone)


class Forgetful(ListState):
    """Allows whoever asks a few times, then nobody, without its log knowing why."""

    allowed_times = 0

    def is_allowed_member(self, addr: str) -> bool:
        self.allowed_times -= 1
        return self.allowed_times >= 0


@pytest.mark.parametrize("allowed_times", [0, 1, 2])
def test_who_is_disallowed_while_it_joins_does_not_become_a_member(cluster: Cluster, allowed_times: int) -> None:
    one, two = cluster.add(), cluster.add()
    one.make_state = Forgetful
    one.restart()
    one.service.init()
    assert isinstance(one.state, Forgetful)
    one.state.allowed_times = allowed_times
    with pytest.raises(raftsvc.AddressNotAllowedError):
        two.service.join(one.addr, PATIENCE)
    assert list(one.status["members"]) == ["1"]
    assert is_blank(two)


class Refusing(ListState):
    """Refuses an address from the instruction `refuse:ADDRESS` on, which it applies when it may."""

    gate = threading.Event()

    def apply(self, data: bytes, index: int) -> bool:
        if data.startswith(b"refuse:"):
            self.gate.wait(PATIENCE)
            self.refused.add(data.partition(b":")[2].decode())
        return super().apply(data, index)


def test_a_state_that_is_out_of_date_authorizes_nobody(cluster: Cluster) -> None:
    Refusing.gate.clear()
    one, two = cluster.add(), cluster.add()
    one.make_state = Refusing
    one.restart()
    one.service.init()
    disallowing = in_background(lambda: one.service.exec(b"refuse:" + two.addr.encode(), PATIENCE))
    eventually(lambda: one.status["commit_index"] > one.status["applied_index"], "it is committed, and not applied")
    joining = in_background(lambda: two.service.join(one.addr, PATIENCE))
    eventually(lambda: one.status["waiting_reads"] or len(one.status["members"]) > 1, "the leader considers it")
    assert len(one.status["members"]) == 1, "nothing was written for it"
    Refusing.gate.set()
    disallowing()
    with pytest.raises(raftsvc.AddressNotAllowedError):
        joining()
    assert list(one.status["members"]) == ["1"]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"secret": "one secret, long enough to be one"}, {"secret": "another secret, long enough to be one"}),
        ({"secret": "one secret, long enough to be one"}, {"secret": None, "insecure": True}),
        ({"secret": None, "insecure": True}, {"secret": "one secret, long enough to be one"}),
    ],
    ids=["another", "none here", "none there"],
)
def test_that_the_secrets_differ_is_said_at_once(
    make_cluster: Callable[..., Cluster], theirs: dict[str, Any], ours: dict[str, Any]
) -> None:
    cluster = make_cluster()
    one, two = cluster.add(**theirs), cluster.add(**ours)
    one.service.init()
    asked: list[str] = []
    send = two.session.send

    def counted(request: requests.PreparedRequest, **options: Any) -> requests.Response:
        asked.append(str(request.url))
        return send(request, **options)

    two.session.send = counted  # type: ignore[method-assign]
    with pytest.raises(raftsvc.ConfigurationError, match="secret"):
        two.service.join(one.addr, PATIENCE)
    assert len(asked) == 1
    assert is_blank(two)


def cut_off_once_admitted(one: Member, two: Member) -> threading.Event:
    """Have `one` reach `two` no more from when that is a member until the event is set."""
    healed = threading.Event()
    send = one.session.send

    def cut(request: requests.PreparedRequest, **options: Any) -> requests.Response:
        if not healed.is_set() and len(one.status["members"]) > 1:
            raise requests.ConnectionError("cut by the test")
        return send(request, **options)

    one.session.send = cut  # type: ignore[method-assign]
    return healed


def test_a_join_that_was_admitted_and_not_taken_in_can_be_repeated(cluster: Cluster) -> None:
    one, two = cluster.add(), cluster.add()
    one.service.init()
    two.session = type(two.session)(False)
    two.restart()
    healed = cut_off_once_admitted(one, two)
    for _ in range(2):
        with pytest.raises(raftsvc.JoinFailedError, match="is member 2 now"):
            two.service.join(one.addr, timeout=3.0)
    other = cluster.add()
    other.service.init()
    with pytest.raises(raftsvc.ExistingClusterError, match="is of another"):
        two.service.join(other.addr, PATIENCE)
    healed.set()
    two.service.join(one.addr, PATIENCE)
    assert two.addr in voters(two)
    with pytest.raises(raftsvc.ExistingClusterError):
        two.service.join(one.addr, PATIENCE)
