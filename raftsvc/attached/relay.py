"""What a process has the owner of its directory do, or tell, if that is another one.

An owner may end in the middle: then the next one is asked, and what that says is read as of somebody who may have
done it already.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from enum import Enum, auto

from raftsvc.attached.asking import UnansweredError
from raftsvc.attached.sharing import Sharing
from raftsvc.errors import RaftError, StoppedError
from raftsvc.member.participant import Participant

_STATUS_SECONDS = 1.0


class Relayed(Enum):
    """What came of it."""

    DONE = auto()
    OURS = auto()
    """No other owns the directory: this process is to do it."""
    OURS_AGAIN = auto()
    """Likewise, but another did, and may have done it before it ended."""


class Relay:
    """Of one process.  Thread-safe."""

    def __init__(self, sharing: Sharing | None, stopped: threading.Event, election_timeout: float) -> None:
        """sharing: None where no other process is let in.  stopped: set once this one is."""
        self._sharing = sharing
        self._stopped = stopped
        self._status_seconds = min(_STATUS_SECONDS, election_timeout)

    def is_attached(self) -> bool:
        """Whether another process owns the directory, or is about to."""
        return self._sharing is not None and not self._sharing.is_owner

    def status(self) -> Mapping[str, object] | None:
        """How the node is, if another process has it and tells; None if not."""
        sharing = self._sharing
        if sharing is None or sharing.is_owner or sharing.trouble() is not None:
            return None
        try:
            return sharing.ask("status", {}, self._status_seconds).result
        except UnansweredError:
            return None

    def status_of_process(self) -> dict[str, object]:
        """What is of this process alone, and which others of its host there are."""
        if self._sharing is not None:
            return self._sharing.status()
        return {"pid": os.getpid(), "owner_pid": os.getpid(), "attached": [], "took_over": False}

    def do(
        self,
        what: str,
        arguments: Mapping[str, object],
        timeout: float,
        late: type[RaftError],
        done: tuple[type[RaftError], ...] = (),
        unsent: type[RaftError] | None = None,
    ) -> Relayed:
        """Have the owner of the directory do something, if that is another process; raises what it raises.

        late:   raised if it does not answer in time; unsent: instead, if it was not even asked.
        done: what says, once it was asked before and that owner ended, that it was done then.
        """
        sharing = self._sharing
        if sharing is None or sharing.is_owner:
            return Relayed.OURS
        try:
            asked = sharing.ask(what, arguments, timeout)
        except UnansweredError as error:
            if self._stopped.is_set():
                raise StoppedError("the Service was stopped") from error
            who = f"process {sharing.owner_pid}, which owns the directory," if sharing.owner_pid else "the owner"
            if error.was_sent:
                raise late(f"{who} did not answer within {timeout:g} s; it may have done it, or do it yet") from error
            why = sharing.trouble()
            raise (unsent or late)(
                f"nothing was done: no owner of the directory was reached within {timeout:g} s"
                + (f" ({why})" if why is not None else "")
            ) from error
        if asked.error is not None and not (asked.was_repeated and isinstance(asked.error, done)):
            raise asked.error
        if asked.result is None and asked.error is None:
            return Relayed.OURS_AGAIN if asked.was_repeated else Relayed.OURS
        return Relayed.DONE

    def await_node(self, node: Callable[[], Participant | None], deadline: float, late: type[RaftError]) -> None:
        """The owner has a node by now: wait until this process is attached to it, and it knows its leader."""
        while (found := node()) is None:
            if self._stopped.is_set():
                raise StoppedError("the Service was stopped")
            if time.monotonic() >= deadline:
                why = self._sharing.why_none() if self._sharing is not None else None
                raise late(f"the node of this host is there, and this process is not attached to it: {why}")
            self._stopped.wait(0.02)
        found.wait_until(found.is_settled, deadline - time.monotonic())
