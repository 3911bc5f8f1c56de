"""The page for operators names every error and every condition, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from raftsvc import errors
from raftsvc.member.health import Condition

PAGE = (Path(__file__).parent.parent / "docs" / "operations.md").read_text()
ERRORS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.RaftError)}


def test_every_error_is_explained() -> None:
    missing = {name for name in ERRORS if f"`{name}`" not in PAGE}
    assert not missing, "say in docs/operations.md what it means and what to do"


def test_every_condition_is_explained_in_order() -> None:
    table = PAGE.partition("## Conditions")[2].partition("## Errors")[0]
    rows = re.findall(r"^\| `([a-z-]+)` \|", table, flags=re.MULTILINE)
    assert rows == [c.label for c in Condition if c is not Condition.STOPPED]


def test_no_error_is_named_that_does_not_exist() -> None:
    named = set(re.findall(r"`(\w+Error|NotApplied|OutcomeUnknown|Rejected)`", PAGE))
    assert named <= ERRORS
