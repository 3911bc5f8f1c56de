"""The example of the extension of Django behind gunicorn: three hosts with two workers each, of which one is lost."""

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

pytest.importorskip("django")
pytest.importorskip("gunicorn")
pytestmark = pytest.mark.processes


class Host:
    def __init__(self, path: Path, addr: str, addrs: list[str]) -> None:
        path.mkdir()
        self.url = f"http://127.0.0.1:{free_port()}"
        self._log = path / "log"
        environ = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "guests",
            "SECRET_KEY": "a key of the tests, long enough",
            "RAFTSVC_SECRET": "a secret of the tests, long enough",
            "RAFTSVC_INITIAL_CLUSTER": ",".join(addrs),
            "RAFTSVC_ADDR": addr,
            "RAFTSVC_DIR": str(path / "data"),
            "PYTHONPATH": str(ROOT),
        }
        command = [str(Path(sys.executable).parent / "gunicorn"), "--workers", "2", "--threads", "4"]
        command += ["--no-control-socket", "--chdir", str(ROOT / "examples")]
        command += ["--bind", self.url.removeprefix("http://"), "guests:application"]
        with self._log.open("wb") as log:
            self._popen = subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)

    def visit(self, cookies: dict[str, str]) -> tuple[int, int]:
        """Both counts, once there is an answer that knows them; `cookies` become the visitor's own."""

        def visit() -> tuple[int, int] | None:
            with suppress(requests.RequestException):
                answer = requests.get(f"{self.url}/visits", cookies=cookies, timeout=30)
                if answer.status_code == 200:
                    cookies.update(answer.cookies.get_dict())
                    return answer.json()["visits"], answer.json()["yours"]
            return None

        counts: tuple[int, int] = eventually(visit, f"a visit is counted; {self._log.read_text()}")
        return counts

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


def test_a_visitor_goes_on_at_any_host_and_over_one_that_is_lost(hosts: list[Host]) -> None:
    cookies: dict[str, str] = {}
    counts = [host.visit(cookies) for host in hosts]
    hosts[0].lose()
    counts += [host.visit(cookies) for host in hosts[1:]]
    assert [visits for visits, _ in counts] == sorted({visits for visits, _ in counts}), "each visit has its own number"
    yours = [own for _, own in counts]
    assert yours == sorted(set(yours)), "whichever host was asked knows what the visitor did at the others"
