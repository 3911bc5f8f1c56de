"""A resource that many processes use, one at a time by a lock, and jobs; what they say of it, and the judgement.

What every process tells the run comes by a Unix socket, which is there in whatever network the process has.
"""

from __future__ import annotations

import json
import os
import random
import socket
import socketserver
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import raftsvc
from raftsvc.kv import KeyValue, KeyValueState, LostError
from raftsvc.recipes import current_run

NAMES = ("a", "b")
TTL = 2.0
_BEAT_SECONDS = 0.1


# -- in each process


class Notes:
    """The way to the run; what cannot be told is dropped, for nobody acts upon it."""

    def __init__(self, path: str) -> None:
        self._path = path

    def tell(self, *what: Any) -> bool:
        """Whether it was taken, and accepted."""
        with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10.0)
            connection.connect(self._path)
            connection.sendall(json.dumps(what).encode() + b"\n")
            return connection.recv(1) == b"y"
        return False


def take_part(store: KeyValue, state: KeyValueState, notes: Notes) -> None:
    """Contend for the locks, and run the job, from now on, in the background."""
    for name in NAMES:
        threading.Thread(target=_contend, args=(store, state, name, notes), name=f"chaos-{name}", daemon=True).start()
    jobs = store.jobs(ttl=TTL, data=str(os.getpid()).encode())

    @jobs.every(1.0, name="tick", misfire_grace=None, coalesce=False, max_instances=9)
    def tick() -> None:
        run = current_run()
        assert run is not None
        notes.tell("run", round(run.slot.timestamp()), run.attempt, os.getpid())

    jobs.start()


def _contend(store: KeyValue, state: KeyValueState, name: str, notes: Notes) -> None:
    chance = random.Random(f"{os.getpid()} {name}")
    while True:
        try:
            with store.lock(name, ttl=TTL) as lock:
                began = time.monotonic()
                # The entry by which it was asked for; 0: that was over before this was looked at.
                asked = next((claim.placed for claim in state.claims(f"lock:{name}") if claim.fence == lock.fence), 0)
                for _ in range(chance.randrange(1, 10)):
                    now = time.monotonic()
                    if not lock.owned():
                        break
                    notes.tell("use", name, lock.fence, os.getpid(), began, now, asked)
                    time.sleep(_BEAT_SECONDS)
        except (raftsvc.StoppedError, raftsvc.ForkedError):
            return
        except (raftsvc.RaftError, LostError):
            time.sleep(_BEAT_SECONDS)


# -- in the run


class Witness:
    """Hears all of them, and is the resource, which accepts nobody whose fence is lower than one that it saw."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts: Counter[str] = Counter()
        self.longest_pause = 0.0
        self._lock = threading.Lock()  # guards all but the server
        self._fences: dict[str, int] = {}
        self._holders: dict[tuple[str, int], tuple[int, float, float]] = {}
        self._asked: dict[tuple[str, int], int] = {}
        self._runs: dict[tuple[int, int], int] = {}
        self._used_at = time.monotonic()
        self._complaints: list[str] = []
        self._server = socketserver.ThreadingUnixStreamServer(str(path), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="chaos-witness", daemon=True).start()

    def _handler(self) -> type[socketserver.StreamRequestHandler]:
        hears: Mapping[str, Callable[..., bool]] = {"use": self._use, "run": self._run}
        lock = self._lock

        class Handler(socketserver.StreamRequestHandler):
            timeout = 10.0

            def handle(self) -> None:
                with suppress(OSError, ValueError):
                    kind, *what = json.loads(self.rfile.readline())
                    with lock:
                        is_accepted = hears[kind](*what)
                    self.wfile.write(b"y" if is_accepted else b"n")

        return Handler

    def _use(self, name: str, fence: int, pid: int, began: float, until: float, asked: int) -> bool:
        """By a process that had the lock from `began` to `until`, when it looked; `asked`: the entry by which."""
        if asked:
            self._asked[name, fence] = asked
        known = self._holders.setdefault((name, fence), (pid, began, until))
        if known[:2] != (pid, began):
            self._complaints.append(f"lock {name!r} was held by {known[0]} and {pid} with one fence, {fence}")
        self._holders[name, fence] = pid, began, max(known[2], until)
        is_accepted = fence >= self._fences.get(name, 0)
        self.counts["uses accepted" if is_accepted else "uses refused by their fence"] += 1
        if is_accepted:
            self._fences[name] = fence
            now = time.monotonic()
            self.longest_pause = max(self.longest_pause, now - self._used_at)
            self._used_at = now
        return is_accepted

    def _run(self, slot: int, attempt: int, pid: int) -> bool:
        if (slot, attempt) in self._runs:
            self._complaints.append(f"run {slot} was begun by {self._runs[slot, attempt]} and by {pid}")
        self._runs[slot, attempt] = pid
        return True

    def take_pause(self) -> float:
        """The longest time in which nobody used the resource, since the last call."""
        with self._lock:
            pause = max(self.longest_pause, time.monotonic() - self._used_at)
            self.longest_pause = 0.0
            return pause

    def seen(self) -> dict[str, int]:
        """How often a lock was held, by how many of whom it is known when they asked, and a run begun, by now."""
        with self._lock:
            return {
                "locks held": len(self._holders),
                "turns kept": len(self._asked),
                "runs begun": len(self._runs),
            }

    def judge(self) -> list[str]:
        """What must not have happened, and did."""
        with self._lock:
            found = list(self._complaints)
            holders: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
            for (name, fence), (_, began, until) in sorted(self._holders.items()):
                holders[name].append((fence, began, until))
            for name, held in holders.items():
                for (fence, _, until), (later, began, _) in pairwise(held):
                    if until > began:
                        found.append(
                            f"lock {name!r} was held with fence {fence} until {until}, with {later} from {began}"
                        )
                in_turn = [(fence, self._asked[name, fence]) for fence, _, _ in held if (name, fence) in self._asked]
                for (_, asked), (fence, earlier) in pairwise(in_turn):
                    if earlier < asked:
                        found.append(f"lock {name!r} was granted at {fence} to who asked at {earlier}, after {asked}")
            self.counts.update(
                {"locks held": len(self._holders), "turns kept": len(self._asked), "runs begun": len(self._runs)}
            )
            self.counts["runs never begun"] = self._gaps()
            return found

    def _gaps(self) -> int:
        """Seconds for which no run was begun: whoever claimed it died first."""
        slots = {slot for slot, _ in self._runs}
        return max(slots) - min(slots) + 1 - len(slots) if slots else 0

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
