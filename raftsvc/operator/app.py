"""The operator's page over HTTP: the page itself, what it polls, signing in, and actions.

    GET  /        the page: one file, which loads nothing else
    GET  feed     how the cluster is, as JSON
    POST login    {"key": ..., "place": "/raft/operator"}: sets the cookie of whoever has an operator's key
    POST logout   takes it away
    POST act      {"what": "transfer", "whom": "2"}: see raftsvc.operator.console

Routes on the last word of the path, so it is mounted anywhere.  What the page shows comes from others (addresses, names
of locks, errors), so it is text there and never markup, and the page may run its own script alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

from werkzeug.wrappers import Request, Response

from raftsvc.audit import DONE, FORBIDDEN, REFUSED
from raftsvc.errors import ConfigurationError, NodeFailedError, RaftError
from raftsvc.mainthread import do_elsewhere, is_main_thread
from raftsvc.operator.access import Access, Host, Keys, Operator, cookie_header, is_of_the_page, remote_user
from raftsvc.operator.console import ACTIONS, Console, Outcome
from raftsvc.operator.page import PAGE, POLICY

logger = logging.getLogger("raftsvc")

_MAX_BODY_BYTES: Final = 8192
_MAX_NAME: Final = 256
_SECONDS: Final = 60.0
_METHODS: Final = {"": "GET", "feed": "GET", "login": "POST", "logout": "POST", "act": "POST"}
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_STATUS: Final = {DONE: 200, REFUSED: 409, FORBIDDEN: 403}


class _Problem(Exception):
    def __init__(self, status: int, code: str, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class OperatorApp:
    """WSGI callable; thread-safe."""

    def __init__(self, console: Console, access: Access) -> None:
        """Use `Service.operator_app`."""
        self._console = console
        self._access = access

    def limited(
        self, *, read_only: bool = False, who: Callable[[Mapping[str, Any]], str | None] = remote_user
    ) -> OperatorApp:
        """The same for whom the application lets in so far: `service.operator_app.limited(read_only=True)`.

        read_only: whoever comes may look, and not act.
        who:       called with the WSGI environ of each request, returns the operator's name for the audit lines; None
                   for whom it does not let in at all.  By default REMOTE_USER of the environ: without one nobody is.

        Raises ConfigurationError.
        """
        if not isinstance(read_only, bool):
            raise ConfigurationError(f"read_only is True or False, not {read_only!r:.100}")
        if not callable(who):
            raise ConfigurationError(f"who is a function of the WSGI environ, not {who!r:.100}")
        return OperatorApp(self._console, Host(who, read_only))

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """WSGI."""
        if is_main_thread():
            response = do_elsewhere(partial(self._respond, environ), _SECONDS, NodeFailedError)
        else:
            response = self._respond(environ)
        return response(environ, start_response)

    def _respond(self, environ: dict[str, Any]) -> Response:
        try:
            response = self._answer(environ)
        except _Problem as problem:
            response = _json(problem.status, {"code": problem.code, "detail": str(problem)})
            response.headers.update(problem.headers)
        except RaftError as error:
            response = _json(503, {"code": type(error).__name__, "detail": str(error)})
        except Exception:
            logger.exception("a request of an operator failed")
            response = _json(500, {"code": "internal", "detail": "this request failed; the log says why"})
        response.headers.update(_HEADERS)
        return response

    def _answer(self, environ: dict[str, Any]) -> Response:
        self._console.check()
        place = str(environ.get("PATH_INFO", ""))
        word = place.rpartition("/")[2]
        method = "GET" if environ["REQUEST_METHOD"] == "HEAD" else str(environ["REQUEST_METHOD"])
        if word not in _METHODS:
            raise _Problem(404, "not_found", "there is no such thing here")
        if method != _METHODS[word]:
            raise _Problem(405, "method_not_allowed", f"this takes {_METHODS[word]}", Allow=_METHODS[word])
        if word == "":
            return self._show(environ, place)
        if word == "feed":
            return _json(200, self._console.feed(self._known(environ)))
        if word == "login":
            return self._log_in(environ)
        operator = self._known(environ)
        if operator.way != "key" and not is_of_the_page(environ):
            raise self._not_of_the_page(environ, operator.name, operator.way, word)
        if word == "logout":
            return self._log_out(environ, operator)
        return self._act(environ, operator)

    def _show(self, environ: Mapping[str, Any], place: str) -> Response:
        if not place:  # what it loads is beside it, which a path without a slash at its end would mistake
            return Response("", 308, {"Location": str(environ.get("SCRIPT_NAME", "")).rpartition("/")[2] + "/"})
        return Response(PAGE, mimetype="text/html")

    def _known(self, environ: Mapping[str, Any]) -> Operator:
        operator = self._access.who(environ)
        if operator is None:
            if self._access.has_login:
                if "HTTP_AUTHORIZATION" in environ:
                    origin, word = origin_of(environ), str(environ.get("PATH_INFO", "")).rpartition("/")[2]
                    self._console.note_refused("-", "key", origin, word, "no key that is known")
                raise _Problem(401, "sign_in", "an operator's key is needed")
            raise _Problem(403, "not_let_in", "the application around this page does not say who asks: see who=")
        return operator

    def _not_of_the_page(self, environ: Mapping[str, Any], name: str, way: str, what: str) -> _Problem:
        """What is told of a request that another site may have had a browser send."""
        why = "only the page's own script may send that, as JSON, from its origin"
        self._console.note_refused(name, way, origin_of(environ), what, why)
        return _Problem(403, "not_of_the_page", why)

    def _log_in(self, environ: dict[str, Any]) -> Response:
        if not isinstance(self._access, Keys):
            raise _Problem(404, "not_found", "one signs in to the application around this")
        if not is_of_the_page(environ):
            raise self._not_of_the_page(environ, "-", "key", "sign in")
        origin = origin_of(environ)
        said = _body_of(environ)
        key = self._access.admit(_text_of(said, "key", 4096))
        if key is None:
            self._console.note_refused("-", "key", origin, "sign in", "no key that is known")
            raise _Problem(401, "unknown_key", "that is no operator's key of this cluster")
        self._console.note(key.name, "key", origin, "sign in", Outcome(DONE, key.rights), 0.0)
        response = _json(200, {"name": key.name, "may_act": key.may_act})
        response.headers["Set-Cookie"] = cookie_header(self._access.token_for(key), environ, _place_of(said))
        return response

    def _log_out(self, environ: dict[str, Any], operator: Operator) -> Response:
        said = _body_of(environ)
        self._console.note(operator.name, operator.way, origin_of(environ), "sign out", Outcome(DONE, ""), 0.0)
        response = _json(200, {})
        response.headers["Set-Cookie"] = cookie_header("", environ, _place_of(said))
        return response

    def _act(self, environ: dict[str, Any], operator: Operator) -> Response:
        said = _body_of(environ)
        what, whom = _text_of(said, "what", 32), _text_of(said, "whom", _MAX_NAME)
        if what not in ACTIONS:
            raise _Problem(400, "bad_request", f"what is one of {', '.join(ACTIONS)}")
        outcome = self._console.act(operator, what, whom, origin_of(environ))
        return _json(_STATUS.get(outcome.outcome, 504), outcome._asdict())


def origin_of(environ: Mapping[str, Any]) -> str:
    """From where a request comes, as the server has it: no header is believed."""
    return str(environ.get("REMOTE_ADDR") or "-")


def _body_of(environ: dict[str, Any]) -> Mapping[str, object]:
    """The JSON object that was sent; raises _Problem."""
    request = Request(environ, populate_request=False)
    if request.content_length is None:
        raise _Problem(411, "length_required", "a body here says how long it is")
    if request.content_length > _MAX_BODY_BYTES:
        raise _Problem(413, "too_large", f"a body here has at most {_MAX_BODY_BYTES} bytes")
    try:
        said = json.loads(request.get_data())
    except (ValueError, RecursionError) as error:
        raise _Problem(400, "bad_request", "a JSON object is needed") from error
    if not isinstance(said, dict):
        raise _Problem(400, "bad_request", "a JSON object is needed")
    return said


def _place_of(said: Mapping[str, object]) -> str:
    """Where the page says that it is, for its cookie."""
    return _text_of(said, "place", _MAX_NAME) if "place" in said else ""


def _text_of(said: Mapping[str, object], name: str, most: int) -> str:
    text = said.get(name)
    if not isinstance(text, str) or not 0 < len(text) <= most:
        raise _Problem(400, "bad_request", f"{name} is a text of at most {most} characters")
    return text


def _json(status: int, said: Mapping[str, object]) -> Response:
    return Response(json.dumps(said) + "\n", status, mimetype="application/json")
