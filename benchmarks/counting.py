"""Ways to have much done by few: callers that raise one number, a hundred writes in one call, a thousand on their way.

Each system does it as its users do.  What was acknowledged is compared with what is there afterwards.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

BATCH = 100
IN_FLIGHT = 1_000
_TIMEOUT_SECONDS = 60.0


class Counting(Protocol):
    """What a back end offers."""

    def increments(self) -> Mapping[str, Callable[[str], None]]:
        """By name, how a caller raises the number of a key by one."""

    def write_many(self, values: Mapping[str, bytes]) -> None:
        """Return when all are written."""

    def write_later(self, key: str, value: bytes, done: Callable[[bool], None]) -> None:
        """Call `done` when it is written, with whether it was."""

    def number(self, key: str) -> int:
        """A linearizable read of what increments raise."""

    def read(self, key: str) -> bytes | None:
        """A linearizable read of what was written."""


def count(backend: Counting, way: str, threads: int, seconds: float) -> dict[str, Any]:
    """Have that many threads raise one number."""
    key = f"count/{way}/{threads}"
    raise_one = backend.increments()[way]
    done, seen = repeat(lambda number: raise_one(key), threads, seconds)
    return {"lost": done - backend.number(key), **seen}


def repeat(act: Callable[[int], None], threads: int, seconds: float) -> tuple[int, dict[str, Any]]:
    """Have so many threads do it again and again, each with its number: how often all did, and what that comes to."""
    counts = [0] * threads
    ends_at = time.monotonic() + seconds

    def work(number: int) -> None:
        while time.monotonic() < ends_at:
            act(number)
            counts[number] += 1

    workers = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(threads)]
    began = time.monotonic()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(seconds + 2 * _TIMEOUT_SECONDS)
    took = time.monotonic() - began
    return sum(counts), {"per_second": sum(counts) / took, "least": min(counts), "most": max(counts)}


def batches(backend: Counting, seconds: float) -> dict[str, Any]:
    """Have one caller write a hundred keys at a time."""
    done = 0
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        value = b"%d" % (done + 1)
        backend.write_many({f"batch/{i}": value for i in range(BATCH)})
        done += 1
    took = time.monotonic() - began
    lost = sum(backend.read(f"batch/{i}") != b"%d" % done for i in (0, BATCH // 2, BATCH - 1))
    return {"per_second": BATCH * done / took, "lost": lost}


def in_flight(backend: Counting, seconds: float) -> dict[str, Any]:
    """Have one caller keep a thousand writes on their way, each of a key of its own."""
    room = threading.Semaphore(IN_FLIGHT)
    outcomes = {True: 0, False: 0}
    lock = threading.Lock()

    def done(is_written: bool) -> None:
        with lock:
            outcomes[is_written] += 1
        room.release()

    sent = 0
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        room.acquire()
        backend.write_later(f"flight/{sent % IN_FLIGHT}", b"%d" % sent, done)
        sent += 1
    for _ in range(IN_FLIGHT):
        room.acquire()
    took = time.monotonic() - began
    return {"per_second": outcomes[True] / took, "lost": outcomes[False]}


class CountingBackend:
    """Has the runner call all that; to be inherited by what is Counting."""

    def count(self: Counting, way: str, threads: int, seconds: float) -> dict[str, Any]:
        return count(self, way, threads, seconds)

    def ways(self: Counting) -> list[str]:
        return list(self.increments())

    def batches(self: Counting, seconds: float) -> dict[str, Any]:
        return batches(self, seconds)

    def in_flight(self: Counting, seconds: float) -> dict[str, Any]:
        return in_flight(self, seconds)
