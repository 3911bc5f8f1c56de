"""A node's history as its State makes it, outside of any node: what its directory, or a backup, stands for.

The bytes of a State that a snapshot has are of the index at which it was taken.  What the log has behind that only the
State itself can add: an instruction may ask for versions, and answers are made of what came before.  So whoever wants
all of it brings a State, new and empty, of the kind that the node ran.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from raftsvc.core.membership import Configuration
from raftsvc.core.messages import Entry, index_of, term_of, time_of
from raftsvc.errors import ConfigurationError, OutdatedError, RaftError, StorageError
from raftsvc.member.machine import Answer, Machine
from raftsvc.member.snapshots import decode_config
from raftsvc.rescue.reading import Held, open_snapshot
from raftsvc.state import State
from raftsvc.storage import Files, StoredSnapshot

_BATCH = 256


@dataclass(frozen=True, slots=True)
class History:
    """Where a history stands: all that a cluster which goes on from there begins with.

    index, term, time_ms: of its last entry.
    chunks: the State's data; to be consumed once, while the directory is this process's own.
    """

    cluster_id: int
    index: int
    term: int
    time_ms: int
    config: Configuration
    chunks: Iterable[bytes]


def history_of(held: Held, files: Files, state: State | None) -> History:
    """All that a directory holds, up to its last entry.

    state: new and empty, of the kind that the node ran; None will do where the log has nothing behind the snapshot.

    Raises ConfigurationError if `state` is missing, not empty, or another one than the node ran, as far as that can be
    told; OutdatedError if its code is too old; StorageError for what cannot be read, or what the State raises.
    """
    snapshot = held.loaded.snapshot
    if snapshot is not None and not held.entries:
        chunks = _stored(held.path, files)
        config = decode_config(snapshot.config)
        return History(held.loaded.cluster_id, snapshot.index, snapshot.term, snapshot.time_ms, config, chunks)
    if not held.entries:
        raise StorageError(f"{held.path}: there is nothing in it: the node never heard anything of its cluster")
    if state is None:
        raise ConfigurationError(
            f"the log of {held.path} goes on behind its snapshot, up to entry {held.last_index}: what that makes of "
            "the State only the State can tell. Give one, new and empty, of the kind that the node ran"
        )
    if state.applied_index():
        raise ConfigurationError("the State was used before; give one that is new and empty")
    machine = Machine(state)
    try:
        _restore(machine, held, files)
        _apply(machine, held.entries)
        captured = machine.capture()
    except (ConfigurationError, OutdatedError, StorageError):
        raise
    except (RaftError, Exception) as error:
        raise StorageError(
            f"{held.path}: the State cannot be brought to where the node was: it stopped behind entry "
            f"{machine.applied_index}: {error!r}. Is it the one that the node ran?"
        ) from error
    last = held.entries[-1]
    return History(held.loaded.cluster_id, index_of(last), term_of(last), time_of(last), machine.config, captured)


def _stored(path: str, files: Files) -> Iterator[bytes]:
    stored = open_snapshot(path, files)
    if stored is None:
        raise StorageError(f"{path}/snap: is gone")
    with stored as snapshot:
        yield from snapshot.chunks()


def _restore(machine: Machine, held: Held, files: Files) -> None:
    stored: StoredSnapshot | None = open_snapshot(held.path, files)
    if stored is None:
        return
    with stored as snapshot:
        snapshot.verify()
        head = snapshot.header
        config = decode_config(head.config)
        machine.restore(head.index, head.term, config, head.sessions, head.digest, snapshot.chunks(), head.time_ms)


def _apply(machine: Machine, entries: list[Entry]) -> None:
    """Apply all of them.  Raises ConfigurationError if it is a State that takes none of these instructions.

    One that began by a snapshot is of the right kind.
    """
    was_restored = machine.applied_index > 0
    taken = refused = 0
    why = ""
    for start in range(0, len(entries), _BATCH):
        answers: list[Answer] = []
        machine.apply(entries[start : start + _BATCH], answers)
        for answer in answers:
            for outcome in answer.outcome if isinstance(answer.outcome, list) else [answer.outcome]:
                if outcome.rejection is None:
                    taken += 1
                else:
                    refused += 1
                    why = outcome.rejection
    if refused and not taken and not was_restored:
        raise ConfigurationError(
            f"the State refuses each of {refused} instructions in the log, the last since {why!r}: it is not of the "
            "kind that the node ran"
        )
