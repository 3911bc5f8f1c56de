"""What a transaction of the key-value store says, and its bytes.

Conditions and effects are made by the functions below and combined into one
transaction: every condition is judged by the state before the transaction, and
either all effects happen or none.  Nothing here applies anything.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from raftsvc.addresses import canonical_addr, same_addr
from raftsvc.errors import ConfigurationError
from raftsvc.kv import transactions
from raftsvc.kv.items import MAX_TRIES
from raftsvc.kv.transactions import (
    ASKED,
    ASKED_OF_LIMIT,
    FENCE,
    KEPT,
    LEASE,
    MAX_KEY_BYTES,
    MAX_LIMIT,
    MAX_NUMBER,
    MAX_OPERATIONS,
    MAX_QUEUE_BYTES,
    MAX_STATE_BYTES,
    MAX_TTL_MS,
    MIN_NUMBER,
    MIN_TTL_MS,
    NUMBERS,
    SIZE,
    TRIES,
    UNITS,
    WHICH,
    WITHDRAWN,
    encode_condition,
    encode_effect,
    encode_lone_set,
    encode_transaction,
    most_queue_bytes,
)

_MAX_VERSION = 2**64 - 1
_MAX_VALUE_BYTES = 2**32 - 1


class Code(IntEnum):
    """What one operation does.  Conditions are below 16."""

    IF_NOT_MODIFIED = transactions.IF_NOT_MODIFIED
    IF_HELD = transactions.IF_HELD
    SET = transactions.SET
    DELETE = transactions.DELETE
    ALLOW = transactions.ALLOW
    DISALLOW = transactions.DISALLOW
    SET_EXPIRING = transactions.SET_EXPIRING
    TOUCH = transactions.TOUCH
    INCR = transactions.INCR
    LIMIT = transactions.LIMIT
    SET_LEASED = transactions.SET_LEASED
    PUT = transactions.PUT
    ACK = transactions.ACK
    OPEN = transactions.OPEN
    KEEP = transactions.KEEP
    END = transactions.END
    CLAIM = transactions.CLAIM
    RELEASE = transactions.RELEASE
    ADMIT = transactions.ADMIT
    WITHDRAW = transactions.WITHDRAW
    PROLONG = transactions.PROLONG
    EVICT = transactions.EVICT


class Operation:
    """One part of a transaction: a Condition or an Effect."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Condition(Operation):
    """That `key` is at `version`, of which 0 means that there is no such key; or see `code`.

    code: IF_HELD: that of the whole name `key`, whatever the namespace, the grant is held that has that `version`.
    """

    key: str
    version: int
    code: Code = Code.IF_NOT_MODIFIED


@dataclass(frozen=True, slots=True)
class Effect(Operation):
    """One change.  `data` is what its code asks for beside a TTL; a `ttl_ms` of 0 is none."""

    code: Code
    key: str
    data: bytes = b""
    ttl_ms: int = 0


def if_not_exists(key: str) -> Condition:
    """There is no such key."""
    return Condition(checked_key(key), 0)


def if_not_modified(key: str, version: int) -> Condition:
    """The key was last written at `version`; 0: it does not exist."""
    if not isinstance(version, int) or isinstance(version, bool):
        raise TypeError(f"a version is an int, not {type(version).__name__}")
    if not 0 <= version <= _MAX_VERSION:
        raise ValueError(f"a version is from 0 to {_MAX_VERSION}, not {version!r:.100}")
    return Condition(checked_key(key), version)


def only_conditions(conditions: tuple[Condition, ...]) -> tuple[Condition, ...]:
    """Those; raises TypeError if there is something else among them."""
    for condition in conditions:
        if not isinstance(condition, Condition):
            raise TypeError(f"{condition!r:.200} is no condition; `transaction` combines several effects")
    return conditions


class Held(Protocol):
    """What is held, such as a lock."""

    @property
    def name(self) -> str:
        """Of it, in the whole store."""

    @property
    def fence(self) -> int:
        """Of the grant by which it is held."""


def if_held(held: Held) -> Condition:
    """That is held, by the grant that it has now: a lock, a `Hold`, or whatever else has a `name` and a `fence`.

    What comes with this condition takes no effect once another may hold it, however long this process was frozen.
    Of what `KeyValue.take` returns it is the item that is held, and not the `Hold`; of a meeting (`together`) nothing
    is, for all of a round have one fence: with these the transaction raises LostError.
    """
    name, fence = getattr(held, "name", None), getattr(held, "fence", None)
    if not isinstance(name, str) or not isinstance(fence, int) or isinstance(fence, bool) or not 0 <= fence < 2**64:
        raise TypeError(f"{held!r:.100} is nothing that can be held: it has no name, or no fence")
    return Condition(checked_key(name), fence, Code.IF_HELD)


class Leased(Protocol):
    """What a key lives and dies with, such as `KeyValue.lease` returns."""

    @property
    def id(self) -> str:
        """Of the lease."""


def set(  # noqa: A001 - read as kv.set
    key: str, value: bytes | bytearray | memoryview, ttl: float | None = None, lease: Leased | None = None
) -> Effect:
    """Give `key` this value; its version becomes that of the transaction.

    ttl:   seconds after which there is no such key any more; None: until it is deleted, whatever was said before.
           Raises ConfigurationError, a ValueError, if it is no number from 0.001 to a hundred years.
    lease: what it is gone with (`KeyValue.lease`), at the latest; the transaction is refused once that is over.  None:
           with none, whatever was said before.  There is one of both at most.
    """
    data = _checked_value(value)
    if lease is not None:
        if ttl is not None:
            raise ConfigurationError("a key has a ttl or a lease, and not both")
        return Effect(Code.SET_LEASED, checked_key(key), _lease_id(lease) + data)
    if ttl is None:
        return Effect(Code.SET, checked_key(key), data)
    return Effect(Code.SET_EXPIRING, checked_key(key), data, ttl_ms_of(ttl))


def encode_set(key: str, value: bytes | bytearray | memoryview, prefix: str = "") -> bytes:
    """As `encode([set(key, value)])` below a prefix, in half the time (timeit): most writes are such."""
    data = _checked_value(value)
    checked_key(key)
    return encode_lone_set(checked_key(prefix + key) if prefix else key, data)


def _checked_value(value: bytes | bytearray | memoryview) -> bytes:
    # bytes(7) would quietly be seven zeros, and bytes of a str would be a guess.
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError(f"a value is bytes, not {type(value).__name__}")
    data = bytes(value)
    if len(data) > _MAX_VALUE_BYTES:
        raise ValueError(f"a value has at most {_MAX_VALUE_BYTES} bytes")
    return data


def _lease_id(lease: Leased) -> bytes:
    text = getattr(lease, "id", None)
    if not isinstance(text, str) or not LEASE.fullmatch(text.encode(errors="replace")):
        raise TypeError(f"a key lives and dies with what `KeyValue.lease` returns, not with {lease!r:.100}")
    return text.encode()


def touch(key: str, ttl: float | None) -> Effect:
    """Have `key` live for `ttl` seconds from now on, None: until it is deleted; nothing happens if there is none.

    Value, version and lease stay as they are: nobody who is about to write the key is disturbed.
    """
    return Effect(Code.TOUCH, checked_key(key), b"", ttl_ms_of(ttl))


def incr(key: str, delta: int = 1, initial: int = 0, ttl: float | None = None) -> Effect:
    """Add `delta` to the number that `key` has, in decimal; the transaction is refused if it has none.

    initial: the number that a key counts for that does not exist.
    ttl:     for how many seconds it exists if it is made here, None: until it is deleted.  What exists
             keeps the time that it has, so a counter with a TTL counts what happened in
             that time; with `touch` in the same transaction it begins anew.

    The number has 64 bits with its sign, as have `delta` and `initial`.
    """
    return Effect(
        Code.INCR,
        checked_key(key),
        NUMBERS.pack(_checked_number("delta", delta), _checked_number("initial", initial)),
        ttl_ms_of(ttl),
    )


def delete(key: str) -> Effect:
    """Have no such key; nothing happens if there is none."""
    return Effect(Code.DELETE, checked_key(key))


def allow(addr: str) -> Effect:
    """Let the node at `addr`, however spelled, join.  Raises ConfigurationError, a ValueError, if it is no address."""
    return Effect(Code.ALLOW, checked_key(canonical_addr(addr)))


def disallow(addr: str) -> Effect:
    """Let it join no more; a member remains one."""
    if not isinstance(addr, str):
        raise ConfigurationError(f"an address of a node is a text, and not {addr!r:.100}")
    return Effect(Code.DISALLOW, checked_key(same_addr(checked_key(addr))))


def max_state_bytes(size_bytes: int | None) -> Effect:
    """Refuse, from the next transaction on, whatever makes the state larger than that (QuotaExceeded); None: nothing.

    The limit is the cluster's, wherever it is set.  What counts is each key and value, and 100 bytes more
    for each, about what they take in memory; see `KeyValueState.report`.  Over it what deletes,
    shrinks or replaces by something no larger goes on, as do TTLs, which take about as
    much as the key again and do not count, and the list of who may join.  So does work at queues: an item
    is handed out whatever that takes, about 900 bytes until it is done, and 256 KiB more may be taken by leases and by
    those who wait for items.
    """
    if size_bytes is None:
        return Effect(Code.LIMIT, MAX_STATE_BYTES, SIZE.pack(0))
    if not isinstance(size_bytes, int) or isinstance(size_bytes, bool) or not 0 < size_bytes <= MAX_NUMBER:
        raise ConfigurationError(f"max_state_bytes is a number of bytes, 1 or more, or None, not {size_bytes!r:.100}")
    return Effect(Code.LIMIT, MAX_STATE_BYTES, SIZE.pack(size_bytes))


def open_lease(lease: str, ttl_ms: int) -> Effect:
    """Have that lease, which ends unless it is kept."""
    return Effect(Code.OPEN, lease, b"", ttl_ms)


def keep_lease(lease: str, placed: int, wanted: Iterable[int]) -> Effect:
    """Have it live for its TTL from now on, without those of its claims placed up to then that are not wanted."""
    numbers = sorted(wanted)
    return Effect(Code.KEEP, lease, KEPT.pack(placed) + struct.pack(f">{len(numbers)}Q", *numbers))


def end_lease(lease: str) -> Effect:
    """Have no such lease, and no claims under it."""
    return Effect(Code.END, lease)


def claim(
    name: str,
    lease: str,
    number: int,
    size: int = 1,
    units: int = 1,
    data: bytes = b"",
    *,
    waits: bool = True,
    kind: int = UNITS,
    attempt: int = 0,
) -> Effect:
    """Claim `units` of a name that has `size` of them; not if that would have to wait, unless it `waits`.

    attempt: who may `withdraw` it while it waits, until another claims the same; 0: nobody, for good.
    """
    asked = ASKED.pack(lease.encode(), number, size, units, waits, kind, attempt)
    return Effect(Code.CLAIM, checked_key(name), asked + data)


def release(name: str, lease: str, number: int) -> Effect:
    """Have no such claim."""
    return Effect(Code.RELEASE, checked_key(name), WHICH.pack(lease.encode(), number))


def withdraw(name: str, lease: str, number: int, attempt: int = 0) -> Effect:
    """Have no such claim, nor its lease if it has no other; of an `attempt` only while it waits, and is that one's."""
    return Effect(Code.WITHDRAW, checked_key(name), WITHDRAWN.pack(lease.encode(), number, attempt))


def prolong(name: str, lease: str, number: int) -> Effect:
    """Have the lease live for its TTL from now on, if that claim on that name is under it."""
    return Effect(Code.PROLONG, checked_key(name), WHICH.pack(lease.encode(), number))


def evict(name: str, fence: int) -> Effect:
    """Have no such claim as `withdraw` does, whoever's ticket it is, that is held by that fence."""
    return Effect(Code.EVICT, checked_key(name), FENCE.pack(fence))


def put(queue: str, value: bytes | bytearray | memoryview, max_tries: int | None = None) -> Effect:
    """Have another item at the end of that queue, by its whole name; see `raftsvc.recipes.Queue`."""
    tries = 0
    if max_tries is not None:
        if not isinstance(max_tries, int) or isinstance(max_tries, bool) or not 0 < max_tries <= MAX_TRIES:
            raise ConfigurationError(f"max_tries is from 1 to {MAX_TRIES}, or None, not {max_tries!r:.100}")
        tries = max_tries
    return Effect(Code.PUT, checked_queue(queue, tries), TRIES.pack(tries) + _checked_value(value))


def ack(queue: str, lease: str, number: int) -> Effect:
    """Whoever has an item of that queue by that claim is done with it."""
    return Effect(Code.ACK, checked_queue(queue), WHICH.pack(lease.encode(), number))


def admit(name: str, n: int, per_ms: int, cost: int = 1) -> Effect:
    """Use what is limited to `n` in `per_ms` so often, if that is allowed."""
    if not isinstance(n, int) or isinstance(n, bool) or not 0 < n <= MAX_LIMIT:
        raise ConfigurationError(f"a limit is a number from 1 to {MAX_LIMIT}, not {n!r:.100}")
    if not isinstance(cost, int) or isinstance(cost, bool) or not 0 < cost <= n:
        raise ConfigurationError(f"a cost is a number from 1 to the limit, which is {n}, not {cost!r:.100}")
    if not per_ms:
        raise ConfigurationError("a limit is so many in some time, of which None is none")
    return Effect(Code.ADMIT, checked_key(name), ASKED_OF_LIMIT.pack(n, per_ms, cost))


def checked_queue(name: str, max_tries: int = 0) -> str:
    """The name, if it can be one of a queue; raises TypeError or ValueError.

    max_tries: of what is put into it; 0: it is tried for ever, as is what only is taken out.
    """
    size_bytes = len(checked_key(name).encode())
    if size_bytes > most_queue_bytes(name, max_tries):
        raise ValueError(f"the name of a queue has at most {MAX_QUEUE_BYTES} bytes as UTF-8, not {size_bytes}")
    return name


def ttl_ms_of(ttl: float | None) -> int:
    """A TTL in whole milliseconds, rounded up, 0 for None; raises ConfigurationError if it makes no sense."""
    if ttl is None:
        return 0
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)):
        raise ConfigurationError(f"a ttl is a number of seconds, not {ttl!r:.100}")
    if not MIN_TTL_MS <= ttl * 1000 <= MAX_TTL_MS:  # nor is NaN
        raise ConfigurationError(
            f"a ttl is from {MIN_TTL_MS / 1000:g} to {MAX_TTL_MS // 1000} seconds, not {ttl!r:.100}"
        )
    return min(math.ceil(ttl * 1000), MAX_TTL_MS)


def _checked_number(name: str, number: int) -> int:
    if not isinstance(number, int) or isinstance(number, bool):
        raise ConfigurationError(f"{name} is an int, not {number!r:.100}")
    if not MIN_NUMBER <= number <= MAX_NUMBER:
        raise ConfigurationError(f"{name} is an int of 64 bits, not {number!r:.100}")
    return number


def checked_key(key: str) -> str:
    """The key, if it can be one; raises TypeError or ValueError."""
    if not isinstance(key, str):
        raise TypeError(f"a key is a str, not {type(key).__name__}")
    try:
        size_bytes = len(key.encode())
    except UnicodeEncodeError:
        raise ValueError(f"a key is text, and {key!r:.100} has half a character in it") from None
    if not 0 < size_bytes <= MAX_KEY_BYTES:
        raise ValueError(f"a key has 1 to {MAX_KEY_BYTES} bytes as UTF-8, not {size_bytes}")
    return key


def encode(operations: Sequence[Operation]) -> bytes:
    """The instruction for these operations."""
    if len(operations) > MAX_OPERATIONS:
        raise ValueError(f"a transaction has at most {MAX_OPERATIONS} operations, not {len(operations)}")
    parts: list[bytes] = []
    try:
        for operation in operations:
            if isinstance(operation, Condition):
                parts.append(encode_condition(operation.code, operation.key, operation.version))
            elif isinstance(operation, Effect):
                data = operation.data if type(operation.data) is bytes else bytes(memoryview(operation.data))
                parts.append(encode_effect(operation.code, operation.key, data, operation.ttl_ms))
            else:
                raise TypeError(f"{operation!r:.200} is neither a condition nor an effect")
        return encode_transaction(parts)
    except (AttributeError, TypeError, ValueError, struct.error) as error:
        if not all(isinstance(operation, Condition | Effect) for operation in operations):
            raise  # as above
        # Made by hand, for the functions above look.
        raise TypeError(f"one operation makes no sense ({error}); the functions of raftsvc.kv make such") from error
