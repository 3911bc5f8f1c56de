"""Which process an object belongs to, and what a forked child must not keep.

The threads of a node, its locks and its directory stay with the process that started
it.  A child forked later has copies of the objects and nothing that runs, so whatever
stands before them asks at each call.  The pid is compared, for hooks of a fork do not
fire under every server.

What the child has besides are the descriptors.  As long as it lives, one of a lock keeps
the directory from the next owner, one of a port keeps that taken, and one of a file that was
deleted keeps its space, though the parent be long dead.  So whoever holds such
descriptors says so, and where the hooks do fire, as for `os.fork` and all that is made of
it, they are closed in the child.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Protocol
from weakref import WeakSet

from raftsvc.errors import ConfigurationError, ForkedError
from raftsvc.systems import call_in_children

_POLL_SECONDS = 0.005
_TURN_SECONDS = 0.005
"""For how long whoever waits for the interpreter waits until Python takes it from who has it: its default."""
_PAUSE_SECONDS = 0.00002
"""More than it takes to wake a thread."""


class HomeProcess:
    """The process that made it."""

    __slots__ = ("pid",)

    def __init__(self) -> None:
        self.pid = os.getpid()

    @property
    def is_here(self) -> bool:
        """Whether the caller is in that process."""
        return os.getpid() == self.pid

    def check(self) -> None:
        """Raise ForkedError in every other process."""
        if os.getpid() != self.pid:
            raise self.error()

    def error(self) -> ForkedError:
        """What is said in every other process."""
        return ForkedError(
            f"this Service was started in process {self.pid}, and its threads are not in process {os.getpid()}: "
            "start it after the server forks (no --preload; in the WSGI entry module or post_worker_init)"
        )


class NoHome(HomeProcess):
    """In the place of that, of an object that is of no use in this process.

    why: a sentence.
    """

    __slots__ = ("_why",)

    def __init__(self, why: str) -> None:
        super().__init__()
        self._why = why

    @property
    def is_here(self) -> bool:
        """No."""
        return False

    def check(self) -> None:
        """Raise ConfigurationError."""
        raise ConfigurationError(self._why)


def await_end(thread: threading.Thread, timeout: float) -> None:
    """Return once `thread` does not run, or after `timeout` seconds, or at once where it is the caller.

    Also one of which nobody knows whether it was started, for who did was interrupted: `is_alive` may say
    that it is not, and it runs a moment later.
    """
    deadline = time.monotonic() + timeout
    while thread is not threading.current_thread() and thread in threading.enumerate():
        if time.monotonic() > deadline:
            return
        if thread.is_alive():
            thread.join(max(deadline - time.monotonic(), 0.0))
        else:
            time.sleep(_POLL_SECONDS)


def give_way() -> None:
    """Let other threads run if one has waited for long: to be called now and then in long loops.

    Those that are compiled do not let go of the interpreter by themselves; a call of a function that
    is not, such as this one, does.
    """


class LongWork:
    """A loop that lets go of the interpreter for an instant now and then, as a read or the checksum of a few KiB does.

    Nobody else gets it then: whoever waits is woken, and finds it taken again.  Nor is it taken from the loop every
    5 ms, as from others, for whoever was woken meanwhile begins to wait anew.  So the loop has to pause.
    """

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since = time.monotonic()

    def give_way(self) -> None:
        """Let other threads run if that is due; as `give_way` does, for what is compiled."""
        if time.monotonic() - self._since >= _TURN_SECONDS:
            time.sleep(_PAUSE_SECONDS)
            self._since = time.monotonic()


class HoldsDescriptors(Protocol):
    """What has descriptors that are of no use to a forked child, and in the way of others."""

    def take_descriptors(self) -> Iterable[int]:
        """All of them; from now on it has none.  Called in a child, where no lock may be waited for."""


_holders: WeakSet[HoldsDescriptors] = WeakSet()


def close_in_children(holder: HoldsDescriptors) -> None:
    """Have the descriptors of `holder` closed in every child that is forked from now on, as long as it lives."""
    _holders.add(holder)


def _close_inherited() -> None:
    for holder in list(_holders):
        with suppress(Exception):  # one that is in trouble keeps no other from it
            for fd in holder.take_descriptors():
                with suppress(OSError):
                    os.close(fd)


call_in_children(_close_inherited)
