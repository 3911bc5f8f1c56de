"""What happens beside the steady state: restarting, snapshots, dead and hung peers, catching up.

Each case returns the title and the rows of a table.  Restarting and snapshots are
about raftsvc alone, since they need to choose when it compacts its log; the other
cases run on every chosen system.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib import import_module
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import locking as locks
from benchmarks.load import Spec
from benchmarks.processes import Process, wait_until
from benchmarks.systems import SYSTEMS, System, Web
from benchmarks.systems.redis import RedisSystem
from benchmarks.watching import rows as watches

Say = Callable[[str], None]
Table = tuple[str, list[dict[str, Any]]]

_OURS = ("raftsvc", "raftsvc-pure")
_NEVER = {"snapshot_entries": 10**9, "snapshot_bytes": 2**50}
"""Options of raftsvc: keep the whole log."""


def _system(name: str, nodes: int, home: Path, **options: Any) -> System:
    return SYSTEMS[name](nodes, home, **(options if name in _OURS else {}))


def restart(systems: list[str], home: Path, quick: bool, say: Say) -> Table:
    """Kill a lone node whose log has many entries and no snapshot; how long until all are applied again?"""
    rows: list[dict[str, Any]] = []
    for name in _OURS:
        if name in systems:
            _restart_one(name, rows, home, quick, say)
    return "Restart: a lone node that was killed, from its start until its whole log is applied", rows


def _restart_one(name: str, rows: list[dict[str, Any]], home: Path, quick: bool, say: Say) -> None:
    with _system(name, 1, home, **_NEVER) as system:
        (web,) = system.webs
        for entries in (10_000, 30_000) if quick else (10_000, 100_000, 1_000_000):
            web.post("/load/start", **vars(Spec("restart", "write", 64)))
            wait_until(lambda: web.status()["last_index"] >= entries, f"{entries} entries are written", 900)  # noqa: B023
            web.stop_load(0.0, time.monotonic())
            web.process.kill()
            web.process.start()
            wait_until(web.is_up, "the node answers")
            wait_until(lambda: web.status()["opened_seconds"] is not None, "the log is applied", 600)
            status = web.status()
            seconds = status["opened_seconds"]
            rows.append(
                {
                    "system": name,
                    "entries": status["last_index"],
                    "log MB": status["log_bytes"] / 2**20,
                    "seconds": seconds,
                    "entries/s": status["last_index"] / seconds,
                    "peak MB": web.process.peak_bytes() / 2**20,
                }
            )
            say(f"restart: {rows[-1]}")


def snapshot(systems: list[str], home: Path, quick: bool, say: Say) -> Table:
    """Eight writers at a leader that takes snapshots of many keys, and at one that takes none."""
    rows = []
    for keys in (10_000, 30_000) if quick else (10_000, 100_000, 1_000_000):
        for name, entries in product((name for name in _OURS if name in systems), (None, 4_000)):
            options = _NEVER | ({"snapshot_entries": entries} if entries else {})
            with _system(name, 3, home, **options) as system:
                leader = system.leader()
                for first in range(0, keys, 100_000):
                    leader.call("fill", first=first, count=min(100_000, keys - first))
                began = leader.status()["snapshot_index"]
                leader.process.forget_peak()
                seen = leader.run(Spec("snapshot", "write", 8), 1.0, 10.0 if quick else 20.0)
                rows.append(
                    {
                        "system": name,
                        "keys": keys,
                        "snapshot every": f"{entries:,} entries" if entries else "never",
                        "snapshots": (leader.status()["snapshot_index"] - began) // entries if entries else 0,
                        "ops/s": seen["ops_per_second"],
                        "p99 ms": seen["p99_ms"],
                        "longest wait ms": seen["max_ms"],
                        "errors": sum(seen["errors"].values()),
                        "peak MB": leader.process.peak_bytes() / 2**20,
                    }
                )
                say(f"snapshot: {rows[-1]}")
    return "Snapshots: what 8 writers notice of them", rows


def peers(systems: list[str], home: Path, quick: bool, say: Say) -> Table:
    """One follower of three hangs (SIGSTOP), then is dead: what do writers at the leader notice, from that moment?"""
    rows: list[dict[str, Any]] = []
    seconds = 3.0 if quick else 10.0
    for name in systems:
        with _system(name, 3, home) as system:
            leader, follower = system.leader(), system.followers()[0]
            healthy: dict[str, Any] = {}
            for state in ("healthy", "one hung", "one dead"):
                if state == "one hung":
                    system.hang(follower)
                elif state == "one dead":
                    system.resume(follower)
                    wait_until(lambda: _lag(leader, follower) == 0, "the follower has caught up")  # noqa: B023
                    system.node_process(follower).kill()
                seen = leader.run(Spec(state, "write", 8), 1.0 if state == "healthy" else 0.0, seconds)
                healthy = healthy or seen
                rows.append(
                    {
                        "system": name,
                        "follower": state,
                        "ops/s": seen["ops_per_second"],
                        "p99 ms": seen["p99_ms"],
                        "max ms": seen["max_ms"],
                        "errors": sum(seen["errors"].values()),
                        "ops/s, of healthy": seen["ops_per_second"] / healthy["ops_per_second"],
                        "p99, of healthy": seen["p99_ms"] / healthy["p99_ms"],
                    }
                )
                say(f"peers: {rows[-1]}")
    return "A follower that hangs or is dead, of three; 8 writers", rows


def catch_up(systems: list[str], home: Path, quick: bool, say: Say) -> Table:
    """A follower was stopped for a while and goes on: how fast does it gain, and what does that cost the leader?

    Medians of several times on one cluster, each compared with the leader's rate just before
    and just after; and so is its rate beside a process that has nothing to do with it, and
    computes on what processors nobody else wants: so much is lost to whatever shares the machine.
    """
    rows = []
    for name in systems:
        rounds = []
        with _system(name, 3, home, **_NEVER) as system:
            for _ in range(1 if quick else 5):
                rounds.append(_catch_up_once(system, home, 2.0 if quick else 10.0))
                say(f"catch-up: {name} {rounds[-1]}")
        rows.append({"system": name, **{key: median([one[key] for one in rounds]) for key in rounds[0]}})
    return "Catching up: a follower that was stopped, while 8 threads go on writing at the leader", rows


_COMPUTE = """
import os
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while True:
    [bytes(100 + size) for size in range(1000)]
"""


def _catch_up_once(system: System, home: Path, lag_seconds: float) -> dict[str, float]:
    leader, follower = system.leader(), system.followers()[0]
    rate: Callable[[str], float] = lambda label: leader.run(Spec(label, "write", 8), 1.0, 3.0)["ops_per_second"]  # noqa: E731
    stranger = Process("a stranger", [sys.executable, "-c", _COMPUTE], home / "stranger.log")
    try:
        beside_a_stranger = rate("stranger")
        stranger.check()
    finally:
        stranger.kill()
    before = rate("before")
    system.hang(follower)
    leader.run(Spec("lag", "write", 64), 0.0, lag_seconds)
    leader.post("/load/start", **vars(Spec("on", "write", 8)))
    hung_at = time.monotonic() + 0.5
    time.sleep(2.5)
    goal = leader.status()["applied"]
    system.resume(follower)
    resumed_at = time.monotonic()
    begun_with = follower.status()["applied"]
    # Not too often, for the answer takes time of processors that are wanted.
    wait_until(lambda: follower.status()["applied"] >= goal, "the follower has caught up", 300, 0.1)
    caught_up_at, gained = time.monotonic(), follower.status()["applied"] - begun_with
    wait_until(lambda: _lag(leader, follower) < 500, "the follower keeps pace", 300)
    buckets = leader.stop_load(hung_at, caught_up_at)["buckets"]
    while_it_gained = _rate(buckets, resumed_at, caught_up_at)
    healthy = (before + rate("after")) / 2
    return {
        "lag, entries": goal - begun_with,
        "seconds": caught_up_at - resumed_at,
        "entries/s": gained / (caught_up_at - resumed_at),
        "leader ops/s, healthy": healthy,
        "while it hung": _rate(buckets, hung_at, resumed_at),
        "while it caught up": while_it_gained,
        "of healthy": while_it_gained / healthy,
        "beside a stranger, of healthy": beside_a_stranger / healthy,
    }


def counting(systems: list[str], home: Path, quick: bool, say: Say) -> Table:
    """What few callers have done at the leader: one number raised by many, 100 writes a call, 1,000 on their way.

    Medians of rounds that take the systems in turn.
    """
    seconds = 1.0 if quick else 3.0
    rates: dict[tuple[str, str], list[float]] = {}
    lost: dict[tuple[str, str], int] = {}
    for number in range(1 if quick else 5):
        for name in systems:
            with _system(name, 3, home) as system:
                leader = system.leader()
                for what, call, arguments in _counting_cases(leader):
                    seen = leader.call(call, seconds=seconds, **arguments)
                    rates.setdefault((what, name), []).append(seen["per_second"])
                    lost[what, name] = lost.get((what, name), 0) + seen["lost"]
                    say(f"counting: round {number + 1}  {name:16} {what:40} {seen}")
    rows: list[dict[str, Any]] = [
        {"what": what, "system": name, "ops/s": median(found), "least": min(found), "most": max(found)}
        | {"raftsvc is": median(rates[what, "raftsvc"]) / median(found) if (what, "raftsvc") in rates else ""}
        | {"lost": lost[what, name]}
        for what in dict.fromkeys(what for what, _ in rates)
        for name in systems
        if (found := rates.get((what, name)))
    ]
    return "Much done by few callers", rows


def _counting_cases(leader: Web) -> list[tuple[str, str, dict[str, Any]]]:
    """What, the call of the back end, and its arguments."""
    ways: list[str] = leader.call("ways")
    cases: list[tuple[str, str, dict[str, Any]]] = []
    for threads in (1, 8, 64):
        for way in ways:
            # One way of each system is compared; what a system has besides stands by itself.
            what = f"one number, callers: {threads}" + (f", by {way}" if way != ways[0] else "")
            cases.append((what, "count", {"way": way, "threads": threads}))
    return [*cases, ("100 writes a call", "batches", {}), ("1,000 writes on their way", "in_flight", {})]


def watching(systems: list[str], home: Path, quick: bool, say: Say) -> Table:
    """What watchers of the key-value store cost whoever applies; raftsvc alone, without a cluster."""
    rows = watches(quick)
    say(f"watching: {rows}")
    return "Watchers: what they cost whoever applies", rows


def locking(systems: list[str], home: Path, quick: bool, say: Say) -> Table:
    """Locks that are acquired and released, beside etcd's and redis-py's own."""
    kinds = {name: SYSTEMS[name] for name in systems if hasattr(_backend_of(SYSTEMS[name]), "lock")}
    kinds |= {RedisSystem.name: RedisSystem}
    made = {name: locks.make(kind, 3, home) for name, kind in kinds.items()}
    rows = locks.rows(made, 1 if quick else 5, 1.0 if quick else 3.0, say)
    return "Locks, acquired and released; Redis is one server", rows


def _backend_of(kind: type[System]) -> object:
    module, _, name = kind.backend.partition(":")
    return getattr(import_module(module), name)


def _lag(leader: Web, follower: Web) -> int:
    behind: int = leader.status()["applied"] - follower.status()["applied"]
    return behind


def _rate(buckets: list[list[float]], begin: float, end: float) -> float:
    """Operations a second between two moments."""
    return sum(count for at, count, _ in buckets if begin <= at < end) / (end - begin)


CASES: dict[str, Callable[[list[str], Path, bool, Say], Table]] = {
    "restart": restart,
    "snapshot": snapshot,
    "peers": peers,
    "catch-up": catch_up,
    "counting": counting,
    "watching": watching,
    "locking": locking,
}
