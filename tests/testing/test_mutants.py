"""The table of deliberate bugs fits the code, and the simulator finds one of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.core.scene import check
from tests.effort import turn_of
from tests.mutants import MUTANTS, Mutant, catch, failures_without_a_bug, sources_of

# One of each file: what a copy lacks all tests of the file lack.
TESTS = sorted({mutant.test.partition("::")[0]: mutant.test for mutant in MUTANTS if mutant.test}.values())
AT_ONCE = 8
FOUND_BY_SCENES = [mutant for mutant in MUTANTS if mutant.scene][turn_of(6)]
FOUND_BY_TESTS = [mutant for mutant in MUTANTS if mutant.test][turn_of(16)]
"""`make mutants` plants all."""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_bug_can_still_be_planted(mutant: Mutant) -> None:
    for file, text in sources_of(mutant).items():
        compile(text, file, "exec")


def test_the_page_has_them_all_in_a_row_each_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs" / "correctness.md").read_text()
    _, _, table = page.partition("| bug |")
    rows = re.findall(r"^\| ([^|]*?) \|", table.partition("\n\n")[0], re.MULTILINE)
    assert sorted(row.rstrip(" †") for row in rows if row != "---") == sorted(mutant.name for mutant in MUTANTS)


@pytest.mark.pure  # it is planted into the sources alone
@pytest.mark.parametrize("mutant", FOUND_BY_SCENES, ids=lambda mutant: mutant.name)
def test_a_bug_that_is_seldom_seen_is_found_by_a_scene(mutant: Mutant) -> None:
    assert check(mutant.scene) == ""
    assert catch(mutant, 0) is not None


@pytest.mark.pure
@pytest.mark.parametrize("first", range(0, len(TESTS), AT_ONCE)[turn_of(5)])
def test_no_test_finds_a_bug_where_there_is_none(first: int) -> None:
    assert failures_without_a_bug(TESTS[first : first + AT_ONCE]) == ""


@pytest.mark.pure  # it is planted into the sources alone
@pytest.mark.parametrize("mutant", FOUND_BY_TESTS, ids=lambda mutant: mutant.name)
def test_a_bug_that_is_seldom_seen_is_found_by_a_test(mutant: Mutant) -> None:
    assert catch(mutant, 0) is not None


def test_a_bug_is_found() -> None:
    mutant = next(m for m in MUTANTS if m.name == "commit by half of the voters")
    caught = catch(mutant, 300)
    assert caught is not None
    assert "which only 1 voters have on disk" in caught[1]
