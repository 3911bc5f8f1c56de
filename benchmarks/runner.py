"""Rounds of cases: each round takes every system in turn, and each case is checked after it was timed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.load import Spec
from benchmarks.processes import Failure, wait_until
from benchmarks.systems import SYSTEMS, System

Row = dict[str, Any]
"""One case of one system in one round."""


@dataclass(frozen=True)
class Case:
    """`group` is what --only names; `via` is leader, follower, or http for requests to all web processes."""

    group: str
    kind: str
    threads: int
    value_bytes: int = 100
    via: str = "leader"
    nodes: int = 3


def cases(groups: Iterable[str], threads: tuple[int, ...]) -> list[Case]:
    """Those of the named groups, in order; groups that are not about threads take fewer of them."""
    some = tuple(n for n in threads if n in (8, 64)) or threads[-1:]
    of_group: dict[str, list[Case]] = {
        "write": [Case("write", "write", n) for n in threads],
        "read": [Case("read", "read", n) for n in threads],
        "mixed": [Case("mixed", "mixed", n) for n in threads],
        "sizes": [Case("sizes", "write", n, size) for n in some for size in (10, 1024, 64 * 1024)],
        "follower": [Case("follower", kind, n, via="follower") for kind in ("write", "read") for n in some],
        "nodes": [Case("nodes", kind, n, nodes=size) for size in (5, 7) for kind in ("write", "read") for n in some],
        "http": [Case("http", kind, n, via="http") for kind in ("write", "read") for n in some],
    }
    return [case for group in groups for case in of_group[group]]


GROUPS = ("write", "read", "mixed", "sizes", "follower", "nodes", "http")


def run_rounds(
    chosen: list[Case],
    systems: list[str],
    rounds: int,
    warmup_seconds: float,
    seconds: float,
    home: Path,
    say: Callable[[str], None],
) -> Iterable[Row]:
    """Yield a row for each case of each system in each round; one that fails is told, and left out."""
    for round_number in range(1, rounds + 1):
        for nodes in sorted({case.nodes for case in chosen}):
            for name in systems:
                try:
                    its_cases = [case for case in chosen if case.nodes == nodes and case.kind in SYSTEMS[name].kinds]
                    if not its_cases:
                        continue
                    with SYSTEMS[name](nodes, home) as system:
                        for case in its_cases:
                            row = run_case(system, case, round_number, warmup_seconds, seconds)
                            say(_line(row))
                            yield row
                except Failure as failure:
                    say(f"round {round_number}: {name} with {nodes} nodes FAILED: {failure}")


def run_case(system: System, case: Case, round_number: int, warmup_seconds: float, seconds: float) -> Row:
    spec = Spec(label_of(case), case.kind, case.threads, case.value_bytes)
    for process in system.processes():
        process.forget_peak()
    fsyncs, cpu = system.fsyncs(), system.cpu_seconds()
    began, busy, own = time.monotonic(), environment.busy_cpu_seconds(), sum(os.times()[:4])
    if case.via == "http":
        seen = _run_http(system, spec, warmup_seconds, seconds)
    else:
        web = system.leader() if case.via == "leader" else system.followers()[0]
        seen = web.run(spec, warmup_seconds, seconds)
    used = {name: seconds - cpu[name] for name, seconds in system.cpu_seconds().items()}
    # The runner, and the load generator that it waited for, are not others.
    busy = environment.busy_cpu_seconds() - busy - sum(used.values()) - (sum(os.times()[:4]) - own)
    operations = max(1, seen["all_operations"])
    peaks = system.peak_bytes()
    of_servers = [peaks[process.name] for process in system.servers]
    of_webs = [peaks[web.process.name] for web in system.webs]
    return {
        "round": round_number,
        "system": system.name,
        "case": asdict(case),
        **{name: seen[name] for name in ("ops_per_second", "p50_ms", "p99_ms", "max_ms", "errors")},
        # Counted from before the warm-up until all is idle again, and so divided by all operations.
        "fsyncs_per_op": (system.fsyncs() - fsyncs) / operations,
        "cpu_seconds_per_kop": 1000 * sum(used.values()) / operations,
        "cpu_seconds": used,
        "cpus_of_others": max(0.0, busy / (time.monotonic() - began)),
        "peak_bytes": peaks,
        "peak_node_mb": max(of_servers or of_webs) / 2**20,
        "peak_web_mb": max(of_webs) / 2**20,
        **check(system, seen),
    }


def label_of(case: Case) -> str:
    """What its keys begin with: they are used again in the next round, not in the next case."""
    return f"{case.group}-{case.kind}-{case.threads}-{case.value_bytes}-{case.via}"


def check(system: System, seen: dict[str, Any]) -> Row:
    """Compare the counters on every node with the increments that were acknowledged."""
    bounds: dict[str, list[int]] = seen["counters"]
    counters: list[dict[str, int]] = []

    def is_right() -> bool:
        counters[:] = [web.post("/local", keys=list(bounds)) for web in system.webs]
        return all(low <= node[key] <= high for node in counters for key, (low, high) in bounds.items())

    try:
        wait_until(is_right, "every node has what was acknowledged", 15)  # followers apply a moment later
        verdict = "ok"
    except Failure:
        verdict = "WRONG"
    return {
        "check": verdict,
        "acknowledged": sum(low for low, _ in bounds.values()),
        "counted": [sum(node.values()) for node in counters],
    }


def _run_http(system: System, spec: Spec, warmup_seconds: float, seconds: float) -> dict[str, Any]:
    order = {
        "urls": [web.url for web in system.webs],
        "spec": vars(spec),
        "warmup_seconds": warmup_seconds,
        "seconds": seconds,
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.http_load", json.dumps(order)],
        capture_output=True,
        text=True,
        timeout=warmup_seconds + seconds + 120,
    )
    if done.returncode:
        raise Failure(f"the HTTP load generator failed: {done.stderr[-2000:]}")
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def _line(row: Row) -> str:
    case = row["case"]
    return (
        f"{time.strftime('%H:%M:%S')}  round {row['round']}  {row['system']:24}{case['kind']:6}"
        f"{case['threads']:4} threads {case['value_bytes']:6} B  {case['via']:8} of {case['nodes']}:"
        f"{row['ops_per_second']:9.0f}/s  p99 {row['p99_ms']:7.2f} ms  check {row['check']}"
        + (f"  ERRORS {row['errors']}" if row["errors"] else "")
    )
