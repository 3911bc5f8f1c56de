"""Jobs: what is run again and again, or once at some time, by one process of the whole cluster each time."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone, tzinfo
from functools import partial
from typing import NamedTuple, TypeVar

from raftsvc.callables import check_function
from raftsvc.errors import ConfigurationError, ForkedError, NodeFailedError
from raftsvc.kv import KeyValue
from raftsvc.kv.instructions import checked_key
from raftsvc.kv.orders import MAX_AT_ONCE, MAX_ATTEMPTS
from raftsvc.kv.runs import STATES, Run
from raftsvc.mainthread import do_elsewhere, is_main_thread
from raftsvc.recipes.scheduler import Job, Scheduler, is_over
from raftsvc.recipes.slots import At, Cron, Every, Schedule

FunctionT = TypeVar("FunctionT", bound=Callable[[], object])

GRACE_SECONDS = 60.0
_ASK_SECONDS = 5.0
_FAREWELL_SECONDS = 2.0
_MAX_GRACE_SECONDS = 100 * 366 * 86400
_MAX_THREADS = 1000


class PastRun(NamedTuple):
    """A run as `Jobs.history` shows it.  Moments are in UTC, and None where they are not known.

    slot:    when it was due; of several that it stands for the last.
    state:   "running", "done", "failed" (it raised), "died" (who ran it was not heard of again, or ended before it),
             "missed" (nobody could begin it in time: it was not run).
    attempt: which it is, from 1; 0: of what was missed without being claimed.
    slots:   how many it stands for.
    began, ended: by the clocks of the voters.
    who:     has it, or had it: host and process, unless told otherwise.
    said:    what it raised.
    fence:   of the run; rises with each of the job.
    """

    slot: datetime
    state: str
    attempt: int
    slots: int
    began: datetime | None
    ended: datetime | None
    who: str
    said: str
    fence: int


class Jobs:
    """What a process runs of the jobs of a cluster.  Made by `KeyValue.jobs`.

        jobs = store.jobs()

        @jobs.every(60)
        def collect():
            ...

        @jobs.cron("0 4 * * *", timezone="Europe/Berlin", misfire_grace=3600, retry=1)
        def report():
            ...

        jobs.start()

    Each process of each node does the same.  Every time that a job is due one of them *claims* that run, in the log,
    before anything is called, and no other does: it is begun at most once, whoever dies, is frozen or cut off.
    A run whose process dies is listed as "died" after `ttl` seconds, and only run again where `retry=` says so.

    ttl:     see `KeyValue.claim`.
    threads: so many runs at once in this process; it claims nothing while there are so many.
    data:    what `history` shows of who ran something, a text of at most 500 bytes; None: host and process.
    """

    def __init__(self, store: KeyValue, ttl: float = 15.0, threads: int = 4, data: bytes | None = None) -> None:
        """Raises ConfigurationError if something makes no sense."""
        if not isinstance(threads, int) or isinstance(threads, bool) or not 0 < threads <= _MAX_THREADS:
            raise ConfigurationError(f"threads is a number from 1 to {_MAX_THREADS}, not {threads!r:.100}")
        self._duty = store.duty(ttl, data)
        self._threads = threads
        self._jobs: dict[str, Job] = {}
        self._scheduler: Scheduler | None = None
        self._forget_farewell: Callable[[], None] = lambda: None
        self._lock = threading.Lock()  # of who starts or stops; never the main thread's

    # -- saying what is to be run

    def every(
        self,
        seconds: float,
        *,
        name: str | None = None,
        misfire_grace: float | None = GRACE_SECONDS,
        coalesce: bool = True,
        retry: int = 0,
        max_instances: int = 1,
    ) -> Callable[[FunctionT], FunctionT]:
        """Have a function called every so many seconds, 1 or more, as a decorator.

        Due are the multiples of the interval since 1970, in UTC, so that it does not matter who was started when.

        name:          of the job, the same in all processes; None: module and name of the function.
        misfire_grace: in seconds: what could not be begun so long after it was due is missed, listed as such, and not
                       run.  None: it is run however late.
        coalesce:      of several runs that are due at once only the last is run, for all of them; else each,
                       one after the other.
        retry:         how often a run is begun again whose process died.  What raised has been run.
        max_instances: how many runs there may be at once in the whole cluster; what is due beyond that waits, and is
                       late then.

        Raises ConfigurationError if something makes no sense, or there is a job of that name.
        """
        return self._declare(Every(seconds), name, misfire_grace, coalesce, retry, max_instances)

    def cron(
        self,
        expression: str,
        *,
        timezone: str | tzinfo = "UTC",
        name: str | None = None,
        misfire_grace: float | None = GRACE_SECONDS,
        coalesce: bool = True,
        retry: int = 0,
        max_instances: int = 1,
    ) -> Callable[[FunctionT], FunctionT]:
        """Have a function called by a cron expression, as a decorator.  Needs `raftsvc[jobs]`.

        expression: five fields as in crontab(5), or six, of which the first are seconds.
        timezone:   in which it is meant: a name such as "Europe/Berlin", or a tzinfo.  Where daylight saving begins,
                    what is due at a fixed time that is skipped is run right after; where it ends, what is due at one
                    that comes twice is run the first time.  What has a star for minutes or hours goes by the time
                    that passes.

        The rest is as for `every`.
        """
        return self._declare(Cron(expression, timezone), name, misfire_grace, coalesce, retry, max_instances)

    def once(
        self,
        name: str,
        function: Callable[[], object],
        *,
        at: datetime | None = None,
        misfire_grace: float | None = None,
        retry: int = 0,
    ) -> None:
        """Have a function called once in the whole cluster, for ever, by whichever process comes first.

        at: when, with its time zone; None: as soon as anybody has a thread for it.

        Declared again with another time it is run at that, if nothing of it was decided yet.  Under a name of which any
        run was claimed or missed, also of another schedule, it is never run, unless that is forgotten first.  The
        cluster knows of it until then, so this is no queue: names that are made up each time stay for ever.

        It is *begun* once, or as often as `retry` says while whoever begins it dies; `forget` has it run anew.  Where
        it has to *succeed* once, and others are to wait for that, see `KeyValue.once`.
        """
        self._declare(At(at), name, misfire_grace, True, retry, 1)(function)

    def _declare(
        self,
        schedule: Schedule,
        name: str | None,
        misfire_grace: float | None,
        coalesce: bool,
        retry: int,
        max_instances: int,
    ) -> Callable[[FunctionT], FunctionT]:
        grace_ms = _grace_ms(misfire_grace)
        if not isinstance(coalesce, bool):
            raise ConfigurationError(f"coalesce is True or False, not {coalesce!r:.100}")
        _check_number("retry", retry, 0, MAX_ATTEMPTS - 1)
        _check_number("max_instances", max_instances, 1, MAX_AT_ONCE)
        if name is not None:
            self._duty.full_name(name)

        def declare(function: FunctionT) -> FunctionT:
            check_function(function, "a job")
            named = name if name is not None else _name_of(function)
            self._duty.full_name(named)
            if named in self._jobs:
                raise ConfigurationError(f"there is a job {named!r} already; give this one another name=")
            self._jobs[named] = Job(named, function, schedule, grace_ms, coalesce, retry, max_instances)
            scheduler = self._scheduler
            if scheduler is not None:
                scheduler.look_again()
            return function

        return declare

    # -- running it

    def start(self) -> None:
        """Run jobs in this process, from now on; call it after the server forked, in each process.

        Nothing is waited for, and nothing happens twice where it is called again.  It ends with `stop`, and with the
        Service, which waits a moment for what runs.  Raises ForkedError, NodeFailedError.

        In a command of a framework, or the parent of a reloader, which are clients of their server's node, none are
        run, as the log says.  What `raftsvc.connect` returned only looks at them: ConfigurationError.
        """
        if is_main_thread():
            return do_elsewhere(self.start, _ASK_SECONDS, NodeFailedError)
        if self._duty.is_exempt():
            return
        with self._lock:
            former = self._scheduler
            if former is not None and former.is_alive:
                return
            self._forget_farewell()
            scheduler = Scheduler(self._duty, self._jobs, self._threads)
            scheduler.start()
            self._scheduler = scheduler
        self._forget_farewell = self._duty.before_stop(partial(scheduler.stop, _FAREWELL_SECONDS))

    def stop(self, timeout: float = 10.0) -> bool:
        """Begin nothing more here, and wait for what runs; whether all of it was over in time.

        What is not is listed as "running" until it ends or this process does.  `start` begins anew.
        """
        if not isinstance(timeout, int | float) or isinstance(timeout, bool) or not 0 <= timeout < math.inf:
            raise ConfigurationError(f"timeout is a number of seconds, 0 or more, not {timeout!r:.100}")
        if is_main_thread():
            return do_elsewhere(partial(self.stop, timeout), timeout + 1.0, NodeFailedError)
        with suppress(ForkedError):  # in a child there is nothing to stop
            self._duty.check_process()
            with self._lock:
                scheduler, self._scheduler = self._scheduler, None
            if scheduler is not None:
                self._forget_farewell()
                return scheduler.stop(timeout)
        return True

    # -- looking

    def history(self, name: str, timeout: float = 5.0) -> list[PastRun]:
        """The last runs of a job, a hundred at most, and what runs, the latest last; of whichever process.

        As of a moment no earlier than this call.  Raises what `Service.wait_read` raises.
        """
        return [_past(run) for run in self._duty.history(name, timeout)]

    def next_runs(self) -> dict[str, datetime | None]:
        """When each job that was declared here is due next, in UTC, None: never again; as this node knows it.

        As long as no majority of the voters has told its clock, by that of this machine.
        """
        found: dict[str, datetime | None] = {}
        now_ms = self._duty.now_ms() or self._duty.wall_ms()
        for name, job in list(self._jobs.items()):
            planned, _ = self._duty.look(name)
            if planned is not None and is_over(job.schedule, planned):
                found[name] = None
                continue
            since_ms = 0 if planned is None else planned.since_ms
            slot_ms = job.schedule.after(since_ms or job.schedule.since_ms or now_ms)
            if slot_ms is not None and slot_ms < now_ms:
                slot_ms = job.schedule.after(now_ms) or slot_ms
            found[name] = None if slot_ms is None else _moment(slot_ms)
        return found

    def names(self) -> list[str]:
        """All jobs that the cluster knows of, whoever declared them, as this node knows it."""
        return self._duty.names()

    def forget(self, name: str, timeout: float = 10.0) -> bool:
        """Have the cluster know nothing of a job, its history included; whether it did.  Not while it is under way.

        Whoever still declares it plans it anew.
        """
        return self._duty.forget(name, timeout)


def _check_number(what: str, number: object, least: int, most: int) -> None:
    if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
        raise ConfigurationError(f"{what} is a number from {least} to {most}, not {number!r:.100}")


def _grace_ms(misfire_grace: float | None) -> int | None:
    if misfire_grace is None:
        return None
    if (
        isinstance(misfire_grace, bool)
        or not isinstance(misfire_grace, int | float)
        or not 0 < misfire_grace <= _MAX_GRACE_SECONDS
    ):
        raise ConfigurationError(f"misfire_grace is a number of seconds, or None, not {misfire_grace!r:.100}")
    return math.ceil(misfire_grace * 1000)


def _name_of(function: object) -> str:
    name = getattr(function, "__qualname__", None)
    if not isinstance(name, str):
        raise ConfigurationError(f"{function!r:.100} has no name of its own; give it one by name=")
    return checked_key(f"{getattr(function, '__module__', None) or ''}.{name}")


def _moment(time_ms: int) -> datetime | None:
    return datetime.fromtimestamp(time_ms / 1000, timezone.utc) if time_ms else None


def _past(run: Run) -> PastRun:
    return PastRun(
        datetime.fromtimestamp(run.slot_ms / 1000, timezone.utc),
        STATES[run.state],
        run.attempt,
        run.slots,
        _moment(run.began_ms),
        _moment(run.ended_ms),
        run.who.decode(errors="replace"),
        run.said.decode(errors="replace"),
        run.fence,
    )
