"""Coroutines on a node: nothing waits on the loop, and what nobody awaits any more leaves nothing behind."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import raftsvc
from raftsvc import aio, kv
from raftsvc.kv import KeyValue, KeyValueState
from raftsvc.kv.instructions import encode
from tests.attached.hosts import ROOT
from tests.service.harness import PATIENCE, Cluster, FaultyFiles, eventually, free_address


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("aio") / "n"


@pytest.fixture(scope="module")
def disk() -> FaultyFiles:
    return FaultyFiles()


@pytest.fixture(scope="module")
def store(directory: Path, disk: FaultyFiles) -> Iterator[KeyValue]:
    """Of a cluster of one, which all tests that write what is theirs share."""
    state = KeyValueState()
    addr = free_address()
    service = raftsvc.start(addr, directory, state=state, listen=addr, files=disk)
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
        assert await below.transaction([kv.if_not_exists("b"), kv.set("b", b"two")]) > version
        with pytest.raises(kv.ConflictError):
            await below.set("a", b"3", kv.if_not_exists("a"))
        assert list(await below.list(limit=2)) == ["a", "b"]
        assert await below.delete("a") and not await below.delete("a")
        with pytest.raises(kv.CounterError, match="'b' was not counted"):
            await below.transaction([kv.incr("n"), kv.incr("b")])
        with pytest.raises(TypeError):
            await below.set(1, b"")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="no condition"):
            await below.delete("a", kv.delete("b"))  # type: ignore[arg-type]
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


async def all_begun(*calls: Awaitable[Any]) -> list[asyncio.Future[Any]]:
    """All of them on their way, each as far as it comes without the loop."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    await asyncio.sleep(0)
    await until(lambda: not aio._crews.calls._calls.qsize() and not aio._crews.waits._calls.qsize())
    return tasks


def test_a_loop_goes_on_while_the_disk_hangs(store: KeyValue, disk: FaultyFiles) -> None:
    """Nobody but the loop lets the disk go on: if a call kept the loop waiting, all would end by their timeouts."""
    below = store.aio.namespace("hangs/")
    service = store.service.aio
    limited = {"timeout": PATIENCE / 2}

    async def main() -> None:
        held = below.lock("held")
        await held.acquire()
        async with below.watch() as changes:
            version = await below.set("a", b"0")
            assert (await changes.__anext__()).index == version
            disk.gate.clear()
            try:
                writes = await all_begun(
                    below.set("a", b"1", **limited),
                    below.touch("a", 60, **limited),
                    below.incr("n", **limited),
                    below.delete("b", **limited),
                    below.transaction([kv.set("c", b"1")], **limited),
                    service.propose(encode([kv.set("d", b"1")]), **limited),
                    service.exec(encode([kv.set("e", b"1")]), **limited),
                    service.wait_applied(version + 1, **limited),
                    below.lock("other").acquire(**limited),
                    held.release(**limited),
                    changes.__anext__(),
                )
                reads = await all_begun(service.wait_read(**limited), below.get("a", **limited), below.list(**limited))
                assert not any(task.done() for task in writes)
            finally:
                disk.gate.set()
            found = await asyncio.gather(*writes, *reads)
        assert found[1:4] == [True, 1, False] and found[8] is True

    run(main())


def test_a_loop_goes_on_while_there_is_no_quorum(cluster: Cluster) -> None:
    """Nobody but the loop brings the others back."""
    first, second = cluster.form(2)
    cluster.cut(first, [second])
    service = first.service.aio
    limited = {"timeout": PATIENCE / 2}

    async def main() -> None:
        tasks = await all_begun(service.wait_read(**limited), service.exec(b"x", **limited))
        cluster.heal()
        await asyncio.gather(*tasks)

    run(main())


def test_each_call_ends_by_its_timeout_while_the_disk_hangs(store: KeyValue, disk: FaultyFiles) -> None:
    async def main() -> None:
        disk.gate.clear()
        try:
            for call in (store.aio.set("late", b"1", timeout=0.1), store.service.aio.exec(b"x", 0.1)):
                with pytest.raises((raftsvc.OutcomeUnknown, raftsvc.NotApplied)):
                    await call
        finally:
            disk.gate.set()

    run(main())


class Silent:
    """A Service that answers no write; of a read it says at once that it may be done."""

    def __init__(self) -> None:
        self.begun: list[Future[Any]] = []

    def propose(self, instruction: bytes, timeout: float = 10.0) -> Any:
        raise AssertionError("this takes a thread")

    def propose_async(self, instruction: bytes, timeout: float = 10.0) -> Future[Any]:
        self.begun.append(Future())
        return self.begun[-1]

    def wait_read(self, timeout: float = 5.0) -> None:
        pass


def test_writes_that_are_not_answered_keep_no_read_waiting() -> None:
    service = Silent()
    store = KeyValue(service, KeyValueState())

    async def main() -> None:
        writes = [asyncio.ensure_future(store.aio.set("a", b"1")) for _ in range(2 * aio.MAX_THREADS)]
        await until(lambda: len(service.begun) == len(writes))
        assert await store.aio.get("a") is None
        for future in service.begun:
            future.set_exception(raftsvc.NotApplied("nobody leads"))
        for write in writes:
            with pytest.raises(raftsvc.NotApplied):
                await write

    run(main())


def test_what_is_known_as_the_time_is_over_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    future: Future[str] = Future()
    future.set_running_or_notify_cancel()

    async def be_slow(*_: object, **__: object) -> None:
        future.set_result("known")  # and the loop has not heard of it yet

    monkeypatch.setattr(asyncio, "wait", be_slow)
    assert asyncio.run(aio.outcome(future, 0.0, raftsvc.OutcomeUnknown)) == "known"


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

        hanging = asyncio.ensure_future(aio.call(hang, 3.0, raftsvc.OutcomeUnknown))
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


def test_what_is_put_where_hardly_a_thread_can_be_started_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio, "_crews", aio._Crews())
    start = threading.Thread.start
    is_short = True

    def refuse(thread: threading.Thread) -> None:
        if is_short and thread.name == aio._THREADS:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    leave = threading.Event()
    assert aio.begin_wait(lambda: "called").result(PATIENCE) == "called", "by the one that could be"
    waiting = aio.begin_wait(partial(leave.wait, PATIENCE))
    eventually(waiting.running, "it waits")
    is_short = False
    assert aio.begin_wait(lambda: "called").result(PATIENCE) == "called", "beside the one that waits"
    leave.set()
    assert waiting.result(PATIENCE)


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


@pytest.mark.parametrize("name", ["", None, 5, b"x", "x" * 2000, "\ud800"])
def test_a_name_that_is_none_is_refused_as_threads_are(store: KeyValue, name: Any) -> None:
    async def lead() -> None:
        async with store.aio.lead(name):
            raise AssertionError("it has no name")

    with pytest.raises((TypeError, ValueError)) as refused:
        store.lock(name)
    for call in (
        lambda: store.aio.lock(name),
        lambda: store.aio.semaphore(name, 2),
        lambda: asyncio.run(lead()),
    ):
        with pytest.raises(type(refused.value)):
            call()
    for terms in ({"ttl": 0.1}, {"data": "text"}):
        with pytest.raises(raftsvc.ConfigurationError):
            store.aio.lock("x", **terms)  # type: ignore[arg-type]
    with pytest.raises(raftsvc.ConfigurationError):
        store.aio.semaphore("x", 0)


def test_a_with_of_a_task_waits_no_longer_than_it_said(store: KeyValue) -> None:
    async def main() -> None:
        async with store.aio.lock("within").within(PATIENCE):
            with pytest.raises(raftsvc.NotApplied, match="was not to be had within 2 s"):
                async with store.aio.lock("within").within(2.0):
                    raise AssertionError("it is held")
        async with store.aio.lock("within").within(PATIENCE) as lock:
            assert lock.owned()

    run(main())


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


def test_a_watch_is_for_one_task_at_a_time_and_may_be_closed_as_it_begins(store: KeyValue) -> None:
    async def main() -> None:
        async with store.aio.watch("one/") as changes:
            waiting = asyncio.ensure_future(changes.__anext__())
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="one for each task"):
                await changes.__anext__()
            await store.aio.set("one/a", b"1")
            assert (await waiting).key == "one/a"
        beginning = asyncio.ensure_future((changes := store.aio.watch()).start())
        await asyncio.sleep(0)
        changes.close()
        await beginning
        await until(lambda: changes._watch is None or changes._watch._is_closed)
        assert [event async for event in changes] == []

    run(main())


def test_a_lock_that_was_lost_says_so_and_is_not_acquired_before_it_is_released(store: KeyValue) -> None:
    async def main() -> None:
        lock = store.aio.lock("lost")
        assert await lock.acquire()
        lock.lost.set()
        assert not lock.owned()
        for call in (lock.acquire(), lock.release()):
            with pytest.raises(kv.LostError):
                await call
        assert await lock.acquire(timeout=PATIENCE)
        await lock.release()

    run(main())


BESIDE = """
import asyncio, os, sys
import raftsvc
from raftsvc import kv

async def main(store, is_here):
    version = await store.aio.set("beside", b"1", kv.if_not_exists("beside"), timeout=60)
    value = await store.aio.get("beside", 60)
    assert (value.data, value.version) == (b"1", version)
    try:
        await store.aio.delete("beside", kv.if_not_exists("beside"))
    except kv.ConflictError as error:
        assert error.key == "beside"
    assert await store.aio.incr("counted", 2, timeout=60) == 2
    async with store.aio.lock("beside") as lock:
        await store.aio.transaction([kv.if_held(lock), kv.delete("counted")], 60)
        assert not await store.aio.lock("beside").acquire(blocking=False)
        waiting = asyncio.ensure_future(store.aio.lock("beside").acquire())
        await asyncio.sleep(0)
        waiting.cancel()
    if is_here:
        await store.service.aio.wait_read(60)
        await store.service.aio.wait_applied(version, 60)
        async with store.aio.watch("beside", after=version - 1) as changes:
            assert (await changes.__anext__()).index == version
    else:
        try:
            await store.aio.watch("beside").start()
        except raftsvc.ConfigurationError:
            pass
    assert await store.aio.delete("beside", timeout=60)
"""


def test_it_is_alike_in_a_client_and_in_a_process_beside_the_owner(store: KeyValue, directory: Path) -> None:
    there: dict[str, Any] = {}
    exec(BESIDE, there)
    client = raftsvc.connect(directory)
    run(there["main"](client, False))
    client.service.close()
    addr = store.service.status()["addr"]
    begin = (
        "state = kv.KeyValueState()\n"
        "service = raftsvc.start(sys.argv[1], sys.argv[2], state=state, listen=sys.argv[1])\n"
        "assert service.status()['process']['owner_pid'] != os.getpid()\n"
        "asyncio.run(main(kv.KeyValue(service, state), True))\n"
        "service.stop()\n"
    )
    command = [sys.executable, "-c", BESIDE + begin, str(addr), str(directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr


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
