"""Three nodes of the example as real processes, for demo.py and cluster.py.

Each node is gunicorn with one gthread worker that serves wsgi.py on a port of
loopback, and its peers on another, with a directory of its own.  Nothing outlives the launcher: every node
holds one end of a socket pair, and kills itself when the other end closes.
The same pair tells the launcher when the last process of a node is gone.

Not a way to run raftsvc in production: there, a service manager starts one node
on each machine.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import requests

EXAMPLES = Path(__file__).resolve().parent
STOP_SECONDS = 10.0
# gunicorn's pool, for the application alone unless peers have no port of their own.
POOL_THREADS = 16


class Failure(Exception):
    """Something that should have happened did not; the message says what."""


class Answer:
    """One HTTP answer of a node."""

    def __init__(self, response: requests.Response) -> None:
        self.status = response.status_code
        self.text = response.text
        self.retry_after = float(response.headers.get("Retry-After", "0"))
        self._response = response

    def json(self) -> Any:
        return self._response.json()


def reserve_port() -> socket.socket:
    """A port of ours, bound and never listening.

    While the socket lives nobody else is given the port, a node can bind it, and while
    that is down its peers are refused as they would be on another machine.
    """
    reservation = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reservation.bind(("127.0.0.1", 0))
    return reservation


class Node:
    """One node: a directory, its ports, and the processes that serve it while it runs.

    addr: where its peers reach it.  url: where the application is.
    """

    def __init__(
        self,
        name: str,
        home: Path,
        environment: dict[str, str],
        is_mounted: bool = False,
        application: str = "wsgi:application",
        workers: int = 1,
    ) -> None:
        self.name = name
        self._application = application
        self._workers = workers
        self.log = home / f"{name}.log"
        self._reservations = [reserve_port() for _ in range(1 if is_mounted else 2)]
        self._bind, self.addr = (f"127.0.0.1:{self._reservations[n].getsockname()[1]}" for n in (0, -1))
        self.url = f"http://{self._bind}"
        self._environment = environment | {"RAFT_ADDR": self.addr, "RAFT_DIR": str(home / name)}
        self._environment |= {"RAFTSVC_ADDR": self.addr, "RAFTSVC_DIR": str(home / name)}
        if is_mounted:
            self._environment["RAFT_MOUNT"] = "1"
        self._authorization = {"Authorization": "Bearer " + environment["ADMIN_TOKEN"]}
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: socket.socket | None = None
        self._local = threading.local()

    def is_to_found_with(self, addrs: list[str]) -> None:
        """Have it form a cluster with those, as soon as it is started."""
        self._environment["RAFT_INITIAL_CLUSTER"] = self._environment["RAFTSVC_INITIAL_CLUSTER"] = ",".join(addrs)

    def start(self) -> None:
        """Start the processes; `wait_until_up` says when they serve."""
        assert self._process is None
        self._lifeline, theirs = socket.socketpair()
        with theirs, self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "gunicorn", "--config", "python:launcher", "--worker-class", "gthread"),
                    *("--workers", str(self._workers), "--threads", str(POOL_THREADS), "--graceful-timeout", "5"),
                    *("--bind", self._bind, "--reuse-port", "--no-control-socket", self._application),
                ],
                env=self._environment | {"LAUNCHER_LIFELINE": str(theirs.fileno())},
                cwd=EXAMPLES,  # where gunicorn finds wsgi.py and this module
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the launcher alone, and kill() reaches every process
            )

    def wait_until_up(self) -> None:
        wait_until(self._answers, f"{self.name} answers")

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise Failure(f"{self.name} ended while it started, with exit code {self._process.returncode}")
        try:
            return self.get("/cluster").status == 200
        except requests.RequestException:
            return False

    @property
    def pid(self) -> int | None:
        """Of the gunicorn master, which is also that of the node's process group; None while it does not run."""
        return self._process.pid if self._process else None

    def kill(self) -> None:
        """SIGKILL to every process of the node: no handler runs, nothing is flushed."""
        self.send_signal(signal.SIGKILL)
        self.wait_until_gone()

    def send_signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):  # it may have ended by itself
                os.killpg(self._process.pid, number)

    def wait_until_gone(self) -> None:
        """Return when the last process of the node has ended."""
        if self._process is None or self._lifeline is None:
            return
        self._lifeline.settimeout(STOP_SECONDS)
        try:
            # Nobody writes to the pair: this returns when the last process that holds the other end is gone.
            self._lifeline.recv(1)
        except TimeoutError:
            raise Failure(f"{self.name} still runs {STOP_SECONDS:.0f} s after it was told to end") from None
        self._process.wait(STOP_SECONDS)
        self._lifeline.close()
        self._process = self._lifeline = None

    def close(self) -> None:
        """Wait for the end that SIGTERM began, and insist if it does not come."""
        try:
            self.wait_until_gone()
        except Failure:
            self.kill()
        for reservation in self._reservations:
            reservation.close()

    def get(self, path: str, **parameters: str) -> Answer:
        return Answer(self._session().get(self.url + path, params=parameters, timeout=(2, 30)))

    def put(self, path: str, body: str) -> Answer:
        return Answer(self._session().put(self.url + path, data=body.encode(), timeout=(2, 30)))

    def post(self, path: str, **body: str) -> Answer:
        """An operator's command."""
        return Answer(self._session().post(self.url + path, json=body, headers=self._authorization, timeout=(2, 60)))

    def status(self) -> dict[str, Any]:
        answer = self.get("/cluster")
        if answer.status != 200:
            raise Failure(f"{self.name} answers {answer.status} to a request for its status: {answer.text.strip()}")
        content: dict[str, Any] = answer.json()
        return content

    def _session(self) -> requests.Session:
        """One for each thread, and none of them looks at proxies: everything is on loopback."""
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
            self._local.session.trust_env = False
        session: requests.Session = self._local.session
        return session


class Cluster:
    """Three nodes that form one cluster; a context manager that ends them and removes their directories."""

    def __init__(self, is_mounted: bool = False, application: str = "wsgi:application", workers: int = 1) -> None:
        """is_mounted: peers have no port of their own, and share the threads of the application."""
        self.home = Path(tempfile.mkdtemp(prefix="raftsvc-example-"))
        self.admin_token = secrets.token_hex(8)
        secret = secrets.token_hex(32)
        environment = {**os.environ, "RAFT_SECRET": secret, "ADMIN_TOKEN": self.admin_token}
        environment |= {"RAFTSVC_SECRET": secret, "SHOP_LEDGER": str(self.home / "ledger")}
        self.nodes = [
            Node(name, self.home, environment, is_mounted, application, workers) for name in ("n1", "n2", "n3")
        ]
        for node in self.nodes:
            node.is_to_found_with([each.addr for each in self.nodes])

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A second Ctrl-C must not interrupt what the first one began; every wait below is bounded.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        try:
            for node in self.nodes:
                node.send_signal(signal.SIGTERM)
            for node in self.nodes:
                node.close()
        finally:
            shutil.rmtree(self.home, ignore_errors=True)

    def start(self) -> None:
        """Start the three nodes; returns when all answer."""
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            node.wait_until_up()

    def form(self) -> None:
        """They found it by themselves; returns when all three are voters with a leader."""
        for node in self.nodes:
            node.wait_until_up()
        wait_until(self._is_complete, "three voters agree on a leader")

    def _is_complete(self) -> bool:
        statuses = [node.status() for node in self.nodes]
        leaders = {status.get("leader_id") for status in statuses}
        voters = [sum(member["is_voter"] for member in status.get("members", {}).values()) for status in statuses]
        return len(leaders) == 1 and None not in leaders and 0 not in leaders and voters == [3, 3, 3]

    def leader(self) -> Node | None:
        """The running node that leads, if there is one just now."""
        return next((node for node in self.nodes if node.pid and node.status()["role"] == "leader"), None)

    def log_tails(self, lines: int = 15) -> str:
        tails = []
        for node in self.nodes:
            text = node.log.read_text(errors="replace") if node.log.exists() else ""
            tails.append("\n".join([f"--- the last lines of {node.name}'s log", *text.splitlines()[-lines:]]))
        return "\n".join(tails)


def expect(answer: Answer, status: int, what: str) -> Answer:
    if answer.status != status:
        raise Failure(f"{what}: the answer was {answer.status}, not {status}: {answer.text.strip()}")
    return answer


def wait_until(condition: Callable[[], bool], what: str, deadline_seconds: float = 60.0) -> None:
    give_up = time.monotonic() + deadline_seconds
    while not condition():
        if time.monotonic() > give_up:
            raise Failure(f"waited {deadline_seconds:.0f} s in vain until {what}")
        time.sleep(0.02)


def interrupt_on_signals() -> None:
    """Let SIGTERM and a closed terminal unwind the stack as Ctrl-C does, so that `with Cluster()` cleans up."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


began = time.monotonic()


def say(text: str) -> None:
    """Print it with how long this process runs."""
    print(f"{time.monotonic() - began:6.2f} s  {text}", flush=True)


def present(title: str, make: Callable[[], Cluster], run: Callable[[Cluster], None]) -> int:
    """Have a cluster made and run through something, and leave nothing of it; the exit code of a script that does."""
    interrupt_on_signals()
    print(f"{title}\n", flush=True)
    try:
        with make() as cluster:
            try:
                run(cluster)
            except (Failure, requests.RequestException) as error:
                say(f"FAILED: {error}")
                print(cluster.log_tails(), flush=True)
                raise
    except (Failure, requests.RequestException):
        return 1
    except KeyboardInterrupt:
        say("interrupted; nothing is left running")
        return 130
    say("all of it held; nothing is left running")
    return 0


def post_worker_init(worker: object) -> None:
    """gunicorn's hook in each worker (`--config python:launcher`): end with the launcher, even if that was killed."""
    lifeline = socket.socket(fileno=int(os.environ["LAUNCHER_LIFELINE"]))

    def watch() -> None:
        lifeline.recv(1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="launcher-lifeline", daemon=True).start()
