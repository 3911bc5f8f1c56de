"""What it costs to count and time operations (`raftsvc.measures`): `python -m benchmarks.recording`.

Nanoseconds that a record takes, by the processor's time of one thread, times the records that an operation makes,
beside the processor's time of that operation: three nodes in one process, so that what all of them note and do is in
both.  Lease reads are those of the leader, where there is nothing else.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import raftsvc
from benchmarks.processes import free_ports
from raftsvc import kv
from raftsvc.host.admission import Admission
from raftsvc.measures import APPLIED, Records

_ROUNDS = 7
_TIMES = 100_000


def nanoseconds(make: Callable[[], Callable[[], object]]) -> float:
    """Of the function that `make` returns, without the loop around it; the median of some rounds."""

    def nothing() -> None:
        pass

    def took(function: Callable[[], object]) -> float:
        began = time.thread_time_ns()
        for _ in range(_TIMES):
            function()
        return (time.thread_time_ns() - began) / _TIMES

    function = make()
    return max(0.0, median(took(function) - took(nothing) for _ in range(_ROUNDS)))


def _call() -> Callable[[], object]:
    """What a proposal or a read notes, beyond the lock that it takes in any case."""
    account = Admission(None, None, True).usage.proposals
    return lambda: account.note(APPLIED, time.monotonic() - 1000.0)


def _batch() -> Callable[[], object]:
    """What an fsync notes, or a batch that is applied, with the clock read twice."""
    records = Records()

    def note() -> None:
        began = time.monotonic()
        records.syncs.note(time.monotonic() - began)

    return note


def _lease() -> Callable[[], object]:
    raised = Admission(None, None, True).usage.lease_reads.raised
    return lambda: next(raised)


def costs() -> dict[str, float]:
    """Nanoseconds of each kind of record."""
    return {"call": nanoseconds(_call), "batch": nanoseconds(_batch), "lease read": nanoseconds(_lease)}


class Cluster:
    """Three nodes in this process."""

    def __init__(self, home: Path) -> None:
        addrs = [f"127.0.0.1:{port}" for port in free_ports(3)]
        self.states = [kv.KeyValueState() for _ in addrs]
        self.services = [
            raftsvc.start(addr, home / str(n), None, state, listen=addr, initial_cluster=addrs, lease_reads=True)
            for n, (addr, state) in enumerate(zip(addrs, self.states, strict=True))
        ]
        for service in self.services:
            service.wait_formed(60.0)
        self.leader = next(n for n, service in enumerate(self.services) if service.is_leader)
        self.store = kv.KeyValue(self.services[self.leader], self.states[self.leader])

    def batches(self) -> int:
        """Fsyncs and batches that were applied, at all nodes."""
        found: list[Any] = [service.status()["measures"] for service in self.services]
        return sum(sum(each[name]["counts"]) for each in found for name in ("fsync_seconds", "apply_seconds"))

    def load(self, threads: int, seconds: float, do: Callable[[int], object]) -> tuple[int, float, float]:
        """Operations, processor seconds of each, and batches of each."""
        end = time.monotonic() + seconds
        counts = [0] * threads

        def run(number: int) -> None:
            while time.monotonic() < end:
                do(number)
                counts[number] += 1

        batches, used = self.batches(), time.process_time()
        workers = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        count = max(1, sum(counts))
        return count, (time.process_time() - used) / count, (self.batches() - batches) / count


def rows(seconds: float) -> list[dict[str, Any]]:
    """One for each kind of operation."""
    cost = costs()
    home = Path(tempfile.mkdtemp(prefix="raftsvc-recording-"))
    cluster = Cluster(home)
    found = []
    try:
        cases: list[tuple[str, int, str, Callable[[int], object]]] = [
            ("write", threads, "call", lambda number: cluster.store.set(f"key {number}", bytes(100)))
            for threads in (1, 8, 64)
        ]
        cases.append(("lease read", 1, "lease read", lambda _: cluster.services[cluster.leader].wait_read()))
        for what, threads, kind, do in cases:
            cluster.load(threads, min(seconds, 0.2), do)
            _, cpu, batches = cluster.load(threads, seconds, do)
            notes = cost[kind] + batches * cost["batch"]
            found.append(
                {
                    "operation": what,
                    "threads": threads,
                    "batches": batches,
                    "noted ns": notes,
                    "CPU us": 1e6 * cpu,
                    "share %": 100 * notes / (1e9 * cpu),
                }
            )
    finally:
        for service in cluster.services:
            service.stop()
        shutil.rmtree(home)
    return [{"record": name, "ns": ns} for name, ns in cost.items()] + found


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load")
    for row in rows(parser.parse_args().seconds):
        print(
            "  ".join(
                f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
            )
        )


if __name__ == "__main__":
    main()
