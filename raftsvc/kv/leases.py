"""What a process holds: its leases, which it keeps, and the claims under them.

One lease for each TTL, which all claims of that TTL in a process share; a thread renews it after a third of that.  A
lease that somebody asks for himself, for keys to live and die with, is his alone, and renewed likewise.
Who holds something knows by the clocks of this machine alone until when at least it is his: nine tenths of the TTL
after the process *first* asked for the renewal that was acknowledged.  From then on it counts as lost, for good,
whether or not anybody could be asked, and whether or not the thread of this module runs.

Each renewal names all claims that are wanted, so what is given up ends even if nothing that says so arrives: a claim
that comes late, after its caller is gone, is not named by the next one.

Invariants:
- What counts as lost never counts as held again.
- A claim is wanted before it is asked for, and until it is given up.
- Nothing is asked of the cluster under the lock of this module.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from operator import attrgetter
from typing import NamedTuple, Protocol, TypeVar

from raftsvc.clocks import read_clocks, seconds_since
from raftsvc.errors import (
    ConfigurationError,
    ForkedError,
    NodeFailedError,
    NotApplied,
    OutcomeUnknown,
    OverloadedError,
    RaftError,
    ReadTimeoutError,
    Rejected,
    StoppedError,
    UninitializedError,
)
from raftsvc.kv import instructions, transactions
from raftsvc.kv.history import Signal
from raftsvc.kv.instructions import Effect, encode
from raftsvc.kv.queues import Item
from raftsvc.mainthread import do_elsewhere, is_main_thread
from raftsvc.process import HomeProcess
from raftsvc.results import Applied
from raftsvc.timeouts import check_timeout

logger = logging.getLogger("raftsvc.kv")

T = TypeVar("T")
AnyHolder = TypeVar("AnyHolder", bound="Holder")

SAFE_SHARE = 0.9
"""Of a TTL, counted from the asking: rates of honest clocks differ by less, and log time by a millisecond."""
_RENEW_SHARE = 1 / 3
MIN_TTL = 1.0
"""In seconds: a lease has to outlive that a leader is lost and another elected."""
_CALL_SECONDS = 5.0
_RENEW_SECONDS = 3.0
_PAUSE_SECONDS = 0.2
_LOST_SECONDS = 1.0
"""Between two looks at clocks that go on while the machine is suspended, where waiting does not."""
_LOOK_SECONDS = 30.0
_LEAVE_SECONDS = 1.0
"""So long a process that stops waits for those who hold something to let go of it."""


class LostError(RaftError):
    """What was held is held no longer: its lease ran out, or was ended.  Another may hold it; whatever it guards, stop.

    name: of what was held.
    """

    http_status = 409
    http_detail = "What this needs to hold is held no more, and maybe by another; begin anew."

    def __init__(self, name: str, reason: str = "its lease was not renewed in time, or was ended") -> None:
        super().__init__(f"{name!r} is held no longer here: {reason}")
        self.name = name


class Access(Protocol):
    """How leases and claims reach the cluster: through a Service, or a connection to one."""

    def propose(self, instruction: bytes, timeout: float) -> Applied:
        """As `Service.propose`."""

    def propose_many(self, instructions: Sequence[bytes], timeout: float) -> Sequence[Applied]:
        """As `Service.propose_many`; never more than `at_once`, if that is more than one."""

    @property
    def at_once(self) -> int:
        """How many it takes; 1: it takes no several."""

    def fence_of(self, place: tuple[str, str, int], signal: Signal, timeout: float) -> int | None:
        """The fence of a claim that was placed, 0: it waits, None: there is none.  Sets the signal on a change."""

    def item_of(self, place: tuple[str, str, int], timeout: float) -> Item | None:
        """What was given to a claim on a queue, after it was granted."""

    def leave(self, place: str | tuple[str, str, int], signal: Signal) -> None:
        """The signal is not waited for any more, there."""

    def index(self) -> int:
        """An entry that was applied."""

    def over(self) -> RaftError | None:
        """Why nothing will ever be applied here any more."""

    def await_claims(self, name: str, signal: Signal) -> None:
        """Have the signal set once something happens to claims on a name, if anything tells of that."""

    @property
    def longest_wait(self) -> float:
        """In seconds, between two looks of who waits."""


class Holding(Access, Protocol):
    """Through whom a process holds something."""

    def keeper(self) -> Keeper:
        """Who keeps its leases."""


class Lost(threading.Event):
    """Set once something counts as lost; by the clocks of this machine, so no thread has to do it.

    It is an Event, and `wait` takes no longer than until it is so; it is never cleared.
    """

    def __init__(self, lease: Lease) -> None:
        super().__init__()
        self._lease = lease
        self._until: tuple[tuple[int, ...], float] | None = None
        self._is_late = False  # never taken back, as with leases

    def limit(self, seconds: float | None) -> None:
        """It is lost so long after now at the latest; None: no earlier than the lease is over."""
        self._until = None if seconds is None else (read_clocks(), seconds)

    @property
    def left(self) -> float:
        """In seconds, until it is lost because it is limited; infinite if it is not."""
        until = self._until
        if until is None:
            return math.inf
        since, seconds = until
        return seconds - seconds_since(since)

    def is_set(self) -> bool:
        """Whether it is lost."""
        if self.left <= 0:
            self._is_late = True
        return self._is_late or super().is_set() or self._lease.is_over

    def wait(self, timeout: float | None = None) -> bool:
        """Return once it is lost, or after `timeout` seconds; whether it is."""
        ends_at = None if timeout is None else time.monotonic() + timeout
        while not self.is_set():
            seconds = min(self._lease.remaining, self.left)
            if ends_at is not None:
                left = ends_at - time.monotonic()
                if left <= 0:
                    break
                seconds = min(seconds, left)
            super().wait(min(max(seconds, 0.0), _LOST_SECONDS))
        return self.is_set()


class Lease:
    """What a process has for its TTL, and longer as long as it is renewed.  Takes no lock: the main thread may look.

    id:  as the cluster knows it.
    ttl: in seconds.
    """

    def __init__(self, cluster: Access, ttl_ms: int) -> None:
        self.id = secrets.token_hex(transactions.LEASE_DIGITS // 2)
        self.ttl = ttl_ms / 1000
        self.wanted: dict[int, Hold] = {}
        """The claims under it that are not given up, by their numbers."""
        self.lost = Lost(self)
        self._cluster = cluster
        self._ttl_ms = ttl_ms
        self._numbers = count(1)
        self._home = HomeProcess()
        self._asked: tuple[int, ...] | None = None  # the clocks, when what was acknowledged last was asked for
        self.has_given_up = False
        """Whether there may be claims under it that are not wanted any more; it is renewed soon, without them."""
        self.has_unheard = False
        """Whether one of them may be placed by an entry that was not known of here when it was given up."""
        self._is_over = False  # never taken back, so whoever finds that it is may say so without a lock

    @property
    def is_here(self) -> bool:
        """Whether it belongs to this process, and not to its parent."""
        return self._home.is_here

    @property
    def is_over(self) -> bool:
        """Whether it counts as lost; then it does for good."""
        return self._left() <= 0.0

    @property
    def remaining(self) -> float:
        """For how many seconds it certainly lasts, by the clocks of this machine; 0 once it is lost."""
        return max(self._left(), 0.0)

    @property
    def due_in(self) -> float:
        """For how many seconds it need not be renewed, as long as nothing is given up under it."""
        return max(self.remaining - (SAFE_SHARE - _RENEW_SHARE) * self.ttl, 0.0)

    @property
    def is_due(self) -> bool:
        """Whether it should be renewed."""
        return self.has_given_up or self.due_in <= 0.0

    def _left(self) -> float:
        if self._is_over or self._asked is None or not self._home.is_here:  # else it is the parent's
            return 0.0
        left = SAFE_SHARE * self.ttl - seconds_since(self._asked)
        if left <= 0.0:
            self._is_over = True
        return left

    def _note(self, asked: tuple[int, ...]) -> None:
        """What was asked for then was done; raises LostError if it counts as lost already."""
        former = self._asked
        if former is None or (self._left() > 0.0 and asked > former):  # else another thread's was asked for later
            self._asked = asked
        if self._left() <= 0.0:  # as it may be, too, if the answer took longer than it lasts
            raise LostError(self.id)

    def end(self) -> None:
        """It counts as lost from now on."""
        self._is_over = True
        self.lost.set()
        for hold in list(self.wanted.values()):
            hold.lost.set()
            hold.signal.set()

    def open(self, timeout: float) -> None:
        """Have the cluster know it."""
        asked = read_clocks()
        self._cluster.propose(encode([instructions.open_lease(self.id, self._ttl_ms)]), timeout)
        self._note(asked)

    def refresh(self, timeout: float = 5.0) -> None:
        """Have it last for its TTL from now on.  Raises LostError if it is over, else as `Service.propose`."""
        self._home.check()
        if self.is_over:
            raise LostError(self.id)
        self._note(self._keep(timeout))

    def drop_unwanted(self, timeout: float) -> None:
        """Have no claims under it but those that are wanted, be it lost or not; here it stays lost.

        Where the cluster has it still, it lasts there for its TTL from then on.  Raises as `refresh`.
        """
        self._home.check()
        self._keep(timeout)

    def _keep(self, timeout: float) -> tuple[int, ...]:
        """Say what is wanted under it, and that it lives; the clocks, when that was first asked for."""
        renewal = self.renewal(self._cluster.index())
        try:
            self._cluster.propose(renewal.instruction, timeout)
        except Rejected as rejected:
            self.end()
            raise LostError(self.id, rejected.reason) from None
        except BaseException:
            self._missed(renewal)
            raise
        return self._heard(renewal)

    def renewal(self, index: int) -> Renewal:
        """What is said now to have it last.  index: of an entry that was applied before this call."""
        has_unheard, self.has_unheard, self.has_given_up = self.has_unheard, False, False
        instruction = encode([instructions.keep_lease(self.id, index, list(self.wanted))])
        return Renewal(self, instruction, read_clocks(), has_unheard)

    def _heard(self, renewal: Renewal) -> tuple[int, ...]:
        """It was done; the clocks, when it was first asked for."""
        if renewal.has_unheard:  # once more, by an index that is known since this was answered
            self.has_given_up = True
        return renewal.asked

    def _missed(self, renewal: Renewal) -> None:
        """Whether it was done is not known."""
        self.has_unheard = self.has_unheard or renewal.has_unheard
        self.has_given_up = True

    def revoke(self, timeout: float = 5.0) -> None:
        """End it at once, and have all that is held under it granted to others.  Raises what `Service.propose` does."""
        self._home.check()
        self.end()
        self._cluster.propose(encode([instructions.end_lease(self.id)]), timeout)

    def hold(self, name: str) -> Hold:
        """A claim that is wanted from now on."""
        hold = Hold(self, name, next(self._numbers))
        self.wanted[hold.number] = hold
        return hold


class Renewal(NamedTuple):
    """What a lease is to last by.

    asked:       the clocks, when it was first asked for.
    has_unheard: what the lease said of itself before.
    """

    lease: Lease
    instruction: bytes
    asked: tuple[int, ...]
    has_unheard: bool


def refresh_all(cluster: Access, leases: Iterable[Lease], timeout: float) -> None:
    """As `refresh` of each, all by one entry of the log; those that the cluster has no more end.

    Raises what `Service.propose_many` raises: then each may have been renewed, and is not known to be.
    """
    index = cluster.index()
    renewals: list[Renewal] = []
    try:
        renewals.extend(lease.renewal(index) for lease in leases)
        told = cluster.propose_many([renewal.instruction for renewal in renewals], timeout)
    except BaseException:
        for renewal in renewals:
            renewal.lease._missed(renewal)
        raise
    for renewal, applied in zip(renewals, told, strict=True):
        if isinstance(applied.answer, Rejected):
            renewal.lease.end()
        else:
            with suppress(LostError):  # it took longer than that one lasts
                renewal.lease._note(renewal.lease._heard(renewal))


class Hold:
    """Some of a name, held by this process.  See `KeyValue.claim`.

    name:   of it, in the whole store.
    fence:  rises with each grant of the name: what is protected refuses whoever comes with a lower one than it
            has seen.
    lost:   an Event that is set once it counts as lost, by the clocks of this machine: give it to what does the work.
    """

    def __init__(self, lease: Lease, name: str, number: int) -> None:
        self.name = name
        self.fence = 0
        self.lost = Lost(lease)
        self.lease = lease
        self.number = number
        self.signal = Signal()
        self.is_placed = False  # as far as is known
        self._keeper: Keeper | None = None  # once it is granted

    @property
    def place(self) -> tuple[str, str, int]:
        """Name, lease and number."""
        return self.name, self.lease.id, self.number

    @property
    def is_held(self) -> bool:
        """Whether it is, by the clocks of this machine, as of now: a pause after that may outlast it (see `fence`)."""
        return self.is_wanted and self.fence != 0 and not self.lost.is_set()

    @property
    def is_wanted(self) -> bool:
        """Whether nobody let go of it here, be it lost or not."""
        return self.number in self.lease.wanted

    def ensure_held(self) -> None:
        """Raise LostError unless it is held, as of now; ForkedError in a child of the process that holds it."""
        if not self.is_held:
            raise LostError(self.name)

    def granted(self, fence: int, keeper: Keeper) -> Hold:
        """It is held now; the keeper is who ends it."""
        self.fence = fence
        self._keeper = keeper
        return self

    def limit(self, seconds: float | None) -> None:
        """It is let go of so long after now by itself; None: not before its lease is over."""
        self.lost.limit(seconds)
        if seconds is not None and self._keeper is not None:
            self._keeper.wake()  # it may be due earlier than whatever the keeper waits for

    def forget(self) -> None:
        """It has ended in another way, and nothing is to be told any more."""
        self.lease.wanted.pop(self.number, None)

    def release(self, timeout: float = 5.0) -> bool:
        """Let go of it; whether it was held up to now.  What cannot be told within `timeout` seconds is told later."""
        was_held = self.is_held
        if self._keeper is not None:
            self._keeper.let_go(self, timeout)
        return was_held

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Raises LostError if it was lost before the end, and nothing else was raised."""
        if not self.release() and kind is None:
            raise LostError(self.name)


class Holder:
    """What may hold something, and tells what of it is known here; what acquires and releases inherits from it.

    given: the name, as it was given.
    with_timeout: how long a `with` waits, in seconds; None: as long as it takes.
    """

    def __init__(self, given: str) -> None:
        self.given = given
        self.with_timeout: float | None = None
        self._hold: Hold | None = None

    def within(self: AnyHolder, timeout: float) -> AnyHolder:
        """Have a `with` of this object wait for so many seconds at most; returns this object.

            with store.lock("orders").within(10) as lock:
                charge(order, fence=lock.fence)

        What is not to be had by then raises NotApplied (503 to an HTTP client), and nothing of the `with` was done.
        """
        check_timeout(timeout)
        self.with_timeout = timeout
        return self

    def owned(self) -> bool:
        """Whether it is held through this object, as of now, by the clocks of this machine."""
        hold = self._hold
        return hold is not None and hold.is_held

    def ensure_held(self) -> None:
        """Raise LostError unless it is held, as of now."""
        self._held().ensure_held()

    @property
    def lost(self) -> threading.Event:
        """Set once it counts as lost.  Raises LostError where it is not acquired."""
        return self._held().lost

    @property
    def fence(self) -> int:
        """Of this holder: higher than that of any before.  Raises LostError where it is not acquired."""
        return self._held().fence

    @property
    def name(self) -> str:
        """In the whole store.  Raises LostError where it is not acquired."""
        return self._held().name

    def _held(self) -> Hold:
        hold = self._hold
        if hold is None:
            raise LostError(self.given, "it was not acquired")
        return hold


def as_waited(blocking: bool, timeout: float | None) -> tuple[bool, float | None]:
    """What `acquire(blocking, timeout)` asks for: who has no time to wait for others has some for an answer.

    With no time for that either nobody would be asked, and what is free would not be had.
    """
    return (False, None) if timeout == 0 and not isinstance(timeout, bool) else (blocking, timeout)


def not_had(holder: Holder) -> NotApplied:
    """What a `with` raises that does not begin."""
    return NotApplied(f"{holder.given!r} was not to be had within {holder.with_timeout:g} s; nothing was done")


class Wish(NamedTuple):
    """What is to be claimed: how many units of a name that has how many, under a lease of which TTL; whether to wait.

    data: what it says of who has it.
    kind: of the name.
    """

    name: str
    size: int
    units: int
    data: bytes
    ttl_ms: int
    waits: bool
    kind: int = transactions.UNITS


class _Attempt:
    """A claim that somebody waits for, as long as he does."""

    __slots__ = ("_cluster", "_ends_at", "hold", "is_answered", "is_wanted", "wish")

    def __init__(self, cluster: Access, wish: Wish, ends_at: float) -> None:
        self.wish = wish
        self._cluster = cluster
        self.is_wanted = True
        self.is_answered = False
        self.hold: Hold | None = None
        self._ends_at = ends_at

    @property
    def left(self) -> float:
        """In seconds; infinite if he waits for however long it takes."""
        return self._ends_at - time.monotonic()

    def retry(self, ask: Callable[[float], object]) -> bool:
        """Ask again as long as nobody answers and it is wanted; False: not in time.  Raises what does not pass."""
        while self.is_wanted:
            left = self.left
            try:
                ask(max(min(left, _CALL_SECONDS), 0.0))
                return True
            except (OutcomeUnknown, NotApplied) as error:
                is_over = self.left <= 0
                if not may_pass(error) or self._cluster.over() is not None:
                    raise
                if is_over and isinstance(error, NotApplied):
                    raise
                if is_over:
                    return False
            time.sleep(max(min(_PAUSE_SECONDS, self.left), 0.0))
        return False

    def place(self, hold: Hold, effect: Effect) -> int | None:
        """Place a claim, under its number however often it is asked; None if its lease is over."""
        fence: int | None = 0
        self.is_answered = False

        def ask(timeout: float) -> None:
            nonlocal fence
            answer = self._cluster.propose(encode([effect]), timeout).answer
            fence = int(answer) if isinstance(answer, int) else 0
            hold.is_placed = self.is_answered = True

        try:
            self.retry(ask)
        except Rejected as rejected:
            if transactions.read_no_lease(rejected.reason) is None:
                raise
            hold.lease.end()
            return None
        return fence

    def wait_for(self, hold: Hold) -> int | None:
        """The fence once it is granted, 0 if it was not in time, None: it is gone."""
        try:
            while self.is_wanted:
                hold.signal.arm()
                if hold.lost.is_set():
                    return None
                left = self.left
                with suppress(ReadTimeoutError):
                    seconds = max(min(left, _CALL_SECONDS), _PAUSE_SECONDS)
                    fence = self._cluster.fence_of(hold.place, hold.signal, seconds)
                    if fence != 0:
                        return fence
                error = self._cluster.over()
                if error is not None:
                    raise error
                if left <= 0:
                    break
                if self.is_wanted:
                    hold.signal.wait(min(left, self._cluster.longest_wait, hold.lease.remaining))
            return 0
        finally:
            self._cluster.leave(hold.place, hold.signal)


class Keeper:
    """The leases of a process, and the thread that renews them.  Thread-safe."""

    def __init__(self, cluster: Access) -> None:
        self._cluster = cluster
        self._lock = threading.Lock()  # guards all below but what is the thread's alone; held for no I/O
        self._opening = threading.Lock()  # one opens a lease at a time, and others wait no longer than they want
        self._leases: dict[int, Lease] = {}  # by their TTL in milliseconds
        self._own: dict[Lease, None] = {}  # those that somebody asked for, and is to have kept
        self._ending: dict[Lease, float] = {}  # those that nobody needs any more, and until when that is told
        self._idle: set[str] = set()  # leases under which nothing was wanted when they were renewed last; the thread's
        self._is_served = False
        self._is_closed = False
        self._signal = Signal()

    def claim(
        self, wish: Wish, ends_at: float, begun: Callable[[Callable[[], None]], object] | None = None
    ) -> Hold | None:
        """Claim some of a name; None if it was not granted in time, or at once if it does not wait.

        begun: is given what another thread calls to have the attempt given up.

        The main thread has another do it: if it is interrupted, nobody wants what that one gets.
        """
        attempt = _Attempt(self._cluster, wish, ends_at)
        if begun is not None:
            begun(partial(_abandon, attempt, self._give_up))
        return self._have(attempt, partial(self._claim, attempt))

    def _have(self, attempt: _Attempt, ask: Callable[[], T]) -> T:
        """What `ask` returns for that attempt, of which nothing is left if the main thread is interrupted."""
        if not is_main_thread():
            return ask()
        try:
            return do_elsewhere(ask, attempt.left + 2 * _CALL_SECONDS, OutcomeUnknown)
        except BaseException:
            _abandon(attempt, self._give_up)
            raise

    def _claim(self, attempt: _Attempt) -> Hold | None:
        wish = attempt.wish
        while attempt.is_wanted:
            lease = self._lease(attempt)
            if lease is None:
                break
            attempt.hold = hold = lease.hold(wish.name)
            terms = wish.size, wish.units, wish.data
            effect = instructions.claim(*hold.place, *terms, waits=wish.waits, kind=wish.kind)
            try:
                fence = attempt.place(hold, effect)
                if fence == 0 and wish.waits:
                    fence = attempt.wait_for(hold)
            except BaseException:
                self._give_up(hold)
                raise
            if fence and attempt.is_wanted and not hold.lost.is_set():
                return hold.granted(fence, self)
            if fence == 0 and not wish.waits and attempt.is_answered:
                hold.lease.wanted.pop(hold.number, None)  # and it was not placed
                break
            self._give_up(hold)
            if attempt.left <= 0 or (fence is not None and not hold.lost.is_set()):
                break
        return None

    def open(self, ttl_ms: int, is_kept: bool, timeout: float) -> Lease:
        """A lease of one's own; `is_kept`: it is renewed until it is revoked.  Raises as `Service.propose`."""
        lease = Lease(self._cluster, ttl_ms)
        if not is_main_thread():
            return self._open_own(lease, is_kept, timeout)
        ask = partial(self._open_own, lease, is_kept, timeout)
        try:
            return do_elsewhere(ask, timeout + _CALL_SECONDS, OutcomeUnknown)
        except BaseException:
            lease.end()  # nobody has it
            raise

    def _open_own(self, lease: Lease, is_kept: bool, timeout: float) -> Lease:
        with self._lock:
            self._check_open()
        lease.open(timeout)
        if is_kept:
            with self._lock:
                self._check_open()
                self._serve()
                self._own[lease] = None
            self._signal.set()
        return lease

    def take(self, wish: Wish, within: float | None, ends_at: float) -> tuple[Hold, Item] | None:
        """Claim an item of a queue, and have it, for so many seconds at most; None if there was none in time.

        The main thread has another do all of it, as with `claim`.
        """
        attempt = _Attempt(self._cluster, wish, ends_at)
        return self._have(attempt, partial(self._take, attempt, within))

    def _take(self, attempt: _Attempt, within: float | None) -> tuple[Hold, Item] | None:
        while True:
            hold = self._claim(attempt)
            if hold is None:
                return None
            try:
                hold.limit(within)
                left = min(attempt.left, _CALL_SECONDS)
                item = self._cluster.item_of(hold.place, max(left, _LEAVE_SECONDS))
            except BaseException:
                self._give_up(hold)
                raise
            if item is not None:
                return hold, item
            self._give_up(hold)  # it was lost in the meantime

    def _lease(self, attempt: _Attempt) -> Lease | None:
        """The one of that TTL, which is there; None if none was opened in time; raises what keeps it from that."""
        found: Lease | None = None

        def ask(timeout: float) -> None:
            nonlocal found
            began = time.monotonic()
            if not self._opening.acquire(timeout=timeout):  # somebody else is about to
                raise OutcomeUnknown("a lease was not opened in time")
            try:
                found = self._open(attempt.wish.ttl_ms, max(timeout - (time.monotonic() - began), 0.0))
            finally:
                self._opening.release()

        while found is None and attempt.retry(ask):
            pass  # one that was opened and lost at once: another
        return found

    def _open(self, ttl_ms: int, timeout: float) -> Lease | None:
        """The one that there is, or a new one; None if that counts as lost at once."""
        with self._lock:
            lease = self._leases.get(ttl_ms)
            self._check_open()
            if lease is not None and not lease.is_over:
                self._serve()
                return lease
        lease = Lease(self._cluster, ttl_ms)
        try:
            lease.open(timeout)
        except LostError:
            return None
        with self._lock:
            self._check_open()
            self._serve()
            self._leases[ttl_ms] = lease
        self._signal.set()
        return lease

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoppedError("this Service is being stopped: nothing is claimed here any more")

    # -- letting go

    def let_go(self, hold: Hold, timeout: float) -> None:
        """Have no such claim: told at once if that can be done in time, else by the next renewal."""
        try:
            if hold.lease.wanted.pop(hold.number, None) is not None and hold.lease.is_here:
                self._cluster.propose(encode([instructions.release(*hold.place)]), timeout)
        except BaseException as error:
            self._renew_soon(hold.lease)
            if not isinstance(error, (RaftError, ValueError)):  # whoever waits is interrupted
                raise

    def _give_up(self, hold: Hold) -> None:
        """As `let_go`, and nobody waits for it: the next renewal does not name it, and comes at once."""
        if hold.lease.wanted.pop(hold.number, None) is not None and hold.lease.is_here:
            if not hold.is_placed:
                hold.lease.has_unheard = True
            self._renew_soon(hold.lease)

    def wake(self) -> None:
        """Have the thread look at what is due."""
        self._signal.set()

    def _renew_soon(self, lease: Lease) -> None:
        lease.has_given_up = True
        self._signal.set()

    def close(self, seconds: float = 2 * _LEAVE_SECONDS) -> None:
        """This process stops: what is held counts as lost, and who lets go of it at once has it granted to others.

        seconds: so long at most it takes to tell the cluster, after the second that those have who let go of it.

        Who does not keeps it until its lease runs out: that he stopped is not known.  Who waits is granted nothing any
        more, and the cluster is told so before that.
        """
        with self._lock:
            self._is_closed = True
            every = [*self._leases.values(), *self._own, *self._ending]
            leases = [lease for lease in every if lease.is_here]  # else they are a parent's
        for lease in leases:
            lease.end()
        self._signal.set()
        ends_at = time.monotonic() + _LEAVE_SECONDS
        while any(lease.wanted for lease in leases) and time.monotonic() < ends_at:
            told = [_leave_the_rest(lease, ends_at) for lease in leases if lease.wanted]
            time.sleep(0.01 if all(told) else _PAUSE_SECONDS)
        ends_at = time.monotonic() + seconds
        for lease in leases:
            for hold in list(lease.wanted.values()):
                if not hold.fence:  # nor will it be held here
                    self._give_up(hold)
            if not lease.wanted:
                with suppress(RaftError):
                    left = min(ends_at - time.monotonic(), seconds / 2)
                    if left > 0:
                        self._cluster.propose(encode([instructions.end_lease(lease.id)]), left)
            else:
                _leave_the_rest(lease, ends_at)

    # -- the thread

    def _serve(self) -> None:
        """Have the thread run.  Called under the lock."""
        if self._is_served:
            return
        try:
            threading.Thread(target=self._run, name="raftsvc-leases", daemon=True).start()
        except RuntimeError as error:
            raise NodeFailedError(f"no thread can be started to keep leases: {error}") from error
        self._is_served = True

    def _run(self) -> None:
        while True:
            self._signal.arm()
            with self._lock:
                if self._is_closed or not (self._leases or self._ending or self._own):
                    self._is_served = False
                    return
                own = list(self._own)
            try:
                due_at = self._attend_all(own)
            except BaseException as failure:  # nobody but this thread would renew anything
                with suppress(Exception):
                    logger.error("leases could not be renewed; it is tried again", exc_info=failure)
                due_at = time.monotonic() + _PAUSE_SECONDS
            self._signal.wait(max(due_at - time.monotonic(), 0.0))

    def _attend_all(self, own: list[Lease]) -> float:
        """Do what is due, first for whom least time remains; when there is something to be done again.

        Of one's own there may be many: some are renewed together, and between any two of these calls those that all
        share are looked after.
        """
        due_at = self._attend_shared()
        due = [lease for lease in sorted(own, key=attrgetter("remaining")) if lease.is_due and not lease.is_over]
        for start in range(0, len(due), self._cluster.at_once):
            self._renew_some(due[start : start + self._cluster.at_once])
            due_at = min(due_at, self._attend_shared())
        for lease in own:
            due_at = min(due_at, time.monotonic() + self._attend_own(lease))
        for lease, ends_at in list(self._ending.items()):
            if _try(partial(lease.revoke, _RENEW_SECONDS)) or time.monotonic() > ends_at:
                with self._lock:
                    del self._ending[lease]
            else:
                due_at = min(due_at, time.monotonic() + _PAUSE_SECONDS)
        return due_at

    def _attend_shared(self) -> float:
        """Do what is due for those of all; when there is something to be done again."""
        with self._lock:
            leases = list(self._leases.items())
        due_at = time.monotonic() + _LOOK_SECONDS
        for ttl_ms, lease in leases:
            due_at = min(due_at, time.monotonic() + self._attend(ttl_ms, lease))
        for _, lease in leases:
            due_at = min(due_at, time.monotonic() + self._end_what_is_late(lease))
        return due_at

    def _attend(self, ttl_ms: int, lease: Lease) -> float:
        """Renew it if it is due, end it if nothing was wanted under it for long; for how long nothing is to be done."""
        if lease.is_over:
            lease.end()
            self._forget(ttl_ms, lease)
            return _LOOK_SECONDS
        if not lease.is_due:
            return lease.due_in + 0.001
        is_idle = not lease.wanted
        if is_idle and lease.id in self._idle and self._forget(ttl_ms, lease):
            return 0.0
        if not _renew(lease):
            return min(_PAUSE_SECONDS, lease.ttl / 10)
        (self._idle.add if is_idle else self._idle.discard)(lease.id)
        return 0.0 if lease.has_given_up else lease.ttl * _RENEW_SHARE

    def _renew_some(self, leases: list[Lease]) -> None:
        """Renew them; the first is the one for which least time remains."""
        if len(leases) > 1:
            try:
                refresh_all(self._cluster, leases, _time_for(leases[0]))
                return
            except (RaftError, ValueError) as error:
                if isinstance(error, RaftError) and may_pass(error):
                    return
        for lease in leases:
            _renew(lease)

    def _attend_own(self, lease: Lease) -> float:
        """For how long nothing is to be done for one that somebody has until he revokes it or it is lost."""
        if lease.is_over:
            lease.end()
            with self._lock:
                self._own.pop(lease, None)
            return _LOOK_SECONDS
        if lease.is_due:  # it could not be renewed
            return min(_PAUSE_SECONDS, lease.ttl / 10)
        return lease.due_in + 0.001

    def _end_what_is_late(self, lease: Lease) -> float:
        """Let go of what was to be held for a limited time; for how long nothing is to be let go of."""
        pause = _LOOK_SECONDS
        for hold in list(lease.wanted.values()):
            left = hold.lost.left
            if left > 0:
                pause = min(pause, left + 0.001)
                continue
            began = time.monotonic()
            hold.lost.set()
            self.let_go(hold, _LEAVE_SECONDS)
            if time.monotonic() - began > _LEAVE_SECONDS / 2:
                return 0.0  # renewals come first
        return pause

    def _forget(self, ttl_ms: int, lease: Lease) -> bool:
        """Have nobody claim under it any more, and it end; not if somebody does, unless it is over."""
        with self._lock:
            is_over = lease.is_over
            if lease.wanted and not is_over:
                return False
            if not is_over:
                self._ending[lease] = time.monotonic() + lease.ttl
            if self._leases.get(ttl_ms) is lease:
                del self._leases[ttl_ms]
            self._idle.discard(lease.id)
            return True


def _time_for(lease: Lease) -> float:
    """How many seconds a renewal may take."""
    return min(_RENEW_SECONDS, max(lease.remaining, _PAUSE_SECONDS))


def _renew(lease: Lease) -> bool:
    """As `_try`."""
    return _try(lambda: lease.refresh(_time_for(lease)))


def _try(ask: Callable[[], object]) -> bool:
    """Whether it was done, or it is not worth asking again."""
    try:
        ask()
    except LostError:
        return True
    except (RaftError, ValueError) as error:
        logger.debug("a lease, or a claim, was not renewed or ended: %s", error)
        return isinstance(error, (ForkedError, ConfigurationError, Rejected))
    return True


def _leave_the_rest(lease: Lease, ends_at: float) -> bool:
    """Have the cluster know which claims under it are not wanted any more, if there may be some; whether it does.

    Else it would grant them something until the lease runs out.
    """
    left = min(ends_at - time.monotonic(), _LEAVE_SECONDS)
    return not lease.has_given_up or (left > 0 and _try(partial(lease.drop_unwanted, left)))


def may_pass(error: RaftError) -> bool:
    """Whether it is worth asking again."""
    return isinstance(error, (OutcomeUnknown, OverloadedError, UninitializedError, ReadTimeoutError)) or (
        type(error) is NotApplied
    )


def _abandon(attempt: _Attempt, give_up: Callable[[Hold], None]) -> None:
    """Nobody wants what it gets; whoever waits in it returns."""
    attempt.is_wanted = False
    hold = attempt.hold
    if hold is not None:
        give_up(hold)
        hold.signal.set()


def wait_for_claims(cluster: Access, name: str, look: Callable[[float], T], known: T, timeout: float) -> T:
    """What `look`, given some seconds, shows of the claims on a name once it is not `known`, or the time is over."""
    signal = Signal()
    ends_at = time.monotonic() + timeout
    try:
        while True:
            signal.arm()
            cluster.await_claims(name, signal)
            left = ends_at - time.monotonic()
            with suppress(ReadTimeoutError):
                found = look(min(max(left, _LEAVE_SECONDS), _CALL_SECONDS))
                if found != known or left <= 0:
                    return found
            if left <= 0:
                return known
            error = cluster.over()
            if error is not None:
                raise error
            signal.wait(min(left, cluster.longest_wait))
    finally:
        cluster.leave(name, signal)


def poll(cluster: Access, look: Callable[[float], T], is_news: Callable[[T], bool], timeout: float) -> T:
    """What `look` shows, given some seconds, once that `is_news`, or the time is over, where nothing tells of it."""
    ends_at = time.monotonic() + timeout
    while True:
        left = ends_at - time.monotonic()
        found = look(min(max(left, _LEAVE_SECONDS), _CALL_SECONDS))
        left = ends_at - time.monotonic()
        if is_news(found) or left <= 0:
            return found
        time.sleep(min(left, cluster.longest_wait))


def lease_ttl_ms(ttl: float) -> int:
    """The TTL of a lease in milliseconds; raises ConfigurationError if it makes no sense."""
    if instructions.ttl_ms_of(ttl) < MIN_TTL * 1000:  # None is 0
        raise ConfigurationError(f"the ttl of what is held is {MIN_TTL:g} s or more, not {ttl!r:.100}")
    return instructions.ttl_ms_of(ttl)


def checked_units(size: int, units: int) -> tuple[int, int]:
    """Both; raises ConfigurationError if they make no sense."""
    for number in (size, units):
        if not isinstance(number, int) or isinstance(number, bool):
            raise ConfigurationError(f"size and units are numbers, not {number!r:.100}")
    if not 0 < units <= size <= transactions.MAX_UNITS:
        raise ConfigurationError(f"units are from 1 to size, and that is at most {transactions.MAX_UNITS}")
    return size, units


def checked_data(data: bytes | None) -> bytes:
    """What a claim says of who has it, None: host and process; raises ConfigurationError if it is too long, or none."""
    if data is None:
        return f"{socket.gethostname()}:{os.getpid()}".encode()[: transactions.MAX_CLAIM_DATA]
    if not isinstance(data, bytes | bytearray | memoryview) or len(bytes(data)) > transactions.MAX_CLAIM_DATA:
        raise ConfigurationError(f"data is at most {transactions.MAX_CLAIM_DATA} bytes, not {data!r:.100}")
    return bytes(data)
