"""A process of a host that does what a test tells it, line by line, and says what came of it.

python -m tests.attached.remote OPTIONS, which are JSON for `raftsvc.start`; state_version and spoilt are the State's,
and state_name is the name of its class.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.attached.hosts import PATIENCE, ROOT


class Outcome:
    """What came of one call: a result, or an error by the name of its class."""

    def __init__(self) -> None:
        self._come = threading.Event()
        self._told: tuple[str, Any] = ("", None)

    def tell(self, kind: str, what: Any) -> None:
        self._told = kind, what
        self._come.set()

    @property
    def is_told(self) -> bool:
        return self._come.is_set()

    def get(self) -> Any:
        """The result."""
        kind, what = self._wait()
        assert kind == "ok", f"{kind}: {what}"
        return what

    def error(self) -> tuple[str, str]:
        """Class and message."""
        kind, what = self._wait()
        assert kind != "ok", what
        return kind, what

    def _wait(self) -> tuple[str, Any]:
        assert self._come.wait(PATIENCE), "the call ends"
        return self._told


class Remote:
    """Such a process."""

    def __init__(self, log: Path, **options: Any) -> None:
        self.log = log
        with log.open("w") as file:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "tests.attached.remote", json.dumps(options)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        self.pid = self.popen.pid
        self._lock = threading.Lock()
        self._count = 0
        self._open: dict[int, Outcome] = {}
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            number, kind, what = json.loads(line)
            self._open[number].tell(kind, what)
        for outcome in list(self._open.values()):
            if not outcome.is_told:
                outcome.tell("ended", self.log.read_text())

    def begin(self, what: str, *args: Any, **kwargs: Any) -> Outcome:
        """Have it call that, and go on."""
        with self._lock:
            self._count += 1
            outcome = self._open[self._count] = Outcome()
            assert self.popen.stdin is not None
            self.popen.stdin.write(json.dumps([self._count, what, args, kwargs]) + "\n")
            self.popen.stdin.flush()
        return outcome

    def call(self, what: str, *args: Any, **kwargs: Any) -> Any:
        return self.begin(what, *args, **kwargs).get()

    def error(self, what: str, *args: Any, **kwargs: Any) -> tuple[str, str]:
        return self.begin(what, *args, **kwargs).error()

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait(PATIENCE)

    def end(self) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(18)  # SIGCONT, for who was stopped
            self.kill()


class Work:
    """What a process does with queues and leases, in words of JSON."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.items: dict[str, Any] = {}

    def put(self, name: str, value: str) -> int:
        return int(self.store.queue(name).put(value.encode(), timeout=PATIENCE))

    def patiently(self, call: Callable[[], Any]) -> Any:
        """Again as long as who owns the node now only begins to, of which whoever calls is told after a while."""
        from raftsvc import NodeFailedError

        ends_at = time.monotonic() + PATIENCE
        while True:
            try:
                return call()
            except NodeFailedError:
                if time.monotonic() > ends_at:
                    raise
                time.sleep(0.1)

    def get(self, name: str, ttl: float) -> tuple[str, int]:
        queue = self.store.queue(name, ttl=ttl)
        item = self.items[name] = self.patiently(lambda: queue.get(timeout=PATIENCE))
        return item.value.decode(), item.tries

    def ack(self, name: str) -> None:
        item = self.items.pop(name)
        self.patiently(lambda: item.ack(timeout=PATIENCE))

    def look(self, name: str) -> list[Any]:
        """All keys, and how many items a queue has."""
        return [list(self.patiently(self.store.list)), self.patiently(lambda: self.store.items(f"queue:{name}"))]

    def live(self, key: str, ttl: float) -> None:
        self.store.set(key, b"here", lease=self.store.lease(ttl, timeout=PATIENCE), timeout=PATIENCE)

    def wait_at(self, name: str) -> bool:
        return bool(self.store.barrier(name).wait(PATIENCE))

    def set_gate(self, name: str, is_closed: bool) -> None:
        gate = self.store.barrier(name)
        (gate.close if is_closed else gate.open)(PATIENCE)

    def meet(self, name: str, size: int) -> bool:
        return bool(self.store.meeting(name, size).enter(PATIENCE).leave(PATIENCE))


class _Jobs:
    """Jobs that note in a file who ran what."""

    def __init__(self, store: Any, state: Any) -> None:
        self._store = store
        self._state = state
        self._jobs: Any = None

    def start(self, path: str, seconds: float, takes: float = 0.0, ttl: float = 2.0, **options: Any) -> None:
        from raftsvc.recipes import current_run

        def tick() -> None:
            run = current_run()
            assert run is not None
            with open(path, "a") as file:
                file.write(f"{run.slot.timestamp():.0f} {run.attempt} {os.getpid()} {time.time():.3f}\n")
            run.lost.wait(takes)

        self._jobs = self._store.jobs(ttl=ttl, data=str(os.getpid()).encode())
        self._jobs.every(seconds, name="tick", **options)(tick)
        self._jobs.start()

    def set_clock(self, ahead: float) -> None:
        """Have the clock of this process be so many seconds ahead."""
        self._state.companion.timekeeper.wall = lambda: int((time.time() + ahead) * 1000)

    def stop(self) -> bool:
        return bool(self._jobs.stop(PATIENCE))

    def history(self) -> list[tuple[int, str, int, str]]:
        found = self._jobs.history("tick", PATIENCE)
        return [(int(each.slot.timestamp()), each.state, each.attempt, each.who) for each in found]


class _Changes:
    """A function that is called with what changes, and notes it."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.told: list[str] = []

    def follow(self, prefix: str) -> None:
        self._store.on_change(prefix)(lambda event: self.told.append(event.key))


def main() -> None:
    import raftsvc
    from raftsvc.kv import KeyValue, KeyValueState

    options = json.loads(sys.argv[1])
    version = options.pop("state_version", 1)
    is_spoilt = options.pop("spoilt", False)

    class State(KeyValueState):
        def state_version(self) -> int:
            return int(version)

        def use_version(self, version: int) -> None:
            pass

        def apply_at(self, data: bytes, index: int, time_ms: int) -> object:
            answer = super().apply_at(data, index, time_ms)
            return 7 if is_spoilt and answer is not None else answer

    State.__qualname__ = options.pop("state_name", "State")
    state = State()
    options = {"listen": options["laddr"], "secret": "a secret of the tests, long enough", **options}
    service = raftsvc.start(state=state, **options)
    store = KeyValue(service, state)
    there = {"service": service, "kv": store, "jobs": _Jobs(store, state), "work": Work(store)}
    there["changes"] = _Changes(store)
    out: queue.Queue[str] = queue.Queue()

    def do(number: int, what: str, args: list[Any], kwargs: dict[str, Any]) -> None:
        name, _, method = what.partition(".")
        try:
            found = getattr(there[name], method)
            result = found(*args, **kwargs) if callable(found) else found
            if isinstance(result, Exception):
                result = f"{type(result).__name__}: {result}"
        except Exception as error:
            out.put(json.dumps([number, type(error).__name__, str(error)]))
        else:
            out.put(json.dumps([number, "ok", result], default=str))

    def write() -> None:
        while True:
            sys.stdout.write(out.get() + "\n")
            sys.stdout.flush()

    threading.Thread(target=write, daemon=True).start()
    for line in sys.stdin:
        threading.Thread(target=do, args=json.loads(line), daemon=True).start()


if __name__ == "__main__":
    main()
