"""The Raft algorithm as a deterministic object.

No threads, clocks, sockets, files or global randomness.  Inputs are method
calls (`tick`, `step`, `propose`, ...); the output is collected by `ready` as one
batch of work, and `persisted` says when a batch's writes are durable.  One call
at a time; the caller holds a lock over the object.

The rules as this project implements them.  Sections are of the paper (Ongaro
and Ousterhout, USENIX ATC 2014), those marked T of the thesis (Ongaro 2014).

 R1  A node votes once per term, and only for a log at least as up to date as its
     own (5.2, 5.4.1).  The vote leaves after it is durable, its own vote for
     itself included.
 R2  A node asks for pre-votes before it raises its term (T 9.6), so that one that
     cannot win disturbs nobody.
 R3  A node that heard from a leader within an election timeout gives no vote
     (6; T 4.2.3), unless that leader itself asked for the election.  One that
     restarted may have heard one just before, and waits as long.
 R4  A leader that does not hear from a majority within an election timeout steps
     down (T 6.2).
 R5  A follower accepts entries only if its log holds the entry before them, and
     truncates only where an entry really differs (5.3).  Its reply promises no
     more than this check verified and its disk holds.
 R6  An entry is committed once a majority of voters holds it durably, the leader's
     own copy counted only when durable, and only if it is of the leader's own
     term; older ones are committed with it (5.4.2, figure 8).
 R7  A new leader first appends an empty entry of its own term (8).
 R8  A configuration is in force from the moment its entry is appended (T 4.1).  One
     change at a time, and only after an entry of the leader's own term committed.
 R9  New members are learners, who count for nothing, until they have caught up
     (T 4.2.1).
 R10 Nobody holds its own removal before that is committed: with the longer log it
     would refuse its vote to those who need it, and by its own configuration
     could not lead itself, though a majority lives.  So a leader that is to be
     removed hands over first (T 4.2.2, and 3.10), and who is removed is sent the
     entry once it is committed, for a bounded time; then it takes no part.
 R11 A read is served at the commit index that the leader had when it asked for a
     round of heartbeats that a majority answered, in a term in which it has
     committed an entry (T 6.4).  No clock is trusted for that.
 R12 A leader that hands over refuses proposals until the target took over or an
     election timeout passed (T 3.10).
 R13 A snapshot replaces a log only if it is ahead of what is committed there and
     the log does not hold its last entry (7).
 R14 Where the caller allows leases, a leader serves reads without a round while a
     majority of voters keeps the promise of R3 to it (T 6.4.1).  A promise counts
     from when the message that it answers was sent, for less than its giver counts
     it, by a clock of the caller's that never stands still; none counts in a term
     in which somebody was asked to take over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, IntEnum
from random import Random
from typing import NamedTuple

from raftsvc.core.log import Log, SnapshotMeta, ViolationError
from raftsvc.core.membership import ConfChange, Configuration, ConfOp, InvalidChangeError
from raftsvc.core.messages import (
    NO_NODE,
    Entry,
    EntryKind,
    HardState,
    MalformedError,
    Message,
    MessageKind,
    data_of,
    index_of,
    kind_of,
    make_entry,
    place_of,
)
from raftsvc.core.progress import Progress, ProgressState

__all__ = [
    "Log",
    "ProposalRefused",
    "Raft",
    "ReadState",
    "Ready",
    "Refusal",
    "Role",
    "Settings",
    "SnapshotMeta",
    "ViolationError",
]


class Role(Enum):
    """What a node is at the moment."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class Refusal(IntEnum):
    """Why a proposal was not appended."""

    NO_LEADER = 1
    QUOTA = 2  # too much is uncommitted already
    TRANSFERRING = 3
    CHANGE_PENDING = 4  # another membership change, or no own-term commit yet
    INVALID_CHANGE = 5
    REMOVED = 6
    WOULD_LOSE_QUORUM = 7  # the voters that remain are not a live majority


class ProposalRefused(Exception):
    """The proposal was not appended, here or anywhere."""

    def __init__(self, refusal: Refusal, detail: str = "") -> None:
        super().__init__(f"{refusal.name.lower()} {detail}".strip())
        self.refusal = refusal
        self.detail = detail


class Settings(NamedTuple):
    """How a node behaves.  Ticks are the caller's; sizes are of framed entries.

    promise_ns:  how long, at the least, this node gives no vote after it heard a leader (R3);
                 0 promises nothing.
    uses_leases: whether reads may rely on such promises, and so on clocks (R14).
    """

    node_id: int
    random: Random
    election_ticks: int = 10
    heartbeat_ticks: int = 1
    max_message_bytes: int = 256 * 1024
    max_inflight_messages: int = 64
    max_inflight_bytes: int = 4 * 1024 * 1024
    max_uncommitted_bytes: int = 64 * 1024 * 1024
    max_delivery_bytes: int = 4 * 1024 * 1024
    trailing_entries: int = 10_000
    trailing_bytes: int = 16 * 1024 * 1024
    promise_ns: int = 0
    uses_leases: bool = False


@dataclass(frozen=True, slots=True)
class ReadState:
    """A read asked for with `context` sees every acknowledged write once `index` is applied."""

    context: int
    index: int


class Ready(NamedTuple):
    """One batch of work for the caller, in this order of duties.

    `messages` may leave at once.  `snapshot`, then `hard_state` and `entries` are
    to be made durable, then `persisted(token)` called; batches are written in
    the order of their tokens.  `messages_after` may leave once the writes of
    every token up to this one are durable.  `committed` is to be applied, after
    the snapshot if there is one.
    """

    token: int
    must_persist: bool
    hard_state: HardState | None
    entries: Sequence[Entry]
    snapshot: SnapshotMeta | None
    messages: Sequence[Message]
    messages_after: Sequence[Message]
    committed: Sequence[Entry]
    read_states: Sequence[ReadState]


_VOTE_OF = {MessageKind.PRE_VOTE: MessageKind.PRE_VOTE_REPLY, MessageKind.VOTE: MessageKind.VOTE_REPLY}
_REQUESTS_REMEMBERED = 1024
_TRANSFER = 1  # context of a VOTE whose candidate was asked to take over
_LEASE_PERCENT = 90  # of a promise: what the clocks of two nodes may differ by in rate
_NO_LEASE = (0, 0)
_FOR_EVER = 2**63


class Raft:
    """One node's part in Raft."""

    def __init__(
        self,
        settings: Settings,
        hard_state: HardState | None = None,
        snapshot: SnapshotMeta | None = None,
        entries: Sequence[Entry] = (),
    ) -> None:
        """A follower with what storage recovered; everything given counts as durable."""
        hard_state = hard_state or HardState()
        self.settings = settings
        self.node_id = settings.node_id
        self.log = Log(snapshot or SnapshotMeta(), entries, hard_state.commit)
        self.term = hard_state.term
        self.vote = hard_state.vote
        self.role = Role.FOLLOWER
        self.leader_id = NO_NODE
        self.is_removed = False
        self.progress: dict[int, Progress] = {}
        self.transfer_target = NO_NODE
        self.now = 0
        """The caller's clock, in nanoseconds.  With leases (R14) it is set before each input, and
        before a read after the read came."""
        self._lease = _NO_LEASE  # from when until when, by that clock, nobody else can lead

        self._can_lead = True
        self._votes: dict[int, bool] = {}
        self._election_elapsed = 0
        # Ticks since a leader was heard.  A node that was never in a term never promised anything.
        self._leader_elapsed = 0 if self.term else settings.election_ticks
        self._heartbeat_elapsed = 0
        self._quorum_elapsed = 0
        self._transfer_elapsed = 0
        self._timeout_ticks = 0
        self._commit_at_heartbeat = 0
        self._uncommitted_bytes = 0
        self._requests_seen: dict[int, dict[int, None]] = {}  # the last of each member, by context

        self._read_round = 0
        self._lease_rounds: deque[tuple[int, int]] = deque(maxlen=settings.election_ticks)  # and when each was sent
        self._was_handed_over = False  # in this term
        self._last_target = NO_NODE  # who was asked to take over last, in this term
        self._round_asked = 0
        self._round_index = 0
        self._round_reads: list[tuple[int, int]] = []
        self._reads_waiting: list[tuple[int, int]] = []

        self._token = 0
        self._hard_state_dirty = False
        self._hard_state_token = 0
        self._persisted_token = 0
        self._commit_written = self.log.commit_index
        self._snapshot_to_persist: SnapshotMeta | None = None
        self._messages: list[Message] = []
        self._messages_after: list[Message] = []
        self._read_states: list[ReadState] = []
        self._reset_election_timer()
        self._notice_removal()

    # -- what a caller may ask

    @property
    def config(self) -> Configuration:
        """The configuration in force (R8)."""
        return self.log.config

    @property
    def committed_config(self) -> Configuration:
        """The latest configuration that is committed: it can never be undone."""
        return self.log.config_at(self.log.commit_index)

    @property
    def is_promotable(self) -> bool:
        """Whether this node may ask for votes: a voter, as far as it knows, and fit to lead."""
        # The configuration is the one appended, not the one applied, so there is
        # no committed change that a campaign could overlook.
        return self.node_id in self.config.voters and self._can_lead and not self.is_removed

    @property
    def has_own_term_commit(self) -> bool:
        """Whether the leader has committed an entry of its own term (R8, R11)."""
        return self.log.term_at(self.log.commit_index) == self.term

    @property
    def term_is_durable(self) -> bool:
        """Whether the term and the vote in force are on disk: nothing is answered before (figure 2)."""
        return not self._hard_state_dirty and self._hard_state_token <= self._persisted_token

    # -- time

    def tick(self) -> None:
        """One tick of time passed."""
        if self.is_removed:
            return
        if self.role is Role.LEADER:
            self._tick_leader()
            return
        self._election_elapsed += 1
        self._leader_elapsed += 1
        if self._election_elapsed >= self._timeout_ticks and self.is_promotable:
            self.campaign()

    def _tick_leader(self) -> None:
        settings = self.settings
        self._quorum_elapsed += 1
        if self._quorum_elapsed >= settings.election_ticks:
            self._quorum_elapsed = 0
            active = sum(i == self.node_id or self.progress[i].recent_active for i in self.config.voters)
            for progress in self.progress.values():
                progress.was_active, progress.recent_active = progress.recent_active, False
            if active < self.config.quorum():
                self._become_follower(self.term, NO_NODE)  # R4
                return
        if self.transfer_target:
            self._transfer_elapsed += 1
            if self._transfer_elapsed >= settings.election_ticks:
                self.transfer_target = NO_NODE  # R12
        self._forget_leavers()
        self._heartbeat_elapsed += 1
        if self._heartbeat_elapsed >= settings.heartbeat_ticks:
            self._heartbeat_elapsed = 0
            self._promote_learners()
            self._commit_at_heartbeat = self.log.commit_index
            if settings.uses_leases:
                self._read_round += 1
                self._lease_rounds.append((self._read_round, self.now))
                self._renew_lease()
            self._broadcast_heartbeat()

    def _reset_election_timer(self) -> None:
        """Draw a new timeout for each attempt, lest two candidates split votes for ever (5.2)."""
        self._election_elapsed = 0
        ticks = self.settings.election_ticks
        self._timeout_ticks = ticks + self.settings.random.randrange(ticks)

    # -- elections

    def campaign(self) -> None:
        """Ask for pre-votes now, as if the election timeout had passed."""
        if self.role is not Role.LEADER and self.is_promotable:
            self._ask_for_votes(MessageKind.PRE_VOTE, 0)

    def _ask_for_votes(self, kind: MessageKind, context: int) -> None:
        self._votes = {}
        self.leader_id = NO_NODE
        self._reset_election_timer()
        if kind is MessageKind.PRE_VOTE:
            self.role = Role.PRE_CANDIDATE
            term = self.term + 1
        else:
            self.role = Role.CANDIDATE
            self.term = term = self.term + 1
            self.vote = self.node_id
            self._hard_state_dirty = True
        for peer in sorted(self.config.voters - {self.node_id}):
            request = Message(
                kind, peer, term=term, index=self.log.last_index, log_term=self.log.last_term, context=context
            )
            self._send(request, after=kind is MessageKind.VOTE)
        if kind is MessageKind.PRE_VOTE:
            self._record_vote(self.node_id, True)
        # A candidate's vote for itself counts once it is durable (R1): see persisted.

    def _record_vote(self, voter: int, granted: bool) -> None:
        """Count one answer; only voters count, and each once."""
        self._votes.setdefault(voter, granted)
        voters = self.config.voters
        quorum = self.config.quorum()
        if sum(self._votes.get(i) is True for i in voters) >= quorum:
            if self.role is Role.PRE_CANDIDATE:
                self._ask_for_votes(MessageKind.VOTE, 0)
            else:
                self._become_leader()
        elif sum(self._votes.get(i) is False for i in voters) >= quorum:
            self._become_follower(self.term, NO_NODE)

    def _become_follower(self, term: int, leader_id: int) -> None:
        if term > self.term:
            self.term = term
            self.vote = NO_NODE
            self._hard_state_dirty = True
        if self.role is not Role.FOLLOWER or leader_id:
            # A follower's timer runs on: a candidate that cannot win must not
            # postpone the campaign of one that can (5.2).
            self._reset_election_timer()
        self.role = Role.FOLLOWER
        self.leader_id = leader_id
        self.progress = {}
        self._lease = _NO_LEASE
        self.transfer_target = NO_NODE
        self._votes = {}
        # Reads of a deposed leader are never answered; whoever asked asks again.
        self._round_reads = []
        self._reads_waiting = []

    def _become_leader(self) -> None:
        log = self.log
        self.role = Role.LEADER
        self.leader_id = self.node_id
        self._votes = {}
        self._leader_elapsed = self.settings.election_ticks  # none but itself, while it leads
        self._lease_rounds.clear()
        self._lease = _NO_LEASE
        self._was_handed_over = False
        self._last_target = NO_NODE
        self._heartbeat_elapsed = self._quorum_elapsed = 0
        self._commit_at_heartbeat = log.commit_index
        self._uncommitted_bytes = log.bytes_between(log.commit_index, log.last_index)
        self.progress = {i: Progress(log.last_index + 1) for i in self.config.members if i != self.node_id}
        # A change in the uncommitted tail is known without a guess, for the log
        # keeps every configuration with its index: see `_change_pending`.
        self._append(((EntryKind.EMPTY, b""),))  # R7
        self._broadcast_append()

    def set_fit_to_lead(self, is_fit: bool) -> None:
        """Tell whether this node's disk and State work; if not it neither leads nor campaigns."""
        self._can_lead = is_fit
        if not is_fit and self.role is not Role.FOLLOWER:
            self._become_follower(self.term, NO_NODE)

    # -- messages

    def step(self, message: Message) -> None:
        """Take one message from a peer.  Messages may come late, twice, or from a stranger.

        Raises ViolationError if it contradicts what is committed here.
        """
        m = message
        if self.is_removed or m.to_id != self.node_id:
            return
        if self.committed_config.was_removed(m.from_id) and not (
            m.kind is MessageKind.APPEND_REPLY and m.term == self.term and m.from_id in self.progress
        ):
            # A removed member's terms and votes are worth nothing, for ids are never reused.
            # Where its log stands is, until it knows of its removal (R10).
            return
        if m.kind in _TERMLESS:
            self._step_termless(m)
            return
        if m.term > self.term:
            if m.kind in _VOTE_OF and m.context != _TRANSFER and self._hears_leader():
                return  # R3
            if m.kind is MessageKind.PRE_VOTE or (m.kind is MessageKind.PRE_VOTE_REPLY and not m.reject):
                pass  # a pre-vote is about a term that nobody has entered yet (R2)
            else:
                self._become_follower(m.term, NO_NODE)
        elif m.term < self.term:
            self._answer_stale(m)
            return
        if m.kind in (MessageKind.APPEND, MessageKind.SNAPSHOT):
            self._follow(m)
        elif m.kind in _VOTE_OF:
            self._judge_candidate(m)
        elif m.kind is MessageKind.APPEND_REPLY:
            if self.role is Role.LEADER:
                self._hear_follower(m)
        elif m.kind is MessageKind.PRE_VOTE_REPLY:
            if self.role is Role.PRE_CANDIDATE and (m.reject or m.term == self.term + 1):
                self._record_vote(m.from_id, not m.reject)
        elif m.kind is MessageKind.VOTE_REPLY:
            if self.role is Role.CANDIDATE:
                self._record_vote(m.from_id, not m.reject)
        elif self.role is Role.FOLLOWER and m.from_id == self.leader_id and self.is_promotable:
            assert m.kind is MessageKind.TIMEOUT_NOW, "the last of the closed set"
            self._ask_for_votes(MessageKind.VOTE, _TRANSFER)

    def _hears_leader(self) -> bool:
        """Whether a leader was heard from within the election timeout; a leader hears itself (R3, R4).

        Which one, and in which term, is no matter: a newer term that was heard of since
        ends no promise, for that leader may not have heard of it (R14).
        """
        return self.role is Role.LEADER or self._leader_elapsed < self.settings.election_ticks

    def _answer_stale(self, m: Message) -> None:
        """Let a sender of an older term know ours.

        A leader so told steps down; without that, one node that is ahead in term
        but behind in log could neither follow nor be elected under R2 and R3.
        """
        if m.kind in (MessageKind.APPEND, MessageKind.SNAPSHOT):
            self._send(Message(MessageKind.APPEND_REPLY, m.from_id, reject=True), after=True)
        elif m.kind in _VOTE_OF:
            self._send(Message(_VOTE_OF[m.kind], m.from_id, reject=True), after=True)

    def _judge_candidate(self, m: Message) -> None:
        """Answer a request for a vote or pre-vote (R1).

        A learner is asked only by a candidate whose configuration made it a voter,
        of which it may not have heard, so it answers like any other node.
        """
        is_real = m.kind is MessageKind.VOTE
        is_bound = m.context != _TRANSFER and self._hears_leader()  # R3
        is_free = (
            self.vote == m.from_id
            or (self.vote == NO_NODE and self.leader_id == NO_NODE and not is_bound)
            or (not is_real and m.term > self.term)
        )
        reply = Message(_VOTE_OF[m.kind], m.from_id)
        if is_free and self.log.is_up_to_date(m.index, m.log_term):
            if is_real:
                self._election_elapsed = 0  # only a vote given postpones our own campaign
                if self.vote != m.from_id:
                    self.vote = m.from_id
                    self._hard_state_dirty = True
            reply.term = m.term
        else:
            reply.reject = True
        self._send(reply, after=True)

    # -- following

    def _follow(self, m: Message) -> None:
        """Take entries, a heartbeat or a snapshot from the leader of this term."""
        if self.role is Role.LEADER:
            raise ViolationError(f"nodes {self.node_id} and {m.from_id} both lead term {self.term}")
        if self.role is not Role.FOLLOWER:
            self._become_follower(self.term, m.from_id)
        self.leader_id = m.from_id
        self._election_elapsed = self._leader_elapsed = 0
        if m.kind is MessageKind.APPEND:
            self._follow_append(m)
        else:
            self._follow_snapshot(m)

    def _follow_append(self, m: Message) -> None:
        log = self.log
        if m.index < log.commit_index:
            # What is committed here the leader holds too (leader completeness, 5.4.3).
            entries = m.entries[log.commit_index - m.index :]
            verified = log.commit_index
        elif log.holds(m.index, m.log_term):
            entries = m.entries
            verified = m.index
        else:
            hint, hint_term = log.agreement_hint(m.index, m.log_term)
            self._send(
                Message(
                    MessageKind.APPEND_REPLY,
                    m.from_id,
                    index=m.index,
                    log_term=hint_term,
                    commit=log.commit_index,
                    context=m.context,
                    reject=True,
                    hint=hint,
                ),
                after=not self.term_is_durable,
            )
            return
        if entries:
            log.merge(entries)
            verified = index_of(entries[-1])
        # Beyond `verified` the log may differ from the leader's (figure 2, AppendEntries, step 5).
        self._advance_commit(min(m.commit, verified))
        # Also of entries that were here already: an answer that claims less than the
        # leader asks would only make it ask again.
        self._accept(m, verified, may_wait=bool(m.entries))

    def _accept(self, m: Message, match_index: int, may_wait: bool) -> None:
        """Acknowledge what is verified: after its write, or at once what is durable of it (R5)."""
        if not may_wait:
            match_index = min(match_index, self.log.stable_index)
        self._send(
            Message(
                MessageKind.APPEND_REPLY,
                m.from_id,
                index=match_index,
                commit=self.log.commit_index,
                context=m.context,
                hint=self.settings.promise_ns,
            ),
            after=may_wait or not self.term_is_durable,
        )
        self._notice_removal()

    def _follow_snapshot(self, m: Message) -> None:
        """Take the place of a log that ends too early (R13)."""
        log = self.log
        if m.index <= log.commit_index:
            self._accept(m, log.commit_index, may_wait=False)
            return
        if log.holds(m.index, m.log_term):
            self._advance_commit(m.index)
            self._accept(m, m.index, may_wait=True)
            return
        try:
            config = Configuration.decode(m.payload)
        except MalformedError as error:
            raise ViolationError(f"configuration of the snapshot at {m.index}: {error}") from error
        snapshot = SnapshotMeta(m.index, m.log_term, config)
        log.restore(snapshot)
        self._snapshot_to_persist = snapshot
        self._accept(m, m.index, may_wait=True)

    def wants_snapshot(self, term: int, index: int, snapshot_term: int) -> bool:
        """Whether a snapshot offered by a leader of `term` would be installed (R13)."""
        return (
            not self.is_removed
            and term >= self.term
            and index > self.log.commit_index
            and not self.log.holds(index, snapshot_term)
        )

    def _advance_commit(self, index: int) -> None:
        if index > self.log.commit_index:
            assert index <= self.log.last_index, "what is committed is here"
            if self.role is Role.LEADER:
                self._uncommitted_bytes -= self.log.bytes_between(self.log.commit_index, index)
            self.log.commit_index = index

    def _notice_removal(self) -> None:
        """Take no further part once this node's removal is committed (R10)."""
        if self.committed_config.was_removed(self.node_id):
            if self.role is not Role.FOLLOWER:
                self._become_follower(self.term, NO_NODE)
            self.leader_id = NO_NODE
            self.is_removed = True

    def mark_removed(self) -> None:
        """A member said, with authority, that this node was removed."""
        self._become_follower(self.term, NO_NODE)
        self.is_removed = True

    # -- leading

    def propose(self, proposals: Sequence[tuple[EntryKind, bytes]]) -> int:
        """Append `proposals` as leader, all or none, and send them out.

        Returns the index of the first.  Raises ProposalRefused.
        """
        if self.is_removed:
            raise ProposalRefused(Refusal.REMOVED)
        if self.role is not Role.LEADER:
            raise ProposalRefused(Refusal.NO_LEADER)
        if self.transfer_target:
            raise ProposalRefused(Refusal.TRANSFERRING)
        size_bytes = sum([len(data) for _, data in proposals])
        if self._uncommitted_bytes and self._uncommitted_bytes + size_bytes > self.settings.max_uncommitted_bytes:
            raise ProposalRefused(Refusal.QUOTA)
        for kind, data in proposals:
            if kind == EntryKind.CONFIG:
                if len(proposals) > 1:
                    raise ProposalRefused(Refusal.INVALID_CHANGE, "a membership change is proposed alone")
                self._check_change(data)
        first = self.log.last_index + 1
        self._append(proposals)
        self._broadcast_append()
        return first

    def propose_change(self, change: ConfChange) -> int:
        """Propose a membership change: see `propose`."""
        return self.propose(((EntryKind.CONFIG, change.encode()),))

    @property
    def _change_pending(self) -> bool:
        return self.log.config_index > self.log.commit_index

    def _check_change(self, data: bytes) -> None:
        """One change at a time, after an own-term commit, and valid (R8).

        Without the own-term commit two leaders could each build on a different
        uncommitted configuration (Ongaro's correction of 2015 to single-server changes).
        """
        if self._change_pending:
            raise ProposalRefused(Refusal.CHANGE_PENDING, "another membership change is not committed yet")
        if not self.has_own_term_commit:
            raise ProposalRefused(Refusal.CHANGE_PENDING, "no entry of this term is committed yet")
        try:
            change = ConfChange.decode(data)
            if change.op == ConfOp.ADD_VOTER:
                raise InvalidChangeError("a node joins as a learner")
            after = self.config.changed(change)
        except (MalformedError, InvalidChangeError) as error:
            raise ProposalRefused(Refusal.INVALID_CHANGE, str(error)) from error
        if change.op == ConfOp.REMOVE:
            alive = sum(i == self.node_id or self.progress[i].is_alive for i in after.voters)
            if alive < after.quorum():
                raise ProposalRefused(Refusal.WOULD_LOSE_QUORUM, "the voters that remain are not a live majority")
            if change.node_id == self.node_id:
                self.step_aside()
                raise ProposalRefused(Refusal.TRANSFERRING, "a leader hands over before it is removed")

    def _append(self, proposals: Iterable[tuple[EntryKind, bytes]]) -> None:
        index = self.log.last_index
        entries = [make_entry(index + n, self.term, kind, data) for n, (kind, data) in enumerate(proposals, 1)]
        self.log.append(entries)
        self._uncommitted_bytes += sum(map(len, entries))
        if self.log.config_index > index:
            self._adopt_members()

    def _adopt_members(self) -> None:
        """Lead the configuration just appended (R8)."""
        config = self.config
        assert self.node_id in config.voters, "a leader is not left out (R10)"
        for i in config.members:
            if i != self.node_id and i not in self.progress:
                self.progress[i] = Progress(self.log.last_index + 1)
        for i, progress in self.progress.items():
            if i not in config.members and not progress.leaving_index:
                progress.leaving_index = self.log.config_index
        for i in set(self._requests_seen) - set(config.members):
            del self._requests_seen[i]
        if self.transfer_target not in config.voters:
            self.transfer_target = NO_NODE
        self._renew_lease()

    def _forget_leavers(self) -> None:
        """A removed member is sent the commit of its removal, for a bounded time (R10)."""
        for i, progress in list(self.progress.items()):
            if progress.leaving_index and progress.leaving_index <= self.log.commit_index:
                progress.leaving_ticks += 1
                if progress.leaving_ticks > 3 * self.settings.election_ticks:
                    del self.progress[i]

    def _promote_learners(self) -> None:
        """Make a learner a voter once it holds all that was committed a heartbeat ago (R9)."""
        if self._change_pending or not self.has_own_term_commit or self.transfer_target:
            return
        for i in sorted(self.config.learners):
            progress = self.progress.get(i)
            if (
                progress is not None
                and progress.state is ProgressState.REPLICATE
                and progress.recent_active
                and progress.match_index >= self._commit_at_heartbeat
            ):
                with suppress(ProposalRefused):  # over the quota: the next heartbeat tries again
                    self.propose_change(ConfChange(ConfOp.PROMOTE, i))
                return

    def _broadcast_append(self) -> None:
        for i, progress in self.progress.items():
            self._send_entries(i, progress)

    def _broadcast_heartbeat(self) -> None:
        for i, progress in self.progress.items():
            self._send_heartbeat(i, progress)

    def _send_entries(self, peer: int, progress: Progress) -> None:
        """Send what the window has room for."""
        settings = self.settings
        log = self.log
        last_index = log.last_index
        if progress.leaving_index > log.commit_index:
            last_index = progress.leaving_index - 1  # R10
        while progress.has_room(settings.max_inflight_messages, settings.max_inflight_bytes):
            prev = progress.next_index - 1
            prev_term = log.term_at(prev)
            if prev_term is None or prev < log.offset:
                self._send_snapshot(peer, progress)
                return
            if prev >= last_index and progress.state is ProgressState.REPLICATE:
                return
            entries = log.entries_from(prev + 1, settings.max_message_bytes)
            if len(entries) > last_index - prev:
                entries = entries[: last_index - prev]
            self._send_append(peer, progress, prev, prev_term, entries)
            last = index_of(entries[-1]) if entries else prev
            progress.sent(last, sum(map(len, entries)))

    def _send_heartbeat(self, peer: int, progress: Progress) -> None:
        """An append without entries: asserts leadership, carries commit and read round, finds lost messages."""
        prev = progress.next_index - 1
        prev_term = self.log.term_at(prev)
        if prev < self.log.offset and progress.state is ProgressState.REPLICATE:
            # What comes next is compacted away, so only a snapshot helps.  Waiting for
            # room in the window could be for ever: this heartbeat finds no lost message.
            self._send_snapshot(peer, progress)
        if prev_term is None or progress.state is ProgressState.SNAPSHOT:
            # Every log agrees before its first entry, so this is accepted and proves nothing.
            prev = prev_term = 0
        self._send_append(peer, progress, prev, prev_term, ())

    def _send_append(self, peer: int, progress: Progress, prev: int, prev_term: int, entries: Sequence[Entry]) -> None:
        progress.commit_sent = self.log.commit_index
        self._send(
            Message(
                MessageKind.APPEND,
                peer,
                index=prev,
                log_term=prev_term,
                commit=self.log.commit_index,
                context=self._read_round,
                entries=entries,
            )
        )

    def _send_snapshot(self, peer: int, progress: Progress) -> None:
        """Announce that the peer needs the snapshot; the caller moves the data and reports."""
        snapshot = self.log.snapshot
        progress.await_snapshot(snapshot.index)
        self._send(
            Message(
                MessageKind.SNAPSHOT,
                peer,
                index=snapshot.index,
                log_term=snapshot.term,
                payload=snapshot.config.encode(),
            )
        )

    def _hear_follower(self, m: Message) -> None:
        progress = self.progress.get(m.from_id)
        if progress is None or m.index > self.log.last_index:
            return
        progress.recent_active = True
        is_newer_round = m.context > progress.round_acked
        if is_newer_round:
            progress.round_acked = m.context
            self._finish_round()
        if m.reject:
            agree_at, _ = self.log.agreement_hint(m.hint, m.log_term)
            if progress.rejected(m.index, agree_at):
                self._send_entries(m.from_id, progress)
            return
        progress.promise_ns = m.hint
        if is_newer_round:
            self._renew_lease()
        is_news = progress.accepted(m.index)
        if progress.state is ProgressState.SNAPSHOT and progress.match_index >= self.log.offset:
            progress.probe_from(progress.match_index + 1)
        if progress.next_index <= self.log.offset and progress.state is ProgressState.PROBE:
            progress.probe_sent = False  # it lives, and needs a snapshot
        if progress.leaving_index and m.commit >= progress.leaving_index:
            del self.progress[m.from_id]  # it knows (R10)
            return
        if is_news and self._commit_by_count():
            return
        self._send_entries(m.from_id, progress)
        if self.transfer_target == m.from_id:
            self._hand_over()

    def _commit_by_count(self) -> bool:
        """Commit what a majority holds, if it is of this term (R6).  Returns whether anything was."""
        config = self.config
        held = sorted(
            self.log.stable_index if i == self.node_id else self.progress[i].match_index for i in config.voters
        )
        index = held[len(held) - config.quorum()]
        if index <= self.log.commit_index or self.log.term_at(index) != self.term:
            return False
        had_own_term_commit = self.has_own_term_commit
        is_for_all = self.log.commit_index < self.log.config_index <= index
        self._advance_commit(index)
        for i, progress in self.progress.items():
            self._send_entries(i, progress)
            # Who does not wait for it hears of it with the next entries or the next heartbeat:
            # else every batch would cost every follower a second message and an answer.
            if progress.commit_sent < index and (is_for_all or progress.commit_sent < progress.awaited_index):
                self._send_heartbeat(i, progress)
        if not had_own_term_commit:
            self._renew_lease()
            self._start_round()
        if self.transfer_target:
            self._hand_over()
        return True

    def report_unreachable(self, peer: int) -> None:
        """Messages to `peer` may have been lost: ask where its log stands before streaming more."""
        progress = self.progress.get(peer)
        if progress is not None and progress.state is ProgressState.REPLICATE:
            progress.probe_from(progress.match_index + 1)
            progress.probe_sent = True  # the next heartbeat asks

    def report_snapshot(self, peer: int, succeeded: bool) -> None:
        """The transfer of a snapshot to `peer` ended."""
        progress = self.progress.get(peer)
        if progress is not None and progress.state is ProgressState.SNAPSHOT:
            progress.probe_from(progress.snapshot_index + 1 if succeeded else progress.match_index + 1)
            progress.probe_sent = not succeeded  # after a failure wait for a sign of life

    # -- leadership transfer

    def transfer_leadership(self, to_id: int) -> None:
        """Hand leadership to the voter `to_id` (R12).  Raises ProposalRefused."""
        if self.role is not Role.LEADER:
            raise ProposalRefused(Refusal.NO_LEADER)
        if to_id not in self.config.voters or to_id == self.node_id:
            raise ProposalRefused(Refusal.INVALID_CHANGE, f"{to_id} is no other voter")
        self.transfer_target = self._last_target = to_id
        self._transfer_elapsed = 0
        self._send_entries(to_id, self.progress[to_id])
        self._hand_over()

    def step_aside(self) -> bool:
        """Hand over to the live voter whose log is the longest, another one than at the last attempt if there is.

        Returns whether there is any.  A hand-over that is under way goes on.
        """
        if self.role is not Role.LEADER or self.transfer_target:
            return self.transfer_target != NO_NODE
        able = [
            (i != self._last_target, self.progress[i].match_index, i)
            for i in self.config.voters
            if i != self.node_id and self.progress[i].is_alive
        ]
        if able:
            self.transfer_leadership(max(able)[2])
        return bool(able)

    def _hand_over(self) -> None:
        if self.progress[self.transfer_target].match_index == self.log.last_index:
            self._was_handed_over = True  # the message may be late, and takes effect whenever it comes
            self._renew_lease()
            self._send(Message(MessageKind.TIMEOUT_NOW, self.transfer_target))

    # -- reads

    def read_index(self, context: int) -> bool:
        """Ask for an index at which a read is linearizable; it comes as a ReadState with `context`.

        Returns False if no leader is known.  The answer may be lost: ask again,
        with a new context.  `context` is unique among the node's requests, over
        restarts too, for late answers to a former self arrive as well.
        """
        if self.role is Role.LEADER:
            self._read_as_leader(self.node_id, context)
            return True
        if self.leader_id == NO_NODE or self.is_removed:
            return False
        self._send(Message(MessageKind.READ_INDEX, self.leader_id, context=context))
        return True

    def _read_as_leader(self, origin: int, context: int) -> None:
        if self.holds_lease(self.now):
            self._answer_read(origin, context, self.log.commit_index)
            return
        self._reads_waiting.append((origin, context))
        if not self._round_reads:
            self._start_round()

    def _start_round(self) -> None:
        """Ask all voters whether we still lead, on behalf of every read that waits (R11)."""
        if not self._reads_waiting or not self.has_own_term_commit:
            return
        self._round_reads, self._reads_waiting = self._reads_waiting, []
        self._round_index = self.log.commit_index
        # Rounds count up within a term, and replies of other terms are dropped:
        # a late answer can confirm only what was asked before it was given.
        self._read_round += 1
        self._round_asked = self._read_round
        if not self._finish_round():
            self._broadcast_heartbeat()

    def _finish_round(self) -> bool:
        """Answer the round's reads once a majority of voters, learners not counted, confirmed it."""
        if not self._round_reads:
            return False
        confirmed = sum(
            i == self.node_id or self.progress[i].round_acked >= self._round_asked for i in self.config.voters
        )
        if confirmed < self.config.quorum():
            return False
        reads, self._round_reads = self._round_reads, []
        for origin, context in reads:
            self._answer_read(origin, context, self._round_index)
        self._start_round()
        return True

    def _answer_read(self, origin: int, context: int, index: int) -> None:
        if origin == self.node_id:
            self._read_states.append(ReadState(context, index))
            return
        self._send(Message(MessageKind.READ_INDEX_REPLY, origin, index=index, context=context))
        progress = self.progress.get(origin)
        if progress is not None and progress.commit_sent < index:
            self._send_heartbeat(origin, progress)  # it waits until that is applied

    def holds_lease(self, now: int) -> bool:
        """Whether nobody else can lead at `now`, so that what is committed here is all there is (R14).

        The one question that may be asked without the lock that this object is under: what
        is committed is looked at after it.
        """
        since, until = self._lease
        return since <= now < until

    def _renew_lease(self) -> None:
        """Say in `_lease` what the promises amount to.  Before that clock's first mark it went back: no lease.

        A rival's majority would include this voter itself, or one that promised not to
        help; the configurations of both differ by one member at most (R8).
        """
        voters = self.config.voters
        if not self._lease_rounds or self._was_handed_over or not self.has_own_term_commit:
            self._lease = _NO_LEASE
            return
        ends = sorted(_FOR_EVER if i == self.node_id else self._bound_until(self.progress[i]) for i in voters)
        self._lease = self._lease_rounds[-1][1], ends[len(ends) - self.config.quorum()]

    def _bound_until(self, progress: Progress) -> int:
        """When the promise ends that came with the latest lease round it answered."""
        for number, sent in reversed(self._lease_rounds):
            if number <= progress.round_acked:
                return sent + min(progress.promise_ns, self.settings.promise_ns) * _LEASE_PERCENT // 100
        return 0

    # -- messages that speak for no term

    def forward(self, proposals: Sequence[tuple[EntryKind, bytes]], context: int, to_id: int = NO_NODE) -> bool:
        """Send `proposals` to the leader; its answer may be lost.  False if none is known.

        to_id: a member to try instead, for a node that no leader reaches; it
               refuses unless it leads.
        """
        target = to_id or self.leader_id
        if target in (NO_NODE, self.node_id) or self.is_removed:
            return False
        entries = [make_entry(0, 0, kind, data) for kind, data in proposals]
        self._send(Message(MessageKind.PROPOSE, target, context=context, entries=entries))
        return True

    def _step_termless(self, m: Message) -> None:
        if m.kind is MessageKind.READ_INDEX_REPLY:
            self._read_states.append(ReadState(m.context, m.index))
        elif m.kind is MessageKind.READ_INDEX:
            if self.role is Role.LEADER and m.from_id in self.config.members:
                self._read_as_leader(m.from_id, m.context)
        elif m.kind is MessageKind.PROPOSE:
            self._take_forwarded(m)
        # The others are for the caller of `step`, who looks at them before.

    def _take_forwarded(self, m: Message) -> None:
        reply = Message(MessageKind.PROPOSE_REPLY, m.from_id, context=m.context)
        if m.from_id not in self.config.members:
            reply.reject, reply.hint = True, Refusal.REMOVED
            self._send(reply)
            return
        if m.context and self._is_repeated(m):  # 0: nobody waits for an answer
            return
        try:
            places = map(place_of, m.entries)
            if not m.entries or any(index or term or kind == EntryKind.EMPTY for index, term, kind in places):
                raise ProposalRefused(Refusal.INVALID_CHANGE, "such entries are not proposed")
            reply.index = self.propose([(kind_of(entry), data_of(entry)) for entry in m.entries])
            if (progress := self.progress.get(m.from_id)) is not None:
                progress.awaited_index = self.log.last_index
        except ProposalRefused as refused:
            reply.reject = True
            reply.hint = refused.refusal
        self._send(reply)

    def _is_repeated(self, m: Message) -> bool:
        """Whether this very request came before: what was answered then stands.

        Had the first been refused, its sender may have told a caller that nothing was
        proposed; had it been appended, a refusal of the second would tell so wrongly.
        """
        seen = self._requests_seen.setdefault(m.from_id, {})
        if m.context in seen:
            return True
        seen[m.context] = None
        if len(seen) > _REQUESTS_REMEMBERED:
            del seen[next(iter(seen))]
        return False

    # -- output

    def _send(self, message: Message, after: bool = False) -> None:
        message.from_id = self.node_id
        if message.kind not in _TERMLESS and not message.term:
            message.term = self.term
        (self._messages_after if after else self._messages).append(message)

    def ready(self) -> Ready | None:
        """The work that has come up since the last call, or None."""
        log = self.log
        hard_state = None
        entries: Sequence[Entry] = ()
        snapshot = self._snapshot_to_persist
        must_persist = self._hard_state_dirty or snapshot is not None or log.handed_index < log.last_index
        if must_persist:
            self._token += 1
            entries = log.take_unwritten(self._token)
            if self._hard_state_dirty:
                self._hard_state_token = self._token
            # Only what is on disk already: were the power to go between this record and the
            # entries that it speaks of, older ones in their place would count as committed.
            commit = min(log.commit_index, log.stable_index)
            if self._hard_state_dirty or commit > self._commit_written:
                hard_state = HardState(self.term, self.vote, commit)
                self._commit_written = commit
            self._hard_state_dirty = False
            self._snapshot_to_persist = None
        elif not (self._messages or self._messages_after or self._read_states or log.has_undelivered):
            return None
        ready = Ready(
            self._token,
            must_persist,
            hard_state,
            entries,
            snapshot,
            self._messages,
            self._messages_after,
            log.take_committed(self.settings.max_delivery_bytes),
            self._read_states,
        )
        self._messages = []
        self._messages_after = []
        self._read_states = []
        return ready

    def persisted(self, token: int) -> None:
        """Everything handed out with tokens up to `token` is durable."""
        self.log.written(token)
        self._persisted_token = token
        if self.role is Role.LEADER:
            self._commit_by_count()
        elif self.role is Role.CANDIDATE and self.term_is_durable:
            self._record_vote(self.node_id, True)

    def compact(self, index: int) -> int:
        """A snapshot up to `index` is durable: drop what lies before its trailing window.

        Returns the index up to which entries are no longer needed in storage.
        What a snapshot on its way to a follower leaves out stays here.
        """
        log = self.log
        if index > log.snapshot.index:
            keep_after = log.trailing_start(index, self.settings.trailing_entries, self.settings.trailing_bytes)
            for progress in self.progress.values():
                if progress.state is ProgressState.SNAPSHOT:
                    keep_after = min(keep_after, progress.snapshot_index)
            log.compact(index, keep_after)
        return log.offset


_TERMLESS = frozenset(
    {
        MessageKind.PROPOSE,
        MessageKind.PROPOSE_REPLY,
        MessageKind.READ_INDEX,
        MessageKind.READ_INDEX_REPLY,
        MessageKind.DIGEST,
        MessageKind.DIGEST_REPLY,
    }
)
