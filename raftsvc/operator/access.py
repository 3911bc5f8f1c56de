"""Who operates: by a key of his own, or as the application around the page says.

Who signed in by a key is known by a cookie that says until when, and for which key, signed by what is made from that
key.  Nothing is kept here: so every process of every node that knows the key knows him, and none once it is taken away.

Browsers send cookies along with what other sites have them send.  So whatever comes by a cookie, or
because an application said so, and is more than looking has to look as only the page's own script can make it:
see `is_of_the_page`.
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from raftsvc.keys import OperatorKey

COOKIE: Final = "raftsvc_operator"
SESSION_SECONDS: Final = 12 * 3600
_MAX_COOKIES: Final = 8
"""Of our name: others on the host, or above our path, may have set one too."""
_TOKEN: Final = re.compile(r"(?P<until>[0-9]{1,12})\.(?P<mac>[0-9a-f]{64})\.(?P<name>.{1,64})")
_MARK: Final = "HTTP_X_RAFTSVC_OPERATOR"


class Operator(NamedTuple):
    """Who asks.

    name:     for the audit lines.
    may_act:  whether he may do more than look.
    way:      how he is known: `key`, `cookie` or `application`.
    """

    name: str
    may_act: bool
    way: str


class Access(Protocol):
    """Who says who asks."""

    @property
    def has_login(self) -> bool:
        """Whether one signs in here."""

    def who(self, environ: Mapping[str, Any]) -> Operator | None:
        """Who sends that request; None: nobody who is known."""

    def admit(self, text: str) -> OperatorKey | None:
        """The key that somebody sent to sign in with; None: it is none."""


class Keys:
    """By keys of their own."""

    has_login = True

    def __init__(self, keys: Sequence[OperatorKey], now: Callable[[], float] = time.time) -> None:
        """now: seconds since 1970, the same on all nodes but for what their clocks differ by."""
        self.renew(keys)
        self._now = now

    def renew(self, keys: Sequence[OperatorKey]) -> None:
        """Know these from now on, and none else: who signed in by one that is gone is not known any more either."""
        self._keys = tuple(keys)

    def admit(self, text: str) -> OperatorKey | None:
        """The key that somebody sent to sign in with; None: it is none."""
        given = text.encode(errors="replace")
        found = None
        for key in self._keys:  # all of them, so that how long it takes tells nothing
            if hmac.compare_digest(key.key.encode(), given):
                found = key
        return found

    def who(self, environ: Mapping[str, Any]) -> Operator | None:
        """By `Authorization: Bearer` and the key itself, or by the cookie."""
        scheme, _, sent = str(environ.get("HTTP_AUTHORIZATION", "")).partition(" ")
        if scheme.lower() == "bearer":
            key = self.admit(sent.strip().encode("latin-1", "replace").decode(errors="replace"))
            return Operator(key.name, key.may_act, "key") if key is not None else None
        for cookie in _cookies_of(environ):
            token = _TOKEN.fullmatch(cookie)
            if token is None or int(token["until"]) <= self._now():
                continue
            for key in self._keys:
                is_it = hmac.compare_digest(_mac(key, int(token["until"])), token["mac"])
                if is_it and key.name == token["name"]:
                    return Operator(key.name, key.may_act, "cookie")
        return None

    def token_for(self, key: OperatorKey) -> str:
        """What the cookie of somebody says who has just signed in by `key`."""
        until = int(self._now()) + SESSION_SECONDS
        return f"{until}.{_mac(key, until)}.{key.name}"


class Host:
    """By the application that this is mounted in: who reaches it is let in."""

    has_login = False

    def __init__(self, name_of: Callable[[Mapping[str, Any]], str | None], read_only: bool) -> None:
        """name_of: the operator's name, for the audit lines; None, or no text: he is let in to nothing."""
        self._name_of = name_of
        self._read_only = read_only

    def admit(self, text: str) -> OperatorKey | None:
        """None: one signs in elsewhere."""
        return None

    def who(self, environ: Mapping[str, Any]) -> Operator | None:
        """As the application says."""
        name = self._name_of(environ)
        return Operator(str(name), not self._read_only, "application") if name else None


def remote_user(environ: Mapping[str, Any]) -> str | None:
    """Who the server, or what stands before the application, says that it is; None: it says nothing."""
    return str(environ.get("REMOTE_USER") or "") or None


def is_of_the_page(environ: Mapping[str, Any]) -> bool:
    """Whether a POST is what only a script of this origin can send: no form and no other site's script does.

    A browser asks before it sends such a header, or JSON, to another origin (the CORS protocol), which is never
    answered here; and it says by itself, where it knows how, from which site a request comes.
    """
    kind = str(environ.get("CONTENT_TYPE", "")).partition(";")[0].strip().lower()
    site = environ.get("HTTP_SEC_FETCH_SITE", "same-origin")
    return kind == "application/json" and environ.get(_MARK) == "1" and site == "same-origin"


def cookie_header(value: str, environ: Mapping[str, Any], place: str) -> str:
    """What sets the cookie; an empty `value` takes it away.

    place: below which the browser has the page, as that says, for a proxy may have it elsewhere than this server; empty
           if it does not say.
    """
    path = place or str(environ.get("SCRIPT_NAME", "")) or "/"
    if not re.fullmatch(r"/[A-Za-z0-9_.~/@:+=%-]*", path):
        path = "/"
    lasts = SESSION_SECONDS if value else 0
    is_by_tls = environ.get("wsgi.url_scheme") == "https" or str(environ.get("HTTP_ORIGIN", "")).startswith("https://")
    secure = "; Secure" if is_by_tls else ""
    return f"{COOKIE}={value}; Path={path}; Max-Age={lasts}; HttpOnly; SameSite=Strict{secure}"


def _cookies_of(environ: Mapping[str, Any]) -> list[str]:
    """What cookies of our name say.  Parsed here, for a parser of all refuses the whole for one that is odd."""
    pairs = [pair.strip().partition("=") for pair in str(environ.get("HTTP_COOKIE", "")).split(";")]
    return [value for name, _, value in pairs if name == COOKIE][:_MAX_COOKIES]


def _mac(key: OperatorKey, until: int) -> str:
    return hmac.digest(key.signing, b"raftsvc operator session\n%d" % until, "sha256").hex()
