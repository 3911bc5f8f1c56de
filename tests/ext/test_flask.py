"""The extension of Flask: safe in factories, commands and reloaders, and quick in tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from raftsvc import ConfigurationError, FormingError, OutcomeUnknown
from raftsvc.ext.nodes import TEMPORARY, one_node
from tests.attached.hosts import ROOT, eventually, free_port

flask = pytest.importorskip("flask")

from raftsvc.ext.flask import Raft, current_raft  # noqa: E402 - only where there is a Flask


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("RAFTSVC_")]:
        monkeypatch.delenv(name)
    yield
    one_node.stop()


def make(raft: Raft | None = None, **settings: Any) -> Any:
    """An application that counts; without settings its node is temporary."""
    app = flask.Flask(__name__)
    app.config.update(settings or {"RAFTSVC_DIR": TEMPORARY})
    (raft or Raft()).init_app(app)

    @app.post("/visits")
    def visit() -> Any:
        return {"visits": current_raft.kv.incr("visits")}

    @app.get("/fail")
    def fail() -> Any:
        raise OutcomeUnknown("the message is for the operator")

    return app


def somewhere(path: Path, **more: Any) -> dict[str, Any]:
    addr = f"127.0.0.1:{free_port()}"
    return {"RAFTSVC_ADDR": addr, "RAFTSVC_INITIAL_CLUSTER": [addr], "RAFTSVC_DIR": path / "data", **more}


def test_the_first_request_has_a_node_and_factories_start_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as context:
        context.setattr(one_node, "store", lambda: pytest.fail("nothing was asked for"))
        app = make()
    assert app.test_client().post("/visits").json == {"visits": 1}
    assert app.test_client().post("/visits").json == {"visits": 2}


def test_a_second_raft_of_an_application_is_refused_with_what_to_do() -> None:
    app = make()
    assert isinstance(app.extensions["raftsvc"], Raft)
    with pytest.raises(RuntimeError, match=r"import that one.*call init_app once"):
        Raft(app)


def test_several_applications_share_the_node_of_their_process(tmp_path: Path) -> None:
    raft = Raft()
    one, other, third = make(raft), make(raft), make()
    counts = [app.test_client().post("/visits").json["visits"] for app in (one, other, third)]
    assert counts == [1, 2, 3]
    with pytest.raises(ConfigurationError, match="a process has one node"):
        make(**somewhere(tmp_path))


def test_settings_that_make_no_sense_are_refused_where_the_application_is_made() -> None:
    app = flask.Flask(__name__)
    app.config["RAFTSVC_DRI"] = "/data"
    with pytest.raises(ConfigurationError, match="RAFTSVC_DIR is, was that meant"):
        Raft(app)
    assert "raftsvc" not in app.extensions


def test_settings_come_before_the_environment_and_options_before_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAFTSVC_DIR", "/nowhere")
    monkeypatch.setenv("RAFTSVC_SECRET", "a secret of the tests, long enough")
    make(**somewhere(tmp_path))
    assert one_node.environ["RAFTSVC_DIR"] == str(tmp_path / "data")
    assert one_node.environ["RAFTSVC_SECRET"].startswith("a secret")
    one_node.stop()
    make(Raft(dir=TEMPORARY), **somewhere(tmp_path))
    assert one_node.store().set("a", b"1") > 0
    assert not (tmp_path / "data").exists()


def test_an_error_is_answered_by_what_it_means_and_its_message_is_not_told() -> None:
    answer = make().test_client().get("/fail")
    assert (answer.status_code, answer.json["code"]) == (504, "OutcomeUnknown")
    assert "operator" not in answer.get_data(as_text=True)


def test_a_node_that_cannot_be_started_is_no_fault_of_the_client(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise ConfigurationError("/data is no directory")

    app = make()
    monkeypatch.setattr(one_node, "store", refuse)
    answer = app.test_client().post("/visits")
    assert (answer.status_code, answer.json["code"]) == (503, "StartFailedError")
    assert "/data" not in answer.get_data(as_text=True)
    assert "/data is no directory" in caplog.text


def test_without_an_extension_current_raft_says_what_to_do() -> None:
    with flask.Flask(__name__).app_context(), pytest.raises(RuntimeError, match="init_app"):
        current_raft.start()


def test_a_node_without_a_port_is_served_beside_the_application(tmp_path: Path) -> None:
    client = make(**somewhere(tmp_path, RAFTSVC_LISTEN="", RAFTSVC_INITIAL_CLUSTER=None)).test_client()
    assert client.get("/raft/livez").status_code == 200
    one_node.store().service.init()
    assert client.get("/rafters").status_code == 404
    assert client.post("/visits").json == {"visits": 1}


def test_peers_are_told_that_a_node_cannot_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise FormingError("not yet")

    client = make(**somewhere(tmp_path, RAFTSVC_LISTEN="")).test_client()
    monkeypatch.setattr(one_node, "store", refuse)
    assert client.get("/raft/livez").status_code == 503


def test_a_command_goes_through_with_its_flags_and_what_is_after_them(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    app = make(**somewhere(tmp_path))
    run = app.test_cli_runner().invoke
    helped = run(args=["raft", "--help"])
    assert (helped.exit_code, helped.output[:14]) == (0, "usage: raftsvc")
    missed = run(args=["raft", "status"])
    assert missed.exit_code == 3
    assert f"there is no directory {tmp_path / 'data'}" in missed.output
    Raft.start(app.extensions["raftsvc"]).service.wait_formed(60)
    for words, said in ((["set", "a", "b"], ""), (["get", "a"], "b"), (["lock", "l", "--", "echo", "--", "c"], "-- c")):
        done = run(args=["raft", *words])
        assert done.exit_code == 0
        assert said in done.output + capfd.readouterr().out  # a command's own goes past what captures ours


def test_a_command_on_a_temporary_node_says_that_none_reaches_it() -> None:
    done = make().test_cli_runner().invoke(args=["raft", "status"])
    assert done.exit_code not in (0, 1)
    assert "the node is of its process alone" in done.output
    assert ":temporary:" not in done.output.partition("\n")[2], "and is taken for no directory"


APP = """
from flask import Flask
from raftsvc.ext.flask import Raft

raft = Raft()

def create_app():
    app = Flask(__name__)
    app.config.from_prefixed_env()
    raft.init_app(app)

    @app.post("/visits")
    def visit():
        return {"visits": raft.kv.incr("visits")}

    return app
"""


@pytest.mark.processes
def test_the_page_survives_the_reloader_and_commands_are_clients(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    command = [str(Path(sys.executable).parent / "flask"), "--app", "app"]
    addr = f"127.0.0.1:{free_port()}"
    settings = {"ADDR": addr, "INITIAL_CLUSTER": addr, "DIR": "data"}
    environ = {**os.environ, **{f"FLASK_RAFTSVC_{name}": value for name, value in settings.items()}}
    environ["PYTHONPATH"] = str(ROOT)
    port = free_port()
    log = tmp_path / "log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            [*command, "run", "--debug", "--port", str(port)],
            cwd=tmp_path,
            env=environ,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )

    def count() -> int:
        with suppress(requests.RequestException):
            answer = requests.post(f"http://127.0.0.1:{port}/visits", timeout=30)
            if answer.status_code == 200:
                return int(answer.json()["visits"])
        return 0

    def run(*words: str, **options: Any) -> str:
        done = subprocess.run(
            [*command, *words], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, **options
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        assert "visits" in run("routes")
        assert not (tmp_path / "data").exists(), "listing routes starts no node"
        assert eventually(count, log.read_text()) == 1
        assert "serves" in run("raft", "status")
        assert ">>> 2" in run("shell", input="kv.incr('visits')\n")
        (tmp_path / "app.py").write_text(APP + "# changed\n")
        eventually(lambda: "Detected change" in log.read_text(), "it is reloaded")
        eventually(lambda: log.read_text().count("Debugger is active") == 2, "the next child serves")
        assert eventually(count, log.read_text()) == 3
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
