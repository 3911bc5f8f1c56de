"""Takeovers that do not go smoothly: nobody is served by two nodes, or by none that could serve, and none is stuck."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import raftsvc
import raftsvc.attached.worker as worker_module
from raftsvc.attached.frames import Decoder
from raftsvc.attached.heir import Heir
from raftsvc.attached.participant import AttachedNode
from raftsvc.errors import NodeFailedError, OutcomeUnknown, ReadTimeoutError
from raftsvc.keys import fingerprint
from raftsvc.kv import KeyValue, KeyValueState
from raftsvc.member.attachment import IS_UNLIKE, Prepare, Prepared, Wait
from raftsvc.member.node import Node
from raftsvc.storage import Ahead, Files
from tests.attached.hosts import eventually, free_port
from tests.attached.remote import Remote
from tests.pulse import Pulse

pytestmark = pytest.mark.processes

SECRET = "a secret of the tests, long enough"
NODE_THREADS = ("raftsvc-ticker", "raftsvc-log", "raftsvc-apply")
OTHER_THREADS = ("raftsvc-workers", "raftsvc-listener")


class State(KeyValueState):
    """As the other processes have it."""

    def state_version(self) -> int:
        return 1

    def use_version(self, version: int) -> None:
        pass


class Here:
    """This process, attached to another one."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        self.directory = path / "data"
        self.addr = f"127.0.0.1:{free_port()}"
        self.others: list[Remote] = []
        self.owner = self.start_other()
        self.owner.call("service.init")
        state = State()
        options = {"listen": self.addr, "election_timeout": 0.5, "max_waiting": 0, "secret": SECRET, **options}
        self.service = raftsvc.start(self.addr, self.directory, state=state, **options)
        self.kv = KeyValue(self.service, state)
        assert self.kv.incr("key") == 1

    def start_other(self) -> Remote:
        log = self.path / f"log-{len(self.others)}"
        other = Remote(log, laddr=self.addr, dir=str(self.directory), election_timeout=0.5)
        self.others.append(other)
        return other

    @property
    def owner_pid(self) -> object:
        process = self.service.status()["process"]
        assert isinstance(process, dict)
        return process["owner_pid"]

    def is_locked(self) -> bool:
        fd = os.open(self.directory, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(fd)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    here = Here(tmp_path)
    try:
        yield here
    finally:
        here.service.stop()
        for other in here.others:
            other.end()


class Failing:
    """Threads of that name cannot be started, as long as it is armed."""

    def __init__(self, patch: pytest.MonkeyPatch, name: str) -> None:
        self.is_armed = True
        self.has_failed = threading.Event()
        start: Callable[[threading.Thread], None] = threading.Thread.start

        def fail(thread: threading.Thread) -> None:
            if self.is_armed and thread.name == name:
                self.has_failed.set()
                raise RuntimeError("can't start new thread")
            start(thread)

        patch.setattr(threading.Thread, "start", fail)


def worker_of(here: Here) -> worker_module.Worker:
    node = here.service._membership.node
    assert isinstance(node, AttachedNode)
    return node._worker


def in_background(call: Callable[[], Any]) -> Callable[[], Any]:
    """Begin it; what is returned waits for the result, or raises what it raised."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((call(), None))
        except Exception as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def get() -> Any:
        thread.join(60)
        assert outcome, "it ends"
        result, error = outcome[0]
        if error is not None:
            raise error
        return result

    return get


def test_who_takes_over_after_it_missed_a_rotation_uses_its_file_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was stopped meanwhile, and looked at nothing."""
    monkeypatch.setattr("raftsvc.watched.LOOK_SECONDS", 3600.0)
    file, new = tmp_path / "secret", "another secret of the tests"
    file.write_text(SECRET)
    here = Here(tmp_path, secret=None, secret_file=file)
    try:
        file.write_text(new)
        here.owner.kill()
        eventually(lambda: here.owner_pid == os.getpid(), "it takes over")
        known = [fingerprint(new.encode())]
        eventually(lambda: here.service.status()["secrets"]["accepts"] == known, "the new one is used")  # type: ignore[index]
        assert here.kv.incr("key") == 2
    finally:
        here.service.stop()
        for other in here.others:
            other.end()


@pytest.mark.parametrize("name", NODE_THREADS)
def test_a_node_that_cannot_be_started_leaves_its_waiters_where_they_are(
    here: Here, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    failing = Failing(monkeypatch, name)
    here.owner.kill()
    waiting = in_background(lambda: here.kv.incr("key", timeout=30))
    reading = in_background(lambda: here.service.wait_read(30))
    assert failing.has_failed.wait(30)
    eventually(lambda: not here.is_locked(), "the directory is free")
    failing.is_armed = False
    assert waiting() == 2
    reading()
    eventually(lambda: here.owner_pid == os.getpid(), "its status says so, which its calls did not wait for")


@pytest.mark.parametrize("name", NODE_THREADS)
def test_who_could_not_take_over_is_attached_to_who_could(
    here: Here, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    failing = Failing(monkeypatch, name)
    here.owner.kill()
    waiting = in_background(lambda: here.kv.incr("key", timeout=50))
    assert failing.has_failed.wait(30)
    other = here.start_other()
    other.call("service.err")
    eventually(lambda: here.owner_pid == other.pid, "the other one takes over")
    assert waiting() == 2
    here.service.wait_read(30)
    assert here.kv.incr("key") == 3
    eventually(here.service.is_ready, "it is ready once it was told that its owner is")
    failing.is_armed = False
    other.kill()
    assert here.kv.incr("key", timeout=30) == 4
    eventually(lambda: here.owner_pid == os.getpid(), "its status says so, which its calls did not wait for")


@pytest.mark.parametrize("name", OTHER_THREADS)
def test_a_node_that_runs_keeps_its_directory_whatever_else_cannot_be_started(
    here: Here, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    failing = Failing(monkeypatch, name)
    here.owner.kill()
    assert failing.has_failed.wait(30)
    assert here.kv.incr("key", timeout=30) == 2
    assert here.is_locked()
    if name == "raftsvc-workers":
        eventually(lambda: not (here.directory / "socket").exists(), "nobody would accept")
    failing.is_armed = False
    other = here.start_other()
    assert other.call("kv.incr", "key") == 3
    eventually(lambda: here.owner_pid == os.getpid(), "its status says so, which its calls did not wait for")


@contextmanager
def asking_handler(here: Here) -> Iterator[list[Any]]:
    """Whoever handles what is logged asks the Service how it is, in the thread that logs, and has it do something."""
    answers: list[Any] = []

    class Asking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            try:
                how = here.service.status()["node_id"], here.service.err(), here.service.is_ready()
                answers.append((record.getMessage(), *how))
                here.service.exec(b"", timeout=1)
            except Exception as error:
                answers.append(error)

    logger, handler = logging.getLogger("raftsvc"), Asking()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield answers
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def test_a_handler_of_log_records_may_ask_how_the_process_is_while_it_takes_over(here: Here) -> None:
    with asking_handler(here) as answers:
        here.owner.kill()
        assert here.kv.incr("key", timeout=30) == 2
        eventually(lambda: here.owner_pid == os.getpid())
    assert any(isinstance(answer, tuple) for answer in answers)


def test_a_handler_of_log_records_may_ask_how_the_process_is_that_does_not_serve_any_more(here: Here) -> None:
    worker = worker_of(here)
    troubles: dict[str, Callable[[], object]] = {
        "is configured otherwise": lambda: worker._hear(
            [Wait(here.owner.pid, IS_UNLIKE, "it is configured otherwise")]
        ),
        "entry 5 differs": lambda: worker.do(lambda: worker.replica.halt(NodeFailedError("entry 5 differs"))),
        "it broke": lambda: worker.fail(NodeFailedError("it broke")),
    }
    for said, trouble in troubles.items():
        with asking_handler(here) as answers:
            in_background(trouble)()
            # Whichever thread comes first logs it.
            eventually(lambda: any(isinstance(a, tuple) and said in a[0] for a in answers), f"{said}: {answers}")  # noqa: B023


def test_calls_end_by_their_deadlines_though_a_takeover_lasts(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    may_start, begun = threading.Event(), threading.Event()
    start = Node.start

    def start_late(node: Node) -> None:
        begun.set()
        assert may_start.wait(60)
        start(node)

    monkeypatch.setattr(Node, "start", start_late)
    waiting = in_background(lambda: here.kv.incr("other", timeout=30))
    assert waiting() == 1
    here.owner.kill()
    calls = [in_background(lambda: here.kv.incr("key", timeout=3)) for _ in range(2)]
    reads = [in_background(lambda: here.service.wait_read(3)) for _ in range(2)]
    assert begun.wait(30)
    with Pulse() as pulse:
        for get in (*calls, *reads):
            with pytest.raises((OutcomeUnknown, ReadTimeoutError, NodeFailedError)):
                get()
        assert pulse.seconds < 4, "and no later"
    with Pulse() as pulse:
        for call in (lambda: here.kv.incr("key", timeout=0.5), lambda: here.service.wait_read(0.5)):
            with pytest.raises((OutcomeUnknown, ReadTimeoutError), match="about to own"):
                call()
        with pytest.raises(OutcomeUnknown, match="about to own"):
            here.service.propose_async(b"", timeout=0.5).result(60)
        assert pulse.seconds < 3
    with pytest.raises(ReadTimeoutError, match="about to own"):
        here.service.wait_applied(10**6, timeout=0.5)
    node = here.service._membership.node
    assert node is not None
    index = node.applied_index + 1
    later = in_background(lambda: here.kv.incr("later", timeout=30))
    applied = in_background(lambda: here.service.wait_applied(index, timeout=30))
    may_start.set()
    assert later() == 1
    applied()
    eventually(lambda: here.owner_pid == os.getpid())
    assert here.kv.incr("other") == 2


def test_who_is_stopped_while_it_takes_over_lets_the_directory_go(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    may_start, begun = threading.Event(), threading.Event()
    start = Node.start

    def start_late(node: Node) -> None:
        begun.set()
        assert may_start.wait(60)
        start(node)

    monkeypatch.setattr(Node, "start", start_late)
    here.owner.kill()
    assert begun.wait(30)
    stopping = in_background(here.service.stop)
    eventually(lambda: here.service._membership.stopped.is_set())
    assert here.is_locked()
    may_start.set()
    stopping()
    eventually(lambda: not here.is_locked())


def test_who_waits_at_an_attached_process_that_takes_over_is_told_by_its_node(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    attached = here.service._membership.node
    assert attached is not None
    looks: list[int] = []

    def is_removed() -> bool:
        assert attached is not None
        looks.append(len(attached.applied_config.members))
        return looks[-1] == 0

    began = time.monotonic()
    waiting = in_background(lambda: attached.wait_until(is_removed, 6))
    here.owner.kill()
    eventually(lambda: here.owner_pid == os.getpid())
    assert waiting() is False
    assert time.monotonic() - began >= 6, "to the end, for it did not come true"
    assert len(looks) < 500, "and without a hurry"
    assert attached.wait_until(attached.is_settled, 20)
    assert attached.is_leader
    eventually(lambda: here.kv.incr("key") and attached.applied_config.members)


def test_the_next_owner_has_read_the_log_before_one_leaves_in_order(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Ahead | None] = []
    take = Heir.take

    def spy(heir: Heir) -> Ahead | None:
        taken.append(take(heir))
        return taken[-1]

    monkeypatch.setattr(Heir, "take", spy)
    for _ in range(20):
        here.kv.incr("key")
    here.owner.call("service.stop")
    eventually(lambda: here.owner_pid == os.getpid(), "it takes over")
    assert here.kv.incr("key", timeout=30) == 22
    (ahead,) = taken
    assert ahead is not None
    assert ahead.found.entries


def test_who_is_about_to_end_does_not_get_ready(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = worker_of(here)
    told: list[Prepared] = []
    monkeypatch.setattr(worker._pipe, "send", lambda data, is_asked=False: told.extend(Decoder().feed(data)))
    monkeypatch.setattr(worker, "is_last", lambda: True)
    worker._hear([Prepare()])
    assert told == [Prepared(False)]
    monkeypatch.undo()


def test_no_thread_to_read_ahead_is_said_at_once(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Failing(monkeypatch, "raftsvc-attached-ahead")
    here.owner.call("service.stop")
    assert failing.has_failed.is_set()
    eventually(lambda: here.owner_pid == os.getpid(), "it takes over")
    assert here.kv.incr("key", timeout=30) == 2


def test_others_let_the_one_that_is_prepared_go_first_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("raftsvc.attached.heir.time.monotonic", lambda: now)
    heir = Heir("/nowhere", None, lambda _: None)
    assert not heir.waits
    heir.let_go_first(os.getpid() + 1)
    assert heir.waits
    now += 1
    assert not heir.waits, "it may have been killed meanwhile"
    for pid in (os.getpid(), 0):
        heir.let_go_first(pid)
        assert not heir.waits


def test_what_is_read_ahead_and_not_wanted_any_more_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end, begun = threading.Event(), threading.Event()
    told: list[bool] = []

    def read(path: str, files: Files, is_over: Callable[[], bool]) -> object:
        begun.set()
        assert may_end.wait(60)
        assert is_over(), "and it is told to end"
        return object()

    monkeypatch.setattr("raftsvc.attached.heir.read_log_ahead", read)
    heir = Heir(str(tmp_path), None, told.append)
    heir.prepare(True)
    assert begun.wait(60)
    heir.prepare(True)  # asked again meanwhile: the first one tells it
    heir.drop()
    may_end.set()
    heir.end()
    assert told == [True]
    assert heir.take() is None


def test_whatever_keeps_it_from_reading_ahead_the_owner_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str, files: Files, is_over: Callable[[], bool]) -> object:
        raise MemoryError

    monkeypatch.setattr("raftsvc.attached.heir.read_log_ahead", fail)
    told: list[bool] = []
    heir = Heir(str(tmp_path), None, told.append)
    for _ in range(2):
        heir.prepare(True)
        heir.end()
    assert told == [False, False]
