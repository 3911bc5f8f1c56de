"""The checker finds the histories that have an order, and only those."""

from __future__ import annotations

import itertools
import math
import os
import random
import subprocess
import sys
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pytest

from raftsvc.testing.linearizability import (
    ANY,
    IMPOSSIBLE,
    SAME,
    UNSPECIFIED,
    Except,
    KeyValueModel,
    Model,
    Operation,
    Plus,
    Verdict,
    check,
)
from tests.effort import turn_of

MODEL = KeyValueModel()
UNKNOWN = math.inf


class PlainModel:
    """Registers about which the checker is told nothing in advance."""

    key = KeyValueModel.key
    initial = KeyValueModel.initial
    step = KeyValueModel.step


class QueueModel:
    """("put", value) and ("take",), which gives the oldest value or None."""

    def key(self, input: Any) -> Hashable:  # noqa: A002
        return None

    def initial(self, key: Hashable) -> Hashable:
        return ()

    def step(self, state: Any, input: Any, output: Any, is_known: bool) -> Hashable:  # noqa: A002
        if input[0] == "put":
            return (*state, input[1])
        first = state[0] if state else None
        return state[1:] if not is_known or output == first else IMPOSSIBLE


def op(called: float, returned: float, verb: str, *arguments: Any, gives: Any = None, by: str = "c") -> Operation:
    return Operation(by, called, returned, (verb, "x", *arguments), gives)


def is_linearizable(*history: Operation, model: Model = MODEL) -> bool | None:
    return check(history, model).is_linearizable


def has_an_order(history: list[Operation], model: Model) -> bool:
    """The definition, by trying: any subset of the unknown ones, in any order that keeps precedence."""
    known = [operation for operation in history if operation.is_known]
    unknown = [operation for operation in history if not operation.is_known]
    for count in range(len(unknown) + 1):
        for happened in itertools.combinations(unknown, count):
            if _has_an_order_of([*known, *happened], model):
                return True
    return False


def _has_an_order_of(operations: list[Operation], model: Model) -> bool:
    for order in itertools.permutations(operations):
        if any(late.returned < early.called for early, late in itertools.combinations(order, 2)):
            continue
        state: Hashable = model.initial("x")
        for operation in order:
            state = model.step(state, operation.input, operation.output, operation.is_known)
            if state is IMPOSSIBLE:
                break
        else:
            return True
    return False


# -- by hand


def test_nothing_is_linearizable() -> None:
    assert check([], MODEL)


def test_a_read_gives_what_was_written_before() -> None:
    assert is_linearizable(op(0, 1, "set", 1), op(2, 3, "get", gives=1))


def test_a_read_during_a_write_gives_either_value() -> None:
    for value in (1, 2):
        assert is_linearizable(op(0, 1, "set", 1), op(2, 9, "set", 2), op(3, 4, "get", gives=value))


def test_a_stale_read_is_found() -> None:
    assert is_linearizable(op(0, 1, "set", 1), op(2, 3, "set", 2), op(4, 5, "get", gives=1)) is False


def test_a_lost_write_is_found() -> None:
    assert is_linearizable(op(0, 1, "set", 1), op(2, 3, "get", gives=None)) is False


def test_a_value_that_was_never_written_is_found() -> None:
    assert is_linearizable(op(0, 1, "set", 1), op(0, 3, "get", gives=2)) is False


def test_a_read_before_the_write_is_found() -> None:
    assert is_linearizable(op(0, 1, "get", gives=1), op(2, 3, "set", 1)) is False


def test_readers_do_not_go_back_in_time() -> None:
    write = op(0, 9, "set", 1)
    assert is_linearizable(write, op(1, 2, "get", gives=None, by="a"), op(3, 4, "get", gives=1, by="b"))
    assert is_linearizable(write, op(1, 2, "get", gives=1, by="a"), op(3, 4, "get", gives=None, by="b")) is False


def test_readers_agree_on_the_order_of_concurrent_writes() -> None:
    writes = [op(0, 9, "set", 1), op(0, 9, "set", 2)]
    one_two = [op(1, 2, "get", gives=1), op(3, 4, "get", gives=2)]
    two_one = [op(5, 6, "get", gives=2), op(7, 8, "get", gives=1)]
    assert is_linearizable(*writes, *one_two)
    assert is_linearizable(*writes, *two_one)
    assert is_linearizable(*writes, *one_two, *two_one) is False


def test_only_one_cas_of_the_same_value_succeeds() -> None:
    first, second = op(1, 5, "cas", None, 1, gives=True), op(1, 5, "cas", None, 2, gives=True)
    assert is_linearizable(first, second._replace(output=False))
    assert is_linearizable(first, second) is False


def test_a_cas_fails_only_where_the_value_differs() -> None:
    assert is_linearizable(op(0, 1, "set", 1), op(2, 3, "cas", 1, 2, gives=False)) is False
    assert is_linearizable(op(0, 1, "set", 1), op(2, 3, "cas", 2, 3, gives=False), op(4, 5, "get", gives=1))


def test_a_cas_may_keep_to_itself_whether_it_succeeded() -> None:
    for expected, value in ((1, 2), (3, 1)):
        history = [op(0, 1, "set", 1), op(2, 3, "cas", expected, 2)]
        assert is_linearizable(*history, op(4, 5, "get", gives=value))
        assert is_linearizable(*history, op(4, 5, "get", gives=3 - value)) is False


def test_a_delete_leaves_no_value() -> None:
    assert is_linearizable(op(0, 1, "set", 1), op(2, 3, "delete"), op(4, 5, "get", gives=None))
    assert is_linearizable(op(0, 1, "set", 1), op(2, 3, "delete"), op(4, 5, "get", gives=1)) is False


def test_an_unknown_write_may_have_happened_or_not() -> None:
    history = [op(0, 1, "set", 1), op(2, UNKNOWN, "set", 2)]
    for value in (1, 2):
        assert is_linearizable(*history, op(3, 4, "get", gives=value))


def test_an_unknown_write_may_surface_late() -> None:
    history = [op(0, 1, "set", 1), op(2, UNKNOWN, "set", 2), op(3, 4, "get", gives=1), op(5, 6, "set", 3)]
    assert is_linearizable(*history, op(7, 8, "get", gives=3), op(9, 10, "get", gives=2))


def test_an_unknown_write_that_was_seen_stays() -> None:
    history = [op(0, 1, "set", 1), op(2, UNKNOWN, "set", 2), op(3, 4, "get", gives=2)]
    assert is_linearizable(*history, op(5, 6, "get", gives=2))
    assert is_linearizable(*history, op(5, 6, "get", gives=1)) is False


def test_an_unknown_write_does_not_happen_before_its_call() -> None:
    assert is_linearizable(op(0, 1, "get", gives=2), op(2, UNKNOWN, "set", 2)) is False


def test_an_unknown_write_happens_once() -> None:
    history = [op(0, UNKNOWN, "set", 1), op(1, 2, "get", gives=1), op(3, 4, "set", 2)]
    assert is_linearizable(*history, op(5, 6, "get", gives=2))
    assert is_linearizable(*history, op(5, 6, "get", gives=2), op(7, 8, "get", gives=1)) is False


def test_an_unknown_write_that_nobody_reads_explains_a_failed_cas() -> None:
    history = [op(0, 1, "set", 1), op(2, 3, "cas", 1, 5, gives=False)]
    assert is_linearizable(*history, op(0, UNKNOWN, "set", 9))
    assert is_linearizable(*history, op(0, UNKNOWN, "set", 9), op(4, 5, "get", gives=1)) is False


def test_a_write_does_not_take_effect_after_its_return() -> None:
    history = [op(0, 1, "set", 1), op(2, 3, "set", 2), op(4, 5, "get", gives=1), op(6, 7, "get", gives=2)]
    assert is_linearizable(*history) is False
    assert is_linearizable(history[0], history[1]._replace(returned=UNKNOWN), *history[2:])


def test_a_counter_counts_nothing_twice() -> None:
    adds = [op(0, 1, "add", 1, gives=1), op(2, 3, "add", 1, gives=2)]
    assert is_linearizable(*adds, op(4, 5, "get", gives=2))
    assert is_linearizable(*adds, op(4, 5, "get", gives=3)) is False
    assert is_linearizable(*adds, op(4, 5, "add", 1, gives=4)) is False


def test_an_unknown_add_counts_once_or_never() -> None:
    history = [op(0, 1, "add", 1), op(2, UNKNOWN, "add", 1)]
    assert is_linearizable(*history, op(4, 5, "get", gives=1), op(6, 7, "get", gives=2))
    assert is_linearizable(*history, op(4, 5, "get", gives=2), op(6, 7, "get", gives=2))
    assert is_linearizable(*history, op(4, 5, "get", gives=3)) is False


def test_a_read_of_unknown_outcome_says_nothing() -> None:
    assert is_linearizable(op(0, 1, "set", 1), op(2, UNKNOWN, "get", gives=7))


def test_operations_at_the_same_time_are_concurrent() -> None:
    assert is_linearizable(op(0, 1, "set", 1), op(1, 2, "get", gives=None))
    assert is_linearizable(op(0, 1, "set", 1), op(1.5, 2, "get", gives=None)) is False
    assert is_linearizable(op(1, 1, "get", gives=1), op(1, 1, "set", 1))


def test_keys_do_not_affect_each_other() -> None:
    history = [
        Operation("a", 0, 1, ("set", "x", 1), None),
        Operation("a", 2, 3, ("get", "y"), None),
        Operation("a", 4, 5, ("set", "y", 1), None),
    ]
    assert check(history, MODEL)
    verdict = check([*history, Operation("a", 6, 7, ("get", "y"), 2)], MODEL)
    assert (verdict.is_linearizable, verdict.key) == (False, "y")


def test_a_model_without_effects_is_enough() -> None:
    put = [Operation("a", 0, 1, ("put", 1)), Operation("b", 0, 2, ("put", 2)), Operation("c", 0, UNKNOWN, ("put", 3))]
    take = [Operation("a", 4, 5, ("take",), 2), Operation("a", 6, 7, ("take",), 3), Operation("a", 8, 9, ("take",), 1)]
    assert check([*put, *take], QueueModel())
    assert not check([*put, *take, Operation("a", 10, 11, ("take",), 3)], QueueModel())


def test_an_operation_that_returns_before_its_call_is_refused() -> None:
    with pytest.raises(ValueError, match="returns after it is called"):
        check([op(2, 1, "get")], MODEL)
    with pytest.raises(ValueError, match="returns after it is called"):
        check([op(math.nan, 1, "get")], MODEL)


def test_an_unknown_verb_is_refused() -> None:
    with pytest.raises(ValueError, match="'push' is no operation"):
        check([op(0, 1, "push", 1)], MODEL)


# -- the report


def test_the_report_shows_the_stale_read_and_what_overwrote_it() -> None:
    history = [op(0, 1, "set", "old", by="ann"), op(2, 3, "set", "new", by="bob")]
    history += [op(4 + n, 4.5 + n, "get", gives="new", by="bob") for n in range(20)]
    stale = op(30, 31, "get", gives="old", by="cy")
    running = op(29, 40, "set", "newer", by="dan")
    verdict = check([*history, stale, running, op(50, 51, "get", gives="newer")], MODEL)
    assert verdict.is_linearizable is False
    assert verdict.prefix == tuple(history)
    assert verdict.state == "new"
    assert verdict.unplaced == (stale, running)
    report = str(verdict)
    assert "ann: ('set', 'x', 'old')" in report
    assert "bob: ('set', 'x', 'new')" in report
    assert "In no order is there a place for\n    [30.000000 .. 31.000000] cy: ('get', 'x') -> 'old'" in report
    assert len(report.splitlines()) < 20


def test_the_report_names_the_first_violation_only() -> None:
    history = [op(0, 1, "get", gives=7, by="first"), op(2, 3, "get", gives=8, by="second")]
    verdict = check(history, MODEL)
    assert verdict.unplaced == (history[0],)
    assert "second" not in str(verdict)


def test_the_verdict_reads_well_otherwise_too() -> None:
    assert str(check([], MODEL)) == "linearizable"
    assert "time ran out before" in str(Verdict(False, "x"))


# -- against the definition


def tiny_history(rng: random.Random, verbs: str, *, values: int, length: int) -> list[Operation]:
    """Anything at all: mostly nonsense, now and then linearizable."""
    history = []
    for number in range(length):
        called = rng.randrange(8)
        returned = UNKNOWN if rng.random() < 0.2 else called + rng.choice((0, 1, 1, 2, 3, 5))
        verb = rng.choice(verbs.split())
        arguments: tuple[Any, ...] = ()
        output: Any = None
        if verb == "get":
            output = rng.choice((None, *range(values)))
        elif verb == "set":
            arguments = (rng.randrange(values),)
        elif verb == "cas":
            arguments = (rng.choice((None, *range(values))), rng.randrange(values))
            output = rng.choice((True, False, True, False, None))
        elif verb == "add":
            arguments = (rng.choice((1, 1, 2, -1, 0)),)
            output = rng.choice((None, *range(values)))
        history.append(op(called, returned, verb, *arguments, gives=output, by=f"c{number}"))
    return history


@pytest.mark.parametrize("model", [MODEL, PlainModel()], ids=["with effects", "without effects"])
@pytest.mark.parametrize(
    "verbs", ["get set", "get get set delete", "get set cas", "get cas", "get add", "get get set set cas add delete"]
)
def test_the_checker_agrees_with_the_definition(verbs: str, model: Model) -> None:
    rng = random.Random(verbs)
    found = {True: 0, False: 0}
    for _ in range(1000):
        history = tiny_history(rng, verbs, values=rng.choice((2, 3, 5)), length=rng.choice((2, 3, 3, 4, 4, 5)))
        verdict = check(history, model)
        assert verdict.is_linearizable is has_an_order(history, model), history
        found[bool(verdict)] += 1
    assert min(found.values()) > 60


# -- histories of a real register


def recorded_history(
    rng: random.Random, verbs: str, *, length: int, clients: int, keys: int = 1, values: int | None = None
) -> list[Operation]:
    """What clients of a store see that does each operation at some instant between call and return.

    values: how many there are; None gives each write a value of its own.
    """
    free = [rng.random() for _ in range(clients)]
    calls = []
    for _ in range(length):
        client = min(range(clients), key=free.__getitem__)
        called = free[client]
        returned = called + 0.01 + rng.expovariate(1)
        instant = rng.uniform(called, returned)
        free[client] = returned + rng.random() * 0.1
        if rng.random() < 0.01:
            returned = UNKNOWN
            instant = rng.choice((instant, instant + 20, UNKNOWN))
        calls.append((instant, client, called, returned))
    store: dict[str, Any] = {}
    history = []
    for number, (instant, client, called, returned) in enumerate(sorted(calls)):
        key = f"k{rng.randrange(keys)}"
        verb = rng.choice(verbs.split())
        value = number if values is None else rng.randrange(values)
        before = store.get(key)
        arguments: tuple[Any, ...] = ()
        after, output = before, None
        if verb == "get":
            output = before
        elif verb == "set":
            arguments, after = (value,), value
        elif verb == "delete":
            after = None
        elif verb == "cas":
            arguments = (before if rng.random() < 0.6 else value - 5, value)
            output = before == arguments[0]
            after = value if output else before
        elif verb == "add":
            arguments = (rng.choice((1, 1, 2)),)
            after = (before or 0) + arguments[0]
            output = rng.choice((after, None))
        if instant != UNKNOWN:
            store[key] = after
        if returned == UNKNOWN:
            output = None
        history.append(Operation(client, called, returned, (verb, key, *arguments), output))
    return history


def with_a_lie(rng: random.Random, history: list[Operation]) -> list[Operation]:
    """Change one operation; the history may be linearizable still."""
    history = list(history)
    number = rng.choice([n for n, operation in enumerate(history) if operation.is_known] or [0])
    told = history[number]
    answers = [each.output for each in history if each.input[0] == told.input[0] and each.is_known]
    history[number] = rng.choice(
        (
            told._replace(output=rng.choice(answers or [None])),
            told._replace(returned=rng.uniform(told.called, min(told.returned, told.called + 9))),
            told._replace(returned=UNKNOWN, output=None),
        )
    )
    return history


@pytest.mark.parametrize("values", [None, 2, 4][turn_of(3)])
@pytest.mark.parametrize("verbs", ["get set", "get set delete", "get set cas", "add get", "get set cas delete add"])
def test_effects_change_no_verdict(verbs: str, values: int | None) -> None:
    rng = random.Random(f"{verbs} {values}")
    lies = 0
    for _ in range(150):
        history = recorded_history(rng, verbs, length=rng.randrange(4, 20), clients=rng.randrange(2, 6), values=values)
        assert check(history, MODEL), history
        for _ in range(5):
            history = with_a_lie(rng, history)
            verdict = check(history, MODEL)
            assert bool(verdict) is bool(check(history, PlainModel())), history
            lies += not verdict
    assert lies > 10


@pytest.mark.parametrize(
    ("verbs", "clients", "keys", "values"),
    [
        ("get set cas delete", 20, 50, None),
        ("get set cas delete", 20, 50, 5),
        ("get set", 8, 1, None),
        ("get set cas", 8, 1, 5),
        ("add get", 8, 1, None),
    ][turn_of(2)],
)
def test_long_histories_are_judged_in_seconds(verbs: str, clients: int, keys: int, values: int | None) -> None:
    history = recorded_history(random.Random(1), verbs, length=20_000, clients=clients, keys=keys, values=values)
    assert check(history, MODEL, timeout=60)


@pytest.mark.parametrize("verbs", ["get set", "get set cas", "add get"][turn_of(3)])
def test_one_stale_read_in_a_long_history_is_found(verbs: str) -> None:
    history = recorded_history(random.Random(1), verbs, length=20_000, clients=8)
    history.sort(key=lambda operation: operation.called)
    reads = [n for n, operation in enumerate(history) if operation.input[0] == "get" and operation.is_known]
    number, older = reads[len(reads) // 2], reads[len(reads) // 2 - 100]
    stale = history[number] = history[number]._replace(output=history[older].output)
    verdict = check(history, MODEL, timeout=60)
    assert verdict.is_linearizable is False
    assert verdict.unplaced[0] == stale


# -- time, order, hashes


def hard_history() -> list[Operation]:
    """No subset of even amounts has an odd sum, which is for the search to find out."""
    adds = [op(0, 9, "add", 2 << n) for n in range(30)]
    return [op(-2, -1, "set", 0), *adds, op(0, 1, "get", gives=(1 << 29) + 1)]


def test_time_runs_out_without_a_verdict() -> None:
    verdict = check(hard_history(), MODEL, timeout=0.05)
    assert verdict.is_linearizable is None
    assert not verdict
    assert str(verdict) == "undecided: time ran out at key 'x'"


def test_a_violation_of_one_key_is_found_though_time_runs_out_at_another() -> None:
    easy = [Operation("a", number, number + 0.5, ("get", "y"), None) for number in range(100)]
    bad = Operation("a", 200, 201, ("get", "y"), 1)
    assert check([*hard_history(), *easy], MODEL, timeout=0.1).is_linearizable is None
    assert check([*hard_history(), *easy, bad], MODEL, timeout=2.0).unplaced == (bad,)


def violating_history() -> list[Operation]:
    rng = random.Random(3)
    history = recorded_history(rng, "get set cas delete", length=400, clients=6, keys=3, values=4)
    while check(history, MODEL):
        history = with_a_lie(rng, history)
    return history


def test_the_report_does_not_depend_on_hashes() -> None:
    program = "from tests.testing.test_linearizability import *; print(check(violating_history(), MODEL), end='')"
    root = Path(__file__).resolve().parents[2]
    for seed in ("0", "1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        assert done.stdout == str(check(violating_history(), MODEL))


def test_the_order_in_which_a_history_is_given_does_not_matter() -> None:
    history = violating_history()
    random.Random(1).shuffle(history)
    assert check(history, MODEL).is_linearizable is False


# -- what the model promises


def test_effects_agree_with_steps() -> None:
    states = [None, -1, 0, 1, 2, 3]
    inputs: list[tuple[Any, ...]] = [("get", "x"), ("delete", "x")]
    inputs += [("set", "x", value) for value in states]
    inputs += [("cas", "x", *pair) for pair in itertools.product(states, repeat=2)]
    inputs += [("add", "x", amount) for amount in (-2, -1, 0, 1, 2)]
    for asked, output, is_known, before in itertools.product(inputs, [*states, True, False], (True, False), states):
        if asked[0] == "cas" and not isinstance(output, bool | None):
            continue
        after = MODEL.step(before, asked, output, is_known)
        requires, leaves = MODEL.effect(asked, output, is_known)
        if isinstance(requires, Except):
            is_possible = before != requires.state
        elif requires is ANY or requires is UNSPECIFIED:
            is_possible = True
        else:
            is_possible = before == requires
        if after is IMPOSSIBLE:
            assert requires is UNSPECIFIED or not is_possible
        elif is_known or after != before:  # of an unknown one, the case that it changes the state
            assert is_possible
            if leaves is SAME:
                assert after == before
            elif isinstance(leaves, Plus):
                assert after == (before or 0) + leaves.amount
            elif leaves is not UNSPECIFIED:
                assert after == leaves
