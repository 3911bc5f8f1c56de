"""Flask-Limiter, Flask-Caching and Flask-Session, each before a view, over the node of the process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask import Flask, session
from flask_caching import Cache

from raftsvc import ReadTimeoutError
from raftsvc.ext.cachelib import PREFIX, RaftCache
from raftsvc.ext.flask import Raft
from raftsvc.ext.nodes import one_node
from raftsvc.kv import KeyValue
from tests.service.harness import eventually

flask_limiter = pytest.importorskip("flask_limiter")
flask_session = pytest.importorskip("flask_session")

pytestmark = pytest.mark.usefixtures("alone")

KEY = "k" * 16
STRATEGIES = ["fixed-window", "moving-window", "sliding-window-counter"]


@pytest.fixture(autouse=True)
def emptied(alone: None) -> Iterator[None]:
    yield
    for key in one_node.store().list():
        one_node.store().delete(key)


@pytest.fixture
def is_silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The cluster does not answer, until this is undone."""

    def fail(*_: object, **__: object) -> None:
        raise ReadTimeoutError("nobody answers")

    with monkeypatch.context() as patch:
        for name in ("get", "get_many", "list", "perform", "set"):
            patch.setattr(KeyValue, name, fail)
        yield patch


def limited(strategy: str = "fixed-window", **options: object) -> Flask:
    import raftsvc.ext.limits  # noqa: F401 - makes the scheme known

    app = Flask(__name__)
    limiter = flask_limiter.Limiter(
        lambda: "alice",
        app=app,
        storage_uri="raftsvc://?wait=5",
        strategy=strategy,
        headers_enabled=True,
        **options,
    )

    @app.get("/")
    @limiter.limit("2/hour")
    def index() -> str:
        return "hello"

    return app


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_applications_count_by_the_same_windows(strategy: str) -> None:
    one, other = limited(strategy).test_client(), limited(strategy).test_client()
    answers = [one.get("/"), other.get("/"), one.get("/"), other.get("/")]
    assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
    assert [answer.headers["X-RateLimit-Remaining"] for answer in answers] == ["1", "0", "0", "0"]
    assert 3500 < int(answers[2].headers["Retry-After"]) <= 3600


def test_a_request_whose_hit_is_not_counted_is_told_so(is_silent: pytest.MonkeyPatch) -> None:
    app = limited()
    Raft(app)
    assert app.test_client().get("/").status_code == 503


def test_errors_are_swallowed_where_that_is_asked_for(is_silent: pytest.MonkeyPatch) -> None:
    assert limited(swallow_errors=True).test_client().get("/").status_code == 200


def test_it_counts_by_itself_until_the_cluster_answers_again(is_silent: pytest.MonkeyPatch) -> None:
    client = limited(in_memory_fallback_enabled=True).test_client()
    assert [client.get("/").status_code for _ in range(3)] == [200, 200, 429]
    is_silent.undo()
    eventually(lambda: client.get("/").status_code == 200, "it asks the cluster again, which it does now and then")


def test_views_are_kept_for_all_and_called_where_nobody_answers(is_silent: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def cached() -> Flask:
        app = Flask(__name__)
        app.config["CACHE_TYPE"] = "raftsvc.ext.cachelib.RaftCache"
        app.config["CACHE_OPTIONS"] = {"key": KEY}
        cache = Cache(app)

        @app.get("/<path:name>")
        @cache.cached(timeout=3600)
        def page(name: str) -> str:
            calls.append(name)
            return name

        return app

    one, other = cached().test_client(), cached().test_client()
    assert one.get("/a").text == "a" and one.get("/a").text == "a"
    assert calls == ["a", "a"]
    is_silent.undo()
    for client in (one, other):
        assert client.get("/b").text == "b"
        assert client.get("/" + "c" * 2000).text == "c" * 2000
    assert calls == ["a", "a", "b", "c" * 2000]


def test_a_session_is_known_to_all_applications() -> None:
    def remembering() -> Flask:
        app = Flask(__name__)
        app.config["SESSION_TYPE"] = "cachelib"
        app.config["SESSION_CACHELIB"] = RaftCache(key=KEY)
        flask_session.Session(app)

        @app.get("/")
        def index() -> str:
            session["count"] = session.get("count", 0) + 1
            return str(session["count"])

        return app

    one, other = remembering().test_client(), remembering().test_client()
    assert one.get("/").text == "1"
    cookie = one.get_cookie("session")
    assert cookie is not None
    other.set_cookie("session", cookie.value)
    assert [other.get("/").text, one.get("/").text] == ["2", "3"]
    one_node.store()[f"{PREFIX}session:{cookie.value}"] = b"p" + bytes(40)
    assert one.get("/").text == "1", "what somebody put there is no session"
    for made_up in ("x" * 3000, "../../etc"):
        other.set_cookie("session", made_up)
        assert other.get("/").text == "1"
