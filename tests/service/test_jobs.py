"""Jobs on real threads: who runs what is due, who does not, and what becomes of it.  The time of day is set by hand."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

import raftsvc
from raftsvc import kv
from raftsvc.errors import ConfigurationError, ForkedError, OutcomeUnknown, Rejected
from raftsvc.kv import timekeeper
from raftsvc.kv.duty import Duty
from raftsvc.kv.orders import is_order
from raftsvc.recipes import JobRun, Jobs, PastRun, current_run, scheduler

from .harness import PATIENCE, Cluster, ListState, Member, eventually, in_background
from .test_watching import OpenState, store_of

NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
PAST = timedelta(seconds=25)
"""What clocks on walls show beyond a full minute: log time goes on while they stand still."""
MINUTE = timedelta(minutes=1)
LONG = 600.0
"""A TTL that nothing in these tests outlasts."""


class Wall:
    """The clocks on the walls of all nodes: they stand still unless they are moved, and some show something else."""

    def __init__(self) -> None:
        self.now = NOON + PAST
        self.nodes: list[tuple[Any, timedelta]] = []

    def hang(self, member: Member, skew: timedelta = timedelta(0)) -> kv.KeyValue:
        store = store_of(member)
        state: Any = member.state
        state.companion.timekeeper.wall = lambda: int((self.now + skew).timestamp() * 1000)
        self.nodes.append((state, skew))
        return store

    def move(self, by: timedelta) -> None:
        """Move all, and return once all nodes know; as long as they tell each other."""
        self.now += by

    def is_known(self) -> bool:
        return all(self.of(state) == self.now for state, _ in self.nodes)

    def of(self, state: Any) -> datetime | None:
        """What time it is by all, as that node knows it; to the second, for log time goes on."""
        now_ms = state.clock(1).now_ms
        return None if now_ms is None else datetime.fromtimestamp(round(now_ms / 1000), timezone.utc)


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    monkeypatch.setattr(timekeeper, "TELL_SECONDS", 0.05)
    monkeypatch.setattr(timekeeper, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(scheduler, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(scheduler, "_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(scheduler, "_UNKNOWN_SECONDS", 0.02)
    monkeypatch.setattr(scheduler, "_TURN_MS", 0)
    return Wall()


@pytest.fixture
def started() -> Iterator[Callable[..., Jobs]]:
    made: list[Jobs] = []

    def start(store: kv.KeyValue, declare: Callable[[Jobs], Any], **options: Any) -> Jobs:
        jobs = store.jobs(**{"ttl": LONG, **options})
        declare(jobs)
        jobs.start()
        made.append(jobs)
        return jobs

    yield start
    for jobs in made:
        jobs.stop(PATIENCE)


@pytest.fixture
def lone(make_cluster: Callable[..., Cluster], wall: Wall) -> kv.KeyValue:
    (member,) = make_cluster(make_state=OpenState).form(1)
    return wall.hang(member)


@pytest.fixture
def stores(make_cluster: Callable[..., Cluster], wall: Wall) -> list[kv.KeyValue]:
    return [wall.hang(member) for member in make_cluster(make_state=OpenState).form(3)]


class Book:
    """What was run: notes each run, and holds those up that it is told to."""

    def __init__(self) -> None:
        self.runs: list[tuple[Any, JobRun]] = []
        self.gate = threading.Event()
        self.gate.set()

    def write(self, who: Any = None) -> None:
        run = current_run()
        assert run is not None
        self.runs.append((who, run))
        assert self.gate.wait(PATIENCE)

    @property
    def slots(self) -> list[datetime]:
        return [run.slot for _, run in self.runs]


@pytest.fixture
def book() -> Iterator[Book]:
    made = Book()
    yield made
    made.gate.set()


def every_minute(book: Book, who: Any = None, **options: Any) -> Callable[[Jobs], Any]:
    return lambda jobs: jobs.every(60, **{"name": "tick", **options})(lambda: book.write(who))


def past(jobs: Jobs, count: int, state: str = "", name: str = "tick") -> list[PastRun]:
    """The history, once there are so many of that state, or over."""

    def look() -> list[PastRun]:
        found = jobs.history(name, PATIENCE)
        wanted = [each for each in found if each.state == state or (not state and each.state != "running")]
        return found if len(wanted) >= count else []

    found: list[PastRun] = eventually(look, f"{count} runs {state}")
    return found


def planned(jobs: Jobs, name: str = "tick") -> None:
    """Return once its slots count."""
    eventually(lambda: name in jobs.names() and jobs._duty.look(name)[0].is_settled, "the time to be known")  # type: ignore[union-attr]


# -- who runs what


def test_each_due_run_is_begun_once_in_all_processes_of_all_nodes(
    stores: list[kv.KeyValue], wall: Wall, book: Book, started: Callable[..., Jobs]
) -> None:
    every = [started(store, every_minute(book, number)) for number, store in enumerate(stores * 2)]
    for jobs in every:
        planned(jobs)
    for count in range(1, 13):
        wall.move(MINUTE)
        past(every[0], count)
    assert book.slots == [NOON + n * MINUTE for n in range(1, 13)]
    assert len({who for who, _ in book.runs}) > 1, "not one does it all"
    fences = [run.fence for _, run in book.runs]
    assert fences == sorted(set(fences))
    assert [(each.slot, each.state, each.slots, each.attempt) for each in every[5].history("tick", PATIENCE)] == [
        (slot, "done", 1, 1) for slot in book.slots
    ]


def test_a_node_whose_clock_is_an_hour_off_runs_jobs_by_the_clocks_of_the_others(
    make_cluster: Callable[..., Cluster], wall: Wall, book: Book, started: Callable[..., Jobs]
) -> None:
    members = make_cluster(make_state=OpenState).form(3)
    hour = timedelta(hours=1)
    skews = [hour, timedelta(0), -hour]
    stores = [wall.hang(member, skew) for member, skew in zip(members, skews, strict=True)]
    started(stores[1], lambda jobs: jobs.every(86_400, name="other")(print))
    eventually(wall.is_known)
    # Only those who are wrong run anything.
    every = [started(stores[number], every_minute(book, skews[number])) for number in (0, 2)]
    for jobs in every:
        planned(jobs)
    for count in range(1, 7):
        wall.move(MINUTE)
        past(every[0], count)
    assert book.slots == [NOON + n * MINUTE for n in range(1, 7)]
    assert hour in {who for who, _ in book.runs} | {-hour}


def test_two_clocks_of_three_that_tell_are_enough_and_one_is_not(
    make_cluster: Callable[..., Cluster],
    wall: Wall,
    book: Book,
    started: Callable[..., Jobs],
    caplog: pytest.LogCaptureFixture,
) -> None:
    members = make_cluster(make_state=OpenState).form(3)
    jobs = started(wall.hang(members[0]), every_minute(book))
    eventually(lambda: "no majority of the voters has told its clock" in caplog.text)
    wall.move(MINUTE)
    assert jobs.history("tick", PATIENCE) == []
    assert not jobs._duty.look("tick")[0].is_settled  # type: ignore[union-attr]
    state: Any = members[0].state
    shown = wall.now.timestamp() * 1000
    eventually(lambda: shown in [told.shown_ms for told in state.clock(1).told if told.node_id == 1])
    wall.hang(members[1])
    planned(jobs)
    wall.move(MINUTE)
    past(jobs, 1)
    assert book.slots == [NOON + 2 * MINUTE]


def clocks() -> list[threading.Thread]:
    """The threads that tell one."""
    return [each for each in threading.enumerate() if each.name == "raftsvc-clock"]


def test_clocks_are_told_by_nodes_that_run_no_jobs_and_by_nobody_once_no_process_does(
    stores: list[kv.KeyValue], wall: Wall, book: Book, started: Callable[..., Jobs]
) -> None:
    eventually(lambda: not clocks(), "those of nodes that a former test stopped have ended")
    states: list[Any] = [store._state for store in stores]
    assert not any(state.clock(1).is_wanted for state in states)
    jobs = started(stores[0], every_minute(book))
    planned(jobs)
    wall.move(MINUTE)
    past(jobs, 1)
    assert jobs.stop(PATIENCE)
    eventually(lambda: not states[0].clock(1).is_wanted)
    eventually(lambda: not clocks())


def test_jobs_of_a_namespace_are_its_own(
    lone: kv.KeyValue, wall: Wall, book: Book, started: Callable[..., Jobs]
) -> None:
    below, above = Book(), book
    inner = started(lone.namespace("app/"), every_minute(below))
    outer = started(lone, every_minute(above))
    for jobs in (inner, outer):
        planned(jobs)
    wall.move(MINUTE)
    past(inner, 1)
    past(outer, 1)
    assert (len(below.runs), len(above.runs)) == (1, 1)
    assert below.runs[0][1].name == "app/job:tick"
    assert inner.names() == outer.names() == ["tick"]


def test_jobs_run_beside_a_state_of_ones_own(
    make_cluster: Callable[..., Cluster], wall: Wall, book: Book, started: Callable[..., Jobs]
) -> None:
    (member,) = make_cluster(make_state=lambda: raftsvc.States(kv=OpenState(), mine=ListState())).form(1)
    states: Any = member.state
    state = states["kv"]
    store = kv.KeyValue(states.part("kv", member.service), state)
    state.companion.timekeeper.wall = lambda: int(wall.now.timestamp() * 1000)
    jobs = started(store, every_minute(book))
    planned(jobs)
    wall.move(MINUTE)
    past(jobs, 1)
    assert book.slots == [NOON + MINUTE]


def test_many_jobs_are_declared_in_few_writes(
    lone: kv.KeyValue, wall: Wall, book: Book, started: Callable[..., Jobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    plan_many = Duty.plan_many

    def count(duty: Duty, hold: Any, jobs: Any, timeout: float) -> int:
        asked.append(len(jobs))
        return plan_many(duty, hold, jobs, timeout)

    monkeypatch.setattr(Duty, "plan_many", count)
    monkeypatch.setattr(Duty, "plan", None)

    def declare(jobs: Jobs) -> None:
        for number in range(250):
            jobs.every(60, name=f"{number}")(book.write)

    jobs = started(lone, declare, threads=50)
    for number in range(250):
        planned(jobs, str(number))
    assert asked == [100, 100, 50]


def test_jobs_that_are_refused_together_are_declared_one_by_one(
    lone: kv.KeyValue, wall: Wall, book: Book, started: Callable[..., Jobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> int:
        raise Rejected("there is no room")

    monkeypatch.setattr(Duty, "plan_many", refuse)

    def declare(jobs: Jobs) -> None:
        for name in ("a", "b"):
            jobs.every(60, name=name)(book.write)

    jobs = started(lone, declare)
    planned(jobs, "a")
    planned(jobs, "b")


# -- what is late


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"misfire_grace": 20}, [(10, "missed", 10)]),
        ({"misfire_grace": None}, [(10, "done", 10)]),
        ({"misfire_grace": 70, "coalesce": True}, [(10, "done", 10)]),
        (
            {"misfire_grace": 200, "coalesce": False},
            [(7, "missed", 7), (8, "done", 1), (9, "done", 1), (10, "done", 1)],
        ),
    ],
)
def test_what_was_due_while_nobody_ran_jobs_is_missed_or_run_as_it_was_said(
    lone: kv.KeyValue, wall: Wall, book: Book, started: Callable[..., Jobs], options: Any, expected: Any
) -> None:
    first = started(lone, every_minute(book, **options))
    planned(first)
    assert first.stop(PATIENCE)
    wall.move(10 * MINUTE + timedelta(seconds=30))
    second = started(lone, every_minute(book, **options))
    found = past(second, len(expected))
    assert [((each.slot - NOON) // MINUTE, each.state, each.slots) for each in found] == expected
    assert len(book.runs) == sum(state == "done" for _, state, _ in expected)


def test_what_was_claimed_too_late_is_not_begun(
    lone: kv.KeyValue, wall: Wall, book: Book, started: Callable[..., Jobs]
) -> None:
    jobs = started(lone, every_minute(book, misfire_grace=30))
    planned(jobs)
    begin = jobs._duty.begin

    def slowly(*arguments: Any) -> int:
        fence = begin(*arguments)
        wall.move(timedelta(seconds=6))
        eventually(lambda: jobs._duty.now_ms() == wall.now.timestamp() * 1000)
        jobs._duty.begin = begin  # type: ignore[method-assign]
        return fence

    jobs._duty.begin = slowly  # type: ignore[method-assign]
    wall.move(MINUTE)
    (found,) = past(jobs, 1)
    assert (found.state, found.said, found.attempt) == ("missed", "claimed too late to begin", 1)
    assert book.runs == []


def test_a_clock_that_is_set_back_has_nothing_run_again(
    lone: kv.KeyValue, wall: Wall, book: Book, started: Callable[..., Jobs]
) -> None:
    jobs = started(lone, every_minute(book))
    planned(jobs)
    wall.move(2 * MINUTE)
    past(jobs, 1)
    wall.move(-5 * MINUTE)
    eventually(wall.is_known)
    wall.move(5 * MINUTE)
    eventually(wall.is_known)
    wall.move(MINUTE)
    past(jobs, 2)
    assert book.slots == [NOON + 2 * MINUTE, NOON + 3 * MINUTE]


def test_a_clock_that_was_far_ahead_once_is_warned_of_with_what_helps(
    lone: kv.KeyValue, wall: Wall, book: Book, started: Callable[..., Jobs], caplog: pytest.LogCaptureFixture
) -> None:
    jobs = started(lone, every_minute(book))
    planned(jobs)
    wall.move(timedelta(days=400))
    past(jobs, 1)
    assert "is not run before" not in caplog.text
    wall.move(timedelta(days=-400))
    eventually(lambda: "job 'tick' is not run before 2027-07-06 12:00:00+00:00" in caplog.text)
    assert caplog.text.count("is not run before") == 1
    assert jobs.forget("tick")
    planned(jobs)
    wall.move(MINUTE)
    past(jobs, 1)
    assert book.slots[1:] == [NOON + MINUTE]


def test_another_schedule_counts_from_when_it_is_planned(
    lone: kv.KeyValue, wall: Wall, book: Book, started: Callable[..., Jobs]
) -> None:
    hourly = started(lone, lambda jobs: jobs.every(3600, name="tick", misfire_grace=None)(lambda: book.write("old")))
    planned(hourly)
    started(lone, lambda jobs: jobs.every(86_400, name="other")(print))
    assert hourly.stop(PATIENCE)
    wall.move(30 * MINUTE)
    eventually(wall.is_known)
    fresh = started(lone, every_minute(book, "new", misfire_grace=None))
    eventually(lambda: fresh._duty.look("tick")[0].schedule == b"every 60 s")  # type: ignore[union-attr]
    planned(fresh)
    eventually(wall.is_known)
    wall.move(MINUTE)
    past(fresh, 1)
    assert book.slots[-1] == NOON + 31 * MINUTE
    assert {who for who, _ in book.runs} == {"new"}


# -- how it ends


def test_a_job_that_raises_is_listed_so_and_run_again_when_it_is_due(
    lone: kv.KeyValue, wall: Wall, started: Callable[..., Jobs], caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ValueError("no paper")

    jobs = started(lone, lambda jobs: jobs.every(60, name="tick", retry=5)(fail))
    planned(jobs)
    for count in (1, 2):
        wall.move(MINUTE)
        found = past(jobs, count, "failed")
    assert [(each.attempt, each.said) for each in found] == [(1, "ValueError: no paper")] * 2
    assert "job 'tick' raised" in caplog.text


def test_a_job_that_hangs_holds_up_itself_alone(
    lone: kv.KeyValue, wall: Wall, book: Book, started: Callable[..., Jobs]
) -> None:
    other = Book()
    book.gate.clear()

    def declare(jobs: Jobs) -> None:
        every_minute(book)(jobs)
        every_minute(other, name="other")(jobs)

    jobs = started(lone, declare)
    planned(jobs)
    planned(jobs, "other")
    for count in (1, 2, 3):
        wall.move(MINUTE)
        past(jobs, count, name="other")
    assert book.slots == [NOON + MINUTE]
    assert [each.state for each in jobs.history("tick", PATIENCE)] == ["running"]
    book.gate.set()
    assert [(each.slot - NOON) // MINUTE for each in past(jobs, 2)] == [1, 3], "the last of what was due meanwhile"


def test_as_many_runs_of_a_job_as_it_says_and_as_many_in_a_process_as_it_has_threads(
    lone: kv.KeyValue, wall: Wall, book: Book, started: Callable[..., Jobs]
) -> None:
    book.gate.clear()
    declare = every_minute(book, max_instances=3, misfire_grace=None)
    jobs = started(lone, declare, threads=2)
    planned(jobs)
    for count in (1, 2):
        wall.move(MINUTE)
        past(jobs, count, "running")
    wall.move(MINUTE)
    assert not threading.Event().wait(0.2)
    assert len(book.runs) == 2, "there is no third thread"
    second = started(lone, declare, threads=2)
    past(jobs, 3, "running")
    wall.move(MINUTE)
    assert not threading.Event().wait(0.2)
    assert len(book.runs) == 3, "a fourth may not run beside the others"
    book.gate.set()
    past(second, 4)


def dead(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is heard any more of the process with these jobs: it renews nothing, and tells nothing."""
    hold: Any = eventually(lambda: jobs._scheduler._hold, "who runs jobs to have joined")  # type: ignore[union-attr]
    monkeypatch.setattr(hold.lease, "refresh", lambda timeout=0.0: None)
    monkeypatch.setattr(jobs._duty, "finish", lambda *arguments: True)
    monkeypatch.setattr(jobs._duty, "join", lambda timeout: None)


@pytest.mark.parametrize("retry", [0, 1])
def test_a_run_whose_process_dies_is_listed_so_and_run_again_where_that_is_said(
    stores: list[kv.KeyValue],
    wall: Wall,
    book: Book,
    started: Callable[..., Jobs],
    monkeypatch: pytest.MonkeyPatch,
    retry: int,
) -> None:
    book.gate.clear()
    dying = started(stores[0], every_minute(book, "dying", retry=retry), ttl=5.0)
    planned(dying)
    wall.move(MINUTE)
    past(dying, 1, "running")
    run = eventually(lambda: book.runs)[0][1]
    dead(dying, monkeypatch)
    staying = started(stores[1], every_minute(book, "staying", retry=retry))
    found = past(staying, 1, "died")
    assert run.lost.wait(PATIENCE)
    with pytest.raises(kv.LostError):
        stores[1].transaction([kv.if_held(run), kv.set("k", b"late")], PATIENCE)
    assert (found[0].state, found[0].attempt) == ("died", 1)
    if retry:
        eventually(lambda: len(book.runs) == 2)
        again = book.runs[1][1]
        assert (book.runs[1][0], again.attempt, again.slot) == ("staying", 2, run.slot)
        assert again.fence > run.fence
        stores[1].transaction([kv.if_held(again), kv.set("k", b"mine")], PATIENCE)
    book.gate.set()
    wall.move(MINUTE)
    found = past(staying, 2, "done") if retry else past(staying, 1, "done")
    assert [each.state for each in found] == ["died", *["done"] * (1 + retry)]


def test_who_is_taken_for_dead_and_was_not_joins_again(
    lone: kv.KeyValue, wall: Wall, book: Book, started: Callable[..., Jobs]
) -> None:
    jobs = started(lone, every_minute(book))
    planned(jobs)
    first: Any = jobs._scheduler._hold  # type: ignore[union-attr]
    first.lease.revoke(PATIENCE)
    eventually(lambda: jobs._scheduler._hold not in (None, first))  # type: ignore[union-attr]
    planned(jobs)
    wall.move(MINUTE)
    past(jobs, 1)
    assert book.slots == [NOON + MINUTE]


@pytest.mark.parametrize("was_applied", [True, False])
def test_a_claim_that_nobody_answered_is_asked_again_and_begun_once(
    lone: kv.KeyValue,
    wall: Wall,
    book: Book,
    started: Callable[..., Jobs],
    monkeypatch: pytest.MonkeyPatch,
    was_applied: bool,
) -> None:
    jobs = started(lone, every_minute(book))
    planned(jobs)
    begin = jobs._duty.begin
    asked: list[Any] = []

    def unheard(*arguments: Any) -> int:
        asked.append(arguments)
        if len(asked) < 4:
            if was_applied:
                begin(*arguments)
            raise OutcomeUnknown("lost by the test")
        return begin(*arguments)

    monkeypatch.setattr(jobs._duty, "begin", unheard)
    wall.move(MINUTE)
    (found,) = past(jobs, 1)
    assert found.state == "done"
    assert book.slots == [NOON + MINUTE]
    assert len({each[2] for each in asked}) == 1


def test_an_end_that_could_not_be_told_is_told_later(
    lone: kv.KeyValue, wall: Wall, book: Book, started: Callable[..., Jobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = started(lone, every_minute(book))
    planned(jobs)
    finish, tries = jobs._duty.finish, iter(range(100))

    def unheard(*arguments: Any) -> bool:
        if next(tries) < 3:
            raise OutcomeUnknown("lost by the test")
        return finish(*arguments)

    monkeypatch.setattr(jobs._duty, "finish", unheard)
    wall.move(MINUTE)
    assert [each.state for each in past(jobs, 1)] == ["done"]


def test_nothing_is_run_twice_or_forgotten_while_leaders_change_and_nodes_are_cut_off(
    make_cluster: Callable[..., Cluster], wall: Wall, book: Book, started: Callable[..., Jobs]
) -> None:
    cluster = make_cluster(make_state=OpenState)
    members = cluster.form(3)
    every = [started(wall.hang(member), every_minute(book, misfire_grace=None, coalesce=False)) for member in members]
    for jobs in every:
        planned(jobs)
    for _ in range(4):
        leader = cluster.leader()
        cluster.cut(leader, [member for member in members if member is not leader])
        wall.move(MINUTE)
        eventually(lambda known=leader: any(m.is_leader for m in members if m is not known))  # type: ignore[misc]
        wall.move(MINUTE)
        cluster.heal()
        wall.move(MINUTE)
    found = past(every[0], 12)
    assert sorted(book.slots) == [each.slot for each in found] == [NOON + n * MINUTE for n in range(1, 13)]


# -- once


def test_what_is_to_be_run_once_is_run_by_one_once_until_it_is_forgotten(
    stores: list[kv.KeyValue], wall: Wall, book: Book, started: Callable[..., Jobs]
) -> None:
    def declare(jobs: Jobs) -> None:
        jobs.once("migrate", book.write)
        jobs.once("later", lambda: book.write("later"), at=NOON + 10 * MINUTE)

    every = [started(store, declare) for store in stores]
    past(every[0], 1, name="migrate")
    assert every[0].next_runs() == {"migrate": None, "later": NOON + 10 * MINUTE}
    wall.move(30 * MINUTE)
    past(every[0], 1, name="later")
    assert [who for who, _ in book.runs] == [None, "later"]
    eventually(lambda: every[1].next_runs() == {"migrate": None, "later": None}, "that node knows")
    assert every[1].forget("migrate", PATIENCE) is True
    past(every[0], 1, name="migrate")
    assert len(book.runs) == 3


def test_what_was_run_once_is_not_run_again_at_another_time(
    lone: kv.KeyValue, wall: Wall, book: Book, started: Callable[..., Jobs]
) -> None:
    def declare(jobs: Jobs, at: datetime, first: datetime | None) -> None:
        jobs.once("first", lambda: book.write("first"), at=first)
        jobs.once("later", lambda: book.write("later"), at=at)

    before = started(lone, lambda jobs: declare(jobs, NOON + 10 * MINUTE, None))
    past(before, 1, name="first")
    again = started(lone, lambda jobs: declare(jobs, NOON + 5 * MINUTE, NOON + 6 * MINUTE))
    eventually(lambda: again.next_runs() == {"first": None, "later": NOON + 5 * MINUTE}, "it is moved")
    wall.move(5 * MINUTE)
    past(again, 1, name="later")
    for jobs in (before, again):
        assert jobs.next_runs() == {"first": None, "later": None}
        assert jobs.stop(PATIENCE)
    anew = started(lone, lambda jobs: declare(jobs, NOON + 20 * MINUTE, NOON + 21 * MINUTE))
    every_minute(book, "tick")(anew)
    planned(anew)
    assert anew.next_runs() == {"first": None, "later": None, "tick": NOON + 6 * MINUTE}
    wall.move(30 * MINUTE)
    past(anew, 1, name="tick")
    wall.move(MINUTE)
    past(anew, 2, name="tick")
    assert [who for who, _ in book.runs if who != "tick"] == ["first", "later"]


# -- looking


def test_it_is_shown_what_is_due_next_and_who_ran_what(
    lone: kv.KeyValue, wall: Wall, book: Book, started: Callable[..., Jobs]
) -> None:
    def declare(jobs: Jobs) -> None:
        every_minute(book)(jobs)

        @jobs.cron("30 4 * * *", timezone="Europe/Berlin")
        def report() -> None:
            """Nothing."""

    jobs = started(lone, declare, data=b"me")
    assert set(jobs.next_runs()) == {
        "tick",
        f"{__name__}.{test_it_is_shown_what_is_due_next_and_who_ran_what.__name__}.<locals>.declare.<locals>.report",
    }
    planned(jobs)
    eventually(wall.is_known)
    assert list(jobs.next_runs().values()) == [NOON + MINUTE, datetime(2026, 6, 2, 2, 30, tzinfo=timezone.utc)]
    wall.move(MINUTE)
    (found,) = past(jobs, 1)
    assert found.who == "me"
    assert found.began is not None
    assert found.ended is not None
    assert found.slot <= found.began <= found.ended
    assert current_run() is None
    state: Any = lone.service.status()["state"]
    assert (state["jobs"], state["runs"]) == (2, 0)


# -- who stops, and what makes no sense


def test_a_service_that_stops_has_what_runs_know_and_listed_as_it_ended(
    make_cluster: Callable[..., Cluster], wall: Wall, started: Callable[..., Jobs]
) -> None:
    members = make_cluster(make_state=OpenState).form(3)
    stopping, staying = wall.hang(members[1]), wall.hang(members[0])
    begun = threading.Event()

    def work() -> None:
        run = current_run()
        assert run is not None
        begun.set()
        assert run.lost.wait(PATIENCE)

    jobs = started(stopping, lambda jobs: jobs.every(60, name="tick")(work))
    planned(jobs)
    wall.hang(members[2])
    wall.move(MINUTE)
    assert begun.wait(PATIENCE)
    members[1].service.stop()
    other = staying.jobs(ttl=LONG)
    assert [each.state for each in past(other, 1)] == ["done"]
    eventually(lambda: not members[0].state.clock(1).is_wanted)  # type: ignore[attr-defined]
    eventually(
        lambda: not [each for each in threading.enumerate() if each.name.startswith(("raftsvc-clock", "raftsvc-job"))]
    )


def test_a_node_that_stops_while_others_run_jobs_tells_its_clock_no_more(
    make_cluster: Callable[..., Cluster], wall: Wall, book: Book, started: Callable[..., Jobs]
) -> None:
    members = make_cluster(make_state=OpenState).form(3)
    stores = [wall.hang(member) for member in members]
    jobs = started(stores[0], every_minute(book))
    planned(jobs)
    clocks = lambda: sum(each.name == "raftsvc-clock" for each in threading.enumerate())  # noqa: E731
    eventually(lambda: clocks() == 3)
    members[2].service.stop()
    eventually(lambda: clocks() == 2)
    wall.move(MINUTE)
    past(jobs, 1)


def test_jobs_that_are_stopped_begin_nothing_and_may_be_started_again(
    lone: kv.KeyValue, wall: Wall, book: Book, started: Callable[..., Jobs]
) -> None:
    book.gate.clear()
    jobs = started(lone, every_minute(book))
    jobs.start()
    planned(jobs)
    wall.move(MINUTE)
    past(jobs, 1, "running")
    assert jobs.stop(0.1) is False, "something runs"
    wall.move(MINUTE)
    book.gate.set()
    past(jobs, 1, "done")
    eventually(lambda: not lone._state.clock(1).is_wanted)  # type: ignore[union-attr]
    assert jobs.stop(PATIENCE) is True
    jobs.start()
    wall.move(MINUTE)
    past(jobs, 2)


def test_a_forked_child_runs_no_jobs_and_stops_none(
    lone: kv.KeyValue, wall: Wall, book: Book, started: Callable[..., Jobs]
) -> None:
    jobs = started(lone, every_minute(book))
    planned(jobs)
    child = os.fork()
    if not child:
        status = 1
        try:
            assert jobs.stop(1.0) is True
            for call in (jobs.start, jobs.names, jobs.next_runs, lambda: jobs.history("tick")):
                with pytest.raises(ForkedError):
                    call()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    wall.move(MINUTE)
    past(jobs, 1)


def test_what_makes_no_sense_is_refused_when_it_is_said(lone: kv.KeyValue) -> None:
    jobs = lone.jobs()
    jobs.every(60, name="tick")(print)
    coroutine: Any = time.sleep

    async def later() -> None:
        """Nothing."""

    calls: list[Callable[[], Any]] = [
        lambda: jobs.every(60, name="tick")(print),
        lambda: jobs.every(60, name="x")(later),  # type: ignore[arg-type, type-var]
        lambda: jobs.every(60, name="x")(7),  # type: ignore[type-var]
        lambda: jobs.every(60)(type("Nameless", (), {"__call__": lambda self: None})()),
        lambda: jobs.every(60, retry=-1),
        lambda: jobs.every(60, retry=True),
        lambda: jobs.every(60, max_instances=0),
        lambda: jobs.every(60, max_instances=51),
        lambda: jobs.every(60, coalesce="yes"),  # type: ignore[arg-type]
        lambda: jobs.every(60, misfire_grace=0),
        lambda: jobs.every(60, misfire_grace=float("nan")),
        lambda: jobs.every(60, misfire_grace="1"),  # type: ignore[arg-type]
        lambda: jobs.stop(-1),
        lambda: jobs.stop(float("nan")),
        lambda: lone.jobs(threads=0),
        lambda: lone.jobs(ttl=0.1),
        lambda: raftsvc.connect("127.0.0.1:1", key="a:" + "k" * 32).jobs().start(),
    ]
    for call in calls:
        with pytest.raises(ConfigurationError):
            call()
    for name in ("", "x" * 1025, 7):
        with pytest.raises((TypeError, ValueError)):
            jobs.every(60, name=name)  # type: ignore[arg-type]
    assert coroutine is time.sleep
    assert not is_order(b"")
    assert in_background(lambda: jobs.next_runs())()
