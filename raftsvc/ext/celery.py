"""Celery beat: any number of beats may run, anywhere, and one of them acts.

    celery --app tasks beat --scheduler raftsvc        # on each host

The one that acts leads an election of the cluster; the others wait for it to end.  When each entry ran last is kept in
the cluster, so who takes over neither sends again what was sent nor begins to count anew; an entry that has not run
yet is counted from when a beat that acted first knew it.  A run is written down before it is sent, under the condition
that the writer still leads: so a beat that was frozen, or cut off, writes down nothing once another may act, and a run
that is due is sent by one beat, once.  A beat that dies just between the two, or is frozen there, has that run alone:
it sends it when it goes on, or never, and nobody else does; tasks that must not be missed are sent often, and are
idempotent.

Leading ends by the log time of the cluster, which no clock of a host, and no daylight saving, moves.

Configuration of the app, besides Celery's own:

    raft_url        which cluster, see `raftsvc.ext.urls`; `raftsvc://`, the node of this process, unless it is said
    raft_beat_name  of the election and of what is kept, for several apps in one cluster; the app's name (`main`)
    raft_beat_ttl   in seconds: so long after the one that acts died another one does; 15
"""

from __future__ import annotations

import json
import logging
from datetime import datetime
from typing import Any, Final

from celery.beat import ScheduleEntry
from celery.beat import Scheduler as BeatScheduler
from celery.schedules import schedule as Interval

from raftsvc.errors import ConfigurationError, RaftError
from raftsvc.ext.acting import come_to_act
from raftsvc.ext.parts import as_part
from raftsvc.ext.urls import Place
from raftsvc.kv import Hold, KeyValue, LostError, if_held

logger = logging.getLogger("raftsvc.ext")

_PREFIX: Final = "celery-beat/"
_STANDBY_SECONDS: Final = 2.0
"""How long a beat that does not act waits for the election before it looks whether it is to end."""
_LOOK_SECONDS: Final = 2.0
"""The longest that the one that acts sleeps: it says then whether it does, and its log when it does no more."""
_RETRY_SECONDS: Final = 1.0
_AHEAD_SECONDS: Final = 60.0
"""That a run was so long after now is said in the log: clocks of hosts differ by less."""


class RaftScheduler(BeatScheduler):  # type: ignore[misc]
    """See the head of `raftsvc.ext.celery`; for `celery beat --scheduler raftsvc`.

    Made any number of times with `lazy=True`: it asks nobody before the first `tick`.
    """

    def __init__(self, app: Any, *args: Any, **kwargs: Any) -> None:
        """As celery.beat.Scheduler.  Raises ConfigurationError if `raft_url` or `raft_beat_ttl` makes no sense."""
        self._place = Place(app.conf.get("raft_url", "raftsvc://"))
        self._name = str(app.conf.get("raft_beat_name") or app.main or "celery")
        self._prefix = f"{_PREFIX}{as_part(self._name)}"
        self._ttl = _seconds(app.conf.get("raft_beat_ttl", 15.0))
        self._connected: KeyValue | None = None
        self._hold: Hold | None = None
        self._complaint = ""
        super().__init__(app, *args, **kwargs)

    def setup_schedule(self) -> None:
        """The entries of `beat_schedule`; when each ran is read once this one acts."""
        self.merge_inplace(self.app.conf.beat_schedule)
        self.install_default_entries(self.schedule)

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Send what is due, if this one acts, else wait a moment to; returns the seconds until the next call."""
        try:
            if not self._acts():
                self._complaint = ""
                return 0.0
            seconds = min(float(super().tick(*args, **kwargs)), _LOOK_SECONDS)
        except LostError:
            self._act_no_more()
            return _RETRY_SECONDS
        except RaftError as error:
            self._heap = None  # what was taken out of it was not sent
            if str(error) != self._complaint:
                self._complaint = str(error)
                logger.warning(
                    "beat %r cannot ask the cluster, and sends nothing; it is tried again: %s", self._name, error
                )
            return _RETRY_SECONDS
        self._complaint = ""
        return seconds

    def reserve(self, entry: ScheduleEntry) -> ScheduleEntry:
        """Write down that it runs now, before it is sent.  Raises RaftError, and then it is not sent."""
        hold = self._hold
        if hold is None:
            return super().reserve(entry)
        _ = self.producer  # connects to the broker, which may take long: it is not written down before
        following = next(entry)
        self._write(hold, following)
        self.schedule[entry.name] = following
        return following

    def close(self) -> None:
        """Have the next one act at once."""
        hold, self._hold = self._hold, None
        connected, self._connected = self._connected, None
        try:
            if hold is not None:
                hold.release()
            if connected is not None:
                connected.service.close()
        finally:
            super().close()

    @property
    def info(self) -> str:
        """For what beat shows when it starts."""
        return f"    . election -> {self._name} of the cluster"

    def _acts(self) -> bool:
        """Whether this one does, which it may come to do meanwhile."""
        if self._hold is not None and self._hold.is_held:
            return True
        if self._hold is not None:
            self._act_no_more()
        store = self._store()
        hold = come_to_act(store, self._prefix, self._ttl, _STANDBY_SECONDS)
        if hold is None:
            return False
        try:
            self._take_over(store, hold)
        except BaseException:
            hold.release(0.0)
            raise
        self._hold = hold
        logger.warning("beat %r acts from now on", self._name)
        return True

    def _act_no_more(self) -> None:
        hold, self._hold = self._hold, None
        self._heap = None  # what was taken out of it was not sent
        if hold is not None:
            logger.warning("beat %r acts no more: another one may", self._name)
            hold.release(0.0)

    def _take_over(self, store: KeyValue, hold: Hold) -> None:
        """Go on where the last one was."""
        known = store.get_many([self._key(name) for name in self.schedule])
        for name, entry in self.schedule.items():
            value = known.get(self._key(name))
            if value is None or not self._read(entry, value.data):
                self._write(hold, entry)
        self._heap = None

    def _read(self, entry: ScheduleEntry, data: bytes) -> bool:
        """Have it go on from when it ran last; whether that is to be read."""
        try:
            ran = json.loads(data)
            ran_at, count = datetime.fromisoformat(ran["last_run_at"]), int(ran["total_run_count"])
        except (ValueError, TypeError, KeyError) as error:
            logger.warning("when entry %r ran last is not to be read, it is counted from now on: %r", entry.name, error)
            return False
        now = entry.default_now()
        if ran_at.tzinfo is not None and now.tzinfo is not None:
            ran_at = ran_at.astimezone(now.tzinfo)  # for days and hours are of its zone, and the offset may change
            ahead = (ran_at - now).total_seconds()
            if ahead > _AHEAD_SECONDS:
                logger.warning("entry %r ran %.0f s after now, by another host's clock", entry.name, ahead)
            if isinstance(entry.schedule, Interval):
                ran_at = min(ran_at, now)  # else it were not due for so much longer
        entry.last_run_at, entry.total_run_count = ran_at, count
        return True

    def _write(self, hold: Hold, entry: ScheduleEntry) -> None:
        ran = {"last_run_at": entry.last_run_at.isoformat(), "total_run_count": entry.total_run_count}
        self._store().set(self._key(entry.name), json.dumps(ran).encode(), if_held(hold))

    def _key(self, entry: str) -> str:
        return f"{self._prefix}/{as_part(entry)}"

    def _store(self) -> KeyValue:
        if self._place.is_own:
            return self._place.store()
        if self._connected is None:
            self._connected = self._place.store()
        return self._connected


def _seconds(ttl: object) -> float:
    try:
        return float(ttl)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ConfigurationError(f"raft_beat_ttl is a number of seconds, not {ttl!r:.100}") from None
