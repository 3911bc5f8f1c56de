"""Nodes with a list found their cluster, or join it, and nobody calls anything."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

import raftsvc
from tests.service.harness import PATIENCE, Cluster, Member, eventually, free_address, voters


class Strict(raftsvc.BaseState):
    """Lets nobody join whom no list does."""

    def __init__(self) -> None:
        super().__init__()
        self.allowed: set[str] = set()

    def apply(self, data: bytes, index: int) -> bool:
        self.allowed.add(data.decode())
        return True

    def snapshot(self) -> tuple[bytes, int]:
        return b" ".join(addr.encode() for addr in sorted(self.allowed)), self.applied_index()

    def restore_snapshot(self, data: bytes, index: int) -> None:
        self.allowed = set(data.decode().split())

    def is_allowed_member(self, addr: str) -> bool:
        return addr in self.allowed


def addresses(count: int) -> list[str]:
    return sorted((free_address() for _ in range(count)), key=str.encode)


def listed(cluster: Cluster, addrs: list[str], members: list[str] | None = None, **options: Any) -> list[Member]:
    return [cluster.add(addr, initial_cluster=members or addrs, **options) for addr in addrs]


def await_formed(members: list[Member]) -> None:
    for member in members:
        member.service.wait_formed(PATIENCE)
    eventually(lambda: len({member.status["cluster_id"] for member in members}) == 1, "one cluster")


def waits(member: Member) -> dict[str, str]:
    return (member.status["formation"] or {}).get("waits_for", {})


def await_word(member: Member, addr: str, word: str) -> None:
    eventually(lambda: word in waits(member).get(addr, ""), f"{word!r} of {addr}, and not {waits(member)}")


def erase(member: Member) -> None:
    member.service.stop()
    shutil.rmtree(member.path)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_three_nodes_are_one_cluster_in_whatever_order_they_start(cluster: Cluster, order: tuple[int, ...]) -> None:
    addrs = addresses(3)
    members = [cluster.add(addrs[i], initial_cluster=[addrs[j] for j in order], make_state=Strict) for i in order]
    await_formed(members)
    for member in members:
        assert sorted(voters(member)) == sorted(addrs)
        assert member.status["node_id"] == addrs.index(member.addr) + 1
        assert member.status["formation"] == {"state": "formed", "list": addrs}
        assert member.service.exec(b"x", PATIENCE)
    entries = {(member.path / "wal" / "founding").read_bytes() for member in members}
    assert len(entries) == 1
    for member in members:
        member.restart()
    await_formed(members)
    assert {(member.path / "wal" / "founding").read_bytes() for member in members} == entries


def test_a_list_of_one_is_a_cluster_at_once(cluster: Cluster) -> None:
    (only,) = listed(cluster, addresses(1))
    only.service.wait_formed(PATIENCE)
    assert only.service.exec(b"x")


def test_until_it_is_formed_callers_are_told_whom_it_waits_for(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    addrs = addresses(3)
    one, two = listed(cluster, addrs[:2], addrs)
    await_word(one, addrs[2], "unreachable: Connection refused")
    eventually(lambda: waits(one).keys() == {addrs[2]}, "only the third is waited for")
    for call in (lambda: one.service.exec(b"x"), lambda: one.service.wait_read(), lambda: one.service.wait_formed(0.1)):
        with pytest.raises(raftsvc.FormingError, match=f"not formed yet; it waits for {addrs[2]}") as raised:
            call()
        assert raftsvc.error_response(raised.value).status_code == 503
    assert isinstance(raised.value, raftsvc.UninitializedError)
    assert one.service.is_live()
    assert not one.service.is_ready()
    for call in (one.service.init, lambda: one.service.join(two.addr)):
        with pytest.raises(raftsvc.ConfigurationError, match="initial_cluster"):
            call()
    eventually(lambda: any("is not formed yet" in r.getMessage() for r in caplog.records), "a line in the log")
    (three,) = listed(cluster, addrs[2:], addrs)
    await_formed([one, two, three])
    said = [
        r.getMessage()
        for r in caplog.records
        if "is not formed yet" in r.getMessage() and addrs[0] in r.getMessage()[:30]
    ]
    assert len(said) == len(set(said)), "nothing is said twice"


def test_lists_that_differ_are_both_shown_and_corrected(cluster: Cluster) -> None:
    addrs = addresses(3)
    others = [addrs[0], addrs[1]]
    one, three = listed(cluster, [addrs[0], addrs[2]], addrs)
    (two,) = listed(cluster, [addrs[1]], others)
    await_word(one, addrs[1], f"its list is {', '.join(others)}, and the one here {', '.join(addrs)}")
    await_word(two, addrs[0], f"its list is {', '.join(addrs)}, and the one here {', '.join(others)}")
    two.options["initial_cluster"] = addrs
    two.restart()
    await_formed([one, two, three])


def test_a_node_without_a_list_and_one_with_another_secret_are_named(cluster: Cluster) -> None:
    addrs = addresses(3)
    (one,) = listed(cluster, addrs[:1], addrs)
    two = cluster.add(addrs[1])
    (three,) = listed(cluster, addrs[2:], addrs, secret="another secret, long enough")
    await_word(one, addrs[1], "was started without initial_cluster")
    await_word(one, addrs[2], "its secret and that of this node differ")
    two.options["initial_cluster"] = addrs
    del three.options["secret"]
    two.restart()
    three.restart()
    await_formed([one, two, three])


def test_one_node_by_two_names_founds_nothing(cluster: Cluster) -> None:
    addrs = addresses(2)
    host, _, port = addrs[1].rpartition(":")
    alias = f"{host.rpartition('.')[0]}.{(int(host.rpartition('.')[2]) + 1) % 250 + 1}:{port}"
    members = [addrs[0], addrs[1], alias]
    one = cluster.add(addrs[0], initial_cluster=members)
    two = cluster.add(addrs[1], initial_cluster=members, listen=f"0.0.0.0:{port}")
    await_word(one, alias, f"the node that answers there says that it is reached at {addrs[1]}")
    assert "cluster_id" not in two.status


def test_a_node_that_comes_later_or_lost_its_disk_before_it_spoke_joins_by_itself(cluster: Cluster) -> None:
    addrs = addresses(3)
    one = cluster.add(make_state=Strict, addr=addrs[0], initial_cluster=addrs)
    one.service.stop()
    one.options["initial_cluster"] = [addrs[0]]
    one.start()
    one.service.wait_formed(PATIENCE)
    one.options["initial_cluster"] = addrs
    one.restart()
    two, three = listed(cluster, addrs[1:], addrs, make_state=Strict)
    await_formed([one, two, three])
    eventually(lambda: sorted(voters(one)) == addrs, "all are voters")


def three_that_write(cluster: Cluster) -> list[Member]:
    """Three that founded their cluster, each of which is known to it by what it wrote."""
    members = listed(cluster, addresses(3), make_state=Strict)
    await_formed(members)
    for member in members:
        assert member.service.exec(b"x", PATIENCE)
    return members


def test_who_lost_its_disk_is_told_what_to_do_and_takes_its_place_again(cluster: Cluster) -> None:
    one, two, three = three_that_write(cluster)
    erase(one)
    one.start()
    await_word(one, two.addr, f"evict({one.addr!r}, replace=True)")
    assert "cluster_id" not in one.status
    two.service.evict(one.addr, PATIENCE, replace=True)
    one.service.wait_formed(PATIENCE)
    assert one.status["node_id"] == 4
    assert three.service.exec(b"y", PATIENCE)
    assert not (one.path / "wal" / "founding").exists()


def test_eviction_ends_what_the_list_allows_until_it_is_allowed(cluster: Cluster) -> None:
    one, two, three = three_that_write(cluster)
    one.service.evict(three.addr, PATIENCE)
    with pytest.raises(raftsvc.EvictedError):
        eventually(lambda: three.service.exec(b"z", 1.0))
    erase(three)
    three.start()
    eventually(lambda: "was evicted" in str((three.status["formation"] or {}).get("trouble")), "it is told")
    assert two.service.exec(three.addr.encode(), PATIENCE)
    three.service.wait_formed(PATIENCE)


def test_of_two_clusters_nobody_joins_either_and_both_are_named(cluster: Cluster) -> None:
    addrs = addresses(3)
    one, two = cluster.add(addrs[0]), cluster.add(addrs[1])
    one.service.init()
    two.service.init()
    (three,) = listed(cluster, addrs[2:], addrs)
    await_word(three, one.addr, "is a member of cluster")
    await_word(three, two.addr, "is a member of cluster")
    with pytest.raises(raftsvc.FormingError) as raised:
        three.service.exec(b"x")
    assert all(m.status["cluster_id"] in str(raised.value) for m in (one, two)), str(raised.value)
    assert "joins neither" in str(raised.value)


def test_a_directory_that_holds_a_node_counts_and_not_the_list(cluster: Cluster) -> None:
    addrs = addresses(2)
    (one,) = listed(cluster, addrs[:1])
    one.service.wait_formed(PATIENCE)
    cluster_id = one.status["cluster_id"]
    one.options["initial_cluster"] = addrs
    one.restart()
    one.service.wait_formed(PATIENCE)
    assert one.status["cluster_id"] == cluster_id
    assert voters(one) == addrs[:1]


@pytest.mark.parametrize(
    ("members", "what"),
    [
        ([], "none at all"),
        (["127.0.0.1:2", "127.0.0.1:3"], "127.0.0.1:1 is not among"),
        (["127.0.0.1:1", "http://127.0.0.1:1/raft/"], "one node twice"),
        ("127.0.0.1:1,127.0.0.1:2", "is a list of addresses"),
        (["127.0.0.1:1", 7], "it is no text"),
        (["127.0.0.1:1", "0.0.0.0:1"], "wildcard"),
        ([f"127.0.0.1:{port}" for port in range(1, 102)], "at most 100"),
        ({"127.0.0.1:1": 1}, "is a list of addresses"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused_at_the_call(members: Any, what: str, tmp_path: Path) -> None:
    with pytest.raises(raftsvc.ConfigurationError, match=what):
        raftsvc.start("127.0.0.1:1", tmp_path / "d", state=Strict(), initial_cluster=members)
    assert not (tmp_path / "d").exists()


def test_stop_ends_a_formation_at_any_time(cluster: Cluster) -> None:
    addrs = addresses(3)
    members = listed(cluster, addrs[:2], addrs)
    await_word(members[0], addrs[2], "unreachable")
    for member in members:
        member.service.stop()
        with pytest.raises(raftsvc.StoppedError):
            member.service.exec(b"x")
        member.start()
    members += listed(cluster, addrs[2:], addrs)
    await_formed(members)


def test_what_is_waited_for_is_said_once_for_each_change(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "raftsvc")
    addrs = addresses(2)
    listed(cluster, addrs[:1], addrs)
    eventually(lambda: [r for r in caplog.records if "it waits for" in r.getMessage()], "a line")
    two = cluster.add(addrs[1])
    eventually(lambda: [r for r in caplog.records if "without initial_cluster" in r.getMessage()], "another line")
    assert len([r for r in caplog.records if "it waits for" in r.getMessage()]) == 2
    assert two.status["formation"] is None
