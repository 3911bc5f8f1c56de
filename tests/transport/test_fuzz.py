"""Thousands of requests as an enemy makes them: a clear answer to each, in time, and nothing changed by any."""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.middleware.dispatcher import DispatcherMiddleware

import raftsvc
from raftsvc.transport import App, listener
from raftsvc.transport.listener import Listener
from raftsvc.transport.wire import decode_problem
from tests.effort import EFFORT
from tests.service.harness import SECRET as SERVICE_SECRET
from tests.service.harness import ListState, eventually, free_address
from tests.transport.fuzz import Attempt, Enemy
from tests.transport.harness import Recorder, call, make_app

REQUESTS = 1200 * EFFORT
CONNECTIONS = 120 * EFFORT
ANSWERS = {200, 400, 401, 404, 405, 409, 410, 411, 412, 413, 415, 421, 503}
LISTENERS_OWN = {414, 431, 501, 505}
"""What the listener answers by itself, beside 400 and 411, before the app hears of a request."""
ERROR_CODES = {503: {"uninitialized", "stopping", "overloaded", "unavailable", "busy"}}


def check_answer(app: Any, attempt: Attempt) -> int:
    """The status that `attempt` is answered with, once the answer was found to be in good form."""
    answer = call(app, dict(attempt.environ))
    assert answer.status in ANSWERS, attempt
    if attempt.environ["REQUEST_METHOD"] == "HEAD":
        assert answer.body == b""
    elif answer.headers["Content-Type"] == "application/problem+json":
        assert answer.status != 200
        code = decode_problem(answer.status, answer.body).code
        assert code != "unknown"
        assert code in ERROR_CODES.get(answer.status, {code})
    assert ("Allow" in answer.headers) == (answer.status == 405)
    return answer.status


def remembered(app: App) -> tuple[int, int]:
    """How many windows and challenges it keeps."""
    return len(app._freshness._windows), len(app._freshness._redeemed)


def is_health_check(attempt: Attempt) -> bool:
    return attempt.environ["PATH_INFO"].rstrip("/").rpartition("/")[2] in ("livez", "readyz")


@pytest.mark.parametrize("mount", ["", "/raft", "/deep/er/raft"])
@pytest.mark.parametrize("has_secret", [True, False], ids=["secret", "open"])
def test_every_request_gets_an_answer_and_only_authentic_ones_change_anything(
    mount: str, has_secret: bool, caplog: pytest.LogCaptureFixture
) -> None:
    enemy = Enemy(len(mount) + 1000 * has_secret)
    statuses = set()
    for is_initialized in (True, False):
        recorder = Recorder()
        recorder.is_initialized = is_initialized
        app = make_app(recorder, secret=enemy._secret if has_secret else None)
        mounted: Any = DispatcherMiddleware(_not_ours, {mount: app}) if mount else app
        for _ in range(REQUESTS // 2):
            attempt = enemy.attempt(mount)
            before = (len(recorder.calls), dict(app._partial), *remembered(app))
            status = check_answer(mounted, attempt)
            after = (len(recorder.calls), dict(app._partial), *remembered(app))
            if has_secret and not attempt.is_authentic:
                assert after == before, attempt
                assert status != 200 or is_health_check(attempt)
            if not is_initialized or status not in (200, 409):
                assert len(recorder.calls) == before[0], "what is refused changes nothing"
            statuses.add(status)
    assert statuses >= {200, 400, 404, 405, 411, 412, 413, 415, 503}, "it was no idle run"
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def _not_ours(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
    """What lies beside the mount."""
    start_response("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", "0")])
    return [b""]


def test_no_announced_length_costs_memory() -> None:
    class Endless:
        read_bytes = 0

        def read(self, size: int) -> bytes:
            self.read_bytes += size
            return bytes(size)

    enemy = Enemy(1)
    app = make_app(Recorder())
    for length in (10**15, 2**31, 10**18 - 1, 4 * 2**20):
        for path in ("/msg", "/snapshot", "/join", "/status", "/livez", "/nowhere"):
            attempt = enemy.attempt()
            stream = Endless()
            environ = {**attempt.environ, "PATH_INFO": path, "CONTENT_LENGTH": str(length), "wsgi.input": stream}
            tracemalloc.start()
            try:
                status = call(app, environ).status
                peak_bytes = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert status in (404, 405, 413)
            assert peak_bytes < 500_000
            assert stream.read_bytes <= 4 * 2**20, "and time neither"


# -- the listener


def open_files() -> int:
    return len(os.listdir("/dev/fd"))


def assault(address: tuple[str, int], enemy: Enemy) -> set[int]:
    """One connection after the other; the statuses that came back."""
    statuses = set()
    for _ in range(CONNECTIONS):
        with socket.create_connection(address, timeout=60.0) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            heard = bytearray()
            try:
                for piece in enemy.connection():
                    connection.sendall(piece)
                if enemy.rng.random() < 0.15:
                    continue  # gone without a word
                if enemy.rng.random() < 0.95:  # else it holds the connection until the listener has enough
                    connection.shutdown(socket.SHUT_WR)
                while piece := connection.recv(65536):
                    heard += piece
            except OSError:
                pass  # the listener was done with it before we were
        statuses |= {int(code) for code in re.findall(rb"HTTP/1\.[01] (\d{3}) ", heard)}
    return statuses


@pytest.fixture
def quick_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The listener waits half a second for a silent client."""
    monkeypatch.setattr(listener, "READ_SECONDS", 0.5)


def make_served() -> tuple[Recorder, App, Listener]:
    recorder = Recorder()
    app = make_app(recorder)
    served = Listener(app, "127.0.0.1:0")
    served.start()
    assert served.wait_bound(60.0)
    return recorder, app, served


def test_the_listener_survives_whatever_is_sent_to_it(quick_reads: None, caplog: pytest.LogCaptureFixture) -> None:
    # The enemy does not know the secret, so nothing it sends may have an effect.
    enemy = Enemy(6, secret="what the enemy takes for it")
    recorder, app, served = make_served()
    try:
        assert served.address is not None
        threads, files = threading.active_count(), open_files()
        statuses = assault(served.address, enemy)
        assert statuses <= ANSWERS | LISTENERS_OWN | {100}
        assert statuses >= {200, 400, 401, 411}, "it was no idle run"
        eventually(lambda: threading.active_count() <= threads, "every connection's thread ends")
        eventually(lambda: open_files() <= files, "every connection is closed")
        assert (recorder.calls, app._partial, remembered(app)) == ([], {}, (0, 0))
        assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
    finally:
        served.stop()


# -- a real node


@pytest.fixture
def node(tmp_path: Path) -> Iterator[tuple[raftsvc.Service, ListState]]:
    state = ListState()
    addr = free_address()
    service = raftsvc.start(addr, tmp_path, None, state, secret=SERVICE_SECRET, listen=addr)
    try:
        service.init()
        assert service.exec(b"before", timeout=60.0)
        yield service, state
    finally:
        service.stop()


def at_rest(picture: dict[str, Any]) -> dict[str, Any]:
    """Without what goes on whatever comes: the ticks."""
    del picture["measures"]["tick_delay_seconds"]
    return picture


def test_a_node_under_attack_is_afterwards_as_it_was(
    node: tuple[raftsvc.Service, ListState], quick_reads: None, caplog: pytest.LogCaptureFixture
) -> None:
    service, state = node
    status: dict[str, Any] = service.status()
    identity = (int(status["cluster_id"], 16), status["node_id"])
    host, _, port = status["addr"].rpartition(":")
    assert service._listener is not None and service._listener.wait_bound(60.0)
    strangers = Enemy(7, *identity, secret="what the enemy takes for it")
    # Signed, but for another cluster or node, as by one whose configuration is mixed up.
    misled = [Enemy(8, identity[0] + 1, identity[1], SERVICE_SECRET), Enemy(9, identity[0], 99, SERVICE_SECRET)]
    # What the node does by itself a little after the write is done before the enemy comes.
    eventually(lambda: service.status()["digest_checked_index"] == service.status()["applied_index"], "the comparison")
    threads, files = threading.active_count(), open_files()
    before = at_rest(service.status())
    for n in range(REQUESTS):
        attempt = strangers.attempt("/raft")
        check_answer(service, attempt)
        attempt = misled[n % 2].attempt("/raft")
        if "join" not in attempt.environ["PATH_INFO"]:
            check_answer(service, attempt)
    assault((host, int(port)), strangers)
    eventually(lambda: threading.active_count() <= threads, "no thread stays")
    eventually(lambda: open_files() <= files, "no file stays open")
    assert at_rest(service.status()) == before
    assert service.err() is None, "nobody answered a challenge, so nobody is a member of another cluster"
    assert state.items == [b"before"]
    assert service.exec(b"after", timeout=60.0)
    service.wait_read(60.0)
    assert state.items == [b"before", b"after"]
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
