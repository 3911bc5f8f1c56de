"""What cannot work is refused at start, at once, in a sentence that says what to write instead."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import raftsvc
import raftsvc.kv
from raftsvc.errors import ConfigurationError, DirectoryInUseError
from raftsvc.host.refusals import check_server, command_below
from raftsvc.host.servers import HostPool
from tests.attached.hosts import free_port

SECRET = "a secret of the tests, long enough"
PATIENCE = 60.0

PROGRAM = f"""
import os, sys, raftsvc
from raftsvc import kv
from flask import Flask
app = Flask(__name__)
options = {{"listen": os.environ["NODE_LISTEN"]}} if "NODE_LISTEN" in os.environ else {{}}
service = raftsvc.start(
    "127.0.0.1:8001", os.environ["NODE_DIR"], None, kv.KeyValueState(), secret={SECRET!r}, **options
)
if "JOIN" in os.environ:
    service.join(os.environ["JOIN"])
if __name__ == "__main__":
    app.run(debug=True, port=0)
"""

SERVERS = {
    "one sync worker": (["gunicorn", "-b", "127.0.0.1:0", "app:app"], "write --threads 16"),
    "one thread": (["gunicorn", "-b", "127.0.0.1:0", "-k", "gthread", "app:app"], "listen="),
    "several workers": (["gunicorn", "-b", "127.0.0.1:0", "-w", "3", "--threads", "4", "app:app"], "--workers 1"),
    "a master": (["gunicorn", "-b", "127.0.0.1:0", "--preload", "--threads", "4", "app:app"], "leave out --preload"),
    "a reloader": (["flask", "run", "-p", "0", "--debug"], "--no-reload"),
    "no threads": (["flask", "run", "-p", "0", "--without-threads"], "leave out --without-threads"),
    "a script's reloader": (["python", "app.py"], "WERKZEUG_RUN_MAIN"),
}


JOINING = {
    "gunicorn": ["gunicorn", "-b", "127.0.0.1:0", "-k", "gthread", "--threads", "4", "app:app"],
    "waitress": ["waitress-serve", "--listen", "127.0.0.1:0", "app:app"],
    "flask": ["flask", "run", "-p", "0"],
}


@pytest.mark.processes
@pytest.mark.parametrize("name", JOINING)
def test_a_join_that_its_own_server_waits_for_is_refused_at_once(tmp_path: Path, name: str) -> None:
    for module_name in ("flask", name):
        pytest.importorskip(module_name)
    done = run_server(tmp_path, *JOINING[name], JOIN="127.0.0.1:1")
    assert done.returncode != 0
    assert "Call join later" in done.stdout + done.stderr, done.stderr[-2000:]


@pytest.mark.processes
@pytest.mark.parametrize("name", SERVERS)
def test_a_server_that_cannot_work_ends_at_once_and_says_what_to_write(tmp_path: Path, name: str) -> None:
    pytest.importorskip("flask")
    pytest.importorskip("gunicorn")
    command, advice = SERVERS[name]
    done = run_server(tmp_path, *command)
    assert done.returncode != 0
    assert advice in done.stdout + done.stderr, done.stderr[-2000:]


def run_server(
    tmp_path: Path, command: str, *arguments: str, program: str = PROGRAM, typed: str | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    """What becomes of a server, or a command, with a program such as the one above."""
    (tmp_path / "app.py").write_text(program)
    environ = {**os.environ, "NODE_DIR": str(tmp_path / "node"), "HOME": str(tmp_path), **more}
    environ |= {"PYTHONPATH": str(Path(raftsvc.__file__).parents[1])}
    for hidden in ("FLASK_DEBUG", "WERKZEUG_RUN_MAIN", "WEB_CONCURRENCY", "GUNICORN_CMD_ARGS"):
        environ.pop(hidden, None)
    return subprocess.run(
        [str(Path(sys.executable).parent / command), *arguments],
        cwd=tmp_path,
        env=environ,
        input=typed,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def refusal(server: HostPool | None = None, has_port: bool = False, is_limited: bool = False) -> str:
    try:
        check_server(server, has_port, is_limited)
    except ConfigurationError as error:
        return str(error)
    return ""


def module(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> Any:
    made = types.ModuleType(name)
    made.__dict__.update(content)
    monkeypatch.setitem(sys.modules, name, made)
    return made


def below(owner: Any) -> Callable[[Callable[[], Any]], Any]:
    """Call something with a method of `owner` on the stack."""

    def run(self: Any, call: Callable[[], Any]) -> Any:
        return call()

    return lambda call: run(owner, call)


def test_a_server_with_one_thread_is_fit_if_the_node_does_not_need_it() -> None:
    single = HostPool("a server", 1)
    assert "a server serves one request at a time" in refusal(single)
    assert not refusal(single, has_port=True)
    assert not refusal(single, is_limited=True), "the application knows where its threads are"
    assert not refusal(HostPool("a server", 2))
    assert not refusal(HostPool("a server", None))
    assert not refusal(None)


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({}, "threads = 16"),
        ({"enable-threads": True}, "threads = 16, or"),
        ({"threads": b"1"}, "threads = 16, or"),
        ({"threads": b"4"}, ""),
        ({"threads": b"4", "processes": b"4"}, "processes = 1, threads = 16"),
        ({"threads": b"4", "workers": b"2", "lazy-apps": True, "master": True}, "processes = 1, threads = 16"),
        ({"threads": b"4", "master": True}, "lazy-apps = true"),
        ({"threads": b"4", "master": True, "lazy": True}, ""),
    ],
)
def test_uwsgi_needs_threads_and_one_process_or_a_port_of_the_nodes_own(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object], advice: str
) -> None:
    module(monkeypatch, "uwsgi", opt={name.encode(): value for name, value in options.items()})
    assert advice in refusal()
    assert bool(advice) == bool(refusal())
    if advice.endswith("or") or advice.startswith("processes"):
        assert not refusal(has_port=True)
    elif advice:
        assert advice in refusal(has_port=True), "no port of its own mends that"


@pytest.mark.parametrize(
    ("processes", "threads", "advice"), [(1, 16, ""), (4, 16, "processes=1"), (1, 1, "threads=16")]
)
def test_apache_needs_one_process_with_threads(
    monkeypatch: pytest.MonkeyPatch, processes: int, threads: int, advice: str
) -> None:
    module(monkeypatch, "mod_wsgi", maximum_processes=processes, threads_per_process=threads)
    assert advice in refusal()
    assert bool(advice) == bool(refusal())


@pytest.mark.parametrize(
    ("words", "is_child", "is_refused", "command"),
    [
        (["runserver"], False, True, None),
        (["runserver"], True, False, None),
        (["runserver", "--noreload"], False, False, None),
        (["shell"], False, False, "manage.py shell"),
        (["migrate", "--plan"], False, False, "manage.py migrate"),
        (["runserver_plus"], False, False, None),
        (["list_servers"], False, False, "manage.py list_servers"),
        (["process_observers"], False, False, "manage.py process_observers"),
    ],
)
def test_django_starts_the_node_in_its_server_only(
    monkeypatch: pytest.MonkeyPatch, words: list[str], is_child: bool, is_refused: bool, command: str | None
) -> None:
    utility = type("ManagementUtility", (), {"__module__": "django.core.management", "argv": ["manage.py", *words]})
    module(monkeypatch, "django.core.management")
    monkeypatch.setenv("RUN_MAIN", "true" if is_child else "")
    assert ("--noreload" in below(utility())(refusal)) == is_refused
    assert below(utility())(command_below) == command


def test_a_command_that_runs_a_server_is_none_in_that_servers_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("django.core.management", "flask.cli", "gunicorn.workers.base"):
        module(monkeypatch, name)
    utility = type("ManagementUtility", (), {"__module__": "django.core.management", "argv": ["manage.py", "prod"]})
    group = type("FlaskGroup", (), {"__module__": "flask.cli", "command_path": "flask prod"})
    worker = type("Worker", (), {"__module__": "gunicorn.workers.base"})
    in_worker = below(worker())
    for in_command, name in ((below(utility()), "manage.py prod"), (below(group()), "flask prod")):
        assert in_command(command_below) == name
        assert in_command(lambda: in_worker(command_below)) is None


@pytest.mark.processes
@pytest.mark.parametrize("word", ["--check-config", "--print-config"])
def test_a_look_at_the_configuration_of_gunicorn_starts_no_node(tmp_path: Path, word: str) -> None:
    pytest.importorskip("flask")
    pytest.importorskip("gunicorn")
    words = ["gunicorn", word, "-w", "2", "--threads", "4", "app:app"]
    assert f"this is `gunicorn {word}`" in ends_at_once(tmp_path, words, PROGRAM, False)
    program = "from flask import Flask\nimport raftsvc.kv\napp = Flask('a')\nkv = raftsvc.kv.start_from_env()\n"
    environ = {"RAFTSVC_ADDR": "127.0.0.1:8001", "RAFTSVC_DIR": "other", "RAFTSVC_SECRET": SECRET}
    done = run_server(tmp_path, *words, program=program, **environ)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("workers", "asked_for_more"), [(2, 1), (1, 2), (5, 5)])
def test_gunicorn_runs_one_worker_whatever_made_it_more(
    monkeypatch: pytest.MonkeyPatch, workers: int, asked_for_more: int
) -> None:
    for name in ("gunicorn", "gunicorn.workers.base", "gunicorn.arbiter"):
        module(monkeypatch, name)
    worker = type("Worker", (), {"__module__": "gunicorn.workers.base", "cfg": types.SimpleNamespace(workers=workers)})
    master = type("Arbiter", (), {"__module__": "gunicorn.arbiter", "num_workers": asked_for_more})
    in_master, in_worker = below(master()), below(worker())
    assert f"{max(workers, asked_for_more)} worker processes" in in_master(lambda: in_worker(refusal))
    assert "master process" in in_master(refusal)


@pytest.mark.parametrize(
    ("module_name", "function"),
    [
        ("gunicorn.workers.base", "load_wsgi"),
        ("waitress.runner", "run"),
        ("flask.cli", "run_command"),
        ("django.core.servers.basehttp", "get_internal_wsgi_application"),
    ],
)
def test_a_node_does_not_wait_to_be_found_on_a_port_that_is_not_served_yet(
    tmp_path: Path, module_name: str, function: str
) -> None:
    scope: dict[str, Any] = {"__name__": module_name}
    exec(f"def {function}(call):\n    return call()", scope)
    load = scope[function]
    state = raftsvc.kv.KeyValueState
    service = raftsvc.start("127.0.0.1:1", tmp_path / "a", None, state(), secret=SECRET)
    try:
        with pytest.raises(ConfigurationError, match=r"loads the application.*127\.0\.0\.1:1.*listen="):
            load(lambda: service.join("127.0.0.1:2", PATIENCE))
        with pytest.raises(raftsvc.JoinFailedError):
            service.join("127.0.0.1:2", 0.0)
        load(service.init)
        with pytest.raises(raftsvc.ExistingClusterError):  # as it is each time but the first
            load(lambda: service.join("127.0.0.1:2", PATIENCE))
    finally:
        service.stop()
    service = raftsvc.start(
        "127.0.0.1:1", tmp_path / "b", None, state(), secret=SECRET, listen=f"127.0.0.1:{free_port()}"
    )
    try:
        with pytest.raises(raftsvc.JoinFailedError):
            load(lambda: service.join("127.0.0.1:2", 0.0))
    finally:
        service.stop()


def _start(directory: str, queue: Any) -> None:
    try:
        raftsvc.start("127.0.0.1:1", directory, None, raftsvc.kv.KeyValueState(), secret=SECRET, lock_timeout=PATIENCE)
    except BaseException as error:
        queue.put(error)


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_child_does_not_wait_for_a_directory_that_its_parent_has(tmp_path: Path, method: str) -> None:

    service = raftsvc.start("127.0.0.1:1", tmp_path, None, raftsvc.kv.KeyValueState(), secret=SECRET)
    try:
        context = multiprocessing.get_context(method)
        queue = context.SimpleQueue()
        child = context.Process(target=_start, args=(str(tmp_path), queue))
        child.start()
        child.join(PATIENCE)
        assert not queue.empty(), "it ended, with an error"
        error = queue.get()
        assert isinstance(error, DirectoryInUseError)
        assert f"process {os.getpid()}, which started this one" in str(error)
    finally:
        service.stop()


def test_a_command_gets_a_node_only_where_it_is_said_how_long_it_may_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    utility = type("ManagementUtility", (), {"__module__": "django.core.management", "argv": ["manage.py", "check"]})
    module(monkeypatch, "django.core.management")

    def start(**options: Any) -> raftsvc.Service:
        state = raftsvc.kv.KeyValueState()
        return raftsvc.start("127.0.0.1:1", tmp_path / "n", None, state, secret=SECRET, **options)

    with pytest.raises(ConfigurationError, match=r"`manage\.py check`.*lock_timeout="):
        below(utility())(start)
    assert not (tmp_path / "n").exists()
    service = start()
    try:
        with pytest.raises(ConfigurationError, match=r"`manage\.py check`"):
            below(utility())(start)
        with pytest.raises(DirectoryInUseError, match=r"in use by process \d+.*`manage\.py check`"):
            below(utility())(lambda: start(lock_timeout=0.0))
    finally:
        service.stop()
    below(utility())(lambda: start(lock_timeout=0.0)).stop()


FLASK_COMMANDS = {
    "flask shell": ["flask", "shell"],
    "flask routes": ["flask", "routes"],
    "flask greet": ["flask", "--app", "app", "greet", "me"],
    "flask db": ["flask", "db", "upgrade"],
    "python -m flask routes": ["python", "-m", "flask", "routes"],
}
"""By what is said of each; the app's own are looked for in the app, so that of a group's commands nothing is known."""
FLASK_PROGRAM = f"""{PROGRAM}
import click

@app.cli.command("greet")
@click.argument("name")
def greet(name):
    print("hello", name)

@app.cli.group()
def db():
    pass

@db.command()
def upgrade():
    print("upgraded")
"""
MANAGE = """
import sys
from django.conf import settings

settings.configure(INSTALLED_APPS=["app.Node"], SECRET_KEY="x", ALLOWED_HOSTS=["*"])
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""
DJANGO_PROGRAM = f"""
import os, raftsvc
from django.apps import AppConfig
from raftsvc import kv

class Node(AppConfig):
    name = "app"
    path = os.getcwd()

    def ready(self):
        raftsvc.start("127.0.0.1:8001", os.environ["NODE_DIR"], None, kv.KeyValueState(), secret={SECRET!r})
"""


def holder(directory: Path) -> raftsvc.Service:
    return raftsvc.start("127.0.0.1:8001", directory, None, raftsvc.kv.KeyValueState(), secret=SECRET)


@pytest.mark.processes
@pytest.mark.parametrize("is_beside", [True, False], ids=["beside a server", "alone"])
@pytest.mark.parametrize("name", FLASK_COMMANDS)
def test_a_command_of_flask_ends_at_once_and_is_told_that_it_is_no_node(
    tmp_path: Path, name: str, is_beside: bool
) -> None:
    pytest.importorskip("flask")
    assert f"this is `{name}`" in ends_at_once(tmp_path, FLASK_COMMANDS[name], FLASK_PROGRAM, is_beside)


@pytest.mark.processes
@pytest.mark.parametrize("is_beside", [True, False], ids=["beside a server", "alone"])
@pytest.mark.parametrize("word", ["check", "shell", "dbshell", "createsuperuser"])
def test_a_command_of_django_ends_at_once_and_is_told_that_it_is_no_node(
    tmp_path: Path, word: str, is_beside: bool
) -> None:
    pytest.importorskip("django")
    (tmp_path / "manage.py").write_text(MANAGE)
    said = ends_at_once(tmp_path, ["python", "manage.py", word], DJANGO_PROGRAM, is_beside)
    assert f"this is `manage.py {word}`" in said


LAZY_PROGRAM = """
import click
from flask import Flask
from raftsvc.ext.flask import Raft

app = Flask("app")
raft = Raft(app)

@app.cli.command("peek")
def peek():
    print(type(raft.kv.service).__name__)
"""


@pytest.mark.processes
@pytest.mark.parametrize("words", [["shell"], ["peek"]])
def test_a_command_of_flask_that_asks_for_the_store_once_it_runs_is_no_node_either(
    tmp_path: Path, words: list[str]
) -> None:
    pytest.importorskip("flask")
    asked = "print(type(kv.service).__name__)\n" if words == ["shell"] else ""
    environ = {"RAFTSVC_ADDR": "127.0.0.1:8001", "RAFTSVC_DIR": "other", "RAFTSVC_SECRET": SECRET}
    done = run_server(tmp_path, "flask", *words, program=LAZY_PROGRAM, typed=asked, **environ)
    assert "Guest" in done.stdout, done.stdout + done.stderr
    assert f"this is `flask {words[0]}`" in done.stderr
    assert not (tmp_path / "other").exists()


def ends_at_once(tmp_path: Path, words: list[str], program: str, is_beside: bool) -> str:
    """What a command says that has ended, without owning the directory, before it could have waited for that."""
    service = holder(tmp_path / "node") if is_beside else None
    try:
        done = run_server(tmp_path, *words, program=program)
    finally:
        if service is not None:
            service.stop()
    assert done.returncode != 0
    assert (tmp_path / "node").exists() is is_beside, "it made no directory"
    said = done.stdout + done.stderr
    assert "waited" not in said, said[-2000:]
    return said
