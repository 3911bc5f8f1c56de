"""The clients: each does one thing after the other at nodes of its choice, and remembers what it was told."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from raftsvc.errors import NotApplied, RaftError
from raftsvc.member.engine import Engine
from raftsvc.member.envelopes import encode_list
from raftsvc.member.waiters import Call, Read
from raftsvc.testing.cluster import Cluster
from raftsvc.testing.invariants import Violation
from raftsvc.testing.linearizability import Operation
from raftsvc.testing.process import SimulatedProcess
from raftsvc.testing.schedule import MILLISECOND, SECOND
from raftsvc.testing.serving import Serving, ServingEngine
from raftsvc.testing.workload import Action, VersionedWorkload
from raftsvc.testing.world import World

_LISTS = 0.15
"""How often something more goes into the same list."""


class SimulatedCall(Call):
    """An instruction whose caller is called back instead of woken."""

    __slots__ = ("_done",)

    def __init__(self, instructions: Sequence[bytes], done: Callable[[], None]) -> None:
        """More than one make a list."""
        if len(instructions) > 1:
            super().__init__(encode_list(instructions), len(instructions))
        else:
            super().__init__(instructions[0])
        self._done = done

    def wake(self) -> None:
        self._done()


class SimulatedRead(Read):
    """A read whose caller is called back instead of woken."""

    __slots__ = ("_done",)

    def __init__(self, done: Callable[[], None]) -> None:
        super().__init__()
        self._done = done

    def wake(self) -> None:
        self._done()


class Probe:
    """Reads at one node, until one is served."""

    _PATIENCE = 5 * SECOND

    def __init__(self, world: World, cluster: Cluster, node_id: int) -> None:
        self._world = world
        self._node = cluster.nodes[node_id]
        self._read: SimulatedRead | None = None
        self.is_served = False
        self._ask()

    def _ask(self) -> None:
        process = self._node.process
        self._read = read = SimulatedRead(lambda: self._finished(read))
        self._world.schedule.at(self._PATIENCE, lambda: self._give_up(process, read))
        if process is not None:
            process.do(lambda engine: self._submit(engine, read))

    def _submit(self, engine: Engine, read: SimulatedRead) -> None:
        with suppress(NotApplied):  # asked again later
            engine.submit_read(read)

    def _finished(self, read: SimulatedRead) -> None:
        self.is_served |= read.error is None

    def _give_up(self, process: SimulatedProcess | None, read: SimulatedRead) -> None:
        if not self.is_served:
            if process is not None:
                process.engine.reads.withdraw(read)
            self._ask()


class Attempt:
    """One action of a client at one process, or several writes in one list, until it ends.

    floor: what was committed anywhere when a read was asked for.
    """

    __slots__ = ("actions", "call", "called", "floor", "process", "read")

    def __init__(self, process: Serving, actions: Sequence[Action], called: int) -> None:
        self.process = process
        self.actions = actions
        self.called = called
        self.call: SimulatedCall | None = None
        self.read: SimulatedRead | None = None
        self.floor = 0


class Client:
    """One caller after the other: thinks, acts, waits for the outcome or gives up, and does the next thing."""

    def __init__(self, world: World, cluster: Cluster, number: int) -> None:
        self._world = world
        self._cluster = cluster
        self._number = number
        self._attempt: Attempt | None = None
        self._plan = 0
        self.is_stopping = False
        self.served_since_heal = 0

    @property
    def is_waiting(self) -> bool:
        """Whether something is under way."""
        return self._attempt is not None

    # -- acting

    def start(self) -> None:
        """Do one thing after the other from now on."""
        world = self._world
        self._plan = plan = self._plan + 1
        if not self.is_stopping:
            pause = int(world.random.expovariate(1 / world.conditions.think_time))
            world.schedule.at(pause, lambda: self._go_on(plan))

    def _go_on(self, plan: int) -> None:
        if plan != self._plan:
            return
        ready = self._cluster.serving()
        if ready and not self.is_stopping:
            self._act(self._world.random.choice(ready))
        else:
            self.start()

    def _act(self, process: Serving) -> None:
        world = self._world
        actions = [self._choose()]
        while actions[-1].instruction is not None and world.random.random() < _LISTS:
            actions.append(self._choose())
        if len(actions) > 1 and actions[-1].instruction is None:
            del actions[-1]  # a read, which is in no list
            world.report.counts["operations"] -= 1
        if isinstance(world.workload, VersionedWorkload):
            in_form, state = world.workload.in_form, process.replica.state
            actions = [a._replace(instruction=in_form(a.instruction, state)) if a.instruction else a for a in actions]
        self._attempt = attempt = Attempt(process, actions, world.schedule.now)
        self._note(f"{[action.input for action in actions]} at {process.name}")
        process.do(lambda engine: self._submit(attempt, engine))
        patience = world.random.choice((300 * MILLISECOND, 2 * SECOND, 5 * SECOND))
        process.life.later(patience, lambda: self._give_up(attempt))

    def _choose(self) -> Action:
        world = self._world
        world.report.counts["operations"] += 1
        return world.workload.next_action(world.random, world.report.counts["operations"])

    def _submit(self, attempt: Attempt, engine: ServingEngine) -> None:
        try:
            instructions = [action.instruction for action in attempt.actions if action.instruction is not None]
            if not instructions:
                self._submit_read(attempt, engine)
            else:
                attempt.call = SimulatedCall(instructions, lambda: self._call_finished(attempt))
                self._world.watch.sessions.asks(attempt.call)
                engine.submit(attempt.call)
        except NotApplied as error:
            if attempt.call is not None:
                self._world.watch.sessions.told_not_applied(attempt.call)
            self._end(attempt, "refused", error)

    def _submit_read(self, attempt: Attempt, engine: ServingEngine) -> None:
        attempt.read = read = SimulatedRead(lambda: self._read_confirmed(attempt, read))
        attempt.floor = self._world.watch.consensus.last_committed
        if self._world.random.random() < 0.5 and engine.is_current():
            read.index = engine.applying.applied_index
            self._read_confirmed(attempt, read)
        else:
            engine.submit_read(read)

    # -- what comes of it

    def _give_up(self, attempt: Attempt) -> None:
        """The timeout of `exec` or `wait_read` passed, by the clock of the caller."""
        if attempt is not self._attempt:
            return
        engine = attempt.process.engine
        if attempt.read is not None:
            if engine.reads.withdraw(attempt.read):
                self._end(attempt, "timed out", None)
        elif attempt.call is not None and engine.calls.withdraw(attempt.call):
            self._settle(attempt, attempt.call, attempt.call.unsettled == 0)

    def _read_confirmed(self, attempt: Attempt, read: SimulatedRead) -> None:
        assert attempt is self._attempt, "a caller is woken once"
        if read.error is not None:
            self._end(attempt, "refused", read.error)
            return
        if read.index < attempt.floor:
            raise Violation(
                f"a read is served at {read.index}, and {attempt.floor} was committed when it was asked for"
            )
        # The caller's thread wakes a little later, and looks at the State then.
        attempt.process.life.later(self._world.random.randrange(1, 2000), lambda: self._look(attempt))

    def _look(self, attempt: Attempt) -> None:
        if attempt is self._attempt:
            replica = attempt.process.replica
            output = self._world.workload.read(replica.state, attempt.actions[0])
            self._end(attempt, "misread" if replica.is_suspect else "done", None, [output])

    def _call_finished(self, attempt: Attempt) -> None:
        call, process = attempt.call, attempt.process
        assert attempt is self._attempt and call is not None, "a caller is woken once"
        if call.error is not None:
            self._settle(attempt, call, isinstance(call.error, NotApplied))
        elif process.replica.is_suspect:
            self._end(attempt, "unknown", None)  # to the history: it took effect, but the answer may be wrong
        else:
            outcomes = self._world.watch.sessions.answered(process.engine, call)
            output_of = self._world.workload.output_of
            taken = [(a, o) for a, o in zip(attempt.actions, outcomes, strict=True) if o.rejection is None]
            if taken:
                self._world.report.counts["rejected"] += len(attempt.actions) - len(taken)
                attempt.actions = [action for action, _ in taken]
            self._end(attempt, "done" if taken else "rejected", None, [output_of(a, o.satisfied) for a, o in taken])

    def _settle(self, attempt: Attempt, call: SimulatedCall, is_not_applied: bool) -> None:
        """It ended without an outcome: for certain, or not."""
        if is_not_applied:
            self._world.watch.sessions.told_not_applied(call)
        self._end(attempt, "not applied" if is_not_applied else "unknown", call.error)

    def _end(self, attempt: Attempt, result: str, error: RaftError | None, outputs: Sequence[Any] = ()) -> None:
        """It is over; if it is done, each of what is left of it has an output."""
        world = self._world
        world.report.counts[result] += len(attempt.actions)
        self._note(f"{[action.input for action in attempt.actions]} {result} {[*outputs]} {error or ''}")
        if result in ("done", "unknown"):
            returned = world.schedule.now if result == "done" else math.inf
            for place, action in enumerate(attempt.actions):
                if action.is_judged:
                    output = outputs[place] if result == "done" else None
                    world.report.history.append(Operation(self._number, attempt.called, returned, action.input, output))
        if result in ("done", "rejected") and world.is_healed:
            self.served_since_heal += 1
        self._attempt = None
        self.start()

    def _note(self, what: str) -> None:
        self._world.schedule.note(f"c{self._number}", what)

    # -- what happens to the process that it is in; as a Caller

    def process_applied(self, process: Serving) -> None:
        """Was that what this caller waits for?"""
        attempt = self._attempt
        if attempt is not None and attempt.process is process and attempt.call is not None:
            self._world.watch.sessions.waits(process.engine, attempt.call)

    def process_resumed(self, process: Serving) -> None:
        """Act there at once, unless something is under way or all is over."""
        if not self.is_waiting and not self.is_stopping:
            self._plan += 1
            self._act(process)

    def process_ended(self, process: Serving) -> None:
        """Whoever waited in it will never know."""
        attempt = self._attempt
        if attempt is not None and attempt.process is process:
            self._end(attempt, "refused" if attempt.read is not None else "unknown", None)
