"""An application that is upgraded while it runs: a counter, in the State's version that it is told to be.

    python rolling_app.py ADDR DIR STATE_VERSION

Run with whichever raftsvc is on its path.  It does one command a line (see COMMANDS), and answers each with
one line of JSON.  From `load` on it counts up all the time, and keeps account of what it was told.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import raftsvc

SECRET = "a secret of the tests, long enough"


class Counter(raftsvc.BaseState):
    """From version 2 on it answers with the version too, and its snapshot says the form that it is in."""

    def __init__(self, code_version: int) -> None:
        super().__init__()
        self.code_version = code_version
        self.version = 1
        self.value = 0

    def state_version(self) -> int:
        return self.code_version

    def use_version(self, version: int) -> None:
        assert version <= self.code_version, "it is never told what it does not know"
        self.version = version

    def apply(self, data: bytes, index: int) -> object:
        self.value += int(data)
        return self.value if self.version == 1 else b"%d by %d" % (self.value, self.version)

    def snapshot(self) -> tuple[bytes, int]:
        form: dict[str, int] = {} if self.version == 1 else {"form": self.version}
        return json.dumps({"value": self.value, **form}).encode(), self.applied_index()

    def restore_snapshot(self, data: bytes, index: int) -> None:
        content = json.loads(data)
        form = content.get("form", 1)
        assert form <= self.code_version, f"version {self.code_version} is given a snapshot of form {form}"
        self.value = content["value"]
        self.version = 1  # until it is told


class Load:
    """Counts up by 1 until it is stopped."""

    def __init__(self, service: raftsvc.Service) -> None:
        self._service = service
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.done = self.unknown = 0
        self.answers: set[int] = set()

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        while not self._is_stopping.is_set():
            try:
                answer = self._service.propose(b"1", timeout=20.0).answer
            except raftsvc.NotApplied:
                time.sleep(0.05)
            except raftsvc.OutcomeUnknown:
                self.unknown += 1
            else:
                self.done += 1
                self.answers.add(int(answer.split(b" by ")[1]) if isinstance(answer, bytes) else 1)

    def stop(self) -> dict[str, object]:
        self._is_stopping.set()
        if self._thread.is_alive():
            self._thread.join(60)
        return {"done": self.done, "unknown": self.unknown, "answers": sorted(self.answers)}


def say(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main(addr: str, directory: str, version: str) -> None:
    state = Counter(int(version))
    service = raftsvc.start(addr, directory, state=state, secret=SECRET, listen=addr, snapshot_entries=40)
    load = Load(service)

    def read(argument: str) -> object:
        service.wait_read(60.0)
        return state.value

    def stop(argument: str) -> object:
        told = load.stop()
        service.stop()
        return told

    commands: dict[str, Callable[[str], Any]] = {
        "init": lambda _: service.init(),
        "join": lambda url: service.join(url, 60.0),
        "exec": lambda _: service.exec(b"0", 60.0),
        "status": lambda _: service.status(),
        "err": lambda _: str(service.err() or ""),
        "load": lambda _: load.start(),
        "told": lambda _: {"done": load.done, "unknown": load.unknown, "answers": sorted(load.answers)},
        "read": read,
        "stop": stop,
    }
    say("ready")
    for line in sys.stdin:
        name, _, argument = line.strip().partition(" ")
        try:
            answer = commands[name](argument)
        except raftsvc.RaftError as error:
            answer = {"error": type(error).__name__, "text": str(error)}
        say(answer)
        if name == "stop":
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
