"""Who does what next: callers, the log thread, the apply thread, whoever holds the lock anyway.

Two things are decided here.  What is brought to a node, and to whom it is left, is decided
without the node's lock, by one rule, `Inbox`.  What is to be done with what the engine has
ready is decided under it, by functions of nothing but the present state: `may_apply`,
`duties`.

The rule.  Whoever brings something puts it where it is looked for, and only then looks
whether somebody is about to look; if nobody is, he drives himself.  Whoever is about to
look takes that promise back, and only then looks.  So whatever comes between, one of the two
sees the other:

    a promise                       given by            taken back by       who then looks
    a leader writes, is_writing     Writes.begin        Writes.end          Engine.advance
    an index is asked for           Reads.ask           Reads.hear          Engine.advance
    callers were woken, waking      Finished.add_call   note_awake, tick    the last of them; Engine.advance
    the log thread comes, is_set    Signal.set          Signal.wait         Turn.drive

Promises are chained: who looks and finds another that still stands may leave it to that one.

A call too many to look costs a little time.  A call too few leaves callers waiting for the
next tick, which clears `waking`, and looks.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from enum import IntEnum
from typing import NamedTuple

from raftsvc.member.health import Health
from raftsvc.member.waiters import Call, Read, Waiter


class Inbox:
    """What callers bring without the node's lock, and the promises that somebody is about to look."""

    __slots__ = ("_health", "calls", "finished", "is_asking", "is_leading", "is_writing", "reads", "waking")

    def __init__(self, health: Health) -> None:
        self._health = health
        self.calls: deque[Call] = deque()
        """New ones.  Anybody may append; who holds the lock takes them out."""
        self.reads: deque[Read] = deque()
        self.waking: deque[Waiter] = deque()
        """Callers that were woken, and have not run yet; only their number counts."""
        self.finished = Finished(self.waking)
        self.is_writing = False
        """Whether somebody writes to the log, after which he looks."""
        self.is_leading = False
        """Whether this node leads.  If not, what comes in a write is forwarded, which needs no disk."""
        self.is_asking = False
        """Whether an index is being asked for, after which somebody looks for more readers."""

    def moved_to(self, health: Health) -> Inbox:
        """The same, at another engine of this process, which knows no promise yet."""
        self._health = health
        self.is_writing = self.is_leading = self.is_asking = False
        return self

    @property
    def gathers_calls(self) -> bool:
        """Whether instructions gather until the present write is done, for whoever writes to see to them."""
        return self.is_writing and self.is_leading

    def put_call(self, call: Call) -> bool:
        """Leave `call` here; whether who brings it has to drive, for nobody is about to look."""
        self.calls.append(call)
        if self.waking or (self.is_writing and self.is_leading):
            return not self._health.may_serve  # else whoever found that out looks no more
        return True

    def put_read(self, read: Read) -> bool:
        """As `put_call`."""
        self.reads.append(read)
        if self.waking or self.is_asking:
            return not self._health.may_serve
        return True

    def note_awake(self) -> bool:
        """Somebody that was woken runs; whether it was the last to be waited for, who has to look."""
        if not self.waking:
            return False
        with suppress(IndexError):  # a tick came
            self.waking.popleft()
        return not self.waking


class Finished:
    """Who is finished, and is to be woken; then who was woken, and has not run yet.

    Of those who run again most come straight back, or let the next in.  What is sent
    before costs a batch of its own, with a message and a wait for the disk on every
    member, and takes the interpreter from them.  So new ones gather until all of them
    ran, unless nobody writes at present: a round of reads alone costs little.

    Used under the lock.
    """

    __slots__ = ("_has_calls", "_to_wake", "_waking")

    def __init__(self, waking: deque[Waiter]) -> None:
        self._to_wake: list[Waiter] = []
        self._has_calls = False  # since the last tick
        self._waking = waking

    def add_call(self, call: Call) -> None:
        """Have the caller of `call` woken.  Called before anybody can see that it is finished."""
        self._has_calls = True
        self._waking.append(call)
        self._to_wake.append(call)

    def add_reads(self, reads: Sequence[Read]) -> None:
        """Have readers woken."""
        if self._has_calls:
            self._waking += reads
        self._to_wake += reads

    def take(self) -> list[Waiter]:
        """Those to be woken, each once, when the lock is free."""
        if not self._to_wake:
            return []
        taken, self._to_wake = self._to_wake, []
        return taken

    def tick(self) -> None:
        """Who has not run by now is not waited for: it was interrupted, or is late."""
        self._waking.clear()
        self._has_calls = False


class Signal:
    """A wake-up for one thread, remembered until it looks; half the cost of an Event.

    Given without a lock that the thread then needs: with a Condition it would wake
    only to wait for that.
    """

    __slots__ = ("_lock", "is_set")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self.is_set = False
        """Whether the thread has not looked yet, and will."""

    def set(self) -> None:
        """Have the thread look, once more if it does so now."""
        if not self.is_set:
            self.is_set = True
            with suppress(RuntimeError):  # somebody else did at the same moment
                self._lock.release()

    def wait(self, timeout: float) -> None:
        """Until it is given, `timeout` seconds at most; who waits then looks, in any case."""
        self._lock.acquire(timeout=timeout)
        self.is_set = False


class Hands:
    """Who applies, or is going to: one at a time.  Used under the lock.

    helper:        the call whose caller was woken to apply, until he takes the work.
    is_applying:   somebody runs the State's code, or captures it;
    state_thread:  in this thread, whose ident it is; 0: in none.  May be looked at without the lock.
    applies_later: a thread that writes is going to apply, if that is little.
    is_quick:      the last batch was; else callers are not asked to apply what is others'.
    """

    __slots__ = ("applies_later", "helper", "is_applying", "is_quick", "state_thread")

    def __init__(self) -> None:
        self.helper: Call | None = None
        self.is_applying = False
        self.state_thread = 0
        self.applies_later = False
        self.is_quick = True

    @property
    def are_full(self) -> bool:
        """Whether somebody applies, or was asked to: he goes on with what comes since."""
        return self.is_applying or self.helper is not None

    def run_state_here(self) -> bool:
        """Whether the caller is the State's own code, which the node waits for.  Callable without the lock."""
        return self.state_thread == threading.get_ident()

    def begin(self) -> None:
        """Somebody begins to apply."""
        if self.is_applying:
            raise RuntimeError("two threads would apply at a time")
        self.is_applying = True
        self.state_thread = threading.get_ident()

    def end(self) -> None:
        """He is done."""
        if not self.is_applying:
            raise RuntimeError("a thread ends applying that nobody began")
        self.is_applying = False
        self.state_thread = 0


def is_left_to_log_thread(is_over: bool, is_log_thread_due: bool, is_writing: bool) -> bool:
    """Whether the log thread sees to what a caller brought, if nobody else is about to look (`Inbox`).

    is_over:           there is no log thread any more, and waiters are to be failed.
    is_log_thread_due: it was woken, and has not looked yet.  Two that drive would be in each
                       other's way; but while a write goes on it may be at that, and neither a
                       read nor what is forwarded needs the disk.
    """
    return is_log_thread_due and not is_writing and not is_over


class Amount(IntEnum):
    """How much waits to be applied."""

    NOTHING = 0
    LITTLE = 1
    """So little that whoever wrote it may apply it before he goes on."""
    MORE = 2
    MUCH = 3
    """It would hold up who has other things to do: a backlog, or a restart of the State."""


_NOTHING, _LITTLE, _MUCH = Amount.NOTHING, Amount.LITTLE, Amount.MUCH


class Present(NamedTuple):
    """What decides who writes, who applies and who is woken.

    has_writes:      something waits to be written, and nobody writes.
    amount:          of what waits to be applied.
    is_awaited:      callers of this node wait for something.
    is_snapshot_due: one of our own, taken by whoever applies, while nothing is applied.
    is_applying, is_helper_asked, applies_later, is_quick: see `Hands`.
    """

    has_writes: bool
    amount: Amount
    is_awaited: bool
    is_snapshot_due: bool
    is_applying: bool
    is_helper_asked: bool
    applies_later: bool
    is_quick: bool


class Duties(NamedTuple):
    """Whom the end of a turn wakes.

    wakes_log:   the log thread, to write.
    asks_caller: one that waits, if there is any, to apply; most likely its own instruction is
                 among what waits, and no other thread has to be woken before it.
    wakes_apply: the apply thread, unless a caller was asked.
    """

    wakes_log: bool
    asks_caller: bool
    wakes_apply: bool


def may_apply(amount: Amount, is_taken: bool, is_quick: bool) -> bool:
    """Whether a caller may apply what there is: nobody does or was asked to, and it is known to be quick."""
    return is_quick and not is_taken and _NOTHING < amount < _MUCH


def applies_little(amount: Amount, is_awaited: bool) -> bool:
    """Whether who writes for others also applies: it is little, and nobody here waits for it."""
    return amount == _LITTLE and not is_awaited


def duties(p: Present) -> Duties:
    """Whom to wake as of now."""
    if p.is_applying or p.is_helper_asked:
        return Duties(p.has_writes, False, False)
    if p.is_snapshot_due:
        return Duties(p.has_writes, False, True)
    if p.amount == _NOTHING:
        return Duties(p.has_writes, False, False)
    is_left_to_writer = p.applies_later and applies_little(p.amount, p.is_awaited)
    return Duties(p.has_writes, may_apply(p.amount, False, p.is_quick), not is_left_to_writer)
