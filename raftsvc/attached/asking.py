"""What a worker has the owner do for people, or tell them: as JSON, with the very outcome that it has there.

    status    how the node is                        nothing is changed
    init, join, evict, transfer, backup              as the methods of a Service of these names
    store                                            has the State stored in the directory, where all of the user's may
                                                     read it, and tells of what entry it is

An owner answers when it knows, each on a thread of its own, of which there are few.  One that ends before it
answered leaves open whether it was done: that is said (`LostError`), and whoever asked asks the next owner.
An error is told by the name of its class, of which there is a closed set, and its message; nothing else of it
is rebuilt.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping

import raftsvc.errors
from raftsvc.attached.frames import MAX_PICTURE_BYTES
from raftsvc.errors import (
    ConfigurationError,
    FormingError,
    NodeFailedError,
    OverloadedError,
    RaftError,
    UninitializedError,
)
from raftsvc.member.attachment import (
    IS_REFUSED,
    IS_UNLIKE,
    WAITS_FOR_CALL,
    WAITS_FOR_OTHERS,
    WAITS_TO_START,
    Ask,
    Told,
    Wait,
)

logger = logging.getLogger("raftsvc.attached")

MAX_ANSWERING = 32
"""Questions of all workers that are being answered at once."""


class LostError(Exception):
    """The connection to the owner is over: whether what was asked is done is not known.

    was_sent: False if there was none, so that nobody was asked.
    """

    def __init__(self, was_sent: bool) -> None:
        super().__init__(was_sent)
        self.was_sent = was_sent


class UnansweredError(Exception):
    """No answer came in time.  was_sent: False if there was nobody to ask."""

    def __init__(self, was_sent: bool) -> None:
        super().__init__(was_sent)
        self.was_sent = was_sent


def _is_made_of_a_message(error: type[RaftError]) -> bool:
    return not any("__init__" in vars(each) for each in error.__mro__ if issubclass(each, RaftError))


_ERRORS: dict[str, type[RaftError]] = {
    name: each
    for name, each in vars(raftsvc.errors).items()
    if isinstance(each, type) and issubclass(each, RaftError) and _is_made_of_a_message(each)
}
"""What is rebuilt."""


def encode_result(result: Mapping[str, object]) -> bytes:
    """What was told, without what is no JSON."""
    data = json.dumps({"result": result}, default=str).encode()
    if len(data) > MAX_PICTURE_BYTES:
        return encode_error(NodeFailedError(f"what is told has {len(data)} bytes, which is too much"))
    return data


def encode_error(error: RaftError) -> bytes:
    """How it ended, by the nearest of its classes that can be told."""
    name = next((each.__name__ for each in type(error).__mro__ if each.__name__ in _ERRORS), "NodeFailedError")
    return json.dumps({"error": name, "message": str(error)[:100_000]}).encode()


def decode(data: bytes) -> dict[str, object]:
    """What was told; raises the error that was."""
    try:
        told = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NodeFailedError(f"what the owner of the directory told does not decode: {error}") from error
    if isinstance(told, dict) and isinstance(told.get("result"), dict):
        result: dict[str, object] = told["result"]
        return result
    if not isinstance(told, dict) or not isinstance(told.get("message"), str):
        raise NodeFailedError("what the owner of the directory told is no answer")
    raise _ERRORS.get(str(told.get("error")), NodeFailedError)(told["message"])


def reason_of(why: RaftError) -> int:
    """Why an owner has no node, for `Wait`."""
    if isinstance(why, FormingError):
        return WAITS_FOR_OTHERS
    return WAITS_FOR_CALL if isinstance(why, UninitializedError) else WAITS_TO_START


def why_of(wait: Wait) -> RaftError:
    """The error that says it."""
    if wait.reason == IS_UNLIKE:
        return ConfigurationError(wait.why)
    if wait.reason in (WAITS_TO_START, IS_REFUSED):
        return NodeFailedError(wait.why)
    return FormingError(wait.why) if wait.reason == WAITS_FOR_OTHERS else UninitializedError(wait.why)


class Questions:
    """Of one worker: those that are not answered yet.  Thread-safe."""

    def __init__(self, say: Callable[[Ask], bool]) -> None:
        """say: send it to the owner; False if there is no connection.  Called without any lock."""
        self._say = say
        self._told = threading.Condition()
        self._last = 0
        self._open: dict[int, bytes | None] = {}  # by context, with what was told

    def ask(self, what: str, arguments: Mapping[str, object], timeout: float) -> dict[str, object]:
        """What the owner tells.  Raises what it raised; LostError, UnansweredError."""
        deadline = time.monotonic() + timeout
        with self._told:
            self._last = context = self._last + 1
            self._open[context] = None
        try:
            said = {**arguments, "pid": os.getpid()}
            if not self._say(Ask(context, what, json.dumps(said).encode())):
                raise LostError(was_sent=False)
            with self._told:
                while (data := self._open.get(context, b"")) is None:
                    if not self._told.wait(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                        raise UnansweredError(was_sent=True)
            if not data:
                raise LostError(was_sent=True)
            return decode(data)
        finally:
            with self._told:
                self._open.pop(context, None)

    def hear(self, told: Told) -> None:
        """An answer came."""
        with self._told:
            if told.context in self._open:
                self._open[told.context] = told.result
                self._told.notify_all()

    def lose(self) -> None:
        """The connection is over."""
        with self._told:
            self._open.clear()
            self._told.notify_all()


class Desk:
    """Where an owner answers.  Thread-safe."""

    def __init__(self, do: Callable[[str, Mapping[str, object]], Mapping[str, object]]) -> None:
        """do: what is asked, by its name; may wait; raises RaftError."""
        self._do = do
        self._room = threading.BoundedSemaphore(MAX_ANSWERING)

    def answer(self, ask: Ask, tell: Callable[[Told], None]) -> None:
        """Have it answered, by another thread; `tell` may be called by this one."""
        if not self._room.acquire(blocking=False):
            tell(
                Told(ask.context, encode_error(OverloadedError("the owner of the directory is asked too much at once")))
            )
            return
        try:
            threading.Thread(target=self._run, args=(ask, tell), name="raftsvc-desk", daemon=True).start()
        except RuntimeError as error:
            self._room.release()
            tell(Told(ask.context, encode_error(NodeFailedError(f"no thread can be started: {error}"))))

    def _run(self, ask: Ask, tell: Callable[[Told], None]) -> None:
        try:
            tell(Told(ask.context, self._answer(ask)))
        finally:
            self._room.release()

    def _answer(self, ask: Ask) -> bytes:
        try:
            arguments = json.loads(ask.arguments)
            if not isinstance(arguments, dict):
                raise NodeFailedError(f"{ask.what} is asked without what it needs")
            deadline = arguments.pop("deadline", None)  # all processes of a host have one monotonic clock
            if isinstance(deadline, int | float):
                left = deadline - time.monotonic()
                if left < 0:
                    what = f"{ask.what} was asked for too late: nothing was done, for nobody waits any more"
                    raise NodeFailedError(what)
                if isinstance(arguments.get("timeout"), int | float):  # it may have lain in the socket for a while
                    arguments["timeout"] = min(arguments["timeout"], left)
            return encode_result(self._do(ask.what, arguments))
        except RaftError as error:
            return encode_error(error)
        except BaseException as error:  # of a thread of this desk, that tells what came of it in any case
            logger.exception("%s, which another process of this host asked for, failed", ask.what)
            return encode_error(NodeFailedError(f"{ask.what} failed: {error!r}"))
