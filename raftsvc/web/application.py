"""The store over HTTP and JSON, as a WSGI application that any server can have and any application can mount.

It stands on the public face of `raftsvc.kv.KeyValue` and keeps nothing of its own: what it knows of a request that
was sent before is in the store.  So any process of any node answers the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from werkzeug.wrappers import Response

from raftsvc.errors import ConfigurationError
from raftsvc.keys import ClientKey
from raftsvc.kv import KeyValue
from raftsvc.web.asked import Asked
from raftsvc.web.callers import Authorize, Caller, admitted, authorizer
from raftsvc.web.held import KINDS, Held
from raftsvc.web.keys import Keys, json_response
from raftsvc.web.openapi import description
from raftsvc.web.positions import Positions
from raftsvc.web.problems import answer_to
from raftsvc.web.repeats import Repeats
from raftsvc.web.routes import Route, find_route
from raftsvc.web.watching import Places, Watches

_READ_ONLY = ("GET", "HEAD", "OPTIONS")


class Api:
    """The WSGI application that `api` returns.  Thread-safe."""

    def __init__(
        self,
        kv: KeyValue,
        authorize: Authorize,
        max_body_bytes: int,
        places: Places,
        heartbeat: float,
        repeats_ttl: float,
    ) -> None:
        self._authorize = authorize
        self._max_body_bytes = max_body_bytes
        self._places = places
        positions = Positions(kv)
        repeats = Repeats(kv, repeats_ttl)
        keys = Keys(kv, repeats, positions)
        self._handlers: dict[str, Callable[[Asked, Caller, str], Response]] = {
            "listKeys": keys.list,
            "getKey": keys.get,
            "putKey": keys.put,
            "deleteKey": keys.delete,
            "count": keys.count,
            "transact": keys.transact,
            "watch": Watches(kv, positions, places, heartbeat).watch,
        }
        for kind, names in KINDS.items():
            held = Held(kv, kind, places, repeats)
            self._handlers |= dict(zip(names, (held.acquire, held.keep, held.release, held.show), strict=True))
        before_stop = getattr(kv.service, "before_stop", None)
        if callable(before_stop):
            before_stop(self.close)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """WSGI."""
        is_write = environ["REQUEST_METHOD"] not in _READ_ONLY
        try:
            response = self._answer(Asked(environ, self._max_body_bytes))
        except Exception as error:  # each is answered
            response = answer_to(error, is_write)
        return response(environ, start_response)

    def _answer(self, asked: Asked) -> Response:
        route, key = find_route(asked.method, asked.path)
        if not route.has_body:
            asked.refuse_body()
        if route.right is None:
            return self._described(asked, route)
        asked.admitted_in = self._places.changes
        caller = admitted(self._authorize, asked.environ, route.right)
        asked.read_parameters(route.parameters)
        return self._handlers[route.name](asked, caller, key)

    def _described(self, asked: Asked, route: Route) -> Response:
        asked.read_parameters(route.parameters)
        return json_response(description(str(asked.environ.get("SCRIPT_NAME", ""))))

    @property
    def watchers(self) -> int:
        """How many watch."""
        return self._places.taken

    def end_streams(self) -> None:
        """Have no stream that is there say anything more: for whoever changes what `authorize` knows.

        The clients come again by themselves, with the rights that they have by then; nothing is missed.
        """
        self._places.end_streams()

    def close(self) -> None:
        """End those who watch, and let nobody watch any more; the rest goes on.  Idempotent.

        It is done by itself when the Service stops.
        """
        self._places.close()


def api(
    kv: KeyValue,
    *,
    keys: Iterable[ClientKey] | None = None,
    authorize: Authorize | None = None,
    open_to_all: bool = False,
    max_body_bytes: int = 1024 * 1024,
    max_watchers: int = 16,
    heartbeat: float = 15.0,
    repeats_ttl: float = 24 * 3600.0,
) -> Api:
    """The store as a WSGI application: `DispatcherMiddleware(app, {"/store": raftsvc.web.api(kv, keys=[...])})`.

    kv:             of a node, of a process that is attached to one, or of a client (`raftsvc.connect`), by which
                    everything but watching works; with `kv.namespace("app/")` all is below that.
    keys:           who may what, by `Authorization: Bearer` and the text of the key: others than in `client_keys=`
                    of the node, for these are sent, and whoever reads along has them.
    authorize:      in its place a function that is called with the WSGI environ of each request, and returns a
                    `raftsvc.web.Caller`, or None for whom nobody knows.
    open_to_all:    in the place of both: whoever reaches it may read and write all of it.
    max_body_bytes: of a request; `max_instruction_bytes` of the node bounds a transaction, too.
    max_watchers:   as many may wait for changes, or locks, each of which takes a thread of the server as long as it
                    waits; more are told to come again.
    heartbeat:      seconds between two messages of a stream where nothing happens.
    repeats_ttl:    for how many seconds it is known what was done under an `Idempotency-Key`.

    Raises ConfigurationError, also where nothing says who may use it.
    """
    if not isinstance(kv, KeyValue):
        raise ConfigurationError(f"the API is of a KeyValue, not {kv!r:.100}")
    for name, number in (("max_body_bytes", max_body_bytes), ("max_watchers", max_watchers)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ConfigurationError(f"{name} is a number, 0 or more, not {number!r:.100}")
    for name, seconds in (("heartbeat", heartbeat), ("repeats_ttl", repeats_ttl)):
        if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not 0.001 <= seconds <= 10**9:
            raise ConfigurationError(f"{name} is a number of seconds, not {seconds!r:.100}")
    admits = authorizer(keys, authorize, open_to_all)
    return Api(kv, admits, max_body_bytes, Places(max_watchers), heartbeat, repeats_ttl)
