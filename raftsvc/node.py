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
    raftsvc-send-N, raftsvc-transfer-N    see transport

Lock order: node lock > outbox lock > log-writer lock.  Nothing blocks under the
node lock: no disk, no socket, no code of the State.  Waiting callers are woken
by a lock of their own, each once.
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

from raftsvc.core.membership import ConfChange, Configuration, ConfOp, Member
from raftsvc.core.messages import NO_NODE, Entry, EntryKind, MalformedError, Message, MessageKind
from raftsvc.core.raft import (
    ProposalRefused,
    Raft,
    ReadState,
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
    OutcomeUnknown,
    OverloadedError,
    RaftError,
    StoppedError,
    StorageError,
)
from raftsvc.machine import Answer, Machine, Outcome, wrap_instruction, wrap_open_session
from raftsvc.state import State
from raftsvc.storage import IncomingSnapshot, SnapshotHeader, Store
from raftsvc.transport import Network, Peer, SnapshotChunk

logger = logging.getLogger("raftsvc.node")

MAX_FORWARD_BYTES = 256 * 1024
MAX_BATCH_BYTES = 4 * 1024 * 1024
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


class Waiter:
    """One blocked caller.  Finished exactly once, by whoever takes it off the node's lists."""

    __slots__ = ("_woken", "error")

    def __init__(self) -> None:
        self._woken = threading.Lock()  # a semaphore: half the cost of an Event
        self._woken.acquire()
        self.error: RaftError | None = None

    def finish(self, error: RaftError | None = None) -> None:
        self.error = error
        self._woken.release()

    def wait(self, timeout: float) -> bool:
        """Whether it was finished within `timeout` seconds."""
        return self._woken.acquire(timeout=min(max(timeout, 0.0), threading.TIMEOUT_MAX))


class Call(Waiter):
    """An instruction on its way, and its caller.

    unsettled: how many times it was handed to a log, here or at a leader, with no
               word that it was refused there; above 0 it may yet be applied.
    """

    __slots__ = ("data", "instruction", "number", "outcome", "retry_tick", "unsettled")

    def __init__(self, instruction: bytes) -> None:
        super().__init__()
        self.instruction = instruction
        self.data = b""
        self.number = 0
        self.unsettled = 0
        self.retry_tick = 0
        self.outcome: Outcome | None = None


class Read(Waiter):
    """A reader, and the index that must be applied before it goes on."""

    __slots__ = ("index",)

    def __init__(self) -> None:
        super().__init__()
        self.index = 0


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

        # Proposals
        self._calls: dict[int, Call] = {}
        self._unsent: list[Call] = []
        self._forwards: dict[int, list[Call] | _ChangeAttempt] = {}
        self._next_number = 1
        # Tags of requests differ from those before a restart, whose answers may still come.
        self._next_context = secrets.randbits(62)
        self._session_id = 0
        self._former_session_id = 0
        self._session_nonce = secrets.randbits(64)
        self._open_retry_tick = 0

        # Reads: those whose index is being asked for, those that came later, those that wait to be applied.
        self._asked_reads: list[Read] = []
        self._asked_context = 0
        self._asked_tick = 0
        self._new_reads: list[Read] = []
        self._applying_reads: list[Read] = []

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
        self._note_session()

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
                "waiting_reads": len(self._asked_reads) + len(self._new_reads) + len(self._applying_reads),
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

    # -- proposals

    def submit(self, call: Call, timeout: float) -> None:
        """Send `call` on its way; it is finished with an outcome or an error unless withdrawn first.

        Waits at most `timeout` seconds for this node's session to open.  Raises
        NotApplied.
        """
        deadline = time.monotonic() + timeout
        with self._lock:
            self._await_session(deadline)
            call.number = number = self._next_number
            self._next_number = number + 1
            low = next(iter(self._calls), number)
            call.data = wrap_instruction(self.node_id, self._session_id, number, low, call.instruction)
            self._calls[number] = call
            self._unsent.append(call)
            self._drive(inline=True)

    def withdraw(self, call: Call) -> bool:
        """Give up on `call`; False if it was finished in the meantime.

        Once a later instruction of this node is applied, the numbers below its
        `low` can no longer take effect.
        """
        with self._lock:
            if self._calls.pop(call.number, None) is None:
                return False
            with suppress(ValueError):
                self._unsent.remove(call)
            return True

    def _await_session(self, deadline: float) -> None:
        while True:
            self.check_able()
            if self._stopping.is_set():
                raise StoppedError("the Service was stopped")
            if self._session_id:
                return
            if self._ticks >= self._open_retry_tick:
                data = wrap_open_session(self.node_id, self._former_session_id, self._session_nonce)
                if self._propose_or_forward(data):
                    self._open_retry_tick = self._ticks + self._retry_ticks
                self._drive(inline=True)
                if self._session_id:
                    return
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise NotApplied("no leader took this node's first instruction in time; nothing was proposed")
            self._changed.wait(min(remaining, self._tick_seconds))

    def _propose_or_forward(self, data: bytes) -> bool:
        proposals = ((EntryKind.NORMAL, data),)
        if self._core.role is not Role.LEADER:
            return self._core.forward(proposals, self._take_context())
        try:
            self._core.propose(proposals)
        except ProposalRefused:
            return False
        return True

    def _take_context(self) -> int:
        self._next_context += 1
        return self._next_context

    def _note_session(self) -> None:
        """Learn which session this node has, as of what is applied."""
        session_id, nonce = self._machine.session_of(self.node_id)
        if nonce == self._session_nonce:
            self._session_id = session_id
        else:
            self._session_id, self._former_session_id = 0, session_id

    def _send_unsent(self) -> None:
        """Propose, or forward to the leader, what callers brought."""
        core = self._core
        if not self._unsent or core.leader_id == NO_NODE:
            return
        if core.role is Role.LEADER:
            # While the disk is busy calls gather into one batch: one record, one
            # message per peer and one fsync for all of them.
            if not self._is_writing:
                self._propose_unsent()
            return
        while self._unsent:
            batch = self._take_batch(MAX_FORWARD_BYTES)
            context = self._take_context()
            if not core.forward([(EntryKind.NORMAL, call.data) for call in batch], context):
                self._unsent = batch + self._unsent
                return
            for call in batch:
                call.unsettled += 1
                call.retry_tick = self._ticks + self._retry_ticks
            self._forwards[context] = batch
        while len(self._forwards) > 1024:
            del self._forwards[next(iter(self._forwards))]

    def _propose_unsent(self) -> None:
        while self._unsent:
            batch = self._take_batch(MAX_BATCH_BYTES)
            try:
                self._core.propose([(EntryKind.NORMAL, call.data) for call in batch])
            except ProposalRefused as refused:
                self._turn_back(batch, refused.refusal)
                return
            for call in batch:
                call.unsettled += 1
                # It is in our log: it commits, or leadership is lost, which sends it again.
                call.retry_tick = self._ticks + 4 * self._options.election_ticks

    def _take_batch(self, max_bytes: int) -> list[Call]:
        room = max_bytes
        count = 0
        for call in self._unsent:
            room -= len(call.data)
            if room < 0 and count:
                break
            count += 1
        batch, self._unsent = self._unsent[:count], self._unsent[count:]
        return batch

    def _turn_back(self, batch: Iterable[Call], refusal: Refusal) -> None:
        """Calls were refused where they were sent: fail them over the quota, else try again soon."""
        for call in batch:
            if call.number not in self._calls:
                continue
            if refusal is Refusal.QUOTA and not call.unsettled:
                del self._calls[call.number]
                call.finish(
                    OverloadedError("too much is waiting to be committed; is a majority of the cluster reachable?")
                )
            else:
                call.retry_tick = self._ticks + 1

    def _hear_proposal_reply(self, m: Message) -> None:
        sent = self._forwards.pop(m.context, None)
        if sent is None or not m.reject:
            return
        refusal = Refusal(m.hint) if m.hint in _REFUSALS else Refusal.NO_LEADER
        if isinstance(sent, _ChangeAttempt):
            sent.refusal = refusal
            self._changed.notify_all()
            return
        for call in sent:
            call.unsettled -= 1
        self._turn_back(sent, refusal)

    def _retry_calls(self) -> None:
        waiting = set(map(id, self._unsent))
        for call in self._calls.values():
            if call.retry_tick <= self._ticks and id(call) not in waiting:
                self._unsent.append(call)

    # -- membership

    def change_membership(
        self, change: ConfChange, is_done: Callable[[Configuration], bool], timeout: float
    ) -> Refusal | None:
        """Propose `change`, through the leader, until the applied configuration satisfies `is_done`.

        Returns None then, else why it was refused last; NO_LEADER if that is unknown.
        """
        deadline = time.monotonic() + timeout
        last = Refusal.NO_LEADER
        with self._lock:
            while not is_done(self._applied_config):
                if self._failure or self._halted or self._stopping.is_set():
                    return last
                attempt = _ChangeAttempt()
                if self._core.role is Role.LEADER:
                    try:
                        self._core.propose_change(change)
                    except ProposalRefused as refused:
                        attempt.refusal = refused.refusal
                else:
                    context = self._take_context()
                    self._forwards[context] = attempt
                    self._core.forward(((EntryKind.CONFIG, change.encode()),), context)
                self._drive(inline=True)
                retry_tick = self._ticks + self._retry_ticks
                while not is_done(self._applied_config) and self._ticks < retry_tick:
                    remaining = deadline - time.monotonic()
                    if attempt.refusal is not None:
                        last = attempt.refusal
                        retry_tick = min(retry_tick, self._ticks + 1)
                    if (
                        remaining <= 0
                        or self._stopping.is_set()
                        or (last is Refusal.INVALID_CHANGE and attempt.refusal)
                    ):
                        return None if is_done(self._applied_config) else last
                    self._changed.wait(min(remaining, self._tick_seconds))
            return None

    # -- reads

    def submit_read(self, read: Read) -> None:
        """Have `read` finished once what is applied here is current as of now."""
        with self._lock:
            self.check_able()
            if self._stopping.is_set():
                raise StoppedError("the Service was stopped")
            self._new_reads.append(read)
            self._ask_reads()
            self._drive(inline=False)

    def withdraw_read(self, read: Read) -> bool:
        """Give up on `read`; False if it was finished in the meantime."""
        with self._lock:
            for reads in (self._new_reads, self._asked_reads, self._applying_reads):
                if read in reads:
                    reads.remove(read)
                    return True
            return False

    def _ask_reads(self) -> None:
        """Ask one index for all readers that came since the last was asked for (R11)."""
        if self._asked_context or not self._new_reads:
            return
        context = self._take_context()
        if self._core.read_index(context):
            self._asked_context, self._asked_tick = context, self._ticks
            self._asked_reads, self._new_reads = self._new_reads, []

    def _ask_reads_again(self) -> None:
        """The answer may be lost, or its leader deposed: a new request for all who wait."""
        self._new_reads = self._asked_reads + self._new_reads
        self._asked_reads = []
        self._asked_context = 0
        self._ask_reads()

    def _hear_read_state(self, read_state: ReadState) -> None:
        if read_state.context != self._asked_context:
            return
        reads, self._asked_reads, self._asked_context = self._asked_reads, [], 0
        # Applied is looked at after the index is known, never before.
        if self._applied_index >= read_state.index:
            for read in reads:
                read.finish()
        else:
            for read in reads:
                read.index = read_state.index
            self._applying_reads += reads
        self._ask_reads()

    # -- driving the core

    def _drive(self, inline: bool) -> None:
        """Do what the core has ready.  Called, and returns, with the lock held.

        inline: this thread writes one batch itself if nobody is writing; what
                comes up meanwhile is left to the log thread.
        """
        while self._failure is None and not self._stopping.is_set():
            self._notice_changes()
            self._send_unsent()
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
            self._hear_read_state(read_state)
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
            # What was in flight may be lost with the old leader; sessions make repeats harmless.
            self._forwards.clear()
            self._unsent = list(self._calls.values())
            self._open_retry_tick = 0
            self._ask_reads_again()
            self._changed.notify_all()
        if core.config is not self._seen_config:
            self._seen_config = core.config
            self._sync_peers()
            self._changed.notify_all()
        if core.is_removed and (self._calls or self._new_reads or self._asked_reads or self._applying_reads):
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
        calls, self._calls, self._unsent = list(self._calls.values()), {}, []
        for call in calls:
            call.finish(OutcomeUnknown(f"{error}; the instruction may have been applied") if call.unsettled else error)
        reads = self._new_reads + self._asked_reads + self._applying_reads
        self._new_reads, self._asked_reads, self._applying_reads = [], [], []
        self._asked_context = 0
        for read in reads:
            read.finish(error)

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
        self._retry_calls()
        if self._asked_context and self._ticks - self._asked_tick >= self._retry_ticks:
            self._ask_reads_again()
        else:
            self._ask_reads()
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
            before = (self._session_id, self._applied_config)
            self._note_session()
            self._applied_config = machine.config
            if before != (self._session_id, self._applied_config):
                self._changed.notify_all()
            for answer in answers:
                if answer.node_id == self.node_id and answer.session_id == self._session_id:
                    call = self._calls.pop(answer.number, None)
                    if call is not None:
                        call.outcome = answer.outcome
                        call.finish()
            if self._was_restored:
                self._was_restored = False
                self._answer_from_session()
            if self._applying_reads:
                done = [read for read in self._applying_reads if read.index <= applied]
                if done:
                    self._applying_reads = [read for read in self._applying_reads if read.index > applied]
                    for read in done:
                        read.finish()
            if error is not None:
                self._halt(applied + 1, error)

    def _answer_from_session(self) -> None:
        """A snapshot brought the effect of entries that were not applied here one by one."""
        if self._session_id:
            for number in list(self._calls):
                outcome = self._machine.recorded(self.node_id, number)
                if outcome is not None:
                    call = self._calls.pop(number)
                    call.outcome = outcome
                    call.finish()

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
        try:
            chunks = machine.capture()
        except Exception as error:
            self._snapshot_failed(error)
            return
        header = SnapshotHeader(
            index, term, self.cluster_id, machine.config.encode(), machine.encode_sessions(), machine.digest
        )
        self._snapshot_running = True
        self._snapshot_index = index
        self._bytes_since_snapshot = 0

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
            self._snapshot_error = _as_raft_error(error, "taking a snapshot failed")

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


_REFUSALS = frozenset(int(refusal) for refusal in Refusal)


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
