"""Keys, counters and transactions over HTTP: what is stored, on which conditions, and what is refused."""

from __future__ import annotations

import base64
import io
import itertools
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client, EnvironBuilder, run_wsgi_app
from werkzeug.test import TestResponse as Answer
from werkzeug.wrappers import Response

import raftsvc
from raftsvc import kv
from raftsvc.errors import NotApplied, OutcomeUnknown, StorageError
from raftsvc.results import Applied
from raftsvc.web import api
from tests.service.harness import PATIENCE, SECRET, free_address

_numbers = itertools.count(1)


@pytest.fixture
def client(store: kv.KeyValue) -> Client:
    return Client(api(store, open_to_all=True, max_body_bytes=100_000))


@pytest.fixture
def key() -> str:
    return f"key-{next(_numbers)}"


def said(answer: Answer, status: int = 200) -> Any:
    assert answer.status_code == status, answer.get_data(as_text=True)
    return json.loads(answer.get_data())


def problem(answer: Answer, status: int, **fields: object) -> dict[str, Any]:
    found: dict[str, Any] = said(answer, status)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert found["status"] == status and found["code"] == found["title"]
    assert {name: found.get(name) for name in fields} == fields
    return found


def transact(client: Client, operations: object, **headers: str) -> Answer:
    return client.post("/v1/transactions", json=operations, headers=headers)


def test_a_value_comes_back_as_its_bytes_with_its_version(client: Client, store: kv.KeyValue, key: str) -> None:
    put = client.put(f"/v1/keys/{key}", data=b"\x00\xff bytes", content_type="text/html")
    version = said(put)["version"]
    assert put.headers["ETag"] == f'"{version}"'
    got = client.get(f"/v1/keys/{key}")
    assert (got.status_code, got.get_data(), got.headers["ETag"]) == (200, b"\x00\xff bytes", f'"{version}"')
    assert got.headers["Content-Type"] == "application/octet-stream"
    assert store.get(key) == kv.Value(b"\x00\xff bytes", version)
    head = client.head(f"/v1/keys/{key}")
    assert (head.status_code, head.get_data(), head.headers["ETag"]) == (200, b"", f'"{version}"')
    assert said(client.delete(f"/v1/keys/{key}"))["deleted"] is True
    assert said(client.delete(f"/v1/keys/{key}"))["deleted"] is False
    problem(client.get(f"/v1/keys/{key}"), 404, code="NoSuchKey")


def test_a_write_asks_for_a_version_or_for_none(client: Client, key: str) -> None:
    path = f"/v1/keys/{key}"
    problem(client.put(path, data=b"1", headers={"If-Match": '"1"'}), 412, version=0, outcome="not_applied")
    first = said(client.put(path, data=b"1", headers={"If-None-Match": "*"}))["version"]
    again = client.put(path, data=b"2", headers={"If-None-Match": "*"})
    problem(again, 412, version=first, key=key, outcome="not_applied")
    assert again.headers["ETag"] == f'"{first}"'
    second = said(client.put(path, data=b"2", headers={"If-Match": f'"{first}"'}))["version"]
    problem(client.delete(path, headers={"If-Match": f'"{first}"'}), 412, version=second)
    for never in (f'W/"{second}"', '"abc"', '"0"', f'"{2**64}"'):
        problem(client.put(path, data=b"3", headers={"If-Match": never}), 412, version=second)
    assert client.get(path).get_data() == b"2"
    assert said(client.delete(path, headers={"If-Match": f'"{second}"'}))["deleted"] is True


@pytest.mark.parametrize(
    "headers",
    [
        {"If-Match": "*"},
        {"If-Match": '"1", "2"'},
        {"If-Match": "7"},
        {"If-Match": ""},
        {"If-None-Match": '"7"'},
        {"If-Match": '"7"', "If-None-Match": "*"},
        {"Idempotency-Key": ""},
        {"Idempotency-Key": "x" * 257},
    ],
    ids=str,
)
def test_a_condition_that_is_not_kept_is_refused(client: Client, key: str, headers: dict[str, str]) -> None:
    problem(client.put(f"/v1/keys/{key}", data=b"1", headers=headers), 400, outcome="not_applied")
    assert client.get(f"/v1/keys/{key}").status_code == 404


def test_a_read_is_spared_what_it_has(client: Client, key: str) -> None:
    path = f"/v1/keys/{key}"
    version = said(client.put(path, data=b"1"))["version"]
    for tags in (f'"{version}"', f'W/"{version}"', f'"7", "{version}"', "*"):
        answer = client.get(path, headers={"If-None-Match": tags})
        assert (answer.status_code, answer.get_data(), answer.headers["ETag"]) == (304, b"", f'"{version}"')
    assert client.get(path, headers={"If-None-Match": '"7"'}).status_code == 200
    assert client.get(path, headers={"If-Match": f'"{version}"'}).status_code == 200
    assert client.get(path, headers={"If-Match": "*"}).status_code == 200
    problem(client.get(path, headers={"If-Match": f'W/"{version}"'}), 412, version=version)
    for headers in ({"If-None-Match": "*"}, {"If-Match": "*"}, {"If-Match": '"7"'}):
        problem(client.get(f"{path}-none", headers=headers), 404)
    both = {"If-Match": f'"{version}"', "If-None-Match": f'"{version}"'}
    assert client.get(path, headers=both).status_code == 304, "the second is looked at where the first holds"
    problem(client.get(path, headers={**both, "If-Match": '"7"'}), 412, version=version)


def test_a_body_that_nobody_reads_is_refused(client: Client, key: str) -> None:
    for method, path in (
        ("GET", f"/v1/keys/{key}"),
        ("DELETE", f"/v1/keys/{key}"),
        ("POST", f"/v1/counters/{key}"),
        ("GET", "/v1/watch"),
        ("GET", "/v1/openapi.json"),
    ):
        answer = client.open(path, method=method, data=b"x")
        assert answer.status_code == 400 and "takes no body" in answer.get_data(as_text=True)
        ended = {"wsgi.input_terminated": True, "wsgi.input": io.BytesIO(b"x")}
        assert client.open(path, method=method, environ_overrides=ended).status_code == 400
    assert client.post(f"/v1/counters/{key}", data=b"").status_code == 200


KEYS = [
    "a b",
    "a/b//c",
    "/a",
    "a/",
    "ä",
    "日本/語",
    "%",
    "%2F",
    "a%20b",
    "?",
    "#",
    "+",
    "\x7f\n",
    "..",
    "a/../b",
    "\U0001f600",
]


@pytest.mark.parametrize("named", KEYS)
def test_a_key_is_any_text_however_it_is_encoded(client: Client, store: kv.KeyValue, named: str) -> None:
    for safe in ("", "/"):
        said(client.put(f"/v1/keys/{quote(named, safe=safe)}", data=named.encode()))
        value = store.get(named)
        assert value is not None and value.data == named.encode()
        assert client.get(f"/v1/keys/{quote(named, safe=safe)}").get_data() == named.encode()
        assert store.delete(named)


@given(st.text(min_size=1, max_size=20).filter(lambda text: not text.startswith("\x00")))
def test_no_key_is_taken_for_another(named: str) -> None:
    seen: list[str] = []

    class Seen:
        def propose(self, instruction: bytes, timeout: float = 10.0) -> Applied:
            raise NotImplementedError

        def wait_read(self, timeout: float = 5.0) -> None:
            pass

    class State(kv.KeyValueState):
        def get(self, key: str) -> kv.Value | None:
            seen.append(key)
            return None

    try:
        path = quote(named, safe="/")
    except UnicodeEncodeError:  # half a character
        return
    client = Client(api(kv.KeyValue(Seen(), State()), open_to_all=True))
    assert client.get(f"/v1/keys/{path}").status_code == 404
    assert seen == [named]


def test_a_path_that_is_no_text_is_refused(client: Client) -> None:
    assert raw(client, "/", b"", PATH_INFO="/v1/keys/\xff", CONTENT_LENGTH="0")[0] == 400


@pytest.mark.parametrize("path", ["/v1/keys/", "/v1/keys/" + "a" * 1025, "/v1/counters/"])
def test_what_can_be_no_key_is_refused(client: Client, path: str) -> None:
    method = client.post if "counters" in path else client.get
    problem(method(path), 400)


@pytest.mark.parametrize(
    "query",
    ["tll=5", "ttl=", "ttl=nan", "ttl=-1", "ttl=0", "ttl=1e9", "ttl=1&ttl=2", "timeout=61", "timeout=x", "ttl=%ff"],
)
def test_a_parameter_that_is_not_understood_is_refused(client: Client, key: str, query: str) -> None:
    problem(client.put(f"/v1/keys/{key}?{query}", data=b"1"), 400, outcome="not_applied")
    assert client.get(f"/v1/keys/{key}").status_code == 404


def test_a_key_lives_as_long_as_is_said(client: Client, store: kv.KeyValue, key: str) -> None:
    said(client.put(f"/v1/keys/{key}?ttl=0.001", data=b"1"))
    with store.watch(key, after=0) as changes:
        kinds = [next(changes).kind for _ in range(2)]
    assert kinds == ["set", "expire"]
    assert client.get(f"/v1/keys/{key}?stale=1").status_code == 404


def test_reads_may_be_less_current(client: Client, key: str) -> None:
    said(client.put(f"/v1/keys/{key}", data=b"1"))
    for query in ("stale=1", "stale=0", "max_age=60", "max_age=0", "max_age=0.5&timeout=7"):
        assert client.get(f"/v1/keys/{key}?{query}").get_data() == b"1"
    for query in ("stale=2", "stale=1&max_age=1", "max_age=-1"):
        problem(client.get(f"/v1/keys/{key}?{query}"), 400)


# -- bodies


def raw(client: Client, path: str, body: bytes, **environ: Any) -> tuple[int, dict[str, Any]]:
    """A PUT as some servers bring it."""
    built = EnvironBuilder(path, method="PUT").get_environ()
    built["wsgi.input"] = io.BytesIO(body)
    built.update(environ)
    for name in [name for name, value in environ.items() if value is None]:
        del built[name]
    chunks, status, _ = run_wsgi_app(client.application, built)
    return int(status.split()[0]), json.loads(b"".join(chunks))


def test_a_body_is_stored_whole_or_not_at_all(client: Client, key: str) -> None:
    path = f"/v1/keys/{key}"
    assert raw(client, path, b"12345", CONTENT_LENGTH=None)[0] == 411
    assert raw(client, path, b"12345", CONTENT_LENGTH="6")[0] == 400
    assert raw(client, path, b"12345", **{"CONTENT_LENGTH": "6", "wsgi.input_terminated": True})[0] == 400
    assert raw(client, path, b"1" * 100_001, CONTENT_LENGTH="100001")[0] == 413
    assert raw(client, path, b"1" * 100_001, **{"CONTENT_LENGTH": None, "wsgi.input_terminated": True})[0] == 413
    status, answer = raw(client, path, b"1", CONTENT_LENGTH="1", HTTP_CONTENT_ENCODING="gzip")
    assert (status, answer["outcome"]) == (415, "not_applied")
    assert client.get(path).status_code == 404
    assert raw(client, path, b"1" * 100_000, **{"CONTENT_LENGTH": None, "wsgi.input_terminated": True})[0] == 200
    assert raw(client, path, b"12345", **{"CONTENT_LENGTH": None, "wsgi.input_terminated": True})[0] == 200
    assert client.get(path).get_data() == b"12345"
    assert raw(client, path, b"", CONTENT_LENGTH="0")[0] == 200
    assert client.get(path).get_data() == b""


# -- several


def test_a_listing_is_of_one_moment_and_in_pages(client: Client, store: kv.KeyValue, key: str) -> None:
    store.transaction([kv.set(f"{key}/{n}", b"%d" % n) for n in range(5)])
    whole = said(client.get("/v1/keys", query_string={"prefix": f"{key}/"}))
    values, index = store.list_at(f"{key}/")
    assert whole["keys"] == [
        {"key": name, "value": base64.b64encode(value.data).decode(), "version": value.version}
        for name, value in values.items()
    ]
    assert whole["more"] is False
    cluster, _, at = whole["position"].rpartition(":")
    assert (cluster, int(at)) == (store.service.status()["cluster_id"], index)
    seen, after = [], ""
    while True:
        page = said(client.get("/v1/keys", query_string={"prefix": f"{key}/", "limit": "2", "after": after}))
        seen += [each["key"] for each in page["keys"]]
        after = seen[-1]
        if not page["more"]:
            break
    assert seen == list(values)
    for query in ("limit=0", "limit=10001", "limit=x", "after=a&after=b"):
        problem(client.get(f"/v1/keys?{query}"), 400)


def test_a_listing_has_an_end_in_bytes_too(
    client: Client, store: kv.KeyValue, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftsvc.web.keys._MAX_LISTED_BYTES", 10)
    store.transaction([kv.set(f"{key}/{n}", b"123456") for n in range(3)])
    page = said(client.get("/v1/keys", query_string={"prefix": f"{key}/"}))
    assert ([each["key"] for each in page["keys"]], page["more"]) == ([f"{key}/0"], True)


@pytest.mark.parametrize("condition", [{"If-Match": '"1"'}, {"If-None-Match": "*"}], ids=str)
def test_a_condition_that_would_not_be_looked_at_is_refused(
    client: Client, key: str, condition: dict[str, str]
) -> None:
    assert client.post(f"/v1/counters/{key}", headers=condition).status_code == 400
    operations = [{"op": "set", "key": key, "value": ""}]
    assert client.post("/v1/transactions", json=operations, headers=condition).status_code == 400
    part = {"Content-Range": "bytes 0-1/10"}
    assert client.put(f"/v1/keys/{key}", data=b"ab", headers=part).status_code == 400
    assert client.get(f"/v1/keys/{key}").status_code == 404


def test_a_counter_counts(client: Client, store: kv.KeyValue, key: str) -> None:
    path = f"/v1/counters/{key}"
    assert said(client.post(path))["value"] == 1
    assert said(client.post(f"{path}?delta=-5"))["value"] == -4
    assert said(client.post(f"/v1/counters/{key}-2?initial=40&delta=2"))["value"] == 42
    assert client.get(f"/v1/keys/{key}").get_data() == b"-4"
    for query in ("delta=x", f"delta={2**63}", "delta=1.5"):
        problem(client.post(f"{path}?{query}"), 400)
    store.set(key, b"words")
    problem(client.post(path), 409, code="CounterError", key=key, outcome="not_applied")


def test_a_transaction_is_done_whole_or_not_at_all(client: Client, store: kv.KeyValue, key: str) -> None:
    a, b = f"{key}/a", f"{key}/b"
    done = said(
        transact(
            client,
            [
                {"op": "if_not_exists", "key": a},
                {"op": "set", "key": a, "value": base64.b64encode(b"\xff").decode(), "ttl": 1000},
                {"op": "set", "key": b, "text": "5"},
                {"op": "incr", "key": b, "delta": 2},
            ],
        )
    )
    assert done["answer"] == 7
    assert store.get_many([a, b]) == {a: kv.Value(b"\xff", done["version"]), b: kv.Value(b"7", done["version"])}
    refused = transact(client, [{"op": "if_version", "key": a, "version": 1}, {"op": "delete", "key": b}])
    problem(refused, 409, code="ConflictError", key=a, version=done["version"], outcome="not_applied")
    assert said(transact(client, [{"op": "touch", "key": a, "ttl": None}]))["answer"] is True
    assert said(transact(client, [{"op": "delete", "key": f"{key}/none"}]))["answer"] is False
    assert said(transact(client, [{"op": "delete", "key": a}, {"op": "delete", "key": b}]))["answer"] is True
    assert store.list(f"{key}/") == {}


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        [1],
        [{"op": "allow", "key": "a"}],
        [{"op": "delete"}],
        [{"op": "delete", "key": 7}],
        [{"op": "delete", "key": ""}],
        [{"op": "delete", "key": "\ud800"}],
        [{"op": "delete", "key": "a", "tll": 5}],
        [{"op": "set", "key": "a"}],
        [{"op": "set", "key": "a", "value": "?"}],
        [{"op": "set", "key": "a", "text": "\ud800"}],
        [{"op": "set", "key": "a", "text": "a", "value": "YQ=="}],
        [{"op": "set", "key": "a", "text": "a", "ttl": "5"}],
        [{"op": "set", "key": "a", "text": "a", "ttl": 0}],
        [{"op": "set", "key": "a", "text": "a", "ttl": True}],
        [{"op": "incr", "key": "a", "delta": 1.5}],
        [{"op": "incr", "key": "a", "delta": 2**63}],
        [{"op": "if_version", "key": "a", "version": -1}],
        [{"op": "if_version", "key": "a", "version": True}],
        [{"op": "touch", "key": "a"}],
        [{"op": "delete", "key": "a"}] * 1001,
    ],
    ids=lambda body: json.dumps(body)[:60],
)
def test_a_transaction_that_makes_no_sense_is_refused(client: Client, body: object) -> None:
    problem(transact(client, body), 400, outcome="not_applied")


@pytest.mark.parametrize(
    "text", [" ", "[", "[NaN]", '[{"op": "delete", "op": "set", "key": "a"}]', "[" * 99_000, "\xff"]
)
def test_a_transaction_that_is_no_json_is_refused(client: Client, text: str) -> None:
    body = text.encode("latin-1")
    problem(client.post("/v1/transactions", data=body, content_type="application/json"), 400, outcome="not_applied")


def test_a_form_of_another_page_is_no_transaction(client: Client) -> None:
    problem(client.post("/v1/transactions", data=b"[]", content_type="text/plain"), 415)


# -- errors


class Failing:
    """Whatever is done ends so."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def propose(self, instruction: bytes, timeout: float = 10.0) -> Applied:
        raise self.error

    def wait_read(self, timeout: float = 5.0) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "outcome"),
    [
        (NotApplied("secret"), 503, "not_applied"),
        (OutcomeUnknown("secret"), 504, "unknown"),
        (kv.QuotaExceeded("secret"), 507, "not_applied"),
        (StorageError("secret"), 500, "unknown"),
        (KeyError("secret"), 500, "unknown"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Exception) else None,
)
def test_an_error_says_what_is_known_of_the_outcome(error: Exception, status: int, outcome: str) -> None:
    client = Client(api(kv.KeyValue(Failing(error), kv.KeyValueState()), open_to_all=True))
    answer = client.put("/v1/keys/a", data=b"1")
    problem(answer, status, outcome=outcome)
    assert ("Retry-After" in answer.headers) == (status == 503)
    assert "secret" not in answer.get_data(as_text=True)
    assert "outcome" not in problem(client.get("/v1/keys/a"), status)


def test_it_is_mounted_below_any_prefix(store: kv.KeyValue, key: str) -> None:
    mounted = DispatcherMiddleware(Response("the application"), {"/a/store": api(store, open_to_all=True)})
    client = Client(mounted)
    said(client.put(f"/a/store/v1/keys/{key}/b", data=b"1"))
    assert client.get(f"/a/store/v1/keys/{key}/b").get_data() == b"1"
    assert said(client.get("/a/store/v1/openapi.json"))["servers"] == [{"url": "/a/store"}]
    assert client.get("/").get_data() == b"the application"


def test_below_a_namespace_nothing_else_is_seen(store: kv.KeyValue, key: str) -> None:
    client = Client(api(store.namespace(f"{key}/"), open_to_all=True))
    said(client.put("/v1/keys/a", data=b"1"))
    assert [each["key"] for each in said(client.get("/v1/keys"))["keys"]] == ["a"]
    assert store.get(f"{key}/a") is not None


@pytest.mark.parametrize("by_directory", [True, False])
def test_a_listing_of_much_comes_in_pages_where_no_member_is(tmp_path: Path, by_directory: bool) -> None:
    addr, state = free_address(), kv.KeyValueState()
    secret = raftsvc.ClientKey("web", "a text that is long enough, of a client", "write")
    service = raftsvc.start(addr, tmp_path, state=state, secret=SECRET, listen=addr, client_keys=[secret])
    service.init()
    there = kv.KeyValue(service, state)
    values = {f"{n:02}": bytes([n]) * 300_000 for n in range(30)}
    for name, value in values.items():
        there.set(name, value, timeout=PATIENCE)
    store = raftsvc.connect(tmp_path) if by_directory else raftsvc.connect(addr, key=f"web:{secret.key}")
    client = Client(api(store, open_to_all=True))
    found: dict[str, bytes] = {}
    pages = 0
    while True:
        page = said(client.get("/v1/keys", query_string={"after": max(found, default=""), "timeout": 60}))
        assert 0 < len(page["keys"]) < 30
        found |= {each["key"]: base64.b64decode(each["value"]) for each in page["keys"]}
        pages += 1
        if not page["more"]:
            break
    assert found == values and pages > 10
    assert list(store.list(limit=20, max_bytes=700_000)) == ["00", "01", "02"]
    assert list(there.list(max_bytes=0)) == ["00"], "one at least"
    store.service.close()  # type: ignore[attr-defined]
    service.stop()
