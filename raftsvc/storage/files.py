"""The thin layer over `os` through which all storage passes.

Tests replace it to fill the disk, fail an fsync, cut the power at any operation,
or forget what was not synced.  What it promises is what POSIX promises: data is
durable after `sync`, a created, renamed or removed name after `sync_dir`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import suppress

from raftsvc.process import close_in_children
from raftsvc.storage.lock import DirectoryLock
from raftsvc.systems import sync_data, sync_names

PASSING = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN))
"""What a system refuses while something is short: a call that says so, save a sync, took no effect that matters."""
NO_DESCRIPTOR = frozenset((errno.EMFILE, errno.ENFILE))
"""Of those what no sync ever says: the file was not even opened."""
FOREIGN = frozenset((errno.ESTALE, errno.EBADF))
"""What is said where the directory, or the process, is another by now: nothing that passes."""
SETTLING = "settle.tmp"
"""The name of what is new in a directory for the sake of its other names."""
NOT_OURS = frozenset((errno.EACCES, errno.EPERM, errno.EINVAL, errno.EROFS, errno.ENOTSUP))
"""Errors of syncing a directory that was there long before: its owner, or a file system without that, cares for it."""


class Files:
    """Operations on files, by path or by descriptor.  All raise OSError.

    A file whose sync failed is never synced again: the kernel may have marked clean what it
    did not write, so that the next sync would succeed without it.
    """

    def __init__(self) -> None:
        self._lock: DirectoryLock | None = None
        self._doubtful: set[int] = set()  # descriptors whose sync failed
        self._open_fds: set[int] = set()
        close_in_children(self)

    def owner_lock(self, path: str) -> DirectoryLock:
        """The lock, not yet acquired, of whoever owns the directory `path`."""
        return DirectoryLock(path)

    def stay_with(self, lock: DirectoryLock) -> None:
        """From now on change names only while what `lock` is of stands at its path.

        Whoever moved the directory away and put another in its place has given that to another
        owner; what this one does by name would be done to it.
        """
        self._lock = lock

    def check_place(self) -> None:
        """Raise OSError if what was locked does not stand at the path any more; see `stay_with`."""
        if self._lock is not None and not self._lock.is_in_place:
            raise OSError(errno.ESTALE, "the directory was moved, replaced or deleted: no start finds what is written")

    def create(self, path: str) -> int:
        """Make an empty file in place of what has that name, and open it for reading and writing; the owner's alone.

        If that was a link, by name or by inode, what it led to stays as it is.
        """
        self.check_place()
        with suppress(FileNotFoundError):
            os.unlink(path)
        return self._keep(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))

    def open(self, path: str) -> int:
        """Open an existing file, and no link, for reading and writing."""
        return self._keep(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC))

    def open_to_read(self, path: str, follows: bool = False) -> int:
        """Open an existing regular file for reading alone, which a file system that is mounted read-only allows.

        follows: a link at `path` too, where a person named it; in the directory of a node there is none.
        """
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe would wait for whoever writes to it
        fd = os.open(path, flags if follows else flags | os.O_NOFOLLOW)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "it is no regular file")
        except BaseException:
            os.close(fd)
            raise
        return self._keep(fd)

    def _keep(self, fd: int) -> int:
        self._open_fds.add(fd)
        return fd

    def close(self, fd: int) -> None:
        self._check_own(fd)
        self.forget(fd)
        os.close(fd)

    def _check_own(self, fd: int) -> None:
        """In a forked child the numbers of these files are others'."""
        if fd not in self._open_fds:
            raise OSError(errno.EBADF, "this file is not open here")

    def forget(self, fd: int) -> None:
        """The file is about to be closed: its number may be another's then."""
        self._doubtful.discard(fd)
        self._open_fds.discard(fd)

    def take_descriptors(self) -> Iterable[int]:
        """See `raftsvc.process.HoldsDescriptors`."""
        taken, self._open_fds = self._open_fds, set()
        return taken

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def read(self, fd: int, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer only at the end of the file."""
        parts = []
        while size:
            part = os.pread(fd, size, offset)
            if not part:
                break
            parts.append(part)
            size -= len(part)
            offset += len(part)
        return b"".join(parts)

    def write(self, fd: int, data: bytes, offset: int) -> None:
        """Write all of `data` at `offset`."""
        self._check_own(fd)
        written = os.pwrite(fd, data, offset)
        while written < len(data):
            written += os.pwrite(fd, memoryview(data)[written:], offset + written)

    def sync(self, fd: int) -> None:
        """Return once the file's content is durable; refused once that failed, for good.

        Raises OSError too where the directory is not where it was: no start would find what was written.
        """
        if fd in self._doubtful:
            raise OSError(errno.EIO, "an earlier fsync of this file failed, and what it did not write is lost")
        try:
            self.flush(fd)
        except BaseException:
            self._doubtful.add(fd)
            raise

    def flush(self, fd: int) -> None:
        """The fsync itself; for `sync`, and for those who replace it."""
        self._check_own(fd)
        sync_data(fd)
        if self._lock is not None and self._lock.is_elsewhere:
            self.check_place()

    def is_doubtful(self, fd: int) -> bool:
        """Whether a sync of the file failed."""
        return fd in self._doubtful

    def room(self, path: str) -> int | None:
        """How much may still be written to the file system of `path`; None if that cannot be said."""
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    def sync_dir(self, path: str) -> None:
        """Return once the names in the directory are durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_names(fd)
        finally:
            os.close(fd)

    def rename(self, source: str, target: str) -> None:
        self.check_place()
        os.replace(source, target)

    def remove(self, path: str) -> None:
        self.check_place()
        os.unlink(path)

    def make_dir(self, path: str) -> None:
        os.mkdir(path, 0o700)

    def remove_dir(self, path: str) -> None:
        """Remove an empty directory."""
        os.rmdir(path)

    def list_dir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def exists(self, path: str) -> bool:
        """Whether there is such a name; one that cannot be looked at is an error, not absent."""
        try:
            os.lstat(path)
        except FileNotFoundError:
            return False
        return True


def read_file(files: Files, path: str) -> bytes:
    """The whole content of a file."""
    fd = files.open_to_read(path)
    try:
        return files.read(fd, files.size(fd), 0)
    finally:
        files.close(fd)


def write_file(files: Files, path: str, data: bytes) -> None:
    """Replace the file at `path` durably and atomically."""
    temporary = path + ".tmp"
    fd = files.create(temporary)
    try:
        files.write(fd, data, 0)
        files.sync(fd)
    finally:
        files.close(fd)
    files.rename(temporary, path)
    files.sync_dir(parent_of(path))


def remove_if_there(files: Files, path: str) -> None:
    """Remove the file; there may be none."""
    if files.exists(path):
        files.remove(path)


def settle_names(files: Files, path: str) -> None:
    """Return once the names in the directory are durable, also those of which a sync failed before.

    As with a file, the next sync says nothing of what that did not write, unless there is something new.
    """
    new = f"{path}/{SETTLING}"
    try:
        files.close(files.create(new))
        files.remove(new)
    except OSError as error:
        if error.errno not in PASSING:  # a node can be started on a full disk
            raise
    files.sync_dir(path)


def make_dirs(files: Files, path: str) -> None:
    """Make the directory and those above it that are missing, durably.

    One that is there may be as young as the crash of whoever made it, and so are those above it.
    """
    parent = parent_of(path)
    if parent == path:
        return
    make_dirs(files, parent)
    is_new = False
    if not files.exists(path):
        with suppress(FileExistsError):  # another process makes it too
            files.make_dir(path)
            is_new = True
    try:
        files.sync_dir(parent)
    except OSError as error:
        if is_new:
            with suppress(OSError):  # the next sync would say nothing of it, were it found by the next attempt
                files.remove_dir(path)
        if error.errno not in NOT_OURS:
            raise
        if is_new:
            why = f"{parent} cannot be synced, so what is made there may not last: make {path} yourself, once"
            raise OSError(error.errno, f"{os.strerror(error.errno)}; {why}") from error


def parent_of(path: str) -> str:
    return os.path.dirname(path) or "."
