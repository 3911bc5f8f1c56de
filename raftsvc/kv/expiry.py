"""When keys expire, in log time.

Two ordered maps that say the same: the deadline of each key that has one, and the deadlines
in order, each with its key.  They are pages like those of the keys themselves, for the
same reasons: frozen at once for a snapshot, nothing for the garbage collector to visit.
What is taken out is gone at once, so however often a deadline is moved no more is kept than there are.

Not thread-safe, but for frozen pages.

Invariant: `_by_key` has `key` with the version `deadline` if and only if `_in_order` has both as text.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from raftsvc.kv.pages import Page, PagedMap, records_of
from raftsvc.process import give_way

MAX_DEADLINE_MS: Final = 2**53 - 1
"""Where log time itself ends."""
NEVER: Final = MAX_DEADLINE_MS + 1
_DIGITS: Final = 14  # of the above in hexadecimal, so that the order of the texts is that of the deadlines


def deadline_of(time_ms: int, ttl_ms: int) -> int:
    """The deadline of what is to live for `ttl_ms` from an entry on that has the log time `time_ms`.

    Log time counts whole milliseconds that are over: at that entry part of another was.
    One more sees to it that nothing lives shorter than it should.
    """
    return min(time_ms + ttl_ms + 1, MAX_DEADLINE_MS)


def _text(deadline_ms: int, key: str) -> str:
    return f"{deadline_ms:0{_DIGITS}x}{key}"


def _record(deadline: tuple[str, int]) -> tuple[str, bytes, int]:
    key, deadline_ms = deadline
    return key, b"", deadline_ms


class Expiries:
    """The keys that expire.

    next_ms: the first deadline, or NEVER.
    """

    __slots__ = ("_by_key", "_in_order", "next_ms")

    def __init__(self) -> None:
        self._by_key = PagedMap()
        self._in_order = PagedMap()
        self.next_ms = NEVER

    @classmethod
    def of(cls, deadlines: Iterable[tuple[str, int]]) -> Expiries:
        """Those of the keys, which ascend, each with its deadline."""
        made = cls()
        made._by_key = PagedMap.of(map(_record, deadlines))
        for page in made._by_key.freeze():
            for key, _, deadline_ms in records_of(page):
                made._in_order.set(_text(deadline_ms, key), b"", 1)
            give_way()
        made._note_first()
        return made

    def __len__(self) -> int:
        return len(self._by_key)

    def deadline(self, key: str) -> int:
        """When `key` expires; 0: it does not."""
        return self._by_key.version(key)

    def set(self, key: str, deadline_ms: int) -> None:
        """Have `key` expire then, and not when it would have; 0: not at all."""
        if not deadline_ms and self.next_ms == NEVER:
            return
        former_ms = self._by_key.version(key)
        if former_ms == deadline_ms:
            return
        if former_ms:
            self._in_order.delete(_text(former_ms, key))
        if deadline_ms:
            self._by_key.set(key, b"", deadline_ms)
            self._in_order.set(_text(deadline_ms, key), b"", 1)
        else:
            self._by_key.delete(key)
        self._note_first()

    def take(self, time_ms: int) -> list[str]:
        """Take out keys that are due by `time_ms`, those of a page at once; none: there are no more.

        They come in the order of their deadlines, and those of one deadline in that of the keys.
        """
        texts = self._in_order.take_first(f"{min(time_ms, MAX_DEADLINE_MS) + 1:0{_DIGITS}x}")
        keys = [text[_DIGITS:] for text in texts]
        for key in keys:
            self._by_key.delete(key)
        self._note_first()
        return keys

    def freeze(self) -> list[Page]:
        """The keys as they are now, each with its deadline as the version."""
        return self._by_key.freeze()

    def _note_first(self) -> None:
        first = self._in_order.first()
        self.next_ms = NEVER if first is None else int(first[:_DIGITS], 16)
