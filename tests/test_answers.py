"""What an application's HTTP client is told of an error, and how long a caller waits who said nothing."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import raftsvc
from raftsvc import errors
from raftsvc.kv import Compacted, ConflictError, CounterError, KeyValue, Replication
from raftsvc.recipes import OnceError

SECRET_THINGS = "/var/lib/app/wal/00000001 10.1.2.3:8000 users/jane@example.org s3cret"


def every_error() -> Iterator[type[raftsvc.RaftError]]:
    """Those of the library, wherever they are defined."""
    pending: list[type[raftsvc.RaftError]] = [raftsvc.RaftError]
    while pending:
        kind = pending.pop()
        yield kind
        pending += [each for each in kind.__subclasses__() if each.__module__.startswith("raftsvc.")]


def make(kind: type[raftsvc.RaftError]) -> raftsvc.RaftError:
    made = {
        errors.DamagedStorageError: lambda: errors.DamagedStorageError(SECRET_THINGS, 7, SECRET_THINGS),
        ConflictError: lambda: ConflictError(SECRET_THINGS, 7),
        CounterError: lambda: CounterError(SECRET_THINGS, SECRET_THINGS),
        OnceError: lambda: OnceError(SECRET_THINGS, "failed", SECRET_THINGS),
        Compacted: lambda: Compacted(SECRET_THINGS, 7),
        errors.FormatVersionError: lambda: errors.FormatVersionError(SECRET_THINGS, "2", "1"),
    }
    factory: Callable[[], raftsvc.RaftError] = made.get(kind, lambda: kind(SECRET_THINGS))
    return factory()


def answer(error: BaseException, **options: Any) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers and content, as a WSGI server gets them."""
    started: list[Any] = []
    chunks = raftsvc.error_response(error, **options)(
        {"REQUEST_METHOD": "GET", "wsgi.url_scheme": "http", "HTTP_HOST": "x"},
        lambda status, headers, exc_info=None: started.extend((status, headers)),
    )
    content = json.loads(b"".join(chunks))
    return int(started[0].split()[0]), dict(started[1]), content


@pytest.mark.parametrize("kind", list(every_error()), ids=lambda kind: kind.__name__)
def test_every_error_has_an_answer_that_tells_no_secrets(kind: type[raftsvc.RaftError]) -> None:
    status, headers, content = answer(make(kind))
    assert 400 <= status < 600
    assert content["status"] == status == kind.http_status
    assert content["code"] == kind.__name__
    assert headers["Content-Type"] == "application/problem+json"
    assert ("Retry-After" in headers) == (status == 503)
    text = json.dumps([content, headers])
    assert not any(word in text for word in SECRET_THINGS.split())
    assert content["detail"].endswith(".")


@pytest.mark.parametrize("kind", list(every_error()), ids=lambda kind: kind.__name__)
def test_the_status_says_what_is_known_of_the_outcome(kind: type[raftsvc.RaftError]) -> None:
    if issubclass(kind, raftsvc.NotApplied):
        assert kind.http_status in (503, 413, 400), "certainly not done"
    if issubclass(kind, (raftsvc.OutcomeUnknown, raftsvc.MembershipTimeoutError)) and not issubclass(
        kind, raftsvc.MembershipUnchangedError
    ):
        assert kind.http_status == 504, "may have been done"
        assert kind.retry_after is None
    if kind is not raftsvc.RaftError:
        assert kind.http_detail != raftsvc.RaftError.http_detail, "somebody has thought of it"


def test_only_what_is_nobodys_fault_but_ours_is_an_internal_error() -> None:
    internal = {kind.__name__ for kind in every_error() if kind.http_status == 500}
    assert internal == {
        "RaftError",
        "StorageError",
        "DamagedStorageError",
        "FormatVersionError",
        "ConsensusError",
        "MalformedSnapshotError",
        "ForeignSnapshotError",
    }


def test_a_conflict_is_a_conflict() -> None:
    assert answer(ConflictError("a", 3))[0] == 409


def test_who_is_refused_for_too_many_is_told_when_to_come_again() -> None:
    assert answer(raftsvc.OverloadedError("full", retry_after=2.4))[1]["Retry-After"] == "3"
    assert answer(raftsvc.OverloadedError("full", retry_after=0.01))[1]["Retry-After"] == "1"


def test_an_application_can_say_more() -> None:
    rejected = raftsvc.Rejected("the account has not that much")
    assert answer(rejected)[2]["detail"] != rejected.reason
    assert answer(rejected, detail=rejected.reason)[2]["detail"] == rejected.reason


def test_an_error_of_the_application_s_own_may_derive_from_ours() -> None:
    class Late(raftsvc.NotApplied):
        http_status = 429
        retry_after = 30.0

    status, headers, _ = answer(Late(SECRET_THINGS))
    assert (status, headers["Retry-After"]) == (429, "30")


def test_what_is_none_of_ours_tells_nothing_either() -> None:
    status, _, content = answer(KeyError(SECRET_THINGS))
    assert status == 500
    assert "KeyError" not in json.dumps(content) and "s3cret" not in json.dumps(content)


def test_flask_takes_it_as_it_is() -> None:
    flask = pytest.importorskip("flask")
    app = flask.Flask(__name__)
    app.register_error_handler(raftsvc.RaftError, raftsvc.error_response)

    @app.get("/")
    def fail() -> str:
        raise raftsvc.OverloadedError(SECRET_THINGS)

    response = app.test_client().get("/")
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert response.get_json(force=True)["code"] == "OverloadedError"


@pytest.mark.parametrize("owner", [raftsvc.Service, KeyValue, Replication], ids=lambda owner: owner.__name__)
def test_who_says_nothing_waits_less_long_than_proxies_and_workers_do(owner: type) -> None:
    writes = {"exec", "transaction", "set", "set_json", "touch", "incr", "update", "delete", "allow", "disallow"}
    reads = {"wait_read", "get", "get_many", "get_json", "list", "allowed", "get_stale", "get_many_stale", "list_stale"}
    seen = {}
    for name in writes | reads:
        function = getattr(owner, name, None)
        if function is not None:
            seen[name] = inspect.signature(function).parameters["timeout"].default
    assert seen == {name: 10.0 if name in writes else 5.0 for name in seen}
    assert seen
