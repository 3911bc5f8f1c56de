"""The driver of tooz, where tooz is installed: what its own tests do not ask (`python -m tests.conformance tooz`)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("tooz")

import tooz
from oslo_utils import netutils
from tooz import coordination

from raftsvc import ConfigurationError, NotApplied, ReadTimeoutError
from raftsvc.ext.nodes import one_node
from raftsvc.ext.tooz import PREFIX, RaftDriver
from raftsvc.kv import KeyValue
from raftsvc.recipes import Lease
from tests.service.harness import PATIENCE, eventually

pytestmark = pytest.mark.usefixtures("alone")

Make = Callable[..., RaftDriver]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[RaftDriver] = []

    def make(member: bytes = b"one", url: str = "raftsvc://", start_heart: bool = False, **options: Any) -> RaftDriver:
        parsed = netutils.urlsplit(url)
        driver = RaftDriver(member, parsed, {**parsed.params(collapse=False), **options})
        driver.start(start_heart=start_heart)
        made.append(driver)
        return driver

    yield make
    for driver in made:
        if driver.is_started:
            driver.stop()
    assert not [key for key in one_node.store().list(PREFIX + "groups/") if not key.endswith("/")], "all have left"
    for key in one_node.store().list():
        one_node.store().delete(key)


def fail(error: Exception) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> None:
        raise error

    return call


def test_what_is_said_beside_the_url_counts_as_what_it_says(make: Make) -> None:
    for driver in (make(prefix=["a/"]), make(url="raftsvc://?prefix=a/")):
        driver.join_group_create(b"workers")
        driver.stop()
    assert list(one_node.store().list()) == [f"a/{PREFIX}groups/workers/"]


def test_it_stops_though_its_heart_is_not_heard(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()

    def refresh(self: Lease, timeout: float = 5.0) -> None:
        failed.set()
        raise NotApplied("nobody leads")

    monkeypatch.setattr(Lease, "refresh", refresh)
    driver = make(start_heart=True)
    assert failed.wait(PATIENCE)
    thread = threading.Thread(target=driver.stop, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_it_lets_go_of_all_it_holds_though_nobody_answers(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = make()
    lock = driver.get_lock(b"lock")
    assert lock.acquire(shared=True) and lock.acquire(shared=True)
    driver.watch_elected_as_leader(b"group", lambda event: None)
    driver.run_watchers()
    with monkeypatch.context() as patch:
        for name in ("get", "list"):
            patch.setattr(KeyValue, name, fail(ReadTimeoutError("nobody answers")))
        patch.setattr(Lease, "revoke", fail(NotApplied("nobody leads")))
        driver.stop()
    other = make(b"other")
    assert other.get_lock(b"lock").acquire(blocking=False)
    assert other.get_leader(b"group").get() is None


def test_who_does_not_watch_an_election_is_not_elected(make: Make) -> None:
    driver = make()
    with pytest.raises(coordination.WatchCallbackNotFound):
        driver.unwatch_elected_as_leader(b"group", lambda event: None)
    driver.run_watchers()
    assert driver.get_leader(b"group").get() is None


@pytest.mark.parametrize("name", ["😀".encode() * 100, b"a/%2F", b"\xff\xed\xa0\x80"])
def test_ids_may_be_any_bytes_and_are_given_back_as_they_were(make: Make, name: bytes) -> None:
    driver = make(name)
    driver.create_group(name).get()
    driver.join_group(name).get()
    assert (driver.get_groups().get(), driver.get_members(name).get()) == ([name], {name})
    driver.watch_elected_as_leader(name, lambda _: None)
    driver.run_watchers()
    assert driver.get_leader(name).get() == name
    lock, other = driver.get_lock(name), driver.get_lock(name * 50)
    assert lock.acquire() and other.acquire() and not driver.get_lock(name).acquire(blocking=False)
    assert lock.release() and other.release()


def test_what_is_too_long_is_refused_and_nothing_is_written(make: Make) -> None:
    with pytest.raises(tooz.ToozError, match="at most 400 bytes"):
        make(b"x" * 401)
    driver = make()
    for call in (driver.create_group, driver.join_group, driver.get_members, driver.get_leader):
        with pytest.raises(tooz.ToozError, match="at most 400 bytes"):
            call("😀".encode() * 101).get()
    assert not one_node.store().list(PREFIX)


@pytest.mark.parametrize("seconds", [0, 0.5, "nan", "inf", 1e6])
def test_timeouts_that_no_cluster_takes_are_refused_at_once(make: Make, seconds: object) -> None:
    for option in ("timeout", "membership_timeout", "lock_timeout"):
        with pytest.raises(ConfigurationError, match="timeouts are"):
            make(**{option: [seconds]})


def test_who_was_not_heard_of_for_long_may_join_again(make: Make) -> None:
    driver = make(membership_timeout=[4])
    driver.join_group_create(b"group")
    eventually(lambda: not driver.get_members(b"group").get(), "it is no member any more")
    driver.join_group(b"group").get()
    assert driver.get_members(b"group").get() == {b"one"}
    driver.heartbeat()


def test_a_lock_that_is_granted_after_the_end_is_let_go_of(make: Make) -> None:
    holder, waiter = make(), make(b"waiter")
    held = holder.get_lock(b"lock")
    assert held.acquire()
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            waiter.get_lock(b"lock").acquire()
        except tooz.ToozError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    claimed = f"{PREFIX}lock:lock:0"
    eventually(lambda: len(one_node.store().claims(claimed)) == 2, "it waits")
    waiter.stop()
    held.release()
    thread.join(PATIENCE)
    assert errors
    assert make(b"third").get_lock(b"lock").acquire(timeout=PATIENCE)
