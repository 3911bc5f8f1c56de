"""What an attached process does about being the next owner, before its owner has left.

Most of what a takeover takes is reading the log, and that is long where a snapshot is long ago.  An owner that leaves
in order asks one process to do it before: from then on that has only to make sure that the bytes are still the same,
and to read what came after them.  The others let it go first.

Threads: raftsvc-attached-ahead, while it reads
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from raftsvc.process import await_end
from raftsvc.storage import Ahead, Files, read_log_ahead

logger = logging.getLogger("raftsvc.attached")

_FIRST_SECONDS = 0.5
"""How long one that is prepared goes first: its owner may take a moment to end."""
_READ_SECONDS = 5.0


class Heir:
    """This process's part in it.  Thread-safe."""

    def __init__(self, directory: str, files: Files | None, tell: Callable[[bool], object]) -> None:
        """directory: which another process owns.  tell: the owner, whether this process is ready."""
        self._directory = directory
        self._files = files or Files()
        self._tell = tell
        self._lock = threading.Lock()  # guards the next three
        self._reading: _Reading | None = None
        self._thread: threading.Thread | None = None
        self._ahead: Ahead | None = None
        self._waits_until = 0.0

    def prepare(self, is_willing: bool) -> None:
        """Read the log ahead, and tell the owner then; or at once, that nothing comes of it."""
        if not is_willing:
            self._tell(False)
            return
        reading = _Reading()
        thread = threading.Thread(target=self._read, args=(reading,), name="raftsvc-attached-ahead", daemon=True)
        with self._lock:
            if self._reading is not None:
                return  # that one tells it
            self._reading, self._thread = reading, thread
        try:
            thread.start()
        except RuntimeError:  # there can be no thread
            self._end(reading, None)

    def _read(self, reading: _Reading) -> None:
        ahead = None
        try:
            ahead = read_log_ahead(self._directory, self._files, lambda: reading.is_over)
        except MemoryError:
            logger.warning("there is no memory for reading the log of %s ahead", self._directory)
        finally:
            self._end(reading, ahead)

    def _end(self, reading: _Reading, ahead: Ahead | None) -> None:
        with self._lock:
            if self._reading is reading:
                self._reading = None
            if not reading.is_over:
                self._ahead = ahead
        self._tell(ahead is not None)

    def take(self) -> Ahead | None:
        """What was read; once.  What is being read just then is waited for, for it would be read again."""
        thread = self._thread
        if thread is not None:
            await_end(thread, _READ_SECONDS)
        with self._lock:
            ahead = self._ahead
        self.drop()
        return ahead

    def drop(self) -> None:
        """Nothing of that is needed any more, nor what is being read."""
        with self._lock:
            self._ahead = None
            if self._reading is not None:
                self._reading.is_over = True
                self._reading = None

    def end(self) -> None:
        """This process ends: have the thread end; bounded."""
        self.drop()
        if self._thread is not None:
            await_end(self._thread, _READ_SECONDS)

    def let_go_first(self, pid: int) -> None:
        """The owner leaves, and process `pid` is prepared, or about to be; 0: none is."""
        self._waits_until = time.monotonic() + _FIRST_SECONDS if pid not in (0, os.getpid()) else 0.0

    @property
    def waits(self) -> bool:
        """Whether another process goes first just now."""
        return time.monotonic() < self._waits_until


class _Reading:
    """One reading of the log.  is_over: nobody wants what comes of it."""

    __slots__ = ("is_over",)

    def __init__(self) -> None:
        self.is_over = False
