"""The write-ahead log: append-only segments of checked records.

A segment is a file of fixed size, zero-filled when it is made so that a write
changes no metadata, with a head and then records, each with a CRC that continues the one
before, across segments; `records` has their bytes.  One
batch of entries is one record, made of the entries' own frames.  Every segment
begins with the hard state, the mark and the life of its time, durable before it has its name,
as are its whole size and every record of the segment before.  That one then gets a
closing record, durable before anything is written behind the beginning of the new one.

What a crash can leave, and what it cannot.  No segment is shorter or longer than its
head says.  Only the last can end in a torn record.  Sectors of a write that was not
synced reach the disk in any order, those that did not are zeros; a process that was
killed in a write left its beginning.  So a bad record is a torn tail only if all from some
byte of it on is zero, or more of its sectors than were written so (its first and last
never are, by header and end mark), and no later record proves that this one had been
durable.  A closed segment that is the last proves that one is missing.  The
closing record of another may be torn or missing only if the next segment is the last and
holds nothing but its beginning.  All else is damage, and the log refuses to open.

What was read is not yet durable: a process that was killed, or whose fsync failed,
leaves bytes that only the page cache holds, and an fsync need not write them any
more.  So opening writes again what may never have been synced, and syncs it, before
anybody can act on it.

The next segment is made ahead of need (`spare`); one that a crash left is removed at the
next start.

One thread at a time appends, marks and syncs; `release_before` and `prepare` may run beside it.
"""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple, NoReturn
from zlib import crc32

from raftsvc.core.messages import Entry, HardState, Lineage, index_of, term_of
from raftsvc.errors import DamagedStorageError, DiskRefusedError, StorageError
from raftsvc.storage import spare
from raftsvc.storage.files import FOREIGN, NO_DESCRIPTOR, PASSING, Files, settle_names
from raftsvc.storage.lock import held_by
from raftsvc.storage.records import (
    ADVICE,
    BODY,
    CLOSING_BYTES,
    END_MARK,
    ENTRIES,
    HARD_STATE,
    LIFE,
    MAGIC,
    MARK,
    RECORD_HEAD_BYTES,
    SEGMENT_HEAD,
    SNAPSHOT_MARK,
    START,
    STATE,
    VERSION,
    closing_record,
    encode_record,
    record_size,
)
from raftsvc.storage.segments import (
    Ahead,
    End,
    Mark,
    Place,
    Recovered,
    begun,
    end_of,
    numbers_of,
    read_head,
    segment_name,
    take_records,
)

logger = logging.getLogger("raftsvc.storage")

DEFAULT_SEGMENT_BYTES: Final = 16 * 1024 * 1024
_NO_HEAD: Final = bytes(RECORD_HEAD_BYTES)


@dataclass(slots=True)
class _Standing:
    """What holds besides the entries, and every segment begins with."""

    hard_state: HardState
    mark: Mark
    life: Lineage

    def records(self) -> Sequence[tuple[int, bytes]]:
        """As it is written."""
        return (
            (STATE, HARD_STATE.pack(*self.hard_state)),
            (SNAPSHOT_MARK, MARK.pack(self.mark.index, self.mark.term)),
            (LIFE, self.life.encode()),
        )


class _Segment(NamedTuple):
    number: int
    path: str
    max_index: list[int]  # one item: the highest index ever written to the segment


@dataclass(slots=True)
class _Tail:
    """The segment that is written to, and where.

    offset, chain: where the next record goes, and the CRC that it continues.
    durable:       how many bytes are so.
    """

    fd: int
    size: int
    salt: int
    offset: int
    durable: int
    chain: int


_NO_TAIL: Final = _Tail(-1, 0, 0, 0, 0, 0)


class _Extent:
    """Which entries a log holds: those in (base, last], as runs of one term each."""

    __slots__ = ("_firsts", "_terms", "base", "last")

    def __init__(self, base: int) -> None:
        self.base = base
        self.last = base
        self._firsts: list[int] = []
        self._terms: list[int] = []

    def copy(self) -> _Extent:
        """The same, which changes by itself."""
        other = _Extent(self.base)
        other.last = self.last
        other._firsts, other._terms = self._firsts[:], self._terms[:]
        return other

    def put(self, entries: Sequence[Entry]) -> None:
        """Entries were written; they replace those from their first index on."""
        first = index_of(entries[0])
        firsts, terms = self._firsts, self._terms
        self.base = min(self.base, first - 1)
        while firsts and firsts[-1] >= first:
            firsts.pop()
            terms.pop()
        self.last = index_of(entries[-1])
        if terms and term_of(entries[-1]) == terms[-1]:  # as almost always; then of all, for terms never fall
            return
        position = bisect_left(entries, terms[-1] + 1, key=term_of) if terms else 0
        while position < len(entries):  # terms never fall
            firsts.append(first + position)
            terms.append(term_of(entries[position]))
            position = bisect_left(entries, terms[-1] + 1, lo=position, key=term_of)

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
        self._ids = (0, 0)  # of cluster and node
        self._lock = threading.Lock()  # guards _segments
        self._release_lock = threading.Lock()  # one removal at a time, and none after close; taken before _lock
        self._spare = spare.Spare(files, path, segment_bytes)
        self._segments: list[_Segment] = []
        self._tail = _NO_TAIL
        self._standing = _Standing(HardState(), Mark(), Lineage())
        self._durable_mark_index = 0
        self._extent = _Extent(0)
        self._failure: BaseException | None = None
        self._release_failure: OSError | None = None
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
        mark: Mark | None = None,
    ) -> None:
        """Make a log in the existing directory `path`, which holds no segment, durably.

        mark: the snapshot that it continues from, which is durable; None: it begins with the first entry.

        Raises OSError or StorageError.
        """
        wal = cls(files, path, segment_bytes)
        wal._ids = (cluster_id, node_id)
        wal._standing.hard_state = hard_state
        if mark is not None:
            wal._standing.mark = mark
            wal._extent = _Extent(mark.index)
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
        return self._spare.is_due and self._tail.offset >= self._tail.size // 2

    def skip_preparing(self) -> None:
        """Prepare nothing until after the next rotation."""
        self._spare.skip()

    def prepare(self) -> bool:
        """Zero one more piece of the next segment; whether to go on.

        Slow, and never needed.  A disk that refuses ends it until after the next
        rotation: what it took of the disk is given back, and the log goes on.
        """
        if self._failure is not None:
            return False
        try:
            return self._spare.prepare()
        except OSError as error:
            logger.warning("%s: the next segment could not be prepared: %s", self._path, error)
            return False

    def _rotate(self, need_bytes: int) -> None:
        """Continue in a new segment, which has room for `need_bytes` of records.

        It starts with hard state, mark and life, so that those before it can go, and
        has its name only once all that is durable.  Then the one before is closed, which
        takes an fsync of its own.  In the one before the name, the power could go between
        the two, and an honest start would be refused; in the next one of the new segment,
        what that makes durable, and is acknowledged, could be lost unnoticed.
        """
        former = self._tail
        number = self._segments[-1].number + 1 if self._segments else 1
        size = max(self._spare.size_bytes, BODY + need_bytes + CLOSING_BYTES)
        path = f"{self._path}/{segment_name(number)}"
        beginning, salt, chain = self._beginning(number, size)
        if former.fd >= 0:
            self._sync_fd(former.fd)  # what the chain continues must not be lost before it
        passing: frozenset[int] | None = None
        try:
            with self._spare.taken(size) as fd:
                # Up to its name it is nobody's, and whatever fails leaves the log as it was.
                self._files.write(fd, beginning, 0)
                self._sync_fd(fd)
                self._files.rename(self._spare.path, path)
                # From here on the same is made again in its place, unless a sync leaves a doubt.
                passing = NO_DESCRIPTOR
                self._files.sync_dir(self._path)
                if former.fd >= 0:
                    passing = PASSING
                    self._write_closing(former.fd, former.offset, former.chain, former.salt)
        except OSError as error:
            is_passing = error.errno not in FOREIGN if passing is None else error.errno in passing
            if is_passing and not self._files.is_doubtful(former.fd):
                raise self._refused("making the next segment", error) from error
            raise
        self._tail = _Tail(fd, size, salt, BODY, BODY, chain)
        if former.fd >= 0:
            with suppress(OSError):  # all that it holds is durable
                self._files.close(former.fd)
        self._durable_mark_index = self._standing.mark.index
        with self._lock:
            self._segments.append(_Segment(number, path, [0]))

    def _beginning(self, number: int, size: int) -> tuple[bytes, int, int]:
        """What segment `number` begins with; its salt, and the chained CRC after that."""
        head = SEGMENT_HEAD.pack(MAGIC, VERSION, *self._ids, number, self._extent.last + 1, size, self._tail.chain, 0)[
            :-4
        ]
        salt = chain = crc32(head)
        records = [(head + salt.to_bytes(4, "big")).ljust(START, b"\x00")]
        offset = START
        for kind, payload in self._standing.records():
            record, chain = encode_record(kind, payload, offset, START, chain, salt)
            records.append(record)
            offset += len(record)
        return b"".join(records), salt, chain

    def _write_closing(self, fd: int, offset: int, chain: int, salt: int) -> None:
        """Make it durable that the segment `fd`, which ends at `offset`, is not the last."""
        self._files.write(fd, closing_record(offset, chain, salt), offset)
        self._sync_fd(fd)

    # -- writing

    def append(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        """Write a batch, not yet durable.  The term comes first: no entry outlives it in a crash.

        Entries that do not follow the last one replace the log from there on.
        Raises DiskRefusedError or MemoryError, after which the very same is to be asked for again before
        anything else is; and StorageError, after which nothing more can be written.
        """
        self._check()
        if entries:
            first_index = index_of(entries[0])
            if first_index > self._extent.last + 1:  # no assert: what follows a gap would be lost
                raise StorageError(
                    f"{self._path}: entries after {self._extent.last} are missing before what is to be written"
                )
            if first_index <= self._standing.mark.index:
                raise StorageError(f"{self._path}: entry {first_index} is covered by the snapshot already")
        records: list[tuple[int, bytes]] = []
        former = self._standing.hard_state
        if hard_state is not None:
            records.append((STATE, HARD_STATE.pack(*hard_state)))
            self._standing.hard_state = hard_state
        if entries:
            records.append((ENTRIES, b"".join(entries)))
        try:
            self._write(records)
        except (DiskRefusedError, MemoryError):
            self._standing.hard_state = former
            raise
        if entries:
            self._extent.put(entries)
            top = self._segments[-1].max_index
            top[0] = max(top[0], index_of(entries[-1]))

    def mark_snapshot(self, index: int, term: int) -> bool:
        """Write that a durable snapshot covers everything up to `index` of `term`, not yet durable.

        The log goes on if it holds that very entry, or began after it; else it
        starts anew behind `index`, and False is returned.  A snapshot older than
        the one marked already changes nothing.  Raises as `append`.
        """
        self._check()
        if index <= self._standing.mark.index:
            return True
        former = self._standing.mark, self._extent.copy()
        goes_on = self._extent.mark(index, term)
        self._standing.mark = Mark(index, term)
        try:
            self._write([(SNAPSHOT_MARK, MARK.pack(index, term))])
        except (DiskRefusedError, MemoryError):
            self._standing.mark, self._extent = former
            raise
        return goes_on

    def begin_life(self, nonce: int) -> Lineage:
        """Count one more start, durably; `nonce` is random.  Raises StorageError."""
        self._check()
        standing = self._standing
        standing.life = standing.life.next(nonce)
        self._write([(LIFE, standing.life.encode())])
        self.sync()
        return standing.life

    def _write(self, records: Sequence[tuple[int, bytes]]) -> None:
        try:
            need = sum([record_size(len(payload)) for _, payload in records])
            if self._tail.offset + need + CLOSING_BYTES > self._tail.size:
                self._rotate(need)
            tail = self._tail
            buffer = []
            offset = tail.offset
            chain = tail.chain
            for kind, payload in records:
                record, chain = encode_record(kind, payload, offset, tail.durable, chain, tail.salt)
                buffer.append(record)
                offset += len(record)
            try:
                self._files.write(tail.fd, b"".join(buffer), tail.offset)
            except OSError as error:
                if error.errno in PASSING:
                    # What of it is there is not durable, and the next attempt writes the same bytes there.
                    raise self._refused("writing the log", error) from error
                raise
        except (DiskRefusedError, MemoryError):  # without memory nothing is begun, or the same bytes are there again
            raise
        except BaseException as failure:
            self._poison(failure)
        tail.offset = offset
        tail.chain = chain

    def sync(self) -> None:
        """Make everything written durable.  Raises StorageError, after which nothing more can be written.

        A failed fsync is never repeated: the kernel may have marked the pages
        clean, and a second one would succeed without the data.
        """
        self._check()
        try:
            self._sync_fd(self._tail.fd)
        except BaseException as error:
            self._poison(error)
        self._tail.durable = self._tail.offset
        self._durable_mark_index = self._standing.mark.index

    def _sync_fd(self, fd: int) -> None:
        self._files.sync(fd)
        self.fsync_count += 1

    def _check(self) -> None:
        if self._failure is not None:
            refusal = StorageError(f"{self._path}: no longer written after {self._failure!r}")
            refusal.__cause__ = self._failure
            raise refusal

    def _refused(self, what: str, error: OSError) -> DiskRefusedError:
        return DiskRefusedError(
            f"{self._path}: {what} was refused: {error}.  Nothing is lost, and it is tried again: make room"
        )

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
                if self._release_failure is not None:
                    raise self._names_unknown(self._release_failure)
                with self._lock:
                    oldest = self._segments[0]
                    if len(self._segments) == 1 or oldest.max_index[0] > min(index, self._durable_mark_index):
                        return
                try:
                    with suppress(FileNotFoundError):  # an earlier attempt got this far
                        self._files.remove(oldest.path)
                except OSError as error:
                    raise StorageError(f"{self._path}: deleting old segments failed: {error}") from error
                try:
                    # Each before the next: a crash must not leave a gap in the numbers.
                    self._files.sync_dir(self._path)
                except OSError as error:
                    if error.errno not in NO_DESCRIPTOR:
                        self._release_failure = error  # as with files: the next sync would say nothing of this name
                        raise self._names_unknown(error) from error
                    raise StorageError(f"{self._path}: deleting old segments failed: {error}") from error
                with self._lock:
                    del self._segments[0]

    def _names_unknown(self, error: OSError) -> StorageError:
        return StorageError(
            f"{self._path}: no old segments are deleted any more, until a restart, "
            f"since it is not known which names are durable: {error}"
        )

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
            fd, self._tail = self._tail.fd, _NO_TAIL
            if fd >= 0:
                self._files.close(fd)
        return self._spare.close(deadline - time.monotonic())

    # -- opening

    @classmethod
    def open(
        cls, files: Files, path: str, segment_bytes: int = DEFAULT_SEGMENT_BYTES, ahead: Ahead | None = None
    ) -> tuple[Wal, Recovered]:
        """Open the log in `path` and read it whole; cuts a torn tail; what is returned is durable.

        ahead: what was read of it before, and is of no use any more after that.
        Raises DamagedStorageError, OSError.
        """
        wal = cls(files, path, segment_bytes)
        try:
            return wal, wal._recover(ahead)
        except BaseException:
            wal.close()
            raise

    def _recover(self, ahead: Ahead | None) -> Recovered:
        files = self._files
        names = files.list_dir(self._path)
        if spare.NAME in names:
            files.remove(self._spare.path)
        numbers = numbers_of(self._path, names)
        settle_names(files, self._path)  # the name of the last one may be as young as the crash
        compared = ahead.compare(files, self._path, numbers) if ahead is not None else None
        if compared is None:
            ahead = None
        found = ahead.found if ahead is not None else None
        before: End | None = None
        for position, number in enumerate(numbers):
            path = f"{self._path}/{segment_name(number)}"
            if number != numbers[0] + position:
                raise DamagedStorageError(path, 0, f"segment {numbers[0] + position} before it is missing", ADVICE)
            if ahead is not None and position < len(ahead.ends):
                before = ahead.ends[position]
                self._segments.append(_Segment(number, path, [before.max_index]))
                continue
            is_last = position == len(numbers) - 1
            self._tail = tail = _Tail(files.open(path), 0, 0, START, START, 0)
            if ahead is not None and compared is not None and position == len(ahead.ends):
                data, place = compared, ahead.place
            else:
                data, place = files.read(tail.fd, files.size(tail.fd), 0), None
            head = read_head(path, data, number, before)
            tail.size, tail.salt = head.size, head.crc
            if found is None:
                found = begun(head)
            elif (head.cluster_id, head.node_id) != (found.cluster_id, found.node_id):
                raise DamagedStorageError(path, 8, "segment of another node or cluster", ADVICE)
            place = place or Place.first(head)
            end = end_of(path, data, head.crc, *take_records(path, data, head.crc, found, place), is_last)
            if before is not None and not before.is_closed and not (is_last and end.is_pristine):
                raise before.damage()
            self._segments.append(_Segment(number, path, [end.max_index]))
            if is_last:
                self._go_on_from(end, data, before)
            else:
                self._tail = _NO_TAIL
                files.close(tail.fd)
            before = end
        assert found is not None
        if found.base > found.mark.index:
            what = f"the log begins after {found.base}, the snapshot that it continues ends at {found.mark.index}"
            raise DamagedStorageError(self._segments[0].path, 0, what, ADVICE)
        if found.entries and term_of(found.entries[-1]) > found.hard_state.term:
            raise DamagedStorageError(self._path, 0, "an entry is of a later term than the hard state", ADVICE)
        self._ids = (found.cluster_id, found.node_id)
        self._standing = _Standing(found.hard_state, found.mark, found.life)
        self._durable_mark_index = found.mark.index
        self._extent = _Extent(found.base)
        if found.entries:
            self._extent.put(found.entries)
        return found

    def _go_on_from(self, end: End, data: bytes, before: End | None) -> None:
        """Be ready to write behind `end`, of the last segment, and make durable what may never have been synced."""
        tail = self._tail
        if end.is_closed:
            number = self._segments[-1].number
            what = f"it is missing, and segment {number} says that it was made"
            raise DamagedStorageError(f"{self._path}/{segment_name(number + 1)}", 0, what, ADVICE)
        if end.problem is not None:
            logger.warning("%s: cut a torn last write at offset %d (%s)", end.path, end.offset, end.problem)
            # Nothing that was cut may come back behind what is written next.
            # Its head first: if this is cut short too, the next start sees what it was about.
            self._files.write(tail.fd, _NO_HEAD, end.offset)
            self._sync_fd(tail.fd)
            spare.write_zeros(self._files, tail.fd, end.offset, tail.size)
        self._files.write(tail.fd, data[end.durable : end.offset], end.durable)
        if end.mark_at:
            self._files.write(tail.fd, END_MARK, end.mark_at)
        self._sync_fd(tail.fd)
        tail.offset = tail.durable = end.offset
        tail.chain = end.chain
        if before is not None and end.is_pristine:  # else that was durable before anything was written here
            fd = self._files.open(before.path)
            try:
                self._write_closing(fd, before.offset, before.chain, before.salt)
            finally:
                self._files.close(fd)
