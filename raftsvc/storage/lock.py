"""The lock that makes one process the owner of a directory; and how threads wait for each other at the end.

An flock is given up by the kernel when its holder dies, so no stale lock can
remain.  It is inherited by a fork, and lasts until the last of the family closes
it or one of them gives it up: so the owner gives it up explicitly, lest a child
keep it, and a child never does.
"""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from raftsvc.errors import DirectoryInUseError

_POLL_SECONDS = 0.05


@contextmanager
def held_by(deadline: float, lock: threading.Lock) -> Iterator[bool]:
    """Hold `lock`, if it is free by `deadline` of the monotonic clock, as what is yielded says.

    For whoever ends: the holder may be in a write to a disk that hangs.
    """
    is_held = lock.acquire(timeout=max(0.0, deadline - time.monotonic()))
    try:
        yield is_held
    finally:
        if is_held:
            lock.release()


class DirectoryLock:
    """Exclusive ownership of `path`'s directory, while held."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._pid = 0

    def acquire(self, timeout: float) -> None:
        """Wait at most `timeout` seconds for the present owner to end.

        During a reload a server starts the new process while the old one drains.
        Raises DirectoryInUseError, which names the owner.
        """
        deadline = time.monotonic() + timeout
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        owner = os.pread(fd, 200, 0).decode(errors="replace").strip() or "another process"
                        raise DirectoryInUseError(
                            f"{os.path.dirname(self._path)} is in use by {owner}, waited {timeout:g} s. "
                            "One process owns a directory: run one worker process, and "
                            "give each node its own directory."
                        ) from None
                    time.sleep(_POLL_SECONDS)
            with suppress(OSError):  # a full disk does not keep the owner out
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        self._pid = os.getpid()

    def release(self) -> None:
        """Let the next owner in; idempotent."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            if os.getpid() == self._pid:
                with suppress(OSError):
                    os.ftruncate(fd, 0)
                fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)
