"""How a running node is, for those who ask from outside; and what they know of it that it cannot see itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from raftsvc.core.messages import NO_NODE
from raftsvc.core.raft import Role
from raftsvc.errors import RaftError
from raftsvc.member.engine import Engine
from raftsvc.member.health import Condition
from raftsvc.member.peers import Peers
from raftsvc.member.threads import Threads
from raftsvc.member.turns import Turn


class View(NamedTuple):
    """Who leads, who belongs to the cluster and what is wrong, as one node has it at one moment.

    is_over: it takes no further part.
    """

    term: int = 0
    leader_id: int = NO_NODE
    leader_addr: str | None = None
    is_leader: bool = False
    members: Mapping[int, str] = {}
    error: RaftError | None = None
    is_over: bool = False

    @property
    def lead(self) -> tuple[int, int, str | None]:
        """Who leads: term, id and address."""
        return self.term if self.leader_id else 0, self.leader_id, self.leader_addr


class Vitals:
    """Of one node."""

    __slots__ = ("_engine", "_is_settled", "_peers", "_threads", "_turn")

    def __init__(
        self, engine: Engine, turn: Turn, peers: Peers, threads: Threads, is_settled: Callable[[], bool]
    ) -> None:
        """is_settled: whether the node is a voter that knows its leader."""
        self._engine = engine
        self._turn = turn
        self._peers = peers
        self._threads = threads
        self._is_settled = is_settled

    def is_live(self) -> bool:
        """Whether every thread that the node needs is at work; halted applying is not mended by a restart."""
        return self._threads.are_alive() or self._engine.health.halted is not None

    def is_ready(self) -> bool:
        """Whether callers are served well here, rather than elsewhere."""
        return self._engine.health.may_be_ready and self._is_settled()

    def conditions(self) -> Mapping[str, str]:
        """What is wrong, and what is said of it, by the name of the condition, the gravest first."""
        return self._engine.health.conditions()

    def await_change(self, told: Sequence[View], timeout: float) -> View:
        """The node as it is once it is not as `told` any more, or after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._turn.lock:
            while [view := self._view()] == told and not view.is_over and time.monotonic() < deadline:
                self._turn.changed.wait(deadline - time.monotonic())
        return view

    def _view(self) -> View:
        core, health = self._engine.core, self._engine.health
        leader = core.config.members.get(core.leader_id)
        return View(
            core.term,
            core.leader_id,
            leader.addr if leader is not None else None,
            core.role is Role.LEADER,
            {node_id: member.addr for node_id, member in core.config.members.items()},
            health.err(),
            health.is_over or core.is_removed,
        )

    @property
    def log_time_ms(self) -> int:
        """Log time as of the last entry that is applied here."""
        return self._engine.applying.applied_time_ms

    def hears_leader_by_itself(self) -> bool:
        """Whether what the leader says comes without a request that this process has to accept."""
        leader_id = self._engine.core.leader_id
        return leader_id == self._engine.node_id or self._peers.hears_stream_of(leader_id)

    def note_listening(self, trouble: RaftError | None) -> None:
        """The port on which others reach this node is not open; None: it is."""
        with self._turn:
            if trouble is not None:
                self._engine.vigil.begin(Condition.NOT_LISTENING, trouble)
            else:
                self._engine.vigil.end(Condition.NOT_LISTENING)

    def note(self, condition: Condition, trouble: RaftError | None, level: int = logging.ERROR) -> None:
        """Something that only others see is wrong with the node, or, None, not any more; said once, at that level."""
        with self._turn:
            if trouble is not None:
                self._engine.vigil.begin(condition, trouble, level)
            else:
                self._engine.vigil.end(condition)

    def note_claim(self, cluster: str, from_id: int) -> None:
        """A member of another cluster, who knows the secret, took this node for one of its own."""
        with self._turn:
            self._engine.vigil.note_claim(cluster, from_id)
