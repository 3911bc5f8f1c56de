"""Schedulers of APScheduler, of which one acts, and which begin each run once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

pytest.importorskip("apscheduler")

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from raftsvc import OutcomeUnknown
from raftsvc.ext import apscheduler
from raftsvc.ext.apscheduler import OncePerCluster
from raftsvc.ext.nodes import TEMPORARY, OneNode
from raftsvc.kv import KeyValue
from tests.service.harness import eventually

SOON = timedelta(seconds=0.3)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[KeyValue]:
    monkeypatch.setattr(apscheduler, "_WAIT_SECONDS", 0.1)
    monkeypatch.setattr(apscheduler, "_RETRY_SECONDS", 0.05)
    node = OneNode()
    node.configure({"RAFTSVC_DIR": TEMPORARY}, {})
    yield node.store()
    node.stop()


class Site:
    """A process with a scheduler."""

    def __init__(self, store: KeyValue, begun: list[str], name: str) -> None:
        self.scheduler = BackgroundScheduler(timezone="UTC")
        self.gate = OncePerCluster(self.scheduler, store)
        self._begun = begun
        self._name = name

    def add(self, at: datetime, **more: Any) -> None:
        self.scheduler.add_job(
            lambda: self._begun.append(self._name), "date", run_date=at, id="job", misfire_grace_time=60, **more
        )


@pytest.fixture
def sites(store: KeyValue) -> Iterator[tuple[Site, Site, list[str]]]:
    begun: list[str] = []
    one, two = (Site(store, begun, name) for name in ("one", "two"))
    yield one, two, begun
    for site in (one, two):
        if site.scheduler.running:
            site.gate.shutdown()


def test_one_of_two_schedulers_runs_what_is_due_and_the_other_takes_over(sites: tuple[Site, Site, list[str]]) -> None:
    one, two, begun = sites
    one.gate.start()
    eventually(lambda: one.gate.is_leader, "the first acts")
    two.gate.start()
    at = datetime.now(timezone.utc) + SOON
    for site in (one, two):
        site.add(at)
    eventually(lambda: begun, "it runs")
    assert not two.gate.is_leader
    one.gate.shutdown()
    eventually(lambda: two.gate.is_leader, "the second acts")
    eventually(lambda: two.scheduler.get_job("job") is None, "it has seen that the job was due")
    assert begun == ["one"], "whose run time was claimed before"


def test_a_run_that_is_claimed_begins_nowhere_else(sites: tuple[Site, Site, list[str]]) -> None:
    one, _, begun = sites
    one.gate.start()
    eventually(lambda: one.gate.is_leader, "it acts")
    at = datetime.now(timezone.utc) + SOON
    assert one.gate._claim("job", at)
    assert not one.gate._claim("job", at)
    assert not one.gate._claim("job", at.astimezone(timezone(timedelta(hours=2)))), "the same moment, said otherwise"
    assert one.gate._claim("job", at + timedelta(seconds=1))
    one.add(at)
    eventually(lambda: one.scheduler.get_job("job") is None, "it was due")
    assert begun == []


def test_who_leads_no_more_begins_nothing_and_is_paused(sites: tuple[Site, Site, list[str]]) -> None:
    one, two, begun = sites
    one.gate.start()
    eventually(lambda: one.gate.is_leader, "it acts")
    hold = one.gate._hold
    assert hold is not None
    two.gate.start()
    hold.release()
    eventually(lambda: two.gate.is_leader, "another acts")
    one.gate._hold = hold  # as one has that was stopped meanwhile
    assert not one.gate._claim("job", datetime.now(timezone.utc))
    assert begun == []


def test_what_cannot_be_claimed_is_left_out(
    sites: tuple[Site, Site, list[str]], store: KeyValue, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _, _ = sites
    one.gate.start()
    eventually(lambda: one.gate.is_leader, "it acts")

    def fail(*args: object, **kwargs: object) -> int:
        raise OutcomeUnknown("no majority")

    monkeypatch.setattr(store, "set", fail)
    assert not one.gate._claim("job", datetime.now(timezone.utc))


def test_executors_that_come_later_ask_too(sites: tuple[Site, Site, list[str]]) -> None:
    one, _, begun = sites
    one.gate.start()
    one.scheduler.add_executor(ThreadPoolExecutor(1), "other")
    eventually(lambda: one.gate.is_leader, "it acts")
    at = datetime.now(timezone.utc) + SOON
    assert one.gate._claim("job", at)
    one.add(at, executor="other")
    eventually(lambda: one.scheduler.get_job("job") is None, "it was due")
    assert begun == []


def test_no_thread_of_it_is_left(sites: tuple[Site, Site, list[str]]) -> None:
    one, two, _ = sites
    for site in (one, two):
        site.gate.start()
    eventually(lambda: one.gate.is_leader or two.gate.is_leader, "one acts")
    for site in (one, two):
        site.gate.shutdown()
        assert not site.gate.is_leader
    assert not [t for t in threading.enumerate() if t.name == "raftsvc-apscheduler"]
