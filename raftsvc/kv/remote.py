"""The store of a process that holds none of it, and asks members: what is behind that of `raftsvc.connect`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

from raftsvc.client.connection import FAREWELL_SECONDS, Connection
from raftsvc.errors import RaftError
from raftsvc.kv.freshness import Shown
from raftsvc.kv.history import Signal
from raftsvc.kv.holds import Claim
from raftsvc.kv.leases import Keeper
from raftsvc.kv.pages import Value
from raftsvc.kv.queries import (
    ALLOWED,
    CLAIM,
    CLAIMS,
    COUNTS,
    ITEM,
    JOB,
    JOBS,
    LIST,
    MANY,
    Question,
    decode_item,
    decode_job,
    decode_names,
    decode_values,
)
from raftsvc.kv.queues import Item
from raftsvc.kv.runs import Planned, Run
from raftsvc.kv.state import KeyValueState
from raftsvc.results import Applied

T = TypeVar("T")

_STALE_SECONDS = 5.0


class RemoteStore:
    """In the place of the State here, and of what is known of how current it is; see `raftsvc.kv.freshness`."""

    longest_wait: float = 0.25  # nothing tells who is no member what happens
    at_once: int = 1

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._keepers: dict[int, Keeper] = {}  # that of this process, by its pid
        self._index = 0

    @classmethod
    def of(cls, connection: Connection, state: KeyValueState) -> RemoteStore:
        """The one of a State that nobody keeps current here, whatever stores are made of it."""
        found = state.companion
        if not isinstance(found, RemoteStore) or found._connection is not connection:
            found = state.companion = cls(connection)
        return found

    def keeper(self) -> Keeper:
        """Who keeps the leases of this process."""
        pid = os.getpid()
        keeper = self._keepers.get(pid)
        if keeper is None:
            made = Keeper(self)
            keeper = self._keepers.setdefault(pid, made)
            if keeper is made:
                self._connection.before_stop(partial(keeper.close, FAREWELL_SECONDS))
            for other in [other for other in list(self._keepers) if other != pid]:  # a parent's
                self._keepers.pop(other, None)
        return keeper

    def propose(self, instruction: bytes, timeout: float) -> Applied:
        """Of the store, and of the leases of this process, as the seven below; never of another State."""
        applied = self._connection.propose_to_store(instruction, timeout)
        self._index = max(self._index, applied.index)  # of two threads at once either's will do
        return applied

    def propose_many(self, instructions: Sequence[bytes], timeout: float) -> Sequence[Applied]:
        """One after the other; the first that is refused ends it."""
        ends_at = time.monotonic() + timeout
        return [self.propose(each, ends_at - time.monotonic()) for each in instructions]

    def fence_of(self, place: tuple[str, str, int], signal: Signal, timeout: float) -> int | None:
        """As a member says; nothing sets the signal."""
        name, lease, number = place
        found = decode_values(
            self._connection.query_store(Question(CLAIM, (name, lease, str(number))).encode(), timeout)
        )
        return found[name].version if name in found else None

    def item_of(self, place: tuple[str, str, int], timeout: float) -> Item | None:
        """As a member says."""
        name, lease, number = place
        return decode_item(self._connection.query_store(Question(ITEM, (name, lease, str(number))).encode(), timeout))

    def leave(self, place: str | tuple[str, str, int], signal: Signal) -> None:
        """It was not waited for."""

    def await_claims(self, name: str, signal: Signal) -> None:
        """Nothing sets it."""

    def index(self) -> int:
        """An entry that was applied, as far as this process knows."""
        return self._index

    def over(self) -> RaftError | None:
        """That it was closed; else there may always be somebody who answers."""
        return self._connection.over()

    @property
    def present(self) -> Shown:
        """What some member knows."""
        return self.stale(_STALE_SECONDS)

    def stale(self, timeout: float) -> Shown:
        """What some member knows, if one answers in time; to be looked at now."""
        return _Asked(self._connection, timeout, is_stale=True)

    def read(self, look: Callable[[Shown], T], max_age: float | None, timeout: float) -> T:
        """What `look` returns, of a moment no earlier than this call."""
        return look(_Asked(self._connection, timeout, is_stale=False))


class _Asked:
    """The store as a member shows it."""

    def __init__(self, connection: Connection, timeout: float, is_stale: bool) -> None:
        self._connection = connection
        self._deadline = time.monotonic() + timeout
        self._is_stale = is_stale

    def _ask(self, question: Question) -> bytes:
        left = max(self._deadline - time.monotonic(), 0.0)
        return self._connection.query_store(question.encode(), left, is_stale=self._is_stale)

    def get(self, key: str) -> Value | None:
        """The value of `key`."""
        return self.get_many([key]).get(key)

    def get_many(self, keys: Iterable[str]) -> dict[str, Value]:
        """The values, all of one moment, of those `keys` that exist."""
        return decode_values(self._ask(Question(MANY, tuple(keys))))

    def list(
        self, prefix: str = "", limit: int | None = None, after: str = "", max_bytes: int | None = None
    ) -> dict[str, Value]:
        """The keys that start with `prefix` and come after `after`, in order, with their values, all of one moment."""
        return decode_values(self._ask(Question(LIST, (prefix, after), limit, max_bytes)))

    def claims(self, name: str) -> Sequence[Claim]:
        """All claims on a name, who holds first, then who waits; under which lease they stand is not told."""
        found = decode_values(self._ask(Question(CLAIMS, (name,))))
        return [Claim("", 0, 0, 0, value.version, value.data) for value in found.values()]

    def item_counts(self, queue: str) -> tuple[int, int]:
        """How many items of it nobody has, and how many somebody."""
        found = decode_values(self._ask(Question(COUNTS, (queue,))))
        return found["ready"].version, found["taken"].version

    def job(self, name: str) -> tuple[Planned | None, Sequence[Run]]:
        """What is known of a job, and its runs, the latest last; who has them by which lease is not told."""
        return decode_job(self._ask(Question(JOB, (name,))))

    def job_names(self, prefix: str = "") -> Sequence[str]:
        """Of the jobs those that start so, in their order."""
        return sorted(decode_names(self._ask(Question(JOBS, (prefix,)))))

    def allowed(self) -> frozenset[str]:
        """The addresses that may join."""
        return decode_names(self._ask(Question(ALLOWED)))
