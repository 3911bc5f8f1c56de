"""Tells the cluster the clock of this member, and this process what time it is by the clocks of all voters.

Jobs are due by the time of day, which no single clock is trusted for (`raftsvc.kv.runs`).  As long as any process of
the cluster runs jobs, each voter tells its clock every few seconds: whichever process of its host first sees that it
was not told for a while, for all of a host have one clock.

What time it is for this process: what its own clock shows, as long as that is near what the clocks of all
come to; else what they came to when they were told last, and what passed here since.

Invariant: one thread at a time tells the clock of a process, and none where nobody runs jobs.
"""

from __future__ import annotations

import logging
import threading
import time
from _thread import allocate_lock
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, Protocol

from raftsvc.clocks import read_clocks, seconds_since
from raftsvc.errors import ForkedError, RaftError, StoppedError
from raftsvc.kv.orders import CLOCK, Order, encode
from raftsvc.kv.state import Clock, KeyValueState
from raftsvc.mainthread import is_main_thread
from raftsvc.results import Applied

logger = logging.getLogger("raftsvc.kv")

TELL_SECONDS = 5.0
_LOOK_SECONDS = 1.0
_CALL_SECONDS = 3.0
NEAR_MS = 2_000
"""So far from what the clocks of all come to the own one is taken at its word."""


class Teller(Protocol):
    """What is needed of a Service."""

    def propose(self, instruction: bytes, timeout: float = 10.0) -> Applied:
        """Replicate one instruction."""

    def status(self) -> dict[str, object]:
        """A picture of the node."""


class _Known(NamedTuple):
    """What time it was, as was told at that log time, and what the clocks of this machine showed when it was seen."""

    told: tuple[int, int]
    seen: tuple[int, ...]


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
        self._known: _Known | None = None
        self._complaint = ""
        self.wall: Callable[[], int] = _wall_ms

    def begin(self) -> None:
        """Have the thread run as long as clocks are to be told; at once, and again and again."""
        if is_main_thread() or not self._running.acquire(blocking=False):
            return  # the main thread starts none; who applies next does
        try:
            threading.Thread(target=self._run, name="raftsvc-clock", daemon=True).start()
        except RuntimeError:  # there can be no more threads; it is tried again
            self._running.release()

    def now_ms(self) -> int | None:
        """What time it is, in milliseconds since 1970; None: that is not known, for no majority told its clock."""
        self._note(self._state.clock(self._node_id))
        known = self._known
        if known is None:
            return None
        wall_ms = self.wall()
        by_all_ms = known.told[1] + int(seconds_since(known.seen) * 1000)
        return wall_ms if abs(wall_ms - by_all_ms) <= NEAR_MS else by_all_ms

    def offset_ms(self) -> int:
        """How much the own clock is ahead of what those of all come to; 0 where that is not known."""
        known = self._known
        return 0 if known is None else self.wall() - known.told[1] - int(seconds_since(known.seen) * 1000)

    def _note(self, clock: Clock) -> None:
        if clock.now_ms is None:
            return
        told = clock.told_ms, clock.now_ms
        known = self._known
        if known is None or known.told != told:
            self._known = _Known(told, read_clocks())

    # -- the thread

    def _run(self) -> None:
        own: tuple[int, int] | None = None
        own_seen: tuple[int, ...] | None = None  # when that was noticed
        try:
            while self._over() is None:
                try:
                    clock = self._look()
                    if not clock.is_wanted:
                        return
                    if clock.own != own:
                        own, own_seen = clock.own, read_clocks()
                    if clock.votes and (own_seen is None or seconds_since(own_seen) >= TELL_SECONDS):
                        order = Order(CLOCK, (self._node_id, max(self.wall(), 0)))
                        self._service.propose(encode(order), _CALL_SECONDS)
                except (ForkedError, StoppedError):
                    return
                except RaftError as error:
                    logger.debug("the clock of this member was not told: %s", error)
                except BaseException as failure:  # nobody but this thread would tell it
                    with suppress(Exception):
                        logger.error("the clock of this member was not told; it is tried again", exc_info=failure)
                time.sleep(_LOOK_SECONDS)
        finally:
            self._running.release()

    def _look(self) -> Clock:
        if not self._node_id:
            found = self._service.status().get("node_id")
            self._node_id = found if isinstance(found, int) else 0
        clock = self._state.clock(self._node_id)
        self._note(clock)
        self._complain()
        return clock

    def _complain(self) -> None:
        """Say once that the own clock is wrong, and once that it is not any more."""
        ahead = self.offset_ms() / 1000
        complaint = "" if abs(ahead) * 1000 <= 5 * NEAR_MS else "ahead of" if ahead > 0 else "behind"
        if complaint != self._complaint:
            self._complaint = complaint
            if complaint:
                text = "the clock of this machine is %.0f s %s what the voters' clocks come to: jobs run by theirs"
                logger.warning(text, abs(ahead), complaint)
            else:
                logger.info("the clock of this machine is near what the voters' clocks come to again")


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
