"""What an operator finds in the log, at which level, of a cluster that is made, loses its leader and gets it back."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable

import pytest

from raftsvc import logs
from tests.service.harness import PATIENCE, Cluster, eventually
from tests.service.test_durability import write_until_compacted


def lines(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= level and record.name.startswith("raftsvc")
    ]


def test_forming_a_cluster_tells_of_each_member_and_a_restart_does_not_again(
    make_cluster: Callable[..., Cluster], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "raftsvc")
    cluster = make_cluster(election_timeout=5.0)  # nobody is missed, or elected, because the machine is busy
    cluster.form(3)

    def said(pattern: str) -> int:
        return len(re.findall(pattern, "\n".join(lines(caplog, logging.INFO))))

    for number in (1, 2, 3):
        eventually(lambda n=number: said(rf"node {n} at \S+ (founded|joined) cluster"), "it is told of")  # type: ignore[misc]
    for number in (2, 3):
        # By each that is there: a line that comes later would be taken for one of the restart.
        eventually(lambda n=number: said(rf"node {n} at \S+ is a voter now") == n, "that it votes is told")  # type: ignore[misc]
        eventually(lambda n=number: said(rf"node {n}: node 1 .*leads in term"), "who leads is told")  # type: ignore[misc]
        assert said(rf"node {number}: node 1 .*leads in term") == 1
    shown = "\n".join(lines(caplog))
    assert all(re.search(r" (founded|joined) cluster | is a (voter|member)", line) for line in lines(caplog)), shown
    follower = next(member for member in cluster.members if not member.is_leader)
    applied = cluster.leader().status["applied_index"]
    caplog.clear()
    follower.restart()
    eventually(lambda: follower.status["applied_index"] >= applied, "it has applied what it has stored")
    assert not [line for line in lines(caplog) if " is a " in line]


def test_another_leader_is_one_line_that_shows_at_each_node_that_hears_of_it(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "raftsvc")
    cluster.form(3)
    old = cluster.leader()
    others = [member for member in cluster.members if member is not old]
    caplog.clear()
    old.service.stop()

    def told() -> list[str]:
        return [line for line in lines(caplog) if " leads" in line]

    names = {f"node {member.status['node_id']}" for member in others}
    eventually(lambda: {line.partition(":")[0] for line in told()} >= names, "both say so")
    assert len(told()) == len(set(told())), "one line each for one event"


def test_what_happens_to_a_cluster_is_told_by_name(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "raftsvc")

    def happened() -> set[str]:
        return {str(event) for r in caplog.records if (event := vars(r).get("raftsvc_event")) is not None}

    cluster.form(2)
    second = cluster.members[1]
    wanted = {"founded", "joined", "leader", "member-added", "voter-added"}
    eventually(lambda: happened() >= wanted, "all is told")
    second.service.stop()
    eventually(lambda: "peer-lost" in happened(), "it is missed")
    eventually(lambda: "quorum-lost" in happened(), "it is alone")
    second.start()
    eventually(lambda: {"resumed", "quorum-regained", "stopped"} <= happened(), "all is well")
    for record in caplog.records:
        fields = {name: value for name, value in vars(record).items() if name.startswith("raftsvc_")}
        assert fields.get("raftsvc_event", "leader") in logs.EVENTS
        json.dumps(fields)


def test_a_snapshot_of_the_leader_is_told_of_and_one_of_its_own_that_a_node_starts_from_is_not(
    make_cluster: Callable[..., Cluster], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "raftsvc")
    cluster = make_cluster(snapshot_entries=10, trailing_entries=1)
    (first,) = cluster.form(1)
    first.service.exec(b"first", PATIENCE)
    write_until_compacted(first, 10)
    written = first.read()

    def restored() -> list[int]:
        records = [vars(record) for record in caplog.records]
        return [each["raftsvc_node"] for each in records if each.get("raftsvc_event") == "snapshot-restored"]

    first.restart()
    eventually(lambda: first.service.is_ready() and first.read() == written, "it goes on")
    assert restored() == []
    second = cluster.add()
    second.service.join(first.addr, PATIENCE)
    eventually(lambda: second.read() == written, "it has all")
    eventually(lambda: restored() == [second.status["node_id"]], "it is told of once")
