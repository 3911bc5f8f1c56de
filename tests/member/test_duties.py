"""Who drives, who applies and who is woken: the rules as tables, and over every state there is."""

from __future__ import annotations

from itertools import product

import pytest

from raftsvc.member.handoff import Amount, Duties, Present, applies_little, duties, is_left_to_log_thread, may_apply

NOTHING, LITTLE, MORE, MUCH = Amount
IDLE = Present(False, NOTHING, False, False, False, False, False, True)
STATES = [Present(a, b, *rest) for a, b, *rest in product((False, True), Amount, *[(False, True)] * 6)]


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        # Nothing is to be done.
        ({}, Duties(False, False, False)),
        # What nobody writes is for the log thread.
        ({"has_writes": True}, Duties(True, False, False)),
        # What can be applied: a caller that waits if there is one, else the apply thread.
        ({"amount": LITTLE}, Duties(False, True, True)),
        ({"amount": MORE}, Duties(False, True, True)),
        # A backlog, or a State that is slow, holds up no caller.
        ({"amount": MUCH}, Duties(False, False, True)),
        ({"amount": LITTLE, "is_quick": False}, Duties(False, False, True)),
        # A snapshot comes first, and is for the apply thread.
        ({"is_snapshot_due": True}, Duties(False, False, True)),
        ({"is_snapshot_due": True, "amount": LITTLE}, Duties(False, False, True)),
        # Who applies goes on with what came since, and so does who was asked to: nobody else is woken.
        ({"amount": MUCH, "is_applying": True}, Duties(False, False, False)),
        ({"amount": LITTLE, "is_helper_asked": True, "has_writes": True}, Duties(True, False, False)),
        ({"is_snapshot_due": True, "is_applying": True}, Duties(False, False, False)),
        # A writer that is going to apply what is little is not forestalled, unless somebody waits here.
        ({"amount": LITTLE, "applies_later": True}, Duties(False, True, False)),
        ({"amount": LITTLE, "applies_later": True, "is_awaited": True}, Duties(False, True, True)),
        ({"amount": MORE, "applies_later": True}, Duties(False, True, True)),
    ],
    ids=str,
)
def test_whom_a_turn_wakes(now: dict[str, object], expected: Duties) -> None:
    assert duties(IDLE._replace(**now)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("now", STATES, ids=lambda p: "".join(str(int(x)) for x in p))
def test_in_every_state_each_piece_of_work_has_one_who_does_it(now: Present) -> None:
    woken = duties(now)
    assert woken.wakes_log == now.has_writes
    is_taken = now.is_applying or now.is_helper_asked
    is_left = now.applies_later and applies_little(now.amount, now.is_awaited)
    has_work = now.amount != NOTHING or now.is_snapshot_due
    assert woken.wakes_apply or is_taken or is_left or not has_work, "somebody applies"
    assert not (is_taken and (woken.asks_caller or woken.wakes_apply)), "and nobody else"
    assert not (woken.asks_caller and now.is_snapshot_due), "no caller takes a snapshot"
    assert not woken.asks_caller or may_apply(now.amount, is_taken, now.is_quick), "a caller does what is quick"
    assert has_work or not (woken.asks_caller or woken.wakes_apply), "nobody is woken for nothing"


@pytest.mark.parametrize("amount", Amount)
@pytest.mark.parametrize("is_taken", [False, True])
@pytest.mark.parametrize("is_quick", [False, True])
def test_a_caller_applies_what_is_quick_and_nobody_else_does(amount: Amount, is_taken: bool, is_quick: bool) -> None:
    assert may_apply(amount, is_taken, is_quick) == (amount in (LITTLE, MORE) and is_quick and not is_taken)


@pytest.mark.parametrize(
    ("is_over", "is_log_thread_due", "is_writing", "expected"),
    [
        (False, False, False, False),
        (False, False, True, False),
        # Two that drive would be in each other's way.
        (False, True, False, True),
        # But the log thread may be in that write.
        (False, True, True, False),
        # When it is over there is no log thread.
        (True, True, False, False),
        (True, False, False, False),
    ],
)
def test_what_is_left_to_the_log_thread(
    is_over: bool, is_log_thread_due: bool, is_writing: bool, expected: bool
) -> None:
    assert is_left_to_log_thread(is_over, is_log_thread_due, is_writing) is expected
