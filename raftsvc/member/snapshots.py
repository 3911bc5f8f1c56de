"""Snapshots: when one of our own is due and how it comes about, and those of a leader as they arrive.

`Snapshots` takes the State's as of the index applied and brings the State back to the stored
one; the thread that applies calls `capture` and `restore`.  `Arrivals` puts the pieces of a
leader's together.  Installing it is a write of the log: see `writes`.

`save`, `check_stored`, `restore` and `receive_chunk` touch the disk and are called without the lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from raftsvc.core.membership import Configuration
from raftsvc.core.messages import MalformedError
from raftsvc.errors import StorageError
from raftsvc.member.health import Health
from raftsvc.member.machine import Machine
from raftsvc.storage import PASSING, IncomingSnapshot, SnapshotHeader, Store
from raftsvc.transport import SnapshotChunk


class UnopenedError(StorageError):
    """The stored snapshot cannot be opened for want of what passes: the State is as it was."""

    http_status = 503
    http_detail = "This node is not ready."
    retry_after = 5.0


class Capture(NamedTuple):
    """A snapshot of the State to be saved."""

    header: SnapshotHeader
    chunks: Iterable[bytes]


class Snapshots:
    """The State's snapshots at one node."""

    __slots__ = (
        "_failures",
        "_health",
        "_is_saving",
        "_is_wanted",
        "_last_index",
        "_machine",
        "_most",
        "_rest_ticks",
        "_store",
        "_was_restored",
        "arrivals",
        "bytes_since",
        "cluster_id",
        "is_doubted",
        "restored_index",
    )

    def __init__(
        self, store: Store, machine: Machine, health: Health, cluster_id: int, max_entries: int, max_bytes: int
    ) -> None:
        """One is due after so many entries or bytes were applied since the last."""
        self._store = store
        self._health = health
        self._machine = machine
        self.cluster_id = cluster_id
        self._most = max_entries, max_bytes
        self._last_index = 0
        self.restored_index = 0
        """Of the snapshot that the State started from last: perhaps a later one than the one that was announced."""
        self.bytes_since = 0
        """Of entries applied since the last; counted by who applies."""
        self.is_doubted = False
        """Whether the stored one may be of a State that is wrong: nobody is to begin with it."""
        self._is_saving = False
        self._is_wanted = False  # whatever was applied since, and none was begun since that became known
        self._failures = 0  # since one was saved
        self._rest_ticks = 0  # after the last of them
        self._was_restored = False
        self.arrivals = Arrivals(store)

    @property
    def is_due(self) -> bool:
        """Whether enough was applied since the last one, or that failed or was damaged.

        A State that halted is not trusted to overwrite the last snapshot: from that a restart may be whole again.
        """
        max_entries, max_bytes = self._most
        return (
            (
                self._is_wanted
                or self._machine.applied_index - self._last_index >= max_entries
                or self.bytes_since >= max_bytes
            )
            and not self._is_saving
            and self._health.may_apply
        )

    def note_stored(self, stored: SnapshotHeader | None, doubts: Callable[[int, int], bool]) -> None:
        """What is stored, if anything; the State is no older.

        doubts: whether the one of that index and digest may be of a State that is wrong, which this one is not; then
                another is to take its place, and nobody to begin with it.
        """
        if stored is not None:
            self._last_index = self.restored_index = stored.index
            self.is_doubted = self._is_wanted = doubts(stored.index, stored.digest)

    def want(self) -> None:
        """The stored one is of no use: another is due, whatever was applied since."""
        self._is_wanted = True

    def ask(self, index: int) -> None:
        """One is wanted that has everything up to `index`, which is applied; of one that is being saved that is so."""
        if not (self._is_saving and self._last_index >= index):
            self._is_wanted = True

    @property
    def failures(self) -> int:
        """How many failed since one was saved."""
        return self._failures

    @property
    def is_resting(self) -> bool:
        """Whether one failed, and is not tried again yet."""
        return self._rest_ticks > 0

    def tick(self) -> None:
        """One tick of time passed."""
        if self._rest_ticks:
            self._rest_ticks -= 1
            self._is_wanted = self._is_wanted or not self._rest_ticks

    def capture(self) -> Capture:
        """The State as of now.  Raises what the State raises, to be given to `Engine.end_snapshot`."""
        machine = self._machine
        # Whatever comes of it, the next attempt is as far away as after a success.
        self._last_index = machine.applied_index
        self.bytes_since = 0
        self._is_wanted = False
        self._is_saving = True
        header = SnapshotHeader(
            machine.applied_index,
            machine.applied_term,
            self.cluster_id,
            machine.config.encode(),
            machine.sessions.encode(),
            machine.digest,
            machine.applied_time_ms,
        )
        return Capture(header, machine.capture())

    def save(self, capture: Capture) -> bool:
        """Make it the stored snapshot, unless a newer one is there; whether it is now."""
        return self._store.save_snapshot(capture.header, capture.chunks)

    def end(self, retry_ticks: int = 0) -> None:
        """What was captured is saved, or will not be; then another is wanted after `retry_ticks`, more each time."""
        self._is_saving = False
        self.is_doubted = self.is_doubted and retry_ticks > 0
        self._failures = self._failures + 1 if retry_ticks else 0
        self._rest_ticks = retry_ticks << min(max(self._failures - 1, 0), 6)

    def check_stored(self) -> None:
        """Raise FileNotFoundError if there is none, or what keeps it from being read, to its end.

        Asked before a State is restored from it: one that was given a part is of no use, and another may be taken.
        """
        with self._store.open_snapshot() as snapshot:
            snapshot.verify()

    def restore(self, index: int) -> None:
        """Restart the State from the stored snapshot, which covers at least `index`.

        Raises StorageError if that is of another cluster, and whatever reading it or the State raises.
        """
        if index and index <= self._machine.applied_index:
            return
        try:
            stored = self._store.open_snapshot()
        except OSError as error:
            if error.errno in PASSING:
                raise UnopenedError(f"the stored snapshot cannot be opened: {error}") from error
            raise
        with stored as snapshot:
            header = snapshot.header
            if self.cluster_id not in (0, header.cluster_id):
                raise StorageError(
                    f"the stored snapshot is of cluster {header.cluster_id:016x}, and this node of "
                    f"{self.cluster_id:016x}: directories were mixed up"
                )
            if index and header.index <= self._machine.applied_index:
                return  # what is applied stays applied
            self._machine.restore(
                header.index,
                header.term,
                decode_config(header.config),
                header.sessions,
                header.digest,
                snapshot.chunks(),
                header.time_ms,
            )
        self._last_index = self.restored_index = header.index
        self.is_doubted = False
        self.bytes_since = 0
        self._was_restored = True

    def take_restored(self) -> bool:
        """Whether the State was restarted since this was asked last."""
        was_restored, self._was_restored = self._was_restored, False
        return was_restored


class Arrivals:
    """A leader's snapshot as its pieces arrive; one at a time."""

    __slots__ = ("_incoming", "_store")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._incoming: IncomingSnapshot | None = None

    def receive_chunk(self, chunk: SnapshotChunk, is_wanted: Callable[[], bool]) -> int | None:
        """Take a piece of a snapshot; returns the offset wanted next, its size once it is whole.

        Slow, and called by one thread at a time.  is_wanted: looked at now that it is this
        thread's turn, for what was wanted when the piece came may have been installed since,
        or something later; None if it is not.  Raises MalformedError if the data is not what
        was announced, OSError.
        """
        if not is_wanted():
            self.drop()
            return None
        message = chunk.message
        identity = (message.index, message.log_term, chunk.size_bytes, chunk.crc)
        if self._incoming is None or self._incoming.identity != identity:
            self._incoming = self._store.incoming(*identity)
        wanted_offset = self._incoming.append(chunk.offset, chunk.data)
        if wanted_offset < chunk.size_bytes:
            return wanted_offset
        incoming, self._incoming = self._incoming, None
        header = incoming.finish()
        announced = (message.index, message.log_term, message.hint, message.payload)
        if (header.index, header.term, header.time_ms, header.config) != announced:
            raise MalformedError("the snapshot is not what its message announced")
        return chunk.size_bytes

    def drop(self) -> None:
        """What was received so far is not wanted any more, nor is its place on the disk."""
        if self._incoming is not None:
            self._incoming = None
            self._store.drop_incoming()


def decode_config(data: bytes) -> Configuration:
    """The configuration in a stored snapshot; raises StorageError."""
    try:
        return Configuration.decode(data)
    except MalformedError as error:
        raise StorageError(f"the configuration in the snapshot does not decode: {error}") from error
