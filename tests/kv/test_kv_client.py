"""The client face, on a service that applies at once."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from raftsvc import kv
from raftsvc.errors import NotApplied, RaftError, ReadTimeoutError
from raftsvc.kv.instructions import encode
from raftsvc.results import Applied


class OneNode:
    """A cluster of one that commits at once; `before_read` is what a confirmed read waits for."""

    def __init__(self, state: kv.KeyValueState) -> None:
        self.state = state
        self.index = 1
        self.lock = threading.Lock()
        self.timeouts: list[float] = []
        self.reads = 0
        self.before_read: Callable[[], object] = lambda: None

    def propose(self, instruction: bytes, timeout: float = 10.0) -> Applied:
        self.timeouts.append(timeout)
        with self.lock:
            self.index += 1
            answer = self.state.apply(instruction, self.index)
            return Applied(answer, self.index, 0, answer, True)

    def wait_read(self, timeout: float = 5.0) -> None:
        self.timeouts.append(timeout)
        self.reads += 1
        self.before_read()


@pytest.fixture
def node() -> OneNode:
    return OneNode(kv.KeyValueState())


@pytest.fixture
def store(node: OneNode) -> kv.KeyValue:
    return kv.KeyValue(node, node.state)


def test_a_write_returns_the_version_that_a_read_shows(store: kv.KeyValue) -> None:
    version = store.set("a", b"1")
    assert version > 0
    assert store.get("a") == kv.Value(b"1", version)
    assert store.get_stale("a") == kv.Value(b"1", version)
    assert store.set("a", b"1") > version
    assert store.get("b") is None


def test_a_linearizable_read_looks_after_the_confirmation(store: kv.KeyValue, node: OneNode) -> None:
    node.before_read = lambda: node.propose(encode([kv.set("late", b"1")]))
    assert store.get("late") is not None
    node.before_read = lambda: None
    for read in (
        lambda: store.get("x"),
        lambda: store.get_many(["x"]),
        lambda: store.list("x"),
        lambda: store.get_json("x"),
        store.allowed,
    ):
        before = node.reads
        read()
        assert node.reads == before + 1


def test_a_stale_read_asks_nobody(store: kv.KeyValue, node: OneNode) -> None:
    store.set("a", b"1")
    store.get_stale("a")
    store.list_stale("a")
    store.get_many_stale(["a"])
    assert node.reads == 0


def test_a_read_that_is_not_confirmed_shows_nothing(store: kv.KeyValue, node: OneNode) -> None:
    def refuse() -> None:
        raise ReadTimeoutError("no majority")

    node.before_read = refuse
    for read in (lambda: store.get("a"), lambda: store.list(), lambda: store.get_many(["a"]), lambda: store.allowed()):
        with pytest.raises(ReadTimeoutError):
            read()


def test_timeouts_reach_the_service(store: kv.KeyValue, node: OneNode) -> None:
    store.set("a", b"1", timeout=1.0)
    store.set_json("a", 1, timeout=2.0)
    store.delete("a", timeout=3.0)
    store.transaction([], 4.0)
    store.allow("a:1", 5.0)
    store.disallow("a:1", 6.0)
    store.get("a", 7.0)
    store.get_many(["a"], 8.0)
    store.get_json("a", timeout=9.0)
    store.list("a", 10.0)
    store.allowed(11.0)
    assert node.timeouts == [float(i) for i in range(1, 12)]


def test_create_only_once(store: kv.KeyValue) -> None:
    version = store.set("a", b"1", kv.if_not_exists("a"))
    with pytest.raises(kv.ConflictError) as caught:
        store.set("a", b"2", kv.if_not_exists("a"))
    assert (caught.value.key, caught.value.version) == ("a", version)
    assert isinstance(caught.value, RaftError)
    assert not isinstance(caught.value, NotApplied), "resending a conflict is pointless"
    assert store.get("a") == (b"1", version)


def test_replace_only_what_was_read(store: kv.KeyValue) -> None:
    first = store.set("a", b"1")
    second = store.set("a", b"2", kv.if_not_modified("a", first))
    with pytest.raises(kv.ConflictError, match=f"'a' did not hold: it was last written at version {second}"):
        store.set("a", b"3", kv.if_not_modified("a", first))
    store.delete("a", kv.if_not_modified("a", second))
    with pytest.raises(kv.ConflictError, match="does not exist") as caught:
        store.delete("a", kv.if_not_modified("a", second))
    assert caught.value.version == 0


def test_a_transaction_combines_conditions_and_effects(store: kv.KeyValue) -> None:
    version = store.set("from", b"x")
    conditions = [kv.if_not_modified("from", version), kv.if_not_exists("to")]
    moved = store.transaction([*conditions, kv.delete("from"), kv.set("to", b"x")])
    assert store.list() == {"to": kv.Value(b"x", moved)}
    with pytest.raises(kv.ConflictError) as caught:
        store.transaction([kv.if_not_exists("other"), kv.if_not_exists("to"), kv.set("other", b"y")])
    assert caught.value.key == "to"
    assert list(store.list()) == ["to"]


def test_deleting_what_is_not_there_is_no_error(store: kv.KeyValue) -> None:
    store.delete("never")


def test_a_listing_is_in_order_and_only_below_its_prefix(store: kv.KeyValue) -> None:
    for key in ("b/2", "a", "b/10", "b", "c", "b0"):
        store.set(key, key.encode())
    assert list(store.list("b/")) == ["b/10", "b/2"]
    assert list(store.list_stale("b")) == ["b", "b/10", "b/2", "b0"]
    assert len(store.list()) == 6
    assert store.list("d") == {}
    assert store.get_many(["c", "x", "a"]) == {"c": store.get("c"), "a": store.get("a")}


def test_json_goes_in_and_comes_out(store: kv.KeyValue) -> None:
    version = store.set_json("a", {"n": [1, 2.5, None, "ü"]})
    assert store.get_json("a") == {"n": [1, 2.5, None, "ü"]}
    value = store.get("a")
    assert value is not None
    assert (value.json(), value.version) == ({"n": [1, 2.5, None, "ü"]}, version)
    assert store.get_json("none") is None
    assert store.get_json("none", default=[]) == []
    store.set_json("a", None, kv.if_not_modified("a", version))
    assert store.get_json("a", default="other") is None
    store.set("raw", b"\xff{")
    with pytest.raises(ValueError):
        store.get_json("raw")


def test_what_is_no_json_is_not_written(store: kv.KeyValue, node: OneNode) -> None:
    for value in (float("nan"), object(), {1, 2}):
        with pytest.raises((TypeError, ValueError)):
            store.set_json("a", value)
    assert node.timeouts == [], "nothing was proposed"


def test_the_allowed_list_is_replicated(store: kv.KeyValue, node: OneNode) -> None:
    assert store.allowed() == frozenset()
    store.allow("a:1")
    store.allow("b:1")
    store.allow("a:1")
    store.disallow("b:1")
    assert store.allowed() == {"a:1"}
    assert node.state.is_allowed_member("a:1")
    assert not node.state.is_allowed_member("b:1")


def test_nonsense_is_refused_before_it_is_proposed(store: kv.KeyValue, node: OneNode) -> None:
    with pytest.raises(ValueError):
        store.set("", b"1")
    with pytest.raises(TypeError):
        store.set("a", "text")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no condition"):
        store.set("a", b"1", kv.delete("b"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no condition"):
        store.delete("a", kv.set("b", b""))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        store.transaction(["a"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="at most"):
        store.transaction([kv.delete("a")] * 5000)
    assert node.timeouts == []


def test_a_version_is_that_of_the_own_write_whoever_wrote_since(node: OneNode) -> None:
    """The key has been overwritten, with the same value, before the first writer looks again."""

    class Overtaken(OneNode):
        def propose(self, instruction: bytes, timeout: float = 10.0) -> Applied:
            applied = super().propose(instruction, timeout)
            super().propose(instruction, timeout)
            return applied

    node = Overtaken(kv.KeyValueState())
    store = kv.KeyValue(node, node.state)
    version = store.set("a", b"1")
    value = store.get("a")
    assert value is not None
    assert value.version == version + 1
    with pytest.raises(kv.ConflictError):
        store.set("a", b"2", kv.if_not_modified("a", version))


def test_concurrent_counters_lose_nothing_and_each_version_is_unique(store: kv.KeyValue) -> None:
    versions: list[int] = []

    def count_up() -> None:
        done = 0
        while done < 50:
            value = store.get("n")
            number, has = (int(value.data), value.version) if value else (0, 0)
            try:
                versions.append(store.set("n", b"%d" % (number + 1), kv.if_not_modified("n", has)))
            except kv.ConflictError:
                continue
            done += 1

    threads = [threading.Thread(target=count_up, daemon=True) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120.0)
    assert not any(thread.is_alive() for thread in threads)
    value = store.get("n")
    assert value is not None
    assert value == (b"300", max(versions))
    assert len(versions) == len(set(versions)) == 300


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time it is, in its only item."""
    now = [1000.0]
    monkeypatch.setattr("raftsvc.kv.client._now", lambda: now[0])
    return now


def test_a_stale_read_of_a_bounded_age_asks_once_in_that_time(
    store: kv.KeyValue, node: OneNode, clock: list[float]
) -> None:
    store.set("a", b"1")
    reads: list[Callable[[float], object]] = [
        lambda age: store.get_stale("a", max_age=age),
        lambda age: store.get_many_stale(["a"], max_age=age),
        lambda age: store.list_stale(max_age=age),
    ]
    for read in reads:
        clock[0] += 100.0
        before = node.reads
        assert read(5.0)
        assert node.reads == before + 1, "nobody knew how old it is"
        clock[0] += 5.0
        assert read(5.0)
        assert node.reads == before + 1, "it is not older than that"
        clock[0] += 0.1
        assert read(5.0)
        assert node.reads == before + 2
        assert read(0.0)
        assert node.reads == before + 2, "at this very moment"
    store.get_stale("a")
    assert node.reads == before + 2, "without a bound nobody is asked"


def test_how_old_a_read_is_counts_from_when_it_was_asked_and_what_failed_proves_nothing(
    store: kv.KeyValue, node: OneNode, clock: list[float]
) -> None:
    def answer_late() -> None:
        clock[0] += 4.0

    node.before_read = answer_late
    store.get_stale("a", max_age=5.0)
    clock[0] += 2.0
    before = node.reads
    store.get_stale("a", max_age=5.0)
    assert node.reads == before + 1, "what was current six seconds ago"

    def fail() -> None:
        raise ReadTimeoutError("nobody answers")

    node.before_read = fail
    clock[0] += 100.0
    for _ in range(2):
        with pytest.raises(ReadTimeoutError):
            store.get_stale("a", max_age=5.0, timeout=0.1)
    assert node.timeouts[-1] == 0.1
    assert store.get_stale("a") is None, "as far as this node knows"
