"""Who is connected to the listener: how long each may take for what it does, and who goes when there are too many.

A thread for each connection is cheap to keep waiting, and whoever reaches the port can
keep one waiting.  So every connection has, at each moment, a deadline for what it is at:
the handshake, the head of a request, its body, the taking of the answer, the pause before
the next request.  It is one for the whole of it, for a byte now and then is no progress.
`sweep` ends who is late, from outside, so that nothing has to be asked for each read.

Until a peer's word was verified on it a connection is a stranger's.  When the listener is
full, a stranger makes room for who comes: the one that has been at its request for longest,
of those from the address that has most.  So nobody who only keeps connections shuts others out,
nor is anybody kept out because he comes through the same balancer as others.
Strangers may also, all together, send no more than so many bytes at a time before they are known.

No sockets and no clock here: both are given.
"""

from __future__ import annotations

import ipaddress
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

HANDSHAKE_SECONDS: Final = 10.0
HEAD_SECONDS: Final = 10.0
"""From the first byte of a request, or from the beginning of the connection, to the end of its head."""
IDLE_SECONDS: Final = 60.0
"""Between two requests."""
TRANSFER_SECONDS: Final = 20.0
TRANSFER_BYTES_PER_SECOND: Final = 4096
"""A body, or an answer, has the seconds above and as many more as its length takes at this rate."""
MAX_STRANGE_BYTES: Final = 32 * 1024 * 1024
_MAX_COUNTED_BYTES: Final = 1024 * 1024
"""No more of a body is ever kept, however much is announced."""


class Client(Protocol):
    """The other end of a connection."""

    def break_off(self) -> None:
        """End the connection, from any thread, at once; may raise OSError."""


class Connection:
    """One connection, and what it is at.  Changed by the thread that serves it, and looked at by others."""

    __slots__ = (
        "_clock",
        "body_bytes",
        "client",
        "deadline",
        "is_broken_off",
        "is_peers",
        "is_streaming",
        "origin",
        "since",
    )

    def __init__(self, host: str, client: Client, clock: Callable[[], float]) -> None:
        """host: where it comes from."""
        self._clock = clock
        self.origin = origin_of(host)
        self.client = client
        self.is_broken_off = False
        self.is_peers = False
        """A peer's word was verified on it."""
        self.is_streaming = False
        """It takes an answer that has no end, which only a peer is given, and which looks after itself."""
        self.since = clock()
        """When it began to be at its present request: accepted, or done with the one before."""
        self.deadline: float | None = self.since + HANDSHAKE_SECONDS
        self.body_bytes = 0

    def expects_head(self, seconds: float = HEAD_SECONDS) -> None:
        """The next request has to be there, or its head to be whole, so soon."""
        self.deadline = self._clock() + seconds

    def takes_body(self, length: int) -> None:
        """A body of so many bytes is coming."""
        self.body_bytes = min(length, _MAX_COUNTED_BYTES)
        self._transfers(self.body_bytes)

    def has_request(self) -> None:
        """All of the request is there; how long the answer takes is not up to the client."""
        self.body_bytes = 0
        self.deadline = None

    def takes_answer(self, length: int) -> None:
        """An answer of so many bytes is being sent."""
        self._transfers(length)

    def _transfers(self, length: int) -> None:
        self.deadline = self._clock() + TRANSFER_SECONDS + length / TRANSFER_BYTES_PER_SECOND

    def streams(self) -> None:
        """An answer without an end is being sent."""
        self.is_streaming = True
        self.deadline = None

    def is_done(self) -> None:
        """The answer was sent; another request may come."""
        self.is_streaming = False
        self.body_bytes = 0
        self.since = self._clock()
        self.deadline = self.since + IDLE_SECONDS

    def vouch(self) -> None:
        """A peer's word was verified: it is no stranger's."""
        self.is_peers = True

    def is_late(self, now: float) -> bool:
        """Whether it took too long, and was not broken off for it yet."""
        deadline = self.deadline
        return deadline is not None and now > deadline and not self.is_broken_off


class Connections:
    """All connections of a listener.  Thread-safe."""

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()  # guards _open
        self._open: set[Connection] = set()

    def clients(self) -> list[Client]:
        """The other ends of all of them."""
        return [one.client for one in self._open]

    def admit(self, host: str, client: Client) -> Connection | None:
        """Take a new one in, for which a stranger may have to go; None if only peers are there."""
        connection = Connection(host, client, self._clock)
        victim = None
        with self._lock:
            if len(self._open) >= self._limit:
                victim = self._longest_stranger(lambda other: True)
                if victim is None:
                    return None
                self._open.discard(victim)
            self._open.add(connection)
        if victim is not None:
            _break_off(victim)
        return connection

    def make_room(self) -> None:
        """Have a stranger go, for the process has no means to take in who comes."""
        with self._lock:
            victim = self._longest_stranger(lambda other: True)
            if victim is not None:
                self._open.discard(victim)
        if victim is not None:
            _break_off(victim)

    def announce_body(self, connection: Connection, length: int) -> None:
        """`connection` is going to send so many bytes; others may have to go if strangers send too many at once."""
        connection.takes_body(length)
        if connection.is_peers:
            return
        victims = []
        with self._lock:
            total = sum(other.body_bytes for other in self._open if not other.is_peers)
            while total > MAX_STRANGE_BYTES:
                victim = self._longest_stranger(lambda other: other.body_bytes > 0 and other is not connection)
                if victim is None:
                    break
                total -= victim.body_bytes
                self._open.discard(victim)
                victims.append(victim)
        for victim in victims:
            _break_off(victim)

    def forget(self, connection: Connection) -> None:
        """It has ended."""
        with self._lock:
            self._open.discard(connection)

    def sweep(self) -> None:
        """End those that are late."""
        now = self._clock()
        with self._lock:
            late = [one for one in self._open if one.is_late(now)]
        for one in late:
            _break_off(one)

    def break_off_all(self) -> None:
        """End every one of them."""
        with self._lock:
            every = list(self._open)
        for one in every:
            _break_off(one)

    def _longest_stranger(self, may_go: Callable[[Connection], bool]) -> Connection | None:
        strangers = [one for one in self._open if not (one.is_peers or one.is_streaming) and may_go(one)]
        if not strangers:
            return None
        crowd = Counter(one.origin for one in strangers)
        most = max(crowd.values())
        return min((one for one in strangers if crowd[one.origin] == most), key=lambda one: one.since)


def _break_off(connection: Connection) -> None:
    connection.is_broken_off = True
    with suppress(OSError):  # it may just have ended by itself
        connection.client.break_off()


def origin_of(host: str) -> str:
    """Whose connections count together: an address, or of IPv6 the network that one host draws its addresses from."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(getattr(address, "ipv4_mapped", None) or address)
