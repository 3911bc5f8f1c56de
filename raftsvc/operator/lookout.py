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
from raftsvc.operator.survey import why_odd

INTERVAL_SECONDS: Final = 2.0
ASK_SECONDS: Final = 1.5
STALE_SECONDS: Final = 6.0
"""What was said longer ago tells how a member was, and not how it is."""
_WANTED_SECONDS: Final = 12.0
_FIRST_SECONDS: Final = 0.5
"""So long the first one who looks waits at most, rather than be shown that nothing is known yet."""
_ANEW_SECONDS: Final = 2 * ASK_SECONDS + 1.0
"""So long who acts waits at most for what is said after he began: what was asked before may have to end first."""
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
    """One member.  What is known of it is guarded by the lock of the Lookout.

    asked_at: when it was asked what it has answered, or not, last; 0: it was not asked yet.
    is_over:  its thread asks it no more.
    """

    __slots__ = ("again", "asked_at", "is_over", "picture", "said_at", "thread", "wanted_at", "why")

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.is_over = False
        self.wanted_at = 0.0
        self.picture: Picture | None = None
        self.said_at = 0.0
        self.asked_at = 0.0
        self.why = ""
        self.again = threading.Event()

    @property
    def is_on(self) -> bool:
        """Whether it is asked, and goes on being so."""
        return self.thread is not None and self.thread.is_alive() and not self.is_over


class Lookout:
    """Of one process.  Thread-safe."""

    def __init__(self, ask: Callable[[str, float], Picture], stopped: threading.Event) -> None:
        """ask: the member at an address, for so many seconds at most; raises RaftError.

        stopped: nobody is asked then.
        """
        self._ask = ask
        self._stopped = stopped
        self._answered = threading.Condition()  # guards the one below and what is in it; nobody is asked under it
        self._watches: dict[tuple[int, str], _Watch] = {}

    def look(self, members: Mapping[int, str], cluster: object, *, anew: bool = False) -> dict[int, Sight]:
        """What is known of those, by id, each at its address; they are asked from now on.

        cluster: of which they are, as its pictures name it.
        anew:    whether it has to be asked for after this was called, for which it waits a few seconds at most.
        """
        now = time.monotonic()
        patience, least = (_ANEW_SECONDS, now) if anew else (_FIRST_SECONDS, 0.0)
        wanted = [(node_id, addr) for node_id, addr in list(members.items())[:MAX_ASKED] if addr]
        with self._answered:
            watches = {place: self._watched(place, now) for place in wanted}
            self._watches = {**{place: watch for place, watch in self._watches.items() if watch.is_on}, **watches}
            if anew:
                for watch in watches.values():
                    watch.again.set()
            self._answered.wait_for(
                lambda: all(watch.asked_at > least or not watch.is_on for watch in watches.values()), patience
            )
            return {
                node_id: _sight_of(watch, node_id, addr, cluster, least) for (node_id, addr), watch in watches.items()
            }

    def hurry(self) -> None:
        """Have all that are asked asked again now: something was done."""
        with self._answered:
            for watch in self._watches.values():
                watch.again.set()

    def _watched(self, place: tuple[int, str], now: float) -> _Watch:
        """The watch on a member; another one if it was not asked for a while: what was said then is not shown."""
        watch = self._watches.get(place)
        if watch is None or (not watch.is_on and not self._stopped.is_set()):
            watch = _Watch()
        watch.wanted_at = now
        if not watch.is_on and not self._stopped.is_set():
            watch.thread = threading.Thread(
                target=self._run, args=(watch, place[1]), name="raftsvc-lookout", daemon=True
            )
            try:
                watch.thread.start()
            except RuntimeError as error:
                watch.why, watch.thread = f"no thread can be started to ask it: {error}", None
        return watch

    def _run(self, watch: _Watch, addr: str) -> None:
        while self._goes_on(watch):
            asked_at, picture, why = time.monotonic(), None, ""
            try:
                picture = self._ask(addr, ASK_SECONDS)
                why = why_odd(picture)
            except RaftError as error:
                why = str(error) or type(error).__name__
            except Exception as error:  # whatever it answered: it is asked again
                why = f"its answer makes no sense: {error!r:.200}"
            with self._answered:
                watch.asked_at, watch.why = asked_at, why
                if picture is not None and not why:
                    watch.said_at, watch.picture = time.monotonic(), picture
                self._answered.notify_all()
            watch.again.wait(INTERVAL_SECONDS)  # at most so long a thread outlives the node
            watch.again.clear()

    def _goes_on(self, watch: _Watch) -> bool:
        with self._answered:
            watch.is_over = time.monotonic() - watch.wanted_at >= _WANTED_SECONDS or self._stopped.is_set()
            if watch.is_over:
                self._answered.notify_all()
            return not watch.is_over


def _sight_of(watch: _Watch, node_id: int, addr: str, cluster: object, least: float) -> Sight:
    """What is known of a member.  least: asked for before that it does not count."""
    picture, why = watch.picture, watch.why
    if watch.asked_at < least:
        return Sight(None, why=why or "it does not answer in time")
    if picture is None:
        return Sight(None, why=why)
    if picture.get("node_id") != node_id:
        who = f"member {picture['node_id']}" if "node_id" in picture else "a node that is no member"
        return Sight(None, why=f"at {addr} answers {who}")
    if picture.get("cluster_id") != cluster:
        return Sight(None, why=f"who answers at {addr} belongs to cluster {picture.get('cluster_id')!s:.40}")
    return Sight(picture, time.monotonic() - watch.said_at, why)
