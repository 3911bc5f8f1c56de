"""PySyncObj: the node is in the web process.  It never fsyncs: its writes do not survive what the others' do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.counting import CountingBackend
from benchmarks.processes import free_ports
from benchmarks.systems.base import System

_TIMEOUT_SECONDS = 10.0


class Backend(CountingBackend):
    """A dictionary replicated by PySyncObj, used by synchronous calls."""

    def __init__(self, addr: str, partners: list[str], conf: dict[str, Any]) -> None:
        from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, SyncObjConsumer, replicated

        class Store(SyncObjConsumer):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.data: dict[str, bytes] = {}

            @replicated  # type: ignore[untyped-decorator]
            def set(self, key: str, value: bytes) -> None:
                self.data[key] = value

            @replicated  # type: ignore[untyped-decorator]
            def get(self, key: str) -> bytes | None:
                return self.data.get(key)

            @replicated  # type: ignore[untyped-decorator]
            def incr(self, key: str) -> None:
                self.data[key] = b"%d" % (int(self.data.get(key, b"0")) + 1)

        self._success = FAIL_REASON.SUCCESS
        self._store = Store()
        self._node = SyncObj(addr, partners, SyncObjConf(**conf), consumers=[self._store])

    def write(self, key: str, value: bytes) -> None:
        self._store.set(key, value, sync=True, timeout=_TIMEOUT_SECONDS)

    def read(self, key: str) -> bytes | None:
        # It has no linearizable read; one that goes through the log is the only way to have it.
        value: bytes | None = self._store.get(key, sync=True, timeout=_TIMEOUT_SECONDS)
        return value

    def local(self, key: str) -> bytes | None:
        return self._store.data.get(key)

    def increments(self) -> dict[str, Callable[[str], None]]:
        return {"replicated method": lambda key: self._store.incr(key, sync=True, timeout=60.0)}

    def number(self, key: str) -> int:
        return int(self.read(key) or b"0")

    def write_many(self, values: Mapping[str, bytes]) -> None:
        left = threading.Semaphore(0)
        for key, value in values.items():
            self._store.set(key, value, callback=lambda result, error: left.release())
        for _ in values:
            if not left.acquire(timeout=60.0):
                raise TimeoutError("a write of many was not acknowledged")

    def write_later(self, key: str, value: bytes, done: Callable[[bool], None]) -> None:
        self._store.set(key, value, callback=lambda result, error: done(error == self._success))

    def status(self) -> dict[str, Any]:
        return {
            "is_leader": self._node._isLeader(),
            "is_ready": self._node.isReady() and self._node._getLeader() is not None,
            "applied": self._node.raftLastApplied,
            "fsyncs": 0,
        }


class SyncObjSystem(System):
    name = "pysyncobj"
    client = "in the process"
    fsyncs_every_write = False
    note = "reads go through the log"
    backend = "benchmarks.systems.syncobj:Backend"
    packages = ("pysyncobj",)
    uses_batches = True
    has_journal = False

    def start_servers(self) -> None:
        self.addrs = [f"127.0.0.1:{port}" for port in free_ports(self.nodes)]

    def config_of(self, index: int) -> dict[str, Any]:
        conf: dict[str, Any] = {"appendEntriesUseBatch": self.uses_batches}
        if self.has_journal:
            conf["journalFile"] = str(Path(self.home) / f"journal-{index}")
        return {"addr": self.addrs[index], "partners": self.addrs[:index] + self.addrs[index + 1 :], "conf": conf}


class SyncObjTunedSystem(SyncObjSystem):
    name = "pysyncobj-tuned"
    uses_batches = False


class SyncObjJournalSystem(SyncObjSystem):
    name = "pysyncobj-journal"
    note = "a journal on disk; reads go through the log"
    has_journal = True


class SyncObjTunedJournalSystem(SyncObjTunedSystem):
    name = "pysyncobj-tuned-journal"
    note = "a journal on disk; reads go through the log"
    has_journal = True
