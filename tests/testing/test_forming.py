"""Clusters that found themselves, simulated: whatever goes wrong meanwhile, there is one, and all belong to it."""

from __future__ import annotations

from random import Random

import pytest

from raftsvc.testing import Faults, RegisterWorkload, simulate
from raftsvc.testing.simulation import FORMING_SHARE, Simulation
from tests.effort import EFFORT

SEEDS = 300


def form(seed: int) -> Simulation:
    """The formation of that seed."""
    simulation = Simulation(seed, RegisterWorkload(), Faults(), keep_trace=False)
    random = Random(f"forming {seed}")
    simulation.form(random, random.choice((1, 2, 3, 3, 3, 4, 5)))
    return simulation


def test_some_formations_end_well() -> None:
    """Enough for most bugs that are planted."""
    for seed in range(100):
        form(seed)


def test_one_cluster_is_founded_whatever_happens_meanwhile() -> None:
    for seed in range(SEEDS * EFFORT):
        try:
            form(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_a_cluster_that_founded_itself_lives_like_any_other() -> None:
    formed = [seed for seed in range(60) if Random(f"formation {seed}").random() < FORMING_SHARE]
    for seed in formed[:5]:
        assert simulate(seed).counts["formed by themselves"] == 1


def test_a_formation_is_the_same_history_each_time() -> None:
    assert [form(7).world.schedule.steps for _ in range(2)] == [form(7).world.schedule.steps] * 2


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_without_faults_it_takes_seconds(size: int) -> None:
    for seed in range(10):
        simulation = Simulation(seed, RegisterWorkload(), Faults(), keep_trace=False)
        random = Random(f"calm {seed}")
        random.sample = lambda population, k, *, counts=None: []  # type: ignore[method-assign]
        simulation.form(random, size)
        assert simulation.now < 20_000_000
