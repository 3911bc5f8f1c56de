"""One process owns a directory."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from raftsvc.errors import DirectoryInUseError
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
    path = str(tmp_path / "lock")
    with process(HOLD, path) as owner:
        assert said(owner) == "held"
        with pytest.raises(DirectoryInUseError, match=rf"{tmp_path} is in use by process {owner.pid} on "):
            DirectoryLock(path).acquire(0)


def test_a_waiting_process_owns_the_directory_once_it_is_released(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
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
    path = str(tmp_path / "lock")
    with process(HOLD, path) as owner:
        assert said(owner) == "held"
        owner.kill()
        lock = DirectoryLock(path)
        lock.acquire(30)
        lock.release()
        lock.release()


def test_what_a_child_inherited_does_not_keep_a_released_directory(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with process(HOLD_WITH_CHILD, path, "parent releases") as owner:
        assert said(owner) == "ready"
        lock = DirectoryLock(path)
        lock.acquire(0)
        lock.release()
        tell(owner)
        owner.wait()


def test_a_child_cannot_give_its_parents_directory_away(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with process(HOLD_WITH_CHILD, path, "child releases") as owner:
        assert said(owner) == "ready"
        with pytest.raises(DirectoryInUseError, match=str(owner.pid)):
            DirectoryLock(path).acquire(0)
        tell(owner)
        owner.wait()


def test_two_locks_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    first, second = DirectoryLock(path), DirectoryLock(path)
    first.acquire(0)
    with pytest.raises(DirectoryInUseError):
        second.acquire(0)
    first.release()
    second.acquire(0)
    second.release()
