"""Who acts for the main thread, and what an interrupt leaves of that."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from raftsvc import mainthread
from raftsvc.errors import NodeFailedError, RaftError
from raftsvc.mainthread import do_elsewhere, is_main_thread

PATIENCE = 60.0


@pytest.fixture(autouse=True)
def _own_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mainthread, "_deputies", mainthread._Deputies())


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What errands may wait for; opened at the end."""
    opened = threading.Event()
    yield opened
    opened.set()


def test_the_result_and_the_error_come_back_as_they_are() -> None:
    assert is_main_thread()
    assert do_elsewhere(is_main_thread, PATIENCE, NodeFailedError) is False
    failure = KeyError("a")

    def fail() -> None:
        raise failure

    with pytest.raises(KeyError) as raised:
        do_elsewhere(fail, PATIENCE, NodeFailedError)
    assert raised.value is failure


def test_errands_that_wait_for_others_are_waited_for_by_nobody_else(gate: threading.Event) -> None:
    names = set()

    def nested(depth: int) -> str:
        names.add(threading.current_thread().name)
        return do_elsewhere(lambda: nested(depth - 1), PATIENCE, NodeFailedError) if depth else "done"

    assert nested(20) == "done"
    assert names == {threading.current_thread().name, "raftsvc-main"}


def test_one_thread_stands_by_however_many_were_needed() -> None:
    def alive() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "raftsvc-main"]

    before = set(alive())

    def nested(depth: int) -> None:
        if depth:
            do_elsewhere(lambda: nested(depth - 1), PATIENCE, NodeFailedError)

    nested(20)
    left = [thread for thread in alive() if thread not in before]
    while len(left) > 1:
        left[0].join(0.01)
        left = [thread for thread in left if thread.is_alive()]
    assert len(left) == 1 and left[0].daemon


def test_what_does_not_return_is_given_up_with_the_error_that_was_asked_for(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mainthread, "GRACE_SECONDS", 0.05)
    with pytest.raises(RaftError, match="hangs"):
        do_elsewhere(gate.wait, 0.0, NodeFailedError)
    assert do_elsewhere(lambda: "the next", PATIENCE, NodeFailedError) == "the next"


def test_what_was_interrupted_before_anybody_took_it_is_not_carried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    given_up: list[mainthread._Errand] = []

    def interrupted(self: mainthread._Errand, seconds: float) -> bool:
        given_up.append(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mainthread._Deputies, "begin", lambda self: None)  # nobody takes it yet
        patch.setattr(mainthread._Errand, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            do_elsewhere(lambda: done.append("the first"), PATIENCE, NodeFailedError)
    do_elsewhere(lambda: done.append("the second"), PATIENCE, NodeFailedError)
    assert given_up[0].wait(PATIENCE), "it was taken, too"
    assert done == ["the second"]


def test_where_no_thread_can_be_started_it_says_so_and_the_next_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(mainthread, "start_new_thread", refuse)
        with pytest.raises(RaftError, match="no thread can be started"):
            do_elsewhere(lambda: "never", PATIENCE, NodeFailedError)
    with monkeypatch.context() as patch:
        patch.setattr(mainthread, "GRACE_SECONDS", 0.05)
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RaftError):
            do_elsewhere(lambda: "never", 0.0, NodeFailedError)
    assert do_elsewhere(lambda: "served", PATIENCE, NodeFailedError) == "served"


def test_a_forked_child_has_threads_of_its_own_from_whichever_thread_it_was_forked() -> None:
    do_elsewhere(lambda: None, PATIENCE, NodeFailedError)
    codes: list[int] = []

    def fork() -> None:
        child = os.fork()
        if child == 0:
            is_fit = is_main_thread() and do_elsewhere(lambda: not is_main_thread(), PATIENCE, NodeFailedError)
            os._exit(0 if is_fit else 1)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    fork()
    other = threading.Thread(target=fork)
    other.start()
    other.join(PATIENCE)
    assert codes == [0, 0]


def test_a_signal_that_another_thread_took_ends_the_wait(gate: threading.Event) -> None:
    """Such as one that comes right before the main thread waits: what it interrupts is no wait of that thread."""

    class Ended(Exception):
        pass

    def end(number: int, frame: object) -> None:
        raise Ended

    def be_told() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        gate.wait(PATIENCE)

    former = signal.signal(signal.SIGUSR1, end)
    try:
        begun = time.monotonic()
        with pytest.raises(Ended):
            do_elsewhere(be_told, PATIENCE, NodeFailedError)
        assert time.monotonic() - begun < PATIENCE / 2
    finally:
        signal.signal(signal.SIGUSR1, former)
