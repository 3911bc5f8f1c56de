"""Rules of the core that a call or two shows better than a scene."""

from __future__ import annotations

from random import Random

import pytest

from raftsvc.core.membership import ConfChange, Configuration, ConfOp, Member
from raftsvc.core.messages import Entry, EntryKind, HardState, Message, MessageKind, make_entry, term_of
from raftsvc.core.raft import ProposalRefused, Raft, Refusal, Role, Settings, SnapshotMeta

CONFIG = Configuration({i: Member(f"n{i}", True) for i in (1, 2, 3)}, 3)
TICKS = 10


class Latest(Random):
    """Draws the longest election timeouts."""

    def randrange(self, stop: int) -> int:  # type: ignore[override]
        return stop - 1


def entry(index: int, term: int) -> Entry:
    return make_entry(index, term, EntryKind.NORMAL, b"%d@%d" % (index, term))


def make(node_id: int, hard_state: HardState | None = None, entries: list[Entry] | None = None, **options: int) -> Raft:
    settings = Settings(node_id, Latest(1), election_ticks=TICKS, **options)  # type: ignore[arg-type]
    return Raft(settings, hard_state, SnapshotMeta(0, 0, CONFIG), entries or [])


def pump(raft: Raft) -> list[Message]:
    """Everything that it says, its writes done at once."""
    said: list[Message] = []
    while (ready := raft.ready()) is not None:
        said += ready.messages
        if ready.must_persist:
            raft.persisted(ready.token)
        said += ready.messages_after
    return said


def make_leader(**options: int) -> Raft:
    raft = make(1, **options)
    raft.campaign()
    for kind in (MessageKind.PRE_VOTE_REPLY, MessageKind.VOTE_REPLY):
        pump(raft)
        raft.step(Message(kind, 1, 2, term=1))
    pump(raft)
    assert raft.role is Role.LEADER
    return raft


def test_what_the_state_of_a_leader_has_not_applied_counts_in_its_quota() -> None:
    raft = make_leader(max_uncommitted_bytes=1000)
    raft.step(Message(MessageKind.APPEND_REPLY, 1, 2, term=1, index=raft.log.last_index))
    assert raft.log.commit_index == raft.log.last_index
    raft.log.unapplied_bytes = 995
    last = raft.log.last_index
    change = ConfChange(ConfOp.ADD_LEARNER, 4, "n4").as_proposal()
    for proposals in (((EntryKind.NORMAL, bytes(100)),), (change,), ((EntryKind.NORMAL, bytes(30)),) * 2):
        with pytest.raises(ProposalRefused) as refused:
            raft.propose(proposals)
        assert refused.value.refusal is Refusal.QUOTA
    forwarded = Message(
        MessageKind.PROPOSE, 1, 2, log_term=1, context=7, entries=[make_entry(0, 0, EntryKind.NORMAL, bytes(100))]
    )
    raft.step(forwarded)
    assert [(m.to_id, m.reject, m.hint) for m in pump(raft) if m.kind is MessageKind.PROPOSE_REPLY] == [
        (2, True, Refusal.QUOTA)
    ]
    assert raft.log.last_index == last
    raft.log.unapplied_bytes = 0
    raft.propose(((EntryKind.NORMAL, bytes(100)),))


def test_a_commit_is_recorded_after_the_entries_that_it_speaks_of() -> None:
    """Both are records of one write: a crash between them must not commit what was there before."""
    raft = make(3, HardState(1, 0, 2), [entry(1, 1), entry(2, 1), entry(3, 1), entry(4, 1)])
    raft.step(Message(MessageKind.APPEND, 3, 2, 2, index=2, log_term=1, commit=4, entries=[entry(3, 2), entry(4, 2)]))
    assert raft.log.commit_index == 4
    ready = raft.ready()
    assert ready is not None and [term_of(e) for e in ready.entries] == [2, 2]
    assert ready.hard_state == HardState(2, 0, 2)
    raft.persisted(ready.token)
    raft.step(Message(MessageKind.APPEND, 3, 2, 2, index=4, log_term=2, commit=5, entries=[entry(5, 2)]))
    ready = raft.ready()
    while ready is not None and not ready.must_persist:
        ready = raft.ready()
    assert ready is not None and ready.hard_state == HardState(2, 0, 4)


def test_a_leader_hears_itself_however_long_its_election_took() -> None:
    """Else one that returns with an up-to-date log deposes it (R3)."""
    raft = make(1)
    raft.campaign()
    pump(raft)
    raft.step(Message(MessageKind.PRE_VOTE_REPLY, 1, 2, term=1))
    pump(raft)
    for _ in range(TICKS + 2):
        raft.tick()
    raft.step(Message(MessageKind.VOTE_REPLY, 1, 2, term=1))
    pump(raft)
    assert raft.role is Role.LEADER
    raft.step(Message(MessageKind.PRE_VOTE, 1, 3, term=2, index=1, log_term=1))
    assert not [m for m in pump(raft) if m.kind is MessageKind.PRE_VOTE_REPLY and not m.reject]
    raft.step(Message(MessageKind.VOTE, 1, 3, term=2, index=1, log_term=1))
    assert (raft.role, raft.term) == (Role.LEADER, 1)


def test_a_request_that_comes_twice_is_decided_once() -> None:
    """The answer to the second would say of the first what is not true: appended, and refused."""
    raft = make_leader(max_uncommitted_bytes=100)
    raft.step(Message(MessageKind.APPEND_REPLY, 1, 2, term=1, index=1))
    pump(raft)
    proposal = [make_entry(0, 0, EntryKind.NORMAL, bytes(90))]
    request = Message(MessageKind.PROPOSE, 1, 2, context=7, log_term=1, entries=proposal)
    raft.step(request)
    assert [m.reject for m in pump(raft) if m.kind is MessageKind.PROPOSE_REPLY] == [False]
    raft.step(request)
    assert not [m for m in pump(raft) if m.kind is MessageKind.PROPOSE_REPLY]
    raft.step(Message(MessageKind.PROPOSE, 1, 2, context=8, log_term=1, entries=proposal))
    assert [m.hint for m in pump(raft) if m.kind is MessageKind.PROPOSE_REPLY] == [Refusal.QUOTA]
    for i in (2, 3):
        raft.step(Message(MessageKind.APPEND_REPLY, 1, i, term=1, index=raft.log.last_index))
    pump(raft)
    last = raft.log.last_index
    raft.step(Message(MessageKind.PROPOSE, 1, 2, context=8, log_term=1, entries=proposal))
    assert not [m for m in pump(raft) if m.kind is MessageKind.PROPOSE_REPLY]
    assert raft.log.last_index == last, "what was refused is not appended later"


def test_requests_that_nobody_waits_for_may_repeat() -> None:
    raft = make_leader()
    for _ in range(2):
        raft.step(Message(MessageKind.PROPOSE, 1, 2, entries=[make_entry(0, 0, EntryKind.NORMAL, b"x")]))
        assert [m.reject for m in pump(raft) if m.kind is MessageKind.PROPOSE_REPLY] == [False]
