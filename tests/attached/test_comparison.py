"""Whether a replica is what its owner is, and who of the two is right: what is told when, and what follows from it."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from raftsvc.attached.comparison import Comparison
from raftsvc.member.digests import DigestRecord
from raftsvc.member.machine import Machine
from raftsvc.member.snapshots import Snapshots
from raftsvc.storage import SnapshotHeader

WRONG = 666


def digest_at(index: int) -> int:
    return 1000 + index


class Replica:
    """It applies what is right, unless it `is_wrong`."""

    def __init__(self, is_wrong: bool = False) -> None:
        self.comparison = Comparison()
        self._is_wrong = is_wrong
        self._last_index = 0

    def digest(self, index: int) -> int:
        return WRONG + index if self._is_wrong else digest_at(index)

    def apply(self, last_index: int) -> None:
        first = self._last_index + 1
        self._last_index = last_index
        self.comparison.applied(first, [self.digest(index) for index in range(first, last_index + 1)], False)

    def restore(self, index: int) -> None:
        self._last_index = index
        self.comparison.applied(index, [self.digest(index)], True)

    @property
    def doubt(self) -> bool:
        return self.comparison.difference is not None

    @property
    def is_condemned(self) -> bool:
        return self.comparison.mismatch is not None


@pytest.fixture
def replica() -> Replica:
    return Replica()


def test_who_differs_from_its_owner_is_in_doubt_until_the_cluster_agreed_on_what_it_has(replica: Replica) -> None:
    replica.apply(10)
    replica.comparison.announced(12, WRONG)
    assert not replica.doubt
    replica.apply(12)
    assert replica.doubt
    replica.comparison.agreed(11, digest_at(11), False)
    assert replica.doubt, "it may have gone wrong after that"
    replica.comparison.agreed(13, digest_at(13), False)
    assert replica.doubt, "it is not there yet"
    replica.apply(13)
    assert not replica.doubt


def test_whose_owner_is_convicted_by_an_older_entry_serves_again(replica: Replica) -> None:
    replica.apply(12)
    replica.comparison.announced(12, WRONG)
    replica.comparison.agreed(10, digest_at(10), True)
    assert not replica.doubt, "the owner is wrong since then, and says nothing of itself any more"
    assert not replica.is_condemned


def test_who_differs_from_what_the_cluster_agreed_on_is_wrong(replica: Replica) -> None:
    wrong = Replica(is_wrong=True)
    for each in (replica, wrong):
        each.comparison.agreed(3, digest_at(3), False)
        each.apply(5)
    assert (replica.is_condemned, wrong.is_condemned) == (False, True)


def test_who_is_as_wrong_as_its_owner_is_found_out_though_it_forgot_the_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftsvc.member.digests._REMEMBERED", 10)
    wrong = Replica(is_wrong=True)
    wrong.apply(5)
    wrong.comparison.announced(5, wrong.digest(5))
    wrong.apply(30)
    wrong.comparison.agreed(3, digest_at(3), True)
    assert wrong.is_condemned


def test_who_is_right_is_told_so_though_it_forgot_the_entry(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftsvc.member.digests._REMEMBERED", 10)
    replica.apply(3)
    replica.comparison.announced(3, WRONG)
    replica.apply(30)
    assert replica.doubt
    replica.comparison.agreed(3, digest_at(3), True)
    assert not replica.doubt


@pytest.mark.parametrize("is_told_before", [False, True])
@pytest.mark.parametrize("is_wrong", [False, True])
def test_who_began_with_a_snapshot_of_a_convicted_owner_is_in_doubt(is_told_before: bool, is_wrong: bool) -> None:
    replica = Replica(is_wrong)
    if is_told_before:
        replica.comparison.agreed(10, digest_at(10), True, 22)
    replica.restore(20)
    if not is_told_before:
        assert not replica.doubt
        replica.comparison.agreed(10, digest_at(10), True, 22)
    assert replica.doubt
    assert not replica.is_condemned, "the snapshot may be of somebody else"
    replica.apply(25)
    replica.comparison.agreed(25, digest_at(25), True, 22)
    assert (replica.doubt, replica.is_condemned) == (is_wrong, is_wrong)


def test_who_began_with_a_snapshot_of_what_a_convicted_owner_never_applied_is_in_no_doubt(replica: Replica) -> None:
    replica.comparison.agreed(10, digest_at(10), True, 19)
    replica.restore(20)
    assert not replica.doubt, "it is a leader's"


def test_who_differed_and_began_anew_by_a_snapshot_of_an_owner_that_nobody_convicted_serves_again(
    replica: Replica,
) -> None:
    replica.apply(12)
    replica.comparison.announced(12, WRONG)
    replica.restore(13)
    assert not replica.doubt
    replica.comparison.agreed(3, WRONG, False)
    assert not replica.is_condemned, "what it was before it began anew is not its own any more"


@pytest.mark.parametrize("end", ["lost", "convicted"])
def test_what_an_owner_said_that_is_gone_or_convicted_counts_no_more(replica: Replica, end: str) -> None:
    replica.apply(10)
    replica.comparison.announced(12, WRONG)
    if end == "lost":
        replica.comparison.lost()
    else:
        replica.comparison.agreed(10, digest_at(10), True)
    replica.apply(12)
    assert not replica.doubt


def test_who_agrees_with_its_next_owner_serves_again(replica: Replica) -> None:
    replica.apply(12)
    replica.comparison.announced(12, WRONG)
    replica.comparison.lost()
    replica.comparison.announced(11, digest_at(11))
    assert replica.doubt
    replica.comparison.announced(12, digest_at(12))
    assert not replica.doubt


def test_a_snapshot_of_a_convicted_owner_is_doubted_unless_it_is_what_the_replica_was(replica: Replica) -> None:
    replica.apply(12)
    assert not replica.comparison.doubts(11, WRONG), "nobody knows who is right"
    replica.comparison.agreed(10, digest_at(10), True, 15)
    assert replica.comparison.doubts(11, WRONG)
    assert not replica.comparison.doubts(11, digest_at(11))
    assert not replica.comparison.doubts(9, WRONG)
    assert not replica.comparison.doubts(16, WRONG), "that is a leader's"
    replica.comparison.lost()
    replica.comparison.agreed(0, 0, False)
    assert replica.comparison.doubts(11, WRONG), "who takes over knows it, whoever was the owner in between"


def test_a_snapshot_that_is_doubted_is_replaced_at_once() -> None:
    machine = Mock(spec=Machine, applied_index=5)
    snapshots = Snapshots(Mock(), machine, Mock(may_apply=True), 1, 1000, 1000)
    stored = SnapshotHeader(5, 1, 1, b"", b"", 7)
    snapshots.note_stored(stored, lambda index, digest: False)
    assert not (snapshots.is_due or snapshots.is_doubted)
    snapshots.note_stored(stored, lambda index, digest: (index, digest) == (5, 7))
    assert snapshots.is_due
    snapshots._is_wanted, snapshots._is_saving = False, True  # as `capture` has it
    snapshots.end(10)
    assert snapshots.is_doubted, "it failed"
    snapshots.end()
    assert not snapshots.is_doubted


def test_the_last_entry_that_somebody_was_told_of_is_known() -> None:
    record = DigestRecord()
    assert record.last_answered() is None
    record.extend(1, [7, 8, 9])
    for index in (1, 2):
        record.note_answered(index, record.at(index) or 0)
    assert record.last_answered() == (2, 8)
