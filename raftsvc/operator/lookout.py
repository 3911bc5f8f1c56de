"""Asks each member how it is, over and over, as long as somebody looks at the page, and not a moment longer.

Each member has a thread of its own, so one that does not answer holds up no other, and whoever looks waits for none:
he is told what was said last, and when.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from raftsvc.errors import RaftError

INTERVAL_SECONDS: Final = 2.0
ASK_SECONDS: Final = 1.5
STALE_SECONDS: Final = 6.0
"""What was said longer ago tells how a member was, and not how it is."""
_WANTED_SECONDS: Final = 12.0
_FIRST_SECONDS: Final = 0.5
"""So long the first one who looks waits at most, rather than be shown that nothing is known yet."""
MAX_ASKED: Final = 32

Picture = Mapping[str, Any]


class Sight(NamedTuple):
    """What is known of a member.

    picture: what it said of itself last, `seconds` ago; None: nothing yet.
    why:     why it did not answer when it was asked last; empty if it did, or was not asked yet.
    """

    picture: Picture | None = None
    seconds: float = 0.0
    why: str = ""

    @property
    def is_current(self) -> bool:
        """Whether it says how the member is."""
        return self.picture is not None and self.seconds < STALE_SECONDS


class _Watch:
    """One member.  Each field is written by one thread at a time, and read by any."""

    __slots__ = ("again", "asked", "picture", "said_at", "thread", "wanted_at", "why")

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.wanted_at = 0.0
        self.picture: Picture | None = None
        self.said_at = 0.0
        self.why = ""
        self.asked = threading.Event()
        self.again = threading.Event()


class Lookout:
    """Of one process.  Thread-safe."""

    def __init__(self, ask: Callable[[str, float], Picture], stopped: threading.Event) -> None:
        """ask: the member at an address, for so many seconds at most; raises RaftError.

        stopped: nobody is asked then.
        """
        self._ask = ask
        self._stopped = stopped
        self._lock = threading.Lock()  # guards the one below; nothing is waited for under it
        self._watches: dict[tuple[int, str], _Watch] = {}

    def look(self, members: Mapping[int, str]) -> dict[int, Sight]:
        """What is known of those, by id, each at its address; they are asked from now on."""
        now = time.monotonic()
        wanted = [(node_id, addr) for node_id, addr in list(members.items())[:MAX_ASKED] if addr]
        watches = {}
        with self._lock:
            self._watches = {
                place: watch
                for place, watch in self._watches.items()
                if place in wanted or (watch.thread is not None and watch.thread.is_alive())
            }
            for place in wanted:
                watch = watches[place] = self._watches.setdefault(place, _Watch())
                watch.wanted_at = now
                if not self._stopped.is_set() and (watch.thread is None or not watch.thread.is_alive()):
                    self._begin(watch, place)
        for watch in watches.values():
            watch.asked.wait(max(0.0, now + _FIRST_SECONDS - time.monotonic()))
        found = {}
        for (node_id, addr), watch in watches.items():
            picture, why = watch.picture, watch.why
            if picture is not None and picture.get("node_id") != node_id:
                why, picture = f"at {addr} answers member {picture.get('node_id')}", None
            found[node_id] = Sight(picture, time.monotonic() - watch.said_at if picture is not None else 0.0, why)
        return found

    def hurry(self) -> None:
        """Have all that are asked asked again now: something was done."""
        with self._lock:
            watches = list(self._watches.values())
        for watch in watches:
            watch.again.set()

    def _begin(self, watch: _Watch, place: tuple[int, str]) -> None:
        watch.thread = threading.Thread(target=self._run, args=(watch, place[1]), name="raftsvc-lookout", daemon=True)
        try:
            watch.thread.start()
        except RuntimeError as error:
            watch.why, watch.thread = f"no thread can be started to ask it: {error}", None
            watch.asked.set()

    def _run(self, watch: _Watch, addr: str) -> None:
        while time.monotonic() - watch.wanted_at < _WANTED_SECONDS and not self._stopped.is_set():
            try:
                picture = self._ask(addr, ASK_SECONDS)
                watch.said_at, watch.picture, watch.why = time.monotonic(), picture, ""
            except RaftError as error:
                watch.why = str(error)
            except Exception as error:  # whatever it answered: it is asked again
                watch.why = f"its answer makes no sense: {error!r:.200}"
            watch.asked.set()
            watch.again.wait(INTERVAL_SECONDS)  # at most so long a thread outlives the node
            watch.again.clear()
