"""A closed loop: threads that write or read through a back end as fast as it answers, and remember how long each took.

Every thread has a key of its own, whose value begins with a counter that each of
its writes increments.  So the state can be checked afterwards against what was
acknowledged, and each read against the write before it.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Any, Protocol

COUNTER_BYTES = 8
BUCKET_SECONDS = 0.05
_JOIN_SECONDS = 60.0


class Backend(Protocol):
    """How a request handler reaches its replicated state; one in each web process, used by many threads."""

    def write(self, key: str, value: bytes) -> None:
        """Return when the write is acknowledged."""

    def read(self, key: str) -> bytes | None:
        """A linearizable read."""

    def local(self, key: str) -> bytes | None:
        """What the node of this process has, current or not."""

    def status(self) -> dict[str, Any]:
        """At least `is_leader`, `is_ready`, `applied` (an index) and `fsyncs` (a count)."""


@dataclass(frozen=True)
class Spec:
    """What a load does.  `label` begins its keys; `kind` is write, read or mixed."""

    label: str
    kind: str
    threads: int
    value_bytes: int = 100

    def turns(self, number: int) -> Iterator[bool]:
        """Whether thread `number` writes, operation after operation."""
        return cycle({"write": [True], "read": [False], "mixed": [number % 2 == 0, number % 2 == 1]}[self.kind])


class StaleRead(Exception):
    """A read did not show the write that was acknowledged before it."""


class Load:
    """Threads at work from `start` until `stop`."""

    def __init__(self, backend: Backend, spec: Spec) -> None:
        self._backend = backend
        self.spec = spec
        self._stopping = threading.Event()
        self._workers = [_Worker(self, number) for number in range(spec.threads)]

    def start(self) -> None:
        for worker in self._workers:
            worker.thread.start()

    def stop(self) -> None:
        self._stopping.set()
        deadline = time.monotonic() + _JOIN_SECONDS
        for worker in self._workers:
            worker.thread.join(max(0.0, deadline - time.monotonic()))

    def result(self, window_begin: float, window_end: float) -> dict[str, Any]:
        """What ended between two moments of the monotonic clock, and the counts of all."""
        latencies = array("d")
        buckets: dict[int, list[float]] = {}
        errors: Counter[str] = Counter()
        for worker in self._workers:
            errors.update(worker.errors)
            for ended, seconds in zip(worker.ended_at, worker.seconds, strict=False):
                if window_begin <= ended <= window_end:
                    latencies.append(seconds)
                bucket = buckets.setdefault(int(ended / BUCKET_SECONDS), [0, 0.0])
                bucket[0] += 1
                bucket[1] = max(bucket[1], seconds)
        return {
            "spec": asdict(self.spec),
            "seconds": window_end - window_begin,
            **summary(latencies, window_end - window_begin),
            "errors": dict(errors),
            "all_operations": sum(len(worker.seconds) for worker in self._workers),
            "all_writes": sum(worker.acknowledged for worker in self._workers),
            # What each key must hold: the writes that were acknowledged at least, those that were tried at most.
            "counters": {worker.key: [worker.last_acknowledged, worker.tried] for worker in self._workers},
            "buckets": [[number * BUCKET_SECONDS, *bucket] for number, bucket in sorted(buckets.items())],
        }


def summary(latencies: array[float], seconds: float) -> dict[str, float]:
    """Rate and latencies (milliseconds) of operations that ended within `seconds`."""
    ordered = sorted(latencies)
    last = len(ordered) - 1
    return {
        "ops_per_second": len(ordered) / seconds,
        "p50_ms": 1000 * ordered[last // 2] if ordered else 0.0,
        "p99_ms": 1000 * ordered[last * 99 // 100] if ordered else 0.0,
        "max_ms": 1000 * ordered[last] if ordered else 0.0,
    }


def counter_of(value: bytes | None) -> int:
    """How often the key of this value was written."""
    return int.from_bytes(value[:COUNTER_BYTES], "big") if value else 0


def value_of(counter: int, size_bytes: int) -> bytes:
    return counter.to_bytes(COUNTER_BYTES, "big").ljust(size_bytes, b"x")


class _Worker:
    """One thread, its key, and what it saw."""

    def __init__(self, load: Load, number: int) -> None:
        self._load = load
        self._number = number
        self.key = f"{load.spec.label}/{number}"
        self.tried = 0
        self.last_acknowledged = 0
        self.acknowledged = 0
        self.errors: Counter[str] = Counter()
        self.ended_at = array("d")
        self.seconds = array("d")
        self.thread = threading.Thread(target=self._run, name=f"load-{number}", daemon=True)

    def _run(self) -> None:
        while self.acknowledged == 0 and not self._load._stopping.is_set():
            self._step(True)  # a key to read
        for is_write in self._load.spec.turns(self._number):
            if self._load._stopping.is_set():
                return
            self._step(is_write)

    def _step(self, is_write: bool) -> None:
        began = time.monotonic()
        try:
            if is_write:
                self._write()
            else:
                self._read()
        except Exception as error:  # whatever the client of a system raises is a result
            self.errors[f"{type(error).__name__}: {error}"[:200]] += 1
            time.sleep(0.01)
            return
        ended = time.monotonic()
        self.seconds.append(ended - began)
        self.ended_at.append(ended)

    def _write(self) -> None:
        self.tried += 1
        self._load._backend.write(self.key, value_of(self.tried, self._load.spec.value_bytes))
        self.last_acknowledged = self.tried
        self.acknowledged += 1

    def _read(self) -> None:
        counter = counter_of(self._load._backend.read(self.key))
        if not self.last_acknowledged <= counter <= self.tried:
            raise StaleRead(f"read {counter}, acknowledged was {self.last_acknowledged}")
