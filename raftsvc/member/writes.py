"""The write queue: what waits to be durable, what is being written, and what may be said once it is.

One batch is written at a time, with one fsync, by whoever the runner lets; what comes up
meanwhile is the next batch.  Messages that promise what is not yet durable are held back
until it is.

`write`, `release` and `prepare` touch the disk and are called without the lock; `begin`,
`end` and all else under it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from raftsvc.core.messages import Message
from raftsvc.core.raft import Ready
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
        "_store",
        "_waiting",
        "_writing_ticks",
        "durable_token",
    )

    def __init__(self, store: Store, inbox: Inbox, health: Health) -> None:
        self._store = store
        self._health = health
        self._inbox = inbox
        self._waiting: list[Ready | SnapshotMark] = []
        self._in_write: Batch = ()
        self._writing_ticks = 0
        self._held: deque[tuple[int, Sequence[Message]]] = deque()
        self._is_preparing = False  # the runner was asked to, and has not come to the end
        self.durable_token = 0
        """The core's token up to which everything is durable."""

    @property
    def is_due(self) -> bool:
        """Whether something waits to be written, and nothing is being written."""
        return bool(self._waiting) and not self._inbox.is_writing and not self._health.is_over

    def add(self, item: Ready | SnapshotMark) -> None:
        """Have it written in the next batch."""
        self._waiting.append(item)

    def begin(self) -> Batch:
        """Take everything that waits to be written."""
        assert not self._inbox.is_writing, "one writer at a time"
        self._in_write, self._waiting = self._waiting, []
        self._inbox.is_writing = True
        self._writing_ticks = 0
        return self._in_write

    def write(self, batch: Batch) -> None:
        """Make `batch` durable with one fsync; what it raises is to be given to `end`."""
        wal = self._store.wal
        for item in batch:
            if isinstance(item, SnapshotMark):
                wal.mark_snapshot(item.index, item.term)
                continue
            if item.snapshot is not None:
                # The file first, then the mark, then what follows it.
                self._store.install_incoming(item.snapshot.index)
                wal.mark_snapshot(item.snapshot.index, item.snapshot.term)
            if item.hard_state is not None or item.entries:
                wal.append(item.hard_state, item.entries)
        wal.sync()

    def end(self) -> None:
        """The write returned; whoever wrote looks into the inbox after this, and not before."""
        assert self._inbox.is_writing, "who ends has begun"
        self._in_write = ()
        self._inbox.is_writing = False

    def note_durable(self, token: int) -> None:
        """Everything up to `token` is on disk."""
        assert token >= self.durable_token, "batches are written in order"
        self.durable_token = token

    def clear(self) -> None:
        """Nothing more is written, nor said of it."""
        self._waiting.clear()
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

    def count_tick(self) -> int:
        """A tick passed; how many of them the present write has taken, 0 if there is none."""
        if self._inbox.is_writing:
            self._writing_ticks += 1
            return self._writing_ticks
        return 0

    @property
    def fsync_count(self) -> int:
        """How many there were since the start."""
        return self._store.wal.fsync_count

    def release(self, index: int) -> None:
        """Delete what the log need not keep up to `index`.  Slow.  Raises StorageError; the log goes on."""
        self._store.wal.release_before(index)

    def begin_prepare(self) -> bool:
        """Whether the log's next segment has to be made, and nobody was asked to."""
        if self._is_preparing or not self._store.wal.is_prepare_due:
            return False
        self._is_preparing = True
        return True

    def prepare(self) -> bool:
        """Do a piece of the work that the log's next rotation would wait for; whether to go on.  Slow."""
        self._is_preparing = self._store.wal.prepare()
        return self._is_preparing
