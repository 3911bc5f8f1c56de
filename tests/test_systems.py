"""What only some systems have is taken away: what is done without it holds, and nodes elsewhere are reached."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import raftsvc
from raftsvc import kv, systems
from raftsvc.errors import ConfigurationError
from raftsvc.storage.files import Files
from tests.client.harness import OpenStore
from tests.service.harness import SECRET, free_address

WRITER = raftsvc.ClientKey("writer", "a text that is long enough, of a writer", "write")

# A Python of Windows, as far as raftsvc looks at it.  What it stands on has ways of its own, and is imported before.
ELSEWHERE = """
import os, select, signal, socket, sys, threading, time
import http.server, multiprocessing, requests, selectors, socketserver, ssl, subprocess, tempfile, werkzeug

for module, names in {
    os: "fork forkpty register_at_fork pread pwrite fdatasync statvfs geteuid getuid fchmod memfd_create sched_yield "
    "O_DIRECTORY O_NOFOLLOW O_CLOEXEC O_NONBLOCK MFD_CLOEXEC posix_fallocate pidfd_open",
    socket: "AF_UNIX SO_PEERCRED TCP_USER_TIMEOUT SO_REUSEPORT",
    select: "poll epoll",
    time: "clock_gettime clock_gettime_ns CLOCK_BOOTTIME CLOCK_MONOTONIC CLOCK_MONOTONIC_RAW",
    signal: "SIGALRM SIGUSR1 SIGHUP pthread_kill pthread_sigmask setitimer",
}.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
for name in ("fcntl", "pwd", "grp", "resource", "termios"):
    sys.modules[name] = None

import raftsvc, raftsvc.kv
url, key, directory = sys.argv[1:]
store = raftsvc.connect(url, key=key)
print(store.set("a", b"b") > 0, store.get("a").data.decode(), store.get("a", max_age=5.0).data.decode())
with store.lock("l", ttl=5) as lock:
    print(lock.owned())
store.service.close()
for attempt in (
    lambda: raftsvc.start("127.0.0.1:1", directory, state=raftsvc.kv.KeyValueState(), insecure=True),
    lambda: raftsvc.kv.start_from_env({"RAFTSVC_ADDR": "127.0.0.1:1", "RAFTSVC_DIR": directory}, insecure=True),
    lambda: raftsvc.connect(directory).get("a"),
):
    try:
        attempt()
    except raftsvc.RaftError as error:
        print(type(error).__name__, error)
"""


def test_where_no_node_can_live_those_elsewhere_are_reached_and_start_says_why(tmp_path: Path) -> None:
    addr = free_address()
    state = OpenStore()
    service = raftsvc.start(addr, tmp_path / "n", state=state, secret=SECRET, listen=addr, client_keys=[WRITER])
    try:
        service.init()
        (tmp_path / "other").mkdir()
        done = subprocess.run(
            [sys.executable, "-c", ELSEWHERE, addr, f"{WRITER.name}:{WRITER.key}", str(tmp_path / "other")],
            cwd=Path(raftsvc.__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        served, held, *refused = done.stdout.splitlines()
        assert (served, held) == ("True b b", "True")
        assert len(refused) == 3
        for line in refused[:2]:
            assert line.startswith("ConfigurationError a node needs a POSIX system")
            assert "raftsvc.connect(url, key=...)" in line
        assert "give the URL of a node that is elsewhere" in refused[2]
        assert kv.KeyValue(service, state).get("a") is not None
    finally:
        service.stop()


class _Locks:
    """The module of a system whose disks are told in a way of their own."""

    F_FULLFSYNC = 51

    def __init__(self, code: int = 0) -> None:
        self.code = code
        self.synced: list[int] = []

    def fcntl(self, fd: int, command: int) -> int:
        assert command == self.F_FULLFSYNC
        if self.code:
            raise OSError(self.code, os.strerror(self.code))
        self.synced.append(fd)
        return 0


@pytest.mark.pure
@pytest.mark.parametrize("sync", [systems.sync_data, systems.sync_names])
def test_a_disk_is_told_to_empty_its_own_cache_where_only_that_is_durable(
    monkeypatch: pytest.MonkeyPatch, sync: Callable[[int], None]
) -> None:
    usual: list[int] = []
    monkeypatch.setattr(systems, "_full_sync", _Locks.F_FULLFSYNC)
    monkeypatch.setattr(systems, "_fdatasync", usual.append)
    monkeypatch.setattr(os, "fsync", usual.append)
    locks = _Locks()
    monkeypatch.setattr(systems, "_fcntl", locks)
    sync(7)
    assert (locks.synced, usual) == ([7], [])
    monkeypatch.setattr(systems, "_fcntl", _Locks(errno.ENOTSUP))
    sync(8)
    assert usual == [8], "a file system that knows fsync only"
    monkeypatch.setattr(systems, "_fcntl", _Locks(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        sync(9)
    assert usual == [8], "an error is never followed by another attempt"


@pytest.mark.pure
def test_a_system_without_fdatasync_or_files_without_names_has_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(systems, "_fdatasync", os.fsync)
    fd = systems.nameless_file()
    try:
        assert os.fstat(fd).st_nlink == 0
        assert not os.get_inheritable(fd)
        systems.lock_for_process(fd)
        systems.unlock_for_process(fd)
    finally:
        os.close(fd)
    files = Files()
    fd = files.create(str(tmp_path / "f"))
    files.write(fd, b"a", 0)
    files.sync(fd)
    files.close(fd)


@pytest.mark.pure
@pytest.mark.parametrize("name", ["fork", "pread", "O_DIRECTORY"])
def test_what_a_node_cannot_do_without_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    systems.check_nodes()
    monkeypatch.delattr(os, name)
    with pytest.raises(ConfigurationError, match=f"has no {name}: run the nodes elsewhere"):
        systems.check_nodes()


def test_nothing_is_called_in_children_where_nothing_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    monkeypatch.delattr(os, "register_at_fork")
    systems.call_in_children(lambda: called.append(None))
    assert called == []
