"""One process owns a directory."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from raftsvc.errors import DirectoryInUseError, StorageError
from raftsvc.storage.lock import DirectoryLock

HOLD = """
import sys
from raftsvc.storage.lock import DirectoryLock
lock = DirectoryLock(sys.argv[1])
lock.acquire(30)
print("held", flush=True)
sys.stdin.readline()
lock.release()
print("released", flush=True)
sys.stdin.readline()
"""

# As with gunicorn under a view that starts a child; forked by Python, or past it.
HOLD_AND_FORK = """
import ctypes, os, sys, time
from raftsvc.storage.files import Files
lock = Files().owner_lock(sys.argv[1])
lock.acquire(30)
fork = os.fork if sys.argv[2] == "by Python" else ctypes.CDLL(None).fork
child = fork()
if child == 0:
    time.sleep(120)
    os._exit(0)
print(child, flush=True)
sys.stdin.readline()
"""

# Holds the lock, and has a child that holds everything it inherited until its input ends.
HOLD_WITH_CHILD = """
import os, sys
from raftsvc.storage.lock import DirectoryLock
lock = DirectoryLock(sys.argv[1])
lock.acquire(30)
read, write = os.pipe()
if os.fork() == 0:
    if sys.argv[2] == "child releases":
        lock.release()
    os.write(write, b"x")
    sys.stdin.readline()
    os._exit(0)
os.read(read, 1)
if sys.argv[2] == "parent releases":
    lock.release()
print("ready", flush=True)
os.wait()
"""


@contextmanager
def process(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def said(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def tell(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


def test_a_second_process_is_refused_and_told_who_owns_the_directory(tmp_path: Path) -> None:
    path = str(tmp_path)
    with process(HOLD, path) as owner:
        assert said(owner) == "held"
        with pytest.raises(DirectoryInUseError, match=rf"{tmp_path} is in use by process {owner.pid} on "):
            DirectoryLock(path).acquire(0)


def test_a_waiting_process_owns_the_directory_once_it_is_released(tmp_path: Path) -> None:
    path = str(tmp_path)
    lock = DirectoryLock(path)
    lock.acquire(0)
    with process(HOLD, path) as waiting:
        waiter = threading.Thread(target=lock.release)
        waiter.start()
        assert said(waiting) == "held"
        waiter.join()
        with pytest.raises(DirectoryInUseError, match=str(waiting.pid)):
            lock.acquire(0.1)
        tell(waiting)
        assert said(waiting) == "released"
        lock.acquire(0)
        lock.release()


def test_the_death_of_the_owner_frees_the_directory(tmp_path: Path) -> None:
    path = str(tmp_path)
    with process(HOLD, path) as owner:
        assert said(owner) == "held"
        owner.kill()
        lock = DirectoryLock(path)
        lock.acquire(30)
        lock.release()
        lock.release()


def test_what_a_child_inherited_does_not_keep_a_released_directory(tmp_path: Path) -> None:
    path = str(tmp_path)
    with process(HOLD_WITH_CHILD, path, "parent releases") as owner:
        assert said(owner) == "ready"
        lock = DirectoryLock(path)
        lock.acquire(0)
        lock.release()
        tell(owner)
        owner.wait()


def test_a_child_cannot_give_its_parents_directory_away(tmp_path: Path) -> None:
    path = str(tmp_path)
    with process(HOLD_WITH_CHILD, path, "child releases") as owner:
        assert said(owner) == "ready"
        with pytest.raises(DirectoryInUseError, match=str(owner.pid)):
            DirectoryLock(path).acquire(0)
        tell(owner)
        owner.wait()


@pytest.mark.parametrize("what", ["deleted", "another file", "a directory", "a link", "all files deleted"])
def test_nothing_that_is_done_to_the_files_lets_a_second_owner_in(tmp_path: Path, what: str) -> None:
    (tmp_path / "elsewhere").touch()
    owned = tmp_path / "node"
    owned.mkdir()
    with process(HOLD, str(owned)) as owner:
        assert said(owner) == "held"
        (owned / "lock").unlink()
        if what == "another file":
            (owned / "lock").write_text("process 1 on another\n")
        elif what == "a directory":
            (owned / "lock").mkdir()
        elif what == "a link":
            (owned / "lock").symlink_to(tmp_path / "elsewhere")
        elif what == "all files deleted":
            assert not list(owned.iterdir())
        with pytest.raises(DirectoryInUseError, match=f"process {owner.pid}"):
            DirectoryLock(str(owned)).acquire(0)
    DirectoryLock(str(owned)).acquire(30)


def test_a_directory_is_owned_by_whatever_name_it_is_called(tmp_path: Path) -> None:
    owned = tmp_path / "node"
    owned.mkdir()
    (tmp_path / "link").symlink_to(owned)
    lock = DirectoryLock(str(owned))
    lock.acquire(0)
    with pytest.raises(DirectoryInUseError):
        DirectoryLock(str(tmp_path / "link")).acquire(0)
    owned.rename(tmp_path / "moved")
    with pytest.raises(DirectoryInUseError):
        DirectoryLock(str(tmp_path / "moved")).acquire(0)
    assert not lock.is_in_place
    owned.mkdir()
    other = DirectoryLock(str(owned))
    other.acquire(0)
    assert other.is_in_place and not lock.is_in_place, "it is another directory at the same place"
    lock.release()
    other.release()


def test_who_waits_for_a_directory_owns_what_stands_there_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_missed = threading.Event()

    def open_directory(path: Any, *flags: int, **more: Any) -> int:
        try:
            return open_file(path, *flags, **more)
        except FileNotFoundError:
            is_missed.set()
            raise

    open_file = os.open
    monkeypatch.setattr(os, "open", open_directory)
    owned = tmp_path / "node"
    owned.mkdir()
    first = DirectoryLock(str(owned))
    first.acquire(0)
    second = DirectoryLock(str(owned))
    waiter = threading.Thread(target=second.acquire, args=(30,))
    waiter.start()
    owned.rename(tmp_path / "moved")
    assert is_missed.wait(30), "nothing stands there for a moment"
    owned.mkdir()
    waiter.join()
    assert second.is_in_place
    first.release()
    second.release()


def test_a_forked_child_does_not_keep_the_directory_of_a_parent_that_was_killed(tmp_path: Path) -> None:
    with process(HOLD_AND_FORK, str(tmp_path), "by Python") as owner:
        child = int(said(owner))
        try:
            owner.kill()
            owner.wait()
            DirectoryLock(str(tmp_path)).acquire(30)  # once the child has run at all
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_child_that_was_forked_past_python_and_keeps_the_directory_is_named(tmp_path: Path) -> None:
    with process(HOLD_AND_FORK, str(tmp_path), "past Python") as owner:
        child = int(said(owner))
        try:
            owner.kill()
            owner.wait()
            with pytest.raises(DirectoryInUseError, match=rf"process {child} .*from process {owner.pid} "):
                DirectoryLock(str(tmp_path)).acquire(0)
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o702, 0o1777])
def test_a_directory_that_everybody_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    owned = tmp_path / "node"
    owned.mkdir()
    owned.chmod(mode)
    with pytest.raises(StorageError, match=f"everybody may write to it .mode {mode:04o}"):
        DirectoryLock(str(owned)).acquire(0)
    owned.chmod(0o770)
    DirectoryLock(str(owned)).acquire(0)


@pytest.mark.parametrize("code", [errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_such_locks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(fd: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StorageError, match="keep a node's directory on a local disk"):
        DirectoryLock(str(tmp_path)).acquire(0)


def test_two_locks_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    path = str(tmp_path)
    first, second = DirectoryLock(path), DirectoryLock(path)
    first.acquire(0)
    with pytest.raises(DirectoryInUseError):
        second.acquire(0)
    first.release()
    second.acquire(0)
    second.release()
