"""Limits, as the log has them: how much is allowed in some time, and that nothing is kept for ever."""

from __future__ import annotations

import random
from typing import Any

import pytest

from raftsvc import kv
from raftsvc.errors import ConfigurationError
from raftsvc.kv import instructions, transactions
from raftsvc.kv.instructions import Code, Effect
from raftsvc.kv.limits import LEVEL
from raftsvc.kv.snapshots import MalformedSnapshotError
from raftsvc.recipes import Limit
from tests.kv.test_holds import Log

MINUTE = 60_000


@pytest.fixture
def log() -> Log:
    return Log()


def admit(log: Log, time_ms: int, n: int = 3, per_ms: int = MINUTE, cost: int = 1, name: str = "limit:x") -> Limit:
    return Limit.of(log.at(time_ms, instructions.admit(name, n, per_ms, cost)))


def test_so_many_are_allowed_at_once_and_then_one_after_the_other(log: Log) -> None:
    assert [admit(log, 0) for _ in range(3)] == [
        (True, 2, 20.0, 0.0),
        (True, 1, 40.0, 0.0),
        (True, 0, 60.0, 0.0),
    ]
    assert admit(log, 0) == (False, 0, 60.0, 20.0)
    assert admit(log, 19_999) == (False, 0, 40.001, 0.001)
    assert admit(log, 20_000) == (True, 0, 60.0, 0.0)
    assert admit(log, 80_000) == (True, 2, 20.0, 0.0)


def test_what_costs_more_is_allowed_when_there_is_room_for_all_of_it(log: Log) -> None:
    assert admit(log, 0, cost=2).allowed
    assert admit(log, 0, cost=2) == (False, 1, 40.0, 20.0)
    assert admit(log, 0, cost=1).allowed
    assert admit(log, 40_000, cost=2).allowed


def test_names_are_counted_apart(log: Log) -> None:
    for _ in range(3):
        assert admit(log, 0).allowed
    assert admit(log, 0, name="limit:y").allowed


def test_who_changes_the_limit_takes_over_the_share_that_is_used(log: Log) -> None:
    for _ in range(3):
        admit(log, 0)
    assert admit(log, 0, n=6) == (False, 0, 60.0, 10.0)
    assert admit(log, 30_000, n=6) == (True, 2, 40.0, 0.0)
    assert admit(log, 30_000, n=3, per_ms=1_000).remaining == 0


def test_nothing_is_kept_of_what_is_not_used_any_more_and_nobody_waits_for_that(log: Log) -> None:
    empty = log.state.report()
    for number in range(500):
        admit(log, number, name=f"limit:{number}")
    assert log.state.report()["limits"] == 500
    assert log.state.next_deadline() is None, "an idle cluster writes nothing"
    log.at(20_000 + 249, kv.set("k", b""))
    assert log.state.report()["limits"] == 250
    log.pulse(MINUTE)
    log.at(MINUTE, kv.delete("k"))
    assert log.state.report() == empty


def test_what_limits_take_is_counted(log: Log) -> None:
    empty = int(str(log.state.report()["size_bytes"]))
    admit(log, 0)
    one = int(str(log.state.report()["size_bytes"]))
    assert one > empty + 100
    log.at(0, kv.max_state_bytes(one))
    assert "the state would have" in log.at(0, instructions.admit("limit:z", 3, MINUTE))
    assert admit(log, 0).allowed, "what is there already takes no room"


@pytest.mark.parametrize(("n", "per_ms"), [(1, 1), (3, 1_000), (7, 1_000), (1_000, 7), (10**6, 60_000)])
def test_no_stretch_of_time_has_more_than_it_may_and_replicas_agree(n: int, per_ms: int) -> None:
    rng = random.Random(n)
    log, twin = Log(), Log()
    times: list[int] = []
    time_ms = 0
    for step in range(400):
        time_ms += rng.choice((0, 0, 0, 1, 1, per_ms // n, per_ms // 3, 2 * per_ms if rng.random() < 0.05 else 0))
        cost = rng.randrange(1, n + 1) if n > 20 else rng.randrange(1, min(n, 2) + 1)
        limit, other = admit(log, time_ms, n, per_ms, cost), admit(twin, time_ms, n, per_ms, cost)
        assert limit == other
        assert 0 <= limit.remaining < n or not limit.allowed
        assert limit.allowed == (limit.retry_after == 0)
        if limit.allowed:
            times += [time_ms] * (cost if n <= 20 else 0)
        if step % 40 == 39:
            whole, index = log.state.snapshot()
            assert twin.state.snapshot() == (whole, index)
            twin = Log()
            twin.index = index
            twin.state.restore_snapshot(whole, index)
    for first in range(len(times)):
        for last in range(first, min(first + 3 * n, len(times))):
            assert last - first + 1 <= n + n * (times[last] - times[first]) / per_ms


def test_who_waits_as_long_as_he_is_told_is_allowed(log: Log) -> None:
    time_ms = 0
    for _ in range(50):
        limit = admit(log, time_ms, 7, 1_000)
        if not limit.allowed:
            early = time_ms + round(1000 * limit.retry_after) - 1
            if early > time_ms:
                assert not admit(log, early, 7, 1_000).allowed
            time_ms += round(1000 * limit.retry_after)
            assert admit(log, time_ms, 7, 1_000).allowed


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(23),
        transactions.ASKED_OF_LIMIT.pack(0, 1, 1),
        transactions.ASKED_OF_LIMIT.pack(1, 0, 1),
        transactions.ASKED_OF_LIMIT.pack(1, 1, 0),
        transactions.ASKED_OF_LIMIT.pack(1, 1, 2),
        transactions.ASKED_OF_LIMIT.pack(10**6 + 1, 1, 1),
        transactions.ASKED_OF_LIMIT.pack(1, 2**63, 1),
    ],
)
def test_what_makes_no_sense_is_refused(log: Log, data: bytes) -> None:
    before = log.state.snapshot()[0]
    assert "a limit of" in log.at(0, Effect(Code.ADMIT, "limit:x", data))
    assert log.state.snapshot()[0] == before


def test_it_comes_with_conditions_and_with_no_other_effect(log: Log) -> None:
    effect = instructions.admit("limit:x", 1, 1_000)
    assert "comes with no other effect" in log.at(0, effect, kv.set("k", b""))
    assert log.at(0, kv.if_not_modified("k", 5), effect) == "condition 0 does not hold: 0"
    assert log.state.report()["limits"] == 0


@pytest.mark.parametrize(
    ("n", "cost"), [(0, 1), (-1, 1), (True, 1), ("3", 1), (10**6 + 1, 1), (3, 0), (3, 4), (3, "1")]
)
def test_odd_limits_are_refused_at_the_call(n: Any, cost: Any) -> None:
    with pytest.raises(ConfigurationError):
        instructions.admit("limit:x", n, 1_000, cost)


def test_a_snapshot_of_limits_that_make_no_sense_is_refused(log: Log) -> None:
    admit(log, 5)
    whole, index = log.state.snapshot()
    good = LEVEL.pack(3, MINUTE, MINUTE, 5)
    assert whole.count(good) == 1
    for bad in ((0, 1, 0, 5), (3, 0, 1, 5), (3, MINUTE, 0, 5), (3, MINUTE, 3 * MINUTE + 1, 5), (3, MINUTE, 1, 2**60)):
        with pytest.raises(MalformedSnapshotError):
            kv.KeyValueState().restore_snapshot(whole.replace(good, LEVEL.pack(*bad)), index)
    with pytest.raises(MalformedSnapshotError):
        kv.KeyValueState().restore_snapshot(whole[:-14], index)
