"""Who asks over HTTP, and what he may: by a bearer token, or as the application around says.

Invariant: who is not known may do nothing, and nobody is known unless somebody said who may what.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raftsvc.errors import ConfigurationError
from raftsvc.keys import RIGHTS, ClientKey
from raftsvc.web.problems import Problem

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_SAFE = ("GET", "HEAD")


@dataclass(frozen=True)
class Caller:
    """Who asks.

    name:   by which what he sent before is told from what others did (`Idempotency-Key`).
    rights: one of those of a ClientKey; `admin` gives no more than `write` here.
    prefix: only keys that begin with it.

    Raises ConfigurationError.
    """

    name: str
    rights: str = "read"
    prefix: str = ""

    def __post_init__(self) -> None:
        if not all(isinstance(each, str) for each in (self.name, self.rights, self.prefix)):
            raise ConfigurationError("name, rights and prefix of a caller are texts")
        if self.rights not in RIGHTS:
            raise ConfigurationError(f"the rights of a caller are one of {', '.join(RIGHTS)}, not {self.rights!r}")

    def may(self, right: str) -> bool:
        """Whether he has `right`."""
        return RIGHTS.index(right) <= RIGHTS.index(self.rights)


Authorize = Callable[[Mapping[str, Any]], "Caller | None"]
"""Called with the WSGI environ of each request: who asks, or None for whom nobody knows."""


def authorizer(keys: Iterable[ClientKey] | None, authorize: Authorize | None, open_to_all: bool) -> Authorize:
    """Who says who asks.  Raises ConfigurationError unless exactly one way is given."""
    if not isinstance(open_to_all, bool):
        raise ConfigurationError(f"open_to_all is True or False, not {open_to_all!r:.100}")
    if (keys is not None) + (authorize is not None) + open_to_all != 1:
        raise ConfigurationError(
            "who may use the store over HTTP? Give keys=[raftsvc.ClientKey(...)], or authorize=, a function that says "
            "who asks, or open_to_all=True where everybody who reaches the port may read and write all of it"
        )
    if open_to_all:
        return anybody
    if authorize is not None:
        if not callable(authorize):
            raise ConfigurationError(f"authorize is a function of the WSGI environ, not {authorize!r:.100}")
        return authorize
    return Tokens(list(keys or ()))


class Tokens:
    """Who asks, by the key that he sends as a bearer token.  Thread-safe."""

    def __init__(self, keys: Sequence[ClientKey]) -> None:
        """As `renew`."""
        self.renew(keys)

    def renew(self, keys: Sequence[ClientKey]) -> None:
        """Know these from now on, and none else.  Raises ConfigurationError, and knows those of before then."""
        if not keys or not all(isinstance(key, ClientKey) for key in keys):
            raise ConfigurationError("keys are several raftsvc.ClientKey, one at least")
        names: dict[str, str] = {}
        for number, key in enumerate(keys, 1):
            if not _TOKEN.fullmatch(key.key):
                # Not its name, which may be the key, where the two were swapped.
                raise ConfigurationError(
                    f"key {number} has characters that no bearer token has; secrets.token_hex() makes a good one"
                )
            if key.key in names:
                both = f"{names[key.key]!r} and {key.name!r}"
                raise ConfigurationError(f"{both} have the same key, so who asks is not known: give each its own")
            names[key.key] = key.name
        self._known = [(key.key.encode(), Caller(key.name, key.rights, key.prefix)) for key in keys]

    def __call__(self, environ: Mapping[str, Any]) -> Caller | None:
        """Who sends that request; None: nobody who is known."""
        token = bearer_token(environ)
        if token is None:
            return None
        found = None
        for secret, caller in self._known:  # all of them, so that how long it takes tells nothing
            if hmac.compare_digest(secret, token):
                found = caller
        return found


def bearer_token(environ: Mapping[str, Any]) -> bytes | None:
    """What the client shows, if it shows any."""
    scheme, _, token = str(environ.get("HTTP_AUTHORIZATION", "")).partition(" ")
    return token.strip().encode("latin-1", "replace") if scheme.lower() == "bearer" else None


def anybody(environ: Mapping[str, Any]) -> Caller:
    """Whoever asks may do all, save for pages of other sites.  Raises Problem."""
    # Nothing else keeps a page that somebody looks at from writing to what his machine reaches.
    if environ.get("REQUEST_METHOD") not in _SAFE and ("HTTP_ORIGIN" in environ or _is_from_a_page(environ)):
        raise Problem(403, "Forbidden", "Pages of other sites may not write here.")
    return Caller("", "write")


def _is_from_a_page(environ: Mapping[str, Any]) -> bool:
    return environ.get("HTTP_SEC_FETCH_SITE", "none") not in ("none", "same-origin")


def admitted(authorize: Authorize, environ: Mapping[str, Any], right: str) -> Caller:
    """Who asks, if he may.  Raises Problem: 401, or 403."""
    caller = authorize(environ)
    if caller is None:
        challenge = 'Bearer realm="raftsvc"' + (', error="invalid_token"' if "HTTP_AUTHORIZATION" in environ else "")
        raise Problem(401, "Unauthorized", "A known bearer token is needed.", {"WWW-Authenticate": challenge})
    if not isinstance(caller, Caller):
        raise TypeError(f"authorize returns a raftsvc.web.Caller or None, and not {type(caller).__name__}")
    if not caller.may(right):
        raise Problem(403, "Forbidden", f"This takes the right to {right}.")
    return caller
