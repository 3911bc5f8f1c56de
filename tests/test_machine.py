"""The replicated machine: each instruction counts once, whatever arrives how often and in which order."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raftsvc.core.membership import ConfChange, Configuration, ConfOp
from raftsvc.core.messages import EntryKind, Life, MalformedError, make_entry
from raftsvc.core.versions import Versions
from raftsvc.errors import Rejected, UnknownOperationError
from raftsvc.member.envelopes import INSTRUCTION, LIST, encode_list, wrap, wrap_close, wrap_open, wrap_void
from raftsvc.member.machine import Answer, Machine
from raftsvc.member.sessions import MAX_OPEN_AGE, MAX_OUTCOMES, MAX_SESSIONS, Outcome
from tests.service.harness import ListState

NONCE = 7


def said(outcome: Outcome | list[Outcome]) -> Outcome:
    """What the State made of an instruction, wherever and whatever it answered."""
    assert isinstance(outcome, Outcome)
    return Outcome(outcome.satisfied, outcome.rejection)


class Log:
    """Feeds a machine with one entry after the other."""

    def __init__(self) -> None:
        self.machine = Machine(ListState())
        self.answers: list[Answer] = []
        self.nonces: dict[int, int] = {}
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
        self.machine.apply([make_entry(index, 1, kind, data, 10 * index)], self.answers)
        return index

    def change(self, change: ConfChange) -> int:
        return self.entry(EntryKind.CONFIG, change.encode())

    def open(
        self, node: int, counter: int = 1, nonce: int = NONCE, age: int = 0, versions: Versions | None = None
    ) -> int:
        asked_at = self.machine.applied_index - age
        index = self.entry(EntryKind.NORMAL, wrap_open(node, nonce, counter, asked_at, versions))
        self.nonces[index] = nonce
        return index

    def send(self, session: int, number: int, low: int, instruction: bytes) -> list[Answer]:
        nonce = self.nonces.get(session, NONCE)
        self.entry(EntryKind.NORMAL, wrap(INSTRUCTION, session, nonce, number, low, instruction))
        return self.answers

    def do(self, session: int, number: int, low: int, instruction: bytes) -> list[Outcome]:
        return [said(answer.outcome) for answer in self.send(session, number, low, instruction)]

    def do_many(self, session: int, number: int, low: int, instructions: list[bytes]) -> list[Outcome]:
        nonce = self.nonces.get(session, NONCE)
        self.entry(EntryKind.NORMAL, wrap(LIST, session, nonce, number, low, encode_list(instructions)))
        return [outcome for answer in self.answers for outcome in answer.outcome]  # type: ignore[misc]


class Broken(ListState):
    """Raises what it may not at `poison`."""

    def apply(self, data: bytes, index: int) -> bool:
        if data == b"poison":
            raise ZeroDivisionError
        return super().apply(data, index)


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
    session = log.open(1)
    assert log.do(session, 1, 1, b"a") == [Outcome(False, reason)]
    assert log.do(session, 1, 1, b"a") == [Outcome(False, reason)], "the same when it comes again"


def test_an_instruction_that_comes_again_is_answered_and_not_applied() -> None:
    log = Log()
    session = log.open(1)
    assert log.do(session, 1, 1, b"a") == [Outcome(True)]
    assert log.do(session, 2, 1, b"false") == [Outcome(False)]
    assert log.do(session, 3, 1, b"no") == [Outcome(False, "no to no")]
    for number, outcome in ((1, Outcome(True)), (2, Outcome(False)), (3, Outcome(False, "no to no"))):
        assert log.do(session, number, 1, b"whatever") == [outcome]
    assert log.items == [b"a", b"false"]


def test_numbers_may_come_in_any_order_but_not_after_they_were_settled() -> None:
    log = Log()
    session = log.open(1)
    log.do(session, 5, 3, b"five")
    log.do(session, 4, 3, b"four")
    assert log.do(session, 2, 1, b"two, which its node gave up") == []
    log.do(session, 6, 6, b"six")
    assert log.do(session, 4, 3, b"four") == []
    assert log.items == [b"five", b"four", b"six"]


def test_a_new_session_makes_what_the_former_had_under_way_void() -> None:
    log = Log()
    first = log.open(1)
    log.do(first, 1, 1, b"a")
    second = log.open(1, 2, nonce=8)
    assert (log.machine.sessions.owner_of(1), log.machine.life_of(1)) == (second, Life(2, 8))
    assert log.do(first, 2, 1, b"late") == []
    log.do(second, 1, 1, b"b")
    assert log.items == [b"a", b"b"]


def test_an_attempt_to_open_a_session_that_comes_late_or_twice_opens_nothing() -> None:
    log = Log()
    first = log.open(1, 2)
    log.open(1, 2)
    log.open(1, 1, nonce=6)
    assert log.machine.sessions.owner_of(1) == first
    for _ in range(3):
        log.change(ConfChange(ConfOp.SET_ADDRESS, 2, "b:3"))
    far = make_entry(log.machine.applied_index + 1, 1, EntryKind.NORMAL, wrap_open(1, 5, 3, 2**40))
    log.machine.apply([far], [])
    assert log.machine.sessions.owner_of(1) == first, "nobody applied what is not there yet"
    log.machine.applied_index += MAX_OPEN_AGE
    log.open(1, 3, nonce=5, age=MAX_OPEN_AGE)
    assert log.machine.sessions.owner_of(1) == first, "it was asked for long ago"
    assert log.open(1, 3, nonce=5) == log.machine.sessions.owner_of(1)


def test_several_processes_of_a_member_have_sessions_of_their_own() -> None:
    log = Log()
    owner = log.open(1)
    worker, other = log.open(1, 0, nonce=20), log.open(2, 0, nonce=20)
    for session in (owner, worker, other):
        assert log.do(session, 1, 1, b"%d" % session) == [Outcome(True)]
        assert log.do(session, 1, 1, b"again") == [Outcome(True)]
    log.open(1, 0, nonce=20)
    assert log.machine.sessions.find(1, 20) == worker and log.machine.sessions.count_of(1) == 2, "it is open already"
    log.open(1, 2, nonce=8)
    assert log.do(owner, 2, 1, b"of the former owner") == []
    assert log.do(worker, 2, 1, b"of a worker, who goes on") == [Outcome(True)]
    log.entry(EntryKind.NORMAL, wrap_close(worker, 20))
    assert log.do(worker, 3, 1, b"of one that is gone") == []
    log.change(ConfChange(ConfOp.REMOVE, 2))
    assert log.do(other, 2, 1, b"of one whose member was removed") == []
    assert log.items == [b"%d" % owner, b"%d" % worker, b"%d" % other, b"of a worker, who goes on"]


@pytest.mark.parametrize("counter", [0, 1])
def test_who_does_not_know_the_nonce_of_a_session_has_nothing_done_and_nothing_closed(counter: int) -> None:
    log = Log()
    session = log.open(1, counter)
    log.entry(EntryKind.NORMAL, wrap(INSTRUCTION, session, NONCE + 1, 1, 1, b"guessed"))
    log.entry(EntryKind.NORMAL, wrap_close(session, NONCE + 1))
    assert log.do(session, 1, 1, b"mine") == [Outcome(True)]
    assert log.items == [b"mine"]


def test_the_session_of_an_owner_is_closed_by_its_next_start_alone() -> None:
    log = Log()
    session = log.open(1)
    log.entry(EntryKind.NORMAL, wrap_close(session, NONCE))
    assert log.do(session, 1, 1, b"a") == [Outcome(True)]


def test_of_too_many_sessions_of_a_member_the_longest_unused_is_closed_and_never_the_owners() -> None:
    log = Log()
    owner = log.open(1)
    sessions = [log.open(1, 0, nonce=100 + n) for n in range(MAX_SESSIONS - 1)]
    log.do(sessions[0], 1, 1, b"used")
    log.open(1, 0, nonce=99)
    assert log.machine.sessions.count_of(1) == MAX_SESSIONS
    assert log.do(sessions[1], 1, 1, b"gone") == []
    for session in (owner, sessions[0], sessions[2]):
        assert log.do(session, 2, 1, b"here") == [Outcome(True)]


@pytest.mark.parametrize("versions", [Versions(), Versions(3)], ids=str)
def test_sessions_of_clients_close_none_of_a_process_that_applies_nor_what_it_reported(versions: Versions) -> None:
    log = Log()
    log.open(1, versions=Versions(7))
    attached = log.open(1, 0, nonce=99, versions=versions)
    clients = [log.open(1, 0, nonce=100 + n) for n in range(MAX_SESSIONS)]
    assert log.machine.sessions.count_of(1) == MAX_SESSIONS
    assert log.do(clients[0], 1, 1, b"gone") == []
    assert log.do(attached, 1, 1, b"here") == [Outcome(True)]
    assert log.machine.sessions.versions_of(1) == versions
    for number in range(MAX_SESSIONS):  # where all of them apply, it is as among clients
        log.open(1, 0, nonce=1000 + number, versions=Versions(7))
    assert log.do(attached, 2, 1, b"gone") == []
    assert log.machine.sessions.count_of(1) == MAX_SESSIONS


def test_a_session_remembers_so_many_outcomes_and_takes_nothing_beyond() -> None:
    log = Log()
    session = log.open(1)
    assert log.do(session, MAX_OUTCOMES, 1, b"last") == [Outcome(True)]
    assert log.do(session, MAX_OUTCOMES + 1, 1, b"too far") == []
    assert log.do_many(session, MAX_OUTCOMES - 1, 1, [b"x", b"y", b"z"]) == []
    assert log.do(session, 5, 6, b"above itself") == [], "what is settled before it is sent makes no sense"
    assert log.do(session, MAX_OUTCOMES + 1, 2, b"next") == [Outcome(True)]
    assert log.items == [b"last", b"next"]


def test_the_instructions_of_a_list_take_effect_in_order_each_once_with_an_outcome_of_its_own() -> None:
    log = Log()
    session = log.open(1)
    first = log.do_many(session, 1, 1, [b"a", b"no", b"false", b"b"])
    assert [said(o) for o in first] == [Outcome(True), Outcome(False, "no to no"), Outcome(False), Outcome(True)]
    assert {o.entry_index for o in first} == {log.machine.applied_index}
    assert log.do_many(session, 1, 1, [b"a", b"no", b"false", b"b"]) == first, "it came again"
    assert log.do(session, 4, 1, b"again") == [Outcome(True)] and log.do(session, 5, 5, b"c") == [Outcome(True)]
    assert log.items == [b"a", b"false", b"b", b"c"]


@pytest.mark.parametrize("data", [b"", bytes(2), b"\0\2\0\0\0\1a", b"\0\1\0\0\0\1ab", b"\0\1\xff\xff\xff\xff"])
def test_what_is_no_list_is_ignored(data: bytes) -> None:
    log = Log()
    session = log.open(1)
    log.entry(EntryKind.NORMAL, wrap(LIST, session, NONCE, 1, 1, data))
    assert log.items == [] and log.answers == []


def test_a_list_in_the_middle_of_which_the_state_breaks_is_applied_as_far_as_nobody_is_told() -> None:
    log = Log()
    session = log.open(1)
    log.machine.state = Broken()
    with pytest.raises(ZeroDivisionError):
        log.do_many(session, 1, 1, [b"a", b"poison"])
    assert log.answers == [] and log.machine.sessions.recorded(session, 1) is None
    assert log.machine.applied_index == session


class Answering(ListState):
    """Answers with whatever it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.next: object = None

    def apply(self, data: bytes, index: int) -> object:  # type: ignore[override]
        super().apply(data, index)
        return self.next


class Sly(int):
    def __bool__(self) -> bool:
        raise RuntimeError("nobody asks me")


@pytest.mark.parametrize(
    ("answer", "satisfied", "is_kept"),
    [
        (True, True, True),
        (False, False, True),
        (None, False, True),
        (0, True, True),
        (-(2**63), True, True),
        (2**63 - 1, True, True),
        (b"", True, True),
        (bytes(64), True, True),
        (2**63, True, False),
        (bytes(65), True, False),
        (Sly(3), True, False),
        ("text", True, False),
        (bytearray(b"x"), True, False),
        ([], True, False),
        (0.5, True, False),
    ],
)
def test_answers_of_some_kinds_come_back_and_others_are_known_to_who_applied_them(
    answer: object, satisfied: bool, is_kept: bool
) -> None:
    log = Log()
    log.machine.state = state = Answering()
    session = log.open(1)
    state.next = answer
    first = log.send(session, 1, 1, b"a")[0].outcome
    assert isinstance(first, Outcome)
    assert (
        first == Outcome(satisfied, None, answer, True, log.machine.applied_index, log.machine.applied_time_ms)
        and first.answer is answer
    )
    state.next = b"something else"
    assert log.send(session, 1, 1, b"a")[0].outcome == log.machine.sessions.recorded(session, 1)
    for recorded in (log.machine.sessions.recorded(session, 1), restored(log).sessions.recorded(session, 1)):
        assert recorded == first if is_kept else recorded == first._replace(answer=None, is_known=False)
        assert recorded is not None and type(recorded.answer) is type(answer if is_kept else None)


def test_the_digest_says_nothing_of_what_is_not_kept_of_an_answer() -> None:
    digests = []
    answers: list[object] = [[1], {"other": 2}, "x" * 100, 1, 2, b"", True, False, None]
    for answer in answers:
        log = Log()
        log.machine.state = state = Answering()
        session = log.open(1)
        state.next = answer
        log.do(session, 1, 1, b"a")
        digests.append(log.machine.digest)
    assert len(set(digests)) == len(digests) - 2, "three that are not kept look alike, all others do not"


@pytest.mark.parametrize(("counter", "nonce"), [(1, 7), (2, 7), (2, 9)])
def test_an_earlier_start_or_a_second_one_of_the_same_number_opens_no_session(counter: int, nonce: int) -> None:
    log = Log()
    first = log.open(1, 2)
    log.open(1, counter, nonce)
    assert (log.machine.sessions.owner_of(1), log.machine.life_of(1)) == (first, Life(2, 7))


def test_a_void_member_opens_no_session_and_what_it_has_under_way_is_void_too() -> None:
    log = Log()
    session = log.open(1)
    worker = log.open(1, 0, nonce=9)
    void = log.entry(EntryKind.NORMAL, wrap_void(1))
    assert log.do(worker, 1, 1, b"late") == []
    assert log.do(session, 1, 1, b"late") == []
    assert log.do(void, 1, 1, b"guessed") == []
    log.open(1, 9)
    log.open(1, 2**63 - 1, 5)
    log.open(1, 0, 5)
    assert log.machine.life_of(1).counter == 2**63 - 1
    assert log.machine.sessions.owner_of(1) == 0 == log.machine.sessions.count_of(1) and log.items == []
    log.entry(EntryKind.NORMAL, wrap_void(9))
    assert log.machine.sessions.owner_of(9) == 0, "a stranger is nobody"


def test_strangers_and_removed_members_have_no_session() -> None:
    log = Log()
    log.open(9)
    assert log.machine.sessions.owner_of(9) == 0
    session = log.open(2)
    log.change(ConfChange(ConfOp.REMOVE, 2))
    assert log.machine.sessions.owner_of(2) == 0
    assert log.do(session, 1, 1, b"late") == []
    assert log.items == []
    assert dict(log.machine.state.peers()) == {1: "a:1"}


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x0b" + bytes(40), b"\x09" * 40, bytes(100)])
def test_an_entry_that_this_version_does_not_know_is_not_skipped(data: bytes) -> None:
    log = Log()
    before = log.machine.applied_index
    entry = make_entry(before + 1, 1, EntryKind.NORMAL, data)
    for _ in range(2):
        with pytest.raises(UnknownOperationError, match=f"entry {before + 1} is of kind"):
            log.machine.apply([entry], [])
        assert log.machine.applied_index == log.machine.state.applied_index() == before
    assert log.items == []


@pytest.mark.parametrize("instruction", [b"a", b"false", b"no"])
def test_a_repeat_after_a_snapshot_tells_when_it_was(instruction: bytes) -> None:
    log = Log()
    session = log.open(1)
    (first,) = log.send(session, 1, 1, instruction)
    index = log.machine.applied_index
    assert isinstance(first.outcome, Outcome)
    assert (first.outcome.entry_index, first.outcome.time_ms) == (index, 10 * index)
    log.machine = restored(log)
    assert log.machine.applied_time_ms == 10 * index
    (again,) = log.send(session, 1, 1, instruction)
    assert again.outcome == first.outcome


def restored(log: Log) -> Machine:
    machine = log.machine
    other = Machine(ListState())
    other.restore(
        machine.applied_index,
        machine.applied_term,
        Configuration.decode(machine.config.encode()),
        machine.sessions.encode(),
        machine.digest,
        iter(list(machine.capture())),
        machine.applied_time_ms,
    )
    return other


def test_sessions_travel_in_the_snapshot() -> None:
    log = Log()
    session = log.open(1)
    log.do(session, 1, 1, b"a")
    log.do(session, 2, 1, b"no \xc3\xa4")
    other = restored(log)
    assert other.sessions.encode() == log.machine.sessions.encode()
    again = make_entry(other.applied_index + 1, 1, EntryKind.NORMAL, wrap(INSTRUCTION, session, NONCE, 1, 1, b"a"))
    answers: list[Answer] = []
    other.apply([again], answers)
    assert [said(a.outcome) for a in answers] == [Outcome(True)]
    assert other.state.items == [b"a"]  # type: ignore[attr-defined]
    log.machine.apply([again], [])
    assert other.digest == log.machine.digest
    kept = other.sessions.recorded(session, 2)
    assert kept is not None and said(kept) == Outcome(False, "no to no \xe4")


def test_entries_that_a_snapshot_brought_are_not_applied_again() -> None:
    log = Log()
    session = log.open(1)
    first = log.machine.applied_index + 1
    entries = [
        make_entry(first + n, 1, EntryKind.NORMAL, wrap(INSTRUCTION, session, NONCE, n + 1, 1, b"%d" % n))
        for n in range(4)
    ]
    log.machine.apply(entries[:2], [])
    other = restored(log)
    other.apply(entries, [])
    assert other.state.items == [b"0", b"1", b"2", b"3"]  # type: ignore[attr-defined]


def test_an_exception_stops_at_the_entry_and_what_was_before_counts() -> None:
    log = Log()
    log.machine.state = Broken()
    session = log.open(1)
    first = log.machine.applied_index + 1
    data = [b"a", b"poison", b"b"]
    entries = [
        make_entry(first + n, 1, EntryKind.NORMAL, wrap(INSTRUCTION, session, NONCE, n + 1, 1, d))
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
    session = log.open(1)
    log.do(session, 1, 1, b"no")
    data = log.machine.sessions.encode()
    for end in range(1, len(data)):
        with pytest.raises(MalformedError):
            Machine(ListState()).restore(1, 1, Configuration(), data[:end], 0, iter(()))


def test_the_digest_is_the_same_in_every_process() -> None:
    code = (
        "from tests.test_machine import Log\n"
        "log = Log(); s = log.open(1)\n"
        "for n in range(50): log.do(s, n + 1, n, b'%d' % n)\n"
        "print(log.machine.digest, log.machine.sessions.encode().hex())"
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


class Electorate(ListState):
    """Notes who votes, and when it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int, list[int]]] = []

    def set_voters(self, voters: frozenset[int]) -> None:
        self.told.append((self.applied_index(), sorted(voters)))


def test_a_state_is_told_who_votes_with_each_change_and_after_a_snapshot() -> None:
    log = Log()
    state = Electorate()
    log.machine = machine = Machine(state)
    log.change(ConfChange(ConfOp.ADD_VOTER, 1, "a:1"))
    log.change(ConfChange(ConfOp.ADD_LEARNER, 2, "b:2"))
    log.do(log.open(1), 1, 1, b"x")
    log.change(ConfChange(ConfOp.PROMOTE, 2))
    log.change(ConfChange(ConfOp.REMOVE, 1))
    assert [voters for _, voters in state.told] == [[1], [1], [1, 2], [2]]
    other = Electorate()
    data = b"".join(machine.capture())
    restored = Machine(other)
    restored.restore(machine.applied_index, 1, machine.config, machine.sessions.encode(), machine.digest, iter((data,)))
    assert other.told == [(0, [2])]
    assert other.items == [b"x"]


def test_what_a_state_answers_is_asked_nothing() -> None:
    class Lazy:
        @property
        def __class__(self) -> Any:
            raise AssertionError("the user's code runs in the machine")

    class LazyState(ListState):
        def apply(self, data: bytes, index: int) -> Any:
            return Lazy()

    log = Log()
    log.machine = Machine(LazyState())
    log.change(ConfChange(ConfOp.ADD_VOTER, 1, "a:1"))
    session = log.open(1)
    (answer,) = log.send(session, 1, 1, b"a")
    assert isinstance(answer.outcome, Outcome)
    assert (answer.outcome.satisfied, type(answer.outcome.answer) is Lazy) == (True, True)
    (answer,) = log.send(session, 1, 1, b"a")
    assert answer.outcome == Outcome(
        True, None, None, False, log.machine.applied_index - 1, 10 * (log.machine.applied_index - 1)
    )
