"""The storage for limits: no more are let in than may be, however many ask at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from limits.storage import storage_from_string

from raftsvc import ConfigurationError
from raftsvc.ext.limits import RaftStorage, Window
from raftsvc.ext.nodes import TEMPORARY, one_node


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAFTSVC_DIR", TEMPORARY)
        yield
        one_node.stop()


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
