"""Three hosts of two processes run a job every second, under faults, for as long as one likes.

    python -m tests.attached.jobs_soak --seconds 600

Processes are killed and started anew, owners of the nodes among them, stopped for longer than their leases last,
leadership is handed over, and the clocks of a host are an hour off.  Each run is begun once and not before its time,
none is left out, and what died is listed so.  Exit status 1 if that is not so.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.attached.remote import Remote
from tests.attached.test_asked import Site

OPTIONS: dict[str, Any] = {"misfire_grace": None, "coalesce": False, "max_instances": 9, "retry": 1}
EARLY_SECONDS = 2.5
"""A process takes its own clock at its word if that is 2 s off."""


class Soak:
    """The site, and what was seen of it."""

    def __init__(self, path: Path, seed: int) -> None:
        self.site = Site(path)
        self.begun = path / "begun"
        self.chance = random.Random(seed)
        self.processes: list[tuple[int, Remote]] = []
        self.states: dict[tuple[int, int], str] = {}
        self.faults: Counter[str] = Counter()

    def add(self, host: int) -> Remote:
        return self.site.start(host, is_listed=True)

    def begin(self, process: Remote) -> None:
        process.call("service.wait_formed")
        process.call("jobs.start", str(self.begun), 1, takes=0.2, **OPTIONS)

    def look(self) -> None:
        """Note the history, of which a hundred runs are kept."""
        for _, process in self.processes:
            try:
                found = process.call("jobs.history")
            except AssertionError:
                continue
            self.states.update({(slot, attempt): state for slot, state, attempt, _ in found})
            return

    def do_something(self) -> None:
        place = self.chance.randrange(len(self.processes))
        host, process = self.processes[place]
        what = self.chance.choice(("kill", "stop", "transfer", "clock"))
        self.faults[what] += 1
        if what == "kill":
            process.kill()
            time.sleep(self.chance.uniform(0.0, 3.0))
            fresh = self.add(host)
            self.processes[place] = host, fresh
            self.begin(fresh)
        elif what == "stop":
            process.popen.send_signal(signal.SIGSTOP)
            time.sleep(self.chance.uniform(1.0, 5.0))
            process.popen.send_signal(signal.SIGCONT)
        elif what == "transfer":
            process.begin("service.transfer")
        else:
            ahead = self.chance.choice((-3600.0, 3600.0))
            for by, other in self.processes:
                other.call("jobs.set_clock", ahead if by == host else 0.0)

    def run(self, seconds: float) -> list[str]:
        self.processes = [(host, self.add(host)) for host in (0, 1, 2) for _ in range(2)]
        for _, process in self.processes:
            self.begin(process)
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            self.do_something()
            self.look()
            time.sleep(self.chance.uniform(0.0, 5.0))
        for _, process in self.processes:
            process.call("jobs.set_clock", 0.0)
        time.sleep(10.0)
        for _, process in self.processes:
            process.call("jobs.stop")
        time.sleep(5.0)
        self.look()
        return list(self.judge())

    def judge(self) -> list[str]:
        """What is wrong."""
        lines = [line.split() for line in self.begun.read_text().splitlines()]
        begun = [(int(slot), int(attempt)) for slot, attempt, *_ in lines]
        wrong = [f"{run} was begun {count} times" for run, count in Counter(begun).items() if count > 1]
        wrong += [f"{line} was begun early" for line in lines if float(line[3]) < int(line[0]) - EARLY_SECONDS]
        slots = {slot for slot, _ in self.states}
        wrong += [f"slot {slot} was left out" for slot in range(min(slots), max(slots)) if slot not in slots]
        known = set(begun)
        for run, state in self.states.items():
            if state not in ("done", "died"):
                wrong.append(f"{run} is {state}")
            if state == "done" and run not in known:
                wrong.append(f"{run} is done, and was not begun")
        counts = Counter(self.states.values())
        sys.stdout.write(f"{len(slots)} slots, {len(begun)} begun, {dict(counts)}, faults {dict(self.faults)}\n")
        return wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attached.jobs_soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        soak = Soak(Path(directory), options.seed)
        try:
            wrong = soak.run(options.seconds)
        finally:
            for process in soak.site.processes:
                process.end()
    for each in wrong:
        sys.stdout.write(f"{each}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
