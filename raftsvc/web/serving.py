"""A ready-made node that serves its store over HTTP: `python -m raftsvc.web`.

The node is started as `raftsvc.kv.start_from_env` does, and the API has a port of its own, by the same small
server as the peers', a thread for each connection.  TLS is a proxy's.

On SIGTERM and SIGINT it leaves in order: who watches is told to go elsewhere, what is under way is answered, then the
node stops, which hands over and answers who waits still, and the port is closed last.
"""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

from raftsvc.errors import ConfigurationError, NotListeningError, RaftError, StoppedError
from raftsvc.keys import client_keys_in
from raftsvc.kv import KeyValue, start_from_env
from raftsvc.kv.environment import listen_from_env
from raftsvc.transport.listener import Listener
from raftsvc.watched import read_keys
from raftsvc.web.application import Api, api
from raftsvc.web.callers import Caller, Tokens, anybody
from raftsvc.web.problems import answer_to

logger = logging.getLogger("raftsvc.web")

BIND, KEYS_FILE = "RAFTSVC_BIND", "RAFTSVC_KEYS_FILE"
MAX_WATCHERS = 128
"""Half of the connections that the listener has."""
_BIND_SECONDS = 5.0
_DRAIN_SECONDS = 5.0
_LAST_SECONDS = 2.0
_ENDS = (("Connection", "close"),)

StartResponse = Callable[..., Any]


class Gate:
    """Counts what is under way, decodes the path as WSGI has it, and lets nothing new in once it is closed.

    What is answered from then on ends its connection: whoever sent the next request on that could not tell whether it
    was read before the port was closed.
    """

    def __init__(self, application: Callable[[dict[str, Any], StartResponse], Iterable[bytes]]) -> None:
        self._application = application
        self._changed = threading.Condition()  # guards the two below
        self._count = 0
        self._is_closed = False

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            return start_response(status, [*headers, *_ENDS] if self._is_closed else headers, exc_info)

        with self._changed:
            is_closed = self._is_closed
            self._count += not is_closed
        if is_closed:
            error = StoppedError("this node is stopping")
            return answer_to(error, is_write=environ["REQUEST_METHOD"] not in ("GET", "HEAD"))(environ, start)
        path = unquote_to_bytes(environ["PATH_INFO"].encode("latin-1")).decode("latin-1")
        try:
            return _Passing(self._application({**environ, "PATH_INFO": path}, start), self._leave)
        except BaseException:
            self._leave()
            raise

    def _leave(self) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """Let nothing new in."""
        with self._changed:
            self._is_closed = True

    def wait_empty(self, timeout: float) -> bool:
        """Whether nothing is under way any more within `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._count, timeout)


class _Passing:
    """An answer on its way."""

    def __init__(self, chunks: Iterable[bytes], leave: Callable[[], None]) -> None:
        self._chunks = chunks
        self._leave = leave

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._chunks)

    def close(self) -> None:
        """The server is done with it, which it says once."""
        try:
            close = getattr(self._chunks, "close", None)
            if close is not None:
                close()
        finally:
            self._leave()


class Server:
    """A store's API at a port of its own."""

    def __init__(self, kv: KeyValue, application: Api, bind: str) -> None:
        """bind: host and port; port 0 takes a free one.  Raises ConfigurationError."""
        self._kv = kv
        self._application = application
        self._gate = Gate(application)
        self._trouble: NotListeningError | None = None
        self._listener = Listener(self._gate, bind, on_trouble=self._on_trouble)

    def _on_trouble(self, trouble: NotListeningError | None) -> None:
        self._trouble = trouble

    def start(self) -> str:
        """Serve in the background; returns the URL.  Raises NotListeningError."""
        self._listener.start()
        address = self._listener.address if self._listener.wait_bound(_BIND_SECONDS) else None
        if address is None:
            self._listener.stop()
            raise self._trouble or NotListeningError("the port is not bound in time")
        host, port = address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def stop(self) -> None:
        """Leave in order; bounded, idempotent."""
        self._gate.close()
        self._application.close()
        self._gate.wait_empty(_DRAIN_SECONDS)
        try:
            self._kv.service.stop()
        finally:
            self._gate.wait_empty(_LAST_SECONDS)
            self._listener.stop()


def _arguments(argv: Sequence[str] | None, environ: Mapping[str, str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m raftsvc.web",
        description="A node of a cluster that serves the key-value store over HTTP.",
        epilog="The node itself is told by RAFTSVC_ADDR, RAFTSVC_DIR and the others of raftsvc.kv.environment.",
    )
    parser.add_argument(
        "--bind", default=environ.get(BIND) or "127.0.0.1:8080", help=f"host:port; {BIND}, else 127.0.0.1:8080"
    )
    parser.add_argument(
        "--keys-file",
        default=environ.get(KEYS_FILE) or None,
        help=f"who may what: lines `name read|write key [prefix]`; {KEYS_FILE}",
    )
    parser.add_argument(
        "--open", action="store_true", help="everybody on this machine may read and write; only with a loopback --bind"
    )
    parser.add_argument("--max-watchers", type=int, default=MAX_WATCHERS, help="default %(default)s")
    return parser.parse_args(argv)


def _is_loopback(bind: str) -> bool:
    host = bind.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def who_is_here(environ: Mapping[str, Any]) -> Caller | None:
    """Who asks where all of this machine may: nobody, if he names another, as a page does that had its name changed."""
    host = str(environ.get("HTTP_HOST", ""))
    return anybody(environ) if _is_loopback(host) or _is_loopback(f"{host}:80") else None


def main(argv: Sequence[str] | None = None) -> int:
    """`run` with what is said on the command line; returns the exit code."""
    return run(_arguments(argv, os.environ))


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal says otherwise; returns the exit code: 2 for what makes no sense, 1 for what went wrong.

    arguments: with `bind`, `keys_file`, `open` and `max_watchers`.
    """
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        return _serve(arguments)
    except ConfigurationError as error:
        sys.stderr.write(f"raftsvc: {error}\n")
        return 2
    except RaftError as error:
        sys.stderr.write(f"raftsvc: {error}\n")
        return 1


def prepare_to_end() -> Callable[[], None]:
    """What waits until SIGTERM or SIGINT says that the process is to end; they count from now on."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    # A signal may be taken by any thread, as when the process was stopped, and then interrupts nothing here: so it is
    # not the handler that writes, which is called by the main thread alone, once that does something again.
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    ending = (signal.SIGTERM, signal.SIGINT)
    for number in ending:
        signal.signal(number, lambda *_: None)

    def wait() -> None:
        while not set(os.read(read_end, 64)) & set(ending):
            pass

    return wait


def _watch_keys(kv: KeyValue, path: str, tokens: Tokens, application: Api) -> None:
    """Know from now on, and after each change, whom the file names.  Raises ConfigurationError."""

    def use(data: bytes) -> str:
        keys = client_keys_in(data)
        tokens.renew(keys)
        application.end_streams()
        return f"{len(keys)} keys"

    kv.service.watch_file("--keys-file", path, use)


def _serve(arguments: argparse.Namespace) -> int:
    if arguments.open and not _is_loopback(arguments.bind):
        raise ConfigurationError("--open is for a --bind that only this machine reaches; else give --keys-file")
    if not 0 <= arguments.max_watchers <= MAX_WATCHERS:
        raise ConfigurationError(f"--max-watchers is at most {MAX_WATCHERS}: half of the connections are for others")
    if arguments.keys_file is None and not arguments.open:
        raise ConfigurationError(f"who may use it? Give --keys-file or {KEYS_FILE}, or --open on this machine alone")
    if arguments.open and arguments.keys_file is not None:
        raise ConfigurationError("--open and --keys-file are both given: which is meant?")
    if listen_from_env(os.environ) == "":
        raise ConfigurationError("RAFTSVC_LISTEN is empty, so that nobody would reach this node: unset it")
    keys = None if arguments.open else read_keys("--keys-file", arguments.keys_file, client_keys_in)
    kv = start_from_env()
    try:
        tokens = None if keys is None else Tokens(keys)
        application = api(kv, authorize=tokens or who_is_here, max_watchers=arguments.max_watchers)
        if tokens is not None:
            _watch_keys(kv, arguments.keys_file, tokens, application)
        server = Server(kv, application, arguments.bind)
        wait = prepare_to_end()
        url = server.start()
    except BaseException:
        kv.service.stop()
        raise
    logger.info("the store is served at %s/v1/", url)
    wait()
    began = time.monotonic()
    server.stop()
    logger.info("stopped in order within %.1f s", time.monotonic() - began)
    return 0
