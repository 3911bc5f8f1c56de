"""The key-value state against a plain dict, its snapshots, and what readers see of it."""

from __future__ import annotations

import gc
import random
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from itertools import count

import pytest

import raftsvc
from raftsvc import kv
from raftsvc.errors import Rejected
from raftsvc.kv.instructions import Operation, encode
from raftsvc.kv.pages import MAX_PAGE_KEYS, PagedMap, records_of
from raftsvc.kv.snapshots import MalformedSnapshotError
from raftsvc.kv.state import KeyValueState
from raftsvc.kv.transactions import read_conflict, read_no_counter, read_over_quota
from raftsvc.state import State, StreamingState, WaitingState
from tests.effort import EFFORT, turn_of

DEADLINE_SECONDS = 60.0


def transaction(*operations: Operation) -> bytes:
    return encode(operations)


def is_done(state: KeyValueState, instruction: bytes, index: int, time_ms: int = 0) -> bool:
    """Apply a transaction: False if a condition does not hold, it counts what is no number, or there is no room."""
    try:
        state.apply_at(instruction, index, time_ms)
        return True
    except Rejected as rejected:
        reason = rejected.reason
        if read_conflict(reason) is None and read_no_counter(reason) is None and not read_over_quota(reason):
            raise
        state.set_applied_index(index)
        return False


def filled(key_count: int, value: bytes = b"value", **bounds: int) -> KeyValueState:
    state = KeyValueState(**bounds)
    for start in range(0, key_count, 1000):
        keys = range(start, min(key_count, start + 1000))
        state.apply(transaction(*[kv.set(f"key/{i:07d}", value) for i in keys]), start // 1000 + 1)
    return state


def restored(data: bytes, index: int) -> KeyValueState:
    state = KeyValueState()
    state.restore_snapshot(data, index)
    return state


class Model:
    """What the state should be, as simply as it can be said."""

    def __init__(self) -> None:
        self.content: dict[str, tuple[bytes, int]] = {}
        self.deadlines: dict[str, int] = {}
        self.allowed: set[str] = set()
        self.max_bytes = 0

    def size_bytes(self) -> int:
        return sum(100 + len(key.encode()) + len(data) for key, (data, _) in self.content.items())

    def pass_time(self, time_ms: int) -> None:
        for key in [key for key, deadline_ms in self.deadlines.items() if deadline_ms <= time_ms]:
            del self.content[key], self.deadlines[key]

    def apply(self, operations: list[Operation], index: int, time_ms: int = 0) -> bool:
        """Whether it takes effect."""
        self.pass_time(time_ms)
        for operation in operations:
            if isinstance(operation, kv.Condition):
                has = self.content[operation.key][1] if operation.key in self.content else 0
                if has != operation.version:
                    return False
        before = dict(self.content), dict(self.deadlines), set(self.allowed), self.max_bytes
        size_bytes = self.size_bytes()
        is_done = all(
            self.take_effect(operation, index, time_ms) for operation in operations if isinstance(operation, kv.Effect)
        )
        *_, max_bytes = before
        if not is_done or (max_bytes and size_bytes < self.size_bytes() > max_bytes):
            self.content, self.deadlines, self.allowed, self.max_bytes = before
            return False
        return True

    def take_effect(self, effect: kv.Effect, index: int, time_ms: int) -> bool:
        name, key = effect.code.name, effect.key
        # Log time is in whole milliseconds, so one more has to pass for certain.
        deadline_ms = min(time_ms + effect.ttl_ms + 1, 2**53 - 1) if effect.ttl_ms else None
        if name == "INCR":
            delta, initial = struct.unpack(">qq", effect.data)
            data = self.content[key][0] if key in self.content else b"%d" % initial
            if not data.removeprefix(b"-").isdigit() or len(data.removeprefix(b"-")) > 19:
                return False
            number = int(data)
            if not -(2**63) <= number < 2**63 or not -(2**63) <= number + delta < 2**63:
                return False
            if key in self.content:
                deadline_ms = self.deadlines.get(key)
            self.content[key] = (b"%d" % (number + delta), index)
        elif name in ("SET", "SET_EXPIRING"):
            self.content[key] = (effect.data, index)
        elif name == "DELETE":
            self.content.pop(key, None)
        elif name == "ALLOW":
            self.allowed.add(key)
        elif name == "DISALLOW":
            self.allowed.discard(key)
        elif name == "LIMIT":
            self.max_bytes = int.from_bytes(effect.data, "big")
        if name not in ("ALLOW", "DISALLOW"):
            self.deadlines.pop(key, None)
            if deadline_ms is not None and key in self.content:
                self.deadlines[key] = deadline_ms
        return True

    def listed(self, prefix: str) -> list[tuple[str, tuple[bytes, int]]]:
        return sorted(item for item in self.content.items() if item[0].startswith(prefix))


def random_operation(source: random.Random, model: Model, keys: list[str]) -> Operation:
    key = source.choice(keys)
    choice = source.random()
    if choice < 0.15:
        return kv.if_not_exists(key)
    if choice < 0.35:
        has = model.content.get(key, (b"", 0))[1]
        return kv.if_not_modified(key, has if source.random() < 0.8 else source.randrange(50))
    if choice < 0.75:
        return kv.set(key, source.randbytes(source.randrange(20)))
    if choice < 0.95:
        return kv.delete(key)
    return source.choice([kv.allow, kv.disallow])(f"host{source.randrange(5)}:80")


def check_against(state: KeyValueState, model: Model, source: random.Random, keys: list[str]) -> None:
    prefix = source.choice(["", "a", "a/", "b/1", "ü", "\U0010ffff", "zzz", source.choice(keys)])
    assert list(state.list(prefix).items()) == model.listed(prefix)
    wanted = source.sample(keys, 5)
    assert state.get_many(wanted) == {key: model.content[key] for key in wanted if key in model.content}
    for key in wanted:
        assert state.get(key) == model.content.get(key)
    assert len(state) == len(model.content)
    assert state.allowed() == model.allowed


@pytest.mark.parametrize("seed", range(25)[turn_of(3)])
def test_the_state_is_what_a_dict_would_be(seed: int) -> None:
    source = random.Random(seed)
    keys = [f"{source.choice(['a/', 'b/', 'ü', ''])}{i}" for i in range(source.choice([8, 60, 3000]))]
    keys.append("\U0010ffff")
    state, model = KeyValueState(), Model()
    frozen: list[tuple[Iterator[bytes], int, list[tuple[str, tuple[bytes, int]]]]] = []
    for index in range(1, 500):
        most = source.choice([1, 4, 40])
        operations = [random_operation(source, model, keys) for _ in range(source.randint(0, most))]
        if most == 40:
            operations = [operation for operation in operations if isinstance(operation, kv.Effect)]
        assert is_done(state, transaction(*operations), index) == model.apply(operations, index)
        assert state.applied_index() == index
        if index % 7 == 0:
            check_against(state, model, source, keys)
        if index % 50 == 0:
            frozen.append((*state.snapshot_chunks(), model.listed("")))
        if index % 120 == 0:
            state = restored(*state.snapshot())
    check_against(state, model, source, keys)
    # Snapshots taken on the way show their own moment, however late they are read.
    for chunks, index, content in frozen:
        assert list(restored(b"".join(chunks), index).list().items()) == content


@pytest.mark.parametrize("order", ["ascending", "descending", "random", "inward", "down to a full page"])
def test_pages_stay_in_order_and_bounded_however_keys_arrive(order: str) -> None:
    keys = [f"{i:06d}" for i in range(6000)]
    if order == "descending":
        keys.reverse()
    elif order == "random":
        random.Random(3).shuffle(keys)
    elif order == "inward":
        keys = [key for pair in zip(keys[:3000], reversed(keys[3000:]), strict=True) for key in pair]
    elif order == "down to a full page":
        keys = keys[:MAX_PAGE_KEYS] + keys[: MAX_PAGE_KEYS - 1 : -1]
    pages = PagedMap()
    for version, key in enumerate(keys, 1):
        pages.set(key, key.encode(), version)
    listed = [key for page in pages.freeze() for key, _, _ in records_of(page)]
    sizes = [len([*records_of(page)]) for page in pages.freeze()]
    assert listed == sorted(keys)
    assert max(sizes) <= MAX_PAGE_KEYS
    assert len(sizes) <= 2 * 6000 // MAX_PAGE_KEYS + 2  # about half full at the least
    random.Random(4).shuffle(keys)
    for key in keys[1000:]:
        pages.delete(key)
    assert [key for page in pages.freeze() for key, _, _ in records_of(page)] == sorted(keys[:1000])
    for key in keys[:1000]:
        pages.delete(key)
    assert len(pages) == 0
    assert len(pages.freeze()) == 1
    pages.set("again", b"", 1)
    assert pages.get("again") == (b"", 1)


def test_the_garbage_collector_does_not_visit_keys_and_values() -> None:
    state = filled(5000)
    state.apply(transaction(*[kv.set(f"key/{i:07d}", b"new") for i in range(0, 5000, 40)]), 50)
    state.apply(transaction(*[kv.delete(f"key/{i:07d}") for i in range(20, 5000, 40)]), 51)
    for looked_at in (state, restored(*state.snapshot())):
        gc.collect()
        gc.collect()  # a page after its parts
        pages = looked_at._applying.content.keys.freeze()
        assert len(pages) > 30
        assert not any(gc.is_tracked(part) for page in pages for part in (page, *page))


def test_it_is_a_streaming_state_that_waits() -> None:
    state: State = KeyValueState()
    assert isinstance(state, StreamingState)
    assert isinstance(state, WaitingState)


# -- transactions


def test_a_transaction_happens_whole_or_not_at_all() -> None:
    state = KeyValueState()
    assert state.apply(transaction(kv.if_not_exists("a"), kv.set("a", b"1"), kv.set("b", b"1")), 5)
    assert state.get("a") == state.get("b") == (b"1", 5)
    assert not is_done(state, transaction(kv.set("c", b"2"), kv.if_not_exists("a"), kv.delete("b"), kv.allow("x:1")), 6)
    assert state.list() == {"a": (b"1", 5), "b": (b"1", 5)}
    assert not state.allowed()
    assert state.applied_index() == 6


def test_conditions_are_judged_by_the_state_before_the_transaction() -> None:
    state = KeyValueState()
    assert state.apply(transaction(kv.set("a", b"1"), kv.if_not_exists("a")), 1)
    assert state.apply(transaction(kv.delete("a"), kv.if_not_modified("a", 1), kv.set("a", b"2")), 2)
    assert state.get("a") == (b"2", 2)


def test_a_key_made_again_has_another_version_even_with_the_same_value() -> None:
    state = KeyValueState()
    state.apply(transaction(kv.set("a", b"1")), 1)
    state.apply(transaction(kv.delete("a")), 2)
    state.apply(transaction(kv.set("a", b"1")), 3)
    assert not is_done(state, transaction(kv.if_not_modified("a", 1), kv.set("a", b"x")), 4)
    assert state.apply(transaction(kv.if_not_modified("a", 3), kv.set("a", b"x")), 5)


def test_version_zero_means_absent() -> None:
    state = KeyValueState()
    assert state.apply(transaction(kv.if_not_modified("a", 0), kv.set("a", b"1")), 1)
    assert not is_done(state, transaction(kv.if_not_modified("a", 0)), 2)


def test_a_refused_instruction_changes_nothing() -> None:
    state = filled(100)
    state.apply(transaction(kv.allow("a:1")), 9)
    before = state.snapshot()
    effects = (kv.set("key/0000001", b"other"), kv.delete("key/0000002"), kv.allow("b:1"))
    whole = transaction(kv.if_not_exists("new"), *effects)
    for length in range(len(whole)):
        reasons = set()
        for replica in (state, KeyValueState()):
            with pytest.raises(Rejected) as caught:
                replica.apply(whole[:length], 10)
            reasons.add(caught.value.reason)
        assert len(reasons) == 1, "a refusal depends on the instruction, not on the state"
    assert state.snapshot() == before
    assert state.apply(whole, 10)


def test_an_empty_write_changes_nothing_and_is_satisfied() -> None:
    state = filled(10)
    before = state.list()
    assert state.apply(state.empty_write(), 2)
    assert state.list() == before


def test_nobody_may_join_until_allowed() -> None:
    state = KeyValueState()
    assert not state.is_allowed_member("a:1")
    state.apply(transaction(kv.allow("a:1"), kv.allow("b:1")), 1)
    state.apply(transaction(kv.disallow("b:1"), kv.disallow("never:1")), 2)
    assert state.allowed() == {"a:1"}
    assert state.is_allowed_member("a:1")
    assert not state.is_allowed_member("b:1")
    assert restored(*state.snapshot()).allowed() == {"a:1"}


# -- snapshots


def test_a_snapshot_restores_what_it_was_taken_of_however_it_is_cut() -> None:
    state = filled(3000, b"v" * 100)
    state.apply(transaction(kv.allow("a:1"), kv.set("big", b"x" * 300_000), kv.set("none", b"")), 7)
    data, index = state.snapshot()
    chunks = list(state.snapshot_chunks()[0])
    assert b"".join(chunks) == data
    assert index == 7
    assert len(chunks) > 5
    for size in (1, 13, 4096, 65536, len(data)):
        copy = filled(50, b"to be replaced")
        copy.restore_chunks((data[i : i + size] for i in range(0, len(data), size)), index)
        assert copy.snapshot() == (data, 7)
        assert copy.list() == state.list()
        assert copy.allowed() == {"a:1"}
        assert copy.apply(transaction(kv.if_not_modified("big", 7), kv.set("big", b"")), 8)


def test_an_empty_state_has_a_snapshot_too() -> None:
    copy = filled(10)
    copy.restore_snapshot(*KeyValueState().snapshot())
    assert len(copy) == 0
    assert copy.applied_index() == 0


def test_the_same_content_makes_the_same_pieces_whatever_came_before() -> None:
    straight = filled(4000, b"v" * 50)
    devious = KeyValueState()
    order = list(range(4000))
    random.Random(8).shuffle(order)
    index = count(1)
    for i in order:
        devious.apply(transaction(kv.set(f"key/{i:07d}", b"first"), kv.set(f"extra{i}", b"")), next(index))
    devious.apply(transaction(*[kv.delete(f"extra{i}") for i in range(4000)]), next(index))
    last = next(index)
    for start in range(0, 4000, 1000):
        operations = [kv.set(f"key/{i:07d}", b"v" * 50) for i in range(start, start + 1000)]
        devious.apply(transaction(*operations), last)
        straight.apply(transaction(*operations), last)
    assert list(devious.snapshot_chunks()[0]) == list(straight.snapshot_chunks()[0])


def test_of_the_snapshot_of_another_state_it_is_said_what_to_start_with() -> None:
    whole, index = raftsvc.States(store=KeyValueState()).snapshot()
    with pytest.raises(MalformedSnapshotError, match="starts with the State that its directory was written with"):
        KeyValueState().restore_snapshot(whole, index)


def test_a_damaged_snapshot_is_refused_and_changes_nothing() -> None:
    source = filled(3)
    source.apply(transaction(kv.allow("a:1")), 2)
    whole, index = source.snapshot()
    state = filled(20)
    state.apply(transaction(kv.allow("b:1")), 2)
    before = state.snapshot()
    for length in range(len(whole)):
        with pytest.raises(MalformedSnapshotError):
            state.restore_snapshot(whole[:length], index)
    for extra in (b"\x00", whole):
        with pytest.raises(MalformedSnapshotError):
            state.restore_snapshot(whole + extra, index)
    for bit in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            KeyValueState().restore_snapshot(bytes(damaged), index)
        except MalformedSnapshotError:
            continue  # which damage shows depends on what it hit; the file below has checksums for the rest
    with pytest.raises(MalformedSnapshotError):
        state.restore_snapshot(whole, 0)  # versions later than the snapshot
    assert state.snapshot() == before


def test_a_failing_source_of_pieces_changes_nothing() -> None:
    data, index = filled(2000, b"v" * 100).snapshot()
    state = filled(20)
    state.apply(transaction(kv.allow("b:1")), 2)
    before = state.snapshot()

    def pieces() -> Iterator[bytes]:
        yield data[:1000]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        state.restore_chunks(pieces(), index)

    def whole_and_then_damage() -> Iterator[bytes]:
        yield data
        raise OSError("the checksum at the end does not match")

    with pytest.raises(OSError, match="checksum"):
        state.restore_chunks(whole_and_then_damage(), index)
    assert state.snapshot() == before


def test_an_abandoned_snapshot_does_no_harm() -> None:
    state = filled(3000)
    chunks, _ = state.snapshot_chunks()
    next(chunks)
    del chunks
    never_begun, _ = state.snapshot_chunks()
    del never_begun
    state.apply(transaction(kv.set("key/0000001", b"new")), 50)
    assert state.get("key/0000001") == (b"new", 50)
    assert len(restored(*state.snapshot())) == 3000


_RANDOM_HISTORY = """
import random, sys, zlib
from raftsvc import kv
from raftsvc.errors import Rejected
from raftsvc.kv.instructions import encode
source = random.Random(11)
state = kv.KeyValueState()
outcomes = 0
for index in range(1, 3000):
    key = lambda: f"{source.choice('abc')}/{source.randrange(700)}"
    addr = lambda: key().replace("/", "") + ":1"
    operations = [
        source.choice([
            lambda: kv.set(key(), source.randbytes(8)), lambda: kv.delete(key()), lambda: kv.if_not_exists(key()),
            lambda: kv.if_not_modified(key(), source.randrange(index)),
            lambda: kv.allow(addr()), lambda: kv.disallow(addr()),
            lambda: kv.set(key(), b"%d" % index, ttl=source.uniform(0.001, 2)), lambda: kv.touch(key(), 1.0),
            lambda: kv.max_state_bytes(source.choice([None, 100_000, 200_000])),
            lambda: kv.incr("n" + key(), source.randrange(9), ttl=source.choice([None, 0.5])),
        ])()
        for _ in range(source.choice([1, 1, 2, 5]))
    ]
    data = encode(operations)
    if source.random() < 0.1:
        data = data[: source.randrange(len(data))]
    try:
        outcome = str(state.apply_at(data, index, index * 7 // 3))
    except Rejected as rejected:
        outcome = rejected.reason
    outcomes = zlib.crc32(outcome.encode(), outcomes)
snapshot, index = state.snapshot()
sys.stdout.buffer.write(b"%d %d %d " % (outcomes, index, len(state)) + snapshot)
"""


def test_every_hash_seed_gives_the_same_snapshot() -> None:
    answers = [
        subprocess.run(
            [sys.executable, "-c", _RANDOM_HISTORY],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            check=True,
            timeout=120,
        ).stdout
        for seed in ("0", "1", "4242", "random")
    ]
    assert len(set(answers)) == 1
    assert len(answers[0]) > 10_000


def test_a_large_snapshot_takes_little_memory_while_writes_go_on() -> None:
    key_count = 200_000
    state = KeyValueState()
    for start in range(0, key_count, 1000):
        operations = [kv.set(f"key/{i:07d}", b"%0100d" % i) for i in range(start, start + 1000)]
        state.apply(transaction(*operations), start // 1000 + 1)
    source = random.Random(2)
    total_bytes = 0
    writes = 0
    gc.collect()
    # From here on only what is allocated anew is counted, and what is freed of the old is not set off
    # against it; nor is what the writes themselves add taken away.
    tracemalloc.start()
    try:
        chunks, index = state.snapshot_chunks()
        frozen_bytes = tracemalloc.get_traced_memory()[1]
        for chunk in chunks:
            total_bytes += len(chunk)
            for _ in range(10):
                writes += 1
                key = f"key/{source.randrange(key_count):07d}"
                state.apply(transaction(kv.set(key, b"%0100d" % writes), kv.set(f"new/{writes}", b"n")), index + writes)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert writes > 2000
    assert total_bytes > key_count * 100  # the state itself is larger: each object in it has a head
    assert frozen_bytes < total_bytes / 100, "taking it copies nothing yet"
    assert peak_bytes < total_bytes / 4, f"a snapshot of {total_bytes} bytes took {peak_bytes}"


def test_a_snapshot_lets_go_of_replaced_pages_as_it_passes_them() -> None:
    def held() -> int:
        gc.collect()  # when it would come by itself depends on what other tests left
        return tracemalloc.get_traced_memory()[0]

    state = filled(20_000, max_events=1)  # which hold what was replaced, too
    tracemalloc.start()
    try:
        empty = held()
        for start in range(0, 20_000, 1000):
            state.apply(
                transaction(*[kv.set(f"key/{i:07d}", bytes(200)) for i in range(start, start + 1000)]), 10**6 + start
            )
        whole = held() - empty
        chunks, index = state.snapshot_chunks()
        for start in range(0, 20_000, 1000):  # every page is replaced
            state.apply(
                transaction(*[kv.delete(f"key/{i:07d}") for i in range(start, start + 1000)]), index + 1 + start
            )
        assert held() - empty > 0.9 * whole
        sent_bytes = 0
        while sent_bytes < 20_000 * 200 * 0.9:
            sent_bytes += len(next(chunks))
        assert held() - empty < 0.3 * whole
        for later in (10**8, 10**8 + 1):  # instead of what the last ones replaced
            state.apply(transaction(kv.set("key", b"")), later)
            state.set_applied_index(later)
        del chunks
        assert held() - empty < 0.1 * whole
    finally:
        tracemalloc.stop()


def test_a_snapshot_does_not_hold_up_writes_and_shows_its_moment() -> None:
    state = filled(50_000)
    chunks, index = state.snapshot_chunks()
    pieces = [next(chunks)]
    # Half consumed: were a lock held, this would never return.
    writer = threading.Thread(
        target=lambda: [
            state.apply(transaction(*[kv.set(f"key/{i:07d}", b"later") for i in range(start, start + 1000)]), index + 1)
            for start in range(0, 50_000, 1000)
        ],
        daemon=True,
    )
    writer.start()
    writer.join(DEADLINE_SECONDS)
    assert not writer.is_alive()
    pieces += chunks
    assert restored(b"".join(pieces), index).list() == filled(50_000).list()
    assert all(value.data == b"later" for value in state.list().values())


# -- threads


def test_readers_see_whole_transactions_only() -> None:
    """A writer moves an amount between accounts, with real threads; every reader always finds the same sum."""
    accounts = [f"account/{i:03d}" for i in range(40)]
    # Neighbours on other pages, so that one transaction changes several.
    padding = [kv.set(f"account/{i:03d}/{j}", b"0") for i in range(40) for j in range(50)]
    state = KeyValueState()
    state.apply(transaction(*padding), 1)
    state.apply(transaction(*[kv.set(account, b"100") for account in accounts]), 2)
    stop = threading.Event()
    failures: list[str] = []
    looks = [0] * 4

    def read(number: int) -> None:
        newest = 0
        while not stop.is_set() and not failures:
            if number == 0:
                found = {key: value for key, value in state.list("account/").items() if len(key) == 11}
            elif number == 1:
                chunks, index = state.snapshot_chunks()
                found = {k: v for k, v in restored(b"".join(chunks), index).list("account/").items() if len(k) == 11}
            else:
                found = state.get_many(accounts)
            total = sum(int(value.data) for value in found.values())
            latest = max(value.version for value in found.values())
            if total != 4000 or len(found) != 40:
                failures.append(f"reader {number} saw {total} in {len(found)} accounts")
            if latest < newest:
                failures.append(f"reader {number} saw version {latest} after {newest}")
            newest = latest
            looks[number] += 1

    threads = [threading.Thread(target=read, args=(number,), daemon=True) for number in range(4)]
    former_interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads meet in the middle of things
    try:
        for thread in threads:
            thread.start()
        source = random.Random(6)
        deadline = time.monotonic() + DEADLINE_SECONDS
        index = 2
        while (index < 800 * EFFORT or min(looks) < 20) and not failures and time.monotonic() < deadline:
            index += 1
            giver, taker = source.sample(accounts, 2)
            has = {key: int(value.data) for key, value in state.get_many([giver, taker]).items()}
            operations = [kv.set(giver, b"%d" % (has[giver] - 7)), kv.set(taker, b"%d" % (has[taker] + 7))]
            state.apply(transaction(*operations, kv.set(f"account/{index:05d}/x", b"0")), index)
    finally:
        stop.set()
        for thread in threads:
            thread.join(DEADLINE_SECONDS)
        sys.setswitchinterval(former_interval)
    assert not failures
    assert min(looks) >= 20
    assert not any(thread.is_alive() for thread in threads)


def test_one_key_after_another_is_read_in_the_order_of_transactions() -> None:
    state = KeyValueState()
    stop = threading.Event()
    failures: list[str] = []
    looks = count()

    def read() -> None:
        while not stop.is_set():
            first, second = state.get("a"), state.get("b")
            if first is not None and (second is None or second.version < first.version):
                failures.append(f"{first} and then {second}")
            next(looks)

    threads = [threading.Thread(target=read, daemon=True) for _ in range(3)]
    former_interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for index in range(1, 4000):
            state.apply(transaction(kv.set("a", b""), kv.set("b", b"")), index)
    finally:
        stop.set()
        for thread in threads:
            thread.join(DEADLINE_SECONDS)
        sys.setswitchinterval(former_interval)
    assert not failures
    assert next(looks) > 0
