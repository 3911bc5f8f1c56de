"""What a process asks a member on behalf of who operates the cluster: how it is, and to hand leadership over.

Like any stranger who knows the secret it answers a challenge first, so no request can be sent a second time by
somebody else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from raftsvc.addresses import peer_url
from raftsvc.errors import NotTransferredError, RaftError, TransferFailedError
from raftsvc.transport.asking import UnansweredError, ask_status
from raftsvc.transport.join import stranger_envelope, why_unsigned
from raftsvc.transport.peer import Network
from raftsvc.transport.wire import Problem, UnreachableError, UnsignedError

_LEAST_SECONDS: Final = 0.05
_CERTAIN: Final = frozenset(
    {"not_transferred", "no_member", "wrong_cluster", "wrong_certificate", "unauthenticated", "uninitialized"}
    | {"unsupported_version", "local_only", "overloaded", "attached", "stopping", "not_found"}
)
"""Answers after which nothing was handed over."""


def ask_picture(network: Network, addr: str, timeout: float) -> Mapping[str, Any]:
    """What the member at `addr` says of itself; see `Service.status`.  Raises RaftError."""
    try:
        return ask_status(network, addr, timeout)[0]
    except UnansweredError as error:
        raise RaftError(str(error)) from error


def ask_transfer(
    network: Network, describe: Callable[[], Mapping[str, Any]], addr: str, to: str, timeout: float
) -> None:
    """Have the leader at `addr` hand over to the member `to`.  Raises NotTransferredError, TransferFailedError.

    describe: what this member says of itself; see `Service.status`.
    """
    try:
        _ask(network, addr, to.encode(), timeout, describe())
    except Problem as problem:
        kind = NotTransferredError if problem.code in _CERTAIN else TransferFailedError
        raise kind(f"{addr}: {problem.detail or problem.code}") from problem
    except UnreachableError as error:
        raise TransferFailedError(f"{addr} was asked, and may do it: {_meaning_of(error)}") from error


def _ask(network: Network, addr: str, body: bytes, timeout: float, me: Mapping[str, Any]) -> None:
    """me: what the member that asks says of itself."""
    deadline = time.monotonic() + timeout
    epoch = ""
    cluster, node_id, own = (str(me.get(name, "")) for name in ("cluster_id", "node_id", "addr"))
    while True:
        envelope = stranger_envelope("POST", "transfer", "", epoch)
        envelope = envelope._replace(cluster=cluster, sender=node_id, addr=own)
        left = max(_LEAST_SECONDS, deadline - time.monotonic())
        try:
            network.post_within(peer_url(addr), envelope, body, left)
            return
        except Problem as problem:
            if problem.code != "challenge" or epoch:
                raise
            epoch = problem.extra.get("challenge", "")
            if not epoch:
                raise


def _meaning_of(error: UnreachableError) -> str:
    if isinstance(error, UnsignedError):
        return why_unsigned(error.problem) or str(error)
    return str(error)
