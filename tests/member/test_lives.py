"""Which start of a member counts, judged by what was heard, by the log, and by who still speaks when asked."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from raftsvc.core.membership import Configuration, Member
from raftsvc.core.messages import KEPT_LIVES, MAX_NUMBER, Claim, EntryKind, Life, Lineage, make_entry
from raftsvc.core.raft import Role
from raftsvc.errors import SupersededError
from raftsvc.logs import NOTHING
from raftsvc.member.calls import Contexts
from raftsvc.member.envelopes import INSTRUCTION, wrap, wrap_open, wrap_void
from raftsvc.member.health import Condition, Health
from raftsvc.member.lives import Lives, Speaker
from raftsvc.member.machine import Machine
from raftsvc.member.vigil import Vigil
from raftsvc.state import BaseState

pytestmark = pytest.mark.pure

ME, PEER = 1, 2
CONFIG = Configuration({i: Member(f"n{i}:1", True) for i in (1, 2, 3)}, 3)
OWN = Life(5, 0xA)
LINEAGE = Lineage(5, (0xA, 0x9, 0x8, 0x7, 0x6, *[0] * (KEPT_LIVES - 5)))


class Core:
    """A member that leads, or hears a leader, and notes what it is given."""

    node_id = ME
    config = CONFIG
    settings = SimpleNamespace(election_ticks=10)

    def __init__(self) -> None:
        self.leader = self
        self.disowned: set[int] = set()
        self.role = Role.LEADER
        self.leader_id = ME
        self.proposed: list[Any] = []

    def disown(self, member: int) -> None:
        self.disowned.add(member)

    def set_fit_to_lead(self, is_fit: bool) -> None:
        assert is_fit

    def propose(self, proposals: Any) -> None:
        self.proposed += proposals

    def forward(self, proposals: Any, context: int) -> bool:
        self.proposed += proposals
        return True


class Scene:
    def __init__(self) -> None:
        self.core: Any = Core()
        self.machine = Machine(BaseState())  # type: ignore[arg-type]
        self.machine.config = CONFIG
        self.health = Health()
        self.said: list[str] = []
        self.given_up: list[SupersededError] = []
        runner: Any = self
        applying: Any = SimpleNamespace(applied_index=0)
        writes: Any = None
        vigil = Vigil(self.core, self.health, writes, applying, runner, "n1:1")
        contexts: Any = Contexts.__new__(Contexts)
        contexts._last = 0
        self.lives = Lives(
            "n1:1",
            LINEAGE,
            self.core,
            self.machine,
            vigil,
            contexts,
            retry_ticks=3,
            say=self.say,
            give_up=self.given_up.append,
        )

    def say(
        self,
        level: int,
        message: str,
        error: BaseException | None = None,
        fields: Mapping[str, object] = NOTHING,
    ) -> None:
        self.said.append(message)

    def state_changed(self) -> None:
        pass

    def apply(self, data: bytes) -> int:
        index = self.machine.applied_index + 1
        self.machine.apply([make_entry(index, 1, EntryKind.NORMAL, data)], [])
        self.lives.applied()
        return index

    def log(self, *data: bytes, kind: EntryKind = EntryKind.NORMAL) -> None:
        """Entries come into the log, and are not applied."""
        self.lives.logged([make_entry(100 + n, 1, kind, each) for n, each in enumerate(data)])

    def judge(self, counter: int, nonce: int = 0, proves_now: bool = False) -> Speaker:
        known = self.lives.highest(PEER)
        ancestor = known if known.counter else None  # as whoever goes on from what is known says
        return self.lives.judge(PEER, Claim(Life(counter, nonce), ancestor), proves_now)


def test_a_later_start_follows_an_earlier_one_whose_last_words_come_late() -> None:
    scene = Scene()
    assert scene.judge(3) is Speaker.CURRENT
    assert scene.judge(4) is Speaker.CURRENT
    assert scene.judge(3) is Speaker.LATE and scene.judge(4) is Speaker.CURRENT
    assert scene.lives.highest(PEER) == Life(4, 0)
    assert scene.health.err() is None and not scene.said


def test_an_earlier_start_that_speaks_on_makes_its_member_void_here() -> None:
    scene = Scene()
    scene.judge(4)
    assert scene.judge(3, proves_now=True) is Speaker.VOID
    assert [scene.judge(counter) for counter in (2, 3, 4, 5)] == [Speaker.VOID] * 4
    assert "node 2 (n2:1)" in str(scene.health.error_of(Condition.DOUBLED)) and len(scene.said) == 1
    scene.judge(3, proves_now=True)
    assert len(scene.said) == 1, "it is said once"


def test_two_nonces_of_one_counter_need_no_other_proof() -> None:
    scene = Scene()
    scene.judge(4, 7)
    assert scene.judge(4, 8) is Speaker.VOID


@pytest.mark.parametrize("counter", [1, 3, 4])
def test_what_the_log_says_of_lives_counts_as_if_it_had_been_heard(counter: int) -> None:
    scene = Scene()
    scene.apply(wrap_open(PEER, 7, 4, 0))
    assert scene.judge(4, 7) is Speaker.CURRENT
    assert scene.judge(counter, 9) is (Speaker.VOID if counter == 4 else Speaker.LATE)


@pytest.mark.parametrize("counter", [1, 3, 4, 5])
def test_what_is_in_the_log_counts_before_it_is_applied(counter: int) -> None:
    scene = Scene()
    scene.judge(3, 9)
    scene.log(b"", wrap_open(PEER, 7, 4, 0), wrap_open(PEER, 8, 2, 0))
    assert not scene.lives.counts(PEER, Life(3, 9)), "it has been followed by another"
    assert scene.lives.highest(PEER) == Life(4, 7)
    wanted = {4: Speaker.VOID, 5: Speaker.CURRENT}.get(counter, Speaker.LATE)
    assert scene.judge(counter, 9) is wanted
    if counter != 4:
        assert scene.health.err() is None and scene.judge(4, 7) is (Speaker.LATE if counter == 5 else Speaker.CURRENT)


def test_what_is_in_the_log_of_other_sessions_or_is_no_instruction_says_nothing_of_lives() -> None:
    scene = Scene()
    scene.judge(3, 9)
    scene.log(wrap_open(PEER, 7, 0, 0), wrap_open(PEER, 7, MAX_NUMBER, 0), wrap_open(PEER, 7, 4, 0)[:-1])
    scene.log(wrap(INSTRUCTION, PEER, 7, 4, 0, b"x"), wrap_open(3, 7, 9, 0))
    scene.log(wrap_open(PEER, 7, 4, 0), wrap_void(PEER), kind=EntryKind.CONFIG)
    assert scene.lives.counts(PEER, Life(3, 9)) and scene.judge(3, 9) is Speaker.CURRENT
    assert not scene.said and not scene.given_up


def test_who_is_void_by_the_log_is_so_before_that_is_applied() -> None:
    scene = Scene()
    scene.judge(3, 9)
    scene.log(wrap_void(PEER))
    assert scene.judge(3, 9) is Speaker.VOID and not scene.lives.counts(PEER, Life(3, 9))
    assert "node 2 (n2:1)" in str(scene.health.error_of(Condition.DOUBLED))
    scene.apply(wrap_void(PEER))
    assert len(scene.said) == 1
    scene.machine.config = Configuration({i: CONFIG.members[i] for i in (1, 3)}, 3)
    scene.apply(wrap_open(3, 1, 1, 0))
    assert scene.health.err() is None


def test_nobody_is_alarmed_by_one_who_is_removed_further_on_in_the_log_unless_that_is_overwritten() -> None:
    scene = Scene()
    scene.judge(3, 9)
    scene.core.config = Configuration({i: CONFIG.members[i] for i in (1, 3)}, 3)
    scene.log(wrap_void(PEER))
    scene.lives.tick(1)
    assert scene.health.err() is None and not scene.said
    assert scene.judge(3, 9) is Speaker.VOID and scene.core.disowned == {PEER}, "it counts for nothing all the same"
    scene.core.config = CONFIG
    scene.lives.tick(2)
    assert "node 2 (n2:1)" in str(scene.health.error_of(Condition.DOUBLED)) and len(scene.said) == 1
    scene.machine.config = Configuration({i: CONFIG.members[i] for i in (1, 3)}, 3)
    scene.apply(wrap_open(3, 1, 1, 0))
    assert scene.health.err() is None and not scene.lives.doubled


@pytest.mark.parametrize(
    ("data", "gives_up"),
    [
        (wrap_open(ME, 0xA, 5, 0), False),
        (wrap_open(ME, 0x9, 4, 0), False),
        (wrap_open(ME, 0xB, 5, 0), True),
        (wrap_open(ME, 0xC, 6, 0), True),
        (wrap_void(ME), True),
    ],
)
def test_a_node_that_finds_in_its_log_that_it_was_put_back_gives_up(data: bytes, gives_up: bool) -> None:
    scene = Scene()
    scene.log(data)
    assert bool(scene.given_up) is gives_up


def test_what_strangers_in_the_log_are_remembered_by_is_bounded() -> None:
    scene = Scene()
    scene.log(*(wrap_open(stranger, 1, 1, 0) for stranger in range(10, 500)))
    assert len(scene.lives._heard) <= 100


def test_a_doubled_member_is_voided_through_the_log_however_often_it_takes() -> None:
    scene = Scene()
    scene.judge(4, 7)
    scene.judge(4, 8)
    void = (EntryKind.NORMAL, wrap_void(PEER))
    for tick in range(10):
        scene.lives.tick(tick)
    assert scene.core.proposed == [void] * 4, "now and then"
    scene.apply(wrap_void(PEER))
    for tick in range(10, 20):
        scene.lives.tick(tick)
    assert len(scene.core.proposed) == 4, "until it is"
    # Whoever was started since knows it from the log.
    other = Scene()
    other.apply(wrap_void(PEER))
    assert other.judge(9) is Speaker.VOID


def test_it_is_over_once_that_member_was_evicted() -> None:
    scene = Scene()
    scene.judge(4, 7)
    scene.judge(4, 8)
    scene.machine.config = Configuration({i: CONFIG.members[i] for i in (1, 3)}, 3)
    scene.apply(wrap_open(3, 1, 1, 0))
    assert scene.health.err() is None and not scene.lives.doubled
    assert "every member speaks for itself again" in scene.said[-1] and len(scene.said) == 2


def test_each_doubled_member_is_said_once_and_only_those_that_are_members_yet_are_named() -> None:
    scene = Scene()
    for member in (PEER, 3):
        scene.lives.judge(member, Claim(Life(4, 7)))
        scene.lives.judge(member, Claim(Life(4, 8)))
    assert [line.count("start number 4") for line in scene.said] == [1, 1]
    assert [f"n{i}:1" in str(scene.health.err()) for i in (2, 3)] == [True, True]
    scene.machine.config = Configuration({i: CONFIG.members[i] for i in (1, 3)}, 3)
    scene.machine.sessions.changes += 1
    scene.lives.applied()
    assert [f"node {i} (" in str(scene.health.err()) for i in (2, 3)] == [False, True]
    assert len(scene.said) == 2, "it is not over"


def test_a_void_member_is_named_by_all_whoever_found_it_out_and_whenever_they_hear_of_it() -> None:
    for brings in ("entry", "snapshot"):
        scene = Scene()
        if brings == "entry":
            scene.apply(wrap_void(PEER))
        else:
            source = Scene()
            source.apply(wrap_void(PEER))
            scene.machine.state.restore_snapshot = lambda data, index: None  # type: ignore[method-assign]
            scene.machine.restore(1, 1, CONFIG, source.machine.sessions.encode(), 0, iter([b""]))
            scene.lives.applied()
        assert "node 2 (n2:1)" in str(scene.health.error_of(Condition.DOUBLED)) and len(scene.said) == 1, brings
        for tick in range(10):
            scene.lives.tick(tick)
        assert not scene.core.proposed, "it is void already"


def test_nothing_is_held_against_who_was_removed_nor_proposed_against_who_is_no_member() -> None:
    scene = Scene()
    stranger = 4
    scene.lives.doubt(stranger, "it is confused")
    scene.machine.config = Configuration({i: CONFIG.members[i] for i in (1, 3)}, 3)
    scene.lives.doubt(PEER, "it lacks entries, as it hears that it was removed")
    assert list(scene.lives.doubled) == [stranger]
    for tick in range(20):
        scene.lives.tick(tick)
    assert not scene.core.proposed


@pytest.mark.parametrize("is_leader_then", [True, False])
def test_what_a_doubled_member_had_acknowledged_counts_no_more_either(is_leader_then: bool) -> None:
    scene = Scene()
    if not is_leader_then:
        scene.core.leader = None
    scene.judge(4, 7)
    scene.judge(4, 8)
    assert scene.core.disowned == ({PEER} if is_leader_then else set())
    scene.core.leader = scene.core
    scene.lives.tick(1)
    assert scene.core.disowned == {PEER}


@pytest.mark.parametrize("named", [Life(6, 0x1), Life(5, 0xB), Life(3, 0x1), Life(MAX_NUMBER, 0)])
def test_a_node_that_is_spoken_to_as_another_start_than_its_directory_knows_gives_up(named: Life) -> None:
    scene = Scene()
    scene.lives.recognize(named)
    assert len(scene.given_up) == 1


@pytest.mark.parametrize("named", [OWN, Life(4, 0x9), Life(1, 0x6), Life()])
def test_a_node_that_is_spoken_to_as_an_earlier_start_of_its_own_goes_on(named: Life) -> None:
    scene = Scene()
    scene.lives.recognize(named)
    assert not scene.given_up


@pytest.mark.parametrize("recorded", [Life(5, 0xB), Life(6, 0xA), Life(4, 0xB), Life(1, 0xA)])
def test_a_node_whose_cluster_knows_another_start_of_it_gives_up(recorded: Life) -> None:
    scene = Scene()
    scene.apply(wrap_open(ME, recorded.nonce, recorded.counter, 0))
    assert len(scene.given_up) == 1 and f"start number {recorded.counter}" in str(scene.given_up[0])


def test_a_node_that_is_void_gives_up() -> None:
    scene = Scene()
    scene.apply(wrap_void(ME))
    assert "its cluster voided it" in str(scene.given_up[0])


@pytest.mark.parametrize("recorded", [Life(4, 0x9), Life(1, 0x6), OWN])
def test_a_restart_is_nothing_to_give_up_for(recorded: Life) -> None:
    scene = Scene()
    scene.apply(wrap_open(ME, recorded.nonce, recorded.counter, 0))
    assert not scene.given_up


def test_a_node_doubts_itself_only_by_what_the_log_says() -> None:
    scene = Scene()
    scene.lives.doubt(ME, "somebody is confused")
    assert not scene.lives.doubled


def test_what_strangers_are_remembered_by_is_bounded() -> None:
    scene = Scene()
    for stranger in range(10, 500):
        assert scene.lives.judge(stranger, Claim(Life(1, 1))) is Speaker.CURRENT
    assert len(scene.lives._heard) <= 100


def test_a_later_start_says_from_which_it_goes_on() -> None:
    scene = Scene()
    assert scene.lives.judge(PEER, Claim(Life(3, 7))) is Speaker.CURRENT, "nobody knows better"
    for ancestor in (None, Life(2, 6), Life(4, 8)):
        assert scene.lives.judge(PEER, Claim(Life(9, 1), ancestor)) is Speaker.UNPROVEN
        assert not scene.lives.counts(PEER, Life(9, 1))
    assert scene.judge(3, 7) is Speaker.CURRENT, "what is not proven changes nothing"
    assert scene.lives.judge(PEER, Claim(Life(9, 1), Life(3, 7))) is Speaker.CURRENT
    assert scene.lives.counts(PEER, Life(9, 1)) and not scene.lives.counts(PEER, Life(3, 7))


def test_one_that_does_not_go_on_from_what_is_known_is_found_out_however_high_it_counts() -> None:
    scene = Scene()
    scene.judge(3, 7)
    assert scene.lives.judge(PEER, Claim(Life(9, 1), Life(3, 8))) is Speaker.VOID
    assert "does not go on from number 3" in str(scene.health.err())


def test_one_that_was_started_too_often_since_to_remember_is_believed() -> None:
    scene = Scene()
    scene.judge(3, 7)
    assert scene.lives.judge(PEER, Claim(Life(99, 1), Life(3, 0))) is Speaker.CURRENT


def test_one_that_was_heard_does_not_hide_its_twin_in_the_log() -> None:
    scene = Scene()
    scene.judge(4, 7)
    scene.apply(wrap_open(PEER, 8, 4, 0))
    assert not scene.lives.counts(PEER, Life(4, 7))
    assert scene.judge(4, 7) is Speaker.VOID


def test_what_counted_does_not_once_the_log_knows_of_a_later_start() -> None:
    scene = Scene()
    scene.judge(4, 7)
    assert scene.lives.counts(PEER, Life(4, 7))
    scene.apply(wrap_open(PEER, 8, 5, 0))
    assert not scene.lives.counts(PEER, Life(4, 7)) and scene.judge(4, 7) is Speaker.LATE


def test_nothing_is_remembered_of_who_was_removed() -> None:
    scene = Scene()
    scene.judge(4, 7)
    scene.machine.config = Configuration({i: CONFIG.members[i] for i in (1, 3)}, 3)
    scene.apply(wrap_open(3, 1, 1, 0))
    assert PEER not in scene.lives._heard
