"""The directory of a node that is stopped, as it is read: owned for the time, and left as it is.

Storage opens its log for writing, and writes what a crash may have left undone.  Here it does so to an `Untouched`
disk, which takes every write and keeps none: so what is found is what a start would find, and is there as before.
Nothing is opened there but for reading, so a copy on a file system that is mounted read-only will do.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from raftsvc.core.membership import ConfChange, Configuration, InvalidChangeError
from raftsvc.core.messages import Entry, HardState, MalformedError, configs_among, data_of, index_of
from raftsvc.errors import StorageError
from raftsvc.member.snapshots import decode_config
from raftsvc.storage import ORIGIN, Files, Loaded, Renewal, Store, StoredSnapshot
from raftsvc.storage.files import read_file
from raftsvc.storage.lock import DirectoryLock

_MARKS = ("/wal/ended", "/wal/silent")
"""What keeps a directory from being started, and not from being read."""


class Untouched(Files):
    """Another disk, of which all can be read, and where nothing that is written arrives."""

    def __init__(self, files: Files) -> None:
        super().__init__()
        self._under = files

    def owner_lock(self, path: str) -> DirectoryLock:
        """That of the disk itself."""
        return self._under.owner_lock(path)

    def open(self, path: str) -> int:
        """Open an existing file, for reading."""
        return self._under.open_to_read(path)

    def open_to_read(self, path: str, follows: bool = False) -> int:
        """The same."""
        return self._under.open_to_read(path, follows)

    def close(self, fd: int) -> None:
        """Close what `open` opened."""
        if fd >= 0:
            self._under.close(fd)

    def size(self, fd: int) -> int:
        """Of a file."""
        return self._under.size(fd)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        """As it is there."""
        return self._under.read(fd, size, offset)

    def list_dir(self, path: str) -> list[str]:
        """All names."""
        return self._under.list_dir(path)

    def exists(self, path: str) -> bool:
        """Whether there is such a name, and it does not only say that the node may not be started."""
        return not path.endswith(_MARKS) and self._under.exists(path)

    def room(self, path: str) -> int | None:
        """Of the disk."""
        return self._under.room(path)

    def create(self, path: str) -> int:
        """Nothing; and so is all below."""
        return -1

    def write(self, fd: int, data: bytes, offset: int) -> None: ...
    def sync(self, fd: int) -> None: ...
    def sync_dir(self, path: str) -> None: ...
    def rename(self, source: str, target: str) -> None: ...
    def remove(self, path: str) -> None: ...
    def make_dir(self, path: str) -> None: ...
    def remove_dir(self, path: str) -> None: ...


class Held(NamedTuple):
    """What a directory holds, once read.

    loaded:  its log, and the head of its snapshot.
    starts:  how often the node was started.
    founded: whether nodes founded the cluster together, this one among them.
    ended:   why it may not be started any more; empty: it may.
    silent:  whether it never was allowed to speak: then nothing in it was acknowledged.
    origin:  what `origin.json` says of where the cluster came from; empty: it was founded.
    """

    path: str
    loaded: Loaded
    starts: int
    founded: bool
    ended: str
    silent: bool
    origin: str

    @property
    def hard_state(self) -> HardState:
        """Term, vote, and the commit index as far as it was known for certain."""
        return self.loaded.hard_state

    @property
    def entries(self) -> list[Entry]:
        """Those behind the snapshot."""
        return [entry for entry in self.loaded.entries if index_of(entry) > self.snapshot_index]

    @property
    def snapshot_index(self) -> int:
        """Up to which the snapshot has everything; 0: there is none."""
        return self.loaded.snapshot.index if self.loaded.snapshot is not None else 0

    @property
    def last_index(self) -> int:
        """Where the history that is held ends."""
        return index_of(self.loaded.entries[-1]) if self.loaded.entries else self.snapshot_index

    @property
    def config(self) -> Configuration:
        """Who is a member as of the last entry.  Raises StorageError if what is stored says what cannot be."""
        snapshot = self.loaded.snapshot
        config = decode_config(snapshot.config) if snapshot is not None else Configuration()
        for entry in configs_among(self.entries):
            try:
                config = config.changed(ConfChange.decode(data_of(entry)))
            except (MalformedError, InvalidChangeError) as error:
                raise StorageError(f"{self.path}/wal: the change of members at {index_of(entry)}: {error}") from error
        return config


@contextmanager
def stopped(directory: str | os.PathLike[str], files: Files, lock_timeout: float) -> Iterator[str]:
    """The path of the directory, which is this process's own meanwhile; that is all that changes there.

    Raises DirectoryInUseError if a process has it, after `lock_timeout` seconds; StorageError if it is none.
    """
    path = os.path.abspath(directory)
    lock = files.owner_lock(path)
    try:
        lock.acquire(lock_timeout)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        yield path
    finally:
        lock.release()


def read_held(path: str, files: Files) -> Held:
    """What the directory holds, which is this process's own.

    Raises StorageError if it is no node's, or cannot be trusted: DamagedStorageError, FormatVersionError.
    """
    try:
        if Renewal(files, path).is_decided:
            raise StorageError(
                f"{path}: it was being replaced by what was restored or recovered, and that is not finished; "
                "do that again, or start the node, either of which finishes it"
            )
        if not files.exists(f"{path}/wal"):
            raise StorageError(f"{path}: there is no node in it")
        store = Store(path, Untouched(files))
        try:
            loaded = store.load(0)
        finally:
            store.unload()
        return Held(
            path,
            loaded,
            loaded.life.counter - 1,
            files.exists(f"{path}/wal/founding"),
            _said(files, f"{path}/wal/ended"),
            files.exists(f"{path}/wal/silent"),
            _said(files, f"{path}/{ORIGIN}"),
        )
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from error


def _said(files: Files, path: str) -> str:
    with suppress(FileNotFoundError):
        return read_file(files, path).decode(errors="replace")
    return ""


def open_snapshot(path: str, files: Files) -> StoredSnapshot | None:
    """The snapshot in a directory, if there is one.  Raises DamagedStorageError, OSError."""
    try:
        return StoredSnapshot(files, f"{path}/snap")
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
