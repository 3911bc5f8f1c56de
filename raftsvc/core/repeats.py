"""Which forwarded requests came before, so that each is decided once."""

from __future__ import annotations

from collections.abc import Container
from enum import Enum
from typing import Final

REMEMBERED: Final = 1024
_ONE_LIFE: Final = 2**32


class Standing(Enum):
    """What is known of a request."""

    NEW = "it comes for the first time"
    REPEATED = "it came before"
    FORGOTTEN = "it is older than what is remembered, and may have come before"


class Repeats:
    """The last requests of each member, by their contexts, which count up in one life of it.

    What was answered to the first stands: had it been refused, its sender may have told a
    caller that nothing was proposed; had it been appended, a refusal of the second
    would tell so wrongly.
    """

    __slots__ = ("_forgotten", "_seen")

    def __init__(self) -> None:
        self._seen: dict[int, dict[int, None]] = {}
        self._forgotten: dict[int, int] = {}  # of each member the last one that is not remembered any more

    def __len__(self) -> int:
        return sum(map(len, self._seen.values()))

    def note(self, from_id: int, context: int) -> Standing:
        """What is known of this very request, which is remembered from now on."""
        seen = self._seen.setdefault(from_id, {})
        if context in seen:
            return Standing.REPEATED
        # Those of two lives are further apart: each begins at random among 2**62.
        is_old = 0 <= self._forgotten.get(from_id, -1) - context < _ONE_LIFE
        seen[context] = None
        if len(seen) > REMEMBERED:
            self._forgotten[from_id] = oldest = next(iter(seen))
            del seen[oldest]
        return Standing.FORGOTTEN if is_old else Standing.NEW

    def forget_all_but(self, members: Container[int]) -> None:
        """Drop what was remembered of those who left."""
        for i in [i for i in self._seen if i not in members]:
            del self._seen[i]
            self._forgotten.pop(i, None)
