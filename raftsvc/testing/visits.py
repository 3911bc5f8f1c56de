"""What connected clients ask of a simulated process, and what that tells them: as in a real one, without threads."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from raftsvc.errors import NotApplied, OutcomeUnknown, RaftError, ReadTimeoutError
from raftsvc.member.envelopes import CLIENT, INSTRUCTION, read_envelope
from raftsvc.member.sessions import Outcome, encode_outcome
from raftsvc.member.waiters import Call
from raftsvc.testing.clients import SimulatedRead
from raftsvc.testing.invariants import Violation
from raftsvc.testing.schedule import SECOND
from raftsvc.testing.serving import Serving, ServingEngine
from raftsvc.testing.workload import Action
from raftsvc.testing.world import World
from raftsvc.transport import Problem
from raftsvc.transport.refusals import refusal_of
from raftsvc.transport.visits import BRING, Visit, encode_place


class CarriedCall(Call):
    """What a client brought, of which the process is told that it ended."""

    __slots__ = ("_done",)

    def __init__(self, payload: bytes, done: Callable[[], None]) -> None:
        super().__init__(payload, op=CLIENT)
        self._done = done

    def wake(self) -> None:
        self._done()


class Told(NamedTuple):
    """The answer to a request, or the refusal.

    is_lost:    neither: the process ended before.
    output:     what a look at the State showed, of a read.
    is_suspect: it may come of a damaged State.
    is_open:    the session that it was brought under is open where it was answered.
    """

    data: bytes = b""
    problem: Problem | None = None
    is_lost: bool = False
    output: Any = None
    is_suspect: bool = False
    is_open: bool = False


class Visitor:
    """One request at one process, until that tells what came of it."""

    def __init__(
        self, world: World, random: Random, process: Serving, body: bytes, action: Action, tell: Callable[[Told], None]
    ) -> None:
        """action: what the State is looked at for, of a read."""
        self._world = world
        self._random = random
        self.process = process
        self._visit = Visit.decode(body)
        self._action = action
        self._tell = tell
        self._call: CarriedCall | None = None
        self._read: SimulatedRead | None = None
        self._floor = 0
        self.is_over = False

    def begin(self) -> None:
        """It arrives."""
        self.process.do(self._submit)
        self.process.life.later(int(self._visit.timeout * SECOND), self._give_up)

    def _submit(self, engine: ServingEngine) -> None:
        try:
            if self._visit.kind == BRING:
                self._call = CarriedCall(self._visit.payload, self._call_finished)
                engine.submit(self._call)
            else:
                self._read = SimulatedRead(self._read_confirmed)
                self._floor = self._world.watch.consensus.last_committed
                engine.submit_read(self._read)
        except NotApplied as refused:
            self._refuse(refused)

    def _give_up(self) -> None:
        """Whoever asks waits little longer."""
        engine, call, read = self.process.engine, self._call, self._read
        if self.is_over:
            return
        if read is not None and engine.reads.withdraw(read):
            self._refuse(ReadTimeoutError("nobody confirmed it"))
        elif call is not None and engine.calls.withdraw(call):
            self._refuse(OutcomeUnknown("it is on its way") if call.unsettled else NotApplied("no leader took it"))

    def _call_finished(self) -> None:
        call = self._call
        if call is None or call.error is not None:
            self._refuse((call.error if call is not None else None) or NotApplied("it was not taken"))
            return
        outcome = call.outcome
        if not isinstance(outcome, Outcome):
            raise Violation("sessions: what a client brings has one outcome")
        data = encode_place(outcome.entry_index, outcome.time_ms, encode_outcome(outcome))
        session_id, nonce, _ = read_envelope(self._visit.payload)
        is_open = self.process.engine.applying.machine.sessions.client(session_id, nonce) is not None
        is_for_state = self._visit.payload[0] == INSTRUCTION
        self._end(Told(data, is_suspect=is_for_state and self.process.replica.is_suspect, is_open=is_open))

    def _read_confirmed(self) -> None:
        read = self._read
        if read is None or read.error is not None:
            self._refuse((read.error if read is not None else None) or NotApplied("it was not taken"))
            return
        if read.index < self._floor:
            raise Violation(f"a read is served at {read.index}, and {self._floor} was committed when it was asked for")
        self.process.life.later(self._random.randrange(1, 2000), self._look)

    def _look(self) -> None:
        replica = self.process.replica
        output = self._world.workload.read(replica.state, self._action)
        self._end(Told(output=output, is_suspect=replica.is_suspect))

    def _refuse(self, error: RaftError) -> None:
        self._end(Told(problem=refusal_of(error)))

    def _end(self, told: Told) -> None:
        if not self.is_over:
            self.is_over = True
            self._tell(told)

    # -- what happens to the process

    def applied(self) -> None:
        """Was that what it waits for?"""
        if not self.is_over and self._call is not None:
            self._world.watch.sessions.waits(self.process.engine, self._call)

    def ended(self) -> None:
        """The connection breaks."""
        self._end(Told(is_lost=True))
