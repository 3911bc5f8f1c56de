"""Positions in the log as clients keep them: an index, with the id of the cluster whose log it is."""

from __future__ import annotations

from raftsvc.errors import UninitializedError
from raftsvc.kv import KeyValue


class Positions:
    """What positions are of a store.

    are_known: whether this process applies the log; a connected client does not, and knows of no positions.
    """

    def __init__(self, kv: KeyValue) -> None:
        self._kv = kv
        self.are_known = kv.is_here
        self._cluster_id: str | None = None

    def position(self, index: int) -> str:
        """That, as `Watch.position` says it.  Raises UninitializedError."""
        if self._cluster_id is None:
            found = self._kv.service.status().get("cluster_id")
            if not isinstance(found, str):
                raise UninitializedError("this node belongs to no cluster yet, and knows no positions")
            self._cluster_id = found
        return f"{self._cluster_id}:{index}"
