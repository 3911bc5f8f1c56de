"""How far long work is, for who waits at a terminal: one line on the standard error, which is gone at the end."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from raftsvc.storage import Files

_LOOK_SECONDS: Final = 0.5
_MIB: Final = 1 << 20
_ERASE: Final = "\r\x1b[K"


class CountedFiles(Files):
    """The disk, and how much went to it and came from it.  Counted without a lock, for people."""

    def __init__(self) -> None:
        super().__init__()
        self.read_bytes = 0
        self.written_bytes = 0

    def read(self, fd: int, size: int, offset: int) -> bytes:
        """See `Files.read`."""
        data = super().read(fd, size, offset)
        self.read_bytes += len(data)
        return data

    def write(self, fd: int, data: bytes, offset: int) -> None:
        """See `Files.write`."""
        super().write(fd, data, offset)
        self.written_bytes += len(data)


@contextmanager
def progress(what: str, seconds: float | None = None) -> Iterator[CountedFiles]:
    """Show how far `what` is while the body runs, if somebody is at a terminal; yields the disk to do it with.

    seconds: how long it takes, if that is known before.
    """
    files = CountedFiles()
    if not _is_at_terminal():
        yield files
        return
    is_over = threading.Event()
    began = time.monotonic()

    def show() -> None:
        while not is_over.wait(_LOOK_SECONDS):
            _say(_ERASE + line(what, files, time.monotonic() - began, seconds))

    thread = threading.Thread(target=show, name="raftsvc-progress", daemon=True)
    thread.start()
    try:
        yield files
    finally:
        is_over.set()
        thread.join(_LOOK_SECONDS)  # no longer, if the terminal takes nothing
        _say(_ERASE)


def line(what: str, files: CountedFiles, passed: float, seconds: float | None = None) -> str:
    """What is shown after so many seconds."""
    parts = [f"{passed:.0f} of {seconds:.0f} s" if seconds else f"{passed:.0f} s"]
    if files.read_bytes:
        parts.append(f"{files.read_bytes / _MIB:,.0f} MiB read")
    if files.written_bytes:
        parts.append(f"{files.written_bytes / _MIB:,.0f} MiB written")
    return f"{what}: {', '.join(parts)}"


def _is_at_terminal() -> bool:
    stream: Any = sys.stderr
    try:
        return stream is not None and bool(stream.isatty())
    except ValueError:  # it was closed
        return False


def _say(text: str) -> None:
    with suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()
