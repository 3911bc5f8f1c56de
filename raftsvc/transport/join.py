"""How a node that belongs to no cluster asks to be let in."""

from __future__ import annotations

import queue
import random
import secrets
import threading
import time

from raftsvc.addresses import peer_url
from raftsvc.core.messages import MalformedError
from raftsvc.errors import (
    AddressInUseError,
    AddressNotAllowedError,
    ConfigurationError,
    JoinFailedError,
    PeerUninitializedError,
    RaftError,
    StoppedError,
)
from raftsvc.transport.auth import Envelope
from raftsvc.transport.peer import Network
from raftsvc.transport.wire import PROTOCOL_VERSION, JoinReply, JoinRequest, Problem, UnreachableError

_FINAL: dict[str, type[RaftError]] = {
    "address_not_allowed": AddressNotAllowedError,
    "address_in_use": AddressInUseError,
    "uninitialized": PeerUninitializedError,
    "local_only": ConfigurationError,
}


_ANSWER_SECONDS = 15.0
"""A leader answers a join within ten seconds; one that does not will not."""


def request_join(
    network: Network, boot_url: str, addr: str, token: bytes, timeout: float, stopped: threading.Event
) -> JoinReply:
    """Ask for membership at `boot_url`, and at the leader that it names, until admitted or refused.

    Safe to repeat: the token makes the cluster give the same id again.  Raises
    AddressNotAllowedError, AddressInUseError, PeerUninitializedError,
    ConfigurationError if who is asked has no secret and this is another machine,
    JoinFailedError when `timeout` seconds are over.
    """
    deadline = time.monotonic() + timeout
    boot = peer_url(boot_url)
    url = boot
    epoch = cluster = to = ""
    pause = 0.1
    while True:
        left = deadline - time.monotonic()
        try:
            envelope = stranger_envelope("POST", "join", addr, epoch, cluster, to)
            return _ask(network, url, envelope, JoinRequest(addr, token), min(max(0.1, left), _ANSWER_SECONDS))
        except Problem as problem:
            if problem.code in _FINAL:
                raise _FINAL[problem.code](f"{url}: {problem.detail}") from problem
            why = str(problem)
            # One challenge is met at once; who answers with another one has to wait.
            is_met = bool(epoch)
            epoch = problem.extra.get("challenge", "") if problem.code == "challenge" else ""
            cluster, to = problem.extra.get("cluster", ""), problem.extra.get("node", "")
            if not epoch:
                url = _leader_url(problem) or boot
        except (UnreachableError, MalformedError) as error:
            why = str(error)
            url, epoch, is_met = boot, "", False
        if stopped.is_set():
            raise StoppedError("the Service was stopped")
        if time.monotonic() >= deadline:
            raise JoinFailedError(f"{boot} did not admit {addr} within {timeout:g} s; the last answer: {why}")
        if not epoch or is_met:
            stopped.wait(min(pause, max(0.0, deadline - time.monotonic())) * random.uniform(0.5, 1.0))
            pause = min(1.0, pause * 1.5)


def stranger_envelope(
    method: str, path: str, addr: str = "", epoch: str = "", cluster: str = "", to: str = ""
) -> Envelope:
    """For a request of who is no member.  epoch: the challenge that it answers, issued by node `to` of `cluster`."""
    number = str(secrets.randbits(63))
    return Envelope(method, path, PROTOCOL_VERSION, cluster, "", to, "", "", addr, epoch, number)


def _leader_url(problem: Problem) -> str | None:
    """Where the leader is, if the answer names a place that makes sense."""
    try:
        return peer_url(problem.extra.get("leader", "")) if problem.code == "not_leader" else None
    except ConfigurationError:
        return None


def _ask(network: Network, url: str, envelope: Envelope, request: JoinRequest, timeout: float) -> JoinReply:
    """One request, `timeout` seconds in all.

    In a thread of its own: the timeout of a socket begins anew with each byte, so
    it does not end an answer that comes drop by drop.
    """
    outcome: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put(network.post(url, envelope, request.encode(), timeout=timeout))
        except Exception as error:
            outcome.put(error)

    threading.Thread(target=run, name="raftsvc-join", daemon=True).start()
    try:
        answer = outcome.get(timeout=timeout)
    except queue.Empty:
        raise UnreachableError(f"no whole answer within {timeout:.3g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return JoinReply.decode(answer)
