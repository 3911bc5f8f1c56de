"""Queues, keys with leases and limits in simulated clusters under all faults; see `tests.testing.recipes`."""

from __future__ import annotations

from typing import Any

import pytest

from raftsvc.kv.content import Content
from raftsvc.kv.items import Items
from raftsvc.kv.limits import Limits
from raftsvc.testing import SimulationFailed, simulate
from tests.testing.recipes import RecipesWorkload

SEED = 18_109
OTHER_SEEDS = (18_106, 18_108)


def test_what_recipes_promise_holds_on_all_replicas_under_all_faults() -> None:
    workload = RecipesWorkload()
    simulate(SEED, workload)
    course = workload.course
    done, handed_out = len(course.done), len(course.handed_out)
    verdicts = [was for seen in course.admitted.values() for _, was in seen.values()]
    allowed = sum(verdicts)
    refused = len(verdicts) - allowed
    assert min(done, handed_out - done, allowed, refused) > 5, "it would prove nothing"


def lose(self: Any, queue: str, item: int, index: int, is_failure: bool) -> str:
    self.remove(queue, item)
    return queue


@pytest.mark.pure  # compiled, they call each other and look for nothing
@pytest.mark.parametrize(
    ("cls", "name", "broken", "match"),
    [
        (Items, "give_back", lose, "queues: .* are lost"),
        (Content, "follow", lambda self, kind: self.holds.over.clear() or False, "leased: .* outlasts its lease"),
        (Limits, "admit", lambda *_: bytes([1]) + bytes(24), "limits: [45] of"),
    ],
)
def test_it_is_seen_where_one_of_them_is_broken(
    monkeypatch: pytest.MonkeyPatch, cls: type, name: str, broken: Any, match: str
) -> None:
    monkeypatch.setattr(cls, name, broken)
    with pytest.raises(SimulationFailed, match=match):
        for seed in OTHER_SEEDS:
            simulate(seed, RecipesWorkload())
