"""Entries, messages and configurations as bytes; what does not decode is refused, never trusted."""

from __future__ import annotations

import gc
import random

import pytest

from raftsvc.core.log import Log, SnapshotMeta, ViolationError
from raftsvc.core.membership import ConfChange, Configuration, ConfOp, InvalidChangeError, Member
from raftsvc.core.messages import (
    MAX_NUMBER,
    Entry,
    EntryKind,
    MalformedError,
    Message,
    MessageKind,
    configs_among,
    data_of,
    decode_entries,
    decode_messages,
    entries_follow,
    index_of,
    kind_of,
    make_entry,
    place_of,
    term_of,
    time_of,
)


def test_a_log_takes_no_entries_behind_a_gap() -> None:
    log = Log(SnapshotMeta(), entries(1, 3), 0)
    for first in (1, 3, 5, 9):
        with pytest.raises(ViolationError, match="does not follow the last one, 3"):
            log.append(entries(first, 1))
    assert log.last_index == 3


def entries(first: int, count: int, term: int = 1) -> list[Entry]:
    return [make_entry(first + n, term, EntryKind.NORMAL, b"x" * n) for n in range(count)]


CONFIG = Configuration({1: Member("a:1", True, b"t" * 16), 3: Member("b:2", False)}, 4)
MESSAGES = [
    Message(MessageKind.APPEND, 2, 1, term=5, index=3, log_term=4, commit=9, context=7, entries=entries(4, 3, 5)),
    Message(MessageKind.APPEND_REPLY, 1, 2, term=5, index=3, reject=True, hint=2, log_term=1),
    Message(MessageKind.SNAPSHOT, 2, 1, term=5, index=9, log_term=4, payload=CONFIG.encode()),
    Message(MessageKind.PROPOSE, 1, 2, context=3, entries=[make_entry(0, 0, EntryKind.NORMAL, b"")]),
]


def test_entries_and_messages_come_back_as_they_went() -> None:
    assert decode_entries(b"".join(entries(1, 5))) == entries(1, 5)
    assert decode_messages(b"".join(m.encode() for m in MESSAGES)) == MESSAGES
    assert all(m.size_bytes() == len(m.encode()) for m in MESSAGES)
    assert Configuration.decode(CONFIG.encode()) == CONFIG
    change = ConfChange(ConfOp.ADD_LEARNER, 7, "c:3", b"u" * 16)
    assert ConfChange.decode(change.encode()) == change


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: m.kind.name)
def test_every_truncation_of_a_message_is_refused(message: Message) -> None:
    data = message.encode()
    for end in range(1, len(data)):
        with pytest.raises(MalformedError):
            decode_messages(data[:end])


def test_a_flipped_byte_in_an_entry_is_refused() -> None:
    data = b"".join(entries(1, 3))
    for position in range(len(data)):
        for mask in (0x01, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[position] ^= mask
            with pytest.raises(MalformedError):
                decode_entries(bytes(damaged))


def test_what_an_entry_says_can_be_read_from_its_frame() -> None:
    entry = make_entry(MAX_NUMBER, 2**64 - 1, EntryKind.CONFIG, b"data", 7)
    said = index_of(entry), term_of(entry), time_of(entry), kind_of(entry)
    assert said == place_of(entry) == (MAX_NUMBER, 2**64 - 1, 7, EntryKind.CONFIG)
    assert kind_of(entry) is EntryKind.CONFIG and data_of(entry) == b"data"
    assert configs_among([*entries(1, 2), entry, make_entry(3, 1, EntryKind.EMPTY, b"")]) == [entry]
    assert entries_follow(entries(4, 3), 3) and entries_follow((), 9)
    assert not entries_follow(entries(4, 3), 4) and not entries_follow([*entries(4, 2), *entries(7, 1)], 3)
    assert entries_follow(entries(4, 3, term=2), 3, 2) and not entries_follow(entries(4, 3, term=2), 3, 1)


@pytest.mark.pure
def test_an_entry_of_an_unknown_kind_is_refused() -> None:
    for kind in range(256):
        frame = make_entry(1, 1, kind, b"data")  # type: ignore[arg-type]
        if kind in [int(known) for known in EntryKind]:
            assert decode_entries(frame) == [frame]
        else:
            said = f"unknown kind {kind & 15}$" if kind >> 4 == 1 else f"format version {kind >> 4}, and here 1"
            with pytest.raises(MalformedError, match=said):
                decode_entries(frame)


def test_the_garbage_collector_does_not_visit_entries() -> None:
    said = Message(MessageKind.APPEND, 2, 1, term=1, index=3, entries=entries(4, 3))
    (heard,) = decode_messages(said.encode())
    for entry in (*said.entries, *heard.entries):
        assert type(entry) is bytes and not gc.is_tracked(entry)


def test_no_bytes_whatever_raise_anything_but_malformed() -> None:
    generator = random.Random(1)
    seeds = [b"".join(m.encode() for m in MESSAGES), CONFIG.encode(), ConfChange(ConfOp.REMOVE, 1).encode()]
    for _ in range(3000):
        data = bytearray(generator.choice(seeds))
        for _ in range(generator.randrange(1, 6)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        damaged = bytes(data[: generator.randrange(len(data) + 1)])
        for decode in (decode_messages, decode_entries, Configuration.decode, ConfChange.decode):
            try:
                decode(damaged)
            except MalformedError:
                continue


def test_an_append_whose_entries_do_not_follow_is_refused() -> None:
    for wrong in (
        Message(MessageKind.APPEND, 2, 1, term=5, index=4, entries=entries(4, 2)),
        Message(MessageKind.APPEND, 2, 1, term=5, index=3, entries=entries(4, 1, term=6)),
    ):
        with pytest.raises(MalformedError):
            decode_messages(wrong.encode())


def test_local_kinds_do_not_exist_on_the_wire() -> None:
    data = bytearray(Message(MessageKind.TIMEOUT_NOW, 2, 1).encode())
    for kind in set(range(256)) - {int(k) for k in MessageKind}:
        data[0] = kind
        with pytest.raises(MalformedError):
            decode_messages(bytes(data))


def test_ids_are_never_reused_and_addresses_are_unique() -> None:
    removed = CONFIG.changed(ConfChange(ConfOp.REMOVE, 3))
    assert removed.was_removed(3) and removed.was_removed(2) and not removed.was_removed(5)
    for change in (
        ConfChange(ConfOp.ADD_LEARNER, 3, "c:3"),
        ConfChange(ConfOp.ADD_LEARNER, 4, "c:3"),
        ConfChange(ConfOp.ADD_LEARNER, 5, "a:1"),
        ConfChange(ConfOp.ADD_LEARNER, 5, ""),
        ConfChange(ConfOp.ADD_VOTER, 5, "c:3"),
        ConfChange(ConfOp.REMOVE, 1),
        ConfChange(ConfOp.REMOVE, 3),
        ConfChange(ConfOp.PROMOTE, 1),
        ConfChange(ConfOp.SET_ADDRESS, 9, "z:1"),
    ):
        with pytest.raises(InvalidChangeError):
            removed.changed(change)
    assert removed.changed(ConfChange(ConfOp.ADD_LEARNER, 5, "c:3")).highest_id == 5


def test_a_log_recovered_short_of_its_commit_commits_only_what_it_has() -> None:
    log = Log(SnapshotMeta(2, 1, CONFIG), entries(3, 4), commit_index=50)
    assert (log.commit_index, log.last_index, log.delivered_index) == (6, 6, 2)


def test_a_committed_entry_is_never_truncated() -> None:
    log = Log(SnapshotMeta(0, 0, CONFIG), entries(1, 4), commit_index=3)
    with pytest.raises(ViolationError):
        log.merge(entries(3, 1, term=2))
    log.merge(entries(4, 1, term=2))
    assert log.last_term == 2
