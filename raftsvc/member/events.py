"""What an operator is told, one line each, of who leads and who belongs to the cluster.

WARNING is what he has to see although he configured nothing: a leader other than the one before, and who comes, goes
or moves.  INFO is the rest: the first leader that a process hears of, candidacies, and what it knew as it began.  The
fields of each line are those of `raftsvc.logs`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from raftsvc.core.membership import Configuration
from raftsvc.core.messages import NO_NODE
from raftsvc.core.raft import Raft
from raftsvc.logs import what

Line = tuple[int, str, dict[str, object]]
Lead = tuple[int, int]
"""A term, and who leads in it."""


def of_leader(core: Raft, told: Lead) -> tuple[Line | None, Lead]:
    """What to say of the leader to who was told of `told` last, and what he was told of then."""
    lead = (core.term, core.leader_id)
    if core.leader_id == NO_NODE:
        text = f"node {core.node_id} is {core.role.value} in term {core.term}, leader unknown"
        return (logging.INFO, text, what("leader-unknown", node=core.node_id, term=core.term)), told
    if lead == told:
        return None, told
    who = core.config.name_of(core.leader_id)
    if core.leader_id == core.node_id:
        who = who.replace(f"node {core.node_id}", "this node", 1)
    again = " again" if told[1] == core.leader_id else ""
    level = logging.INFO if told[1] == NO_NODE else logging.WARNING
    fields = what("leader", node=core.node_id, term=core.term, leader=core.leader_id)
    return (level, f"node {core.node_id}: {who} leads{again} in term {core.term}", fields), lead


def of_members(before: Configuration, after: Configuration, is_news: bool = True) -> Iterator[Line]:
    """What to say of a change of the membership, or of the effective version.

    is_news: it was not known yet as the process began.
    """
    level = logging.WARNING if is_news and before.members else logging.INFO
    if before.members and before.versions != after.versions:
        text = f"the effective version is {after.versions} now, and was {before.versions}"
        yield level, text, what("version-raised")
    for node_id in sorted(before.members.keys() | after.members.keys()):
        for event, text in _of_member(before, after, node_id):
            yield level, text, what(event, member=node_id)


def _of_member(before: Configuration, after: Configuration, node_id: int) -> Iterator[tuple[str, str]]:
    """The events that its change is, and what to say of each."""
    old, new = before.members.get(node_id), after.members.get(node_id)
    if new is None:
        yield "member-removed", f"{before.name_of(node_id)} is a member no more"
    elif old is None:
        kind = "a voter" if node_id in after.voters else "a member that does not vote yet"
        yield "member-added", f"{after.name_of(node_id)} is {kind}"
    else:
        if new.addr != old.addr:
            yield "member-moved", f"node {node_id} is {_move(old.addr, new.addr)}"
        if node_id in after.voters and node_id not in before.voters:
            yield "voter-added", f"{after.name_of(node_id)} is a voter now"


def _move(old: str, new: str) -> str:
    if not new:
        return f"no longer at {old}, where another member is now; nobody found it elsewhere yet"
    return f"at {new} now, no longer at {old}" if old else f"at {new} now"
