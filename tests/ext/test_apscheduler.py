"""Schedulers of APScheduler, of which one acts, and which begin each run once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("apscheduler")

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.base import STATE_PAUSED
from apscheduler.schedulers.blocking import BlockingScheduler
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from raftsvc import ConfigurationError, NotApplied, OutcomeUnknown
from raftsvc.ext import acting, apscheduler
from raftsvc.ext.acting import come_to_act
from raftsvc.ext.apscheduler import OncePerCluster, _Run
from raftsvc.ext.nodes import TEMPORARY, OneNode
from raftsvc.ext.parts import as_part
from raftsvc.kv import Hold, KeyValue
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

    def __init__(self, store: KeyValue, begun: list[str], name: str, **more: Any) -> None:
        self.scheduler = BackgroundScheduler(timezone="UTC")
        self.gate = OncePerCluster(self.scheduler, store, **more)
        self._begun = begun
        self._name = name

    def begin(self) -> None:
        self._begun.append(self._name)

    def add(self, at: datetime, **more: Any) -> None:
        self.scheduler.add_job(self.begin, "date", run_date=at, id="job", **{"misfire_grace_time": 60, **more})

    def act(self) -> None:
        self.gate.start()
        eventually(lambda: self.gate.is_leader, "it acts")

    def is_over(self) -> bool:
        """Whether the job was due."""
        return self.scheduler.get_job("job") is None

    def claim(self, at: datetime, job: str = "job") -> bool | None:
        """What becomes of a claim by hand."""
        due = SimpleNamespace(id=job, trigger=DateTrigger(at), misfire_grace_time=60)
        return self.gate._claim(_Run(lambda *_: None, due, at, self.gate._key(due, at)))


@pytest.fixture
def sites(store: KeyValue) -> Iterator[tuple[Site, Site, list[str]]]:
    begun: list[str] = []
    one, two = (Site(store, begun, name) for name in ("one", "two"))
    yield one, two, begun
    for site in (one, two):
        if site.scheduler.running:
            site.gate.shutdown()


@pytest.fixture
def site(sites: tuple[Site, Site, list[str]]) -> Site:
    return sites[0]


def now() -> datetime:
    return datetime.now(timezone.utc)


def test_one_of_two_schedulers_runs_what_is_due_and_the_other_takes_over(sites: tuple[Site, Site, list[str]]) -> None:
    one, two, begun = sites
    one.act()
    two.gate.start()
    at = now() + SOON
    for site in (one, two):
        site.add(at)
    eventually(lambda: begun, "it runs")
    assert not two.gate.is_leader
    one.gate.shutdown()
    eventually(lambda: two.gate.is_leader, "the second acts")
    eventually(two.is_over, "it has seen that the job was due")
    assert begun == ["one"], "whose run time was claimed before"


def test_a_run_that_is_claimed_begins_nowhere_else(sites: tuple[Site, Site, list[str]]) -> None:
    one, _, begun = sites
    one.act()
    at = now() + SOON
    assert one.claim(at)
    assert not one.claim(at)
    assert not one.claim(at.astimezone(timezone(timedelta(hours=2)))), "the same moment, said otherwise"
    assert one.claim(at + timedelta(seconds=1))
    one.add(at)
    eventually(one.is_over, "it was due")
    assert begun == []


def test_who_leads_no_more_begins_nothing_and_is_paused(
    sites: tuple[Site, Site, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, begun = sites
    one.act()
    hold = one.gate._hold
    assert hold is not None
    two.gate.start()
    one.gate._stopping.set()  # else it may come to act again
    eventually(lambda: two.gate.is_leader, "another acts")
    one.gate._hold = hold  # as one has that was stopped meanwhile
    with monkeypatch.context() as patch:
        patch.setattr(Hold, "is_held", True)  # as it thinks whose pause no clock saw
        assert one.claim(now()) is None
    assert begun == []


@pytest.mark.parametrize("is_written", [False, True])
def test_what_nobody_could_say_of_begins_once_it_is_known(
    site: Site, sites: tuple[Site, Site, list[str]], monkeypatch: pytest.MonkeyPatch, is_written: bool
) -> None:
    site.act()
    asked: list[str] = []
    write = KeyValue.set

    def fail_once(store: KeyValue, key: str, *args: Any, **more: Any) -> int:
        asked.append(key)
        if len(asked) > 1:
            return write(store, key, *args, **more)
        if is_written:
            write(store, key, *args, **more)
        raise OutcomeUnknown("no majority")

    monkeypatch.setattr(KeyValue, "set", fail_once)
    site.add(now() + SOON)
    eventually(lambda: sites[2], "it begins")
    site.gate.shutdown()
    assert sites[2] == ["one"]
    assert len(set(asked)) == 1 < len(asked)


def test_what_nobody_could_say_of_is_not_whosever_claim_there_is(site: Site) -> None:
    site.act()
    at = now()
    due = SimpleNamespace(id="job", trigger=DateTrigger(at), misfire_grace_time=60)
    other, unsure = (_Run(lambda *_: None, due, at, site.gate._key(due, at)) for _ in range(2))
    assert site.gate._claim(other), "as in another process, forked from where this object was made"
    unsure.is_unsure = True
    assert site.gate._claim(unsure) is False


def test_what_nobody_could_say_of_in_time_does_not_begin(
    site: Site,
    sites: tuple[Site, Site, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    site.act()

    def fail(*args: object, **kwargs: object) -> int:
        raise NotApplied("no majority")

    monkeypatch.setattr(KeyValue, "set", fail)
    site.add(now() + SOON, misfire_grace_time=1)
    eventually(lambda: "could not be claimed in time" in caplog.text, "it is given up")
    assert sites[2] == []
    assert not site.gate._undecided


def test_executors_that_come_later_ask_too(sites: tuple[Site, Site, list[str]]) -> None:
    one, _, begun = sites
    one.gate.start()
    one.scheduler.add_executor(ThreadPoolExecutor(1), "other")
    eventually(lambda: one.gate.is_leader, "it acts")
    at = now() + SOON
    assert one.claim(at)
    one.add(at, executor="other")
    eventually(one.is_over, "it was due")
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


def test_who_waits_writes_nothing(store: KeyValue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acting, "_CALL_SECONDS", 30.0)
    hold = come_to_act(store, "jobs", 60.0, 0.1)
    assert hold is not None
    before = store.service.status()["applied_index"]
    assert [come_to_act(store, "jobs", 60.0, 0.05) for _ in range(5)] == [None] * 5
    assert store.service.status()["applied_index"] == before
    hold.release()
    following = come_to_act(store, "jobs", 60.0, 0.1)
    assert following is not None
    following.release()


def test_a_scheduler_that_is_shut_down_by_others_has_another_act(sites: tuple[Site, Site, list[str]]) -> None:
    one, two, _ = sites
    one.act()
    two.gate.start()
    one.scheduler.shutdown()
    eventually(lambda: two.gate.is_leader, "the other one acts")
    eventually(lambda: not one.gate._thread.is_alive(), "it takes part no more")


def test_a_node_that_stops_has_another_act_at_once(
    site: Site, store: KeyValue, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.act()
    released: list[str] = []
    release = Hold.release

    def note(hold: Hold, timeout: float = 5.0) -> bool:
        released.append(hold.name)
        return release(hold, timeout)

    monkeypatch.setattr(Hold, "release", note)
    store.service.stop()
    assert released == ["election:apscheduler/jobs"]


def test_a_pause_as_it_is_shut_down_does_not_have_it_go_on(site: Site) -> None:
    class Pausing(ThreadPoolExecutor):  # type: ignore[misc]
        """Is shut down when a thread that found the scheduler running pauses it."""

        def shutdown(self, wait: bool = True) -> None:
            super().shutdown(wait)
            site.scheduler.state = STATE_PAUSED

    site.scheduler.add_executor(Pausing(1), "pausing")
    site.act()
    thread = threading.Thread(target=site.gate.shutdown, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert not site.scheduler.running


def test_a_run_of_which_nobody_remembers_whether_others_had_it_does_not_begin(store: KeyValue) -> None:
    begun: list[str] = []
    site = Site(store, begun, "one", keep=10.0)
    site.add(now() - timedelta(seconds=6), misfire_grace_time=None)
    site.act()
    eventually(site.is_over, "it was due")
    site.gate.shutdown()
    assert begun == []


def test_a_scheduler_that_was_paused_for_long_asks_for_little(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    claimed: list[str] = []
    write = KeyValue.set
    monkeypatch.setattr(
        KeyValue, "set", lambda store, key, *a, **m: (claimed.append(key), write(store, key, *a, **m))[1]
    )
    since = now().replace(microsecond=0) - timedelta(hours=1)
    trigger = IntervalTrigger(seconds=1, start_date=since, timezone="UTC")
    site.scheduler.add_job(site.begin, trigger, id="job", coalesce=False, misfire_grace_time=1, next_run_time=since)
    site.act()
    eventually(lambda: site.scheduler.get_job("job").next_run_time > since + timedelta(minutes=59), "it caught up")
    assert 0 < len(claimed) < 10


def test_a_scheduler_of_the_main_thread_takes_part_too(store: KeyValue) -> None:
    scheduler = BlockingScheduler(timezone="UTC")
    gate = OncePerCluster(scheduler, store)
    begun = threading.Event()
    scheduler.add_job(begun.set, "date", run_date=now(), id="job", misfire_grace_time=60)
    thread = threading.Thread(target=gate.start)
    thread.start()
    eventually(begun.is_set, "it begins")
    gate.shutdown()
    thread.join(60)
    assert not thread.is_alive()


def test_what_makes_no_sense_is_refused(store: KeyValue) -> None:
    for scheduler, more in (
        (AsyncIOScheduler(), {}),
        (BackgroundScheduler(), {"ttl": 0.1}),
        (BackgroundScheduler(), {"keep": 0}),
        (BackgroundScheduler(), {"keep": "1"}),
        (BackgroundScheduler(), {"name": None}),
    ):
        with pytest.raises(ConfigurationError):
            OncePerCluster(scheduler, store, **more)


def test_whatever_is_raised_it_goes_on_to_take_part(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()

    def fail(*args: object, **kwargs: object) -> None:
        failed.set()
        monkeypatch.undo()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(KeyValue, "claims", fail)
    site.act()
    assert failed.is_set()


@pytest.mark.parametrize(
    "trigger",
    [
        CronTrigger(minute="*/5", jitter=60, timezone="Europe/Berlin"),
        IntervalTrigger(minutes=5, start_date=datetime(2026, 1, 1, tzinfo=timezone.utc), jitter=60),
    ],
)
def test_a_run_is_the_same_whatever_a_process_draws_for_its_jitter(site: Site, trigger: Any) -> None:
    job = SimpleNamespace(id="job", trigger=trigger)
    slots: list[str] = []
    moment: datetime | None = None
    for _ in range(3):
        moment = trigger.get_next_fire_time(moment, moment or datetime(2026, 3, 28, tzinfo=timezone.utc))
        assert moment is not None
        slots.append(site.gate._key(job, moment))
    assert len(set(slots)) == 3
    for _ in range(20):
        drawn = trigger.get_next_fire_time(None, datetime(2026, 3, 28, tzinfo=timezone.utc))
        assert site.gate._key(job, drawn) == slots[0]


def test_no_two_jobs_share_a_key(site: Site) -> None:
    texts = ["a", "a/b", "a%2Fb", "", "é" * 300, "é" * 301, "😀" * 100, "\ud800", "%"]
    assert len({as_part(text) for text in texts}) == len(texts)
    assert all("/" not in as_part(text) and len(as_part(text).encode(errors="replace")) <= 400 for text in texts)


def test_a_long_name_of_a_job_does_not_keep_it_from_running(site: Site) -> None:
    site.act()
    assert site.claim(now(), "job" * 1000)
