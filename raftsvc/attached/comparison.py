"""Does this replica make of the log what its owner makes of it?  The feed carries digests, which are compared.

1. Who differs from its owner serves nobody, whoever of the two is right, and does not own the directory; it applies on.
2. The cluster tells who is right (`raftsvc.member.digests`), where it can: a digest on which a majority of the voters
   agrees comes by the feed, too, and whether the owner was convicted.  Who has another digest there halts, and so does
   who agreed with a convicted owner after that; who began with a snapshot of what that applied since is in doubt.  Who
   has the same was right up to there: it serves again if the two differed no later, or it is the owner that is wrong.
3. So does who agrees with its owner later, which is another by then; and who started anew from a snapshot.

An owner says its digest at the last entry that the cluster compared, and none while it is in doubt itself.
"""

from __future__ import annotations

from collections import deque

from raftsvc.errors import DivergedError
from raftsvc.member.digests import MAX_QUESTIONS, DigestRecord


class Comparison:
    """Digests of this replica, what the owner said of its own, and what it said that the cluster agreed on.

    difference:  set while this replica differs from its owner, and it is not known who is right.
    mismatch:    set once it is known to be wrong.
    since_tick:  when the difference was noted.
    is_owner_wrong: whether the owner that was heard last was convicted.
    """

    __slots__ = (
        "_agreed_index",
        "_announced",
        "_began_index",
        "_last",
        "_own",
        "_right",
        "_wrong",
        "difference",
        "is_owner_wrong",
        "mismatch",
        "since_tick",
    )

    def __init__(self) -> None:
        self._own = DigestRecord()
        self._announced: deque[tuple[int, int]] = deque(maxlen=MAX_QUESTIONS)  # not applied here yet
        self._last = 0, 0
        self._right = 0, 0
        self._agreed_index = 0
        """Up to where it is as the owner is."""
        self._began_index = 0
        """Of the snapshot with which it began."""
        self._wrong = 1, 0
        """From where on, and up to where, the owner that was convicted last has applied something else."""
        self.is_owner_wrong = False
        self.difference: DivergedError | None = None
        self.mismatch: DivergedError | None = None
        self.since_tick = 0

    def lost(self) -> None:
        """The owner is gone: what it said of itself says nothing of the next one."""
        self._announced.clear()
        self._last = 0, 0

    def announced(self, index: int, digest: int) -> None:
        """The owner has that digest."""
        if index and (index, digest) != self._last:
            self._last = index, digest
            self._announced.append(self._last)
            self._look()

    def agreed(self, index: int, digest: int, is_owner_wrong: bool, applied_index: int = 0) -> None:
        """The cluster agreed on that digest, says the owner, by which it may have been convicted; 0: it does not know.

        applied_index: how far one came that was.  It says no digest of its own any more, and what it said before is
                       worth nothing.
        """
        right = (index, digest) if index else self._right
        if is_owner_wrong:
            self._wrong = index, applied_index
        if (right, is_owner_wrong) != (self._right, self.is_owner_wrong):
            self._right, self.is_owner_wrong = right, is_owner_wrong
            if is_owner_wrong:
                self._announced.clear()
            self._look()

    def applied(self, first_index: int, fresh: list[int], was_restored: bool) -> None:
        """More was applied here; the first of it may be what a snapshot was."""
        if was_restored or first_index != self._own.last_index + 1:
            self._own.clear()
            self._agreed_index, self._began_index = 0, first_index
            if not self.is_owner_wrong:
                self.difference = None
        self._own.extend(first_index, fresh)
        self._own.forget_old()
        self._look()

    def doubts(self, index: int, digest: int) -> bool:
        """Whether the snapshot of that entry is one that a convicted owner took, and may be as wrong as that is."""
        since, until = self._wrong
        return since <= index <= until and self._own.at(index) != digest

    def _look(self) -> None:
        while self._announced and self._announced[0][0] <= self._own.last_index:
            self._compare(*self._announced.popleft())
        index, right = self._right
        if not 0 < index <= self._own.last_index or self.mismatch is not None:
            return
        own = self._own.at(index)
        if own == right:
            if self.difference is not None and (self.is_owner_wrong or index >= self.difference.index):
                self.difference = None
        elif own is not None:
            self._condemn(index, f"is {own:08x}, that of a majority {right:08x}")
        elif self.is_owner_wrong and self._agreed_index >= index:
            self._condemn(index, f"was that of the owner of its directory, that of a majority is {right:08x}")
        elif self.is_owner_wrong and index <= self._began_index <= self._wrong[1] and self.difference is None:
            self.difference = DivergedError(
                f"this process began with a snapshot up to entry {self._began_index}, which may be of the owner of its "
                f"directory, and that differs from its cluster since entry {index} at the latest; this process serves "
                "nobody until the cluster tells that it is right: if that takes more than moments, start it anew",
                self._began_index,
            )

    def _compare(self, index: int, theirs: int) -> None:
        own = self._own.at(index)
        if own is None:
            return  # a snapshot skipped it
        self._own.note_answered(index, own)  # a verdict about it may come late
        if own == theirs:
            self._agreed_index = max(self._agreed_index, index)
            if self.difference is not None and index >= self.difference.index:
                self.difference = None
        elif self.difference is None:
            self.difference = DivergedError(
                f"this process differs from the owner of its directory: the digest of what it applied up to entry "
                f"{index} is {own:08x}, and the owner's {theirs:08x}. The State of one of them is damaged, or does "
                "not apply deterministically; this process serves nobody until the cluster tells that it is right: "
                "if that takes more than moments, start it anew",
                index,
            )

    def _condemn(self, index: int, how: str) -> None:
        self.mismatch = DivergedError(
            f"this process differs from its cluster: the digest of what it applied up to entry {index} {how}. Its "
            "State is damaged, or does not apply deterministically; this process serves no more: start it anew",
            index,
        )
