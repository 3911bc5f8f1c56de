"""Who is convicted, and by whom: members that answer, late, never or wrongly, as tables."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from raftsvc.core.membership import Configuration, Member
from raftsvc.core.messages import Message, MessageKind
from raftsvc.core.raft import Role
from raftsvc.member.digests import DigestCheck

pytestmark = pytest.mark.pure

ELECTION_TICKS = 5


class Machine:
    """Applies numbers; what it answers is damaged from a certain one on."""

    def __init__(self) -> None:
        self.applied_index = 0
        self.damaged_from = 1 << 60
        self._fresh: list[int] = []

    def apply_up_to(self, index: int) -> None:
        for i in range(self.applied_index + 1, index + 1):
            self._fresh.append(1000 + i if i < self.damaged_from else 666_000 + i)
        self.applied_index = index

    def restore(self, index: int) -> None:
        self.damaged_from = 1 << 60
        self.applied_index, self._fresh = index, [1000 + index]

    def take_digests(self) -> tuple[int, list[int]]:
        fresh, self._fresh = self._fresh, []
        return self.applied_index + 1 - len(fresh), fresh


class Node:
    """One member with as much of a core as digests look at."""

    def __init__(self, node_id: int, config: Configuration) -> None:
        self.machine = Machine()
        self.core: Any = SimpleNamespace(
            node_id=node_id,
            term=3,
            role=Role.FOLLOWER,
            leader_id=1,
            config=config,
            settings=SimpleNamespace(election_ticks=ELECTION_TICKS),
            log=SimpleNamespace(term_at=self.term_at),
        )
        self.log_term: int | None = 2
        self.check = DigestCheck(self.core, self.machine)  # type: ignore[arg-type]

    def term_at(self, index: int) -> int | None:
        return self.log_term


class Members:
    """A cluster that node 1 leads; who is `away` hears nothing and says nothing."""

    def __init__(self, voters: int, learners: int = 0) -> None:
        total = voters + learners
        self.config = Configuration({i: Member(f"n{i}", i <= voters) for i in range(1, total + 1)})
        self.nodes = {i: Node(i, self.config) for i in self.config.members}
        self.away: set[int] = set()
        self.late: set[int] = set()  # they do not apply
        self.said: list[Message] = []
        self.lead(1)

    def lead(self, node_id: int) -> None:
        for node in self.nodes.values():
            node.core.term += 1
            node.core.leader_id = node_id
            node.core.role = Role.LEADER if node.core.node_id == node_id else Role.FOLLOWER

    def apply(self, index: int, by: Iterable[int] | None = None) -> None:
        for i in self.nodes if by is None else by:
            if i not in self.late and i not in self.away:
                self.nodes[i].machine.apply_up_to(index)
                self.nodes[i].check.applied()

    def carry(self) -> None:
        """Deliver until nobody has anything to say."""
        while messages := [pair for node in self.nodes.values() for pair in node.check.take_replies()]:
            self.deliver(messages)

    def deliver(self, messages: Iterable[tuple[int, Message]]) -> None:
        for to_id, message in messages:
            self.said.append(message)
            if not {to_id, message.from_id} & self.away:
                self.nodes[to_id].check.hear(message)

    def pass_time(self, ticks: int = 2 * ELECTION_TICKS) -> None:
        for _ in range(ticks):
            for node in self.nodes.values():
                if node.core.node_id not in self.away:
                    self.deliver(list(node.check.announce()))
            self.carry()
            self.depose()

    def depose(self) -> None:
        """A leader that was convicted halts, and another leads."""
        if self.nodes[1].core.leader_id in self.convicted:
            self.lead(min(self.config.voters - self.convicted - self.away))

    @property
    def convicted(self) -> set[int]:
        return {i for i, node in self.nodes.items() if node.check.mismatch is not None}

    @property
    def told(self) -> set[int]:
        return {i for i, node in self.nodes.items() if node.check.disagreement is not None}

    @property
    def verdicts(self) -> list[Message]:
        return [m for m in self.said if m.kind is MessageKind.DIGEST and m.reject]


class Case(NamedTuple):
    voters: int
    damaged: set[int]
    away: set[int] = frozenset()  # type: ignore[assignment]
    learners: int = 0
    convicted: set[int] = frozenset()  # type: ignore[assignment]
    told: set[int] = frozenset()  # type: ignore[assignment]
    finally_convicted: set[int] = frozenset()  # type: ignore[assignment]
    finally_told: set[int] = frozenset()  # type: ignore[assignment]
    """After everybody is back."""


CASES = {
    "the leader, all there": Case(3, {1}, convicted={1}, finally_convicted={1}),
    "a follower, all there": Case(3, {2}, convicted={2}, finally_convicted={2}),
    "the leader, one away": Case(3, {1}, {3}, told={1, 2}, finally_convicted={1}),
    "a follower, one away": Case(3, {2}, {3}, told={1, 2}, finally_convicted={2}),
    "a follower that is away": Case(3, {3}, {3}, finally_convicted={3}),
    "the leader of five, two away": Case(5, {1}, {4, 5}, told={1, 2, 3}, finally_convicted={1}),
    "the leader of five, one away": Case(5, {1}, {5}, convicted={1}, finally_convicted={1}),
    "a follower of five, two away": Case(5, {2}, {4, 5}, told={1, 2}, finally_convicted={2}),
    "the leader and one of five": Case(5, {1, 2}, convicted={1, 2}, finally_convicted={1, 2}),
    "one of two": Case(2, {1}, told={1, 2}, finally_told={1, 2}),
    "the other of two": Case(2, {2}, told={1, 2}, finally_told={1, 2}),
    "two of four": Case(4, {3, 4}, told={1, 3, 4}, finally_told={1, 3, 4}),
    "the leader and another of four": Case(4, {1, 2}, told={1, 3, 4}, finally_told={1, 3, 4}),
    "one of four, one away": Case(4, {2}, {4}, told={1, 2}, finally_convicted={2}),
    "nobody, one voter": Case(1, set()),
    "the only voter has a learner": Case(1, {1}, learners=1, told={1, 2}, finally_told={1, 2}),
    "the learner of one voter": Case(1, {2}, learners=1, told={1, 2}, finally_told={1, 2}),
    "a learner": Case(3, {4}, learners=1, convicted={4}, finally_convicted={4}),
    "a learner, one away": Case(3, {4}, {3}, learners=1, convicted={4}, finally_convicted={4}),
    "a learner, two away": Case(3, {4}, {2, 3}, learners=1, told={1, 4}, finally_convicted={4}),
    "a learner is no witness": Case(3, {2}, {3}, learners=1, told={1, 2}, finally_convicted={2}),
    "two learners are no majority": Case(3, {1}, {3}, learners=2, told={1, 2, 4, 5}, finally_convicted={1}),
}


@pytest.mark.parametrize("is_late", [False, True], ids=["away", "late"])
@pytest.mark.parametrize("name", CASES)
def test_only_a_majority_of_the_voters_convicts(name: str, is_late: bool) -> None:
    case = CASES[name]
    members = Members(case.voters, case.learners)
    for i in case.damaged:
        members.nodes[i].machine.damaged_from = 7
    members.apply(5)
    members.pass_time()
    assert (members.convicted, members.told) == (set(), set())
    # Away is who hears nothing; late is who hears every question, and has not applied what it is about.
    setattr(members, "late" if is_late else "away", set(case.away))
    members.apply(10)
    members.pass_time()
    assert members.convicted == case.convicted
    assert members.told - members.convicted == case.told
    members.away, members.late = set(), set()
    if not is_late:
        members.apply(12)
    else:
        members.apply(10, case.away)
        members.carry()
    members.pass_time()
    assert members.convicted == case.finally_convicted
    assert members.told - members.convicted == case.finally_told
    assert all(m.hint < 666_000 for m in members.verdicts), "only one that is right judges others"


@pytest.mark.parametrize("damaged", [1, 2])
def test_who_is_convicted_and_who_counted_know_what_is_right(damaged: int) -> None:
    members = Members(3)
    members.nodes[damaged].machine.damaged_from = 7
    members.away = {3}
    members.apply(10)
    members.pass_time()
    assert {node.check.right for node in members.nodes.values()} == {(0, 0)}, "no majority answered alike"
    members.away = set()
    members.apply(10, [3])
    members.pass_time(ELECTION_TICKS)
    assert members.convicted == {damaged}
    assert {node.check.right for node in members.nodes.values()} == {(10, 1010)}


def test_of_five_only_who_counted_and_who_is_convicted_know_what_is_right() -> None:
    members = Members(5)
    members.nodes[2].machine.damaged_from = 7
    members.apply(10)
    members.pass_time(ELECTION_TICKS)
    assert members.convicted == {2}
    assert {i for i, node in members.nodes.items() if node.check.right == (10, 1010)} == {1, 2}
    assert {node.check.right for node in members.nodes.values()} == {(10, 1010), (0, 0)}


def test_an_answer_completes_an_older_question_too() -> None:
    members = Members(3)
    members.nodes[1].machine.damaged_from = 7
    members.late = {3}
    for index in range(8, 20):
        members.apply(index)
        members.pass_time(ELECTION_TICKS)
    assert members.convicted == set()
    members.nodes[3].machine.apply_up_to(8)
    members.nodes[3].check.applied()
    members.carry()
    assert members.convicted == {1}
    error = members.nodes[1].check.mismatch
    assert error is not None and error.index == 8


def test_only_so_many_questions_are_remembered() -> None:
    members = Members(3)
    members.late = {3}
    for index in range(1, 300):
        members.apply(index)
        members.pass_time(ELECTION_TICKS)
    for node in members.nodes.values():
        check = node.check
        assert max(len(check._questions), len(check._own._answered), len(check._pending)) <= 64


def test_an_answer_counts_although_its_digest_was_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftsvc.member.digests._REMEMBERED", 10)
    members = Members(3)
    members.nodes[2].machine.damaged_from = 7
    members.late = {3}
    members.apply(8)
    members.pass_time()
    members.apply(100)
    members.late = set()
    members.apply(8, [3])
    members.carry()
    assert members.convicted == {2}


def test_a_disagreement_passes_when_they_agree_at_a_later_index() -> None:
    members = Members(2)
    members.nodes[2].machine.damaged_from = 7
    members.apply(8)
    members.pass_time()
    errors = [node.check.disagreement for node in members.nodes.values()]
    assert members.told == {1, 2}
    members.apply(20)
    members.pass_time()
    assert [node.check.disagreement for node in members.nodes.values()] == errors, "it is said once"
    members.nodes[2].machine.restore(30)
    members.nodes[2].check.applied()
    members.apply(30, [1])
    members.pass_time()
    assert members.told == members.convicted == set()


def test_an_older_answer_that_agrees_ends_no_disagreement() -> None:
    members = Members(2)
    members.nodes[2].machine.damaged_from = 7
    members.apply(5)
    members.pass_time(1)
    old = [(m.to_id, m) for m in members.said]
    members.apply(8)
    members.pass_time()
    members.deliver(old)
    members.pass_time(1)
    assert members.told == {1, 2}


def test_a_disagreement_passes_when_one_of_the_two_was_evicted() -> None:
    members = Members(2)
    members.nodes[2].machine.damaged_from = 7
    members.apply(8)
    members.pass_time()
    members.nodes[1].core.config = Configuration({1: Member("n1", True)})
    members.pass_time()
    assert members.told == {2}, "who was evicted hears nothing more"


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_new_leader_asks_anew(damaged: int) -> None:
    members = Members(3)
    members.nodes[damaged].machine.damaged_from = 7
    members.away = {3}
    members.apply(8)
    members.pass_time()
    assert members.told == {1, 2}
    members.away = set()
    members.lead(2)
    members.apply(9)
    members.pass_time()
    assert members.convicted == {damaged}
    assert members.told - members.convicted == set()


def verdict(members: Members, to_id: int, index: int, voters: int, term: int | None = None, from_id: int = 1) -> None:
    term = members.nodes[1].core.term if term is None else term
    right = 1000 + index
    message = Message(MessageKind.DIGEST, to_id, from_id, term, index=index, context=voters, hint=right, reject=True)
    members.deliver([(to_id, message)])


@pytest.mark.parametrize(
    ("about", "is_convicted"),
    [
        ({"voters": 2}, True),
        ({"voters": 1}, False),  # no majority of the voters known here
        ({"voters": 2, "term": 3}, False),  # of a leader that was deposed
        ({"voters": 2, "from_id": 3}, False),  # of one that does not lead
        ({"voters": 2, "index": 6}, False),  # right there
        ({"voters": 2, "index": 99}, False),  # not applied yet
    ],
)
def test_a_verdict_is_looked_at_before_it_is_believed(about: dict[str, int], is_convicted: bool) -> None:
    members = Members(3)
    members.nodes[2].machine.damaged_from = 7
    members.apply(8)
    for _ in range(2):
        verdict(members, 2, **{"index": 8, **about})
    assert (members.convicted == {2}) is is_convicted


def test_a_verdict_about_a_state_that_was_replaced_is_void() -> None:
    members = Members(3)
    members.nodes[2].machine.damaged_from = 7
    members.away = {3}
    members.apply(8)
    members.pass_time(1)
    members.nodes[2].machine.restore(20)
    members.nodes[2].check.applied()
    verdict(members, 2, 8, 2)
    assert members.convicted == set()


def test_a_leader_is_disputed_as_long_as_the_other_goes_on_saying_so() -> None:
    members = Members(3)
    members.nodes[2].machine.damaged_from = 7
    members.away = {3}
    members.apply(8)
    members.pass_time(1)
    check = members.nodes[1].check
    assert check.is_disputed
    members.pass_time(20 * ELECTION_TICKS)
    assert check.is_disputed
    members.away = {2, 3}
    members.pass_time(7 * ELECTION_TICKS)
    assert not check.is_disputed
    assert check.disagreement is not None, "that it differs is said as long as it was not settled"


def test_who_applied_other_entries_than_its_leader_is_not_said_to_have_a_damaged_state() -> None:
    """Then what is committed differs, of which the entries of the leader tell, and no State is to blame."""
    members = Members(3)
    members.apply(5)
    members.nodes[3].machine.damaged_from = 6
    members.nodes[3].log_term = 1
    members.apply(9)
    members.pass_time()
    assert not members.convicted and not members.told and not members.verdicts
    members.nodes[3].log_term = 2
    members.apply(11)
    members.pass_time()
    assert members.convicted == {3}
