"""The key-value store's snapshot: its content as bytes, in pieces, and back.

Format: magic, the limit of the size (8 bytes; 0 is none), then how many addresses may join (4) and each, its length
(2) first; the keys in order, each as the length of its UTF-8 form (2), version (8), length of the data (4), key and
data; an end, which is 0 for the length, and how many there were; the keys that expire, in order, each as its length
(2), the deadline in log time (8) and the key; an end like that; how many leases there are (4), each as its id, TTL and
deadline (8 each); how many names are claimed (4), each as its length (2), how many units it has (4), its kind (1), how
many claims there are on it (4), and itself, then these: lease, number (8), units (4), index of placing, fence, item
and attempt (8 each), length of the data (2) and the data; the id of the last item (8); then, each like the keys, the
items of queues by their names, the limits by theirs, and the keys that have a lease, with the id of that; how many
clocks were told (4), each as whose, what it showed, when in log time, and in which entry (8 each); how many jobs there
are (4), each as the lengths of name and schedule (2 each), the highest slot that is decided, from when on slots count,
and which entry planned it when in log time, as long as the former is not known (8 each), how many places it has (2)
and runs (4), and these: a place as the length of its name (2), lease, number (8) and name, each of those that run the
job with the length of its schedule (4) and that, a run as its numbers, the lengths of who has it and of what is said
of it (2 each), its place, and both. All integers are big-endian.

Invariant: the bytes depend on the content alone, not on how it came about, and where a piece
ends follows from what is before it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Final

from raftsvc.errors import RaftError
from raftsvc.kv.content import Content
from raftsvc.kv.expiry import MAX_DEADLINE_MS, Expiries
from raftsvc.kv.holds import Claim, Frozen, Holds, checked
from raftsvc.kv.items import Items
from raftsvc.kv.leased import LeasedKeys
from raftsvc.kv.limits import Limits
from raftsvc.kv.limits import checked as checked_limit
from raftsvc.kv.orders import Place
from raftsvc.kv.pages import Page, PagedMap, records_of
from raftsvc.kv.runs import FrozenRuns, Planned, Run, Runs, Told, checked_runs, is_granted
from raftsvc.kv.transactions import LEASE_DIGITS, MAX_CLAIM_DATA, MAX_KEY_BYTES, MAX_TTL_MS
from raftsvc.process import give_way

_MAGIC: Final = b"rkv4"
_LIMIT_AND_COUNT: Final = struct.Struct(">QI")  # how many addresses
_ADDRESS: Final = struct.Struct(">H")
_RECORD: Final = struct.Struct(
    ">HQI"
)  # length of the key, version, length of the data; a key of length 0 ends the records
_EXPIRY: Final = struct.Struct(">HQ")  # length of the key, deadline; a key of length 0 ends these
_COUNT: Final = struct.Struct(">I")
_LEASE: Final = struct.Struct(f">{LEASE_DIGITS}sQQ")
_NAME: Final = struct.Struct(">HIBI")
_LAST_ITEM: Final = struct.Struct(">QQ")
_CLAIM: Final = struct.Struct(f">{LEASE_DIGITS}sQIQQQQH")
_CLOCK: Final = struct.Struct(">QQQQ")
_JOB: Final = struct.Struct(">HHQQQQHI")
_PLACE: Final = struct.Struct(f">H{LEASE_DIGITS}sQ")
_RUN: Final = struct.Struct(">QIHBQQQHH")
_CHUNK_BYTES = 64 * 1024
_ANY: Final = 2**64 - 1


class MalformedSnapshotError(RaftError, ValueError):
    """The bytes to be restored are no snapshot of a key-value store; the state is as it was."""

    http_detail = "This node cannot read a snapshot."


def encode_snapshot(content: Content) -> Iterator[bytes]:
    """Pieces of about 64 KiB, of the content as it is now, whatever happens to it while they are consumed."""
    pages, expiring = content.keys.freeze(), content.expiries.freeze()
    head = _MAGIC + _LIMIT_AND_COUNT.pack(content.max_bytes, len(content.allowed))
    items = content.holds.items
    parts = chain(
        (head,),
        _addresses(content.allowed),
        _records(pages, len(content.keys)),
        _expiring(expiring, len(content.expiries)),
        _holds(content.holds.freeze()),
        (_LAST_ITEM.pack(items.last_id, items.base),),
        _records(items.freeze(), len(items)),
        _records(content.limits.freeze(), len(content.limits)),
        _records(content.leased.freeze(), len(content.leased)),
        _runs(content.runs.freeze()),
    )
    return _in_pieces(parts)


def _addresses(allowed: frozenset[str]) -> Iterator[bytes]:
    for addr in sorted(allowed):
        encoded = addr.encode()
        yield _ADDRESS.pack(len(encoded)) + encoded


def _holds(frozen: Frozen) -> Iterator[bytes]:
    yield _COUNT.pack(len(frozen.leases))
    for lease, ttl_ms, deadline_ms in frozen.leases:
        yield _LEASE.pack(lease.encode(), ttl_ms, deadline_ms)
    yield _COUNT.pack(len(frozen.names))
    for name, size, kind, claims in frozen.names:
        give_way()
        encoded = name.encode()
        yield _NAME.pack(len(encoded), size, kind, len(claims)) + encoded
        for lease, number, units, placed, fence, data, item, attempt in claims:
            yield _CLAIM.pack(lease.encode(), number, units, placed, fence, item, attempt, len(data)) + data


def _runs(frozen: FrozenRuns) -> Iterator[bytes]:
    yield _COUNT.pack(len(frozen.clocks))
    for clock in frozen.clocks:
        yield _CLOCK.pack(*clock)
    yield _COUNT.pack(len(frozen.jobs))
    for name, planned, runs in frozen.jobs:
        give_way()
        encoded = name.encode()
        numbers = *planned[1:5], len(planned.places), len(runs)
        yield _JOB.pack(len(encoded), len(planned.schedule), *numbers) + encoded + planned.schedule
        for place, schedule in zip(planned.places, planned.schedules, strict=True):
            yield _place(place) + _COUNT.pack(len(schedule)) + schedule
        for run in runs:
            yield _RUN.pack(*run[:7], len(run.who), len(run.said)) + _place(run.place) + run.who + run.said


def _place(place: Place) -> bytes:
    name, lease, number = place
    encoded = name.encode()
    return _PLACE.pack(len(encoded), lease.encode(), number) + encoded


def _records(pages: list[Page], count: int) -> Iterator[bytes]:
    for key, data, version in _passing(pages):
        encoded = key.encode()
        yield _RECORD.pack(len(encoded), version, len(data)) + encoded
        yield data
    yield _RECORD.pack(0, count, 0)


def _expiring(expiring: list[Page], expiring_count: int) -> Iterator[bytes]:
    for key, _, deadline_ms in _passing(expiring):
        encoded = key.encode()
        yield _EXPIRY.pack(len(encoded), deadline_ms) + encoded
    yield _EXPIRY.pack(0, expiring_count)


def _passing(pages: list[Page]) -> Iterator[tuple[str, bytes, int]]:
    """The records of all pages; each is let go of once it was passed, for it may have been replaced meanwhile."""
    pages.reverse()
    while pages:
        give_way()
        yield from records_of(pages.pop())


def _in_pieces(parts: Iterator[bytes]) -> Iterator[bytes]:
    piece: list[bytes] = []
    size_bytes = 0
    for part in parts:
        piece.append(part)
        size_bytes += len(part)
        if size_bytes >= _CHUNK_BYTES:
            yield b"".join(piece)
            piece = []
            size_bytes = 0
    yield b"".join(piece)


def decode_snapshot(chunks: Iterator[bytes], index: int) -> Content:
    """The content of a snapshot of that index, whose pieces, cut anywhere, are `chunks`.

    Raises MalformedSnapshotError if they are none, and whatever `chunks` raises.
    """
    reader = _Reader(chunks)
    if reader.take(len(_MAGIC)) != _MAGIC:
        raise MalformedSnapshotError(
            "this is no snapshot of a key-value store, or of another version of it: a node starts with the State that "
            "its directory was written with"
        )
    max_bytes, address_count = _LIMIT_AND_COUNT.unpack(reader.take(_LIMIT_AND_COUNT.size))
    allowed = frozenset([reader.take_key(_ADDRESS.unpack(reader.take(_ADDRESS.size))[0]) for _ in range(address_count)])
    keys = PagedMap.of(_decode_records(reader, index))
    expiries = Expiries.of(_decode_expiries(reader, keys))
    frozen = _decode_holds(reader, index)
    last_item, base = _LAST_ITEM.unpack(reader.take(_LAST_ITEM.size))
    try:
        holds = Holds.of(frozen, Items.of(_decode_records(reader, _ANY), last_item, frozen.taken(), base))
        limits = Limits.of((key, checked_limit(data), 1) for key, data, _ in _decode_records(reader, 1))
    except ValueError as error:
        raise error if isinstance(error, MalformedSnapshotError) else MalformedSnapshotError(str(error)) from error
    leased = LeasedKeys.of(_decode_leased(reader, keys, holds))
    runs = _decode_runs(reader, holds, index)
    if not reader.is_at_end():
        raise MalformedSnapshotError("the snapshot does not end as it should")
    return Content(keys, expiries, allowed, max_bytes, holds, leased, limits, runs)


def _decode_leased(reader: _Reader, keys: PagedMap, holds: Holds) -> Iterator[tuple[str, bytes, int]]:
    for key, lease, _ in _decode_records(reader, 1):
        if not keys.version(key) or not lease.isalnum() or not holds.has(lease.decode()):
            raise MalformedSnapshotError(f"the snapshot has {key!r} under no lease, or without a value")
        yield key, lease, 1


def _decode_records(reader: _Reader, index: int) -> Iterator[tuple[str, bytes, int]]:
    last_key = ""
    count = 0
    while True:
        key_length, version, length = _RECORD.unpack(reader.take(_RECORD.size))
        if key_length == 0:
            break
        key = reader.take_key(key_length)
        if key <= last_key or not 0 <= version <= index or (not version and index != _ANY):
            raise MalformedSnapshotError(f"the snapshot has {key!r} out of order, or of a version after {index}")
        yield key, reader.take(length), version
        last_key = key
        count += 1
    if (version, length) != (count, 0):
        raise MalformedSnapshotError(f"the snapshot has {count} keys and says otherwise")


def _decode_expiries(reader: _Reader, keys: PagedMap) -> Iterator[tuple[str, int]]:
    last_key = ""
    count = 0
    while True:
        key_length, deadline_ms = _EXPIRY.unpack(reader.take(_EXPIRY.size))
        if key_length == 0:
            break
        key = reader.take_key(key_length)
        if key <= last_key or not 0 < deadline_ms <= MAX_DEADLINE_MS or not keys.version(key):
            raise MalformedSnapshotError(f"the snapshot has {key!r} expire out of order, never, or without a value")
        yield key, deadline_ms
        last_key = key
        count += 1
    if deadline_ms != count:
        raise MalformedSnapshotError(f"the snapshot has {count} keys that expire and says otherwise")


def _decode_holds(reader: _Reader, index: int) -> Frozen:
    leases = [_decode_lease(reader) for _ in range(reader.take_count())]
    names = []
    for _ in range(reader.take_count()):
        give_way()
        length, size, kind, count = _NAME.unpack(reader.take(_NAME.size))
        name = reader.take_key(length)
        names.append((name, size, kind, [_decode_claim(reader) for _ in range(count)]))
    frozen = Frozen(leases, names)
    trouble = checked(frozen, index)
    if trouble is not None:
        raise MalformedSnapshotError(f"in the snapshot {trouble}")
    return frozen


def _decode_lease(reader: _Reader) -> tuple[str, int, int]:
    lease, ttl_ms, deadline_ms = _LEASE.unpack(reader.take(_LEASE.size))
    if not 0 < ttl_ms <= MAX_TTL_MS or not 0 < deadline_ms <= MAX_DEADLINE_MS:
        raise MalformedSnapshotError("the snapshot has a lease that ends never, or at once")
    return _lease_of(lease), ttl_ms, deadline_ms


def _decode_claim(reader: _Reader) -> Claim:
    lease, number, units, placed, fence, item, attempt, length = _CLAIM.unpack(reader.take(_CLAIM.size))
    if length > MAX_CLAIM_DATA:
        raise MalformedSnapshotError(f"the snapshot has {length} bytes of a claim")
    return Claim(_lease_of(lease), number, units, placed, fence, reader.take(length), item, attempt)


def _decode_runs(reader: _Reader, holds: Holds, index: int) -> Runs:
    clocks = [Told(*_CLOCK.unpack(reader.take(_CLOCK.size))) for _ in range(reader.take_count())]
    jobs = []
    for _ in range(reader.take_count()):
        give_way()
        length, said, *numbers, place_count, run_count = _JOB.unpack(reader.take(_JOB.size))
        name, schedule = reader.take_key(length), reader.take(said)
        places = [(_decode_place(reader), reader.take(reader.take_count())) for _ in range(place_count)]
        decided_ms, from_ms, asked_index, asked_ms = numbers
        planned = Planned(schedule, decided_ms, from_ms, asked_index, asked_ms, *_apart(places))
        jobs.append((name, planned, [_decode_run(reader) for _ in range(run_count)]))
    frozen = FrozenRuns(clocks, jobs)
    trouble = checked_runs(frozen, partial(is_granted, holds), index)
    if trouble is not None:
        raise MalformedSnapshotError(f"in the snapshot {trouble}")
    return Runs.of(frozen)


def _apart(places: list[tuple[Place, bytes]]) -> tuple[tuple[Place, ...], tuple[bytes, ...]]:
    return tuple([place for place, _ in places]), tuple([schedule for _, schedule in places])


def _decode_place(reader: _Reader) -> Place:
    length, lease, number = _PLACE.unpack(reader.take(_PLACE.size))
    return reader.take_key(length), _lease_of(lease), number


def _decode_run(reader: _Reader) -> Run:
    slot_ms, slots, attempt, state, fence, began_ms, ended_ms, who, said = _RUN.unpack(reader.take(_RUN.size))
    place = _decode_place(reader)
    texts = reader.take(who), reader.take(said)
    return Run(slot_ms, slots, attempt, state, fence, began_ms, ended_ms, place, *texts)


def _lease_of(data: bytes) -> str:
    if not data.isalnum():
        raise MalformedSnapshotError("the snapshot has a lease that can be none")
    return data.decode()


class _Reader:
    """Takes bytes from the front of pieces that are cut anywhere."""

    __slots__ = ("_buffer", "_chunks", "_offset")

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._buffer = b""
        self._offset = 0

    def take(self, length: int) -> bytes:
        stop = self._offset + length
        if stop > len(self._buffer):
            self._gather(length)
            stop = length
        taken = self._buffer[self._offset : stop]
        self._offset = stop
        return taken

    def _gather(self, length: int) -> None:
        """Have at least `length` bytes ahead.  A length is believed only as far as bytes arrive."""
        rest = self._buffer[self._offset :]
        parts = [rest] if rest else []
        missing = length - len(rest)
        while missing > 0:
            chunk = next(self._chunks, None)
            if chunk is None:
                raise MalformedSnapshotError("the snapshot is cut short")
            parts.append(chunk)
            missing -= len(chunk)
        # A snapshot that is one piece is not copied.
        self._buffer = parts[0] if len(parts) == 1 else b"".join(parts)
        self._offset = 0

    def take_key(self, length: int) -> str:
        if not 0 < length <= MAX_KEY_BYTES:
            raise MalformedSnapshotError(f"the snapshot claims a key of {length} bytes")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise MalformedSnapshotError("the snapshot has a key that is not UTF-8") from error

    def take_count(self) -> int:
        count: int = _COUNT.unpack(self.take(_COUNT.size))[0]
        return count

    def is_at_end(self) -> bool:
        return self._offset == len(self._buffer) and not any(self._chunks)
