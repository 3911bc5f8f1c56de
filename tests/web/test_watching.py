"""Being told over HTTP what changes: nothing twice, nothing missed, and nobody kept for ever."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client, EnvironBuilder, run_wsgi_app

import raftsvc
from raftsvc import kv
from raftsvc.keys import ClientKey
from raftsvc.web import Api, api, watching
from raftsvc.web.callers import Tokens
from tests.service.harness import PATIENCE, SECRET, eventually, free_address, in_background
from tests.web.test_keys import problem, said, transact

_numbers = itertools.count(1)


@pytest.fixture
def application(store: kv.KeyValue) -> Iterator[Api]:
    made = api(store, open_to_all=True, max_watchers=2, heartbeat=PATIENCE)
    yield made
    made.close()
    assert made.watchers == 0, "a place was not given back"


@pytest.fixture
def client(application: Api) -> Client:
    return Client(application)


@pytest.fixture
def key() -> str:
    return f"watched-{next(_numbers)}/"


def poll(client: Client, key: str, after: str | None, wait: float = PATIENCE) -> dict[str, Any]:
    query = {"prefix": key, "wait": str(wait), **({} if after is None else {"after": after})}
    found: dict[str, Any] = said(client.get("/v1/watch", query_string=query))
    return found


class Stream:
    """An open stream of events, message by message."""

    def __init__(self, application: Api, query: dict[str, str], **headers: str) -> None:
        builder = EnvironBuilder("/v1/watch", query_string=query, headers={"Accept": "text/event-stream", **headers})
        self.chunks, status, self.headers = run_wsgi_app(application, builder.get_environ())
        self.status = int(status.split()[0])
        self._iterator = iter(self.chunks)

    def next(self) -> dict[str, str]:
        """The fields of the next message."""
        text = next(self._iterator).decode()
        assert text.endswith("\n\n")
        fields = [line.partition(": ") for line in text.strip().split("\n")]
        return {name: value for name, _, value in fields}

    def close(self) -> None:
        self.chunks.close()  # type: ignore[attr-defined]


def test_a_poll_is_answered_once_something_happens(client: Client, store: kv.KeyValue, key: str) -> None:
    begin = poll(client, key, None, wait=0)
    assert begin["events"] == []
    waiting = in_background(lambda: poll(client, key, begin["position"]))
    version = store.set(f"{key}a", b"\xff")
    found = waiting()
    value = base64.b64encode(b"\xff").decode()
    event = {"kind": "set", "key": f"{key}a", "value": value, "index": version, "previous_version": None}
    assert found["events"] == [event]
    gone = store.transaction([kv.delete(f"{key}a"), kv.set(f"{key}b", b"2")])
    more = poll(client, key, found["position"])
    assert [(each["kind"], each["index"], each["previous_version"]) for each in more["events"]] == [
        ("delete", gone, version),
        ("set", gone, None),
    ]
    assert poll(client, key, more["position"], wait=0.01)["events"] == []


def test_after_a_listing_nothing_is_missed(client: Client, store: kv.KeyValue, key: str) -> None:
    store.set(f"{key}a", b"1")
    listed = said(client.get("/v1/keys", query_string={"prefix": key}))
    store.set(f"{key}b", b"2")
    assert [each["key"] for each in poll(client, key, listed["position"])["events"]] == [f"{key}b"]


def test_what_the_api_keeps_of_its_own_is_told_to_nobody(client: Client, store: kv.KeyValue) -> None:
    begin = poll(client, "", None, wait=0)["position"]
    said(client.put("/v1/keys/told", data=b"1", headers={"Idempotency-Key": "told"}))
    found = poll(client, "", begin)
    assert [each["key"] for each in found["events"]] == ["told"]
    store.set("\x00idempotency/x", b"")
    assert poll(client, "", found["position"], wait=0.01)["events"] == []


@pytest.mark.parametrize("after", ["7", "x", "a:b", ":7", "c1:-7", "c1:9999999999999999999"])
def test_a_position_is_one_that_was_said(client: Client, after: str) -> None:
    problem(client.get("/v1/watch", query_string={"after": after}), 400)


def test_a_position_that_is_not_kept_is_gone(client: Client, store: kv.KeyValue) -> None:
    answer = client.get("/v1/watch", query_string={"after": "0" * 32 + ":7"})
    found = problem(answer, 410, code="Compacted", kept_after=None)
    assert "GET /v1/keys" in found["do"]
    assert Stream(client.application, {"after": "0" * 32 + ":7"}).status == 410


@pytest.mark.parametrize("query", ["wait=61", "wait=x", "limit=1"])
def test_a_watch_that_makes_no_sense_is_refused(client: Client, query: str) -> None:
    problem(client.get(f"/v1/watch?{query}"), 400)


def test_a_stream_tells_whole_entries_and_goes_on_elsewhere(application: Api, store: kv.KeyValue, key: str) -> None:
    stream = Stream(application, {"prefix": key})
    assert (stream.status, stream.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
    first = stream.next()
    assert set(first) == {"retry", "id"}
    version = store.transaction([kv.set(f"{key}a", b"1"), kv.set(f"{key}b", b"2")])
    message = stream.next()
    assert message["event"] == "change"
    assert message["id"].endswith(f":{version}")
    assert [(each["key"], each["index"]) for each in json.loads(message["data"])] == [
        (f"{key}a", version),
        (f"{key}b", version),
    ]
    store.set(f"{key}c", b"3")
    stream.close()
    assert application.watchers == 0
    again = Stream(application, {"prefix": key, "after": first["id"]}, **{"Last-Event-ID": message["id"]})
    again.next()
    assert [each["key"] for each in json.loads(again.next()["data"])] == [f"{key}c"]
    again.close()


def test_a_stream_in_which_nothing_happens_is_fresh(store: kv.KeyValue, key: str) -> None:
    application = api(store, open_to_all=True, heartbeat=0.01)
    stream = Stream(application, {"prefix": key})
    first = stream.next()
    version = store.set("elsewhere", b"1")
    fresh = eventually(lambda: (message := stream.next())["id"].endswith(f":{version}") and message, "a fresh id")
    assert "event" not in fresh and "data" not in fresh
    assert first["id"] != fresh["id"]
    stream.close()


def test_a_stream_that_is_ahead_of_its_node_never_says_an_earlier_position(store: kv.KeyValue, key: str) -> None:
    """It was begun at another node, which is further: neither a fresh id nor an event takes the client back."""
    application = api(store, open_to_all=True, heartbeat=0.01)
    begin = said(Client(application).get("/v1/watch?wait=0"))["position"]
    cluster, _, digits = begin.rpartition(":")
    index = int(digits) + 5
    stream = Stream(application, {"prefix": key}, **{"Last-Event-ID": f"{cluster}:{index}"})
    messages = [stream.next() for _ in range(3)]
    while store.set(f"{key}a", b"") < index:
        messages.append(stream.next())
    version = store.set(f"{key}b", b"")
    found = eventually(lambda: (message := stream.next()).get("event") and message, "an event")
    messages.append(found)
    stream.close()
    assert [each["key"] for each in json.loads(found["data"])] == [f"{key}b"]
    indexes = [int(message["id"].rpartition(":")[2]) for message in messages]
    assert indexes == sorted(indexes)
    assert (indexes[0], indexes[-1]) == (index, version)


def test_as_many_may_watch_as_may(application: Api, client: Client, key: str) -> None:
    streams = [Stream(application, {"prefix": key}) for _ in range(2)]
    assert [stream.status for stream in streams] == [200, 200]
    assert application.watchers == 2
    refused = client.get("/v1/watch?wait=0")
    problem(refused, 503, code="TooManyWatchers")
    assert "Retry-After" in refused.headers
    assert Stream(application, {}).status == 503
    streams[0].close()  # though it was never read
    streams[0].close()
    poll(client, key, None, wait=0)
    streams[1].close()
    assert application.watchers == 0


def test_what_is_refused_takes_no_place(application: Api, client: Client) -> None:
    for _ in range(3):
        assert client.get("/v1/watch?after=x:1").status_code == 410
    assert application.watchers == 0


def test_who_watches_is_let_go_when_it_is_closed(application: Api, client: Client, key: str) -> None:
    stream = Stream(application, {"prefix": key})
    stream.next()
    rest = in_background(lambda: list(stream._iterator))
    waiting = in_background(lambda: poll(client, key, None))
    eventually(lambda: application.watchers == 2, "both watch")
    application.close()
    assert waiting()["events"] == []
    rest()
    stream.close()
    assert application.watchers == 0
    problem(client.get("/v1/watch"), 503)
    said(transact(client, [{"op": "delete", "key": "a"}]))


def test_who_watches_is_let_go_when_the_service_stops(tmp_path: Path) -> None:
    state = kv.KeyValueState()
    service = raftsvc.start(free_address(), tmp_path, state=state, secret=SECRET)
    try:
        service.init()
        application = api(kv.KeyValue(service, state), open_to_all=True, heartbeat=PATIENCE)
        stream = Stream(application, {})
        stream.next()
        rest = in_background(lambda: list(stream._iterator))
        service.stop()
        rest()
        stream.close()
        assert application.watchers == 0
    finally:
        service.stop()


def test_a_client_that_is_no_member_cannot_watch_and_does_all_else(tmp_path: Path) -> None:
    key = raftsvc.ClientKey("web", "web-0123456789abcdef", "write")
    state = kv.KeyValueState()
    addr = free_address()
    service = raftsvc.start(addr, tmp_path, state=state, secret=SECRET, listen=addr, client_keys=[key])
    far = raftsvc.connect(addr, key=f"{key.name}:{key.key}")
    try:
        service.init()
        client = Client(api(far, open_to_all=True))
        headers = {"Idempotency-Key": "1"}
        assert said(client.post("/v1/counters/n?timeout=60", headers=headers))["value"] == 1
        assert said(client.post("/v1/counters/n?timeout=60", headers=headers))["value"] == 1
        assert client.get("/v1/keys/n?timeout=60").get_data() == b"1"
        listed = said(client.get("/v1/keys?timeout=60"))
        assert ([each["key"] for each in listed["keys"]], "position" in listed) == (["n"], False)
        problem(client.get("/v1/watch"), 501)
    finally:
        far.service.close()
        service.stop()


def test_a_poll_ends_once_its_client_is_gone(
    application: Api, client: Client, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_LOOK_SECONDS", 0.01)
    looks = iter([False, False, True])
    query = {"prefix": key, "wait": str(PATIENCE)}
    answer = client.get("/v1/watch", query_string=query, environ_overrides={"raftsvc.is_gone": lambda: next(looks)})
    assert (said(answer)["events"], application.watchers, list(looks)) == ([], 0, [])


def test_a_stream_says_nothing_more_once_who_may_what_was_changed(store: kv.KeyValue, key: str) -> None:
    tokens = Tokens([ClientKey("anna", "anna-0123456789abcdef", "read", key)])
    application = api(store, authorize=tokens, heartbeat=PATIENCE)
    shown = {"Authorization": "Bearer anna-0123456789abcdef"}

    def stream(after: str) -> Stream:
        return Stream(application, {"prefix": key, "after": after}, **shown)

    position = said(Client(application).get("/v1/keys", query_string={"prefix": key}, headers=shown))["position"]
    streams = [stream(position) for _ in range(2)]
    for each in streams:
        position = each.next()["id"]
    with pytest.raises(raftsvc.ConfigurationError):
        tokens.renew([])
    tokens.renew([ClientKey("anna", "anna-0123456789abcdef", "read", f"{key}hers/")])
    application.end_streams()
    store.set(f"{key}secret", b"1", timeout=PATIENCE)
    for each in streams:
        with pytest.raises(StopIteration):
            each.next()
        each.chunks.close()  # type: ignore[attr-defined]
    assert stream(position).status == 403, "with the rights of now"
    hers = Stream(application, {"prefix": f"{key}hers/", "after": position}, **shown)
    assert hers.next()["id"]
    store.set(f"{key}hers/a", b"1", timeout=PATIENCE)
    assert "change" in str(hers.next())
    hers.chunks.close()  # type: ignore[attr-defined]
    assert application.watchers == 0
