"""Who may speak: a shared secret, mutual TLS, or a judge of the application's own.

With a secret every request carries an HMAC-SHA-256 over all that gives it its
meaning, and every answer one over the request's and its own content, so neither
can be altered, addressed to another node, or swapped for another.  A request that
somebody recorded is worth nothing; see freshness.  Nothing is encrypted: use TLS where
others can listen.

Without any of the three a node is open, and serves its own machine only.
"""

from __future__ import annotations

import hmac
import ipaddress
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from raftsvc.addresses import host_of, is_loopback
from raftsvc.core.membership import MAX_ADDRESS_BYTES
from raftsvc.core.messages import MalformedError
from raftsvc.errors import ConfigurationError
from raftsvc.macs import mac as mac_of
from raftsvc.transport.frames import Seal
from raftsvc.transport.local import trace_of_outside

MIN_SECRET_BYTES: Final = 16
Judge = Callable[[Mapping[str, Any]], bool]
_TRANSLATED: Final = (
    "Raft-Version",
    "Raft-Cluster",
    "Raft-From",
    "Raft-To",
    "Raft-Part",
    "Raft-Life",
    "Raft-Addr",
    "Raft-Epoch",
    "Raft-Number",
)
_MAX_FIELD_BYTES: Final = MAX_ADDRESS_BYTES
_FIELD_LENGTH: Final = struct.Struct(">I")
_LONG_BYTES: Final = 16 * 1024
"""Of which OpenSSL makes a MAC faster than the interpreter's own code, which is for members alone: see `macs`."""
AUTH_HEADER: Final = "Raft-Auth"
_VARIABLES: Final = tuple("HTTP_" + name.upper().replace("-", "_") for name in _TRANSLATED)
WAYS_TO_BE_REACHED: Final = (
    "give all nodes the same secret=, or mutual TLS, or an authenticate= callable; "
    "insecure=True admits everybody who reaches the port"
)


class Envelope(NamedTuple):
    """The headers of a request that say what it is for.  All text, as on the wire.

    life:   which start of its sender speaks; empty for a stranger.
    addr:   where its sender is reached, as it says.
    epoch:  which life of the receiver it is for, or the challenge that it answers.
    number: rises with each request of a life; a stranger's is random.
    """

    method: str
    path: str
    version: str
    cluster: str
    sender: str
    to: str
    part: str
    life: str
    addr: str
    epoch: str
    number: str

    def headers(self) -> dict[str, str]:
        return {name: value for name, value in zip(_TRANSLATED, self[2:], strict=True) if value}

    @classmethod
    def from_environ(cls, method: str, path: str, environ: Mapping[str, Any]) -> Envelope:
        """As received; a header that is missing is empty.

        Raises MalformedError for what no node sends: a header that was folded over two lines
        (RFC 9112, section 5.2), or holds anything but printable ASCII, or is too long.
        """
        values = [str(environ.get(variable, "")) for variable in _VARIABLES]
        for name, value in zip(_TRANSLATED, values, strict=True):
            if not (value.isascii() and value.isprintable() and len(value) <= _MAX_FIELD_BYTES):
                raise MalformedError(f"{name} is longer than {_MAX_FIELD_BYTES} bytes, or not all printable ASCII")
        return cls(method, path, *values)

    def _encode(self) -> bytes:
        """Each field with its length, so that no two envelopes are the same bytes."""
        fields = [field.encode(errors="replace") for field in self]
        return b"".join([_FIELD_LENGTH.pack(len(field)) + field for field in fields])

    def _signed(self, body: bytes) -> bytes:
        return b"raftsvc request\n" + self._encode() + body

    def signed_by_client(self, body: bytes) -> bytes:
        """What a client signs: never what a peer does."""
        return b"raftsvc client request\n" + self._encode() + body


def checked_secrets(given: str | bytes | Sequence[str | bytes] | None) -> tuple[bytes, ...]:
    """One, or several, as bytes; raises ConfigurationError if one is too short, blanks around it not counted."""
    several: Sequence[str | bytes] = [given] if isinstance(given, (str, bytes)) else list(given or ())
    secrets = tuple([s.encode() if isinstance(s, str) else bytes(s) for s in several])
    if any(len(s.strip()) < MIN_SECRET_BYTES for s in secrets):
        raise ConfigurationError(
            f"a cluster secret has at least {MIN_SECRET_BYTES} bytes; secrets.token_hex() makes a good one"
        )
    return secrets


class MisnamedError(Exception):
    """A request comes with a good certificate of the cluster's CA, for others than the host that it should be for."""

    def __init__(self, certificate: Mapping[str, Any], host: str, secret: bytes) -> None:
        """secret: that verified the request; empty if none is used."""
        names = [value for kind, value in certificate.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
        super().__init__(f"the certificate is for {', '.join(names) or 'no host'}, and not for {host or 'a member'}")
        self.secret = secret


class Authenticator:
    """Signs what this node sends and verifies what it receives."""

    def __init__(
        self,
        secret: str | bytes | Sequence[str | bytes] | None,
        judge: Judge | None,
        mutual_tls: bool,
        insecure: bool = False,
    ) -> None:
        """secret: one, or several during a rotation: the first signs, any verifies.

        judge:      called with the WSGI environ of each request, says whether its sender is a peer.
        mutual_tls: the server verified a client certificate, which must be valid for the sender's host.
        insecure:   without any of these serve everybody, and not this machine only.
        """
        self._secrets = checked_secrets(secret)  # replaced as a whole, so that whoever looks once sees one state
        self._judge = judge
        self._mutual_tls = mutual_tls
        self.can_tell = bool(self._secrets) or judge is not None or mutual_tls
        """Whether a request that was admitted is known to be a peer's."""
        self._is_local_only = not self.can_tell and not insecure

    @property
    def secrets(self) -> Sequence[bytes]:
        """Those of the cluster that are accepted here."""
        return self._secrets

    @property
    def signing(self) -> bytes:
        """What requests are signed with now; empty without a secret."""
        secrets = self._secrets
        return secrets[0] if secrets else b""

    def renew(self, secrets: Sequence[bytes]) -> None:
        """Have these in the place of the former ones.  What was signed before is still verified by what signed it.

        secrets: checked, and none exactly where there were none: whether strangers are told apart does not change.
        """
        if bool(secrets) != bool(self._secrets):
            raise ConfigurationError("a node that has a secret keeps one, and one that has none gets none")
        self._secrets = tuple(secrets)

    def check_exposure(self, addr: str) -> None:
        """Refuse to be open to other machines unless that was asked for; raises ConfigurationError.

        What server `addr` leads to is not known; so it does not replace `trace_of_outside`.
        """
        if self._is_local_only and not is_loopback(addr):
            raise ConfigurationError(f"{addr} can be reached from other machines: {WAYS_TO_BE_REACHED}")

    def trace_of_outside(self, environ: Mapping[str, Any]) -> str | None:
        """If this node serves its own machine only, what tells that a request may come from elsewhere; else None.

        To be asked first, and of every request that tells or changes anything.
        """
        return trace_of_outside(environ) if self._is_local_only else None

    def sign(self, envelope: Envelope, body: bytes, secret: bytes | None = None) -> str:
        """The value of AUTH_HEADER for a request; empty without a secret.

        secret: of this node, as `signing` was; None: as it is now.
        """
        used = self.signing if secret is None else secret
        return _mac(used, envelope._signed(body)) if used else ""

    def admit(
        self, envelope: Envelope, body: bytes, environ: Mapping[str, Any], find_addr: Callable[[], str | None]
    ) -> bytes | None:
        """Judge a request.  Returns the secret that verified it (empty if none is used), or None.

        find_addr: says where the sender is known to be reached, None if that is unknown.  Its certificate has to
                   be valid for that; if a secret vouches for the envelope, for where that says it is
                   reached, which may be new.  With TLS alone a member that got another host name is not
                   heard before its address is set: only the recorded one says who may use which.
                   Called last: it may have to read what is in the body, which nothing does for a stranger.
        Raises MisnamedError if it is not.
        """
        used = b""
        secrets = self._secrets
        if secrets:
            mac = str(environ.get("HTTP_RAFT_AUTH", "")).encode(errors="replace")
            signed = envelope._signed(body)
            matching = [s for s in secrets if hmac.compare_digest(_mac(s, signed).encode(), mac)]
            if not matching:
                return None
            used = matching[0]
        certificate = _peer_certificate(environ) if self._mutual_tls else None
        if self._mutual_tls and not certificate:
            return None
        if self._judge is not None and not self._judge(environ):
            return None
        if certificate:
            addr = (envelope.addr if used else "") or find_addr()
            if addr is not None and not certificate_names(certificate, host := _host_claimed(addr)):
                raise MisnamedError(certificate, host, used)
        return used

    def seal_stream(self, envelope: Envelope, nonce: bytes, secret: bytes | None = None) -> Seal:
        """What vouches for the frames of the stream that `envelope` asked for and the server named `nonce`.

        secret: that verified the request, or that signed it; None: that signs now.
        """
        if secret is None:
            secret = self.signing
        asked = envelope._encode()
        key = mac_of(secret, b"raftsvc stream\n" + nonce + asked) if secret else b""
        return Seal(key, nonce + asked)

    def sign_answer(self, secret: bytes, request_mac: str, status: int, body: bytes) -> str:
        """The value of AUTH_HEADER for the answer to a request that `secret` verified."""
        return _mac(secret, _signed_answer(request_mac, status, body)) if secret else ""

    def verify_answer(self, request_mac: str, status: int, body: bytes, mac: str, secret: bytes | None = None) -> bool:
        """Whether an answer is a peer's; without a secret TLS or nobody vouches for it.

        secret: that signed the request, and so its answer, whatever signs by now; None: that signs now.
        """
        used = self.signing if secret is None else secret
        if not used:
            return True
        expected = _mac(used, _signed_answer(request_mac, status, body))
        return hmac.compare_digest(expected.encode(), mac.encode(errors="replace"))


def sign_by(signing: bytes, envelope: Envelope, body: bytes) -> str:
    """The value of AUTH_HEADER for a client's request."""
    return mac_of(signing, envelope.signed_by_client(body)).hex()


class ClientSigner(Authenticator):
    """A connected client, in the place of a node: signs, and knows answers to what it signed."""

    def __init__(self, signing: bytes) -> None:
        """signing: what its key gives it to sign with."""
        super().__init__(None, None, False, True)
        self._signing = signing

    def sign(self, envelope: Envelope, body: bytes, secret: bytes | None = None) -> str:
        """The value of AUTH_HEADER for a request; a client has one key."""
        return sign_by(self._signing, envelope, body)

    def verify_answer(self, request_mac: str, status: int, body: bytes, mac: str, secret: bytes | None = None) -> bool:
        """Whether an answer is of who knows the key, and to that request."""
        expected = mac_of(self._signing, _signed_answer(request_mac, status, body)).hex()
        return hmac.compare_digest(expected.encode(), mac.encode(errors="replace"))


def _mac(secret: bytes, data: bytes) -> str:
    if len(data) > _LONG_BYTES:
        return hmac.new(secret, data, "sha256").hexdigest()
    return mac_of(secret, data).hex()


def _signed_answer(request_mac: str, status: int, body: bytes) -> bytes:
    return f"raftsvc answer\n{request_mac}\n{status}\n".encode(errors="replace") + body


def _host_claimed(addr: str) -> str:
    """The host in what a sender says is its address; none, of which no certificate is, if it makes no sense."""
    try:
        return host_of(addr)
    except ConfigurationError:
        return ""


def _peer_certificate(environ: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The client certificate that the server verified: our own listener's, or gunicorn's."""
    certificate = environ.get("raftsvc.peer_certificate")
    if certificate is None:
        get = getattr(environ.get("gunicorn.socket"), "getpeercert", None)
        certificate = get() if get is not None else None
    return certificate or None


def certificate_names(certificate: Mapping[str, Any], host: str) -> bool:
    """Whether a certificate, as `ssl.SSLSocket.getpeercert` gives it, is valid for `host` (RFC 6125, section 6.4)."""
    try:
        address: object = ipaddress.ip_address(host)
    except ValueError:
        address = None
    for kind, value in certificate.get("subjectAltName", ()):
        if kind == "IP Address" and address is not None:
            try:
                if ipaddress.ip_address(value) == address:
                    return True
            except ValueError:
                continue
        elif kind == "DNS" and address is None:
            name, wanted = value.lower().rstrip("."), host.lower().rstrip(".")
            if name == wanted or (name.startswith("*.") and "." in wanted and name[2:] == wanted.split(".", 1)[1]):
                return True
    return False
