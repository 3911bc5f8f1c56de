"""Reads without a round, while promises are kept (thesis 6.4.1; R14)."""

from __future__ import annotations

from collections import deque
from typing import Final

from raftsvc.core.progress import Progress
from raftsvc.core.replication import Replication
from raftsvc.core.server import Server

_LEASE_PERCENT: Final = 90  # of a promise: what the clocks of two nodes may differ by in rate
_NO_LEASE: Final = (0, 0)
_FOR_EVER: Final = 2**63


class Lease:
    """From when until when nobody but this leader can lead, by its caller's clock."""

    __slots__ = ("_is_forgone", "_replication", "_rounds", "_server", "_window")

    def __init__(self, server: Server, replication: Replication) -> None:
        self._server = server
        self._replication = replication
        # The rounds that promises may answer, and when each was sent.
        self._rounds: deque[tuple[int, int]] = deque(maxlen=server.settings.election_ticks)
        self._is_forgone = False
        self._window = _NO_LEASE

    def holds(self, now: int) -> bool:
        """Whether nobody else can lead at `now`, so that what is committed here is all there is.

        The one question that may be asked without the lock that the core is under: what
        is committed is looked at after it.
        """
        since, until = self._window
        return since <= now < until

    def ask(self) -> None:
        """Heartbeats are about to leave: the answers to these will renew the lease."""
        self._rounds.append((self._replication.next_round(), self._server.now))
        self.renew()

    def forgo(self) -> None:
        """Somebody was asked to take over, and may do so whenever the message comes: no lease in this term."""
        self._is_forgone = True
        self._window = _NO_LEASE

    def renew(self) -> None:
        """See what the promises amount to.  Before that clock's first mark it went back: no lease.

        A rival's majority would include this voter itself, or one that promised not to
        help; the configurations of both differ by one member at most (R8).
        """
        server = self._server
        if not self._rounds or self._is_forgone or not server.has_own_term_commit:
            self._window = _NO_LEASE
            return
        config = server.config
        progress = self._replication.progress
        ends = sorted(_FOR_EVER if i == server.node_id else self._bound_until(progress[i]) for i in config.voters)
        self._window = self._rounds[-1][1], ends[len(ends) - config.quorum()]

    def _bound_until(self, progress: Progress) -> int:
        """When the promise ends that came with the latest lease round it accepted.

        One that it only refused tells nothing of its length, which is another after a restart (R3, R14).
        """
        accepted, promise_ns = progress.promise
        for number, sent in reversed(self._rounds):
            if number <= accepted:
                return sent + min(promise_ns, self._server.settings.promise_ns) * _LEASE_PERCENT // 100
        return 0
