"""What several processes of a host cost and give: an attached process beside the owner of its node, and takeovers.

    python -m benchmarks.attached            costs, in turns, and gaps: some four minutes
    python -m benchmarks.attached costs      what a write and a read cost at an owner, and attached to one
    python -m benchmarks.attached gaps       how long nobody is served when an owner is killed, or leaves in order
    --rounds N, --seconds S                  of each measurement

Three nodes on this machine, each with an owner and attached processes, which know nothing of their parts: all of
them call the same Service.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ELECTION_TIMEOUT = 1.0
PATIENCE = 60.0


# -- one process of a host


class Child:
    """Obeys: `load KIND THREADS SECONDS`, `write` until `gap`, `status`, `stop`."""

    def __init__(self, addr: str, directory: str, members: list[str]) -> None:
        import raftsvc
        from raftsvc.kv import KeyValue, KeyValueState

        state = KeyValueState()
        self.service = raftsvc.start(
            addr,
            directory,
            state=state,
            listen=addr,
            initial_cluster=members,
            insecure=True,
            election_timeout=ELECTION_TIMEOUT,
        )
        self.kv = KeyValue(self.service, state)
        self.error = raftsvc.RaftError
        self.successes: list[float] = []
        self.is_writing = False
        self.writer = threading.Thread()

    def obey(self, words: list[str]) -> Any:
        if words[0] == "load":
            return self.load(words[1], int(words[2]), float(words[3]))
        if words[0] == "write":
            self.is_writing = True
            self.successes = []  # one that was under way when the last gap was asked for is none of these
            self.writer = threading.Thread(target=self.write, daemon=True)
            self.writer.start()
        elif words[0] == "gap":
            time.sleep(0.2)  # so that it does not end with the last success
            self.is_writing = False
            self.writer.join()
            times = self.successes
            return max((later - earlier for earlier, later in pairwise(times)), default=-1.0)
        elif words[0] == "status":
            return self.service.status()
        elif words[0] == "stop":
            self.service.stop()
        elif words[0] == "formed":
            self.service.wait_formed(PATIENCE)
        return None

    def write(self) -> None:
        count = 0
        while self.is_writing:
            count += 1
            try:
                self.kv.set(f"key {os.getpid()}", str(count).encode(), timeout=PATIENCE)
            except self.error:
                continue
            self.successes.append(time.monotonic())

    def load(self, kind: str, threads: int, seconds: float) -> dict[str, float]:
        """A closed loop."""
        end = time.monotonic() + seconds
        counts = [0] * threads
        value = b"v" * 100

        def run(number: int) -> None:
            while time.monotonic() < end:
                if kind == "write":
                    self.kv.set(f"key {number}", value)
                else:
                    self.kv.get(f"key {number}")
                counts[number] += 1

        began, used = time.monotonic(), time.process_time()
        workers = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return {
            "per_second": sum(counts) / (time.monotonic() - began),
            "cpu_us": 1e6 * (time.process_time() - used) / max(1, sum(counts)),
        }


def be_child(addr: str, directory: str, members: str) -> None:
    child = Child(addr, directory, members.split(","))
    for line in sys.stdin:
        sys.stdout.write(json.dumps(child.obey(line.split()), default=str) + "\n")
        sys.stdout.flush()


# -- all of them


class Process:
    """One such process, as its parent sees it."""

    def __init__(self, host: int, addr: str, directory: Path, members: list[str]) -> None:
        self.host = host
        command = [sys.executable, "-m", "benchmarks.attached", "child", addr, str(directory), ",".join(members)]
        self.popen = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def tell(self, what: str) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(what + "\n")
        self.popen.stdin.flush()

    def hear(self) -> Any:
        assert self.popen.stdout is not None
        return json.loads(self.popen.stdout.readline())

    def ask(self, what: str) -> Any:
        self.tell(what)
        return self.hear()

    @property
    def is_owner(self) -> bool:
        return bool(self.ask("status")["process"]["owner_pid"] == self.popen.pid)


class Hosts:
    """Three nodes with several processes each."""

    def __init__(self, path: Path, processes: int) -> None:
        self.path = path
        self.addrs = [f"127.0.0.1:{free_port()}" for _ in range(3)]
        self.processes = [self.start(host) for host in range(3) for _ in range(processes)]
        for process in self.processes:
            process.ask("formed")

    def start(self, host: int) -> Process:
        return Process(host, self.addrs[host], self.path / str(host), self.addrs)

    def replace(self, process: Process) -> None:
        process.popen.kill()
        process.popen.wait()
        self.processes.remove(process)
        fresh = self.start(process.host)
        fresh.ask("formed")
        self.processes.append(fresh)

    def find(self, leads: bool, owns: bool) -> Process:
        """A process of the leader's host, or of another, that owns the node there, or is attached."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for process in self.processes:
                status = process.ask("status")
                is_owner = status["process"]["owner_pid"] == process.popen.pid
                if status["leader_id"] and (status["role"] == "leader") == leads and is_owner == owns:
                    return process
        raise TimeoutError("there is none")

    def end(self) -> None:
        for process in self.processes:
            process.popen.kill()
            process.popen.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def hosts_of(processes: int) -> Iterator[Hosts]:
    with tempfile.TemporaryDirectory(prefix="raftsvc-bench-") as path:
        hosts = Hosts(Path(path), processes)
        try:
            yield hosts
        finally:
            hosts.end()


def measure_costs(rounds: int, seconds: float, say: Callable[[str], None]) -> None:
    """In turns, so that what else the machine does befalls all alike."""
    figures: dict[tuple[str, int, str, str], list[dict[str, float]]] = defaultdict(list)
    with hosts_of(2) as hosts:
        places = [("leader", True), ("follower", False)]
        processes = {
            (node, part): hosts.find(leads, part == "owner") for node, leads in places for part in ("owner", "attached")
        }
        for _ in range(rounds):
            for kind in ("write", "read"):
                for threads in (1, 8):
                    for (node, part), process in processes.items():
                        figures[kind, threads, node, part].append(process.ask(f"load {kind} {threads} {seconds}"))
    say("| | threads | at | owner: a second | CPU µs | attached: a second | CPU µs | attached/owner |")
    say("|---|---|---|---|---|---|---|---|")

    def median(kind: str, threads: int, node: str, part: str, name: str) -> float:
        return statistics.median(each[name] for each in figures[kind, threads, node, part])

    for kind, threads, node in sorted({key[:3] for key in figures}):
        cells = [f"{kind} | {threads} | {node}"]
        for part in ("owner", "attached"):
            for name in ("per_second", "cpu_us"):
                cells.append(f"{median(kind, threads, node, part, name):,.0f}")
        rates = [median(kind, threads, node, part, "per_second") for part in ("owner", "attached")]
        say("| " + " | ".join([*cells, f"{rates[1] / rates[0]:.2f}"]) + " |")


def measure_gaps(rounds: int, say: Callable[[str], None]) -> None:
    """The longest time between two writes that succeed, of one writer in each process."""
    gaps: dict[tuple[str, str], list[float]] = defaultdict(list)
    with hosts_of(3) as hosts:
        for _ in range(rounds):
            for how in ("killed", "left in order"):
                for leads in (True, False):
                    victim = hosts.find(leads, True)
                    others = [process for process in hosts.processes if process is not victim]
                    for process in others:
                        process.ask("write")
                    time.sleep(1.0)
                    if how == "killed":
                        victim.popen.kill()
                    else:
                        victim.ask("stop")
                    time.sleep(4 * ELECTION_TIMEOUT)
                    event = f"owner of the {'leader' if leads else 'follower'} {how}"
                    for process in others:
                        process.tell("gap")
                    for process in others:
                        place = "its own host" if process.host == victim.host else "other hosts"
                        gaps[event, place].append(process.hear())
                    hosts.replace(victim)
    say(f"gaps in ms, with an election timeout of {1000 * ELECTION_TIMEOUT:.0f}:")
    say("| event | seen on | median | worst |")
    say("|---|---|---|---|")
    for (event, place), found in gaps.items():
        say(f"| {event} | {place} | {1000 * statistics.median(found):.0f} | {1000 * max(found):.0f} |")


def main() -> None:
    if sys.argv[1:2] == ["child"]:
        be_child(*sys.argv[2:5])
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("costs", "gaps"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    if options.what != "gaps":
        measure_costs(options.rounds, options.seconds, say)
    if options.what != "costs":
        measure_gaps(options.rounds, say)


if __name__ == "__main__":
    main()
