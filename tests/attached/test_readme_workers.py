"""The README's first example, unchanged, behind gunicorn with four workers a node: nobody notices that."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.attached.hosts import ROOT, eventually, free_port

pytest.importorskip("flask")
pytest.importorskip("gunicorn")
pytestmark = pytest.mark.processes

WORKERS, THREADS, CLIENTS = 4, 8, 64


class Site:
    """Three gunicorns."""

    def __init__(self, path: Path) -> None:
        (example,) = re.findall(r"```python\n(from flask import.*?)```", (ROOT / "README.md").read_text(), re.S)
        (path / "app.py").write_text(example)
        self.path = path
        self.addrs = [f"127.0.0.1:{free_port()}" for _ in range(3)]
        self.urls = [f"http://127.0.0.1:{free_port()}" for _ in range(3)]
        self.servers = [self.start(number) for number in range(3)]

    def start(self, number: int) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "RAFTSVC_SECRET": "a secret of the tests, long enough",
            "RAFTSVC_INITIAL_CLUSTER": ",".join(self.addrs),
            "RAFTSVC_ADDR": self.addrs[number],
            "RAFTSVC_DIR": str(self.path / f"data-{number}"),
            "PYTHONPATH": str(ROOT),
        }
        command = ["gunicorn", "--workers", str(WORKERS), "--threads", str(THREADS), "--no-control-socket"]
        command += ["--bind", self.urls[number].removeprefix("http://"), "app:app"]
        with (self.path / f"log-{number}").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *command], cwd=self.path, env=environment, stdout=log, stderr=log
            )

    def owner(self, number: int) -> int:
        """The process that has the node."""
        note = (self.path / f"data-{number}" / "lock").read_text()
        found = re.match(r"process (\d+) ", note)
        assert found is not None, note
        return int(found[1])

    def logs(self) -> str:
        return "\n".join((self.path / f"log-{number}").read_text()[-4000:] for number in range(3))

    def visit(self, number: int) -> requests.Response:
        return requests.post(f"{self.urls[number]}/visits", timeout=30)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    try:
        yield site
    finally:
        for server in site.servers:
            server.terminate()
        for server in site.servers:
            try:
                server.wait(40)
            except subprocess.TimeoutExpired:
                server.kill()


class Client(threading.Thread):
    """Counts visits at one node, through whichever of its workers accepts."""

    def __init__(self, site: Site, number: int, stopping: threading.Event) -> None:
        super().__init__(daemon=True)
        self.site = site
        self.number = number
        self.stopping = stopping
        self.codes: Counter[int | str] = Counter()
        self.counted: list[int] = []
        self.wrong: list[str] = []

    def run(self) -> None:
        session = requests.Session()
        while not self.stopping.is_set():
            try:
                answer = session.post(f"{self.site.urls[self.number]}/visits", timeout=30)
            except requests.RequestException:
                self.codes["cut off"] += 1
                continue
            self.codes[answer.status_code] += 1
            if answer.status_code == 200:
                self.counted.append(int(answer.json()["visits"]))
            elif answer.status_code not in (503, 504):
                self.wrong.append(answer.text)


def test_many_clients_at_four_workers_of_three_nodes_count_each_visit_once(site: Site) -> None:
    for number in range(3):
        eventually(lambda n=number: _is_counted(site, n), f"node {number} counts; {site.logs()}")  # type: ignore[misc]
    stopping = threading.Event()
    clients = [Client(site, number % 3, stopping) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    eventually(lambda: all(len(client.counted) > 10 for client in clients), "all are served")
    os.kill(site.owner(0), signal.SIGKILL)
    goals = [len(client.counted) + 10 for client in clients]
    eventually(lambda: all(len(c.counted) > goal for c, goal in zip(clients, goals, strict=True)), "all are served")
    stopping.set()
    for client in clients:
        client.join(60)
    counted = sorted(number for client in clients for number in client.counted)
    codes = sum((client.codes for client in clients), Counter[int | str]())
    assert [text for client in clients for text in client.wrong] == [], site.logs()
    assert len(counted) == len(set(counted)), "each is counted once"
    for client in clients:
        assert client.counted == sorted(client.counted), "who waits for an answer sees the number rise"
    final = int(site.visit(1).json()["visits"])
    assert final > counted[-1]
    # What was not answered may have been counted, and nothing else.
    unanswered = sum(count for code, count in codes.items() if code in (504, "cut off"))
    assert final - 1 - len(counted) <= unanswered + 3 * WORKERS, codes


def _is_counted(site: Site, number: int) -> bool:
    try:
        return site.visit(number).status_code == 200
    except requests.ConnectionError:
        assert site.servers[number].poll() is None, site.logs()
        return False
