"""What cannot work is refused at start, in a sentence that says what to write instead.

A server that starts the application in several processes, or where no thread could hear
the other nodes, would seem to work until the second node joins, or the lock on the
directory is found taken.  Judged by what the frames below `start` and the server's own
module show; where they show nothing, nothing is refused here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from raftsvc.errors import ConfigurationError
from raftsvc.host.servers import HostPool, frames_below, gunicorn_worker_below, object_below, positive
from raftsvc.systems import check_nodes

_OWN_PORT = 'give the node a port of its own: listen="0.0.0.0:8001", with a laddr that names that port'
_ONE_OWNER = "and one process owns a node's directory"


def check_server(server: HostPool | None, has_port: bool, is_limited: bool) -> None:
    """Raise ConfigurationError if a node cannot live here.

    has_port:   the node has a listener of its own, so that it needs none of the server's threads.
    is_limited: the application said how many callers may wait, and so knows where its threads are.
    """
    check_nodes()
    found = [*_gunicorn(has_port), *_uwsgi(has_port), *_mod_wsgi(), *_reloaders()]
    if not has_port and not is_limited:
        found += _one_thread(server)
    if found:
        raise ConfigurationError(found[0])


def _gunicorn(has_port: bool) -> Iterator[str]:
    worker = gunicorn_worker_below()
    arbiter = object_below("gunicorn.arbiter", "Arbiter")
    if worker is None and arbiter is not None:
        yield (
            "this is gunicorn's master process, whose threads its workers will not have: "
            "leave out --preload (preload_app), or call start in post_worker_init"
        )
    if worker is not None:
        # Those of the configuration; of the master, as this worker was forked, after signals to have more.
        count = max(int(worker.cfg.workers), int(getattr(arbiter, "num_workers", 1)))
        if count > 1 and not has_port:
            yield (
                f"gunicorn is set to run {count} worker processes, {_ONE_OWNER}, so peers have to reach that one: "
                f"{_OWN_PORT}; or write --workers 1 --threads 16"
            )


def _uwsgi(has_port: bool) -> Iterator[str]:
    module = sys.modules.get("uwsgi")
    if module is None:
        return
    options = _options_of(module)
    if not any(name in options for name in ("enable-threads", "threads")):
        yield "uWSGI runs no threads of an application unless told to: write threads = 16 (or enable-threads = true)"
    if "master" in options and not any(name in options for name in ("lazy-apps", "lazy")):
        yield (
            "uWSGI loads the application in its master and forks then, so that the node's threads would be left "
            "behind: write lazy-apps = true"
        )
    count = max(positive(options.get(name)) or 1 for name in ("workers", "processes"))
    if count > 1 and not has_port:
        yield (
            f"uWSGI is set to run {count} processes, {_ONE_OWNER}, so peers have to reach that one: {_OWN_PORT}; "
            "or write processes = 1, threads = 16"
        )


def _options_of(module: Any) -> Mapping[str, Any]:
    """uWSGI's options by name; it has bytes for both."""
    found: Mapping[Any, Any] = getattr(module, "opt", {})
    return {name.decode() if isinstance(name, bytes) else str(name): value for name, value in found.items()}


def _mod_wsgi() -> Iterator[str]:
    count = positive(getattr(sys.modules.get("mod_wsgi"), "maximum_processes", None)) or 1
    if count > 1:
        yield (
            f"Apache runs the application in up to {count} processes, {_ONE_OWNER}: "
            "give it a WSGIDaemonProcess with processes=1 threads=16"
        )


def _reloaders() -> Iterator[str]:
    """The parent of a reloader runs the application up to where it would serve, then has a child do it all again."""
    flask = _flask_run_below()
    if flask is not None and os.environ.get("WERKZEUG_RUN_MAIN") != "true":
        reloads = flask.get("reload")
        if reloads is None:
            reloads = sys.modules["flask.helpers"].get_debug_flag()
        if reloads:
            yield (
                "this is the parent of the reloader of `flask run`, which runs the application again in a child, "
                f"{_ONE_OWNER}: write `flask run --debug --no-reload`, or start the node only where "
                'os.environ.get("WERKZEUG_RUN_MAIN") == "true"'
            )
    django = object_below("django.core.management", "ManagementUtility")
    if django is not None and os.environ.get("RUN_MAIN") != "true":
        words = [str(word) for word in django.argv[1:]]
        if words[:1] == ["runserver"] and "--noreload" not in words:
            yield (
                "this is the parent of the reloader of `manage.py runserver`, which runs the application again in a "
                f"child, {_ONE_OWNER}: write `manage.py runserver --noreload`, or start the node in wsgi.py, or only "
                'where os.environ.get("RUN_MAIN") == "true"'
            )


def _one_thread(server: HostPool | None) -> Iterator[str]:
    without = (
        "serves one request at a time, so that while a view waits in exec nothing is heard of the other nodes, and "
        "none can join"
    )
    if server is not None and server.threads == 1:
        yield f"{server.server} {without}: write --threads 16, or {_OWN_PORT}"
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is not None and (positive(_options_of(uwsgi).get("threads")) or 1) == 1:
        yield f"uWSGI {without}: write threads = 16, or {_OWN_PORT}"
    if getattr(sys.modules.get("mod_wsgi"), "threads_per_process", None) == 1:
        yield f"Apache's WSGIDaemonProcess {without}: write threads=16 for it, or {_OWN_PORT}"
    if (_flask_run_below() or {}).get("with_threads") is False:
        yield f"`flask run --without-threads` {without}: leave out --without-threads, or {_OWN_PORT}"


_LOADERS = {
    ("gunicorn.workers.base", "load_wsgi"): "gunicorn",
    ("waitress.runner", "run"): "waitress-serve",
    ("flask.cli", "run_command"): "`flask run`",
    ("django.core.servers.basehttp", "get_internal_wsgi_application"): "`manage.py runserver`",
}


def check_reachable(addr: str) -> None:
    """Raise ConfigurationError where a node without a port of its own waits to be found before its server serves."""
    for frame in frames_below():
        server = _LOADERS.get((frame.f_globals.get("__name__", ""), frame.f_code.co_name))
        if server is not None:
            raise ConfigurationError(
                f"join is called while {server} loads the application, and serves nothing before that has returned: "
                f"nobody would find this node at {addr}. Call join later, in a request handler or in a thread that "
                f"the module starts, or {_OWN_PORT}"
            )


def _flask_run_below() -> Mapping[str, Any] | None:
    """The parameters of `flask run`, if that runs the caller."""
    for frame in frames_below():
        if (frame.f_globals.get("__name__"), frame.f_code.co_name) == ("flask.cli", "run_command"):
            return frame.f_locals
    return None


_DJANGO_SERVERS = frozenset(
    ("runserver", "runserver_plus", "runsslserver", "testserver", "run_gunicorn", "runmodwsgi", "run_waitress")
)
"""Django's commands that serve requests in their own process: its own, and those of packages that its users have."""


def command_below() -> str | None:
    """The command, none that serves, that runs the application to get at what it defines, if one does."""
    if gunicorn_worker_below() is not None or _flask_run_below() is not None:  # whatever command started that server
        return None
    # The first while the application is loaded, the second also while its command runs, which may be the first to ask.
    if any(object_below("flask.cli", name) is not None for name in ("ScriptInfo", "FlaskGroup")):
        return _click_path() or "flask"
    gunicorn = object_below("gunicorn.app.base", "BaseApplication")
    if gunicorn is not None and (gunicorn.cfg.check_config or gunicorn.cfg.print_config):
        return "gunicorn --check-config" if gunicorn.cfg.check_config else "gunicorn --print-config"
    django = object_below("django.core.management", "ManagementUtility")
    if django is not None and not _DJANGO_SERVERS.intersection(map(str, django.argv[1:2])):
        return " ".join(["manage.py", *map(str, django.argv[1:2])])
    return None


def _click_path() -> str | None:
    """What click was told to run, from the first word on; while it looks for a command, which may be the application's,
    with the name of that."""
    for frame in frames_below():
        for context in (frame.f_locals.get("ctx"), frame.f_locals.get("self")):
            path = getattr(context, "command_path", None)
            if isinstance(path, str):
                is_looked_for = frame.f_code.co_name == "get_command"
                return f"{path} {frame.f_locals.get('name', '')}".strip() if is_looked_for else path
    return None


PARENT = "the parent of a reloader"


def outsider_below() -> str | None:
    """Who runs the caller, if that is a process that is not to have a node: a command, or the parent of a reloader."""
    command = command_below()
    if command is not None:
        return f"`{command}`"
    return PARENT if any(_reloaders()) else None


def check_command(may_own: bool, directory: str | None) -> None:
    """Raise ConfigurationError in a command of a framework, beside a server or not, unless it is said that it may own.

    A shell that stays open would keep the server from its directory; and what runs for a moment is no node.

    directory: if a process whose State nobody would read can be a client of the server's node, by this directory.
    """
    command = None if may_own else command_below()
    if command is not None:
        instead = START_FOR_SERVER
        if directory is not None:
            instead = (
                "with a KeyValueState for its State, or another that is a raftsvc.GuestState itself, it would be a "
                f"client of that; so write raftsvc.connect({directory!r}) there"
            )
        raise ConfigurationError(
            f"this is `{command}`, {_ONE_OWNER}, which is to be the server's: {instead}. If this command is {ITSELF}"
        )


ITSELF = "a server itself, or a test with a directory of its own, say how long it may wait for that: lock_timeout=10"


START_FOR_SERVER = (
    "start the node in a module that the server loads and this command does not, and ask the server over HTTP"
)
