"""Signals that end a command.

Ctrl-C Python drops where it happens to come to a destructor: what goes on for long looks whether it came.  Who waits
for something of the cluster has a place in its queue, which is given up before SIGTERM, or whatever it was, ends him.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

_ENDING: Final = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")

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


class Ended(BaseException):
    """A signal came that ends this process.  number: its own."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Ending:
    """Within a `with` no signal ends this process but where it is `raised`.  By the main thread.

    Where it is not what is done takes seconds at most: it connects, or gives back what the process has.  One that comes
    before is raised then.
    """

    def __init__(self) -> None:
        self._is_raised = False
        self._number = 0
        self._former: dict[int, Any] = {}

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Within this, each raises Ended, and at once if one has come already."""
        self._is_raised = True
        try:
            self.check()
            yield
        finally:
            self._is_raised = False

    def check(self) -> None:
        """Raise Ended if one has come, be it that Python dropped what it raised."""
        if self._number:
            raise Ended(self._number)

    def _come(self, number: int, frame: FrameType | None) -> None:
        self._number = number
        if self._is_raised:
            raise Ended(number)

    def __enter__(self) -> Ending:
        for number in (getattr(signal, name, None) for name in _ENDING):
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._former[number] = signal.signal(number, self._come)
        return self

    def __exit__(self, *_: object) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)
