"""Three nodes behind gunicorn; the leader is killed under load, and nothing that was acknowledged is lost.

    make demo        (or: python examples/demo.py)

Prints what it does and how long it took; ends with status 0 only if all of it
held, and leaves no process and no directory behind.
"""

from __future__ import annotations

import secrets
import sys
import threading
import time
from itertools import pairwise

import requests
from launcher import Answer, Cluster, Failure, Node, expect, present, say, wait_until

WRITER_THREADS = 6
WRITES_BEFORE_THE_KILL = 500
WRITES_AFTER_THE_KILL = 500
STREAM = "stream/"


class Writers:
    """Client threads that write one key after another, and remember exactly what they were told.

    Each stays with a node until it is refused or cut off, and then turns to the
    next, as a client behind a load balancer would.  No key is written twice, but
    for one that was certainly not written.
    """

    def __init__(self, nodes: list[Node]) -> None:
        self._nodes = nodes
        self._stopping = threading.Event()
        self._lock = threading.Lock()  # guards the five below
        self.acknowledged: dict[str, str] = {}
        self.acknowledged_at: list[float] = []
        self.unknown: dict[str, str] = {}
        self.refusals = 0
        self.failures: list[str] = []
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"writer-{number}")
            for number in range(WRITER_THREADS)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def count_since(self, moment: float) -> int:
        with self._lock:
            if self.failures:
                raise Failure(self.failures[0])
            return sum(at > moment for at in self.acknowledged_at)

    def longest_silence(self, since: float) -> float:
        """The longest time between two acknowledgements that ended after `since`, in seconds."""
        times = sorted(self.acknowledged_at)
        return max(after - before for before, after in pairwise(times) if after > since)

    def _run(self, number: int) -> None:
        turn, count = number, 0
        while not self._stopping.is_set():
            key, value = f"{STREAM}{number}/{count}", secrets.token_hex(16)
            count += 1
            while not self._stopping.is_set():
                node = self._nodes[turn % len(self._nodes)]
                try:
                    answer: Answer | None = node.put(f"/kv/{key}", value)
                except requests.RequestException:
                    answer = None
                if self._record(node, key, value, answer):
                    turn += answer is None
                    break
                turn += 1
                self._stopping.wait(0.05)

    def _record(self, node: Node, key: str, value: str, answer: Answer | None) -> bool:
        """Whether this key is done with."""
        with self._lock:
            if answer is None or answer.status == 504:
                self.unknown[key] = value
                return True
            if answer.status == 200:
                self.acknowledged[key] = value
                self.acknowledged_at.append(time.monotonic())
                return True
            if answer.status == 503:
                self.refusals += 1
                return False
            self.failures.append(f"{node.name} answered a write with {answer.status}: {answer.text.strip()}")
            self._stopping.set()
            return True


def write_and_read_everywhere(nodes: list[Node]) -> None:
    """Each node takes a write, and every node shows it at once."""
    slowest = 0.0
    for writer in nodes:
        key, value = f"greeting-from-{writer.name}", secrets.token_hex(4)
        started = time.monotonic()
        expect(writer.put(f"/kv/{key}", value), 200, f"a write through {writer.name}")
        slowest = max(slowest, time.monotonic() - started)
        for reader in nodes:
            seen = expect(reader.get(f"/kv/{key}"), 200, f"a read through {reader.name}").text
            if seen != value:
                raise Failure(f"{writer.name} acknowledged {key}={value}, then {reader.name} read {seen!r}")
    say(f"wrote through each node and read it at once through all of them; slowest write {slowest * 1000:.1f} ms")


def compare(node: Node, acknowledged: dict[str, str], **parameters: str) -> dict[str, str]:
    """Read the whole stream through one node; every acknowledged write must be there as it was written."""
    content = expect(node.get("/kv", prefix=STREAM, **parameters), 200, f"listing through {node.name}").json()
    lost = [key for key, value in acknowledged.items() if content.get(key) != value]
    if lost:
        raise Failure(f"{node.name} does not show {len(lost)} of {len(acknowledged)} acknowledged writes: {lost[:5]}")
    found: dict[str, str] = content
    return found


def kill_the_leader_under_load(cluster: Cluster) -> tuple[Node, Writers]:
    writers = Writers(cluster.nodes)
    try:
        started = time.monotonic()
        writers.start()
        wait_until(lambda: writers.count_since(started) >= WRITES_BEFORE_THE_KILL, "the stream of writes flows")
        before = writers.count_since(started)
        rate = before / (time.monotonic() - started)
        say(f"{WRITER_THREADS} clients write through all three nodes: {before} acknowledged, {rate:.0f} a second")

        leader = cluster.leader()
        if leader is None:
            raise Failure("there is no leader to kill")
        killed = time.monotonic()
        leader.kill()
        say(f"SIGKILL to {leader.name}, the leader, in the middle of it")
        wait_until(lambda: writers.count_since(killed) >= WRITES_AFTER_THE_KILL, "writes go on without it")
        wait_until(lambda: cluster.leader() is not None, "a new leader is known")
    finally:
        writers.stop()
    successor = cluster.leader()
    after = writers.count_since(killed)
    say(
        f"{successor.name if successor else 'a successor'} leads now, and writes go on: {after} acknowledged since, "
        f"the longest time without one {writers.longest_silence(killed):.2f} s"
    )
    return leader, writers


def nothing_is_lost(nodes: list[Node], writers: Writers) -> None:
    for node in nodes:
        started = time.monotonic()
        found = compare(node, writers.acknowledged)
        say(
            f"{node.name} shows every one of the {len(writers.acknowledged)} acknowledged writes "
            f"(a linearizable read, {(time.monotonic() - started) * 1000:.0f} ms)"
        )
    applied = sum(key in found for key in writers.unknown)
    say(
        f"of {len(writers.unknown)} writes whose outcome nobody was told, {applied} took effect; "
        f"{writers.refusals} were refused as certainly not done, and sent again"
    )
    strangers = found.keys() - writers.acknowledged.keys() - writers.unknown.keys()
    if strangers:
        raise Failure(f"{len(strangers)} keys were refused, yet took effect: {sorted(strangers)[:5]}")


def restart(node: Node, cluster: Cluster, writers: Writers) -> None:
    leader = cluster.leader()
    if leader is None:
        raise Failure("there is no leader to catch up with")
    target = leader.status()["commit_index"]
    started = time.monotonic()
    node.start()
    node.wait_until_up()
    up = time.monotonic()
    wait_until(lambda: bool(node.status()["applied_index"] >= target), f"{node.name} has applied entry {target}")
    caught_up = time.monotonic()
    compare(node, writers.acknowledged, stale="1")
    say(
        f"{node.name} is back: up in {up - started:.2f} s, caught up to entry {target} {caught_up - up:.2f} s later; "
        "its own copy has every acknowledged write"
    )


def evict(cluster: Cluster) -> None:
    leader = cluster.leader()
    if leader is None:
        raise Failure("there is no leader")
    leaver = next(node for node in cluster.nodes if node is not leader)
    remaining = [node for node in cluster.nodes if node is not leaver]
    started = time.monotonic()
    expect(leader.post("/cluster/evict", addr=leaver.addr), 200, f"evicting {leaver.name}")
    evicted = time.monotonic()
    wait_until(lambda: leaver.status()["role"] == "removed", f"{leaver.name} knows that it was evicted")
    said = expect(leaver.put("/kv/too-late", "no"), 503, f"a write through the evicted {leaver.name}").json()
    say(
        f"{leaver.name} was evicted in {evicted - started:.2f} s, knew it {time.monotonic() - evicted:.2f} s later, "
        f"and refuses a write: {said['code']}: {said['detail']}"
    )
    write_and_read_everywhere(remaining)
    members = {member["addr"] for member in remaining[0].status()["members"].values()}
    if members != {node.addr for node in remaining}:
        raise Failure(f"the members should be those of {[node.name for node in remaining]}, and are {sorted(members)}")


def run(cluster: Cluster) -> None:
    last, *others = reversed(cluster.nodes)
    last.start()
    last.wait_until_up()
    waited_for = last.status()["formation"]["waits_for"]
    say(f"{last.name} {last.url} is up, and waits for {len(waited_for)} nodes of its list")
    refused = expect(last.put("/kv/too-early", "no"), 503, f"a write through {last.name} alone").json()
    say(f"it refuses a write: {refused['code']}: {refused['detail']}")
    for node in others:
        node.start()
    cluster.form()
    urls = ", ".join(f"{node.name} {node.url}" for node in reversed(others))
    say(f"{urls} are up too: the three are one cluster, and nobody called anything")
    write_and_read_everywhere(cluster.nodes)
    killed, writers = kill_the_leader_under_load(cluster)
    nothing_is_lost([node for node in cluster.nodes if node is not killed], writers)
    restart(killed, cluster, writers)
    nothing_is_lost(cluster.nodes, writers)
    evict(cluster)


if __name__ == "__main__":
    sys.exit(present("raftsvc demo: three web processes, one linearizable state", Cluster, run))
