"""How a listed node asks another how it is, until their cluster is formed; what is said is `core.founding`'s."""

from __future__ import annotations

import time

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


def _meaning_of(problem: Problem) -> str:
    if problem.code == "not_found":
        return "something else than this version of raftsvc answers there"
    if problem.code in ("busy", "stopping"):
        return problem.detail
    return why_unsigned(problem) or f"{problem.code}: {problem.detail}"
