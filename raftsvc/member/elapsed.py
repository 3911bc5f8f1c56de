"""How much time passed, by clocks that nobody sets: for who leads no more than any of them says, for who holds no less.

Log time must never run ahead of the truth, or what expires by it expires early.  So of several
clocks the one counts that moved least since they were looked at last, each time anew; one that
went back says that nothing passed.  Fractions of a millisecond are carried, and never rounded up.
Who holds something until a time comes, such as a leader its lease for reads, has to let go of it
early rather than late, and goes by the one that moved most.

A machine whose clocks do not notice that it is frozen, such as a paused guest, is seen by none of
them: time stands still there, which makes what is held longer and never shorter.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import sub
from typing import Final, NamedTuple

from raftsvc.core.leader import Leader
from raftsvc.core.raft import Raft

_NS_PER_MS: Final = 1_000_000


class _Mark(NamedTuple):
    """What each of several clocks showed, and the one of them all then.  One mark is told from another by identity."""

    readings: tuple[int, ...]
    passed_ns: int


class FastestClock:
    """Nanoseconds of a clock that advances, each time it is looked at, by as much as any of several did since the last.

    Looked at under the lock of one node, save by `glance`.
    """

    __slots__ = ("_clocks", "_mark")

    def __init__(self, clocks: Callable[[], tuple[int, ...]]) -> None:
        self._clocks = clocks
        self._mark = _Mark(clocks(), 0)

    def look(self) -> int:
        """What it shows, from which it goes on."""
        self._mark = mark = self._after(self._mark)
        return mark.passed_ns

    def glance(self) -> int:
        """What it shows, by any thread, without the lock; nothing goes on from there.

        Again if it was looked at meanwhile: what it has advanced since then is not known from what was before.
        """
        while True:
            mark = self._mark
            passed_ns = self._after(mark).passed_ns
            if self._mark is mark:
                return passed_ns

    def _after(self, mark: _Mark) -> _Mark:
        readings = self._clocks()
        most: int = max(map(sub, readings, mark.readings))
        return _Mark(readings, mark.passed_ns + max(0, most))


class Elapsed:
    """Time since this was asked last."""

    __slots__ = ("_clocks", "_last", "_rest_ns")

    def __init__(self, clocks: Callable[[], tuple[int, ...]]) -> None:
        self._clocks = clocks
        self._last: tuple[int, ...] | None = None
        self._rest_ns = 0

    def stop(self) -> None:
        """Nothing is to be counted until `take_ms` is called the next time."""
        self._last = None
        self._rest_ns = 0

    def take_ms(self) -> int:
        """How many whole milliseconds passed since the last call, or since `stop` and the first call after it."""
        last, self._last = self._last, self._clocks()
        if last is None:
            return 0
        ns = self._rest_ns + max(0, min(map(sub, self._last, last)))
        elapsed_ms: int = ns // _NS_PER_MS
        self._rest_ns = ns - elapsed_ms * _NS_PER_MS
        return elapsed_ms


class Timekeeper:
    """Has the core of a node know what time it is."""

    __slots__ = ("_core", "_elapsed", "_leader", "_now")

    def __init__(self, core: Raft, clocks: Callable[[], tuple[int, ...]], now: Callable[[], int] | None) -> None:
        """clocks: what log time is measured by; now: the clock of leases, None without them."""
        self._core = core
        self._now = now
        self._elapsed = Elapsed(clocks)
        self._leader: Leader | None = None  # whose time is counted

    def note(self) -> None:
        """Time passed: for leases, and for the log as far as this node led.  To be called before whatever may append.

        An entry that is stamped with what was noted earlier seems older than it is, and what
        it has expire after some time expires early.
        """
        core, leader = self._core, self._core.leader
        if self._now is not None:
            core.now = self._now()
        if leader is not self._leader:  # what passed before belongs to another, or to nobody
            self._leader = leader
            self._elapsed.stop()
        if leader is not None:
            core.advance(self._elapsed.take_ms())
