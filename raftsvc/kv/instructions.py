"""What a transaction of the key-value store says, and its bytes.

Conditions and effects are made by the functions below and combined into one
transaction: every condition is judged by the state before the transaction, and
either all effects happen or none.  Nothing here applies anything.

Instruction: format (1 byte), count of operations (2), then the
operations: code (1), length of the key's UTF-8 form (2), the key, and what the
code asks for: IF_NOT_MODIFIED a version (8), SET the length of a value (4) and the value,
SET_EXPIRING a TTL in milliseconds (8) and the same, TOUCH a TTL, INCR a TTL, a delta and an
initial number (8 each, signed), LIMIT a size (8), of which 0 is none, with MAX_STATE_BYTES for a key; a TTL
of 0 is none, with TOUCH and INCR.  IF_HELD asks for a fence (8).  OPEN has the id of a lease for its key, and a
TTL; KEEP and END too, and KEEP the length (4) of what is kept (`kv.holds`), and that; CLAIM and RELEASE have the name
that is claimed for their key, and the like of what is claimed.  These five, and ADMIT, which has the name of a limit
and, after a length, what is asked of that, come with conditions, and with no other effect.  SET_LEASED has the length
of the id of a lease and a value, and these; PUT, with the name of a queue for its key, that of how often it is tried
(2) and a value, and these; ACK says like RELEASE by which claim somebody has an item of such a queue.  All integers are
big-endian.  The count makes every shortened instruction recognizable as such.

Invariant: what `encode` makes, `decode` reads; anything else is refused by
Rejected, with a reason that depends on the bytes alone, since the reason is part
of the replicated outcome.  So is a transaction of which a condition does not hold, and
its reason says which, and why (`conflict`).  The set of codes of a format never grows: a node of an
older version would refuse what a newer one applies, and they would part ways.  Another format is written
once all know it: the State says so by its version (`raftsvc.VersionedState`), which is still the first.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from raftsvc.addresses import canonical_addr, same_addr
from raftsvc.errors import ConfigurationError, Rejected
from raftsvc.kv.items import DEAD, MAX_TRIES

MAX_KEY_BYTES = 1024
"""Of the UTF-8 form of a key, or of an address in the allowed list."""
MAX_OPERATIONS = 4096
"""In one transaction; readers wait while one takes effect."""
MIN_TTL_MS = 1
MAX_TTL_MS = 36525 * 24 * 3600 * 1000
"""A hundred years."""
MIN_NUMBER, MAX_NUMBER = -(2**63), 2**63 - 1
"""Of a counter, and of what is added to it."""

_FORMAT = 4
_HEAD = struct.Struct(">BH")
_OPERATION = struct.Struct(">BH")
_HEAD_AND_OPERATION = struct.Struct(">BHBH")
_VERSION = struct.Struct(">Q")
_LENGTH = struct.Struct(">I")
_TTL = struct.Struct(">Q")
_TTL_AND_LENGTH = struct.Struct(">QI")
NUMBERS = struct.Struct(">qq")
"""Delta and initial number of an INCR, which are its data."""
SIZE = struct.Struct(">Q")
"""Data of a LIMIT."""
MAX_STATE_BYTES = "max_state_bytes"
LEASE_DIGITS = 16
"""Of the id of a lease, in hexadecimal: drawn at random by who opens it."""
_LEASE = re.compile(b"[0-9a-f]{%d}" % LEASE_DIGITS)
ASKED = struct.Struct(f">{LEASE_DIGITS}sQIIBB")
"""What a CLAIM says before its data: lease, number, how many units there are and are taken, whether it would wait, and
of which kind the name is."""
UNITS, ITEMS, MEETING = range(3)
"""Kinds of names: what is granted is some units of it, an item of a queue, or that so many wait for it as it has units,
all of whom are granted it at once."""
WHICH = struct.Struct(f">{LEASE_DIGITS}sQ")
"""What a RELEASE says: lease and number."""
KEPT = struct.Struct(">Q")
"""What a KEEP says before the numbers of the claims that are wanted: up to which index all that are, are named."""
NUMBER = struct.Struct(">Q")
TRIES = struct.Struct(">H")
"""What a PUT says before the value: how often the item is tried; 0: for ever."""
ASKED_OF_LIMIT = struct.Struct(">QQQ")
"""What an ADMIT says: n, in how many milliseconds, and how many of them this is."""
MAX_LIMIT = 10**6
MAX_QUEUE_BYTES = MAX_KEY_BYTES - 32
"""Of the UTF-8 form of a queue's name: those of its items, and of the queue of its dead, are longer; that one may be,
by what it has at its end, where its items are tried for ever."""
MAX_CLAIM_DATA = 1024
"""Of what a claim says of who has it."""
MAX_UNITS = 2**31 - 1
_MAX_VERSION = 2**64 - 1
_MAX_VALUE_BYTES = 2**32 - 1


class Code(IntEnum):
    """What one operation does.  Conditions are below 16."""

    IF_NOT_MODIFIED = 1
    IF_HELD = 2
    SET = 16
    DELETE = 17
    ALLOW = 18
    DISALLOW = 19
    SET_EXPIRING = 20
    TOUCH = 21
    INCR = 22
    LIMIT = 23
    SET_LEASED = 24
    PUT = 25
    ACK = 26
    OPEN = 32
    KEEP = 33
    END = 34
    CLAIM = 35
    RELEASE = 36
    ADMIT = 37


# As numbers, for every node compares them with those of every instruction.
IF_NOT_MODIFIED, IF_HELD, SET, DELETE, ALLOW, DISALLOW, SET_EXPIRING, TOUCH, INCR, LIMIT, *_LATER = map(int, Code)
SET_LEASED, PUT, ACK, *_ALONE = _LATER
OPEN, KEEP, END, CLAIM, RELEASE, ADMIT = _ALONE
OF_LEASES = frozenset((OPEN, KEEP, END))
"""What is said of a lease, and of no key."""
ALONE = frozenset(_ALONE)
"""What comes with no other effect."""
OF_THE_CLUSTER = frozenset((ALLOW, DISALLOW, LIMIT))
"""What is said of the whole, and of no key."""
_KEY_ONLY = frozenset((DELETE, ALLOW, DISALLOW, END))
_WITH_TTL = frozenset((SET_EXPIRING, TOUCH, INCR, OPEN))
_WITH_LENGTH = frozenset((SET, SET_EXPIRING, SET_LEASED, PUT, ACK, KEEP, CLAIM, RELEASE, ADMIT))
_UNDER_A_CLAIM = frozenset((ACK, RELEASE))
_WITH_MORE = _WITH_TTL | _WITH_LENGTH | {LIMIT}
_FIXED_BYTES = {TOUCH: 0, INCR: NUMBERS.size, LIMIT: SIZE.size, OPEN: 0}
_LONE_SET = (_FORMAT, 1, SET)


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
    if not isinstance(text, str) or not _LEASE.fullmatch(text.encode(errors="replace")):
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
    return Effect(Code.ALLOW, checked_key(canonical_addr(checked_key(addr))))


def disallow(addr: str) -> Effect:
    """Let it join no more; a member remains one."""
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
) -> Effect:
    """Claim `units` of a name that has `size` of them; not if that would have to wait, unless it `waits`."""
    asked = ASKED.pack(lease.encode(), number, size, units, waits, kind)
    return Effect(Code.CLAIM, checked_key(name), asked + data)


def release(name: str, lease: str, number: int) -> Effect:
    """Have no such claim."""
    return Effect(Code.RELEASE, checked_key(name), WHICH.pack(lease.encode(), number))


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
    if size_bytes > _most_queue_bytes(name, max_tries):
        raise ValueError(f"the name of a queue has at most {MAX_QUEUE_BYTES} bytes as UTF-8, not {size_bytes}")
    return name


def _most_queue_bytes(name: str, max_tries: int) -> int:
    """There is room for the name of the dead of each queue whose items can die."""
    return MAX_QUEUE_BYTES + (len(DEAD) if not max_tries and name.endswith(DEAD) else 0)


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
    parts = [_HEAD.pack(_FORMAT, len(operations))]
    try:
        for operation in operations:
            if isinstance(operation, Condition):
                key = operation.key.encode()
                parts += (_OPERATION.pack(operation.code, len(key)), key, _VERSION.pack(operation.version))
            elif isinstance(operation, Effect):
                key = operation.key.encode()
                code = operation.code
                parts += (_OPERATION.pack(code, len(key)), key)
                if code == SET:
                    parts += (_LENGTH.pack(len(operation.data)), operation.data)
                elif code == SET_EXPIRING:
                    parts += (_TTL_AND_LENGTH.pack(operation.ttl_ms, len(operation.data)), operation.data)
                elif code in (TOUCH, INCR, OPEN):
                    parts += (_TTL.pack(operation.ttl_ms), operation.data)
                elif code in _WITH_LENGTH:
                    parts += (_LENGTH.pack(len(operation.data)), operation.data)
                elif code == LIMIT:
                    parts.append(operation.data)
            else:
                raise TypeError(f"{operation!r:.200} is neither a condition nor an effect")
        return b"".join(parts)
    except (AttributeError, TypeError, ValueError, struct.error) as error:
        if not all(isinstance(operation, Condition | Effect) for operation in operations):
            raise  # as above
        # Made by hand, for the functions above look.
        raise TypeError(f"one operation makes no sense ({error}); the functions of raftsvc.kv make such") from error


def decode_lone_set(data: bytes) -> tuple[str, bytes] | None:
    """Key and value if the instruction is one SET and nothing else, as most are; None if it is not, or is wrong.

    `decode` reads these too, and says what is wrong with them, but takes a microsecond longer (timeit).
    """
    size = len(data)
    if size < _HEAD_AND_OPERATION.size:
        return None
    version, count, code, length = _HEAD_AND_OPERATION.unpack_from(data)
    stop = _HEAD_AND_OPERATION.size + length
    start = stop + _LENGTH.size
    if (
        (version, count, code) != _LONE_SET
        or not 0 < length <= MAX_KEY_BYTES
        or start > size
        or _LENGTH.unpack_from(data, stop)[0] != size - start
    ):
        return None
    try:
        return data[_HEAD_AND_OPERATION.size : stop].decode(), data[start:]
    except UnicodeDecodeError:
        return None


def decode(data: bytes) -> tuple[list[tuple[int, str, int]], list[tuple[int, str, bytes, int]]]:
    """Conditions and effects of an instruction, each in its order; raises Rejected.

    Conditions and effects are tuples here, of code, key and the other fields of those classes: every node
    decodes every instruction.
    """
    size = len(data)
    if size < _HEAD.size:
        raise Rejected("not a transaction: cut short")
    version, count = _HEAD.unpack_from(data)
    if version != _FORMAT:
        raise Rejected(f"not a transaction: unknown format {version}")
    if count > MAX_OPERATIONS:
        raise Rejected(f"a transaction has at most {MAX_OPERATIONS} operations, not {count}")
    offset = _HEAD.size
    conditions: list[tuple[int, str, int]] = []
    effects: list[tuple[int, str, bytes, int]] = []
    for _ in range(count):  # no length is trusted
        start, key_start = offset, offset + _OPERATION.size
        if key_start > size:
            raise _cut_short(start)
        code, length = _OPERATION.unpack_from(data, start)
        offset = key_start + length
        if not 0 < length <= MAX_KEY_BYTES:
            raise Rejected(f"not a transaction: a key of {length} bytes at byte {key_start}")
        if offset > size:
            raise _cut_short(key_start)
        try:
            key = data[key_start:offset].decode()
        except UnicodeDecodeError:
            # The error's own text is Python's, and may differ between its versions.
            raise Rejected(f"not a transaction: the key at byte {key_start} is not UTF-8") from None
        if code in (IF_NOT_MODIFIED, IF_HELD):
            version_start, offset = offset, offset + _VERSION.size
            if offset > size:
                raise _cut_short(version_start)
            conditions.append((code, key, _VERSION.unpack_from(data, version_start)[0]))
        elif code in _KEY_ONLY:
            effects.append((code, key, b"", 0))
        elif code in _WITH_MORE:
            if code == LIMIT and key != MAX_STATE_BYTES:
                raise Rejected(f"not a transaction: unknown limit at byte {key_start}")
            content, ttl_ms, offset = _decode_rest(code, data, offset)
            effects.append((code, key, content, ttl_ms))
        else:
            raise Rejected(f"not a transaction: unknown operation {code} at byte {start}")
    if offset != size:
        raise Rejected(f"not a transaction: {size - offset} bytes too many")
    if len(effects) > 1 and any(effect[0] in ALONE for effect in effects):
        raise Rejected("not a transaction: what is said of leases, claims and limits comes with no other effect")
    for code, key, content, _ in effects:
        if code >= SET_LEASED:
            _check_content(code, key, content)
    return conditions, effects


def _check_content(code: int, key: str, data: bytes) -> None:
    """Raise Rejected unless what is said of a lease, a claim, a queue or a limit makes sense."""
    if code == CLAIM:
        if not ASKED.size <= len(data) <= ASKED.size + MAX_CLAIM_DATA:
            raise Rejected("not a transaction: a claim is cut short, or says too much")
        lease, _, size, units, waits, kind = ASKED.unpack_from(data)
        if not 0 < units <= size <= MAX_UNITS or waits > 1 or kind > MEETING or (kind != UNITS and units > 1):
            raise Rejected(f"not a transaction: a claim of {units} of {size}")
    elif code in _UNDER_A_CLAIM:
        if len(data) != WHICH.size:
            raise Rejected("not a transaction: a release has another length")
        lease, _ = WHICH.unpack(data)
    elif code == SET_LEASED:
        lease = data[:LEASE_DIGITS]
    elif code == PUT:
        max_tries = TRIES.unpack_from(data)[0] if len(data) >= TRIES.size else MAX_TRIES
        if len(data) < TRIES.size or len(key.encode()) > _most_queue_bytes(key, max_tries):
            raise Rejected("not a transaction: an item is cut short, or of a queue with too long a name")
        return
    elif code == ADMIT:
        n, per_ms, cost = ASKED_OF_LIMIT.unpack(data) if len(data) == ASKED_OF_LIMIT.size else (0, 0, 0)
        if not 0 < cost <= n <= MAX_LIMIT or not MIN_TTL_MS <= per_ms <= MAX_TTL_MS:
            raise Rejected(f"not a transaction: a limit of {n} in {per_ms} ms, {cost} at once")
        return
    else:
        if code == KEEP and (len(data) < KEPT.size or (len(data) - KEPT.size) % NUMBER.size):
            raise Rejected("not a transaction: what is kept is cut short")
        lease = key.encode()
    if not _LEASE.fullmatch(lease):
        raise Rejected("not a transaction: there can be no such lease")


def _decode_rest(code: int, data: bytes, offset: int) -> tuple[bytes, int, int]:
    """What an effect has after its key: data, TTL, and where it ends."""
    ttl_ms = 0
    if code in _WITH_TTL:
        if offset + _TTL.size > len(data):
            raise _cut_short(offset)
        (ttl_ms,) = _TTL.unpack_from(data, offset)
        if not MIN_TTL_MS <= ttl_ms <= MAX_TTL_MS and (ttl_ms != 0 or code in (SET_EXPIRING, OPEN)):
            raise Rejected(f"a ttl is from {MIN_TTL_MS} to {MAX_TTL_MS} ms, not {ttl_ms}")
        offset += _TTL.size
    start = offset
    if code in _WITH_LENGTH:
        start += _LENGTH.size
        if start > len(data):
            raise _cut_short(offset)
        stop = start + _LENGTH.unpack_from(data, offset)[0]
    else:
        stop = start + _FIXED_BYTES[code]
    if stop > len(data):
        raise _cut_short(start)
    return data[start:stop], ttl_ms, stop


SHARED = 1
"""The version in the refusal of an IF_HELD by whose fence several may hold some of a queue or a meeting; else it is 0.
"""
_CONFLICT = re.compile(r"condition (\d+) does not hold: (\d+)")


def conflict(position: int, version: int) -> Rejected:
    """The refusal of a transaction whose condition number `position` does not hold, for its key is at `version`."""
    return Rejected(f"condition {position} does not hold: {version}")


def read_conflict(reason: str) -> tuple[int, int] | None:
    """Position and version, if a transaction was refused for `conflict`; None: for something else."""
    found = _CONFLICT.fullmatch(reason)
    return (int(found[1]), int(found[2])) if found is not None else None


_NO_COUNTER = re.compile("the value of effect ([0-9]+) is no number|effect ([0-9]+) leaves the numbers of 64 bits")


def no_number(position: int) -> Rejected:
    """The refusal of a transaction whose effect number `position` would add to what is no number of 64 bits."""
    return Rejected(f"the value of effect {position} is no number")


def no_room(position: int) -> Rejected:
    """The refusal of one whose effect number `position` would make a number of more than 64 bits."""
    return Rejected(f"effect {position} leaves the numbers of 64 bits")


def read_no_counter(reason: str) -> int | None:
    """The position, if a transaction was refused for `no_number` or `no_room`."""
    found = _NO_COUNTER.fullmatch(reason)
    return int(found[1] or found[2]) if found is not None else None


_NO_LEASE = re.compile("there is no lease ([0-9a-f]+)")
_OTHER_SIZE = re.compile("what is claimed has ([0-9]+) units")


def no_lease(lease: str) -> Rejected:
    """The refusal of what is said under a lease that is over."""
    return Rejected(f"there is no lease {lease}")


def read_no_lease(reason: str) -> str | None:
    """The lease, if something was refused for `no_lease`."""
    found = _NO_LEASE.fullmatch(reason)
    return found[1] if found is not None else None


def used_number(number: int) -> Rejected:
    """The refusal of a claim whose number another claim under its lease has, on another name."""
    return Rejected(f"claim {number} of that lease is on another name")


def other_size(size: int) -> Rejected:
    """The refusal of a claim on a name that has, as long as somebody claims some of it, another size."""
    return Rejected(f"what is claimed has {size} units")


def read_other_size(reason: str) -> int | None:
    """The size that it has, if a claim was refused for `other_size`."""
    found = _OTHER_SIZE.fullmatch(reason)
    return int(found[1]) if found is not None else None


_OVER_QUOTA = re.compile("the state would have ([0-9]+) bytes, and may have ([0-9]+)")


def over_quota(size_bytes: int, max_bytes: int) -> Rejected:
    """The refusal of a transaction that would have the state grow to more than it may have."""
    return Rejected(f"the state would have {size_bytes} bytes, and may have {max_bytes}")


def read_over_quota(reason: str) -> bool:
    """Whether a transaction was refused for `over_quota`."""
    return _OVER_QUOTA.fullmatch(reason) is not None


def _cut_short(offset: int) -> Rejected:
    return Rejected(f"not a transaction: cut short at byte {offset}")
