"""Who may what over HTTP, and that nothing is open because nobody said who may."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from werkzeug.test import Client

import raftsvc
from raftsvc import kv
from raftsvc.keys import ClientKey
from raftsvc.web import Caller, api
from tests.web.test_keys import problem, said, transact

READER = ClientKey("reader", "reader-0123456789abcdef")
WRITER = ClientKey("writer", "writer-0123456789abcdef", "write")
TEAM = ClientKey("team", "team-0123456789abcdef==", "write", "team/")


def shown(key: ClientKey) -> dict[str, str]:
    return {"Authorization": f"Bearer {key.key}"}


@pytest.fixture
def client(store: kv.KeyValue) -> Client:
    return Client(api(store, keys=[READER, WRITER, TEAM]))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"keys": []},
        {"keys": None},
        {"open_to_all": False},
        {"open_to_all": 1},
        {"keys": ["writer-0123456789abcdef"]},
        {"keys": [WRITER], "open_to_all": True},
        {"keys": [WRITER], "authorize": lambda environ: None},
        {"authorize": "yes"},
        {"keys": [ClientKey("a", "no bearer token has blanks")]},
        {"open_to_all": True, "max_body_bytes": -1},
        {"open_to_all": True, "max_watchers": 1.5},
        {"open_to_all": True, "heartbeat": 0},
        {"open_to_all": True, "repeats_ttl": None},
    ],
    ids=lambda wrong: ", ".join(wrong),
)
def test_nothing_is_open_by_accident(store: kv.KeyValue, options: dict[str, Any]) -> None:
    with pytest.raises(raftsvc.ConfigurationError):
        api(store, **options)


def test_it_is_of_a_store() -> None:
    with pytest.raises(raftsvc.ConfigurationError):
        api(object(), open_to_all=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer nobody", "Basic cmVhZGVy", READER.key, "Bearer reader-0123456789abcde\xe9"],
)
def test_who_is_not_known_may_nothing(client: Client, store: kv.KeyValue, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    for method, path in (
        ("GET", "/v1/keys/a"),
        ("GET", "/v1/keys"),
        ("GET", "/v1/watch"),
        ("PUT", "/v1/keys/a"),
        ("DELETE", "/v1/keys/a"),
        ("POST", "/v1/counters/a"),
        ("POST", "/v1/transactions"),
    ):
        answer = client.open(path, method=method, headers=headers, data=b"1" if method == "PUT" else None)
        problem(answer, 401)
        assert answer.headers["WWW-Authenticate"].startswith('Bearer realm="raftsvc"')
    assert "a" not in store
    assert said(client.get("/v1/openapi.json", headers=headers))["openapi"] == "3.1.0"


def test_who_may_read_writes_nothing(client: Client, store: kv.KeyValue) -> None:
    store.set("read", b"1")
    assert client.get("/v1/keys/read", headers=shown(READER)).get_data() == b"1"
    problem(client.put("/v1/keys/read", data=b"2", headers=shown(READER)), 403, outcome="not_applied")
    problem(client.delete("/v1/keys/read", headers=shown(READER)), 403)
    problem(client.post("/v1/counters/read", headers=shown(READER)), 403)
    problem(transact(client, [{"op": "delete", "key": "read"}], **shown(READER)), 403)
    said(client.put("/v1/keys/read", data=b"2", headers=shown(WRITER)))


def test_who_has_a_prefix_sees_nothing_else(client: Client, store: kv.KeyValue) -> None:
    headers = shown(TEAM)
    store.transaction([kv.set("tea", b"1"), kv.set("team", b"2"), kv.set("team/a", b"3"), kv.set("team0", b"4")])
    assert [each["key"] for each in said(client.get("/v1/keys", headers=headers))["keys"]] == ["team/a"]
    assert said(client.get("/v1/keys?after=a", headers=headers))["keys"] != []
    for path in ("keys?prefix=", "keys?prefix=tea", "keys/tea", "keys/team", "watch?wait=0&prefix=team"):
        problem(client.get(f"/v1/{path}", headers=headers), 403)
    problem(client.put("/v1/keys/other", data=b"1", headers=headers), 403)
    problem(client.post("/v1/counters/other", headers=headers), 403)
    mixed = [{"op": "set", "key": "team/b", "text": "1"}, {"op": "if_not_exists", "key": "other"}]
    problem(transact(client, mixed, **headers), 403)
    assert "team/b" not in store
    begin = said(client.get("/v1/keys", headers=headers))["position"]
    store.transaction([kv.set("other", b"1"), kv.set("team/c", b"1"), kv.set("team0", b"5"), kv.set("zone", b"1")])
    found = said(client.get("/v1/watch", query_string={"after": begin}, headers=headers))
    assert [each["key"] for each in found["events"]] == ["team/c"]


def test_the_application_says_who_asks(store: kv.KeyValue) -> None:
    def authorize(environ: Mapping[str, Any]) -> Caller | None:
        user = environ.get("HTTP_X_USER")
        return {"jo": Caller("jo", "write"), "odd": "jo"}.get(user)  # type: ignore[call-overload, no-any-return]

    client = Client(api(store, authorize=authorize))
    problem(client.put("/v1/keys/jo", data=b"1"), 401)
    problem(client.put("/v1/keys/jo", data=b"1", headers={"X-User": "odd"}), 500)
    assert "jo" not in store
    said(client.put("/v1/keys/jo", data=b"1", headers={"X-User": "jo"}))


@pytest.mark.parametrize("arguments", [(1,), ("a", "all"), ("a", "read", None)], ids=str)
def test_a_caller_has_rights_that_there_are(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(raftsvc.ConfigurationError):
        Caller(*arguments)


def test_a_page_of_another_site_writes_nothing_where_all_is_open(store: kv.KeyValue) -> None:
    client = Client(api(store, open_to_all=True))
    for headers in ({"Origin": "https://elsewhere.example"}, {"Sec-Fetch-Site": "cross-site"}):
        problem(client.post("/v1/counters/page", headers=headers), 403, outcome="not_applied")
    assert "page" not in store
