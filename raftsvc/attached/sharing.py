"""One directory and several processes of a host: who owns it serves the others, who does not is attached."""

from __future__ import annotations

import threading
from collections.abc import Callable

from raftsvc.attached.participant import AttachedNode
from raftsvc.attached.server import FeedServer, Owner
from raftsvc.attached.worker import Succession, Worker
from raftsvc.errors import StoppedError
from raftsvc.member.live import Live
from raftsvc.member.node import NodeOptions
from raftsvc.member.participant import Participant
from raftsvc.state import State
from raftsvc.storage import Store

_FIRST_SECONDS = 5.0
"""How long a process that is started waits for the owner to take it in."""


class Sharing:
    """This process's part in it.  Thread-safe.

    is_owner: whether it owns the directory; else it is attached to who does, or about to be.
    """

    def __init__(
        self,
        store: Store,
        options: NodeOptions,
        addr: str,
        state: State,
        is_owner: bool,
        is_draining: Callable[[], bool],
        owns: Callable[[], None],
    ) -> None:
        """is_draining: whether this process is about to end.  owns: called when it has become the owner."""
        self.is_owner = is_owner
        self._store = store
        self._options = options
        self._addr = addr
        self._state = state
        self._is_draining = is_draining
        self._owns = owns
        self._lock = threading.Lock()  # guards the two below
        self._server: FeedServer | None = None
        self._is_over = False
        self._worker: Worker | None = None

    def begin(
        self,
        node: Callable[[], Participant | None],
        own: Callable[[Store, Live | None], Participant | None],
        welcome: Callable[[Participant], None],
    ) -> None:
        """Serve the others, or attach to who owns the directory.

        node:    that of this process, if it has one.
        own:     make it of a store that is owned, and what is live here.
        welcome: what stands in its place as long as this process is attached.
        """
        if self.is_owner:
            self._serve(node)
            return

        def take_over(store: Store, live: Live | None) -> Participant | None:
            successor = own(store, live)
            self.is_owner = True
            return successor

        def settle() -> None:
            self._serve(node)
            self._owns()

        def is_welcome() -> None:
            welcome(attached)

        options = self._options
        succession = Succession(self._is_draining, take_over, settle, is_welcome)
        self._worker = worker = Worker(
            self._store.path, self._store.files, self._state, options.engine, options.tick_seconds, succession
        )
        attached = AttachedNode(worker, self._addr)
        worker.start()
        if self._store.is_initialized:
            worker.is_welcomed.wait(_FIRST_SECONDS)

    def _serve(self, node: Callable[[], Participant | None]) -> None:
        def owned() -> Owner | None:
            found = node()
            return found if isinstance(found, Owner) else None

        with self._lock:
            if self._is_over:
                return
            self._server = server = FeedServer(self._store.path, owned)
        server.start()

    def await_welcome(self, timeout: float) -> None:
        """Wait until this process is attached, or owns the directory itself."""
        if self._worker is not None:
            self._worker.is_welcomed.wait(timeout)

    def bid_farewell(self) -> None:
        """This process is about to stop: the others get ready."""
        with self._lock:
            self._is_over = True
            server = self._server
        if server is not None:
            server.stop("the owner was stopped")

    def end(self) -> None:
        """It has stopped."""
        if self._worker is not None:
            self._worker.stop(StoppedError("the Service was stopped"))
        if self._server is not None:
            self._server.close()
