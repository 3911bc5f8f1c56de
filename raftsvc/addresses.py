"""Where a node is reached: what an address may be, the one spelling it has as an identity, and the URL it means.

An address says where to connect, and is by what people name a member.  It has many spellings
(`http://A.example:8001/raft/` is `a.example:8001`), so wherever it is an identity, in
configurations, allowed lists and evictions, it is in its canonical one.  What nobody can be
reached at, or what two parsers may take for different places, is none at all.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import NoReturn, cast
from urllib.parse import urlsplit

from raftsvc.core.membership import MAX_ADDRESS_BYTES
from raftsvc.errors import ConfigurationError

_FORM = "an address is host:port, which means http://host:port/raft, or a URL such as https://host:port/prefix"

_WHOLE = re.compile(
    r"""(?: (?P<scheme> [a-z][a-z0-9+.-]* ) :// )?
        (?P<host> \[ [^\[\]/]* \] | [^:/\[\]]* )
        (?: : (?P<port> [^:/]* ) )?
        (?P<path> /.* )?""",
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_PATH = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:-]+)*/*", re.ASCII)
_DEFAULT_PORTS = {"http": 80, "https": 443}


def canonical_addr(addr: str) -> str:
    """The one spelling of `addr`; two that mean the same place give the same.

    The host in small ASCII letters, or an IP address in its shortest form; the port always
    there; no slash at the end.  What is mounted at /raft over plain HTTP is `host:port`, all else a URL.

    Raises ConfigurationError, which says what to write instead, for what peers cannot be told to connect to:
    wildcards, multicast, broadcast, port 0, a zone, credentials, a URL without a prefix.
    """
    _check_text(addr)  # before it is looked up, which not everything can be
    return _checked(addr)


@lru_cache(maxsize=256)
def _checked(addr: str) -> str:
    try:
        peer_url(addr)
    except ConfigurationError:
        _canonical(addr)  # which may say better what is wrong with it
        raise
    canonical = _canonical(addr)
    _check_length(canonical)  # it may be the longer one
    return canonical


def _check_text(addr: object) -> None:
    if not isinstance(addr, str):
        _refuse(addr, "it is no text")


def _canonical(addr: str) -> str:
    if not addr.isprintable() or any(c in addr for c in " ?#@\\%"):
        _refuse(addr, "it has credentials, a query, a zone, an escape or a blank")
    match = _WHOLE.fullmatch(addr)
    if match is None:
        _refuse(addr, "it is neither host:port nor a URL")
    scheme = (match["scheme"] or "http").lower()
    if scheme not in _DEFAULT_PORTS:
        _refuse(addr, "it is neither host:port nor an http(s) URL")
    host = _canonical_host(addr, match["host"])
    port = _canonical_port(addr, match["port"], _DEFAULT_PORTS[scheme])
    if match["scheme"] is None:
        return f"{host}:{port}"
    path = match["path"]
    if path is None:
        _refuse(
            addr,
            f"it has no prefix: write {host}:{port} for what is mounted at /raft, "
            f"{scheme}://{host}:{port}/ for what is mounted at the root",
            f"{scheme}://{host}:{port}/raft",
        )
    if not _PATH.fullmatch(path) or any(part in (".", "..") for part in path.split("/")):
        _refuse(addr, "its prefix is more than plain words between single slashes")
    path = path.rstrip("/") or "/"
    return f"{host}:{port}" if (scheme, path) == ("http", "/raft") else f"{scheme}://{host}:{port}{path}"


def check_addr(name: str, value: object) -> None:
    """Raise ConfigurationError, which begins by `name`, of an option say, unless `value` is an address of a node."""
    try:
        canonical_addr(cast(str, value))
    except ConfigurationError as error:
        raise ConfigurationError(f"{name}: {error}") from None


def check_listen(name: str, value: object) -> None:
    """The same, of where a server listens."""
    try:
        is_good = isinstance(value, str) and "://" not in value and urlsplit(peer_url(value)).port != 0
    except ConfigurationError:
        is_good = False
    if not is_good:
        raise ConfigurationError(f"{name} is host:port, such as 0.0.0.0:8001, and not {value!r:.100}")


def same_addr(addr: str) -> str:
    """The canonical spelling, or `addr` itself if it is no address; to compare what was recorded by whomever."""
    try:
        return canonical_addr(addr)
    except ConfigurationError:
        return addr


def is_canonical(addr: str) -> bool:
    """Whether `addr` is an address in its canonical spelling."""
    try:
        return canonical_addr(addr) == addr
    except ConfigurationError:
        return False


def _refuse(addr: object, why: str, instead: str = "") -> NoReturn:
    raise ConfigurationError(f"{addr!r:.200} is no address of a node: {why}; {instead or _FORM}")


def _canonical_port(addr: str, text: str | None, default: int) -> int:
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536):
        _refuse(addr, "a port is a number from 1 to 65535, and the one that peers connect to")
    return int(text)


def _canonical_host(addr: str, text: str) -> str:
    if text.startswith("["):
        return _canonical_ip(addr, text[1:-1], 6)
    if text.isascii():
        name = text.lower()
    else:
        try:
            name = text.encode("idna").decode()
            is_plain = name.encode().decode("idna") == text.lower()
        except UnicodeError:
            is_plain = False
        if not is_plain:  # of such names IDNA 2003 and IDNA 2008 may make different ones
            _refuse(addr, "its host is spelled in a way that is not the same to all: write the name in ASCII (xn--...)")
    labels = name.split(".")
    last = labels[-1]
    if last.isdigit() or re.fullmatch(r"0x[0-9a-f]*", last):  # `127.1` and `0x7f000001` mean 127.0.0.1 to some
        return _canonical_ip(addr, name, 4)
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        _refuse(addr, "its host is no name that peers can look up, without a dot at its end, and no IP address")
    return name


def _canonical_ip(addr: str, text: str, version: int) -> str:
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        _refuse(addr, "its host is no IP address: write four numbers from 0 to 255, or IPv6 in brackets, without zone")
    if ip.version != version:
        _refuse(addr, "brackets are for IPv6 addresses")
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip.is_unspecified or (ip.version == 4 and ip.packed[0] == 0):
        _refuse(
            addr,
            "a wildcard is where a server listens (`listen=`), not where it is reached: "
            "give the address or the name by which the other machines reach this one",
        )
    if ip.is_multicast or ip == ipaddress.IPv4Address("255.255.255.255"):
        _refuse(addr, "multicast and broadcast reach many, and a node is one")
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.is_link_local:
            _refuse(addr, "a link-local address means nothing without the zone of each machine: give another")
        return f"[{ip.compressed}]"
    return str(ip)


def peer_url(addr: str) -> str:
    """The base URL, without a slash at its end, at which `addr` serves `msg`, `join` and the others.

    addr: `host:port`, which means `http://host:port/raft`, or a URL with scheme
          and mount prefix.
    Raises ConfigurationError.
    """
    _check_text(addr)
    _check_length(addr)
    is_url = "://" in addr
    url = addr.rstrip("/") if is_url else f"http://{addr}/raft"
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and (is_url or parts.port is not None)
    except ValueError:  # a port that is no number, brackets that do not match, a host that Unicode rules out
        is_good = False
    # The address may come from a node that wants to join: what one parser drops or
    # takes for the end of the path, or of the host, another does not.
    if not is_good or not url.isprintable() or any(c in url for c in " ?#@\\") or (not is_url and "/" in addr):
        _refuse(addr, "it is neither host:port nor an http(s) URL")
    return url


def _check_length(addr: str) -> None:
    if len(addr) > MAX_ADDRESS_BYTES or len(addr.encode(errors="replace")) > MAX_ADDRESS_BYTES:
        # A node that founded a cluster under it could never start again.
        raise ConfigurationError(f"an address has at most {MAX_ADDRESS_BYTES} bytes, with its port written out")


def host_of(addr: str) -> str:
    """The host name or address in `addr`."""
    return urlsplit(peer_url(addr)).hostname or ""


def is_loopback(addr: str) -> bool:
    """Whether `addr` can be reached from this machine only."""
    return is_loopback_host(host_of(addr))


def is_loopback_host(host: str) -> bool:
    """Whether a name or an address, in small letters and without brackets, is this machine's to itself."""
    return host == "localhost" or is_loopback_ip(host)


def is_loopback_ip(text: str) -> bool:
    """Whether `text` is a loopback address and nothing else: no name, no port, no zone."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    # An IPv6 socket says `::ffff:127.0.0.1` of who comes by IPv4, which ipaddress knows from Python 3.13 on.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return "%" not in text and (mapped or address).is_loopback
