"""What is certain of a request, by what became of each attempt at it: without time, threads or sockets.

A request goes to one member after the other until one answers.  It is lost where it may have been acted on and no
answer came, and what was lost once stays so, whatever others say later.
"""

from __future__ import annotations

from typing import NamedTuple

from raftsvc.errors import NotApplied, OutcomeUnknown, RaftError, UnknownKeyError
from raftsvc.member.sessions import Outcome, decode_outcome
from raftsvc.transport import Problem
from raftsvc.transport.refusals import CERTAIN, FINAL
from raftsvc.transport.visits import BRING, Visit, decode_place

PATIENCE_SECONDS = 3.0
"""How long one member is waited for at first, before another is asked: more than an election takes."""
_SHARE = 0.9
"""Of the time that is waited, which a member is told that it has, so that it answers while somebody hears it."""
_SPENT = 0.8
"""Who says after so much of the time that is waited that nothing came of it needed more, or is cut off."""


class NotSentError(Exception):
    """A request certainly reached nobody who acts on it.  is_key: nobody there knows the key."""

    def __init__(self, why: str, is_key: bool = False) -> None:
        super().__init__(why)
        self.is_key = is_key


class LostError(Exception):
    """No answer came that can be believed: it may have been acted on, or may yet be."""


class Answer(NamedTuple):
    """What came.  was_lost: some attempt before may have been acted on, too."""

    data: bytes
    was_lost: bool


class UnansweredError(Exception):
    """Time ran out, or nobody is left to ask.  was_lost: it may have been acted on; is_key: nobody knows the key."""

    def __init__(self, why: str, was_lost: bool, is_key: bool) -> None:
        super().__init__(why)
        self.was_lost = was_lost
        self.is_key = is_key

    def as_error(self, timeout: float) -> RaftError:
        """What a caller who brought something is told."""
        if self.was_lost:
            return OutcomeUnknown(f"no outcome within {timeout:g} s; it may have been applied, or may yet be: {self}")
        if self.is_key:
            return UnknownKeyError(str(self))
        return NotApplied(f"no member took it within {timeout:g} s; nothing was proposed: {self}")


class Request:
    """One request, and what became of it so far.

    why: it has no answer yet.
    """

    def __init__(self, kind: int, payload: bytes, of_store: bool = False, patience: float | None = None) -> None:
        """patience: how many seconds the first member is waited for, and others longer; None: some."""
        self._kind = kind
        self._payload = payload
        self._of_store = of_store
        self._patience = PATIENCE_SECONDS if patience is None else patience
        self._was_lost = False
        self._was_told = False
        self._wait = self._patience
        self._times_spent = 0
        self._is_hurried = False
        self.why = "there was no time to ask"

    def attempt(self, left: float) -> tuple[Visit, float]:
        """What the next member is asked if there are so many seconds left, and how many its answer is waited for."""
        self._wait = wait = min(left, self._patience)
        self._is_hurried = left < self._patience
        return Visit(self._kind, _SHARE * wait, self._payload, self._of_store), wait

    def failed(self, addr: str, error: Problem | NotSentError | LostError, seconds: float) -> None:
        """An attempt had no answer there, as was known after so many seconds; raises what is final."""
        if isinstance(error, Problem):
            self.why, self._was_told = f"{addr}: {error.detail or error.code}", True
            if seconds >= _SPENT * self._wait:
                # One is cut off, it may be; if another says so too, what is asked may take longer than they were given.
                self._times_spent += 1
                if self._times_spent % 2 == 0:
                    self._patience *= 2
            # Who reads wants an answer, whatever became of his attempts before.
            if error.code in FINAL and (self._kind != BRING or not self._was_lost):
                raise FINAL[error.code](error.detail) from error
            self._was_lost |= error.code not in CERTAIN
            return
        if isinstance(error, NotSentError) or not (self._was_told and self._is_hurried):
            self.why = str(error)  # else what a member said says more than that the rest of the time was too short
        if isinstance(error, LostError):
            self._was_lost = True
            self._patience *= 2

    def answered(self, data: bytes) -> Answer:
        """It has an answer."""
        return Answer(data, self._was_lost)

    def unanswered(self, is_key: bool = False) -> UnansweredError:
        """Nobody else is asked."""
        return UnansweredError(self.why, self._was_lost, is_key)


def outcome_of(answer: Answer) -> Outcome | None:
    """What came of an instruction that was brought; None if its session is not open, and it certainly had no effect.

    Raises OutcomeUnknown, also where that is not certain; MalformedError.
    """
    index, time_ms, said = decode_place(answer.data)
    outcome = decode_outcome(said, index, time_ms)
    if index:
        return outcome
    if answer.was_lost:
        raise OutcomeUnknown("the session of this process was closed, before or after it was applied")
    return None
