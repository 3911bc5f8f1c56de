"""Which run of which job was claimed by whom, how it ended, and what time it is: as the log has them.

A job's runs are due at slots, moments of the time of day.  A slot is claimed before it is run, and only one that
comes after all that were claimed before: per job the highest claimed slot decides, so nothing is claimed twice,
whoever asks, however late or often.  A slot that is not to be run any more is passed over, which decides it likewise.
Of what is run once, as the schedule says by which it is asked for, whatever was decided decides all slots: two who say
different times do not both run it.
A run stands under a place, the claim (`kv.holds`) by which its process runs jobs at all; once that ends, because its
lease ran out in log time or was ended, the run has died.  Only then is the same slot claimed again, as another
attempt, where who asks says so, and only as long as no later one was.

What time it is nobody's clock decides alone.  While somebody runs jobs each voter tells its own now and then; each
counts as what it showed and the log time since, for a minute.  Of those the lower middle is the time, if a majority
of the voters has told theirs.  What is claimed may be at most half a minute ahead of that.  Log time stands still while
nobody leads, and what was told before such a time may be days old.  So from when on a job's slots count is not taken
from what was told before it was planned: it is computed once a majority has told its clock again.

Deterministic, as `Content` is; knows no threads and no schedules.

Invariants:
- The slots of a job that were claimed or passed over, but for further attempts at one, rise, and so do the fences.
- No slot is claimed or passed over by who runs a job once, if any of it was.
- Every run that is under way stands under a place that is there, and as many as that are under way of each job.
- A job of which something is under way is known.
- Whatever is refused has changed nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Final, NamedTuple

from raftsvc.errors import Rejected
from raftsvc.kv.holds import Holds
from raftsvc.kv.orders import DIED, DONE, FAILED, MISSED, ONCE, RUNNING, Order, Place

AHEAD_MS = 30_000
"""So far ahead of the time a slot may be claimed."""
CLOCK_MS: Final = 60_000
"""So long a clock counts that was told."""
MAX_PLACES = 10_000
"""So many processes may run a job."""
KEPT_RUNS: Final = 100
"""Of each job, and those under way."""
JOB_BYTES: Final = 400
"""What a job takes in memory beside its texts, what one place that runs it takes, and a run."""

GONE: Final = 0
"""The answer to who claims a slot that is decided, or was overtaken."""
NOT_YET, BUSY, NO_PLACE = -1, -2, -3
"""Other answers: the time is not known, or not so far; as many are under way as may be; who asks runs no jobs here."""


class Run(NamedTuple):
    """A slot that was claimed, or some that were passed over.

    slot_ms: when it was due; of several the last.
    slots:   for how many it stands.
    attempt: which it is, from 1; 0: it is not run.
    state:   RUNNING, DONE, FAILED, DIED, MISSED.
    fence:   index of the entry that claimed it.
    began_ms, ended_ms: what time it was then; 0: not known, or not over.
    place:   under which it is, or was.
    who:     has it, or had.
    said:    how it ended.
    """

    slot_ms: int
    slots: int
    attempt: int
    state: int
    fence: int
    began_ms: int
    ended_ms: int
    place: Place
    who: bytes
    said: bytes


class Told(NamedTuple):
    """What the clock of a member showed when it was told last, at which log time, and in which entry."""

    node_id: int
    shown_ms: int
    at_ms: int
    entry: int


class Planned(NamedTuple):
    """A job as it is known.

    schedule:   what whoever planned it last says of that.
    decided_ms: the highest slot that is decided; 0: none is.
    from_ms:    after which slots count by the present schedule, and
    asked_index, asked_ms: the entry that planned it, and when in log time, as long as that is not known; 0: it is.
    places:     who runs it, in order, and
    schedules:  what each of them says of when.
    """

    schedule: bytes
    decided_ms: int
    from_ms: int
    asked_index: int
    asked_ms: int
    places: tuple[Place, ...]
    schedules: tuple[bytes, ...]

    @property
    def since_ms(self) -> int:
        """What comes after it counts."""
        return max(self.decided_ms, self.from_ms)

    @property
    def is_settled(self) -> bool:
        """Whether that is known."""
        return not self.asked_index


class _Job:
    """What is known of a job.  runs: by their fences, in order; of slots that were passed over too."""

    __slots__ = ("asked_index", "asked_ms", "decided_ms", "from_ms", "places", "runs", "schedule", "under_way")

    def __init__(self, schedule: bytes) -> None:
        self.schedule = schedule
        self.decided_ms = 0
        self.from_ms = 0
        self.asked_index = 0
        self.asked_ms = 0
        self.runs: dict[int, Run] = {}
        self.places: dict[Place, bytes] = {}  # with the schedule of each
        self.under_way = 0

    def last(self) -> Run | None:
        for run in reversed(self.runs.values()):
            return run
        return None


class FrozenRuns(NamedTuple):
    """All of a moment, for a snapshot."""

    clocks: list[Told]
    jobs: list[tuple[str, Planned, list[Run]]]


class Clocks:
    """Those of voters, as they were told last.

    voters: whose count.
    told:   what they showed, by whose they are.
    """

    __slots__ = ("told", "voters")

    def __init__(self) -> None:
        self.voters: frozenset[int] = frozenset()
        self.told: dict[int, Told] = {}

    def set_voters(self, voters: frozenset[int]) -> None:
        """Those vote, whose clocks count."""
        self.voters = voters
        self.told = {node_id: told for node_id, told in self.told.items() if node_id in voters}

    def tell(self, told: Told) -> bool:
        """One shows that; whether it counts."""
        if told.node_id not in self.voters:
            return False
        self.told[told.node_id] = told
        return True

    def now_ms(self, time_ms: int) -> int | None:
        """What time it is at that log time, in milliseconds since 1970; None: that is not known."""
        return self._middle_ms(time_ms, [told for told in self.told.values() if time_ms - told.at_ms <= CLOCK_MS])

    def time_of(self, index: int, time_ms: int) -> int | None:
        """What time it was at an entry of that log time, by what was told after it alone."""
        return self._middle_ms(time_ms, [told for told in self.told.values() if told.entry > index])

    def in_order(self) -> list[Told]:
        """What they showed, in the order of whose they are."""
        return [self.told[node_id] for node_id in sorted(self.told)]

    def _middle_ms(self, time_ms: int, counted: list[Told]) -> int | None:
        return middle_ms([told.shown_ms + time_ms - told.at_ms for told in counted], len(self.voters))


class Runs:
    """Jobs, their runs, and the clocks of voters.

    size_bytes:    about what they take in memory, and
    history_bytes: what runs do of that.
    """

    __slots__ = (
        "_jobs",
        "_places",
        "_run_count",
        "_under_way",
        "_unsettled",
        "clocks",
        "history_bytes",
        "size_bytes",
    )

    def __init__(self) -> None:
        self.clocks = Clocks()
        self._jobs: dict[str, _Job] = {}
        self._unsettled: dict[str, None] = {}  # of which it is not known from when on their slots count
        self._places: dict[Place, dict[str, None]] = {}  # the jobs of each
        self._under_way: dict[Place, dict[tuple[str, int], None]] = {}  # job and fence
        self._run_count = 0  # under way
        self.size_bytes = self.history_bytes = 0

    @classmethod
    def of(cls, frozen: FrozenRuns) -> Runs:
        """As it was then, but for who votes."""
        made = cls()
        made.clocks.told = {told.node_id: told for told in frozen.clocks}
        for name, planned, runs in frozen.jobs:
            made._jobs[name] = job = _Job(planned.schedule)
            job.decided_ms, job.from_ms = planned.decided_ms, planned.from_ms
            job.asked_index, job.asked_ms = planned.asked_index, planned.asked_ms
            if job.asked_index:
                made._unsettled[name] = None
            made.size_bytes += _size_of(name, planned.schedule)
            texts: dict[bytes, bytes] = {}  # each once in memory
            for place, schedule in zip(planned.places, planned.schedules, strict=True):
                made._join(name, job, place, texts.setdefault(schedule, schedule))
            for run in runs:
                made._keep(name, job, run)
        return made

    def freeze(self) -> FrozenRuns:
        """All as it is now, in an order that depends on nothing else."""
        return FrozenRuns(
            self.clocks.in_order(),
            [(name, _planned(self._jobs[name]), list(self._jobs[name].runs.values())) for name in sorted(self._jobs)],
        )

    @property
    def is_wanted(self) -> bool:
        """Whether anybody runs jobs, so that clocks are to be told."""
        return bool(self._places)

    # -- the time

    def tell(self, node_id: int, shown_ms: int, index: int, time_ms: int) -> bool:
        """The clock of a member shows that, at that log time; whether it counts."""
        if not self.clocks.tell(Told(node_id, shown_ms, time_ms, index)):
            return False
        for name in list(self._unsettled):
            job = self._jobs[name]
            from_ms = self.clocks.time_of(job.asked_index, job.asked_ms)
            if from_ms is not None:
                # By those of all it may be later, where who told first are behind; what is old is never ahead.
                by_all_ms = self.clocks.now_ms(time_ms) or 0
                self._settle(name, job, max(from_ms, by_all_ms + job.asked_ms - time_ms, 0))
        return True

    # -- jobs

    def growth_bytes(self, order: Order) -> int:
        """How much larger all would be after that PLAN."""
        job = self._jobs.get(order.job)
        if job is None:
            return _size_of(order.job, order.text) + JOB_BYTES
        return len(order.text) - len(job.schedule) + (0 if order.place in job.places else JOB_BYTES)

    def check(self, order: Order) -> None:
        """Raise Rejected if too many run the job of a PLAN."""
        job = self._jobs.get(order.job)
        if job is not None and order.place not in job.places and len(job.places) >= MAX_PLACES:
            raise Rejected(f"{len(job.places)} processes run this job already, and more cannot")

    def plan(self, order: Order, holds: Holds, index: int, time_ms: int) -> int:
        """Have a job run by who has that place, which is held; NO_PLACE if it is not.

        What is planned otherwise than last, and than by any who run it now, has its slots count from now on, or from
        when it says: it may say an earlier time than was said before.  No slot up to the highest that was decided
        counts again, and none of what is run once and was decided.  `check` was called before.
        """
        (since_ms,) = order.numbers
        if not is_granted(holds, order.place):
            return NO_PLACE
        job = self._jobs.get(order.job)
        if job is None:
            job = self._jobs[order.job] = _Job(order.text)
            self.size_bytes += _size_of(order.job, order.text)
            self._count_anew(order.job, job, since_ms, index, time_ms)
        elif job.schedule != order.text:
            # Who joins anew with what others say too changes nothing: in a rolling deployment two schedules are there.
            is_known = order.text in job.places.values()
            self.size_bytes += len(order.text) - len(job.schedule)
            job.schedule = order.text
            if not is_known and not (job.decided_ms and is_once(order.text)):
                self._count_anew(order.job, job, since_ms, index, time_ms)
        self._join(order.job, job, order.place, job.schedule)
        return 1

    def forget(self, name: str) -> bool:
        """Know nothing of a job, unless some of it is under way; whether anything was known and is not any more."""
        job = self._jobs.get(name)
        if job is None or job.under_way:
            return False
        for place in job.places:
            del self._places[place][name]
            if not self._places[place]:
                del self._places[place]
            self.size_bytes -= JOB_BYTES
        for run in job.runs.values():
            self._grow(-_size_of_run(run))
        del self._jobs[name]
        self._unsettled.pop(name, None)
        self.size_bytes -= _size_of(name, job.schedule)
        return True

    def _count_anew(self, name: str, job: _Job, since_ms: int, index: int, time_ms: int) -> None:
        """Its slots count from then on; 0: from now on, which is known once a majority has told its clock again."""
        if since_ms:
            self._settle(name, job, since_ms)
        else:
            job.asked_index, job.asked_ms = index, time_ms
            self._unsettled[name] = None

    def _settle(self, name: str, job: _Job, from_ms: int) -> None:
        job.from_ms = from_ms
        job.asked_index = job.asked_ms = 0
        self._unsettled.pop(name, None)

    def _join(self, name: str, job: _Job, place: Place, schedule: bytes) -> None:
        is_new = place not in job.places
        job.places[place] = schedule
        if is_new:
            self._places.setdefault(place, {})[name] = None
            self.size_bytes += JOB_BYTES

    # -- runs

    def begin(self, order: Order, index: int, time_ms: int) -> int:
        """Claim a slot, or pass it over; returns the fence, the same whenever it is asked again, or an answer above."""
        slot_ms, attempt, count, retry, at_once = order.numbers
        job = self._jobs.get(order.job)
        if job is None or order.place not in job.places:
            return NO_PLACE
        last = job.last()
        if last is not None and last.place == order.place and (last.slot_ms, last.attempt) == (slot_ms, attempt):
            return last.fence
        if job.asked_index:
            return NOT_YET
        since_ms = max(job.decided_ms, job.from_ms)
        if slot_ms <= since_ms:
            if last is None or not _is_to_be_run_again(last, slot_ms, attempt, retry) or since_ms != slot_ms:
                return GONE
        elif attempt > 1 or (job.decided_ms and is_once(job.places[order.place])):
            return GONE
        now_ms = self.clocks.now_ms(time_ms)
        if now_ms is None or slot_ms > now_ms + AHEAD_MS or index in job.runs:
            return NOT_YET
        if attempt and job.under_way >= at_once:
            return BUSY
        state = RUNNING if attempt else MISSED
        over_ms = 0 if attempt else now_ms
        run = Run(slot_ms, count, attempt, state, index, now_ms, over_ms, order.place, order.text, b"")
        job.decided_ms = slot_ms
        self._keep(order.job, job, run)
        return index

    def finish(self, order: Order, time_ms: int) -> bool:
        """Have a run be over; whether it was under way, and under that place."""
        fence, state = order.numbers
        job = self._jobs.get(order.job)
        run = None if job is None else job.runs.get(fence)
        if run is None or run.state != RUNNING or run.place != order.place:
            return False
        self._end(order.job, run, state, order.text, time_ms)
        return True

    def leave(self, holds: Holds, time_ms: int) -> None:
        """What runs under places that were held, and are not any more since this was last asked, has died."""
        dropped = holds.dropped
        if not dropped:
            return
        holds.dropped = []
        for place in dropped:
            if place in self._places and not is_granted(holds, place):
                for name, fence in list(self._under_way.get(place, ())):
                    self._end(name, self._jobs[name].runs[fence], DIED, b"", time_ms)
                for name in self._places.pop(place):
                    del self._jobs[name].places[place]
                    self.size_bytes -= JOB_BYTES

    def _keep(self, name: str, job: _Job, run: Run) -> None:
        """Have one more, and let go of the first that is over, if there are too many."""
        job.runs[run.fence] = run
        self._grow(_size_of_run(run))
        if run.state == RUNNING:
            job.under_way += 1
            self._run_count += 1
            self._under_way.setdefault(run.place, {})[name, run.fence] = None
        if len(job.runs) > KEPT_RUNS:
            self._drop(job)

    def shed(self, name: str) -> None:
        """Have a job that has just grown by a run take less: two of its runs are not kept, but the last is."""
        job = self._jobs.get(name)
        if job is not None:
            for _ in range(2):
                self._drop(job)

    def _drop(self, job: _Job) -> None:
        """Let go of the first run that is over, unless that is the last of all, which decides what is run again."""
        for former in islice(job.runs.values(), len(job.runs) - 1):
            if former.state != RUNNING:
                del job.runs[former.fence]
                self._grow(-_size_of_run(former))
                break

    def _grow(self, by_bytes: int) -> None:
        self.history_bytes += by_bytes
        self.size_bytes += by_bytes

    def _end(self, name: str, run: Run, state: int, said: bytes, time_ms: int) -> None:
        job = self._jobs[name]
        now_ms = self.clocks.now_ms(time_ms)
        ended_ms = 0 if now_ms is None else max(now_ms, run.began_ms)  # clocks may have been set back
        over = run._replace(state=state, ended_ms=ended_ms, said=said)
        job.runs[run.fence] = over
        self._grow(len(said))
        job.under_way -= 1
        self._run_count -= 1
        under_way = self._under_way[run.place]
        del under_way[name, run.fence]
        if not under_way:
            del self._under_way[run.place]

    # -- looks

    def is_under_way(self, name: str, fence: int) -> bool:
        """Whether that run is."""
        job = self._jobs.get(name)
        run = None if job is None else job.runs.get(fence)
        return run is not None and run.state == RUNNING

    def planned(self, name: str) -> Planned | None:
        """What is known of a job."""
        job = self._jobs.get(name)
        return None if job is None else _planned(job)

    def names(self, prefix: str) -> list[str]:
        """The jobs that are known, in order."""
        return sorted(name for name in self._jobs if name.startswith(prefix))

    def runs(self, name: str) -> list[Run]:
        """Of a job, the latest last."""
        job = self._jobs.get(name)
        return [] if job is None else list(job.runs.values())

    def counts(self) -> tuple[int, int]:
        """How many jobs are known, and how many runs are under way."""
        return len(self._jobs), self._run_count


def jobs_of(runs: Runs) -> list[str]:
    """All jobs that are known, in no order: to put many into one takes a while."""
    return list(runs._jobs)


def _planned(job: _Job) -> Planned:
    numbers = job.decided_ms, job.from_ms, job.asked_index, job.asked_ms
    places = sorted(job.places)
    return Planned(job.schedule, *numbers, tuple(places), tuple([job.places[place] for place in places]))


def middle_ms(shown: list[int], voter_count: int) -> int | None:
    """The time by what clocks show, the lower middle, if a majority of the voters does; else None."""
    if not voter_count or len(shown) <= voter_count // 2:
        return None
    return sorted(shown)[(len(shown) - 1) // 2]


def is_once(schedule: bytes) -> bool:
    """Whether what is planned so is run once, at whatever time."""
    return schedule == ONCE or schedule.startswith(ONCE + b", ")


def is_granted(holds: Holds, place: Place) -> bool:
    """Whether there is that claim, and it is held."""
    claim = holds.claim_of(*place)
    return claim is not None and claim.fence != 0


def _is_to_be_run_again(last: Run, slot_ms: int, attempt: int, retry: int) -> bool:
    return last.slot_ms == slot_ms and last.state == DIED and attempt == last.attempt + 1 and last.attempt <= retry


def checked_runs(frozen: FrozenRuns, is_held: Callable[[Place], bool], index: int) -> str | None:
    """What is wrong with what was read of a snapshot of that index; None: nothing."""
    members = [told.node_id for told in frozen.clocks]
    names = [name for name, _, _ in frozen.jobs]
    if members != sorted(set(members)) or names != sorted(set(names)):
        return "clocks or jobs are out of order"
    if any(told.entry > index for told in frozen.clocks):
        return "a clock was told after it"
    for name, planned, runs in frozen.jobs:
        fences = [run.fence for run in runs]
        slots = [run.slot_ms for run in runs]
        if list(planned.places) != sorted(set(planned.places)) or not all(is_held(place) for place in planned.places):
            return f"{name!r} is run by who is not there"
        if fences != sorted(set(fences)) or slots != sorted(slots) or (fences and fences[-1] > index):
            return f"the runs of {name!r} are out of order"
        if planned.asked_index > index or len(planned.places) > MAX_PLACES:
            return f"{name!r} was planned after it, or is run by too many"
        if slots and slots[-1] > planned.decided_ms:
            return f"{name!r} ran later than it says"
        for run in runs:
            if not RUNNING <= run.state <= MISSED or (run.state == RUNNING and run.place not in planned.places):
                return f"a run of {name!r} is in no state, or run by nobody"
    return None


def _size_of(name: str, schedule: bytes) -> int:
    return JOB_BYTES + len(name) + len(schedule)


def _size_of_run(run: Run) -> int:
    return JOB_BYTES + len(run.who) + len(run.said)


STATES: Final = {RUNNING: "running", DONE: "done", FAILED: "failed", DIED: "died", MISSED: "missed"}
"""As people are told."""
