"""Locks, elections and the like on real threads: who holds what, who is told that it is lost, and who comes next."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import raftsvc
from raftsvc import kv, listeners
from raftsvc.errors import ConfigurationError
from raftsvc.kv import leases
from raftsvc.recipes import Lock, Once, OnceError

from .harness import PATIENCE, Cluster, Member, eventually, in_background
from .test_watching import OpenState, store_of

LONG = 600.0
"""A TTL that nothing in these tests outlasts, unless the clock is moved."""
SHORT = 2.0
"""So long somebody waits in vain: on a busy machine it takes a while until anybody is asked, else it is an error."""


class Clock:
    """The clocks of this machine, as those see them who hold something; it moves by hand."""

    def __init__(self) -> None:
        self.now_ns = 10**15

    def read(self) -> tuple[int, ...]:
        return (self.now_ns,)

    def since(self, readings: tuple[int, ...]) -> float:
        return max(0, self.now_ns - readings[0]) / 1e9

    def move(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(leases, "read_clocks", made.read)
    monkeypatch.setattr(leases, "seconds_since", made.since)
    return made


@pytest.fixture
def members(make_cluster: Callable[..., Cluster]) -> list[Member]:
    return make_cluster(make_state=OpenState).form(3)


@pytest.fixture
def stores(members: list[Member]) -> list[kv.KeyValue]:
    return [store_of(member) for member in members]


@pytest.fixture
def lone(make_cluster: Callable[..., Cluster]) -> kv.KeyValue:
    (member,) = make_cluster(make_state=OpenState).form(1)
    return store_of(member)


def waiting(store: kv.KeyValue, name: str, count: int) -> None:
    eventually(lambda: sum(not each.fence for each in store.claims(name, PATIENCE)) == count, f"{count} that wait")


# -- locks


def test_one_holds_a_lock_at_a_time_on_all_nodes_and_fences_rise(stores: list[kv.KeyValue]) -> None:
    inside: list[int] = []
    fences: list[int] = []
    most: list[int] = []

    def work(store: kv.KeyValue) -> None:
        lock = store.lock("orders", ttl=LONG)
        for _ in range(4):
            with lock:
                inside.append(1)
                most.append(len(inside))
                fences.append(lock.fence)
                inside.pop()

    for result in [in_background(lambda store=store: work(store)) for store in stores * 2]:  # type: ignore[misc]
        result()
    assert most == [1] * 24
    assert fences == sorted(set(fences))


def test_who_asks_first_gets_it_first_wherever_he_asks(stores: list[kv.KeyValue]) -> None:
    order: list[int] = []

    def work(number: int) -> None:
        with stores[number % 3].lock("x", ttl=LONG):
            order.append(number)

    with stores[0].lock("x", ttl=LONG):
        results = []
        for number in range(5):
            results.append(in_background(lambda number=number: work(number)))  # type: ignore[misc]
            waiting(stores[0], "lock:x", number + 1)
    for result in results:
        result()
    assert order == [0, 1, 2, 3, 4]


def test_two_threads_exclude_each_other_by_one_object_and_nobody_gets_it_twice(lone: kv.KeyValue) -> None:
    lock = lone.lock("x", ttl=LONG)
    assert lock.acquire(timeout=PATIENCE)
    assert lock.acquire(blocking=False) is False
    assert lock.acquire(timeout=0.01) is False
    got = in_background(lambda: lock.acquire(timeout=PATIENCE))
    lock.release()
    assert got() is True
    assert lock.owned()
    lock.release()
    with pytest.raises(kv.LostError, match="not acquired"):
        lock.release()
    for look in (lambda: lock.fence, lambda: lock.lost, lambda: lock.name, lock.ensure_held):
        with pytest.raises(kv.LostError, match="not acquired"):
            look()


@pytest.mark.parametrize("timeout", ["3", float("inf"), float("nan"), True, 1e300])
def test_what_is_no_time_to_wait_is_refused_and_nothing_is_held(lone: kv.KeyValue, timeout: Any) -> None:
    lock = lone.lock("x", ttl=LONG)
    with pytest.raises(ConfigurationError):
        lock.acquire(timeout=timeout)
    assert lock.acquire(timeout=PATIENCE)
    lock.release()


def test_what_is_done_by_one_is_a_function_that_is_over_once_it_returns(lone: kv.KeyValue) -> None:
    async def migrate(*lost: object) -> None:
        """Awaited by nobody."""

    with pytest.raises(ConfigurationError, match="what is done once"):
        lone.once("migrate", migrate)
    assert lone.once("migrate", lambda: None), "nothing of it was noted"
    with pytest.raises(ConfigurationError, match="what leads"):
        lone.election("x", ttl=LONG).run(migrate)


def test_with_no_time_to_wait_what_is_free_is_had_and_what_is_not_is_not(stores: list[kv.KeyValue]) -> None:
    async def acquired(store: kv.KeyValue) -> bool:
        lock = store.aio.lock("x", ttl=LONG)
        had = await lock.acquire(timeout=0)
        if had:
            await lock.release()
        return had

    for store in stores:
        lock, other = store.lock("x", ttl=LONG), stores[0].lock("x", ttl=LONG)
        for timeout in (0, 0.0):
            assert lock.acquire(timeout=timeout) is True
            assert lock.acquire(timeout=timeout) is False, "nobody gets it twice"
            lock.release()
        assert asyncio.run(acquired(store)) is True
        with lock.within(0):
            assert other.acquire(timeout=0) is False
            assert store.lock("x", ttl=LONG).acquire(timeout=0) is False
            assert asyncio.run(acquired(store)) is False
            with pytest.raises(raftsvc.NotApplied, match="was not to be had within 0 s"), other.within(0):
                raise AssertionError("it is held")
        assert store.queue("q", ttl=LONG).get(timeout=0) is None
        store.queue("q").put(b"1")
        item = store.queue("q", ttl=LONG).get(timeout=0)
        assert item is not None
        item.ack()


def test_who_gives_up_is_not_granted_it_later(stores: list[kv.KeyValue]) -> None:
    near, far = stores[0], stores[1]
    with near.lock("x", ttl=LONG):
        assert far.lock("x", ttl=LONG).acquire(timeout=SHORT) is False
        assert far.lock("x", ttl=LONG).acquire(blocking=False) is False
        waiting(near, "lock:x", 0)
    with near.lock("x", ttl=LONG) as again:
        assert again.owned()


def test_who_gives_up_before_he_is_heard_is_not_granted_it_later(
    lone: kv.KeyValue, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lone.claim("x", ttl=LONG) is not None
    holding = lone._holding()
    propose, index = holding.propose, holding.index
    known: list[int] = []

    def unheard(instruction: bytes, timeout: float) -> Any:
        if not known:
            known.append(index())
            propose(instruction, PATIENCE)
            raise raftsvc.OutcomeUnknown("nobody answered")
        return propose(instruction, timeout)

    def known_here() -> int:  # at first as on a node that has not applied the claim yet
        known.append(index())
        return known[0] if len(known) == 2 else known[-1]

    monkeypatch.setattr(holding, "propose", unheard)
    monkeypatch.setattr(holding, "index", known_here)
    assert lone.claim("x", ttl=LONG, timeout=0.0) is None
    waiting(lone, "x", 0)


def test_what_is_held_is_shown_with_who_has_it(stores: list[kv.KeyValue]) -> None:
    with stores[0].lock("x", ttl=LONG, data=b"first") as lock:
        second = in_background(lambda: stores[1].lock("x", ttl=LONG, data=b"second").acquire(timeout=PATIENCE))
        waiting(stores[2], "lock:x", 1)
        assert stores[2].claims("lock:x", PATIENCE) == [(lock.fence, b"first"), (0, b"second")]
    assert second() is True


def test_names_are_below_the_prefix_of_their_namespace(lone: kv.KeyValue) -> None:
    below = lone.namespace("app/")
    with below.lock("x", ttl=LONG) as lock, lone.lock("x", ttl=LONG):
        assert lock.name == "app/lock:x"
        assert len(lone.claims("app/lock:x")) == len(below.claims("lock:x")) == 1
        below.transaction([kv.if_held(lock), kv.set("k", b"1")])
        lone.transaction([kv.if_held(lock), kv.set("k", b"1")])


def test_readers_hold_it_together_and_a_writer_alone_and_is_not_overtaken(stores: list[kv.KeyValue]) -> None:
    first, second = (store.rwlock("catalog", ttl=LONG) for store in stores[:2])
    order: list[str] = []

    def write() -> None:
        with second.writing():
            order.append("written")

    def read() -> None:
        with first.reading():
            order.append("read")

    with first.reading(), second.reading() as reader:
        written = in_background(write)
        waiting(stores[0], reader.name, 1)
        later = in_background(read)
        waiting(stores[0], reader.name, 2)
        assert order == []
    written()
    later()
    assert order == ["written", "read"]


def test_a_semaphore_is_held_by_as_many_as_it_says_and_all_say_the_same(stores: list[kv.KeyValue]) -> None:
    held = [store.semaphore("gate", 2, ttl=LONG) for store in stores]
    assert [each.acquire(timeout=PATIENCE if number < 2 else SHORT) for number, each in enumerate(held)] == [
        True,
        True,
        False,
    ]
    with pytest.raises(kv.ClaimSizeError, match="2 units") as refused:
        stores[2].semaphore("gate", 3, ttl=LONG).acquire(timeout=PATIENCE)
    assert refused.value.size == 2
    held[0].release()
    assert held[2].acquire(timeout=PATIENCE)
    for each in held[1:]:
        each.release()
    waiting(stores[0], "semaphore:gate", 0)
    assert stores[2].semaphore("gate", 3, ttl=LONG).acquire(timeout=PATIENCE)


# -- what is lost


def test_it_counts_as_lost_by_the_clock_of_this_machine_though_nobody_can_be_asked(
    make_cluster: Callable[..., Cluster], clock: Clock
) -> None:
    cluster = make_cluster(make_state=OpenState)
    cluster.form(3)
    leader = cluster.leader()
    with pytest.raises(kv.LostError), store_of(leader).lock("x", ttl=LONG) as lock:
        cluster.cut(leader, [member for member in cluster.members if member is not leader])
        clock.move(0.89 * LONG)
        assert lock.owned()
        assert not lock.lost.is_set()
        told = in_background(lambda: lock.lost.wait(PATIENCE))
        clock.move(0.02 * LONG)
        assert lock.lost.is_set()
        assert not lock.owned()
        with pytest.raises(kv.LostError, match="held no longer here"):
            lock.ensure_held()
        leases_lost = lock.lost
        assert leases_lost.wait(0.0)
        leases_lost.set()
        assert told()


def test_what_counted_as_lost_once_never_counts_as_held_again(lone: kv.KeyValue, clock: Clock) -> None:
    hold = lone.claim("x", ttl=LONG)
    assert hold is not None
    clock.move(LONG)
    assert hold.lost.is_set()
    with pytest.raises(kv.LostError):
        hold.lease.refresh(PATIENCE)
    clock.move(-LONG)
    assert hold.lost.is_set()
    assert not hold.is_held
    assert hold.release() is False


def test_a_renewal_counts_from_when_it_was_first_asked_for(
    lone: kv.KeyValue, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = lone.claim("x", ttl=LONG)
    assert hold is not None
    propose = lone.service.propose

    def slowly(*args: Any) -> Any:
        answer = propose(*args)
        clock.move(LONG / 2)  # on its way, and back
        return answer

    monkeypatch.setattr(lone.service, "propose", slowly)
    hold.lease.refresh(PATIENCE)
    assert hold.lease.remaining == pytest.approx(0.4 * LONG)


def test_many_leases_of_one_s_own_are_renewed_together(lone: kv.KeyValue, clock: Clock) -> None:
    held = [lone.lease(LONG) for _ in range(300)]
    gone = held[7]
    lone.transaction([leases.instructions.end_lease(gone.id)], PATIENCE)
    before = lone.service.status()["applied_index"]
    clock.move(LONG / 2)
    assert all(0 < lease.remaining < LONG / 2 for lease in held)
    lone._holding().keeper().wake()  # type: ignore[attr-defined]  # whose clock moved by hand
    rest = [lease for lease in held if lease is not gone]
    eventually(lambda: all(lease.remaining > LONG / 2 for lease in rest), "all are renewed")
    eventually(gone.lost.is_set, "the one that the cluster has no more is told")
    assert lone.service.status()["applied_index"] <= before + 3
    clock.move(LONG)
    assert all(lease.lost.is_set() for lease in held)


@pytest.mark.parametrize("error", [raftsvc.OutcomeUnknown("late"), raftsvc.InstructionTooLargeError("long")])
def test_leases_that_could_not_be_renewed_together_are_renewed_later_or_each_by_itself(
    lone: kv.KeyValue, clock: Clock, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    held = [lone.lease(LONG) for _ in range(3)]
    asked = []

    def refuse(instructions: list[bytes], timeout: float) -> list[raftsvc.Applied]:
        asked.append(len(instructions))
        if len(asked) == 1 or isinstance(error, raftsvc.InstructionTooLargeError):
            raise error
        return propose_many(instructions, timeout)

    propose_many = lone.service.propose_many
    monkeypatch.setattr(lone.service, "propose_many", refuse)
    clock.move(LONG / 2)
    lone._holding().keeper().wake()  # type: ignore[attr-defined]  # whose clock moved by hand
    eventually(lambda: all(lease.remaining > LONG / 2 for lease in held), "all are renewed")
    assert set(asked) == {3}


def test_of_two_renewals_the_one_counts_that_was_asked_for_later(lone: kv.KeyValue, clock: Clock) -> None:
    lease = lone.lease(LONG)._kept
    earlier = clock.read()
    clock.move(LONG / 3)
    lease.refresh(PATIENCE)
    remaining = lease.remaining
    lease._note(earlier)  # of another thread, whose answer came later
    assert lease.remaining == remaining


def test_it_is_renewed_as_long_as_the_process_is_heard(stores: list[kv.KeyValue]) -> None:
    with stores[0].lock("x", ttl=4.0) as lock:  # a busy machine may stand still for two seconds
        assert not lock.lost.wait(6.0)
        stores[1].transaction([kv.if_held(lock), kv.set("k", b"1")], PATIENCE)
    assert stores[1].lock("x", ttl=LONG).acquire(timeout=PATIENCE)


def test_another_gets_it_once_the_lease_of_who_died_is_over_and_not_before(
    make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = make_cluster(make_state=OpenState)
    cluster.form(3)
    dead, alive = store_of(cluster.follower()), store_of(cluster.leader())
    hold = dead.claim("x", ttl=1.5)
    assert hold is not None
    monkeypatch.setattr(hold.lease, "refresh", lambda timeout=0.0: None)  # it is not renewed any more
    held_until = time.monotonic() + hold.lease.remaining
    other = alive.claim("x", ttl=LONG, timeout=PATIENCE)
    assert time.monotonic() >= held_until
    assert hold.lost.is_set()
    assert other is not None
    assert other.fence > hold.fence
    with pytest.raises(kv.LostError):
        dead.transaction([kv.if_held(hold), kv.set("k", b"late")], PATIENCE)
    alive.transaction([kv.if_held(other), kv.set("k", b"mine")], PATIENCE)


def test_a_claim_whose_lease_ended_while_it_waited_is_made_anew(lone: kv.KeyValue) -> None:
    with lone.lock("x", ttl=LONG):
        got = in_background(lambda: lone.claim("lock:x", ttl=LONG / 2, timeout=PATIENCE))
        waiting(lone, "lock:x", 1)
        keeper: Any = lone._holding().keeper()
        (lease,) = [lease for ttl, lease in keeper._leases.items() if ttl == LONG / 2 * 1000]
        lone.transaction([leases.instructions.end_lease(lease.id)], PATIENCE)
        lease.end()
        waiting(lone, "lock:x", 1)
    hold = got()
    assert hold is not None
    assert hold.is_held


def test_a_lease_under_which_nothing_is_held_is_not_renewed_for_ever(lone: kv.KeyValue) -> None:
    hold = lone.claim("x", ttl=1.0)
    assert hold is not None
    hold.release()
    state: Any = lone._state
    eventually(lambda: state.report()["leases"] == 0, "the lease to end")
    index = lone.service.status()["last_index"]
    assert not threading.Event().wait(0.7)
    assert lone.service.status()["last_index"] == index


# -- who stops


def test_who_stops_gives_back_at_once_what_is_let_go_and_keeps_what_is_not(
    members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_LEAVE_SECONDS", 5.0)  # so long it may take on a busy machine to let go
    monkeypatch.setattr(listeners, "FAREWELL_SECONDS", PATIENCE)
    stopping, staying = store_of(members[1]), store_of(members[0])
    used = stopping.claim("used", ttl=LONG)
    free = stopping.claim("free", ttl=LONG)
    assert used is not None
    assert free is not None
    released = in_background(lambda: free.lost.wait(PATIENCE) and free.release())
    stopped = in_background(members[1].service.stop)
    assert released() is False, "it counted as lost first"
    got = staying.claim("free", ttl=LONG, timeout=PATIENCE)
    assert got is not None
    stopped()
    assert used.lost.is_set()
    assert staying.claim("used", ttl=LONG, timeout=SHORT) is None, "whoever used it may use it still"


def test_who_waits_is_told_that_the_node_stopped(members: list[Member]) -> None:
    with store_of(members[0]).lock("x", ttl=LONG):
        result = in_background(lambda: store_of(members[1]).lock("x", ttl=LONG).acquire())
        waiting(store_of(members[0]), "lock:x", 1)
        members[1].service.stop()
        with pytest.raises(raftsvc.StoppedError):
            result()
        waiting(store_of(members[0]), "lock:x", 0)


def test_who_waited_in_a_process_that_stopped_stands_in_nobody_s_way(members: list[Member]) -> None:
    stopping, staying = store_of(members[1]), store_of(members[0])
    used = stopping.claim("used", ttl=LONG)
    assert used is not None
    first = staying.claim("x", ttl=LONG)
    assert first is not None
    waiter = in_background(lambda: stopping.claim("x", ttl=LONG))
    waiting(staying, "x", 1)
    members[1].service.stop()
    with pytest.raises(raftsvc.StoppedError):
        waiter()
    assert first.release(PATIENCE)
    assert staying.claim("x", ttl=LONG, timeout=PATIENCE) is not None
    assert staying.claim("used", ttl=LONG, timeout=SHORT) is None, "whoever used it may use it still"


def test_what_is_to_be_called_before_the_service_stops_is_called_once_while_it_works(
    make_cluster: Callable[..., Cluster], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "FAREWELL_SECONDS", PATIENCE)
    (member,) = make_cluster(make_state=OpenState).form(1)
    store = store_of(member)
    said: list[int] = []
    member.service.before_stop(lambda: said.append(store.set("last", b"word")))
    member.service.before_stop(lambda: said.append(-1))()
    member.service.before_stop(lambda: 1 / 0)
    member.service.stop()
    member.service.stop()
    assert len(said) == 1
    assert said[0] > 0
    assert "ZeroDivisionError" in caplog.text
    with pytest.raises(raftsvc.ConfigurationError):
        member.service.before_stop(7)  # type: ignore[arg-type]


# -- elections


def test_the_next_leads_at_once_when_one_ends_in_order(members: list[Member]) -> None:
    first, second = (
        store_of(member).election("scheduler", ttl=LONG, data=b"%d" % n) for n, member in enumerate(members[:2])
    )
    seen: list[bytes | None] = []
    begun = threading.Event()

    def lead(lost: threading.Event) -> str:
        begun.set()
        lost.wait(PATIENCE)
        return "done"

    def watch() -> None:
        for leader in second.observe():
            seen.append(leader)
            if leader == b"1":
                return

    watching = in_background(watch)
    leading = in_background(lambda: first.run(lead))
    assert begun.wait(PATIENCE)
    assert first.is_leader
    assert first.fence > 0
    assert second.leader(PATIENCE) == b"0"
    led: list[bool] = []

    def lead_until_seen(lost: threading.Event) -> str:
        led.append(second.is_leader)
        eventually(lambda: b"1" in seen, "it is seen")  # of who leads for a moment only nobody need be told
        return "second"

    following = in_background(lambda: second.run(lead_until_seen))
    waiting(store_of(members[2]), "election:scheduler", 1)
    members[0].service.stop()
    assert following() == "second"
    assert led == [True]
    watching()
    assert seen[-1] == b"1"
    with pytest.raises(raftsvc.StoppedError):
        leading()
    assert not first.is_leader
    with pytest.raises(kv.LostError):
        _ = first.fence


def test_who_resigns_is_told_and_the_next_leads(stores: list[kv.KeyValue]) -> None:
    election = stores[0].election("scheduler", ttl=LONG)
    assert election.resign() is False
    begun = threading.Event()

    def lead(lost: threading.Event) -> bool:
        begun.set()
        return lost.wait(PATIENCE)

    result = in_background(lambda: election.run(lead))
    assert begun.wait(PATIENCE)
    stores[1].transaction([kv.if_held(election), kv.set("k", b"")], PATIENCE)
    assert election.resign() is True
    assert result() is True
    assert election.run(lambda lost: election.resign()) is True, "though it resigned itself"


def test_who_lost_leading_takes_part_anew(stores: list[kv.KeyValue]) -> None:
    election = stores[0].election("scheduler", ttl=LONG)
    fences: list[int] = []

    def lead(lost: threading.Event) -> int:
        fences.append(election.fence)
        if len(fences) == 1:
            (lease,) = stores[0]._holding().keeper()._leases.values()  # type: ignore[attr-defined]
            stores[0].transaction([leases.instructions.end_lease(lease.id)], PATIENCE)
            lease.end()
            assert lost.is_set()
        return len(fences)

    assert election.run(lead) == 2
    assert fences[1] > fences[0]
    assert stores[1].election("scheduler").leader(PATIENCE) is None


def test_who_comes_to_lead_by_the_same_object_after_it_was_lost_leads_on(lone: kv.KeyValue) -> None:
    election = lone.election("x", ttl=LONG)
    leads, go_on = threading.Event(), threading.Event()
    seen: list[Any] = []

    def lead() -> None:
        with election.lead(PATIENCE) as hold:
            leads.set()
            assert go_on.wait(PATIENCE)
            seen.extend([hold.is_held, election.is_leader, election.fence == hold.fence, election.resign()])

    with election.lead(PATIENCE) as former:
        former.lease.end()
        lone._holding().keeper().wake()
        latter = in_background(lead)
        eventually(lambda: len(lone.claims("election:x")) == 2, "another waits")
        former.lease.revoke()
        assert leads.wait(PATIENCE)
    go_on.set()
    latter()
    assert seen == [True, True, True, True]
    assert not election.is_leader


def test_who_does_not_come_to_lead_in_time_is_told(stores: list[kv.KeyValue]) -> None:
    with stores[0].election("scheduler", ttl=LONG).lead(PATIENCE) as hold:
        assert hold.is_held
        with pytest.raises(TimeoutError, match="led by others"), stores[1].election("scheduler", ttl=LONG).lead(SHORT):
            pytest.fail("two lead")


# -- once


def test_what_is_done_once_is_done_by_one_of_many_and_never_again(stores: list[kv.KeyValue]) -> None:
    runs: list[int] = []
    results = [
        in_background(lambda store=store: store.once("migrate", lambda: runs.append(1), ttl=LONG))  # type: ignore[misc]
        for store in stores * 2
    ]
    assert sorted(result() for result in results) == [False] * 5 + [True]
    assert runs == [1]
    assert stores[1].once("migrate", lambda: runs.append(1)) is False
    once = Once(stores[2], "migrate")
    assert once.look(PATIENCE) == {"state": "done"}
    once.reset(PATIENCE)
    assert stores[1].once("migrate", lambda: runs.append(1), ttl=LONG) is True


def test_a_failure_is_recorded_and_done_again_or_told(lone: kv.KeyValue) -> None:
    def fail() -> None:
        raise KeyError("no such table")

    with pytest.raises(KeyError):
        lone.once("migrate", fail, ttl=LONG)
    found = Once(lone, "migrate").look(PATIENCE)
    assert found == {"state": "failed", "error": "KeyError: 'no such table'"}
    with pytest.raises(OnceError, match="failed: KeyError") as told:
        lone.once("migrate", fail, ttl=LONG, after_failure="raise")
    assert told.value.how == "failed"
    assert lone.once("migrate", lambda: None, ttl=LONG) is True


def test_who_lost_its_lease_meanwhile_records_no_success(lone: kv.KeyValue) -> None:
    def frozen() -> None:
        (lease,) = lone._holding().keeper()._leases.values()  # type: ignore[attr-defined]
        lone.transaction([leases.instructions.end_lease(lease.id)], PATIENCE)

    with pytest.raises(kv.LostError):
        lone.once("migrate", frozen, ttl=LONG)
    assert Once(lone, "migrate").look(PATIENCE)["state"] == "died"
    with pytest.raises(OnceError, match="died"):
        lone.once("migrate", lambda: None, ttl=LONG, after_death="raise")
    assert lone.once("migrate", lambda: None, ttl=LONG) is True


# -- parties


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_reset_while_it_runs_is_done_anew_by_whoever_comes_next(lone: kv.KeyValue, fails: bool) -> None:
    once = Once(lone, "x", LONG)
    runs, begun, go_on = [], threading.Event(), threading.Event()

    def work() -> None:
        runs.append("first")
        begun.set()
        assert go_on.wait(PATIENCE)
        if fails:
            raise ZeroDivisionError

    first = in_background(lambda: once.run(work))
    assert begun.wait(PATIENCE)
    once.reset()
    assert once.look()["state"] == "never"
    second = in_background(lambda: once.run(lambda: runs.append("second"), after_failure="raise"))
    eventually(lambda: len(lone.claims("once:x")) == 2, "another waits")
    go_on.set()
    if fails:
        with pytest.raises(ZeroDivisionError):
            first()
    else:
        assert first() is True, "it did it"
    assert second() is True
    assert runs == ["first", "second"]
    assert once.look() == {"state": "done"}


def test_what_raises_and_cannot_say_why_has_failed(lone: kv.KeyValue) -> None:
    class WordlessError(Exception):
        def __str__(self) -> str:
            raise ValueError

    def work() -> None:
        raise WordlessError

    once = Once(lone, "x", LONG)
    with pytest.raises(WordlessError):
        once.run(work)
    assert once.look() == {"state": "failed", "error": "WordlessError: (it has no text, which raised ValueError)"}


def test_who_joined_is_there_until_it_leaves(stores: list[kv.KeyValue]) -> None:
    web = [store.party("web", ttl=LONG) for store in stores]
    changes = web[2].watch()
    assert next(changes) == []
    with web[0].join(b"a", PATIENCE):
        assert next(changes) == [b"a"]
        with web[1].join(b"b", PATIENCE):
            assert next(changes) == [b"a", b"b"]
            assert list(web[0]) == [b"a", b"b"]
            assert len(web[1]) == 2
        assert next(changes) == [b"a"]
    assert next(changes) == []


def test_who_looks_on_is_let_go_of_once_nothing_changed_for_as_long_as_he_says(lone: kv.KeyValue) -> None:
    party, election = lone.party("web", ttl=LONG), lone.election("sched", data=b"me", ttl=LONG)
    with party.join(b"a", PATIENCE), election.lead(PATIENCE):
        coming, leading = party.watch(0.3), election.observe(0.3)
        assert (next(coming), next(leading)) == ([b"a"], b"me")
        waits = in_background(lambda: lone.claim("election:sched", ttl=LONG, timeout=PATIENCE))
        assert (list(coming), list(leading)) == ([], []), "who begins to wait is no other leader"
        coming, leading = party.watch(PATIENCE), election.observe(PATIENCE)
        assert (next(coming), next(leading)) == ([b"a"], b"me")
    assert next(coming) == []
    assert waits() is not None
    assert next(leading) != b"me"


# -- who cannot be asked


def refusing(lone: kv.KeyValue, monkeypatch: pytest.MonkeyPatch, error: raftsvc.RaftError) -> list[bytes]:
    """Have whatever is proposed from now on refused; what that is."""
    seen: list[bytes] = []

    def propose(instruction: bytes, timeout: float) -> Any:
        seen.append(instruction)
        raise error

    monkeypatch.setattr(lone._holding(), "propose", propose)
    return seen


def test_what_fails_at_once_is_not_asked_for_without_pause(lone: kv.KeyValue, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = lone.claim("x", ttl=LONG)
    assert hold is not None
    seen = refusing(lone, monkeypatch, raftsvc.OverloadedError("refused at once"))
    assert hold.release(0.0)
    assert not threading.Event().wait(1.0)
    assert len(seen) < 12
    monkeypatch.undo()
    waiting(lone, "x", 0)
    eventually(lambda: lone.claims("x", PATIENCE) == [], "it to be told")


def test_who_waits_for_long_to_be_heard_keeps_nobody_who_does_not(
    lone: kv.KeyValue, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()
    propose = lone._holding().propose

    def hang(instruction: bytes, timeout: float) -> Any:
        if not answered.wait(timeout):
            raise raftsvc.OutcomeUnknown("nobody answered")
        return propose(instruction, timeout)

    monkeypatch.setattr(lone._holding(), "propose", hang)
    patient = in_background(lambda: lone.claim("x", ttl=LONG, timeout=PATIENCE))
    began = time.monotonic()
    assert lone.claim("y", ttl=LONG, timeout=0.1) is None
    assert lone.claim("y", ttl=LONG, blocking=False, timeout=0.1) is None
    assert time.monotonic() - began < PATIENCE / 2
    answered.set()
    assert patient() is not None


def test_a_try_that_failed_writes_nothing_more(lone: kv.KeyValue) -> None:
    with lone.lock("x", ttl=LONG):
        before = lone.service.status()["last_index"]
        for _ in range(5):
            assert lone.lock("x", ttl=LONG).acquire(blocking=False) is False
        assert lone.service.status()["last_index"] == before + 5


def test_who_looks_is_told_of_those_who_begin_to_wait(stores: list[kv.KeyValue]) -> None:
    with stores[0].lock("x", ttl=LONG):
        known = stores[1].claims("lock:x", PATIENCE)
        looking = in_background(lambda: stores[1].wait_claims("lock:x", known, 4 * PATIENCE))
        got = in_background(lambda: stores[2].lock("x", ttl=LONG).acquire(timeout=PATIENCE))
        assert len(looking()) == 2
    assert got()


@pytest.mark.parametrize("kind", ["lock", "semaphore", "reading", "writing"])
def test_a_with_waits_no_longer_than_it_said_and_then_nothing_of_it_was_done(lone: kv.KeyValue, kind: str) -> None:
    def made() -> Lock:
        if kind in ("lock", "semaphore"):
            return lone.lock("x", ttl=LONG) if kind == "lock" else lone.semaphore("x", 1, ttl=LONG)
        rwlock = lone.rwlock("x", ttl=LONG)
        return rwlock.reading() if kind == "reading" else rwlock.writing()

    holder = lone.rwlock("x", ttl=LONG).writing() if kind == "reading" else made()
    with holder.within(PATIENCE):
        refused = pytest.raises(raftsvc.NotApplied, match=":x' was not to be had within 2 s; nothing was done")
        with refused, made().within(SHORT):
            raise AssertionError("it is held")
        assert holder.owned()
    with made().within(PATIENCE) as lock:
        assert lock.owned(), "who gave up is in nobody's way"
    for wrong in ("1", None, float("nan"), True):
        with pytest.raises(raftsvc.ConfigurationError, match="a timeout is"):
            made().within(wrong)  # type: ignore[arg-type]


def test_a_lock_that_was_lost_is_released_before_it_is_acquired_again(lone: kv.KeyValue, clock: Clock) -> None:
    lock = lone.lock("x", ttl=LONG)
    assert lock.acquire(timeout=PATIENCE)
    assert lock.locked()
    clock.move(LONG)
    with pytest.raises(kv.LostError, match="has to be released"):
        lock.acquire(timeout=PATIENCE)
    with pytest.raises(kv.LostError, match="held no longer"):
        lock.release()
    assert lone.lock("y", ttl=LONG).acquire(True, -1)


def test_a_lease_that_is_opened_too_slowly_is_opened_anew(
    lone: kv.KeyValue, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    propose, slow = lone._holding().propose, [LONG, LONG, 0.0]

    def slowly(instruction: bytes, timeout: float) -> Any:
        answer = propose(instruction, timeout)
        if slow:
            clock.move(slow.pop(0))
        return answer

    monkeypatch.setattr(lone._holding(), "propose", slowly)
    hold = lone.claim("x", ttl=LONG, timeout=PATIENCE)
    assert hold is not None
    assert hold.is_held


def test_a_success_that_nobody_could_be_told_of_is_told_later(
    lone: kv.KeyValue, monkeypatch: pytest.MonkeyPatch
) -> None:
    transaction, failures = lone.transaction, [1, 1]

    def sometimes(operations: Any, timeout: float = 10.0) -> int:
        if len(failures) and b"done" in operations[-1].data:
            failures.pop()
            raise raftsvc.NotApplied("nobody leads")
        return transaction(operations, timeout)

    monkeypatch.setattr(lone, "transaction", sometimes)
    assert lone.once("migrate", lambda: None, ttl=LONG) is True
    assert not failures
    assert lone.once("migrate", lambda: pytest.fail("twice"), ttl=LONG) is False


def test_a_success_that_was_recorded_and_not_heard_of_is_one(
    lone: kv.KeyValue, monkeypatch: pytest.MonkeyPatch
) -> None:
    transaction, unheard = lone.transaction, [1]

    def sometimes(operations: Any, timeout: float = 10.0) -> int:
        index = transaction(operations, timeout)
        if unheard and b"done" in operations[-1].data:
            unheard.pop()
            raise raftsvc.OutcomeUnknown("the answer was lost")
        return index

    monkeypatch.setattr(lone, "transaction", sometimes)
    assert lone.once("migrate", lambda: None, ttl=LONG) is True
    assert not unheard
    assert lone.once("migrate", lambda: pytest.fail("twice"), ttl=LONG) is False


def test_a_success_of_which_nobody_was_told_in_time_is_no_error_after_which_nothing_was_done(
    lone: kv.KeyValue, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    transaction, calls = lone.transaction, []

    def unheard(operations: Any, timeout: float = 10.0) -> int:
        if calls and b"done" in operations[-1].data:
            clock.move(LONG)
            raise raftsvc.StoppedError("it is being stopped")
        return transaction(operations, timeout)

    monkeypatch.setattr(lone, "transaction", unheard)
    with pytest.raises(kv.LostError, match="was done, which could not be recorded") as lost:
        lone.once("migrate", lambda: calls.append(1), ttl=LONG)
    assert not isinstance(lost.value, raftsvc.NotApplied)
    assert isinstance(lost.value.__cause__, raftsvc.StoppedError)
    assert calls == [1]


def test_nothing_is_held_by_a_process_that_is_about_to_stop(lone: kv.KeyValue, monkeypatch: pytest.MonkeyPatch) -> None:
    holding: Any = lone._holding()
    keeper, propose = holding.keeper(), holding.propose

    def close_first(instruction: bytes, timeout: float) -> Any:
        keeper.close()
        return propose(instruction, timeout)

    monkeypatch.setattr(holding, "propose", close_first)
    with pytest.raises(raftsvc.StoppedError):
        lone.claim("x", ttl=LONG, timeout=PATIENCE)


def test_whoever_stops_a_service_waits_for_what_is_called_before(
    make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "FAREWELL_SECONDS", PATIENCE)
    (member,) = make_cluster(make_state=OpenState).form(1)
    store, may_go_on, begun = store_of(member), threading.Event(), threading.Event()
    said: list[int] = []

    def last() -> None:
        begun.set()
        may_go_on.wait(2.0)
        said.append(store.set("last", b"word"))

    member.service.before_stop(last)
    first = in_background(member.service.stop)
    assert begun.wait(PATIENCE)
    second = in_background(member.service.stop)
    late: list[int] = []
    member.service.before_stop(lambda: late.append(1))
    may_go_on.set()
    first()
    second()
    assert len(said) == len(late) == 1


# -- interrupts and forks


def test_an_interrupted_main_thread_leaves_nothing_behind(lone: kv.KeyValue) -> None:
    class Interrupt(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    former = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with lone.lock("x", ttl=LONG):
            main = threading.main_thread().ident
            assert main is not None

            def interrupt_it() -> None:
                waiting(lone, "lock:x", 1)
                signal.pthread_kill(main, signal.SIGUSR1)

            done = in_background(interrupt_it)
            with pytest.raises(Interrupt):
                lone.lock("x", ttl=LONG).acquire()
            done()
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert lone.lock("x", ttl=LONG).acquire(timeout=PATIENCE), "nobody has what was not wanted any more"


def test_an_interrupted_main_thread_stands_in_nobody_s_way(lone: kv.KeyValue) -> None:
    class Interrupt(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    former = signal.signal(signal.SIGUSR1, interrupt)
    catalog = lone.rwlock("catalog", ttl=LONG)
    try:
        with catalog.reading() as reader:
            main = threading.main_thread().ident
            assert main is not None
            name = reader.name

            def interrupt_it() -> None:
                waiting(lone, name, 1)
                signal.pthread_kill(main, signal.SIGUSR1)

            done = in_background(interrupt_it)
            with pytest.raises(Interrupt):
                catalog.writing().acquire()
            done()
            waiting(lone, name, 0)
            assert catalog.reading().acquire(timeout=PATIENCE), "the writer that is not wanted any more is gone"
    finally:
        signal.signal(signal.SIGUSR1, former)
