"""Readers on their way to an index: what each answer of a leader says, however late it comes."""

from __future__ import annotations

from random import Random
from typing import cast

import pytest

from raftsvc.core.raft import Raft, ReadState
from raftsvc.errors import RaftError
from raftsvc.member.calls import Contexts
from raftsvc.member.handoff import Inbox
from raftsvc.member.health import Health
from raftsvc.member.reads import Reads
from raftsvc.member.waiters import Read

pytestmark = pytest.mark.pure

RETRY_TICKS = 5


class _Asked:
    """A core that is asked for indexes; a leader is known while `is_led`."""

    def __init__(self) -> None:
        self.contexts: list[int] = []
        self.is_led = True

    def read_index(self, context: int) -> bool:
        if self.is_led:
            self.contexts.append(context)
        return self.is_led


class _Readers:
    def __init__(self) -> None:
        self.core = _Asked()
        self.inbox = Inbox(Health())
        self.reads = Reads(cast(Raft, self.core), Contexts(Random(1)), RETRY_TICKS, self.inbox, lambda: None)

    def come(self) -> Read:
        read = Read()
        self.inbox.put_read(read)
        return read

    def ask(self, tick: int) -> int:
        """The context of the latest request after a tick."""
        self.reads.ask(tick)
        return self.core.contexts[-1]

    def answer(self, context: int, index: int) -> list[object]:
        self.reads.hear(ReadState(context, index), applied_index=100)
        return list(self.inbox.finished.take())


def test_an_answer_that_takes_longer_than_the_retry_serves_those_it_was_asked_for() -> None:
    readers = _Readers()
    first = readers.come()
    contexts = [readers.ask(tick) for tick in range(0, 6 * RETRY_TICKS, RETRY_TICKS)]
    assert len(set(contexts)) == 6
    assert readers.answer(contexts[0], 7) == [first]
    assert first.index == 7
    assert not readers.inbox.is_asking


def test_an_answer_does_not_serve_those_who_came_after_it_was_asked_for() -> None:
    readers = _Readers()
    first = readers.come()
    early = readers.ask(0)
    second = readers.come()
    late = readers.ask(RETRY_TICKS)
    third = readers.come()
    assert readers.answer(early, 7) == [first]
    assert readers.inbox.is_asking, "for the second"
    assert readers.answer(early, 7) == [], "twice it says nothing more"
    assert readers.answer(late, 9) == [second]
    assert readers.answer(readers.ask(RETRY_TICKS), 11) == [third]


def test_the_answer_to_a_later_request_serves_those_who_came_before_too() -> None:
    readers = _Readers()
    first = readers.come()
    early = readers.ask(0)
    second = readers.come()
    late = readers.ask(RETRY_TICKS)
    assert readers.answer(late, 9) == [first, second]
    assert readers.answer(early, 7) == []
    assert (first.index, second.index) == (9, 9)


def test_the_answer_of_a_leader_that_was_followed_by_another_is_still_one() -> None:
    readers = _Readers()
    first = readers.come()
    early = readers.ask(0)
    readers.core.is_led = False
    readers.reads.ask_again(1)
    readers.core.is_led = True
    readers.reads.ask_again(2)
    assert len(readers.core.contexts) == 2
    assert readers.answer(early, 7) == [first]


def test_an_answer_to_a_former_life_says_nothing() -> None:
    readers = _Readers()
    readers.come()
    context = readers.ask(0)
    assert readers.answer(context - 1, 7) == []
    assert readers.answer(context + 1, 7) == []


def test_whoever_gives_up_leaves_nothing_behind_and_others_are_asked_for() -> None:
    readers = _Readers()
    for tick in range(0, 100 * RETRY_TICKS, RETRY_TICKS):
        read = readers.come()
        readers.ask(tick)
        assert readers.reads.withdraw(read)
        assert readers.reads.request_count <= 1
        assert len(readers.reads) == 0
    last = readers.come()
    assert readers.answer(readers.ask(100 * RETRY_TICKS), 7) == [last]
    assert not readers.inbox.is_asking


def test_who_fails_is_no_longer_asked_for() -> None:
    readers = _Readers()
    readers.come()
    context = readers.ask(0)
    readers.reads.fail(RaftError("gone"))
    assert len(readers.inbox.finished.take()) == 1
    assert readers.answer(context, 7) == []
    assert not readers.inbox.is_asking


class _CountedRead(Read):
    """One that notes how often it is looked at for whether it is another."""

    looks = 0

    def __eq__(self, other: object) -> bool:
        _CountedRead.looks += 1
        return self is other

    __hash__ = object.__hash__


@pytest.mark.parametrize("stage", ["new", "asked", "applying"])
def test_many_who_give_up_at_once_are_not_looked_for_one_by_one(stage: str) -> None:
    readers = _Readers()
    readers.core.is_led = stage != "new"
    reads = [_CountedRead() for _ in range(1000)]
    for read in reads:
        readers.inbox.put_read(read)
    readers.reads.ask(0)
    if stage == "applying":
        readers.reads.hear(ReadState(readers.core.contexts[-1], 200), applied_index=100)
    _CountedRead.looks = 0
    assert all(readers.reads.withdraw(read) for read in reversed(reads))
    assert _CountedRead.looks < 10 * len(reads)
    assert not len(readers.reads) and not any(readers.reads.withdraw(read) for read in reads)
