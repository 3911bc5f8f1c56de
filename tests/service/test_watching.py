"""Watches on real nodes: whichever node is asked shows the same, across snapshots, stops and forks."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

import raftsvc
from raftsvc import kv
from tests.service.harness import PATIENCE, Cluster, Member, eventually, in_background


class OpenState(kv.KeyValueState):
    """Lets everybody join."""

    def is_allowed_member(self, addr: str) -> bool:
        return True


def store_of(member: Member) -> kv.KeyValue:
    state: Any = member.state
    return kv.KeyValue(member.service, state)


def history(watch: kv.Watch, count: int) -> list[kv.Event]:
    found: list[kv.Event] = []
    while len(found) < count:
        some = watch.next(PATIENCE)
        assert some, "no more came"
        found += some
    return found


def test_every_node_shows_the_same_and_one_goes_on_where_another_was(make_cluster: Any) -> None:
    cluster: Cluster = make_cluster(make_state=OpenState)
    members = cluster.form(3)
    stores = [store_of(member) for member in members]
    _, index = stores[0].list_at(timeout=PATIENCE)
    with stores[0].watch("a", after=index) as watch:
        for number in range(5):
            stores[number % 3].set(f"a{number}", b"%d" % number, timeout=PATIENCE)
        stores[1].transaction([kv.delete("a0"), kv.set("a1", b"x"), kv.set("b", b"")], PATIENCE)
        first = history(watch, 3)
        kept = watch.position
    shown = []
    for store in stores:
        with store.watch("a", after=index) as watch:
            shown.append(history(watch, 7))
        with store.watch("a", after=kept) as watch:
            assert first + history(watch, 4) == shown[-1], "taken up elsewhere"
    assert shown[0] == shown[1] == shown[2]
    assert [(e.kind, e.key) for e in shown[0][-2:]] == [("delete", "a0"), ("set", "a1")]


def test_who_waits_on_a_follower_sees_what_was_written_elsewhere(make_cluster: Any) -> None:
    cluster: Cluster = make_cluster(make_state=OpenState)
    cluster.form(3)
    leader, follower = cluster.leader(), cluster.follower()
    with store_of(follower).watch("flags/", timeout=PATIENCE) as watch:
        result = in_background(lambda: watch.next(PATIENCE))
        version = store_of(leader).set("flags/new", b"on", timeout=PATIENCE)
        ((event),) = result()
        assert (event.kind, event.key, event.value, event.index) == ("set", "flags/new", b"on", version)


def test_a_node_that_gets_a_snapshot_says_what_is_missing_and_functions_are_told_what_came_of_it(
    make_cluster: Any,
) -> None:
    cluster: Cluster = make_cluster(make_state=OpenState, snapshot_entries=5, trailing_entries=0)
    cluster.form(3)
    leader, away = cluster.leader(), cluster.follower()
    near, far = store_of(leader), store_of(away)
    near.transaction([kv.set("gone", b""), kv.set("kept", b"1")], PATIENCE)
    told: dict[str, bytes | None] = {}
    counts: list[int] = []

    @far.on_change()
    def changed(event: kv.Event) -> None:
        told[event.key] = event.value
        counts.append(event.index)

    eventually(lambda: told.keys() == {"gone", "kept"}, "it is told what there is")
    watch = far.watch(timeout=PATIENCE)
    cluster.cut(away, [member for member in cluster.members if member is not away])
    near.delete("gone", timeout=PATIENCE)
    index = away.status["last_index"]

    def is_dropped() -> bool:
        near.set("kept", b"2", timeout=PATIENCE)
        return bool(leader.service._node._engine.core.log.first_index > index + 2)

    eventually(is_dropped, "a snapshot takes the place of the entries")
    cluster.heal()
    with pytest.raises(kv.Compacted):
        while watch.next(PATIENCE):
            pass
    eventually(lambda: told == {"gone": None, "kept": b"2"}, "it is told what came of it")
    values, index = far.list_at(timeout=PATIENCE)
    with far.watch(after=index) as watch:
        near.set("kept", b"3", timeout=PATIENCE)
        assert history(watch, 1)[0].value == b"3" and list(values) == ["kept"]


def test_a_position_from_before_a_restart_is_gone_on_from_after_it(make_cluster: Any) -> None:
    cluster: Cluster = make_cluster(make_state=OpenState)
    (member,) = cluster.form(1)
    store = store_of(member)
    _, index = store.list_at(timeout=PATIENCE)
    with store.watch("a", after=index) as watch:
        store.set("a1", b"1", timeout=PATIENCE)
        (first,) = history(watch, 1)
        kept = watch.position
    store.transaction([kv.delete("a1"), kv.set("a2", b"2")], PATIENCE)
    store.set("a3", b"3", ttl=0.001, timeout=PATIENCE)
    member.restart()
    store = store_of(member)
    store.set("a4", b"4", timeout=PATIENCE)
    with store.watch("a", after=kept) as watch:
        after = history(watch, 5)
    with store.watch("a", after=index) as watch:
        assert history(watch, 6) == [first, *after]
    assert [(event.kind, event.key) for event in after[:3]] == [("delete", "a1"), ("set", "a2"), ("set", "a3")]
    assert {(event.kind, event.key) for event in after[3:]} == {("expire", "a3"), ("set", "a4")}


def test_stopping_ends_who_waits_and_the_thread_that_calls(make_cluster: Any) -> None:
    cluster: Cluster = make_cluster(make_state=OpenState)
    (member,) = cluster.form(1)
    store = store_of(member)
    before = set(threading.enumerate())
    seen = threading.Event()
    store.on_change()(lambda event: seen.set())
    watch = store.watch(timeout=PATIENCE)
    result = in_background(lambda: watch.next(2 * PATIENCE))
    store.set("a", b"", timeout=PATIENCE)
    assert result() and seen.wait(PATIENCE)
    result = in_background(lambda: watch.next(2 * PATIENCE))
    (thread,) = (each for each in set(threading.enumerate()) - before if each.name == "raftsvc-changes")
    member.service.stop()
    with pytest.raises(raftsvc.StoppedError):
        result()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_state_that_stops_applying_ends_who_waits(make_cluster: Any) -> None:
    class Mistaken(OpenState):
        def apply_at(self, data: bytes, index: int, time_ms: int) -> int:
            if b"mistake" in data:
                raise KeyError("a mistake")
            return super().apply_at(data, index, time_ms)

    cluster: Cluster = make_cluster(make_state=Mistaken)
    (member,) = cluster.form(1)
    store = store_of(member)
    watch = store.watch(timeout=PATIENCE)
    result = in_background(lambda: watch.next(2 * PATIENCE))
    with pytest.raises(raftsvc.RaftError):
        store.set("a", b"mistake", timeout=PATIENCE)
    with pytest.raises(raftsvc.ApplyHaltedError):
        result()


def test_in_a_forked_child_nothing_is_watched(make_cluster: Any) -> None:
    cluster: Cluster = make_cluster(make_state=OpenState)
    (member,) = cluster.form(1)
    store = store_of(member)
    watch, mirror = store.watch(timeout=PATIENCE), store.mirror()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            for call in (
                lambda: watch.next(PATIENCE),
                lambda: store.watch(after=0),
                lambda: store.on_change()(print),
                lambda: mirror.copy(),
                lambda: store.list_at(),
            ):
                with pytest.raises(raftsvc.ForkedError):
                    call()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


def test_the_main_thread_may_watch_too(make_cluster: Any) -> None:
    """Tests run on it: a handler of signals that comes between any two steps finds no lock taken."""
    cluster: Cluster = make_cluster(make_state=OpenState)
    (member,) = cluster.form(1)
    store = store_of(member)
    assert threading.current_thread() is threading.main_thread()
    with store.watch(timeout=PATIENCE) as watch:
        version = store.set("a", b"", timeout=PATIENCE)
        assert next(watch).index == version and watch.next(0.0) == [] and watch.index >= version
