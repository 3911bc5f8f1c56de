"""A process that stands in the place of an owner, does what one must not do, and is told by whoever starts it.

python -m tests.attached.stranger DIRECTORY, then on its input:

    lock NOTE        have the lock of the directory, noted as NOTE
    unlock           have it no more
    listen           make a socket, in place of any that is there, and let whoever comes wait
    wait REASON WHY  listen, and say that to whoever comes
    end              listen, and end each connection at once
    drop             end the connections that there are

It says a line after each of these; and the number of connections that there were after `count`.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from raftsvc.attached.frames import encode
from raftsvc.member.attachment import Wait
from tests.attached.hosts import PATIENCE, ROOT


class Stranger:
    """Such a process."""

    def __init__(self, directory: Path) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "tests.attached.stranger", str(directory)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._popen.pid

    def do(self, what: str) -> str:
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._popen.stdin.write(what + "\n")
        self._popen.stdin.flush()
        return self._popen.stdout.readline().strip()

    def end(self) -> None:
        self._popen.kill()
        self._popen.communicate(timeout=PATIENCE)


def main() -> None:
    directory = sys.argv[1]
    kept: list[socket.socket] = []
    servers: list[socket.socket] = []
    count = 0
    fd = -1

    def serve(server: socket.socket, what: str, rest: str) -> None:
        nonlocal count
        while True:
            connection, _ = server.accept()
            count += 1
            if what == "end":
                connection.close()
                continue
            kept.append(connection)
            if what == "wait":
                reason, _, why = rest.partition(" ")
                with suppress(OSError):  # one that only looks whether somebody listens
                    connection.sendall(encode(Wait(os.getpid(), int(reason), why)))

    for line in sys.stdin:
        what, _, rest = line.strip().partition(" ")
        if what == "lock":
            fd = os.open(directory, os.O_RDONLY)
            fcntl.flock(fd, fcntl.LOCK_EX)
            (Path(directory) / "lock").write_text(rest)
        elif what == "unlock":
            os.close(fd)
        elif what == "drop":
            while kept:
                kept.pop().close()
        elif what != "count":
            path = Path(directory) / "socket"
            path.unlink(missing_ok=True)
            server = socket.socket(socket.AF_UNIX)
            server.bind(str(path))
            server.listen(64)
            servers.append(server)
            if what != "listen":
                threading.Thread(target=serve, args=(server, what, rest), daemon=True).start()
        sys.stdout.write(f"{count}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
