"""Handlers of signals run on the main thread, at any step of it: they raise there, or call what is public."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import requests

import raftsvc
from raftsvc import kv, mainthread
from raftsvc.attached.server import FeedServer
from raftsvc.member.node import Node
from raftsvc.transport.listener import Listener

from .face import BRIEF, VALUES, calls_of
from .harness import PATIENCE, SECRET, Cluster, ListState, Member, eventually, free_address, in_background

PACKAGE = str(Path(raftsvc.__file__).parent)


class Interrupted(BaseException):
    """As KeyboardInterrupt, which pytest takes for its own."""


def at_step(number: int, act: Callable[[], object], call: Callable[[], object]) -> bool:
    """Run `call`, and `act` on top of it before its step `number` in the library; whether it came that far."""
    left = number
    has_come = False

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left, has_come
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == 0:
                has_come = True
                act()
        return trace

    former = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(former)
    return has_come


def raise_interrupted() -> None:
    raise Interrupted


def answered(call: Callable[[Any], object], *more: type[Exception]) -> Callable[[Any], object]:
    """`call`, which is answered, or refused for what it asks: there is no such member or key, or a cluster already."""

    def ask(thing: Any) -> None:
        with suppress(raftsvc.ExistingClusterError, raftsvc.UnknownPeerError, KeyError, *more):
            call(thing)

    return ask


ALL = {name: answered(call) for name, call in calls_of(raftsvc.Service).items()}
CALLS = {name: call for name, call in ALL.items() if name != "stop"}
"""Every method of a Service that it goes on after; `stop` has tests of its own."""
STORE, STORE_BRIEFLY = (
    {
        # What waits for so little may find that nobody was asked in that time.
        name: answered(call, *([raftsvc.NotApplied] if VALUES.get(f"{name}.timeout") == BRIEF else []))
        for name, call in calls_of(kv.KeyValue, whole=whole).items()
    }
    for whole in (True, False)
)


@pytest.fixture(autouse=True)
def _deadline() -> Iterator[None]:
    """A main thread that waits for itself fails its test."""

    def hangs(number: int, frame: FrameType | None) -> None:
        raise AssertionError("the main thread hangs")

    former = signal.signal(signal.SIGALRM, hangs)
    signal.setitimer(signal.ITIMER_REAL, 5 * PATIENCE)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, former)


@pytest.fixture
def node(cluster: Cluster) -> Member:
    assert threading.current_thread() is threading.main_thread(), "where handlers of signals run"
    node = cluster.add()
    node.service.init()
    return node


def steps() -> Iterator[int]:
    """All of the first, of which most calls have no more, and some of those that follow."""
    yield from range(1, 200)
    step = 200
    while True:
        yield step
        step += random.randint(5, 25)


@pytest.mark.parametrize("name", CALLS)
def test_what_is_raised_at_any_step_of_the_main_thread_leaves_the_node_sound(node: Member, name: str) -> None:
    call = CALLS[name]
    written: list[bytes] = []
    for step in steps():
        try:
            if not at_step(step, raise_interrupted, lambda: call(node.service)):
                break
        except Interrupted:
            written.append(b"%d" % step)
            assert node.service.exec(written[-1], timeout=PATIENCE)
            assert node.service.err() is None
    assert written, "it was interrupted"
    assert [item for item in node.read() if item != b"main"] == written
    node.restart()
    assert [item for item in node.read() if item != b"main"] == written


@pytest.mark.parametrize("name", CALLS)
def test_what_is_called_at_any_step_of_the_main_thread_answers(node: Member, name: str) -> None:
    handlers = list(CALLS.values())
    for step in steps():
        handler = handlers[step % len(handlers)]
        if not at_step(step, lambda handler=handler: handler(node.service), lambda: CALLS[name](node.service)):  # type: ignore[misc]
            break
    assert node.service.err() is None


class WatchedLock:
    """A lock that remembers where the main thread took it."""

    def __init__(self, lock: Any, taken: list[str]) -> None:
        self._lock = lock
        self._taken = taken

    def acquire(self, *arguments: Any, **options: Any) -> bool:
        if threading.get_ident() == threading.main_thread().ident:
            self._taken += [line for line in traceback.format_stack() if PACKAGE in line][-1:]
        return bool(self._lock.acquire(*arguments, **options))

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where the main thread takes a lock that was made from here on, by the library or for it."""
    taken: list[str] = []
    for name in ("Lock", "RLock"):
        make = getattr(threading, name)
        monkeypatch.setattr(threading, name, lambda make=make: WatchedLock(make(), taken))
    monkeypatch.setattr(mainthread, "_deputies", mainthread._Deputies())
    return taken


@pytest.mark.parametrize("name", [*ALL, "status when stopped"])
def test_the_main_thread_takes_no_lock(taken: list[str], cluster: Cluster, name: str) -> None:
    node = cluster.add()
    node.service.init()
    call = {**ALL, "status when stopped": lambda service: (service.stop(), service.status())}[name]
    taken.clear()
    call(node.service)
    assert taken == []


def test_the_main_thread_takes_no_lock_before_there_is_a_cluster(taken: list[str], cluster: Cluster) -> None:
    node = cluster.add()
    taken.clear()
    with pytest.raises(raftsvc.JoinFailedError):
        node.service.join("127.0.0.1:1", 0.1)
    node.service.init()
    with pytest.raises(raftsvc.ExistingClusterError):
        node.service.init()
    assert taken == []


def test_the_main_thread_takes_no_lock_of_the_key_value_store(taken: list[str], tmp_path: Path) -> None:
    state = kv.KeyValueState()
    service = raftsvc.start(free_address(), tmp_path / "n", None, state, secret=SECRET)
    store = kv.KeyValue(service, state)
    try:
        service.init()
        store.set("a", b"1", timeout=PATIENCE)
        taken.clear()
        for name in STORE:
            for call in (STORE[name], STORE_BRIEFLY[name]):
                call(store)
                assert taken == [], name
                store.set("a", b"1", timeout=PATIENCE)
    finally:
        service.stop()


@pytest.mark.parametrize("name", ALL)
def test_a_node_that_is_stopped_at_any_step_of_the_main_thread_is_stopped(cluster: Cluster, name: str) -> None:
    """Some steps of each run: what makes all of them alike is that the main thread takes no lock, see above."""
    node = cluster.add()
    node.service.init()
    call = ALL[name]
    for step in range(random.randint(1, 50), 400, random.randint(40, 60)):
        stops: list[int] = []

        def stop(stops: list[int] = stops) -> None:
            stops.append(1)
            node.service.stop()

        is_refused = False
        try:
            at_step(step, stop, lambda: call(node.service))
        except (raftsvc.RaftError, AssertionError):
            is_refused = True
        if not stops:  # it did not come that far
            if is_refused:  # because the node that was started anew does not lead yet
                continue
            break
        with pytest.raises(raftsvc.StoppedError):
            in_background(lambda: node.service.exec(b"a"))()
        node.start()


def steps_in(names: tuple[str, ...], call: Callable[[], object]) -> list[int]:
    """The numbers of the steps that `call` takes in functions of these names, of all steps in the library."""
    found, number = [], 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal number
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            number += 1
            if frame.f_code.co_name in names:
                found.append(number)
        return trace

    former = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(former)
    return found


def what_is_left(directory: Path) -> list[str]:
    """Threads of a node, and what is open of `directory` or bound to a port."""
    threads = [t.name for t in threading.enumerate() if t.name.startswith("raftsvc-") and t.name != "raftsvc-main"]
    opened = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of the listing itself
            opened.append(os.readlink(f"/proc/self/fd/{number}"))
    return threads + [name for name in opened if name.startswith(f"{directory}/")]


@pytest.mark.parametrize("is_member", [False, True], ids=["an empty directory", "a member's"])
@pytest.mark.parametrize(
    "names", [("acquire", "_write_note", "own", "_own", "start"), ("_begin", "resume", "_start_node", "start")]
)
def test_a_start_that_is_interrupted_leaves_nothing_and_can_be_repeated_at_once(
    tmp_path: Path, is_member: bool, names: tuple[str, ...]
) -> None:
    addr, directory = free_address(), tmp_path / "n"
    started: list[raftsvc.Service] = []

    def start() -> None:
        started.append(raftsvc.start(addr, directory, None, ListState(), secret=SECRET, listen=addr, lock_timeout=0.0))

    start()
    if is_member:
        started[0].init()
    started.pop().stop()
    steps = steps_in(names, start)
    started.pop().stop()
    interrupted = 0  # save at the last two, where the Service is the caller's already
    for step in sorted(random.sample(steps[:-2], 20)):
        before = what_is_left(tmp_path)
        try:
            at_step(step, raise_interrupted, start)
        except Interrupted:
            interrupted += 1
        for service in started:  # it was over before it came that far
            service.stop()
        started.clear()

        def is_little_left(before: list[str] = before) -> bool:
            # A file that was opened that moment is nobody's yet; it locks nothing and is not written to.
            new = Counter(what_is_left(tmp_path)) - Counter(before)
            return new.total() <= 1 and not [one for one in new if one.startswith(("raftsvc-", f"{directory}/wal"))]

        eventually(is_little_left, f"little is left after step {step}")
        start()
        started.pop().stop()
    assert interrupted > 10


@pytest.mark.pure  # compiled, they call each other and look for nothing
@pytest.mark.parametrize("is_member", [False, True], ids=["an empty directory", "a member's"])
@pytest.mark.parametrize("begun", [FeedServer, Node, Listener], ids=lambda cls: cls.__name__)
def test_a_start_that_is_interrupted_right_after_it_began_something_ends_that(
    tmp_path: Path, begun: Any, is_member: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    addr, directory = free_address(), tmp_path / "n"

    def start() -> raftsvc.Service:
        return raftsvc.start(addr, directory, None, ListState(), secret=SECRET, listen=addr, lock_timeout=0.0)

    service = start()
    if is_member:
        service.init()
    service.stop()
    before, begin, has_begun = what_is_left(tmp_path), begun.start, []

    def interrupted(self: Any) -> None:
        begin(self)
        has_begun.append(self)
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(begun, "start", interrupted)
        if begun is Node and not is_member:
            start().stop()
        else:
            with pytest.raises(Interrupted):
                start()
            assert has_begun
    # Threads of former tests may end meanwhile.
    eventually(lambda: not Counter(what_is_left(tmp_path)) - Counter(before), "nothing is left")
    start().stop()


@pytest.mark.parametrize("when", ["before anybody answers", "while it is looked for"])
def test_a_join_that_is_interrupted_can_be_repeated_at_once(cluster: Cluster, when: str) -> None:
    one, two = cluster.add(), cluster.add()
    one.service.init()
    asks, goes_on = threading.Event(), threading.Event()
    asking = two if when == "before anybody answers" else one
    send = asking.session.send

    def held(request: requests.PreparedRequest, **options: Any) -> requests.Response:
        asks.set()
        assert goes_on.wait(PATIENCE)
        return send(request, **options)

    asking.session.send = held  # type: ignore[method-assign]

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise Interrupted

    former = signal.signal(signal.SIGUSR1, interrupt)
    try:

        def send_signal() -> None:
            assert asks.wait(PATIENCE)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

        signalled = in_background(send_signal)
        with pytest.raises(Interrupted):
            two.service.join(one.addr, PATIENCE)
        signalled()
    finally:
        signal.signal(signal.SIGUSR1, former)
    with pytest.raises(raftsvc.ExistingClusterError, match="another call of init or join"):
        two.service.init()
    with pytest.raises(raftsvc.ExistingClusterError, match="another call of init or join"):
        two.service.join(one.addr, timeout=0.1)
    waits, stopped = threading.Event(), two.service._membership.stopped
    wait = stopped.wait

    def noted(timeout: float | None = None) -> bool:
        waits.set()
        return wait(timeout)

    stopped.wait = noted  # type: ignore[method-assign]
    again = in_background(lambda: two.service.join(one.addr, PATIENCE))
    assert waits.wait(PATIENCE)
    goes_on.set()
    again()
    assert two.service.exec(b"in", PATIENCE)
    assert list(one.status["members"]) == ["1", "2"]


def test_the_key_value_store_is_read_and_written_on_top_of_itself(tmp_path: Path) -> None:
    state = kv.KeyValueState()
    service = raftsvc.start(free_address(), tmp_path / "n", None, state, secret=SECRET)
    store = kv.KeyValue(service, state)
    try:
        service.init()
        store.set("a", b"1", timeout=PATIENCE)
        # What is done once waits for whoever does it, and so for itself where it is called on top of that.
        calls = {name: call for name, call in STORE.items() if name != "once"}
        handlers = list(calls.values())
        for name, call in calls.items():
            for step in range(random.randint(1, 10), 1000, 10):
                handler = handlers[step % len(handlers)]
                if not at_step(step, lambda handler=handler: handler(store), lambda call=call: call(store)):  # type: ignore[misc]
                    break
            for step in range(random.randint(1, 10), 1000, 10):
                try:
                    if not at_step(step, raise_interrupted, lambda call=call: call(store)):  # type: ignore[misc]
                        break
                except Interrupted:
                    in_background(lambda: store.set("a", b"1", timeout=PATIENCE))()
            version = in_background(lambda: store.set("a", b"1", timeout=PATIENCE))()
            assert store.get("a", PATIENCE) == kv.Value(b"1", version), name
    finally:
        service.stop()


PROGRAM = """
import random, signal, sys, time
import raftsvc
from tests.service.harness import ListState, SECRET, free_address

directory, seed = sys.argv[1], int(sys.argv[2])
random.seed(seed)

class Interrupted(Exception): pass

def begin(number):
    addr, state = free_address(), ListState()
    return raftsvc.start(addr, f"{directory}/{number}", None, state, secret=SECRET, election_timeout=0.2), state

for number in range(6):
    service, state = begin(number)
    service.init()
    interrupts, acknowledged = 0, []

    def interrupt(signum, frame):
        raise Interrupted

    signal.signal(signal.SIGALRM, interrupt)
    while interrupts < 30:
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.004))
            begun = time.monotonic()
            while time.monotonic() < begun + 1:  # Python drops what is raised in a weak reference's callback
                item = b"%d" % len(acknowledged)
                service.exec(item, timeout=60.0)
                acknowledged.append(item)
                try:
                    service.evict("127.0.0.1:1", 60.0)
                except raftsvc.UnknownPeerError:
                    pass
                service.status()
                service.wait_read(60.0)
        except Interrupted:
            interrupts += 1
    service.wait_read(60.0)
    ends_at = time.monotonic() + 60.0
    while service.err() is not None and time.monotonic() < ends_at:
        time.sleep(0.01)  # a disk that was slow is an error for a while
    if service.err() is not None or not service.is_live():
        sys.exit(f"not sound: {service.err()}")

    asked = []

    def ask(signum, frame):
        service.status(), service.err()
        asked.append(signum)

    signal.signal(signal.SIGALRM, ask)
    for number_of_answers in range(60):
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00005, 0.001))
        while len(asked) <= number_of_answers:
            service.status()

    def leave(signum, frame):
        service.status(), service.err()
        try:
            service.exec(b"last words", timeout=1)
        except raftsvc.RaftError:
            pass
        service.stop()

    signal.signal(signal.SIGALRM, leave)
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.001, 0.1))
    try:
        while True:
            service.status()
            for wait in (lambda: service.wait_read(0.001), lambda: service.exec(b"x", 0.001)):
                try:
                    wait()
                except raftsvc.StoppedError:
                    raise
                except raftsvc.RaftError:
                    pass
    except raftsvc.StoppedError:
        pass
    after, state = begin(number)
    after.wait_read(60.0)
    items = set(state.items)
    lost = [item for item in acknowledged if item not in items]
    if lost:
        sys.exit(f"lost: {lost}")
    after.stop()
print("sound")
"""


@pytest.mark.parametrize("flags", [[], ["-O"]], ids=["", "without asserts"])
def test_signals_at_any_time_neither_hang_a_process_nor_lose_what_it_was_told(tmp_path: Path, flags: list[str]) -> None:
    roots = [str(Path(PACKAGE).parent), str(Path(__file__).parents[2])]
    done = subprocess.run(
        [sys.executable, *flags, "-c", PROGRAM, str(tmp_path), str(random.randrange(2**32))],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(roots)},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
    )
    assert done.stdout == "sound\n", done.stderr[-3000:]


def test_what_another_thread_opens_is_closed_though_the_main_thread_is_interrupted() -> None:
    """At any step up to the body; an interrupt that comes to the closing itself is too late for anybody."""

    class Opened:
        def __init__(self) -> None:
            self.is_closed = threading.Event()
            every.append(self)

        def close(self) -> None:
            assert not self.is_closed.is_set()
            self.is_closed.set()

    every: list[Opened] = []
    is_inside: list[bool] = []

    def use() -> None:
        with mainthread.opened(Opened, PATIENCE, raftsvc.ReadTimeoutError) as found:
            is_inside.append(True)
            assert not found.is_closed.is_set()

    def interrupt() -> None:
        if not is_inside:
            raise Interrupted

    number = 0
    has_come = True
    while has_come:
        number += 1
        is_inside.clear()
        with suppress(Interrupted):
            has_come = at_step(number, interrupt, use)
    assert number > 100 and len(every) > 10
    for each in every:
        assert each.is_closed.wait(PATIENCE)


def test_a_lock_that_is_let_go_of_by_whoever_is_interrupted_is_free_or_can_be_let_go_of(node_kv: kv.KeyValue) -> None:
    """At each step of it."""
    for step in count(1):
        lock, other = node_kv.lock("x", ttl=60.0), node_kv.lock("x", ttl=60.0)
        assert lock.acquire(timeout=PATIENCE)
        is_over = False
        try:
            is_over = not at_step(step, raise_interrupted, lock.release)
        except Interrupted:
            with suppress(kv.LostError):  # it was let go of
                lock.release()
        assert other.acquire(timeout=PATIENCE), step
        other.release()
        if is_over:
            return


def test_a_with_of_a_lock_that_is_interrupted_at_its_end_lets_go_of_it(node_kv: kv.KeyValue) -> None:
    left = []
    for step in count(1):
        lock = node_kv.lock("x", ttl=60.0)
        assert lock.acquire(timeout=PATIENCE)
        is_over = False
        try:
            is_over = not at_step(step, raise_interrupted, lambda lock=lock: lock.__exit__(None))  # type: ignore[misc]
        except Interrupted:
            if lock.owned():
                left.append(step)
                lock.release()
        if is_over:
            break
    assert len(left) < 10, "before anything of it is begun"


@pytest.fixture
def node_kv(tmp_path: Path) -> Iterator[kv.KeyValue]:
    state = kv.KeyValueState()
    service = raftsvc.start(free_address(), tmp_path / "n", None, state, secret=SECRET)
    service.init()
    yield kv.KeyValue(service, state)
    service.stop()
