"""The bytes of a transaction, and of a refusal: how each node reads what `kv.instructions` makes.

Instruction: format (1 byte), count of operations (2), then the operations: code (1), length of the key's UTF-8 form
(2), the key, and what the code asks for: IF_NOT_MODIFIED a version (8), SET the length of a value (4) and the value,
SET_EXPIRING a TTL in milliseconds (8) and the same, TOUCH a TTL, INCR a TTL, a delta and an initial number (8 each,
signed), LIMIT a size (8), of which 0 is none, with MAX_STATE_BYTES for a key; a TTL of 0 is none, with TOUCH and
INCR.  IF_HELD asks for a fence (8).  OPEN has the id of a lease for its key, and a TTL; KEEP and END too, and KEEP the
length (4) of what is kept (`kv.holds`), and that; CLAIM, RELEASE, WITHDRAW, PROLONG and EVICT have the name that is
claimed for their key, and, after a length, which claim is meant.  These, and ADMIT, which has the name of a limit and,
after a length, what is asked of that, come with conditions, and with no other effect.  SET_LEASED has the length of
the id of a lease and a value, and these; PUT, with the name of a queue for its key, that of how often it is tried (2)
and a value, and these; ACK says like RELEASE by which claim somebody has an item of such a queue.  All integers are
big-endian.  The count makes every shortened instruction recognizable as such.

Invariant: what `encode` makes, `decode` reads; anything else is refused by
Rejected, with a reason that depends on the bytes alone, since the reason is part
of the replicated outcome.  So is a transaction of which a condition does not hold, and
its reason says which, and why (`conflict`).  The set of codes of a format never grows: a node of an
older version would refuse what a newer one applies, and they would part ways.  Another format is written
once all know it: the State says so by its version (`raftsvc.VersionedState`), which is still the first.
"""

from __future__ import annotations

import re
import struct
from typing import Final

from raftsvc.errors import Rejected
from raftsvc.kv.items import DEAD, MAX_TRIES
from raftsvc.process import give_way

MAX_KEY_BYTES: Final = 1024
"""Of the UTF-8 form of a key, or of an address in the allowed list."""
MAX_OPERATIONS: Final = 4096
"""In one transaction; readers wait while one takes effect."""
MIN_TTL_MS: Final = 1
MAX_TTL_MS: Final = 36525 * 24 * 3600 * 1000
"""A hundred years."""
MIN_NUMBER, MAX_NUMBER = -(2**63), 2**63 - 1
"""Of a counter, and of what is added to it."""

_FORMAT: Final = 4
_HEAD: Final = struct.Struct(">BH")
_OPERATION: Final = struct.Struct(">BH")
_HEAD_AND_OPERATION: Final = struct.Struct(">BHBH")
_VERSION: Final = struct.Struct(">Q")
_LENGTH: Final = struct.Struct(">I")
_TTL: Final = struct.Struct(">Q")
NUMBERS: Final = struct.Struct(">qq")
"""Delta and initial number of an INCR, which are its data."""
SIZE: Final = struct.Struct(">Q")
"""Data of a LIMIT."""
MAX_STATE_BYTES: Final = "max_state_bytes"
LEASE_DIGITS: Final = 16
"""Of the id of a lease, in hexadecimal: drawn at random by who opens it."""
LEASE: Final = re.compile(b"[0-9a-f]{%d}" % LEASE_DIGITS)
ASKED: Final = struct.Struct(f">{LEASE_DIGITS}sQIIBBQ")
"""What a CLAIM says before its data: lease, number, how many units there are and are taken, whether it would wait, of
which kind the name is, and by which attempt (`WITHDRAWN`)."""
UNITS, ITEMS, MEETING = range(3)
"""Kinds of names: what is granted is some units of it, an item of a queue, or that so many wait for it as it has units,
all of whom are granted it at once."""
WHICH: Final = struct.Struct(f">{LEASE_DIGITS}sQ")
"""What a RELEASE says, or a PROLONG: lease and number."""
WITHDRAWN: Final = struct.Struct(f">{LEASE_DIGITS}sQQ")
"""What a WITHDRAW says: lease, number, and the attempt that gives up, drawn at random; 0: it is over for all."""
FENCE: Final = struct.Struct(">Q")
"""What an EVICT says."""
TICKET: Final = 0
"""The number of a claim that belongs to whoever knows its lease; those of processes are above."""
WAITS_ON, ENDED, NOTHING = 0, -1, -2
"""What a WITHDRAW answers: it waits, by another attempt; it is no more; it was not there.  Else its fence."""
KEPT: Final = struct.Struct(">Q")
"""What a KEEP says before the numbers of the claims that are wanted: up to which index all that are, are named."""
NUMBER: Final = struct.Struct(">Q")
TRIES: Final = struct.Struct(">H")
"""What a PUT says before the value: how often the item is tried; 0: for ever."""
ASKED_OF_LIMIT: Final = struct.Struct(">QQQ")
"""What an ADMIT says: n, in how many milliseconds, and how many of them this is."""
MAX_LIMIT: Final = 10**6
MAX_QUEUE_BYTES: Final = MAX_KEY_BYTES - 32
"""Of the UTF-8 form of a queue's name: those of its items, and of the queue of its dead, are longer; that one may be,
by what it has at its end, where its items are tried for ever."""
MAX_CLAIM_DATA: Final = 1024
"""Of what a claim says of who has it."""
MAX_UNITS: Final = 2**31 - 1

# What one operation does; conditions are below 16.  `kv.instructions.Code` says the same to people.
IF_NOT_MODIFIED: Final = 1
IF_HELD: Final = 2
SET: Final = 16
DELETE: Final = 17
ALLOW: Final = 18
DISALLOW: Final = 19
SET_EXPIRING: Final = 20
TOUCH: Final = 21
INCR: Final = 22
LIMIT: Final = 23
SET_LEASED: Final = 24
PUT: Final = 25
ACK: Final = 26
OPEN: Final = 32
KEEP: Final = 33
END: Final = 34
CLAIM: Final = 35
RELEASE: Final = 36
ADMIT: Final = 37
WITHDRAW: Final = 38
PROLONG: Final = 39
EVICT: Final = 40
OF_LEASES: Final = frozenset((OPEN, KEEP, END))
"""What is said of a lease, and of no key."""
ALONE: Final = frozenset((OPEN, KEEP, END, CLAIM, RELEASE, ADMIT, WITHDRAW, PROLONG, EVICT))
"""What comes with no other effect."""
OF_THE_CLUSTER: Final = frozenset((ALLOW, DISALLOW, LIMIT))
"""What is said of the whole, and of no key."""
_KEY_ONLY: Final = frozenset((DELETE, ALLOW, DISALLOW, END))
_WITH_TTL: Final = frozenset((SET_EXPIRING, TOUCH, INCR, OPEN))
_WITH_LENGTH: Final = frozenset(
    (SET, SET_EXPIRING, SET_LEASED, PUT, ACK, KEEP, CLAIM, RELEASE, ADMIT, WITHDRAW, PROLONG, EVICT)
)
_UNDER_A_CLAIM: Final = frozenset((ACK, RELEASE, WITHDRAW, PROLONG))
_WITH_MORE: Final = _WITH_TTL | _WITH_LENGTH | {LIMIT}
_FIXED_BYTES: Final = {TOUCH: 0, INCR: NUMBERS.size, LIMIT: SIZE.size, OPEN: 0}
_STRETCH: Final = 64  # operations between two looks at whether another thread waits
_LONE_HEAD_BYTES, _LENGTH_BYTES = _HEAD_AND_OPERATION.size, _LENGTH.size


def most_queue_bytes(name: str, max_tries: int) -> int:
    """There is room for the name of the dead of each queue whose items can die."""
    return MAX_QUEUE_BYTES + (len(DEAD) if not max_tries and name.endswith(DEAD) else 0)


def encode_condition(code: int, key: str, version: int) -> bytes:
    """That part of a transaction."""
    named = key.encode()
    return _OPERATION.pack(code, len(named)) + named + _VERSION.pack(version)


def encode_effect(code: int, key: str, data: bytes, ttl_ms: int) -> bytes:
    """That part of a transaction."""
    named = key.encode()
    head = _OPERATION.pack(code, len(named))
    if code in _WITH_TTL:
        head_of_data = _TTL.pack(ttl_ms)
        if code == SET_EXPIRING:
            head_of_data += _LENGTH.pack(len(data))
    elif code in _WITH_LENGTH:
        head_of_data = _LENGTH.pack(len(data))
    elif code == LIMIT:
        head_of_data = b""
    else:
        return head + named
    return b"".join((head, named, head_of_data, data))


def encode_transaction(operations: list[bytes]) -> bytes:
    """The instruction for these operations, of which there may be MAX_OPERATIONS."""
    return b"".join((_HEAD.pack(_FORMAT, len(operations)), *operations))


def encode_lone_set(key: str, data: bytes) -> bytes:
    """The instruction that is one SET and nothing else, as most are; what `encode_transaction` makes of that."""
    named = key.encode()
    head = _HEAD_AND_OPERATION.pack(_FORMAT, 1, SET, len(named))
    return b"".join((head, named, _LENGTH.pack(len(data)), data))


def decode_lone_set(data: bytes) -> tuple[str, bytes] | None:
    """Key and value if the instruction is one SET and nothing else, as most are; None if it is not, or is wrong.

    `decode` reads these too, and says what is wrong with them, but takes a microsecond longer (timeit).
    """
    size = len(data)
    if size < _LONE_HEAD_BYTES:
        return None
    version, count, code, length = _HEAD_AND_OPERATION.unpack_from(data)
    if code != SET or count != 1 or version != _FORMAT:
        return None
    stop = _LONE_HEAD_BYTES + length
    start = stop + _LENGTH_BYTES
    if not 0 < length <= MAX_KEY_BYTES or start > size or _LENGTH.unpack_from(data, stop)[0] != size - start:
        return None
    try:
        return data[_LONE_HEAD_BYTES:stop].decode(), data[start:]
    except UnicodeDecodeError:
        return None


def _read_key(encoded: bytes) -> str:
    """Empty, as no key is: it is not UTF-8."""
    try:
        return encoded.decode()
    except UnicodeDecodeError:
        return ""


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
    for position in range(count):  # no length is trusted
        if position % _STRETCH == _STRETCH - 1:
            give_way()
        start, key_start = offset, offset + _OPERATION.size
        if key_start > size:
            raise _cut_short(start)
        code, length = _OPERATION.unpack_from(data, start)
        offset = key_start + length
        if not 0 < length <= MAX_KEY_BYTES:
            raise Rejected(f"not a transaction: a key of {length} bytes at byte {key_start}")
        if offset > size:
            raise _cut_short(key_start)
        key = _read_key(data[key_start:offset])
        if not key:
            # The error's own text is Python's, and may differ between its versions.
            raise Rejected(f"not a transaction: the key at byte {key_start} is not UTF-8")
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
        lease, _, size, units, waits, kind, _ = ASKED.unpack_from(data)
        if not 0 < units <= size <= MAX_UNITS or waits > 1 or kind > MEETING or (kind != UNITS and units > 1):
            raise Rejected(f"not a transaction: a claim of {units} of {size}")
    elif code in _UNDER_A_CLAIM:
        if len(data) != (WITHDRAWN.size if code == WITHDRAW else WHICH.size):
            raise Rejected("not a transaction: a release has another length")
        lease = data[:LEASE_DIGITS]
    elif code == EVICT:
        if len(data) != FENCE.size:
            raise Rejected("not a transaction: a fence has another length")
        return
    elif code == SET_LEASED:
        lease = data[:LEASE_DIGITS]
    elif code == PUT:
        max_tries = TRIES.unpack_from(data)[0] if len(data) >= TRIES.size else MAX_TRIES
        if len(data) < TRIES.size or len(key.encode()) > most_queue_bytes(key, max_tries):
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
    if not LEASE.fullmatch(lease):
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


SHARED: Final = 1
"""The version in the refusal of an IF_HELD by whose fence several may hold some of a queue or a meeting; else it is 0.
"""
_CONFLICT: Final = re.compile(r"condition (\d+) does not hold: (\d+)")


def conflict(position: int, version: int) -> Rejected:
    """The refusal of a transaction whose condition number `position` does not hold, for its key is at `version`."""
    return Rejected(f"condition {position} does not hold: {version}")


def read_conflict(reason: str) -> tuple[int, int] | None:
    """Position and version, if a transaction was refused for `conflict`; None: for something else."""
    found = _CONFLICT.fullmatch(reason)
    return (int(found[1]), int(found[2])) if found is not None else None


_NO_COUNTER: Final = re.compile(
    "the value of effect ([0-9]+) is no number|effect ([0-9]+) leaves the numbers of 64 bits"
)


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


_NO_LEASE: Final = re.compile("there is no lease ([0-9a-f]+)")
_OTHER_SIZE: Final = re.compile("what is claimed has ([0-9]+) units")


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


_OVER_QUOTA: Final = re.compile("the state would have ([0-9]+) bytes, and may have ([0-9]+)")


def over_quota(size_bytes: int, max_bytes: int) -> Rejected:
    """The refusal of a transaction that would have the state grow to more than it may have."""
    return Rejected(f"the state would have {size_bytes} bytes, and may have {max_bytes}")


def read_over_quota(reason: str) -> bool:
    """Whether a transaction was refused for `over_quota`."""
    return _OVER_QUOTA.fullmatch(reason) is not None


def _cut_short(offset: int) -> Rejected:
    return Rejected(f"not a transaction: cut short at byte {offset}")
