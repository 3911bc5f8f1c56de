"""The one protocol without a lock, in every order there is: nothing is left with nobody about to look.

What takes part is the real `Inbox`, `Finished`, `Signal`, `Writes` and `Calls`; around them is
as little of a node as shows the rule: who looks takes the lock, and leaves what came to a
promise that still stands.  See test_interleavings for the node itself.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from raftsvc.core.messages import NO_NODE, Life
from raftsvc.member.calls import Calls, Contexts
from raftsvc.member.handoff import Inbox, Signal, is_left_to_log_thread
from raftsvc.member.health import Health
from raftsvc.member.waiters import Call, Read
from raftsvc.member.writes import Writes
from tests.member.interleaving import Deque, Lock, Program, Scene, explore, watched

pytestmark = pytest.mark.pure


class Node:
    """What looks into an inbox, and what it may be left to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, watches_unsent: bool = False) -> None:
        monkeypatch.setattr("raftsvc.member.handoff.deque", Deque)
        self.lock = Lock()
        self.health = Health()
        self.inbox: Any = watched(Inbox, ("is_asking", "is_writing"), lambda: self.lock)(self.health)
        self.inbox.is_leading = True
        self.writes = Writes(None, self.inbox, self.health)  # type: ignore[arg-type]
        core: Any = SimpleNamespace(leader_id=NO_NODE, node_id=1, settings=SimpleNamespace(election_ticks=10))
        watched_calls = watched(Calls, ("_unsent",) if watches_unsent else (), lambda: None)
        self.calls = watched_calls(
            core, Contexts(Random(1)), Life(1, 1), 3, 1 << 16, self.inbox.calls, self.inbox.finished, lambda: None
        )
        self.signal: Any = watched(Signal, ("is_set",), lambda: None)()
        self.signal._lock = Lock()
        self.signal._lock.acquire()
        self.has_readers = False  # else they are looked for in vain, at each step

    # -- what threads do

    def look(self) -> None:
        """As `Engine.advance` does."""
        with self.lock:
            self.look_in_turn()

    def look_in_turn(self) -> None:
        self.calls.take_in()
        if self.inbox.waking:
            return
        while self.has_readers and not self.inbox.is_asking and self.inbox.reads:
            self.inbox.reads.popleft()
        if not self.inbox.is_writing:
            self.calls._unsent = {}

    def put(self) -> None:
        if self.inbox.put_call(Call(b"")):
            self.look()

    def put_read(self) -> None:
        if self.inbox.put_read(Read()):
            self.look()

    def put_for_log_thread(self) -> None:
        """As one that wakes it, and leaves to it what there is, as who was woken last may."""
        self.inbox.put_call(Call(b""))
        self.signal.set()

    def put_beside_log_thread(self) -> None:
        has_to_drive = self.inbox.put_call(Call(b""))
        if has_to_drive and not is_left_to_log_thread(False, self.signal.is_set, self.inbox.is_writing):
            self.look()

    def run_log(self) -> None:
        while True:
            self.signal.wait(1.0)
            self.look()

    def end_write(self) -> None:
        with self.lock:
            self.writes.end()
            self.look_in_turn()

    def hear_index(self) -> None:
        with self.lock:
            self.inbox.is_asking = False
            self.look_in_turn()

    def wake(self) -> None:
        """As `Engine.note_awake`, and its caller, do."""
        if self.inbox.note_awake():
            is_read_due = self.has_readers and bool(self.inbox.reads) and not self.inbox.is_asking
            if is_read_due or (self.calls.has_unsent and not self.inbox.gathers_calls):
                self.look()

    def tick(self) -> None:
        with self.lock:
            self.inbox.finished.tick()
            self.look_in_turn()

    def give_up(self, call: Call) -> None:
        with self.lock:
            self.calls.withdraw(call)

    # -- how it begins

    def begin_write(self) -> None:
        self.writes.begin()

    def finish(self, count: int) -> None:
        """So many callers are woken, and have not run."""
        for _ in range(count):
            self.inbox.finished.add_call(Call(b""))

    def snapshot(self) -> Hashable:
        inbox = self.inbox
        counts = [len(list(iter(items))) for items in (inbox.calls, inbox.reads, inbox.waking, self.calls._unsent)]
        return (*counts, inbox.is_writing, inbox.is_asking, self.signal.is_set, self.signal._lock.owner is None)

    def check(self) -> None:
        assert not (self.inbox.calls or self.inbox.reads or self.calls._unsent), "left with nobody about to look"


Make = Callable[[Node], list[Program]]


def _programs(*runs: Callable[[], None], log_thread: Callable[[], None] | None = None) -> list[Program]:
    programs = [Program(f"{run.__name__} {n}", run) for n, run in enumerate(runs, 1)]
    return programs + ([Program("log", log_thread, is_daemon=True)] if log_thread else [])


def a_write_ends(node: Node) -> list[Program]:
    node.begin_write()
    return _programs(node.put, node.put, node.end_write)


def an_index_is_heard(node: Node) -> list[Program]:
    node.inbox.is_asking = node.has_readers = True
    return _programs(node.put_read, node.put_read, node.hear_index)


def callers_wake(node: Node) -> list[Program]:
    node.finish(2)
    return _programs(node.put, node.wake, node.wake)


def callers_wake_while_a_write_ends(node: Node) -> list[Program]:
    node.begin_write()
    node.finish(1)
    return _programs(node.put, node.wake, node.end_write)


def callers_wake_while_an_index_is_heard(node: Node) -> list[Program]:
    node.inbox.is_asking = node.has_readers = True
    node.finish(1)
    return _programs(node.put_read, node.wake, node.hear_index)


def callers_wake_after_a_tick(node: Node) -> list[Program]:
    node.finish(2)
    return _programs(node.put, node.wake, node.tick)


def a_caller_wakes_while_another_gives_up(node: Node) -> list[Program]:
    node.finish(1)
    call = Call(b"")
    node.inbox.calls.append(call)
    node.calls.take_in()
    node.calls._unsent = {}  # it was sent

    def give_up() -> None:
        node.give_up(call)

    return _programs(node.put, node.wake, give_up)


def the_log_thread_is_woken(node: Node) -> list[Program]:
    return _programs(node.put_for_log_thread, node.put_for_log_thread, log_thread=node.run_log)


def the_log_thread_is_about_to_look(node: Node) -> list[Program]:
    return _programs(node.put_for_log_thread, node.put_beside_log_thread, log_thread=node.run_log)


def the_log_thread_comes_while_a_write_ends(node: Node) -> list[Program]:
    node.begin_write()
    return _programs(node.put_beside_log_thread, node.end_write, log_thread=node.run_log)


@pytest.mark.parametrize(
    "scene",
    [
        a_write_ends,
        an_index_is_heard,
        callers_wake,
        callers_wake_while_a_write_ends,
        callers_wake_while_an_index_is_heard,
        callers_wake_after_a_tick,
        a_caller_wakes_while_another_gives_up,
        the_log_thread_is_woken,
        the_log_thread_is_about_to_look,
        the_log_thread_comes_while_a_write_ends,
    ],
    ids=lambda scene: scene.__name__,
)
def test_nothing_is_left_with_nobody_about_to_look(scene: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> Scene:
        node = Node(monkeypatch, watches_unsent=scene is a_caller_wakes_while_another_gives_up)
        return Scene(scene(node), node.snapshot, node.check)

    explore(make)
