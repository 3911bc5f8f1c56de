"""What the figures depend on: the machine, the disk, the versions."""

from __future__ import annotations

import os
import platform
import socket
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

_PROBES = 200


def describe(directory: Path) -> dict[str, Any]:
    """The machine as it is now, and the disk that holds `directory`."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "cpus": os.cpu_count(),
        "cpu_model": _first(Path("/proc/cpuinfo"), "model name"),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "gunicorn": version("gunicorn"),
        "flask": version("flask"),
        "filesystem": _filesystem(directory),
        **fsync_latency(directory),
        "wakeup_p50_ms": (wakeups := wakeup_latencies())[_PROBES // 2],
        "wakeup_p99_ms": wakeups[_PROBES * 99 // 100],
    }


def fsync_latency(directory: Path) -> dict[str, float]:
    """Of writing 4 KiB into a preallocated file, as logs do, until the disk has it; in milliseconds."""
    path = directory / "fsync-probe"
    times = []
    with path.open("wb") as file:
        file.write(bytes(4096 * _PROBES))
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        for _ in range(_PROBES):
            file.write(bytes(4096))
            file.flush()
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    path.unlink()
    times.sort()
    return {"fsync_p50_ms": 1000 * times[_PROBES // 2], "fsync_p99_ms": 1000 * times[_PROBES * 99 // 100]}


def wakeup_latencies() -> list[float]:
    """Of waking another process that waits on a socket and being woken by it, half of each; sorted, in milliseconds.

    On an idle machine some 0.02; where others compete for the processors it may be
    a whole tick of the scheduler, and every figure that involves waiting grows.
    """
    here, there = socket.socketpair()
    child = os.fork()
    if child == 0:
        here.close()
        while there.recv(1):
            there.send(b".")
        os._exit(0)
    there.close()
    times = []
    for _ in range(_PROBES):
        began = time.perf_counter()
        here.send(b".")
        here.recv(1)
        times.append(1000 * (time.perf_counter() - began) / 2)
        time.sleep(0.001)
    here.close()
    os.waitpid(child, 0)
    return sorted(times)


def busy_cpu_seconds() -> float:
    """What all processors of the machine have worked, for anybody, since it started."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _first(path: Path, name: str) -> str:
    lines = path.read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "unknown")


def _filesystem(directory: Path) -> str:
    """Type of the file system that holds `directory`; on tmpfs, for one, fsync costs nothing and means nothing."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, of, *_ = line.split()
        if directory.resolve().is_relative_to(mount) and len(mount) >= len(best):
            best, kind = mount, of
    return kind
