"""Three nodes in one process under load for as long as one likes, and whether they cost more as time goes by.

    python -m tests.soak --seconds 600

Writers and readers go through all nodes, snapshots and compaction run all the time,
and one node after the other is restarted.  Every few seconds the load pauses and
memory, blocks of it that Python handed out, threads and file descriptors are counted.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import raftsvc
from raftsvc import kv
from tests.service.harness import PATIENCE, SECRET, eventually, free_address

KEYS = 500
SNAPSHOT_ENTRIES = 1000
TRAILING_ENTRIES = 300


class Sample(NamedTuple):
    """What the process had at one moment, the load pausing."""

    seconds: float
    writes: int
    rss_kib: int
    blocks: int
    threads: int
    files: int


def count_files() -> int:
    return len(os.listdir("/dev/fd"))


def count_rss_kib() -> int:
    """Resident memory; 0 where there is no /proc."""
    try:
        fields = Path("/proc/self/statm").read_text().split()
    except OSError:
        return 0
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


class Node:
    """Address and directory stay, Service and State come and go."""

    def __init__(self, directory: Path) -> None:
        self.addr = free_address()
        self.directory = directory
        self.start()

    def start(self) -> None:
        state = kv.KeyValueState()
        self.service = raftsvc.start(
            self.addr,
            self.directory,
            None,
            state,
            secret=SECRET,
            listen=self.addr,
            snapshot_entries=SNAPSHOT_ENTRIES,
            trailing_entries=TRAILING_ENTRIES,
        )
        self.store = kv.KeyValue(self.service, state)


class Soak:
    """The cluster, its clients, and what was counted."""

    def __init__(self, directory: Path, clients: int, pause_seconds: float) -> None:
        self.threads_before, self.files_before = self._threads(), count_files()
        self.nodes = [Node(directory / f"n{n}") for n in range(3)]
        self.samples: list[Sample] = []
        self.writes = self.reads = self.restarts = 0
        self.failures: list[BaseException] = []
        self._pause_seconds = pause_seconds
        self._done = threading.Event()
        self._may_run = threading.Event()
        self._lock = threading.Lock()  # guards the counters and _busy
        self._busy = 0
        first = self.nodes[0]
        first.service.init()
        for node in self.nodes[1:]:
            first.store.allow(node.addr, PATIENCE)
            node.service.join(first.addr, PATIENCE)
        self._clients = [threading.Thread(target=self._run, args=(n,), name=f"client-{n}") for n in range(clients)]

    def _run(self, number: int) -> None:
        rng = random.Random(number)
        try:
            while not self._done.is_set():
                if not self._may_run.wait(0.1):
                    continue
                with self._lock:
                    self._busy += 1
                try:
                    self._call(rng)
                finally:
                    with self._lock:
                        self._busy -= 1
                self._done.wait(self._pause_seconds)
        except BaseException as error:
            self.failures.append(error)

    def _call(self, rng: random.Random) -> None:
        store = rng.choice(self.nodes).store
        key = f"key/{rng.randrange(KEYS):04d}"
        try:
            if rng.random() < 0.8:
                store.set(key, rng.randbytes(rng.randrange(200)), timeout=5.0)
                with self._lock:
                    self.writes += 1
            else:
                store.get(key, timeout=5.0)
                with self._lock:
                    self.reads += 1
        except raftsvc.RaftError:
            time.sleep(0.01)  # a node that restarts, or a cluster that elects

    def run(self, seconds: float, sample_seconds: float, report: Callable[[Sample], object], least: int = 0) -> None:
        """Load for `seconds`, a restart and then a sample every `sample_seconds`; `least` samples at least."""
        began = time.monotonic()
        for client in self._clients:
            client.start()
        try:
            while (time.monotonic() - began < seconds or len(self.samples) < least) and not self.failures:
                self._may_run.set()
                time.sleep(sample_seconds / 2)
                self._restart()
                time.sleep(sample_seconds / 2)
                self._may_run.clear()
                self.samples.append(self._count(time.monotonic() - began))
                report(self.samples[-1])
        finally:
            self._done.set()
            for client in self._clients:
                client.join(PATIENCE)

    def _restart(self) -> None:
        node = self.nodes[self.restarts % len(self.nodes)]
        self.restarts += 1
        node.service.stop()
        node.start()

    def _count(self, seconds: float) -> Sample:
        eventually(lambda: self._busy == 0, "every call returns")
        eventually(self._is_calm, "the nodes catch up")
        gc.collect()
        return Sample(
            seconds,
            self.writes,
            count_rss_kib(),
            sys.getallocatedblocks(),  # of objects the collector would count containers alone, hence no entry
            threading.active_count(),
            count_files(),
        )

    def _is_calm(self) -> bool:
        pictures = [node.service.status() for node in self.nodes]
        return len({p["applied_index"] for p in pictures} | {p["commit_index"] for p in pictures}) == 1

    def finish(self) -> None:
        """All nodes hold the same; stopped, they leave neither thread nor file behind."""
        assert not self.failures, self.failures
        contents = [node.store.list(timeout=PATIENCE) for node in self.nodes]
        assert contents[0] == contents[1] == contents[2]
        assert contents[0]
        for node in self.nodes:
            eventually(lambda node=node: node.service.err() is None, "nothing is wrong")
        self.stop()
        try:
            eventually(lambda: self._threads() <= self.threads_before, "every thread ends")
        except AssertionError:
            faulthandler.dump_traceback(all_threads=True)  # which, and where
            raise AssertionError(f"threads live on: {[thread.name for thread in threading.enumerate()]}") from None
        eventually(lambda: gc.collect() >= 0 and count_files() <= self.files_before, "every file is closed")

    @staticmethod
    def _threads() -> int:
        """All but the one that is kept for the main thread once that called (`raftsvc.mainthread`)."""
        deputies = sum(thread.name == "raftsvc-main" for thread in threading.enumerate())
        return threading.active_count() - min(deputies, 1)

    def stop(self) -> None:
        for node in self.nodes:
            node.service.stop()

    def check_flat(self) -> None:
        """After a third of the time, taken for warming up, nothing grows any more."""
        warm = self.samples[len(self.samples) // 3 :]
        early, late = warm[: len(warm) // 2], warm[len(warm) // 2 :]
        # A pair of nodes keeps a few connections, each a thread and two descriptors here, more or less by chance.
        for field, share, slack in (
            ("threads", 0.0, 12),
            ("files", 0.0, 24),
            ("blocks", 0.02, 5 * (SNAPSHOT_ENTRIES + TRAILING_ENTRIES)),
            ("rss_kib", 0.05, 8 * 1024),
        ):
            before = statistics.median(getattr(s, field) for s in early)
            after = statistics.median(getattr(s, field) for s in late)
            assert after <= before * (1 + share) + slack, f"{field} grew from {before:g} to {after:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--sample-seconds", type=float, default=10.0)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds that a client rests between calls")
    options = parser.parse_args()

    def report(sample: Sample) -> None:
        sys.stdout.write("  ".join(f"{k}={v:.0f}" for k, v in sample._asdict().items()) + "\n")
        sys.stdout.flush()

    with tempfile.TemporaryDirectory() as directory:
        soak = Soak(Path(directory), options.clients, options.pause)
        try:
            soak.run(options.seconds, options.sample_seconds, report)
            snapshots = [node.service.status()["snapshot_index"] for node in soak.nodes]
            soak.finish()
            soak.check_flat()
        finally:
            soak.stop()
        sys.stdout.write(
            f"flat: {soak.writes} writes, {soak.reads} reads, {soak.restarts} restarts, snapshots at {snapshots}\n"
        )


if __name__ == "__main__":
    main()
