"""The page for operators names every error and every condition, and nothing else."""

from __future__ import annotations

import datetime
import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from werkzeug.serving import make_server

import raftsvc
from raftsvc import errors, kv, recipes
from raftsvc.member.health import Condition

PAGE = (Path(__file__).parent.parent / "docs" / "operations.md").read_text()
ERRORS = {
    name
    for module in (errors, raftsvc, kv, recipes)
    for name in dir(module)
    if isinstance(kind := getattr(module, name), type) and issubclass(kind, errors.RaftError)
}


def test_every_error_is_explained() -> None:
    missing = {name for name in ERRORS if f"`{name}`" not in PAGE}
    assert not missing, "say in docs/operations.md what it means and what to do"


def test_every_condition_is_explained_in_order() -> None:
    table = PAGE.partition("## Conditions")[2].partition("## Errors")[0]
    rows = re.findall(r"^\| `([a-z-]+)` \|", table, flags=re.MULTILINE)
    assert rows == [c.label for c in Condition if c is not Condition.STOPPED]


def test_no_error_is_named_that_does_not_exist() -> None:
    named = set(re.findall(r"`(\w+Error|NotApplied|OutcomeUnknown|Rejected)`", PAGE))
    assert named <= ERRORS


LINES = {"/raft/msg": False, "/raft/snapshot": False, "/raft/join": False, "/orders": True, "/": True}
"""What is asked of a server by POST, and whether it is to be in its access log."""


@pytest.fixture
def filtered(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """After what the page says is to be done to logs."""
    loggers = [logging.getLogger(name) for name in ("gunicorn.access", "werkzeug")]
    former = [list(logger.filters) for logger in loggers]
    snippet = re.search(r"```python\n(import logging\n.*?)```", PAGE, re.DOTALL)
    assert snippet
    exec(snippet[1], {})
    with caplog.at_level(logging.INFO):
        yield caplog
    for logger, filters in zip(loggers, former, strict=True):
        logger.filters[:] = filters


def said(caplog: pytest.LogCaptureFixture, name: str) -> dict[str, bool]:
    messages = [record.getMessage() for record in caplog.records if record.name == name]
    return {path: any(f"POST {path} " in message for message in messages) for path in LINES}


@pytest.mark.parametrize("status", ["200 OK", "409 CONFLICT", "503 SERVICE UNAVAILABLE"])
def test_what_peers_ask_is_left_out_of_the_log_of_werkzeug(filtered: pytest.LogCaptureFixture, status: str) -> None:
    def app(environ: object, start_response: object) -> list[bytes]:
        start_response(status, [])  # type: ignore[operator]
        return []

    server = make_server("127.0.0.1", 0, app)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        for path in LINES:
            requests.post(f"http://127.0.0.1:{server.port}{path}", timeout=60)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert said(filtered, "werkzeug") == LINES


def test_what_peers_ask_is_left_out_of_the_log_of_gunicorn(
    filtered: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = pytest.importorskip("gunicorn.config").Config()
    config.set("accesslog", "-")
    server_log = pytest.importorskip("gunicorn.glogging").Logger(config)
    monkeypatch.setattr(server_log.access_log, "propagate", True)
    monkeypatch.setattr(server_log.access_log, "handlers", [])
    response = SimpleNamespace(status="200 OK", sent=7, headers=[])
    for path in LINES:
        environ = {"REQUEST_METHOD": "POST", "RAW_URI": path, "SERVER_PROTOCOL": "HTTP/1.1"}
        server_log.access(response, SimpleNamespace(headers=[]), environ, datetime.timedelta(0))
    assert said(filtered, "gunicorn.access") == LINES
