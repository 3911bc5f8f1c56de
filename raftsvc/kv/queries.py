"""What a connected client asks of the store, and the answers, as bytes.

Question: what is asked (1 byte), how many names (2), each one's length (2) and UTF-8 form, how many keys at
most are wanted (4), and how many bytes of values (4), of either of which all ones are any number.  Names are, of
MANY, the keys, of LIST prefix and `after`, of CLAIMS what is claimed, of CLAIM and ITEM that, lease and number of
the claim, of COUNTS a queue; ALLOWED has none.

JOB has a job's full name, and JOBS what those begin with that are wanted.

Answer: how many (4), then of each the length of its key (2), the key and, but for ALLOWED and JOBS, its version (8),
the length of its value (4) and the value.  CLAIMS has the place in the order for a key, the fence for a version, and
what the claim says; CLAIM its own alone, without that.  ITEM has the item's name, its fence for a version, and how
often it was tried (8) before what it says; COUNTS "ready" and "taken", with how many for a version.

Of JOB it is 0 if there is none, else 1 (1); up to where it is decided, from when on its schedule counts, in which
entry that was asked, and when (8 each); how many runs (4), and the length of its schedule (4), which follows; then of
each run slot (8), slots (4), attempt (2), state (1), fence, begin and end (8 each), the lengths of who has it and of
what was said (2 each), and these.  Under which leases they are is not told.

All integers are big-endian.  What does not decode is refused by Rejected.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from raftsvc.errors import Rejected
from raftsvc.kv.items import ID_DIGITS
from raftsvc.kv.pages import Value
from raftsvc.kv.queues import Item
from raftsvc.kv.runs import Planned, Run

MANY, LIST, ALLOWED, CLAIMS, CLAIM, ITEM, COUNTS, JOB, JOBS = 1, 2, 3, 4, 5, 6, 7, 8, 9
_COUNTS = {LIST: 2, ALLOWED: 0, CLAIMS: 1, CLAIM: 3, ITEM: 3, COUNTS: 1, JOB: 1, JOBS: 1}
"""How many names each has; MANY any number."""
MAX_KEYS = 65535
"""In one question."""

_HEAD = struct.Struct(">BH")
_KEY_LENGTH = struct.Struct(">H")
_COUNT = struct.Struct(">I")
_BOUNDS = struct.Struct(">II")
_VALUE = struct.Struct(">QI")
_TRIES = struct.Struct(">Q")
_ANY_NUMBER = 2**32 - 1
_PLANNED = struct.Struct(">BQQQQII")
_RUN = struct.Struct(">QIHBQQQHH")
_NOWHERE = ("", "", 0)


class Question(NamedTuple):
    """What is asked.  names: the keys; of LIST prefix and `after`.  limit, max_bytes: of LIST, see there."""

    kind: int
    names: tuple[str, ...] = ()
    limit: int | None = None
    max_bytes: int | None = None

    @property
    def scope(self) -> tuple[str, ...]:
        """The keys and names that it is about, or the prefix."""
        return self.names if self.kind == MANY else self.names[:1]

    def encode(self) -> bytes:
        """Raises ValueError if there are too many keys, or one is too long."""
        if len(self.names) > MAX_KEYS:
            raise ValueError(f"at most {MAX_KEYS} keys are asked for at once, not {len(self.names)}")
        parts = [_HEAD.pack(self.kind, len(self.names))]
        for name in self.names:
            data = name.encode()
            if len(data) > MAX_KEYS:
                raise ValueError(f"a key of {len(data)} bytes is none")
            parts += (_KEY_LENGTH.pack(len(data)), data)
        bounds = [_ANY_NUMBER if each is None else min(each, _ANY_NUMBER - 1) for each in (self.limit, self.max_bytes)]
        return b"".join([*parts, _BOUNDS.pack(*bounds)])

    @classmethod
    def decode(cls, data: bytes) -> Question:
        """Raises Rejected."""
        try:
            kind, count = _HEAD.unpack_from(data)
            offset = _HEAD.size
            names = []
            for _ in range(count):
                (length,) = _KEY_LENGTH.unpack_from(data, offset)
                offset += _KEY_LENGTH.size
                if offset + length > len(data):
                    raise Rejected("not a question: cut short")
                names.append(data[offset : offset + length].decode())
                offset += length
            bounds = _BOUNDS.unpack_from(data, offset)
        except (struct.error, UnicodeDecodeError):
            raise Rejected("not a question: it does not decode") from None
        wanted = _COUNTS.get(kind, count)
        if offset + _BOUNDS.size != len(data) or not MANY <= kind <= JOBS or count != wanted:
            raise Rejected("not a question: it is none that is known")
        limit, max_bytes = [None if each == _ANY_NUMBER else int(each) for each in bounds]
        return cls(kind, tuple(names), limit, max_bytes)


def encode_values(found: Mapping[str, Value]) -> bytes:
    """The answer to MANY and LIST."""
    parts = [_COUNT.pack(len(found))]
    for key, value in found.items():
        name = key.encode()
        parts += (_KEY_LENGTH.pack(len(name)), name, _VALUE.pack(value.version, len(value.data)), value.data)
    return b"".join(parts)


def decode_values(data: bytes) -> dict[str, Value]:
    """What `encode_values` made; raises Rejected if it did not."""
    found = {}
    for key, offset, stop, version in _walk(data, has_values=True):
        found[key] = Value(data[offset:stop], version)
    return found


def encode_item(item: Item | None) -> bytes:
    """The answer to ITEM."""
    if item is None:
        return encode_values({})
    return encode_values({item.name: Value(_TRIES.pack(item.tries) + item.value, item.fence)})


def decode_item(data: bytes) -> Item | None:
    """What `encode_item` made; raises Rejected if it did not."""
    for name, value in decode_values(data).items():
        try:
            (tries,) = _TRIES.unpack_from(value.data)
            return Item(name, int(name[-ID_DIGITS:], 16), value.data[_TRIES.size :], tries, value.version)
        except (struct.error, ValueError):
            raise Rejected("the answer is no item") from None
    return None


def encode_names(names: Iterable[str]) -> bytes:
    """The answer to ALLOWED."""
    encoded = [name.encode() for name in sorted(names)]
    return b"".join([_COUNT.pack(len(encoded)), *(_KEY_LENGTH.pack(len(name)) + name for name in encoded)])


def decode_names(data: bytes) -> frozenset[str]:
    """What `encode_names` made; raises Rejected if it did not."""
    return frozenset(key for key, *_ in _walk(data, has_values=False))


def encode_job(planned: Planned | None, runs: Sequence[Run]) -> bytes:
    """The answer to JOB."""
    if planned is None:
        return _PLANNED.pack(0, 0, 0, 0, 0, 0, 0)
    head = _PLANNED.pack(1, *planned[1:5], len(runs), len(planned.schedule))
    texts = [_RUN.pack(*run[:7], len(run.who), len(run.said)) + run.who + run.said for run in runs]
    return b"".join([head, planned.schedule, *texts])


def decode_job(data: bytes) -> tuple[Planned | None, list[Run]]:
    """What `encode_job` made, places apart; raises Rejected if it did not."""
    runs = []
    try:
        is_there, *numbers, count, length = _PLANNED.unpack_from(data)
        offset = _PLANNED.size + length
        schedule = data[_PLANNED.size : offset]
        for _ in range(count):
            *fields, who_length, said_length = _RUN.unpack_from(data, offset)
            who_at = offset + _RUN.size
            said_at, offset = who_at + who_length, who_at + who_length + said_length
            slot_ms, slots, attempt, state, fence, began_ms, ended_ms = fields
            texts = data[who_at:said_at], data[said_at:offset]
            runs.append(Run(slot_ms, slots, attempt, state, fence, began_ms, ended_ms, _NOWHERE, *texts))
    except struct.error:
        raise Rejected("the answer does not decode") from None
    if offset != len(data) or is_there > 1 or (not is_there and any([*numbers, count, length])):
        raise Rejected("the answer is no job")
    decided_ms, from_ms, asked_index, asked_ms = numbers
    return (Planned(schedule, decided_ms, from_ms, asked_index, asked_ms, (), ()) if is_there else None), runs


def _walk(data: bytes, has_values: bool) -> list[tuple[str, int, int, int]]:
    """Each key, where its value begins and ends, and its version."""
    found = []
    try:
        (count,) = _COUNT.unpack_from(data)
        offset = _COUNT.size
        for _ in range(count):
            (length,) = _KEY_LENGTH.unpack_from(data, offset)
            offset += _KEY_LENGTH.size
            key = data[offset : offset + length].decode()
            offset += length
            version = size = 0
            if has_values:
                version, size = _VALUE.unpack_from(data, offset)
                offset += _VALUE.size
            if offset + size > len(data):
                raise Rejected("the answer is cut short")
            found.append((key, offset, offset + size, version))
            offset += size
    except (struct.error, UnicodeDecodeError):
        raise Rejected("the answer does not decode") from None
    return found
