"""For how long a leader may read by its lease, by what its followers promised, and when (section 6.4.1)."""

from __future__ import annotations

from random import Random

from raftsvc.core.log import SnapshotMeta
from raftsvc.core.membership import ConfChange, Configuration, ConfOp
from raftsvc.core.messages import HardState, Message, MessageKind
from raftsvc.core.raft import Raft, Settings

SECOND = 10**9


def voters() -> Configuration:
    made = Configuration().changed(ConfChange(ConfOp.ADD_VOTER, 1, "http://n1:1/raft"))
    for node_id in (2, 3):
        made = made.changed(ConfChange(ConfOp.ADD_LEARNER, node_id, f"http://n{node_id}:1/raft"))
        made = made.changed(ConfChange(ConfOp.PROMOTE, node_id))
    return made


class Leading:
    """Node 1 of three, which leads with leases, and node 2, for which the test answers."""

    def __init__(self) -> None:
        settings = Settings(1, Random(1), election_ticks=10, promise_ns=9 * SECOND, tick_ns=SECOND, uses_leases=True)
        self.raft = Raft(settings, HardState(term=1, commit=100), SnapshotMeta(100, 1, voters(), 0))
        self.raft.now = 0
        while self.raft.leader is None:
            self.raft.tick()
            for message in self.out():
                if message.to_id == 2 and message.kind is MessageKind.PRE_VOTE:
                    self.raft.step(Message(MessageKind.PRE_VOTE_REPLY, 1, from_id=2, term=message.term))
                elif message.to_id == 2 and message.kind is MessageKind.VOTE:
                    self.raft.step(Message(MessageKind.VOTE_REPLY, 1, from_id=2, term=message.term))
        self.answer(9 * SECOND)

    def out(self) -> list[Message]:
        found: list[Message] = []
        while (ready := self.raft.ready()) is not None:
            found += [*ready.messages, *ready.messages_after]
            if ready.must_persist:
                self.raft.persisted(ready.token)
        return found

    def beat(self, seconds: float) -> int:
        """The round that it asks by then."""
        assert self.raft.leader is not None
        self.raft.now = int(seconds * SECOND)
        for _ in range(self.raft.settings.heartbeat_ticks):
            self.raft.tick()
        self.out()
        return self.raft.leader.replication.round

    def answer(self, promise_ns: int, number: int | None = None, *, reject: bool = False) -> None:
        assert self.raft.leader is not None
        number = self.raft.leader.replication.round if number is None else number
        self.raft.step(
            Message(
                MessageKind.APPEND_REPLY,
                1,
                from_id=2,
                term=self.raft.term,
                index=self.raft.log.last_index,
                context=number,
                reject=reject,
                hint=100 if reject else promise_ns,
                log_term=1 if reject else 0,
            )
        )
        self.out()

    @property
    def window(self) -> tuple[int, int]:
        assert self.raft.leader is not None
        return self.raft.leader.lease._window


def test_who_refuses_what_it_is_sent_prolongs_no_promise_that_it_made_before() -> None:
    leading = Leading()
    leading.beat(1)
    leading.answer(9 * SECOND)
    leading.beat(2)
    _, before = leading.window
    assert before > 2 * SECOND
    assert leading.raft.leader is not None
    leading.raft.leader.replication.progress[2].match_index = 90  # what came since then did not arrive there
    leading.beat(20)
    leading.answer(0, reject=True)
    leading.beat(20.5)
    assert leading.window[1] <= before, "it may have been started anew, with a shorter promise"


def test_a_promise_that_comes_late_has_not_the_round_of_a_later_one() -> None:
    leading = Leading()
    first = leading.beat(1)
    leading.beat(2)
    leading.answer(SECOND)
    _, before = leading.window
    leading.answer(9 * SECOND, first)
    leading.beat(2.1)
    assert leading.window[1] <= before
