"""The table of deliberate bugs fits the code, and the simulator finds one of them."""

from __future__ import annotations

from zlib import crc32

import pytest

from tests.core.scene import check
from tests.effort import EFFORT
from tests.mutants import MUTANTS, PACKAGE, Mutant, catch, failures_without_a_bug, sources_of

# One of each file: what a copy lacks all tests of the file lack.
TESTS = sorted({mutant.test.partition("::")[0]: mutant.test for mutant in MUTANTS if mutant.test}.values())
AT_ONCE = 8
SHARES = 1 if EFFORT > 1 else 3
"""Of those that a test finds one share is planted, another with each change of the code; `make mutants` plants all."""
SHARE = crc32(b"".join(path.read_bytes() for path in sorted(PACKAGE.rglob("*.py")))) % SHARES


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_bug_can_still_be_planted(mutant: Mutant) -> None:
    for file, text in sources_of(mutant).items():
        compile(text, file, "exec")


@pytest.mark.pure  # it is planted into the sources alone
@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.scene], ids=lambda mutant: mutant.name)
def test_a_bug_that_is_seldom_seen_is_found_by_a_scene(mutant: Mutant) -> None:
    assert check(mutant.scene) == ""
    assert catch(mutant, 0) is not None


@pytest.mark.pure
@pytest.mark.parametrize("first", range(0, len(TESTS), AT_ONCE))
def test_no_test_finds_a_bug_where_there_is_none(first: int) -> None:
    assert failures_without_a_bug(TESTS[first : first + AT_ONCE]) == ""


@pytest.mark.pure  # it is planted into the sources alone
@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.test][SHARE::SHARES], ids=lambda mutant: mutant.name)
def test_a_bug_that_is_seldom_seen_is_found_by_a_test(mutant: Mutant) -> None:
    assert catch(mutant, 0) is not None


def test_a_bug_is_found() -> None:
    mutant = next(m for m in MUTANTS if m.name == "commit by half of the voters")
    caught = catch(mutant, 300)
    assert caught is not None
    assert "which only 1 voters have on disk" in caught[1]
