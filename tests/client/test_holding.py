"""Locks of a process that is no member: as those of members, lost in time, and only what its key allows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import raftsvc
from raftsvc import kv
from raftsvc.kv import remote
from raftsvc.kv.queries import CLAIMS, Question
from tests.client.harness import LIMITED, LOSE_ANSWER, READER, Members
from tests.service.harness import PATIENCE, eventually, in_background
from tests.service.test_forks import in_child

MakeMembers = Callable[..., Members]
LONG = 600.0


def keepers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "raftsvc-leases"]


def test_a_client_and_a_member_exclude_each_other_and_each_comes_when_it_is_its_turn(make_members: MakeMembers) -> None:
    members = make_members(2)
    client, other = members.connect(), members.connect()
    with client.lock("x", ttl=LONG) as lock:
        fence = lock.fence
        assert members.nodes[0].kv.lock("x", ttl=LONG).acquire(blocking=False) is False
        next_one = in_background(lambda: other.claim("lock:x", ttl=LONG, timeout=PATIENCE))
        eventually(lambda: len(client.claims("lock:x", PATIENCE)) == 2)
        client.transaction([kv.if_held(lock), kv.set("k", b"1")], PATIENCE)
    hold = next_one()
    assert hold is not None
    assert hold.fence > fence
    assert [claim.fence for claim in members.nodes[1].kv.claims("lock:x", PATIENCE)] == [hold.fence]
    hold.release(PATIENCE)
    assert client.wait_claims("lock:x", [kv.Claimant(hold.fence, b"")], PATIENCE) == []


def test_a_claim_whose_answer_was_lost_is_made_once(make_members: MakeMembers) -> None:
    members = make_members(2)
    client = members.connect()
    lost: list[int] = []

    def lose(visit: object) -> str:
        if len(lost) < 3:
            lost.append(1)
            return LOSE_ANSWER
        return "pass"

    members.nodes[0].gate.rule = lose
    with client.lock("x", ttl=LONG) as lock:
        assert [claim.fence for claim in client.claims("lock:x", PATIENCE)] == [lock.fence]
    assert lost


def test_a_client_that_cannot_ask_anybody_counts_what_it_holds_as_lost(make_members: MakeMembers) -> None:
    members = make_members(1)
    client = members.connect()
    hold = client.claim("x", ttl=1.0, timeout=PATIENCE)
    assert hold is not None
    members.nodes[0].gate.rule = lambda visit: "lose request"
    assert hold.lost.wait(PATIENCE)
    assert not hold.is_held
    assert members.nodes[0].kv.claim("x", ttl=LONG, timeout=PATIENCE) is not None


def test_what_may_be_held_is_what_the_key_allows(make_members: MakeMembers) -> None:
    members = make_members(1)
    limited, reader = members.connect(LIMITED), members.connect(READER)
    with limited.namespace("jobs/").lock("x", ttl=LONG):
        assert len(reader.claims("jobs/lock:x", PATIENCE)) == 1
    with pytest.raises(raftsvc.NotPermittedError):
        limited.lock("x", ttl=LONG).acquire(timeout=PATIENCE)
    with pytest.raises(raftsvc.NotPermittedError):
        limited.claims("lock:x", PATIENCE)
    with pytest.raises(raftsvc.NotPermittedError):
        reader.lock("x", ttl=LONG).acquire(timeout=PATIENCE)


def test_a_forked_child_lets_go_of_nothing_that_its_parent_holds(make_members: MakeMembers) -> None:
    members = make_members(1)
    client = members.connect()
    lock = client.lock("x", ttl=LONG)
    assert lock.acquire(timeout=PATIENCE)

    def leave() -> None:
        assert not lock.owned()
        with pytest.raises(kv.LostError):
            lock.release()
        assert client.lock("x", ttl=LONG).acquire(blocking=False) is False

    in_child(leave)
    assert lock.owned()
    assert members.nodes[0].kv.lock("x", ttl=LONG).acquire(blocking=False) is False
    lock.release()


def test_a_child_has_its_own_turn_at_a_lock_that_threads_of_its_parent_wait_for(make_members: MakeMembers) -> None:
    members = make_members(1)
    client, other = members.connect(), members.connect()
    lock = client.lock("x", ttl=LONG)
    held = members.nodes[0].kv.claim("lock:x", ttl=LONG, timeout=PATIENCE)
    assert held is not None
    asking = in_background(lambda: lock.acquire(timeout=PATIENCE))
    eventually(lambda: len(client.claims("lock:x", PATIENCE)) == 2, "a thread of the parent waits")

    def go_on() -> None:
        eventually(lambda: len(other.claims("lock:x", PATIENCE)) == 3, "the child stands behind its parent")
        held.release(PATIENCE)
        assert asking() is True
        lock.release()

    def wait() -> None:
        for _ in range(2):
            with lock:
                assert lock.owned()
                assert lock.acquire(blocking=False) is False, "nobody gets it twice there either"

    going_on = in_background(go_on)
    in_child(wait)
    going_on()
    assert lock.acquire(timeout=PATIENCE)
    lock.release()


def test_a_client_waits_for_changes_for_as_long_as_it_likes(
    make_members: MakeMembers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_STALE_SECONDS", 0.5)
    members = make_members(1)
    client = members.connect()
    assert client.wait_claims("x", [], 1.2) == []


def test_who_looks_on_is_not_shown_what_was_after_what_is_though_a_member_is_behind(
    make_members: MakeMembers, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = make_members(1)
    client, store = members.connect(), members.nodes[0].kv
    connection: Any = client.service
    ask = connection.query_store
    behind: dict[bytes, bytes] = {}

    def query_store(question: bytes, timeout: float, *, is_stale: bool = False) -> bytes:
        """Of a member that is behind, where that may be."""
        found: bytes = behind[question] if is_stale and question in behind else ask(question, timeout)
        return behind.setdefault(question, found) if is_stale else found

    monkeypatch.setattr(connection, "query_store", query_store)
    former = store.claim("election:x", data=b"former", timeout=PATIENCE)
    guest = store.party("x").join(b"guest")
    assert former is not None
    for name in ("election:x", "party:x"):
        behind[Question(CLAIMS, (name,)).encode()] = ask(Question(CLAIMS, (name,)).encode(), PATIENCE)
    guest.release()
    former.release()
    assert store.claim("election:x", data=b"latter", timeout=PATIENCE) is not None
    assert list(client.election("x").observe(timeout=0.8)) == [b"latter"]
    assert list(client.party("x").watch(timeout=0.8)) == [[]]


def test_who_is_closed_gives_back_what_is_let_go_and_keeps_no_thread(make_members: MakeMembers) -> None:
    members = make_members(1)
    client = members.connect()
    hold = client.claim("x", ttl=LONG, timeout=PATIENCE)
    assert hold is not None
    said: list[int] = []
    client.service.before_stop(lambda: said.append(1))
    client.service.before_stop(lambda: said.append(2))()
    released = in_background(lambda: hold.lost.wait(PATIENCE) and hold.release())
    client.service.close()
    assert released() is False, "it counted as lost first"
    assert said == [1]
    assert members.nodes[0].kv.claim("x", ttl=LONG, timeout=PATIENCE) is not None
    eventually(lambda: len(keepers()) == 1, "only the member's is left")
    with pytest.raises(raftsvc.StoppedError):
        client.claim("y", ttl=LONG, timeout=PATIENCE)
    with pytest.raises(raftsvc.ConfigurationError):
        client.service.before_stop(7)


def test_a_client_does_not_forget_what_was_applied_though_answers_overtake_each_other() -> None:
    class Answering:
        def __init__(self) -> None:
            self.indexes = [7, 5, 9]

        def propose_to_store(self, instruction: bytes, timeout: float) -> raftsvc.Applied:
            return raftsvc.Applied(True, self.indexes.pop(0), 0, True, True)

    store = remote.RemoteStore(Answering())  # type: ignore[arg-type]
    seen = []
    for _ in range(3):
        store.propose(b"", PATIENCE)
        seen.append(store.index())
    assert seen == [7, 7, 9]
