"""The layer over the operating system, on a real directory."""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import stat
from pathlib import Path

import pytest

from raftsvc.storage.files import Files, make_dirs, read_file, settle_names, write_file
from tests.storage.faults import Disk, PowerLoss, losses


def test_a_file_is_replaced_whole_and_belongs_to_its_owner_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "name")
    write_file(Files(), path, b"first, and longer")
    write_file(Files(), path, b"second")
    assert read_file(Files(), path) == b"second"
    assert os.listdir(tmp_path) == ["name"]
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_a_file_being_replaced_is_the_old_or_the_new_one_whenever_the_power_goes() -> None:
    for crash_at in range(1, 6):
        for _, keep in losses(crash_at):
            disk = Disk()
            disk.add_dirs("/d")
            write_file(disk, "/d/f", b"old")
            disk.kill_process()
            disk.crash_at = crash_at
            with pytest.raises(PowerLoss):
                write_file(disk, "/d/f", b"new" * 500)
            disk.lose_power(keep)
            assert disk.content("/d/f") in (b"old", b"new" * 500)
    disk.crash_at = 0
    write_file(disk, "/d/f", b"last")
    disk.lose_power(lambda: False)
    assert disk.content("/d/f") == b"last"


@pytest.mark.parametrize("crash_at", range(1, 7))
def test_directories_that_an_earlier_attempt_left_survive_a_power_loss(crash_at: int) -> None:
    """It was killed, or its sync failed, after the directory was there and before that was durable."""
    disk = Disk()
    disk.add_dirs("/srv")
    disk.crash_at = crash_at
    with pytest.raises(PowerLoss):
        make_dirs(disk, "/srv/a/b/c")
    disk.kill_process()  # the machine goes on
    make_dirs(disk, "/srv/a/b/c")
    disk.lose_power(lambda: False)
    assert disk.exists("/srv/a/b/c")


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EMFILE])
@pytest.mark.parametrize("parent", ["/srv", "/srv/a", "/srv/a/b"])
def test_directories_whose_sync_failed_survive_a_power_loss_once_it_was_tried_again(parent: str, code: int) -> None:
    disk = Disk()
    disk.add_dirs("/srv")
    disk.fail_next("sync_dir", parent, code)
    with pytest.raises(OSError, match="/srv"):
        make_dirs(disk, "/srv/a/b/c")
    make_dirs(disk, "/srv/a/b/c")
    disk.lose_power(lambda: False)
    assert disk.exists("/srv/a/b/c")


def test_a_directory_that_nobody_could_make_last_is_not_made_and_it_is_said_what_to_do() -> None:
    disk = Disk()
    disk.add_dirs("/srv")
    disk.fail_next("sync_dir", "/srv", errno.EACCES)
    with pytest.raises(OSError, match=r"/srv cannot be synced.*make /srv/a yourself"):
        make_dirs(disk, "/srv/a/b")
    assert not disk.exists("/srv/a")
    disk.add_dirs("/srv/a")
    disk.fail_next("sync_dir", "/srv", errno.EACCES)
    make_dirs(disk, "/srv/a/b")


def test_a_directory_that_another_process_made_meanwhile_is_not_removed() -> None:
    class Beside(Disk):
        def make_dir(self, path: str) -> None:
            super().make_dir(path)
            raise FileExistsError(errno.EEXIST, "file exists", path)

    disk = Beside()
    disk.add_dirs("/srv")
    disk.fail_next("sync_dir", "/srv")
    with pytest.raises(OSError, match="/srv"):
        make_dirs(disk, "/srv/a")
    assert disk.exists("/srv/a")


@pytest.mark.parametrize("is_killed", [False, True])
@pytest.mark.parametrize("refused", [0, errno.ENOSPC, errno.EMFILE])
def test_names_whose_sync_failed_are_settled_by_something_new_if_the_disk_takes_that(
    refused: int, is_killed: bool
) -> None:
    disk = Disk()
    disk.add_dirs("/d")
    disk.fail_next("sync_dir", "/d")
    with pytest.raises(OSError, match="/d"):
        write_file(disk, "/d/f", b"content")
    if is_killed:
        disk.kill_process()
    if refused:
        disk.fail_next("create", "", refused)
    settle_names(disk, "/d")
    assert disk.list_dir("/d") == ["f"]
    disk.lose_power(lambda: False)
    assert disk.list_dir("/d") == ([] if refused else ["f"])


def test_what_the_simulated_disk_does_not_say_of_names_it_says_once_one_more_changes() -> None:
    disk = Disk()
    disk.add_dirs("/d")
    disk.fail_next("sync_dir", "/d")
    with pytest.raises(OSError, match="/d"):
        write_file(disk, "/d/f", b"1")
    crashed = copy.deepcopy(disk)
    crashed.sync_dir("/d")
    crashed.lose_power(lambda: False)
    assert not crashed.exists("/d/f")
    crashed = copy.deepcopy(disk)
    crashed.lose_power(lambda: True)
    assert crashed.exists("/d/f"), "it may be there nevertheless"
    write_file(disk, "/d/g", b"2")
    disk.lose_power(lambda: False)
    assert disk.list_dir("/d") == ["f", "g"]


def test_nothing_is_done_by_name_once_the_directory_is_another_one(tmp_path: Path) -> None:
    """Whoever moved it away and put a copy in its place may have given that to another owner."""
    owned = tmp_path / "node"
    owned.mkdir()
    files = Files()
    lock = files.owner_lock(str(owned))
    lock.acquire(0)
    files.stay_with(lock)
    write_file(files, f"{owned}/f", b"ours")
    fd = files.open(f"{owned}/f")
    owned.rename(tmp_path / "moved")
    owned.mkdir()
    (owned / "f").write_bytes(b"another owner's")
    for change in (
        lambda: files.create(f"{owned}/g"),
        lambda: files.rename(f"{owned}/f", f"{owned}/g"),
        lambda: files.remove(f"{owned}/f"),
        lambda: write_file(files, f"{owned}/f", b"no"),
    ):
        with pytest.raises(OSError, match="moved, replaced or deleted"):
            change()
    assert [path.name for path in owned.iterdir()] == ["f"] and (owned / "f").read_bytes() == b"another owner's"
    files.write(fd, b"ours again", 0)
    assert (tmp_path / "moved" / "f").read_bytes() == b"ours again", "what is open is still ours"
    with pytest.raises(OSError, match="no start finds what is written"):
        files.sync(fd)  # and so it is not durable
    lock.release()


def test_a_child_does_not_touch_what_has_the_numbers_of_its_parents_files(tmp_path: Path) -> None:
    files = Files()
    fd = files.create(str(tmp_path / "parents"))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with contextlib.suppress(OSError):
                os.fstat(fd)
                os._exit(3)  # the parent's is still open
            own = os.open(tmp_path / "childs", os.O_RDWR | os.O_CREAT)
            if own != fd:  # lower ones are free as well, where others were closed
                os.dup2(own, fd)
                own = fd
            for use in (lambda: files.write(fd, b"x", 0), lambda: files.sync(fd), lambda: files.close(fd)):
                with contextlib.suppress(OSError):
                    use()
                    os._exit(2)
            os.fstat(own)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (tmp_path / "childs").read_bytes() == b""
    files.close(fd)


def test_directories_that_were_made_survive_a_power_loss() -> None:
    disk = Disk()
    disk.add_dirs("/srv")
    make_dirs(disk, "/srv/a/b/c")
    disk.lose_power(lambda: False)
    assert disk.exists("/srv/a/b/c")
    make_dirs(disk, "/srv/a/b/c")


def test_a_read_beyond_the_end_is_short_and_a_write_beyond_it_fills_with_zeros(tmp_path: Path) -> None:
    files = Files()
    fd = files.create(str(tmp_path / "f"))
    files.write(fd, b"abc", 5)
    assert files.read(fd, 100, 0) == b"\x00" * 5 + b"abc"
    assert files.read(fd, 100, 8) == b""
    assert files.size(fd) == 8
    files.close(fd)


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: whole_write(fd, bytes(data)[:3], offset))
    files = Files()
    fd = files.create(str(tmp_path / "f"))
    files.write(fd, b"0123456789", 0)
    assert files.read(fd, 100, 0) == b"0123456789"
    files.close(fd)


def test_a_file_whose_sync_failed_is_never_synced_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may have marked clean what it did not write, and the next fsync succeeds without it."""
    files = Files()
    doubtful, other = files.create(str(tmp_path / "f")), files.create(str(tmp_path / "g"))
    with monkeypatch.context() as patch:
        patch.setattr(files, "flush", lambda fd: (_ for _ in ()).throw(OSError(errno.EIO, "once")))
        with pytest.raises(OSError, match="once"):
            files.sync(doubtful)
    for _ in range(2):
        files.write(doubtful, b"more", 0)
        with pytest.raises(OSError, match="an earlier fsync of this file failed"):
            files.sync(doubtful)
    files.sync(other)
    files.close(doubtful)
    anew = files.create(str(tmp_path / "f"))
    assert anew == doubtful, "the number is another file's now"
    files.sync(anew)


def test_a_name_that_cannot_be_looked_at_is_not_taken_for_absent(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert not Files().exists(str(tmp_path / "other"))
    with pytest.raises(NotADirectoryError):
        Files().exists(str(tmp_path / "file" / "below"))
