"""Writes that a client may send again: what has one `Idempotency-Key` takes effect once, and is answered the same.

What was done is recorded in the store itself, in the transaction that does it, on the condition that there is
no such record yet.  So whatever happens to an attempt (the process dies, its outcome stays unknown, another comes at
the same time by another node), at most one of them all is applied, and whoever comes later finds its record.

The version of a record is that of its transaction.  What else the answer says has to be known before: it is computed
from what is read first, and the transaction has the condition that this did not change meanwhile; else it is read anew.

A refusal changes nothing and leaves no record: who sends that again asks again.  Records are found as long as
they live; an attempt that is still on its way after that would be a new one.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from raftsvc import kv as store
from raftsvc.errors import NotApplied, ReadTimeoutError
from raftsvc.kv import Condition, ConflictError, KeyValue, Operation, Value
from raftsvc.web.problems import Problem

RESERVED = "\x00"
"""Keys that begin so are the API's own: nobody reads or writes them by it."""
_RECORDS = RESERVED + "idempotency/"
_FIRST_PAUSE_SECONDS = 0.002
_LONGEST_PAUSE_SECONDS = 0.1


@dataclass(frozen=True)
class Outcome:
    """What came of a write.

    version:   of the transaction.
    answer:    as of `KeyValue.perform`; None: it is not known.
    is_repeat: whether an attempt before did it.
    """

    version: int
    answer: object
    is_repeat: bool = False


@dataclass(frozen=True)
class Write:
    """What is to be done.

    looked_at: the keys that the answer depends on.
    foresee:   the answer, by the values that those of them have that exist.
    """

    operations: Sequence[Operation]
    looked_at: Sequence[str] = ()
    foresee: Callable[[Mapping[str, Value]], object] = lambda values: True


class Repeats:
    """Does writes, each once."""

    def __init__(self, kv: KeyValue, ttl: float) -> None:
        """ttl: for how many seconds it is known what was done."""
        self._kv = kv
        self._ttl = ttl

    def perform(self, write: Write, caller: str, key: str | None, request: bytes, timeout: float) -> Outcome:
        """Do it, unless an attempt with this `key` of this caller's did.

        key:     None: whatever came before.
        request: all that the client asks for; under the same key it has to be the same.

        Raises Problem 422 if it is not, and what `KeyValue.transaction` raises.
        """
        if key is None:
            applied = self._kv.perform(write.operations, timeout)
            return Outcome(applied.index, applied.answer if applied.known else None)
        ends_at = time.monotonic() + timeout
        named = f"{len(caller)}:{caller}{key}".encode()
        record, digest = _RECORDS + hashlib.sha256(named).hexdigest(), hashlib.sha256(request).hexdigest()
        pause = _FIRST_PAUSE_SECONDS
        while True:
            values = self._look([record, *write.looked_at], max(ends_at - time.monotonic(), 0.0))
            if record in values:
                return _recorded(values[record], digest)
            try:
                return self._attempt(write, record, digest, values, max(ends_at - time.monotonic(), 0.0))
            except ConflictError as error:
                if error.key != record and not _is_of_what_was_seen(error, write):
                    raise
            wait = random.uniform(0.0, pause)
            if time.monotonic() + wait >= ends_at:
                raise NotApplied("others wrote what this depends on, again and again, until its time was over")
            time.sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _look(self, keys: Sequence[str], timeout: float) -> Mapping[str, Value]:
        try:
            return self._kv.get_many(keys, timeout)
        except ReadTimeoutError as error:
            raise NotApplied("what was done before could not be read in time, so nothing was done") from error

    def _attempt(self, write: Write, record: str, digest: str, values: Mapping[str, Value], timeout: float) -> Outcome:
        answer = write.foresee(values)
        seen = [store.if_not_modified(key, values[key].version if key in values else 0) for key in write.looked_at]
        data = json.dumps({"request": digest, "answer": answer}).encode()
        # The record's condition is the first: a write that was done is found done, though its own hold no more.
        operations = [store.if_not_exists(record), *write.operations, *seen, store.set(record, data, self._ttl)]
        applied = self._kv.perform(operations, timeout)
        return Outcome(applied.index, answer)


def _recorded(record: Value, digest: str) -> Outcome:
    said = record.json()
    if said["request"] != digest:
        raise Problem(
            422, "IdempotencyKeyReused", "Something else was sent with this Idempotency-Key; that is what was done."
        )
    return Outcome(record.version, said["answer"], is_repeat=True)


def _is_of_what_was_seen(error: ConflictError, write: Write) -> bool:
    """Whether it is a condition of ours that did not hold, and not one of the client's."""
    asked = [each.version for each in write.operations if isinstance(each, Condition) and each.key == error.key]
    return error.key in write.looked_at and all(version == error.version for version in asked)
