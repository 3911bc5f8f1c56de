"""One directory is one member's: copies of it, and older states of it, are named and counted for nothing."""

from __future__ import annotations

import errno
import logging
import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests

import raftsvc
from raftsvc.core.messages import MAX_NUMBER, Message
from raftsvc.member.peers import Peers
from raftsvc.storage import Store
from tests.service.harness import PATIENCE, Cluster, Member, eventually, free_address, in_background


class Trio(NamedTuple):
    """A cluster of three: all of them, one that does not lead, and the two others."""

    members: list[Member]
    member: Member
    others: list[Member]


@pytest.fixture
def trio(cluster: Cluster) -> Trio:
    members = cluster.form(3)
    member = cluster.follower()
    return Trio(members, member, [m for m in members if m is not member])


def copy_of(member: Member, path: Path) -> Path:
    """Its directory as `cp -r` takes it, but for what belongs to a running process."""
    shutil.copytree(member.path, path, ignore=shutil.ignore_patterns("lock", "socket", "snap.*", "*.tmp"))
    return path


def put_back(member: Member, older: Path) -> None:
    """Stop it, and have `older` in the place of its directory."""
    member.service.stop()
    shutil.rmtree(member.path)
    shutil.move(older, member.path)


def started_elsewhere(cluster: Cluster, member: Member, path: Path, cut_from: Sequence[Member] = ()) -> Member:
    """A process on another directory of the same member, at an address of its own."""
    addr = free_address()
    for other in cut_from:
        other.session.cut(addr)
    clone = Member(addr, path, member.options, has_streams=True, blocked=[m.addr for m in cut_from])
    cluster.members.append(clone)
    return clone


def is_superseded(member: Member) -> bool:
    return isinstance(member.service.err(), raftsvc.SupersededError)


def names(member: Member, node_id: int) -> bool:
    """Whether it says that `node_id` is doubled, be something graver wrong with it or not."""
    said = member.status["conditions"].get("doubled", "")
    return said.startswith("DoubledMemberError: ") and f"node {node_id}" in said


def knows_from_log(member: Member, node_id: int) -> bool:
    """Whether it has applied that no life of `node_id` counts."""
    engine = member.service._node._engine  # type: ignore[union-attr]
    return bool(engine.applying.machine.life_of(node_id).counter == MAX_NUMBER)


@pytest.mark.parametrize("which", ["follower", "leader"])
def test_a_copy_of_a_running_members_directory_is_named_by_all_and_counted_for_nothing(
    cluster: Cluster, trio: Trio, tmp_path: Path, which: str
) -> None:
    members, follower, _ = trio
    cluster.leader().service.exec(b"before", PATIENCE)
    original = cluster.leader() if which == "leader" else follower
    others = [m for m in members if m is not original]
    node_id = original.status["node_id"]
    clone = started_elsewhere(cluster, original, copy_of(original, tmp_path / "copy"))
    eventually(lambda: is_superseded(original) and is_superseded(clone), "both know")
    eventually(lambda: all(names(m, node_id) for m in others), "all of them say so, whoever found it out")
    # The others are a majority.
    writer = eventually(lambda: next((m for m in others if m.is_leader), None), "one of the others leads")
    assert writer.service.exec(b"after", PATIENCE)
    for member in (original, clone):
        with pytest.raises(raftsvc.SupersededError, match="evict it, and join again"):
            member.service.exec(b"never", PATIENCE)
        assert not member.service.is_ready()
    # For good: whoever is started again knows it from the log, once it is there.
    eventually(lambda: all(knows_from_log(m, node_id) for m in others), "it is in the log")
    for member in others:
        member.restart()
    eventually(lambda: any(m.is_leader for m in others), "one of the others leads")
    eventually(lambda: all(names(m, node_id) for m in others), "they say so")
    eventually((clone.path / "wal" / "ended").exists, "its directory knows")
    with pytest.raises(raftsvc.SupersededError):
        clone.restart()
    # And what the message advises helps.
    addr = eventually(
        lambda: next((m["addr"] for i, m in others[0].status["members"].items() if i == str(node_id)), None)
    )
    original.service.stop()
    clone.service.stop()
    cluster.leader().service.evict(addr, PATIENCE)
    eventually(lambda: all(m.service.err() is None for m in others), "nothing is wrong any more")
    cluster.add().service.join(others[0].addr, PATIENCE)


@pytest.mark.parametrize("who", ["nobody", "the side of the copy", "both sides"])
def test_a_copy_and_its_original_on_two_sides_of_a_cut_are_both_named_once_it_is_healed_and_no_state_is_blamed(
    cluster: Cluster, trio: Trio, tmp_path: Path, who: str
) -> None:
    members, original, _ = trio
    leader = cluster.leader()
    third = next(m for m in members if m not in (original, leader))
    node_id = original.status["node_id"]
    assert leader.service.exec(b"before", PATIENCE)
    eventually(lambda: all(m.state.items == [b"before"] for m in members), "everybody has it")
    path = copy_of(original, tmp_path / "copy")
    cluster.cut(third, [leader, original])
    if who == "both sides":
        for number in range(3):
            assert original.service.exec(b"original %d" % number, PATIENCE)
    clone = started_elsewhere(cluster, original, path, cut_from=[leader, original])
    if who != "nobody":
        eventually(lambda: third.is_leader or clone.is_leader, "the other side elects one of its own")
        for number in range(5):
            assert third.service.exec(b"copy %d" % number, PATIENCE)
    cluster.heal()
    blamed = (raftsvc.DivergedError, raftsvc.DisagreementError)

    def all_are_told() -> bool:
        assert not any(isinstance(m.service.err(), blamed) for m in cluster.members)
        assert not any(names(m, leader.status["node_id"]) for m in cluster.members), "it kept all it acknowledged"
        return is_superseded(original) and is_superseded(clone) and any(names(m, node_id) for m in (leader, third))

    eventually(all_are_told, "both are named, and take no part")
    if who != "both sides":
        writer = eventually(lambda: next((m for m in (leader, third) if m.is_leader), None), "one of the others leads")
        assert writer.service.exec(b"after", PATIENCE)
        assert leader.read() == third.read()
        eventually(lambda: names(leader, node_id) and names(third, node_id), "both say so")
    else:
        # Nobody can tell which of the two was right, and none of them is silent about it.
        eventually(
            lambda: isinstance(leader.service.err(), raftsvc.ConsensusError), "it knows that it was contradicted"
        )
        assert "ran in two processes" in str(leader.service.err())
        assert all_are_told()
        with pytest.raises(raftsvc.RaftError):
            third.service.exec(b"after", 1.0)


def test_two_copies_that_count_alike_are_both_found_out(
    cluster: Cluster, trio: Trio, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, original, others = trio
    path = copy_of(original, tmp_path / "copy")
    original.service.stop()
    original.start()
    clone = started_elsewhere(cluster, original, path)
    eventually(lambda: is_superseded(original) and is_superseded(clone), "both know")
    eventually(lambda: any(names(m, original.status["node_id"]) for m in others), "who found it out says so")
    leader = eventually(lambda: next((m for m in others if m.is_leader), None), "one of the others leads")
    assert leader.service.exec(b"on", PATIENCE)

    def errors() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]

    eventually(lambda: sum("stops taking part" in text for text in errors()) == 2, "both are errors in the log")
    eventually(lambda: any("stops taking part" not in text for text in errors()), "so is what others say of them")


def test_a_directory_put_back_to_what_it_was_before_a_restart_takes_no_part(
    cluster: Cluster, trio: Trio, tmp_path: Path
) -> None:
    members, member, others = trio
    older = copy_of(member, tmp_path / "older")
    for _ in range(2):
        member.restart()
        eventually(member.service.is_ready, "it is back")
    assert cluster.leader().service.exec(b"acknowledged", PATIENCE)
    eventually(lambda: all(b"acknowledged" in m.state.items for m in members), "everybody has it")
    put_back(member, older)
    member.start()
    eventually(lambda: is_superseded(member), "it knows")
    assert "put back" in str(member.service.err())
    assert all(b"acknowledged" in m.read() for m in others)


@pytest.mark.parametrize(
    ("leader_is", "third_has_it", "starts"),
    [("stopped", True, 1), ("stopped", False, 2), ("cut off", True, 2), ("cut off", False, 1)],
)
def test_a_directory_put_back_beside_a_third_that_was_just_started_brings_back_nothing_old(
    cluster: Cluster, trio: Trio, tmp_path: Path, leader_is: str, third_has_it: bool, starts: int
) -> None:
    """The two would be a majority, and of these nobody has what the leader and the member acknowledged."""
    _, member, others = trio
    leader = cluster.leader()
    third = next(m for m in others if m is not leader)
    for _ in range(5):
        assert leader.service.exec(b"old", PATIENCE)
    older = copy_of(member, tmp_path / "older")
    note_no_commit(third)
    for _ in range(starts):
        member.restart()
    # Whoever has applied what it brought afterwards knows of its later start, though it be the last that is said.
    assert member.service.exec(b"known", PATIENCE)
    assert b"known" in third.read()
    if not third_has_it:
        third.service.stop()
    assert leader.service.exec(b"acknowledged", PATIENCE)
    put_back(member, older)
    if third_has_it:
        assert b"acknowledged" in third.read()
        third.service.stop()
    if leader_is == "stopped":
        leader.service.stop()
    else:
        for other in (member, third):
            cluster.cut(leader, [other])
    third.start()
    member.start()
    read: list[list[bytes]] = []
    written: list[bool] = []

    def ask(node: Member) -> Callable[[], None]:
        def run() -> None:
            while not done.is_set():
                with suppress(raftsvc.RaftError):
                    node.service.wait_read(0.05)
                    read.append(list(node.state.items))
                with suppress(raftsvc.RaftError):
                    written.append(node.service.exec(b"without it", 0.05))

        return run

    done = threading.Event()
    askers = [in_background(ask(node)) for node in (member, third)]
    try:
        eventually(lambda: is_superseded(member), "it knows")
        pass_timeouts(third, 3)
    finally:
        done.set()
    for asker in askers:
        asker()
    assert not [items for items in read if b"acknowledged" not in items]
    assert not written, "the leader's is the only vote that counts beside that of the third"
    if leader_is == "stopped":
        leader.start()
    cluster.heal()
    assert b"acknowledged" in third.read()
    assert b"acknowledged" in leader.read()
    assert third.service.exec(b"on", PATIENCE)


def note_no_commit(member: Member) -> None:
    """From now on its disk does not say how much is committed, as if it were killed each time before it does."""
    member.service._node._engine.core.output.note_written(MAX_NUMBER)  # type: ignore[union-attr]


def pass_timeouts(member: Member, count: int) -> None:
    """Wait for so many election timeouts of its."""
    engine = member.service._node._engine  # type: ignore[union-attr]
    end = engine.ticks + count * engine.options.election_ticks
    eventually(lambda: engine.ticks >= end)


def test_a_restart_is_no_copy_however_often_and_wherever(cluster: Cluster, trio: Trio) -> None:
    members, moved, _ = trio
    for round_number in range(3):
        for member in members:
            member.restart()
        assert cluster.leader().service.exec(b"%d" % round_number, PATIENCE)
    moved.addr = free_address()
    moved.restart()
    eventually(moved.service.is_ready, "it is back, elsewhere")
    eventually(lambda: all(m.service.err() is None for m in members), "nothing is wrong with anybody")


@pytest.mark.parametrize("how", ["at once", "to the other node", "after both were started again"])
@pytest.mark.parametrize("path", ["msg", "confirm", "stream", "join"])
def test_what_was_recorded_between_nodes_is_worth_nothing(cluster: Cluster, path: str, how: str) -> None:
    # Where terms are compared nobody is elected because the machine is busy.
    options = {} if how == "after both were started again" else {"election_timeout": 5.0}
    one, two = cluster.add(**options), cluster.add(**options)
    recorded: list[requests.PreparedRequest] = []
    for member in (one, two):
        send = member.session.send

        def record(prepared: requests.PreparedRequest, send: object = send, **options: object) -> requests.Response:
            recorded.append(prepared.copy())
            return send(prepared, **options)  # type: ignore[operator,no-any-return]

        member.session.send = record  # type: ignore[method-assign]
    one.service.init()
    two.service.join(one.addr, PATIENCE)
    one.service.exec(b"a", PATIENCE)
    two.service.exec(b"b", PATIENCE)
    of_kind = [r for r in list(recorded) if str(r.url).endswith(f"/{path}")]
    assert of_kind
    if how == "after both were started again":
        for member in (one, two):
            member.restart()
        assert all(m.read() == [b"a", b"b"] for m in (one, two))
    elif how == "to the other node":
        for prepared in of_kind:
            here, there = (one, two) if one.addr in str(prepared.url) else (two, one)
            prepared.url = str(prepared.url).replace(here.addr, there.addr)
    watched = ["members"] if how == "after both were started again" else ["last_index", "members", "term"]
    before = [one.status[name] for name in watched]
    with requests.Session() as enemy:
        for prepared in of_kind[-50:]:
            answer = enemy.send(prepared, timeout=PATIENCE, stream=True)
            assert answer.status_code in (409, 412, 421), answer.text
            assert answer.json()["code"] in ("seen", "epoch", "too_old", "challenge", "not_leader", "wrong_node")
            answer.close()
    assert [one.status[name] for name in watched] == before
    # A verdict would stay; on a busy machine they may have been out of touch meanwhile.
    eventually(lambda: all(m.service.err() is None for m in (one, two)), "nothing is wrong with them")
    assert all(m.read() == [b"a", b"b"] for m in (one, two))


def test_a_directory_that_was_found_out_stays_so_however_often_it_is_started(
    cluster: Cluster, trio: Trio, tmp_path: Path
) -> None:
    members, member, _ = trio
    older = copy_of(member, tmp_path / "older")
    member.restart()
    eventually(member.service.is_ready, "it is back")
    eventually(lambda: all(m.service.exec(b"x", PATIENCE) for m in members), "its start is known")
    put_back(member, older)
    member.start()
    eventually(lambda: is_superseded(member), "it knows")
    eventually((member.path / "wal" / "ended").exists, "so does its directory")
    member.service.stop()
    for _ in range(3):
        with pytest.raises(raftsvc.SupersededError, match="put back"):
            member.start()


@pytest.mark.parametrize("starts", [1, 3])
def test_a_directory_that_was_put_back_is_found_out_though_it_was_started_often_before_anybody_heard_it(
    cluster: Cluster, trio: Trio, tmp_path: Path, starts: int
) -> None:
    members, member, others = trio
    older = copy_of(member, tmp_path / "older")
    member.restart()
    eventually(member.service.is_ready, "it is back")
    assert all(m.service.exec(b"x", PATIENCE) for m in members)
    put_back(member, older)
    for _ in range(starts):  # in vain: nobody hears of these
        store = Store.open(str(member.path))
        store.load(random.getrandbits(64))
        store.close()
    member.start()
    eventually(lambda: is_superseded(member), "it knows")
    eventually(lambda: all(m.service.is_ready() for m in others), "the others serve")


def test_a_node_that_failed_says_nothing_that_would_make_its_successor_void(
    cluster: Cluster, trio: Trio, tmp_path: Path
) -> None:
    _, member, others = trio
    member.files.sync_error = errno.EIO
    with suppress(raftsvc.RaftError):
        member.service.exec(b"x", 1.0)
    eventually(lambda: isinstance(member.service.err(), raftsvc.StorageError), "its disk failed")
    # Its volume is moved to another machine, and the process lives on.
    successor = started_elsewhere(cluster, member, copy_of(member, tmp_path / "moved"))
    eventually(successor.service.is_ready, "it goes on elsewhere")
    for _ in range(3):
        assert successor.service.exec(b"y", PATIENCE)
    eventually(lambda: successor.service.err() is None, "nothing is wrong with it")
    assert not any(isinstance(m.service.err(), raftsvc.DoubledMemberError) for m in others)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How many messages of others each member was brought, by its id."""
    counts: Counter[int] = Counter()
    for name in ("receive", "receive_stream"):
        brought = getattr(Peers, name)

        def receive(self: Any, from_id: int, messages: Sequence[Message], brought: Any = brought) -> Any:
            counts[self._engine.node_id] += len(messages)
            return brought(self, from_id, messages)

        monkeypatch.setattr(Peers, name, receive)
    return counts


def test_a_directory_put_back_between_two_starts_is_found_out_by_the_leader_it_had_acknowledged_to(
    cluster: Cluster, trio: Trio, tmp_path: Path, heard: Counter[int]
) -> None:
    members, member, others = trio
    older = copy_of(member, tmp_path / "older")
    for n in range(5):
        assert member.service.exec(b"%d" % n, PATIENCE)  # applied, hence durable there
    eventually(lambda: all(m.status["commit_index"] == m.status["last_index"] for m in members))
    put_back(member, older)
    member.start()
    eventually(lambda: is_superseded(member), "it knows")
    eventually(lambda: any("lacks entries" in str(m.status["conditions"]) for m in others), "it is told what it lacks")
    lost, follower = (each.status["node_id"] for each in (member, next(m for m in others if not m.is_leader)))
    before = Counter(heard)
    eventually(lambda: heard[follower] >= before[follower] + 40, "the others go on")
    assert heard[lost] - before[lost] <= 2 * (heard[follower] - before[follower]), "it is sent the same again and again"
    assert all(m.read() == [b"%d" % n for n in range(5)] for m in others)


@pytest.mark.parametrize("are_restarted", [False, True], ids=["at once", "by others who were started since"])
def test_a_founder_put_back_to_when_it_was_alone_is_told_by_members_that_it_never_heard_of(
    cluster: Cluster, tmp_path: Path, are_restarted: bool
) -> None:
    founder = cluster.add()
    founder.service.init()
    older = copy_of(founder, tmp_path / "older")
    founder.restart()
    for _ in range(2):
        cluster.add().service.join(founder.addr, PATIENCE)
    assert founder.service.exec(b"acknowledged", PATIENCE)
    others = cluster.members[1:]
    put_back(founder, older)
    eventually(lambda: any(m.is_leader for m in others), "one of the others leads")
    if are_restarted:
        for member in others:
            member.restart()
    founder.start()  # it elects itself, for it needs nobody, and asks nobody
    eventually(lambda: is_superseded(founder), "it knows")
    with pytest.raises(raftsvc.SupersededError):
        founder.service.exec(b"never", PATIENCE)
    writer = eventually(lambda: next((m for m in others if m.is_leader), None), "one of the others leads")
    assert b"acknowledged" in writer.read()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EMFILE, errno.EIO])
def test_a_directory_is_marked_as_one_not_to_use_as_soon_as_its_disk_takes_that(
    cluster: Cluster, trio: Trio, tmp_path: Path, code: int
) -> None:
    _, member, _ = trio
    older = copy_of(member, tmp_path / "older")
    member.restart()
    eventually(member.service.is_ready, "it is back")
    eventually(lambda: member.service.exec(b"x", PATIENCE), "its start is known")
    put_back(member, older)
    create, refused = member.files.create, []

    def refuse(path: str) -> int:
        if "/ended" in path and len(refused) < 2:
            refused.append(path)
            raise OSError(code, "refused by the test")
        return create(path)

    member.files.create = refuse  # type: ignore[method-assign]
    member.start()
    eventually(lambda: is_superseded(member), "it knows")
    eventually((member.path / "wal" / "ended").exists, "so does its directory, in the end")
    assert len(refused) == 2


def test_a_node_whose_disk_hangs_takes_no_part_once_it_is_found_out_and_is_found_out_again_after_a_restart(
    cluster: Cluster, trio: Trio, tmp_path: Path
) -> None:
    _, original, others = trio
    path = copy_of(original, tmp_path / "copy")
    original.files.gate.clear()
    clone = started_elsewhere(cluster, original, path)
    eventually(lambda: is_superseded(original) and is_superseded(clone), "both know")
    for call in (lambda: original.service.exec(b"never", PATIENCE), lambda: original.service.wait_read(PATIENCE)):
        with pytest.raises(raftsvc.SupersededError):
            call()
    writer = eventually(lambda: next((m for m in others if m.is_leader), None), "one of the others leads")
    assert writer.service.exec(b"on", PATIENCE)
    assert not (original.path / "wal" / "ended").exists()
    clone.service.stop()
    # The process is killed, and its directory could not be marked.
    killed = copy_of(original, tmp_path / "killed")
    original.files.gate.set()
    original.service.stop()
    again = started_elsewhere(cluster, original, killed)
    eventually(lambda: is_superseded(again), "it knows again")
    assert writer.service.exec(b"and on", PATIENCE)


def test_a_founder_put_back_between_two_starts_to_when_it_was_alone_ends_when_others_speak_to_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    founder = cluster.add()
    founder.service.init()
    older = copy_of(founder, tmp_path / "older")
    others = [cluster.add() for _ in range(2)]
    for member in others:
        member.service.join(founder.addr, PATIENCE)
    assert founder.service.exec(b"acknowledged", PATIENCE)
    put_back(founder, older)
    eventually(lambda: any(m.is_leader for m in others), "one of the others leads")
    founder.start()  # no start of it is known that it lacks, but what it committed alone is not what they did
    eventually(lambda: isinstance(founder.service.err(), (raftsvc.ConsensusError, raftsvc.SupersededError)), "it ends")
    with pytest.raises(raftsvc.RaftError):
        founder.service.exec(b"never", PATIENCE)
    writer = eventually(lambda: next((m for m in others if m.is_leader), None), "one of the others leads")
    assert b"acknowledged" in writer.read()
