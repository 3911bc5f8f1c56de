"""Does this replica make of the log what its owner makes of it?  The feed carries digests, which are compared.

1. Who differs from its owner serves nobody, whoever of the two is right, and does not own the directory; it applies on.
2. The cluster tells who is right (`raftsvc.member.digests`), where it can: a digest on which a majority of the voters
   agrees comes by the feed, too, above all once the owner is convicted by it.  Who differs from that halts; who has it
   at or after the entry at which the two differed was right all the time, and serves again.
3. So does who agrees with its owner later, which is another by then, or started anew from a snapshot.

An owner that is in doubt itself says no digest of its own.
"""

from __future__ import annotations

from raftsvc.errors import DivergedError
from raftsvc.member.digests import DigestRecord


class Comparison:
    """Digests of this replica, what the owner said of its own, and what it said that the cluster agreed on.

    difference: set while this replica differs from its owner, and it is not known who is right.
    mismatch:   set once it differs from what the cluster agreed on.
    """

    __slots__ = ("_announced", "_own", "_right", "difference", "mismatch")

    def __init__(self) -> None:
        self._own = DigestRecord()
        self._announced: tuple[int, int] | None = None
        self._right = 0, 0
        self.difference: DivergedError | None = None
        self.mismatch: DivergedError | None = None

    def announced(self, index: int, digest: int) -> None:
        """The owner has that digest; until it was compared no other one is waited for."""
        if self._announced is None:
            self._announced = index, digest
            self._look()

    def agreed(self, index: int, digest: int) -> None:
        """The cluster agreed on that digest, says the owner."""
        if (index, digest) != self._right:
            self._right = index, digest
            self._look()

    def applied(self, first_index: int, fresh: list[int]) -> None:
        """More was applied here."""
        if first_index != self._own.last_index + 1:
            self._own.clear()  # it started anew from a snapshot
            self.difference = None
        self._own.extend(first_index, fresh)
        self._own.forget_old()
        self._look()

    def _look(self) -> None:
        if self._announced is not None and self._announced[0] <= self._own.last_index:
            (index, theirs), self._announced = self._announced, None
            own = self._own.at(index)  # None: a snapshot skipped it
            if own == theirs:
                self._note_right(index)
            elif own is not None and self.difference is None:
                self.difference = DivergedError(
                    f"this process differs from the owner of its directory: the digest of what it applied up to entry "
                    f"{index} is {own:08x}, and the owner's {theirs:08x}. The State of one of them is damaged, or does "
                    "not apply deterministically; this process serves nobody until the cluster tells that it is right: "
                    "if that takes more than moments, start it anew",
                    index,
                )
        index, right = self._right
        own = self._own.at(index) if 0 < index <= self._own.last_index else None
        if own is None:
            return
        if own == right:
            self._note_right(index)
        elif self.mismatch is None:
            self.mismatch = DivergedError(
                f"this process differs from its cluster: the digest of what it applied up to entry {index} is "
                f"{own:08x}, that of a majority {right:08x}. Its State is damaged, or does not apply "
                "deterministically; this process serves no more: start it anew",
                index,
            )

    def _note_right(self, index: int) -> None:
        """Up to `index` nothing went wrong here."""
        if self.difference is not None and index >= self.difference.index:
            self.difference = None
            self._announced = None  # what its owner said before it was found out
