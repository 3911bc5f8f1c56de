"""Where to send, what is learnt of it, and what is proposed to be recorded."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from raftsvc.core.membership import ConfChange, Configuration, ConfOp, Member
from raftsvc.member.addresses import Addresses

CONFIG = Configuration({1: Member("a:1", True), 2: Member("b:1", True), 3: Member("c:1", True)}, 3)


def made(**given: str) -> Addresses:
    addresses = Addresses(1, "a:1", {int(name[1:]): addr for name, addr in given.items()})
    addresses.wanted(CONFIG)
    return addresses


def test_a_hint_is_used_at_once_and_left_when_it_fails() -> None:
    addresses = made(n2="g:1")
    assert addresses.wanted(CONFIG) == {2: "b:1", 3: "c:1"}
    assert addresses.hear(2, "x:1", CONFIG) and not addresses.hear(2, "x:1", CONFIG)
    tried = []
    for _ in range(8):
        tried.append(addresses.wanted(CONFIG)[2])
        addresses.failed(2, tried[-1], CONFIG)
    assert tried[:3] == ["x:1", "b:1", "g:1"]
    assert "c:1" in tried[3:], "it may be where another was"
    assert set(tried[3:]) & {"x:1", "b:1", "g:1"}, "or be back"
    addresses.reached(2, addresses.wanted(CONFIG)[2])
    assert not addresses.failed(2, "elsewhere:1", CONFIG), "news of a place that was left already"


@pytest.mark.parametrize("has_answered", [False, True])
def test_who_hears_of_no_leader_says_to_everybody_where_it_is(has_answered: bool) -> None:
    addresses = made()
    if has_answered:
        addresses.reached(2, "b:1")
    assert addresses.to_address(CONFIG, True) == []
    assert addresses.to_address(CONFIG, False) == [2, 3], "a learner that moved asks for no vote, and nobody finds it"


def test_a_guess_is_where_only_others_were() -> None:
    addresses = made(n2="g:1")
    addresses.hear(2, "x:1", CONFIG)
    assert [addr for addr in ("x:1", "b:1", "g:1", "c:1", "a:1") if addresses.is_guess(2, addr, CONFIG)] == [
        "c:1",
        "a:1",
    ]
    nowhere = CONFIG.changed(ConfChange(ConfOp.SET_ADDRESS, 2, "c:1"))
    assert not addresses.is_guess(3, "b:1", nowhere), "nothing better is known"


def test_only_who_was_found_where_it_says_is_proposed_to_be_recorded_there() -> None:
    addresses = made()
    addresses.hear(2, "x:1", CONFIG)
    assert addresses.corrections(CONFIG) == []
    assert addresses.to_address(CONFIG, True) == [2]
    addresses.reached(2, "b:1")
    assert addresses.corrections(CONFIG) == []
    addresses.reached(2, "x:1")
    change = ConfChange(ConfOp.SET_ADDRESS, 2, "x:1")
    assert addresses.corrections(CONFIG) == [change]
    assert addresses.corrections(CONFIG.changed(change)) == [] == addresses.to_address(CONFIG.changed(change), True)
    addresses.failed(2, "x:1", CONFIG)
    assert addresses.corrections(CONFIG) == []


def test_an_address_is_taken_from_who_is_not_there_any_more() -> None:
    config = CONFIG.changed(ConfChange(ConfOp.SET_ADDRESS, 2, "c:1"))
    assert [m.addr for m in config.members.values()] == ["a:1", "c:1", ""]
    config = config.changed(ConfChange(ConfOp.SET_ADDRESS, 3, "b:1"))
    assert [m.addr for m in config.members.values()] == ["a:1", "c:1", "b:1"]
    assert Configuration.decode(config.encode()) == config


def test_who_advertises_anothers_address_is_named_until_it_says_another() -> None:
    addresses = made()
    addresses.contradicted(2, "b:1", 3)
    assert addresses.conflicts(CONFIG) == "", "that is only where it was"
    addresses.hear(2, "c:1", CONFIG)
    assert addresses.conflicts(CONFIG) == "", "it may be so"
    addresses.contradicted(2, "c:1", 3)
    assert addresses.conflicts(CONFIG) == "node 2 says that it is reached at c:1, where node 3 answers"
    addresses.hear(2, "x:1", CONFIG)
    assert addresses.conflicts(CONFIG) == ""


@pytest.mark.parametrize(
    "end",
    [
        lambda addresses: addresses.reached(2, "c:1"),
        lambda addresses: addresses.contradicted(2, "c:1", 0),
        lambda addresses: addresses.hear(2, "b:1", CONFIG),
        lambda addresses: addresses.corrections(CONFIG.changed(ConfChange(ConfOp.REMOVE, 2))),
    ],
    ids=["it answers there", "nobody answers there any more", "it says another", "it is evicted"],
)
def test_a_conflict_ends_when_there_is_none_any_more(end: Callable[[Addresses], object]) -> None:
    addresses = made()
    addresses.hear(2, "c:1", CONFIG)
    addresses.contradicted(2, "c:1", 3)
    assert addresses.conflicts(CONFIG)
    end(addresses)
    assert addresses.conflicts(CONFIG) == ""


def test_a_node_knows_when_its_own_address_is_another_s() -> None:
    addresses = made()
    addresses.hear(2, "a:1", CONFIG)
    assert addresses.conflicts(CONFIG) == "node 2 says that it is reached at a:1, and so does this node 1"
    addresses.hear(2, "b:1", CONFIG)
    assert addresses.conflicts(CONFIG) == ""
    addresses.reached(3, "a:1")  # by a name that leads to it
    assert addresses.conflicts(CONFIG) == "this node 1 says that it is reached at a:1, where node 3 answers"
    addresses.reached(3, "c:1")
    assert addresses.conflicts(CONFIG) == ""


@pytest.mark.parametrize("by_whom", ["the holder moves", "time passes"])
def test_who_was_not_where_it_says_is_looked_for_there_again(by_whom: str) -> None:
    addresses = made()
    addresses.hear(2, "c:1", CONFIG)
    addresses.failed(2, "c:1", CONFIG)
    addresses.contradicted(2, "c:1", 3)
    addresses.reached(2, "b:1")
    assert addresses.wanted(CONFIG)[2] == "b:1"
    if by_whom == "the holder moves":
        addresses.hear(3, "x:1", CONFIG)
    else:
        for _ in range(100):
            addresses.corrections(CONFIG)
    assert addresses.wanted(CONFIG)[2] == "c:1"
    addresses.reached(2, "c:1")
    assert addresses.corrections(CONFIG) == [ConfChange(ConfOp.SET_ADDRESS, 2, "c:1")]


def test_what_is_known_is_bounded_by_the_members_there_are() -> None:
    addresses = made()
    config = CONFIG
    for node_id in range(4, 400):
        addresses.hear(node_id, f"n{node_id}:1", config)
        config = config.changed(ConfChange(ConfOp.ADD_LEARNER, node_id, f"n{node_id}:1"))
        addresses.wanted(config)
        config = config.changed(ConfChange(ConfOp.REMOVE, node_id))
        addresses.corrections(config)
    assert all(addresses.said(i) == "" for i in range(4, 400))
    likely_places = set()
    for _ in range(200):
        likely_places.add(addresses.wanted(config)[2])
        addresses.failed(2, addresses.wanted(config)[2], config)
    assert len(likely_places) < 30
