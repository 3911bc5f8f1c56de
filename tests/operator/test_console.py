"""What operators do: refused before it harms, noted in one line each, and its outcome told as far as it is known."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from raftsvc import (
    DivergedError,
    MembershipTimeoutError,
    MembershipUnchangedError,
    NotLeaderError,
    NotTransferredError,
    OutcomeUnknown,
    OverloadedError,
    Rejected,
    States,
    StorageError,
    TransferFailedError,
    UnknownPeerError,
)
from raftsvc.kv import KeyValueState
from raftsvc.operator import Operator
from raftsvc.operator.lookout import Lookout, Sight
from raftsvc.state import BaseState
from tests.effort import PATIENCE
from tests.operator.harness import FULL, PAGE, Actor, client_of
from tests.operator.scenes import ADDRS, catching_up, diverged, healthy, no_quorum, one_dead, picture
from tests.service.harness import eventually

ANNA = Operator("anna", True, "cookie")
OURS = picture(1)["cluster_id"]


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "raftsvc.audit"]


def test_each_action_leaves_one_line_with_who_from_where_what_and_how_it_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    actor = Actor()
    client = client_of(actor, FULL)
    here = {"REMOTE_ADDR": "10.0.0.7"}
    client.post("/login", json={"key": FULL.key}, headers=PAGE, environ_overrides=here)
    for what, whom in (("transfer", "1"), ("allow", "n4.example:8001"), ("evict", "9")):
        client.post("/act", json={"what": what, "whom": whom}, headers=PAGE, environ_overrides=here)
    found = lines(caplog)
    assert len(found) == 4 and all(record.levelno == logging.WARNING for record in caplog.records)
    assert all('operator="anna"' in line and 'from="10.0.0.7"' in line for line in found)
    assert ['action="sign in" outcome="done"' in found[0], 'action="transfer 1 (n1.example:8001)"' in found[1]] == [
        True
    ] * 2
    assert 'action="allow n4.example:8001" outcome="done"' in found[2]
    assert 'action="evict 9" outcome="refused"' in found[3]


def test_nothing_that_is_sent_breaks_the_line(caplog: pytest.LogCaptureFixture) -> None:
    Actor().console().act(Operator('a"\nb', True, "application"), "allow", "x\r\noperator=root", "::1\n")
    (line,) = lines(caplog)
    assert "\n" not in line and "\r" not in line


@pytest.mark.parametrize(
    ("scene", "whom", "why"),
    [
        (one_dead, "1", "of the other 2 voters 2 are needed"),
        (diverged, "2", "of the other 2 voters 2 are needed"),
        (no_quorum, "3", "nobody who answers this node knows a leader"),
    ],
)
def test_an_eviction_that_would_lose_the_quorum_is_refused_before_anything_is_proposed(
    scene: Any, whom: str, why: str
) -> None:
    actor = Actor(scene)
    outcome = actor.console().act(ANNA, "evict", whom, "-")
    assert outcome.outcome == "refused" and why in outcome.detail and actor.done == []


def test_the_one_that_is_lost_can_be_evicted() -> None:
    for scene in (one_dead, diverged, catching_up):
        actor = Actor(scene)
        assert actor.console().act(ANNA, "evict", "3", "-").outcome == "done"
        assert actor.done == [("evict", "3")]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (MembershipTimeoutError("not in time"), "unknown"),
        (MembershipUnchangedError("would_lose_quorum"), "refused"),
        (StorageError("the disk failed"), "unknown"),
        (DivergedError("found out meanwhile"), "unknown"),
        (OverloadedError("busy"), "refused"),
        (UnknownPeerError("nobody"), "refused"),
        (OutcomeUnknown("who knows"), "unknown"),
    ],
)
def test_what_may_have_been_done_is_not_called_refused(error: Exception, outcome: str) -> None:
    actor = Actor()
    actor.error = error
    assert actor.console().act(ANNA, "evict", "3", "-") == (outcome, f"{type(error).__name__}: {error}")
    if isinstance(error, OutcomeUnknown):
        assert actor.console().act(ANNA, "disallow", "n4.example:8001", "-").outcome == outcome


@pytest.mark.parametrize(
    ("error", "outcome"), [(NotTransferredError("no voter"), "refused"), (TransferFailedError("may yet"), "unknown")]
)
def test_what_may_have_been_handed_over_is_not_called_refused(error: Exception, outcome: str) -> None:
    actor = Actor()
    actor.error = error
    assert actor.console().act(ANNA, "transfer", "1", "-").outcome == outcome


def test_of_several_parts_of_which_one_refuses_it_is_not_said_that_nothing_was_done() -> None:
    actor, errors = Actor(), [None, Rejected("full")]

    def exec_next(instruction: bytes, timeout: float = 10.0) -> bool:
        if (error := errors.pop(0)) is not None:
            raise error
        return True

    actor.exec = exec_next  # type: ignore[method-assign]
    console = actor.console(States(one=KeyValueState(), two=KeyValueState()))
    console._states = SimpleNamespace(part=lambda name, service: service)  # type: ignore[assignment]
    outcome = console.act(ANNA, "allow", "n4.example:1", "-")
    assert outcome.outcome == "unknown" and "done in the part one, and not in two" in outcome.detail
    errors[:] = [Rejected("full"), None]
    assert console.act(ANNA, "allow", "n4.example:1", "-").outcome == "refused"


def test_a_follower_has_the_leader_hand_over() -> None:
    actor = Actor()
    actor.error = NotLeaderError("member 2 leads")
    assert actor.console().act(ANNA, "transfer", "3", "-").outcome == "done"
    assert actor.done == [("transfer", "3"), ("ask", "n2.example:8001", "3")]


def test_one_action_at_a_time() -> None:
    actor = Actor()
    console = actor.console()
    begun, go_on = threading.Event(), threading.Event()

    def evict(node_addr: str, timeout: float = 60.0) -> None:
        begun.set()
        assert go_on.wait(PATIENCE)

    actor.evict = evict  # type: ignore[method-assign]
    outcomes: list[str] = []
    thread = threading.Thread(target=lambda: outcomes.append(console.act(ANNA, "evict", "3", "-").outcome))
    thread.start()
    assert begun.wait(PATIENCE)
    assert console.act(ANNA, "transfer", "1", "-").outcome == "refused"
    assert console.feed(ANNA)["leader_id"] == 2
    go_on.set()
    thread.join(PATIENCE)
    assert outcomes == ["done"] and console.act(ANNA, "transfer", "1", "-").outcome == "done"


def test_an_address_that_is_none_and_a_state_without_a_list_are_refused() -> None:
    actor = Actor()
    for wrong in ("http://", "\ud800:1", ""):
        assert actor.console().act(ANNA, "allow", wrong, "-").outcome == "refused"
    assert actor.console(BaseState()).act(ANNA, "allow", "n4:1", "-").outcome == "refused"  # type: ignore[arg-type]
    assert actor.done == []


def test_an_overview_that_fails_takes_nothing_else_away() -> None:
    class Broken(KeyValueState):
        def overview(self, limit: int) -> dict[str, object]:
            raise ZeroDivisionError

    feed = Actor().console(Broken()).feed(ANNA)
    assert feed["leader_id"] == 2 and "ZeroDivisionError" in str(feed["overview"])


def test_parts_of_a_state_are_told_apart_and_who_may_join_is_told_once() -> None:
    class Part(KeyValueState):
        def overview(self, limit: int) -> dict[str, object]:
            return {"locks": [{"name": "lock:a"}], "jobs": [{"name": "j"}] * 99, "allowed": ["n4:1", "n5:1"]}

    feed: Any = Actor().console(States(one=Part(), two=Part())).feed(ANNA)
    assert [lock["part"] for lock in feed["overview"]["locks"]] == ["one", "two"]
    assert feed["overview"]["allowed"] == ["n4:1", "n5:1"] and len(feed["overview"]["jobs"]) == 100


def test_what_all_are_told_is_made_once_however_many_look_and_anew_after_an_action() -> None:
    made: list[int] = []

    class Counting(KeyValueState):
        def overview(self, limit: int) -> dict[str, object]:
            made.append(limit)
            return {}

    console = Actor().console(Counting())
    console._told = float("inf"), {"term": 7}  # as if it had just been made
    for name in ("anna", "bob"):
        assert console.feed(Operator(name, True, "key"))["operator"] == {"name": name, "may_act": True, "way": "key"}
    assert made == [] and console.feed(ANNA)["term"] == 7
    assert console.act(ANNA, "transfer", "3", "-").outcome == "done"
    assert any("transfer 3" in str(event["text"]) for event in console.feed(ANNA)["events"])  # type: ignore[attr-defined]
    assert len(made) == 1
    console._told = float("-inf"), {"term": 7}
    with console._telling:  # somebody makes it, and does not come back
        assert console.feed(ANNA)["leader_id"] == 2


class Members:
    """Whoever is asked answers, once he is let; each address as often as it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.gate = threading.Event()

    def ask(self, addr: str, timeout: float) -> Mapping[str, Any]:
        self.asked.append(addr)
        if addr == "hangs":
            self.gate.wait(PATIENCE)
        if addr == "broken":
            raise ValueError("what is that?")
        return picture(2)


def test_a_member_that_hangs_keeps_nobody_waiting_and_one_that_talks_nonsense_is_told() -> None:
    members, stopped = Members(), threading.Event()
    lookout, asked = Lookout(members.ask, stopped), {2: "fine", 3: "hangs", 4: "broken", 5: "fine"}
    try:
        found = eventually(
            lambda: (s := lookout.look(asked, OURS))[4].why and s[2].picture and s[5].why and s, "three to be heard"
        )
        assert found[2].is_current and found[3].picture is None and not found[3].why
        assert "makes no sense" in found[4].why
        assert found[5].picture is None and "answers member 2" in found[5].why
    finally:
        stopped.set()
        members.gate.set()


def test_nobody_is_asked_once_nobody_looks_or_the_node_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftsvc.operator.lookout._WANTED_SECONDS", 0.0)
    members, stopped = Members(), threading.Event()
    lookout = Lookout(members.ask, stopped)

    def threads() -> int:
        return sum(thread.name == "raftsvc-lookout" for thread in threading.enumerate())

    before = threads()
    lookout.look({2: "fine"}, OURS)
    eventually(lambda: threads() <= before, "the thread ends by itself")
    stopped.set()
    lookout.look({2: "fine", 3: "another"}, OURS)
    assert threads() <= before


def test_a_member_of_another_cluster_at_its_address_is_not_shown_as_ours() -> None:
    actor = Actor()
    theirs = picture(3, cluster_id="00000000000000ff")
    actor.scene = lambda step: (healthy(step)[0], {2: Sight(picture(2)), 3: Sight(theirs)})
    console = actor.console()
    feed: Any = eventually(lambda: (f := console.feed(ANNA))["members"][2]["why"] and f)  # type: ignore[index]
    dead = feed["members"][2]
    assert dead["state"] == "unreached" and "belongs to cluster 00000000000000ff" in dead["why"] and "told" not in dead


def test_what_was_said_to_who_looked_long_ago_is_not_held_against_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftsvc.operator.lookout._FIRST_SECONDS", PATIENCE)
    members, stopped = Members(), threading.Event()
    lookout = Lookout(members.ask, stopped)
    try:
        assert lookout.look({2: "fine"}, OURS)[2].is_current
        (watch,) = lookout._watches.values()
        with monkeypatch.context() as patch:
            patch.setattr("raftsvc.operator.lookout._WANTED_SECONDS", 0.0)
            lookout.hurry()
            assert watch.thread is not None
            watch.thread.join(PATIENCE)
        watch.said_at -= 60.0  # as if that had been a minute ago
        found = lookout.look({2: "fine"}, OURS)[2]
        assert found.is_current and not found.why
    finally:
        stopped.set()
        lookout.hurry()


def test_who_is_evicted_is_judged_by_what_is_said_after_it_was_asked_for() -> None:
    actor = Actor()
    console = actor.console()
    eventually(lambda: all("told" in each for each in console.feed(ANNA)["members"]))  # type: ignore[attr-defined]
    actor.scene = one_dead  # since then one is lost, and nobody has looked
    outcome = console.act(ANNA, "evict", "1", "-")
    assert (outcome.outcome, actor.done) == ("refused", [])
    actor.scene = healthy
    assert console.act(ANNA, "evict", "1", "-").outcome == "done"


def test_who_does_not_answer_an_operator_in_time_is_not_counted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftsvc.operator.lookout._ANEW_SECONDS", 0.1)
    actor = Actor()
    gate, ask = threading.Event(), actor.ask_status
    actor.ask_status = lambda addr, timeout: (  # type: ignore[method-assign]
        gate.wait(PATIENCE) if addr == ADDRS[2] else None,
        ask(addr, timeout),
    )[1]
    try:
        outcome = actor.console().act(ANNA, "evict", "1", "-")
        assert outcome.outcome == "refused" and "unreached" in outcome.detail and actor.done == []
    finally:
        gate.set()


@pytest.mark.parametrize(
    "odd",
    [
        {"conditions": None},
        {"warnings": None},
        {"process": None},
        {"role": None},
        {"applied_index": None},
        {"commit_index": "7"},
        {"members": {"one": {"addr": "", "is_voter": True}}},
        {"members": {"1": {"addr": "n1:1"}}},
        {"followers": {"1": {"state": "replicate"}}},
        {"unreachable": {"1": "why"}},
        {"measures": {"applied_entries": 1}},
        {"time_ms": float("nan")},
    ],
)
def test_one_member_that_talks_nonsense_takes_nothing_else_away(odd: dict[str, Any]) -> None:
    actor = Actor()
    actor.scene = lambda step: (healthy(step)[0], {2: Sight(picture(2)), 3: Sight({**picture(3), **odd})})
    console = actor.console()

    def are_heard(told: Any) -> Any:
        two, three = told["members"][1:]
        return "told" in two and three["why"] and told

    feed: Any = eventually(lambda: are_heard(console.feed(ANNA)), "both are heard")
    two, three = feed["members"][1:]
    assert two["state"] == "current" and three["state"] == "unreached" and "makes no sense" in three["why"]


def test_a_process_that_was_forked_from_the_nodes_says_so_and_waits_for_no_lock() -> None:
    actor = Actor()
    client = client_of(actor)
    actor.is_forked = True
    for answer in (client.get("/feed"), client.post("/act", json={"what": "evict", "whom": "3"}, headers=PAGE)):
        assert (answer.status_code, answer.json["code"]) == (503, "ForkedError")
    assert actor.done == []
