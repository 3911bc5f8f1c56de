"""One request as this API reads it: path, parameters, conditions and body, each refused where it is unclear.

WSGI hands out the path percent-decoded, its bytes as latin-1.  So keys are read from these bytes as UTF-8, a slash
in a key may be written as it is or encoded, and nothing is normalized here: neither dots nor slashes that follow each
other.  What is not understood (a parameter, a tag of another kind) is refused, for what it says would
otherwise not be done.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any
from urllib.parse import parse_qsl

from werkzeug.exceptions import HTTPException
from werkzeug.wsgi import get_content_length

from raftsvc.errors import NotApplied
from raftsvc.web.problems import Problem, bad_request

TICKET_HEADER = "Raftsvc-Ticket"
MAX_SECONDS = 60.0
"""The longest that a client may have a request wait."""
_SECONDS = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_TAG = re.compile(r'\s*(?P<weak>W/)?"(?P<tag>[\x21\x23-\x7e\x80-\xff]*)"\s*(?:,|$)')
_VERSION = re.compile("[1-9][0-9]{0,19}")
_IDEMPOTENCY_KEY = re.compile(r"[\x20-\x7e]{1,256}")
_MAX_PARAMETERS = 20
_FLAGS = {"1": True, "true": True, "0": False, "false": False}


class Asked:
    """A request.  Each method raises Problem for what makes no sense."""

    def __init__(self, environ: Mapping[str, Any], max_body_bytes: int) -> None:
        self.environ = environ
        self._came_at: float = environ.get("raftsvc.came_at") or time.monotonic()
        self.method = str(environ["REQUEST_METHOD"])
        self._max_body_bytes = max_body_bytes
        self.parameters: dict[str, str] = {}
        self.admitted_in = 0
        """How often who may what was changed, before it was looked up who asks."""
        self._body: bytes | None = None

    @property
    def path(self) -> str:
        """Below where the API is mounted, decoded."""
        try:
            return str(self.environ.get("PATH_INFO", "")).encode("latin-1").decode()
        except UnicodeError:
            raise bad_request("The path is not UTF-8.") from None

    def read_parameters(self, known: Collection[str]) -> None:
        """Read the query, in which each of `known` may stand once."""
        try:
            query = str(self.environ.get("QUERY_STRING", "")).encode("latin-1").decode()
            pairs = parse_qsl(query, True, errors="strict", max_num_fields=_MAX_PARAMETERS)
        except ValueError:  # of which UnicodeError is one
            raise bad_request("The query is not UTF-8, or has too many parameters.") from None
        for name, value in pairs:
            if name not in known:
                there_are = ", ".join(sorted(known)) or "none"
                raise bad_request(f"There is no parameter {name[:100]!r} here; there are: {there_are}.")
            if name in self.parameters:
                raise bad_request(f"The parameter {name!r} is given twice.")
            self.parameters[name] = value

    def seconds(self, name: str, default: float | None = None, most: float | None = None) -> float | None:
        """That parameter as a number of seconds."""
        text = self.parameters.get(name)
        if text is None:
            return default
        if not _SECONDS.fullmatch(text) or (most is not None and float(text) > most):
            limit = "" if most is None else f", {most:g} at most"
            raise bad_request(f"{name} is a number of seconds{limit}.")
        return float(text)

    def timeout(self, default: float) -> float:
        """How long the request may wait for the cluster."""
        return self.seconds("timeout", default, MAX_SECONDS) or 0.0

    def left(self, timeout: float) -> float:
        """What is left of so many seconds since the request came.  Raises NotApplied if nothing is."""
        left = self._came_at + timeout - time.monotonic()
        if left <= 0:
            raise NotApplied("the time of this request was over before anything was asked of the cluster")
        return left

    def is_gone(self) -> bool:
        """Whether the client has ended its connection, where the server tells."""
        is_gone: Callable[[], bool] | None = self.environ.get("raftsvc.is_gone")
        return is_gone is not None and is_gone()

    def wait(self) -> float:
        """For how many seconds it waits for its turn."""
        return self.seconds("wait", 0.0, MAX_SECONDS) or 0.0

    def integer(self, name: str, default: int, least: int, most: int) -> int:
        """That parameter as an integer."""
        text = self.parameters.get(name)
        if text is None:
            return default
        if not _INTEGER.fullmatch(text) or not least <= int(text) <= most:
            raise bad_request(f"{name} is an integer from {least} to {most}.")
        return int(text)

    def flag(self, name: str) -> bool:
        """Whether that parameter says yes; it need not be there."""
        text = self.parameters.get(name, "0")
        if text not in _FLAGS:
            raise bad_request(f"{name} is 1 or 0.")
        return _FLAGS[text]

    # -- headers

    def tags(self, name: str) -> list[tuple[bool, str]] | None:
        """The entity tags of If-Match or If-None-Match, each with whether it is weak; [(False, "*")] for a star."""
        text = self._header(name)
        if text is None:
            return None
        if text.strip() == "*":
            return [(False, "*")]
        found: list[tuple[bool, str]] = []
        start = 0
        while start < len(text):
            match = _TAG.match(text, start)
            if match is None:
                raise bad_request(f'{name} has one "version" or several, or is *; mind the quotation marks.')
            found.append((match["weak"] is not None, match["tag"]))
            start = match.end()
        if not found:
            raise bad_request(f"{name} is empty.")
        return found

    def expected_version(self) -> int | None:
        """The version that a write asks for, 0: that there is no such key; None: any.  -1: one that no key can have."""
        match, none_match = self.tags("If-Match"), self.tags("If-None-Match")
        if match is not None and none_match is not None:
            raise bad_request("A write has If-Match or If-None-Match, and not both.")
        if none_match is not None:
            if none_match != [(False, "*")]:
                raise bad_request('A write knows of If-None-Match only *; for a version say If-Match: "version".')
            return 0
        if match is None:
            return None
        if len(match) > 1 or match[0][1] == "*":
            raise bad_request('A write knows If-Match with one "version".')
        is_weak, tag = match[0]
        if is_weak or not _VERSION.fullmatch(tag) or not 0 < int(tag) < 2**64:
            return -1
        return int(tag)

    def idempotency_key(self) -> str | None:
        """What a client says of a write that it may send again."""
        text = self._header("Idempotency-Key")
        if text is None:
            return None
        text = text.strip()
        if len(text) > 1 and text[0] == text[-1] == '"':
            text = text[1:-1]
        if not _IDEMPOTENCY_KEY.fullmatch(text):
            raise bad_request("An Idempotency-Key has 1 to 256 characters of ASCII.")
        return text

    def ticket(self) -> str | None:
        """Of what is held, which logs of requests need not have: it stands in a header, or in the query."""
        said, in_query = self._header(TICKET_HEADER), self.parameters.get("ticket")
        if said is not None and in_query is not None:
            raise bad_request(f"A ticket stands in the query or in {TICKET_HEADER}, and not in both.")
        return in_query if said is None else said.strip()

    def _header(self, name: str) -> str | None:
        found = self.environ.get("HTTP_" + name.upper().replace("-", "_"))
        return None if found is None else str(found)

    # -- body

    def refuse_body(self) -> None:
        """Raise Problem if there is one, where none is read: what it says would not be done."""
        environ: Any = self.environ
        length = get_content_length(environ)
        if length is None and environ.get("wsgi.input_terminated"):
            try:
                length = len(environ["wsgi.input"].read(1))
            except (HTTPException, OSError):
                length = 1
        if length:
            raise bad_request("This takes no body; what is meant is said by the path and its parameters.")

    def body(self) -> bytes:
        """All of it; never a part, and never nothing where the server does not say how much there is."""
        if self._body is None:
            self._body = self._read()
        return self._body

    def whole_body(self) -> bytes:
        """The same, where it is to be a whole (RFC 9110, section 14.5)."""
        if self._header("Content-Range") is not None:
            raise bad_request("A value is given as a whole: a Content-Range is not understood.")
        return self.body()

    def _read(self) -> bytes:
        environ: Any = self.environ
        if self._header("Content-Encoding") not in (None, "", "identity"):
            raise Problem(415, "UnsupportedMediaType", "A body is taken as it is, without a Content-Encoding.")
        length = get_content_length(environ)
        if length is None and not environ.get("wsgi.input_terminated"):
            raise Problem(411, "LengthRequired", "A body needs a Content-Length, be it 0.")
        if length is not None and length > self._max_body_bytes:
            raise self._too_large()
        # One byte more than may be, where only the end says how much there is.
        left = self._max_body_bytes + 1 if length is None else length
        chunks: list[bytes] = []
        try:
            while left > 0 and (chunk := environ["wsgi.input"].read(left)):
                chunks.append(chunk)
                left -= len(chunk)
        except (HTTPException, OSError):
            raise bad_request("The body ended too early.") from None
        if length is not None and left:
            raise bad_request("The body ended too early.")
        if length is None and left <= 0:
            raise self._too_large()
        return b"".join(chunks)

    def _too_large(self) -> Problem:
        return Problem(413, "ContentTooLarge", f"A body has at most {self._max_body_bytes} bytes.")

    def json(self) -> Any:
        """The body as JSON.  It has to say that it is, which a form of another site's page cannot."""
        kind = str(self.environ.get("CONTENT_TYPE", "")).partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Problem(415, "UnsupportedMediaType", "The body is JSON: say Content-Type: application/json.")
        try:
            return json.loads(self.body().decode(), parse_constant=_no_constant, object_pairs_hook=_no_twins)
        except (ValueError, RecursionError) as error:
            raise bad_request(f"The body is no JSON: {str(error)[:200]}.") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found
