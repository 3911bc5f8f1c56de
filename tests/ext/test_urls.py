"""A URL says which cluster: the node of this process, that of a directory, or members over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import raftsvc
from raftsvc.ext.cachelib import RaftCache
from raftsvc.ext.limits import RaftStorage
from raftsvc.ext.urls import Place
from raftsvc.kv import KeyValue, KeyValueState
from tests.service.harness import PATIENCE, SECRET, free_address

KEY = raftsvc.ClientKey("app", "a key of a client, long enough", "write")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("urls")


@pytest.fixture(scope="module")
def node(home: Path) -> Iterator[KeyValue]:
    """Of a port of its own."""
    addr, state = free_address(), KeyValueState()
    service = raftsvc.start(addr, home / "node", state=state, secret=SECRET, listen=addr, client_keys=[KEY])
    service.init()
    (home / "key").write_text(f"{KEY.name}:{KEY.key}\n")
    yield KeyValue(service, state)
    service.stop()


@pytest.fixture(params=["directory", "members"])
def url(node: KeyValue, home: Path, request: pytest.FixtureRequest) -> str:
    if request.param == "directory":
        return f"raftsvc://{home}/node?prefix=below/"
    return f"raftsvc://{node.service.status()['addr']},127.0.0.1:1/below/?key_file={home}/key"


def test_a_cache_of_any_size_is_emptied_from_elsewhere(node: KeyValue, url: str) -> None:
    node.set("cache/mine", b"1")
    cache = RaftCache(key="k" * 16, url=url, wait=PATIENCE)
    for number in range(9):  # more than an answer has by the socket of a directory
        cache.set(f"{number}", b"x" * 400_000)
    assert len(node.list("below/cache/")) == 9
    assert cache.get("8") == b"x" * 400_000
    assert cache.inc("n") == 1
    cache.clear()
    assert not node.list("below/")
    assert node["cache/mine"] == b"1", "of another prefix"


def test_windows_are_counted_from_elsewhere(node: KeyValue, url: str) -> None:
    storage = RaftStorage(url + ("&" if "?" in url else "?") + f"wait={PATIENCE}")
    assert storage.check()
    assert [storage.incr("a", 3600) for _ in range(2)] == [1, 2]
    assert [storage.acquire_entry("a", 1, 3600) for _ in range(2)] == [True, False]
    assert [storage.acquire_sliding_window_entry("a", 1, 3600) for _ in range(2)] == [True, False]
    assert storage.get_moving_window("a", 1, 3600)[1] == 1
    assert storage.reset() == 3
    assert not node.list("below/")


def test_a_place_has_one_store_for_all_calls(url: str) -> None:
    place = Place(url)
    assert place.kept() is place.kept()


@pytest.mark.parametrize(
    "url", ["raftsvc://[::1", "redis://", "raftsvc://?https=1", "raftsvc://a@h:1", "raftsvc://h:1?https=2"]
)
def test_a_url_that_makes_no_sense_is_refused(url: str) -> None:
    with pytest.raises(raftsvc.ConfigurationError):
        Place(url)


def test_members_are_addressed_by_version_6_too(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY.name}:{KEY.key}")
    assert Place(f"raftsvc://[::1]:8001,[::2]:8002?key_file={tmp_path}/key").store()
