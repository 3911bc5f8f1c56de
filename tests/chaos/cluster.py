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
from typing import Any, NamedTuple

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


class Stand(NamedTuple):
    """Where a node is to be found: the place, where clients reach it, and where peers do."""

    place: int
    web: str
    addr: str


class Setup(NamedTuple):
    """What all nodes of a run have in common."""

    home: Path
    links: Links
    secret: str
    has_listener: bool  # its own, or /raft/ is on the pool that the clients use
    lease_reads: bool
    workers: int  # processes that share the directory of a node
    witness: Path | None  # where processes tell what they hold and run


def _put(path: Path, what: dict[str, Any]) -> None:
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(json.dumps(what))
    temporary.replace(path)


class Process:
    """One node: its processes, its directory and where it stands come and go."""

    def __init__(self, number: int, setup: Setup, stand: Stand) -> None:
        self.number = number
        self.stand = stand
        self.hints: dict[int, str] = {}
        self.log = setup.home / f"n{number}.log"
        self._setup = setup
        self._control = setup.home / f"n{number}.control"
        self._routes = setup.home / f"n{number}.routes"
        self._generation = 0
        self._popen: subprocess.Popen[bytes] | None = None
        self.wish()
        self.route()

    @property
    def web(self) -> str:
        """Where clients reach it."""
        return self.stand.web

    @property
    def addr(self) -> str:
        """Where peers reach it."""
        return self.stand.addr

    @property
    def directory(self) -> Path:
        return self._setup.home / f"n{self.number}.{self._generation}"

    @property
    def name(self) -> str:
        return f"n{self.number}"

    def wish(self, **wishes: Any) -> None:
        """What its disk and its clock do from now on."""
        _put(self._control, wishes)

    def route(self) -> None:
        """By which links it reaches the others from now on."""
        _put(self._routes, self._setup.links.routes(self.stand.place))

    def start(self) -> None:
        """Start the server; `is_up` says when it serves."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "CHAOS_CONTROL": str(self._control),
            "CHAOS_WEB": self.web,
            "CHAOS_ADDR": self.addr,
            "CHAOS_DIR": str(self.directory),
            "CHAOS_ROUTES": str(self._routes),
            "CHAOS_PEERS": json.dumps(self.hints),
            "CHAOS_SECRET": self._setup.secret,
        }
        if self._setup.has_listener:
            environment["CHAOS_LISTEN"] = self.addr
        if self._setup.witness is not None:
            environment["CHAOS_WITNESS"] = str(self._setup.witness)
        if self._setup.lease_reads:
            environment["CHAOS_LEASE_READS"] = "yes"
        command = [
            *self._setup.links.command(self.stand.place),
            *(sys.executable, "-m", "gunicorn", "--worker-class", "gthread", "--no-control-socket"),
            *("--workers", str(self._setup.workers), "--threads", str(max(8, THREADS // self._setup.workers))),
            *("--config", str(self._configure())),
            *("--bind", self.web, "--graceful-timeout", "10", "--timeout", "120", "tests.chaos.server:application"),
        ]
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def _configure(self) -> Path:
        """gunicorn's configuration: with several workers every other node has its port kept by the master."""
        path = self._setup.home / f"n{self.number}.conf.py"
        hooks = f"""
from raftsvc.ext.gunicorn import Hooks
node = Hooks(listen={self.addr!r})
on_starting, worker_exit = node.on_starting, node.worker_exit
"""
        path.write_text(hooks if self._setup.workers > 1 and self.number % 2 == 0 else "")
        return path

    def workers(self) -> list[int]:
        """Process ids of those that serve it, as far as they are there just now."""
        if self._popen is None:
            return []
        children = Path(f"/proc/{self._popen.pid}/task/{self._popen.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def owner(self) -> int:
        """Process id of the worker that owns the directory; of any, if none does just now."""
        workers = eventually(self.workers, f"{self.name} has workers")
        with suppress(OSError, IndexError, ValueError):
            owner = int((self.directory / "lock").read_text().split()[1])
            if owner in workers:
                return owner
        return int(workers[0])

    def wipe(self) -> None:
        """Begin with an empty directory, as another member."""
        assert self._popen is None
        shutil.rmtree(self.directory, ignore_errors=True)
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

    def __init__(
        self,
        home: Path,
        links: Links,
        size: int,
        has_listener: bool,
        lease_reads: bool,
        workers: int = 1,
        witness: Path | None = None,
    ) -> None:
        self.links = links
        self.workers = workers
        self._has_listener = has_listener
        self._ports: set[int] = set()
        self.node_ids: dict[Process, int] = {}  # when the cluster was whole last
        setup = Setup(home, links, secrets.token_hex(16), has_listener, lease_reads, workers, witness)
        self.nodes = [Process(number, setup, self.new_stand(number)) for number in range(size)]
        self.settle()

    def new_stand(self, place: int) -> Stand:
        """Addresses at `place` that nobody ever had."""
        host = self.links.address(place)
        web, raft = (f"{host}:{self._new_port(host)}" for _ in range(2))
        return Stand(place, web, raft if self._has_listener else web)

    def _new_port(self, host: str) -> int:
        port = free_port(host, self._ports)
        self._ports.add(port)
        return port

    def settle(self) -> None:
        """Have the links know where everybody is, and everybody know the links."""
        self.links.settle({node.addr: node.stand.place for node in self.nodes})
        for node in self.nodes:
            node.route()

    def cut(self, source: Process, target: Process) -> None:
        """Let nothing that `source` sends reach `target`."""
        self.links.cut(source.stand.place, target.stand.place)

    def form(self) -> None:
        """Start all and make them one cluster."""
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            eventually(node.status, f"{node.name} serves")
        eventually(lambda: self.nodes[0].ask("init", {}) == {}, "a cluster begins")
        for node in self.nodes[1:]:
            self.join(node)
        self.expect_whole("when all joined")

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
        """Whether every node serves, and sees every node as a voter that is where it is."""
        if self.workers > 1 and not all(self._is_attended(node) for node in self.nodes):
            return False
        pictures = [node.status() for node in self.nodes]
        if any(picture["error"] or not picture.get("leader_id") for picture in pictures):
            return False
        wanted = {
            str(picture["node_id"]): {"addr": node.addr, "is_voter": True}
            for node, picture in zip(self.nodes, pictures, strict=True)
        }
        if any(picture["members"] != wanted for picture in pictures):
            return False
        self.node_ids = {node: picture["node_id"] for node, picture in zip(self.nodes, pictures, strict=True)}
        return True

    def _is_attended(self, node: Process) -> bool:
        """Whether one of its workers owns the directory, and all others are attached and see nothing wrong."""
        workers = set(node.workers())
        seen: set[int] = set()
        for _ in range(8 * self.workers):  # each by a connection that any of them may take
            picture = node.status()
            if picture["error"]:
                return False
            seen.add(picture["process"]["pid"])
            if picture["process"]["pid"] == picture["process"]["owner_pid"]:
                return workers - {picture["process"]["pid"]} == set(picture["process"]["attached"])
        return False

    def expect_whole(self, when: str) -> None:
        """Wait until it is; Trouble says what each node knows if it does not come to that."""
        try:
            eventually(self.is_whole, f"the cluster is whole {when}")
        except Trouble as trouble:
            raise Trouble("\n".join([str(trouble), *(self._describe(node) for node in self.nodes)])) from None

    @staticmethod
    def _describe(node: Process) -> str:
        try:
            return f"{node.name} at {node.addr}: {json.dumps(node.status())}"
        except requests.RequestException as error:
            return f"{node.name} at {node.addr}: {error}"

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
