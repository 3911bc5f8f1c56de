"""Real nodes behind slow links and narrow proxies: what is long arrives, and holds nobody up."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raftsvc.transport.listener import Listener
from tests.service.harness import (
    PATIENCE,
    Cluster,
    Member,
    eventually,
    free_address,
    has_streams,
    in_background,
    voters,
)
from tests.service.links import NarrowProxy, SlowLink

MEGABIT = 1_000_000 // 8
LONG_BYTES = 400_000


@pytest.fixture
def opened() -> Iterator[list[Any]]:
    """What is to be stopped, in order."""
    things: list[Any] = []
    yield things
    for one in things:
        one.stop()


def form(cluster: Cluster, members: list[Member]) -> None:
    members[0].service.init()
    for member in members[1:]:
        member.service.join(members[0].addr, PATIENCE)
    eventually(lambda: all(len(voters(m)) == len(members) for m in members), "every member sees every voter")


def terms(members: list[Member]) -> set[int]:
    return {member.status["term"] for member in members}


class SmallWrites:
    """Somebody who writes a little at a node, again and again."""

    def __init__(self, member: Member) -> None:
        self.latencies: list[float] = []
        self._member = member
        self._is_over = threading.Event()
        self._result = in_background(self._run)

    def _run(self) -> None:
        while not self._is_over.wait(0.05):
            began = time.monotonic()
            self._member.service.exec(b"small", timeout=PATIENCE)
            self.latencies.append(time.monotonic() - began)

    def end(self) -> float:
        """The longest that one took."""
        self._is_over.set()
        self._result()
        return max(self.latencies)


class Stillness:
    """For how long the machine stood still, and its disk: by how much what takes a moment takes longer."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_over = threading.Event()
        self._result = in_background(self._run)

    def _run(self) -> float:
        seconds = 0.0
        with self._path.open("wb") as file:
            while not self._is_over.is_set():
                began = time.monotonic()
                self._is_over.wait(0.05)
                os.fsync(file.fileno())
                seconds += max(0.0, time.monotonic() - began - 0.06)
        return seconds

    def end(self) -> float:
        self._is_over.set()
        return float(self._result())


@pytest.mark.parametrize("streams", [True, False], ids=["streams", "no streams"])
@pytest.mark.parametrize("at_leader", [True, False], ids=["at the leader", "at a follower"])
def test_a_long_value_passes_slow_links_and_holds_nobody_up(
    tmp_path: Path, opened: list[Any], streams: bool, at_leader: bool
) -> None:
    cluster = Cluster(tmp_path, has_streams=streams)
    opened.append(cluster)
    members = []
    links = []
    for _ in range(3):
        listen = free_address()
        member = cluster.add(listen=listen)
        links.append(SlowLink(member.addr, listen, 100 * MEGABIT))
        members.append(member)
    opened.extend(links)
    form(cluster, members)
    if streams:
        eventually(lambda: has_streams(members), "streams everywhere")
    leader = cluster.leader()
    for link in links:
        link.rate = 3 * MEGABIT // 2
    before = terms(members)
    stillness = Stillness(tmp_path / "still")
    small = [SmallWrites(member) for member in members]
    writer = leader if at_leader else cluster.follower()
    writer.service.exec(b"x" * LONG_BYTES, timeout=PATIENCE)
    longest = max([one.end() for one in small])
    assert longest < 3.0 + stillness.end()
    assert terms(members) == before, "nobody campaigned"
    assert all(sum(len(item) == LONG_BYTES for item in member.read()) == 1 for member in members)


@pytest.mark.parametrize("limit", [64 * 1024, 10_000])
def test_a_proxy_that_refuses_large_bodies_is_passed_in_smaller_ones(
    tmp_path: Path, opened: list[Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr("raftsvc.transport.limit._PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr("raftsvc.transport.limit._MOST_PATIENCE_SECONDS", 1.0)
    cluster = Cluster(
        tmp_path, has_streams=False, election_timeout=1.0, listen=None, snapshot_entries=10, trailing_entries=5
    )
    opened.append(cluster)
    members, proxies = [], []

    def add() -> None:
        member = cluster.add()
        proxy = NarrowProxy(member.service, limit)
        listener = Listener(proxy, member.addr)
        listener.start()
        assert listener.wait_bound(PATIENCE)
        opened.append(listener)
        members.append(member)
        proxies.append(proxy)

    for _ in range(3):
        add()
    with caplog.at_level(logging.WARNING):
        form(cluster, members)
        for number, member in enumerate(members):
            member.service.exec(bytes([number]) * 200_000, timeout=PATIENCE)
        for _ in range(20):
            members[0].service.exec(b"small", timeout=PATIENCE)
        add()  # its snapshot passes too
        members[3].service.join(members[0].addr, PATIENCE)
        for member in members:
            assert [len(item) for item in member.read()].count(200_000) == 3
        assert all(0 < proxy.largest <= limit for proxy in proxies)
        leader = cluster.leader()
        leader.service.exec(b"long" * 50_000, timeout=PATIENCE)
        # It may be over meanwhile, and begin again: what is longer is tried now and then.
        eventually(lambda: "(413)" in leader.status["conditions"].get("narrow", ""), "it says so")
        eventually(lambda: all(member.service.err() is None for member in members), "and is no error")
        for proxy in proxies:
            proxy.limit = 1 << 20

        def is_over() -> bool:
            leader.service.exec(b"long" * 50_000, timeout=PATIENCE)
            return "narrow" not in leader.status["conditions"]

        eventually(is_over, "it tries what is longer again")
    assert max(proxy.largest for proxy in proxies) > limit
    lines = [record.getMessage() for record in caplog.records if "(413)" in record.getMessage()]
    assert lines and not any("smaller pieces" in line for line in lines[len(members) * 3 :])
