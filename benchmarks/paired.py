"""What pairs of turns say of a new version and an old one: ratios, how sure they are, and a verdict.

In a round the versions take turns, one right after the other: whatever else the
machine does changes both, and hardly their ratio.  Which goes first alternates
(new old, old new, ...), so that a machine that becomes slower favours neither.
What a round measured of one version and of the other is a pair.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

NEW, OLD = "new", "old"

RESAMPLES = 10_000
COVERAGE = 0.95
LEAST_RATE = 0.95
MOST_COST = 1.03
"""What a verdict allows the median ratio to be, if the new version is to be no worse."""
LEAST_PAIRS = 6
"""The median is between the least and the greatest of fewer ratios in less than COVERAGE of all cases."""
NEGLIGIBLE = 0.005
"""So little of something for each operation is not compared, such as the fsyncs of a read."""

RATE, COST, NEITHER = "rate", "cost", "neither"


@dataclass(frozen=True)
class Figure:
    """A column of a row, and how a verdict reads it: more of a rate is better, less of a cost."""

    name: str
    title: str
    kind: str = NEITHER


FIGURES = (
    Figure("ops_per_second", "operations/s", RATE),
    Figure("cpu_ms_per_op", "CPU ms/op", COST),
    Figure("syscalls_per_op", "system calls/op", COST),
    Figure("file_calls_per_op", "read, write calls/op", COST),
    Figure("wakeups_per_op", "wake-ups/op", COST),
    Figure("involuntary_per_op", "... involuntary"),
    Figure("fsyncs_per_op", "fsyncs/op"),
    Figure("p50_ms", "p50 ms"),
    Figure("p99_ms", "p99 ms"),
)


@dataclass(frozen=True)
class Estimate:
    """The median of paired ratios, and the interval in which it would mostly be if all was run again."""

    centre: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.centre:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Comparison:
    """One figure of one case: the medians of both versions, the ratio new / old of each pair, and what these say."""

    figure: Figure
    new: float
    old: float
    ratios: list[float]
    estimate: Estimate


def order(number: int) -> tuple[str, str]:
    """Who goes first and second in the pair of turns with this number."""
    return (NEW, OLD) if number % 2 else (OLD, NEW)


def bootstrap(ratios: Sequence[float], resamples: int = RESAMPLES, seed: int = 1) -> Estimate:
    """The median, and the percentiles of the medians of samples drawn from `ratios` with replacement."""
    draw = random.Random(seed)
    medians = sorted(median(draw.choices(ratios, k=len(ratios))) for _ in range(resamples))
    outside = int(resamples * (1 - COVERAGE) / 2)
    return Estimate(median(ratios), medians[outside], medians[-1 - outside])


def compare(rows: Sequence[dict[str, Any]]) -> list[Comparison]:
    """Every figure of one case of one system, from the rows of all rounds that have one of each version."""
    rounds: dict[int, dict[str, dict[str, Any]]] = {}
    for row in rows:
        rounds.setdefault(row["round"], {})[row["version"]] = row
    pairs = [(of[NEW], of[OLD]) for of in rounds.values() if len(of) == 2]
    return [found for figure in _figures(rows) if (found := _compare_figure(figure, pairs))]


def _figures(rows: Sequence[dict[str, Any]]) -> list[Figure]:
    """All but the calls of read and write where all system calls were counted."""
    counted = any(row["syscalls_per_op"] is not None for row in rows)
    return [figure for figure in FIGURES if figure.name != "file_calls_per_op" or not counted]


def _compare_figure(figure: Figure, pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> Comparison | None:
    """None if the versions have nearly nothing of it."""
    values = [(new[figure.name], old[figure.name]) for new, old in pairs]
    values = [(new, old) for new, old in values if new is not None and old]
    middle_new, middle_old = (median([value[i] for value in values] or [0.0]) for i in (0, 1))
    if max(middle_new, middle_old) < NEGLIGIBLE:
        return None
    ratios = [new / old for new, old in values]
    return Comparison(figure, middle_new, middle_old, ratios, bootstrap(ratios))


def verdict(comparisons: Sequence[Comparison]) -> str:
    """Whether the new version is worse, and why.

    no worse:   operations a second have their centre at LEAST_RATE or above and their interval
                reaches 1; of each cost the centre is at most MOST_COST.
    WORSE:      one of these does not hold, and its interval leaves no doubt that something was lost.
    UNCLEAR:    one does not hold, but its interval reaches 1; or there are too few pairs for an interval.
    """
    pairs = min((len(comparison.ratios) for comparison in comparisons), default=0)
    if pairs < LEAST_PAIRS:
        return f"UNCLEAR: {pairs} pairs are too few for an interval, which takes {LEAST_PAIRS}"
    complaints = [found for comparison in comparisons if (found := _complaint(comparison))]
    lost = [text for text, is_certain in complaints if is_certain]
    if lost:
        return f"WORSE: {'; '.join(lost)}"
    if complaints:
        return f"UNCLEAR, take more rounds: {'; '.join(text for text, _ in complaints)}"
    low = min((found.estimate.low for found in comparisons if found.figure.kind == RATE), default=1.0)
    if low < LEAST_RATE:
        return f"no worse, but {100 * (1 - low):.0f} % fewer operations a second are not excluded"
    return "no worse"


def _complaint(comparison: Comparison) -> tuple[str, bool] | None:
    """What a verdict minds in one figure, and whether the interval is on the bad side of 1 altogether."""
    estimate = comparison.estimate
    what = f"{comparison.figure.title} {estimate}"
    if comparison.figure.kind == RATE:
        if estimate.high < 1.0:
            return f"{what}: the interval does not reach 1", True
        if estimate.centre < LEAST_RATE:
            return f"{what}: the centre is below {LEAST_RATE}", False
    elif comparison.figure.kind == COST and estimate.centre > MOST_COST:
        return f"{what}: the centre is above {MOST_COST}", estimate.low > 1.0
    return None
