"""Log time: what a follower refuses, what a leader cannot be told, and a State that hangs."""

from __future__ import annotations

from random import Random

import pytest

from raftsvc.core.log import Log, SnapshotMeta, ViolationError, last_time_ms
from raftsvc.core.membership import Configuration, Member
from raftsvc.core.messages import MAX_TIME_MS, Entry, EntryKind, Message, MessageKind, make_entry, time_of
from raftsvc.core.raft import Raft, Settings
from tests.core.scene import Scene

HOUR_MS = 3_600_000
CONFIG = Configuration({i: Member(f"n{i}", True) for i in (1, 2, 3)}, 3)
ALONE = Configuration({1: Member("n1", True)}, 1)


def entry(index: int, time_ms: int, term: int = 1) -> Entry:
    return make_entry(index, term, EntryKind.NORMAL, b"", time_ms)


def raft(config: Configuration = CONFIG, snapshot_ms: int = 0, **options: int) -> Raft:
    index = 9 if snapshot_ms else 0
    return Raft(Settings(1, Random(1), **options), None, SnapshotMeta(index, min(index, 1), config, snapshot_ms))


def lead(core: Raft) -> Raft:
    core.campaign()
    settle(core)
    assert core.leader is not None
    return core


def settle(core: Raft) -> None:
    while (ready := core.ready()) is not None:
        if ready.must_persist:
            core.persisted(ready.token)


@pytest.mark.parametrize("times_ms", [(400,), (400, 401)])
def test_a_follower_takes_no_entries_in_which_log_time_goes_back(times_ms: tuple[int, ...]) -> None:
    follower = raft()
    first = [entry(n, time_ms) for n, time_ms in enumerate(times_ms, 1)]
    follower.step(Message(MessageKind.APPEND, 1, 2, 1, entries=first))
    index, last_ms = follower.log.last_index, last_time_ms(follower.log)
    with pytest.raises(ViolationError, match="log time goes back"):
        follower.step(Message(MessageKind.APPEND, 1, 2, 1, index, 1, entries=[entry(index + 1, last_ms - 1)]))
    assert follower.log.last_index == index
    follower.step(Message(MessageKind.APPEND, 1, 2, 1, index, 1, entries=[entry(index + 1, last_ms)]))
    assert follower.log.last_index == index + 1


def test_entries_that_take_the_place_of_others_follow_what_stays() -> None:
    log = Log(SnapshotMeta(), [entry(1, 100), entry(2, 900)], 1)
    log.merge([entry(2, 150, term=2)])
    assert last_time_ms(log) == 150
    with pytest.raises(ViolationError, match="log time goes back"):
        log.merge([entry(2, 99, term=3)])


def test_what_follows_a_snapshot_is_no_earlier() -> None:
    follower = raft(snapshot_ms=700)
    with pytest.raises(ViolationError, match="log time goes back"):
        follower.step(Message(MessageKind.APPEND, 1, 2, 1, 9, 1, entries=[entry(10, 699)]))
    with pytest.raises(ViolationError, match="log time goes back"):
        follower.step(Message(MessageKind.SNAPSHOT, 1, 2, 1, 20, 1, hint=699, payload=CONFIG.encode()))
    follower.step(Message(MessageKind.SNAPSHOT, 1, 2, 1, 20, 1, hint=701, payload=CONFIG.encode()))
    assert last_time_ms(follower.log) == follower.log.snapshot.time_ms == 701


def test_log_time_stops_where_it_can_be_no_later() -> None:
    leader = lead(raft(ALONE, snapshot_ms=MAX_TIME_MS - 10))
    leader.advance(1000)
    leader.propose([(EntryKind.NORMAL, b"")])
    assert last_time_ms(leader.log) == MAX_TIME_MS


def test_every_entry_of_a_batch_has_the_time_of_the_batch() -> None:
    leader = lead(raft(ALONE))
    leader.advance(40)
    leader.propose([(EntryKind.NORMAL, b"a"), (EntryKind.NORMAL, b"b")])
    leader.advance(2)
    leader.propose([(EntryKind.NORMAL, b"c")])
    assert [time_of(e) for e in leader.log.newest_first()] == [42, 40, 40, 0]


@pytest.mark.parametrize("entry_index", [0, 1])
def test_what_is_forwarded_has_no_time_of_its_own(entry_index: int) -> None:
    leader = lead(raft(Configuration({1: Member("n1", True), 2: Member("n2", False)}, 2)))
    frames = [make_entry(0, 0, EntryKind.NORMAL, b""), make_entry(0, 0, EntryKind.NORMAL, b"")]
    frames[entry_index] = make_entry(0, 0, EntryKind.NORMAL, b"", 5)
    last = leader.log.last_index
    leader.step(Message(MessageKind.PROPOSE, 1, 2, log_term=leader.term, entries=frames))
    assert leader.log.last_index == last


def test_a_state_that_hangs_does_not_have_the_log_grow() -> None:
    leader = lead(raft(ALONE))
    leader.await_deadline(300, leader.log.last_index)
    for _ in range(100):
        leader.advance(100)
        leader.tick()
        settle(leader)
    assert leader.log.last_index == 2
    leader.await_deadline(20_000, 2)
    leader.advance(1000)
    leader.tick()
    assert (leader.log.last_index, last_time_ms(leader.log)) == (3, 11_000)


def test_a_deadline_that_an_entry_has_reached_is_not_pulsed_for_until_that_is_applied() -> None:
    leader = lead(raft(ALONE))
    leader.await_deadline(100, 1)
    leader.advance(150)
    leader.propose([(EntryKind.NORMAL, b"")])
    leader.tick()
    assert leader.log.last_index == 2
    leader.await_deadline(100, 2)  # and the State did not care: its caller finds out what that means
    leader.tick()
    assert leader.log.last_index == 3


def test_a_deadline_a_day_away_comes_though_the_leader_crashes_every_hour() -> None:
    scene, hours = Scene(), 0
    scene.run("cluster n=3 election_ticks=10 tick_ms=60000")  # a tick a minute
    scene.run(f"await {24 * HOUR_MS}")

    def times() -> list[int]:
        return [last_time_ms(node.raft.log) for node in scene.nodes.values() if node.raft is not None]

    while min(times()) < 24 * HOUR_MS:
        leader = f"n{hours % 3 + 1}"
        scene.run(f"elect {leader}")
        for _ in range(60):
            scene.run(f"pass {leader} 60000")
            scene.run(f"tick {leader}")
            scene.run("deliver quietly")
        scene.run(f"pass {leader} 60000")
        scene.run(f"crash {leader}")  # what it counted last nobody hears of
        scene.run(f"elect n{(hours + 1) % 3 + 1}")
        scene.run(f"restart {leader}")
        hours += 1
        assert hours < 30
    assert hours == 24, "of each the minute is lost that it counted after the last entry, and no more"


def test_nobody_else_lets_time_pass() -> None:
    follower = raft()
    follower.await_deadline(1, 0)
    for _ in range(5):
        follower.advance(1000)
    follower.step(Message(MessageKind.APPEND, 1, 2, 1, entries=[entry(1, 7)]))
    follower.tick()
    assert (follower.log.last_index, last_time_ms(follower.log)) == (1, 7)
