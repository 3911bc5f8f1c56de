"""Runs a few threads in every order that makes a difference, one step at a time.

The code that runs is the real one, in real threads, of which only one runs at a time.  At
each *step*, an access to something that threads share without a lock, or the taking of a
lock, the schedule may go on with another thread.  `explore` begins anew for every order; those
that lead to a state where it was before, with every thread having seen the same, end there.

What is watched: the attributes of an object whose class `watched` made, deques (`Deque`) and
locks (`Lock`).  Reading, under the lock, what is written only under it is no step.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple, SupportsIndex


class _Abandoned(BaseException):
    """This order is not followed any further."""


class Program(NamedTuple):
    """What one thread does.  A daemon may be left waiting."""

    name: str
    run: Callable[[], object]
    is_daemon: bool = False


class _Worker:
    """A thread for one task after another: to start one for each takes longer than to run most orders."""

    idle: ClassVar[list[_Worker]] = []

    def __init__(self) -> None:
        self._go, self._done = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._done.acquire()
        self._task: Callable[[], None] = lambda: None
        threading.Thread(target=self._work, daemon=True).start()

    def begin(self, task: Callable[[], None]) -> None:
        self._task = task
        self._go.release()

    def _work(self) -> None:
        while True:
            self._go.acquire()
            self._task()
            self._done.release()

    def await_end(self) -> None:
        self._done.acquire()
        self.idle.append(self)


class _Task:
    def __init__(self, schedule: Schedule, program: Program) -> None:
        self.name = program.name
        self.is_daemon = program.is_daemon
        self.is_done = False
        self.can_go: Callable[[], bool] | None = None
        self.steps = 0
        self.seen: list[Hashable] = []
        self.gate = threading.Lock()
        self.gate.acquire()
        self.ident = 0
        self.worker = _Worker.idle.pop() if _Worker.idle else _Worker()
        self.worker.begin(lambda: schedule.run_task(self, program.run))

    @property
    def is_enabled(self) -> bool:
        return not self.is_done and (self.can_go is None or self.can_go())


class Schedule:
    """One order: follows `prefix`, then goes on with the same thread as long as it can."""

    active: Schedule | None = None

    def __init__(
        self, prefix: Sequence[int], visited: set[Hashable], snapshot: Callable[[], Hashable], max_switches: int | None
    ) -> None:
        self._prefix = prefix
        self._visited = visited
        self._snapshot = snapshot
        self._switches_left = max_switches
        self.choices: list[int] = []
        self.untried: list[tuple[int, ...]] = []
        self.tasks: list[_Task] = []
        self.current: _Task | None = None
        self.owners: dict[int, _Task] = {}
        self._is_over = threading.Event()
        self.is_abandoned = self.is_pruned = self.is_looking = False
        self.error: BaseException | None = None

    def run(self, programs: Iterable[Program]) -> None:
        self.tasks = [_Task(self, program) for program in programs]
        Schedule.active = self
        try:
            self._go_on(None)
            self._is_over.wait()
            self.is_abandoned = True
            for task in self.tasks:
                if not task.is_done:
                    task.gate.release()
            for task in self.tasks:
                task.worker.await_end()
        finally:
            Schedule.active = None

    def run_task(self, task: _Task, run: Callable[[], object]) -> None:
        task.ident = threading.get_ident()
        task.gate.acquire()
        try:
            if not self.is_abandoned:
                run()
        except _Abandoned:
            pass
        except BaseException as error:
            if not self.is_abandoned:
                self.error = self.error or error
        task.is_done = True
        if not self.is_abandoned:
            self._go_on(task)

    @property
    def waiting(self) -> list[str]:
        return [task.name for task in self.tasks if not (task.is_done or task.is_daemon)]

    def step(self, can_go: Callable[[], bool] | None = None) -> None:
        """The running thread is about to do something that others can see, or has to wait for `can_go`."""
        task = self.current
        if self.is_abandoned:
            raise _Abandoned
        assert task is not None and task.ident == threading.get_ident(), "one thread at a time runs"
        task.steps += 1
        task.can_go = can_go
        self._go_on(task)
        task.can_go = None

    def saw(self, what: Hashable) -> None:
        assert self.current is not None
        self.current.seen.append(what)

    def _go_on(self, task: _Task | None) -> None:
        """Choose who runs next, and let him."""
        self.is_looking = True  # nothing of what follows is a step of anybody
        enabled = [n for n, other in enumerate(self.tasks) if other.is_enabled]
        snapshot = self._snapshot()
        self.is_looking = False
        here = len(self.choices)
        if self.error is not None or not enabled:
            self._stop(task)
            return
        own = self.tasks.index(task) if task in self.tasks else -1
        if here < len(self._prefix):
            chosen = self._prefix[here]
            if chosen not in enabled:
                self.error = AssertionError("the same order went another way: something depends on the time it takes")
                self._stop(task)
                return
        else:
            left = self._switches_left
            key = (own, left, snapshot, tuple(None if t.is_done else (t.steps, tuple(t.seen)) for t in self.tasks))
            if key in self._visited:
                self.is_pruned = True
                self._stop(task)
                return
            self._visited.add(key)
            chosen = own if own in enabled else enabled[0]
            if own not in enabled or left is None or left > 0:
                self.untried += [(*self.choices, n) for n in enabled if n != chosen]
        if self._switches_left is not None and own in enabled and chosen != own:
            self._switches_left -= 1
        self.choices.append(chosen)
        self.current = successor = self.tasks[chosen]
        if successor is not task:
            successor.gate.release()
            if task is not None and not task.is_done:
                task.gate.acquire()
                if self.is_abandoned:
                    raise _Abandoned

    def _stop(self, task: _Task | None) -> None:
        self._is_over.set()
        if task is not None and not task.is_done:
            task.gate.acquire()
            raise _Abandoned


class Lock:
    """As `threading.Lock`; whoever waits for it waits as long as it takes, whatever the timeout."""

    def __init__(self) -> None:
        self.owner: object = None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        schedule = Schedule.active
        if schedule is None:
            if self.owner is not None:
                return False
            self.owner = "nobody"
            return True
        if not blocking:  # Condition asks so whether it is owned
            return self.owner is None and bool(self._take(schedule))
        schedule.step(lambda: self.owner is None)
        self._take(schedule)
        return True

    def _take(self, schedule: Schedule) -> bool:
        self.owner = schedule.current
        return True

    def release(self) -> None:
        if self.owner is None:
            raise RuntimeError("release unlocked lock")
        self.owner = None

    __enter__ = acquire

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    @property
    def is_mine(self) -> bool:
        schedule = Schedule.active
        return schedule is not None and self.owner is schedule.current


class Deque(deque[Any]):
    """Each change and each look is a step."""

    def append(self, item: Any) -> None:
        _step()
        super().append(item)

    def popleft(self) -> Any:
        _step()
        return super().popleft()

    def clear(self) -> None:
        _step()
        super().clear()

    def __iadd__(self, items: Iterable[Any]) -> Deque:
        _step()
        return super().__iadd__(items)

    def __len__(self) -> int:
        _step()
        count = super().__len__()
        schedule = _watching()
        if schedule is not None:
            schedule.saw(count)
        return count

    def __getitem__(self, index: SupportsIndex) -> Any:  # type: ignore[override]
        return super().__getitem__(index)


def _watching() -> Schedule | None:
    schedule = Schedule.active
    return None if schedule is None or schedule.is_looking or schedule.is_abandoned else schedule


def _step() -> None:
    schedule = _watching()
    if schedule is not None:
        schedule.step()


def watched(cls: type[Any], names: Iterable[str], lock: Callable[[], Lock | None]) -> type[Any]:
    """`cls`, each access to whose attributes `names` is a step; not reading them under `lock`."""
    shared = frozenset(names)

    def get(self: object, name: str) -> Any:
        schedule = _watching() if name in shared else None
        guard = lock()
        if schedule is None or (guard is not None and guard.is_mine):
            return cls.__getattribute__(self, name)
        schedule.step()
        value = cls.__getattribute__(self, name)
        schedule.saw((name, len(value) if isinstance(value, (list, dict)) else value))
        return value

    def put(self: object, name: str, value: Any) -> None:
        if name in shared:
            _step()
        cls.__setattr__(self, name, value)

    body = {"__slots__": (), "__getattribute__": get, "__setattr__": put}
    return type(f"Watched{cls.__name__}", (cls,), body)


class Scene(NamedTuple):
    """Threads, and what is to hold once none of them can go on.

    snapshot: all that they share, as something to compare.
    """

    programs: Sequence[Program]
    snapshot: Callable[[], Hashable]
    check: Callable[[], None]


def explore(make: Callable[[], Scene], max_switches: int | None = None) -> int:
    """Run the scene that `make` makes in every order; returns how many it took.

    Fails if a thread that is no daemon is left waiting, or `check` does.
    max_switches: leave out orders in which threads that could go on are held up more often.
    """
    visited: set[Hashable] = set()
    untried: list[tuple[int, ...]] = [()]
    runs = 0
    while untried:
        prefix = untried.pop()
        scene = make()
        schedule = Schedule(prefix, visited, scene.snapshot, max_switches)
        schedule.run(scene.programs)
        runs += 1
        untried += schedule.untried
        names = [schedule.tasks[n].name for n in schedule.choices]
        if schedule.error is not None:
            raise AssertionError(f"in the order {names}") from schedule.error
        if schedule.is_pruned:
            continue
        assert not schedule.waiting, f"{schedule.waiting} wait in vain in the order {names}"
        try:
            scene.check()
        except AssertionError as error:
            raise AssertionError(f"{error}, in the order {names}") from error
    return runs
