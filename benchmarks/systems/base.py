"""What the systems have in common: a web process under gunicorn for each node, and how the runner talks to it."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import requests

from benchmarks.load import Spec
from benchmarks.processes import Failure, Process, free_ports, wait_until

POOL_THREADS = 32
"""Of gunicorn in each web process, for every system."""


class Web:
    """One web process, and its node, be it inside the process or beside it.

    source: where it imports raftsvc and the benchmarks from; the installed ones if none is given.
    """

    def __init__(self, name: str, home: Path, backend: str, config: dict[str, Any], source: Path | None = None) -> None:
        self.name = name
        self.port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"
        self._session = requests.Session()
        self._session.trust_env = False
        self.process = Process(
            name,
            [
                *(sys.executable, "-m", "gunicorn", "--worker-class", "gthread", "--workers", "1"),
                # A timeout would have gunicorn replace a worker that the cost cases had stopped for a while.
                *("--threads", str(POOL_THREADS), "--timeout", "0", "--keep-alive", "30", "--no-control-socket"),
                *("--bind", f"127.0.0.1:{self.port}", "benchmarks.web:main()"),
            ],
            home / f"{name}.log",
            # The directory of `python -m` comes before PYTHONPATH, and both before what is installed.
            {"BENCH_BACKEND": backend, "BENCH_CONFIG": json.dumps(config)}
            | ({"PYTHONPATH": str(source)} if source else {}),
            directory=source,
        )

    def get(self, path: str) -> Any:
        return _content(self._session.get(self.url + path, timeout=(2, 60)))

    def post(self, path: str, **body: Any) -> Any:
        return _content(self._session.post(self.url + path, json=body, timeout=(2, 300)))

    def call(self, name: str, **arguments: Any) -> Any:
        """Call a method of its back end."""
        return self.post(f"/call/{name}", **arguments)

    def is_up(self) -> bool:
        self.process.check()
        try:
            self.get("/status")
        except requests.RequestException:
            return False
        return True

    def status(self) -> dict[str, Any]:
        content: dict[str, Any] = self.get("/status")
        return content

    def run(self, spec: Spec, warmup_seconds: float, seconds: float) -> dict[str, Any]:
        """Have it run a load, and return what it saw after the warm-up."""
        self.post("/load/start", **vars(spec))
        begin = time.monotonic() + warmup_seconds
        time.sleep(warmup_seconds + seconds)
        return self.stop_load(begin, begin + seconds)

    def stop_load(self, begin: float, end: float) -> dict[str, Any]:
        content: dict[str, Any] = self.post("/load/stop", **{"from": begin, "to": end})
        return content


class System:
    """A cluster of one kind, running from `start` until `stop`; it leaves nothing behind."""

    name = ""
    client = ""
    """How the web process reaches its node."""
    fsyncs_every_write = True
    note = ""
    kinds: tuple[str, ...] = ("write", "read", "mixed")
    """Of load that it is measured with."""
    backend = ""
    packages: tuple[str, ...] = ()

    def __init__(self, nodes: int, home: Path, *, source: Path | None = None, **options: Any) -> None:
        self.nodes = nodes
        self.home = home / f"{self.name}-{time.monotonic_ns()}"
        self.home.mkdir(parents=True)
        self.source = source
        self.options = options
        self.webs: list[Web] = []
        self.servers: list[Process] = []
        """Processes of nodes that are not web processes."""

    def __enter__(self) -> System:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the nodes and the web processes; returns when all know a leader and can write."""
        self.start_servers()
        self.webs = [
            Web(f"{self.name}-{index}", self.home, self.backend, self.config_of(index), self.source)
            for index in range(self.nodes)
        ]
        for web in self.webs:
            wait_until(web.is_up, f"{web.name} answers")
        self.form()
        wait_until(self.is_ready, f"{self.nodes} nodes of {self.name} agree on a leader")

    def start_servers(self) -> None:
        """Start what is not a web process."""

    def config_of(self, index: int) -> dict[str, Any]:
        """The arguments of the back end in web process `index`."""
        raise NotImplementedError

    def form(self) -> None:
        """Make one cluster of the nodes."""

    def is_ready(self) -> bool:
        statuses = [web.status() for web in self.webs]
        return all(s["is_ready"] for s in statuses) and sum(s["is_leader"] for s in statuses) == 1

    def stop(self) -> None:
        for process in self.processes():
            process.kill()
        shutil.rmtree(self.home, ignore_errors=True)

    def processes(self) -> list[Process]:
        return [web.process for web in self.webs] + self.servers

    def node_process(self, web: Web) -> Process:
        """The process of the node that `web` uses."""
        return web.process

    def leader(self) -> Web:
        return next(web for web in self.webs if web.status()["is_leader"])

    def followers(self) -> list[Web]:
        return [web for web in self.webs if not web.status()["is_leader"]]

    def fsyncs(self) -> int:
        """Of all nodes together, since they started."""
        return sum(web.status()["fsyncs"] for web in self.webs)

    def cpu_seconds(self) -> dict[str, float]:
        return {process.name: process.cpu_seconds() for process in self.processes()}

    def peak_bytes(self) -> dict[str, int]:
        return {process.name: process.peak_bytes() for process in self.processes()}

    def hang(self, web: Web) -> None:
        self.node_process(web).signal(signal.SIGSTOP)

    def resume(self, web: Web) -> None:
        self.node_process(web).signal(signal.SIGCONT)

    @classmethod
    def versions(cls) -> dict[str, str]:
        """Of the packages that this system is made of."""
        return {package: version(package) for package in cls.packages}


def _content(response: requests.Response) -> Any:
    if response.status_code >= 400:
        raise Failure(f"{response.url} answered {response.status_code}: {response.text[:500]}")
    return response.json() if response.content else None
