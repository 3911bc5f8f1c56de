"""What a member tells a client of an error, and what is certain once that was told: both sides of one table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from raftsvc.errors import (
    InstructionTooLargeError,
    NotApplied,
    NotPermittedError,
    OutcomeUnknown,
    OverloadedError,
    RaftError,
    ReadTimeoutError,
    Rejected,
)
from raftsvc.transport.wire import Problem

_CODES: Final[list[tuple[type[RaftError], int, str]]] = [
    (NotPermittedError, 403, "not_permitted"),
    (OverloadedError, 503, "overloaded"),
    (InstructionTooLargeError, 413, "too_large"),
    (Rejected, 422, "rejected"),
    (ReadTimeoutError, 504, "read_timeout"),
    (NotApplied, 503, "not_applied"),
]
"""What is told of an error, the first that fits; of all others that what was asked may be done, or may yet be."""

FINAL: Final[dict[str, Callable[[str], RaftError]]] = {
    "not_permitted": NotPermittedError,
    "too_large": InstructionTooLargeError,
    "rejected": Rejected,
}
"""Refusals that any other member would repeat, and what a caller is told."""
CERTAIN: Final = frozenset(
    {*FINAL, "wrong_cluster", "unsupported_version", "not_applied", "overloaded", "read_timeout"}
)
"""Refusals, signed by a member, after which what was asked has no effect, now or later."""


def refusal_of(error: RaftError) -> Problem:
    """What a member tells a client whose request ended with that."""
    for kind, status, code in _CODES:
        if isinstance(error, kind):
            return Problem(status, code, error.reason if isinstance(error, Rejected) else str(error))
    return Problem(504, "outcome_unknown" if isinstance(error, OutcomeUnknown) else "unavailable", str(error))
