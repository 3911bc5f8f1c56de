"""A process without a replica has the face of one that has: each call ends with its true outcome, by its deadline."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import raftsvc
from raftsvc import kv, rescue
from raftsvc.transport.visits import COPY, HELLO, Visit
from tests.client.harness import (
    ADMIN,
    HANG,
    LIMITED,
    LOSE_ANSWER,
    LOSE_REQUEST,
    PASS,
    READER,
    WRITER,
    Members,
    is_instruction,
    is_opening,
    once_of,
    text_of,
)
from tests.pulse import Pulse
from tests.service.harness import PATIENCE, ListState, eventually, free_address, in_background

MakeMembers = Callable[..., Members]


def test_a_client_has_the_face_of_the_store(make_members: MakeMembers) -> None:
    members = make_members()
    store = members.connect(ADMIN)
    version = store.set("a", b"1", timeout=PATIENCE)
    assert store.get("a") == kv.Value(b"1", version)
    assert store.get("nothing") is None
    assert store.incr("n", 5) == 5
    assert store.incr("n") == 6
    store.transaction([kv.if_not_exists("b"), kv.set("b", b"2"), kv.set("c", b"\x00" * 1000)])
    assert list(store.list()) == ["a", "b", "c", "n"]
    assert list(store.list(limit=1, after="a")) == ["b"]
    assert store.get_many(["a", "c", "x"]).keys() == {"a", "c"}
    with pytest.raises(kv.ConflictError):
        store.set("b", b"3", kv.if_not_exists("b"))
    with pytest.raises(kv.CounterError):
        store.incr("b", 2**63 - 1)
    updated = store.update("a", lambda data: (data or b"") + b"!")
    assert updated is not None
    assert updated.data == b"1!"
    assert store.delete("a")
    assert not store.delete("a")
    below = store.namespace("jobs/")
    below.set("x", b"y")
    assert list(below.list()) == ["x"]
    assert store["jobs/x"] == b"y"
    assert "jobs/x" in store
    store.allow("127.0.0.1:9")
    assert store.allowed() == frozenset({"127.0.0.1:9"})
    assert store.get_stale("n") is not None
    assert store.service.exec(members.nodes[0].state.empty_write())
    store.service.wait_read()
    assert store.service.status()["role"] == "leader"


def test_a_client_reads_what_it_and_others_wrote_before_at_whichever_member(make_members: MakeMembers) -> None:
    members = make_members(3)
    writer = members.connect(nodes=members.nodes[:1])
    readers = [members.connect(READER, nodes=[node]) for node in members.nodes]
    for number in range(10):
        writer.set("k", b"%d" % number, timeout=PATIENCE)
        for reader in readers:
            value = reader.get("k", PATIENCE)
            assert value is not None
            assert value.data == b"%d" % number


def test_a_long_value_comes_in_pieces_and_one_too_long_is_refused_at_once(make_members: MakeMembers) -> None:
    members = make_members(3, max_instruction_bytes=400_000)
    store = members.connect()
    for node in members.nodes:
        members.connect(nodes=[node]).set("long", b"x" * 300_000, timeout=PATIENCE)
    value = store.get("long", PATIENCE)
    assert value is not None
    assert len(value.data) == 300_000
    for size in (450_000, 600_000):
        with pytest.raises(raftsvc.InstructionTooLargeError):
            store.set("longer", b"x" * size)
    assert store.incr("n") == 1


@pytest.mark.parametrize("what", [LOSE_ANSWER, LOSE_REQUEST])
@pytest.mark.parametrize("is_meant", [is_instruction, is_opening, lambda visit: visit.kind == HELLO])
def test_a_counter_counts_once_though_an_answer_or_a_request_was_lost(
    make_members: MakeMembers, what: str, is_meant: Callable[[Visit], bool]
) -> None:
    members = make_members(3)
    store = members.connect()
    for number in range(1, 4):
        members.rule(once_of(what, is_meant))
        assert store.incr("n", timeout=PATIENCE) == number
        store.service.close()
        store = members.connect()
    assert [node.kv.get("n", PATIENCE).data for node in members.nodes] == [b"3"] * 3  # type: ignore[union-attr]


def test_an_instruction_brought_by_several_members_at_once_counts_once(
    make_members: MakeMembers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftsvc.client.attempts.PATIENCE_SECONDS", 0.2)
    members = make_members(3)
    store = members.connect()
    store.set("warm", b"", timeout=PATIENCE)
    hung: list[Visit] = []

    def rule(visit: Visit) -> str:
        if is_instruction(visit) and len(hung) < 2:
            hung.append(visit)
            return HANG
        return PASS

    members.rule(rule)
    assert store.incr("n", timeout=PATIENCE) == 1
    assert len(hung) == 2


def test_without_any_answer_the_outcome_is_unknown_by_the_deadline_and_nothing_is_done_twice(
    make_members: MakeMembers,
) -> None:
    members = make_members(2)
    store = members.connect()
    store.set("warm", b"", timeout=PATIENCE)
    members.rule(lambda visit: LOSE_ANSWER if is_instruction(visit) else PASS)
    with Pulse() as pulse, pytest.raises(raftsvc.OutcomeUnknown):
        store.incr("n", timeout=1.0)
    assert pulse.seconds < 3.0
    members.rule(lambda visit: PASS)
    assert store.incr("n", timeout=PATIENCE) == 2


def test_where_no_session_can_be_opened_nothing_was_brought(make_members: MakeMembers) -> None:
    members = make_members(3)
    leader = members.leader()
    for node in members.nodes:
        if node is not leader:
            node.stop()
    store = members.connect(nodes=[leader])
    with pytest.raises(raftsvc.NotApplied):
        store.set("a", b"1", timeout=0.5)


def test_what_a_member_does_not_know_its_client_does_not_either(make_members: MakeMembers) -> None:
    members = make_members(3, election_timeout=5.0)  # it leads on for a while though the others are down
    leader = members.leader()
    store = members.connect(nodes=[leader])
    store.set("a", b"", timeout=PATIENCE)
    for node in members.nodes:
        if node is not leader:
            node.stop()
    with pytest.raises(raftsvc.OutcomeUnknown):
        store.set("a", b"1", timeout=0.5)
    for node in members.nodes:
        if node is not leader:
            node.start()
    assert store.set("a", b"2", timeout=PATIENCE) > 0
    value = store.get("a", PATIENCE)
    assert value is not None
    assert value.data == b"2"


def test_a_member_that_never_answers_keeps_nobody_longer_than_the_deadline(make_members: MakeMembers) -> None:
    members = make_members()
    store = members.connect(ADMIN)
    store.set("a", b"", timeout=PATIENCE)

    def took(call: Callable[[], object], error: type[raftsvc.RaftError]) -> None:
        with Pulse() as pulse, pytest.raises(error) as caught:
            call()
        assert type(caught.value) is error
        assert pulse.seconds < 2.5

    members.rule(lambda visit: HANG)
    took(lambda: store.set("a", b"1", timeout=0.5), raftsvc.OutcomeUnknown)
    took(lambda: store.get("a", 0.5), raftsvc.ReadTimeoutError)
    took(lambda: store.list(timeout=0.5), raftsvc.ReadTimeoutError)
    took(lambda: store.service.status(0.5), raftsvc.ReadTimeoutError)
    # Who is not even introduced sent nothing that could have been done.
    stranger = members.connect()
    took(lambda: stranger.set("a", b"1", timeout=0.5), raftsvc.NotApplied)


def test_one_member_that_never_answers_is_left_for_another(
    make_members: MakeMembers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftsvc.client.attempts.PATIENCE_SECONDS", 0.2)
    members = make_members(3)
    store = members.connect()
    members.nodes[0].gate.rule = lambda visit: HANG
    assert store.incr("n", timeout=PATIENCE) == 1
    with Pulse() as pulse:
        assert store.incr("n", timeout=PATIENCE) == 2
        assert store.get("n", PATIENCE) is not None
    assert pulse.seconds < 4.0


def test_where_nobody_is_reached_nothing_was_proposed(make_members: MakeMembers) -> None:
    store = raftsvc.connect([free_address(), free_address()], key=text_of(ADMIN))
    with pytest.raises(raftsvc.NotApplied) as caught:
        store.set("a", b"", timeout=0.3)
    assert type(caught.value) is raftsvc.NotApplied
    with pytest.raises(raftsvc.ReadTimeoutError):
        store.get("a", timeout=0.3)


def test_other_members_are_learned_from_the_one_that_is_given(make_members: MakeMembers) -> None:
    members = make_members(3)
    store = members.connect(nodes=members.nodes[:1])
    assert store.incr("n", timeout=PATIENCE) == 1
    members.nodes[0].stop()
    assert store.incr("n", timeout=PATIENCE) == 2


def test_while_members_are_restarted_each_call_has_its_outcome_and_counts_once(make_members: MakeMembers) -> None:
    members = make_members(3)
    store = members.connect()
    results: list[int] = []
    stopping = threading.Event()

    def count() -> list[int]:
        mine = []
        while not stopping.is_set():
            mine.append(store.incr("n", timeout=PATIENCE))
        return mine

    calls = [in_background(count) for _ in range(3)]
    for node in [members.leader(), *members.nodes]:
        node.restart()
        eventually(node.service.is_ready, "it is back")
    stopping.set()
    for call in calls:
        results += call()
    assert sorted(results) == list(range(1, len(results) + 1))
    assert store.incr("n", timeout=PATIENCE) == len(results) + 1


def test_a_session_that_was_closed_is_followed_by_another_unless_something_was_lost(
    make_members: MakeMembers,
) -> None:
    members = make_members()
    store = members.connect()
    brought: list[Visit] = []

    def note(visit: Visit) -> str:
        if is_instruction(visit):
            brought.append(visit)
        return PASS

    members.rule(note)
    assert store.incr("n", timeout=PATIENCE) == 1
    members.close_session_of(brought[-1])
    assert store.incr("n", timeout=PATIENCE) == 2
    assert len(brought) == 3

    def lose(visit: Visit) -> str:
        if is_instruction(visit):
            members.rule(lambda visit: PASS)
            members.close_session_of(visit)
            return LOSE_REQUEST
        return PASS

    members.rule(lose)
    with pytest.raises(raftsvc.OutcomeUnknown, match="session"):
        store.incr("n", timeout=PATIENCE)
    assert store.incr("n", timeout=PATIENCE) == 3


def test_a_closed_connection_proposes_nothing(make_members: MakeMembers) -> None:
    members = make_members()
    store = members.connect()
    assert store.incr("n", timeout=PATIENCE) == 1
    store.service.close()
    store.service.close()
    with pytest.raises(raftsvc.NotApplied):
        store.incr("n")
    assert members.connect().incr("n") == 2


def test_a_state_that_answers_no_questions_says_so_and_still_takes_instructions(make_members: MakeMembers) -> None:
    members = make_members(make_state=ListState)
    connection = members.connect().service
    assert connection.exec(b"a", PATIENCE)
    assert not connection.exec(b"false", PATIENCE)
    with pytest.raises(raftsvc.Rejected, match="no to now"):
        connection.exec(b"now", PATIENCE)
    with pytest.raises(raftsvc.NotPermittedError, match="QueryState"):
        connection.query(b"what")
    state = members.nodes[0].state
    assert isinstance(state, ListState)
    assert state.items == [b"a", b"false"]


def test_calls_of_many_threads_count_once_each(make_members: MakeMembers) -> None:
    members = make_members(3)
    store = members.connect()
    lost = iter(range(1000))

    def rule(visit: Visit) -> str:
        return LOSE_ANSWER if is_instruction(visit) and next(lost) % 5 == 0 else PASS

    members.rule(rule)
    calls = [in_background(lambda: [store.incr("n", timeout=PATIENCE) for _ in range(10)]) for _ in range(8)]
    assert sorted(number for call in calls for number in call()) == list(range(1, 81))


def test_a_backup_is_sent_in_pieces_to_who_may_have_all(
    make_members: Callable[..., Members], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftsvc.copies.PIECE_BYTES", 10_000)
    members = make_members(2)
    store = members.connect(ADMIN)
    written = {f"k{n}": bytes([n]) * 3000 for n in range(20)}
    version = 0
    for key, value in written.items():
        version = store.set(key, value, timeout=PATIENCE)
    service: Any = store.service
    streamed = io.BytesIO()
    backup = service.backup(streamed, PATIENCE)
    assert service.backup(tmp_path / "file", PATIENCE).index >= backup.index >= version
    (tmp_path / "stream").write_bytes(streamed.getvalue())
    for name in ("file", "stream"):
        with rescue.BackupFile(tmp_path / name) as found:
            assert found.backup.node_id in (1, 2)
            data = b"".join(found.chunks())
        assert all(value in data for value in written.values())
    for key in (WRITER, READER, LIMITED):
        other: Any = members.connect(key).service
        with pytest.raises(raftsvc.NotPermittedError):
            other.backup(tmp_path / "none", PATIENCE)
    assert not (tmp_path / "none").exists()


def test_nothing_is_stored_for_a_backup_that_finds_no_room(
    make_members: Callable[..., Members], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service: Any = make_members(1).connect(ADMIN).service
    monkeypatch.setattr("raftsvc.copies._MAX_COPIES", 0)
    stored: list[object] = []
    monkeypatch.setattr("raftsvc.visitors.open_stored", lambda *terms: stored.append(terms))
    with pytest.raises(raftsvc.ReadTimeoutError, match="copy what this node has already"):
        service.backup(tmp_path / "b", 3.0)
    assert not stored


def test_a_backup_of_which_the_member_ends_is_none(
    make_members: Callable[..., Members], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftsvc.copies.PIECE_BYTES", 10_000)
    members = make_members(1)
    store = members.connect(ADMIN)
    store.set("a", b"x" * 100_000, timeout=PATIENCE)
    asked = 0

    def lose_later(visit: Visit) -> str:
        nonlocal asked
        asked += visit.kind == COPY
        return LOSE_REQUEST if asked > 2 and visit.kind == COPY else PASS

    members.nodes[0].gate.rule = lose_later
    service: Any = store.service
    with pytest.raises(raftsvc.RaftError):
        service.backup(tmp_path / "b", 3.0)
    assert list(tmp_path.glob("b*")) == []
