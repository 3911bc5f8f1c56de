"""Locks of all processes of a host: one for all of them, and what one holds outlives whoever owned the node."""

from __future__ import annotations

import pytest

from tests.attached.hosts import eventually
from tests.attached.test_asked import Site, site

pytestmark = pytest.mark.processes
__all__ = ["site"]
LONG = 600.0
PATIENCE = 60.0


def test_what_an_attached_process_holds_it_holds_when_another_owns_the_node(site: Site) -> None:
    owner = site.start(0)
    owner.call("service.init")
    holder, other = site.start_attached(0, owner), site.start_attached(0, owner)
    assert holder.call("kv.claim", "x", ttl=LONG, timeout=PATIENCE)
    assert owner.call("kv.claim", "x", ttl=LONG, blocking=False) is None
    assert owner.call("kv.claim", "y", ttl=5.0, timeout=PATIENCE)
    (before,) = holder.call("kv.claims", "x", timeout=PATIENCE)
    waits = other.begin("kv.claim", "y", ttl=LONG, timeout=PATIENCE)
    eventually(lambda: len(holder.call("kv.claims", "y", timeout=PATIENCE)) == 2)
    owner.kill()
    assert waits.get(), "what the dead one held is its when its lease is over, whoever owns the node"
    assert other.call("kv.claim", "x", ttl=LONG, blocking=False) is None
    (after,) = other.call("kv.claims", "x", timeout=PATIENCE)
    assert after == before


def test_processes_of_a_host_share_queues_and_what_one_has_that_dies_another_gets(site: Site) -> None:
    owner = site.start(0)
    owner.call("service.init")
    worker, other = site.start_attached(0, owner), site.start_attached(0, owner)
    for value in ("first", "second"):
        owner.call("work.put", "mail", value)
    assert owner.call("work.get", "mail", 5.0) == ["first", 1]
    assert worker.call("work.get", "mail", LONG) == ["second", 1]
    owner.call("work.live", "owner", 5.0)
    worker.call("work.live", "worker", LONG)
    waits = other.begin("work.get", "mail", LONG)
    eventually(lambda: len(other.call("kv.claims", "queue:mail", timeout=PATIENCE)) == 3)
    owner.kill()
    assert waits.get() == ["first", 2], "whoever owns the node"
    eventually(lambda: other.call("work.look", "mail")[0] == ["worker"], "keys die with their process")
    worker.call("work.ack", "mail")
    other.call("work.ack", "mail")
    assert worker.call("work.look", "mail") == [["worker"], [0, 0]]


def test_processes_of_a_host_wait_for_each_other(site: Site) -> None:
    owner = site.start(0)
    owner.call("service.init")
    worker, other = site.start_attached(0, owner), site.start_attached(0, owner)
    every = [owner, worker, other]
    worker.call("work.set_gate", "deploy", True)
    waits = [each.begin("work.wait_at", "deploy") for each in every]
    other.call("work.set_gate", "deploy", False)
    assert [each.get() for each in waits] == [True] * 3
    meets = [each.begin("work.meet", "round", 3) for each in every]
    assert [each.get() for each in meets] == [True] * 3
    allowed = [each.call("kv.limit", "api", 4, LONG, timeout=PATIENCE)[0] for each in every * 2]
    assert allowed == [True] * 4 + [False] * 2
