"""What the API says of itself: OpenAPI 3.1, made of the same list of routes that requests are led by."""

from __future__ import annotations

from typing import Any, Final

from raftsvc.web.asked import TICKET_HEADER
from raftsvc.web.keys import KINDS_HELD, MAX_KEYS, MAX_OPERATIONS, OPERATIONS
from raftsvc.web.routes import KEY, ROUTES, Route

_SECONDS: Final = {"type": "number", "minimum": 0}
_WAIT: Final = {"type": "number", "minimum": 0, "maximum": 60}
_BIG: Final = {"type": "integer", "format": "int64"}
_PARAMETERS: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "prefix": ({"type": "string"}, "Only keys that begin with it."),
    "limit": ({"type": "integer", "minimum": 1, "maximum": MAX_KEYS, "default": 1000}, "So many keys at most."),
    "after": ({"type": "string"}, "What comes after it: a key, of a listing; a position, of a watch."),
    "stale": ({"enum": [0, 1]}, "1: as this node knows it, however old; nobody is asked."),
    "max_age": (_SECONDS, "As it was no longer ago than so many seconds."),
    "ttl": (_SECONDS, "For how many seconds the key lives; of a counter, if it is made by this."),
    "delta": ({**_BIG, "default": 1}, "What is added."),
    "initial": ({**_BIG, "default": 0}, "What a key counts for that does not exist."),
    "wait": ({**_WAIT, "default": 30}, "How many seconds to wait for something to happen."),
    "stay": ({"enum": [0, 1]}, "1: whoever does not have it after wait keeps his place, for ttl; else he gives it up."),
    "data": ({"type": "string", "maxLength": 1024}, "What others are shown of who has it; else the name of the token."),
    "ticket": ({"type": "string", "pattern": "^[0-9a-f]{16}-[0-9]{1,12}$"}, "What the answer to POST said."),
    "fence": (
        {"type": "integer", "minimum": 1},
        "In the place of a ticket that is lost: what is held by this fence, whoever has it; takes the right to admin.",
    ),
    "timeout": (_WAIT, "How many seconds to wait for the cluster: 10 for a write, 5 for a read."),
}
_OF_HELD: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "ttl": (
        {"type": "number", "minimum": 1, "maximum": 86400, "default": 15},
        "So many seconds after it was last asked for it is over.",
    ),
    "wait": ({**_WAIT, "default": 0}, "How many seconds to wait for it."),
}
"""The same, of what is held."""
_HEADERS: Final = {
    "If-Match": 'Only if the key is at this version, in quotation marks: "17".',
    "If-None-Match": 'Of a write, *: only if there is no such key. Of a read, "17": not if it is at that version.',
    "Idempotency-Key": "What is sent again under the same takes effect once, and is answered the same.",
    TICKET_HEADER: "The ticket, in the place of the query, which stands in logs.",
    "Last-Event-ID": "In the place of after, by who was told by a stream before.",
}
_HEADERS_OF: Final = {
    "getKey": ("If-Match", "If-None-Match"),
    "putKey": ("If-Match", "If-None-Match", "Idempotency-Key"),
    "deleteKey": ("If-Match", "If-None-Match", "Idempotency-Key"),
    "count": ("Idempotency-Key",),
    "transact": ("Idempotency-Key",),
    "watch": ("Last-Event-ID",),
    "acquireLock": ("Idempotency-Key",),
    "campaign": ("Idempotency-Key",),
    **dict.fromkeys(("keepLock", "releaseLock", "keepLeading", "resign"), (TICKET_HEADER,)),
}
_SUMMARIES: Final = {
    "listKeys": "Keys below a prefix, in order, with their values, all of one moment.",
    "getKey": "A value, with its version as ETag.",
    "putKey": "Give a key a value.",
    "deleteKey": "Have no such key.",
    "count": "Add to the number that a key has, in decimal.",
    "transact": "Do all of these operations if all conditions among them hold, or nothing.",
    "watch": "What changes below a prefix: the next that happened, or a stream of it (Accept: text/event-stream).",
    "acquireLock": "Hold a lock: who asks first gets it first.",
    "keepLock": "Hold it, or wait for it, for another ttl.",
    "releaseLock": "Let go of it, or wait for it no longer.",
    "getLock": "Who holds it, then who waits, in their order.",
    "campaign": "Lead: who asks first leads first.",
    "keepLeading": "Lead, or wait for that, for another ttl.",
    "resign": "Lead no more, or wait for that no longer.",
    "getLeader": "Who leads, then who waits, in their order.",
    "describe": "This description.",
}
_VERSION: Final = {"type": "integer", "minimum": 1, "description": "Of the log entry that wrote it."}
_BYTES: Final = {"type": "string", "contentEncoding": "base64"}
_POSITION: Final = {"type": "string", "description": "After which a watch goes on."}
_FENCE: Final = {"type": "integer", "minimum": 0, "description": "It rises with each holder; 0: it is not held yet."}
_HELD: Final = {"held": {"type": "boolean"}, "fence": _FENCE, "ticket": {"type": "string"}}
_RELEASED: Final = {"released": {"type": "boolean"}}
_SHOWN: Final = {
    "held": {"type": "boolean"},
    "claims": {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {"fence": _FENCE, "data": {"type": "string"}},
            "required": ["fence", "data"],
        },
    },
}
_ANSWERS: Final[dict[str, dict[str, Any]]] = {
    "putKey": {"version": _VERSION},
    "deleteKey": {"deleted": {"type": ["boolean", "null"]}, "version": _VERSION},
    "count": {"value": {"type": ["integer", "null"]}, "version": _VERSION},
    "transact": {"version": _VERSION, "answer": {"type": ["boolean", "integer", "null"]}},
    "listKeys": {
        "keys": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"key": {"type": "string"}, "value": _BYTES, "version": _VERSION},
                "required": ["key", "value", "version"],
            },
        },
        "more": {"type": "boolean"},
        "position": _POSITION,
    },
    **dict.fromkeys(("acquireLock", "keepLock", "campaign", "keepLeading"), _HELD),
    **dict.fromkeys(("releaseLock", "resign"), _RELEASED),
    **dict.fromkeys(("getLock", "getLeader"), _SHOWN),
    "watch": {
        "events": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "kind": {"enum": ["set", "delete", "expire"]},
                    "key": {"type": "string"},
                    "value": {"type": ["string", "null"], "contentEncoding": "base64"},
                    "index": _VERSION,
                    "previous_version": {"type": ["integer", "null"]},
                },
                "required": ["kind", "key", "value", "index", "previous_version"],
            },
        },
        "position": _POSITION,
    },
}
_PROBLEM: Final = {
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "outcome": {"enum": ["not_applied", "unknown"], "description": "Of a write: what is known of it."},
    },
    "required": ["type", "title", "status", "detail", "code"],
}


def description(mounted_at: str) -> dict[str, Any]:
    """All of it, as JSON has it.  mounted_at: the path below which the API is, empty if it is at the root."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "raftsvc: the key-value store", "version": "1"},
        "servers": [{"url": mounted_at or "/"}],
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Problem": _PROBLEM},
            "responses": {
                "Problem": {
                    "description": "What went wrong, and of a write what is known of the outcome.",
                    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
                }
            },
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    known = {**_PARAMETERS, **(_OF_HELD if route.is_of_held else {})}
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "query", "schema": known[name][0], "description": known[name][1]}
        for name in sorted(route.parameters)
    ]
    for header in _HEADERS_OF.get(route.name, ()):
        parameters.append(
            {"name": header, "in": "header", "schema": {"type": "string"}, "description": _HEADERS[header]}
        )
    if KEY in route.path:
        said = "UTF-8, 1 to 1,024 bytes, percent-encoded; slashes may stand as they are."
        schema = {"type": "string", "minLength": 1}
        parameters.insert(0, {"name": "key", "in": "path", "required": True, "schema": schema, "description": said})
    made: dict[str, Any] = {
        "operationId": route.name,
        "summary": _SUMMARIES[route.name],
        "parameters": parameters,
        "responses": _responses(route),
    }
    if route.right is None:
        made["security"] = []
    if route.name == "putKey":
        made["requestBody"] = {"required": True, "content": {"application/octet-stream": {}}}
    elif route.name == "transact":
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": _transaction()}}}
    return made


def _responses(route: Route) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    if route.name == "getKey":
        responses["200"] = {"description": "The value.", "content": {"application/octet-stream": {}}}
        responses["304"] = {"description": "It is still at that version."}
    else:
        schema: dict[str, Any] = {"type": "object"}
        if route.name in _ANSWERS:
            answer = _ANSWERS[route.name]
            optional = {"position"} if route.name == "listKeys" else set()
            schema = {"type": "object", "properties": answer, "required": sorted(set(answer) - optional)}
        content: dict[str, Any] = {"application/json": {"schema": schema}}
        if route.name == "watch":
            content["text/event-stream"] = {}
        responses["200"] = {"description": "Done.", "content": content}
        if route.is_of_held and route.method in ("POST", "PUT"):
            responses["202"] = {"description": "It is waited for.", "content": content}
    responses["default"] = {"$ref": "#/components/responses/Problem"}
    return responses


def _transaction() -> dict[str, Any]:
    return {
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_OPERATIONS,
        "items": {
            "type": "object",
            "properties": {
                "op": {"enum": list(OPERATIONS)},
                "key": {"type": "string"},
                "version": {"type": "integer", "minimum": 0},
                "value": _BYTES,
                "text": {"type": "string"},
                "ttl": {"type": ["number", "null"]},
                "delta": _BIG,
                "initial": _BIG,
                "fence": {"type": "integer", "minimum": 0},
                "kind": {"enum": list(KINDS_HELD)},
            },
            "required": ["op", "key"],
        },
    }
