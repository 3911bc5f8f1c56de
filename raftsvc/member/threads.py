"""The threads of a node: named, daemons, none dependent on the thread that started it, none that ends unnoticed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger("raftsvc.node")


class Threads:
    """Those of one node."""

    __slots__ = ("_essential", "_on_failure", "_started", "stopping")

    def __init__(self, on_failure: Callable[[BaseException, str], None]) -> None:
        """on_failure: told what a thread ended with, and which."""
        self._on_failure = on_failure
        self._started: list[threading.Thread] = []
        self._essential: list[threading.Thread] = []
        self.stopping = threading.Event()
        """Set once the node stops."""

    def start(self, name: str, run: Callable[[], None]) -> threading.Thread:
        """Start one; raises RuntimeError if there can be no more."""

        def guarded() -> None:
            try:
                run()
            except BaseException as error:  # a thread's top level: nobody above could tell
                logger.exception("thread raftsvc-%s failed", name)
                self._on_failure(error, f"thread raftsvc-{name} failed")

        thread = threading.Thread(target=guarded, name=f"raftsvc-{name}", daemon=True)
        self._started = [t for t in self._started if t.is_alive()]
        thread.start()
        self._started.append(thread)
        return thread

    def start_essential(self, name: str, run: Callable[[], None]) -> None:
        """Start one without which the node does not work."""
        self._essential.append(self.start(name, run))

    def are_alive(self) -> bool:
        """Whether every thread that the node needs is at work."""
        return all(thread.is_alive() for thread in self._essential)

    def join(self, remaining: Callable[[], float]) -> None:
        """Wait for all others, as long as there is time."""
        for thread in self._started:
            if thread is not threading.current_thread():
                thread.join(max(0.0, remaining()))
