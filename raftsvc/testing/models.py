"""What a history is made of: operations as their callers saw them, and models of what they do.

Knows nothing of how histories are judged.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable


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
    UNNAMED = "unnamed"

    def __repr__(self) -> str:
        return self.name


IMPOSSIBLE: Final = Marker.IMPOSSIBLE
ANY: Final = Marker.ANY
SAME: Final = Marker.SAME
UNSPECIFIED: Final = Marker.UNSPECIFIED
UNNAMED: Final = Marker.UNNAMED  # any state that no operation tells from others


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


def by_return(operations: Iterable[Operation]) -> list[Operation]:
    return sorted((op for op in operations if op.is_known), key=lambda op: (op.returned, op.called))


def effect_of(model: Model, operation: Operation, is_known: bool) -> Effect:
    if isinstance(model, ModelWithEffects):
        return model.effect(operation.input, operation.output if is_known else None, is_known)
    return Effect()


def is_state(value: Hashable) -> bool:
    """Whether what an effect requires or leaves is one state."""
    return not isinstance(value, (Marker, Except, Plus))
