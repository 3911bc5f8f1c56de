"""A State in which a byte changed, while one of three members is away: who stops, and who serves on."""

from __future__ import annotations

import pytest

import raftsvc
from tests.service.harness import PATIENCE, Cluster, ListState, Member, eventually


class CheckedState(ListState):
    """Every answer depends on every bit of what is held."""

    def apply(self, data: bytes, index: int) -> bool:
        super().apply(data, index)
        return sum(byte.bit_count() for item in self.items for byte in item) % 2 == 0

    def flip_a_bit(self) -> None:
        self.items[0] = bytes([self.items[0][0] ^ 1]) + self.items[0][1:]


def differs(member: Member) -> bool:
    return isinstance(member.service.err(), raftsvc.DisagreementError)


@pytest.mark.parametrize("is_leader", [False, True], ids=["follower", "leader"])
def test_nobody_stops_until_a_third_member_tells_who_is_wrong(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, is_leader: bool
) -> None:
    monkeypatch.setattr("tests.service.harness.ListState", CheckedState)
    members = cluster.form(3)
    leader = cluster.leader()
    leader.service.exec(b"first", PATIENCE)
    other, away = (m for m in members if m is not leader)
    eventually(lambda: all(m.state.items for m in members), "all have it")
    cluster.cut(away, [leader, other])
    damaged, healthy = (leader, other) if is_leader else (other, leader)
    assert isinstance(damaged.state, CheckedState)
    damaged.state.flip_a_bit()
    leader.service.exec(b"second", PATIENCE)
    eventually(lambda: differs(leader) and differs(other), "both say that they differ")
    assert leader.service.is_ready() and other.service.is_ready(), "one of them is right, and nobody else serves"
    assert "DisagreementError" in str(leader.status["error"])
    assert f"nodes {leader.status['node_id']} and {other.status['node_id']} differ" in str(leader.service.err())
    for member in (leader, other):
        member.service.exec(b"more", PATIENCE)
        member.read()

    cluster.heal()
    eventually(lambda: isinstance(damaged.service.err(), raftsvc.DivergedError), "the damaged one is convicted")
    with pytest.raises(raftsvc.DivergedError):
        damaged.service.exec(b"never", PATIENCE)
    for member in (healthy, away):
        member.service.exec(b"after", PATIENCE)
        assert member.read()[0] == b"first"
        eventually(lambda member=member: member.service.err() is None and member.service.is_ready(), "it is well")
    assert healthy.read() == away.read() == [b"first", b"second", b"more", b"more", b"after", b"after"]

    damaged.restart()
    assert damaged.read() == healthy.read()
    damaged.service.exec(b"again", PATIENCE)
    assert damaged.service.err() is None


def test_two_members_that_differ_serve_on_until_one_is_restarted(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.service.harness.ListState", CheckedState)
    members = cluster.form(2)
    leader = cluster.leader()
    leader.service.exec(b"first", PATIENCE)
    eventually(lambda: all(m.state.items for m in members), "both have it")
    damaged = next(m for m in members if m is not leader)
    assert isinstance(damaged.state, CheckedState)
    damaged.state.flip_a_bit()
    damaged.service.exec(b"second", PATIENCE)
    eventually(lambda: all(map(differs, members)), "both say that they differ")
    for member in members:
        assert member.service.is_ready()
        member.service.exec(b"more", PATIENCE)
    damaged.restart()
    for member in members:
        eventually(lambda member=member: member.service.err() is None and member.service.is_ready(), "they agree again")
        assert member.read() == [b"first", b"second", b"more", b"more"]
