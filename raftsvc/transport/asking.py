"""How a node asks another how it is: a listed one, until their cluster is formed; a member, for an operator.

What listed nodes say is `core.founding`'s; what members say is a picture for people, by which nothing is decided.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from raftsvc.addresses import peer_url
from raftsvc.core.founding import Answer, Question
from raftsvc.core.messages import MalformedError
from raftsvc.transport.join import stranger_envelope, why_unsigned
from raftsvc.transport.peer import Network
from raftsvc.transport.wire import Problem, UnreachableError, UnsignedError


class UnansweredError(Exception):
    """No answer that counts; the message says why, in words that do not change from one try to the next."""


def ask(network: Network, question: Question, timeout: float) -> Answer:
    """Ask the node at `question.asked`, which may take `timeout` seconds in all, for two requests.

    The first is answered by a challenge, so that nobody's question is asked a second time
    by somebody else.  Raises UnansweredError.
    """
    deadline = time.monotonic() + timeout
    epoch = ""
    body = question.encode()
    for _ in range(2):
        envelope = stranger_envelope("POST", "form", question.asker, epoch)
        try:
            left = deadline - time.monotonic()
            return Answer.decode(network.post_within(peer_url(question.asked), envelope, body, max(0.1, left)))
        except Problem as problem:
            epoch = problem.extra.get("challenge", "") if problem.code == "challenge" else ""
            if not epoch:
                raise UnansweredError(_meaning_of(problem)) from problem
        except UnsignedError as unsigned:
            raise UnansweredError(why_unsigned(unsigned.problem) or str(unsigned)) from unsigned
        except (UnreachableError, MalformedError) as error:
            raise UnansweredError(f"unreachable: {error}") from error
    raise UnansweredError("it answers one challenge with another")


def ask_status(network: Network, addr: str, timeout: float) -> tuple[Mapping[str, Any], float]:
    """How the node at `addr` is, as `Service.status` has it, and the seconds that the answer to one request took.

    It may take `timeout` seconds in all, for two requests with each secret that is accepted here until the node there
    knows one: where there is a secret the first is answered by a challenge.  Raises UnansweredError.
    """
    deadline = time.monotonic() + timeout
    secrets: list[bytes | None] = [*network.auth.secrets] or [None]
    while True:
        secret = secrets.pop(0)
        try:
            return _ask_status(network, addr, deadline, secret)
        except UnsignedError as unsigned:
            if not secrets or unsigned.problem.code != "unauthenticated":
                raise UnansweredError(why_unsigned(unsigned.problem) or str(unsigned)) from unsigned


def _ask_status(network: Network, addr: str, deadline: float, secret: bytes | None) -> tuple[Mapping[str, Any], float]:
    """As `ask_status`, with that secret; raises UnsignedError too."""
    epoch = ""
    for _ in range(2):
        envelope = stranger_envelope("GET", "status", "", epoch)
        try:
            began = time.monotonic()
            answer = network.post_within(peer_url(addr), envelope, b"", max(0.1, deadline - began), secret)
            seconds = time.monotonic() - began
            told = json.loads(answer)
            if not isinstance(told, dict):
                raise UnansweredError("what it says is no status")
            return told, seconds
        except Problem as problem:
            epoch = problem.extra.get("challenge", "") if problem.code == "challenge" else ""
            if not epoch:
                raise UnansweredError(_meaning_of(problem)) from problem
        except UnsignedError:
            raise
        except (UnreachableError, ValueError, RecursionError) as error:
            raise UnansweredError(f"unreachable: {error}") from error
    raise UnansweredError("it answers one challenge with another")


def _meaning_of(problem: Problem) -> str:
    if problem.code == "not_found":
        return "something else than this version of raftsvc answers there"
    if problem.code in ("busy", "stopping"):
        return problem.detail
    return why_unsigned(problem) or f"{problem.code}: {problem.detail}"
