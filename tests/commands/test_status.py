"""How the cluster is, of what members say: who is counted on, and whether one more may be lost."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import pytest

from raftsvc.commands.places import Where
from raftsvc.commands.status import survey_of
from raftsvc.member.health import Condition, Part
from raftsvc.operator.survey import HARMLESS, Survey
from tests.client.harness import ADMIN
from tests.commands.harness import Node, Shell, key_file
from tests.service.harness import PATIENCE, eventually


def picture(number: int, role: str = "follower", size: int = 3, **more: Any) -> dict[str, Any]:
    """Of a member of a cluster whose first one leads."""
    told: dict[str, Any] = {
        "node_id": number,
        "cluster_id": "0" * 16,
        "role": role,
        "term": 1,
        "leader_id": 1,
        "leader_addr": "n1:1",
        "commit_index": 50_000,
        "applied_index": 50_000,
        "members": {str(i): {"addr": f"n{i}:1", "is_voter": i < 9} for i in range(1, size + 1)},
        "conditions": [],
        "error": None,
        "unreachable": {},
    }
    if role == "leader":
        others = range(2, size + 1)
        told["followers"] = {str(i): {"state": "replicate", "match_index": 50_000} for i in others}
    return {**told, **more}


def survey(
    monkeypatch: pytest.MonkeyPatch,
    first: dict[str, Any],
    *others: dict[str, Any],
    why: str = "",
    told: Any = MappingProxyType({}),
) -> Survey:
    """What is found out of members that say this; with a key if there are others.  told: by the node of the host."""
    by_addr = {f"n{each['node_id']}:1": each for each in others}

    class Asked:
        def status(self, timeout: float) -> dict[str, Any]:
            return first

        def members(self, timeout: float) -> Any:
            return told

    def ask(
        where: Where, number: int, addr: str, deadline: float, pictures: dict[int, Any], silent: dict[int, str]
    ) -> None:
        if addr in by_addr:
            pictures[number] = by_addr[addr]

    monkeypatch.setattr(Where, "owner", lambda self, what: Asked())
    monkeypatch.setattr("raftsvc.commands.status._ask", ask)
    monkeypatch.setattr("raftsvc.commands.status._why_not_serving", lambda where, deadline: why)
    return survey_of(Where("/", (), "name:key" if others else "", PATIENCE, {}))


def states(found: Survey) -> list[str]:
    return [member.state for member in found.members]


def test_a_cluster_whose_voters_are_all_current_can_lose_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for found in (
        survey(monkeypatch, picture(1, "leader")),
        survey(monkeypatch, picture(2), picture(1, "leader"), picture(3)),
    ):
        assert states(found) == ["current"] * 3
        assert found.can_lose_one() == (True, "3 of 3 voters are up and current, and 2 are needed")
        assert [member.role for member in found.members] == ["leader", "follower", "follower"]


@pytest.mark.parametrize(
    ("third", "state"),
    [
        ({"applied_index": 1}, "behind"),
        ({"conditions": ["stalled"]}, "failing"),
        ({"role": "removed"}, "failing"),
        ({"conditions": ["low-room"]}, "current"),
    ],
)
def test_a_member_counts_if_it_says_that_it_is_well(
    monkeypatch: pytest.MonkeyPatch, third: dict[str, Any], state: str
) -> None:
    found = survey(monkeypatch, picture(1, "leader"), picture(2), picture(3, **third))
    assert states(found) == ["current", "current", state]
    is_safe, why = found.can_lose_one()
    assert is_safe is (state == "current")
    assert state == "current" or f"n3:1 is {state}" in why


def test_a_member_that_does_not_answer_counts_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    found = survey(monkeypatch, picture(1, "leader"), picture(2))
    assert states(found) == ["current", "current", "unreached"]
    reason = "2 of 3 voters are up and current, and 2 are needed: n3:1 is unreached"
    assert found.can_lose_one() == (False, reason)
    five = survey(monkeypatch, picture(1, "leader", 5), *(picture(i, size=5) for i in (2, 3, 4)))
    assert five.can_lose_one()[0] is True


def test_a_leader_tells_of_its_followers(monkeypatch: pytest.MonkeyPatch) -> None:
    leader = picture(1, "leader")
    leader["followers"]["2"] = {"state": "snapshot", "match_index": 0}
    leader["unreachable"] = {"3": {"code": "", "why": "timed out"}}
    found = survey(monkeypatch, leader)
    assert [(m.state, m.lag, m.why) for m in found.members[1:]] == [
        ("behind", 50_000, ""),
        ("unreached", 0, "timed out"),
    ]
    assert found.can_lose_one()[0] is False


def test_how_far_one_is_behind_that_has_not_answered_its_leader_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    leader = picture(1, "leader")
    leader["followers"] = {str(i): {"state": "probe", "match_index": 0} for i in (2, 3)}
    leader["unreachable"] = {"3": {"code": "", "why": "timed out"}}
    found = survey(monkeypatch, leader)
    assert [(m.state, m.lag) for m in found.members[1:]] == [("behind", None), ("unreached", None)]


def test_what_a_follower_cannot_know_is_said_to_be_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    found = survey(monkeypatch, picture(2))
    assert states(found) == ["unknown", "current", "unknown"]
    is_safe, why = found.can_lose_one()
    assert is_safe is None
    assert "--key-file" in why
    cut = survey(monkeypatch, picture(2, unreachable={"1": {"code": "", "why": "timed out"}}))
    assert cut.can_lose_one()[0] is False


def test_the_node_of_the_host_asks_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"1": {"status": picture(1, "leader")}, "2": {"status": picture(2)}, "3": {"why": "timed out"}}
    found = survey(monkeypatch, picture(2), told=told)
    assert states(found) == ["current", "current", "unreached"]
    assert found.members[2].why == "timed out"
    assert found.can_lose_one()[0] is False


@pytest.mark.parametrize("size", [1, 2])
def test_one_or_two_voters_can_lose_none(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    found = survey(monkeypatch, picture(1, "leader", size))
    assert found.can_lose_one()[0] is False


def test_a_cluster_that_does_not_serve_can_lose_none(monkeypatch: pytest.MonkeyPatch) -> None:
    found = survey(monkeypatch, picture(1, "leader"), why="no majority")
    assert found.can_lose_one() == (False, "the cluster does not serve: no majority")


def test_a_learner_is_no_voter(monkeypatch: pytest.MonkeyPatch) -> None:
    found = survey(monkeypatch, picture(1, "leader", 9))
    assert found.members[-1].role == "learner"
    assert "8 of 8 voters" in found.can_lose_one()[1]


def test_without_whom_the_rest_has_no_majority_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    well = survey(monkeypatch, picture(1, "leader"))
    assert not well.why_not_without("n3:1")
    assert not well.why_not_without("3")
    assert not well.why_not_without("n9:1")
    ill = survey(monkeypatch, picture(1, "leader", unreachable={"3": {"code": "", "why": "timed out"}}))
    assert not ill.why_not_without("n3:1")
    assert ill.why_not_without("N2:1") == "of the other 2 voters 2 are needed, and n3:1 is unreached"
    assert survey(monkeypatch, picture(1, "leader", 1)).why_not_without("1") == "it is the only voter"


def test_what_is_harmless_keeps_a_member_from_nothing() -> None:
    assert {condition.label for condition in Condition if condition.keeps_from is Part.NONE} >= HARMLESS


KEYS = {
    "serves", "why_not", "safe_to_lose_one_more", "safe_reason", "cluster_id", "leader_id", "leader_addr", "term",
    "commit_index", "effective_version", "members", "warnings", "formation",
}  # fmt: skip


def test_a_node_that_serves_is_shown(here: Shell, node: Node) -> None:
    done = here("status")
    assert done.code == 0
    text = done.out.decode()
    assert re.search(r"^cluster [0-9a-f]{16}: serves$", text, re.MULTILINE)
    assert f"leader  {node.addr} (member 1), term" in text
    assert "version raftsvc 1, State 1" in text
    assert "safe to lose one more: no (there is one voter only)" in text
    assert re.search(rf"^1 +{node.addr} +leader +\d+ +0 +current$", text, re.MULTILINE)
    told = here("status", "--json").json
    assert set(told) == KEYS
    assert told["serves"] is True
    assert told["effective_version"] == {"library": 1, "state": 1}
    (member,) = here("members", "--json").json["members"]
    assert {key: member[key] for key in ("id", "addr", "is_voter", "role", "lag", "state", "conditions", "why")} == {
        "id": 1,
        "addr": node.addr,
        "is_voter": True,
        "role": "leader",
        "lag": 0,
        "state": "current",
        "conditions": [],
        "why": "",
    }
    assert isinstance(member["applied"], int)
    assert node.addr.encode() in here("members").out


def test_a_node_without_a_cluster_does_not_serve(shell: Shell, make_node: Callable[[], Node]) -> None:
    node = make_node()
    done = shell("--at", str(node.path), "status")
    assert done.code == 1
    assert done.out.decode().startswith("cluster none yet: ")
    told = shell("--at", str(node.path), "status", "--json")
    assert (told.code, told.json["serves"], told.json["members"]) == (1, False, [])


def test_a_cluster_without_a_majority_is_shown_and_does_not_serve(
    shell: Shell, make_node: Callable[[], Node], tmp_path: Any
) -> None:
    one, other = make_node(), make_node()
    one.service.init()
    other.service.join(one.addr, PATIENCE)
    key = key_file(tmp_path, ADMIN)

    def are_current() -> bool:
        both = shell("--at", one.addr, "--key-file", key, "status", "--json")
        assert both.code == 0
        told = sorted((member["role"], member["state"]) for member in both.json["members"])
        return told == [("follower", "current"), ("leader", "current")]

    eventually(are_current, "both vote")
    other.service.stop()
    alone = shell("--at", str(one.path), "--key-file", key, "status", "--timeout", "3")
    assert alone.code == 1
    assert "safe to lose one more: no (the cluster does not serve" in alone.out.decode()
