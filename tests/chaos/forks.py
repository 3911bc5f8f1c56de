"""Children that a node's process forked, and what they must not have of it.

Each is ended by a descriptor of its process, which no other process can come to be meant by.
"""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from pathlib import Path

from tests.chaos.cluster import Process, Trouble, eventually


class Child:
    """A process that was forked by a request handler and lives on."""

    def __init__(self, parent: Process, how: str) -> None:
        """how: `os.fork` or `multiprocessing`."""
        self._name = f"the child of {parent.name} by {how}"
        self._directory = str(parent.directory)
        self._pid = int(parent.ask("fork", {"how": how})["pid"])
        self._fd = os.pidfd_open(self._pid)
        # Until then it is killed with its parent's group.
        eventually(lambda: os.getpgid(self._pid) == self._pid, f"{self._name} has a group of its own", 30.0)

    def check(self) -> None:
        """Raise Trouble if it ended, or has anything of the node."""
        if select.select([self._fd], [], [], 0)[0]:
            raise Trouble(f"{self._name} ended by itself")
        held = self._held()
        if held:
            eventually(lambda: not self._held(), f"{self._name} gives up {held}", 5.0)

    def _held(self) -> list[str]:
        """What it has of the directory, and which connections."""
        sockets = _sockets_of(self._pid)
        found = []
        folder = Path(f"/proc/{self._pid}/fd")
        for name in os.listdir(folder):
            with suppress(FileNotFoundError):
                what = os.readlink(folder / name)
                if what.startswith(self._directory):
                    found.append(what)
                elif what in sockets:
                    found.append(sockets[what])
        return found

    def end(self) -> None:
        """Kill it; idempotent."""
        if self._fd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)
            os.close(self._fd)
            self._fd = -1


def _sockets_of(pid: int) -> dict[str, str]:
    """All TCP sockets of its network, by what a descriptor of one is a link to."""
    found = {}
    for kind in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]:
            fields = line.split()
            ports = [int(end.rpartition(":")[2], 16) for end in fields[1:3]]
            found[f"socket:[{fields[9]}]"] = f"a socket of port {ports[0]}, to port {ports[1]}, state {fields[3]}"
    return found
