"""Queues, leases, barriers, meetings and limits of a process that is no member: as those of members."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import raftsvc
from raftsvc import kv
from raftsvc.kv.leases import instructions
from raftsvc.recipes import Item
from tests.client.harness import LIMITED, LOSE_ANSWER, READER, Members
from tests.service.harness import PATIENCE, eventually, in_background
from tests.service.test_forks import in_child

MakeMembers = Callable[..., Members]
LONG = 600.0


def taken(store: kv.KeyValue, name: str = "q", ttl: float = LONG) -> Item:
    item = store.queue(name, ttl=ttl).get(timeout=PATIENCE)
    assert item is not None
    return item


def test_a_client_and_a_member_share_a_queue(make_members: MakeMembers) -> None:
    members = make_members(2)
    client, member = members.connect(), members.nodes[0].kv
    queue = client.queue("q", ttl=LONG, max_tries=1)
    assert queue.get(blocking=False) is None
    getting = in_background(lambda: taken(client))
    eventually(lambda: len(member.claims("queue:q", PATIENCE)) == 1)
    put = member.queue("q").put(b"1", timeout=PATIENCE)
    item = getting()
    assert (item.id, item.value, item.tries, item.fence) == (put, b"1", 1, 1)
    assert client.items("queue:q", PATIENCE) == member.items("queue:q", PATIENCE) == (0, 1)
    item.nack(PATIENCE)
    again = taken(member)
    assert (again.id, again.tries) == (put, 2)
    again.ack(timeout=PATIENCE)
    with pytest.raises(ZeroDivisionError):
        queue.put(bytes(10_000), timeout=PATIENCE)
        with taken(client) as item:
            assert len(item.value) == 10_000
            client.transaction([kv.if_held(item), kv.set("k", b"1")], PATIENCE)
            _ = 1 // 0
    with taken(client, "q:dead") as item:
        assert item.tries == 1
    assert client.items("queue:q:dead", PATIENCE) == (0, 0)


def test_what_is_put_taken_and_acknowledged_is_so_once_though_answers_are_lost(make_members: MakeMembers) -> None:
    members = make_members(2)
    client = members.connect()
    for number in range(3):
        lost: list[int] = []

        def lose(visit: object, lost: list[int] = lost, number: int = number) -> str:
            if len(lost) < number + 1:
                lost.append(1)
                return LOSE_ANSWER
            return "pass"

        members.nodes[0].gate.rule = lose
        client.queue("q").put(b"%d" % number, timeout=PATIENCE)
        assert client.items("queue:q", PATIENCE) == (1, 0)
        lost.clear()
        item = taken(client)
        assert (item.value, item.tries) == (b"%d" % number, 1)
        lost.clear()
        item.ack(kv.incr("done"), timeout=PATIENCE)
        assert client.items("queue:q", PATIENCE) == (0, 0)
    assert client.counter("n").incr(timeout=PATIENCE) == 1
    assert client["done"] == b"3"


def test_what_a_client_has_that_is_not_heard_of_is_handed_to_another(make_members: MakeMembers) -> None:
    members = make_members(1)
    client, member = members.connect(), members.nodes[0].kv
    member.queue("q").put(b"1", timeout=PATIENCE)
    item = taken(client, ttl=3.0)
    lease = client.lease(3.0, timeout=PATIENCE)
    client.set("here", b"", lease=lease, timeout=PATIENCE)
    version = member.get("here", PATIENCE)
    assert version is not None
    members.nodes[0].gate.rule = lambda visit: "lose request"
    assert item.lost.wait(PATIENCE)
    assert lease.lost.wait(PATIENCE)
    assert taken(member).tries == 2
    assert member.wait_changed("here", version.version, PATIENCE) is None


def test_a_client_waits_at_a_gate_and_meets_others(make_members: MakeMembers) -> None:
    members = make_members(2)
    client, member = members.connect(), members.nodes[1].kv
    gate = client.barrier("deploy")
    assert gate.wait(PATIENCE)
    gate.close(PATIENCE)
    assert member.barrier("deploy").wait(0.1) is False
    assert gate.wait(0.3) is False
    waits = in_background(lambda: gate.wait(PATIENCE))
    member.barrier("deploy").open(PATIENCE)
    assert waits() is True
    meets = in_background(lambda: client.meeting("round", 2, ttl=LONG).enter(PATIENCE).leave(PATIENCE))
    with member.meeting("round", 2, ttl=LONG).enter(PATIENCE):
        pass
    assert meets() is True


def test_a_client_and_a_member_share_a_limit(make_members: MakeMembers) -> None:
    members = make_members(1)
    client, member = members.connect(), members.nodes[0].kv
    allowed = [store.limit("api", 3, LONG, timeout=PATIENCE).allowed for store in (client, member) * 2]
    assert allowed == [True, True, True, False]


def test_what_may_be_done_is_what_the_key_allows(make_members: MakeMembers) -> None:
    members = make_members(1)
    limited, reader = members.connect(LIMITED), members.connect(READER)
    below = limited.namespace("jobs/")
    below.queue("q", ttl=LONG).put(b"1", timeout=PATIENCE)
    taken(below).ack(kv.set("done", b"1"), timeout=PATIENCE)
    assert below.limit("api", 1, timeout=PATIENCE).allowed
    with below.lease(LONG) as lease:
        below.set("here", b"", lease=lease, timeout=PATIENCE)
    assert reader.items("jobs/queue:q", PATIENCE) == (0, 0)
    for call in (
        lambda: limited.queue("q").put(b"1", timeout=PATIENCE),
        lambda: limited.queue("q").get(timeout=PATIENCE),
        lambda: limited.items("queue:q", PATIENCE),
        lambda: limited.limit("api", 1, timeout=PATIENCE),
        lambda: reader.queue("q").put(b"1", timeout=PATIENCE),
        lambda: reader.limit("api", 1, timeout=PATIENCE),
        lambda: reader.lease(LONG, timeout=PATIENCE),
    ):
        with pytest.raises(raftsvc.NotPermittedError):
            call()


def test_who_is_closed_has_its_keys_gone(make_members: MakeMembers) -> None:
    members = make_members(1)
    client, member = members.connect(), members.nodes[0].kv
    lease = client.lease(LONG, timeout=PATIENCE)
    client.set("here", b"", lease=lease, timeout=PATIENCE)
    client.service.close()
    assert lease.lost.is_set()
    assert member.get("here", PATIENCE) is None


def test_a_forked_child_has_nothing_of_what_its_parent_has(make_members: MakeMembers) -> None:
    members = make_members(1)
    client = members.connect()
    client.queue("q").put(b"1", timeout=PATIENCE)
    item = taken(client)
    lease = client.lease(LONG, timeout=PATIENCE)
    client.set("here", b"", lease=lease, timeout=PATIENCE)

    def leave() -> None:
        assert not item.is_held
        assert lease.lost.is_set()
        with pytest.raises(kv.LostError):
            item.ack()
        with pytest.raises(raftsvc.ForkedError):
            lease.refresh()
        with pytest.raises(raftsvc.ForkedError):
            lease.revoke()
        item.nack()
        assert client.queue("q", ttl=LONG).get(blocking=False) is None

    in_child(leave)
    assert item.is_held
    assert client.get("here", PATIENCE) is not None
    item.ack(timeout=PATIENCE)


def test_a_claim_of_a_client_that_another_ended_is_made_anew(make_members: MakeMembers) -> None:
    members = make_members(1)
    client, member = members.connect(), members.nodes[0].kv
    getting = in_background(lambda: taken(client))
    eventually(lambda: len(member.claims("queue:q", PATIENCE)) == 1)
    (claim,) = members.nodes[0].state.claims("queue:q")
    member.transaction([instructions.end_lease(claim.lease)], PATIENCE)
    member.queue("q").put(b"1", timeout=PATIENCE)
    assert getting().tries == 1
