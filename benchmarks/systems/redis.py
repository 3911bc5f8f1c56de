"""Redis: one server that fsyncs every write (`appendfsync always`), for its locks alone."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from benchmarks.locking import TTL, LockingBackend
from benchmarks.processes import Failure, Process, free_ports
from benchmarks.systems.base import System, Web


class Backend(LockingBackend):
    """redis-py's `Lock`, on a pool of connections."""

    def __init__(self, port: int) -> None:
        import redis

        self._client = redis.Redis(port=port)

    def lock(self, name: str) -> AbstractContextManager[object]:
        lock: AbstractContextManager[object] = self._client.lock(name, timeout=TTL)
        return lock

    def status(self) -> dict[str, Any]:
        return {"is_leader": True, "is_ready": bool(self._client.ping())}


class RedisSystem(System):
    name = "redis"
    client = "redis-py, a pool of connections"
    note = "one server"
    backend = "benchmarks.systems.redis:Backend"
    packages = ("redis",)
    kinds = ()

    def __init__(self, nodes: int, home: Path, **options: Any) -> None:
        super().__init__(1, home, **options)

    def start_servers(self) -> None:
        binary = shutil.which("redis-server")
        if binary is None:
            raise Failure("redis-server is not installed; Debian has it in a package of that name")
        (self._port,) = free_ports(1)
        command = [binary, "--port", str(self._port), "--bind", "127.0.0.1", "--dir", str(self.home), "--save", ""]
        command += ["--appendonly", "yes", "--appendfsync", "always", "--daemonize", "no"]
        self.servers.append(Process("redis", command, self.home / "redis.log"))

    def config_of(self, index: int) -> dict[str, Any]:
        return {"port": self._port}

    def node_process(self, web: Web) -> Process:
        return self.servers[0]
