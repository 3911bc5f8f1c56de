"""Callers that are blocked, and what they brought: an instruction, or nothing but the wish to read."""

from __future__ import annotations

import threading
from _thread import allocate_lock
from contextlib import suppress
from queue import SimpleQueue

from raftsvc.errors import RaftError
from raftsvc.member.envelopes import INSTRUCTION, LIST
from raftsvc.member.sessions import Outcome


class Waiter:
    """One blocked caller.  Finished exactly once, then woken.

    Two steps, for whoever finishes many holds a lock that they need, and each would
    only run into it.
    """

    __slots__ = ("_woken", "error", "stage")

    def __init__(self) -> None:
        self._woken = woken = allocate_lock()  # a semaphore: half the cost of an Event
        woken.acquire()
        self.error: RaftError | None = None
        self.stage = ""
        """What it waited for when it was given up."""

    def wake(self) -> None:
        """Let the caller go on; it looks why."""
        with suppress(RuntimeError):  # it is awake already
            self._woken.release()

    def wait(self, timeout: float) -> bool:
        """Whether it was woken within `timeout` seconds."""
        return self._woken.acquire(timeout=min(max(timeout, 0.0), threading.TIMEOUT_MAX))


class Call(Waiter):
    """An instruction on its way, or a list of them, and its caller.

    count:     how many there are, each of which has a number, from `number` on.
    unsettled: how many times it was handed to a log, here or at a leader, with no
               word that it was refused there; above 0 it may yet be applied.
    is_parked: its caller waits, and can be woken to help.
    is_cut:    it is sent piece by piece.
    """

    __slots__ = (
        "count",
        "data",
        "instruction",
        "is_cut",
        "is_parked",
        "number",
        "op",
        "outcome",
        "retry_tick",
        "unsettled",
    )

    def __init__(self, instruction: bytes, listed: int = 0, op: int = INSTRUCTION) -> None:
        """listed: how many instructions it is the encoded list of, if it is one; else op is what it is."""
        Waiter.__init__(self)  # half the cost of `super()`, once for each operation
        self.instruction = instruction
        self.op = LIST if listed else op
        self.count = listed or 1
        self.data = b""
        self.number = 0
        self.unsettled = 0
        self.retry_tick = 0
        self.is_parked = False
        self.is_cut = False
        self.outcome: Outcome | list[Outcome] | None = None

    @property
    def is_list(self) -> bool:
        """Whether its outcome is a list."""
        return self.op == LIST

    @property
    def is_finished(self) -> bool:
        """Whether there is an outcome or an error."""
        return self.outcome is not None or self.error is not None


class Promise(Call):
    """An instruction for which nobody waits: whoever finishes it leaves it to a thread that completes futures."""

    __slots__ = ("_ended", "serial")

    def __init__(self, data: bytes, serial: int, ended: SimpleQueue[int | None]) -> None:
        super().__init__(data)
        self.serial = serial
        self._ended = ended

    def wake(self) -> None:
        """What waits for the future may take long, and is not ours: this thread has more to do."""
        self._ended.put(self.serial)


class Read(Waiter):
    """A reader, and the index that must be applied before it goes on."""

    __slots__ = ("index",)

    def __init__(self) -> None:
        Waiter.__init__(self)
        self.index = 0
