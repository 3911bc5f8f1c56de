"""The example of Django's tasks: three hosts of two web workers and two workers of tasks each, of which one is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.attached.hosts import ROOT, eventually, free_port
from tests.ext.counting import environ_of

pytest.importorskip("django")
pytest.importorskip("gunicorn")
if find_spec("django.tasks") is None:
    pytest.skip("tasks are new in Django 6.0, which takes Python 3.12", allow_module_level=True)
pytestmark = pytest.mark.processes


class Host:
    def __init__(self, path: Path, addr: str, addrs: list[str]) -> None:
        path.mkdir()
        self.url = f"http://127.0.0.1:{free_port()}"
        self._log = path / "log"
        self._environ = {
            **os.environ,
            **environ_of(addr, addrs),
            "DJANGO_SETTINGS_MODULE": "letters",
            "SECRET_KEY": "a key of the tests, long enough",
            "RAFTSVC_DIR": str(path / "data"),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'examples'}",
        }
        self._processes: list[subprocess.Popen[bytes]] = []
        bind = self.url.removeprefix("http://")
        self._run(
            "gunicorn", "--workers", "2", "--threads", "4", "--no-control-socket", "--bind", bind, "letters:serve()"
        )

    def _run(self, *words: str) -> None:
        command = [sys.executable, "-m", *words]
        with self._log.open("ab") as log:
            self._processes.append(
                subprocess.Popen(command, env=self._environ, stdout=log, stderr=log, start_new_session=True)
            )

    def work(self) -> None:
        """Have two workers of tasks."""
        for _ in range(2):
            self._run("django", "raft_worker")

    def ask(self, method: str, path: str) -> dict[str, Any]:
        """What it answers, once that is known."""

        def ask() -> dict[str, Any]:
            with suppress(requests.RequestException):
                answer = requests.request(method, self.url + path, timeout=30)
                if answer.status_code == 200:
                    return dict(answer.json())
            return {}

        said: dict[str, Any] = eventually(ask, f"{path} is answered; {self._log.read_text()}")
        return said

    def lose(self) -> None:
        """Every process of it at once."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self._processes:
            process.wait(30)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[Host]]:
    addrs = [f"127.0.0.1:{free_port()}" for _ in range(3)]
    made = [Host(tmp_path / f"h{number}", addr, addrs) for number, addr in enumerate(addrs)]
    yield made
    for host in made:
        host.lose()


def test_what_was_posted_at_any_host_is_sent_over_one_that_is_lost(hosts: list[Host]) -> None:
    posted = [host.ask("POST", "/letters")["id"] for host in hosts]
    for host in hosts:
        host.work()
    posted += [host.ask("POST", "/letters")["id"] for host in hosts]
    hosts[0].lose()
    posted += [host.ask("POST", "/letters")["id"] for host in hosts[1:]]

    def are_sent() -> bool:
        return all(hosts[1].ask("GET", f"/letters/{each}")["status"] == "SUCCESSFUL" for each in posted)

    eventually(are_sent, "all that was posted is sent, whoever had it")
