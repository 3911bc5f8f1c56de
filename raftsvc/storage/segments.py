"""Segments of the log as they are read: at a start, ahead of one, or to say what is wrong with them.

A process that is to own the directory soon reads what is there while the owner still writes to it (`read_ahead`),
and has only the rest to read once it is free.

Nothing here changes a file.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple
from zlib import crc32

from raftsvc.core.messages import (
    Entry,
    HardState,
    Lineage,
    MalformedError,
    decode_entries,
    entries_follow,
    index_of,
    term_of,
    time_of,
)
from raftsvc.errors import DamagedStorageError, FormatVersionError, StorageError, damaged_head
from raftsvc.process import LongWork, give_way
from raftsvc.storage.files import Files, read_file
from raftsvc.storage.records import (
    ADVICE,
    BODY,
    CLOSING,
    HARD_STATE,
    LIFE,
    MAGIC,
    MARK,
    SEGMENT_HEAD,
    SNAPSHOT_MARK,
    START,
    STATE,
    VERSION,
    Record,
    is_torn,
    is_torn_closing,
    is_zero,
    read_record,
)


@dataclass(frozen=True, slots=True)
class Mark:
    """The snapshot that the log continues from."""

    index: int = 0
    term: int = 0


@dataclass(slots=True)
class Recovered:
    """What a log held when it was opened.  `base` is the index before the first entry."""

    cluster_id: int
    node_id: int
    base: int
    hard_state: HardState
    mark: Mark
    entries: list[Entry]
    life: Lineage

    def take(self, kind: int, payload: bytes) -> int:
        """Take in one record; returns the highest index of an entry in it."""
        try:
            if kind == STATE:
                self.hard_state = HardState(*HARD_STATE.unpack(payload))
                return 0
            if kind == LIFE:
                self.life = Lineage.decode(payload)
                return 0
            if kind == SNAPSHOT_MARK:
                self.mark = mark = Mark(*MARK.unpack(payload))
                position = mark.index - self.base - 1
                if position >= len(self.entries) or (position >= 0 and term_of(self.entries[position]) != mark.term):
                    self.base = mark.index  # the rule of _Extent.mark
                    self.entries = []
                return 0
        except struct.error as error:
            raise MalformedError(f"record of a wrong length: {error}") from error
        entries = decode_entries(payload)
        first = index_of(entries[0]) if entries else 0
        if not entries or not entries_follow(entries, first - 1):
            raise MalformedError("a batch of entries has gaps, or log time goes back in it")
        if first > self.base + len(self.entries) + 1:
            raise MalformedError(f"entry {first} follows {self.base + len(self.entries)}")
        self.base = min(self.base, first - 1)
        del self.entries[first - self.base - 1 :]
        if self.entries and time_of(entries[0]) < time_of(self.entries[-1]):
            raise MalformedError(f"log time goes back at entry {first}")
        self.entries += entries
        return index_of(entries[-1])


class Head(NamedTuple):
    """What a segment says of itself: see `records`."""

    magic: bytes
    version: bytes
    cluster_id: int
    node_id: int
    number: int
    first_index: int
    size: int
    previous: int
    crc: int


class End(NamedTuple):
    """Where the records of a segment end, and what is there."""

    path: str
    salt: int
    max_index: int  # the highest index written to the segment
    durable: int  # what was so when the last record was written
    offset: int
    chain: int
    mark_at: int  # where the last record lacks its end mark, or 0
    problem: str | None  # what is wrong with the record at `offset`
    is_closed: bool

    @property
    def is_pristine(self) -> bool:
        """Whether the segment holds only what it begins with."""
        return self.offset == BODY and self.problem is None

    def damage(self) -> DamagedStorageError:
        """What is wrong if it does not end the log."""
        what = self.problem or "the record that closes it is missing"
        return DamagedStorageError(self.path, self.offset, what, ADVICE)


class Place(NamedTuple):
    """Where reading the records of a segment goes on, and what the one before it said: see `End`."""

    offset: int
    durable: int
    chain: int
    max_index: int
    mark_at: int

    @classmethod
    def first(cls, head: Head) -> Place:
        """Before the first record."""
        return cls(START, START, head.crc, 0, 0)


class _Seen(NamedTuple):
    """What of a segment was read: so many bytes, and what they were."""

    number: int
    size: int
    digest: bytes


class Ahead(NamedTuple):
    """What was read of a log while another process wrote to it.

    Reading is most of what opening a log takes, and depends on nothing but the bytes that are read: where they are
    the same later, it need not be done again.

    found: what it held.
    seen:  of which bytes that was made.
    ends:  of all segments but the last.
    place: in that one, up to where it was read.
    """

    found: Recovered
    seen: list[_Seen]
    ends: list[End]
    place: Place

    def compare(self, files: Files, path: str, numbers: Sequence[int]) -> bytes | None:
        """Whether the log in `path`, of segments of these numbers, begins with the very bytes that were read.

        Returns the last of those segments as it is now, all of it, or None if they are others.  It is to be used as it
        is: what is read twice may differ, where only the page cache held it.
        """
        if list(numbers[: len(self.seen)]) != [seen.number for seen in self.seen]:
            return None
        data = b""
        for seen in self.seen:
            data = read_file(files, f"{path}/{segment_name(seen.number)}")
            if len(data) < seen.size or sha256(memoryview(data)[: seen.size]).digest() != seen.digest:
                return None
            give_way()
        return data


def segment_name(number: int) -> str:
    return f"{number:016d}.wal"


def numbers_of(path: str, names: Sequence[str]) -> list[int]:
    """The numbers of the segments that are in the directory; raises DamagedStorageError."""
    numbers = []
    for name in names:
        stem = name[: -len(".wal")]
        if name.endswith(".wal"):
            if not stem.isdecimal() or name != segment_name(int(stem)):
                raise DamagedStorageError(f"{path}/{name}", 0, "not the name of a segment", ADVICE)
            numbers.append(int(stem))
    if not numbers:
        raise DamagedStorageError(path, 0, "there is no segment", ADVICE)
    return numbers


def begun(head: Head) -> Recovered:
    """What is known of a log before the first record is read."""
    return Recovered(head.cluster_id, head.node_id, head.first_index - 1, HardState(), Mark(), [], Lineage())


def read_head(path: str, data: bytes, number: int, before: End | None) -> Head:
    """The head of a segment; `before` is None for the first."""
    if len(data) < SEGMENT_HEAD.size:
        raise DamagedStorageError(path, len(data), "the head is cut short", ADVICE)
    head = Head(*SEGMENT_HEAD.unpack_from(data))
    if head.magic != MAGIC:
        raise DamagedStorageError(path, 0, "not a log segment", ADVICE)
    if crc32(data[: SEGMENT_HEAD.size - 4]) != head.crc:
        raise damaged_head(path, 0, "the head's checksum does not match", (head.version, VERSION), ADVICE)
    if head.version != VERSION:
        raise FormatVersionError(path, head.version.decode(errors="replace"), VERSION.decode())
    if head.number != number or any(data[SEGMENT_HEAD.size : START]):
        raise DamagedStorageError(path, 0, "the head is of another segment", ADVICE)
    if len(data) != head.size:
        what = f"a segment of {head.size} bytes has {len(data)}"
        raise DamagedStorageError(path, min(head.size, len(data)), what, ADVICE)
    if before is not None and before.chain != head.previous:
        if not before.is_closed:
            raise before.damage()
        raise DamagedStorageError(path, 0, "it does not continue the segment before it", ADVICE)
    return head


def take_records(
    path: str, data: bytes, salt: int, found: Recovered, place: Place
) -> tuple[Place, Record | str | None]:
    """Take in every record of a segment from `place` on, up to the closing one or one that a crash may have torn.

    Returns where that is, and what is there, as `read_record` does.
    """
    offset, durable, chain, max_index, mark_at = place
    work = LongWork()
    while isinstance(record := read_record(data, offset, chain, salt), Record) and record.kind != CLOSING:
        try:
            max_index = max(max_index, found.take(record.kind, record.payload))
        except MalformedError as error:
            raise DamagedStorageError(path, offset, str(error), ADVICE) from error
        offset, durable, chain, mark_at = record.end, record.durable, record.chain, record.mark_at
        work.give_way()
    return Place(offset, durable, chain, max_index, mark_at), record


def end_of(path: str, data: bytes, salt: int, place: Place, record: Record | str | None, is_last: bool) -> End:
    """The end of the records of a segment, with what is there instead of another one."""
    offset = place.offset
    is_closed = isinstance(record, Record)
    if isinstance(record, Record):
        problem = None if is_zero(data, record.end) else "data behind the record that closes it"
    else:
        problem = record
    if offset < BODY:
        problem = problem or "the records that every segment begins with are missing"
    if problem is not None:
        may_be_torn = offset >= BODY and not is_closed
        if may_be_torn and is_last:
            may_be_torn = is_torn(data, offset, salt)
        elif may_be_torn:
            may_be_torn = is_torn_closing(data, offset, place.chain, salt)
        if not may_be_torn:
            raise DamagedStorageError(path, offset, problem, ADVICE)
    return End(path, salt, place.max_index, place.durable, offset, place.chain, place.mark_at, problem, is_closed)


def read_ahead(files: Files, path: str, is_over: Callable[[], bool]) -> Ahead | None:
    """Read the log in `path` as far as it goes, to which another process may write meanwhile; changes nothing.

    is_over: whether nobody wants it any more: then None, soon.
    Raises StorageError, OSError: it may be damaged, or have been changed just then.
    """
    numbers = numbers_of(path, files.list_dir(path))
    found: Recovered | None = None
    seen: list[_Seen] = []
    ends: list[End] = []
    for number in numbers:
        if is_over():
            return None
        segment = f"{path}/{segment_name(number)}"
        data = read_file(files, segment)
        head = read_head(segment, data, number, ends[-1] if ends else None)
        found = found or begun(head)
        place, record = take_records(segment, data, head.crc, found, Place.first(head))
        is_written_to = number == numbers[-1] or not isinstance(record, Record)
        size = place.offset if is_written_to else len(data)
        seen.append(_Seen(number, size, sha256(memoryview(data)[:size]).digest()))
        if is_written_to:
            break
        ends.append(end_of(segment, data, head.crc, place, record, False))
    assert found is not None
    return Ahead(found, seen, ends, place)


def damages(files: Files, path: str) -> list[StorageError]:
    """What is wrong with the segments in `path`, each by itself; that they fit each other is for `open` to see.

    Changes nothing.  Raises OSError.
    """
    numbers = [int(name[:-4]) for name in files.list_dir(path) if name.endswith(".wal") and name[:-4].isdecimal()]
    found: list[StorageError] = []
    for number in numbers:
        segment = f"{path}/{segment_name(number)}"
        try:
            data = read_file(files, segment)
            head = read_head(segment, data, number, None)
            place, record = take_records(segment, data, head.crc, begun(head), Place.first(head))
            end_of(segment, data, head.crc, place, record, number == numbers[-1])
        except StorageError as error:
            found.append(error)
    return found
