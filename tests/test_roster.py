"""What whoever changes the members is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from raftsvc import formation
from raftsvc.errors import MembershipTimeoutError, NotListeningError, ReadTimeoutError
from raftsvc.formation import Membership, Roster
from raftsvc.member.node import NodeOptions


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
        roster.evict("a:1", 0.1, replace=False)
    assert isinstance(refusal.value.__cause__, ReadTimeoutError)


@pytest.mark.parametrize("later", [None, NotListeningError("the second")])
def test_a_node_that_starts_just_as_its_listener_says_something_else_believes_what_was_said_last(
    monkeypatch: pytest.MonkeyPatch, later: NotListeningError | None
) -> None:
    known: list[NotListeningError | None] = []
    first = NotListeningError("the first")

    class Starting:
        """A node that is told of the first trouble a moment after that is out of date."""

        node_id, cluster_id = 1, 1

        def __init__(self, *args: object) -> None:
            self.vitals = self

        def start(self) -> None: ...

        def note_listening(self, trouble: NotListeningError | None) -> None:
            if trouble is first and not known:
                known.append(trouble)
                membership.note_listening(later)
            known.append(trouble)

    monkeypatch.setattr(formation, "Node", Starting)
    store = cast(
        Any,
        SimpleNamespace(
            is_initialized=True,
            unload=lambda: None,
            founded=SimpleNamespace(is_silent=False, entry=lambda: b"", path=""),
        ),
    )
    membership = Membership("a:1", store, cast(Any, None), cast(Any, None), NodeOptions())
    membership.note_listening(first)
    membership.resume()
    assert known[-1] is later
