"""Tasks of Django 6, kept by the cluster and run by `manage.py raft_worker`.

    TASKS = {"default": {"BACKEND": "raftsvc.ext.django.tasks.RaftBackend", "OPTIONS": {"result_ttl": 3600}}}

A task is on the disks of a majority when `enqueue` returns.  It is begun by at least one worker, and one has it at a
time; what comes of it is kept once, by whoever has it then.  Arguments and what is returned are JSON.

What a backend keeps is below `django/tasks/NAME/`:

    results/ID                            the record of a task, from when it is enqueued; it has a time to live once it
                                          is finished
    queues/QUEUE/later/DUE/RANK/ID        is not to be run before it is due
    queues/QUEUE/ready/RANK/ID            may be run; by its rank the most urgent is the first of these
    queues/QUEUE/begun/ITEM               the task, by its id, for which an item of the queue stands, and room

and for all that is ready or begun there is an item, which says nothing, in a queue of the store (`raftsvc.recipes`) of
the same name.  A worker is handed out an item and chooses a task for it, and they belong together from then on: whoever
is handed out the same item again goes on with that task.  So the queue has workers wait and wakes one, takes from who
died what he had, and gives the fence by which what is late is refused; and the names of keys have the order.

Invariant: a queue has as many items as keys that are ready or begun; but keys that were imported from elsewhere have
none until a worker puts them (`put_missing`), and an item too many stands for no task, and is done away with.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from datetime import datetime, timezone
from typing import Any, Final

try:
    from django.tasks import Task, TaskResult, TaskResultStatus
    from django.tasks.backends.base import BaseTaskBackend
    from django.tasks.base import TASK_MAX_PRIORITY, TaskError
    from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist
    from django.tasks.signals import task_enqueued
except ImportError as error:
    raise ImportError(
        "tasks are new in Django 6.0, and need it: pip install 'django>=6', on Python 3.12 or later"
    ) from (error)
from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage
from django.core.checks import Warning as CheckWarning
from django.core.exceptions import ImproperlyConfigured
from django.utils import timezone as clock
from django.utils.crypto import get_random_string
from django.utils.json import normalize_json
from django.utils.module_loading import import_string

from raftsvc.errors import OutcomeUnknown
from raftsvc.ext.django.node import start
from raftsvc.ext.parts import as_part
from raftsvc.kv import ConflictError, Effect, Operation, delete, if_not_modified
from raftsvc.kv import set as set_effect
from raftsvc.recipes import Queue

logger = logging.getLogger("raftsvc.ext")

PREFIX: Final = "django/tasks/"
"""All that backends have is below it."""
MAX_ARGUMENT_BYTES: Final = 256 * 1024
"""Of a task's arguments together, and of what it returns, as JSON."""
_ID_LENGTH: Final = 32
_ID: Final = re.compile(rf"[A-Za-z0-9]{{{_ID_LENGTH}}}")
_MAX_NAME: Final = 100
_WAIT_SECONDS: Final = 5.0
_LEAST_TTL_SECONDS: Final = 1.0
_SHORTEST_SECONDS: Final = 0.001
_LONGEST_SECONDS: Final = 100 * 365 * 24 * 3600.0
_DUE_AT_ONCE: Final = 50
_NEEDED: Final = {"func", "priority", "queue", "run_after", "status", "enqueued", "args", "kwargs"}
ATTEMPT_BYTES: Final = 128
"""By so much at most a record grows each time that its task is begun anew."""
ATTEMPTS_WITH_ROOM: Final = 5
_ROOM: Final = b" " * (512 + (ATTEMPTS_WITH_ROOM - 1) * ATTEMPT_BYTES)
"""In what is ready, so that all together never grows when a task is begun: that must go on where the store is full."""

Record = dict[str, Any]
"""What is kept of a task, which is JSON; moments are seconds since 1970."""


class RaftBackend(BaseTaskBackend):
    """See the head of `raftsvc.ext.django.tasks`.  Every method is thread-safe and may raise RaftError.

    Those whose names begin by `a` do the same in a thread.
    """

    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        """Asks nobody, and starts nothing.

        params: as Django's; of OPTIONS
                name:         backends of the same, in whatever project, have the same tasks; the alias unless said.
                result_ttl:   in seconds, how long what came of a task is kept; a day unless said; None: for ever.
                ttl:          in seconds: so long after a worker died others have what it had; 15 unless said.
                time_limit:   in seconds: nobody has a task for longer; None, unless said: as long as its worker lives.
                max_attempts: a task that was begun so often and never finished has failed; 5 unless said.
                wait:         in seconds, how long a call may take; 5 unless said.

        Raises ImproperlyConfigured.
        """
        super().__init__(alias, params)
        options = dict(self.options or {})
        self.name = str(options.pop("name", alias))
        self.result_ttl = _seconds("result_ttl", options.pop("result_ttl", 86400.0))
        self.ttl = _seconds("ttl", options.pop("ttl", 15.0), _LEAST_TTL_SECONDS) or 15.0
        self.time_limit = _seconds("time_limit", options.pop("time_limit", None))
        self.max_attempts = options.pop("max_attempts", 5)
        self.wait = _seconds("wait", options.pop("wait", None)) or _WAIT_SECONDS
        if type(self.max_attempts) is not int or not 0 < self.max_attempts <= 1000:
            raise ImproperlyConfigured(f"max_attempts is a number from 1 to 1000, not {self.max_attempts!r:.100}")
        if options:
            raise ImproperlyConfigured(f"there are no such OPTIONS of a backend of tasks: {', '.join(sorted(options))}")
        for each in (self.name, *self.queues):
            if not is_name(each):
                raise ImproperlyConfigured(f"a name is a text of at most {_MAX_NAME} characters, not {each!r:.200}")
        self._below = f"{PREFIX}{as_part(self.name)}/"

    def enqueue(self, task: Task, args: Iterable[Any], kwargs: Mapping[str, Any]) -> TaskResult:
        """Have it run once, by whichever worker, not before its `run_after`.

        It is durable when this returns.  Nothing is known of transactions of a database: see `on_commit` of Django's.

        Raises ValueError or TypeError for arguments that are no JSON, or too large, and RaftError.  After
        OutcomeUnknown, whose notes have the id, it may be enqueued, and to do so again makes two.
        """
        self.validate_task(task)
        now = clock.now().timestamp()
        given = encoded([normalize_json(list(args)), normalize_json(dict(kwargs))], "the arguments of a task")
        given_args, given_kwargs = json.loads(given)
        run_after = None if task.run_after is None else task.run_after.timestamp()
        record: Record = {
            "func": task.module_path,
            "priority": int(task.priority),
            "queue": task.queue_name,
            "run_after": run_after,
            "status": TaskResultStatus.READY.value,
            "enqueued": now,
            "args": given_args,
            "kwargs": given_kwargs,
        }
        task_id = get_random_string(_ID_LENGTH)
        kept = set_effect(self.result_key(task_id), dump(record))
        rank = _rank(record["priority"], now if run_after is None else max(now, run_after))
        try:
            if run_after is None or run_after <= now:
                self.queue(task.queue_name).put(
                    b"", kept, self._ready(task.queue_name, rank, task_id), timeout=self.wait
                )
            else:
                later = f"{self._of(task.queue_name, 'later')}{_moment(run_after)}/{rank}/{task_id}"
                start().transaction([kept, set_effect(later, b"")], self.wait)
        except OutcomeUnknown as error:
            if hasattr(error, "add_note"):
                error.add_note(f"if it was enqueued, the task's id is {task_id}")
            raise
        result = self.result_of(task_id, record, task)
        task_enqueued.send(type(self), task_result=result)
        return result

    def get_result(self, result_id: str) -> TaskResult:
        """What is known of it, as of a moment no earlier than this call.

        Raises TaskResultDoesNotExist if nothing is, or nothing any more, and RaftError.
        """
        if not isinstance(result_id, str) or not _ID.fullmatch(result_id):
            raise TaskResultDoesNotExist(result_id)
        value = start().get(self.result_key(result_id), self.wait)
        if value is None:
            raise TaskResultDoesNotExist(result_id)
        record = read(value.data)
        if record is None:
            raise TaskResultDoesNotExist(result_id)
        return self.result_of(result_id, record, found_task(record["func"]))

    def validate_task(self, task: Task) -> None:
        """As Django's.  Raises InvalidTask, too, for a queue of any name whose name is too long."""
        super().validate_task(task)
        if not is_name(task.queue_name):
            raise InvalidTask(f"the name of a queue has at most {_MAX_NAME} characters, not {task.queue_name!r:.200}")

    def check(self, **kwargs: Any) -> Iterable[CheckMessage]:
        """For `manage.py check`: raftsvc.W011 where the command of the workers is not there."""
        if not apps.is_installed("raftsvc.ext.django"):
            yield CheckWarning(
                f"Nobody runs the tasks of {self.alias!r}: INSTALLED_APPS has no 'raftsvc.ext.django'.",
                hint="Add it, for `manage.py raft_worker`.",
                id="raftsvc.W011",
            )

    # -- for workers

    def queue(self, name: str) -> Queue:
        """Of the store: for each task of the queue that is ready or begun it has an item."""
        return start().queue(f"{self._below}{as_part(name)}", ttl=self.ttl, within=self.time_limit)

    def result_key(self, task_id: str) -> str:
        """Of the record of a task."""
        return f"{self._below}results/{task_id}"

    def ready_prefix(self, queue: str) -> str:
        """Of the keys of what may be run, the most urgent first; they end by the id."""
        return self._of(queue, "ready")

    def begun_key(self, queue: str, item: int) -> str:
        """Of what says which task that item stands for."""
        return f"{self._of(queue, 'begun')}{item:016x}"

    def make_due(self, queue: str, now: float) -> float | None:
        """Have those tasks run that are due; when the next one is, if that is known.

        now: in seconds since 1970; it may be another worker that does it at the same time.

        Raises RaftError.
        """
        prefix = self._of(queue, "later")
        store = start()
        while True:
            found = store.list(prefix, self.wait, limit=_DUE_AT_ONCE, max_age=1.0)
            due = [key for key in found if _seconds_of(key[len(prefix) :]) <= now]
            if not due:
                return min((_seconds_of(key[len(prefix) :]) for key in found), default=None)
            operations = []
            for key in due:
                _, rank, task_id = key[len(prefix) :].split("/")
                operations += [if_not_modified(key, found[key].version), delete(key)]
                operations += [self._ready(queue, rank, task_id)]
            try:
                self.queue(queue).put_many([b""] * len(due), *operations, timeout=self.wait)
            except ConflictError:
                return now  # another worker did some of it

    def put_missing(self, queue: str, seen: Mapping[str, int]) -> dict[str, int]:
        """Have there be an item for what is ready or begun and has none, as keys have that were imported.

        Of what is ready that is a guess: nobody had begun it since the last look, though no item was left over.  If an
        item was on its way there is one too many, which does no harm.  What is begun has none for certain: there was
        none at all after it was seen, and what does away with an item does away with it too.

        seen: what this returned the last time, some seconds ago: what was ready, and which version.

        Raises RaftError.
        """
        store, items = start(), self.queue(queue)
        if items.counts(self.wait)[0]:
            return {}
        ready = store.list(self.ready_prefix(queue), self.wait, limit=_DUE_AT_ONCE)
        begun = store.list(self._of(queue, "begun"), self.wait, limit=_DUE_AT_ONCE)
        operations: list[Operation] = []
        count = 0
        for key, value in ready.items():
            if seen.get(key) == value.version:
                operations += [if_not_modified(key, value.version), set_effect(key, _ROOM)]
                count += 1
        if begun and items.counts(self.wait) == (0, 0):
            for key, value in begun.items():
                operations += [if_not_modified(key, value.version), delete(key)]
                again = self._again(queue, value.data.partition(b" ")[0].decode(errors="replace"))
                operations += again
                count += len(again)
        if operations:
            logger.warning("queue %r has keys of tasks that no item stood for, imported ones: they get one", queue)
            try:
                if count:
                    items.put_many([b""] * count, *operations, timeout=self.wait)
                else:
                    store.transaction(operations, self.wait)
            except ConflictError:
                return {}  # another worker did some of it
        return {key: value.version for key, value in ready.items()}

    def _again(self, queue: str, task_id: str) -> list[Effect]:
        """What has a task be ready that was begun; nothing where there is no such task."""
        value = start().get(self.result_key(task_id), self.wait)
        record = None if value is None else read(value.data)
        if record is None:
            return []
        moment = record["enqueued"] if record["run_after"] is None else max(record["enqueued"], record["run_after"])
        return [self._ready(queue, _rank(record["priority"], moment), task_id)]

    def result_of(self, task_id: str, record: Record, task: Task | None) -> TaskResult:
        """As Django has it; task: None: there is no such function any more, and one stands for it that says so."""
        given = {
            "priority": record["priority"],
            "queue_name": record["queue"],
            "run_after": _datetime(record["run_after"]),
            "backend": self.alias,
        }
        result = TaskResult(
            task=_task_with(self.task_class, task, record["func"], given),
            id=task_id,
            status=TaskResultStatus(record["status"]),
            enqueued_at=_datetime(record["enqueued"]),
            started_at=_datetime(record.get("started")),
            finished_at=_datetime(record.get("finished")),
            last_attempted_at=_datetime(record.get("attempted")),
            args=record["args"],
            kwargs=record["kwargs"],
            backend=self.alias,
            errors=[TaskError(exception_class_path=path, traceback=text) for path, text in record.get("errors", ())],
            worker_ids=list(record.get("workers", ())),
        )
        object.__setattr__(result, "_return_value", record.get("value"))
        return result

    def _of(self, queue: str, kind: str) -> str:
        return f"{self._below}queues/{as_part(queue)}/{kind}/"

    def _ready(self, queue: str, rank: str, task_id: str) -> Effect:
        return set_effect(f"{self.ready_prefix(queue)}{rank}/{task_id}", _ROOM)


def is_name(text: object) -> bool:
    """Whether a backend or a queue may be called that."""
    return isinstance(text, str) and 0 < len(text) <= _MAX_NAME and text.isprintable()


def encoded(value: object, what: str) -> bytes:
    """As JSON.  Raises ValueError if it is too large, TypeError or ValueError if it cannot be."""
    data = json.dumps(value, separators=(",", ":")).encode()
    if len(data) > MAX_ARGUMENT_BYTES:
        raise ValueError(f"{what} may have {MAX_ARGUMENT_BYTES} bytes as JSON, and not {len(data)}")
    return data


def dump(record: Record) -> bytes:
    """For the store."""
    return json.dumps(record, separators=(",", ":")).encode()


def read(data: bytes) -> Record | None:
    """What `dump` made; None of anything else."""
    try:
        record = json.loads(data)
    except ValueError:
        return None
    is_one = isinstance(record, dict) and isinstance(record.get("func"), str) and record.keys() >= _NEEDED
    return record if is_one else None


def found_task(path: str) -> Task | None:
    """The one that is there by that name; None if there is none: the code may be another than when it was enqueued.

    Nor is there one where its module raises something: workers would end by it, each that has the task.
    """
    try:
        found = import_string(path)
    except Exception as error:
        logger.warning("task %r cannot be imported: %r", path, error)
        return None
    return found if isinstance(found, Task) else None


def _task_with(task_class: type, task: Task | None, path: str, given: Mapping[str, Any]) -> Task:
    """A task with other values, and not judged anew: settings may be others than when it was enqueued."""
    made: Any = object.__new__(task_class if task is None else type(task))
    for each in fields(made):
        if each.name in given:
            value = given[each.name]
        elif task is not None:
            value = getattr(task, each.name)
        else:
            value = _missing(path) if each.default is MISSING else each.default
        object.__setattr__(made, each.name, value)
    return made


def _missing(path: str) -> Any:
    """In the place of a function that is not there any more, and by its name."""

    def missing(*args: object, **kwargs: object) -> None:
        raise ImportError(f"there is no task {path!r} any more")

    missing.__module__, _, missing.__name__ = path.rpartition(".")
    missing.__qualname__ = missing.__name__
    return missing


def _rank(priority: int, moment: float) -> str:
    """Text that is the lower the more urgent a task is, and, of two as urgent, the older."""
    return f"{TASK_MAX_PRIORITY - priority:03d}-{_moment(moment)}"


def _moment(seconds: float) -> str:
    """Text in the order of time, of microseconds."""
    return f"{max(round(seconds * 1_000_000), 0):018d}"


def _seconds_of(moment: str) -> float:
    return int(moment.split("/", 1)[0]) / 1_000_000


def _datetime(moment: float | None) -> datetime | None:
    """As the project has them: aware, or naive by its time zone."""
    if moment is None:
        return None
    aware = datetime.fromtimestamp(moment, timezone.utc)
    return aware if settings.USE_TZ else clock.make_naive(aware, clock.get_default_timezone())


def _seconds(name: str, value: Any, least: float = _SHORTEST_SECONDS) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= _LONGEST_SECONDS:
        raise ImproperlyConfigured(
            f"{name} is a number of seconds from {least:g} to {_LONGEST_SECONDS:.0f}, or None, not {value!r:.100}"
        )
    return float(value)
