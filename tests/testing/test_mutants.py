"""The table of deliberate bugs fits the code, and the simulator finds one of them."""

from __future__ import annotations

import pytest

from tests.mutants import MUTANTS, Mutant, seeds_to_catch, sources_of


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_bug_can_still_be_planted(mutant: Mutant) -> None:
    for file, text in sources_of(mutant).items():
        compile(text, file, "exec")


def test_a_bug_is_found() -> None:
    mutant = next(m for m in MUTANTS if m.name == "skip the vote record")
    caught = seeds_to_catch(mutant, 300)
    assert caught is not None
    assert "votes" in caught[1] or "voted" in caught[1] or "lead" in caught[1]
