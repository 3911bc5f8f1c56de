"""Queues and meetings, as the log has them: who is handed out what, and what becomes of it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from raftsvc import kv
from raftsvc.kv import instructions, snapshots, transactions
from raftsvc.kv.instructions import Code, Effect
from raftsvc.kv.items import DEAD, name_of
from raftsvc.kv.queues import Item
from raftsvc.kv.snapshots import MalformedSnapshotError
from raftsvc.kv.transactions import ITEMS, MEETING
from tests.effort import turn_of
from tests.kv.test_holds import LEASES, A, B, C, Log, claimed, held, log, opened

__all__ = ["log"]
MANY = 2**31 - 1
Q = "queue:q"


def put(value: bytes, max_tries: int | None = None, queue: str = Q) -> Effect:
    return instructions.put(queue, value, max_tries)


def get(lease: str, number: int = 1, queue: str = Q, *, waits: bool = True) -> Effect:
    return instructions.claim(queue, lease, number, MANY, waits=waits, kind=ITEMS)


def ack(lease: str, number: int = 1, queue: str = Q) -> Effect:
    return instructions.ack(queue, lease, number)


def nack(lease: str, number: int = 1, queue: str = Q) -> Effect:
    return instructions.release(queue, lease, number)


def item_of(log: Log, lease: str, number: int = 1, queue: str = Q) -> Item | None:
    return log.state.item_of((queue, lease, number))


def value_of(log: Log, lease: str, number: int = 1, queue: str = Q) -> bytes | None:
    item = item_of(log, lease, number, queue)
    return None if item is None else item.value


def meet(lease: str, number: int = 1, size: int = 3, name: str = "m") -> Effect:
    return instructions.claim(name, lease, number, size, kind=MEETING)


def test_items_are_handed_out_in_their_order_to_whoever_comes_first(log: Log) -> None:
    assert [log.at(0, put(value)) for value in (b"1", b"2")] == [7, 8]
    assert log.at(0, get(A)) == 9
    assert log.at(0, get(B)) == 10
    assert log.at(0, get(C)) == 0, "it waits"
    assert [value_of(log, lease) for lease in (A, B, C)] == [b"1", b"2", None]
    assert log.state.item_counts(Q) == (0, 2)
    log.at(0, put(b"3"))
    assert value_of(log, C) == b"3"
    assert [claim.fence for claim in log.state.claims(Q)] == [9, 10, log.index]


def test_who_does_not_wait_is_told_at_once_that_there_is_nothing(log: Log) -> None:
    assert log.at(0, get(A, waits=False)) == 0
    assert log.state.claims(Q) == []
    log.at(0, put(b"1"))
    assert log.at(0, get(A, waits=False)) == log.index
    assert log.at(0, get(B, waits=False)) == 0


def test_an_entry_hands_out_as_many_items_as_there_are(log: Log) -> None:
    log.at(0, put(b"1"), put(b"2"), put(b"3"))
    assert log.entry(0, [[get(A)], [get(B)], [get(C)]]) == [8, 8, 8]
    assert [value_of(log, lease) for lease in (A, B, C)] == [b"1", b"2", b"3"]
    assert log.state.next_deadline() == 10_001, "nothing else is due"


def test_what_is_acknowledged_is_gone_and_is_so_once(log: Log) -> None:
    log.at(0, put(b"1"))
    log.at(0, get(A))
    assert log.at(0, ack(B)) is False
    assert log.at(0, ack(A)) is True
    assert log.at(0, ack(A)) is False
    assert log.state.item_counts(Q) == (0, 0)
    assert log.state.claims(Q) == []
    log.at(0, get(B))
    assert value_of(log, B) is None
    log.pulse(10_001)
    assert log.state.item_counts(Q) == (0, 0)


def test_who_waits_has_nothing_to_acknowledge(log: Log) -> None:
    log.at(0, get(A))
    assert log.at(0, ack(A)) is False
    log.at(0, put(b"1"))
    assert value_of(log, A) == b"1", "and waits on"


def test_what_is_given_back_comes_first_again_and_counts_the_tries(log: Log) -> None:
    log.at(0, put(b"1"))
    log.at(0, put(b"2"))
    log.at(0, get(A))
    log.at(0, nack(A))
    log.at(0, get(B))
    assert item_of(log, B) == (name_of(Q, 7), 7, b"1", 2, 2)
    log.at(0, get(A, 2))
    log.at(0, nack(B))
    log.at(0, nack(A, 2))
    assert log.state.item_counts(Q) == (2, 0)
    log.at(0, get(C))
    assert item_of(log, C) == (name_of(Q, 7), 7, b"1", 3, 3)


def test_what_is_given_back_goes_to_who_waits(log: Log) -> None:
    log.at(0, put(b"1"))
    for lease in (A, B, C):
        log.at(0, get(lease))
    log.at(0, nack(A))
    assert value_of(log, B) == b"1"
    log.at(0, nack(B))
    assert value_of(log, C) == b"1"


def test_what_somebody_had_whose_lease_is_over_is_handed_out_again_and_not_before(log: Log) -> None:
    log.at(0, put(b"1"), put(b"2"))
    log.at(0, get(A, 1))
    log.at(0, get(A, 2))
    log.at(9_000, instructions.keep_lease(B, 0, []))
    log.at(9_000, get(B, 1))
    log.at(9_000, get(B, 2))
    log.at(10_000, kv.set("k", b""))
    assert [value_of(log, A, number) for number in (1, 2)] == [b"1", b"2"]
    log.pulse(10_001)
    assert [value_of(log, B, number) for number in (1, 2)] == [b"1", b"2"]
    assert log.at(10_001, kv.if_held(held(name_of(Q, 7), 1)), kv.set("k", b"late")) == "condition 0 does not hold: 0"
    assert log.at(10_001, kv.if_held(held(name_of(Q, 7), 2)), kv.set("k", b"fine")) is True


def test_a_renewal_that_does_not_name_it_gives_it_back_and_counts_no_try(log: Log) -> None:
    log.at(0, put(b"1", max_tries=1))
    log.at(0, get(A))
    log.at(0, instructions.keep_lease(A, log.index, []))
    assert log.state.item_counts(Q) == (1, 0)
    log.at(0, get(B))
    item = item_of(log, B)
    assert item is not None
    assert (item.tries, item.fence) == (1, 2), "nobody had asked for it any more, and it was handed out"


def test_a_lease_that_is_ended_gives_it_back_and_counts_no_try(log: Log) -> None:
    log.at(0, put(b"1", max_tries=1))
    log.at(0, get(A))
    log.at(0, instructions.end_lease(A))
    assert log.state.item_counts(Q) == (1, 0)
    log.at(0, get(B))
    item = item_of(log, B)
    assert item is not None
    assert (item.tries, item.fence) == (1, 2), "nothing was wanted under it any more"


def test_what_came_back_too_often_is_put_aside(log: Log) -> None:
    log.at(0, get(C, 9, Q + DEAD))
    log.at(0, put(b"bad", max_tries=2), put(b"good"))
    for _ in range(2):
        log.at(0, get(A))
        assert value_of(log, A) == b"bad"
        log.at(0, nack(A))
    log.at(0, get(A))
    assert value_of(log, A) == b"good"
    item = item_of(log, C, 9, Q + DEAD)
    assert item is not None
    assert (item.value, item.tries, item.fence) == (b"bad", 1, 1)
    assert item.id > 8, "it is another item there"
    for _ in range(5):
        log.at(0, nack(C, 9, Q + DEAD))
        log.at(0, get(C, 9, Q + DEAD))
    assert value_of(log, C, 9, Q + DEAD) == b"bad", "where it is tried for ever"
    log.at(0, ack(C, 9, Q + DEAD))
    assert log.state.report()["items"] == 1


def test_the_dead_of_a_queue_with_the_longest_name_are_taken_and_put_back(log: Log) -> None:
    longest = "x" * transactions.MAX_QUEUE_BYTES
    log.at(0, put(b"1", 1, longest))
    log.at(0, get(A, 1, instructions.checked_queue(longest)))
    log.at(0, nack(A, 1, longest))
    dead = longest + DEAD
    log.at(0, get(A, 2, instructions.checked_queue(dead)))
    assert value_of(log, A, 2, dead) == b"1"
    assert log.at(0, put(b"2", None, dead), ack(A, 2, dead)) == log.index
    assert log.at(0, Effect(Code.PUT, dead, b"\0\1")) == (
        "not a transaction: an item is cut short, or of a queue with too long a name"
    ), "what could die has to have room for that"
    for attempt in (lambda: put(b"3", 1, dead), lambda: get(A, 3, instructions.checked_queue("x" + longest))):
        with pytest.raises(ValueError, match="at most 992"):
            attempt()


def test_the_last_try_may_end_with_a_lease(log: Log) -> None:
    log.at(0, put(b"bad", max_tries=1))
    log.at(0, get(A))
    log.at(9_000, instructions.keep_lease(B, 0, []))
    log.at(9_000, get(B, 1, Q + DEAD))
    log.pulse(10_001)
    assert value_of(log, B, 1, Q + DEAD) == b"bad"
    assert log.state.item_counts(Q) == (0, 0)


def test_what_dies_with_a_lease_has_the_same_ids_after_a_restore(log: Log) -> None:
    queues = ("queue:z", "queue:a", "queue:m")  # in the order of claims, which is not that of names
    for number, queue in enumerate(queues, 1):
        log.at(0, put(b"bad", 1, queue))
        log.at(0, get(A, number, queue))
    twin = Log()
    twin.index = log.index
    twin.state.restore_snapshot(*log.state.snapshot())
    for each in (log, twin):
        each.at(9_000, instructions.keep_lease(B, 0, []))
        each.pulse(10_001)
    assert twin.state.snapshot() == log.state.snapshot()
    for each in (log, twin):
        ids = []
        for number, queue in enumerate(queues, 1):
            each.at(10_001, get(B, number, queue + DEAD))
            item = item_of(each, B, number, queue + DEAD)
            assert item is not None
            ids.append(item.id)
        assert ids == [14, 15, 16], "by the numbers of the claims"


def test_ids_rise_and_are_never_given_again(log: Log) -> None:
    first = log.at(0, put(b"1"), put(b"2"), put(b"3"))
    assert first == 9, "the last of three"
    assert log.at(0, put(b"4")) == 10
    log.index = 10**9  # as after a backup was restored
    assert log.at(0, put(b"5")) == 10**9 + 1


def test_an_item_comes_with_a_transaction_or_not_at_all(log: Log) -> None:
    refused = log.at(0, kv.if_not_modified("k", 5), put(b"1"), kv.set("k", b"1"))
    assert refused == "condition 0 does not hold: 0"
    assert log.state.item_counts(Q) == (0, 0)
    log.at(0, kv.if_not_exists("k"), kv.set("k", b"1"), put(b"1"))
    assert log.state.item_counts(Q) == (1, 0)


def test_what_is_done_with_an_item_is_done_by_who_has_it(log: Log) -> None:
    log.at(0, put(b"1"))
    log.at(0, get(A))
    log.at(0, get(B))
    log.at(0, nack(A))
    name = name_of(Q, 7)
    assert log.at(0, kv.if_held(held(name, 1)), ack(A), kv.incr("done")) == "condition 0 does not hold: 0"
    assert log.at(0, kv.if_held(held(name, 2)), ack(B), kv.incr("done")) == 1
    assert log.at(0, kv.if_held(held(name, 2)), ack(B), kv.incr("done")) == "condition 0 does not hold: 0"
    assert log.state.item_counts(Q) == (0, 0)


def test_an_item_that_nobody_has_is_held_by_nobody(log: Log) -> None:
    log.at(0, put(b"1"))
    name = name_of(Q, 7)
    assert log.at(0, kv.if_held(held(name, 0)), kv.set("k", b"")) == "condition 0 does not hold: 0"
    log.at(0, get(A))
    assert log.at(0, kv.if_held(held(name, 1)), kv.set("k", b"")) is True
    log.at(0, nack(A))
    assert log.at(0, kv.if_held(held(name, 1)), kv.set("k", b"")) == "condition 0 does not hold: 0"


def test_a_fence_that_several_have_shows_of_nobody_that_he_has_something(log: Log) -> None:
    log.at(0, put(b"1"), put(b"2"))
    fences = log.entry(0, [[get(A)], [get(B)]])
    assert fences == [8, 8], "of the queue"
    log.at(0, meet(A, 2, size=2))
    fence = log.at(0, meet(B, 2, size=2))
    for name, shared in ((Q, 8), ("m", fence)):
        assert log.at(0, kv.if_held(held(name, shared)), kv.set("k", b"")) == "condition 0 does not hold: 1"
    for number in (7, 8):
        assert log.at(0, kv.if_held(held(name_of(Q, number), 1)), kv.set("k", b"")) is True


def test_who_claims_the_name_of_an_item_takes_it_from_nobody(log: Log) -> None:
    log.at(0, put(b"1"))
    log.at(0, get(A))
    name = name_of(Q, 7)
    log.at(0, get(B, 1, name))  # such as a queue for what is said of it
    log.at(0, claimed(C, 1, name + "/"))
    assert log.at(0, kv.if_held(held(name, 1)), ack(A)) is True
    assert log.at(0, kv.if_held(held(name, 1)), ack(A)) == "condition 0 does not hold: 0"


def test_a_queue_is_claimed_as_one_and_other_names_are_not(log: Log) -> None:
    log.at(0, get(A))
    assert log.at(0, instructions.claim(Q, B, 1, MANY)) == f"what is claimed has {MANY} units"
    log.at(0, instructions.claim("lock:x", A, 2))
    assert log.at(0, get(B, 1, "lock:x")) == "what is claimed has 1 units"


def test_what_stands_in_queues_is_counted_and_given_back(log: Log) -> None:
    empty = log.state.report()
    log.at(0, put(bytes(1000)))
    size = int(str(log.state.report()["size_bytes"])) - int(str(empty["size_bytes"]))
    assert size >= 1000
    log.at(0, kv.max_state_bytes(int(str(log.state.report()["size_bytes"])) + 1000))
    before = log.state.snapshot()[0]
    assert "the state would have" in log.at(0, put(bytes(1000)))
    assert log.state.snapshot()[0] == before
    log.at(0, kv.max_state_bytes(None))
    log.at(0, get(A))
    log.at(0, ack(A))
    assert log.state.report()["size_bytes"] == empty["size_bytes"]


def fill(log: Log) -> int:
    """Have as many items as there may be; returns how many."""
    log.at(0, kv.max_state_bytes(20_000))
    count = 0
    while isinstance(log.at(0, put(b"x")), int):
        count += 1
    assert "the state would have" in log.at(0, kv.set("k", b""))
    return count


def test_a_store_that_is_full_of_work_is_worked_off_by_who_comes_then(log: Log) -> None:
    count = fill(log)
    late = "f" * 16
    assert log.at(0, opened(late)) is True
    for number in range(1, count + 1):
        assert log.at(0, get(late, number)) == log.index
    assert log.at(0, get(late, count + 1)) == 0, "and waits"
    assert len(log.state.claims(Q)) == count + 1
    assert "the state would have" in log.at(0, claimed(late, count + 2)), "a lock is no work at a queue"
    assert [log.at(0, ack(late, number)) for number in range(1, count + 1)] == [True] * count
    assert isinstance(log.at(0, put(b"1")), int)
    assert value_of(log, late, count + 1) == b"1"


def test_what_is_kept_for_who_waits_at_queues_has_an_end(log: Log) -> None:
    fill(log)
    answers = [log.at(0, opened(f"{number:016x}")) for number in range(100, 900)]
    assert answers[:600] == [True] * 600
    assert "the state would have" in answers[-1]
    assert "the state would have" in log.at(0, get(A, 1, "queue:empty"))
    assert log.at(0, get(A, 2)) == log.index, "there is an item, and room once that is done"


def test_what_an_item_leaves_free_is_room_for_what_is_done_with_it(log: Log) -> None:
    first = log.index + 1
    fill(log)
    log.at(0, get(A))
    by_holder = kv.if_held(held(name_of(Q, first + 1), 1))
    before = log.state.snapshot()[0]
    assert "the state would have" in log.at(0, by_holder, ack(A), ack(A), kv.set("sent", bytes(800))), "it frees once"
    assert "the state would have" in log.at(0, ack(B), kv.set("sent", b"")), "there is nothing that this ends"
    assert log.state.snapshot()[0] == before
    assert log.at(0, by_holder, ack(A), kv.set("sent", bytes(400))) is True
    assert log.at(0, ack(A)) is False


@pytest.mark.parametrize(
    ("operations", "why"),
    [
        ([Effect(Code.PUT, Q, b"1")], "an item is cut short"),
        ([Effect(Code.PUT, "x" * 993, b"\0\0")], "too long a name"),
        ([Effect(Code.ACK, Q, b"1")], "another length"),
        ([Effect(Code.ACK, Q, b"G" * 16 + bytes(8))], "no such lease"),
        ([instructions.claim(Q, A, 1, MANY, 2, kind=ITEMS)], "a claim of 2"),
        ([instructions.claim(Q, A, 1, 3, 2, kind=MEETING)], "a claim of 2"),
        ([instructions.claim(Q, A, 1, 1, kind=3)], "a claim of 1"),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(log: Log, operations: list[Any], why: str) -> None:
    before = log.state.snapshot()[0]
    assert why in log.at(0, *operations)
    assert log.state.snapshot()[0] == before


# -- meetings


def rounds(log: Log, name: str = "m") -> list[int]:
    return [claim.fence for claim in log.state.claims(name)]


def test_a_meeting_begins_for_all_at_once(log: Log) -> None:
    assert log.at(0, meet(A)) == 0
    assert log.at(0, meet(B)) == 0
    assert rounds(log) == [0, 0]
    assert log.at(0, meet(C)) == log.index
    assert rounds(log) == [log.index] * 3
    assert log.at(0, meet(LEASES[3])) == 0, "the next round"


def test_who_does_not_wait_may_be_the_last_who_was_missing(log: Log) -> None:
    def at_once(lease: str, number: int) -> Effect:
        return instructions.claim("m", lease, number, 3, waits=False, kind=MEETING)

    log.at(0, meet(A))
    assert log.at(0, at_once(B, 1)) == 0
    log.at(0, meet(B, 2))
    assert log.at(0, at_once(C, 1)) == log.index
    assert rounds(log) == [log.index] * 3
    answers = log.entry(0, [[meet(A, 5)], [meet(B, 5)], [at_once(C, 5)], [at_once(C, 6)]])
    assert answers == [0, 0, log.index, 0]
    answers = log.entry(0, [[meet(A, number)] for number in (7, 8, 9, 10, 11)] + [[at_once(C, 7)]])
    assert answers == [0, 0, log.index, 0, 0, 0], "two rounds do not begin in one entry"


def test_who_gave_up_is_not_counted(log: Log) -> None:
    log.at(0, meet(A))
    log.at(0, meet(B))
    log.at(0, instructions.release("m", A, 1))
    assert log.at(0, meet(C)) == 0
    log.at(9_000, instructions.keep_lease(C, 0, [1]))
    log.pulse(10_001)
    assert rounds(log) == [0], "B's lease was over"
    for number in (2, 3):
        log.at(10_001, meet(C, number))
    assert rounds(log) == [log.index] * 3


def test_two_rounds_do_not_begin_in_one_entry(log: Log) -> None:
    log.entry(0, [[meet(A, number, size=2)] for number in range(1, 5)])
    assert rounds(log) == [log.index, log.index, 0, 0]
    log.pulse(1)
    assert rounds(log) == [log.index - 1] * 2 + [log.index] * 2


# -- anywhere, and to the byte


class Model:
    """What queues promise, without a word of how."""

    def __init__(self) -> None:
        self.put: dict[int, bytes] = {}
        self.acked: set[int] = set()
        self.fences: dict[str, int] = {}

    def check(self, log: Log) -> None:
        seen: dict[int, bytes] = {}
        for queue in (Q, Q + DEAD):
            ready, taken = log.state.item_counts(queue)
            claims = log.state.claims(queue)
            had = [log.state.item_of((queue, claim.lease, claim.number)) for claim in claims if claim.fence]
            assert len(had) == taken
            assert not ready or all(claim.fence for claim in claims), "somebody waits beside an item that nobody has"
            for item in had:
                assert item is not None
                assert item.id not in seen, "two have it"
                assert item.id not in self.acked, "it was done"
                assert item.fence >= self.fences.get(item.name, 0)
                self.fences[item.name] = item.fence
                seen[item.id] = item.value
        total = sum(sum(log.state.item_counts(queue)) for queue in (Q, Q + DEAD))
        assert total == len(self.put) - len(self.acked), "one is lost, or there twice"


def random_step(rng: random.Random, index: int) -> list[Any]:
    lease, number = rng.choice(LEASES), rng.randrange(1, 4)
    queue = Q if rng.random() < 0.85 else Q + DEAD
    chance = rng.random()
    if chance < 0.25:
        return [put(b"%d" % index, rng.choice((None, 1, 2)))]
    if chance < 0.55:
        return [get(lease, number + 3 * (queue != Q), queue, waits=rng.random() < 0.7)]
    if chance < 0.68:
        return [ack(lease, number + 3 * (queue != Q), queue)]
    if chance < 0.8:
        return [nack(lease, number + 3 * (queue != Q), queue)]
    if chance < 0.87:
        return [instructions.keep_lease(lease, max(index - rng.randrange(10), 0), rng.sample(range(1, 7), 4))]
    if chance < 0.9:
        return [instructions.end_lease(lease)]
    return [opened(lease, rng.choice((50, 200, 1_000)))]


@pytest.mark.parametrize("seed", range(12)[turn_of(3)])
def test_no_item_is_lost_done_twice_or_had_by_two_and_replicas_agree_to_the_byte(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "_CHUNK_BYTES", 64)
    rng = random.Random(seed)
    log, twin, model = Log(), Log(), Model()
    time_ms = 0
    for step in range(400):
        time_ms += rng.choice((0, 0, 1, 10, 60))
        if rng.random() < 0.1:
            log.pulse(time_ms)
            twin.pulse(time_ms)
        else:
            steps = [random_step(rng, log.index + 1) for _ in range(rng.choice((1, 1, 3)))]
            # Whose item is acknowledged is known only once those before it in the entry were done: so it comes first.
            steps.sort(key=lambda each: each[0].code != Code.ACK)
            had = {
                (queue, claim.lease, claim.number): log.state.item_of((queue, claim.lease, claim.number))
                for queue in (Q, Q + DEAD)
                for claim in log.state.claims(queue)
            }
            answers = log.entry(time_ms, steps)
            assert twin.entry(time_ms, steps) == answers
            for (effect,), answer in zip(steps, answers, strict=True):
                if effect.code == Code.PUT:
                    model.put[answer] = effect.data[2:]
                if effect.code == Code.ACK and answer is True:
                    lease, number = transactions.WHICH.unpack(effect.data)
                    item = had.get((effect.key, lease.decode(), number))
                    # None: it was handed out as others' leases ended, in this very entry.
                    model.acked.add(-len(model.acked) if item is None else item.id)
        model.check(log)
        if step % 20 == 19:
            whole, index = log.state.snapshot()
            assert twin.state.snapshot() == (whole, index)
            twin = Log()
            twin.index = index
            twin.state.restore_snapshot(whole, index)
    assert model.acked


def test_a_snapshot_of_items_that_make_no_sense_is_refused(log: Log) -> None:
    log.at(0, put(b"1"), put(b"2", 3), put(b"3"))
    log.at(0, get(A))
    log.at(0, get(B))
    log.at(0, ack(B))
    whole, index = log.state.snapshot()
    rng = random.Random(1)
    refused = 0
    start = whole.index(Q.encode()) - 20
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[rng.randrange(start, len(whole))] ^= 1 << rng.randrange(8)
        other = kv.KeyValueState()
        try:
            other.restore_snapshot(bytes(damaged), index)
        except MalformedSnapshotError:
            refused += 1
            continue
        late = 2**53 - 2
        other.pass_time(index + 1, late)  # whatever it is, it can be worked with
        other.apply_at(instructions.encode([opened(A)]), index + 2, late)
        for first, queue in ((1, Q), (10, Q + DEAD)):
            ready, taken = other.item_counts(queue)
            assert taken == 0
            for number in range(first, first + ready):
                other.apply_at(instructions.encode([get(A, number, queue)]), index + 3, late)
                assert other.item_of((queue, A, number)) is not None
    assert refused > 100
    for length in range(0, len(whole), 7):
        with pytest.raises(MalformedSnapshotError):
            kv.KeyValueState().restore_snapshot(whole[:length], index)
