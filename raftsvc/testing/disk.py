"""A disk in memory that can lose power, fail, fill up and rot.

`SimulatedDisk` has the operations of `raftsvc.storage.Files`.  It knows what is
durable and what only the page cache holds: sectors written since the last
successful sync of their file, and names changed since the last sync of their
directory.  After `lose_power` any choice of these may be there.  A failed sync
leaves its sectors clean and not written, as Linux does, and the names of a directory
until one more of them changes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

from raftsvc.storage.files import NO_DESCRIPTOR, Files
from raftsvc.storage.lock import DirectoryLock

SECTOR_BYTES = 512


class PowerLoss(BaseException):
    """The machine stops here; no handler may catch it and go on."""


class _Free(DirectoryLock):
    """There is one process."""

    def acquire(self, timeout: float) -> bool:
        return True


@dataclass
class _Failure:
    """One that is arranged."""

    operation: str
    path_end: str
    code: int
    skip: int


class _Inode:
    def __init__(self, is_dir: bool) -> None:
        self.is_dir = is_dir
        self.data = bytearray()
        self.durable = bytearray()
        self.dirty: set[int] = set()  # sectors
        self.names: dict[str, _Inode] = {}
        self.durable_names: dict[str, _Inode] = {}
        self.pending: list[tuple[str, str | None, _Inode | None]] = []  # (name, renamed from, new inode or None)
        self.unwritten: list[tuple[str, str | None, _Inode | None]] = []  # those whose sync failed


class SimulatedDisk(Files):
    """A whole disk; nothing of it touches the real one.

    operations: (operation, path) of everything that changed it since the process started.
    crash_at:   the number of the operation, counted from 1 so, during which the power
                goes; 0: none.
    crash_kills: it is the process that ends then, and the power stays.
    free_bytes: how much files may still grow; None: without limit.
    hasty:      files that were given a name before what is in them was durable.
    """

    def __init__(self) -> None:
        super().__init__()
        self.root = _Inode(is_dir=True)
        self.fds: dict[int, _Inode] = {}
        self.fd_paths: dict[int, str] = {}
        self.next_fd = 1
        self.is_dead = False
        self.operations: list[tuple[str, str]] = []
        self.crash_at = 0
        self.crash_kills = False
        self._crash_near = ("", 0)
        self.free_bytes: int | None = None
        self.hasty: list[str] = []
        self._failures: list[_Failure] = []

    # -- what tests do to it

    def fail_next(self, operation: str, path_end: str = "", code: int = errno.EIO, skip: int = 0) -> None:
        """The next such operation on a path that ends so fails, after `skip` that do not."""
        self._failures.append(_Failure(operation, path_end, code, skip))

    def crash_near(self, path_end: str, count: int) -> None:
        """The power goes during the next operation on a path that ends so, or `count` operations later."""
        self._crash_near = path_end, count

    def heal(self) -> None:
        """No failure that was arranged happens any more, and there is room."""
        self._failures.clear()
        self.crash_at = 0
        self.crash_kills = False
        self._crash_near = ("", 0)
        self.free_bytes = None

    def paths(self) -> list[str]:
        """Every file, in order."""
        found: list[str] = []

        def walk(inode: _Inode, path: str) -> None:
            for name in sorted(inode.names):
                child = inode.names[name]
                if child.is_dir:
                    walk(child, f"{path}/{name}")
                else:
                    found.append(f"{path}/{name}")

        walk(self.root, "")
        return found

    def copy(self) -> SimulatedDisk:
        """What a process that reads all of it now would copy."""
        disk = SimulatedDisk()
        for path in self.paths():
            disk.add_dirs(path.rpartition("/")[0])
            disk.put(path, bytes(self.content(path)))
        return disk

    def become(self, other: SimulatedDisk) -> None:
        """Hold what `other` holds, and nothing else; no process runs on either."""
        self.kill_process()
        self.root = other.root

    def kill_process(self) -> None:
        """The process ends, the machine goes on: the page cache keeps what was written."""
        self.fds.clear()
        self.is_dead = self.crash_kills = False
        self.crash_at = 0
        self._crash_near = ("", 0)
        self.operations.clear()

    def lose_power(self, keep: Callable[[], bool]) -> None:
        """Everything that was not synced is lost, save what `keep` answers True for."""
        self.kill_process()
        self._lose(self.root, keep)

    def _lose(self, inode: _Inode, keep: Callable[[], bool]) -> None:
        if not inode.is_dir:
            size = len(inode.data) if keep() else len(inode.durable)
            content = inode.durable[:size].ljust(size, b"\x00")
            for sector in sorted(inode.dirty):
                start, stop = sector * SECTOR_BYTES, min((sector + 1) * SECTOR_BYTES, size)
                if start < size and keep():
                    piece = inode.data[start:stop]
                    content[start : start + len(piece)] = piece
            inode.data = content
            inode.durable = bytearray(content)
            inode.dirty.clear()
            return
        names = dict(inode.durable_names)
        for change in (*inode.unwritten, *inode.pending):
            if keep():
                _apply(names, change)
        inode.names = names
        inode.durable_names = dict(names)
        inode.unwritten.clear()
        inode.pending.clear()
        for child in names.values():
            self._lose(child, keep)

    def add_dirs(self, path: str) -> None:
        """A directory that was there before."""
        inode = self.root
        for part in path.strip("/").split("/"):
            child = inode.names.setdefault(part, _Inode(is_dir=True))
            inode.durable_names[part] = child
            inode = child

    def content(self, path: str) -> bytes:
        """What a reader of the file sees now."""
        return bytes(self._find(path).data)

    def put(self, path: str, data: bytes) -> None:
        """Replace a file's content, durably and unnoticed."""
        parent, name = self._parent(path)
        inode = parent.names.get(name) or _Inode(is_dir=False)
        parent.names[name] = parent.durable_names[name] = inode
        inode.data = bytearray(data)
        inode.durable = bytearray(data)
        inode.dirty.clear()

    def delete(self, path: str) -> None:
        """Remove a file, durably and unnoticed."""
        parent, name = self._parent(path)
        del parent.names[name]
        parent.durable_names.pop(name, None)
        parent.pending = [change for change in parent.pending if change[0] != name]
        parent.unwritten = [change for change in parent.unwritten if change[0] != name]

    def cut(self, path: str, size: int) -> None:
        """Make a file shorter, durably and unnoticed."""
        inode = self._find(path)
        del inode.data[size:], inode.durable[size:]
        inode.dirty = {sector for sector in inode.dirty if sector * SECTOR_BYTES < size}

    def rot(self, path: str, offset: int, bit: int) -> None:
        """Flip one bit of a file where it is stored, unnoticed."""
        inode = self._find(path)
        inode.data[offset] ^= 1 << bit
        if offset < len(inode.durable):
            inode.durable[offset] = inode.data[offset]

    def count(self, operation: str, path_end: str = "") -> int:
        """How many such operations there were on paths that end so."""
        return sum(op == operation and path.endswith(path_end) for op, path in self.operations)

    # -- the inside

    def _find(self, path: str) -> _Inode:
        inode = self.root
        for part in path.split("/"):
            if not part:
                continue
            if part not in inode.names:
                raise FileNotFoundError(errno.ENOENT, "no such file", path)
            inode = inode.names[part]
        return inode

    def _parent(self, path: str) -> tuple[_Inode, str]:
        parent, _, name = path.rpartition("/")
        return self._find(parent), name

    def _alive(self) -> None:
        if self.is_dead:
            raise PowerLoss

    def _begin(self, operation: str, path: str) -> bool:
        """Whether the power goes at the end of this operation."""
        self._alive()
        self.operations.append((operation, path))
        for failure in self._failures:
            if operation == failure.operation and path.endswith(failure.path_end):
                if failure.skip:
                    failure.skip -= 1
                    continue
                self._failures.remove(failure)
                raise OSError(failure.code, os.strerror(failure.code), path)
        path_end, count = self._crash_near
        if path_end and path.endswith(path_end):
            self.crash_at = len(self.operations) + count
            self._crash_near = ("", 0)
        return len(self.operations) == self.crash_at

    def _end(self, crashes: bool) -> None:
        if crashes:
            self.is_dead = True
            raise PowerLoss

    def _change(self, parent: _Inode, change: tuple[str, str | None, _Inode | None]) -> None:
        _apply(parent.names, change)
        parent.pending = [*parent.unwritten, *parent.pending, change]
        parent.unwritten.clear()

    # -- the operations of Files

    def owner_lock(self, path: str) -> DirectoryLock:
        return _Free(path)

    def create(self, path: str) -> int:
        crashes = self._begin("create", path)
        parent, name = self._parent(path)
        inode = _Inode(is_dir=False)  # also where there was one, which is gone with its name
        self._change(parent, (name, None, inode))
        self._end(crashes)
        return self._open(inode, path)

    def open(self, path: str) -> int:
        self._alive()
        return self._open(self._find(path), path)

    def open_to_read(self, path: str, follows: bool = False) -> int:
        return self.open(path)

    def _open(self, inode: _Inode, path: str) -> int:
        fd, self.next_fd = self.next_fd, self.next_fd + 1
        self.fds[fd] = inode
        self.fd_paths[fd] = path
        return fd

    def close(self, fd: int) -> None:
        self._alive()
        self.forget(fd)
        del self.fds[fd]

    def size(self, fd: int) -> int:
        return len(self.fds[fd].data)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        self._alive()
        return bytes(self.fds[fd].data[offset : offset + size])

    def write(self, fd: int, data: bytes, offset: int) -> None:
        crashes = self._begin("write", self.fd_paths[fd])
        inode = self.fds[fd]
        grown = offset + len(data) - len(inode.data)
        if grown > 0:
            if self.free_bytes is not None:
                if grown > self.free_bytes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.fd_paths[fd])
                self.free_bytes -= grown
            inode.data.extend(bytes(grown))
        inode.data[offset : offset + len(data)] = data
        inode.dirty.update(range(offset // SECTOR_BYTES, -(-(offset + len(data)) // SECTOR_BYTES)))
        self._end(crashes)

    def flush(self, fd: int) -> None:
        inode = self.fds[fd]
        try:
            crashes = self._begin("sync", self.fd_paths[fd])
        except OSError:
            inode.dirty.clear()  # and not written: the next sync will not write it either
            inode.durable = inode.durable[: len(inode.data)].ljust(len(inode.data), b"\x00")
            raise
        self._end(crashes)
        size = len(inode.data)
        if len(inode.durable) != size:
            inode.durable = inode.durable[:size].ljust(size, b"\x00")
        for sector in inode.dirty:
            start = sector * SECTOR_BYTES
            inode.durable[start : start + SECTOR_BYTES] = inode.data[start : start + SECTOR_BYTES]
        inode.dirty.clear()

    def room(self, path: str) -> int | None:
        return self.free_bytes if self.free_bytes is not None else 1 << 60

    def sync_dir(self, path: str) -> None:
        try:
            crashes = self._begin("sync_dir", path)
        except OSError as error:
            if error.errno not in NO_DESCRIPTOR:
                inode = self._find(path)
                inode.unwritten, inode.pending = [*inode.unwritten, *inode.pending], []
            raise
        self._end(crashes)
        inode = self._find(path)
        if not inode.unwritten:
            inode.durable_names = dict(inode.names)
            inode.pending.clear()

    def rename(self, source: str, target: str) -> None:
        crashes = self._begin("rename", target)
        parent, name = self._parent(source)
        target_parent, target_name = self._parent(target)
        assert parent is target_parent, "within one directory"
        if name not in parent.names:
            self._end(crashes)
            raise FileNotFoundError(errno.ENOENT, "no such file", source)
        replaced = parent.names.get(target_name)
        if replaced is not None and replaced.is_dir and replaced.names:
            self._end(crashes)
            raise OSError(errno.ENOTEMPTY, "directory not empty", target)
        moved = parent.names[name]
        if moved.data != moved.durable:
            self.hasty.append(target)
        self._change(parent, (target_name, name, moved))
        self._end(crashes)

    def remove(self, path: str) -> None:
        crashes = self._begin("remove", path)
        parent, name = self._parent(path)
        if name not in parent.names:
            self._end(crashes)
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        if self.free_bytes is not None:
            self.free_bytes += len(parent.names[name].data)
        self._change(parent, (name, None, None))
        self._end(crashes)

    def make_dir(self, path: str) -> None:
        crashes = self._begin("make_dir", path)
        parent, name = self._parent(path)
        if name in parent.names:
            self._end(crashes)
            raise FileExistsError(errno.EEXIST, "file exists", path)
        self._change(parent, (name, None, _Inode(is_dir=True)))
        self._end(crashes)

    def remove_dir(self, path: str) -> None:
        crashes = self._begin("remove_dir", path)
        parent, name = self._parent(path)
        if self._find(path).names:
            self._end(crashes)
            raise OSError(errno.ENOTEMPTY, "directory not empty", path)
        self._change(parent, (name, None, None))
        self._end(crashes)

    def list_dir(self, path: str) -> list[str]:
        self._alive()
        return sorted(self._find(path).names)

    def exists(self, path: str) -> bool:
        self._alive()
        try:
            self._find(path)
        except FileNotFoundError:
            return False
        return True


def _apply(names: dict[str, _Inode], change: tuple[str, str | None, _Inode | None]) -> None:
    name, source, inode = change
    if inode is None:
        names.pop(name, None)
        return
    if source is not None and names.get(source) is inode:
        del names[source]
    names[name] = inode
