"""The example of the extension of Flask behind gunicorn: three hosts with two workers each, of which one is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
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
        }
        command = [str(Path(sys.executable).parent / "gunicorn"), "--workers", "2", "--threads", "4"]
        command += ["--no-control-socket", "--graceful-timeout", "5", "--chdir", str(ROOT / "examples")]
        command += ["--bind", self.url.removeprefix("http://"), "visits:app"]
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


def test_the_count_goes_on_over_a_host_that_is_lost(hosts: list[Host]) -> None:
    counts = [host.visit() for _ in range(4) for host in hosts]
    assert counts == sorted(set(counts)), "each visit has a number of its own, wherever it was counted"
    hosts[0].lose()
    counts += [host.visit() for _ in range(4) for host in hosts[1:]]
    assert counts == sorted(set(counts))
