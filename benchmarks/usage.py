"""What processes used: processor time, wake-ups and system calls, seen from outside.

Processor time, wake-ups and the calls of read and write are numbers that the kernel
keeps anyway, so reading them costs the processes nothing.  It keeps none of system
calls: to count these, something has to look at each.  `perf` makes them little
slower, `strace` many times, so neither counts while anything is timed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import Failure, Process, wait_until

_CLOCK_OF_PROCESS = 2
"""CPUCLOCK_SCHED of the kernel, as clock_getcpuclockid(3) puts it into the number of a clock."""


@dataclass(frozen=True)
class Usage:
    """Of some processes together, since they started.

    wake-ups are context switches: a thread that waited and runs again (voluntary), or
    that had to make room for another (involuntary).  Those of threads that have ended are not in it.
    """

    cpu_seconds: float = 0.0
    voluntary: int = 0
    involuntary: int = 0
    file_calls: int = 0
    """System calls of the kind of read and write, on files, pipes and the like, not those for sockets."""

    def plus(self, other: Usage) -> Usage:
        return Usage(
            self.cpu_seconds + other.cpu_seconds,
            self.voluntary + other.voluntary,
            self.involuntary + other.involuntary,
            self.file_calls + other.file_calls,
        )

    def since(self, earlier: Usage) -> Usage:
        return Usage(
            self.cpu_seconds - earlier.cpu_seconds,
            self.voluntary - earlier.voluntary,
            self.involuntary - earlier.involuntary,
            self.file_calls - earlier.file_calls,
        )


def usage(pids: Iterable[int]) -> Usage:
    cpu_seconds, voluntary, involuntary, file_calls = 0.0, 0, 0, 0
    for pid in pids:
        try:
            # In nanoseconds, where /proc/<pid>/stat has ticks of 10 ms.
            cpu_seconds += time.clock_gettime((~pid << 3) | _CLOCK_OF_PROCESS)
            io = _fields(Path(f"/proc/{pid}/io"))
            tasks = os.listdir(f"/proc/{pid}/task")
        except OSError as error:
            raise Failure(f"process {pid} is gone, or not ours to look at: {error}") from error
        file_calls += io["syscr"] + io["syscw"]
        for task in tasks:
            with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                status = _fields(Path(f"/proc/{pid}/task/{task}/status"))
                voluntary += status["voluntary_ctxt_switches"]
                involuntary += status["nonvoluntary_ctxt_switches"]
    return Usage(cpu_seconds, voluntary, involuntary, file_calls)


def _fields(path: Path) -> dict[str, int]:
    """The lines `name: number` of a file in /proc."""
    lines = (line.partition(":") for line in path.read_text().splitlines())
    return {name: int(value) for name, _, value in lines if value.strip().isdigit()}


@dataclass(frozen=True)
class Counted:
    """System calls between two moments of the monotonic clock."""

    calls: int
    begin: float
    end: float


CountCalls = Callable[[Sequence[int], float], Counted]
"""Count the system calls of these processes, and of every thread they start, for some seconds."""


def operations_between(buckets: Iterable[Sequence[float]], bucket_seconds: float, begin: float, end: float) -> float:
    """How many ended between two moments; of a bucket that is partly in between, as large a part."""
    total = 0.0
    for at, count, *_ in buckets:
        overlap = min(end, at + bucket_seconds) - max(begin, at)
        total += count * max(0.0, overlap) / bucket_seconds
    return total


def count_by_perf(pids: Sequence[int], seconds: float) -> Counted:
    command = ["perf", "stat", "--event", "raw_syscalls:sys_enter", "--no-big-num", "--pid", ",".join(map(str, pids))]
    done = subprocess.run(
        [*command, "--", "sleep", str(seconds)],
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        env={**os.environ, "LC_ALL": "C"},
    )
    end = time.monotonic()
    if done.returncode:
        raise Failure(f"perf failed: {done.stderr.strip()[-500:]}")
    calls, elapsed = parse_perf(done.stderr)
    # To attach takes long, to print what was counted does not.
    return Counted(calls, end - elapsed, end)


def parse_perf(text: str) -> tuple[int, float]:
    """How many calls, in how many seconds."""
    calls = re.search(r"^\s*(\d+)\s+raw_syscalls:sys_enter", text, re.MULTILINE)
    elapsed = re.search(r"^\s*(\d+\.\d+) seconds time elapsed", text, re.MULTILINE)
    if not calls or not elapsed:
        raise Failure(f"perf did not count: {text.strip()[-500:]}")
    return int(calls[1]), float(elapsed[1])


def count_by_strace(pids: Sequence[int], seconds: float) -> Counted:
    options = [option for pid in pids for option in ("-p", str(pid))]
    with subprocess.Popen(
        ["strace", "-f", "-c", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
    ) as strace:
        try:
            wait_until(lambda: strace.poll() is not None or _are_traced(pids), "strace is attached", 30)
            begin = time.monotonic()
            time.sleep(seconds)
            end = time.monotonic()
        finally:
            strace.send_signal(signal.SIGINT)  # it detaches
            _, text = strace.communicate(timeout=30)
    return Counted(parse_strace(text), begin, end)


def parse_strace(text: str) -> int:
    """How many calls; the line is `100.00 <seconds> <usecs/call> <calls> [<errors>] total`."""
    for line in reversed(text.splitlines()):
        if line.endswith(" total"):
            return int(line.split()[3])
    raise Failure(f"strace did not count: {text.strip()[-500:]}")


def _are_traced(pids: Iterable[int]) -> bool:
    """Whether each of their threads has a tracer."""
    return all(
        _fields(Path(f"/proc/{pid}/task/{task}/status"))["TracerPid"]
        for pid in pids
        for task in os.listdir(f"/proc/{pid}/task")
    )


COUNTERS: dict[str, CountCalls] = {"perf": count_by_perf, "strace": count_by_strace}
"""The better one first."""
SLOWED = {"strace": ", which slows all down, so that other batches form: trust only large differences"}
"""What the report says of it."""


def choose_counter(home: Path) -> tuple[CountCalls | None, str]:
    """The first that may count the calls of another process here and its name, or None and why."""
    failures = []
    sleeper = "import time\nwhile True: time.sleep(0.001)"
    for name, count in COUNTERS.items():
        other = Process("a process to try with", [sys.executable, "-c", sleeper], home / "sleeper.log")
        try:
            wait_until(lambda: _starts(other), "a process that sleeps has started")  # noqa: B023
            if count(other.pids(), 0.2).calls:
                return count, name
            failures.append(f"{name} counted nothing")
        except FileNotFoundError:
            failures.append(f"{name} is not installed")
        except (Failure, subprocess.TimeoutExpired) as failure:
            failures.append(str(failure))
        finally:
            other.kill()
    return None, "; ".join(failures)


def _starts(process: Process) -> bool:
    process.check()
    return bool(process.pids())


def per_operation(used: Usage, operations: float) -> dict[str, Any]:
    """The columns of a row that `used` makes."""
    operations = max(1.0, operations)
    return {
        "cpu_ms_per_op": 1000 * used.cpu_seconds / operations,
        "wakeups_per_op": (used.voluntary + used.involuntary) / operations,
        "involuntary_per_op": used.involuntary / operations,
        "file_calls_per_op": used.file_calls / operations,
    }
