"""What TLS is spoken by, made of files, and whether others will take it.

What no TLS can be spoken by at all is refused: there is no certificate, no key that is its own, no CA.  What can be
spoken by, and others would refuse (it has expired, is not valid yet, is for another host, is of another CA), is refused
in the place of what others take.  Where there is nothing better, as at a start, it is used, and `judge` says what is
wrong with it: the files are watched, so what is put in its place is used without another start; a clock that
is not set yet, as a machine has it while it boots, keeps nobody down; and what asks this process alone is answered.
"""

from __future__ import annotations

import calendar
import ssl
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from raftsvc.errors import ConfigurationError
from raftsvc.keys import TlsFiles

_MOST_FLIGHTS = 10
"""Of a handshake, which has three or four."""
_EXPIRES_SECONDS = 14 * 86400.0
_SHAKEN_SECONDS = 60.0
"""After which it is tried again whether others would take what is in use."""
_VERSION, _UTC_TIME, _TIME = 0xA0, 0x17, 0x18
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


class Validity(NamedTuple):
    """When a certificate may be used, in seconds since 1970."""

    begins: float
    ends: float


class Contexts:
    """What TLS is spoken by, made of files: by the port of this node, and by its requests.

    Both are replaced at once, and never changed: a handshake that has begun ends by the former.
    """

    def __init__(self, files: TlsFiles, mutual: bool, host: str = "") -> None:
        """mutual: who connects has to show a certificate of the CA.  Raises ConfigurationError.

        host: for which others want a certificate from this port; empty: that is not known here.
        """
        if mutual and not files.ca:
            raise ConfigurationError("mutual_tls needs the certificate of the cluster's CA: TlsFiles(..., ca=)")
        self._files = files
        self._mutual = mutual
        self._host = host
        self._both, self.validity = self._make(), _validity_in(files.cert)
        self._foreseen = 0.0  # the end that was told of
        self._tried = ("", 0.0)  # why others would refuse what is in use, and until when that is so

    def server(self) -> ssl.SSLContext:
        """Of the port, as of now."""
        return self._both[0]

    def client(self) -> ssl.SSLContext:
        """Of requests, as of now."""
        return self._both[1]

    def renew(self, is_unchanged: Callable[[], bool]) -> None:
        """Use what is in the files now; raises ConfigurationError if that makes no sense, or is being changed.

        Nor is used what others would refuse as far as that can be seen here, where they take what is in use.
        """
        both = self._make()
        if not is_unchanged():
            raise ConfigurationError("they are being changed")
        if self._host:
            self._check(*both, self._host)
        self._both, self.validity = both, _validity_in(self._files.cert)
        self._tried = ("", 0.0)

    def foresee(self, now: float) -> str:
        """Once of each certificate that ends within two weeks, that it does; else empty.  now: seconds since 1970."""
        if self.validity is None or not 0 < self.validity.ends - now < _EXPIRES_SECONDS:
            return ""
        former, self._foreseen = self._foreseen, self.validity.ends
        if former == self._foreseen:
            return ""
        return f"the certificate in {self._files.cert:.300} expires on {said(self.validity.ends)}: renew it by then"

    def judge(self, now: float) -> str:
        """Why others will refuse what is in use, and what to do; empty if they take it, as far as that is seen here.

        now: seconds since 1970.  Tries a handshake once a minute, which takes a few milliseconds; called by one thread.
        """
        cert = self._files.cert
        if self.validity is not None and now >= self.validity.ends:
            return (
                f"the certificate in {cert:.300} expired on {said(self.validity.ends)}, so others refuse this node: "
                "put a new one in its place, with its key; it is used within ten seconds, without a restart"
            )
        if self.validity is not None and now < self.validity.begins:
            return (
                f"the certificate in {cert:.300} is not valid before {said(self.validity.begins)}, and the clock of "
                f"this host says {said(now)}: set the clock, or put a valid one in its place; no restart is needed"
            )
        if not self._host:
            return ""
        why, until = self._tried
        if time.monotonic() >= until:
            why = _why_refused(*self._both, self._host, is_whole=True)
            self._tried = (why, time.monotonic() + _SHAKEN_SECONDS)
        if not why:
            return ""
        return (
            f"others would refuse the certificate in {cert:.300}, as the CA in use here does for {self._host}: {why}; "
            "put one of that CA and for that host in its place; it is used within ten seconds, without a restart"
        )

    def _check(self, server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> None:
        why = _why_refused(server, client, host, is_whole=True)
        if why:
            raise ConfigurationError(f"others would refuse it, as the CA that is in use here does: {why}")
        former_server, former_client = self._both
        if _why_refused(former_server, former_client, host, is_whole=True):
            return  # what is in use is worth nothing, or not any more
        if _why_refused(former_server, client, host) and _why_refused(server, former_client, host):
            raise ConfigurationError(
                "neither is the certificate in use of the new CA, nor the new one of the CA in use, so that this node "
                "and all others would refuse each other: have all trust both CAs first, or restart the node"
            )

    def _make(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        files = self._files
        try:
            server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files.ca or None)
            server.verify_mode = ssl.CERT_REQUIRED if self._mutual else ssl.CERT_NONE
            client = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=files.ca or None)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            what = f"{files.ca or 'the system'} has no certificates of a CA, as PEM ({_why(error)})"
            raise ConfigurationError(f"no certificate, key and CA that go together: {what}") from error
        try:
            for context in (server, client):
                # Without a function that gives none a key with a passphrase would be asked for on the terminal.
                context.load_cert_chain(files.cert, files.key or None, _no_passphrase)
        except (OSError, ValueError) as error:
            why, key = _why(error), files.key or files.cert
            what = f"{files.cert} and {key} have no certificate and key, as PEM and without a passphrase ({why})"
            if "MISMATCH" in why:
                what = f"the key in {key} is not that of the first certificate in {files.cert}; put the two there"
            raise ConfigurationError(f"no certificate, key and CA that go together: {what}") from error
        return server, client


def _why(error: OSError | ValueError) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)


def said(seconds: float) -> str:
    """A time, in seconds since 1970, for people."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def _validity_in(path: str) -> Validity | None:
    """Of the first certificate in a file, which is the node's; None if it is not found there."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            first = file.read().split(_BEGIN)[1].split(_END)[0]
        return validity_of(ssl.PEM_cert_to_DER_cert(_BEGIN + first + _END))
    except (OSError, IndexError, ValueError):
        return None


def validity_of(certificate: bytes) -> Validity:
    """When a certificate, as DER, may be used.  Raises ValueError if it is none."""
    # RFC 5280, section 4.1: the fifth of what is signed, after a version that may be left out.
    try:
        ((_, whole),) = _elements(certificate)
        signed = next(_elements(whole))[1]
        parts = [(kind, part) for kind, part in _elements(signed) if kind != _VERSION]
        begins, ends = [_seconds(kind, part) for kind, part in _elements(parts[3][1])]
    except (IndexError, StopIteration, TypeError, ValueError) as error:
        raise ValueError("that is no certificate") from error
    return Validity(begins, ends)


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and content of each, as DER has them one after the other.  Raises ValueError, IndexError."""
    at = 0
    while at < len(data):
        kind, size, at = data[at], data[at + 1], at + 2
        if size & 0x80:
            count = size & 0x7F
            size, at = int.from_bytes(data[at : at + count], "big"), at + count
        if at + size > len(data):
            raise ValueError("it is cut off")
        yield kind, data[at : at + size]
        at += size


def _seconds(kind: int, text: bytes) -> float:
    """Of a time as DER has it, since 1970.  Raises ValueError."""
    if kind == _UTC_TIME:  # two digits of the year, from 1950 on
        text = (b"19" if text >= b"5" else b"20") + text
    elif kind != _TIME:
        raise ValueError("that is no time")
    return float(calendar.timegm(time.strptime(text.decode("ascii"), "%Y%m%d%H%M%SZ")))


def _why_refused(server: ssl.SSLContext, client: ssl.SSLContext, host: str, is_whole: bool = False) -> str:
    """Why who asks by `client` at `host` would not take what `server` shows; empty if it would.

    is_whole: or why `server` would not take what is shown to it.
    """
    asked, answered = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(answered, asked, server_hostname=host)
    answering = server.wrap_bio(asked, answered, server_side=True)
    waiting = [asking, answering]
    for _ in range(_MOST_FLIGHTS):
        for each in list(waiting):
            try:
                each.do_handshake()
                waiting.remove(each)
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError as error:
                if each is answering and not is_whole:
                    return ""
                return getattr(error, "verify_message", "") or error.reason or str(error)
        if not waiting or (not is_whole and asking not in waiting):
            return ""
    return "the two do not come to an end"


def _no_passphrase() -> str:
    return ""
