"""A new cluster from a backup."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping

from raftsvc.addresses import canonical_addr
from raftsvc.errors import ExistingClusterError, StorageError
from raftsvc.rescue.backups import BackupFile
from raftsvc.rescue.making import Remade, first_index, make_anew, remade
from raftsvc.rescue.reading import read_held
from raftsvc.rescue.replaying import History
from raftsvc.storage import ORIGIN, Files, Renewal, Store
from raftsvc.storage.files import read_file
from raftsvc.storage.wal import DEFAULT_SEGMENT_BYTES


def restore(
    file: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    addr: str,
    *,
    above_index: int | None = None,
    files: Files | None = None,
    backup_files: Files | None = None,
    lock_timeout: float = 0.0,
    clock: Callable[[], float] | None = None,
    segment_bytes: int = DEFAULT_SEGMENT_BYTES,
) -> Remade:
    """Make the directory of the only member of a new cluster, which goes on from a backup.

    file:      of `back_up`, or what `Service.backup` wrote.  Read to its end before anything is made of it.
    directory: missing, or empty; `start` it with `addr` and a State of the same kind as any other.  Others then join,
               each with an empty directory: those at the addresses of former members may, others if the State allows
               it.
    addr:      where the node will be reached: `laddr` of `start`.
    above_index: the indexes go on above that one.  To be given only where the clock of this computer, or of the one on
               which the backup was taken, cannot be trusted: an index above all that the former cluster, and all that
               were restored from it, ever came to.
    files, backup_files, clock: for tests: the disk of the directory, that of the file, and seconds since 1970.
    lock_timeout: seconds to wait for another process that has the directory.
    segment_bytes: of the log that is made; for tests.

    At most one restored cluster may live on, and not beside the former: each would serve its own history.  End the
    first before the second is restored.

    A restore that was interrupted, by whatever, is repeated: the directory is empty as before, or whole.  One that is
    whole, made of the same in the same way, is what is answered until a node is started on it.

    Raises ConfigurationError if the backup is of a later time than the clock says; ExistingClusterError if a node is
    in the directory, or another attempt was interrupted there and is finished now; DamagedStorageError,
    FormatVersionError, of the file; DirectoryInUseError, StorageError.
    """
    addr = canonical_addr(addr)
    files = files or Files()
    with BackupFile(file, backup_files or files) as source:
        backup = source.backup
        now_us = int((time.time() if clock is None else clock()) * 1_000_000)
        index = first_index(backup.index, now_us, backup.wall_ms * 1000, above_index)
        source.verify()
        report: dict[str, object] = {
            "made_by": "restore",
            "backup_cluster": f"{backup.cluster_id:016x}",
            "backup_index": backup.index,
            "backup_wall_ms": backup.wall_ms,
            "above_index": above_index,
        }
        store = Store(os.fspath(directory), files, segment_bytes)
        is_half_done = _is_half_done(store)
        store.own(lock_timeout)
        try:
            if is_half_done:
                return finished(read_origin(store.path, files), {"addr": addr, **report})
            if store.is_initialized:
                made = unheard(store.path, files, {"addr": addr, **report})
                if made is not None:
                    return made
                raise ExistingClusterError(
                    f"{store.path}: a node is in it already. Restore into an empty directory; what this node has is "
                    "backed up, or removed, by hand"
                )
            history = History(
                backup.cluster_id, backup.index, backup.term, backup.time_ms, backup.config, source.chunks()
            )
            more = {
                "backup": os.path.abspath(file),
                "backup_commit_index": backup.commit_index,
                "wall_ms": now_us // 1000,
            }
            return make_anew(store, history, addr, index, {**report, **more})
        finally:
            store.close()


def _is_half_done(store: Store) -> bool:
    try:
        return Renewal(store.files, store.path).is_decided
    except OSError as error:
        raise StorageError(f"{store.path}: cannot be read: {error}") from error


def finished(made: Remade, wanted: Mapping[str, object]) -> Remade:
    """What an interrupted attempt made, and whoever owned the directory next finished.

    wanted: what this attempt would have had in `origin.json`.  Raises ExistingClusterError if the other wanted else.
    """
    differs = _difference(made, wanted)
    if differs:
        raise ExistingClusterError(
            f"{made.directory}: another attempt was interrupted there, and is finished now: {', '.join(differs)}. Its "
            "origin.json says what it is; to have something else, empty the directory first"
        )
    return made


def unheard(path: str, files: Files, wanted: Mapping[str, object]) -> Remade | None:
    """What an attempt before made in the directory, if that is what is `wanted`, and no node was started on it since.

    Its process may have ended before it said so.  The directory is this process's own; raises StorageError.
    """
    try:
        if not files.exists(f"{path}/{ORIGIN}"):
            return None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error}") from error
    made = read_origin(path, files)
    return made if not _difference(made, wanted) and not read_held(path, files).starts else None


def _difference(made: Remade, wanted: Mapping[str, object]) -> list[str]:
    return [f"{name} {made.report.get(name)}" for name, value in wanted.items() if made.report.get(name) != value]


def read_origin(path: str, files: Files) -> Remade:
    """What was made in the directory, as it says itself.  Raises StorageError."""
    try:
        return remade(path, json.loads(read_file(files, f"{path}/{ORIGIN}")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path}/{ORIGIN}: does not say where the cluster comes from: {error!r}") from error
