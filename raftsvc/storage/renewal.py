"""Another member's content in the place of what a directory holds: all of it at once, and the former kept beside it.

What is new is made under other names (`wal.anew`, `snap.anew`, `id.anew`, `origin.json.anew`), whole and durable.  Then
the file `anew` says that it is, and what the former is to be called: that it has its name decides.  Without it a start
removes what was made; with it a start finishes what was begun: each former name gets an end (`wal.before-N`), then
each new one is given its name, then `anew` goes.  All names are in one directory, so a directory that is a mount of
its own is
no exception, and each step is durable before the next: what has a name is never replaced by what is not there for
certain.

The caller owns the directory, and nothing in it is open.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from raftsvc.core.messages import Entry, HardState
from raftsvc.errors import DamagedStorageError, StorageError
from raftsvc.storage.files import Files, read_file, remove_if_there, settle_names, write_file
from raftsvc.storage.identity import encode_id
from raftsvc.storage.segments import Mark
from raftsvc.storage.snapshot import SYNC_BYTES, SnapshotHeader, write_snapshot
from raftsvc.storage.wal import DEFAULT_SEGMENT_BYTES, Wal

MARKER: Final = "anew"
ORIGIN: Final = "origin.json"
"""The file that says where what is in a directory came from."""
_NAMES: Final = ("snap", "id", ORIGIN, "wal")
_DIGITS: Final = 16


class Made(NamedTuple):
    """What a directory is to hold.

    header, chunks: the snapshot, of the same cluster.
    entries:        the log behind it, and
    hard_state:     what stands beside that.
    origin:         for people; see ORIGIN.
    """

    node_id: int
    header: SnapshotHeader
    chunks: Iterable[bytes]
    hard_state: HardState
    entries: Sequence[Entry]
    origin: bytes


class Renewal:
    """That of the directory `path`."""

    def __init__(self, files: Files, path: str, segment_bytes: int = DEFAULT_SEGMENT_BYTES) -> None:
        """segment_bytes: of the log that is made."""
        self._files = files
        self._path = path
        self._segment_bytes = segment_bytes

    @property
    def is_decided(self) -> bool:
        """Whether one was begun that is to be finished.  Raises OSError."""
        return self._files.exists(f"{self._path}/{MARKER}")

    def make(self, made: Made) -> None:
        """Have the directory hold that: all of it or, if the power goes, what it held.

        Raises StorageError, and what `made.chunks` raises.  Then it is as it was; or, where only the last steps
        failed, it is made what it is to be by whoever owns it next (`is_decided`).
        """
        try:
            try:
                self._stage(made)
                settle_names(self._files, self._path)
                write_file(self._files, f"{self._path}/{MARKER}", b"%0*x" % (_DIGITS, made.header.cluster_id))
            except BaseException:
                with suppress(OSError):
                    if not self.is_decided:  # give a full disk its space back
                        self._clear()
                raise
            self._finish()
        except OSError as error:
            raise StorageError(f"{self._path}: what is in it could not be replaced: {error}") from error

    def settle(self) -> None:
        """Finish what was decided, or remove what was made for it.  Raises OSError, DamagedStorageError."""
        if self.is_decided:
            self._finish()
        else:
            self._clear()

    def _stage(self, made: Made) -> None:
        files, path, header = self._files, self._path, made.header
        self._clear()
        fd = files.create(f"{path}/snap.anew")
        try:
            write_snapshot(files, fd, header, made.chunks, SYNC_BYTES)
        finally:
            files.close(fd)
        write_file(files, f"{path}/id.anew", encode_id(made.node_id))
        write_file(files, f"{path}/{ORIGIN}.anew", made.origin)
        log = f"{path}/wal.anew"
        files.make_dir(log)
        mark = Mark(header.index, header.term)
        Wal.create(
            files, log, header.cluster_id, made.node_id, made.hard_state, made.entries, self._segment_bytes, mark
        )

    def _clear(self) -> None:
        files, path = self._files, self._path
        log = f"{path}/wal.anew"
        if files.exists(log):
            for name in files.list_dir(log):
                files.remove(f"{log}/{name}")
            files.remove_dir(log)
        for name in (*(f"{name}.anew" for name in _NAMES[:-1]), MARKER):
            remove_if_there(files, f"{path}/{name}.tmp")
            if name != MARKER:
                remove_if_there(files, f"{path}/{name}")

    def _finish(self) -> None:
        files, path = self._files, self._path
        marker = f"{path}/{MARKER}"
        ending = read_file(files, marker).decode(errors="replace")
        if len(ending) != _DIGITS or not ending.isalnum():
            raise DamagedStorageError(marker, 0, "it does not say what the former is to be called")
        settle_names(files, path)  # what was found may be as young as the crash
        # What is not in its place yet has its new name, and whoever has the old one is the former.
        waiting = [name for name in _NAMES if files.exists(f"{path}/{name}.anew")]
        for name in waiting:
            if files.exists(f"{path}/{name}"):
                files.rename(f"{path}/{name}", f"{path}/{name}.before-{ending}")
        settle_names(files, path)
        for name in waiting:
            files.rename(f"{path}/{name}.anew", f"{path}/{name}")
        settle_names(files, path)
        files.remove(marker)
        files.sync_dir(path)
