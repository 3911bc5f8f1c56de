"""Any sequence of writes, faults, kills and power losses leaves the log with what was synced, and nothing made up."""

from __future__ import annotations

import copy
import errno
from collections.abc import Callable
from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from raftsvc.core.messages import HardState, index_of, term_of
from raftsvc.errors import DiskRefusedError, StorageError
from raftsvc.storage.segments import Ahead, Recovered, read_ahead
from raftsvc.storage.wal import Wal
from tests.effort import EFFORT
from tests.storage.faults import Disk, PowerLoss, losses
from tests.storage.logs import DIR, Contents, Model, batch, entry, new_disk, new_log

SEGMENT_BYTES = 1400

datas = st.one_of(st.none(), st.integers(0, 1500).map(bytes), st.binary(max_size=700))
KILL = len(losses(0))
"""The way to go that leaves the page cache: the process dies and the machine does not."""
ways = st.integers(0, KILL)
seeds = st.integers(0, 2**32)


def go_down(disk: Disk, way: int, seed: int) -> None:
    if way == KILL:
        disk.kill_process()
    else:
        disk.lose_power(losses(seed)[way][1])


def outcome(wal: Wal) -> tuple[Any, ...]:
    """What it goes on with, but for the descriptor."""
    tail, extent = wal._tail, wal._extent
    return (
        wal._standing,
        wal._segments,
        (tail.size, tail.salt, tail.offset, tail.durable, tail.chain),
        (extent.base, extent.last, extent._firsts, extent._terms),
        wal._durable_mark_index,
    )


class Life(RuleBasedStateMachine):
    """A log, the model of what it may hold, and everything that can befall its disk."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = new_disk()
        self.wal = new_log(self.disk, segment_bytes=SEGMENT_BYTES)
        self.model = Model()
        self.term = 1
        self.is_failed = False
        self.loss: tuple[int, int] = (0, 0)
        self.ahead: Ahead | None = None

    # -- what a node does

    @property
    def marked(self) -> int:
        return self.model.last.mark.index

    def attempt(self, action: Callable[[], Any]) -> bool:
        """Whether `action` succeeded; the power may go meanwhile, and only an injected fault may fail it."""
        is_armed = bool(self.disk._failures) or self.disk.free_bytes is not None
        try:
            action()
        except DiskRefusedError:
            assert is_armed, "nothing but the disk refuses a write"
            self.disk.free_bytes = None
            return self.attempt(action)
        except StorageError:
            assert is_armed or self.is_failed, "nothing but the disk fails a write"
            return False
        except PowerLoss:
            self.go_down(*self.loss)
            return False
        assert not self.is_failed, "a log that failed writes no more"
        return True

    def write(self, state: HardState | None, first: int, count: int, data: bytes | None) -> None:
        if self.term > self.model.last.hard_state.term and state is None:
            state = HardState(self.term, 0, 0)
        entries = batch(first, count, self.term, data)
        before = len(self.model.states) - 1
        if not self.is_failed:
            self.model.append(state, entries)
        self.attempt_write(lambda wal: wal.append(state, entries), before + (state is not None))

    def attempt_write(self, action: Callable[[Wal], Any], durable_if_rotated: int) -> None:
        """A new segment begins with hard state and mark, durable as everything before them."""
        wal = self.wal
        segments = self.disk.count("rename", ".wal")
        if self.attempt(lambda: action(wal)):
            if self.disk.count("rename", ".wal") > segments:
                self.model.durable = durable_if_rotated
        elif wal is self.wal:
            self.is_failed = True

    @rule(count=st.integers(1, 4), data=datas, has_state=st.booleans())
    def append(self, count: int, data: bytes | None, has_state: bool) -> None:
        state = HardState(self.term, count, self.marked) if has_state else None
        self.write(state, self.model.last_index + 1, count, data)

    @precondition(lambda self: self.model.last_index > self.marked)
    @rule(where=st.floats(0, 1), count=st.integers(1, 3), data=datas)
    def overwrite(self, where: float, count: int, data: bytes | None) -> None:
        first = self.marked + 1 + int(where * (self.model.last_index - self.marked - 1))
        self.term += 1
        self.write(None, first, count, data)

    @rule(vote=st.integers(0, 3))
    def vote(self, vote: int) -> None:
        self.term += 1
        state = HardState(self.term, vote, self.marked)
        if not self.is_failed:
            self.model.append(state, [])
        self.attempt_write(lambda wal: wal.append(state, []), len(self.model.states) - 1)

    @rule()
    def sync(self) -> None:
        wal = self.wal
        if self.attempt(wal.sync):
            self.model.durable = len(self.model.states) - 1
        elif wal is self.wal:
            self.is_failed = True

    def mark(self, index: int, term: int) -> None:
        if not self.is_failed:
            self.model.mark(index, term)
        self.attempt_write(lambda wal: wal.mark_snapshot(index, term), len(self.model.states) - 1)

    @precondition(lambda self: self.model.last.entries)
    @rule(where=st.floats(0, 1))
    def mark_what_is_held(self, where: float) -> None:
        held = self.model.last.entries
        chosen = held[int(where * (len(held) - 1))]
        if index_of(chosen) > self.marked:
            self.mark(index_of(chosen), term_of(chosen))

    @rule(ahead=st.integers(-3, 5))
    def mark_what_a_leader_sent(self, ahead: int) -> None:
        index = self.model.last_index + ahead
        if index > self.marked:
            self.term += 1
            self.mark(index, self.term)

    @rule(behind=st.integers(0, 4))
    def release(self, behind: int) -> None:
        index = max(0, self.marked - behind)
        durably_marked = self.model.states[self.model.durable].mark.index
        self.model.released = max(self.model.released, min(index, durably_marked))
        wal = self.wal
        is_armed = bool(self.disk._failures)
        try:
            wal.release_before(index)
        except StorageError:
            assert is_armed
        except PowerLoss:
            self.go_down(*self.loss)

    @rule(pieces=st.integers(1, 4))
    def prepare(self, pieces: int) -> None:
        """A piece of the next segment, or all; a disk that fails it fails nothing else."""
        try:
            for _ in range(pieces):
                self.wal.prepare()
        except PowerLoss:
            self.go_down(*self.loss)

    @rule()
    def read_ahead(self) -> None:
        """As a process does that may own it later; it is of use, or of none, whatever comes in between."""
        if not self.disk.is_dead:
            self.ahead = read_ahead(self.disk, DIR, lambda: False)

    # -- what befalls it

    @rule()
    def restart(self) -> None:
        self.disk.crash_at = 0
        self.wal.close()
        self.disk.kill_process()
        self.open()

    @rule(way=ways, seed=seeds)
    def go_down(self, way: int, seed: int) -> None:
        go_down(self.disk, way, seed)
        self.open()

    @rule(way=ways, seed=seeds, again=st.integers(1, 8))
    def go_down_twice(self, way: int, seed: int, again: int) -> None:
        """The power goes, and goes again while the log is being opened."""
        go_down(self.disk, way, seed)
        self.disk.crash_at = again
        self.open()

    @rule(operations=st.integers(1, 12), way=ways, seed=seeds)
    def go_down_soon(self, operations: int, way: int, seed: int) -> None:
        self.disk.crash_at = len(self.disk.operations) + operations
        self.loss = (way, seed)

    @rule(
        operation=st.sampled_from(["write", "sync", "create", "rename", "sync_dir", "remove"]),
        code=st.sampled_from([errno.EIO, errno.EMFILE, errno.ENOSPC]),
    )
    def fail(self, operation: str, code: int) -> None:
        self.disk.fail_next(operation, "", code)

    @rule(free_bytes=st.one_of(st.none(), st.integers(0, 2 * SEGMENT_BYTES)))
    def fill_up(self, free_bytes: int | None) -> None:
        self.disk.free_bytes = free_bytes

    @rule(seed=seeds)
    def look_at_every_outcome(self, seed: int) -> None:
        """What would be there if the power went now."""
        if not self.disk.is_dead:
            for _, keep in losses(seed):
                disk = copy.deepcopy(self.disk)
                disk._failures.clear()
                disk.free_bytes = None
                disk.lose_power(keep)
                assert self.model.allows(Wal.open(disk, DIR, SEGMENT_BYTES)[1])

    # -- and how it goes on

    def open(self) -> None:
        """Open the log until that succeeds; what it holds is then what the model goes on with."""
        while True:
            is_armed = bool(self.disk._failures) or self.disk.free_bytes is not None
            twin = copy.deepcopy(self.disk)
            twin.crash_at, twin.free_bytes = 0, None
            twin._failures.clear()
            try:
                self.wal, found = Wal.open(self.disk, DIR, SEGMENT_BYTES, copy.deepcopy(self.ahead))
                break
            except PowerLoss:
                go_down(self.disk, *self.loss)
            except OSError:
                assert is_armed
                if not self.disk._failures:
                    self.disk.free_bytes = None
                self.disk.kill_process()
        wal, expected = Wal.open(twin, DIR, SEGMENT_BYTES)
        assert found == expected, "what was read ahead changes nothing"
        assert outcome(self.wal) == outcome(wal)
        assert is_armed or twin.operations == self.disk.operations
        self.adopt(found)

    def adopt(self, found: Recovered) -> None:
        assert self.model.allows(found)
        self.model = Model()
        self.model.states = [Contents(found.hard_state, found.mark, found.base, tuple(found.entries))]
        self.term = max(found.hard_state.term, found.mark.term)
        self.is_failed = False

    def teardown(self) -> None:
        self.disk._failures.clear()
        self.disk.free_bytes = None
        self.disk.lose_power(lambda: False)
        self.open()
        following = entry(self.model.last_index + 1, self.term)
        self.wal.append(HardState(self.term, 0, 0), [following])
        self.wal.sync()
        self.disk.lose_power(lambda: False)
        assert Wal.open(self.disk, DIR, SEGMENT_BYTES)[1].entries[-1] == following


# Making a failing sequence shorter takes minutes: that is left to a run with more effort.
Life.TestCase.settings = settings(
    max_examples=250 * EFFORT,
    stateful_step_count=40,
    phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if EFFORT > 1 else [])],
)
TestLife = Life.TestCase
