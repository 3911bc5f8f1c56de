"""A key-value store over HTTP: what a Flask application built on raftsvc looks like.

    PUT    /kv/<key>          body = value; If-None-Match: * only creates, If-Match: <version> only replaces that
    GET    /kv/<key>          linearizable; ?stale=1 reads what this node has at once
    DELETE /kv/<key>
    GET    /kv?prefix=<text>  every key below a prefix with its value, as JSON; linearizable unless ?stale=1
    GET    /cluster           what this node knows of itself and its cluster
    POST   /cluster/init      begin a cluster with this node
    POST   /cluster/allow     {"addr": ...}  let that address join
    POST   /cluster/join      {"boot_url": ...}  join the cluster of that member
    POST   /cluster/evict     {"addr": ...}  take it off the list and remove it

Changes to the cluster need `Authorization: Bearer <admin_token>`.  The routes of
the peers are not here: wsgi.py mounts them beside the application.
"""

from __future__ import annotations

import hmac
import json

from flask import Blueprint, Flask, Response, abort, request
from werkzeug.exceptions import HTTPException

from raftsvc import RaftError, Rejected, Service, error_response
from raftsvc.kv import KeyValue, if_not_exists, if_not_modified


def create_app(service: Service, kv: KeyValue, admin_token: str) -> Flask:
    """Make the application; it uses the node and neither starts nor stops it."""
    app = Flask(__name__)
    app.register_blueprint(_key_value_routes(kv))
    app.register_blueprint(_cluster_routes(service, kv, admin_token))
    app.register_error_handler(RaftError, error_response)
    app.register_error_handler(Rejected, lambda error: error_response(error, detail=error.reason))
    app.register_error_handler(HTTPException, _problem_of_http_error)
    return app


def _key_value_routes(kv: KeyValue) -> Blueprint:
    routes = Blueprint("kv", __name__, url_prefix="/kv")
    routes.register_error_handler(ValueError, lambda error: _problem(400, "BadKey", str(error)))

    @routes.put("/<path:key>")
    def put(key: str) -> Response:
        conditions = []
        if request.headers.get("If-None-Match") == "*":
            conditions.append(if_not_exists(key))
        if "If-Match" in request.headers:
            conditions.append(if_not_modified(key, _version(request.headers["If-Match"])))
        version = kv.set(key, request.get_data(), *conditions)
        return _json({"key": key, "version": version})

    @routes.get("/<path:key>")
    def get(key: str) -> Response:
        value = kv.get_stale(key) if "stale" in request.args else kv.get(key)
        if value is None:
            abort(404, f"there is no key {key!r}")
        return Response(value.data, mimetype="application/octet-stream", headers={"ETag": f'"{value.version}"'})

    @routes.delete("/<path:key>")
    def delete(key: str) -> Response:
        kv.delete(key)
        return Response(status=204)

    @routes.get("", strict_slashes=False)
    def listing() -> Response:
        prefix = request.args.get("prefix", "")
        found = kv.list_stale(prefix) if "stale" in request.args else kv.list(prefix)
        return _json({key: value.data.decode("utf-8", "replace") for key, value in found.items()})

    return routes


def _cluster_routes(service: Service, kv: KeyValue, admin_token: str) -> Blueprint:
    routes = Blueprint("cluster", __name__, url_prefix="/cluster")

    @routes.before_request
    def only_the_operator_changes_the_cluster() -> None:
        expected = f"Bearer {admin_token}".encode()
        given = request.headers.get("Authorization", "").encode()
        if request.method != "GET" and not hmac.compare_digest(given, expected):
            abort(401, "this needs the header Authorization: Bearer <admin token>")

    @routes.get("")
    def status() -> Response:
        return _json(service.status())

    @routes.post("/init")
    def init() -> Response:
        service.init()
        return _json(service.status())

    @routes.post("/allow")
    def allow() -> Response:
        kv.allow(_argument("addr"))
        return _json({"allowed": sorted(kv.allowed())})

    @routes.post("/join")
    def join() -> Response:
        service.join(_argument("boot_url"))
        return _json(service.status())

    @routes.post("/evict")
    def evict() -> Response:
        addr = _argument("addr")
        kv.disallow(addr)  # or it could simply join again
        service.evict(addr)
        return _json(service.status())

    return routes


def _argument(name: str) -> str:
    body = request.get_json(force=True)  # whatever type curl claims it has
    if not isinstance(body, dict) or not isinstance(body.get(name), str):
        abort(400, f'the body must be a JSON object with the text "{name}"')
    return str(body[name])


def _version(etag: str) -> int:
    try:
        return int(etag.strip().strip('"'))
    except ValueError:
        abort(400, "If-Match takes one version, as ETag gave it")


def _json(content: object, status: int = 200, mimetype: str = "application/json") -> Response:
    return Response(json.dumps(content) + "\n", status=status, mimetype=mimetype)


def _problem(status: int, code: str, detail: str) -> Response:
    """RFC 9457; `code` is what a program looks at, `detail` is for people."""
    content = {"type": "about:blank", "title": code, "status": status, "detail": detail, "code": code}
    return _json(content, status, "application/problem+json")


def _problem_of_http_error(error: HTTPException) -> Response:
    return _problem(error.code or 500, error.name, error.description or "")
