"""An attached process in the place of a node: what the public face asks of a member, asked of a replica."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from raftsvc.attached.replica import needs_restart
from raftsvc.attached.worker import Callers, Worker
from raftsvc.compiled import IS_COMPILED
from raftsvc.core.membership import ConfChange, Configuration
from raftsvc.core.messages import NO_NODE, Claim, Life, Message
from raftsvc.core.raft import Refusal
from raftsvc.errors import DirectoryInUseError, NodeFailedError, RaftError
from raftsvc.member.health import Condition
from raftsvc.member.vitals import View
from raftsvc.storage import StoredSnapshot
from raftsvc.transport import Identity, Problem, SnapshotChunk


class AttachedVitals:
    """How an attached process is."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def is_live(self) -> bool:
        """Whether its threads are at work; halted applying is not mended by a restart, unless the State went wrong."""
        replica = self._worker.replica
        if needs_restart(replica):
            return False
        return self._worker.are_alive or replica.health.halted is not None

    def is_ready(self) -> bool:
        """Whether callers are served well here."""
        replica = self._worker.replica
        return replica.health.may_be_ready and replica.link.is_fed and replica.news.is_ready

    def conditions(self) -> Mapping[str, str]:
        """What is wrong here, the gravest first; what is wrong with the owner's node it says itself."""
        return self._worker.replica.health.conditions()

    def err(self) -> RaftError | None:
        """What keeps this process, or the owner's node, from operating normally."""
        replica = self._worker.replica
        error = replica.health.err()
        told = replica.news.trouble
        if told and replica.health.may_serve:  # what it waits for here goes on only once that is over
            told = f"process {replica.owner_pid}, which owns the node, says: {told}"
            error = NodeFailedError(f"{told}; and {error}" if error is not None else told)
        return error

    def await_change(self, told: Sequence[View], timeout: float) -> View:
        """How it is once it is not as `told` any more, or after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        worker = self._worker
        with worker.lock:
            while self._is_as(told) and worker.successor is None and time.monotonic() < deadline:
                worker.changed.wait(deadline - time.monotonic())
            return self._view()

    def _is_as(self, told: Sequence[View]) -> bool:
        view = self._view()
        last = told[0] if told else None
        if last is None or view.is_over:
            return False
        # What is said of the owner's trouble is another object each time.
        return view._replace(error=None) == last._replace(error=None) and str(view.error) == str(last.error)

    def _view(self) -> View:
        replica = self._worker.replica
        news = replica.news
        members = replica.applying.applied_config.members
        return View(
            news.term,
            news.leader_id,
            news.leader_addr or None,
            news.is_leading,
            {node_id: member.addr for node_id, member in members.items()},
            self.err(),
            replica.health.is_over,
        )

    @property
    def log_time_ms(self) -> int:
        """Log time as of the last entry that is applied here."""
        return self._worker.replica.applying.applied_time_ms

    def hears_leader_by_itself(self) -> bool:
        """It does: by its owner."""
        return True

    def note_listening(self, trouble: RaftError | None) -> None:
        """It has no port."""

    def note(self, condition: Condition, trouble: RaftError | None, level: int = 0) -> None:
        """Something is wrong with this process that others see, or, None, not any more; they say it in the log, too."""
        worker, health = self._worker, self._worker.replica.health
        with worker.lock:
            if trouble is not None:
                health.note(condition, trouble)
            elif not health.clear(condition):
                return
            worker.changed.notify_all()

    def note_claim(self, cluster: str, from_id: int) -> None:
        """Nobody speaks to it."""


class AttachedNode:
    """A `Participant`: a process that is attached to the one that has the node.

    Who began to wait here before this process took over is told how its own node is.
    """

    def __init__(self, worker: Worker, addr: str) -> None:
        self._worker = worker
        self._replica = worker.replica
        self._addr = addr
        self.callers = Callers(worker)
        self.vitals = AttachedVitals(worker)
        self.runs_state_here: Callable[[], bool] = lambda: worker.state_thread == threading.get_ident()

    @property
    def node_id(self) -> int:
        """Of the member of this host."""
        return self._replica.node_id

    @property
    def cluster_id(self) -> int:
        """Of its cluster."""
        return self._replica.cluster_id

    def start(self) -> None:
        """It runs."""

    def hand_over(self, timeout: float, to_id: int = NO_NODE) -> Refusal | None:
        """Nothing is led here; raises DirectoryInUseError if another member is to lead."""
        if to_id != NO_NODE:
            self._refuse("hands over")
        return None

    def stop(self, error: RaftError) -> None:
        """End the threads, and fail every waiter with what is known."""
        self._worker.stop(error)

    # -- how it is

    def check_able(self) -> None:
        """Raise what keeps this process from serving an application, if anything does."""
        self._replica.health.check_able()

    def err(self) -> RaftError | None:
        """What keeps it from operating normally, or None."""
        return self.vitals.err()

    def status(self) -> dict[str, object]:
        """As far as it is known without the owner, which tells the rest if it answers; what is not known is None.

        It has the keys that a node's has (`raftsvc.member.status`).
        """
        replica, news = self._replica, self._replica.news
        machine = replica.applying.machine
        with self._worker.lock:
            members = sorted(replica.applying.applied_config.members.items())
            return {
                "node_id": replica.node_id,
                "cluster_id": f"{replica.cluster_id:016x}",
                "addr": self._addr,
                "role": "attached",
                "leader_id": news.leader_id or None,
                "leader_addr": news.leader_addr or None,
                "term": news.term,
                "commit_index": news.commit_index,
                "time_ms": replica.applying.applied_time_ms,
                "applied_index": replica.applying.applied_index,
                "last_index": news.commit_index,
                "snapshot_index": replica.snapshots.restored_index,
                "log_bytes": None,
                "digest_checked_index": None,
                "waiting_calls": len(replica.calls),
                "waiting_reads": len(replica.reads),
                "members": {str(i): {"addr": m.addr, "is_voter": m.is_voter} for i, m in members},
                "followers": {},
                "fsync_count": None,
                "unapplied_bytes": replica.applying.backlog_bytes,
                "warnings": [replica.applying.warning] if replica.applying.warning else [],
                "versions": {
                    "effective": machine.versions.as_json(),
                    "own": machine.own.as_json(),
                    "held_back_by": {},
                },
                "compiled": IS_COMPILED,
                "conditions": replica.health.conditions(),
                "unreachable": {},
            }

    def is_settled(self) -> bool:
        """Whether the owner's node is a voter that knows its leader."""
        later = self._worker.successor
        if later is not None:
            return later.is_settled()
        return self._replica.news.leader_id != NO_NODE and self.node_id in self.applied_config.voters

    @property
    def is_leader(self) -> bool:
        """Whether the owner's node believed to lead when it was heard last."""
        later = self._worker.successor
        return later.is_leader if later is not None else self._replica.news.is_leading

    @property
    def leader_addr(self) -> str | None:
        """Where the leader is reached, if one is known."""
        later = self._worker.successor
        return later.leader_addr if later is not None else self._replica.news.leader_addr or None

    @property
    def applied_config(self) -> Configuration:
        """The configuration as of the entries applied here."""
        later = self._worker.successor
        return later.applied_config if later is not None else self._replica.applying.applied_config

    def wait_until(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Wait until `condition` holds; whether it did."""
        deadline = time.monotonic() + timeout
        worker = self._worker
        with worker.lock:
            while (later := worker.successor) is None:
                if condition():
                    return True
                remaining = deadline - time.monotonic()
                if remaining <= 0 or self._replica.health.is_over:
                    return False
                worker.changed.wait(remaining)
        return later.wait_until(condition, max(0.0, deadline - time.monotonic()))

    @property
    def applied_index(self) -> int:
        """Up to which entry the State here reflects the log."""
        return self._replica.applying.machine.applied_index

    def open_snapshot(self, index: int, timeout: float, is_whole: bool = True) -> StoredSnapshot:
        """Raises DirectoryInUseError: the owner stores, and is asked to by `open_stored`."""
        later = self._worker.successor
        if later is None:
            self._refuse("gives away what is stored")
        return later.open_snapshot(index, timeout, is_whole)

    def change_membership(
        self, change: ConfChange, is_done: Callable[[Configuration], bool], timeout: float
    ) -> Refusal | None:
        """Raises DirectoryInUseError: that is done where the node is."""
        self._refuse("changes the membership")

    def _refuse(self, what: str) -> NoReturn:
        raise DirectoryInUseError(
            f"this process is attached to process {self._replica.owner_pid}, which has the node, and only that {what}: "
            f"ask there, or at another member; the members are "
            f"{', '.join(sorted(m.addr for m in self.applied_config.members.values()))}"
        )

    # -- what other members bring

    def check_receives(self) -> None:
        """Raises a Problem that names where this member is reached: peers speak to the owner alone."""
        raise Problem(
            421,
            "attached",
            f"this process has no node of its own; the one of this host is reached at {self._addr}",
            addr=self._addr,
            leader=self._replica.news.leader_addr,
        )

    @property
    def identity(self) -> Identity:
        """See `check_receives`."""
        self.check_receives()
        raise AssertionError("it says who has one")

    def hear_from(self, node_id: int, claim: Claim, addr: str, proves_now: bool) -> str:
        """See `check_receives`."""
        self.check_receives()
        return "unknown"

    def latest_life(self, node_id: int) -> Life:
        """See `check_receives`."""
        self.check_receives()
        return Life()

    def receive(self, from_id: int, messages: Sequence[Message]) -> list[Message]:
        """See `check_receives`."""
        self.check_receives()
        return []

    def receive_chunk(self, from_id: int, chunk: SnapshotChunk) -> tuple[int, list[Message]]:
        """See `check_receives`."""
        self.check_receives()
        return 0, []
