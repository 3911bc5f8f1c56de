"""Processes that hold no replica and use the cluster from outside, as `raftsvc.connect` does.

What is brought under which session and number, when another member is asked, and what is certain in the end is
decided by that code itself (`raftsvc.client.attempts`, `numbers`).  Simulated are the threads that call, and the way
to a member, on which requests and answers are late or lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any, Protocol

from raftsvc.client.attempts import Answer, LostError, NotSentError, Request, UnansweredError, outcome_of
from raftsvc.client.numbers import ClientSession, opened_of
from raftsvc.core.messages import MalformedError
from raftsvc.errors import NotApplied, OutcomeUnknown, RaftError
from raftsvc.member.envelopes import INSTRUCTION, wrap, wrap_client_open, wrap_close
from raftsvc.member.sessions import Outcome
from raftsvc.testing.invariants import Key, Violation, require
from raftsvc.testing.linearizability import Operation
from raftsvc.testing.schedule import MILLISECOND, SECOND, Lifetime
from raftsvc.testing.serving import Serving
from raftsvc.testing.visits import Told
from raftsvc.testing.workload import Action
from raftsvc.testing.world import World
from raftsvc.transport import Problem
from raftsvc.transport.visits import BRING, QUERY

_PAUSE = 20 * MILLISECOND
_NOTHING = Action(None, None)
_NO_END = 1 << 40


class Way(Protocol):
    """To the members, for whoever is outside."""

    world: World
    random: Random

    def serving(self) -> list[Serving]:
        """The processes that can be asked something."""

    def latency(self) -> int:
        """Of what goes one way, in microseconds."""

    def send(
        self, client: Connected, process: Serving, body: bytes, action: Action, tell: Callable[[Told], None]
    ) -> None:
        """Bring a request there, and what that tells back."""


class Asked:
    """One request on its way, to one process after the other until one answers."""

    def __init__(
        self,
        client: Connected,
        request: Request,
        deadline: int,
        done: Callable[[Answer | Exception, Told], None],
        action: Action = _NOTHING,
    ) -> None:
        """done: is told the answer, UnansweredError, or what is final; and of an answer how it came about."""
        self._client = client
        self._request = request
        self._deadline = deadline
        self._done = done
        self._action = action
        self._step = 0
        self._began = 0

    def go_on(self) -> None:
        """Ask who is next, if there is time."""
        client, way = self._client, self._client.way
        left = self._deadline - way.world.schedule.now
        if left <= 0:
            self._done(self._request.unanswered(), Told())
            return
        self._step = step = self._step + 1
        self._began = way.world.schedule.now
        visit, seconds = self._request.attempt(left / SECOND)
        process = client.contact()
        client.life.later(int(seconds * SECOND), lambda: self._failed(step, LostError("no whole answer in time")))
        if process is None or process.life.is_over:
            client.life.later(way.latency(), lambda: self._failed(step, NotSentError("there is nobody")))
        else:
            client.note(f"asks {process.name}")
            way.send(client, process, visit.encode(), self._action, lambda told: self._told(step, told))

    def _told(self, step: int, told: Told) -> None:
        if told.problem is not None:
            self._failed(step, told.problem)
        elif told.is_lost:
            self._failed(step, LostError("it ended before it answered"))
        elif step == self._step:  # else nobody waits for that any more
            self._step += 1
            self._done(self._request.answered(told.data), told)

    def _failed(self, step: int, error: Problem | NotSentError | LostError) -> None:
        if step != self._step:
            return
        self._step += 1
        self._client.leave()
        try:
            self._request.failed("there", error, (self._client.way.world.schedule.now - self._began) / SECOND)
        except RaftError as final:
            self._done(final, Told())
            return
        self._client.life.later(_PAUSE, self.go_on)


class Connected:
    """One process: whom it asks now, its session, and the threads that call."""

    def __init__(self, way: Way, number: int, callers: int, calls: int = _NO_END) -> None:
        """callers: so many threads; calls: so much does each before it ends."""
        self.way = way
        self.name = f"p{number}"
        self.life = Lifetime(way.world.schedule)
        self._contact: Serving | None = None
        self._session: ClientSession | None = None
        self._is_opening = False
        self._waiting: list[Callable[[], None]] = []
        self.callers = [Caller(self, f"{self.name}.{place}", calls) for place in range(callers)]

    def start(self) -> None:
        """Have its threads call."""
        self.note("starts, outside")
        for caller in self.callers:
            caller.start()

    def note(self, what: str) -> None:
        """Write a line of the trace."""
        self.way.world.schedule.note(self.name, what)

    def end(self) -> None:
        """It is gone without a word."""
        if not self.life.is_over:
            self.note("ends")
            self.life.end()
            for caller in self.callers:
                caller.ended()

    # -- whom it asks

    def contact(self) -> Serving | None:
        """Whom it asks now: the same as before, as long as that answers."""
        if self._contact is None:
            serving = self.way.serving()
            self._contact = self.way.random.choice(serving) if serving else None
        return self._contact

    def leave(self) -> None:
        """Ask another next time."""
        self._contact = None

    # -- the session

    def with_session(self, deadline: int, then: Callable[[ClientSession | NotApplied], None]) -> None:
        """Have `then` told the one that is open, or is opened now."""
        if self._session is not None:
            then(self._session)
        elif self.way.world.schedule.now >= deadline:
            then(NotApplied("no session was opened in time"))
        elif self._is_opening:
            self._waiting.append(lambda: self.with_session(deadline, then))
        else:
            self._is_opening = True
            nonce = self.way.random.getrandbits(63)
            request = Request(BRING, wrap_client_open(nonce))
            Asked(self, request, deadline, lambda answer, _: self._opened(answer, nonce, then)).go_on()

    def _opened(
        self, answer: Answer | Exception, nonce: int, then: Callable[[ClientSession | NotApplied], None]
    ) -> None:
        self._is_opening = False
        waiting, self._waiting = self._waiting, []
        if isinstance(answer, Answer):
            try:
                self._session = opened_of(answer.data, nonce)
            except MalformedError as error:
                raise Violation(f"sessions: {self.name} is told of a session what does not decode") from error
            self.note(f"has session {self._session.id}")
            then(self._session)
        else:
            then(NotApplied(str(answer)))
        for go_on in waiting:
            go_on()

    def forget(self, session: ClientSession) -> None:
        """It is not open any more."""
        if self._session is session:
            self._session = None

    def close(self) -> None:
        """Have the session closed, whoever still calls under it; the next call opens another."""
        session, self._session = self._session, None
        if session is not None:
            self.note("closes its session")
            deadline = self.way.world.schedule.now + SECOND
            request = Request(BRING, wrap_close(session.id, session.nonce))
            Asked(self, request, deadline, lambda answer, told: None).go_on()


class Caller:
    """A thread of a process outside: does one thing after the other, and remembers what it was told."""

    def __init__(self, client: Connected, name: str, calls: int) -> None:
        self._client = client
        self._name = name
        self._left = calls
        self._action = _NOTHING
        self._called = 0
        self._deadline = 0
        self._keys: list[Key] = []  # under which the instruction was brought so far
        self.is_waiting = False
        self.is_stopping = False
        self.is_resting = False
        self.served_since_heal = 0

    def start(self) -> None:
        """Do the next thing a little later."""
        world, rng = self._client.way.world, self._client.way.random
        if self._left > 0:
            self._client.life.later(int(rng.expovariate(1 / world.conditions.think_time)), self._act)
        else:
            self._client.end()

    def _act(self) -> None:
        if self.is_stopping:
            return
        world, rng = self._client.way.world, self._client.way.random
        self._left -= 1
        world.report.counts["operations"] += 1
        self._action = action = world.workload.next_action(rng, world.report.counts["operations"])
        self._called = world.schedule.now
        self._deadline = self._called + rng.choice((1, 5, 10, 20)) * SECOND
        self._keys.clear()
        self.is_waiting = True
        self._note(f"{action.input}")
        if action.instruction is None:
            Asked(self._client, Request(QUERY, b""), self._deadline, self._was_read, action).go_on()
        else:
            world.watch.sessions.brings(action.instruction)
            self._bring()

    # -- a read

    def _was_read(self, answer: Answer | Exception, told: Told) -> None:
        if isinstance(answer, Answer):
            self._end("misread" if told.is_suspect else "done", told.output)
        else:
            self._end("refused", error=answer)

    # -- a write

    def _bring(self) -> None:
        """Under the session that there is, as `Connection.propose` does until its time is over."""
        self._client.with_session(self._deadline, self._bring_under)

    def _bring_under(self, session: ClientSession | NotApplied) -> None:
        instruction = self._action.instruction
        taken = session.begin(0.0) if isinstance(session, ClientSession) else None
        if taken is None or not isinstance(session, ClientSession) or instruction is None:
            self._end_without_effect(NotApplied("there is no session, or too much has no outcome"))
            return
        number, low = taken
        key = session.id, session.nonce, number
        self._keys.append(key)
        request = Request(BRING, wrap(INSTRUCTION, *key, low, instruction))
        Asked(
            self._client, request, self._deadline, lambda answer, told: self._brought(answer, told, session, key)
        ).go_on()

    def _brought(self, answer: Answer | Exception, told: Told, session: ClientSession, key: Key) -> None:
        session.end(key[2])
        if not isinstance(answer, Answer):
            error = answer.as_error(0.0) if isinstance(answer, UnansweredError) else answer
            if isinstance(error, NotApplied):
                self._end_without_effect(error)
            else:
                self._end("unknown", error=error)
            return
        try:
            outcome = outcome_of(answer)
        except OutcomeUnknown as unknown:
            self._was_closed(session, key, told)
            self._end("unknown", error=unknown)
            return
        except MalformedError as malformed:
            raise Violation(f"sessions: {self._name} is told what does not decode") from malformed
        if outcome is None:
            self._was_closed(session, key, told)
            self._bring()
        elif told.is_suspect:
            self._end("unknown")  # to the history: it took effect, but the answer may be wrong
        else:
            self._end_with(outcome, key)

    def _was_closed(self, session: ClientSession, key: Key, told: Told) -> None:
        """The session is said not to take that number, which is in use: then it is not open any more."""
        require(
            not told.is_open,
            f"sessions: {self._name} is told that number {key[2]} of session {key[0]} is not taken, and that is open",
        )
        self._client.way.world.report.counts["sessions dropped"] += 1
        self._client.forget(session)

    def _end_with(self, outcome: Outcome, key: Key) -> None:
        world, action = self._client.way.world, self._action
        if action.instruction is not None:
            world.watch.sessions.told(key, action.instruction, outcome)
        if outcome.rejection is None:
            self._end("done", world.workload.output_of(action, outcome.satisfied))
        else:
            self._end("rejected")

    def _end_without_effect(self, error: RaftError) -> None:
        if self._action.instruction is not None:
            sessions = self._client.way.world.watch.sessions
            sessions.told_without_effect(self._action.instruction, list(self._keys))
        self._end("not applied", error=error)

    # -- the end

    def ended(self) -> None:
        """Its process is gone."""
        self._left = 0
        if self.is_waiting:
            self._end("refused" if self._action.instruction is None else "unknown")

    def _end(self, result: str, output: Any = None, error: Exception | None = None) -> None:
        world, action = self._client.way.world, self._action
        self.is_waiting = False
        world.report.counts[result] += 1
        world.report.counts["by connected clients"] += 1
        self._note(f"{action.input} {result} {output} {error or ''}")
        if result in ("done", "unknown") and action.is_judged:
            returned = world.schedule.now if result == "done" else math.inf
            world.report.history.append(Operation(self._name, self._called, returned, action.input, output))
        if result in ("done", "rejected") and world.is_healed:
            self.served_since_heal += 1
        # Once all is well it leaves the cluster to those who have to catch up, maybe over slow links.
        self.is_resting = self.served_since_heal >= 2
        if not self._client.life.is_over and not self.is_resting:
            self.start()

    def count_anew(self) -> None:
        """What it was served so far does not count."""
        self.served_since_heal = 0
        if self.is_resting:
            self.is_resting = False
            self.start()

    def _note(self, what: str) -> None:
        self._client.way.world.schedule.note(self._name, what)
