"""Directories as nodes leave them, on simulated disks and real ones; and Services on what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import raftsvc
from raftsvc.core.membership import ConfChange, Configuration, ConfOp, Founders, Member
from raftsvc.core.messages import Entry, EntryKind, HardState, index_of, make_entry, term_of
from raftsvc.kv import KeyValue, KeyValueState
from raftsvc.member.envelopes import INSTRUCTION, wrap, wrap_open
from raftsvc.storage import SnapshotHeader, Store
from raftsvc.storage.files import Files
from tests.service.harness import PATIENCE, SECRET, ListState
from tests.storage.faults import Disk
from tests.storage.test_store import SEGMENT_BYTES

CLUSTER_ID = 0xC1
ADDRS = ("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")
NONCE = 77
NOW = 2_000_000_000.0
"""Seconds since 1970, as the tests have it."""
OPENED = 2
"""The entry that opens the session of whoever wrote."""


def clock_at(seconds: float) -> Callable[[], float]:
    return lambda: seconds


def two_of(ways: Sequence[Any], number: int) -> list[Any]:
    """Two of them, by and by all."""
    return [ways[number % len(ways)], ways[(number + len(ways) // 2) % len(ways)]]


def below(disk: Disk, path: str) -> None:
    """Another directory on the disk; and on the real one, which has the lock."""
    Path(path).mkdir(exist_ok=True)
    disk.add_dirs(path)


def history(items: Sequence[bytes], term: int = 1, time_ms: int = 0) -> list[Entry]:
    """Three found a cluster, one opens a session, and brings `items`."""
    founders = Founders(CLUSTER_ID, tuple((addr, bytes([n])) for n, addr in enumerate(ADDRS)))
    found = ConfChange(ConfOp.FOUND, len(ADDRS), founders=founders)
    entries = [
        make_entry(1, 1, EntryKind.CONFIG, found.encode()),
        make_entry(OPENED, 1, EntryKind.NORMAL, wrap_open(1, NONCE, 1, 1)),
    ]
    return [*entries, *brought(items, 1, OPENED + 1, term, time_ms)]


def brought(items: Sequence[bytes], number: int, index: int, term: int = 1, time_ms: int = 0) -> list[Entry]:
    """`items` as that session brings them, from that number and index on."""
    return [
        make_entry(index + n, term, EntryKind.NORMAL, wrap(INSTRUCTION, OPENED, NONCE, number + n, 0, item), time_ms)
        for n, item in enumerate(items)
    ]


CONFIG = Configuration({n: Member(addr, True, bytes([n - 1])) for n, addr in enumerate(ADDRS, 1)}, len(ADDRS))


def leave(path: str, files: Files, entries: Sequence[Entry], commit: int, node_id: int = 1, term: int = 0) -> None:
    """The directory of a member of that cluster, stopped."""
    store = Store.open(path, files, 0, SEGMENT_BYTES)
    state = HardState(term or term_of(entries[-1]), 0, commit)
    store.create(node_id, CLUSTER_ID, state, entries)
    store.load(1)
    store.close()


def leave_snapshot(path: str, files: Files, index: int, data: bytes, sessions: bytes, behind: Sequence[Entry]) -> None:
    """As `leave`, of a node that has a snapshot, and entries behind it."""
    leave(path, files, history([]), 2)
    store = Store.open(path, files, 0, SEGMENT_BYTES)
    store.load(1)
    store.save_snapshot(SnapshotHeader(index, 1, CLUSTER_ID, CONFIG.encode(), sessions, 0, 5), [data])
    store.wal.mark_snapshot(index, 1)
    if behind:
        store.wal.append(HardState(1, 0, index_of(behind[-1])), behind)
    store.wal.sync()
    store.close()


def items_of(path: str, files: Files) -> list[bytes]:
    """What a ListState that is restored from the snapshot in a directory has."""
    store = Store(path, files)
    state = ListState()
    with store.open_snapshot() as snapshot:
        state.restore_snapshot(b"".join(snapshot.chunks()), snapshot.header.index)
    return state.items


@contextmanager
def served(directory: Path, addr: str, state: Any, **options: Any) -> Iterator[raftsvc.Service]:
    service = raftsvc.start(
        addr, directory, None, state, **{"secret": SECRET, "listen": addr, "election_timeout": 0.3, **options}
    )
    try:
        yield service
    finally:
        service.stop()


@contextmanager
def store_in(directory: Path, addr: str, founds: bool = False, **options: Any) -> Iterator[KeyValue]:
    """The store of a node."""
    state = KeyValueState()
    with served(directory, addr, state, **options) as service:
        if founds:
            service.init()
        service.wait_read(PATIENCE)
        yield KeyValue(service, state)
