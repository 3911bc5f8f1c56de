"""The segment that comes next, prepared ahead of need.

It is one file under a temporary name, which grows a piece at a time, and belongs to the
log only once that has given it a head and a name.  Nothing depends on it: whoever needs
it before it is complete completes it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from raftsvc.storage.files import Files
from raftsvc.storage.lock import held_by
from raftsvc.storage.records import SECTOR_BYTES

NAME: Final = "next.tmp"
_PIECES: Final = 64
"""In how many it is prepared: an fsync of the log waits for one of them, 256 KiB, at most."""


class Spare:
    """The next segment's file, as far as it is there.

    path:       its temporary name.
    size_bytes: how large a segment usually is.
    """

    def __init__(self, files: Files, directory: str, size_bytes: int) -> None:
        self.path = f"{directory}/{NAME}"
        self._files = files
        self.size_bytes = size_bytes
        # Guards all below and the file; held while a piece of it is written, and while it becomes a segment.
        self._lock = threading.Lock()
        self._fd = -1
        self._zeroed = 0  # bytes, durably
        self._may_prepare = True  # no rotation wants the file, and the disk did not refuse since the last one
        self._is_closed = False

    @property
    def is_due(self) -> bool:
        """Whether there is something to prepare."""
        return self._may_prepare and self._zeroed < self.size_bytes

    def skip(self) -> None:
        """Nothing is to be prepared until after the next rotation."""
        self._may_prepare = False

    def prepare(self) -> bool:
        """Zero one more piece; whether to go on.  Raises OSError, which ends it until after the next rotation."""
        with self._lock:
            start = self._zeroed
            stop = min(start + max(SECTOR_BYTES, self.size_bytes // _PIECES), self.size_bytes)
            if self._is_closed or not self._may_prepare or start == stop:
                return False
            try:
                if self._fd < 0:
                    self._fd = self._files.create(self.path)
                write_zeros(self._files, self._fd, start, stop)
                self._files.sync(self._fd)  # all at once would keep the log's own fsync waiting
            except OSError:
                self._may_prepare = False
                fd, _ = self._take()
                if fd >= 0:
                    self._discard(fd)
                raise
            self._zeroed = stop
            return stop < self.size_bytes

    def _take(self) -> tuple[int, int]:
        taken = self._fd, self._zeroed
        self._fd, self._zeroed = -1, 0
        return taken

    def _discard(self, fd: int) -> None:
        self._files.close(fd)
        with suppress(OSError):
            self._files.remove(self.path)  # give a full disk its space back

    @contextmanager
    def taken(self, size_bytes: int) -> Iterator[int]:
        """The file, of `size_bytes` zeros, to be made a segment; it is gone if that fails."""
        self._may_prepare = False  # the thread that prepares would take the lock again before this one wakes
        with self._lock:
            fd, zeroed = self._take()
            if fd < 0:
                fd = self._files.create(self.path)
            try:
                write_zeros(self._files, fd, zeroed, size_bytes)
                yield fd
            except BaseException:
                self._discard(fd)
                raise
        self._may_prepare = True

    def close(self, timeout: float) -> bool:
        """Let go of the file; False if that waits for a disk longer than `timeout` seconds."""
        self._is_closed = True
        with held_by(time.monotonic() + timeout, self._lock) as is_quiet:
            if not is_quiet:
                return False
            fd, _ = self._take()
            if fd >= 0:
                self._files.close(fd)
        return True


def write_zeros(files: Files, fd: int, start: int, stop: int) -> None:
    """Fill a part of a file with zeros."""
    zeros = bytes(min(1 << 20, stop - start))
    for offset in range(start, stop, 1 << 20):
        files.write(fd, zeros[: stop - offset], offset)
