"""One address at which a member may answer, and what is certain of a request that was sent there.

Who asks introduces himself before he says anything that counts, so who does not know the key, or
is no member, never had that.  Of what was said later these certainly came to nothing: what could not be sent at
all, and what a member refused, by an answer that is signed.  All else is `LostError`.
"""

from __future__ import annotations

import itertools
import json
import secrets
import time

import requests
from urllib3.exceptions import NewConnectionError

from raftsvc.addresses import peer_url
from raftsvc.client.attempts import LostError, NotSentError
from raftsvc.transport import Envelope, Network, Problem
from raftsvc.transport.visits import HELLO, Visit
from raftsvc.transport.wire import PROTOCOL_VERSION, UnreachableError, UnsignedError

_MAX_SIGNINGS = 4
_LEAST_SECONDS = 0.001


class Contact:
    """Requests to one address.  Thread-safe: what it remembers is one value at a time.

    members: where the members were, as who answered here last said.
    refuses_key: whether who answered here last did not know the key.
    """

    def __init__(self, addr: str, network: Network, name: str) -> None:
        """name: of the key that `network` signs with."""
        self.addr = addr
        self.url = peer_url(addr)
        self._network = network
        self._name = name
        self._who = secrets.token_hex(16)  # of this contact alone: nobody else knows these numbers
        self._numbers = itertools.count(1)
        self._epoch = ""  # the process to which it is known; empty: to none
        self.members: tuple[str, ...] = ()
        self.cluster = ""
        self.refuses_key = False

    def ask(self, visit: Visit, cluster: str, deadline: float) -> bytes:
        """The answer to one request; raises Problem if it was refused, NotSentError, LostError.

        cluster: of which who answers has to be; empty if that is not known yet.
        """
        body = visit.encode()
        for _ in range(_MAX_SIGNINGS):
            epoch = self._epoch or self._introduce(cluster, deadline)
            try:
                return self._post(epoch, "", cluster, body, deadline)
            except Problem as problem:
                if problem.code not in ("challenge", "too_old"):
                    raise
                if problem.code == "challenge":  # another process answers there now, or it forgot this one
                    self._epoch = ""
            except UnreachableError as error:
                self._epoch = ""
                if _was_never_sent(error):
                    raise NotSentError(f"{self.addr}: {error}") from error
                raise LostError(f"{self.addr}: {error}") from error
        raise NotSentError(f"{self.addr}: each request there reaches another process; connect to members themselves")

    def _introduce(self, cluster: str, deadline: float) -> str:
        """Be known to the process that answers there; which one that is.  Raises Problem, NotSentError."""
        epoch = challenge = ""
        hello = Visit(HELLO, 0.0).encode()
        for _ in range(_MAX_SIGNINGS):
            try:
                said = json.loads(self._post(epoch, challenge, cluster, hello, deadline))
                self.cluster, self.members = str(said["cluster"]), tuple(map(str, said["members"]))
                self.refuses_key = False
                self._epoch = epoch
                return epoch
            except Problem as problem:
                if problem.code != "challenge":
                    raise
                epoch, challenge = problem.extra.get("epoch", ""), problem.extra.get("challenge", "")
            except UnreachableError as error:
                raise self._not_introduced(error) from error
            except (ValueError, KeyError, TypeError) as error:
                raise NotSentError(f"{self.addr}: what it says of itself does not decode") from error
        raise NotSentError(f"{self.addr}: each request there reaches another process; connect to members themselves")

    def _not_introduced(self, error: UnreachableError) -> NotSentError:
        """Nothing was said yet that counts, whoever it is."""
        code = error.problem.code if isinstance(error, UnsignedError) else ""
        self.refuses_key = code == "unknown_key"
        if self.refuses_key:
            return NotSentError(
                f"{self.addr}: no client key of the name {self._name!r} is known there, or it is another: give all "
                "nodes the same client_keys=",
                is_key=True,
            )
        if isinstance(error, UnsignedError) and code != "unknown":
            return NotSentError(f"{self.addr}: {error.problem}")
        return NotSentError(f"{self.addr}: {error}")

    def _post(self, epoch: str, challenge: str, cluster: str, body: bytes, deadline: float) -> bytes:
        number = str(next(self._numbers))
        envelope = Envelope(
            "POST",
            "client",
            PROTOCOL_VERSION,
            cluster,
            self._name,
            "",
            challenge,
            self._who,
            "",
            epoch,
            number,
        )
        left = deadline - time.monotonic()
        if left < _LEAST_SECONDS:
            raise NotSentError(f"{self.addr}: there was no time to ask")
        return self._network.post(self.url, envelope, body, left)


def _was_never_sent(error: UnreachableError) -> bool:
    """Whether there was no connection on which anything could have been sent."""
    cause = error.__cause__
    if isinstance(cause, requests.ConnectTimeout):
        return True
    inner = cause.args[0] if isinstance(cause, requests.ConnectionError) and cause.args else None
    return isinstance(getattr(inner, "reason", inner), NewConnectionError)
