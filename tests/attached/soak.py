"""Many takeovers, and what they leave behind in processes that live through them all.

    python -m tests.attached.soak [--takeovers 200]

One host of four processes that write.  Its owner is killed, or ends, again and again; one attached process, the
veteran, is stopped meanwhile, so that it never takes over, and attaches to each new owner.  Then as often an attached
process ends while the owner stays.  Prints memory, threads and open files of the veteran, and of that
last owner, and fails if they grow.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

from tests.attached.hosts import eventually, free_port
from tests.attached.remote import Remote

PROCESSES = 4
_MOST_GROWTH_KB = 4096
_WARM_UP = 0.25
"""Of all rounds: until then buffers and pools grow."""


class Usage:
    """Of one process, now and then."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.seen: list[tuple[int, int, int]] = []

    def look(self) -> None:
        lines = Path(f"/proc/{self._pid}/status").read_text().splitlines()
        status = {name: value.split()[0] for name, _, value in (line.partition(":") for line in lines) if value.split()}
        files = len(os.listdir(f"/proc/{self._pid}/fd"))
        self.seen.append((int(status["VmRSS"]), int(status["Threads"]), files))

    def judge(self, what: str) -> None:
        warm = self.seen[int(len(self.seen) * _WARM_UP) :]
        for place, (name, most) in enumerate((("KB", _MOST_GROWTH_KB), ("threads", 2), ("files", 2))):
            values = [each[place] for each in warm]
            early, late = min(values[: len(values) // 3 + 1]), min(values[-(len(values) // 3 + 1) :])
            sys.stdout.write(f"{what}: {name} {self.seen[0][place]} at first, then {early}, {late} at the end\n")
            assert late - early <= most, f"{what}: {name} grew from {early} to {late}"


class Soak:
    """The host."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._addr = f"127.0.0.1:{free_port()}"
        self._count = 0
        self.processes: list[Remote] = []

    def start(self) -> Remote:
        self._count += 1
        log = self._path / f"log-{self._count % 50}"
        options = {"snapshot_entries": 2000, "trailing_entries": 500, "election_timeout": 0.5}
        process = Remote(log, laddr=self._addr, dir=str(self._path / "data"), **options)
        process.call("service.err")
        self.processes.append(process)
        return process

    def owner(self) -> Remote:
        pids = {process.pid: process for process in self.processes}

        def find() -> Remote | None:
            for process in self.processes:
                pid = process.call("service.status")["process"]["owner_pid"]
                if pid in pids:
                    return pids[pid]
            return None

        owner = eventually(find, "there is an owner")
        assert isinstance(owner, Remote)
        return owner

    def write(self) -> None:
        outcomes = [process.begin("kv.incr", f"key {n}", timeout=20) for process in self.processes for n in range(20)]
        for outcome in outcomes:
            outcome.get()

    def end(self, process: Remote, is_killed: bool) -> None:
        if not is_killed:
            process.call("service.stop")
        process.kill()
        self.processes.remove(process)

    def take_over(self, veteran: Remote, is_killed: bool) -> None:
        owner = self.owner()
        if owner is veteran:
            raise AssertionError("the veteran never takes over")
        veteran.popen.send_signal(signal.SIGSTOP)
        self.end(owner, is_killed)
        self.processes.remove(veteran)
        self.owner()
        self.processes.append(veteran)
        veteran.popen.send_signal(signal.SIGCONT)
        self.start()
        self.write()


def soak(path: Path, takeovers: int) -> None:
    host = Soak(path)
    try:
        host.start().call("service.init")
        veteran = host.start()
        while len(host.processes) < PROCESSES:
            host.start()
        usage = Usage(veteran.pid)
        for number in range(takeovers):
            host.take_over(veteran, is_killed=bool(number % 2))
            usage.look()
        usage.judge(f"attached through {takeovers} takeovers")
        owner = host.owner()
        usage = Usage(owner.pid)
        for number in range(takeovers):
            others = [process for process in host.processes if process is not owner]
            host.end(others[0], is_killed=bool(number % 2))
            host.start()
            host.write()
            usage.look()
        usage.judge(f"owner of {takeovers} attached processes that ended")
    finally:
        for process in host.processes:
            process.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--takeovers", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="raftsvc-soak-") as path:
        soak(Path(path), options.takeovers)


if __name__ == "__main__":
    main()
