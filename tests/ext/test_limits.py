"""The storage for limits: no more are let in than may be, however many ask at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from limits.storage import storage_from_string

from raftsvc import ConfigurationError
from raftsvc.ext.limits import PREFIX, RaftStorage, Window
from raftsvc.ext.nodes import one_node
from raftsvc.kv import KeyValue, Value

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def storage() -> RaftStorage:
    made = storage_from_string("raftsvc://?wait=60")
    assert isinstance(made, RaftStorage)
    made.reset()
    return made


def hits(ask: Callable[[], bool]) -> int:
    """How many of twelve who ask at once are let in."""
    answers: list[bool] = []
    threads = [threading.Thread(target=lambda: answers.append(ask())) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 12
    return sum(answers)


def test_of_many_at_once_as_many_are_let_in_as_may_be(storage: RaftStorage) -> None:
    assert hits(lambda: storage.acquire_entry("a", 5, 3600)) == 5
    assert hits(lambda: storage.acquire_sliding_window_entry("a", 5, 10**6)) == 5
    assert hits(lambda: storage.incr("a", 3600) <= 5) == 5


def test_a_key_is_no_beginning_of_anothers(storage: RaftStorage) -> None:
    assert storage.acquire_entry("a/b", 1, 3600)
    assert storage.acquire_entry("a", 1, 3600)
    storage.clear("a")
    assert not storage.acquire_entry("a/b", 1, 3600)
    assert storage.acquire_entry("a", 1, 3600)


def test_a_long_key_counts_as_any_other(storage: RaftStorage) -> None:
    assert storage.incr("/" * 5000, 3600) == 1
    assert storage.get("/" * 5000) == 1
    assert storage.get("/" * 5001) == 0


def test_a_key_may_be_whatever_a_client_sent(storage: RaftStorage) -> None:
    for key in ("\udc80", "😀" * 100):
        assert [storage.incr(key, 3600) for _ in range(2)] == [1, 2]
        assert storage.acquire_entry(key, 1, 3600) and not storage.acquire_entry(key, 1, 3600)
        assert storage.acquire_sliding_window_entry(key, 1, 3600)
        assert not storage.acquire_sliding_window_entry(key, 1, 3600)


def test_a_count_is_forgotten_together_with_when_it_ends(storage: RaftStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(120):
        storage.incr(f"{number}", 3600)
    transaction = KeyValue.transaction

    def do_and_look(self: KeyValue, *args: Any) -> int:
        index = transaction(self, *args)
        counts, ends = (len(self.list_stale(f"{PREFIX}{kind}/")) for kind in ("fixed", "ends"))
        assert counts == ends, "else a hit just now would begin one of them, and go on with the other"
        return index

    monkeypatch.setattr(KeyValue, "transaction", do_and_look)
    assert storage.reset() == 120
    assert not one_node.store().list(PREFIX)


def test_of_a_sliding_window_no_other_is_looked_at(storage: RaftStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("a", "ab", "a/b"):
        assert storage.acquire_sliding_window_entry(key, 1, 3600)
    seen: list[int] = []
    list_stale = KeyValue.list_stale

    def look(self: KeyValue, prefix: str) -> dict[str, Value]:
        found = list_stale(self, prefix)
        seen.append(len(found))
        return found

    monkeypatch.setattr(KeyValue, "list_stale", look)
    assert not storage.acquire_sliding_window_entry("a", 1, 3600)
    assert seen == [1]


def test_a_window_ends_when_its_first_hit_said(storage: RaftStorage) -> None:
    storage.incr("a", 3600)
    ends = storage.get_expiry("a")
    storage.incr("a", 7200)
    assert storage.get_expiry("a") == ends


def test_a_clock_that_is_behind_opens_no_former_window() -> None:
    window = Window(began=1000, at=1500, current=3).shifted(2100, 1000)
    assert window == Window(2000, 2100, 0, 3)
    assert window.shifted(1200, 1000) == window
    assert window.weight(1000) == pytest.approx(2.7)
    assert window.shifted(9000, 1000) == Window(9000, 9000)


@pytest.mark.parametrize(
    "url",
    [
        "raftsvc://?wait=x",
        "raftsvc://?wiat=1",
        "raftsvc://?key_file=/k",
        "raftsvc://name:key@h:1",
        "raftsvc://h:1?https=2",
    ],
)
def test_a_url_that_makes_no_sense_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        storage_from_string(url)
