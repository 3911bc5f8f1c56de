"""The network between the processes of a chaos run, which can be cut and slowed pair by pair.

`ProxyLinks` puts a TCP proxy into the path of every pair on loopback.  It can delay and
narrow everywhere.
`NamespaceLinks` gives each node a network namespace of its own, on a bridge that the
run makes and removes; it needs root and iproute2, and to delay packets a kernel with netem.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import socket
import subprocess
import threading
from collections.abc import Collection
from contextlib import suppress
from typing import Protocol

CHUNK_BYTES = 64 * 1024
NARROW_CHUNK_BYTES = 4 * 1024
QUEUED_CHUNKS = 64
AHEAD_SECONDS = 0.2
"""As much as that waits before a narrow link; what is more waits in the socket of whoever sends."""


class Links(Protocol):
    """Places are numbered from 0: a place is a machine, where a node is at home until it moves."""

    can_delay: bool
    """Whether `slow` has an effect."""

    def address(self, place: int) -> str:
        """The IP address of the place."""

    def settle(self, places: dict[str, int]) -> None:
        """For each `host:port` of a node, where it is from now on."""

    def routes(self, place: int) -> dict[str, str]:
        """For each `host:port` that is or was a node's, where it is reached from that place instead."""

    def command(self, place: int) -> list[str]:
        """What is put before the command that starts a node."""

    def cut(self, source: int, target: int) -> None:
        """Let nothing that is sent from `source` reach `target`."""

    def slow(self, place: int, seconds: float) -> None:
        """Delay everything that is sent from there, by as much."""

    def narrow(self, place: int, bytes_per_second: float) -> None:
        """Let no more than that leave the place."""

    def heal(self) -> None:
        """Undo all that."""

    def close(self) -> None:
        """Leave nothing behind."""


class ProxyLinks:
    """One proxy for each place and each address that it may send to, all on one event loop in a thread.

    Each ordered pair of places is a link of its own, with its own rate.
    """

    can_delay = True

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaos-links", daemon=True)
        self._thread.start()
        self._ports: dict[tuple[int, str], int] = {}
        self._places: dict[str, int] = {}
        self._cut: set[tuple[int, int]] = set()
        self._servers: list[asyncio.Server] = []
        self._delays: dict[int, float] = {}
        self._rates: dict[int, float] = {}
        self._busy_until: dict[tuple[int, int], float] = {}
        self._open: dict[tuple[int, int], set[asyncio.StreamWriter]] = {}

    def address(self, place: int) -> str:
        return "127.0.0.1"

    def command(self, place: int) -> list[str]:
        return []

    def settle(self, places: dict[str, int]) -> None:
        self._places = {**self._places, **places}

    def routes(self, place: int) -> dict[str, str]:
        for addr in self._places:
            if (place, addr) not in self._ports:
                opened = asyncio.run_coroutine_threadsafe(self._listen(place, addr), self._loop)
                self._ports[place, addr] = opened.result(10)
        return {addr: f"127.0.0.1:{self._ports[place, addr]}" for addr in self._places}

    async def _listen(self, place: int, addr: str) -> int:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._serve((place, self._places[addr]), addr, reader, writer)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def _serve(
        self, way: tuple[int, int], addr: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        back = (way[1], way[0])
        writers = [writer]
        self._open.setdefault(way, set()).add(writer)
        try:
            host, _, port = addr.rpartition(":")
            if way not in self._cut:
                await asyncio.sleep(self._delays.get(way[0], 0.0) + self._delays.get(back[0], 0.0))
                there_reader, there_writer = await asyncio.open_connection(host, int(port))
                writers.append(there_writer)
                self._open.setdefault(way, set()).add(there_writer)
                await asyncio.gather(self._pump(reader, there_writer, way), self._pump(there_reader, writer, back))
        except (OSError, asyncio.CancelledError):  # cancelled at the end of the run, when nobody cares
            pass
        finally:
            for each in writers:
                self._open.get(way, set()).discard(each)
                with suppress(OSError):
                    each.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: tuple[int, int]) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUED_CHUNKS)
        await asyncio.gather(self._take_in(reader, queue, way), self._give_out(queue, writer, way))

    async def _take_in(
        self, reader: asyncio.StreamReader, queue: asyncio.Queue[tuple[float, bytes]], way: tuple[int, int]
    ) -> None:
        data = b"-"
        while data:
            try:
                data = await reader.read(NARROW_CHUNK_BYTES if way[0] in self._rates else CHUNK_BYTES)
            except OSError:
                data = b""
            while (ahead := self._busy_until.get(way, 0.0) - self._loop.time()) > AHEAD_SECONDS and data:
                await asyncio.sleep(ahead - AHEAD_SECONDS / 2)
            await queue.put((self._arrival(way, len(data)), data))

    def _arrival(self, way: tuple[int, int], size: int) -> float:
        """When bytes that are sent now arrive."""
        sent = self._loop.time()
        if rate := self._rates.get(way[0]):
            sent = self._busy_until[way] = max(sent, self._busy_until.get(way, 0.0)) + size / rate
        return sent + self._delays.get(way[0], 0.0)

    async def _give_out(
        self, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, way: tuple[int, int]
    ) -> None:
        is_broken = False
        while True:
            arrival, data = await queue.get()
            if (ahead := arrival - self._loop.time()) > 0:
                await asyncio.sleep(ahead)
            while way in self._cut:  # what is sent is not lost, as with TCP: it waits until somebody gives up
                await asyncio.sleep(0.02)
            if not data:
                break
            if not is_broken:
                try:
                    writer.write(data)
                    await writer.drain()
                except OSError:
                    is_broken = True  # what comes yet goes nowhere
        with suppress(OSError):
            writer.close()

    def cut(self, source: int, target: int) -> None:
        self._cut.add((source, target))

    def slow(self, place: int, seconds: float) -> None:
        self._delays[place] = seconds

    def narrow(self, place: int, bytes_per_second: float) -> None:
        self._rates[place] = bytes_per_second

    def heal(self) -> None:
        cut, self._cut = self._cut, set()
        self._delays, self._rates, self._busy_until = {}, {}, {}
        for way in cut:  # connections that were cut have lost what they carried
            for pair in (way, (way[1], way[0])):
                self._loop.call_soon_threadsafe(self._break, pair)

    def _break(self, way: tuple[int, int]) -> None:
        for writer in self._open.pop(way, set()):
            writer.close()

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
    """A namespace for each place; cut by routes that swallow packets, slow and narrow by what the kernel has for that.

    All that leaves a place shares one link.
    """

    def __init__(self, places: int) -> None:
        self._name = f"rc{os.getpid() % 100000}"
        self._count = places
        self._net = f"10.{os.getpid() % 200 + 20}.77"
        self._cut: list[tuple[int, int]] = []
        self._delays: dict[int, float] = {}
        self._rates: dict[int, float] = {}
        self.can_delay = _has_netem()
        try:
            _run("ip", "link", "add", self._name, "type", "bridge")
            _run("ip", "addr", "add", f"{self._net}.254/24", "dev", self._name)
            _run("ip", "link", "set", self._name, "up")
            for place in range(places):
                space, veth = f"{self._name}-{place}", f"{self._name}v{place}"
                _run("ip", "netns", "add", space)
                _run("ip", "link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", space)
                _run("ip", "link", "set", veth, "master", self._name, "up")
                self._inside(place, "ip", "addr", "add", f"{self.address(place)}/24", "dev", "eth0")
                self._inside(place, "ip", "link", "set", "eth0", "up")
                self._inside(place, "ip", "link", "set", "lo", "up")
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

    def _inside(self, place: int, *command: str) -> None:
        _run("ip", "netns", "exec", f"{self._name}-{place}", *command)

    def address(self, place: int) -> str:
        return f"{self._net}.{place + 1}"

    def command(self, place: int) -> list[str]:
        return ["ip", "netns", "exec", f"{self._name}-{place}"]

    def settle(self, places: dict[str, int]) -> None:
        pass

    def routes(self, place: int) -> dict[str, str]:
        return {}

    def cut(self, source: int, target: int) -> None:
        self._cut.append((source, target))
        self._inside(source, "ip", "route", "replace", "blackhole", f"{self.address(target)}/32")

    def slow(self, place: int, seconds: float) -> None:
        if self.can_delay:
            self._delays[place] = seconds
            self._shape(place)

    def narrow(self, place: int, bytes_per_second: float) -> None:
        self._rates[place] = bytes_per_second
        self._shape(place)

    def _shape(self, place: int) -> None:
        delay, rate = self._delays.get(place, 0.0), self._rates.get(place, 0.0)
        if self.can_delay:
            rule = ["netem", "delay", f"{delay * 1000:.0f}ms", *(["rate", f"{rate * 8:.0f}bit"] if rate else [])]
        else:
            rule = ["tbf", "rate", f"{rate * 8:.0f}bit", "burst", "16kb", "latency", "300ms"]
        self._inside(place, "tc", "qdisc", "replace", "dev", "eth0", "root", *rule)

    def heal(self) -> None:
        for source, target in self._cut:
            with suppress(subprocess.CalledProcessError):
                self._inside(source, "ip", "route", "del", "blackhole", f"{self.address(target)}/32")
        for place in {*self._delays, *self._rates}:
            with suppress(subprocess.CalledProcessError):
                self._inside(place, "tc", "qdisc", "del", "dev", "eth0", "root")
        self._cut, self._delays, self._rates = [], {}, {}

    def close(self) -> None:
        for place in range(self._count):
            with suppress(subprocess.CalledProcessError):
                _run("ip", "netns", "del", f"{self._name}-{place}")
        with suppress(subprocess.CalledProcessError):
            _run("ip", "link", "del", self._name)


def _has_netem() -> bool:
    """Whether the kernel can delay packets."""
    name = f"rc{os.getpid() % 100000}-delay"
    try:
        _run("ip", "netns", "add", name)
        try:
            _run("ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms")
        finally:
            _run("ip", "netns", "del", name)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def free_port(address: str, taken: Collection[int]) -> int:
    """A port that nobody has, nor gets for a connection while nobody listens there."""
    while True:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((address if address.startswith("127.") else "0.0.0.0", port))
            if port not in taken:
                return port


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=30)
