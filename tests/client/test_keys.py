"""What a client key gives, and what it never does: to speak as a member, to go beyond its right, to be sent again."""

from __future__ import annotations

import io
import json
import secrets
from collections.abc import Callable
from typing import Any

import pytest

import raftsvc
from raftsvc import kv
from raftsvc.transport import Authenticator, Envelope, Network
from raftsvc.transport.wire import PROTOCOL_VERSION, UnsignedError
from tests.client.harness import (
    ADMIN,
    LIMITED,
    LOSE_REQUEST,
    READER,
    SECRET,
    WRITER,
    Members,
    Node,
    is_instruction,
    once_of,
    text_of,
)
from tests.service.harness import PATIENCE, eventually, free_address

MakeMembers = Callable[..., Members]


def test_a_key_that_nobody_knows_has_one_clear_error_at_once(make_members: MakeMembers) -> None:
    members = make_members(2)
    for text in (f"writer:{SECRET}", "writer:another text, that is long enough", f"nobody:{WRITER.key}"):
        store = raftsvc.connect(members.addrs, key=text)
        for call in (
            lambda: store.set("a", b"", timeout=PATIENCE),  # noqa: B023 - it is called at once
            lambda: store.get("a", PATIENCE),  # noqa: B023
            lambda: store.service.status(PATIENCE),  # noqa: B023
        ):
            with pytest.raises(raftsvc.UnknownKeyError, match="client_keys"):
                call()
    assert members.connect().get("a") is None


def test_without_client_keys_nobody_is_let_in(make_members: MakeMembers) -> None:
    members = make_members(client_keys=None)
    with pytest.raises(raftsvc.UnknownKeyError):
        members.connect().get("a", PATIENCE)


def test_a_right_is_enforced_before_anything_is_proposed(make_members: MakeMembers) -> None:
    members = make_members()
    node = members.nodes[0]
    reader, writer, admin = members.connect(READER), members.connect(WRITER), members.connect(ADMIN)
    admin.set("a", b"1", timeout=PATIENCE)
    writer.set("a", b"2")
    before = node.service.status()["commit_index"]
    forbidden: list[Callable[[], object]] = [
        lambda: reader.set("a", b"3"),
        lambda: reader.incr("n"),
        lambda: reader.service.exec(b""),
        lambda: reader.allow("127.0.0.1:9"),
        lambda: writer.allow("127.0.0.1:9"),
        lambda: writer.disallow("127.0.0.1:9"),
        lambda: writer.transaction([kv.max_state_bytes(1)]),
        lambda: writer.transaction([kv.set("b", b""), kv.allow("127.0.0.1:9")]),
    ]
    for call in forbidden:
        with pytest.raises(raftsvc.NotPermittedError):
            call()
    # But for the sessions of those who may write, of which both are open.
    assert node.service.status()["commit_index"] == before
    assert reader.get("a") == node.kv.get("a")
    admin.allow("127.0.0.1:9")
    assert reader.allowed() == {"127.0.0.1:9"}


def test_a_prefix_is_enforced_for_what_is_written_and_what_is_read(make_members: MakeMembers) -> None:
    members = make_members()
    node = members.nodes[0]
    node.kv.set("jobs", b"before", timeout=PATIENCE)
    node.kv.set("other", b"1")
    limited = members.connect(LIMITED)
    limited.set("jobs/1", b"x")
    limited.transaction([kv.if_not_exists("jobs/2"), kv.set("jobs/2", b"y", ttl=60), kv.touch("jobs/1", 60)])
    assert limited.incr("jobs/n") == 1
    assert list(limited.list("jobs/")) == ["jobs/1", "jobs/2", "jobs/n"]
    assert list(limited.namespace("jobs/").list("1")) == ["1"]
    before = node.service.status()["commit_index"]
    forbidden: list[Callable[[], object]] = [
        lambda: limited.set("jobs", b"3"),
        lambda: limited.delete("other"),
        lambda: limited.touch("other", 1),
        lambda: limited.incr("other"),
        lambda: limited.transaction([kv.set("jobs/3", b""), kv.set("other", b"")]),
        lambda: limited.set("jobs/3", b"", kv.if_not_exists("other")),
        lambda: limited.allow("127.0.0.1:9"),
        lambda: limited.transaction([kv.max_state_bytes(1)]),
        lambda: limited.get("other"),
        lambda: limited.get_stale("other"),
        lambda: limited.get_many(["jobs/1", "other"]),
        limited.list,
        lambda: limited.list("job"),
        lambda: limited.list("", after="jobs/"),
        limited.allowed,
    ]
    for call in forbidden:
        with pytest.raises(raftsvc.NotPermittedError):
            call()
    assert node.service.status()["commit_index"] == before


def test_what_makes_no_sense_is_refused_before_it_is_proposed(make_members: MakeMembers) -> None:
    members = make_members()
    store = members.connect(ADMIN)
    store.set("a", b"", timeout=PATIENCE)
    before = members.nodes[0].service.status()["commit_index"]
    connection = store.service
    with pytest.raises(raftsvc.Rejected):
        connection.query(b"\xff\x00\x00")
    with pytest.raises(raftsvc.Rejected):
        connection.exec(b"no transaction", PATIENCE)
    assert members.nodes[0].service.status()["commit_index"] == before


class Json(raftsvc.BaseState):
    """Of which whatever is no JSON halts all nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.data: list[object] = []

    def apply(self, data: bytes, index: int) -> bool:
        self.data.append(json.loads(data))
        return True

    def snapshot(self) -> tuple[bytes, int]:
        return json.dumps(self.data).encode(), self.applied_index()

    def restore_snapshot(self, data: bytes, index: int) -> None:
        self.data = json.loads(data)
        self.set_applied_index(index)

    def is_allowed_member(self, addr: str) -> bool:
        return True


@pytest.mark.parametrize("make_state", [Json, lambda: raftsvc.States(mine=Json(), kv=kv.KeyValueState())])
def test_what_is_written_for_the_store_is_brought_to_no_other_state(
    make_members: MakeMembers, make_state: Callable[[], raftsvc.State]
) -> None:
    members = make_members(make_state=make_state)
    node = members.nodes[0]
    store = members.connect(ADMIN)
    store.service.wait_read(PATIENCE)
    calls: list[Callable[[], object]] = [
        lambda: store.set("a", b"1"),
        lambda: store.allow("127.0.0.1:9"),
        lambda: store.claim("x", ttl=10),
        lambda: store.queue("q").put(b"x"),
        lambda: store.get("a"),
        lambda: store.get_stale("a"),
    ]
    for call in calls:
        with pytest.raises(raftsvc.NotPermittedError, match="no key-value store"):
            call()
    if isinstance(node.state, Json):
        assert store.service.exec(b"[1]"), "what its service is given is for whatever State there is"
        assert node.state.data == [[1]]
    assert node.service.err() is None


def test_keys_that_make_no_sense_are_refused_when_they_are_made_or_given(make_members: MakeMembers) -> None:
    for wrong in (
        {"name": "with:colon"},
        {"name": ""},
        {"key": "short"},
        {"key": " " * 16},
        {"key": "\ud800" * 16},
        {"rights": "everything"},
        {"prefix": None},
    ):
        with pytest.raises(raftsvc.ConfigurationError):
            raftsvc.ClientKey(**{"name": "n", "key": "k" * 16, **wrong})  # type: ignore[arg-type]
    with pytest.raises(raftsvc.ConfigurationError, match="secret"):
        make_members(client_keys=[raftsvc.ClientKey("n", SECRET)])
    with pytest.raises(raftsvc.ConfigurationError, match="ClientKey"):
        make_members(client_keys=["n:" + "k" * 16])
    with pytest.raises(raftsvc.ConfigurationError, match="name:key"):
        raftsvc.connect("127.0.0.1:1", key="k" * 16)
    with pytest.raises(raftsvc.ConfigurationError):
        raftsvc.connect([], key="n:" + "k" * 16)
    assert WRITER.key not in repr(WRITER)


def test_a_key_is_changed_while_both_are_known(make_members: MakeMembers) -> None:
    new = raftsvc.ClientKey("writer", "the text that comes next, for writers", "write")
    members = make_members(client_keys=[WRITER, new])
    assert members.connect(WRITER).incr("n", timeout=PATIENCE) == 1
    assert members.connect(new).incr("n", timeout=PATIENCE) == 2


# -- no client is a member


def signed_by(text: str | bytes) -> Network:
    return Network(None, Authenticator(text, None, False), PATIENCE, PATIENCE)


@pytest.mark.parametrize("path", ["msg", "snapshot", "join", "form", "confirm", "stream", "status"])
def test_a_client_key_opens_no_endpoint_of_members(make_members: MakeMembers, path: str) -> None:
    members = make_members()
    node = members.nodes[0]
    status = node.service.status()
    method = "GET" if path in ("stream", "status") else "POST"
    for secret in (ADMIN.key, ADMIN.signing, ADMIN.signing.hex()):
        envelope = Envelope(
            method,
            path,
            PROTOCOL_VERSION,
            str(status["cluster_id"]),
            "2",
            "1",
            "",
            f"1-{1:016x}",
            free_address(),
            "",
            "1",
        )
        with pytest.raises(UnsignedError) as caught:
            signed_by(secret).post(f"http://{node.addr}/raft", envelope, b"")
        assert caught.value.problem.code == "unauthenticated"


def test_a_node_whose_secret_is_a_client_key_cannot_join(make_members: MakeMembers) -> None:
    members = make_members()
    stranger = make_stranger(members)
    try:
        with pytest.raises(raftsvc.ConfigurationError, match="secret"):
            stranger.service.join(members.nodes[0].addr, PATIENCE)
    finally:
        stranger.gate.stop()
        stranger.service.stop()
    assert len(members.nodes[0].service.status()["members"]) == 1  # type: ignore[arg-type]


def make_stranger(members: Members) -> Node:
    return Node(members.nodes[0].path.parent / "stranger", {"secret": ADMIN.key, "client_keys": None})


def test_the_secret_of_members_opens_nothing_for_clients(make_members: MakeMembers) -> None:
    members = make_members()
    for name in ("admin", "1", ""):
        envelope = Envelope("POST", "client", PROTOCOL_VERSION, "", name, "", "", "who", "", "", "1")
        with pytest.raises(UnsignedError) as caught:
            signed_by(SECRET).post(f"http://{members.nodes[0].addr}/raft", envelope, b"\x01\0\0\0\0")
        assert caught.value.problem.code == "unknown_key"


# -- recordings


def send_again(node: Node, recorded: tuple[dict[str, Any], bytes], **changed: str) -> tuple[int, dict[str, Any]]:
    """What a recorded request is answered."""
    headers, body = recorded
    answer: list[str] = []
    environ = {**headers, **changed, "wsgi.input": io.BytesIO(body)}
    said = b"".join(node.service(environ, lambda status, headers: answer.append(status)))
    return int(answer[0][:3]), json.loads(said) if answer[0][:3] != "200" else {}


def test_a_recorded_request_is_worth_nothing_wherever_and_whenever_it_comes(make_members: MakeMembers) -> None:
    members = make_members(2)
    first, second = members.nodes
    store = members.connect(nodes=[first])
    assert store.incr("n", timeout=PATIENCE) == 1
    assert store.get("n", PATIENCE) is not None
    recorded = list(first.gate.seen)
    store = members.connect(nodes=[second])
    assert store.incr("n", timeout=PATIENCE) == 2
    recorded += second.gate.seen
    assert len(recorded) >= 8

    def commits() -> list[object]:
        return [node.service.status()["commit_index"] for node in members.nodes]

    eventually(lambda: len(set(commits())) == 1, "both know what is committed")
    before = commits()
    for node in members.nodes:
        for each in recorded:
            status, problem = send_again(node, each)
            assert status == 409
            assert problem["code"] in ("seen", "challenge")
    assert commits() == before
    first.restart()
    members.leader()
    for each in recorded:
        status, problem = send_again(first, each)
        assert (status, problem["code"]) in ((409, "challenge"), (503, "not_applied"))
    assert store.incr("n", timeout=PATIENCE) == 3


def test_a_request_that_was_kept_back_is_nothing_to_the_process_that_comes_next(make_members: MakeMembers) -> None:
    members = make_members()
    node = members.nodes[0]
    store = members.connect()
    assert store.incr("n", timeout=PATIENCE) == 1
    members.rule(once_of(LOSE_REQUEST, is_instruction))
    assert store.incr("n", timeout=PATIENCE) == 2
    kept = [each for each in node.gate.seen if is_instruction_body(each[1])][-2]
    node.restart()
    members.leader()
    before = store.get("n", PATIENCE)  # it is known to that process too
    status, problem = send_again(node, kept)
    assert (status, problem.get("code")) == (409, "challenge")
    assert store.get("n", PATIENCE) == before is not None


def test_a_request_that_was_altered_is_none(make_members: MakeMembers) -> None:
    members = make_members()
    node = members.nodes[0]
    store = members.connect()
    store.incr("n", timeout=PATIENCE)
    headers, body = next(each for each in node.gate.seen if is_instruction_body(each[1]))
    for changed in (
        {"HTTP_RAFT_NUMBER": "1000"},
        {"HTTP_RAFT_FROM": "admin"},
        {"HTTP_RAFT_LIFE": secrets.token_hex(16)},
        {"HTTP_RAFT_EPOCH": secrets.token_hex(16)},
        {"HTTP_RAFT_AUTH": "0" * 64},
        {"HTTP_RAFT_AUTH": ""},
        {"HTTP_RAFT_PART": "x"},
    ):
        assert send_again(node, (headers, body), **changed)[0] == 401
    for at in range(len(body)):
        altered = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        assert send_again(node, (headers, altered))[0] == 401
    assert store.incr("n") == 2


def is_instruction_body(body: bytes) -> bool:
    from raftsvc.transport.visits import Visit

    return is_instruction(Visit.decode(body))


def test_an_answer_that_is_not_signed_is_believed_in_nothing(make_members: MakeMembers) -> None:
    members = make_members()
    node = members.nodes[0]
    store = members.connect(ADMIN)
    store.set("a", b"", timeout=PATIENCE)
    service = node.service

    def liar(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
        said = json.dumps({"code": "not_applied", "detail": "nothing was done"}).encode()
        list(service(environ, lambda *head: None))
        start_response("503 No", [("Content-Length", str(len(said)))])
        return [said]

    node.gate.service = liar  # type: ignore[assignment]
    with pytest.raises(raftsvc.OutcomeUnknown):
        store.set("a", b"1", timeout=1.0)
    node.gate.service = service
    value = store.get("a", PATIENCE)
    assert value is not None
    assert value.data == b"1"


def test_texts_of_keys_are_as_connect_takes_them() -> None:
    assert raftsvc.ClientKey.parse(text_of(WRITER)).key == WRITER.key
