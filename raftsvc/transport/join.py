"""How a node that belongs to no cluster asks to be let in."""

from __future__ import annotations

import logging
import queue
import random
import secrets
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, NamedTuple

from raftsvc.addresses import peer_url
from raftsvc.core.messages import NO_NODE, Life, MalformedError
from raftsvc.errors import (
    AddressInUseError,
    AddressNotAllowedError,
    ConfigurationError,
    JoinFailedError,
    OutdatedError,
    PeerUninitializedError,
    RaftError,
    StoppedError,
)
from raftsvc.transport.auth import Envelope
from raftsvc.transport.peer import Network
from raftsvc.transport.wire import (
    PROTOCOL_VERSION,
    Identity,
    JoinReply,
    JoinRequest,
    Problem,
    UnreachableError,
    UnsignedError,
)

logger = logging.getLogger("raftsvc.transport")

_FINAL: dict[str, type[RaftError]] = {
    "address_not_allowed": AddressNotAllowedError,
    "address_in_use": AddressInUseError,
    "outdated": OutdatedError,
    "uninitialized": PeerUninitializedError,
    "local_only": ConfigurationError,
    "unauthenticated": ConfigurationError,
    "wrong_certificate": ConfigurationError,
    "unsupported_version": ConfigurationError,
    "malformed": ConfigurationError,
}
_DIFFER: Final = (
    "its secret and that of this node differ, or one of the two has none: all nodes of a cluster have the same"
)
_UNSIGNED: dict[str, str] = {
    "unauthenticated": _DIFFER,
    "challenge": _DIFFER,  # it has no secret, and asks who has one
    "not_leader": _DIFFER,
    "local_only": "it has no secret, and so serves its own machine only; give all nodes the same",
}
"""What is final although nobody signed it, and what it means.

Anybody on the way could have said so; but who can alter an answer can also see to it that none comes.
"""


def why_unsigned(problem: Problem) -> str:
    """What is wrong where a node refuses another before it knows who that is; empty if nothing is said of it."""
    return _UNSIGNED.get(problem.code, "")


_ANSWER_SECONDS: Final = 15.0
"""A leader answers a join within ten seconds; one that does not will not."""


def request_join(
    network: Network, boot_url: str, request: JoinRequest, timeout: float, stopped: threading.Event
) -> JoinReply:
    """Ask for membership at `boot_url`, and at the leader or the node that it names, until admitted or refused.

    Safe to repeat: the token makes the cluster give the same id again.  An answer that
    will not change ends it at once.  Raises AddressNotAllowedError, AddressInUseError, OutdatedError,
    PeerUninitializedError, ConfigurationError if the secrets differ, who is asked has none
    and this is another machine, or it speaks another version, JoinFailedError when
    `timeout` seconds are over.
    """
    addr = request.addr
    deadline = time.monotonic() + timeout
    boot = peer_url(boot_url)
    url = boot
    epoch = cluster = to = why = ""
    pause = 0.1
    while True:
        left = deadline - time.monotonic()
        try:
            envelope = stranger_envelope("POST", "join", addr, epoch, cluster, to)
            answer = network.post_within(url, envelope, request.encode(), min(max(0.1, left), _ANSWER_SECONDS))
            return JoinReply.decode(answer)
        except Problem as problem:
            if problem.code in _FINAL:
                what = _DIFFER if problem.code == "unauthenticated" else problem.detail
                raise _FINAL[problem.code](f"{url}: {what}") from problem
            if problem.code == "unreachable_joiner" and why != str(problem):
                logger.warning("joining by way of %s: %s; asking again", url, problem.detail)
            if problem.code != "challenge" or not why:
                why = str(problem)
            # One challenge is met at once; who answers with another one has to wait.
            is_met = bool(epoch)
            epoch = problem.extra.get("challenge", "") if problem.code == "challenge" else ""
            cluster, to = problem.extra.get("cluster", ""), problem.extra.get("node", "")
            if not epoch:
                url = _next_url(problem, url) or boot
        except (UnreachableError, MalformedError) as error:
            if isinstance(error, UnsignedError) and error.problem.code in _UNSIGNED:
                raise ConfigurationError(f"{url}: {_UNSIGNED[error.problem.code]}") from error
            if not why or left > 1.0:  # the last one is cut short, and would say so
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


class Answerer(NamedTuple):
    """Who answers at an address.

    node:  the member of our cluster that says that it is there; 0: none.
    life, addr: what that member says of itself.
    proof: what a node shows that belongs to no cluster and asks to join; see wire.
    code:  of the answer; empty if none came that a peer vouches for.
    """

    node: int = NO_NODE
    life: Life = Life()
    addr: str = ""
    proof: str = ""
    code: str = ""


def who_answers(network: Network, me: Identity, addrs: Iterable[str], timeout: float) -> dict[str, Answerer]:
    """Ask all of `addrs` at once who is there, and wait `timeout` seconds at most.  Whoever is a member hears of us."""
    wanted = list(dict.fromkeys(addrs))
    answers: queue.SimpleQueue[tuple[str, Answerer]] = queue.SimpleQueue()

    def ask(addr: str) -> None:
        try:
            answers.put((addr, _who_answers(network, me, addr, timeout)))
        except Exception:
            logger.exception("asking who answers at %s failed", addr)

    found = dict.fromkeys(wanted, Answerer())
    deadline = time.monotonic() + timeout
    for addr in wanted:
        with suppress(RuntimeError):  # no thread can be started: then nobody was reached
            threading.Thread(target=ask, args=(addr,), name="raftsvc-ask", daemon=True).start()
    for _ in wanted:
        try:
            addr, answerer = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        found[addr] = answerer
    return found


def _who_answers(network: Network, me: Identity, addr: str, timeout: float) -> Answerer:
    number = network.next_number()
    envelope = Envelope(
        "POST", "msg", PROTOCOL_VERSION, me.cluster, str(me.node_id), "0", "", str(me.life), me.addr, "", number
    )
    try:
        network.post_within(peer_url(addr), envelope, b"", timeout)
    except Problem as problem:
        said = problem.extra
        node, life = said.get("node", ""), Life.parse(said.get("life", ""))
        if problem.code == "wrong_node" and life is not None and node.isascii() and node.isdigit() and len(node) < 20:
            return Answerer(int(node), life, said.get("addr", ""), "", problem.code)
        return Answerer(proof=said.get("proof", ""), code=problem.code)
    except (UnreachableError, ConfigurationError):
        pass
    return Answerer()


def _next_url(problem: Problem, asked: str) -> str | None:
    """Where to ask next, if the answer names a place that makes sense: the leader, or the node of an attached process.

    asked: who answered.  Where one names that itself, for another process answers there each time, it is no help.
    """
    names = {"not_leader": ("leader",), "attached": ("addr", "leader")}.get(problem.code, ())
    for name in names:
        with suppress(ConfigurationError):
            url = peer_url(problem.extra.get(name, ""))
            if url != asked:
                return url
    return None
