"""Which forwarded requests came before, so that each is decided once."""

from __future__ import annotations

from collections.abc import Container

_REMEMBERED = 1024


class Repeats:
    """The last requests of each member, by their contexts.

    What was answered to the first stands: had it been refused, its sender may have told a
    caller that nothing was proposed; had it been appended, a refusal of the second
    would tell so wrongly.
    """

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: dict[int, dict[int, None]] = {}

    def is_repeated(self, from_id: int, context: int) -> bool:
        """Whether this very request came before; it is remembered from now on."""
        seen = self._seen.setdefault(from_id, {})
        if context in seen:
            return True
        seen[context] = None
        if len(seen) > _REMEMBERED:
            del seen[next(iter(seen))]
        return False

    def forget_all_but(self, members: Container[int]) -> None:
        """Drop what was remembered of those who left."""
        for i in [i for i in self._seen if i not in members]:
            del self._seen[i]
