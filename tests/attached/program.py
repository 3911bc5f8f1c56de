"""One process of a host, which writes and reads all the time and keeps a record of what it was told.

python -m tests.attached.program DIR ADDR RECORD THREADS init|join|none [BOOT_URL]
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from typing import Any

import raftsvc
from tests.pulse import Pulse

SECRET = "a secret of the tests, long enough"
STOPS_AT = "RAFTSVC_TESTS_STOPS_AT"
"""In the environment: a method of Worker before which a process that takes over stops itself, as by SIGSTOP."""


def stop_before(name: str) -> None:
    from raftsvc.attached.worker import Worker

    original = getattr(Worker, name)

    def stopped(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGSTOP)
        return original(*args)

    setattr(Worker, name, stopped)


class ListState(raftsvc.BaseState):
    """Remembers every instruction in order."""

    def __init__(self) -> None:
        super().__init__()
        self.items: list[str] = []

    def apply(self, data: bytes, index: int) -> int:
        self.items.append(data.decode())
        return len(self.items)

    def snapshot(self) -> tuple[bytes, int]:
        return json.dumps(self.items).encode(), self.applied_index()

    def restore_snapshot(self, data: bytes, index: int) -> None:
        self.items = json.loads(data)

    def is_allowed_member(self, addr: str) -> bool:
        return True


class Program:
    """The service, and the threads that use it."""

    def __init__(self, directory: str, addr: str, record: str) -> None:
        self.pulse = Pulse().start()
        self.state = ListState()
        self.record = open(record, "a", buffering=1)  # noqa: SIM115 - as long as the process
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.service = raftsvc.start(
            addr,
            directory,
            None,
            self.state,
            listen=addr,
            secret=SECRET,
            election_timeout=0.5,
            snapshot_entries=300,
            trailing_entries=50,
        )

    def note(self, **what: object) -> None:
        with self.lock:
            self.record.write(json.dumps(what) + "\n")

    def write(self, name: str) -> None:
        self.note(kind="begun", name=name)
        begin, pulse = time.monotonic(), self.pulse.seconds
        index = 0
        try:
            index = self.service.propose(name.encode(), timeout=8).index
            result = "done"
        except raftsvc.OutcomeUnknown as error:
            result = f"unknown: {error}"
        except raftsvc.NotApplied as error:
            result = f"not applied: {error}"
        except raftsvc.RaftError as error:
            result = f"error: {type(error).__name__}: {error}"
        took = self.pulse.seconds - pulse
        self.note(kind="write", name=name, result=result, begin=begin, end=time.monotonic(), index=index, took=took)

    def read(self) -> None:
        begin = time.monotonic()
        try:
            self.service.wait_read(timeout=8)
        except raftsvc.RaftError:
            return
        self.note(kind="read", begin=begin, end=time.monotonic(), index=self.state.applied_index())

    def run(self, number: int) -> None:
        count = 0
        while not self.stopping.is_set():
            count += 1
            self.write(f"{os.getpid()}.{number}.{count}")
            self.read()
            time.sleep(0.002)

    def tell(self) -> None:
        """How it is, now and then."""
        while not self.stopping.wait(0.05):
            status = self.service.status()
            error = self.service.err()
            process: dict[str, Any] = status["process"]  # type: ignore[assignment]
            self.note(
                kind="status",
                role=status["role"],
                is_attached=process["owner_pid"] != os.getpid(),
                members=sorted(member["addr"] for member in status.get("members", {}).values()),  # type: ignore[attr-defined]
                versions=status.get("versions"),
                is_ready=self.service.is_ready(),
                err=str(error or ""),
                at=time.monotonic(),
                applied=self.state.applied_index(),
                conditions=list(process.get("conditions", {})),
            )


def main() -> None:
    directory, addr, record, threads, how, *boot = sys.argv[1:]
    if os.environ.get(STOPS_AT):
        stop_before(os.environ[STOPS_AT])
    program = Program(directory, addr, record)
    signal.signal(signal.SIGTERM, lambda *_: program.stopping.set())
    with contextlib.suppress(raftsvc.ExistingClusterError):
        if how == "init":
            program.service.init()
        elif how == "join":
            program.service.join(boot[0], timeout=60)
    while not (program.service.is_ready() or program.stopping.wait(0.02)):
        pass
    program.note(kind="ready", pid=os.getpid(), role=program.service.status()["role"], at=time.monotonic())
    threading.Thread(target=program.tell, daemon=True).start()
    for number in range(int(threads)):
        threading.Thread(target=program.run, args=(number,), daemon=True).start()
    while not program.stopping.wait(0.1):
        pass
    program.service.stop()
    program.note(kind="stopped", at=time.monotonic())


if __name__ == "__main__":
    main()
