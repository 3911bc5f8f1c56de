"""Being told what changes in the store: by asking for more, or by being called.

A `Watch` is one reader's place in the history that this process keeps (`raftsvc.kv.events`).  `Callers` is the one
thread of a store that calls all functions that are to be told; each of them is given what there is first, and
whatever the history lost in between is made up for by listing anew.

Invariants:
- The position of a watch is that of the last entry of which all events were taken out of it.
- A function is called by one thread, under no lock, one event after the other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any, Protocol

from raftsvc.errors import (
    ConfigurationError,
    NodeFailedError,
    NotApplied,
    OverloadedError,
    RaftError,
    StoppedError,
    UninitializedError,
)
from raftsvc.kv.events import Compacted, Cursor, Event, Happened, Signal
from raftsvc.kv.freshness import Freshness
from raftsvc.kv.pages import Value
from raftsvc.kv.state import KeyValueState

logger = logging.getLogger("raftsvc.kv")

_LOOK_SECONDS = 30.0
"""Between two looks whether the node still works, though nobody was woken because it does not."""
_ASK_SECONDS = 5.0
_PAUSE_SECONDS = 0.5
_LEAST_SECONDS = 0.05

Told = Callable[[Event], object]


class Watched(Protocol):
    """What is needed of a Service."""

    def wait_read(self, timeout: float = 5.0) -> None:
        """Return once reads of the local State see every write that finished before this call."""

    def err(self) -> RaftError | None:
        """The serious error that keeps this node from operating normally, or None."""

    def status(self) -> dict[str, object]:
        """A picture of the node."""

    def add_listener(self, listener: Callable[[Any], object]) -> Callable[[], None]:
        """Have `listener` called whenever `err` changed."""


class Watching:
    """What all watches of a store share."""

    def __init__(self, service: Any, state: KeyValueState, freshness: Freshness) -> None:
        self.service: Watched = service
        self.state = state
        self.freshness = freshness
        self._lock = threading.Lock()  # guards the two below; held for no I/O
        self._listens = False
        self._callers: Callers | None = None
        self._is_stopped = False

    def callers(self) -> Callers:
        """Who calls functions; the same for all of the store."""
        with self._lock:
            if self._callers is None:
                self._callers = Callers(self)
            return self._callers

    def listen(self) -> None:
        """Have whoever waits be woken once the node stops or cannot go on."""
        with self._lock:
            if self._listens:
                return
            self._listens = True
        try:
            self.service.add_listener(self._on_change_of_the_node)
        except BaseException:
            self._listens = False
            raise

    def _on_change_of_the_node(self, event: Any) -> None:
        if event.kind == "stopped":
            self._is_stopped = True
        if event.error is not None or self._is_stopped:
            self.state.wake_all()

    def over(self) -> RaftError | None:
        """Why nothing will ever be applied here any more; None: it will, maybe later."""
        error = self.service.err()
        if isinstance(error, NotApplied) and not isinstance(error, (UninitializedError, OverloadedError)):
            return error
        return StoppedError("this Service was stopped: nothing changes here any more") if self._is_stopped else None

    def position(self, index: int) -> str:
        """`index` with the cluster's id: for whoever keeps it longer than this process lives."""
        return f"{self.service.status()['cluster_id']}:{index}"

    def index_of(self, after: int | str) -> int:
        """The index that `after` says.  Raises Compacted if it is of another cluster, ConfigurationError if none is."""
        if isinstance(after, str):
            cluster, colon, digits = after.rpartition(":")
            if not colon or not digits.isascii() or not digits.isdigit() or len(digits) > 20:
                raise ConfigurationError(f"a position is an index, or what `Watch.position` said, not {after!r}")
            if cluster != self.service.status()["cluster_id"]:
                raise Compacted(f"{after} is a position in another cluster: list anew, and go on there", 0)
            return int(digits)
        if not isinstance(after, int) or isinstance(after, bool) or after < 0:
            raise ConfigurationError(f"a position is an index, 0 or more, or what `Watch.position` said, not {after!r}")
        return after


class Watch:
    """Reads what happens below a prefix, from a position on: an iterator over `Event`, and a context manager.

    What it shows is applied here, so it is never wrong, and in the order of the log; all of it is shown, each change
    once.  It may be late on a node that is cut off, see `max_age` of `KeyValue.watch`.  For one thread at a time;
    `close` may be called by any.

    Raises Compacted where it fell behind what is kept, ReadTimeoutError by `max_age`, and what
    `Service.err` says once nothing is applied here any more, such as StoppedError.
    """

    def __init__(self, shared: Watching, prefix: str, cut: int, after: int, max_age: float | None) -> None:
        self._shared = shared
        self._cut = cut
        self._max_age = max_age
        self._signal = Signal()
        self._cursor = Cursor(prefix, after, self._signal)
        self._units: deque[tuple[int, list[Event]]] = deque()
        self._events: deque[Event] = deque()  # of the unit that is being given one by one
        self._unit = after
        self._given = after
        self._is_closed = False

    def begin(self) -> None:
        """Look once: raises Compacted if it cannot go on from where it begins."""
        self._signal.arm()
        self._units += self._shared.state.advance(self._cursor, self._cut)

    @property
    def index(self) -> int:
        """All that happened up to this entry was given: a watch after it, here or on another node, goes on."""
        if self._events or self._units:
            return self._given
        return max(self._given, self._shared.state.place_of(self._cursor))

    @property
    def position(self) -> str:
        """`index` with the id of the cluster, to be kept elsewhere and given to `watch` as `after`."""
        return self._shared.position(self.index)

    def next(self, timeout: float) -> list[Event]:
        """The events of the next entry that has some, all of them; none if there was none within `timeout` seconds.

        After single events were taken by iterating, the rest of their entry.
        """
        if not self._events and not self._find(timeout):
            return []
        events = [*self._events]
        self._events.clear()
        self._given = self._unit
        return events

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        """The next event, however long it takes; none once it was closed."""
        while not self._events:
            if not self._find(_LOOK_SECONDS) and self._is_closed:
                raise StopIteration
        event = self._events.popleft()
        if not self._events:
            self._given = self._unit
        return event

    def _find(self, timeout: float) -> bool:
        """Have the events of the next entry at hand; whether there are some within `timeout` seconds."""
        ends_at = time.monotonic() + timeout
        while not self._is_closed:
            if self._units:
                self._unit, events = self._units.popleft()
                self._events.extend(events)
                return True
            remaining = ends_at - time.monotonic()
            self._signal.arm()
            self._units += self._look(remaining)
            if self._units:
                continue
            error = self._shared.over()
            if error is not None:
                raise error
            if remaining <= 0:
                break
            most = _LOOK_SECONDS if self._max_age is None else max(self._max_age, _LEAST_SECONDS)
            self._signal.wait(min(remaining, most))
        return False

    def _look(self, remaining: float) -> Happened:
        state, cursor, cut = self._shared.state, self._cursor, self._cut
        if self._max_age is None:
            return state.advance(cursor, cut)
        timeout = max(min(remaining, _ASK_SECONDS), _LEAST_SECONDS)
        return self._shared.freshness.read(lambda: state.advance(cursor, cut), self._max_age, timeout)

    def close(self) -> None:
        """End it: whoever waits in it returns."""
        self._is_closed = True
        self._shared.state.leave(self._cursor)
        self._signal.set()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Called:
    """A function that is called with what changes, and what it knows."""

    __slots__ = ("cursor", "cut", "function", "known", "prefix", "signal")

    def __init__(self, function: Told, prefix: str, cut: int, signal: Signal) -> None:
        self.function = function
        self.prefix = prefix
        self.cut = cut
        self.signal = signal
        self.known: dict[str, int] = {}  # the version of each key, as it was told
        self.cursor: Cursor | None = None  # None: it has to be told what there is

    def differences(self, values: Mapping[str, Value], index: int) -> list[Event]:
        """What there is and was not told, or is no more."""
        cut, known = self.cut, self.known
        gone = [Event("delete", key[cut:], None, index, None) for key in known if key not in values]
        return gone + [
            Event("set", key[cut:], value.data, value.version, None)
            for key, value in values.items()
            if known.get(key) != value.version
        ]

    def note(self, event: Event) -> None:
        """It was told."""
        key = self.prefix[: self.cut] + event.key
        if event.value is None:
            self.known.pop(key, None)
        else:
            self.known[key] = event.index


class Callers:
    """The thread that calls functions with what changes.  Ends once there are none, or nothing will change here.

    errors: how often a function raised; each time is logged.
    """

    def __init__(self, shared: Watching) -> None:
        self._shared = shared
        self._lock = threading.Lock()  # guards the two below; held for no I/O
        self._called: list[_Called] = []
        self._is_served = False
        self._signal = Signal()
        self.errors = 0

    def add(self, function: Told, prefix: str, cut: int) -> None:
        """Call it from now on, until it returns False.  Raises NodeFailedError if no thread can be started."""
        called = _Called(function, prefix, cut, self._signal)
        with self._lock:
            if not self._is_served:
                try:
                    threading.Thread(target=self._run, name="raftsvc-changes", daemon=True).start()
                except RuntimeError as error:
                    raise NodeFailedError(f"no thread can be started to call functions: {error}") from error
                self._is_served = True
            self._called.append(called)
        self._signal.set()

    def _run(self) -> None:
        while True:
            self._signal.arm()
            with self._lock:
                every = [*self._called]
                if not every:
                    self._is_served = False
                    return
            if self._shared.over() is not None:
                with self._lock:
                    self._called.clear()
                continue
            try:
                pauses = [self._serve(called) for called in every]
            except Exception:
                logger.exception("what changed could not be told; it is tried again")
                pauses = [_PAUSE_SECONDS]
            self._signal.wait(min(pauses))

    def _serve(self, called: _Called) -> float:
        """Tell it what there is to tell now; returns for how long nothing else has to be done."""
        state = self._shared.state
        cursor = called.cursor
        try:
            if cursor is None:
                self._shared.service.wait_read(_ASK_SECONDS)
                values, index = state.list_at(called.prefix)
                events = called.differences(values, index)
                cursor = called.cursor = Cursor(called.prefix, index, self._signal)
            else:
                events = [event for _, some in state.advance(cursor, called.cut) for event in some]
                if not events:
                    return _LOOK_SECONDS
        except Compacted:
            called.cursor = None
            return 0.0
        except RaftError:  # not current, which `err` says
            return _PAUSE_SECONDS
        for event in events:
            called.note(event)
            if self._call(called.function, event) is False:
                with self._lock:
                    self._called.remove(called)
                break
        return 0.0

    def _call(self, function: Told, event: Event) -> object:
        try:
            return function(event)
        except (Exception, SystemExit):
            self.errors += 1
            logger.exception("%r raised at %s of %r, entry %d", function, event.kind, event.key, event.index)
            return None


class Mirror(Mapping[str, bytes]):
    """What is below a prefix, as this process knows it: a read-only mapping that is always as current as this node.

    It is a view of the State and holds nothing of its own, so a look takes some microseconds, no round and no
    memory, and there is nothing that could fall behind.  `keys`, `values`, `items`, `copy` and iterating show one
    moment, of which they copy what they show; `len` counts.  See `KeyValue.mirror`.
    """

    __slots__ = ("_freshness", "_max_age", "_prefix", "_state", "_timeout")

    def __init__(
        self, state: KeyValueState, freshness: Freshness, prefix: str, max_age: float | None, timeout: float
    ) -> None:
        self._state = state
        self._freshness = freshness
        self._prefix = prefix
        self._max_age = max_age
        self._timeout = timeout

    def _read(self, look: Callable[[], Any]) -> Any:
        return look() if self._max_age is None else self._freshness.read(look, self._max_age, self._timeout)

    def __getitem__(self, key: str) -> bytes:
        value = self._read(lambda: self._state.get(self._prefix + key))
        if value is None:
            raise KeyError(key)
        return bytes(value.data)

    def copy(self) -> dict[str, bytes]:
        """All of it, of one moment, in the order of the keys."""
        return self.copy_at()[0]

    def copy_at(self) -> tuple[dict[str, bytes], int]:
        """As `copy`, and the index that it is of."""
        values, index = self._read(lambda: self._state.list_at(self._prefix))
        cut = len(self._prefix)
        return {key[cut:]: value.data for key, value in values.items()}, index

    def __iter__(self) -> Iterator[str]:
        return iter(self.copy())

    def __len__(self) -> int:
        return len(self.copy())

    def keys(self) -> KeysView[str]:
        """Those of one moment."""
        return self.copy().keys()

    def values(self) -> ValuesView[bytes]:
        """Those of one moment."""
        return self.copy().values()

    def items(self) -> ItemsView[str, bytes]:
        """Those of one moment."""
        return self.copy().items()

    def __repr__(self) -> str:
        return f"<mirror of {self._prefix!r}>"
