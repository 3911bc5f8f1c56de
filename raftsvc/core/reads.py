"""Linearizable reads by a round of heartbeats (thesis 6.4; R11)."""

from __future__ import annotations

from typing import Final

from raftsvc.core.messages import Message, MessageKind
from raftsvc.core.replication import Replication
from raftsvc.core.server import ReadState, Server

MOST_WAITING: Final = 8
"""Requests for each member that wait for the next round; a node asks again now and then."""


class ReadRounds:
    """The reads that a leader was asked for: those that a round is under way for, and those that came since."""

    __slots__ = ("_asked", "_asked_reads", "_index", "_replication", "_server", "waiting")

    def __init__(self, server: Server, replication: Replication) -> None:
        self._server = server
        self._replication = replication
        self._asked = 0
        self._index = 0
        self._asked_reads: list[tuple[int, int]] = []
        self.waiting: list[tuple[int, int]] = []
        """Who asked since, and with which context."""

    def add(self, origin: int, context: int) -> None:
        """Have the read that node `origin` asked for with `context` answered."""
        self.waiting.append((origin, context))
        if len(self.waiting) > MOST_WAITING * len(self._server.config.members):
            # The answer to the last request of a node serves all who wait there.
            self.waiting = list(dict(self.waiting).items())
        if not self._asked_reads:
            self.start()

    def start(self) -> None:
        """Ask all voters whether we still lead, on behalf of every read that waits."""
        if not self.waiting or not self._server.has_own_term_commit:
            return
        self._asked_reads, self.waiting = self.waiting, []
        self._index = self._server.log.commit_index
        self._asked = self._replication.next_round()
        if not self.finish():
            self._replication.broadcast_heartbeat()

    def finish(self) -> bool:
        """Answer the round's reads once a majority of voters, learners not counted, confirmed it."""
        if not self._asked_reads:
            return False
        server = self._server
        progress = self._replication.progress
        config = server.config
        confirmed = sum(i == server.node_id or progress[i].round_acked >= self._asked for i in config.voters)
        if confirmed < config.quorum():
            return False
        reads, self._asked_reads = self._asked_reads, []
        for origin, context in reads:
            self.answer(origin, context, self._index)
        self.start()
        return True

    def answer(self, origin: int, context: int, index: int) -> None:
        """Tell `origin` the index of its read."""
        server = self._server
        if origin == server.node_id:
            server.output.read_states.append(ReadState(context, index))
            return
        server.send(Message(MessageKind.READ_INDEX_REPLY, origin, index=index, context=context))
        progress = self._replication.progress.get(origin)
        if progress is not None and progress.commit_sent < index:
            self._replication.send_heartbeat(origin, progress)  # it waits until that is applied
