"""What is known of the WSGI server that this process belongs to.

A node must leave some of the server's threads to its peers and should go before
the server does; so it asks how many threads there are and whether they are being
wound up.  Nothing is parsed from command lines or environment variables, which a
configuration file may overrule.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, NamedTuple


class HostPool(NamedTuple):
    """A WSGI server and its pool.

    threads:          how many requests it serves at once in this process; None: no fixed number.
    graceful_timeout: seconds it lets requests end when it shuts down, if known.
    stopping:         whether it has begun to shut down.
    is_serving:       whether requests are under way that will be over by themselves, as far as one can see.
    uncount:          has it forget a request that it counted for the time to replace this process: those
                      of other nodes come all the time, and are not the application's.
    """

    server: str
    threads: int | None
    graceful_timeout: float | None = None
    stopping: Callable[[], bool] = lambda: False
    uncount: Callable[[], None] = lambda: None
    is_serving: Callable[[], bool] = lambda: False


def find_host(environ: Mapping[str, Any] | None = None) -> HostPool | None:
    """The server that imports the caller, or that serves `environ`; None if it is not recognized.

    Without `environ` looks only at the frames below, which finds gunicorn while it
    loads the application.
    """
    worker = gunicorn_worker_below()
    if worker is None and environ is not None:
        if "raftsvc.listener" in environ:
            return None
        worker = _gunicorn_worker_anywhere()
    if worker is not None:
        return _gunicorn_host(worker)
    if environ is None:
        return None
    software = str(environ.get("SERVER_SOFTWARE", "")).lower()
    if software.startswith("waitress"):
        count = sum(thread.name.startswith("waitress-") for thread in threading.enumerate())
        dispatcher = _below(lambda candidate: type(candidate).__name__ == "ThreadedTaskDispatcher")
        if dispatcher is None:
            return HostPool("waitress", count or None)

        def is_stopping() -> bool:
            return dispatcher.stop_count > 0 or not dispatcher.threads

        return HostPool("waitress", count or None, 5.0, is_stopping, is_serving=serves)
    if "mod_wsgi.version" in environ:
        module = sys.modules.get("mod_wsgi")
        return HostPool("mod_wsgi", positive(getattr(module, "threads_per_process", None)))
    if "uwsgi.version" in environ:
        options = getattr(sys.modules.get("uwsgi"), "opt", {})
        return HostPool("uWSGI", positive(options.get("threads", options.get(b"threads"))) or 1)
    if not environ.get("wsgi.multithread", True):
        return HostPool("a single-threaded server", 1)
    if software.startswith("werkzeug"):
        return HostPool("werkzeug", None)
    return None


def positive(value: object) -> int | None:
    """As a number above 0, if it is one."""
    try:
        number = int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        return None
    return number if number > 0 else None


def gunicorn_worker_below() -> Any:
    """The worker of gunicorn that runs the caller, if one does."""
    return object_below("gunicorn.workers.base", "Worker")


def _below(is_wanted: Callable[[object], bool]) -> Any:
    """The object, one of those whose methods are on this thread's stack, that is wanted."""
    for frame in frames_below():
        candidate = frame.f_locals.get("self")
        if candidate is not None and is_wanted(candidate):
            return candidate
    return None


def object_below(module: str, name: str) -> Any:
    """The innermost object below of the class `name` of `module`, or of one derived from it; not imported for that."""
    if module not in sys.modules:
        return None
    return _below(lambda candidate: any((b.__module__, b.__name__) == (module, name) for b in type(candidate).__mro__))


def frames_below() -> Iterator[FrameType]:
    """The frames of this thread, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _gunicorn_worker_anywhere() -> Any:
    """Where the application was loaded before the worker was made (--preload), its stack says nothing."""
    if "gunicorn.workers.base" not in sys.modules:
        return None
    kind = sys.modules["gunicorn.workers.base"].Worker
    return next((candidate for candidate in gc.get_objects() if isinstance(candidate, kind)), None)


def _gunicorn_host(worker: Any) -> HostPool:
    name = type(worker).__name__
    threads = int(worker.cfg.threads) if name == "ThreadWorker" else 1 if name == "SyncWorker" else None

    def uncount() -> None:
        if getattr(worker, "nr", 0) > 0:  # to be compared with max_requests; counted before the application is called
            worker.nr -= 1

    def is_serving() -> bool:
        queue = getattr(getattr(worker, "tpool", None), "_work_queue", None)
        # On connections that are kept alive there may be another request, as long as it lets there be.
        return bool(getattr(worker, "keepalived_conns", ()) or (queue is not None and queue.qsize()) or serves())

    grace = float(worker.cfg.graceful_timeout)
    return HostPool(f"gunicorn ({name})", threads, grace, lambda: not worker.alive, uncount, is_serving)


_SERVES = frozenset(
    (f"gunicorn.workers.{module}", "handle_request") for module in ("gthread", "sync", "base_async")
) | {("waitress.task", "service")}
_LASTING = ("raftsvc.transport.", "raftsvc.web.", "raftsvc.operator.", "raftsvc.reception")


def serves() -> bool:
    """Whether a thread serves a request of the application, and none that lasts until the node ends it."""
    own = threading.get_ident()
    return any(ident != own and _is_of_application(frame) for ident, frame in sys._current_frames().items())


def _is_of_application(innermost: FrameType) -> bool:
    frame: FrameType | None = innermost
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith(_LASTING):
            return False
        if (module, frame.f_code.co_name) in _SERVES:
            return True
        frame = frame.f_back
    return False
