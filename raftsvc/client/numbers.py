"""A session of this process: by its numbers what a client brings counts once, by however many members it was brought.

See `raftsvc.member.sessions` for the other side.
"""

from __future__ import annotations

import threading
import time

from raftsvc.core.messages import MalformedError
from raftsvc.member.sessions import MAX_OUTCOMES, decode_outcome
from raftsvc.transport.visits import decode_place


def opened_of(data: bytes, nonce: int) -> ClientSession:
    """The session that a member says was opened with `nonce`; raises MalformedError."""
    index, _, outcome = decode_place(data)
    session_id = decode_outcome(outcome, index, 0).answer
    if not isinstance(session_id, int) or not session_id:
        raise MalformedError("a session was opened without an id")
    return ClientSession(session_id, nonce)


class ClientSession:
    """One that is open.  Thread-safe.

    A number is used once, for one call, until that has its outcome or is given up; what is below the
    lowest that is in use nobody asks about any more.
    """

    def __init__(self, session_id: int, nonce: int) -> None:
        self.id = session_id
        self.nonce = nonce
        self._freed = threading.Condition()  # guards the two below; nothing is called under it
        self._next = 1
        self._in_use: dict[int, None] = {}  # in their order

    def begin(self, deadline: float) -> tuple[int, int] | None:
        """A number, and the lowest in use; None if too many before it have no outcome by `deadline`. Then `end`."""
        with self._freed:
            while self._next >= self._low() + MAX_OUTCOMES:
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._freed.wait(left)
            number = self._next
            self._next += 1
            self._in_use[number] = None
            return number, self._low()

    def end(self, number: int) -> None:
        """It has its outcome, or nobody waits for that any more."""
        with self._freed:
            del self._in_use[number]
            self._freed.notify_all()

    def _low(self) -> int:
        return next(iter(self._in_use), self._next)
