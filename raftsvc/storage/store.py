"""One node's directory: what is in it, when it counts as a member's, and in which order it changes.

    id      the member id
    snap    the last complete snapshot
    wal/    the log; that this name exists is what makes the directory a member's
    lock    names the process that owns the directory

While a node joins there is also wal.tmp/, which holds its join token until the
log inside it is complete and takes its name.  A snapshot is durable under its
name before the log says so, and the log says so before segments are deleted.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from raftsvc.core.messages import Entry, HardState
from raftsvc.errors import DamagedStorageError, StorageError
from raftsvc.storage.files import Files, read_file, write_file
from raftsvc.storage.identity import decode_id, encode_id
from raftsvc.storage.lock import DirectoryLock
from raftsvc.storage.snapshot import IncomingSnapshot, SnapshotHeader, StoredSnapshot, publish, write_snapshot
from raftsvc.storage.wal import DEFAULT_SEGMENT_BYTES, Wal

TOKEN_BYTES = 16


class Loaded(NamedTuple):
    """What a directory holds.  `entries` may begin before the snapshot's end, and reach it then."""

    node_id: int
    cluster_id: int
    hard_state: HardState
    snapshot: SnapshotHeader | None
    entries: Sequence[Entry]


class Store:
    """A directory owned by this process, until `close`."""

    def __init__(self, path: str, files: Files, segment_bytes: int) -> None:
        """Use `open`."""
        self._path = path
        self._files = files
        self._segment_bytes = segment_bytes
        self._dir_lock = DirectoryLock(f"{path}/lock")
        self._snapshot_lock = threading.Lock()  # guards _snapshot_index and the name `snap`
        self._snapshot_index = 0
        self._wal: Wal | None = None

    @classmethod
    def open(
        cls,
        path: str,
        files: Files | None = None,
        lock_timeout: float = 10.0,
        segment_bytes: int = DEFAULT_SEGMENT_BYTES,
    ) -> Store:
        """Own the directory `path`, which is made if it is missing.

        lock_timeout: seconds to wait for a former owner to end.
        Raises DirectoryInUseError, StorageError.
        """
        try:
            os.makedirs(path, mode=0o700, exist_ok=True)
            store = cls(path, files or Files(), segment_bytes)
            store._dir_lock.acquire(lock_timeout)
        except OSError as error:
            raise StorageError(f"{path}: cannot be used as a data directory: {error}") from error
        try:
            store._clean_up()
        except BaseException:
            store._dir_lock.release()
            raise
        return store

    def _clean_up(self) -> None:
        """Remove what an interrupted operation left; a join token stays."""
        for name in ("snap.tmp", "snap.part", "id.tmp"):
            if self._files.exists(f"{self._path}/{name}"):
                self._files.remove(f"{self._path}/{name}")
        staged = f"{self._path}/wal.tmp"
        if self._files.exists(staged):
            for name in self._files.list_dir(staged):
                if name != "token":
                    self._files.remove(f"{staged}/{name}")
        if not self.is_initialized and self._files.exists(f"{self._path}/snap"):
            raise DamagedStorageError(
                f"{self._path}/wal",
                0,
                "there is a snapshot but no log",
                "Restore the directory whole, or empty it and join anew.",
            )

    @property
    def is_initialized(self) -> bool:
        """Whether this directory belongs to a member of a cluster."""
        return self._files.exists(f"{self._path}/wal")

    @property
    def wal(self) -> Wal:
        """The open log; only after `load`."""
        assert self._wal is not None, "loaded"
        return self._wal

    # -- becoming a member

    def join_token(self) -> bytes:
        """A random token, the same at each call until the node has joined, restarts included."""
        path = f"{self._path}/wal.tmp/token"
        if self._files.exists(path):
            token = read_file(self._files, path)
            if len(token) == TOKEN_BYTES:
                return token
        token = secrets.token_bytes(TOKEN_BYTES)
        self._make_stage()
        write_file(self._files, path, token)
        self._files.sync_dir(self._path)
        return token

    def _make_stage(self) -> None:
        if not self._files.exists(f"{self._path}/wal.tmp"):
            self._files.make_dir(f"{self._path}/wal.tmp")

    def create(self, node_id: int, cluster_id: int, hard_state: HardState, entries: Sequence[Entry]) -> None:
        """Make this the directory of member `node_id`: whole, or, if the power goes, not at all.

        Raises StorageError; the directory is then as uninitialized as before.
        """
        assert not self.is_initialized, "a member's id never changes"
        staged = f"{self._path}/wal.tmp"
        try:
            self._make_stage()
            Wal.create(self._files, staged, cluster_id, node_id, hard_state, entries, self._segment_bytes)
            write_file(self._files, f"{self._path}/id", encode_id(node_id))
            self._files.rename(staged, f"{self._path}/wal")
            self._files.sync_dir(self._path)
        except OSError as error:
            raise StorageError(f"{self._path}: cannot be initialized: {error}") from error
        if self._files.exists(f"{self._path}/wal/token"):
            self._files.remove(f"{self._path}/wal/token")

    # -- starting

    def load(self) -> Loaded:
        """Open the log and read everything but the State's data.  Raises DamagedStorageError, StorageError."""
        try:
            return self._load()
        except OSError as error:
            raise StorageError(f"{self._path}: cannot be read: {error}") from error

    def _load(self) -> Loaded:
        wal_path = f"{self._path}/wal"
        if not self._files.exists(f"{self._path}/id"):
            raise DamagedStorageError(
                f"{self._path}/id", 0, "the id file is missing", "Restore it, or empty the directory and join anew."
            )
        node_id = decode_id(read_file(self._files, f"{self._path}/id"), f"{self._path}/id")
        self._wal = wal = Wal.open(self._files, wal_path, self._segment_bytes)
        recovered = wal.recovered
        if recovered.node_id != node_id:
            raise DamagedStorageError(
                f"{self._path}/id",
                0,
                f"the id file says {node_id}, the log {recovered.node_id}",
                "Directories of two nodes were mixed up.",
            )
        header = None
        with suppress(FileNotFoundError), self.open_snapshot() as snapshot:
            header = snapshot.header
        snapshot_index = header.index if header else 0
        self._snapshot_index = snapshot_index
        if recovered.mark.index > snapshot_index:
            raise DamagedStorageError(
                f"{self._path}/snap",
                0,
                f"the log continues a snapshot at {recovered.mark.index}, which is missing",
                "Restore the directory whole, or evict this member and join with an empty one.",
            )
        entries = recovered.entries
        if header is not None:
            if header.cluster_id != recovered.cluster_id:
                raise DamagedStorageError(
                    f"{self._path}/snap", 0, "the snapshot is of another cluster", "Directories were mixed up."
                )
            position = header.index - recovered.base - 1
            if header.index > recovered.mark.index and not (
                position < 0 or (position < len(entries) and entries[position].term == header.term)
            ):
                # The power went after a snapshot from the leader got its name and
                # before the log said so: what it replaced is void (section 7).
                entries = []
            if header.index != recovered.mark.index:
                wal.mark_snapshot(header.index, header.term)
                wal.sync()
        if entries and entries[0].index > snapshot_index + 1:
            raise DamagedStorageError(
                wal_path,
                0,
                f"the log begins at {entries[0].index}, the snapshot ends at {snapshot_index}",
                "Restore the directory whole, or evict this member and join with an empty one.",
            )
        last_index = entries[-1].index if entries else snapshot_index
        if last_index < snapshot_index:
            raise DamagedStorageError(
                wal_path, 0, f"the log ends at {last_index}, before its snapshot", "Restore the directory whole."
            )
        state = recovered.hard_state
        state = state._replace(commit=max(snapshot_index, min(state.commit, last_index)))
        return Loaded(node_id, recovered.cluster_id, state, header, entries)

    # -- snapshots

    def open_snapshot(self) -> StoredSnapshot:
        """The last complete snapshot; FileNotFoundError if there is none."""
        return StoredSnapshot(self._files, f"{self._path}/snap")

    def save_snapshot(self, header: SnapshotHeader, chunks: Iterable[bytes]) -> bool:
        """Write a snapshot of this node's own.  False, and no effect, if a newer one came from a leader meanwhile."""
        temporary = f"{self._path}/snap.tmp"
        try:
            write_snapshot(self._files, temporary, header, chunks)
        except BaseException:
            with suppress(OSError):
                self._files.remove(temporary)  # give a full disk its space back
            raise
        with self._snapshot_lock:
            if header.index <= self._snapshot_index:
                self._files.remove(temporary)
                return False
            publish(self._files, temporary, f"{self._path}/snap")
            self._snapshot_index = header.index
            return True

    def incoming(self, index: int, term: int, size_bytes: int, crc: int) -> IncomingSnapshot:
        """Begin to receive a snapshot of that identity, in place of one begun before."""
        return IncomingSnapshot(self._files, f"{self._path}/snap.part", index, term, size_bytes, crc)

    def install_incoming(self) -> None:
        """Give the snapshot that was received and verified its name, durably."""
        with self._snapshot_lock:
            publish(self._files, f"{self._path}/snap.part", f"{self._path}/snap")
            with self.open_snapshot() as snapshot:
                self._snapshot_index = snapshot.header.index

    def close(self) -> None:
        """Close the log and let the directory go; idempotent."""
        if self._wal is not None:
            self._wal.close()
        self._dir_lock.release()
