"""Three nodes in a Flask application behind gunicorn, where peers and callers share one small pool of threads."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from benchmarks import statuses
from tests.attached.hosts import free_port
from tests.pulse import Pulse

pytest.importorskip("flask")
pytest.importorskip("gunicorn")
pytestmark = pytest.mark.processes

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
POOL_THREADS = 4
PATIENCE = 120.0


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Three running nodes of one cluster, each with a pool of four threads."""
    yield from run_nodes(monkeypatch, POOL_THREADS)


@pytest.fixture
def roomy_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The same with a pool that has threads to spare for streams."""
    yield from run_nodes(monkeypatch, 12)


@pytest.fixture
def steady_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Of which no other leads because a machine is slow for a while."""
    yield from run_nodes(monkeypatch, POOL_THREADS, "tests.steady_app:application")


def run_nodes(
    monkeypatch: pytest.MonkeyPatch, pool_threads: int, application: str = "wsgi:application"
) -> Iterator[list[Any]]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    import launcher

    monkeypatch.setattr(launcher, "POOL_THREADS", pool_threads)
    cluster = launcher.Cluster(is_mounted=True, application=application)
    try:
        cluster.start()
        cluster.form()
        yield cluster.nodes
    except launcher.Failure as failure:
        raise AssertionError(f"{failure}\n{cluster.log_tails()}") from failure
    finally:
        for node in cluster.nodes:
            node.kill()
            node.close()
        sys.modules.pop("launcher", None)


def test_with_every_thread_in_exec_the_leader_stays_and_the_surplus_is_told_at_once(steady_nodes: list[Any]) -> None:
    nodes = steady_nodes
    status = nodes[0].status()
    assert 0 < status["max_waiting"] < POOL_THREADS, "the size of the pool was learnt from the server"
    terms = {node.status()["term"] for node in nodes}
    leaders = {node.status()["leader_id"] for node in nodes}
    acknowledged: list[str] = []
    refusals: list[float] = []
    strange: list[object] = []

    def write(node: Any, worker: int) -> None:
        for n in range(25):
            key = f"{node.name}-{worker}-{n}"
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                started = time.monotonic()
                answer = node.put(f"/kv/{key}", "x")
                if answer.status == 200:
                    acknowledged.append(key)
                    break
                if answer.status != 503:
                    strange.append((answer.status, answer.text))
                    return
                assert answer.retry_after >= 1
                refusals.append(time.monotonic() - started)
                time.sleep(0.01)

    threads = [threading.Thread(target=write, args=(node, w)) for node in nodes for w in range(2 * POOL_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE)
    assert not strange
    assert len(acknowledged) == 3 * 2 * POOL_THREADS * 25
    assert refusals, "more callers than the pool takes were refused"
    assert {node.status()["term"] for node in nodes} == terms, "nobody had to be elected meanwhile"
    assert {node.status()["leader_id"] for node in nodes} == leaders
    for node in nodes:
        listing = node.get("/kv", prefix="")
        assert set(acknowledged) <= set(listing.json())


def streams_of(node: Any) -> list[tuple[bool, bool]]:
    return [(stream["in"], stream["out"]) for stream in node.status()["streams"].values()]


def wait_for_streams(nodes: list[Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not all(streams_of(node) == [(True, True)] * (len(nodes) - 1) for node in nodes):
        assert time.monotonic() < deadline, [streams_of(node) for node in nodes]
        time.sleep(0.05)


def test_a_small_pool_keeps_its_threads_and_offers_no_streams(nodes: list[Any]) -> None:
    assert all(node.put(f"/kv/{node.name}", "x").status == 200 for node in nodes)
    assert [streams_of(node) for node in nodes] == [[(False, False)] * 2] * 3


def test_streams_leave_threads_to_callers_and_end_when_the_server_does(roomy_nodes: list[Any]) -> None:
    nodes = roomy_nodes
    wait_for_streams(nodes)
    assert {node.status()["max_waiting"] for node in nodes} == {12 - 2 - 1}
    assert all(node.put(f"/kv/{node.name}", "x").status == 200 for node in nodes)
    for node in nodes[1:]:  # one that leads, perhaps, and one that does not
        node.send_signal(signal.SIGTERM)
        node.wait_until_gone()
        log = node.log.read_text()
        assert "Shutting down: Master" in log
        assert "SIGKILL" not in log, "no thread had to be killed"
        assert "Traceback" not in log
        node.start()
        node.wait_until_up()
        wait_for_streams(nodes)


def test_a_reload_hands_the_directory_from_one_worker_to_the_next(nodes: list[Any]) -> None:
    node = nodes[1]
    assert node.put("/kv/before", "1").status == 200
    before = node.status()["process"]["pid"]
    os.kill(node.pid, signal.SIGHUP)

    def is_new() -> bool:
        try:
            status = node.status()
        except Exception:  # the connection breaks, or the answer is not the new worker's yet
            return False
        is_another = status["process"]["pid"] != before
        return bool(status["role"] in ("leader", "follower") and is_another and status["leader_id"])

    deadline = time.monotonic() + PATIENCE
    while not is_new():
        assert time.monotonic() < deadline, node.log.read_text()[-3000:]
        assert nodes[0].put("/kv/meanwhile", "x").status in (200, 503, 504)
        time.sleep(0.05)
    assert node.get("/kv/before").text == "1"
    assert node.put("/kv/after", "2").status == 200
    assert nodes[2].get("/kv/after").text == "2"


def test_a_node_that_is_replaced_while_it_is_written_to_keeps_no_caller_waiting(nodes: list[Any]) -> None:
    followers = [node for node in nodes if node.status()["role"] == "follower"]
    assert len(followers) == 2
    is_over = threading.Event()
    told: list[tuple[int, float]] = []

    def write(node: Any) -> None:
        while not is_over.is_set():
            began = pulse.seconds
            try:
                status = node.put("/kv/a", "1").status
            except Exception:  # it went with the old worker, or waits for the new one
                time.sleep(0.05)
                continue
            told.append((status, pulse.seconds - began))

    writers = [threading.Thread(target=write, args=(node,)) for node in followers]
    pulse = Pulse().start()
    for writer in writers:
        writer.start()
    try:
        for node in followers:
            deadline = time.monotonic() + PATIENCE
            while (status := node.status())["fsync_count"] < 200:  # it is written to
                assert time.monotonic() < deadline, node.log.read_text()[-3000:]
            before = status["process"]["pid"]
            os.kill(node.pid, signal.SIGHUP)
            deadline = time.monotonic() + PATIENCE
            is_new = False
            while not is_new:
                assert time.monotonic() < deadline, node.log.read_text()[-3000:]
                try:
                    status = node.status()
                    is_new = status["role"] in ("leader", "follower") and status["process"]["pid"] != before
                    is_new = is_new and bool(status["leader_id"])
                except Exception:  # the connection breaks, or the answer is not the new worker's yet
                    time.sleep(0.05)
    finally:
        is_over.set()
        for writer in writers:
            writer.join()
        pulse.stop()
    assert [status for status, _ in told].count(200) > 10
    assert {status for status, _ in told} <= {200, 503, 504}
    assert all(seconds < 8 for status, seconds in told if status == 504), "its timeout has 10"


def test_a_body_cut_short_on_the_way_changes_nothing(nodes: list[Any]) -> None:
    node = nodes[0]
    for each in reversed(nodes):
        # So each has opened its session; and the node that is asked has applied its own write, which is the last.
        assert each.put("/kv/a", "1").status == 200
    before = node.status()
    host, port = node.addr.split(":")
    head = "POST /raft/msg HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-raftsvc\r\nContent-Length: 1000\r\n\r\n"
    for length in (0, 10, 999):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(head.encode() + bytes(length))
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(65536)
            assert b" 400 " in answer.split(b"\r\n")[0]
    after = node.status()
    assert (after["term"], after["last_index"]) == (before["term"], before["last_index"])
    assert node.put("/kv/a", "b").status == 200


COUNTING = """
import os, raftsvc
from raftsvc import kv
from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware
app = Flask(__name__)
service = raftsvc.start("127.0.0.1:1", os.environ["NODE_DIR"], None, kv.KeyValueState(), insecure=True)
app.add_url_rule("/pid", view_func=lambda: str(os.getpid()))
app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/raft": service})
"""


def test_what_peers_ask_does_not_count_for_the_time_to_replace_a_worker(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(COUNTING)
    port = free_port()
    log = tmp_path / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "gunicorn",
                "-b",
                f"127.0.0.1:{port}",
                "--threads",
                "4",
                "--max-requests",
                "30",
                "--max-requests-jitter",
                "5",
                "app:app",
            ],
            cwd=tmp_path,
            env={
                **os.environ,
                "NODE_DIR": str(tmp_path / "node"),
                "HOME": str(tmp_path),
                "PYTHONPATH": str(EXAMPLES.parent),
            },
            stdout=output,
            stderr=output,
        )

    def get(path: str, method: str = "GET") -> str:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return requests.request(method, f"http://127.0.0.1:{port}{path}", timeout=PATIENCE).text
            except requests.ConnectionError:
                assert time.monotonic() < deadline and server.poll() is None, log.read_text()
                time.sleep(0.05)

    try:
        first = get("/pid")
        for _ in range(50):
            get("/raft/livez")
            get("/raft/status")
            get("/raft/msg", "POST")
        assert get("/pid") == first, "it is the worker of before"
        deadline = time.monotonic() + PATIENCE
        while get("/pid") == first:  # those are the application's
            assert time.monotonic() < deadline
    finally:
        server.terminate()
        server.wait(PATIENCE)


@pytest.mark.parametrize("is_mounted", [False, True], ids=["a port of its own", "mounted"])
def test_many_more_clients_than_threads_are_served_or_told_when_to_come_again(is_mounted: bool) -> None:
    """README's application as it is printed, and with its node mounted beside it."""
    result = statuses.measure(statuses.readme_application(is_mounted), is_mounted, clients=64, threads=8, seconds=4.0)
    seen = result["statuses"]
    assert set(seen) <= {"200", "503", "504"}, result
    assert seen["200"] > 100, result
    if not is_mounted:
        assert seen["200"] > 0.9 * sum(seen.values()), "nobody has to be refused for want of a thread"
