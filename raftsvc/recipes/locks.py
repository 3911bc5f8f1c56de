"""Locks, of one holder, of several, and of readers and a writer."""

from __future__ import annotations

import os
import threading
import time
from _thread import TIMEOUT_MAX
from contextlib import suppress
from typing import Any

from raftsvc.kv import Hold, KeyValue, LostError
from raftsvc.kv.leases import Holder, as_waited, not_had
from raftsvc.kv.transactions import MAX_UNITS
from raftsvc.timeouts import check_timeout


class Lock(Holder):
    """A lock of the whole cluster, with the face of `threading.Lock`.  Made by `KeyValue.lock` or `semaphore`.

        with store.lock("orders", ttl=15) as lock:
            charge(order, fence=lock.fence)

    Who asks first gets it first.  It belongs to this object: two threads exclude each other by it, and whoever holds it
    does not get it a second time.  As long as `lost` is not set nobody else holds it, save that a process which was
    frozen for longer than `ttl` finds out only when it goes on: what must not happen even then is kept out by `fence`,
    which rises with each holder (`kv.if_held` in a transaction, or a resource that refuses lower ones than it saw).
    Other than kazoo's and Redis's it tells that it was lost, and other than theirs its fence can be checked.
    """

    def __init__(
        self,
        store: KeyValue,
        name: str,
        ttl: float = 15.0,
        data: bytes | None = None,
        kind: str = "lock",
        size: int = 1,
        units: int = 1,
    ) -> None:
        """See `KeyValue.claim`; those of one kind and name exclude each other."""
        super().__init__(f"{kind}:{name}")
        self._store = store
        self._terms: dict[str, Any] = {"ttl": ttl, "data": data, "size": size, "units": units}
        self._turns: dict[int, threading.Lock] = {}  # that of this process, by its pid

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """Hold it; False if it was not to be had: at once unless `blocking`, else within `timeout` seconds.

        timeout: None, or -1 as in `threading.Lock`: for however long it takes.  0: as unless `blocking`, which takes as
                 long as the cluster's answer.  In less time than that takes it is False, or NotApplied, though it be
                 free.

        Raises what `KeyValue.claim` raises, and LostError if it was acquired by this object, lost, and not released
        since: whoever did so may be at work.
        """
        blocking, timeout = as_waited(blocking, timeout)
        if timeout == -1:
            timeout = None
        if timeout is not None:
            check_timeout(timeout)
        former = self._hold
        if former is not None and former.lost.is_set():
            raise LostError(former.name, "it was lost, and has to be released before it is acquired again")
        began = time.monotonic()
        turn = self._turn()
        if not turn.acquire(blocking, -1 if timeout is None or not blocking else min(max(timeout, 0.0), TIMEOUT_MAX)):
            return False
        try:
            left = None if timeout is None else timeout - (time.monotonic() - began)
            self._hold = self._store.claim(self.given, blocking=blocking, timeout=left, **self._terms)
        finally:
            if self._hold is None:
                turn.release()
        return self._hold is not None

    def release(self, timeout: float = 5.0) -> None:
        """Let go of it.  Raises LostError if it was lost before, or is not held: another may have worked beside this.

        timeout: in seconds; what cannot be told to the cluster by then is told later, at the latest by its TTL.
        """
        hold = self._hold
        if hold is None:
            raise LostError(self.given, "it was not acquired")
        try:
            was_held = hold.release(timeout)
        except Exception:
            self._end(hold)
            raise
        self._end(hold)  # whoever was interrupted before holds it still, and may release it again
        if not was_held:
            raise LostError(hold.name)

    def _end(self, hold: Hold) -> None:
        """It is held no more; another thread has its turn."""
        turn, is_here = self._turn(), hold.lease.is_here  # else it is a parent's
        if self._hold is hold:
            self._hold = None
            if is_here:
                turn.release()

    def _turn(self) -> threading.Lock:
        """Held while this is, or is asked for, by whichever thread.

        A forked child has its own: who had that of the parent is not there to let go of it.
        """
        pid = os.getpid()
        turn = self._turns.get(pid)
        if turn is None:
            turn = self._turns.setdefault(pid, threading.Lock())  # of several threads one has its own taken
            for other in [other for other in list(self._turns) if other != pid]:
                self._turns.pop(other, None)
        return turn

    def locked(self) -> bool:
        """Whether anybody holds it, in the whole cluster, as of a moment no earlier than this call."""
        return any(claim.fence for claim in self._store.claims(self.given))

    def __enter__(self) -> Lock:
        """Hold it, for however long that takes, or `within` some time."""
        if not self.acquire(timeout=self.with_timeout):
            raise not_had(self)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Let go of it; raises LostError if it was lost before, unless something else was raised."""
        try:
            self.release()
        except LostError:
            if kind is None:
                raise
        except BaseException as error:
            if not isinstance(error, Exception):  # whoever was interrupted in it does not come again
                with suppress(Exception):
                    self.release(0.0)
            raise


class ReadWriteLock:
    """A lock that several may read by at once, or one write.  Made by `KeyValue.rwlock`.

        rwlock = store.rwlock("catalog")
        with rwlock.reading():
            show(catalog)
        with rwlock.writing() as lock:
            replace(catalog, fence=lock.fence)

    Who asks first comes first: readers who come after a writer that waits do not overtake it.  Each of both calls makes
    a `Lock` of its own.
    Readers at once have a fence each: a resource refuses lower ones than that of the last writer that it saw, and of a
    writer also lower ones than those of readers.
    """

    def __init__(self, store: KeyValue, name: str, ttl: float = 15.0, data: bytes | None = None) -> None:
        """See `KeyValue.claim`."""
        self._arguments = store, name, ttl, data

    def reading(self) -> Lock:
        """A lock that is held beside others who read."""
        return Lock(*self._arguments, "rwlock", MAX_UNITS, 1)

    def writing(self) -> Lock:
        """A lock that is held by nobody else."""
        return Lock(*self._arguments, "rwlock", MAX_UNITS, MAX_UNITS)
