"""Which start of each member speaks, and whether one directory speaks twice.

A member counts its starts (`core.messages.Life`), and each start says which one it is.  The
replicated machine keeps, for each member, the life under which it opened its session; a node
also remembers what it heard since.  A higher life follows a lower one: whatever the lower one
still says comes late, and is worth nothing.  But if it goes on speaking, in answer to what was asked after
the higher one was heard, or if one counter comes with two nonces, then two directories are
one member's: it was copied, or put back to an older state.  What either of them
voted and acknowledged the other does not know.  So neither counts any more: what they say is refused here at once, and
everywhere, and by whoever comes later, once an entry in the log says that the member's lives are void.

Used under the lock of the node, save for `highest`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto

from raftsvc.core.messages import MAX_NUMBER, EntryKind, Life
from raftsvc.core.raft import ProposalRefused, Raft, Role
from raftsvc.errors import DoubledMemberError, SupersededError
from raftsvc.member.calls import Contexts
from raftsvc.member.health import Condition, Health
from raftsvc.member.machine import Machine, wrap_void

_MAX_STRANGERS = 64


class Speaker(Enum):
    """What a life is, to whoever hears it."""

    CURRENT = auto()
    LATE = auto()
    """A later one was heard already."""
    VOID = auto()
    """Nothing that its member says counts."""


class Lives:
    """What one node knows of the lives of the members, its own included."""

    __slots__ = (
        "_contexts",
        "_core",
        "_give_up",
        "_health",
        "_heard",
        "_machine",
        "_retry_ticks",
        "_say",
        "_try_tick",
        "addr",
        "doubled",
        "own",
    )

    def __init__(
        self,
        addr: str,
        own: Life,
        core: Raft,
        machine: Machine,
        health: Health,
        contexts: Contexts,
        retry_ticks: int,
        say: Callable[[int, str], None],
        give_up: Callable[[SupersededError], None],
    ) -> None:
        """addr: where this node says that it is reached.

        say: logs soon.  give_up: has this node take no further part.
        """
        self.addr = addr
        self.own = own
        self._core = core
        self._machine = machine
        self._health = health
        self._contexts = contexts
        self._retry_ticks = retry_ticks
        self._say = say
        self._give_up = give_up
        self._try_tick = 0
        self._heard: dict[int, Life] = {}
        self.doubled: dict[int, str] = {}
        """Members that are to be void, and why."""

    def highest(self, member: int) -> Life:
        """The latest life of `member` that is known here."""
        return max(self._heard.get(member, Life()), self._machine.life_of(member), key=lambda life: life.counter)

    def judge(self, member: int, life: Life, proves_now: bool = False) -> Speaker:
        """What to do with what `life` of `member` says, authentically.

        proves_now: it was said after the highest life that is known here had been heard.
        """
        if member in self.doubled or self._machine.life_of(member).counter == MAX_NUMBER:
            return Speaker.VOID
        highest = self.highest(member)
        if life == highest:
            return Speaker.CURRENT
        if life.counter > highest.counter:
            if len(self._heard) < _MAX_STRANGERS + len(self._core.config.members) or member in self._heard:
                self._heard[member] = life
            return Speaker.CURRENT
        if life.counter == highest.counter:
            self.doubt(member, f"two processes say that they are its start number {life.counter}")
            return Speaker.VOID
        if proves_now:
            self.doubt(member, f"its start number {life.counter} goes on speaking beside number {highest.counter}")
            return Speaker.VOID
        return Speaker.LATE

    def doubt(self, member: int, why: str) -> None:
        """Count nothing of `member` any more; `why` completes "node N: "."""
        if member in self.doubled or member == self._core.node_id:
            return
        self.doubled[member] = why
        self._try_tick = 0
        error = self._error()
        self._health.note(Condition.DOUBLED, error)
        self._say(logging.ERROR, f"node {self._core.node_id}: {error}")

    def _error(self) -> DoubledMemberError:
        members = self._core.config.members
        named = "; ".join(
            f"node {i} ({members[i].addr if i in members else 'no member'}): {why}" for i, why in self.doubled.items()
        )
        return DoubledMemberError(
            f"{named}. Its directory was copied, or put back to an older state, so nothing that it says counts any "
            "more. Stop every process that runs as that node, evict it, and join again with an empty directory"
        )

    def applied(self) -> None:
        """Entries were applied, or a snapshot was: what do they say of lives?"""
        if self.doubled:
            config = self._machine.config
            for member in [i for i in self.doubled if i not in config.members and config.highest_id >= i]:
                del self.doubled[member]
                self._heard.pop(member, None)
            if not self.doubled:
                self._health.clear(Condition.DOUBLED)
        recorded = self._machine.life_of(self._core.node_id)
        if recorded.counter >= self.own.counter and recorded != self.own:
            self.supersede(
                "its cluster voided it"
                if recorded.counter == MAX_NUMBER
                else f"its cluster knows start number {recorded.counter} of it, and this is number {self.own.counter}"
            )

    def supersede(self, why: str) -> None:
        """Take no further part: this directory is not the only one of this member, or not all of it."""
        self._give_up(
            SupersededError(
                f"{why}. The directory of node {self._core.node_id} was copied, or put back to an older state, and "
                "may have forgotten what it voted and acknowledged. Stop every process that runs as this node, evict "
                "it, and join again with an empty directory"
            )
        )

    def tick(self, tick: int) -> None:
        """Have the lives of doubled members voided through the log, asking again now and then until they are."""
        if not self.doubled or tick < self._try_tick or not self._core.leader_id:
            return
        wanted = [i for i in self.doubled if self._machine.life_of(i).counter != MAX_NUMBER]
        proposals = [(EntryKind.NORMAL, wrap_void(i)) for i in wanted]
        if not proposals:
            return
        self._try_tick = tick + self._retry_ticks
        if self._core.role is Role.LEADER:
            with suppress(ProposalRefused):
                self._core.propose(proposals)
        else:
            self._core.forward(proposals, self._contexts.take())
