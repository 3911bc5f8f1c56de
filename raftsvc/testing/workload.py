"""What simulated clients do, and what their State is.

A Workload joins a State to a model of it: which actions clients take, and what a
caller learns of each.  Write one for your own State to have it simulated; the
registers here are what the library itself is tested with.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple, Protocol, runtime_checkable

from raftsvc.errors import Rejected
from raftsvc.state import BaseState, State
from raftsvc.testing.linearizability import KeyValueModel, Model
from raftsvc.testing.violation import Violation


class Action(NamedTuple):
    """One thing that a client does.

    input:       what the linearizability model is told.
    instruction: what is passed to `exec`; None: `wait_read`, then a look at the State.
    is_judged:   whether the model knows it; else it must be without effect.
    """

    input: Any
    instruction: bytes | None
    is_judged: bool = True


class Workload(Protocol):
    """What clients do to a State, and what it should mean.

    It may remember what it sees in one run.  A seed that fails is run again with a copy of it from before
    (`copy.deepcopy`); with itself where it has what cannot be copied, which is another run if it goes by what it knows.
    """

    model: Model

    def make_state(self) -> State:
        """An empty State."""

    def next_action(self, random: Random, serial: int) -> Action:
        """What a client does next; `serial` is different each time."""

    def output_of(self, action: Action, is_satisfied: bool) -> Any:
        """What the model is told of an instruction that was applied."""

    def read(self, state: State, action: Action) -> Any:
        """The output of an action without an instruction, by a look at the State."""


@runtime_checkable
class DamagingWorkload(Workload, Protocol):
    """A Workload that also knows how to break its State, without which no State is ever damaged."""

    def damage(self, state: State, random: Random) -> bool:
        """Change something in `state` behind Raft's back, as broken memory would; False if there is nothing yet."""


@runtime_checkable
class VersionedWorkload(Workload, Protocol):
    """A Workload whose State has versions, without which simulated nodes run the same code of it all the time."""

    def set_code(self, state: State, version: int) -> None:
        """What `state` knows, before anything else is done with it."""

    def in_form(self, instruction: bytes, state: State) -> bytes:
        """The instruction, as a caller of the node with that State writes it."""


class RegisterState(BaseState):
    """Registers and counters.  An instruction is a JSON list: a verb, a key, and arguments.

    It pretends to have versions.  From 2 on instructions are objects that name the version of who wrote them, writes
    are answered with the version, and so begin snapshots; code that is given what it does not know raises Violation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, int] = {}
        self.code_version = 1
        self.version = 1

    def state_version(self) -> int:
        """What this code pretends to know."""
        return self.code_version

    def use_version(self, version: int) -> None:
        """Write in that form from here on."""
        if not self.version <= version <= self.code_version:
            raise Violation(f"versions: a State of version {self.code_version} is told {version} after {self.version}")
        self.version = version

    def understand(self, form: int) -> None:
        """Something is in that form."""
        if form > self.code_version:
            raise Violation(f"versions: a State of version {self.code_version} is given what only {form} knows")

    def parsed(self, data: bytes) -> list[Any]:
        """What an instruction says, in whichever form."""
        said = json.loads(data)
        if isinstance(said, list):
            return said
        self.understand(said["form"])
        if said["form"] > self.version:
            raise Violation(f"versions: an instruction of form {said['form']} where {self.version} is effective")
        instruction: list[Any] = said["do"]
        return instruction

    def apply(self, data: bytes, index: int) -> bool | int:
        """Do one instruction."""
        verb, key, *arguments = self.parsed(data)
        if verb == "refuse":
            raise Rejected(f"{key} is refused")
        if verb == "timer":
            return True
        if verb == "cas":
            expected, new = arguments
            if self.values.get(key) != expected:
                return False
            self.values[key] = new
        elif verb == "even":
            return sum(value.bit_count() for value in self.values.values()) % 2 == 0
        elif verb == "add":
            self.values[key] = self.values.get(key, 0) + arguments[0]
        else:
            self.values[key] = arguments[0]
        return True if self.version == 1 else self.version

    def snapshot(self) -> tuple[bytes, int]:
        """All values."""
        return json.dumps(self.values, sort_keys=True).encode(), self.applied_index()

    def restore_snapshot(self, data: bytes, index: int) -> None:
        """Take all values."""
        self.values = json.loads(data)


_MOST_AT_ONCE = 1024


class TimerState(RegisterState):
    """Registers, counters, and timers, which count what they were when they run down.

    timers:  by the index at which each was set, times 1024, and its place there: when it is due, and how long it runs.
    ran_down: is told of each the index at which it was set, for how long, and the index at which it is over.
    """

    def __init__(self) -> None:
        super().__init__()
        self.timers: dict[int, tuple[int, int]] = {}
        self.ran_down: Callable[[int, int, int], None] = lambda since, ttl_ms, index: None

    def apply_at(self, data: bytes, index: int, time_ms: int) -> object:
        """Do one instruction, after what is due before it."""
        self.pass_time(index, time_ms)
        answer = self.apply(data, index)
        verb, _, *arguments = self.parsed(data)
        if verb == "timer":
            place = sum(key // _MOST_AT_ONCE == index for key in self.timers)  # of those that one entry sets
            self.timers[index * _MOST_AT_ONCE + place] = time_ms + arguments[0], arguments[0]
        return answer

    def next_deadline(self) -> int | None:
        """When the first timer runs down."""
        return min((due_ms for due_ms, _ in self.timers.values()), default=None)

    def pass_time(self, index: int, time_ms: int) -> None:
        """End the timers that are due, in their order."""
        due = sorted((due_ms, since) for since, (due_ms, _) in self.timers.items() if due_ms <= time_ms)
        for due_ms, since in due:
            self.values["ran down"] = (self.values.get("ran down", 0) * 31 + due_ms + since) % 2**61
            self.ran_down(since // _MOST_AT_ONCE, self.timers.pop(since)[1], index)

    def snapshot(self) -> tuple[bytes, int]:
        """All values and timers."""
        content: list[object] = [self.values, sorted(self.timers.items())]
        if self.version > 1:
            content.append(self.version)
        return json.dumps(content, sort_keys=True).encode(), self.applied_index()

    def restore_snapshot(self, data: bytes, index: int) -> None:
        """Take all of them."""
        self.values, timers, *forms = json.loads(data)
        self.understand(max(forms, default=1))
        self.version = 1  # until it is told
        self.timers = {since: (due_ms, ttl_ms) for since, (due_ms, ttl_ms) in timers}


class RegisterWorkload:
    """Clients that set, compare and set, count, read and check a few keys, and set timers."""

    def __init__(self, keys: int = 4) -> None:
        self.model: Model = KeyValueModel()
        self._keys = [f"k{n}" for n in range(keys)]

    def make_state(self) -> RegisterState:
        """An empty State."""
        return TimerState()

    def next_action(self, random: Random, serial: int) -> Action:
        """Reads and writes, about as many of either; every value is written once."""
        return _padded(self._next_action(random, serial), random)

    def _next_action(self, random: Random, serial: int) -> Action:
        key = random.choice(self._keys)
        chance = random.random()
        if chance < 0.45:
            return Action(("get", key), None)
        if chance < 0.70:
            return _instruction("set", key, serial)
        if chance < 0.83:
            # A value that may well be the present one.
            return _instruction("cas", key, random.choice((None, *range(max(1, serial - 8), serial))), serial)
        if chance < 0.95:
            return _instruction("add", "count-" + key, 1)
        if chance < 0.98:
            # The answer depends on every bit.
            return _instruction("even", key)._replace(is_judged=False)
        if chance < 0.99:
            return _instruction("timer", key, random.choice((1, 100, 700, 3000)))._replace(is_judged=False)
        return _instruction("refuse", key)._replace(is_judged=False)

    def output_of(self, action: Action, is_satisfied: bool) -> Any:
        """A compare-and-set tells whether it succeeded; the others tell nothing."""
        return is_satisfied if action.input[0] == "cas" else None

    def read(self, state: State, action: Action) -> Any:
        """The value of a register, None if it has none."""
        assert isinstance(state, RegisterState)
        return state.values.get(action.input[1])

    def set_code(self, state: State, version: int) -> None:
        """What it pretends to know."""
        assert isinstance(state, RegisterState)
        state.code_version = version

    def in_form(self, instruction: bytes, state: State) -> bytes:
        """In the latest form that is effective where it is written, as far as that is known there."""
        assert isinstance(state, RegisterState)
        if state.version == 1:
            return instruction
        return b'{"form": %d, "do": %s}' % (state.version, instruction)

    def damage(self, state: State, random: Random) -> bool:
        """Flip a bit of some register or counter."""
        assert isinstance(state, RegisterState)
        if not state.values:
            return False
        state.values[random.choice(sorted(state.values))] ^= 1 << random.randrange(8)
        return True


def _instruction(verb: str, key: str, *arguments: int | None) -> Action:
    return Action((verb, key, *arguments), json.dumps([verb, key, *arguments]).encode())


def _padded(action: Action, random: Random) -> Action:
    """The same, but once in a while so long that it is sent in pieces."""
    if action.instruction is None or random.random() < 0.9:
        return action
    return action._replace(instruction=action.instruction + b" " * random.choice((30, 300, 3000)))
