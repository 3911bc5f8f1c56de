"""Instructions that come in pieces: each takes effect once, whole, whatever of it comes twice, late or never."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest

from raftsvc.core.membership import ConfChange, ConfOp
from raftsvc.core.messages import Entry, EntryKind, MalformedError, make_entry
from raftsvc.member.envelopes import INSTRUCTION, LIST, encode_list, wrap, wrap_open, wrap_piece
from raftsvc.member.machine import Answer, Machine
from raftsvc.member.pieces import MAX_PIECE_BYTES, Pieces
from raftsvc.member.sessions import MAX_PARTIAL_BYTES, MAX_WHOLE_BYTES, Outcome
from raftsvc.member.waiters import Call
from raftsvc.state import BaseState

NODE = 1
SESSION = 2
NONCE = 77


class Heard(BaseState):
    """Remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[bytes] = []

    def apply(self, data: bytes, index: int) -> bool:
        self.given.append(data)
        return True

    def snapshot(self) -> tuple[bytes, int]:
        return b"", self.applied_index()

    def restore_snapshot(self, data: bytes, index: int) -> None: ...


class Log:
    """A machine with a session, and what is applied to it."""

    def __init__(self) -> None:
        self.state = Heard()
        self.machine = Machine(self.state)
        self.answers: list[Answer] = []
        self.index = 0
        self.apply(EntryKind.CONFIG, ConfChange(ConfOp.ADD_VOTER, NODE, "n1:1").encode())
        self.apply(EntryKind.NORMAL, wrap_open(NODE, NONCE, 1, self.index))

    def apply(self, kind: EntryKind, data: bytes) -> None:
        self.index += 1
        entries: Sequence[Entry] = [make_entry(self.index, 1, kind, data)]
        self.machine.apply(entries, self.answers)

    def piece(
        self,
        number: int,
        offset: int,
        part: bytes,
        whole: int = 6,
        low: int = 0,
        previous: int = 0,
        op: int = INSTRUCTION,
    ) -> None:
        data = wrap_piece(op, SESSION, NONCE, number, low, previous, offset, whole, part)
        self.apply(EntryKind.NORMAL, data)

    def restart(self) -> None:
        """Go on from a snapshot."""
        before = self.machine
        self.state = Heard()
        self.machine = Machine(self.state)
        self.machine.restore(
            before.applied_index, 1, before.config, before.sessions.encode(), before.digest, iter([b""])
        )


@pytest.mark.parametrize("restarts", [False, True])
def test_pieces_become_one_instruction(restarts: bool) -> None:
    log = Log()
    log.piece(5, 0, b"abc")
    if restarts:
        log.restart()
    assert log.machine.sessions.held_of(SESSION, 5) == 3
    log.piece(5, 3, b"def")
    assert log.state.given == [b"abcdef"]
    assert [(a.number, isinstance(a.outcome, Outcome) and a.outcome.satisfied) for a in log.answers] == [(5, True)]
    assert log.machine.sessions.held_of(SESSION, 5) == 0


def test_a_list_may_come_in_pieces_and_pieces_of_one_kind_complete_none_of_the_other() -> None:
    log = Log()
    data = encode_list([b"ab", b"c"])
    log.piece(5, 0, data[:4], len(data), op=LIST)
    log.piece(5, 4, data[4:], len(data))
    assert log.state.given == []
    log.restart()
    log.piece(5, 4, data[4:], len(data), op=LIST)
    assert log.state.given == [b"ab", b"c"]
    assert [(a.number, len(a.outcome)) for a in log.answers if isinstance(a.outcome, list)] == [(5, 2)]


def test_what_comes_in_pieces_takes_no_more_memory_than_a_bound() -> None:
    log = Log()
    sessions = []
    for n in range(MAX_PARTIAL_BYTES // MAX_WHOLE_BYTES + 2):
        log.apply(EntryKind.NORMAL, wrap_open(NODE, 1000 + n, 0, log.index))
        sessions.append((log.index, 1000 + n))

    def begin(n: int) -> None:
        session, nonce = sessions[n]
        log.apply(EntryKind.NORMAL, wrap_piece(INSTRUCTION, session, nonce, 1, 0, 0, 0, MAX_WHOLE_BYTES, b"abc"))

    for n in range(len(sessions)):
        begin(n)
    held = [log.machine.sessions.held_of(session, 1) for session, _ in sessions]
    assert held == [0, 0] + [3] * (len(sessions) - 2), "those that were not used for longest begin again"


def test_what_comes_twice_counts_once() -> None:
    log = Log()
    for offset, part in (
        (0, b"abc"),
        (0, b"abc"),
        (0, b"a"),
        (3, b"de"),
        (3, b"def"),
        (5, b"f"),
        (5, b"f"),
        (0, b"abc"),
    ):
        log.piece(5, offset, part)
    assert log.state.given == [b"abcdef"]
    assert all(answer.outcome == log.answers[0].outcome for answer in log.answers), "a repeat is answered alike"


def test_a_gap_is_not_filled_by_what_follows_it() -> None:
    log = Log()
    log.piece(5, 0, b"ab")
    log.piece(5, 4, b"ef")
    log.piece(5, 2, b"cd")
    assert log.state.given == []
    log.piece(5, 4, b"ef")
    assert log.state.given == [b"abcdef"]


def test_a_later_instruction_takes_the_place_of_one_that_was_given_up_and_not_the_other_way_round() -> None:
    log = Log()
    log.piece(5, 0, b"abc")
    log.piece(6, 0, b"ghi")
    log.piece(5, 0, b"abc")
    log.piece(5, 3, b"def")
    log.piece(6, 3, b"jkl")
    assert log.state.given == [b"ghijkl"]
    log.piece(7, 0, b"mno")
    log.apply(EntryKind.NORMAL, wrap(INSTRUCTION, SESSION, NONCE, 9, 8, b"short"))
    assert log.machine.sessions.held_of(SESSION, 7) == 0, "settled"
    log.piece(7, 3, b"pqr")
    assert log.state.given == [b"ghijkl", b"short"]


def test_what_follows_another_begins_once_that_is_settled() -> None:
    log = Log()
    log.piece(5, 0, b"abc")
    log.piece(6, 0, b"ghi", previous=5)
    log.piece(6, 3, b"jkl", previous=5)
    assert log.state.given == [] and log.machine.sessions.held_of(SESSION, 5) == 3, "it waits for what is missing"
    log.piece(5, 3, b"def")
    log.piece(6, 0, b"ghi", previous=5)
    log.piece(7, 0, b"mno", previous=6)
    log.piece(6, 3, b"jkl", previous=5)
    log.piece(7, 0, b"mno", previous=6)
    log.piece(7, 3, b"pqr", previous=6, low=7)
    assert log.state.given == [b"abcdef", b"ghijkl", b"mnopqr"]
    log.piece(8, 0, b"stu", previous=6)
    assert log.machine.sessions.held_of(SESSION, 8) == 3, "what its node knows is settled"


def test_one_that_was_given_up_between_two_is_no_hindrance() -> None:
    log = Log()
    log.piece(5, 0, b"abc")
    log.piece(5, 3, b"def")
    log.piece(6, 0, b"ghi", previous=5)  # given up
    log.piece(7, 0, b"mno", previous=5)
    log.piece(7, 3, b"pqr", previous=5)
    assert log.state.given == [b"abcdef", b"mnopqr"]


@pytest.mark.parametrize("cuts", [(0, 2, 6), (0, 1, 2, 6), (0, 4, 5, 6), (0, 6)])
def test_pieces_that_were_cut_elsewhere_the_time_before_fit(cuts: tuple[int, ...]) -> None:
    log = Log()
    log.piece(5, 0, b"abc")
    for begin, end in pairwise(cuts):
        log.piece(5, begin, b"abcdef"[begin:end])
    assert log.state.given == [b"abcdef"]


@pytest.mark.parametrize(("whole", "offset", "part"), [(1 << 40, 0, b"abc"), (0, 0, b""), (2, 0, b"abc"), (6, 7, b"a")])
def test_what_does_not_fit_is_kept_nowhere(whole: int, offset: int, part: bytes) -> None:
    log = Log()
    log.piece(5, offset, part, whole)
    assert log.state.given == []
    assert log.machine.sessions.held_of(SESSION, 5) == 0


def test_another_session_has_nothing_of_the_former() -> None:
    log = Log()
    log.piece(5, 0, b"abc")
    log.apply(EntryKind.NORMAL, wrap_open(NODE, NONCE + 1, 2, log.index))
    log.piece(5, 3, b"def")
    assert log.state.given == []
    assert log.machine.sessions.held_of(log.index - 1, 5) == 0


def test_a_table_that_is_cut_short_is_refused() -> None:
    log = Log()
    log.piece(5, 0, b"abc")
    table = log.machine.sessions.encode()
    for size in range(len(table) - 24, len(table)):  # all of the piece and its head, but for their first byte
        with pytest.raises(MalformedError):
            Machine(Heard()).restore(1, 1, log.machine.config, table[:size], 0, iter([b""]))


def long_call(size: int, number: int = 5) -> Call:
    call = Call(bytes(size))
    call.number = number
    return call


def well_known(pieces: Pieces, size: int) -> None:
    """Have it send as much as that at once."""
    call = long_call(MAX_PIECE_BYTES + 8 * size, 1)
    assert pieces.takes(call)
    tick = 0
    while True:
        batch = pieces.take(1 << 30, tick, 1 << 30)
        pieces.note_held(batch[-1].offset + len(batch[-1].data), tick)
        tick += 1
        if sum(len(piece.data) for piece in batch) >= size:
            break
    pieces.remove(call, tick)


@pytest.mark.parametrize("count", [2, 8])
def test_several_follow_each_other_without_a_pause(count: int) -> None:
    pieces = Pieces(16 * 1024, 5, 40)
    well_known(pieces, 1_000_000)
    calls = [long_call(100_000, number) for number in range(5, 5 + count)]
    assert all(pieces.takes(call) for call in calls)
    batch = pieces.take(1 << 30, 99, 1 << 30)
    assert [piece.call for piece in batch if piece.is_last] == calls
    assert {piece.call.number: piece.previous for piece in batch} == {c.number: c.number - 1 for c in calls} | {5: 0}
    assert not pieces.is_due and pieces.next(99) is None, "all is on its way"
    for call in calls[:-1]:
        pieces.remove(call, 99)
        pieces.note_held(0, 99)
        assert not pieces.take(1 << 30, 99, 1 << 30), "nothing of it is sent again"
    pieces.send_again(0)
    assert {piece.call for piece in pieces.take(1 << 30, 99, 1 << 30)} == {calls[-1]}
    pieces.remove(calls[-1], 99)
    assert not pieces.longs and not pieces.is_due


@pytest.mark.parametrize("given_up", [[0], [1], [2], [0, 1], [1, 2], [0, 2]])
def test_one_that_is_given_up_leaves_the_others_as_they_are(given_up: list[int]) -> None:
    pieces = Pieces(16 * 1024, 5, 40)
    well_known(pieces, 150_000)
    calls = [long_call(100_000, number) for number in (5, 6, 7)]
    for call in calls:
        pieces.takes(call)
    sent: dict[Call, int] = {}

    def send(tick: int) -> None:
        for piece in pieces.take(1 << 30, tick, 1 << 30):
            assert piece.offset == sent.get(piece.call, 0)
            sent[piece.call] = piece.offset + len(piece.data)

    send(50)
    rest = [call for n, call in enumerate(calls) if n not in given_up]
    for n in given_up:
        pieces.remove(calls[n])
    for tick in range(51, 80):
        send(tick)
        first = pieces.current
        if first is None:
            break
        if sent.get(first) == 100_000:
            pieces.remove(first, tick)
        else:
            pieces.note_held(sent.get(first, 0), tick)
    assert pieces.current is None and all(sent[call] == 100_000 for call in rest)
    assert not pieces.is_due


def test_a_long_one_is_sent_as_far_as_it_gets_through() -> None:
    pieces = Pieces(64 * 1024, 5, 40)
    assert not pieces.takes(long_call(64 * 1024))
    call = long_call(300_000)
    assert pieces.takes(call)
    sent = 0
    for tick in range(200):
        while (piece := pieces.next(tick)) is not None:
            assert piece.offset == sent and 0 < len(piece.data) <= MAX_PIECE_BYTES
            pieces.note_sent(piece, tick)
            sent += len(piece.data)
        if sent == 300_000:
            break
        pieces.note_held(sent, tick)
    assert sent == 300_000 and tick < 15
    pieces.remove(call)
    assert not pieces.longs and pieces.next(200) is None


def test_what_is_not_answered_is_sent_again_from_where_it_got() -> None:
    pieces = Pieces(64 * 1024, 5, 40)
    pieces.takes(long_call(300_000))
    first = pieces.next(0)
    assert first is not None
    pieces.note_sent(first, 0)
    pieces.contexts.add(1)  # forwarded
    pieces.retry(4)
    assert pieces.next(4) is None
    pieces.retry(5)
    again = pieces.next(5)
    assert again is not None and again.offset == 0
    pieces.note_sent(again, 5)
    pieces.note_held(len(again.data), 6)
    following = pieces.next(6)
    assert following is not None and following.offset == len(again.data)
    pieces.note_sent(following, 6)
    pieces.contexts.add(2)
    pieces.hear_reply(2, False, 6)
    pieces.retry(30)
    nothing = pieces.next(30)
    assert nothing is None or nothing.offset > following.offset, "it is in the leader's log"
    pieces.contexts.add(3)
    pieces.hear_reply(3, True, 30)
    assert pieces.next(30) is None
    refused = pieces.next(31)
    assert refused is not None and refused.offset == len(again.data)
