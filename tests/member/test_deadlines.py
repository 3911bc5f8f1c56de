"""What a State says that it waits for, and what becomes of one that says something useless."""

from __future__ import annotations

from typing import Any

import pytest

import raftsvc
from raftsvc.core.messages import MAX_TIME_MS, EntryKind, make_entry
from raftsvc.member.deadlines import Deadlines
from raftsvc.member.machine import Machine
from raftsvc.state import BaseState, WaitingState


class Clockwork(BaseState):
    """Waits for what it is told to wait for."""

    def __init__(self, *answers: Any) -> None:
        super().__init__()
        self.answers = list(answers)
        self.told: list[tuple[int, int]] = []

    def apply(self, data: bytes, index: int) -> bool:
        raise AssertionError("the other is called")

    def apply_at(self, data: bytes, index: int, time_ms: int) -> bool:
        return True

    def pass_time(self, index: int, time_ms: int) -> None:
        self.told.append((index, time_ms))

    def next_deadline(self) -> Any:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def snapshot(self) -> tuple[bytes, int]:
        return b"", self.applied_index()

    def restore_snapshot(self, data: bytes, index: int) -> None:
        pass


class Fixture:
    def __init__(self, *answers: Any) -> None:
        self.state = Clockwork(*answers)
        assert isinstance(self.state, WaitingState)
        self.machine = Machine(self.state)
        self.deadlines = Deadlines(self.machine)
        self.troubles: list[str] = []

    def ask(self, pulse_ms: int | None = None) -> int | None:
        if pulse_ms is not None:
            self.machine.apply([make_entry(self.machine.applied_index + 1, 1, EntryKind.EMPTY, b"", pulse_ms)], [])
        self.deadlines.ask()
        trouble = self.deadlines.take_trouble()
        if trouble is not None:
            self.troubles.append(trouble)
        assert self.deadlines.take_trouble() is None, "once"
        return self.deadlines.next_ms


def test_what_it_says_is_what_is_waited_for() -> None:
    waits = Fixture(50, 70, None, 90, 2**60)
    assert [waits.ask() for _ in range(5)] == [50, 70, None, 90, MAX_TIME_MS]
    assert not waits.troubles


def test_a_state_is_told_the_time_by_every_entry_that_has_no_instruction() -> None:
    waits = Fixture(None)
    waits.ask(3)
    waits.ask(8)
    assert waits.state.told == [(1, 3), (2, 8)]
    assert waits.machine.applied_time_ms == 8


def test_a_deadline_that_time_does_not_move_is_reported_once_and_ignored_until_it_changes() -> None:
    waits = Fixture(50, 50, 50, 50, 50, 60, 50)
    assert waits.ask() == 50
    assert waits.ask(49) == 50, "not due yet"
    assert waits.ask(50) is None
    assert waits.ask(70) is None and waits.ask() is None
    assert len(waits.troubles) == 1 and "still returns 50" in waits.troubles[0]
    assert waits.ask() == 60
    assert waits.ask() == 50, "it changed, so it is believed once more"
    assert waits.ask(80) is None
    assert len(waits.troubles) == 2


def test_one_that_asks_for_time_now_again_and_again_is_told_it_as_long_as_something_moves() -> None:
    waits = Fixture(10, 20, 30, None)
    assert [waits.ask(20), waits.ask(30), waits.ask(40), waits.ask(50)] == [10, 20, 30, None]
    assert not waits.troubles


@pytest.mark.parametrize("nonsense", [1.5, -5, "soon", True, b"", RuntimeError("no"), KeyError(1)])
def test_what_is_no_time_is_reported_once_and_nothing_is_waited_for(nonsense: Any) -> None:
    waits = Fixture(nonsense, nonsense, 40, nonsense)
    assert waits.ask() is None and waits.ask(5) is None
    assert len(waits.troubles) == 1
    what = "raised" if isinstance(nonsense, Exception) else "returned"
    assert f"next_deadline() of the State {what} {nonsense!r}" in waits.troubles[0]
    assert waits.ask() == 40
    assert waits.ask() is None
    assert len(waits.troubles) == 2


def test_a_state_that_waits_for_nothing_is_not_asked() -> None:
    class Plain(BaseState):
        def apply(self, data: bytes, index: int) -> bool:
            return True

        def snapshot(self) -> tuple[bytes, int]:
            return b"", 0

        def restore_snapshot(self, data: bytes, index: int) -> None:
            pass

    deadlines = Deadlines(Machine(Plain()))
    deadlines.ask()
    assert deadlines.next_ms is None


@pytest.mark.parametrize("error", [ValueError("no"), raftsvc.Rejected("nor is this a refusal here")])
def test_what_is_raised_where_time_passes_stops_applying_before_that_entry(error: Exception) -> None:
    waits = Fixture(5)

    def pass_time(index: int, time_ms: int) -> None:
        raise error

    waits.ask(3)
    waits.state.pass_time = pass_time  # type: ignore[method-assign]
    with pytest.raises(type(error)):
        waits.ask(9)
    assert (waits.machine.applied_index, waits.machine.applied_time_ms) == (1, 3)
