"""The simulator's connected clients: they are there, and what they are there for happens."""

from __future__ import annotations

from collections import Counter

import pytest

from raftsvc.testing import Faults, RegisterWorkload
from raftsvc.testing.outside import count_of
from raftsvc.testing.runner import main
from raftsvc.testing.schedule import SECOND
from raftsvc.testing.simulation import Simulation, simulate


def test_sessions_are_dropped_that_are_in_use_and_relays_end() -> None:
    counts: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    for seed in (0, 1):
        report = simulate(seed, faults=Faults(seconds=8), attached=1, connected=2)
        counts += report.counts
        faults += report.faults
        assert {str(operation.client)[0] for operation in report.history} >= {"p"}, "what they saw is judged"
    assert counts["by connected clients"] > 100
    assert counts["sessions dropped"] > 2
    assert faults["connected client forks"]
    assert faults["relay of a client ends"]


def test_without_trouble_each_of_their_calls_is_done() -> None:
    simulation = Simulation(1, RegisterWorkload(), Faults(kinds=()), keep_trace=False, connected=2)
    simulation.world.is_healed = True
    simulation.operator.found(3)
    simulation.outside.start()
    assert simulation.run_until(simulation.now + 30 * SECOND, lambda: simulation.outside.is_served)
    counts = simulation.report.counts
    assert counts["by connected clients"] == counts["done"] + counts["rejected"] > 0
    assert not counts["sessions dropped"]


def test_some_seeds_have_some_and_the_same_each_time() -> None:
    having = [seed for seed in range(100) if count_of(seed)]
    assert 10 <= len(having) <= 30
    with_some, without = having[0], min(set(range(100)) - set(having))
    for seed, is_there in ((with_some, True), (without, False)):
        report = simulate(seed, faults=Faults(seconds=2))
        assert (report.counts["by connected clients"] > 0) is is_there
        again = simulate(seed, faults=Faults(seconds=2))
        assert (again.steps, again.counts, again.history) == (report.steps, report.counts, report.history)


def test_a_seed_is_replayed_with_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "1", "--connected", "1", "--jobs", "1", "--seconds", "1"]) == 0
    assert main(["--replay", "0", "--connected", "1", "--seconds", "1"]) == 0
    assert "p1   starts, outside" in capsys.readouterr().out
