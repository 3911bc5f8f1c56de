"""A process that had better not have a node, such as a command of a framework, is a client of its server's."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import requests

import raftsvc
import raftsvc.kv
from raftsvc.client.guest import Guest
from raftsvc.errors import ConfigurationError
from raftsvc.kv.queries import LIST, Question
from raftsvc.testing.workload import RegisterState
from tests.attached.hosts import ROOT, eventually, free_port
from tests.test_refusals import SECRET, below, module

T = TypeVar("T")

PROGRAM = """
import click
from flask import Flask
import raftsvc
from raftsvc.kv import start_from_env

kv = start_from_env()
app = Flask(__name__)
flags = kv.mirror("flags/")
jobs = kv.jobs()

@jobs.every(1)
def tick():
    kv.incr("ticks")

@kv.on_change("flags/")
def changed(event):
    print(event)

jobs.start()

@app.post("/visits")
def visit():
    return {"visits": kv.incr("visits")}

@app.cli.command("visit")
def visit_once():
    print("visits:", kv.incr("visits"), type(kv.service).__name__)

@app.cli.command("greet")
def greet():
    print("hello")
"""


def environ_of(path: Path, addr: str) -> dict[str, str]:
    return {
        "RAFTSVC_SECRET": SECRET,
        "RAFTSVC_INITIAL_CLUSTER": addr,
        "RAFTSVC_ADDR": addr,
        "RAFTSVC_DIR": str(path / "data"),
    }


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Any]:
    """The store of a server, which is this process."""
    kv = raftsvc.kv.start_from_env(environ_of(tmp_path, f"127.0.0.1:{free_port()}"))
    try:
        kv.service.wait_formed(60)
        yield kv
    finally:
        kv.service.stop()


def run(path: Path, addr: str, *words: str) -> subprocess.CompletedProcess[str]:
    (path / "app.py").write_text(PROGRAM)
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=path,
        env={**os.environ, **environ_of(path, addr), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.processes
def test_a_command_of_flask_works_with_the_node_of_its_server(tmp_path: Path, node: Any) -> None:
    pytest.importorskip("flask")
    assert node.incr("visits") == 1
    done = run(tmp_path, "127.0.0.1:1", "flask", "visit")
    assert done.stdout == "visits: 2 Guest\n", done.stderr
    assert node.get("visits").data == b"2"


@pytest.mark.processes
def test_a_command_without_a_server_does_what_needs_no_node_and_says_what_it_lacks(tmp_path: Path) -> None:
    pytest.importorskip("flask")
    addr = f"127.0.0.1:{free_port()}"
    done = run(tmp_path, addr, "flask", "greet")
    assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr
    assert re.search(r"this is `python -m flask greet`.*no process of this host has.*lock_timeout=10", done.stderr)
    assert not (tmp_path / "data").exists()


@pytest.mark.processes
def test_under_a_reloader_the_child_has_the_node_and_the_parent_none(tmp_path: Path) -> None:
    pytest.importorskip("flask")
    (tmp_path / "app.py").write_text(PROGRAM)
    url, addr = f"http://127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    environ = {**os.environ, **environ_of(tmp_path, addr), "PYTHONPATH": str(ROOT)}
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "flask", "run", "--debug", "--port", url.rpartition(":")[2]],
            cwd=tmp_path,
            env=environ,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:

        def is_counted() -> bool:
            assert server.poll() is None, (tmp_path / "log").read_text()
            with suppress(requests.RequestException):
                return requests.post(f"{url}/visits", timeout=10).status_code == 200
            return False

        eventually(is_counted, "a visit is counted")
        assert "which no process of this host has" not in (tmp_path / "log").read_text(), "nobody could have it yet"
        owner = int((tmp_path / "data" / "lock").read_text().split()[1])
        assert owner != server.pid
        (tmp_path / "app.py").write_text(PROGRAM + "# changed\n")
        eventually(lambda: f"process {owner} " not in _note(tmp_path) and _note(tmp_path), "another child has it")
        eventually(is_counted, "a visit is counted")
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # the parent, and the child that it would leave
        server.wait(60)


def _note(path: Path) -> str:
    try:
        return (path / "data" / "lock").read_text()
    except OSError:
        return ""


def test_what_takes_a_node_is_refused_where_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: Any, caplog: pytest.LogCaptureFixture
) -> None:
    utility = type("ManagementUtility", (), {"__module__": "django.core.management", "argv": ["manage.py", "shell"]})
    module(monkeypatch, "django.core.management")
    caplog.set_level(logging.INFO, "raftsvc")
    environ = environ_of(tmp_path, "127.0.0.1:1")
    kv = below(utility())(lambda: raftsvc.kv.start_from_env(environ))
    assert "this is `manage.py shell`: it is a client of the node in" in caplog.text
    kv.set("a", b"b")
    assert node.get("a").data == kv.get("a").data == b"b"
    with pytest.raises(ConfigurationError):
        kv.watch("")
    service = kv.service
    assert isinstance(service, Guest)
    assert service.status()["role"] == "leader"
    assert service.err() is None
    assert not service.is_leader
    of_services = {name for name in dir(raftsvc.Service) if not name.startswith("_")}
    refused = {name for name in of_services if name not in dir(Guest)}
    for name in refused:
        with pytest.raises(ConfigurationError, match=rf"{name} takes a node.*`manage\.py shell`"):
            getattr(service, name)("something")
    assert {"exec", "propose", "wait_read", "status", "stop"} <= of_services - refused
    with pytest.raises(AttributeError):
        service.no_such_thing  # noqa: B018
    service.stop()


def in_a_command(monkeypatch: pytest.MonkeyPatch, call: Callable[[], T]) -> T:
    """As if `manage.py check` called it."""
    utility = type("ManagementUtility", (), {"__module__": "django.core.management", "argv": ["manage.py", "check"]})
    module(monkeypatch, "django.core.management")
    return below(utility())(call)


def test_start_tells_a_command_what_to_write_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    addr = f"127.0.0.1:{free_port()}"

    def start(state: raftsvc.State, **options: Any) -> raftsvc.Service:
        return raftsvc.start(addr, tmp_path / "n", None, state, secret=SECRET, **options)

    line = re.escape(f"raftsvc.connect('{tmp_path / 'n'}')")
    with pytest.raises(ConfigurationError, match=line):
        in_a_command(monkeypatch, lambda: start(RegisterState(), listen=addr))
    with pytest.raises(ConfigurationError, match="ask the server over HTTP"):
        in_a_command(monkeypatch, lambda: start(raftsvc.kv.KeyValueState()))
    assert not (tmp_path / "n").exists()
    service = in_a_command(monkeypatch, lambda: start(raftsvc.kv.KeyValueState(), listen=addr, lock_timeout=1.0))
    service.stop()


def test_what_start_returns_to_a_command_is_a_client_and_its_state_is_read_by_no_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: Any
) -> None:
    state = raftsvc.kv.KeyValueState()
    directory, addr = tmp_path / "data", "127.0.0.1:1"
    service = in_a_command(monkeypatch, lambda: raftsvc.start(addr, directory, None, state, secret=SECRET, listen=addr))
    assert isinstance(service, Guest)
    kv = raftsvc.kv.KeyValue(service, state)
    node.set("a", b"b")
    assert kv["a"] == b"b"
    assert kv.get_stale("a").data == b"b"
    assert kv.incr("n") == 1
    assert not kv.is_here
    assert raftsvc.kv.KeyValue(service, state)._reader is kv._reader, "with one lease for both"
    reads = {name for name in dir(raftsvc.kv.KeyValueState) if not name.startswith("_")} - NO_READS | {"__len__"}
    for name in reads:
        arguments = ARGUMENTS.get(name, ())
        for look in (partial(getattr(state, name), *arguments), partial(in_a_thread, getattr(state, name), *arguments)):
            with pytest.raises(ConfigurationError, match=r"`manage\.py check`, has no node.*read by a KeyValue"):
                look()
    with pytest.raises(ConfigurationError, match="has no node"):
        raftsvc.kv.KeyValue(Wrapped(service), state)
    service.stop()


def in_a_thread(call: Callable[..., T], *arguments: object) -> T:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call, *arguments).result(60)


class Wrapped:
    """As an application may put its own around a Service."""

    def __init__(self, service: Any) -> None:
        self.propose, self.wait_read = service.propose, service.wait_read


NO_READS = {
    *("apply", "apply_at", "begin_anew", "pass_time", "set_applied_index", "set_peer_addr", "remove_peer_addr"),
    *("set_voters", "refuse_reads", "restore_snapshot", "restore_chunks", "write_file", "wake_all", "leave"),
    *("companion", "timekeeping", "is_key_value_store"),
    # What is of the node, the members or a text, and not of what is stored.
    *("applied_index", "next_deadline", "peers", "next_node_id", "increment_next_node_id", "empty_write", "warning"),
    *("admission", "scope", "complete_index", "place_of", "await_claims"),
}
PLACE = "a", "0" * 16, 1
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "get": ("a",),
    "get_many": (["a"],),
    "claims": ("a",),
    "fence_of": (PLACE,),
    "item_of": (PLACE,),
    "item_counts": ("a",),
    "job": ("a",),
    "clock": (1,),
    "overview": (3,),
    "is_allowed_member": ("127.0.0.1:1",),
    "query": (Question(LIST, ("", "")).encode(),),
    "advance": (None, 0),
}


@pytest.mark.parametrize("kind", [type("Indexed", (raftsvc.kv.KeyValueState,), {}), None])
def test_a_state_that_may_be_read_for_empty_is_refused_in_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[raftsvc.kv.KeyValueState] | None
) -> None:
    state: raftsvc.State = raftsvc.States(kv=raftsvc.kv.KeyValueState()) if kind is None else kind()
    addr = "127.0.0.1:1"
    with pytest.raises(ConfigurationError, match=r"raftsvc\.connect"):
        in_a_command(monkeypatch, lambda: raftsvc.start(addr, tmp_path / "n", None, state, secret=SECRET, listen=addr))


def test_a_state_that_a_node_applies_to_is_read_on_though_a_command_starts_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: Any
) -> None:
    state = node._state
    node["a"] = b"b"
    addr = "127.0.0.1:1"
    with pytest.raises(ConfigurationError, match="applies to this State already"):
        in_a_command(monkeypatch, lambda: raftsvc.start(addr, tmp_path / "n", None, state, secret=SECRET, listen=addr))
    assert state.get("a").data == b"b"


def test_a_command_needs_nothing_of_what_a_node_is_started_with_but_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: Any
) -> None:
    environ = {"RAFTSVC_ADDR": "192.0.2.1:8001", "RAFTSVC_DIR": str(tmp_path / "data")}
    kv = in_a_command(monkeypatch, lambda: raftsvc.kv.start_from_env(environ))
    assert kv.incr("n") == 1
    kv.service.stop()


def test_an_application_can_be_loaded_by_a_command_whatever_it_declares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "raftsvc")
    environ = environ_of(tmp_path, "127.0.0.1:1")
    kv = in_a_command(monkeypatch, lambda: raftsvc.kv.start_from_env(environ))
    node.set("flags/new", b"on")
    flags = kv.mirror("flags/")
    assert (flags["new"], dict(flags), len(flags)) == (b"on", {"new": b"on"}, 1)
    with pytest.raises(KeyError):
        flags["old"]
    assert kv.namespace("fla").mirror("gs/", max_age=0).copy() == {"new": b"on"}
    with pytest.raises(ConfigurationError, match="connected client"):
        flags.copy_at()

    told: list[object] = []
    assert kv.on_change("flags/")(told.append) == told.append
    with pytest.raises(ConfigurationError):
        kv.on_change("flags/")(5)  # type: ignore[type-var]
    assert "told of changes below 'flags/': not in this process, `manage.py check`" in caplog.text
    jobs = kv.jobs()

    @jobs.every(1)
    def tick() -> None:
        told.append("tick")

    jobs.start()
    assert "jobs: not in this process" in caplog.text
    assert (jobs.history("tick"), jobs.names()) == ([], [])
    assert jobs._scheduler is None
    assert jobs.stop()

    kv.service.add_listener(told.append)()
    assert "told of events: not in this process" in caplog.text
    with pytest.raises(ConfigurationError):
        kv.service.add_listener(5)
    asyncio.run(kv.service.aio.wait_read())
    (tmp_path / "keys").write_bytes(b"key")
    used: list[bytes] = []
    kv.service.watch_file("keys", tmp_path / "keys", lambda data: used.append(data) or "used")()
    assert used == [b"key"]
    with pytest.raises(ConfigurationError, match="cannot be read"):
        kv.service.watch_file("keys", tmp_path / "none", lambda data: "used")
    with pytest.raises(ConfigurationError, match="operator_app takes a node"):
        kv.service.operator_app.limited(read_only=True)({}, lambda *head: None)
    with pytest.raises(ConfigurationError, match="wsgi_app takes a node"):
        kv.service({}, lambda *head: None)
    assert told == []
    kv.service.stop()


def test_nobody_waits_for_a_cluster_while_an_application_is_loaded_by_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = environ_of(tmp_path, "127.0.0.1:1")
    kv = in_a_command(monkeypatch, lambda: raftsvc.kv.start_from_env(environ))
    kv.service.wait_formed(float(2**20))
    with pytest.raises(ConfigurationError):
        kv.service.wait_formed(float("nan"))
    mirror = kv.mirror("flags/", timeout=0.1)
    with pytest.raises(raftsvc.ReadTimeoutError, match=r"0\.1 s"):
        mirror.get("new")


def test_a_connected_client_mirrors_what_members_have_and_is_told_of_no_changes(tmp_path: Path, node: Any) -> None:
    node.set("flags/new", b"on")
    kv = raftsvc.connect(tmp_path / "data")
    assert kv.mirror("flags/") == {"new": b"on"}
    with pytest.raises(ConfigurationError, match="watch at a member"):
        kv.on_change("flags/")
    with pytest.raises(ConfigurationError, match="runs no jobs"):
        kv.jobs().start()
    kv.service.close()


def test_a_connected_client_looks_at_jobs_and_has_one_forgotten(tmp_path: Path, node: Any) -> None:
    below = node.namespace("app/")
    runners = below.jobs(ttl=2)
    runners.every(1, name="tick")(lambda: None)
    runners.once("fill", lambda: None)
    runners.start()
    kv = raftsvc.connect(tmp_path / "data")
    jobs = kv.namespace("app/").jobs()
    jobs.every(1, name="tick")(lambda: None)
    jobs.once("fill", lambda: None)
    eventually(lambda: [run.state for run in jobs.history("fill")] == ["done"], "it ran once")
    eventually(lambda: jobs.history("tick"), "one runs each second")
    assert jobs.names() == runners.names() == ["fill", "tick"]
    assert jobs.history("fill") == runners.history("fill")
    run = jobs.history("tick")[0]
    assert (run.attempt, run.who) == (1, runners.history("tick")[0].who)
    assert kv.jobs().names() == [], "those of another namespace are others"
    due = jobs.next_runs()
    assert due["fill"] is None
    assert due["tick"] is not None
    assert runners.stop()
    eventually(lambda: jobs.forget("tick"), "no run of it is under way")
    assert (jobs.names(), jobs.history("tick"), jobs.forget("tick")) == (["fill"], [], False)
    kv.service.close()


def test_a_command_that_is_a_server_has_a_node_if_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    utility = type("ManagementUtility", (), {"__module__": "django.core.management", "argv": ["manage.py", "serve"]})
    module(monkeypatch, "django.core.management")
    environ = environ_of(tmp_path, f"127.0.0.1:{free_port()}")
    kv = below(utility())(lambda: raftsvc.kv.start_from_env(environ, lock_timeout=1.0))
    try:
        assert isinstance(kv.service, raftsvc.Service)
    finally:
        kv.service.stop()
