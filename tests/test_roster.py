"""What whoever changes the members is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from threading import Event
from types import SimpleNamespace
from typing import Any, cast

import pytest

from raftsvc import formation
from raftsvc.attached.relay import Relay, Relayed
from raftsvc.core.membership import ConfChange, Configuration, ConfOp, Member
from raftsvc.core.messages import Life
from raftsvc.core.raft import Refusal
from raftsvc.errors import MembershipUnchangedError, NotListeningError, ReadTimeoutError, UnknownPeerError
from raftsvc.formation import Membership, Roster
from raftsvc.member.node import NodeOptions
from raftsvc.transport import Answerer, JoinRequest, Problem
from raftsvc.transport.wire import join_proof


class _NoMajority:
    """Calls of a node that no majority answers."""

    def exec(self, instruction: bytes, timeout: float) -> bool:
        raise AssertionError("nothing is proposed")

    def wait_read(self, timeout: float) -> None:
        raise ReadTimeoutError(f"no majority confirmed the read within {timeout:g} s")


def test_an_eviction_without_a_majority_ends_in_its_own_error() -> None:
    membership = SimpleNamespace(require_node=lambda: None, relay=Relay(None, Event(), 1.0))
    roster = Roster(cast(Any, membership), _NoMajority(), cast(Any, None), cast(Any, None))
    with pytest.raises(MembershipUnchangedError, match="nothing was changed") as refusal:
        roster.evict("a:1", 0.1, replace=False)
    assert isinstance(refusal.value.__cause__, ReadTimeoutError)


class _Worker:
    """Of a process that is attached: has the owner do something, and then what `meanwhile` says."""

    def __init__(self, came_of_it: Relayed, meanwhile: Callable[[], None]) -> None:
        self.came_of_it = came_of_it
        self.meanwhile = meanwhile
        self.asked: list[Mapping[str, object]] = []

    def is_attached(self) -> bool:
        return True

    def do(self, what: str, arguments: Mapping[str, object], *rest: object) -> Relayed:
        self.asked.append(arguments)
        self.meanwhile()
        return self.came_of_it


@pytest.mark.parametrize("came_of_it", [Relayed.OURS_AGAIN, Relayed.DONE])
@pytest.mark.parametrize("replace", [True, False])
def test_an_eviction_that_is_done_again_leaves_who_came_to_the_address_meanwhile(
    came_of_it: Relayed, replace: bool
) -> None:
    node = _Listed(spoke={1, 2, 3})

    def another_comes() -> None:
        for change in (ConfChange(ConfOp.REPLACE, 3), ConfChange(ConfOp.ADD_LEARNER, 4, "n3:1", TOKEN)):
            node.applied_config = node.applied_config.changed(change)

    relay = _Worker(came_of_it, another_comes)
    membership = SimpleNamespace(require_node=lambda: node, relay=relay)
    calls = SimpleNamespace(wait_read=lambda timeout: None)
    roster = Roster(cast(Any, membership), cast(Any, calls), cast(Any, nullcontext()), cast(Any, None))
    roster.evict("n3:1", 1.0, replace)
    assert 4 in node.applied_config.learners and not node.done
    # As the next owner is asked, which is told so if it was asked once more only.
    assert [each["expected"] for each in relay.asked] == [3]
    membership.relay = Relay(None, Event(), 1.0)
    with pytest.raises(UnknownPeerError, match="no member is at n3:1"):
        roster.evict("n3:1", 1.0, replace, 3)
    assert 4 in node.applied_config.learners and not node.done
    roster.evict("n3:1", 1.0, replace)
    assert 4 not in node.applied_config.learners


@pytest.mark.parametrize("later", [None, NotListeningError("the second")])
def test_a_node_that_starts_just_as_its_listener_says_something_else_believes_what_was_said_last(
    monkeypatch: pytest.MonkeyPatch, later: NotListeningError | None
) -> None:
    known: list[NotListeningError | None] = []
    first = NotListeningError("the first")

    class Starting:
        """A node that is told of the first trouble a moment after that is out of date."""

        node_id, cluster_id = 1, 1

        def __init__(self, *args: object) -> None:
            self.vitals = self

        def runs_state_here(self) -> bool:
            return False

        def start(self) -> None: ...

        def note_listening(self, trouble: NotListeningError | None) -> None:
            if trouble is first and not known:
                known.append(trouble)
                membership.note_listening(later)
            known.append(trouble)

    monkeypatch.setattr(formation, "Node", Starting)
    store = cast(
        Any,
        SimpleNamespace(
            is_initialized=True,
            unload=lambda: None,
            founded=SimpleNamespace(is_silent=False, entry=lambda: b"", path=""),
        ),
    )
    membership = Membership("a:1", store, cast(Any, None), cast(Any, None), NodeOptions())
    membership.note_listening(first)
    membership.resume()
    assert known[-1] is later


TOKEN = b"t" * 16


class _Listed:
    """The leader's node of three that were listed; whoever of them has a life spoke."""

    node_id, cluster_id, is_leader, identity = 1, 9, True, None

    def __init__(self, spoke: set[int], refusal: Refusal | None = None) -> None:
        self.applied_config = Configuration({i: Member(f"n{i}:1", True, b"%d" % i * 16) for i in (1, 2, 3)}, 3)
        self.spoke = spoke
        self.refusal = refusal
        self.done: list[ConfOp] = []

    def check_receives(self) -> None:
        """It is a node."""

    def wait_until(self, is_so: Callable[[], bool], timeout: float) -> None:
        assert is_so()

    def latest_life(self, node_id: int) -> Life:
        return Life(int(node_id in self.spoke), 0)

    def change_membership(self, change: ConfChange, is_done: Callable[[Configuration], bool], timeout: float) -> Any:
        if self.refusal is None:
            self.applied_config = self.applied_config.changed(change)
            self.done.append(change.op)
            assert is_done(self.applied_config)
        return self.refusal


class _Strict:
    def is_allowed_member(self, addr: str) -> bool:
        return False

    def next_node_id(self) -> tuple[int, int]:
        return 1, 0

    def increment_next_node_id(self, node_id: int, version: int) -> bytes:
        return b""


def admitting(monkeypatch: pytest.MonkeyPatch, node: _Listed, listed: set[str]) -> Roster:
    """A roster that finds who asks where it says that it is, and is current at once."""
    there = Answerer(proof=join_proof(TOKEN), code="uninitialized")
    monkeypatch.setattr(
        formation,
        "who_answers",
        lambda network, me, addrs, timeout: {a: there if a == "n3:1" else Answerer() for a in addrs},
    )
    membership = SimpleNamespace(require_node=lambda: node, state=_Strict(), listed=frozenset(listed))
    calls = SimpleNamespace(wait_read=lambda timeout: None)
    return Roster(cast(Any, membership), cast(Any, calls), cast(Any, nullcontext()), cast(Any, None))


def test_a_listed_member_that_never_spoke_makes_room_for_who_is_there_now(monkeypatch: pytest.MonkeyPatch) -> None:
    node = _Listed(spoke={1, 2})
    reply = admitting(monkeypatch, node, {"n1:1", "n2:1", "n3:1"}).admit(JoinRequest("n3:1", TOKEN))
    assert (reply.node_id, node.done) == (4, [ConfOp.REPLACE, ConfOp.ADD_LISTED])
    assert node.applied_config.learners == {4} and node.applied_config.was_removed(3)


@pytest.mark.parametrize(
    ("spoke", "listed", "refusal", "code"),
    [
        ({1, 2, 3}, {"n1:1", "n2:1", "n3:1"}, None, "address_in_use"),  # it may come back with what it promised
        ({1, 2}, {"n1:1", "n2:1"}, None, "address_not_allowed"),
        ({1, 2}, {"n1:1", "n2:1", "n3:1"}, Refusal.CHANGE_PENDING, "busy"),
    ],
)
def test_no_other_member_makes_room(
    monkeypatch: pytest.MonkeyPatch, spoke: set[int], listed: set[str], refusal: Refusal | None, code: str
) -> None:
    node = _Listed(spoke, refusal)
    with pytest.raises(Problem) as raised:
        admitting(monkeypatch, node, listed).admit(JoinRequest("n3:1", TOKEN))
    assert raised.value.code == code
    assert 3 in node.applied_config.members and not node.done


def test_room_is_made_only_for_who_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    node = _Listed(spoke={1, 2})
    with pytest.raises(Problem) as raised:
        admitting(monkeypatch, node, {"n3:1"}).admit(JoinRequest("n3:1", b"u" * 16))
    assert raised.value.code == "unreachable_joiner" and not node.done
