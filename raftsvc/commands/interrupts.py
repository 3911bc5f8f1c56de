"""Ctrl-C, which Python drops where it happens to come to a destructor: what goes on for long looks whether it came."""

from __future__ import annotations

import signal

_has_come: list[bool] = []


def _note(signum: int, frame: object) -> None:
    _has_come.append(True)
    raise KeyboardInterrupt


def install() -> None:
    """Have it noted, unless whoever started this process had it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _note)


def check() -> None:
    """Raise KeyboardInterrupt if it came."""
    if _has_come:
        raise KeyboardInterrupt
