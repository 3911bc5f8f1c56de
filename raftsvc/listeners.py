"""What an application is told of its node without asking: who leads, who belongs to the cluster, what is wrong.

Listeners are called by one thread of their own, never under a lock of the node, one event after
the other.  What they are told is the node as it is then: of changes that follow each other faster
than they are told, only what came of them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

from raftsvc.errors import NodeFailedError, RaftError
from raftsvc.formation import Membership
from raftsvc.mainthread import do_elsewhere, is_main_thread
from raftsvc.member.vitals import View

logger = logging.getLogger("raftsvc")

_PAUSE_SECONDS = 0.1
"""Between two looks whether there is a node."""
FAREWELL_SECONDS = 3.0
"""So long whatever is to be called before a Service stops may take, all of it together."""
_LOOK_SECONDS = 1.0
"""Between two looks at one that has nothing to tell."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something changed at this node; the other fields are as of then, whatever the kind.

    kind:        "leader": who leads, or whether anybody is known to; the first that a listener is told.
                 "members": who belongs to the cluster, and where it is reached.
                 "error": what `Service.err` says, or that it is over.
                 "stopped": the Service was stopped, or this node removed or superseded; the last.
    is_leader:   whether this node believed to lead: another may lead by the time that this is looked at.
    leader_addr: where the leader is reached; None if none is known.
    term:        the term of that.
    members:     addresses by member id.
    error:       what keeps this node from operating normally, or None.
    """

    kind: str
    is_leader: bool
    leader_addr: str | None
    term: int
    members: Mapping[int, str] = field(default_factory=dict)
    error: RaftError | None = None


Listener = Callable[[Event], object]


class Farewells:
    """What is called when a Service is about to stop, while it still works.  Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the three below; taken for a moment, and not by the main thread
        self._functions: dict[int, Callable[[], object]] = {}
        self._next = 0
        self._is_saying = False
        self._said = threading.Event()

    def add(self, function: Callable[[], object]) -> Callable[[], None]:
        """Have it called then, once; at once if that is over.  Returns what has it not called."""
        if is_main_thread():
            return do_elsewhere(partial(self.add, function), _LOOK_SECONDS, NodeFailedError)
        with self._lock:
            number, self._next = self._next, self._next + 1
            is_late = self._is_saying
            if not is_late:
                self._functions[number] = function
        if is_late:
            _call(function)

        def remove() -> None:
            self._functions.pop(number, None)

        return remove

    def say(self) -> None:
        """Call all, and return once they have returned, or after some seconds, whoever calls them."""
        with self._lock:
            is_first = not self._is_saying
            self._is_saying = True
            functions, self._functions = list(self._functions.values()), {}
        ends_at = time.monotonic() + FAREWELL_SECONDS
        if not is_first:
            self._said.wait(FAREWELL_SECONDS)
            return
        threads = [threading.Thread(target=_call, args=(each,), name="raftsvc-stop", daemon=True) for each in functions]
        try:
            with suppress(RuntimeError):  # no thread can be started: they are not called
                for thread in threads:
                    thread.start()
            for thread in threads:
                if thread.ident is not None:
                    thread.join(max(ends_at - time.monotonic(), 0.0))
        finally:
            self._said.set()


def _call(function: Callable[[], object]) -> None:
    try:
        function()
    except Exception as failure:  # of the application's, whatever it is: the Service stops
        logger.error("%r raised before this Service was stopped", function, exc_info=failure)


class Listeners:
    """Who is told, and the thread that does.  Thread-safe.

    errors: how many exceptions listeners raised; each was logged.
    """

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._lock = threading.Lock()  # who adds, and the thread that ends for want of listeners
        self._listeners: dict[int, tuple[Listener, list[View]]] = {}
        self._next = 0
        self._is_served = False
        self.errors = 0

    def add(self, listener: Listener) -> Callable[[], None]:
        """Have `listener` called with an Event from now on, the present first; returns what ends that.

        Raises NodeFailedError if no thread can be started; then it is not called.
        """
        if is_main_thread():
            return do_elsewhere(partial(self.add, listener), _LOOK_SECONDS, NodeFailedError)
        with self._lock:
            number = self._next
            self._next += 1
            if not self._is_served:
                try:
                    threading.Thread(target=self._run, name="raftsvc-listeners", daemon=True).start()
                except RuntimeError as error:
                    raise NodeFailedError(f"no thread can be started for listeners: {error}") from error
                self._is_served = True
            self._listeners[number] = listener, []

        def remove() -> None:
            self._listeners.pop(number, None)  # at once, without the lock that this thread may hold

        return remove

    def _run(self) -> None:
        membership = self._membership
        while True:
            with self._lock:
                numbers, listeners = list(self._listeners), list(self._listeners.values())
                if not listeners:
                    self._is_served = False
                    return
            node = membership.node
            if node is not None:
                view = node.vitals.await_change(min(listeners, key=lambda pair: len(pair[1]))[1], _LOOK_SECONDS)
            else:
                membership.stopped.wait(_PAUSE_SECONDS)
                view = View(error=membership.err())
            is_over = view.is_over or membership.stopped.is_set()
            for listener, told in listeners:
                self._tell(listener, told, view, is_over)
            if is_over:
                for number in numbers:
                    self._listeners.pop(number, None)

    def _tell(self, listener: Listener, told: list[View], now: View, is_over: bool) -> None:
        last = told[0] if told else View()
        kinds = []
        if not told or now.lead != last.lead:
            kinds.append("leader")
        if now.members != last.members:
            kinds.append("members")
        if now.error is not last.error:
            kinds.append("error")
        if is_over:
            kinds.append("stopped")
        told[:] = [now]
        for kind in kinds:
            event = Event(
                kind, now.is_leader, now.leader_addr, now.term, MappingProxyType(dict(now.members)), now.error
            )
            try:
                listener(event)
            except BaseException:  # whatever it is: others are told by this thread too
                self.errors += 1
                with suppress(Exception):  # of a handler of log records
                    logger.exception(
                        "a listener raised this when it was told of %r; it is told of what comes next", kind
                    )
