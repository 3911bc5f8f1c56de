"""Who may wait, for how long he waits for a place, and which threads peers can count on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

import raftsvc
from raftsvc.host import admission as admission_module
from raftsvc.host import servers
from raftsvc.host.admission import Admission
from raftsvc.host.servers import HostPool
from tests.service.harness import eventually, in_background

FAR = float("inf")


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a place waits as long as the test needs."""
    monkeypatch.setattr(admission_module, "PATIENCE_SECONDS", 60.0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_module, "PATIENCE_SECONDS", 0.0)


def fill(admission: Admission) -> int:
    """Take every place; how many there were."""
    for taken in range(1000):
        try:
            admission.enter(time.monotonic())
        except raftsvc.OverloadedError:
            return taken
    raise AssertionError("there is no limit")


POOLS: list[tuple[str, Callable[[], Admission]]] = [
    ("a shared pool", lambda: Admission(None, HostPool("x", 8), False, lambda: True)),
    ("a number that was given", lambda: Admission(4, None, has_listener=False)),
    ("a number, and a port for peers", lambda: Admission(4, HostPool("x", 8), has_listener=True)),
]


@pytest.fixture(params=[make for _, make in POOLS], ids=[name for name, _ in POOLS])
def full(request: pytest.FixtureRequest) -> Admission:
    admission: Admission = request.param()
    assert fill(admission) in (4, 7)
    return admission


def test_a_caller_gets_the_place_that_becomes_free_meanwhile(full: Admission, patient: None) -> None:
    before = full.waiting
    entered = in_background(lambda: full.enter(FAR))
    full.leave()
    entered()
    assert full.waiting == before


def test_a_caller_is_told_when_none_becomes_free(full: Admission, impatient: None) -> None:
    before = full.waiting
    with pytest.raises(raftsvc.OverloadedError) as refused:
        full.enter(FAR)
    assert refused.value.retry_after
    assert full.waiting == before


def test_a_caller_waits_no_longer_than_he_said(full: Admission, patient: None) -> None:
    with pytest.raises(raftsvc.OverloadedError):
        full.enter(time.monotonic() + 0.01)


def test_one_waits_in_a_thread_that_peers_may_need_and_the_others_are_told_at_once(patient: None) -> None:
    is_heard = True
    admission = Admission(None, HostPool("x", 8), False, lambda: is_heard)
    fill(admission)
    first = in_background(lambda: admission.enter(FAR))
    eventually(lambda: admission._queued, "the first waits")
    for _ in range(3):
        with pytest.raises(raftsvc.OverloadedError):  # though there is no hurry
            admission.enter(FAR)
    admission.leave()
    first()
    is_heard = False
    for _ in range(3):
        with pytest.raises(raftsvc.OverloadedError):  # no thread can be spared to wait in
            admission.enter(FAR)


def test_where_peers_have_a_port_of_their_own_all_may_wait_for_a_place(patient: None) -> None:
    admission = Admission(2, HostPool("x", 8), has_listener=True)
    fill(admission)
    calls = [in_background(lambda: admission.enter(FAR)) for _ in range(6)]
    eventually(lambda: admission._queued == 6, "all wait")
    for _ in range(6):
        eventually(lambda: admission.waiting, "somebody has a place")
        admission.leave()
    for call in calls:
        call()
    assert admission.waiting == 2


@pytest.mark.parametrize("threads", [3, 4, 8, 12, 64])
def test_while_all_peers_are_heard_through_streams_one_more_may_wait(threads: int, impatient: None) -> None:
    is_heard = False
    admission = Admission(None, HostPool("x", threads), False, lambda: is_heard)
    assert fill(admission) == max(1, threads - 2)
    is_heard = True
    assert fill(admission) == 1
    assert admission.waiting == threads - 1, "a thread is left for a peer that comes again"
    is_heard = False
    admission.leave()
    assert fill(admission) == 0, "what a peer needs again is not given to the next"


@pytest.mark.parametrize(("threads", "peers"), [(8, 2), (12, 4), (16, 2)])
def test_a_stream_that_is_opened_again_finds_its_thread_though_all_places_are_taken(
    monkeypatch: pytest.MonkeyPatch, impatient: None, threads: int, peers: int
) -> None:
    host = HostPool("x", threads)
    monkeypatch.setattr(servers, "find_host", lambda environ=None: host)
    admission = Admission(None, host, False, lambda: True)
    releases = [admission.pin({}, peers) for _ in range(peers)]
    assert fill(admission) == threads - peers - 1
    releases[0]()
    admission.pin({}, peers)


def test_many_more_callers_than_places_are_all_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as a server has threads, of which more than one at a time has to wait for a place."""
    admission = Admission(4, HostPool("x", 64), has_listener=True)
    refused: list[int] = []

    def work() -> None:
        for _ in range(50):
            try:
                admission.enter(FAR)
            except raftsvc.OverloadedError:
                refused.append(1)
                continue
            admission.leave()

    threads = [threading.Thread(target=work) for _ in range(16)]
    monkeypatch.setattr(admission_module, "PATIENCE_SECONDS", 60.0)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    assert not refused
    assert admission.waiting == 0
