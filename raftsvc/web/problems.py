"""What an HTTP client is told of what went wrong: problems of RFC 9457, each with what is known of the outcome.

A write that was refused, here or by the cluster, has `outcome` "not_applied": nothing was changed, and nothing
will be.  Of one that may have been done, or may yet be, it is "unknown", whatever the reason.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping

from werkzeug.wrappers import Response

from raftsvc.answers import error_response
from raftsvc.errors import ConfigurationError, NotApplied, RaftError, Rejected
from raftsvc.kv import Compacted, ConflictError, CounterError, LostError

logger = logging.getLogger("raftsvc.web")

_NOT_DONE = (NotApplied, Rejected, ConflictError, LostError, ConfigurationError)


class Problem(Exception):
    """A request that is refused as it is, before anything was done, unless its `outcome` says otherwise.

    more: further fields of the answer, such as that.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        headers: Mapping[str, str] | None = None,
        **more: object,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})
        self.more = more


def bad_request(detail: str) -> Problem:
    """What was sent makes no sense."""
    return Problem(400, "BadRequest", detail)


def answer_to(error: Exception, is_write: bool) -> Response:
    """The answer to a request that ended with `error`; what is nobody's fault but ours is logged.

    is_write: whether the request was to change something.
    """
    if isinstance(error, Problem):
        response = _of_problem(error)
        more = dict(error.more)
    else:
        response = error_response(error)
        more = _known_of(error)
        if not isinstance(error, RaftError):
            logger.error("a request failed", exc_info=error)
    if is_write:
        is_certain = isinstance(error, (Problem, *_NOT_DONE))
        more.setdefault("outcome", "not_applied" if is_certain else "unknown")
    if more:
        said = json.loads(response.get_data())
        response.set_data(json.dumps({**said, **more}) + "\n")
    return response


def _of_problem(problem: Problem) -> Response:
    said = {
        "type": "about:blank",
        "title": problem.code,
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
    }
    response = Response(json.dumps(said) + "\n", problem.status, mimetype="application/problem+json")
    response.headers["Cache-Control"] = "no-store"
    response.headers.update(problem.headers)
    return response


def _known_of(error: Exception) -> dict[str, object]:
    """What is said of an error beside its kind: of keys only those that the client named itself."""
    if isinstance(error, ConflictError):
        return {"key": error.key, "version": error.version}
    if isinstance(error, CounterError):
        return {"key": error.key}
    if isinstance(error, Compacted):
        return {"kept_after": error.kept_after, "do": "GET /v1/keys, and go on after the position that it says"}
    return {}
