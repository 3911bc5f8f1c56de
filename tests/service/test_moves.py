"""Members whose addresses were permuted, swapped or renewed while they were down find each other again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from tests.service.harness import PATIENCE, Cluster, Member, eventually, free_address

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
        assert member.service.err() is None
    eventually(lambda: all(list(m.state.peers().values()) == wanted for m in members), "the States know it")


@pytest.mark.parametrize("streams", [True, False], ids=["streams", "no streams"])
@pytest.mark.parametrize("to", MOVES.values(), ids=MOVES)
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


def test_a_member_that_advertises_anothers_address_is_named_and_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = Cluster(tmp_path, election_timeout=0.5)
    try:
        members = cluster.form(3)
        wanted = [m.addr for m in members]
        wrong, other = members[1], members[2]
        right = wrong.addr
        wrong.options = {**wrong.options, "listen": right}
        with caplog.at_level(logging.WARNING):
            wrong.addr = other.addr
            wrong.restart()
            eventually(
                lambda: f"node 2 says that it is reached at {other.addr}, where node 3 answers" in caplog.text,
                "who is wrong is named",
            )
        eventually(lambda: all(m.service.is_ready() for m in members), "it takes part, by the address on record")
        before = cluster.leader().status["last_index"]
        assert wrong.service.exec(b"all the same", PATIENCE)
        eventually(lambda: all(b"all the same" in m.state.items for m in members), "everybody has it")
        assert all(recorded(m) == wanted for m in members)
        assert cluster.leader().status["last_index"] <= before + 3, "nothing is proposed over and over"
    finally:
        cluster.stop()


def test_a_cluster_of_one_knows_where_it_is_now(cluster: Cluster) -> None:
    one = cluster.add()
    one.service.init()
    one.addr = free_address()
    one.restart()
    eventually(lambda: recorded(one) == [one.addr], "its address is recorded")
    cluster.add().service.join(one.addr, PATIENCE)
