"""Examples of Flask, the cache and limits behind gunicorn: three hosts of two workers each, of which one is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import pytest
import requests

from tests.attached.hosts import ROOT, eventually, free_port

pytest.importorskip("flask")
pytest.importorskip("gunicorn")
pytestmark = pytest.mark.processes


class Host:
    def __init__(self, path: Path, addr: str, addrs: list[str]) -> None:
        path.mkdir()
        self.url = f"http://127.0.0.1:{free_port()}"
        self._log = path / "log"
        environ = {
            **os.environ,
            "RAFTSVC_SECRET": "a secret of the tests, long enough",
            "RAFTSVC_INITIAL_CLUSTER": ",".join(addrs),
            "RAFTSVC_ADDR": addr,
            "RAFTSVC_DIR": str(path / "data"),
            "PYTHONPATH": str(ROOT),
            "CACHE_KEY": "a key of the tests, long enough",
        }
        command = [str(Path(sys.executable).parent / "gunicorn"), "--workers", "2", "--threads", "4"]
        command += ["--no-control-socket", "--graceful-timeout", "5", "--chdir", str(ROOT / "examples")]
        command += ["--bind", self.url.removeprefix("http://"), "quotes:app"]
        with self._log.open("wb") as log:
            self._popen = subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)

    def visit(self) -> int:
        """The count, once there is an answer that knows it."""

        def visit() -> int:
            with suppress(requests.RequestException):
                answer = requests.post(f"{self.url}/visits", timeout=30)
                if answer.status_code == 200:
                    return int(answer.json()["visits"])
            return 0

        count: int = eventually(visit, f"a visit is counted; {self._log.read_text()}")
        return count

    def quote(self) -> tuple[int, int]:
        """Status, and by which process it was made."""
        answer = requests.get(f"{self.url}/quote", timeout=30)
        return answer.status_code, int(answer.json()["by"]) if answer.ok else 0

    def lose(self) -> None:
        """Every process of it at once."""
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait(30)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[Host]]:
    addrs = [f"127.0.0.1:{free_port()}" for _ in range(3)]
    made = [Host(tmp_path / f"h{number}", addr, addrs) for number, addr in enumerate(addrs)]
    yield made
    for host in made:
        host.lose()


def until_refused(hosts: list[Host]) -> tuple[int, list[int]]:
    """How many of those who asked for a quote do not know whether it counted, and by which processes others' are."""
    answers: list[tuple[int, int]] = []
    turns = cycle(hosts)

    def ask() -> bool:
        answers.append(next(turns).quote())
        return answers[-1][0] == 429

    eventually(ask, "no more quotes are given")
    return sum(status >= 500 for status, _ in answers), [by for status, by in answers if status == 200]


def test_what_hosts_count_and_keep_together_goes_on_over_one_that_is_lost(hosts: list[Host]) -> None:
    counts = [host.visit() for _ in range(4) for host in hosts]
    assert counts == sorted(set(counts)), "each visit has a number of its own, wherever it was counted"
    unknown, makers = until_refused(hosts)
    assert 5 - unknown <= len(makers) <= 5, "of an hour, wherever they are asked for"
    assert len(set(makers)) == 1, "it is made once"
    hosts[0].lose()
    counts += [host.visit() for _ in range(4) for host in hosts[1:]]
    assert counts == sorted(set(counts))
    assert until_refused(hosts[1:])[1] == [], "nor is that forgotten"
