"""Hosts of several processes for tests: started, killed and stopped, and judged by the records that they keep."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 60.0


_SHARES = 16
_share = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _SHARES
_given: set[int] = set()


def free_port() -> int:
    """One that nobody has, nor is given a second time, here or by another worker of this run of tests."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port // 2 % _SHARES == _share and port not in _given:  # all are of one parity
            _given.add(port)
            return port


def eventually(condition: Callable[[], Any], what: str = "the condition", patience: float = PATIENCE) -> Any:
    deadline = time.monotonic() + patience
    while not (result := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.02)
    return result


class Process:
    """One process of a host."""

    def __init__(self, host: Host, number: int, how: str, boot_url: str, threads: int) -> None:
        self.record_path = host.path / f"record-{number}"
        self.log = host.path / f"log-{number}"
        arguments = [
            str(host.directory),
            host.addr,
            str(self.record_path),
            str(threads),
            how,
            *([boot_url] * bool(boot_url)),
        ]
        with self.log.open("w") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "tests.attached.program", *arguments], cwd=ROOT, stdout=log, stderr=log
            )
        self.pid = self.popen.pid

    def records(self, kind: str) -> list[dict[str, Any]]:
        if not self.record_path.exists():
            return []
        lines = self.record_path.read_text().splitlines(keepends=True)
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        return [record for record in found if record["kind"] == kind]

    def last(self, kind: str) -> dict[str, Any]:
        """Its newest record of the kind; the first is waited for."""
        found: list[dict[str, Any]] = eventually(lambda: self.records(kind), f"a {kind} of process {self.pid}")
        return found[-1]

    def wait_ready(self) -> Process:
        eventually(lambda: self.records("ready") or self.popen.poll() is not None, f"{self.log.read_text()}: ready")
        assert self.records("ready"), self.log.read_text()
        return self

    @property
    def is_stopped(self) -> bool:
        """By SIGSTOP."""
        stat = Path(f"/proc/{self.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"

    def count_done(self) -> int:
        return sum(record["result"] == "done" for record in self.records("write"))

    def wait_served(self, more: int = 5) -> None:
        """Until so many more of its writes are done."""
        goal = self.count_done() + more
        eventually(lambda: self.count_done() >= goal, f"process {self.pid} is served; {self.log.read_text()}")

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait(PATIENCE)

    def stop(self) -> None:
        self.popen.terminate()
        assert self.popen.wait(PATIENCE) == 0, self.log.read_text()


class Host:
    """A directory, and the processes that share it."""

    def __init__(self, path: Path, threads: int = 2) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self.directory = path / "data"
        self.addr = f"127.0.0.1:{free_port()}"
        self.threads = threads
        self.processes: list[Process] = []

    def start(self, how: str = "none", boot_url: str = "") -> Process:
        process = Process(self, len(self.processes), how, boot_url, self.threads)
        self.processes.append(process)
        return process

    @property
    def living(self) -> list[Process]:
        return [process for process in self.processes if process.popen.poll() is None]

    def owner(self) -> Process:
        """Who owns the directory."""

        def find() -> Process | None:
            try:
                note = (self.directory / "lock").read_text()
            except OSError:
                return None
            found = re.match(r"process (\d+) ", note)
            return next((p for p in self.living if found and p.pid == int(found[1])), None)

        owner = eventually(find, "there is an owner")
        assert isinstance(owner, Process)
        return owner

    def attached(self) -> list[Process]:
        owner = self.owner()
        return [process for process in self.living if process is not owner]

    def end(self) -> None:
        for process in self.living:
            process.signal(signal.SIGCONT)
            process.kill()


def judge(hosts: list[Host]) -> list[str]:
    """End all, and compare what callers were told with what came of it; returns what was applied."""
    for host in hosts:
        for process in host.living:
            process.stop()
    processes = [process for host in hosts for process in host.processes]
    # Who was stopped last knows most.
    items, applied_index = max(map(final_items, hosts), key=lambda found: found[1])
    writes = [record for process in processes for record in process.records("write")]
    begun = {record["name"] for process in processes for record in process.records("begun")}
    told = {record["name"]: record for record in writes}
    assert len(items) == len(set(items)), "nothing twice"
    assert set(items) <= begun
    for name, record in told.items():
        if record["result"] == "done":
            assert name in set(items), f"{name} is lost: {record}"
        elif record["result"].startswith("not applied"):
            assert name not in set(items), f"{name} was applied: {record}"
    # No clock of one machine is another's, and here there is one.
    done = sorted((record["end"], record["index"]) for record in writes if record["result"] == "done")
    reads = sorted((r["begin"], r["index"]) for process in processes for r in process.records("read"))
    position, newest = 0, 0
    for begin, index in reads:
        while position < len(done) and done[position][0] <= begin:
            newest = max(newest, done[position][1])
            position += 1
        assert index >= newest, f"a read that began at {begin} saw entry {index}, and {newest} was told before"
    for process in processes:
        seen = [record["applied"] for record in process.records("status")]
        assert seen == sorted(seen), f"the State of process {process.pid} went back"
    assert done, "something was done"
    assert reads
    assert applied_index >= max(index for _, index in done)
    return items


def final_items(host: Host) -> tuple[list[str], int]:
    """What the State of a host holds, as its log says: a process that only reads is started, and asked."""
    import raftsvc
    from raftsvc.storage import Store
    from tests.attached.program import ListState

    assert raftsvc
    from raftsvc.member.machine import Machine
    from raftsvc.member.snapshots import decode_config

    store = Store.open(str(host.directory), lock_timeout=10)
    try:
        loaded = store.load(1)
        machine = Machine(ListState())
        if loaded.snapshot is not None:
            with store.open_snapshot() as stored:
                header = stored.header
                config = decode_config(header.config)
                machine.restore(header.index, header.term, config, header.sessions, header.digest, stored.chunks())
        machine.apply(loaded.entries, [])
        assert isinstance(machine.state, ListState)
        return machine.state.items, machine.applied_index
    finally:
        store.close()


def boot_url(host: Host) -> str:
    return f"http://{host.addr}/raft"


def pause(seconds: float) -> None:
    """Let load go on for a while: what is tested is what happens in it, not when."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.02)


assert os.name == "posix"
