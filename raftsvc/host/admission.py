"""How many callers a process may hold at once, and how many streams.

What is known of the server decides, unless the application said a number; see servers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from raftsvc.errors import OverloadedError
from raftsvc.host import servers
from raftsvc.mainthread import MAIN_THREAD
from raftsvc.measures import Account, Usage
from raftsvc.transport import Problem

logger = logging.getLogger("raftsvc")

_FREE_THREADS = 2
"""Threads of the server that neither callers nor streams get: for peers, and for a snapshot beside their messages."""
PATIENCE_SECONDS = 0.25
"""How long a caller waits for a place: many times what a write takes, and a small part of an election timeout."""


class Admission:
    """At most so many callers wait at once, below the threads of the server.

    If every thread of the pool waited for a commit, none were left for the peers'
    messages that bring it.  A caller over the limit waits a moment for a place, in a
    thread that is kept free for peers, so of these one at most is lent; all others are
    told at once.  A stream keeps a thread of the pool for as long as it lives, so those
    it may need are not given to callers; where that would take most of the pool there are none.
    While all peers are heard through streams of theirs, one free thread is enough.
    """

    def __init__(
        self,
        limit: int | None,
        host: servers.HostPool | None,
        has_listener: bool,
        hears_all: Callable[[], bool] = lambda: False,
    ) -> None:
        """hears_all: whether all that peers say comes through streams; asked only where places are short."""
        # One item for each caller inside; anybody may take one out, and put one in where there is no limit.
        self._inside: deque[None] = deque()
        self._lock = threading.Lock()  # guards all below
        self._freed = threading.Condition(self._lock)
        self._queued = 0
        self._hears_all = hears_all
        self._is_fixed = limit is not None or has_listener
        self._has_listener = has_listener
        self._host = host
        self._has_looked = host is not None
        self._limit = limit or 0
        self._pinned = 0
        self._reserved = 0
        self.usage = Usage()
        """What callers of this process did."""
        if not self._is_fixed and host is not None:
            self._adopt(host)

    @property
    def waiting(self) -> int:
        """How many callers wait just now."""
        return len(self._inside)

    @property
    def limit(self) -> int:
        """How many callers may wait just now; 0: any number."""
        return self._places(self._hears_all())

    def _places(self, is_heard: bool) -> int:
        if self._is_fixed or not self._limit:
            return self._limit
        return max(1, self._limit - max(self._pinned, self._reserved) + is_heard)

    def _adopt(self, host: servers.HostPool) -> None:
        if host.threads is None:
            return
        self._limit = max(1, host.threads - _FREE_THREADS)
        if host.threads < 3:
            logger.error(
                "%s serves with %d thread(s): a node needs at least 3, or a listener of its own (listen=)",
                host.server,
                host.threads,
            )

    def learn(self, environ: Mapping[str, Any]) -> servers.HostPool | None:
        """At the first request look for the server that serves it; returns what was found just now."""
        if self._has_looked or "raftsvc.listener" in environ:
            return None
        self._has_looked = True
        self._host = host = servers.find_host(environ)
        if host is not None and not self._is_fixed:
            self._adopt(host)
        return host

    def uncount(self, environ: Mapping[str, Any]) -> None:
        """A request under `/raft/` is none of those after which the server replaces this process."""
        if self._host is not None and "raftsvc.listener" not in environ:
            self._host.uncount()

    def pin(self, environ: Mapping[str, Any], peers: int) -> Callable[[], None]:
        """Give the thread that serves `environ` to a stream; returns what gives it back.

        peers: how many may want one.  Raises Problem.
        """
        if "raftsvc.listener" in environ:
            return lambda: None
        if MAIN_THREAD in environ:
            raise Problem(503, "no_stream", "no streams here: the server has but its main thread")
        host = None if self._has_listener else servers.find_host(environ)
        if host is None or (host.threads is None and host.server != "werkzeug"):
            raise Problem(503, "no_stream", "no streams here: the server and its threads are not known")
        if host.threads is None:
            return lambda: None
        is_roomy = 2 * (host.threads - _FREE_THREADS - peers) >= host.threads
        with self._lock:
            self._reserved = peers if is_roomy else 0
            if not is_roomy:
                raise Problem(503, "no_stream", f"no streams here: they would take too many of {host.threads} threads")
            # One that the others are without finds the thread that was reserved for it, though callers use
            # what is free while all are heard.
            free = _FREE_THREADS - (self._pinned < peers)
            if self.waiting + self._pinned >= host.threads - free:
                raise Problem(503, "overloaded", "no thread can be spared for a stream just now")
            self._pinned += 1
        return self._unpin

    def _unpin(self) -> None:
        with self._lock:
            self._pinned -= 1

    def enter(self, deadline: float) -> None:
        """Take a place, or wait a moment for one, no longer than `deadline`; raises OverloadedError.

        Then `leave`, whatever happens.
        """
        if self._limit:
            with self._lock:
                if len(self._inside) >= self._places(False):
                    self._await_place(min(deadline, time.monotonic() + PATIENCE_SECONDS))
                self._inside.append(None)
        else:
            self._inside.append(None)

    def _await_place(self, deadline: float) -> None:
        may_queue = self._has_listener or (not self._queued and (self._is_fixed or self._hears_all()))
        self._queued += 1
        try:
            while self.waiting >= self.limit:
                left = deadline - time.monotonic()
                if not may_queue or left <= 0:
                    self.usage.refusals += 1
                    raise OverloadedError(
                        f"{self.waiting} callers wait already, the limit of this process; try again, or at another node"
                    )
                self._freed.wait(left)
        finally:
            self._queued -= 1

    def leave(self, account: Account | None = None, outcome: str = "", seconds: float = 0.0) -> None:
        """Give the place back; `account`, one of `usage`, notes how what was done in it ended, and after how long."""
        self._inside.pop()
        if account is not None:
            account.note(outcome, seconds)
        # Who waits for a place says so, and only then looks whether there is one.
        if self._queued:
            with self._lock:
                self._freed.notify()

    def __enter__(self) -> None:
        self.enter(float("inf"))

    def __exit__(self, *exc_info: object) -> None:
        self.leave()
