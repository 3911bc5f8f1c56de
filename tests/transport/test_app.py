"""Every way a request can be wrong, on every endpoint: a clear status, and nothing changed."""

from __future__ import annotations

import io
import json
import random
from itertools import pairwise
from typing import Any

import pytest
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client
from werkzeug.wsgi import LimitedStream

from raftsvc.core.founding import Question
from raftsvc.core.messages import Claim, EntryKind, Life, Message, MessageKind, decode_messages, make_entry
from raftsvc.errors import NodeFailedError, OverloadedError
from raftsvc.transport import App, Authenticator, Problem, SnapshotChunk
from raftsvc.transport import app as app_module
from raftsvc.transport.auth import AUTH_HEADER, Envelope
from raftsvc.transport.wire import MAX_BODY_BYTES, JoinReply, JoinRequest, Part, decode_chunk_reply
from tests.transport.harness import (
    CLUSTER,
    LIFE,
    NODE,
    PEER,
    PEER_LIFE,
    SECRET,
    Answer,
    Recorder,
    call,
    make_app,
    message,
    request,
)

SNAPSHOT = Message(MessageKind.SNAPSHOT, NODE, PEER, term=3, index=9, log_term=2, payload=b"config")
BODIES = {
    "msg": message().encode(),
    "snapshot": SnapshotChunk(SNAPSHOT, 100, 5, 0, b"data").encode(),
    "join": JoinRequest("new.example:1", b"t" * 16).encode(),
}
PATHS = sorted(BODIES)


def refused(environ: dict[str, Any], status: int, code: str) -> None:
    recorder = Recorder()
    answer = call(make_app(recorder), environ)
    assert (answer.status, answer.code) == (status, code)
    assert recorder.calls == [], "what is refused changes nothing"


def test_messages_are_handed_on_and_their_replies_come_back_signed() -> None:
    recorder = Recorder()
    environ = request("msg", message(index=4).encode() + message(index=5).encode())
    answer = call(make_app(recorder), environ)
    assert answer.status == 200
    assert recorder.calls == [(PEER, [message(index=4), message(index=5)])]
    assert [m.index for m in decode_messages(answer.body)] == [2]
    auth = Authenticator("a secret of the tests, long enough", None, False)
    mac = environ["HTTP_RAFT_AUTH"]
    assert auth.verify_answer(mac, 200, answer.body, answer.headers[AUTH_HEADER])
    assert not auth.verify_answer(mac, 200, answer.body + b"x", answer.headers[AUTH_HEADER])
    assert not auth.verify_answer("other", 200, answer.body, answer.headers[AUTH_HEADER])
    assert not auth.verify_answer(mac, 410, answer.body, answer.headers[AUTH_HEADER])


def test_a_piece_of_a_snapshot_is_handed_on() -> None:
    recorder = Recorder()
    answer = call(make_app(recorder), request("snapshot", BODIES["snapshot"]))
    assert decode_chunk_reply(answer.body) == (4, [])
    assert recorder.calls[0][1].data == b"data"


@pytest.mark.parametrize("path", PATHS)
def test_a_wrong_signature_is_refused(path: str) -> None:
    body = BODIES[path]
    refused(request(path, body, secret="another secret, long enough too"), 401, "unauthenticated")
    refused(request(path, body, raw_HTTP_RAFT_AUTH=None), 401, "unauthenticated")
    refused(request(path, body, raw_HTTP_RAFT_AUTH="\u00e9" * 64), 401, "unauthenticated")
    refused(request(path, body, raw_HTTP_RAFT_FROM="3"), 401, "unauthenticated")
    refused(request(path, body, raw_HTTP_RAFT_TO="3"), 401, "unauthenticated")
    refused(request(path, body, raw_HTTP_RAFT_PART="1 0 2"), 401, "unauthenticated")
    altered = bytes([body[0] ^ 1]) + body[1:]
    refused({**request(path, body), "wsgi.input": io.BytesIO(altered)}, 401, "unauthenticated")
    other = "snapshot" if path == "msg" else "msg"
    refused(request(path, body, raw_PATH_INFO=f"/{other}"), 401, "unauthenticated")


@pytest.mark.parametrize("path", ["msg", "snapshot"])
def test_requests_for_others_are_refused(path: str) -> None:
    body = BODIES[path]
    refused(request(path, body, cluster="0" * 16), 412, "wrong_cluster")
    refused(request(path, body, cluster=""), 412, "wrong_cluster")
    refused(request(path, body, to="2"), 412, "wrong_node")
    refused(request(path, body, to=""), 400, "malformed")
    refused(request(path, body, to="1 "), 400, "malformed")
    refused(request(path, body, to="9" * 30), 400, "malformed")
    refused(request(path, body, sender="7"), 410, "removed")
    refused(request(path, body, sender="0"), 400, "malformed")
    refused(request(path, body, sender="1"), 400, "malformed")
    refused(request(path, body, sender="-2"), 400, "malformed")
    refused(request(path, body, sender="9" * 20), 400, "malformed")
    refused(request(path, body, sender="3"), 400, "malformed")  # the message says 2


@pytest.mark.parametrize("path", PATHS)
def test_an_old_or_missing_version_is_refused(path: str) -> None:
    for version in ("0", "1", "2", "3", "5"):
        refused(request(path, BODIES[path], version=version), 400, "unsupported_version")
    refused(request(path, BODIES[path], version=""), 400, "unsupported_version")


@pytest.mark.parametrize("path", PATHS)
def test_bodies_of_the_wrong_kind_or_length_are_refused(path: str) -> None:
    body = BODIES[path]
    refused(request(path, body, raw_CONTENT_TYPE="application/json"), 415, "unsupported_media_type")
    refused(request(path, body, raw_CONTENT_LENGTH=None), 411, "length_required")
    refused(request(path, body, raw_CONTENT_LENGTH=""), 411, "length_required")
    for wrong in ("-5", "1e3", "0x10", "9" * 40, "\u0665"):
        refused(request(path, body, raw_CONTENT_LENGTH=wrong), 400, "malformed")
    # gunicorn hands over what a client that vanished had sent, without an error.
    refused(request(path, body, raw_CONTENT_LENGTH=str(len(body) + 1)), 400, "body_cut_short")
    big = bytes(MAX_BODY_BYTES + 1)
    refused(request(path, big), 413, "too_large")
    refused(request(path, b"", raw_CONTENT_LENGTH=str(10**15)), 400, "body_cut_short")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("error", [OSError("gone"), ValueError("closed"), EOFError(), RuntimeError("the server's own")])
def test_a_body_that_cannot_be_read_is_no_server_error(path: str, error: Exception) -> None:
    class Broken:
        def read(self, size: int) -> bytes:
            raise error

    refused({**request(path, BODIES[path]), "wsgi.input": Broken()}, 400, "body_cut_short")
    # A middleware that wraps the stream as werkzeug does raises an HTTP exception of its own.
    stream = LimitedStream(io.BytesIO(BODIES[path]), len(BODIES[path]) + 9)
    environ = request(path, BODIES[path], raw_CONTENT_LENGTH=str(len(BODIES[path]) + 9))
    refused({**environ, "wsgi.input": stream}, 400, "body_cut_short")


@pytest.mark.parametrize("path", [*PATHS, "status", "metrics"])
@pytest.mark.parametrize("sender", ["9" * 20, "-1", " 2"])
def test_a_stranger_with_an_impossible_id_is_a_stranger(
    path: str, sender: str, caplog: pytest.LogCaptureFixture
) -> None:
    method = "GET" if path in ("status", "metrics") else "POST"
    body = BODIES.get(path, b"")
    refused(request(path, body, secret=None, method=method, raw_HTTP_RAFT_FROM=sender), 401, "unauthenticated")
    assert not caplog.records, "a stranger cannot fill the log"


FIELDS = ("VERSION", "CLUSTER", "FROM", "TO", "PART", "LIFE", "ADDR", "EPOCH", "NUMBER")


@pytest.mark.parametrize("path", [*PATHS, "status", "metrics"])
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", ["1\r\n 2", "1\n2", "\u00b2", "\u0663", "1\t2", "1\x00", "9" * 5000])
def test_what_no_node_sends_in_a_header_is_refused_before_anything_is_verified(
    path: str, field: str, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    method = "GET" if path in ("status", "metrics") else "POST"
    environ = request(path, BODIES.get(path, b""), method=method, **{f"raw_HTTP_RAFT_{field}": value})
    refused(environ, 400, "malformed")
    assert not caplog.records, "a stranger cannot fill the log"


def test_no_two_envelopes_are_signed_alike() -> None:
    auth = Authenticator(SECRET, None, False)
    seen = {}
    for shift in range(2, 11):  # what one field ends with, the next begins with
        for cut in range(4):
            fields = ["POST", "msg", *["ab"] * 9]
            fields[shift - 1], fields[shift] = "xyz"[:cut], "xyz"[cut:]
            envelope = Envelope(*fields)
            mac = auth.sign(envelope, b"body")
            assert seen.setdefault(mac, envelope) == envelope
        for between in "\n\r\0 ,:;|=/":  # what might be put between fields
            for parts in (("x", f"y{between}z"), (f"x{between}y", "z")):
                fields = ["POST", "msg", *["ab"] * 9]
                fields[shift - 1], fields[shift] = parts
                assert seen.setdefault(auth.sign(Envelope(*fields), b"body"), Envelope(*fields)) == Envelope(*fields)
    assert auth.sign(Envelope("POST", "msg", *"abcdefghi"), b"") != auth.sign(
        Envelope("POST", "msg", *"abcdefgh", ""), b"i"
    )


@pytest.mark.parametrize("path", ["msg", "snapshot"])
def test_a_recorded_request_is_worth_nothing(path: str) -> None:
    recorder = Recorder()
    app = make_app(recorder)
    recorded = request(path, BODIES[path])

    def replay(of: dict[str, Any]) -> tuple[int, str]:
        answer = call(app, {**of, "wsgi.input": io.BytesIO(BODIES[path])})
        return answer.status, answer.code if answer.status != 200 else ""

    assert replay(recorded) == (200, "")
    assert replay(recorded) == (409, "seen")
    for _ in range(100):  # more than are remembered
        replay(request(path, BODIES[path]))
    assert replay(recorded) == (409, "too_old")
    assert len(recorder.calls) == 101
    # At another start of the receiver, whatever it remembers.
    again = make_app(recorder)
    recorder.is_initialized = True
    recorder.life = Life(LIFE.counter + 1, 0xC)
    assert call(again, {**recorded, "wsgi.input": io.BytesIO(BODIES[path])}).code == "epoch"
    # Of a former start of the sender.
    recorder.life = LIFE
    replay(request(path, BODIES[path], life=str(Life(PEER_LIFE.counter + 1, 0xD))))
    assert replay(recorded) == (409, "late")
    assert len(recorder.calls) == 102


@pytest.mark.parametrize("life", ["", "9", "9.b", "x.000000000000000b", "9.000000000000000B", f"{2**63}.{0:016x}"])
def test_a_peer_says_which_start_of_it_speaks(life: str) -> None:
    refused(request("msg", BODIES["msg"], life=life), 400, "malformed")


@pytest.mark.parametrize("number", ["", "-1", "1e3", "9" * 20])
def test_a_peer_numbers_its_requests(number: str) -> None:
    refused(request("msg", BODIES["msg"], number=number), 400, "malformed")


def test_a_request_for_another_start_of_a_node_is_told_which_one_this_is() -> None:
    recorder = Recorder()
    app = make_app(recorder)
    for epoch in ("", "nonsense", str(Life(LIFE.counter - 1, 1)), str(Life(LIFE.counter, 1))):
        answer = call(app, request("msg", BODIES["msg"], epoch=epoch))
        assert (answer.status, answer.code) == (409, "epoch")
        assert json.loads(answer.body)["epoch"].split()[0] == str(LIFE)
    assert recorder.calls == []


@pytest.mark.parametrize(
    ("version", "problem"), [("2", "unsupported_version"), ("3", "unsupported_version"), ("", 401)]
)
@pytest.mark.parametrize("path", ["msg", "join"])
def test_who_signs_as_another_version_does_hears_of_the_version_and_not_of_the_secret(
    path: str, version: str, problem: str | int
) -> None:
    recorder = Recorder()
    answer = call(make_app(recorder), request(path, BODIES[path], secret=b"signed in another way", version=version))
    assert problem in (answer.status, answer.code)
    assert recorder.calls == [] and recorder.lives == {}


@pytest.mark.parametrize("known", [Life(LIFE.counter + 1, 2), Life(LIFE.counter, 3), Life(2**63 - 1, 0)])
@pytest.mark.parametrize("path", ["msg", "confirm", "snapshot", "stream"])
def test_a_node_hears_by_any_request_of_a_life_of_it_that_it_does_not_know(path: str, known: Life) -> None:
    class PutBack(Recorder):
        def hear_from(self, node_id: int, claim: Claim, addr: str, proves_now: bool) -> str:
            if node_id == NODE:
                assert (claim, addr, proves_now) == (Claim(known), "", False)
                return "void"
            return super().hear_from(node_id, claim, addr, proves_now)

    recorder = PutBack()
    method = "GET" if path == "stream" else "POST"
    answer = call(make_app(recorder), request(path, BODIES.get(path, b""), method=method, epoch=str(known)))
    assert (answer.status, answer.code) == (503, "unavailable")
    assert recorder.calls == []


def test_a_start_that_speaks_on_beside_a_later_one_is_found_out() -> None:
    recorder = Recorder()
    app = make_app(recorder)
    later = str(Life(PEER_LIFE.counter + 1, 0xD))
    assert call(app, request("msg", BODIES["msg"], life=later)).status == 200
    answer = call(app, request("msg", BODIES["msg"]))
    assert answer.code == "late", "it may have been on its way"
    proof = json.loads(answer.body)["challenge"]
    other = request("msg", BODIES["msg"], life=str(Life(PEER_LIFE.counter - 1, 0xE)), epoch=proof)
    assert call(app, other).code == "epoch", "a proof is of one life"
    assert call(app, request("msg", BODIES["msg"], epoch=proof)).code == "void"
    assert len(recorder.calls) == 1


def test_two_processes_that_count_alike_are_found_out() -> None:
    recorder = Recorder()
    app = make_app(recorder)
    assert call(app, request("msg", BODIES["msg"])).status == 200
    twin = str(Life(PEER_LIFE.counter, 0xF))
    assert call(app, request("msg", BODIES["msg"], life=twin)).code == "void"
    assert len(recorder.calls) == 1


@pytest.mark.parametrize("path", PATHS)
def test_a_body_is_drained_before_an_error_is_answered(path: str) -> None:
    for environ in (
        request(path, BODIES[path], secret="another secret, long enough too"),
        request(path, BODIES[path], method="PUT"),
        request("nowhere", BODIES[path]),
        request(path, bytes(MAX_BODY_BYTES + 5)),
    ):
        call(make_app(Recorder()), environ)
        assert environ["wsgi.input"].read() == b""


def test_unknown_paths_and_methods_are_refused() -> None:
    refused(request("nowhere", b""), 404, "not_found")
    refused(request("", b""), 404, "not_found")
    answer = call(make_app(Recorder()), request("msg", b"", method="GET"))
    assert (answer.status, answer.code, answer.headers["Allow"]) == (405, "method_not_allowed", "POST")
    answer = call(make_app(Recorder()), request("status", b"", method="DELETE"))
    assert (answer.status, answer.headers["Allow"]) == (405, "GET")


def test_a_node_without_a_cluster_says_so() -> None:
    recorder = Recorder()
    recorder.is_initialized = False
    app = make_app(recorder)
    assert call(app, request("msg", BODIES["msg"])).status == 503
    assert call(app, request("snapshot", BODIES["snapshot"])).code == "uninitialized"
    assert call(app, request("join", BODIES["join"])).status == 409
    assert recorder.calls == []


@pytest.mark.parametrize("path", PATHS)
def test_no_body_whatever_is_a_server_error(path: str) -> None:
    recorder = Recorder()
    app = make_app(recorder)
    generator = random.Random(path)
    for _ in range(400):
        body = bytearray(BODIES[path])
        for _ in range(generator.randrange(1, 5)):
            body[generator.randrange(len(body))] = generator.randrange(256)
        data = bytes(body[: generator.randrange(len(body) + 1)])
        answer = call(app, request(path, data))
        assert answer.status in (200, 400, 409), data
    headers = [
        "HTTP_RAFT_TO",
        "HTTP_RAFT_FROM",
        "HTTP_RAFT_PART",
        "HTTP_RAFT_CLUSTER",
        "CONTENT_LENGTH",
        "CONTENT_TYPE",
    ]
    for _ in range(300):
        environ = request(path, BODIES[path], secret=None)
        environ[generator.choice(headers)] = "".join(chr(generator.randrange(1, 0x2000)) for _ in range(8))
        assert call(make_app(recorder, secret=None), environ).status < 500


def test_messages_of_others_and_of_local_kinds_are_refused() -> None:
    refused(request("msg", message(from_id=3).encode()), 400, "malformed")
    refused(request("msg", message(to_id=3).encode()), 400, "malformed")
    refused(request("msg", b"\x00" + message().encode()[1:]), 400, "malformed")
    refused(request("msg", b"\xff" + message().encode()[1:]), 400, "malformed")
    refused(request("snapshot", SnapshotChunk(message(), 9, 5, 0, b"").encode()), 400, "malformed")


def test_a_snapshot_without_its_data_is_refused() -> None:
    refused(request("msg", SNAPSHOT.encode()), 400, "malformed")
    refused(request("msg", message().encode() + SNAPSHOT.encode()), 400, "malformed")


def test_a_large_batch_comes_in_parts() -> None:
    recorder = Recorder()
    app = make_app(recorder)
    big = message(entries=[make_entry(1, 1, EntryKind.NORMAL, bytes(1_200_000))])
    body = big.encode()
    cuts = [*range(0, len(body), MAX_BODY_BYTES), len(body)]
    for start, stop in pairwise(cuts):
        assert recorder.calls == []
        part = Part(77, start, len(body)).encode()
        answer = call(app, request("msg", body[start:stop], part=part))
        assert answer.status == 200
    assert recorder.calls == [(PEER, [big])]


def test_parts_that_do_not_continue_are_refused() -> None:
    app = make_app(Recorder())
    first = request("msg", b"x" * 10, part=Part(1, 0, 30).encode())
    assert call(app, first).status == 200
    for wrong in (Part(1, 20, 30), Part(2, 10, 30), Part(1, 10, 31)):
        assert call(app, request("msg", b"x" * 10, part=Part(1, 0, 30).encode())).status == 200
        answer = call(app, request("msg", b"x" * 10, part=wrong.encode()))
        assert (answer.status, answer.code) == (409, "wrong_part")
    for text in ("1 2", "a b c", "1 0 999999999", "1 5 5", "-1 0 3", "1 0 " + "9" * 30):
        assert call(app, request("msg", b"x", part=text)).status == 400
    assert call(app, request("msg", b"x" * 10, part=Part(1, 0, 5).encode())).status == 400
    assert call(app, request("msg", b"", part=Part(1, 0, 5).encode())).status == 400


def test_unfinished_batches_are_bounded() -> None:
    app = make_app(Recorder())
    for sender in range(10, 60):
        call(app, request("msg", b"x", sender=str(sender), part=Part(1, 0, 30).encode()))
    assert len(app._partial) <= 16


def test_a_join_answers_a_challenge_that_works_once() -> None:
    recorder = Recorder()
    app = make_app(recorder)
    first = call(app, request("join", BODIES["join"], cluster="", sender="0", to="0"))
    assert (first.status, first.code) == (409, "challenge")
    assert recorder.calls == []
    challenge = json.loads(first.body)["challenge"]
    cluster, node = json.loads(first.body)["cluster"], json.loads(first.body)["node"]
    body = JoinRequest("new.example:1", b"t" * 16).encode()
    environ = request("join", body, cluster=cluster, sender="", to=node, life="", epoch=challenge)
    again = dict(environ, **{"wsgi.input": io.BytesIO(body)})
    assert JoinReply.decode(call(app, environ).body) == JoinReply(5, CLUSTER)
    assert recorder.calls == [JoinRequest("new.example:1", b"t" * 16)]
    replayed = call(app, again)
    assert (replayed.status, replayed.code) == (409, "challenge")
    assert len(recorder.calls) == 1, "a recorded request is worth nothing"


@pytest.mark.parametrize("wrong", [{"cluster": "0" * 16}, {"to": "2"}, {"cluster": ""}, {"to": ""}])
def test_a_join_names_the_node_that_is_asked(wrong: dict[str, str]) -> None:
    recorder = Recorder()
    app = make_app(recorder)
    challenge = json.loads(call(app, request("join", BODIES["join"])).body)["challenge"]
    named = {"cluster": f"{CLUSTER:016x}", "to": str(NODE), **wrong}
    answer = call(app, request("join", BODIES["join"], epoch=challenge, **named))
    assert (answer.status, answer.code, recorder.calls) == (412, "wrong_cluster", [])


def test_a_join_at_a_follower_names_the_leader() -> None:
    recorder = Recorder()
    recorder.leads = False
    answer = call(make_app(recorder), request("join", BODIES["join"]))
    assert (answer.status, answer.code) == (421, "not_leader")
    assert json.loads(answer.body)["leader"] == "leader.example:9"


def test_secrets_are_rotated_without_a_pause() -> None:
    old, new = "the old secret, long enough", "the new secret, long enough"
    for accepts, signs in (((old, new), old), ((old, new), new), ((new, old), old), ((new,), new)):
        assert call(make_app(Recorder(), secret=accepts), request("msg", BODIES["msg"], secret=signs)).status == 200
    assert call(make_app(Recorder(), secret=new), request("msg", BODIES["msg"], secret=old)).status == 401


def test_a_judge_of_the_application_decides() -> None:
    environ = request("msg", BODIES["msg"], secret=None, raw_HTTP_X_PEER="yes")
    judge = lambda e: e.get("HTTP_X_PEER") == "yes"  # noqa: E731
    assert call(make_app(Recorder(), secret=None, judge=judge), environ).status == 200
    assert (
        call(make_app(Recorder(), secret=None, judge=judge), request("msg", BODIES["msg"], secret=None)).status == 401
    )


def test_with_mutual_tls_the_certificate_must_name_the_sender() -> None:
    def attempt(certificate: object) -> int:
        environ = request("msg", BODIES["msg"], secret=None)
        environ["raftsvc.peer_certificate"] = certificate
        return call(make_app(Recorder(), secret=None, mutual_tls=True), environ).status

    assert attempt({"subjectAltName": (("DNS", "peer.example"),)}) == 200
    assert attempt({"subjectAltName": (("DNS", "*.example"),)}) == 200
    assert attempt({"subjectAltName": (("DNS", "other.example"), ("IP Address", "10.0.0.1"))}) == 401
    assert attempt({"subjectAltName": (("DNS", "a.peer.example"),)}) == 401
    assert attempt({}) == 401
    assert attempt(None) == 401


def test_only_a_member_by_a_certificate_for_its_host_has_leadership_handed_over() -> None:
    def attempt(host: str, secret: Any = None, **said: str) -> tuple[int, list[Any]]:
        recorder = Recorder()
        app = make_app(recorder, secret=secret, mutual_tls=True)
        epoch = ""
        for _ in range(2):
            environ = request("transfer", b"2", secret=secret, epoch=epoch, **said)
            environ["raftsvc.peer_certificate"] = {"subjectAltName": (("DNS", host),)}
            answer = call(app, environ)
            epoch = json.loads(answer.body).get("challenge", "") if answer.status != 200 else ""
        return answer.status, recorder.calls

    assert attempt("peer.example") == (200, ["2"])
    assert attempt("peer.example", life="") == (200, ["2"]), "a process that is attached knows none"
    assert attempt("shop.example") == (401, [])
    assert attempt("shop.example", sender="", addr="", cluster="", life="") == (401, [])
    assert attempt("shop.example", sender="9", addr="shop.example:1") == (401, [])
    assert attempt("peer.example", cluster="0" * 16) == (412, [])
    assert attempt("shop.example", SECRET, sender="", addr="") == (401, [])
    assert attempt("shop.example", SECRET, sender="9", addr="shop.example:1") == (403, [])
    assert attempt("shop.example", SECRET, sender="", addr="shop.example:1") == (400, [])


def test_status_needs_the_secret_and_health_does_not() -> None:
    app = make_app(Recorder())
    challenge = json.loads(call(app, request("status", b"", method="GET")).body)["challenge"]
    answering = request("status", b"", method="GET", epoch=challenge)
    assert call(app, answering).status == 200
    assert call(app, answering).code == "challenge", "a recorded request is worth nothing"
    assert call(app, request("status", b"", method="GET", secret=None)).status == 401
    for path in ("livez", "readyz"):
        assert call(app, request(path, b"", method="GET", secret=None)).body == b"ok\n"
        assert call(app, request(path, b"", method="HEAD", secret=None)).status == 200
    recorder = Recorder()
    recorder.is_initialized = False
    assert call(make_app(recorder), request("readyz", b"", method="GET", secret=None)).status == 503
    assert call(make_app(Recorder(), secret=None), request("status", b"", method="GET", secret=None)).status == 200


@pytest.mark.parametrize(
    ("error", "code"), [(OverloadedError("busy"), "overloaded"), (NodeFailedError("dead"), "unavailable")]
)
def test_a_node_that_cannot_serve_answers_503(error: Exception, code: str) -> None:
    recorder = Recorder()
    recorder.error = error
    answer = call(make_app(recorder), request("msg", BODIES["msg"]))
    assert (answer.status, answer.code, answer.headers["Retry-After"]) == (503, code, "1")


def test_an_unexpected_error_is_a_problem_without_details(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    recorder.error = KeyError("a detail")
    answer = call(make_app(recorder), request("msg", BODIES["msg"]))
    assert (answer.status, answer.code) == (500, "internal")
    assert b"detail" not in answer.body.replace(b'"detail": ""', b"")
    assert "a detail" in caplog.text


def test_it_serves_standalone_mounted_and_behind_a_dispatcher() -> None:
    app = make_app(Recorder())
    for info, script in (("/msg", ""), ("/msg/", ""), ("/raft/msg", ""), ("/msg", "/raft"), ("/msg/", "/raft")):
        environ = request("msg", BODIES["msg"], raw_PATH_INFO=info, raw_SCRIPT_NAME=script)
        assert call(app, environ).status == 200, (info, script)
    client = Client(DispatcherMiddleware(lambda e, s: (s("404 Not Found", []), [b""])[1], {"/raft": app}))
    assert client.get("/raft/livez").status_code == 200
    assert client.get("/raft/nowhere").status_code == 404
    assert client.get("/raftlivez").status_code == 404


KEY = "a key for metrics, long enough"


def scrape(app: App, authorization: str | None, path: str = "metrics", method: str = "GET") -> Answer:
    raw = {} if authorization is None else {"raw_HTTP_AUTHORIZATION": authorization}
    return call(app, request(path, b"", secret=None, method=method, **raw))


def test_who_sends_the_key_for_metrics_reads_them_and_nothing_else() -> None:
    app = make_app(Recorder(), bearers=["another key, of a rotation", KEY])
    answer = scrape(app, f"Bearer {KEY}")
    assert (answer.status, answer.body) == (200, b"raftsvc_live 1.0\n")
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    assert scrape(app, f"Bearer {KEY}", method="HEAD").status == 200
    for path in ("status", "stream", *PATHS):
        answer = scrape(app, f"Bearer {KEY}", path, "GET" if path in ("status", "stream") else "POST")
        assert (answer.status, answer.code) == (401, "unauthenticated"), path


@pytest.mark.parametrize(
    "authorization", [None, "", KEY, f"bearer {KEY}", f"Bearer {KEY} ", f"Bearer {KEY[:-1]}", "\xff"]
)
@pytest.mark.parametrize("bearers", [[], [KEY]])
def test_metrics_are_told_to_no_stranger(authorization: str | None, bearers: list[str]) -> None:
    answer = scrape(make_app(Recorder(), bearers=bearers), authorization)
    assert (answer.status, answer.code) == (401, "unauthenticated")


def test_a_member_reads_metrics_as_it_reads_the_status() -> None:
    app = make_app(Recorder())
    challenge = json.loads(call(app, request("metrics", b"", method="GET")).body)["challenge"]
    answer = call(app, request("metrics", b"", method="GET", epoch=challenge))
    assert (answer.status, answer.body) == (200, b"raftsvc_live 1.0\n")


def test_where_metrics_cannot_be_made_it_says_why() -> None:
    recorder = Recorder()
    recorder.error = Problem(501, "no_metrics", "pip install it")
    answer = scrape(make_app(recorder, bearers=[KEY]), f"Bearer {KEY}")
    assert (answer.status, answer.code) == (501, "no_metrics")


@pytest.mark.parametrize(
    ("wrong", "lines"), [([], ["ok"]), (["refused", "low-room"], ["ok", "[!] refused", "[!] low-room"])]
)
def test_probes_name_what_is_wrong(wrong: list[str], lines: list[str]) -> None:
    recorder = Recorder()
    recorder.wrong = wrong
    for path in ("readyz", "livez"):
        answer = call(make_app(recorder), request(path, b"", method="GET"))
        assert answer.status == 200 and answer.body.decode().splitlines() == lines
    recorder.is_initialized = False
    answer = call(make_app(recorder), request("readyz", b"", method="GET"))
    assert answer.status == 503 and answer.body.decode().splitlines() == ["not ready", *lines[1:]]


@pytest.mark.parametrize(
    ("secret", "claims"), [(SECRET, [("00000000000000c2", PEER)]), ("a stranger's secret, as long", [])]
)
def test_a_peer_that_takes_this_node_for_one_of_another_cluster_is_told_of(secret: str, claims: list[Any]) -> None:
    recorder = Recorder()
    app = make_app(recorder)
    answer = call(app, request("msg", BODIES["msg"], secret, cluster=f"{0xC2:016x}"))
    assert answer.status == (412 if claims else 401)
    assert recorder.claims == [], "it may be a recording"
    challenge = json.loads(answer.body).get("challenge", "")
    for _ in range(2):
        answer = call(app, request("msg", BODIES["msg"], secret, cluster=f"{0xC2:016x}", epoch=challenge))
        assert answer.status == (412 if claims else 401)
        assert recorder.claims == claims, "once"


@pytest.mark.pure
@pytest.mark.parametrize("path", ["join", "form", "msg", "snapshot"])
@pytest.mark.parametrize("why", ["secret", "certificate", "judge", "judge beside a certificate", "replayed"])
def test_what_a_stranger_sends_is_not_even_decoded(monkeypatch: pytest.MonkeyPatch, path: str, why: str) -> None:
    def decode(*args: object) -> Any:
        raise AssertionError("it was decoded")

    for kind in (JoinRequest, Question, SnapshotChunk):
        monkeypatch.setattr(kind, "decode", decode)
    monkeypatch.setattr(app_module, "decode_messages", decode)
    body = b"x" * 300_000 if path != "join" else b"x" * 1000
    options: dict[str, Any] = {
        "secret": {"secret": SECRET},
        "certificate": {"secret": None, "mutual_tls": True},
        "judge": {"secret": None, "judge": lambda environ: False},
        "judge beside a certificate": {"secret": None, "mutual_tls": True, "judge": lambda environ: False},
        "replayed": {"secret": SECRET},
    }[why]
    signed_by = SECRET if why == "replayed" else "another secret, long enough" if why == "secret" else None
    environ = request(path, body, secret=signed_by, epoch="another", addr="" if signed_by is None else "peer.example:1")
    if why.endswith("a certificate"):
        environ["raftsvc.peer_certificate"] = {"subjectAltName": (("DNS", "peer.example"),)}
    answer = call(make_app(Recorder(), **options), environ)
    assert answer.status == (409 if why == "replayed" else 401), answer.body
