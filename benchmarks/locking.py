"""Locks, acquired and released again and again by callers that each have one of their own, or all want the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from benchmarks.counting import repeat
from benchmarks.systems.base import System, Web

TTL = 15
CALLERS = (1, 8, 64)


class Locking(Protocol):
    """What a back end offers."""

    def lock(self, name: str) -> AbstractContextManager[object]:
        """A lock of the cluster, of TTL seconds, acquired as it is entered, and released at its end."""


def cycles(backend: Locking, threads: int, is_contended: bool, seconds: float) -> dict[str, Any]:
    """Have that many threads acquire and release, each a lock of its own, or all the same."""
    holding: set[int] = set()
    broken: list[set[int]] = []

    def hold(number: int) -> None:
        with backend.lock("lock" if is_contended else f"lock-{number}"):
            holding.add(number)
            if is_contended and holding != {number}:
                broken.append(set(holding))
            holding.discard(number)

    _, seen = repeat(hold, threads, seconds)
    return {"broken": len(broken), **seen}


class LockingBackend:
    """Has the runner call that; to be inherited by what is Locking."""

    def cycles(self: Locking, threads: int, is_contended: bool, seconds: float) -> dict[str, Any]:
        return cycles(self, threads, is_contended, seconds)


def rows(
    systems: Mapping[str, Callable[[], System]], rounds: int, seconds: float, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Medians of rounds that take the systems in turn, each at its leader."""
    seen: dict[tuple[bool, int, str], list[dict[str, Any]]] = {}
    for number in range(rounds):
        for name, make in systems.items():
            with make() as system:
                leader = system.leader()
                for is_contended in (False, True):
                    for threads in CALLERS[is_contended:]:
                        one = _measure(leader, threads, is_contended, seconds)
                        seen.setdefault((is_contended, threads, name), []).append(one)
                        what = "one lock" if is_contended else "a lock each"
                        say(f"locking: round {number + 1}  {name:12} {threads} callers, {what}: {one}")
    return [
        {
            "callers": threads,
            "of": "one lock" if is_contended else "a lock each",
            "system": name,
            "a second": median(one["per_second"] for one in found),
            "least": min(one["per_second"] for one in found),
            "most": max(one["per_second"] for one in found),
            "worst caller, of the best": median(one["least"] / max(one["most"], 1) for one in found),
            "held by two": sum(one["broken"] for one in found),
        }
        for is_contended in (False, True)
        for threads in CALLERS
        for name in systems
        if (found := seen.get((is_contended, threads, name)))
    ]


def _measure(leader: Web, threads: int, is_contended: bool, seconds: float) -> dict[str, Any]:
    seen: dict[str, Any] = leader.call("cycles", threads=threads, is_contended=is_contended, seconds=seconds)
    return seen


def make(kind: type[System], nodes: int, home: Path) -> Callable[[], System]:
    """Has a cluster of that kind made."""
    return lambda: kind(nodes, home)
