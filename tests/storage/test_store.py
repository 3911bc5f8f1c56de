"""A node's directory: becoming a member, starting again, snapshots; and the power goes at any operation of it."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from raftsvc.core.messages import HardState, data_of, index_of
from raftsvc.errors import REPLACE_MEMBER, DamagedStorageError, DirectoryInUseError, DiskRefusedError, StorageError
from raftsvc.storage import Files, SnapshotHeader, Store, StoredSnapshot
from raftsvc.storage.identity import encode_id
from raftsvc.storage.lock import DirectoryLock
from raftsvc.testing.disk import SimulatedDisk
from tests.storage.faults import Disk, PowerLoss, losses
from tests.storage.logs import batch, entry, put_snapshot

CLUSTER_ID = 0xC1
SEGMENT_BYTES = 1400
STATE = HardState(term=1, commit=1)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path)


@pytest.fixture
def disk(path: str) -> Disk:
    """In memory, beside the real directory that holds only the lock."""
    return disk_at(path)


def disk_at(path: str) -> Disk:
    disk = Disk()
    disk.add_dirs(path)
    return disk


def open_store(path: str, files: Files) -> Store:
    return Store.open(path, files, lock_timeout=0, segment_bytes=SEGMENT_BYTES)


def header(index: int, term: int = 1, cluster_id: int = CLUSTER_ID) -> SnapshotHeader:
    return SnapshotHeader(index, term, cluster_id, b"config", b"sessions", index)


def data_up_to(index: int) -> bytes:
    return b"".join(data_of(e) for e in batch(1, index))


def member(path: str, files: Files, count: int = 0) -> Store:
    """A loaded store of node 7 whose log holds `count` entries."""
    store = open_store(path, files)
    store.create(7, CLUSTER_ID, STATE, batch(1, 1))
    store.load(1)
    if count > 1:
        store.wal.append(None, batch(2, count - 1))
        store.wal.sync()
    return store


def restarted(store: Store, path: str, files: Files) -> Store:
    store.close()
    if isinstance(files, Disk):
        files.kill_process()
    return open_store(path, files)


def receive(store: Store, snapshot_header: SnapshotHeader, data: bytes, upto: int | None = None) -> None:
    """Take a snapshot as a leader would send it; `upto`: stop after so many bytes."""
    path = "/leader"
    source = disk_at(path)
    put_snapshot(source, f"{path}/snap", snapshot_header, [data])
    with StoredSnapshot(source, f"{path}/snap") as snapshot:
        incoming = store.incoming(snapshot_header.index, snapshot_header.term, snapshot.size_bytes, snapshot.crc)
        content = snapshot.read(0, snapshot.size_bytes)
    if upto is not None:
        incoming.append(0, content[:upto])
        return
    half = incoming.append(0, content[: len(content) // 2])
    incoming.append(half, content[half:])
    assert incoming.finish() == snapshot_header


# -- becoming a member


def test_a_new_directory_is_uninitialized_until_create(path: str) -> None:
    below = f"{path}/not/there/yet"
    store = Store.open(below)
    assert not store.is_initialized
    store.create(7, CLUSTER_ID, STATE, batch(1, 1))
    assert store.is_initialized
    loaded = store.load(1)
    assert (loaded.node_id, loaded.cluster_id, loaded.hard_state) == (7, CLUSTER_ID, STATE)
    assert (loaded.snapshot, list(loaded.entries)) == (None, batch(1, 1))
    assert sorted(os.listdir(below)) == ["id", "lock", "wal"]
    assert (Path(below) / "id").read_bytes() == encode_id(7)
    store.close()
    store.close()


def test_a_join_token_is_the_same_until_the_node_has_joined_and_gone_then(path: str, disk: Disk) -> None:
    store = open_store(path, disk)
    token = store.join_token()
    assert len(token) == 16
    disk.lose_power(lambda: False)
    store = restarted(store, path, disk)
    assert not store.is_initialized
    assert store.join_token() == token
    store.create(7, CLUSTER_ID, HardState(), [])
    assert not disk.exists(f"{path}/wal.tmp")
    assert not disk.exists(f"{path}/wal/token")
    assert restarted(store, path, disk).load(1).entries == []


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        ("make_dir", "wal.tmp"),
        ("create", "next.tmp"),
        ("write", "next.tmp"),
        ("sync", "next.tmp"),
        ("sync", "id.tmp"),
        ("rename", "id"),
        ("rename", "wal"),
        ("sync_dir", "wal.tmp"),
    ],
)
def test_a_create_that_fails_leaves_the_directory_uninitialized_and_can_be_repeated(
    path: str, disk: Disk, operation: str, name: str
) -> None:
    store = open_store(path, disk)
    disk.fail_next(operation, name, errno.ENOSPC)
    with pytest.raises(StorageError):
        store.create(7, CLUSTER_ID, STATE, batch(1, 30))
    assert not store.is_initialized
    store.create(8, CLUSTER_ID + 1, STATE, batch(1, 2))
    disk.lose_power(lambda: False)
    loaded = restarted(store, path, disk).load(1)
    assert (loaded.node_id, loaded.cluster_id, list(loaded.entries)) == (8, CLUSTER_ID + 1, batch(1, 2))


def test_a_create_whose_last_sync_fails_leaves_the_directory_uninitialized(path: str, disk: Disk) -> None:
    store = open_store(path, disk)
    # The first sync of this directory follows the id, the second the log.
    disk.fail_next("sync_dir", path)
    with pytest.raises(StorageError):
        store.create(7, CLUSTER_ID, STATE, [])
    assert not store.is_initialized
    real_rename = disk.rename

    def rename(source: str, target: str) -> None:
        real_rename(source, target)
        if target.endswith("/wal"):
            disk.fail_next("sync_dir", path)

    disk.rename = rename  # type: ignore[method-assign]
    with pytest.raises(StorageError):
        store.create(7, CLUSTER_ID, STATE, [])
    assert not store.is_initialized
    disk.rename = real_rename  # type: ignore[method-assign]
    store.create(7, CLUSTER_ID, STATE, [])
    assert restarted(store, path, disk).load(1).node_id == 7


# -- starting again


def test_who_founded_with_others_is_silent_until_it_durably_is_not(path: str, disk: Disk) -> None:
    store = open_store(path, disk)
    store.create(7, CLUSTER_ID, STATE, batch(1, 1), founding=b"the entry")
    assert store.founded.is_silent
    store.close()
    disk.lose_power(lambda: False)
    store = open_store(path, disk)
    assert (store.is_initialized, store.founded.is_silent, store.founded.entry()) == (True, True, b"the entry")
    store.founded.speak()
    store.close()
    disk.lose_power(lambda: False)
    store = open_store(path, disk)
    assert (store.founded.is_silent, store.founded.entry()) == (False, b"the entry")
    store.close()


@pytest.mark.parametrize("attempts", [2, 3])
def test_who_spoke_after_a_sync_failed_is_not_silent_again_after_a_power_loss(
    path: str, disk: Disk, attempts: int
) -> None:
    store = open_store(path, disk)
    store.create(7, CLUSTER_ID, STATE, batch(1, 1), founding=b"the entry")
    for _ in range(attempts - 1):
        disk.fail_next("sync_dir", f"{path}/wal")
        with pytest.raises(StorageError):
            store.founded.speak()
    store.founded.speak()
    store.close()
    disk.lose_power(lambda: False)
    store = open_store(path, disk)
    assert not store.founded.is_silent
    store.close()


def test_a_join_token_whose_sync_failed_is_the_same_after_a_power_loss(path: str, disk: Disk) -> None:
    store = open_store(path, disk)
    disk.fail_next("sync_dir", path)
    with pytest.raises(StorageError):
        store.join_token()
    token = store.join_token()
    disk.lose_power(lambda: False)
    assert restarted(store, path, disk).join_token() == token


@pytest.mark.parametrize("is_own", [True, False], ids=["own", "a leader's"])
def test_a_snapshot_whose_name_could_not_be_synced_is_durable_before_the_log_goes_on_from_it(
    path: str, disk: Disk, is_own: bool
) -> None:
    store = member(path, disk, 30)
    index = 20 if is_own else 50
    if is_own:
        disk.fail_next("sync_dir", path)
        with pytest.raises(OSError, match="error"):
            store.save_snapshot(header(index), [data_up_to(index)])
    else:
        receive(store, header(index), data_up_to(index))
        disk.fail_next("sync_dir", path)
        with pytest.raises(OSError, match="error"):
            store.install_incoming(index)
    store = restarted(store, path, disk)  # it finds the name, and has the log begin there
    snapshot = store.load(2).snapshot
    assert snapshot is not None and snapshot.index == index
    store.close()
    disk.lose_power(lambda: False)
    snapshot = open_store(path, disk).load(3).snapshot
    assert snapshot is not None and snapshot.index == index


def test_what_was_founded_is_given_up_without_a_trace(path: str, disk: Disk) -> None:
    store = open_store(path, disk)
    store.create(7, CLUSTER_ID, STATE, batch(1, 1), founding=b"the entry")
    store.undo_create()
    assert not store.is_initialized
    store.create(8, CLUSTER_ID, STATE, batch(1, 1))
    assert (store.founded.is_silent, store.founded.entry()) == (False, b"")
    store.close()


@pytest.mark.parametrize(
    ("operation", "name", "fails"), [("rename", "wal.tmp", True), ("sync_dir", "", True), ("remove", "", False)]
)
def test_what_is_given_up_half_way_can_be_given_up_again(
    path: str, disk: Disk, operation: str, name: str, fails: bool
) -> None:
    store = open_store(path, disk)
    store.create(7, CLUSTER_ID, STATE, batch(1, 1), founding=b"the entry")
    disk.fail_next(operation, name)
    with pytest.raises(StorageError) if fails else nullcontext():
        store.undo_create()
    store.undo_create()
    disk.lose_power(lambda: False)
    store.close()
    store = open_store(path, disk)
    assert not store.is_initialized
    store.create(8, CLUSTER_ID, STATE, batch(1, 1))
    store.close()


@pytest.mark.parametrize("operation", ["create", "write", "sync", "rename", "sync_dir"])
@pytest.mark.parametrize("way", range(12))
@pytest.mark.parametrize("failures", [1, 2])
def test_what_could_not_be_made_is_not_found_after_a_power_loss_either(
    path: str, operation: str, way: int, failures: int
) -> None:
    for skip in itertools.count():
        disk = SimulatedDisk()
        store = open_store(path, disk)
        for _ in range(failures):
            disk.fail_next(operation, skip=skip)
        try:
            store.create(7, CLUSTER_ID, STATE, batch(1, 1), founding=b"the entry")
        except StorageError:
            disk.heal()
            if store.is_in_doubt:
                store.undo_create()
        else:
            break  # there are not so many of them
        disk.lose_power(losses(way)[way % 5][1])
        store = open_store(path, disk)
        assert not store.is_initialized, (operation, skip)
        store.close()
    assert skip > 1


def test_what_failed_and_could_not_be_undone_is_undone_before_it_is_made_again(path: str, disk: Disk) -> None:
    store = open_store(path, disk)
    disk.fail_next("sync_dir", path, skip=1)
    disk.fail_next("sync_dir", path, skip=1)
    with pytest.raises(StorageError):
        store.create(7, CLUSTER_ID, STATE, batch(1, 1), founding=b"the entry")
    assert store.is_in_doubt
    store.create(8, CLUSTER_ID, STATE, batch(1, 1))
    assert not store.is_in_doubt
    assert restarted(store, path, disk).load(1).node_id == 8


def test_what_a_process_did_that_was_killed_is_durable_before_the_next_one_acts_upon_it(path: str) -> None:
    for crash_at in itertools.count(1):
        disk = SimulatedDisk()
        store = open_store(path, disk)
        disk.operations.clear()
        disk.crash_at, disk.crash_kills = crash_at, True
        try:
            store.create(7, CLUSTER_ID, STATE, batch(1, 1), founding=b"the entry")
        except PowerLoss:
            disk.kill_process()
        else:
            break
        was_initialized = open_store(path, disk).is_initialized
        disk.lose_power(lambda: False)
        assert open_store(path, disk).is_initialized == was_initialized, crash_at
    assert crash_at > 10


def test_commit_is_bounded_by_what_is_there(path: str, disk: Disk) -> None:
    store = member(path, disk, 5)
    store.wal.append(HardState(1, 0, 99), [])
    store.wal.sync()
    store = restarted(store, path, disk)
    assert store.load(1).hard_state.commit == 5
    store.save_snapshot(header(4), [data_up_to(4)])
    store.wal.append(HardState(1, 0, 2), [])
    store.wal.mark_snapshot(4, 1)
    store.wal.sync()
    assert restarted(store, path, disk).load(1).hard_state.commit == 4


def test_entries_before_the_snapshot_are_there_as_long_as_their_segment(path: str, disk: Disk) -> None:
    store = member(path, disk, 5)
    store.save_snapshot(header(4), [data_up_to(4)])
    store.wal.mark_snapshot(4, 1)
    store.wal.sync()
    store.wal.release_before(4)
    loaded = restarted(store, path, disk).load(1)
    assert loaded.snapshot == header(4)
    assert list(loaded.entries) == batch(1, 5)


@pytest.mark.parametrize("is_hard", [False, True], ids=["symbolic", "hard"])
@pytest.mark.parametrize("name", ["lock", "snap.tmp", "snap.part", "snap.new", "id.tmp", "wal/next.tmp"])
def test_links_that_somebody_put_into_the_directory_are_not_followed(tmp_path: Path, name: str, is_hard: bool) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"of somebody else")
    path = tmp_path / "node"
    path.mkdir()
    link = path / name
    if name != "id.tmp":
        member(str(path), Files(), 3).close()
        link.unlink(missing_ok=True)
    link.hardlink_to(victim) if is_hard else link.symlink_to(victim)
    store = open_store(str(path), Files())
    if name == "id.tmp":
        store.create(7, CLUSTER_ID, STATE, batch(1, 1))
    store.load(1)
    assert store.save_snapshot(header(1), [b"data"])
    incoming = store.incoming(5, 1, 100, 1)
    incoming.append(0, b"received")
    for n in range(2 if name == "id.tmp" else 4, 60):
        store.wal.append(None, [entry(n)])
    store.wal.sync()
    store.close()
    assert victim.read_bytes() == b"of somebody else"


@pytest.mark.parametrize("is_hard", [False, True], ids=["symbolic", "hard"])
@pytest.mark.parametrize("name", ["snap.tmp", "snap.part", "wal/next.tmp", "id.tmp"])
def test_links_that_somebody_puts_there_while_a_node_runs_are_not_followed(
    tmp_path: Path, name: str, is_hard: bool
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"of somebody else")
    path = tmp_path / "node"
    path.mkdir()
    if name != "id.tmp":
        member(str(path), Files(), 3).close()
    store = open_store(str(path), Files())
    if name != "id.tmp":
        store.load(1)
    link = path / name
    link.unlink(missing_ok=True)
    link.hardlink_to(victim) if is_hard else link.symlink_to(victim)
    if name == "id.tmp":
        store.create(7, CLUSTER_ID, STATE, batch(1, 1))
        store.load(1)
    else:
        assert store.save_snapshot(header(1), [b"data"])
        store.incoming(5, 1, 100, 1).append(0, b"received")
        for n in range(4, 60):
            store.wal.append(None, [entry(n)])
        store.wal.sync()
    store.close()
    assert victim.read_bytes() == b"of somebody else"


@pytest.mark.parametrize("is_hard", [False, True], ids=["symbolic", "hard"])
@pytest.mark.parametrize("what", ["a file", "the note of who owns it"])
def test_a_link_that_is_put_there_right_before_a_file_is_made_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, is_hard: bool
) -> None:
    victim, place = tmp_path / "victim", tmp_path / "node"
    victim.write_bytes(b"of somebody else")
    place.mkdir(0o700)
    remove = os.unlink

    def replace(path: str, **options: Any) -> None:
        with suppress(FileNotFoundError):
            remove(path, **options)
        os.link(victim, path) if is_hard else os.symlink(victim, path)

    monkeypatch.setattr(os, "unlink", replace)
    if what == "a file":
        with pytest.raises(OSError, match="File exists"):
            Files().create(str(place / "file"))
    else:
        lock = DirectoryLock(str(place))
        lock.acquire(0)
        lock.release()
    monkeypatch.undo()
    assert victim.read_bytes() == b"of somebody else"


@pytest.mark.parametrize("is_hard", [False, True], ids=["symbolic", "hard"])
def test_a_file_is_made_in_place_of_a_link_and_what_is_opened_is_none(tmp_path: Path, is_hard: bool) -> None:
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_bytes(b"of somebody else")
    link.hardlink_to(victim) if is_hard else link.symlink_to(victim)
    files = Files()
    if not is_hard:
        with pytest.raises(OSError, match="symbolic links"):
            files.open(str(link))
    fd = files.create(str(link))
    files.write(fd, b"ours", 0)
    files.close(fd)
    assert victim.read_bytes() == b"of somebody else"
    assert link.read_bytes() == b"ours"
    assert not link.is_symlink()


def test_a_snapshot_that_is_a_link_is_refused(tmp_path: Path) -> None:
    store = member(str(tmp_path), Files(), 3)
    store.save_snapshot(header(1), [b"data"])
    (tmp_path / "snap").rename(tmp_path / "elsewhere")
    (tmp_path / "snap").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        store.open_snapshot()
    store.close()


def test_the_log_of_a_member_is_never_written_over(path: str, disk: Disk) -> None:
    store = member(path, disk, 5)
    before = {name: disk.content(name) for name in disk.paths()}
    with pytest.raises(StorageError, match="belongs to a member already"):
        store.create(8, CLUSTER_ID, STATE, batch(1, 1))
    assert {name: disk.content(name) for name in disk.paths()} == before


def test_a_missing_or_foreign_id_is_refused(path: str, disk: Disk) -> None:
    store = member(path, disk)
    whole = disk.content(f"{path}/id")
    disk.delete(f"{path}/id")
    store.close()
    for content, what in ((None, "missing"), (encode_id(8), "id file says 8, the log 7"), (whole[:-1], "12 bytes")):
        if content is not None:
            disk.put(f"{path}/id", content)
        store = open_store(path, disk)
        with pytest.raises(DamagedStorageError, match=what):
            store.load(1)
        store.close()


@pytest.mark.parametrize(
    ("replace", "what"),
    [
        (None, "which is missing"),
        (header(3), "which is missing"),
        (header(4, term=2), "is of term 2, the log says 1"),
        (header(4, cluster_id=5), "another cluster"),
    ],
    ids=["none", "older", "of another term", "of another cluster"],
)
def test_a_snapshot_that_is_not_the_one_the_log_continues_is_refused(
    path: str, disk: Disk, replace: SnapshotHeader | None, what: str
) -> None:
    store = member(path, disk, 5)
    store.save_snapshot(header(4), [data_up_to(4)])
    store.wal.mark_snapshot(4, 1)
    store.wal.sync()
    store.close()
    disk.delete(f"{path}/snap")
    if replace is not None:
        put_snapshot(disk, f"{path}/snap", replace, [b"data"])
    with pytest.raises(DamagedStorageError, match=what) as refusal:
        open_store(path, disk).load(1)
    assert_advises_nothing_that_goes_back(refusal.value)


def assert_advises_nothing_that_goes_back(refusal: DamagedStorageError) -> None:
    """An older copy of a member's directory has forgotten votes and acknowledgements."""
    assert "estore" not in str(refusal)


@pytest.mark.parametrize("what", ["id", "snap", "wal/0000000000000001.wal"])
@pytest.mark.parametrize("damage", ["gone", "flipped", "another node's"])
def test_whoever_lost_storage_is_told_to_join_anew_and_never_to_put_back_what_is_older(
    path: str, disk: Disk, what: str, damage: str
) -> None:
    """A member that goes back has forgotten votes and acknowledgements (figure 2, persistent state)."""
    store = member(path, disk, 5)
    store.save_snapshot(header(4), [data_up_to(4)])
    store.wal.mark_snapshot(4, 1)
    store.wal.sync()
    store.close()
    name = f"{path}/{what}"
    if damage == "gone":
        disk.delete(name)
    elif damage == "flipped":
        content = disk.content(name)
        disk.put(name, content[:9] + bytes([content[9] ^ 1]) + content[10:])
    else:
        Path(path, "other").mkdir()
        other = disk_at(f"{path}/other")
        store = open_store(f"{path}/other", other)
        store.create(8, CLUSTER_ID + 1, STATE, batch(1, 1))
        store.load(1)
        store.save_snapshot(header(4, cluster_id=CLUSTER_ID + 1), [data_up_to(4)])
        disk.put(name, other.content(f"{path}/other/{what}"))
        store.close()
    with pytest.raises(DamagedStorageError) as refusal:
        open_store(path, disk).load(1)
    assert REPLACE_MEMBER in str(refusal.value)
    assert "older copy" in REPLACE_MEMBER and "Restore" not in str(refusal.value)


def test_a_log_whose_first_segments_were_deleted_by_hand_is_refused(path: str, disk: Disk) -> None:
    store = member(path, disk, 1)
    for n in range(2, 80):
        store.wal.append(None, [entry(n)])
    store.wal.sync()
    store.close()
    disk.delete(f"{path}/wal/{1:016d}.wal")
    with pytest.raises(DamagedStorageError, match="the log begins after") as refusal:
        open_store(path, disk).load(1)
    assert_advises_nothing_that_goes_back(refusal.value)


@pytest.mark.parametrize("lost", [1, 2, 99])
def test_a_log_whose_last_segments_were_deleted_by_hand_is_refused(path: str, disk: Disk, lost: int) -> None:
    store = member(path, disk, 5)
    store.save_snapshot(header(4), [data_up_to(4)])
    store.wal.mark_snapshot(4, 1)
    for n in range(6, 100):
        store.wal.append(None, [entry(n)])
    store.wal.sync()
    store.close()
    names = disk.list_dir(f"{path}/wal")
    for name in names[-lost:]:
        disk.delete(f"{path}/wal/{name}")
    with pytest.raises(DamagedStorageError, match=r"missing|no segment") as refusal:
        open_store(path, disk).load(1)
    assert_advises_nothing_that_goes_back(refusal.value)


def test_a_snapshot_without_a_log_is_refused_and_not_taken_for_a_new_directory(path: str, disk: Disk) -> None:
    store = member(path, disk, 5)
    store.save_snapshot(header(4), [data_up_to(4)])
    store.close()
    disk.rename(f"{path}/wal", f"{path}/elsewhere")
    with pytest.raises(DamagedStorageError, match="no log") as refusal:
        open_store(path, disk)
    assert_advises_nothing_that_goes_back(refusal.value)
    with pytest.raises(DamagedStorageError):
        open_store(path, disk)  # and the lock was not kept


def test_leftovers_are_removed(path: str, disk: Disk) -> None:
    store = member(path, disk, 5)
    receive(store, header(9), data_up_to(9), upto=40)
    for name in ("snap.tmp", "snap.new", "id.tmp", "wal/token"):
        disk.put(f"{path}/{name}", b"x")
    restarted(store, path, disk).load(1)
    assert disk.list_dir(path) == ["id", "wal"]
    assert all(name.endswith(".wal") for name in disk.list_dir(f"{path}/wal"))


def test_recovered_entries_are_not_kept_by_the_store(path: str, disk: Disk) -> None:
    store = member(path, disk, 5)
    store = restarted(store, path, disk)
    loaded = store.load(1)
    entries = loaded.entries
    assert not [r for r in gc.get_referrers(entries) if r is not loaded and type(r).__module__.startswith("raftsvc")]


# -- snapshots


def test_an_older_snapshot_never_replaces_a_newer_one(path: str, disk: Disk) -> None:
    store = member(path, disk, 5)
    receive(store, header(9, 2), data_up_to(9))
    store.install_incoming(9)
    assert not store.save_snapshot(header(4), [data_up_to(4)])
    with store.open_snapshot() as snapshot:
        assert snapshot.header == header(9, 2)
    assert not disk.exists(f"{path}/snap.tmp")


def test_a_full_disk_fails_the_snapshot_and_keeps_the_old_one(path: str, disk: Disk) -> None:
    store = member(path, disk, 5)
    store.save_snapshot(header(2), [data_up_to(2)])
    disk.free_bytes = 300
    with pytest.raises(OSError, match="No space"):
        store.save_snapshot(header(4), [bytes(200), bytes(200)])
    assert not disk.exists(f"{path}/snap.tmp")
    with store.open_snapshot() as snapshot:
        assert (snapshot.header, list(snapshot.chunks())) == (header(2), [data_up_to(2)])
    store.wal.append(None, [entry(6)])
    store.wal.sync()


def test_a_state_that_fails_while_it_is_written_leaves_no_trace(path: str, disk: Disk) -> None:
    store = member(path, disk, 5)

    def chunks():
        yield b"half"
        raise RuntimeError("the State's own")

    with pytest.raises(RuntimeError):
        store.save_snapshot(header(4), chunks())
    assert disk.list_dir(path) == ["id", "wal"]


def test_a_snapshot_from_a_leader_replaces_a_log_that_differs(path: str, disk: Disk) -> None:
    store = member(path, disk, 5)
    receive(store, header(4, 3), data_up_to(4))
    store.install_incoming(4)
    assert not store.wal.mark_snapshot(4, 3)
    store.wal.append(HardState(3, 0, 4), [entry(5, term=3)])
    store.wal.sync()
    loaded = restarted(store, path, disk).load(1)
    assert (loaded.snapshot, list(loaded.entries)) == (header(4, 3), [entry(5, term=3)])


def test_a_snapshot_waiting_to_be_installed_is_untouched_by_one_that_is_only_arriving(path: str, disk: Disk) -> None:
    store = member(path, disk, 5)
    receive(store, header(9, 2), data_up_to(9))
    receive(store, header(12, 3), data_up_to(12), upto=50)
    store.install_incoming(9)
    with store.open_snapshot() as snapshot:
        snapshot.verify()
        assert snapshot.header == header(9, 2)


def test_a_later_snapshot_is_installed_in_place_of_one_that_waited(path: str, disk: Disk) -> None:
    store = member(path, disk, 5)
    receive(store, header(9, 2), data_up_to(9))
    receive(store, header(12, 3), data_up_to(12))
    store.install_incoming(9)
    store.wal.mark_snapshot(9, 2)
    store.wal.sync()
    store.install_incoming(12)
    store.wal.mark_snapshot(12, 3)
    store.wal.sync()
    loaded = restarted(store, path, disk).load(1)
    assert (loaded.snapshot, list(loaded.entries)) == (header(12, 3), [])


def test_nothing_is_installed_that_was_not_received(path: str, disk: Disk) -> None:
    store = member(path, disk, 5)
    receive(store, header(9, 2), data_up_to(9), upto=50)
    with pytest.raises(StorageError, match="the snapshot at 9 is to be installed"):
        store.install_incoming(9)
    receive(store, header(9, 2), data_up_to(9))
    with pytest.raises(StorageError, match="last received covers 9"):
        store.install_incoming(12)


def test_an_older_snapshot_that_is_whole_later_takes_no_place(path: str, disk: Disk) -> None:
    store = member(path, disk, 5)
    receive(store, header(12, 3), data_up_to(12))
    receive(store, header(9, 2), data_up_to(9))
    store.install_incoming(12)
    store.wal.mark_snapshot(12, 3)
    store.wal.sync()
    receive(store, header(11, 2), data_up_to(11))
    store.install_incoming(12)
    loaded = restarted(store, path, disk).load(1)
    assert (loaded.snapshot, list(loaded.entries)) == (header(12, 3), [])


@pytest.mark.parametrize(
    ("operation", "name", "code"),
    [
        ("rename", "/snap", errno.ENOSPC),
        ("rename", "/snap", errno.EIO),
        ("sync_dir", "", errno.EMFILE),
        ("sync_dir", "", errno.ENFILE),
    ],
)
def test_an_installation_that_is_refused_is_repeated_and_nothing_older_comes_between(
    path: str, disk: Disk, operation: str, name: str, code: int
) -> None:
    store = member(path, disk, 5)
    receive(store, header(9, 2), data_up_to(9))
    disk.fail_next(operation, name, code)
    with pytest.raises(DiskRefusedError):
        store.install_incoming(9)
    store.save_snapshot(header(4), [data_up_to(4)])
    store.install_incoming(9)
    store.close()
    disk.lose_power(lambda: False)
    with open_store(path, disk).open_snapshot() as snapshot:
        assert snapshot.header == header(9, 2)


def test_an_installation_whose_sync_failed_is_not_repeated(path: str, disk: Disk) -> None:
    store = member(path, disk, 5)
    receive(store, header(9, 2), data_up_to(9))
    disk.fail_next("sync_dir", "", errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        store.install_incoming(9)


@pytest.mark.parametrize("operation", ["write", "sync", "rename"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_snapshot_that_does_not_arrive_gives_its_space_back(path: str, disk: Disk, operation: str, code: int) -> None:
    store = member(path, disk, 5)
    disk.fail_next(operation, "snap.part" if operation != "rename" else "snap.new", code, skip=operation == "write")
    with pytest.raises(OSError, match="snap"):
        receive(store, header(9, 2), data_up_to(9))
    assert disk.list_dir(path) == ["id", "wal"]
    receive(store, header(9, 2), data_up_to(9))
    store.install_incoming(9)


def test_a_snapshot_that_is_not_wanted_any_more_gives_its_space_back(path: str, disk: Disk) -> None:
    store = member(path, disk, 5)
    receive(store, header(9, 2), data_up_to(9), upto=50)
    assert "snap.part" in disk.list_dir(path)
    store.drop_incoming()
    assert "snap.part" not in disk.list_dir(path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_snapshot_of_our_own_that_gets_no_name_gives_its_space_back(path: str, disk: Disk, code: int) -> None:
    store = member(path, disk, 5)
    disk.fail_next("rename", "/snap", code)
    with pytest.raises(OSError, match="snap"):
        store.save_snapshot(header(4), [data_up_to(4)])
    assert disk.list_dir(path) == ["id", "wal"]
    assert store.save_snapshot(header(4), [data_up_to(4)])


@pytest.mark.parametrize("term", [1, 5])
def test_a_crash_between_a_snapshot_and_its_mark_is_made_good(path: str, disk: Disk, term: int) -> None:
    store = member(path, disk, 5)
    receive(store, header(4, term), data_up_to(4))
    store.install_incoming(4)
    for _ in range(2):  # the mark is written at the first start
        store.close()
        disk.lose_power(lambda: False)
        store = open_store(path, disk)
        loaded = store.load(1)
        assert loaded.snapshot == header(4, term)
        assert list(loaded.entries) == (batch(1, 5) if term == 1 else [])
        # No log is of a later term than its node's, and this node never voted in term 5.
        assert (loaded.hard_state.term, loaded.hard_state.vote) == (term, 0)


# -- processes


def test_a_directory_belongs_to_one_process_at_a_time(path: str) -> None:
    code = (
        "import sys; from raftsvc.storage import Store; s = Store.open(sys.argv[1]); "
        "print('open', flush=True); sys.stdin.readline(); s.close(); print('closed', flush=True); sys.stdin.readline()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        try:
            assert owner.stdout is not None
            assert owner.stdin is not None
            assert owner.stdout.readline() == "open\n"
            with pytest.raises(DirectoryInUseError, match=f"process {owner.pid}"):
                Store.open(path, lock_timeout=0)
            owner.stdin.write("\n")
            owner.stdin.flush()
            Store.open(path, lock_timeout=60).close()  # waits until the owner has closed
            assert owner.stdout.readline() == "closed\n"
        finally:
            owner.kill()


def test_a_snapshot_that_outlives_its_store_leaves_the_next_owner_alone(path: str) -> None:
    store = member(path, Files(), 5)
    late: list[Store] = []

    def chunks() -> Iterator[bytes]:
        yield b"old"
        store.close()
        late.append(open_store(path, Files()))
        late[0].load(1)
        assert late[0].save_snapshot(header(5), [data_up_to(5)])
        yield b"older"

    with pytest.raises(StorageError, match="closed"):
        store.save_snapshot(header(4), chunks())
    for attempt in (lambda: store.incoming(9, 2, 100, 1), lambda: store.install_incoming(9)):
        with pytest.raises(StorageError):
            attempt()
    with late[0].open_snapshot() as snapshot:
        snapshot.verify()
        assert snapshot.header == header(5)
    late[0].close()


# -- the power goes


class Life:
    """What a node promised others before the power went, and what it had merely begun."""

    def __init__(self) -> None:
        self.token: bytes | None = None
        self.is_member = False
        self.written = 0  # highest index that was handed to storage
        self.durable = 0  # highest that was synced, or covered by a durable snapshot
        self.snapshot_index = 0

    def live(self, path: str, disk: Disk, seed: int) -> None:
        chance = random.Random(seed)
        store = open_store(path, disk)
        try:
            if chance.random() < 0.7:
                self.token = store.join_token()
            self.written = 2
            store.create(7, CLUSTER_ID, STATE, batch(1, 2))
            self.is_member = True
            self.durable = 2
            store.load(1)
            for _ in range(14):
                self.step(store, chance)
        finally:
            store._dir_lock.release()

    def step(self, store: Store, chance: random.Random) -> None:
        kind = chance.random()
        wal = store.wal
        for _ in range(self.written % 3):
            wal.prepare()
        if kind < 0.5:
            entries = batch(self.written + 1, chance.randrange(1, 9))
            self.written = index_of(entries[-1])
            wal.append(HardState(1, 0, self.durable), entries)
            if chance.random() < 0.7:
                wal.sync()
                self.durable = self.written
        elif kind < 0.8:
            index = self.durable - chance.randrange(3)
            if index > self.snapshot_index and store.save_snapshot(header(index), [data_up_to(index)]):
                self.snapshot_index = index
                wal.mark_snapshot(index, 1)
                wal.sync()
                self.durable = self.written
                wal.release_before(index - chance.randrange(3))
        else:
            index = self.written + chance.randrange(1, 9)
            receive(store, header(index), data_up_to(index))
            self.written = index
            store.install_incoming(index)
            wal.mark_snapshot(index, 1)
            wal.sync()
            self.durable = self.snapshot_index = index

    def check(self, path: str, disk: Disk) -> None:
        store = open_store(path, disk)
        try:
            if self.is_member:
                assert store.is_initialized
            if not store.is_initialized:
                if self.token is not None:
                    assert store.join_token() == self.token
                store.create(7, CLUSTER_ID, STATE, batch(1, 2))
                self.is_member = True
                self.written = self.durable = 2
            loaded = store.load(1)
            held = loaded.snapshot.index if loaded.snapshot else 0
            assert held >= self.snapshot_index
            if loaded.snapshot:
                with store.open_snapshot() as snapshot:
                    assert b"".join(snapshot.chunks()) == data_up_to(held)
            for e in loaded.entries:
                assert e == entry(index_of(e))
                assert index_of(e) <= held + 1
                held = max(held, index_of(e))
            assert self.durable <= held <= self.written
            assert loaded.hard_state.commit <= held
            # And life goes on from there.
            store.wal.append(None, [entry(held + 1)])
            store.wal.sync()
            disk.lose_power(lambda: False)
        finally:
            store._dir_lock.release()
        store = open_store(path, disk)
        entries = store.load(1).entries
        assert entries[-1] == entry(held + 1)
        store._dir_lock.release()


@pytest.mark.parametrize("seed", range(8))
def test_a_power_loss_at_any_operation_keeps_every_promise(path: str, seed: int) -> None:
    disk = disk_at(path)
    Life().live(path, disk, seed)
    operations = len(disk.operations)
    for crash_at in range(1, operations + 1):
        for way, (name, _) in enumerate(losses(0)):
            disk = disk_at(path)
            disk.crash_at = crash_at
            life = Life()
            with pytest.raises(PowerLoss):
                life.live(path, disk, seed)
            disk.lose_power(losses(crash_at)[way][1])
            try:
                life.check(path, disk)
            except Exception as error:
                raise AssertionError(f"power lost at operation {crash_at}, {name} was kept") from error


@pytest.mark.parametrize("seed", range(8))
def test_a_kill_at_any_operation_and_then_a_power_loss_keeps_every_promise(path: str, seed: int) -> None:
    disk = disk_at(path)
    Life().live(path, disk, seed)
    for crash_at in range(1, len(disk.operations) + 1):
        disk = disk_at(path)
        disk.crash_at = crash_at
        life = Life()
        try:
            life.live(path, disk, seed)
        except PowerLoss:
            pass
        else:
            raise AssertionError((crash_at, len(disk.operations), disk.operations[-3:]))
        disk.kill_process()
        store = open_store(path, disk)
        if store.is_initialized:
            loaded = store.load(1)
            life.is_member = True
            life.durable = index_of(loaded.entries[-1]) if loaded.entries else loaded.snapshot.index  # type: ignore[union-attr]
            life.snapshot_index = loaded.snapshot.index if loaded.snapshot else 0
        else:
            life.token = store.join_token()
        store._dir_lock.release()
        disk.lose_power(lambda: False)
        life.check(path, disk)
