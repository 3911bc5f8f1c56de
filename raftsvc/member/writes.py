"""The write queue: what waits to be durable, what is being written, and what may be said once it is.

One batch is written at a time, with one fsync, by whoever the runner lets; what comes up
meanwhile is the next batch.  Messages that promise what is not yet durable are held back
until it is.

`write`, `release` and `prepare` touch the disk and are called without the lock; `begin`,
`end` and all else under it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from raftsvc.core.messages import Message
from raftsvc.core.raft import Ready
from raftsvc.errors import DiskRefusedError
from raftsvc.measures import SYNC_SECONDS, Histogram
from raftsvc.member.handoff import Inbox
from raftsvc.member.health import Health
from raftsvc.storage import Store


@dataclass(frozen=True, slots=True)
class SnapshotMark:
    """To be written to the log: the State's snapshot at `index` is durable."""

    index: int
    term: int


Batch = Sequence[Ready | SnapshotMark]


class Writes:
    """What is to be written to the log of one node."""

    __slots__ = (
        "_health",
        "_held",
        "_in_write",
        "_inbox",
        "_is_preparing",
        "_refusals",
        "_rest_ticks",
        "_store",
        "_syncs",
        "_waiting",
        "_written",
        "durable_token",
    )

    def __init__(self, store: Store, inbox: Inbox, health: Health, syncs: Histogram | None = None) -> None:
        """syncs: what notes how long each fsync took."""
        self._store = store
        self._syncs = syncs if syncs is not None else Histogram(SYNC_SECONDS)
        self._health = health
        self._inbox = inbox
        self._waiting: list[Ready | SnapshotMark] = []
        self._in_write: Batch = ()
        self._written = 0  # of the items of this batch, and whether the snapshot of the next is installed
        self._refusals = 0  # of this batch
        self._rest_ticks = 0  # until it is tried again
        self._held: deque[tuple[int, Sequence[Message]]] = deque()
        self._is_preparing = False  # the runner was asked to, and has not come to the end
        self.durable_token = 0
        """The core's token up to which everything is durable."""

    @property
    def is_due(self) -> bool:
        """Whether something waits to be written, and nothing is being written, nor resting after a refusal."""
        if self._refusals:
            return not (self._rest_ticks or self._inbox.is_writing or self._health.is_over)
        return bool(self._waiting) and not self._inbox.is_writing and not self._health.is_over

    @property
    def is_under_way(self) -> bool:
        """Whether something was begun to be written, and is not written yet."""
        return self._inbox.is_writing or self._refusals > 0

    def add(self, item: Ready | SnapshotMark) -> None:
        """Have it written in the next batch."""
        self._waiting.append(item)

    def begin(self) -> Batch:
        """Take everything that waits to be written; first what was refused, by itself: it is to be the very same."""
        if self._inbox.is_writing:
            raise RuntimeError("two would write the log at a time")
        if not self._refusals:
            self._in_write, self._waiting = self._waiting, []
            self._written = 0
        self._inbox.is_writing = True
        return self._in_write

    def write(self, batch: Batch) -> None:
        """Make `batch` durable with one fsync; what it raises is to be given to `end` or to `put_off`.

        Called again after DiskRefusedError it goes on where it was refused.
        """
        try:
            self._append(batch)
        except MemoryError as error:
            raise DiskRefusedError("no memory is left to write the log with; it is tried again") from error
        began = time.monotonic()
        self._store.wal.sync()
        self._syncs.note(time.monotonic() - began)

    def _append(self, batch: Batch) -> None:
        wal = self._store.wal
        for item in batch[self._written :] if self._written else batch:
            if isinstance(item, SnapshotMark):
                wal.mark_snapshot(item.index, item.term)
            else:
                if item.snapshot is not None:
                    # The file first, then the mark, then what follows it.
                    self._store.install_incoming(item.snapshot.index)
                    wal.mark_snapshot(item.snapshot.index, item.snapshot.term)
                if item.hard_state is not None or item.entries:
                    wal.append(item.hard_state, item.entries)
            self._written += 1

    def end(self) -> None:
        """The write returned; whoever wrote looks into the inbox after this, and not before."""
        self._require_begun()
        self._in_write = ()
        self._refusals = 0
        self._inbox.is_writing = False

    def put_off(self, most_ticks: int) -> None:
        """The write was refused: the same is tried again after a rest, longer each time."""
        self._require_begun()
        self._refusals += 1
        self._rest_ticks = min(1 << min(self._refusals - 1, 10), most_ticks)
        self._inbox.is_writing = False

    def _require_begun(self) -> None:
        if not self._inbox.is_writing:
            raise RuntimeError("a write ends that nobody began")

    def note_durable(self, token: int) -> None:
        """Everything up to `token` is on disk."""
        if token < self.durable_token:
            raise RuntimeError(f"batch {token} ends after batch {self.durable_token}, which came later")
        self.durable_token = token

    def clear(self) -> None:
        """Nothing more is written, nor said of it."""
        self._waiting.clear()
        self._refusals = 0
        self._held.clear()

    # -- messages that wait

    def hold(self, token: int, messages: Sequence[Message]) -> None:
        """Keep `messages` until `token` is durable."""
        self._held.append((token, messages))

    def take_released(self) -> Sequence[Message] | None:
        """The next of what was held that may be said by now; None if there is nothing."""
        if self._held and self._held[0][0] <= self.durable_token:
            return self._held.popleft()[1]
        return None

    def token_awaited_by(self, peer_id: int) -> int:
        """The token that must be durable before all that is held back for `peer_id` has left."""
        token = 0
        for item in (*self._in_write, *self._waiting):
            if isinstance(item, Ready) and any(m.to_id == peer_id for m in item.messages_after):
                token = item.token
        for held_token, messages in self._held:
            if any(m.to_id == peer_id for m in messages):
                token = max(token, held_token)
        return token

    # -- the disk

    def tick(self) -> None:
        """One tick of time passed."""
        if self._rest_ticks:
            self._rest_ticks -= 1

    @property
    def fsync_count(self) -> int:
        """How many there were since the start."""
        return self._store.wal.fsync_count

    def release(self, index: int) -> None:
        """Delete what the log need not keep up to `index`.  Slow.  Raises StorageError; the log goes on."""
        self._store.wal.release_before(index)

    def end_directory(self, why: str) -> None:
        """Have every later start of this directory refused.  Slow.  Raises OSError, StorageError."""
        self._store.end(why)

    def room(self) -> tuple[int | None, int]:
        """How many bytes the disk still takes, as far as that can be said, and those of a segment.  Slow."""
        return self._store.room(), self._store.segment_bytes

    def begin_prepare(self) -> bool:
        """Whether the log's next segment has to be made, and nobody was asked to."""
        if self._is_preparing or not self._store.wal.is_prepare_due:
            return False
        self._is_preparing = True
        return True

    def give_up_preparing(self) -> None:
        """Nobody does, so the next rotation will; from the one after that on somebody may again."""
        self._is_preparing = False
        self._store.wal.skip_preparing()

    def prepare(self) -> bool:
        """Do a piece of the work that the log's next rotation would wait for; whether to go on.  Slow."""
        self._is_preparing = self._store.wal.prepare()
        return self._is_preparing
