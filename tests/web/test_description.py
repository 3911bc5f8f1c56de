"""What the API says of itself is what it does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from werkzeug.test import Client

from raftsvc import kv
from raftsvc.web import api
from raftsvc.web.openapi import description
from raftsvc.web.routes import ROUTES
from tests.web.test_keys import problem, said, transact

SAID = json.loads(json.dumps(description("")))
OPERATIONS = {
    (method.upper(), path): operation
    for path, methods in SAID["paths"].items()
    for method, operation in methods.items()
}


def test_it_names_every_route_and_no_other() -> None:
    assert set(OPERATIONS) == {(route.method, route.path) for route in ROUTES}
    assert len({each["operationId"] for each in OPERATIONS.values()}) == len(ROUTES)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_it_names_every_parameter_and_no_other(store: kv.KeyValue, route: Any) -> None:
    parameters = OPERATIONS[route.method, route.path]["parameters"]
    assert {each["name"] for each in parameters if each["in"] == "query"} == route.parameters
    assert ("key" in {each["name"] for each in parameters if each["in"] == "path"}) == ("{key}" in route.path)
    assert all(each["description"] for each in parameters)
    client = Client(api(store, open_to_all=True))
    path = route.path.replace("{key}", "described")
    answer = client.open(path, method=route.method, query_string={"nothing-like-it": "1"}, data=b"")
    detail = problem(answer, 400)["detail"]
    assert all(name in detail for name in route.parameters)


def shape_of(schema: dict[str, Any], value: Any) -> None:
    """Assert that a value is as a schema says, as far as ours go."""
    if "enum" in schema:
        assert value in schema["enum"]
        return
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool, "null": type(None)}
    named = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    assert type(value) in [kinds[name] for name in named], (schema, value)
    if isinstance(value, dict) and "properties" in schema:
        assert set(schema.get("required", [])) <= set(value) <= set(schema["properties"]) | {"key", "version"}
        for name, inner in value.items():
            shape_of(schema["properties"].get(name, {"type": list(kinds)}), inner)
    if isinstance(value, list):
        for each in value:
            shape_of(schema["items"], each)


def test_answers_are_as_it_says(store: kv.KeyValue) -> None:
    client = Client(api(store, open_to_all=True))
    answers = {
        ("PUT", "/v1/keys/{key}"): client.put("/v1/keys/shape", data=b"1"),
        ("POST", "/v1/counters/{key}"): client.post("/v1/counters/shape"),
        ("POST", "/v1/transactions"): transact(client, [{"op": "incr", "key": "shape"}]),
        ("GET", "/v1/keys"): client.get("/v1/keys?prefix=shape"),
        ("GET", "/v1/watch"): client.get("/v1/watch?wait=0"),
        ("DELETE", "/v1/keys/{key}"): client.delete("/v1/keys/shape"),
        ("GET", "/v1/openapi.json"): client.get("/v1/openapi.json"),
        ("POST", "/v1/locks/{key}"): client.post("/v1/locks/shape"),
        ("GET", "/v1/locks/{key}"): client.get("/v1/locks/shape"),
        ("DELETE", "/v1/elections/{key}"): client.delete("/v1/elections/shape?ticket=0123456789abcdef-1000"),
    }
    for which, answer in answers.items():
        content = OPERATIONS[which]["responses"]["200"]["content"]
        shape_of(content[answer.mimetype]["schema"], said(answer))
    refused = client.put("/v1/keys/shape", data=b"1", headers={"If-Match": '"1"'})
    shape_of(SAID["components"]["schemas"]["Problem"], said(refused, 412))
    assert answers["GET", "/v1/openapi.json"].get_json()["paths"] == SAID["paths"]


def test_what_is_not_there_says_so(store: kv.KeyValue) -> None:
    client = Client(api(store, open_to_all=True))
    for path in ("/", "/v1", "/v1/", "/v2/keys", "/v1/keysx", "/v1/watch/"):
        problem(client.get(path), 404, code="NotFound")
    for method, path, allowed in (
        ("POST", "/v1/keys", "GET, HEAD"),
        ("POST", "/v1/keys/a", "DELETE, GET, HEAD, PUT"),
        ("GET", "/v1/counters/a", "POST"),
        ("HEAD", "/v1/watch", "GET"),
        ("PATCH", "/v1/transactions", "POST"),
    ):
        answer = client.open(path, method=method)
        assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)
