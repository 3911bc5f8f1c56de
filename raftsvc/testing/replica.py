"""The State in one process: every instruction that reaches it is seen, and it may be damaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raftsvc.errors import Rejected
from raftsvc.state import State, StreamingState, TimedState
from raftsvc.testing.workload import DamagingWorkload, TimerState
from raftsvc.testing.world import World


class Replica:
    """A State that the watch sees at work.

    is_damaged:    it is not what was applied.
    is_suspect:    what it tells callers may come from a damaged State.
    began_damaged: so was the snapshot that it started from.
    is_doubted:    it is attached, and differs from its owner.
    """

    def __init__(self, world: World, node_id: int, state: State, spoilt_snapshots: set[int], index: int) -> None:
        """state: as restored from the snapshot at `index`; spoilt_snapshots: those of a damaged State, by index."""
        self.state = state
        self._world = world
        self._node_id = node_id
        self._spoilt_snapshots = spoilt_snapshots
        self.is_damaged = False
        self._is_damaged_again = False
        self.is_doubted = False
        self._restored(index)
        self.is_suspect = self.began_damaged = self.is_damaged
        self._put_under_watch(state)

    def _put_under_watch(self, state: Any) -> None:
        if isinstance(state, TimedState):  # whose `apply` nobody may call
            timed: Any = state
            timed.apply_at = self._watched_apply(timed.apply_at)
        else:
            state.apply = self._watched_apply(state.apply)
        if isinstance(state, TimerState):
            state.ran_down = self._ran_down
        state.restore_snapshot = self._watched_restore(state.restore_snapshot)
        if isinstance(state, StreamingState):
            streaming: Any = state
            streaming.restore_chunks = self._watched_restore(streaming.restore_chunks)

    def _watched_apply(self, apply: Callable[..., object]) -> Callable[..., object]:
        watch = self._world.watch.sessions

        def seen(data: bytes, index: int, *time_ms: int) -> object:
            place = watch.executes(self._node_id, data, index)
            if self.is_damaged:
                return apply(data, index, *time_ms)
            try:
                answer = apply(data, index, *time_ms)
            except Rejected:
                watch.decides(place, None)
                raise
            watch.decides(place, answer is not False and answer is not None, answer)
            return answer

        return seen

    def _ran_down(self, since: int, ttl_ms: int, index: int) -> None:
        if not self.is_damaged:
            self._world.watch.times.ran_down(self._node_id, since, ttl_ms, index)

    def _watched_restore(self, restore: Callable[[Any, int], None]) -> Callable[[Any, int], None]:
        def restored(data: Any, index: int) -> None:
            restore(data, index)
            self._restored(index)

        return restored

    def _restored(self, index: int) -> None:
        """The State is what the snapshot at `index` was."""
        self._world.watch.sessions.starts(self._node_id)
        self.is_damaged = index in self._spoilt_snapshots
        self._is_damaged_again = False

    def damage(self, again: bool = False) -> bool:
        """Break something in the State; `again`: as often as it takes until answers depend on it."""
        world = self._world
        workload = world.workload
        if not isinstance(workload, DamagingWorkload) or not workload.damage(self.state, world.random):
            return False
        self.is_damaged = self.is_suspect = world.watch.digests.was_damaged = True
        self._is_damaged_again = again
        return True

    def damage_further(self, is_noticed: bool) -> None:
        """Break something more, if answers were to depend on it and that `is_noticed` not yet."""
        if self._is_damaged_again and not is_noticed:
            self.damage(again=True)
