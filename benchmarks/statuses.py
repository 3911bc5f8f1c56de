"""What clients of README's application are answered when there are many more of them than threads.

    python -m benchmarks.statuses                    # peers have a port of their own, as in README
    python -m benchmarks.statuses --mount            # peers share the threads of the application
    python -m benchmarks.statuses --app old.py       # another application with the same routes
    python -m benchmarks.statuses --workers 4        # so many processes on each host, which share its node
    python -m benchmarks.statuses --workers 4 --view-ms 5 --apart   # views that compute; the owner serves none

Three nodes behind gunicorn, `--threads` each in `--workers`; `--clients` count at one of them, or with `--spread` to
all three, each as fast as it is answered, and nobody waits after a refusal.  Prints, as JSON, how many answers
there were of each status, how many a second, and what processor time an answer took: of all processes of the hosts,
the clients left out.  Needs flask and gunicorn, which the dev extra installs.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import requests

from benchmarks.usage import usage

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_SECONDS = 60.0
MOUNT = """
from werkzeug.middleware.dispatcher import DispatcherMiddleware

app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/raft": kv.service.wsgi_app})
"""
WORKING = """
import time

answer, app.wsgi_app = app.wsgi_app, lambda environ, start_response: work() or answer(environ, start_response)

def work():
    ends_at = time.thread_time() + {seconds}
    while time.thread_time() < ends_at:
        pass
"""
OWNER = "from raftsvc import kv; import threading; kept = kv.start_from_env(); threading.Event().wait()"


def readme_application(is_mounted: bool = False, view_seconds: float = 0.0) -> str:
    """The source of README's application; with its node mounted beside it instead of on a port of its own.

    view_seconds: that each request computes beside what README does.
    """
    found = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found is not None, "README shows an application"
    source = found[1] + (WORKING.format(seconds=view_seconds) if view_seconds else "")
    return source + MOUNT if is_mounted else source


class Server:
    """gunicorn with one node, whose ports are kept for it.

    is_apart: another process owns the node, and serves no views.
    """

    def __init__(
        self,
        home: Path,
        threads: int,
        is_mounted: bool,
        ports: list[socket.socket],
        workers: int = 1,
        is_apart: bool = False,
    ) -> None:
        self._ports, self._workers, self._is_apart = ports, workers, is_apart
        self._processes: list[subprocess.Popen[bytes]] = []
        self.place, self.addr = f"127.0.0.1:{_number_of(ports[0])}", f"127.0.0.1:{_number_of(ports[-1])}"
        self._home, self._threads, self._is_mounted = home, threads, is_mounted

    def start(self, secret: str, nodes: list[str]) -> None:
        """Begin; `nodes` are all that there are to be."""
        home = self._home
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "RAFTSVC_ADDR": self.addr,
            "RAFTSVC_DIR": f"data-{self.addr}",
            "RAFTSVC_INITIAL_CLUSTER": ",".join(nodes),
            "RAFTSVC_SECRET": secret,
        }
        if self._is_mounted:
            environment["RAFTSVC_LISTEN"] = ""
        command = [sys.executable, "-m", "gunicorn", "--threads", str(self._threads), "--bind", self.place]
        command += ["--workers", str(self._workers), "--reuse-port", "--no-control-socket", "app:app"]
        with (home / f"{self.addr}.log").open("wb") as log:

            def run(command: list[str]) -> None:
                self._processes.append(
                    subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log, start_new_session=True)
                )

            if self._is_apart:
                run([sys.executable, "-c", OWNER])
                self._await_owner(home / f"data-{self.addr}" / "socket")
            run(command)
            self.process = self._processes[-1]

    def _await_owner(self, path: Path) -> None:
        give_up = time.monotonic() + PATIENCE_SECONDS
        while not path.exists():
            if time.monotonic() > give_up or self._processes[0].poll() is not None:
                raise RuntimeError(f"nobody owns the node of {self.place}")
            time.sleep(0.05)

    def pids(self) -> list[int]:
        """All its processes."""
        groups = {process.pid for process in self._processes}
        found = []
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
            with suppress(ProcessLookupError):
                if os.getpgid(pid) in groups:
                    found.append(pid)
        return found

    def await_formed(self) -> None:
        """Until it serves a client."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                answer = requests.post(f"http://{self.place}/visits", timeout=PATIENCE_SECONDS)
            except requests.ConnectionError as error:
                why = str(error)
            else:
                if answer.status_code == 200:
                    return
                why = answer.text
            if time.monotonic() > give_up or self.process.poll() is not None:
                raise RuntimeError(f"{self.place} serves nobody: {why}")
            time.sleep(0.05)

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for port in self._ports:
            port.close()


def _number_of(port: socket.socket) -> int:
    number: int = port.getsockname()[1]
    return number


def _reserve() -> socket.socket:
    """A port that stays ours: bound and never listening, which lets the server bind it."""
    reservation = socket.socket()
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        reservation.setsockopt(socket.SOL_SOCKET, option, 1)
    reservation.bind(("127.0.0.1", 0))
    return reservation


def measure(
    source: str,
    is_mounted: bool,
    clients: int = 64,
    threads: int = 8,
    seconds: float = 10.0,
    spread: bool = False,
    workers: int = 1,
    is_apart: bool = False,
) -> dict[str, Any]:
    """Run the application on three nodes and count what the clients were answered."""
    secret = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="raftsvc-statuses-") as directory:
        home = Path(directory)
        (home / "app.py").write_text(source)
        ports = [[_reserve() for _ in range(1 if is_mounted else 2)] for _ in range(3)]
        servers = [Server(home, threads, is_mounted, own, workers, is_apart) for own in ports]
        try:
            for server in servers:
                server.start(secret, [each.addr for each in servers])
            for server in servers:
                server.await_formed()
            time.sleep(2.0)  # for streams to be opened, as they are in any cluster that is not just made
            places = [server.place for server in servers] if spread else [servers[1].place]
            pids = [pid for server in servers for pid in server.pids()]
            before, began = usage(pids), time.monotonic()
            result = _press(places, clients, seconds)
            used, took = usage(pids).since(before).cpu_seconds, time.monotonic() - began
            answers = result["statuses"].get("200", 0)
            result |= {"per_second": round(answers / took, 1), "cpu_ms": round(1000 * used / max(1, answers), 2)}
            return result
        finally:
            for server in servers:
                server.close()


def _press(places: list[str], clients: int, seconds: float) -> dict[str, Any]:
    statuses: collections.Counter[str] = collections.Counter()
    slowest = [0.0] * clients
    lock = threading.Lock()  # guards statuses
    stopping = threading.Event()

    def work(number: int) -> None:
        seen: collections.Counter[str] = collections.Counter()
        connection = http.client.HTTPConnection(places[number % len(places)], timeout=PATIENCE_SECONDS)
        while not stopping.is_set():
            began = time.monotonic()
            try:
                connection.request("POST", "/visits")
                answer = connection.getresponse()
                answer.read()
                seen[str(answer.status)] += 1
            except (OSError, http.client.HTTPException) as error:
                seen[type(error).__name__] += 1
                connection.close()
            slowest[number] = max(slowest[number], time.monotonic() - began)
        with lock:
            statuses.update(seen)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for worker in workers:
        worker.start()
    stopping.wait(seconds)
    stopping.set()
    for worker in workers:
        worker.join()
    return {"statuses": dict(sorted(statuses.items())), "slowest_seconds": round(max(slowest), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mount", action="store_true", help="the node shares the server's threads")
    parser.add_argument("--app", type=Path, help="instead of README's")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=1, help="of each host")
    parser.add_argument("--view-ms", type=float, default=0.0, help="of processor time, that each request computes")
    parser.add_argument("--apart", action="store_true", help="a process of its own owns the node")
    parser.add_argument("--spread", action="store_true", help="clients write to all three nodes")
    options = parser.parse_args()
    if options.mount and (options.workers > 1 or options.apart):
        parser.error("processes that share a node need a port of its own: no --mount")
    source = options.app.read_text() if options.app else readme_application(options.mount, options.view_ms / 1000)
    result = measure(
        source,
        options.mount,
        options.clients,
        options.threads,
        options.seconds,
        options.spread,
        options.workers,
        options.apart,
    )
    json.dump(result, sys.stdout)
    print()


if __name__ == "__main__":
    main()
