"""Whether a peer answers, and if not since when and why; for people, and for the health of the node.

Its sender and the holder of its stream write it, anybody reads it.  Nothing is decided by it here.
"""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from raftsvc.transport.wire import PROTOCOL_VERSION, Problem, UnreachableError


class PeerTrouble(NamedTuple):
    """Why a peer does not take what it is told.

    addr:  where that was tried.
    since: by `time.monotonic`.
    code:  of its answer, as in `Problem`; `unreachable` if there was none that is a peer's.
    why:   for people.
    """

    addr: str
    since: float
    code: str
    why: str


_MEANINGS: Final = {
    "unauthenticated": "its secret differs from this node's, or something in between refuses us",
    "wrong_cluster": "the node there belongs to another cluster",
    "wrong_node": "another node answers there",
    "void": "it knows two lives of this node, or one that this node forgot",
    "removed": "it says that this node was removed",
    "unsupported_version": f"and this one version {PROTOCOL_VERSION}: the two run different versions of raftsvc",
    "uninitialized": "the node there belongs to no cluster: its directory is empty",
}


class Contact:
    """What is known of one peer's answers."""

    __slots__ = ("_answered_at", "trouble")

    def __init__(self) -> None:
        self._answered_at = time.monotonic()
        self.trouble: PeerTrouble | None = None
        """What keeps it from being reached, as of the last attempt."""

    def answered(self) -> None:
        """It took what it was told, or said something."""
        self._answered_at = time.monotonic()
        self.trouble = None

    def failed(self, addr: str, error: Exception, after_seconds: float = 0.0) -> bool:
        """It did not, at `addr`; counts, as is returned, if it has not answered for so long by any way.

        That it is not where others are, either, tells nothing new.
        """
        now = time.monotonic()
        if now - self._answered_at < after_seconds:
            return False
        code = _code_of(error)
        before = self.trouble
        if before is not None and before.code != code == "wrong_node":
            return False
        since = before.since if before is not None and before.code == code else now
        why = f"{error} ({_MEANINGS[code]})" if code in _MEANINGS else str(error)
        self.trouble = PeerTrouble(addr, since, code, why)
        return True


def _code_of(error: Exception) -> str:
    if isinstance(error, Problem):
        return error.code
    if isinstance(error, UnreachableError) and error.status == 401:
        return "unauthenticated"  # who has another secret cannot sign that in a way that we could tell
    return "unreachable"
