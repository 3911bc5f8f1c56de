"""What a node applies at once is its own affair: in any batches a log gives the same answers and the same bytes."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

import pytest

from raftsvc import kv
from raftsvc.errors import Rejected
from raftsvc.kv import instructions, orders
from raftsvc.kv.history import Signal
from raftsvc.kv.instructions import encode
from raftsvc.kv.orders import Order
from raftsvc.kv.transactions import ITEMS

LEASES = ("0" * 16, "1" * 16)
PLACE = ("q", LEASES[0], 1)
"""A claim on a queue, under which a job may run as under any other."""

Entry = list[bytes]
"""The instructions of one; none: a pulse."""


def applied(entries: Iterable[Entry], batches: Iterator[int]) -> tuple[list[object], bytes]:
    """The answers, and the snapshot at the end, of a state to which so many entries were applied at once."""
    state = kv.KeyValueState()
    state.set_voters(frozenset((1,)))
    answers: list[object] = []
    left = next(batches)
    index = 0
    for index, entry in enumerate(entries, 1):
        if not entry:
            state.pass_time(index, 1000 + 40 * index)
        for instruction in entry:
            try:
                answers.append(state.apply_at(instruction, index, 1000 + 40 * index))
            except Rejected as rejected:
                answers.append(rejected.reason)
            assert not state._applying.content.holds.dropped, "what ran under it is told at once"
        left -= 1
        if not left:
            state.set_applied_index(index)
            left = next(batches)
    state.set_applied_index(index)
    return answers, state.snapshot()[0]


def check_batches(entries: list[Entry], source: random.Random) -> None:
    one_by_one = applied(entries, iter(lambda: 1, 0))
    assert applied(entries, iter(lambda: len(entries), 0)) == one_by_one
    assert applied(entries, iter(lambda: source.randint(1, 40), 0)) == one_by_one
    kv.KeyValueState().restore_snapshot(one_by_one[1], len(entries))


def running() -> list[Entry]:
    """A job is under way under a claim that has an item of a queue."""
    return [[encode([instructions.open_lease(lease, 10**9)])] for lease in LEASES] + [
        [encode([instructions.put("q", b"v")])],
        [encode([instructions.claim(*PLACE, kind=ITEMS)])],
        [orders.encode(Order(orders.CLOCK, (1, 1_000_000)))],
        [orders.encode(Order(orders.PLAN, (1,), "job", PLACE, b"every 60"))],
        [orders.encode(Order(orders.BEGIN, (1_000_000, 1, 1, 0, 1), "job", PLACE, b"me"))],
    ]


FINISH = orders.encode(Order(orders.FINISH, (7, orders.DONE), "job", PLACE, b""))


def test_a_run_under_an_item_that_is_done_has_died_however_much_is_applied_at_once() -> None:
    done = encode([instructions.ack(*PLACE)])
    others = [
        [encode([instructions.claim("other", LEASES[0], 2)])],
        [encode([instructions.release("other", LEASES[0], 2)])],
    ]
    check_batches([*running(), [done], *others, [FINISH]], random.Random(1))
    filled = [[encode([kv.set(f"f{number}", b"v")])] for number in range(200)]
    listed = [done, encode([kv.set(f"g{number}", b"v") for number in range(60)]), *others[0], *others[1]]
    check_batches([*running(), *filled, listed, [FINISH]], random.Random(2))


def instruction(source: random.Random) -> bytes:
    lease = source.choice(LEASES)
    name, number = source.choice(("q", "other", "a")), source.randint(1, 3)
    kind = ITEMS if name == "q" else 0
    key = f"k{source.randrange(20)}"
    return source.choice(
        [
            lambda: encode([kv.set(key, b"v")]),
            lambda: encode([kv.set(key, b"v", ttl=source.uniform(0.001, 2)), kv.delete("k1"), kv.incr("n", 1)]),
            lambda: encode([kv.incr("n", 1)]),
            lambda: encode([instructions.put("q", b"v")]),
            lambda: encode([instructions.claim(name, lease, number, kind=kind)]),
            lambda: encode([instructions.release(name, lease, number)]),
            lambda: encode([instructions.ack("q", lease, number)]),
            lambda: encode([instructions.open_lease(lease, source.randint(1, 3000))]),
            lambda: encode([instructions.end_lease(lease)]),
            lambda: orders.encode(Order(orders.CLOCK, (1, 1_000_000 + source.randrange(10**6)))),
            lambda: orders.encode(Order(orders.PLAN, (1,), "job", (name, lease, number), b"every 60")),
            lambda: orders.encode(
                Order(
                    orders.BEGIN, (1_000_000 + source.randrange(10**6), 1, 1, 0, 1), "job", (name, lease, number), b""
                )
            ),
        ]
    )()


@pytest.mark.parametrize("seed", range(10))
def test_any_log_has_the_same_answers_and_the_same_snapshot_in_any_batches(seed: int) -> None:
    source = random.Random(seed)
    entries = [[instruction(source) for _ in range(source.choice((0, 1, 1, 1, 5)))] for _ in range(400)]
    check_batches(entries, source)


def test_what_waits_to_be_noted_is_bounded_while_only_time_passes() -> None:
    state = kv.KeyValueState(max_events=10)
    for number in range(3000):
        state.apply_at(encode([kv.set(f"k{number:04}", b"", ttl=number + 1.0)]), number + 1, 0)
    state.set_applied_index(3000)
    for number in range(3000):
        state.pass_time(3001 + number, 1000 * number + 1002)
        assert len(state._applying.content.changes) <= 300
    assert len(state) == 0


def test_who_waits_for_a_claim_is_not_woken_for_half_of_an_entry() -> None:
    state = kv.KeyValueState()
    state.apply_at(encode([instructions.open_lease(LEASES[0], 10**9)]), 1, 1)
    state.set_applied_index(1)
    signal = Signal()
    state.await_claims("a", signal)
    state.apply_at(encode([instructions.claim("a", LEASES[0], 1)]), 2, 2)
    state.set_applied_index(1)  # the node stops at another instruction of that entry
    assert signal._lock.locked()
    state.set_applied_index(2)
    assert not signal._lock.locked()
