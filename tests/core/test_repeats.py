"""Which requests came before."""

from __future__ import annotations

from raftsvc.core.repeats import REMEMBERED, Repeats, Standing


def test_a_request_is_new_once() -> None:
    repeats = Repeats()
    assert repeats.note(2, 7) is Standing.NEW
    assert repeats.note(3, 7) is Standing.NEW, "of another member"
    assert repeats.note(2, 7) is Standing.REPEATED


def test_what_is_older_than_all_that_is_remembered_may_have_come_before() -> None:
    repeats = Repeats()
    for context in range(10, 10 + 2 * REMEMBERED):
        assert repeats.note(2, context) is Standing.NEW
    assert len(repeats) == REMEMBERED
    assert repeats.note(2, 10 + 2 * REMEMBERED - 1) is Standing.REPEATED
    assert repeats.note(2, 10) is Standing.FORGOTTEN
    assert repeats.note(2, 9) is Standing.FORGOTTEN, "perhaps it never came; that is not known"


def test_a_life_that_counts_from_elsewhere_is_not_taken_for_old() -> None:
    repeats = Repeats()
    for context in range(2**61, 2**61 + 2 * REMEMBERED):
        repeats.note(2, context)
    assert repeats.note(2, 2**60) is Standing.NEW


def test_nothing_is_remembered_of_those_who_left() -> None:
    repeats = Repeats()
    for member in (2, 3):
        for context in range(2 * REMEMBERED):
            repeats.note(member, context)
    repeats.forget_all_but({3})
    assert len(repeats) == REMEMBERED
    assert repeats.note(2, 0) is Standing.NEW
