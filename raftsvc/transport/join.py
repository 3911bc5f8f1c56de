"""How a node that belongs to no cluster asks to be let in."""

from __future__ import annotations

import random
import threading
import time

from raftsvc.core.messages import MalformedError
from raftsvc.errors import (
    AddressInUseError,
    AddressNotAllowedError,
    JoinFailedError,
    PeerUninitializedError,
    RaftError,
    StoppedError,
)
from raftsvc.transport.peer import Network, UnreachableError
from raftsvc.transport.wire import JoinReply, JoinRequest, Problem, peer_url

_FINAL: dict[str, type[RaftError]] = {
    "address_not_allowed": AddressNotAllowedError,
    "address_in_use": AddressInUseError,
    "uninitialized": PeerUninitializedError,
}


_ANSWER_SECONDS = 15.0
"""A leader answers a join within ten seconds; one that does not will not."""


def request_join(
    network: Network, boot_url: str, addr: str, token: bytes, timeout: float, stopped: threading.Event
) -> JoinReply:
    """Ask for membership at `boot_url`, and at the leader that it names, until admitted or refused.

    Safe to repeat: the token makes the cluster give the same id again.  Raises
    AddressNotAllowedError, AddressInUseError, PeerUninitializedError,
    JoinFailedError when `timeout` seconds are over.
    """
    deadline = time.monotonic() + timeout
    boot = peer_url(boot_url)
    url = boot
    challenge = ""
    pause = 0.1
    while True:
        left = deadline - time.monotonic()
        try:
            request = JoinRequest(addr, token, challenge)
            limit = min(max(0.1, left), _ANSWER_SECONDS)
            return JoinReply.decode(network.post(url, "join", request.encode(), "", 0, 0, timeout=limit))
        except Problem as problem:
            if problem.code in _FINAL:
                raise _FINAL[problem.code](f"{url}: {problem.detail}") from problem
            why = str(problem)
            challenge = ""
            if problem.code == "challenge":
                challenge = problem.extra.get("challenge", "")
            elif problem.code == "not_leader" and problem.extra.get("leader"):
                url = peer_url(problem.extra["leader"])
            else:
                url = boot
        except (UnreachableError, MalformedError) as error:
            why = str(error)
            url, challenge = boot, ""
        if stopped.is_set():
            raise StoppedError("the Service was stopped")
        if time.monotonic() >= deadline:
            raise JoinFailedError(f"{boot} did not admit {addr} within {timeout:g} s; the last answer: {why}")
        if not challenge:
            stopped.wait(min(pause, max(0.0, deadline - time.monotonic())) * random.uniform(0.5, 1.0))
            pause = min(1.0, pause * 1.5)
