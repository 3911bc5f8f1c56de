"""Replication: what each other member has, and what it is sent next (5.3, 7).

A leader's; it decides nothing but that.
"""

from __future__ import annotations

from collections.abc import Sequence

from raftsvc.core.messages import Entry, Message, MessageKind, index_of
from raftsvc.core.progress import Progress, ProgressState
from raftsvc.core.server import Server


class Replication:
    """The progress of each other member, and the messages that further it.

    round: the number of the latest read round (R11), which every append carries and every
           answer repeats.  Rounds count up within a term, and replies of other terms are
           dropped: a late answer can confirm only what was asked before it was given.
    """

    __slots__ = ("_server", "_ticks", "progress", "round")

    def __init__(self, server: Server) -> None:
        self._server = server
        self.round = 0
        self._ticks = 0
        self.progress: dict[int, Progress] = {}
        self.adopt_members()

    def adopt_members(self) -> None:
        """Begin with whom the configuration in force added, and note whom it left out (R8, R10)."""
        server = self._server
        config = server.config
        for i in config.members:
            if i != server.node_id and i not in self.progress:
                self.progress[i] = Progress(server.log.last_index + 1, server.settings.start_bytes)
        for i, progress in self.progress.items():
            if i not in config.members and not progress.leaving_index:
                progress.leaving_index = server.log.configs.latest_index

    def forget_leavers(self) -> None:
        """A tick passed.  A removed member is sent the commit of its removal, for a bounded time (R10)."""
        self._ticks += 1
        for i, progress in list(self.progress.items()):
            if progress.leaving_index and progress.leaving_index <= self._server.log.commit_index:
                progress.leaving_ticks += 1
                if progress.leaving_ticks > 3 * self._server.settings.election_ticks:
                    del self.progress[i]

    def next_round(self) -> int:
        """Begin a round: what is sent from here on carries its number."""
        self.round += 1
        return self.round

    def broadcast_entries(self) -> None:
        """Send everybody what their windows have room for."""
        for i, progress in self.progress.items():
            self.send_entries(i, progress)

    def broadcast_heartbeat(self) -> None:
        """Send everybody a heartbeat."""
        for i, progress in self.progress.items():
            self.send_heartbeat(i, progress)

    def pulse(self) -> None:
        """Heartbeats are about to leave, and how soon they are answered says how much may be sent beside them."""
        number = self.next_round()
        for progress in self.progress.values():
            progress.window.pulse(number, self._ticks)

    def hear_round(self, progress: Progress, number: int) -> None:
        """A follower answered what was sent in round `number`, later than any that it answered before."""
        progress.round_acked = number
        progress.window.pulse_answered(number, self._ticks)

    def hear_accepted(self, progress: Progress, match_index: int) -> bool:
        """A follower holds everything up to `match_index`; whether that is news."""
        was_probed = progress.state is ProgressState.PROBE
        is_news = progress.accepted(match_index, self.round, self._ticks)
        if was_probed and progress.next_index <= self._server.log.offset:
            # It has not said yet whether it has what is compacted away, or its disk has not: a heartbeat asks again.
            progress.probe_from(progress.next_index)
            progress.probe_sent = True
        return is_news

    def send_entries(self, peer: int, progress: Progress) -> None:
        """Send what the window has room for."""
        settings = self._server.settings
        log = self._server.log
        last_index = log.last_index
        if progress.leaving_index > log.commit_index:
            last_index = progress.leaving_index - 1  # R10
        while progress.next_index <= last_index or progress.state is not ProgressState.REPLICATE:
            room = progress.room_bytes(settings.max_inflight_messages, settings.max_inflight_bytes)
            if not room:
                break
            prev = progress.next_index - 1
            prev_term = log.term_at(prev)
            if prev_term is None or prev < log.offset:
                self._send_snapshot(peer, progress)
                return
            entries = log.entries_from(prev + 1, min(room, settings.max_message_bytes))
            if len(entries) > last_index - prev:
                entries = entries[: max(0, last_index - prev)]
            self._send_append(peer, progress, prev, prev_term, entries)
            last = index_of(entries[-1]) if entries else prev
            progress.sent(last, sum(map(len, entries)), self._ticks)
        if progress.state is ProgressState.REPLICATE and progress.next_index <= last_index:
            progress.window.pace.note_short()

    def send_heartbeat(self, peer: int, progress: Progress) -> None:
        """An append without entries: asserts leadership, carries commit and read round, finds lost messages."""
        if progress.state is ProgressState.FORGETFUL:
            return
        log = self._server.log
        prev = progress.next_index - 1
        prev_term = log.term_at(prev)
        if prev < log.offset and progress.state is ProgressState.REPLICATE:
            # What comes next is compacted away, so only a snapshot helps.  Waiting for
            # room in the window could be for ever: this heartbeat finds no lost message.
            self._send_snapshot(peer, progress)
        if progress.state is ProgressState.SNAPSHOT:
            # Every log agrees before its first entry, so this is accepted and proves nothing.
            prev = prev_term = 0
        elif prev_term is None or prev < log.offset:
            # Asked for what is compacted away it could only say no.  It may have that: answers were lost.  If it has
            # the entry that the log here begins after, it has all before it (5.3), and entries will do.
            prev, prev_term = log.offset, log.offset_term
        self._send_append(peer, progress, prev, prev_term, ())

    def _send_append(self, peer: int, progress: Progress, prev: int, prev_term: int, entries: Sequence[Entry]) -> None:
        commit_index = self._server.log.commit_index
        progress.commit_sent = commit_index
        self._server.send(
            Message(
                MessageKind.APPEND,
                peer,
                index=prev,
                log_term=prev_term,
                commit=commit_index,
                context=self.round,
                entries=entries,
            )
        )

    def _send_snapshot(self, peer: int, progress: Progress) -> None:
        """Announce that the peer needs the snapshot; the caller moves the data and reports."""
        snapshot = self._server.log.snapshot
        progress.await_snapshot(snapshot.index)
        self._server.send(
            Message(
                MessageKind.SNAPSHOT,
                peer,
                index=snapshot.index,
                log_term=snapshot.term,
                hint=snapshot.time_ms,
                payload=snapshot.config.encode(),
            )
        )

    def report_unreachable(self, peer: int) -> None:
        """Messages to `peer` may have been lost: ask where its log stands before streaming more."""
        progress = self.progress.get(peer)
        if progress is not None and progress.state is ProgressState.REPLICATE:
            progress.probe_from(progress.match_index + 1)
            progress.probe_sent = True  # the next heartbeat asks
            progress.window.pace.slow_down()

    def report_snapshot(self, peer: int, succeeded: bool) -> None:
        """The transfer of a snapshot to `peer` ended."""
        progress = self.progress.get(peer)
        if progress is not None and progress.state is ProgressState.SNAPSHOT:
            progress.probe_from(progress.snapshot_index + 1 if succeeded else progress.match_index + 1)
            progress.probe_sent = not succeeded  # after a failure wait for a sign of life
