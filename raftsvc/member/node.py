"""One running node: an engine, and the threads, the lock and the peers around it.

The node owns the only lock over the engine (`turns`).  Whoever brings it something (a
caller, a message, a tick) hands it to the engine under that lock and then drives; the
rooms beside this one are those who do: `callers`, `peers`, `ticker`, `applier`.  Who of
them writes, applies and is woken is decided in `handoff`.

Threads, all daemons, none dependent on the thread that started the node:
    raftsvc-ticker    counts time, watches the disk, repeats what may have been lost
    raftsvc-log       writes when no caller is about to, and drives for callers that do not
    raftsvc-apply     applies committed entries, unless a caller that waits for one does
    raftsvc-snapshot  while a snapshot is written
    raftsvc-release   while old segments of the log are deleted
    raftsvc-prepare   while the log's next segment is made
    raftsvc-room      while the disk is asked for its room
    raftsvc-send-N, raftsvc-stream-N, raftsvc-transfer-N    see transport
"""

from __future__ import annotations

import logging
import os
import random
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from raftsvc.clocks import read_clocks
from raftsvc.core.membership import ConfChange, Configuration, ConfOp
from raftsvc.core.messages import NO_NODE, Claim, Life, Message
from raftsvc.core.raft import ProposalRefused, Refusal, Role
from raftsvc.errors import (
    DamagedStorageError,
    RaftError,
    ReadTimeoutError,
    StartFailedError,
    StoppedError,
    StorageError,
)
from raftsvc.member.addresses import Addresses
from raftsvc.member.applier import Applier
from raftsvc.member.callers import Callers
from raftsvc.member.engine import Engine, EngineOptions, let_waiters_go
from raftsvc.member.errands import Errands
from raftsvc.member.feeders import Feeders
from raftsvc.member.live import Live
from raftsvc.member.peers import Peers
from raftsvc.member.status import status_of
from raftsvc.member.threads import Threads
from raftsvc.member.ticker import LEAST_TICK, Ticker
from raftsvc.member.turns import Turn
from raftsvc.member.vitals import Vitals
from raftsvc.state import State
from raftsvc.storage import Store, StoredSnapshot, held_by
from raftsvc.transport import Network, SnapshotChunk

logger = logging.getLogger("raftsvc.node")

_STOP_SECONDS = 5.0
"""How long `stop` waits for threads, and for a disk that hangs."""


class NodeOptions(NamedTuple):
    """What shapes a node; see `raftsvc.start` for the meaning of each."""

    election_timeout: float = 1.0
    engine: EngineOptions = EngineOptions()
    clock: Callable[[], float] = lambda: time.monotonic()
    clocks: Callable[[], tuple[int, ...]] = lambda: read_clocks()
    peers: Mapping[int, str] = MappingProxyType({})

    @property
    def tick_seconds(self) -> float:
        """Between two ticks."""
        return self.election_timeout / self.engine.election_ticks


class Node:
    """A member of a cluster, running from construction (`start`) until `stop`.  A `Participant` in this process."""

    def __init__(
        self,
        addr: str,
        store: Store,
        state: State,
        network: Network,
        options: NodeOptions,
        live: Live | None = None,
    ) -> None:
        """Recover from `store`, which is initialized; nothing runs before `start`.

        live: what this process has as an attached one, which goes on here.

        Raises StorageError if what is stored cannot be trusted, and whatever the
        State raises if it cannot be restored.
        """
        self._store = store
        self._tick_seconds = options.tick_seconds
        lock = threading.Lock()
        changed = threading.Condition(lock)
        self._threads = Threads(self._note_failure)
        errands = Errands(changed, options.clocks, store.open_snapshot, self._threads)
        seed = random.Random(secrets.randbits(256))
        engine_options = options.engine._replace(
            tick_ns=int(1e9 * LEAST_TICK * self._tick_seconds), tick_ms=max(1, int(1e3 * self._tick_seconds))
        )
        self._engine = engine = Engine(addr, store, state, engine_options, seed, errands, live, os.getpid())
        self._turn = turn = Turn(lock, changed, engine, errands)
        self.runs_state_here = turn.hands.run_state_here
        self._applier = Applier(engine, turn, self._threads)
        addresses = Addresses(engine.node_id, addr, options.peers)
        self._peers = Peers(engine, turn, self._applier, errands, network, options.election_timeout, addresses)
        errands.attach(engine, self._peers.members_changed)
        self.callers = Callers(engine, turn, self._applier, self._threads.stopping)
        self._ticker = Ticker(engine, turn, self._peers, self._threads.stopping, options.clock, self._tick_seconds)
        self.feeders = Feeders(engine, turn, self._applier, errands)
        self.identity = self._peers.identity
        self.vitals = Vitals(engine, turn, self._peers, self._threads, self.is_settled)
        self.node_id = engine.node_id
        self.cluster_id = engine.snapshots.cluster_id

    # -- life

    def start(self) -> None:
        """Start the threads; a sole voter elects itself at once.

        Raises StartFailedError if no thread can be started; then none is left, and nothing was
        applied: another node may be started with the same State and directory.
        """
        try:
            with self._turn:
                self._engine.start()
            # Who applies comes last.
            for name, run in (("ticker", self._ticker.run), ("log", self._turn.run_log), ("apply", self._applier.run)):
                self._threads.start_essential(name, run)
        except BaseException as error:
            self.undo_start()
            if isinstance(error, RuntimeError):
                raise StartFailedError(
                    f"node {self.node_id} could not be started: {error}; it may be tried again"
                ) from (error)
            raise

    def undo_start(self) -> bool:
        """End all threads, of a node of which nobody knows yet: whoever waits is not failed, nor the store closed.

        Bounded.  False if a write to the disk still hangs, and the log is as open as before: until it does not, which
        this says when it is called again, nobody else may open what is in the directory.
        """
        with self._turn:
            let_waiters_go(self._engine)
        return self._let_go(self._end(StoppedError("the node could not be started")), self._store.unload)

    def _note_failure(self, error: BaseException, what: str) -> None:
        with self._turn:
            self._turn.fail(error, what)

    def hand_over(self, timeout: float, to_id: int = NO_NODE) -> Refusal | None:
        """If this node leads, let the voter `to_id`, or the most advanced live one, take over.

        Waits at most `timeout` seconds.  Returns None if this node does not lead any more, else why.
        """
        deadline = time.monotonic() + timeout
        turn, core, health = self._turn, self._engine.core, self._engine.health
        with turn:
            self._engine.time.note()
            leader = core.leader
            if leader is None or health.is_over:
                return None
            try:
                if to_id != NO_NODE:
                    core.transfer_leadership(to_id)
                elif not leader.step_aside():
                    return Refusal.NO_LEADER  # there is none who could
            except ProposalRefused as refused:
                return refused.refusal
            turn.drive(inline=False)
            turn.pause()
            while (leader := core.leader) is not None and not health.is_over:
                remaining = deadline - time.monotonic()
                if remaining <= 0 or not leader.transfer_target:
                    return Refusal.TRANSFERRING
                turn.changed.wait(min(remaining, self._tick_seconds))
            return None

    def stop(self, error: RaftError) -> None:
        """End all threads and fail every waiter with what is known; bounded, idempotent."""
        deadline = self._end(error)
        if not self._let_go(deadline, self._store.close):
            logger.error(
                "a write to the disk still hangs; files and the directory lock stay open until the process ends"
            )

    def _end(self, error: RaftError) -> float:
        """End all threads, of whom some may be in the middle of something; until when to wait for what they do."""
        with self._turn:
            self._threads.stopping.set()
            self._engine.stop(error)
            self._turn.wake_all()
            stop_senders = self._peers.stop()
        stop_senders()
        deadline = time.monotonic() + _STOP_SECONDS
        self._threads.join(lambda: deadline - time.monotonic())
        return deadline

    def _let_go(self, deadline: float, close: Callable[[float], bool]) -> bool:
        # A descriptor that is closed while it is written to may be another file's by then.
        turn, inbox = self._turn, self._engine.inbox
        with held_by(deadline, self._peers.incoming_lock) as is_quiet:
            with turn.lock:
                while inbox.is_writing and time.monotonic() < deadline:
                    turn.durable.wait(0.05)
                is_quiet = is_quiet and not inbox.is_writing
            return is_quiet and close(deadline - time.monotonic())

    # -- how it is

    def check_able(self) -> None:
        """Raise what keeps this node from serving an application, if anything does."""
        self._engine.health.check_able()

    def err(self) -> RaftError | None:
        """What keeps this node from operating normally, or None."""
        return self._engine.health.err()

    def status(self) -> dict[str, object]:
        """A picture of the node for people and monitors."""
        with self._turn.lock:
            return status_of(self._engine)

    def is_settled(self) -> bool:
        """Whether this node is a voter that knows its leader."""
        core = self._engine.core
        return core.leader_id != NO_NODE and self.node_id in core.committed_config.voters

    @property
    def leader_addr(self) -> str | None:
        """Where the leader is reached, if one is known."""
        with self._turn.lock:
            return self._peers.addr_of(self._engine.core.leader_id) or None

    @property
    def is_leader(self) -> bool:
        """Whether this node believes that it leads."""
        return self._engine.core.role is Role.LEADER

    @property
    def applied_config(self) -> Configuration:
        """The configuration as of the entries applied here."""
        return self._engine.applying.applied_config

    def hear_from(self, node_id: int, claim: Claim, addr: str, proves_now: bool) -> str:
        """Who speaks as a life of `node_id`; see `Peers.hear_from`."""
        return self._peers.hear_from(node_id, claim, addr, proves_now)

    def latest_life(self, node_id: int) -> Life:
        """The latest life of another member that is known here."""
        return self._peers.latest_life(node_id)

    def wait_until(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Wait until `condition`, of leader, membership or failure, holds; whether it did."""
        deadline = time.monotonic() + timeout
        with self._turn.lock:
            while not condition():
                remaining = deadline - time.monotonic()
                if remaining <= 0 or self._engine.health.is_over:
                    return condition()
                self._turn.changed.wait(min(remaining, self._tick_seconds))
        return True

    @property
    def applied_index(self) -> int:
        """Up to which entry the State here reflects the log."""
        return self._engine.applying.applied_index

    def open_snapshot(self, index: int, timeout: float, is_whole: bool = True) -> StoredSnapshot:
        """The State as it is stored here, of `index` or later, which is applied; taken now if it is of earlier.

        is_whole: it is read to its end first, and another is taken if it is damaged; else whoever reads it finds out.

        To be closed by the caller; it stays as it is when a later one takes its place.  Raises ReadTimeoutError after
        `timeout` seconds, StorageError if it cannot be taken or read, and what keeps this node from serving.
        """
        deadline = time.monotonic() + timeout
        turn, snapshots = self._turn, self._engine.snapshots
        while True:
            stored = self._stored_since(index, is_whole)
            if stored is not None:
                return stored
            with turn.lock:
                self._engine.health.check_able()
                failures = snapshots.failures
                snapshots.ask(index)
                turn.apply_work.set()
                turn.changed.wait(max(0.0, min(deadline - time.monotonic(), self._tick_seconds)))
                if snapshots.failures > failures:
                    raise StorageError("no snapshot can be taken: see err() and the log for why")
            if self._threads.stopping.is_set():
                raise StoppedError("the Service was stopped")
            if time.monotonic() >= deadline:
                raise ReadTimeoutError(f"no snapshot was taken within {timeout:g} s")

    def _stored_since(self, index: int, is_whole: bool) -> StoredSnapshot | None:
        """The stored one, if it is of that index or later, and whole; the State, which is, makes another else."""
        try:
            stored = self._store.open_snapshot()
        except (FileNotFoundError, DamagedStorageError):
            return None
        except OSError as error:
            raise StorageError(f"the stored snapshot cannot be opened: {error}") from error
        try:
            if stored.header.index >= index and not self._engine.snapshots.is_doubted:
                if is_whole:
                    stored.verify()
                return stored
        except DamagedStorageError:
            pass
        except OSError as error:
            stored.close()
            raise StorageError(f"the stored snapshot cannot be read: {error}") from error
        stored.close()
        return None

    # -- membership

    def change_membership(
        self, change: ConfChange, is_done: Callable[[Configuration], bool], timeout: float
    ) -> Refusal | None:
        """Propose `change`, through the leader, until the applied configuration satisfies `is_done`.

        Returns None then, else why it was refused last; NO_LEADER if that is unknown; WOULD_LOSE_QUORUM only if
        none of its tries is on its way.  Once this node was removed, which it may not apply any more, nothing is
        waited for.
        """
        deadline = time.monotonic() + timeout
        last, is_in_doubt = Refusal.NO_LEADER, False
        change.encode()  # what cannot be is refused here, not in the middle of a turn
        engine, turn, applying = self._engine, self._turn, self._engine.applying
        with turn:
            while not is_done(applying.applied_config):
                if engine.core.is_removed:
                    is_ours = change.op in (ConfOp.REMOVE, ConfOp.REPLACE) and change.node_id == self.node_id
                    return None if is_ours else Refusal.REMOVED
                if not engine.health.may_apply or time.monotonic() >= deadline:
                    return Refusal.NO_LEADER if is_in_doubt and last is Refusal.WOULD_LOSE_QUORUM else last
                attempt = engine.changes.attempt(change)
                turn.drive(inline=False)
                turn.pause()
                retry_tick = engine.ticks + engine.options.retry_ticks
                while not is_done(applying.applied_config) and attempt.refusal is None and engine.ticks < retry_tick:
                    remaining = deadline - time.monotonic()
                    if remaining <= 0 or self._threads.stopping.is_set() or engine.core.is_removed:
                        break
                    turn.changed.wait(min(remaining, self._tick_seconds))
                engine.changes.end(attempt)
                is_in_doubt = is_in_doubt or attempt.refusal is None
                if attempt.refusal is not None:
                    last = attempt.refusal
                    # An earlier attempt may have had just that effect: it is seen once that is applied here.
                    is_known = applying.applied_index >= attempt.config_index
                    if last is Refusal.INVALID_CHANGE and is_known and not is_done(applying.applied_config):
                        return last
                    turn.changed.wait(self._tick_seconds)
            return None

    # -- what other members ask; see peers

    def check_receives(self) -> None:
        """Nothing keeps other members from bringing something here."""

    def receive(self, from_id: int, messages: Sequence[Message]) -> list[Message]:
        """Step messages that came in a request of `from_id`; return the replies for it."""
        return self._peers.receive(from_id, messages)

    def receive_chunk(self, from_id: int, chunk: SnapshotChunk) -> tuple[int, list[Message]]:
        """Take a piece of a snapshot.  Returns the offset wanted next, and replies once it is complete."""
        return self._peers.receive_chunk(from_id, chunk)
