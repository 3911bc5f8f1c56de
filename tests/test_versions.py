"""Versions as values, as a State says them, and as the machine goes by them in the order of the log."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

import raftsvc
from raftsvc.core.membership import ConfChange, Configuration, ConfOp, InvalidChangeError, Member
from raftsvc.core.messages import EntryKind, HardState, Life, Message, MessageKind, make_entry
from raftsvc.core.raft import Raft, Role, Settings, SnapshotMeta
from raftsvc.core.versions import MAX_VERSION
from raftsvc.member.envelopes import wrap_close, wrap_open, wrap_void
from raftsvc.member.machine import Machine
from raftsvc.member.sessions import Sessions
from raftsvc.member.upgrades import Upgrades
from raftsvc.state import BaseState
from raftsvc.versions import FIRST, LIBRARY_VERSION, Versions, latest, least, outdated, versions_of
from tests.service.harness import ListState


class Told(ListState):
    """A State of some version, which remembers what it was told, and after how many instructions."""

    def __init__(self, version: Any = 3) -> None:
        super().__init__()
        self.known = version
        self.told: list[tuple[int, int]] = []

    def state_version(self) -> int:
        version: int = self.known
        return version

    def use_version(self, version: int) -> None:
        self.told.append((len(self.items), version))


def versions(library: int = 1, state: int = 1, **parts: int) -> Versions:
    return Versions.of(library, {"": state, **parts})


# -- values


def test_what_is_of_version_one_need_not_be_named() -> None:
    assert versions() == FIRST == Versions.of(1, {"kv": 1})
    assert (versions(2, 3).of_part(), versions(kv=2).of_part("kv"), versions(kv=2).of_part("other")) == (3, 2, 1)


@pytest.mark.parametrize(
    ("one", "other", "both", "either"),
    [
        (versions(2, 1), versions(1, 2), versions(1, 1), versions(2, 2)),
        (versions(kv=2, mine=4), versions(kv=3), versions(kv=2), versions(kv=3, mine=4)),
        (versions(3, 3), versions(2, 2), versions(2, 2), versions(3, 3)),
        (versions(3), FIRST, FIRST, versions(3)),
    ],
)
def test_what_several_know_is_the_least_of_each_part(
    one: Versions, other: Versions, both: Versions, either: Versions
) -> None:
    assert least([one, other]) == least([other, one, either]) == both
    assert latest([one, other]) == latest([other, both, one]) == either
    assert one.covers(both) and other.covers(both) and either.covers(one) and either.covers(other)
    assert one.covers(other) == (both == other) and other.covers(one) == (both == one)


@pytest.mark.parametrize(
    ("known", "text", "json"),
    [
        (FIRST, "raftsvc 1, State 1", {"library": 1, "state": 1}),
        (versions(2, 3), "raftsvc 2, State 3", {"library": 2, "state": 3}),
        (versions(2, kv=3, mine=2), "raftsvc 2, State kv=3 mine=2", {"library": 2, "state": {"kv": 3, "mine": 2}}),
    ],
)
def test_versions_are_said_to_people_and_monitors(known: Versions, text: str, json: dict[str, object]) -> None:
    assert (str(known), known.as_json()) == (text, json)


# -- what a State says


def test_a_state_that_says_nothing_is_of_the_first_version() -> None:
    assert versions_of(ListState()) == Versions(LIBRARY_VERSION) == versions_of(raftsvc.States(kv=ListState()))


@pytest.mark.parametrize("version", [0, -1, True, 1.5, "2", None, MAX_VERSION + 1])
def test_what_is_no_version_is_refused_at_the_start(version: Any, tmp_path: Any) -> None:
    for state in (Told(version), raftsvc.States(mine=Told(version))):
        with pytest.raises(raftsvc.ConfigurationError, match=r"says that its version is .*; a version is an int"):
            raftsvc.start("127.0.0.1:1", tmp_path, state=state)


@pytest.mark.parametrize("name", ["state_version", "use_version"])
def test_half_a_versioned_state_is_refused(name: str, tmp_path: Any) -> None:
    state = ListState()
    setattr(state, name, lambda *_: 2)
    with pytest.raises(raftsvc.ConfigurationError, match=f"has {name} and lacks .*: see raftsvc.VersionedState"):
        raftsvc.start("127.0.0.1:1", tmp_path, state=state)


def test_each_part_of_several_has_a_version_of_its_own_and_is_told_it() -> None:
    one, two, plain = Told(3), Told(5), ListState()
    inner = Told(2)
    states = raftsvc.States(one=one, two=two, plain=plain, more=raftsvc.States(inner=inner))
    assert versions_of(states) == Versions.of(LIBRARY_VERSION, {"one": 3, "two": 5, "more/inner": 2})
    states.use_versions({"one": 2, "more/inner": 2})
    assert (one.told, two.told, inner.told) == ([(0, 2)], [(0, 1)], [(0, 2)])


# -- the configuration


CONFIG = Configuration({1: Member("a:1", True)}, 1, versions(2, kv=2))


@pytest.mark.parametrize("known", [FIRST, versions(2), versions(1, kv=9), versions(9, kv=1), versions(2, other=2)])
def test_who_knows_less_is_not_added(known: Versions) -> None:
    with pytest.raises(InvalidChangeError, match=f"a node of {known} cannot join where {CONFIG.versions} is effective"):
        CONFIG.changed(ConfChange(ConfOp.ADD_LEARNER, 2, "b:2", versions=known))


@pytest.mark.parametrize("known", [versions(2, kv=2), versions(3, kv=2), versions(2, kv=2, other=7)])
def test_who_knows_as_much_or_more_is_added_and_changes_no_version(known: Versions) -> None:
    config = CONFIG.changed(ConfChange(ConfOp.ADD_LEARNER, 2, "b:2", versions=known))
    assert config.versions == CONFIG.versions == config.changed(ConfChange(ConfOp.REMOVE, 2)).versions


@pytest.mark.parametrize("wanted", [CONFIG.versions, FIRST, versions(3), versions(1, kv=3)])
def test_a_version_only_rises(wanted: Versions) -> None:
    with pytest.raises(InvalidChangeError, match="is not above the effective version"):
        CONFIG.changed(ConfChange.to_raise(wanted))
    raised = CONFIG.changed(ConfChange.to_raise(versions(2, kv=3)))
    assert (raised.versions, raised.members) == (versions(2, kv=3), CONFIG.members)


# -- the machine


class Log:
    """Feeds a machine with one entry after the other; it was founded with version 1 of everything."""

    def __init__(self, state: BaseState, library: int = 2, founded: Versions = FIRST) -> None:
        self.machine = Machine(state, library)  # type: ignore[arg-type]
        self.change(ConfChange(ConfOp.ADD_VOTER, 1, "a:1", versions=founded))
        self.change(ConfChange(ConfOp.ADD_LEARNER, 2, "b:2", versions=versions(9, 9)))

    def entry(self, kind: EntryKind, data: bytes) -> int:
        index = self.machine.applied_index + 1
        self.machine.apply([make_entry(index, 1, kind, data)], [])
        return index

    def change(self, change: ConfChange) -> int:
        return self.entry(EntryKind.CONFIG, change.encode())

    def open(self, member: int, counter: int, known: Versions | None, nonce: int = 7) -> int:
        at = self.machine.applied_index
        return self.entry(EntryKind.NORMAL, wrap_open(member, nonce, counter, at, known))

    def known(self, member: int = 1) -> Versions | None:
        return self.machine.sessions.versions_of(member)


def test_a_state_is_told_at_the_entry_that_raises_the_version_and_after_a_restore() -> None:
    state = Told()
    log = Log(state)
    assert (log.machine.versions, state.told) == (FIRST, [])
    log.change(ConfChange.to_raise(versions(1, 2)))
    assert (log.machine.versions, state.told) == (versions(1, 2), [(0, 2)])
    log.change(ConfChange.to_raise(versions(2, 3)))
    assert state.told == [(0, 2), (0, 3)]
    other = Told()
    machine = Machine(other, 2)
    config = Configuration.decode(log.machine.config.encode())
    machine.restore(log.machine.applied_index, 1, config, log.machine.sessions.encode(), 0, iter([state.snapshot()[0]]))
    assert (machine.versions, other.told) == (versions(2, 3), [(0, 3)])


def test_a_state_is_told_with_the_entry_that_founds_the_cluster() -> None:
    state = Told()
    assert Log(state, founded=versions(1, 3)).machine.versions == versions(1, 3)
    assert state.told == [(0, 3)]


@pytest.mark.parametrize("wanted", [versions(3), versions(1, 4), versions(1, 1, other=2), versions(3, 3)])
def test_a_machine_stops_before_what_it_does_not_know_and_restores_no_snapshot_of_it(wanted: Versions) -> None:
    state = Told()
    log = Log(state)
    before = log.machine.applied_index
    for _ in range(2):
        with pytest.raises(raftsvc.OutdatedError, match=f"is of version {log.machine.own}.*version is {wanted}"):
            log.change(ConfChange.to_raise(wanted))
        assert (log.machine.applied_index, log.machine.versions, state.told) == (before, FIRST, [])
    config = log.machine.config.changed(ConfChange.to_raise(wanted))
    with pytest.raises(raftsvc.OutdatedError, match="Start it with the code that the other members run"):
        log.machine.restore(99, 1, config, Sessions().encode(), 0, iter([b""]))
    assert (log.machine.applied_index, log.machine.versions, state.told) == (before, FIRST, [])


def test_what_a_state_raises_when_it_is_told_stops_applying_at_that_entry() -> None:
    class Broken(Told):
        def use_version(self, version: int) -> None:
            raise RuntimeError("broken")

    log = Log(Broken())
    before = log.machine.applied_index
    with pytest.raises(RuntimeError, match="broken"):
        log.change(ConfChange.to_raise(versions(1, 2)))
    assert (log.machine.applied_index, log.machine.versions) == (before, FIRST)


def test_what_a_member_reported_belongs_to_the_life_that_said_so() -> None:
    log = Log(Told())
    assert log.known() is None
    log.open(1, 1, versions(2, 3))
    assert log.known() == versions(2, 3)
    log.open(1, 2, versions(1, 3))  # started with an older library
    assert log.known() == versions(1, 3)
    log.open(1, 1, versions(2, 9))  # late
    assert log.known() == versions(1, 3)
    log.open(1, 3, None)
    assert log.known() is None
    log.open(1, 4, versions(2, 2))
    log.entry(EntryKind.NORMAL, wrap_void(1))
    assert log.known() is None
    log.open(2, 1, versions(2, 2))
    log.change(ConfChange(ConfOp.REMOVE, 2))
    assert log.known(2) is None


def test_of_several_processes_of_a_member_the_least_counts_and_those_that_apply_nothing_do_not() -> None:
    log = Log(Told())
    log.open(1, 0, versions(2, 1), nonce=1)
    assert log.known() is None, "the owner has not said"
    log.open(1, 1, versions(2, 3))
    assert log.known() == versions(2, 1)
    log.open(1, 0, None, nonce=2)
    second = log.open(1, 0, versions(1, 2), nonce=3)
    assert log.known() == versions(1, 1)
    assert Sessions.decode(log.machine.sessions.encode()).versions_of(1) == versions(1, 1)
    log.entry(EntryKind.NORMAL, wrap_close(second, 3))
    assert log.known() == versions(2, 1)


@pytest.mark.parametrize("said", [b"x", b"\x00" * 6, versions(2, 3).encode() + b"x", b"\xff" * 40])
def test_what_does_not_decode_reports_nothing(said: bytes) -> None:
    log = Log(Told())
    log.entry(EntryKind.NORMAL, wrap_open(1, 7, 1, log.machine.applied_index) + said)
    assert log.machine.sessions.owner_of(1) and log.known() is None


def test_what_is_said_to_people_names_both_versions_and_what_to_do() -> None:
    text = str(outdated("node 3 at c:1", versions(1, kv=2), versions(2, kv=3)))
    assert text.startswith("node 3 at c:1 is of version raftsvc 1, State kv=2, ")
    assert "effective version is raftsvc 2, State kv=3" in text
    assert text.endswith("Start it with the code that the other members run, or later")


def test_a_leader_whose_state_still_starts_from_a_snapshot_raises_nothing_yet() -> None:
    config = Configuration({i: Member(f"n{i}:1", True, bytes([i])) for i in (1, 2, 3)}, 3)
    core = Raft(Settings(2, Random(1)), HardState(1, 0, 10), SnapshotMeta(10, 1, config), ())
    machine = Machine(Told(2))
    machine.config, machine.applied_index = config, 10
    for i in config.members:
        machine.sessions.open(i, i, 100 + i, 1, 0, versions(1, 2))
    lives: Any = SimpleNamespace(own=Life(1, 102), highest=machine.life_of)
    upgrades = Upgrades(core, machine, lives, lambda: None)
    core.await_deadline(None, 10)
    upgrades.applied()

    def write() -> None:
        while (ready := core.ready()) is not None:
            core.persisted(ready.token)

    core.step(Message(MessageKind.SNAPSHOT, 2, from_id=3, term=1, index=500, log_term=1, payload=config.encode()))
    write()
    assert core.log.applied_index < core.log.offset, "it is durable, and the State does not have it yet"
    core.step(Message(MessageKind.TIMEOUT_NOW, 2, from_id=3, term=1))
    write()
    core.step(Message(MessageKind.VOTE_REPLY, 2, from_id=1, term=core.term))
    write()
    assert core.role is Role.LEADER
    last = core.log.last_index
    upgrades.tick()
    assert core.log.last_index == last


@pytest.mark.parametrize("void", [set(), {1}, {1, 3}])
def test_of_a_member_that_is_void_it_is_said_that_it_holds_the_version_back_until_it_is_evicted(void: set[int]) -> None:
    config = Configuration({i: Member(f"n{i}", True) for i in (1, 2, 3)}, 3)
    core = Raft(Settings(2, Random(1)), HardState(1, 0, 10), SnapshotMeta(10, 1, config), ())
    machine = Machine(Told(2))
    machine.config, machine.applied_index = config, 10
    for i in config.members:
        machine.sessions.open(i, i, 100 + i, 1, 0, versions(1, 2))
    for i in void:
        machine.sessions.void(i)
    lives: Any = SimpleNamespace(own=Life(1, 102), highest=machine.life_of)
    upgrades = Upgrades(core, machine, lives, lambda: None)
    upgrades.applied()
    held = upgrades.held_back_by()
    assert set(held) == void
    assert all("evict it" in why and "nothing that it says counts" in why for why in held.values())
