"""Who runs the jobs of a process: one thread that claims what is due, and one for each run.

A slot is claimed in the log before anything is called, and only while a thread may be had for it.  Whoever has joined
may claim; which process does so first goes round by slots, so that not all ask at once and all get their share.  How a
run ended is told by its own thread, and, where nobody answers, by the other again and again.

Invariants:
- A function is called only under a claim that this process was told is its own, once for each.
- What is not known to be claimed is asked again in the same words, as long as the place stands under which it was.
- What runs under the place of this process, and not here, and may not be claimed just now, is ended.
- Whoever waits for a thread has it before those who came later.
- Whatever is raised, the thread goes on until it is stopped, or the node is over.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from functools import partial
from operator import itemgetter
from typing import NamedTuple

from raftsvc.errors import InstructionTooLargeError, NodeFailedError, NotApplied, RaftError, Rejected
from raftsvc.kv import Hold, LostError
from raftsvc.kv.duty import Duty
from raftsvc.kv.history import Signal
from raftsvc.kv.orders import DIED, DONE, FAILED, MAX_PLANS, MAX_TEXT_BYTES, MISSED, RUNNING
from raftsvc.kv.runs import AHEAD_MS, BUSY, GONE, NO_PLACE, NOT_YET, Planned, Run, is_once
from raftsvc.recipes.failures import said_by
from raftsvc.recipes.slots import Schedule, find_due

logger = logging.getLogger("raftsvc.jobs")

_LOOK_SECONDS = 1.0
"""Between two looks at the time and at what others did; clocks may be set, and nothing tells of that."""
_PAUSE_SECONDS = 0.3
_REST_PAUSES = 10
"""So many of those pass before what was claimed before it was due is claimed again."""
_UNKNOWN_SECONDS = 15.0
"""So long nothing is said of it that the time is not known: after a start it is not, until clocks are told."""
_NO_THREAD_SECONDS = 5.0
"""So long nothing is claimed where no thread could be started."""
_CALL_SECONDS = 5.0
_FINISH_SECONDS = 3.0
_TURN_MS = 100
"""So much later than the one before it each process claims a slot that nobody has claimed."""
_LAST_TURN_MS = 1_000

Numbers = tuple[int, int, int, int, int]


class Job(NamedTuple):
    """What is to be called when, and what if it is late; see `Jobs.every`."""

    name: str
    function: Callable[[], object]
    schedule: Schedule
    grace_ms: int | None
    coalesce: bool
    retry: int
    at_once: int


class JobRun:
    """A run that is under way, as the function that is called sees it: `raftsvc.recipes.current_run()`.

    job:     its name.
    slot:    when it was due; of several that it stands for the last.
    slots:   how many it stands for.
    attempt: which it is, from 1.
    name, fence: it is something that is held, for `kv.if_held`: the fence rises with each run of the job.
    lost:    an Event that is set once another may run it, by the clocks of this machine, and when the node is stopped.
    """

    def __init__(self, job: str, name: str, numbers: Numbers, fence: int, hold: Hold) -> None:
        self.job = job
        self.slot = datetime.fromtimestamp(numbers[0] / 1000, timezone.utc)
        self.attempt = numbers[1]
        self.slots = numbers[2]
        self.name = name
        self.fence = fence
        self.lost = hold.lost
        self.hold = hold

    def ensure_held(self) -> None:
        """Raise LostError if another may run it, as of now."""
        if self.lost.is_set():
            raise LostError(self.name)


_present = threading.local()


def current_run() -> JobRun | None:
    """The run in which this is called; None: in none, or by a thread that the job's function started."""
    found: JobRun | None = getattr(_present, "run", None)
    return found


class _End(NamedTuple):
    """How a run ended, as it is to be told."""

    hold: Hold
    job: str
    fence: int
    state: int
    said: bytes


class _Seen:
    """What the thread knows of a job, under what it joined by.

    plan:      what was planned; "": nothing.
    unsure:    what may have been claimed, though nobody answered.
    next:      since what was decided last, when it is due.
    due:       what is to be claimed now.
    waits_since: since when that is so, by this process's clock; inf: nothing is.
    rests_until: nothing is claimed before.
    complaint: what was said last of why it is not run.
    is_ahead:  it was said that nothing is due for long, for clocks were ahead once.
    """

    __slots__ = ("complaint", "due", "is_ahead", "next", "plan", "rests_until", "unsure", "waits_since")

    def __init__(self) -> None:
        self.plan = ""
        self.unsure: Numbers | None = None
        self.next = (-1, 0)
        self.due: Numbers | None = None
        self.waits_since = math.inf
        self.rests_until = -math.inf
        self.complaint = ""
        self.is_ahead = False

    def warn_of_clocks(self, job: Job, planned: Planned, now_ms: int) -> None:
        """Say once that nothing is due for long, for clocks were ahead once."""
        was_ahead = self.is_ahead
        self.is_ahead = planned.since_ms > max(now_ms + AHEAD_MS, job.schedule.since_ms)
        if self.is_ahead and not was_ahead:
            until = datetime.fromtimestamp(planned.since_ms / 1000, timezone.utc)
            logger.warning(
                "job %r is not run before %s: it was already, while the clocks of the voters were that far ahead; "
                "jobs.forget(%r) has it begin anew from now on, without its history",
                job.name,
                until.isoformat(" ", "seconds"),
                job.name,
            )


class Scheduler:
    """The jobs of a process at work, from `start` to `stop`.

    jobs: by their names; more may come.
    """

    def __init__(self, duty: Duty, jobs: Mapping[str, Job], threads: int) -> None:
        self._duty = duty
        self._jobs = jobs
        self._threads = threads
        self._lock = threading.Lock()  # guards _running and _untold; held for no I/O
        self._running: dict[tuple[str, int], JobRun] = {}
        self._untold: list[_End] = []
        self._signal = Signal()
        self._stopping = threading.Event()
        self._has_ended = threading.Event()  # nothing runs, all is told, and nothing more is claimed
        self._thread = threading.Thread(target=self._run, name="raftsvc-jobs", daemon=True)
        # The thread's alone:
        self._hold: Hold | None = None
        self._seen: dict[str, _Seen] = {}
        self._rests_until = -math.inf  # no thread could be started
        self._known_at = time.monotonic()  # when what time it is was known last
        self._complaint = ""

    def start(self) -> None:
        """Raises NodeFailedError if no thread can be started."""
        try:
            self._thread.start()
        except RuntimeError as error:
            raise NodeFailedError(f"no thread can be started to run jobs: {error}") from error

    @property
    def is_alive(self) -> bool:
        """Whether it runs jobs, or waits for what it runs."""
        return self._thread.is_alive()

    def look_again(self) -> None:
        """There is another job."""
        self._signal.set()

    def stop(self, timeout: float) -> bool:
        """Claim nothing more, and wait for what runs; whether all of it was over, and told, in time.

        What is not is waited for on, by the thread, and told then.
        """
        self._stopping.set()
        self._signal.set()
        self._thread.join(timeout + _PAUSE_SECONDS)
        return self._has_ended.is_set()

    # -- the thread

    def _run(self) -> None:
        while not self._stopping.is_set() and self._duty.over() is None:
            self._signal.arm()
            pause = self._try(self._go_round)
            if not self._stopping.is_set():
                self._signal.wait(pause)
        self._leave()

    def _try(self, act: Callable[[], float]) -> float:
        """Do it, whatever it raises; for how many seconds there is nothing more."""
        try:
            return act()
        except RaftError as error:
            self._complain(f"{type(error).__name__}: {said_by(error)}")
        except BaseException as failure:  # nobody but this thread would run anything
            with suppress(Exception):
                logger.error("jobs could not be seen to; it is tried again", exc_info=failure)
        return _PAUSE_SECONDS

    def _complain(self, why: str) -> None:
        if why != self._complaint:
            self._complaint = why
            if why:
                level = logging.INFO if self._stopping.is_set() or self._duty.over() is not None else logging.WARNING
                logger.log(level, "no job is begun here for now: %s", why)

    def _complain_of(self, job: str, why: str, failure: BaseException | None = None) -> None:
        """Say once why that one is not run, or told of; and nothing of it once it is."""
        seen = self._seen.setdefault(job, _Seen())
        if why != seen.complaint:
            seen.complaint = why
            if why:
                with suppress(Exception):
                    logger.error("job %r could not be seen to; it is tried again: %s", job, why, exc_info=failure)

    def _go_round(self) -> float:
        """Do what there is to do; for how many seconds there is nothing more."""
        self._tell()
        hold = self._join()
        if hold is None or not self._plan_many(hold):
            return _PAUSE_SECONDS
        now_ms = self._duty.now_ms()
        pause, begins_at = _LOOK_SECONDS, time.monotonic()
        waiting: list[tuple[float, int, Job]] = []
        for job in list(self._jobs.values()):
            if self._stopping.is_set() or hold is not self._hold:
                return _PAUSE_SECONDS
            seen = self._seen.setdefault(job.name, _Seen())
            pause = min(pause, self._see_to(job, partial(self._attend, hold, job, seen, now_ms)))
            if seen.due is None:
                seen.waits_since = math.inf
            else:
                seen.waits_since = min(seen.waits_since, begins_at)
                waiting.append((seen.waits_since, seen.due[0], job))
        # Whoever waits longest for a thread comes first, so that nobody waits for ever.
        for _, _, job in sorted(waiting, key=itemgetter(0, 1)):
            if self._stopping.is_set():
                break
            pause = min(pause, self._see_to(job, partial(self._claim, hold, job, self._seen[job.name])))
        if now_ms is not None:
            self._known_at = time.monotonic()
            self._complain("")
        return pause

    def _see_to(self, job: Job, act: Callable[[], float]) -> float:
        """Do that for a job; what goes wrong with it alone keeps no other from running."""
        try:
            return act()
        except (Rejected, InstructionTooLargeError) as refusal:
            self._complain_of(job.name, f"{type(refusal).__name__}: {said_by(refusal)}")
        except RaftError:
            raise
        except Exception as failure:  # of a time zone's rules, say
            self._complain_of(job.name, f"{type(failure).__name__}: {said_by(failure)}", failure)
        return _LOOK_SECONDS

    def _join(self) -> Hold | None:
        """By what this process is one of those who run jobs; None: it is none, yet."""
        hold = self._hold
        if hold is not None and not hold.lost.is_set():
            return hold
        self._give_up()
        self._hold = self._duty.join(_CALL_SECONDS)
        return self._hold

    def _give_up(self) -> None:
        """What was joined by is over; what runs under it is listed as dead, unless it ends before the lease does."""
        hold, self._hold = self._hold, None
        for seen in self._seen.values():
            seen.plan, seen.unsure = "", None
        if hold is not None and not hold.lease.is_over:  # else that runs out by itself, and no sooner than others may
            with suppress(RaftError):
                hold.release(_PAUSE_SECONDS)

    def _plan_many(self, hold: Hold) -> bool:
        """As `_plan`, of what is to be planned where it is more than one; what of that is refused is planned alone."""
        jobs = [(job, self._seen.setdefault(job.name, _Seen())) for job in list(self._jobs.values())]
        wanted = [(job, seen) for job, seen in jobs if seen.plan != job.schedule.text]
        for first in range(0, len(wanted) if len(wanted) > 1 else 0, MAX_PLANS):
            some = wanted[first : first + MAX_PLANS]
            plans = [(job.name, job.schedule.text.encode(), job.schedule.since_ms) for job, _ in some]
            with suppress(Rejected, InstructionTooLargeError):
                if self._duty.plan_many(hold, plans, _CALL_SECONDS) == NO_PLACE:
                    self._give_up()
                    return False
                for job, seen in some:
                    seen.plan = job.schedule.text
        return True

    def _plan(self, hold: Hold, job: Job, seen: _Seen) -> bool:
        """Have it known that this process runs it; whether it is."""
        schedule = job.schedule
        if seen.plan == schedule.text:
            return True
        if self._duty.plan(hold, job.name, schedule.text.encode(), schedule.since_ms, _CALL_SECONDS) == NO_PLACE:
            self._give_up()
            return False
        seen.plan = schedule.text
        return True

    def _attend(self, hold: Hold, job: Job, seen: _Seen, now_ms: int | None) -> float:
        """Find what is due of a job, if it is this process's turn; for how many seconds nothing else is."""
        seen.due = None
        if not self._plan(hold, job, seen):
            return _PAUSE_SECONDS
        planned, runs = self._duty.look(job.name)
        if planned is None:  # somebody had it forgotten
            seen.plan = ""
            return _PAUSE_SECONDS
        if now_ms is None or not planned.is_settled:
            if now_ms is None and time.monotonic() - self._known_at >= _UNKNOWN_SECONDS:
                self._complain("no majority of the voters has told its clock")
            return _PAUSE_SECONDS
        seen.warn_of_clocks(job, planned, now_ms)
        rest = seen.rests_until - time.monotonic()
        if rest > 0:
            return rest
        under_way = [run for run in runs if run.state == RUNNING]
        strays = [run for run in under_way if run.place == hold.place and not self._has(job.name, run.fence)]
        if seen.unsure is None:
            for run in strays:  # claimed here, and nobody was told so in time
                self._end(_End(hold, job.name, run.fence, DIED, b"claimed by a process that did not come to know it"))
        elif strays or not seen.unsure[1] or len(under_way) < job.at_once:
            seen.due = seen.unsure
        if seen.unsure is not None or len(under_way) >= job.at_once:
            return _LOOK_SECONDS  # whoever ends here wakes this thread
        seen.due = _to_run_again(job, planned.since_ms, runs)
        return _LOOK_SECONDS if seen.due is not None else self._find(hold, job, seen, planned, now_ms)

    def _find(self, hold: Hold, job: Job, seen: _Seen, planned: Planned, now_ms: int) -> float:
        if is_over(job.schedule, planned):
            return _LOOK_SECONDS
        known_since_ms, next_ms = seen.next
        if known_since_ms == planned.since_ms and now_ms < next_ms:
            return (next_ms - now_ms) / 1000
        due = find_due(job.schedule, planned.since_ms, now_ms, job.grace_ms, job.coalesce)
        if due.slot_ms is None:
            if due.next_ms is None:
                return _LOOK_SECONDS
            seen.next = planned.since_ms, due.next_ms
            return (due.next_ms - now_ms) / 1000
        turn_ms = due.slot_ms + _turn_of(hold, job.name, due.slot_ms, planned)
        if now_ms < turn_ms:
            return (turn_ms - now_ms) / 1000
        seen.due = due.slot_ms, 0 if due.is_missed else 1, due.slots, job.retry, job.at_once
        return _LOOK_SECONDS

    def _has(self, job: str, fence: int) -> bool:
        """Whether that run goes on here, or how it ended is to be told."""
        with self._lock:
            return (job, fence) in self._running or any((end.job, end.fence) == (job, fence) for end in self._untold)

    def _claim(self, hold: Hold, job: Job, seen: _Seen) -> float:
        """Claim what is due, if there is a thread for it; what is passed over takes none."""
        numbers = seen.due
        if numbers is None:
            return _LOOK_SECONDS
        if numbers[1]:
            rest = self._rests_until - time.monotonic()
            if rest > 0 or len(self._running) >= self._threads:
                return rest if rest > 0 else _LOOK_SECONDS  # whoever ends here wakes this thread
        was_unsure = seen.unsure is not None
        seen.unsure = numbers
        try:
            answer = self._duty.begin(hold, job.name, numbers, _CALL_SECONDS)
        except (NotApplied, Rejected):
            seen.unsure = numbers if was_unsure else None
            raise
        if answer not in (NOT_YET, BUSY) or not was_unsure:  # else the claim that nobody answered may come yet
            seen.unsure = None
        seen.waits_since = math.inf
        if answer == NOT_YET:
            self._complain_of(job.name, "by the clocks of which the cluster was told it is not due, or nobody knows")
            seen.rests_until = time.monotonic() + _REST_PAUSES * _PAUSE_SECONDS
        if answer in (NOT_YET, BUSY):
            return _PAUSE_SECONDS
        self._complain_of(job.name, "")
        if answer == NO_PLACE:
            seen.plan = ""
        elif answer != GONE and numbers[1]:
            self._begin(hold, job, numbers, answer)
        elif answer != GONE:
            slot = datetime.fromtimestamp(numbers[0] / 1000, timezone.utc)
            logger.warning("job %r missed %d of its runs, the last of them that of %s", job.name, numbers[2], slot)
        return 0.0

    def _begin(self, hold: Hold, job: Job, numbers: Numbers, fence: int) -> None:
        """Call it, now that it was claimed, unless it is too late by now."""
        now_ms = self._duty.now_ms()
        if job.grace_ms is not None and numbers[1] == 1 and (now_ms is None or now_ms - numbers[0] > job.grace_ms):
            logger.warning("job %r missed a run: it was claimed too late to begin", job.name)
            self._end(_End(hold, job.name, fence, MISSED, b"claimed too late to begin"))
            return
        run = JobRun(job.name, self._duty.full_name(job.name), numbers, fence, hold)
        with self._lock:
            self._running[job.name, fence] = run
        why = "it was stopped, or lost, before it began"
        if not self._stopping.is_set() and not run.lost.is_set():
            try:
                threading.Thread(target=self._call, args=(job, run), name="raftsvc-job", daemon=True).start()
                return
            except BaseException as failure:  # of whatever there is too little; others may have more
                why = f"no thread could be started for it: {said_by(failure)}"
                self._rests_until = time.monotonic() + _NO_THREAD_SECONDS
                with suppress(Exception):
                    logger.error("job %r was not begun here: %s", job.name, why)
        with self._lock:
            was_here = self._running.pop((job.name, fence), None) is not None
        if was_here:
            self._end(_End(hold, job.name, fence, DIED, _cut(why)))

    # -- a run

    def _call(self, job: Job, run: JobRun) -> None:
        with self._lock:
            if (job.name, run.fence) not in self._running:  # who started this thread was told that it could not be
                return
        state, said = DONE, b""
        try:
            _present.run = run
            try:
                job.function()
            except BaseException as failure:  # of the application's, whatever it is
                state = FAILED
                said = _cut(f"{type(failure).__name__}: {said_by(failure)}")
                with suppress(BaseException):
                    logger.error("job %r raised", job.name, exc_info=failure)
            _present.run = None
        finally:
            try:
                self._end(_End(run.hold, job.name, run.fence, state, said))
            finally:
                with self._lock:
                    del self._running[job.name, run.fence]
                self._signal.set()

    def _end(self, end: _End) -> None:
        """Tell how a run ended, or have it told later."""
        try:
            self._finish(end)
        except BaseException as failure:
            with self._lock:
                self._untold.append(end)
            if not isinstance(failure, RaftError):
                raise

    def _finish(self, end: _End) -> None:
        try:
            self._duty.finish(end.hold, *end[1:], _FINISH_SECONDS)
        except (Rejected, InstructionTooLargeError, ValueError) as refusal:  # which it will be the next time, too
            self._complain_of(end.job, f"its end was refused: {said_by(refusal)}")

    def _tell(self) -> float:
        """What could not be told before; for how long there is nothing more.  Raises RaftError if it cannot now."""
        while self._untold:
            end = self._untold[0]
            self._finish(end)
            with self._lock:
                self._untold.remove(end)
        return _LOOK_SECONDS

    # -- leaving

    def _leave(self) -> None:
        """Wait for what runs, however long, have it known how it ended, and run jobs no more."""
        while True:
            self._signal.arm()
            pause = self._try(self._tell)
            with self._lock:
                if not self._running and not self._untold:
                    self._has_ended.set()
            if self._has_ended.is_set() or self._duty.over() is not None:
                break
            self._signal.wait(pause)
        hold, self._hold = self._hold, None
        if hold is not None:
            with suppress(RaftError):
                hold.release(_PAUSE_SECONDS)


def _cut(text: str) -> bytes:
    """As long as may be said of a run."""
    return text.encode(errors="replace")[:MAX_TEXT_BYTES]


def _to_run_again(job: Job, since_ms: int, runs: Sequence[Run]) -> Numbers | None:
    """The claim of what died last, if that is to be run again and nothing later was decided."""
    if not runs or not job.retry:
        return None
    last = runs[-1]
    if last.state != DIED or last.slot_ms != since_ms or last.attempt > job.retry:
        return None
    return last.slot_ms, last.attempt + 1, last.slots, job.retry, job.at_once


def is_over(schedule: Schedule, planned: Planned) -> bool:
    """Whether nothing is due any more by that schedule, whatever it says: it was to be run once, and was decided."""
    return planned.decided_ms > 0 and is_once(schedule.text.encode())


def _turn_of(hold: Hold, job: str, slot_ms: int, planned: Planned) -> int:
    """For how long after a slot others have the first word; another is the first each time."""
    places = planned.places
    if hold.place not in places:
        return 0
    first = zlib.crc32(f"{job} {slot_ms}".encode()) % len(places)
    return min((places.index(hold.place) - first) % len(places) * _TURN_MS, _LAST_TURN_MS)
