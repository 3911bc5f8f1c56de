"""The demo application behind gunicorn with two workers, of which some are killed under load: no wrong answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.attached.hosts import ROOT, eventually, free_port

pytest.importorskip("flask")
pytest.importorskip("gunicorn")
pytestmark = pytest.mark.processes

SECRET = "a secret of the tests, long enough"
TOKEN = "token"


class Site:
    """gunicorn with two workers, and a node that they share."""

    def __init__(self, path: Path) -> None:
        self.directory = path / "data"
        self.log = path / "log"
        self.url = f"http://127.0.0.1:{free_port()}"
        environment = {
            **os.environ,
            "RAFT_ADDR": f"127.0.0.1:{free_port()}",
            "RAFT_DIR": str(self.directory),
            "RAFT_SECRET": SECRET,
            "ADMIN_TOKEN": TOKEN,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'examples'}",
        }
        command = ["gunicorn", "--workers", "2", "--threads", "8", "--bind", self.url.removeprefix("http://")]
        command += ["--graceful-timeout", "5", "--no-control-socket", "wsgi:application"]
        with self.log.open("w") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=ROOT / "examples", env=environment, stdout=log, stderr=log
            )

    def workers(self) -> list[int]:
        """Process ids of the workers."""
        children = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def form(self) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}"}

        def is_formed() -> bool:
            try:
                answer = requests.post(f"{self.url}/cluster/init", headers=headers, timeout=30)
            except requests.ConnectionError:
                assert self.popen.poll() is None, self.log.read_text()
                return False
            return answer.status_code in (200, 409)  # by this worker, or by the other one before

        eventually(is_formed, "the cluster is formed")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    if not Path("/proc/self/task").exists():
        pytest.skip("finds the workers by /proc")
    site = Site(tmp_path)
    try:
        site.form()
        yield site
    finally:
        site.popen.terminate()
        try:
            site.popen.wait(30)
        except subprocess.TimeoutExpired:
            site.popen.kill()


class Client(threading.Thread):
    """Writes rising values to a key of its own, and reads it back, by whichever worker accepts."""

    def __init__(self, site: Site, number: int, stopping: threading.Event) -> None:
        super().__init__(daemon=True)
        self.url = f"{site.url}/kv/client{number}"
        self.stopping = stopping
        self.wrong: list[object] = []
        self.written = 0
        self.refused = 0

    def run(self) -> None:
        value = acknowledged = 0
        while not self.stopping.is_set():
            value += 1
            try:
                answer = requests.put(self.url, str(value), timeout=20)
                if answer.status_code == 200:
                    acknowledged = value
                    self.written += 1
                elif answer.status_code in (503, 504):
                    self.refused += 1
                else:
                    self.wrong.append((answer.status_code, answer.text))
                answer = requests.get(self.url, timeout=20)
                if answer.status_code == 200 and not acknowledged <= int(answer.text) <= value:
                    self.wrong.append((acknowledged, answer.text, value))
                elif answer.status_code not in (200, 404, 503, 504):
                    self.wrong.append((answer.status_code, answer.text))
                elif answer.status_code == 404 and acknowledged:
                    self.wrong.append((acknowledged, "404"))
            except requests.RequestException:
                self.refused += 1  # its worker was killed


def test_workers_that_are_killed_under_load_give_no_wrong_answer(site: Site) -> None:
    stopping = threading.Event()
    clients = [Client(site, number, stopping) for number in range(4)]
    for client in clients:
        client.start()
    for _ in range(4):
        goals = [client.written + 20 for client in clients]
        eventually(
            lambda goals=goals: all(c.written >= goal for c, goal in zip(clients, goals, strict=True)),  # type: ignore[misc]
            "clients are served",
        )
        workers = eventually(lambda: len(found := site.workers()) == 2 and found, "there are two workers")
        note = (site.directory / "lock").read_text().split()
        owner = int(note[1]) if len(note) > 1 else workers[0]
        os.kill(owner if owner in workers else workers[0], signal.SIGKILL)
    goals = [client.written + 20 for client in clients]
    eventually(lambda: all(c.written >= goal for c, goal in zip(clients, goals, strict=True)), "clients are served")
    stopping.set()
    for client in clients:
        client.join(60)
    assert [client.wrong for client in clients] == [[]] * 4
    statuses = {requests.get(f"{site.url}/cluster", timeout=20).json()["role"] for _ in range(20)}
    assert statuses <= {"leader", "attached"}


def test_a_reload_loses_no_request_that_was_accepted(site: Site) -> None:
    stopping = threading.Event()
    clients = [Client(site, number, stopping) for number in range(2)]
    for client in clients:
        client.start()
    for _ in range(2):
        before = set(site.workers())
        site.popen.send_signal(signal.SIGHUP)
        eventually(lambda before=before: before.isdisjoint(site.workers()), "the workers are others")  # type: ignore[misc]
        goals = [client.written + 20 for client in clients]
        eventually(
            lambda goals=goals: all(c.written >= goal for c, goal in zip(clients, goals, strict=True)),  # type: ignore[misc]
            "clients are served",
        )
    assert site.popen.poll() is None, site.log.read_text()
    stopping.set()
    for client in clients:
        client.join(60)
    assert [client.wrong for client in clients] == [[]] * 2


SLOW_APP = """
import logging
import os
import time
from flask import Flask
import raftsvc
from raftsvc.kv import start_from_env

logging.basicConfig(level="INFO", format="%(process)d %(message)s")
kv = start_from_env()
app = Flask(__name__)
app.register_error_handler(raftsvc.RaftError, raftsvc.error_response)

@app.post("/two")
def two():
    with kv.lock("two", ttl=60):
        first = kv.incr("n")
        with open("begun.new", "w") as file:
            file.write(str(os.getpid()))
        os.rename("begun.new", "begun")
        while not os.path.exists("go on"):
            time.sleep(0.01)
        return {"first": first, "second": kv.incr("n")}
"""


@pytest.mark.parametrize("sent", [signal.SIGHUP, signal.SIGTERM])
def test_a_request_that_is_under_way_is_served_to_its_end_before_the_node_leaves(tmp_path: Path, sent: int) -> None:
    pytest.importorskip("flask")
    (tmp_path / "slow.py").write_text(SLOW_APP)
    url, addr = f"http://127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    environ = {"RAFTSVC_ADDR": addr, "RAFTSVC_INITIAL_CLUSTER": addr, "RAFTSVC_DIR": "data", "RAFTSVC_SECRET": SECRET}
    command = ["gunicorn", "--workers", "2", "--threads", "4", "--bind", url.removeprefix("http://")]
    command += ["--graceful-timeout", "120", "--no-control-socket", "slow:app"]
    with (tmp_path / "log").open("w") as log:
        popen = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=tmp_path,
            env={**os.environ, **environ, "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )
    try:
        eventually(lambda: " leads in term " in (tmp_path / "log").read_text(), "it leads")
        answers: list[requests.Response] = []
        asking = threading.Thread(target=lambda: answers.append(requests.post(f"{url}/two", timeout=100)))
        asking.start()
        eventually((tmp_path / "begun").exists, "a request is under way")
        popen.send_signal(sent)
        told = f"{(tmp_path / 'begun').read_text()} the server is shutting down"
        eventually(lambda: told in (tmp_path / "log").read_text(), "its worker is told")
        time.sleep(0.5)  # in which the node would leave
        (tmp_path / "go on").write_text("")
        asking.join(100)
        assert [answer.json() for answer in answers] == [{"first": 1, "second": 2}]
    finally:
        (tmp_path / "go on").write_text("")
        popen.terminate()
        try:
            popen.wait(60)
        except subprocess.TimeoutExpired:
            popen.kill()
