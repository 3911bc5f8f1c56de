"""The example of tooz by its program: three hosts with two processes each, of which one host is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.attached.hosts import ROOT, eventually, free_port
from tests.ext.counting import environ_of

pytest.importorskip("tooz")
pytestmark = pytest.mark.processes


class Shifts:
    """All processes of all hosts, which say in one file what they do."""

    def __init__(self, folder: Path) -> None:
        self.said = folder / "said"
        self.hosts: list[list[subprocess.Popen[bytes]]] = []
        addrs = [f"127.0.0.1:{free_port()}" for _ in range(3)]
        for number, addr in enumerate(addrs):
            environ = {**os.environ, **environ_of(addr, addrs), "RAFTSVC_DIR": str(folder / f"data-{number}")}
            environ |= {"COORDINATION": "raftsvc://?timeout=10", "PYTHONPATH": str(ROOT)}
            command = [sys.executable, str(ROOT / "examples" / "shifts.py")]
            with self.said.open("ab") as said, (folder / f"log-{number}").open("ab") as log:
                self.hosts.append([subprocess.Popen(command, env=environ, stdout=said, stderr=log) for _ in range(2)])

    def lines(self) -> list[list[str]]:
        """What each said, by its process id."""
        lines = self.said.read_text().splitlines(keepends=True)
        return [line.rpartition("-")[2].split() for line in lines if line.endswith("\n")]

    def leaders(self) -> list[int]:
        """In turn."""
        return [int(pid) for pid, verb, *_ in self.lines() if verb == "leads"]

    def seen(self, after: int = 0) -> set[int]:
        """How many were there, as those who began say, after so many lines."""
        return {int(rest[0]) for _, verb, *rest in self.lines()[after:] if verb == "begins"}

    def end(self, host: list[subprocess.Popen[bytes]]) -> None:
        """Every process of it at once."""
        for process in host:
            process.send_signal(signal.SIGKILL)
            process.wait(30)


@pytest.fixture
def shifts(tmp_path: Path) -> Iterator[Shifts]:
    made = Shifts(tmp_path)
    yield made
    for host in made.hosts:
        made.end(host)


def test_one_leads_and_one_has_the_lock_and_that_goes_on_over_a_host_that_is_lost(shifts: Shifts) -> None:
    eventually(lambda: 6 in shifts.seen() and shifts.leaders(), "six are there, of whom one leads")
    (leader,) = shifts.leaders()
    host = next(host for host in shifts.hosts if leader in [process.pid for process in host])
    shifts.end(host)
    eventually(lambda: len(shifts.leaders()) > 1, "another leads")
    lost = len(shifts.lines())
    eventually(lambda: 4 in shifts.seen(lost), "the others are there")
    others = {process.pid: process for each in shifts.hosts if each is not host for process in each}
    following = shifts.leaders()[1]
    others[following].terminate()
    assert others[following].wait(60) == 0
    eventually(lambda: len(shifts.leaders()) > 2, "a third leads after one that ended in order")
    del others[following]  # which may have ended within a turn
    turns = [(pid, verb) for pid, verb, *_ in shifts.lines() if verb != "leads" and int(pid) in others]
    for (pid, verb), (following_pid, following_verb) in pairwise(turns):
        assert (verb, following_verb) == ("ends", "begins") or pid == following_pid, "two never have the lock"
