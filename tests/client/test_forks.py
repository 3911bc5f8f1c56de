"""A forked child has a session and connections of its own, whatever its parent was doing."""

from __future__ import annotations

import _hashlib
import gc
import hashlib
import hmac
import threading
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from raftsvc import mainthread
from raftsvc.macs import mac
from raftsvc.member.envelopes import read_envelope
from raftsvc.transport.visits import Visit
from tests.client.harness import HANG, PASS, Members, is_instruction
from tests.service.harness import PATIENCE, eventually, in_background
from tests.service.test_forks import in_child

MakeMembers = Callable[..., Members]


def test_a_forked_child_counts_under_a_session_of_its_own(make_members: MakeMembers) -> None:
    members = make_members()
    node = members.nodes[0]
    store = members.connect()
    assert store.incr("n", timeout=PATIENCE) == 1

    def count() -> None:
        assert store.incr("n", timeout=PATIENCE) == 2
        value = store.get("n", PATIENCE)
        assert value is not None
        assert value.data == b"2"
        assert store.incr("n", timeout=PATIENCE) == 3
        in_child(lambda: store.incr("n", timeout=PATIENCE))  # and so on
        store.service.close()

    in_child(count)
    assert store.incr("n", timeout=PATIENCE) == 5
    seen = [Visit.decode(body) for _, body in node.gate.seen]
    sessions = [read_envelope(visit.payload)[0] for visit in seen if is_instruction(visit)]
    first, second, third = dict.fromkeys(sessions)
    assert sessions == [first, second, second, third, first]
    speakers = {headers["HTTP_RAFT_LIFE"] for headers, _ in node.gate.seen}
    assert len(speakers) == 3


def test_a_child_forked_while_its_parent_calls_is_not_held_up(make_members: MakeMembers) -> None:
    members = make_members()
    node = members.nodes[0]
    store = members.connect()
    assert store.incr("n", timeout=PATIENCE) == 1
    hung = threading.Event()

    def rule(visit: Visit) -> str:
        if is_instruction(visit) and not hung.is_set():
            hung.set()
            return HANG
        return PASS

    node.gate.rule = rule
    call = in_background(lambda: store.incr("n", timeout=PATIENCE))
    eventually(hung.is_set, "a call hangs")
    stopping = threading.Event()
    asked: list[object] = []

    def ask() -> None:
        while not stopping.is_set():
            asked.append(store.get("n", PATIENCE))

    asking = in_background(ask)
    eventually(lambda: asked, "another thread asks")
    for _ in range(5):
        in_child(lambda: store.incr("m", timeout=PATIENCE))
    stopping.set()
    asking()
    node.gate.released.set()
    assert call() == 2
    assert store.incr("m", timeout=PATIENCE) == 6


def test_a_child_takes_no_lock_that_another_thread_of_its_parent_had(make_members: MakeMembers) -> None:
    """All that stand in the way of a call, and of the end of what the parent had."""
    members = make_members()
    store = members.connect()
    assert store.incr("n", timeout=PATIENCE) == 1
    assert store.lock("l").acquire(timeout=PATIENCE), "who keeps the leases is there, with a thread"
    locks = _locks_of(store)

    def call() -> None:
        assert store.incr("n", timeout=PATIENCE) == 2
        gc.collect()  # what the parent had comes to its end
        assert store.lock("other").acquire(timeout=PATIENCE)
        store.service.close()

    # What is waited for by way of a lock is held already.
    held = [(name, lock) for name, lock in locks if lock.acquire(blocking=False)]
    assert {"_freed", "_changed", "mutex", "_lock", "_opening"} <= {name for name, _ in held}
    try:
        in_child(call)
    finally:
        for _, lock in held:
            lock.release()
    assert store.incr("n", timeout=PATIENCE) == 3


def _locks_of(store: Any) -> list[tuple[str, Any]]:
    """Every lock that a client has, found by its attributes: of routes, sessions, connections, leases; and by name."""
    kinds = (type(threading.Lock()), type(threading.RLock()), threading.Condition)
    found: dict[int, tuple[str, Any]] = {id(lock): ("deputies", lock) for lock in [mainthread._deputies._lock]}
    seen: set[int] = set()
    todo: list[Any] = [store]
    while todo:
        thing = todo.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        inside = list(thing.items()) if isinstance(thing, dict) else list(getattr(thing, "__dict__", {}).items())
        inside += [(name, getattr(thing, name, None)) for name in getattr(type(thing), "__slots__", ())]
        if isinstance(thing, list | tuple | set):
            inside += [("", each) for each in thing]
        for name, each in inside:
            if isinstance(each, kinds):
                found.setdefault(id(each), (str(name), each))
            elif type(each).__module__.partition(".")[0] in ("raftsvc", "requests", "urllib3") or isinstance(
                each, dict | list | tuple | set
            ):
                todo.append(each)
    # The conditions of a queue share its lock.
    return [(name, lock) for name, lock in found.values() if name not in ("not_empty", "not_full", "all_tasks_done")]


def test_a_child_does_without_openssl_whose_locks_no_fork_frees(
    make_members: MakeMembers, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = make_members()
    store = members.connect()
    assert store.incr("n", timeout=PATIENCE) == 1

    def hang(*args: object, **options: object) -> NoReturn:
        raise AssertionError("this may hang")

    def call() -> None:
        for name in ("hmac_digest", "hmac_new", "openssl_sha256", "new"):
            monkeypatch.setattr(_hashlib, name, hang)
        for module, name in ((hashlib, "sha256"), (hashlib, "new"), (hmac, "new"), (hmac, "digest")):
            monkeypatch.setattr(module, name, hang)
        assert store.incr("n", timeout=PATIENCE) == 2
        value = store.get("n", PATIENCE)
        assert value is not None
        assert value.data == b"2"

    in_child(call)


@pytest.mark.parametrize("key_bytes", [0, 1, 32, 63, 64, 65, 200])
def test_a_mac_is_that_of_the_standard(key_bytes: int) -> None:
    for data_bytes in (0, 1, 55, 56, 63, 64, 65, 4096):
        key, data = bytes(range(key_bytes)), bytes(data_bytes % 251 for _ in range(data_bytes))
        assert mac(key, data) == hmac.digest(key, data, "sha256")
