"""What whoever changes the members is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from raftsvc.errors import MembershipTimeoutError, ReadTimeoutError
from raftsvc.formation import Roster


class _NoMajority:
    """Calls of a node that no majority answers."""

    def exec(self, instruction: bytes, timeout: float) -> bool:
        raise AssertionError("nothing is proposed")

    def wait_read(self, timeout: float) -> None:
        raise ReadTimeoutError(f"no majority confirmed the read within {timeout:g} s")


def test_an_eviction_without_a_majority_ends_in_its_own_error() -> None:
    membership = SimpleNamespace(require_node=lambda: None)
    roster = Roster(cast(Any, membership), _NoMajority(), cast(Any, None), cast(Any, None))
    with pytest.raises(MembershipTimeoutError, match="nothing was changed") as refusal:
        roster.evict("a:1", 0.1)
    assert isinstance(refusal.value.__cause__, ReadTimeoutError)
