"""Who runs the jobs of a process: one thread that claims what is due, and one for each run.

A slot is claimed in the log before anything is called, and only while a thread may be had for it.  Whoever has joined
may claim; which process does so first goes round by slots, so that not all ask at once and all get their share.  How a
run ended is told by its own thread, and, where nobody answers, by the other again and again.

Invariants:
- A function is called only under a claim that this process was told is its own, once for each.
- What is not known to be claimed is asked again in the same words, as long as the place stands under which it was.
- Whatever is raised, the thread goes on until it is stopped, or the node is over.
"""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from typing import NamedTuple

from raftsvc.errors import ForkedError, InstructionTooLargeError, NodeFailedError, RaftError, Rejected
from raftsvc.kv import Hold, LostError
from raftsvc.kv.duty import Duty
from raftsvc.kv.events import Signal
from raftsvc.kv.orders import DIED, DONE, FAILED, MAX_PLANS, MAX_TEXT_BYTES, MISSED, RUNNING
from raftsvc.kv.runs import AHEAD_MS, BUSY, GONE, NO_PLACE, NOT_YET, Planned, Run
from raftsvc.recipes.slots import Schedule, find_due

logger = logging.getLogger("raftsvc.jobs")

_LOOK_SECONDS = 1.0
"""Between two looks at the time and at what others did; clocks may be set, and nothing tells of that."""
_PAUSE_SECONDS = 0.3
_REFUSED_SECONDS = 3.0
"""So long a job is let be of which a claim was too early by the log."""
_UNKNOWN_SECONDS = 15.0
"""So long nothing is said of it that the time is not known: after a start it is not, until clocks are told."""
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


class _Notes:
    """What the thread has said, and lets be for now.

    complaint: why nothing is begun here; "": it is.
    known_at:  when what time it is was known last.
    refused:   of a job of which a claim was too early by the log, until when it is let be.
    """

    def __init__(self) -> None:
        self.complaint = ""
        self.known_at = time.monotonic()
        self.refused: dict[str, float] = {}
        self._ahead: set[str] = set()

    def warn_of_clocks(self, job: Job, planned: Planned, now_ms: int) -> None:
        """Say once that nothing is due for long, for clocks were ahead once."""
        if planned.since_ms <= max(now_ms + AHEAD_MS, job.schedule.since_ms):
            self._ahead.discard(job.name)
        elif job.name not in self._ahead:
            self._ahead.add(job.name)
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
        self._lock = threading.Lock()  # guards _running, _untold and _has_left; held for no I/O
        self._running: dict[tuple[str, int], JobRun] = {}
        self._untold: list[_End] = []
        self._has_left = False
        self._signal = Signal()
        self._stop_at: float | None = None  # when who stops waits no longer; None: nobody does
        self._thread = threading.Thread(target=self._run, name="raftsvc-jobs", daemon=True)
        # The thread's alone:
        self._hold: Hold | None = None
        self._plans: dict[str, str] = {}  # what was planned under it
        self._unsure: dict[str, Numbers] = {}  # what may be claimed under it
        self._next: dict[str, tuple[int, int]] = {}  # of a job, since what was decided last, when it is due
        self._notes = _Notes()

    def start(self) -> None:
        """Raises NodeFailedError if no thread can be started."""
        try:
            self._thread.start()
        except RuntimeError as error:
            raise NodeFailedError(f"no thread can be started to run jobs: {error}") from error

    def look_again(self) -> None:
        """There is another job."""
        self._signal.set()

    def stop(self, timeout: float) -> bool:
        """Claim nothing more, and wait for what runs; whether all of it was over, and told, in time."""
        self._stop_at = time.monotonic() + timeout
        self._signal.set()
        self._thread.join(timeout + _PAUSE_SECONDS)
        with self._lock:
            return not self._running and not self._untold

    # -- the thread

    def _run(self) -> None:
        while self._stop_at is None and not self._is_over():
            self._signal.arm()
            pause = _LOOK_SECONDS
            try:
                pause = self._go_round()
            except ForkedError:
                return
            except RaftError as error:
                self._complain(f"{type(error).__name__}: {error}")
                pause = _PAUSE_SECONDS
            except BaseException as failure:  # nobody but this thread would run anything
                with suppress(Exception):
                    logger.error("jobs could not be seen to; it is tried again", exc_info=failure)
            if self._stop_at is None:
                self._signal.wait(pause)
        self._leave()

    def _is_over(self) -> bool:
        return self._duty.over() is not None

    def _complain(self, why: str) -> None:
        if why != self._notes.complaint:
            self._notes.complaint = why
            if why:
                logger.warning("no job is begun here for now: %s", why)

    def _go_round(self) -> float:
        """Do what there is to do; for how many seconds there is nothing more."""
        self._tell()
        hold = self._join()
        if hold is None:
            return _PAUSE_SECONDS
        if not self._plan_many(hold):
            return _PAUSE_SECONDS
        now_ms = self._duty.now_ms()
        pause = _LOOK_SECONDS
        for job in list(self._jobs.values()):
            if self._stop_at is not None:
                break
            if not self._plan(hold, job):
                return _PAUSE_SECONDS
            try:
                pause = min(pause, self._attend(hold, job, now_ms))
            except RaftError:
                raise
            except Exception as failure:  # of a time zone's rules, say: the others are seen to nevertheless
                with suppress(Exception):
                    logger.error("job %r could not be seen to; it is tried again", job.name, exc_info=failure)
        if now_ms is not None:
            self._notes.known_at = time.monotonic()
            self._complain("")
        return pause

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
        self._plans.clear()
        self._unsure.clear()
        if hold is not None and not hold.lease.is_over:  # else that runs out by itself, and no sooner than others may
            with suppress(RaftError):
                hold.release(_PAUSE_SECONDS)

    def _plan_many(self, hold: Hold) -> bool:
        """As `_plan`, of what is to be planned where it is more than one; what of that is refused is planned alone."""
        wanted = [job for job in list(self._jobs.values()) if self._plans.get(job.name) != job.schedule.text]
        for first in range(0, len(wanted) if len(wanted) > 1 else 0, MAX_PLANS):
            some = wanted[first : first + MAX_PLANS]
            plans = [(job.name, job.schedule.text.encode(), job.schedule.since_ms) for job in some]
            with suppress(Rejected, InstructionTooLargeError):
                if self._duty.plan_many(hold, plans, _CALL_SECONDS) == NO_PLACE:
                    self._give_up()
                    return False
                self._plans.update((job.name, job.schedule.text) for job in some)
        return True

    def _plan(self, hold: Hold, job: Job) -> bool:
        """Have it known that this process runs it; whether it is."""
        schedule = job.schedule
        if self._plans.get(job.name) == schedule.text:
            return True
        if self._duty.plan(hold, job.name, schedule.text.encode(), schedule.since_ms, _CALL_SECONDS) == NO_PLACE:
            self._give_up()
            return False
        self._plans[job.name] = schedule.text
        return True

    def _attend(self, hold: Hold, job: Job, now_ms: int | None) -> float:
        """Claim what is due of a job, if it is this process's turn; for how many seconds there is nothing to do."""
        planned, runs = self._duty.look(job.name)
        if planned is None:  # somebody had it forgotten
            self._plans.pop(job.name, None)
            return _PAUSE_SECONDS
        if now_ms is None or not planned.is_settled:
            if now_ms is None and time.monotonic() - self._notes.known_at >= _UNKNOWN_SECONDS:
                self._complain("no majority of the voters has told its clock")
            return _PAUSE_SECONDS
        self._notes.warn_of_clocks(job, planned, now_ms)
        let_be_until = self._notes.refused.get(job.name, 0.0)
        if time.monotonic() < let_be_until:
            return let_be_until - time.monotonic()
        numbers: Numbers | None = self._unsure.get(job.name)
        if numbers is not None:
            return _LOOK_SECONDS if numbers[1] and self._is_full() else self._claim(hold, job, numbers)
        if sum(run.state == RUNNING for run in runs) >= job.at_once or self._is_full():
            return _LOOK_SECONDS  # whoever ends here wakes this thread
        numbers = _to_run_again(job, planned.since_ms, runs)
        if numbers is None:
            known_since_ms, next_ms = self._next.get(job.name, (-1, 0))
            if known_since_ms == planned.since_ms and now_ms < next_ms:
                return (next_ms - now_ms) / 1000
            due = find_due(job.schedule, planned.since_ms, now_ms, job.grace_ms, job.coalesce)
            if due.slot_ms is None:
                if due.next_ms is None:
                    return _LOOK_SECONDS
                self._next[job.name] = planned.since_ms, due.next_ms
                return (due.next_ms - now_ms) / 1000
            turn_ms = due.slot_ms + _turn_of(hold, job.name, due.slot_ms, planned)
            if now_ms < turn_ms:
                return (turn_ms - now_ms) / 1000
            numbers = due.slot_ms, 0 if due.is_missed else 1, due.slots, job.retry, job.at_once
        return self._claim(hold, job, numbers)

    def _is_full(self) -> bool:
        return len(self._running) >= self._threads

    def _claim(self, hold: Hold, job: Job, numbers: Numbers) -> float:
        self._unsure[job.name] = numbers
        answer = self._duty.begin(hold, job.name, numbers, _CALL_SECONDS)
        del self._unsure[job.name]
        if answer == NO_PLACE:
            self._plans.pop(job.name, None)
        elif answer == NOT_YET:
            self._notes.refused[job.name] = time.monotonic() + _REFUSED_SECONDS
            return _REFUSED_SECONDS
        elif answer == BUSY:
            return _PAUSE_SECONDS
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
        try:
            if self._stop_at is not None or run.lost.is_set():
                raise RuntimeError("it was stopped, or lost, before it began")
            threading.Thread(target=self._call, args=(job, run), name="raftsvc-job", daemon=True).start()
        except RuntimeError as error:
            with self._lock:
                del self._running[job.name, fence]
            self._end(_End(hold, job.name, fence, DIED, str(error).encode()[:MAX_TEXT_BYTES]))

    # -- a run

    def _call(self, job: Job, run: JobRun) -> None:
        state, said = DONE, b""
        _present.run = run
        try:
            job.function()
        except BaseException as failure:  # of the application's, whatever it is
            state, said = FAILED, f"{type(failure).__name__}: {failure}".encode(errors="replace")[:MAX_TEXT_BYTES]
            with suppress(Exception):
                logger.error("job %r raised", job.name, exc_info=failure)
        _present.run = None
        try:
            self._end(_End(run.hold, job.name, run.fence, state, said))
        finally:
            with self._lock:
                del self._running[job.name, run.fence]
                is_last = self._has_left and not self._running
            if is_last:
                self._let_go()
            self._signal.set()

    def _end(self, end: _End) -> None:
        """Tell how a run ended, or have it told later."""
        try:
            self._duty.finish(end.hold, *end[1:], _FINISH_SECONDS)
        except (RaftError, ValueError):
            with self._lock:
                self._untold.append(end)

    def _tell(self) -> None:
        """What could not be told before; raises RaftError if it cannot now."""
        while self._untold:
            end = self._untold[0]
            self._duty.finish(end.hold, *end[1:], _FINISH_SECONDS)
            with self._lock:
                self._untold.remove(end)

    # -- leaving

    def _leave(self) -> None:
        """Wait for what runs, tell how it ended, and run jobs no more; what goes on is let go of when it ends."""
        while self._stop_at is not None and time.monotonic() < self._stop_at and self._running:
            self._signal.arm()
            if self._running:
                self._signal.wait(min(_PAUSE_SECONDS, self._stop_at - time.monotonic()))
        with suppress(RaftError):
            self._tell()
        with self._lock:
            self._has_left = True
            is_idle = not self._running
        if is_idle:
            self._let_go()

    def _let_go(self) -> None:
        """By whoever is the last: the thread, or a run that went on after it."""
        hold, self._hold = self._hold, None
        if hold is not None:
            with suppress(RaftError):
                hold.release(_PAUSE_SECONDS)


def _to_run_again(job: Job, since_ms: int, runs: Sequence[Run]) -> Numbers | None:
    """The claim of what died last, if that is to be run again and nothing later was decided."""
    if not runs or not job.retry:
        return None
    last = runs[-1]
    if last.state != DIED or last.slot_ms != since_ms or last.attempt > job.retry:
        return None
    return last.slot_ms, last.attempt + 1, last.slots, job.retry, job.at_once


def _turn_of(hold: Hold, job: str, slot_ms: int, planned: Planned) -> int:
    """For how long after a slot others have the first word; another is the first each time."""
    places = planned.places
    if hold.place not in places:
        return 0
    first = zlib.crc32(f"{job} {slot_ms}".encode()) % len(places)
    return min((places.index(hold.place) - first) % len(places) * _TURN_MS, _LAST_TURN_MS)
