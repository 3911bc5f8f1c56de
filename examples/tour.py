"""The shop on three hosts of two workers each: flags, a lock with a fence, an election, a job, and workers killed.

    make demo        (or: python examples/tour.py)

Prints what it does; ends with status 0 only if all of it held, and leaves no process and no directory behind.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import requests
from launcher import Cluster, Failure, Node, expect, present, say, wait_until

CLIENTS = 4
INVOICES = 8
"""So many are written before each kill."""


def see_a_flag(nodes: list[Node]) -> None:
    """Set through one host, it is seen by the workers of all."""
    started = time.monotonic()
    expect(nodes[0].put("/flags/greeting", "Happy new year!"), 204, "setting a flag")
    for node in nodes:
        wait_until(lambda node=node: node.get("/").text == "Happy new year!", f"{node.name} shows the flag")  # type: ignore[misc]
    say(f"a flag that {nodes[0].name} set is seen by all, {1000 * (time.monotonic() - started):.0f} ms later")


class Clerks:
    """Client threads that write invoices through all hosts until they are stopped, and note what they are told."""

    def __init__(self, nodes: list[Node]) -> None:
        self._nodes = nodes
        self._stopping = threading.Event()
        self.numbers: list[int] = []
        self._threads = [threading.Thread(target=self._run, args=(turn,), daemon=True) for turn in range(CLIENTS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _run(self, turn: int) -> None:
        while not self._stopping.is_set():
            with suppress(requests.RequestException):  # its worker was killed: it may be written, or not
                answer = self._nodes[turn % len(self._nodes)].post("/invoices", text=f"invoice {turn}")
                if answer.status == 201:
                    self.numbers.append(answer.json()["number"])
            turn += 1


def owner_of(node: Node) -> int:
    """The process that has the node of that host."""
    return int(node.status()["process"]["owner_pid"] or 0)


def kill_owners_while_invoices_are_written(nodes: list[Node]) -> None:
    """A kill for each host, of the worker that has its node; the other one takes its place."""
    clerks = Clerks(nodes)
    clerks.start()
    for node in nodes:
        goal = len(clerks.numbers) + INVOICES
        wait_until(lambda goal=goal: len(clerks.numbers) >= goal, "invoices are written")  # type: ignore[misc]
        pid = owner_of(node)
        started = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda node=node, pid=pid: _has_other_owner(node, pid), f"another worker of {node.name} takes over")  # type: ignore[misc]
        say(f"SIGKILL to worker {pid}, which had {node.name}: another had it {time.monotonic() - started:.2f} s later")
    clerks.stop()
    last = int(expect(nodes[0].get("/invoices"), 200, "the last invoice").json()["number"])
    twice = [number for number, count in Counter(clerks.numbers).items() if count > 1]
    if twice or last < len(clerks.numbers):
        raise Failure(f"{len(clerks.numbers)} invoices were written up to number {last}, these numbers twice: {twice}")
    say(
        f"{len(clerks.numbers)} invoices were acknowledged, numbers 1 to {last}, none twice, under a lock and its fence"
    )


def _has_other_owner(node: Node, pid: int) -> bool:
    with suppress(requests.RequestException, Failure):
        return owner_of(node) not in (0, pid)
    return False


def stock_of(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = expect(node.get("/stock"), 200, "who takes stock").json()
    return found


def elect_another(nodes: list[Node]) -> None:
    """One worker of six takes stock; it is killed, and another does."""
    wait_until(lambda: _lives(stock_of(nodes[0])["leader"]), "somebody takes stock who was not killed before")
    leader = str(stock_of(nodes[0])["leader"])
    started = time.monotonic()
    os.kill(_pid_of(leader), signal.SIGKILL)
    wait_until(lambda: _is_taken_by_another(nodes, leader), "another worker takes stock")
    taken = stock_of(nodes[0])["taken"]
    wait_until(lambda: stock_of(nodes[0])["taken"] > taken, "it goes on")
    after = time.monotonic() - started
    say(f"{leader} took stock, and was killed; {stock_of(nodes[0])['leader']} does so since, {after:.2f} s later")


def _pid_of(leader: str) -> int:
    return int(leader.split()[1])


def _lives(leader: str | None) -> bool:
    if leader is None:
        return False
    try:
        os.kill(_pid_of(leader), 0)
    except ProcessLookupError:
        return False
    return True


def _is_taken_by_another(nodes: list[Node], leader: str) -> bool:
    for node in nodes:
        with suppress(requests.RequestException, Failure):
            return stock_of(node)["leader"] not in (None, leader)
    return False


def look_at_runs(nodes: list[Node]) -> None:
    """The job of each second: never twice, by whomever."""

    def five_are_done() -> bool:
        """Where a worker was killed in one the next is not begun before that one is known to be dead."""
        runs[:] = expect(nodes[0].get("/runs"), 200, "the runs").json()
        slots = [run["due"] for run in runs]
        if len(set(slots)) < len(slots):
            raise Failure(f"these runs should be one for each second: {runs}")
        return len([run for run in runs if run["state"] == "done"]) >= 5

    runs: list[dict[str, Any]] = []
    wait_until(five_are_done, "five seconds have had their run")
    states = ", ".join(f"{count} {state}" for state, count in Counter(run["state"] for run in runs).items())
    say(f"the job of each second was claimed once for each, by {len({run['by'] for run in runs})} workers: {states}")


def run(cluster: Cluster) -> None:
    cluster.start()
    cluster.form()
    say("three hosts of two workers each are one cluster")
    see_a_flag(cluster.nodes)
    kill_owners_while_invoices_are_written(cluster.nodes)
    elect_another(cluster.nodes)
    look_at_runs(cluster.nodes)


if __name__ == "__main__":
    sys.exit(
        present("raftsvc tour: what must not happen twice", lambda: Cluster(application="shop:app", workers=2), run)
    )
