"""What is sent again under one Idempotency-Key takes effect once, and is answered the same."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from werkzeug.test import Client
from werkzeug.test import TestResponse as Answer

from raftsvc import kv
from raftsvc.errors import NotApplied, OutcomeUnknown, ReadTimeoutError, Rejected
from raftsvc.keys import ClientKey
from raftsvc.results import Applied
from raftsvc.web import api
from tests.service.harness import PATIENCE, in_background
from tests.web.test_keys import problem, said, transact

_numbers = itertools.count(1)


@pytest.fixture
def client(store: kv.KeyValue) -> Client:
    return Client(api(store, open_to_all=True))


@pytest.fixture
def key() -> str:
    return f"repeat-{next(_numbers)}"


def same(first: Answer, again: Answer) -> dict[str, Any]:
    """What both say; the second as a repetition."""
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert first.headers.get("ETag") == again.headers.get("ETag")
    answer: dict[str, Any] = said(first)
    assert said(again) == answer
    return answer


def test_a_write_that_is_sent_again_is_done_once(client: Client, store: kv.KeyValue, key: str) -> None:
    headers = {"Idempotency-Key": key, "If-None-Match": "*"}
    first = client.put(f"/v1/keys/{key}", data=b"1", headers=headers)
    said(client.put(f"/v1/keys/{key}", data=b"of another"))
    same(first, client.put(f"/v1/keys/{key}?timeout=9", data=b"1", headers=headers))
    assert store[key] == b"of another"


def test_a_counter_counts_once_and_says_what_it_did(client: Client, store: kv.KeyValue, key: str) -> None:
    for sent in range(3):
        headers = {"Idempotency-Key": f'"{key}-{sent}"'}
        first = client.post(f"/v1/counters/{key}?delta=2", headers=headers)
        assert same(first, client.post(f"/v1/counters/{key}?delta=2", headers=headers))["value"] == 2 * (sent + 1)
    assert store[key] == b"6"


def test_a_deletion_says_again_whether_there_was_a_key(client: Client, store: kv.KeyValue, key: str) -> None:
    store.set(key, b"1")
    headers = {"Idempotency-Key": key}
    first = client.delete(f"/v1/keys/{key}", headers=headers)
    store.set(key, b"2")
    assert same(first, client.delete(f"/v1/keys/{key}", headers=headers))["deleted"] is True
    assert store[key] == b"2"


@pytest.mark.parametrize(
    ("operations", "answer"),
    [
        (
            [
                {"op": "set", "key": "?", "text": "5"},
                {"op": "incr", "key": "?"},
                {"op": "set", "key": "?", "text": "x"},
            ],
            6,
        ),
        ([{"op": "delete", "key": "?"}, {"op": "incr", "key": "?", "initial": 9}], 10),
        ([{"op": "incr", "key": "?"}, {"op": "touch", "key": "?", "ttl": 100}, {"op": "incr", "key": "?"}], 5),
        ([{"op": "touch", "key": "?", "ttl": 100}], True),
        ([{"op": "delete", "key": "?"}], True),
        ([{"op": "set", "key": "?", "text": "x"}], True),
    ],
    ids=str,
)
def test_a_transaction_says_again_what_it_did(
    client: Client, store: kv.KeyValue, key: str, operations: list[dict[str, Any]], answer: object
) -> None:
    meant = [{**each, "key": key} for each in operations]
    store.set(key, b"3")
    plain = said(transact(client, meant))
    store.set(key, b"3")
    first = transact(client, meant, **{"Idempotency-Key": key})
    after = store.get(key)
    found = same(first, transact(client, meant, **{"Idempotency-Key": key}))
    assert found["answer"] == plain["answer"] == answer
    assert store.get(key) == after


def test_a_key_that_is_used_for_something_else_is_refused(client: Client, store: kv.KeyValue, key: str) -> None:
    headers = {"Idempotency-Key": key}
    said(client.put(f"/v1/keys/{key}", data=b"1", headers=headers))
    for path, data, more in (
        (f"/v1/keys/{key}", b"2", {}),
        (f"/v1/keys/{key}2", b"1", {}),
        (f"/v1/keys/{key}?ttl=5", b"1", {}),
        (f"/v1/keys/{key}", b"1", {"If-None-Match": "*"}),
    ):
        answer = client.put(path, data=data, headers={**headers, **more})
        problem(answer, 422, code="IdempotencyKeyReused", outcome="not_applied")
    assert store[key] == b"1"
    assert f"{key}2" not in store


def test_a_refusal_is_no_outcome(client: Client, store: kv.KeyValue, key: str) -> None:
    headers = {"Idempotency-Key": key, "If-None-Match": "*"}
    store.set(key, b"0")
    problem(client.put(f"/v1/keys/{key}", data=b"1", headers=headers), 412)
    store.set(f"{key}-words", b"words")
    problem(client.post(f"/v1/counters/{key}-words", headers={"Idempotency-Key": f"{key}-2"}), 409)
    store.delete(key)
    said(client.put(f"/v1/keys/{key}", data=b"1", headers=headers))


def test_two_at_once_are_one(client: Client, store: kv.KeyValue, key: str) -> None:
    def send() -> Answer:
        return client.post(f"/v1/counters/{key}", headers={"Idempotency-Key": key})

    answers = [each() for each in [in_background(send) for _ in range(6)]]
    assert {said(each)["value"] for each in answers} == {1}
    assert sum("Idempotent-Replayed" not in each.headers for each in answers) == 1
    assert store[key] == b"1"


def test_of_two_bodies_at_once_one_is_refused(client: Client, store: kv.KeyValue, key: str) -> None:
    def send(body: bytes) -> Answer:
        return client.put(f"/v1/keys/{key}", data=body, headers={"Idempotency-Key": key})

    calls = [in_background(lambda body=body: send(body)) for body in (b"1", b"2")]  # type: ignore[misc]
    assert sorted(each().status_code for each in calls) == [200, 422]


def test_many_who_count_at_once_are_each_counted_once(client: Client, store: kv.KeyValue, key: str) -> None:
    def send(number: int) -> list[Answer]:
        headers = {"Idempotency-Key": f"{key}-{number}"}
        return [client.post(f"/v1/counters/{key}?timeout=60", headers=headers) for _ in range(2)]

    pairs = [each() for each in [in_background(lambda n=n: send(n)) for n in range(8)]]  # type: ignore[misc]
    assert sorted(same(*pair)["value"] for pair in pairs) == list(range(1, 9))


class Late:
    """Says of one write that nobody knows, though it was done, or will be when the next is."""

    def __init__(self, store: kv.KeyValue, is_done: bool) -> None:
        self.store = store
        self.is_done = is_done
        self.held: bytes | None = None
        self.is_troubled = True

    def propose(self, instruction: bytes, timeout: float = 10.0) -> Applied:
        service = self.store.service
        if self.is_troubled:
            self.is_troubled = False
            if self.is_done:
                service.propose(instruction, timeout)
            else:
                self.held = instruction
            raise OutcomeUnknown("nobody knows")
        applied: Applied = service.propose(instruction, timeout)
        return applied

    def arrive(self) -> None:
        """What was on its way for long."""
        assert self.held is not None
        with pytest.raises(Rejected, match="condition 0"):
            self.store.service.propose(self.held)

    def wait_read(self, timeout: float = 5.0) -> None:
        self.store.service.wait_read(timeout)


@pytest.mark.parametrize("is_done", [True, False], ids=["done", "on its way"])
def test_what_nobody_knows_of_is_sent_again_and_done_once(store: kv.KeyValue, key: str, is_done: bool) -> None:
    late = Late(store, is_done)
    client = Client(api(kv.KeyValue(late, store._state), open_to_all=True))  # type: ignore[arg-type]
    headers = {"Idempotency-Key": key}
    problem(client.post(f"/v1/counters/{key}", headers=headers), 504, outcome="unknown")
    again = client.post(f"/v1/counters/{key}", headers=headers)
    assert said(again)["value"] == 1
    assert ("Idempotent-Replayed" in again.headers) == is_done
    if not is_done:
        late.arrive()
    assert store[key] == b"1"


def test_a_write_that_others_are_always_before_is_certainly_not_done(store: kv.KeyValue, key: str) -> None:
    class Overtaken(Late):
        def propose(self, instruction: bytes, timeout: float = 10.0) -> Applied:
            self.store.incr(key)
            applied: Applied = self.store.service.propose(instruction, PATIENCE)  # its outcome is always known
            return applied

    client = Client(api(kv.KeyValue(Overtaken(store, True), store._state), open_to_all=True))  # type: ignore[arg-type]
    answer = client.post(f"/v1/counters/{key}?timeout=0.3&delta=1000", headers={"Idempotency-Key": key})
    problem(answer, NotApplied.http_status, outcome="not_applied")
    assert int(store[key]) < 1000


def test_a_write_before_which_nothing_can_be_read_is_not_done(store: kv.KeyValue, key: str) -> None:
    class Silent(Late):
        def wait_read(self, timeout: float = 5.0) -> None:
            raise ReadTimeoutError("nobody answers")

    client = Client(api(kv.KeyValue(Silent(store, True), store._state), open_to_all=True))  # type: ignore[arg-type]
    answer = client.put(f"/v1/keys/{key}", data=b"1", headers={"Idempotency-Key": key})
    problem(answer, 503, outcome="not_applied")
    assert key not in store


def test_the_keys_of_one_are_not_those_of_another(store: kv.KeyValue, key: str) -> None:
    keys = [ClientKey(name, f"{name}-0123456789abcdef", "write") for name in ("a", "b")]
    client = Client(api(store, keys=keys))
    for each in keys:
        headers = {"Idempotency-Key": key, "Authorization": f"Bearer {each.key}"}
        assert "Idempotent-Replayed" not in client.post(f"/v1/counters/{key}", headers=headers).headers
    assert store[key] == b"2"


def test_what_is_kept_of_it_is_nobody_s_to_see(client: Client, store: kv.KeyValue, key: str) -> None:
    said(client.put(f"/v1/keys/{key}", data=b"1", headers={"Idempotency-Key": key}))
    record = next(iter(store.list("\x00")))
    assert all(not each["key"].startswith("\x00") for each in said(client.get("/v1/keys?limit=10000"))["keys"])
    problem(client.get("/v1/keys/%00idempotency/x"), 403)
    problem(client.delete(f"/v1/keys/{record.replace(chr(0), '%00')}"), 403, outcome="not_applied")
    problem(client.get("/v1/keys?prefix=%00"), 403)
    problem(client.get("/v1/watch?wait=0&prefix=%00i"), 403)
    problem(transact(client, [{"op": "delete", "key": record}]), 403)
    assert record in store


def test_what_is_kept_of_it_ends(store: kv.KeyValue, key: str) -> None:
    client = Client(api(store, open_to_all=True, repeats_ttl=0.001))
    with store.watch("\x00") as changes:
        said(client.post(f"/v1/counters/{key}", headers={"Idempotency-Key": key}))
        assert [next(changes).kind for _ in range(2)] == ["set", "expire"]
