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
import weakref
from collections import deque
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from raftsvc.errors import (
    ApplyHaltedError,
    ConfigurationError,
    DivergedError,
    EvictedError,
    ForkedError,
    NodeFailedError,
    RaftError,
    ReadTimeoutError,
    StoppedError,
    SupersededError,
    UninitializedError,
)
from raftsvc.kv.events import Compacted, Event
from raftsvc.kv.freshness import Freshness, Reader, Shown
from raftsvc.kv.history import Cursor, Signal
from raftsvc.kv.leases import Keeper
from raftsvc.kv.pages import Value
from raftsvc.kv.queues import Item
from raftsvc.kv.state import KeyValueState
from raftsvc.kv.timekeeper import Timekeeper
from raftsvc.mainthread import do_elsewhere, is_main_thread
from raftsvc.results import Applied
from raftsvc.timeouts import check_timeout

logger = logging.getLogger("raftsvc.kv")

_LOOK_SECONDS = 30.0
"""Between two looks whether the node still works, though nobody was woken because it does not."""
_ASK_SECONDS = 5.0
_PAUSE_SECONDS = 0.5
_LEAST_SECONDS = 0.05

_FINAL = (ApplyHaltedError, DivergedError, EvictedError, ForkedError, StoppedError, SupersededError)
"""After these nothing is applied in this process any more.  Of others the class does not say whether they pass:
NodeFailedError is also what an attached process says while its owner is in trouble."""

Told = Callable[[Event], object]
T = TypeVar("T")


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

    def before_stop(self, function: Callable[[], object]) -> Callable[[], None]:
        """Have `function` called when the node is about to stop."""

    def propose(self, instruction: bytes, timeout: float = 10.0) -> Applied:
        """Replicate one instruction and return where in the log it took effect, and what the State said of it."""

    def propose_many(self, instructions: Iterable[bytes], timeout: float = 10.0) -> Sequence[Applied]:
        """Replicate several as one entry of the log, and return the same of each."""


class Watching:
    """What all stores on one State share to be told of changes, and to hold something."""

    longest_wait: float = _LOOK_SECONDS
    at_once: int = 128  # which take effect one after the other, while others wait

    def __init__(self, service: Any, state: KeyValueState, freshness: Freshness) -> None:
        self.service: Watched = service
        self.state = state
        self.freshness = freshness
        self._lock = threading.Lock()  # guards the three below; held for no I/O
        self._listens = False
        self._keeper: Keeper | None = None
        self._callers: Callers | None = None
        self._stopped_by: RaftError | None = None
        self.timekeeper = Timekeeper(service, state, self._over_for_a_thread)
        state.timekeeping = self.timekeeper.begin

    @classmethod
    def of(cls, service: Any, state: KeyValueState, freshness: Freshness) -> Watching:
        """The one of that State: it has one node as long as it lives."""
        found = state.companion
        if not isinstance(found, Watching):
            found = state.companion = cls(service, state, freshness)
        return found

    def callers(self) -> Callers:
        """Who calls functions; the same for all of the State."""
        with self._lock:
            if self._callers is None:
                self._callers = Callers(self)
            return self._callers

    def keeper(self) -> Keeper:
        """Who keeps the leases of this process; the same for all of the State."""
        if is_main_thread():
            return self._keeper or do_elsewhere(self.keeper, _ASK_SECONDS, NodeFailedError)
        self.listen()
        with self._lock:
            keeper = self._keeper
            if keeper is not None:
                return keeper
            self._keeper = keeper = Keeper(self)
        self.service.before_stop(keeper.close)
        return keeper

    def propose(self, instruction: bytes, timeout: float) -> Applied:
        """For the leases of this process, as the seven below."""
        return self.service.propose(instruction, timeout)

    def propose_many(self, instructions: Sequence[bytes], timeout: float) -> Sequence[Applied]:
        """By one entry of the log."""
        return self.service.propose_many(instructions, timeout)

    def fence_of(self, place: tuple[str, str, int], signal: Signal, timeout: float) -> int | None:
        """As this process applied it, which is after it was placed."""
        return self.state.fence_of(place, signal)

    def item_of(self, place: tuple[str, str, int], timeout: float) -> Item | None:
        """As this process applied it, which is after it was granted."""
        return self.state.item_of(place)

    def leave(self, place: str | tuple[str, str, int], signal: Signal) -> None:
        """The signal is not waited for any more, there."""
        with suppress(ForkedError):  # where it waits for nothing
            self.state.await_claims(place, signal, is_over=True)

    def await_claims(self, name: str, signal: Signal) -> None:
        """Have the signal set once something happens to claims on a name."""
        self.listen()
        self.state.await_claims(name, signal)

    def index(self) -> int:
        """The last entry that was applied whole."""
        return self.state.complete_index()

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
            error = event.error or self.service.err()
            self._stopped_by = error or StoppedError("this Service was stopped: nothing changes here any more")
        if event.error is not None or self._stopped_by is not None:
            self.state.wake_all()

    def wait_for(self, key: str, look: Callable[[], T], is_news: Callable[[T], bool], timeout: float) -> T:
        """What `look` shows of a key once that `is_news`, or the time is over.  Raises what `Service.err` says."""
        self.listen()
        ends_at = time.monotonic() + timeout
        while True:
            with Watch(self, key, 0, self.state.complete_index(), None) as changes:
                while True:
                    found = look()
                    left = ends_at - time.monotonic()
                    if is_news(found) or left <= 0:
                        return found
                    try:
                        changes.next(left)
                    except Compacted:
                        break

    def over(self) -> RaftError | None:
        """Why nothing will ever be applied here any more; None: it will, maybe later.

        A failure whose class does not say so is known once `listen` was called.
        """
        error = self.service.err()
        return error if isinstance(error, _FINAL) else self._stopped_by

    def _over_for_a_thread(self) -> RaftError | None:
        """As `over`, for who asks again and again, and need not have had anybody listen."""
        with suppress(RaftError):
            self.listen()
        return self.over()

    def cluster_id(self) -> str:
        """Of the cluster that this node belongs to.  Raises UninitializedError if it is in none."""
        found = self.service.status().get("cluster_id")
        if not isinstance(found, str):
            raise UninitializedError("this node belongs to no cluster yet, and knows no positions")
        return found

    def index_of(self, after: int | str) -> int:
        """The index that `after` says.  Raises Compacted if it is of another cluster, ConfigurationError if none is."""
        if isinstance(after, str):
            cluster, colon, digits = after.rpartition(":")
            if not colon or not digits.isascii() or not digits.isdigit() or len(digits) > 18:
                raise ConfigurationError(f"a position is an index, or what `Watch.position` said, not {after!r:.100}")
            if cluster != self.cluster_id():
                raise Compacted(f"{after} is a position in another cluster: list anew, and go on there", None)
            return int(digits)
        if not isinstance(after, int) or isinstance(after, bool) or not 0 <= after < 2**63:
            raise ConfigurationError(
                f"a position is an index, 0 or more, or what `Watch.position` said, not {after!r:.100}"
            )
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
        self._cursor = Cursor(prefix, self._signal, weakref.ref(self))
        # What was read and not given, and up to where that is: stored at once, for the main thread may be interrupted.
        self._page: tuple[deque[tuple[int, list[Event]]], int] = (deque(), after)
        self._taken = 0  # how many of the first entry's events were given one by one
        self._given = after
        self._is_closed = False

    def begin(self) -> None:
        """Look once: raises Compacted if it cannot go on from where it begins."""
        self._look()

    @property
    def index(self) -> int:
        """All that happened up to this entry was given: a watch after it, here or on another node, goes on."""
        units, after = self._page
        if units:
            return self._given
        return max(self._given, after, self._shared.state.place_of(self._cursor))

    @property
    def position(self) -> str:
        """`index` with the id of the cluster, to be kept elsewhere and given to `watch` as `after`."""
        return f"{self._shared.cluster_id()}:{self.index}"

    def next(self, timeout: float) -> list[Event]:
        """The events of the next entry that has some, all of them; none if there was none within `timeout` seconds.

        After single events were taken by iterating, the rest of their entry.
        """
        if not self._find(timeout):
            return []
        units, _ = self._page
        index, events = units[0]
        rest = events[self._taken :]
        units.popleft()
        self._taken = 0
        self._given = index
        return rest

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        """The next event, however long it takes; none once it was closed."""
        while not self._find(_LOOK_SECONDS):
            if self._is_closed:
                raise StopIteration
        units, _ = self._page
        index, events = units[0]
        event = events[self._taken]
        self._taken += 1
        if self._taken == len(events):
            units.popleft()
            self._taken = 0
            self._given = index
        return event

    def _find(self, timeout: float) -> bool:
        """Have the events of the next entry at hand; whether there are some within `timeout` seconds."""
        check_timeout(timeout)
        ends_at = time.monotonic() + timeout
        while not self._is_closed:
            if self._page[0]:
                return True
            self._look()
            if self._page[0]:
                continue
            error = self._shared.over()
            if error is not None:
                raise error
            remaining = ends_at - time.monotonic()
            if remaining <= 0 or not self._is_current(remaining):
                break
            most = _LOOK_SECONDS if self._max_age is None else max(self._max_age, _LEAST_SECONDS)
            self._signal.wait(min(ends_at - time.monotonic(), most))
        return False

    def _look(self) -> None:
        """Read on, or wait for more from now on."""
        self._signal.arm()
        if self._was_closed():
            return
        units, after = self._shared.state.advance(self._cursor, self._page[1], self._cut)
        self._page = deque(units), after
        if self._was_closed():
            self._leave()

    def _was_closed(self) -> bool:
        return self._is_closed

    def _is_current(self, seconds: float) -> bool:
        """Whether it is worth waiting: False if the time is over before this node was shown to be current."""
        if self._max_age is None:
            return True
        try:
            self._shared.freshness.read(lambda: None, self._max_age, min(seconds, _ASK_SECONDS))
        except ReadTimeoutError:
            if seconds < _ASK_SECONDS:
                return False
            raise
        return True

    def close(self) -> None:
        """End it: whoever waits in it returns.  `index` and `position` stay."""
        self._is_closed = True
        self._leave()
        self._signal.set()

    def _leave(self) -> None:
        with suppress(ForkedError):  # where it waits for nothing
            self._shared.state.leave(self._cursor)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Called:
    """A function that is called with what changes, and what it knows."""

    __slots__ = ("after", "cursor", "cut", "function", "is_listed", "known", "prefix", "untold")

    def __init__(self, function: Told, prefix: str, cut: int, signal: Signal) -> None:
        self.function = function
        self.prefix = prefix
        self.cut = cut
        self.cursor = Cursor(prefix, signal)
        self.after = 0
        self.is_listed = False  # else it has to be told what there is
        self.known: dict[str, int] = {}  # the version of each key, as it was told
        self.untold: deque[Event] = deque()

    def list(self, values: Mapping[str, Value], index: int) -> None:
        """Have it told what there is and was not told, or is no more."""
        cut, known = self.cut, self.known
        self.untold.extend(Event("delete", key[cut:], None, index, None, True) for key in known if key not in values)
        for key, value in values.items():
            if known.get(key) != value.version:
                self.untold.append(Event("set", key[cut:], value.data, value.version, None, True))
        self.after = index
        self.is_listed = True

    def note(self, event: Event) -> None:
        """It was told."""
        key = self.prefix[: self.cut] + event.key
        if event.value is None:
            self.known.pop(key, None)
        else:
            self.known[key] = event.index


class Callers:
    """The thread that calls functions with what changes.  Ends once there are none, or nothing will change here."""

    def __init__(self, shared: Watching) -> None:
        self._shared = shared
        self._lock = threading.Lock()  # guards the two below; held for no I/O
        self._called: list[_Called] = []
        self._is_served = False
        self._signal = Signal()

    def add(self, function: Told, prefix: str, cut: int) -> None:
        """Call it from now on, until it returns False.  Raises NodeFailedError if no thread can be started."""
        error = self._shared.over()
        if error is not None:
            raise error
        called = _Called(function, prefix, cut, self._signal)
        with self._lock:
            if not self._is_served:
                try:
                    threading.Thread(target=self._run, name="raftsvc-changes", daemon=True).start()
                except RuntimeError as failure:
                    raise NodeFailedError(f"no thread can be started to call functions: {failure}") from failure
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
                pause = self._serve(every)
            except BaseException as failure:  # of ours: whatever functions raise ends there
                _log("what changed could not be told; it is tried again", failure)
                pause = _PAUSE_SECONDS
            self._signal.wait(pause)

    def _serve(self, every: Sequence[_Called]) -> float:
        """Tell all what there is to tell now; returns for how long nothing else has to be done."""
        pause = _LOOK_SECONDS
        is_current = True
        if not all(called.is_listed for called in every):
            try:
                self._shared.service.wait_read(_ASK_SECONDS)
            except RaftError:  # as `err` says; those who were told what there is go on meanwhile
                is_current = False
                pause = _PAUSE_SECONDS
        for called in every:
            if called.is_listed or is_current:
                if self._read(called):
                    pause = 0.0
                self._tell(called)
        return pause

    def _read(self, called: _Called) -> bool:
        """Have more to tell; whether there may be more yet."""
        state = self._shared.state
        if not called.is_listed:
            called.list(*state.list_at(called.prefix, called.prefix[: called.cut]))
            return True
        try:
            units, called.after = state.advance(called.cursor, called.after, called.cut)
        except Compacted:
            called.is_listed = False
            return True
        for _, events in units:
            called.untold.extend(events)
        return bool(units)

    def _tell(self, called: _Called) -> None:
        while called.untold:
            event = called.untold.popleft()
            called.note(event)
            try:
                is_enough = called.function(event) is False
            except BaseException as failure:  # of the application's: there is nobody else to be told
                _log(f"{called.function!r} raised at {event.kind} of {event.key!r}, entry {event.index}", failure)
                continue
            if is_enough:
                with self._lock:
                    self._called.remove(called)
                self._shared.state.leave(called.cursor)
                return


def _log(text: str, failure: BaseException) -> None:
    with suppress(Exception):  # a handler of the application's may raise, and its changes are told on
        logger.error("%s", text, exc_info=failure)


class Mirror(Mapping[str, bytes]):
    """What is below a prefix, as this process knows it: a read-only mapping that is always as current as this node.

    It is a view of the State and holds nothing of its own, so a look takes some microseconds, no round and no
    memory, and there is nothing that could fall behind.  (In the main thread of a process, where a sync worker of
    gunicorn serves, another thread looks for it, as in all reads.  In a connected client it asks a member.)  `keys`,
    `values`, `items`, `copy` and iterating show one moment, of which they copy what they show; `len` counts.  See
    `KeyValue.mirror`.
    """

    __slots__ = ("_at_once", "_max_age", "_namespace", "_prefix", "_reader", "_state", "_timeout")

    def __init__(
        self,
        reader: Reader,
        at_once: Callable[[], Shown],
        state: KeyValueState | None,
        prefix: str,
        namespace: str,
        max_age: float | None,
        timeout: float,
    ) -> None:
        """Use `KeyValue.mirror`.

        at_once:   shows what is known, maybe not the latest.
        state:     that of this process, if it has one.
        namespace: what of `prefix` is no part of a key.
        """
        self._reader = reader
        self._at_once = at_once
        self._state = state
        self._prefix = prefix
        self._namespace = namespace
        self._max_age = max_age
        self._timeout = timeout

    def _read(self, look: Callable[[Shown], T]) -> T:
        if self._max_age is None:
            return look(self._at_once())
        return self._reader.read(look, self._max_age, self._timeout)

    def __getitem__(self, key: str) -> bytes:
        value = self._read(lambda shown: shown.get(self._prefix + key)) if isinstance(key, str) and key else None
        if value is None:
            raise KeyError(key)
        return bytes(value.data)

    def copy(self) -> dict[str, bytes]:
        """All of it, of one moment, in the order of the keys."""
        if self._state is not None:
            return self.copy_at()[0]
        return self._cut(self._read(lambda shown: shown.list(self._prefix, None, self._namespace)))

    def copy_at(self) -> tuple[dict[str, bytes], int]:
        """As `copy`, and the index that it is of.  Raises ConfigurationError in a connected client."""
        state = self._state
        if state is None:
            raise ConfigurationError("a connected client does not know of which index it is what a member shows")
        values, index = self._read(lambda _: state.list_at(self._prefix, self._namespace))
        return self._cut(values), index

    def _cut(self, values: Mapping[str, Value]) -> dict[str, bytes]:
        cut = len(self._prefix)
        return {key[cut:]: value.data for key, value in values.items()}

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
