"""What a caller is told of an instruction that was applied, and what of that the cluster keeps."""

from __future__ import annotations

import struct
from dataclasses import dataclass

FALSE, TRUE, NONE, INT, BYTES, OBJECT, REJECTED = (bytes([code]) for code in range(7))
INT64 = struct.Struct(">q")
MAX_ANSWER_BYTES = 64
"""The longest bytes that are kept as an answer."""
_LEAST, _MOST = -(2**63), 2**63 - 1


def encode_answer(answer: object) -> bytes:
    """All that is kept of what a State answered: OBJECT alone of what is not.  Runs no code of others."""
    if answer is True:
        return TRUE
    if answer is False:
        return FALSE
    if answer is None:
        return NONE
    if type(answer) is int and _LEAST <= answer <= _MOST:  # exactly: what a subclass says of itself is not ours
        return INT + INT64.pack(answer)
    if type(answer) is bytes and len(answer) <= MAX_ANSWER_BYTES:
        return BYTES + answer
    return OBJECT


@dataclass(frozen=True, slots=True)
class Applied:
    """An instruction took effect, once: where in the log, and what the State said of it.

    satisfied: False if the State's `apply` returned False or None, else True.
    index:     of the log entry with which it took effect, the same however often it was sent.
    time_ms:   of that entry; see `Service.log_time`.
    answer:    what `apply` returned, if it is known.
    known:     whether it is.  Always, where it is a bool, None, an int of 64 bits with its sign, or at
               most 64 bytes (of exactly these types): these are kept by the cluster, and come
               back after any failure.  Anything else is known only where this process applied the instruction
               itself and its caller waited for that; after a snapshot brought it, `answer` is None,
               which does not mean that anything failed.  In what `propose_many` returns, the answer of an
               instruction that the State refused is a `Rejected`.
    """

    satisfied: bool
    index: int
    time_ms: int
    answer: object
    known: bool
