"""Tells the cluster the clock of this member, and this process what time it is by the clocks of all voters.

Jobs are due by the time of day, which no single clock is trusted for (`raftsvc.kv.runs`).  As long as any process of
the cluster runs jobs, each voter tells its clock every few seconds: whichever process of its host first sees that it
was not told for a while, for all of a host have one clock.  They look at times that differ by chance, so that one
tells for all.

What time it is for this process: what its own clock shows, as long as that is near what the clocks of all
come to; else what they came to, and what passed here since.  The log does not say how long ago something was told: it
may be read days later, and log time stands still while nobody leads.  So a clock counts only if it was told
after a moment at which this process knew all of the log, and that is not long ago by clocks of this machine that nobody
sets.

Invariants:
- One thread at a time tells the clock of a process, and none where nobody runs jobs.
- Nothing that was told more than `COUNTS_SECONDS` ago counts, as long as the machine sees that it was frozen.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from _thread import allocate_lock
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, Protocol

from raftsvc import logs
from raftsvc.clocks import read_clocks, seconds_since
from raftsvc.errors import ForkedError, RaftError, StoppedError
from raftsvc.kv.orders import CLOCK, Order, encode
from raftsvc.kv.runs import middle_ms
from raftsvc.kv.state import Clock, KeyValueState
from raftsvc.mainthread import is_main_thread
from raftsvc.results import Applied

logger = logging.getLogger("raftsvc.kv")

TELL_SECONDS = 5.0
COUNTS_SECONDS = 60.0
"""A clock counts no longer that was told so long ago."""
_LOOK_SECONDS = 1.0
_READ_SECONDS = 10.0
"""So often all of the log is asked for."""
_CALL_SECONDS = 3.0
NEAR_MS = 2_000
"""So far from what the clocks of all come to the own one is taken at its word."""


class Teller(Protocol):
    """What is needed of a Service."""

    def propose(self, instruction: bytes, timeout: float = 10.0) -> Applied:
        """Replicate one instruction."""

    def wait_read(self, timeout: float = 5.0) -> None:
        """Return once reads of the local State see every write that finished before this call."""

    def status(self) -> dict[str, object]:
        """A picture of the node."""


class _Seen(NamedTuple):
    """What a clock showed, by an entry, and what those of this machine showed when that was seen here."""

    entry: int
    shown_ms: int
    at: tuple[int, ...]


class _Mark(NamedTuple):
    """What was told by later entries was told after the clocks of this machine showed that."""

    entry: int
    at: tuple[int, ...]


class Timekeeper:
    """The clock of this process, and the time by all.  Thread-safe.

    wall: the clock of this machine, in milliseconds since 1970; replaced in tests.
    """

    def __init__(self, service: Teller, state: KeyValueState, over: Callable[[], RaftError | None]) -> None:
        self._service = service
        self._state = state
        self._over = over
        self._running = allocate_lock()  # held as long as the thread runs
        self._node_id = 0
        self._chance = random.Random()
        self._voters = 0
        # Replaced as a whole by whoever looks; what another saw meanwhile is seen again.
        self._seen: dict[int, _Seen] = {}
        self._marks: tuple[_Mark, ...] = ()  # the thread's; those that are not long ago
        self._complaint = ""
        self.wall: Callable[[], int] = wall_ms

    def begin(self) -> None:
        """Have the thread run as long as clocks are to be told; at once, and again and again."""
        if is_main_thread() or not self._running.acquire(blocking=False):
            return  # the main thread starts none; who applies next does
        try:
            threading.Thread(target=self._run, name="raftsvc-clock", daemon=True).start()
        except RuntimeError:  # there can be no more threads; it is tried again
            self._running.release()

    def now_ms(self) -> int | None:
        """What time it is, in milliseconds since 1970; None: that is not known, no majority told its clock lately."""
        self._note(self._state.clock(self._node_id))
        wall_ms, by_all_ms = self.wall(), self._by_all_ms()
        return wall_ms if by_all_ms is not None and abs(wall_ms - by_all_ms) <= NEAR_MS else by_all_ms

    def offset_ms(self) -> int:
        """How much the own clock is ahead of what those of all come to; 0 where that is not known."""
        by_all_ms = self._by_all_ms()
        return 0 if by_all_ms is None else self.wall() - by_all_ms

    def _by_all_ms(self) -> int | None:
        mark = next((mark for mark in self._marks if seconds_since(mark.at) <= COUNTS_SECONDS), None)
        if mark is None:
            return None
        counted = [each for each in self._seen.values() if each.entry > mark.entry]
        shown = [each.shown_ms + int(seconds_since(each.at) * 1000) for each in counted]
        return middle_ms(shown, self._voters)

    def _note(self, clock: Clock) -> None:
        seen: dict[int, _Seen] = {}
        at = read_clocks()
        for told in clock.told:
            known = self._seen.get(told.node_id)
            if known is None or known.entry != told.entry:
                known = _Seen(told.entry, told.shown_ms + clock.told_ms - told.at_ms, at)
            seen[told.node_id] = known
        self._seen, self._voters = seen, clock.voters

    # -- the thread

    def _run(self) -> None:
        self._marks = ()  # it may be long since the last of these
        pause = self.first_pause()
        try:
            while True:
                time.sleep(pause)
                if self._over() is not None:
                    return
                try:
                    if not self.look():
                        return
                except (ForkedError, StoppedError):
                    return
                except RaftError as error:
                    logger.debug("the clock of this member was not told: %s", error)
                except BaseException as failure:  # nobody but this thread would tell it
                    with suppress(Exception):
                        logger.error("the clock of this member was not told; it is tried again", exc_info=failure)
                pause = self.pause()
        finally:
            self._running.release()

    def first_pause(self) -> float:
        """For how many seconds not even the first look is taken: all processes of a host may begin at once."""
        return self._chance.random() * _LOOK_SECONDS

    def pause(self) -> float:
        """Seconds between two looks: one of several processes, whichever, is to be the first."""
        return (0.5 + self._chance.random()) * _LOOK_SECONDS

    def look(self) -> bool:
        """Tell the clock, if it is time to; whether clocks are to be told at all.  Raises RaftError."""
        if not self._node_id:
            found = self._service.status().get("node_id")
            self._node_id = found if isinstance(found, int) else 0
        clock = self._state.clock(self._node_id)
        if not clock.is_wanted:
            return False
        self._note(clock)
        self._complain()
        if not self._marks or seconds_since(self._marks[-1].at) >= _READ_SECONDS:
            self._mark()
        own = self._seen.get(self._node_id)
        if clock.votes and (own is None or self._is_old(own) or seconds_since(own.at) >= TELL_SECONDS):
            self._service.propose(encode(Order(CLOCK, (self._node_id, max(self.wall(), 0)))), _CALL_SECONDS)
        return True

    def _mark(self) -> None:
        """Know all of the log as it is now, if somebody answers; if not, others may still know by this clock."""
        at = read_clocks()
        try:
            self._service.wait_read(_CALL_SECONDS)
        except (ForkedError, StoppedError):
            raise
        except RaftError as error:
            logger.debug("this member does not know all of the log: %s", error)
        else:
            index = max([told.entry for told in self._state.clock(self._node_id).told], default=0)
            marks = [mark for mark in self._marks if seconds_since(mark.at) <= COUNTS_SECONDS]
            self._marks = (*marks, _Mark(index, at))

    def _is_old(self, own: _Seen) -> bool:
        return bool(self._marks) and own.entry <= self._marks[0].entry

    def _complain(self) -> None:
        """Say once that the own clock is wrong, and once that it is not any more."""
        ahead = self.offset_ms() / 1000
        complaint = "" if abs(ahead) * 1000 <= 5 * NEAR_MS else "ahead of" if ahead > 0 else "behind"
        if complaint != self._complaint:
            self._complaint = complaint
            if complaint:
                off = f"{abs(ahead):.0f} s {complaint}"
                text = f"the clock of this machine is {off} what the voters' clocks come to: jobs run by theirs"
                logs.tell(logger, logging.WARNING, text, logs.what("clock-off", seconds=ahead))
            else:
                text = "the clock of this machine is near what the voters' clocks come to again"
                logs.tell(logger, logging.WARNING, text, logs.what("clock-near", seconds=ahead))


def wall_ms() -> int:
    """What the clock of this machine shows, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000
