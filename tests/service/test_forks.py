"""A forked child has copies of a Service and nothing that runs: whoever asks there is told so, at once."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import raftsvc
from raftsvc import kv

from .face import OF_THE_NODE, calls_of
from .harness import PATIENCE, SECRET, Cluster, eventually, free_address, has_streams

ANSWERING = {"__call__", "err", "is_live", "is_ready", "operator_app", "stop", "wsgi_app"}
"""What does not raise in a forked child, and says so in another way, as tested below; all else raises ForkedError."""
SERVICE, SERVICE_BRIEFLY = calls_of(raftsvc.Service), calls_of(raftsvc.Service, whole=False)


def test_every_method_that_answers_there_is_one() -> None:
    assert not ANSWERING - set(SERVICE)


def in_child(act: Callable[[], object]) -> None:
    """Run `act` in a forked child; fails if it raises there, or takes long."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(int(PATIENCE / 2))  # which ends it, and shows first where it was
            faulthandler.register(signal.SIGALRM, file=2, chain=True)
            act()
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.stderr)
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def request(service: raftsvc.Service, path: str, method: str = "GET") -> tuple[int, dict[str, object]]:
    answer: list[str] = []
    environ = {
        "REQUEST_METHOD": method,
        "PATH_INFO": f"/raft/{path}",
        "HTTP_RAFT_FROM": "2",
        "wsgi.input": open(os.devnull, "rb"),  # noqa: SIM115
        "CONTENT_LENGTH": "0",
    }
    body = b"".join(service(environ, lambda status, headers: answer.append(status)))
    return int(answer[0][:3]), json.loads(body)


def test_every_question_to_a_forked_child_is_answered_whatever_was_locked_at_the_fork(cluster: Cluster) -> None:
    node = cluster.add()
    service = node.service
    service.init()
    service.exec(b"a", timeout=PATIENCE)

    def ask() -> None:
        assert isinstance(service.err(), raftsvc.ForkedError)
        assert not service.is_live()
        assert not service.is_ready()
        service.stop()
        for name in SERVICE.keys() - ANSWERING:
            for calls in (SERVICE, SERVICE_BRIEFLY):
                with pytest.raises(raftsvc.ForkedError):
                    calls[name](service)
        for method, path in [("GET", p) for p in ("livez", "readyz", "status", "metrics", "stream")] + [
            ("POST", p) for p in ("msg", "snapshot", "join", "confirm")
        ]:
            status, problem = request(service, path, method)
            assert (status, problem["code"]) == (503, "forked"), path
        status, problem = request(service.operator_app, "feed")
        assert (status, problem["code"]) == (503, "ForkedError")

    # As if other threads had them, which are not in the child to give them back.
    locks = [service._node._turn.lock, service._app._lock, service._admission._lock, service._membership._lifecycle]
    locks.append(service._console._lock)
    for lock in locks:
        lock.acquire()
    try:
        in_child(ask)
    finally:
        for lock in locks:
            lock.release()
    assert service.exec(b"c", timeout=PATIENCE), "the parent goes on"


def test_nothing_of_the_key_value_store_answers_in_a_forked_child(tmp_path: Path) -> None:
    states = raftsvc.States(kv=kv.KeyValueState())
    service = raftsvc.start(free_address(), tmp_path / "n", None, states, secret=SECRET)
    part, state = states.part("kv", service), states["kv"]
    store = kv.KeyValue(part, state)
    try:
        service.init()
        store.set("a", b"1", timeout=PATIENCE)
        in_child(lambda: None)

        def call_all() -> None:
            for thing, but, answering in (
                (store, (), {"namespace"}),
                (store.namespace("below/"), (), {"namespace"}),
                (kv.KeyValue(part, state), (), {"namespace"}),
                (part, (), {"err"}),
                (state, OF_THE_NODE, {"scope"}),
            ):
                for whole in (True, False):
                    calls = calls_of(type(thing), whole=whole, but=but)
                    assert answering <= set(calls)
                    for name, call in calls.items():
                        if name not in answering:
                            try:
                                call(thing)
                            except raftsvc.ForkedError:
                                continue
                            raise AssertionError(f"{name} of {thing} answers")

        with state._applying.lock:
            in_child(call_all)
        assert store.get_stale("a", max_age=100.0, timeout=PATIENCE)
    finally:
        service.stop()


def test_a_state_that_was_made_before_a_fork_serves_the_child_that_starts_with_it(tmp_path: Path) -> None:
    state = kv.KeyValueState()
    assert state.get("a") is None

    def serve() -> None:
        for _ in range(2):  # founded, and then from the log
            service = raftsvc.start(free_address(), tmp_path / "n", None, kv.KeyValueState(), secret=SECRET)
            service.stop()
        service = raftsvc.start(free_address(), tmp_path / "n", None, state, secret=SECRET)
        service.init()
        kv.KeyValue(service, state).set("a", b"1", timeout=PATIENCE)
        assert state.get("a") is not None
        service.stop()

    in_child(serve)


@pytest.mark.parametrize("is_the_library_s", [True, False])
def test_a_forked_child_keeps_no_connection_to_a_peer(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, is_the_library_s: bool
) -> None:
    if is_the_library_s:
        start = raftsvc.start
        monkeypatch.setattr(
            "raftsvc.start", lambda addr, path, session, *rest, **named: start(addr, path, None, *rest, **named)
        )
    members = cluster.form(3)
    eventually(lambda: has_streams(members), "streams are held open")
    for member in members:
        member.service.exec(b"a", timeout=PATIENCE)
    peers = {member.addr for member in members}

    def connections() -> set[str]:
        found = set()
        for name in os.listdir("/proc/self/fd"):
            try:
                connection = socket.socket(fileno=int(name))
            except OSError:  # it is none
                continue
            with suppress(OSError):  # it is a listener
                host, port = connection.getpeername()[:2]
                found.add(f"{host}:{port}")
            connection.detach()
        return found & peers

    assert connections() == peers, "there are some"

    def look() -> None:
        assert not connections()

    in_child(look)
    for member in members:
        assert member.service.exec(b"b", timeout=PATIENCE)
    assert has_streams(members), "those of the parent go on"
