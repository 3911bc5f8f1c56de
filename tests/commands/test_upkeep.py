"""Members that are replaced, and nodes that are drained: in the safe order, and not where it is not safe."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

import raftsvc
from raftsvc.commands import upkeep
from raftsvc.member.health import Condition
from raftsvc.operator.survey import Seen, Survey
from tests.commands.harness import Node, Shell
from tests.service.harness import PATIENCE, eventually


@pytest.fixture
def trio(make_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch) -> list[Node]:
    monkeypatch.setattr(upkeep, "POLL_SECONDS", 0.05)
    nodes = [make_node(election_timeout=2.0) for _ in range(3)]
    nodes[0].service.init()
    for node in nodes[1:]:
        node.service.join(nodes[0].addr, PATIENCE)
    return nodes


def can_lose_one(shell: Shell, node: Node) -> bool:
    return bool(shell("--at", str(node.path), "status", "--json").json["safe_to_lose_one_more"])


def test_a_node_is_drained_and_taken_back(shell: Shell, trio: list[Node]) -> None:
    leader = trio[0]
    place = str(leader.path)
    eventually(lambda: leader.service.is_leader and can_lose_one(shell, leader), "all vote")
    vitals = leader.service._membership.node.vitals  # type: ignore[union-attr]
    note: Callable[..., None] = type(vitals).note
    led = []

    def see(at: object, condition: Condition, *arguments: Any) -> None:
        if condition is Condition.DRAINING and at is vitals:
            led.append(leader.service.is_leader)
        note(at, condition, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(vitals), "note", see)
        done = shell("--at", place, "drain", "--wait", str(PATIENCE), "--json")
    assert led == [False], "it handed over first: nobody waited for an election"
    assert (done.code, done.json) == (0, {"drained": place})
    assert not leader.service.is_leader and not leader.service.is_ready()
    assert list(leader.service.status()["conditions"]) == ["draining"]  # type: ignore[call-overload]
    assert leader.service.err() is None
    assert shell("--at", place, "set", "a", "b").code == 0, "it serves whoever comes nevertheless"

    def are_current() -> int:
        told = shell("--at", str(trio[1].path), "status", "--json").json["members"]
        return sum(member["state"] == "current" for member in told)

    eventually(lambda: are_current() == 2, "who leads now has heard of the others")
    other = shell("--at", str(trio[1].path), "drain")
    assert other.code == 1
    assert (
        f"nothing was done: without it 1 of 3 voters are up and current, and 2 are needed: {leader.addr}" in other.err
    )
    assert trio[1].service.is_ready()
    assert shell("--at", place, "drain", "--undo").code == 0
    eventually(leader.service.is_ready, "it is as ever")


def test_an_only_voter_is_not_drained(here: Shell, node: Node) -> None:
    done = here("drain")
    assert done.code == 1
    assert "nothing was done" in done.err
    assert node.service.is_ready()


def test_a_member_is_replaced_once_the_new_one_votes(
    shell: Shell, trio: list[Node], make_node: Callable[..., Node]
) -> None:
    here, old, new = trio[0], trio[2], make_node(election_timeout=2.0)
    place = str(here.path)
    early = shell("--at", place, "replace", old.addr, new.addr, "--wait", "0")
    assert early.code == 3
    assert f"{old.addr} was not evicted yet: {new.addr} has not joined. Run this again" in early.err
    assert new.addr in here.state.allowed()
    assert len(here.service.status()["members"]) == 3  # type: ignore[arg-type]
    itself = shell("--at", str(old.path), "replace", old.addr, new.addr, "--wait", "0")
    assert itself.code == 1
    assert "run this on the host of another member" in itself.err
    joining = threading.Thread(target=new.service.join, args=(here.addr, PATIENCE))
    joining.start()
    done = shell("--at", place, "replace", old.addr, new.addr, "--wait", str(PATIENCE), "--json")
    joining.join(PATIENCE)
    assert (done.code, done.json) == (0, {"replaced": old.addr, "by": new.addr})
    members = here.service.status()["members"]
    assert {m["addr"]: m["is_voter"] for m in members.values()} == {  # type: ignore[attr-defined]
        here.addr: True,
        trio[1].addr: True,
        new.addr: True,
    }
    assert old.addr not in here.state.allowed()
    assert shell("--at", place, "replace", old.addr, new.addr, "--wait", "0").code == 0, "it is done already"
    assert shell("--at", place, "replace", old.addr, old.addr).code == 2
    assert shell("--at", place, "replace", old.addr, "127.0.0.1:1").code == 1


def seen(number: int, state: str = "current", is_voter: bool = True) -> Seen:
    return Seen(number, f"n{number}:1", is_voter, "follower", 1, 0, state, (), "")


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([seen(1), seen(2), seen(3)], "has not joined"),
        ([seen(1), seen(2), seen(3), seen(4, is_voter=False)], "does not vote yet"),
        ([seen(1), seen(2), seen(3), seen(4, "behind")], "is behind"),
        ([seen(1), seen(2, "unreached"), seen(3, "unreached"), seen(4)], ""),
        ([seen(1), seen(2, "unreached"), seen(3), seen(4), seen(5, "failing")], "of the other 4 voters 2 are up"),
        ([seen(1), seen(2), seen(4)], ""),
    ],
)
def test_the_old_one_stays_until_the_others_do_without_it(members: list[Seen], why: str) -> None:
    found = upkeep._why_not_evict(Survey({}, members, ""), "n3:1", "n4:1", 1)
    assert (why in found) if why else not found


def test_nobody_is_stopped_without_whom_the_others_have_no_majority() -> None:
    assert not upkeep.why_not_stop(Survey({}, [seen(1), seen(2), seen(3)], ""), 1)
    assert upkeep.why_not_stop(Survey({}, [seen(1), seen(2), seen(3, "behind")], ""), 1)
    assert upkeep.why_not_stop(Survey({}, [seen(1), seen(2)], ""), 1)
    assert upkeep.why_not_stop(Survey({}, [seen(1), seen(2), seen(3)], "no majority"), 1)
    assert not upkeep.why_not_stop(Survey({}, [seen(1), seen(2, is_voter=False)], ""), 2), "a learner"


class Other(raftsvc.BaseState):
    """Of which whatever is not meant for it halts all nodes."""

    def apply(self, data: bytes, index: int) -> bool:
        raise ZeroDivisionError("it is none of its own")

    def snapshot(self) -> tuple[bytes, int]:
        return b"", self.applied_index()

    def restore_snapshot(self, data: bytes, index: int) -> None:
        self.set_applied_index(index)

    def is_allowed_member(self, addr: str) -> bool:
        return True


def test_a_state_that_is_no_store_is_left_alone(shell: Shell, make_node: Callable[..., Node]) -> None:
    node = make_node(state=Other())
    node.service.init()
    place = str(node.path)
    for words in (("set", "a", "b"), ("allow", "127.0.0.1:1"), ("incr", "n"), ("lock", "x", "--", "true")):
        done = shell("--at", place, *words)
        assert done.code == (125 if words[0] == "lock" else 5)
        assert "no key-value store" in done.err
    waits = shell("--at", place, "replace", "127.0.0.1:1", "127.0.0.1:2", "--wait", "0")
    assert waits.code == 1  # neither is a member
    third = Survey({}, [seen(1), seen(2), seen(3)], "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upkeep, "survey_of", lambda where: third)
        waits = shell("--at", place, "replace", "n2:1", "n4:1", "--wait", "0")
    assert waits.code == 3
    assert "no key-value store: see to it that it lets n4:1 join" in waits.err
    done = shell("--at", place, "check", "perf", "--within", "0.1", "--json")
    assert [each["name"] for each in done.json["checks"]] == ["fsync in the directory, 99 of 100"]
    assert "writes were not measured" in done.err
    assert node.service.err() is None


def test_what_a_command_has_done_to_the_cluster_leaves_an_audit_line(
    shell: Shell, trio: list[Node], caplog: pytest.LogCaptureFixture
) -> None:
    place = str(trio[0].path)
    eventually(lambda: trio[0].service.is_leader and can_lose_one(shell, trio[0]), "all vote")
    with caplog.at_level(logging.WARNING, "raftsvc.audit"):
        assert shell("--at", place, "evict", trio[2].addr).code == 0
        assert shell("--at", place, "evict", "nobody:1").code == 1
        assert shell("--at", place, "status").code == 0
    lines = [record.getMessage() for record in caplog.records if record.name == "raftsvc.audit"]
    assert len(lines) == 2, "looking leaves none"
    way = f'operator="" way="directory" from="process {os.getpid()}"'
    assert lines[0].startswith(f'{way} action="evict {trio[2].addr}" outcome="done"')
    assert lines[1].startswith(f'{way} action="evict nobody:1" outcome="refused"')
    assert "no member is at nobody:1" in lines[1]
