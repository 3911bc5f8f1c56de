"""Backups: of the directory of a stopped node, which stays as it is; whatever is not a whole one is found out."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from zlib import crc32

import pytest

from raftsvc import rescue
from raftsvc.errors import (
    ConfigurationError,
    DamagedStorageError,
    DirectoryInUseError,
    FormatVersionError,
    StorageError,
)
from raftsvc.kv import KeyValueState
from raftsvc.member.machine import Machine
from raftsvc.storage import Files, Store
from raftsvc.testing.disk import PowerLoss
from tests.rescue.harness import (
    ADDRS,
    CLUSTER_ID,
    CONFIG,
    NOW,
    OPENED,
    below,
    brought,
    clock_at,
    history,
    leave,
    leave_snapshot,
)
from tests.service.harness import ListState
from tests.storage.faults import Disk, losses
from tests.storage.test_store import disk_at

ITEMS = [b"one", b"two", b"no, not this", b"three"]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path)


@pytest.fixture
def disk(path: str) -> Disk:
    return disk_at(path)


def restored_from(file: str, files: Files | None = None) -> list[bytes]:
    state = ListState()
    with rescue.BackupFile(file, files) as found:
        state.restore_snapshot(b"".join(found.chunks()), found.backup.index)
    return state.items


def back_up(path: str, disk: Disk, name: str = "backup") -> rescue.Backup:
    return rescue.back_up(path, f"{path}/{name}", ListState(), files=disk, clock=clock_at(NOW))


def test_all_that_the_log_has_is_in_it_and_what_it_says_of_itself(path: str, disk: Disk) -> None:
    leave(path, disk, history(ITEMS, term=2, time_ms=9), commit=4)
    before = {name: disk.content(name) for name in disk.paths()}
    backup = back_up(path, disk)
    assert (backup.index, backup.term, backup.time_ms) == (OPENED + len(ITEMS), 2, 9)
    assert (backup.cluster_id, backup.node_id, backup.commit_index) == (CLUSTER_ID, 1, 4)
    assert backup.wall_ms == int(NOW * 1000)
    assert backup.config.encode() == CONFIG.encode()
    with rescue.BackupFile(f"{path}/backup", disk) as file:
        assert file.backup.config.members == backup.config.members
        file.verify()
    assert restored_from(f"{path}/backup", disk) == [b"one", b"two", b"three"]
    assert {name: disk.content(name) for name in before} == before, "nothing changes in the directory"


def test_a_snapshot_without_a_log_behind_it_needs_no_state(path: str, disk: Disk) -> None:
    data = (3).to_bytes(4, "big") + b"old"
    leave_snapshot(path, disk, 10, data, bytes(4), [])
    backup = rescue.back_up(path, f"{path}/backup", files=disk)
    assert (backup.index, backup.time_ms, backup.commit_index) == (10, 5, 10)
    assert restored_from(f"{path}/backup", disk) == [b"old"]


def test_what_is_behind_a_snapshot_is_added_by_the_state(path: str, disk: Disk) -> None:
    data = (3).to_bytes(4, "big") + b"old"
    sessions = sessions_after(3)
    leave_snapshot(path, disk, 10, data, sessions, brought([b"again", b"new"], 3, 11, time_ms=6))
    backup = back_up(path, disk)
    assert (backup.index, backup.time_ms) == (12, 6)
    assert restored_from(f"{path}/backup", disk) == [b"old", b"new"], "what came twice counts once"


def sessions_after(number: int) -> bytes:
    """The sessions of who brought instructions up to `number`."""
    machine = Machine(ListState())
    machine.apply(history([b"x"] * number), [])
    return machine.sessions.encode()


def test_a_state_that_will_not_do_is_refused(path: str, disk: Disk) -> None:
    leave(path, disk, history(ITEMS), commit=4)
    with pytest.raises(ConfigurationError, match="Give one"):
        rescue.back_up(path, f"{path}/backup", files=disk)
    used = ListState()
    used.set_applied_index(1)
    with pytest.raises(ConfigurationError, match="new and empty"):
        rescue.back_up(path, f"{path}/backup", used, files=disk)
    with pytest.raises(ConfigurationError, match="refuses each of 4 instructions"):
        rescue.back_up(path, f"{path}/backup", KeyValueState(), files=disk)
    other = f"{path}/other"
    below(disk, other)
    leave_snapshot(other, disk, 10, b"what a list is not", bytes(4), brought([b"a"], 1, 11))
    with pytest.raises(StorageError, match="Is it the one that the node ran"):
        rescue.back_up(other, f"{path}/backup", KeyValueState(), files=disk)
    assert not disk.exists(f"{path}/backup")


def test_a_directory_in_use_or_of_nobody_is_refused(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path), lock_timeout=0)
    try:
        for act in (
            lambda: rescue.back_up(tmp_path, tmp_path / "backup", ListState()),
            lambda: rescue.inspect(tmp_path),
            lambda: rescue.verify(tmp_path),
            lambda: rescue.survey([tmp_path]),
            lambda: rescue.recover(tmp_path, ADDRS[0], ListState()),
        ):
            with pytest.raises(DirectoryInUseError):
                act()
    finally:
        store.close()
    with pytest.raises(StorageError, match="no node in it"):
        rescue.back_up(tmp_path, tmp_path / "backup", ListState())
    with pytest.raises(StorageError, match="cannot be read"):
        rescue.back_up(tmp_path / "missing", tmp_path / "backup", ListState())
    assert not (tmp_path / "missing").exists()


class Sink:
    """Takes a little of each write, as a pipe may."""

    def __init__(self) -> None:
        self.data = b""
        self.largest = 0

    def write(self, data: bytes, /) -> int:
        self.largest = max(self.largest, len(data))
        self.data += data[:1000]
        return min(len(data), 1000)


def test_a_stream_has_the_same_bytes_as_a_file_in_pieces(path: str, disk: Disk) -> None:
    big = [bytes([n]) * 700_000 for n in range(4)]
    leave(path, disk, history(big), commit=4)
    back_up(path, disk)
    sink = Sink()
    rescue.back_up(path, sink, ListState(), files=disk, clock=clock_at(NOW))
    assert sink.data == disk.content(f"{path}/backup")
    assert sink.largest <= 1024 * 1024 + 8


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("version", [b"0", b"2"])
def test_a_backup_of_another_version_is_not_said_to_be_damaged(
    path: str, disk: Disk, version: bytes, is_whole: bool
) -> None:
    leave(path, disk, history(ITEMS), commit=4)
    back_up(path, disk)
    content = bytearray(disk.content(f"{path}/backup"))
    content[7:8] = version
    end = 12 + int.from_bytes(content[8:12], "big")
    if is_whole:
        content[end : end + 4] = crc32(content[:end]).to_bytes(4, "big")
    disk.put(f"{path}/other", bytes(content))
    expected, what = (
        (FormatVersionError, f"written in version {version.decode()} of its format")
        if is_whole
        else (DamagedStorageError, "If another version of raftsvc wrote it, use that one")
    )
    with pytest.raises(expected, match=what), rescue.BackupFile(f"{path}/other", disk) as file:
        file.verify()


def test_whatever_is_cut_flipped_or_added_is_found_out(path: str, disk: Disk) -> None:
    leave(path, disk, history(ITEMS), commit=4)
    back_up(path, disk)
    whole = disk.content(f"{path}/backup")

    def is_found(data: bytes) -> bool:
        disk.put(f"{path}/other", data)
        try:
            with rescue.BackupFile(f"{path}/other", disk) as file:
                file.verify()
        except (DamagedStorageError, FormatVersionError):
            return True
        return False

    assert not is_found(whole)
    assert all(is_found(whole[:size]) for size in range(len(whole)))
    assert all(
        is_found(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        for at in range(len(whole))
        for bit in (0, 7)
    )
    assert is_found(whole + b"\x00")


def test_a_crash_or_a_full_disk_leaves_the_former_backup_or_the_new_one(path: str, disk: Disk) -> None:
    leave(path, disk, history(ITEMS[:1]), commit=3)
    back_up(path, disk)
    former = disk.content(f"{path}/backup")
    below(disk, f"{path}/other")
    leave(f"{path}/other", disk, history(ITEMS), commit=4)

    def back_up_other() -> None:
        rescue.back_up(f"{path}/other", f"{path}/backup", ListState(), files=disk, clock=clock_at(NOW))

    operation = 0
    is_over = False
    while not is_over:
        operation += 1
        for _, keep in losses(operation):
            disk.put(f"{path}/backup", former)
            disk.kill_process()
            disk.crash_at = operation
            is_over = True
            with suppress(PowerLoss):
                back_up_other()
                break
            is_over = False
            disk.lose_power(keep)
            assert restored_from(f"{path}/backup", disk) in ([b"one"], [b"one", b"two", b"three"])
    assert operation > 5
    disk.heal()
    disk.put(f"{path}/backup", former)
    left = disk.list_dir(path)  # by the crashes
    disk.fail_next("write", ".tmp", errno.ENOSPC, 2)
    with pytest.raises(StorageError, match="could not be written"):
        back_up_other()
    assert disk.content(f"{path}/backup") == former
    assert disk.list_dir(path) == left


def test_what_cannot_be_given_its_name_leaves_nothing_behind(tmp_path: Path) -> None:
    leave(str(tmp_path / "n"), Files(), history(ITEMS), 4)
    (tmp_path / "backup").mkdir()  # which no file takes the place of
    with pytest.raises(StorageError, match="could not be written"):
        rescue.back_up(tmp_path / "n", tmp_path / "backup", ListState())
    assert sorted(os.listdir(tmp_path)) == ["backup", "n"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_a_file_system_that_syncs_no_directories_takes_a_backup(
    path: str, disk: Disk, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    leave(path, disk, history(ITEMS), 4)
    disk.fail_next("sync_dir", path, code)
    back_up(path, disk)
    assert restored_from(f"{path}/backup", disk) == [b"one", b"two", b"three"]
    assert "its directory cannot be synced" in caplog.text
    disk.fail_next("sync_dir", path, errno.EIO)
    with pytest.raises(StorageError, match="could not be written"):
        back_up(path, disk)


def test_a_link_to_a_backup_is_followed_and_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    leave(str(tmp_path / "n"), Files(), history(ITEMS), 4)
    rescue.back_up(tmp_path / "n", tmp_path / "backup", ListState())
    (tmp_path / "latest").symlink_to("backup")
    assert restored_from(str(tmp_path / "latest")) == [b"one", b"two", b"three"]
    assert rescue.restore(tmp_path / "latest", tmp_path / "new", ADDRS[0]).former_cluster_id == CLUSTER_ID
    rescue.back_up(tmp_path / "n", tmp_path / "latest", ListState())
    assert not (tmp_path / "latest").is_symlink(), "what has the name is replaced"
    os.mkfifo(tmp_path / "pipe")
    for odd in ("pipe", "new"):
        with pytest.raises(StorageError, match="no regular file"):
            rescue.BackupFile(tmp_path / odd)
