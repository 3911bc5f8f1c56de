"""What a connected client brings counts once, by whichever members and however late it comes, and has an outcome."""

from __future__ import annotations

import pytest

from raftsvc.core.messages import MAX_NUMBER
from raftsvc.errors import UnknownOperationError
from raftsvc.member.envelopes import (
    ANEW,
    CLIENT,
    INSTRUCTION,
    LIST,
    OPEN,
    encode_list,
    wrap,
    wrap_client_open,
    wrap_close,
    wrap_open,
    wrap_piece,
    wrap_void,
)
from raftsvc.member.machine import Machine
from raftsvc.member.sessions import MAX_CLIENTS, MAX_OUTCOMES, NOT_TAKEN, Outcome, Sessions
from tests.service.harness import ListState
from tests.test_machine import EntryKind, Log

NONCE = 77


class ClientLog(Log):
    """A machine to which two members, 1 and 2, bring what a client wants."""

    def __init__(self) -> None:
        super().__init__()
        self.carriers = {member: self.open(member) for member in (1, 2)}
        self.numbers = dict.fromkeys(self.carriers, 0)

    def bring(self, data: bytes, member: int = 1) -> Outcome:
        self.numbers[member] += 1
        number = self.numbers[member]
        envelope = wrap(CLIENT, self.carriers[member], self.nonces[self.carriers[member]], number, number, data)
        self.entry(EntryKind.NORMAL, envelope)
        (answer,) = self.answers
        assert (answer.session_id, answer.number) == (self.carriers[member], number)
        assert isinstance(answer.outcome, Outcome)
        return answer.outcome

    def begin(self, nonce: int = NONCE) -> int:
        answer = self.bring(wrap_client_open(nonce)).answer
        assert isinstance(answer, int)
        return answer

    def call(
        self, session: int, number: int, low: int, instruction: bytes, nonce: int = NONCE, member: int = 1
    ) -> Outcome:
        return self.bring(wrap(INSTRUCTION, session, nonce, number, low, instruction), member)


def test_what_is_brought_by_two_members_counts_once_and_has_its_first_place() -> None:
    log = ClientLog()
    session = log.begin()
    first = log.call(session, 1, 1, b"a")
    assert first.satisfied
    assert first.entry_index == log.machine.applied_index
    assert log.call(session, 1, 1, b"a", member=2) == first
    assert log.call(session, 1, 1, b"a") == first
    refused = log.call(session, 2, 1, b"no")
    assert refused.rejection == "no to no"
    assert log.call(session, 2, 2, b"no", member=2) == refused
    assert log.items == [b"a"]


def test_what_is_settled_or_too_far_ahead_is_not_taken() -> None:
    log = ClientLog()
    session = log.begin()
    assert log.call(session, 5, 5, b"a").satisfied
    assert log.call(session, 4, 4, b"late") == NOT_TAKEN
    assert log.call(session, 5 + MAX_OUTCOMES, 5, b"early") == NOT_TAKEN
    assert log.call(session, 6, 7, b"wrong") == NOT_TAKEN
    assert log.items == [b"a"]
    assert NOT_TAKEN.entry_index == 0


def test_a_session_is_opened_once_for_each_nonce_and_is_known_by_it() -> None:
    log = ClientLog()
    session = log.begin()
    assert log.begin() == session
    other = log.begin(78)
    assert other != session
    assert log.call(session, 1, 1, b"a", nonce=78) == NOT_TAKEN
    assert log.call(other, 1, 1, b"b", nonce=78).satisfied
    assert log.call(other + 1000, 1, 1, b"c") == NOT_TAKEN
    assert log.items == [b"b"]


def test_no_client_uses_the_session_of_a_member_or_closes_it() -> None:
    log = ClientLog()
    attached = log.open(1, counter=0, nonce=5)
    for session, nonce in ((log.carriers[1], log.nonces[log.carriers[1]]), (attached, 5)):
        assert log.call(session, 900, 900, b"a", nonce=nonce) == NOT_TAKEN
        assert log.bring(wrap_close(session, nonce)) == NOT_TAKEN
        assert log.machine.sessions.get(session, nonce) is not None
    assert log.items == []


@pytest.mark.parametrize(
    "brought",
    [
        b"",
        b"\x01short",
        wrap_void(1),
        wrap(LIST, 0, NONCE, 1, 1, encode_list([b"a"])),
        wrap(CLIENT, 0, NONCE, 1, 1, b"a"),
        wrap_piece(INSTRUCTION, 0, NONCE, 1, 1, 0, 0, 1, b"a"),
        wrap(99, 0, NONCE, 1, 1, b"a"),
    ],
    ids=["nothing", "short", "void", "list", "nested", "piece", "unknown"],
)
def test_what_no_client_may_bring_is_not_taken(brought: bytes) -> None:
    log = ClientLog()
    before = log.machine.sessions.encode()
    assert log.bring(brought) == NOT_TAKEN
    assert log.items == []
    assert log.machine.life_of(1).counter == 1
    assert len(log.machine.sessions.encode()) >= len(before)


def test_a_client_opens_no_session_of_a_member() -> None:
    log = ClientLog()
    session = log.bring(wrap_open(1, 9, 7, 0)).answer  # as that of the member's seventh start
    assert log.machine.life_of(1).counter == 1
    assert log.machine.sessions.count_of(1) == 1
    assert isinstance(session, int)
    assert log.call(session, 1, 1, b"a", nonce=9).satisfied


def test_a_session_outlives_the_member_that_carried_its_opening() -> None:
    log = ClientLog()
    session = log.begin()
    assert log.call(session, 1, 1, b"a").satisfied
    log.machine.sessions.remove(1)
    assert log.call(session, 1, 1, b"a", member=2).entry_index < log.machine.applied_index
    assert log.items == [b"a"]
    assert log.machine.sessions.holders == {2}


def test_a_closed_session_takes_nothing_more() -> None:
    log = ClientLog()
    session = log.begin()
    assert log.bring(wrap_close(session, NONCE + 1)) == NOT_TAKEN
    assert log.call(session, 1, 1, b"a").satisfied
    assert log.bring(wrap_close(session, NONCE)).satisfied
    assert log.bring(wrap_close(session, NONCE)) == NOT_TAKEN
    assert log.call(session, 1, 1, b"a") == NOT_TAKEN
    assert log.call(session, 2, 1, b"b") == NOT_TAKEN
    assert log.begin() != session, "one of the same nonce is another"
    assert log.call(session, 2, 1, b"b") == NOT_TAKEN


def test_one_client_too_many_closes_the_session_that_was_not_used_for_longest() -> None:
    log = ClientLog()
    first, second = log.begin(1), log.begin(2)
    sessions = log.machine.sessions
    for nonce in range(3, MAX_CLIENTS + 1):
        sessions.open_client(log.machine.applied_index + nonce, nonce)
    assert log.call(first, 1, 1, b"a", nonce=1).satisfied
    log.begin(MAX_CLIENTS + 1)
    assert log.call(second, 1, 1, b"b", nonce=2) == NOT_TAKEN
    assert log.call(first, 2, 1, b"c", nonce=1).satisfied
    assert log.machine.sessions.count_of(1) == 1, "of members none is closed for it"
    assert log.items == [b"a", b"c"]


def test_sessions_of_clients_travel_in_snapshots() -> None:
    log = ClientLog()
    session = log.begin()
    first = log.call(session, 1, 1, b"a")
    rejected = log.call(session, 2, 1, b"no")
    machine = log.machine
    machine.sessions = Sessions.decode(machine.sessions.encode())
    assert log.call(session, 1, 1, b"a", member=2) == first
    assert log.call(session, 2, 1, b"no", member=2) == rejected
    assert log.begin() == session
    assert log.items == [b"a"]


def test_what_a_client_brings_may_come_in_pieces_and_be_in_a_snapshot_meanwhile() -> None:
    log = ClientLog()
    session = log.begin()
    whole = wrap(INSTRUCTION, session, NONCE, 1, 1, b"x" * 100)
    number = log.numbers[1] + 1
    carrier = log.carriers[1]
    for offset in range(0, len(whole), 50):
        piece = whole[offset : offset + 50]
        log.entry(
            EntryKind.NORMAL,
            wrap_piece(CLIENT, carrier, log.nonces[carrier], number, number, 0, offset, len(whole), piece),
        )
        log.machine.sessions = Sessions.decode(log.machine.sessions.encode())
    assert [answer.number for answer in log.answers] == [number]
    assert log.items == [b"x" * 100]
    assert log.call(session, 1, 1, b"x" * 100, member=2).satisfied
    assert log.items == [b"x" * 100]


def test_two_machines_that_applied_the_same_agree_by_their_digests() -> None:
    logs = [ClientLog(), ClientLog()]
    for log in logs:
        session = log.begin()
        log.call(session, 1, 1, b"a")
        log.call(session, 1, 1, b"a", member=2)
        log.call(session + 500, 1, 1, b"b")
    assert logs[0].machine.digest == logs[1].machine.digest
    logs[1].call(session, 2, 1, b"c")
    assert logs[0].machine.digest != logs[1].machine.digest


def test_an_operation_of_later_code_still_stops_applying() -> None:
    log = ClientLog()
    with pytest.raises(UnknownOperationError):
        log.entry(EntryKind.NORMAL, wrap(ANEW + 1, 0, 0, 0, 0, b""))
    assert isinstance(log.machine, Machine)
    assert isinstance(log.machine.state, ListState)
    assert OPEN < CLIENT < ANEW < MAX_NUMBER
