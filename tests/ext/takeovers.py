"""After how many seconds another scheduler acts, and whether any run was begun twice: by processes, of which one ends.

    python -m tests.ext.takeovers apscheduler|beat [times]

Three nodes with a scheduler each, on this machine.  The one that acts is killed, stopped in order, or frozen by SIGSTOP
until another acts; counted is up to what that one's log says.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from raftsvc.kv.client import connect
from tests.attached.hosts import ROOT, eventually, free_port
from tests.ext.counting import environ_of

ACTS = "acts from now on"
WAYS = {"killed": signal.SIGKILL, "stopped in order": signal.SIGTERM, "frozen": signal.SIGSTOP}


class Place:
    """A node with a scheduler."""

    def __init__(self, kind: str, folder: Path, addr: str, addrs: list[str]) -> None:
        self.directory = folder / "data"
        self.log = folder / "log"
        self.queue = folder.parent / "queue"
        for path in (folder, self.queue):
            path.mkdir(exist_ok=True)
        self._kind = kind
        self._environ = {
            **os.environ,
            **environ_of(addr, addrs),
            "RAFTSVC_DIR": str(self.directory),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'examples'}",
            "QUEUE": str(self.queue),
        }

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.ext.takeovers", "process"]
        if self._kind == "beat":
            command = [sys.executable, "-m", "celery", "--app", "beats", "beat", "--scheduler", "raftsvc"]
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(command, env=self._environ, cwd=self.queue, stdout=log, stderr=log)

    def count(self, text: str = ACTS) -> int:
        return self.log.read_text(errors="replace").count(text)

    def end(self) -> None:
        self.popen.send_signal(signal.SIGCONT)
        self.popen.kill()
        self.popen.wait(30)


def act_in_process() -> None:
    """What a process of APScheduler does."""
    from apscheduler.schedulers.background import BackgroundScheduler

    from raftsvc.ext.apscheduler import OncePerCluster
    from raftsvc.ext.nodes import one_node

    store = one_node.store()
    scheduler = BackgroundScheduler(timezone="UTC")

    @scheduler.scheduled_job("interval", seconds=1, start_date="2026-01-01", id="tick", misfire_grace_time=3600)
    def tick() -> None:
        store.incr("ticks")

    ends = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ends.set())
    once = OncePerCluster(scheduler, store)
    once.start()
    while not ends.wait(1.0):
        pass
    once.shutdown()
    store.service.stop()


def measure(places: list[Place], way: str) -> float:
    """Seconds until another acts; what ended is started again."""
    eventually(lambda: sum(place.count() for place in places), "one acts")
    acting = max(places, key=lambda place: place.log.read_text(errors="replace").rfind(ACTS) >= 0 and last_at(place))
    others = [place for place in places if place is not acting]
    before = sum(place.count() for place in others)
    began = time.monotonic()
    acting.popen.send_signal(WAYS[way])
    eventually(lambda: sum(place.count() for place in others) > before, f"another acts after one was {way}")
    took = time.monotonic() - began
    acts[acting] = 0.0
    for place in others:
        if place.count() > seen.get(place, 0):
            acts[place] = time.monotonic()
    if way == "frozen":
        acting.popen.send_signal(signal.SIGCONT)
    else:
        acting.popen.wait(60)
        acting.start()
    for place in places:
        seen[place] = place.count()
    time.sleep(5)  # it is a member again, and what was frozen knows
    return took


acts: dict[Place, float] = {}
seen: dict[Place, int] = {}


def last_at(place: Place) -> float:
    return acts.get(place, 0.0)


def main(kind: str, times: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        addrs = [f"127.0.0.1:{free_port()}" for _ in range(3)]
        places = [Place(kind, Path(folder) / str(number), addr, addrs) for number, addr in enumerate(addrs)]
        try:
            for place in places:
                place.start()
            eventually(lambda: any(place.log.exists() and place.count() for place in places), "one acts")
            acts.update({place: time.monotonic() for place in places if place.count()})
            seen.update({place: place.count() for place in places})
            time.sleep(3)
            for way in WAYS:
                took = sorted(measure(places, way) for _ in range(times))
                say(f"{kind}, {way}: median {statistics.median(took):.1f} s, worst {took[-1]:.1f} s, of {times}")
            tell(kind, places)
        finally:
            for place in places:
                place.end()


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def tell(kind: str, places: list[Place]) -> None:
    """How many runs were begun, and how many were claimed, or written down."""
    store = connect(str(places[0].directory))
    if kind == "beat":
        entry = store.get_json("celery-beat/beats/tick")
        sent = len(list(places[0].queue.glob("*.msg")))
        say(f"beat: {entry['total_run_count']} runs were written down, {sent} were sent")
    else:
        ticks = store.incr("ticks", 0)
        say(f"apscheduler: {len(store.list('apscheduler/jobs/tick/'))} runs were claimed, {ticks} were begun")
    store.service.close()  # type: ignore[attr-defined]


if __name__ == "__main__":
    if sys.argv[1] == "process":
        act_in_process()
    else:
        main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10)
