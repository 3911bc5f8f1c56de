"""What the main thread of a process has others do for it.

A handler of signals runs on the main thread, between any two steps of what that is doing.
It may raise there (KeyboardInterrupt, SystemExit, whatever a server raises), and it may call
everything that is public.  Were the main thread to hold a lock of ours, its own handler
would wait for that for ever; were it in the middle of a change, that would never be
completed.  So it holds no lock and changes nothing: what does is an errand, carried out by a
thread of this module, for which the main thread waits.  An interrupt ends the wait and
nothing else; what was begun goes on to its own deadline.

Invariants, of what the main thread does here:
- It waits only for a lock that belongs to this one errand, so a handler on top of it, with
  errands of its own, waits for others.
- It hands over by `SimpleQueue.put`, which is reentrant, and by `start_new_thread`, which
  takes no lock; `Thread.start` would.
- An errand that was interrupted before somebody took it is not carried out later.
"""

from __future__ import annotations

import os
import threading
import time
from _thread import allocate_lock, get_ident, start_new_thread
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from raftsvc.errors import RaftError
from raftsvc.systems import call_in_children

T = TypeVar("T")

GRACE_SECONDS = 5.0
"""So much longer than it should take is waited for what was handed over: its own deadline comes first."""
_LOOK_SECONDS = 0.2
MAIN_THREAD = "raftsvc.main_thread"
"""In the environ of a request that the server serves in the main thread."""

_main_ident = threading.main_thread().ident


def _note_main() -> None:
    global _main_ident
    _main_ident = threading.main_thread().ident


call_in_children(_note_main)  # by a thread, which is the child's main thread then


def is_main_thread() -> bool:
    """Whether handlers of signals run in this thread."""
    return get_ident() == _main_ident


class _Errand:
    """Something to be done, and what came of it."""

    __slots__ = ("_done", "_function", "error", "is_given_up", "result")

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._done = allocate_lock()
        self._done.acquire()
        self.is_given_up = False
        self.result: Any = None
        self.error: BaseException | None = None

    def carry_out(self) -> None:
        if not self.is_given_up:
            try:
                self.result = self._function()
            except BaseException as error:  # it is whose errand it was that it comes to
                self.error = error
        self._done.release()

    def wait(self, seconds: float) -> bool:
        """Whether it was carried out within that time."""
        ends_at = time.monotonic() + max(seconds, 0.0)
        while True:
            left = ends_at - time.monotonic()
            # A signal may be taken by another thread, and then interrupts nothing here: its handler waits for a step.
            if self._done.acquire(timeout=min(max(left, 0.0), _LOOK_SECONDS)):
                return True
            if left <= 0:
                return False


class _Deputies:
    """The threads that carry out errands in one process.  One at least waits for the next, whatever the others do."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._errands: SimpleQueue[_Errand] = SimpleQueue()
        self._lock = threading.Lock()  # guards _waiting, among the deputies; the main thread never takes it
        self._waiting = 0
        self._has_begun = False

    def begin(self) -> None:
        """Have a first one, if there is none.  Raises RuntimeError if no thread can be started."""
        if not self._has_begun:
            start_new_thread(self._start_another, ())
            self._has_begun = True  # after it: interrupted in between there will be two, and not none

    def hand_over(self, errand: _Errand) -> None:
        self._errands.put(errand)

    def _start_another(self) -> None:
        with self._lock:
            self._waiting += 1
        try:
            threading.Thread(target=self._serve, name="raftsvc-main", daemon=True).start()
        except RuntimeError:  # there can be no more; those there are go on
            with self._lock:
                self._waiting -= 1
            self._has_begun = False  # it is tried again with the next errand

    def _serve(self) -> None:
        is_wanted = True
        while is_wanted:
            errand = self._errands.get()
            with self._lock:
                self._waiting -= 1
                is_last = not self._waiting
            if is_last:
                self._start_another()
            errand.carry_out()
            del errand
            with self._lock:
                is_wanted = not self._waiting
                self._waiting += is_wanted


_deputies = _Deputies()


def _deputies_here() -> _Deputies:
    """Those of this process; none of the parent's are in a forked child."""
    global _deputies
    deputies = _deputies
    if deputies.pid != os.getpid():
        _deputies = deputies = _Deputies()
    deputies.begin()
    return deputies


def prepare() -> None:
    """Have a thread ready: where an interpreter ends none can be started any more."""
    with suppress(RuntimeError):  # it is tried again when it is needed
        _deputies_here()


def do_elsewhere(function: Callable[[], T], seconds: float, late: Callable[[str], RaftError]) -> T:
    """For the main thread: have `function` called by another, and return or raise what it does.

    seconds: how long it takes at most, by itself.
    late:    makes the error that is raised if it has not returned a while after that, because the
             machine or its disk hangs.
    """
    errand = _Errand(function)
    try:
        try:
            _deputies_here().hand_over(errand)
        except RuntimeError as error:
            raise late(f"no thread can be started: {error}") from error
        if not errand.wait(seconds + GRACE_SECONDS):
            raise late(f"no answer {GRACE_SECONDS:g} s after {seconds:g} s were over: this machine, or its disk, hangs")
    except BaseException:
        errand.is_given_up = True
        raise
    if errand.error is not None:
        try:
            raise errand.error
        finally:
            del errand  # else its frames would keep it, and it them
    result: T = errand.result
    return result


class Closable(Protocol):
    """What is closed by whoever has it."""

    def close(self) -> None:
        """Give it back."""


C = TypeVar("C", bound=Closable)


@contextmanager
def opened(take: Callable[[], C], seconds: float, late: Callable[[str], RaftError]) -> Iterator[C]:
    """What `take` opens, and another thread does for the main one, as `do_elsewhere`; closed in the end.

    If the wait is interrupted it is closed by whoever opened it, once it is open.
    """
    kept: list[C] = []
    is_over: list[bool] = []

    def close() -> None:
        with suppress(IndexError):
            kept.pop().close()  # whoever gets it from the list

    def take_it() -> None:
        kept.append(take())
        if is_over:
            close()

    try:
        if is_main_thread():
            do_elsewhere(take_it, seconds, late)
        else:
            take_it()
        yield kept[0]
    finally:
        is_over.append(True)
        close()
