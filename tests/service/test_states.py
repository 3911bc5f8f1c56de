"""Several States as one: each applies its own, all are in one snapshot, at a real node too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

import raftsvc
from raftsvc import kv
from tests.service.harness import PATIENCE, Cluster, ListState, eventually


class Pieces(ListState):
    """Written in pieces; `none` of them if it is empty."""

    def snapshot_chunks(self) -> tuple[Iterator[bytes], int]:
        return iter([b"", *self.items, b""]), self.applied_index()

    def restore_chunks(self, chunks: Iterator[bytes], index: int) -> None:
        self.items = list(chunks)
        self.set_applied_index(index)


class Alarm(ListState):
    """Rings at the log time that it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.due: int | None = None

    def apply_at(self, data: bytes, index: int, time_ms: int) -> bool:
        self.due = time_ms + int(data)
        return True

    def next_deadline(self) -> int | None:
        return self.due

    def pass_time(self, index: int, time_ms: int) -> None:
        if self.due is not None and self.due <= time_ms:
            self.items.append(b"rang")
            self.due = None


class Direct:
    """Applies at once."""

    def __init__(self, states: raftsvc.States) -> None:
        self.states = states
        self.index = 0

    def propose(self, instruction: bytes, timeout: float = 10.0) -> raftsvc.Applied:
        self.index += 1
        answer = self.states.apply_at(instruction, self.index, 0)
        self.states.set_applied_index(self.index)
        return raftsvc.Applied(answer is not False and answer is not None, self.index, 0, answer, True)


def made() -> tuple[raftsvc.States, Any]:
    states = raftsvc.States(kv=kv.KeyValueState(), mine=ListState(), parts=Pieces())
    return states, Direct(states)


def filled() -> tuple[raftsvc.States, Any]:
    states, service = made()
    store = kv.KeyValue(states.part("kv", service), states["kv"])
    store.set("a", b"1")
    store.allow("a:1")
    mine, parts = states.part("mine", service), states.part("parts", service)
    assert [mine.propose(b"x").answer, mine.propose(b"false").answer, parts.propose(b"y").answer] == [True, False, True]
    with pytest.raises(raftsvc.Rejected, match="no to no"):
        mine.propose(b"no")
    states.set_applied_index(service.index)
    return states, service


def test_each_part_applies_what_is_for_it() -> None:
    states, service = filled()
    assert states["mine"].items == [b"x", b"false"] and states["parts"].items == [b"y"]
    assert states["kv"].get("a") == kv.Value(b"1", 1), "at the index of the log"
    assert {part.applied_index() for part in (states, states["kv"], states["mine"])} == {service.index}
    assert "kv" in states and "other" not in states


@pytest.mark.parametrize("data", [b"\x05other1", b"\x05mi", b"\xff", b"\x00", b"\x04"])
def test_what_is_for_no_part_is_refused_in_the_same_words_everywhere(data: bytes) -> None:
    states, _ = filled()
    with pytest.raises(raftsvc.Rejected, match="no part of this State"):
        states.apply_at(data, 9, 0)
    assert states.apply(states.empty_write(), 9) is True


@pytest.mark.parametrize("cut", [1, 3, 10_000])
def test_a_snapshot_brings_all_parts_back_however_it_is_cut(cut: int) -> None:
    states, _ = filled()
    data, index = states.snapshot()
    other, _ = made()
    other.restore_chunks(iter([data[i : i + cut] for i in range(0, len(data), cut)]), index)
    assert other.snapshot() == (data, index)
    assert other["mine"].items == [b"x", b"false"] and b"".join(other["parts"].items) == b"y"
    assert other["kv"].allowed() == {"a:1"} and other["kv"].applied_index() == index


def test_a_snapshot_is_of_the_moment_at_which_it_was_taken() -> None:
    states, service = filled()
    expected = states.snapshot()
    chunks, index = states.snapshot_chunks()
    states.part("mine", service).propose(b"later")
    kv.KeyValue(states.part("kv", service), states["kv"]).set("a", b"later")
    assert (b"".join(chunks), index) == expected


@pytest.mark.parametrize(
    "parts", [{"kv": ListState()}, {"other": ListState()}, {"kv": kv.KeyValueState(), "more": ListState()}]
)
def test_the_snapshot_of_other_parts_is_refused_by_name(parts: dict[str, Any]) -> None:
    states, _ = filled()
    other = raftsvc.States(**parts)
    with pytest.raises(ValueError, match=r"part|cut short|key-value"):
        other.restore_snapshot(*states.snapshot())
    with pytest.raises(ValueError, match=r"part|cut short|key-value"):
        states.restore_snapshot(*other.snapshot())


def test_every_shortened_or_longer_snapshot_is_refused() -> None:
    states, _ = filled()
    data, index = states.snapshot()
    for end in range(len(data)):
        with pytest.raises(ValueError):
            made()[0].restore_snapshot(data[:end], index)
    with pytest.raises(raftsvc.ForeignSnapshotError):
        made()[0].restore_snapshot(data + b"x", index)


def test_a_part_of_another_index_is_not_taken() -> None:
    states, _ = filled()
    states["mine"].set_applied_index(99)
    with pytest.raises(ValueError, match="'mine' is of index 99"):
        states.snapshot()


def test_members_are_told_to_all_and_allowed_by_all() -> None:
    states, _ = filled()
    states.set_peer_addr(1, "a:1")
    assert dict(states["mine"].peers()) == dict(states["kv"].peers()) == {1: "a:1"}
    assert states.is_allowed_member("a:1") and not states.is_allowed_member("b:1")
    states["mine"].refused.add("a:1")
    assert not states.is_allowed_member("a:1")
    states.remove_peer_addr(1)
    assert not states["mine"].peers() and not states["kv"].peers()


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(raftsvc.ConfigurationError, match="at least one"):
        raftsvc.States()
    twice = ListState()
    with pytest.raises(raftsvc.ConfigurationError, match="two names"):
        raftsvc.States(a=twice, b=twice)
    with pytest.raises(raftsvc.ConfigurationError, match="256"):
        raftsvc.States(**{"x" * 256: ListState()})
    service: Any = SimpleNamespace(propose=print)
    with pytest.raises(KeyError):
        made()[0].part("other", service)
    with pytest.raises(raftsvc.ConfigurationError, match="needs the Service"):
        made()[0].part("kv", None)  # type: ignore[arg-type]


def test_parts_are_told_of_time_and_the_earliest_deadline_counts() -> None:
    first, second = Alarm(), Alarm()
    states = raftsvc.States(a=first, b=second, c=ListState())
    assert states.next_deadline() is None
    states.apply_at(b"\x01a500", 1, 1000)
    states.apply_at(b"\x01b200", 2, 1000)
    assert states.next_deadline() == 1200
    states.pass_time(3, 1300)
    assert (first.items, second.items, states.next_deadline()) == ([], [b"rang"], 1500)


def test_what_is_due_in_one_part_happens_while_another_is_written_to() -> None:
    alarm, other = Alarm(), ListState()
    states = raftsvc.States(alarm=alarm, other=other)
    states.apply_at(b"\x05alarm500", 1, 1000)
    states.apply_at(b"\x05othera", 2, 1499)
    assert alarm.items == []
    states.apply_at(b"\x05otherb", 3, 1500)
    assert alarm.items == [b"rang"] and other.items == [b"a", b"b"]


def test_a_part_whose_deadline_stays_keeps_no_other_from_its_own() -> None:
    class Stuck(Alarm):
        def pass_time(self, index: int, time_ms: int) -> None: ...

    stuck, sound = Stuck(), Alarm()
    states = raftsvc.States(stuck=stuck, sound=sound)
    states.apply_at(b"\x05stuck10", 1, 1000)
    states.apply_at(b"\x05sound500", 2, 1000)
    assert states.next_deadline() == 1010
    states.pass_time(3, 1010)
    assert states.next_deadline() == 1500, "that of the other"
    states.pass_time(4, 1500)
    assert sound.items == [b"rang"] and states.next_deadline() is None
    stuck.due = 2000
    assert states.next_deadline() == 2000, "it is another"


def test_a_large_part_in_one_piece_comes_back() -> None:
    source, target = raftsvc.States(a=ListState()), raftsvc.States(a=ListState())
    source["a"].items = [bytes(3 << 20), b"x"]
    data, index = source.snapshot()
    target.restore_chunks(iter([data[i : i + 65536] for i in range(0, len(data), 65536)]), index)
    assert target["a"].items == source["a"].items


def make_states() -> Any:
    return raftsvc.States(kv=kv.KeyValueState(), mine=ListState(), alarm=Alarm())


def test_nodes_have_several_states(cluster: Cluster) -> None:
    first = cluster.add(make_state=make_states)
    first.service.init()
    states: Any = first.state
    kv.KeyValue(states.part("kv", first.service), states["kv"]).allow(cluster.add(make_state=make_states).addr)
    second = cluster.members[1]
    second.service.join(first.addr, PATIENCE)
    stores, mines = [], []
    for member in cluster.members:
        parts: Any = member.state
        stores.append(kv.KeyValue(parts.part("kv", member.service), parts["kv"]))
        mines.append(parts.part("mine", member.service))
    version = stores[0].set("a", b"1", timeout=PATIENCE)
    assert mines[1].propose(b"x", PATIENCE).index > version
    assert [o.satisfied for o in mines[1].propose_many([b"y", b"false"], PATIENCE)] == [True, False]
    assert mines[0].propose_async(b"z", PATIENCE).result(PATIENCE).satisfied and mines[0].exec(b"last", PATIENCE)
    assert stores[1].get("a", PATIENCE) == (b"1", version)
    for member in cluster.members:
        parts = member.state
        mines[0].wait_read(PATIENCE)
        eventually(lambda parts=parts: parts["mine"].items == [b"x", b"y", b"false", b"z", b"last"])  # type: ignore[misc]
    with pytest.raises(raftsvc.InvalidInstructionError):
        mines[0].exec("text")  # type: ignore[arg-type]
    states.part("alarm", first.service).exec(b"100", PATIENCE)
    for member in cluster.members:
        parts = member.state
        eventually(lambda parts=parts: parts["alarm"].items == [b"rang"], "though nobody writes")  # type: ignore[misc]
    mines[1].wait_applied(mines[0].propose(b"more", PATIENCE).index, PATIENCE)


def test_a_digest_of_each_part_says_which_of_them_differs() -> None:
    (states, service), (others, other_service) = filled(), filled()
    assert states.report() == others.report()
    kept, _ = states.snapshot()
    restored, _ = made()
    restored.restore_snapshot(kept, service.index)
    assert restored.report() == states.report(), "it goes on from a snapshot"
    for each, at in ((states, service), (others, other_service)):
        each["mine"].apply = lambda data, index, it=each: it is states  # type: ignore[misc]
        each.part("mine", at).propose(b"z")
        each.part("parts", at).propose(b"z")
    one, other = states.report(), others.report()
    assert one["kv"] == other["kv"] and one["parts"] == other["parts"] and one["mine"] != other["mine"]


@pytest.mark.parametrize(
    ("answers", "is_same"),
    [
        ((b"x" * 65, b"y" * 65), True),
        ((2**64, 10**5000), True),
        (({"a": 1}, object()), True),
        ((b"x" * 64, b"y" * 64), False),
        ((1, True), False),
        ((raftsvc.Rejected("a\ud800"), raftsvc.Rejected("a?")), True),
        ((raftsvc.Rejected("a"), raftsvc.Rejected("b")), False),
    ],
)
def test_the_digest_of_a_part_covers_of_answers_what_the_cluster_keeps(answers: tuple[Any, Any], is_same: bool) -> None:
    digests = []
    for answer in answers:
        part: Any = ListState()

        def apply(data: bytes, index: int, said: Any = answer) -> Any:
            if isinstance(said, Exception):
                raise said
            return said

        part.apply = apply
        states = raftsvc.States(mine=part)
        with suppress(raftsvc.Rejected):
            Direct(states).propose(b"\x04mine")
        digests.append(states.report()["mine"])
    assert (digests[0] == digests[1]) is is_same


def test_what_a_state_warns_of_is_in_the_status_and_logged_once(
    make_cluster: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class OpenState(kv.KeyValueState):
        def is_allowed_member(self, addr: str) -> bool:
            return True

    caplog.set_level("INFO", "raftsvc")
    cluster: Cluster = make_cluster(make_state=lambda: raftsvc.States(kv=OpenState(), mine=ListState()))
    (member,) = cluster.form(1)
    states: Any = member.state
    store = kv.KeyValue(states.part("kv", member.service), states["kv"])
    store.transaction([kv.max_state_bytes(1000)])
    store.set("k", bytes(200))
    assert member.status["warnings"] == []
    for length in (800, 801, 820):
        store.set("k", bytes(length))
    eventually(lambda: member.status["warnings"], "it is nearly full")
    assert "part 'kv': the key-value store holds more than 80%" in str(member.status["warnings"])
    shown: Any = member.status["state"]
    assert shown["kv"]["size_bytes"] == 921 and shown["kv"]["max_bytes"] == 1000 and set(shown["mine"]) == {"digest"}
    store.delete("k")
    eventually(lambda: not member.status["warnings"], "there is room")
    eventually(lambda: any("warns of nothing" in record.getMessage() for record in caplog.records), "it says so")
    said = [record.getMessage() for record in caplog.records]
    assert sum("more than 80%" in line for line in said) == 1


def test_a_warning_that_raises_stops_nobody(make_cluster: Any) -> None:
    class Broken(ListState):
        def report(self) -> dict[str, object]:
            return {"items": len(self.items)}

        def warning(self) -> str | None:
            raise KeyError("x")

    cluster: Cluster = make_cluster(make_state=Broken)
    (member,) = cluster.form(1)
    assert member.service.exec(b"a", PATIENCE)
    eventually(lambda: member.status["warnings"] == ["warning() of the State raised KeyError('x')"], "it is said")
    assert member.status["state"] == {"items": 1}


@pytest.mark.parametrize(
    ("warning", "said"),
    [
        ("", []),
        (5, ["warning() of the State returned 5"]),
        (b"full", ["warning() of the State returned b'full'"]),
        (False, ["warning() of the State returned False"]),
    ],
)
def test_a_warning_that_is_no_text_is_said_to_be_none_and_an_empty_one_is_none(
    make_cluster: Any, warning: Any, said: list[str]
) -> None:
    class Odd(ListState):
        def report(self) -> dict[str, object]:
            return {}

        def warning(self) -> str | None:
            found: str | None = warning
            return found

    cluster: Cluster = make_cluster(make_state=Odd)
    (member,) = cluster.form(1)
    assert member.service.exec(b"a", PATIENCE)
    eventually(lambda: member.status["warnings"] == said, "it is said")
    if warning:
        assert "part 'odd': " in str(raftsvc.States(odd=Odd()).warning())
    else:
        assert raftsvc.States(odd=Odd()).warning() is None


@pytest.mark.parametrize("name", ["a/b", "/", "a/", "", "\ud800", "x" * 256])
def test_a_name_of_a_part_that_might_be_taken_for_another_is_refused(name: str) -> None:
    with pytest.raises(raftsvc.ConfigurationError, match="name of a part"):
        raftsvc.States(**{name: ListState()})
    with pytest.raises(raftsvc.ConfigurationError, match="name of a part"):
        raftsvc.States(a=raftsvc.States(**{name: ListState()}))


def test_a_part_that_is_a_class_is_refused() -> None:
    with pytest.raises(raftsvc.ConfigurationError, match="not an instance"):
        raftsvc.States(a=ListState)  # type: ignore[arg-type]


class Fussy(ListState):
    """Takes no snapshot in which something is late."""

    def restore_snapshot(self, data: bytes, index: int) -> None:
        if b"late" in data:
            raise KeyError("of another form")
        super().restore_snapshot(data, index)


@pytest.mark.parametrize("is_part", [False, True])
@pytest.mark.parametrize("of_leader", [False, True])
def test_a_snapshot_that_the_state_does_not_take_is_said_to_be_one(
    make_cluster: Any, of_leader: bool, is_part: bool
) -> None:
    def make_state() -> Any:
        return raftsvc.States(list=Fussy()) if is_part else Fussy()

    cluster: Cluster = make_cluster(make_state=make_state, snapshot_entries=5, trailing_entries=0)
    member = cluster.form(3 if of_leader else 1)[-1]
    writer = cluster.members[0]
    index = member.status["last_index"]
    if of_leader:
        member.service.stop()

    def is_dropped() -> bool:
        """Whether what comes after `index` cannot be sent any more: it is kept for a while for who was heard from."""
        assert writer.service.exec(b"\x04listlate" if is_part else b"late", PATIENCE)
        return bool(writer.service._node._engine.core.log.first_index > index + 1)

    eventually(is_dropped, "a snapshot takes the place of the entries")
    if not of_leader:
        eventually(lambda: member.status["snapshot_index"], "a snapshot was taken")
        with pytest.raises(
            raftsvc.StartFailedError, match="could not be restored from the snapshot in this"
        ) as refused:
            member.restart()
        assert isinstance(refused.value.__cause__, KeyError)
        return
    member.start()
    error = eventually(lambda: isinstance(e := member.service.err(), raftsvc.ApplyHaltedError) and e, "it is said")
    assert isinstance(error.__cause__, KeyError)
    assert "could not be restored from a snapshot" in str(error) and "at entry" not in str(error)


@pytest.mark.parametrize("reported", [KeyError("x"), {"a": object()}])
def test_a_report_that_goes_wrong_takes_nothing_else_of_the_status_away(make_cluster: Any, reported: Any) -> None:
    class Broken(ListState):
        def report(self) -> dict[str, object]:
            if isinstance(reported, Exception):
                raise reported
            found: dict[str, object] = reported
            return found

        def warning(self) -> str | None:
            return None

    cluster: Cluster = make_cluster(make_state=Broken)
    (member,) = cluster.form(1)
    assert "report() of the State" in str(member.status["state"]) and member.status["role"] == "leader"
