"""What an application has done: it brings instructions, and is told what became of them.

Here is how long it waits, what is certain when it does not wait any longer, and what is
refused before anything is proposed.  Who carries an instruction on is the member's business
(`raftsvc.member.callers`); who may bring one, of how many at once, is `raftsvc.host.admission`'s.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from itertools import count, islice
from queue import Empty, SimpleQueue
from typing import NamedTuple

from raftsvc.errors import (
    InstructionTooLargeError,
    InvalidInstructionError,
    NodeFailedError,
    NotApplied,
    OutcomeUnknown,
    OverloadedError,
    RaftError,
    Rejected,
)
from raftsvc.formation import Membership
from raftsvc.host.admission import Admission
from raftsvc.mainthread import do_elsewhere, is_main_thread
from raftsvc.measures import APPLIED, NOT_APPLIED, OVERLOADED, REFUSED, UNKNOWN, Account
from raftsvc.member.envelopes import MAX_LISTED, encode_list
from raftsvc.member.participant import Participant
from raftsvc.member.sessions import MAX_WHOLE_BYTES, Outcome
from raftsvc.member.waiters import Call, Promise
from raftsvc.results import Applied
from raftsvc.timeouts import check_timeout

logger = logging.getLogger("raftsvc")

MAX_ASYNC = 1000
"""Calls of `propose_async` on their way at once; with a list more, about what one session holds."""

_IDLE_SECONDS = 60.0


class Proposals:
    """The instructions that one process brings to its node.  Thread-safe."""

    def __init__(self, membership: Membership, admission: Admission, max_instruction_bytes: int) -> None:
        self._membership = membership
        self._admission = admission
        self._max_bytes = max_instruction_bytes
        self._futures = _Futures(admission.usage.futures)

    def propose(self, instruction: bytes, timeout: float, what: str) -> Outcome:
        """Have one instruction applied; see `Service.propose`.  what: the method that was called."""
        node = self._ready_node(what)
        data = self._checked(instruction)
        check_timeout(timeout)
        if is_main_thread():
            return do_elsewhere(partial(self.propose, data, timeout, what), timeout, OutcomeUnknown)
        outcome = self._await(node, Call(data), timeout)
        assert isinstance(outcome, Outcome), "one instruction has one outcome"
        if outcome.rejection is not None:
            raise Rejected(outcome.rejection)
        return outcome

    def carry(self, call: Call, timeout: float) -> Outcome:
        """Have what a connected client brought applied, once more if it was before; raises what `propose` raises."""
        node = self._ready_node("propose")
        outcome = self._await(node, call, timeout)
        assert isinstance(outcome, Outcome), "what a client brings has one outcome"
        return outcome

    def propose_many(self, instructions: Iterable[bytes], timeout: float) -> list[Applied]:
        """Have several applied in one entry; see `Service.propose_many`."""
        node = self._ready_node("propose_many")
        listed = self._checked_list(instructions)
        check_timeout(timeout)
        if is_main_thread():
            return do_elsewhere(partial(self.propose_many, listed, timeout), timeout, OutcomeUnknown)
        if not listed:
            return []
        outcomes = self._await(node, Call(encode_list(listed), len(listed)), timeout)
        assert isinstance(outcomes, list), "a list has one outcome for each"
        return list(map(applied_of, outcomes))

    def propose_async(self, instruction: bytes, timeout: float) -> Future[Applied]:
        """Have one applied without waiting for it; see `Service.propose_async`."""
        node = self._ready_node("propose_async")
        data = self._checked(instruction)
        check_timeout(timeout)
        if is_main_thread():
            return do_elsewhere(partial(self.propose_async, data, timeout), timeout, OutcomeUnknown)
        return self._futures.begin(node, data, timeout)

    def stop(self) -> None:
        """The Service was stopped: what is on its way has its error, and nothing else comes."""
        self._futures.stop()

    def _ready_node(self, what: str) -> Participant:
        node = self._membership.require_node(what)
        node.check_able()
        return node

    def _checked(self, instruction: bytes) -> bytes:
        """The instruction as bytes that nobody can change any more; raises what is wrong with it."""
        # Most are bytes, and such a union is made anew each time.
        if type(instruction) is not bytes and not isinstance(instruction, bytes | bytearray | memoryview):
            raise InvalidInstructionError(f"an instruction is bytes, and this is {type(instruction).__name__}")
        data = bytes(instruction)
        self.check_size(data)
        return data

    def check_size(self, data: bytes) -> None:
        """Raise InstructionTooLargeError if it has more bytes than are allowed."""
        if len(data) > self._max_bytes:
            raise InstructionTooLargeError(
                f"the instruction has {len(data)} bytes, at most {self._max_bytes} are allowed"
            )

    def _checked_list(self, instructions: Iterable[bytes]) -> list[bytes]:
        if isinstance(instructions, bytes | bytearray | memoryview | str) or not isinstance(instructions, Iterable):
            raise InvalidInstructionError(
                f"propose_many takes several instructions, and this is one {type(instructions).__name__}"
            )
        listed = [self._checked(instruction) for instruction in islice(instructions, MAX_LISTED + 1)]
        if len(listed) > MAX_LISTED:
            raise InstructionTooLargeError(f"one list has at most {MAX_LISTED} instructions; make several of it")
        if len(encode_list(listed)) > MAX_WHOLE_BYTES:
            raise InstructionTooLargeError(f"the list is longer than {MAX_WHOLE_BYTES} bytes; make several of it")
        return listed

    def _await(self, node: Participant, call: Call, timeout: float) -> Outcome | list[Outcome]:
        began = time.monotonic()
        deadline = began + timeout
        self._admission.enter(deadline)
        error: RaftError | None = None
        try:
            node.callers.submit(call)
            if not node.callers.await_outcome(call, deadline):
                raise _error_of_late(call, timeout)
        except RaftError as late:
            error = late
            raise
        finally:
            ended = _name_of(call, error)
            self._admission.leave(self._admission.usage.proposals, ended, time.monotonic() - began)
        return _outcome_of(call)


def applied_of(outcome: Outcome) -> Applied:
    """What a caller is told of an instruction; of one that was refused, where it is one of many."""
    answer = outcome.answer if outcome.rejection is None else Rejected(outcome.rejection)
    return Applied(outcome.satisfied, outcome.entry_index, outcome.time_ms, answer, outcome.is_known)


def _outcome_of(call: Call) -> Outcome | list[Outcome]:
    if call.error is not None:
        raise call.error
    assert call.outcome is not None, "finished without an error"
    return call.outcome


def _name_of(call: Call, error: RaftError | None = None) -> str:
    """How a call ended, for those who count.  error: if it was given up, or not taken."""
    error = error or call.error
    outcome = call.outcome
    if error is None and outcome is not None:
        return REFUSED if isinstance(outcome, Outcome) and outcome.rejection is not None else APPLIED
    if error is None or isinstance(error, OutcomeUnknown):
        return UNKNOWN
    return OVERLOADED if isinstance(error, OverloadedError) else NOT_APPLIED


def _error_of_late(call: Call, timeout: float) -> RaftError:
    """What is certain of a call that was given up."""
    if call.unsettled:
        return OutcomeUnknown(f"not applied here within {timeout:g} s; it may have been, or may yet be: {call.stage}")
    return NotApplied(f"no leader took it within {timeout:g} s; nothing was proposed: {call.stage}")


class _Pending(NamedTuple):
    """What is to be done with a promise once it is finished, or its time is over."""

    promise: Promise
    future: Future[Applied]
    node: Participant
    timeout: float
    began: float


class _Futures:
    """The calls of `propose_async`, and the thread that completes their futures, each by its deadline at the latest.

    The thread ends when there was nothing to do for a while, and another begins with the next call.
    """

    def __init__(self, account: Account) -> None:
        self._lock = threading.Lock()  # guards all below; held for a moment, and nothing is called under it
        self._account = account
        self._ended: SimpleQueue[int | None] = SimpleQueue()  # None: one with an earlier deadline came
        self._pending: dict[int, _Pending] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._serials = count()
        self._is_served = False
        self._is_stopping = False
        self._idle_at = 0.0  # until then the thread waits for more

    def begin(self, node: Participant, data: bytes, timeout: float) -> Future[Applied]:
        """Send an instruction on its way."""
        future: Future[Applied] = Future()
        promise = Promise(data, next(self._serials), self._ended)
        began = time.monotonic()
        deadline = began + timeout
        with self._lock:
            is_full = len(self._pending) >= MAX_ASYNC
            self._idle_at = time.monotonic() + _IDLE_SECONDS
            if not is_full:
                self._pending[promise.serial] = _Pending(promise, future, node, timeout, began)
                is_earliest = not self._deadlines or deadline < self._deadlines[0][0]
                heapq.heappush(self._deadlines, (deadline, promise.serial))
                self._is_served = is_served = self._is_served or self._serve()
        if is_full:
            self._account.note(OVERLOADED, 0.0)
            future.set_exception(OverloadedError(f"{MAX_ASYNC} calls of propose_async are on their way already"))
            return future
        if not is_served:
            promise.error = NodeFailedError("no thread can be started, so nothing was proposed")
            self._complete(promise.serial)
            return future
        if is_earliest:
            self._ended.put(None)
        try:
            node.callers.submit(promise, leaves_work=True)
        except RaftError as error:
            if not promise.is_finished:  # else its outcome comes the usual way
                promise.error = error
                promise.wake()
        return future

    def _serve(self) -> bool:
        try:
            threading.Thread(target=self._run, name="raftsvc-futures", daemon=True).start()
        except RuntimeError:  # there can be no more
            return False
        return True

    def stop(self) -> None:
        """Have the thread end once nothing is on its way: the node fails what is."""
        self._is_stopping = True
        self._ended.put(None)

    def _run(self) -> None:
        while True:
            serial: int | None = None
            with suppress(Empty):
                serial = self._ended.get(timeout=self._seconds_left())
            if serial is not None:
                self._complete_safely(serial)
            is_late = self._take_late(self._complete_safely)
            if serial is None and not is_late:
                with self._lock:
                    if not self._pending and (self._is_stopping or time.monotonic() >= self._idle_at):
                        self._is_served = False
                        return

    def _complete_safely(self, serial: int) -> None:
        """Whatever is called when a future is done may raise anything; nobody else would complete the others."""
        try:
            self._complete(serial)
        except BaseException:
            logger.exception("what was to be done when a future of propose_async was complete raised this")

    def _seconds_left(self) -> float:
        with self._lock:
            deadlines = self._deadlines
            while deadlines and deadlines[0][1] not in self._pending:
                heapq.heappop(deadlines)
            if len(deadlines) > 2 * MAX_ASYNC:  # those of finished ones stay behind the earliest
                self._deadlines = deadlines = [d for d in deadlines if d[1] in self._pending]
                heapq.heapify(deadlines)
            return min(max(deadlines[0][0] - time.monotonic(), 0.0), _IDLE_SECONDS) if deadlines else _IDLE_SECONDS

    def _take_late(self, complete: Callable[[int], None]) -> bool:
        """Complete those whose time is over; whether there were any."""
        late = []
        now = time.monotonic()
        with self._lock:
            while self._deadlines and self._deadlines[0][0] <= now:
                late.append(heapq.heappop(self._deadlines)[1])
        for serial in late:
            complete(serial)
        return bool(late)

    def _complete(self, serial: int) -> None:
        """It is finished, or its time is over, or both, so that this comes twice."""
        with self._lock:
            pending = self._pending.pop(serial, None)
        if pending is None:
            return
        promise, future, node, timeout, began = pending
        error: RaftError | None = None
        try:  # also if it is finished: this thread is who was woken
            if not node.callers.await_outcome(promise, 0.0):
                error = _error_of_late(promise, timeout)
        except RaftError as unknown:
            error = unknown
        self._account.note(_name_of(promise, error), time.monotonic() - began)
        if future.done() or not future.set_running_or_notify_cancel():
            return  # nobody wants to know, or somebody completed what is not his
        try:
            if error is not None:
                raise error
            outcome = _outcome_of(promise)
            assert isinstance(outcome, Outcome), "one instruction has one outcome"
            if outcome.rejection is not None:
                raise Rejected(outcome.rejection)
            future.set_result(applied_of(outcome))
        except RaftError as refused:
            future.set_exception(refused)
