"""The Session by which a node asks its peers: nothing of the environment's, and no answer that takes for ever.

The timeout of a socket begins anew with each byte.  So whoever answers drop by drop, be it on purpose or a broken
proxy, would hold who waits for as long as it likes.  Here an answer has one deadline, from its first byte to its last:
the read timeout, and more only as far as it gets on at a rate that slow links have.
"""

from __future__ import annotations

import http.client
import io
import queue
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import WeakSet

import requests
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from raftsvc.systems import call_in_children

_LEAST_BYTES_PER_SECOND = 4096
"""An answer that is slower than that, and takes longer than the read timeout, is none."""


class Incoming(io.RawIOBase):
    """The bytes of one answer as they come; raises TimeoutError once its deadline has passed."""

    def __init__(self, sock: socket.socket) -> None:
        self._file: Any = sock.makefile("rb", buffering=0)
        self._sock = sock  # by this name a stream finds it, as in what `makefile` returns
        silence = sock.gettimeout()
        self._deadline = None if silence is None else time.monotonic() + silence
        self._silence = silence

    def lift_deadline(self) -> None:
        """From here on only silence ends it."""
        self._deadline = None
        self._sock.settimeout(self._silence)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        """As `recv_into`, within what is left of the time."""
        if self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the answer came too slowly")
            if self._silence is not None and left < 0.9 * self._silence:  # else a system call for nothing
                self._sock.settimeout(left)
        count: int | None = self._file.readinto(buffer)
        if self._deadline is not None and count:
            self._deadline += count / _LEAST_BYTES_PER_SECOND
        return count

    def close(self) -> None:
        if not self.closed:
            with suppress(OSError):  # the next request may come through it
                self._sock.settimeout(self._silence)
            self._file.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp.close()  # the socket stays open: it counts its files
        self.fp = io.BufferedReader(Incoming(sock))


class _Connection(HTTPConnection):
    response_class = _Answer


class _SecureConnection(HTTPSConnection):
    response_class = _Answer


class _Queue(queue.LifoQueue[Any]):
    """The connections of a pool, which is emptied as the pool ends: in a child too, where its lock may be taken."""

    def __init__(self, maxsize: int = 0) -> None:
        super().__init__(maxsize)
        _queues.add(self)

    def begin_anew(self) -> None:
        """Have a lock that is free, and no connection."""
        super().__init__(self.maxsize)


_queues: WeakSet[_Queue] = WeakSet()


def _begin_anew() -> None:
    for each in list(_queues):
        each.begin_anew()


call_in_children(_begin_anew)


class HTTPConnectionPool(urllib3.HTTPConnectionPool):  # its name is in errors
    ConnectionCls = _Connection
    QueueCls = _Queue


class HTTPSConnectionPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _SecureConnection
    QueueCls = _Queue


class _Adapter(requests.adapters.HTTPAdapter):
    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": HTTPConnectionPool, "https": HTTPSConnectionPool}


class _Pools(_Adapter):
    """Connections with the context of now, of which the Session and the environment say nothing."""

    def __init__(self, find_context: Callable[[], ssl.SSLContext], **options: Any) -> None:
        self._find_context = find_context
        super().__init__(**options)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        find_context = self._find_context

        class Connection(_SecureConnection):
            def connect(self) -> None:
                self.ssl_context = find_context()
                super().connect()

        class HTTPSConnectionPool(urllib3.HTTPSConnectionPool):
            ConnectionCls = Connection
            QueueCls = _Queue

        self.poolmanager.pool_classes_by_scheme["https"] = HTTPSConnectionPool

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """By the context, which has its own certificates of CAs: none is added to them."""
        conn.cert_reqs, conn.ca_certs, conn.ca_cert_dir = "CERT_REQUIRED", None, None


class _NoCookies(requests.cookies.cookielib.DefaultCookiePolicy):  # type: ignore[name-defined,misc]
    def set_ok(self, cookie: object, request: object) -> bool:
        return False


def make_session(find_context: Callable[[], ssl.SSLContext] | None = None) -> requests.Session:
    """A Session fit for peers: no proxies or credentials of the environment, no cookies, no retries.

    find_context: tells by what the next connection speaks TLS; None: by what the Session says.
    """
    session = requests.Session()
    session.trust_env = False
    session.headers.clear()
    session.cookies.set_policy(_NoCookies())
    options: dict[str, Any] = {"pool_connections": 32, "pool_maxsize": 8, "max_retries": 0}
    adapter = _Adapter(**options) if find_context is None else _Pools(find_context, **options)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session
