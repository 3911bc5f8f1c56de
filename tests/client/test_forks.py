"""A forked child has a session and connections of its own, whatever its parent was doing."""

from __future__ import annotations

import threading
from collections.abc import Callable

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

    def ask() -> int:
        count = 0
        while not stopping.is_set():
            store.get("n", PATIENCE)
            count += 1
        return count

    asking = in_background(ask)
    for _ in range(5):
        in_child(lambda: store.incr("m", timeout=PATIENCE))
    stopping.set()
    assert asking() > 0
    node.gate.released.set()
    assert call() == 2
    assert store.incr("m", timeout=PATIENCE) == 6
