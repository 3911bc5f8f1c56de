"""What clients from elsewhere copy of a node, piece by piece: each a snapshot that stays open as long as it is read.

Invariant: what is open was read within the last minute, or is about to be closed; and there is little of it.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from raftsvc.errors import OverloadedError, Rejected, StorageError
from raftsvc.storage import StoredSnapshot

logger = logging.getLogger("raftsvc")

TOKEN_BYTES: Final = 16
PIECE_BYTES: Final = 1024 * 1024
_MAX_COPIES: Final = 4
_IDLE_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 1.0


class _Copy:
    """One.  used_at: when it was read last; readers: how many read it now."""

    def __init__(self, stored: StoredSnapshot, now: float) -> None:
        self.stored = stored
        self.used_at = now
        self.readers = 0


class Copies:
    """Those of a process.  Thread-safe."""

    def __init__(self, stopped: threading.Event, clock: Callable[[], float] = time.monotonic) -> None:
        """stopped: set once there are to be none any more."""
        self._stopped = stopped
        self._clock = clock
        self._lock = threading.Lock()  # guards the two below; held for no I/O
        self._open: dict[bytes, _Copy] = {}
        self._is_swept = False

    def check_room(self) -> None:
        """Raise OverloadedError if so many are open that no other may be, before anything is done for one."""
        with self._lock:
            self._check_room()

    def _check_room(self) -> None:
        if len(self._open) >= _MAX_COPIES:
            raise OverloadedError(f"{_MAX_COPIES} clients copy what this node has already; try again later")

    def begin(self, stored: StoredSnapshot) -> bytes:
        """Have it read, by the token that is returned, and closed.  Raises OverloadedError."""
        token = secrets.token_bytes(TOKEN_BYTES)
        try:
            with self._lock:
                self._check_room()
                self._sweep_from_now_on()
                self._open[token] = _Copy(stored, self._clock())
        except BaseException:
            stored.close()
            raise
        return token

    def read(self, token: bytes, offset: int) -> tuple[int, bytes]:
        """How many bytes it has, and some of them from there on.  Raises Rejected if it is open no more."""
        with self._lock:
            copy = self._open.get(token)
            if copy is None:
                raise Rejected("that copy is not open here, or no more: begin anew")
            copy.readers += 1
        try:
            size_bytes = copy.stored.size_bytes
            # Beyond the end there may be no such place in any file, which is no error of the file's.
            return size_bytes, copy.stored.read(offset, PIECE_BYTES) if offset < size_bytes else b""
        except OSError as error:
            raise StorageError(f"the stored snapshot cannot be read: {error}") from error
        finally:
            with self._lock:
                copy.readers -= 1
                copy.used_at = self._clock()

    def end(self, token: bytes) -> None:
        """It is not read any more."""
        with self._lock:
            copy = self._open.get(token)
            if copy is not None:
                copy.used_at = -_IDLE_SECONDS  # whoever sweeps closes it, once nobody reads it

    def sweep(self) -> bool:
        """Close what is not read any more; whether something is open still."""
        limit = self._clock() - _IDLE_SECONDS
        with self._lock:
            idle = [
                t for t, c in self._open.items() if not c.readers and (c.used_at <= limit or self._stopped.is_set())
            ]
            closing = [self._open.pop(token) for token in idle]
            is_open = self._is_swept = bool(self._open)
        for copy in closing:
            with suppress(OSError):
                copy.stored.close()
        return is_open

    def _sweep_from_now_on(self) -> None:
        """Called under the lock.  Raises OverloadedError where no thread can be started."""
        if self._is_swept:
            return
        try:
            threading.Thread(target=self._run, name="raftsvc-copies", daemon=True).start()
        except RuntimeError as error:
            raise OverloadedError(f"no thread can be started: {error}") from error
        self._is_swept = True

    def _run(self) -> None:
        while True:
            self._stopped.wait(_LOOK_SECONDS)
            if not self.sweep():
                return
            if self._stopped.is_set():
                time.sleep(_LOOK_SECONDS / 10)  # a reader is still at it
