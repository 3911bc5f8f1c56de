"""Who is let in to the operator's page, what he may, and what browsers are told of it."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from werkzeug.test import Client

import raftsvc
from raftsvc import ConfigurationError, OperatorKey, kv
from raftsvc.keys import checked_operator_keys, operator_keys_in
from raftsvc.kv import environment
from raftsvc.operator import Host, OperatorApp, remote_user
from raftsvc.operator.access import SESSION_SECONDS
from raftsvc.operator.page import PAGE as HTML
from tests.operator.harness import FULL, PAGE, READ, Actor, client_of, sign_in
from tests.service.harness import eventually

DOCS = Path(__file__).parent.parent.parent / "docs" / "operator.md"


def test_nobody_is_told_anything_without_a_key_but_the_page_that_asks_for_it() -> None:
    client = client_of(Actor(), FULL)
    assert client.get("/").status_code == 200
    assert client.get("/feed").status_code == 401
    assert client.post("/act", json={"what": "evict", "whom": "3"}, headers=PAGE).status_code == 401
    assert client.post("/login", json={"key": "a key of nobody, long"}, headers=PAGE).status_code == 401


def test_who_signed_in_is_known_to_every_node_that_knows_his_key_and_to_no_other() -> None:
    client = client_of(Actor(), FULL)
    sign_in(client, FULL)
    cookie = client.get_cookie("raftsvc_operator")
    assert cookie is not None and client.get("/feed").status_code == 200
    for keys, status in [((READ, FULL), 200), ((READ,), 401), ((OperatorKey("anna", "another key of anna"),), 401)]:
        other = client_of(Actor(), *keys)
        other.set_cookie("raftsvc_operator", cookie.value)
        assert other.get("/feed").status_code == status


def test_the_cookie_is_for_this_page_alone_and_its_key_is_not_in_it() -> None:
    client = client_of(Actor(), FULL)
    answer = client.post("/login", json={"key": FULL.key}, headers=PAGE, base_url="https://n1.example/raft/operator/")
    said = answer.headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Secure", "Path=/raft/operator"} <= set(said.split("; "))
    assert FULL.key not in said


def test_the_cookie_is_for_where_the_browser_has_the_page_behind_a_proxy_that_ends_tls() -> None:
    client, headers = client_of(Actor(), FULL), {**PAGE, "Origin": "https://ops.example"}
    for place, path in (("/ops/raft", "/ops/raft"), ("/x; Domain=example", "/"), ("", None), (1, None)):
        answer = client.post("/login", json={"key": FULL.key, "place": place}, headers=headers)
        if path is None:
            assert answer.status_code == 400
            continue
        assert {"Secure", f"Path={path}"} <= set(answer.headers["Set-Cookie"].split("; "))
        assert "Domain" not in answer.headers["Set-Cookie"]


@pytest.mark.parametrize(
    "others",
    ['theme={"dark":true}; ', "a[b]=c; ", "x=\u00e9; ", "novalue; ", "raftsvc_operator=of another; ", "=; ;; "],
)
def test_other_cookies_of_the_host_keep_nobody_out(others: str) -> None:
    client = client_of(Actor(), FULL)
    answer = client.post("/login", json={"key": FULL.key}, headers=PAGE)
    cookie = answer.headers["Set-Cookie"].partition(";")[0]
    other = Client(client.application, use_cookies=False)
    assert other.get("/feed", headers={"Cookie": others + cookie}).status_code == 200
    assert other.get("/feed", headers={"Cookie": cookie + "; " + others}).status_code == 200


def test_who_signed_in_is_not_for_ever_and_nobody_changes_until_when() -> None:
    now = [1_000_000.0]
    client = client_of(Actor(), FULL, now=lambda: now[0])
    sign_in(client, FULL)
    cookie = client.get_cookie("raftsvc_operator")
    assert cookie is not None
    now[0] += SESSION_SECONDS - 1
    assert client.get("/feed").status_code == 200
    now[0] += 1
    assert client.get("/feed").status_code == 401
    until, _, rest = cookie.value.partition(".")
    client.set_cookie("raftsvc_operator", f"{int(until) + 1000}.{rest}")
    assert client.get("/feed").status_code == 401


@pytest.mark.parametrize("cookie", ["", "1.2.3", "9" * 12 + "." + "0" * 64 + ".anna", "..", "x" * 5000, "\xff.\xff"])
def test_a_cookie_that_makes_no_sense_lets_nobody_in(cookie: str) -> None:
    client = Client(client_of(Actor(), FULL).application, use_cookies=False)
    assert client.get("/feed", headers={"Cookie": f"raftsvc_operator={cookie}"}).status_code == 401


def test_signing_out_takes_the_cookie_away() -> None:
    client = client_of(Actor(), FULL)
    sign_in(client, FULL)
    assert client.post("/logout", json={}, headers=PAGE).status_code == 200
    assert client.get("/feed").status_code == 401


def test_who_may_only_look_does_nothing_and_is_told_so() -> None:
    actor = Actor()
    client = client_of(actor, READ)
    sign_in(client, READ)
    assert client.get("/feed").json["operator"] == {"name": "bob", "may_act": False, "way": "cookie"}
    answer = client.post("/act", json={"what": "evict", "whom": "3"}, headers=PAGE)
    assert (answer.status_code, answer.json["outcome"], actor.done) == (403, "forbidden", [])


@pytest.mark.parametrize(
    "changed",
    [
        {"headers": {}},
        {"headers": {**PAGE, "Sec-Fetch-Site": "cross-site"}},
        {"headers": {**PAGE, "Sec-Fetch-Site": "same-site"}},
        {"content_type": "text/plain"},
        {"content_type": "application/x-www-form-urlencoded"},
    ],
)
@pytest.mark.parametrize("way", ["cookie", "application"])
def test_what_another_site_can_have_a_browser_send_does_nothing(changed: dict[str, Any], way: str) -> None:
    actor = Actor()
    client = client_of(actor, *([FULL] if way == "cookie" else []))
    if way == "cookie":
        sign_in(client, FULL)
    sent: dict[str, Any] = {
        "data": '{"what": "evict", "whom": "3"}',
        "headers": PAGE,
        "content_type": "application/json",
    }
    answer = client.post("/act", **{**sent, **changed})
    assert (answer.status_code, answer.json["code"], actor.done) == (403, "not_of_the_page", [])
    assert client.post("/act", **sent).status_code == 200


def test_a_script_sends_the_key_itself_and_no_cookie() -> None:
    actor = Actor()
    client = client_of(actor, FULL, READ)
    bearer = {"Authorization": f"Bearer {FULL.key}"}
    assert client.get("/feed", headers=bearer).json["operator"]["name"] == "anna"
    assert client.post("/act", json={"what": "evict", "whom": "3"}, headers=bearer).status_code == 200
    assert actor.done == [("evict", "3")]
    wrong = {"Authorization": "Bearer a key of nobody, long"}
    assert client.get("/feed", headers=wrong).status_code == 401


def test_an_application_says_who_comes_and_whether_he_may_act() -> None:
    app = OperatorApp(Actor().console(), Host(lambda environ: None, False))
    assert Client(app).get("/feed").status_code == 403
    limited = app.limited(read_only=True, who=lambda environ: environ.get("HTTP_X_USER"))
    assert Client(limited).get("/feed").status_code == 403
    answer = Client(limited).get("/feed", headers={"X-User": "eve"})
    assert answer.json["operator"] == {"name": "eve", "may_act": False, "way": "application"}
    assert Client(limited).post("/login", json={"key": "x"}, headers=PAGE).status_code == 404
    for wrong in ({"read_only": 1}, {"who": "eve"}):
        with pytest.raises(ConfigurationError):
            app.limited(**wrong)  # type: ignore[arg-type]


def test_whom_nothing_names_is_not_let_in_behind_an_application() -> None:
    actor = Actor()
    app = OperatorApp(actor.console(), Host(remote_user, False))
    for each, user in ((app, ""), (app.limited(), ""), (app.limited(who=lambda environ: ""), "anna")):
        client, here = Client(each), {"REMOTE_USER": user}
        assert client.get("/feed", environ_overrides=here).status_code == 403
        sent = client.post("/act", json={"what": "evict", "whom": "3"}, headers=PAGE, environ_overrides=here)
        assert (sent.status_code, sent.json["code"], actor.done) == (403, "not_let_in", [])
    assert Client(app).get("/feed", environ_overrides={"REMOTE_USER": "anna"}).json["operator"]["name"] == "anna"
    assert Client(app.limited(who=lambda environ: "-")).get("/feed").status_code == 200


def test_the_page_runs_its_own_script_alone_loads_nothing_and_is_framed_by_nobody() -> None:
    answer = client_of(Actor(), FULL).get("/")
    policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert all(re.fullmatch("'sha256-[A-Za-z0-9+/]{43}='", policy[kind]) for kind in ("script-src", "style-src"))
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert not re.search(r"\bon[a-z]+=|style=|innerHTML|insertAdjacentHTML|document\.write|eval\(", HTML)
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", HTML)


def test_every_answer_has_the_headers_that_keep_it_here() -> None:
    client = client_of(Actor(), FULL)
    for answer in (
        client.get("/"),
        client.get("/feed"),
        client.get("/nothing"),
        client.put("/feed"),
        client.get("/act"),
    ):
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/feed", 405),
        ("GET", "/act", 405),
        ("HEAD", "/", 200),
        ("GET", "/a/feed", 401),
    ],
)
def test_what_there_is_not_is_not_there(method: str, path: str, status: int) -> None:
    assert client_of(Actor(), FULL).open(path, method=method).status_code == status


def test_a_path_without_a_slash_leads_to_the_page_wherever_it_is_mounted() -> None:
    app = OperatorApp(Actor().console(), Host(lambda environ: "eve", False))
    environ = {"REQUEST_METHOD": "GET", "SCRIPT_NAME": "/ops/raft", "PATH_INFO": "", "wsgi.multithread": True}
    heads: list[Any] = []
    app(environ, lambda status, headers, *_: heads.append((status[:3], dict(headers)["Location"])))
    assert heads == [("308", "raft/")]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b'{"what": 1, "whom": 2}', b"[" * 4000, b'{"key": ""}'])
def test_a_body_that_makes_no_sense_is_refused_and_does_nothing(body: bytes) -> None:
    actor = Actor()
    answer = client_of(actor).post("/act", data=body, headers=PAGE, content_type="application/json")
    assert (answer.status_code, actor.done) == (400 if body else 411, [])
    too_long = client_of(actor).post("/act", data=b" " * 9000, headers=PAGE, content_type="application/json")
    assert too_long.status_code == 413


def test_keys_that_are_wrong_are_refused_at_the_start() -> None:
    keys = "short", " " * 20, "\ud800" * 20
    for wrong in (*(("anna", key) for key in keys), ("an na", "a" * 20), ("anna", "a" * 20, "write"), (1, "a" * 20)):
        with pytest.raises(ConfigurationError):
            OperatorKey(*wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="cluster's secret"):
        checked_operator_keys([FULL], [FULL.key.encode()], [])
    with pytest.raises(ConfigurationError, match="client's key"):
        checked_operator_keys([FULL], [], [raftsvc.ClientKey("cron", FULL.key)])
    with pytest.raises(ConfigurationError, match="keys 2 and 3 are one"):
        checked_operator_keys([READ, FULL, OperatorKey("screen", FULL.key)], [], [])
    assert checked_operator_keys([FULL, OperatorKey("anna", "another key of anna")], [], [])
    assert FULL.key not in repr(FULL)


def test_who_tries_keys_is_noted_and_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    client = client_of(Actor(), FULL)
    with caplog.at_level(logging.WARNING, "raftsvc.audit"):
        for number in range(20):
            client.post("/login", json={"key": f"a key that is tried {number}"}, headers=PAGE)
    assert len(caplog.records) == 1 and 'outcome="refused"' in caplog.text and "tried" not in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "headers", "line"),
    [
        ("GET", "/feed", {"Authorization": "Bearer a key of nobody, long"}, 'operator="-" way="key" action="feed"'),
        ("POST", "/act", {"Authorization": "Bearer a key of nobody, long"}, 'operator="-" way="key" action="act"'),
        ("POST", "/act", {}, 'operator="anna" way="cookie" action="act"'),
        ("POST", "/login", {"Sec-Fetch-Site": "cross-site"}, 'operator="-" way="key" action="sign in"'),
    ],
)
def test_each_way_to_try_is_noted_and_how_often_before_the_node_is_gone(
    method: str, path: str, headers: dict[str, str], line: str, caplog: pytest.LogCaptureFixture
) -> None:
    actor = Actor()
    client = client_of(actor, FULL)
    sign_in(client, FULL)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "raftsvc.audit"):
        for _ in range(5):
            sent = client.open(path, method=method, json={"what": "evict", "whom": "3"}, headers=headers)
            assert sent.status_code in (401, 403)
        (record,) = caplog.records
        said = record.getMessage().replace(' from="-"', "")
        assert said.startswith(line + ' outcome="refused"')
        actor.stopped.set()
        eventually(lambda: "4 more were refused" in caplog.text, "how many it were is told")
    assert actor.done == [] and FULL.key not in caplog.text


def test_who_was_refused_is_counted_for_a_while_and_noted_at_once_afterwards(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftsvc.operator.console._REFUSALS_EVERY_SECONDS", 0.0)
    console = Actor().console()
    with caplog.at_level(logging.WARNING, "raftsvc.audit"):
        for _ in range(2):
            console.note_refused("-", "key", "-", "sign in", "no key that is known")
            eventually(lambda: not console._is_counting, "nobody tries any more")
    assert caplog.text.count("no key that is known") == 2


def test_operators_are_let_in_by_the_keys_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "operators"
    file.write_text("# who is on call\nanna full fedcba9876543210\n\nscreen read fedcba9876543210\n")
    known = [OperatorKey("anna", "fedcba9876543210", "full"), OperatorKey("screen", "fedcba9876543210")]
    assert operator_keys_in(file.read_bytes()) == known
    assert operator_keys_in(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n")) == known
    asked: list[Any] = []
    monkeypatch.setattr(environment, "start", lambda state, **options: asked.append(options) or state)
    monkeypatch.setattr(environment, "KeyValue", lambda service, state: None)
    given = {"RAFTSVC_ADDR": "n1:1", "RAFTSVC_DIR": "/nowhere", "RAFTSVC_OPERATOR_KEYS_FILE": str(file)}
    kv.start_from_env(given)
    kv.start_from_env(given, operator_keys=[READ])
    assert [options.get("operator_keys_file") for options in asked] == [str(file), None]
    assert "operator_keys" not in asked[0] and asked[1]["operator_keys"] == [READ]
    for wrong in (
        *("anna full\n", "anna full fedcba9876543210 more\n", "anna write fedcba9876543210\n"),
        *("anna fedcba9876543210 full\n", "fedcba9876543210! full anna\n", "anna full fedcba9876\x00543210\n"),
    ):
        file.write_text(wrong)
        with pytest.raises(ConfigurationError, match=r"OPERATOR_KEYS_FILE: .*line 1") as caught:
            kv.start_from_env(given)
        assert "fedcba9876" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        kv.start_from_env({**given, "RAFTSVC_OPERATOR_KEYS_FILE": str(tmp_path / "none")})


def test_the_page_is_behind_a_login_of_flask_as_the_documentation_has_it() -> None:
    pytest.importorskip("flask")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL) if "Flask" in block]
    actor = Actor()
    app = OperatorApp(actor.console(), Host(lambda environ: "nobody asks", False))
    space: dict[str, Any] = {"__name__": __name__, "service": SimpleNamespace(operator_app=app)}
    exec(compile(code, str(DOCS), "exec"), space)
    flask = space["app"]
    flask.config.update(SECRET_KEY="x" * 16, OPERATORS={"anna"})
    for user, status, outcome in ((None, 403, None), ("bob", 403, "forbidden"), ("anna", 200, "done")):
        client = flask.test_client()
        if user is not None:
            with client.session_transaction() as session:
                session["user"] = user
            assert client.get("/ops/raft/").data == HTML.encode()
            assert client.get("/ops/raft/feed").json["operator"]["name"] == user
        answer = client.post("/ops/raft/act", json={"what": "evict", "whom": "3"}, headers=PAGE)
        assert (answer.status_code, (answer.json or {}).get("outcome")) == (status, outcome)
    assert actor.done == [("evict", "3")]
