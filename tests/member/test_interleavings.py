"""What callers, writers and woken callers leave to each other is never left undone, in whatever order they run.

Every thread runs the real code of a node, a sole voter, up to its disk (`interleaving`).  No time
passes: what is only mended by the next tick, or by a thread that looks again after a second, is a failure.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from raftsvc.core.membership import ConfChange, ConfOp
from raftsvc.core.messages import EntryKind, HardState, make_entry
from raftsvc.member.applier import Applier
from raftsvc.member.callers import Callers
from raftsvc.member.engine import Engine, EngineOptions
from raftsvc.member.errands import Errands
from raftsvc.member.handoff import Hands, Inbox, Signal
from raftsvc.member.threads import Threads
from raftsvc.member.turns import Turn
from raftsvc.member.waiters import Call, Read
from raftsvc.storage import Store
from raftsvc.testing.disk import SimulatedDisk
from raftsvc.testing.workload import RegisterWorkload
from tests.member.interleaving import Deque, Lock, Program, Scene, Schedule, explore, watched

pytestmark = pytest.mark.pure

_lock: Lock | None = None
"""That of the node of the scene which is being made or played; there is one at a time."""

_WatchedInbox = watched(Inbox, ("is_asking", "is_leading", "is_writing"), lambda: _lock)
_WatchedHands = watched(Hands, ("helper",), lambda: _lock)
_WatchedSignal = watched(Signal, ("is_set",), lambda: None)
_WatchedCall = watched(Call, ("error", "is_parked", "outcome"), lambda: None)


def _taken() -> Lock:
    lock = Lock()
    lock.acquire()
    return lock


def make_signal() -> Any:
    signal = _WatchedSignal()
    signal._lock = _taken()
    return signal


def make_call() -> Any:
    call = _WatchedCall(RegisterWorkload().next_action(Random(1), 1).instruction)
    call._woken = _taken()
    return call


class _TooLate(Lock):
    """What a caller waits for whose time is over just when it is woken."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        assert Schedule.active is not None
        Schedule.active.step(lambda: self.owner is None)
        self.owner = "nobody"
        return False


def make_read() -> Read:
    read = Read()
    read._woken = _taken()  # type: ignore[assignment]
    return read


@pytest.fixture(autouse=True)
def _everything_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftsvc.member.handoff.deque", Deque)
    monkeypatch.setattr("raftsvc.member.engine.Inbox", _WatchedInbox)
    monkeypatch.setattr("raftsvc.member.turns.Hands", _WatchedHands)
    monkeypatch.setattr("raftsvc.member.turns.Signal", make_signal)
    monkeypatch.setattr("raftsvc.member.applier._QUICK_APPLY_SECONDS", 1e9)  # whatever else the machine does


class SoleVoter:
    """A node that leads, without its threads."""

    def __init__(self) -> None:
        global _lock
        _lock = lock = Lock()
        store = Store.open("/data", SimulatedDisk(), segment_bytes=4096)
        founding = ConfChange(ConfOp.ADD_VOTER, 1, "n1").encode()
        store.create(1, 7, HardState(term=1, commit=1), [make_entry(1, 1, EntryKind.CONFIG, founding)])
        self.threads = Threads(lambda error, what: None)
        changed = threading.Condition(lock)  # type: ignore[arg-type]
        errands = Errands(changed, lambda: (0,), store.open_snapshot, self.threads)
        self.engine = Engine("n1", store, RegisterWorkload().make_state(), EngineOptions(), Random(1), errands)
        errands.attach(self.engine, lambda: None)
        self.turn = Turn(lock, changed, self.engine, errands)  # type: ignore[arg-type]
        self.applier = Applier(self.engine, self.turn, self.threads)
        self.callers = Callers(self.engine, self.turn, self.applier, self.threads.stopping)
        with self.turn:
            self.engine.start()
        call = make_call()
        self.callers.submit(call)
        while not call.is_finished:
            self.settle()
        with self.turn:
            self.engine.tick()  # the caller was never there to be waited for
        self.settle()
        self.turn.log_work, self.turn.apply_work = make_signal(), make_signal()

    def settle(self) -> None:
        """What the log thread and the apply thread would do."""
        with self.turn:
            self.turn.drive(inline=True)
        while self.applier._apply_batch():
            pass

    def snapshot(self) -> Hashable:
        """Everything that the threads of a scene share, or what follows from it and from what they saw."""
        engine, inbox, turn = self.engine, self.engine.inbox, self.turn
        return (
            tuple(map(id, deque_of(inbox.calls))),
            tuple(map(id, deque_of(inbox.reads))),
            len(deque_of(inbox.waking)),
            tuple(engine.calls._unsent),
            len(engine.reads),
            engine.core.log.last_index,
            engine.core.log.commit_index,
            engine.applying.machine.applied_index,
            engine.writes.is_due,
            turn.log_work.is_set,
            turn.apply_work.is_set,
        )

    def check_nothing_is_left(self) -> None:
        """What was brought is with the core, or somebody is about to see to it."""
        engine, turn = self.engine, self.turn
        is_log_thread_woken = turn.log_work.is_set
        assert not (deque_of(engine.inbox.calls) or engine.calls._unsent) or is_log_thread_woken, "a call is left"
        assert not engine.reads.is_due or is_log_thread_woken, "a read is left"
        assert not engine.writes.is_due or is_log_thread_woken, "a write is left"
        assert turn.hands.helper is None, "who was asked to apply is gone"
        assert not engine.applying.is_due or turn.apply_work.is_set, "what is committed is not applied"
        assert not turn.log_work.is_set or turn.log_work._lock.owner is None, "who is due was woken"

    def scene(self, *programs: Program) -> Scene:
        return Scene(programs, self.snapshot, self.check_nothing_is_left)

    # -- what threads do

    def executes(self, name: str, when: Callable[[], bool] = lambda: True) -> Program:
        """A caller that brings an instruction and waits for the outcome."""

        def run() -> None:
            call = make_call()
            self.callers.submit(call)
            assert self.callers.await_outcome(call, time.monotonic() + 1000.0)

        return _once(when, name, run)

    def gives_up(self, name: str) -> Program:
        """A caller whose time is over just when it is woken, which may be to help."""

        def run() -> None:
            call = make_call()
            call._woken = _TooLate()
            call._woken.owner = "nobody"
            self.callers.submit(call)
            self.callers.await_outcome(call, 0.0)

        return _once(lambda: self.is_writing, name, run)

    def reads(self, name: str) -> Program:
        """A caller that waits until it may read."""

        def run() -> None:
            read = make_read()
            self.callers.submit_read(read)
            assert self.callers.await_read(read, time.monotonic() + 1000.0)

        return Program(name, run)

    @property
    def log_thread(self) -> Program:
        return Program("log", self.turn.run_log, is_daemon=True)

    @property
    def apply_thread(self) -> Program:
        return Program("apply", self.applier.run, is_daemon=True)

    @property
    def is_writing(self) -> bool:
        return bool(Inbox.is_writing.__get__(self.engine.inbox))  # type: ignore[attr-defined]


def deque_of(items: Any) -> list[Any]:
    """Its items, looked at by nobody."""
    return list(iter(items))


def _once(when: Callable[[], bool], name: str, run: Callable[[], object]) -> Program:
    def wait_then_run() -> None:
        assert Schedule.active is not None
        Schedule.active.step(when)
        run()

    return Program(name, wait_then_run)


def test_callers_that_come_while_a_write_ends_get_their_outcomes() -> None:
    def make() -> Scene:
        node = SoleVoter()
        return node.scene(
            node.executes("writer"),
            node.executes("caller", when=lambda: node.is_writing),
            node.log_thread,
            node.apply_thread,
        )

    explore(make, 1)


def test_who_was_asked_to_apply_and_gives_up_leaves_it_to_another() -> None:
    def make() -> Scene:
        node = SoleVoter()
        return node.scene(node.executes("caller"), node.gives_up("impatient"), node.apply_thread, node.log_thread)

    explore(make, 1)


def test_readers_that_come_while_callers_wake_are_served() -> None:
    def make() -> Scene:
        node = SoleVoter()
        return node.scene(node.executes("caller"), node.reads("reader"), node.log_thread, node.apply_thread)

    explore(make, 1)


def test_a_lease_is_looked_at_before_the_commit_index() -> None:
    """Who leads again by then may have committed what it had not heard of before."""
    node = SoleVoter()
    engine = node.engine
    engine.options = engine.options._replace(lease_reads=True)
    core = SimpleNamespace(
        log=SimpleNamespace(commit_index=engine.applying.applied_index), holds_lease=lambda now: True
    )

    def lead_again() -> int:
        core.log.commit_index += 1
        return 0

    engine.core = core  # type: ignore[assignment]
    engine._runner = SimpleNamespace(glance=lambda: 0)  # type: ignore[assignment]
    assert engine.is_current()
    engine._runner = SimpleNamespace(glance=lead_again)  # type: ignore[assignment]
    assert not engine.is_current()
