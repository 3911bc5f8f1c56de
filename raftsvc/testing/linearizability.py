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

The search is that of Wing and Gong (1993): take an operation that no other one
precedes, apply it, go on with the rest, and step back where nothing fits.  What
failed once, as a set of operations taken and the state they left, is not tried
again (Lowe, 2017).  Keys are searched apart (Horn and Kroening, 2015).

Deciding this is NP-complete, so the search is kept narrow by rules that lose no
solution.  Code refers to them by number.

1. A read that fits the state is taken at once: whatever comes later, it fits here.
2. Of operations that do the same thing, the one that must be done first goes first.
3. A state is not left while a read still needs it and nothing can bring it back.
4. If the operation that must be done next needs another state, then something that
   may go before it has to lead there.
5. An operation of unknown outcome is taken only if the one after it profits.
   Having taken fewer of them is never worse.
6. If only one operation can have left a state that was seen, then it took effect, and
   before it was seen.  If nobody can tell that it took effect, it did not.
7. If the state is overwritten next, then first by a write whose readers, if any, can all
   follow it at once.  It is in nobody's way there, unless it is needed later to change
   a state that another operation refuses.

Rules 1 to 7 know operations by their `Effect`; without one the search is correct but wide.
This module judges histories only: it records none and knows nothing of raftsvc.
"""

from __future__ import annotations

import enum
import math
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from operator import le
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

_NODES_PER_CLOCK_READING = 256
_REPORTED_BEFORE = 8  # operations shown before the one that does not fit
_REPORTED_BESIDE = 24


class Operation(NamedTuple):
    """One call, as its caller saw it.

    client:   who called; only for the report.
    called:   when, by any clock that all callers share.  Operations with equal times are concurrent.
    returned: when its outcome was known; `math.inf` if it never was.  Leave out what certainly failed.
    input:    what was asked, in terms of the model.
    output:   what was answered; ignored where the outcome is unknown.
    """

    client: Hashable
    called: float
    returned: float
    input: Any
    output: Any = None

    @property
    def is_known(self) -> bool:
        """Whether the caller learned the outcome."""
        return self.returned != math.inf

    def __str__(self) -> str:
        end = f"{self.returned:.6f}" if self.is_known else "?"
        output = repr(self.output) if self.is_known else "?"
        return f"[{self.called:.6f} .. {end}] {self.client}: {self.input!r} -> {output}"


class Marker(enum.Enum):
    """Values that are no states."""

    IMPOSSIBLE = "impossible"
    ANY = "any"
    SAME = "same"
    UNSPECIFIED = "unspecified"
    _UNNAMED = "unnamed"

    def __repr__(self) -> str:
        return self.name


IMPOSSIBLE: Final = Marker.IMPOSSIBLE
ANY: Final = Marker.ANY
SAME: Final = Marker.SAME
UNSPECIFIED: Final = Marker.UNSPECIFIED
_UNNAMED: Final = Marker._UNNAMED  # any state that no operation tells from others


@dataclass(frozen=True)
class Except:
    """Every state but this one."""

    state: Hashable


@dataclass(frozen=True)
class Plus:
    """The state before, a number, and this amount on top.  Possible in every number."""

    amount: int


class Effect(NamedTuple):
    """What is known of an operation without knowing the state it meets.

    requires: the one state in which it is possible, `Except(state)`, `ANY`, or `UNSPECIFIED`.
    leaves:   the one state that it can lead to, `SAME` if it never changes the state,
              `Plus(amount)`, or `UNSPECIFIED`.

    Of an operation whose outcome is unknown it describes the case that it changes the state.
    """

    requires: Hashable = UNSPECIFIED
    leaves: Hashable = UNSPECIFIED


class Model(Protocol):
    """What operations do, one key at a time.  States are immutable and hashable."""

    def key(self, input: Any) -> Hashable:  # noqa: A002 - what Operation calls it
        """What the operation is about; operations on different keys do not affect each other."""

    def initial(self, key: Hashable) -> Hashable:
        """The state of `key` before any operation."""

    def step(self, state: Hashable, input: Any, output: Any, is_known: bool) -> Hashable:  # noqa: A002
        """The state after an operation, or `IMPOSSIBLE` if it cannot give `output` in `state`.

        If not `is_known`, the caller never learned the output: any is possible.
        """


@runtime_checkable
class ModelWithEffects(Model, Protocol):
    """A model that also says what keeps the search narrow."""

    def effect(self, input: Any, output: Any, is_known: bool) -> Effect:  # noqa: A002
        """What can be said of the operation in advance; it must agree with `step`."""


class KeyValueModel:
    """Registers and counters, each under a key.  The input of an operation is one of

    ("get", key)                  the output is the value, None if there is none
    ("set", key, value)           any output; setting None is deleting
    ("delete", key)               any output
    ("cas", key, expected, new)   whether it was `expected` and hence became `new`; None if not learned
    ("add", key, amount)          the sum, counting from 0 where there is no value; None if not learned

    Values are hashable, and the same if they are equal.  A single register is a history with one key.
    """

    def key(self, input: Any) -> Hashable:  # noqa: A002
        key: Hashable = input[1]
        return key

    def initial(self, key: Hashable) -> Hashable:
        return None

    def step(self, state: Hashable, input: Any, output: Any, is_known: bool) -> Hashable:  # noqa: A002
        verb = input[0]
        after: Hashable
        if verb == "get":
            return state if not is_known or state == output else IMPOSSIBLE
        if verb == "set":
            after = input[2]
            return after
        if verb == "delete":
            return None
        if verb == "cas":
            is_met = state == input[2]
            if is_known and output is not None and bool(output) is not is_met:
                return IMPOSSIBLE
            after = input[3]
            return after if is_met else state
        if verb == "add":
            number = 0 if state is None else state
            if not isinstance(number, (int, float)):
                return IMPOSSIBLE
            after = number + input[2]
            return after if not is_known or output is None or after == output else IMPOSSIBLE
        raise ValueError(f"{verb!r} is no operation of a key-value history; see KeyValueModel for those that are")

    def effect(self, input: Any, output: Any, is_known: bool) -> Effect:  # noqa: A002
        verb = input[0]
        if verb == "get":
            return Effect(output if is_known else ANY, SAME)
        if verb == "set":
            return Effect(ANY, input[2])
        if verb == "delete":
            return Effect(ANY, None)
        if verb == "cas":
            _, _, expected, new = input
            if is_known and output is None:
                return Effect()
            if is_known and not output:
                return Effect(Except(expected), SAME)
            return Effect(expected, SAME if new == expected else new)
        if verb == "add":
            amount = input[2]
            if not isinstance(amount, int) or amount == 0:
                return Effect()  # sums of floats depend on their order; 0 makes 0 of no value
            if not is_known or output is None:
                return Effect(ANY, Plus(amount))
            if output == amount or not isinstance(output, int):
                return Effect(UNSPECIFIED, Plus(amount))  # 0 and no value are two states
            return Effect(output - amount, output)
        return Effect()


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


class _OutOfTime(Exception):
    """The deadline passed before the search ended."""


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
        search = _Search(key, operations, model)
        try:
            if not search.run(share):
                return _explain(key, operations, model, deadline, search)
        except _OutOfTime:
            if undecided is None:
                undecided = Verdict(None, key)
    return Verdict(True) if undecided is None else undecided


def _explain(key: Hashable, operations: list[Operation], model: Model, deadline: float, failed: _Search) -> Verdict:
    """Find the shortest part of the history, from its beginning, that is not linearizable.

    What is linearizable is so up to any of its instants, hence what returns last in
    that part is what cannot be placed.
    """
    known = _by_return(operations)
    good, bad = failed.most_returns, len(known)  # numbers of returns up to which there is an order, and up to which not
    # Most often it is one that needs a state which the search, where it came farthest, could not leave.
    suspects = [number for number in range(good, bad) if _effect(model, known[number], True).requires in failed.blocked]
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
            search = _Search(key, operations, model, middle)
            if search.run(deadline):
                good, longest = middle, search
            else:
                assert middle > good, "an order of these was found"
                bad = middle
    except _OutOfTime:
        return Verdict(False, key)
    culprit, due = known[good], _effect(model, known[good], True)
    prefix = longest.placed()
    state, source = model.initial(key), None
    for position, item in enumerate(prefix):
        state = model.step(state, item.operation.input, item.operation.output, item.is_known)
        if _is_state(due.requires) and state == due.requires:
            source = position
    placed = {id(item.operation) for item in prefix} | {id(culprit)}
    beside = [
        operation
        for operation in sorted(operations, key=lambda op: -op.called)
        if operation.called <= culprit.returned <= operation.returned
        and id(operation) not in placed
        and _effect(model, operation, operation.is_known).leaves is not SAME
    ]
    return Verdict(False, key, tuple(item.operation for item in prefix), state, (culprit, *beside), source)


def _by_return(operations: Iterable[Operation]) -> list[Operation]:
    return sorted((op for op in operations if op.is_known), key=lambda op: (op.returned, op.called))


def _effect(model: Model, operation: Operation, is_known: bool) -> Effect:
    if isinstance(model, ModelWithEffects):
        return model.effect(operation.input, operation.output if is_known else None, is_known)
    return Effect()


def _is_state(value: Hashable) -> bool:
    """Whether what an effect requires or leaves is one state."""
    return not isinstance(value, (Marker, Except, Plus))


class _Item:
    """One operation on its way into a search.

    deadline: when it must have taken effect; infinite if it need not take any.
    requires, refuses, leaves: numbers of states, -1 where none is known or no operation tells it from others.
    kind:     equal for operations that do the same in every state.
    """

    __slots__ = (
        "called",
        "deadline",
        "effect",
        "is_blind",
        "is_known",
        "is_read",
        "is_vague",
        "kind",
        "leaves",
        "operation",
        "refuses",
        "requires",
    )

    def __init__(self, operation: Operation, is_known: bool, effect: Effect) -> None:
        self.operation = operation
        self.called = operation.called
        self.deadline = operation.returned if is_known else math.inf
        self.is_known = is_known
        self.effect = effect
        self.is_read = effect.leaves is SAME
        self.is_vague = effect.leaves is UNSPECIFIED or isinstance(effect.leaves, Plus)
        self.is_blind = False
        self.requires = self.refuses = self.leaves = self.kind = -1


def _settle(items: list[_Item], initial: Hashable) -> list[_Item]:
    """Leave out reads of unknown outcome, and apply rule 6 until nothing more follows from it."""
    items = [item for item in items if item.is_known or not item.is_read]
    if any(item.is_vague for item in items):
        return items
    # These tell also states from one another that no operation requires.
    is_any_noticed = any(
        item.effect.requires is UNSPECIFIED or isinstance(item.effect.requires, Except) for item in items
    )
    while True:
        sources = Counter(item.effect.leaves for item in items)
        sources[initial] += 1
        required = {item.effect.requires for item in items}
        seen_by: dict[Hashable, float] = {}
        for item in items:
            state = item.effect.requires
            seen_by[state] = min(item.deadline, seen_by.get(state, math.inf))
        kept = []
        is_settled = True
        for item in items:
            state = item.effect.leaves
            if item.deadline == math.inf:
                if state not in required and not is_any_noticed:
                    is_settled = False
                    continue
                if sources[state] == 1 and item.called <= seen_by.get(state, math.inf) < math.inf:
                    item.deadline = seen_by[state]
                    is_settled = False
            kept.append(item)
        items = kept
        if is_settled:
            return items


def _rises(effect: Effect) -> bool:
    """Whether an operation never changes the state but to a greater number."""
    requires, leaves = effect
    if isinstance(leaves, Plus):
        return leaves.amount > 0
    return leaves is SAME or (isinstance(requires, int) and isinstance(leaves, int) and requires < leaves)


class _Frame:
    """A point that the search came through, and what it has yet to try from there."""

    __slots__ = ("base", "choices", "is_last", "mark", "mask", "pending", "state")

    def __init__(self, search: _Search, state: Hashable, pending: list[int]) -> None:
        self.state = state
        self.base = search.base
        self.mask = search.mask
        self.mark = len(search.trail)
        self.pending = pending  # what could be next and must be placed some time
        self.choices = search.choices(state, pending)  # the first one to try is last
        self.is_last = not search.groups  # whether there are no other choices


class _Search:
    """The search through the operations of one key.

    Operations that must be placed are numbered by their deadline.  `base` is the first
    that is not placed: only what was called before its deadline may go before it.
    Bit n of `mask` says whether base + n is placed; it stays short, for what is placed
    early is due soon.

    Operations that need not be placed are grouped by what they do; of a group, those
    called first are taken first (rule 2), so that a count says which are taken.

    returns: judge the history up to its so-many-th return only.
    """

    def __init__(
        self, key: Hashable, operations: Sequence[Operation], model: Model, returns: int | None = None
    ) -> None:
        self._step = model.step
        self.state = model.initial(key)
        known = _by_return(operations)
        seen = known if returns is None else known[:returns]
        end = math.inf if returns is None else seen[-1].returned if seen else -math.inf
        unknown = [op for op in operations if not op.is_known] + known[len(seen) :]
        items = [_Item(op, True, _effect(model, op, True)) for op in seen]
        items += [_Item(op, False, _effect(model, op, False)) for op in unknown if op.called <= end]
        items = _settle(items, self.state)
        items.sort(key=lambda item: (item.deadline, item.called))

        requirements = [item.effect.requires for item in items]
        self._is_plain = UNSPECIFIED not in requirements and not any(item.is_vague for item in items)
        self._is_one_way = all(_rises(item.effect) for item in items)
        named = [each.state if isinstance(each, Except) else each for each in requirements]
        self._ids = {state: number for number, state in enumerate(dict.fromkeys(filter(_is_state, named)))}
        self._steps = sorted(state for state in self._ids if isinstance(state, int)) if self._is_one_way else []
        kinds: dict[Hashable, int] = {}
        groups: dict[int, list[_Item]] = {}
        for item in items:
            item.requires = self._id(item.effect.requires)
            item.refuses = self._id(item.effect.requires.state) if isinstance(item.effect.requires, Except) else -1
            item.leaves = self._id(item.effect.leaves)
            item.kind = kinds.setdefault(self._behaviour(item), len(kinds))
            item.is_blind = item.effect.requires is ANY and _is_state(item.effect.leaves)
            if item.deadline == math.inf:
                groups.setdefault(item.kind, []).append(item)

        self.groups = list(groups.values())
        refused = {item.refuses for item in items} - {-1}
        self._required_by_unknown = {item.requires for group in self.groups for item in group} - {-1}
        self._refused_of_unknown = [item for group in self.groups for item in group if item.leaves in refused]
        self._group_calls = [[item.called for item in group] for group in self.groups]
        self._used = [0] * len(self.groups)
        self._count = count = sum(item.deadline != math.inf for item in items)
        self._items = items[:count]
        # What is not placed, in the order of calls: linked both ways, `count` stands before and after all.
        self._next = [0] * (count + 1)
        self._previous = [0] * (count + 1)
        before = count
        for number in [*sorted(range(count), key=lambda number: items[number].called), count]:
            self._next[before] = number
            self._previous[number] = before
            before = number

        self.base = 0
        self.mask = 0
        self.trail: list[int] = []  # what is placed, in order; ~n is the next one of group n
        self._most = 0
        self.blocked: set[Hashable] = set()  # the states that could not be left where the search came farthest
        self._failed: dict[tuple[int, int, Hashable], list[tuple[int, ...]]] = {}
        # Of all that is not placed: how many must meet a state, must not, may lead to it, or may lead who knows where.
        self._readers = [0] * (len(self._ids) + 1)
        self._refusers = [0] * (len(self._ids) + 1)
        self._sources = [0] * (len(self._ids) + 1)
        self._vague = 0
        for item in items:
            self._note(item, 1)

    def _id(self, value: Hashable) -> int:
        """The number of a state that some operation tells from others, -1 for anything else."""
        return self._ids.get(value, -1) if _is_state(value) else -1

    def _alias(self, state: Hashable) -> Hashable:
        """The same for all states that no operation tells from one another."""
        return _UNNAMED if self._is_plain and state not in self._ids else state

    def _behaviour(self, item: _Item) -> Hashable:
        requires, leaves = item.effect
        if requires is not UNSPECIFIED and leaves is not UNSPECIFIED:
            return requires, self._alias(leaves) if _is_state(leaves) else leaves
        behaviour = (item.operation.input, item.operation.output, item.is_known)
        try:
            hash(behaviour)
        except TypeError:
            return id(item)
        return behaviour

    @property
    def most_returns(self) -> int:
        """Up to how many returns an order was found."""
        return sum(item.is_known for item in self._items[: self._most])

    def placed(self) -> list[_Item]:
        """The order that was found."""
        groups = [iter(group) for group in self.groups]
        return [self._items[each] if each >= 0 else next(groups[~each]) for each in self.trail]

    def run(self, deadline: float) -> bool:
        """Whether all that must be placed can be.  Raises _OutOfTime once it is later than `deadline`."""
        frames: list[_Frame] = []
        nodes = 0
        while True:
            pending = self._place_reads()
            if self.base > self._most:
                self._most = self.base
                self.blocked.clear()
            if self.base == self._count:
                return True
            if not self._is_hopeless(pending) and not self._has_failed():
                frames.append(_Frame(self, self.state, pending))
            if not self._advance(frames):
                return False
            nodes += 1
            if nodes % _NODES_PER_CLOCK_READING == 0 and time.monotonic() > deadline:
                raise _OutOfTime

    def _advance(self, frames: list[_Frame]) -> bool:
        """Go one step on, from the last frame that has a choice left."""
        while frames:
            frame = frames[-1]
            self._return_to(frame)
            if not frame.choices:
                if frame.is_last:
                    frames.pop()
                else:
                    frame.is_last = True
                    frame.choices = self._unknown_choices(frame)
                continue
            choice = frame.choices.pop()
            item = self._items[choice] if choice >= 0 else self.groups[~choice][self._used[~choice]]
            operation = item.operation
            after = self._step(frame.state, operation.input, operation.output, item.is_known)
            if after is IMPOSSIBLE or (choice < 0 and after == frame.state):
                continue
            if after != frame.state and self._is_needed(frame.state, after, item):
                if frame.base >= self._most:
                    self.blocked.add(frame.state)
                continue
            self._place(choice, item)
            self.state = after
            return True
        return False

    # -- placing and taking back

    def _note(self, item: _Item, change: int) -> None:
        """Count an item that is not placed any more, or again."""
        if item.deadline != math.inf:
            self._readers[item.requires] += change  # the last one, -1, is for those that require no one state
        self._refusers[item.refuses] += change
        self._sources[item.leaves] += change
        self._vague += change * item.is_vague

    def _place(self, choice: int, item: _Item) -> None:
        self.trail.append(choice)
        if choice < 0:
            self._used[~choice] += 1
        else:
            following, previous = self._next[choice], self._previous[choice]
            self._next[previous] = following
            self._previous[following] = previous
            self.mask |= 1 << (choice - self.base)
            if choice == self.base:
                placed = (~self.mask & (self.mask + 1)).bit_length() - 1
                self.base += placed
                self.mask >>= placed
        self._note(item, -1)

    def _return_to(self, frame: _Frame) -> None:
        """Take back what was placed since."""
        trail = self.trail
        while len(trail) > frame.mark:
            choice = trail.pop()
            if choice < 0:
                self._used[~choice] -= 1
                item = self.groups[~choice][self._used[~choice]]
            else:
                item = self._items[choice]
                self._next[self._previous[choice]] = choice
                self._previous[self._next[choice]] = choice
            self._note(item, 1)
        self.base = frame.base
        self.mask = frame.mask

    def _place_reads(self) -> list[int]:
        """Place the reads that fit (rule 1), and return what else could be next."""
        state = self.state
        number = self._ids.get(state, -1)
        items = self._items
        pending = []
        choice = self._next[self._count]
        while choice != self._count:
            item = items[choice]
            if item.called > items[self.base].deadline:
                break
            following = self._next[choice]  # what was passed before does not fit: the state is the same
            if (
                item.is_read
                and item.requires in (number, -1)
                and self._step(state, item.operation.input, item.operation.output, item.is_known) is not IMPOSSIBLE
            ):
                self._place(choice, item)
            else:
                pending.append(choice)
            choice = following
        return pending

    # -- what to try

    def choices(self, state: Hashable, pending: list[int]) -> list[int]:
        """What to try next of that which must be placed, the last one first."""
        number = self._ids.get(state, -1)
        items = self._items
        kinds: set[int] = set()
        choices = []
        for choice in sorted(pending):
            item = items[choice]
            if item.is_read or item.requires not in (-1, number) or item.kind in kinds:
                continue
            kinds.add(item.kind)  # rule 2
            choices.append(choice)
        if self._is_plain and len(choices) > 1:
            for choice in choices:
                if items[choice].is_blind and self._is_complete(choice, pending):
                    choices = [each for each in choices if each == choice or not items[each].is_blind]
                    break
        return choices[::-1]

    def _is_complete(self, choice: int, pending: list[int]) -> bool:
        """Whether nothing is lost if a write is overwritten right after those that can read it now (rule 7)."""
        items = self._items
        changes = [choice]  # the write, and what can only follow it
        while (state := items[changes[-1]].leaves) != -1:
            followers = [number for number in pending if items[number].requires == state]
            onward = [number for number in followers if not items[number].is_read]
            if len(followers) != self._readers[state] or state in self._required_by_unknown:
                return False
            if not onward:
                break
            if len(onward) > 1 or onward[0] in changes:
                return False
            changes += onward
        # Later, one of them might have parted another write from an operation that refuses what that one leaves.
        end = max(items[number].deadline for number in changes)
        other = self._next[self._count]
        while other != self._count and items[other].called <= end:
            leaves = items[other].leaves
            if leaves != -1 and self._refusers[leaves] and other not in changes:
                return False
            other = self._next[other]
        return not any(self._refusers[item.leaves] and item.called <= end for item in self._refused_of_unknown)

    def _heads(self) -> list[tuple[int, _Item]]:
        """Of each group, the item that could be next."""
        due = self._items[self.base].deadline
        heads = [
            (~number, group[used])
            for number, (group, used) in enumerate(zip(self.groups, self._used, strict=True))
            if used < len(group)
        ]
        return [head for head in heads if head[1].called <= due]

    def _unknown_choices(self, frame: _Frame) -> list[int]:
        """What to try next of that which need not be placed (rule 5), the last one first."""
        heads = self._heads()
        state = frame.state
        number = self._ids.get(state, -1)
        pending = [self._items[choice] for choice in frame.pending]
        tried = {item.kind for item in pending}  # rule 2
        is_open = any(  # whether what comes next may profit from any change
            item.effect.requires is UNSPECIFIED or item.effect.leaves is UNSPECIFIED or (item.refuses == number != -1)
            for item in pending
        ) or any(item.effect.requires is UNSPECIFIED or item.effect.leaves is UNSPECIFIED for _, item in heads)
        is_sum_open = any(item.is_vague for item in pending) or any(item.is_vague for _, item in heads)
        here = {number, -1}
        wanted = {item.requires for item in pending} - here
        size = 0
        while size != len(wanted):  # what leads there through other unknown ones
            size = len(wanted)
            wanted.update({item.requires for _, item in heads if item.leaves in wanted} - here)
        choices = []
        for choice, item in heads:
            if item.kind in tried or item.requires not in here:
                continue
            if isinstance(item.effect.leaves, Plus):
                profits = bool(wanted)  # two sums in a row can change places
            else:
                profits = is_sum_open or item.leaves in wanted
            if profits or is_open:
                choices.append(choice)
        return choices[::-1]

    # -- what not to try

    def _is_needed(self, state: Hashable, after: Hashable, item: _Item) -> bool:
        """Whether `item` must not change `state` to `after` yet (rule 3)."""
        if self._is_one_way and isinstance(after, int):
            passed = bisect_left(self._steps, after)
            while passed and (not isinstance(state, int) or self._steps[passed - 1] > state):
                passed -= 1
                if self._readers[self._ids[self._steps[passed]]]:
                    return True
        number = self._ids.get(state, -1)
        if number == -1 or self._readers[number] == (item.requires == number and item.deadline != math.inf):
            return False
        return self._is_one_way or (self._vague == item.is_vague and not self._sources[number])

    def _is_hopeless(self, pending: list[int]) -> bool:
        """Whether nothing leads to the state that the next one due requires (rule 4)."""
        due = self._items[self.base]
        if due.requires in (-1, self._ids.get(self.state, -1)):
            return False
        starts = [self.state]
        low = high = 0
        for item, number in [(self._items[choice], 1) for choice in pending] + [
            (head, self._available(~choice)) for choice, head in self._heads()
        ]:
            leaves = item.effect.leaves
            if item is due or leaves is SAME:
                continue
            if leaves is UNSPECIFIED or item.leaves == due.requires:
                return False
            if isinstance(leaves, Plus):
                low += number * min(leaves.amount, 0)
                high += number * max(leaves.amount, 0)
            else:
                starts.append(leaves)
        if low == high:
            return True
        goal = due.effect.requires
        if not isinstance(goal, int):
            return False
        return not any(not isinstance(start, int) or low <= goal - start <= high for start in starts)

    def _available(self, number: int) -> int:
        """How many of a group could be placed now."""
        return bisect_right(self._group_calls[number], self._items[self.base].deadline) - self._used[number]

    def _has_failed(self) -> bool:
        """Whether the search was here before, or where it had more to choose from; if not, remember that it is here."""
        where = (self.base, self.mask, self._alias(self.state))
        used = tuple(map(self._effectively_used, range(len(self.groups))))
        failed = self._failed.setdefault(where, [])
        if any(all(map(le, less, used)) for less in failed):
            return True
        failed.append(used)
        return False

    def _effectively_used(self, number: int) -> int:
        """How many of a group are used or can never be, for the state that they require will not come back."""
        group = self.groups[number]
        state = group[0].requires
        if state != -1 and not self._vague and not self._sources[state] and self._ids.get(self.state) != state:
            return len(group)
        return self._used[number]
