"""What a node learns of the server it lives in.  gunicorn itself is asked in test_gunicorn.py."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest

from raftsvc.host import servers as hosts


def test_without_a_server_nothing_is_known() -> None:
    assert hosts.find_host() is None
    assert hosts.find_host({"wsgi.multithread": True}) is None
    assert hosts.find_host({"raftsvc.listener": True, "SERVER_SOFTWARE": "waitress"}) is None


def test_waitress_is_known_by_its_threads() -> None:
    done = threading.Event()
    threads = [threading.Thread(target=done.wait, name=f"waitress-{n}") for n in range(6)]
    for thread in threads:
        thread.start()
    try:
        assert hosts.find_host({"SERVER_SOFTWARE": "waitress"}) == hosts.HostPool("waitress", 6)
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_waitress_really_names_its_threads_so() -> None:
    waitress_task = pytest.importorskip("waitress.task")
    dispatcher = waitress_task.ThreadedTaskDispatcher()
    dispatcher.set_thread_count(3)
    try:
        host = hosts.find_host({"SERVER_SOFTWARE": "waitress"})
        assert host is not None and host.threads == 3
    finally:
        dispatcher.shutdown()


def test_that_waitress_shuts_down_is_seen_from_its_threads() -> None:
    waitress_task = pytest.importorskip("waitress.task")
    found: queue.SimpleQueue[hosts.HostPool | None] = queue.SimpleQueue()

    class Task:
        def service(self) -> None:
            found.put(hosts.find_host({"SERVER_SOFTWARE": "waitress"}))

    dispatcher = waitress_task.ThreadedTaskDispatcher()
    dispatcher.set_thread_count(3)
    dispatcher.add_task(Task())
    host = found.get(timeout=60.0)
    assert host is not None and host.threads == 3
    assert not host.stopping()
    dispatcher.shutdown()
    assert host.stopping()


@pytest.mark.parametrize(
    ("environ", "threads"),
    [
        ({"SERVER_SOFTWARE": "Werkzeug/3.1", "wsgi.multithread": True}, None),
        ({"SERVER_SOFTWARE": "anything", "wsgi.multithread": False}, 1),
    ],
)
def test_other_servers_are_known_by_the_environ(environ: dict[str, Any], threads: int | None) -> None:
    host = hosts.find_host(environ)
    assert host is not None
    assert host.threads == threads
    assert host.stopping() is False


def test_mod_wsgi_and_uwsgi_tell_by_their_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    class Module:
        threads_per_process = 4
        opt: dict[object, object] = {b"threads": b"8"}  # noqa: RUF012

    monkeypatch.setitem(hosts.sys.modules, "mod_wsgi", Module)
    monkeypatch.setitem(hosts.sys.modules, "uwsgi", Module)
    found = hosts.find_host({"mod_wsgi.version": (4, 9)})
    assert found is not None and found.threads == 4
    found = hosts.find_host({"uwsgi.version": b"2"})
    assert found is not None and found.threads == 8
