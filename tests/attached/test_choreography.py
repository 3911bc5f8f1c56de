"""An owner and an attached process, word by word: who says what when, and what is certain of a call at each step."""

from __future__ import annotations

from random import Random
from unittest.mock import Mock
from zlib import crc32

import pytest

from raftsvc.attached.replica import FeedBrokenError, OwnersCore, Replica, needs_restart
from raftsvc.core.membership import ConfChange, Configuration, ConfOp
from raftsvc.core.messages import Entry, EntryKind, HardState, Life, Message, MessageKind, make_entry
from raftsvc.core.raft import Refusal
from raftsvc.errors import DivergedError, EvictedError, NodeFailedError, NotApplied, OutcomeUnknown
from raftsvc.member.attachment import (
    Answer,
    AskIndex,
    Entries,
    Hello,
    Index,
    News,
    Propose,
    Said,
    Unreadable,
    Welcome,
)
from raftsvc.member.calls import Contexts
from raftsvc.member.engine import Engine, EngineOptions
from raftsvc.member.envelopes import wrap_close, wrap_open, wrap_void
from raftsvc.member.feed import FeedError
from raftsvc.member.health import Condition
from raftsvc.member.live import NotContinuedError
from raftsvc.member.sessions import Outcome, Sessions
from raftsvc.member.waiters import Call, Read
from raftsvc.storage import SnapshotHeader, Store
from raftsvc.testing import Faults, RegisterState, RegisterWorkload, SimulatedDisk
from raftsvc.testing.schedule import SECOND
from raftsvc.testing.simulation import Simulation

CLUSTER = 0xABC
ADD = b'["add", "a", 1]'
NOTHING = wrap_close(77, 5)
"""Closes a session that is not there."""
FOUNDING = ConfChange(ConfOp.ADD_VOTER, 1, "n1")


class Attached:
    """A replica, and a hand that writes what its owner says."""

    def __init__(self) -> None:
        self.disk = SimulatedDisk()
        self.replica = Replica(Store("/data", self.disk), RegisterState(), EngineOptions(), Random(1), 17)
        self.log: list[Entry] = []

    def welcomed(self) -> Attached:
        """Attached to a founder, with a session, which has the index 2."""
        self.replica.hello()
        self.hear(Welcome(1, CLUSTER, 99, True), News(1, 1, is_ready=True))
        self.feed(FOUNDING.encode(), kind=EntryKind.CONFIG)
        self.replica.tick()
        self.feed(*self.proposed())
        assert self.replica.calls.session_id == 2
        return self

    def hear(self, *said: Said) -> None:
        for each in said:
            self.replica.hear(each)
        self.replica.advance()
        while self.replica.applying.is_due:
            work = self.replica.applying.begin()
            answers, error = self.replica.applying.apply(work)
            self.replica.end_apply(work, answers, error)
        self.replica.advance()

    def feed(self, *data: bytes, kind: EntryKind = EntryKind.NORMAL) -> None:
        """The owner feeds entries, all in one batch."""
        begin = len(self.log)
        self.log += [make_entry(begin + 1 + place, 1, kind, each, begin) for place, each in enumerate(data)]
        self.hear(Entries(self.log[begin:]))

    def submitted(self) -> Call:
        call = Call(ADD)
        self.replica.submit(call)
        self.replica.advance()
        return call

    def requests(self) -> list[Propose]:
        """What it has handed to its owner since."""
        outbox = self.replica.core.outbox
        found = [said for said in outbox if isinstance(said, Propose)]
        outbox.clear()
        return found

    def proposed(self) -> list[bytes]:
        return [data for request in self.requests() for data in request.proposals]

    def attach_again(self) -> None:
        self.replica.lost()
        self.replica.hello()
        self.hear(Welcome(1, CLUSTER, 100, True), News(2, 1, is_ready=True))

    @property
    def closing(self) -> bytes:
        """What ends its session."""
        (session,) = self.replica.applying.machine.sessions._sessions.values()
        return wrap_close(session.id, session.nonce)


@pytest.fixture
def attached() -> Attached:
    return Attached().welcomed()


# -- calls


def test_a_call_is_handed_over_and_its_outcome_comes_with_its_entry(attached: Attached) -> None:
    call = attached.submitted()
    (request,) = attached.requests()
    attached.hear(Answer(request.context))
    assert not call.is_finished
    attached.feed(*request.proposals)
    assert isinstance(call.outcome, Outcome)
    assert (call.outcome.answer, call.outcome.entry_index) == (True, 3)
    assert attached.replica.inbox.finished.take() == [call]


def test_a_refusal_is_of_that_request_alone(attached: Attached) -> None:
    call = attached.submitted()
    (first,) = attached.requests()
    attached.hear(Answer(first.context, int(Refusal.NO_LEADER)))
    assert call.unsettled == 0
    attached.replica.tick()
    (second,) = attached.requests()
    assert second.proposals == first.proposals
    attached.hear(Answer(first.context, int(Refusal.NO_LEADER)))
    assert call.unsettled == 1


def test_a_quota_refuses_a_call_that_was_never_handed_to_a_log(attached: Attached) -> None:
    call = attached.submitted()
    (request,) = attached.requests()
    attached.hear(Answer(request.context, int(Refusal.QUOTA)))
    assert isinstance(call.error, NotApplied)


def test_what_was_handed_to_an_owner_that_died_stays_unsettled(attached: Attached) -> None:
    call = attached.submitted()
    (first,) = attached.requests()
    attached.attach_again()
    (second,) = attached.requests()
    assert second.proposals == first.proposals, "under its session and number"
    attached.hear(Answer(second.context, int(Refusal.QUOTA)))
    assert call.unsettled == 1
    assert not call.is_finished
    assert attached.replica.calls.withdraw(call)
    assert call.unsettled == 1, "it may be in a log"


def test_what_comes_twice_by_two_owners_counts_once(attached: Attached) -> None:
    attached.submitted()
    (first,) = attached.requests()
    attached.attach_again()
    (second,) = attached.requests()
    attached.feed(*first.proposals, *second.proposals)
    state = attached.replica.applying.machine.state
    assert isinstance(state, RegisterState)
    assert state.values == {"a": 1}


def test_an_outcome_right_before_the_end_of_its_session_is_told(attached: Attached) -> None:
    call = attached.submitted()
    attached.feed(*attached.proposed(), attached.closing)
    assert call.error is None
    assert isinstance(call.outcome, Outcome)


def test_what_was_not_applied_when_its_session_ends_never_will_be(attached: Attached) -> None:
    call = attached.submitted()
    data = attached.proposed()
    attached.feed(attached.closing)
    assert isinstance(call.error, NotApplied)
    attached.feed(*data)
    state = attached.replica.applying.machine.state
    assert isinstance(state, RegisterState)
    assert state.values == {}
    later = attached.submitted()
    while not attached.replica.core.outbox:
        attached.replica.tick()
    attached.feed(*attached.proposed())
    assert attached.replica.calls.session_id == 5, "another one"
    attached.replica.tick()
    attached.feed(*attached.proposed())
    assert isinstance(later.outcome, Outcome)


def test_what_a_snapshot_may_have_skipped_is_unknown(attached: Attached) -> None:
    sent, waiting = attached.submitted(), Call(ADD)
    attached.requests()
    store_snapshot(attached.disk, 10, 1, 0)
    attached.hear(Welcome(1, CLUSTER, 99, False))
    attached.replica.submit(waiting)
    attached.replica.advance()
    attached.replica.read_snapshot()
    attached.hear()
    assert isinstance(sent.error, OutcomeUnknown)
    assert waiting.error is None, "it goes on under the next session"
    assert attached.replica.applying.applied_index == 10


def test_a_snapshot_of_another_cluster_is_not_read(attached: Attached) -> None:
    store_snapshot(attached.disk, 10, 1, 0, CLUSTER + 1)
    attached.hear(Welcome(1, CLUSTER, 99, False))
    attached.replica.read_snapshot()
    attached.hear()
    assert attached.replica.applying.applied_index == 2
    assert "of cluster" in str(attached.replica.health.halted)
    assert not attached.replica.health.may_apply


def test_a_new_owner_sends_no_more_at_once_than_fits_the_way_to_other_nodes(attached: Attached) -> None:
    for _ in range(100):
        attached.replica.submit(Call(bytes(1000)))
    attached.replica.advance()
    assert sum(map(len, attached.proposed())) > 100_000, "what goes to the owner of its directory"
    calls, way = attached.replica.calls, OwnersCore(Random(1), 10)
    way.leader_id = 2
    calls.become_owner(way, Contexts(Random(2)), Life(1, 1), lambda: None, 16 * 1024)
    calls.send(1, may_propose=False)
    sent = [len(data) for said in way.outbox if isinstance(said, Propose) for data in said.proposals]
    assert 0 < sum(sent) <= 16 * 1024


def test_a_snapshot_that_is_behind_takes_nothing_back(attached: Attached) -> None:
    store_snapshot(attached.disk, 1, 1, 0)
    attached.hear(Welcome(1, CLUSTER, 99, False))
    attached.replica.read_snapshot()
    attached.hear()
    assert attached.replica.applying.applied_index == 2
    assert attached.replica.health.err() is None


# -- reads


def test_a_read_is_current_once_what_the_owner_found_is_applied_here(attached: Attached) -> None:
    read = Read()
    attached.replica.submit_read(read)
    attached.replica.advance()
    (question,) = attached.replica.core.outbox
    assert isinstance(question, AskIndex)
    attached.hear(Index(question.context, 3))
    assert attached.replica.inbox.finished.take() == []
    attached.feed(NOTHING)
    assert attached.replica.inbox.finished.take() == [read]


def test_a_read_is_asked_for_again_at_the_next_owner(attached: Attached) -> None:
    read = Read()
    attached.replica.submit_read(read)
    attached.replica.advance()
    attached.attach_again()
    (question,) = attached.replica.core.outbox
    assert isinstance(question, AskIndex)
    attached.hear(Index(question.context, 1))
    assert attached.replica.inbox.finished.take() == [read]


# -- the owner


def test_an_owner_that_is_silent_is_named_and_all_goes_on_when_it_speaks(attached: Attached) -> None:
    for _ in range(11):
        attached.replica.tick()
    assert "owner pid 99 does not answer" in str(attached.replica.health.error_of(Condition.OWNER_SILENT))
    assert not attached.replica.health.may_be_ready
    assert attached.replica.health.may_serve
    attached.hear(News(1, 1, is_ready=True))
    attached.replica.tick()
    assert attached.replica.health.err() is None


def test_who_is_evicted_with_its_owner_is_told_at_once_and_what_it_handed_over_is_unsettled(attached: Attached) -> None:
    handed, read = attached.submitted(), Read()
    attached.replica.submit_read(read)
    attached.replica.advance()
    attached.hear(News(2, 0, is_removed=True, trouble="EvictedError: it was removed"))
    assert isinstance(handed.error, OutcomeUnknown)
    assert isinstance(read.error, EvictedError)
    with pytest.raises(EvictedError, match="it was removed"):
        attached.submitted()
    assert not attached.replica.health.may_be_ready


def test_entries_that_do_not_follow_end_the_connection(attached: Attached) -> None:
    with pytest.raises(FeedBrokenError):
        attached.replica.hear(Entries([make_entry(4, 1, EntryKind.NORMAL, b"")]))


def test_what_only_an_attached_process_says_ends_the_connection(attached: Attached) -> None:
    with pytest.raises(FeedBrokenError):
        attached.replica.hear(Hello(1))


def test_another_cluster_in_the_directory_ends_the_process(attached: Attached) -> None:
    call = attached.submitted()
    attached.replica.lost()
    attached.replica.hello()
    attached.hear(Welcome(1, CLUSTER + 1, 100, True))
    assert isinstance(attached.replica.health.failure, NodeFailedError)
    assert isinstance(call.error, OutcomeUnknown)


def differ(attached: Attached) -> None:
    """Its owner says something else of entry 3."""
    assert attached.replica.may_own
    attached.hear(News(1, 1, digest_index=3, digest=1))
    assert attached.replica.may_own, "it is not there yet"
    attached.feed(NOTHING)
    assert isinstance(attached.replica.health.error_of(Condition.DIFFERS), DivergedError)


def test_who_differs_from_its_owner_serves_nobody_and_does_not_take_over(attached: Attached) -> None:
    replica = attached.replica
    attached.hear(News(1, 1, digest_index=2, digest=replica.applying.machine.digest))
    waiting = attached.submitted()
    differ(attached)
    assert isinstance(waiting.error, DivergedError | OutcomeUnknown)
    assert not (replica.may_own or replica.health.may_serve or replica.health.may_be_ready)
    with pytest.raises(DivergedError):
        replica.submit(Call(ADD))
    attached.feed(NOTHING)
    assert replica.applying.applied_index == 4, "it goes on, for it may be right"


def test_who_differs_from_its_owner_serves_again_once_the_cluster_says_that_it_is_right(attached: Attached) -> None:
    replica = attached.replica
    second = replica.applying.machine.digest
    differ(attached)
    third = replica.applying.machine.digest
    attached.hear(News(1, 1, digest_index=4, digest=2))
    attached.hear(News(1, 1, right_index=2, right=second))
    assert not replica.may_own, "it may have gone wrong after that"
    attached.hear(News(1, 1, is_wrong=True, right_index=3, right=third))
    assert replica.may_own
    attached.feed(NOTHING)
    assert replica.may_own, "what its owner said before it was found out counts no more"
    assert replica.health.err() is None
    replica.submit(Call(ADD))


def test_who_differs_from_what_the_cluster_agreed_on_halts_for_good(attached: Attached) -> None:
    replica = attached.replica
    attached.hear(News(1, 1, right_index=3, right=5))
    assert replica.may_own, "it is not there yet"
    attached.feed(NOTHING)
    assert isinstance(replica.health.halted, DivergedError)
    assert not (replica.may_own or replica.health.may_apply)
    with pytest.raises(DivergedError):
        replica.submit(Call(ADD))


def test_who_differed_from_an_owner_and_agrees_with_the_next_serves_again(attached: Attached) -> None:
    replica = attached.replica
    differ(attached)
    attached.attach_again()
    attached.hear(News(2, 1, digest_index=2, digest=0))
    assert not replica.may_own
    attached.hear(News(2, 1, digest_index=3, digest=replica.applying.machine.digest))
    assert replica.may_own


def test_who_is_in_doubt_for_long_is_to_be_started_anew(attached: Attached) -> None:
    differ(attached)
    assert not needs_restart(attached.replica)
    while not needs_restart(attached.replica):
        attached.replica.tick()
    attached.hear(News(1, 1, right_index=3, right=attached.replica.applying.machine.digest))
    assert not needs_restart(attached.replica)
    attached.hear(News(1, 1, right_index=3, right=7))
    assert needs_restart(attached.replica), "it is wrong"


# -- what it takes over


def store_snapshot(disk: SimulatedDisk, index: int, term: int, digest: int, cluster_id: int = CLUSTER) -> None:
    with_wal = Store.open("/data", disk)
    if not with_wal.is_initialized:
        with_wal.create(1, CLUSTER, HardState(term, commit=1), [make_entry(1, 1, EntryKind.CONFIG, FOUNDING.encode())])
    config = Configuration().changed(FOUNDING)
    header = SnapshotHeader(index, term, cluster_id, config.encode(), Sessions().encode(), digest)
    with_wal.save_snapshot(header, [b'{"values": {}}'])


def stored(attached: Attached, entries: list[Entry], cluster_id: int = CLUSTER) -> Store:
    store = Store.open("/data", attached.disk)
    store.create(1, cluster_id, HardState(3, commit=1), entries)
    return store


def test_a_live_state_goes_on_where_its_last_entry_stands(attached: Attached) -> None:
    live = attached.replica.live.opened(stored(attached, attached.log), 5)
    assert not live.is_behind


@pytest.mark.parametrize("what", ["ends before", "another term", "another content", "another cluster"])
def test_a_live_state_is_not_taken_over_by_a_log_that_does_not_hold_it(attached: Attached, what: str) -> None:
    entries, cluster_id = list(attached.log), CLUSTER
    if what == "ends before":
        entries.pop()
    elif what == "another term":
        entries[-1] = make_entry(2, 2, EntryKind.NORMAL, b"")
    elif what == "another content":
        entries[-1] = make_entry(2, 1, EntryKind.NORMAL, b"x" * 40)
    else:
        cluster_id += 1
    with pytest.raises(NotContinuedError):
        attached.replica.live.opened(stored(attached, entries, cluster_id), 5)


@pytest.mark.parametrize("is_convicted", [False, True])
def test_a_node_that_takes_over_from_a_convicted_owner_replaces_its_snapshot(
    attached: Attached, is_convicted: bool
) -> None:
    digest, last_index = attached.replica.applying.machine.digest, len(attached.log)
    attached.feed(NOTHING)
    told = {"is_wrong": True, "digest_index": last_index + 1} if is_convicted else {}
    attached.hear(News(1, 1, right_index=last_index, right=digest, **told))
    store = stored(attached, attached.log)
    header = SnapshotHeader(last_index, 1, CLUSTER, Configuration().changed(FOUNDING).encode(), Sessions().encode(), 7)
    store.save_snapshot(header, [b'{"values": {}}'])
    live = attached.replica.live.opened(store, 5)
    runner = Mock(elapsed_clocks=())
    engine = Engine("n1", store, attached.replica.applying.machine.state, EngineOptions(), Random(1), runner, live)
    assert engine.snapshots.is_doubted is engine.snapshots.is_due is is_convicted
    engine._post([Message(MessageKind.SNAPSHOT, 2, 1)])
    assert runner.send_snapshot.called is not is_convicted


# -- the owner's side


@pytest.fixture(scope="module")
def owner() -> Engine:
    simulation = Simulation(3, RegisterWorkload(), Faults(kinds=()), keep_trace=False)
    simulation.operator.found(1)
    simulation.run_until(simulation.now + SECOND)
    engine = simulation.nodes[1].engine
    assert engine is not None
    assert engine.core.log.offset == 0
    return engine


def taken(owner: Engine, key: int) -> list[Said]:
    said: list[Said] = []
    while owner.feed.is_due(key):
        said += owner.feed.take(key, 100)
    return said


def test_who_begins_anew_is_fed_everything_that_is_committed_and_durable(owner: Engine) -> None:
    owner.feed.hear(1, Hello(17))
    welcome, news, *rest = taken(owner, 1)
    assert isinstance(welcome, Welcome)
    assert (welcome.is_current, welcome.refusal) == (True, "")
    assert isinstance(news, News)
    assert news.leader_id == 1
    entries = [entry for said in rest if isinstance(said, Entries) for entry in said.entries]
    assert entries == owner.core.log.entries_from(1, 1 << 30)[: owner.core.log.delivered_index]
    owner.feed.detach(1)


def test_a_state_that_the_log_does_not_hold_is_not_fed(owner: Engine) -> None:
    log = owner.core.log
    entry = log.entries_from(1, 0)[0]
    term, crc, cluster_id = log.term_at(1) or 0, crc32(entry), owner.snapshots.cluster_id
    for hello, is_fed in (
        (Hello(17, cluster_id, 1, term, crc), True),
        (Hello(17, cluster_id, 1, term, 0), True),
        (Hello(17, cluster_id, 1, term + 1, crc), False),
        (Hello(17, cluster_id, 1, term, crc ^ 1), False),
        (Hello(17, cluster_id, log.last_index + 1, term, crc), False),
        (Hello(17, cluster_id + 1, 1, term, crc), False),
    ):
        owner.feed.hear(2, hello)
        welcome, *rest = taken(owner, 2)
        assert isinstance(welcome, Welcome)
        assert (welcome.refusal == "") is is_fed, hello
        assert any(isinstance(said, Entries) for said in rest) is is_fed
        owner.feed.detach(2)


def test_nobody_begins_with_a_snapshot_that_is_doubted(owner: Engine) -> None:
    owner.snapshots.is_doubted = True
    owner.core.log.offset, offset = 1, owner.core.log.offset
    try:
        owner.feed.hear(1, Hello(17))
        assert not any(isinstance(said, Welcome) for said in taken(owner, 1))
        owner.feed.tick(1)
        assert not any(isinstance(said, Welcome) for said in taken(owner, 1))
        owner.snapshots.is_doubted = False
        owner.feed.tick(2)
        (welcome,) = [said for said in taken(owner, 1) if isinstance(said, Welcome)]
        assert not welcome.is_current
        owner.feed.tick(3)
        assert not any(isinstance(said, Welcome) for said in taken(owner, 1)), "it is told once"
    finally:
        owner.core.log.offset = offset
        owner.feed.detach(1)


@pytest.mark.parametrize("why", ["damaged at offset 0", "no such file"])
def test_a_stored_snapshot_that_cannot_be_read_is_taken_anew(owner: Engine, why: str) -> None:
    owner.snapshots.capture()
    owner.snapshots.end()
    assert not owner.snapshots.is_due
    owner.feed.hear(1, Hello(17))
    owner.feed.hear(1, Unreadable(why))
    assert owner.snapshots.is_due
    assert why in str(owner.health.error_of(Condition.UNSAVED))
    owner.feed.detach(1)
    owner.vigil.end(Condition.UNSAVED)


def test_who_brings_what_is_the_owners_is_cut_off(owner: Engine) -> None:
    with pytest.raises(FeedError):
        owner.feed.hear(3, Propose(1, []))  # before Hello
    owner.feed.hear(3, Hello(17))
    for data in (wrap_void(1), wrap_open(1, 5, 9, 1), wrap_open(2, 5, 0, 1), b"short", b"\xff" * 40):
        with pytest.raises(FeedError):
            owner.feed.hear(3, Propose(1, [data]))
    with pytest.raises(FeedError):
        owner.feed.hear(3, News())
    owner.feed.hear(3, Propose(1, [wrap_open(1, 5, 0, 1), wrap_close(2, 5)]))
    owner.feed.detach(3)


def test_one_that_does_not_read_what_it_is_told_is_cut_off(owner: Engine) -> None:
    owner.feed.hear(4, Hello(17))
    for _ in range(10_001):
        owner.feed.hear(4, Hello(17))
    with pytest.raises(FeedError, match="does not read"):
        owner.feed.take(4, 100)
    owner.feed.detach(4)
    assert not owner.feed.is_due(4)


def test_what_one_brings_is_bounded_and_counts_for_nobody_else(owner: Engine) -> None:
    for key in range(10, 14):
        owner.feed.hear(key, Hello(key))
        for _ in range(9000):
            owner.feed.hear(key, AskIndex(1))
    with pytest.raises(FeedError, match="asks too much"):
        for _ in range(1001):
            owner.feed.hear(10, AskIndex(1))
    large = wrap_open(1, 5, 0, 1) + bytes(20 * 1024 * 1024)
    for _ in range(3):
        for key in range(10, 14):
            owner.feed.hear(key, Propose(1, [large]))
    with pytest.raises(FeedError, match="brings too much"):
        owner.feed.hear(11, Propose(1, [large]))
    for key in range(10, 14):
        owner.feed.detach(key)


def test_the_sessions_of_who_is_gone_are_closed_and_no_others() -> None:
    simulation = Simulation(3, RegisterWorkload(), Faults(kinds=()), keep_trace=False)
    simulation.operator.found(1)
    simulation.run_until(simulation.now + SECOND)
    node = simulation.nodes[1]

    def attach(engine: Engine) -> None:
        engine.feed.hear(1, Hello(17, nonce=5))
        engine.feed.hear(1, Propose(1, [wrap_open(1, 5, 0, 1)]))
        engine.feed.hear(2, Hello(18, nonce=6))
        engine.feed.hear(2, Propose(1, [wrap_open(1, 7, 0, 1)]))  # another than it said Hello with

    def nonces() -> list[int]:
        assert node.engine is not None
        return sorted(node.engine.applying.machine.sessions.attached_of(1).values())

    node.do(attach)
    assert simulation.run_until(simulation.now + SECOND, lambda: nonces() == [5, 7])
    simulation.run_until(simulation.now + 10 * SECOND)
    assert nonces() == [5, 7]
    node.do(lambda engine: engine.feed.detach(1))
    assert simulation.run_until(simulation.now + 10 * SECOND, lambda: nonces() == [7])
    node.kill()
    node.start()
    assert simulation.run_until(simulation.now + SECOND, lambda: nonces() == [7])
    assert simulation.run_until(simulation.now + 10 * SECOND, lambda: nonces() == []), "nobody came back"


def test_who_has_the_lock_and_lets_nobody_attach_is_named() -> None:
    attached = Attached()
    attached.replica.link.holder = "process 5 on a-host"
    for _ in range(11):
        attached.replica.tick()
    assert "process 5 on a-host has the lock" in str(attached.replica.health.error_of(Condition.UNATTACHED))
