"""The lock that makes one process the owner of a directory; and how threads wait for each other at the end.

What is locked is the directory itself, by flock on its own descriptor, and not a file in
it: whoever deletes that, or puts another in its place, would let a second owner in.  An
flock is given up by the kernel when the last process that has the descriptor ends, so
no stale lock can remain.  A forked child has it too, and closes it (`raftsvc.process`); one
that was forked past Python keeps the directory from the next owner, and is named.

The file `lock` in the directory says who the owner is, for people; it locks nothing.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from raftsvc.errors import DirectoryInUseError, StorageError
from raftsvc.process import close_in_children
from raftsvc.systems import lock_inode, unlock_inode

_POLL_SECONDS = 0.05
_SEARCH_SECONDS = 1.0
_NOTE = "lock"
_NOTE_FORM = re.compile(r"process (?P<pid>\d+) on (?P<host>.+)")


@contextmanager
def held_by(deadline: float, lock: threading.Lock) -> Iterator[bool]:
    """Hold `lock`, if it is free by `deadline` of the monotonic clock, as what is yielded says.

    For whoever ends: the holder may be in a write to a disk that hangs.
    """
    is_held = lock.acquire(timeout=max(0.0, deadline - time.monotonic()))
    try:
        yield is_held
    finally:
        if is_held:
            lock.release()


class DirectoryLock:
    """Exclusive ownership of the directory `path`, while held."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._pid = 0

    def try_acquire(self) -> bool:
        """Own the directory if nobody does, without waiting; raises as `acquire`, but for that."""
        close_in_children(self)
        self._fd = fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._pid = os.getpid()
        try:
            _check_access(self._path, fd)
            if not (self._try_to_lock(fd) and is_at(self._path, fd)):
                self._close()
                return False
            self._note_owner()
            return True
        except BaseException:
            self.release()
            raise

    def acquire(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for the present owner to end; True once it did.

        During a reload a server starts the new process while the old one drains.
        Raises DirectoryInUseError, which names the owner, and StorageError if the directory
        is no place for a node: its file system has no such locks, or everybody may write to it.
        """
        deadline = time.monotonic() + timeout
        close_in_children(self)
        while True:
            # Before it is locked: whoever forks from now on does not keep it.
            try:
                self._fd = fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:  # it may be about to be replaced
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_POLL_SECONDS)
                continue
            self._pid = os.getpid()
            try:
                _check_access(self._path, fd)
                if self._try_to_lock(fd):
                    if is_at(self._path, fd):
                        break  # else it was replaced meanwhile, and what stands there is to be locked
                elif (owner := _noted_owner(self._path)) is not None and is_ancestor(owner):
                    raise DirectoryInUseError(
                        f"{self._path} is in use by process {owner}, which started this one and will not leave before "
                        "it. One process owns a directory: the parent of a reloader must not start the node (start it "
                        'only where os.environ.get("WERKZEUG_RUN_MAIN") == "true", for Django "RUN_MAIN", or run '
                        "without the reloader), and any other child has its parent do what it wants of the node."
                    )
                elif time.monotonic() >= deadline:
                    raise DirectoryInUseError(
                        f"{self._path} is in use by {_describe_holder(self._path, fd)}"
                        + (f", waited {timeout:g} s. " if timeout else ". ")
                        + "One process owns a directory, and others share it only where each of them has listen=, the "
                        "port of the node's own: give it to all, or run one worker process. Other nodes have "
                        "directories of their own."
                    )
                else:
                    time.sleep(_POLL_SECONDS)
            except BaseException:
                self._close()
                raise
            self._close()
        try:
            self._note_owner()
        except BaseException:  # who is interrupted owns nothing
            self.release()
            raise
        return True

    def _note_owner(self) -> None:
        with suppress(OSError):  # a full disk does not keep the owner out
            _write_note(self._path, f"process {os.getpid()} on {socket.gethostname()}\n")

    def _try_to_lock(self, fd: int) -> bool:
        """Whether the directory was free."""
        try:
            lock_inode(fd)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
                raise StorageError(
                    f"{self._path}: a directory of this file system cannot be locked ({error.strerror}); "
                    "keep a node's directory on a local disk"
                ) from error
            raise
        return True

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    @property
    def is_in_place(self) -> bool:
        """Whether what was locked is still what stands at the path."""
        return self._fd >= 0 and is_at(self._path, self._fd)

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is locked, and something else stands at the path, or nothing; no, as long as nobody can say."""
        fd = self._fd
        try:
            return fd >= 0 and not is_at(self._path, fd)
        except OSError:
            return False

    def release(self) -> None:
        """Let the next owner in; idempotent."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            if os.getpid() == self._pid:
                with suppress(OSError):
                    if is_at(self._path, fd):
                        _write_note(self._path, "")
                unlock_inode(fd)
            os.close(fd)

    def take_descriptors(self) -> Iterable[int]:
        """See `raftsvc.process.HoldsDescriptors`."""
        fd, self._fd = self._fd, -1
        return [fd] if fd >= 0 else []


def is_at(path: str, fd: int) -> bool:
    """Whether `fd` is of what stands at `path`."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(fd))


def _check_access(path: str, fd: int) -> None:
    """A directory that everybody may write to is nobody's own: they could put anything there."""
    mode = os.fstat(fd).st_mode & 0o7777
    if mode & 0o002 and not os.fstatvfs(fd).f_flag & os.ST_RDONLY:
        raise StorageError(
            f"{path}: everybody may write to it (mode {mode:04o}); `chmod o-w {path}` if it is this node's alone, "
            "or name a directory in it that is not there yet, which is made for this node"
        )


def _write_note(path: str, text: str) -> None:
    """Say in the directory who owns it; through no link."""
    note = f"{path}/{_NOTE}"
    with suppress(FileNotFoundError):
        os.unlink(note)
    if text:
        fd = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def is_ancestor(pid: int) -> bool:
    """Whether this process, or one that it comes from, was started by `pid`, as far as this system tells."""
    parent = os.getppid()
    while parent > 0:
        if parent == pid:
            return True
        try:
            with open(f"/proc/{parent}/stat", "rb") as stat:
                parent = int(stat.read().rpartition(b")")[2].split()[1])
        except OSError:
            return False
    return False


def noted_holder(path: str) -> str:
    """What the owner of the directory `path` noted of itself there, for people; empty if nothing."""
    return _read_note(path)


def holder_of(path: str) -> str:
    """Whoever has the lock of the directory `path`, as far as this system tells; slow.  Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _describe_holder(path, fd)
    finally:
        os.close(fd)


def _noted_owner(path: str) -> int | None:
    """The process on this host that noted itself as the owner, if one did."""
    writer = _NOTE_FORM.fullmatch(_read_note(path))
    return int(writer["pid"]) if writer is not None and writer["host"] == socket.gethostname() else None


def _read_note(path: str) -> str:
    try:
        note = os.open(f"{path}/{_NOTE}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(note, 200).decode(errors="replace").strip()
    except OSError:
        return ""
    finally:
        os.close(note)


def _describe_holder(path: str, fd: int) -> str:
    """Whoever has the lock on the directory that `fd` is of, as far as this system tells."""
    noted = _read_note(path)
    holders = dict(_holders_of(fd))
    if not holders:
        return noted or "another process"
    named = ", ".join(f"process {pid} ({command})" for pid, command in sorted(holders.items()))
    writer = _NOTE_FORM.fullmatch(noted)
    if writer is None or writer["host"] != socket.gethostname():
        return f"{named}, noted as {noted!r}" if noted else named  # of another container, maybe
    if os.path.exists(f"/proc/{writer['pid']}"):
        return noted
    return f"{named}, which was forked from {noted}, and keeps it although that one has ended: look why it lives on"


def _holders_of(fd: int) -> Iterator[tuple[int, str]]:
    """Process ids, and commands, that have a lock on what `fd` is of, by the word of /proc, while time allows."""
    status = os.fstat(fd)
    deadline = time.monotonic() + _SEARCH_SECONDS
    pids = [name for name in os.listdir("/proc") if name.isdigit()] if os.path.isdir("/proc/self/fdinfo") else []
    for pid in pids:
        numbers: list[str] = []
        with suppress(OSError):  # it is another user's, or has ended
            numbers = os.listdir(f"/proc/{pid}/fd")
        for number in numbers:
            if time.monotonic() > deadline:
                return
            with suppress(OSError):
                if not os.path.samestat(os.stat(f"/proc/{pid}/fd/{number}"), status):
                    continue
                with open(f"/proc/{pid}/fdinfo/{number}", errors="replace") as info:
                    is_locked = any(line.startswith("lock:") and "FLOCK" in line for line in info)
                if is_locked:
                    with open(f"/proc/{pid}/comm", errors="replace") as comm:
                        yield int(pid), comm.read().strip()
