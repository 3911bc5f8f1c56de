"""What an operator is told, one line each, of who leads and who belongs to the cluster.

WARNING is what he has to see although he configured nothing: a leader other than the one before, a member that is
removed.  INFO is the rest: the first leader that a process hears of, candidacies, members that come.  The fields of
each line are those of `raftsvc.logs`.
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


def of_members(before: Configuration, after: Configuration) -> Iterator[Line]:
    """What to say of a change of the membership, or of the effective version."""
    if before.members and before.versions != after.versions:
        text = f"the effective version is {after.versions} now, and was {before.versions}"
        yield logging.INFO, text, what("version-raised")
    for node_id in sorted(before.members.keys() | after.members.keys()):
        old, new = before.members.get(node_id), after.members.get(node_id)
        if new is None and old is not None:
            yield _of_member(
                "member-removed", node_id, f"{before.name_of(node_id)} is a member no more", logging.WARNING
            )
        elif new is not None and old is None:
            kind = "a voter" if node_id in after.voters else "a member that does not vote yet"
            yield _of_member("member-added", node_id, f"{after.name_of(node_id)} is {kind}")
        elif new is not None and old is not None:
            if new.addr != old.addr:
                yield _of_member("member-moved", node_id, f"node {node_id} is {_move(old.addr, new.addr)}")
            if node_id in after.voters and node_id not in before.voters:
                yield _of_member("voter-added", node_id, f"{after.name_of(node_id)} is a voter now")


def _of_member(event: str, member: int, text: str, level: int = logging.INFO) -> Line:
    return level, text, what(event, member=member)


def _move(old: str, new: str) -> str:
    if not new:
        return f"no longer at {old}, where another member is now; nobody found it elsewhere yet"
    return f"at {new} now, no longer at {old}" if old else f"at {new} now"
