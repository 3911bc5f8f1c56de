"""APScheduler 3: a scheduler in every process, of which one acts, and each run time of a job is claimed once.

    scheduler = BackgroundScheduler()
    scheduler.add_job(send_invoices, "cron", hour=4, id="invoices")
    OncePerCluster(scheduler, kv).start()

A shared job store alone does not do that: each scheduler reads what is due and runs it.  Here the scheduler is paused
unless it leads an election of the cluster, and a run is written down, by job and time, before it begins: under the
condition that the writer still leads, and that nobody claimed that run before.  So a process that was frozen begins
nothing once another may, and a run time that two schedulers had, around a takeover, is run by one of them.

For that all have the same jobs: give each an `id`, and a trigger whose times do not depend on when it was added, such
as `cron`, `date`, or `interval` with a `start_date`.  What is due while nobody leads, for `ttl` seconds after a death,
is run by who takes over if the job's `misfire_grace_time` allows that (a second, unless it is said).  A process that
dies in the middle of a run has begun it, and nobody runs it again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from functools import partial
from typing import Any, Final

from apscheduler.events import EVENT_EXECUTOR_ADDED
from apscheduler.schedulers import SchedulerNotRunningError

from raftsvc.errors import RaftError
from raftsvc.kv import ConflictError, Hold, KeyValue, if_held, if_not_exists

logger = logging.getLogger("raftsvc.ext")

_PREFIX: Final = "apscheduler/"
_WAIT_SECONDS: Final = 2.0
_RETRY_SECONDS: Final = 1.0
_CLAIM_SECONDS: Final = 5.0
_STOP_SECONDS: Final = 15.0


class OncePerCluster:
    """Has `scheduler` act in one process of the cluster at a time, and each run time of a job begin once."""

    def __init__(
        self, scheduler: Any, store: KeyValue, *, name: str = "jobs", ttl: float = 15.0, keep: float = 24 * 3600.0
    ) -> None:
        """scheduler: of APScheduler 3, not started yet, whose loop is a thread of its own (BackgroundScheduler).

        store: of the cluster; of a node, of an attached process, or connected.
        name:  of the election, for several kinds of schedulers in one cluster.
        ttl:   in seconds: so long after the process that acts died another one does.
        keep:  in seconds, how long it is known that a run was claimed; more than any `misfire_grace_time`.
        """
        self._scheduler = scheduler
        self._store = store
        self._name = name
        self._ttl = ttl
        self._keep = keep
        self._hold: Hold | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._take_part, name="raftsvc-apscheduler", daemon=True)

    def start(self) -> None:
        """Start the scheduler, paused, and take part.  Raises what its `start` raises."""
        self._scheduler.add_listener(lambda event: self._gate(), EVENT_EXECUTOR_ADDED)
        self._scheduler.start(paused=True)
        self._gate()
        self._thread.start()

    def shutdown(self, wait: bool = True) -> None:
        """End the scheduler, and have another process act at once.  wait: for runs that are under way."""
        self._stopping.set()
        if self._scheduler.running:
            self._scheduler.shutdown(wait)
        self._thread.join(_STOP_SECONDS)

    @property
    def is_leader(self) -> bool:
        """Whether the scheduler of this process acts, as of now, by the clocks of this machine."""
        hold = self._hold
        return hold is not None and hold.is_held

    def _take_part(self) -> None:
        while not self._stopping.is_set():
            try:
                hold = self._store.claim(f"election:{_PREFIX}{self._name}", ttl=self._ttl, timeout=_WAIT_SECONDS)
                if hold is not None:
                    self._act(hold)
            except RaftError as error:
                logger.warning("the scheduler %r cannot ask the cluster; it is tried again: %s", self._name, error)
                self._stopping.wait(_RETRY_SECONDS)

    def _act(self, hold: Hold) -> None:
        """As long as it is held."""
        self._hold = hold
        logger.warning("the scheduler %r of this process acts from now on", self._name)
        try:
            with suppress(SchedulerNotRunningError):  # it ends meanwhile
                self._scheduler.resume()
            while not self._stopping.is_set() and not hold.lost.wait(_RETRY_SECONDS):
                pass
        finally:
            self._hold = None
            with suppress(SchedulerNotRunningError):
                self._scheduler.pause()
            hold.release()
            logger.warning("the scheduler %r of this process acts no more", self._name)

    def _gate(self) -> None:
        """Have all its executors ask first."""
        for executor in self._scheduler._executors.values():
            if not isinstance(executor.submit_job, partial):
                executor.submit_job = partial(self._submit, executor.submit_job)

    def _submit(
        self, submit: Callable[[Any, Sequence[datetime]], None], job: Any, run_times: Sequence[datetime]
    ) -> None:
        """Begin those that are claimed here; called by the scheduler, for a job that is due."""
        claimed = [run_time for run_time in run_times if self._claim(job.id, run_time)]
        if claimed:
            submit(job, claimed)

    def _claim(self, job: str, run_time: datetime) -> bool:
        """Whether the run is this one's; if nobody can say it is not."""
        hold = self._hold
        if hold is None:
            return False
        key = f"{_PREFIX}{self._name}/{job}/{run_time.astimezone(timezone.utc).isoformat()}"
        try:
            self._store.set(key, b"", if_held(hold), if_not_exists(key), ttl=self._keep, timeout=_CLAIM_SECONDS)
        except ConflictError:
            return False
        except RaftError as error:
            logger.warning(
                "a run of job %r, due at %s, is left out, for it could not be claimed: %s", job, run_time, error
            )
            return False
        return True
