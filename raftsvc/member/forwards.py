"""What was forwarded to the leader and is not answered yet: no more of it than gets through soon.

Used under the lock of its node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from raftsvc.core.pace import Pace
from raftsvc.member.waiters import Call

_MOST: Final = 1024


class _Batch:
    __slots__ = ("calls", "size_bytes", "tick")

    def __init__(self, calls: Sequence[Call], size_bytes: int, tick: int) -> None:
        self.calls = calls
        self.size_bytes = size_bytes
        self.tick = tick


class Forwards:
    """Batches of instructions on their way to the leader, by the context that its answer will name.

    The answers to what this node hears of its leader leave the same way, and must not wait
    behind more than a moment's worth of instructions.
    """

    __slots__ = ("_batches", "_on_way_bytes", "_pace", "_retry_ticks")

    def __init__(self, start_bytes: int, retry_ticks: int) -> None:
        """start_bytes: as much as is sent at once on a way of which nothing is known.

        retry_ticks: what is not answered then counts as lost.
        """
        self._batches: dict[int, _Batch] = {}
        self._on_way_bytes = 0
        self._pace = Pace(start_bytes)
        self._retry_ticks = retry_ticks

    @property
    def room_bytes(self) -> int:
        """How much more may be forwarded now; 0: none."""
        size = self._pace.size_bytes
        room = size - self._on_way_bytes
        if room * 8 >= size:
            return room
        self._pace.note_short()
        return 0

    def add(self, context: int, calls: Sequence[Call], size_bytes: int, tick: int) -> None:
        """A batch is on its way."""
        self._batches[context] = _Batch(calls, size_bytes, tick)
        self._on_way_bytes += size_bytes
        while len(self._batches) > _MOST:
            self._on_way_bytes -= self._batches.pop(next(iter(self._batches))).size_bytes

    def pop(self, context: int, tick: int) -> Sequence[Call] | None:
        """The batch that an answer names, which came; None if it was forgotten."""
        batch = self._batches.pop(context, None)
        if batch is None:
            return None
        if batch.size_bytes:
            self._on_way_bytes -= batch.size_bytes
            self._pace.answered(batch.tick, tick)
        return batch.calls

    def tick(self, tick: int) -> None:
        """Give up on those that should have been answered; if they are after all, their outcome counts."""
        is_late = False
        for batch in self._batches.values():
            if batch.tick + self._retry_ticks > tick:
                break
            is_late = is_late or batch.size_bytes > 0
            self._on_way_bytes -= batch.size_bytes
            batch.size_bytes = 0
        if is_late:
            self._pace.slow_down()
        elif not self._on_way_bytes:
            self._pace.rest()

    def change_way(self) -> None:
        """They go elsewhere from now on, and answers to these mean nothing any more."""
        self._pace = self._pace.anew()
        self._batches.clear()
        self._on_way_bytes = 0
