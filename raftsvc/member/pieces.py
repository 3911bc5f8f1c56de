"""Instructions that are too long to be sent at once: one piece after the other, no faster than they get through.

Every piece is an entry of the log, so what is committed of an instruction stays, whatever
breaks: connections, leaders, this very node's way to the log.  Small instructions and
heartbeats go between pieces.  The machine puts them together (`machine.Session`), in order and
each byte once; what an instruction does it does with its last.

Used under the lock of its node.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from raftsvc.core.pace import Pace
from raftsvc.member.waiters import Call

MAX_PIECE_BYTES = 64 * 1024


class Piece(NamedTuple):
    """A part of an instruction."""

    call: Call
    offset: int
    data: bytes

    @property
    def is_last(self) -> bool:
        """Whether the instruction is whole with it."""
        return self.offset + len(self.data) == len(self.call.instruction)


class Pieces:
    """Long instructions, the first of which is being sent.

    contexts: of forwarded pieces that are not answered yet.
    """

    __slots__ = (
        "_calls",
        "_held",
        "_on_way",
        "_pace",
        "_patient_ticks",
        "_retry_ticks",
        "_sent",
        "_tries",
        "_wait_until",
        "contexts",
    )

    def __init__(self, start_bytes: int, retry_ticks: int, patient_ticks: int) -> None:
        """start_bytes: as much as is sent at once on a way of which nothing is known.

        retry_ticks:   what no leader has answered by then is sent again,
        patient_ticks: and what is in a leader's log, after that.
        """
        self._calls: deque[Call] = deque()
        self._pace = Pace(max(1, start_bytes // 2))  # it may pass two links, to the leader and from it
        self._retry_ticks = retry_ticks
        self._patient_ticks = patient_ticks
        self._tries = 0
        self._held = 0
        self._sent = 0
        self._on_way: deque[tuple[int, int]] = deque()  # where each ends, and when it was sent
        self._wait_until = 0
        self.contexts: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._calls)

    @property
    def current(self) -> Call | None:
        """The instruction that is being sent."""
        return self._calls[0] if self._calls else None

    @property
    def is_due(self) -> bool:
        """Whether there may be something to send.  Callable without the lock."""
        calls = self._calls
        return bool(calls) and self._sent - self._held < self._pace.size_bytes and not self._wait_until

    def takes(self, call: Call) -> bool:
        """Whether `call` is too long to be sent whole; then it is seen to here."""
        if len(call.instruction) <= min(2 * self._pace.size_bytes, MAX_PIECE_BYTES):
            return False
        call.is_cut = True
        self._calls.append(call)
        return True

    def remove(self, call: Call) -> None:
        """Its outcome is known, or nobody waits for it any more."""
        if not call.is_cut:
            return
        if call is self.current:
            self._calls.popleft()
            self.send_again(0)
            self._held = self._sent = 0
        elif call in self._calls:
            self._calls.remove(call)

    def next(self, tick: int) -> Piece | None:
        """What to send now, if anything."""
        call = self.current
        if call is None or tick < self._wait_until:
            return None
        self._wait_until = 0
        size = self._pace.size_bytes
        rest = len(call.instruction) - self._sent
        if rest and self._sent - self._held >= size:
            self._pace.note_short()
            return None
        length = min(rest, MAX_PIECE_BYTES, max(1, size // 2))
        if self._pace.is_unknown:
            # What it takes at best is seen from a small one.
            length = min(length, self._pace.least_bytes) if not self._sent else 0
        return Piece(call, self._sent, call.instruction[self._sent : self._sent + length]) if length else None

    def note_sent(self, piece: Piece, tick: int) -> None:
        """It is on its way."""
        self._sent = piece.offset + len(piece.data)
        self._on_way.append((self._sent, tick))

    def note_held(self, held: int, tick: int) -> None:
        """So much of it is applied here: less than before if this node has another session since."""
        if held < self._held:
            self._held = held
            self.send_again(0)
        self._held = held
        self._sent = max(self._sent, held)
        while self._on_way and self._on_way[0][0] <= held:
            self._tries = 0
            self._pace.answered(self._on_way.popleft()[1], tick)

    def retry(self, tick: int) -> None:
        """Send again what was sent long ago; the way may have become slow, or what was sent is lost."""
        if not self._on_way:
            return
        patience = self._retry_ticks << min(self._tries, 4) if self.contexts else self._patient_ticks
        if tick - self._on_way[0][1] >= patience:
            self._tries += 1
            self._pace.slow_down()
            self.send_again(0)

    def hear_reply(self, context: int, is_refused: bool, tick: int) -> None:
        """A leader answered what was forwarded to it."""
        if context in self.contexts:
            self.contexts.discard(context)
            if is_refused:
                self.send_again(tick + 1)

    def send_again(self, tick: int) -> None:
        """From `tick` on: what is on its way may be lost."""
        self._sent = self._held
        self._on_way.clear()
        self._wait_until = tick
        self.contexts.clear()

    def clear(self) -> None:
        """There are none any more."""
        self._calls.clear()
        self.send_again(0)
        self._held = self._sent = 0
