"""Which process an object belongs to.

The threads of a node, its locks and its directory stay with the process that started
it.  A child forked later has copies of the objects and nothing that runs, so whatever
stands before them asks at each call.  The pid is compared, for hooks of a fork do not
fire under every server.
"""

from __future__ import annotations

import os

from raftsvc.errors import ForkedError


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
            raise ForkedError(
                f"this Service was started in process {self.pid}, and its threads are not in process {os.getpid()}: "
                "start it after the server forks (no --preload; in the WSGI entry module or post_worker_init)"
            )
