"""The snapshot file: what the State was at one index, in checked chunks.

    head    magic, length of what follows in it, index, term, log time, cluster id, digest,
            configuration, session table, CRC-32 of the head
    chunks  length, CRC-32, data; at most MAX_CHUNK_BYTES each
    end     length 0, CRC-32 over the CRCs of head and chunks, bytes of data in all

A file is complete only with its end.  It is written beside the name it will
have and renamed, so that name always holds a complete one.  Nothing here holds
the whole state as one object.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from zlib import crc32

from raftsvc.core.messages import MAX_NUMBER, MAX_TIME_MS, MalformedError
from raftsvc.errors import DamagedStorageError, FormatVersionError, StorageError, damaged_head
from raftsvc.process import LongWork
from raftsvc.storage.files import Files, parent_of

MAX_CHUNK_BYTES: Final = 1024 * 1024
_MAX_HEAD_BYTES: Final = 64 * 1024 * 1024
# A log on the same disk waits behind every dirty byte of a snapshot that is synced: 60 to 160 ms
# behind 130 MB at the end, 3 ms behind this much at a time (`python -m benchmarks costs snapshot`).
SYNC_BYTES: Final = 4 * 1024 * 1024

_MAGIC: Final = b"raftsnp"
_VERSION: Final = b"5"
_PREFIX: Final = struct.Struct(">7scI")
_HEAD: Final = struct.Struct(">QQQQIII")
_CRC: Final = struct.Struct(">I")
_CHUNK: Final = struct.Struct(">II")
_END: Final = struct.Struct(">IIQ")


@dataclass(frozen=True, slots=True)
class SnapshotHeader:
    """What a snapshot covers, and what the library itself keeps in it.

    time_ms: log time as of its last entry.
    """

    index: int
    term: int
    cluster_id: int
    config: bytes
    sessions: bytes
    digest: int
    time_ms: int = 0

    def _encode(self) -> bytes:
        body = (
            _HEAD.pack(
                self.index,
                self.term,
                self.time_ms,
                self.cluster_id,
                self.digest,
                len(self.config),
                len(self.sessions),
            )
            + self.config
            + self.sessions
        )
        if len(body) > _MAX_HEAD_BYTES:  # which nobody would read again
            raise StorageError(f"the sessions take {len(body)} bytes of a snapshot, of at most {_MAX_HEAD_BYTES}")
        head = _PREFIX.pack(_MAGIC, _VERSION, len(body)) + body
        return head + _CRC.pack(crc32(head))


def write_snapshot(
    files: Files, fd: int, header: SnapshotHeader, chunks: Iterable[bytes], sync_bytes: int = SYNC_BYTES
) -> None:
    """Write a complete snapshot to the empty file `fd` and make its content durable; its name is not synced.

    It becomes durable bit by bit, so that no sync, of this file or of another, has much to wait for.
    """
    head = header._encode()
    files.write(fd, head, 0)
    offset = len(head)
    synced = 0
    chain = crc32(head[-_CRC.size :])
    total = 0
    for chunk in chunks:
        for start in range(0, len(chunk), MAX_CHUNK_BYTES):
            piece = bytes(chunk[start : start + MAX_CHUNK_BYTES])
            frame = _CHUNK.pack(len(piece), crc32(piece))
            files.write(fd, frame + piece, offset)
            offset += len(frame) + len(piece)
            chain = crc32(frame, chain)
            total += len(piece)
            if offset - synced >= sync_bytes:
                files.sync(fd)
                synced = offset
    files.write(fd, _END.pack(0, chain, total), offset)
    files.sync(fd)


class StoredSnapshot:
    """A snapshot file open for reading; it stays readable when a newer one takes its name.

    header:     verified.
    size_bytes: of the whole file.
    crc:        over all its checksums; two files that agree in size and crc hold the same.
    """

    def __init__(self, files: Files, path: str) -> None:
        """Raises DamagedStorageError if head or end are damaged, OSError if there is no file."""
        self._files = files
        self._path = path
        self._fd = files.open_to_read(path)
        try:
            self.size_bytes = files.size(self._fd)
            self.header, self._start, self._head_crc = self._read_head()
            end = files.read(self._fd, _END.size, max(0, self.size_bytes - _END.size))
            if len(end) < _END.size or _END.unpack(end)[0] != 0:
                raise self._damaged(self.size_bytes, "the end is missing")
            self.crc = int(_END.unpack(end)[1])
        except BaseException:
            files.close(self._fd)
            raise

    def __enter__(self) -> StoredSnapshot:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._files.close(fd)

    def read(self, offset: int, size: int) -> bytes:
        """Raw bytes of the file, to be sent elsewhere."""
        return self._files.read(self._fd, size, offset)

    def chunks(self) -> Iterator[bytes]:
        """The State's data in order, each piece verified; raises DamagedStorageError where it is not whole."""
        work = LongWork()
        offset = self._start
        chain = crc32(_CRC.pack(self._head_crc))
        total = 0
        while True:
            frame = self._files.read(self._fd, _CHUNK.size, offset)
            if len(frame) < _CHUNK.size:
                raise self._damaged(offset, "cut short")
            length, crc = _CHUNK.unpack(frame)
            if length == 0:
                break
            if length > MAX_CHUNK_BYTES:
                raise self._damaged(offset, f"a chunk claims {length} bytes")
            data = self._files.read(self._fd, length, offset + _CHUNK.size)
            if len(data) < length or crc32(data) != crc:
                raise self._damaged(offset, "a chunk's checksum does not match")
            chain = crc32(frame, chain)
            total += length
            offset += _CHUNK.size + length
            work.give_way()
            yield data
        end = self._files.read(self._fd, _END.size, offset)
        if offset + _END.size != self.size_bytes or len(end) < _END.size or _END.unpack(end) != (0, chain, total):
            raise self._damaged(offset, "the end does not match what precedes it")

    def verify(self) -> None:
        """Read everything once; raises DamagedStorageError."""
        for _ in self.chunks():
            pass

    def _read_head(self) -> tuple[SnapshotHeader, int, int]:
        prefix = self._files.read(self._fd, _PREFIX.size, 0)
        if len(prefix) < _PREFIX.size or not prefix.startswith(_MAGIC):
            raise self._damaged(0, "not a snapshot")
        _, version, length = _PREFIX.unpack(prefix)
        versions = (version, _VERSION)
        if not _HEAD.size <= length <= min(_MAX_HEAD_BYTES, self.size_bytes):
            raise damaged_head(self._path, len(_MAGIC), f"the head claims {length} bytes", versions)
        body = self._files.read(self._fd, length + _CRC.size, _PREFIX.size)
        if len(body) < length + _CRC.size:
            raise damaged_head(self._path, self.size_bytes, "the head is cut short", versions)
        crc = _CRC.unpack_from(body, length)[0]
        if crc32(prefix + body[:length]) != crc:
            raise damaged_head(self._path, 0, "the head's checksum does not match", versions)
        if version != _VERSION:
            raise FormatVersionError(self._path, version.decode(errors="replace"), _VERSION.decode())
        index, term, time_ms, cluster_id, digest, config_length, sessions_length = _HEAD.unpack_from(body)
        if _HEAD.size + config_length + sessions_length != length:
            raise self._damaged(_PREFIX.size, "the head's lengths do not add up")
        if index > MAX_NUMBER:
            raise self._damaged(_PREFIX.size, f"no entry has the index {index}")
        if time_ms > MAX_TIME_MS:
            raise self._damaged(_PREFIX.size, f"no log time is as late as {time_ms}")
        config_end = _HEAD.size + config_length
        config, sessions = body[_HEAD.size : config_end], body[config_end:length]
        header = SnapshotHeader(index, term, cluster_id, config, sessions, digest, time_ms)
        return header, _PREFIX.size + length + _CRC.size, crc

    def _damaged(self, offset: int, what: str) -> DamagedStorageError:
        return DamagedStorageError(self._path, offset, what)


class IncomingSnapshot:
    """A snapshot being received into a file of its own; what arrived is never trusted until `finish`.

    identity: (index, term, size in bytes, crc) as announced; pieces of another
              identity belong to another object.  None once a write or a sync of it failed:
              what is on the disk then is not known, and all of it is to be received anew.
    """

    def __init__(
        self,
        files: Files,
        path: str,
        cluster_id: int,
        identity: tuple[int, int, int, int],
        on_complete: Callable[[int], None],
        sync_bytes: int = SYNC_BYTES,
        on_useless: Callable[[], None] = lambda: None,
    ) -> None:
        """on_complete: called by `finish` with the index, all verified and durable; on_useless: where that fails."""
        index, term, size_bytes, crc = identity
        self.identity: tuple[int, int, int, int] | None = identity
        self._announced = (index, term, cluster_id)
        self._on_complete = on_complete
        self._on_useless = on_useless
        self._files = files
        self._path = path
        self._size_bytes = size_bytes
        self._crc = crc
        self._offset = 0
        self._synced = 0
        self._sync_bytes = sync_bytes
        self._fd = files.create(path)

    def append(self, offset: int, data: bytes) -> int:
        """Take `data` at `offset`; returns the offset wanted next.

        A piece that is not the one wanted changes nothing, so the sender learns
        from the answer where to go on.  Nothing is written beyond the size announced.
        Raises OSError, after which this object is of no more use.
        """
        if self.identity is None:
            raise OSError(errno.EIO, "the disk failed this snapshot before; it is to be received anew")
        if offset == self._offset and offset + len(data) <= self._size_bytes:
            with self._giving_up():
                self._files.write(self._fd, data, offset)
                self._offset += len(data)
                if self._offset - self._synced >= self._sync_bytes:
                    self._files.sync(self._fd)
                    self._synced = self._offset
        return self._offset

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        """Give the file up if the disk fails: a full one gets its space back."""
        try:
            yield
        except OSError:
            self.identity = None
            self.close()
            self._on_useless()
            raise

    def finish(self) -> SnapshotHeader:
        """Verify everything and make it durable, ready to be installed.

        To be called once `append` wants no more.  Raises MalformedError if it is
        not what was announced, OSError.
        """
        if self._offset != self._size_bytes:
            raise RuntimeError(f"only {self._offset} of the {self._size_bytes} bytes of a snapshot were received")
        with self._giving_up():
            self._files.sync(self._fd)
        self.close()
        try:
            with self._giving_up(), StoredSnapshot(self._files, self._path) as snapshot:
                header = snapshot.header
                if (snapshot.crc, header.index, header.term, header.cluster_id) != (self._crc, *self._announced):
                    raise MalformedError(f"the snapshot received is not the one at {self._announced[0]} announced")
                snapshot.verify()
        except (DamagedStorageError, MalformedError) as error:
            self._on_useless()
            if isinstance(error, MalformedError):
                raise
            # It was never ours: the sender's storage, or the way, is damaged.
            raise MalformedError(f"the snapshot received is damaged: {error}") from error
        with self._giving_up():
            self._on_complete(header.index)
        return header

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._files.close(fd)


def publish(files: Files, source: str, path: str) -> None:
    """Give a complete snapshot its name, durably."""
    files.rename(source, path)
    files.sync_dir(parent_of(path))
