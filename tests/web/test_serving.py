"""A ready-made node that serves its store: by its own listener, in one real process, until it is told to stop."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import requests

from raftsvc import kv
from raftsvc.errors import ConfigurationError
from raftsvc.keys import ClientKey, client_keys_in
from raftsvc.watched import read_keys
from raftsvc.web import api
from raftsvc.web.serving import Gate, main, prepare_to_end, who_is_here
from tests.effort import PATIENCE
from tests.service.harness import eventually, in_background
from tests.web.server import KEY, Process


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Process]:
    made = Process(tmp_path)
    try:
        made.wait_serving()
        yield made
    finally:
        made.end()


def stream_until_end(url: str, began: list[str]) -> str:
    with requests.get(
        f"{url}/watch",
        headers={"Authorization": f"Bearer {KEY}", "Accept": "text/event-stream"},
        stream=True,
        timeout=PATIENCE,
    ) as answer:
        text = ""
        for chunk in answer.iter_content(None):
            text += chunk.decode()
            began.append(text)
        return text


@pytest.mark.processes
def test_a_node_serves_its_store_until_it_is_told_to_stop(served: Process) -> None:
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {KEY}"
    for named in ("a b/ä%2F", "a/../b", "//x"):
        path = f"{served.url}/keys/{quote(named, safe='')}"
        version = session.put(path, b"1", timeout=PATIENCE).json()["version"]
        got = session.get(path, timeout=PATIENCE)
        assert (got.content, got.headers["ETag"]) == (b"1", f'"{version}"')
    # What has no body is followed by the next answer, on the same connection.
    where = urlsplit(served.url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=PATIENCE)
    tokens = {"Authorization": f"Bearer {KEY}"}
    for _ in range(2):
        connection.request("GET", f"/v1/keys/{quote(named, safe='')}", headers={**tokens, "If-None-Match": "*"})
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (304, b"")
        connection.request("HEAD", "/v1/keys/ready", headers=tokens)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"")
    connection.close()
    with socket.create_connection((where.hostname or "", where.port or 0), timeout=PATIENCE) as raw:
        head = f"/v1/keys/{quote(named, safe='')} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        raw.sendall(f"GET {head}If-None-Match: *\r\n\r\nDELETE {head}".encode())
        raw.shutdown(socket.SHUT_WR)  # in the middle of a head: nothing of it is done
        told = b"".join(iter(lambda: raw.recv(65536), b""))
    assert told.startswith(b"HTTP/1.1 304 ") and told.endswith(b"\r\n\r\n") and told.count(b"HTTP/1.1") == 1
    assert b"chunked" not in told
    assert session.get(path, timeout=PATIENCE).status_code == 200
    assert requests.get(f"{served.url}/keys/ready", timeout=PATIENCE).status_code == 401
    team = {"Authorization": "Bearer reader-0123456789abcdef"}
    assert requests.get(f"{served.url}/keys/ready", headers=team, timeout=PATIENCE).status_code == 403
    began: list[str] = []
    watching = in_background(lambda: stream_until_end(served.url, began))
    connection.request("GET", "/v1/watch?wait=60&prefix=never", headers=tokens)
    eventually(lambda: began, "a stream that began")
    # By a connection of its own, which is accepted after the one that polls.
    counted = requests.post(f"{served.url}/counters/n", headers=tokens, timeout=PATIENCE)
    version = counted.json()["version"]
    eventually(lambda: f":{version}\n" in began[-1], "an event")
    assert served.stop() == 0, served.log
    assert "event: change" in watching()
    polled = connection.getresponse()
    assert (polled.status, json.loads(polled.read()).get("events", [])) in ((200, []), (503, []))
    connection.close()
    assert "stopped in order" in served.log
    assert "Traceback" not in served.log


@pytest.mark.processes
def test_keys_come_and_go_in_each_process_of_a_host(tmp_path: Path) -> None:
    """One has the node, the other is attached to it; each has its own port, and both have the files."""
    anna, operators = "anna-0123456789abcdef", tmp_path / "operators"
    operators.write_text(f"screen read {KEY}\n")
    owner = Process(tmp_path, operators=operators)
    beside = None
    try:
        owner.wait_serving()
        beside = owner.beside()
        beside.wait_serving()

        def asked(path: str, key: str) -> requests.Response:
            return requests.get(path, headers={"Authorization": f"Bearer {key}"}, timeout=PATIENCE)

        def may(key: str) -> set[bool]:
            return {asked(f"{each.url}/keys/ready", key).ok for each in (owner, beside)}

        assert (may(anna), may(KEY)) == ({False}, {True})
        write(tmp_path / "keys", f"anna write {anna}")
        write(operators, f"screen read {anna}")
        eventually(lambda: (may(anna), may(KEY)) == ({True}, {False}), "who comes, and who is gone")
        node = f"http://{owner.addr}/raft"
        eventually(lambda: asked(f"{node}/status", anna).ok, "an operator who came")
        assert asked(f"{node}/operator/feed", KEY).status_code == 401

        write(tmp_path / "keys", "")
        eventually(lambda: "stale-file" in asked(f"{node}/status", anna).json()["conditions"], "it is told")
        assert "--keys-file" in asked(f"{node}/status", anna).json()["conditions"]["stale-file"]
        assert re.search(r'^raftsvc_condition\{.*"stale-file".*\} 1', asked(f"{node}/metrics", anna).text, re.M)
        eventually(lambda: (owner.log + beside.log).count("what was used before is used on") == 2, "both say so")
        assert (may(anna), may(KEY)) == ({True}, {False})
    finally:
        for each in (owner, beside):
            if each is not None:
                each.end()


def write(path: Path, line: str) -> None:
    beside = path.with_name("next")
    beside.write_text(f"{line}\n")
    beside.replace(path)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--open", "--bind", "0.0.0.0:8080"],
        ["--open", "--bind", "store.example:8080"],
        ["--open", "--keys-file", "keys"],
        ["--keys-file", "/nowhere"],
    ],
    ids=str,
)
def test_it_is_open_to_nobody_by_accident(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("RAFTSVC_")]:
        monkeypatch.delenv(name)
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("raftsvc: ")


@pytest.mark.processes
def test_a_port_that_is_taken_ends_it(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        made = Process(tmp_path, "--open", "--bind", f"127.0.0.1:{taken.getsockname()[1]}")
        try:
            assert made.process.wait(PATIENCE) == 1
        finally:
            made.end()
    assert "cannot be bound" in made.log


def test_a_signal_counts_whichever_thread_takes_it() -> None:
    """As the kernel has any of them take what comes while the process is stopped; the main thread is not woken then."""
    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        wait = prepare_to_end()

        def take() -> None:
            for number in (signal.SIGUSR1, signal.SIGTERM):
                signal.pthread_kill(threading.get_ident(), number)

        threading.Thread(target=take, daemon=True).start()
        wait()
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in former.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("host", "may"),
    [
        ("localhost", True),
        ("localhost:8080", True),
        ("127.0.0.1:8080", True),
        ("127.1.2.3", True),
        ("[::1]:8080", True),
        ("[::1]", True),
        ("", False),
        ("store.example:8080", False),
        ("localhost.example", False),
        ("10.0.0.1:8080", False),
    ],
)
def test_who_is_on_this_machine_names_it(host: str, may: bool) -> None:
    assert (who_is_here({"REQUEST_METHOD": "GET", "HTTP_HOST": host}) is not None) == may


def test_a_file_of_keys_says_who_may_what(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# comment\n\nweb write 0123456789abcdef01 app/\nops admin abcdef0123456789ab\n")
    assert read_keys("--keys-file", str(path), client_keys_in) == [
        ClientKey("web", "0123456789abcdef01", "write", "app/"),
        ClientKey("ops", "abcdef0123456789ab", "admin"),
    ]
    for text in ("web write\n", "web all 0123456789abcdef01\n", "web write 0123456789abcdef01 a b\n"):
        path.write_text(text)
        with pytest.raises(ConfigurationError, match=r"--keys-file: .*line 1"):
            read_keys("--keys-file", str(path), client_keys_in)


def test_nothing_new_is_let_in_once_it_is_closed(store: kv.KeyValue) -> None:
    gate = Gate(api(store, open_to_all=True))
    started: list[str] = []

    def ask() -> bytes:
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/v1/keys/ready", "QUERY_STRING": ""}
        chunks = gate(environ, lambda status, headers, exc_info=None: started.append(status))
        assert gate.wait_empty(0.0) is (started[-1][0] == "5")
        said = b"".join(chunks)
        close = getattr(chunks, "close", None)
        if close is not None:
            close()
        return said

    assert (ask(), started) == (b"", ["200 OK"])
    assert gate.wait_empty(0.0)
    gate.close()
    assert b"StoppedError" in ask()
    assert started[-1].startswith("503")
    assert gate.wait_empty(0.0)


def test_from_then_on_each_answer_ends_its_connection() -> None:
    answers: list[tuple[str, str | None]] = []
    entered, goes_on = threading.Event(), threading.Event()

    def slow(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        entered.set()
        assert environ["PATH_INFO"] == "/before" or goes_on.wait(PATIENCE)
        start_response("200 OK", [("Content-Length", "0")])
        return []

    def ask(path: str) -> None:
        environ = {"REQUEST_METHOD": "PUT", "PATH_INFO": path, "QUERY_STRING": ""}
        gate(
            environ,
            lambda status, headers, exc_info=None: answers.append((status[:3], dict(headers).get("Connection"))),
        )

    gate = Gate(slow)
    ask("/before")
    entered.clear()
    under_way = in_background(lambda: ask("/under-way"))
    assert entered.wait(PATIENCE)
    gate.close()
    ask("/late")
    goes_on.set()
    under_way()
    assert answers == [("200", None), ("503", "close"), ("200", "close")]
