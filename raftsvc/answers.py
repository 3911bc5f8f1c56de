"""What an HTTP client of the application is told of an error: a WSGI response, by the error's own word.

What is known of the outcome is in the status: 503 was not done and may be sent again, 504 may have been
done.  The message of an error is for the operator, and names addresses, files and keys; none of it gets
out unless the application says so.
"""

from __future__ import annotations

import json
import math

from werkzeug.wrappers import Response

from raftsvc.errors import RaftError


def error_response(error: BaseException, detail: str | None = None) -> Response:
    """The answer to a request that ended with `error`: a problem of RFC 9457, as a werkzeug Response.

    A WSGI application of its own, which Flask takes as what an error handler returns:

        app.register_error_handler(raftsvc.RaftError, raftsvc.error_response)

    error:  503 with Retry-After for what may be sent again, 504 for what may have been done, 409 for a
            condition that did not hold, and so on: its `http_status`.  500 for what is none of raftsvc's.
    detail: said to the client in the place of the error's `http_detail`, such as the `reason` of a
            Rejected where that is meant for it.
    """
    if not isinstance(error, RaftError):
        status, code, said, retry_after = 500, "InternalError", "The request failed.", None
    else:
        status, code, said = error.http_status, type(error).__name__, error.http_detail
        retry_after = error.retry_after
    problem = {"type": "about:blank", "title": code, "status": status, "detail": detail or said, "code": code}
    response = Response(json.dumps(problem) + "\n", status, mimetype="application/problem+json")
    response.headers["Cache-Control"] = "no-store"
    if retry_after is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
    return response
