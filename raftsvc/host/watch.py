"""The watch over the server that hosts a node: the node leaves before it does."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from raftsvc.host.admission import Admission
from raftsvc.host.servers import HostPool

logger = logging.getLogger("raftsvc")


class ServerWatch:
    """Has a node leave in good order when its server begins to shut down, before the server's grace ends."""

    def __init__(
        self,
        admission: Admission,
        leave: Callable[[], None],
        left: threading.Event,
        hears: Callable[[], bool] = lambda: True,
    ) -> None:
        """leave: called once, in the process that has the node; in a forked child it does nothing.

        left:  set once the node has left for any reason.
        hears: whether what callers wait for can still reach the node, though its server takes no more requests.
        """
        self._admission = admission
        self._hears = hears
        self._leave = leave
        self._left = left
        self.is_draining = False
        """Whether the server has begun to shut down."""

    def begin(self, server: HostPool) -> None:
        """Watch `server` from now on, on a thread of its own."""
        threading.Thread(target=self.run, args=(server,), name="raftsvc-host", daemon=True).start()

    def run(self, server: HostPool) -> None:
        """Watch until the node has left.

        Requests that are under way, and callers that wait, are given half of the server's grace to end, as long as they
        can be served; a node that hears of no commit any more tells them at once what is known.
        """
        while not self._left.wait(0.1):
            if server.stopping():
                self.is_draining = True
                logger.info("the server is shutting down; the node leaves once its requests are over, and before it")
                deadline = time.monotonic() + (server.graceful_timeout or 0.0) / 2
                while self._is_asked(server) and time.monotonic() < deadline and self._hears():
                    time.sleep(0.02)
                self._leave()
                return  # in a forked child nothing was stopped, nor need be

    def _is_asked(self, server: HostPool) -> bool:
        return bool(self._admission.waiting) or server.is_serving()
