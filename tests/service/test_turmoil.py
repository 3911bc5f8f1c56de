"""Clients write and read through all nodes while links, disks and processes come and go by seed."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import pytest

import raftsvc
from tests.service.harness import PATIENCE, Cluster, eventually, in_background

BLOWS = 14


class Clients:
    """Writers of unique instructions who note what they were told, and readers who know what must be visible."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.done = threading.Event()
        self.acknowledged: list[bytes] = []
        self.refused: list[bytes] = []
        self.reads = 0
        self.stale: list[object] = []

    def run(self, worker: int) -> None:
        rng = random.Random(worker)
        number = 0
        while not self.done.is_set():
            item = b"%d/%d" % (worker, number)
            number += 1
            try:
                rng.choice(self.cluster.members).service.exec(item, timeout=rng.choice((0.2, 1.0, 5.0)))
                self.acknowledged.append(item)
            except raftsvc.NotApplied:
                self.refused.append(item)
                time.sleep(0.01)
            except raftsvc.OutcomeUnknown:
                pass
            if number % 5 == 0:
                self.read(rng)

    def read(self, rng: random.Random) -> None:
        finished_before = list(self.acknowledged)
        member = rng.choice(self.cluster.members)
        service, state = member.service, member.state
        try:
            service.wait_read(1.0)
        except raftsvc.RaftError:
            return
        if service is not member.service:
            return  # restarted meanwhile: that State is not the one that was confirmed
        missing = set(finished_before) - set(state.items)
        self.reads += 1
        if missing:
            self.stale.append((member.addr, sorted(missing)[:3]))


def strike(cluster: Cluster, rng: random.Random) -> None:
    """One fault, or its end."""
    member = rng.choice(cluster.members)
    blow = rng.choice(["cut", "heal", "heal", "restart", "restart all", "slow disk", "lose answers", "hand over"])
    if blow == "cut":
        cluster.cut(member, [m for m in cluster.members if m is not member])
    elif blow == "heal":
        calm(cluster)
    elif blow == "restart":
        member.restart()
    elif blow == "restart all":
        for each in cluster.members:
            each.service.stop()
        for each in cluster.members:
            each.start()
    elif blow == "slow disk":
        member.files.gate.clear()
        time.sleep(rng.random())
        member.files.gate.set()
    elif blow == "lose answers":
        for each in cluster.members:
            each.session.lose_answer = lambda path: rng.random() < 0.3
    else:
        node = member.service._node
        assert node is not None
        node.hand_over(0.5)


def calm(cluster: Cluster) -> None:
    cluster.heal()
    for member in cluster.members:
        member.session.lose_answer = lambda path: False
        member.files.gate.set()


@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_acknowledged_is_lost_nothing_counts_twice_and_no_read_is_stale(
    make_cluster: Callable[..., Cluster], seed: int
) -> None:
    cluster = make_cluster(election_timeout=0.5, snapshot_entries=200, trailing_entries=50)
    cluster.form(3)
    clients = Clients(cluster)
    workers = [in_background(lambda w=w: clients.run(w)) for w in range(5)]
    rng = random.Random(seed)
    for _ in range(BLOWS):
        goal = len(clients.acknowledged) + rng.randrange(30)
        strike(cluster, rng)
        deadline = time.monotonic() + 1.0
        while len(clients.acknowledged) < goal and time.monotonic() < deadline:
            time.sleep(0.01)
    calm(cluster)
    goal = len(clients.acknowledged) + 50
    eventually(
        lambda: len(clients.acknowledged) > goal and clients.reads > 10, "clients are served once the turmoil is over"
    )
    clients.done.set()
    for worker in workers:
        worker()
    cluster.members[0].service.exec(b"the end", timeout=PATIENCE)
    items = cluster.members[0].read()
    assert cluster.members[1].read() == cluster.members[2].read() == items
    assert len(set(items)) == len(items), "nothing counts twice"
    assert set(clients.acknowledged) <= set(items), "nothing acknowledged is lost"
    assert not set(clients.refused) & set(items), "what was called not applied never was"
    assert not clients.stale
