"""Instructions that are too long to be sent at once: one piece after the other, no faster than they get through.

Every piece is an entry of the log, so what is committed of an instruction stays, whatever
breaks: connections, leaders, this very node's way to the log.  Small instructions and
heartbeats go between pieces.  The machine puts them together (`machine.Session`), in order and
each byte once; what an instruction does it does with its last.

Several follow each other without a pause, as one stream of bytes: what is sent of it and what
is known to be applied are places in that.  What is lost is sent again from there on.

Used under the lock of its node.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from raftsvc.core.pace import Pace
from raftsvc.member.waiters import Call

MAX_PIECE_BYTES: Final = 64 * 1024


class Piece(NamedTuple):
    """A part of an instruction.

    end_place: where it ends in the stream;
    previous:  the number of the instruction before its own, which is to be applied first; 0: none.
    """

    call: Call
    offset: int
    data: bytes
    end_place: int
    previous: int

    @property
    def is_last(self) -> bool:
        """Whether the instruction is whole with it."""
        return self.offset + len(self.data) == len(self.call.instruction)


class _Long:
    """An instruction, and its place in the stream."""

    __slots__ = ("begin", "call", "end")

    def __init__(self, call: Call, begin: int) -> None:
        self.call = call
        self.begin = begin
        self.end = begin + len(call.instruction)


class Pieces:
    """Long instructions, the first of which is being applied piece by piece.

    contexts: of what was forwarded and is not answered yet.
    """

    __slots__ = (
        "_end",
        "_goal",
        "_held",
        "_held_of_first",
        "_on_way",
        "_pace",
        "_patient_ticks",
        "_retry_ticks",
        "_sent",
        "_tries",
        "_wait_until",
        "contexts",
        "longs",
    )

    def __init__(self, start_bytes: int, retry_ticks: int, patient_ticks: int) -> None:
        """start_bytes: as much as is sent at once on a way of which nothing is known.

        retry_ticks:   what no leader has answered by then is sent again,
        patient_ticks: and what is in a leader's log, after that.
        """
        self.longs: deque[_Long] = deque()
        """What is here, in order."""
        self.take_way(start_bytes)
        self._retry_ticks = retry_ticks
        self._patient_ticks = patient_ticks
        self._tries = 0
        # Places in the stream, which never go back but for `_sent`, and `_held` if this node has another session.
        self._end = 0  # of all that ever came
        self._goal = 0  # the end of the last that is to be sent
        self._held = 0
        self._sent = 0
        self._held_of_first = 0
        self._on_way: deque[tuple[int, int]] = deque()  # where each ends, and when it was sent
        self._wait_until = 0
        self.contexts: set[int] = set()

    @property
    def current(self) -> Call | None:
        """The instruction that is the next to be whole."""
        return self.longs[0].call if self.longs else None

    @property
    def is_due(self) -> bool:
        """Whether there is something to send.  Callable without the lock."""
        return self._sent < self._goal and self._sent - self._held < self._room_bytes and not self._wait_until

    @property
    def _room_bytes(self) -> int:
        # What it takes at best is seen from a small one.
        return 1 if self._pace.is_unknown else self._pace.size_bytes

    def takes(self, call: Call) -> bool:
        """Whether `call` is too long to be sent whole; then it is seen to here."""
        if len(call.instruction) <= min(2 * self._pace.size_bytes, MAX_PIECE_BYTES):
            return False
        call.is_cut = True
        long = _Long(call, self._end)
        self.longs.append(long)
        self._end = self._goal = long.end
        return True

    def remove(self, call: Call, tick: int | None = None) -> None:
        """Its outcome is known, as of `tick`; or nobody waits for it any more."""
        if not call.is_cut:
            return
        longs = self.longs
        long = next((one for one in longs if one.call is call), None)
        if long is None:
            return
        is_first = long is longs[0]
        longs.remove(long)
        self._goal = longs[-1].end if longs else 0
        if is_first:
            self._held_of_first = 0
            self._advance(longs[0].begin if longs else self._end, tick)

    def take(self, max_bytes: int, tick: int, end_number: int) -> list[Piece]:
        """What to send now, in one batch of `max_bytes` or little more; it counts as on its way.

        end_number: calls that reach beyond that number are not sent yet.
        """
        batch: list[Piece] = []
        while max_bytes > 0 and (piece := self.next(tick)) is not None:
            if piece.call.number + piece.call.count > end_number:
                break
            self.note_sent(piece, tick)
            batch.append(piece)
            max_bytes -= len(piece.data)
        return batch

    def next(self, tick: int) -> Piece | None:
        """What to send now, if anything; `note_sent` has to follow."""
        if tick < self._wait_until:
            return None
        self._wait_until = 0
        if self._sent >= self._goal:
            return None
        if self._sent - self._held >= self._room_bytes:
            self._pace.note_short()
            return None
        previous = 0
        for long in self.longs:
            if long.end > self._sent:
                break
            previous = long.call.number
        pace = self._pace
        offset = max(0, self._sent - long.begin)
        length = min(MAX_PIECE_BYTES, pace.least_bytes if pace.is_unknown else max(1, pace.size_bytes // 2))
        data = long.call.instruction[offset : offset + length]
        return Piece(long.call, offset, data, long.begin + offset + len(data), previous)

    def note_sent(self, piece: Piece, tick: int) -> None:
        """It is on its way."""
        self._sent = piece.end_place
        self._on_way.append((self._sent, tick))

    def note_held(self, held: int, tick: int) -> None:
        """So much of the first is applied here: less than before if this node has another session since."""
        place = self.longs[0].begin + held
        if held < self._held_of_first:
            self._held = place
            self.send_again(0)
        self._held_of_first = held
        self._advance(place, tick)

    def _advance(self, place: int, tick: int | None) -> None:
        """All before `place` is done with: applied as of `tick`, or given up."""
        self._held = max(self._held, place)
        self._sent = max(self._sent, self._held)
        while self._on_way and self._on_way[0][0] <= self._held:
            sent_tick = self._on_way.popleft()[1]
            self._tries = 0
            if tick is not None:
                self._pace.answered(sent_tick, tick)
        if not self._on_way:
            self.contexts.clear()

    def retry(self, tick: int) -> None:
        """Send again what was sent long ago; the way may have become slow, or what was sent is lost."""
        if not self._on_way:
            self._pace.rest()
            return
        patience = self._retry_ticks << min(self._tries, 4) if self.contexts else self._patient_ticks
        if tick - self._on_way[0][1] >= patience:
            self._tries += 1
            self._pace.slow_down()
            self.send_again(0)

    def hear_reply(self, context: int, is_refused: bool, tick: int) -> bool:
        """A leader answered what was forwarded to it; whether that is still of weight."""
        if context not in self.contexts:
            return False
        self.contexts.discard(context)
        if is_refused:
            self.send_again(tick + 1)
        return True

    def take_way(self, start_bytes: int) -> None:
        """They go by a way of which only that is known."""
        self._pace = Pace(max(1, start_bytes // 2))  # it may pass two links, to the leader and from it

    def change_way(self) -> None:
        """They go elsewhere from now on, and what is on its way may be lost."""
        self._pace = self._pace.anew()
        self.send_again(0)

    def send_again(self, tick: int) -> None:
        """From `tick` on: what is on its way may be lost."""
        self._sent = self._held
        self._on_way.clear()
        self._wait_until = tick
        self.contexts.clear()

    def clear(self) -> None:
        """There are none any more."""
        self.longs.clear()
        self._goal = self._held_of_first = 0
        self._held = self._end
        self.send_again(0)
