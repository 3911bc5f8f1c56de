"""A caller whose time ran out is told what he waited for, of each thing that there is to wait for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from raftsvc.errors import NodeFailedError
from raftsvc.member.health import Condition
from raftsvc.member.stages import stage_of
from raftsvc.member.waiters import Call, Read, Waiter

pytestmark = pytest.mark.pure  # the engine is another's

BEHIND = "the State of this node has applied up to 5, and up to 8 are committed"


def look(waiter: Waiter, *, leader: int = 2, session: int = 7, trouble: Condition | None = None) -> str:
    def error_of(condition: Condition) -> object:
        return NodeFailedError("no answer for 3 s") if condition is trouble else None

    engine: Any = SimpleNamespace(
        core=SimpleNamespace(leader_id=leader, log=SimpleNamespace(commit_index=8)),
        applying=SimpleNamespace(applied_index=5),
        calls=SimpleNamespace(session_id=session),
        health=SimpleNamespace(error_of=error_of),
    )
    return stage_of(engine, waiter)


def a_call(unsettled: int = 0) -> Call:
    call = Call(b"")
    call.unsettled = unsettled
    return call


def a_read(index: int = 0) -> Read:
    read = Read()
    read.index = index
    return read


@pytest.mark.parametrize("waiter", [a_call(), a_call(1), a_read()], ids=["new", "sent", "read"])
def test_without_a_leader_all_wait_for_one(waiter: Waiter) -> None:
    assert look(waiter, leader=0) == "no leader is known"


@pytest.mark.parametrize("unsettled", [0, 1])
def test_first_of_all_a_session_is_needed(unsettled: int) -> None:
    told = look(a_call(unsettled), session=0)
    assert told == f"the leader, node 2, has not opened a session for this node yet; {BEHIND}"


def test_then_the_leader_has_to_take_it() -> None:
    assert look(a_call()) == "the leader, node 2, has not taken it"


@pytest.mark.parametrize("times", [1, 2])
def test_then_it_has_to_be_applied(times: int) -> None:
    assert look(a_call(times)) == f"it was handed to the leader, node 2, and is not applied here; {BEHIND}"


def test_a_read_waits_for_the_leader_to_be_sure_of_itself() -> None:
    assert look(a_read()) == "the leader, node 2, has not confirmed by a majority that it leads"


def test_and_for_what_it_needs_to_be_applied_though_nobody_leads_by_now() -> None:
    assert look(a_read(8), leader=0) == f"the read needs entry 8 applied here; {BEHIND}"


@pytest.mark.parametrize(
    "trouble", [Condition.STATE_STALLED, Condition.STALLED, Condition.REFUSED, Condition.OUT_OF_TOUCH]
)
def test_what_is_wrong_with_the_node_is_told_beside_it(trouble: Condition) -> None:
    assert look(a_call(), trouble=trouble) == "the leader, node 2, has not taken it (no answer for 3 s)"


def test_what_has_nothing_to_do_with_it_is_not() -> None:
    assert look(a_call(), trouble=Condition.LOW_ROOM) == "the leader, node 2, has not taken it"
