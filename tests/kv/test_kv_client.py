"""The client face, on a service that applies at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from raftsvc import kv
from raftsvc.errors import ConfigurationError, NotApplied, RaftError, ReadTimeoutError, Rejected
from raftsvc.kv.instructions import encode
from raftsvc.results import Applied


def usage(state: kv.KeyValueState) -> tuple[Any, Any]:
    report = state.report()
    return report["size_bytes"], report["max_bytes"]


class OneNode:
    """A cluster of one that commits at once; `before_read` is what a confirmed read waits for."""

    def __init__(self, state: kv.KeyValueState) -> None:
        self.state = state
        self.index = 1
        self.time_ms = 0
        self.lock = threading.Lock()
        self.timeouts: list[float] = []
        self.reads = 0
        self.before_read: Callable[[], object] = lambda: None

    def propose(self, instruction: bytes, timeout: float = 10.0) -> Applied:
        self.timeouts.append(timeout)
        with self.lock:
            self.index += 1
            answer = self.state.apply_at(instruction, self.index, self.time_ms)
            satisfied = answer is not False
            return Applied(satisfied, self.index, self.time_ms, answer, True)

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
    reads: list[Callable[[], object]] = [
        lambda: store.get("x"),
        lambda: store.get_many(["x"]),
        lambda: store.list("x"),
        lambda: store.get_json("x"),
        lambda: "x" in store,
        lambda: store.list(limit=1),
        lambda: store.namespace("x").get("x"),
        store.allowed,
    ]
    for read in reads:
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
    store.touch("a", None, timeout=12.0)
    store.incr("n", timeout=13.0)
    assert node.timeouts == [float(i) for i in range(1, 14)]


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


def test_what_is_no_address_is_not_called_a_key(store: kv.KeyValue, node: OneNode) -> None:
    for change in (store.allow, store.disallow):
        with pytest.raises(ConfigurationError, match=r"is no address|an address of a node"):
            change(3)  # type: ignore[arg-type]
    assert node.index == 1, "nothing was proposed"


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
    monkeypatch.setattr("raftsvc.kv.freshness.now_seconds", lambda: now[0])
    return now


def test_a_stale_read_of_a_bounded_age_asks_once_in_that_time(
    store: kv.KeyValue, node: OneNode, clock: list[float]
) -> None:
    store.set("a", b"1")
    reads: list[Callable[[float], object]] = [
        lambda age: store.get_stale("a", max_age=age),
        lambda age: store.get_many_stale(["a"], max_age=age),
        lambda age: store.list_stale(max_age=age),
        lambda age: store.get("a", max_age=age),
        lambda age: store.get_many(["a"], max_age=age),
        lambda age: store.list(max_age=age),
        lambda age: store.get_json("a", max_age=age),
        lambda age: store.namespace("").get("a", max_age=age),
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


@pytest.mark.parametrize("max_age", [-1, -0.1, float("nan"), "7", True, [1]])
def test_an_age_that_makes_no_sense_is_refused(store: kv.KeyValue, node: OneNode, max_age: Any) -> None:
    for read in (
        lambda: store.get("a", max_age=max_age),
        lambda: store.get_stale("a", max_age=max_age),
        lambda: store.list(max_age=max_age),
    ):
        with pytest.raises(ConfigurationError, match="max_age is a number of seconds"):
            read()
    assert node.reads == 0


# -- time and numbers


def test_a_key_with_a_ttl_is_gone_after_it(store: kv.KeyValue, node: OneNode) -> None:
    store.set("a", b"1", ttl=1)
    store.set_json("b", 1, ttl=2.5)
    store.transaction([kv.set("c", b"1", ttl=0.5), kv.incr("n", ttl=0.25), kv.touch("n", None)])
    node.time_ms = 1001
    assert store.touch("b", 3600) is True
    assert list(store.list()) == ["b", "n"]
    assert store.touch("a", 1) is False
    version = store.set("b", b"2", kv.if_not_exists("a"))
    with pytest.raises(kv.ConflictError):
        store.touch("b", 1, kv.if_not_modified("b", version - 1))
    node.time_ms = 10**9
    assert store.touch("b", 0.001, kv.if_not_modified("b", version)), "a write without a ttl ended the one before"


def test_a_ttl_that_makes_no_sense_is_refused_before_it_is_proposed(store: kv.KeyValue, node: OneNode) -> None:
    wrong: Any
    for wrong in (0, -1, 1e12, float("nan"), "1", True):
        for write in (
            lambda: store.set("a", b"", ttl=wrong),  # noqa: B023 - called at once
            lambda: store.set_json("a", 1, ttl=wrong),  # noqa: B023
            lambda: store.touch("a", wrong),  # noqa: B023
            lambda: store.incr("a", ttl=wrong),  # noqa: B023
            lambda: store.update("a", lambda _: b"", ttl=wrong),  # noqa: B023
        ):
            with pytest.raises(ConfigurationError, match="a ttl is"):
                write()
    with pytest.raises(ConfigurationError, match="delta is an int"):
        store.incr("a", 1.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="a limit is"):
        store.list(limit=-1)
    assert node.index == 1


def test_counting_says_what_it_became_and_what_cannot_be_counted(store: kv.KeyValue, node: OneNode) -> None:
    assert [store.incr("n"), store.incr("n", 41), store.incr("n", -43), store.incr("m", initial=10)] == [1, 42, -1, 11]
    assert store.get_json("n") == -1
    store.set("text", b"many")
    for key, delta in (("text", 1), ("n", -(2**63))):
        with pytest.raises(kv.CounterError, match=f"'{key}' was not counted") as caught:
            store.incr(key, delta)
        assert caught.value.key == key
        assert isinstance(caught.value, Rejected)
    with pytest.raises(kv.CounterError) as caught:
        store.namespace("te").transaction([kv.set("a", b""), kv.incr("xt")])
    assert caught.value.key == "xt"
    assert store.get("tea") is None


def test_an_update_is_of_what_is_there_whoever_else_writes(store: kv.KeyValue, node: OneNode) -> None:
    seen: list[bytes | None] = []

    def change(data: bytes | None) -> bytes:
        seen.append(data)
        if len(seen) < 3:
            store.set("a", b"other %d" % len(seen))
        return b"mine"

    value = store.update("a", change)
    assert seen == [None, b"other 1", b"other 2"]
    assert value == store.get("a") == (b"mine", node.index)
    assert node.reads == 2, "after a conflict it is known here what came first"
    assert store.update("a", lambda _: None) is None
    assert "a" not in store
    index = node.index
    assert store.update("a", lambda _: None) is None
    assert node.index == index, "nothing to be done"
    with pytest.raises(TypeError, match="a value is bytes"):
        store.update("a", lambda _: 7)  # type: ignore[arg-type,return-value]
    store.update("a", lambda _: b"", ttl=5)
    node.time_ms += 5001
    assert store.incr("x") and "a" not in store


def test_an_update_gives_up_when_its_time_is_over(store: kv.KeyValue, node: OneNode) -> None:
    calls = []

    def disturb(data: bytes | None) -> bytes:
        calls.append(data)
        store.set("a", b"again")
        return b"mine"

    with pytest.raises(kv.ConflictError):
        store.update("a", disturb, timeout=2.0)
    assert 1 < len(calls) < 1000, "it rests in between"
    assert store.get("a") == (b"again", node.index - 1)


def test_updates_from_many_threads_lose_nothing(store: kv.KeyValue) -> None:
    def count_up() -> None:
        for _ in range(20):
            store.update("n", lambda data: b"%d" % (int(data or b"0") + 1), timeout=60.0)

    threads = [threading.Thread(target=count_up, daemon=True) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120.0)
    assert store.get_json("n") == 120


# -- as a mapping, page by page, and from below a prefix


def test_it_can_be_written_as_a_mapping(store: kv.KeyValue) -> None:
    store["a"] = b"1"
    assert store["a"] == b"1"
    assert "a" in store and "b" not in store and 7 not in store
    del store["a"]
    for wrong in (lambda: store["a"], lambda: store.__delitem__("a")):
        with pytest.raises(KeyError, match="a"):
            wrong()
    with pytest.raises(TypeError):
        iter(store)  # type: ignore[call-overload]
    assert bool(store), "an empty store is no reason for `if kv:` to fail"


def test_a_listing_comes_page_by_page(store: kv.KeyValue) -> None:
    store.transaction([kv.set(f"{c}/{n:03d}", b"") for c in "abc" for n in range(300)])
    seen: list[str] = []
    while page := store.list("b/", limit=70, after=seen[-1] if seen else ""):
        assert len(page) <= 70
        seen += page
    assert seen == [f"b/{n:03d}" for n in range(300)]
    assert store.list("b/", limit=0) == {}
    assert list(store.list(limit=2)) == ["a/000", "a/001"]
    assert list(store.list(after="c/297")) == ["c/298", "c/299"]
    assert list(store.list("b/", limit=1, after="a")) == ["b/000"], "what is before the prefix is not skipped to"
    assert store.list("b/", after="c") == {}
    assert list(store.list("b/", limit=1, after="b/2985")) == ["b/299"], "the one it goes on after need not exist"


def test_a_namespace_is_the_same_store_from_below_a_prefix(store: kv.KeyValue, node: OneNode) -> None:
    app = store.namespace("app/")
    deep = app.namespace("x/")
    store.set("other", b"0")
    store.set("app/", b"the prefix itself is no key below it")
    version = app.set("a", b"1", kv.if_not_exists("a"))
    assert store.get("app/a") == app.get("a") == app.get_stale("a") == (b"1", version)
    deep["b"] = b"2"
    assert store["app/x/b"] == app["x/b"] == deep["b"] == b"2"
    assert list(app.list()) == list(app.list_stale()) == ["a", "x/b"]
    assert list(app.list("x/")) == ["x/b"]
    assert list(app.list(after="a", limit=5)) == ["x/b"]
    assert list(app.get_many(["a", "other", "x/b"])) == list(app.get_many_stale(["x/b", "a"]))[::-1] == ["a", "x/b"]
    assert (app.incr("n"), store.incr("app/n")) == (1, 2)
    with pytest.raises(kv.ConflictError, match="'a'") as caught:
        app.transaction([kv.if_not_exists("b"), kv.if_not_exists("a"), kv.set("b", b"")])
    assert caught.value.key == "a"
    app.transaction([kv.if_not_modified("a", version), kv.delete("a"), kv.set("c", b"", ttl=1), kv.touch("x/b", 1)])
    app.allow("10.0.0.1:80")
    assert store.allowed() == app.allowed() == {"10.0.0.1:80"}
    node.time_ms = 1001
    app.update("n", lambda data: data)
    assert list(store.list()) == ["app/", "app/n", "other"]
    index = node.index
    with pytest.raises(ValueError, match="a key has"):
        app.set("k" * 1024, b"")
    with pytest.raises(TypeError):
        app.transaction(["a"])  # type: ignore[list-item]
    with pytest.raises(ConfigurationError, match="a prefix is a str"):
        app.namespace(b"x")  # type: ignore[arg-type]
    assert node.index == index


# -- how large it may be


def test_a_full_store_refuses_what_grows_and_takes_all_else(store: kv.KeyValue, node: OneNode) -> None:
    store.transaction([kv.set(f"k{n}", bytes(48)) for n in range(10)])
    assert usage(node.state) == (1500, None)
    store.transaction([kv.max_state_bytes(1400)])
    assert usage(node.state) == (1500, 1400)
    grown: list[Callable[[], object]] = [
        lambda: store.set("new", b""),
        lambda: store.set("new", b"", ttl=1),
        lambda: store.set("k1", bytes(49)),
        lambda: store.incr("n"),
        lambda: store.update("k1", lambda data: (data or b"") + b"x"),
        lambda: store.transaction([kv.delete("k1"), kv.set("n1", bytes(24)), kv.set("n2", bytes(24))]),
        lambda: store.transaction([kv.max_state_bytes(None), kv.set("new", b"")]),
    ]
    for write in grown:
        before = node.state.snapshot()[0]
        with pytest.raises(kv.QuotaExceeded, match="may have 1400: delete something, or raise") as caught:
            write()
        assert (caught.value.http_status, isinstance(caught.value, Rejected)) == (507, True)
        assert node.state.snapshot()[0] == before
    store.set("k1", bytes(48))
    store.transaction([kv.delete("k2"), kv.set("n2", bytes(40))])
    store.touch("k3", 1.0)
    store.allow("10.0.0.1:80")
    node.time_ms = 1001
    store.delete("k4")
    assert usage(node.state)[0] < 1200, "it may be over it, and come down"
    store.set("new", b"x" * 80)
    with pytest.raises(kv.QuotaExceeded):
        store.set("more", b"x" * 80)
    store.transaction([kv.max_state_bytes(None)])
    store.set("more", b"x" * 80)


def test_a_lone_set_is_held_to_the_same_limit_to_the_byte(store: kv.KeyValue, node: OneNode) -> None:
    store.namespace("any/").transaction([kv.max_state_bytes(1000)])
    for length in range(1000):
        if length <= 899:
            store.set("k", bytes(length))
            continue
        with pytest.raises(kv.QuotaExceeded):
            store.set("k", bytes(length))
    assert usage(node.state) == (1000, 1000)
    copy = kv.KeyValueState()
    copy.restore_snapshot(*node.state.snapshot())
    assert usage(copy) == (1000, 1000)


def test_it_warns_from_four_fifths_on_until_there_is_room_again(store: kv.KeyValue, node: OneNode) -> None:
    state = node.state
    warned = []
    for length in (10, 700, 699, 655, 649, 648, 698, 899):
        store.set("k", bytes(length))
        if len(warned) == 0:
            store.transaction([kv.max_state_bytes(1000)])
        warned.append(state.warning() is not None)
    assert warned == [False, True, True, True, True, False, False, True]
    assert "more than 80% of the 1000 bytes" in str(state.warning())
    store.transaction([kv.max_state_bytes(None)])
    assert state.warning() is None
