"""What a leader has and does: made when it begins to lead, dropped when it ends (figure 2, rules for leaders).

Proposals, commitment, membership and hand-over are here; what is sent to whom is in
`replication`, reads are in `reads` and `lease`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from raftsvc.core.lease import Lease
from raftsvc.core.log import ViolationError
from raftsvc.core.logtime import LogTime
from raftsvc.core.membership import ConfChange, Configuration, ConfOp, InvalidChangeError
from raftsvc.core.messages import NO_NODE, EntryKind, MalformedError, Message, MessageKind, make_entry
from raftsvc.core.progress import ProgressState
from raftsvc.core.reads import ReadRounds
from raftsvc.core.replication import Replication
from raftsvc.core.server import ProposalRefused, Refusal, Server


class Leader:
    """Leadership of one term.

    replication, reads, lease, time: see there.
    transfer_target: the voter that is to take over, or NO_NODE (R12).
    """

    __slots__ = (
        "_asked",
        "_commit_at_heartbeat",
        "_heartbeat_elapsed",
        "_quorum_elapsed",
        "_rest_ticks",
        "_server",
        "_transfer_elapsed",
        "_unfit",
        "_waiting_after",
        "_waiting_bytes",
        "lease",
        "reads",
        "replication",
        "time",
        "transfer_target",
    )

    def __init__(self, server: Server) -> None:
        log = server.log
        self._server = server
        self.replication = Replication(server)
        self.reads = ReadRounds(server, self.replication)
        self.lease = Lease(server, self.replication)
        self.time = LogTime(server)
        self.transfer_target = NO_NODE
        self._asked: dict[int, int] = {}  # how often each was asked to take over, and did not
        self._unfit: set[int] = set()  # those who say that they could not lead at present
        self._rest_ticks = 0
        self._transfer_elapsed = 0
        self._heartbeat_elapsed = 0
        self._quorum_elapsed = 0
        self._commit_at_heartbeat = log.commit_index
        # What is in the log and was not handed out to be applied: not committed, or not durable here.
        self._waiting_after = log.delivered_index
        self._waiting_bytes = log.bytes_between(log.delivered_index, log.last_index)

    def begin(self) -> None:
        """Assert leadership by an entry of this term (R7)."""
        # A change in the uncommitted tail is known without a guess, for the log
        # keeps every configuration with its index: see `_change_pending`.
        self._append(((EntryKind.EMPTY, b""),))
        self.replication.broadcast_entries()

    # -- time

    def tick(self) -> bool:
        """One tick of time passed; False if no majority was heard from, which ends the leadership (R4)."""
        server = self._server
        settings = server.settings
        self._quorum_elapsed += 1
        if self._quorum_elapsed >= settings.election_ticks:
            self._quorum_elapsed = 0
            if not self._hears_majority():
                return False
        if self.transfer_target:
            self._transfer_elapsed += 1
            if self._transfer_elapsed >= settings.election_ticks:
                self._give_up_transfer()
        else:
            if self._rest_ticks:
                self._rest_ticks -= 1
            if self.time.is_pulse_due():
                self._pulse()
        self.replication.forget_leavers()
        self._heartbeat_elapsed += 1
        if self._heartbeat_elapsed >= settings.heartbeat_ticks:
            self._heartbeat_elapsed = 0
            self._promote_learners()
            self._commit_at_heartbeat = server.log.commit_index
            if settings.uses_leases:
                self.lease.ask()
            self.replication.pulse()
            self.replication.broadcast_heartbeat()
        return True

    def _hears_majority(self) -> bool:
        """Whether a majority was heard from since the last time that this was asked."""
        server = self._server
        progress = self.replication.progress
        active = sum(i == server.node_id or progress[i].recent_active for i in server.config.voters)
        for follower in progress.values():
            follower.was_active, follower.recent_active = follower.recent_active, False
        return active >= server.config.quorum()

    def _pulse(self) -> None:
        """Let the others know what time it is (R15)."""
        self._append(((EntryKind.EMPTY, b""),))
        self.time.note_pulse()
        self.replication.broadcast_entries()

    # -- proposals

    def propose(self, proposals: Sequence[tuple[EntryKind, bytes]]) -> int:
        """Append `proposals`, all or none, and send them out: see `raft.Raft.propose`."""
        if self.transfer_target:
            raise ProposalRefused(Refusal.TRANSFERRING)
        size_bytes = sum([len(data) for _, data in proposals])
        waiting_bytes = self._count_waiting() + self._server.log.unapplied_bytes
        if waiting_bytes and waiting_bytes + size_bytes > self._server.settings.max_uncommitted_bytes:
            raise ProposalRefused(Refusal.QUOTA)
        for kind, data in proposals:
            if kind == EntryKind.CONFIG:
                if len(proposals) > 1:
                    raise ProposalRefused(Refusal.INVALID_CHANGE, "a membership change is proposed alone")
                self._check_change(data)
        first = self._server.log.last_index + 1
        self._append(proposals)
        self.replication.broadcast_entries()
        return first

    def _count_waiting(self) -> int:
        """How many bytes wait to be handed out as committed."""
        log = self._server.log
        delivered, counted = log.delivered_index, self._waiting_after
        if delivered != counted:
            self._waiting_after = delivered
            if counted >= log.offset:
                self._waiting_bytes -= log.bytes_between(counted, delivered)
            else:  # what was counted is compacted away
                self._waiting_bytes = log.bytes_between(delivered, log.last_index)
        return self._waiting_bytes

    def _append(self, proposals: Iterable[tuple[EntryKind, bytes]]) -> None:
        log = self._server.log
        term = self._server.term
        index = log.last_index
        now_ms = self.time.now_ms
        entries = [make_entry(index + n, term, kind, data, now_ms) for n, (kind, data) in enumerate(proposals, 1)]
        log.append(entries)
        self._waiting_bytes += sum(map(len, entries))
        if log.configs.latest_index > index:
            self._adopt_members()

    # -- commitment

    def hear(self, m: Message) -> None:
        """Take a follower's answer."""
        log = self._server.log
        replication = self.replication
        progress = replication.progress.get(m.from_id)
        if progress is None or m.index > log.last_index or progress.state is ProgressState.FORGETFUL:
            return
        if m.reject and progress.has_forgotten(m.index, m.context):
            self.disown(m.from_id)
            return
        progress.recent_active = True
        is_newer_round = m.context > progress.round_acked
        if is_newer_round:
            replication.hear_round(progress, m.context)
            self.reads.finish()
        if m.reject:
            agree_at, _ = log.agreement_hint(m.hint, m.log_term)
            if progress.rejected(m.index, agree_at) or progress.lacks(m.index, log.offset):
                replication.send_entries(m.from_id, progress)
            return
        is_new_promise = m.context > progress.promise[0]
        if m.context >= progress.promise[0]:  # an older one may come late, and be of another length
            progress.promise = m.context, m.hint
        if m.log_term:
            self._unfit.add(m.from_id)
        elif self._unfit:
            self._unfit.discard(m.from_id)
        if is_new_promise:
            self.lease.renew()
        is_news = replication.hear_accepted(progress, m.index)
        if progress.match_index > log.last_index:
            raise ViolationError(
                f"node {m.from_id} says that it holds entry {progress.match_index}, "
                f"and the log of its leader ends at {log.last_index}"
            )
        if progress.state is ProgressState.SNAPSHOT and progress.match_index >= log.offset:
            progress.probe_from(progress.match_index + 1)
        if progress.leaving_index and m.commit >= progress.leaving_index:
            del replication.progress[m.from_id]  # it knows (R10)
            return
        if is_news and self.commit_by_count():
            return
        replication.send_entries(m.from_id, progress)
        if self.transfer_target == m.from_id:
            if m.log_term:
                self._give_up_transfer()  # it cannot: nobody has to wait for it
            else:
                self._hand_over()

    def disown(self, follower: int) -> None:
        """A follower lacks what it acknowledged: it may have forgotten votes as well, and is fed no more (figure 2)."""
        progress = self.replication.progress.get(follower)
        if progress is None or progress.state is ProgressState.FORGETFUL:
            return
        progress.disown()
        self.lease.renew()
        if self.transfer_target == follower:
            self._give_up_transfer()

    def commit_by_count(self) -> bool:
        """Commit what a majority holds, if it is of this term (R6).  Returns whether anything was."""
        server = self._server
        log = server.log
        config = server.config
        progress = self.replication.progress
        held = sorted(log.stable_index if i == server.node_id else progress[i].match_index for i in config.voters)
        index = held[len(held) - config.quorum()]
        if index <= log.commit_index or log.term_at(index) != server.term:
            return False
        had_own_term_commit = server.has_own_term_commit
        is_for_all = log.commit_index < log.configs.latest_index <= index
        log.advance_commit(index)
        for i, follower in progress.items():
            self.replication.send_entries(i, follower)
            # Who does not wait for it hears of it with the next entries or the next heartbeat:
            # else every batch would cost every follower a second message and an answer.
            if follower.commit_sent < index and (is_for_all or follower.commit_sent < follower.awaited_index):
                self.replication.send_heartbeat(i, follower)
        if not had_own_term_commit:
            self.lease.renew()
            self.reads.start()
        if self.transfer_target:
            self._hand_over()
        return True

    # -- membership

    @property
    def _change_pending(self) -> bool:
        return self._server.log.configs.latest_index > self._server.log.commit_index

    def _check_change(self, data: bytes) -> None:
        """One change at a time, after an own-term commit, and valid (R8).

        Without the own-term commit two leaders could each build on a different
        uncommitted configuration (Ongaro's correction of 2015 to single-server changes).
        """
        server = self._server
        if self._change_pending:
            raise ProposalRefused(Refusal.CHANGE_PENDING, "another membership change is not committed yet")
        if not server.has_own_term_commit:
            raise ProposalRefused(Refusal.CHANGE_PENDING, "no entry of this term is committed yet")
        try:
            change = ConfChange.decode(data)
            if change.op in (ConfOp.ADD_VOTER, ConfOp.FOUND):
                raise InvalidChangeError("a node joins as a learner")
            after = server.config.changed(change)
        except (MalformedError, InvalidChangeError) as error:
            raise ProposalRefused(Refusal.INVALID_CHANGE, str(error)) from error
        if change.op in (ConfOp.REMOVE, ConfOp.REPLACE):
            self._check_removal(change.node_id, after)

    def _check_removal(self, node_id: int, after: Configuration) -> None:
        """Who remains must be able to go on; and a leader is not removed while it leads (R10)."""
        progress = self.replication.progress
        alive = sum(i == self._server.node_id or progress[i].is_alive for i in after.voters)
        if alive < after.quorum():
            raise ProposalRefused(Refusal.WOULD_LOSE_QUORUM, "the voters that remain are not a live majority")
        if node_id == self._server.node_id:
            if not self._rest_ticks:
                self.step_aside()
            raise ProposalRefused(Refusal.TRANSFERRING, "a leader hands over before it is removed")

    def _adopt_members(self) -> None:
        """Lead the configuration just appended (R8)."""
        config = self._server.config
        if self._server.node_id not in config.voters:
            raise ViolationError("a leader is left out of the configuration that it leads (R10)")
        self.replication.adopt_members()
        if self.transfer_target not in config.voters:
            self.transfer_target = NO_NODE
        self._asked = {i: count for i, count in self._asked.items() if i in config.voters}
        self._unfit &= config.members.keys()
        self.lease.renew()
        self.reads.finish()  # those who were left may have confirmed it already, and nobody else will

    def _promote_learners(self) -> None:
        """Make a learner a voter once it holds all that was committed a heartbeat ago (R9)."""
        server = self._server
        if self._change_pending or not server.has_own_term_commit or self.transfer_target:
            return
        for i in sorted(server.config.learners):
            progress = self.replication.progress.get(i)
            if (
                progress is not None
                and progress.state is ProgressState.REPLICATE
                and progress.recent_active
                and progress.match_index >= self._commit_at_heartbeat
            ):
                with suppress(ProposalRefused):  # over the quota: the next heartbeat tries again
                    self.propose((ConfChange(ConfOp.PROMOTE, i).as_proposal(),))
                return

    # -- hand-over

    def hand_over_to(self, to_id: int) -> None:
        """Let the voter `to_id` take over once it has all that is here: see `raft.Raft.transfer_leadership`.

        Proposals are refused meanwhile, so however often it is asked for, it has one election timeout.
        """
        if to_id not in self._server.config.voters or to_id == self._server.node_id:
            raise ProposalRefused(Refusal.INVALID_CHANGE, f"{to_id} is no other voter")
        if self.transfer_target == to_id:
            return
        if self.transfer_target:
            raise ProposalRefused(Refusal.TRANSFERRING, f"to {self.transfer_target}")
        if to_id in self._unfit:
            raise ProposalRefused(Refusal.INVALID_CHANGE, f"{to_id} says that it cannot lead")
        if self.time.is_farewell_due():
            self._pulse()
        self.transfer_target = to_id
        self._transfer_elapsed = 0
        self.replication.send_entries(to_id, self.replication.progress[to_id])
        self._hand_over()

    def step_aside(self) -> bool:
        """Let the live voter take over that failed to the least often so far, and of those the longest log.

        Those who say that they cannot lead are left out.  Returns whether there is any.  A hand-over
        that is under way goes on.
        """
        if not self.transfer_target:
            progress = self.replication.progress
            others = self._server.config.voters - {self._server.node_id}
            fit = [i for i in others - self._unfit if progress[i].is_alive]
            able = [(-self._asked.get(i, 0), progress[i].match_index, i) for i in fit]
            if able:
                self.hand_over_to(max(able)[2])
        return self.transfer_target != NO_NODE

    def _give_up_transfer(self) -> None:
        """The target did not take over in time (R12).

        Whoever cannot, for a reason that it does not know of itself, may look as able as others,
        and so each is asked in turn.  All that time proposals are refused; so where nobody
        can, the attempts for the sake of a removal become fewer and fewer.
        """
        self._asked[self.transfer_target] = self._asked.get(self.transfer_target, 0) + 1
        self.transfer_target = NO_NODE
        others = self._server.config.voters - {self._server.node_id}
        if all(i in self._asked for i in others):
            self._rest_ticks = self._server.settings.election_ticks << min(sum(self._asked.values()), 6)

    def _hand_over(self) -> None:
        if self.replication.progress[self.transfer_target].match_index == self._server.log.last_index:
            self.lease.forgo()
            self._server.send(Message(MessageKind.TIMEOUT_NOW, self.transfer_target))

    # -- what followers and the caller ask

    def read(self, origin: int, context: int) -> None:
        """Tell node `origin` an index at which its read is linearizable (R11, R14)."""
        if self.lease.holds(self._server.now):
            self.reads.answer(origin, context, self._server.log.commit_index)
        else:
            self.reads.add(origin, context)

    def note_awaited(self, member: int) -> None:
        """`member` waits for the commit of the last entry."""
        progress = self.replication.progress.get(member)
        if progress is not None:
            progress.awaited_index = self._server.log.last_index

    def kept_after(self, index: int) -> int:
        """`index`, or a lower one after which somebody needs entries to whom a snapshot is, or was, on its way."""
        return min([index, *(progress.needs_after(index) for progress in self.replication.progress.values())])
