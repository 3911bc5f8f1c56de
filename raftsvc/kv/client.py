"""What an application calls: the key-value store of the whole cluster.

Proposes transactions and waits for their results, reads after `wait_read` or at
once.  Holds nothing of the cluster's, and needs of the Service no more than `propose` and
`wait_read`.
"""

from __future__ import annotations

import json
import math
import os
import random
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypeVar

from raftsvc.callables import check_function
from raftsvc.client.connection import Connection
from raftsvc.client.guest import Guest
from raftsvc.errors import ConfigurationError, NodeFailedError, RaftError, ReadTimeoutError, Rejected
from raftsvc.kv import instructions, transactions
from raftsvc.kv.aio import AsyncKeyValue
from raftsvc.kv.duty import Duty
from raftsvc.kv.freshness import Freshness, Reader, ReaderHere, check_max_age
from raftsvc.kv.holds import Claim
from raftsvc.kv.instructions import Code, Condition, Effect, Leased, Operation
from raftsvc.kv.leases import (
    Hold,
    Holding,
    Keeper,
    LostError,
    Wish,
    checked_data,
    checked_units,
    lease_ttl_ms,
    poll,
    wait_for_claims,
)
from raftsvc.kv.pages import Value
from raftsvc.kv.queues import Item
from raftsvc.kv.remote import RemoteStore
from raftsvc.kv.state import KeyValueState, check_readable, value_of
from raftsvc.kv.tickets import Ticket
from raftsvc.kv.watching import Mirror, Told, Watch, Watching
from raftsvc.mainthread import do_elsewhere, is_main_thread
from raftsvc.results import Applied
from raftsvc.timeouts import check_timeout

if TYPE_CHECKING:
    from raftsvc.recipes import (
        Barrier,
        Counter,
        Election,
        Jobs,
        Lease,
        Limit,
        Lock,
        Meeting,
        Party,
        Queue,
        ReadWriteLock,
    )

_FIRST_PAUSE_SECONDS = 0.002
_LONGEST_PAUSE_SECONDS = 0.25
_SHARED = "several have some of a queue or a meeting by one fence, so it shows nothing; of a queue, ask by the item"

_TOLD = "who is told of changes"

T = TypeVar("T")
ToldT = TypeVar("ToldT", bound=Told)


class Replication(Protocol):
    """What KeyValue needs of a Service."""

    def propose(self, instruction: bytes, timeout: float = 10.0) -> Applied:
        """Replicate one instruction and return where in the log it took effect, and what the State said of it."""

    def wait_read(self, timeout: float = 5.0) -> None:
        """Return once reads of the local State see every write that finished before this call."""


class RemoteReader(Reader, Holding, Protocol):
    """Who shows a store that others hold."""


class ConflictError(RaftError):
    """A condition did not hold, so the transaction took no effect.  Read again and decide anew.

    key:     the first key whose condition did not hold.
    version: the version that it had instead; 0 if it did not exist.
    """

    http_status = 409
    http_detail = "A condition did not hold, and nothing was changed; read again and decide anew."

    def __init__(self, key: str, version: int) -> None:
        has = f"was last written at version {version}" if version else "does not exist"
        super().__init__(f"the condition on {key!r} did not hold: it {has}")
        self.key = key
        self.version = version


class CounterError(Rejected):
    """What was to be counted has a value that is no decimal number of 64 bits, or would leave those; nothing was done.

    key: whose value it is.
    """

    http_status = 409
    http_detail = "What is stored there cannot be counted so, and nothing was changed."

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key!r} was not counted: {reason}")
        self.key = key


class QuotaExceeded(Rejected):
    """The store is as large as it may be (`kv.max_state_bytes`), and this would have it grow; nothing was done.

    Delete something, or raise the limit.
    """

    http_status = 507
    http_detail = "There is no room for that, and nothing was changed."

    def __str__(self) -> str:
        return f"{self.reason}: delete something, or raise kv.max_state_bytes"


class ClaimSizeError(Rejected):
    """A name is claimed by others who say that it has another number of units; nothing was claimed.

    That number may change once nobody claims any of it.

    size: how many it has.
    """

    http_status = 409
    http_detail = "What is claimed has another size."

    def __init__(self, size: int) -> None:
        super().__init__(f"what is claimed has {size} units, as those say who hold it or wait for it")
        self.size = size


class Claimant(NamedTuple):
    """Somebody who holds some of a name, or waits for it.

    fence: of the grant; 0: he waits.
    data:  what he says of himself.
    """

    fence: int
    data: bytes


Claimants: TypeAlias = list[Claimant]


class KeyValue:
    """A linearizable key-value store.  Every method is thread-safe.

    service: a Service, started with
    state:   this state, which nobody looks at where `start` returned a client of the server's node; or, of who has
             none, who shows it (`raftsvc.connect`).
    prefix:  all that is read and written is below it, see `namespace`.

    Writes raise what `Service.exec` raises, linearizable reads what
    `Service.wait_read` raises; `timeout` is in seconds in all.

    With `ttl`, in seconds from 0.001 to a hundred years, a key lives that long: never shorter, and longer by as much
    as nobody led meanwhile.  It is counted in log time, see `Service.log_time`.  A write without it
    ends what was said before.  Any other `ttl` raises ConfigurationError, a ValueError, and nothing is written.

    The `_stale` forms show whole transactions in their order, but maybe not the
    latest: of a node that is cut off, or was stopped, nothing bounds how old they are, and a key whose
    time is over is shown until this node has heard of that.  Given
    `max_age`, in seconds, a read shows nothing that was out of date longer than that: it reads
    at once as long as this node was shown to be current within that time, else it
    asks first, as `get` does, and raises ReadTimeoutError if nobody answers within `timeout`.
    So of many reads one in `max_age` seconds waits.  All reads raise ForkedError in a child that
    was forked from the process of the node, where nothing is applied any more.

    `kv[key]`, `kv[key] = value`, `del kv[key]` and `key in kv` are the linearizable forms with their default
    timeouts: each is a round through the cluster, as expensive as `get`, `set` and `delete`.  There is
    no `len` and no iteration, which would hide how much they ask for: `list` has a limit.
    """

    __iter__ = None  # else Python would try the items 0, 1, 2...

    def __init__(self, service: Replication, state: KeyValueState | RemoteReader, prefix: str = "") -> None:
        """Raises ConfigurationError for what are none of these."""
        if not isinstance(state, KeyValueState) and not callable(getattr(state, "read", None)):
            raise ConfigurationError(
                f"a KeyValue reads a KeyValueState, which of several States is a part, not {state!r:.100}"
            )
        if not all(callable(getattr(service, name, None)) for name in ("propose", "wait_read")):
            raise ConfigurationError(
                f"a KeyValue needs the Service that was started with its state, not {service!r:.100}"
            )
        _check_prefix(prefix)
        if isinstance(state, KeyValueState):
            if isinstance(service, Connection):  # this process has no node, and nobody keeps that one current
                state = RemoteStore.of(service, state)
            else:
                check_readable(state)
        self.service: Any = service
        """The Service that it was made with."""
        self._service = service
        self._state = state if isinstance(state, KeyValueState) else None
        self._prefix = prefix
        self._proposer: Replication | RemoteReader = service if isinstance(state, KeyValueState) else state
        self._reader: Reader
        self._watching: Watching | None = None
        if isinstance(state, KeyValueState):
            freshness = Freshness(service)
            self._reader = ReaderHere(freshness, state)
            self._watching = Watching.of(service, state, freshness)
        else:
            self._reader = state

    def namespace(self, prefix: str) -> KeyValue:
        """The same store, seen from below `prefix`: keys, prefixes, conditions and effects mean what begins with it.

        So `kv.namespace("app/").get("a")` is `kv.get("app/a")`, and a listing has keys without the prefix.
        It keeps nobody out and is no right: whoever has the whole store sees it too.  The
        list of who may join is the cluster's in every namespace.
        """
        _check_prefix(prefix)
        below = copy(self)
        below._prefix = self._prefix + prefix
        return below

    @property
    def is_here(self) -> bool:
        """Whether this process holds the State itself, and can watch; a connected client does not."""
        if self._state is not None:
            self._state.check_process()
        return self._watching is not None

    @property
    def aio(self) -> AsyncKeyValue:
        """This store for coroutines: `await store.aio.get("a")`.  Raises ForkedError."""
        self._holding()
        return AsyncKeyValue(self, self._perform_for_a_task, self._claim_for_a_task, self._checked)

    # -- writing

    def transaction(self, operations: Iterable[Operation], timeout: float = 10.0) -> int:
        """Do all effects among `operations` if all conditions among them hold; returns the version written.

        Conditions are judged by the state before the transaction, wherever they
        stand; effects happen in their order.

        Raises ConflictError if a condition does not hold, CounterError if an `incr` among them cannot count,
        QuotaExceeded if the store would grow over what it may have (`kv.max_state_bytes`), LostError if a key is to
        live with a lease that is over, or what it is to be done by (`kv.if_held`) is not held,
        TypeError or ValueError if an operation makes no sense or there are too many.
        """
        return self.perform(operations, timeout).index

    def perform(self, operations: Iterable[Operation], timeout: float = 10.0) -> Applied:
        """As `transaction`; returns what `Service.propose` does.

        Its `answer` is the number that the last `incr` among them made, or the id of the item that the last put into a
        queue did; of a transaction of nothing else than a `delete` or `touch` whether there was such a key; else True.
        """
        _check_several("operations", operations)
        return self._apply(list(operations), timeout)

    def _apply(self, operations: list[Operation], timeout: float) -> Applied:
        return self._propose(self._encoded(operations), operations, timeout)

    def _perform_for_a_task(
        self, operations: Iterable[Operation]
    ) -> tuple[Callable[[float], Any], Callable[[Rejected], RaftError | None]]:
        """What begins it, and what a Rejected means that comes of it."""
        _check_several("operations", operations)
        listed = list(operations)
        instruction = self._encoded(listed)
        begin = getattr(self._proposer, "propose_async", self._proposer.propose)
        return partial(begin, instruction), partial(_meaning_of, operations=listed)

    def _encoded(self, operations: list[Operation]) -> bytes:
        prefix = self._prefix
        return instructions.encode([_below(prefix, each) for each in operations] if prefix else operations)

    def _propose(self, instruction: bytes, operations: Sequence[Operation], timeout: float) -> Applied:
        """operations: those among its own that a refusal may be about."""
        try:
            return self._proposer.propose(instruction, timeout)
        except Rejected as rejected:
            error = _meaning_of(rejected, operations)
            if error is None:
                raise
        raise error

    def set(
        self,
        key: str,
        value: bytes | bytearray | memoryview,
        *conditions: Condition,
        ttl: float | None = None,
        lease: Leased | None = None,
        timeout: float = 10.0,
    ) -> int:
        """Give `key` this value if the conditions hold; returns its new version.  Raises like `transaction`.

        lease: what `lease` returned, and the key is gone with; None: with none, whatever was said before.
        """
        if conditions or ttl is not None or lease is not None:
            effect = instructions.set(key, value, ttl, lease)
            return self.transaction([*instructions.only_conditions(conditions), effect], timeout)
        return self._propose(instructions.encode_set(key, value, self._prefix), [], timeout).index

    def set_json(
        self,
        key: str,
        value: object,
        *conditions: Condition,
        ttl: float | None = None,
        lease: Leased | None = None,
        timeout: float = 10.0,
    ) -> int:
        """Like `set`, of the JSON form of `value`; raises TypeError or ValueError if it has none."""
        data = json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
        return self.set(key, data, *conditions, ttl=ttl, lease=lease, timeout=timeout)

    def touch(self, key: str, ttl: float | None, *conditions: Condition, timeout: float = 10.0) -> bool:
        """Have `key` live for `ttl` seconds from now on, None: until it is deleted; returns whether there is one.

        Value and version stay as they are.  Raises like `transaction`.
        """
        operations = [*instructions.only_conditions(conditions), instructions.touch(key, ttl)]
        return bool(self._apply(operations, timeout).answer)

    def incr(self, key: str, delta: int = 1, initial: int = 0, ttl: float | None = None, timeout: float = 10.0) -> int:
        """Add `delta` to the number that `key` has, and return what it became.  One write, exactly once.

        initial: what a key counts for that does not exist.
        ttl:     for how long it lives if it is made here; one that exists keeps the time that it has.

        The value is the number in decimal, of 64 bits with its sign, and can be set and read like any other.
        Raises CounterError if it is something else or the sum is too large, ConfigurationError if an argument is.
        """
        answer = self._apply([instructions.incr(key, delta, initial, ttl)], timeout).answer
        assert isinstance(answer, int), "the cluster keeps an int"
        return answer

    def delete(self, key: str, *conditions: Condition, timeout: float = 10.0) -> bool:
        """Have no such key, if the conditions hold.  Returns whether there was one.  Raises like `transaction`."""
        return bool(self._apply([*instructions.only_conditions(conditions), instructions.delete(key)], timeout).answer)

    def update(
        self,
        key: str,
        change: Callable[[bytes | None], bytes | None],
        ttl: float | None = None,
        timeout: float = 10.0,
    ) -> Value | None:
        """Replace the value of `key` by what `change` makes of it, whoever else writes; returns what it is now.

        change: called with the value, None: there is no such key; returns the new one, None: there shall be none.
                It is called again whenever another writer came first, so it should do nothing else.
        ttl:    of what is written; without it what is written lives until it is deleted.

        After each conflict it waits, by chance and longer each time.  Raises ConflictError if there was one after
        another until `timeout` was over: nothing was changed.  Else like `get` and `set`.  Where
        many count, `incr` is far cheaper.
        """
        if not callable(change):
            raise TypeError(f"change is called with the value that there is, which {change!r:.100} cannot be")
        instructions.ttl_ms_of(ttl)
        check_timeout(timeout)
        ends_at = time.monotonic() + timeout
        value = self.get(key, timeout)
        pause = _FIRST_PAUSE_SECONDS
        while True:
            data = change(None if value is None else value.data)
            is_as_read = instructions.if_not_modified(key, value.version if value is not None else 0)
            remaining = max(ends_at - time.monotonic(), 0.0)
            try:
                if data is not None:
                    version = self.set(key, data, is_as_read, ttl=ttl, timeout=remaining)
                    return Value(bytes(data), version)
                if value is not None:
                    self.delete(key, is_as_read, timeout=remaining)
                return None
            except ConflictError:
                wait = random.uniform(0.0, pause)
                if time.monotonic() + wait >= ends_at:
                    raise
            time.sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            if self._state is not None:
                value = self.get_stale(key)  # the refusal was applied here, and with it what came before it
            else:
                value = self.get(key, max(ends_at - time.monotonic(), 0.0))

    # -- reading

    def get(self, key: str, timeout: float = 5.0, *, max_age: float | None = None) -> Value | None:
        """The value of `key`, no older than this call, or than `max_age`; None if it does not exist."""
        name = _name(self._prefix, key)
        state = self._state
        if max_age is None and state is not None and not is_main_thread():  # as below, without the detour, as most are
            self._service.wait_read(timeout)
            return value_of(state, name)
        return self._reader.read(lambda shown: shown.get(name), max_age, timeout)

    def get_stale(self, key: str, max_age: float | None = None, timeout: float = 5.0) -> Value | None:
        """The value of `key` as this node knows it; with `max_age` not older than that."""
        if max_age is not None:
            return self.get(key, timeout, max_age=max_age)
        return self._reader.present.get(_name(self._prefix, key))

    def get_many(self, keys: Iterable[str], timeout: float = 5.0, *, max_age: float | None = None) -> dict[str, Value]:
        """The values of those `keys` that exist, all of one moment no earlier than this call, or than `max_age` ago."""
        names = _names(self._prefix, keys)
        return self._without_prefix(self._reader.read(lambda shown: shown.get_many(names), max_age, timeout))

    def get_many_stale(
        self, keys: Iterable[str], max_age: float | None = None, timeout: float = 5.0
    ) -> dict[str, Value]:
        """The values of those `keys` that exist, all of one moment, as this node knows them; as `get_stale`."""
        if max_age is not None:
            return self.get_many(keys, timeout, max_age=max_age)
        return self._without_prefix(self._reader.present.get_many(_names(self._prefix, keys)))

    def get_json(self, key: str, default: Any = None, timeout: float = 5.0, *, max_age: float | None = None) -> Any:
        """What the value of `key` says as JSON, or `default` if it does not exist; ValueError if it is no JSON.

        `get(key).json()` says the same, and has the version beside it.
        """
        value = self.get(key, timeout, max_age=max_age)
        return default if value is None else value.json()

    def list(
        self,
        prefix: str = "",
        timeout: float = 5.0,
        *,
        limit: int | None = None,
        after: str = "",
        max_age: float | None = None,
        max_bytes: int | None = None,
    ) -> dict[str, Value]:
        """Every key that starts with `prefix`, in order, all of one moment no earlier than this call.

        limit:   the first so many, and
        after:   only what comes after this key: give the last one of a page to get the next.  Each page is of
                 a moment of its own.
        max_age: of a moment no earlier than so many seconds ago.
        max_bytes: no more once their values have more than so many bytes: the last may be the one by which they do.
                 What a connected client is told has 3 MB at most by the socket of a directory, else 64 MiB: Rejected.
        """
        _check_limit(limit)
        _check_limit(max_bytes)
        name, start = _name(self._prefix, prefix, "a prefix"), _name(self._prefix, after)
        found = self._reader.read(lambda shown: shown.list(name, limit, start, max_bytes), max_age, timeout)
        return self._without_prefix(found)

    def list_stale(self, prefix: str = "", max_age: float | None = None, timeout: float = 5.0) -> dict[str, Value]:
        """Every key that starts with `prefix`, in order, all of one moment, as this node knows them; as `get_stale`."""
        if max_age is not None:
            return self.list(prefix, timeout, max_age=max_age)
        name = _name(self._prefix, prefix, "a prefix")
        return self._without_prefix(self._reader.present.list(name, None, self._prefix))

    def list_at(
        self,
        prefix: str = "",
        timeout: float = 5.0,
        *,
        limit: int | None = None,
        after: str = "",
        max_age: float | None = None,
    ) -> tuple[dict[str, Value], int]:
        """As `list`, and the index that it is of: a `watch` after that goes on where this ends, and misses nothing.

        Of several pages a watch goes on after the index of the first: each is of a moment of its own.
        """
        _check_limit(limit)
        name, start = _name(self._prefix, prefix, "a prefix"), _name(self._prefix, after)
        shared = _watching_of(self._watching)
        found, index = shared.freshness.read(lambda: shared.state.list_at(name, start, limit), max_age, timeout)
        return self._without_prefix(found), index

    def _without_prefix(self, found: dict[str, Value]) -> dict[str, Value]:
        length = len(self._prefix)
        return {key[length:]: value for key, value in found.items()} if length else found

    # -- being told

    def watch(
        self, prefix: str = "", after: int | str | None = None, timeout: float = 5.0, *, max_age: float | None = None
    ) -> Watch:
        """Read what changes below `prefix`, key by key, in the order of the log: an iterator over `kv.Event`.

        after:   what happened up to there is left out: an index, that of `list_at` or of a write; or a text that
                 `Watch.position` said, which may have been kept anywhere.  None: what happened before this
                 call is left out, and `timeout` is how long it may take to find out what that is.
        max_age: while nothing happens the others are asked every so many seconds whether this node is current;
                 if nobody confirms it, waiting raises ReadTimeoutError.  None: a node that is cut off
                 shows nothing new, and says so in `Service.err`.

            with store.watch("jobs/", after=index) as changes:
                for event in changes:
                    print(event.kind, event.key, event.value)

        Every change is shown, once, of this and of any other process: writes, deletes, and keys whose time is over, as
        they took effect here.  `touch` changes no value and is not shown, and of what one entry of the log does to a
        key (a transaction, or several that were written together) only what comes of it.  `Watch.next(timeout)`
        returns all events of an entry at once, and waits no longer than it is told; iterating waits until `close`.
        It takes a thread for as long as it waits, which `max_waiting` does not count, and little else: writes of
        other keys do not wake it.  `watch("leader")` shows "leader-2" too: have prefixes end by a separator.

        Raises Compacted, at once or later, if some of what comes after `after` is not kept here any more: list anew
        with `list_at`.  Kept is what `KeyValueState` was told to keep, by each process.
        """
        check_timeout(timeout)
        if is_main_thread():
            again = partial(self.watch, prefix, after, timeout, max_age=max_age)
            return do_elsewhere(again, timeout, ReadTimeoutError)
        name = _name(self._prefix, prefix, "a prefix")
        check_max_age(max_age)
        shared = _watching_of(self._watching)
        if after is None:
            self._service.wait_read(timeout)
            index = shared.state.complete_index()
        else:
            index = shared.index_of(after)
        shared.listen()
        watch = Watch(shared, name, len(self._prefix), index, max_age)
        watch.begin()
        return watch

    def on_change(self, prefix: str = "") -> Callable[[ToldT], ToldT]:
        """Have a function called with each `kv.Event` below `prefix`, what there is first, until it returns False.

            @store.on_change("flags/")
            def changed(event):
                flags[event.key] = event.value

        What there is, once this node is current, comes as one "set" for each key.  Where what happened is not kept
        any more, such as after this node was far behind, it is told only what came of that, a "delete" for what is
        gone among it.  Both have `is_listed`, and indexes in no order: versions, and for what is gone
        that of the listing.

        One thread calls all functions of a process, one after the other, under no lock: they may use the store, and
        hold up the others while they do.  Each costs an entry in memory for each key below its prefix.  What one raises
        is logged, and the next event comes.  It ends with the node; on one that is stopped it raises StoppedError.

        In a command of a framework, or the parent of a reloader, which are clients of their server's node, nothing is
        called, as the log says: so an application that has it called can be loaded there.
        """
        name = _name(self._prefix, prefix, "a prefix")
        if isinstance(self._service, Guest):
            self._service.pass_over(f"what is to be told of changes below {name!r}")
            return partial(check_function, what=_TOLD)
        shared = _watching_of(self._watching)
        shared.state.check_process()

        def call(function: ToldT) -> ToldT:
            check_function(function, _TOLD)

            def add() -> None:
                shared.listen()
                shared.callers().add(function, name, len(self._prefix))

            if is_main_thread():
                do_elsewhere(add, 5.0, NodeFailedError)
            else:
                add()
            return function

        return call

    def mirror(self, prefix: str = "", *, max_age: float | None = None, timeout: float = 5.0) -> Mirror:
        """What is below `prefix`, as a mapping of bytes that is always as current as this node: see `kv.Mirror`.

        For what is looked at for every request, such as flags: `flags = store.mirror("flags/")`, and later
        `flags.get("new-page")`.  It shows what the `_stale` forms show, and with `max_age` what `get` shows with that.
        In a connected client, which holds nothing, each look asks a member: it takes a round, and may raise
        ReadTimeoutError after `timeout` seconds, and Rejected where there is more than `Connection.query` returns.
        """
        check_max_age(max_age)
        check_timeout(timeout)
        self._holding()
        name, reader = _name(self._prefix, prefix, "a prefix"), self._reader
        at_once = partial(reader.stale, timeout) if isinstance(reader, RemoteStore) else lambda: reader.present
        return Mirror(reader, at_once, self._state, name, self._prefix, max_age, timeout)

    # -- holding something

    def _holding(self) -> Holding:
        """Through whom this process holds something; raises ForkedError in a child of the process of the node."""
        if self._state is not None:
            self._state.check_process()
        remote: Any = self._reader
        return remote if self._watching is None else self._watching

    def _checked(self, kind: str, name: str, ttl: float = 15.0, data: bytes | None = None) -> str:
        """The name that is given to a recipe; raises TypeError or ValueError if something makes no sense."""
        self._holding()
        _claimed(self._prefix, f"{kind}:{instructions.checked_key(_name('', name, 'a name'))}")
        lease_ttl_ms(ttl)
        checked_data(data)
        return name

    def claim(
        self,
        name: str,
        *,
        size: int = 1,
        units: int = 1,
        ttl: float = 15.0,
        data: bytes | None = None,
        together: bool = False,
        blocking: bool = True,
        timeout: float | None = None,
    ) -> Hold | None:
        """Hold `units` of a name that has `size` of them, once they can be had: what locks and the like are made of.

        ttl:      in seconds: so long after this process died, or was cut off, others have what it held.  It is renewed
                  as long as the process runs and is heard.  A second at least; what is to outlive that a leader
                  is lost and another elected has five times `election_timeout` of `start`, or more.
        data:     at most 1,024 bytes, shown by `claims`; None: the names of this host and process.
        together: True: it is granted once `size` wait for it so, to all of these at once and by one fence.
        blocking: False: now or not at all.
        timeout:  in seconds; None: wait for however long it takes.  In less time than the cluster takes to answer it is
                  None, or NotApplied, though it is free.

        Returns what is held, or None if it was not granted in time.  Who comes first is served first.
        As long as `Hold.lost` is not set, nobody else holds these units, by clocks that run as fast as each other
        within a twentieth; a process that is frozen finds out when it goes on, and what it does in between only
        `Hold.fence` can keep out: `kv.if_held` in a transaction, or a resource that refuses lower ones than it saw.

        Raises ClaimSizeError if others claim it in another size, QuotaExceeded, NotApplied if the cluster could not be
        asked.  Whatever it raises, and where it returns None, nothing is held, or not for long: who is not told that he
        may have it does not renew it.
        """
        full = _claimed(self._prefix, name)
        if not isinstance(together, bool) or (together and units != 1):
            raise ConfigurationError(f"together is True, with units=1, or False, not {together!r:.100}")
        seconds = _seconds_to_wait(blocking, timeout)
        kind = transactions.MEETING if together else transactions.UNITS
        wish = Wish(full, *checked_units(size, units), checked_data(data), lease_ttl_ms(ttl), blocking, kind)
        return self._claimed_by(lambda keeper: keeper.claim(wish, time.monotonic() + seconds))

    def _claim_for_a_task(
        self,
        begun: Callable[[Callable[[], None]], object],
        name: str,
        *,
        size: int = 1,
        ttl: float,
        data: bytes | None,
        blocking: bool,
        timeout: float | None,
    ) -> Hold | None:
        """As `claim`; `begun` is given what has it given up."""
        seconds = _seconds_to_wait(blocking, timeout)
        terms = *checked_units(size, 1), checked_data(data), lease_ttl_ms(ttl), blocking, transactions.UNITS
        wish = Wish(_claimed(self._prefix, name), *terms)
        return self._claimed_by(lambda keeper: keeper.claim(wish, time.monotonic() + seconds, begun))

    def _claimed_by(self, claim: Callable[[Keeper], T]) -> T:
        try:
            return claim(self._holding().keeper())
        except Rejected as rejected:
            error = _meaning_of(rejected, [])
            if error is None:
                raise
        raise error

    def take(
        self,
        name: str,
        *,
        within: float | None = None,
        ttl: float = 15.0,
        data: bytes | None = None,
        blocking: bool = True,
        timeout: float | None = None,
    ) -> tuple[Hold, Item] | None:
        """Be handed out the first item of a queue, by its whole name, that nobody has: what `queue` is made of.

        within: in seconds: so long after it was handed out it is given back; None: as long as the process is heard.
        The rest is as with `claim`: what it returns is held, until the hold is released (the item is given back),
        is lost (it is, too), or the item is done with by `raftsvc.kv.instructions.ack`.
        """
        full = instructions.checked_queue(_claimed(self._prefix, name))
        seconds = _seconds_to_wait(blocking, timeout)
        terms = checked_data(data), lease_ttl_ms(ttl), blocking, transactions.ITEMS
        wish = Wish(full, transactions.MAX_UNITS, 1, *terms)
        limit = None if within is None else instructions.ttl_ms_of(within) / 1000
        return self._claimed_by(lambda keeper: keeper.take(wish, limit, time.monotonic() + seconds))

    def items(self, name: str, timeout: float = 5.0, *, max_age: float | None = None) -> tuple[int, int]:
        """How many items of a queue, by its whole name, nobody has, and how many somebody.

        As of a moment no earlier than this call, or than `max_age` seconds ago.
        """
        full = _claimed(self._prefix, name)
        return self._reader.read(lambda shown: shown.item_counts(full), max_age, timeout)

    def claims(self, name: str, timeout: float = 5.0, *, max_age: float | None = None) -> Claimants:
        """Who holds some of a name, then who waits for it, in the order in which they came; see `claim`.

        As of a moment no earlier than this call, or than `max_age` seconds ago.
        """
        full = _claimed(self._prefix, name)
        found = self._reader.read(lambda shown: shown.claims(full), max_age, timeout)
        return _claimants(found)

    def wait_claims(self, name: str, known: Claimants, timeout: float = 30.0) -> Claimants:
        """As `claims`, of this node alone, once that is something else than `known`, or `timeout` seconds are over.

        Of a node that is cut off it is what was; raises what `Service.err` says once nothing is applied here any more.
        A connected client asks a member four times a second, of a moment no earlier than that.
        """
        full = _claimed(self._prefix, name)
        check_timeout(timeout)
        if not isinstance(known, list):
            raise TypeError(f"what is known is what `claims` returned, and not {known!r:.100}")
        if is_main_thread():
            return do_elsewhere(partial(self.wait_claims, name, known, timeout), timeout, ReadTimeoutError)
        holding, reader = self._holding(), self._reader
        if self._watching is None:
            # Of members that answer one after the other one may be behind: what is may not be followed by what was.
            return wait_for_claims(holding, full, lambda left: self.claims(name, left), known, timeout)
        return wait_for_claims(holding, full, lambda _: _claimants(reader.present.claims(full)), known, timeout)

    def wait_changed(self, key: str, version: int, timeout: float = 30.0) -> Value | None:
        """The value of `key`, as this node knows it, once its version is another, or `timeout` seconds are over.

        version: as `get` read it; 0: there was no such key.

        Of a node that is cut off it is what was; raises what `Service.err` says once nothing is applied here any more.
        A connected client asks a member four times a second.
        """
        instructions.if_not_modified(key, version)
        check_timeout(timeout)
        if is_main_thread():
            return do_elsewhere(partial(self.wait_changed, key, version, timeout), timeout + 1.0, ReadTimeoutError)
        name, reader, watching = _name(self._prefix, key), self._reader, self._watching

        def is_news(value: Value | None) -> bool:
            return (0 if value is None else value.version) != version

        if watching is not None:
            return watching.wait_for(name, lambda: reader.present.get(name), is_news, timeout)
        return poll(self._holding(), lambda left: self.get(key, left), is_news, timeout)

    def lease(self, ttl: float = 15.0, *, keep: bool = True, timeout: float = 10.0) -> Lease:
        """What keys live and die with: `with store.lease(15) as lease: ...`; see `raftsvc.recipes.Lease`.

        ttl:  in seconds, 1 or more, as with `claim`: so long after it was refreshed last its keys are gone.
        keep: whether this process refreshes it as long as it runs, or until it is revoked, whether or not anybody
              refers to it still; else whoever has it does.

        Those that are kept are refreshed each third of their ttl, in a member's process up to 128 by one entry of the
        log, and by who connected one after the other: there have no more than are so within a tenth of the shortest
        ttl.  One does for many keys.

        Raises what `Service.propose` raises, and LostError if the answer took longer than it lasts.
        """
        if not isinstance(keep, bool):
            raise ConfigurationError(f"keep is True or False, not {keep!r:.100}")
        ttl_ms = lease_ttl_ms(ttl)
        check_timeout(timeout)
        from raftsvc.recipes.leases import Lease

        return Lease(self._claimed_by(lambda keeper: keeper.open(ttl_ms, keep, timeout)))

    def ticket(self, name: str, id: str | None = None, *, ttl: float = 15.0, data: bytes | None = None) -> Ticket:  # noqa: A002
        """A claim on a name, as `claim` makes them, that belongs to whoever knows its ticket, and to no process.

        For those who ask now and then, and maybe another process each time, as over HTTP: `ticket.acquire(wait=30)`,
        and within each `ttl` of log time `ticket.keep()`, by the same `ticket.id` wherever; else others have it.

        id:   of 16 hexadecimal digits; None: another one, at random.
        ttl, data: as with `claim`.
        """
        full = _claimed(self._prefix, name)
        if id is None:
            id = secrets.token_hex(transactions.LEASE_DIGITS // 2)  # noqa: A001
        elif not isinstance(id, str) or not transactions.LEASE.fullmatch(id.encode(errors="replace")):
            raise ConfigurationError(f"a ticket is {transactions.LEASE_DIGITS} hexadecimal digits, not {id!r:.100}")
        terms = lease_ttl_ms(ttl), checked_data(data)
        return Ticket(self._holding(), full, id, *terms, lambda rejected: _meaning_of(rejected, []))

    def counter(self, name: str) -> Counter:
        """A number that all count: `store.counter("visits").incr()`; see `raftsvc.recipes.Counter`, and `incr`."""
        from raftsvc.recipes.counter import Counter

        return Counter(self, self._checked("counter", name))

    def queue(self, name: str, ttl: float = 15.0, within: float | None = None, max_tries: int | None = None) -> Queue:
        """Work for whoever comes first: `store.queue("mail").put(b"...")`; see `raftsvc.recipes.Queue`, and `take`."""
        from raftsvc.recipes.queue import Queue

        name = self._checked("queue", name, ttl)
        instructions.put(f"{self._prefix}queue:{name}", b"", max_tries)
        instructions.ttl_ms_of(within)
        return Queue(self, name, ttl, within, max_tries)

    def barrier(self, name: str) -> Barrier:
        """A gate that all wait at while it is closed; see `raftsvc.recipes.Barrier`."""
        from raftsvc.recipes.barrier import Barrier

        return Barrier(self, self._checked("barrier", name))

    def meeting(self, name: str, size: int, ttl: float = 15.0, data: bytes | None = None) -> Meeting:
        """Where `size` wait for each other, to begin and to end together; see `raftsvc.recipes.Meeting`."""
        from raftsvc.recipes.barrier import Meeting

        name = self._checked("meeting", name, ttl, data)
        return Meeting(self, name, checked_units(size, 1)[0], ttl, data)

    def limit(self, name: str, n: int, per: float = 60.0, cost: int = 1, timeout: float = 10.0) -> Limit:
        """Count this as `cost` of `n` in `per` seconds, if there is room: `if not store.limit(user, 10).allowed: ...`

        One write, exactly once; see `raftsvc.recipes.Limit` for what is counted how.

        n:   from 1 to a million; `cost` from 1 to that.
        per: from 0.001 to a hundred years.

        Raises what `Service.propose` raises (OutcomeUnknown: it may have counted), QuotaExceeded.
        """
        full = f"limit:{self._checked('limit', name)}"
        effect = instructions.admit(full, n, instructions.ttl_ms_of(per), cost)
        from raftsvc.recipes.limits import Limit

        return Limit.of(self._apply([effect], timeout).answer)

    def lock(self, name: str, ttl: float = 15.0, data: bytes | None = None) -> Lock:
        """A lock of the cluster: `with store.lock("orders") as lock:`; see `raftsvc.recipes.Lock`, and `claim`."""
        from raftsvc.recipes.locks import Lock

        return Lock(self, self._checked("lock", name, ttl, data), ttl, data)

    def rwlock(self, name: str, ttl: float = 15.0, data: bytes | None = None) -> ReadWriteLock:
        """A lock that several may read by at once, or one write; see `raftsvc.recipes.ReadWriteLock`, and `claim`."""
        from raftsvc.recipes.locks import ReadWriteLock

        return ReadWriteLock(self, self._checked("rwlock", name, ttl, data), ttl, data)

    def semaphore(self, name: str, size: int, ttl: float = 15.0, data: bytes | None = None) -> Lock:
        """A lock that `size` may hold at once, all of whom say the same; see `raftsvc.recipes.Lock`, and `claim`.

        Who holds it at once has a fence each, and the lower one may hold it still: `kv.if_held` tells, and no resource.
        """
        from raftsvc.recipes.locks import Lock

        name = self._checked("semaphore", name, ttl, data)
        return Lock(self, name, ttl, data, "semaphore", *checked_units(size, 1))

    def election(self, name: str, ttl: float = 15.0, data: bytes | None = None) -> Election:
        """One of many leads: `store.election("cron").run(function)`; see `raftsvc.recipes.Election`, and `claim`."""
        from raftsvc.recipes.election import Election

        return Election(self, self._checked("election", name, ttl, data), ttl, data)

    def party(self, name: str, ttl: float = 15.0) -> Party:
        """Who is there: `with store.party("web").join(b"me"):`; see `raftsvc.recipes.Party`, and `claim`."""
        from raftsvc.recipes.party import Party

        return Party(self, self._checked("party", name, ttl), ttl)

    def once(
        self,
        name: str,
        function: Callable[[], object],
        *,
        ttl: float = 15.0,
        after_failure: str = "again",
        after_death: str = "again",
        timeout: float | None = None,
    ) -> bool:
        """Have `function` called unless it succeeded before, by whomever; whether this call did it.

            store.once("migrate-0042", migrate)

        One runs it at a time, and others wait for him; it succeeds at most once in the cluster, for ever, or until
        `raftsvc.recipes.Once.reset`.  A success is recorded only as long as who ran it holds its lock: one that was
        taken for dead, or stopped, or cut off meanwhile raises LostError instead, and another has run it beside him or
        does, so what it does has to bear that (or to go by `kv.if_held`).  Where it is reset while it runs nothing is
        recorded: this call did it, and whoever comes next does it anew.

        after_failure, after_death: "again": whoever comes next runs it anew; "raise": he gets an OnceError.  It died
                                    if who ran it was not heard of for `ttl` seconds.
        timeout: in seconds, for others to end; then TimeoutError.

        Raises what `function` raises, which is recorded; before that is called what `get`, `claim` and `transaction`
        raise; after it LostError, or OutcomeUnknown: it was done, and maybe recorded.
        """
        if not callable(function):
            raise TypeError(f"what is to be done is called, which {function!r:.100} cannot be")
        if timeout is not None:
            check_timeout(timeout)
        from raftsvc.recipes.once import Once

        once = Once(self, self._checked("once", name, ttl), ttl)
        return once.run(function, after_failure=after_failure, after_death=after_death, timeout=timeout)

    def jobs(self, ttl: float = 15.0, threads: int = 4, data: bytes | None = None) -> Jobs:
        """What is run at times, by one process of the cluster each time; see `raftsvc.recipes.Jobs`.

        Not of a connected client, whose host has no clock that counts: ConfigurationError.
        """
        from raftsvc.recipes.jobs import Jobs

        return Jobs(self, ttl, threads, data)

    def duty(self, ttl: float = 15.0, data: bytes | None = None) -> Duty:
        """What `jobs` is made of: claiming what is due, and saying how it ended.  Arguments are as for `claim`."""
        guest = self._service if isinstance(self._service, Guest) else None
        pass_over = None if guest is None else guest.pass_over
        return Duty(self._reader, self._holding(), self._prefix, lease_ttl_ms(ttl), checked_data(data), pass_over)

    # -- as a mapping

    def __getitem__(self, key: str) -> bytes:
        """The value of `key`, as `get`; raises KeyError if it does not exist."""
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return value.data

    def __setitem__(self, key: str, value: bytes | bytearray | memoryview) -> None:
        """As `set`, without a TTL."""
        self.set(key, value)

    def __delitem__(self, key: str) -> None:
        """As `delete`; raises KeyError if it did not exist."""
        if not self.delete(key):
            raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        """Whether there is such a key, as `get`."""
        return isinstance(key, str) and self.get(key) is not None

    # -- who may join

    def allow(self, addr: str, timeout: float = 10.0) -> None:
        """Let the node that advertises `addr`, in whatever spelling, join.  Raises ConfigurationError if it is none."""
        self.transaction([instructions.allow(addr)], timeout)

    def disallow(self, addr: str, timeout: float = 10.0) -> None:
        """Let it join no more; evict it too if it is a member."""
        self.transaction([instructions.disallow(addr)], timeout)

    def allowed(self, timeout: float = 5.0) -> frozenset[str]:
        """The addresses that may join.  Empty: none may."""
        return self._reader.read(lambda shown: shown.allowed(), None, timeout)


def connect(
    places: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    key: str | None = None,
    verify: str | bool = True,
    cert: str | tuple[str, str] | None = None,
) -> KeyValue:
    """Work with a cluster from a process that is no member: a shell, a cron script, a Celery worker, a test.

    places: where members are reached, as `laddr` of `start`: one, or several, to go on if one is down.  The
            others are learned from whoever answers.  Or the directory of the node of this host, a path that begins
            with / or a dot, for processes of the same user; the node needs a port of its own (`listen=`).
    key:    `name:key`, of a `raftsvc.ClientKey` that all nodes were started with (`client_keys=`); not for a directory.
    verify, cert: with https, as in requests: the file of the CA, and that of a certificate and its key.

    Returns the same face that members have; its `service` is a `Connection`, with `propose`, `exec` and, for other
    States than the key-value store, `query`.  Nobody is asked before the first call.  Each read asks a member, so
    `max_age` does not matter; the `_stale` forms ask one that may be behind.

    Every call ends within its timeout: NotApplied only if it certainly took no effect, and what was sent again
    by another member counts once.  In a forked child it goes on by connections and a session of the child's own.

    Where the State of the cluster is no key-value store (one that is a part of `raftsvc.States` included) nothing
    of this face is brought to it: NotPermittedError; what its `service` is given is.

    Raises ConfigurationError.  Calls raise UnknownKeyError, NotPermittedError, and what they raise at a member.
    """
    several = [places] if isinstance(places, str | os.PathLike) else list(places)
    connection = Connection(several, key, verify, cert)
    return KeyValue(connection, RemoteStore(connection))


def _name(prefix: str, key: str, what: str = "a key") -> str:
    """What `key` is in the whole store, if it is a text; of one that can be no key there is none."""
    if not isinstance(key, str):
        raise TypeError(f"{what} is a str, not {type(key).__name__}")
    return prefix + key


def _names(prefix: str, keys: Iterable[str]) -> list[str]:
    _check_several("keys", keys)
    return [_name(prefix, key) for key in keys]


def _claimed(prefix: str, name: str) -> str:
    """What `name`, that is claimed, is in the whole store; raises TypeError or ValueError if it can be none."""
    return instructions.checked_key(prefix + instructions.checked_key(_name("", name, "a name")))


def _check_several(what: str, things: object) -> None:
    if type(things) is list:  # as most are; to find that out of any other takes long
        return
    if isinstance(things, str | bytes) or not isinstance(things, Iterable):
        raise TypeError(f"these are several {what}, such as a list has, and not {things!r:.100}")


def _check_limit(limit: object) -> None:
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 0):
        raise ConfigurationError(f"a limit is a number, 0 or more, not {limit!r:.100}")


def _check_prefix(prefix: object) -> None:
    if not isinstance(prefix, str):
        raise ConfigurationError(f"a prefix is a str, not {prefix!r:.100}")


def _below(prefix: str, operation: Operation) -> Operation:
    """What `operation` is in the whole store, if it was meant within a namespace."""
    if isinstance(operation, Condition) and operation.code == Code.IF_HELD:
        return operation  # which has the whole name
    if isinstance(operation, Condition):
        return Condition(instructions.checked_key(_name(prefix, operation.key)), operation.version)
    if isinstance(operation, Effect) and operation.code not in transactions.OF_THE_CLUSTER:
        return replace(operation, key=instructions.checked_key(_name(prefix, operation.key)))
    return operation  # of neither kind: `encode` says so


def _meaning_of(rejected: Rejected, operations: Sequence[Operation]) -> RaftError | None:
    """The error of ours that says why `operations` were refused, with the key that it was."""
    found = transactions.read_conflict(rejected.reason)
    if found is not None:
        position, version = found
        condition = [operation for operation in operations if isinstance(operation, Condition)][position]
        if condition.code != Code.IF_HELD:
            return ConflictError(condition.key, version)
        return LostError(condition.key, _SHARED) if version == transactions.SHARED else LostError(condition.key)
    counted = transactions.read_no_counter(rejected.reason)
    if counted is not None:
        effects = [operation for operation in operations if isinstance(operation, Effect)]
        return CounterError(effects[counted].key, rejected.reason)
    size = transactions.read_other_size(rejected.reason)
    if size is not None:
        return ClaimSizeError(size)
    lease = transactions.read_no_lease(rejected.reason)
    if lease is not None:
        return LostError(lease)
    return QuotaExceeded(rejected.reason) if transactions.read_over_quota(rejected.reason) else None


def _seconds_to_wait(blocking: bool, timeout: float | None) -> float:
    """For something to be granted; raises ConfigurationError if one makes no sense."""
    if not isinstance(blocking, bool):
        raise ConfigurationError(f"blocking is True or False, not {blocking!r:.100}")
    if timeout is not None:
        check_timeout(timeout)
        return timeout
    return math.inf if blocking else 10.0


def _claimants(found: Iterable[Claim]) -> Claimants:
    return [Claimant(claim.fence, bytes(claim.data)) for claim in found]


def _watching_of(watching: Watching | None) -> Watching:
    """That; raises ConfigurationError where there is none."""
    if watching is None:
        raise ConfigurationError(
            "a connected client holds no State, so that nothing tells it what changes: watch at a member"
        )
    return watching
