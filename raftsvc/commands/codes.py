"""What the exit code of a command says, and which one an error has.

A code says first what is known of the cluster: 3 is safe to repeat, 4 is not known, so look before it is repeated.
"""

from __future__ import annotations

from typing import Final

from raftsvc.errors import (
    AddressInUseError,
    AddressNotAllowedError,
    ConfigurationError,
    ExistingClusterError,
    InstructionTooLargeError,
    InvalidInstructionError,
    JoinFailedError,
    LastMemberError,
    MembershipUnchangedError,
    NotApplied,
    NotLeaderError,
    NotPermittedError,
    NotTransferredError,
    PeerUninitializedError,
    RaftError,
    ReadTimeoutError,
    Rejected,
    UnknownKeyError,
    UnknownPeerError,
)
from raftsvc.kv import ConflictError, LostError

DONE: Final = 0
NO: Final = 1
"""The answer is no: there is no such key, a condition did not hold, it was refused; nothing was changed."""
USAGE: Final = 2
"""What was asked makes no sense; nobody was asked."""
NOT_REACHED: Final = 3
"""Nobody answered in time who could do it; nothing was changed, and it may be repeated."""
UNKNOWN: Final = 4
"""It may have been done, or may yet be."""
NOT_LET_IN: Final = 5
"""The key is not known, or does not give the right; nothing was changed."""
LOCAL: Final = 6
"""A file, the standard input or the output could not be read or written."""
BROKEN: Final = 70
"""A bug of raftsvc."""
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141

# Of `lock` and `elect` with a command, beside which the command has its own.
WAS_LOST: Final = 123
"""What was held was lost, and the command was ended."""
NOT_GOT: Final = 124
"""It was not got within --wait; the command was not run."""
NOT_RUN: Final = 125
"""Something else kept the command from being run: the line on stderr says what."""
NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127
BY_SIGNAL: Final = 128
"""And the signal's number more: the command was ended by it."""

_CODES: Final[list[tuple[tuple[type[Exception], ...], int]]] = [
    ((UnknownKeyError, NotPermittedError), NOT_LET_IN),
    ((InstructionTooLargeError, InvalidInstructionError, Rejected, ConflictError, LostError), NO),
    ((ExistingClusterError, AddressNotAllowedError, AddressInUseError), NO),
    ((UnknownPeerError, LastMemberError, NotLeaderError), NO),
    ((NotApplied, ReadTimeoutError, JoinFailedError, PeerUninitializedError), NOT_REACHED),
    ((MembershipUnchangedError, NotTransferredError), NOT_REACHED),
    ((ConfigurationError,), USAGE),
    ((RaftError,), UNKNOWN),
    ((ValueError, TypeError), USAGE),
    ((OSError,), LOCAL),
]
"""The first that fits."""

_NEXT: Final = {
    NOT_REACHED: "nothing was changed; is --at right, and does a majority run? `raftsvc status` shows it",
    UNKNOWN: "look whether it is done before you repeat it",
    NOT_LET_IN: "give a key (--key-file) that all nodes have in client_keys=, with the right to this",
}
"""What is to be done next, where the error itself does not know."""


class CommandError(Exception):
    """What a command has to say itself, with the code that it ends by."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def code_of(error: Exception) -> int:
    """The exit code that says what is known after it."""
    if isinstance(error, CommandError):
        return error.code
    return next((code for kinds, code in _CODES if isinstance(error, kinds)), BROKEN)


def line_of(error: Exception) -> str:
    """What happened, and what to do next, in one line."""
    code = code_of(error)
    text = str(error) or type(error).__name__
    if code == BROKEN:
        text = f"this is a bug of raftsvc, and what it did is not known: {type(error).__name__}: {text}"
    if code in _NEXT and not isinstance(error, CommandError):
        text = f"{text} ({_NEXT[code]})"
    return " ".join(text.split())
