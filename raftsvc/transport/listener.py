"""A small HTTP/1.1 server of the library's own for one WSGI callable.

It gives peers a port and threads that ordinary views of the application cannot
starve.  A thread per connection; how many there may be, how long each may take for
what it does, and who goes when there are too many, is told in connections.  The head of
a request is short and says clearly where it ends, or it is refused.  Bodies need a
Content-Length; responses without one are sent chunk by chunk as they come.  What it refuses itself it does by a
problem of RFC 9457, and no answer is lost since its client is still sending.  The
port is bound in the background and retried, for during a reload the former process
holds it a little longer; or it is one that a server's parent process keeps (`raftsvc.ports`).
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import re
import selectors
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from email.errors import MultipartInvariantViolationDefect, StartBoundaryNotFoundDefect
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

from raftsvc import ports
from raftsvc.errors import NotListeningError
from raftsvc.process import await_end, close_in_children
from raftsvc.transport.chunks import RawChunk
from raftsvc.transport.connections import HANDSHAKE_SECONDS, Connection, Connections
from raftsvc.transport.stream import shut_down

logger = logging.getLogger("raftsvc.listener")

WsgiApp = Callable[[dict[str, Any], Callable[..., object]], Iterable[bytes]]
MAX_CONNECTIONS = 256
MAX_HEAD_BYTES = 16 * 1024
"""Of the request line and all headers together."""
READ_SECONDS = 60.0
"""The longest wait for one read or write; how long they may take together, connections says."""
_MAX_UNREAD_BYTES = 64 * 1024
"""Of a body that the application left, so much is read for the sake of the next request."""
_MAX_LINGER_BYTES = 64 * 1024 * 1024
_LINGER_SECONDS = 2.0
_PATIENT = 4
"""So often a port that is taken is asked for, within a second, before it is said: whoever had it may be about to go."""
_CLAIM_SECONDS = 3.0
"""How long the former owner of a port that is kept may take to leave it before that is called trouble."""
_CLAIM_POLL_SECONDS = 0.02
# A line that continues the one before, the end of a line that others do not take for one, what is no text.
_OF_BODIES = (StartBoundaryNotFoundDefect, MultipartInvariantViolationDefect)
"""What the parser of mails misses, which has the head alone."""
_ALONE = ("Content-Length", "Content-Type", "Host", "Authorization", "Idempotency-Key")
"""Headers of which there is one: of two, others might go by the other."""
_UNCLEAR = re.compile(rb"\n[ \t]|\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_OUT_OF_RESOURCES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Listener:
    """Serves `app` at `address` from `start` to `stop`."""

    def __init__(
        self,
        app: WsgiApp,
        address: str,
        ssl_context: ssl.SSLContext | Callable[[], ssl.SSLContext] | None = None,
        on_trouble: Callable[[NotListeningError | None], None] = lambda trouble: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """address: `host:port`, all addresses of that host; port 0 takes a free one.  Raises ConfigurationError.

        ssl_context: or what tells it, before each handshake; a connection that was made by a former one is closed
                     after its next answer.
        on_trouble: told once that it cannot be bound, and why, and with None that it is after all.
        """
        self._place = ports.place_of(address)
        ports.adopt(os.environ)  # where a server's new program has no hooks, unlike the one before it
        ports.hide_from_children()
        self._host, self._port = self._place
        self._app = app
        self._ssl_context = ssl_context
        self._connections = Connections(MAX_CONNECTIONS, clock)
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
        sockets = [client.socket for client in self._connections.clients() if isinstance(client, _Client)]
        return [one.detach() for one in [server.socket for server in servers] + sockets]

    def stop(self) -> None:
        """Close the port and every connection; bounded, idempotent."""
        self._stopping.set()
        await_end(self._thread, 2.0)
        self._connections.break_off_all()

    def _run(self) -> None:
        """Serve until the end, be it after many attempts: whatever keeps others from the port is told, and may pass."""
        pause, attempts = 0.05, 0
        while not self._stopping.is_set():
            try:
                self._listen()
            except Exception as error:
                attempts += 1
                is_left_soon = isinstance(error, OSError) and error.errno == errno.EADDRINUSE and attempts <= _PATIENT
                if not self._is_in_trouble and not is_left_soon:
                    self._is_in_trouble = True
                    if not isinstance(error, (OSError, ValueError)):  # a name that cannot be one is a ValueError
                        logger.exception("the listener at %s:%d failed", self._host, self._port)
                    self._on_trouble(
                        NotListeningError(
                            f"{self._host}:{self._port} cannot be bound, so that others do not reach this node there: "
                            f"{error}; is the port another's, or the address no address of this machine?"
                        )
                    )
                self._stopping.wait(pause)
                pause = min(1.0, pause * 2)

    def _listen(self) -> None:
        """Serve until the end, at the port that the parent of this process keeps, or else at one bound now."""
        kept = ports.kept_at(self._place)
        if kept is None:
            self._serve(ports.bind(self._place))
            return
        sockets = kept.claim()
        deadline = time.monotonic() + _CLAIM_SECONDS
        while sockets is None:  # whose place this process takes is about to leave the port, too
            if time.monotonic() >= deadline:
                raise OSError(errno.EADDRINUSE, "another process that has the same parent accepts there")
            if self._stopping.wait(_CLAIM_POLL_SECONDS):
                return
            sockets = kept.claim()
        try:
            self._serve(sockets)
        finally:  # the sockets are closed
            self._servers = []
            kept.release()

    def _serve(self, sockets: Iterable[socket.socket]) -> None:
        """Accept connections until the end, then close the sockets."""
        with ExitStack() as stack, selectors.DefaultSelector() as selector:
            bound = [stack.enter_context(each) for each in sockets]
            servers = [_Server(each, self._app, self._ssl_context, self._connections) for each in bound]
            for server in servers:
                selector.register(server, selectors.EVENT_READ, server)
            self._servers = servers
            if self._is_in_trouble:
                self._is_in_trouble = False
                self._on_trouble(None)
            self._bound.set()
            while not self._stopping.is_set():
                for key, _ in selector.select(_Server.timeout):
                    key.data.handle_request()
                self._connections.sweep()


class _Server(ThreadingTCPServer):
    timeout = 0.1  # seconds after which it looks whether it is to stop
    daemon_threads = True
    block_on_close = False

    def __init__(
        self,
        bound: socket.socket,
        app: WsgiApp,
        ssl_context: ssl.SSLContext | Callable[[], ssl.SSLContext] | None,
        connections: Connections,
    ) -> None:
        """bound: which listens, and does not block; it is closed with this."""
        self.app = app
        self._ssl_context = ssl_context
        self.connections = connections
        super().__init__(bound.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = bound

    def get_request(self) -> tuple[Any, Any]:
        try:
            connection, address = super().get_request()
        except OSError as error:
            if error.errno in _OUT_OF_RESOURCES:
                self.connections.make_room()
                time.sleep(self.timeout)  # the connection still waits: to look again at once would take a processor
            raise
        return _Client(connection), address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        request.record = self.connections.admit(client_address[0], request)
        return request.record is not None

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        client: _Client = request
        try:
            client.socket.settimeout(HANDSHAKE_SECONDS)
            context = self._ssl_context
            if context is not None and not isinstance(context, ssl.SSLContext):
                context = context()
            if context is not None:
                # Here and not where connections are accepted: a client that never
                # finishes its handshake holds up its own thread only.
                client.socket = context.wrap_socket(client.socket, server_side=True, do_handshake_on_connect=False)
                if request.record.is_broken_off:  # while there was no socket to be ended
                    return
                client.socket.do_handshake()
            client.socket.settimeout(READ_SECONDS)
            self.finish_request(request, client_address)
        except (OSError, ValueError) as error:
            logger.debug("connection from %s ended: %s", client_address, error)
        except Exception:
            logger.exception("connection from %s failed", client_address)
        finally:
            self.shutdown_request(request)

    def is_outdated(self, connection: Any) -> bool:
        """Whether TLS is spoken by another context by now than on this connection."""
        context = self._ssl_context
        if context is None or isinstance(context, ssl.SSLContext) or not isinstance(connection, ssl.SSLSocket):
            return False
        return connection.context is not context()

    def shutdown_request(self, request: Any) -> None:
        if request.record is not None:
            self.connections.forget(request.record)
        super().shutdown_request(request.socket)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Not on the standard error, which is the host's."""
        logger.error("a connection from %s could not be served: %s", client_address, sys.exc_info()[1])


class _Client:
    """The socket of a connection, which TLS replaces by another, and the record that is kept of it."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.record: Connection | None = None

    def break_off(self) -> None:
        """End the connection, from any thread."""
        shut_down(self.socket)


def _no_more() -> None:
    """Nothing is read any more."""


class _Body:
    """The bytes of one request's body and no more."""

    def __init__(self, stream: Any, length: int, has_all: Callable[[], None]) -> None:
        """has_all: called once the last byte was read."""
        self._stream = stream
        self._has_all = has_all
        self.left = length
        self.is_refused = False
        """Whether the answer began before the client was told to send it: it may never come, and is read as empty."""
        self.before_read: Callable[[], None] = lambda: None
        if not length:
            has_all()

    def read(self, size: int | None = -1) -> bytes:
        size = self.left if size is None or size < 0 else min(size, self.left)
        if not size or self.is_refused:
            return b""
        self.before_read()
        return self._took(self._stream.read(size))

    def readline(self, size: int | None = -1) -> bytes:
        size = self.left if size is None or size < 0 else min(size, self.left)
        if not size or self.is_refused:
            return b""
        self.before_read()
        return self._took(self._stream.readline(size))

    def _took(self, data: bytes) -> bytes:
        self.left -= len(data)
        if not self.left:
            self._has_all()
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

    def setup(self) -> None:
        self._body = _Body(io.BytesIO(), 0, lambda: None)
        self._owes_continue = False
        client: Any = self.request
        self.record: Connection = client.record
        self.request = client.socket
        super().setup()
        self.record.expects_head()

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            # What is left to be written may go nowhere, and then nobody else closes the other half.
            self.rfile.close()
            self._body.before_read = _no_more  # which refers to this handler

    def handle_one_request(self) -> None:
        if not self.rfile.peek(1):  # type: ignore[attr-defined]
            self.close_connection = True
            return
        self._came_at = time.monotonic()
        self.record.expects_head()
        self._owes_continue = False
        lines = self._read_head()
        if lines is None:
            return
        self.raw_requestline = lines[0]
        stream, self.rfile = self.rfile, io.BytesIO(b"".join(lines[1:]))
        try:
            is_good = self.parse_request()  # reads the headers, and answers what it does not understand
        finally:
            self.rfile = stream
        if not is_good:
            return
        serve = getattr(self, f"do_{self.command}", None)
        if serve is None:
            self._refuse(501, "no such method")
            return
        serve()
        self.wfile.flush()
        if self._is_left:
            self._linger()
        self.record.is_done()

    def _read_head(self) -> list[bytes] | None:
        """The lines of the head; None if it was refused."""
        self.command = self.requestline = self.request_version = ""
        lines: list[bytes] = []
        left = MAX_HEAD_BYTES
        while not lines or lines[-1] not in (b"\r\n", b"\n", b""):
            line = self.rfile.readline(left + 1)
            left -= len(line)
            if left < 0:
                self._refuse(431 if lines else 414, f"request line and headers have at most {MAX_HEAD_BYTES} bytes")
                return None
            lines.append(line)
        if lines[-1] == b"":  # cut short: what was still to come might have said otherwise
            self.close_connection = True
            return None
        if _UNCLEAR.search(b"".join(lines)):
            self._refuse(400, "a header is continued on another line, or holds control characters")
            return None
        return lines

    def do_GET(self) -> None:
        length = self.headers.get("Content-Length", "")
        if any(type(each) not in _OF_BODIES for each in self.headers.defects) or any(
            len(self.headers.get_all(name, ())) > 1 for name in _ALONE
        ):
            # Where the body ends another would see elsewhere: one client of a proxy could speak for the next.
            self._refuse(400, "the headers do not parse")
            return
        if "Transfer-Encoding" in self.headers:  # though it be empty
            self._refuse(411, "send a Content-Length")
            return
        if length and not (length.isascii() and length.isdigit() and len(length) < 19):
            self._refuse(400, "Content-Length is no number")
            return
        if int(length or 0):
            self.server.connections.announce_body(self.record, int(length))
        self._body = body = _Body(self.rfile, int(length or 0), self.record.has_request)
        body.before_read = self._continue
        self._call_app(self._environ(body, length))
        if body.left and not self._is_left:
            body.read()
        if body.left:
            self.close_connection = True

    def handle_expect_100(self) -> bool:
        """Not now: who is refused need not send his body."""
        self._owes_continue = True
        return True

    def _continue(self) -> None:
        """The body is wanted."""
        if self._owes_continue:
            self._owes_continue = False
            self.send_response_only(HTTPStatus.CONTINUE)
            self.end_headers()
            self.wfile.flush()

    @property
    def _is_left(self) -> bool:
        """Whether the application left more of the body than is read for the next request, or it may never come."""
        return self._body.left > (0 if self._owes_continue else _MAX_UNREAD_BYTES)

    do_POST = do_HEAD = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_GET

    def _refuse(self, status: int, detail: str) -> None:
        """Answer, and end the connection."""
        self.send_error(status, explain=detail)
        self.wfile.flush()
        self._linger()

    def _linger(self) -> None:
        """End the connection, but not before the client could read the answer: for a while its rest is let pass."""
        self.close_connection = True
        self.record.expects_head(_LINGER_SECONDS)
        if not isinstance(self.connection, ssl.SSLSocket):
            self.connection.shutdown(socket.SHUT_WR)
        left = _MAX_LINGER_BYTES
        while left > 0 and (rest := self.rfile.read1(64 * 1024)):
            left -= len(rest)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """A problem of RFC 9457, as the applications that are served here have them."""
        if self.request_version == "HTTP/0.9":  # as what is no request at all is taken for
            self.request_version = "HTTP/1.0"
        title = HTTPStatus(code).phrase
        said = {
            "type": "about:blank",
            "title": title,
            "status": int(code),
            "detail": explain or message or title,
            "code": title.title().replace(" ", "").replace("-", ""),
        }
        body = json.dumps(said).encode() + b"\n"
        self.send_response(code, title)
        self.send_header("Connection", "close")
        self.send_header("Content-Type", "application/problem+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

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
            "raftsvc.came_at": self._came_at,
            "raftsvc.socket": self.connection,
            "raftsvc.vouch": self.record.vouch,
            "raftsvc.is_gone": self._is_gone,
        }
        if length:
            environ["CONTENT_LENGTH"] = length
        if self.headers.get("Content-Type"):
            environ["CONTENT_TYPE"] = self.headers["Content-Type"]
        for name, value in self.headers.items():
            if "_" not in name and name.lower() not in ("content-length", "content-type"):
                variable = "HTTP_" + name.upper().replace("-", "_")
                # Several of one name are a list (RFC 9110, section 5.3).
                environ[variable] = f"{environ[variable]}, {value}" if variable in environ else value
        if isinstance(self.connection, ssl.SSLSocket):
            environ["raftsvc.peer_certificate"] = self.connection.getpeercert() or None
        return environ

    def _is_gone(self) -> bool:
        """Whether the client has ended the connection, as far as one can see without reading."""
        if isinstance(self.connection, ssl.SSLSocket):  # which cannot be asked
            return False
        with selectors.PollSelector() as selector:
            selector.register(self.connection, selectors.EVENT_READ)
            if not selector.select(0):
                return False
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

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
                        self.connection.sendall(b"%x\r\n%b\r\n" % (len(chunk), chunk) if self._knows_chunks else chunk)
                    else:
                        self.wfile.write(chunk)
            if is_chunked is None:
                is_chunked = self._send_head(answer)
            if is_chunked and self._knows_chunks and self.command != "HEAD":
                self.wfile.write(b"0\r\n\r\n")
            self.wfile.flush()
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()

    @property
    def _knows_chunks(self) -> bool:
        """Whether the client does, which one of HTTP/1.0 does not."""
        return self.request_version == "HTTP/1.1"

    def _send_head(self, answer: list[Any]) -> bool:
        """Send status and headers; whether the body goes as it comes, for nobody knows its length."""
        self._body.is_refused = self._owes_continue  # what is read later would have to be asked for within the answer
        status, headers = answer
        digits, _, phrase = status.partition(" ")
        code = int(digits)
        self.send_response(code, phrase)
        length = None
        for name, value in headers:
            self.send_header(name, value)
            if name.lower() == "content-length":
                length = int(value)
        if self.server.is_outdated(self.connection):
            self.send_header("Connection", "close")
        if length is None and code in (204, 304):  # which have no body
            length = 0
        is_chunked = length is None
        if self._is_left and not self.close_connection:
            self.send_header("Connection", "close")
        if length is None:
            if self._knows_chunks:
                self.send_header("Transfer-Encoding", "chunked")
            else:  # the end of the connection is that of the body (RFC 9112, section 6.3)
                self.send_header("Connection", "close")
            self.record.streams()
        else:
            self.record.takes_answer(length)
        self.end_headers()
        return is_chunked
