"""Elections: when a server campaigns, whom it votes for, and who voted for it (5.2, 5.4.1; thesis 9.6, 4.2.3).

What follows from a vote that is won or lost, a new role, is for `raft.Raft`.
"""

from __future__ import annotations

from raftsvc.core.messages import NO_NODE, Message, MessageKind
from raftsvc.core.server import TRANSFER, VOTE_OF, Server, Settings


def _ticks_of(promise_ns: int, settings: Settings) -> int:
    """After how many ticks a promise is over that is longer than those of `settings`; 0 of any other.

    A restarted server waits as long as its own promises last in any case.
    """
    if promise_ns <= settings.promise_ns:
        return 0
    return 1 + -(-promise_ns // max(settings.tick_ns, 1))  # the first tick may be almost over


class Election:
    """One server's part in elections.

    elapsed:        ticks since its election timer was reset.
    leader_elapsed: ticks since it heard a leader; the promise of R3 lasts an election timeout.
    bound_ticks:    for so long it keeps a promise of a former life, which was started with a longer
                    timeout: it votes for nobody, itself included (R14).
    stands:         whether votes of the present term were asked for, and none of what came since
                    ended that: not the pre-votes either that are asked for when they do not come.
    """

    __slots__ = (
        "_pre_votes",
        "_server",
        "_timeout_ticks",
        "_votes",
        "bound_ticks",
        "elapsed",
        "leader_elapsed",
        "stands",
    )

    def __init__(self, server: Server) -> None:
        self._server = server
        self._votes: dict[int, bool] = {}
        self._pre_votes: dict[int, bool] = {}
        self.stands = False
        self._timeout_ticks = 0
        # A node that was never in a term never promised anything.
        self.leader_elapsed = 0 if server.term else server.settings.election_ticks
        self.bound_ticks = _ticks_of(server.recovered.promise_ns, server.settings) if server.term else 0
        self.reset_timer()

    # -- time

    def reset_timer(self) -> None:
        """Draw a new timeout for each attempt, lest two candidates split votes for ever (5.2)."""
        self.elapsed = 0
        ticks = self._server.settings.election_ticks
        self._timeout_ticks = ticks + self._server.settings.random.randrange(ticks)

    def tick(self) -> bool:
        """A tick passed in which this server did not lead; whether its timer has run out."""
        self.leader_elapsed += 1
        if self.bound_ticks:
            self._count_down()
            return False
        self.elapsed += 1
        return self.elapsed >= self._timeout_ticks

    def _count_down(self) -> None:
        self.bound_ticks -= 1
        if not self.bound_ticks:  # what this life promised is all that there is
            self._server.output.note_promise(self._server.settings.promise_ns)

    def hear_leader(self) -> None:
        """A message of the leader of this term came."""
        self.elapsed = self.leader_elapsed = 0

    def become_leader(self) -> None:
        """The election is won; from now on no other leader is heard."""
        self.close()
        self.leader_elapsed = self._server.settings.election_ticks

    @property
    def hears_leader(self) -> bool:
        """Whether a leader was heard from within the election timeout (R3).

        Which one, and in which term, is no matter: a newer term that was heard of since
        ends no promise, for that leader may not have heard of it (R14).
        """
        return self.leader_elapsed < self._server.settings.election_ticks or self.bound_ticks > 0

    # -- as a candidate

    def ask(self, kind: MessageKind, term: int, context: int) -> None:
        """Open a ballot, and ask all other voters: for the present term, or about the next one."""
        server = self._server
        if kind is MessageKind.VOTE:
            self._votes = {}
            self.stands = True
        else:
            self._pre_votes = {}
        for peer in sorted(server.config.voters - {server.node_id}):
            request = Message(
                kind, peer, term=term, index=server.log.last_index, log_term=server.log.last_term, context=context
            )
            server.send(request, after=kind is MessageKind.VOTE)

    def count(self, kind: MessageKind, voter: int, granted: bool) -> bool | None:
        """Count one answer; only voters count, and each once.  Whether it is won, or lost; None if neither is sure."""
        votes = self._votes if kind is MessageKind.VOTE else self._pre_votes
        votes.setdefault(voter, granted)
        voters = self._server.config.voters
        quorum = self._server.config.quorum()
        if sum(votes.get(i) is True for i in voters) >= quorum:
            return True
        # Lost once too few are left who did not refuse: of an even number half are enough for that.
        if sum(votes.get(i) is not False for i in voters) < quorum:
            return False
        return None

    def close(self) -> None:
        """No answer counts any more."""
        self._votes = {}
        self._pre_votes = {}
        self.stands = False

    # -- as a voter

    def judge(self, m: Message, is_leader: bool) -> None:
        """Answer a request for a vote or pre-vote (R1).

        A learner is asked only by a candidate whose configuration made it a voter,
        of which it may not have heard, so it answers like any other node.
        """
        server = self._server
        is_real = m.kind is MessageKind.VOTE
        is_bound = m.context != TRANSFER and (is_leader or self.hears_leader)  # R3
        is_free = (
            server.vote == m.from_id
            or (server.vote == NO_NODE and server.leader_id == NO_NODE and not is_bound)
            or (not is_real and m.term > server.term)
        )
        reply = Message(VOTE_OF[m.kind], m.from_id)
        # Who knows of no members has an empty log, and may have had another: it gives no vote.
        if is_free and server.config.members and server.log.is_up_to_date(m.index, m.log_term):
            if is_real:
                self.elapsed = 0  # only a vote given postpones our own campaign
                if server.vote != m.from_id:
                    server.vote_for(m.from_id)
            reply.term = m.term
        else:
            reply.reject = True
        server.send(reply, after=True)
