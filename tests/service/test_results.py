"""What a caller is told of an instruction: where it took effect and what the State answered; many at once; later."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import time
from typing import Any

import pytest

import raftsvc
from raftsvc.proposals import MAX_ASYNC
from tests.service.harness import PATIENCE, Cluster, ListState, Member, eventually, in_background


class Counting(ListState):
    """Answers how many items there are; `text` with something that is not kept, `void` with nothing."""

    def apply(self, data: bytes, index: int) -> Any:
        super().apply(data, index)
        return {b"text": "it is text", b"void": None}.get(data, len(self.items))


def test_a_caller_is_told_where_its_instruction_took_effect_and_what_the_state_answered(cluster: Cluster) -> None:
    cluster.form(3, make_state=Counting)
    last = 0
    for number, member in enumerate(cluster.members * 2):
        applied = member.service.propose(b"x", PATIENCE)
        assert (applied.satisfied, applied.answer, applied.known) == (True, number + 1, True)
        assert applied.index > last
        last = applied.index
    follower = cluster.follower().service
    assert follower.propose(b"text", PATIENCE).answer == "it is text", "this process applied it"
    nothing = follower.propose(b"void", PATIENCE)
    assert (nothing.satisfied, nothing.answer, nothing.known) == (False, None, True)
    with pytest.raises(raftsvc.Rejected):
        follower.propose(b"no", PATIENCE)
    assert follower.exec(b"x", PATIENCE) is True


def test_a_list_takes_effect_in_one_entry_in_order_with_an_outcome_for_each(cluster: Cluster) -> None:
    cluster.form(3, make_state=Counting)
    for member in cluster.members:
        before = len(member.read())
        outcomes = member.service.propose_many([b"a", b"no way", b"void", b"b"], PATIENCE)
        assert [o.satisfied for o in outcomes] == [True, False, False, True]
        assert [o.answer for o in outcomes[::3]] == [before + 1, before + 3]
        refusal = outcomes[1].answer
        assert isinstance(refusal, raftsvc.Rejected) and refusal.reason == "no to no way"
        assert len({o.index for o in outcomes}) == 1
    assert cluster.follower().read() == [b"a", b"void", b"b"] * 3
    assert cluster.members[0].service.propose_many([], PATIENCE) == []


def test_a_list_that_is_too_long_for_one_entry_comes_in_pieces(cluster: Cluster) -> None:
    cluster.form(3)
    listed = [b"%d" % n * 50_000 for n in range(10)]
    for member in cluster.members:
        assert all(o.satisfied for o in member.service.propose_many(listed, PATIENCE))
    assert cluster.follower().read() == listed * 3


@pytest.mark.parametrize("wrong", ["text", 7, None, [b"a"], {b"a": 1}], ids=repr)
def test_what_is_no_instruction_is_refused_at_the_call_and_nothing_is_proposed(cluster: Cluster, wrong: Any) -> None:
    node = cluster.add()
    node.service.init()
    node.service.exec(b"a")
    before = node.status["last_index"]
    for call in (node.service.exec, node.service.propose, node.service.propose_async):
        with pytest.raises(raftsvc.InvalidInstructionError, match=type(wrong).__name__):
            call(wrong)
    with pytest.raises((raftsvc.InvalidInstructionError, TypeError)):
        node.service.propose_many([b"good", wrong])
    for one in (b"several are wanted", "text"):
        with pytest.raises(raftsvc.InvalidInstructionError):
            node.service.propose_many(one)  # type: ignore[arg-type]
    with pytest.raises(raftsvc.ConfigurationError):
        node.service.wait_applied("1")  # type: ignore[arg-type]
    assert node.status["last_index"] == before


def test_lists_have_bounds_and_one_beyond_is_refused_at_the_call(cluster: Cluster) -> None:
    node = cluster.add()
    node.service.init()
    assert len(node.service.propose_many([b"x"] * 1000, PATIENCE)) == 1000
    before = node.status["last_index"]
    for beyond in ([b"x"] * 1001, [bytes(2**20)] * 4, [b"x", bytes(2**20 + 1)]):
        with pytest.raises(raftsvc.InstructionTooLargeError):
            node.service.propose_many(beyond)
    assert node.status["last_index"] == before


def test_one_thread_has_many_on_their_way(cluster: Cluster) -> None:
    cluster.form(3, make_state=Counting, max_waiting=1)
    for member in cluster.members:
        futures = [member.service.propose_async(b"x", PATIENCE) for _ in range(300)]
        answers = [future.result(PATIENCE).answer for future in futures]
        assert len(set(answers)) == 300, "each took effect once"
    refused = cluster.follower().service.propose_async(b"no", PATIENCE)
    with pytest.raises(raftsvc.Rejected):
        refused.result(PATIENCE)


def leader_without_followers(cluster: Cluster) -> Member:
    """One whose writes reach its log, and no majority."""
    cluster.form(3, election_timeout=5.0)  # it does not step down meanwhile
    leader = cluster.leader()
    for member in cluster.members:
        if member is not leader:
            member.service.stop()
    return leader


def test_a_future_completes_by_its_deadline_whoever_does_not_answer(cluster: Cluster) -> None:
    leader = leader_without_followers(cluster)
    futures = [leader.service.propose_async(b"x", timeout) for timeout in (0.3, 0.1, 0.2)]
    for future in futures:
        assert isinstance(future.exception(PATIENCE), raftsvc.OutcomeUnknown)
    late = [leader.service.propose_async(b"x", PATIENCE) for _ in range(5)]
    leader.service.stop()
    for future in late:
        assert isinstance(future.exception(PATIENCE), raftsvc.RaftError), "of a node that is stopped"


def test_more_futures_than_there_may_be_are_refused_in_the_future(cluster: Cluster) -> None:
    leader = leader_without_followers(cluster)
    futures = [leader.service.propose_async(b"x", PATIENCE) for _ in range(MAX_ASYNC)]
    assert isinstance(leader.service.propose_async(b"x").exception(0), raftsvc.OverloadedError)
    leader.service.stop()
    for future in futures:
        assert isinstance(future.exception(PATIENCE), raftsvc.RaftError)


def test_a_future_that_is_cancelled_is_forgotten_and_its_instruction_is_not(cluster: Cluster) -> None:
    cluster.form(3)
    future = cluster.follower().service.propose_async(b"x", PATIENCE)
    has_forgotten = future.cancel()
    assert eventually(lambda: cluster.leader().read() == [b"x"])
    assert future.cancelled() == has_forgotten


def test_what_is_called_when_a_future_is_done_may_call_the_service(cluster: Cluster) -> None:
    node = cluster.add()
    node.service.init()
    answers: list[object] = []

    def done(future: concurrent.futures.Future[raftsvc.Applied]) -> None:
        answers.append(node.service.exec(b"and this", PATIENCE))

    node.service.propose_async(b"x", PATIENCE).add_done_callback(done)
    assert eventually(lambda: answers) == [True]
    assert node.read() == [b"x", b"and this"]


def test_futures_are_completed_as_soon_as_they_are_done_and_hold_up_nobody(cluster: Cluster) -> None:
    node = cluster.add(election_timeout=30.0)  # a tick of it takes three seconds
    node.service.init()
    node.service.exec(b"x", PATIENCE)
    begun = time.monotonic()
    for _ in range(20):
        node.service.propose_async(b"x", PATIENCE).result(PATIENCE)
        node.service.exec(b"x", PATIENCE)
    assert time.monotonic() - begun < 30, "nobody waited for ticks"


class Final(BaseException):
    """As SystemExit, which pytest takes for its own."""


def test_whatever_is_called_when_a_future_is_done_the_others_are_completed(cluster: Cluster) -> None:
    node = cluster.add()
    node.service.init()

    def raises(future: object) -> None:
        raise Final

    node.service.propose_async(b"x", PATIENCE).add_done_callback(raises)
    taken = node.service.propose_async(b"x", PATIENCE)
    with contextlib.suppress(Exception):
        taken.set_running_or_notify_cancel()
        taken.set_result(None)  # type: ignore[arg-type]
    for timeout in (float("nan"), float("inf")):
        with pytest.raises(raftsvc.ConfigurationError, match="finite"):
            node.service.propose_async(b"x", timeout)
    assert node.service.propose_async(b"x", PATIENCE).result(PATIENCE).satisfied


def test_the_thread_of_futures_ends_with_the_service(cluster: Cluster) -> None:
    node = cluster.add()
    node.service.init()
    before = {thread for thread in threading.enumerate() if thread.name == "raftsvc-futures"}
    node.service.propose_async(b"x", PATIENCE).result(PATIENCE)
    node.service.stop()
    eventually(lambda: {t for t in threading.enumerate() if t.name == "raftsvc-futures"} <= before)


def test_a_future_is_returned_though_the_disk_hangs(cluster: Cluster) -> None:
    node = cluster.add()
    node.service.init()
    node.files.gate.clear()
    future = node.service.propose_async(b"x", PATIENCE)
    assert not future.done(), "nobody waited for the disk"
    node.files.gate.set()
    assert future.result(PATIENCE).satisfied


def test_what_one_node_wrote_another_reads_with_the_index_that_it_was_told(cluster: Cluster) -> None:
    cluster.form(3)
    for n in range(20):
        index = cluster.members[n % 3].service.propose(b"%d" % n, PATIENCE).index
        other = cluster.members[(n + 1) % 3]
        other.service.wait_applied(index, PATIENCE)
        assert other.state.items[-1] == b"%d" % n
    with pytest.raises(raftsvc.ReadTimeoutError, match=f"entry {index + 1000}"):
        other.service.wait_applied(index + 1000, 0.05)
    waiting = in_background(lambda: other.service.wait_applied(index + 1, PATIENCE))
    cluster.members[0].service.exec(b"the next", PATIENCE)
    waiting()


def test_leadership_goes_to_whom_it_is_given(cluster: Cluster) -> None:
    cluster.form(3, election_timeout=5.0)  # for two of these it is waited that somebody takes over
    for _ in range(3):
        leader = cluster.leader()
        target = next(m for m in cluster.members if m is not leader)
        eventually(lambda t=target, addr=leader.addr: t.status["leader_addr"] == addr)  # type: ignore[misc]
        with pytest.raises(raftsvc.NotLeaderError, match=leader.addr):
            target.service.transfer()
        leader.service.transfer(target.addr, PATIENCE)
        eventually(lambda target=target: target.service.is_leader)  # type: ignore[misc]
        assert not leader.service.is_leader
    leader = cluster.leader()
    leader.service.transfer(str(leader.status["node_id"]), PATIENCE)
    assert leader.service.is_leader, "it has what was asked for"
    leader.service.transfer(timeout=PATIENCE)
    eventually(lambda: not leader.service.is_leader)
    with pytest.raises(raftsvc.UnknownPeerError):
        cluster.leader().service.transfer("127.0.0.1:1")


def test_a_leader_that_nobody_can_follow_leads_on_and_says_so(cluster: Cluster) -> None:
    node = cluster.add()
    node.service.init()
    with pytest.raises(raftsvc.TransferFailedError, match="no other voter"):
        node.service.transfer()
    assert node.service.is_leader and node.service.exec(b"a", PATIENCE)


class Heard:
    """What a listener was told."""

    def __init__(self) -> None:
        self.events: list[raftsvc.Event] = []
        self.threads: set[str] = set()

    def __call__(self, event: raftsvc.Event) -> None:
        self.events.append(event)
        self.threads.add(threading.current_thread().name)

    def last(self, kind: str) -> raftsvc.Event | None:
        return next((event for event in reversed(self.events) if event.kind == kind), None)


def test_listeners_are_told_who_leads_who_is_a_member_and_what_is_wrong(cluster: Cluster) -> None:
    first, second = Heard(), Heard()
    node = cluster.add()
    node.service.add_listener(first)
    node.service.init()
    eventually(lambda: (e := first.last("leader")) and e.is_leader and e.leader_addr == node.addr)
    node.service.add_listener(second)
    eventually(lambda: second.last("leader"))
    assert next(e.kind for e in second.events) == "leader", "the present comes first"
    other = cluster.add()
    other.service.join(node.addr, PATIENCE)
    for heard in (first, second):
        eventually(
            lambda heard=heard: (e := heard.last("members")) and set(e.members.values()) == {node.addr, other.addr}  # type: ignore[misc]
        )
    other.service.stop()
    eventually(lambda: (e := first.last("error")) and e.error is not None)
    eventually(lambda: not first.last("leader").is_leader)  # type: ignore[union-attr]
    node.service.stop()
    eventually(lambda: first.last("stopped") and second.last("stopped"))  # one is told after the other
    assert first.events[-1].kind == second.events[-1].kind == "stopped"
    assert first.threads == {"raftsvc-listeners"}


def test_what_a_listener_raises_is_counted_and_keeps_no_other_from_hearing(cluster: Cluster) -> None:
    node = cluster.add()
    heard = Heard()

    def broken(event: raftsvc.Event) -> None:
        with pytest.raises((AttributeError, TypeError)):
            event.members.clear()  # type: ignore[attr-defined]
        raise Final

    remove = node.service.add_listener(broken)
    node.service.add_listener(heard)
    node.service.init()
    eventually(lambda: heard.last("leader") and heard.last("leader").is_leader)  # type: ignore[union-attr]
    errors = node.status["listener_errors"]
    assert isinstance(errors, int) and errors >= 1
    remove()
    remove()
    other = cluster.add()
    other.service.join(node.addr, PATIENCE)
    eventually(lambda: (e := heard.last("members")) and len(e.members) == 2)
    assert node.service.is_leader


def test_the_session_and_the_state_may_be_keywords_and_a_state_is_wanted(cluster: Cluster) -> None:
    with pytest.raises(raftsvc.ConfigurationError, match="state="):
        raftsvc.start("127.0.0.1:1", "/nowhere", secret="x" * 16)
