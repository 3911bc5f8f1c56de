"""Nodes with a list found their cluster, or join it, and nobody calls anything."""

from __future__ import annotations

import errno
import logging
import shutil
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import raftsvc
from raftsvc import forming
from raftsvc.core.founding import Founding, Question
from raftsvc.core.messages import HardState
from raftsvc.core.versions import FIRST
from raftsvc.formation import Membership
from raftsvc.storage import Store
from raftsvc.testing.disk import SimulatedDisk
from raftsvc.transport import Problem
from tests.service.harness import PATIENCE, Cluster, Member, eventually, free_address, voters
from tests.transport.test_slow_answers import STARTS, dripping


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


@pytest.mark.parametrize("slow", [(0,), (1, 2), (0, 1, 2)])
def test_answers_that_take_longer_than_a_round_count_in_a_longer_one(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, slow: tuple[int, ...]
) -> None:
    monkeypatch.setattr(forming, "_ROUND_SECONDS", 0.25)
    members = listed(cluster, addresses(3))
    for i in slow:
        members[i].session.request_seconds = 0.2  # and two of these make an answer
    await_formed(members)


def test_a_node_that_takes_the_place_of_one_that_drips_is_heard(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose connections go on dripping, as a proxy's may."""
    monkeypatch.setattr(forming, "_ROUND_SECONDS", 0.5)
    with dripping(STARTS["headers"]) as (addr, stop_listening):
        addrs = sorted([*addresses(2), addr], key=str.encode)
        others = listed(cluster, [each for each in addrs if each != addr], addrs)
        for other in others:
            await_word(other, addr, "no whole answer")
        stop_listening()
        last = cluster.add(addr, initial_cluster=addrs)
        await_formed([*others, last])


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
    eventually(lambda: isinstance(three.service.err(), raftsvc.EvictedError), "it knows")
    with pytest.raises(raftsvc.EvictedError):
        three.service.exec(b"z", PATIENCE)
    erase(three)
    three.start()
    eventually(lambda: "was evicted" in str((three.status["formation"] or {}).get("trouble")), "it is told")
    assert two.service.exec(three.addr.encode(), PATIENCE)
    three.service.wait_formed(PATIENCE)


def test_an_eviction_that_lets_in_who_replaces_it_is_taken_back_by_one_that_does_not(cluster: Cluster) -> None:
    one, two, three = three_that_write(cluster)
    three.service.stop()
    two.service.evict(three.addr, PATIENCE, replace=True)
    with pytest.raises(raftsvc.UnknownPeerError):
        one.service.evict("127.0.0.1:9", PATIENCE)
    with pytest.raises(raftsvc.UnknownPeerError):
        one.service.evict(three.addr, PATIENCE, replace=True)
    one.service.evict(f"http://{three.addr}/raft", PATIENCE)
    with pytest.raises(raftsvc.UnknownPeerError):
        one.service.evict(three.addr, PATIENCE)
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
    for member in (one, two):
        await_word(three, member.addr, "and another listed node is one of another cluster")
    trouble = str(three.status["formation"]["trouble"])
    assert all(m.status["cluster_id"] in trouble and m.addr in trouble for m in (one, two)), trouble
    assert "joins neither" in trouble


def test_a_founder_that_no_cluster_lets_in_takes_itself_for_no_other_process(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    addrs = addresses(2)
    there = cluster.add(addrs[1], make_state=Strict)
    there.service.init()
    (one,) = listed(cluster, addrs[:1], addrs, make_state=Strict)

    def lines() -> list[str]:
        return [r.getMessage() for r in caplog.records if "is not allowed to join" in r.getMessage()]

    (line, *_) = eventually(lines, "what is said of it lasts, and is logged")
    assert f"waits for {there.addr} (it is a member of cluster {there.status['cluster_id']}, which this" in line
    assert "another process" not in line
    assert there.service.exec(one.addr.encode(), PATIENCE)
    one.service.wait_formed(PATIENCE)


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
    # On a slow machine it may answer too late in between, which is a change, too.
    said = [r.getMessage() for r in caplog.records if "it waits for" in r.getMessage()]
    assert len(said) >= 2 and all(earlier != later for earlier, later in pairwise(said))
    assert two.status["formation"] is None


def test_what_no_majority_can_store_is_kept_and_people_are_told_to_empty_the_directories(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    addrs = addresses(3)
    (one,) = listed(cluster, addrs[:1], addrs)
    one.service.stop()
    founding = Founding.of(77, [(addr, bytes([i]) * 16) for i, addr in enumerate(addrs)], FIRST)
    store = Store.open(str(one.path), lock_timeout=10)
    store.create(1, 77, HardState(1, 0, 1), [founding.entry], founding.entry)
    store.close()
    one.restart()
    two, three = listed(cluster, addrs[1:], addrs)

    def trouble() -> str:
        return str((one.status["formation"] or {}).get("trouble", ""))

    eventually(lambda: f"{addrs[1]}, {addrs[2]} will not" in trouble(), "it says that no majority can")
    assert "empty them all" in trouble()
    assert one.status["formation"]["state"] == "stored"
    with pytest.raises(raftsvc.FormingError, match="no majority can store the founding of cluster 000000000000004d"):
        one.service.wait_formed(0.1)
    eventually(lambda: any("no majority can store" in r.getMessage() for r in caplog.records), "a line in the log")
    await_word(two, addrs[0], "has stored the founding of cluster")
    assert one.status["formation"]["cluster_id"] == f"{77:016x}"
    for member in (one, two, three):
        member.service.stop()
    assert [(member.path / "wal").exists() for member in (one, two, three)] == [True, False, False]
    erase(one)
    for member in (one, two, three):
        member.restart()
    await_formed([one, two, three])


def test_a_node_whose_disk_cannot_say_what_is_on_it_answers_nobody_until_it_can(
    cluster: Cluster,
) -> None:
    addrs = addresses(2)
    (two,) = listed(cluster, addrs[1:], addrs)
    two.files.sync_dir_error = errno.EIO
    (one,) = listed(cluster, addrs[:1], addrs)
    eventually(lambda: "cannot be undone" in str((two.status["formation"] or {}).get("trouble")), "it says why")
    await_word(one, addrs[1], "it is storing what was founded")
    two.files.sync_dir_error = None
    await_formed([one, two])


def test_what_was_stored_after_all_is_not_undone_by_who_saw_that_it_had_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SimulatedDisk()
    store = Store.open(str(tmp_path), disk)
    options = SimpleNamespace(election_timeout=1.0)
    membership = Membership("a:1", store, None, None, options)  # type: ignore[arg-type]
    founding = Founding.of(77, [("a:1", b"a" * 16), ("b:1", b"b" * 16)], FIRST)
    for _ in range(2):
        disk.fail_next("sync_dir", str(tmp_path), skip=1)
    with pytest.raises(raftsvc.StorageError):
        membership.adopt(1, 77, founding.entry)
    assert membership.is_in_doubt
    begin = Membership._begin

    def begin_late(self: Membership, by: str) -> Any:
        monkeypatch.setattr(Membership, "_begin", begin)
        self.adopt(1, 77, founding.entry)  # another thread came first
        return begin(self, by)

    monkeypatch.setattr(Membership, "_begin", begin_late)
    membership.settle()
    assert store.is_initialized
    disk.lose_power(lambda: True)
    assert Store.open(str(tmp_path), disk).founded.entry() == founding.entry


def test_a_node_whose_disk_refuses_tries_again_in_a_while_and_not_at_once(cluster: Cluster) -> None:
    addrs = addresses(2)
    (two,) = listed(cluster, addrs[1:], addrs)
    attempts: list[float] = []

    def refuse(path: str) -> int:
        attempts.append(time.monotonic())
        raise OSError(errno.ENOSPC, "full")

    two.files.create = refuse  # type: ignore[method-assign,assignment]
    began = time.monotonic()
    listed(cluster, addrs[:1], addrs)
    eventually(lambda: len(attempts) > 5, "it tries again and again")
    # Each of the two asks the other at most so often, and each answer and each question may have it try.
    assert len(attempts) <= 2 + 2 * (time.monotonic() - began) / (0.6 * 0.1)
    del two.files.create  # type: ignore[attr-defined]
    two.service.wait_formed(PATIENCE)


def test_the_disk_that_is_well_again_has_a_node_answer_also_if_nobody_brings_the_entry_any_more(
    cluster: Cluster,
) -> None:
    addrs = addresses(2)
    (two,) = listed(cluster, addrs[1:], addrs)
    two.files.sync_dir_error = errno.EIO
    (one,) = listed(cluster, addrs[:1], addrs)
    eventually(lambda: "cannot be undone" in str((two.status["formation"] or {}).get("trouble")), "it says why")
    erase(one)
    two.files.sync_dir_error = None
    one.restart()
    await_formed([one, two])


def test_late_questions_of_a_founder_that_is_gone_do_not_void_what_the_next_one_was_answered(cluster: Cluster) -> None:
    addrs = addresses(2)
    (two,) = listed(cluster, addrs[1:], addrs)
    former, late = (Question(addrs[1], addrs[0], tuple(addrs), number, bytes([number]) * 16) for number in (1, 2))
    answer = two.service._former.answer(former)
    assert answer.token
    with pytest.raises(Problem, match="another process of the founder"):
        two.service._former.answer(late)
    assert two.service._former.answer(former).token == answer.token
