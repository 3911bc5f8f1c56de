"""Instructions on their way: what is known of them when somebody refuses one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from random import Random
from types import SimpleNamespace
from typing import cast

import pytest

from raftsvc.core.messages import EntryKind, Life, Message, MessageKind
from raftsvc.core.raft import Raft, Refusal, Role
from raftsvc.errors import EvictedError, OutcomeUnknown, OverloadedError
from raftsvc.member.calls import Calls, Contexts
from raftsvc.member.envelopes import encode_list, read_envelope, read_piece
from raftsvc.member.handoff import Inbox
from raftsvc.member.health import Health
from raftsvc.member.machine import Answer, Machine
from raftsvc.member.pieces import Pieces
from raftsvc.member.sessions import MAX_OUTCOMES, Outcome
from raftsvc.member.waiters import Call

pytestmark = pytest.mark.pure


class _Follower:
    """A core that forwards to its leader."""

    node_id, leader_id, role = 3, 1, Role.FOLLOWER
    settings = SimpleNamespace(election_ticks=10)

    def __init__(self) -> None:
        self.contexts: list[int] = []
        self.numbers: list[int] = []

    def forward(self, proposals: Sequence[tuple[EntryKind, bytes]], context: int) -> bool:
        self.contexts.append(context)
        self.numbers += [read_envelope(data)[2] for _, data in proposals]
        return True


class _Sender(_Follower):
    """A core that knows how far it sent an instruction in pieces."""

    def __init__(self, role: Role) -> None:
        super().__init__()
        self.role = role
        self.sent = 0

    def propose(self, proposals: Sequence[tuple[EntryKind, bytes]]) -> None:
        piece = read_piece(proposals[-1][1])
        assert piece is not None
        self.sent = piece.offset + len(piece.data)

    def forward(self, proposals: Sequence[tuple[EntryKind, bytes]], context: int) -> bool:  # type: ignore[override]
        self.propose(proposals)
        return super().forward(proposals, context)


def _calls(core: _Follower, inbox: Inbox, start_bytes: int = 1 << 16) -> Calls:
    """The calls of a node that has a session."""
    calls = Calls(
        cast(Raft, core), Contexts(Random(1)), Life(1, 7), 1, start_bytes, inbox.calls, inbox.finished, lambda: None
    )
    calls.session_id = 1
    return calls


def _refused(refusals: list[Refusal]) -> Call:
    """A call that was forwarded as often as it was refused, and failed then, for its node was removed."""
    core, inbox = _Follower(), Inbox(Health())
    calls = _calls(core, inbox)
    call = Call(b"x")
    inbox.put_call(call)
    calls.take_in()
    for tick, refusal in enumerate(refusals):
        calls.retry(2 * tick)
        calls.send(2 * tick, may_propose=True)
        reply = Message(MessageKind.PROPOSE_REPLY, 3, context=core.contexts[-1], reject=True, hint=refusal)
        calls.hear_reply(reply, 2 * tick)
        calls.hear_reply(reply, 2 * tick)  # twice says no more than once
    calls.fail(EvictedError("node 3 was removed"))
    return call


@pytest.mark.parametrize("refusals", [[Refusal.REMOVED], [Refusal.NO_LEADER, Refusal.REMOVED, Refusal.NO_LEADER]])
def test_that_a_node_was_removed_says_nothing_of_what_it_asked_before(refusals: list[Refusal]) -> None:
    assert isinstance(_refused(refusals).error, OutcomeUnknown)


@pytest.mark.parametrize("refusals", [[], [Refusal.NO_LEADER], [Refusal.TRANSFERRING, Refusal.NO_LEADER]])
def test_what_was_refused_as_often_as_it_was_sent_was_not_applied(refusals: list[Refusal]) -> None:
    assert isinstance(_refused(refusals).error, EvictedError)


def test_what_was_refused_is_not_sent_again_though_it_waited_for_its_turn() -> None:
    core, inbox = _Follower(), Inbox(Health())
    calls = _calls(core, inbox)
    call = Call(b"x")
    inbox.put_call(call)
    calls.take_in()
    calls.send(0, may_propose=True)
    calls.retry(9)  # it is to be sent again, and before that comes the answer
    refusal = Message(MessageKind.PROPOSE_REPLY, 3, context=core.contexts[-1], reject=True, hint=Refusal.QUOTA)
    calls.hear_reply(refusal, 9)
    assert isinstance(call.error, OverloadedError)
    calls.send(9, may_propose=True)
    assert len(core.contexts) == 1 and not calls.has_unsent


def test_no_more_is_sent_than_a_session_takes_and_the_rest_when_there_is_room() -> None:
    core, inbox = _Follower(), Inbox(Health())
    calls = _calls(core, inbox, 1 << 20)
    brought = [Call(b"x") for _ in range(MAX_OUTCOMES)] + [Call(encode_list([b"y", b"z"]), 2), Call(b"last")]
    for call in brought:
        inbox.put_call(call)
    calls.take_in()

    def sent(tick: int) -> list[int]:
        core.numbers = []
        calls.send(tick, may_propose=True)
        return core.numbers

    everything = list(range(1, MAX_OUTCOMES + 1))
    assert sent(0) == everything
    calls.retry(2)
    assert sent(2) == everything, "what is sent again does not wait for what may not be sent yet"
    calls.answer([Answer(1, 2, Outcome(True))], 9)
    assert sent(3) == [], "the first number is what counts"
    calls.answer([Answer(1, 1, Outcome(True))], 9)
    assert sent(4) == [MAX_OUTCOMES + 1], "the list, of two, has two numbers"
    calls.answer([Answer(1, MAX_OUTCOMES + 1, [Outcome(True), Outcome(False)])], 9)
    assert brought[MAX_OUTCOMES].outcome == [Outcome(True), Outcome(False)]
    calls.answer([Answer(1, 3, Outcome(True))], 9)
    assert sent(5) == [MAX_OUTCOMES + 3]


@pytest.mark.parametrize("refused", [[0], [1]])
def test_over_the_quota_is_what_may_not_be_in_a_log_from_an_earlier_time(refused: list[int]) -> None:
    core, inbox = _Follower(), Inbox(Health())
    calls = _calls(core, inbox)
    call = Call(b"x")
    inbox.put_call(call)
    calls.take_in()
    for tick in (0, 9):
        calls.retry(tick)
        calls.send(tick, may_propose=True)
    assert len(core.contexts) == 2
    for n in refused:
        refusal = Message(MessageKind.PROPOSE_REPLY, 3, context=core.contexts[n], reject=True, hint=Refusal.QUOTA)
        calls.hear_reply(refusal, 9)
    assert call.error is None, "the other may have been taken"
    calls.fail(EvictedError("node 3 was removed"))
    assert isinstance(call.error, OutcomeUnknown)


@pytest.mark.parametrize("role", [Role.LEADER, Role.FOLLOWER])
@pytest.mark.parametrize("is_whole", [False, True])
def test_a_long_instruction_may_be_applied_from_when_its_last_piece_is_sent(role: Role, is_whole: bool) -> None:
    core, inbox = _Sender(role), Inbox(Health())
    calls = _calls(core, inbox)
    call = Call(bytes(200_000))
    inbox.put_call(call)
    calls.take_in()
    before = -1
    for tick in count():
        calls.send(tick, may_propose=True)
        assert core.sent > before, "it comes forward"
        before = core.sent
        if before >= (200_000 if is_whole else 50_000):
            break
        calls.follow_pieces(
            cast(Machine, SimpleNamespace(sessions=SimpleNamespace(held_of=lambda *of: core.sent))), tick
        )
    assert is_whole or before < 200_000
    calls.fail(EvictedError("node 3 was removed"))
    assert isinstance(call.error, OutcomeUnknown if is_whole else EvictedError)


def test_a_piece_of_which_nothing_is_heard_is_sent_again() -> None:
    pieces = Pieces(1 << 16, retry_ticks=3, patient_ticks=40)
    call = Call(bytes(200_000))
    assert pieces.takes(call)
    sent = pieces.next(1)
    assert sent is not None and sent.offset == 0
    pieces.note_sent(sent, 1)
    pieces.contexts.add(7)
    for tick in (2, 3):
        pieces.retry(tick)
        following = pieces.next(tick)
        assert following is None or following.offset > 0, "it may still arrive"
    pieces.retry(4)
    again = pieces.next(4)
    assert again is not None and again.offset == 0


class _CountedCall(Call):
    """One that notes how often it is looked at for whether it is another."""

    looks = 0

    def __eq__(self, other: object) -> bool:
        _CountedCall.looks += 1
        return self is other

    __hash__ = object.__hash__


def _waiting(count_: int, inbox: Inbox, calls: Calls) -> list[_CountedCall]:
    waiting = [_CountedCall(b"%d" % n) for n in range(count_)]
    for call in waiting:
        inbox.put_call(call)
    calls.take_in()
    _CountedCall.looks = 0
    return waiting


def test_many_who_give_up_before_they_were_sent_are_not_looked_for_one_by_one() -> None:
    core, inbox = _Follower(), Inbox(Health())
    calls = _calls(core, inbox)
    waiting = _waiting(1000, inbox, calls)
    assert all(calls.withdraw(call) for call in reversed(waiting[1:]))
    assert _CountedCall.looks < 10 * len(waiting)
    calls.send(0, may_propose=True)
    assert core.numbers == [waiting[0].number] and len(calls) == 1


def test_who_gave_up_among_others_is_not_sent_and_the_order_is_that_in_which_they_came() -> None:
    core, inbox = _Follower(), Inbox(Health())
    calls = _calls(core, inbox, start_bytes=200)  # a few at a time
    waiting = _waiting(20, inbox, calls)
    calls.send(0, may_propose=True)
    first = len(core.numbers)
    assert 0 < first < 20
    assert calls.withdraw(waiting[first])
    for tick in range(1, 200):
        for context in core.contexts:
            calls.hear_reply(Message(MessageKind.PROPOSE_REPLY, 3, context=context), tick)
        core.contexts.clear()
        calls.send(tick, may_propose=True)
    assert core.numbers == [call.number for call in waiting if call is not waiting[first]]
