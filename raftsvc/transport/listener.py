"""A small HTTP/1.1 server of the library's own for one WSGI callable.

It gives peers a port and threads that ordinary views of the application cannot
starve.  A thread per connection, connections bounded in number, every read
bounded in time.  Bodies need a Content-Length; responses without one are sent
chunk by chunk as they come.  The port is bound in the background and retried,
for during a reload the former process holds it a little longer.
"""

from __future__ import annotations

import errno
import logging
import selectors
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

from raftsvc.errors import ConfigurationError, NotListeningError
from raftsvc.process import close_in_children
from raftsvc.transport.stream import RawChunk, shut_down

logger = logging.getLogger("raftsvc.listener")

WsgiApp = Callable[[dict[str, Any], Callable[..., object]], Iterable[bytes]]
MAX_CONNECTIONS = 256
HANDSHAKE_SECONDS = 10.0
READ_SECONDS = 60.0
_MAX_UNREAD_BYTES = 64 * 1024
_NOT_HERE = frozenset((errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EADDRNOTAVAIL))
_OUT_OF_RESOURCES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Listener:
    """Serves `app` at `address` from `start` to `stop`."""

    def __init__(
        self,
        app: WsgiApp,
        address: str,
        ssl_context: ssl.SSLContext | None = None,
        on_trouble: Callable[[NotListeningError | None], None] = lambda trouble: None,
    ) -> None:
        """address: `host:port`, all addresses of that host; port 0 takes a free one.  Raises ConfigurationError.

        on_trouble: told once that it cannot be bound, and why, and with None that it is after all.
        """
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ConfigurationError(f"listen={address!r} is not host:port")
        self._app = app
        self._host = host.strip("[]")
        self._port = int(port)
        self._ssl_context = ssl_context
        self._stopping = threading.Event()
        self._bound = threading.Event()
        self._on_trouble = on_trouble
        self._is_in_trouble = False
        self._servers: list[_Server] = []
        self._thread = threading.Thread(target=self._run, name="raftsvc-listener", daemon=True)

    def start(self) -> None:
        """Bind and serve in the background."""
        close_in_children(self)
        self._thread.start()

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port once they are bound."""
        servers = self._servers
        return (self._host, servers[0].server_address[1]) if servers else None

    def wait_bound(self, timeout: float) -> bool:
        """Whether the port was bound within `timeout` seconds."""
        return self._bound.wait(timeout)

    def take_descriptors(self) -> Iterable[int]:
        """See `raftsvc.process.HoldsDescriptors`: those of the port and of every connection."""
        servers, self._servers = self._servers, []
        return [fd for server in servers for fd in server.take_descriptors()]

    def stop(self) -> None:
        """Close the port and every connection; bounded, idempotent."""
        self._stopping.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(2.0)
        for server in self._servers:
            server.close_connections()

    def _run(self) -> None:
        pause = 0.05
        while not self._stopping.is_set():
            try:
                self._servers = self._bind()
            except OSError as error:
                if not self._is_in_trouble:
                    self._is_in_trouble = True
                    self._on_trouble(
                        NotListeningError(
                            f"{self._host}:{self._port} cannot be bound, so that others do not reach this node there: "
                            f"{error}; is the port another's, or the address no address of this machine?"
                        )
                    )
                self._stopping.wait(pause)
                pause = min(1.0, pause * 2)
                continue
            if self._is_in_trouble:
                self._on_trouble(None)
            self._serve(self._servers)
            return

    def _bind(self) -> list[_Server]:
        """A server for each address of the host, at one port; those that this machine does not have are left out."""
        found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
        servers: list[_Server] = []
        missing: OSError | None = None
        try:
            for family, address in addresses:
                port = servers[0].server_address[1] if servers else self._port
                try:
                    place = (address[0], port, *address[2:])
                    servers.append(_Server(family, place, len(addresses) > 1, self._app, self._ssl_context))
                except OSError as error:
                    if error.errno not in _NOT_HERE:
                        raise
                    missing = error
            if missing is not None and not servers:
                raise missing
        except BaseException:
            for server in servers:
                server.server_close()
            raise
        return servers

    def _serve(self, servers: list[_Server]) -> None:
        """Accept connections until the end, then close the ports."""
        with ExitStack() as stack, selectors.DefaultSelector() as selector:
            for server in servers:
                stack.enter_context(server)
                selector.register(server, selectors.EVENT_READ, server)
            self._bound.set()
            while not self._stopping.is_set():
                for key, _ in selector.select(_Server.timeout):
                    key.data.handle_request()


class _Server(ThreadingTCPServer):
    timeout = 0.1  # seconds after which it looks whether it is to stop
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(
        self,
        family: socket.AddressFamily,
        address: tuple[Any, ...],
        is_one_of_several: bool,
        app: WsgiApp,
        ssl_context: ssl.SSLContext | None,
    ) -> None:
        self.app = app
        self.address_family = family
        self._is_one_of_several = is_one_of_several
        self._ssl_context = ssl_context
        self._lock = threading.Lock()  # guards _connections
        self._connections: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6 and self._is_one_of_several:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # the others have sockets of their own
        super().server_bind()

    def take_descriptors(self) -> list[int]:
        """Those of all sockets, which have none from now on."""
        return [connection.detach() for connection in (self.socket, *self._connections)]

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in _OUT_OF_RESOURCES:
                time.sleep(self.timeout)  # the connection still waits: to look again at once would take a processor
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:
        with self._lock:
            if len(self._connections) >= MAX_CONNECTIONS:
                return False
            self._connections.add(request)
            return True

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        plain = request
        try:
            request.settimeout(HANDSHAKE_SECONDS)
            if self._ssl_context is not None:
                # Here and not where connections are accepted: a client that never
                # finishes its handshake holds up its own thread only.
                request = self._ssl_context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
                with self._lock:
                    self._connections.add(request)
                request.do_handshake()
            request.settimeout(READ_SECONDS)
            self.finish_request(request, client_address)
        except (OSError, ValueError) as error:
            logger.debug("connection from %s ended: %s", client_address, error)
        except Exception:
            logger.exception("connection from %s failed", client_address)
        finally:
            with self._lock:
                self._connections.discard(plain)
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:  # here, for a connection whose thread could not be started comes by too
            self._connections.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with suppress(OSError):
                shut_down(connection)


class _Body:
    """The bytes of one request's body and no more."""

    def __init__(self, stream: Any, length: int) -> None:
        self._stream = stream
        self.left = length

    def read(self, size: int = -1) -> bytes:
        size = self.left if size is None or size < 0 else min(size, self.left)
        data: bytes = self._stream.read(size) if size else b""
        self.left -= len(data)
        return data

    def readline(self, size: int = -1) -> bytes:
        data: bytes = self._stream.readline(self.left if size is None or size < 0 else min(size, self.left))
        self.left -= len(data)
        return data

    def readlines(self, hint: int = -1) -> list[bytes]:
        return list(self)

    def __iter__(self) -> Any:
        return iter(self.readline, b"")


class _Handler(BaseHTTPRequestHandler):
    """One connection: reads requests, calls the app, writes its answers."""

    protocol_version = "HTTP/1.1"
    server: _Server
    # With Nagle's algorithm or unbuffered writes each answer would wait 40 ms for an acknowledgement.
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - overridden
        logger.debug("%s: %s", self.client_address, format % args)

    def version_string(self) -> str:
        return "raftsvc"

    def do_GET(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self.headers.defects or len(self.headers.get_all("Content-Length", ())) > 1:
            # Where the body ends another would see elsewhere: one client of a proxy could speak for the next.
            self._refuse(400, "the headers do not parse")
            return
        if self.headers.get("Transfer-Encoding"):
            self._refuse(411, "send a Content-Length")
            return
        if length and not (length.isascii() and length.isdigit() and len(length) < 19):
            self._refuse(400, "Content-Length is no number")
            return
        body = _Body(self.rfile, int(length or 0))
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.wfile.flush()
        self._call_app(self._environ(body, length))
        if body.left > _MAX_UNREAD_BYTES:
            self.close_connection = True
        elif body.left:
            body.read()
        if body.left:
            self.close_connection = True

    do_POST = do_HEAD = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_GET

    def _refuse(self, status: int, detail: str) -> None:
        self.close_connection = True
        self.send_error(status, explain=detail)

    def _environ(self, body: _Body, length: str) -> dict[str, Any]:
        path, _, query = self.path.partition("?")
        host, port = self.server.server_address[:2]
        environ: dict[str, Any] = {
            "REQUEST_METHOD": self.command,
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "SERVER_NAME": str(host),
            "SERVER_PORT": str(port),
            "SERVER_PROTOCOL": self.request_version,
            "SERVER_SOFTWARE": self.version_string(),
            "REMOTE_ADDR": self.client_address[0],
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "https" if isinstance(self.connection, ssl.SSLSocket) else "http",
            "wsgi.input": body,
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "raftsvc.listener": True,
            "raftsvc.socket": self.connection,
        }
        if length:
            environ["CONTENT_LENGTH"] = length
        if self.headers.get("Content-Type"):
            environ["CONTENT_TYPE"] = self.headers["Content-Type"]
        for name, value in self.headers.items():
            if "_" not in name and name.lower() not in ("content-length", "content-type"):
                environ["HTTP_" + name.upper().replace("-", "_")] = value
        if isinstance(self.connection, ssl.SSLSocket):
            environ["raftsvc.peer_certificate"] = self.connection.getpeercert() or None
        return environ

    def _call_app(self, environ: dict[str, Any]) -> None:
        answer: list[Any] = []

        def start_response(
            status: str, headers: list[tuple[str, str]], exc_info: object = None
        ) -> Callable[[bytes], object]:
            answer[:] = [status, headers]
            return self.wfile.write

        chunks = self.server.app(environ, start_response)
        try:
            is_chunked: bool | None = None
            for chunk in chunks:
                if is_chunked is None:
                    is_chunked = self._send_head(answer)
                    if is_chunked:
                        self.wfile.flush()
                if chunk and self.command != "HEAD":
                    if isinstance(chunk, RawChunk):
                        self.connection.sendall(chunk)
                    elif is_chunked:  # at once, in one segment, past the buffer
                        self.connection.sendall(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                    else:
                        self.wfile.write(chunk)
            if is_chunked is None:
                is_chunked = self._send_head(answer)
            if is_chunked and self.command != "HEAD":
                self.wfile.write(b"0\r\n\r\n")
            self.wfile.flush()
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()

    def _send_head(self, answer: list[Any]) -> bool:
        """Send status and headers; whether the body goes in chunks."""
        status, headers = answer
        code, _, phrase = status.partition(" ")
        self.send_response(int(code), phrase)
        names = set()
        for name, value in headers:
            self.send_header(name, value)
            names.add(name.lower())
        is_chunked = "content-length" not in names
        if is_chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        return is_chunked
