"""Restarts, snapshots, disks that fail, directories that are in use."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import raftsvc
from raftsvc.errors import StorageError
from raftsvc.member.node import Node
from raftsvc.member.threads import Threads
from raftsvc.ports import bind, place_of
from raftsvc.service import stop_all
from raftsvc.storage import Store
from tests.service.harness import (
    IO_ERROR,
    PATIENCE,
    SECRET,
    Cluster,
    FaultyFiles,
    ListState,
    Member,
    eventually,
    free_address,
    in_background,
)


def write_until_compacted(member: Member, index: int) -> None:
    """Write on until a snapshot covers more than `index`: one is begun only as entries are applied."""
    eventually(
        lambda: member.service.exec(b"more", PATIENCE) and member.status["snapshot_index"] > index, "a later snapshot"
    )


def test_one_node_restarts_with_all_it_acknowledged(cluster: Cluster) -> None:
    node = cluster.add()
    node.service.init()
    for n in range(20):
        node.service.exec(b"%d" % n)
    for _ in range(3):
        node.restart()
        assert node.read() == [b"%d" % n for n in range(20)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_restarting_some_of_three_loses_nothing(cluster: Cluster, count: int) -> None:
    cluster.form(3)
    for n in range(20):
        cluster.members[n % 3].service.exec(b"%d" % n)
    for member in cluster.members[:count]:
        member.service.stop()
    for member in cluster.members[:count]:
        member.start()
    cluster.members[0].service.exec(b"after", timeout=PATIENCE)
    for member in cluster.members:
        assert member.read() == [b"%d" % n for n in range(20)] + [b"after"]


def test_a_restart_continues_from_snapshot_and_log(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(snapshot_entries=20, trailing_entries=5)
    node = cluster.add()
    node.service.init()
    for n in range(50):
        node.service.exec(b"%d" % n)
    write_until_compacted(node, 20)
    before = node.read()
    node.restart()
    assert node.status["snapshot_index"] > 20
    assert node.read() == before
    assert before[:50] == [b"%d" % n for n in range(50)]


def test_snapshots_are_taken_while_there_is_always_something_to_apply(make_cluster: Callable[..., Cluster]) -> None:
    class SlowState(ListState):
        def apply(self, data: bytes, index: int) -> bool:
            time.sleep(0.01)
            return True

    cluster = make_cluster(snapshot_entries=10, trailing_entries=5)
    node = cluster.add()
    node.make_state = SlowState
    node.restart()
    node.service.init()
    is_over = threading.Event()

    def write() -> None:
        while not is_over.is_set():
            node.service.exec(b"a", timeout=PATIENCE)

    writers = [in_background(write) for _ in range(4)]
    try:
        eventually(lambda: node.status["snapshot_index"] > 50, "snapshots are taken meanwhile")
    finally:
        is_over.set()
    for writer in writers:
        writer()


def test_a_snapshot_that_fails_is_reported_and_tried_again(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(snapshot_entries=5)
    node = cluster.add()
    node.service.init()
    sound = node.state.snapshot

    def broken() -> tuple[bytes, int]:
        raise RuntimeError("cannot")

    node.state.snapshot = broken  # type: ignore[method-assign]
    for n in range(20):
        assert node.service.exec(b"%d" % n), "the node goes on"
    eventually(lambda: isinstance(node.service.err(), raftsvc.StorageError), "it is told")
    node.state.snapshot = sound  # type: ignore[method-assign]
    write_until_compacted(node, 0)
    eventually(lambda: node.service.err() is None, "the error clears itself")


def test_a_log_that_cannot_be_shortened_stops_nothing(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(snapshot_entries=4, trailing_entries=1)
    node = cluster.add()
    node.service.init()
    node.files.remove_error = IO_ERROR

    def segments() -> list[str]:
        return sorted(path.name for path in (node.path / "wal").glob("*.wal"))

    def write() -> None:
        with pytest.raises(raftsvc.Rejected):
            node.service.exec(b"no" + bytes(1_000_000))

    eventually(lambda: write() or len(segments()) > 2, "a segment to delete")
    write_until_compacted(node, node.status["last_index"])
    first = segments()[0]
    assert node.service.exec(b"a")
    eventually(lambda: isinstance(node.service.err(), raftsvc.StorageError), "it is told")
    assert node.service.is_ready(), "it serves as well as before"
    node.files.remove_error = None
    eventually(lambda: node.service.exec(b"more") and first not in segments(), "the oldest segment is deleted")
    eventually(lambda: node.service.err() is None, "and it is over")


def test_names_of_segments_whose_sync_failed_are_told_of_until_a_restart(
    make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = make_cluster(snapshot_entries=4, trailing_entries=1)
    node = cluster.add()
    node.service.init()
    files = node.files
    remove, sync_dir = files.remove, files.sync_dir
    removed: list[str] = []
    failed: list[str] = []
    remover: list[int] = []

    def note(path: str) -> None:
        remove(path)
        if path.endswith(".wal"):
            removed.append(path)
            remover.append(threading.get_ident())

    def fail(path: str) -> None:
        # What that thread syncs next is the name that it removed; others may be making some meanwhile.
        if remover[-1:] == [threading.get_ident()] and not failed:
            failed.append(path)
            raise OSError(IO_ERROR, "failed by the test")
        sync_dir(path)

    monkeypatch.setattr(files, "remove", note)
    monkeypatch.setattr(files, "sync_dir", fail)

    def write() -> None:
        with pytest.raises(raftsvc.Rejected):
            node.service.exec(b"no" + bytes(1_000_000))

    eventually(lambda: write() or write_until_compacted(node, node.status["last_index"]) or failed, "a sync fails")
    eventually(lambda: "until a restart" in str(node.service.err()), "it is told")
    assert isinstance(node.service.err(), raftsvc.StorageError)
    assert "unreleased" in node.status["conditions"] and node.service.is_ready()
    count = len(removed)
    write_until_compacted(node, node.status["last_index"])
    assert node.service.exec(b"more") and len(removed) == count, "nothing is deleted any more"
    assert "until a restart" in str(node.service.err())
    node.restart()
    assert node.read()[-1] == b"more"
    eventually(lambda: node.service.err() is None, "and it is over")


def test_a_large_state_restarts_from_its_snapshot(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(snapshot_bytes=1_000_000)
    node = cluster.add()
    node.service.init()
    for n in range(12):
        node.service.exec(bytes([n]) * 300_000)
    eventually(lambda: node.status["snapshot_index"] > 0, "a snapshot was taken")
    node.restart()
    assert [item[:1] for item in node.read()] == [bytes([n]) for n in range(12)]


class PiecesState(ListState):
    """Hands its snapshot out in very many pieces."""

    def snapshot_chunks(self) -> tuple[Iterator[bytes], int]:
        data, index = self.snapshot()
        return (data[n : n + 1] for n in range(len(data))), index

    def restore_chunks(self, chunks: Iterator[bytes], index: int) -> None:
        self.restore_snapshot(b"".join(chunks), index)


def test_a_snapshot_that_takes_its_time_hurries_once_the_node_stops(
    make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftsvc.member.applier._SNAPSHOT_REST", 1e9)
    monkeypatch.setattr("raftsvc.member.applier._MAX_REST_SECONDS", 2 * PATIENCE)
    node = make_cluster(snapshot_entries=10, trailing_entries=5).add()
    node.make_state = PiecesState
    node.restart()
    node.service.init()
    for n in range(20):
        node.service.exec(b"%d" % n)
    assert node.status["snapshot_index"] == 0, "it is not yet written"
    node.restart()
    assert node.status["snapshot_index"] >= 10
    assert node.read() == [b"%d" % n for n in range(20)]


def test_a_follower_that_was_away_long_gets_a_snapshot(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(snapshot_entries=30, trailing_entries=5)
    cluster.form(3)
    away = cluster.follower()
    away.service.stop()
    writer = cluster.leader()
    for n in range(80):
        writer.service.exec(b"%d" % n)
    writer.service.exec(b"big" * 300_000)
    write_until_compacted(writer, 40)
    away.start()
    eventually(lambda: away.status["snapshot_index"] > 30, "the snapshot arrived")
    assert away.read() == writer.read()
    assert away.service.exec(b"from it", timeout=PATIENCE)
    away.restart()
    assert away.read() == writer.read()


def test_a_caller_that_waits_is_not_asked_to_restart_the_state(make_cluster: Callable[..., Cluster]) -> None:
    restored_by = []

    class Noting(ListState):
        def restore_snapshot(self, data: bytes, index: int) -> None:
            restored_by.append(threading.current_thread().name)
            super().restore_snapshot(data, index)

    cluster = make_cluster(snapshot_entries=30, trailing_entries=5)
    cluster.form(3)
    away = cluster.follower()
    away.service.stop()
    away.make_state = Noting
    away.start()
    others = [member for member in cluster.members if member is not away]
    cluster.cut(away, others)
    call = in_background(lambda: away.service.exec(b"from it", timeout=PATIENCE))
    eventually(lambda: away.status["waiting_calls"] == 1, "its caller waits")
    for n in range(80):
        others[0].service.exec(b"%d" % n, timeout=PATIENCE)
    for other in others:  # either may lead, and send what it has
        write_until_compacted(other, 40)
    restored_by.clear()
    cluster.heal()
    assert call()
    assert restored_by, "it came by snapshot"
    assert set(restored_by) == {"raftsvc-apply"}


def test_a_snapshot_survives_a_connection_that_keeps_breaking(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(snapshot_entries=10, trailing_entries=2)
    cluster.form(3)
    away = cluster.follower()
    away.service.stop()
    writer = cluster.leader()
    for n in range(20):
        writer.service.exec(bytes([n]) * 200_000)
    for member in cluster.members:  # whoever leads then
        if member is not away:
            write_until_compacted(member, 10)
    pieces = []

    def lose(path: str) -> bool:
        if path.endswith("/snapshot"):
            pieces.append(path)
            return len(pieces) % 3 == 0
        return False

    for member in cluster.members:
        member.session.lose_answer = lose
    away.start()
    eventually(lambda: away.status["applied_index"] >= writer.status["applied_index"], "the snapshot arrived")
    assert len(pieces) > 10
    assert away.read() == writer.read()


def test_a_failed_fsync_stops_the_node_and_not_the_cluster(cluster: Cluster) -> None:
    cluster.form(3)
    leader = cluster.leader()
    leader.service.exec(b"before")
    leader.files.sync_error = IO_ERROR
    with pytest.raises((raftsvc.OutcomeUnknown, raftsvc.NotApplied)):
        leader.service.exec(b"lost or not", timeout=PATIENCE)
    assert isinstance(leader.service.err(), raftsvc.StorageError)
    with pytest.raises(raftsvc.NodeFailedError):
        leader.service.exec(b"refused")
    with pytest.raises(raftsvc.NodeFailedError):
        leader.service.wait_read()
    rest = [m for m in cluster.members if m is not leader]
    assert rest[0].service.exec(b"after", timeout=PATIENCE)
    leader.files.sync_error = None
    with pytest.raises(raftsvc.NodeFailedError):
        leader.service.exec(b"still refused: the fsync is not repeated")
    leader.restart()
    items = leader.read()
    assert items == rest[0].read()
    assert items[0] == b"before" and items[-1] == b"after"


def test_a_sole_node_acknowledges_nothing_before_its_fsync(cluster: Cluster) -> None:
    node = cluster.add()
    node.service.init()
    node.service.exec(b"a")
    node.files.gate.clear()
    call = in_background(lambda: node.service.exec(b"b", timeout=PATIENCE))
    other = in_background(lambda: node.service.exec(b"c", timeout=0.3))
    with pytest.raises((raftsvc.NotApplied, raftsvc.OutcomeUnknown)):
        other()
    assert node.state.items == [b"a"]
    node.files.gate.set()
    assert call() is True


def test_a_leader_whose_disk_hangs_steps_down_and_comes_back(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(election_timeout=0.5)
    cluster.form(3)
    leader = cluster.leader()
    leader.files.gate.clear()
    stuck = in_background(lambda: leader.service.exec(b"stuck", timeout=PATIENCE))
    rest = [m for m in cluster.members if m is not leader]
    eventually(lambda: any(m.is_leader for m in rest), "another leads")
    eventually(lambda: isinstance(leader.service.err(), raftsvc.DiskStalledError), "it says why")
    eventually(lambda: not leader.is_leader, "it does not lead any more")
    assert rest[0].service.exec(b"meanwhile", timeout=PATIENCE)
    leader.files.gate.set()
    eventually(lambda: leader.service.err() is None, "the error clears itself")
    assert stuck() is True
    items = leader.read()
    assert sorted(items) == [b"meanwhile", b"stuck"]
    assert items == rest[0].read() == rest[1].read()


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> int:
    """Logs rotate every few writes; the bytes of a segment."""
    size = 4096
    monkeypatch.setattr("raftsvc.service.Store", partial(Store, segment_bytes=size))
    return size


def write_half_a_segment(node: Member, segment_bytes: int) -> None:
    wal = node.service._membership._store.wal
    while wal._tail.offset < segment_bytes // 2:
        node.service.exec(b"x" * 100)


def test_the_log_s_next_segment_is_made_before_it_is_needed(cluster: Cluster, small_segments: int) -> None:
    node = cluster.add()
    node.service.init()
    prepared = node.path / "wal" / "next.tmp"
    write_half_a_segment(node, small_segments)
    eventually(lambda: prepared.exists() and prepared.stat().st_size == small_segments, "it is complete")
    assert not (node.path / "wal" / f"{2:016d}.wal").exists()
    inode = prepared.stat().st_ino
    for _ in range(small_segments // 100):
        node.service.exec(b"x" * 100)
    assert (node.path / "wal" / f"{2:016d}.wal").stat().st_ino == inode
    before = node.read()
    node.restart()
    assert node.read() == before


def test_a_disk_that_hangs_while_the_next_segment_is_made_does_not_hold_up_stop(
    cluster: Cluster, small_segments: int
) -> None:
    node = cluster.add()
    hangs, goes_on = threading.Event(), threading.Event()
    sync = node.files.sync

    def sync_unless_preparing(fd: int) -> None:
        if threading.current_thread().name == "raftsvc-prepare":
            hangs.set()
            goes_on.wait(PATIENCE)
        sync(fd)

    node.files.sync = sync_unless_preparing  # type: ignore[method-assign]
    node.service.init()
    write_half_a_segment(node, small_segments)
    assert hangs.wait(PATIENCE)
    in_background(node.service.stop)()
    # It may still write to its file: nobody else may have the directory.
    with pytest.raises(raftsvc.DirectoryInUseError):
        raftsvc.start(free_address(), node.path, None, ListState(), secret=SECRET, lock_timeout=0)
    goes_on.set()


def test_a_process_that_can_start_no_more_threads_goes_on(
    make_cluster: Callable[..., Cluster], small_segments: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make_cluster(snapshot_entries=50, trailing_entries=0).add()
    node.service.init()
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name in ("raftsvc-prepare", "raftsvc-release", "raftsvc-snapshot"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for n in range(120):
            node.service.exec(b"%100d" % n)
        eventually(lambda: isinstance(node.service.err(), raftsvc.StorageError), "it says that snapshots fail")
    for n in range(120, 200):
        node.service.exec(b"%100d" % n)
    eventually(lambda: node.service.err() is None, "a later one succeeds")
    assert [int(item) for item in node.read()] == list(range(200))


@pytest.mark.parametrize("place", [0, -40], ids=["head", "body"])
def test_a_stored_snapshot_that_rots_is_replaced_when_it_is_needed(
    make_cluster: Callable[..., Cluster], place: int
) -> None:
    cluster = make_cluster(snapshot_entries=30, trailing_entries=5)
    cluster.form(3)
    writer = cluster.leader()
    write_until_compacted(writer, 40)
    eventually(lambda: writer.status["applied_index"] == writer.status["last_index"], "all is applied")
    path = writer.path / "snap"
    damaged = bytearray(path.read_bytes())
    damaged[place] ^= 1
    path.write_bytes(damaged)
    newcomer = cluster.add()
    newcomer.service.join(writer.addr, PATIENCE)
    assert newcomer.read() == writer.read()
    eventually(lambda: writer.service.err() is None, "there is another snapshot")
    writer.restart()
    assert writer.read() == newcomer.read()


def test_a_snapshot_for_which_there_is_no_thread_is_sent_later(
    make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = make_cluster(snapshot_entries=30, trailing_entries=5)
    cluster.form(3)
    away = cluster.follower()
    away.service.stop()
    writer = cluster.leader()
    write_until_compacted(writer, 40)
    refused = []
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("raftsvc-transfer"):
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        away.start()
        eventually(lambda: len(refused) > 1, "it was tried again")
        assert writer.service.exec(b"it goes on", timeout=PATIENCE)
        assert writer.service.err() is None
    eventually(lambda: away.status["snapshot_index"] > 40, "the snapshot arrived")
    assert away.read() == writer.read()


def test_two_processes_cannot_own_one_directory(tmp_path: Path) -> None:
    addr = free_address()
    first = raftsvc.start(addr, tmp_path / "n", None, ListState(), secret=SECRET)
    try:
        with pytest.raises(raftsvc.DirectoryInUseError, match=f"process {os.getpid()}"):
            raftsvc.start(addr, tmp_path / "n", None, ListState(), secret=SECRET, lock_timeout=0.2)
    finally:
        first.stop()


def test_a_second_process_waits_for_the_first_to_leave(tmp_path: Path) -> None:
    addr = free_address()
    first = raftsvc.start(addr, tmp_path / "n", None, ListState(), secret=SECRET)
    first.init()
    first.exec(b"a")
    second = in_background(
        lambda: raftsvc.start(addr, tmp_path / "n", None, ListState(), secret=SECRET, lock_timeout=PATIENCE)
    )
    first.stop()
    service = second()
    try:
        service.wait_read()
        assert service.exec(b"b")
    finally:
        service.stop()


def test_a_directory_whose_log_is_damaged_is_refused_with_the_place(cluster: Cluster) -> None:
    node = cluster.add()
    node.service.init()
    for n in range(10):
        node.service.exec(b"%d" % n)
    node.service.stop()
    segment = node.path / "wal" / f"{1:016d}.wal"
    content = bytearray(segment.read_bytes())
    content[300] ^= 0x10
    segment.write_bytes(content)
    with pytest.raises(raftsvc.DamagedStorageError) as caught:
        node.start()
    assert caught.value.path == str(segment)
    assert 0 < caught.value.offset <= 300


def test_a_state_that_already_has_entries_and_no_snapshot_is_refused(cluster: Cluster) -> None:
    node = cluster.add()
    node.service.init()
    node.service.exec(b"a")
    node.service.stop()
    used = node.state
    node.make_state = lambda: used
    with pytest.raises(raftsvc.StorageError, match="empty State"):
        node.start()


def test_stop_is_idempotent_and_ends_every_thread(cluster: Cluster) -> None:
    cluster.form(3)
    for member in cluster.members:
        member.service.stop()
        member.service.stop()
    addresses = {m.addr for m in cluster.members}
    assert addresses
    eventually(
        lambda: {t.name for t in threading.enumerate() if t.name.startswith("raftsvc-")} <= {"raftsvc-main"},
        "no thread of the library is left but the one that stands by for the main thread of the process",
    )
    with pytest.raises(raftsvc.StoppedError):
        cluster.members[0].service.exec(b"a")


def test_a_stop_that_is_interrupted_while_it_hands_over_stops_all_the_same(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = cluster.add()
    node.service.init()

    def interrupted(self: Node, timeout: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Node, "hand_over", interrupted)
    with pytest.raises(KeyboardInterrupt):
        node.service.stop()
    monkeypatch.undo()
    node.start()
    assert node.service.exec(b"a", timeout=PATIENCE)


def test_a_node_that_cannot_be_stopped_leaves_its_port_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    addr = free_address()
    service = raftsvc.start(addr, tmp_path / "n", None, ListState(), secret=SECRET, listen=addr)
    service.init()
    node = service._membership.node
    assert isinstance(node, Node)

    def fail(self: Node, error: raftsvc.RaftError) -> None:
        raise MemoryError

    monkeypatch.setattr(Node, "stop", fail)
    with pytest.raises(MemoryError):
        service.stop()
    monkeypatch.undo()
    node.stop(raftsvc.StoppedError("the test is over"))
    for each in bind(place_of(addr)):
        each.close()


def test_of_several_nodes_that_stop_at_the_end_of_a_process_one_that_hangs_holds_up_neither_the_others_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hanging, failing, other = (
        raftsvc.start(free_address(), tmp_path / name, None, ListState(), secret=SECRET) for name in "abc"
    )
    goes_on = threading.Event()
    stop = failing.stop

    def fail() -> None:
        stop()
        raise MemoryError

    monkeypatch.setattr(hanging, "stop", lambda: goes_on.wait(PATIENCE))
    monkeypatch.setattr(failing, "stop", fail)
    try:
        stop_all(0.0)
        assert other._membership.stopped.wait(PATIENCE), "it was stopped beside the one that hangs"
        eventually(lambda: "could not be stopped" in caplog.text, "what was raised is logged")
    finally:
        goes_on.set()
        monkeypatch.undo()
        hanging.stop()


def test_a_stop_beside_an_init_closes_nothing_under_the_node(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    service = cluster.add().service
    creating, left, closing = threading.Event(), threading.Event(), threading.Event()
    lock, create, stop = service._membership._lifecycle, Store.create, Node.stop
    was_live: list[bool] = []

    class Lifecycle:
        """After `stop` let go of it, nothing more of `stop` happens until `init` stops its node."""

        def __enter__(self) -> None:
            lock.acquire()

        def __exit__(self, *exc_info: object) -> None:
            lock.release()
            if threading.current_thread() is stopper:
                left.set()
                assert closing.wait(PATIENCE)

    def slow_create(self: Store, *args: Any) -> None:
        creating.set()
        assert left.wait(PATIENCE)
        create(self, *args)

    def slow_stop(self: Node, error: raftsvc.RaftError) -> None:
        closing.set()
        stopper.join(PATIENCE)
        was_live.append(self.vitals.is_live() and self.err() is None and not self._store._is_closed)
        stop(self, error)

    monkeypatch.setattr(service._membership, "_lifecycle", Lifecycle())
    monkeypatch.setattr(Store, "create", slow_create)
    monkeypatch.setattr(Node, "stop", slow_stop)
    stopper = threading.Thread(target=service.stop, daemon=True)
    starting = in_background(service.init)
    assert creating.wait(PATIENCE)
    stopper.start()
    with pytest.raises(raftsvc.StoppedError):
        starting()
    assert was_live == [True]


def test_stop_closes_no_file_that_is_being_written(
    make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("raftsvc.member.node._STOP_SECONDS", 0.5)
    cluster = make_cluster(snapshot_entries=20, trailing_entries=1)
    first = cluster.add()
    first.service.init()
    for n in range(50):
        first.service.exec(bytes(1000) + b"%d" % n)
    write_until_compacted(first, 0)
    late = cluster.add()
    part = late.path / "snap.part"
    entered, gate, written = threading.Event(), threading.Event(), threading.Event()
    write = late.files.write

    def hanging(fd: int, data: bytes, offset: int) -> None:
        is_piece = data and part.exists() and os.path.samestat(os.fstat(fd), part.stat())
        if is_piece:
            entered.set()
            gate.wait(PATIENCE)
        try:
            write(fd, data, offset)
        finally:
            if is_piece:
                written.set()

    late.files.write = hanging  # type: ignore[method-assign]
    joining = in_background(lambda: late.service.join(first.addr, PATIENCE))
    assert entered.wait(PATIENCE), "a piece of a snapshot is being written"
    late.service.stop()
    with pytest.raises(raftsvc.StoppedError):
        joining()
    others = [(tmp_path / f"other{n}").open("w+b") for n in range(100)]  # one gets a descriptor that is free
    gate.set()
    assert written.wait(PATIENCE)
    for other in others:
        assert other.read() == b""
        other.close()


@pytest.mark.parametrize("operation", ["sync_dir", "rename"])
def test_stop_does_not_wait_for_a_disk_that_hangs(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    node = cluster.add(snapshot_entries=5)
    node.service.init()
    monkeypatch.setattr("raftsvc.member.node._STOP_SECONDS", 0.5)
    entered, gate = threading.Event(), threading.Event()
    sound = getattr(node.files, operation)

    def hanging(*args: str) -> None:
        entered.set()
        gate.wait(PATIENCE)
        sound(*args)

    setattr(node.files, operation, hanging)
    eventually(lambda: node.service.exec(b"a") and entered.is_set(), "a snapshot gets its name")
    in_background(node.service.stop)()
    with pytest.raises(raftsvc.DirectoryInUseError):
        raftsvc.start(node.addr, node.path, None, ListState(), secret=SECRET, lock_timeout=0.0)
    gate.set()


def test_no_thread_keeps_the_interpreter_from_exiting(cluster: Cluster) -> None:
    cluster.form(2)
    cluster.members[0].service.exec(b"a")
    named = [t for t in threading.enumerate() if t.name.startswith("raftsvc-")]
    assert named and all(t.daemon for t in named)


def test_a_sole_node_elects_itself_at_once(cluster: Cluster) -> None:
    node = cluster.add(election_timeout=30.0)
    started = time.monotonic()
    node.service.init()
    node.service.exec(b"a")
    assert time.monotonic() - started < 15.0


def test_after_a_start_that_failed_nothing_is_begun_while_a_write_of_it_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftsvc.member.node._STOP_SECONDS", 0.2)
    files, hangs = FaultyFiles(), threading.Event()
    start_essential, flush = Threads.start_essential, files.flush

    def hang(fd: int) -> None:
        if threading.current_thread().name == "raftsvc-log":
            hangs.set()
        flush(fd)

    def start_two(threads: Threads, name: str, run: Callable[[], None]) -> None:
        if name == "ticker":
            files.gate.clear()
        if name == "apply":
            assert hangs.wait(PATIENCE)
            raise RuntimeError("can't start new thread")
        start_essential(threads, name, run)

    files.flush = hang  # type: ignore[method-assign]
    addr = free_address()
    service = raftsvc.start(addr, tmp_path, None, ListState(), secret=SECRET, files=files)
    with monkeypatch.context() as patch:
        patch.setattr(Threads, "start_essential", start_two)
        with pytest.raises(raftsvc.RaftError, match="could not be started"):
            service.init()
    files.flush = lambda fd: None  # type: ignore[method-assign]  # but for the one that hangs
    with pytest.raises(StorageError, match="a write to the disk still hangs"):
        service.init()
    stopped = in_background(service.stop)
    stopped()
    with pytest.raises(raftsvc.DirectoryInUseError):
        raftsvc.start(addr, tmp_path, None, ListState(), secret=SECRET, lock_timeout=0)
    files.gate.set()


def test_a_start_that_failed_is_repeated_once_nothing_of_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_essential = Threads.start_essential

    def start_two(threads: Threads, name: str, run: Callable[[], None]) -> None:
        if name == "apply":
            raise RuntimeError("can't start new thread")
        start_essential(threads, name, run)

    service = raftsvc.start(free_address(), tmp_path, None, ListState(), secret=SECRET)
    with monkeypatch.context() as patch:
        patch.setattr(Threads, "start_essential", start_two)
        with pytest.raises(raftsvc.RaftError, match="could not be started"):
            service.init()
    service.init()
    assert service.exec(b"a", PATIENCE)
    service.stop()
