"""The cache for cachelib: who may write the store has no code run, nothing else is cleared, and counting is exact."""

from __future__ import annotations

import pickle
from datetime import timedelta
from pathlib import Path

import pytest

from raftsvc import ConfigurationError
from raftsvc.ext.cachelib import PREFIX, RaftCache
from raftsvc.ext.nodes import one_node
from raftsvc.kv import CounterError

pytestmark = pytest.mark.usefixtures("alone")

KEY, OTHER = "k" * 16, "o" * 16


@pytest.fixture
def cache() -> RaftCache:
    made = RaftCache(key=KEY)
    made.clear()
    return made


def test_a_value_that_others_wrote_is_not_unpickled(cache: RaftCache, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "touched",)

    one_node.store().set(f"{PREFIX}a", b"p" + bytes(32) + pickle.dumps(Evil()))
    assert cache.get("a") is None
    assert not (tmp_path / "touched").exists()


def test_a_value_is_good_for_its_own_name_alone(cache: RaftCache) -> None:
    cache.set("user", ["admin"])
    signed = one_node.store()[f"{PREFIX}user"]
    one_node.store()[f"{PREFIX}guest"] = signed
    assert cache.get("user") == ["admin"]
    assert cache.get("guest") is None


def test_a_key_is_changed_without_losing_what_there_is(cache: RaftCache) -> None:
    cache.set("a", "old")
    assert RaftCache(key=[OTHER, KEY]).get("a") == "old"
    assert RaftCache(key=OTHER).get("a") is None


def test_clear_leaves_what_is_others(cache: RaftCache) -> None:
    one_node.store()["cachet"] = b"kept"
    mine = RaftCache(key=KEY, key_prefix="mine:")
    mine.set_many({str(number): number for number in range(250)})
    cache.set("theirs", 1)
    mine.clear()
    assert not any(mine.get_many(*map(str, range(250))))
    assert cache.get("theirs") == 1
    assert one_node.store()["cachet"] == b"kept"


@pytest.mark.parametrize("key", ["k" * 5000, "😀" * 100, "\udc80", "k" * 5000 + "\udc80"])
def test_a_key_may_be_whatever_a_client_sent(cache: RaftCache, key: str) -> None:
    assert cache.get(key) is None
    assert cache.set(key, 1)
    assert cache.get_dict(key, key + "l") == {key: 1, key + "l": None}
    assert cache.inc(key) == 2
    assert cache.delete(key) and not cache.has(key)


@pytest.mark.parametrize("key", ["k" * 5000, "k" * 600, "😀" * 100])
def test_a_prefix_of_any_alphabet_has_room_for_any_key(key: str) -> None:
    for prefix in ("😀" * 100, lambda: "😀" * 100):
        cache = RaftCache(key=KEY, key_prefix=prefix)
        assert cache.set(key, 1) and cache.get(key) == 1
        assert cache.clear() and cache.get(key) is None


@pytest.mark.parametrize("prefix", ["x" * 401, "😀" * 101, "\ud800"])
def test_a_prefix_that_begins_no_key_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigurationError, match="at most 400 bytes"):
        RaftCache(key=KEY, key_prefix=prefix)
    with pytest.raises(ConfigurationError, match="at most 400 bytes"):
        RaftCache(key=KEY, key_prefix=lambda: prefix).set("a", 1)


def test_what_is_no_number_is_not_counted(cache: RaftCache) -> None:
    for value in (True, "7", 2**64):
        cache.set("n", value)
        assert cache.get("n") == value
        with pytest.raises(CounterError):
            cache.inc("n")


@pytest.mark.parametrize("timeout", [0, timedelta()])
def test_no_timeout_is_for_ever_and_a_negative_one_is_over(cache: RaftCache, timeout: int | timedelta) -> None:
    assert cache.set("a", 1, timeout)
    assert cache.set("a", 2, -1)
    assert not cache.has("a")
    assert cache.set("a", 3, timedelta(seconds=-0.1)), "as what is left of a time that is just over"
    assert not cache.has("a")


@pytest.mark.parametrize("options", [{}, {"key": "short"}, {"key": KEY, "key_file": "/f"}, {"key_file": "/none"}])
def test_a_cache_without_a_key_is_refused(options: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError):
        RaftCache(**options)  # type: ignore[arg-type]


def test_keys_are_read_from_a_file(tmp_path: Path, cache: RaftCache) -> None:
    (tmp_path / "keys").write_text(f"{OTHER}\n{KEY}\n")
    cache.set("a", "old")
    assert RaftCache(key_file=str(tmp_path / "keys")).get("a") == "old"
