"""Keys that expire and numbers that count, in a cluster of real nodes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from raftsvc import kv
from tests.service.harness import PATIENCE, Clocks, Cluster, Member, eventually


class OpenState(kv.KeyValueState):
    """Whoever wants to may join."""

    def is_allowed_member(self, addr: str) -> bool:
        return True


@pytest.fixture
def stores(make_cluster: Callable[..., Cluster]) -> Callable[..., Cluster]:
    def form(**options: Any) -> Cluster:
        cluster = make_cluster(make_state=OpenState, **options)
        cluster.form(3)
        return cluster

    return form


def state_of(member: Member) -> kv.KeyValueState:
    state: Any = member.state
    assert isinstance(state, kv.KeyValueState)
    return state


def store_of(member: Member) -> kv.KeyValue:
    return kv.KeyValue(member.service, state_of(member))


def test_a_key_expires_at_every_node_although_nobody_writes_and_then_nothing_is_written(
    stores: Callable[..., Cluster], clocks: Clocks
) -> None:
    cluster = stores(election_timeout=5.0)  # nobody else is elected because the machine is busy
    for member in cluster.members:
        store_of(member).set("for ever", b"1", timeout=PATIENCE)  # so each has a session
    leader = cluster.leader()
    store = store_of(leader)  # what another forwards to it may come twice
    before = leader.status["last_index"]
    clocks.move(900)
    store.set("short", b"1", ttl=2.0, timeout=PATIENCE)
    assert leader.status["last_index"] == before + 1, "with nothing pending time makes no entries"
    set_at = leader.service.log_time()
    for _ in range(2):
        clocks.move(900)
        said_ms = leader.service.log_time() + 900
        eventually(lambda: leader.service.log_time() >= said_ms, "a pulse says so")  # noqa: B023 - called at once
        assert store.get("short", PATIENCE) is not None, "it is not over"
    assert leader.service.log_time() == set_at + 1800
    clocks.move(250)
    eventually(lambda: all(state_of(m).get("short") is None for m in cluster.members), "it expired everywhere")
    assert store.get("short", PATIENCE) is None
    assert store.get("for ever", PATIENCE) is not None
    eventually(lambda: len({m.status["applied_index"] for m in cluster.members}) == 1, "all are as far")
    last = leader.status["last_index"]
    assert last > before + 1, "pulses said what time it is"
    for _ in range(5):
        clocks.move(900)
    store.set("later", b"1", timeout=PATIENCE)
    assert leader.status["last_index"] == last + 1, "nobody waits for anything any more"
    eventually(lambda: len({state_of(m).snapshot()[0] for m in cluster.members}) == 1, "they are the same to the byte")


def test_a_node_that_restarts_from_a_snapshot_has_the_same_deadlines(
    stores: Callable[..., Cluster], clocks: Clocks
) -> None:
    cluster = stores(snapshot_entries=5)
    store = store_of(cluster.leader())
    for n in range(20):
        store.set(f"k{n}", b"1", ttl=3000.0 + n, timeout=PATIENCE)
    member = cluster.follower()
    eventually(lambda: member.status["snapshot_index"] > 5, "a snapshot")
    deadline_ms = state_of(cluster.leader()).next_deadline()
    assert deadline_ms is not None
    member.restart()
    eventually(lambda: state_of(member).next_deadline() == deadline_ms, "it has what the others have")
    assert len(store_of(member).list("k", PATIENCE)) == 20


def test_nodes_that_count_at_once_lose_nothing_and_nobody_is_told_a_number_twice(
    stores: Callable[..., Cluster],
) -> None:
    cluster = stores()
    counted: list[int] = []

    def count(store: kv.KeyValue) -> None:
        for _ in range(25):
            counted.append(store.incr("n", timeout=PATIENCE))

    threads = [threading.Thread(target=count, args=(store_of(member),), daemon=True) for member in cluster.members * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(counted) == list(range(1, 226))
    for member in cluster.members:
        assert store_of(member).get_json("n", timeout=PATIENCE) == 225


def test_what_a_counter_said_is_said_again_to_who_missed_it(stores: Callable[..., Cluster]) -> None:
    cluster = stores()
    follower, leader = cluster.follower(), cluster.leader()
    store = store_of(follower)
    assert store.incr("n", 7, initial=2**62, timeout=PATIENCE) == 2**62 + 7
    third = next(m for m in cluster.members if m is not follower and m is not leader)
    leader.service.stop()
    for number in range(8, 12):
        assert store.incr("n", timeout=PATIENCE) == 2**62 + number
    assert store_of(third).touch("n", None, timeout=PATIENCE) is True
    assert store_of(third).delete("none", timeout=PATIENCE) is False
