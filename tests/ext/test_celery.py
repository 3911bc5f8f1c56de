"""Beats of Celery, of which one acts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

pytest.importorskip("celery")

from celery import Celery
from celery.schedules import crontab

from raftsvc import ConfigurationError, OutcomeUnknown
from raftsvc.ext.celery import RaftScheduler
from raftsvc.ext.nodes import TEMPORARY, one_node
from raftsvc.kv import KeyValue
from tests.service.harness import eventually

KEY = "celery-beat/tests/often"


@pytest.fixture
def store() -> Iterator[KeyValue]:
    one_node.configure({"RAFTSVC_DIR": TEMPORARY}, {})
    yield one_node.store()
    one_node.stop()


def app(main: str = "tests", **more: Any) -> Celery:
    made = Celery(main, broker="memory://", set_as_current=False)
    schedule = {"often": {"task": "often", "schedule": 60.0}}
    made.conf.update({"beat_schedule": schedule, "result_expires": None, **more})
    return made


class Beat(RaftScheduler):
    """Which notes what it sends, and does not send it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.sent: list[str] = []
        super().__init__(*args, **kwargs)

    def send_task(self, *args: Any, **kwargs: Any) -> None:
        self.sent.append(args[0])

    @property
    def producer(self) -> None:  # type: ignore[override]
        return None

    def age(self, seconds: float = 120.0) -> None:
        """Its entries ran so long ago, as far as it knows."""
        for entry in self.schedule.values():
            entry.last_run_at = entry.default_now() - timedelta(seconds=seconds)
        self._heap = None


def beat(**more: Any) -> Beat:
    made = Beat(app(**more))
    made.age()
    return made


def ticks(scheduler: RaftScheduler, count: int = 3) -> None:
    for _ in range(count):
        scheduler.tick()


def test_of_two_beats_one_sends_and_the_other_goes_on_where_it_ended(
    store: KeyValue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftsvc.ext.celery._STANDBY_SECONDS", 0.05)
    first, second = beat(), beat()
    eventually(first._acts, "one of them acts")
    first.age()
    ticks(first)
    ticks(second)
    assert (first.sent, second.sent) == (["often"], [])
    known = store.get(KEY)
    assert known is not None and json.loads(known.data)["total_run_count"] == 1
    first.close()
    eventually(second._acts, "the other one acts")
    ticks(second)
    assert second.sent == [], "the last run of the first counts"
    assert second.schedule["often"].total_run_count == 1
    second.age()
    ticks(second)
    assert second.sent == ["often"]
    assert second.schedule["often"].total_run_count == 2
    second.close()


def test_a_beat_that_leads_no_more_sends_nothing(store: KeyValue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftsvc.ext.celery._STANDBY_SECONDS", 0.05)
    frozen, other = beat(), beat()
    eventually(frozen._acts, "it acts")
    frozen.age()
    ticks(frozen, 1)
    assert frozen.sent == ["often"]
    assert frozen._hold is not None
    held = type(frozen._hold)
    frozen._hold.release()
    eventually(other._acts, "another one acts")
    with monkeypatch.context() as patch:
        patch.setattr(held, "is_held", True)  # as one thinks that was stopped for longer than the lease lasted
        frozen.age()
        assert frozen.tick() > 0
    assert frozen._hold is None, "it takes part again, and knows of the other one"
    assert frozen.sent == ["often"], "what it had taken for due was not written down, and so not sent"
    other.close()
    frozen.close()


def test_what_could_not_be_written_down_is_sent_once_it_could(store: KeyValue, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = beat()
    with monkeypatch.context() as patch:

        def fail(*args: object, **kwargs: object) -> int:
            raise OutcomeUnknown("no majority")

        eventually(scheduler._acts, "it acts")
        scheduler.age()
        patch.setattr(KeyValue, "set", fail)
        assert scheduler.tick() > 0
        assert scheduler.sent == []
    ticks(scheduler)
    assert scheduler.sent == ["often"]
    scheduler.close()


def test_it_asks_nobody_before_it_is_to_act() -> None:
    for _ in range(3):
        lazy = Beat(app(raft_url="raftsvc:///nowhere"), lazy=True)
        assert "election" in lazy.info
        assert lazy.schedule == {}
    Beat(app(raft_url="raftsvc:///nowhere")).close()
    for nonsense in ({"raft_url": "redis://"}, {"raft_beat_ttl": "soon"}, {"raft_beat_ttl": None}):
        with pytest.raises(ConfigurationError):
            Beat(app(**nonsense))


def test_a_cluster_that_does_not_answer_is_asked_again(tmp_path: Any) -> None:
    scheduler = Beat(app(raft_url=f"raftsvc://{tmp_path}/none"))
    assert scheduler.tick() > 0
    assert scheduler.sent == []
    scheduler.close()


def test_times_are_kept_with_their_zone(store: KeyValue) -> None:
    ran = datetime(2026, 3, 29, 1, 30, tzinfo=timezone.utc)
    store.set(KEY, json.dumps({"last_run_at": ran.isoformat(), "total_run_count": 7}).encode())
    scheduler = beat(timezone="Europe/Berlin")
    eventually(scheduler._acts, "it acts")
    entry = scheduler.schedule["often"]
    assert entry.last_run_at == ran
    assert entry.total_run_count == 7
    assert entry.last_run_at.tzinfo == entry.default_now().tzinfo, "in which a day may have 23 hours"
    scheduler.close()


def test_an_entry_that_has_not_run_is_counted_from_when_the_first_beat_knew_it(store: KeyValue) -> None:
    first = beat()
    eventually(first._acts, "it acts")
    since = first.schedule["often"].last_run_at
    first.close()
    second = beat()
    assert second.schedule["often"].last_run_at > since
    eventually(second._acts, "it acts")
    assert second.schedule["often"].last_run_at == since, "else what is due once a day never were, with a beat a day"
    second.close()


def test_a_run_by_a_clock_that_was_ahead_does_not_keep_an_interval_from_being_due(
    store: KeyValue, caplog: pytest.LogCaptureFixture
) -> None:
    ahead = datetime.now(timezone.utc) + timedelta(hours=1)
    ran = json.dumps({"last_run_at": ahead.isoformat(), "total_run_count": 7}).encode()
    for name in ("often", "daily"):
        store.set(f"celery-beat/tests/{name}", ran)
    daily = {"task": "daily", "schedule": crontab(minute=0, hour=4)}
    scheduler = beat(beat_schedule={"often": {"task": "often", "schedule": 60.0}, "daily": daily})
    eventually(scheduler._acts, "it acts")
    often, daily = (scheduler.schedule[name] for name in ("often", "daily"))
    assert often.last_run_at <= often.default_now()
    assert daily.last_run_at == ahead, "whose run it was, that is not sent again"
    assert "by another host's clock" in caplog.text
    scheduler.close()


def test_what_is_not_to_be_read_is_counted_from_now_on(store: KeyValue) -> None:
    for number, data in enumerate([b"", b"\xff", b"[]", b"{}", b'{"last_run_at": 1, "total_run_count": 1}']):
        store.set(KEY, data)
        scheduler = beat()
        eventually(scheduler._acts, "it acts")
        ticks(scheduler)
        assert scheduler.sent == ["often"], number
        scheduler.close()


def test_whatever_entries_are_named_they_are_sent(store: KeyValue) -> None:
    names = ["x" * 2000, "😀" * 100, "\ud800", "a/b", "tasks.add(1, 2)"]
    scheduler = beat(beat_schedule={name: {"task": name, "schedule": 60.0} for name in names})
    eventually(scheduler._acts, "it acts")
    scheduler.age()
    ticks(scheduler, len(names) + 1)
    assert sorted(scheduler.sent) == sorted(names)
    scheduler.close()


def test_nothing_is_written_down_before_there_is_a_broker(store: KeyValue) -> None:
    class Cut(Beat):
        @property
        def producer(self) -> None:  # type: ignore[override]
            raise OSError("no broker")

    scheduler = Cut(app())
    eventually(scheduler._acts, "it acts")
    scheduler.age()
    with pytest.raises(OSError, match="no broker"):
        scheduler.tick()
    known = store.get(KEY)
    assert known is not None and json.loads(known.data)["total_run_count"] == 0
    scheduler.close()


def test_beats_of_several_apps_do_not_wait_for_each_other(store: KeyValue) -> None:
    one, other = Beat(app("one")), Beat(app("other"))
    for each in (one, other):
        eventually(each._acts, "it acts")
    for each in (one, other):
        each.close()
