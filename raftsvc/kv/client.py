"""What an application calls: the key-value store of the whole cluster.

Proposes transactions and waits for their results, reads after `wait_read` or at
once.  Holds nothing of the cluster's, and needs of the Service no more than `propose` and
`wait_read`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol, TypeVar

from raftsvc.errors import RaftError, ReadTimeoutError, Rejected
from raftsvc.kv import instructions
from raftsvc.kv.instructions import Condition, Operation
from raftsvc.kv.pages import Value
from raftsvc.kv.state import KeyValueState
from raftsvc.mainthread import do_elsewhere, is_main_thread
from raftsvc.results import Applied

T = TypeVar("T")


def _now() -> float:
    """Seconds by a clock that goes on while the machine is suspended, where there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Replication(Protocol):
    """What KeyValue needs of a Service."""

    def propose(self, instruction: bytes, timeout: float = 10.0) -> Applied:
        """Replicate one instruction and return where in the log it took effect, and what the State said of it."""

    def wait_read(self, timeout: float = 5.0) -> None:
        """Return once reads of the local State see every write that finished before this call."""


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


class KeyValue:
    """A linearizable key-value store.  Every method is thread-safe.

    service: a Service, started with
    state:   this state.

    Writes raise what `Service.exec` raises, linearizable reads what
    `Service.wait_read` raises; `timeout` is in seconds in all.

    The `_stale` forms show whole transactions in their order, but maybe not the
    latest: of a node that is cut off, or was stopped, nothing bounds how old they are.  Given
    `max_age`, in seconds, they show nothing that was out of date longer than that: they read
    at once as long as this node was shown to be current within that time, else they
    ask first, as `get` does, and raise ReadTimeoutError if nobody answers within `timeout`.
    So of many reads one in `max_age` seconds waits.  Heartbeats of a leader would be no such
    proof: it may be deposed, and not know yet.  All reads raise ForkedError in a child that
    was forked from the process of the node, where nothing is applied any more.
    """

    def __init__(self, service: Replication, state: KeyValueState) -> None:
        self._service = service
        self._state = state
        self._current_at = float("-inf")
        """When it was last asked for a stale read whether this node is current, and it was."""

    # -- writing

    def transaction(self, operations: Iterable[Operation], timeout: float = 10.0) -> int:
        """Do all effects among `operations` if all conditions among them hold; returns the version written.

        Conditions are judged by the state before the transaction, wherever they
        stand; effects happen in their order.

        Raises ConflictError if a condition does not hold, TypeError or ValueError if an operation
        makes no sense or there are too many.
        """
        listed = list(operations)
        instruction = instructions.encode(listed)
        try:
            return self._service.propose(instruction, timeout).index
        except Rejected as rejected:
            found = instructions.read_conflict(str(rejected.reason))
            if found is None:
                raise
            position, version = found
            conditions = [operation for operation in listed if isinstance(operation, Condition)]
            raise ConflictError(conditions[position].key, version) from None

    def set(
        self, key: str, value: bytes | bytearray | memoryview, *conditions: Condition, timeout: float = 10.0
    ) -> int:
        """Give `key` this value if the conditions hold; returns its new version.  Raises like `transaction`."""
        return self.transaction([*_only_conditions(conditions), instructions.set(key, value)], timeout)

    def set_json(self, key: str, value: object, *conditions: Condition, timeout: float = 10.0) -> int:
        """Like `set`, of the JSON form of `value`; raises TypeError or ValueError if it has none."""
        data = json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
        return self.set(key, data, *conditions, timeout=timeout)

    def delete(self, key: str, *conditions: Condition, timeout: float = 10.0) -> None:
        """Have no such key, if the conditions hold; it need not exist.  Raises like `transaction`."""
        self.transaction([*_only_conditions(conditions), instructions.delete(key)], timeout)

    # -- reading

    def get(self, key: str, timeout: float = 5.0) -> Value | None:
        """The value of `key`, no older than this call; None if it does not exist."""
        if is_main_thread():
            return self._read_elsewhere(partial(self.get, key, timeout), timeout)
        self._service.wait_read(timeout)
        return self._state.get(key)

    def get_stale(self, key: str, max_age: float | None = None, timeout: float = 30.0) -> Value | None:
        """The value of `key` as this node knows it; with `max_age` not older than that."""
        if max_age is not None:
            self._bound_age(max_age, timeout)
        return self._state.get(key)

    def get_many(self, keys: Iterable[str], timeout: float = 5.0) -> dict[str, Value]:
        """The values of those `keys` that exist, all of one moment no earlier than this call."""
        if is_main_thread():
            return self._read_elsewhere(partial(self.get_many, keys, timeout), timeout)
        self._service.wait_read(timeout)
        return self._state.get_many(keys)

    def get_many_stale(
        self, keys: Iterable[str], max_age: float | None = None, timeout: float = 30.0
    ) -> dict[str, Value]:
        """The values of those `keys` that exist, all of one moment, as this node knows them; as `get_stale`."""
        if max_age is not None:
            self._bound_age(max_age, timeout)
        return self._state.get_many(keys)

    def get_json(self, key: str, default: Any = None, timeout: float = 5.0) -> Any:
        """What the value of `key` says as JSON, or `default` if it does not exist; ValueError if it is no JSON.

        `get(key).json()` says the same, and has the version beside it.
        """
        value = self.get(key, timeout)
        return default if value is None else value.json()

    def list(self, prefix: str = "", timeout: float = 5.0) -> dict[str, Value]:
        """Every key that starts with `prefix`, in order, all of one moment no earlier than this call."""
        if is_main_thread():
            return self._read_elsewhere(partial(self.list, prefix, timeout), timeout)
        self._service.wait_read(timeout)
        return self._state.list(prefix)

    def list_stale(self, prefix: str = "", max_age: float | None = None, timeout: float = 30.0) -> dict[str, Value]:
        """Every key that starts with `prefix`, in order, all of one moment, as this node knows them; as `get_stale`."""
        if max_age is not None:
            self._bound_age(max_age, timeout)
        return self._state.list(prefix)

    def _bound_age(self, max_age: float, timeout: float) -> None:
        """Ask whether this node is current, unless it was within that time."""
        asked_at = _now()
        if asked_at - self._current_at > max_age:
            self._service.wait_read(timeout)
            self._current_at = asked_at  # as of when it was asked, not answered

    def _read_elsewhere(self, read: Callable[[], T], timeout: float) -> T:
        return do_elsewhere(read, timeout, ReadTimeoutError)

    # -- who may join

    def allow(self, addr: str, timeout: float = 10.0) -> None:
        """Let the node that advertises `addr`, in whatever spelling, join.  Raises ConfigurationError if it is none."""
        self.transaction([instructions.allow(addr)], timeout)

    def disallow(self, addr: str, timeout: float = 10.0) -> None:
        """Let it join no more; evict it too if it is a member."""
        self.transaction([instructions.disallow(addr)], timeout)

    def allowed(self, timeout: float = 5.0) -> frozenset[str]:
        """The addresses that may join.  Empty: none may."""
        self._service.wait_read(timeout)
        return self._state.allowed()


def _only_conditions(conditions: tuple[Condition, ...]) -> tuple[Condition, ...]:
    for condition in conditions:
        if not isinstance(condition, Condition):
            raise TypeError(f"{condition!r} is no condition; `transaction` combines several effects")
    return conditions
