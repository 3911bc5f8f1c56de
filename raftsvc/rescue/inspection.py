"""What is in a stopped node's directory, for people; and whether it is whole.  Nothing is changed there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from raftsvc.core.membership import ConfChange, Configuration
from raftsvc.core.messages import Entry, EntryKind, MalformedError, data_of, index_of, kind_of, term_of, time_of
from raftsvc.errors import DamagedStorageError, StorageError
from raftsvc.member.envelopes import ANEW, CLIENT, CLOSE, ENVELOPE, INSTRUCTION, LIST, OPEN, PIECE, VOID
from raftsvc.member.sessions import Sessions
from raftsvc.rescue.reading import Held, Untouched, open_snapshot, read_held, stopped
from raftsvc.storage import Files, Renewal
from raftsvc.storage.files import read_file
from raftsvc.storage.identity import decode_id
from raftsvc.storage.segments import damages

_CARRIED = {INSTRUCTION: "instruction", PIECE: "part of an instruction", LIST: "list", CLIENT: "of a client"}


@dataclass(frozen=True, slots=True)
class Described:
    """One entry of a log, for people.

    kind: "empty", "members", "instruction", "part of an instruction", "list", "of a client", "session opened",
          "session closed", "lives void", "new cluster" or "unknown".
    what: what it does, as far as that can be told without the State.
    data: what the State is given, of an instruction that is whole; else empty.
    """

    index: int
    term: int
    time_ms: int
    kind: str
    what: str
    data: bytes


class Inspection(NamedTuple):
    """What is in a directory.

    held:        all of it but the State's data.
    config:      who is a member as of the last entry.
    snapshot_bytes: of the snapshot's file; 0: there is none.
    log_bytes:   of the entries that are in the log.
    sessions:    how many are in the snapshot.
    """

    held: Held
    config: Configuration
    snapshot_bytes: int
    log_bytes: int
    sessions: int

    def facts(self) -> dict[str, object]:
        """All of it but the entries; JSON-compatible."""
        held, loaded, state = self.held, self.held.loaded, self.held.hard_state
        entries, snapshot = loaded.entries, loaded.snapshot
        span: dict[str, object] = {"first_index": 0, "last_index": held.last_index, "entries": len(entries)}
        if entries:
            span |= {"first_index": index_of(entries[0]), "first_time_ms": time_of(entries[0])}
            span |= {"last_term": term_of(entries[-1]), "last_time_ms": time_of(entries[-1])}
        return {
            "directory": held.path,
            "cluster": f"{loaded.cluster_id:016x}",
            "node": loaded.node_id,
            "term": state.term,
            "vote": state.vote,
            "commit_index": state.commit,
            "starts": held.starts,
            "members": {
                str(node_id): {"addr": member.addr, "votes": member.is_voter}
                for node_id, member in sorted(self.config.members.items())
            },
            "versions": str(self.config.versions),
            "log": span | {"bytes": self.log_bytes},
            "snapshot": None
            if snapshot is None
            else {
                "index": snapshot.index,
                "term": snapshot.term,
                "time_ms": snapshot.time_ms,
                "bytes": self.snapshot_bytes,
                "sessions": self.sessions,
            },
            "founded_together": held.founded,
            "silent": held.silent,
            "ended": held.ended or None,
            "origin": held.origin or None,
        }

    def entries(self) -> Iterator[Described]:
        """Those in the log, in order; the first may be before the end of the snapshot."""
        return map(described, self.held.loaded.entries)


def inspect(directory: str | os.PathLike[str], *, files: Files | None = None, lock_timeout: float = 0.0) -> Inspection:
    """What is in the directory of a stopped node.

    lock_timeout: seconds to wait for the process that has the directory to end.

    It takes the memory of the log, as a start does.  Raises DirectoryInUseError; StorageError if it is no node's, or
    cannot be read: see `verify`.
    """
    files = files or Files()
    with stopped(directory, files, lock_timeout) as path:
        held = read_held(path, files)
        size = sessions = 0
        stored = open_snapshot(path, files)
        if stored is not None:
            with stored as snapshot:
                size = snapshot.size_bytes
                sessions = _count_sessions(snapshot.header.sessions, path)
        log_bytes = sum(map(len, held.loaded.entries))
        return Inspection(held, held.config, size, log_bytes, sessions)


def _count_sessions(table: bytes, path: str) -> int:
    try:
        sessions = Sessions.decode(table)
    except MalformedError as error:
        raise DamagedStorageError(f"{path}/snap", 0, str(error)) from error
    members = {*sessions.holders, 0}
    return sum(sessions.count_of(member) for member in members)


def described(entry: Entry) -> Described:
    """An entry, for people; nothing in it is trusted to make sense."""
    kind, what, data = _told(entry)
    return Described(index_of(entry), term_of(entry), time_of(entry), kind, what, data)


def _told(entry: Entry) -> tuple[str, str, bytes]:
    data = data_of(entry)
    if kind_of(entry) is EntryKind.EMPTY:
        return "empty", "a leader began, or time passed", b""
    if kind_of(entry) is EntryKind.CONFIG:
        try:
            change = ConfChange.decode(data)
        except MalformedError as error:
            return "unknown", str(error), b""
        where = f" at {change.addr}" if change.addr else ""
        return "members", f"{change.op.name} node {change.node_id}{where}, {change.versions}", b""
    if len(data) < ENVELOPE.size:
        return "unknown", f"{len(data)} bytes", b""
    op, first, nonce, number, _ = ENVELOPE.unpack_from(data)
    rest = data[ENVELOPE.size :]
    if op in _CARRIED:
        what = f"number {number} of session {first}, {len(rest)} bytes"
        return _CARRIED[op], what, rest if op == INSTRUCTION else b""
    if op == OPEN:
        who = f"start {number} of node {first}" if number else f"a process of node {first}"
        return "session opened", f"session {index_of(entry)}, of {who}", b""
    if op == CLOSE:
        return "session closed", f"session {first}", b""
    if op == VOID:
        return "lives void", f"node {first}: its directory was copied, or put back", b""
    if op == ANEW:
        return "new cluster", f"it goes on from cluster {first:016x}, of which the history ended at {nonce}", b""
    return "unknown", f"of kind {op}, which a later version wrote", b""


def verify(directory: str | os.PathLike[str], *, files: Files | None = None, lock_timeout: float = 0.0) -> list[str]:
    """What is wrong with the directory of a stopped node, as sentences; empty: it is whole, and could be started.

    Every segment of the log is read, each by itself and all of them as a start would, the snapshot to its end, and
    whether all of it is of one node.  What a crash may leave, such as a last write that is torn, is no problem.

    Raises DirectoryInUseError; StorageError if there is no such directory.
    """
    files = files or Files()
    with stopped(directory, files, lock_timeout) as path:
        if not Renewal(files, path).is_decided and not files.exists(f"{path}/wal"):
            names = [name for name in ("snap", "id") if files.exists(f"{path}/{name}")]
            return [f"{path}: there is {' and '.join(names)}, and no log"] if names else [f"{path}: no node is in it"]
        found: list[str] = []
        looks: list[Callable[[], object]] = [
            lambda: decode_id(read_file(files, f"{path}/id"), f"{path}/id"),
            lambda: found.extend(map(str, damages(Untouched(files), f"{path}/wal"))),
            lambda: _verify_snapshot(path, files),
            lambda: found.extend(_doubts(read_held(path, files))),
        ]
        for look in looks:
            try:
                look()
            except (StorageError, OSError) as error:
                found.append(str(error))
        return list(dict.fromkeys(found))


def _verify_snapshot(path: str, files: Files) -> None:
    stored = open_snapshot(path, files)
    if stored is not None:
        with stored as snapshot:
            snapshot.verify()
            _count_sessions(snapshot.header.sessions, path)


def _doubts(held: Held) -> list[str]:
    config = held.config
    doubts = []
    if config.members and held.loaded.node_id not in config.members:
        doubts.append(f"{held.path}: node {held.loaded.node_id} is no member any more, as its log says")
    if held.ended:
        doubts.append(f"{held.path}: it may not be started any more: {held.ended}")
    return doubts
