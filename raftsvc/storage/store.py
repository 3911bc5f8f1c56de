"""One node's directory: what is in it, when it counts as a member's, and in which order it changes.

    id      the member id
    snap    the last complete snapshot
    wal/    the log; that this name exists is what makes the directory a member's.  Beside it, where nodes
            founded their cluster together, `founding` and `silent`; see founded
    lock    names the process that owns the directory

While a node joins there is also wal.tmp/, which holds its join token until the
log inside it is complete and takes its name.  Snapshots grow as snap.tmp (our
own) and snap.part (a leader's, which is snap.new once it is whole); at a start
all three are leftovers.  A snapshot is durable under its name before the log says
so, and the log says so before segments are deleted.  One snapshot is kept: a damaged
one is refused and not replaced by an older, for the other members hold its data.
How all of this is replaced at once, where a cluster is restored or recovered: see renewal.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from raftsvc.core.messages import NO_NODE, Entry, HardState, Lineage, index_of
from raftsvc.errors import DamagedStorageError, DiskRefusedError, StorageError, SupersededError
from raftsvc.storage.files import (
    FOREIGN,
    NO_DESCRIPTOR,
    SETTLING,
    Files,
    make_dirs,
    read_file,
    remove_if_there,
    settle_names,
    write_file,
)
from raftsvc.storage.founded import Founded
from raftsvc.storage.identity import decode_id, encode_id
from raftsvc.storage.lock import held_by
from raftsvc.storage.renewal import Renewal
from raftsvc.storage.segments import Ahead, read_ahead
from raftsvc.storage.snapshot import (
    SYNC_BYTES,
    IncomingSnapshot,
    SnapshotHeader,
    StoredSnapshot,
    publish,
    write_snapshot,
)
from raftsvc.storage.wal import DEFAULT_SEGMENT_BYTES, Wal

TOKEN_BYTES: Final = 16


class Loaded(NamedTuple):
    """What a directory holds.  `entries` may begin before the snapshot's end, and reach it then."""

    node_id: int
    cluster_id: int
    hard_state: HardState
    snapshot: SnapshotHeader | None
    entries: Sequence[Entry]
    life: Lineage


def read_log_ahead(path: str, files: Files, is_over: Callable[[], bool] = lambda: False) -> Ahead | None:
    """Read the log of a directory as far as it goes, while another process owns that and may write; see `Store.load`.

    Slow.  Changes nothing.  None if it cannot be read, or not now, or `is_over` says that nobody wants it any more.
    """
    try:
        return read_ahead(files, f"{path}/wal", is_over)
    except (OSError, StorageError):
        return None


class Store:
    """A directory owned by this process, from `own` until `close`.

    path:  of the directory.
    files: the way to it.
    """

    def __init__(
        self,
        path: str,
        files: Files | None = None,
        segment_bytes: int = DEFAULT_SEGMENT_BYTES,
        sync_bytes: int = SYNC_BYTES,
    ) -> None:
        """The directory `path`, which is not looked at before `own`.

        sync_bytes: how much of a snapshot is written between two fsyncs.
        """
        path = os.path.abspath(path)  # the host may change its working directory
        files = files or Files()
        self.path = path
        self.files = files
        self._segment_bytes = segment_bytes
        self._sync_bytes = sync_bytes
        self.founded = Founded(files, f"{path}/wal")
        self._dir_lock = files.owner_lock(path)
        # Guards all up to _is_named, and the names of snapshots; held while these change.
        self._snapshot_lock = threading.Lock()
        self._is_closed = False
        self.is_in_doubt = False
        """A `create` failed, and what it left could not be undone yet: the next start may find a member's log."""
        self._snapshot_index = 0
        self._complete_index = 0  # of the snapshot that was received whole and waits to be installed; 0: there is none
        self._is_named = False  # one received whole has its name, which is not durable yet
        self._incoming: IncomingSnapshot | None = None
        self._cluster_id = 0
        self._wal: Wal | None = None

    @classmethod
    def open(
        cls,
        path: str,
        files: Files | None = None,
        lock_timeout: float = 10.0,
        segment_bytes: int = DEFAULT_SEGMENT_BYTES,
        sync_bytes: int = SYNC_BYTES,
    ) -> Store:
        """A Store that owns its directory; raises as `own`."""
        store = cls(path, files, segment_bytes, sync_bytes)
        store.own(lock_timeout)
        return store

    def own(self, lock_timeout: float | None) -> bool:
        """Own the directory, which is made if it is missing; True once that is so.

        lock_timeout: seconds to wait for a former owner to end; None: not at all, and False if there is one.
        Raises DirectoryInUseError, DamagedStorageError, StorageError.  Whatever is raised, be it
        by a handler of signals: the directory is not owned then.
        """
        lock = self._dir_lock
        try:
            make_dirs(self.files, self.path)
            try:
                if not (lock.try_acquire() if lock_timeout is None else lock.acquire(lock_timeout)):
                    return False
                self.files.stay_with(lock)
                self._clean_up()
                return True
            except BaseException:
                lock.release()
                raise
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be used as a data directory: {error}") from error

    def _clean_up(self) -> None:
        """Remove what an interrupted operation left, or finish it; a join token stays."""
        Renewal(self.files, self.path).settle()
        for name in ("snap.tmp", "snap.part", "snap.new", "id.tmp", SETTLING):
            remove_if_there(self.files, f"{self.path}/{name}")
        if self.files.exists(f"{self.path}/wal.tmp"):
            self._clear_stage()
        if not self.is_initialized and self.files.exists(f"{self.path}/snap"):
            raise DamagedStorageError(f"{self.path}/wal", 0, "there is a snapshot but no log")
        # What a process that was killed did last may not be durable, and is acted upon from here on.
        settle_names(self.files, self.path)
        # Not before: were the log's name lost with the power, this would be the token of a node that joins.
        remove_if_there(self.files, f"{self.path}/wal/token")

    @property
    def is_initialized(self) -> bool:
        """Whether this directory belongs to a member of a cluster."""
        return self.files.exists(f"{self.path}/wal")

    @property
    def wal(self) -> Wal:
        """The open log; only after `load`."""
        assert self._wal is not None, "loaded"
        return self._wal

    # -- becoming a member

    def join_token(self) -> bytes:
        """A random token, the same at each call until the node has joined, restarts included."""
        path = f"{self.path}/wal.tmp/token"
        try:
            token = read_file(self.files, path) if self.files.exists(path) else b""
            if len(token) != TOKEN_BYTES:
                token = secrets.token_bytes(TOKEN_BYTES)
                self._clear_stage()
            # Also the one found, which may be as young as the crash, or of an attempt whose sync failed.
            write_file(self.files, path, token)
            settle_names(self.files, self.path)
        except OSError as error:
            raise StorageError(f"{self.path}: the join token cannot be kept: {error}") from error
        return token

    def _clear_stage(self) -> None:
        """Have a place where a log can be made, with nothing in it but the join token."""
        staged = f"{self.path}/wal.tmp"
        if not self.files.exists(staged):
            self.files.make_dir(staged)
        for name in self.files.list_dir(staged):
            if name != "token":
                self.files.remove(f"{staged}/{name}")

    def create(
        self, node_id: int, cluster_id: int, hard_state: HardState, entries: Sequence[Entry], founding: bytes = b""
    ) -> None:
        """Make this the directory of member `node_id`: whole, or, if the power goes, not at all.

        founding: what is kept beside the log, of a member that is silent until `founded.speak`; empty: of none such.
        Raises StorageError; the directory is then as uninitialized as before, or `is_in_doubt`.
        """
        if self.is_in_doubt:
            self.undo_create()
        try:
            is_member = self.is_initialized
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be read: {error}") from error
        if is_member:  # no assert: the log of a member would be written over
            raise StorageError(f"{self.path}: belongs to a member already, whose id never changes")
        staged = f"{self.path}/wal.tmp"
        try:
            self._clear_stage()
            Wal.create(self.files, staged, cluster_id, node_id, hard_state, entries, self._segment_bytes)
            if founding:
                self.founded.put(staged, founding)
            write_file(self.files, f"{self.path}/id", encode_id(node_id))
            self.files.rename(staged, f"{self.path}/wal")
            self.files.sync_dir(self.path)
        except OSError as error:
            # The caller will hear that it failed, so it must have, also if the power goes now.
            with suppress(StorageError):
                self.undo_create()
            raise StorageError(f"{self.path}: cannot be initialized: {error}") from error
        with suppress(OSError):  # the next start removes what stays
            self.files.remove(f"{self.path}/wal/token")

    def undo_create(self) -> None:
        """Make the directory as uninitialized as before `create`; the log is closed.

        Raises StorageError; then it may be called again, for it may have come half-way.
        """
        was_in_doubt, self.is_in_doubt = self.is_in_doubt, True
        try:
            if self.is_initialized:
                self.files.rename(f"{self.path}/wal", f"{self.path}/wal.tmp")
            if was_in_doubt:
                settle_names(self.files, self.path)
            else:
                self.files.sync_dir(self.path)
        except OSError as error:
            raise StorageError(f"{self.path}: what was begun cannot be undone: {error}") from error
        self.is_in_doubt = False
        with suppress(OSError):  # whoever makes a log there next removes what stays
            self._clear_stage()

    def unload(self, timeout: float = 5.0) -> bool:
        """Close what `load` opened; the directory stays ours.  As `close`, but for that."""
        wal, self._wal = self._wal, None
        return wal is None or wal.close(timeout)

    @property
    def segment_bytes(self) -> int:
        """How large a segment of the log usually is."""
        return self._segment_bytes

    def room(self) -> int | None:
        """How many bytes may still be written to this directory; None if that cannot be said."""
        try:
            return self.files.room(self.path)
        except OSError:
            return None

    # -- starting

    def load(self, nonce: int, ahead: Ahead | None = None) -> Loaded:
        """Open the log, read everything but the State's data, and begin a life; `nonce` is random.

        ahead: what was read before; is of no use any more after that.
        Raises DamagedStorageError, StorageError; SupersededError if an earlier start found out that the
        directory was copied or put back.
        """
        try:
            if self.is_in_doubt or self.founded.is_silent:
                raise StorageError(f"{self.path}: what is in it is not the log of a member that may speak")
            ended = f"{self.path}/wal/ended"
            if self.files.exists(ended):
                raise SupersededError(read_file(self.files, ended).decode(errors="replace"))
            return self._load(nonce, ahead)
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be read: {error}") from error

    def _load(self, nonce: int, ahead: Ahead | None) -> Loaded:
        snapshot_path = f"{self.path}/snap"
        if not self.files.exists(f"{self.path}/id"):
            raise DamagedStorageError(f"{self.path}/id", 0, "the id file is missing")
        node_id = decode_id(read_file(self.files, f"{self.path}/id"), f"{self.path}/id")
        self._wal, recovered = Wal.open(self.files, f"{self.path}/wal", self._segment_bytes, ahead)
        if recovered.node_id != node_id:
            what = f"the id file says {node_id}, the log {recovered.node_id}: directories of two nodes were mixed up"
            raise DamagedStorageError(f"{self.path}/id", 0, what)
        self._cluster_id = recovered.cluster_id
        header = None
        with suppress(FileNotFoundError), self.open_snapshot() as snapshot:
            header = snapshot.header
        mark = recovered.mark
        self._snapshot_index = snapshot_index = header.index if header else 0
        if mark.index > snapshot_index:
            what = f"the log continues a snapshot at {mark.index}, which is missing"
            raise DamagedStorageError(snapshot_path, 0, what)
        entries = recovered.entries
        if header is not None:
            if header.cluster_id != recovered.cluster_id:
                what = "the snapshot is of another cluster: directories were mixed up"
                raise DamagedStorageError(snapshot_path, 0, what)
            if header.index == mark.index and header.term != mark.term:
                what = f"the snapshot at {header.index} is of term {header.term}, the log says {mark.term}"
                raise DamagedStorageError(snapshot_path, 0, what)
        if header is not None and header.index > mark.index:
            # The power went after a snapshot got its name and before the log said so.
            # Unless the log holds its last entry, it is void (section 7).
            if not self._wal.mark_snapshot(header.index, header.term):
                entries = []
            self._wal.sync()
        last_index = index_of(entries[-1]) if entries else snapshot_index
        if last_index < snapshot_index:
            what = f"the log ends at {last_index}, before its snapshot at {snapshot_index}"
            raise DamagedStorageError(f"{self.path}/wal", 0, what)
        state = recovered.hard_state
        if header is not None and state.term < header.term:
            # The snapshot was installed and the term of its leader was not yet written:
            # this node never voted in that term, and no log is of a later term than its node's.
            state = state._replace(term=header.term, vote=NO_NODE)
        state = state._replace(commit=max(snapshot_index, min(state.commit, last_index)))
        # Last: a start that is refused counts for nothing.  Durable before anybody can be told of it.
        life = self._wal.begin_life(nonce)
        return Loaded(node_id, recovered.cluster_id, state, header, entries, life)

    def end(self, why: str) -> None:
        """Have every later start refused, durably: the directory is not the only one of its member, or not all of it.

        Raises OSError, StorageError.
        """
        with self._snapshot_lock:  # so that it is ours meanwhile
            self._check_open()
            write_file(self.files, f"{self.path}/wal/ended", why.encode())

    # -- snapshots

    def open_snapshot(self) -> StoredSnapshot:
        """The last complete snapshot; FileNotFoundError if there is none."""
        return StoredSnapshot(self.files, f"{self.path}/snap")

    def save_snapshot(self, header: SnapshotHeader, chunks: Iterable[bytes]) -> bool:
        """Write a snapshot of this node's own.  False, and no effect, if a newer one came from a leader meanwhile.

        One of the same index, which may be damaged, is replaced.

        One thread at a time.  Raises OSError, StorageError, and what `chunks` raises.
        """
        temporary = f"{self.path}/snap.tmp"
        with self._snapshot_lock:
            self._check_open()
            fd = self.files.create(temporary)
        try:
            try:
                write_snapshot(self.files, fd, header, chunks, self._sync_bytes)
            finally:
                self.files.close(fd)
        except BaseException:
            with self._snapshot_lock, suppress(OSError):
                if not self._is_closed:
                    self.files.remove(temporary)  # give a full disk its space back
            raise
        with self._snapshot_lock:
            self._check_open()
            if header.index < self._snapshot_index:
                self.files.remove(temporary)
                return False
            try:
                publish(self.files, temporary, f"{self.path}/snap")
            except OSError:
                with suppress(OSError):  # it has its name, or its space is given back
                    self.files.remove(temporary)
                raise
            self._snapshot_index = header.index
            return True

    def _check_open(self) -> None:
        if self._is_closed:
            raise StorageError(f"{self.path}: closed; another process may own it by now")

    def incoming(self, index: int, term: int, size_bytes: int, crc: int) -> IncomingSnapshot:
        """Begin to receive a snapshot of that identity, in place of one begun before.

        One thread at a time receives; what it has received whole stays untouched
        until it is installed, or a later one is whole.
        """
        identity = (index, term, size_bytes, crc)
        path = f"{self.path}/snap.part"
        with self._snapshot_lock:
            self._check_open()
            if self._incoming is not None:
                self._incoming.close()
            if self.files.exists(path):
                self.files.remove(path)  # a new file, whatever became of the former one
            self._incoming = IncomingSnapshot(
                self.files,
                path,
                self._cluster_id,
                identity,
                self._complete_incoming,
                self._sync_bytes,
                self._remove_incoming,
            )
            return self._incoming

    def drop_incoming(self) -> None:
        """What was received in part is not wanted any more: give its space back.  By who receives."""
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            incoming.close()
            self._remove_incoming()

    def _remove_incoming(self) -> None:
        with self._snapshot_lock, suppress(OSError):
            if not self._is_closed:
                self.files.remove(f"{self.path}/snap.part")

    def _complete_incoming(self, index: int) -> None:
        with self._snapshot_lock:
            self._check_open()
            if index < self._complete_index:
                return  # what waits to be installed covers it
            self.files.rename(f"{self.path}/snap.part", f"{self.path}/snap.new")
            self._complete_index = index

    def install_incoming(self, index: int) -> None:
        """Give the snapshot at `index` that was received whole its name, durably; or a later one that took its place.

        Does nothing if what has the name covers it already.  Raises DiskRefusedError, after which
        it is to be called again; OSError; StorageError, also if there is none that covers
        it: what the log is about to say of it would not be true.
        """
        with self._snapshot_lock:
            self._check_open()
            complete = f"{self.path}/snap.new"
            try:
                if not self._is_named and self._complete_index > self._snapshot_index:
                    self.files.rename(complete, f"{self.path}/snap")
                    self._is_named = True
                    # Now: one of our own that is older must not take its place.
                    self._snapshot_index, self._complete_index = self._complete_index, 0
                if self._is_named:
                    self.files.sync_dir(self.path)
            except OSError as error:
                # Nothing happened, or the directory was not even opened; what a sync says is final.
                is_foreign = error.errno in FOREIGN or isinstance(error, FileNotFoundError)
                if error.errno in NO_DESCRIPTOR or not (self._is_named or is_foreign):
                    raise DiskRefusedError(f"{complete}: installing it was refused: {error}") from error
                raise
            self._is_named = False
            if self._snapshot_index < index:
                what = f"the snapshot at {index} is to be installed, the last received covers {self._snapshot_index}"
                raise StorageError(f"{self.path}: {what}")

    def close(self, timeout: float = 5.0) -> bool:
        """Close the log and let the directory go; idempotent.

        The caller has seen to it that nothing is being appended, synced or received.
        A snapshot or a release that another thread is busy with ends in an error,
        and changes nothing that the next owner sees; a preparation of the log just ends.
        False if a change of names, or such a preparation, hangs for `timeout` seconds,
        which the next owner would see: the directory stays ours.
        """
        deadline = time.monotonic() + timeout
        self._is_closed = True  # at once, for whoever waits for the lock
        with held_by(deadline, self._snapshot_lock) as is_quiet:
            if not is_quiet:
                return False
            if self._incoming is not None:
                self._incoming.close()
        if self._wal is not None and not self._wal.close(deadline - time.monotonic()):
            return False
        self._dir_lock.release()
        return True
