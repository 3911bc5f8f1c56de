"""Reads that rely on a lease: what they spare, when they stop, and what a node that stood still must not serve."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

import raftsvc
from tests.service.harness import PATIENCE, Clocks, Cluster, Member, eventually

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no clock for leases")


def is_served(leader: Member) -> bool:
    try:
        leader.service.wait_read(timeout=0.3)
    except raftsvc.ReadTimeoutError:
        return False
    return True


def test_a_leader_with_a_lease_reads_without_the_others(make_cluster: Callable[..., Cluster], clocks: Clocks) -> None:
    cluster = make_cluster(lease_reads=True, election_timeout=4.0)
    cluster.form(3)
    leader = cluster.leader()
    leader.service.exec(b"a")
    eventually(leader.service._node.callers.is_current, "a majority promised")
    cluster.cut(leader, [m for m in cluster.members if m is not leader])
    assert is_served(leader), "by the lease, for nobody else is asked"
    assert leader.state.items == [b"a"]
    clocks.move(10_000)
    assert not is_served(leader), "the lease is over, and a majority does not answer"


def test_without_the_option_there_are_no_leases(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(election_timeout=4.0)
    cluster.form(3)
    leader = cluster.leader()
    leader.service.exec(b"a")
    cluster.cut(leader, [m for m in cluster.members if m is not leader])
    assert not is_served(leader)


def test_a_leader_that_stood_still_serves_nothing_stale(make_cluster: Callable[..., Cluster]) -> None:
    """The process is stopped for longer than its lease, others elect a leader and write, and it goes on."""
    cluster = make_cluster(lease_reads=True)
    cluster.form(3)
    leader = cluster.leader()
    rest = [m for m in cluster.members if m is not leader]
    leader.service.exec(b"old")
    eventually(leader.service._node.callers.is_current, "a majority promised")
    with leader.service._node._turn.lock:  # nothing of it moves: no tick, no message
        heir = eventually(lambda: next((m for m in rest if m.is_leader), None), "another leader")
        heir.service.exec(b"new", timeout=PATIENCE)
    assert leader.read() == [b"old", b"new"]


def test_reads_of_followers_use_the_lease_of_the_leader(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(lease_reads=True)
    cluster.form(3)
    follower = cluster.follower()
    for n in range(20):
        cluster.leader().service.exec(b"%d" % n)
        assert follower.read()[-1] == b"%d" % n


def test_leases_need_a_clock(make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftsvc.options.SEES_SUSPENSION", False)
    with pytest.raises(raftsvc.ConfigurationError):
        make_cluster(lease_reads=True).add()
