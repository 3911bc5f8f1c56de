"""One node without its threads: what a member of a cluster does, as calls that never wait.

An engine brings core, machine, storage, callers and readers together.  Whoever
runs it decides when time passes, when a write happens and when it is done, when
entries are applied, and what becomes of messages: `raftsvc.member.node` does so with
threads, locks and sockets, `raftsvc.testing` with a seed.  What both leave to the
engine is therefore what both test: in which order things become durable, are
said, are applied, and are told to those who wait.

A runner brings something (`step`, `tick`, `submit`, ...), then calls `advance`, then
has its three kinds of work done:

    begin_write, write, end_write       the log; `write` alone touches the disk
    begin_apply, apply, end_apply       the State; `apply` alone runs its code
    snapshot_due, capture, save, end_snapshot    `save` touches the disk

The methods in the middle of each line are slow, and called without the runner's lock,
each by one thread at a time; `capture` by the one that applies.  All others are quick
and called under it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import NamedTuple, Protocol

from raftsvc.core.membership import ConfChange, Configuration, Member
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
    RaftError,
    StoppedError,
    StorageError,
)
from raftsvc.member.calls import Call, Calls, Contexts, Finished, Read, Reads, Waiter, refusal_of
from raftsvc.member.digests import DigestCheck
from raftsvc.member.machine import Answer, Machine
from raftsvc.state import State
from raftsvc.storage import IncomingSnapshot, SnapshotHeader, Store
from raftsvc.transport import SnapshotChunk

MAX_BACKLOG_BYTES = 64 * 1024 * 1024
_FEW_ENTRIES = 16
_FEW_BYTES = 64 * 1024
_MUCH_BYTES = 1024 * 1024
_MUCH_ENTRIES = 1024


class EngineOptions(NamedTuple):
    """What shapes a node, in ticks, entries and bytes; see `raftsvc.start`."""

    election_ticks: int = 10
    snapshot_entries: int = 50_000
    snapshot_bytes: int = 64 * 1024 * 1024
    trailing_entries: int = 10_000
    trailing_bytes: int = 16 * 1024 * 1024
    max_uncommitted_bytes: int = 64 * 1024 * 1024
    tick_ns: int = 0
    """The least time between two ticks; 0 if that cannot be said, and nobody may rely on it."""
    lease_reads: bool = False


class Runner(Protocol):
    """What an engine asks of whoever runs it.  None of these waits."""

    def post(self, peer_id: int, messages: Sequence[Message]) -> bool:
        """Send `messages`, in order, if possible; False if some were dropped already."""

    def send_snapshot(self, message: Message) -> bool:
        """Begin to send the stored snapshot that `message` announces; False if that cannot be."""

    def release_log(self, index: int) -> None:
        """Have `Engine.release(index)` called, outside of any lock."""

    def prepare_log(self) -> None:
        """Have `Engine.prepare` called until it returns False, by one thread, outside of any lock."""

    def members_changed(self) -> None:
        """`Engine.peers` changed."""

    def state_changed(self) -> None:
        """Leader, configuration, session or health changed: wake those who wait for that."""

    def log_work(self) -> None:
        """There is something to write."""

    def apply_work(self) -> None:
        """There is something to apply."""

    def now(self) -> int:
        """Nanoseconds by a clock that never goes back or stands still; asked only with `lease_reads`."""

    def say(self, level: int, message: str, error: BaseException | None = None) -> None:
        """Log `message` soon: what handles it is not ours, and may wait or ask this node something."""


class ChangeAttempt:
    """A membership change on its way to a leader's log, and why it was refused if it was."""

    __slots__ = ("context", "refusal")

    def __init__(self, context: int) -> None:
        self.context = context
        self.refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class SnapshotMark:
    """To be written to the log: the State's snapshot at `index` is durable."""

    index: int
    term: int


@dataclass(frozen=True, slots=True)
class Restore:
    """To be done instead of applying: the State restarts from the stored snapshot, at least at `index`."""

    index: int


class Capture(NamedTuple):
    """A snapshot of the State to be saved."""

    header: SnapshotHeader
    chunks: Iterable[bytes]


Batch = Sequence[Ready | SnapshotMark]
Work = Sequence[Sequence[Entry] | Restore]


class Engine:
    """A member of a cluster."""

    def __init__(
        self, addr: str, store: Store, state: State, options: EngineOptions, random: Random, runner: Runner
    ) -> None:
        """Recover from `store`, which is initialized; `runner` is not called before `start`.

        Raises StorageError if what is stored cannot be trusted, and whatever the
        State raises if it cannot be restored.
        """
        loaded = store.load()
        self.addr = addr
        self.node_id = loaded.node_id
        self.cluster_id = loaded.cluster_id
        self.options = options
        self._store = store
        self._runner = runner
        self.machine = Machine(state)
        self._was_restored = False
        header = loaded.snapshot
        meta = SnapshotMeta()
        self._snapshot_index = 0
        self._bytes_since_snapshot = 0
        if header is not None:
            meta = SnapshotMeta(header.index, header.term, _decode_config(header.config))
            self._restore_state(0)
        elif state.applied_index() != 0:
            raise StorageError(
                "the State reports applied entries, but there is no snapshot to start it from: "
                "give the Service an empty State; the log and the snapshot bring it up to date"
            )
        self.core = Raft(
            Settings(
                self.node_id,
                Random(random.getrandbits(64)),
                election_ticks=options.election_ticks,
                max_uncommitted_bytes=options.max_uncommitted_bytes,
                trailing_entries=options.trailing_entries,
                trailing_bytes=options.trailing_bytes,
                # The tick that is under way when a leader is heard may be almost over.
                promise_ns=(options.election_ticks - 1) * options.tick_ns,
                uses_leases=options.lease_reads,
            ),
            loaded.hard_state,
            meta,
            loaded.entries,
        )
        self.is_stopped = False
        self.failure: RaftError | None = None
        self.halted: RaftError | None = None
        self._stall: DiskStalledError | None = None
        self._snapshot_error: RaftError | None = None
        self.ticks = 0
        self._seen_view = (0, NO_NODE, Role.FOLLOWER)
        self._seen_config: Configuration | None = None

        # Repeats wait for several heartbeats: the first try is almost never lost.
        self.retry_ticks = max(3, options.election_ticks // 2)
        self._contexts = Contexts(random)
        self._finished = Finished()
        self.calls = Calls(self.core, self._contexts, random.getrandbits(64), self.retry_ticks, self._finished)
        self.reads = Reads(self.core, self._contexts, self.retry_ticks, self._finished, self._note_time)
        self._changes: dict[int, ChangeAttempt] = {}
        self.digests = DigestCheck(self.core, self.machine)
        self._said_disagreement: RaftError | None = None

        # The log
        self._writes: list[Ready | SnapshotMark] = []
        self._in_write: Batch = ()
        self.is_writing = False
        self._writing_ticks = 0
        self.durable_token = 0
        self._held: deque[tuple[int, Sequence[Message]]] = deque()

        # Applying
        self._to_apply: deque[Sequence[Entry] | Restore] = deque()
        self._backlog_bytes = 0
        self._taken_bytes = 0
        self.applied_index = self.machine.applied_index
        self.applied_config = self.machine.config
        self._is_saving = False
        self._is_snapshot_damaged = False  # and no other was begun since
        self._is_preparing = False  # the runner was asked to, and has not come to the end
        self._incoming: IncomingSnapshot | None = None
        self.calls.note_session(*self.machine.session_of(self.node_id))
        self.machine.listener = (self.node_id, self.calls.session_id)

    def start(self) -> None:
        """Begin to take part; a sole voter elects itself at once."""
        if self.core.config.voters == {self.node_id}:
            self.core.campaign()
        self.advance()

    def stop(self, error: RaftError) -> None:
        """Do nothing more, and fail every waiter with what is known."""
        self.is_stopped = True
        self._fail_waiters(error)

    # -- what is known

    @property
    def is_over(self) -> bool:
        """Whether this engine takes no further part, for good."""
        return self.is_stopped or self.failure is not None

    def check_able(self) -> None:
        """Raise what keeps this node from serving an application, if anything does."""
        if self.failure is not None:
            raise NodeFailedError(f"this node stopped taking part: {self.failure}") from self.failure
        if self.core.is_removed:
            raise self._evicted()
        if self.halted is not None:
            raise self.halted

    def err(self) -> RaftError | None:
        """What keeps this node from operating normally, or None."""
        if self.failure is not None:
            return self.failure
        if self.core.is_removed:
            return self._evicted()
        return self.halted or self._stall or self._snapshot_error or self.digests.disagreement

    def _evicted(self) -> EvictedError:
        return EvictedError(f"node {self.node_id} ({self.addr}) was removed from its cluster")

    @property
    def peers(self) -> Mapping[int, Member]:
        """The other members, to each of whom there may be something to say."""
        if self.core.is_removed:
            return {}
        return {i: member for i, member in self.core.config.members.items() if i != self.node_id}

    def status(self) -> dict[str, object]:
        """A picture of the node for people and monitors."""
        core = self.core
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
            "applied_index": self.applied_index,
            "last_index": core.log.last_index,
            "snapshot_index": core.log.snapshot.index,
            "log_bytes": core.log.size_bytes,
            "digest_checked_index": self.digests.agreed_index,
            "waiting_calls": len(self.calls),
            "waiting_reads": len(self.reads),
            "members": {str(i): {"addr": m.addr, "is_voter": m.is_voter} for i, m in sorted(config.members.items())},
            "followers": {
                str(i): {"state": p.state.value, "match_index": p.match_index} for i, p in sorted(core.progress.items())
            },
            "fsync_count": self._store.wal.fsync_count,
        }

    # -- what comes in

    def submit(self, call: Call) -> bool:
        """Have `call` applied; it is finished with an outcome or an error unless withdrawn first.

        Callable without the runner's lock.  Returns whether `advance` has to be called for it;
        else somebody is about to, who will see it: the order is, here, first into the inbox
        and then the look, and there, first the end of the write, or awake, and then the inbox.
        """
        self.check_able()
        self.calls.inbox.append(call)
        is_seen_to = self._finished.waking or self._proposes_after_write
        return not is_seen_to or self.is_over or self.halted is not None

    def submit_read(self, read: Read) -> bool:
        """Have `read` finished once what is applied here is current as of now.  As `submit`."""
        self.check_able()
        self.reads.inbox.append(read)
        is_seen_to = self._finished.waking or self.reads.is_asking
        return not is_seen_to or self.is_over or self.halted is not None

    def is_current(self) -> bool:
        """Whether what is applied here is current as of now, as a lease shows.

        Callable without the runner's lock: whoever leads at any time up to the end of the
        lease is this node, and all that anybody acknowledged until then is committed here
        when, after that, the commit index is looked at.
        """
        return (
            self.options.lease_reads
            and self.core.holds_lease(self._runner.now())
            and self.core.log.commit_index <= self.applied_index
        )

    def take_finished(self) -> list[Waiter]:
        """Callers that are to be woken, each once, when the runner's lock is free."""
        return self._finished.take()

    def note_awake(self) -> bool:
        """A caller that was finished runs again.  Callable without the runner's lock.

        Returns whether `advance` has to be called, for what was left to gather until now.
        """
        if not self._finished.note_awake():
            return False
        return self.reads.is_due or (self.calls.has_unsent and not self._proposes_after_write)

    @property
    def _proposes_after_write(self) -> bool:
        """Whether instructions gather until the present write is done, for whoever writes to see to them."""
        return self.is_writing and self.core.role is Role.LEADER

    def attempt_change(self, change: ConfChange) -> ChangeAttempt:
        """Try once to have `change` appended by the leader; to be ended by `end_attempt`."""
        attempt = ChangeAttempt(self._contexts.take())
        self._changes[attempt.context] = attempt
        if self.core.role is Role.LEADER:
            try:
                self.core.propose_change(change)
            except ProposalRefused as refused:
                attempt.refusal = refused.refusal
        else:
            self.core.forward(((EntryKind.CONFIG, change.encode()),), attempt.context)
        return attempt

    def end_attempt(self, attempt: ChangeAttempt) -> None:
        """Hear no more of it."""
        self._changes.pop(attempt.context, None)

    def step(self, messages: Iterable[Message]) -> None:
        """Take messages of peers."""
        self._note_time()
        try:
            for message in messages:
                if self.is_over:
                    return
                if message.kind is MessageKind.APPEND and self._backlog_bytes > MAX_BACKLOG_BYTES:
                    # The State is slower than the cluster: hear the leader, and leave its entries
                    # to be sent again.  As one that proves nothing, so that the leader's window
                    # fills and it waits; the answer to another would have it send at once.
                    message.entries, message.index, message.log_term = (), 0, 0
                if message.kind is MessageKind.PROPOSE_REPLY:
                    self._hear_proposal_reply(message)
                elif message.kind in (MessageKind.DIGEST, MessageKind.DIGEST_REPLY):
                    self.digests.hear(message)
                else:
                    self.core.step(message)
        except ViolationError as violation:
            self.fail(ConsensusError(str(violation)))

    def _hear_proposal_reply(self, m: Message) -> None:
        attempt = self._changes.pop(m.context, None)
        if attempt is None:
            self.calls.hear_reply(m, self.ticks)
        elif m.reject:
            attempt.refusal = refusal_of(m)
            self._runner.state_changed()

    def _note_time(self) -> None:
        if self.options.lease_reads:
            self.core.now = self._runner.now()

    def report_unreachable(self, peer_id: int) -> None:
        """Messages to `peer_id` were lost."""
        self.core.report_unreachable(peer_id)

    def report_removed(self, peer_id: int) -> None:
        """`peer_id`, a member, says that this node was removed."""
        if not self.core.is_removed:
            self._runner.say(logging.WARNING, f"node {self.node_id} was removed from its cluster, says node {peer_id}")
            self.core.mark_removed()

    def report_snapshot(
        self, peer_id: int, succeeded: bool, replies: Sequence[Message], damage: Exception | None = None
    ) -> None:
        """The transfer of a snapshot to `peer_id` ended; `damage` is why the stored one cannot be read, if so."""
        self.step(replies)
        self.core.report_snapshot(peer_id, succeeded)
        if damage is not None:
            self._replace_snapshot(damage)

    def step_aside(self) -> bool:
        """Let another lead instead, if this node leads and there is a voter that can; whether there is."""
        return self.core.step_aside()

    def hand_over(self, node_id: int) -> None:
        """Let `node_id` lead instead, if this node leads and can let it."""
        with suppress(ProposalRefused):
            self.core.transfer_leadership(node_id)

    def tick(self) -> None:
        """One tick of time passed."""
        if self.is_over:
            return
        self.ticks += 1
        self._finished.tick()
        self._note_time()
        self._watch_disk()
        self.core.tick()
        self.calls.retry(self.ticks)
        self.reads.ask(self.ticks)
        for peer_id, message in self.digests.announce():
            self._runner.post(peer_id, (message,))
        self._notice_disagreement()

    def _notice_disagreement(self) -> None:
        """Say it once when it begins, and once when it is over; a node that was convicted has said more."""
        disagreement = self.digests.disagreement
        if disagreement is not self._said_disagreement and self.halted is None:
            if disagreement is not None:
                self._runner.say(logging.ERROR, f"node {self.node_id}: {disagreement}")
            else:
                self._runner.say(logging.WARNING, f"node {self.node_id} does not differ from another any more")
            self._said_disagreement = disagreement
            self._runner.state_changed()

    def _watch_disk(self) -> None:
        """A node whose log cannot be written within two election timeouts neither leads nor campaigns."""
        if self.is_writing:
            self._writing_ticks += 1
            if self._writing_ticks == 2 * self.options.election_ticks:
                self._stall = DiskStalledError(
                    f"a write to the log of node {self.node_id} has not returned for two election timeouts"
                )
                self._runner.say(logging.ERROR, f"{self._stall}; it does not lead until the disk answers")
                self._judge_fitness()

    # -- driving the core

    def advance(self) -> None:
        """Do what the core has ready, save for the disk and the State."""
        if self.is_over or self.halted is not None:
            self._fail_late_comers()
        if self.is_over:
            return
        self.calls.take_in()
        self._notice_changes()
        self._send_what_came()
        while (ready := self.core.ready()) is not None:
            self._dispatch(ready)
            self._send_what_came()
        for peer_id, message in self.digests.take_replies():
            self._runner.post(peer_id, (message,))
        if self.digests.mismatch is not None and self.halted is None:
            self.halt(self.digests.mismatch)

    def _send_what_came(self) -> None:
        """Have what callers brought sent, unless more is about to come."""
        if self._finished.waking:
            return
        if self.reads.is_due:
            self.reads.ask(self.ticks)
        # While the disk is busy calls gather into one batch: one record, one
        # message per peer and one fsync for all of them.
        self.calls.send(self.ticks, may_propose=not self.is_writing)

    def _dispatch(self, ready: Ready) -> None:
        self._post(ready.messages)
        for read_state in ready.read_states:
            self.reads.hear(read_state, self.applied_index)
        if ready.must_persist:
            self._writes.append(ready)
            self._runner.log_work()
        elif ready.messages_after:
            if ready.token <= self.durable_token:
                self._post(ready.messages_after)
            else:
                self._held.append((ready.token, ready.messages_after))
        if ready.committed:
            self._to_apply.append(ready.committed)
            self._backlog_bytes += sum(map(len, ready.committed))
            self._runner.apply_work()

    def _post(self, messages: Iterable[Message]) -> None:
        by_peer: dict[int, list[Message]] = {}
        for message in messages:
            if message.kind is MessageKind.SNAPSHOT:
                # While somebody differs from this leader its snapshot may be the damage of one made that of two.
                if self.digests.is_disputed or not self._runner.send_snapshot(message):
                    self.core.report_snapshot(message.to_id, False)
            else:
                by_peer.setdefault(message.to_id, []).append(message)
        for peer_id, batch in by_peer.items():
            if not self._runner.post(peer_id, batch):
                self.core.report_unreachable(peer_id)

    def _notice_changes(self) -> None:
        """React to a new leader, term or configuration."""
        core = self.core
        view = (core.term, core.leader_id, core.role)
        if view != self._seen_view:
            if view[2] is not self._seen_view[2] or view[1] != self._seen_view[1]:
                leader = core.leader_id or "unknown"
                self._runner.say(
                    logging.INFO, f"node {self.node_id} is {core.role.value} in term {core.term}, leader {leader}"
                )
            self._seen_view = view
            self.calls.send_all_again()
            self.reads.ask_again(self.ticks)
            self._changes.clear()
            self._runner.state_changed()
        if core.config is not self._seen_config:
            self._seen_config = core.config
            self._runner.members_changed()
            self._runner.state_changed()
        if core.is_removed and (self.calls or self.reads):
            self._fail_waiters(self._evicted())
            self._runner.state_changed()

    # -- the log

    @property
    def has_writes(self) -> bool:
        """Whether something waits to be written, and nothing is being written."""
        return bool(self._writes) and not self.is_writing and not self.is_over

    def begin_write(self) -> Batch:
        """Take everything that waits to be written."""
        self._in_write, self._writes = self._writes, []
        self.is_writing = True
        self._writing_ticks = 0
        return self._in_write

    def write(self, batch: Batch) -> None:
        """Make `batch` durable with one fsync; what it raises is to be given to `end_write`."""
        wal = self._store.wal
        for item in batch:
            if isinstance(item, SnapshotMark):
                wal.mark_snapshot(item.index, item.term)
                continue
            if item.snapshot is not None:
                # The file first, then the mark, then what follows it.
                self._store.install_incoming()
                wal.mark_snapshot(item.snapshot.index, item.snapshot.term)
            if item.hard_state is not None or item.entries:
                wal.append(item.hard_state, item.entries)
        wal.sync()

    def end_write(self, batch: Batch, failure: BaseException | None) -> None:
        """`batch` is durable, or what became of it is unknown."""
        self._in_write = ()
        self.is_writing = False
        if failure is not None:
            self.fail(as_raft_error(failure, "writing the log failed"))
        if self.is_over:
            return
        if self._stall is not None:
            self._stall = None
            self._judge_fitness()
        for item in batch:
            if isinstance(item, SnapshotMark):
                self._runner.release_log(self.core.compact(item.index))
                continue
            self.durable_token = item.token
            self.core.persisted(item.token)
            if item.snapshot is not None:
                self._to_apply.append(Restore(item.snapshot.index))
                self._runner.apply_work()
            self._post(item.messages_after)
        while self._held and self._held[0][0] <= self.durable_token:
            self._post(self._held.popleft()[1])
        if self._store.wal.is_prepare_due and not self._is_preparing:
            self._is_preparing = True
            self._runner.prepare_log()

    def release(self, index: int) -> None:
        """Delete what the log need not keep up to `index`.  Slow.  Raises StorageError; the log goes on."""
        self._store.wal.release_before(index)

    def prepare(self) -> bool:
        """Do a piece of the work that the log's next rotation would wait for; whether to go on.  Slow."""
        self._is_preparing = self._store.wal.prepare()
        return self._is_preparing

    def token_awaited_by(self, peer_id: int) -> int:
        """The token that must be durable before all that is held back for `peer_id` has left."""
        token = 0
        for item in (*self._in_write, *self._writes):
            if isinstance(item, Ready) and any(m.to_id == peer_id for m in item.messages_after):
                token = item.token
        for held_token, messages in self._held:
            if any(m.to_id == peer_id for m in messages):
                token = max(token, held_token)
        return token

    # -- applying

    @property
    def has_work(self) -> bool:
        """Whether something waits to be applied."""
        return bool(self._to_apply) and not self.is_over and self.halted is None

    @property
    def has_little_work(self) -> bool:
        """Whether only a few entries wait to be applied, and nobody here waits for them."""
        if self.calls or self.reads or self._backlog_bytes > _FEW_BYTES:
            return False
        return self._count_work() <= _FEW_ENTRIES

    @property
    def has_much_work(self) -> bool:
        """Whether what waits to be applied would hold up who has other things to do: a backlog, or a restart."""
        return self._backlog_bytes > _MUCH_BYTES or self._count_work() > _MUCH_ENTRIES

    def _count_work(self) -> int:
        """How many entries wait to be applied; a restart of the State counts as more than many."""
        return sum([_MUCH_ENTRIES + 1 if isinstance(items, Restore) else len(items) for items in self._to_apply])

    def begin_apply(self) -> Work:
        """Take everything that waits to be applied."""
        work, self._to_apply = self._to_apply, deque()
        self._taken_bytes = self._backlog_bytes
        return work

    def apply(self, work: Work) -> tuple[list[Answer], BaseException | None]:
        """Apply `work`: the answers so far, and what the State raised, at which applying stops."""
        answers: list[Answer] = []
        try:
            for items in work:
                if isinstance(items, Restore):
                    self._restore_state(items.index)
                else:
                    self.machine.apply(items, answers)
                    self._bytes_since_snapshot += sum(map(len, items))
        except BaseException as error:  # of the State, whatever it is: applying stops at this entry
            return answers, error
        return answers, None

    def _restore_state(self, index: int) -> None:
        """Restart the State from the stored snapshot, which covers at least `index`."""
        if index and index <= self.machine.applied_index:
            return
        with self._store.open_snapshot() as snapshot:
            header = snapshot.header
            self.machine.restore(
                header.index,
                header.term,
                _decode_config(header.config),
                header.sessions,
                header.digest,
                snapshot.chunks(),
            )
        self._snapshot_index = header.index
        self._bytes_since_snapshot = 0
        self._was_restored = True

    def end_apply(self, answers: Sequence[Answer], error: BaseException | None) -> None:
        """Tell those who wait how far applying came."""
        machine = self.machine
        self.applied_index = applied = machine.applied_index
        before = (self.calls.session_id, self.applied_config)
        self.calls.note_session(*machine.session_of(self.node_id))
        self.applied_config = machine.config
        if before != (self.calls.session_id, self.applied_config):
            self._runner.state_changed()
        machine.listener = (self.node_id, self.calls.session_id)
        self.digests.applied()
        self.calls.answer(answers)
        if self._was_restored:
            self._was_restored = False
            self.calls.answer_recorded(machine.recorded)
        self.reads.applied(applied)
        self._backlog_bytes -= self._taken_bytes
        if error is not None:
            halted = ApplyHaltedError(
                f"applying stopped at entry {applied + 1}, where the State raised {error!r}; "
                "it resumes at that entry after a restart with repaired code"
            )
            halted.__cause__ = error
            self.halt(halted)

    def halt(self, error: RaftError) -> None:
        """Apply no more and serve no more; keep voting for the others, and storing while memory allows."""
        self.halted = error
        self._runner.say(logging.ERROR, f"node {self.node_id}: {error}", error.__cause__)
        self._fail_waiters(error)
        self._judge_fitness()

    # -- snapshots of our own

    @property
    def snapshot_due(self) -> bool:
        """Whether enough was applied since the last one, or that was damaged.

        A State that halted is not trusted to overwrite the last snapshot: from that a restart may be whole again.
        """
        return (
            (
                self._is_snapshot_damaged
                or self.machine.applied_index - self._snapshot_index >= self.options.snapshot_entries
                or self._bytes_since_snapshot >= self.options.snapshot_bytes
            )
            and not self._is_saving
            and self.halted is None
        )

    def _replace_snapshot(self, damage: Exception) -> None:
        """The stored snapshot is of no use to those who need it, nor to a restart; the State here is whole."""
        self._snapshot_error = StorageError(f"the stored snapshot cannot be read: {damage}; another is being taken")
        self._snapshot_error.__cause__ = damage
        self._runner.say(logging.ERROR, f"node {self.node_id}: {self._snapshot_error}")
        self._is_snapshot_damaged = True

    def capture(self) -> Capture:
        """The State as of now.  Raises what the State raises, to be given to `end_snapshot`."""
        machine = self.machine
        # Whatever comes of it, the next attempt is as far away as after a success.
        self._snapshot_index = machine.applied_index
        self._bytes_since_snapshot = 0
        self._is_snapshot_damaged = False
        self._is_saving = True
        header = SnapshotHeader(
            machine.applied_index,
            machine.applied_term,
            self.cluster_id,
            machine.config.encode(),
            machine.encode_sessions(),
            machine.digest,
        )
        return Capture(header, machine.capture())

    def save(self, capture: Capture) -> bool:
        """Make it the stored snapshot, unless a newer one is there; whether it is now."""
        return self._store.save_snapshot(capture.header, capture.chunks)

    def end_snapshot(self, saved: Capture | None, error: Exception | None) -> None:
        """A snapshot was saved, or superseded (both None), or failed: then the log goes on without it, and grows."""
        self._is_saving = False
        if error is not None:
            self._runner.say(logging.ERROR, f"node {self.node_id} could not take a snapshot: {error!r}", error)
            self._snapshot_error = StorageError(
                f"taking a snapshot failed: {error!r}; the log grows until one succeeds"
            )
            self._snapshot_error.__cause__ = error
            return
        self._snapshot_error = None
        if saved is not None:
            self._writes.append(SnapshotMark(saved.header.index, saved.header.term))
            self._runner.log_work()

    # -- snapshots of a leader's

    def wants(self, message: Message) -> bool:
        """Whether the snapshot that `message` announces would be installed."""
        return not self.is_over and self.core.wants_snapshot(message.term, message.index, message.log_term)

    def receive_chunk(self, chunk: SnapshotChunk) -> int:
        """Take a piece of a snapshot that is wanted; returns the offset wanted next, its size once it is whole.

        Slow, and called by one thread at a time.  Raises MalformedError if the data
        is not what was announced, OSError.
        """
        message = chunk.message
        identity = (message.index, message.log_term, chunk.size_bytes, chunk.crc)
        if self._incoming is None or self._incoming.identity != identity:
            self._incoming = self._store.incoming(*identity)
        wanted_offset = self._incoming.append(chunk.offset, chunk.data)
        if wanted_offset < chunk.size_bytes:
            return wanted_offset
        incoming, self._incoming = self._incoming, None
        header = incoming.finish()
        if (header.index, header.term, header.config) != (message.index, message.log_term, message.payload):
            raise MalformedError("the snapshot is not what its message announced")
        return chunk.size_bytes

    def drop_incoming(self) -> None:
        """What was received so far is not wanted any more."""
        self._incoming = None

    # -- health

    def _judge_fitness(self) -> None:
        """A node that cannot write or cannot apply leaves leading to others."""
        self.core.set_fit_to_lead(self.failure is None and self._stall is None and self.halted is None)
        self._runner.state_changed()

    def fail(self, error: RaftError) -> None:
        """Stop taking part for good: no vote, no acknowledgement, nothing served.  The process lives on."""
        if self.failure is None:
            self.failure = error
            self._runner.say(logging.ERROR, f"node {self.node_id} stops taking part: {error}", error)
            self._judge_fitness()
            self._writes.clear()
            self._held.clear()
            self._fail_waiters(NodeFailedError(f"this node stopped taking part: {error}"))

    def _fail_late_comers(self) -> None:
        """Callers who were let in just before the error that is in the way."""
        if self.calls.inbox or self.reads.inbox:
            try:
                self.check_able()
            except RaftError as error:
                self._fail_waiters(error)
            else:
                self._fail_waiters(StoppedError("the Service was stopped"))

    def _fail_waiters(self, error: RaftError) -> None:
        self.calls.fail(error)
        self.reads.fail(error)


def _decode_config(data: bytes) -> Configuration:
    try:
        return Configuration.decode(data)
    except MalformedError as error:
        raise StorageError(f"the configuration in the snapshot does not decode: {error}") from error


def as_raft_error(error: BaseException, what: str) -> RaftError:
    """`error` itself, or one of ours that says what happened."""
    if isinstance(error, RaftError):
        return error
    wrapped = (
        StorageError(f"{what}: {error!r}") if isinstance(error, OSError) else NodeFailedError(f"{what}: {error!r}")
    )
    wrapped.__cause__ = error
    return wrapped
