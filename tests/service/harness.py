"""A cluster of real Services in one process, over real sockets, whose disks and links a test can break."""

from __future__ import annotations

import errno
import itertools
import os
import random
import socket
import threading
import time
import weakref
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import requests

import raftsvc
from raftsvc.storage import Files
from raftsvc.transport.peer import make_session
from raftsvc.transport.session import Incoming
from tests.effort import PATIENCE as PATIENCE

SECRET = "a secret of the tests, long enough"

_numbers = itertools.count(1)


def eventually(condition: Callable[[], Any], what: str = "the condition") -> Any:
    """Wait until `condition` returns something true, and return it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.01)


def in_background(function: Callable[[], Any]) -> Callable[[], Any]:
    """Run `function` in a thread; calling the result waits for it, and returns or raises what it did."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((function(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result() -> Any:
        thread.join(PATIENCE)
        assert outcome, "the call in the background did not return"
        value, error = outcome[0]
        if error is not None:
            raise error
        return value

    return result


class ListState(raftsvc.BaseState):
    """Remembers every instruction in order; `no...` is rejected, `false...` is not satisfied."""

    def __init__(self) -> None:
        super().__init__()
        self.items: list[bytes] = []
        self.refused: set[str] = set()

    def apply(self, data: bytes, index: int) -> bool:
        if data.startswith(b"no"):
            raise raftsvc.Rejected(f"no to {data.decode()}")
        self.items.append(data)
        return not data.startswith(b"false")

    def snapshot(self) -> tuple[bytes, int]:
        return b"".join(len(i).to_bytes(4, "big") + i for i in self.items), self.applied_index()

    def restore_snapshot(self, data: bytes, index: int) -> None:
        items, offset = [], 0
        while offset < len(data):
            length = int.from_bytes(data[offset : offset + 4], "big")
            items.append(data[offset + 4 : offset + 4 + length])
            offset += 4 + length
        self.items = items

    def is_allowed_member(self, addr: str) -> bool:
        return addr not in self.refused


class FaultyFiles(Files):
    """A disk that can fail: each error is raised by what it is named after, `gate` holds syncs while it is cleared.

    free: how many bytes it says that are left; None: as it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.write_error: int | None = None
        self.sync_error: int | None = None
        self.remove_error: int | None = None
        self.create_error: int | None = None
        self.sync_dir_error: int | None = None  # once there is an id
        self.free: int | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.syncs = 0

    def write(self, fd: int, data: bytes, offset: int) -> None:
        if self.write_error:
            raise OSError(self.write_error, os.strerror(self.write_error))
        super().write(fd, data, offset)

    def flush(self, fd: int) -> None:
        self.gate.wait(PATIENCE)
        if self.sync_error:
            raise OSError(self.sync_error, os.strerror(self.sync_error))
        self.syncs += 1
        super().flush(fd)

    def create(self, path: str) -> int:
        if self.create_error:
            raise OSError(self.create_error, os.strerror(self.create_error))
        return super().create(path)

    def sync_dir(self, path: str) -> None:
        if self.sync_dir_error and self.exists(f"{path}/id"):
            raise OSError(self.sync_dir_error, os.strerror(self.sync_dir_error))
        super().sync_dir(path)

    def room(self, path: str) -> int | None:
        return super().room(path) if self.free is None else self.free

    def remove(self, path: str) -> None:
        if self.remove_error:
            raise OSError(self.remove_error, os.strerror(self.remove_error))
        super().remove(path)


class Clocks:
    """Both clocks that log time and leases are measured by, of all nodes, moved by hand: `time.clock_gettime_ns`."""

    def __init__(self) -> None:
        self.now = 10**12

    def __call__(self, clock: int) -> int:
        return self.now

    def move(self, ms: int) -> None:
        self.now += ms * 1_000_000


class FaultySession(requests.Session):
    """Refuses connections to some addresses, is slow, and loses some answers, or what comes through a stream."""

    def __init__(self, has_streams: bool) -> None:
        super().__init__()
        self.__dict__.update(make_session().__dict__)
        self.blocked: set[str] = set()
        self.request_seconds = 0.0
        """What each request takes beside the usual."""
        self.lose_answer: Callable[[str], bool] = lambda path: False
        self._has_streams = has_streams
        self._streams: weakref.WeakValueDictionary[int, StreamFile] = weakref.WeakValueDictionary()

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        url = urlsplit(str(request.url))
        is_stream = url.path.endswith("/stream")
        if is_stream and not self._has_streams:
            raise requests.ReadTimeout("the test wants no streams")
        if url.netloc in self.blocked:
            raise requests.ConnectionError("cut by the test")
        time.sleep(self.request_seconds)
        response = super().send(request, **options)
        if self.lose_answer(url.path):
            response.close()
            raise requests.ReadTimeout("the answer was lost by the test")
        if is_stream and response.raw.chunked:
            response.raw._fp.fp = file = StreamFile(response.raw._fp.fp, self, url.netloc)
            self._streams[id(file)] = file
            if url.netloc in self.blocked:
                file.cut()
        return response

    def cut(self, netloc: str) -> None:
        self.blocked.add(netloc)
        for file in list(self._streams.values()):
            if file.netloc == netloc:
                file.cut()


def record_requests(members: Sequence[Member]) -> list[requests.PreparedRequest]:
    """Copies of all that these say from now on, as an enemy on the way makes them."""
    recorded: list[requests.PreparedRequest] = []
    for member in members:

        def record(request: requests.PreparedRequest, send: Any = member.session.send, **options: Any) -> Any:
            recorded.append(request.copy())
            return send(request, **options)

        member.session.send = record  # type: ignore[method-assign]
    return recorded


class WatchedSocket:
    """A socket that is not known for one, so that a stream is read from its file alone."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


class StreamFile:
    """What a stream is read from, until the test cuts it."""

    def __init__(self, file: Any, session: FaultySession, netloc: str) -> None:
        self.netloc = netloc
        if isinstance(file.raw, Incoming):
            file.raw.lift_deadline()
        self.raw = SimpleNamespace(_sock=WatchedSocket(file.raw._sock))
        self._file = file
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read1(self, size: int) -> bytes:
        data: bytes = self._file.read1(size)
        if self.netloc in self._session.blocked or self._session.lose_answer("/raft/stream"):
            raise OSError("the stream was cut by the test")
        return data

    def cut(self) -> None:
        with suppress(AttributeError, OSError):  # it may be closed, and have no socket any more
            self._file.raw._sock.shutdown(socket.SHUT_RDWR)


class Member:
    """A node of the test: its address and directory stay, its Service and State come and go."""

    def __init__(
        self, addr: str, path: Path, options: dict[str, Any], has_streams: bool, blocked: Collection[str] = ()
    ) -> None:
        """blocked: addresses that it does not reach until that is healed."""
        self.addr = addr
        self.path = path
        self.make_state: Callable[[], ListState] = options.pop("make_state", ListState)
        self.options = options
        self.files = FaultyFiles()
        self.session = FaultySession(has_streams)
        self.session.blocked.update(blocked)
        self.start()

    def start(self) -> None:
        self.state = self.make_state()
        self.service = raftsvc.start(
            self.addr,
            self.path,
            self.session,
            self.state,
            **{"secret": SECRET, "listen": self.addr, "files": self.files, **self.options},
        )

    def restart(self) -> None:
        self.service.stop()
        self.start()

    @property
    def status(self) -> dict[str, Any]:
        return self.service.status()

    @property
    def is_leader(self) -> bool:
        return self.status["role"] == "leader"

    def read(self) -> list[bytes]:
        self.service.wait_read(PATIENCE)
        return list(self.state.items)


class Cluster:
    """Members, all made with the same options."""

    def __init__(self, directory: Path, has_streams: bool = True, **options: Any) -> None:
        self._directory = directory
        self._has_streams = has_streams
        self._options = options
        self.members: list[Member] = []

    def add(self, addr: str = "", **options: Any) -> Member:
        """A node that belongs to no cluster yet."""
        path = self._directory / f"n{len(self.members) + 1}"
        member = Member(addr or free_address(), path, {**self._options, **options}, self._has_streams)
        self.members.append(member)
        return member

    def form(self, size: int, **options: Any) -> list[Member]:
        """A cluster of `size` voters."""
        first = self.add(**options)
        first.service.init()
        for _ in range(size - 1):
            self.add(**options).service.join(first.addr, PATIENCE)
        eventually(lambda: all(len(voters(m)) == size for m in self.members), "every member sees every voter")
        return self.members

    def leader(self) -> Member:
        """The one that leads in the latest term, once there is one."""
        return eventually(
            lambda: next((m for m in self.members if m.service.is_ready() and m.is_leader), None), "a leader"
        )

    def follower(self) -> Member:
        """One that follows, once there is one."""

        def find() -> Member | None:
            leader = self.leader()
            return next((m for m in self.members if m is not leader and m.service.is_ready()), None)

        return eventually(find, "a follower")

    def cut(self, one: Member, others: list[Member]) -> None:
        """Let no request pass between `one` and `others`, either way."""
        for other in others:
            one.session.cut(other.addr)
            other.session.cut(one.addr)

    def heal(self) -> None:
        for member in self.members:
            member.session.blocked.clear()

    def stop(self) -> None:
        for member in self.members:
            member.files.gate.set()
        for member in self.members:
            member.service.stop()


def has_streams(members: list[Member]) -> bool:
    """Whether a stream goes from each of `members` to each other."""
    counts = [[(s["in"], s["out"]) for s in m.status.get("streams", {}).values()] for m in members]
    return all(streams == [(True, True)] * (len(members) - 1) for streams in counts)


def voters(member: Member) -> list[str]:
    """The voters' addresses as the member has them."""
    return [m["addr"] for m in member.status.get("members", {}).values() if m["is_voter"]]


def free_address() -> str:
    """A loopback address of this test's own with a free port: nobody else binds there in between."""
    host = f"127.{os.getpid() % 250 + 2}.{next(_numbers) % 250 + 1}.{random.randrange(1, 250)}"
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"


NO_SPACE = errno.ENOSPC
IO_ERROR = errno.EIO
