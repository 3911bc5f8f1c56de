"""The search for an order of the operations of one key in which all answers are those of the model.

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

They know operations by their `Effect`; without one the search is correct but wide.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from operator import le

from raftsvc.testing.models import (
    ANY,
    IMPOSSIBLE,
    SAME,
    UNNAMED,
    UNSPECIFIED,
    Effect,
    Except,
    Model,
    Operation,
    Plus,
    by_return,
    effect_of,
    is_state,
)

_NODES_PER_CLOCK_READING = 256


class OutOfTime(Exception):
    """The deadline passed before the search ended."""


class Item:
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


def _settle(items: list[Item], initial: Hashable) -> list[Item]:
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

    def __init__(self, search: Search, state: Hashable, pending: list[int]) -> None:
        self.state = state
        self.base = search.base
        self.mask = search.mask
        self.mark = len(search.trail)
        self.pending = pending  # what could be next and must be placed some time
        self.choices = search.choices(state, pending)  # the first one to try is last
        self.is_last = not search.unknown.groups  # whether there are no other choices


class _States:
    """The states that some operation tells from others, by number.

    is_plain:   of all others nobody can tell one from another.
    is_one_way: no operation changes the state but to a greater number.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        requirements = [item.effect.requires for item in items]
        self.is_plain = UNSPECIFIED not in requirements and not any(item.is_vague for item in items)
        self.is_one_way = all(_rises(item.effect) for item in items)
        named = [each.state if isinstance(each, Except) else each for each in requirements]
        self.ids = {state: number for number, state in enumerate(dict.fromkeys(filter(is_state, named)))}
        self._steps = sorted(state for state in self.ids if isinstance(state, int)) if self.is_one_way else []

    def id_of(self, value: Hashable) -> int:
        """The number of a state that some operation tells from others, -1 for anything else."""
        return self.ids.get(value, -1) if is_state(value) else -1

    def alias(self, state: Hashable) -> Hashable:
        """The same for all states that no operation tells from one another."""
        return UNNAMED if self.is_plain and state not in self.ids else state

    def between(self, before: Hashable, after: int) -> Iterator[int]:
        """Of states that are numbers, those that a change from `before` to `after` leaves behind."""
        passed = bisect_left(self._steps, after)
        while passed and (not isinstance(before, int) or self._steps[passed - 1] > before):
            passed -= 1
            yield self.ids[self._steps[passed]]


class _Line:
    """What must be placed and is not yet, in the order of calls: linked both ways.

    `end`, the number after the last one, stands before and after all.
    """

    __slots__ = ("_previous", "end", "next")

    def __init__(self, items: Sequence[Item]) -> None:
        self.end = end = len(items)
        self.next = [0] * (end + 1)
        self._previous = [0] * (end + 1)
        before = end
        for number in [*sorted(range(end), key=lambda number: items[number].called), end]:
            self.next[before] = number
            self._previous[number] = before
            before = number

    def take_out(self, number: int) -> None:
        following, previous = self.next[number], self._previous[number]
        self.next[previous] = following
        self._previous[following] = previous

    def put_back(self, number: int) -> None:
        """What was taken out last goes back first."""
        self.next[self._previous[number]] = number
        self._previous[self.next[number]] = number


class _Unknown:
    """Operations that need not be placed, grouped by what they do.

    Of a group, those called first are taken first (rule 2), so that a count says which are taken.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        groups: dict[int, list[Item]] = {}
        for item in items:
            groups.setdefault(item.kind, []).append(item)
        self.groups = list(groups.values())
        self.used = [0] * len(self.groups)
        self.required = {item.requires for item in items} - {-1}
        self._calls = [[item.called for item in group] for group in self.groups]

    def heads(self, due: float) -> list[tuple[int, Item]]:
        """Of each group, the item that could be next, if it is called by then; with ~n for group n."""
        heads = [
            (~number, group[used])
            for number, (group, used) in enumerate(zip(self.groups, self.used, strict=True))
            if used < len(group)
        ]
        return [head for head in heads if head[1].called <= due]

    def available(self, number: int, due: float) -> int:
        """How many of a group could be placed by then."""
        return bisect_right(self._calls[number], due) - self.used[number]


class _Remaining:
    """Of all that is not placed: how many must meet a state, must not, may lead to it, or may lead who knows where."""

    __slots__ = ("readers", "refusers", "sources", "vague")

    def __init__(self, states: int, items: Sequence[Item]) -> None:
        self.readers = [0] * (states + 1)
        self.refusers = [0] * (states + 1)
        self.sources = [0] * (states + 1)
        self.vague = 0
        for item in items:
            self.count(item, 1)

    def count(self, item: Item, change: int) -> None:
        """An item is not placed any more, or again."""
        if item.deadline != math.inf:
            self.readers[item.requires] += change  # the last one, -1, is for those that require no one state
        self.refusers[item.refuses] += change
        self.sources[item.leaves] += change
        self.vague += change * item.is_vague


class Search:
    """The search through the operations of one key.

    Operations that must be placed are numbered by their deadline.  `base` is the first
    that is not placed: only what was called before its deadline may go before it.
    Bit n of `mask` says whether base + n is placed; it stays short, for what is placed
    early is due soon.

    returns: judge the history up to its so-many-th return only.
    """

    def __init__(
        self, key: Hashable, operations: Sequence[Operation], model: Model, returns: int | None = None
    ) -> None:
        self._step = model.step
        self.state = model.initial(key)
        known = by_return(operations)
        seen = known if returns is None else known[:returns]
        end = math.inf if returns is None else seen[-1].returned if seen else -math.inf
        unknown = [op for op in operations if not op.is_known] + known[len(seen) :]
        items = [Item(op, True, effect_of(model, op, True)) for op in seen]
        items += [Item(op, False, effect_of(model, op, False)) for op in unknown if op.called <= end]
        items = _settle(items, self.state)
        items.sort(key=lambda item: (item.deadline, item.called))

        self._states = states = _States(items)
        kinds: dict[Hashable, int] = {}
        for item in items:
            item.requires = states.id_of(item.effect.requires)
            item.refuses = states.id_of(item.effect.requires.state) if isinstance(item.effect.requires, Except) else -1
            item.leaves = states.id_of(item.effect.leaves)
            item.kind = kinds.setdefault(self._behaviour(item), len(kinds))
            item.is_blind = item.effect.requires is ANY and is_state(item.effect.leaves)

        self._items = [item for item in items if item.deadline != math.inf]
        self._line = _Line(self._items)
        self.unknown = _Unknown(items[len(self._items) :])
        refused = {item.refuses for item in items} - {-1}
        self._refused_of_unknown = [item for item in items[len(self._items) :] if item.leaves in refused]
        self._remaining = _Remaining(len(states.ids), items)
        self.base = 0
        self.mask = 0
        self.trail: list[int] = []  # what is placed, in order; ~n is the next one of group n
        self._most = 0
        self.blocked: set[Hashable] = set()  # the states that could not be left where the search came farthest
        self._failed: dict[tuple[int, int, Hashable], list[tuple[int, ...]]] = {}

    def _behaviour(self, item: Item) -> Hashable:
        requires, leaves = item.effect
        if requires is not UNSPECIFIED and leaves is not UNSPECIFIED:
            return requires, self._states.alias(leaves) if is_state(leaves) else leaves
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

    def placed(self) -> list[Item]:
        """The order that was found."""
        groups = [iter(group) for group in self.unknown.groups]
        return [self._items[each] if each >= 0 else next(groups[~each]) for each in self.trail]

    def run(self, deadline: float) -> bool:
        """Whether all that must be placed can be.  Raises OutOfTime once it is later than `deadline`."""
        frames: list[_Frame] = []
        nodes = 0
        while True:
            pending = self._place_reads()
            if self.base > self._most:
                self._most = self.base
                self.blocked.clear()
            if self.base == len(self._items):
                return True
            if not self._is_hopeless(pending) and not self._has_failed():
                frames.append(_Frame(self, self.state, pending))
            if not self._advance(frames):
                return False
            nodes += 1
            if nodes % _NODES_PER_CLOCK_READING == 0 and time.monotonic() > deadline:
                raise OutOfTime

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
            item = self._items[choice] if choice >= 0 else self._next_of(~choice)
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

    def _next_of(self, group: int) -> Item:
        return self.unknown.groups[group][self.unknown.used[group]]

    def _place(self, choice: int, item: Item) -> None:
        self.trail.append(choice)
        if choice < 0:
            self.unknown.used[~choice] += 1
        else:
            self._line.take_out(choice)
            self.mask |= 1 << (choice - self.base)
            if choice == self.base:
                placed = (~self.mask & (self.mask + 1)).bit_length() - 1
                self.base += placed
                self.mask >>= placed
        self._remaining.count(item, -1)

    def _return_to(self, frame: _Frame) -> None:
        """Take back what was placed since."""
        trail = self.trail
        while len(trail) > frame.mark:
            choice = trail.pop()
            if choice < 0:
                self.unknown.used[~choice] -= 1
                item = self._next_of(~choice)
            else:
                item = self._items[choice]
                self._line.put_back(choice)
            self._remaining.count(item, 1)
        self.base = frame.base
        self.mask = frame.mask

    def _place_reads(self) -> list[int]:
        """Place the reads that fit (rule 1), and return what else could be next."""
        state = self.state
        number = self._states.ids.get(state, -1)
        items = self._items
        line = self._line
        pending = []
        choice = line.next[line.end]
        while choice != line.end:
            item = items[choice]
            if item.called > items[self.base].deadline:
                break
            following = line.next[choice]  # what was passed before does not fit: the state is the same
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
        number = self._states.ids.get(state, -1)
        items = self._items
        kinds: set[int] = set()
        choices = []
        for choice in sorted(pending):
            item = items[choice]
            if item.is_read or item.requires not in (-1, number) or item.kind in kinds:
                continue
            kinds.add(item.kind)  # rule 2
            choices.append(choice)
        if self._states.is_plain and len(choices) > 1:
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
            if len(followers) != self._remaining.readers[state] or state in self.unknown.required:
                return False
            if not onward:
                break
            if len(onward) > 1 or onward[0] in changes:
                return False
            changes += onward
        # Later, one of them might have parted another write from an operation that refuses what that one leaves.
        end = max(items[number].deadline for number in changes)
        line = self._line
        other = line.next[line.end]
        while other != line.end and items[other].called <= end:
            leaves = items[other].leaves
            if leaves != -1 and self._remaining.refusers[leaves] and other not in changes:
                return False
            other = line.next[other]
        return not any(
            self._remaining.refusers[item.leaves] and item.called <= end for item in self._refused_of_unknown
        )

    def _unknown_choices(self, frame: _Frame) -> list[int]:
        """What to try next of that which need not be placed (rule 5), the last one first."""
        heads = self.unknown.heads(self._items[self.base].deadline)
        state = frame.state
        number = self._states.ids.get(state, -1)
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

    def _is_needed(self, state: Hashable, after: Hashable, item: Item) -> bool:
        """Whether `item` must not change `state` to `after` yet (rule 3)."""
        states, remaining = self._states, self._remaining
        if (
            states.is_one_way
            and isinstance(after, int)
            and any(remaining.readers[number] for number in states.between(state, after))
        ):
            return True
        number = self._states.ids.get(state, -1)
        if number == -1 or self._remaining.readers[number] == (item.requires == number and item.deadline != math.inf):
            return False
        return states.is_one_way or (self._remaining.vague == item.is_vague and not self._remaining.sources[number])

    def _is_hopeless(self, pending: list[int]) -> bool:
        """Whether nothing leads to the state that the next one due requires (rule 4)."""
        due = self._items[self.base]
        if due.requires in (-1, self._states.ids.get(self.state, -1)):
            return False
        starts = [self.state]
        low = high = 0
        for item, number in [(self._items[choice], 1) for choice in pending] + [
            (head, self.unknown.available(~choice, due.deadline)) for choice, head in self.unknown.heads(due.deadline)
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

    def _has_failed(self) -> bool:
        """Whether the search was here before, or where it had more to choose from; if not, remember that it is here."""
        where = (self.base, self.mask, self._states.alias(self.state))
        used = tuple(map(self._effectively_used, range(len(self.unknown.groups))))
        failed = self._failed.setdefault(where, [])
        if any(all(map(le, less, used)) for less in failed):
            return True
        failed.append(used)
        return False

    def _effectively_used(self, number: int) -> int:
        """How many of a group are used or can never be, for the state that they require will not come back."""
        group = self.unknown.groups[number]
        state = group[0].requires
        if (
            state != -1
            and not self._remaining.vague
            and not self._remaining.sources[state]
            and self._states.ids.get(self.state) != state
        ):
            return len(group)
        return self.unknown.used[number]
