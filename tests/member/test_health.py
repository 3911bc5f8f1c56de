"""What is wrong with a node decides what it does, what `err` is, and what an application is told."""

from __future__ import annotations

from itertools import permutations

import pytest

from raftsvc.errors import (
    ApplyHaltedError,
    ConfigurationError,
    DisagreementError,
    DiskRefusedError,
    DiskStalledError,
    DivergedError,
    DoubledMemberError,
    EvictedError,
    MisplacedError,
    NodeFailedError,
    NotListeningError,
    OutOfTouchError,
    RaftError,
    StateStalledError,
    StoppedError,
    StorageError,
    SupersededError,
    WrongCertificateError,
    WrongClusterError,
    WrongSecretError,
    WrongVersionError,
)
from raftsvc.member.health import Condition, Health

ERRORS: dict[Condition, RaftError] = {
    Condition.FAILED: StorageError("broke"),
    Condition.REMOVED: EvictedError("removed"),
    Condition.SUPERSEDED: SupersededError("superseded"),
    Condition.HALTED: ApplyHaltedError("halted"),
    Condition.DIFFERS: DivergedError("differs"),
    Condition.CLAIMED: WrongClusterError("claimed"),
    Condition.STATE_STALLED: StateStalledError("state-stalled"),
    Condition.STALLED: DiskStalledError("stalled"),
    Condition.REFUSED: DiskRefusedError("refused"),
    Condition.NOT_LISTENING: NotListeningError("not-listening"),
    Condition.UNATTACHED: NodeFailedError("unattached"),
    Condition.OWNER_SILENT: NodeFailedError("owner-silent"),
    Condition.UNRECEIVED: StorageError("unreceived"),
    Condition.OUT_OF_TOUCH: OutOfTouchError("out-of-touch"),
    Condition.DRAINING: RaftError("draining"),
    Condition.WRONG_CLUSTER: WrongClusterError("wrong-cluster"),
    Condition.WRONG_SECRET: WrongSecretError("wrong-secret"),
    Condition.WRONG_VERSION: WrongVersionError("wrong-version"),
    Condition.WRONG_CERTIFICATE: WrongCertificateError("wrong-certificate"),
    Condition.MISPLACED: MisplacedError("misplaced"),
    Condition.STALE_FILE: ConfigurationError("stale-file"),
    Condition.UNRELEASED: StorageError("unreleased"),
    Condition.LOW_ROOM: DiskRefusedError("low-room"),
    Condition.UNSAVED: StorageError("unsaved"),
    Condition.DISPUTED: DisagreementError("disputed"),
    Condition.DOUBLED: DoubledMemberError("doubled"),
    Condition.NARROW: RaftError("narrow"),
    Condition.STOPPED: StoppedError("stopped"),
}


NO_ERRORS = (Condition.DRAINING, Condition.LOW_ROOM, Condition.NARROW, Condition.STOPPED)


def test_every_condition_is_told_of() -> None:
    assert set(ERRORS) == set(Condition)
    health = Health()
    for condition, error in ERRORS.items():
        health.note(condition, error)
    assert list(health.conditions()) == [condition.label for condition in Condition]


@pytest.mark.parametrize(
    ("condition", "takes_part", "applies", "leads", "serves", "is_ready"),
    [
        (None, True, True, True, True, True),
        (Condition.FAILED, False, False, False, False, False),
        (Condition.SUPERSEDED, False, False, False, False, False),
        (Condition.DOUBLED, True, True, True, True, True),
        (Condition.REMOVED, True, True, False, False, False),
        (Condition.HALTED, True, False, False, False, False),
        (Condition.DIFFERS, True, True, False, False, False),
        (Condition.CLAIMED, True, True, True, True, False),
        (Condition.STATE_STALLED, True, True, False, True, False),
        (Condition.STALLED, True, True, False, True, False),
        (Condition.REFUSED, True, True, True, True, True),
        (Condition.NOT_LISTENING, True, True, True, True, False),
        (Condition.OUT_OF_TOUCH, True, True, True, True, False),
        (Condition.WRONG_CLUSTER, True, True, True, True, True),
        (Condition.WRONG_SECRET, True, True, True, True, True),
        (Condition.WRONG_VERSION, True, True, True, True, True),
        (Condition.WRONG_CERTIFICATE, True, True, True, True, True),
        (Condition.MISPLACED, True, True, True, True, True),
        (Condition.UNSAVED, True, True, True, True, True),
        (Condition.UNRELEASED, True, True, True, True, True),
        (Condition.DISPUTED, True, True, True, True, True),
        (Condition.LOW_ROOM, True, True, True, True, True),
        (Condition.STOPPED, False, False, False, False, False),
    ],
)
def test_what_a_condition_keeps_a_node_from(
    condition: Condition | None, takes_part: bool, applies: bool, leads: bool, serves: bool, is_ready: bool
) -> None:
    health = Health()
    if condition is not None:
        health.note(condition, ERRORS[condition])
    assert (not health.is_over, health.may_apply, health.may_lead, health.may_serve) == (
        takes_part,
        applies,
        leads,
        serves,
    )
    assert health.may_be_ready == is_ready
    if serves:
        health.check_able()
    else:
        with pytest.raises(RaftError):
            health.check_able()


@pytest.mark.parametrize("pair", list(permutations(ERRORS, 2)), ids=lambda pair: "-".join(c.label for c in pair))
def test_of_two_the_graver_is_told_whichever_came_first(pair: tuple[Condition, Condition]) -> None:
    health = Health()
    for condition in pair:
        health.note(condition, ERRORS[condition])
    graver, lesser = sorted(pair, key=list(Condition).index)
    shown = next((c for c in (graver, lesser) if c not in NO_ERRORS), None)
    assert health.err() is (ERRORS[shown] if shown is not None else None)
    if lesser.can_pass:
        health.clear(lesser)
        assert health.err() is (ERRORS[graver] if graver not in NO_ERRORS else None)
    if not health.may_serve:
        assert health.refusal() is not None


def test_a_stop_is_no_error_and_is_told_to_callers() -> None:
    health = Health()
    health.note(Condition.STOPPED, ERRORS[Condition.STOPPED])
    assert health.err() is None
    with pytest.raises(StoppedError):
        health.check_able()


def test_who_failed_tells_callers_why() -> None:
    health = Health()
    health.note(Condition.FAILED, ERRORS[Condition.FAILED])
    with pytest.raises(NodeFailedError, match="stopped taking part: broke") as caught:
        health.check_able()
    assert caught.value.__cause__ is ERRORS[Condition.FAILED]


def test_what_passes_leaves_nothing_behind() -> None:
    health = Health()
    for condition in Condition:
        if condition.can_pass:
            assert not health.clear(condition)
            health.note(condition, ERRORS[condition])
            assert health.err() is (ERRORS[condition] if condition not in NO_ERRORS else None)
            assert health.clear(condition)
            assert health.err() is None and health.may_lead and health.may_serve and health.may_be_ready
            assert not health.conditions()


def test_refused_callers_leave_no_frames_behind() -> None:
    health = Health()
    health.note(Condition.HALTED, ERRORS[Condition.HALTED])
    lengths = set()
    for _ in range(5):
        with pytest.raises(ApplyHaltedError) as caught:
            health.check_able()
        lengths.add(len(caught.traceback))
    assert len(lengths) == 1
