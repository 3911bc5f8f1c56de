"""Django's app: what its own suite does not ask, with a cluster of this process alone."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import raftsvc
from raftsvc.ext.nodes import TEMPORARY, one_node

django = pytest.importorskip("django")

from django.conf import settings  # noqa: E402
from django.core.management import CommandError, call_command  # noqa: E402
from django.http import HttpResponse  # noqa: E402
from django.test import AsyncClient, Client, override_settings  # noqa: E402

from raftsvc.ext.django import node  # noqa: E402
from raftsvc.kv import ConflictError  # noqa: E402

ROOT = Path(__file__).parent.parent.parent
SECRET = "a key of these tests, long enough"


@pytest.fixture(scope="module", autouse=True)
def project() -> Iterator[None]:
    one_node.stop()
    settings.configure(
        SECRET_KEY=SECRET,
        RAFTSVC_DIR=TEMPORARY,
        INSTALLED_APPS=["raftsvc.ext.django"],
        CACHES={
            "default": {"BACKEND": "raftsvc.ext.django.RaftCache"},
            "other": {"BACKEND": "raftsvc.ext.django.RaftCache", "LOCATION": "other/"},
        },
        SESSION_ENGINE="raftsvc.ext.django.sessions",
    )
    django.setup()
    yield
    one_node.stop()


@pytest.fixture
def cache() -> Any:
    from django.core.cache import caches

    caches["default"].clear()
    return caches["default"]


def name_of(key: str) -> str:
    return f"django/cache//=:1:{key}"


def run_alone(script: str) -> None:
    """In a process of its own, for a process has one configuration of Django, and one node."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAFTSVC_")}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_what_was_said_before_tests_began_is_not_written_to_by_them(tmp_path: Path) -> None:
    node = tmp_path / "node"
    run_alone(
        "import django\nfrom django.conf import settings\n"
        f"settings.configure(SECRET_KEY='s', RAFTSVC_DIR={str(node)!r}, RAFTSVC_ADDR='127.0.0.1:1',\n"
        "    INSTALLED_APPS=['raftsvc.ext.django'])\n"
        "django.setup()\nfrom raftsvc.ext.django import kv, mount\n"
        "mount(lambda environ, start_response: [])  # as a module does that is imported to look for tests in it\n"
        "from django.test.utils import setup_test_environment\nsetup_test_environment()\n"
        "kv.set('a', b'1')\nassert kv.get('a').data == b'1'\n"
    )
    assert not node.exists(), "which may be the server's"


def test_nothing_is_started_where_the_store_is_only_imported() -> None:
    run_alone(
        "import django\nfrom django.conf import settings\n"
        f"settings.configure(SECRET_KEY='s', RAFTSVC_DIR={TEMPORARY!r}, INSTALLED_APPS=['raftsvc.ext.django'],\n"
        "    CACHES={'default': {'BACKEND': 'raftsvc.ext.django.RaftCache'}})\n"
        "django.setup()\nimport threading\nfrom raftsvc.ext.django import kv\nfrom django.core.cache import cache\n"
        "from django.core.management import CommandError, call_command\ncall_command('check')\n"
        # As loaders of tests ask of whatever is in a module.
        "from raftsvc.kv import KeyValue\nassert isinstance(kv, KeyValue) and not isinstance(kv, type)\n"
        "assert not [each for each in threading.enumerate() if each.name.startswith('raftsvc-')]\n"
        "kv.set('a', b'1')\nassert kv['a'] == b'1'\n"
    )


def test_a_whole_number_is_stored_as_such_and_counted(cache: Any) -> None:
    from raftsvc.ext.django import kv

    cache.set("n", 41)
    before = kv.get(name_of("n"))
    assert before is not None and before.data == b"41"
    assert (cache.incr("n"), cache.decr("n", 2), cache.incr("n", 0)) == (42, 40, 40)


def test_what_cannot_be_counted_stays_as_it_is(cache: Any) -> None:
    cache.set_many({"text": "a", "flag": True, "most": 2**63 - 1, "more": 2**63, "below": -5})
    with pytest.raises(ValueError, match="not found"):
        cache.incr("missing")
    with pytest.raises(ValueError, match="not found"):
        cache.decr("missing")
    with pytest.raises(ValueError, match="not found"):
        cache.incr("missing", 0)
    for key in ("text", "flag"):
        with pytest.raises(TypeError, match="no whole number"):
            cache.incr(key)
    for key in ("most", "more"):
        with pytest.raises(OverflowError):
            cache.incr(key)
    with pytest.raises(OverflowError):
        cache.incr("most", 2**64)
    with pytest.raises(OverflowError):
        cache.incr("below", 2**63)  # the sum has 64 bits, and what is added has not
    with pytest.raises(OverflowError):
        cache.decr("more")  # which is no number of 64 bits
    for delta in (1.5, True, "1"):
        with pytest.raises(TypeError, match="delta"):
            cache.incr("most", delta)
    assert cache.get_many(["missing", "text", "flag", "most", "more", "below"]) == {
        "text": "a",
        "flag": True,
        "most": 2**63 - 1,
        "more": 2**63,
        "below": -5,
    }


def test_what_is_made_after_it_could_not_be_counted_is_counted(cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read = type(cache)._read

    def read_late(self: Any, *args: Any, **named: Any) -> Any:
        cache.add("n", 7)
        return read(self, *args, **named)

    monkeypatch.setattr(type(cache), "_read", read_late)
    assert cache.incr("n") == 8


def test_coroutines_count_without_losing(cache: Any) -> None:
    def count() -> None:
        for _ in range(5):
            asyncio.run(cache.aincr("n", 2))
            asyncio.run(cache.adecr("n"))

    cache.set("n", 0)
    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.get("n") == 20


def test_coroutines_do_many_at_once(cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from raftsvc.ext.django import kv

    for name in ("get", "set", "delete"):
        monkeypatch.delattr(type(cache), name)
    many = {"a": 1, "b": [2]}
    assert asyncio.run(cache.aset_many(many)) == []
    assert len({value.version for value in kv.get_many(map(name_of, many)).values()}) == 1
    assert asyncio.run(cache.aget_many(["a", "b", "c"])) == many
    asyncio.run(cache.adelete_many(["a", "c"]))
    assert cache.get_many(many) == {"b": [2]}


def test_what_another_writes_while_it_moves_to_another_version_moves(
    cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    effect = type(cache)._effect
    others = [["late"]]

    def made_late(self: Any, *args: Any) -> Any:
        made = effect(self, *args)
        if others:
            cache.set("a", others.pop())
        return made

    cache.set("a", ["early"])
    monkeypatch.setattr(type(cache), "_effect", made_late)
    assert cache.incr_version("a") == 2
    assert (cache.get("a"), cache.get("a", version=2)) == (None, ["late"])
    assert asyncio.run(cache.adecr_version("a", version=2)) == 1
    assert (cache.get("a"), cache.get("a", version=2)) == (["late"], None)
    with pytest.raises(ValueError, match="not found"):
        cache.incr_version("a", version=2)


def test_what_another_key_signed_or_nobody_is_no_value(cache: Any, caplog: pytest.LogCaptureFixture) -> None:
    from raftsvc.ext.django import kv

    cache.set("a", ["value"])
    cache.set("b", ["other"])
    signed = kv[name_of("a")]
    with override_settings(SECRET_KEY="another one, as long as that"):
        assert cache.get("a", "none") == "none"
        assert cache.get_many(["a"]) == {} and "a" not in cache
        with override_settings(SECRET_KEY_FALLBACKS=[SECRET]):
            assert cache.get("a") == ["value"]
    for data in (kv[name_of("b")], signed[:-1], signed[:20], b"p", b"", b"x"):  # of another name, changed, cut short
        kv[name_of("a")] = data
        assert cache.get("a") is None
    assert not cache.add("a", "whose it is that cannot be read stays so")
    assert "not to be read" in caplog.text


@pytest.mark.filterwarnings("ignore::django.core.cache.backends.base.CacheKeyWarning")
def test_a_key_that_is_too_long_for_the_store_is_one_all_the_same(cache: Any) -> None:
    keys = ["é" * 5000 + end for end in "ab"]
    cache.set_many({key: [key] for key in keys})
    assert cache.get_many(keys) == {key: [key] for key in keys}
    assert cache.delete(keys[0]) and keys[0] not in cache


def test_many_are_written_in_batches_and_one_location_is_emptied(cache: Any) -> None:
    from django.core.cache import caches

    many = {f"k{number}": [number] for number in range(250)}
    assert cache.set_many(many) == []
    caches["other"].set("kept", 1)
    assert cache.get_many(many) == many
    cache.delete_many(list(many)[:120])
    assert len(cache.get_many(many)) == 130
    cache.clear()
    assert cache.get_many(many) == {}
    assert caches["other"].get("kept") == 1


@pytest.mark.parametrize("location", ["😀" * 100, "\ud800", "/" * 5000])
def test_a_location_may_have_any_name(cache: Any, location: str) -> None:
    from raftsvc.ext.django import RaftCache

    named, other = (RaftCache(each, {"KEY_PREFIX": "😀" * 10}) for each in (location, location + "/"))
    for each in (named, other):
        each.set("😀" * 50, location)
    named.clear()
    assert (named.get("😀" * 50), other.get("😀" * 50)) == (None, location)
    other.clear()


def test_options_of_a_cache_that_make_no_sense_are_refused() -> None:
    from raftsvc.ext.django import RaftCache

    for options in ({"max_age": 0}, {"max_age": "1"}, {"wait": -1}, {"wait": True}, {"max_agee": 1}):
        with pytest.raises(django.core.exceptions.ImproperlyConfigured):
            RaftCache("", {"OPTIONS": options})


def test_a_session_that_was_deleted_is_not_brought_back() -> None:
    from django.contrib.sessions.backends.base import UpdateError

    from raftsvc.ext.django.sessions import SessionStore

    session = SessionStore()
    session["user"] = 7
    session.save()
    both = [SessionStore(session.session_key), SessionStore(session.session_key)]
    for number, each in enumerate(both):
        assert each["user"] == 7
        each[f"by{number}"] = 1
    for each in both:  # the later one stands, though it read before the other wrote
        each.save()
    assert dict(SessionStore(session.session_key).items()) == {"user": 7, "by1": 1}
    session.delete()
    with pytest.raises(UpdateError):
        both[0].save()
    assert not both[0].exists(both[0].session_key)


def test_a_session_that_nobody_has_or_wrote_is_none() -> None:
    from django.contrib.sessions.backends.base import CreateError, UpdateError

    from raftsvc.ext.django import kv
    from raftsvc.ext.django.sessions import SessionStore

    with pytest.raises(UpdateError):
        SessionStore("u" * 32).save()
    name = "django/session/" + "b" * 32
    kv[name] = b"\xff\xfe, which is no text"
    assert SessionStore("b" * 32).get("user") is None
    session = SessionStore("b" * 32)
    session.clear()
    session.set_expiry(-1)
    with pytest.raises(CreateError):
        session.save(must_create=True)
    assert name in kv
    SessionStore("of a cookie that is too long for the store" * 100).flush()


class Urls:
    """An URLconf whose views raise, one of which does after the view."""

    handler500 = "raftsvc.ext.django.server_error"

    def __init__(self) -> None:
        from django.urls import path

        self.raised: BaseException = ValueError()
        self.urlpatterns = [path("view", self.view), path("save", self.save)]

    def view(self, request: Any) -> HttpResponse:
        raise self.raised

    def save(self, request: Any) -> HttpResponse:
        request.session["a"] = 1
        return HttpResponse()


def test_an_error_of_the_store_is_answered_by_what_is_known(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from raftsvc.ext.django import serving, sessions

    urls = Urls()
    client = Client(raise_request_exception=False)

    def answer(path: str, error: BaseException) -> tuple[int, str | None]:
        urls.raised = error
        several = [client.get(path), asyncio.run(AsyncClient(raise_request_exception=False).get(path))]
        said = {(each.status_code, each.headers.get("Retry-After")) for each in several}
        assert len(said) == 1
        return said.pop()

    def start() -> Any:
        raise urls.raised

    middleware = ["django.contrib.sessions.middleware.SessionMiddleware", "raftsvc.ext.django.RaftErrors"]
    with override_settings(ROOT_URLCONF=urls, MIDDLEWARE=middleware, ALLOWED_HOSTS=["*"]):
        assert answer("/view", raftsvc.OverloadedError("too many at n1")) == (503, "1")
        assert "too many at n1" in caplog.text
        assert answer("/view", raftsvc.OutcomeUnknown("late")) == (504, None)
        assert answer("/view", ConflictError("key", 1)) == (409, None)
        assert answer("/view", raftsvc.ConfigurationError("of the view's own call")) == (400, None)
        assert answer("/view", ValueError()) == (500, None)
        monkeypatch.setattr(serving, "start", start)
        assert answer("/view", raftsvc.ConfigurationError("of the settings")) == (503, "5")
        monkeypatch.setattr(sessions, "start", start)
        assert answer("/save", raftsvc.OutcomeUnknown("late")) == (504, None)
        assert answer("/save", ValueError()) == (500, None)


def test_peers_are_served_before_django_where_the_node_has_no_port(tmp_path: Path) -> None:
    run_alone(
        "import django\nfrom django.conf import settings\n"
        f"settings.configure(SECRET_KEY='s', RAFTSVC_DIR={str(tmp_path / 'n')!r}, RAFTSVC_ADDR='127.0.0.1:1',\n"
        "    RAFTSVC_INITIAL_CLUSTER=['127.0.0.1:1'], RAFTSVC_SECRET='0123456789abcdef' * 2, RAFTSVC_LISTEN='',\n"
        "    INSTALLED_APPS=['raftsvc.ext.django'], ROOT_URLCONF='none')\n"
        "from django.core.wsgi import get_wsgi_application\nfrom raftsvc.ext.django import kv, mount\n"
        "from werkzeug.test import Client\n"
        "client = Client(mount(get_wsgi_application()))\n"
        "assert client.get('/raft/livez').status_code == 200\nkv.service.stop()\n"
    )


def test_the_command_passes_its_arguments_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from raftsvc.commands import main
    from raftsvc.ext.django.management.commands.raft import Command

    told: list[list[str]] = []

    def tell(arguments: list[str], environ: dict[str, str]) -> int:
        assert environ["RAFTSVC_DIR"] == TEMPORARY
        told.append(arguments)
        return len(told)

    monkeypatch.setattr(main, "main", tell)
    own = ["lock", "a", "--ttl=5", "--", "run", "--settings", "of another"]
    with pytest.raises(SystemExit) as ended:
        Command().run_from_argv(
            ["manage.py", "raft", "--settings", "mysite.settings", own[0], "--pythonpath=.", *own[1:]]
        )
    assert ended.value.code == 1
    with pytest.raises(CommandError) as refused:
        call_command("raft", "status", "--json")
    assert refused.value.returncode == 2
    assert told == [own, ["status", "--json"]]


def test_checks_say_what_is_wrong_with_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raftsvc.ext.django import checks
    from raftsvc.ext.django.checks import check_deployment, check_settings

    def ids(check: Any, **changed: Any) -> list[str]:
        with override_settings(**changed):
            return [each.id for each in check(None)]

    node = {"RAFTSVC_DIR": str(tmp_path / "n"), "RAFTSVC_ADDR": "127.0.0.1:7000", "RAFTSVC_SECRET": "s" * 32}
    assert ids(check_settings) == [] and ids(check_deployment) == ["raftsvc.E003"]
    assert ids(check_settings, **node) == ids(check_deployment, **node) == []
    assert ids(check_settings, RAFTSVC_DIR=" ", RAFTSVC_ADDR=None) == ["raftsvc.W006"]
    assert ids(check_deployment, RAFTSVC_DIR=" ", RAFTSVC_ADDR=None) == ["raftsvc.E001"]
    assert ids(check_settings, RAFTSVC_DIR=" ", RAFTSVC_ADDR="127.0.0.1:7000") == ["raftsvc.E001"]
    assert ids(check_settings, RAFTSVC_DIR=7) == ["raftsvc.E001"]
    assert ids(check_settings, **node, RAFTSVC_SECRTE="s") == ["raftsvc.E001"]
    for served in ({"STATIC_ROOT": tmp_path}, {"MEDIA_ROOT": tmp_path / "n"}, {"STATICFILES_DIRS": [("a", tmp_path)]}):
        assert ids(check_settings, **node, **served) == ["raftsvc.E002"]
    assert ids(check_settings, **node, STATIC_ROOT=tmp_path / "no") == []
    assert ids(check_deployment, **{**node, "RAFTSVC_SECRET": None}) == ["raftsvc.W004"]
    assert ids(check_deployment, **node, SECRET_KEY="s" * 32) == ["raftsvc.W005"]
    (tmp_path / "secret").write_text("new\n" + "s" * 32 + "\n")
    in_file = {**node, "RAFTSVC_SECRET": None, "RAFTSVC_SECRET_FILE": tmp_path / "secret"}
    assert ids(check_deployment, **in_file) == []
    assert ids(check_deployment, **in_file, SECRET_KEY="s" * 32) == ["raftsvc.W005"]
    assert ids(check_deployment, **in_file, SECRET_KEY="") == []
    monkeypatch.setattr(checks, "is_tested", lambda: True)
    assert ids(check_settings, RAFTSVC_DIR=" ") == [], "a test needs no directory"


@pytest.mark.parametrize("argv", [["manage.py", "test"], ["manage.py", "migrate"]])
def test_from_the_first_line_of_a_run_of_tests_the_node_is_a_temporary_one(
    monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    """An application may make something of the store while it is loaded, and keep it: `orders = kv.namespace("o/")`."""
    monkeypatch.setitem(sys.modules, "django.core.management", types.ModuleType("management"))
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.delitem(sys.modules, "django.test.utils", raising=False)
    assert node.is_tested() is (argv[1] == "test")
    monkeypatch.setitem(sys.modules, "pytest_django", types.ModuleType("pytest_django"))
    assert node.is_tested()
