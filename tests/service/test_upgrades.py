"""Rolling upgrades of real Services: what people are told, and that old code neither joins nor starts."""

from __future__ import annotations

import logging

import pytest

import raftsvc
from raftsvc.core.membership import ConfChange, ConfOp
from raftsvc.core.messages import EntryKind, HardState, make_entry
from raftsvc.storage import Store
from tests.service.harness import PATIENCE, Cluster, ListState, Member, eventually


def made(version: int) -> type[ListState]:
    """The State's code in that version: from 2 on it answers with the version."""

    class Versioned(ListState):
        def __init__(self) -> None:
            super().__init__()
            self.version = 1

        def state_version(self) -> int:
            return version

        def use_version(self, version: int) -> None:
            self.version = version

        def apply(self, data: bytes, index: int) -> int:  # type: ignore[override]
            super().apply(data, index)
            return self.version

    return Versioned


def run(member: Member, version: int) -> None:
    """Start it again with code of that version, and have it take part."""
    member.make_state = made(version)
    member.restart()
    assert member.service.exec(b"after a restart", PATIENCE)


def effective(member: Member) -> int:
    state: int = member.status["versions"]["effective"]["state"]
    return state


def form(cluster: Cluster, version: int) -> list[Member]:
    return cluster.form(3, make_state=made(version))


def test_a_cluster_begins_with_what_its_founder_knows(cluster: Cluster) -> None:
    one = cluster.add(make_state=made(4))
    one.service.init()
    assert one.status["versions"] == {
        "effective": {"library": 1, "state": 4},
        "own": {"library": 1, "state": 4},
        "held_back_by": {},
    }
    assert one.service.propose(b"a").answer == 4


def test_nodes_are_upgraded_one_by_one_and_before_the_last_back_again(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    one, two, three = form(cluster, 1)
    run(one, 2)
    run(two, 2)
    # The last is named at every node, and nothing is written in the later form.
    for member in (one, two, three):
        eventually(
            lambda member=member: (
                member.status["versions"]["held_back_by"] == {"3": "its code knows raftsvc 1, State 1"}
            )
        )
    assert one.service.propose(b"a").answer == effective(one) == 1
    run(two, 1)
    run(three, 2)
    assert three.service.propose(b"b").answer == effective(three) == 1
    run(two, 2)
    for member in (one, two, three):
        eventually(lambda member=member: effective(member) == 2)
        assert member.service.propose(b"c").answer == 2

    def lines() -> set[str]:
        return {r.getMessage() for r in caplog.records if "the effective version is" in r.getMessage()}

    eventually(lines, "it is in the log")
    assert lines() == {"the effective version is raftsvc 1, State 2 now, and was raftsvc 1, State 1"}
    assert one.read() == two.read() == three.read()


def test_older_code_does_not_start_after_the_raise_and_later_code_goes_on(cluster: Cluster) -> None:
    members = form(cluster, 1)
    for member in members:
        run(member, 3)
    for member in members:
        eventually(lambda member=member: effective(member) == 3)
        assert member.service.exec(b"later")
    one = members[0]
    for version in (1, 2):
        one.service.stop()
        one.make_state = made(version)
        with pytest.raises(raftsvc.OutdatedError) as refused:
            one.start()
        assert str(refused.value) == (
            f"node 1 at {one.addr} is of version raftsvc 1, State {version}, and its cluster's effective version is "
            "raftsvc 1, State 3: every member reported that, and since then what is written may be what older code "
            "does not know. Start it with the code that the other members run, or later"
        )
    one.make_state = made(4)
    one.start()
    assert one.service.exec(b"again", PATIENCE)
    assert effective(one) == 3


def test_older_code_does_not_start_from_a_snapshot_either(cluster: Cluster) -> None:
    one = cluster.add(make_state=made(2), snapshot_entries=5)
    one.service.init()
    for _ in range(20):
        one.service.exec(b"a")
    eventually(lambda: one.status["snapshot_index"] > 5)
    one.service.stop()
    one.make_state = made(1)
    with pytest.raises(raftsvc.OutdatedError, match="is of version raftsvc 1, State 1"):
        one.start()
    one.make_state = made(2)
    one.start()
    assert one.service.propose(b"b", PATIENCE).answer == 2


@pytest.mark.parametrize("through_follower", [False, True])
def test_older_code_is_not_let_in(cluster: Cluster, through_follower: bool) -> None:
    members = form(cluster, 2)
    asked = cluster.follower() if through_follower else cluster.leader()
    late = cluster.add(make_state=made(1))
    with pytest.raises(raftsvc.OutdatedError) as refused:
        late.service.join(asked.addr, PATIENCE)
    text = str(refused.value)
    assert f"the node at {late.addr} that asks to join is of version raftsvc 1, State 1" in text
    assert "effective version is raftsvc 1, State 2" in text
    assert "Start it with the code that the other members run" in text
    assert len(members[0].status["members"]) == 3
    late.service.stop()
    late.make_state = made(2)
    late.start()
    late.service.join(asked.addr, PATIENCE)
    assert late.service.propose(b"in", PATIENCE).answer == 2


def test_a_running_node_that_meets_a_version_that_it_does_not_know_stops_there_and_says_so(cluster: Cluster) -> None:
    one, two, three = form(cluster, 1)
    run(one, 2)
    run(three, 2)
    three.service.stop()  # it has reported that it knows 2, and goes back while nobody can hear of that
    run(two, 2)
    eventually(lambda: effective(one) == effective(two) == 2)
    three.make_state = made(1)
    three.start()
    eventually(lambda: isinstance(three.service.err(), raftsvc.OutdatedError))
    text = str(three.service.err())
    assert text.startswith("this node is of version raftsvc 1, State 1, and its cluster's effective version is")
    for call in (lambda: three.service.exec(b"x"), three.service.wait_read):
        with pytest.raises(raftsvc.OutdatedError, match="Start it with the code that the other members run"):
            call()
    assert not three.service.is_ready()
    run(three, 2)
    assert three.read() == one.read()


def test_a_state_of_several_parts_is_upgraded_part_by_part(cluster: Cluster) -> None:
    def states(kv: int, mine: int) -> raftsvc.States:
        return raftsvc.States(kv=made(kv)(), mine=made(mine)())

    one, two = cluster.form(2, make_state=lambda: states(1, 2))
    for member in (one, two):
        member.make_state = lambda: states(2, 2)  # type: ignore[assignment, return-value]
        assert member.status["versions"]["effective"]["state"] == {"mine": 2}
        member.restart()
        member.service.exec(b"", PATIENCE)
    eventually(lambda: one.status["versions"]["effective"]["state"] == {"kv": 2, "mine": 2})
    assert one.state.part("kv", one.service).propose(b"a").answer == 2  # type: ignore[attr-defined]


def test_a_change_of_a_kind_that_only_later_code_knows_is_not_passed_over(
    cluster: Cluster,
) -> None:
    one = cluster.add()
    one.service.stop()
    founding = ConfChange(ConfOp.ADD_VOTER, 1, one.addr).encode()
    unknown = bytes([99]) + ConfChange(ConfOp.PROMOTE, 1).encode()[1:]
    entries = [make_entry(1, 1, EntryKind.CONFIG, founding), make_entry(2, 1, EntryKind.CONFIG, unknown)]
    store = Store.open(str(one.path))
    store.create(1, 7, HardState(term=1, commit=1), entries)
    store.close()
    with pytest.raises(raftsvc.ConsensusError, match="index 2 is not valid: it is of kind 99, which a later version"):
        one.start()
