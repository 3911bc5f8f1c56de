"""What a State waits for: the log time at which something is to happen in it next.

It is asked by whoever applies, after each batch, never under the lock of the node; what it
said last is looked at under it.  A deadline that it leaves as it is when it is told that
the time has come would have a pulse appended tick after tick, so such a one counts for none.
"""

from __future__ import annotations

from typing import Any

from raftsvc.core.messages import MAX_TIME_MS
from raftsvc.member.machine import Machine
from raftsvc.state import WaitingState


class Deadlines:
    """Of one State.

    next_ms: what it said last, or None.
    """

    __slots__ = ("_ignored_ms", "_last_ms", "_machine", "_said", "_state", "_trouble", "next_ms")

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        # What it returns may be anything, whatever it should be.
        self._state: Any = machine.state if isinstance(machine.state, WaitingState) else None
        self._last_ms: int | None = None
        self._ignored_ms: int | None = None
        self._trouble: str | None = None
        self._said: str | None = None
        self.next_ms: int | None = None

    def ask(self) -> None:
        """A batch was applied, or the State restarted from a snapshot.  Runs its code."""
        if self._state is None:
            return
        pulse_ms = self._machine.take_pulse()
        try:
            said: object = self._state.next_deadline()
        except Exception as error:  # of the State, whatever it is: what is applied stays applied
            self._give_up(f"raised {error!r}")
            return
        if said is None:
            self._last_ms = self._ignored_ms = self.next_ms = self._trouble = None
            return
        if not isinstance(said, int) or isinstance(said, bool) or said < 0:
            self._give_up(f"returned {said!r}, which is neither None nor a time, an int of milliseconds")
            return
        deadline_ms = min(said, MAX_TIME_MS)
        if deadline_ms == self._last_ms and deadline_ms <= pulse_ms:
            self._ignored_ms = deadline_ms
        self._last_ms = deadline_ms
        if deadline_ms == self._ignored_ms:
            self._give_up(f"still returns {deadline_ms} after pass_time() was told that it is {pulse_ms} ms")
            return
        self._ignored_ms = self._trouble = None
        self.next_ms = deadline_ms

    def _give_up(self, what: str) -> None:
        self._trouble = self._trouble or f"next_deadline() of the State {what}; it is not waited for until that changes"
        self.next_ms = None

    def take_trouble(self) -> str | None:
        """What is wrong with what it said, once each time that it begins."""
        said, self._said = self._said, self._trouble
        return None if said is not None else self._trouble
