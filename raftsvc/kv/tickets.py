"""Claims that belong to whoever knows their ticket, and to no process: for those who ask now and then, as over HTTP.

A ticket is the id of a lease of its own, under which there is one claim.  Nothing is kept here, so any process of any
node, or a connected client, does the same by the same ticket; and nobody renews it but who asks: it ends a TTL of log
time after it was last asked for or kept.

Several may ask by one ticket at once, as where an answer was lost and the request is sent again.  Whoever asked last
has the claim; who asked before and gives up ends nothing then, nor does anybody end by giving up what is held already:
what becomes of it is decided as the log is applied, and not by what whoever gives up knows.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar

from raftsvc.errors import ConfigurationError, NotApplied, OutcomeUnknown, RaftError, ReadTimeoutError, Rejected
from raftsvc.kv import instructions, transactions
from raftsvc.kv.history import Signal
from raftsvc.kv.instructions import Effect, encode
from raftsvc.kv.leases import Access, LostError, may_pass
from raftsvc.mainthread import do_elsewhere, is_main_thread
from raftsvc.timeouts import check_timeout

T = TypeVar("T")

_NUMBER: Final = transactions.TICKET
_KEEP_SHARE: Final = 1 / 3
_PAUSE_SECONDS: Final = 0.1


class Ticket:
    """See `KeyValue.ticket`.

    name: what is claimed, in the whole store.
    id:   by which whoever knows it goes on, wherever.
    """

    def __init__(
        self,
        cluster: Access,
        name: str,
        id: str,  # noqa: A002
        ttl_ms: int,
        data: bytes,
        mean: Callable[[Rejected], RaftError | None],
    ) -> None:
        """mean: the error that says why something was refused."""
        self.name = name
        self.id = id
        self._cluster = cluster
        self._ttl_ms = ttl_ms
        self._data = data
        self._mean = mean
        self._signal = Signal()
        self._is_closed = False
        self._kept_at = -math.inf  # when what was done last of what has it last was asked for

    def acquire(self, wait: float = 0.0, timeout: float = 10.0, *, stays: bool = False) -> int:
        """Hold it, within `wait` seconds; the fence, 0: it is not held.  Asked again it is the same claim.

        timeout: in seconds, for each thing that the cluster is asked meanwhile.
        stays:   whether it goes on waiting then, until it is not kept; else nothing is left of it.

        From when it returns it is held for its TTL, unless it is kept; for a third of that at least, where the cluster
        could not be asked once more.  Raises LostError if it was over in between, ClaimSizeError, QuotaExceeded, and
        what `Service.propose` raises: after OutcomeUnknown it may be held, or waited for, until its TTL is over, as
        where another asked by the same ticket since, and waits still.
        """
        return self._elsewhere(partial(self._acquire, wait, timeout, stays), wait, timeout)

    def keep(self, wait: float = 0.0, timeout: float = 5.0) -> int:
        """Have it last for its TTL from now on; the fence, 0: it waits still, after `wait` seconds.

        Raises LostError if there is no such claim any more, and as `Service.propose`.
        """
        return self._elsewhere(partial(self._keep, wait, timeout), wait, timeout)

    def end(self, timeout: float = 5.0, *, fence: int | None = None) -> bool:
        """Have no such claim, held or waiting; whether there was one.  Raises as `Service.propose`.

        fence: in its place that by another ticket, which nobody may know any more, if the name is held by this fence.
        """
        check_timeout(timeout)
        if fence is None:
            return self._propose(instructions.withdraw(self.name, self.id, _NUMBER), timeout) != transactions.NOTHING
        if not isinstance(fence, int) or isinstance(fence, bool) or not 0 < fence < 2**64:
            raise ConfigurationError(f"a fence is a number of 64 bits, not {fence!r:.100}")
        return self._propose(instructions.evict(self.name, fence), timeout) is not False

    def close(self) -> None:
        """Whoever waits by this object waits no more, as if the time were over.  From any thread."""
        self._is_closed = True
        self._signal.set()

    def _elsewhere(self, ask: Callable[[], T], wait: float, timeout: float) -> T:
        check_timeout(wait)
        check_timeout(timeout)
        if not is_main_thread():
            return ask()
        return do_elsewhere(ask, max(wait, 0.0) + 4 * timeout, OutcomeUnknown)

    def _acquire(self, wait: float, timeout: float, stays: bool) -> int:
        ends_at = time.monotonic() + wait
        attempt = 0 if stays else secrets.randbelow(2**64 - 1) + 1
        fence = self._place(attempt, wait > 0 or stays, timeout)
        try:
            if not fence and wait > 0:
                fence = self._await(ends_at, timeout)
                if fence:
                    self._renew_held(timeout)
            if not fence and not stays:
                fence = self._give_up(attempt, timeout)
        except (LostError, OutcomeUnknown):
            raise
        except RaftError as error:  # of what came after, though it may say that nothing was done
            raise OutcomeUnknown(f"it was asked for, and may be held until its ttl is over: {error}") from error
        return fence

    def _give_up(self, attempt: int, timeout: float) -> int:
        """Have nothing left of what this attempt placed; the fence, if it is held by now, else 0."""
        found = self._propose(instructions.withdraw(self.name, self.id, _NUMBER, attempt), timeout)
        if not isinstance(found, int):
            raise OutcomeUnknown("what became of it is not known; it may be held until its ttl is over")
        if found == transactions.WAITS_ON:
            raise OutcomeUnknown("another asked for it by the same ticket since, and waits for it still")
        if found <= 0:
            return 0
        self._renew_held(timeout)
        return found

    def _place(self, attempt: int, waits: bool, timeout: float) -> int:
        """Claim it, under a lease that is there; the fence, 0: it waits, or would have to.

        Whoever asks may have given up by the time that this gets on, if the process stood still meanwhile.  So nothing
        is asked for after `timeout`; and a lease that somebody ended, as who asked by the same ticket again, held it
        and let go, is not opened anew.  What is on its way then is granted under the lease that was opened before it,
        and ends with that, a TTL after it was opened.
        """
        deadline = time.monotonic() + timeout
        claim = instructions.claim(self.name, self.id, _NUMBER, data=self._data, waits=waits, attempt=attempt)
        while True:
            asked_at = time.monotonic()
            self._propose(instructions.open_lease(self.id, self._ttl_ms), max(deadline - asked_at, 0.0))
            left = deadline - time.monotonic()
            if left <= 0:
                raise NotApplied("its time was over before it was asked for")
            try:
                fence = self._propose(claim, left)
            except LostError:
                now = time.monotonic()
                if now >= deadline or now < asked_at + self._ttl_ms / 1000:  # log time runs no faster
                    raise
            else:
                self._kept_at = max(asked_at, self._kept_at)
                return fence if isinstance(fence, int) else 0

    def _keep(self, wait: float, timeout: float) -> int:
        ends_at = time.monotonic() + wait
        known = self._renew(timeout)
        if isinstance(known, int) and (known or not wait):
            return known
        fence = self._await(ends_at, timeout)
        if fence and time.monotonic() - self._kept_at > _KEEP_SHARE * self._ttl_ms / 1000:
            self._renew_held(timeout)
        return fence

    def _await(self, ends_at: float, timeout: float) -> int:
        """The fence once it is held, 0: it was not in time.  Kept meanwhile.  Raises LostError."""
        place, every = (self.name, self.id, _NUMBER), _KEEP_SHARE * self._ttl_ms / 1000
        due_at = self._kept_at + every
        try:
            while True:
                self._signal.arm()
                with suppress(ReadTimeoutError):
                    fence = self._cluster.fence_of(place, self._signal, timeout)
                    if fence is None:
                        raise LostError(self.name)
                    if fence:
                        return fence
                error = self._cluster.over()
                if error is not None:
                    raise error
                left = ends_at - time.monotonic()
                if left <= 0 or self._is_closed:
                    return 0
                if time.monotonic() >= due_at:
                    due_at = time.monotonic() + (every if self._try_to_renew(timeout) else _PAUSE_SECONDS)
                    continue
                self._signal.wait(min(left, max(due_at - time.monotonic(), 0.0), self._cluster.longest_wait))
        finally:
            self._cluster.leave(place, self._signal)

    def _try_to_renew(self, timeout: float) -> bool:
        try:
            self._renew(min(timeout, max(_KEEP_SHARE * self._ttl_ms / 1000, _PAUSE_SECONDS)))
        except (OutcomeUnknown, NotApplied) as error:
            if not may_pass(error):
                raise
            return False
        return True

    def _renew(self, timeout: float) -> object:
        """The fence, 0: it waits; None: it is not known which."""
        asked_at = time.monotonic()
        fence = self._propose(instructions.prolong(self.name, self.id, _NUMBER), timeout)
        self._kept_at = max(asked_at, self._kept_at)
        return fence

    def _renew_held(self, timeout: float) -> None:
        """Have all of the TTL be the caller's, who is told that it is held, as it is whether or not that is heard."""
        every = _KEEP_SHARE * self._ttl_ms / 1000
        try:
            self._renew(min(timeout, max(every, _PAUSE_SECONDS)))
        except LostError:
            raise
        except RaftError as error:
            if time.monotonic() - self._kept_at > self._ttl_ms / 1000 - every:
                raise OutcomeUnknown(f"it was held, and could not be kept: {error}") from error

    def _propose(self, effect: Effect, timeout: float) -> object:
        """What the cluster answers; raises the error that says why it refused."""
        try:
            return self._cluster.propose(encode([effect]), timeout).answer
        except Rejected as rejected:
            error = self._mean(rejected)
            if error is None:
                raise
            if isinstance(error, LostError):
                error = LostError(self.name)  # and not by its ticket, which is nobody else's
            raise error from None
