"""APScheduler 3: a scheduler in every process, of which one acts, and each run time of a job is claimed once.

    scheduler = BackgroundScheduler()
    scheduler.add_job(send_invoices, "cron", hour=4, id="invoices")
    OncePerCluster(scheduler, kv).start()

A shared job store alone does not do that: each scheduler reads what is due and runs it.  Here the scheduler is paused
unless it leads an election of the cluster, and a run is written down, by job and time, before it begins: under the
condition that the writer still leads, and that nobody claimed that run before.  So a process that was frozen claims
nothing once another may, and a run time that two schedulers had, around a takeover, is run by one of them.

For that all have the same jobs: give each an `id`, and a trigger whose times do not depend on when it was added, such
as `cron`, `date`, or `interval` with a `start_date`.  What is due while nobody leads, for `ttl` seconds after a death,
or cannot be claimed as long as no majority answers, is run as soon as it can be, if the job's `misfire_grace_time`
allows that (a second, unless it is said).  A process that dies in the middle of a run has begun it, and nobody runs it
again.

Invariants:
- No run begins that was not claimed, for this process, under the grant by which it led.
- No claim is asked for longer after its run was due than claims are remembered.
"""

from __future__ import annotations

import copy
import logging
import math
import secrets
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any, Final

from apscheduler.events import EVENT_EXECUTOR_ADDED, EVENT_SCHEDULER_SHUTDOWN, EVENT_SCHEDULER_STARTED
from apscheduler.schedulers import SchedulerNotRunningError
from apscheduler.schedulers.base import STATE_STOPPED
from apscheduler.schedulers.blocking import BlockingScheduler

from raftsvc.errors import ConfigurationError, OutcomeUnknown, RaftError
from raftsvc.ext.acting import come_to_act
from raftsvc.ext.parts import as_part
from raftsvc.kv import ConflictError, Hold, KeyValue, LostError, if_held, if_not_exists

logger = logging.getLogger("raftsvc.ext")

_PREFIX: Final = "apscheduler/"
_WAIT_SECONDS: Final = 2.0
_RETRY_SECONDS: Final = 1.0
_CLAIM_SECONDS: Final = 5.0
_STOP_SECONDS: Final = 15.0
_LEAVE_SECONDS: Final = 2.5
_MEMORY_SHARE: Final = 0.5
"""Of `keep`, how late a run may begin at most: clocks of hosts differ, and log time stands still at times."""

Submit = Callable[[Any, Sequence[datetime]], None]


class _Run:
    """A run that is due here.

    is_unsure: whether it may have been claimed here, though nobody said so.
    mark:      what its claim says, and no other's: not that of a process forked from the same one either.
    """

    def __init__(self, submit: Submit, job: Any, run_time: datetime, key: str) -> None:
        self.submit = submit
        self.job = job
        self.run_time = run_time
        self.key = key
        self.is_unsure = False
        self.mark = secrets.token_bytes(8)


class OncePerCluster:
    """Has `scheduler` act in one process of the cluster at a time, and each run time of a job begin once.

    The scheduler is paused, resumed and asked to begin runs by this object from `start` on.
    """

    def __init__(
        self, scheduler: Any, store: KeyValue, *, name: str = "jobs", ttl: float = 15.0, keep: float = 24 * 3600.0
    ) -> None:
        """scheduler: a BackgroundScheduler, or a BlockingScheduler, of APScheduler 3, not started yet.

        store: of the cluster; of a node, of an attached process, or connected.
        name:  of the election, for several kinds of schedulers in one cluster.
        ttl:   in seconds: so long after the process that acts died another one does.
        keep:  in seconds, how long it is known that a run was claimed.  No run begins more than half of that late,
               whatever its `misfire_grace_time`.

        Raises ConfigurationError if one makes no sense.
        """
        if not isinstance(scheduler, BlockingScheduler):
            raise ConfigurationError(
                f"a scheduler whose loop may wait for the cluster is a BackgroundScheduler, not {scheduler!r:.100}"
            )
        if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep < math.inf:
            raise ConfigurationError(f"keep is a number of seconds, not {keep!r:.100}")
        if not isinstance(name, str):
            raise ConfigurationError(f"the name of an election is a text, not {name!r:.100}")
        self._election = f"{_PREFIX}{as_part(name)}"
        store.election(self._election, ttl)  # which says whether that makes sense
        self._scheduler = scheduler
        self._store = store
        self._ttl = ttl
        self._keep = keep
        self._hold: Hold | None = None
        self._stopping = threading.Event()
        self._switching = threading.RLock()  # guards the scheduler's state, whose listeners are called under it
        self._has_begun = False
        self._lock = threading.Lock()  # guards the next; the last that is taken
        self._undecided: dict[str, _Run] = {}
        self._complaint = ""
        self._thread = threading.Thread(target=self._take_part, name="raftsvc-apscheduler", daemon=True)

    def start(self) -> None:
        """Start the scheduler, paused, and take part.  A BlockingScheduler returns once it is shut down.

        After a fork, in the process that is to run jobs.  Raises what the scheduler's `start` raises.
        """
        self._scheduler.add_listener(lambda event: self._gate(), EVENT_EXECUTOR_ADDED)
        self._scheduler.add_listener(lambda event: self._begin(), EVENT_SCHEDULER_STARTED)
        self._scheduler.add_listener(lambda event: self._end(), EVENT_SCHEDULER_SHUTDOWN)
        self._gate()
        self._scheduler.start(paused=True)
        self._begin()  # else it is only logged that no thread can be started

    def _leave(self) -> None:
        """The node is about to stop: another process is to act at once, as nothing could be claimed here any more."""
        self._stopping.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(_LEAVE_SECONDS)

    def shutdown(self, wait: bool = True) -> None:
        """End the scheduler, and have another process act at once.  wait: for runs that are under way.

        As it is with the scheduler's own `shutdown`, but for having another act before these runs are over.
        """
        self._switch(self._scheduler.pause)
        self._stopping.set()
        if self._scheduler.running:
            self._scheduler.get_jobs()  # returns once what it was about to do is done, in which it fails if it is ended
            self._scheduler.shutdown(wait)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(_STOP_SECONDS)

    @property
    def is_leader(self) -> bool:
        """Whether the scheduler of this process acts, as of now, by the clocks of this machine."""
        hold = self._hold
        return hold is not None and hold.is_held

    # -- of the scheduler

    def _begin(self) -> None:
        with self._switching:
            if self._has_begun or self._stopping.is_set():
                return
            self._thread.start()
            self._has_begun = True
        before_stop = getattr(self._store.service, "before_stop", None)
        if callable(before_stop):
            before_stop(self._leave)

    def _end(self) -> None:
        """It was shut down, by whomever; a pause at the same moment does not have it go on."""
        with self._switching:
            self._stopping.set()
            self._scheduler.state = STATE_STOPPED

    def _switch(self, switch: Callable[[], None]) -> None:
        """Pause it, or resume it, unless it ends."""
        with self._switching, suppress(SchedulerNotRunningError):
            if not self._stopping.is_set():
                switch()

    def _gate(self) -> None:
        """Have all its executors ask first."""
        for executor in list(self._scheduler._executors.values()):
            if not isinstance(executor.submit_job, partial):
                executor.submit_job = partial(self._submit, executor.submit_job)

    # -- the thread

    def _take_part(self) -> None:
        while not self._stopping.is_set():
            try:
                hold = come_to_act(self._store, self._election, self._ttl, _WAIT_SECONDS)
                self._complaint = ""
                if hold is not None:
                    self._act(hold)
            except RaftError as error:
                self._complain(f"cannot ask the cluster, and begins nothing: {error}")
                self._stopping.wait(_RETRY_SECONDS)
            except Exception as failure:  # nobody but this thread would have it act
                self._complain(f"could not take part: {failure}", failure)
                self._stopping.wait(_RETRY_SECONDS)

    def _complain(self, why: str, failure: Exception | None = None) -> None:
        if why != self._complaint:
            self._complaint = why
            logger.warning("the scheduler %r %s; it is tried again", self._election, why, exc_info=failure)

    def _act(self, hold: Hold) -> None:
        """As long as it is held."""
        self._hold = hold
        logger.warning("the scheduler %r of this process acts from now on", self._election)
        try:
            self._switch(self._scheduler.resume)
            while hold.is_held and self._scheduler.running and not self._stopping.wait(_RETRY_SECONDS):
                self._try_again()
        finally:
            self._hold = None
            self._switch(self._scheduler.pause)
            if not self._scheduler.running:
                self._stopping.set()
            hold.release()
            logger.warning("the scheduler %r of this process acts no more", self._election)

    def _try_again(self) -> None:
        """Begin what could not be claimed when it was due."""
        with self._lock:
            runs, self._undecided = self._undecided, {}
        for run in runs.values():
            try:
                if self._is_to_begin(run):
                    run.submit(run.job, [run.run_time])
            except Exception:  # as where so many of the job run already
                logger.exception("a run of job %r, due at %s, was not begun", run.job.id, run.run_time)

    # -- claims

    def _submit(self, submit: Submit, job: Any, run_times: Sequence[datetime]) -> None:
        """Begin those that are claimed here; called by the scheduler, for a job that is due.

        Of those that it is going to find too late only the last is asked for, and it tells that: a scheduler that was
        paused for long has many, which others had.
        """
        late = [run_time for run_time in run_times if self._is_late(job, run_time)]
        due = [*late[-1:], *run_times[len(late) :]]
        runs = [_Run(submit, job, run_time, self._key(job, run_time)) for run_time in due]
        claimed = [run.run_time for run in runs if self._is_to_begin(run)]
        if claimed:
            submit(job, claimed)

    def _is_late(self, job: Any, run_time: datetime) -> bool:
        grace = _MEMORY_SHARE * self._keep
        if job.misfire_grace_time is not None:
            grace = min(grace, job.misfire_grace_time)
        return _age(run_time) > grace

    def _is_to_begin(self, run: _Run) -> bool:
        """Whether it is this process's to begin; if nobody can say, it is asked again."""
        name, run_time = run.job.id, run.run_time
        if _age(run_time) > _MEMORY_SHARE * self._keep:
            logger.info("a run of job %r, due at %s, is left out: whether others had it is not known", name, run_time)
            return False
        is_ours = self._claim(run)
        if is_ours is None:
            if self._is_late(run.job, run_time):
                logger.warning("a run of job %r, due at %s, could not be claimed in time", name, run_time)
            else:
                with self._lock:
                    self._undecided[run.key] = run
        return is_ours is True

    def _claim(self, run: _Run) -> bool | None:
        """Whether the run is this one's; None: nobody can say."""
        hold = self._hold
        if hold is None or not hold.is_held:
            return None
        conditions = if_held(hold), if_not_exists(run.key)
        try:
            self._store.set(run.key, run.mark, *conditions, ttl=self._keep, timeout=_CLAIM_SECONDS)
        except ConflictError:
            return self._is_own(run) if run.is_unsure else False
        except LostError:
            return None
        except RaftError as error:
            run.is_unsure = run.is_unsure or isinstance(error, OutcomeUnknown)
            self._complain(f"could not claim a run of job {run.job.id!r}, due at {run.run_time}: {error}")
            return None
        return True

    def _is_own(self, run: _Run) -> bool | None:
        """Whether it was claimed when nobody answered."""
        try:
            found = self._store.get(run.key, _CLAIM_SECONDS)
        except RaftError:
            return None
        return found is not None and found.data == run.mark

    def _key(self, job: Any, run_time: datetime) -> str:
        """Of the run, the same wherever it is due."""
        moment = _slot(job.trigger, run_time).astimezone(timezone.utc).isoformat()
        return f"{self._election}/{as_part(job.id)}/{moment}"


def _age(run_time: datetime) -> float:
    return (datetime.now(timezone.utc) - run_time).total_seconds()


def _slot(trigger: Any, run_time: datetime) -> datetime:
    """When the run was due but for the `jitter` of its trigger, which each process draws for itself."""
    jitter = getattr(trigger, "jitter", None)
    if not jitter:
        return run_time
    plain = copy.copy(trigger)
    plain.jitter = None
    found: datetime | None = plain.get_next_fire_time(None, run_time - timedelta(seconds=jitter, milliseconds=1))
    return found or run_time
