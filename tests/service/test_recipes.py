"""Queues, leases of one's own, counters, barriers, meetings and limits on real threads and nodes."""

from __future__ import annotations

import inspect
import itertools
import math
import signal
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import raftsvc
from raftsvc import kv, listeners, recipes
from raftsvc.kv import leases
from raftsvc.kv.transactions import decode
from raftsvc.recipes import Counter, Item, Queue

from .harness import PATIENCE, Cluster, Member, eventually, in_background
from .test_holding import LONG, SHORT, Clock, clock, lone, members, stores, waiting
from .test_watching import OpenState, store_of

__all__ = ["clock", "lone", "members", "stores"]


def end_lease_of(store: kv.KeyValue, hold: Any) -> None:
    """As if its process had not been heard of, but that no try is counted: nobody tells the process."""
    store.transaction([leases.instructions.end_lease(hold.lease.id)], PATIENCE)


@contextmanager
def nothing_proposed(*stores: kv.KeyValue) -> Iterator[None]:
    """Nothing is within it."""
    with pytest.MonkeyPatch.context() as patch:
        for store in stores:
            patch.setattr(store.service, "propose", lambda *_: pytest.fail("something is proposed"))
        yield


def taken(queue: Queue) -> Item:
    item = queue.get(timeout=PATIENCE)
    assert item is not None
    return item


# -- queues


def test_who_asks_by_a_hold_that_shows_nothing_is_told_so(lone: kv.KeyValue) -> None:
    lone.queue("work").put(b"1", timeout=PATIENCE)
    given = lone.take("queue:work", ttl=LONG, timeout=PATIENCE)
    assert given is not None
    hold, item = given
    with pytest.raises(kv.LostError, match="ask by the item"):
        lone.set("k", b"by hold", kv.if_held(hold), timeout=PATIENCE)
    lone.set("k", b"by item", kv.if_held(item), timeout=PATIENCE)
    hold.release()
    with pytest.raises(kv.LostError, match="its lease was not renewed"):
        lone.set("k", b"late", kv.if_held(item), timeout=PATIENCE)


def test_what_is_put_anywhere_is_done_once_by_somebody(stores: list[kv.KeyValue]) -> None:
    done: list[bytes] = []
    work = [b"%d" % number for number in range(30)]

    def serve(store: kv.KeyValue) -> None:
        queue = store.queue("work", ttl=LONG)
        while (item := queue.get(timeout=PATIENCE)) is not None:
            with item:
                if item.value == b"end":
                    return
                done.append(item.value)

    serving = [in_background(lambda store=store: serve(store)) for store in stores * 2]  # type: ignore[misc]
    for number, value in enumerate(work):
        stores[number % 3].queue("work").put(value, timeout=PATIENCE)
    stores[0].queue("work").put_many([b"end"] * 6, timeout=PATIENCE)
    for each in serving:
        each()
    assert sorted(done) == sorted(work)
    assert len(stores[1].queue("work")) == 0


def test_items_come_in_order_and_those_who_wait_are_served_in_theirs(stores: list[kv.KeyValue]) -> None:
    got: list[tuple[int, bytes]] = []

    def wait(number: int) -> None:
        item = taken(stores[number % 3].queue("q", ttl=LONG))
        got.append((number, item.value))
        item.ack()

    results = []
    for number in range(4):
        results.append(in_background(lambda number=number: wait(number)))  # type: ignore[misc]
        waiting(stores[0], "queue:q", number + 1)
    for number in range(4):
        stores[1].queue("q").put(b"%d" % number, timeout=PATIENCE)
        results[number]()
    assert got == [(number, b"%d" % number) for number in range(4)]


def test_who_waits_writes_nothing_until_there_is_something(lone: kv.KeyValue) -> None:
    queue = lone.queue("q", ttl=LONG)
    getting = in_background(lambda: taken(queue).value)
    waiting(lone, "queue:q", 1)
    with nothing_proposed(lone):
        assert not threading.Event().wait(0.5)
    queue.put(b"1")
    assert getting() == b"1"


def test_there_is_nothing_at_once_or_not_in_time(lone: kv.KeyValue) -> None:
    queue = lone.queue("q", ttl=LONG)
    assert queue.get(blocking=False) is None
    assert queue.get(timeout=SHORT) is None
    queue.put(b"1")
    eventually(lambda: lone.claims("queue:q", PATIENCE) == [], "who gave up to be gone")
    item = queue.get(blocking=False)
    assert item is not None
    assert item.tries == 1


def test_what_raises_is_given_back_and_what_does_not_is_done(lone: kv.KeyValue) -> None:
    queue = lone.queue("q", ttl=LONG, max_tries=2)
    assert queue
    put = [queue.put(b"bad"), queue.put(b"good")]
    assert put == sorted(put)
    for tries in (1, 2):
        with pytest.raises(ZeroDivisionError), taken(queue) as item:
            assert (item.value, item.tries, item.fence) == (b"bad", tries, tries)
            assert queue.counts() == (1, 1)
            _ = 1 // 0
    with taken(queue) as item:
        assert item.value == b"good"
    assert len(queue) == 0
    assert len(queue.dead) == 1
    with taken(queue.dead) as item:
        assert item.value == b"bad"
        item.ack()
        assert not item.is_held
    assert len(queue.dead) == 0


def test_nobody_has_what_another_has_and_who_lost_it_is_told(stores: list[kv.KeyValue]) -> None:
    queue, other = stores[0].queue("q", ttl=LONG), stores[1].queue("q", ttl=LONG / 2)
    queue.put(b"1", timeout=PATIENCE)
    item = taken(queue)
    getting = in_background(lambda: taken(other))
    waiting(stores[0], "queue:q", 1)
    end_lease_of(stores[2], item._hold)
    again = getting()
    assert (again.id, again.fence) == (item.id, 2)
    with pytest.raises(kv.LostError):
        stores[0].transaction([kv.if_held(item), kv.set("k", b"late")], PATIENCE)
    with pytest.raises(kv.LostError):
        item.ack(kv.set("k", b"late"), timeout=PATIENCE)
    again.ack(kv.set("k", b"done"), timeout=PATIENCE)
    assert stores[2]["k"] == b"done"
    with pytest.raises(kv.LostError):
        again.ack()


def test_what_is_done_with_an_item_is_stored_once_however_often_it_is_tried(stores: list[kv.KeyValue]) -> None:
    queue = stores[0].queue("q", ttl=LONG)
    queue.put(b"1", kv.if_not_exists("order"), kv.set("order", b"7"), timeout=PATIENCE)
    with pytest.raises(kv.ConflictError):
        queue.put(b"1", kv.if_not_exists("order"), timeout=PATIENCE)
    assert len(queue) == 1
    item = taken(queue)
    with pytest.raises(kv.ConflictError):
        item.ack(kv.if_not_exists("order"), timeout=PATIENCE)
    assert item.is_held, "nothing was done"
    item.ack(kv.incr("done"), timeout=PATIENCE)
    assert stores[1]["done"] == b"1"
    assert len(queue) == 0


def test_who_is_not_told_that_it_is_done_may_say_so_again(lone: kv.KeyValue, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = lone.queue("q", ttl=LONG)
    for value in (b"1", b"2"):
        queue.put(value)
    propose, answers = lone.service.propose, [True, False]

    def unheard(instruction: bytes, timeout: float = 10.0) -> Any:
        if answers:
            if answers.pop(0):
                propose(instruction, timeout)
            raise raftsvc.OutcomeUnknown("nobody answered")
        return propose(instruction, timeout)

    first = taken(queue)
    second = taken(queue)
    monkeypatch.setattr(lone.service, "propose", unheard)
    with pytest.raises(raftsvc.OutcomeUnknown):
        first.ack(kv.incr("done"))
    with pytest.raises(raftsvc.OutcomeUnknown):
        second.ack(kv.incr("done"))
    first.ack(kv.incr("done"))
    second.ack(kv.incr("done"))
    assert lone["done"] == b"2"
    with pytest.raises(kv.LostError):
        first.ack(kv.incr("done"))
    queue.put(b"3")
    third = taken(queue)
    answers.append(True)
    with pytest.raises(raftsvc.OutcomeUnknown):
        third.ack()
    with pytest.raises(kv.LostError):
        third.ack(kv.incr("done"))  # which was not what was asked before
    assert lone["done"] == b"2"


def test_the_end_of_a_with_says_that_it_is_done_as_long_as_it_takes(
    lone: kv.KeyValue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = lone.queue("q", ttl=LONG)
    queue.put(b"1")
    propose, failures = lone.service.propose, [raftsvc.OutcomeUnknown("lost"), raftsvc.NotApplied("no leader")]

    def sometimes(instruction: bytes, timeout: float = 10.0) -> Any:
        if failures and b"queue:q/" in instruction:
            raise failures.pop()
        return propose(instruction, timeout)

    with taken(queue):
        monkeypatch.setattr(lone.service, "propose", sometimes)
    assert not failures
    assert len(queue) == 0


def test_the_end_of_a_with_says_that_it_was_handed_to_another_meanwhile(lone: kv.KeyValue, clock: Clock) -> None:
    queue = lone.queue("q", ttl=LONG, within=60.0)
    queue.put(b"1")
    with pytest.raises(kv.LostError), taken(queue):
        clock.move(61.0)
        lone._holding().keeper()._signal.set()  # type: ignore[attr-defined]  # whose clock moved by hand
        eventually(lambda: queue.counts() == (1, 0), "it to be given back by the process")
    assert queue.counts() == (1, 0)
    with taken(queue) as item:
        item.nack()
    assert queue.counts() == (1, 0), "who gave it back himself is told nothing"


@pytest.mark.parametrize(
    ("error", "is_done"),
    [
        (raftsvc.OutcomeUnknown("nobody answered"), False),
        (raftsvc.OutcomeUnknown("nobody answered"), True),
        (raftsvc.NotApplied("no leader"), False),
    ],
)
def test_the_end_of_a_with_asks_what_was_asked_before_and_not_heard_of(
    lone: kv.KeyValue, monkeypatch: pytest.MonkeyPatch, error: raftsvc.RaftError, is_done: bool
) -> None:
    queue = lone.queue("q", ttl=LONG)
    queue.put(b"1")
    propose, failures = lone.service.propose, [error]

    def sometimes(instruction: bytes, timeout: float = 10.0) -> Any:
        if failures and b"sent/7" in instruction:
            if is_done:
                propose(instruction, timeout)
            raise failures.pop()
        return propose(instruction, timeout)

    with taken(queue) as item:
        monkeypatch.setattr(lone.service, "propose", sometimes)
        with pytest.raises(type(error)):
            item.ack(kv.incr("sent/7"))
    assert len(queue) == 0
    assert lone["sent/7"] == b"1"


def test_nobody_is_told_that_it_is_done_who_asked_for_two_things(
    lone: kv.KeyValue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = lone.queue("q", ttl=LONG)
    queue.put(b"1")
    item = taken(queue)
    propose, are_done = lone.service.propose, [False, True]

    def unheard(instruction: bytes, timeout: float = 10.0) -> Any:
        if are_done:
            if are_done.pop():
                propose(instruction, timeout)
            raise raftsvc.OutcomeUnknown("nobody answered")
        return propose(instruction, timeout)

    monkeypatch.setattr(lone.service, "propose", unheard)
    for key in ("first", "second"):
        with pytest.raises(raftsvc.OutcomeUnknown):
            item.ack(kv.incr(key))
    with pytest.raises(kv.LostError):
        item.ack(kv.incr("second"))  # since it was the first that was done
    assert lone.get("second") is None


def test_the_end_of_a_with_does_not_ask_again_for_what_does_not_pass(
    lone: kv.KeyValue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = lone.queue("q", ttl=LONG)
    queue.put(b"1")
    propose, asked = lone.service.propose, []

    def fails(instruction: bytes, timeout: float = 10.0) -> Any:
        if b"queue:q/" in instruction:
            asked.append(instruction)
            raise raftsvc.NodeFailedError("its disk is gone")
        return propose(instruction, timeout)

    with pytest.raises(raftsvc.NodeFailedError), taken(queue) as item:
        threading.Timer(5.0, item.lost.set).start()  # to be told of one who asks for ever
        monkeypatch.setattr(lone.service, "propose", fails)
    assert len(asked) == 1


@pytest.mark.parametrize("error", [raftsvc.NotApplied("no leader"), raftsvc.StoppedError("it stops")], ids=repr)
def test_the_end_of_a_with_does_not_say_of_work_that_was_done_that_nothing_was(
    lone: kv.KeyValue, monkeypatch: pytest.MonkeyPatch, error: raftsvc.RaftError
) -> None:
    queue = lone.queue("q", ttl=LONG)
    queue.put(b"1")
    propose = lone.service.propose

    def fails(instruction: bytes, timeout: float = 10.0) -> Any:
        if b"queue:q/" in instruction:
            item.lost.set()
            raise error
        return propose(instruction, timeout)

    with pytest.raises(kv.LostError, match="it was done, and nobody could be told") as caught, taken(queue) as item:
        monkeypatch.setattr(lone.service, "propose", fails)
    assert caught.value.__cause__ is error


def test_work_that_ends_while_the_service_stops_is_acknowledged(
    members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_LEAVE_SECONDS", PATIENCE)  # however busy the machine is
    monkeypatch.setattr(listeners, "FAREWELL_SECONDS", PATIENCE)
    stopping, staying = store_of(members[1]), store_of(members[0])
    staying.queue("q").put(b"1", timeout=PATIENCE)
    item = taken(stopping.queue("q", ttl=LONG))

    def work() -> None:
        with item:
            assert item.lost.wait(PATIENCE)  # the work ends in the time that is left

    done = in_background(work)
    members[1].service.stop()
    done()
    assert staying.queue("q").counts(PATIENCE) == (0, 0)


def test_what_somebody_has_for_too_long_is_handed_to_another_by_his_own_process(
    lone: kv.KeyValue, clock: Clock
) -> None:
    queue = lone.queue("q", ttl=LONG, within=60.0, max_tries=2)
    queue.put(b"1")
    item = taken(queue)
    clock.move(59.0)
    item.extend(60.0)
    clock.move(59.0)
    assert item.is_held
    again = in_background(lambda: taken(queue))
    waiting(lone, "queue:q", 1)
    clock.move(2.0)
    assert item.lost.is_set()
    assert not item.is_held
    lone._holding().keeper()._signal.set()  # type: ignore[attr-defined]  # whose clock moved by hand
    other = again()
    assert (other.id, other.tries) == (item.id, 2)
    for late in (item.ack, item.ensure_held, lambda: item.extend(1.0)):
        with pytest.raises(kv.LostError):
            late()
    assert item.nack() is False
    assert other.is_held
    other.nack()
    assert len(queue.dead) == 1
    assert len(queue) == 0


def test_what_a_process_had_that_died_is_handed_out_again_once_its_lease_is_over(
    make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = make_cluster(make_state=OpenState)
    cluster.form(3)
    dead, alive = store_of(cluster.follower()), store_of(cluster.leader())
    alive.queue("q").put(b"1", timeout=PATIENCE)
    item = taken(dead.queue("q", ttl=1.5))
    monkeypatch.setattr(item._hold.lease, "refresh", lambda timeout=0.0: None)
    held_until = time.monotonic() + item._hold.lease.remaining
    again = taken(alive.queue("q", ttl=1.5))
    assert time.monotonic() >= held_until
    assert item.lost.is_set()
    assert (again.id, again.fence) == (item.id, item.fence + 1)


def test_who_stops_in_order_gives_back_what_nobody_works_at(
    members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_LEAVE_SECONDS", PATIENCE)
    monkeypatch.setattr(listeners, "FAREWELL_SECONDS", PATIENCE)
    stopping, staying = store_of(members[1]), store_of(members[0])
    staying.queue("q").put(b"1", timeout=PATIENCE)
    item = taken(stopping.queue("q", ttl=LONG))
    released = in_background(lambda: item.lost.wait(PATIENCE) and item.nack())
    members[1].service.stop()
    assert released() is False
    assert taken(staying.queue("q", ttl=LONG)).id == item.id


def test_who_waits_for_an_item_is_told_that_the_node_stopped(members: list[Member]) -> None:
    getting = in_background(lambda: store_of(members[1]).queue("q", ttl=LONG).get())
    waiting(store_of(members[0]), "queue:q", 1)
    members[1].service.stop()
    with pytest.raises(raftsvc.StoppedError):
        getting()


def test_nothing_is_handed_out_to_who_waited_in_a_process_that_stopped(members: list[Member]) -> None:
    stopping, staying = store_of(members[1]), store_of(members[0])
    queue = stopping.queue("q", ttl=LONG)
    staying.queue("q").put(b"busy", timeout=PATIENCE)
    busy = taken(queue)  # and somebody is at work at it for longer than a stop waits
    getting = in_background(queue.get)
    waiting(staying, "queue:q", 1)
    members[1].service.stop()
    with pytest.raises(raftsvc.StoppedError):
        getting()
    claims = staying.claims("queue:q", PATIENCE)
    assert [claim.fence for claim in claims] == [busy._hold.fence]
    staying.queue("q", max_tries=1).put(b"new", timeout=PATIENCE)
    got = taken(staying.queue("q", ttl=LONG))
    assert (got.value, got.tries) == (b"new", 1)
    assert staying.queue("q").counts(PATIENCE) == (0, 2), "whoever works at the other may do so still"


def test_who_extends_his_time_by_little_has_it_for_no_longer(
    lone: kv.KeyValue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_LOOK_SECONDS", LONG)
    queue = lone.queue("q", ttl=LONG)
    queue.put(b"1")
    item = taken(queue)
    index = lone.service.status()["last_index"]
    assert not threading.Event().wait(0.5), "the thread waits for what is due later"
    assert lone.service.status()["last_index"] == index
    item.extend(0.2)
    eventually(lambda: queue.counts() == (1, 0), "it to be given back")
    assert item.lost.is_set()


def test_an_interrupt_between_two_steps_leaves_no_item_with_nobody(
    lone: kv.KeyValue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = lone.queue("q", ttl=LONG)
    queue.put(b"1")
    limit = leases.Lost.limit

    def interrupt(lost: leases.Lost, seconds: float | None) -> None:
        limit(lost, seconds)
        interrupted.append(True)
        signal.pthread_kill(main, signal.SIGUSR1)

    interrupted: list[bool] = []

    def raise_it(*_: object) -> None:
        raise KeyboardInterrupt

    main = threading.main_thread().ident
    assert main is not None
    monkeypatch.setattr(leases.Lost, "limit", interrupt)
    former = signal.signal(signal.SIGUSR1, raise_it)
    try:
        with pytest.raises(KeyboardInterrupt):
            queue.get(timeout=PATIENCE)
            assert not threading.Event().wait(PATIENCE), "it is interrupted here at the latest"
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert interrupted
    eventually(lambda: queue.counts() == (1, 0), "it to be given back")


def test_a_queue_is_iterated_without_end(lone: kv.KeyValue) -> None:
    queue = lone.queue("q", ttl=LONG)
    assert queue.put_many([b"1", b"2"]) == [queue.put(b"3") - 2, queue.put(b"4") - 2]
    found: list[bytes] = []
    for item in queue:
        with item:
            found.append(item.value)
        if len(found) == 4:
            break
    assert found == [b"1", b"2", b"3", b"4"]


def test_what_is_put_into_no_queue_is_refused_at_the_call(lone: kv.KeyValue) -> None:
    queue = lone.queue("q", ttl=LONG)
    queue.put(b"1")
    item = taken(queue)
    with nothing_proposed(lone):
        refuse_all(lone, queue, item)
    assert item.is_held


def refuse_all(lone: kv.KeyValue, queue: Queue, item: Item) -> None:
    odd: Any
    for odd in ("text", 7, None, object()):
        with pytest.raises(TypeError):
            queue.put(odd)
        with pytest.raises(TypeError):
            item.ack(odd)
    for odd in ("text", b"bytes", 7, None, ["text"]):
        with pytest.raises(TypeError):
            queue.put_many(odd)
    for odd in (None, 0, -1, "1"):
        with pytest.raises(raftsvc.ConfigurationError):
            item.extend(odd)
    with pytest.raises(ValueError, match="nothing to put"):
        queue.put_many([])
    with pytest.raises(ValueError, match="the name of a queue"):
        lone.queue("x" * 1000)


# -- leases of one's own


def test_keys_live_and_die_with_a_lease(stores: list[kv.KeyValue]) -> None:
    with stores[0].lease(LONG) as lease:
        assert lease.ttl == LONG
        assert 0.8 * LONG < lease.remaining <= 0.9 * LONG
        stores[0].set("here/1", b"a", lease=lease, timeout=PATIENCE)
        stores[1].set_json("here/2", 2, lease=lease, timeout=PATIENCE)
        stores[1].transaction([kv.set("here/3", b"c", lease=lease), kv.set("here/4", b"d")], PATIENCE)
        lease.refresh(PATIENCE)
        assert list(stores[2].list("here/", PATIENCE)) == [f"here/{n}" for n in (1, 2, 3, 4)]
        assert not lease.lost.is_set()
    assert lease.lost.is_set()
    assert lease.remaining == 0
    assert list(stores[2].list("here/", PATIENCE)) == ["here/4"]
    with pytest.raises(kv.LostError):
        stores[0].set("here/5", b"", lease=lease, timeout=PATIENCE)
    with pytest.raises(kv.LostError):
        lease.refresh()


def test_a_lease_is_kept_as_long_as_the_process_is_heard_and_one_that_is_not_is_not(stores: list[kv.KeyValue]) -> None:
    kept, left = stores[0].lease(4.0), stores[0].lease(3.0, keep=False)
    stores[0].set("kept", b"", lease=kept, timeout=PATIENCE)
    stores[0].set("left", b"", lease=left, timeout=PATIENCE)
    assert left.lost.wait(PATIENCE)
    eventually(lambda: stores[1].get("left", PATIENCE) is None, "its time to be over")
    assert not kept.lost.wait(6.0)
    assert stores[1].get("kept", PATIENCE) is not None
    kept.revoke(PATIENCE)
    assert stores[1].get("kept", PATIENCE) is None
    with pytest.raises(kv.LostError):
        left.refresh(PATIENCE)


def test_a_lease_that_is_lost_is_known_to_be_by_the_clock_of_this_machine(lone: kv.KeyValue, clock: Clock) -> None:
    with pytest.raises(kv.LostError), lone.lease(LONG) as lease:
        told = in_background(lambda: lease.lost.wait(PATIENCE))
        clock.move(0.89 * LONG)
        assert not lease.lost.is_set()
        clock.move(0.02 * LONG)
        assert lease.lost.is_set()
        assert told()


def test_the_keys_of_a_process_that_stops_in_order_are_gone(members: list[Member]) -> None:
    stopping, staying = store_of(members[1]), store_of(members[0])
    lease = stopping.lease(LONG)
    stopping.set("here", b"", lease=lease, timeout=PATIENCE)
    version = staying.get("here", PATIENCE)
    assert version is not None
    members[1].service.stop()
    assert lease.lost.is_set()
    assert staying.wait_changed("here", version.version, PATIENCE) is None
    with pytest.raises(raftsvc.StoppedError):
        stopping.lease(LONG)


def test_what_raised_in_a_with_is_raised_though_the_lease_was_lost(lone: kv.KeyValue, clock: Clock) -> None:
    with pytest.raises(ZeroDivisionError), lone.lease(LONG):
        clock.move(LONG)
        _ = 1 // 0


def test_a_lease_that_is_revoked_leaves_no_thread_behind(lone: kv.KeyValue) -> None:
    lone.lease(LONG).revoke(PATIENCE)
    lone._holding().keeper()._signal.set()  # type: ignore[attr-defined]

    def is_gone() -> bool:
        return not lone._holding().keeper()._is_served  # type: ignore[attr-defined]

    eventually(is_gone, "who keeps leases to end")
    with lone.lease(LONG):
        assert not is_gone()


@pytest.mark.parametrize("at_once", [1, 2])
def test_of_many_leases_those_which_end_first_are_renewed_first_and_what_locks_need_in_between(
    lone: kv.KeyValue, clock: Clock, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    lock = lone.claim("x", ttl=1.5 * LONG)
    assert lock is not None
    own = [lone.lease(ttl * LONG) for ttl in (1.2, 1.0, 1.1)]
    holding: Any = lone._holding()
    propose, propose_many = holding.propose, holding.propose_many
    asked: list[str] = []

    def note(*instructions: bytes) -> None:
        if not asked:
            clock.move(0.15 * LONG)  # the first renewal takes so long that the lock's is due
        asked.extend(key for instruction in instructions for _, key, *_ in decode(instruction)[1])

    def slowly(instruction: bytes, timeout: float) -> Any:
        note(instruction)
        return propose(instruction, timeout)

    def slowly_many(instructions: list[bytes], timeout: float) -> Any:
        note(*instructions)
        return propose_many(instructions, timeout)

    monkeypatch.setattr(holding, "propose", slowly)
    monkeypatch.setattr(holding, "propose_many", slowly_many)
    monkeypatch.setattr(holding, "at_once", at_once)
    clock.move(0.42 * LONG)
    holding.keeper().wake()  # whose clock moved by hand
    eventually(lambda: len(asked) == 4, "all to be renewed")
    expected = [own[1].id, own[2].id, own[0].id]
    expected.insert(at_once, lock.lease.id)
    assert asked == expected
    assert not lock.lost.is_set()


# -- counters


def test_a_counter_counts_each_call_once_wherever_it_is_made(stores: list[kv.KeyValue]) -> None:
    def count(counter: Counter) -> list[int]:
        return [counter.incr(timeout=PATIENCE) for _ in range(10)]

    results = [in_background(lambda store=store: count(store.counter("n"))) for store in stores]  # type: ignore[misc]
    seen = [number for result in results for number in result()]
    assert sorted(seen) == list(range(1, 31))
    counter = stores[0].counter("n")
    assert counter.decr(5, PATIENCE) == 25
    assert counter.incr(2, PATIENCE) == 27
    assert counter.value(PATIENCE) == 27
    counter.reset(timeout=PATIENCE)
    assert counter.value(PATIENCE) == 0
    counter.reset(2**63 - 1, PATIENCE)
    with pytest.raises(kv.CounterError):
        counter.incr(timeout=PATIENCE)
    assert stores[1].counter("other").value(PATIENCE) == 0


def test_what_is_no_count_is_refused_at_the_call(lone: kv.KeyValue) -> None:
    counter = lone.counter("n")
    odd: Any
    with nothing_proposed(lone):
        for odd in ("1", None, 1.5, True, 2**64):
            for call in (counter.incr, counter.decr, counter.reset):
                with pytest.raises((TypeError, ValueError)):
                    call(odd)


# -- barriers


def test_all_wait_at_a_gate_until_it_is_open(stores: list[kv.KeyValue]) -> None:
    gate = stores[0].barrier("deploy")
    assert gate.wait(PATIENCE)
    assert gate.open(PATIENCE) is False
    gate.close(PATIENCE)
    gate.close(PATIENCE)
    assert gate.is_closed(PATIENCE)
    assert gate.wait(SHORT) is False
    results = [in_background(lambda store=store: store.barrier("deploy").wait(PATIENCE)) for store in stores]  # type: ignore[misc]
    with nothing_proposed(*stores):
        assert not threading.Event().wait(0.3)
    assert stores[2].barrier("deploy").open(PATIENCE) is True
    assert [result() for result in results] == [True] * 3


def test_who_waits_goes_on_though_the_gate_is_closed_again(lone: kv.KeyValue, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = lone.barrier("deploy")
    gate.close()
    wait_changed, waits = lone.wait_changed, threading.Event()

    def slowly(key: str, version: int, timeout: float) -> Any:
        waits.set()
        assert may_go_on.wait(PATIENCE)
        return wait_changed(key, version, timeout)

    may_go_on = threading.Event()
    monkeypatch.setattr(lone, "wait_changed", slowly)
    result = in_background(lambda: gate.wait(PATIENCE))
    assert waits.wait(PATIENCE)
    gate.open()
    gate.close()
    may_go_on.set()
    assert result() is True


def test_who_waits_at_a_gate_is_told_that_the_node_stopped(members: list[Member]) -> None:
    store_of(members[0]).barrier("deploy").close(PATIENCE)
    waits = in_background(lambda: store_of(members[1]).barrier("deploy").wait())
    eventually(lambda: bool(members[1].state._applying.history._waiting))  # type: ignore[attr-defined]
    members[1].service.stop()
    with pytest.raises(raftsvc.StoppedError):
        waits()


def test_a_change_of_a_key_is_waited_for_and_of_no_other(lone: kv.KeyValue) -> None:
    version = lone.set("a", b"1")
    assert lone.wait_changed("a", version, 0.05) == (b"1", version)
    assert lone.wait_changed("a", 0, PATIENCE) == (b"1", version)
    told = in_background(lambda: lone.wait_changed("a", version, PATIENCE))
    lone.set("ab", b"")
    second = lone.set("a", b"2")
    assert told() == (b"2", second)
    lone.delete("a")
    assert lone.wait_changed("a", second, PATIENCE) is None


def test_a_meeting_begins_and_ends_for_all_at_once(stores: list[kv.KeyValue]) -> None:
    inside: list[int] = []
    rounds: list[int] = []

    def take_part(store: kv.KeyValue) -> None:
        meeting = store.meeting("round", 3, ttl=LONG)
        for number in range(3):
            with meeting.enter(PATIENCE) as attendance:
                inside.append(number)
                rounds.append(attendance.round)
            assert inside.count(number) == 3, "all were there before anybody went on"

    for result in [in_background(lambda store=store: take_part(store)) for store in stores]:  # type: ignore[misc]
        result()
    assert [rounds.count(each) for each in sorted(set(rounds))] == [3, 3, 3]


def test_who_does_not_wait_any_longer_is_not_waited_for(stores: list[kv.KeyValue]) -> None:
    alone = in_background(lambda: stores[0].meeting("round", 2, ttl=LONG).enter(5.0))
    waiting(stores[1], "meeting:round", 1)
    with pytest.raises(TimeoutError, match="not as many as 2"):
        alone()
    waiting(stores[1], "meeting:round", 0)
    first = in_background(lambda: stores[1].meeting("round", 2, ttl=LONG).enter(PATIENCE))
    waiting(stores[0], "meeting:round", 1)
    second = stores[0].meeting("round", 2, ttl=LONG / 2).enter(PATIENCE)
    attendance = first()
    assert attendance.round == second.round
    assert attendance.leave(0.05) is False, "the other is not done"
    end_lease_of(stores[2], second._hold)
    third = in_background(lambda: stores[1].meeting("round", 2, ttl=LONG).enter(PATIENCE))
    waiting(stores[0], "meeting:round", 1)
    stores[2].meeting("round", 2, ttl=LONG).enter(PATIENCE)
    assert third().round > attendance.round
    second.lost.set()
    with pytest.raises(kv.LostError):
        second.leave(PATIENCE)


def test_the_end_of_a_meeting_is_waited_for_though_nobody_can_be_asked(
    lone: kv.KeyValue, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = in_background(lambda: lone.meeting("round", 2, ttl=LONG).enter(PATIENCE))
    waiting(lone, "meeting:round", 1)
    second = lone.meeting("round", 2, ttl=LONG).enter(PATIENCE)
    claims, unheard = lone.claims, [True, True]

    def nobody_leads(name: str, timeout: float = 5.0) -> Any:
        if unheard:
            unheard.pop()
            raise raftsvc.ReadTimeoutError("nobody leads")
        return claims(name, timeout)

    monkeypatch.setattr(lone, "claims", nobody_leads)
    leaving = in_background(second.leave)
    eventually(lambda: not unheard, "it to be asked again")
    assert first().leave(PATIENCE) is True
    assert leaving() is True
    unheard += [True] * 100
    alone = in_background(lambda: lone.meeting("alone", 1, ttl=LONG).enter(PATIENCE))()
    assert alone.leave(0.05) is False, "nobody says who is left"


def test_who_has_left_a_meeting_waits_for_as_long_as_he_says_and_may_wait_on(lone: kv.KeyValue) -> None:
    """One that lives and does not end: whoever waits in the `with` is let go of by a timeout of his."""

    def enter_two() -> tuple[recipes.Attendance, recipes.Attendance]:
        first = in_background(lambda: lone.meeting("round", 2, ttl=LONG).enter(PATIENCE))
        waiting(lone, "meeting:round", 1)
        return lone.meeting("round", 2, ttl=LONG).enter(PATIENCE), first()

    mine, hanging = enter_two()
    with mine as attendance:
        assert attendance.leave(0.05) is False
        assert attendance.leave(0.05) is False, "it waits on"
    on = in_background(lambda: mine.leave(PATIENCE))
    assert hanging.leave(PATIENCE) is True
    assert on() is True
    assert mine.leave(PATIENCE) is True
    mine, hanging = enter_two()
    mine.lost.set()
    for _ in range(2):
        with pytest.raises(kv.LostError):
            mine.leave(0.05)
    assert hanging.leave(PATIENCE) is True


def test_all_of_a_meeting_say_the_same_size(lone: kv.KeyValue) -> None:
    first = in_background(lambda: lone.meeting("round", 2, ttl=LONG).enter(PATIENCE))
    waiting(lone, "meeting:round", 1)
    with pytest.raises(kv.ClaimSizeError):
        lone.meeting("round", 3, ttl=LONG).enter(PATIENCE)
    with pytest.raises(ZeroDivisionError), lone.meeting("round", 2, ttl=LONG).enter(PATIENCE):
        _ = 1 // 0
    assert first().leave(PATIENCE) is True


# -- limits


def test_all_nodes_together_allow_what_is_allowed(stores: list[kv.KeyValue]) -> None:
    def use(store: kv.KeyValue) -> int:
        return sum(store.limit("api", 10, per=LONG, timeout=PATIENCE).allowed for _ in range(8))

    results = [in_background(lambda store=store: use(store)) for store in stores]  # type: ignore[misc]
    assert sum(result() for result in results) == 10
    limit = stores[0].limit("api", 10, per=LONG, timeout=PATIENCE)
    assert not limit.allowed
    assert limit.remaining == 0
    assert 0.0 < limit.retry_after <= LONG / 10
    assert 0.9 * LONG <= limit.reset <= LONG
    assert stores[0].namespace("b/").limit("api", 10, per=LONG, timeout=PATIENCE) == (True, 9, LONG / 10, 0.0)


def test_what_was_used_comes_back(lone: kv.KeyValue) -> None:
    assert lone.limit("api", 1, per=0.5).allowed
    limit = lone.limit("api", 1, per=0.5)
    if not limit.allowed:
        eventually(lambda: lone.limit("api", 1, per=0.5).allowed, "it to come back")


# -- what is written about them


def example_in(text: str, fence: str = "") -> str:
    """The first example of a docstring, or of a section of a page."""
    if fence:
        return text.split(fence, 1)[1].split("```", 1)[0]
    lines = inspect.cleandoc(text).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("    "))
    block = itertools.takewhile(lambda line: not line or line.startswith("    "), lines[start:])
    return textwrap.dedent("\n".join(block))


PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
WRITTEN = {
    "A queue": recipes.Queue,
    "A lease for keys": recipes.Lease,
    "A counter": recipes.Counter,
    "A gate": recipes.Barrier,
    "A meeting": recipes.Meeting,
    "A limit": recipes.Limit,
}


def run(example: str, store: kv.KeyValue) -> dict[str, Any]:
    seen: list[Any] = []
    given: dict[str, Any] = dict.fromkeys(
        ("migrate", "send", "serve", "work"), lambda *args, **named: seen.append(args)
    )
    known = {"store": store, "math": math, "kv": kv, "seen": seen, "print": lambda *args: seen.append(args), **given}
    exec(compile(example, "an example", "exec"), known)
    return known


@pytest.mark.parametrize("heading", WRITTEN)
def test_what_is_written_about_it_runs(heading: str, lone: kv.KeyValue, monkeypatch: pytest.MonkeyPatch) -> None:
    get, given = Queue.get, list[Item]()

    def get_soon(queue: Queue, timeout: float) -> Item | None:
        """There is one, and no other."""
        item = get(queue, timeout=min(timeout, 0.3) if given else PATIENCE)
        given[:] = [] if item is None else [item]
        return item

    monkeypatch.setattr(Queue, "get", get_soon)
    section = PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    examples = [example_in(WRITTEN[heading].__doc__ or ""), example_in(section, "```python\n")]
    for example in examples:
        assert 2 < len(example.strip().splitlines()) <= 7
        count = 3 if heading == "A meeting" else 1
        results = [in_background(lambda example=example: run(example, lone)) for _ in range(count)]  # type: ignore[misc]
        known = [result() for result in results]
        if heading == "A limit":
            assert known[0]["view"]("me")[0] == 200
        else:
            assert known[0]["seen"], "it does something"


# -- names


def test_names_of_all_recipes_are_below_their_namespace(lone: kv.KeyValue) -> None:
    below = lone.namespace("app/")
    below.queue("q").put(b"1")
    below.counter("n").incr()
    below.barrier("b").close()
    with below.lease(LONG) as lease:
        below.set("k", b"", lease=lease)
        assert list(lone.list()) == ["app/barrier:b", "app/counter:n", "app/k"]
    assert lone.items("queue:q") == (0, 0)
    assert lone.items("app/queue:q") == below.items("queue:q") == (1, 0)
    with taken(below.queue("q", ttl=LONG)) as item:
        assert item.name.startswith("app/queue:q/")
        below.transaction([kv.if_held(item), kv.set("done", b"")])
    assert len(below.queue("q")) == 0
