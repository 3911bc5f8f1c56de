"""What a State does where its cluster goes on from a backup: it takes a higher index, and ends what processes held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import raftsvc
from raftsvc import kv
from raftsvc.core.membership import MAX_VACANCIES, Configuration, Member
from raftsvc.core.messages import EntryKind, make_entry
from raftsvc.kv import KeyValueState, if_held, incr
from raftsvc.kv import instructions as made
from raftsvc.kv.expiry import deadline_of
from raftsvc.kv.instructions import encode
from raftsvc.member.envelopes import INSTRUCTION, wrap, wrap_anew, wrap_open
from raftsvc.member.machine import Answer, Machine
from raftsvc.member.sessions import Sessions
from tests.service.harness import ListState

HIGH = 10**15
A, B, C = (f"{number:016x}" for number in (1, 2, 3))
CONFIG = Configuration({4: Member("n:1", True)}, 4)
Make = Callable[[], Any]


def states() -> raftsvc.States:
    return raftsvc.States(kv=KeyValueState(), mine=ListState())


def store_of(state: Any) -> KeyValueState:
    found = state["kv"] if isinstance(state, raftsvc.States) else state
    assert isinstance(found, KeyValueState)
    return found


def written(state: Any, *operations: Any) -> bytes:
    """As an instruction for the store in a State."""
    head = b"\x02kv" if isinstance(state, raftsvc.States) else b""
    return head + encode(list(operations))


def machine_of(state: Any) -> Machine:
    """A State with keys, leases, who holds and who waits, and items of a queue."""
    machine = Machine(state)
    steps = [
        [kv.set("a", b"1")],
        [kv.set("passing", b"1", ttl=100.0)],
        [incr("n")],
        [made.open_lease(A, 50_000)],
        [made.open_lease(B, 50_000)],
        [kv.set("leased", b"1", lease=_Lease(A))],
        [made.claim("x", A, 1)],
        [made.claim("x", B, 1)],
    ]
    entries = [make_entry(1, 1, EntryKind.NORMAL, wrap_open(4, 7, 1, 0))]
    machine.config = CONFIG
    entries += [
        make_entry(n, 1, EntryKind.NORMAL, wrap(INSTRUCTION, 1, 7, n, 0, written(state, *step)), 10)
        for n, step in enumerate(steps, 2)
    ]
    answers: list[Answer] = []
    machine.apply(entries, answers)
    assert all(answer.outcome.rejection is None for answer in answers)  # type: ignore[union-attr]
    return machine


class _Lease:
    """By its id."""

    def __init__(self, lease: str) -> None:
        self.id = lease


def gone_on(machine: Machine, state: Any) -> Machine:
    """Another State, of a cluster that goes on from the first's, far above."""
    other = Machine(state)
    other.restore(HIGH, 1, CONFIG, Sessions().encode(), 0, iter(machine.capture()), machine.applied_time_ms)
    other.apply([make_entry(HIGH + 1, 1, EntryKind.NORMAL, wrap_anew(1, machine.applied_index), 10)], [])
    return other


@pytest.mark.parametrize("make", [KeyValueState, states])
def test_leases_end_with_all_that_is_under_them_and_the_rest_stays(make: Make) -> None:
    machine = machine_of(make())
    before = store_of(machine.state)
    assert [claim.fence > 0 for claim in before.claims("x")] == [True, False]
    state = make()
    other = gone_on(machine, state)
    store = store_of(state)
    assert store.claims("x") == []
    assert {key: value.data for key, value in store.list().items()} == {"a": b"1", "n": b"1", "passing": b"1"}
    assert store.list()["a"].version == before.list()["a"].version == 2
    assert state.applied_index() == store.applied_index() == HIGH + 1
    assert store.next_deadline() == deadline_of(10, 100_000), "it has the time that it had left"
    if make is KeyValueState:
        assert store.apply_at(encode([made.open_lease(C, 5000)]), HIGH + 2, 10) is True
        assert store.apply_at(encode([made.claim("x", C, 1)]), HIGH + 3, 10) == HIGH + 3
        with pytest.raises(raftsvc.Rejected):
            store.apply_at(encode([kv.set("a", b"2"), if_held(_Hold("x", 8))]), HIGH + 4, 10)
    data, index = state.snapshot()
    again = make()
    again.restore_snapshot(data, index)
    assert again.snapshot() == (data, index)
    assert other.applied_index == HIGH + 1


class _Hold:
    """As it was given out before."""

    def __init__(self, name: str, fence: int) -> None:
        self.name = name
        self.fence = fence


def test_a_state_of_ones_own_takes_the_higher_index_and_need_not_know() -> None:
    machine = Machine(ListState())
    machine.config = CONFIG
    machine.apply(
        [
            make_entry(1, 1, EntryKind.NORMAL, wrap_open(4, 7, 1, 0)),
            make_entry(2, 1, EntryKind.NORMAL, wrap(INSTRUCTION, 1, 7, 1, 0, b"one")),
        ],
        [],
    )
    state = ListState()
    other = gone_on(machine, state)
    assert (state.items, state.applied_index()) == ([b"one"], HIGH + 1)
    assert list(other.config.members) == [4]
    assert other.state.peers() == {4: "n:1"}


def test_former_members_may_come_back_and_who_was_evicted_may_not() -> None:
    members = {n: Member(f"n{n}:1", n < 3, bytes([n])) for n in (1, 2, 4)}
    former = Configuration(members, 5, vacant={"n3:1": False, "n5:1": True, "n2:1": False})
    anew = former.anew("n1:1")
    assert anew.members == {6: Member("n1:1", True)}
    assert (anew.highest_id, anew.voters) == (6, {6})
    assert anew.vacant == {"n3:1": False, "n5:1": True, "n2:1": False, "n4:1": True}
    many = Configuration(members, 5, vacant={f"m{n}:1": False for n in range(MAX_VACANCIES)})
    assert len(many.anew("n9:1").vacant) <= MAX_VACANCIES
    assert many.anew("n9:1").vacant[""] is False, "of who was evicted none is forgotten"


def test_what_a_state_raises_there_stops_applying() -> None:
    class Broken(ListState):
        def begin_anew(self, index: int, time_ms: int) -> None:
            raise ZeroDivisionError

    machine = Machine(Broken())
    with pytest.raises(ZeroDivisionError):
        machine.apply([make_entry(1, 1, EntryKind.NORMAL, wrap_anew(1, 1))], [])
    assert machine.applied_index == 0
