"""What is said of an exception that a function of the application raised: whatever it is, saying it raises nothing."""

from __future__ import annotations


def said_by(failure: BaseException) -> str:
    """What it says of itself; an application's may raise at that, too."""
    try:
        return str(failure)
    except BaseException as another:
        return f"(it has no text, which raised {type(another).__name__})"
