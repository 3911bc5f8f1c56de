"""Which start of each member speaks, and whether one directory speaks twice.

A member counts its starts (`core.messages.Life`), and each start says which one it is.  The
replicated machine keeps, for each member, the life under which it opened its session; a node
also remembers what it heard since.  A higher life follows a lower one: whatever the lower one
still says comes late, and is worth nothing.  But if it goes on speaking, in answer to what was asked after
the higher one was heard, or if one counter comes with two nonces, or a higher life does not
go on from the one that is known (each directory remembers its last starts), then two directories are
one member's: it was copied, or put back to an older state.  What either of them
voted and acknowledged the other does not know.  So neither counts any more: what they say is refused here at once, and
everywhere, and by whoever comes later, once an entry in the log says that the member's lives are void.

What is in the log of this node counts as soon as it is there, applied or not, committed or not: whoever opened a
session was started, and whoever was voided had been found out, though that entry be overwritten.  So what is on a
node's disk it still knows when it is started again, before anybody tells it how much of that is committed.

Whoever knows a life of this node says so in each request, and that may be one of which this directory knows nothing:
then it is the one that was put back.  So it is told also where it asks nobody, as does one that was put back to
when it was alone in its cluster.

Used under the lock of the node, save for `highest`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from enum import Enum, auto
from operator import itemgetter
from typing import Final

from raftsvc import logs
from raftsvc.core.messages import (
    ENTRY_OVERHEAD_BYTES,
    MAX_NUMBER,
    Claim,
    Entry,
    EntryKind,
    Life,
    Lineage,
    kind_of,
)
from raftsvc.core.raft import ProposalRefused, Raft, Role
from raftsvc.errors import DoubledMemberError, SupersededError
from raftsvc.member.calls import Contexts
from raftsvc.member.envelopes import ENVELOPE, INSTRUCTION_OFFSET, OPEN, VOID, wrap_void
from raftsvc.member.health import Condition
from raftsvc.member.machine import Machine
from raftsvc.member.sessions import VOID_LIFE
from raftsvc.member.vigil import Vigil

_MAX_STRANGERS: Final = 64
_op_of = itemgetter(slice(ENTRY_OVERHEAD_BYTES, ENTRY_OVERHEAD_BYTES + 1))
_FOUND_OUT: Final = "a member found out that it has two lives, or forgot one"
_OF_LIVES: Final = frozenset((bytes([OPEN]), bytes([VOID])))


class Speaker(Enum):
    """What a life is, to whoever hears it."""

    CURRENT = auto()
    LATE = auto()
    """A later one was heard already."""
    VOID = auto()
    """Nothing that its member says counts."""
    UNPROVEN = auto()
    """Later than any that is known, and it has not said yet that it goes on from the latest of those."""


class Lives:
    """What one node knows of the lives of the members, its own included."""

    __slots__ = (
        "_contexts",
        "_core",
        "_current",
        "_give_up",
        "_heard",
        "_machine",
        "_retry_ticks",
        "_say",
        "_seen_changes",
        "_try_tick",
        "_vigil",
        "addr",
        "doubled",
        "lineage",
        "own",
    )

    def __init__(
        self,
        addr: str,
        lineage: Lineage,
        core: Raft,
        machine: Machine,
        vigil: Vigil,
        contexts: Contexts,
        retry_ticks: int,
        say: Callable[[int, str, None, Mapping[str, object]], None],
        give_up: Callable[[SupersededError], None],
    ) -> None:
        """addr: where this node says that it is reached.

        say: logs soon.  give_up: has this node take no further part.
        """
        self.addr = addr
        self.lineage = lineage
        self.own = lineage.life
        self._core = core
        self._machine = machine
        self._vigil = vigil
        self._contexts = contexts
        self._retry_ticks = retry_ticks
        self._say = say
        self._give_up = give_up
        self._try_tick = 0
        self._heard: dict[int, Life] = {}
        self._current: dict[
            int, Life
        ] = {}  # whoever counts, as far as that was asked since the log last said something
        self._seen_changes = -1
        self.doubled: dict[int, str] = {}
        """Members that are to be void, and why."""

    def highest(self, member: int) -> Life:
        """The latest life of `member` that is known here."""
        return max(self._heard.get(member, Life()), self._machine.life_of(member), key=lambda life: life.counter)

    def counts(self, member: int, life: Life) -> bool:
        """Whether what `life` of `member` says counts.  Callable without the lock, which a judgement takes."""
        return self._current.get(member) == life

    def judge(self, member: int, claim: Claim, proves_now: bool = False) -> Speaker:
        """What to do with what somebody says, authentically, who claims to be a life of `member`.

        proves_now: it was said after the highest life that is known here had been heard.
        """
        speaker = self._judge(member, claim, proves_now)
        if speaker is Speaker.CURRENT:
            self._current[member] = claim.life
        return speaker

    def _judge(self, member: int, claim: Claim, proves_now: bool) -> Speaker:
        life, recorded = claim.life, self._machine.life_of(member)
        if member in self.doubled or recorded.counter == MAX_NUMBER:
            return Speaker.VOID
        highest = self.highest(member)
        twins = (highest, recorded)
        if any(known.counter == life.counter and known != life for known in twins):
            self.doubt(member, f"two processes say that they are its start number {life.counter}")
            return Speaker.VOID
        if life == highest:
            return Speaker.CURRENT
        if life.counter > highest.counter:
            return self._follow(member, claim, highest)
        if proves_now:
            self.doubt(member, f"its start number {life.counter} goes on speaking beside number {highest.counter}")
            return Speaker.VOID
        return Speaker.LATE

    def _follow(self, member: int, claim: Claim, highest: Life) -> Speaker:
        """A start later than all that are known: one of the same directory, or of a copy of what it was before?"""
        ancestor = claim.ancestor
        if highest.counter:
            if ancestor is None or ancestor.counter != highest.counter:
                return Speaker.UNPROVEN
            if ancestor.nonce not in (0, highest.nonce):  # 0: so many starts ago that nobody can tell
                self.doubt(
                    member, f"its start number {claim.life.counter} does not go on from number {highest.counter}"
                )
                return Speaker.VOID
        self._note_later(member, claim.life)
        return Speaker.CURRENT

    def _note_later(self, member: int, life: Life) -> None:
        if len(self._heard) < _MAX_STRANGERS + len(self._core.config.members) or member in self._heard:
            self._heard[member] = life

    def doubt(self, member: int, why: str) -> None:
        """Count nothing of `member` any more; `why` completes "node N: "."""
        if member in self.doubled or member == self._core.node_id or self._machine.config.was_removed(member):
            return  # who is being told of its removal may have forgotten all it likes
        is_first = not self._named()
        self.doubled[member] = why
        self._current.pop(member, None)
        self._try_tick = 0
        self._disown()
        self._tell()
        if not is_first and member in self._named():
            text = f"node {self._core.node_id}: {self._error([member])}"
            self._say(logging.ERROR, text, None, logs.what("doubled", node=self._core.node_id, member=member))

    def _disown(self) -> None:
        """Nor is anything counted that a doubled member said before, where this node leads."""
        if self._core.leader is not None:
            for member in self.doubled:
                self._core.leader.disown(member)

    def _tell(self) -> None:
        if named := self._named():
            self._vigil.begin(Condition.DOUBLED, self._error(named))
        else:
            self._vigil.end(Condition.DOUBLED)

    def _named(self) -> list[int]:
        """Whom to tell of: not who is removed by what is in the log, though that may be overwritten yet."""
        return [member for member in self.doubled if member in self._core.config.members]

    def _error(self, which: Iterable[int]) -> DoubledMemberError:
        members = self._core.config.members
        named = "; ".join(f"node {i} ({members[i].addr}): {self.doubled[i]}" for i in which)
        return DoubledMemberError(
            f"{named}. Its directory was copied, or put back to an older state, so nothing that it says counts any "
            "more. Stop every process that runs as that node, evict it, and join again with an empty directory"
        )

    def logged(self, entries: Sequence[Entry]) -> None:
        """These are in the log from now on, or were found there and are not applied: what do they say of lives?"""
        if _OF_LIVES.isdisjoint(map(_op_of, entries)):
            return
        for entry in [e for e in entries if _op_of(e) in _OF_LIVES]:
            if len(entry) < INSTRUCTION_OFFSET or kind_of(entry) is not EntryKind.NORMAL:
                continue
            op, member, nonce, counter, _ = ENVELOPE.unpack_from(entry, ENTRY_OVERHEAD_BYTES)
            life = VOID_LIFE if op == VOID else Life(counter, nonce)
            if op == OPEN and not 0 < counter < MAX_NUMBER:
                continue  # of a process that is attached
            if member == self._core.node_id:
                self.recognize(life)
            elif op == VOID:
                self.doubt(member, _FOUND_OUT)
            elif counter > self.highest(member).counter:
                self._current.pop(member, None)
                self._note_later(member, life)

    def applied(self) -> None:
        """Entries were applied, or a snapshot was: what do they say of lives?"""
        if self._machine.life_changes == self._seen_changes:
            return
        self._seen_changes = self._machine.life_changes
        self._current.clear()
        config = self._machine.config
        for member in [i for i in self._heard if config.was_removed(i)]:
            del self._heard[member]
        for member in [i for i in self.doubled if config.was_removed(i)]:
            del self.doubled[member]
        for member in config.members:
            if self._machine.life_of(member).counter == MAX_NUMBER:  # whoever found it out
                self.doubt(member, _FOUND_OUT)
        self._tell()
        self.recognize(self._machine.life_of(self._core.node_id))

    def recognize(self, life: Life) -> None:
        """Somebody knows `life` for one of this node; if this directory does not, it takes no further part."""
        known = self.lineage.at(life.counter)
        if life.counter == MAX_NUMBER:
            self.supersede("its cluster voided it")
        elif life.counter > self.own.counter:
            self.supersede(
                f"its cluster knows start number {life.counter} of it, and this is number {self.own.counter}"
            )
        elif known is not None and known.nonce and known != life:
            self.supersede(f"its cluster knows another start number {life.counter} of it than this directory")

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
        if not self.doubled:
            return
        self._disown()  # perhaps it leads only now
        self._tell()  # perhaps what removed one of them was overwritten
        if tick < self._try_tick or not self._core.leader_id:
            return
        members = self._machine.config.members  # of others the log would take no notice
        wanted = [i for i in self.doubled if i in members and self._machine.life_of(i).counter != MAX_NUMBER]
        proposals = [(EntryKind.NORMAL, wrap_void(i)) for i in wanted]
        if not proposals:
            return
        self._try_tick = tick + self._retry_ticks
        if self._core.role is Role.LEADER:
            with suppress(ProposalRefused):
                self._core.propose(proposals)
        else:
            self._core.forward(proposals, self._contexts.take())
