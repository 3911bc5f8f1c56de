"""What there is at which path: the one list that requests are led by and that the description is made from."""

from __future__ import annotations

from dataclasses import dataclass

from raftsvc.web.problems import Problem

KEY = "{key}"
_WITH_BODY = ("putKey", "transact")


@dataclass(frozen=True)
class Route:
    """What one method of one path does.

    name:       of what does it, and of the operation in the description.
    right:      that it takes; None: nobody is asked who he is.
    parameters: that its query may have.
    """

    method: str
    path: str
    name: str
    right: str | None
    parameters: frozenset[str] = frozenset()

    @property
    def has_body(self) -> bool:
        """Whether a request has a body."""
        return self.name in _WITH_BODY

    @property
    def is_of_held(self) -> bool:
        """Whether it is about what somebody holds."""
        return self.path.startswith(("/v1/locks/", "/v1/elections/"))

    @property
    def is_write(self) -> bool:
        """Whether it changes something."""
        return self.right == "write"


def _route(method: str, path: str, name: str, right: str | None, parameters: str = "") -> Route:
    return Route(method, path, name, right, frozenset(parameters.split()))


ROUTES = (
    _route("GET", "/v1/keys", "listKeys", "read", "prefix limit after max_age timeout"),
    _route("GET", "/v1/keys/{key}", "getKey", "read", "stale max_age timeout"),
    _route("PUT", "/v1/keys/{key}", "putKey", "write", "ttl timeout"),
    _route("DELETE", "/v1/keys/{key}", "deleteKey", "write", "timeout"),
    _route("POST", "/v1/counters/{key}", "count", "write", "delta initial ttl timeout"),
    _route("POST", "/v1/transactions", "transact", "write", "timeout"),
    _route("POST", "/v1/locks/{key}", "acquireLock", "write", "ttl wait stay data timeout"),
    _route("PUT", "/v1/locks/{key}", "keepLock", "write", "ticket wait timeout"),
    _route("DELETE", "/v1/locks/{key}", "releaseLock", "write", "ticket fence timeout"),
    _route("GET", "/v1/locks/{key}", "getLock", "read", "max_age timeout"),
    _route("POST", "/v1/elections/{key}", "campaign", "write", "ttl wait stay data timeout"),
    _route("PUT", "/v1/elections/{key}", "keepLeading", "write", "ticket wait timeout"),
    _route("DELETE", "/v1/elections/{key}", "resign", "write", "ticket fence timeout"),
    _route("GET", "/v1/elections/{key}", "getLeader", "read", "max_age timeout"),
    _route("GET", "/v1/watch", "watch", "read", "prefix after wait timeout"),
    _route("GET", "/v1/openapi.json", "describe", None),
)
_WITHOUT_HEAD = ("watch",)
"""What has no end, or waits, is not asked for its head alone."""


def find_route(method: str, path: str) -> tuple[Route, str]:
    """What is asked for, and the key that the path names; raises Problem 404 or 405."""
    allowed: set[str] = set()
    for route in ROUTES:
        before, is_of_key, _ = route.path.partition(KEY)
        if not (path.startswith(before) if is_of_key else path == before):
            continue
        methods = {route.method}
        if route.method == "GET" and route.name not in _WITHOUT_HEAD:
            methods.add("HEAD")
        if method in methods:
            return route, path[len(before) :]
        allowed |= methods
    if allowed:
        allow = ", ".join(sorted(allowed))
        raise Problem(405, "MethodNotAllowed", f"Here there are {allow}.", {"Allow": allow})
    raise Problem(404, "NotFound", "There is nothing here; /v1/openapi.json says what there is.")
