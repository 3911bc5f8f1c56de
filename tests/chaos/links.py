"""The network between the processes of a chaos run, which can be cut and slowed pair by pair.

`ProxyLinks` puts a TCP proxy into the path of every pair on loopback.
`NamespaceLinks` gives each node a network namespace of its own, on a bridge that the
run makes and removes; it needs root and iproute2.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import threading
from contextlib import suppress
from typing import Protocol


class Links(Protocol):
    """Nodes are numbered from 0."""

    def address(self, node: int) -> str:
        """The IP address that the node binds."""

    def routes(self, node: int, peers: dict[int, str]) -> dict[str, str]:
        """For the `host:port` of each peer, where this node reaches it instead."""

    def command(self, node: int) -> list[str]:
        """What is put before the command that starts the node."""

    def cut(self, source: int, target: int) -> None:
        """Let nothing that `source` sends reach `target`."""

    def slow(self, node: int, seconds: float) -> None:
        """Delay everything that the node sends to its peers."""

    def heal(self) -> None:
        """Undo all that."""

    def close(self) -> None:
        """Leave nothing behind."""


class ProxyLinks:
    """One proxy for each ordered pair, all on one event loop in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaos-links", daemon=True)
        self._thread.start()
        self._ports: dict[tuple[int, int], int] = {}
        self._targets: dict[tuple[int, int], str] = {}
        self._cut: set[tuple[int, int]] = set()
        self._servers: list[asyncio.Server] = []
        self._delays: dict[int, float] = {}
        self._open: dict[tuple[int, int], set[asyncio.StreamWriter]] = {}

    def address(self, node: int) -> str:
        return "127.0.0.1"

    def command(self, node: int) -> list[str]:
        return []

    def routes(self, node: int, peers: dict[int, str]) -> dict[str, str]:
        routes = {}
        for peer, target in peers.items():
            if peer != node:
                pair = (node, peer)
                self._targets[pair] = target
                if pair not in self._ports:
                    opened = asyncio.run_coroutine_threadsafe(self._listen(pair), self._loop)
                    self._ports[pair] = opened.result(10)
                routes[target] = f"127.0.0.1:{self._ports[pair]}"
        return routes

    async def _listen(self, pair: tuple[int, int]) -> int:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._serve(pair, reader, writer)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def _serve(self, pair: tuple[int, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine = self._open.setdefault(pair, set())
        mine.add(writer)
        try:
            host, _, port = self._targets[pair].rpartition(":")
            if pair not in self._cut:
                there_reader, there_writer = await asyncio.open_connection(host, int(port))
                mine.add(there_writer)
                back = (pair[1], pair[0])
                await asyncio.gather(self._pump(reader, there_writer, pair), self._pump(there_reader, writer, back))
                there_writer.close()
        except OSError:
            pass
        finally:
            with suppress(OSError):
                writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: tuple[int, int]) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while data := await reader.read(65536):
                if delay := self._delays.get(way[0]):
                    await asyncio.sleep(delay)
                while way in self._cut:  # what is sent is not lost, as with TCP: it waits until somebody gives up
                    await asyncio.sleep(0.02)
                writer.write(data)
                await writer.drain()
        with suppress(OSError):
            writer.close()

    def cut(self, source: int, target: int) -> None:
        self._cut.add((source, target))

    def slow(self, node: int, seconds: float) -> None:
        self._delays[node] = seconds

    def heal(self) -> None:
        cut, self._cut = self._cut, set()
        self._delays = {}
        for pair in cut:  # connections that were cut have lost what they carried
            for writer in self._open.get(pair, set()) | self._open.get((pair[1], pair[0]), set()):
                self._loop.call_soon_threadsafe(writer.close)
            self._open.pop(pair, None)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        for writers in self._open.values():
            for writer in writers:
                writer.transport.abort()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports say goodbye in the next round


class NamespaceLinks:
    """A namespace for each node; cut by routes that swallow packets."""

    def __init__(self, nodes: int) -> None:
        self._name = f"rc{os.getpid() % 100000}"
        self._nodes = nodes
        self._net = f"10.{os.getpid() % 200 + 20}.77"
        self._cut: list[tuple[int, int]] = []
        self._slowed: set[int] = set()
        try:
            _run("ip", "link", "add", self._name, "type", "bridge")
            _run("ip", "addr", "add", f"{self._net}.254/24", "dev", self._name)
            _run("ip", "link", "set", self._name, "up")
            for node in range(nodes):
                space, veth = f"{self._name}-{node}", f"{self._name}v{node}"
                _run("ip", "netns", "add", space)
                _run("ip", "link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", space)
                _run("ip", "link", "set", veth, "master", self._name, "up")
                self._inside(node, "ip", "addr", "add", f"{self.address(node)}/24", "dev", "eth0")
                self._inside(node, "ip", "link", "set", "eth0", "up")
                self._inside(node, "ip", "link", "set", "lo", "up")
        except BaseException:
            self.close()
            raise

    @staticmethod
    def is_possible() -> bool:
        """Whether this machine lets the run make network namespaces."""
        if os.geteuid() != 0 or shutil.which("ip") is None:
            return False
        name = f"rc{os.getpid() % 100000}-probe"
        try:
            _run("ip", "netns", "add", name)
            _run("ip", "netns", "del", name)
        except subprocess.CalledProcessError:
            return False
        return True

    def _inside(self, node: int, *command: str) -> None:
        _run("ip", "netns", "exec", f"{self._name}-{node}", *command)

    def address(self, node: int) -> str:
        return f"{self._net}.{node + 1}"

    def command(self, node: int) -> list[str]:
        return ["ip", "netns", "exec", f"{self._name}-{node}"]

    def routes(self, node: int, peers: dict[int, str]) -> dict[str, str]:
        return {}

    def cut(self, source: int, target: int) -> None:
        self._cut.append((source, target))
        self._inside(source, "ip", "route", "replace", "blackhole", f"{self.address(target)}/32")

    def slow(self, node: int, seconds: float) -> None:
        with suppress(subprocess.CalledProcessError):  # not every kernel has netem
            self._inside(node, "tc", "qdisc", "add", "dev", "eth0", "root", "netem", "delay", f"{seconds * 1000:.0f}ms")
            self._slowed.add(node)

    def heal(self) -> None:
        for source, target in self._cut:
            with suppress(subprocess.CalledProcessError):
                self._inside(source, "ip", "route", "del", "blackhole", f"{self.address(target)}/32")
        for node in self._slowed:
            with suppress(subprocess.CalledProcessError):
                self._inside(node, "tc", "qdisc", "del", "dev", "eth0", "root")
        self._cut, self._slowed = [], set()

    def close(self) -> None:
        for node in range(self._nodes):
            with suppress(subprocess.CalledProcessError):
                _run("ip", "netns", "del", f"{self._name}-{node}")
        with suppress(subprocess.CalledProcessError):
            _run("ip", "link", "del", self._name)


def free_port(address: str) -> int:
    """A port that nobody uses now; in a namespace any will do."""
    if not address.startswith("127."):
        return 8000
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=30)
