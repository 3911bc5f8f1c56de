"""When a job is due: slots, moments in milliseconds since 1970 that are the same for whoever computes them.

An interval counts from 1970 in UTC, so that nobody has to remember when it began.  A cron expression is of a time zone;
what daylight saving skips or repeats goes as in Debian's cron, which `cronsim` follows: what is due at a fixed time
that is skipped is due right after, what is due at one that comes twice is due the first time, and what is due each so
many minutes or hours goes by the time that passes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timezone, tzinfo
from hashlib import sha256
from typing import Any, NamedTuple, Protocol

from raftsvc.errors import ConfigurationError
from raftsvc.kv.orders import ONCE

_MAX_TEXT_BYTES = 400
_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]+")
"""In what an object says of itself that was given no name."""
MAX_COUNTED = 1000
"""So many slots are told from each other; of more it is said that there are so many."""
_ROUNDED = 1e-15
"""The share by which a number of binary digits is off, at most, that was meant in decimal ones, and was multiplied."""
ONCE_MS = 1000
"""The slot of what is to be run once, at no time: long past, and so due whenever somebody sees to it."""


class Schedule(Protocol):
    """When a job is due."""

    @property
    def text(self) -> str:
        """What people are told; of two that are not the same it is not the same."""

    @property
    def since_ms(self) -> int:
        """From when on slots count; 0: from when it is planned."""

    def after(self, time_ms: int) -> int | None:
        """The first slot after that; None: there is none."""

    def last(self, time_ms: int) -> int | None:
        """The last slot that is not after that; None: there is none."""


class Every:
    """Each so many seconds, from 1970 on."""

    since_ms = 0

    def __init__(self, seconds: float) -> None:
        """Raises ConfigurationError if there is no such interval."""
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 1 <= seconds <= 10 * 366 * 86400:
            raise ConfigurationError(f"a job is run every 1 to {10 * 366 * 86400} seconds, not every {seconds!r:.100}")
        self._period_ms = round(seconds * 1000)
        if not math.isclose(seconds * 1000, self._period_ms, rel_tol=_ROUNDED):
            raise ConfigurationError(f"an interval has whole milliseconds, not {seconds!r:.100} seconds")
        period_ms = self._period_ms
        self.text = f"every {period_ms / 1000 if period_ms % 1000 else period_ms // 1000} s"

    def after(self, time_ms: int) -> int | None:
        """See `Schedule`."""
        return (time_ms // self._period_ms + 1) * self._period_ms

    def last(self, time_ms: int) -> int | None:
        """See `Schedule`."""
        return time_ms // self._period_ms * self._period_ms


class At:
    """Once, at a moment."""

    def __init__(self, moment: datetime | None) -> None:
        """None: as soon as somebody sees to it.  Raises ConfigurationError if it is no moment of any time zone."""
        if moment is None:
            self._slot_ms = ONCE_MS
            self.text = ONCE.decode()
        elif not isinstance(moment, datetime) or moment.tzinfo is None or moment.timestamp() * 1000 <= ONCE_MS:
            raise ConfigurationError(f"a moment is a datetime with a time zone, after 1970, and not {moment!r:.100}")
        else:
            self._slot_ms = int(moment.timestamp() * 1000)
            self.text = f"{ONCE.decode()}, at {moment.astimezone(timezone.utc).isoformat(timespec='milliseconds')}"
        self.since_ms = self._slot_ms - 1

    def after(self, time_ms: int) -> int | None:
        """See `Schedule`."""
        return self._slot_ms if self._slot_ms > time_ms else None

    def last(self, time_ms: int) -> int | None:
        """See `Schedule`."""
        return self._slot_ms if self._slot_ms <= time_ms else None


class Cron:
    """By a cron expression, in a time zone."""

    since_ms = 0

    def __init__(self, expression: str, zone: str | tzinfo) -> None:
        """Raises ConfigurationError if either makes no sense, or what reads them is not installed."""
        self._make, error = _cronsim()
        self._zone = _zone(zone)
        if not isinstance(expression, str):
            raise ConfigurationError(f"a cron expression is a text such as '*/5 * * * *', not {expression!r:.100}")
        try:
            read = self._make(expression, datetime(2000, 1, 1, tzinfo=self._zone))
        except error as wrong:
            raise ConfigurationError(f"{expression!r:.200} is no cron expression: {wrong}") from wrong
        # `cronsim` knows no daylight saving for six fields: it is given five, which say the minutes.
        self._seconds = sorted(read.seconds)
        self._expression = " ".join(expression.split()[-5:])
        if self.after(0) is None:
            raise ConfigurationError(f"{expression!r:.200} is never due")
        self.text = _short(f"cron {' '.join(expression.split())} {_text_of(self._zone)}")

    def after(self, time_ms: int) -> int | None:
        """See `Schedule`."""
        return next((slot_ms for slot_ms in self._slots(time_ms // 60_000 * 60 - 1) if slot_ms > time_ms), None)

    def last(self, time_ms: int) -> int | None:
        """See `Schedule`."""
        # Backwards what comes twice, or not at all, may be passed, or be found though it never is due; forwards
        # neither is.
        for minute_ms in self._minutes(time_ms // 1000 + 1, reverse=True):
            found = None
            for slot_ms in self._slots(minute_ms // 1000 - 1):
                if slot_ms > time_ms:
                    break
                found = slot_ms
            if found is not None:
                return found
        return None

    def _slots(self, seconds: int) -> Iterator[int]:
        """Those of the minutes that begin after that."""
        for minute_ms in self._minutes(seconds):
            for second in self._seconds:
                yield minute_ms + second * 1000

    def _minutes(self, seconds: int, *, reverse: bool = False) -> Iterator[int]:
        start = datetime.fromtimestamp(max(seconds, 0), self._zone)
        for moment in self._make(self._expression, start, reverse=reverse):
            yield int(moment.timestamp()) * 1000


def _short(text: str) -> str:
    """The text itself, or its beginning and what tells it from all others."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= _MAX_TEXT_BYTES:
        return encoded.decode()
    return f"{encoded[:_MAX_TEXT_BYTES].decode(errors='ignore')}... {sha256(encoded).hexdigest()[:16]}"


def _text_of(zone: tzinfo) -> str:
    """What tells a time zone from others, in all processes; raises ConfigurationError if nothing does."""
    text = str(zone)
    if _ADDRESS.search(text):
        raise ConfigurationError(
            f"a time zone has a name that is the same in all processes, which {text:.100} has not: give a name such as "
            "'Europe/Berlin', or give its class a __str__"
        )
    return text


def _cronsim() -> tuple[Callable[..., Any], type[Exception]]:
    try:
        from cronsim import CronSim, CronSimError
    except ImportError as error:
        raise ConfigurationError(
            "jobs by cron expressions need what is not installed: pip install 'raftsvc[jobs]'"
        ) from error
    return CronSim, CronSimError


def _zone(zone: str | tzinfo) -> tzinfo:
    if isinstance(zone, tzinfo):
        return zone
    if not isinstance(zone, str):
        raise ConfigurationError(f"a time zone is a name such as 'Europe/Berlin', not {zone!r:.100}")
    if zone == "UTC":
        return timezone.utc
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        return ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigurationError(
            f"there is no time zone {zone!r:.100} here; if it is right, what knows it is not installed: "
            "pip install 'raftsvc[jobs]'"
        ) from error


class Due(NamedTuple):
    """What is to be done about a job now.

    slot_ms:   the slot that is due, or the last of those that are passed over; None: none is due.
    slots:     for how many that is.
    is_missed: whether it is passed over.
    next_ms:   the next slot, if none is due; None: there is none.
    """

    slot_ms: int | None
    slots: int
    is_missed: bool
    next_ms: int | None


def find_due(schedule: Schedule, since_ms: int, now_ms: int, grace_ms: int | None, coalesce: bool) -> Due:
    """What is due of what comes after `since_ms`.

    grace_ms: what is late by more is missed; None: nothing is.
    coalesce: of several that are due the last stands for all; else each is due, one after the other.
    """
    first_ms = schedule.after(since_ms)
    if first_ms is None or first_ms > now_ms:
        return Due(None, 0, False, first_ms)
    last_ms = schedule.last(now_ms)
    if last_ms is None or last_ms < first_ms:  # never, of a schedule that agrees with itself
        last_ms = first_ms
    oldest_ms = 0 if grace_ms is None else now_ms - grace_ms
    if last_ms < oldest_ms:
        return Due(last_ms, _count(schedule, since_ms, last_ms), True, None)
    if coalesce:
        return Due(last_ms, _count(schedule, since_ms, last_ms), False, None)
    if first_ms < oldest_ms:
        missed_ms = schedule.last(oldest_ms - 1) or first_ms
        return Due(missed_ms, _count(schedule, since_ms, missed_ms), True, None)
    return Due(first_ms, 1, False, None)


def _count(schedule: Schedule, after_ms: int, last_ms: int) -> int:
    """How many slots there are after the one, up to the other, as far as it is worth counting."""
    count = 0
    slot_ms = schedule.after(after_ms)
    while slot_ms is not None and slot_ms <= last_ms and count < MAX_COUNTED:
        count += 1
        slot_ms = schedule.after(slot_ms)
    return max(count, 1)
