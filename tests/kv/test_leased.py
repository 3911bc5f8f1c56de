"""Keys that live and die with a lease, as the log has them."""

from __future__ import annotations

import random
from typing import Any

import pytest

from raftsvc import kv
from raftsvc.errors import ConfigurationError
from raftsvc.kv import instructions, snapshots
from raftsvc.kv.history import Cursor, Signal
from raftsvc.kv.instructions import Code, Effect
from raftsvc.kv.snapshots import MalformedSnapshotError
from tests.kv.test_holds import LEASES, A, B, Log, claimed, log, opened

__all__ = ["log"]


class Leased:
    def __init__(self, lease: str) -> None:
        self.id = lease


def leased(key: str, lease: str, value: bytes = b"v") -> Effect:
    return kv.set(key, value, lease=Leased(lease))


def keys(log: Log) -> list[str]:
    return list(log.state.list())


def events(log: Log, after: int) -> list[tuple[str, str, int]]:
    happened, _ = log.state.advance(Cursor("", Signal()), after)
    return [(event.kind, event.key, event.index) for _, several in happened for event in several]


def test_the_keys_of_a_lease_are_gone_with_the_first_entry_after_it_each_with_an_event(log: Log) -> None:
    for key in ("b", "a", "c"):
        log.at(0, leased(key, A))
    log.at(0, kv.set("d", b""))
    before = log.index
    log.at(10_000, kv.set("e", b""))
    assert keys(log) == ["a", "b", "c", "d", "e"]
    assert log.at(10_001, kv.if_not_exists("a"), kv.set("f", b"")) is True, "before what comes after it is judged"
    assert keys(log) == ["d", "e", "f"]
    last = log.index
    expired = [("expire", key, last) for key in "abc"]
    assert events(log, before) == [("set", "e", last - 1), *expired, ("set", "f", last)]


def test_a_lease_that_is_kept_keeps_its_keys_and_one_that_is_revoked_does_not(log: Log) -> None:
    log.at(0, leased("a", A), leased("b", B))
    log.at(9_000, instructions.keep_lease(A, 0, []))
    log.pulse(10_001)
    assert keys(log) == ["a"]
    before = log.index
    assert log.at(10_001, instructions.end_lease(A)) is True
    assert keys(log) == []
    assert events(log, before) == [("delete", "a", log.index)]
    assert log.at(10_001, instructions.end_lease(A)) is False


class CountingLock:
    """Notes how many keys there are whenever it is let go of."""

    def __init__(self, state: Any) -> None:
        self.state = state
        self.counts: list[int] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.counts.append(len(self.state._applying.content.keys))


@pytest.mark.pure  # compiled, it takes no other lock
@pytest.mark.parametrize("is_revoked", [True, False])
def test_readers_get_their_turn_while_the_keys_of_a_lease_go(log: Log, is_revoked: bool) -> None:
    for start in range(0, 2_000, 500):
        log.at(0, *(leased(f"{number:05}", A) for number in range(start, start + 500)))
    log.at(0, claimed(A))
    log.at(0, claimed(B))
    state: Any = log.state
    lock = state._applying.lock = CountingLock(state)
    if is_revoked:
        assert log.at(0, instructions.end_lease(A)) is True
    else:
        log.at(9_000, instructions.keep_lease(B, 0, [1]))
        log.pulse(10_001)
    assert lock.counts[-1] == 0
    steps = [before - after for before, after in zip([2_000, *lock.counts], lock.counts, strict=False)]
    assert max(steps) <= 256
    assert log.holders() == [(B, log.index)], "and once they are gone others have what it held"


def test_nothing_is_written_with_a_lease_that_is_over(log: Log) -> None:
    log.at(0, instructions.end_lease(A))
    before = log.state.snapshot()[0]
    assert log.at(0, kv.set("b", b""), leased("a", A)) == f"there is no lease {A}"
    assert log.state.snapshot()[0] == before


def test_whoever_sets_or_deletes_a_key_takes_it_from_its_lease(log: Log) -> None:
    for key in "abcdefg":
        log.at(0, leased(key, A))
    log.at(0, kv.set("a", b"alone"))
    log.at(0, kv.set("b", b"in a transaction"), kv.set("x", b""))
    log.at(0, kv.set("c", b"", ttl=60.0))
    log.at(0, kv.delete("d"))
    log.at(0, kv.set("d", b""))
    log.at(9_000, instructions.keep_lease(B, 0, []))
    log.at(9_000, leased("e", B))
    log.at(9_000, kv.touch("f", 60.0))
    log.at(9_000, kv.set("n", b"1"))
    log.pulse(10_001)
    assert keys(log) == ["a", "b", "c", "d", "e", "n", "x"], "what is touched stays with its lease"
    log.pulse(20_000)
    assert "e" not in keys(log)
    log.pulse(70_000)
    assert keys(log) == ["a", "b", "d", "n", "x"]


def test_what_is_counted_stays_with_its_lease(log: Log) -> None:
    log.at(0, leased("n", A, b"1"), kv.incr("n"))
    assert log.at(0, kv.incr("n")) == 3
    log.pulse(10_001)
    assert keys(log) == []


def test_a_key_whose_own_time_is_over_first_is_gone_first(log: Log) -> None:
    log.at(0, leased("a", A))
    log.at(0, kv.touch("a", 1.0))
    log.at(5_000, kv.set("k", b""))
    assert keys(log) == ["k"]
    log.at(5_000, kv.set("a", b"again"))
    log.pulse(10_001)
    assert keys(log) == ["a", "k"]


def test_its_keys_are_gone_before_others_have_what_it_held(log: Log) -> None:
    log.at(0, leased("a", A))
    log.at(0, claimed(A))
    log.at(9_000, instructions.keep_lease(B, 0, []))
    log.at(9_000, claimed(B))
    seen: list[int] = []
    kind: Any = type(log.state._applying.content.holds)
    grant_some = kind.grant_some

    def watched(self: Any) -> bool:
        seen.append(len(log.state._applying.content.keys))
        return bool(grant_some(self))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "grant_some", watched)
        log.pulse(10_001)
    assert seen[0] == 0
    assert log.holders() == [(B, log.index)]


def test_very_many_keys_of_one_lease_are_gone_with_it_and_readers_get_their_turn(log: Log) -> None:
    for start in range(0, 3000, 1000):
        log.at(0, *[leased(f"key/{n:05d}", A) for n in range(start, start + 1000)])
    seen: list[int] = []
    content = log.state._applying.content
    follow = type(content).follow

    def watched(self: Any, kind: int) -> bool:
        is_more = follow(self, kind)
        seen.append(len(self.keys))
        return is_more

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(content), "follow", watched)
        log.pulse(10_001)
    assert len(seen) > 10
    assert seen[-1] == 0


def test_what_has_a_lease_counts_and_is_given_back(log: Log) -> None:
    empty = int(str(log.state.report()["size_bytes"]))
    log.at(0, kv.set("a", b"v"))
    plain = int(str(log.state.report()["size_bytes"]))
    log.at(0, leased("a", A))
    with_lease = int(str(log.state.report()["size_bytes"]))
    assert with_lease > plain
    log.at(0, kv.max_state_bytes(with_lease))
    assert "the state would have" in log.at(0, leased("b", A))
    assert log.at(0, leased("a", B)) is True, "which is no larger"
    assert log.at(0, kv.set("a", b"v")) is True
    assert log.state.report()["size_bytes"] == plain
    assert "the state would have" in log.at(0, leased("a", A, b"vv"))
    assert log.at(0, leased("a", A)) is True
    log.pulse(10_001)
    assert int(str(log.state.report()["size_bytes"])) < empty, "all leases are over"


@pytest.mark.parametrize("seed", range(8))
def test_replicas_agree_to_the_byte_wherever_one_was_restored(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "_CHUNK_BYTES", 64)
    rng = random.Random(seed)
    log, twin = Log(), Log()
    time_ms = 0
    for step in range(300):
        time_ms += rng.choice((0, 0, 1, 10, 60))
        key, lease = rng.choice("abcdefgh"), rng.choice(LEASES)
        operation = rng.choice(
            [
                leased(key, lease),
                leased(key, lease),
                kv.set(key, b"1"),
                kv.set(key, b"1", ttl=0.05),
                kv.delete(key),
                kv.touch(key, 0.05),
                opened(lease, rng.choice((50, 200))),
                opened(lease, rng.choice((50, 200))),
                instructions.keep_lease(lease, 0, []),
                instructions.end_lease(lease),
            ]
        )
        assert log.at(time_ms, operation) == twin.at(time_ms, operation)
        open_leases = {lease for lease, _, _ in log.state._applying.content.holds.freeze().leases}
        for page in log.state._applying.content.leased.freeze():
            assert all(log.state.get(key) for key in page[0]), "every key that has a lease exists"
            assert {data.decode() for data in page[1]} <= open_leases
        if step % 20 == 19:
            whole, index = log.state.snapshot()
            assert twin.state.snapshot() == (whole, index)
            twin = Log()
            twin.index = index
            twin.state.restore_snapshot(whole, index)


def test_a_snapshot_of_keys_under_no_lease_is_refused(log: Log) -> None:
    log.at(0, leased("a", A))
    whole, index = log.state.snapshot()
    place = whole.rindex(A.encode())
    for other in (b"f" * 16, b"\xff" * 16):
        with pytest.raises(MalformedSnapshotError):
            kv.KeyValueState().restore_snapshot(whole[:place] + other + whole[place + 16 :], index)
    with pytest.raises(MalformedSnapshotError):
        kv.KeyValueState().restore_snapshot(whole.replace(b"a" + A.encode(), b"b" + A.encode()), index)


@pytest.mark.parametrize("lease", [7, "text", object(), Leased("short"), Leased("G" * 16), Leased(7)])  # type: ignore[arg-type]
def test_a_key_lives_with_a_lease_and_with_nothing_else(lease: Any) -> None:
    with pytest.raises(TypeError, match="lives and dies with"):
        kv.set("a", b"", lease=lease)


def test_a_key_has_a_lease_or_a_ttl() -> None:
    with pytest.raises(ConfigurationError, match="not both"):
        kv.set("a", b"", ttl=1.0, lease=Leased(A))


def test_what_makes_no_sense_is_refused(log: Log) -> None:
    for data in (b"", b"0" * 15, b"G" * 16):
        assert "no such lease" in log.at(0, Effect(Code.SET_LEASED, "a", data))
