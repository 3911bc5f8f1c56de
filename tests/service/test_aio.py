"""Coroutines on a node: nothing waits on the loop, and what nobody awaits any more leaves nothing behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import raftsvc
from raftsvc import aio, kv
from raftsvc.kv import KeyValue, KeyValueState
from raftsvc.kv.instructions import encode
from tests.service.harness import PATIENCE, Cluster, eventually, free_address


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyValue]:
    """Of a cluster of one, which all tests that write what is theirs share."""
    state = KeyValueState()
    addr = free_address()
    service = raftsvc.start(addr, tmp_path_factory.mktemp("aio") / "n", state=state, listen=addr)
    service.init()
    yield KeyValue(service, state)
    service.stop()


async def until(condition: Callable[[], Any]) -> None:
    async def look() -> None:
        while not condition():
            await asyncio.sleep(0.005)

    await asyncio.wait_for(look(), PATIENCE)


def run(coroutine: Awaitable[Any]) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(coroutine, 2 * PATIENCE)

    return asyncio.run(bounded())


def test_what_a_coroutine_writes_is_read_by_coroutines_and_threads(store: KeyValue) -> None:
    async def main() -> None:
        below = store.aio.namespace("all/")
        version = await below.set("a", b"1")
        value = await below.get("a")
        assert value is not None and (value.data, value.version) == (b"1", version)
        assert await below.incr("n", 2) == 2
        assert await below.touch("n", 60) and not await below.touch("none", 60)
        assert await below.transaction([kv.if_not_exists("b"), kv.set("b", b"2")]) > version
        with pytest.raises(kv.ConflictError):
            await below.set("a", b"3", kv.if_not_exists("a"))
        assert list(await below.list(limit=2)) == ["a", "b"]
        assert await below.delete("a") and not await below.delete("a")
        with pytest.raises(TypeError):
            await below.set(1, b"")  # type: ignore[arg-type]
        await store.service.aio.wait_read()

    run(main())
    assert list(store.list("all/")) == ["all/b", "all/n"]


def test_several_loops_use_a_store_at_once(store: KeyValue) -> None:
    async def count() -> None:
        await asyncio.gather(*(store.aio.incr("loops") for _ in range(40)))

    threads = [threading.Thread(target=run, args=(count(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert store.get_json("loops") == 120


def test_more_than_there_are_threads_are_on_their_way(store: KeyValue) -> None:
    async def main() -> None:
        several = [store.service.aio.propose(encode([kv.incr("many")])) for _ in range(10 * aio.MAX_THREADS)]
        answers = {applied.answer for applied in await asyncio.gather(*several)}
        assert answers == set(range(1, 10 * aio.MAX_THREADS + 1))

    run(main())


def test_a_loop_ticks_while_the_disk_hangs_and_each_call_ends_by_its_timeout(cluster: Cluster) -> None:
    node = cluster.form(1)[0]

    async def main() -> None:
        node.files.gate.clear()
        calls = [asyncio.ensure_future(node.service.aio.propose(b"x", 0.5)) for _ in range(3)]
        ticks = 0
        while not all(call.done() for call in calls):
            await asyncio.sleep(0)
            ticks += 1
        for call in calls:
            with pytest.raises((raftsvc.OutcomeUnknown, raftsvc.NotApplied)):
                await call
        assert ticks > 100
        node.files.gate.set()

    run(main())


def test_a_loop_ticks_while_there_is_no_quorum(cluster: Cluster) -> None:
    first, second = cluster.form(2)
    cluster.cut(first, [second])

    async def main() -> None:
        service = first.service.aio
        calls = [asyncio.ensure_future(call) for call in (service.wait_read(0.5), service.exec(b"x", 0.5))]
        ticks = 0
        while not all(call.done() for call in calls):
            await asyncio.sleep(0)
            ticks += 1
        for call in calls:
            with pytest.raises(raftsvc.RaftError):
                await call
        assert ticks > 100

    run(main())


def test_what_was_not_begun_in_time_was_certainly_not_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio, "GRACE_SECONDS", 0.0)
    crews = aio._Crews()
    crews.calls = aio.Crew(1, 2)
    monkeypatch.setattr(aio, "_crews", crews)
    leave = threading.Event()
    done: list[float] = []

    async def main() -> None:
        entered = asyncio.Event()
        loop = asyncio.get_running_loop()

        def hang(left: float) -> None:
            loop.call_soon_threadsafe(entered.set)
            leave.wait(PATIENCE)

        hanging = asyncio.ensure_future(aio.call(hang, 0.2, raftsvc.OutcomeUnknown))
        await entered.wait()
        queued = asyncio.ensure_future(aio.call(done.append, 0.05, raftsvc.OutcomeUnknown))
        await asyncio.sleep(0)
        with pytest.raises(raftsvc.OverloadedError):
            await aio.call(done.append, 1.0, raftsvc.OutcomeUnknown)
        with pytest.raises(raftsvc.NotApplied):
            await queued
        with pytest.raises(raftsvc.OutcomeUnknown):
            await hanging
        leave.set()
        assert await aio.call(lambda left: "next", PATIENCE, raftsvc.OutcomeUnknown) == "next"

    run(main())
    assert not done


def test_a_lock_is_exclusive_between_tasks_and_threads_and_its_fence_rises(store: KeyValue) -> None:
    async def main() -> None:
        fences = []
        inside = 0

        async def work() -> None:
            nonlocal inside
            async with store.aio.lock("tasks") as lock:
                inside += 1
                assert inside == 1
                await store.aio.transaction([kv.if_held(lock), kv.set("last", b"%d" % lock.fence)])
                assert not await store.aio.lock("tasks").acquire(blocking=False)
                fences.append(lock.fence)
                inside -= 1

        await asyncio.gather(*(work() for _ in range(5)))
        assert fences == sorted(set(fences))
        with pytest.raises(kv.LostError):
            await store.aio.lock("tasks").release()

    run(main())
    with store.lock("tasks") as lock:
        assert lock.fence


def test_a_task_that_is_cancelled_while_it_waits_for_a_lock_gives_up_its_place(store: KeyValue) -> None:
    async def main() -> None:
        async with store.aio.lock("place"):
            waiting = asyncio.ensure_future(store.aio.lock("place").acquire())
            await until(lambda: len(store.claims("lock:place")) == 2)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await until(lambda: len(store.claims("lock:place")) == 1)
        assert not store.claims("lock:place")

    run(main())


def test_a_lock_that_is_granted_to_nobody_is_let_go_of(store: KeyValue) -> None:
    async def cancelled() -> None:
        for seconds in (0.0, 0.001, 0.002, 0.005, 0.01):
            lock = store.aio.lock("nobody")
            waiting = asyncio.ensure_future(lock.acquire())
            await asyncio.sleep(seconds)
            waiting.cancel()
            await asyncio.wait({waiting})
            if not waiting.cancelled() and waiting.result():  # it was quicker
                await lock.release()

    run(cancelled())
    taken = store.lock("nobody")
    eventually(lambda: not store.claims("lock:nobody") or None, "nobody has it")
    assert taken.acquire(timeout=PATIENCE)
    taken.release()


def test_what_a_closed_loop_waited_for_is_let_go_of(store: KeyValue) -> None:
    held = store.lock("closed")
    assert held.acquire()
    loop = asyncio.new_event_loop()
    waiting = loop.create_task(store.aio.lock("closed").acquire())
    loop.run_until_complete(until(lambda: len(store.claims("lock:closed")) == 2))
    waiting.get_coro().close()  # as is done when it is collected
    loop.close()
    eventually(lambda: len(store.claims("lock:closed")) == 1, "it gave up its place")
    held.release()


def test_a_call_of_a_loop_that_was_closed_goes_on_and_disturbs_nobody(
    store: KeyValue, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.new_event_loop()
    begun = loop.create_task(store.aio.set("late", b"1"))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    eventually(lambda: store.get("late"), "it was written")
    begun.get_coro().close()
    assert not [record for record in caplog.records if record.name == "concurrent.futures"]


def test_a_watch_is_iterated_and_a_cancelled_wait_loses_no_event(store: KeyValue) -> None:
    async def main() -> None:
        async with store.aio.watch("watched/") as changes:
            waiting = asyncio.ensure_future(changes.__anext__())
            await asyncio.sleep(0.01)
            waiting.cancel()
            await asyncio.wait({waiting})
            await store.aio.transaction([kv.set("watched/a", b"1"), kv.set("watched/b", b"2")])
            await store.aio.delete("watched/a")
            found = [await changes.__anext__() for _ in range(3)]
            assert [(event.kind, event.key) for event in found] == [
                ("set", "watched/a"),
                ("set", "watched/b"),
                ("delete", "watched/a"),
            ]
            assert changes.index == found[-1].index
            waiting = asyncio.ensure_future(changes.__anext__())
            await asyncio.sleep(0.01)
            changes.close()
            with pytest.raises(StopAsyncIteration):
                await waiting

    run(main())


def test_leading_is_shared_with_elections_of_threads(store: KeyValue) -> None:
    async def main() -> None:
        async with store.aio.lead("cron", data=b"here") as leading:
            assert leading.owned() and store.election("cron").leader() == b"here"
        assert store.election("cron").leader() is None

    run(main())


def test_more_waits_than_there_may_be_are_refused_and_what_is_held_is_let_go_of(
    store: KeyValue, monkeypatch: pytest.MonkeyPatch
) -> None:
    crews = aio._Crews()
    crews.waits = aio.Crew(1, 1)
    monkeypatch.setattr(aio, "_crews", crews)

    async def main() -> None:
        async with store.aio.lock("few"):
            waiting = asyncio.ensure_future(store.aio.lock("few").acquire())
            await until(lambda: len(store.claims("lock:few")) == 2)
            with pytest.raises(raftsvc.OverloadedError):
                await store.aio.lock("few").acquire()
        assert await waiting

    run(main())
    eventually(lambda: store.claims("lock:few"), "it is held")


def test_after_the_node_stopped_each_call_says_so(tmp_path: Path) -> None:
    state = KeyValueState()
    addr = free_address()
    service = raftsvc.start(addr, tmp_path / "n", state=state, listen=addr)
    service.init()
    stopped = KeyValue(service, state)
    service.stop()

    async def main() -> None:
        for call in (stopped.aio.get("a"), stopped.aio.set("a", b""), stopped.aio.lock("a").acquire()):
            with pytest.raises(raftsvc.StoppedError):
                await call

    run(main())
