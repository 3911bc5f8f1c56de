"""Members whose addresses were permuted, swapped or renewed while they were down find each other again."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import raftsvc
from raftsvc.transport.listener import Listener
from raftsvc.transport.peer import make_session
from tests.effort import turn_of
from tests.service.harness import PATIENCE, Cluster, Member, eventually, free_address, record_requests

# What becomes of the addresses a, b, c of members 1, 2, 3 while all are down; new ones are in capitals.
MOVES = {
    "shifted": "bca",
    "shifted the other way": "cab",
    "two swapped": "bac",
    "two others swapped": "acb",
    "one new": "aXc",
    "two new": "aXY",
    "one in the place of another, that one new": "bXc",
    "two in the place of others, one new": "Xca",
    "one in the place of another, the others new": "bXY",
}


def moved(members: list[Member], to: str, **options: Any) -> None:
    """Stop all, and start them elsewhere."""
    for member in members:
        member.service.stop()
    places = dict(zip("abc", [m.addr for m in members], strict=True))
    for member, place in zip(members, to, strict=True):
        member.addr = places.get(place) or free_address()
        member.options = {**member.options, **options}
    for member in members:
        member.start()


def recorded(member: Member) -> list[str]:
    return [m["addr"] for m in member.status["members"].values()]


def are_found(members: list[Member]) -> None:
    """All is well, and recorded, with every member."""
    wanted = [m.addr for m in members]
    eventually(lambda: all(m.service.is_ready() for m in members), "all are ready")
    eventually(lambda: all(recorded(m) == wanted for m in members), f"{wanted} is recorded")
    for number, member in enumerate(members):
        assert member.service.exec(b"%d" % number, PATIENCE)
        eventually(lambda m=member: m.service.err() is None, "nothing is wrong with it")
    eventually(lambda: all(list(m.state.peers().values()) == wanted for m in members), "the States know it")


@pytest.mark.parametrize("streams", [True, False], ids=["streams", "no streams"])
@pytest.mark.parametrize("to", [*MOVES.values()][turn_of(3)], ids=[*MOVES][turn_of(3)])
def test_members_find_each_other_whoever_is_where(tmp_path: Path, to: str, streams: bool) -> None:
    cluster = Cluster(tmp_path, has_streams=streams, election_timeout=0.5)
    try:
        members = cluster.form(3)
        assert cluster.leader().service.exec(b"before", PATIENCE)
        moved(members, to)
        are_found(members)
        for member in members:  # what is recorded is what they go by
            member.service.stop()
        for member in members:
            member.start()
        are_found(members)
    finally:
        cluster.stop()


@pytest.mark.parametrize("knowing", [(0, 1, 2), (0, 1), (2,)])
def test_where_all_addresses_are_new_a_hint_is_enough(tmp_path: Path, knowing: tuple[int, ...]) -> None:
    cluster = Cluster(tmp_path, election_timeout=0.5)
    try:
        members = cluster.form(3)
        for member in members:
            member.service.stop()
        for member in members:
            member.addr = free_address()
        for number, member in enumerate(members):
            if number in knowing:
                hints = {i: f"HTTP://{m.addr}/raft/" for i, m in enumerate(members, 1)}
                member.options = {**member.options, "peers": hints}
            member.start()
        are_found(members)
    finally:
        cluster.stop()


def test_a_member_that_moves_while_the_others_go_on_is_recorded_where_it_is(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, election_timeout=0.5)
    try:
        members = cluster.form(3)
        for mover in (cluster.follower(), cluster.leader()):
            mover.service.stop()
            mover.addr = free_address()
            mover.start()
            are_found(members)
    finally:
        cluster.stop()


def test_a_member_that_is_down_is_looked_for_in_turn_and_at_leisure(tmp_path: Path) -> None:
    """Where others are, too: each of these places answers at once, that it is not there."""
    cluster = Cluster(tmp_path, election_timeout=0.5)
    try:
        members = cluster.form(3)
        gone = cluster.follower()
        others = [member for member in members if member is not gone]
        for member in others:
            assert member.service.exec(b"before", PATIENCE)
        gone.service.stop()
        eventually(lambda: any(m.is_leader for m in others) and all(m.service.is_ready() for m in others), "two go on")
        asked = record_requests(others)
        # It is asked often at first: after 3 s, or later on a slow machine, each waits a second and more in between.
        assert not threading.Event().wait(3.0)
        places = [urlsplit(str(request.url)).netloc for request in list(asked)]
        assert gone.addr in places
        assert len(places) < 100, "of two members, by POST and for streams; without a pause there are thousands"
        assert all(member.service.exec(b"after", PATIENCE) for member in others)
        gone.start()
        are_found(members)
    finally:
        cluster.stop()


def test_what_was_recorded_of_a_member_that_moved_moves_it_back_nowhere(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, has_streams=False, election_timeout=0.5)
    try:
        members = cluster.form(3)
        mover = cluster.follower()
        others = [member for member in members if member is not mover]
        recorded = record_requests([mover])
        for _ in range(5):
            assert mover.service.exec(b"forwarded", PATIENCE)
        assert len(recorded) >= 5, "it speaks from where it was first"
        for _ in range(2):
            mover.service.stop()
            mover.addr = free_address()
            mover.start()
            are_found(members)
        assert len({str(request.headers["Raft-Addr"]) for request in recorded}) > 1, "of several places"
        with make_session() as enemy:
            for request in list(recorded):
                if urlsplit(str(request.url)).netloc in [member.addr for member in others]:
                    answer = enemy.send(request, timeout=PATIENCE)
                    assert answer.status_code in (409, 412, 421), answer.text
        assert all(member.service.exec(b"after", PATIENCE) for member in others), "time for what that might begin"
        are_found(members)
    finally:
        cluster.stop()


def are_told(members: list[Member], *words: str) -> None:
    """Each of them has it in `err`."""
    for member in members:
        eventually(lambda member=member: isinstance(member.service.err(), raftsvc.MisplacedError), "it is in err()")
        eventually(lambda member=member: all(word in str(member.service.err()) for word in words), f"{words}")
        eventually(member.service.is_ready, "and serves all the same")


@pytest.mark.parametrize("spelling", ["the same", "another name of that machine"])
def test_a_member_that_advertises_anothers_address_is_named_and_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spelling: str
) -> None:
    cluster = Cluster(tmp_path, election_timeout=0.5)
    try:
        members = cluster.form(3)
        wrong, other = members[1], members[2]
        right = wrong.addr
        if spelling != "the same":
            other.options = {**other.options, "listen": f"0.0.0.0:{other.addr.rpartition(':')[2]}"}
            other.restart()
        wanted = [m.addr for m in members]
        eventually(lambda: all(m.service.is_ready() for m in members), "all are ready")
        wrong.options = {**wrong.options, "listen": right}
        wrong.addr = other.addr if spelling == "the same" else f"localhost:{other.addr.rpartition(':')[2]}"
        named = f"node 2 says that it is reached at {wrong.addr}, where node 3 answers"
        with caplog.at_level(logging.ERROR):
            wrong.restart()
            are_told([members[0]], named)
            eventually(lambda: named in caplog.text, "it is in the log")
        if spelling == "the same":
            are_told([wrong], "this node 2", other.addr)
            are_told([other], "node 2 says", "this node 3")
        before = cluster.leader().status["last_index"]
        assert wrong.service.exec(b"all the same", PATIENCE)
        eventually(lambda: all(b"all the same" in m.state.items for m in members), "everybody has it")
        assert all(recorded(m) == wanted for m in members)
        assert cluster.leader().status["last_index"] <= before + 3, "nothing is proposed over and over"
        wrong.addr = right
        wrong.restart()
        eventually(lambda: all(m.service.err() is None for m in members), "it passes")
        are_found(members)
    finally:
        cluster.stop()


def test_an_address_that_becomes_ones_own_later_is_found_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a name that leads to another machine first, and a container that gets it before the former one is gone."""
    monkeypatch.setattr("raftsvc.member.addresses._LOOK_AGAIN", 3)
    cluster = Cluster(tmp_path, election_timeout=0.5)
    server = None
    try:
        members = cluster.form(3)
        early, late = members[1], members[2]
        early.options = {**early.options, "listen": early.addr}
        early.addr = late.addr
        early.restart()
        are_told([members[0], early], late.addr)
        late.service.stop()
        late.addr = free_address()
        late.start()
        server = Listener(early.service.wsgi_app, early.addr)
        server.start()
        are_found(members)
    finally:
        cluster.stop()
        if server is not None:
            server.stop()


def test_a_cluster_of_one_knows_where_it_is_now(cluster: Cluster) -> None:
    one = cluster.add()
    one.service.init()
    one.addr = free_address()
    one.restart()
    eventually(lambda: recorded(one) == [one.addr], "its address is recorded")
    cluster.add().service.join(one.addr, PATIENCE)
