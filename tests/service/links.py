"""Ways between nodes that are slow, or narrow: what stands between them in other people's networks."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

_BUFFER_BYTES = 16 * 1024
_PIECE_BYTES = 4 * 1024


class SlowLink:
    """Forwards connections from one address to another, each at so many bytes a second in either direction.

    It holds little: what it has no room for waits in the sender's socket.
    """

    def __init__(self, addr: str, target: str, rate: int) -> None:
        self.rate = rate
        self._target = _split(target)
        self._is_over = False
        self._sockets: list[socket.socket] = []
        self._server = socket.socket()
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        self._server.bind(_split(addr))
        self._server.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self._is_over:
            with suppress(OSError):
                near, _ = self._server.accept()
                far = socket.socket()
                far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
                far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
                self._sockets += (near, far)
                try:
                    far.connect(self._target)
                except OSError:
                    near.close()
                    continue
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        free_at = time.monotonic()
        with suppress(OSError):
            while data := source.recv(_PIECE_BYTES):
                free_at = max(free_at, time.monotonic()) + len(data) / self.rate
                time.sleep(max(0.0, free_at - time.monotonic()))  # this is what the link is
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        self._is_over = True
        for one in (self._server, *self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def _split(addr: str) -> tuple[str, int]:
    host, _, port = addr.rpartition(":")
    return host, int(port)


App = Callable[[dict[str, Any], Callable[..., object]], Iterable[bytes]]
PAGE = b"<html>\r\n<head><title>413 Request Entity Too Large</title></head>\r\n</html>\r\n"


class NarrowProxy:
    """A WSGI app before another: bodies beyond a limit are refused as nginx does, and streams are not passed."""

    def __init__(self, app: App, limit: int) -> None:
        self._app = app
        self.limit = limit
        self.refused = 0
        self.largest = 0

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if length > self.limit:
            self.refused += 1
            environ["wsgi.input"].read(length)
            return self._answer(start_response, "413 Request Entity Too Large")
        if environ["PATH_INFO"].endswith("/stream"):
            return self._answer(start_response, "404 Not Found")
        self.largest = max(self.largest, length)
        return self._app(environ, start_response)

    def _answer(self, start_response: Callable[..., object], status: str) -> Iterable[bytes]:
        start_response(status, [("Content-Type", "text/html"), ("Content-Length", str(len(PAGE)))])
        return [PAGE]
