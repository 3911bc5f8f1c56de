"""Whether a request is new, or one that somebody recorded, or a proxy sends again.

A request of a peer names the life that it speaks as, the life of whom it speaks to, and a
number that rises.  So it is worth something to this start of this node only, and once:
numbers that were seen are remembered, for each sender and each kind of request, as far back as
requests of one kind may overtake each other; what is older is asked for again.  "Seen already"
means that it was delivered and its answer lost, and is no refusal.

Who has no life yet, because it only wants to join, or to look, answers a challenge, which
serves once.  A connected client, which asks much, answers one to be known, and numbers what it says from then on.

Thread-safe.  Bounded: by the members there are, and by who answered a challenge of late.
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections import deque
from typing import Final

from raftsvc.core.messages import Life
from raftsvc.macs import mac
from raftsvc.transport.wire import Problem

_KEPT_NUMBERS: Final = 64
_MAX_WINDOWS: Final = 1024
_MAX_KNOWN: Final = 4096
_CHALLENGE_SECONDS: Final = 60.0


class _Window:
    """The numbers that came from one life of one sender, of one kind of request."""

    __slots__ = ("_floor", "_seen", "life")

    def __init__(self, life: Life) -> None:
        self.life = life
        self._floor = 0
        self._seen: deque[int] = deque()

    def take(self, number: int) -> str | None:
        """Note `number`; why not, if it cannot be known to be new."""
        if number in self._seen:
            return "seen"
        if number <= self._floor:
            return "too_old"
        self._seen.append(number)
        if len(self._seen) > _KEPT_NUMBERS:
            oldest = min(self._seen)
            self._seen.remove(oldest)
            self._floor = oldest
        return None


class Freshness:
    """What one process remembers of the requests that it served."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards all below; the last in the order
        self._windows: dict[tuple[int, str], _Window] = {}
        self._redeemed: dict[str, float] = {}
        self._key = secrets.token_bytes(32)

    def take(self, sender: int, life: Life, kind: str, number: int) -> None:
        """Note a request, authentic and addressed to this life; raises Problem `seen` or `too_old` if it is not new."""
        with self._lock:
            window = self._windows.pop((sender, kind), None)
            if window is None or window.life != life:
                if window is not None and window.life.counter > life.counter:
                    self._windows[sender, kind] = window
                    raise Problem(409, "too_old", "this node has heard a later start of its sender")
                window = _Window(life)
                while len(self._windows) >= _MAX_WINDOWS:  # of those who are members no more
                    del self._windows[next(iter(self._windows))]
            self._windows[sender, kind] = window
            problem = window.take(number)
        if problem == "seen":
            raise Problem(409, "seen", "this request was delivered before")
        if problem is not None:
            raise Problem(409, problem, "this request may have been delivered before; send it again as a new one")

    # -- a life that is late

    def proof_for(self, sender: int, life: Life, latest: Life) -> str:
        """What `life` of `sender` has to repeat to show that it speaks after `latest` was heard."""
        said = f"{sender} {life} {latest}".encode()
        return mac(self._key, said).hex()[:32]

    # -- strangers

    def challenge(self) -> str:
        """A new challenge.  Nothing is kept of it, so that whoever asks for many takes nobody's place."""
        issued = f"{int(time.monotonic()):x}.{secrets.token_hex(8)}"
        return f"{issued}.{self._sign(issued)}"

    def _sign(self, issued: str) -> str:
        return mac(self._key, b"challenge " + issued.encode()).hex()[:32]

    def redeem(self, challenge: str) -> bool:
        """Whether `challenge`, in an authentic request, was issued here, lately, and not redeemed yet."""
        issued, _, signature = challenge.rpartition(".")
        if not hmac.compare_digest(self._sign(issued), signature):
            return False
        now = time.monotonic()
        with self._lock:
            self._redeemed = {c: since for c, since in self._redeemed.items() if now - since <= 2 * _CHALLENGE_SECONDS}
            is_first = challenge not in self._redeemed
            self._redeemed[challenge] = now
        return is_first and now - int(issued.partition(".")[0], 16) <= _CHALLENGE_SECONDS


class Introductions:
    """The clients that are known to one process.  Thread-safe.

    Bounded: who was not heard for longest is forgotten, and introduces himself again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _windows; before that of _freshness, the last in the order
        self._windows: dict[str, _Window] = {}
        self._freshness = Freshness()

    def challenge(self) -> str:
        """One for who wants to be known."""
        return self._freshness.challenge()

    def knows(self, who: str) -> bool:
        """Whether what `who` says is numbered here."""
        return who in self._windows

    def meet(self, who: str, challenge: str) -> bool:
        """Know `who` from now on, if `challenge`, in an authentic request of his, was issued here for one, lately."""
        if not self._freshness.redeem(challenge):
            return False
        with self._lock:
            self._windows.setdefault(who, _Window(Life()))
            while len(self._windows) > _MAX_KNOWN:
                del self._windows[next(iter(self._windows))]
        return True

    def take(self, who: str, number: int) -> None:
        """Note a request, authentic and for this process; raises Problem `seen` or `too_old` if it is not new."""
        with self._lock:
            window = self._windows.pop(who, None)
            if window is None:  # forgotten this very moment
                raise Problem(409, "too_old", "send it again as a new one")
            self._windows[who] = window
            problem = window.take(number)
        if problem == "seen":
            raise Problem(409, "seen", "this request was delivered before")
        if problem is not None:
            raise Problem(409, problem, "this request may have been delivered before; send it again as a new one")
