"""Does this replica make of the log what its owner makes of it?  The feed carries digests, which are compared.

Who differs stops serving, whoever of the two is right: the members of the cluster find out about the owner
(`raftsvc.member.digests`), which says no digest while it is in doubt itself.
"""

from __future__ import annotations

from raftsvc.errors import DivergedError
from raftsvc.member.digests import DigestRecord


class Comparison:
    """Digests of this replica, and what the owner said of its own.

    mismatch:     set once they differ.
    agreed_index: the last entry at which they were the same.
    """

    __slots__ = ("_announced", "_own", "agreed_index", "mismatch")

    def __init__(self) -> None:
        self._own = DigestRecord()
        self._announced: tuple[int, int] | None = None
        self.agreed_index = 0
        self.mismatch: DivergedError | None = None

    def announced(self, index: int, digest: int) -> None:
        """The owner has that digest; until it was compared no other one is waited for."""
        if self._announced is None:
            self._announced = index, digest
            self._look()

    def applied(self, first_index: int, fresh: list[int]) -> None:
        """More was applied here."""
        if first_index != self._own.last_index + 1:
            self._own.clear()  # it started anew from a snapshot
        self._own.extend(first_index, fresh)
        self._own.forget_old()
        self._look()

    def _look(self) -> None:
        if self._announced is None or self._announced[0] > self._own.last_index:
            return
        (index, digest), self._announced = self._announced, None
        own = self._own.at(index)
        if own is None:
            return  # a snapshot skipped it
        if own == digest:
            self.agreed_index = max(self.agreed_index, index)
            return
        self.mismatch = self.mismatch or DivergedError(
            f"this process differs from the owner of its directory: the digest of what it applied up to entry {index} "
            f"is {own:08x}, and the owner's {digest:08x}. The State of one of them is damaged, or does not apply "
            "deterministically; this process serves no more: start it anew",
            index,
        )
