"""The replicated machine: each instruction counts once, whatever arrives how often and in which order."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raftsvc.core.membership import ConfChange, Configuration, ConfOp
from raftsvc.core.messages import EntryKind, Life, MalformedError, make_entry
from raftsvc.errors import Rejected, UnknownOperationError
from raftsvc.member.machine import Answer, Machine, Outcome, wrap_instruction, wrap_open_session, wrap_void
from tests.service.harness import ListState


class Log:
    """Feeds a machine with one entry after the other."""

    def __init__(self) -> None:
        self.machine = Machine(ListState())
        self.answers: list[Answer] = []
        self.change(ConfChange(ConfOp.ADD_VOTER, 1, "a:1"))
        self.change(ConfChange(ConfOp.ADD_LEARNER, 2, "b:2"))

    @property
    def items(self) -> list[bytes]:
        state = self.machine.state
        assert isinstance(state, ListState)
        return state.items

    def entry(self, kind: EntryKind, data: bytes) -> int:
        index = self.machine.applied_index + 1
        self.answers = []
        self.machine.apply([make_entry(index, 1, kind, data)], self.answers)
        return index

    def change(self, change: ConfChange) -> int:
        return self.entry(EntryKind.CONFIG, change.encode())

    def open(self, node: int, former: int, counter: int = 1, nonce: int = 7) -> int:
        return self.entry(EntryKind.NORMAL, wrap_open_session(node, former, Life(counter, nonce)))

    def do(self, node: int, session: int, number: int, low: int, instruction: bytes) -> list[Outcome]:
        self.entry(EntryKind.NORMAL, wrap_instruction(node, session, number, low, instruction))
        return [answer.outcome for answer in self.answers]


class Nameless(Rejected):
    """As a subclass with an `__init__` of its own that does not call the base's."""

    def __init__(self) -> None:
        pass


class Careless(Rejected):
    """Puts something in the place of the reason afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.reason = ValueError("put there later")  # type: ignore[assignment]


class Gruff(Exception):
    def __str__(self) -> str:
        raise RuntimeError("nobody asks me")


@pytest.mark.parametrize(
    ("rejected", "reason"),
    [
        (Rejected("too late"), "too late"),
        (Rejected(), ""),
        (Rejected(ValueError("x")), "x"),
        (Rejected(KeyError("k", 3)), "k, 3"),
        (Rejected(ValueError(object())), "ValueError"),
        (Rejected(Gruff("g")), "g"),
        (Rejected(Gruff(Gruff())), "Gruff"),
        (Rejected(None), "None"),
        (Rejected(404), "404"),
        (Rejected(b"bytes"), "b'bytes'"),
        (Rejected(["a list"]), "list"),
        (Rejected(object()), "object"),
        (Rejected("half a pair \ud800"), "half a pair ?"),
        (Rejected("é" * 600), "é" * 512),
        (Nameless(), ""),
        (Careless(), "put there later"),
    ],
    ids=repr,
)
def test_a_refusal_for_whatever_reason_is_an_outcome_and_stops_nothing(rejected: Rejected, reason: str) -> None:
    log = Log()

    def apply(data: bytes, index: int) -> bool:
        raise rejected

    log.machine.state.apply = apply  # type: ignore[method-assign]
    session = log.open(1, 0)
    assert log.do(1, session, 1, 1, b"a") == [Outcome(False, reason)]
    assert log.do(1, session, 1, 1, b"a") == [Outcome(False, reason)], "the same when it comes again"


def test_an_instruction_that_comes_again_is_answered_and_not_applied() -> None:
    log = Log()
    session = log.open(1, 0)
    assert log.do(1, session, 1, 1, b"a") == [Outcome(True)]
    assert log.do(1, session, 2, 1, b"false") == [Outcome(False)]
    assert log.do(1, session, 3, 1, b"no") == [Outcome(False, "no to no")]
    for number, outcome in ((1, Outcome(True)), (2, Outcome(False)), (3, Outcome(False, "no to no"))):
        assert log.do(1, session, number, 1, b"whatever") == [outcome]
    assert log.items == [b"a", b"false"]


def test_numbers_may_come_in_any_order_but_not_after_they_were_settled() -> None:
    log = Log()
    session = log.open(1, 0)
    log.do(1, session, 5, 3, b"five")
    log.do(1, session, 4, 3, b"four")
    assert log.do(1, session, 2, 1, b"two, which its node gave up") == []
    log.do(1, session, 6, 6, b"six")
    assert log.do(1, session, 4, 3, b"four") == []
    assert log.items == [b"five", b"four", b"six"]


def test_a_new_session_makes_what_the_former_had_under_way_void() -> None:
    log = Log()
    first = log.open(1, 0, 1, nonce=7)
    log.do(1, first, 1, 1, b"a")
    second = log.open(1, first, 2, nonce=8)
    assert (log.machine.session_of(1), log.machine.life_of(1)) == (second, Life(2, 8))
    assert log.do(1, first, 2, 1, b"late") == []
    log.do(1, second, 1, 1, b"b")
    assert log.items == [b"a", b"b"]


def test_of_two_attempts_to_open_a_session_only_one_succeeds() -> None:
    log = Log()
    first = log.open(1, 0, 2, nonce=7)
    assert log.open(1, 0, 3, nonce=6) != first
    assert log.machine.session_of(1) == first, "a late attempt from before a restart opens nothing"


@pytest.mark.parametrize(("counter", "nonce"), [(1, 7), (2, 7), (2, 9)])
def test_an_earlier_start_or_a_second_one_of_the_same_number_opens_no_session(counter: int, nonce: int) -> None:
    log = Log()
    first = log.open(1, 0, 2, nonce=7)
    log.open(1, first, counter, nonce)
    assert (log.machine.session_of(1), log.machine.life_of(1)) == (first, Life(2, 7))


def test_a_void_member_opens_no_session_and_what_it_has_under_way_is_void_too() -> None:
    log = Log()
    session = log.open(1, 0)
    void = log.entry(EntryKind.NORMAL, wrap_void(1))
    assert log.do(1, session, 1, 1, b"late") == []
    assert log.do(1, void, 1, 1, b"guessed") == []
    log.open(1, void, 9)
    log.open(1, void, 2**63 - 1, 5)
    assert log.machine.life_of(1).counter == 2**63 - 1
    assert log.machine.session_of(1) == void and log.items == []
    log.entry(EntryKind.NORMAL, wrap_void(9))
    assert log.machine.session_of(9) == 0, "a stranger is nobody"


def test_strangers_and_removed_members_have_no_session() -> None:
    log = Log()
    log.open(9, 0)
    assert log.machine.session_of(9) == 0
    session = log.open(2, 0)
    log.change(ConfChange(ConfOp.REMOVE, 2))
    assert log.machine.session_of(2) == 0
    assert log.do(2, session, 1, 1, b"late") == []
    assert log.items == []
    assert dict(log.machine.state.peers()) == {1: "a:1"}


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x05" + bytes(40), b"\x09" * 40, bytes(100)])
def test_an_entry_that_this_version_does_not_know_is_not_skipped(data: bytes) -> None:
    log = Log()
    before = log.machine.applied_index
    entry = make_entry(before + 1, 1, EntryKind.NORMAL, data)
    for _ in range(2):
        with pytest.raises(UnknownOperationError, match=f"entry {before + 1} is of kind"):
            log.machine.apply([entry], [])
        assert log.machine.applied_index == log.machine.state.applied_index() == before
    assert log.items == []


def restored(log: Log) -> Machine:
    machine = log.machine
    other = Machine(ListState())
    other.restore(
        machine.applied_index,
        machine.applied_term,
        Configuration.decode(machine.config.encode()),
        machine.encode_sessions(),
        machine.digest,
        iter(list(machine.capture())),
    )
    return other


def test_sessions_travel_in_the_snapshot() -> None:
    log = Log()
    session = log.open(1, 0)
    log.do(1, session, 1, 1, b"a")
    log.do(1, session, 2, 1, b"no \xc3\xa4")
    other = restored(log)
    assert other.encode_sessions() == log.machine.encode_sessions()
    again = make_entry(other.applied_index + 1, 1, EntryKind.NORMAL, wrap_instruction(1, session, 1, 1, b"a"))
    answers: list[Answer] = []
    other.apply([again], answers)
    assert [a.outcome for a in answers] == [Outcome(True)]
    assert other.state.items == [b"a"]  # type: ignore[attr-defined]
    log.machine.apply([again], [])
    assert other.digest == log.machine.digest
    assert other.recorded(1, 2) == Outcome(False, "no to no \xe4")


def test_entries_that_a_snapshot_brought_are_not_applied_again() -> None:
    log = Log()
    session = log.open(1, 0)
    first = log.machine.applied_index + 1
    entries = [
        make_entry(first + n, 1, EntryKind.NORMAL, wrap_instruction(1, session, n + 1, 1, b"%d" % n)) for n in range(4)
    ]
    log.machine.apply(entries[:2], [])
    other = restored(log)
    other.apply(entries, [])
    assert other.state.items == [b"0", b"1", b"2", b"3"]  # type: ignore[attr-defined]


def test_an_exception_stops_at_the_entry_and_what_was_before_counts() -> None:
    class Broken(ListState):
        def apply(self, data: bytes, index: int) -> bool:
            if data == b"poison":
                raise ZeroDivisionError
            return super().apply(data, index)

    log = Log()
    log.machine.state = Broken()
    session = log.open(1, 0)
    first = log.machine.applied_index + 1
    data = [b"a", b"poison", b"b"]
    entries = [
        make_entry(first + n, 1, EntryKind.NORMAL, wrap_instruction(1, session, n + 1, 1, d))
        for n, d in enumerate(data)
    ]
    answers: list[Answer] = []
    with pytest.raises(ZeroDivisionError):
        log.machine.apply(entries, answers)
    assert [a.number for a in answers] == [1]
    assert log.machine.applied_index == log.machine.state.applied_index() == first


def test_a_snapshot_of_another_index_is_not_taken() -> None:
    log = Log()
    log.machine.state.set_applied_index(99)
    with pytest.raises(ValueError, match="99"):
        log.machine.capture()


def test_damaged_session_tables_are_refused() -> None:
    log = Log()
    session = log.open(1, 0)
    log.do(1, session, 1, 1, b"no")
    data = log.machine.encode_sessions()
    for end in range(1, len(data)):
        with pytest.raises(MalformedError):
            Machine(ListState()).restore(1, 1, Configuration(), data[:end], 0, iter(()))


def test_the_digest_is_the_same_in_every_process() -> None:
    code = (
        "from tests.test_machine import Log\n"
        "log = Log(); s = log.open(1, 0)\n"
        "for n in range(50): log.do(1, s, n + 1, n, b'%d' % n)\n"
        "print(log.machine.digest, log.machine.encode_sessions().hex())"
    )
    root = Path(__file__).resolve().parent.parent
    results = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("0", "1", "12345")
    }
    assert len(results) == 1
