"""The write-ahead log: append-only segments of checked records.

A segment is a file of fixed size, zero-filled when it is made so that a write
changes no metadata, with a head and then records:

    head    magic, cluster id, node id, segment number, first index, size of the
            segment, last CRC of the segment before (the closing one aside), CRC-32 of the head
    record  length of the payload (4), type (1), how many sectors of the payload are
            all zero (3), how many bytes of the segment were durable before this
            write (4), CRC-32 (4), CRC-32 of the fields before, seeded with the
            record's offset (4); payload; a byte 0xA5; zeros up to a multiple of 8

A record's CRC covers its fields and payload and continues that of the record
before, across segments: nothing can be missing or misplaced unnoticed.  One
batch of entries is one record, made of the entries' own frames.  Every segment
begins with the hard state and the mark of its time, durable before it has its name,
as are its whole size and every record of the segment before.  That one then gets a
closing record, durable before anything is written behind the beginning of the new one.

What a crash can leave, and what it cannot.  No segment is shorter or longer than its
head says.  Only the last can end in a torn record.  Sectors of a write that was not
synced reach the disk in any order, those that did not are zeros.  So a bad record is a
torn tail only if more of its sectors are zero than were written so (its first and
last never are, by header and end mark), and no later record proves that this one
had been durable.  A closed segment that is the last proves that one is missing.  The
closing record of another may be torn or missing only if the next segment is the last and
holds nothing but its beginning.  All else is damage, and the log refuses to open.

What was read is not yet durable: a process that was killed, or whose fsync failed,
leaves bytes that only the page cache holds, and an fsync need not write them any
more.  So opening writes again what may never have been synced, and syncs it, before
anybody can act on it.

The next segment is one file under a temporary name, which grows ahead of need, a piece
at each `prepare`.  It is this log's only once it has a head and is renamed; one that a
crash left is removed at the next start.  A rotation that finds it incomplete
completes it first, so there is never more than one.

One thread at a time appends, marks and syncs; `release_before` and `prepare` may run beside it.
"""

from __future__ import annotations

import logging
import struct
import threading
import time
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, NoReturn
from zlib import crc32

from raftsvc.core.messages import Entry, HardState, MalformedError, decode_entries, entries_follow, index_of, term_of
from raftsvc.errors import REPLACE_MEMBER, DamagedStorageError, StorageError
from raftsvc.storage.files import Files
from raftsvc.storage.lock import held_by

logger = logging.getLogger("raftsvc.storage")

DEFAULT_SEGMENT_BYTES = 16 * 1024 * 1024
_SECTOR_BYTES = 512
_ZERO_SECTOR = bytes(_SECTOR_BYTES)
_MAGIC = b"raftwal2"
_SEGMENT_HEAD = struct.Struct(">8sQQQQIII")
_FIELDS = struct.Struct(">IIII")
_RECORD_HEAD = struct.Struct(">IIIII")
_END_MARK = b"\xa5"
_HARD_STATE = struct.Struct(">QQQ")
_MARK = struct.Struct(">QQ")


def _aligned(size: int) -> int:
    return -(-size // 8) * 8


def _record_size(payload_size: int) -> int:
    return _aligned(_RECORD_HEAD.size + payload_size + len(_END_MARK))


_START = _aligned(_SEGMENT_HEAD.size)
_BODY = _START + _record_size(_HARD_STATE.size) + _record_size(_MARK.size)
"""Offset of a segment's first appended record, behind the two that it begins with."""

_ENTRIES, _STATE, _SNAPSHOT_MARK, _CLOSING = 1, 2, 3, 4
_CLOSING_BYTES = _record_size(0)
_ADVICE = f"{REPLACE_MEMBER} Do not delete parts of the log."
_TEMPORARY = "next.tmp"
_PIECES = 64
"""In how many the next segment is prepared: an fsync of the log waits for one of them, 256 KiB, at most."""


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

    def _take(self, kind: int, payload: bytes) -> int:
        """Take in one record; returns the highest index of an entry in it."""
        try:
            if kind == _STATE:
                self.hard_state = HardState(*_HARD_STATE.unpack(payload))
                return 0
            if kind == _SNAPSHOT_MARK:
                self.mark = mark = Mark(*_MARK.unpack(payload))
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
            raise MalformedError("a batch of entries has gaps")
        if first > self.base + len(self.entries) + 1:
            raise MalformedError(f"entry {first} follows {self.base + len(self.entries)}")
        self.base = min(self.base, first - 1)
        del self.entries[first - self.base - 1 :]
        self.entries += entries
        return index_of(entries[-1])


class _Record(NamedTuple):
    kind: int
    payload: bytes
    durable: int
    chain: int
    end: int


class _End(NamedTuple):
    """Where the records of a segment end, and what is there."""

    path: str
    max_index: int  # the highest index written to the segment
    durable: int  # what was so when the last record was written
    offset: int
    chain: int
    problem: str | None  # what is wrong with the record at `offset`
    is_closed: bool

    @property
    def is_pristine(self) -> bool:
        """Whether the segment holds only what it begins with."""
        return self.offset == _BODY and self.problem is None

    def damage(self) -> DamagedStorageError:
        """What is wrong if it does not end the log."""
        what = self.problem or "the record that closes it is missing"
        return DamagedStorageError(self.path, self.offset, what, _ADVICE)


class _Segment(NamedTuple):
    number: int
    path: str
    max_index: list[int]  # one item: the highest index ever written to the segment


def _is_zero(data: bytes) -> bool:
    return not data.strip(b"\x00")


def _segment_name(number: int) -> str:
    return f"{number:016d}.wal"


def _zero_sectors(data: bytes, offset: int) -> int:
    """How many whole sectors are all zero in `data`, which lies at `offset` of its file."""
    if _ZERO_SECTOR not in data:
        return 0
    first = -offset % _SECTOR_BYTES
    return sum(
        [data.startswith(_ZERO_SECTOR, start) for start in range(first, len(data) - _SECTOR_BYTES + 1, _SECTOR_BYTES)]
    )


def _encode_record(kind: int, payload: bytes, offset: int, durable: int, chain: int) -> tuple[bytes, int]:
    """A record for `offset`, and the chained CRC after it."""
    size = len(payload)
    kind_and_zeros = kind << 24
    if size >= _SECTOR_BYTES:
        kind_and_zeros |= _zero_sectors(payload, offset + _RECORD_HEAD.size)
    chain = crc32(payload, crc32(_FIELDS.pack(size, kind_and_zeros, durable, 0), chain))
    fields = _FIELDS.pack(size, kind_and_zeros, durable, chain)
    head_crc = crc32(fields, offset)
    padding = _record_size(size) - _RECORD_HEAD.size - size - len(_END_MARK)
    return b"".join((fields, head_crc.to_bytes(4, "big"), payload, _END_MARK, bytes(padding))), chain


def _closing_record(offset: int, chain: int) -> bytes:
    """The record that closes a segment at `offset`; everything before it is durable."""
    return _encode_record(_CLOSING, b"", offset, offset, chain)[0]


def _is_torn_closing(data: bytes, offset: int, chain: int) -> bool:
    """Whether all that `data` has from `offset` on is what reached the disk of the record that closes it."""
    record = _closing_record(offset, chain)
    end = offset + len(record)
    border = min(end, offset + _SECTOR_BYTES - offset % _SECTOR_BYTES)
    return _is_zero(data[end:]) and all(
        _is_zero(data[start:stop]) or data[start:stop] == record[start - offset : stop - offset]
        for start, stop in ((offset, border), (border, end))
    )


class _Extent:
    """Which entries a log holds: those in (base, last], as runs of one term each."""

    __slots__ = ("_firsts", "_terms", "base", "last")

    def __init__(self, base: int) -> None:
        self.base = base
        self.last = base
        self._firsts: list[int] = []
        self._terms: list[int] = []

    def put(self, entries: Sequence[Entry]) -> None:
        """Entries were written; they replace those from their first index on."""
        first = index_of(entries[0])
        firsts, terms = self._firsts, self._terms
        self.base = min(self.base, first - 1)
        while firsts and firsts[-1] >= first:
            firsts.pop()
            terms.pop()
        if not (terms and terms[-1] == term_of(entries[0]) == term_of(entries[-1])):  # terms never fall
            for entry in entries:
                if not terms or terms[-1] != term_of(entry):
                    firsts.append(index_of(entry))
                    terms.append(term_of(entry))
        self.last = index_of(entries[-1])

    def mark(self, index: int, term: int) -> bool:
        """A snapshot covers up to `index` of `term`.  Whether the log goes on; else it starts anew behind that."""
        if index <= self.base:
            return True
        run = bisect_right(self._firsts, index) - 1
        if index <= self.last and self._terms[run] == term:
            del self._firsts[:run], self._terms[:run]
            return True
        self.base = self.last = index
        self._firsts.clear()
        self._terms.clear()
        return False


class Wal:
    """An open log.  Made durable by `create`, opened by `open`."""

    def __init__(self, files: Files, path: str, segment_bytes: int) -> None:
        """Use `create` and `open`."""
        self._files = files
        self._path = path
        self._segment_bytes = segment_bytes
        self._cluster_id = 0
        self._node_id = 0
        self._lock = threading.Lock()  # guards _segments
        self._release_lock = threading.Lock()  # one removal at a time, and none after close; taken before _lock
        # Guards _next_fd, _next_bytes and the temporary file; held while a piece of it is
        # written, and while it becomes a segment.
        self._next_lock = threading.Lock()
        self._temporary = f"{path}/{_TEMPORARY}"
        self._next_fd = -1
        self._next_bytes = 0  # how many are zeroed, durably
        self._may_prepare = True  # no rotation wants the file, and the disk did not refuse since the last one
        self._segments: list[_Segment] = []
        self._fd = -1
        self._offset = 0
        self._durable = 0
        self._chain = 0
        self._current_size = 0
        self._state = HardState()
        self._mark = Mark()
        self._durable_mark_index = 0
        self._extent = _Extent(0)
        self._failure: BaseException | None = None
        self.fsync_count = 0  # those that a writer waited for

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
        """Make a log in the existing directory `path`, which holds no segment, durably.

        Raises OSError or StorageError.
        """
        wal = cls(files, path, segment_bytes)
        wal._cluster_id = cluster_id
        wal._node_id = node_id
        wal._state = hard_state
        try:
            wal._rotate(0)
            if entries:
                wal.append(None, entries)
                wal.sync()
        finally:
            wal.close()

    @property
    def is_prepare_due(self) -> bool:
        """Whether it is time to `prepare`: half of the segment is written, and the next one is not complete."""
        return self._may_prepare and self._next_bytes < self._segment_bytes and self._offset >= self._current_size // 2

    def prepare(self) -> bool:
        """Zero one more piece of the next segment; whether to go on.

        Slow, and never needed.  A disk that refuses ends it until after the next
        rotation: what it took of the disk is given back, and the log goes on.
        """
        try:
            with self._next_lock:
                return self._prepare_piece()
        except OSError as error:
            logger.warning("%s: the next segment could not be prepared: %s", self._path, error)
            return False

    def _prepare_piece(self) -> bool:
        start = self._next_bytes
        stop = min(start + max(_SECTOR_BYTES, self._segment_bytes // _PIECES), self._segment_bytes)
        if self._failure is not None or not self._may_prepare or start == stop:
            return False
        try:
            if self._next_fd < 0:
                self._next_fd = self._files.create(self._temporary)
            self._write_zeros(self._next_fd, start, stop)
            self._files.sync(self._next_fd)  # all at once would keep the log's own fsync waiting
        except OSError:
            self._may_prepare = False
            fd, _ = self._take_next()
            if fd >= 0:
                self._discard_next(fd)
            raise
        self._next_bytes = stop
        return stop < self._segment_bytes

    def _take_next(self) -> tuple[int, int]:
        """What was prepared: descriptor, -1 if there is none, and bytes zeroed.  It is the caller's now."""
        taken = self._next_fd, self._next_bytes
        self._next_fd, self._next_bytes = -1, 0
        return taken

    def _discard_next(self, fd: int) -> None:
        self._files.close(fd)
        with suppress(OSError):
            self._files.remove(self._temporary)  # give a full disk its space back

    def _rotate(self, need_bytes: int) -> None:
        """Continue in a new segment, which has room for `need_bytes` of records.

        It starts with hard state and mark, so that those before it can go, and
        has its name only once all that is durable.  Then the one before is closed, which
        takes an fsync of its own.  In the one before the name, the power could go between
        the two, and an honest start would be refused; in the next one of the new segment,
        what that makes durable, and is acknowledged, could be lost unnoticed.
        """
        number = self._segments[-1].number + 1 if self._segments else 1
        size = max(self._segment_bytes, _BODY + need_bytes + _CLOSING_BYTES)
        path = f"{self._path}/{_segment_name(number)}"
        head = _SEGMENT_HEAD.pack(
            _MAGIC, self._cluster_id, self._node_id, number, self._extent.last + 1, size, self._chain, 0
        )[:-4]
        chain = crc32(head)
        records = [(head + chain.to_bytes(4, "big")).ljust(_START, b"\x00")]
        offset = _START
        for kind, payload in (
            (_STATE, _HARD_STATE.pack(*self._state)),
            (_SNAPSHOT_MARK, _MARK.pack(self._mark.index, self._mark.term)),
        ):
            record, chain = _encode_record(kind, payload, offset, _START, chain)
            records.append(record)
            offset += len(record)
        self._may_prepare = False  # the thread that prepares would take the lock again before this one wakes
        with self._next_lock:
            fd, zeroed = self._take_next()
            if fd < 0:
                fd = self._files.create(self._temporary)
            try:
                self._write_zeros(fd, zeroed, size)
                self._files.write(fd, b"".join(records), 0)
                if self._fd >= 0:
                    self._sync_fd(self._fd)  # what the chain continues must not be lost before it
                self._sync_fd(fd)
                self._files.rename(self._temporary, path)
                self._files.sync_dir(self._path)
                if self._fd >= 0:
                    self._write_closing(self._fd, self._offset, self._chain)
            except BaseException:
                self._discard_next(fd)
                raise
        self._may_prepare = True
        if self._fd >= 0:
            self._files.close(self._fd)
        self._fd = fd
        self._offset = self._durable = offset
        self._chain = chain
        self._current_size = size
        self._durable_mark_index = self._mark.index
        with self._lock:
            self._segments.append(_Segment(number, path, [0]))

    def _write_closing(self, fd: int, offset: int, chain: int) -> None:
        """Make it durable that the segment `fd`, which ends at `offset`, is not the last."""
        self._files.write(fd, _closing_record(offset, chain), offset)
        self._sync_fd(fd)

    def _write_zeros(self, fd: int, start: int, stop: int) -> None:
        zeros = bytes(min(1 << 20, stop - start))
        for offset in range(start, stop, 1 << 20):
            self._files.write(fd, zeros[: stop - offset], offset)

    # -- writing

    def append(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        """Write a batch, not yet durable.  The term comes first: no entry outlives it in a crash.

        Entries that do not follow the last one replace the log from there on.
        Raises StorageError, after which nothing more can be written.
        """
        self._check()
        if entries and index_of(entries[0]) > self._extent.last + 1:  # no assert: what follows a gap would be lost
            raise StorageError(
                f"{self._path}: entries after {self._extent.last} are missing before what is to be written"
            )
        records: list[tuple[int, bytes]] = []
        if hard_state is not None:
            records.append((_STATE, _HARD_STATE.pack(*hard_state)))
            self._state = hard_state
        if entries:
            records.append((_ENTRIES, b"".join(entries)))
        self._write(records)
        if entries:
            self._extent.put(entries)
            top = self._segments[-1].max_index
            top[0] = max(top[0], index_of(entries[-1]))

    def mark_snapshot(self, index: int, term: int) -> bool:
        """Write that a durable snapshot covers everything up to `index` of `term`, not yet durable.

        The log goes on if it holds that very entry, or began after it; else it
        starts anew behind `index`, and False is returned.  A snapshot older than
        the one marked already changes nothing.  Raises StorageError.
        """
        self._check()
        if index <= self._mark.index:
            return True
        goes_on = self._extent.mark(index, term)
        self._mark = Mark(index, term)
        self._write([(_SNAPSHOT_MARK, _MARK.pack(index, term))])
        return goes_on

    def _write(self, records: Sequence[tuple[int, bytes]]) -> None:
        try:
            need = sum([_record_size(len(payload)) for _, payload in records])
            if self._offset + need + _CLOSING_BYTES > self._current_size:
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
        self._durable_mark_index = self._mark.index

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
        """Delete segments that hold nothing above `index`, oldest first.

        The last one stays, and so does what no durable mark covers.  Does nothing
        once the log has failed or was closed.  Raises StorageError.
        """
        while True:
            with self._release_lock:
                if self._failure is not None:
                    return
                with self._lock:
                    oldest = self._segments[0]
                    if len(self._segments) == 1 or oldest.max_index[0] > min(index, self._durable_mark_index):
                        return
                try:
                    with suppress(FileNotFoundError):  # an earlier attempt got this far
                        self._files.remove(oldest.path)
                    # Each before the next: a crash must not leave a gap in the numbers.
                    self._files.sync_dir(self._path)
                except OSError as error:
                    raise StorageError(f"{self._path}: deleting old segments failed: {error}") from error
                with self._lock:
                    del self._segments[0]

    def close(self, timeout: float = 5.0) -> bool:
        """Close the files; idempotent.  What was not synced may be lost.

        Nothing is deleted or made after this.  False, and files stay open, if a
        removal or a piece being prepared hangs for `timeout` seconds.
        """
        self._failure = self._failure or StorageError("closed")
        deadline = time.monotonic() + timeout
        with held_by(deadline, self._release_lock) as is_quiet:
            if not is_quiet:
                return False
            if self._fd >= 0:
                fd, self._fd = self._fd, -1
                self._files.close(fd)
        with held_by(deadline, self._next_lock) as is_quiet:
            if not is_quiet:
                return False
            fd, _ = self._take_next()
            if fd >= 0:
                self._files.close(fd)
        return True

    # -- opening

    @classmethod
    def open(cls, files: Files, path: str, segment_bytes: int = DEFAULT_SEGMENT_BYTES) -> tuple[Wal, Recovered]:
        """Open the log in `path` and read it whole; cuts a torn tail; what is returned is durable.

        Raises DamagedStorageError, OSError.
        """
        wal = cls(files, path, segment_bytes)
        try:
            return wal, wal._recover()
        except BaseException:
            wal.close()
            raise

    def _recover(self) -> Recovered:
        files = self._files
        names = files.list_dir(self._path)
        if _TEMPORARY in names:
            files.remove(self._temporary)
        numbers = []
        for name in names:
            stem = name[: -len(".wal")]
            if name.endswith(".wal"):
                if not stem.isdecimal() or name != _segment_name(int(stem)):
                    raise DamagedStorageError(f"{self._path}/{name}", 0, "not the name of a segment", _ADVICE)
                numbers.append(int(stem))
        if not numbers:
            raise DamagedStorageError(self._path, 0, "there is no segment", _ADVICE)
        files.sync_dir(self._path)  # the name of the last one may be as young as the crash
        found: Recovered | None = None
        before: _End | None = None
        for position, number in enumerate(numbers):
            path = f"{self._path}/{_segment_name(number)}"
            if number != numbers[0] + position:
                raise DamagedStorageError(path, 0, f"segment {numbers[0] + position} before it is missing", _ADVICE)
            is_last = position == len(numbers) - 1
            self._fd = fd = files.open(path)
            data = files.read(fd, files.size(fd), 0)
            cluster_id, node_id, first_index = self._read_head(path, data, number, before)
            if found is None:
                found = Recovered(cluster_id, node_id, first_index - 1, HardState(), Mark(), [])
            elif (cluster_id, node_id) != (found.cluster_id, found.node_id):
                raise DamagedStorageError(path, 8, "segment of another node or cluster", _ADVICE)
            end = self._read_records(path, data, found, is_last)
            if before is not None and not before.is_closed and not (is_last and end.is_pristine):
                raise before.damage()
            self._segments.append(_Segment(number, path, [end.max_index]))
            if is_last:
                self._go_on_from(end, data, before)
            else:
                self._fd = -1
                files.close(fd)
            before = end
        assert found is not None
        if found.base > found.mark.index:
            what = f"the log begins after {found.base}, the snapshot that it continues ends at {found.mark.index}"
            raise DamagedStorageError(self._segments[0].path, 0, what, _ADVICE)
        if found.entries and term_of(found.entries[-1]) > found.hard_state.term:
            raise DamagedStorageError(self._path, 0, "an entry is of a later term than the hard state", _ADVICE)
        self._cluster_id = found.cluster_id
        self._node_id = found.node_id
        self._state = found.hard_state
        self._mark = found.mark
        self._durable_mark_index = found.mark.index
        self._extent = _Extent(found.base)
        if found.entries:
            self._extent.put(found.entries)
        return found

    def _read_head(self, path: str, data: bytes, number: int, before: _End | None) -> tuple[int, int, int]:
        """(cluster id, node id, first index) of a segment; `before` is None for the first."""
        head = data[: _SEGMENT_HEAD.size]
        if len(head) < _SEGMENT_HEAD.size:
            raise DamagedStorageError(path, len(data), "the head is cut short", _ADVICE)
        magic, cluster_id, node_id, stored_number, first_index, size, previous, crc = _SEGMENT_HEAD.unpack(head)
        if magic != _MAGIC:
            raise DamagedStorageError(path, 0, "not a log segment of this format", _ADVICE)
        if crc32(head[:-4]) != crc or stored_number != number or any(data[_SEGMENT_HEAD.size : _START]):
            raise DamagedStorageError(path, 0, "the head's checksum or number does not match", _ADVICE)
        if len(data) != size:
            what = f"a segment of {size} bytes has {len(data)}"
            raise DamagedStorageError(path, min(size, len(data)), what, _ADVICE)
        if before is not None and before.chain != previous:
            if not before.is_closed:
                raise before.damage()
            raise DamagedStorageError(path, 0, "it does not continue the segment before it", _ADVICE)
        self._chain = crc
        self._current_size = size
        return cluster_id, node_id, first_index

    def _read_records(self, path: str, data: bytes, found: Recovered, is_last: bool) -> _End:
        """Take in every record of a segment up to one that a crash may have torn."""
        offset = durable = _START
        max_index = 0
        while isinstance(record := self._read_record(data, offset), _Record) and record.kind != _CLOSING:
            try:
                max_index = max(max_index, found._take(record.kind, record.payload))
            except MalformedError as error:
                raise DamagedStorageError(path, offset, str(error), _ADVICE) from error
            offset, durable, self._chain = record.end, record.durable, record.chain
        is_closed = isinstance(record, _Record)
        if isinstance(record, _Record):
            problem = None if _is_zero(data[record.end :]) else "data behind the record that closes it"
        else:
            problem = record
        if offset < _BODY:
            problem = problem or "the records that every segment begins with are missing"
        if problem is not None:
            is_torn = offset >= _BODY and not is_closed
            if is_torn and is_last:
                is_torn = self._is_torn(data, offset)
            elif is_torn:
                is_torn = _is_torn_closing(data, offset, self._chain)
            if not is_torn:
                raise DamagedStorageError(path, offset, problem, _ADVICE)
        return _End(path, max_index, durable, offset, self._chain, problem, is_closed)

    def _go_on_from(self, end: _End, data: bytes, before: _End | None) -> None:
        """Be ready to write behind `end`, of the last segment, and make durable what may never have been synced."""
        if end.is_closed:
            number = self._segments[-1].number
            what = f"it is missing, and segment {number} says that it was made"
            raise DamagedStorageError(f"{self._path}/{_segment_name(number + 1)}", 0, what, _ADVICE)
        if end.problem is not None:
            logger.warning("%s: cut a torn last write at offset %d (%s)", end.path, end.offset, end.problem)
            # Nothing that was cut may come back behind what is written next.
            self._write_zeros(self._fd, end.offset, self._current_size)
        self._files.write(self._fd, data[end.durable : end.offset], end.durable)
        self._sync_fd(self._fd)
        self._offset = self._durable = end.offset
        if before is not None and end.is_pristine:  # else that was durable before anything was written here
            fd = self._files.open(before.path)
            try:
                self._write_closing(fd, before.offset, before.chain)
            finally:
                self._files.close(fd)

    def _read_record(self, data: bytes, offset: int) -> _Record | str | None:
        """The record at `offset`, or what is wrong with it; None at the end of the log."""
        head = data[offset : offset + _RECORD_HEAD.size]
        if _is_zero(head):
            # Nothing was written here.  If something was behind, it is torn or damaged.
            return None if _is_zero(data[offset:]) else "data behind the end of the log"
        if len(head) < _RECORD_HEAD.size:
            return "a record's head is cut short"
        size, kind_and_zeros, durable, crc, head_crc = _RECORD_HEAD.unpack(head)
        kind = kind_and_zeros >> 24
        if head_crc != crc32(head[:-4], offset) or kind not in (_ENTRIES, _STATE, _SNAPSHOT_MARK, _CLOSING):
            return "a record's head does not match its checksum"
        start = offset + _RECORD_HEAD.size
        stop = start + size
        end = offset + _record_size(size)
        if end > len(data):
            return "a record is cut short"
        payload = data[start:stop]
        if crc32(payload, crc32(_FIELDS.pack(size, kind_and_zeros, durable, 0), self._chain)) != crc:
            return "a record's checksum does not match"
        if data[stop : stop + 1] != _END_MARK or any(data[stop + 1 : end]):
            return "a record's end does not match"
        return _Record(kind, payload, durable, crc, end)

    def _is_torn(self, data: bytes, offset: int) -> bool:
        """Whether a crash before a sync explains the bad record at `offset`."""
        for later in range(offset + 8, len(data.rstrip(b"\x00")) - 4, 8):
            if data[later + 4]:  # a type: perhaps the head of a record
                head = data[later : later + _RECORD_HEAD.size].ljust(_RECORD_HEAD.size, b"\x00")
                _, _, durable, _, head_crc = _RECORD_HEAD.unpack(head)
                if head_crc == crc32(head[:-4], later) and durable > offset:
                    return False  # that write came after this one had been made durable
        head = data[offset : offset + _RECORD_HEAD.size]
        stop = offset + _RECORD_HEAD.size
        written_zeros = 0
        if len(head) == _RECORD_HEAD.size:
            size, kind_and_zeros, _, _, head_crc = _RECORD_HEAD.unpack(head)
            if head_crc == crc32(head[:-4], offset):
                stop = offset + _record_size(size)
                written_zeros = kind_and_zeros & 0xFFFFFF
            else:  # how far it went is unknown: look at the sectors of its head
                stop = min(stop + -stop % _SECTOR_BYTES, len(data))
        if stop > len(data):
            return False  # no write goes beyond its segment
        borders = [offset, *range(offset - offset % _SECTOR_BYTES + _SECTOR_BYTES, stop, _SECTOR_BYTES), stop]
        return sum([_is_zero(data[start:end]) for start, end in pairwise(borders)]) > written_zeros
