"""The store for coroutines: what `KeyValue` does, without a wait on the event loop.

Each call is begun by a thread of `raftsvc.aio`, on the store that this is of, and awaited; here is no knowledge of the
cluster.  A write takes no thread while it is on its way, unless the store is a connected client's.  What is held (a
lock, the lead) is let go of if nobody awaits it any more once it is granted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any

from raftsvc.aio import begin_ending, begin_wait, call, outcome
from raftsvc.errors import NodeFailedError, OutcomeUnknown, OverloadedError, ReadTimeoutError, Rejected
from raftsvc.kv import instructions
from raftsvc.kv.events import Event
from raftsvc.kv.instructions import Condition, Leased, Operation
from raftsvc.kv.leases import Hold, Holder, LostError, as_waited, checked_units, not_had
from raftsvc.kv.pages import Value
from raftsvc.results import Applied
from raftsvc.timeouts import check_timeout

_RELEASE_SECONDS = 5.0
_START_SECONDS = 5.0
_LOOK_SECONDS = 30.0


class AsyncKeyValue:
    """A store whose methods are awaited.  Made by `KeyValue.aio`; of any loop, and of several.

        await store.aio.set("a", b"1")

    Arguments, results and errors are those of the method of the same name of `KeyValue`, and NotApplied where no thread
    was free for `timeout` seconds.  Of a write whose await was cancelled nothing is known: it may have been applied,
    or may yet be; give it a `timeout` to be told.
    """

    def __init__(
        self,
        store: Any,
        perform: Callable[..., Any],
        claim: Callable[..., Hold | None],
        checked: Callable[[str, str, float, bytes | None], str],
    ) -> None:
        """Of `store`.

        perform: given operations returns two functions: what begins the write, given a timeout, and returns what
                 `KeyValue.perform` does, or a future of it; and what tells the meaning of the Rejected that it raises.
        claim:   as `KeyValue.claim`, after a function that is given what gives the attempt up.
        checked: given a kind of claims, a name, a ttl and data returns the name, or raises what says that one of them
                 makes no sense.
        """
        self._store = store
        self._perform = perform
        self._claim = claim
        self._checked = checked

    def namespace(self, prefix: str) -> AsyncKeyValue:
        """As `KeyValue.namespace`."""
        below: AsyncKeyValue = self._store.namespace(prefix).aio
        return below

    async def get(self, key: str, timeout: float = 5.0, *, max_age: float | None = None) -> Value | None:
        """As `KeyValue.get`."""
        return await self._read(partial(self._store.get, key, max_age=max_age), timeout)  # type: ignore[no-any-return]

    async def list(self, prefix: str = "", timeout: float = 5.0, **which: Any) -> dict[str, Value]:
        """As `KeyValue.list`.  which: `limit`, `after`, `max_age`, `max_bytes`."""
        return await self._read(partial(self._store.list, prefix, **which), timeout)  # type: ignore[no-any-return]

    async def set(
        self,
        key: str,
        value: bytes | bytearray | memoryview,
        *conditions: Condition,
        ttl: float | None = None,
        lease: Leased | None = None,
        timeout: float = 10.0,
    ) -> int:
        """As `KeyValue.set`."""
        effect = instructions.set(key, value, ttl, lease)
        return (await self._write([*instructions.only_conditions(conditions), effect], timeout)).index

    async def touch(self, key: str, ttl: float | None, *conditions: Condition, timeout: float = 10.0) -> bool:
        """As `KeyValue.touch`."""
        effect = instructions.touch(key, ttl)
        return bool((await self._write([*instructions.only_conditions(conditions), effect], timeout)).answer)

    async def incr(
        self, key: str, delta: int = 1, initial: int = 0, ttl: float | None = None, timeout: float = 10.0
    ) -> int:
        """As `KeyValue.incr`."""
        answer = (await self._write([instructions.incr(key, delta, initial, ttl)], timeout)).answer
        assert isinstance(answer, int), "the cluster keeps an int"
        return answer

    async def delete(self, key: str, *conditions: Condition, timeout: float = 10.0) -> bool:
        """As `KeyValue.delete`."""
        effect = instructions.delete(key)
        return bool((await self._write([*instructions.only_conditions(conditions), effect], timeout)).answer)

    async def transaction(self, operations: Iterable[Operation], timeout: float = 10.0) -> int:
        """As `KeyValue.transaction`."""
        return (await self._write(operations, timeout)).index

    def watch(self, prefix: str = "", after: int | str | None = None, *, max_age: float | None = None) -> AsyncWatch:
        """As `KeyValue.watch`: `async with store.aio.watch("jobs/") as changes: async for event in changes: ...`."""
        return AsyncWatch(partial(self._store.watch, prefix, after, max_age=max_age))

    def lock(self, name: str, ttl: float = 15.0, data: bytes | None = None) -> AsyncLock:
        """The lock of `KeyValue.lock`, which whoever waits in a thread and who does in a coroutine share."""
        name = self._checked("lock", name, ttl, data)
        return AsyncLock(partial(self._claim, ttl=ttl, data=data), f"lock:{name}")

    def semaphore(self, name: str, size: int, ttl: float = 15.0, data: bytes | None = None) -> AsyncLock:
        """That of `KeyValue.semaphore`, likewise."""
        name = self._checked("semaphore", name, ttl, data)
        size, _ = checked_units(size, 1)
        return AsyncLock(partial(self._claim, ttl=ttl, data=data, size=size), f"semaphore:{name}")

    @asynccontextmanager
    async def lead(self, name: str, ttl: float = 15.0, data: bytes | None = None) -> AsyncIterator[AsyncLock]:
        """Lead the election of `KeyValue.election` within an `async with`, and resign at its end; wait until then."""
        name = self._checked("election", name, ttl, data)
        leading = AsyncLock(partial(self._claim, ttl=ttl, data=data), f"election:{name}")
        async with leading:
            yield leading

    async def _read(self, function: Callable[..., Any], timeout: float) -> Any:
        return await call(lambda left: function(timeout=left), timeout, ReadTimeoutError)

    async def _write(self, operations: Iterable[Operation], timeout: float) -> Applied:
        begin, meaning_of = self._perform(operations)
        try:
            applied: Applied = await call(begin, timeout, OutcomeUnknown)
        except Rejected as rejected:
            error = meaning_of(rejected)
            if error is None:
                raise
        else:
            return applied
        raise error


class AsyncLock(Holder):
    """A lock of the whole cluster, for one task at a time.  Made by `AsyncKeyValue.lock`, and by its like.

        async with store.aio.lock("orders", ttl=15) as lock:
            await charge(order, fence=lock.fence)

    What is certain, and `fence`, is as with `raftsvc.recipes.Lock`.  Waiting takes a thread, and a process has 256.
    If the task is cancelled while it waits it gives up its place, and what was granted meanwhile is let go of.
    """

    def __init__(self, claim: Callable[..., Hold | None], given: str) -> None:
        super().__init__(given)
        self._claim = claim
        self._is_asked_for = False

    async def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """Hold it; False if it was not to be had: at once unless `blocking`, else within `timeout` seconds, None: ever.

        timeout: 0: as unless `blocking`, which takes as long as the cluster's answer.

        Raises what `KeyValue.claim` raises; LostError if it was acquired by this object, lost, and not released since;
        RuntimeError if this object holds it, or asks for it, already.
        """
        blocking, timeout = as_waited(blocking, timeout)
        former = self._hold
        if former is not None and former.lost.is_set():
            raise LostError(former.name, "it was lost, and has to be released before it is acquired again")
        if former is not None or self._is_asked_for:
            raise RuntimeError(f"{self.given!r} is held or asked for through this object: make one for each task")
        attempt = _Attempt()
        self._is_asked_for = True
        try:
            claim = partial(self._claim, attempt.begin, self.given, blocking=blocking, timeout=timeout)
            self._hold = await attempt.outcome(begin_wait(claim))
        finally:
            self._is_asked_for = False
        return self._hold is not None

    async def release(self, timeout: float = _RELEASE_SECONDS) -> None:
        """Let go of it.  Raises LostError if it was lost before, or is not held: another may have worked beside this.

        However it ends, cancelled or refused, it is let go of: what cannot be told to the cluster now is told later, at
        the latest by its TTL.
        """
        hold, self._hold = self._hold, None
        if hold is None:
            raise LostError(self.given, "it was not acquired")
        was_held = await outcome(_begin_release(hold, timeout), timeout, OutcomeUnknown)
        if not was_held:
            raise LostError(hold.name)

    async def __aenter__(self) -> AsyncLock:
        """Hold it, for however long that takes, or `within` some time."""
        if not await self.acquire(timeout=self.with_timeout):
            raise not_had(self)
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        """Let go of it; raises LostError if it was lost before, unless something else was raised."""
        try:
            await self.release()
        except LostError:
            if kind is None:
                raise


class _Attempt:
    """One to hold something, which may be given up before it is begun, while it waits, or as it is granted."""

    def __init__(self) -> None:
        self._is_given_up = False
        self._give_up: Callable[[], None] | None = None

    def begin(self, give_up: Callable[[], None]) -> None:
        """The thread that asks says how it is told that nobody wants it any more."""
        self._give_up = give_up
        if self._is_given_up:
            give_up()

    async def outcome(self, future: Future[Hold | None]) -> Hold | None:
        """What it has; where that is not awaited to its end nothing is held."""
        try:
            hold: Hold | None = await outcome(future, None, OutcomeUnknown)
        except BaseException:
            self._is_given_up = True
            if self._give_up is not None:
                self._give_up()
            future.add_done_callback(_release_unwanted)
            raise
        return hold


def _release_unwanted(future: Future[Hold | None]) -> None:
    """Called where it is done: by its thread, or on a loop, neither of which is to wait for an answer."""
    if not future.cancelled() and future.exception() is None:
        hold = future.result()
        if hold is not None:
            with suppress(OverloadedError):
                _begin_release(hold, _RELEASE_SECONDS)


def _begin_release(hold: Hold, timeout: float) -> Future[Any]:
    """By a daemon thread, which does it also if nobody awaits that."""
    release: Future[Any] = Future()
    release.set_running_or_notify_cancel()  # so it cannot be cancelled before it was begun

    def let_go() -> None:
        try:
            release.set_result(hold.release(timeout))
        except BaseException as error:  # it comes to whoever awaits it
            release.set_exception(error)

    try:
        begin_ending(let_go)
    except OverloadedError:  # no thread can be started: it is not renewed any more, and runs out
        hold.forget()
        raise
    return release


class AsyncWatch:
    """An iterator over `kv.Event` that is awaited; for one task at a time, which RuntimeError says to another.

    Made by `AsyncKeyValue.watch`.

    Takes a thread while it waits, and a process has 256.  If an await is cancelled the event is not lost: it is the
    next one's.  Raises what `raftsvc.kv.Watch` raises.  To be closed, as by `async with`.
    """

    def __init__(self, begin: Callable[..., Any]) -> None:
        self._begin = begin
        self._watch: Any = None
        self._events: deque[Event] = deque()
        self._index: int | None = None
        self._asked: Future[Any] | None = None
        self._is_awaited = False
        self._is_closed = False

    async def start(self, timeout: float = _START_SECONDS) -> None:
        """Begin, if it was not: what happens from now on is shown.  Raises what `KeyValue.watch` raises."""
        check_timeout(timeout)
        with self._alone():
            await self._start(timeout)

    async def _start(self, timeout: float) -> None:
        if self._watch is None and not self._is_closed:
            self._watch = await call(lambda left: self._begin(timeout=left), timeout, ReadTimeoutError)
            self._index = self._watch.index
            self._end_if_closed()  # meanwhile

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Two tasks would be given the same events."""
        if self._is_awaited:
            raise RuntimeError("another task awaits an event of this watch: make one for each task")
        self._is_awaited = True
        try:
            yield
        finally:
            self._is_awaited = False

    @property
    def index(self) -> int | None:
        """What `watch` takes as `after`: all events up to this entry were given.  None: it has not begun."""
        return self._index

    def __aiter__(self) -> AsyncWatch:
        return self

    async def __anext__(self) -> Event:
        with self._alone():
            await self._start(_START_SECONDS)
            while not self._events:
                if self._is_closed:
                    raise StopAsyncIteration
                self._events.extend(await self._next())
            event = self._events.popleft()
            if not self._events:
                self._index = event.index
            return event

    async def _next(self) -> Iterable[Event]:
        """The events of the next entry that has some, none if there was none for a while.

        If this is cancelled, what was asked for is the next one's.
        """
        asked = self._asked
        if asked is None:
            asked = self._asked = begin_wait(partial(self._watch.next, _LOOK_SECONDS))
        try:
            found: Iterable[Event] = await outcome(asked, None, NodeFailedError)
        except BaseException:
            if asked.cancelled() or (asked.done() and asked.exception() is not None):
                self._asked = None
            raise
        self._asked = None
        return found

    def close(self) -> None:
        """End it: whoever awaits its next event is told that there is none."""
        self._is_closed = True
        self._end_if_closed()

    def _end_if_closed(self) -> None:
        if self._is_closed and self._watch is not None:
            with suppress(OverloadedError):  # no thread can be started; what waits looks now and then
                begin_ending(self._watch.close)

    async def __aenter__(self) -> AsyncWatch:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
