"""A gate that all wait at while it is closed, and a meeting that begins and ends for all at once."""

from __future__ import annotations

import math
import threading
import time
from contextlib import suppress

from raftsvc.errors import ReadTimeoutError
from raftsvc.kv import ConflictError, Hold, KeyValue, LostError, if_not_exists

_LOOK_SECONDS = 30.0
_PAUSE_SECONDS = 0.2


class Barrier:
    """A gate: who waits at it goes on once it is open.  Made by `KeyValue.barrier`.

        gate = store.barrier("deploy")
        gate.close()
        migrate()
        gate.open()
        gate.wait(timeout=60)  # elsewhere, before each job

    It is open at first.  It stays as it was put, whatever becomes of who did that: it is the key "barrier:NAME".  All
    who wait go on once it was opened, even if it was closed again meanwhile, or soon after they are told; who wants to
    have nobody pass takes a lock for readers and a writer.
    """

    def __init__(self, store: KeyValue, name: str) -> None:
        """It is the key "barrier:NAME"."""
        self._store = store
        self._key = f"barrier:{name}"

    def close(self, timeout: float = 10.0) -> None:
        """Have all wait who come from now on.  Raises as `KeyValue.set`."""
        with suppress(ConflictError):  # it is closed
            self._store.set(self._key, b"", if_not_exists(self._key), timeout=timeout)

    def open(self, timeout: float = 10.0) -> bool:
        """Have all go on; whether it was closed.  Raises as `KeyValue.delete`."""
        return self._store.delete(self._key, timeout=timeout)

    def is_closed(self, timeout: float = 5.0, *, max_age: float | None = None) -> bool:
        """Whether it is, as of a moment no earlier than this call, or than `max_age` seconds ago."""
        return self._store.get(self._key, timeout, max_age=max_age) is not None

    def wait(self, timeout: float | None = None) -> bool:
        """Return True once it is open, at once if it is; False after `timeout` seconds.

        None: it waits for however long it takes.  Raises what `KeyValue.get` and `KeyValue.wait_changed` raise.
        """
        ends_at = None if timeout is None else time.monotonic() + timeout
        value = self._store.get(self._key, 5.0 if timeout is None else min(max(timeout, 1.0), 5.0))
        while value is not None:
            left = _LOOK_SECONDS if ends_at is None else min(ends_at - time.monotonic(), _LOOK_SECONDS)
            if left <= 0:
                return False
            found = self._store.wait_changed(self._key, value.version, left)
            if found is None or found.version != value.version:  # it was open in between
                return True
        return True


class Meeting:
    """Where so many wait for each other, to begin together and to end together.  Made by `KeyValue.meeting`.

        meeting = store.meeting("round", 3)
        with meeting.enter(timeout=60):
            work()  # begins when three have come; and the `with` ends when all three are done

    It begins once `size` wait at one moment, for all of these, in the order in which they came; those who come later
    are the next round.  Who gives up, or is not heard of for `ttl`, does not count from then on, and is not waited for
    at the end: so one who dies as it begins may have been counted.  All say the same size.

    One that lives and never ends is waited for without end: who does not want that calls `leave(timeout=60)` of what
    `enter` returned, as the last thing in the `with`, which then waits no more.
    """

    def __init__(self, store: KeyValue, name: str, size: int, ttl: float = 15.0, data: bytes | None = None) -> None:
        """See `KeyValue.claim`."""
        self._store = store
        self._name = f"meeting:{name}"
        self._size = size
        self._ttl = ttl
        self._data = data

    def enter(self, timeout: float | None = None) -> Attendance:
        """Return once so many have come.  Raises TimeoutError if they did not in time, and what `claim` raises."""
        terms = {"ttl": self._ttl, "data": self._data, "timeout": timeout}
        hold = self._store.claim(self._name, size=self._size, together=True, **terms)  # type: ignore[arg-type]
        if hold is None:
            raise TimeoutError(f"not as many as {self._size} have come to {self._name!r} within {timeout:g} s")
        return Attendance(self._store, self._name, hold)


class Attendance:
    """That somebody takes part in a round of a `Meeting`."""

    def __init__(self, store: KeyValue, name: str, hold: Hold) -> None:
        self._store = store
        self._name = name
        self._hold = hold
        self._has_left = False

    @property
    def round(self) -> int:
        """The same for all of a round, and higher than that of any before."""
        return self._hold.fence

    @property
    def lost(self) -> threading.Event:
        """Set once the others do not wait for this one any more."""
        return self._hold.lost

    def leave(self, timeout: float | None = None) -> bool:
        """This one is done; return True once all of the round are, or are not heard of any more, False after `timeout`.

        In seconds; None: it waits for however long it takes, also for somebody to lead who can be asked.  After False
        it may be called again, to wait on.  Raises LostError if this one was not waited for any more when it left, and
        what `Service.err` says once the node stops.
        """
        ends_at = math.inf if timeout is None else time.monotonic() + timeout
        if not self._has_left:
            was_there = self._hold.release(5.0 if timeout is None else max(timeout, 0.1))
            self._has_left = was_there
            if not was_there:
                raise LostError(self._name)
        while True:
            claims = None
            with suppress(ReadTimeoutError):  # nobody leads
                claims = self._store.claims(self._name, min(max(ends_at - time.monotonic(), 0.1), 5.0))
            if claims is not None and not any(claim.fence == self.round for claim in claims):
                return True
            left = min(ends_at - time.monotonic(), _LOOK_SECONDS)
            if left <= 0:
                return False
            if claims is None:
                time.sleep(min(left, _PAUSE_SECONDS))
            else:
                self._store.wait_claims(self._name, claims, left)

    def __enter__(self) -> Attendance:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Leave, and wait for the others as long as it takes, unless `leave` was called; only leave if it raises."""
        if kind is not None:
            self._hold.release()
        elif not self._has_left:
            self.leave()
