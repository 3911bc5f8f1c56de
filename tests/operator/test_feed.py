"""What the page is told of a cluster, in the states that somebody on call meets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from raftsvc.operator.chronicle import Chronicle
from raftsvc.operator.feed import fed, surveyed
from raftsvc.operator.lookout import Sight
from tests.operator.scenes import ADDRS, SCENES, feed_of, healthy, picture


@pytest.mark.parametrize(
    ("scene", "state", "is_safe"),
    [
        ("forming", "forming", False),
        ("healthy", "healthy", True),
        ("one dead", "degraded", False),
        ("no quorum", "no-quorum", False),
        ("catching up", "degraded", False),
        ("stalled disk", "degraded", False),
        ("diverged", "degraded", False),
    ],
)
def test_the_verdict_says_how_the_cluster_is(scene: str, state: str, is_safe: bool) -> None:
    feed = feed_of(scene)
    assert (feed["verdict"]["state"], feed["verdict"]["is_safe"]) == (state, is_safe)
    json.dumps(feed, allow_nan=False)


def test_every_scene_has_its_verdict_tested() -> None:
    (mark,) = test_the_verdict_says_how_the_cluster_is.pytestmark  # type: ignore[attr-defined]
    assert {scene for scene, *_ in mark.args[1]} == set(SCENES)


def by_id(feed: dict[str, Any]) -> dict[int, dict[str, Any]]:
    return {member["id"]: member for member in feed["members"]}


def test_a_member_that_does_not_answer_is_shown_with_why_and_without_what_it_said_once() -> None:
    dead = by_id(feed_of("one dead"))[3]
    assert dead["state"] == "unreached" and "refused" in dead["why"] and "told" not in dead


def test_how_far_one_is_behind_that_never_answered_its_leader_is_not_known() -> None:
    own, sights = SCENES["one dead"](0)
    leader = sights[2].picture
    assert leader is not None
    leader["followers"]["3"] = {"state": "probe", "match_index": 0}  # as of one that has just won
    dead = by_id(fed(own, sights, surveyed(own, sights)))[3]
    assert dead["state"] == "unreached" and dead["lag"] is None


def test_what_was_said_long_ago_does_not_tell_how_a_member_is() -> None:
    own, sights = healthy(0)
    feed = fed(own, {**sights, 3: Sight(picture(3), 60.0)}, surveyed(own, {**sights, 3: Sight(picture(3), 60.0)}))
    assert by_id(feed)[3]["state"] == "unreached"


def test_a_member_to_which_a_snapshot_is_sent_is_told_from_one_that_only_lags() -> None:
    assert by_id(feed_of("catching up"))[3]["sending"] == "snapshot"


def test_a_node_that_is_cut_off_does_not_say_that_a_cluster_serves_because_it_did() -> None:
    verdict = feed_of("no quorum")["verdict"]
    assert "from here" in verdict["title"] and "1 of 3 voters answer" in verdict["why"]


def test_a_leader_that_another_member_hears_counts_for_a_node_that_hears_none() -> None:
    own, sights = healthy(0)
    own = picture(1, leader_id=0, conditions={"out-of-touch": "no leader is heard"})
    feed = fed(own, sights, surveyed(own, sights))
    assert feed["leader_id"] == 2 and feed["verdict"]["state"] == "degraded"  # type: ignore[index]


def test_a_node_of_no_cluster_says_so() -> None:
    own = {"role": "uninitialized", "addr": ADDRS[0], "error": None, "process": {}, "formation": None}
    assert fed(own, {}, surveyed(own, {}))["verdict"]["state"] == "outside"  # type: ignore[index]


def test_what_changes_at_other_members_is_noted_once() -> None:
    chronicle = Chronicle(lambda: 1000.0)
    for scene in ("healthy", "healthy", "diverged", "diverged", "one dead", "one dead", "healthy"):
        own, sights = SCENES[scene](0)
        chronicle.compare(1, surveyed(own, sights).members)
    texts = [str(event["text"]).removeprefix(f"member 3 at {ADDRS[2]}") for event in chronicle.events()]
    assert texts == [
        ": halted",
        " does not answer: no connection to n3.example:8001: Connection refused",
        " answers again",
        ": halted is over",
    ]


def test_who_was_asked_a_moment_earlier_does_not_lag_by_that() -> None:
    own, _ = healthy(1)
    _, earlier = healthy(0)
    feed = fed(own, earlier, surveyed(own, earlier))
    assert [member["lag"] for member in feed["members"]] == [0, 0, 0]  # type: ignore[index,attr-defined]
