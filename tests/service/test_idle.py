"""A cluster of which nobody wants anything: what its nodes say to each other all the same, and what they write."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import requests

from raftsvc.member.ticker import LEAST_TICK

from .harness import Cluster, Member, eventually

TICKS = 10
"""In an election timeout."""


def count_requests(members: list[Member]) -> Counter[tuple[str, str]]:
    """How many requests each sent, by its address and theirs, from now on."""
    sent: Counter[tuple[str, str]] = Counter()
    for member in members:

        def send(
            request: requests.PreparedRequest,
            member: Member = member,
            send: Callable[..., requests.Response] = member.session.send,
            **options: Any,
        ) -> requests.Response:
            netloc = str(request.url).split("/")[2]
            sent[member.addr, netloc] += not str(request.url).endswith("/stream")
            return send(request, **options)

        member.session.send = send  # type: ignore[method-assign]
    return sent


def settle(cluster: Cluster) -> Member:
    """Wait until everybody has applied all there is, and the leader."""
    leader = cluster.leader()
    eventually(lambda: all(m.status["applied_index"] == leader.status["last_index"] for m in cluster.members))
    return leader


def pass_ticks(members: list[Member], count: int) -> None:
    """Wait until so many ticks came to each."""
    engines = [member.service._node._engine for member in members]  # type: ignore[union-attr]
    ends = [engine.ticks + count for engine in engines]
    eventually(lambda: all(engine.ticks >= end for engine, end in zip(engines, ends, strict=True)))


def test_without_streams_an_idle_leader_asks_each_follower_once_a_tick_and_nobody_else_asks_anything(
    make_cluster: Callable[..., Cluster],
) -> None:
    """Ten times in an election timeout, so that some may be late or lost; beside it nothing has requests of its own."""
    timeout = 1.5
    cluster = make_cluster(has_streams=False, election_timeout=timeout)
    members = cluster.form(3)
    for member in members:  # each opens its session
        assert member.service.exec(b"a")
    leader = settle(cluster)
    term, index = leader.status["term"], leader.status["last_index"]
    followers = [member for member in members if member is not leader]
    sent = count_requests(members)
    began = time.monotonic()
    eventually(lambda: all(sent[leader.addr, follower.addr] > 30 for follower in followers))
    most = (time.monotonic() - began) / (LEAST_TICK * timeout / TICKS)
    counted = dict(sent)
    assert (leader.status["term"], leader.status["last_index"]) == (term, index), "nothing happened"
    for (by, to), count in counted.items():
        # And one now and then for digests, of which all are told once the leader knows that they agree.
        assert count <= (1.1 * most + 3 if by == leader.addr else 3), f"{by} to {to}: {count}, of {most:.0f} ticks"


def test_with_streams_an_idle_cluster_sends_no_requests(cluster: Cluster) -> None:
    members = cluster.form(3)
    for member in members:
        assert member.service.exec(b"a")
    settle(cluster)
    eventually(
        lambda: all(m.status["streams"] and all(s["out"] for s in m.status["streams"].values()) for m in members)
    )
    sent = count_requests(members)
    pass_ticks(members, 3 * TICKS)
    assert not sent


@pytest.mark.parametrize(("before", "after"), [(0.5, 0.5), (0.9, 0.3), (0.3, 0.9)], ids=["same", "shorter", "longer"])
def test_an_idle_cluster_writes_nothing_with_whatever_timeout_it_was_started_anew(
    make_cluster: Callable[..., Cluster], before: float, after: float
) -> None:
    """A node notes once, for its next start, that what it may have promised is shorter now (R14)."""
    cluster = make_cluster(has_streams=False, election_timeout=before)
    members = cluster.form(3)
    for member in members:
        assert member.service.exec(b"a")
        member.options["election_timeout"] = after
        member.restart()
        cluster.leader()
    for member in members:
        assert member.service.exec(b"b")

    def is_quiet() -> bool:
        settle(cluster)
        before = [(m.files.syncs, m.status["last_index"]) for m in members]
        pass_ticks(members, 5 * TICKS)
        return [(m.files.syncs, m.status["last_index"]) for m in members] == before

    eventually(is_quiet, "nobody writes")
