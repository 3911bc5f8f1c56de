"""Who is there: those who joined, and are heard of."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from raftsvc.errors import OverloadedError
from raftsvc.kv import Hold, KeyValue
from raftsvc.kv.transactions import MAX_UNITS

_LOOK_SECONDS = 30.0


class Party:
    """Those who are there.  Made by `KeyValue.party`.

        with store.party("web").join(b"10.0.0.7:8000"):
            serve()

        for address in store.party("web"):
            print(address)

    Who joined is there until it leaves, or was not heard of for `ttl` seconds.
    """

    def __init__(self, store: KeyValue, name: str, ttl: float = 15.0) -> None:
        """See `KeyValue.claim`."""
        self._store = store
        self._name = f"party:{name}"
        self._ttl = ttl

    def join(self, data: bytes | None = None, timeout: float = 10.0) -> Hold:
        """Be there, as `data`; `release` of what it returns, or the end of a `with`, leaves.  Raises as `claim`."""
        hold = self._store.claim(self._name, size=MAX_UNITS, ttl=self._ttl, data=data, timeout=timeout)
        if hold is None:
            raise OverloadedError(f"{self._name!r} was not joined within {timeout:g} s")
        return hold

    def members(self, timeout: float = 5.0, *, max_age: float | None = None) -> list[bytes]:
        """The data of all who are there, in the order in which they came."""
        return [each.data for each in self._store.claims(self._name, timeout, max_age=max_age) if each.fence]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.members())

    def __len__(self) -> int:
        return len(self.members())

    def watch(self, timeout: float | None = None) -> Iterator[list[bytes]]:
        """`members`, first as they are, then whenever somebody came or left.

        Of changes that follow each other faster than they are taken only what came of them is given.

        timeout: in seconds: it ends once nobody came or left for so long; None: it waits without end.
        """
        seconds = math.inf if timeout is None else timeout
        claims = self._store.claims(self._name)
        while True:
            yield [each.data for each in claims if each.fence]
            known = claims
            ends_at = time.monotonic() + seconds
            while claims == known:
                left = ends_at - time.monotonic()
                if left <= 0:
                    return
                claims = self._store.wait_claims(self._name, known, min(left, _LOOK_SECONDS))
