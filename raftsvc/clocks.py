"""The clocks of a machine that nobody sets, and what passed by them.

A machine whose clocks do not notice that it is frozen, such as a paused guest, is seen by none of them.
"""

from __future__ import annotations

import sys
import time
from operator import sub


def _clock_ids() -> tuple[int, ...]:
    """CLOCK_BOOTTIME goes on while the machine is suspended, CLOCK_MONOTONIC_RAW is not slewed; on macOS it is both."""
    names = ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC_RAW") if sys.platform == "linux" else ("CLOCK_MONOTONIC_RAW",)
    ids = []
    for name in names:
        try:
            time.clock_gettime_ns(getattr(time, name))
        except (AttributeError, OSError):
            continue
        ids.append(getattr(time, name))
    return tuple(ids)


_IDS = _clock_ids()
SEES_SUSPENSION = (getattr(time, "CLOCK_BOOTTIME", None) if sys.platform == "linux" else next(iter(_IDS), None)) in _IDS
"""Whether one of them goes on while the machine is suspended."""


def read_clocks() -> tuple[int, ...]:
    """What each of the clocks of this system shows, in nanoseconds; `time.monotonic` where there is none."""
    return tuple(map(time.clock_gettime_ns, _IDS)) if _IDS else (time.monotonic_ns(),)


def now_seconds() -> float:
    """What one of them shows that goes on while the machine is suspended, where there is such a one."""
    return read_clocks()[0] / 1_000_000_000


def seconds_since(readings: tuple[int, ...]) -> float:
    """How much passed since the clocks showed that, by the one that moved most: for who holds something until then."""
    most: int = max(0, *map(sub, read_clocks(), readings))
    return most / 1_000_000_000
