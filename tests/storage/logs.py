"""What the tests of the log share: entries, and a plain model of what a log must hold."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from raftsvc.core.messages import Entry, EntryKind, HardState, index_of, make_entry, term_of
from raftsvc.storage.files import Files
from raftsvc.storage.segments import Mark, Recovered
from raftsvc.storage.snapshot import SnapshotHeader, write_snapshot
from raftsvc.storage.wal import Wal
from tests.storage.faults import Disk

DIR = "/node/wal"
CLUSTER_ID, NODE_ID = 0xC1, 7
FIRST_STATE = HardState(term=1)


def entry(index: int, term: int = 1, data: bytes | None = None) -> Entry:
    return make_entry(index, term, EntryKind.NORMAL, b"data %d" % index if data is None else data)


def batch(first: int, count: int, term: int = 1, data: bytes | None = None) -> list[Entry]:
    return [entry(index, term, data) for index in range(first, first + count)]


def new_disk() -> Disk:
    disk = Disk()
    disk.add_dirs(DIR)
    return disk


def new_log(disk: Disk, entries: Sequence[Entry] = (), segment_bytes: int = 1536) -> Wal:
    Wal.create(disk, DIR, CLUSTER_ID, NODE_ID, FIRST_STATE, entries, segment_bytes)
    return Wal.open(disk, DIR, segment_bytes)[0]


def append_beside(wal: Wal, count: int, work: Callable[[int], None], threads: int = 1) -> None:
    """Append `count` entries, with a mark now and then, beside threads that call `work` with the index marked last."""
    done = threading.Event()
    marked = 0

    def run() -> None:
        while not done.is_set():
            work(marked)

    workers = [threading.Thread(target=run, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        for n in range(1, count + 1):
            wal.append(None, [entry(n)])
            if n % 50 == 0:
                wal.mark_snapshot(n - 10, 1)
                wal.sync()
                marked = n - 10
        wal.sync()
    finally:
        done.set()
        for worker in workers:
            worker.join()
    wal.close()


def put_snapshot(files: Files, path: str, header: SnapshotHeader, chunks: Iterable[bytes]) -> None:
    fd = files.create(path)
    write_snapshot(files, fd, header, chunks)
    files.close(fd)


class Contents(NamedTuple):
    """What a log holds at one moment."""

    hard_state: HardState
    mark: Mark
    base: int
    entries: tuple[Entry, ...]

    def is_shown_by(self, found: Recovered, released: int = 0) -> bool:
        """Whether `found` is this, save that entries up to `released` may be gone."""
        wanted = {index_of(e): e for e in self.entries}
        got = {index_of(e): e for e in found.entries}
        return (
            (found.hard_state, found.mark) == (self.hard_state, self.mark)
            and (not got or max(got) == max(wanted, default=0))
            and all(wanted.get(index) == e for index, e in got.items())
            and all(index in got or index <= released for index in wanted)
        )


class Model:
    """`states[n]`: what the log holds once n records were written; `durable`: how many surely were."""

    def __init__(self) -> None:
        self.states = [Contents(FIRST_STATE, Mark(), 0, ())]
        self.durable = 0
        self.released = 0

    @property
    def last(self) -> Contents:
        return self.states[-1]

    @property
    def last_index(self) -> int:
        return index_of(self.last.entries[-1]) if self.last.entries else self.last.base

    def append(self, state: HardState | None, entries: Sequence[Entry]) -> None:
        if state is not None:
            self.states.append(self.last._replace(hard_state=state))
        if entries:
            kept = tuple(e for e in self.last.entries if index_of(e) < index_of(entries[0]))
            self.states.append(self.last._replace(entries=kept + tuple(entries)))

    def mark(self, index: int, term: int) -> None:
        if index <= self.last.mark.index:
            return
        new = self.last._replace(mark=Mark(index, term))
        if index > new.base and not any((index_of(e), term_of(e)) == (index, term) for e in new.entries):
            new = new._replace(base=index, entries=())
        self.states.append(new)

    def allows(self, found: Recovered) -> bool:
        """Whether a crash at this moment may leave `found`."""
        return any(state.is_shown_by(found, self.released) for state in self.states[self.durable :])
