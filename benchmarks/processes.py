"""Processes of a benchmark: started in groups of their own, read through /proc, ended with the runner."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class Failure(Exception):
    """Something that should have happened did not; the message says what."""


class Process:
    """One started program and what it forked: a process group."""

    def __init__(
        self,
        name: str,
        command: list[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
    ) -> None:
        # The kernel ends a child whose parent *thread* ended.
        assert threading.current_thread() is threading.main_thread()
        self.name = name
        self.log = log
        self._command = command
        self._environment = {**os.environ, **(environment or {})}
        self._directory = directory
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def check(self) -> None:
        if self._popen.poll() is not None:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            raise Failure(f"{self.name} ended with exit code {self._popen.returncode}; its log ends:\n{tail}")

    def signal(self, number: signal.Signals) -> None:
        """To every process of the group."""
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, number)

    def kill(self) -> None:
        """End every process of the group at once, and wait until they are gone."""
        if self._popen.returncode is None:
            self.signal(signal.SIGKILL)
            self._popen.wait(10)
            wait_until(lambda: not self.pids(), f"every process of {self.name} is gone", 10)

    def pids(self) -> list[int]:
        """Of the living processes of the group; gunicorn's worker is the last."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with suppress(OSError):
                    fields = _stat(int(entry))
                    if int(fields[2]) == self._popen.pid and fields[0] != "Z":
                        found.append(int(entry))
        return sorted(found)

    def cpu_seconds(self) -> float:
        """User and system time that the living processes of the group have used."""
        total = 0
        for pid in self.pids():
            with suppress(OSError):
                total += sum(map(int, _stat(pid)[11:13]))
        return total / _CLOCK_TICKS

    def forget_peak(self) -> None:
        """Begin `peak_bytes` anew."""
        for pid in self.pids():
            with suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        """The largest resident size that one process of the group has had since then."""
        peaks = [0]
        for pid in self.pids():
            with suppress(OSError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        peaks.append(int(line.split()[1]) * 1024)
        return max(peaks)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the third on: the second, the name, may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _end_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on, all different."""
    sockets = []
    for _ in range(count):
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        sockets.append(sock)
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def wait_until(
    condition: Callable[[], bool], what: str, deadline_seconds: float = 60.0, pause_seconds: float = 0.02
) -> None:
    give_up = time.monotonic() + deadline_seconds
    while not condition():
        if time.monotonic() > give_up:
            raise Failure(f"waited {deadline_seconds:.0f} s in vain until {what}")
        time.sleep(pause_seconds)
