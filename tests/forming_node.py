"""A node of the tests with processes: founds its cluster by its list, and may be killed in the midst of that.

    python tests/forming_node.py ADDR DIR LIST [KILL_AT]

LIST has commas between; KILL_AT: the process kills itself right before that change of its directory,
counted from 1.  Names below .test are looked up in the file that NAMES names, a line `name address` each: who is
not in there yet cannot be resolved, as with names of services that are not up.  Serves until it is killed.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import raftsvc
from raftsvc.kv import KeyValueState
from raftsvc.storage import Files

_getaddrinfo = socket.getaddrinfo


def resolve(host: Any, *rest: Any, **options: Any) -> Any:
    """What the resolver says of a name below .test."""
    name = host.decode() if isinstance(host, bytes) else host
    if isinstance(name, str) and name.endswith(".test"):
        lines = [line.split() for line in Path(os.environ["NAMES"]).read_text().splitlines()]
        found = dict(line for line in lines if len(line) == 2)
        if name not in found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        host = found[name]
    return _getaddrinfo(host, *rest, **options)


class DeadlyFiles(Files):
    """Kills the process right before one change of the directory."""

    def __init__(self, kill_at: int) -> None:
        super().__init__()
        self._left = kill_at

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def write(self, fd: int, data: bytes, offset: int) -> None:
        self._count()
        super().write(fd, data, offset)

    def flush(self, fd: int) -> None:
        self._count()
        super().flush(fd)

    def rename(self, source: str, target: str) -> None:
        self._count()
        super().rename(source, target)

    def remove(self, path: str) -> None:
        self._count()
        super().remove(path)

    def sync_dir(self, path: str) -> None:
        self._count()
        super().sync_dir(path)


def main() -> None:
    socket.getaddrinfo = resolve
    addr, directory, members, *kill_at = sys.argv[1:]
    raftsvc.start(
        addr,
        directory,
        state=KeyValueState(),
        initial_cluster=members.split(","),
        listen="127.0.0.1:" + addr.rpartition(":")[2],
        secret="a secret of the tests, long enough",
        election_timeout=0.5,
        files=DeadlyFiles(int(kill_at[0])) if kill_at else None,
    )
    threading.Event().wait()


if __name__ == "__main__":
    main()
