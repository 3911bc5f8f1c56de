"""init, join and evict: once, twice, interrupted, refused, by and of whomever."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import raftsvc
from raftsvc.core.membership import ConfChange, ConfOp
from raftsvc.core.raft import Refusal
from raftsvc.transport.wire import JoinRequest, Problem
from tests.service.harness import PATIENCE, SECRET, Cluster, eventually, in_background, voters
from tests.transport.harness import call, request


def test_init_makes_a_usable_cluster_of_one(cluster: Cluster) -> None:
    node = cluster.add()
    node.service.init()
    assert node.service.exec(b"a") is True
    assert node.read() == [b"a"]
    assert node.status["members"] == {"1": {"addr": node.addr, "is_voter": True}}


def test_the_directory_holds_id_log_lock_and_socket_and_nothing_else(cluster: Cluster) -> None:
    node = cluster.add(snapshot_entries=1)
    node.service.init()
    node.service.exec(b"a")
    eventually(lambda: sorted(p.name for p in node.path.iterdir()) == ["id", "lock", "snap", "socket", "wal"])
    node.service.stop()
    assert sorted(p.name for p in node.path.iterdir()) == ["id", "snap", "wal"]
    assert (node.path / "id").read_bytes().hex() == "00000000000000017e433189"


def test_init_and_join_are_refused_to_a_member(cluster: Cluster) -> None:
    one, two = cluster.form(2)
    for node, other in ((one, two), (two, one)):
        with pytest.raises(raftsvc.ExistingClusterError):
            node.service.init()
        with pytest.raises(raftsvc.ExistingClusterError):
            node.service.join(other.addr)
    one.restart()
    with pytest.raises(raftsvc.ExistingClusterError):
        one.service.init()


def test_only_one_of_many_inits_at_once_succeeds(cluster: Cluster) -> None:
    node = cluster.add()
    attempts = [in_background(node.service.init) for _ in range(8)]
    outcomes = []
    for attempt in attempts:
        try:
            outcomes.append(attempt())
        except raftsvc.ExistingClusterError:
            outcomes.append("refused")
    assert sorted(outcomes, key=str) == [None] + ["refused"] * 7
    assert node.service.exec(b"a")


def test_nothing_is_served_before_init(cluster: Cluster) -> None:
    node = cluster.add()
    with pytest.raises(raftsvc.UninitializedError):
        node.service.exec(b"a")
    with pytest.raises(raftsvc.UninitializedError):
        node.service.wait_read()
    with pytest.raises(raftsvc.UninitializedError):
        node.service.evict("127.0.0.1:1")
    assert node.service.err() is None
    assert node.status["role"] == "uninitialized"


def test_a_node_that_was_stopped_does_not_say_that_it_belongs_to_no_cluster(cluster: Cluster) -> None:
    node = cluster.add()
    node.service.init()
    node.service.stop()
    # Its server may go on answering for a while; a node that wants to join is to ask again.
    body = JoinRequest("127.0.0.1:1", b"t" * 16).encode()
    answer = call(node.service, request("join", body, SECRET, cluster="", sender="0", to="0"))
    assert (answer.status, answer.code) == (503, "stopping")


def test_a_joined_node_has_everything_and_becomes_a_voter(cluster: Cluster) -> None:
    one = cluster.add()
    one.service.init()
    for n in range(50):
        one.service.exec(b"%d" % n)
    two = cluster.add()
    two.service.join(one.addr, PATIENCE)
    assert two.read() == one.read() == [b"%d" % n for n in range(50)]
    assert sorted(voters(two)) == sorted([one.addr, two.addr])
    assert dict(two.state.peers()) == {1: one.addr, 2: two.addr}


def test_join_works_through_a_follower(cluster: Cluster) -> None:
    cluster.form(3)
    four = cluster.add()
    four.service.join(cluster.follower().addr, PATIENCE)
    assert four.addr in voters(four)


def test_join_through_a_node_without_a_cluster_says_so(cluster: Cluster) -> None:
    one, two = cluster.add(), cluster.add()
    with pytest.raises(raftsvc.PeerUninitializedError):
        two.service.join(one.addr)
    one.service.init()
    two.service.join(one.addr, PATIENCE)
    assert two.service.exec(b"a")


def test_join_through_nobody_fails_in_time_and_can_be_repeated(cluster: Cluster) -> None:
    one, two = cluster.add(), cluster.add()
    with pytest.raises(raftsvc.JoinFailedError):
        two.service.join("127.0.0.1:9", timeout=0.3)
    one.service.init()
    two.service.join(one.addr, PATIENCE)
    assert two.service.exec(b"a")


def test_an_address_that_is_not_allowed_is_refused_and_burns_no_id(cluster: Cluster) -> None:
    one, two = cluster.add(), cluster.add()
    one.service.init()
    one.state.refused.add(two.addr)
    eventually(lambda: one.status["applied_index"] == 3)  # what it began with: a term, and its session
    before = one.status["last_index"]
    with pytest.raises(raftsvc.AddressNotAllowedError, match=f"{two.addr} is not allowed to join.*kv.allow"):
        two.service.join(one.addr)
    assert one.status["last_index"] == before
    assert not (two.path / "wal").exists()
    one.state.refused.clear()
    two.service.join(one.addr, PATIENCE)
    assert two.status["node_id"] == 2


def test_a_join_whose_answer_is_lost_finds_its_membership_again(cluster: Cluster) -> None:
    one, two = cluster.add(), cluster.add()
    one.service.init()
    lost = []

    def lose(path: str) -> bool:
        if path.endswith("/join") and str(two.addr) in [m["addr"] for m in one.status["members"].values()] and not lost:
            lost.append(path)
            return True
        return False

    two.session.lose_answer = lose
    two.service.join(one.addr, PATIENCE)
    assert lost
    assert two.status["node_id"] == 2
    assert len(one.status["members"]) == 2


def test_a_join_that_died_before_it_was_stored_finds_its_membership_in_a_new_process(cluster: Cluster) -> None:
    one, two = cluster.add(), cluster.add()
    one.service.init()
    two.session.lose_answer = lambda path: path.endswith("/join")
    with pytest.raises(raftsvc.JoinFailedError):
        two.service.join(one.addr, timeout=1.5)
    two.session.lose_answer = lambda path: False
    two.restart()
    two.service.join(one.addr, PATIENCE)
    assert two.status["node_id"] == 2
    assert len(one.status["members"]) == 2


def test_a_wiped_node_cannot_come_back_under_its_old_id(cluster: Cluster, tmp_path: Path) -> None:
    one, two, three = cluster.form(3)
    three.service.stop()
    three.path = tmp_path / "wiped"
    three.start()
    with pytest.raises(raftsvc.AddressInUseError):
        three.service.join(one.addr, PATIENCE)
    two.service.evict(three.addr)
    three.service.join(one.addr, PATIENCE)
    assert three.status["node_id"] == 4
    assert len(one.status["members"]) == 3


def test_evicting_a_follower_tells_it(cluster: Cluster) -> None:
    cluster.form(3)
    leader, follower = cluster.leader(), cluster.follower()
    leader.service.evict(follower.addr)
    eventually(lambda: isinstance(follower.service.err(), raftsvc.EvictedError), "the evicted node knows")
    assert follower.status["role"] == "removed"
    with pytest.raises(raftsvc.EvictedError):
        follower.service.exec(b"a")
    with pytest.raises(raftsvc.EvictedError):
        follower.service.wait_read()
    assert leader.service.exec(b"b")
    assert follower.addr not in leader.state.peers().values()


def test_the_leader_can_be_evicted_by_a_follower(cluster: Cluster) -> None:
    cluster.form(3)
    leader, follower = cluster.leader(), cluster.follower()
    follower.service.evict(leader.addr)
    eventually(lambda: isinstance(leader.service.err(), raftsvc.EvictedError), "the evicted leader knows")
    assert follower.service.exec(b"after", timeout=PATIENCE)


def test_a_node_can_evict_itself_leader_or_not(cluster: Cluster) -> None:
    cluster.form(3)
    leader = cluster.leader()
    leader.service.evict(leader.addr)
    assert isinstance(leader.service.err(), raftsvc.EvictedError)
    rest = [m for m in cluster.members if m is not leader]
    follower = eventually(lambda: next((m for m in rest if m.service.is_ready() and not m.is_leader), None))
    follower.service.evict(follower.addr)
    assert isinstance(follower.service.err(), raftsvc.EvictedError)
    last = next(m for m in rest if m is not follower)
    assert last.service.exec(b"alone", timeout=PATIENCE)


def test_a_leader_that_evicts_itself_and_is_heard_by_nobody_any_more_is_told_and_returns(cluster: Cluster) -> None:
    """It cannot apply its own removal then: it hears of it in the answer to a request of its own."""
    cluster.form(3)
    leader = cluster.leader()
    others = [member for member in cluster.members if member is not leader]
    for other in others:
        other.session.cut(leader.addr)
    leader.service.evict(leader.addr, timeout=PATIENCE)
    assert isinstance(leader.service.err(), raftsvc.EvictedError)
    remaining = others[0]
    eventually(lambda: len(remaining.service.status()["members"]) == 2, "the others know it")


def test_two_members_can_be_evicted_in_a_row_and_the_last_cannot(cluster: Cluster) -> None:
    one, two, three = cluster.form(3)
    one.service.evict(two.addr)
    one.service.evict(three.addr)
    assert voters(one) == [one.addr]
    with pytest.raises(raftsvc.LastMemberError):
        one.service.evict(one.addr)
    assert one.service.exec(b"a")


def test_evicting_an_unknown_address_says_so(cluster: Cluster) -> None:
    one, two = cluster.form(2)
    for whom in ("127.0.0.1:1", "17", "9" * 5000):
        with pytest.raises(raftsvc.UnknownPeerError):
            two.service.evict(whom)
    for ask in (two.service.evict, two.service.transfer):
        with pytest.raises(raftsvc.ConfigurationError, match="a member is named by its address"):
            ask("")
    one.service.evict(two.addr)
    with pytest.raises(raftsvc.UnknownPeerError):
        one.service.evict(two.addr)


@pytest.mark.parametrize("spelling", ["http://{}/raft", "HTTP://{}/raft/", "{id}"])
def test_a_member_is_evicted_by_any_spelling_of_its_address_and_by_its_id(cluster: Cluster, spelling: str) -> None:
    one, two = cluster.form(2)
    one.service.evict(spelling.format(two.addr, id=two.status["node_id"]), PATIENCE)
    assert voters(one) == [one.addr]


@pytest.mark.parametrize("spelling", ["http://{}/raft", "Http://{}/raft/"])
def test_a_node_that_lost_its_disk_is_known_by_any_spelling_of_its_address(cluster: Cluster, spelling: str) -> None:
    one, two, _ = cluster.form(3)
    two.service.stop()
    shutil.rmtree(two.path)
    two.addr = spelling.format(two.addr)
    two.options = {**two.options, "listen": two.addr.split("/")[2]}
    two.start()
    with pytest.raises(raftsvc.AddressInUseError, match="member 2"):
        two.service.join(one.addr, PATIENCE)
    assert len(one.status["members"]) == 3


def test_an_eviction_that_loses_its_majority_on_the_way_ends_in_time_and_may_yet_happen(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.form(3)
    leader = cluster.leader()
    gone = [member for member in cluster.members if member is not leader]
    wait_read = leader.service.wait_read

    def wait_and_lose(timeout: float) -> None:
        wait_read(timeout)
        for member in gone:
            member.service.stop()

    monkeypatch.setattr(leader.service, "wait_read", wait_and_lose)
    began = time.monotonic()
    with pytest.raises(raftsvc.MembershipTimeoutError, match=f"{gone[0].addr} was not committed within 5 s"):
        leader.service.evict(gone[0].addr, 5.0)
    assert time.monotonic() - began < PATIENCE
    monkeypatch.undo()
    gone[1].start()
    eventually(leader.service.is_ready, "two of the three")
    eventually(lambda: voters(leader) in ([leader.addr, gone[1].addr], [m.addr for m in cluster.members]), "either")
    assert leader.service.exec(b"after it", PATIENCE)


def test_an_eviction_that_would_leave_no_live_majority_is_refused(cluster: Cluster) -> None:
    cluster.form(3)
    leader, follower = cluster.leader(), cluster.follower()
    dead = next(m for m in cluster.members if m not in (leader, follower))
    dead.service.stop()
    node_id = str(dead.status["node_id"]) if dead.status.get("node_id") else ""
    eventually(
        lambda: not leader.service._node._engine.core.progress[int(node_id)].is_alive, "the dead member is noticed"
    )
    with pytest.raises(raftsvc.MembershipUnchangedError, match="would_lose_quorum"):
        leader.service.evict(follower.addr, timeout=5.0)
    leader.service.evict(dead.addr)
    leader.service.evict(follower.addr)
    assert leader.service.exec(b"alone")


def test_an_evicted_node_that_missed_it_learns_it_when_it_comes_back(cluster: Cluster) -> None:
    one, two, three = cluster.form(3)
    gone = cluster.follower()
    gone.service.stop()
    rest = [m for m in (one, two, three) if m is not gone]
    rest[0].service.evict(gone.addr)
    gone.start()
    eventually(lambda: isinstance(gone.service.err(), raftsvc.EvictedError), "the node learns that it was removed")
    assert rest[0].service.exec(b"a") and rest[1].service.exec(b"b")


def test_a_member_that_moved_announces_its_new_address(cluster: Cluster) -> None:
    from tests.service.harness import free_address

    cluster.form(3)
    moved = cluster.follower()
    node_id = str(moved.status["node_id"])
    moved.service.stop()
    moved.addr = free_address()
    moved.start()
    eventually(lambda: cluster.leader().status["members"][node_id]["addr"] == moved.addr, "the new address is known")
    moved.service.exec(b"from the new address", timeout=PATIENCE)
    assert all(m.read()[-1:] == [b"from the new address"] for m in cluster.members)


def test_a_clock_that_goes_back_stops_nothing(make_cluster: Callable[..., Cluster]) -> None:
    offset = 0.0
    cluster = make_cluster(clock=lambda: time.monotonic() + offset)
    cluster.form(3)
    offset = -3600.0
    leader = cluster.leader()
    others = [m for m in cluster.members if m is not leader]
    cluster.cut(leader, others)
    eventually(lambda: any(m.is_leader for m in others), "another leads")


def test_what_an_evicted_node_answers_is_heard_until_it_knows(
    make_cluster: Callable[..., Cluster], caplog: pytest.LogCaptureFixture
) -> None:
    cluster = make_cluster(has_streams=False)
    cluster.form(3)
    leader, gone = cluster.leader(), cluster.follower()
    node_id = str(gone.status["node_id"])
    leader.service.evict(gone.addr, PATIENCE)
    eventually(lambda: isinstance(gone.service.err(), raftsvc.EvictedError), "it knows")
    eventually(lambda: node_id not in leader.status["followers"], "and its leader knows that it does")
    assert "is no start of the node that counts" not in caplog.text


@pytest.mark.parametrize("what", ["evict another", "take back a vacancy", "let one in", "correct an address"])
def test_who_is_removed_while_it_waits_for_a_change_of_others_waits_no_longer(
    make_cluster: Callable[..., Cluster], what: str
) -> None:
    cluster = make_cluster(has_streams=False, election_timeout=2.0)
    cluster.form(3)
    leader, node = cluster.leader(), cluster.follower()
    other_id = next(m for m in cluster.members if m not in (leader, node)).status["node_id"]
    participant: Any = node.service._membership.node
    change, is_done = {
        "evict another": (ConfChange(ConfOp.REMOVE, other_id), lambda c: other_id not in c.members),
        "take back a vacancy": (ConfChange(ConfOp.REMOVE, 0, "127.0.0.1:1"), lambda c: False),
        "let one in": (ConfChange(ConfOp.ADD_LEARNER, 9, "127.0.0.1:9", bytes(16)), lambda c: 9 in c.members),
        "correct an address": (ConfChange(ConfOp.SET_ADDRESS, other_id, "127.0.0.1:1"), lambda c: False),
    }[what]
    for member in cluster.members:
        node.session.cut(member.addr)  # it hears, and what it asks for comes to nobody
    since = time.monotonic()
    result = in_background(lambda: participant.change_membership(change, is_done, PATIENCE))
    leader.service.evict(node.addr, PATIENCE)
    assert result() is Refusal.REMOVED
    assert time.monotonic() - since < PATIENCE / 2
    assert isinstance(node.service.err(), raftsvc.EvictedError)
    assert other_id in participant.applied_config.members
    for call_it in (lambda: node.service.evict(leader.addr, PATIENCE), lambda: node.service.exec(b"x", PATIENCE)):
        with pytest.raises(raftsvc.EvictedError):
            call_it()
    assert time.monotonic() - since < PATIENCE / 2


def test_a_leader_that_is_removed_while_it_lets_somebody_in_says_so_at_once(
    make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = make_cluster(has_streams=False, election_timeout=1.0)
    cluster.form(3)
    leader = cluster.leader()
    others = [m for m in cluster.members if m is not leader]
    monkeypatch.setattr("raftsvc.formation._ADMIT_SECONDS", 4 * PATIENCE)
    roster: Any = leader.service._roster
    roster._check_presence = lambda *of_whom: None  # the one that asks is there
    roster._calls = SimpleNamespace(wait_read=lambda timeout: None)
    cluster.cut(leader, others)
    since = time.monotonic()
    result = in_background(lambda: roster.admit(JoinRequest("127.0.0.1:9", bytes(range(16)))))
    writer = eventually(lambda: next((m for m in others if m.is_leader), None), "another leads")
    writer.service.evict(leader.addr, PATIENCE)
    cluster.heal()
    with pytest.raises(Problem, match="ask the leader"):
        result()
    assert time.monotonic() - since < PATIENCE / 2
    eventually(lambda: isinstance(leader.service.err(), raftsvc.EvictedError), "it knows why")
