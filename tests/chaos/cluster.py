"""The processes of a chaos run: gunicorn, one for each node, and what the run does to them."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import requests

from tests.chaos.links import Links, free_port

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 90.0
THREADS = 24


class Trouble(Exception):
    """The run found something wrong."""


def eventually(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Wait until `condition` returns something true and return it; what it raises counts as not yet."""
    deadline = time.monotonic() + patience
    while True:
        with suppress(requests.RequestException):
            if result := condition():
                return result
        if time.monotonic() >= deadline:
            raise Trouble(f"{what} within {patience:g} s")
        time.sleep(0.05)


class Process:
    """One node: its addresses stay, its processes and its directory come and go."""

    def __init__(
        self, number: int, home: Path, links: Links, secret: str, has_listener: bool, lease_reads: bool
    ) -> None:
        self.number = number
        self.home = home
        self.log = home / f"n{number}.log"
        self._control = home / f"n{number}.control"
        self._links = links
        self._secret = secret
        self._generation = 0
        host = links.address(number)
        self.web = f"{host}:{free_port(host)}"
        # With a listener of its own, or with /raft/ on the pool that the clients use.
        self.addr = f"{host}:{8001 if not host.startswith('127.') else free_port(host)}" if has_listener else self.web
        self._has_listener = has_listener
        self._lease_reads = lease_reads
        self.peers: dict[int, str] = {}
        self._popen: subprocess.Popen[bytes] | None = None
        self.wish()

    @property
    def name(self) -> str:
        return f"n{self.number}"

    def wish(self, **wishes: Any) -> None:
        """What its disk and its clock do from now on."""
        temporary = self._control.with_suffix(".tmp")
        temporary.write_text(json.dumps(wishes))
        temporary.replace(self._control)

    def start(self) -> None:
        """Start the server; `is_up` says when it serves."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "CHAOS_CONTROL": str(self._control),
            "CHAOS_ADDR": self.addr,
            "CHAOS_DIR": str(self.home / f"n{self.number}.{self._generation}"),
            "CHAOS_LINKS": json.dumps(self._links.routes(self.number, self.peers)),
            "CHAOS_SECRET": self._secret,
        }
        if self._has_listener:
            environment["CHAOS_LISTEN"] = self.addr
        if self._lease_reads:
            environment["CHAOS_LEASE_READS"] = "yes"
        command = [
            *self._links.command(self.number),
            *(sys.executable, "-m", "gunicorn", "--worker-class", "gthread", "--threads", str(THREADS)),
            *("--bind", self.web, "--graceful-timeout", "10", "--timeout", "120", "tests.chaos.server:application"),
        ]
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def wipe(self) -> None:
        """Begin with an empty directory, as another member."""
        assert self._popen is None
        shutil.rmtree(self.home / f"n{self.number}.{self._generation}", ignore_errors=True)
        self._generation += 1

    @property
    def is_running(self) -> bool:
        return self._popen is not None

    def check_alive(self) -> None:
        """Raise Trouble if it ended by itself."""
        if self._popen is not None and self._popen.poll() is not None:
            raise Trouble(f"{self.name} ended by itself with {self._popen.returncode}; see {self.log}")

    def signal(self, number: int) -> None:
        """To the server and its worker: both are this node."""
        if self._popen is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._popen.pid, number)

    def reload(self) -> None:
        """SIGHUP: gunicorn starts a new worker and has the old one finish."""
        if self._popen is not None:
            os.kill(self._popen.pid, signal.SIGHUP)

    def kill(self) -> None:
        """End it at once."""
        self._end(signal.SIGKILL)

    def terminate(self) -> None:
        """End it in good order."""
        if self._popen is not None:
            os.kill(self._popen.pid, signal.SIGTERM)
            try:
                self._popen.wait(30)
            except subprocess.TimeoutExpired:
                raise Trouble(f"{self.name} did not end within 30 s of SIGTERM") from None
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> None:
        if self._popen is not None:
            self.signal(number)
            self._popen.wait(30)
            self._popen = None

    def ask(self, path: str, body: Any = None, timeout: float = 15.0) -> Any:
        """GET, or POST of `body`; raises requests.RequestException if it does not answer 200."""
        url = f"http://{self.web}/{path}"
        answer = requests.get(url, timeout=timeout) if body is None else requests.post(url, json=body, timeout=timeout)
        answer.raise_for_status()
        return answer.json()

    def status(self) -> dict[str, Any]:
        return dict(self.ask("status", timeout=5.0))


class Cluster:
    """All nodes of a run."""

    def __init__(self, home: Path, links: Links, size: int, has_listener: bool, lease_reads: bool) -> None:
        secret = secrets.token_hex(16)
        self.links = links
        self.nodes = [Process(number, home, links, secret, has_listener, lease_reads) for number in range(size)]
        for node in self.nodes:
            node.peers = {peer.number: peer.addr for peer in self.nodes}

    def form(self) -> None:
        """Start all and make them one cluster."""
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            eventually(node.status, f"{node.name} serves")
        self.nodes[0].ask("init", {})
        for node in self.nodes[1:]:
            self.join(node)
        eventually(self.is_whole, "every node knows every voter")

    def join(self, node: Process) -> None:
        """Have a node with an empty directory join through any other."""

        def joined() -> bool:
            if node.status()["role"] != "uninitialized":
                return True
            for other in self.nodes:
                if other is not node and other.is_running:
                    with suppress(requests.RequestException):
                        node.ask("join", {"boot": other.addr})
                        return True
            return False

        eventually(joined, f"{node.name} joins")

    def is_whole(self) -> bool:
        """Whether every node serves, and sees every node as a voter."""
        pictures = [node.status() for node in self.nodes]
        return all(
            picture["error"] is None
            and picture["leader_id"]
            and sum(m["is_voter"] for m in picture["members"].values()) == len(self.nodes)
            and {m["addr"] for m in picture["members"].values()} == {node.addr for node in self.nodes}
            for picture in pictures
        )

    def leader(self) -> Process | None:
        """The one that leads in the latest term, as far as it answers."""
        best: tuple[int, Process] | None = None
        for node in self.nodes:
            with suppress(requests.RequestException):
                picture = node.status()
                if picture["role"] == "leader" and (best is None or picture["term"] > best[0]):
                    best = (picture["term"], node)
        return best[1] if best else None

    def close(self) -> None:
        """Leave nothing running."""
        for node in self.nodes:
            node.signal(signal.SIGCONT)
            node.kill()
        self.links.close()
