"""Keys that expire, and counters: what happens when, in what order, and what a caller is answered."""

from __future__ import annotations

import gc
import random
import struct
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftsvc import kv
from raftsvc.errors import Rejected
from raftsvc.kv.expiry import MAX_DEADLINE_MS, NEVER, Expiries
from raftsvc.kv.instructions import Operation, encode
from raftsvc.kv.snapshots import MalformedSnapshotError
from raftsvc.kv.state import KeyValueState

HUNDRED_YEARS = 36525 * 86400


class Log:
    """A state, and entries that are applied to it one after another."""

    def __init__(self) -> None:
        self.state = KeyValueState()
        self.index = 0

    def at(self, time_ms: int, *operations: Operation) -> Any:
        self.index += 1
        return self.state.apply_at(encode(operations), self.index, time_ms)

    def pulse(self, time_ms: int) -> None:
        self.index += 1
        self.state.pass_time(self.index, time_ms)

    def keys(self) -> list[str]:
        return list(self.state.list())


@pytest.fixture
def log() -> Log:
    return Log()


# -- expiry


def test_a_key_is_there_for_its_whole_ttl_and_gone_with_the_first_entry_after_it(log: Log) -> None:
    # At the entry that set it up to a millisecond more was over than it says: with 1500 it might live 499.1 ms.
    log.at(1000, kv.set("a", b"1", ttl=0.5))
    assert log.state.next_deadline() == 1501
    for time_ms in (1000, 1499, 1500):
        log.pulse(time_ms)
        assert log.keys() == ["a"]
    log.pulse(1501)
    assert log.keys() == []
    assert log.state.next_deadline() is None


@given(
    st.floats(0, 3), st.floats(0.001, 0.05), st.lists(st.floats(0, 20), max_size=30), st.sampled_from(["set", "touch"])
)
def test_nothing_expires_early_by_a_clock_that_knows_fractions(
    set_at_ms: float, ttl: float, later_ms: list[float], how: str
) -> None:
    """Log time is what passed in truth, rounded down, as of each entry."""
    log = Log()
    now_ms = set_at_ms
    if how == "set":
        log.at(int(now_ms), kv.set("a", b"", ttl=ttl))
    else:
        log.at(int(now_ms), kv.set("a", b""))
        log.at(int(now_ms), kv.touch("a", ttl))
    for passed_ms in later_ms:
        now_ms += passed_ms
        log.pulse(int(now_ms))
        if now_ms - set_at_ms < ttl * 1000:
            assert log.keys() == ["a"]
        if now_ms - set_at_ms >= ttl * 1000 + 3:
            assert log.keys() == []


def test_what_is_due_is_gone_before_the_entry_that_is_after_it_is_judged(log: Log) -> None:
    log.at(0, kv.set("lock", b"me", ttl=1.0))
    with pytest.raises(Rejected):
        log.at(1000, kv.if_not_exists("lock"), kv.set("lock", b"you"))
    assert log.at(1001, kv.if_not_exists("lock"), kv.set("lock", b"you")) is True
    assert log.state.get("lock") == (b"you", log.index)
    log.at(1001, kv.set("n", b"7", ttl=1.0))
    assert log.at(2002, kv.incr("n")) == 1, "it counts from nothing again"


def test_an_entry_that_is_refused_has_time_pass_all_the_same(log: Log) -> None:
    log.at(0, kv.set("a", b"1", ttl=1.0))
    with pytest.raises(Rejected):
        log.state.apply_at(b"nonsense", 2, 5000)
    assert log.keys() == []
    assert log.state.next_deadline() is None


def test_a_write_without_a_ttl_ends_the_one_that_there_was(log: Log) -> None:
    for write in (kv.set("a", b"2"), kv.delete("a"), kv.touch("a", None)):
        log.at(0, kv.set("a", b"1", ttl=1.0))
        log.at(1, write)
        assert log.state.next_deadline() is None
        # With others in the same transaction it goes another way.
        log.at(2, kv.set("a", b"1", ttl=1.0))
        log.at(3, kv.set("b", b""), write)
        assert log.state.next_deadline() is None
    log.at(4, kv.set("a", b"", ttl=1.0))
    log.at(5, kv.delete("a"))
    log.at(6, kv.set("a", b""))
    log.pulse(10**6)
    assert log.keys() == ["a", "b"], "a key made again knows nothing of the former's time"


def test_a_touch_moves_the_deadline_either_way_and_leaves_value_and_version(log: Log) -> None:
    log.at(0, kv.set("a", b"1", ttl=10.0))
    assert log.at(100, kv.touch("a", 1000.0)) is True
    assert log.state.next_deadline() == 1_000_101
    assert log.at(200, kv.touch("a", 1.0)) is True
    assert log.state.next_deadline() == 1201
    assert log.state.get("a") == (b"1", 1)
    assert log.at(300, kv.touch("b", 1.0)) is False
    assert log.state.next_deadline() == 1201
    assert log.at(300, kv.touch("b", 1.0), kv.set("c", b"")) is True, "False would say that nothing was done"


def test_deadlines_end_where_log_time_ends(log: Log) -> None:
    late_ms = MAX_DEADLINE_MS - 1000
    log.at(late_ms, kv.set("a", b"1", ttl=HUNDRED_YEARS))
    assert log.state.next_deadline() == MAX_DEADLINE_MS
    copy = KeyValueState()
    copy.restore_snapshot(*log.state.snapshot())
    assert copy.next_deadline() == MAX_DEADLINE_MS


def test_what_expires_does_so_in_the_order_of_deadlines_and_then_of_keys() -> None:
    source = random.Random(4)
    expiries = Expiries()
    expected = {}
    for key in [f"{source.choice('abü')}{n}" for n in range(2000)]:
        expected[key] = source.choice([source.randrange(1, 40), source.randrange(1, 2**53)])
        expiries.set(key, source.randrange(1, 2**53))  # it is moved
        expiries.set(key, expected[key])
    for key in source.sample(sorted(expected), 300):
        del expected[key]
        expiries.set(key, 0)
    assert len(expiries) == len(expected)
    in_order = sorted((deadline_ms, key) for key, deadline_ms in expected.items())
    assert expiries.next_ms == in_order[0][0]
    assert expiries.take(in_order[0][0] - 1) == []
    taken: list[tuple[int, str]] = []
    while (next_ms := expiries.next_ms) != NEVER:
        assert next_ms == in_order[len(taken)][0]
        by_ms = max(next_ms, source.choice([0, 20, 2**50]))
        while keys := expiries.take(by_ms):
            assert len(keys) <= 128
            taken += [(expected[key], key) for key in keys]
        assert all(deadline_ms <= by_ms for deadline_ms, _ in taken)
        assert expiries.next_ms > by_ms
    assert taken == in_order
    assert len(expiries) == 0


def test_a_deadline_that_is_moved_leaves_nothing_behind(log: Log) -> None:
    log.at(0, *[kv.set(f"k{n}", b"", ttl=1000.0) for n in range(300)])
    for n in range(3000):
        log.at(n, kv.touch(f"k{n % 300}", 5000.0), kv.set("x", b"", ttl=1.0 + n))
    expiries = log.state._applying.content.expiries
    assert len(expiries) == 301
    assert sum(len(keys) for keys, _, _ in expiries._in_order.freeze()) == 301


def test_the_garbage_collector_does_not_visit_deadlines(log: Log) -> None:
    for start in range(0, 5000, 1000):
        log.at(0, *[kv.set(f"key/{n:07d}", b"", ttl=1.0 + n) for n in range(start, start + 1000)])
    gc.collect()
    gc.collect()
    expiries = log.state._applying.content.expiries
    pages = [*expiries._by_key.freeze(), *expiries._in_order.freeze()]
    assert len(pages) > 60
    assert not any(gc.is_tracked(part) for page in pages for part in (page, *page))


def test_readers_get_their_turn_while_very_many_keys_expire(log: Log) -> None:
    for start in range(0, 3000, 1000):
        log.at(0, *[kv.set(f"key/{n:07d}", b"", ttl=1.0) for n in range(start, start + 1000)])
    seen = []
    content = log.state._applying.content
    expire = type(content).expire

    def watched(self: Any, time_ms: int) -> bool:
        is_more = expire(self, time_ms)
        seen.append(len(self.keys))
        assert log.state.applied_index() < log.index, "what the entry does is not to be seen yet"
        return is_more

    with mock.patch.object(type(content), "expire", watched):
        log.at(1001, kv.set("a", b""))
    assert len(seen) > 10 and seen == sorted(seen, reverse=True) and seen[-1] == 0
    assert log.keys() == ["a"]


# -- snapshots


def random_entry(source: random.Random) -> tuple[bytes | None, int]:
    """An instruction, None for a pulse, and how much later than the one before it is."""

    def key() -> str:
        return f"k{source.randrange(30)}"

    def ttl() -> float:
        return source.choice([0.001, 0.05, 0.1, source.uniform(0.001, 3)])

    passed_ms = source.choice([0, 0, 1, 20, 50, 900])
    if source.random() < 0.1:
        return None, passed_ms
    makers = [
        lambda: kv.set(key(), source.randbytes(3)),
        lambda: kv.set(key(), b"7", ttl()),
        lambda: kv.set(key(), b"7", ttl()),
        lambda: kv.touch(key(), source.choice([None, ttl()])),
        lambda: kv.incr(key(), source.randrange(-5, 5), ttl=source.choice([None, ttl()])),
        lambda: kv.delete(key()),
        lambda: kv.if_not_exists(key()),
    ]
    return encode([source.choice(makers)() for _ in range(source.choice([1, 1, 3]))]), passed_ms


@pytest.mark.parametrize("seed", range(6))
def test_a_replica_restored_anywhere_has_the_same_future_to_the_byte(seed: int) -> None:
    source = random.Random(seed)
    straight, devious = KeyValueState(), KeyValueState()
    time_ms = refused = expired = 0
    for index in range(1, 1200):
        data, passed_ms = random_entry(source)
        time_ms += passed_ms
        outcomes = []
        for state in (straight, devious):
            try:
                count = len(state)
                outcomes.append(
                    state.pass_time(index, time_ms) if data is None else state.apply_at(data, index, time_ms)
                )
                expired += data is None and len(state) < count
            except Rejected as rejected:
                state.set_applied_index(index)
                outcomes.append(rejected.reason)
                refused += 1
        assert outcomes[0] == outcomes[1] and type(outcomes[0]) is type(outcomes[1])
        assert straight.next_deadline() == devious.next_deadline()
        if source.random() < 0.1:
            snapshot = devious.snapshot()
            devious = KeyValueState()
            devious.restore_snapshot(*snapshot)
        if index % 100 == 0:
            assert straight.snapshot() == devious.snapshot()
    assert straight.snapshot() == devious.snapshot()
    assert refused > 20 and expired > 20


def test_a_snapshot_under_way_has_the_deadlines_of_its_moment(log: Log) -> None:
    log.at(0, *[kv.set(f"k{n}", b"", ttl=1.0 + n) for n in range(1000)])
    chunks, index = log.state.snapshot_chunks()
    log.at(1, *[kv.touch(f"k{n}", 9000.0) for n in range(500)], *[kv.delete(f"k{n}") for n in range(500, 900)])
    log.pulse(10**6)
    copy = KeyValueState()
    copy.restore_chunks(chunks, index)
    assert copy.next_deadline() == 1001
    copy.pass_time(index + 1, 500_001)
    assert len(copy) == 500


def test_a_snapshot_whose_deadlines_make_no_sense_is_refused(log: Log) -> None:
    log.at(0, kv.set("a", b"", ttl=1.0), kv.set("b", b"", ttl=2.0), kv.set("c", b""))
    whole, index = log.state.snapshot()
    a, b = struct.pack(">HQ", 1, 1001) + b"a", struct.pack(">HQ", 1, 2001) + b"b"
    end = struct.pack(">HQ", 0, 2)
    nothing_held = bytes(8 + 16 + 3 * 14 + 8)
    assert whole.endswith(a + b + end + nothing_held)
    head = whole.removesuffix(a + b + end + nothing_held)
    for wrong in (
        b + a + end,
        a + a + end,
        a + end,
        a + b + end[:-1] + b"\x03",
        a + b.replace(b"b", b"x") + end,
        struct.pack(">HQ", 1, 0) + b"a" + b + end,
        struct.pack(">HQ", 1, 2**53) + b"a" + b + end,
        a + b,
        a + b + end + end,
    ):
        with pytest.raises(MalformedSnapshotError):
            log.state.restore_snapshot(head + wrong + nothing_held, index)
    assert log.state.snapshot() == (whole, index)


# -- counters


def test_a_counter_answers_what_it_became(log: Log) -> None:
    answers = [log.at(0, kv.incr("n", *arguments)) for arguments in ((), (5,), (-10,), (0, 99))]
    assert answers == [1, 6, -4, -4]
    assert all(type(answer) is int for answer in answers), "which the cluster keeps"
    assert log.at(0, kv.incr("new", 3, 100)) == 103
    assert log.state.get("new") == (b"103", log.index)
    assert log.at(0, kv.incr("n"), kv.set("x", b"4"), kv.incr("x"), kv.delete("x"), kv.incr("x", 1, 40)) == 41
    log.at(0, kv.set("padded", b"-007"))
    assert log.at(0, kv.incr("padded")) == -6


def test_a_counter_keeps_its_time_and_gets_one_when_it_is_made(log: Log) -> None:
    assert log.at(0, kv.incr("hits", ttl=60.0)) == 1
    assert log.at(30_000, kv.incr("hits", ttl=60.0)) == 2
    assert log.at(50_000, kv.incr("hits")) == 3
    assert log.state.next_deadline() == 60_001
    assert log.at(60_001, kv.incr("hits", ttl=60.0)) == 1, "the next minute"
    assert log.at(60_002, kv.incr("hits", ttl=60.0), kv.touch("hits", 60.0)) == 2
    assert log.state.next_deadline() == 120_003, "or it begins anew each time"


@pytest.mark.parametrize(
    "value", [b"", b"x", b" 1", b"1 ", b"+1", b"1_0", b"1.0", b"--1", "\u0661".encode(), b"9" * 19, b"0" * 20]
)
def test_what_is_no_number_is_not_counted(log: Log, value: bytes) -> None:
    log.at(0, kv.set("n", value), kv.set("other", b"1"))
    before = log.state.snapshot()[0]
    with pytest.raises(Rejected, match="the value of effect 1 is no number"):
        log.at(0, kv.set("other", b"2"), kv.incr("n"))
    assert log.state.snapshot()[0] == before


def test_a_counter_does_not_leave_64_bits(log: Log) -> None:
    log.at(0, kv.set("high", b"%d" % (2**63 - 1)), kv.set("low", b"%d" % -(2**63)))
    before = log.state.snapshot()[0]
    for effects in (
        [kv.incr("high")],
        [kv.incr("low", -1)],
        [kv.incr("new", 1, 2**63 - 1)],
        [kv.incr("new", -1, -(2**63))],
        [kv.delete("low"), kv.incr("new", 2**63 - 1), kv.incr("new")],
    ):
        with pytest.raises(Rejected, match="leaves the numbers of 64 bits"):
            log.at(0, *effects)
        assert log.state.snapshot()[0] == before
    assert log.at(0, kv.incr("high", -(2**63))) == -1
    assert log.at(0, kv.incr("low", 2**63 - 1)) == -1


def test_a_deletion_answers_whether_there_was_something(log: Log) -> None:
    log.at(0, kv.set("a", b""))
    assert log.at(0, kv.delete("a")) is True
    assert log.at(0, kv.delete("a")) is False
    assert log.at(0, kv.delete("a"), kv.delete("b")) is True
