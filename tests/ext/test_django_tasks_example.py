"""The example of Django's tasks: three hosts of two web workers and two workers of tasks each, of which one is lost."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.attached.hosts import eventually, free_port
from tests.ext.counting import Programs, three_hosts

pytest.importorskip("django")
pytest.importorskip("gunicorn")
if find_spec("django.tasks") is None:
    pytest.skip("tasks are new in Django 6.0, which takes Python 3.12", allow_module_level=True)
pytestmark = pytest.mark.processes


class Host(Programs):
    def __init__(self, path: Path, environ: Mapping[str, str]) -> None:
        key = "a key of the tests, long enough"
        super().__init__(path, {**environ, "DJANGO_SETTINGS_MODULE": "letters", "SECRET_KEY": key})
        bind = f"127.0.0.1:{free_port()}"
        self.url = f"http://{bind}"
        self._run_module(
            "gunicorn", "--workers", "2", "--threads", "4", "--no-control-socket", "--bind", bind, "letters:serve()"
        )

    def _run_module(self, *words: str) -> None:
        self.run([sys.executable, "-m", *words])

    def work(self) -> None:
        """Have two workers of tasks."""
        for _ in range(2):
            self._run_module("django", "raft_worker")

    def ask(self, method: str, path: str) -> dict[str, Any]:
        """What it answers, once that is known."""

        def ask() -> dict[str, Any]:
            with suppress(requests.RequestException):
                answer = requests.request(method, self.url + path, timeout=30)
                if answer.status_code == 200:
                    return dict(answer.json())
            return {}

        said: dict[str, Any] = eventually(ask, f"{path} is answered; {self.log.read_text()}")
        return said


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[Host]]:
    with three_hosts(Host, tmp_path) as made:
        yield made


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
