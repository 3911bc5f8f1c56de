"""A peer may say anything that decodes: the core answers, ignores it, or finds a contradiction; it never breaks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress

import pytest

from raftsvc.core.log import ViolationError
from raftsvc.core.membership import ConfChange, Configuration, ConfOp, Member
from raftsvc.core.messages import (
    MAX_NUMBER,
    Entry,
    EntryKind,
    MalformedError,
    Message,
    MessageKind,
    decode_messages,
    make_entry,
)
from raftsvc.core.raft import ProposalRefused, Raft, Settings, SnapshotMeta
from tests.effort import EFFORT

CONFIG = Configuration({i: Member(f"n{i}", True) for i in (1, 2, 3)}, 3)


def anything(rng: random.Random, core: Raft) -> Message:
    """A message of any kind whose numbers are often those that matter to `core`."""

    def number() -> int:
        log = core.log
        near = [0, 1, core.term, core.term + 1, log.last_index, log.last_index + 1, log.commit_index, MAX_NUMBER]
        return rng.choice([*near, rng.randrange(12)])

    kind = rng.choice(list(MessageKind))
    term = rng.choice([core.term, core.term, core.term + 1, number()])
    index = number()
    entries: list[Entry] = []
    if kind is MessageKind.APPEND and index < MAX_NUMBER:
        entries = [
            make_entry(i, min(term, rng.choice([term, 0, core.term])), rng.choice(list(EntryKind)), rng.randbytes(3))
            for i in range(index + 1, index + rng.randrange(1, 4))
        ]
    elif kind is MessageKind.PROPOSE:
        change = ConfChange(rng.choice(list(ConfOp)), rng.choice([1, 2, 4, 5, MAX_NUMBER]), "q:1").encode()
        entries = [
            make_entry(rng.randrange(2), 0, rng.choice(list(EntryKind)), rng.choice([b"", b"x", change]))
            for _ in range(rng.randrange(3))
        ]
    payload = rng.choice([CONFIG.encode(), b"junk"]) if kind is MessageKind.SNAPSHOT else b""
    sender = rng.choice([2, 3, 2, 3, 4, 9])
    return Message(
        kind, 1, sender, term, index, number(), number(), number(), rng.random() < 0.3, number(), entries, payload
    )


def live(rng: random.Random, core: Raft) -> None:
    for _ in range(80):
        chance = rng.random()
        if chance < 0.3:
            core.tick()
        elif chance < 0.4:
            with suppress(ProposalRefused):
                core.propose([(EntryKind.NORMAL, b"x")])
        else:
            with suppress(MalformedError):
                for message in decode_messages(anything(rng, core).encode()):
                    core.step(message)
        while (ready := core.ready()) is not None:
            for message in (*ready.messages, *ready.messages_after):
                message.encode()
            if ready.must_persist and rng.random() < 0.8:
                core.persisted(ready.token)


@pytest.mark.parametrize("seed", range(10))
def test_nothing_that_decodes_breaks_the_core(seed: int) -> None:
    for n in range(30 * EFFORT):
        rng = random.Random(1000 * seed + n)
        core = Raft(Settings(1, rng, trailing_entries=3), None, SnapshotMeta(0, 0, CONFIG))
        with suppress(ViolationError):
            live(rng, core)


def _append(term: int, prev: tuple[int, int], entries: Sequence[tuple[int, int]] = (), commit: int = 0) -> Message:
    made = [make_entry(index, term_of_it, EntryKind.NORMAL, b"x") for index, term_of_it in entries]
    return Message(MessageKind.APPEND, 1, 2, term, prev[0], prev[1], commit, entries=made)


def _follower_that_committed_four(compacted: int) -> Raft:
    core = Raft(Settings(1, random.Random(1), trailing_entries=0), None, SnapshotMeta(0, 0, CONFIG))
    core.step(_append(1, (0, 0), [(i, 1) for i in range(1, 5)], commit=4))
    while (ready := core.ready()) is not None:
        core.persisted(ready.token)
    if compacted:
        core.compact(compacted)
    assert core.log.commit_index == 4
    return core


@pytest.mark.parametrize(
    "contradiction",
    [
        _append(2, (1, 1), [(2, 2), (3, 2), (4, 2), (5, 2)]),
        _append(2, (1, 1), [(2, 1), (3, 2), (4, 2)]),
        _append(2, (1, 1), [(2, 1), (3, 2)]),
        _append(2, (3, 2)),
        _append(2, (4, 2)),
        _append(2, (4, 2), [(5, 2)]),
        Message(MessageKind.SNAPSHOT, 1, 2, 2, 3, 2, payload=CONFIG.encode()),
        Message(MessageKind.SNAPSHOT, 1, 2, 2, 4, 2, payload=CONFIG.encode()),
    ],
    ids=["beyond", "up to it", "less", "heartbeat", "heartbeat at the end", "what follows", "snapshot", "all of it"],
)
@pytest.mark.parametrize("compacted", [0, 2, 3])
def test_a_leader_that_holds_other_entries_than_are_committed_here_is_acknowledged_nothing(
    contradiction: Message, compacted: int
) -> None:
    """No two leaders differ so, unless a member forgot what it had acknowledged, or was two."""
    core = _follower_that_committed_four(compacted)
    with pytest.raises(ViolationError, match="contradicts the committed entry"):
        core.step(contradiction)
    ready = core.ready()
    said = (*ready.messages, *ready.messages_after) if ready is not None else ()
    assert core.log.last_index == 4 and not [m for m in said if m.kind is MessageKind.APPEND_REPLY]


@pytest.mark.parametrize("compacted", [0, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_a_follower_acknowledges_no_more_than_its_leader_has_said(count: int, compacted: int) -> None:
    core = _follower_that_committed_four(compacted)
    core.step(_append(2, (1, 1), [(i, 1) for i in range(2, 2 + count)]))
    ready = core.ready()
    assert ready is not None
    replies = [m for m in (*ready.messages, *ready.messages_after) if m.kind is MessageKind.APPEND_REPLY]
    assert [(m.index, m.reject) for m in replies] == [(1 + count, False)]


@pytest.mark.parametrize("index", [1, 2, 3, 4])
def test_of_a_snapshot_that_is_known_already_no_entry_after_it_is_acknowledged(index: int) -> None:
    core = _follower_that_committed_four(0)
    core.step(Message(MessageKind.SNAPSHOT, 1, 2, 2, index, 1, payload=CONFIG.encode()))
    ready = core.ready()
    assert ready is not None
    said = (*ready.messages, *ready.messages_after)
    assert [(m.index, m.reject) for m in said if m.kind is MessageKind.APPEND_REPLY] == [(index, False)]


def test_what_is_due_to_be_known_after_a_restart_is_written_though_it_was_known_when_it_began() -> None:
    core = _follower_that_committed_four(0)
    while (ready := core.ready()) is not None:
        core.persisted(ready.token)
    core.output.note_written(1)
    core.output.note_due(4)
    ready = core.ready()
    assert ready is not None and ready.must_persist and ready.hard_state is not None and ready.hard_state.commit == 4
