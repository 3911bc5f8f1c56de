"""A connection that is closed: nobody waits by it any longer, and nothing is asked, kept or called later."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import raftsvc
from raftsvc import kv
from tests.client.harness import Members
from tests.service.harness import eventually, in_background
from tests.service.test_forks import in_child

MakeMembers = Callable[..., Members]
LONG = 600.0

FACES: dict[str, Callable[[kv.KeyValue], object]] = {
    "lock": lambda store: store.lock("x", ttl=LONG).acquire(),
    "reading": lambda store: store.rwlock("x", ttl=LONG).reading().acquire(),
    "writing": lambda store: store.rwlock("x", ttl=LONG).writing().acquire(),
    "semaphore": lambda store: store.semaphore("x", 1, ttl=LONG).acquire(),
    "claim": lambda store: store.claim("x", ttl=LONG),
    "queue": lambda store: store.queue("x", ttl=LONG).get(),
    "lead": lambda store: store.election("x", ttl=LONG).run(lambda lost: None),
    "observe": lambda store: list(store.election("x").observe()),
    "party": lambda store: list(store.party("x").watch()),
    "claims": lambda store: store.wait_claims("z", [], LONG),
    "once": lambda store: store.once("x", lambda: None, ttl=LONG),
    "barrier": lambda store: store.barrier("x").wait(),
    "changed": lambda store: store.wait_changed("z", 0, LONG),
    "meeting": lambda store: store.meeting("x", 2, ttl=LONG).enter(),
    "ticket": lambda store: store.ticket("x", ttl=LONG).acquire(LONG),
}
AT_ONCE: dict[str, Callable[[kv.KeyValue], object]] = {
    "join": lambda store: store.party("x", ttl=LONG).join(),
    "lease": lambda store: store.lease(LONG),
    "get": lambda store: store.get("x"),
    "stale": lambda store: store.get_stale("x"),
    "set": lambda store: store.set("x", b""),
    "exec": lambda store: store.service.exec(b""),
    "query": lambda store: store.service.query(b""),
    "status": lambda store: store.service.status(),
}


@pytest.fixture
def members(make_members: MakeMembers) -> Members:
    """One, at which all is held or closed that the faces wait for."""
    made = make_members(1)
    store = made.nodes[0].kv
    for name in ("lock:x", "semaphore:x", "x", "election:x", "once:x"):
        assert store.claim(name, ttl=LONG, timeout=10.0) is not None
    assert store.rwlock("x", ttl=LONG).writing().acquire(timeout=10.0)
    store.barrier("x").close()
    return made


def told(call: Callable[[], Any]) -> str:
    """What a caller in the background is told."""
    try:
        return f"returned {call()!r}"
    except BaseException as error:
        return type(error).__name__


def test_who_waits_is_told_that_the_connection_was_closed(members: Members) -> None:
    gate = members.nodes[0].gate
    clients, waiting = [], {}

    def asked(times: int) -> bool:
        return len(gate.seen) >= times

    for name, face in FACES.items():
        client, before = members.connect(), len(gate.seen)
        waiting[name] = in_background(partial(face, client))
        eventually(partial(asked, before + 3), f"{name} asks")
        clients.append(client)
    for client in clients:
        client.service.close()
    expected = {
        **dict.fromkeys(FACES, "StoppedError"),
        "ticket": "OutcomeUnknown",
    }  # which may be held until its ttl is over
    assert {name: told(call) for name, call in waiting.items()} == expected


def test_who_calls_afterwards_is_told_that_the_connection_was_closed(members: Members) -> None:
    fresh, used = members.connect(), members.connect()
    assert used.lock("y", ttl=LONG).acquire()
    for client in (fresh, used):
        client.service.close()
        seen = len(members.nodes[0].gate.seen)
        calls = {name: in_background(partial(face, client)) for name, face in {**FACES, **AT_ONCE}.items()}
        assert {name: told(call) for name, call in calls.items()} == dict.fromkeys(calls, "StoppedError")
        assert len(members.nodes[0].gate.seen) == seen, "nobody is asked"


def test_who_has_left_a_meeting_and_waits_for_the_others_is_told(members: Members) -> None:
    client, store = members.connect(), members.nodes[0].kv
    other = in_background(lambda: store.meeting("m", 2, ttl=LONG).enter(10.0))
    mine = client.meeting("m", 2, ttl=LONG).enter(10.0)
    other()
    leaving = in_background(mine.leave)
    eventually(lambda: len(store.claims("meeting:m")) == 1, "it left, and waits")
    client.service.close()
    with pytest.raises(raftsvc.StoppedError):
        leaving()


def test_what_comes_to_be_while_it_is_closed_is_closed_too(members: Members) -> None:
    client = members.connect()
    client.set("k", b"")
    closing, go_on = threading.Event(), threading.Event()
    said: list[str] = []

    def farewell() -> None:
        closing.set()
        go_on.wait(10.0)

    client.service.before_stop(farewell)
    closed = in_background(client.service.close)
    assert closing.wait(10.0)
    client.service.before_stop(lambda: said.append("late"))
    assert said == ["late"], "at once"
    with pytest.raises(raftsvc.StoppedError):
        client.claim("y", ttl=LONG, timeout=10.0)
    client.set("k", b"1")  # as what is called before it is closed may
    go_on.set()
    closed()
    client.service.before_stop(lambda: said.append("later"))()
    assert said == ["late", "later"]
    client.service.close()
    assert said == ["late", "later"], "each is called once"


def test_who_closes_it_while_another_does_waits_and_cuts_nobody_off(members: Members) -> None:
    client = members.connect()
    held = client.lock("y", ttl=LONG)
    assert held.acquire(timeout=10.0)

    def work() -> None:
        """What is held is lost as the first closes it, who then waits for this to let go, a second at most."""
        assert held.lost.wait(30.0)
        too = threading.Thread(target=client.service.close)
        too.start()
        too.join(0.2)
        assert too.is_alive(), "it waits for the first"
        with pytest.raises(kv.LostError):
            held.release()
        too.join(30.0)
        assert not too.is_alive()

    worked = in_background(work)
    in_background(client.service.close)()
    worked()
    assert members.nodes[0].kv.lock("y").acquire(timeout=10.0), "it was let go of"


def test_who_closes_it_as_it_is_closed_does_not_wait_for_himself(members: Members) -> None:
    client = members.connect()
    client.service.before_stop(client.service.close)
    client.service.before_stop(lambda: client.set("k", b"1"))
    in_background(client.service.close)()
    assert members.nodes[0].kv["k"] == b"1"


def test_what_raises_as_it_is_closed_keeps_nobody_else_from_being_told(members: Members) -> None:
    client, said = members.connect(), list[int]()

    def raise_one() -> None:
        raise IndexError("of the application's")

    client.service.before_stop(raise_one)
    client.service.before_stop(lambda: said.append(1))
    with pytest.raises(IndexError):
        in_background(client.service.close)()
    assert said == [1]
    with pytest.raises(raftsvc.StoppedError):
        client.get("k")
    client.service.close()


def test_a_child_of_a_process_that_closed_it_goes_on_and_closes_its_own(members: Members) -> None:
    client = members.connect()
    client.set("k", b"1")
    client.service.close()

    def use() -> None:
        assert client["k"] == b"1"
        assert client.lock("y", ttl=LONG).acquire(timeout=10.0)
        client.service.close()
        with pytest.raises(raftsvc.StoppedError):
            client.get("k")

    in_child(use)
    with pytest.raises(raftsvc.StoppedError):
        client.get("k")
