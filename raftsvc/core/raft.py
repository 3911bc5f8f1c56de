"""The Raft algorithm as a deterministic object: term, roles, and who has the word.

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
 R12 A leader that hands over refuses proposals until the target took over, said that it
     cannot, or an election timeout passed since it was first asked for (T 3.10).  Answers
     to its heartbeats say who could lead, and nobody else is chosen.
 R13 A snapshot replaces a log only if it is ahead of what is committed there and
     the log does not hold its last entry (7).
 R14 Where the caller allows leases, a leader serves reads without a round while a
     majority of voters keeps the promise of R3 to it (T 6.4.1).  A promise counts
     from when the message that it answers was sent, for less than its giver counts
     it, by a clock of the caller's that never stands still; none counts in a term
     in which somebody was asked to take over.  Its length is durable before it is given,
     and a restart with shorter timeouts waits it out once: before that it gives no vote,
     to itself neither.
 R15 Every entry has a log time, which its leader gives it and which never goes back along
     the log.  A leader begins with that of the last entry in its log and adds what its caller says
     passed, at most an election timeout at once and nothing while it does not lead: so time
     stands still between leaders, what a freeze left out is never made up, and nobody's
     clock says what it is.  While the State waits for a deadline the leader lets time be
     known by pulses, entries that say nothing else: when the deadline has come, now
     and then before, and before it hands over.

Each has its page: R1 to R3 are in `election`; R5 and R13 in `following`; R4, R6 to R10 and
R12 in `leader`, with what is sent to whom in `replication`; R11 in `reads`; R14 in
`lease`; R15 in `logtime`.  What all of them work on is in `server`.  Here are the inputs, and what each
message means in which role.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from raftsvc.core.election import Election
from raftsvc.core.following import follow_append, follow_snapshot
from raftsvc.core.leader import Leader
from raftsvc.core.log import Log, SnapshotMeta, ViolationError
from raftsvc.core.messages import (
    NO_NODE,
    Entry,
    EntryKind,
    HardState,
    Message,
    MessageKind,
    data_of,
    kind_of,
    make_entry,
    place_of,
)
from raftsvc.core.progress import Progress, ProgressState
from raftsvc.core.repeats import Repeats, Standing
from raftsvc.core.server import (
    TERMLESS,
    TRANSFER,
    VOTE_OF,
    ProposalRefused,
    ReadState,
    Ready,
    Refusal,
    Role,
    Server,
    Settings,
)

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

_NOBODY: Mapping[int, Progress] = MappingProxyType({})


class Raft(Server):
    """One node's part in Raft: takes inputs, and decides which page of the algorithm they are for.

    leader:  what it has as a leader; None unless it is one.
    repeats: the forwarded requests that came lately.
    """

    def __init__(
        self,
        settings: Settings,
        hard_state: HardState | None = None,
        snapshot: SnapshotMeta | None = None,
        entries: Sequence[Entry] = (),
    ) -> None:
        """A follower with what storage recovered; everything given counts as durable."""
        super().__init__(settings, hard_state, snapshot, entries)
        self.role = Role.FOLLOWER
        self.election = Election(self)
        self.leader: Leader | None = None
        self.repeats = Repeats()
        self._notice_removal()

    # -- what a caller may ask

    @property
    def is_promotable(self) -> bool:
        """Whether this node may ask for votes: a voter, as far as it knows, and fit to lead."""
        # The configuration is the one appended, not the one applied, so there is
        # no committed change that a campaign could overlook.
        return self.node_id in self.config.voters and self.is_fit_to_lead and not self.is_removed

    @property
    def progress(self) -> Mapping[int, Progress]:
        """What a leader knows of each other member; empty for others."""
        return self.leader.replication.progress if self.leader is not None else _NOBODY

    @property
    def forgetful(self) -> list[int]:
        """Those who lack what they had acknowledged to this leader."""
        return [i for i, progress in self.progress.items() if progress.state is ProgressState.FORGETFUL]

    def holds_lease(self, now: int) -> bool:
        """Whether nobody else can lead at `now` (R14).  May be asked without the lock: see `lease.Lease.holds`."""
        leader = self.leader
        return leader is not None and leader.lease.holds(now)

    # -- time

    def advance(self, elapsed_ms: int) -> None:
        """So much time passed, rounded down; called before every input (R15).  Ticks are counted apart from it."""
        if self.leader is not None:
            self.leader.time.advance(elapsed_ms)

    def await_deadline(self, deadline_ms: int | None, applied_index: int) -> None:
        """The State as of `applied_index` waits for that log time next; None: for nothing."""
        self.log.deadline_ms = deadline_ms
        self.log.applied_index = applied_index

    def tick(self) -> None:
        """One tick of time passed."""
        if self.is_removed:
            return
        if self.leader is not None:
            if not self.leader.tick():
                self._become_follower(self.term, NO_NODE)  # R4
        elif self.election.tick() and self.is_promotable:
            self.campaign()

    # -- roles

    def campaign(self) -> None:
        """Ask for pre-votes now, as if the election timeout had passed."""
        if self.leader is None and self.is_promotable:
            self._ask_for_votes(MessageKind.PRE_VOTE, 0)

    def _ask_for_votes(self, kind: MessageKind, context: int) -> None:
        self.leader_id = NO_NODE
        self.election.reset_timer()
        if kind is MessageKind.PRE_VOTE:
            self.role = Role.PRE_CANDIDATE
            self.election.ask(kind, self.term + 1, context)
            self._count_pre_vote(self.node_id, True)
        else:
            self.role = Role.CANDIDATE
            self.enter_term(self.term + 1, vote=self.node_id)
            self.election.ask(kind, self.term, context)
            # A candidate's vote for itself counts once it is durable (R1): see persisted.

    def _count_pre_vote(self, voter: int, granted: bool) -> None:
        is_won = self.election.count(MessageKind.PRE_VOTE, voter, granted)
        if is_won:
            self._ask_for_votes(MessageKind.VOTE, 0)
        elif is_won is False:
            self._become_follower(self.term, NO_NODE)

    def _count_vote(self, voter: int, granted: bool) -> None:
        is_won = self.election.count(MessageKind.VOTE, voter, granted)
        if is_won:
            self._become_leader()
        elif is_won is False and self.role is Role.CANDIDATE:
            self._become_follower(self.term, NO_NODE)

    def _become_leader(self) -> None:
        if not (self.election.stands and self.vote == self.node_id):
            raise ViolationError(f"node {self.node_id} would lead term {self.term}, in which it is no candidate")
        self.role = Role.LEADER
        self.leader_id = self.node_id
        self.election.become_leader()
        self.leader = Leader(self)
        self.leader.begin()

    def _become_follower(self, term: int, leader_id: int) -> None:
        if term > self.term:
            self.enter_term(term)
        if self.role is not Role.FOLLOWER or leader_id:
            # A follower's timer runs on: a candidate that cannot win must not
            # postpone the campaign of one that can (5.2).
            self.election.reset_timer()
        self.role = Role.FOLLOWER
        self.leader_id = leader_id
        self.election.close()
        if self.leader is not None:
            self.leader.lease.forgo()  # for whoever looks at it without the lock, just now
        # With it go its reads, which are never answered: whoever asked asks again.
        self.leader = None

    def set_fit_to_lead(self, is_fit: bool) -> None:
        """Tell whether this node's disk and State work; if not it neither leads nor campaigns."""
        self.is_fit_to_lead = is_fit
        if not is_fit and self.role is not Role.FOLLOWER:
            self._become_follower(self.term, NO_NODE)

    def _notice_removal(self) -> None:
        """Take no further part once this node's removal is committed (R10)."""
        if self.committed_config.was_removed(self.node_id):
            self.mark_removed()

    def mark_removed(self) -> None:
        """This node was removed: the log says so, or a member, with authority."""
        self._become_follower(self.term, NO_NODE)
        self.is_removed = True

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
        if m.kind in TERMLESS:
            self._step_termless(m)
            return
        if m.term > self.term:
            if m.kind in VOTE_OF and m.context != TRANSFER and (self.leader or self.election.hears_leader):
                return  # R3; a leader hears itself
            if m.kind is MessageKind.PRE_VOTE or (m.kind is MessageKind.PRE_VOTE_REPLY and not m.reject):
                pass  # a pre-vote is about a term that nobody has entered yet (R2)
            else:
                self._become_follower(m.term, NO_NODE)
        elif m.term < self.term:
            self.answer_stale(m)
            return
        if m.kind in (MessageKind.APPEND, MessageKind.SNAPSHOT):
            self._follow(m)
        elif m.kind in VOTE_OF:
            self.election.judge(m, is_leader=self.leader is not None)
        elif m.kind is MessageKind.APPEND_REPLY:
            if self.leader is not None:
                self.leader.hear(m)
        elif m.kind is MessageKind.PRE_VOTE_REPLY:
            if self.role is Role.PRE_CANDIDATE and (m.reject or m.term == self.term + 1):
                self._count_pre_vote(m.from_id, not m.reject)
        elif m.kind is MessageKind.VOTE_REPLY:
            # Also one that took longer than the candidate waited, who asks for pre-votes again
            # by now: it is of this term, and a vote that was given is given.
            if self.election.stands:
                self._count_vote(m.from_id, not m.reject)
        elif m.kind is MessageKind.TIMEOUT_NOW:
            self._take_over(m)

    def _take_over(self, m: Message) -> None:
        """The leader hands over to this node."""
        if self.role is Role.FOLLOWER and m.from_id == self.leader_id and self.is_promotable:
            self._ask_for_votes(MessageKind.VOTE, TRANSFER)

    def _follow(self, m: Message) -> None:
        """Take entries, a heartbeat or a snapshot from the leader of this term."""
        if self.leader is not None:
            raise ViolationError(f"nodes {self.node_id} and {m.from_id} both lead term {self.term}")
        if self.role is not Role.FOLLOWER:
            self._become_follower(self.term, m.from_id)
        self.leader_id = m.from_id
        self.election.hear_leader()
        if m.kind is MessageKind.APPEND:
            follow_append(self, m)
        else:
            follow_snapshot(self, m)
        self._notice_removal()

    def _step_termless(self, m: Message) -> None:
        if m.kind is MessageKind.READ_INDEX_REPLY:
            self.output.read_states.append(ReadState(m.context, m.index))
        elif m.kind is MessageKind.READ_INDEX:
            if self.leader is not None and m.from_id in self.config.members:
                self.leader.read(m.from_id, m.context)
        elif m.kind is MessageKind.PROPOSE:
            self._take_forwarded(m)
        # The others are for the caller of `step`, who looks at them before.

    def _take_forwarded(self, m: Message) -> None:
        """Decide a request once.  A refusal is the answer to this very request, of which nothing is in a log.

        So there is none where an earlier copy may have been appended: by a former life of
        this node, which the sender knew as the leader of a term that it was in when it was
        started or before, or so long ago that it is forgotten.  A member whose removal was appended
        is told that, and that says nothing of what it asked before.
        """
        is_certain = True
        if m.context:  # 0: nobody waits for an answer
            standing = self.repeats.note(m.from_id, m.context)
            if standing is Standing.REPEATED:
                return
            is_certain = standing is Standing.NEW and m.log_term > self.recovered.term
        reply = Message(MessageKind.PROPOSE_REPLY, m.from_id, context=m.context)
        try:
            if m.from_id not in self.config.members:
                is_certain = True
                raise ProposalRefused(Refusal.REMOVED)
            places = map(place_of, m.entries)
            if not m.entries or any(
                index or term or time_ms or kind == EntryKind.EMPTY for index, term, time_ms, kind in places
            ):
                raise ProposalRefused(Refusal.INVALID_CHANGE, "such entries are not proposed")
            reply.index = self.propose([(kind_of(entry), data_of(entry)) for entry in m.entries])
            if self.leader is not None:
                self.leader.note_awaited(m.from_id)
        except ProposalRefused as refused:
            if not is_certain:
                return
            reply.reject = True
            reply.hint = refused.refusal
            reply.index = self.log.configs.latest_index
        self.send(reply)

    # -- what a caller wants

    def propose(self, proposals: Sequence[tuple[EntryKind, bytes]]) -> int:
        """Append `proposals` as leader, all or none, and send them out.

        Returns the index of the first.  Raises ProposalRefused.
        """
        if self.is_removed:
            raise ProposalRefused(Refusal.REMOVED)
        if self.leader is None:
            raise ProposalRefused(Refusal.NO_LEADER)
        config_index = self.log.configs.latest_index
        first = self.leader.propose(proposals)
        if self.log.configs.latest_index > config_index:
            self.repeats.forget_all_but({*self.committed_config.members, *self.config.members})
        return first

    def forward(self, proposals: Sequence[tuple[EntryKind, bytes]], context: int, to_id: int = NO_NODE) -> bool:
        """Send `proposals` to the leader; its answer may be lost.  False if none is known.

        to_id: a member to try instead, for a node that no leader reaches; it
               refuses unless it leads.
        """
        target = to_id or self.leader_id
        if target in (NO_NODE, self.node_id) or self.is_removed:
            return False
        entries = [make_entry(0, 0, kind, data) for kind, data in proposals]
        self.send(Message(MessageKind.PROPOSE, target, log_term=self.term, context=context, entries=entries))
        return True

    def read_index(self, context: int) -> bool:
        """Ask for an index at which a read is linearizable; it comes as a ReadState with `context`.

        Returns False if no leader is known.  The answer may be lost: ask again,
        with a new context.  `context` is unique among the node's requests, over
        restarts too, for late answers to a former self arrive as well.
        """
        if self.leader is not None:
            self.leader.read(self.node_id, context)
            return True
        if self.leader_id == NO_NODE or self.is_removed:
            return False
        self.send(Message(MessageKind.READ_INDEX, self.leader_id, context=context))
        return True

    def transfer_leadership(self, to_id: int) -> None:
        """Hand leadership to the voter `to_id` (R12); does nothing if that is under way.

        Raises ProposalRefused, also while it is handed to another.
        """
        if self.leader is None:
            raise ProposalRefused(Refusal.NO_LEADER)
        self.leader.hand_over_to(to_id)

    # -- what became of what was handed out

    def persisted(self, token: int) -> None:
        """Everything handed out with tokens up to `token` is durable."""
        self.log.written(token)
        self.output.persisted(token)
        if self.leader is not None:
            self.leader.commit_by_count()
        elif self.election.stands and self.term_is_durable:
            self._count_vote(self.node_id, True)

    def report_unreachable(self, peer: int) -> None:
        """Messages to `peer` may have been lost."""
        if self.leader is not None:
            self.leader.replication.report_unreachable(peer)

    def report_snapshot(self, peer: int, succeeded: bool) -> None:
        """The transfer of a snapshot to `peer` ended."""
        if self.leader is not None:
            self.leader.replication.report_snapshot(peer, succeeded)

    def compact(self, index: int) -> int:
        """A snapshot up to `index` is durable: drop what lies before its trailing window.

        Returns the index up to which entries are no longer needed in storage.
        What a snapshot on its way to a follower leaves out stays here, within bounds, until the follower has that
        too; where it is not enough, it is sent another when that one has arrived.
        """
        log, settings = self.log, self.settings
        if index > log.snapshot.index:
            keep_after = log.trailing_start(index, settings.trailing_entries, settings.trailing_bytes)
            if self.leader is not None:
                pinned_after = self.leader.kept_after(keep_after)
                if pinned_after < keep_after:
                    most = log.trailing_start(index, settings.max_pinned_entries, settings.max_pinned_bytes)
                    keep_after = min(keep_after, max(pinned_after, most))
            log.compact(index, keep_after)
        return log.offset
