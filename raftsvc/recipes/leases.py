"""Leases of one's own: what keys live and die with."""

from __future__ import annotations

import threading

from raftsvc.kv import LostError
from raftsvc.kv.leases import Lease as Kept


class Lease:
    """What keys live and die with.  Made by `KeyValue.lease`.

        with store.lease(ttl=15) as lease:
            store.set("workers/7", b"10.0.0.7", lease=lease)
            serve(until=lease.lost)

    When it ends, its keys are gone with the entry of the log that ends it, all of them before anybody else's next write
    is judged, and watchers are told of each: "expire" where it was not refreshed for `ttl`, "delete" where it was
    revoked.  A key has one lease at most: to set it without one, with another or with a `ttl`, or to delete it, takes
    it from this one; `touch` and `incr` do not.

    It ends once nobody refreshed it for `ttl`, in log time: no earlier, and later by as much as nobody led.  As long as
    `lost` is not set its keys are there, by clocks that run as fast as each other within a twentieth; a process that is
    frozen finds out when it goes on.  It belongs to the process: neither another nor a forked child can refresh it.
    The process keeps it until it is revoked, though nobody refers to it any more: end what is of a request or a job.
    """

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    @property
    def id(self) -> str:
        """As the cluster knows it."""
        return self._kept.id

    @property
    def ttl(self) -> float:
        """In seconds."""
        return self._kept.ttl

    @property
    def remaining(self) -> float:
        """For how many seconds it certainly lasts, by the clocks of this machine; 0 once it is lost."""
        return self._kept.remaining

    @property
    def lost(self) -> threading.Event:
        """Set once it counts as lost, by the clocks of this machine alone, or once it was revoked here."""
        return self._kept.lost

    def refresh(self, timeout: float = 5.0) -> None:
        """Have it last for its `ttl` from now on.  Raises LostError if it is over, else as `Service.propose`."""
        self._kept.refresh(timeout)

    def revoke(self, timeout: float = 5.0) -> None:
        """End it, and have its keys gone.  Raises as `Service.propose`: if that is not heard it runs out by itself."""
        self._kept.revoke(timeout)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Revoke it; raises LostError if it was lost before, unless something else was raised."""
        was_lost = self.lost.is_set()
        try:
            self.revoke()
        except Exception:
            if kind is None and not was_lost:
                raise
        if was_lost and kind is None:
            raise LostError(self.id)
