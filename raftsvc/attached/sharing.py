"""One directory and several processes of a host: who owns it serves the others, who does not is attached."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from raftsvc.attached.asking import Desk, LostError, UnansweredError, why_of
from raftsvc.attached.likeness import Likeness
from raftsvc.attached.participant import AttachedNode
from raftsvc.attached.server import FeedServer, House, Owner
from raftsvc.attached.worker import Succession, Worker
from raftsvc.errors import NodeFailedError, RaftError, StoppedError
from raftsvc.member.live import Live
from raftsvc.member.node import NodeOptions
from raftsvc.member.participant import Participant
from raftsvc.state import State
from raftsvc.storage import Store

_FIRST_SECONDS = 5.0
"""How long a process that is started waits for the owner to take it in."""
_POLL_SECONDS = 0.02


class Asked(NamedTuple):
    """What came of something that the owner was asked.

    result:       None if this process owns the directory by now, and does it itself.
    error:        what the owner raised.
    was_repeated: an owner was asked before, and ended before it answered.
    """

    result: Mapping[str, object] | None = None
    error: RaftError | None = None
    was_repeated: bool = False


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
        desk: Desk,
        likeness: Likeness,
    ) -> None:
        """is_draining: whether this process is about to end.  owns: called when it has become the owner.

        desk: where it tells others, as the owner, what is for people.  likeness: how this process is configured.
        """
        self.is_owner = is_owner
        self._store = store
        self._options = options
        self._addr = addr
        self._state = state
        self._is_draining = is_draining
        self._owns = owns
        self._desk = desk
        self._likeness = likeness
        self._is_settled = is_owner  # it has begun all that an owner does
        # Whoever serves, maybe the main thread, sets the first and then looks at the second; who ends it, otherwise.
        self._server: FeedServer | None = None
        self._is_over = False
        self._worker: Worker | None = None
        self._leaving = threading.Lock()
        self._is_leaving = False

    def begin(
        self,
        node: Callable[[], Participant | None],
        why_none: Callable[[], RaftError],
        own: Callable[[Store, Live | None], Participant | None],
        welcome: Callable[[Participant], None],
    ) -> None:
        """Serve the others, or attach to who owns the directory.

        node:    that of this process, if it has one; else why_none says why.
        own:     make it of a store that is owned, and what is live here.
        welcome: what stands in its place as long as this process is attached.
        """
        if self.is_owner:
            self._serve(node, why_none)
            return

        def take_over(store: Store, live: Live | None) -> Participant | None:
            successor = own(store, live)
            self.is_owner = True
            return successor

        steps = [lambda: self._serve(node, why_none), self._owns]

        def settle() -> None:
            while steps:
                steps[0]()
                del steps[0]
            self._is_settled = True

        def is_welcome() -> None:
            welcome(attached)

        options = self._options
        succession = Succession(self._is_draining, take_over, settle, is_welcome)
        self._worker = worker = Worker(
            self._store.path,
            self._store.files,
            self._state,
            options.engine,
            options.tick_seconds,
            succession,
            self._likeness.encode,
        )
        attached = AttachedNode(worker, self._addr)
        worker.start()
        (worker.is_welcomed if self._store.is_initialized else worker.is_answered).wait(_FIRST_SECONDS)

    def _serve(self, node: Callable[[], Participant | None], why_none: Callable[[], RaftError]) -> None:
        def owned() -> Owner | None:
            found = node()
            return found if isinstance(found, Owner) else None

        house = House(owned, why_none, self._desk, self._likeness, self._store.files.check_place)
        self._server = server = FeedServer(self._store.path, house)
        if self._is_over:
            return
        try:
            server.start()
        except BaseException:
            server.close()
            self._server = None
            raise

    # -- while it is attached

    def trouble(self) -> RaftError | None:
        """What keeps this process from being attached, if it is not."""
        worker = self._worker
        return worker.replica.health.err() if worker is not None and not self.is_owner else None

    def why_none(self) -> RaftError | None:
        """Why this process, which is attached, has nothing in the place of a node yet; None if it is not."""
        worker = self._worker
        if worker is None or self._is_settled:
            return None
        if self.is_owner:
            return NodeFailedError("this process owns the directory from now on, and begins; try again")
        wait = worker.replica.link.wait
        if wait is not None:
            return why_of(wait)
        pid = worker.replica.owner_pid
        return worker.replica.health.err() or NodeFailedError(
            "this process is not attached yet to "
            + (f"process {pid}, which" if pid else "the one that")
            + " owns its directory; try again"
        )

    def ask(self, what: str, arguments: Mapping[str, object], timeout: float) -> Asked:
        """Have the owner do something, or tell it; the next one, if it ends.  Raises UnansweredError."""
        deadline = time.monotonic() + timeout
        was_repeated = False
        while not self.is_owner and self._worker is not None:
            remaining = deadline - time.monotonic()
            try:
                # It may lie in the socket for long: by then nobody wants it any more.
                given = {**arguments, "timeout": max(0.0, remaining), "deadline": deadline}
                result = self._worker.questions.ask(what, given, remaining)
            except (LostError, StoppedError) as error:
                was_repeated |= not isinstance(error, LostError) or error.was_sent
                is_over = self._worker.stopping.wait(_POLL_SECONDS) and not self.is_owner
                if remaining <= 0 or is_over:
                    raise UnansweredError(was_repeated) from error
            except RaftError as error:
                return Asked(None, error, was_repeated)
            else:
                return Asked(result, None, was_repeated)
        return Asked(None, None, was_repeated)

    def status(self) -> dict[str, object]:
        """What is of this process alone, and which others of its host there are."""
        worker, server = self._worker, self._server
        if self.is_owner or worker is None:
            attached = server.pids() if server is not None else []
            pid = os.getpid()
            return {"pid": pid, "owner_pid": pid, "attached": attached, "took_over": worker is not None}
        return {"pid": os.getpid(), "owner_pid": self.owner_pid or None, **_status_of(worker)}

    @property
    def owner_pid(self) -> int:
        """Of the process to which this one is attached; 0: to none that is known."""
        return self._worker.replica.owner_pid if self._worker is not None else 0

    def prepare_to_leave(self) -> None:
        """This process is about to stop: another of the host gets ready to own the directory; bounded."""
        server = self._server
        if server is None:
            return
        with self._leaving:  # whoever stops it at the same time waits for the same
            if not self._is_leaving:
                self._is_leaving = True
                server.prepare()

    def bid_farewell(self) -> None:
        """This process is about to stop: the others get ready."""
        self._is_over = True
        server = self._server
        if server is not None:
            server.stop("the owner was stopped")

    def end(self) -> None:
        """It has stopped."""
        if self._worker is not None:
            self._worker.stop(StoppedError("the Service was stopped"))
        server = self._server
        if server is not None:
            server.close()


def _status_of(worker: Worker) -> dict[str, object]:
    """Of this process alone, for people and monitors."""
    replica = worker.replica
    with worker.lock:
        return {
            "is_attached": replica.link.is_fed,
            "applied_index": replica.applying.applied_index,
            "unapplied_bytes": replica.applying.backlog_bytes,
            "waiting_calls": len(replica.calls),
            "waiting_reads": len(replica.reads),
            "conditions": replica.health.conditions(),
        }
