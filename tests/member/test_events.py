"""What an operator is told of members."""

from __future__ import annotations

import itertools

import pytest

from raftsvc.core.membership import ConfChange, Configuration, ConfOp, Member
from raftsvc.member import events


def told(before: Configuration, after: Configuration) -> list[str]:
    return [message for _, message, _ in events.of_members(before, after)]


def test_a_member_whose_place_another_has_is_told_to_be_nowhere_yet() -> None:
    before = Configuration({1: Member("a:1", True), 2: Member("b:1", True)}, 2)
    between = before.changed(ConfChange(ConfOp.SET_ADDRESS, 2, "a:1"))
    assert told(before, between) == [
        "node 1 is no longer at a:1, where another member is now; nobody found it elsewhere yet",
        "node 2 is at a:1 now, no longer at b:1",
    ]
    after = between.changed(ConfChange(ConfOp.SET_ADDRESS, 1, "b:1"))
    assert told(between, after) == ["node 1 is at b:1 now"]


@pytest.mark.parametrize(
    ("before", "after"),
    list(
        itertools.permutations([None, Member("", False), Member("", True), Member("a:1", True), Member("b:1", True)], 2)
    ),
)
def test_no_address_is_told_that_is_not_known(before: Member | None, after: Member | None) -> None:
    configurations = [Configuration({7: member} if member is not None else {}, 7) for member in (before, after)]
    for message in told(*configurations):
        assert "  " not in message and " at " not in message.replace(" at a:1", "").replace(" at b:1", "")
    for configuration in configurations:
        assert configuration.name_of(7) in ("node 7", "node 7 at a:1", "node 7 at b:1")
