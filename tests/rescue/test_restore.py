"""A cluster goes on from a backup of a stopped node: what it has, what it has no more, and what is higher."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import raftsvc
from raftsvc import rescue
from raftsvc.kv import KeyValue, KeyValueState
from tests.service.harness import PATIENCE, SECRET, free_address


@contextmanager
def served(directory: Path, addr: str, state: Any, **options: Any) -> Iterator[raftsvc.Service]:
    service = raftsvc.start(
        addr, directory, None, state, **{"secret": SECRET, "listen": addr, "election_timeout": 0.3, **options}
    )
    try:
        yield service
    finally:
        service.stop()


@contextmanager
def store_in(directory: Path, addr: str, founds: bool = False, **options: Any) -> Iterator[KeyValue]:
    state = KeyValueState()
    with served(directory, addr, state, **options) as service:
        if founds:
            service.init()
        service.wait_read(PATIENCE)
        yield KeyValue(service, state)


def names_in(directory: Path) -> list[str]:
    return sorted(name for name in os.listdir(directory) if name != "lock")


def test_what_was_written_is_there_and_every_version_and_fence_is_higher_than_any_before(tmp_path: Path) -> None:
    addr = free_address()
    with store_in(tmp_path / "old", addr, founds=True) as kv:
        kv.allow("127.0.0.1:7")
        kv.set("a", b"1")
        kv.set("b", b"2")
        assert kv.incr("n") == 1
        fences = []
        for _ in range(3):
            with kv.lock("l", ttl=30) as lock:
                fences.append(lock.fence)
        versions = [value.version for value in kv.list().values()]
        last = int(str(kv.service.status()["applied_index"]))
    before_us = int(time.time() * 1e6)
    rescue.back_up(tmp_path / "old", tmp_path / "backup", KeyValueState())
    made = rescue.restore(tmp_path / "backup", tmp_path / "new", addr)
    assert made.index >= before_us
    with store_in(tmp_path / "new", addr) as kv:
        assert {key: value.data for key, value in kv.list().items()} == {"a": b"1", "b": b"2", "n": b"1"}
        assert kv.allowed() == {"127.0.0.1:7"}
        assert [value.version for value in kv.list().values()] == versions, "what is unchanged keeps its version"
        written = kv.set("a", b"3")
        assert written > made.index > max(*versions, *fences, last)
        with kv.lock("l", ttl=30) as lock:
            assert lock.fence > made.index
        assert kv.incr("n") == 2
        status = kv.service.status()
        assert status["node_id"] == 2 and status["cluster_id"] == f"{made.cluster_id:016x}"
    assert rescue.verify(tmp_path / "new") == []
    with store_in(tmp_path / "new", addr) as kv:
        assert kv.get("a").data == b"3"


def test_what_processes_held_has_ended_and_time_to_live_goes_on(tmp_path: Path) -> None:
    addr = free_address()
    with store_in(tmp_path / "old", addr, founds=True) as kv:
        kv.set("passing", b"1", ttl=3600.0)
        lease = kv.lease(3600.0)
        kv.set("leased", b"1", lease=lease)
        held = kv.lock("l", ttl=3600)
        assert held.acquire()
        queue = kv.queue("q")
        queue.put(b"job")
        assert queue.get(timeout=PATIENCE).value == b"job"
        log_time = kv.service.log_time()
        # As if the process was killed: nothing is given back.
        shutil.copytree(tmp_path / "old", tmp_path / "killed", ignore=shutil.ignore_patterns("socket"))
    state = KeyValueState()
    rescue.back_up(tmp_path / "killed", tmp_path / "backup", state)
    assert state.claims("lock:l") and state.get("leased") is not None
    rescue.restore(tmp_path / "backup", tmp_path / "new", addr)
    with store_in(tmp_path / "new", addr) as kv:
        assert kv.get("leased") is None
        assert kv.lock("l", ttl=30).acquire(blocking=False)
        assert kv.queue("q").get(timeout=PATIENCE).value == b"job"
        assert kv.get("passing").data == b"1"
        assert kv.service.log_time() >= log_time
        kv.service.wait_read(PATIENCE)
