"""What a simulation ends with that saw something that must never be."""

from __future__ import annotations


class Violation(AssertionError):
    """Something that must never be was."""


def require(condition: bool, what: str) -> None:
    """Raise Violation unless `condition` holds."""
    if not condition:
        raise Violation(what)
