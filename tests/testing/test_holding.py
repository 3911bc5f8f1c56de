"""Leases and claims in simulated clusters under all faults; see `tests.testing.holding`."""

from __future__ import annotations

import pytest

from raftsvc.kv import holds
from raftsvc.kv.content import Content
from raftsvc.testing import Faults, SimulationFailed, simulate
from tests.testing.holding import HoldingWorkload

SEEDS = (18_000, 18_003, 18_006, 18_008, 18_009, 18_010)


def test_what_is_held_is_the_same_everywhere_under_all_faults() -> None:
    grants = 0
    for seed in SEEDS:
        workload = HoldingWorkload()
        simulate(seed, workload)
        grants += len(workload.grants.owners)
    assert grants > 20, "it would prove nothing"


def test_nodes_whose_state_has_no_versions_come_to_run_the_latest_library() -> None:
    upgrades = sum(
        simulate(seed, HoldingWorkload(), Faults(("code upgraded",))).faults["code upgraded"] for seed in range(4)
    )
    assert upgrades > 4


def test_it_is_seen_where_more_is_granted_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holds._Name, "next", lambda self, item_count: next(iter(self.waiting.values()), None))
    with pytest.raises(SimulationFailed, match="holds: more than"):
        for seed in SEEDS:
            simulate(seed, HoldingWorkload())


@pytest.mark.pure
def test_it_is_seen_where_who_gives_up_ends_what_is_held_or_waits_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    withdraw = Content._withdraw
    monkeypatch.setattr(Content, "_withdraw", lambda self, *which: withdraw(self, *which[:3], 0))
    with pytest.raises(SimulationFailed, match="was withdrawn by attempt"):
        for seed in SEEDS:
            simulate(seed, HoldingWorkload())
