"""The write-ahead log: append-only segments of checked records.

A segment is a file of fixed size, zero-filled when it is made so that a write
changes no metadata, with a head and then records:

    head    magic, cluster id, node id, segment number, first index, size of the
            segment, last CRC of the segment before, CRC-32 of the head
    record  length of the payload (4), type (1), zeros (3), how many bytes of the
            segment were durable before this write (4), CRC-32 (4), CRC-32 of the
            fields before, seeded with the record's offset (4); payload; a byte
            0xA5; zeros up to a multiple of 8

A record's CRC covers its fields and payload and continues that of the record
before, across segments: nothing can be missing or misplaced unnoticed.  One
batch of entries is one record, made of the entries' own frames.

What a crash can leave, and what it cannot.  Only the last segment can end in a
torn record.  Sectors of a write that was not synced reach the disk in any order,
those that did not are zeros.  So a bad record is a torn tail only if the file is
short or some sector within the record is zero (its first and last sector never
are, by header and end mark), and no later record proves that this one had been
durable.  All else is damage, and the log refuses to open.  A zero sector inside
the payload of the very last record, together with a flipped bit in it, cannot be
told from a torn write; it takes an instruction with 512 zeros in a row.

One thread at a time appends, marks and syncs; `release_before` may run beside it.
"""

from __future__ import annotations

import logging
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, NoReturn
from zlib import crc32

from raftsvc.core.messages import Entry, HardState, MalformedError, decode_entries, encode_entries
from raftsvc.errors import DamagedStorageError, StorageError
from raftsvc.storage.files import Files

logger = logging.getLogger("raftsvc.storage")

DEFAULT_SEGMENT_BYTES = 16 * 1024 * 1024
_SECTOR_BYTES = 512
_MAGIC = b"raftwal1"
_SEGMENT_HEAD = struct.Struct(">8sQQQQIII")
_FIELDS = struct.Struct(">IB3xII")
_RECORD_HEAD = struct.Struct(">IB3xIII")
_END_MARK = b"\xa5"
_HARD_STATE = struct.Struct(">QQQ")
_MARK = struct.Struct(">QQ")
_START = -(-_SEGMENT_HEAD.size // 8) * 8

_ENTRIES, _STATE, _SNAPSHOT_MARK = 1, 2, 3
_ADVICE = (
    "Evict this member and join with an empty directory; the other members hold its data. "
    "Do not delete parts of the log."
)
_TEMPORARY = "next.tmp"


@dataclass(frozen=True, slots=True)
class Mark:
    """The snapshot that the log continues from."""

    index: int = 0
    term: int = 0


class Recovered(NamedTuple):
    """What a log held when it was opened.  `base` is the index before the first entry."""

    cluster_id: int
    node_id: int
    hard_state: HardState
    mark: Mark
    base: int
    entries: list[Entry]


class _Segment(NamedTuple):
    number: int
    path: str
    max_index: list[int]  # one item: the highest index ever written to the segment


def _is_zero(data: bytes) -> bool:
    return not data.strip(b"\x00")


def _segment_name(number: int) -> str:
    return f"{number:016d}.wal"


def _encode_record(kind: int, payload: bytes, offset: int, durable: int, chain: int) -> tuple[bytes, int]:
    """A record for `offset`, and the chained CRC after it."""
    size = len(payload)
    chain = crc32(payload, crc32(_FIELDS.pack(size, kind, durable, 0), chain))
    fields = _FIELDS.pack(size, kind, durable, chain)
    head_crc = crc32(fields, offset)
    padding = -(_RECORD_HEAD.size + size + 1) % 8
    return b"".join((fields, head_crc.to_bytes(4, "big"), payload, _END_MARK, bytes(padding))), chain


class Wal:
    """An open log.  Made durable by `create`, opened by `open`."""

    def __init__(self, files: Files, path: str) -> None:
        self._files = files
        self._path = path
        self._lock = threading.Lock()  # guards _segments
        self._segments: list[_Segment] = []
        self._fd = -1
        self._offset = 0
        self._durable = 0
        self._chain = 0
        self._segment_bytes = DEFAULT_SEGMENT_BYTES
        self._current_size = 0
        self._state = HardState()
        self._mark = Mark()
        self._base = 0
        self._entries: list[Entry] = []
        self._last_index = 0
        self._failure: BaseException | None = None
        self.fsync_count = 0
        self.recovered: Recovered

    # -- making

    @classmethod
    def create(
        cls,
        files: Files,
        path: str,
        cluster_id: int,
        node_id: int,
        hard_state: HardState,
        entries: Sequence[Entry],
        segment_bytes: int = DEFAULT_SEGMENT_BYTES,
    ) -> None:
        """Make a log in the existing directory `path` that holds `entries`, durably."""
        wal = cls(files, path)
        wal._segment_bytes = segment_bytes
        wal.recovered = Recovered(cluster_id, node_id, hard_state, Mark(), 0, [])
        wal._state = hard_state
        wal._rotate(0)
        if entries:
            wal.append(None, entries)
            wal.sync()
        wal.close()

    def _rotate(self, need_bytes: int) -> None:
        """Continue in a new segment, which has room for `need_bytes` of records.

        It starts with hard state and mark, so that those before it can go, and
        has its name only once all that is durable.
        """
        number = self._segments[-1].number + 1 if self._segments else 1
        head_room = _START + 2 * (_RECORD_HEAD.size + _HARD_STATE.size + 16)
        size = max(self._segment_bytes, head_room + need_bytes)
        temporary = f"{self._path}/{_TEMPORARY}"
        fd = self._files.create(temporary)
        try:
            for offset in range(0, size, 1 << 20):
                self._files.write(fd, bytes(min(1 << 20, size - offset)), offset)
            recovered = self.recovered
            head = _SEGMENT_HEAD.pack(
                _MAGIC, recovered.cluster_id, recovered.node_id, number, self._last_index + 1, size, self._chain, 0
            )[:-4]
            head_crc = crc32(head)
            chain = head_crc
            records = [(head + head_crc.to_bytes(4, "big")).ljust(_START, b"\x00")]
            offset = _START
            for kind, payload in (
                (_STATE, _HARD_STATE.pack(*self._state)),
                (_SNAPSHOT_MARK, _MARK.pack(self._mark.index, self._mark.term)),
            ):
                record, chain = _encode_record(kind, payload, offset, _START, chain)
                records.append(record)
                offset += len(record)
            self._files.write(fd, b"".join(records), 0)
            if self._fd >= 0:
                self._sync_fd(self._fd)  # what the chain continues must not be lost before it
            self._sync_fd(fd)
            path = f"{self._path}/{_segment_name(number)}"
            self._files.rename(temporary, path)
            self._files.sync_dir(self._path)
        except BaseException:
            self._files.close(fd)
            raise
        if self._fd >= 0:
            self._files.close(self._fd)
        self._fd = fd
        self._offset = self._durable = offset
        self._chain = chain
        self._current_size = size
        with self._lock:
            self._segments.append(_Segment(number, path, [0]))

    # -- writing

    def append(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        """Write a batch, not yet durable.  The term comes first: no entry outlives it in a crash.

        Entries that do not follow the last one replace the log from there on.
        Raises StorageError, after which nothing more can be written.
        """
        records: list[tuple[int, bytes]] = []
        if hard_state is not None:
            records.append((_STATE, _HARD_STATE.pack(*hard_state)))
            self._state = hard_state
        if entries:
            records.append((_ENTRIES, encode_entries(entries)))
        self._write(records, entries[-1].index if entries else 0)

    def mark_snapshot(self, index: int, term: int) -> None:
        """Write that a durable snapshot covers everything up to `index` of `term`, not yet durable."""
        self._mark = Mark(index, term)
        self._write([(_SNAPSHOT_MARK, _MARK.pack(index, term))], 0)
        self._last_index = max(self._last_index, index)

    def _write(self, records: Sequence[tuple[int, bytes]], last_index: int) -> None:
        self._check()
        try:
            need = sum([_RECORD_HEAD.size + len(payload) + 9 for _, payload in records])
            if self._offset + need > self._current_size:
                self._rotate(need)
            buffer = []
            offset = self._offset
            chain = self._chain
            for kind, payload in records:
                record, chain = _encode_record(kind, payload, offset, self._durable, chain)
                buffer.append(record)
                offset += len(record)
            self._files.write(self._fd, b"".join(buffer), self._offset)
        except BaseException as error:
            self._poison(error)
        self._offset = offset
        self._chain = chain
        if last_index:
            self._last_index = last_index
            top = self._segments[-1].max_index
            top[0] = max(top[0], last_index)

    def sync(self) -> None:
        """Make everything written durable.  Raises StorageError, after which nothing more can be written.

        A failed fsync is never repeated: the kernel may have marked the pages
        clean, and a second one would succeed without the data.
        """
        self._check()
        try:
            self._sync_fd(self._fd)
        except BaseException as error:
            self._poison(error)
        self._durable = self._offset

    def _sync_fd(self, fd: int) -> None:
        self._files.sync(fd)
        self.fsync_count += 1

    def _check(self) -> None:
        if self._failure is not None:
            raise StorageError(f"{self._path}: no longer written after {self._failure!r}") from self._failure

    def _poison(self, error: BaseException) -> NoReturn:
        self._failure = error
        if isinstance(error, OSError):
            raise StorageError(
                f"{self._path}: writing the log failed: {error}. "
                "This node stops acknowledging; restart it once the disk is repaired."
            ) from error
        raise error

    def release_before(self, index: int) -> None:
        """Delete segments that hold nothing above `index`, oldest first; the last one stays."""
        with self._lock:
            count = 0
            while count < len(self._segments) - 1 and self._segments[count].max_index[0] <= index:
                count += 1
            released, self._segments = self._segments[:count], self._segments[count:]
        for segment in released:
            self._files.remove(segment.path)
        if released:
            self._files.sync_dir(self._path)

    def close(self) -> None:
        """Close the file; idempotent.  What was not synced may be lost."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._failure = self._failure or StorageError("closed")
            self._files.close(fd)

    # -- opening

    @classmethod
    def open(cls, files: Files, path: str, segment_bytes: int = DEFAULT_SEGMENT_BYTES) -> Wal:
        """Open the log in `path` and read it whole into `recovered`; cuts a torn tail.

        Raises DamagedStorageError.
        """
        wal = cls(files, path)
        wal._segment_bytes = segment_bytes
        try:
            wal._recover()
        except BaseException:
            wal.close()
            raise
        return wal

    def _recover(self) -> None:
        files = self._files
        names = files.list_dir(self._path)
        if _TEMPORARY in names:
            files.remove(f"{self._path}/{_TEMPORARY}")
        numbers = []
        for name in names:
            stem = name[: -len(".wal")]
            if name.endswith(".wal"):
                if not stem.isdigit() or name != _segment_name(int(stem)):
                    raise DamagedStorageError(f"{self._path}/{name}", 0, "not the name of a segment", _ADVICE)
                numbers.append(int(stem))
        if not numbers:
            raise DamagedStorageError(self._path, 0, "there is no segment", _ADVICE)
        identity: tuple[int, int] | None = None
        for position, number in enumerate(numbers):
            path = f"{self._path}/{_segment_name(number)}"
            if number != numbers[0] + position:
                raise DamagedStorageError(path, 0, f"segment {numbers[0] + position} before it is missing", _ADVICE)
            fd = files.open(path)
            self._fd = fd
            data = files.read(fd, files.size(fd), 0)
            found = self._read_head(path, data, number, is_first=position == 0)
            if identity is None:
                identity = found
            elif found != identity:
                raise DamagedStorageError(path, 8, "segment of another node or cluster", _ADVICE)
            is_last = position == len(numbers) - 1
            max_index = self._read_records(path, data, is_last)
            self._segments.append(_Segment(number, path, [max_index]))
            if is_last:
                self._current_size = max(len(data), self._current_size)
                self._durable = self._offset
            else:
                files.close(fd)
                self._fd = -1
        assert identity is not None
        if self._entries and self._entries[-1].term > self._state.term:
            raise DamagedStorageError(self._path, 0, "an entry is of a later term than the hard state", _ADVICE)
        self._last_index = self._base + len(self._entries)
        self.recovered = Recovered(*identity, self._state, self._mark, self._base, self._entries)
        self._entries = []

    def _read_head(self, path: str, data: bytes, number: int, is_first: bool) -> tuple[int, int]:
        head = data[: _SEGMENT_HEAD.size]
        if len(head) < _SEGMENT_HEAD.size:
            raise DamagedStorageError(path, len(data), "the head is cut short", _ADVICE)
        magic, cluster_id, node_id, stored_number, first_index, size, previous, crc = _SEGMENT_HEAD.unpack(head)
        if magic != _MAGIC:
            raise DamagedStorageError(path, 0, "not a log segment of this format", _ADVICE)
        if crc32(head[:-4]) != crc or stored_number != number or any(data[_SEGMENT_HEAD.size : _START]):
            raise DamagedStorageError(path, 0, "the head's checksum or number does not match", _ADVICE)
        if is_first:
            self._base = first_index - 1
        elif previous != self._chain:
            raise DamagedStorageError(path, 0, "it does not continue the segment before it", _ADVICE)
        self._chain = crc
        self._current_size = size
        return cluster_id, node_id

    def _read_records(self, path: str, data: bytes, is_last: bool) -> int:
        """Take in every record of a segment; returns the highest index written in it."""
        offset = _START
        max_index = 0
        while True:
            problem, kind, payload, end, chain = self._read_record(data, offset)
            if problem is not None:
                break
            if kind == 0:
                break
            try:
                max_index = max(max_index, self._take(kind, payload))
            except MalformedError as error:
                raise DamagedStorageError(path, offset, str(error), _ADVICE) from error
            offset, self._chain = end, chain
        self._offset = offset
        if problem is not None:
            if not is_last or not self._is_torn(data, offset):
                raise DamagedStorageError(path, offset, problem, _ADVICE)
            logger.warning("%s: cut a torn last write at offset %d (%s)", path, offset, problem)
        if is_last and (problem is not None or len(data) < self._current_size):
            self._clear_tail(offset)
        elif not is_last and len(data) != self._current_size:
            raise DamagedStorageError(
                path, len(data), f"a segment of {self._current_size} bytes has {len(data)}", _ADVICE
            )
        return max_index

    def _read_record(self, data: bytes, offset: int) -> tuple[str | None, int, bytes, int, int]:
        """(problem, type, payload, end, chain) of the record at `offset`; type 0 at the end of the log."""
        head = data[offset : offset + _RECORD_HEAD.size]
        if _is_zero(head):
            # Nothing was written here.  If something was behind, it is torn or damaged.
            if not _is_zero(data[offset:]):
                return "data behind the end of the log", 0, b"", 0, 0
            return None, 0, b"", 0, 0
        if len(head) < _RECORD_HEAD.size:
            return "a record's head is cut short", 0, b"", 0, 0
        length, kind, durable, crc, head_crc = _RECORD_HEAD.unpack(head)
        if head_crc != crc32(head[:-4], offset) or kind not in (_ENTRIES, _STATE, _SNAPSHOT_MARK):
            return "a record's head does not match its checksum", 0, b"", 0, 0
        start = offset + _RECORD_HEAD.size
        stop = start + length
        end = stop + 1 + -(_RECORD_HEAD.size + length + 1) % 8
        if end > len(data):
            return "a record is cut short", 0, b"", 0, 0
        payload = data[start:stop]
        if crc32(payload, crc32(_FIELDS.pack(length, kind, durable, 0), self._chain)) != crc:
            return "a record's checksum does not match", 0, b"", 0, 0
        if data[stop : stop + 1] != _END_MARK or any(data[stop + 1 : end]):
            return "a record's end does not match", 0, b"", 0, 0
        return None, kind, payload, end, crc

    def _is_torn(self, data: bytes, offset: int) -> bool:
        """Whether a crash before a sync explains the bad record at `offset`."""
        for later in range(offset + 8, len(data) - _RECORD_HEAD.size, 8):
            if data[later + 4]:  # a type: perhaps the head of a record
                head = data[later : later + _RECORD_HEAD.size]
                _, _, durable, _, head_crc = _RECORD_HEAD.unpack(head)
                if head_crc == crc32(head[:-4], later) and durable > offset:
                    return False  # that write came after this one had been made durable
        if len(data) < self._current_size:
            return True
        head = data[offset : offset + _RECORD_HEAD.size]
        length, _, _, _, head_crc = _RECORD_HEAD.unpack(head)
        if head_crc == crc32(head[:-4], offset):
            end = offset + _RECORD_HEAD.size + length + 1
        else:  # how far it went is unknown: look at the sectors of its head
            end = -(-(offset + _RECORD_HEAD.size) // _SECTOR_BYTES) * _SECTOR_BYTES
        borders = [offset, *range(offset - offset % _SECTOR_BYTES + _SECTOR_BYTES, end, _SECTOR_BYTES), end]
        return any(_is_zero(data[start:stop]) for start, stop in pairwise(borders))

    def _clear_tail(self, offset: int) -> None:
        """Make everything from `offset` on zero again, durably, so that nothing cut comes back."""
        for start in range(offset, self._current_size, 1 << 20):
            self._files.write(self._fd, bytes(min(1 << 20, self._current_size - start)), start)
        self._sync_fd(self._fd)

    def _take(self, kind: int, payload: bytes) -> int:
        """Apply one record to what is recovered so far; returns the highest index in it."""
        try:
            if kind == _STATE:
                self._state = HardState(*_HARD_STATE.unpack(payload))
                return 0
            if kind == _SNAPSHOT_MARK:
                self._mark = Mark(*_MARK.unpack(payload))
                self._forget_unless(self._mark.index, self._mark.term)
                return 0
        except struct.error as error:
            raise MalformedError(f"record of a wrong length: {error}") from error
        entries = decode_entries(payload)
        if not entries or any(entry.index != entries[0].index + n for n, entry in enumerate(entries)):
            raise MalformedError("a batch of entries has gaps")
        first = entries[0].index
        if first > self._base + len(self._entries) + 1:
            raise MalformedError(f"entry {first} follows {self._base + len(self._entries)}")
        if first <= self._base:
            self._base = first - 1
        del self._entries[first - self._base - 1 :]
        self._entries += entries
        return entries[-1].index

    def _forget_unless(self, index: int, term: int) -> None:
        """A snapshot up to `index` of `term`: unless the log holds that very entry, it starts anew behind it."""
        if index <= self._base:
            return
        last = self._base + len(self._entries)
        if index > last or self._entries[index - self._base - 1].term != term:
            self._base = index
            self._entries = []
