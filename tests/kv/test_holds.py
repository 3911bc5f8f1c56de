"""Leases and claims, as the log has them: who holds what, for how long, and who is next."""

from __future__ import annotations

import random
from typing import Any

import pytest

import raftsvc
from raftsvc import kv
from raftsvc.errors import Rejected
from raftsvc.kv import instructions, snapshots
from raftsvc.kv.instructions import Effect, encode
from raftsvc.kv.snapshots import MalformedSnapshotError
from raftsvc.kv.transactions import ENDED, NOTHING, TICKET, WAITS_ON

LEASES = [f"{number:016x}" for number in range(1, 7)]
A, B, C = LEASES[:3]


class Log:
    """A state, and the log that it applies: an entry at a time."""

    def __init__(self) -> None:
        self.state = kv.KeyValueState()
        self.index = 0
        self.time_ms = 0

    def at(self, time_ms: int, *operations: Any) -> Any:
        """One entry of one transaction, at that log time."""
        return self.entry(time_ms, [operations])[0]

    def entry(self, time_ms: int, transactions: list[Any]) -> list[Any]:
        """One entry of several; what each answered, or why it was refused."""
        self.index += 1
        self.time_ms = time_ms
        answers: list[Any] = []
        for operations in transactions:
            try:
                answers.append(self.state.apply_at(encode(list(operations)), self.index, time_ms))
            except Rejected as rejected:
                answers.append(rejected.reason)
        self.state.set_applied_index(self.index)
        return answers

    def pulse(self, time_ms: int) -> None:
        self.index += 1
        self.time_ms = time_ms
        self.state.pass_time(self.index, time_ms)
        self.state.set_applied_index(self.index)

    def holders(self, name: str = "x") -> list[tuple[str, int]]:
        return [(claim.lease, claim.fence) for claim in self.state.claims(name) if claim.fence]

    def waiters(self, name: str = "x") -> list[str]:
        return [claim.lease for claim in self.state.claims(name) if not claim.fence]


def opened(lease: str, ttl_ms: int = 10_000) -> Effect:
    return instructions.open_lease(lease, ttl_ms)


def claimed(lease: str, number: int = 1, name: str = "x", **terms: Any) -> Effect:
    return instructions.claim(name, lease, number, **terms)


def released(lease: str, number: int = 1, name: str = "x") -> Effect:
    return instructions.release(name, lease, number)


@pytest.fixture
def log() -> Log:
    made = Log()
    for lease in LEASES:
        made.at(0, opened(lease))
    return made


def test_who_comes_first_is_served_first_and_each_grant_has_a_higher_fence(log: Log) -> None:
    assert [log.at(0, claimed(lease)) for lease in (A, B, C)] == [7, 0, 0]
    assert (log.holders(), log.waiters()) == ([(A, 7)], [B, C])
    assert log.at(0, released(A)) is True
    assert (log.holders(), log.waiters()) == ([(B, 10)], [C])
    assert log.at(0, released(B)) is True
    assert log.holders() == [(C, 11)]
    assert log.at(0, released(C)) is True
    assert log.at(0, released(C)) is False
    assert log.state.claims("x") == []


def test_a_claim_that_comes_again_changes_nothing_and_answers_the_same(log: Log) -> None:
    assert [log.at(0, claimed(A)) for _ in range(3)] == [7, 7, 7]
    assert [log.at(0, claimed(B)) for _ in range(2)] == [0, 0]
    log.at(0, released(A))
    assert log.at(0, claimed(B)) == 12
    assert len(log.state.claims("x")) == 1


def test_who_does_not_wait_is_not_placed(log: Log) -> None:
    log.at(0, claimed(A))
    assert log.at(0, claimed(B, waits=False)) == 0
    assert log.waiters() == []
    log.at(0, released(A))
    assert log.at(0, claimed(B, waits=False)) == log.index


def test_units_are_never_more_than_there_are_and_who_needs_many_is_not_overtaken(log: Log) -> None:
    terms = {"size": 3}
    assert log.at(0, claimed(A, units=2, **terms)) == 7
    assert log.at(0, claimed(B, units=2, **terms)) == 0
    assert log.at(0, claimed(C, units=1, **terms)) == 0, "there is one left, and who waits comes first"
    log.at(0, released(A))
    assert log.holders() == [(B, log.index)]
    log.pulse(1)
    assert log.holders() == [(B, log.index - 1), (C, log.index)]


def test_a_name_has_one_grant_in_an_entry_and_the_next_is_due_at_once(log: Log) -> None:
    answers = log.entry(5, [[claimed(lease, size=3)] for lease in (A, B, C)])
    assert answers == [7, 0, 0]
    assert log.state.next_deadline() == 6
    log.pulse(6)
    assert log.holders() == [(A, 7), (B, 8)]
    assert log.state.next_deadline() == 7, "else nobody would wait for it again"
    log.at(6, kv.set("k", b""))  # any entry does, though no time passed
    assert log.holders() == [(A, 7), (B, 8), (C, 9)]
    assert log.state.next_deadline() == 10_001


def test_released_and_claimed_in_one_entry_has_no_fence_twice(log: Log) -> None:
    answers = log.entry(0, [[claimed(A)], [released(A)], [claimed(B)], [claimed(C, waits=False)]])
    assert answers == [7, True, 0, 0]
    log.pulse(1)
    assert log.holders() == [(B, 8)]


def test_all_leases_that_are_due_end_before_anybody_is_granted_what_they_held(log: Log) -> None:
    for lease in (A, B, C):
        log.at(0, claimed(lease))
    log.at(5_000, instructions.keep_lease(C, 0, [1]))
    assert log.holders() == [(A, 7)]
    log.pulse(10_001)
    assert (log.holders(), log.waiters()) == ([(C, log.index)], []), "B waited, and was due as well"


def test_a_lease_lives_for_its_ttl_and_ends_with_the_first_entry_after_it(log: Log) -> None:
    log.at(0, claimed(A))
    log.at(10_000, kv.set("k", b""))
    assert log.holders() == [(A, 7)]
    assert log.state.next_deadline() == 10_001
    refused = log.at(10_001, kv.if_held(held("x", 7)), kv.set("k", b"late"))
    assert refused == "condition 0 does not hold: 0"
    assert log.holders() == []
    assert log.at(10_001, claimed(A)) == f"there is no lease {A}"
    assert log.at(10_001, instructions.keep_lease(A, 0, [])) == f"there is no lease {A}"


def test_of_what_comes_in_the_entry_in_which_a_lease_is_over_nothing_keeps_it(log: Log) -> None:
    for lease in (A, B, C):
        log.at(0, claimed(lease, name=lease))
    kept = instructions.keep_lease
    assert log.entry(10_000, [[kept(A, 0, [1])], [claimed(A, 2)]]) == [True, log.index], "the last moment"
    refused = log.entry(10_001, [[kept(B, 0, [1])], [opened(B)], [kept(B, 0, [1])], [kept(A, 0, [1, 2])]])
    assert refused == [f"there is no lease {B}", True, True, True], "a new one of that name holds nothing"
    assert [log.holders(lease) for lease in (A, B, C)] == [[(A, 7)], [], []]


def test_what_ended_is_had_again_at_once_also_by_who_had_it(log: Log) -> None:
    """Who had it and died, or let go of it, keeps nobody from it by a delay."""
    log.at(0, claimed(A))
    log.at(0, claimed(B, name="y"))
    log.at(0, released(A))
    assert log.at(0, claimed(A, 2, waits=False)) == log.index
    assert log.holders() == [(A, log.index)]
    assert log.entry(10_001, [[opened(B)], [claimed(B, name="y", waits=False)]]) == [True, log.index]
    assert log.holders("y") == [(B, log.index)]


def test_ten_thousand_leases_that_are_due_at_once_end_in_one_entry_and_who_waits_is_next(log: Log) -> None:
    count = 10_000
    leases = [f"{number:016x}" for number in range(1000, 1000 + count)]
    other = "f" * 16
    log.entry(0, [[opened(other, 60_000)], *([opened(lease)] for lease in leases)])
    log.entry(0, [[claimed(lease, name=f"lock:{lease}")] for lease in leases])
    log.entry(0, [[claimed(other, number, f"lock:{lease}")] for number, lease in enumerate(leases, 1)])
    assert log.state.next_deadline() == 10_001
    log.pulse(10_000)
    assert log.holders(f"lock:{leases[-1]}") == [(leases[-1], log.index - 2)]
    log.pulse(10_001)
    assert all(log.holders(f"lock:{lease}") == [(other, log.index)] for lease in leases[::37])
    assert not any(log.waiters(f"lock:{lease}") for lease in leases[::37])
    refused = log.at(10_001, instructions.keep_lease(leases[0], 0, [1]))
    assert refused == f"there is no lease {leases[0]}"


def test_what_is_kept_lasts_and_what_is_not_named_ends(log: Log) -> None:
    log.at(0, claimed(A, 1, "x"))  # entry 7
    log.at(0, claimed(A, 2, "y"))
    log.at(0, claimed(A, 3, "z"))  # entry 9
    log.at(0, claimed(B, 1, "y"))
    assert log.at(9_000, instructions.keep_lease(A, 8, [1])) is True
    assert log.holders("x") == [(A, 7)]
    assert log.holders("y") == [(B, 11)], "it was placed up to entry 8, and not named"
    assert log.holders("z") == [(A, 9)], "it was placed after that, so it could not be named"
    log.pulse(18_900)
    assert log.holders("x") == [(A, 7)]
    log.pulse(19_001)
    assert log.holders("x") == []


def test_a_claim_that_waits_and_is_not_named_ends_too(log: Log) -> None:
    log.at(0, claimed(A))
    log.at(0, claimed(B))
    log.at(0, claimed(C))
    log.at(0, instructions.keep_lease(B, 9, []))
    assert log.waiters() == [C]


def test_the_number_of_a_claim_is_that_of_one_name(log: Log) -> None:
    log.at(0, claimed(A, 1, "x"))
    assert log.at(0, claimed(A, 1, "y")) == "claim 1 of that lease is on another name"
    assert log.state.claims("y") == []
    assert log.at(0, released(A, 1, "y")) is False
    log.at(0, released(A, 1, "x"))
    assert log.at(0, claimed(A, 1, "y")) == log.index


def test_an_ended_lease_lets_go_of_everything(log: Log) -> None:
    for name in ("x", "y"):
        log.at(0, claimed(A, 1 if name == "x" else 2, name))
        log.at(0, claimed(B, 1 if name == "x" else 2, name))
    log.at(0, claimed(C))
    assert log.at(0, instructions.end_lease(A)) is True
    assert log.holders("x") == log.holders("y") == [(B, log.index)]
    assert log.at(0, instructions.end_lease(A)) is False
    assert log.state.report()["leases"] == len(LEASES) - 1


def test_a_name_has_one_size_as_long_as_somebody_claims_it(log: Log) -> None:
    log.at(0, claimed(A, size=2))
    assert log.at(0, claimed(B, size=3)) == "what is claimed has 2 units"
    log.at(0, released(A))
    assert log.at(0, claimed(B, size=3)) == log.index


def held(name: str, fence: int) -> kv.Hold:
    hold = kv.Hold(None, name, 1)  # type: ignore[arg-type]
    hold.fence = fence
    return hold


def test_a_transaction_can_ask_whether_something_is_held(log: Log) -> None:
    log.at(0, claimed(A))
    assert log.at(0, kv.if_held(held("x", 7)), kv.set("k", b"1")) is True
    assert log.at(0, kv.if_held(held("x", 6)), kv.set("k", b"2")) == "condition 0 does not hold: 0"
    assert log.at(0, kv.if_held(held("y", 7)), kv.set("k", b"2")) == "condition 0 does not hold: 0"
    log.at(0, claimed(B))
    log.at(0, released(A))
    fence = log.holders()[0][1]
    assert log.at(0, kv.if_held(held("x", 7)), kv.set("k", b"2")) == "condition 0 does not hold: 0"
    assert log.at(0, kv.if_held(held("x", fence)), kv.set("k", b"3")) is True
    value = log.state.get("k")
    assert value is not None
    assert value.data == b"3"


def test_who_waits_holds_nothing_by_the_fence_that_it_has_not(log: Log) -> None:
    log.at(0, claimed(A))
    log.at(0, claimed(B))
    assert log.at(0, kv.if_held(held("x", 0)), kv.set("k", b"1")) == "condition 0 does not hold: 0"


def test_a_full_store_takes_no_claims_and_lets_go_of_those_it_has(log: Log) -> None:
    log.at(0, claimed(A))
    log.at(0, kv.max_state_bytes(int(str(log.state.report()["size_bytes"])) + 100))
    before = log.state.report()
    assert "the state would have" in log.at(0, claimed(B))
    assert log.state.report() == before
    assert log.at(0, claimed(A)) == 7, "what is there already takes no room"
    assert log.at(0, released(A)) is True
    assert log.at(0, claimed(B)) == log.index


def test_what_all_of_it_takes_is_counted_and_given_back(log: Log) -> None:
    empty = log.state.report()
    for number, lease in enumerate(LEASES):
        log.at(0, claimed(lease, 1, f"n{number % 2}", data=b"who"))
        log.at(0, claimed(lease, 2, f"m{number}", data=b"who"))
    assert log.state.report()["claims"] == 2 * len(LEASES)
    for lease in LEASES[:3]:
        log.at(5_000, instructions.keep_lease(lease, log.index, []))
    log.pulse(10_001)
    assert log.state.report()["size_bytes"] == 3 * (int(str(empty["size_bytes"])) // len(LEASES))


@pytest.mark.parametrize(
    ("operations", "why"),
    [
        ([opened(A), opened(B)], "comes with no other effect"),
        ([kv.set("k", b""), claimed(A)], "comes with no other effect"),
        ([opened("0" * 15)], "no such lease"),
        ([opened("G" * 16)], "no such lease"),
        ([opened(A, 0)], "a ttl is from"),
        ([claimed("G" * 16)], "no such lease"),
        ([claimed(A, units=2)], "a claim of 2 of 1"),
        ([claimed(A, units=0)], "a claim of 0 of 1"),
        ([claimed(A, size=2**31)], "a claim of 1 of 2147483648"),
        ([claimed(A, data=bytes(1025))], "says too much"),
        ([Effect(instructions.Code.CLAIM, "x", b"short")], "cut short"),
        ([Effect(instructions.Code.RELEASE, "x", bytes(23))], "another length"),
        ([Effect(instructions.Code.WITHDRAW, "x", bytes(24))], "another length"),
        ([Effect(instructions.Code.PROLONG, "x", bytes(24))], "no such lease"),
        ([Effect(instructions.Code.EVICT, "x", bytes(7))], "another length"),
        ([Effect(instructions.Code.KEEP, A, bytes(15))], "cut short"),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(log: Log, operations: list[Any], why: str) -> None:
    before = b"".join(log.state.snapshot_chunks()[0])
    assert why in log.at(0, *operations)
    assert b"".join(log.state.snapshot_chunks()[0]) == before


def random_entry(rng: random.Random, time_ms: int, index: int) -> list[list[Any]]:
    made: list[list[Any]] = []
    for _ in range(rng.choice((1, 1, 1, 3))):
        lease = rng.choice(LEASES)
        name = rng.choice(("x", "y", "z"))
        size = {"x": 1, "y": 3, "z": 2**31 - 1}[name]
        number = rng.randrange(1, 5)
        kind = rng.random()
        if kind < 0.45:
            units = rng.choice((1, size)) if name == "z" else rng.randrange(1, size + 1)
            waits, attempt = rng.random() < 0.8, rng.randrange(3)
            made.append([claimed(lease, number, name, size=size, units=units, waits=waits, attempt=attempt)])
        elif kind < 0.65:
            made.append([released(lease, number, name)])
        elif kind < 0.7:
            withdraws = instructions.withdraw(name, lease, number, rng.randrange(3))
            made.append([rng.choice((withdraws, instructions.prolong(name, lease, number)))])
        elif kind < 0.8:
            made.append([instructions.keep_lease(lease, max(index - rng.randrange(10), 0), rng.sample(range(1, 5), 3))])
        elif kind < 0.85:
            made.append([instructions.end_lease(lease)])
        elif kind < 0.95:
            made.append([opened(lease, rng.choice((50, 200, 1_000)))])
        else:
            made.append([kv.set("k", b"1", ttl=0.05)])
    return made


def check(log: Log, fences: dict[str, int]) -> None:
    """What must hold after every entry, as a user sees it."""
    for name, size in (("x", 1), ("y", 3), ("z", 2**31 - 1)):
        claims = list(log.state.claims(name))
        held = [claim for claim in claims if claim.fence]
        assert sum(claim.units for claim in held) <= size
        assert [claim.fence for claim in claims[: len(held)]] == [claim.fence for claim in held], (
            "who holds comes first"
        )
        new = sorted(claim.fence for claim in held if claim.fence > fences.get(name, 0))
        assert new in ([], [log.index]), "one grant in an entry, and a fence that rises"
        fences[name] = max([fences.get(name, 0), *new])
        placed = [claim.placed for claim in claims[len(held) :]]
        assert placed == sorted(placed)
        if placed:
            first = claims[len(held)]
            is_free = sum(claim.units for claim in held) + first.units <= size
            assert not is_free or (log.state.next_deadline() or 0) <= log.time_ms + 1, (
                "and nobody would come back to it"
            )


@pytest.mark.parametrize("seed", range(12))
def test_a_replica_restored_anywhere_has_the_same_future_to_the_byte(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "_CHUNK_BYTES", 64)
    rng = random.Random(seed)
    log, twin = Log(), Log()
    fences: dict[str, int] = {}
    time_ms = 0
    for step in range(300):
        time_ms += rng.choice((0, 0, 1, 10, 60, 300))
        if rng.random() < 0.1:
            log.pulse(time_ms)
            twin.pulse(time_ms)
        else:
            transactions = random_entry(rng, time_ms, log.index)
            assert log.entry(time_ms, transactions) == twin.entry(time_ms, transactions)
        check(log, fences)
        if step % 20 == 19:
            whole, index = log.state.snapshot()
            assert twin.state.snapshot() == (whole, index)
            twin = Log()
            twin.index = index
            twin.state.restore_snapshot(whole, index)
    assert fences


def test_a_snapshot_of_claims_that_make_no_sense_is_refused(log: Log) -> None:
    log.at(0, claimed(A, size=2, data=b"who"))
    log.at(0, claimed(B, size=2, units=2))
    whole, index = log.state.snapshot()
    claim = whole.index(A.encode(), whole.rindex(b"x"))
    rng = random.Random(1)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2))):
            damaged[rng.randrange(len(whole) - 200 if rng.random() < 0.3 else claim - 40, len(whole))] ^= (
                1 << rng.randrange(8)
            )
        other = kv.KeyValueState()
        try:
            other.restore_snapshot(bytes(damaged), index)
        except MalformedSnapshotError:
            refused += 1
            continue
        claims = list(other.claims("x"))
        assert sum(claim.units for claim in claims if claim.fence) <= 2
        other.pass_time(index + 1, 2**53 - 1)
        assert other.claims("x") == []
    assert refused > 50
    for length in range(0, len(whole), 7):
        with pytest.raises(MalformedSnapshotError):
            kv.KeyValueState().restore_snapshot(whole[:length], index)


def test_parts_of_several_states_have_the_same_future_wherever_they_were_restored() -> None:
    def put(name: str, *operations: Any) -> bytes:
        return bytes([len(name)]) + name.encode() + encode(list(operations))

    def made() -> raftsvc.States:
        return raftsvc.States(a=kv.KeyValueState(), b=kv.KeyValueState())

    live, index = made(), 0
    steps = [opened(A), opened(B), opened(C), claimed(A, size=2, units=2), claimed(B, size=2), claimed(C, size=2)]
    for operation in [*steps, released(A)]:
        index += 1
        live.apply_at(put("a", operation), index, 500)
        live.set_applied_index(index)
    restored = made()
    restored.restore_snapshot(*live.snapshot())
    for states in (live, restored):
        states.apply_at(put("b", kv.set("k", b"")), index + 1, 500)
        states.set_applied_index(index + 1)
    assert live.snapshot() == restored.snapshot()
    assert [claim.fence for claim in live["a"].claims("x")] == [index, index + 1]


def test_a_new_lease_takes_room_too(log: Log) -> None:
    log.at(0, kv.max_state_bytes(int(str(log.state.report()["size_bytes"])) + 100))
    others = [f"{number:016x}" for number in range(100, 1_000)]
    assert "the state would have" in [log.at(0, opened(lease)) for lease in others][-1]
    assert log.at(0, opened(A)) is True


def test_what_operators_are_shown_of_holders_is_little_whatever_these_say_of_themselves(log: Log) -> None:
    for number in range(1, 21):
        log.at(1, claimed(A, number, size=20, data=b"\xff" * 1024))
    log.at(1, claimed(B, 1, "y", data="\u00e9".encode() * 80))
    many, one = log.state.overview(10)["locks"]  # type: ignore[misc]
    assert (many["held"], many["holders"]) == (20, ["\ufffd" * 100] * 5)
    assert one["holders"] == ["\u00e9" * 80]


def withdrawn(lease: str, attempt: int = 0, number: int = 1, name: str = "x") -> Effect:
    return instructions.withdraw(name, lease, number, attempt)


def test_who_gives_up_ends_only_what_still_waits_and_is_his(log: Log) -> None:
    log.at(0, claimed(A))
    for attempt in (7, 8):  # which is sent again
        assert log.at(0, claimed(B, attempt=attempt)) == 0
    assert log.at(0, withdrawn(B, 7)) == WAITS_ON and log.waiters() == [B]
    log.at(0, claimed(C, attempt=9))
    assert log.at(0, withdrawn(C, 9)) == ENDED and log.waiters() == [B]
    assert log.at(0, withdrawn(C, 9)) == NOTHING
    assert log.at(0, instructions.keep_lease(C, 0, [])) == f"there is no lease {C}"
    log.at(0, released(A))
    fence = log.index
    assert log.at(0, withdrawn(B, 8)) == fence and log.holders() == [(B, fence)]
    assert log.at(0, withdrawn(B)) == ENDED and log.holders() == []


def test_a_place_that_is_to_be_kept_is_kept_whoever_asks_again(log: Log) -> None:
    log.at(0, claimed(A))
    log.at(0, claimed(B, attempt=7))
    log.at(0, claimed(B))
    log.at(0, claimed(B, attempt=8, waits=False))
    assert [log.at(0, withdrawn(B, attempt)) for attempt in (7, 8)] == [WAITS_ON, WAITS_ON]
    assert log.waiters() == [B]


def test_a_lease_that_has_other_claims_outlives_one_that_is_withdrawn(log: Log) -> None:
    log.at(0, claimed(A, 1))
    log.at(0, claimed(A, 2, "y"))
    log.at(0, claimed(B, 1))
    assert log.at(0, withdrawn(A, name="z")) == NOTHING
    assert log.at(0, withdrawn(A)) == ENDED
    assert log.holders() == [(B, log.index)] and log.holders("y")


def test_a_lease_is_prolonged_by_who_has_that_claim_under_it(log: Log) -> None:
    fence = log.at(0, claimed(A))
    log.at(0, claimed(B))
    assert log.at(9_000, instructions.prolong("x", A, 1)) == fence
    assert log.at(9_000, instructions.prolong("x", B, 1)) == 0
    for name, number in (("y", 1), ("x", 2)):
        assert log.at(9_500, instructions.prolong(name, A, number)) == f"there is no lease {A}"
    log.pulse(18_900)
    assert log.holders() == [(A, fence)]
    log.pulse(19_100)
    assert log.holders() == [] and log.waiters() == []


def test_only_what_is_held_by_a_ticket_is_ended_by_its_fence(log: Log) -> None:
    fence = log.at(0, claimed(A))
    assert log.at(0, instructions.evict("x", fence)) is False, "a process has it, and would not know"
    by_ticket = log.at(0, claimed(B, TICKET, "y"))
    log.at(0, claimed(C, TICKET, "y"))
    assert log.at(0, instructions.evict("y", by_ticket - 1)) is False
    assert log.at(0, instructions.evict("y", by_ticket)) is True
    assert log.holders("y") == [(C, log.index)]


def test_whose_attempt_it_is_survives_a_snapshot(log: Log) -> None:
    log.at(0, claimed(A))
    log.at(0, claimed(B, attempt=2**64 - 1))
    log.state.restore_snapshot(*log.state.snapshot())
    assert log.at(0, withdrawn(B, 1)) == WAITS_ON
    assert log.at(0, withdrawn(B, 2**64 - 1)) == ENDED
