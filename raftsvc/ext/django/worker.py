"""What runs tasks: `manage.py raft_worker`.

A worker has some threads for each of its queues.  A thread is handed out an item of the queue, chooses the most urgent
task that is ready (`Claims.begin`), runs it, and has what came of it kept in the instruction that does away with the
item.  Each of these steps is one instruction under the condition that the item is still this worker's, so whoever was
stopped, or cut off, and goes on when another has the task changes nothing any more.

A task that was begun and whose worker died is begun anew by another once the item is handed out again; each time counts
as an attempt.  What raises has failed, and is not tried again.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from traceback import format_exception
from typing import Any, Final, NamedTuple

from django.db import close_old_connections, connections, reset_queries
from django.tasks import TaskContext, TaskResult, TaskResultStatus
from django.tasks.signals import task_finished, task_started
from django.utils.crypto import get_random_string
from django.utils.json import normalize_json

from raftsvc.errors import InstructionTooLargeError, RaftError
from raftsvc.ext.django.node import start
from raftsvc.ext.django.tasks import (
    ATTEMPT_BYTES,
    ATTEMPTS_WITH_ROOM,
    RaftBackend,
    Record,
    dump,
    encoded,
    found_task,
    is_name,
    read,
)
from raftsvc.kv import (
    ConflictError,
    LostError,
    Operation,
    QuotaExceeded,
    delete,
    if_held,
    if_not_exists,
    if_not_modified,
)
from raftsvc.kv import set as set_effect
from raftsvc.kv.leases import may_pass
from raftsvc.recipes import Item

logger = logging.getLogger("raftsvc.ext")

_CHOICE: Final = 16
"""So many of what is ready are looked at at once."""
_FRESH_SECONDS: Final = 1.0
"""What is as old is good enough where the instruction that follows would be refused if it had changed."""
_GET_SECONDS: Final = 30.0
_PAUSE_SECONDS: Final = 0.2
_RETRY_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 0.25
_MISSING_SECONDS: Final = 10.0
_MAX_TRACEBACK: Final = 16 * 1024
_MAX_THREADS: Final = 1000

_current: ContextVar[Item] = ContextVar("raftsvc.ext.django.worker.current")


class TaskAbandonedError(Exception):
    """What a result's error is where the task itself raised nothing: its text says what became of it."""


class Begun(NamedTuple):
    """A task that this worker has.  over: why it is not to be run; empty: it is."""

    item: Item
    id: str
    record: Record
    over: str = ""


class Claims:
    """The choreography of one queue: each method is an instruction, asked as often as it takes while the item is held.

    worker: in the record of whatever it begins.
    """

    def __init__(self, backend: RaftBackend, queue: str, worker: str) -> None:
        self._backend = backend
        self._queue = queue
        self._worker = worker
        self._choosing: set[str] = set()  # keys of what is ready that another thread of this process is about to begin
        self._lock = threading.Lock()  # guards `_choosing`

    def begin(self, item: Item) -> Begun | None:
        """Have the task that the item stands for, or else the most urgent one; None: there is none.

        Raises LostError if the item is another's, and RaftError where it is not worth asking again.
        """
        while True:
            item.ensure_held()
            try:
                known = start().get(self._backend.begun_key(self._queue, item.id), self._backend.wait)
                return self._choose(item) if known is None else self._go_on(item, known.data)
            except ConflictError:
                continue
            except RaftError as error:
                if not may_pass(error) and not isinstance(error, QuotaExceeded):
                    raise
                logger.warning("a task of queue %r cannot be begun; it is tried again: %s", self._queue, error)
                item.lost.wait(_RETRY_SECONDS)

    def finish(self, begun: Begun, changes: Record) -> Record | None:
        """Have that be what came of it; returns its record, None if it is another's by now and nothing was changed.

        Raises RaftError where it is not worth asking again.
        """
        record = {**begun.record, "finished": time.time(), **changes}
        done = delete(self._backend.begun_key(self._queue, begun.item.id))
        while True:
            kept = set_effect(self._backend.result_key(begun.id), dump(record), ttl=self._backend.result_ttl)
            try:
                begun.item.ack(kept, done, timeout=self._backend.wait)
                return record
            except LostError:
                return None
            except (QuotaExceeded, InstructionTooLargeError) as error:
                logger.error("what came of task %s cannot be kept: %s", begun.id, error)
                record = {
                    **begun.record,
                    "finished": record["finished"],
                    **abandoned(f"its result was not kept: {error}"),
                }
            except RaftError as error:
                if not may_pass(error):
                    raise
                logger.warning("what came of task %s is not kept yet; it is tried again: %s", begun.id, error)
            if begun.item.lost.wait(_PAUSE_SECONDS):
                return None

    def _choose(self, item: Item) -> Begun | None:
        """Have the item stand for the first of what is ready.  Raises ConflictError if it stands for something."""
        prefix = self._backend.ready_prefix(self._queue)
        mine = self._backend.begun_key(self._queue, item.id)
        ready = start().list(prefix, self._backend.wait, limit=_CHOICE, max_age=_FRESH_SECONDS)
        while ready or (ready := start().list(prefix, self._backend.wait, limit=_CHOICE)):
            for key, value in ready.items():
                with self._chosen(key) as is_ours:
                    if not is_ours:
                        continue
                    # Late, after it was not known whether it came about, it must not have the item stand for another.
                    task_id = key.rsplit("/", 1)[1]
                    bound = [if_not_exists(mine), if_not_modified(key, value.version)]
                    room = b" " * (ATTEMPT_BYTES * (min(self._backend.max_attempts, ATTEMPTS_WITH_ROOM) - 1))
                    begun = [*bound, delete(key), set_effect(mine, task_id.encode() + room)]
                    try:
                        return self._run_from_now(item, task_id, *begun, gone=[*bound, delete(key)])
                    except ConflictError as error:
                        if error.key == mine:
                            raise
            item.ensure_held()
            item.lost.wait(_PAUSE_SECONDS / 10)  # others begin all that was seen
            ready = {}
        logger.warning("an item of queue %r stands for no task: keys below django/tasks/ were deleted", self._queue)
        item.ack(if_not_exists(mine), timeout=self._backend.wait)
        return None

    def _go_on(self, item: Item, begun: bytes) -> Begun | None:
        """Who had the item died, was cut off, or does not know that he had begun."""
        mine = self._backend.begun_key(self._queue, item.id)
        task_id = begun.split()[0]
        less = set_effect(mine, task_id + begun[len(task_id) : -ATTEMPT_BYTES])
        return self._run_from_now(item, task_id.decode(), less, gone=[delete(mine)], is_anew=True)

    def _run_from_now(
        self, item: Item, task_id: str, *operations: Operation, gone: Sequence[Operation], is_anew: bool = False
    ) -> Begun | None:
        """Have its record say so.

        operations: what else is done; gone: what is done away with, beside the item, if there is no such task.
        is_anew:    the item stands for it, which was begun before.
        """
        key = self._backend.result_key(task_id)
        value = start().get(key, self._backend.wait)
        record = None if value is None else read(value.data)
        if (
            value is None or record is None or "finished" in record
        ):  # of an export; or begun by another, which is a conflict
            item.ack(*gone, timeout=self._backend.wait)
            logger.error("task %s of queue %r is gone, finished or unreadable: it is not run", task_id, self._queue)
            return None
        hold = [item.id, item.fence]  # the fence alone rises for each item by itself
        if record.get("hold") == hold:
            return Begun(item, task_id, record)
        # What was ready when it was seen may be begun by another since: the operations say, and nothing else does.
        if is_anew and len(record.get("workers", ())) >= self._backend.max_attempts:
            return Begun(
                item, task_id, record, f"it was begun {len(record['workers'])} times, and never came to its end"
            )
        now = time.time()
        record.setdefault("started", now)
        record.update(
            status=TaskResultStatus.RUNNING.value,
            attempted=now,
            hold=hold,
            workers=[*record.get("workers", ()), self._worker],
        )
        changes = [if_held(item), *operations, if_not_modified(key, value.version), set_effect(key, dump(record))]
        start().transaction(changes, self._backend.wait)
        return Begun(item, task_id, record)

    @contextmanager
    def _chosen(self, key: str) -> Iterator[bool]:
        """Whether no other thread of this process is about to begin that."""
        with self._lock:
            is_ours = key not in self._choosing
            self._choosing.add(key)
        try:
            yield is_ours
        finally:
            if is_ours:
                with self._lock:
                    self._choosing.discard(key)


class Worker:
    """Runs tasks of some queues, in threads of its own, until it is told to stop.

    id: in the results of what it ran.
    """

    def __init__(
        self, backend: RaftBackend, queues: Sequence[str], threads: int = 1, max_tasks: int | None = None
    ) -> None:
        """Starts nothing.

        threads:   so many tasks of each queue at once, at most 1,000.
        max_tasks: it ends after so many; None: it does not.

        Raises ValueError.
        """
        for name in queues:
            if not is_name(name):
                raise ValueError(f"no queue can be called {name!r:.200}")
        for each, most in ((threads, _MAX_THREADS), (1 if max_tasks is None else max_tasks, 2**31)):
            if type(each) is not int or not 0 < each <= most:
                raise ValueError(f"that is a number from 1 to {most}, not {each!r:.100}")
        self.id = f"{socket.gethostname()[:60]}-{os.getpid()}-{get_random_string(8)}"
        self.is_asked_to_stop = False
        """Set by a handler of signals, which has to do nothing else."""
        self._backend = backend
        self._claims = {queue: Claims(backend, queue, self.id) for queue in queues}
        self._count = threads
        self._left = max_tasks
        self._lock = threading.Lock()  # guards what follows
        self._busy: dict[int, tuple[Item, float]] = {}  # by thread, since when
        self._is_stopping = False
        self._failure: BaseException | None = None

    def run(self, grace: float = 30.0) -> bool:
        """Until it is asked to stop, or has run as many as it may; whether nothing was left behind, running.

        grace: in seconds: so long it waits for what runs when it is asked to stop.

        Raises what keeps it from going on.  Threads that run something yet are left behind, and have to be ended by the
        end of the process; others have these tasks then, after the backend's `ttl`.
        """
        threads = [
            threading.Thread(target=self._serve, args=(queue, claims), name=f"raftsvc-task-{number}", daemon=True)
            for queue, claims in self._claims.items()
            for number in range(self._count)
        ]
        due = threading.Thread(target=self._make_due, name="raftsvc-tasks-due", daemon=True)
        for thread in (*threads, due):
            thread.start()
        ends_at: float | None = None
        while True:
            time.sleep(_LOOK_SECONDS)
            hangs = self._hangs()
            if ends_at is None and (self.is_asked_to_stop or hangs or self._failure is not None):
                ends_at = time.monotonic() + grace
            with self._lock:
                self._is_stopping |= ends_at is not None or self._left == 0
                is_over = self._is_stopping and len(self._busy) <= hangs
                if not is_over and (ends_at is None or time.monotonic() < ends_at):
                    continue
                if self._failure is not None:
                    raise self._failure
                return not self._busy

    def _hangs(self) -> int:
        """How many threads run what others may have by now, because it took too long."""
        limit = self._backend.time_limit
        if limit is None:
            return 0
        with self._lock:
            late = [item for item, since in self._busy.values() if time.monotonic() > since + limit + _RETRY_SECONDS]
        return sum(item.lost.is_set() for item in late)

    def _serve(self, queue: str, claims: Claims) -> None:
        """What a thread does."""
        try:
            while not self._is_stopping and self._left != 0:
                item = self._next(queue)
                if item is None:
                    continue
                if not self._is_taken(item):
                    item.nack()
                    return
                try:
                    self._attend(claims, item)
                finally:
                    with self._lock:
                        del self._busy[threading.get_ident()]
        except BaseException as error:
            with self._lock:
                if not self._is_stopping:
                    self._failure = self._failure or error
        finally:
            connections.close_all()

    def _next(self, queue: str) -> Item | None:
        try:
            return self._backend.queue(queue).get(timeout=_GET_SECONDS)
        except RaftError as error:
            if self._is_stopping or not (may_pass(error) or isinstance(error, QuotaExceeded)):
                raise
            logger.warning("queue %r cannot be asked; it is tried again: %s", queue, error)
            time.sleep(_RETRY_SECONDS)
            return None

    def _is_taken(self, item: Item) -> bool:
        """Whether this thread may attend to it; from then on it counts as one that runs something."""
        with self._lock:
            if self._is_stopping or self._left == 0:
                return False
            if self._left is not None:
                self._left -= 1
            self._busy[threading.get_ident()] = item, time.monotonic()
            return True

    def _attend(self, claims: Claims, item: Item) -> None:
        """Run what the item stands for.  Raises what keeps this worker from going on."""
        try:
            begun = claims.begin(item)
            if begun is not None:
                self._run(claims, begun)
        except LostError as error:
            logger.warning("a task was begun too late, and another worker has it: %s", error)

    def _run(self, claims: Claims, begun: Begun) -> None:
        path = begun.record["func"]
        task = found_task(path)
        result = self._backend.result_of(begun.id, begun.record, task)
        error: BaseException | None = None
        if begun.over:
            changes = abandoned(begun.over)
        elif task is None:
            changes = abandoned(f"this worker has no task {path!r}: its code is another, or cannot be imported")
        else:
            task_started.send_robust(type(self._backend), task_result=result)
            token = _current.set(begun.item)
            try:
                changes = _succeeded(_called(result))
            except BaseException as raised:  # sys.exit() too: it is the task that ends by it, and no worker
                if begun.item.lost.is_set():  # which may be all that it raised for
                    logger.warning("task %s is given back, for it was lost here before it raised %r", begun.id, raised)
                    begun.item.nack()
                    return
                error, changes = raised, _failed(raised)
            finally:
                _current.reset(token)
        record = claims.finish(begun, changes)
        if record is None:
            logger.warning("task %s took too long, or was cut off: another worker has it, or had", begun.id)
            return
        _tell_finished(type(self._backend), self._backend.result_of(begun.id, record, task), error)

    def _make_due(self) -> None:
        """What one more thread does: the next look is in a second, and for what lacks an item in some."""
        seen: dict[str, dict[str, int]] = {queue: {} for queue in self._claims}
        looks_at = dict.fromkeys(self._claims, 0.0)
        while not self._is_stopping:
            for queue in self._claims:
                try:
                    self._backend.make_due(queue, time.time())
                    if time.monotonic() >= looks_at[queue]:
                        looks_at[queue] = time.monotonic() + _MISSING_SECONDS
                        seen[queue] = self._backend.put_missing(queue, seen[queue])
                except RaftError as error:
                    if not self._is_stopping:
                        logger.debug("what is due of queue %r cannot be asked for: %s", queue, error)
                except Exception:
                    logger.exception("what is due of queue %r cannot be run", queue)
            time.sleep(_RETRY_SECONDS)


def current_claim() -> Item:
    """What the task that runs here has: `kv.if_held(current_claim())` is a condition for a transaction.

    Its `lost` is an event: another worker has the task, or will.

    Raises LookupError where no worker runs a task.
    """
    return _current.get()


def abandoned(said: str) -> Record:
    """What is kept of a task that raised nothing, and has failed."""
    path = f"{TaskAbandonedError.__module__}.{TaskAbandonedError.__qualname__}"
    return {"status": TaskResultStatus.FAILED.value, "errors": [[path, f"{path}: {said}\n"]]}


def _called(result: TaskResult) -> Any:
    """What the function returns, with the connections of databases looked after as between requests."""
    reset_queries()
    close_old_connections()
    try:
        task = result.task
        context = (TaskContext(task_result=result),) if task.takes_context else ()
        return task.call(*context, *result.args, **result.kwargs)
    finally:
        close_old_connections()


def _succeeded(value: object) -> Record:
    """Raises ValueError or TypeError for what is no JSON, or too large."""
    kept = json.loads(encoded(normalize_json(value), "what a task returns"))
    return {"status": TaskResultStatus.SUCCESSFUL.value, "value": kept}


def _failed(error: BaseException) -> Record:
    text = "".join(format_exception(error))
    if len(text) > _MAX_TRACEBACK:
        text = f"{text[: _MAX_TRACEBACK // 2]}\n[...]\n{text[-_MAX_TRACEBACK // 2 :]}"
    path = f"{type(error).__module__}.{type(error).__qualname__}"
    return {"status": TaskResultStatus.FAILED.value, "errors": [[path, text]]}


def _tell_finished(sender: type, result: TaskResult, error: BaseException | None) -> None:
    if error is None:
        task_finished.send_robust(sender, task_result=result)
        return
    try:
        raise error
    except BaseException:  # Django's own receiver logs what is being handled
        task_finished.send_robust(sender, task_result=result)
