"""Leases and claims in simulated clusters under all faults; see `tests.testing.holding`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from raftsvc import kv
from raftsvc.kv import holds
from raftsvc.kv.content import Content
from raftsvc.kv.events import Happened
from raftsvc.kv.history import Cursor, History
from raftsvc.testing import Faults, SimulationFailed, simulate
from tests.testing.holding import HoldingWorkload

SEEDS = (18_000, 18_003, 18_006, 18_008, 18_009, 18_010)


def test_what_is_held_is_the_same_everywhere_under_all_faults() -> None:
    grants, counts = 0, Counter[str]()
    for seed in SEEDS:
        workload = HoldingWorkload()
        simulate(seed, workload)
        grants += len(workload.grants.owners)
        counts.update(workload.grants.told.counts)
        counts.update(event.kind for unit in workload.grants.told.units.values() for event in unit)
    assert grants > 20, "it would prove nothing"
    assert min(counts[what] for what in ("resumed", "compacted", "compared", "set", "delete", "expire")) > 10


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


def test_it_is_seen_where_who_came_later_is_granted_it_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def last(self: holds._Name, item_count: int) -> holds.Claim | None:
        claim = next(reversed(self.waiting.values()), None)
        return claim if claim is not None and self.can_serve(claim.units, item_count, len(self.waiting)) else None

    monkeypatch.setattr(holds._Name, "next", last)
    with pytest.raises(SimulationFailed, match="who came after one who waits"):
        for seed in SEEDS:
            simulate(seed, HoldingWorkload())


def break_told(change: Callable[[Happened], Happened]) -> Callable[..., tuple[Happened, int]]:
    """What is told to who watches, after `change`."""
    advance = kv.KeyValueState.advance

    def told(self: kv.KeyValueState, cursor: Cursor, after: int, cut: int = 0) -> tuple[Happened, int]:
        units, last = advance(self, cursor, after, cut)
        return change(units), last

    return told


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (lambda units: units[1:] if len(units) > 2 else units, "watch: who was told all|watch: Event"),
        (lambda units: sorted(units, key=lambda unit: -unit[0]), "watch: "),
        (lambda units: [(index, events[:1]) for index, events in units], "watch: who was told all|at another replica"),
        (lambda units: [*units[:1], *units], "watch: entry .* is told to one who has"),
    ],
    ids=["missing", "out of order", "torn", "twice"],
)
def test_it_is_seen_where_who_watches_is_told_something_else(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Happened], Happened], seen: str
) -> None:
    monkeypatch.setattr(kv.KeyValueState, "advance", break_told(change))
    with pytest.raises(SimulationFailed, match=seen):
        for seed in SEEDS:
            simulate(seed, HoldingWorkload())


def test_it_is_seen_where_who_fell_behind_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    some_after = History.some_after
    monkeypatch.setattr(History, "some_after", lambda self, index: some_after(self, max(index, self.floor)))
    with pytest.raises(SimulationFailed, match="watch: "):
        for seed in SEEDS:
            simulate(seed, HoldingWorkload())


@pytest.mark.pure
def test_it_is_seen_where_who_gives_up_ends_what_is_held_or_waits_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    withdraw = Content._withdraw
    monkeypatch.setattr(Content, "_withdraw", lambda self, *which: withdraw(self, *which[:3], 0))
    with pytest.raises(SimulationFailed, match="was withdrawn by attempt"):
        for seed in SEEDS:
            simulate(seed, HoldingWorkload())
