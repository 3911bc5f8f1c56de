"""Answers that say what is known of an outcome, and peers beside Django where the node has no port of its own."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest, HttpResponse
from django.views.defaults import server_error as default_server_error
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from raftsvc.answers import error_response
from raftsvc.errors import ConfigurationError, RaftError, StartFailedError
from raftsvc.ext.django.node import configure, start
from raftsvc.ext.nodes import one_node
from raftsvc.kv import KeyValue

logger = logging.getLogger("raftsvc.ext")

_MOUNT: Final = "/raft"


class RaftErrors:
    """A middleware that answers a RaftError of a view as `raftsvc.error_response` does.

    503 with Retry-After is for what was certainly not done, 504 for what may have been done, 409 for a condition that
    did not hold; 503, too, where the node of this process cannot be started.  The log has the error itself, which
    clients are not told.  Put it last, so that those above see an answer.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        """get_response: what is below."""
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        """As if it were not there."""
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """The answer; None for another exception."""
        return _answer(request, exception)


def server_error(request: HttpRequest) -> HttpResponse:
    """A view for `handler500`, which answers a RaftError of another middleware as RaftErrors does that of a view.

        handler500 = "raftsvc.ext.django.server_error"

    Such as that of sessions, which saves them after the view.  Anything else is answered as Django does by itself.
    """
    answer = _answer(request, sys.exc_info()[1])
    return default_server_error(request) if answer is None else answer


def _answer(request: HttpRequest, error: BaseException | None) -> HttpResponse | None:
    if not isinstance(error, RaftError):
        return None
    logger.warning("answered an error of the store, %s %r: %s", request.method, request.path, error)
    if isinstance(error, ConfigurationError):
        try:
            _begun()
        except RaftError as failed:
            error = failed  # of the project's settings, and no fault of who asks
    said = error_response(error)
    return HttpResponse(said.get_data(), status=said.status_code, headers=dict(said.headers))


def mount(application: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """The WSGI application, with the node's peers before it where the node has no port of its own.

        application = mount(get_wsgi_application())

    Peers come to /raft/ then, which nothing of Django stands before: no ALLOWED_HOSTS, no redirect, no CSRF.  Where
    RAFTSVC_LISTEN is not empty it is the application itself.  Starts nothing.

    Raises ConfigurationError if the settings make no sense.
    """
    configure()
    if one_node.listens:
        return application
    return DispatcherMiddleware(application, {_MOUNT: _peers})


def _peers(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """What the node's peers ask, where the application's server has their requests."""
    try:
        service = _begun().service
    except RaftError as error:
        return error_response(error)(environ, start_response)
    answer: Iterable[bytes] = service.wsgi_app(environ, start_response)
    return answer


def _begun() -> KeyValue:
    """The store, for a peer.  That a node cannot be started is for its operator, and no fault of a peer's."""
    try:
        return start()
    except RaftError as error:
        logger.error("the node of raftsvc cannot be started: %s", error)
        if isinstance(error, ConfigurationError):
            raise StartFailedError(f"the node of this process cannot be started: {error}") from error
        raise
