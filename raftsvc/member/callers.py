"""What a thread of the application does at its node: brings something, waits, and helps while it is there.

A lone caller writes its own entry without handing it to another thread, and under load each
write covers everything that came meanwhile.  What comes while callers are being woken is
left to the last of them, or to what that one brings next (`handoff`).

None of them is the main thread, where what a handler of signals raises, KeyboardInterrupt
for one, could come in the middle of anything: that has another call (`raftsvc.mainthread`).
"""

from __future__ import annotations

import time
from contextlib import suppress
from threading import Event

from raftsvc.errors import StoppedError
from raftsvc.member.applier import Applier
from raftsvc.member.engine import Engine
from raftsvc.member.handoff import is_left_to_log_thread
from raftsvc.member.stages import stage_of
from raftsvc.member.turns import Turn
from raftsvc.member.waiters import Call, Read


class Callers:
    """The ways of callers through one node."""

    __slots__ = ("_applier", "_engine", "_stopping", "_turn")

    def __init__(self, engine: Engine, turn: Turn, applier: Applier, stopping: Event) -> None:
        self._engine = engine
        self._turn = turn
        self._applier = applier
        self._stopping = stopping

    def submit(self, call: Call, leaves_work: bool = False) -> None:
        """Send `call` on its way; it is finished with an outcome or an error unless withdrawn first.

        leaves_work: this thread does not write or apply what comes of it, which another does a little later.
        """
        self._check_running()
        if not self._engine.submit(call) or self._is_left_to_log_thread():
            return
        if leaves_work:
            self._turn.log_work.set()
            return
        turn = self._turn
        try:
            with turn:
                turn.drive(inline=True)
                work = self._applier.take_work()
            if work is not None:
                self._applier.apply(work)
        except Exception:
            if not call.is_finished:
                raise
            # Else the engine failed, and told every caller what is known of the outcome.

    def await_outcome(self, call: Call, deadline: float) -> bool:
        """Wait until `call` is finished; False if it was not by `deadline`, and is given up.

        A caller that waits is the first to be woken when something can be applied: most
        likely its own instruction is among it, and no other thread has to be woken before.
        """
        hands = self._turn.hands
        try:
            while not call.is_finished:
                call.is_parked = True
                is_woken = call.wait(deadline - time.monotonic())
                call.is_parked = False
                if not is_woken:
                    with self._turn.lock:
                        call.stage = stage_of(self._engine, call)
                        return not self._engine.calls.withdraw(call)
                if hands.helper is call:
                    self._applier.help(call)
            return True
        finally:
            call.is_parked = False
            if call.is_finished:
                self._note_awake()
            if hands.helper is call:  # it was asked to help, and is on its way out
                self._applier.leave_to_thread()

    def is_current(self) -> bool:
        """Whether what is applied here is current as of now, as far as that is known without waiting."""
        if not self._engine.is_current():
            return False
        self._check_running()
        self._engine.health.check_able()
        return True

    def submit_read(self, read: Read) -> None:
        """Have `read` finished once what is applied here is current as of now."""
        self._check_running()
        if self._engine.submit_read(read) and not self._is_left_to_log_thread():
            try:
                with self._turn:
                    self._turn.drive(inline=False)
            except Exception:
                if self._withdraw_read(read):
                    raise
                # Else as for a call.

    def submit_expectation(self, read: Read, index: int) -> None:
        """Have `read` finished once `index` is applied here."""
        self._check_running()
        engine = self._engine
        engine.health.check_able()
        with self._turn:
            engine.health.check_able()  # once more, for who fails all readers did so before or comes after
            engine.reads.expect(read, index, engine.applying.applied_index)

    def await_read(self, read: Read, deadline: float) -> bool:
        """Wait until `read` is finished; False if it was not by `deadline`, and is given up."""
        if not read.wait(deadline - time.monotonic()) and self._withdraw_read(read):
            return False
        self._note_awake()
        return True

    def _withdraw_read(self, read: Read) -> bool:
        """Give up on `read`; False if it was finished in the meantime."""
        with self._turn.lock:
            read.stage = stage_of(self._engine, read)
            return self._engine.reads.withdraw(read)

    def _is_left_to_log_thread(self) -> bool:
        """Whether the log thread sees to what was submitted.  If it is gone the engine is over."""
        engine = self._engine
        return is_left_to_log_thread(engine.health.is_over, self._turn.log_work.is_set, engine.inbox.is_writing)

    def _note_awake(self) -> None:
        """Whoever was woken last sees to what was left to gather, or has the log thread see to it if that is free."""
        if not self._engine.note_awake():
            return
        if not self._engine.inbox.is_writing:
            self._turn.log_work.set()  # this caller has waited long enough
            return
        with suppress(Exception), self._turn:  # the node has failed then, and this caller has its outcome
            self._turn.drive(inline=False)

    def _check_running(self) -> None:
        if self._stopping.is_set():
            raise StoppedError("the Service was stopped")
