"""What a caller is told of an instruction that was applied."""

from __future__ import annotations

from dataclasses import dataclass


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
