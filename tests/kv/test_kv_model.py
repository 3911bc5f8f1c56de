"""Any sequence of transactions, times, snapshots, restores, on pages so small that there are many, against a dict."""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterator
from unittest import mock

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from raftsvc import kv
from raftsvc.errors import Rejected
from raftsvc.kv import pages, snapshots
from raftsvc.kv.instructions import Operation, encode
from raftsvc.kv.snapshots import MalformedSnapshotError
from raftsvc.kv.state import KeyValueState
from raftsvc.kv.transactions import MAX_KEY_BYTES
from tests.effort import EFFORT
from tests.kv.test_kv_state import Model, is_done

keys = st.one_of(
    st.text("ab/", min_size=1, max_size=3),
    st.sampled_from(["\u00fc", "\U0010ffff", "\ud7ff", "\x00", "a" * MAX_KEY_BYTES]),
)
addresses = st.sampled_from(["a:1", "b:1", "https://c:443/raft"])
datas = st.binary(max_size=40)
versions = st.one_of(st.just("as it is"), st.integers(0, 40), st.just(2**64 - 1))
# Some of them meet at the same time, and two never come.
ttls = st.sampled_from([0.001, 0.002, 0.01, 0.02, 0.03, 86400.0, 36525 * 86400.0])
effects = st.one_of(
    st.builds(kv.set, keys, datas),
    st.builds(kv.set, keys, datas),
    st.builds(kv.set, keys, datas, ttls),
    st.builds(kv.touch, keys, st.one_of(st.none(), ttls)),
    st.builds(
        kv.incr, st.sampled_from(["n", "n/2"]), st.integers(-3, 3), st.integers(-9, 9), st.one_of(st.none(), ttls)
    ),
    st.builds(kv.incr, st.sampled_from(["n", "a"]), st.sampled_from([2**63 - 1, -(2**63)])),
    st.builds(kv.delete, keys),
    st.builds(kv.allow, addresses),
    st.builds(kv.disallow, addresses),
    st.builds(kv.max_state_bytes, st.sampled_from([None, 300, 3000, 3500, 4000])),
)


def copy_of(model: Model) -> Model:
    copy = Model()
    copy.content = dict(model.content)
    copy.deadlines = dict(model.deadlines)
    copy.max_bytes = model.max_bytes
    copy.allowed = set(model.allowed)
    return copy


def as_bytes(model: Model) -> bytes:
    """The snapshot of a state that is as the model says, by a writer of its own."""
    written = b"rkv4" + struct.pack(">QI", model.max_bytes, len(model.allowed))
    for addr in sorted(model.allowed):
        written += struct.pack(">H", len(addr.encode())) + addr.encode()
    for key, (data, version) in model.listed(""):
        written += struct.pack(">HQI", len(key.encode()), version, len(data)) + key.encode() + data
    written += struct.pack(">HQI", 0, len(model.content), 0)
    for key, deadline_ms in sorted(model.deadlines.items()):
        written += struct.pack(">HQ", len(key.encode()), deadline_ms) + key.encode()
    written += struct.pack(">HQII", 0, len(model.deadlines), 0, 0)  # and neither leases nor claims
    written += struct.pack(">QQ", 0, 0) + 3 * struct.pack(">HQI", 0, 0, 0)  # no items, limits, leased keys
    return written + struct.pack(">II", 0, 0)  # no clocks or jobs


class Store(RuleBasedStateMachine):
    """A state, the model beside it, and snapshots on their way."""

    def __init__(self) -> None:
        super().__init__()
        # Pages of 4 keys and pieces of 64 bytes show with 20 keys what else takes 10,000.
        self.small = [
            mock.patch.object(pages, "MAX_PAGE_KEYS", 4),
            mock.patch.object(snapshots, "_CHUNK_BYTES", 64),
        ]
        for patch in self.small:
            patch.start()
        self.state = KeyValueState()
        self.model = Model()
        self.index = 0
        self.time_ms = 0
        self.under_way: list[tuple[Iterator[bytes], list[bytes], int, Model]] = []
        self.finished: list[tuple[bytes, int, Model]] = []

    def teardown(self) -> None:
        while self.under_way:
            self.finish(0)
        for patch in self.small:
            patch.stop()

    @initialize(count=st.integers(0, 30))
    def fill(self, count: int) -> None:
        self.apply([kv.set(f"b/{n:02d}", b"%d" % n) for n in range(count)])

    def apply(self, operations: list[Operation]) -> None:
        self.index += 1
        expected = self.model.apply(operations, self.index, self.time_ms)
        assert is_done(self.state, encode(operations), self.index, self.time_ms) == expected

    @rule(passed_ms=st.one_of(st.integers(0, 12), st.sampled_from([31, 10**6, 2**52])))
    def time_passes(self, passed_ms: int) -> None:
        """The next entry is that much later; nothing happens before there is one."""
        self.time_ms = min(self.time_ms + passed_ms, 2**53 - 1)

    @rule()
    def have_a_pulse(self) -> None:
        self.index += 1
        self.model.pass_time(self.time_ms)
        self.state.pass_time(self.index, self.time_ms)

    @rule(conditions=st.lists(st.tuples(keys, versions), max_size=2), done=st.lists(effects, max_size=6))
    def transact(self, conditions: list[tuple[str, object]], done: list[Operation]) -> None:
        judged: list[Operation] = []
        for key, version in conditions:
            if version == "as it is":
                version = self.model.content.get(key, (b"", 0))[1]
            assert isinstance(version, int)
            judged.append(kv.if_not_modified(key, version) if version else kv.if_not_exists(key))
        self.apply([*judged, *done])

    @rule(raw=st.binary(max_size=60).filter(lambda raw: raw[:1] != b"\x02"))
    def say_nonsense(self, raw: bytes) -> None:
        self.index += 1
        try:
            self.model.pass_time(self.time_ms)
            self.state.apply_at(raw, self.index, self.time_ms)
        except Rejected:
            self.state.set_applied_index(self.index)
        else:
            raise AssertionError("no such bytes are a transaction")

    @rule(prefix=st.one_of(keys, st.just("")))
    def look(self, prefix: str) -> None:
        assert list(self.state.list(prefix).items()) == self.model.listed(prefix)
        assert self.state.get(prefix) == self.model.content.get(prefix)
        wanted = [prefix, "a", "b/01"]
        assert self.state.get_many(wanted) == {k: self.model.content[k] for k in wanted if k in self.model.content}

    @precondition(lambda self: len(self.under_way) < 3)
    @rule()
    def begin_snapshot(self) -> None:
        chunks, index = self.state.snapshot_chunks()
        assert index == self.state.applied_index() == self.index
        self.under_way.append((chunks, [], index, copy_of(self.model)))

    @precondition(lambda self: self.under_way)
    @rule(which=st.integers(0, 2))
    def write_a_piece(self, which: int) -> None:
        chunks, written, _, _ = self.under_way[which % len(self.under_way)]
        written += [piece for piece in [next(chunks, b"")] if piece]

    @precondition(lambda self: self.under_way)
    @rule(which=st.integers(0, 2))
    def finish(self, which: int) -> None:
        """The snapshot is of the moment it was begun, whatever was written since."""
        chunks, written, index, model = self.under_way.pop(which % len(self.under_way))
        data = b"".join([*written, *chunks])
        assert data == as_bytes(model)
        restored = KeyValueState()
        restored.restore_snapshot(data, index)
        assert list(restored.list().items()) == model.listed("")
        assert (restored.allowed(), restored.applied_index()) == (model.allowed, index)
        self.finished.append((data, index, model))

    @precondition(lambda self: self.under_way)
    @rule(which=st.integers(0, 2))
    def abandon(self, which: int) -> None:
        chunks, _, _, _ = self.under_way.pop(which % len(self.under_way))
        assert isinstance(chunks, Generator)
        chunks.close()

    @precondition(lambda self: self.finished)
    @rule(which=st.integers(0, 9))
    def go_back_to_a_snapshot(self, which: int) -> None:
        """The state itself is restored, while snapshots of what it was are under way."""
        data, self.index, model = self.finished[which % len(self.finished)]
        # Log time does not go back with it: what expired meanwhile does so at the next entry.
        self.state.restore_snapshot(data, self.index)
        self.model = copy_of(model)

    @rule(cut=st.integers(1, 50))
    def go_on_from_a_snapshot(self, cut: int) -> None:
        data, index = self.state.snapshot()
        other = KeyValueState()
        other.apply(encode([kv.set("former", b"content"), kv.allow("former:1")]), 1)
        other.restore_chunks(iter([data[n : n + cut] for n in range(0, len(data), cut)]), index)
        assert other.snapshot() == (data, index), "it depends on the content alone"
        self.state = other

    @rule(where=st.floats(0, 1))
    def be_given_half_a_snapshot(self, where: float) -> None:
        data, index = self.state.snapshot()
        try:
            self.state.restore_snapshot(data[: int(where * (len(data) - 1))], index)
        except MalformedSnapshotError:
            assert self.state.snapshot() == (data, index), "what is refused changes nothing"
        else:
            raise AssertionError("half a snapshot is none")

    @invariant()
    def is_as_the_model_says(self) -> None:
        assert len(self.state) == len(self.model.content)
        assert self.state.allowed() == self.model.allowed
        assert self.state.applied_index() == self.index
        sizes = {"size_bytes": self.model.size_bytes(), "max_bytes": self.model.max_bytes or None}
        none = dict.fromkeys(("leases", "claims", "jobs", "runs", "items", "limits"), 0)
        assert self.state.report() == {"keys": len(self.state), **none, **sizes}
        assert self.state.next_deadline() == min(self.model.deadlines.values(), default=None)


Store.TestCase.settings = settings(
    max_examples=60 * EFFORT,
    stateful_step_count=40,
    phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if EFFORT > 1 else [])],
)
TestStore = Store.TestCase
