"""Jobs as the log has them: which slot is claimed by whom, what has died, and what time it is."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import raftsvc
from raftsvc import kv
from raftsvc.errors import Rejected
from raftsvc.kv import instructions, orders, runs, snapshots, transactions
from raftsvc.kv.orders import (
    BEGIN,
    CLOCK,
    DIED,
    DONE,
    FAILED,
    FINISH,
    FORGET,
    MISSED,
    PLAN,
    PLANS,
    RUNNING,
    Order,
    Place,
)
from raftsvc.kv.runs import AHEAD_MS, BUSY, CLOCK_MS, GONE, KEPT_RUNS, NO_PLACE, NOT_YET, Run
from raftsvc.kv.snapshots import MalformedSnapshotError

NAME = "jobs:workers"
A, B, C = ((NAME, f"{number:016x}", number) for number in (1, 2, 3))
TTL_MS = 10_000
NOON = 1_800_000_000_000


class Log:
    """A state with three voters, and the log that it applies."""

    def __init__(self, voters: int = 3) -> None:
        self.state = kv.KeyValueState()
        self.state.set_voters(frozenset(range(1, voters + 1)))
        self.index = 0
        self.time_ms = 0

    def at(self, time_ms: int, *instructions: bytes) -> Any:
        """One entry; what its last instruction answered, or why it was refused."""
        self.index += 1
        self.time_ms = time_ms
        answer: Any = None
        for instruction in instructions:
            try:
                answer = self.state.apply_at(instruction, self.index, time_ms)
            except Rejected as rejected:
                answer = rejected.reason
        self.state.set_applied_index(self.index)
        return answer

    def pulse(self, time_ms: int) -> None:
        self.index += 1
        self.time_ms = time_ms
        self.state.pass_time(self.index, time_ms)
        self.state.set_applied_index(self.index)

    def now(self, *instructions: bytes) -> Any:
        return self.at(self.time_ms, *instructions)

    def join(self, place: Place, ttl_ms: int = TTL_MS) -> None:
        name, lease, number = place
        self.now(instructions.encode([instructions.open_lease(lease, ttl_ms)]))
        claim = instructions.claim(name, lease, number, transactions.MAX_UNITS)
        assert self.now(instructions.encode([claim]))

    def keep(self, *places: Place) -> None:
        for _, lease, number in places:
            self.now(instructions.encode([instructions.keep_lease(lease, self.index, [number])]))

    def end(self, place: Place) -> None:
        self.now(instructions.encode([instructions.end_lease(place[1])]))

    def tell(self, *shown_ms: int) -> None:
        for number, shown in enumerate(shown_ms):
            assert self.now(clock(number + 1, shown)) is True

    def runs(self, job: str = "j") -> list[Run]:
        return list(self.state.job(job)[1])

    def states(self, job: str = "j") -> list[int]:
        return [run.state for run in self.runs(job)]

    def since(self, job: str = "j") -> int | None:
        planned = self.state.job(job)[0]
        assert planned is not None
        return planned.since_ms if planned.is_settled else None

    @property
    def time_of_day(self) -> int | None:
        return self.state.clock(1).now_ms


def plan(place: Place, job: str = "j", schedule: bytes = b"every 1 s", since_ms: int = 0) -> bytes:
    return orders.encode(Order(PLAN, (since_ms,), job, place, schedule))


def plans(place: Place, *jobs: tuple[str, bytes, int]) -> bytes:
    each = tuple(Order(PLAN, (since_ms,), job, place, schedule) for job, schedule, since_ms in jobs)
    return orders.encode(Order(PLANS, (), "", place, b"", each))


def begin(
    place: Place, slot_ms: int, attempt: int = 1, *, slots: int = 1, retry: int = 0, at_once: int = 1, job: str = "j"
) -> bytes:
    return orders.encode(Order(BEGIN, (slot_ms, attempt, slots, retry, at_once), job, place, b"host:1"))


def finish(place: Place, fence: int, state: int = DONE, said: bytes = b"", job: str = "j") -> bytes:
    return orders.encode(Order(FINISH, (fence, state), job, place, said))


def clock(node_id: int, shown_ms: int) -> bytes:
    return orders.encode(Order(CLOCK, (node_id, shown_ms)))


def forget(job: str = "j") -> bytes:
    return orders.encode(Order(FORGET, (), job))


@pytest.fixture
def log() -> Log:
    """Three who run one job, at noon."""
    made = Log()
    made.tell(NOON, NOON, NOON)
    for place in (A, B, C):
        made.join(place)
        assert made.now(plan(place)) == 1
    made.tell(NOON, NOON, NOON)
    return made


# -- the time


def test_the_time_is_the_lower_middle_of_what_the_voters_clocks_show_with_the_log_time_since() -> None:
    log = Log()
    assert log.time_of_day is None
    log.tell(NOON)
    assert log.time_of_day is None, "one of three is no majority"
    log.tell(NOON, NOON + 3_600_000)
    assert log.time_of_day == NOON, "of two that differ the lower"
    log.at(1_000, clock(3, NOON + 5_000))
    assert log.time_of_day == NOON + 5_000, "in the middle of what is 1 s later, 5 s and an hour"
    log.at(2_000, clock(2, NOON - 3_600_000))
    assert log.time_of_day == NOON + 2_000


def test_a_clock_that_was_told_long_ago_does_not_count() -> None:
    log = Log()
    log.tell(NOON, NOON)
    log.at(CLOCK_MS, clock(3, NOON))
    assert log.time_of_day == NOON + CLOCK_MS
    log.at(CLOCK_MS + 1, clock(3, NOON))
    assert log.time_of_day is None


def test_only_voters_clocks_count_and_those_of_who_votes_no_more_are_forgotten() -> None:
    log = Log()
    log.tell(NOON, NOON, NOON + 9_000)
    assert log.now(clock(4, NOON)) is False
    log.state.set_voters(frozenset((3, 4, 5)))
    assert log.time_of_day is None
    assert log.now(clock(5, NOON + 1_000)) is True
    assert log.time_of_day == NOON + 1_000


def test_a_jobs_slots_count_from_when_the_time_is_known() -> None:
    log = Log()
    log.join(A)
    assert log.now(plan(A)) == 1
    assert log.since() is None
    assert log.now(begin(A, NOON)) == NOT_YET
    log.tell(NOON, NOON)
    assert log.since() == NOON
    assert log.now(begin(A, NOON)) == GONE
    assert log.now(begin(A, NOON + 1_000)) == log.index


# -- claiming


def test_a_slot_is_claimed_once_and_the_highest_decides(log: Log) -> None:
    assert log.now(begin(A, NOON + 1_000, at_once=9)) == log.index
    assert log.now(begin(B, NOON + 1_000, at_once=9)) == GONE
    assert log.now(begin(C, NOON + 3_000, at_once=9)) == log.index
    assert log.now(begin(B, NOON + 2_000, at_once=9)) == GONE
    assert [run.slot_ms - NOON for run in log.runs()] == [1_000, 3_000]
    assert log.states() == [RUNNING, RUNNING]


def test_a_claim_that_comes_again_changes_nothing_and_answers_the_same(log: Log) -> None:
    fence = log.now(begin(A, NOON + 1_000))
    assert [log.now(begin(A, NOON + 1_000)) for _ in range(3)] == [fence] * 3
    assert len(log.runs()) == 1


def test_what_is_too_far_ahead_of_the_time_is_refused_and_may_be_asked_again(log: Log) -> None:
    slot = NOON + AHEAD_MS + 1
    assert log.now(begin(A, slot)) == NOT_YET
    assert log.runs() == []
    assert log.at(1, begin(A, slot)) == log.index


def test_nothing_is_claimed_while_no_majority_tells_its_clock(log: Log) -> None:
    log.keep(A, B, C)
    for time_ms in range(0, CLOCK_MS + 5_001, 5_000):
        log.at(time_ms, clock(1, NOON + time_ms))
        log.keep(A, B, C)
    assert log.now(begin(A, NOON + CLOCK_MS)) == NOT_YET
    log.now(clock(2, NOON + log.time_ms))
    assert log.now(begin(A, NOON + CLOCK_MS)) == log.index


def test_of_one_job_two_slots_are_not_claimed_in_one_entry(log: Log) -> None:
    first, second = begin(A, NOON + 1_000, at_once=9), begin(A, NOON + 2_000, at_once=9)
    assert log.now(first, second) == NOT_YET
    assert len(log.runs()) == 1


def test_no_more_are_under_way_than_may_be(log: Log) -> None:
    fence = log.now(begin(A, NOON + 1_000, at_once=1))
    assert log.now(begin(B, NOON + 2_000, at_once=1)) == BUSY
    assert log.now(finish(A, fence)) is True
    assert log.now(begin(B, NOON + 2_000, at_once=1)) == log.index
    assert log.now(begin(A, NOON + 3_000, at_once=2)) == log.index


def test_what_is_passed_over_is_decided_too_and_nothing_is_under_way(log: Log) -> None:
    assert log.now(begin(A, NOON + 5_000, 0, slots=5)) == log.index
    assert log.now(begin(B, NOON + 4_000)) == GONE
    assert log.states() == [MISSED]
    assert log.runs()[0][:3] == (NOON + 5_000, 5, 0)
    assert log.now(begin(B, NOON + 6_000)) == log.index


def test_who_did_not_join_or_plan_claims_nothing(log: Log) -> None:
    stranger = (NAME, "f" * 16, 1)
    assert log.now(begin(stranger, NOON + 1_000)) == NO_PLACE
    assert log.now(plan(stranger)) == NO_PLACE
    assert log.now(begin(A, NOON + 1_000, job="other")) == NO_PLACE
    assert log.runs() == []


def test_what_is_planned_otherwise_counts_from_then_on(log: Log) -> None:
    log.at(60_000)
    log.join(A)
    log.now(plan(A))
    assert log.since() == NOON
    log.now(plan(A, schedule=b"every 2 s"))
    log.at(64_000, clock(1, NOON + 64_000))
    assert log.since() is None
    log.at(65_000, clock(2, NOON + 66_000))
    assert log.since() == NOON + 60_000, "as of when it was planned"


def test_many_jobs_are_planned_at_once_or_none_is(log: Log) -> None:
    one = [("x", b"every 1 s", 0), ("y", b"once", 999), ("j", b"every 2 s", 0)]
    assert log.now(plans(A, *one)) == 1
    assert log.state.job_names() == ["j", "x", "y"]
    assert (log.since("j"), log.since("x"), log.since("y")) == (None, None, 999)
    log.tell(NOON, NOON)
    assert log.now(begin(A, NOON + 1_000, job="x")) == log.index
    before, _ = log.state.snapshot()
    assert log.now(plans((NAME, "f" * 16, 1), *one)) == NO_PLACE
    size: Any = log.state.report()["size_bytes"]
    log.now(instructions.encode([kv.max_state_bytes(size + 1_000)]))
    assert "the state would have" in log.now(plans(A, ("a", b"x", 0), ("b", b"x", 0), ("c", b"x", 0)))
    log.now(instructions.encode([kv.max_state_bytes(None)]))
    assert log.state.snapshot()[0] == before
    assert log.state.scope(plans(A, *one), is_query=False) == ["x", "y", "j"]


def test_who_joins_with_a_schedule_that_others_have_changes_nothing(log: Log) -> None:
    old, new = b"every 60 s", b"every 1 s"
    log.at(5_000, plan(A, schedule=old))
    log.tell(NOON + 5_000, NOON + 5_000)
    log.now(plan(B, schedule=old))
    assert log.since() == NOON + 5_000
    log.at(9_000, plan(C, schedule=new))
    log.now(plan(B, schedule=old))
    log.now(plan(B, schedule=new))
    assert log.since() == NOON + 5_000
    data, index = log.state.snapshot()
    log.state.restore_snapshot(data, index)
    log.state.set_voters(frozenset((1, 2, 3)))
    log.now(plan(A, schedule=new), plan(B, schedule=new))
    assert log.since() == NOON + 5_000
    log.now(plan(C, schedule=old))
    log.tell(NOON + 9_000, NOON + 9_000)
    assert log.since() == NOON + 9_000, "nobody had that any more"


def test_what_everybody_left_and_joins_again_goes_on(log: Log) -> None:
    for place in (A, B, C):
        log.end(place)
    log.time_ms += 60_000
    log.join(A)
    log.now(plan(A))
    log.tell(NOON + 60_000, NOON + 60_000)
    assert log.since() == NOON


def test_no_more_run_a_job_than_may(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "MAX_PLACES", 3)
    other = (NAME, "e" * 16, 9)
    log.join(other)
    before, _ = log.state.snapshot()
    assert log.now(plan(other)) == "3 processes run this job already, and more cannot"
    assert log.state.snapshot()[0] == before
    assert log.now(plan(A)) == 1
    log.end(A)
    assert log.now(plan(other)) == 1


def test_from_when_a_job_counts_is_by_all_clocks_where_those_that_tell_first_are_behind(log: Log) -> None:
    log.now(plan(A, "new"))
    log.tell(NOON, NOON - 3_600_000)
    assert log.since("new") == NOON


def test_what_is_planned_to_be_earlier_is_so_unless_it_was_decided(log: Log) -> None:
    log.now(plan(A, schedule=b"next week", since_ms=NOON + 7 * 86_400_000 - 1))
    log.now(plan(A, schedule=b"in an hour", since_ms=NOON + 3_600_000 - 1))
    assert log.since() == NOON + 3_600_000 - 1
    log.now(plan(A, schedule=b"every 60 s"))
    log.tell(NOON, NOON)
    assert log.since() == NOON
    assert log.now(begin(A, NOON + 1_000, 0)) == log.index
    log.now(plan(A, schedule=b"once", since_ms=999))
    assert log.since() == NOON + 1_000, "what was decided is not taken back"
    assert log.now(begin(A, 1_000)) == GONE


def test_what_is_planned_after_log_time_stood_still_does_not_count_from_before(log: Log) -> None:
    # For three days nobody led: what was told before counts by log time, and is three days old.
    late = NOON + 3 * 86_400_000
    log.join(A)
    log.now(plan(A, "new", schedule=b"every 3600 s"))
    assert log.now(begin(A, NOON + 1_000, job="new")) == NOT_YET
    log.tell(late)
    assert log.since("new") is None, "one of three is no majority"
    log.tell(late, late)
    assert log.since("new") == late


def test_what_is_planned_otherwise_while_the_time_is_not_known_counts_from_when_it_is(log: Log) -> None:
    log.now(begin(A, NOON + 1_000, 0))
    log.at(CLOCK_MS + 1)
    log.join(A)
    log.now(plan(A, schedule=b"every 2 s"))
    assert log.since() is None
    assert log.now(begin(A, NOON + 20_000)) == NOT_YET
    log.tell(NOON - 60_000, NOON - 60_000)
    assert log.since() == NOON + 1_000, "what was decided is not taken back"
    log.now(plan(A, schedule=b"every 3 s"))
    log.tell(NOON + 10_000, NOON + 10_000)
    assert log.now(begin(A, NOON + 20_000)) == log.index


# -- how it ends


def test_a_run_ends_once_as_who_has_it_says(log: Log) -> None:
    fence = log.now(begin(A, NOON + 1_000))
    assert log.now(finish(B, fence)) is False
    assert log.now(finish(A, fence + 1)) is False
    assert log.at(5, finish(A, fence, FAILED, b"ValueError")) is True
    assert log.now(finish(A, fence)) is False
    (run,) = log.runs()
    assert (run.state, run.said, run.began_ms, run.ended_ms) == (FAILED, b"ValueError", NOON, NOON + 5)


def test_a_run_does_not_end_before_it_began_though_clocks_are_set_back(log: Log) -> None:
    fence = log.now(begin(A, NOON + 1_000))
    log.tell(NOON - 60_000, NOON - 60_000)
    log.now(finish(A, fence))
    assert log.runs()[0].ended_ms == NOON


@pytest.mark.parametrize("how", ["lease ended", "lease over", "place given up", "place released"])
def test_a_run_has_died_once_the_place_of_who_has_it_is_gone(log: Log, how: str) -> None:
    log.now(begin(A, NOON + 1_000, at_once=9))
    log.now(begin(B, NOON + 2_000, at_once=9))
    name, lease, number = A
    if how == "lease ended":
        log.end(A)
    elif how == "lease over":
        log.at(TTL_MS // 2)
        log.keep(B, C)
        log.pulse(TTL_MS + 2)
    elif how == "place given up":
        log.now(instructions.encode([instructions.keep_lease(lease, log.index, [])]))
    else:
        log.now(instructions.encode([instructions.release(name, lease, number)]))
    assert log.states() == [DIED, RUNNING]
    assert log.now(finish(A, log.runs()[0].fence)) is False
    assert log.now(begin(A, NOON + 3_000, at_once=9)) == NO_PLACE


def test_what_died_is_claimed_again_only_where_that_is_asked_for_and_so_often(log: Log) -> None:
    log.now(begin(A, NOON + 1_000, retry=1))
    assert log.now(begin(B, NOON + 1_000, 2, retry=1)) == GONE, "it is under way"
    log.end(A)
    assert log.now(begin(B, NOON + 1_000, 2, retry=0)) == GONE
    assert log.now(begin(B, NOON + 1_000, 3, retry=9)) == GONE, "it was not tried twice"
    assert log.now(begin(B, NOON + 1_000, 1, retry=9)) == GONE
    assert log.now(begin(B, NOON + 1_000, 2, retry=1)) == log.index
    log.end(B)
    assert log.now(begin(C, NOON + 1_000, 3, retry=1)) == GONE
    assert [(run.attempt, run.state) for run in log.runs()] == [(1, DIED), (2, DIED)]


@pytest.mark.parametrize("state", [DONE, FAILED, MISSED])
def test_what_ended_otherwise_is_not_claimed_again(log: Log, state: int) -> None:
    log.now(finish(A, log.now(begin(A, NOON + 1_000)), state))
    assert log.now(begin(B, NOON + 1_000, 2, retry=9)) == GONE


def test_what_died_is_not_claimed_again_once_a_later_slot_is_decided(log: Log) -> None:
    log.now(begin(A, NOON + 1_000))
    log.end(A)
    log.now(begin(B, NOON + 2_000, 0))
    assert log.now(begin(C, NOON + 1_000, 2, retry=9)) == GONE
    assert log.now(begin(C, NOON + 3_000, 2, retry=9)) == GONE, "it is no second attempt at anything"


def test_what_comes_with_the_condition_that_a_run_is_held_takes_no_effect_once_it_is_over(log: Log) -> None:
    fence = log.now(begin(A, NOON + 1_000))
    condition = kv.Condition("j", fence, instructions.Code.IF_HELD)
    write = instructions.encode([condition, kv.set("k", b"1")])
    assert log.now(write) is True
    log.end(A)
    assert log.now(write) == "condition 0 does not hold: 0"


# -- bounds


def test_a_hundred_runs_are_kept_and_all_that_are_under_way(log: Log) -> None:
    first = log.now(begin(A, NOON + 1, at_once=9))
    for number in range(2, KEPT_RUNS + 10):
        fence = log.now(begin(A, NOON + number, at_once=9))
        log.now(finish(A, fence))
    assert len(log.runs()) == KEPT_RUNS
    assert log.runs()[0].fence == first
    log.now(finish(A, first))
    log.now(begin(B, NOON + 500, at_once=9))
    assert len(log.runs()) == KEPT_RUNS
    assert first not in [run.fence for run in log.runs()]


def test_what_is_forgotten_leaves_nothing_and_not_while_it_is_under_way(log: Log) -> None:
    empty_bytes = Log().state.report()["size_bytes"]
    fence = log.now(begin(A, NOON + 1_000))
    assert log.now(forget()) is False
    log.now(finish(A, fence, FAILED, b"why"))
    assert log.now(forget()) is True
    assert log.now(forget()) is False
    assert (log.runs(), log.state.job_names()) == ([], [])
    for place in (A, B, C):
        log.end(place)
    assert log.state.report()["size_bytes"] == empty_bytes


def test_what_there_is_no_room_for_is_not_planned(log: Log) -> None:
    size: Any = log.state.report()["size_bytes"]
    log.now(instructions.encode([kv.max_state_bytes(size)]))
    assert "the state would have" in log.now(plan(A, "another"))
    assert log.now(plan(A)) == 1, "it is planned already"
    assert log.now(begin(A, NOON + 1_000)) == log.index


def test_of_what_was_run_less_is_kept_where_there_is_no_room(log: Log) -> None:
    jobs = [f"j{number}" for number in range(20)]
    for job in jobs:
        assert log.now(plan(A, job)) == 1
    log.tell(NOON, NOON)
    size: Any = log.state.report()["size_bytes"]
    most = 8 * 40 * 1_000
    assert size < most // 2
    log.now(instructions.encode([kv.max_state_bytes(most)]))
    for count in range(1, KEPT_RUNS):
        for job in jobs:
            assert log.now(finish(A, log.now(begin(A, NOON + count, job=job)), FAILED, b"x" * 500, job)) is True
    grown: Any = log.state.report()["size_bytes"]
    assert size + most // 16 < grown < size + most // 8 + 2_000
    assert all(log.runs(job)[-1].slot_ms == NOON + KEPT_RUNS - 1 for job in jobs)
    assert log.now(instructions.encode([kv.set("k", b"x" * (most // 2))])) is True


def test_the_last_run_is_kept_where_there_is_no_room_at_all(log: Log) -> None:
    log.now(instructions.encode([kv.max_state_bytes(1)]))
    log.now(begin(A, NOON + 1_000))
    log.end(A)
    assert log.now(begin(B, NOON + 1_000, 2, retry=1)) == log.index
    assert log.now(finish(B, log.index)) is True
    assert [(run.slot_ms, run.attempt) for run in log.runs()] == [(NOON + 1_000, 2)]


def test_a_claim_that_comes_again_is_answered_the_same_while_the_time_is_not_known(log: Log) -> None:
    fence = log.now(begin(A, NOON + 1_000))
    log.now(plan(B, schedule=b"another"))
    assert log.since() is None
    assert log.now(begin(A, NOON + 1_000)) == fence


def test_what_makes_no_sense_is_refused_by_a_reason_and_changes_nothing(log: Log) -> None:
    before, _ = log.state.snapshot()
    good = [plan(A), plans(A, ("j", b"x", 0)), begin(A, NOON + 1_000), finish(A, 1), clock(1, NOON), forget()]
    wrong = [each[:length] for each in good for length in range(1, len(each))]
    wrong += [each + b"x" for each in good]
    wrong += [
        b"J\x09",
        clock(1, 2**60),
        begin(A, 0),
        begin(A, 2**60),
        begin(A, NOON, 2_000),
        begin(A, NOON, slots=0),
        begin(A, NOON, at_once=0),
        begin(A, NOON, at_once=51),
        finish(A, 1, RUNNING),
        finish(A, 1, 6),
        plan(A, ""),
        plans(A),
        plans(A, ("j", b"x", 2**60)),
        plans(A, ("j", b"x", 0), ("", b"x", 0)),
        plans(A, ("j", b"x" * 501, 0)),
        plans(A, *[("j", b"x", 0)] * 101),
        plan(A, "x" * 1025),
        plan((NAME, "Z" * 16, 1)),
        plan(A, schedule=b"x" * 501),
        plan(A).replace(b"\x01j", b"\x01\xff"),
    ]
    for each in wrong:
        assert str(log.now(each)).startswith("not an order of jobs"), each
    assert log.state.snapshot()[0] == before


def test_an_order_is_about_its_job_and_a_clock_about_the_whole() -> None:
    state = kv.KeyValueState()
    assert state.scope(begin(A, NOON, job="app/job:x"), is_query=False) == ["app/job:x"]
    assert state.scope(clock(1, NOON), is_query=False) is None


# -- what is run once


AT_ONE, AT_TWO = b"once, at one", b"once, at two"


def test_what_is_run_once_is_claimed_once_whatever_times_are_said(log: Log) -> None:
    one, two = NOON + 1_000, NOON + 2_000
    log.now(plan(B, "once", AT_TWO, two - 1))
    log.now(plan(A, "once", AT_ONE, one - 1))
    log.now(plan(C, "once", b"once", 999))
    fence = log.now(begin(A, one, job="once"))
    assert fence == log.index
    log.now(finish(A, fence, job="once"))
    assert log.now(begin(B, two, job="once")) == GONE
    assert log.now(begin(B, two, 0, job="once")) == GONE
    assert log.now(begin(C, 1_000, job="once")) == GONE
    assert log.now(begin(A, one, job="once")) == fence, "asked again"
    data, index = log.state.snapshot()
    log.state.restore_snapshot(data, index)
    log.state.set_voters(frozenset((1, 2, 3)))
    log.now(plan(A, "once", b"once, at three", NOON + 3_000 - 1))
    assert log.now(begin(A, NOON + 3_000, job="once")) == GONE
    assert log.since("once") == one
    assert log.states("once") == [DONE]
    log.now(plan(A, "once", b"every 1 s"))
    log.tell(NOON, NOON)
    assert log.now(begin(A, NOON + 4_000, job="once")) == log.index, "that is another thing"


@pytest.mark.parametrize("before", [b"once", b"every 1 s"])
def test_what_was_missed_or_run_at_times_is_not_run_once(log: Log, before: bytes) -> None:
    log.now(plan(A, "x", before, NOON))
    assert log.now(begin(A, NOON + 1_000, 0, job="x")) == log.index
    log.now(plan(B, "x", AT_TWO, NOON + 2_000 - 1))
    assert log.now(begin(B, NOON + 2_000, job="x")) == GONE


def test_what_died_is_run_again_though_it_was_said_to_be_run_later_since(log: Log) -> None:
    one, two = NOON + 1_000, NOON + 2_000
    log.now(plan(A, "once", AT_ONE, one - 1))
    assert log.now(begin(A, one, job="once")) == log.index
    log.now(plan(B, "once", AT_TWO, two - 1))
    log.end(A)
    assert log.states("once") == [DIED]
    assert log.now(begin(B, one, 2, retry=1, job="once")) == log.index
    assert log.now(begin(B, two, job="once")) == GONE


# -- all of it, by chance


@dataclass
class Model:
    """What was granted, by hand."""

    granted: dict[tuple[int, int], int] = field(default_factory=dict)
    highest: int = NOON


PLACES = [A, B, C]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.sampled_from(PLACES), st.integers(-5, 45), st.integers(0, 3)),
        st.tuples(st.just("finish"), st.sampled_from(PLACES), st.integers(0, 3)),
        st.tuples(st.just("leave"), st.sampled_from(PLACES)),
        st.tuples(st.just("join"), st.sampled_from(PLACES)),
        st.tuples(st.just("pass"), st.integers(0, 12_000)),
        st.tuples(st.just("clock"), st.integers(1, 4), st.integers(-40_000, 40_000)),
        st.tuples(st.just("keep"), st.sampled_from(PLACES)),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_whatever_happens_no_slot_is_claimed_twice_and_a_snapshot_goes_on_alike(steps: list[Any]) -> None:
    log, twin = Log(), Log()
    model = Model()
    numbers = dict.fromkeys(PLACES, 0)

    def do(*instructions: bytes) -> Any:
        nonlocal twin
        data, index = twin.state.snapshot()
        again = Log()
        again.state.restore_snapshot(data, index)
        again.state.set_voters(frozenset((1, 2, 3)))
        again.index, again.time_ms = twin.index, twin.time_ms
        twin = again
        answer = log.at(log.time_ms, *instructions)
        assert twin.at(log.time_ms, *instructions) == answer
        assert twin.state.snapshot() == log.state.snapshot()
        return answer

    for place in PLACES:
        name, lease, number = place
        do(instructions.encode([instructions.open_lease(lease, TTL_MS)]))
        do(instructions.encode([instructions.claim(name, lease, number, transactions.MAX_UNITS)]))
        do(plan(place, since_ms=NOON))
    for node_id in (1, 2, 3):
        do(clock(node_id, NOON))
    for kind, *arguments in steps:
        if kind == "begin":
            place, step, attempt = arguments
            slot = NOON + step * 1_000
            now = log.state.clock(1)
            answer = do(begin(place, slot, attempt, retry=2, at_once=3))
            if answer > 0:
                known = model.granted.setdefault((slot, attempt), answer)
                assert known == answer
                if known == log.index:  # else it was claimed before
                    assert slot > model.highest or (slot == model.highest and attempt > 1)
                    model.highest = slot
                    assert now.now_ms is not None
                    assert slot <= now.now_ms + (log.time_ms - now.told_ms) + AHEAD_MS
        elif kind == "finish":
            place, back = arguments
            runs = log.runs()
            do(finish(place, runs[-1 - back].fence if len(runs) > back else 1))
        elif kind == "leave":
            do(instructions.encode([instructions.end_lease(arguments[0][1])]))
        elif kind == "join":
            (place,) = arguments
            numbers[place] += 1
            name, lease, number = place
            do(instructions.encode([instructions.open_lease(lease, TTL_MS)]))
            do(instructions.encode([instructions.claim(name, lease, number, transactions.MAX_UNITS)]))
            do(plan(place, since_ms=NOON))
        elif kind == "pass":
            log.time_ms += arguments[0]
        elif kind == "clock":
            do(clock(arguments[0], NOON + log.time_ms + arguments[1]))
        else:
            name, lease, number = arguments[0]
            do(instructions.encode([instructions.keep_lease(lease, log.index, [number])]))
        held = {(claim.lease, claim.number) for claim in log.state.claims(NAME) if claim.fence}
        for run in log.runs():
            assert run.state != RUNNING or run.place[1:] in held
    attempts = [(run.slot_ms, run.attempt) for run in log.runs()]
    assert attempts == sorted(set(attempts))


def test_a_snapshot_that_was_damaged_is_refused_or_is_of_some_state(log: Log) -> None:
    log.now(finish(A, log.now(begin(A, NOON + 1_000)), FAILED, b"why"))
    log.now(begin(B, NOON + 2_000))
    data, index = log.state.snapshot()
    chance = random.Random(7)
    refused = 0
    for _ in range(400):
        damaged = bytearray(data)
        damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        state = kv.KeyValueState()
        try:
            state.restore_snapshot(bytes(damaged), index)
        except MalformedSnapshotError:
            refused += 1
    assert refused > 100
    with pytest.raises(MalformedSnapshotError):
        kv.KeyValueState().restore_snapshot(data[:-1], index)


def test_what_a_snapshot_cannot_have_is_refused(log: Log) -> None:
    log.now(begin(A, NOON + 1_000))
    state: Any = log.state
    frozen = state._applying.content.runs.freeze()
    (job,) = frozen.jobs
    name, planned, (run,) = job
    held = lambda place: place in (A, B, C)  # noqa: E731
    check = snapshots.checked_runs
    assert check(frozen, held, log.index) is None
    nobody = (NAME, "e" * 16, 9)
    for wrong in (
        frozen._replace(clocks=[*frozen.clocks, frozen.clocks[0]]),
        frozen._replace(jobs=[job, job]),
        frozen._replace(jobs=[(name, planned._replace(places=(nobody,), schedules=(b"x",)), [])]),
        frozen._replace(jobs=[(name, planned, [run, run])]),
        frozen._replace(jobs=[(name, planned, [run._replace(fence=log.index + 1)])]),
        frozen._replace(jobs=[(name, planned, [run._replace(slot_ms=NOON + 9_000)])]),
        frozen._replace(jobs=[(name, planned._replace(asked_index=log.index + 1), [run])]),
        frozen._replace(clocks=[frozen.clocks[0]._replace(entry=log.index + 1)]),
        frozen._replace(jobs=[(name, planned, [run._replace(state=0)])]),
        frozen._replace(jobs=[(name, planned, [run._replace(place=nobody)])]),
    ):
        assert check(wrong, held, log.index) is not None


def test_a_state_is_told_who_votes_through_several_states() -> None:
    states = raftsvc.States(kv=kv.KeyValueState(), other=raftsvc.BaseState())  # type: ignore[arg-type]
    assert isinstance(states, raftsvc.ElectorateState)
    states.set_voters(frozenset((7,)))
    assert states["kv"].clock(7).votes
