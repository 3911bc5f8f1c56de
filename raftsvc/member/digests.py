"""Do all members hold the same state?  A leader asks now and then, and who differs from a majority stops serving.

Each machine keeps a running digest of what it applied and of what the State
answered, so two members that applied the same index have the same digest, unless
memory or disk changed a bit of one, or the State is not deterministic.  Raft cannot
see that: its logs agree.  Each digest continues the one before, so who differed once
differs from then on, until its State starts anew from a snapshot.

The leader asks every member for its digest at an index, and says its own.  The rules:

1. Right is what a majority of the voters answered alike, and two members at least: one
   opinion is no evidence against another.  The voters are those of the configuration in
   force at the leader when it counts; learners answer, and are judged, but do not count.
2. Who differs from what is right is convicted, and serves no more.  The leader convicts
   itself, and then nobody else; only one that is right says of another that it is wrong.
   That one looks up its own digest, and counts the voters of the verdict against a
   majority of those that it knows itself: a change of membership that only one of the two
   has seen convicts nobody.
3. No answer is too late.  A question is remembered with its answers over later questions,
   the last `MAX_QUESTIONS` of them; a member that stopped applying still answers for
   what it applied before.
4. Where two differ and rule 1 does not tell who is right, after an election timeout both
   the leader and the one who differs say so (`disagreement`), and serve on.  That ends
   with a verdict, or when they agree at a later index.  Two voters that differ stay so:
   no third can tell.
5. A leader sends no snapshot while somebody differs from it and goes on saying so: whoever
   starts from one is no independent witness afterwards.  After `_SILENCE` election timeouts
   without a word it does, for the one who waits may be needed for a majority.

What this does not see.  A byte that no answer depends on is in no digest.  A snapshot
that a damaged member took and sent before any answer showed the damage (or before the
leader heard one that differs) makes its receiver answer as the sender does; if those two
are a majority, the healthy are convicted by it.  More than half of the voters damaged
alike are right by rule 1.  All this is against accidents, not against members that lie.

Used under the lock of the node; never waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from raftsvc.core.messages import NO_NODE, Message, MessageKind
from raftsvc.core.raft import Raft, Role
from raftsvc.errors import DisagreementError, DivergedError
from raftsvc.member.machine import Machine

_REMEMBERED = 8192
MAX_QUESTIONS: Final = 64
_SILENCE: Final = 5


class _Question:
    """What the leader asked all members at one index, and what they answered so far."""

    __slots__ = ("answers", "asked_tick", "index", "right", "voters")

    def __init__(self, index: int) -> None:
        self.index = index
        self.asked_tick = 0  # last
        self.answers: dict[int, int] = {}
        self.right: int | None = None  # once rule 1 tells
        self.voters = 0  # how many of them answered so


class _Difference:
    """Two members gave different answers, and nobody knows yet who is right."""

    __slots__ = ("index", "last_index", "last_tick", "own", "since", "theirs")

    def __init__(self, index: int, own: int, theirs: int, tick: int) -> None:
        self.index = self.last_index = index
        self.own = own
        self.theirs = theirs
        self.since = self.last_tick = tick


class DigestRecord:
    """The digests of one member: of what it applied last, and of what it answered for."""

    __slots__ = ("_answered", "_digests", "last_index")

    def __init__(self) -> None:
        self._digests: deque[int] = deque()  # of the entries up to and with last_index
        self._answered: dict[int, int] = {}  # to the last questions, for verdicts that come late
        self.last_index = 0

    def clear(self) -> None:
        """The State started anew: what it answered before is not its own any more."""
        self._digests.clear()
        self._answered.clear()

    def extend(self, first_index: int, fresh: list[int]) -> None:
        """Add what was applied since; nothing is forgotten before `forget_old`."""
        self._digests.extend(fresh)
        self.last_index = first_index + len(fresh) - 1

    def forget_old(self) -> None:
        """Keep no more than may be asked for."""
        while len(self._digests) > _REMEMBERED:
            self._digests.popleft()

    def at(self, index: int) -> int | None:
        """The digest at `index`, if it is remembered."""
        position = index - self.last_index - 1
        return self._digests[position] if -len(self._digests) <= position < 0 else self._answered.get(index)

    def last_answered(self) -> tuple[int, int] | None:
        """The last index about which somebody was told, and what."""
        return next(reversed(self._answered.items()), None)

    def note_answered(self, index: int, own: int) -> None:
        """Remember `own` for longer, since somebody was told it."""
        self._answered[index] = own
        _forget_oldest(self._answered)


class DigestCheck:
    """One member's part in comparing digests.

    mismatch:     set once this member is known to be wrong.
    disagreement: set while it differs from another, and it is not known who is wrong.
    agreed_index: the last one at which all who answered agreed with a majority.
    right:        the last entry of which this member learned what is right, and the digest there; (0, 0): of none.
    """

    def __init__(self, core: Raft, machine: Machine) -> None:
        self._core = core
        self._machine = machine
        self._own = DigestRecord()
        self._pending: deque[Message] = deque(maxlen=MAX_QUESTIONS)  # asked here, not yet applied
        self._replies: list[tuple[int, Message]] = []
        self._tick = 0
        self._differences: dict[int, _Difference] = {}  # by the other member; of a follower: its leader
        self._differs_from = NO_NODE  # as `disagreement` says
        self._term = 0  # the leader's state below is of this term
        self._asked: _Question | None = None  # last
        self._questions: dict[int, _Question] = {}
        self.agreed_index = 0
        self.right = 0, 0
        self.mismatch: DivergedError | None = None
        self.disagreement: DisagreementError | None = None
        self.applied()

    def latest(self) -> tuple[int, int]:
        """The last entry that was asked about, and the digest there; if none was, the last one; 0 and 0: there is none.

        Who compares his own goes by what the cluster will tell of.
        """
        answered = self._own.last_answered()
        if answered is not None:
            return answered
        digest = self._own.at(self._own.last_index)
        return (0, 0) if digest is None else (self._own.last_index, digest)

    @property
    def is_disputed(self) -> bool:
        """Whether somebody differs from this leader, goes on saying so, and it is not known who is wrong."""
        earliest = self._tick - _SILENCE * self._core.settings.election_ticks
        return any(difference.last_tick >= earliest for difference in self._differences.values())

    @property
    def applied_index(self) -> int:
        """How far this member came, as far as it is known."""
        return self._own.last_index

    def applied(self, was_restored: bool = False) -> None:
        """More was applied, the first of it maybe a snapshot.  Called by whoever applies, for the machine is read."""
        first_index, fresh = self._machine.take_digests()
        if was_restored or first_index != self._own.last_index + 1:
            # The State started anew from a snapshot: what it answered before is not its own any more.
            self._own.clear()
            self._questions.clear()
            self._asked = None
        self._own.extend(first_index, fresh)
        for _ in range(len(self._pending)):
            self._answer(self._pending.popleft())
        self._own.forget_old()

    # -- as a member

    def hear(self, m: Message) -> None:
        """Take a question, an answer or a verdict.  Late ones, of other terms, say nothing."""
        core = self._core
        if m.to_id != core.node_id or m.term != core.term or m.from_id not in core.config.members:
            return
        if m.kind is MessageKind.DIGEST_REPLY:
            if core.role is Role.LEADER and m.term == self._term:
                self._hear_answer(m)
        elif m.from_id != core.leader_id:
            pass
        elif m.reject:
            if m.context >= self._majority():
                self.right = max(self.right, (m.index, m.hint))
                self._judge_self(m.index, m.hint)
        else:
            self._answer(m)

    def _majority(self) -> int:
        """How many voters have to agree before anybody is convicted (rule 1)."""
        return max(self._core.config.quorum(), 2)

    def _answer(self, m: Message) -> None:
        if m.index > self._own.last_index:
            self._pending.append(m)
            return
        own = self._own.at(m.index)
        if own is None or m.term != self._core.term:
            return
        here = self._core.log.term_at(m.index)
        if m.log_term and here is not None and here != m.log_term:
            return  # not the States differ, but what is committed: the next entries of the leader tell (core.following)
        self._own.note_answered(m.index, own)
        self._replies.append((m.from_id, self._message(MessageKind.DIGEST_REPLY, m.from_id, m.index, own)))
        for other_id in [i for i in self._differences if i != m.from_id]:
            del self._differences[other_id]  # whoever led before, or followed when this member led
        self._compare(m.from_id, m.index, own, m.hint)
        if own == m.hint and self._majority() == 2 and {self._core.node_id, m.from_id} <= self._core.config.voters:
            self.right = max(self.right, (m.index, own))  # these two are one

    def take_replies(self) -> list[tuple[int, Message]]:
        """What is to be said, and to whom."""
        replies, self._replies = self._replies, []
        return replies

    def _judge_self(self, index: int, right: int) -> None:
        own = self._own.at(index)
        if own is not None and own != right:
            self.mismatch = DivergedError(
                f"node {self._core.node_id} differs from its cluster: the digest of what it applied up to entry "
                f"{index} is {own:08x}, that of a majority {right:08x}.  Its State is damaged, or does not apply "
                "deterministically.  A restart applies the log anew since the last snapshot; if that does not help, "
                "evict this member and join with an empty directory",
                index,
            )

    def _message(
        self, kind: MessageKind, to_id: int, index: int, digest: int, reject: bool = False, voters: int = 0
    ) -> Message:
        core = self._core
        return Message(
            kind, to_id, core.node_id, term=core.term, index=index, context=voters, hint=digest, reject=reject
        )

    # -- who differs

    def _compare(self, other_id: int, index: int, own: int, theirs: int) -> None:
        known = self._differences.get(other_id)
        if own == theirs:
            if known is not None and index >= known.last_index:
                del self._differences[other_id]
        elif known is None:
            self._differences[other_id] = _Difference(index, own, theirs, self._tick)
        else:
            known.last_index = max(known.last_index, index)
            known.last_tick = self._tick

    def _review(self) -> None:
        """Say that there is a disagreement once it has lasted, and no longer than it lasts (rule 4)."""
        core = self._core
        for other_id in [i for i in self._differences if i not in core.config.members]:
            del self._differences[other_id]
        lasting = {
            other_id: difference
            for other_id, difference in self._differences.items()
            if self._tick - difference.since >= core.settings.election_ticks
        }
        if self._differs_from not in lasting:
            self._differs_from, self.disagreement = NO_NODE, None
        if lasting and self.disagreement is None:
            self._differs_from = other_id = min(lasting)
            difference = lasting[other_id]
            self.disagreement = DisagreementError(
                f"nodes {core.node_id} and {other_id} differ: the digests of what they applied up to entry "
                f"{difference.index} are {difference.own:08x} and {difference.theirs:08x}, and no majority of the "
                "voters answered alike, which would tell who is right.  The State of one of them is damaged, or does "
                "not apply deterministically.  Both serve on; of the two, the one that leads sends no snapshot "
                "meanwhile.  Bring the other voters back: their answers decide it.  If there are none, restart first "
                "the one and then the other, which applies the log anew since the last snapshot; if they still "
                "differ, compare their data, stop the member whose data is wrong, evict it, and have it join with an "
                "empty directory"
            )

    # -- as the leader

    def announce(self) -> Iterator[tuple[int, Message]]:
        """A tick passed: the questions to ask now, if any."""
        self._tick += 1
        core = self._core
        if core.role is Role.LEADER and self._term != core.term:
            self._term, self._asked = core.term, None
            self._questions.clear()
            self._differences.clear()
        self._review()
        if core.role is Role.LEADER and self._is_time_to_ask():
            digest = self._own.at(self._own.last_index)
            if digest is not None:  # else nothing was applied yet
                question = self._ask(digest)
                term = core.log.term_at(question.index) or 0
                for peer_id in core.config.members:
                    if peer_id != core.node_id:
                        message = self._message(MessageKind.DIGEST, peer_id, question.index, digest)
                        message.log_term = term
                        yield peer_id, message

    def _is_time_to_ask(self) -> bool:
        last = self._asked
        if last is None or self._tick - last.asked_tick >= self._core.settings.election_ticks:
            return True
        return self._own.last_index > last.index and set(last.answers) >= set(self._core.config.members)

    def _ask(self, digest: int) -> _Question:
        core = self._core
        if self._asked is not None and set(self._asked.answers) >= set(core.config.members):
            self._questions.pop(self._asked.index, None)  # all is said
        # Asked again, it keeps the answers that it has.
        self._asked = question = self._questions.setdefault(self._own.last_index, _Question(self._own.last_index))
        question.asked_tick = self._tick
        _forget_oldest(self._questions)
        self._own.note_answered(question.index, digest)
        self._take_answer(question, core.node_id, digest)
        return question

    def _hear_answer(self, m: Message) -> None:
        question = self._questions.get(m.index)
        if question is not None:
            self._take_answer(question, m.from_id, m.hint)

    def _take_answer(self, question: _Question, node_id: int, digest: int) -> None:
        """Add an answer, find out whether the answers tell what is right, and who is wrong then."""
        answers = question.answers
        answers[node_id] = digest
        self._compare(node_id, question.index, answers[self._core.node_id], digest)
        if question.right is None:
            self._count(question)
            judged = list(answers)
        else:
            judged = [node_id]
        if question.right is None:
            return
        if question.voters >= self._majority():
            self.right = max(self.right, (question.index, question.right))
        if set(answers.values()) == {question.right}:
            self.agreed_index = max(self.agreed_index, question.index)
        elif question.voters >= self._majority():
            if answers[self._core.node_id] != question.right:
                self._judge_self(question.index, question.right)
                return
            for peer_id in judged:
                if answers[peer_id] != question.right:
                    self._convict(peer_id, question.index, question.right, question.voters)

    def _convict(self, peer_id: int, index: int, right: int, voters: int) -> None:
        verdict = self._message(MessageKind.DIGEST, peer_id, index, right, reject=True, voters=voters)
        self._replies.append((peer_id, verdict))
        self._differences.pop(peer_id, None)

    def _count(self, question: _Question) -> None:
        config = self._core.config
        votes = [question.answers[i] for i in config.voters if i in question.answers]
        right = max(votes, key=votes.count, default=None)
        if right is not None and votes.count(right) >= config.quorum():
            question.right, question.voters = right, votes.count(right)


def _forget_oldest(remembered: dict[int, _Question] | dict[int, int]) -> None:
    while len(remembered) > MAX_QUESTIONS:
        del remembered[next(iter(remembered))]
