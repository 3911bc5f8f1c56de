"""How much may be on its way to somebody: as much as leaves what is urgent quick.

Whatever queues on the way, in a socket, in a router, before a disk, delays all that is said
after it.  How long it does so is seen from how long answers take; so no more is sent
than is answered within a few ticks, whatever the link carries.
"""

from __future__ import annotations

from collections import deque
from typing import Final

_SLOW_TICKS: Final = 2
"""More than this beyond what it takes at best is slow."""
_IDLE_TICKS: Final = 2
"""Short of room no longer ago than that it is not too large: answers come in bursts."""
_UNKNOWN: Final = 1 << 30


class Pace:
    """Bytes that may wait for an answer at one time.

    It doubles while it is what holds up the sender and answers are quick, and grows by a quarter
    where one was slow before.  It is halved for a slow one, and goes back to where it began
    while less would do, for some ticks: so a link that has become slow meanwhile is not filled
    with what it carried once.
    """

    __slots__ = ("_best_ticks", "_busy_tick", "_changed_tick", "_is_short", "_start_bytes", "_was_slow", "size_bytes")

    def __init__(self, start_bytes: int) -> None:
        self._start_bytes = start_bytes
        self.size_bytes = start_bytes
        self._best_ticks = _UNKNOWN
        self._is_short = False
        self._was_slow = False
        self._changed_tick = 0
        self._busy_tick = 0  # when less would not have done

    def anew(self) -> Pace:
        """One that knows as little as this did at first."""
        return Pace(self._start_bytes)

    @property
    def is_unknown(self) -> bool:
        """Whether nothing was answered yet."""
        return self._best_ticks == _UNKNOWN

    @property
    def least_bytes(self) -> int:
        """It never gets smaller."""
        return max(1, self._start_bytes // 8)

    @property
    def most_bytes(self) -> int:
        """It never gets larger."""
        return 256 * self._start_bytes

    def note_short(self) -> None:
        """There is more to be sent than it allows."""
        self._is_short = True

    def answered(self, sent_tick: int, tick: int) -> None:
        """An answer came at `tick` to what was sent at `sent_tick`."""
        ticks = tick - sent_tick
        self._best_ticks = min(self._best_ticks, ticks)
        if sent_tick < self._changed_tick:
            return  # it says nothing of how things are since
        before = self.size_bytes
        if self._is_short:
            self._busy_tick = tick
        if before == self.least_bytes and ticks > self._best_ticks:
            self._best_ticks += 1  # so little holds nothing up: it is the way that takes longer than it did
        if ticks > self._best_ticks + _SLOW_TICKS:
            self.slow_down()
        elif self._is_short and ticks <= self._best_ticks + 1:
            more = before // 4 if self._was_slow else before
            self.size_bytes = min(self.most_bytes, before + max(1, more))
        elif not self._is_short and tick - self._busy_tick > _IDLE_TICKS:
            self.rest()
        self._is_short = False
        if self.size_bytes != before:
            self._changed_tick = tick

    def answered_soon(self, sent_tick: int, tick: int) -> None:
        """As `answered`, of something that did not wait: no need to wait for an answer that tells more."""
        if self._is_short and sent_tick >= self._changed_tick:
            self.answered(sent_tick, tick)

    def rest(self) -> None:
        """Nothing was to be sent for a tick, or less than it allows for some."""
        if self.size_bytes > self._start_bytes:
            self.size_bytes = max(self._start_bytes, self.size_bytes // 2)

    def slow_down(self) -> None:
        """An answer came late, or none came."""
        self._was_slow = True
        self.size_bytes = max(self.least_bytes, self.size_bytes // 2)


class Window:
    """Messages with entries on their way to a follower, and heartbeats among them that tell how long these take."""

    __slots__ = ("_messages", "_pulse_round", "_pulse_tick", "_size_bytes", "pace")

    def __init__(self, start_bytes: int) -> None:
        self.pace = Pace(start_bytes)
        self._messages: deque[tuple[int, int, int]] = deque()  # the last entry of each, its bytes, and when it was sent
        self._size_bytes = 0
        self._pulse_round = 0  # of the first heartbeat that is not answered; 0: all are
        self._pulse_tick = 0

    @property
    def count(self) -> int:
        """How many messages there are."""
        return len(self._messages)

    def room_bytes(self, max_messages: int, max_bytes: int) -> int:
        """How much another message may have; 0: there is no room for one."""
        size = min(max_bytes, self.pace.size_bytes)
        room = size - self._size_bytes
        # Less than an eighth is not worth a message.
        return room if 8 * room >= size and len(self._messages) < max_messages else 0

    def sent(self, last_index: int, size_bytes: int, tick: int) -> None:
        """A message with entries up to `last_index` is on its way."""
        self._messages.append((last_index, size_bytes, tick))
        self._size_bytes += size_bytes

    def acknowledged(self, match_index: int, tick: int) -> None:
        """The follower holds everything up to `match_index`."""
        messages = self._messages
        while messages and messages[0][0] <= match_index:
            _, size_bytes, sent_tick = messages.popleft()
            self._size_bytes -= size_bytes
            if sent_tick >= tick - 1:
                # Late ones say nothing, for they may have waited for the follower's disk.
                self.pace.answered_soon(sent_tick, tick)

    def clear(self) -> None:
        """What was on its way counts as lost."""
        self._messages.clear()
        self._size_bytes = 0

    def pulse(self, round_number: int, tick: int) -> None:
        """A heartbeat is sent at `tick`."""
        if not self._pulse_round:
            self._pulse_round, self._pulse_tick = round_number, tick

    def pulse_answered(self, round_number: int, tick: int) -> None:
        """It answered what was sent in that round, or later."""
        if 0 < self._pulse_round <= round_number:
            self._pulse_round = 0
            self.pace.answered(self._pulse_tick, tick)
