"""What an application calls: a key-value store that looks local and is replicated.

Needs of its node only `exec` and `wait_read`.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable
from typing import Any, Protocol

from raftsvc.errors import RaftError
from raftsvc.kv.state import KeyValueState, Operation, Value, allow, delete, disallow, encode_transaction, set_value


class ConflictError(RaftError):
    """A condition of the transaction did not hold; nothing was changed."""


class Replica(Protocol):
    """The part of a Service that the store needs."""

    def exec(self, instruction: bytes, timeout: float = ...) -> bool: ...
    def wait_read(self, timeout: float = ...) -> None: ...


class KeyValue:
    """The key-value store of one process.  Thread-safe; methods with a timeout block.

    Whatever `exec` and `wait_read` of the Service raise comes through: a write that
    raised NotApplied had no effect, one that raised OutcomeUnknown may have.
    """

    def __init__(self, service: Replica, state: KeyValueState) -> None:
        """state: the one that `service` was started with."""
        self._service = service
        self._state = state

    # -- reading

    def get(self, key: str, timeout: float = 30.0) -> Value | None:
        """The value of `key`, None if there is none; sees every write that finished before the call."""
        self._service.wait_read(timeout)
        return self._state.get(key)

    def get_stale(self, key: str) -> Value | None:
        """The value of `key` as this node has it, without asking anybody; may be out of date."""
        return self._state.get(key)

    def get_many(self, keys: Iterable[str], timeout: float = 30.0) -> dict[str, Value]:
        """Those of `keys` that exist, all of one moment; linearizable."""
        self._service.wait_read(timeout)
        return self._state.get_many(keys)

    def list(self, prefix: str = "", timeout: float = 30.0) -> dict[str, Value]:
        """All keys that begin with `prefix`, in order, all of one moment; linearizable."""
        self._service.wait_read(timeout)
        return self._state.list(prefix)

    def list_stale(self, prefix: str = "") -> dict[str, Value]:
        """All keys that begin with `prefix`, as this node has them."""
        return self._state.list(prefix)

    def get_json(self, key: str, timeout: float = 30.0) -> Any:
        """The value of `key` decoded from JSON, None if there is none.  Raises ValueError if it is not JSON."""
        value = self.get(key, timeout)
        return None if value is None else json.loads(value.data)

    # -- writing

    def transact(self, *operations: Operation, timeout: float = 60.0) -> int:
        """Do all of `operations` atomically: every condition holds, and every effect happens, or nothing does.

        Returns the version that the keys written have now.  If the effect reached this
        node in a snapshot that version is not known to it; it is 0 then.  Raises ConflictError.
        """
        transaction_id = secrets.token_bytes(16)
        self._state.expect(transaction_id)
        try:
            satisfied = self._service.exec(encode_transaction(transaction_id, operations), timeout)
        finally:
            index = self._state.take_index(transaction_id)
        if not satisfied:
            raise ConflictError("a condition did not hold; nothing was changed")
        return index

    def set(self, key: str, data: bytes, *conditions: Operation, timeout: float = 60.0) -> int:
        """Let `key` hold `data` if every condition holds; returns its new version.  Raises ConflictError."""
        deadline = time.monotonic() + timeout
        version = self.transact(*conditions, set_value(key, data), timeout=timeout)
        if not version:
            value = self.get(key, max(0.0, deadline - time.monotonic()))
            version = value.version if value else 0
        return version

    def set_json(self, key: str, content: Any, *conditions: Operation, timeout: float = 60.0) -> int:
        """Like `set`, with `content` encoded as JSON."""
        return self.set(key, json.dumps(content).encode(), *conditions, timeout=timeout)

    def delete(self, key: str, *conditions: Operation, timeout: float = 60.0) -> None:
        """Remove `key`, if it exists, if every condition holds.  Raises ConflictError."""
        self.transact(*conditions, delete(key), timeout=timeout)

    # -- who may join

    def allow(self, addr: str, timeout: float = 60.0) -> None:
        """Let a node at `addr`, written as it will announce itself, join the cluster."""
        self.transact(allow(addr), timeout=timeout)

    def disallow(self, addr: str, timeout: float = 60.0) -> None:
        """Let no node at `addr` join; a member stays one until it is evicted."""
        self.transact(disallow(addr), timeout=timeout)

    def allowed(self, timeout: float = 30.0) -> frozenset[str]:
        """The addresses that may join; linearizable."""
        self._service.wait_read(timeout)
        return self._state.allowed()
