"""What each process of a chaos run serves: a node under /raft/, and what clients call.

Steered by the run through a small JSON file: what its disk and its clock do.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import requests
from flask import Flask, jsonify, request
from flask.typing import ResponseReturnValue
from werkzeug.middleware.dispatcher import DispatcherMiddleware

import raftsvc
from raftsvc.kv import KeyValue, KeyValueState
from raftsvc.storage import Files
from raftsvc.testing import RegisterState
from raftsvc.transport.peer import make_session
from tests.chaos.holding import Notes, take_part

LINGER_SECONDS = 300


class Control:
    """What the run wants of this process now; read anew when the file changed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._stamp = 0
        self._wishes: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> Any:
        return self.wishes().get(name)

    def wishes(self) -> dict[str, Any]:
        """All of them."""
        with self._lock:
            stamp = os.stat(self._path).st_mtime_ns
            if stamp != self._stamp:
                with open(self._path) as file:
                    self._wishes = json.load(file)
                self._stamp = stamp
            return self._wishes


logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
logging.getLogger("werkzeug").setLevel(logging.WARNING)
control = Control(os.environ["CHAOS_CONTROL"])


class FaultyFiles(Files):
    """The real disk, which fails or hangs as wished."""

    def write(self, fd: int, data: bytes, offset: int) -> None:
        if code := control["write_error"]:
            raise OSError(code, os.strerror(code))
        super().write(fd, data, offset)

    def flush(self, fd: int) -> None:
        while control["hang"]:
            time.sleep(0.02)
        if code := control["sync_error"]:
            raise OSError(code, os.strerror(code))
        super().flush(fd)


class LinkedSession(requests.Session):
    """Goes to each peer through the link that the run made for the pair."""

    def __init__(self, routes: Control) -> None:
        super().__init__()
        self.__dict__.update(make_session().__dict__)
        self._routes = routes

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        url = urlsplit(str(request.url))
        if route := self._routes[url.netloc]:
            request.url = url._replace(netloc=route).geturl()
        return super().send(request, **options)


def _clock() -> float:
    return time.monotonic() * (control["clock_rate"] or 1.0) + (control["clock_offset"] or 0.0)


class OpenState(KeyValueState):
    """Lets everybody join."""

    def is_allowed_member(self, addr: str) -> bool:
        return True


state = RegisterState()
both = raftsvc.States(registers=state, store=OpenState())
_routes = Control(os.environ["CHAOS_ROUTES"])
service = raftsvc.start(
    os.environ["CHAOS_ADDR"],
    os.environ["CHAOS_DIR"],
    LinkedSession(_routes) if _routes.wishes() else None,
    both,
    secret=os.environ["CHAOS_SECRET"],
    listen=os.environ.get("CHAOS_LISTEN"),
    peers={int(node_id): addr for node_id, addr in json.loads(os.environ["CHAOS_PEERS"]).items()},
    election_timeout=1.0,
    snapshot_entries=400,
    trailing_entries=100,
    lease_reads="CHAOS_LEASE_READS" in os.environ,
    clock=_clock,
    files=FaultyFiles(),
)
registers = both.part("registers", service)
if "CHAOS_WITNESS" in os.environ:
    take_part(KeyValue(both.part("store", service), both["store"]), both["store"], Notes(os.environ["CHAOS_WITNESS"]))
app = Flask(__name__)


@app.post("/init")
def init() -> ResponseReturnValue:
    service.init()
    return jsonify({})


@app.post("/join")
def join() -> ResponseReturnValue:
    service.join(request.get_json()["boot"], timeout=10.0)
    return jsonify({})


@app.post("/evict")
def evict() -> ResponseReturnValue:
    service.evict(request.get_json()["addr"], timeout=10.0)
    return jsonify({})


@app.get("/status")
def status() -> ResponseReturnValue:
    return jsonify(service.status())


@app.get("/dump")
def dump() -> ResponseReturnValue:
    service.wait_read(5.0)
    return jsonify(state.values)


@app.post("/do")
def do() -> ResponseReturnValue:
    verb, key, *_ = operation = request.get_json()
    timeout = float(request.args.get("timeout", 5.0))
    output: Any = None
    if verb == "get":
        service.wait_read(timeout)
        output = state.values.get(key)
    else:
        satisfied = registers.exec(json.dumps(operation).encode().ljust(int(request.args.get("size", 0))), timeout)
        output = satisfied if verb == "cas" else None
    return jsonify({"output": output})


def _linger() -> None:
    """What a forked child does: nothing, for as long as it is let, whatever becomes of its parent."""
    os.setsid()  # not in the group of the server, which is killed
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LINGER_SECONDS)
    # What an application has to do, for the server does not: its port, and the connections of clients.
    port = int(os.environ["CHAOS_WEB"].rpartition(":")[2])
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            connection = socket.socket(fileno=int(name))
            if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.getsockname()[1] == port:
                connection.close()
            else:
                connection.detach()
    while True:
        time.sleep(LINGER_SECONDS)


@app.post("/fork")
def fork() -> ResponseReturnValue:
    if request.get_json()["how"] == "multiprocessing":
        child = multiprocessing.get_context("fork").Process(target=_linger, daemon=False)
        child.start()
        return jsonify({"pid": child.pid})
    pid = os.fork()
    if pid == 0:
        try:
            _linger()
        finally:
            os._exit(1)
    return jsonify({"pid": pid})


@app.errorhandler(raftsvc.RaftError)
def failed(error: raftsvc.RaftError) -> ResponseReturnValue:
    is_certain = isinstance(error, (raftsvc.NotApplied, raftsvc.ReadTimeoutError))
    return jsonify({"error": f"{type(error).__name__}: {error}", "is_certain": is_certain}), 503


application = DispatcherMiddleware(app, {"/raft": service})
