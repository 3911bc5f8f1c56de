"""Elections: one of many leads, and another once it does not."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from raftsvc.callables import check_function
from raftsvc.kv import Claimant, Hold, KeyValue, LostError

T = TypeVar("T")
_LOOK_SECONDS = 30.0


class Election:
    """One of those who take part leads.  Made by `KeyValue.election`; not to be confused with who leads the cluster.

        def schedule(lost):
            while not lost.wait(1.0):
                run_what_is_due()

        store.election("scheduler").run(schedule)

    Whoever comes first leads first, until it resigns, ends in order (then the next leads at once), or is not heard of
    for `ttl` seconds.  See `Lock` for what is certain: two may believe to lead only where one was frozen for longer
    than that, and only the one with the higher `fence` does.
    """

    def __init__(self, store: KeyValue, name: str, ttl: float = 15.0, data: bytes | None = None) -> None:
        """See `KeyValue.claim`; `data` is what `leader` shows of this one."""
        self._store = store
        self._name = f"election:{name}"
        self._ttl = ttl
        self._data = data
        self._hold: Hold | None = None
        self._resigned: Hold | None = None

    def run(self, function: Callable[[threading.Event], T], timeout: float | None = None) -> T:
        """Lead, call `function`, resign, and return what that returned.

        function: called with `lost`, which is set once this one leads no more: it should end then, and before it does
                  what must be done by one alone look at that, or check the `fence`.
        timeout:  in seconds, to come to lead; None: wait for however long it takes.

        If leading was lost before `function` returned, it takes part anew and calls that again; not after `resign`.
        Raises what `function` raises, what `KeyValue.claim` raises, and TimeoutError.
        """
        check_function(function, "what leads")
        while True:
            with self.lead(timeout) as hold:
                result = function(hold.lost)
                if hold.is_held or self._resigned is hold:
                    return result

    @contextmanager
    def lead(self, timeout: float | None = None) -> Iterator[Hold]:
        """Lead within a `with`, which resigns at its end; what it gives has `fence` and `lost`.

        Raises TimeoutError if that took longer than `timeout` seconds, and what `KeyValue.claim` raises.
        """
        hold = self._store.claim(self._name, ttl=self._ttl, data=self._data, timeout=timeout)
        if hold is None:
            raise TimeoutError(f"{self._name!r} was led by others for {timeout:g} s")
        self._hold = hold
        try:
            yield hold
        finally:
            if self._hold is hold:  # else another thread came to lead by this object, after this one lost it
                self._hold = None
            hold.release()

    @property
    def is_leader(self) -> bool:
        """Whether this one leads, as of now, by the clocks of this machine."""
        hold = self._hold
        return hold is not None and hold.is_held

    @property
    def name(self) -> str:
        """In the whole store, of what this one leads.  Raises LostError if it does not lead."""
        return self._led().name

    @property
    def fence(self) -> int:
        """Of this one's leading: higher than that of any before.  Raises LostError if it does not lead."""
        return self._led().fence

    def _led(self) -> Hold:
        hold = self._hold
        if hold is None:
            raise LostError(self._name, "this one does not lead")
        return hold

    def resign(self, timeout: float = 5.0) -> bool:
        """Have the next one lead, if this one does; whether it did.  `lost` of what leads is set."""
        hold = self._hold
        if hold is None:
            return False
        did = hold.is_held
        self._resigned = hold
        hold.lost.set()
        hold.release(timeout)
        return did

    def leader(self, timeout: float = 5.0, *, max_age: float | None = None) -> bytes | None:
        """The data of who leads, None: nobody; as of a moment no earlier than this call, or than `max_age` ago."""
        return _leader_of(self._store.claims(self._name, timeout, max_age=max_age))

    def observe(self, timeout: float | None = None) -> Iterator[bytes | None]:
        """The data of who leads, None: nobody; first as it is, then whenever another does.

        Of leaders that follow each other faster than they are taken only the newest is given.

        timeout: in seconds: it ends once the same led, or nobody, for so long; None: it waits without end.
        """
        seconds = math.inf if timeout is None else timeout
        claims = self._store.claims(self._name)
        fence = _fence_of(claims)
        yield _leader_of(claims)
        ends_at = time.monotonic() + seconds
        while (left := ends_at - time.monotonic()) > 0:
            claims = self._store.wait_claims(self._name, claims, min(left, _LOOK_SECONDS))
            if _fence_of(claims) != fence:
                fence = _fence_of(claims)
                yield _leader_of(claims)
                ends_at = time.monotonic() + seconds


def _leader_of(claims: list[Claimant]) -> bytes | None:
    return claims[0].data if _fence_of(claims) else None


def _fence_of(claims: list[Claimant]) -> int:
    return claims[0].fence if claims else 0
