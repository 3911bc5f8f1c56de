"""Tasks of Django 6: each is begun at least once, one worker has it at a time, and what comes of it is kept once."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from raftsvc.errors import OutcomeUnknown
from raftsvc.ext.nodes import TEMPORARY, one_node
from raftsvc.kv import ConflictError, KeyValue, LostError, start_from_env
from tests.attached.hosts import ROOT, free_port

django = pytest.importorskip("django")
if find_spec("django.tasks") is None:
    pytest.skip("tasks are new in Django 6.0, which takes Python 3.12", allow_module_level=True)

from django.conf import settings  # noqa: E402
from django.core.exceptions import ImproperlyConfigured  # noqa: E402
from django.core.management import CommandError, call_command  # noqa: E402
from django.test import override_settings  # noqa: E402
from django.utils.functional import empty  # noqa: E402

BACKEND = "raftsvc.ext.django.tasks.RaftBackend"
TASKS = {
    "default": {"BACKEND": BACKEND, "QUEUES": ["default", "other"], "OPTIONS": {"max_attempts": 2}},
    "brief": {"BACKEND": BACKEND, "OPTIONS": {"result_ttl": 1.5, "name": "a/b"}},
    "hasty": {"BACKEND": BACKEND, "OPTIONS": {"time_limit": 1.0, "name": "hasty"}},
    "immediate": {"BACKEND": "django.tasks.backends.immediate.ImmediateBackend"},
}


@pytest.fixture(scope="module", autouse=True)
def project() -> Iterator[None]:
    one_node.stop()
    ours = not settings.configured  # those of others who are tested in this process stay as they are
    if ours:
        settings.configure(SECRET_KEY="a key of these tests", INSTALLED_APPS=["raftsvc.ext.django"])
    django.setup()
    with override_settings(RAFTSVC_DIR=TEMPORARY, TASKS=TASKS, USE_TZ=True):
        yield
    if ours:
        settings._wrapped = empty
    one_node.stop()


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from django.tasks import task_backends

    from raftsvc.ext.django import kv, worker
    from tests.ext import jobs

    monkeypatch.setattr(worker, "_GET_SECONDS", 0.3)  # else threads of workers that ended would wait, and take items
    monkeypatch.setattr(worker, "_RETRY_SECONDS", 0.1)
    jobs.ran.clear()
    jobs.go_on.clear()
    yield task_backends["default"]
    eventually(lambda: not [each for each in threading.enumerate() if each.name.startswith("raftsvc-task-")])
    assert kv.list("django/tasks/default/queues/") == {}, "what is finished leaves nothing but its result"
    assert [task_backends["default"].queue(name).counts() for name in ("default", "other")] == [(0, 0)] * 2


def claims(backend: Any, worker: str, queue: str = "default") -> Any:
    from raftsvc.ext.django.worker import Claims

    return Claims(backend, queue, worker)


def take(backend: Any, queue: str = "default") -> Any:
    item = backend.queue(queue).get(timeout=30)
    assert item is not None
    return item


def done(value: object) -> dict[str, object]:
    return {"status": "SUCCESSFUL", "value": value}


def run(backend: Any, count: int, *queues: str, **options: Any) -> bool:
    from raftsvc.ext.django.worker import Worker

    return Worker(backend, queues or ("default",), max_tasks=count, **options).run()


@contextmanager
def running(backend: Any, grace: float = 30.0, **options: Any) -> Iterator[tuple[Any, list[bool]]]:
    """A worker that goes on until it is told to stop, and what came of it."""
    from raftsvc.ext.django.worker import Worker

    worker, ended = Worker(backend, ("default",), **options), []
    thread = threading.Thread(target=lambda: ended.append(worker.run(grace)))
    thread.start()
    try:
        yield worker, ended
    finally:
        worker.is_asked_to_stop = True
        thread.join(60)


def eventually(condition: Callable[[], object]) -> None:
    waiting = threading.Event()
    for _ in range(1200):
        if condition():
            return
        waiting.wait(0.05)
    raise AssertionError("it did not come about")


def test_a_task_is_run_and_its_result_is_read_anywhere(backend: Any) -> None:
    from tests.ext import jobs

    results = [jobs.add.enqueue(1, b=2), jobs.attempt.enqueue(), jobs.double.enqueue(4)]
    assert [each.status for each in results] == ["READY"] * 3 and jobs.add.get_result(results[0].id).args == [1]
    assert run(backend, 3)
    for each in results:
        each.refresh()
    assert [each.return_value for each in results] == [3, [1, results[1].id], 8]
    assert results[0].attempts == 1 and results[0].errors == [] and results[0].kwargs == {"b": 2}
    assert results[0].enqueued_at <= results[0].started_at <= results[0].finished_at
    assert results[0].started_at == results[0].last_attempted_at


def test_what_raises_or_exits_has_failed_and_the_worker_goes_on(backend: Any) -> None:
    from tests.ext import jobs

    results = [each.enqueue() for each in (jobs.fail, jobs.leave, jobs.no_json)] + [jobs.large.enqueue(300_000)]
    assert run(backend, 4)
    for each in results:
        each.refresh()
        assert each.status == "FAILED" and each.attempts == 1
    assert [each.errors[0].exception_class for each in results] == [ValueError, SystemExit, TypeError, ValueError]
    assert "no such thing" in results[0].errors[0].traceback and "in fail" in results[0].errors[0].traceback


def test_the_most_urgent_is_run_first_and_of_those_the_oldest(backend: Any) -> None:
    from tests.ext import jobs

    for number, priority in enumerate((0, -100, 100, 0, 5)):
        jobs.add.using(priority=priority).enqueue(number, 0)
    assert run(backend, 5)
    assert jobs.ran == [2, 4, 0, 3, 1]


def test_a_task_is_not_run_before_it_is_due_and_then_once_whoever_looks(backend: Any) -> None:
    from tests.ext import jobs

    now = datetime.now(timezone.utc)
    at = [now + timedelta(hours=2), now + timedelta(hours=1), now - timedelta(hours=1)]
    results = [jobs.add.using(run_after=each).enqueue(number, 0) for number, each in enumerate(at)]
    assert results[0].task.run_after == at[0]
    assert run(backend, 1) and jobs.ran == [2]
    assert backend.make_due("default", now.timestamp()) == at[1].timestamp()
    assert backend.make_due("default", at[1].timestamp() - 0.001) == at[1].timestamp()
    assert backend.queue("default").counts() == (0, 0)
    looks = [threading.Thread(target=backend.make_due, args=("default", at[0].timestamp())) for _ in range(4)]
    for each in looks:
        each.start()
    for each in looks:
        each.join()
    assert run(backend, 2) and jobs.ran == [2, 1, 0]


def test_queues_are_apart_and_so_are_backends(backend: Any) -> None:
    from django.tasks import task_backends

    from tests.ext import jobs

    brief = task_backends["brief"]
    jobs.add.using(queue_name="other").enqueue(1, 0)
    jobs.add.using(backend="brief").enqueue(2, 0)
    assert run(brief, 1) and jobs.ran == [2]
    assert run(backend, 1, "default", "other") and jobs.ran == [2, 1]


def test_two_workers_never_begin_the_same_task_however_old_what_they_see(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raftsvc.ext.django import start
    from tests.ext import jobs

    results = [jobs.add.enqueue(number, 0) for number in range(2)]
    first = start().list(backend.ready_prefix("default"))
    monkeypatch.setattr(KeyValue, "list", lambda self, *args, **kwargs: first)  # as of before any was begun
    workers = [claims(backend, "a"), claims(backend, "b")]
    begun = [each.begin(take(backend)) for each in workers]
    monkeypatch.undo()
    assert {each.id for each in begun} == {each.id for each in results}
    for worker, each in zip(workers, begun, strict=True):
        assert worker.finish(each, done(each.id)) is not None
    for each in results:
        each.refresh()
        assert each.return_value == each.id and each.attempts == 1


def test_who_takes_over_goes_on_with_the_same_task_and_the_late_one_is_refused(backend: Any) -> None:
    from tests.ext import jobs

    result = jobs.add.enqueue(1, 1)
    late = claims(backend, "late")
    begun = late.begin(take(backend))
    jobs.add.using(priority=100).enqueue(2, 2)  # more urgent, and no matter: the item stands for the other one
    begun.item.nack()
    item = take(backend)
    again = claims(backend, "next").begin(item)
    assert again.id == begun.id == result.id
    result.refresh()
    assert (result.status, result.attempts, result.worker_ids) == ("RUNNING", 2, ["late", "next"])
    assert late.finish(begun, done("late")) is None
    assert claims(backend, "next").begin(item).id == again.id, "asked again, for the answer was lost"
    assert claims(backend, "next").finish(again, done("kept")) is not None
    assert late.finish(begun, done("late")) is None
    result.refresh()
    assert result.return_value == "kept" and result.attempts == 2
    assert run(backend, 1) and jobs.ran == [4]


def test_to_begin_late_is_refused_by_the_cluster_too(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.ext import jobs

    result = jobs.add.enqueue(1, 1)
    late = take(backend)
    late.nack()
    item = take(backend)
    begun = claims(backend, "next").begin(item)
    monkeypatch.setattr(late, "ensure_held", lambda: None)  # as with a process that is stopped right after
    with pytest.raises(LostError):
        claims(backend, "late").begin(late)
    assert claims(backend, "next").finish(begun, done(1)) is not None
    result.refresh()
    assert result.worker_ids == ["next"]


def test_what_begins_a_task_and_arrives_after_another_was_begun_changes_nothing(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raftsvc.ext.django import start
    from tests.ext import jobs

    late: list[Any] = []
    transaction = KeyValue.transaction

    def lose_the_first(store: KeyValue, operations: Any, timeout: float = 10.0) -> int:
        if late:
            return transaction(store, operations, timeout)
        late.extend(operations)
        urgent.append(jobs.add.using(priority=100).enqueue(2, 2).id)
        raise OutcomeUnknown("no answer in time")

    jobs.add.enqueue(1, 1)
    urgent: list[str] = []
    monkeypatch.setattr(KeyValue, "transaction", lose_the_first)
    worker = claims(backend, "a")
    begun = worker.begin(take(backend))
    assert [begun.id] == urgent
    with pytest.raises(ConflictError):
        transaction(start(), late)
    assert worker.finish(begun, done(None)) is not None
    assert run(backend, 1) and jobs.ran == [2]


def seen_before(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    """Whoever lists what is ready sees it as it is now, for as long as this lasts."""
    from raftsvc.ext.django import start

    ready = start().list(backend.ready_prefix("default"))
    monkeypatch.setattr(KeyValue, "list", lambda self, *args, **kwargs: ready)


def lose_one(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object]) -> list[Any]:
    """The next transaction is not answered, and has not arrived: its operations, once it was asked for."""
    late: list[Any] = []
    transaction = KeyValue.transaction

    def lose(store: KeyValue, operations: Any, timeout: float = 10.0) -> int:
        late.extend(operations)
        monkeypatch.setattr(KeyValue, "transaction", transaction)
        meanwhile()
        raise OutcomeUnknown("no answer in time")

    monkeypatch.setattr(KeyValue, "transaction", lose)
    return late


def test_what_may_be_begun_once_and_was_begun_by_another_has_not_failed(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.ext import jobs

    monkeypatch.setattr(backend, "max_attempts", 1)
    results = [jobs.add.enqueue(number, 0) for number in range(2)]
    with monkeypatch.context() as old:
        seen_before(old, backend)
        begun = [claims(backend, each).begin(take(backend)) for each in "ab"]
    assert [(each.id, each.over) for each in begun] == [(each.id, "") for each in results]
    for each in begun:
        assert claims(backend, "c").finish(each, done(each.id)) is not None


def test_what_was_finished_and_forgotten_since_it_was_seen_takes_no_item(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raftsvc.ext.django import kv
    from tests.ext import jobs

    results = [jobs.add.enqueue(number, 0) for number in range(2)]
    first, second = claims(backend, "a"), claims(backend, "b")
    with monkeypatch.context() as old:
        seen_before(old, backend)
        assert first.finish(first.begin(take(backend)), done(None)) is not None
        del kv[backend.result_key(results[0].id)]  # as by a time to live that is over
        begun = second.begin(take(backend))
    assert begun is not None and begun.id == results[1].id
    assert second.finish(begun, done(None)) is not None


def test_what_begins_a_task_and_arrives_while_that_is_looked_for_is_found(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raftsvc.ext.django import start
    from tests.ext import jobs

    result = jobs.add.enqueue(1, 1)
    late = lose_one(monkeypatch, lambda: None)
    listed = KeyValue.list

    def arrive(store: KeyValue, *args: Any, **kwargs: Any) -> Any:
        if late:
            start().transaction([late.pop(0) for _ in range(len(late))])
        return listed(store, *args, **{**kwargs, "max_age": None})

    monkeypatch.setattr(KeyValue, "list", arrive)
    worker = claims(backend, "a")
    begun = worker.begin(take(backend))
    assert begun is not None and begun.id == result.id
    assert worker.finish(begun, done(None)) is not None
    result.refresh()
    assert (result.status, result.attempts) == ("SUCCESSFUL", 1)


@pytest.mark.parametrize("gone", ["result", "ready"])
def test_what_does_away_with_an_item_and_arrives_after_a_task_was_begun_changes_nothing(
    backend: Any, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    from raftsvc.ext.django import kv, start
    from tests.ext import jobs

    lost = jobs.add.enqueue(1, 1)
    (ready,) = kv.list(backend.ready_prefix("default"))
    del kv[ready if gone == "ready" else backend.result_key(lost.id)]
    urgent: list[str] = []
    late = lose_one(monkeypatch, lambda: urgent.append(jobs.add.using(priority=100).enqueue(2, 2).id))
    worker = claims(backend, "a")
    begun = worker.begin(take(backend))
    assert [begun.id] == urgent
    with pytest.raises(ConflictError):
        start().transaction(late)
    assert worker.finish(begun, done(None)) is not None
    assert run(backend, 1) and jobs.ran == []


def test_a_task_whose_workers_all_died_has_failed_at_last(backend: Any) -> None:
    from tests.ext import jobs

    result = jobs.add.enqueue(1, 1)
    for worker in "ab":
        claims(backend, worker).begin(take(backend)).item.nack()
    assert run(backend, 1)
    result.refresh()
    assert (result.status, result.attempts, jobs.ran) == ("FAILED", 2, [])
    assert "begun 2 times" in result.errors[0].traceback
    assert result.errors[0].exception_class.__name__ == "TaskAbandonedError"


def test_what_comes_of_a_task_that_was_lost_is_not_kept_and_it_is_run_again(backend: Any) -> None:
    from tests.ext import jobs

    result = jobs.lose.enqueue()
    assert run(backend, 3)  # the third finds that it was begun as often as it may be
    result.refresh()
    assert (result.status, result.attempts) == ("FAILED", 2)


def test_a_task_that_raises_because_it_is_lost_has_not_failed_and_is_begun_anew(backend: Any) -> None:
    from tests.ext import jobs

    result = jobs.notice.enqueue()
    assert run(backend, 1)
    result.refresh()
    assert (result.status, result.attempts) == ("RUNNING", 1)
    assert run(backend, 2)
    result.refresh()
    assert (result.status, result.attempts) == ("FAILED", 2) and "begun 2 times" in result.errors[0].traceback


def test_a_task_that_nobody_knows_any_more_has_failed_and_is_named(backend: Any) -> None:
    from raftsvc.ext.django import kv
    from tests.ext import jobs

    result = jobs.add.enqueue(1, 1)
    key = backend.result_key(result.id)
    kv[key] = kv[key].replace(b"tests.ext.jobs.add", b"tests.ext.jobs.ran")
    assert run(backend, 1)
    found = backend.get_result(result.id)
    assert found.status == "FAILED" and found.task.module_path == "tests.ext.jobs.ran"
    assert "'tests.ext.jobs.ran'" in found.errors[0].traceback


def test_a_task_whose_module_raises_has_failed_and_ends_no_worker(
    backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raftsvc.ext.django import kv
    from tests.ext import jobs

    (tmp_path / "broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    result = jobs.add.enqueue(1, 1)
    key = backend.result_key(result.id)
    kv[key] = kv[key].replace(b"tests.ext.jobs.add", b"broken.add")
    assert run(backend, 1)
    found = backend.get_result(result.id)
    assert found.status == "FAILED" and "'broken.add'" in found.errors[0].traceback


@pytest.mark.parametrize("gone", ["result", "ready", "unreadable"])
def test_keys_that_were_deleted_hold_up_nothing(backend: Any, gone: str) -> None:
    from raftsvc.ext.django import kv
    from tests.ext import jobs

    result = jobs.add.enqueue(1, 1)
    if gone == "result":
        del kv[backend.result_key(result.id)]
    elif gone == "ready":
        (key,) = kv.list(backend.ready_prefix("default"))
        del kv[key]
    else:
        kv[backend.result_key(result.id)] = b"{}"
    assert run(backend, 1)
    jobs.add.enqueue(2, 2)
    assert run(backend, 1) and jobs.ran == [4]


def test_tasks_whose_keys_were_imported_are_run(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file that has the keys as they were: no item stands for them, and one was begun by whoever is not here."""
    from raftsvc.ext.django import kv, worker
    from tests.ext import jobs

    monkeypatch.setattr(worker, "_MISSING_SECONDS", 0.05)
    results = [jobs.add.enqueue(1, number) for number in range(3)]
    item = take(backend)
    assert claims(backend, "one").begin(item) is not None
    exported = kv.list("django/tasks/default/")
    assert [key.split("/")[5] for key in exported if "/queues/" in key] == ["begun", "ready", "ready"]
    item.nack()
    assert run(backend, 3) and sorted(jobs.ran) == [1, 2, 3]
    for key, value in exported.items():
        kv[key] = value.data
    with running(backend):
        eventually(lambda: all(backend.get_result(each.id).status == "SUCCESSFUL" for each in results))
    assert sorted(jobs.ran) == [1, 1, 2, 2, 3, 3]


def test_what_was_finished_between_two_pages_of_an_export_is_not_run_again(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raftsvc.ext.django import kv, worker
    from tests.ext import jobs

    monkeypatch.setattr(worker, "_MISSING_SECONDS", 0.05)
    result = jobs.add.enqueue(1, 1)
    (exported,) = kv.list(backend.ready_prefix("default")).items()
    assert run(backend, 1)
    kv[exported[0]] = exported[1].data
    kv[backend.begun_key("default", 7)] = b"%b  " % result.id.encode()
    kv[backend.begun_key("default", 8)] = b"\xff"
    with running(backend):
        eventually(lambda: kv.list("django/tasks/default/queues/") == {})
    assert jobs.ran == [2]


def test_a_result_has_a_time_to_live_once_it_is_finished() -> None:
    from django.tasks import task_backends
    from django.tasks.exceptions import TaskResultDoesNotExist

    from tests.ext import jobs

    def is_gone() -> bool:
        try:
            return not jobs.add.using(backend="brief").get_result(result.id).is_finished
        except TaskResultDoesNotExist:
            return True

    result = jobs.add.using(backend="brief").enqueue(1, 1)
    assert run(task_backends["brief"], 1)
    eventually(is_gone)


def test_a_result_that_is_not_there_is_said_to_be_none(backend: Any) -> None:
    from django.tasks.exceptions import TaskResultDoesNotExist, TaskResultMismatch

    from tests.ext import jobs

    for wrong in ("", "x" * 32, "x" * 5000, "../a", "\ud800", None, 7):
        with pytest.raises(TaskResultDoesNotExist):
            backend.get_result(wrong)
    result = jobs.add.enqueue(1, 1)
    with pytest.raises(TaskResultMismatch):
        jobs.fail.get_result(result.id)
    assert run(backend, 1)


def test_arguments_that_are_no_json_or_too_large_are_refused_at_once(backend: Any) -> None:
    from tests.ext import jobs

    for wrong, error in ((object(), TypeError), (b"\xff", ValueError), ("x" * 300_000, ValueError)):
        with pytest.raises(error):
            jobs.add.enqueue(wrong, 1)
    result = jobs.add.enqueue("\ud800\u2028", {1: (None, 1.5)})
    assert result.args == jobs.add.get_result(result.id).args == ["\ud800\u2028", {"1": [None, 1.5]}]
    assert run(backend, 1)
    result.refresh()
    assert result.status == "FAILED", "a str and a dict cannot be added"


def test_coroutines_enqueue_and_read(backend: Any) -> None:
    from tests.ext import jobs

    async def use() -> Any:
        result = await jobs.double.aenqueue(21)
        await asyncio.to_thread(run, backend, 1)
        await result.arefresh()
        return result.return_value, (await jobs.double.aget_result(result.id)).return_value

    assert asyncio.run(use()) == (42, 42)


def test_signals_are_sent_and_a_receiver_that_raises_does_no_harm(backend: Any) -> None:
    from django.tasks.signals import task_enqueued, task_finished, task_started

    from tests.ext import jobs

    told = []

    def receive(sender: type, task_result: Any, signal: Any, **kwargs: Any) -> None:
        told.append((signal, sender is type(backend), str(task_result.status)))
        if signal is not task_enqueued:
            raise ValueError("a receiver's own")

    signals = (task_enqueued, task_started, task_finished)
    for each in signals:
        each.connect(receive)
    try:
        jobs.add.enqueue(1, 1)
        assert run(backend, 1)
    finally:
        for each in signals:
            each.disconnect(receive)
    states = ("READY", "RUNNING", "SUCCESSFUL")
    assert told == [(each, True, state) for each, state in zip(signals, states, strict=True)]


def test_who_is_asked_to_stop_finishes_what_runs_and_leaves_the_rest(backend: Any) -> None:
    from tests.ext import jobs

    results = [jobs.wait.enqueue(), jobs.add.enqueue(1, 1)]
    with running(backend) as (worker, ended):
        eventually(lambda: jobs.ran)
        worker.is_asked_to_stop = True
        eventually(lambda: worker._is_stopping)
        assert not ended
        jobs.go_on.set()
    assert ended == [True]
    for each in results:
        each.refresh()
    assert [str(each.status) for each in results] == ["SUCCESSFUL", "READY"]
    assert run(backend, 1) and jobs.ran == ["waits", 2]


def test_what_runs_longer_than_the_grace_is_left_behind(backend: Any) -> None:
    from tests.ext import jobs

    result = jobs.wait.enqueue()
    with running(backend, grace=0.1) as (_, ended):
        eventually(lambda: jobs.ran)
    assert ended == [False]
    jobs.go_on.set()  # which the end of the process would not let it see
    eventually(lambda: (result.refresh(), result.is_finished)[1])


def test_a_task_that_hangs_is_given_to_another_and_its_worker_ends(backend: Any) -> None:
    from django.tasks import task_backends

    from tests.ext import jobs

    hasty = task_backends["hasty"]
    result = jobs.wait.using(backend="hasty").enqueue()
    with running(hasty) as (_, ended):
        eventually(lambda: ended)
    assert ended == [False]
    again = claims(hasty, "another")
    begun = again.begin(take(hasty))
    jobs.go_on.set()
    assert begun.id == result.id and again.finish(begun, done(None)) is not None
    result.refresh()
    assert result.attempts == 2 and result.worker_ids[1] == "another"


def test_a_full_store_refuses_more_and_finishes_what_it_has(backend: Any) -> None:
    from raftsvc.ext.django import kv
    from raftsvc.kv import QuotaExceeded, max_state_bytes
    from tests.ext import jobs

    results = [jobs.add.enqueue(1, 1), jobs.large.enqueue(5000)]
    kv.transaction([max_state_bytes(1)])
    try:
        with pytest.raises(QuotaExceeded):
            jobs.add.enqueue(2, 2)
        assert run(backend, 2)
    finally:
        kv.transaction([max_state_bytes(None)])
    for each in results:
        each.refresh()
    assert results[0].return_value == 2
    assert results[1].status == "FAILED" and "not kept" in results[1].errors[0].traceback


def test_a_full_store_has_room_for_each_attempt(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from raftsvc.ext.django import kv
    from raftsvc.kv import max_state_bytes
    from tests.ext import jobs

    monkeypatch.setattr(backend, "max_attempts", 5)
    result = jobs.add.enqueue(1, 1)
    kv.transaction([max_state_bytes(1)])
    opened = threading.Timer(60, lambda: kv.transaction([max_state_bytes(None)]))  # else this would never end
    opened.start()
    try:
        for number in range(5):
            claims(backend, f"{number}" + "x" * 77).begin(take(backend)).item.nack()
        assert opened.is_alive() and run(backend, 1)
    finally:
        opened.cancel()
        kv.transaction([max_state_bytes(None)])
    result.refresh()
    assert (result.status, result.attempts) == ("FAILED", 5)


def test_options_that_make_no_sense_are_refused() -> None:
    from raftsvc.ext.django.tasks import RaftBackend
    from raftsvc.ext.django.worker import Worker

    wrong: list[dict[str, Any]] = [
        {"OPTIONS": {name: value}}
        for name, value in (
            *(("result_ttl", 0), ("result_ttl", "1"), ("ttl", -1), ("time_limit", True), ("max_attempts", 0)),
            *(("max_attempts", True), ("wait", float("nan")), ("name", ""), ("no_such", 1)),
            *(("ttl", 0.9), ("ttl", 1e12), ("result_ttl", 1e-9), ("result_ttl", 1e12), ("time_limit", 1e-9)),
        )
    ]
    for params in (*wrong, {"QUEUES": ["x" * 200]}, {"QUEUES": ["a\n"]}):
        with pytest.raises(ImproperlyConfigured):
            RaftBackend("default", params)
    for options in ({"threads": 0}, {"threads": 1.0}, {"max_tasks": 0}, {"max_tasks": -1}):
        with pytest.raises(ValueError, match="a number from 1"):
            Worker(RaftBackend("default", {}), ["default"], **options)
    with pytest.raises(ValueError, match="no queue can be called"):
        Worker(RaftBackend("default", {"QUEUES": []}), ["x" * 101])


@pytest.mark.parametrize("options", [{"ttl": 0.1}, {"result_ttl": 0}, {"name": "x" * 101}, {"no_such": 1}])
def test_a_check_says_of_options_that_make_no_sense(backend: Any, options: dict[str, Any]) -> None:
    from raftsvc.ext.django.checks import check_tasks

    with override_settings(TASKS={"mail": {"BACKEND": BACKEND, "OPTIONS": options}, "other": {"BACKEND": "no.such"}}):
        (said,) = check_tasks(None)
    assert said.id == "raftsvc.E012"
    assert "mail" in said.msg and next(iter(options)) in said.msg
    with override_settings(TASKS=TASKS):
        assert check_tasks(None) == []


def test_names_may_be_of_any_alphabet() -> None:
    from django.tasks import task_backends
    from django.tasks.exceptions import InvalidTask

    from tests.ext import jobs

    name, other = "😀" * 100, "/" * 100
    params = {"BACKEND": BACKEND, "QUEUES": [], "OPTIONS": {"name": name}}
    with override_settings(TASKS={**TASKS, "any": params}):
        backend = task_backends["any"]
        due = jobs.add.using(backend="any", queue_name=other, run_after=datetime.now(timezone.utc))
        results = [jobs.add.using(backend="any", queue_name=name).enqueue(1, 1), due.enqueue(1, 2)]
        late = jobs.add.using(backend="any", queue_name=name, run_after=datetime.now(timezone.utc) + timedelta(days=1))
        late.enqueue(1, 3)
        assert run(backend, 2, name, other)
        assert [backend.get_result(each.id).return_value for each in results] == [2, 3]
        with pytest.raises(InvalidTask, match="at most 100 characters"):
            jobs.add.using(backend="any", queue_name="x" * 101)


def test_the_command_says_what_makes_no_sense(backend: Any) -> None:
    wrong = ({"queue": ["none"]}, {"backend": "immediate"}, {"backend": "none"}, {"threads": 0}, {"max_tasks": -1})
    for options in wrong:
        with pytest.raises(CommandError):
            call_command("raft_worker", **options)


def test_the_command_runs_tasks(backend: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.ext import jobs

    result = jobs.add.enqueue(1, 1)
    call_command("raft_worker", max_tasks=1)
    result.refresh()
    assert result.return_value == 2 and result.worker_ids[0] in capsys.readouterr().out


def test_a_check_says_that_the_command_is_not_there(backend: Any) -> None:
    assert list(backend.check()) == []
    with override_settings(INSTALLED_APPS=[]):
        assert [each.id for each in backend.check()] == ["raftsvc.W011"]


SETTINGS = """
SECRET_KEY = "a key of these tests"
INSTALLED_APPS = ["raftsvc.ext.django"]
"""
SLOW = """


@task
def slow(path):
    import os, pathlib, time
    with open(path, "a") as file:
        print(os.getpid(), file=file)
    while not pathlib.Path(path + ".end").exists():
        time.sleep(0.02)
"""
ENQUEUE = "from mysite.tasks import *; print(slow.enqueue('pids').id, welcome.enqueue(7).id)"


class Project:
    """As docs/tasks.md prints it, beside a node that this process has."""

    def __init__(self, folder: Path) -> None:
        printed = re.findall(r"```python\n# mysite/\w+.py\n(.*?)```", (ROOT / "docs/tasks.md").read_text(), re.DOTALL)
        (folder / "mysite").mkdir()
        options = 'TASKS["default"]["OPTIONS"] = {"ttl": 5.0}\n'
        (folder / "mysite/settings.py").write_text(SETTINGS + printed[0] + options)
        (folder / "mysite/tasks.py").write_text(printed[1] + SLOW)
        self.folder = folder
        addr = f"127.0.0.1:{free_port()}"
        node = {"RAFTSVC_ADDR": addr, "RAFTSVC_INITIAL_CLUSTER": addr, "RAFTSVC_DIR": str(folder / "node")}
        node["RAFTSVC_SECRET"] = "a secret of the tests, long enough"
        path = os.pathsep.join([str(ROOT), str(folder)])
        self.environ = {**os.environ, **node, "PYTHONPATH": path, "DJANGO_SETTINGS_MODULE": "mysite.settings"}
        self.store = start_from_env(node)
        self.workers: list[subprocess.Popen[bytes]] = []

    def work(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "django", "raft_worker", "--threads", "4"]
        self.workers.append(subprocess.Popen(command, env=self.environ, cwd=self.folder))
        return self.workers[-1]

    def enqueue(self) -> list[str]:
        command = [sys.executable, "-m", "django", "shell", "--verbosity", "0", "--command", ENQUEUE]
        said = subprocess.run(command, env=self.environ, cwd=self.folder, capture_output=True, text=True, timeout=120)
        assert said.returncode == 0, said.stderr
        return said.stdout.split()

    def record(self, task_id: str) -> dict[str, Any]:
        value = self.store.get(f"django/tasks/default/results/{task_id}")
        assert value is not None
        record: dict[str, Any] = json.loads(value.data)
        return record

    def pids(self) -> list[int]:
        path = self.folder / "pids"
        return [int(line) for line in path.read_text().splitlines()] if path.exists() else []

    def end(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait(60)
        self.store.service.stop()


@pytest.fixture
def a_project(tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path)
    yield made
    made.end()


@pytest.mark.processes
def test_what_a_killed_worker_had_is_begun_by_another_which_ends_in_order(a_project: Project) -> None:
    slow, welcome = a_project.enqueue()
    first = a_project.work()
    eventually(a_project.pids)
    eventually(lambda: a_project.record(welcome)["status"] == "SUCCESSFUL")
    second = a_project.work()
    first.kill()
    eventually(lambda: len(a_project.pids()) == 2)
    assert a_project.pids() == [first.pid, second.pid]
    second.send_signal(signal.SIGTERM)
    (a_project.folder / "pids.end").touch()
    assert second.wait(60) == 0
    record = a_project.record(slow)
    assert (record["status"], len(record["workers"])) == ("SUCCESSFUL", 2)
    assert (a_project.record(welcome)["value"], len(a_project.record(welcome)["workers"])) == ("welcome, 7", 1)
