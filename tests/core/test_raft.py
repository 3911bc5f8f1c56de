"""Rules of the core that a call or two shows better than a scene."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

import pytest

from raftsvc.core.membership import (
    MAX_VACANCIES,
    ConfChange,
    Configuration,
    ConfOp,
    Founders,
    InvalidChangeError,
    Member,
)
from raftsvc.core.messages import NO_NODE, Entry, EntryKind, HardState, Message, MessageKind, make_entry, term_of
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


@pytest.mark.parametrize("promise_ns", [200_000_000, 300_000_000, 900_000_000])
def test_that_promises_are_shorter_now_is_written_down_once_and_then_nothing(promise_ns: int) -> None:
    known = HardState(term=1, vote=1, promise_ns=900_000_000)
    raft = make(2, known, [entry(1, 1)], promise_ns=promise_ns, tick_ns=100_000_000)
    written = []
    for number in range(1, 200):
        raft.tick()
        raft.step(Message(MessageKind.APPEND, 2, 1, term=1, index=1, log_term=1, commit=1, context=number))
        while (ready := raft.ready()) is not None:
            if ready.must_persist:
                written.append((ready.hard_state, ready.entries))
                raft.persisted(ready.token)
            assert len(written) < 2
            assert len(ready.messages_after) < 2, "no answer waits for it"
    assert raft.role is Role.FOLLOWER
    assert written == ([(HardState(1, 1, 1, promise_ns), [])] if promise_ns != known.promise_ns else [])


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


def test_an_empty_log_gives_no_vote() -> None:
    settings = Settings(2, Latest(1), election_ticks=TICKS)
    for config, is_given in ((Configuration(), False), (CONFIG, True)):
        raft = Raft(settings, None, SnapshotMeta(0, 0, config), [])
        for kind in (MessageKind.PRE_VOTE, MessageKind.VOTE):
            raft.step(Message(kind, 2, 1, term=1, index=5, log_term=1))
            (reply,) = pump(raft)
            assert reply.reject is not is_given


FOUNDERS = Founders(9, (("n1", b"1" * 16), ("n2", b"2" * 16), ("n3", b"3" * 16)))


def test_founders_are_voters_in_their_order_and_found_once() -> None:
    founding = ConfChange(ConfOp.FOUND, 3, founders=FOUNDERS)
    config = Configuration().changed(founding)
    assert {i: (m.addr, m.is_voter) for i, m in config.members.items()} == {i: (f"n{i}", True) for i in (1, 2, 3)}
    assert config.highest_id == 3
    with pytest.raises(InvalidChangeError):
        config.changed(founding)
    leader = make_leader()
    with pytest.raises(ProposalRefused) as refused:
        leader.propose([ConfChange(ConfOp.FOUND, 3, founders=FOUNDERS).as_proposal()])
    assert refused.value.refusal in (Refusal.INVALID_CHANGE, Refusal.CHANGE_PENDING)


@pytest.mark.parametrize(("removal", "may_join"), [(ConfOp.REMOVE, False), (ConfOp.REPLACE, True)])
def test_where_a_member_was_removed_a_list_lets_in_only_who_replaces_it(removal: ConfOp, may_join: bool) -> None:
    config = CONFIG.changed(ConfChange(removal, 3))
    assert config.vacant == {"n3": may_join}
    by_list, by_state = ConfChange(ConfOp.ADD_LISTED, 4, "n3"), ConfChange(ConfOp.ADD_LEARNER, 4, "n3")
    if may_join:
        assert config.changed(by_list).learners == {4}
    else:
        with pytest.raises(InvalidChangeError, match="in no list any more"):
            config.changed(by_list)
    assert config.changed(by_state).vacant == {}


def removed_from(addrs: Iterable[str], config: Configuration = CONFIG, op: ConfOp = ConfOp.REMOVE) -> Configuration:
    """`config` after a learner came and went at each of those addresses."""
    for i, addr in enumerate(addrs, config.highest_id + 1):
        config = config.changed(ConfChange(ConfOp.ADD_LEARNER, i, addr)).changed(ConfChange(op, i))
    return config


def comes_back(config: Configuration, addr: str) -> bool:
    """Whether a node at `addr` is let in because it is in a list, also by who started from a snapshot."""
    assert Configuration.decode(config.encode()) == config
    try:
        config.changed(ConfChange(ConfOp.ADD_LISTED, config.highest_id + 1, addr))
    except InvalidChangeError:
        return False
    return True


@pytest.mark.parametrize("later", [MAX_VACANCIES - 1, MAX_VACANCIES, 3 * MAX_VACANCIES])
@pytest.mark.parametrize("op", [ConfOp.REMOVE, ConfOp.REPLACE])
def test_who_was_evicted_is_never_forgotten_whatever_is_evicted_later(op: ConfOp, later: int) -> None:
    config = removed_from((f"x{i}" for i in range(later)), removed_from(["gone"]), op)
    assert len(config.vacant) <= MAX_VACANCIES
    assert not comes_back(config, "gone")
    # Who never was there is still let in as long as that can be told apart.
    assert comes_back(config, "never") is (later < MAX_VACANCIES)
    allowed = config.changed(ConfChange(ConfOp.ADD_LEARNER, config.highest_id + 1, "gone"))
    assert allowed.id_of("gone"), "the State's word counts"


def test_who_is_to_be_replaced_may_be_however_many_were_evicted() -> None:
    config = removed_from(f"x{i}" for i in range(2 * MAX_VACANCIES))
    config = removed_from(["lost"], config, ConfOp.REPLACE)
    assert comes_back(config, "lost") and not comes_back(config, "x1") and not comes_back(config, "never")
    config = removed_from((f"y{i}" for i in range(2 * MAX_VACANCIES)), config, ConfOp.REPLACE)
    assert len(config.vacant) <= MAX_VACANCIES
    assert not comes_back(config, "lost"), "a permission may be forgotten, a prohibition not"


def test_an_address_that_another_member_took_meanwhile_is_still_one_that_somebody_was_evicted_from() -> None:
    config = CONFIG.changed(ConfChange(ConfOp.REMOVE, 3))
    moved = config.changed(ConfChange(ConfOp.SET_ADDRESS, 2, "n3"))
    assert not comes_back(moved.changed(ConfChange(ConfOp.SET_ADDRESS, 2, "n2")), "n3")
    replaced = CONFIG.changed(ConfChange(ConfOp.REPLACE, 3)).changed(ConfChange(ConfOp.SET_ADDRESS, 2, "n3"))
    assert "n3" not in replaced.vacant, "its place was taken"


@pytest.mark.parametrize("op", [ConfOp.REMOVE, ConfOp.REPLACE])
def test_who_was_evicted_from_nobody_knows_where_does_not_come_back_from_there(op: ConfOp) -> None:
    config = CONFIG.changed(ConfChange(ConfOp.SET_ADDRESS, 2, "n3")).changed(ConfChange(op, 3))
    config = config.changed(ConfChange(ConfOp.SET_ADDRESS, 2, "n2"))
    assert not comes_back(config, "n3")


def test_a_replacement_that_was_not_meant_is_taken_back() -> None:
    config = CONFIG.changed(ConfChange(ConfOp.REPLACE, 3))
    taken_back = config.changed(ConfChange(ConfOp.REMOVE, NO_NODE, "n3"))
    assert comes_back(config, "n3") and not comes_back(taken_back, "n3")
    for wrong in (taken_back, CONFIG, config.changed(ConfChange(ConfOp.ADD_LISTED, 4, "n3"))):
        with pytest.raises(InvalidChangeError, match="nobody was to be replaced"):
            wrong.changed(ConfChange(ConfOp.REMOVE, NO_NODE, "n3"))
