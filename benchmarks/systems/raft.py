"""raftsvc: the node is in the web process, on a listener of its own."""

from __future__ import annotations

import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import raftsvc
from benchmarks.copies import copy_sources
from benchmarks.counting import CountingBackend
from benchmarks.locking import TTL, LockingBackend
from benchmarks.processes import Failure, free_ports
from benchmarks.systems.base import System
from raftsvc import kv
from raftsvc.kv import KeyValue, KeyValueState
from raftsvc.kv.instructions import encode

SECRET = secrets.token_hex(32)


class Backend(CountingBackend, LockingBackend):
    """The key-value store of raftsvc, as the README uses it."""

    def __init__(self, addr: str, directory: str, secret: str, options: dict[str, Any]) -> None:
        began = time.monotonic()
        self._state = KeyValueState()
        self.service = raftsvc.start(addr, directory, None, self._state, secret=secret, listen=addr, **options)
        self._kv = KeyValue(self.service, self._state)
        self._opened_seconds: float | None = None
        if self.service.status()["role"] != "uninitialized":
            threading.Thread(target=self._watch_opening, args=(began,), daemon=True).start()

    def _watch_opening(self, began: float) -> None:
        """Note when everything that was in the log at the start is applied."""
        goal = self.service.status()["last_index"]
        while self.service.status()["applied_index"] < goal:  # type: ignore[operator]
            time.sleep(0.005)
        self._opened_seconds = time.monotonic() - began

    def write(self, key: str, value: bytes) -> None:
        self._kv.set(key, value, timeout=10.0)

    def read(self, key: str) -> bytes | None:
        value = self._kv.get(key, timeout=10.0)  # wait_read, then a look at the local state
        return value.data if value else None

    def local(self, key: str) -> bytes | None:
        value = self._kv.get_stale(key)
        return value.data if value else None

    def status(self) -> dict[str, Any]:
        status = self.service.status()
        members: dict[str, Any] = status.get("members", {})  # type: ignore[assignment]
        return status | {
            "is_leader": status["role"] == "leader",
            "is_ready": bool(status.get("leader_id")) and all(member["is_voter"] for member in members.values()),
            "voters": len(members),
            "applied": status.get("applied_index", 0),
            "opened_seconds": self._opened_seconds,
            "fsyncs": status.get("fsync_count", 0),
        }

    def modules(self) -> dict[str, str]:
        """What is imported of raftsvc, and from which file."""
        return {
            name: module.__file__ or ""
            for name, module in sorted(sys.modules.items())
            if name.partition(".")[0] == "raftsvc"
        }

    def init(self) -> None:
        self.service.init()

    def allow(self, addr: str) -> None:
        self._kv.allow(addr)

    def join(self, boot_url: str) -> None:
        self.service.join(boot_url)

    def fill(self, first: int, count: int) -> None:
        """Have that many keys of 100 bytes, in large transactions."""
        for begin in range(first, first + count, 1000):
            keys = range(begin, min(begin + 1000, first + count))
            self._kv.transaction([kv.set(f"fill/{key}", bytes(100)) for key in keys])

    def increments(self) -> dict[str, Callable[[str], None]]:
        def incr(key: str) -> None:
            self._kv.incr(key, timeout=60.0)

        def update(key: str) -> None:
            self._kv.update(key, lambda data: b"%d" % (int(data or b"0") + 1), timeout=60.0)

        return {"incr": incr, "update": update}

    def number(self, key: str) -> int:
        return int(self.read(key) or b"0")

    def lock(self, name: str) -> AbstractContextManager[object]:
        return self._kv.lock(name, ttl=TTL)

    def write_many(self, values: Mapping[str, bytes]) -> None:
        self.service.propose_many([encode([kv.set(key, value)]) for key, value in values.items()])

    def write_later(self, key: str, value: bytes, done: Callable[[bool], None]) -> None:
        future = self.service.propose_async(encode([kv.set(key, value)]), timeout=60.0)
        future.add_done_callback(lambda future: done(future.exception() is None))


class RaftSystem(System):
    name = "raftsvc"
    client = "in the process"
    backend = "benchmarks.systems.raft:Backend"
    packages = ("raftsvc", "requests", "werkzeug")
    is_compiled = getattr(raftsvc, "__compiled__", False)  # which former revisions do not say

    @classmethod
    def versions(cls) -> dict[str, str]:
        """Of the packages, and whether it is compiled."""
        found = super().versions()
        return found | {"raftsvc": f"{found['raftsvc']} ({'compiled' if cls.is_compiled else 'pure'})"}

    def start_servers(self) -> None:
        self.addrs = [f"127.0.0.1:{port}" for port in free_ports(self.nodes)]

    def config_of(self, index: int) -> dict[str, Any]:
        return {
            "addr": self.addrs[index],
            "directory": str(self.home / f"data-{index}"),
            "secret": SECRET,
            "options": self.options,
        }

    def form(self) -> None:
        first, *others = self.webs
        first.call("init")
        for web, addr in zip(others, self.addrs[1:], strict=True):
            first.call("allow", addr=addr)
            web.call("join", boot_url=self.addrs[0])

    def is_ready(self) -> bool:
        return super().is_ready() and all(web.status()["voters"] == self.nodes for web in self.webs)


class RaftPureSystem(RaftSystem):
    name = "raftsvc-pure"
    note = "the same sources, not compiled"
    is_compiled = False

    def start_servers(self) -> None:
        super().start_servers()
        if self.source is None:
            self.source = self.home / "sources"
            for package in ("raftsvc", "benchmarks"):
                copy_sources(package, self.source)

    def start(self) -> None:
        super().start()
        if any(web.status()["compiled"] for web in self.webs):
            raise Failure(f"{self.name} should not be compiled, and is")


class RaftLeaseSystem(RaftSystem):
    name = "raftsvc-lease"
    note = "reads by lease, which trusts clocks (`lease_reads=True`)"
    kinds = ("read", "mixed")

    def __init__(self, nodes: int, home: Path, **options: Any) -> None:
        super().__init__(nodes, home, lease_reads=True, **options)
