"""Stretches of long sequences.  Of all of the core this is not compiled, and is not to be (`setup.py`).

What is compiled does not let go of the interpreter by itself, and for a log of a million
entries others would wait long.  Between two stretches they have their turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

_LENGTH = 8192


def stretches(items: Sequence[T], start: int = 0) -> Iterator[Sequence[T]]:
    """All of `items` from position `start` on, in their order, some thousands at once."""
    for first in range(start, len(items), _LENGTH):
        yield items[first : first + _LENGTH]
