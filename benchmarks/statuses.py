"""What clients of README's application are answered when there are many more of them than threads.

    python -m benchmarks.statuses                    # peers have a port of their own, as in README
    python -m benchmarks.statuses --mount            # peers share the threads of the application
    python -m benchmarks.statuses --app old.py       # another application with the same routes

Three nodes behind gunicorn, `--threads` each; `--clients` count at one of them, or with `--spread` to all
three, each as fast as it is answered, and nobody waits after a refusal.  Prints, as JSON, how many answers
there were of each status.  Needs flask and gunicorn, which the dev extra installs.
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
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_SECONDS = 60.0
MOUNT = """
from werkzeug.middleware.dispatcher import DispatcherMiddleware

app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/raft": kv.service.wsgi_app})
"""


def readme_application(is_mounted: bool = False) -> str:
    """The source of README's application; with its node mounted beside it instead of on a port of its own."""
    found = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found is not None, "README shows an application"
    source = found[1]
    return source + MOUNT if is_mounted else source


class Server:
    """gunicorn with one node, whose ports are kept for it."""

    def __init__(self, home: Path, threads: int, is_mounted: bool, ports: list[socket.socket]) -> None:
        self._ports = ports
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
        with (home / f"{self.addr}.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--reuse-port", "--no-control-socket", "app:app"],
                cwd=home,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

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
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
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
    source: str, is_mounted: bool, clients: int = 64, threads: int = 8, seconds: float = 10.0, spread: bool = False
) -> dict[str, Any]:
    """Run the application on three nodes and count what the clients were answered."""
    secret = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="raftsvc-statuses-") as directory:
        home = Path(directory)
        (home / "app.py").write_text(source)
        ports = [[_reserve() for _ in range(1 if is_mounted else 2)] for _ in range(3)]
        servers = [Server(home, threads, is_mounted, own) for own in ports]
        try:
            for server in servers:
                server.start(secret, [each.addr for each in servers])
            for server in servers:
                server.await_formed()
            time.sleep(2.0)  # for streams to be opened, as they are in any cluster that is not just made
            places = [server.place for server in servers] if spread else [servers[1].place]
            return _press(places, clients, seconds)
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
    parser.add_argument("--spread", action="store_true", help="clients write to all three nodes")
    options = parser.parse_args()
    source = options.app.read_text() if options.app else readme_application(options.mount)
    result = measure(source, options.mount, options.clients, options.threads, options.seconds, options.spread)
    json.dump(result, sys.stdout)
    print()


if __name__ == "__main__":
    main()
