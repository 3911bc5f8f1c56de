"""Log time as an application sees it: a State in which keys expire, whoever leads and however often it restarts."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

import raftsvc
from tests.service.harness import Clocks, Cluster, Member, eventually


class Leases(raftsvc.BaseState):
    """Names and until when they are held; an instruction is a name and for how many ms."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, int] = {}
        self.is_stuck = False

    def apply(self, data: bytes, index: int) -> bool:
        raise AssertionError("the other is called")

    def apply_at(self, data: bytes, index: int, time_ms: int) -> bool:
        self.pass_time(index, time_ms)
        name, ttl_ms = json.loads(data)
        if name in self.held:
            return False
        self.held[name] = time_ms + ttl_ms
        return True

    def pass_time(self, index: int, time_ms: int) -> None:
        if not self.is_stuck:
            self.held = {name: until for name, until in self.held.items() if until > time_ms}

    def next_deadline(self) -> int | None:
        return min(self.held.values(), default=None)

    def snapshot(self) -> tuple[bytes, int]:
        return json.dumps(self.held).encode(), self.applied_index()

    def restore_snapshot(self, data: bytes, index: int) -> None:
        self.held = json.loads(data)


def take(member: Member, name: str, ttl_ms: int) -> bool:
    return member.service.exec(json.dumps([name, ttl_ms]).encode())


@pytest.fixture
def leases(make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Cluster]:
    monkeypatch.setattr("tests.service.harness.ListState", Leases)
    return make_cluster


def held(member: Member) -> dict[str, int]:
    state: Any = member.state
    return dict(state.held)


def test_what_is_held_is_free_once_its_time_is_over_and_not_before(
    leases: Callable[..., Cluster], clocks: Clocks
) -> None:
    cluster = leases(election_timeout=5.0)  # nobody else is elected because the machine is busy
    cluster.form(3)
    leader = cluster.leader()
    assert take(leader, "a", 3_000)
    for member in cluster.members:  # each of which has a session then
        assert not take(member, "a", 3_000)
    for _ in range(3):
        clocks.move(900)
        assert not take(leader, "a", 1), "its time is not over"
    clocks.move(400)
    eventually(lambda: not any(map(held, cluster.members)), "all see it by a pulse, and nobody wrote anything")
    times = eventually(
        lambda: (t := {m.service.log_time() for m in cluster.members}) and len(t) == 1 and t, "all are as far"
    )
    assert times == {leader.status["time_ms"]}
    assert 3_000 <= leader.service.log_time() <= 3_100
    index = leader.status["last_index"]
    clocks.move(900)
    assert take(leader, "b", 10_000)
    assert leader.status["last_index"] == index + 1, "where nothing waits nothing is written"


def test_a_hand_over_takes_the_time_along_and_a_restart_keeps_it(
    leases: Callable[..., Cluster], clocks: Clocks
) -> None:
    cluster = leases(snapshot_entries=5)
    cluster.form(3)
    leader = cluster.leader()
    take(leader, "a", 60_000)
    clocks.move(700)
    leader.service.stop()
    other = cluster.leader()
    eventually(lambda: other.service.log_time() >= 700, "it was said before the hand-over")
    for n in range(10):
        take(other, f"b{n}", 30_000)
    eventually(lambda: other.status["snapshot_index"] > 0, "a snapshot")
    before = other.service.log_time()
    for member in cluster.members:
        member.service.stop()
    clocks.move(3600_000)
    for member in cluster.members:
        member.start()
    eventually(lambda: all(m.service.log_time() >= before for m in cluster.members), "they know what time it was")
    assert "a" in held(cluster.leader())
    assert cluster.leader().service.log_time() < before + 2_000, "the hour in which nobody led is no time"


def test_a_deadline_that_stays_is_logged_once_and_costs_one_entry(
    leases: Callable[..., Cluster], clocks: Clocks, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = leases()
    cluster.form(1)
    (member,) = cluster.members
    state: Any = member.state
    take(member, "a", 200)
    state.is_stuck = True
    clocks.move(900)

    def said() -> list[str]:
        return [r.getMessage() for r in caplog.records if "next_deadline" in r.getMessage()]

    caplog.set_level(logging.WARNING, "raftsvc")
    eventually(said, "it is reported")
    index = member.status["last_index"]
    take(member, "b", 300)
    clocks.move(900)
    take(member, "c", 300)
    assert (member.status["last_index"], len(said())) == (index + 2, 1)


@pytest.mark.parametrize("lacking", ["pass_time", "next_deadline", "apply_at"])
def test_half_of_a_waiting_state_is_refused_at_the_start(make_cluster: Callable[..., Cluster], lacking: str) -> None:
    names = [name for name in ("apply_at", "pass_time", "next_deadline") if name != lacking]
    half = type(
        "Half", (raftsvc.BaseState,), {n: lambda *args: None for n in (*names, "apply", "snapshot", "restore_snapshot")}
    )
    with pytest.raises(raftsvc.ConfigurationError, match=rf"lacks {lacking}"):
        raftsvc.start("127.0.0.1:1", "/nowhere", None, half(), insecure=True)
