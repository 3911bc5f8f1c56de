"""The WSGI application of every web process: the same whatever replicates its state.

    PUT  /kv/<key>      body = value            what the end-to-end cases call
    GET  /kv/<key>      linearizable
    GET  /status        what the back end says of itself
    POST /local         {"keys": [...]}         what this node itself has, as counters
    POST /call/<name>   {...}                   a method of the back end, for the runner
    POST /load/start    a Spec                  threads in this process begin to work
    POST /load/stop     {"from": t, "to": t}    they end; what they saw between two moments

gunicorn starts it with BENCH_BACKEND, `module:class`, and BENCH_CONFIG, its arguments as JSON.
"""

from __future__ import annotations

import importlib
import json
import os
from typing import Any

from flask import Flask, Response, jsonify, request

from benchmarks.load import Backend, Load, Spec, counter_of


def create_app(backend: Backend) -> Flask:
    app = Flask(__name__)
    loads: list[Load] = []

    @app.put("/kv/<path:key>")
    def put(key: str) -> Response:
        backend.write(key, request.get_data())
        return Response(status=204)

    @app.get("/kv/<path:key>")
    def get(key: str) -> Response:
        value = backend.read(key)
        return Response(status=404) if value is None else Response(value, mimetype="application/octet-stream")

    @app.get("/status")
    def status() -> Response:
        return jsonify(backend.status())

    @app.post("/local")
    def local() -> Response:
        return jsonify({key: counter_of(backend.local(key)) for key in request.get_json()["keys"]})

    @app.post("/call/<name>")
    def call(name: str) -> Response:
        return jsonify(getattr(backend, name)(**request.get_json()))

    @app.post("/load/start")
    def start_load() -> Response:
        load = Load(backend, Spec(**request.get_json()))
        loads.append(load)
        load.start()
        return Response(status=204)

    @app.post("/load/stop")
    def stop_load() -> Response:
        window: dict[str, Any] = request.get_json()
        load = loads.pop()
        load.stop()
        return jsonify(load.result(window["from"], window["to"]))

    return app


def main() -> Flask:
    """What gunicorn calls in the worker, after it forked."""
    module, _, name = os.environ["BENCH_BACKEND"].partition(":")
    return create_app(getattr(importlib.import_module(module), name)(**json.loads(os.environ["BENCH_CONFIG"])))
