"""What watchers are shown: every change once, in order, whole entries, and whether something is missing."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

import raftsvc
from raftsvc import kv
from raftsvc.errors import (
    ConfigurationError,
    NodeFailedError,
    OutOfTouchError,
    RaftError,
    ReadTimeoutError,
    StoppedError,
)
from raftsvc.kv.instructions import encode
from raftsvc.kv.pages import Value
from raftsvc.results import Applied
from tests.effort import PATIENCE

MADE: list[OneNode] = []


@pytest.fixture(autouse=True)
def every_node_ends() -> Iterator[None]:
    """And with it the thread that calls functions."""
    yield
    for node in MADE:
        node.fail(StoppedError("the test is over"))
    MADE.clear()


class OneNode:
    """A cluster of one that commits at once, one entry for each transaction, or for several."""

    def __init__(self, state: kv.KeyValueState, cluster_id: str = "c1") -> None:
        self.state = state
        self.cluster_id = cluster_id
        self.index = 0
        self.time_ms = 0
        self.error: RaftError | None = None
        self.is_confirmed = True
        self.asked = 0
        self.listeners: list[Callable[[Any], object]] = []
        self._lock = threading.Lock()
        MADE.append(self)

    def propose(self, instruction: bytes, timeout: float = 10.0) -> Applied:
        with self._lock:
            self.index += 1
            try:
                answer = self.state.apply_at(instruction, self.index, self.time_ms)
            finally:
                self.state.set_applied_index(self.index)
            return Applied(answer is not False, self.index, self.time_ms, answer, True)

    def propose_list(self, instructions: list[bytes], and_then: Callable[[], object] = lambda: None) -> int:
        """All in one entry; `and_then` is called before it is done."""
        self.index += 1
        for instruction in instructions:
            self.state.apply_at(instruction, self.index, self.time_ms)
        and_then()
        self.state.set_applied_index(self.index)
        return self.index

    def pulse(self, time_ms: int) -> int:
        self.index += 1
        self.time_ms = time_ms
        self.state.pass_time(self.index, time_ms)
        self.state.set_applied_index(self.index)
        return self.index

    def wait_read(self, timeout: float = 5.0) -> None:
        self.asked += 1
        if not self.is_confirmed:
            raise ReadTimeoutError("nobody confirms it")

    def err(self) -> RaftError | None:
        return self.error

    def status(self) -> dict[str, object]:
        return {"cluster_id": self.cluster_id}

    def add_listener(self, listener: Callable[[Any], object]) -> Callable[[], None]:
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)

    def fail(self, error: RaftError) -> None:
        self.error = error
        for listener in self.listeners:
            listener(type("Event", (), {"kind": "error", "error": error}))


@pytest.fixture
def node() -> OneNode:
    return OneNode(kv.KeyValueState())


@pytest.fixture
def store(node: OneNode) -> kv.KeyValue:
    return kv.KeyValue(node, node.state)


def shown(watch: kv.Watch) -> list[tuple[str, str, bytes | None, int]]:
    """What there is to show now."""
    found = []
    while events := watch.next(0.0):
        found += [(event.kind, event.key, event.value, event.index) for event in events]
    return found


def test_a_trouble_that_may_pass_ends_nobody_who_waits_or_is_called(node: OneNode, store: kv.KeyValue) -> None:
    told: list[str] = []
    changed = threading.Event()

    def change(event: kv.Event) -> None:
        told.append(event.key)
        changed.set()

    with store.watch() as watch:
        node.fail(NodeFailedError("the owner of the directory does not answer"))
        assert watch.next(0.0) == []
        store.on_change()(change)
        node.error = None
        store.set("a", b"")
        assert [event.key for event in watch.next(0.0)] == ["a"]
        assert changed.wait(PATIENCE)
    assert told == ["a"]


def test_changes_are_shown_with_what_was_there_before(store: kv.KeyValue) -> None:
    first = store.set("a", b"1")
    with store.watch(after=0) as watch:
        second = store.set("a", b"2")
        third = store.incr("n", 5)
        store.delete("a")
        store.delete("a")
        store.touch("n", 5)
        events = [event for _ in range(4) for event in watch.next(0.0)]
        assert [(e.kind, e.key, e.value, e.previous) for e in events] == [
            ("set", "a", b"1", None),
            ("set", "a", b"2", Value(b"1", first)),
            ("set", "n", b"5", None),
            ("delete", "a", None, Value(b"2", second)),
        ]
        assert [e.index for e in events] == [first, second, second + 1, second + 2] and third == 5
        assert watch.next(0.0) == []


def test_a_watch_begins_now_or_where_it_is_told(store: kv.KeyValue) -> None:
    store.set("a", b"1")
    values, index = store.list_at()
    assert values == {"a": Value(b"1", index)}
    with store.watch() as now, store.watch(after=index) as then, store.watch("b", after=0) as other:
        version = store.set("a", b"2")
        assert shown(now) == shown(then) == [("set", "a", b"2", version)]
        assert shown(other) == []


def test_a_namespace_watches_its_own_keys_by_their_short_names(store: kv.KeyValue) -> None:
    below = store.namespace("app/")
    with below.watch("f") as watch:
        store.set("f", b"of others")
        version = store.set("app/f1", b"1")
        below.set("g", b"2")
        assert shown(watch) == [("set", "f1", b"1", version)]
    assert below.list_at("f") == ({"f1": Value(b"1", version)}, version + 1)


def test_a_key_that_is_the_prefix_of_a_namespace_is_not_in_it(store: kv.KeyValue) -> None:
    below = store.namespace("app/")
    with below.watch() as watch:
        store.set("app/", b"of nobody below")
        version = below.set("a", b"")
        assert shown(watch) == [("set", "a", b"", version)]
    assert list(below.list_at()[0]) == list(below.list()) == list(below.mirror()) == ["a"]


def test_a_transaction_is_shown_whole_and_of_each_key_only_what_comes_of_it(store: kv.KeyValue) -> None:
    store.set("old", b"0")
    with store.watch() as watch:
        version = store.transaction(
            [
                kv.set("a", b"1"),
                kv.set("b", b"1"),
                kv.set("a", b"2"),
                kv.set("c", b"1"),
                kv.delete("c"),
                kv.delete("old"),
            ]
        )
        events = watch.next(0.0)
        assert [(e.kind, e.key, e.value) for e in events] == [
            ("set", "a", b"2"),
            ("set", "b", b"1"),
            ("delete", "old", None),
        ]
        assert {e.index for e in events} == {version} and events[0].previous is None


def test_an_entry_of_several_instructions_is_one_unit_and_a_listing_is_before_or_after_it(
    node: OneNode, store: kv.KeyValue
) -> None:
    before = store.transaction([kv.set("a", b"0"), kv.set("z", b"0")])
    with store.watch() as watch:
        seen: list[Any] = []

        def look() -> None:
            seen.extend([watch.next(0.0), node.state.list_at(), watch.index])

        index = node.propose_list(
            [encode([kv.set("a", b"1")]), encode([kv.set("b", b"1")]), encode([kv.delete("z")])], look
        )
        assert seen == [[], ({"a": Value(b"0", before), "z": Value(b"0", before)}, before), before]
        assert [e.key for e in watch.next(0.0)] == ["a", "b", "z"]
        assert watch.index == index


def test_a_page_of_a_listing_is_what_the_whole_begins_with_also_amid_an_entry(
    node: OneNode, store: kv.KeyValue
) -> None:
    names = "bdfhj"
    store.transaction([kv.set(name, b"0") for name in names])
    whole = list(node.state.list_at()[0].items())
    instructions = [encode([kv.set(name, b"1")]) for name in "aceg"]
    instructions += [encode([kv.delete(name)]) for name in "bj"] + [encode([kv.set("d", b"1")])]
    seen: list[Any] = []

    def look() -> None:
        for after in ("", "a", "b", "e", "j"):
            for limit in range(7):
                values, _ = store.list_at(limit=limit, after=after)
                seen.append(list(values.items()) == [each for each in whole if each[0] > after][:limit])

    for length in range(1, len(instructions) + 1):
        node.propose_list(instructions[:length], look)
        store.transaction([*(kv.delete(name) for name in "aceg"), *(kv.set(name, b"0") for name in names)])
        whole = list(node.state.list_at()[0].items())
    look()
    assert len(seen) == 8 * 5 * 7 and all(seen)
    assert [*store.namespace("d").list_at(limit=3)[0]] == []


def test_what_expires_is_shown_in_the_entry_that_had_it_expire_also_of_one_that_is_refused(
    node: OneNode, store: kv.KeyValue
) -> None:
    store.set("a", b"1", ttl=1)
    store.set("b", b"1", ttl=2)
    with store.watch() as watch:
        pulse = node.pulse(1500)
        assert [(e.kind, e.key, e.index) for e in watch.next(0.0)] == [("expire", "a", pulse)]
        node.time_ms = 5000
        with pytest.raises(kv.ConflictError):
            store.set("c", b"1", kv.if_not_modified("c", 7))
        assert [(e.kind, e.key, e.index) for e in watch.next(0.0)] == [("expire", "b", pulse + 1)]
        store.set("d", b"1", ttl=1)
        node.time_ms = 9000
        version = store.transaction([kv.set("d", b"2"), kv.incr("n", 1), kv.incr("n", 1)])
        assert [(e.kind, e.key, e.value, e.index) for _ in range(2) for e in watch.next(0.0)] == [
            ("set", "d", b"1", version - 1),
            ("expire", "d", None, version),
            ("set", "d", b"2", version),
            ("set", "n", b"2", version),
        ]


def test_single_events_and_whole_entries_can_be_mixed_and_the_position_is_of_whole_ones(store: kv.KeyValue) -> None:
    with store.watch() as watch:
        begun = watch.index
        version = store.transaction([kv.set("a", b""), kv.set("b", b""), kv.set("c", b"")])
        assert next(watch).key == "a" and watch.index == begun
        assert [e.key for e in watch.next(0.0)] == ["b", "c"] and watch.index == version
        store.set("d", b"")
        assert next(watch).key == "d" and watch.index == version + 1


def test_the_position_moves_on_though_nothing_is_shown_and_does_not_fall_off(node: OneNode) -> None:
    state = kv.KeyValueState(max_events=10)
    store = kv.KeyValue(OneNode(state), state)
    with store.watch("mine/") as idle:
        assert idle.next(0.0) == []
        for number in range(100):
            version = store.set(f"others/{number}", b"")
        assert idle.index == version, "a bookmark"
        for number in range(100):
            store.set(f"others/{number}", b"")
        version = store.set("mine/1", b"")
        assert shown(idle) == [("set", "mine/1", b"", version)]


def test_who_falls_behind_is_told_and_goes_on_from_a_listing(node: OneNode) -> None:
    state = kv.KeyValueState(max_events=10)
    store = kv.KeyValue(OneNode(state), state)
    with store.watch() as slow:
        assert slow.next(0.0) == []
        for number in range(12):
            version = store.set("a", b"%d" % number)
        with pytest.raises(kv.Compacted) as compacted:
            slow.next(0.0)
        assert compacted.value.kept_after == version - 10
    with pytest.raises(kv.Compacted):
        store.watch(after=version - 11)
    with store.watch(after=version - 10) as watch:
        assert len(shown(watch)) == 10
    values, index = store.list_at()
    with store.watch(after=index) as watch:
        assert values["a"].data == b"11" and shown(watch) == []


@pytest.mark.parametrize("kind", ["delete", "expire"])
def test_from_the_oldest_position_that_is_kept_what_went_then_is_shown_too(kind: str) -> None:
    state = kv.KeyValueState(max_events=3)
    node = OneNode(state)
    store = kv.KeyValue(node, state)
    store.set("a", b"1", ttl=1 if kind == "expire" else None)
    if kind == "delete":
        gone = store.transaction([kv.delete("a")])
    else:
        gone = node.pulse(5000)
    for number in range(2):
        store.set(f"b{number}", b"")
    with store.watch("a", after=gone - 1) as watch:
        assert [(event.kind, event.key, event.index) for event in watch.next(0.0)] == [(kind, "a", gone)]
    store.set("b2", b"")
    with pytest.raises(kv.Compacted) as compacted:
        store.watch("a", after=gone - 1)
    assert compacted.value.kept_after == gone
    with store.watch("a", after=gone) as watch:
        assert watch.next(0.0) == []


def test_the_newest_entry_is_kept_however_large(node: OneNode) -> None:
    state = kv.KeyValueState(max_events=1, max_event_bytes=1000)
    store = kv.KeyValue(OneNode(state), state)
    with store.watch() as watch:
        version = store.transaction([kv.set(f"{number}", bytes(1000)) for number in range(5)])
        assert len(watch.next(0.0)) == 5
        store.set("b", b"")
        assert len(watch.next(0.0)) == 1 and watch.index == version + 1


def test_a_snapshot_that_arrives_ends_what_was_before_it(node: OneNode, store: kv.KeyValue) -> None:
    store.set("a", b"1")
    chunks, index = node.state.snapshot_chunks()
    data = b"".join(chunks)
    with store.watch() as watch:
        assert watch.next(0.0) == []

        def wait() -> None:
            with pytest.raises(kv.Compacted):
                watch.next(PATIENCE)

        waiting = threading.Thread(target=wait)
        waiting.start()
        node.index = index + 100
        node.state.restore_snapshot(data, node.index)
        waiting.join(PATIENCE)
        assert not waiting.is_alive()
        with pytest.raises(kv.Compacted):
            watch.next(0.0)
    with store.watch(after=node.index) as watch:
        version = store.set("a", b"2")
        assert shown(watch) == [("set", "a", b"2", version)]


def test_a_position_is_worth_nothing_in_another_cluster(node: OneNode, store: kv.KeyValue) -> None:
    with store.watch() as watch:
        store.set("a", b"1")
        kept = watch.position
        assert kept == "c1:0"
    with store.watch(after=kept) as again:
        assert len(shown(again)) == 1
    node.cluster_id = "c2"
    with pytest.raises(kv.Compacted):
        store.watch(after=kept)


def test_a_part_of_several_is_watched_too() -> None:
    state = kv.KeyValueState()
    states = raftsvc.States(kv=state, other=kv.KeyValueState())
    node: Any = OneNode(states)  # type: ignore[arg-type]
    store, other = kv.KeyValue(states.part("kv", node), state), states.part("other", node)
    store.set("a", b"1", ttl=1)
    with store.watch() as watch:
        node.time_ms = 5000
        index = other.propose(encode([kv.set("b", b"")])).index
        assert shown(watch) == [("expire", "a", None, index)]
        version = store.set("c", b"")
        assert shown(watch) == [("set", "c", b"", version)] and watch.position == f"c1:{version}"
        node.fail(StoppedError("it was stopped"))
        with pytest.raises(StoppedError):
            watch.next(PATIENCE)


@pytest.mark.parametrize("after", [-1, True, 1.5, "7", "c1:", "c1:-1", "c1:x", "c1:" + "9" * 30, b"7"])
def test_what_is_no_position_is_refused(store: kv.KeyValue, after: Any) -> None:
    with pytest.raises(ConfigurationError, match="position"):
        store.watch(after=after)


@pytest.mark.parametrize("ask", ["watch", "on_change", "mirror"])
def test_what_is_no_prefix_is_refused(store: kv.KeyValue, ask: str) -> None:
    for prefix in (b"a", 5, None):
        with pytest.raises(TypeError, match="prefix"):
            getattr(store, ask)(prefix)


@pytest.mark.parametrize("max_age", [-1, "5", True, float("nan")])
def test_what_is_no_age_is_refused(store: kv.KeyValue, max_age: Any) -> None:
    for ask in (store.watch, store.mirror):
        with pytest.raises(ConfigurationError, match="max_age"):
            ask("a", max_age=max_age)


@pytest.mark.parametrize("bound", [{"max_events": -1}, {"max_events": True}, {"max_event_bytes": "1"}])
def test_what_is_no_bound_is_refused(bound: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_event"):
        kv.KeyValueState(**bound)


def test_who_waits_is_woken_by_what_it_waits_for_and_by_nothing_else(node: OneNode, store: kv.KeyValue) -> None:
    found: list[Any] = []
    with store.watch("mine/") as watch:
        assert watch.next(0.0) == []
        asked: list[int] = []
        advance = node.state.advance
        # Noted once it waits, so that nothing of what follows is there already when it asks first.
        node.state.advance = lambda *given: (advance(*given), asked.append(1))[0]  # type: ignore[method-assign]
        is_looking = threading.Event()

        def wait() -> None:
            is_looking.set()
            found.extend(watch.next(PATIENCE))

        thread = threading.Thread(target=wait)
        thread.start()
        is_looking.wait(PATIENCE)
        while not asked:
            pass
        for number in range(200):
            store.set(f"others/{number}", b"")
        store.set("mine/1", b"")
        thread.join(PATIENCE)
        assert [event.key for event in found] == ["mine/1"] and len(asked) == 2


class Leaving:
    """A lock after which, once, something is done at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.then: Callable[[], object] | None = None

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        then, self.then = self.then, None
        if then is not None:
            then()


def test_a_change_that_comes_while_a_watcher_begins_to_wait_is_not_missed(node: OneNode, store: kv.KeyValue) -> None:
    lock: Any = Leaving()
    node.state._applying.lock = lock
    with store.watch() as watch:
        lock.then = lambda: store.set("a", b"")
        found = watch.next(0.0) + watch.next(0.0)
        assert [event.key for event in found] == ["a"]


def test_a_watch_that_is_ahead_of_its_node_shows_nothing_twice(node: OneNode, store: kv.KeyValue) -> None:
    with store.watch("a", after=3) as watch:
        for number in range(5):
            store.set("a", b"%d" % number)
        assert [index for _, _, _, index in shown(watch)] == [4, 5]


def test_the_position_of_a_watch_that_is_ahead_of_its_node_does_not_go_back(node: OneNode, store: kv.KeyValue) -> None:
    with store.watch("a", after=3) as watch:
        for _ in range(3):
            assert (watch.next(0.0), watch.index, watch.position) == ([], 3, "c1:3")
            store.set("b", b"")
        assert (watch.next(0.0), watch.index) == ([], 3)
        store.set("b", b"")
        assert (watch.next(0.0), watch.index) == ([], 4)


@pytest.mark.parametrize("is_closed", [False, True])
def test_who_is_woken_for_nothing_or_closed_keeps_its_place(is_closed: bool) -> None:
    state = kv.KeyValueState(max_events=10)
    node = OneNode(state)
    store = kv.KeyValue(node, state)
    watch = store.watch("mine/")
    for number in range(100):
        version = store.set(f"others/{number}", b"")
    if is_closed:
        watch.close()
    else:
        node.fail(OutOfTouchError("nobody answers"))
    assert watch.index == version
    with store.watch("mine/", after=watch.position) as again:
        version = store.set("mine/1", b"")
        assert shown(again) == [("set", "mine/1", b"", version)]


def test_an_interrupt_of_the_main_thread_loses_nothing(node: OneNode, store: kv.KeyValue) -> None:
    count = 600
    with store.watch() as watch:
        for number in range(count):
            store.set("a", b"%d" % number)
        advance = node.state.advance
        is_struck = [False]

        def struck(*given: Any) -> Any:
            found = advance(*given)
            if threading.current_thread() is threading.main_thread():
                is_struck[0] = not is_struck[0]
            if is_struck[0] and threading.current_thread() is threading.main_thread():
                raise InterruptedError("a handler of signals raised")
            return found

        node.state.advance = struck  # type: ignore[method-assign]
        found: list[int] = []
        while len(found) < count:
            with suppress(InterruptedError):
                found += [event.index for event in watch.next(0.0)]
        assert found == list(range(1, count + 1))


def test_watches_that_are_dropped_leave_nothing(store: kv.KeyValue, node: OneNode) -> None:
    for number in range(1000):
        assert store.watch(f"user/{number}/").next(0.0) == []
    assert node.state._applying.history._waiting_count <= 200
    kept = [store.watch(f"user/{number}/") for number in range(300)]
    store.set("user/7/x", b"")
    assert [len(watch.next(0.0)) for watch in kept] == [0] * 7 + [1] + [0] * 292


def test_how_long_prefixes_are_does_not_add_up(store: kv.KeyValue, node: OneNode) -> None:
    watches = [store.watch("x" * length) for length in range(1, 50)]
    for watch in watches:
        watch.close()
    assert node.state._applying.history._lengths == () and not node.state._applying.history._waiting


def test_a_slow_watch_holds_only_some_of_what_it_was_not_asked_for(store: kv.KeyValue, node: OneNode) -> None:
    watch = store.watch()
    for _ in range(50):
        store.set("a", bytes(100_000))
    watch.next(0.0)
    assert len(watch._page[0]) <= 3 and len(shown(watch)) == 49


@pytest.mark.parametrize("number", range(20))
def test_close_ends_who_waits(node: OneNode, store: kv.KeyValue, number: int) -> None:
    watch = store.watch()
    left: list[Any] = []
    thread = threading.Thread(target=lambda: left.extend(watch))
    thread.start()
    watch.close()
    thread.join(20)  # far less than there is between two looks
    assert not thread.is_alive() and left == [] and watch.next(0.0) == []
    assert not node.state._applying.history._waiting
    with pytest.raises(StopIteration):
        next(watch)


def test_who_waits_is_told_that_the_node_stops_and_not_that_it_is_out_of_touch(
    node: OneNode, store: kv.KeyValue
) -> None:
    told: list[Exception] = []
    with store.watch() as watch:

        def wait() -> None:
            try:
                watch.next(PATIENCE)
            except RaftError as error:
                told.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        node.fail(OutOfTouchError("nobody answers"))
        node.fail(StoppedError("it was stopped"))
        thread.join(PATIENCE)
        assert isinstance(told[0], StoppedError)


def test_with_an_age_a_node_that_is_cut_off_says_so(node: OneNode, store: kv.KeyValue) -> None:
    with store.watch(max_age=0.05) as watch:
        version = store.set("a", b"1")
        assert [e.index for e in watch.next(PATIENCE)] == [version]
        asked = node.asked
        assert watch.next(0.2) == [] and node.asked > asked
        node.is_confirmed = False
        store.set("a", b"shown")
        assert len(watch.next(PATIENCE)) == 1, "what there is is shown"
        with pytest.raises(ReadTimeoutError):
            watch.next(PATIENCE)
        assert watch.next(0.0) == [] and watch.next(0.5) == [], "the time was over before anybody could answer"
        node.is_confirmed = True
        version = store.set("a", b"2")
        assert [e.index for e in watch.next(PATIENCE)] == [version]


# -- functions that are called


class Notes:
    """What a function was told, for whoever waits for it."""

    def __init__(self) -> None:
        self.events: list[kv.Event] = []
        self._changed = threading.Condition()

    def __call__(self, event: kv.Event) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait(self, count: int) -> list[tuple[str, str, bytes | None]]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.events) >= count, PATIENCE)
            return [(event.kind, event.key, event.value) for event in self.events]


def test_a_function_is_told_what_there_is_and_then_what_changes(store: kv.KeyValue) -> None:
    below = store.namespace("app/")
    below.set("flags/a", b"1")
    notes = Notes()
    below.on_change("flags/")(notes)
    notes.wait(1)
    below.set("flags/b", b"2")
    store.set("flags/of others", b"")
    below.delete("flags/a")
    assert notes.wait(3) == [("set", "flags/a", b"1"), ("set", "flags/b", b"2"), ("delete", "flags/a", None)]


def test_a_function_is_called_until_it_returns_false_whatever_it_raises(
    store: kv.KeyValue, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    other = Notes()

    @store.on_change("a")
    def changed(event: kv.Event) -> bool | None:
        told.append(event.key)
        if event.key == "a1":
            raise ValueError("mistaken")
        if event.key == "a2":
            raise KeyboardInterrupt
        return False if event.key == "a3" else None

    store.on_change()(other)
    for number in range(1, 6):
        store.set(f"a{number}", b"")
    other.wait(5)
    store.set("b", b"")
    other.wait(6)
    assert told == ["a1", "a2", "a3"] and callable(changed)
    assert sum("changed" in record.getMessage() for record in caplog.records) == 2


def test_a_function_that_fell_behind_is_told_what_came_of_it() -> None:
    state = kv.KeyValueState(max_events=5)
    node = OneNode(state)
    store = kv.KeyValue(node, state)
    store.transaction([kv.set("a", b"1"), kv.set("b", b"1"), kv.set("c", b"1")])
    notes = Notes()
    may_go_on = threading.Event()

    def slow(event: kv.Event) -> None:
        notes(event)
        may_go_on.wait(PATIENCE)

    store.on_change()(slow)
    notes.wait(1)
    store.delete("b")
    store.set("a", b"2")
    for number in range(20):
        store.set("d", b"%d" % number)
    may_go_on.set()
    told = notes.wait(6)
    assert [event.is_listed for event in notes.events] == [True] * 6
    assert told[:3] == [("set", "a", b"1"), ("set", "b", b"1"), ("set", "c", b"1")]
    assert sorted(told[3:6]) == [("delete", "b", None), ("set", "a", b"2"), ("set", "d", b"19")]


def test_a_function_waits_until_the_node_is_current(node: OneNode, store: kv.KeyValue) -> None:
    node.is_confirmed = False
    notes = Notes()
    store.on_change()(notes)
    store.set("a", b"replayed")
    store.set("a", b"1")
    node.is_confirmed = True
    assert notes.wait(1) == [("set", "a", b"1")]


def test_a_handler_of_the_log_that_raises_keeps_nobody_from_being_told(
    store: kv.KeyValue, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise OSError("no room for a log")

    notes = Notes()
    logger = logging.getLogger("raftsvc.kv")
    broken = Broken()
    logger.addFilter(broken)
    try:

        @store.on_change()
        def changed(event: kv.Event) -> None:
            notes(event)
            raise ValueError("mistaken")

        for number in range(5):
            store.set(f"k{number}", b"")
        notes.wait(5)
        store.set("z", b"")
        notes.wait(6)
    finally:
        logger.removeFilter(broken)
    assert [event.key for event in notes.events] == ["k0", "k1", "k2", "k3", "k4", "z"]


def test_all_stores_on_a_state_share_one_thread_and_one_listener(node: OneNode) -> None:
    before = set(threading.enumerate())
    for number in range(10):
        store = kv.KeyValue(node, node.state)
        store.watch().close()
        store.on_change(f"k{number}")(Notes())
    assert len(node.listeners) == 1
    assert sum(each.name == "raftsvc-changes" for each in set(threading.enumerate()) - before) == 1
    node.fail(StoppedError("it was stopped"))
    with pytest.raises(StoppedError):
        store.on_change()(Notes())


def test_the_thread_that_calls_ends_with_the_node(node: OneNode, store: kv.KeyValue) -> None:
    before = set(threading.enumerate())
    notes = Notes()
    store.set("a", b"")
    store.on_change()(notes)
    notes.wait(1)
    (thread,) = (each for each in set(threading.enumerate()) - before if each.name == "raftsvc-changes")
    assert thread.daemon
    node.fail(StoppedError("it was stopped"))
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_who_is_told_is_a_function_that_is_over_once_it_returns(store: kv.KeyValue) -> None:
    async def later(event: kv.Event) -> None:
        """Awaited by nobody."""

    def made(event: kv.Event) -> Any:
        yield event

    functions: list[Any] = [later, made, partial(later), 5, None]
    for function in functions:
        with pytest.raises(ConfigurationError, match="who is told of changes"):
            store.on_change("a")(function)


# -- mirrors


def test_a_mirror_shows_an_entry_whole_or_not_at_all(node: OneNode, store: kv.KeyValue) -> None:
    mirror = store.mirror()
    store.set("a", b"1")
    index = node.state.applied_index()
    node.state.apply_at(encode([kv.set("a", b"2")]), index + 1, 0)  # there is more in it
    for look in (mirror.copy, lambda: dict(mirror.items()), lambda: mirror.copy_at()[0]):
        assert look() == {"a": b"1"}  # type: ignore[no-untyped-call]
    node.state.set_applied_index(index + 1)
    assert dict(mirror) == {"a": b"2"}


def test_a_mirror_is_what_there_is_here(node: OneNode, store: kv.KeyValue) -> None:
    flags = store.namespace("app/").mirror("flags/")
    assert dict(flags) == {} and "new" not in flags and flags.get("new") is None
    version = store.transaction([kv.set("app/flags/new", b"on"), kv.set("app/other", b""), kv.set("app/flags/b", b"")])
    assert flags["new"] == b"on" and "new" in flags and len(flags) == 2
    assert list(flags) == list(flags.keys()) == ["b", "new"] and list(flags.values()) == [b"", b"on"]
    assert dict(flags.items()) == flags.copy() == {"b": b"", "new": b"on"} and flags == {"b": b"", "new": b"on"}
    assert flags.copy_at() == (flags.copy(), version)
    store.delete("app/flags/new")
    with pytest.raises(KeyError):
        flags["new"]
    assert "app/flags/" in repr(flags) and node.asked == 0
    not_a_key: Any = 5
    assert not_a_key not in flags and flags.get(not_a_key) is None and "" not in flags
    aged = store.mirror("app/", max_age=0)
    assert aged["other"] == b"" and node.asked == 1
    node.is_confirmed = False
    with pytest.raises(ReadTimeoutError):
        len(aged)


# -- what etcd's tests of robustness ask of a watch, by their names


class Reader:
    """A watcher that starts somewhere, is now and then taken up anew, and remembers all that it was shown."""

    def __init__(self, store: kv.KeyValue, prefix: str, values: dict[str, Value], index: int) -> None:
        self.store = store
        self.prefix = prefix
        self.values = {key: value.data for key, value in values.items()}
        self.events: list[kv.Event] = []
        self.watch = store.watch(prefix, after=index)
        self.begun = index

    def read(self, random_: random.Random) -> None:
        while events := self.watch.next(0.0):
            for event in events:
                former = self.values.get(event.key)
                assert former == (None if event.previous is None else event.previous.data), "PrevKV"
                if event.value is None:
                    del self.values[event.key]
                else:
                    self.values[event.key] = event.value
            self.events += events
            if random_.random() < 0.2:
                break
        if random_.random() < 0.3:  # Resumable
            self.watch.close()
            self.watch = self.store.watch(self.prefix, after=self.watch.index)


def instructions_of(random_: random.Random) -> Iterator[bytes]:
    for _ in range(random_.choice((1, 1, 1, 3))):
        operations: list[Any] = []
        for _ in range(random_.choice((1, 1, 2, 4))):
            key = random_.choice("ab") + random_.choice("123")
            operations.append(
                random_.choice(
                    (
                        kv.set(key, b"%d" % random_.randrange(1000)),
                        kv.set(key, b"%d" % random_.randrange(1000), ttl=random_.choice((0.5, 2))),
                        kv.delete(key),
                        kv.touch(key, random_.choice((None, 1))),
                        kv.incr(key, 1),
                        kv.if_not_exists(key),
                    )
                )
            )
        yield encode(operations)


@pytest.mark.parametrize("seed", range(30))
def test_watchers_see_an_ordered_unique_atomic_reliable_resumable_history(seed: int) -> None:
    random_ = random.Random(seed)
    state = kv.KeyValueState()
    node = OneNode(state)
    store = kv.KeyValue(node, state)
    readers: list[Reader] = []
    states: dict[int, dict[str, bytes]] = {0: {}}
    for _ in range(150):
        if random_.random() < 0.15:
            node.time_ms += random_.choice((100, 1000, 3000))
        if random_.random() < 0.1:
            node.pulse(node.time_ms)
        else:
            node.index += 1
            for instruction in instructions_of(random_):
                with suppress(RaftError):
                    state.apply_at(instruction, node.index, node.time_ms)
                if random_.random() < 0.1:
                    listed, index = state.list_at()
                    assert {key: value.data for key, value in listed.items()} == states[index], (
                        "in the middle of an entry"
                    )
            state.set_applied_index(node.index)
        states[node.index] = {key: value.data for key, value in state.list().items()}
        if random_.random() < 0.1:
            prefix = random_.choice(("", "a", "b", "a1"))
            readers.append(Reader(store, prefix, *state.list_at(prefix)))
        for reader in readers:
            if random_.random() < 0.3:
                reader.read(random_)
    for reader in readers:
        while reader.watch.index < node.index:  # Bookmarkable
            reader.read(random_)
        indexes = [event.index for event in reader.events]
        assert indexes == sorted(indexes), "Ordered"
        places = [(event.index, event.key, event.kind) for event in reader.events]
        assert len(places) == len(set(places)), "Unique"
        assert all(event.key.startswith(reader.prefix) for event in reader.events), "Filter"
        assert all(index > reader.begun for index in indexes)
        expected = {key: data for key, data in states[node.index].items() if key.startswith(reader.prefix)}
        assert reader.values == expected, "Reliable"
        replayed = store.watch(reader.prefix, after=reader.begun)
        again = []
        while events := replayed.next(0.0):
            assert len({event.index for event in events}) == 1, "Atomic"
            again += events
        assert again == reader.events, "the same whichever way it was read"


def test_many_watchers_beside_a_writer_miss_nothing(node: OneNode, store: kv.KeyValue) -> None:
    """Threads, not steps: each is woken in time."""
    count, writes = 8, 300
    found: list[list[int]] = [[] for _ in range(count)]

    def read(number: int) -> None:
        with store.watch(f"k{number % 4}", after=0) as watch:
            for event in watch:
                found[number].append(int(event.value or b"0"))
                if event.value == b"%d" % writes:
                    return

    threads = [threading.Thread(target=read, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for value in range(1, writes + 1):
        for key in range(4):
            store.set(f"k{key}", b"%d" % value)
    for thread in threads:
        thread.join(PATIENCE)
    assert found == [list(range(1, writes + 1))] * count
