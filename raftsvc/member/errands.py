"""What the engine asks of its node, gathered in a turn: messages, log records, work for threads of their own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from raftsvc.core.messages import Message
from raftsvc.errors import StorageError
from raftsvc.logs import NOTHING
from raftsvc.member.elapsed import FastestClock
from raftsvc.member.engine import Engine
from raftsvc.member.handoff import Signal
from raftsvc.member.threads import Threads
from raftsvc.storage import StoredSnapshot
from raftsvc.transport import Peer

logger = logging.getLogger("raftsvc.node")

_PAUSE_SECONDS = 1.0


Said = tuple[int, str, BaseException | None, Mapping[str, object]]
"""What is to be logged: level, text, the error, and the fields of `raftsvc.logs`."""


class Errands:
    """The engine's `Runner`.  All under the lock of the node; what waits for others is done after it."""

    __slots__ = (
        "_changed",
        "_engine",
        "_lease_clock",
        "_members_changed",
        "_open_snapshot",
        "_threads",
        "elapsed_clocks",
        "feeders",
        "is_feed_due",
        "peers",
        "said",
        "unflushed",
    )

    def __init__(
        self,
        changed: threading.Condition,
        clocks: Callable[[], tuple[int, ...]],
        open_snapshot: Callable[[], StoredSnapshot],
        threads: Threads,
    ) -> None:
        """changed: notified of what those who wait for it may see.

        clocks: what leases and log time are measured by.
        """
        self._changed = changed
        self._lease_clock = FastestClock(clocks)
        self.elapsed_clocks = clocks
        self._open_snapshot = open_snapshot
        self._threads = threads
        self.peers: dict[int, Peer] = {}
        """Those to whom something can be said, by id; `Peers` sees to it that they are there."""
        self.unflushed: set[Peer] = set()
        self.said: list[Said] = []
        self.feeders: list[Signal] = []
        """Of the threads that send to attached processes."""
        self.is_feed_due = False

    def attach(self, engine: Engine, members_changed: Callable[[], None]) -> None:
        """Get to know who was made later; before the engine starts."""
        self._engine = engine
        self._members_changed = members_changed

    def post(self, peer_id: int, messages: Sequence[Message]) -> bool:
        """Put messages into their peer's outbox; a member that has none yet hears them when they are repeated."""
        peer = self.peers.get(peer_id)
        if peer is None:
            return True
        self.unflushed.add(peer)
        return peer.queue(messages)

    def send_snapshot(self, message: Message) -> bool:
        """Begin to transfer the stored snapshot."""
        peer = self.peers.get(message.to_id)
        return peer is not None and peer.send_snapshot(message, self._open_snapshot)

    def members_changed(self) -> None:
        """Have senders for those who are members now."""
        self._members_changed()

    def state_changed(self) -> None:
        """Wake those who wait for leader, configuration, session or health."""
        self._changed.notify_all()

    def feed_due(self) -> None:
        """Wake those who send to attached processes, at the end of the turn."""
        self.is_feed_due = True

    def now(self) -> int:
        """What leases are measured by."""
        return self._lease_clock.look()

    def glance(self) -> int:
        """The same, without the lock."""
        return self._lease_clock.glance()

    def say(
        self,
        level: int,
        message: str,
        error: BaseException | None = None,
        fields: Mapping[str, object] = NOTHING,
    ) -> None:
        """Log it at the end of the turn."""
        self.said.append((level, message, error, fields))

    # -- the log, on threads of their own

    def release_log(self, index: int) -> None:
        """Delete old segments."""
        self._start_job("release", partial(self._release, index))

    def _release(self, index: int) -> None:
        failure: StorageError | None = None
        try:
            self._engine.writes.release(index)
        except StorageError as error:
            failure = error
        with self._changed:  # what it has to say is said at the end of the next turn, within a tick
            self._engine.vigil.note_release(index, failure)

    def look_at_room(self) -> None:
        """See whether the disk is nearly full."""
        self._start_job("room", self._look_at_room)

    def _look_at_room(self) -> None:
        free_bytes, segment_bytes = self._engine.writes.room()
        with self._changed:
            self._engine.vigil.note_room(free_bytes, segment_bytes)

    def end_directory(self, why: str) -> None:
        """Have every later start refused."""
        self._start_job("end", partial(self._end, why))

    def _end(self, why: str) -> None:
        is_said = False
        while True:
            try:
                self._engine.writes.end_directory(why)
                return
            except (OSError, StorageError) as error:
                if not is_said:
                    what = "node %d: its directory cannot be marked as one not to use, which is tried again: %s"
                    logger.error(what, self._engine.node_id, error)
                is_said = True
            if self._threads.stopping.wait(_PAUSE_SECONDS):
                return

    def prepare_log(self) -> None:
        """Make the log's next segment."""
        if not self._start_job("prepare", self._prepare):
            self._engine.writes.give_up_preparing()

    def _prepare(self) -> None:
        while not self._threads.stopping.is_set() and self._engine.writes.prepare():
            pass

    def _start_job(self, name: str, run: Callable[[], None]) -> bool:
        """For what is not missed if there can be no more threads; whether there could."""
        try:
            self._threads.start(name, run)
        except RuntimeError as error:
            self.say(logging.ERROR, f"thread raftsvc-{name} cannot be started: {error}")
            return False
        return True
