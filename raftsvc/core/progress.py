"""What a leader knows of one follower, and what it may send it next.

A follower is probed with one message at a time until its log is known to agree,
then entries are streamed to it within a window of messages and bytes; one that
needs what was compacted away gets a snapshot and nothing else meanwhile.

The window is as large as leaves heartbeats quick: see pace.
"""

from __future__ import annotations

from enum import Enum

from raftsvc.core.pace import Window


class ProgressState(Enum):
    """How a leader sends to a follower."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"
    FORGETFUL = "forgetful"
    """It lacks what it acknowledged: its storage was lost, or put back to an older state."""


class Progress:
    """A follower's log as its leader sees it (figure 2, volatile state on leaders).

    match_index:   highest entry known to be durable there;
    match_round:   the latest round when that was heard.
    next_index:    the entry to send next; always above match_index.
    recent_active: whether it was heard from since the last quorum check;
    was_active:    in the period before that.
    round_acked:   the latest read round it confirmed (thesis section 6.4).
    promise:       the latest round that it accepted, and how long it gives no vote after it heard that (section 6.4.1).
    commit_sent:   the commit index that it was told last;
    awaited_index: of the last entry that it proposed, whose commit it waits for.
    leaving_index: where its removal stands in the log, or 0;
    window:        what is on its way to it.
    """

    __slots__ = (
        "awaited_index",
        "commit_sent",
        "leaving_index",
        "leaving_ticks",
        "match_index",
        "match_round",
        "next_index",
        "probe_sent",
        "promise",
        "recent_active",
        "round_acked",
        "snapshot_index",
        "state",
        "was_active",
        "window",
    )

    def __init__(self, next_index: int, start_bytes: int = 16 * 1024) -> None:
        self.window = Window(start_bytes)
        self.match_index = 0
        self.match_round = 0
        self.next_index = next_index
        self.state = ProgressState.PROBE
        self.probe_sent = False
        self.recent_active = False
        self.was_active = False
        self.round_acked = 0
        self.promise = 0, 0
        self.snapshot_index = 0
        self.commit_sent = 0
        self.awaited_index = 0
        self.leaving_index = 0
        self.leaving_ticks = 0

    @property
    def is_alive(self) -> bool:
        """Whether it was heard from within the last one to two election timeouts."""
        return self.recent_active or self.was_active

    @property
    def inflight_count(self) -> int:
        """How many messages with entries are on their way."""
        return self.window.count

    def room_bytes(self, max_messages: int, max_bytes: int) -> int:
        """How much may be sent in another message with entries now; 0: none."""
        if self.state is ProgressState.REPLICATE:
            return self.window.room_bytes(max_messages, max_bytes)
        return self.window.pace.size_bytes if self.state is ProgressState.PROBE and not self.probe_sent else 0

    def sent(self, last_index: int, size_bytes: int, tick: int) -> None:
        """A message with entries up to `last_index` is on its way."""
        if self.state is ProgressState.REPLICATE:
            self.next_index = last_index + 1
            self.window.sent(last_index, size_bytes, tick)
        else:
            self.probe_sent = True

    def accepted(self, match_index: int, latest_round: int, tick: int) -> bool:
        """The follower holds everything up to `match_index`, durably.  Returns whether that is news."""
        agreed = match_index >= self.next_index - 1
        is_news = match_index > self.match_index
        if is_news:
            self.match_index = match_index
            self.match_round = latest_round
            self.next_index = max(self.next_index, match_index + 1)
        self.window.acknowledged(match_index, tick)
        if self.state is ProgressState.PROBE and agreed:
            self.state = ProgressState.REPLICATE
            self.next_index = self.match_index + 1
        # An answer that settles nothing is no reason to ask again at once: the follower's
        # disk may be slow, and the next heartbeat asks.
        return is_news

    def rejected(self, refused_index: int, agree_at: int) -> bool:
        """The follower's log differs at `refused_index`; it may agree at `agree_at`.

        Returns False for the late answer to a message whose outcome is known
        already: it must not move next_index back, least of all below the match.
        """
        if self.state is ProgressState.REPLICATE:
            if refused_index <= self.match_index:
                return False
        elif self.state is ProgressState.SNAPSHOT or refused_index != self.next_index - 1:
            return False
        self.probe_from(min(refused_index, agree_at + 1))
        return True

    def lacks(self, refused_index: int, offset: int) -> bool:
        """Whether it denies, being probed, what is compacted away up to `offset`: then it is to be sent that."""
        is_lacking = self.state is ProgressState.PROBE and self.match_index < refused_index <= offset
        if is_lacking and self.next_index <= offset:
            self.probe_sent = False
            return True
        return False

    def has_forgotten(self, refused_index: int, round_number: int) -> bool:
        """Whether it denies, to what was asked after it had acknowledged it, what it acknowledged."""
        return refused_index <= self.match_index and round_number > self.match_round

    def disown(self) -> None:
        """Count nothing of it, for as long as this leader leads: not what it says from here on, nor what it said."""
        self.probe_from(self.next_index)
        self.state = ProgressState.FORGETFUL
        self.match_index = self.round_acked = 0
        self.promise = 0, 0
        self.recent_active = self.was_active = False

    def probe_from(self, next_index: int) -> None:
        """Ask again where the logs agree, from `next_index` on."""
        self.state = ProgressState.PROBE
        self.next_index = max(next_index, self.match_index + 1)
        self.probe_sent = False
        self.window.clear()

    def needs_after(self, index: int) -> int:
        """After which entry it needs all because of the last snapshot that it was sent; `index`: of none before.

        What was written while the snapshot was on its way follows it, and may take as long again: as long as it is
        heard from, it is not to need another one meanwhile.
        """
        if self.state is ProgressState.SNAPSHOT:
            return min(index, self.snapshot_index)
        if self.snapshot_index and self.is_alive and self.state is not ProgressState.FORGETFUL:
            if self.match_index < index:
                return max(self.snapshot_index, self.match_index)
            self.snapshot_index = 0  # it has come so far
        return index

    def await_snapshot(self, snapshot_index: int) -> None:
        """A snapshot is on its way; send nothing else."""
        self.probe_from(self.next_index)
        self.state = ProgressState.SNAPSHOT
        self.snapshot_index = snapshot_index
