"""Jobs in simulated clusters under all faults; see `tests.testing.jobs`."""

from __future__ import annotations

import pytest

from raftsvc.kv import runs
from raftsvc.testing import SimulationFailed, simulate
from tests.testing.jobs import JobsWorkload

SEEDS = (30_001, 30_004, 30_005)


def test_each_slot_is_claimed_once_and_not_ahead_of_its_time_under_all_faults() -> None:
    claims = deaths = 0
    for seed in SEEDS:
        workload = JobsWorkload()
        simulate(seed, workload)
        claims += sum(map(len, workload.ledger.claims.values()))
        deaths += len(workload.ledger.died)
    assert claims > 30, "it would prove nothing"
    assert deaths > 3


def test_it_is_seen_where_a_slot_is_claimed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_is_to_be_run_again", lambda *arguments: True)
    with pytest.raises(SimulationFailed, match=r"jobs: a slot of .* was claimed twice"):
        for seed in SEEDS:
            simulate(seed, JobsWorkload())


def test_it_is_seen_where_a_slot_is_claimed_ahead_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "AHEAD_MS", 10**9)
    with pytest.raises(SimulationFailed, match="jobs: a slot was claimed far ahead"):
        for seed in SEEDS:
            simulate(seed, JobsWorkload())
