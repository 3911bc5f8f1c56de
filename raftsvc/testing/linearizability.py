"""Whether a history of operations, as their callers saw them, is linearizable.

    history = [
        Operation("ann", 0.0, 0.3, ("set", "x", 1), None),
        Operation("bob", 0.1, math.inf, ("set", "x", 2), None),  # timed out: may happen, or not
        Operation("ann", 0.4, 0.5, ("get", "x"), 1),
    ]
    verdict = check(history, KeyValueModel(), timeout=60)
    assert verdict, str(verdict)

A history is linearizable if every operation can be given one instant between its
call and its return so that, taken in the order of these instants, all answers are
those that the model gives.  One whose outcome is unknown may take effect at any
time after its call, or never.

How an order is sought is told in `raftsvc.testing.search`.
This module judges histories only: it records none and knows nothing of raftsvc.
"""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from raftsvc.testing.models import (
    ANY,
    IMPOSSIBLE,
    SAME,
    UNSPECIFIED,
    Effect,
    Except,
    KeyValueModel,
    Model,
    ModelWithEffects,
    Operation,
    Plus,
    by_return,
    effect_of,
    is_state,
)
from raftsvc.testing.search import OutOfTime, Search

__all__ = [
    "ANY",
    "IMPOSSIBLE",
    "SAME",
    "UNSPECIFIED",
    "Effect",
    "Except",
    "KeyValueModel",
    "Model",
    "ModelWithEffects",
    "Operation",
    "Plus",
    "Verdict",
    "check",
]

_REPORTED_BEFORE = 8  # operations shown before the one that does not fit
_REPORTED_BESIDE = 24


@dataclass(frozen=True)
class Verdict:
    """What `check` found.  True in a condition only if the history is linearizable.

    is_linearizable: None if time ran out first.
    key:      where it is not linearizable, or where time ran out.
    prefix:   for a violation, an order of as many operations as can be ordered: all that return before the one
              that cannot be placed, and those concurrent ones whose effect was needed.
    state:    what this order leaves.
    unplaced: the operation that cannot be placed, then those concurrent with it that were not placed either,
              called last first.  Empty if time ran out while it was sought.
    source:   where in `prefix` the state was last that the first of `unplaced` requires; None if nowhere.

    `str()` of it is a report for humans.
    """

    is_linearizable: bool | None
    key: Hashable = None
    prefix: tuple[Operation, ...] = ()
    state: Hashable = None
    unplaced: tuple[Operation, ...] = ()
    source: int | None = None

    def __bool__(self) -> bool:
        return self.is_linearizable is True

    def __str__(self) -> str:
        if self.is_linearizable:
            return "linearizable"
        if self.is_linearizable is None:
            return f"undecided: time ran out at key {self.key!r}"
        lines = [f"not linearizable: key {self.key!r}"]
        if not self.unplaced:
            return f"{lines[0]}; time ran out before it was known which operation cannot be placed"
        start = max(0, len(self.prefix) - _REPORTED_BEFORE)
        if self.prefix:
            lines.append(f"  {len(self.prefix)} operations can be ordered, for instance so:")
            if self.source is not None and self.source < start:
                # Who left the state that is now required, and who changed it.
                lines += self._omitted(self.source)
                lines += [f"    {operation}" for operation in self.prefix[self.source : min(self.source + 2, start)]]
                lines += self._omitted(start - self.source - 2)
            else:
                lines += self._omitted(start)
            lines += [f"    {operation}" for operation in self.prefix[start:]]
            lines.append(f"  The state is then {self.state!r}.  In no order is there a place for")
        else:
            lines.append(f"  The state is {self.state!r} at first.  There is no place for")
        lines.append(f"    {self.unplaced[0]}")
        beside = self.unplaced[1:]
        if beside:
            lines.append("  also if any of these, which are concurrent, went before it:")
            lines += [f"    {operation}" for operation in beside[:_REPORTED_BESIDE]]
            lines += self._omitted(len(beside) - _REPORTED_BESIDE)
        return "\n".join(lines)

    @staticmethod
    def _omitted(count: int) -> list[str]:
        return [f"    ... {count} more"] if count > 0 else []


def check(history: Iterable[Operation], model: Model, timeout: float | None = None) -> Verdict:
    """Decide whether `history` is linearizable.

    history: in any order.  Operations that certainly had no effect are left out.
    model:   what operations do, for instance `KeyValueModel()`.
    timeout: seconds to search in all; None is as long as it takes.

    Deterministic, except for where time runs out.  Raises ValueError for an operation that returns before
    it is called.
    """
    parts: dict[Hashable, list[Operation]] = {}
    for operation in history:
        if not -math.inf < operation.called <= operation.returned:
            raise ValueError(f"an operation returns after it is called, this one does not: {operation}")
        parts.setdefault(model.key(operation.input), []).append(operation)
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    undecided: Verdict | None = None
    # Short ones first: each may take an equal share of the time that the ones before it left.
    for done, (key, operations) in enumerate(sorted(parts.items(), key=lambda part: len(part[1]))):
        now = time.monotonic()
        share = deadline if timeout is None else now + max(0.0, deadline - now) / (len(parts) - done)
        search = Search(key, operations, model)
        try:
            if not search.run(share):
                return _explain(key, operations, model, deadline, search)
        except OutOfTime:
            if undecided is None:
                undecided = Verdict(None, key)
    return Verdict(True) if undecided is None else undecided


def _explain(key: Hashable, operations: list[Operation], model: Model, deadline: float, failed: Search) -> Verdict:
    """Find the shortest part of the history, from its beginning, that is not linearizable.

    What is linearizable is so up to any of its instants, hence what returns last in
    that part is what cannot be placed.
    """
    known = by_return(operations)
    good, bad = failed.most_returns, len(known)  # numbers of returns up to which there is an order, and up to which not
    # Most often it is one that needs a state which the search, where it came farthest, could not leave.
    suspects = [n for n in range(good, bad) if effect_of(model, known[n], True).requires in failed.blocked]
    longest = None
    stride = 1
    try:
        while longest is None or bad - good > 1:
            inside = [number + 1 for number in suspects if good < number + 1 < bad]
            if inside:
                middle = inside[len(inside) // 2]
            elif bad - 1 in suspects:
                middle = bad - 1
            else:
                middle = good + min(stride, (bad - good) // 2)
                stride *= 2
            search = Search(key, operations, model, middle)
            if search.run(deadline):
                good, longest = middle, search
            else:
                assert middle > good, "an order of these was found"
                bad = middle
    except OutOfTime:
        return Verdict(False, key)
    culprit, due = known[good], effect_of(model, known[good], True)
    prefix = longest.placed()
    state, source = model.initial(key), None
    for position, item in enumerate(prefix):
        state = model.step(state, item.operation.input, item.operation.output, item.is_known)
        if is_state(due.requires) and state == due.requires:
            source = position
    placed = {id(item.operation) for item in prefix} | {id(culprit)}
    beside = [
        operation
        for operation in sorted(operations, key=lambda op: -op.called)
        if operation.called <= culprit.returned <= operation.returned
        and id(operation) not in placed
        and effect_of(model, operation, operation.is_known).leaves is not SAME
    ]
    return Verdict(False, key, tuple(item.operation for item in prefix), state, (culprit, *beside), source)
