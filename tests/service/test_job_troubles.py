"""Jobs where something goes wrong: answers that do not come, ends that cannot be told, threads that cannot be had."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from raftsvc import kv
from raftsvc.errors import ConfigurationError, OutcomeUnknown, Rejected, StoppedError
from raftsvc.kv.runs import GONE, NOT_YET
from raftsvc.recipes import Jobs, scheduler

from .harness import PATIENCE, eventually, in_background
from .test_jobs import MINUTE, NOON, Book, Wall, book, every_minute, lone, past, planned, started, wall

__all__ = ["book", "lone", "started", "wall"]


def states(jobs: Jobs, name: str = "tick") -> list[tuple[str, int]]:
    return [(each.state, each.attempt) for each in jobs.history(name, PATIENCE)]


def running(jobs: Jobs, wall: Wall, book: Book) -> None:
    """Return once the job runs, and is held up."""
    book.gate.clear()
    planned(jobs)
    wall.move(MINUTE)
    past(jobs, 1, "running")
    eventually(lambda: book.runs)


# -- the thread


def test_jobs_are_started_again_where_their_thread_has_ended_by_itself(
    lone: kv.KeyValue, wall: Wall, book: Book, started: Callable[..., Jobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = started(lone, every_minute(book))
    planned(jobs)
    with monkeypatch.context() as patch:
        patch.setattr(jobs._duty, "over", lambda: StoppedError("by the test"))
        eventually(lambda: not jobs._scheduler.is_alive)  # type: ignore[union-attr]
    jobs.start()
    wall.move(MINUTE)
    past(jobs, 1, "done")


# -- who stops


def test_who_stops_goes_on_telling_how_a_run_ended_until_it_is_known(
    lone: kv.KeyValue, wall: Wall, book: Book, started: Callable[..., Jobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = started(lone, every_minute(book))
    running(jobs, wall, book)
    finish, tries, is_heard = jobs._duty.finish, [0], threading.Event()

    def unheard(*arguments: Any) -> bool:
        tries[0] += 1
        if not is_heard.is_set():
            raise OutcomeUnknown("lost by the test")
        return finish(*arguments)

    monkeypatch.setattr(jobs._duty, "finish", unheard)
    result = in_background(lambda: jobs.stop(PATIENCE))
    book.gate.set()
    eventually(lambda: tries[0] > 3)
    is_heard.set()
    assert result() is True
    assert states(jobs) == [("done", 1)]


def test_who_stops_too_soon_says_so_and_how_it_ended_is_known_later(
    lone: kv.KeyValue, wall: Wall, book: Book, started: Callable[..., Jobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = started(lone, every_minute(book))
    running(jobs, wall, book)
    finish, tries = jobs._duty.finish, [0]

    def unheard(*arguments: Any) -> bool:
        tries[0] += 1
        if tries[0] < 5:
            raise OutcomeUnknown("lost by the test")
        return finish(*arguments)

    monkeypatch.setattr(jobs._duty, "finish", unheard)
    assert jobs.stop(0.0) is False
    book.gate.set()
    past(jobs, 1)
    assert states(jobs) == [("done", 1)]
    eventually(lambda: not lone._state.clock(1).is_wanted, "nobody runs jobs any more")  # type: ignore[union-attr]


def test_who_stops_while_a_claim_is_under_way_is_not_told_that_all_is_over(
    lone: kv.KeyValue, wall: Wall, book: Book, started: Callable[..., Jobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = started(lone, every_minute(book))
    planned(jobs)
    begin, is_asked, goes_on = jobs._duty.begin, threading.Event(), threading.Event()

    def slowly(*arguments: Any) -> int:
        is_asked.set()
        assert goes_on.wait(PATIENCE)
        return begin(*arguments)

    monkeypatch.setattr(jobs._duty, "begin", slowly)
    wall.move(MINUTE)
    assert is_asked.wait(PATIENCE)
    assert jobs.stop(0.0) is False
    goes_on.set()
    past(jobs, 1)
    assert states(jobs) == [("died", 1)]
    assert book.runs == []


# -- runs of which nobody knows


def test_what_is_raised_without_a_text_ends_the_run_all_the_same(
    lone: kv.KeyValue, wall: Wall, started: Callable[..., Jobs]
) -> None:
    class Wordless(Exception):
        def __str__(self) -> str:
            raise ValueError("no words")

    def fail() -> None:
        raise Wordless

    jobs = started(lone, lambda jobs: jobs.every(60, name="tick")(fail))
    planned(jobs)
    for count in (1, 2):
        wall.move(MINUTE)
        assert past(jobs, count, "failed")[-1].said == "Wordless: (it has no text, which raised ValueError)"


def test_a_claim_that_comes_later_than_its_repetition_was_refused_is_begun(
    lone: kv.KeyValue, wall: Wall, book: Book, started: Callable[..., Jobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = started(lone, every_minute(book))
    planned(jobs)
    begin, asked = jobs._duty.begin, []

    def late(*arguments: Any) -> int:
        asked.append(arguments)
        if len(asked) == 1:
            raise OutcomeUnknown("it is under way")
        if len(asked) == 2:
            begin(*asked[0])
            return NOT_YET
        return begin(*arguments)

    monkeypatch.setattr(jobs._duty, "begin", late)
    wall.move(MINUTE)
    past(jobs, 1, "done")
    assert book.slots == [NOON + MINUTE]


def test_a_run_that_was_claimed_by_a_process_that_does_not_know_is_ended_and_run_again_where_that_is_said(
    lone: kv.KeyValue, wall: Wall, book: Book, started: Callable[..., Jobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = started(lone, every_minute(book, retry=1))
    planned(jobs)
    begin, asked = jobs._duty.begin, []

    def misunderstood(*arguments: Any) -> int:
        asked.append(arguments)
        answer = begin(*arguments)
        return GONE if len(asked) == 1 else answer

    monkeypatch.setattr(jobs._duty, "begin", misunderstood)
    wall.move(MINUTE)
    past(jobs, 1, "done")
    assert states(jobs) == [("died", 1), ("done", 2)]


@pytest.mark.parametrize("failure", [RuntimeError("can't start new thread"), MemoryError()])
def test_who_can_start_no_thread_claims_nothing_for_a_while_and_another_runs_it(
    lone: kv.KeyValue,
    wall: Wall,
    book: Book,
    started: Callable[..., Jobs],
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
) -> None:
    monkeypatch.setattr(scheduler, "_NO_THREAD_SECONDS", PATIENCE)
    start = threading.Thread.start

    def fails(thread: threading.Thread) -> None:
        if thread.name == "raftsvc-job":
            raise failure
        start(thread)

    jobs = started(lone, every_minute(book, retry=5))
    planned(jobs)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fails)
        wall.move(MINUTE)
        past(jobs, 1, "died")
        assert not threading.Event().wait(0.3)
        assert states(jobs) == [("died", 1)]
    started(lone, every_minute(book, "other", retry=5))
    past(jobs, 1, "done")
    assert states(jobs) == [("died", 1), ("done", 2)]
    assert [who for who, _ in book.runs] == ["other"]


# -- one job and the others


def test_a_job_with_much_to_make_up_for_keeps_no_other_from_a_thread(
    lone: kv.KeyValue, wall: Wall, book: Book, started: Callable[..., Jobs]
) -> None:
    def declare(jobs: Jobs) -> None:
        every_minute(book, "greedy", name="greedy", misfire_grace=None, coalesce=False)(jobs)
        jobs.every(600, name="meek", misfire_grace=None)(lambda: book.write("meek"))

    jobs = started(lone, declare, threads=1)
    for name in ("greedy", "meek"):
        planned(jobs, name)
    wall.move(20 * MINUTE)
    past(jobs, 20, name="greedy")
    assert "meek" in [who for who, _ in book.runs[:3]]


def test_what_is_late_is_listed_as_missed_though_all_threads_are_taken(
    lone: kv.KeyValue, wall: Wall, book: Book, started: Callable[..., Jobs]
) -> None:
    jobs = started(lone, every_minute(book), threads=1)
    running(jobs, wall, book)
    every_minute(book, name="other", misfire_grace=20)(jobs)
    planned(jobs, "other")
    wall.move(MINUTE * 1.5)
    assert [each.state for each in past(jobs, 1, name="other")] == ["missed"]
    book.gate.set()


def test_a_job_that_is_refused_keeps_no_other_from_running(
    lone: kv.KeyValue,
    wall: Wall,
    book: Book,
    started: Callable[..., Jobs],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plan, plan_many = kv.duty.Duty.plan, kv.duty.Duty.plan_many

    def refuse(duty: kv.duty.Duty, hold: Any, job: str, *more: Any) -> int:
        if job == "large":
            raise Rejected("over the quota, by the test")
        return plan(duty, hold, job, *more)

    def refuse_many(duty: kv.duty.Duty, hold: Any, jobs: Any, timeout: float) -> int:
        if any(job == "large" for job, *_ in jobs):
            raise Rejected("over the quota, by the test, as one of several")
        return plan_many(duty, hold, jobs, timeout)

    monkeypatch.setattr(kv.duty.Duty, "plan", refuse)
    monkeypatch.setattr(kv.duty.Duty, "plan_many", refuse_many)

    def declare(jobs: Jobs) -> None:
        every_minute(book, "large", name="large")(jobs)
        every_minute(book)(jobs)

    jobs = started(lone, declare)
    planned(jobs)
    for count in (1, 2):
        wall.move(MINUTE)
        past(jobs, count, "done")
    assert book.slots == [NOON + MINUTE, NOON + 2 * MINUTE]
    assert caplog.text.count("over the quota, by the test") == 1


# -- looking


def test_before_the_time_is_known_the_own_clock_shows_what_is_due_next(
    lone: kv.KeyValue, wall: Wall, book: Book
) -> None:
    jobs = lone.jobs()
    every_minute(book)(jobs)
    assert jobs._duty.now_ms() is None
    assert jobs.next_runs() == {"tick": NOON + MINUTE}


def test_what_has_not_run_when_it_returns_is_no_job(lone: kv.KeyValue) -> None:
    class Later:
        async def __call__(self) -> None:
            """Nothing."""

    class Slowly:
        def __call__(self) -> Any:
            yield

    async def later() -> None:
        """Nothing."""

    async def slowly_later() -> Any:
        yield

    def slowly() -> Any:
        yield

    jobs = lone.jobs()
    for wrong in (Later(), Slowly(), later, slowly_later, slowly, partial(later), partial(Later())):
        with pytest.raises(ConfigurationError, match="nobody would await"):
            jobs.every(60, name="x")(wrong)
