"""Jobs on real threads: who runs what is due, who does not, and what becomes of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from raftsvc import kv
from raftsvc.kv import timekeeper
from raftsvc.recipes import Jobs, scheduler

from .harness import PATIENCE, Cluster, Member, eventually
from .test_watching import OpenState, store_of


@pytest.fixture
def members(make_cluster: Callable[..., Cluster]) -> list[Member]:
    return make_cluster(make_state=OpenState).form(3)


def test_smoke(members: list[Member]) -> None:
    ran: list[tuple[int, Any]] = []
    every: list[Jobs] = []
    for n, member in enumerate(members * 2):
        jobs = store_of(member).jobs()

        @jobs.every(1, name="tick")
        def tick(n: int = n) -> None:
            run = scheduler.current_run()
            assert run is not None
            ran.append((n, run.slot))

        jobs.start()
        every.append(jobs)
    eventually(lambda: len(ran) >= 8)
    for jobs in every:
        print(jobs.stop(), jobs.next_runs())
    for past in every[0].history("tick"):
        print(past)
    print(ran)
    print(members[0].status["state"])
    assert len({slot for _, slot in ran}) == len(ran)
