"""Keys of connected clients and of operators: who may do what, by a key that is worth nothing among members.

A client signs by what is derived from its key and name, under a label of its own (`ClientKey.signing`), and speaks
to an endpoint of its own (`raftsvc.transport.door`).  So no client speaks as a member, be its key the cluster's secret
even, which `start` refuses.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

from raftsvc.errors import ConfigurationError
from raftsvc.macs import mac

MIN_KEY_BYTES = 16
_ROUNDS = 20_000
"""So that whoever reads a fingerprint does not find a secret that is a poor one as fast as he can guess."""
_FINGERPRINT_BYTES = 6
Key = TypeVar("Key")
METRICS = "metrics"
RIGHTS = (METRICS, "read", "write", "admin")
"""Each has what is before it, too; save that `metrics` is worth nothing among clients, see `ClientKey.is_sent`."""

_END_OF_LINE = re.compile(r"\r\n?|\n")
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")


@dataclass(frozen=True)
class ClientKey:
    """What `start(client_keys=[...])` knows a client by; the same on all nodes.

    name:   by which the client says which key it has; several of one name are fine, during a rotation.
    key:    a text of at least 16 bytes: `secrets.token_hex()` makes a good one.
    rights: `read`: what is stored, and the status; `write`: also instructions; `admin`: also those that
            are the whole cluster's, such as who may join, and a backup of it.  `metrics`: nothing but the metrics
            of a node, to who sends the key itself (`Authorization: Bearer ...`), as Prometheus does.
    prefix: only what begins with it, see `raftsvc.ScopedState`.

    Raises ConfigurationError, which repeats none of them: where two were swapped any of them is the key.
    """

    name: str
    key: str = field(repr=False)
    rights: str = "read"
    prefix: str = ""

    def __post_init__(self) -> None:
        if not all(isinstance(each, str) for each in (self.name, self.key, self.rights, self.prefix)):
            raise ConfigurationError("name, key, rights and prefix of a client key are texts")
        if not _NAME.fullmatch(self.name):
            raise ConfigurationError("the name of a client key is none: it is 1 to 64 of A-Z a-z 0-9 _ . @ -")
        _check_key("the key of a client key", self.key)
        if self.rights not in RIGHTS:
            raise ConfigurationError(f"the rights of a client key are none: they are one of {', '.join(RIGHTS)}")

    @property
    def signing(self) -> bytes:
        """What its requests, and the answers to them, are signed with."""
        return mac(self.key.encode(), b"raftsvc client key\n" + self.name.encode())

    @property
    def is_sent(self) -> bool:
        """Whether it is itself sent, by those who cannot sign: whoever reads along has it then."""
        return self.rights == METRICS

    def may(self, right: str) -> bool:
        """Whether it has `right`."""
        return RIGHTS.index(right) <= RIGHTS.index(self.rights)

    @classmethod
    def parse(cls, text: str) -> ClientKey:
        """`name:key`, as `raftsvc.connect` takes it; what it may do the members know.  Raises ConfigurationError."""
        if not isinstance(text, str) or ":" not in text:
            raise ConfigurationError("key is a text, name:key, of a client key that the members have (client_keys=)")
        name, _, key = text.partition(":")
        return cls(name, key)


@dataclass(frozen=True)
class TlsFiles:
    """The files that `start(tls=...)` speaks TLS by, as PEM: on its port, and to the others.  They are watched.

    cert: the certificate of this node, valid for the host that it advertises, and what is between it and the CA.
    key:  its private key; empty: it is in the same file.
    ca:   the certificates that the others' are to be signed by; empty: those that the system trusts.
    """

    cert: str
    key: str = ""
    ca: str = ""

    def __post_init__(self) -> None:
        if not all(isinstance(each, str) for each in (self.cert, self.key, self.ca)) or not self.cert:
            raise ConfigurationError("cert, key and ca of TlsFiles are the paths of files, cert at least")

    @property
    def paths(self) -> list[str]:
        """Of all of them."""
        return [path for path in (self.cert, self.key, self.ca) if path]


READ, FULL = "read", "full"
OPERATOR_RIGHTS = (READ, FULL)


@dataclass(frozen=True)
class OperatorKey:
    """What `start(operator_keys=[...])` knows an operator by; the same on all nodes.

    name:   what the audit lines call him; several of one name are fine, during a rotation.
    key:    a text of at least 16 bytes: `secrets.token_hex()` makes a good one.
    rights: `read`: to see how the cluster is; `full`: also to hand leadership over, evict, and say who may join.

    Raises ConfigurationError, which repeats none of them: where two were swapped any of them is the key.
    """

    name: str
    key: str = field(repr=False)
    rights: str = READ

    def __post_init__(self) -> None:
        if not all(isinstance(each, str) for each in (self.name, self.key, self.rights)):
            raise ConfigurationError("name, key and rights of an operator's key are texts")
        if not _NAME.fullmatch(self.name):
            raise ConfigurationError("the name of an operator's key is none: it is 1 to 64 of A-Z a-z 0-9 _ . @ -")
        _check_key("the key of an operator", self.key)
        if self.rights not in OPERATOR_RIGHTS:
            raise ConfigurationError("the rights of an operator's key are none: they are read or full")

    @property
    def signing(self) -> bytes:
        """What vouches for who signed in by it."""
        return mac(self.key.encode(), b"raftsvc operator key\n" + self.name.encode())

    @property
    def may_act(self) -> bool:
        """Whether it is for more than looking."""
        return self.rights == FULL


def _check_key(what: str, key: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in key):
        raise ConfigurationError(f"{what} is no text: there is half a character in it")
    if len(key.strip().encode()) < MIN_KEY_BYTES:
        raise ConfigurationError(f"{what} has less than {MIN_KEY_BYTES} bytes; secrets.token_hex() makes a good one")


def checked_operator_keys(
    keys: Iterable[OperatorKey] | None, secrets: Iterable[bytes], others: Iterable[ClientKey]
) -> tuple[OperatorKey, ...]:
    """Those that are to be known, or what is wrong with them.  secrets: of the cluster.  others: the clients' keys."""
    given, known = tuple(keys or ()), {*secrets, *(other.key.encode() for other in others)}
    for number, key in enumerate(given):
        twin = next((i for i, other in enumerate(given[:number], 1) if other.key == key.key), None)
        if twin is not None:
            raise ConfigurationError(
                f"operators' keys {twin} and {number + 1} are one: who of the two sends it nobody could tell"
            )
        if key.key.encode() in known:
            raise ConfigurationError(
                f"operator's key {number + 1} is the cluster's secret, or a client's key: give him one of his own, for "
                "it is sent"
            )
    return given


def checked_keys(keys: Iterable[ClientKey] | None, secrets: Iterable[bytes]) -> tuple[ClientKey, ...]:
    """Those that are to be known, or what is wrong with them.  secrets: of the cluster, which no client may have."""
    given = tuple(keys or ())
    known = set(secrets)
    sent = {key.key for key in given if key.is_sent}
    for number, key in enumerate(given, 1):
        which = f"client key {number} of {len(given)}"  # and not its name, which may be a key
        if {key.key.encode(), key.name.encode()} & known:
            raise ConfigurationError(
                f"{which} is the cluster's secret, with which whoever has it is a member: give it a key of its own"
            )
        if not key.is_sent and key.key in sent:
            raise ConfigurationError(f"{which} is one for metrics, too, which is sent for all to read")
    return given


def secrets_in(data: bytes) -> list[str]:
    """The secrets in a file of them: one a line; the first signs, each is accepted.  Raises ConfigurationError."""
    secrets = []
    for number, line in enumerate(_lines_of(data), 1):
        _check_printable(number, line)
        if line:
            secrets.append(line)
    if not secrets:
        raise ConfigurationError("it is empty; secrets.token_hex() makes a good secret")
    return list(dict.fromkeys(secrets))


def client_keys_in(data: bytes) -> list[ClientKey]:
    """The client keys in a file: a line each, `name rights key`, and maybe a prefix; `#` begins a remark.

    Raises ConfigurationError.
    """
    return _keys_in(
        *(data, "name write 0123456789abcdef... prefix/", 4),
        lambda name, rights, key, *prefix: ClientKey(name, key, rights, *prefix),
    )


def operator_keys_in(data: bytes) -> list[OperatorKey]:
    """The keys of operators in a file: a line each, `name read|full key`; `#` begins a remark.

    Raises ConfigurationError.
    """
    return _keys_in(data, "anna full 0123456789abcdef...", 3, lambda name, rights, key: OperatorKey(name, key, rights))


def _keys_in(data: bytes, example: str, most_words: int, make: Callable[..., Key]) -> list[Key]:
    """What `make` makes of the three words, or more, of each line.  Raises ConfigurationError."""
    found = []
    for number, line in enumerate(_lines_of(data), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        _check_printable(number, line.replace("\t", " "))
        if not 3 <= len(words) <= most_words:
            raise ConfigurationError(f"line {number} is none like `{example}`")
        try:
            found.append(make(*words))
        except ConfigurationError as error:
            raise ConfigurationError(f"line {number}: {error}") from error
    return found


def _lines_of(data: bytes) -> list[str]:
    """Those of a file, as all read it: ended by newlines, returns or both, and by nothing else; a BOM is no part."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:  # whose cause would hold the whole file
        raise ConfigurationError("it is no text in UTF-8") from None
    return [line.strip(" \t") for line in _END_OF_LINE.split(text)]


def _check_printable(number: int, line: str) -> None:
    if not line.isprintable():
        raise ConfigurationError(f"line {number} has characters that cannot be printed: is the file what it should be?")


@lru_cache(maxsize=64)
def fingerprint(secret: bytes) -> str:
    """By which people tell a secret from others; it says nothing else of it.  The same everywhere."""
    return hashlib.pbkdf2_hmac("sha256", secret, b"raftsvc fingerprint", _ROUNDS, _FINGERPRINT_BYTES).hex()
