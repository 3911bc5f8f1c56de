"""What watchers cost whoever applies: the State alone, in one thread, without a cluster, a log or a disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from raftsvc import kv
from raftsvc.kv.instructions import encode
from raftsvc.results import Applied

_KEYS = 1_000
_PATIENCE_SECONDS = 60.0


class _Alone:
    """In the place of a Service: whatever is proposed is applied at once."""

    def __init__(self) -> None:
        self.state = kv.KeyValueState()
        self.index = 0

    def propose(self, instruction: bytes, timeout: float = 10.0) -> Applied:
        self.index += 1
        answer = self.state.apply_at(instruction, self.index, 0)
        self.state.set_applied_index(self.index)
        return Applied(True, self.index, 0, answer, True)

    def wait_read(self, timeout: float = 5.0) -> None:
        """All is current."""

    def err(self) -> None:
        """Nothing is wrong."""

    def status(self) -> dict[str, object]:
        return {"cluster_id": "alone"}

    def add_listener(self, listener: Callable[[Any], object]) -> Callable[[], None]:
        return lambda: None


def apply_seconds(watchers: int, entries: int) -> float:
    """What applying takes for each entry, processor time, beside so many watchers of other keys."""
    alone = _Alone()
    store = kv.KeyValue(alone, alone.state)
    instructions = [encode([kv.set(f"key/{number}", bytes(50))]) for number in range(_KEYS)]
    for instruction in instructions:
        alone.propose(instruction)
    watches = [store.watch(f"user/{number}/") for number in range(watchers)]
    assert not any(watch.next(0.0) for watch in watches), "each waits from now on"
    began = time.thread_time()
    for number in range(entries):
        alone.propose(instructions[number % _KEYS])
    took = time.thread_time() - began
    for watch in watches:
        watch.close()
    return took / entries


@contextmanager
def _waiting(store: kv.KeyValue, count: int) -> Iterator[Callable[[int], float]]:
    """So many threads that wait for one key; the function returns when all have seen it at a version."""
    seen = [0] * count
    watches = [store.watch("key") for _ in range(count)]

    def read(number: int) -> None:
        for event in watches[number]:
            seen[number] = event.index

    threads = [threading.Thread(target=read, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()

    def all_saw(version: int) -> float:
        ends_at = time.monotonic() + _PATIENCE_SECONDS
        while min(seen) < version:
            assert time.monotonic() < ends_at, "a watcher saw nothing"
            time.sleep(0.0005)
        return time.monotonic()

    try:
        yield all_saw
    finally:
        for watch in watches:
            watch.close()
        for thread in threads:
            thread.join(_PATIENCE_SECONDS)


def herd_seconds(watchers: int, writes: int) -> tuple[float, float]:
    """What applying one write takes the thread that does if so many threads wait for it, and until all saw it."""
    alone = _Alone()
    store = kv.KeyValue(alone, alone.state)
    took: list[float] = []
    until: list[float] = []
    with _waiting(store, watchers) as all_saw:
        all_saw(store.set("key", b""))
        for _ in range(writes):
            began, began_thread = time.monotonic(), time.thread_time()
            version = store.set("key", b"")
            took.append(time.thread_time() - began_thread)
            until.append(all_saw(version) - began)
    return median(took), median(until)


def rows(quick: bool) -> list[dict[str, Any]]:
    """Medians of rounds that take the arrangements in turn."""
    rounds, entries, writes = (3, 5_000, 5) if quick else (15, 20_000, 30)
    applying: dict[int, list[float]] = {0: [], 1_000: []}
    for _ in range(rounds):
        for watchers, found in applying.items():
            found.append(apply_seconds(watchers, entries))
    alone = median(applying[0])
    made = [
        _row(watchers, "other keys", median(found), median(found) / alone, "") for watchers, found in applying.items()
    ]
    for watchers in (1, 1_000):
        took, until = herd_seconds(watchers, writes)
        made.append(_row(watchers, "that key", took, took / alone, 1e3 * until))
    return made


def _row(watchers: int, of: str, seconds: float, ratio: float, until_ms: float | str) -> dict[str, Any]:
    return {
        "watchers": watchers,
        "of": of,
        "µs an entry": 1e6 * seconds,
        "of none": ratio,
        "ms until all saw it": until_ms,
    }
