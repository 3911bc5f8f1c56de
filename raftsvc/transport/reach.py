"""What an operator is told of a peer that cannot be reached: one line when it begins and one when it is over.

A peer that has only just been admitted is asked before it knows that it is a member, and one that stops says so
beforehand: neither is worth a warning.  Nor is each break of a link that breaks all the time.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable
from typing import Final

from requests import RequestException
from urllib3.exceptions import HTTPError

from raftsvc import logs

logger = logging.getLogger("raftsvc.transport")

JOINING_SECONDS: Final = 10.0
"""How long a node that was admitted may take to know of it."""
CALM_SECONDS: Final = 60.0
"""How long after a warning another one is none, if the same happens again."""

_EXPECTED: Final = {"stopping": logging.INFO}
_MEANINGS: Final = {"uninitialized": "it belongs to no cluster: its join was broken off, or its directory is lost"}


class Reach:
    """Whether a peer is reached, as its sender sees it.  Used by one thread."""

    def __init__(self, peer_id: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._peer_id = peer_id
        self._clock = clock
        self._lost_at: float | None = None
        self._said: tuple[int, str] | None = None
        self._warned_at: dict[str, float] = {}

    def failed(self, addr: str, why: str, code: str = "") -> None:
        """What was sent to `addr` was lost; `code` if a node there said so."""
        now = self._clock()
        if self._lost_at is None:
            self._lost_at = now
        if code == "uninitialized" and now - self._lost_at < JOINING_SECONDS:
            return
        if self._said is not None and self._said[1] == code:
            return
        level = _EXPECTED.get(code, logging.WARNING)
        if level == logging.WARNING:
            if now - self._warned_at.get(code, -CALM_SECONDS) < CALM_SECONDS:
                level = logging.INFO
            else:
                self._warned_at[code] = now
        self._said = (level, code)
        text = f"node {self._peer_id} at {addr} is not reached: {_MEANINGS.get(code, why)}"
        logs.tell(logger, level, text, logs.what("peer-lost", member=self._peer_id))

    def succeeded(self, addr: str | None) -> None:
        """The peer took what was sent to `addr`, or comes for it."""
        if self._lost_at is None:
            return
        if self._said is not None:
            seconds = self._clock() - self._lost_at
            text = f"node {self._peer_id} at {addr} is reached again, after {seconds:.1f} s"
            logs.tell(logger, self._said[0], text, logs.what("peer-reached", member=self._peer_id))
        self._lost_at = self._said = None


def reason_of(error: BaseException) -> str:
    """In a few words why no answer came: what the system said, below all that libraries say about it.

    Nothing is looked for below what the system said: there is what the caller was at, which has nothing to do with it.
    """
    current: object = error
    while isinstance(current, (RequestException, HTTPError)):
        inner = current.args[0] if current.args else None
        if not isinstance(inner, ssl.SSLError):  # whose reason is a code, and no error
            inner = getattr(inner, "reason", None)
        current = inner or getattr(current, "reason", None) or current.__cause__ or current.__context__
    if isinstance(current, ssl.SSLCertVerificationError) and current.verify_message:
        return f"its certificate does not hold: {current.verify_message}"
    said = (current.strerror or str(current)) if isinstance(current, OSError) else ""
    return said or str(error)
