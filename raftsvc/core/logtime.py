"""Log time: how a leader counts it, and when it lets the others know by a pulse (R15).

A State that lets things expire needs a time that is the same on all nodes, so it is part of
the log: each entry has the one at which its leader appended it.  It counts milliseconds that
passed while somebody led.  Two entries are further apart by it than they were in truth by less
than a millisecond, for it counts whole ones, whoever appended them: a later leader counts from an
entry that was in its log before it led.  So what ends a millisecond later than it says ends no earlier.

What a leader counted and put into no entry is lost with it.  While somebody waits for a deadline
that must not be, or leaders that follow each other soon enough would keep it from ever
coming; so a pulse is appended at least every tenth of what remains.
"""

from __future__ import annotations

from typing import Final

from raftsvc.core.log import last_time_ms
from raftsvc.core.messages import MAX_TIME_MS
from raftsvc.core.server import Server

_MOST_MS: Final = 10_000
"""Between two entries while a deadline is waited for, however far away it is."""


class LogTime:
    """Time as one leader counts it.

    now_ms: what it is, as of the last `advance`; every entry that is appended has it.
    """

    __slots__ = ("_farewell_index", "_pulse_index", "_server", "now_ms")

    def __init__(self, server: Server) -> None:
        self._server = server
        self.now_ms = last_time_ms(server.log)
        # Up to here the State must have come before there is another pulse: else a State that
        # hangs would have the log grow.  What the leader begins with counts for one.
        self._pulse_index = server.log.last_index + 1
        self._farewell_index = 0

    def advance(self, elapsed_ms: int) -> None:
        """So much time passed; what is more than an election timeout was a freeze, and does not count."""
        settings = self._server.settings
        elapsed_ms = min(max(elapsed_ms, 0), settings.election_ticks * settings.tick_ms)
        self.now_ms = min(self.now_ms + elapsed_ms, MAX_TIME_MS)

    def is_pulse_due(self) -> bool:
        """Whether the deadline has come, or it is long, measured by what remained, since the others knew the time."""
        log = self._server.log
        deadline_ms = log.deadline_ms
        if deadline_ms is None or log.applied_index < self._pulse_index:
            return False
        last_ms = last_time_ms(log)
        if deadline_ms <= last_ms:  # an entry says so; it has only to be applied, if it was not
            return log.applied_index == log.last_index
        interval_ms = min(_MOST_MS, max(self._server.settings.tick_ms, (deadline_ms - last_ms) // 10))
        return deadline_ms <= self.now_ms or self.now_ms - last_ms >= interval_ms

    def is_farewell_due(self) -> bool:
        """Whether there is something to be known before another leads; not again and again while the State hangs."""
        log = self._server.log
        return (
            log.deadline_ms is not None
            and self.now_ms > last_time_ms(log)
            and log.applied_index >= self._farewell_index
        )

    def note_pulse(self) -> None:
        """One was appended."""
        self._pulse_index = self._farewell_index = self._server.log.last_index
