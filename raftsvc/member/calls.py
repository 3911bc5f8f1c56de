"""Instructions on their way through the log.

`Calls` keeps every instruction until its outcome is known, sends it again where
it may have been lost, and knows what is certain about it at any time.  It is used under
the lock of its node, save for what `handoff.Inbox` says, and never blocks.  Who is finished is
kept in `handoff.Finished`, to be woken once that lock is free again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import islice
from random import Random
from typing import Final, Protocol

from raftsvc.core.messages import EntryKind, Life, Message
from raftsvc.core.raft import ProposalRefused, Refusal, Role, Settings
from raftsvc.core.versions import FIRST, Versions
from raftsvc.errors import NotApplied, OutcomeUnknown, OverloadedError, RaftError
from raftsvc.member.envelopes import wrap, wrap_piece
from raftsvc.member.forwards import Forwards
from raftsvc.member.handoff import Finished
from raftsvc.member.machine import Answer, Machine
from raftsvc.member.opening import Opening
from raftsvc.member.pieces import Piece, Pieces
from raftsvc.member.sessions import MAX_OUTCOMES, Outcome, Sessions
from raftsvc.member.waiters import Call

MAX_FORWARD_BYTES: Final = 256 * 1024
MAX_BATCH_BYTES: Final = 4 * 1024 * 1024
_MOST_LOOKED_AT: Final = 8


class Contexts:
    """Tags for requests to other nodes.  They differ from those before a restart, whose answers may still come."""

    def __init__(self, random: Random) -> None:
        self._last = random.getrandbits(62)

    def take(self) -> int:
        """A tag that was never used."""
        self._last += 1
        return self._last


class Carrier(Protocol):
    """What carries instructions to the log, and asks for indexes: the core, or, where a process has none, its owner's.

    See `raftsvc.core.raft.Raft`.
    """

    node_id: int
    leader_id: int
    role: Role
    settings: Settings
    is_removed: bool

    def propose(self, proposals: Sequence[tuple[EntryKind, bytes]]) -> int: ...
    def forward(self, proposals: Sequence[tuple[EntryKind, bytes]], context: int) -> bool: ...
    def read_index(self, context: int) -> bool: ...


class Calls:
    """The instructions of this process that have no outcome yet, and the session they run under.

    That is the session of the owner, which each start of its node opens anew.  An attached process
    has one of its own, which goes on if it becomes the owner.
    """

    def __init__(
        self,
        core: Carrier,
        contexts: Contexts,
        life: Life,
        retry_ticks: int,
        start_bytes: int,
        inbox: deque[Call],
        finished: Finished,
        note_time: Callable[[], None],
        versions: Versions = FIRST,
    ) -> None:
        """life: this start of the node; of an attached process one without a counter.  inbox: that of `handoff.Inbox`.

        versions: what the code of this process knows.

        note_time: has the core know what time it is now; called right before whatever may append.
        start_bytes: how much is sent at once on a way of which nothing is known.
        """
        self._core = core
        self._finished = finished
        self._contexts = contexts
        self._retry_ticks = retry_ticks
        self._inbox = inbox
        self._note_time = note_time
        self._waiting: dict[int, Call] = {}  # by number, which is also their order
        self._unsent: dict[int, Call] = {}  # as they are to be sent, by number
        self._forwards = Forwards(start_bytes, retry_ticks)
        self._pieces = Pieces(start_bytes, retry_ticks, _patient_ticks(core))
        self._next_number = 1
        self.session_id = 0
        self.opening = Opening(life, versions)

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def has_unsent(self) -> bool:
        """Whether `take_in` and `send` have something to do.  Callable without the lock."""
        # Each is looked at once, in the order in which calls move; `bool(a or b)` looks at the first twice.
        return bool(self._inbox) or bool(self._unsent) or self._pieces.is_due

    def parked(self) -> Call | None:
        """One whose caller waits, among the oldest, if there is any."""
        for call in islice(self._waiting.values(), _MOST_LOOKED_AT):
            if call.is_parked:
                return call
        return None

    # -- the session

    def become_owner(
        self, core: Carrier, contexts: Contexts, life: Life, note_time: Callable[[], None], start_bytes: int
    ) -> None:
        """This process owns the node from now on: what it brought it brings itself, under the session that it has.

        start_bytes: of the way to other nodes, which is not that to the former owner.
        """
        self._core = core
        self._contexts = contexts
        self.opening.life = life
        self.opening.look_again()
        self._note_time = note_time
        self._forwards = Forwards(start_bytes, self._retry_ticks)
        self._pieces.take_way(start_bytes)
        self.send_all_again()

    def follow_session(self, machine: Machine, was_restored: bool = False) -> None:
        """Learn which session this process has as of what is applied, and have its answers listened for.

        If it was closed, what was sent under it and has no outcome yet, of all that is applied, has no effect, now or
        later; unless a snapshot skipped the end (`was_restored`), for then it may have had one before.
        """
        opening = self.opening
        is_closed = opening.follow(machine, self._core.node_id)
        machine.listener = self.session_id = opening.session_id
        if not is_closed:
            return
        opening.nonce = self._contexts.take()  # what opened the former one may come again
        opening.look_again()
        for call in [call for call in self._waiting.values() if call.data]:
            self._drop(call)
            self._finished.add_call(call)
            if was_restored and call.unsettled:
                call.error = OutcomeUnknown("the session of this process was closed, before or after it was applied")
            else:
                call.error = NotApplied("the session of this process was closed before it was applied; try again")

    def open_session(self, tick: int) -> None:
        """Have a session opened, unless there is one, asking again now and then.

        Before the first call comes, for it tells the cluster which start of this node this is.
        """
        opening = self.opening
        if opening.is_done or tick < opening.tick or not self._core.leader_id or self._core.is_removed:
            return
        proposals = opening.proposals(self._core.node_id)
        if self._core.role is Role.LEADER:
            self._note_time()
            with suppress(ProposalRefused):
                self._core.propose(proposals)
        elif not self._core.forward(proposals, self._contexts.take()):
            return
        # Longer each time: if this node does not see that it is open, each attempt is one more entry for nothing.
        opening.tick = tick + (self._retry_ticks << min(opening.tries, 6))
        opening.tries += 1

    # -- on the way

    def take_in(self) -> None:
        """Number the new ones, and have them sent once there is a session."""
        inbox = self._inbox
        while inbox:
            call = inbox[0]
            call.number = self._next_number
            self._next_number += call.count
            self._waiting[call.number] = call
            if not self._pieces.takes(call):
                self._unsent[call.number] = call
            inbox.popleft()  # last: whoever looks without the lock finds it here or there

    def withdraw(self, call: Call) -> bool:
        """Give up on `call`; False if it was finished in the meantime.

        Once a later instruction of this node is applied, the numbers below its
        `low` can no longer take effect.
        """
        self.take_in()
        if call.number not in self._waiting:
            return False
        self._drop(call)
        return True

    def _drop(self, call: Call) -> None:
        """It is not to be sent any more, not even if it waits for its turn to be sent again."""
        del self._waiting[call.number]
        self._pieces.remove(call)
        self._unsent.pop(call.number, None)

    def send(self, tick: int, may_propose: bool) -> None:
        """Propose what is unsent, if this node leads and `may_propose`, or forward it to the leader."""
        if not (self._unsent or self._pieces.longs) or not self._core.leader_id:
            return
        if not self.session_id:
            self.open_session(tick)
        elif self._core.role is not Role.LEADER:
            self._forward(tick)
            self._send_pieces(tick)
        elif may_propose:
            self._propose(tick)
            self._send_pieces(tick)

    def _propose(self, tick: int) -> None:
        while batch := self._take_batch(MAX_BATCH_BYTES):
            self._note_time()
            try:
                self._core.propose([(EntryKind.NORMAL, call.data) for call in batch])
            except ProposalRefused as refused:
                self._turn_back(batch, refused.refusal, tick)
                return
            retry_tick = tick + _patient_ticks(self._core)
            for call in batch:
                call.unsettled += 1
                call.retry_tick = retry_tick

    def _forward(self, tick: int) -> None:
        forwards = self._forwards
        while self._unsent and (room := forwards.room_bytes):
            batch = self._take_batch(min(room, MAX_FORWARD_BYTES))
            if not batch:
                return
            context = self._contexts.take()
            proposals = [(EntryKind.NORMAL, call.data) for call in batch]
            if not self._core.forward(proposals, context):
                self._unsent = _before(self._unsent, batch)
                return
            for call in batch:
                # Each time it is waited longer, lest what is sent again keeps what was sent from arriving.
                call.retry_tick = tick + (self._retry_ticks << min(call.unsettled, 4))
                call.unsettled += 1
            forwards.add(context, batch, sum([len(data) for _, data in proposals]), tick)

    def _send_pieces(self, tick: int) -> None:
        """Send as much of long instructions as may be on its way at once."""
        core, pieces = self._core, self._pieces
        is_leader = core.role is Role.LEADER
        limit = next(iter(self._waiting), 0) + MAX_OUTCOMES
        while batch := pieces.take(MAX_BATCH_BYTES if is_leader else MAX_FORWARD_BYTES, tick, limit):
            proposals = [(EntryKind.NORMAL, self._wrap_piece(piece)) for piece in batch]
            whole = [piece.call for piece in batch if piece.is_last]
            if is_leader:
                self._note_time()
                try:
                    core.propose(proposals)
                except ProposalRefused as refused:
                    pieces.send_again(tick + 1)
                    self._turn_back([piece.call for piece in batch], refused.refusal, tick)
                    return
            else:
                context = self._contexts.take()
                if not core.forward(proposals, context):
                    pieces.send_again(0)
                    return
                # They have a pace of their own: what is short does not wait until they are answered.
                self._forwards.add(context, whole, 0, tick)
                pieces.contexts.add(context)
            for call in whole:  # what is not whole takes no effect
                call.unsettled += 1

    def _wrap_piece(self, piece: Piece) -> bytes:
        call, low = piece.call, next(iter(self._waiting))
        place = (piece.previous, piece.offset, len(call.instruction))
        data = wrap_piece(call.op, self.session_id, self.opening.nonce, call.number, low, *place, piece.data)
        call.data = call.data or data
        return data

    def _take_batch(self, max_bytes: int) -> list[Call]:
        """The next that go out together; none if the session takes no more for now."""
        room = max_bytes
        count = 0
        low = next(iter(self._waiting), 0)  # those sent before have their data
        nonce = self.opening.nonce
        for call in self._unsent.values():
            if not call.data:
                if _is_too_far(call, low):
                    break  # as all after it, for the numbers of those that were never sent rise
                call.data = wrap(call.op, self.session_id, nonce, call.number, low, call.instruction)
            room -= len(call.data)
            if room < 0 and count:
                break
            count += 1
        if not count:
            return []
        unsent = list(self._unsent.values())
        # Not deleted one by one: a dict is looked through from where its first item ever was.
        self._unsent = {call.number: call for call in unsent[count:]} if count < len(unsent) else {}
        return unsent[:count]

    def hear_reply(self, m: Message, tick: int) -> None:
        """Take a leader's answer to what was forwarded."""
        batch = self._forwards.pop(m.context, tick) or ()
        is_of_pieces = self._pieces.hear_reply(m.context, m.reject, tick)
        if m.reject:
            refusal = refusal_of(m)
            if refusal is not Refusal.REMOVED:  # which is said whether or not it was appended before
                for call in batch:
                    call.unsettled -= 1
            self._turn_back(batch, refusal, tick)
            if is_of_pieces and (first := self._pieces.current) is not None:
                self._turn_back((first,), refusal, tick)
        else:
            for call in batch:
                call.retry_tick = tick + _patient_ticks(self._core)

    def _turn_back(self, batch: Iterable[Call], refusal: Refusal, tick: int) -> None:
        """Calls were refused where they were sent: fail them over the quota, else try again soon."""
        for call in batch:
            if call.number not in self._waiting:
                continue
            if refusal is Refusal.QUOTA and not call.unsettled:
                self._drop(call)
                self._finished.add_call(call)
                call.error = OverloadedError(
                    "too much waits at the leader to be committed, or to be applied by its State; "
                    "is a majority of the cluster reachable?"
                )
            else:
                call.retry_tick = tick + 1

    def retry(self, tick: int) -> None:
        """Send again what was sent long ago; sessions make repeats harmless."""
        self._forwards.tick(tick)
        self._pieces.retry(tick)
        unsent = self._unsent
        late = [
            call
            for number, call in self._waiting.items()
            if call.retry_tick <= tick and not call.is_cut and number not in unsent
        ]
        if late:
            self._unsent = _before(unsent, late)

    def send_all_again(self) -> None:
        """What was on its way may be lost with its leader."""
        self._forwards.change_way()
        self._unsent = {number: call for number, call in self._waiting.items() if not call.is_cut}
        self._pieces.change_way()
        self.opening.tick = 0

    def follow_pieces(self, machine: Machine, tick: int) -> None:
        """Learn how much is applied of the instruction that is being sent in pieces."""
        call = self._pieces.current
        if call is not None and self.session_id:
            self._pieces.note_held(machine.sessions.held_of(self.session_id, call.number), tick)

    # -- outcomes

    def answer(self, answers: Iterable[Answer], tick: int) -> None:
        """Finish the calls that `answers` are for."""
        for answer in answers:
            if answer.session_id == self.session_id:
                self._finish(answer.number, answer.outcome, tick)

    def answer_recorded(self, sessions: Sessions) -> None:
        """Finish calls whose effect a snapshot brought, as the session in it remembers them."""
        if self.session_id:
            for call in list(self._waiting.values()):
                numbers = range(call.number, call.number + call.count)
                outcomes = [sessions.recorded(self.session_id, number) for number in numbers]
                known = [outcome for outcome in outcomes if outcome is not None]
                if len(known) == len(numbers):
                    self._finish(call.number, known if call.is_list else known[0])

    def _finish(self, number: int, outcome: Outcome | list[Outcome], tick: int | None = None) -> None:
        call = self._waiting.pop(number, None)
        if call is not None:
            self._pieces.remove(call, tick)
            self._finished.add_call(call)
            call.outcome = outcome

    def fail(self, error: RaftError) -> None:
        """Finish every call: with `error`, or, where it may have reached a log, with OutcomeUnknown."""
        self.take_in()
        calls, self._waiting, self._unsent = list(self._waiting.values()), {}, {}
        self._pieces.clear()
        for call in calls:
            self._finished.add_call(call)
            call.error = OutcomeUnknown(f"{error}; the instruction may have been applied") if call.unsettled else error


def _patient_ticks(core: Carrier) -> int:
    """What is in a leader's log commits, or leadership is lost, which has it sent again: wait that long."""
    return 4 * core.settings.election_ticks


def _is_too_far(call: Call, low: int) -> bool:
    """Whether the session would not take it yet, for too many before it have no outcome."""
    return call.number + call.count > low + MAX_OUTCOMES


_REFUSALS: Final = {int(refusal): refusal for refusal in Refusal}


def refusal_of(m: Message) -> Refusal:
    """Why a PROPOSE was refused, as its reply says."""
    return _REFUSALS.get(m.hint, Refusal.NO_LEADER)


def _before(unsent: dict[int, Call], calls: list[Call]) -> dict[int, Call]:
    """With `calls` before all others."""
    return {**{call.number: call for call in calls}, **unsent}
