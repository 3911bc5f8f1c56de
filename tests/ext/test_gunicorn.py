"""gunicorn's hooks: the node's port is there whatever becomes of workers and masters; nodes leave before workers."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from tests.attached.hosts import ROOT, eventually, free_port

pytest.importorskip("flask")
pytest.importorskip("gunicorn")
pytestmark = pytest.mark.processes

APP = """
import os
from flask import Flask
import raftsvc
from raftsvc.kv import start_from_env

app = Flask(__name__)
app.register_error_handler(raftsvc.RaftError, raftsvc.error_response)
kv = None

def start():
    global kv
    kv = start_from_env()

if "IN_HOOK" not in os.environ:
    start()

@app.post("/visits")
def visit():
    return {"visits": kv.incr("visits")}
"""
ALL = "from raftsvc.ext.gunicorn import *\n"
BESIDE_OWN = """
from raftsvc.ext.gunicorn import Hooks

preload_app = True

def start():
    import app
    app.start()

node = Hooks(listen="{addr}", start=start)
on_starting = node.on_starting

def post_worker_init(worker):
    node.post_worker_init(worker)
    open(f"began-{{worker.pid}}", "w").close()

def worker_exit(server, worker):
    node.worker_exit(server, worker)
    open(f"exit-{{worker.pid}}", "w").write(open("data/lock").read() if os.path.exists("data/lock") else "nobody")

import os
"""


class Site:
    """A gunicorn with two workers."""

    def __init__(self, path: Path, config: str, **environ: str) -> None:
        self.path = path
        self.ends: list[Callable[[], None]] = []
        self.addr = f"127.0.0.1:{free_port()}"
        self.url = f"http://127.0.0.1:{free_port()}"
        (path / "app.py").write_text(APP)
        (path / "gunicorn.conf.py").write_text(config.format(addr=self.addr))
        environment = {
            **os.environ,
            "RAFTSVC_SECRET": "a secret of the tests, long enough",
            "RAFTSVC_INITIAL_CLUSTER": self.addr,
            "RAFTSVC_ADDR": self.addr,
            "RAFTSVC_DIR": "data",
            "PYTHONPATH": str(ROOT),
            **environ,
        }
        # The script, and not -m: by that another master (USR2) would find modules of gunicorn in the place of others.
        command = [
            str(Path(sys.executable).parent / "gunicorn"),
            "--workers",
            "2",
            "--threads",
            "4",
            "--no-control-socket",
            "--pid",
            "pid",
        ]
        command += ["--graceful-timeout", "5", "--bind", self.url.removeprefix("http://"), "app:app"]
        with (path / "log").open("wb") as log:
            self.popen = subprocess.Popen(
                command,
                cwd=path,
                env={name: value for name, value in environment.items() if value},
                stdout=log,
                stderr=log,
            )

    def await_second(self) -> None:
        """Until another master (USR2) runs beside the first; it is ended with the site."""

        def find() -> int:
            with suppress(OSError, ValueError):
                return int((self.path / "pid.2").read_text())
            return 0

        pid: int = eventually(find, f"there is another master; {self.log()}")
        descriptor = os.pidfd_open(pid)

        def end() -> None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGTERM)
            if not select.select([descriptor], [], [], 30)[0]:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            os.close(descriptor)

        self.ends.append(end)

    def log(self) -> str:
        return (self.path / "log").read_text()

    def owner(self) -> int:
        try:
            found = re.match(r"process (\d+) ", (self.path / "data" / "lock").read_text())
        except OSError:
            return 0
        return int(found[1]) if found is not None else 0

    def count(self) -> int:
        """One more visit, though it may be refused for a while."""

        def visit() -> int:
            with suppress(requests.RequestException):
                answer = requests.post(f"{self.url}/visits", timeout=30)
                assert answer.status_code in (200, 503, 504), answer.text
                return int(answer.json()["visits"]) if answer.status_code == 200 else 0
            assert self.popen.poll() is None or self.ends, self.log()
            return 0

        number: int = eventually(visit, f"a visit is counted; {self.log()}")
        return number

    def await_owner(self, is_other: Callable[[int], bool]) -> int:
        def find() -> int:
            owner = self.owner()
            return owner if owner and is_other(owner) else 0

        owner: int = eventually(find, f"there is another owner; {self.log()}")
        return owner


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def make(config: str, **environ: str) -> Site:
        sites.append(Site(tmp_path, config, **environ))
        return sites[-1]

    yield make
    for site in sites:
        for end in site.ends:
            end()
        site.popen.terminate()
        try:
            site.popen.wait(30)
        except subprocess.TimeoutExpired:
            site.popen.kill()


class Peer(threading.Thread):
    """Asks at the node's own port again and again, each time with a connection of its own, as another node may."""

    def __init__(self, addr: str) -> None:
        super().__init__(daemon=True)
        host, port = addr.split(":")
        self.place = host, int(port)
        self.stopping = threading.Event()
        self.answered = 0
        self.refused: list[OSError] = []

    def run(self) -> None:
        while not self.stopping.is_set():
            try:
                with socket.create_connection(self.place, 30) as connection:
                    connection.sendall(b"GET /raft/livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                    self.answered += connection.recv(100).startswith(b"HTTP/1.1 200")
            except ConnectionRefusedError as error:
                self.refused.append(error)
            except OSError:
                pass  # it was accepted by a process that ended
            self.stopping.wait(0.002)


def test_the_port_of_the_node_outlives_owners_reloads_and_masters(start: Callable[..., Site]) -> None:
    if not hasattr(os, "pidfd_open"):
        pytest.skip("ends a master that it did not start by a descriptor of it")
    site = start(ALL)
    assert site.count() > 0
    peer = Peer(site.addr)
    peer.start()
    try:
        owner = site.await_owner(bool)
        os.kill(owner, signal.SIGKILL)
        second = site.await_owner(lambda pid: pid != owner)
        assert site.count() > 1
        site.popen.send_signal(signal.SIGHUP)
        third = site.await_owner(lambda pid: pid not in (owner, second))
        assert site.count() > 2
        site.popen.send_signal(signal.SIGUSR2)
        site.await_second()
        eventually(lambda: site.log().count("Booting worker") >= 7, "its workers are there")
        site.popen.terminate()
        assert site.popen.wait(60) == 0, site.log()
        site.await_owner(lambda pid: pid not in (owner, second, third))
        assert site.count() > 3
        goal = peer.answered + 3
        eventually(lambda: peer.answered > goal, "the port is served by a worker of the other master")
    finally:
        peer.stopping.set()
        peer.join(60)
    assert not peer.refused
    assert "Traceback" not in site.log(), site.log()


def test_a_master_without_hooks_after_one_with_them_has_workers_that_find_the_port(start: Callable[..., Site]) -> None:
    if not hasattr(os, "pidfd_open"):
        pytest.skip("ends a master that it did not start by a descriptor of it")
    site = start(ALL)
    assert site.count() > 0
    owner = site.await_owner(bool)
    (site.path / "gunicorn.conf.py").write_text("")
    site.popen.send_signal(signal.SIGUSR2)
    site.await_second()
    eventually(lambda: site.log().count("Booting worker") >= 4, "its workers are there")
    site.popen.terminate()
    assert site.popen.wait(60) == 0, site.log()
    site.await_owner(lambda pid: pid != owner)
    assert site.count() > 1
    peer = Peer(site.addr)
    peer.start()
    try:
        eventually(lambda: peer.answered, "the port is served by a worker of that master")
    finally:
        peer.stopping.set()
        peer.join(60)
    assert not peer.refused
    assert "cannot be bound" not in site.log(), site.log()


def test_an_application_loaded_by_the_master_has_its_node_in_the_workers_and_leaves_beside_hooks_of_its_own(
    start: Callable[..., Site],
) -> None:
    site = start(BESIDE_OWN, IN_HOOK="1", RAFTSVC_LISTEN="")
    assert site.count() > 0
    owner = site.owner()
    eventually(lambda: len(list(site.path.glob("began-*"))) == 2, "both workers are there")
    site.popen.send_signal(signal.SIGQUIT)  # on which workers end at once
    site.popen.wait(60)
    left = {path.name: path.read_text() for path in site.path.glob("exit-*")}
    assert len(left) == 2, site.log()
    assert f"process {owner} " not in left[f"exit-{owner}"], "it had left before its worker did"


@pytest.mark.parametrize(
    ("config", "environ", "advice"),
    [
        (ALL, {"RAFTSVC_ADDR": ""}, "which port is the node's?"),
        (ALL, {"RAFTSVC_LISTEN": "n1"}, "RAFTSVC_LISTEN is host:port"),
        (ALL + "preload_app = True\n", {}, "leave out --preload"),
        ("from raftsvc.ext.gunicorn import Hooks\nHooks(listen='nowhere')\n", {}, "listen is host:port"),
    ],
)
def test_what_cannot_work_ends_gunicorn_with_a_sentence(
    start: Callable[..., Site], config: str, environ: dict[str, str], advice: str
) -> None:
    site = start(config, **environ)
    assert site.popen.wait(60) != 0
    assert advice in site.log()


def test_a_port_that_is_taken_is_left_to_the_owners(
    start: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", free_port()))
        other.listen()
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        site = start(ALL, RAFTSVC_LISTEN=taken, RAFTSVC_ADDR=taken, RAFTSVC_INITIAL_CLUSTER=taken)
        eventually(lambda: "is not kept by the master" in site.log(), site.log())
        other.close()
    site.addr = taken
    assert site.count() > 0
