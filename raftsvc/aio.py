"""For event loops, which may not wait: what blocks is called by threads, and a coroutine awaits it.

Nothing that waits for a disk, a peer or a lock of the library's is called on the loop: a call is put in a queue, and
daemon threads of this module take it from there.  Short calls share some threads, and queue while all of these wait;
what may take long, such as waiting for a lock, has a thread of its own for as long.  Of both there are so many at
once in a process and no more, whatever loops it has; one more is refused at once.

What is cancelled (asyncio.CancelledError) is not called if it was not begun, and certainly took no effect.  What was
begun goes on to its own deadline, and nobody is told how it ended: of a write nothing is known.  So it is if a loop is
closed meanwhile.  A process that was forked has threads of its own here.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from _thread import start_new_thread
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from raftsvc.errors import NotApplied, OutcomeUnknown, OverloadedError, RaftError, ReadTimeoutError
from raftsvc.timeouts import check_timeout

T = TypeVar("T")

MAX_THREADS: Final = 16
"""Threads that make the short calls of a process."""
MAX_CALLS: Final = 1000
"""Short calls at once, those in the queue included."""
MAX_WAITS: Final = 256
"""Waits for locks, elections and changes at once, each of which takes a thread."""
GRACE_SECONDS: Final = 5.0
"""So much longer than its timeout is awaited what was begun: its own deadline comes first, unless a disk hangs."""
_IDLE_SECONDS: Final = 60.0
_THREADS: Final = "raftsvc.aio"
"""After this module: they are the process's, and no Service's, which ends its own."""


class Crew:
    """Daemon threads of one process that call what others may not wait for.  Thread-safe.

    The thread of a loop puts into a queue, and takes no lock that is held for longer than a moment.
    """

    def __init__(self, max_threads: int, max_calls: int) -> None:
        self._max_threads = max_threads
        self._max_calls = max_calls
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._unfinished: set[Future[Any]] = set()
        self._lock = threading.Lock()  # guards both below, among the threads of the crew
        self._count = 0
        self._waiting = 0
        self._has_begun = False

    def submit(self, function: Callable[[], Any]) -> Future[Any]:
        """Have it called; if it returns a future, what that has is the outcome.

        Raises OverloadedError if there are too many already, or no thread can be started.
        """
        if len(self._unfinished) >= self._max_calls:
            raise OverloadedError(f"{self._max_calls} such calls of this process are on their way already")
        future: Future[Any] = Future()
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        self._calls.put((future, function))
        if not self._has_begun:
            self._has_begun = True
            try:
                start_new_thread(self._begin, ())
            except RuntimeError as error:
                self._has_begun = False
                if self._count:  # those there are go on
                    return future
                future.cancel()
                raise OverloadedError(f"no thread can be started: {error}") from error
        return future

    def _begin(self) -> None:
        """In a thread, which serves by itself if there can be none beside it: nobody else would for what was put."""
        if not self._start_another():
            with self._lock:
                self._count += 1
                self._waiting += 1
            self._serve()

    def _start_another(self) -> bool:
        """Have a thread more, if there may be; whether there can."""
        with self._lock:
            if self._count >= self._max_threads:
                return True
            self._count += 1
            self._waiting += 1
        try:
            threading.Thread(target=self._serve, name=_THREADS, daemon=True).start()
        except RuntimeError:  # there can be no more now
            with self._lock:
                self._count -= 1
                self._waiting -= 1
            self._has_begun = False  # the next call tries again: those there are may wait for long
            return False
        return True

    def _serve(self) -> None:
        while True:
            try:
                future, function = self._calls.get(timeout=_IDLE_SECONDS)
            except Empty:
                with self._lock:
                    if self._waiting > 1:  # one stays, for nobody else would start it again
                        self._count -= 1
                        self._waiting -= 1
                        return
                continue
            with self._lock:
                self._waiting -= 1
                is_last = not self._waiting
            if is_last:
                self._start_another()
            if future.set_running_or_notify_cancel():
                _carry_out(future, function)
            del future, function
            with self._lock:
                self._waiting += 1


def _carry_out(future: Future[Any], function: Callable[[], Any]) -> None:
    try:
        result = function()
    except BaseException as error:  # it comes to whoever awaits it
        future.set_exception(error)
        return
    if isinstance(result, Future):
        result.add_done_callback(partial(_copy, future))
    else:
        future.set_result(result)


def _copy(future: Future[Any], done: Future[Any]) -> None:
    error = done.exception()
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(done.result())


class _Crews:
    """Those of one process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.calls = Crew(MAX_THREADS, MAX_CALLS)
        self.waits = Crew(MAX_WAITS, MAX_WAITS)
        self.endings = Crew(MAX_THREADS, sys.maxsize)  # what holds something is never refused to let go of it


_crews = _Crews()


def _crews_here() -> _Crews:
    """None of the parent's threads are in a forked child."""
    global _crews
    if _crews.pid != os.getpid():
        _crews = _Crews()
    return _crews


async def call(function: Callable[[float], Any], timeout: float, late: Callable[[str], RaftError]) -> Any:
    """Await what `function` returns, which is called elsewhere with the seconds that are left of `timeout`.

    late: makes the error that is raised if it was begun and does not return in time.

    Raises what it raises, NotApplied if it was not begun in time, OverloadedError.
    """
    check_timeout(timeout)
    ends_at = time.monotonic() + timeout
    future = _crews_here().calls.submit(lambda: function(max(ends_at - time.monotonic(), 0.0)))
    return await outcome(future, timeout, late)


def begin_wait(function: Callable[[], Any]) -> Future[Any]:
    """Have it called by a thread of its own, for it may take long.  Raises OverloadedError."""
    return _crews_here().waits.submit(function)


def begin_ending(function: Callable[[], Any]) -> None:
    """Have called what ends something, however many wait.  Raises OverloadedError if no thread can be started."""
    _crews_here().endings.submit(function)


async def outcome(future: Future[Any], timeout: float | None, late: Callable[[str], RaftError]) -> Any:
    """What `future` has, within `timeout` seconds, None: whenever.  Raises as `call`.

    If this is cancelled the future is, unless its call was begun.
    """
    loop = asyncio.get_running_loop()
    is_done: asyncio.Future[None] = loop.create_future()
    future.add_done_callback(partial(_wake, loop, is_done))
    try:
        await asyncio.wait({is_done}, timeout=None if timeout is None else timeout + GRACE_SECONDS)
        if future.cancel():
            raise NotApplied(f"no thread was free within {timeout:g} s, so nothing was begun")
        if not future.done():  # else it is known, be it that the loop was not told in time
            raise late(f"no answer {GRACE_SECONDS:g} s after {timeout:g} s were over: this machine, or its disk, hangs")
        return future.result()
    finally:
        future.cancel()


def _wake(loop: asyncio.AbstractEventLoop, is_done: asyncio.Future[None], _: object) -> None:
    with suppress(RuntimeError):  # the loop is closed, and nobody is told
        loop.call_soon_threadsafe(_note, is_done)


def _note(is_done: asyncio.Future[None]) -> None:
    if not is_done.done():
        is_done.set_result(None)


class AsyncService:
    """What a Service does, for coroutines.  Made by `Service.aio`; of any loop, and of several.

        applied = await service.aio.propose(b"...")

    Cancelling an await, as `asyncio.timeout` does, undoes nothing: a write that was begun may have been applied, or may
    yet be.  To be told what is known about it give it a `timeout`.
    """

    def __init__(self, service: Any) -> None:
        """service: has `propose_async`, `wait_read` and `wait_applied`."""
        self._service = service

    async def propose(self, instruction: bytes, timeout: float = 10.0) -> Any:
        """As `Service.propose`, which says what it returns and raises; takes no thread while it is on its way.

        Raises OverloadedError also where as many are on their way as `Service.propose_async` and this take, 1,000.
        """
        return await call(partial(self._service.propose_async, instruction), timeout, OutcomeUnknown)

    async def exec(self, instruction: bytes, timeout: float = 10.0) -> bool:
        """As `Service.exec`, which says what it raises; else as `propose`."""
        return bool((await self.propose(instruction, timeout)).satisfied)

    async def wait_read(self, timeout: float = 5.0) -> None:
        """As `Service.wait_read`, which says what it raises; NotApplied if no thread was free for that long.

        It takes one of the 16 threads that all short calls of a process share.
        """
        await call(self._service.wait_read, timeout, ReadTimeoutError)

    async def wait_applied(self, index: int, timeout: float = 5.0) -> None:
        """As `Service.wait_applied`, which says what it raises; else as `wait_read`."""
        await call(partial(self._service.wait_applied, index), timeout, ReadTimeoutError)
