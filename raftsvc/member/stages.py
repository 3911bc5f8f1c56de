"""Where a caller waited whose time ran out: what he is told of it.  Taken under the node's lock."""

from __future__ import annotations

from typing import Final

from raftsvc.member.engine import Engine
from raftsvc.member.health import Condition
from raftsvc.member.waiters import Call, Read, Waiter

_REASONS: Final = (Condition.STATE_STALLED, Condition.STALLED, Condition.REFUSED, Condition.OUT_OF_TOUCH)


def stage_of(engine: Engine, waiter: Waiter) -> str:
    """What `waiter`, which is about to be given up, waits for."""
    core, applied = engine.core, engine.applying.applied_index
    committed = core.log.commit_index
    behind = f"the State of this node has applied up to {applied}, and up to {committed} are committed"
    reason = next((str(e) for c in _REASONS if (e := engine.health.error_of(c)) is not None), "")
    if isinstance(waiter, Read) and waiter.index:
        stage = f"the read needs entry {waiter.index} applied here; {behind}"
    elif not core.leader_id:
        stage = "no leader is known"
    elif isinstance(waiter, Call) and not engine.calls.session_id:
        stage = f"the leader, node {core.leader_id}, has not opened a session for this node yet; {behind}"
    elif isinstance(waiter, Call) and not waiter.unsettled:
        stage = f"the leader, node {core.leader_id}, has not taken it"
    elif isinstance(waiter, Call):
        stage = f"it was handed to the leader, node {core.leader_id}, and is not applied here; {behind}"
    else:
        stage = f"the leader, node {core.leader_id}, has not confirmed by a majority that it leads"
    return f"{stage} ({reason})" if reason else stage
