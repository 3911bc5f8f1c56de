"""One running node: where core, storage, State, peers and threads meet.

The node owns the only lock over the core.  Whoever brings it something (a
caller, a message, a tick) steps the core under that lock and then drives: sends
what may be sent, and writes what must be durable unless somebody is writing
already, in which case the work is left to join the next batch.  So a lone caller
writes its own entry without handing it to another thread, and under load each
write covers everything that came meanwhile.

Threads, all daemons, none dependent on the thread that started the node:
    raftsvc-ticker    counts time, watches the disk, repeats what may have been lost
    raftsvc-log       writes when no caller is about to
    raftsvc-apply     applies committed entries and wakes those who wait for them
    raftsvc-snapshot  while a snapshot is written
    raftsvc-send-N, raftsvc-stream-N, raftsvc-transfer-N    see transport

Lock order: node lock > outbox lock > log-writer lock.  Nothing blocks under the
node lock: no disk, no socket, no code of the State.
"""

from __future__ import annotations

import logging
import random
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, cast

from raftsvc.calls import Call, Calls, Contexts, Read, Reads, refusal_of
from raftsvc.core.membership import ConfChange, Configuration, ConfOp, Member
from raftsvc.core.messages import NO_NODE, Entry, EntryKind, MalformedError, Message, MessageKind
from raftsvc.core.raft import (
    ProposalRefused,
    Raft,
    Ready,
    Refusal,
    Role,
    Settings,
    SnapshotMeta,
    ViolationError,
)
from raftsvc.errors import (
    ApplyHaltedError,
    ConsensusError,
    DiskStalledError,
    EvictedError,
    NodeFailedError,
    NotApplied,
    OverloadedError,
    RaftError,
    StoppedError,
    StorageError,
)
from raftsvc.machine import Answer, Machine
from raftsvc.state import State
from raftsvc.storage import IncomingSnapshot, SnapshotHeader, Store
from raftsvc.transport import Network, Peer, SnapshotChunk

logger = logging.getLogger("raftsvc.node")

MAX_BACKLOG_BYTES = 64 * 1024 * 1024
MAX_STRANGERS = 16


class NodeOptions(NamedTuple):
    """What shapes a node; see `raftsvc.start` for the meaning of each."""

    election_timeout: float = 1.0
    election_ticks: int = 10
    snapshot_entries: int = 50_000
    snapshot_bytes: int = 64 * 1024 * 1024
    trailing_entries: int = 10_000
    trailing_bytes: int = 16 * 1024 * 1024
    max_uncommitted_bytes: int = 64 * 1024 * 1024
    clock: Callable[[], float] = lambda: time.monotonic()


class _ChangeAttempt:
    """A membership change that was forwarded, and why it was refused if it was."""

    __slots__ = ("refusal",)

    def __init__(self) -> None:
        self.refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class _SnapshotMark:
    """To be written to the log: the State's snapshot at `index` is durable."""

    index: int
    term: int


@dataclass(frozen=True, slots=True)
class _Restore:
    """To be done by the apply thread: the State restarts from the stored snapshot, at least at `index`."""

    index: int


class Node:
    """A member of a cluster, running from construction (`start`) until `stop`."""

    def __init__(
        self,
        addr: str,
        store: Store,
        state: State,
        network: Network,
        options: NodeOptions,
    ) -> None:
        """Recover from `store`, which is initialized; nothing runs before `start`.

        Raises StorageError if what is stored cannot be trusted, and whatever the
        State raises if it cannot be restored.
        """
        loaded = store.load()
        self.addr = addr
        self.node_id = loaded.node_id
        self.cluster_id = loaded.cluster_id
        self._store = store
        self._network = network
        self._options = options
        self._tick_seconds = options.election_timeout / options.election_ticks
        # Repeats wait for several heartbeats: the first try is almost never lost.
        self._retry_ticks = max(3, options.election_ticks // 2)
        self._machine = Machine(state)
        self._was_restored = False
        header = loaded.snapshot
        meta = SnapshotMeta()
        if header is not None:
            meta = SnapshotMeta(header.index, header.term, _decode_config(header.config))
            self._restore_state(0)
        elif state.applied_index() != 0:
            raise StorageError(
                "the State reports applied entries, but there is no snapshot to start it from: "
                "give the Service an empty State; the log and the snapshot bring it up to date"
            )
        self._core = Raft(
            Settings(
                self.node_id,
                random.Random(secrets.randbits(64)),
                election_ticks=options.election_ticks,
                max_uncommitted_bytes=options.max_uncommitted_bytes,
                trailing_entries=options.trailing_entries,
                trailing_bytes=options.trailing_bytes,
            ),
            loaded.hard_state,
            meta,
            loaded.entries,
        )

        self._lock = threading.Lock()
        """Guards the core and everything below.  First in the lock order."""
        self._changed = threading.Condition(self._lock)  # leader, configuration, session, disk or failure
        self._log_work = threading.Condition(self._lock)
        self._apply_work = threading.Condition(self._lock)
        self._durable = threading.Condition(self._lock)

        self._threads: list[threading.Thread] = []
        self._essential_threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._failure: RaftError | None = None
        self._halted: ApplyHaltedError | None = None
        self._stall: DiskStalledError | None = None
        self._snapshot_error: RaftError | None = None
        self._ticks = 0
        self._seen_view = (0, NO_NODE, Role.FOLLOWER)
        self._seen_config: Configuration | None = None

        contexts = Contexts()
        self._contexts = contexts
        self._calls = Calls(self._core, contexts, self._retry_ticks)
        self._reads = Reads(self._core, contexts, self._retry_ticks)
        self._changes: dict[int, _ChangeAttempt] = {}

        # The log writer
        self._writes: list[Ready | _SnapshotMark] = []
        self._in_write: list[Ready | _SnapshotMark] = []
        self._is_writing = False
        self._writing_ticks = 0
        self._durable_token = 0
        self._held: deque[tuple[int, Sequence[Message]]] = deque()

        # Applying
        self._to_apply: deque[Sequence[object]] = deque()
        self._backlog_bytes = 0
        self._applied_index = self._machine.applied_index
        self._applied_config = self._machine.config
        self._snapshot_running = False
        self._snapshot_index = meta.index
        self._bytes_since_snapshot = 0
        self._calls.note_session(*self._machine.session_of(self.node_id))

        # Peers
        self._peers: dict[int, Peer] = {}
        self._incoming: IncomingSnapshot | None = None
        self._incoming_lock = threading.Lock()  # one snapshot is received at a time; never taken under the node lock

    # -- life

    def start(self) -> None:
        """Start the threads; a sole voter elects itself at once."""
        with self._lock:
            if self._core.config.voters == {self.node_id}:
                self._core.campaign()
            self._sync_peers()
            self._drive(inline=False)
        for name, run in (("ticker", self._run_ticker), ("log", self._run_log), ("apply", self._run_apply)):
            self._essential_threads.append(self._spawn(name, run))

    def _spawn(self, name: str, run: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                run()
            except BaseException as error:  # a thread's top level: nobody above could tell
                logger.exception("thread raftsvc-%s failed", name)
                with self._lock:
                    self._fail(_as_raft_error(error, f"thread raftsvc-{name} failed"))

        thread = threading.Thread(target=guarded, name=f"raftsvc-{name}", daemon=True)
        self._threads = [t for t in self._threads if t.is_alive()]
        self._threads.append(thread)
        thread.start()
        return thread

    def hand_over(self, timeout: float) -> None:
        """If this node leads, let the most advanced live voter take over, waiting at most `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._lock:
            core = self._core
            if core.role is not Role.LEADER or self._failure:
                return
            ready = [
                (progress.match_index, peer)
                for peer, progress in core.progress.items()
                if peer in core.config.voters and progress.is_alive
            ]
            if not ready:
                return
            with suppress(ProposalRefused):
                core.transfer_leadership(max(ready)[1])
            self._drive(inline=False)
            while core.role is Role.LEADER and core.transfer_target and not self._failure:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return
                self._changed.wait(min(remaining, self._tick_seconds))

    def stop(self, error: RaftError) -> None:
        """End all threads and fail every waiter with what is known; bounded, idempotent."""
        with self._lock:
            self._stopping.set()
            self._fail_waiters(error)
            for condition in (self._changed, self._log_work, self._apply_work, self._durable):
                condition.notify_all()
            peers, self._peers = list(self._peers.values()), {}
        for peer in peers:
            peer.stop()
        deadline = time.monotonic() + 5.0
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            while self._is_writing and time.monotonic() < deadline:
                self._durable.wait(0.05)
            is_writing = self._is_writing
        if is_writing:
            logger.error(
                "a write to the log still hangs; its files and the directory lock stay open until the process ends"
            )
        else:
            self._store.close()

    # -- what a caller may ask

    def check_able(self) -> None:
        """Raise what keeps this node from serving an application, if anything does."""
        if self._failure is not None:
            raise NodeFailedError(f"this node stopped taking part: {self._failure}") from self._failure
        if self._core.is_removed:
            raise EvictedError(f"node {self.node_id} ({self.addr}) was removed from its cluster")
        if self._halted is not None:
            raise self._halted

    def err(self) -> RaftError | None:
        """What keeps this node from operating normally, or None."""
        if self._failure is not None:
            return self._failure
        if self._core.is_removed:
            return EvictedError(f"node {self.node_id} ({self.addr}) was removed from its cluster")
        return self._halted or self._stall or self._snapshot_error

    def is_live(self) -> bool:
        """Whether every thread that the node needs is at work; halted applying is not mended by a restart."""
        return all(thread.is_alive() for thread in self._essential_threads) or self._halted is not None

    def status(self) -> dict[str, object]:
        """A picture of the node for people and monitors."""
        with self._lock:
            core = self._core
            config = core.config
            if core.is_removed:
                role = "removed"
            elif self.node_id in config.learners:
                role = "learner"
            else:
                role = core.role.value
            leader = config.members.get(core.leader_id)
            return {
                "node_id": self.node_id,
                "cluster_id": f"{self.cluster_id:016x}",
                "addr": self.addr,
                "role": role,
                "leader_id": core.leader_id or None,
                "leader_addr": leader.addr if leader else None,
                "term": core.term,
                "commit_index": core.log.commit_index,
                "applied_index": self._applied_index,
                "last_index": core.log.last_index,
                "snapshot_index": core.log.snapshot.index,
                "log_bytes": core.log.size_bytes,
                "waiting_calls": len(self._calls),
                "waiting_reads": len(self._reads),
                "members": {
                    str(i): {"addr": m.addr, "is_voter": m.is_voter} for i, m in sorted(config.members.items())
                },
                "followers": {
                    str(i): {"state": p.state.value, "match_index": p.match_index}
                    for i, p in sorted(core.progress.items())
                },
                "fsync_count": self._store.wal.fsync_count,
            }

    def is_settled(self) -> bool:
        """Whether this node is a voter that knows its leader."""
        return self._core.leader_id != NO_NODE and self.node_id in self._core.committed_config.voters

    @property
    def leader_addr(self) -> str | None:
        """Where the leader is reached, if one is known."""
        with self._lock:
            member = self._core.config.members.get(self._core.leader_id)
        return member.addr if member else None

    @property
    def is_leader(self) -> bool:
        """Whether this node believes that it leads."""
        return self._core.role is Role.LEADER

    @property
    def applied_config(self) -> Configuration:
        """The configuration as of the entries applied here."""
        return self._applied_config

    def standing_of(self, node_id: int) -> str:
        """`member`, `removed` or `unknown`, by what is committed here."""
        with self._lock:
            config = self._core.committed_config
        if node_id in config.members:
            return "member"
        return "removed" if config.was_removed(node_id) else "unknown"

    def wait_until(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Wait until `condition`, of leader, membership or failure, holds; whether it did."""
        deadline = time.monotonic() + timeout
        with self._lock:
            while not condition():
                remaining = deadline - time.monotonic()
                if remaining <= 0 or self._stopping.is_set() or self._failure:
                    return condition()
                self._changed.wait(min(remaining, self._tick_seconds))
        return True

    # -- what callers wait for; see calls

    def submit(self, call: Call, timeout: float) -> None:
        """Send `call` on its way; it is finished with an outcome or an error unless withdrawn first.

        Waits at most `timeout` seconds for this node's session to open.  Raises
        NotApplied.
        """
        deadline = time.monotonic() + timeout
        with self._lock:
            self._await_session(deadline)
            self._calls.add(call)
            self._drive(inline=True)

    def withdraw(self, call: Call) -> bool:
        """Give up on `call`; False if it was finished in the meantime."""
        with self._lock:
            return self._calls.withdraw(call)

    def _await_session(self, deadline: float) -> None:
        while True:
            self._check_serving()
            if self._calls.session_id:
                return
            self._calls.open_session(self._ticks)
            self._drive(inline=True)
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise NotApplied("no leader took this node's first instruction in time; nothing was proposed")
            if not self._calls.session_id:
                self._changed.wait(min(remaining, self._tick_seconds))

    def submit_read(self, read: Read) -> None:
        """Have `read` finished once what is applied here is current as of now."""
        with self._lock:
            self._check_serving()
            self._reads.add(read, self._ticks)
            self._drive(inline=False)

    def withdraw_read(self, read: Read) -> bool:
        """Give up on `read`; False if it was finished in the meantime."""
        with self._lock:
            return self._reads.withdraw(read)

    def _check_serving(self) -> None:
        self.check_able()
        if self._stopping.is_set():
            raise StoppedError("the Service was stopped")

    # -- membership

    def change_membership(
        self, change: ConfChange, is_done: Callable[[Configuration], bool], timeout: float
    ) -> Refusal | None:
        """Propose `change`, through the leader, until the applied configuration satisfies `is_done`.

        Returns None then, else why it was refused last; NO_LEADER if that is unknown.
        """
        deadline = time.monotonic() + timeout
        last = Refusal.NO_LEADER
        invalid = 0
        with self._lock:
            while not is_done(self._applied_config):
                if self._failure or self._halted or self._stopping.is_set() or time.monotonic() >= deadline:
                    return last
                context, attempt = self._contexts.take(), _ChangeAttempt()
                self._changes[context] = attempt
                self._attempt_change(change, context, attempt)
                retry_tick = self._ticks + self._retry_ticks
                while not is_done(self._applied_config) and attempt.refusal is None and self._ticks < retry_tick:
                    remaining = deadline - time.monotonic()
                    if remaining <= 0 or self._stopping.is_set():
                        break
                    self._changed.wait(min(remaining, self._tick_seconds))
                self._changes.pop(context, None)
                if attempt.refusal is not None:
                    last = attempt.refusal
                    invalid += last is Refusal.INVALID_CHANGE
                    if invalid > 3:
                        return last
                    # An earlier attempt may have had just that effect, and is applied here soon.
                    self._changed.wait(self._tick_seconds)
            return None

    def _attempt_change(self, change: ConfChange, context: int, attempt: _ChangeAttempt) -> None:
        if self._core.role is Role.LEADER:
            try:
                self._core.propose_change(change)
            except ProposalRefused as refused:
                attempt.refusal = refused.refusal
        else:
            self._core.forward(((EntryKind.CONFIG, change.encode()),), context)
        self._drive(inline=True)

    def _hear_proposal_reply(self, m: Message) -> None:
        attempt = self._changes.pop(m.context, None)
        if attempt is None:
            self._calls.hear_reply(m, self._ticks)
        elif m.reject:
            attempt.refusal = refusal_of(m)
            self._changed.notify_all()

    # -- driving the core

    def _drive(self, inline: bool) -> None:
        """Do what the core has ready.  Called, and returns, with the lock held.

        inline: this thread writes one batch itself if nobody is writing; what
                comes up meanwhile is left to the log thread.
        """
        while self._failure is None and not self._stopping.is_set():
            self._notice_changes()
            # While the disk is busy calls gather into one batch: one record, one
            # message per peer and one fsync for all of them.
            self._calls.send(self._ticks, may_propose=not self._is_writing)
            while (ready := self._core.ready()) is not None:
                self._dispatch(ready)
            if not self._writes or self._is_writing:
                return
            if not inline:
                self._log_work.notify()
                return
            self._write_batch()
            inline = False

    def _dispatch(self, ready: Ready) -> None:
        self._post(ready.messages)
        for read_state in ready.read_states:
            self._reads.hear(read_state, self._applied_index, self._ticks)
        if ready.must_persist:
            self._writes.append(ready)
        elif ready.messages_after:
            if ready.token <= self._durable_token:
                self._post(ready.messages_after)
            else:
                self._held.append((ready.token, ready.messages_after))
        if ready.committed:
            self._to_apply.append(ready.committed)
            self._backlog_bytes += sum([len(entry.frame) for entry in ready.committed])
            self._apply_work.notify()

    def _post(self, messages: Iterable[Message]) -> None:
        """Put messages into their peers' outboxes."""
        by_peer: dict[int, list[Message]] = {}
        for message in messages:
            if message.kind is MessageKind.SNAPSHOT:
                self._start_transfer(message)
            else:
                by_peer.setdefault(message.to_id, []).append(message)
        for peer_id, batch in by_peer.items():
            peer = self._peers.get(peer_id)
            if peer is not None and not peer.put(batch):
                self._core.report_unreachable(peer_id)

    def _write_batch(self) -> None:
        """Make everything queued durable with one fsync, the lock released meanwhile."""
        self._in_write = batch = self._writes
        self._writes = []
        self._is_writing = True
        self._writing_ticks = 0
        self._lock.release()
        failure: BaseException | None = None
        try:
            self._write(batch)
        except BaseException as error:  # recorded below, whatever it is: what was written is unknown
            failure = error
        self._lock.acquire()
        self._in_write = []
        self._is_writing = False
        self._durable.notify_all()
        if failure is not None:
            self._fail(_as_raft_error(failure, "writing the log failed"))
            if not isinstance(failure, Exception):
                raise failure
            return
        if self._stall is not None:
            self._stall = None
            self._judge_fitness()
        for item in batch:
            if isinstance(item, _SnapshotMark):
                self._release_log(self._core.compact(item.index))
                continue
            self._durable_token = item.token
            self._core.persisted(item.token)
            if item.snapshot is not None:
                self._to_apply.append((_Restore(item.snapshot.index),))
                self._apply_work.notify()
            self._post(item.messages_after)
        while self._held and self._held[0][0] <= self._durable_token:
            self._post(self._held.popleft()[1])

    def _write(self, batch: Iterable[Ready | _SnapshotMark]) -> None:
        wal = self._store.wal
        for item in batch:
            if isinstance(item, _SnapshotMark):
                wal.mark_snapshot(item.index, item.term)
                continue
            if item.snapshot is not None:
                # The file first, then the mark, then what follows it.
                self._store.install_incoming()
                wal.mark_snapshot(item.snapshot.index, item.snapshot.term)
            if item.hard_state is not None or item.entries:
                wal.append(item.hard_state, item.entries)
        wal.sync()

    def _release_log(self, index: int) -> None:
        def release() -> None:
            self._store.wal.release_before(index)

        self._spawn("release", release)

    def _run_log(self) -> None:
        with self._lock:
            while not self._stopping.is_set() and self._failure is None:
                if self._writes and not self._is_writing:
                    self._drive(inline=True)
                else:
                    self._log_work.wait(1.0)

    def _notice_changes(self) -> None:
        """React to a new leader, term or configuration."""
        core = self._core
        view = (core.term, core.leader_id, core.role)
        if view != self._seen_view:
            if view[2] is not self._seen_view[2] or view[1] != self._seen_view[1]:
                logger.info(
                    "node %d is %s in term %d, leader %s",
                    self.node_id,
                    core.role.value,
                    core.term,
                    core.leader_id or "unknown",
                )
            self._seen_view = view
            self._calls.send_all_again()
            self._reads.ask_again(self._ticks)
            self._changes.clear()
            self._changed.notify_all()
        if core.config is not self._seen_config:
            self._seen_config = core.config
            self._sync_peers()
            self._changed.notify_all()
        if core.is_removed and (self._calls or self._reads):
            self._fail_waiters(EvictedError(f"node {self.node_id} ({self.addr}) was removed from its cluster"))
            self._changed.notify_all()

    def _judge_fitness(self) -> None:
        """A node that cannot write or cannot apply leaves leading to others."""
        self._core.set_fit_to_lead(self._failure is None and self._stall is None and self._halted is None)
        self._changed.notify_all()

    def _fail(self, error: RaftError) -> None:
        """Stop taking part for good: no vote, no acknowledgement, nothing served.  The process lives on."""
        if self._failure is None:
            self._failure = error
            logger.error("node %d stops taking part: %s", self.node_id, error, exc_info=error)
            self._judge_fitness()
            self._writes.clear()
            self._held.clear()
            self._fail_waiters(NodeFailedError(f"this node stopped taking part: {error}"))
            for condition in (self._changed, self._log_work, self._apply_work, self._durable):
                condition.notify_all()

    def _fail_waiters(self, error: RaftError) -> None:
        self._calls.fail(error)
        self._reads.fail(error)

    # -- time

    def _run_ticker(self) -> None:
        clock = self._options.clock
        last = clock()
        while not self._stopping.wait(self._tick_seconds):
            now = clock()
            if now - last < self._tick_seconds / 2:
                continue
            # However long it was, one tick: a process that was paused must not
            # campaign the moment it wakes, before it hears its leader.
            last = now
            with self._lock:
                self._tick()

    def _tick(self) -> None:
        self._ticks += 1
        self._watch_disk()
        if self._failure is not None:
            return
        self._core.tick()
        self._calls.retry(self._ticks)
        self._reads.ask(self._ticks)
        if self._ticks % self._options.election_ticks == 0:
            self._sync_peers()
            self._correct_address()
        self._drive(inline=False)

    def _watch_disk(self) -> None:
        """A node whose log cannot be written within two election timeouts neither leads nor campaigns."""
        if self._is_writing:
            self._writing_ticks += 1
            if self._writing_ticks == 2 * self._options.election_ticks:
                self._stall = DiskStalledError(
                    f"a write to the log of node {self.node_id} has not returned "
                    f"for {2 * self._options.election_timeout:g} s"
                )
                logger.error("%s; it does not lead until the disk answers", self._stall)
                self._judge_fitness()

    def _correct_address(self) -> None:
        """Announce that this member is reached at another address than the cluster recorded."""
        member = self._core.config.members.get(self.node_id)
        if member is None or member.addr == self.addr or self._core.config.id_of(self.addr) is not None:
            return
        change = ConfChange(ConfOp.SET_ADDRESS, self.node_id, self.addr)
        if self._core.role is Role.LEADER:
            with suppress(ProposalRefused):
                self._core.propose_change(change)
        else:
            # A leader that looks for this node at the old address is not known here.
            known = self._core.leader_id
            for peer_id in [known] if known else self._core.config.voters - {self.node_id}:
                self._core.forward(((EntryKind.CONFIG, change.encode()),), 0, peer_id)

    # -- applying

    def _run_apply(self) -> None:
        while True:
            with self._lock:
                while not self._to_apply and not self._stopping.is_set() and not self._failure:
                    self._apply_work.wait(1.0)
                if self._stopping.is_set() or self._failure or self._halted:
                    return
                work, self._to_apply = self._to_apply, deque()
                taken_bytes = self._backlog_bytes
            answers: list[Answer] = []
            error: BaseException | None = None
            try:
                for items in work:
                    self._apply_items(items, answers)
            except BaseException as caught:  # of the State, whatever it is: applying stops at this entry
                error = caught
            self._publish(answers, error)
            if error is not None:
                return
            with self._lock:
                self._backlog_bytes -= taken_bytes
            self._consider_snapshot()

    def _apply_items(self, items: Sequence[object], answers: list[Answer]) -> None:
        first = items[0]
        if isinstance(first, _Restore):
            self._restore_state(first.index)
            return
        entries = cast(Sequence[Entry], items)
        self._machine.apply(entries, answers)
        self._bytes_since_snapshot += sum([len(entry.frame) for entry in entries])

    def _restore_state(self, index: int) -> None:
        """Restart the State from the stored snapshot, which covers at least `index`."""
        if index and index <= self._machine.applied_index:
            return
        with self._store.open_snapshot() as snapshot:
            header = snapshot.header
            self._machine.restore(
                header.index, _decode_config(header.config), header.sessions, header.digest, snapshot.chunks()
            )
        self._snapshot_index = header.index
        self._bytes_since_snapshot = 0
        self._was_restored = True

    def _publish(self, answers: Sequence[Answer], error: BaseException | None) -> None:
        """Tell those who wait how far applying came."""
        machine = self._machine
        with self._lock:
            self._applied_index = applied = machine.applied_index
            before = (self._calls.session_id, self._applied_config)
            self._calls.note_session(*machine.session_of(self.node_id))
            self._applied_config = machine.config
            if before != (self._calls.session_id, self._applied_config):
                self._changed.notify_all()
            self._calls.answer(answers)
            if self._was_restored:
                self._was_restored = False
                self._calls.answer_recorded(machine.recorded)
            self._reads.applied(applied)
            if error is not None:
                self._halt(applied + 1, error)

    def _halt(self, index: int, error: BaseException) -> None:
        self._halted = ApplyHaltedError(
            f"applying stopped at entry {index}, where the State raised {error!r}; "
            "it resumes at that entry after a restart with repaired code"
        )
        self._halted.__cause__ = error
        logger.error("node %d: %s", self.node_id, self._halted, exc_info=error)
        self._fail_waiters(self._halted)
        self._judge_fitness()
        self._drive(inline=False)

    # -- snapshots of our own

    def _consider_snapshot(self) -> None:
        """Take a snapshot if enough was applied since the last."""
        options = self._options
        due = (
            self._machine.applied_index - self._snapshot_index >= options.snapshot_entries
            or self._bytes_since_snapshot >= options.snapshot_bytes
        )
        if due and not self._snapshot_running:
            self._take_snapshot()

    def _take_snapshot(self) -> None:
        """Capture the State here, on the apply thread; write it on a thread of its own."""
        machine = self._machine
        index = machine.applied_index
        with self._lock:
            term = self._core.log.term_at(index)
        if term is None:
            return  # a newer snapshot is on its way in
        # Whatever comes of it, the next attempt is as far away as after a success.
        self._snapshot_index = index
        self._bytes_since_snapshot = 0
        try:
            chunks = machine.capture()
        except Exception as error:
            self._snapshot_failed(error)
            return
        header = SnapshotHeader(
            index, term, self.cluster_id, machine.config.encode(), machine.encode_sessions(), machine.digest
        )
        self._snapshot_running = True

        def write() -> None:
            try:
                is_newest = self._store.save_snapshot(header, chunks)
            except Exception as error:
                self._snapshot_failed(error)
            else:
                with self._lock:
                    self._snapshot_error = None
                    if is_newest:
                        self._writes.append(_SnapshotMark(index, term))
                        self._drive(inline=False)
            finally:
                self._snapshot_running = False

        self._spawn("snapshot", write)

    def _snapshot_failed(self, error: Exception) -> None:
        """The log goes on without this snapshot, and grows; the next one may succeed and clears the error."""
        logger.error("node %d could not take a snapshot: %r", self.node_id, error, exc_info=error)
        with self._lock:
            self._snapshot_error = StorageError(
                f"taking a snapshot failed: {error!r}; the log grows until one succeeds"
            )
            self._snapshot_error.__cause__ = error

    # -- peers

    def _sync_peers(self) -> None:
        """Have a sender for each member, for those being told of their removal, and for no one else."""
        if self._stopping.is_set():
            return
        wanted: dict[int, Member] = dict(self._core.config.members)
        wanted.pop(self.node_id, None)
        if self._core.is_removed:
            wanted = {}
        for peer_id, member in wanted.items():
            peer = self._peers.get(peer_id)
            if peer is None:
                self._peers[peer_id] = self._network.open_peer(self, peer_id, member.addr)
            elif peer.addr != member.addr:
                peer.move(member.addr)
        leaving = set(self._core.progress)
        for peer_id in set(self._peers) - set(wanted) - leaving:
            if not self._peers[peer_id].is_responding:
                self._peers.pop(peer_id).stop(wait=False)

    def receive(self, from_id: int, messages: Sequence[Message]) -> list[Message]:
        """Step messages that came in a request of `from_id`; return the replies for it.

        Waits, at most an election timeout, until what the replies promise is durable.
        """
        with self._lock:
            if self._stopping.is_set():
                return []
            peer = self._peers.get(from_id)
            if peer is None:
                # A leader that this node has not heard of yet is answered all the same.
                if len(self._peers) >= MAX_STRANGERS + len(self._core.config.members):
                    return []
                peer = self._peers[from_id] = self._network.open_peer(self, from_id, None)
            with peer.responding():
                self._step_all(messages)
                self._drive(inline=True)
                self._await_durable(from_id)
                return peer.take_replies()

    def receive_replies(self, from_id: int, messages: Sequence[Message]) -> None:
        """Step messages that came in the response of `from_id` to a request of ours."""
        with self._lock:
            self._step_all(messages)
            self._drive(inline=False)

    def receive_stream(self, from_id: int, messages: Sequence[Message]) -> None:
        """Step messages that came through a stream of `from_id`; replies leave by its outbox once they may.

        This thread writes to the log if nobody does, and waits for nothing else.
        """
        with self._lock:
            self._step_all(messages)
            self._drive(inline=True)

    def _step_all(self, messages: Iterable[Message]) -> None:
        if self._failure is not None or self._stopping.is_set():
            return
        try:
            for message in messages:
                if message.kind is MessageKind.APPEND and self._backlog_bytes > MAX_BACKLOG_BYTES:
                    # The State is slower than the cluster: hear the leader, and
                    # leave its entries to be sent again.
                    message.entries = ()
                if message.kind is MessageKind.PROPOSE_REPLY:
                    self._hear_proposal_reply(message)
                else:
                    self._core.step(message)
        except ViolationError as violation:
            self._fail(ConsensusError(str(violation)))

    def _await_durable(self, peer_id: int) -> None:
        """Wait until what is held back for `peer_id` may leave, an election timeout at most."""
        token = 0
        for item in (*self._in_write, *self._writes):
            if isinstance(item, Ready) and any(m.to_id == peer_id for m in item.messages_after):
                token = item.token
        for held_token, messages in self._held:
            if any(m.to_id == peer_id for m in messages):
                token = max(token, held_token)
        deadline = time.monotonic() + self._options.election_timeout
        while self._durable_token < token and not self._failure and not self._stopping.is_set():
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return
            self._durable.wait(remaining)

    def report_unreachable(self, peer_id: int) -> None:
        """Messages to `peer_id` were lost."""
        with self._lock:
            self._core.report_unreachable(peer_id)

    def report_removed(self, peer_id: int) -> None:
        """`peer_id`, a member, says that this node was removed."""
        with self._lock:
            if not self._core.is_removed:
                logger.warning("node %d was removed from its cluster, says node %d", self.node_id, peer_id)
                self._core.mark_removed()
                self._drive(inline=False)

    # -- snapshots to and from peers

    def _start_transfer(self, message: Message) -> None:
        peer = self._peers.get(message.to_id)
        if peer is None or not peer.send_snapshot(message, self._store.open_snapshot):
            self._core.report_snapshot(message.to_id, False)

    def report_snapshot(self, peer_id: int, succeeded: bool, replies: Sequence[Message]) -> None:
        """The transfer of a snapshot to `peer_id` ended."""
        with self._lock:
            self._step_all(replies)
            self._core.report_snapshot(peer_id, succeeded)
            self._drive(inline=False)

    def receive_chunk(self, from_id: int, chunk: SnapshotChunk) -> tuple[int, list[Message]]:
        """Take a piece of a snapshot.  Returns the offset wanted next, and replies once it is complete.

        Raises OverloadedError while another snapshot is being received or
        installed, and MalformedError if the data is not what was announced.
        """
        message = chunk.message
        with self._lock:
            wanted = self._failure is None and self._core.wants_snapshot(message.term, message.index, message.log_term)
        if not wanted:  # the core's answer says why: a newer term, or we have all that
            self._drop_incoming()
            return chunk.size_bytes, self.receive(from_id, [message])
        if not self._incoming_lock.acquire(timeout=self._options.election_timeout):
            raise OverloadedError("another snapshot is being received")
        try:
            identity = (message.index, message.log_term, chunk.size_bytes, chunk.crc)
            if self._incoming is None or self._incoming.identity != identity:
                self._incoming = self._store.incoming(*identity)
            wanted_offset = self._incoming.append(chunk.offset, chunk.data)
            if wanted_offset < chunk.size_bytes:
                return wanted_offset, []
            incoming, self._incoming = self._incoming, None
            header = incoming.finish()
            if (header.index, header.term, header.config) != (message.index, message.log_term, message.payload):
                raise MalformedError("the snapshot is not what its message announced")
            return chunk.size_bytes, self.receive(from_id, [message])
        finally:
            self._incoming_lock.release()

    def _drop_incoming(self) -> None:
        if self._incoming_lock.acquire(blocking=False):
            self._incoming = None
            self._incoming_lock.release()


def _decode_config(data: bytes) -> Configuration:
    try:
        return Configuration.decode(data)
    except MalformedError as error:
        raise StorageError(f"the configuration in the snapshot does not decode: {error}") from error


def _as_raft_error(error: BaseException, what: str) -> RaftError:
    if isinstance(error, RaftError):
        return error
    wrapped = (
        StorageError(f"{what}: {error!r}") if isinstance(error, OSError) else NodeFailedError(f"{what}: {error!r}")
    )
    wrapped.__cause__ = error
    return wrapped
