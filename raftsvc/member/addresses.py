"""Where the other members may be reached, beyond what the configuration says.

A configuration records an address for each member, and the machines that members run on may get
others while all are down: swapped, permuted, new.  So who answers is believed, and not where.
Each authentic request of a member says where that is reached, and whoever answers in the place of another says
so too: that is a *hint*, used for sending at once.  What the configuration records and
what the operator gave (`raftsvc.start`, peers=) are tried in turn with it, each time one fails; and
who does not answer at any of them may be where another one was, so these places are tried in between.

A member that said where it is, and answered there, has been *found*, and only what was found is
proposed to be recorded: by whoever found it, so by a follower if it is the leader that moved.
A member that says it is where another answers is named and sent to elsewhere, and nothing is proposed; now and then
it is looked for there again, for an address may come to be one's own later.

Pure: without threads, clock or log; used under the lock of the node, save `said`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from raftsvc.core.membership import ConfChange, Configuration, ConfOp, Member

_MAX_STRANGERS: Final = 16
_PATIENCE: Final = 2
"""Failures in a row after which a member is looked for where others were."""
_LOOK_AGAIN = 60
"""So many times `corrections` is asked until who was found to be wrong is looked for where it says once more."""


class Addresses:
    """What one node knows of where the others are.  Bounded by the members there are."""

    __slots__ = (
        "_failures",
        "_given",
        "_looks",
        "_named",
        "_places",
        "_said",
        "_tried",
        "answered",
        "own_addr",
        "own_id",
    )

    def __init__(self, own_id: int, own_addr: str, given: Mapping[int, str]) -> None:
        """given: hints of the operator, by id."""
        self.own_id = own_id
        self.own_addr = own_addr
        self._given = {i: addr for i, addr in given.items() if i != own_id}
        self._said: dict[int, str] = {}
        self._tried: dict[int, str] = {}
        self._failures: dict[int, int] = {}
        self._named: dict[int, tuple[str, int]] = {}  # who says to be where which other answered
        self._looks = 0
        self._places: dict[str, None] = {}  # that were recorded for anybody, the latest last
        self.answered: dict[int, str] = {}
        """Where each answered last, if it did not fail since, by id."""

    # -- where to send

    def wanted(self, config: Configuration) -> dict[int, str]:
        """Whom to have a way to, and where; an empty address: nobody knows.

        A node that joined and was not reached yet knows none but those that its operator gave.
        """
        members: Mapping[int, Member] = config.members
        if not members:
            return dict(self._given)
        for member in members.values():
            self._places.setdefault(member.addr)
        while len(self._places) > 2 * len(members) + _MAX_STRANGERS:
            del self._places[next(iter(self._places))]
        return {i: self.of(i, member.addr) for i, member in members.items() if i != self.own_id}

    def of(self, node_id: int, recorded: str) -> str:
        """Where to send what is for that member."""
        likely = self._likely(node_id, recorded)
        others = self._others(likely)
        tried = self._tried.get(node_id, "")
        return tried if tried in likely or tried in others else next(iter([*likely, *others]), "")

    def is_guess(self, node_id: int, addr: str, config: Configuration) -> bool:
        """Whether nobody says that it is at `addr`, where others were, and somebody says that it is elsewhere."""
        member = config.members.get(node_id)
        likely = self._likely(node_id, member.addr if member is not None else "")
        return bool(likely) and addr not in likely

    def _likely(self, node_id: int, recorded: str) -> list[str]:
        all_of_them = (self._said.get(node_id, ""), recorded, self._given.get(node_id, ""))
        # Also what we take for our own address: if we are mistaken it is another's.
        return [addr for addr in dict.fromkeys(all_of_them) if addr]

    def _others(self, likely: list[str]) -> list[str]:
        """Where others were recorded, the latest first."""
        return [addr for addr in reversed(self._places) if addr and addr not in likely and addr != self.own_addr]

    # -- what is learnt

    def said(self, node_id: int) -> str:
        """What that member said last; may be looked at without the lock."""
        return self._said.get(node_id, "")

    def hear(self, node_id: int, addr: str, config: Configuration) -> bool:
        """The member itself, in its current life, says that it is reached at `addr`; whether that is news."""
        if node_id == self.own_id or not addr or addr == self._said.get(node_id):
            return False
        if node_id not in config.members and len(self._said) >= len(config.members) + _MAX_STRANGERS:
            return False
        self._said[node_id] = addr
        self._tried[node_id] = addr
        self._failures[node_id] = 0
        self._named.pop(node_id, None)
        for other_id in [i for i, (_, by_id) in self._named.items() if by_id == node_id]:
            self._look_again(other_id)  # it may have made room
        return True

    def _look_again(self, node_id: int) -> None:
        self._tried[node_id] = self._said.get(node_id, "")
        self._failures[node_id] = 0

    def reached(self, node_id: int, addr: str) -> None:
        """That very member answered at `addr`."""
        self._failures[node_id] = 0
        self.answered[node_id] = addr
        if self._named.get(node_id, ("", 0))[0] == addr:
            del self._named[node_id]

    def failed(self, node_id: int, addr: str, config: Configuration) -> bool:
        """It did not answer at `addr`: try elsewhere next; whether there is another place."""
        member = config.members.get(node_id)
        recorded = member.addr if member is not None else ""
        if addr != self.of(node_id, recorded):
            return False
        if self.answered.get(node_id) == addr:
            del self.answered[node_id]
        self._failures[node_id] = failures = self._failures.get(node_id, 0) + 1
        likely = self._likely(node_id, recorded)
        others = self._others(likely) if failures > _PATIENCE or not likely else []
        # Where others were only every second time: most often a member is just down, and comes back where it was.
        turn, is_others_turn = divmod(failures, 2)
        choice = others if others and (is_others_turn or not likely) else likely
        if not others:
            turn = failures
        if not choice:
            return False
        self._tried[node_id] = choice[turn % len(choice)]
        return self._tried[node_id] != addr

    def contradicted(self, node_id: int, addr: str, by_id: int) -> None:
        """At `addr` another member answers, or, 0, nobody: is that where `node_id` says that it is?"""
        if self._said.get(node_id) != addr or by_id == node_id:
            return
        if by_id:
            self._named[node_id] = (addr, by_id)
        else:
            self._named.pop(node_id, None)

    def conflicts(self, config: Configuration) -> str:
        """Who says to be where another is, this node included; empty if all have addresses of their own."""
        found = [
            f"node {i} says that it is reached at {addr}, where node {by_id} answers"
            for i, (addr, by_id) in sorted(self._named.items())
            if i in config.members and by_id != self.own_id and addr != self.own_addr
        ]
        for i in sorted(config.members):
            if self._said.get(i) == self.own_addr:
                found.append(
                    f"node {i} says that it is reached at {self.own_addr}, and so does this node {self.own_id}"
                )
            elif self.answered.get(i) == self.own_addr:
                found.append(
                    f"this node {self.own_id} says that it is reached at {self.own_addr}, where node {i} answers"
                )
        return "; ".join(found)

    # -- what to do about it, now and then

    def corrections(self, config: Configuration) -> list[ConfChange]:
        """What to propose: members were found elsewhere than is recorded.  Forgets who is no member any more."""
        for known in (self._said, self._tried, self._failures, self._named, self.answered):
            for node_id in [i for i in known if config.was_removed(i)]:
                del known[node_id]
        self._looks += 1
        if self._looks % _LOOK_AGAIN == 0:
            for node_id in self._named:
                self._look_again(node_id)
        members = config.members
        changes = [
            ConfChange(ConfOp.SET_ADDRESS, i, addr)
            for i, addr in self.answered.items()
            if i in members and members[i].addr != addr and self._said.get(i) == addr
        ]
        if list(members) == [self.own_id] and members[self.own_id].addr != self.own_addr:
            changes.append(ConfChange(ConfOp.SET_ADDRESS, self.own_id, self.own_addr))  # there is nobody to find it
        return changes

    def to_address(self, config: Configuration, knows_leader: bool) -> list[int]:
        """Whom to say something to, whatever there is to say.

        So that they answer, for they may be elsewhere than is recorded; and so that they hear where this node is, if
        no leader finds it: a learner, or who forgot, asks nobody for a vote, and may be the one who moved.
        """
        members = config.members
        return [
            i
            for i, addr in self.wanted(config).items()
            if addr
            and (not knows_leader or (self.answered.get(i) != addr and (i not in members or members[i].addr != addr)))
        ]
