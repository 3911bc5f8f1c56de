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
    assert owner.call("kv.claim", "y", ttl=2.0, timeout=PATIENCE)
    (before,) = holder.call("kv.claims", "x", timeout=PATIENCE)
    waits = other.begin("kv.claim", "y", ttl=LONG, timeout=PATIENCE)
    eventually(lambda: len(holder.call("kv.claims", "y", timeout=PATIENCE)) == 2)
    owner.kill()
    assert waits.get(), "what the dead one held is its when its lease is over, whoever owns the node"
    assert other.call("kv.claim", "x", ttl=LONG, blocking=False) is None
    (after,) = other.call("kv.claims", "x", timeout=PATIENCE)
    assert after == before
