"""How a running node is, for those who ask from outside; and what they know of it that it cannot see itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from raftsvc.errors import RaftError
from raftsvc.member.engine import Engine
from raftsvc.member.health import Condition
from raftsvc.member.peers import Peers
from raftsvc.member.threads import Threads
from raftsvc.member.turns import Turn


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

    def note_claim(self, cluster: str, from_id: int) -> None:
        """A member of another cluster, who knows the secret, took this node for one of its own."""
        with self._turn:
            self._engine.vigil.note_claim(cluster, from_id)
