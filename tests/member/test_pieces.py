"""Instructions that come in pieces: each takes effect once, whole, whatever of it comes twice, late or never."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from raftsvc.core.membership import ConfChange, ConfOp
from raftsvc.core.messages import Entry, EntryKind, MalformedError, make_entry
from raftsvc.member.envelopes import INSTRUCTION, LIST, encode_list, wrap, wrap_open, wrap_piece
from raftsvc.member.machine import Answer, Machine
from raftsvc.member.pieces import MAX_PIECE_BYTES, Pieces
from raftsvc.member.sessions import Outcome
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

    def piece(self, number: int, offset: int, part: bytes, whole: int = 6, low: int = 0, op: int = INSTRUCTION) -> None:
        self.apply(EntryKind.NORMAL, wrap_piece(op, SESSION, NONCE, number, low, offset, whole, part))

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


def long_call(size: int) -> Call:
    call = Call(bytes(size))
    call.number = 5
    return call


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
    assert not pieces and pieces.next(200) is None


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
