"""A State that is alive, and those who wait for it, on their way to another part in their process.

An attached process that gets the lock of the directory becomes its owner with the State that it has:
its log is opened as at any start, and the State goes on from where it is.  It never goes back.  So the
log has to hold what the State applied last, the very same entry, or a snapshot has to be ahead of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple
from zlib import crc32

from raftsvc.core.messages import Entry, index_of, term_of
from raftsvc.errors import StorageError
from raftsvc.member.calls import Calls
from raftsvc.member.handoff import Inbox
from raftsvc.member.machine import Machine
from raftsvc.member.reads import Reads
from raftsvc.storage import Ahead, Loaded, Store


class NotContinuedError(StorageError):
    """What is stored does not go on from a State that is live, and never will."""

    http_status = 503
    http_detail = "This process serves no more; another one does."
    retry_after = 1.0


class Live(NamedTuple):
    """What an attached process has.

    cluster_id: of what the State applied; 0: it has applied nothing.
    last_crc:   of the frame of the last entry that it applied; 0 if a snapshot was the last.
    doubts:     whether a snapshot of that index and digest, which is stored, may be as wrong as its former owner is.
    loaded:     what is stored; None before `opened`.
    """

    cluster_id: int
    machine: Machine
    calls: Calls
    reads: Reads
    inbox: Inbox
    last_crc: int
    doubts: Callable[[int, int], bool] = lambda index, digest: False
    loaded: Loaded | None = None

    def opened(self, store: Store, nonce: int, ahead: Ahead | None = None) -> Live:
        """The same, and what is in `store`, which this process owns.  Slow, unless most of it was read `ahead`.

        Raises NotContinuedError unless that goes on from the State, and whatever `Store.load` does.
        """
        loaded = store.load(nonce, ahead)
        _check_goes_on(self, loaded)
        return self._replace(loaded=loaded)

    @property
    def is_behind(self) -> bool:
        """Whether the stored snapshot is ahead of the State, and is to be read first."""
        snapshot = self.loaded.snapshot if self.loaded is not None else None
        return snapshot is not None and snapshot.index > self.machine.applied_index


def _check_goes_on(live: Live, loaded: Loaded) -> None:
    machine, snapshot = live.machine, loaded.snapshot
    index = machine.applied_index
    if not index:
        return
    if live.cluster_id != loaded.cluster_id:
        raise NotContinuedError(
            f"the directory is of cluster {loaded.cluster_id:016x} by now, and this process has the State of "
            f"{live.cluster_id:016x}: it is not taken over"
        )
    if snapshot is not None and snapshot.index >= index:
        is_same = snapshot.digest == machine.digest or live.doubts(index, snapshot.digest)
        if snapshot.index == index and not (is_same and snapshot.term == machine.applied_term):
            raise _differs(machine, f"the snapshot is of term {snapshot.term}, digest {snapshot.digest:08x}")
        return
    entry = _entry_at(loaded, index)
    if entry is None:
        raise _differs(machine, "the log ends before that")
    if term_of(entry) != machine.applied_term or live.last_crc not in (0, crc32(entry)):
        raise _differs(machine, f"the log has another entry there, of term {term_of(entry)}")


def _entry_at(loaded: Loaded, index: int) -> Entry | None:
    entries = loaded.entries
    place = index - index_of(entries[0]) if entries else -1
    return entries[place] if 0 <= place < len(entries) else None


def _differs(machine: Machine, what: str) -> NotContinuedError:
    return NotContinuedError(
        f"the State of this process has applied entry {machine.applied_index} of term {machine.applied_term}, and what "
        f"is stored does not go on from there: {what}. The directory is not taken over; start this process anew"
    )
