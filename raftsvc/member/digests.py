"""Do all members hold the same state?  A leader asks now and then, and who differs stops serving.

Each machine keeps a running digest of what it applied and of what the State
answered, so two members that applied the same index have the same digest, unless
memory or disk changed a bit of one, or the State is not deterministic.  Raft cannot
see that: its logs agree.  The leader asks every member for its digest at an index,
and what a majority of voters has is right.  Where no majority can be had within an
election timeout the leader is right.

Used under the lock of the node; never waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from raftsvc.core.messages import Message, MessageKind
from raftsvc.core.raft import Raft, Role
from raftsvc.errors import DivergedError
from raftsvc.member.machine import Machine

_REMEMBERED = 8192
_MAX_PENDING = 16


class DigestCheck:
    """One member's part in comparing digests; `mismatch` is set once this member is known to differ."""

    def __init__(self, core: Raft, machine: Machine) -> None:
        self._core = core
        self._machine = machine
        self._digests: deque[int] = deque()  # of the entries up to and with _last_index
        self._last_index = 0
        self._pending: deque[Message] = deque(maxlen=_MAX_PENDING)  # asked here, not yet applied
        self._replies: list[tuple[int, Message]] = []
        self._term = 0  # the leader's state below is of this term
        self._asked_index = 0
        self._asked_ticks = 0
        self._answers: dict[int, int] = {}
        self._agreed: dict[int, int] = {}  # digests known to be right; the last few
        self.agreed_index = 0
        self.mismatch: DivergedError | None = None
        self.applied()

    def applied(self) -> None:
        """More was applied.  Called by whoever applies, for the machine is read."""
        first_index, fresh = self._machine.take_digests()
        if first_index != self._last_index + 1:
            self._digests.clear()
        self._digests.extend(fresh)
        self._last_index = first_index + len(fresh) - 1
        for _ in range(len(self._pending)):
            self._answer(self._pending.popleft())
        while len(self._digests) > _REMEMBERED:
            self._digests.popleft()

    def _digest_at(self, index: int) -> int | None:
        position = index - self._last_index - 1
        return self._digests[position] if -len(self._digests) <= position < 0 else None

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
            self._judge_self(m.index, m.hint)
        else:
            self._answer(m)

    def _answer(self, m: Message) -> None:
        if m.index > self._last_index:
            self._pending.append(m)
            return
        digest = self._digest_at(m.index)
        if digest is not None and m.term == self._core.term:
            self._replies.append((m.from_id, self._message(MessageKind.DIGEST_REPLY, m.from_id, m.index, digest)))

    def take_replies(self) -> list[tuple[int, Message]]:
        """What is to be said, and to whom."""
        replies, self._replies = self._replies, []
        return replies

    def _judge_self(self, index: int, right: int) -> None:
        own = self._digest_at(index)
        if own is not None and own != right:
            self.mismatch = DivergedError(
                f"node {self._core.node_id} differs from its cluster: the digest of what it applied up to entry "
                f"{index} is {own:08x}, that of the others {right:08x}.  Its State is damaged, or does not apply "
                "deterministically.  A restart applies the log anew since the last snapshot; if that does not help, "
                "evict this member and join with an empty directory"
            )

    def _message(self, kind: MessageKind, to_id: int, index: int, digest: int, reject: bool = False) -> Message:
        core = self._core
        return Message(kind, to_id, core.node_id, term=core.term, index=index, hint=digest, reject=reject)

    # -- as the leader

    def announce(self) -> Iterator[tuple[int, Message]]:
        """A tick passed: the questions to ask now, if any."""
        core = self._core
        if core.role is not Role.LEADER:
            return
        if self._term != core.term:
            self._term, self._asked_index, self._asked_ticks = core.term, 0, 0
            self._answers, self._agreed = {}, {}
        self._asked_ticks += 1
        is_late = self._asked_ticks >= core.settings.election_ticks
        if self._asked_index and is_late:
            self._conclude(is_final=True)
        if is_late or (
            self._last_index > self._asked_index
            and (not self._asked_index or set(self._answers) >= set(core.config.members))
        ):
            own = self._digest_at(self._last_index)
            if own is None:
                return  # nothing was applied yet
            self._asked_index, self._asked_ticks = self._last_index, 0
            self._answers = {core.node_id: own}
            for peer_id in core.config.members:
                if peer_id != core.node_id:
                    yield peer_id, self._message(MessageKind.DIGEST, peer_id, self._asked_index, 0)

    def _hear_answer(self, m: Message) -> None:
        if m.index == self._asked_index:
            self._answers.setdefault(m.from_id, m.hint)
            self._conclude(is_final=set(self._answers) >= self._core.config.voters)
        elif m.index in self._agreed:
            self._compare(m.from_id, m.index, m.hint)

    def _conclude(self, is_final: bool) -> None:
        """Find out what is right at the index asked for, if the answers tell, and who differs."""
        index, answers = self._asked_index, self._answers
        if index not in self._agreed:
            votes = [answers[i] for i in self._core.config.voters if i in answers]
            right = max(votes, key=votes.count, default=None)
            if right is None or votes.count(right) < self._core.config.quorum():
                if not is_final:
                    return
                right = answers[self._core.node_id]
            self._agreed[index] = right
            while len(self._agreed) > _MAX_PENDING:
                del self._agreed[next(iter(self._agreed))]
            if all(digest == right for digest in answers.values()):
                self.agreed_index = index
        for node_id, digest in answers.items():
            self._compare(node_id, index, digest)

    def _compare(self, node_id: int, index: int, digest: int) -> None:
        right = self._agreed[index]
        if digest == right:
            return
        if node_id == self._core.node_id:
            self._judge_self(index, right)
        else:
            verdict = self._message(MessageKind.DIGEST, node_id, index, right, reject=True)
            self._replies.append((node_id, verdict))
