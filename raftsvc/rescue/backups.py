"""A backup: one file, or stream, with all that a cluster had at one index.

    head     magic, version; length of what follows in it; index, term, log time in milliseconds, cluster id, id of the
             node that it was taken of, up to which index that knew all to be committed, wall time in milliseconds since
             1970; the configuration: who is a member where, and the effective versions; CRC-32 of the head
    chunks   length, CRC-32, data of the State; at most 1 MiB each
    trailer  length 0, how many chunks, how many bytes of data; SHA-256 of all that comes before it

A file is a backup only with its trailer, and nothing behind it: one that is torn, or of which a bit is another, is
found out by whoever reads it to its end, which `restore` does before it makes anything of it.  It is not encrypted,
and not
signed: whoever may write it may write whatever they want.  All integers are big-endian.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol
from zlib import crc32

from raftsvc.core.membership import Configuration
from raftsvc.core.messages import MAX_NUMBER, MAX_TIME_MS, MalformedError
from raftsvc.errors import ConfigurationError, DamagedStorageError, FormatVersionError, StorageError, damaged_head
from raftsvc.member.snapshots import decode_config
from raftsvc.rescue.reading import read_held, stopped
from raftsvc.rescue.replaying import History, history_of
from raftsvc.state import State
from raftsvc.storage import Files, StoredSnapshot
from raftsvc.storage.files import NOT_OURS, parent_of

logger = logging.getLogger("raftsvc")

_MAGIC = b"raftbak"
_VERSION = b"1"
_PREFIX = struct.Struct(">7scI")
_HEAD = struct.Struct(">QQQQQQQ")
_CRC = struct.Struct(">I")
_CHUNK = struct.Struct(">II")
_COUNTS = struct.Struct(">IQQ")
_DIGEST_BYTES = 32
_MAX_CHUNK_BYTES = 1024 * 1024
_MAX_HEAD_BYTES = 16 * 1024 * 1024
_SYNC_BYTES = 4 * 1024 * 1024
_ADVICE = "It is no whole backup, and nothing is restored from it: take another one."


@dataclass(frozen=True, slots=True)
class Backup:
    """What a backup says of itself.

    index, term, time_ms: of the last entry that is in it, and its log time.
    cluster_id, node_id:  which cluster it is of, and which of its members it was taken.
    commit_index: what is up to it was committed for certain; beyond it, only in a backup of a stopped directory, it
                  may be that it was, and was acknowledged, or that nobody was told of it.
    wall_ms:      when it was taken, in milliseconds since 1970, by the clock of that computer.
    config:       who was a member, and where; the effective versions.
    """

    index: int
    term: int
    time_ms: int
    cluster_id: int
    node_id: int
    commit_index: int
    wall_ms: int
    config: Configuration

    def facts(self) -> dict[str, object]:
        """For people; JSON-compatible."""
        return {
            "cluster": f"{self.cluster_id:016x}",
            "node": self.node_id,
            "index": self.index,
            "term": self.term,
            "time_ms": self.time_ms,
            "commit_index": self.commit_index,
            "wall_ms": self.wall_ms,
            "members": {str(node_id): member.addr for node_id, member in sorted(self.config.members.items())},
            "versions": str(self.config.versions),
        }

    def _encode(self) -> bytes:
        config = self.config.encode()
        numbers = self.index, self.term, self.time_ms, self.cluster_id, self.node_id, self.commit_index, self.wall_ms
        body = _HEAD.pack(*numbers) + config
        head = _PREFIX.pack(_MAGIC, _VERSION, len(body)) + body
        return head + _CRC.pack(crc32(head))


class Writable(Protocol):
    """Where a backup can be written to: a file, a socket's file, a pipe."""

    def write(self, data: bytes, /) -> object:
        """Take the data, or so many bytes of it as is returned."""


def check_target(file: object) -> None:
    """Raise ConfigurationError unless a backup can be written to it."""
    if not isinstance(file, (str, os.PathLike)) and not callable(getattr(file, "write", None)):
        raise ConfigurationError(f"a backup is written to a file, by its name, or what has write(), not {file!r:.100}")


def write_backup(backup: Backup, chunks: Iterable[bytes], out: Writable) -> int:
    """Write a whole backup to `out`, in pieces of 1 MiB at most; returns how many bytes it has.

    Raises what `out` and `chunks` raise; what was written until then is no backup.
    """
    digest = hashlib.sha256()
    written = 0

    def put(data: bytes) -> None:
        nonlocal written
        digest.update(data)
        _write(out, data)
        written += len(data)

    put(backup._encode())
    count = total = 0
    for chunk in chunks:
        for start in range(0, len(chunk), _MAX_CHUNK_BYTES):
            piece = bytes(chunk[start : start + _MAX_CHUNK_BYTES])
            put(_CHUNK.pack(len(piece), crc32(piece)) + piece)
            count += 1
            total += len(piece)
    put(_COUNTS.pack(0, count, total))
    _write(out, digest.digest())
    return written + _DIGEST_BYTES


def _write(out: Writable, data: bytes) -> None:
    while data:
        count = out.write(data)
        data = data[count:] if type(count) is int and 0 <= count < len(data) else b""


class _File:
    """A file that is written through Files, synced bit by bit."""

    def __init__(self, files: Files, fd: int) -> None:
        self._files = files
        self._fd = fd
        self._offset = 0
        self._synced = 0

    def write(self, data: bytes, /) -> None:
        self._files.write(self._fd, data, self._offset)
        self._offset += len(data)
        if self._offset - self._synced >= _SYNC_BYTES:
            self._files.sync(self._fd)
            self._synced = self._offset


def save_backup(
    backup: Backup, chunks: Iterable[bytes], file: str | os.PathLike[str], files: Files | None = None
) -> None:
    """Write a whole backup to the file of that name, which it has once it is whole and durable, and not before.

    What has the name until then is replaced, be it a link.  On a file system whose directories cannot be synced the
    name is as durable as that makes it, which is logged.

    Raises StorageError, and what `chunks` raises; then the file that was there is as it was, unless it was only the
    directory that could not be synced: then this one has the name, and may lose it to the former if the power goes.
    """
    files = files or Files()
    path = os.path.abspath(file)
    temporary = f"{path}.{secrets.token_hex(8)}.tmp"  # another may be written to the same name just now
    try:
        try:
            fd = files.create(temporary)
            try:
                write_backup(backup, chunks, _File(files, fd))
                files.sync(fd)
            finally:
                files.close(fd)
            files.rename(temporary, path)
        except BaseException:
            with suppress(OSError):
                files.remove(temporary)  # give a full disk its space back
            raise
        _sync_name(path, files)
    except OSError as error:
        raise StorageError(f"{path}: the backup could not be written: {error}") from error


def _sync_name(path: str, files: Files) -> None:
    """Have the file keep its name if the power goes, where its file system knows of that."""
    try:
        files.sync_dir(parent_of(path))
    except OSError as error:
        if error.errno not in NOT_OURS:
            raise
        logger.warning("%s: the backup is whole, and its directory cannot be synced: %s", path, error)


def back_up(
    directory: str | os.PathLike[str],
    file: str | os.PathLike[str] | Writable,
    state: State | None = None,
    *,
    files: Files | None = None,
    lock_timeout: float = 0.0,
    clock: Callable[[], float] | None = None,
) -> Backup:
    """Back up what the directory of a stopped node holds, all of its log; returns what the backup says of itself.

    file:  its name, see `save_backup`; or what it is written to.
    state: new and empty, of the kind that the node ran (as given to `start`); it is brought to where the node was.
           None will do where the log has nothing behind the snapshot.
    lock_timeout: seconds to wait for the process that has the directory to end.
    clock: seconds since 1970; for tests.

    What is behind `Backup.commit_index` is in it too: it may have been acknowledged.  Of a node that runs take a
    backup by `Service.backup`, in which nothing is but what is committed.  Nothing in the directory changes.

    Raises DirectoryInUseError, ConfigurationError for a `state` that will not do, StorageError.  Blocks, for as long
    as a start of the node would.
    """
    files = files or Files()
    with stopped(directory, files, lock_timeout) as path:
        held = read_held(path, files)
        history = history_of(held, files, state)
        commit = max(held.hard_state.commit, held.snapshot_index)
        if history.config.voters == {held.loaded.node_id}:
            commit = history.index  # who votes alone commits what it stores
        now = time.time() if clock is None else clock()
        backup = backup_of(history, held.loaded.node_id, commit, int(now * 1000))
        if isinstance(file, (str, os.PathLike)):
            save_backup(backup, history.chunks, file, files)
        else:
            write_backup(backup, history.chunks, file)
    return backup


def back_up_snapshot(
    stored: StoredSnapshot, node_id: int, file: str | os.PathLike[str] | Writable, files: Files | None = None
) -> Backup:
    """Back up what a snapshot has, of a node whose directory may be in use; see `Service.backup`.

    Raises StorageError, DamagedStorageError if the snapshot is damaged; and what `file` raises.
    """
    head = stored.header
    config, now_ms = decode_config(head.config), int(time.time() * 1000)
    history = History(head.cluster_id, head.index, head.term, head.time_ms, config, stored.chunks())
    backup = backup_of(history, node_id, head.index, now_ms)
    if isinstance(file, (str, os.PathLike)):
        save_backup(backup, history.chunks, file, files)
    else:
        write_backup(backup, history.chunks, file)
    return backup


def back_up_stored(
    open_snapshot: Callable[[bool], AbstractContextManager[StoredSnapshot]],
    node_id: Callable[[], int],
    file: str | os.PathLike[str] | Writable,
    files: Files | None = None,
) -> Backup:
    """Back up what a node has stored, read once where that does, see `Service.backup`.

    node_id:       whose it is, once it is open.
    open_snapshot: opens it; given True only if it is whole to its end, for which another one is taken if it is not.

    Raises as `back_up_snapshot`, and what `open_snapshot` does.
    """
    if isinstance(file, (str, os.PathLike)):
        # What is damaged is found out by whoever copies it, and of the copy nothing stays.
        with suppress(DamagedStorageError), open_snapshot(False) as stored:
            return back_up_snapshot(stored, node_id(), file, files)
    with open_snapshot(True) as stored:
        return back_up_snapshot(stored, node_id(), file, files)


def backup_of(history: History, node_id: int, commit_index: int, wall_ms: int) -> Backup:
    """What a backup of that history says of itself."""
    return Backup(
        history.index,
        history.term,
        history.time_ms,
        history.cluster_id,
        node_id,
        commit_index,
        max(0, wall_ms),
        history.config,
    )


class BackupFile:
    """A backup open for reading, also by a link, or where nothing may be written.

    backup: what it says of itself; only its head was checked, `verify` checks all.
    """

    def __init__(self, file: str | os.PathLike[str], files: Files | None = None) -> None:
        """Raises StorageError if there is none, DamagedStorageError if its head is damaged, FormatVersionError."""
        self._files = files or Files()
        self._path = path = os.path.abspath(file)
        try:
            self._fd = self._files.open_to_read(path, follows=True)
        except OSError as error:
            raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from error
        try:
            self.size_bytes = self._files.size(self._fd)
            self.backup, self._head = self._read_head()
        except OSError as error:
            self.close()
            raise StorageError(f"{path}: cannot be read: {error}") from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> BackupFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._files.close(fd)

    def chunks(self) -> Iterator[bytes]:
        """The State's data in order; raises DamagedStorageError where it is not whole, at the latest at its end."""
        digest = hashlib.sha256(self._head)
        offset = len(self._head)
        count = total = 0
        while True:
            head = self._read(offset, _CHUNK.size)
            length, crc = _CHUNK.unpack(head)
            if length == 0:
                break
            if length > _MAX_CHUNK_BYTES:
                raise self._damaged(offset, f"a chunk claims {length} bytes")
            data = self._read(offset + _CHUNK.size, length)
            if crc32(data) != crc:
                raise self._damaged(offset, "a chunk's checksum does not match")
            digest.update(head)
            digest.update(data)
            offset += _CHUNK.size + length
            count += 1
            total += length
            yield data
        counts = self._read(offset, _COUNTS.size)
        digest.update(counts)
        end = offset + _COUNTS.size
        if _COUNTS.unpack(counts) != (0, count, total):
            raise self._damaged(offset, "the trailer does not match what precedes it")
        if self._read(end, _DIGEST_BYTES) != digest.digest():
            raise self._damaged(end, "the checksum of the whole does not match")
        if end + _DIGEST_BYTES != self.size_bytes:
            raise self._damaged(end + _DIGEST_BYTES, "there is something behind its end")

    def verify(self) -> None:
        """Read all of it once; raises DamagedStorageError."""
        for _ in self.chunks():
            pass

    def _read(self, offset: int, size: int) -> bytes:
        try:
            data = self._files.read(self._fd, size, offset)
        except OSError as error:
            raise StorageError(f"{self._path}: cannot be read: {error}") from error
        if len(data) < size:
            raise self._damaged(offset, "cut short")
        return data

    def _read_head(self) -> tuple[Backup, bytes]:
        prefix = self._read(0, _PREFIX.size)
        magic, version, length = _PREFIX.unpack(prefix)
        if magic != _MAGIC:
            raise self._damaged(0, "not a backup")
        versions = (version, _VERSION)
        if not _HEAD.size <= length <= min(_MAX_HEAD_BYTES, self.size_bytes - _PREFIX.size - _CRC.size):
            raise damaged_head(self._path, len(_MAGIC), f"the head claims {length} bytes", versions, _ADVICE)
        body = self._read(_PREFIX.size, length + _CRC.size)
        if _CRC.unpack_from(body, length)[0] != crc32(prefix + body[:length]):
            raise damaged_head(self._path, 0, "the head's checksum does not match", versions, _ADVICE)
        if version != _VERSION:
            raise FormatVersionError(self._path, version.decode(errors="replace"), _VERSION.decode())
        numbers = _HEAD.unpack_from(body)
        index, term, time_ms, cluster_id, node_id, commit_index, wall_ms = numbers
        if max(index, term) > MAX_NUMBER or not index or time_ms > MAX_TIME_MS:
            raise self._damaged(_PREFIX.size, "no cluster comes to such an index, term or log time")
        try:
            config = Configuration.decode(body[_HEAD.size : length])
        except MalformedError as error:
            raise self._damaged(_PREFIX.size + _HEAD.size, str(error)) from error
        return Backup(index, term, time_ms, cluster_id, node_id, commit_index, wall_ms, config), prefix + body

    def _damaged(self, offset: int, what: str) -> DamagedStorageError:
        return DamagedStorageError(self._path, offset, what, _ADVICE)
