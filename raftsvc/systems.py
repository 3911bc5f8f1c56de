"""What only some systems have, each with what is done where there is none.

A node lives on a POSIX system, for its directory has to be locked. Elsewhere, as on Windows, `import raftsvc` and
`raftsvc.connect(url)` work, and `raftsvc.start` says why it does not.

    hooks of a fork         os.register_at_fork; where nothing forks nothing has to be done
    locks of files          fcntl; else no node
    durable data            F_FULLFSYNC (macOS, whose fsync leaves it in the disk's own cache), fdatasync, else fsync
    durable names           F_FULLFSYNC, else fsync
    a file without a name   memfd_create (Linux), else one in the directory for temporary files that is removed at once
    another thread's turn   sched_yield, else none is given

What differs about clocks is in `raftsvc.clocks`, about the socket of a directory in `raftsvc.attached.sockets`.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from typing import Any

from raftsvc.errors import ConfigurationError

_NEEDED = ("fork", "pread", "pwrite", "O_DIRECTORY", "O_NOFOLLOW")


def _locks() -> Any:
    """The module of locks, or None."""
    try:
        return import_module("fcntl")
    except ImportError:
        return None


_fcntl = _locks()
_full_sync: int | None = getattr(_fcntl, "F_FULLFSYNC", None)
_fdatasync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)

let_others_run: Callable[[], None] = getattr(os, "sched_yield", lambda: None)
"""Have whoever waits for this processor go first: 1 µs if there is nobody."""


def check_nodes() -> None:
    """Raise ConfigurationError where no node can live."""
    missing = [name for name in _NEEDED if not hasattr(os, name)]
    missing += [] if _fcntl is not None else ["fcntl"]
    missing += [] if hasattr(socket, "AF_UNIX") else ["AF_UNIX"]
    if missing:
        raise ConfigurationError(
            f"a node needs a POSIX system, such as Linux or macOS, and this one ({sys.platform}) has no "
            f"{', no '.join(missing)}: run the nodes elsewhere, and here be a client of theirs, "
            "kv = raftsvc.connect(url, key=...)"
        )


def call_in_children(function: Callable[[], None]) -> None:
    """Have it called in every process that is forked from this one."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


def lock_inode(fd: int) -> None:
    """Take the lock of what `fd` is of, which whoever has this descriptor has (flock).

    Raises BlockingIOError if others do, OSError where the file system has no such locks.
    """
    _fcntl.flock(fd, _fcntl.LOCK_EX | _fcntl.LOCK_NB)


def unlock_inode(fd: int) -> None:
    """Let it go, for all of them."""
    _fcntl.flock(fd, _fcntl.LOCK_UN)


def lock_for_process(fd: int) -> None:
    """Take the lock of what `fd` is of, which no fork has (a record lock of POSIX).

    Raises an OSError with EACCES or EAGAIN if another process has it.
    """
    _fcntl.lockf(fd, _fcntl.LOCK_EX | _fcntl.LOCK_NB)


def unlock_for_process(fd: int) -> None:
    """Let it go."""
    _fcntl.lockf(fd, _fcntl.LOCK_UN)


def sync_data(fd: int) -> None:
    """Return once what is in the file is durable."""
    _sync(fd, _fdatasync)


def sync_names(fd: int) -> None:
    """Return once the names in the directory are durable."""
    _sync(fd, os.fsync)


def _sync(fd: int, usual: Callable[[int], None]) -> None:
    if _full_sync is not None:
        try:
            _fcntl.fcntl(fd, _full_sync)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):
                raise
            # It is on a file system that knows fsync only, as those of other machines do.
    usual(fd)


def nameless_file() -> int:
    """A descriptor of a file that has no name, closed by whoever executes another program."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("raftsvc", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
