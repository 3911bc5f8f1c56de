"""The examples and the README, as a newcomer meets them: real processes, real ports, real directories."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

import raftsvc
from benchmarks import screen
from raftsvc.kv import ConflictError

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
DEADLINE_SECONDS = 180.0

pytest.importorskip("flask")
pytest.importorskip("gunicorn")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a process that finds this raftsvc and makes its temporary files where the test can see them."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}


def wait_until(condition: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < give_up, f"waited in vain until {what}"
        time.sleep(0.02)


def is_refused(url: str) -> bool:
    host, _, port = url.removeprefix("http://").partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return True
    except OSError:  # cut off, or not answered, by one that is being killed just now: it is asked again
        return False
    return False


class Example:
    """A running script of examples/ and what it has printed so far; ended with the test in any case."""

    def __init__(self, script: str, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(EXAMPLES / script)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.output = ""

    def __enter__(self) -> Example:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.process.kill()  # its nodes end with it
        self.process.communicate()

    def read_until(self, text: str) -> str:
        """Its output up to the line with `text`.  A script that hangs is ended by the time limit of the test run."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return self.output
        raise AssertionError(f"the script ended before it printed {text!r}:\n{self.output}")

    def finish(self) -> int:
        rest, _ = self.process.communicate(timeout=DEADLINE_SECONDS)
        self.output += rest
        return self.process.returncode

    @property
    def urls(self) -> list[str]:
        return sorted(set(re.findall(r"http://127\.0\.0\.1:\d+", self.output)))


@pytest.mark.processes
def test_the_demo_holds_and_leaves_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    with Example("demo.py", environment) as demo:
        assert demo.finish() == 0, demo.output
    for event in ("SIGKILL to", "acknowledged since", "caught up to entry", "EvictedError", "all of it held"):
        assert event in demo.output
    assert len(demo.urls) == 3
    assert all(is_refused(url) for url in demo.urls)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.processes
def test_the_tour_holds_and_leaves_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    with Example("tour.py", environment) as tour:
        assert tour.finish() == 0, tour.output
    for event in ("a flag that", "SIGKILL to worker", "none twice", "took stock, and was killed", "all of it held"):
        assert event in tour.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_demo_cut_short_leaves_nothing_running(
    number: signal.Signals, environment: dict[str, str], tmp_path: Path
) -> None:
    with Example("demo.py", environment) as demo:
        demo.read_until("SIGKILL to")
        demo.process.send_signal(number)
        code = demo.finish()
    assert len(demo.urls) == 3
    wait_until(lambda: all(is_refused(url) for url in demo.urls), "no node accepts connections")
    if number is not signal.SIGKILL:
        assert code == 130, demo.output
        assert list(tmp_path.iterdir()) == []


@pytest.mark.processes
def test_a_demo_whose_nodes_do_not_start_fails_and_shows_why(environment: dict[str, str]) -> None:
    with Example("demo.py", {**environment, "GUNICORN_CMD_ARGS": "--no-such-option"}) as demo:
        assert demo.finish() == 1
    assert "FAILED" in demo.output
    assert "--no-such-option" in demo.output


@pytest.mark.processes
def test_the_cluster_serves_until_it_is_interrupted(environment: dict[str, str], tmp_path: Path) -> None:
    with Example("cluster.py", environment) as cluster:
        cluster.read_until("Ctrl-C ends")
        writer, reader, third = cluster.urls
        created = requests.put(f"{writer}/kv/greeting", data="hello", headers={"If-None-Match": "*"}, timeout=30)
        assert created.status_code == 200
        read = requests.get(f"{reader}/kv/greeting", timeout=30)
        assert (read.status_code, read.content) == (200, b"hello")
        again = requests.put(f"{third}/kv/greeting", data="me too", headers={"If-None-Match": "*"}, timeout=30)
        assert (again.status_code, again.json()["code"]) == (409, "ConflictError")
        replaced = requests.put(
            f"{third}/kv/greeting", data="bye", headers={"If-Match": read.headers["ETag"]}, timeout=30
        )
        assert replaced.status_code == 200
        assert requests.get(f"{writer}/kv?prefix=greet", timeout=30).json() == {"greeting": "bye"}
        assert requests.post(f"{writer}/cluster/evict", json={"addr": "any"}, timeout=30).status_code == 401
        cluster.process.send_signal(signal.SIGINT)
        assert cluster.finish() == 0
    assert all(is_refused(url) for url in (writer, reader, third))
    assert list(tmp_path.iterdir()) == []


def free_prefixes() -> tuple[str, str]:
    """Two beginnings of ports, of which those that go on with 1, 2 and 3 are free."""
    found: list[str] = []
    for prefix in random.sample(range(1100, 3200), 2000):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for n in (1, 2, 3):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", 10 * prefix + n))
            found.append(str(prefix))
        if len(found) == 2:
            return found[0], found[1]
    raise AssertionError("all ports are taken")


def commands_beside(folder: Path, environment: dict[str, str]) -> dict[str, str]:
    """With what an installation has on the PATH, also where only the sources are."""
    (folder / "bin").mkdir()
    command = folder / "bin" / "raftsvc"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m raftsvc "$@"\n')
    command.chmod(0o755)
    places = [str(folder / "bin"), str(Path(sys.executable).parent), environment.get("PATH", os.defpath)]
    return {**environment, "PATH": os.pathsep.join(places)}


@pytest.mark.processes
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_first_screen_of_the_readme_works_when_pasted(
    environment: dict[str, str], tmp_path: Path, shell: str
) -> None:
    for command in (shell, "curl", "pgrep"):
        if shutil.which(command) is None:
            pytest.skip(f"there is no {command} here")
    commands = commands_beside(tmp_path, environment)
    folder = tmp_path / "empty"
    folder.mkdir()
    lines = [line.text for line in screen.run(folder, shell, commands, free_prefixes()) if not line.is_typed]
    assert [json.loads(line) for line in lines[:3]] == [{"visits": n} for n in (1, 2, 3)]
    assert re.fullmatch("cluster [0-9a-f]+: serves", lines[3]), lines


# -- the application alone: what an error of raftsvc becomes for an HTTP client


class FailingStore:
    """A key-value store, and a Service, all of whose methods raise the same."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def fail(*args: object, **options: object) -> Any:
            raise self._error

        return fail


@pytest.fixture
def create_app(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "app", raising=False)
    from app import create_app

    sys.modules.pop("app")
    function: Callable[..., Any] = create_app
    return function


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (raftsvc.OverloadedError("too many wait", retry_after=3.0), 503),
        (raftsvc.NotApplied("no leader"), 503),
        (raftsvc.EvictedError("this node was removed"), 503),
        (raftsvc.ReadTimeoutError("no majority"), 503),
        (raftsvc.OutcomeUnknown("time ran out"), 504),
        (ConflictError("a", 3), 409),
        (raftsvc.InstructionTooLargeError("too long"), 413),
        (raftsvc.Rejected("no such account"), 422),
        (raftsvc.StorageError("the disk is full"), 500),
        (ValueError("a key has 1 to 1024 bytes"), 400),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_becomes_a_status_that_says_what_to_do(
    create_app: Callable[..., Any], error: Exception, status: int
) -> None:
    client = create_app(FailingStore(error), FailingStore(error), "token").test_client()
    for answer in (client.put("/kv/key", data=b"value"), client.get("/kv/key"), client.delete("/kv/key")):
        assert answer.status_code == status
        assert answer.content_type == "application/problem+json"
        said = isinstance(error, (raftsvc.Rejected, ValueError))
        assert (answer.get_json(force=True)["detail"] == str(error)) == said, "the rest is for the log"
        assert ("Retry-After" in answer.headers) == (status == 503)
    if isinstance(error, raftsvc.OverloadedError):
        assert answer.headers["Retry-After"] == "3"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (raftsvc.ExistingClusterError("member already"), 409),
        (raftsvc.AddressInUseError("taken"), 409),
        (raftsvc.LastMemberError("the only voter"), 409),
        (raftsvc.AddressNotAllowedError("not on the list"), 403),
        (raftsvc.UnknownPeerError("no such member"), 404),
        (raftsvc.JoinFailedError("nobody answered"), 503),
        (raftsvc.PeerUninitializedError("in no cluster"), 503),
        (raftsvc.MembershipTimeoutError("not seen to commit"), 504),
        (raftsvc.ConfigurationError("no address"), 400),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_refused_change_of_the_cluster_becomes_a_status(
    create_app: Callable[..., Any], error: Exception, status: int
) -> None:
    client = create_app(FailingStore(error), SimpleNamespace(disallow=lambda addr: None), "token").test_client()
    operator = {"Authorization": "Bearer token"}
    assert client.post("/cluster/init", headers=operator).status_code == status
    assert client.post("/cluster/join", json={"boot_url": "a:1"}, headers=operator).status_code == status
    assert client.post("/cluster/evict", json={"addr": "a:1"}, headers=operator).status_code == status


def test_only_the_operator_changes_the_cluster(create_app: Callable[..., Any]) -> None:
    client = create_app(FailingStore(AssertionError()), FailingStore(AssertionError()), "token").test_client()
    for path in ("/cluster/init", "/cluster/allow", "/cluster/join", "/cluster/evict"):
        assert client.post(path, json={}).status_code == 401
        assert client.post(path, json={}, headers={"Authorization": "Bearer wrong"}).status_code == 401
        if path != "/cluster/init":
            assert client.post(path, json={}, headers={"Authorization": "Bearer token"}).status_code == 400
