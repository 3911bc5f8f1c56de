"""uWSGI with several processes that share a node, which has a port of its own: one owns it, and another takes over."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from tests.attached.hosts import ROOT, eventually, free_port

UWSGI = shutil.which("uwsgi", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))

pytest.importorskip("flask")
pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(UWSGI is None, reason="uwsgi is not installed"),
]

APP = """
import uwsgi
from flask import Flask
from raftsvc.kv import start_from_env

kv = start_from_env()
uwsgi.atexit = kv.service.stop
app = Flask(__name__)

@app.post("/visits")
def visit():
    return {"visits": kv.incr("visits")}
"""


class Site:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.addr = f"127.0.0.1:{free_port()}"
        self.url = f"http://127.0.0.1:{free_port()}"
        (path / "app.py").write_text(APP)
        command = [str(UWSGI), "--http11-socket", self.url.removeprefix("http://"), "--module", "app:app", "--master"]
        command += ["--lazy-apps", "--processes", "3", "--threads", "4", "--die-on-term"]
        environ = {
            **os.environ,
            "RAFTSVC_SECRET": "a secret of the tests, long enough",
            "RAFTSVC_INITIAL_CLUSTER": self.addr,
            "RAFTSVC_ADDR": self.addr,
            "RAFTSVC_DIR": "data",
            "PYTHONPATH": str(ROOT),
        }
        with (path / "log").open("wb") as log:
            self.popen = subprocess.Popen(command, cwd=path, env=environ, stdout=log, stderr=log)

    def note(self) -> str:
        try:
            return (self.path / "data" / "lock").read_text()
        except OSError:
            return ""

    def count(self) -> int:
        def visit() -> int:
            assert self.popen.poll() is None, (self.path / "log").read_text()
            with suppress(requests.RequestException):
                answer = requests.post(f"{self.url}/visits", timeout=10)
                return int(answer.json()["visits"]) if answer.status_code == 200 else 0
            return 0

        number: int = eventually(visit, "a visit is counted")
        return number


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.popen.terminate()
    try:
        site.popen.wait(30)
    except subprocess.TimeoutExpired:
        site.popen.kill()


def test_processes_share_a_node_and_another_owns_it_after_a_kill_and_a_reload(site: Site) -> None:
    assert site.count() > 0
    first = int(site.note().split()[1])
    os.kill(first, signal.SIGKILL)
    eventually(lambda: site.note() and f"process {first} " not in site.note(), "another owns it")
    assert site.count() > 1
    second = int(site.note().split()[1])
    site.popen.send_signal(signal.SIGHUP)
    eventually(lambda: site.note() and f"process {second} " not in site.note(), "another owns it")
    assert site.count() > 2
    site.popen.terminate()
    site.popen.wait(60)
    assert not site.note(), "the last one left in order"
