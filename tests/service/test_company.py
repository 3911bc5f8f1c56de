"""Whom a member asks for all that members say: also those of whom it does not know yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest

from raftsvc import company
from raftsvc.transport import Network


@pytest.mark.parametrize(("commit_index", "is_asked"), [(11, True), (10, False)])
def test_who_came_since_is_asked_too_as_members_say_that_are_ahead(
    monkeypatch: pytest.MonkeyPatch, commit_index: int, is_asked: bool
) -> None:
    rounds: list[Mapping[int, str]] = []

    def ask(network: Network, addrs: Mapping[int, str], timeout: float) -> dict[str, object]:
        rounds.append(addrs)
        listed = {"1": {"addr": "n1:1"}, "4": {"addr": "n4:1"}, "x": {}, "9" * 5000: {}, "5": None}
        told: dict[int, dict[str, Any]] = {
            2: {"status": {"commit_index": commit_index, "members": listed}},
            3: {"why": "unreached"},
            4: {"status": {"commit_index": 11, "members": {"6": {"addr": "n6:1"}}}},
        }
        return {str(number): told[number] for number in addrs}

    monkeypatch.setattr(company, "ask_members", ask)
    addrs = {1: "n1:1", 2: "n2:1", 3: "n3:1"}
    found = company.ask_cluster(cast(Network, None), 1, addrs, 10, 5.0)
    assert rounds == [{2: "n2:1", 3: "n3:1"}, {4: "n4:1"}][: 2 if is_asked else 1]
    assert sorted(found) == (["2", "3", "4"] if is_asked else ["2", "3"])
