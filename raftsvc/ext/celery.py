"""Celery beat: any number of beats may run, anywhere, and one of them acts.

    celery --app tasks beat --scheduler raftsvc        # on each host

The one that acts leads an election of the cluster; the others wait for it to end.  When each entry ran last is kept in
the cluster, so who takes over neither sends again what was sent nor begins to count anew.  A run is written down before
it is sent, under the condition that the writer still leads: so a beat that was frozen, or cut off, sends nothing once
another may act, and a run that is due is sent by one beat, once.  A beat that dies just between the two has not sent
that one run, and nobody sends it later; tasks that must not be missed are sent often, and are idempotent.

Leading ends by the log time of the cluster, which no clock of a host, and no daylight saving, moves.

Configuration of the app, besides Celery's own:

    raft_url        which cluster, see `raftsvc.ext.urls`; `raftsvc://`, the node of this process, unless it is said
    raft_beat_name  of the election and of what is kept, for several apps in one cluster; "celery"
    raft_beat_ttl   in seconds: so long after the one that acts died another one does; 15
"""

from __future__ import annotations

import json
import logging
from datetime import datetime
from typing import Any, Final

from celery.beat import ScheduleEntry
from celery.beat import Scheduler as BeatScheduler

from raftsvc.errors import RaftError
from raftsvc.ext.urls import Place
from raftsvc.kv import Hold, KeyValue, if_held

logger = logging.getLogger("raftsvc.ext")

_PREFIX: Final = "celery-beat/"
_STANDBY_SECONDS: Final = 2.0
"""How long a beat that does not act waits for the election before it looks whether it is to end."""
_LOOK_SECONDS: Final = 2.0
"""The longest that the one that acts sleeps: it says then whether it does, and its log when it does no more."""
_RETRY_SECONDS: Final = 1.0


class RaftScheduler(BeatScheduler):  # type: ignore[misc]
    """See the head of `raftsvc.ext.celery`; for `celery beat --scheduler raftsvc`.

    Made any number of times with `lazy=True`: it asks nobody before the first `tick`.
    """

    def __init__(self, app: Any, *args: Any, **kwargs: Any) -> None:
        """As celery.beat.Scheduler.  Raises ConfigurationError if `raft_url` makes no sense."""
        self._place = Place(app.conf.get("raft_url", "raftsvc://"))
        self._name = str(app.conf.get("raft_beat_name", "celery"))
        self._ttl = float(app.conf.get("raft_beat_ttl", 15.0))
        self._connected: KeyValue | None = None
        self._hold: Hold | None = None
        super().__init__(app, *args, **kwargs)

    def setup_schedule(self) -> None:
        """The entries of `beat_schedule`; when each ran is read once this one acts."""
        self.merge_inplace(self.app.conf.beat_schedule)
        self.install_default_entries(self.schedule)

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Send what is due, if this one acts, else wait a moment to; returns the seconds until the next call."""
        try:
            if not self._acts():
                return 0.0
            return min(float(super().tick(*args, **kwargs)), _LOOK_SECONDS)
        except RaftError as error:
            logger.warning(
                "beat %r cannot ask the cluster, and sends nothing; it is tried again: %s", self._name, error
            )
            self._heap = None  # what was taken out of it was not sent
            return _RETRY_SECONDS

    def reserve(self, entry: ScheduleEntry) -> ScheduleEntry:
        """Write down that it runs now, before it is sent.  Raises RaftError, and then it is not sent."""
        hold = self._hold
        following = next(entry)
        if hold is not None:
            ran = {"last_run_at": following.last_run_at.isoformat(), "total_run_count": following.total_run_count}
            self._store().set(self._key(entry.name), json.dumps(ran).encode(), if_held(hold))
        self.schedule[entry.name] = following
        return following

    def close(self) -> None:
        """Have the next one act at once."""
        hold, self._hold = self._hold, None
        try:
            if hold is not None:
                hold.release()
        finally:
            super().close()

    @property
    def info(self) -> str:
        """For what beat shows when it starts."""
        return f"    . election -> {self._name} of the cluster"

    def _acts(self) -> bool:
        """Whether this one does, which it may come to do meanwhile."""
        hold = self._hold
        if hold is not None and hold.is_held:
            return True
        if hold is not None:
            logger.warning("beat %r acts no more: another one may", self._name)
            self._hold = None
            hold.release(0.0)
        store = self._store()
        hold = store.claim(f"election:{_PREFIX}{self._name}", ttl=self._ttl, timeout=_STANDBY_SECONDS)
        if hold is None:
            return False
        try:
            self._take_over(store)
        except BaseException:
            hold.release(0.0)
            raise
        self._hold = hold
        logger.warning("beat %r acts from now on", self._name)
        return True

    def _take_over(self, store: KeyValue) -> None:
        """Go on where the last one was."""
        for name, entry in self.schedule.items():
            value = store.get(self._key(name))
            if value is not None:
                ran = json.loads(value.data)
                entry.last_run_at = datetime.fromisoformat(ran["last_run_at"])
                entry.total_run_count = int(ran["total_run_count"])
        self._heap = None

    def _key(self, entry: str) -> str:
        return f"{_PREFIX}{self._name}/{entry}"

    def _store(self) -> KeyValue:
        if self._place.is_own:
            return self._place.store()
        if self._connected is None:
            self._connected = self._place.store()
        return self._connected
