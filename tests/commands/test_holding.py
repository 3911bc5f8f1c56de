"""A command runs while something is held, knows by which fence, and is ended with all that it started if it is lost."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import raftsvc
from raftsvc import kv
from raftsvc.commands import interrupts
from raftsvc.commands.child import Child
from raftsvc.commands.places import Where
from tests.attached.hosts import ROOT
from tests.commands.harness import Node, Shell, in_place_of_a_store, is_alive, raising
from tests.service.harness import PATIENCE, eventually

ECHO = 'echo "$RAFTSVC_FENCE $1"; exit 7'


@contextmanager
def environment_of(shell: Shell) -> Iterator[None]:
    """What commands have that it starts, where these sources are found."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**shell.environ, "PYTHONPATH": str(ROOT)}.items():
            patch.setenv(name, value)
        yield


def test_a_command_has_the_fence_and_its_exit_code_is_handed_on(here: Shell, node: Node) -> None:
    first = here("lock", "echo", "--", "sh", "-c", ECHO, "sh", "--json")
    second = here("lock", "echo", "--", "sh", "-c", ECHO, "sh", "-- x")
    assert (first.code, second.code) == (7, 7)
    fence, word = first.out.split()
    later, rest = second.out.split(maxsplit=1)
    assert word == b"--json"
    assert rest == b"-- x\n"
    assert int(later) > int(fence)
    store = kv.KeyValue(node.service, node.state)
    assert not store.lock("echo").locked()


def test_while_it_runs_nobody_else_has_it(here: Shell, node: Node) -> None:
    store = kv.KeyValue(node.service, node.state)
    with store.lock("busy") as lock:
        refused = here("lock", "busy", "--wait", "0", "--", "echo", "it ran")
        assert (refused.code, refused.out) == (124, b"")
        assert "'busy' was not got, for others had it" in refused.err
        lock.ensure_held()
    inner = (sys.executable, "-m", "raftsvc", "lock", "busy", "--wait", "0", "--", "echo", "it ran")
    with environment_of(here):
        assert here("lock", "busy", "--", *inner).code == 124


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
        (["/nowhere/nothing"], 127),
        (["/"], 126),
        ([], 125),
    ],
)
def test_how_a_command_ended_is_told_as_shells_do(here: Shell, words: list[str], code: int) -> None:
    assert here("lock", "end", "--", *words).code == code
    assert here("lock", "end", "--wait", "0", "--", "true").code == 0


def test_what_is_wrong_with_the_lock_is_told_apart_from_the_command(shell: Shell, tmp_path: Path) -> None:
    assert shell("lock", "a", "--", "true").code == 125
    assert shell("lock", "--", "true").code == 125
    assert shell("lock", "a", "--ttl", "x", "--at", "/", "--", "true").code == 125
    assert shell("lock", "a", "--ttl", "0.5", "--at", str(tmp_path), "--", "true").code == 125
    assert shell("elect", "a", "--ttl", "0.5", "--at", str(tmp_path), "--", "true").code == 125
    done = shell("lock", "a", "--wait", "0", "--at", "/", "--json")
    assert (done.code, done.out) == (125, b"")


def test_a_lock_that_nobody_can_ask_for_does_not_run_it(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    with in_place_of_a_store(monkeypatch, SimpleNamespace(claim=raising(raftsvc.NotApplied("nobody answers")))):
        done = shell("lock", "a", "--at", "/", "--", "echo", "it ran")
    assert (done.code, done.out) == (125, b"")
    assert done.err.startswith("raftsvc: nobody answers")


def test_a_lock_that_others_keep_does_not_run_it(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    with in_place_of_a_store(monkeypatch, SimpleNamespace(claim=lambda name, **terms: asked.append(terms))):
        done = shell("lock", "a", "--at", "/", "--wait", "1.5", "--ttl", "7", "--", "echo", "it ran")
    assert (done.code, done.out) == (124, b"")
    assert done.err == "raftsvc: 'a' was not got, for others had it for 1.5 s; the command was not run\n"
    assert asked == [{"ttl": 7.0, "data": None, "blocking": True, "timeout": 1.5}]


class Losable:
    """A store of which a hold can be lost at will."""

    def __init__(self) -> None:
        self.holds: list[Any] = []
        self.released = 0

    def claim(self, name: str, **options: Any) -> Any:
        def release(timeout: float) -> bool:
            self.released += 1
            return False

        self.holds.append(SimpleNamespace(fence=40 + len(self.holds), lost=threading.Event(), release=release))
        return self.holds[-1]


@contextmanager
def lost_once(store: Losable, file: Path) -> Iterator[None]:
    """What is held first is lost as soon as the file is there."""

    def lose() -> None:
        eventually(file.exists, "the command runs")
        store.holds[0].lost.set()

    thread = threading.Thread(target=lose)
    thread.start()
    yield
    thread.join(PATIENCE)


# It hears no SIGTERM, and neither does what it started.
STUBBORN = 'trap "" TERM; sleep 1000 & echo $! > "$1.tmp"; mv "$1.tmp" "$1"; wait; wait; sleep 1000'


def test_a_command_is_ended_with_all_that_it_started_once_the_lock_is_lost(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store, file = Losable(), tmp_path / "pid"
    with in_place_of_a_store(monkeypatch, store), lost_once(store, file):
        done = shell("lock", "a", "--at", "/", "--ttl", "2", "--", "sh", "-c", STUBBORN, "sh", str(file))
    assert done.code == 123
    assert done.err == "raftsvc: the lock 'a' was lost, and the command was ended; others may have it\n"
    assert store.released == 1
    eventually(lambda: not is_alive(int(file.read_text())), "what it started has ended")


def test_what_is_lost_before_the_command_begins_does_not_run_it(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Losable()
    claim = store.claim

    def lose(name: str, **options: Any) -> Any:
        hold = claim(name)
        hold.lost.set()
        return hold

    monkeypatch.setattr(store, "claim", lose)
    with in_place_of_a_store(monkeypatch, store):
        done = shell("lock", "a", "--at", "/", "--", "echo", "it ran")
    assert (done.code, done.out, store.released) == (123, b"", 1)


def test_who_lost_an_election_takes_part_anew(shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "begun"
    script = f"echo $RAFTSVC_FENCE; [ -e {file} ] && exit 3; touch {file}; exec sleep 1000"
    for words, code, out in (([], 3, b"40\n41\n"), (["--once"], 123, b"40\n")):
        store = Losable()
        file.unlink(missing_ok=True)
        with in_place_of_a_store(monkeypatch, store), lost_once(store, file):
            done = shell("elect", "a", "--at", "/", *words, "--", "sh", "-c", script)
        assert (done.code, done.out) == (code, out)
        assert done.err.count("leading 'a' was lost") == 1
        assert store.released == len(store.holds)


def test_who_lost_an_election_and_does_not_lead_again_says_that_it_was_lost(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "begun"
    again: list[Callable[..., Any]] = [lambda *_, **__: None, raising(raftsvc.NotApplied("nobody answers"))]
    for number, then in enumerate(again):
        store = Losable()
        claim = store.claim

        def claim_once(name: str, claim: Any = claim, store: Any = store, then: Any = then, **options: Any) -> Any:
            return then() if store.holds else claim(name, **options)

        monkeypatch.setattr(store, "claim", claim_once)
        with in_place_of_a_store(monkeypatch, store), lost_once(store, tmp_path / f"begun-{number}"):
            script = f"touch {file}-{number}; exec sleep 1000"
            done = shell("elect", "a", "--at", "/", "--wait", "1", "--", "sh", "-c", script)
        assert done.code == 123
        assert "leading 'a' was lost, and not got again: " in done.err
    assert "nobody answers" in done.err


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
@pytest.mark.parametrize(("command", "place"), [("lock", "lock:kept"), ("elect", "election:kept")])
def test_who_is_ended_while_he_waits_gives_up_his_place(
    here: Shell, node: Node, name: str, command: str, place: str
) -> None:
    store = kv.KeyValue(node.service, node.state)
    number = getattr(signal, name)
    former = signal.signal(number, signal.default_int_handler)  # as whoever runs the tests in the background has not
    try:
        with store.claim(place, ttl=3600, timeout=PATIENCE):  # not lost, however busy the machine is

            def end_it() -> None:
                eventually(lambda: len(store.claims(place)) == 2, "it waits")
                os.kill(os.getpid(), number)

            thread = threading.Thread(target=end_it)
            thread.start()
            done = here(command, "kept", "--ttl", "3600", "--", "echo", "it ran")
            thread.join(PATIENCE)
            assert (done.code, done.out) == (128 + number, b"")
            eventually(lambda: len(store.claims(place)) == 1, "it waits no more, long before its lease would be over")
    finally:
        signal.signal(number, former)


def test_a_signal_that_comes_while_the_command_is_being_ended_goes_to_it(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The command is gone, and what it started is not yet: whoever ended this process would leave that behind."""
    store, file = Losable(), tmp_path / "pid"
    ended = Child._end
    script = f'(trap "" TERM; sleep 1000) & echo $! > {file}.tmp; mv {file}.tmp {file}; trap "exit 0" TERM; wait'

    def end(self: Child, grace: float) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        ended(self, grace)

    monkeypatch.setattr(Child, "_end", end)
    with in_place_of_a_store(monkeypatch, store), lost_once(store, file):
        done = shell("lock", "a", "--at", "/", "--ttl", "2", "--", "sh", "-c", script)
    assert done.code == 123
    eventually(lambda: not is_alive(int(file.read_text())), "what it started has ended")


def test_an_election_shows_who_leads(here: Shell, node: Node) -> None:
    nobody = here("elect", "shown", "--json")
    assert (nobody.code, nobody.json) == (1, {"name": "shown", "leader": None})
    store = kv.KeyValue(node.service, node.state)
    with store.election("shown", data=b"me").lead():
        assert here("elect", "shown").out == b"me\n"
        assert here("elect", "shown", "--wait", "0", "--", "true").code == 124
    with environment_of(here):
        done = here("elect", "shown", "--value", "you", "--", sys.executable, "-m", "raftsvc", "elect", "shown")
    assert (done.code, done.out) == (0, b"you\n")


def test_a_signal_goes_to_the_command(here: Shell, tmp_path: Path) -> None:
    file = tmp_path / "begun"
    script = f'trap "exit 9" TERM; touch {file}; while :; do sleep 0.05; done'

    def signal_it() -> None:
        eventually(file.exists, "the command runs")
        os.kill(os.getpid(), signal.SIGTSTP)  # which does nothing
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=signal_it)
    thread.start()
    done = here("lock", "signal", "--", "sh", "-c", script)
    thread.join()
    assert done.code == 9
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("command", ["lock", "elect"])
@pytest.mark.parametrize("is_dropped", [False, True])
def test_who_is_ended_before_he_waits_runs_nothing(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, name: str, command: str, is_dropped: bool
) -> None:
    """While it connects, or where Python drops what a signal raises."""
    number = getattr(signal, name)
    former = signal.signal(number, signal.default_int_handler)
    store = Losable()

    def come() -> None:
        with suppress(interrupts.Ended) if is_dropped else nullcontext():
            signal.raise_signal(number)

    claim = store.claim

    def claim_and_drop(name: str, **options: Any) -> Any:
        if is_dropped:
            come()
        return claim(name)

    @contextmanager
    def connecting(self: Any, *addrs: str) -> Iterator[Any]:
        if not is_dropped:
            come()
        yield store

    monkeypatch.setattr(store, "claim", claim_and_drop)
    monkeypatch.setattr(Where, "store", connecting)
    try:
        done = shell(command, "a", "--at", "/", "--", "echo", "it ran")
    finally:
        signal.signal(number, former)
    assert (done.code, done.out) == (128 + number, b"")
    assert store.released == len(store.holds) == int(is_dropped)
