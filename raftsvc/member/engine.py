"""One node without its threads: what a member of a cluster does, as calls that never wait.

An engine brings core, machine, storage, callers and readers together.  Whoever
runs it decides when time passes, when a write happens and when it is done, when
entries are applied, and what becomes of messages: `raftsvc.member.node` does so with
threads, locks and sockets, `raftsvc.testing` with a seed.  What both leave to the
engine is therefore what both test: in which order things become durable, are
said, are applied, and are told to those who wait.

A runner brings something (`step`, `tick`, `submit`, ...), then calls `advance`, then
has its three kinds of work done, each of which has a page of its own:

    writes.begin, writes.write, end_write                             the log; `write` alone touches the disk
    applying.begin, applying.apply, end_apply                         the State; `apply` alone runs its code
    snapshots.is_due, snapshots.capture, snapshots.save, end_snapshot    `save` touches the disk

The methods in the middle of each line are slow, and called without the runner's lock,
each by one thread at a time; `capture` by the one that applies.  All others are quick
and called under it.

What is wrong with the node is in `health`; what callers bring and look at without the lock,
in `handoff`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from random import Random
from typing import Final, NamedTuple, Protocol

from raftsvc import logs
from raftsvc.core.following import wants_snapshot
from raftsvc.core.membership import Configuration
from raftsvc.core.messages import NO_NODE, Life, Message, MessageKind
from raftsvc.core.raft import (
    Raft,
    Ready,
    Role,
    Settings,
    SnapshotMeta,
    ViolationError,
)
from raftsvc.core.stretches import stretches
from raftsvc.core.versions import FIRST, Versions
from raftsvc.errors import (
    ApplyHaltedError,
    ConsensusError,
    DiskRefusedError,
    EvictedError,
    NodeFailedError,
    OutdatedError,
    RaftError,
    StartFailedError,
    StorageError,
    SupersededError,
    UnknownOperationError,
)
from raftsvc.logs import NOTHING
from raftsvc.measures import Records
from raftsvc.member import events
from raftsvc.member.applying import Applying
from raftsvc.member.calls import Calls, Contexts
from raftsvc.member.changes import Changes
from raftsvc.member.digests import DigestCheck
from raftsvc.member.elapsed import Timekeeper
from raftsvc.member.feed import Feed, Hooks
from raftsvc.member.handoff import Inbox
from raftsvc.member.health import Condition, Health
from raftsvc.member.live import Live
from raftsvc.member.lives import Lives
from raftsvc.member.machine import Answer, Machine
from raftsvc.member.reads import Reads
from raftsvc.member.sessions import MAX_CLIENTS
from raftsvc.member.snapshots import Capture, Snapshots, decode_config
from raftsvc.member.upgrades import Upgrades
from raftsvc.member.vigil import Vigil
from raftsvc.member.waiters import Call, Read
from raftsvc.member.writes import Batch, SnapshotMark, Writes
from raftsvc.state import State
from raftsvc.storage import Loaded, Store
from raftsvc.versions import LIBRARY_VERSION, outdated

_SNAPSHOT_RETRY = 10
"""Election timeouts after which a snapshot that failed is tried again, at first."""


_NEARLY: Final = 1000
"""Entries that a node may be behind in what it applied and still be taken for current."""


class EngineOptions(NamedTuple):
    """What shapes a node, in ticks, entries and bytes; see `raftsvc.start`."""

    election_ticks: int = 10
    snapshot_entries: int = 50_000
    snapshot_bytes: int = 64 * 1024 * 1024
    trailing_entries: int = 10_000
    trailing_bytes: int = 16 * 1024 * 1024
    max_pinned_entries: int = 100_000
    max_pinned_bytes: int = 64 * 1024 * 1024
    max_uncommitted_bytes: int = 64 * 1024 * 1024
    start_bytes: int = 16 * 1024
    max_backlog_bytes: int = 64 * 1024 * 1024
    """How much that is committed may wait to be applied before a follower takes no more entries."""
    tick_ns: int = 0
    """The least time between two ticks; 0 if that cannot be said, and nobody may rely on it."""
    tick_ms: int = 100
    """How long a tick should be."""
    lease_reads: bool = False
    library_version: int = LIBRARY_VERSION
    """What the library's code here knows; another only in tests, which have it pretend."""
    max_clients: int = MAX_CLIENTS
    """Sessions of connected clients; fewer only in tests, and the same in all of a cluster."""

    @property
    def retry_ticks(self) -> int:
        """After so many what may be lost is sent again: several heartbeats, for the first try almost never is."""
        return max(3, self.election_ticks // 2)


class Runner(Protocol):
    """What an engine asks of whoever runs it.  None of these waits.

    elapsed_clocks: tells nanoseconds by each of the clocks that log time is measured by; asked by who leads.
    """

    @property
    def elapsed_clocks(self) -> Callable[[], tuple[int, ...]]: ...

    def post(self, peer_id: int, messages: Sequence[Message]) -> bool:
        """Send `messages`, in order, if possible; False if some were dropped already."""

    def send_snapshot(self, message: Message) -> bool:
        """Begin to send the stored snapshot that `message` announces; False if that cannot be."""

    def release_log(self, index: int) -> None:
        """Have `Writes.release(index)` called, outside of any lock, and `vigil.note_release` with what came of it."""

    def look_at_room(self) -> None:
        """Have `Writes.room` called, outside of any lock, and `vigil.note_room` with what it says."""

    def prepare_log(self) -> None:
        """Have `Writes.prepare` called until it returns False, by one thread, outside of any lock."""

    def end_directory(self, why: str) -> None:
        """Have `Writes.end_directory(why)` called, outside of any lock."""

    def members_changed(self) -> None:
        """The configuration is another, or this node takes no part: have what is said reach the members, or nobody."""

    def state_changed(self) -> None:
        """Leader, configuration, session or health changed: wake those who wait for that."""

    def now(self) -> int:
        """Nanoseconds by a clock that never goes back or stands still; asked only with `lease_reads`."""

    def glance(self) -> int:
        """As `now`, without the lock."""

    def feed_due(self) -> None:
        """There is something for attached processes: have `feed.take` called for each."""

    def say(
        self,
        level: int,
        message: str,
        error: BaseException | None = None,
        fields: Mapping[str, object] = NOTHING,
    ) -> None:
        """Log `message` soon: what handles it is not ours, and may wait or ask this node something."""


class _Seen(NamedTuple):
    """What those who wait for a change were told last."""

    term: int = 0
    leader_id: int = NO_NODE
    role: Role = Role.FOLLOWER
    config: Configuration | None = None
    disagreement: RaftError | None = None
    lead: events.Lead = (0, NO_NODE)
    warning: str | None = None
    stored_index: int = 0
    """Up to which entry all was in the log as the process began; what those say is no news."""
    first_snapshot: int = 0
    """Up to which entry is what the State began with, which was in the directory: a leader's is of a later one."""


class Engine:
    """A member of a cluster."""

    def __init__(
        self,
        addr: str,
        store: Store,
        state: State,
        options: EngineOptions,
        random: Random,
        runner: Runner,
        live: Live | None = None,
        pid: int = 0,
    ) -> None:
        """Recover from `store`, which is initialized; `runner` is not called before `start`.

        live: of an attached process that owns the directory from now on, which was opened and is not behind: what
              it has, and who waits there.

        Raises StorageError if what is stored cannot be trusted, OutdatedError or ConsensusError if only later
        code can go on from it, and StartFailedError if the State cannot be restored.
        """
        loaded = store.load(random.getrandbits(64)) if live is None or live.loaded is None else live.loaded
        self.options = options
        self._runner = runner
        self.health = Health()
        self.inbox = Inbox(self.health) if live is None else live.inbox.moved_to(self.health)
        machine = Machine(state, options.library_version, options.max_clients) if live is None else live.machine
        self.snapshots = Snapshots(
            store, machine, self.health, loaded.cluster_id, options.snapshot_entries, options.snapshot_bytes
        )
        if live is not None:
            if live.is_behind:
                raise StorageError("what is stored is ahead of the State of who takes over, and was not read")
            self.snapshots.note_stored(loaded.snapshot, live.doubts)
        elif loaded.snapshot is not None:
            self._restore()
        elif state.applied_index() != 0:
            raise StorageError(
                "the State reports applied entries, but there is no snapshot to start it from: "
                "give the Service an empty State; the log and the snapshot bring it up to date"
            )
        at_least = machine.applied_index if live is not None else 0
        self.core = core = _recover_core(loaded, options, Random(random.getrandbits(64)), at_least)
        if not machine.own.covers(core.committed_config.versions):
            raise outdated(f"node {loaded.node_id} at {addr}", machine.own, core.committed_config.versions)
        self.records = Records()
        self.writes = Writes(store, self.inbox, self.health, self.records.syncs)
        self.applying = Applying(machine, self.snapshots, self.health, options.max_backlog_bytes)
        self.vigil = Vigil(self.core, self.health, self.writes, self.applying, runner, addr)
        self._seen = _Seen(stored_index=core.log.last_index, first_snapshot=self.snapshots.restored_index)
        self.time = Timekeeper(core, runner.elapsed_clocks, runner.now if options.lease_reads else None)

        contexts = Contexts(random)
        retry_ticks = options.retry_ticks
        inbox, life, note_time = self.inbox, loaded.life.life, self.time.note
        if live is None:
            self.calls = _calls_of(core, contexts, life, options, inbox, note_time, machine.own)
            self.reads = Reads(core, contexts, retry_ticks, inbox, note_time)
        else:
            self.calls, self.reads = live.calls, live.reads
            self.calls.become_owner(core, contexts, life, note_time, options.start_bytes)
            self.reads.become_owner(core, contexts, note_time)
        self.changes = Changes(core, contexts, runner.state_changed, note_time)
        self.digests = digests = DigestCheck(core, machine)
        hooks = Hooks(runner.feed_due, note_time, partial(_note_damage, self), lambda: self.snapshots.is_doubted)
        self.feed = Feed(core, contexts, digests, self.health, loaded.cluster_id, retry_ticks, hooks, pid)
        self.lives = Lives(addr, loaded.life, core, machine, self.vigil, contexts, retry_ticks, runner.say, self.fail)
        self.upgrades = Upgrades(core, machine, self.lives, self.time.note)
        self.calls.follow_session(machine)
        self.feed.follow_sessions(machine, self.calls.session_id)

    def start(self) -> None:
        """Begin to take part; a sole voter elects itself at once."""
        self.lives.applied()
        log = self.core.log
        for stretch in stretches(log.entries_from(max(log.offset, self.applying.applied_index) + 1, 1 << 62)):
            self.lives.logged(stretch)
        self.upgrades.applied()
        self._await_deadline()
        if self.core.config.voters == {self.node_id} and not self.health.is_over:
            self.core.campaign()
        self.advance()

    def stop(self, error: RaftError) -> None:
        """Do nothing more, and fail every waiter with what is known."""
        self.health.note(Condition.STOPPED, error)
        self._fail_waiters(error)

    @property
    def node_id(self) -> int:
        """The id of this member, which never changes."""
        return self.core.node_id

    @property
    def ticks(self) -> int:
        """How many there were."""
        return self.vigil.ticks

    # -- what comes in

    def submit(self, call: Call) -> bool:
        """Have `call` applied; it is finished with an outcome or an error unless withdrawn first.

        Callable without the runner's lock.  Returns whether `advance` has to be called for it;
        else somebody is about to, who will see it.
        """
        self.health.check_able()
        return self.inbox.put_call(call)

    def submit_read(self, read: Read) -> bool:
        """Have `read` finished once what is applied here is current as of now.  As `submit`."""
        self.health.check_able()
        return self.inbox.put_read(read)

    def is_current(self) -> bool:
        """Whether what is applied here is current as of now, as a lease shows.

        Callable without the runner's lock: whoever leads at any time up to the end of the
        lease is this node, and all that anybody acknowledged until then is committed here
        when, after that, the commit index is looked at.
        """
        return (
            self.options.lease_reads
            and self.core.holds_lease(self._runner.glance())
            and self.core.log.commit_index <= self.applying.applied_index
        )

    def note_awake(self) -> bool:
        """A caller that was finished runs again.  Callable without the runner's lock.

        Returns whether `advance` has to be called, for what was left to gather until now.
        """
        if not self.inbox.note_awake():
            return False
        return self.reads.is_due or (self.calls.has_unsent and not self.inbox.gathers_calls)

    def step(self, messages: Iterable[Message]) -> None:
        """Take messages of peers."""
        if self.options.lease_reads:
            self.core.now = self._runner.now()
        try:
            for message in messages:
                if self.health.is_over:
                    return
                if message.kind is MessageKind.APPEND and self.applying.is_overfull:
                    # Hear the leader, and leave its entries to be sent again.  As one that proves
                    # nothing, so that the leader's window fills and it waits; the answer to
                    # another would have it send at once.
                    message.entries, message.index, message.log_term = (), 0, 0
                if message.kind is MessageKind.PROPOSE_REPLY:
                    if not (self.changes.hear(message) or self.feed.hear_reply(message)):
                        self.calls.hear_reply(message, self.ticks)
                elif message.kind in (MessageKind.DIGEST, MessageKind.DIGEST_REPLY):
                    self.digests.hear(message)
                else:
                    if message.kind is MessageKind.PROPOSE:
                        self.time.note()  # of no other message anything is appended that could say it
                    self.core.step(message)
        except ViolationError as violation:
            self.fail(ConsensusError(str(violation)))

    def report_snapshot(
        self, peer_id: int, succeeded: bool, replies: Sequence[Message], damage: Exception | None = None
    ) -> None:
        """The transfer of a snapshot to `peer_id` ended; `damage` is why the stored one cannot be read, if so."""
        self.step(replies)
        self.core.report_snapshot(peer_id, succeeded)
        if damage is not None:
            _note_damage(self, str(damage), damage)

    def tick(self) -> None:
        """One tick of time passed."""
        if self.health.is_over:
            self.feed.note_news()  # who is attached is told why, as long as this process lives
            return
        self.inbox.finished.tick()
        self.time.note()
        self.vigil.tick()
        self.snapshots.tick()
        self.core.tick()
        if self.health.may_apply and self.applying.applied_index + _NEARLY >= self.core.log.commit_index:
            self.calls.open_session(self.ticks)  # else it may be open already, as will be seen
        self.calls.retry(self.ticks)
        for peer_id in self.core.forgetful:
            self.lives.doubt(peer_id, "it lacks entries that it had acknowledged")
        self.lives.tick(self.ticks)
        self.upgrades.tick()
        self.reads.ask(self.ticks)
        self.feed.tick(self.ticks)
        for peer_id, message in self.digests.announce():
            self._runner.post(peer_id, (message,))

    # -- driving the core

    def advance(self) -> None:
        """Do what the core has ready, save for the disk and the State."""
        health = self.health
        if not health.may_serve and (self.inbox.calls or self.inbox.reads):
            self._fail_waiters(health.refusal())  # who was let in just before
        if health.is_over:
            return
        self.calls.take_in()
        self._notice_changes()
        self._send_what_came()
        while (ready := self.core.ready()) is not None:
            self._dispatch(ready)
            self._send_what_came()
        digests = self.digests
        for peer_id, message in digests.take_replies():
            self._runner.post(peer_id, (message,))
        if digests.mismatch is not None and health.halted is None:
            self.halt(digests.mismatch)
        if digests.disagreement is not self._seen.disagreement:
            # A node that was convicted has said more.
            self._seen = self._seen._replace(disagreement=digests.disagreement)
            self.vigil.note_disagreement(digests.disagreement)

    def _send_what_came(self) -> None:
        """Have what callers brought sent, unless more is about to come."""
        inbox, feed, tick = self.inbox, self.feed, self.vigil.ticks
        if feed.followers and feed.has_unsent:
            feed.send(tick, may_propose=not inbox.is_writing)
        if inbox.waking:
            return
        if self.reads.is_due:
            self.reads.ask(tick)
        # While the disk is busy calls gather into one batch: one record, one
        # message per peer and one fsync for all of them.
        self.calls.send(tick, may_propose=not inbox.is_writing)

    def _dispatch(self, ready: Ready) -> None:
        if ready.entries:
            self.lives.logged(ready.entries)
            if self.health.is_over:
                return
        self._post(ready.messages)
        for read_state in ready.read_states:
            self.reads.hear(read_state, self.applying.applied_index)
            self.feed.hear_index(read_state)
        if ready.must_persist:
            self.writes.add(ready)
        elif ready.messages_after:
            if ready.token <= self.writes.durable_token:
                self._post(ready.messages_after)
            else:
                self.writes.hold(ready.token, ready.messages_after)
        if ready.committed:
            self.applying.add(ready.committed)
            self.core.log.unapplied_bytes = self.applying.backlog_bytes
            if self.feed.is_wanted:
                self._runner.feed_due()

    def _post(self, messages: Iterable[Message]) -> None:
        by_peer: dict[int, list[Message]] = {}
        for message in messages:
            if message.kind is MessageKind.SNAPSHOT:
                # While somebody differs from this leader its snapshot may be the damage of one made that of two.
                is_doubted = self.digests.is_disputed or self.snapshots.is_doubted
                if is_doubted or not self._runner.send_snapshot(message):
                    self.core.report_snapshot(message.to_id, False)
            else:
                by_peer.setdefault(message.to_id, []).append(message)
        for peer_id, batch in by_peer.items():
            if not self._runner.post(peer_id, batch):
                self.core.report_unreachable(peer_id)

    def _notice_changes(self) -> None:
        """React to a new leader, term or configuration."""
        core, seen = self.core, self._seen
        config = core.config
        is_new_view = core.term != seen.term or core.leader_id != seen.leader_id or core.role is not seen.role
        if is_new_view or config is not seen.config:
            self._seen = seen._replace(term=core.term, leader_id=core.leader_id, role=core.role, config=config)
        if is_new_view:
            _note_view(self.records, core, seen)
            if core.role is not seen.role or core.leader_id != seen.leader_id:
                line, lead = events.of_leader(core, seen.lead)
                self._seen = self._seen._replace(lead=lead)
                if line is not None:
                    level, text, fields = line
                    self._runner.say(level, text, None, fields)
            self.inbox.is_leading = core.role is Role.LEADER
            self.calls.send_all_again()
            self.reads.ask_again(self.ticks)
            self.changes.clear()
            self.feed.note_view(self.ticks)
            self._runner.state_changed()
        if config is not seen.config:
            self._runner.members_changed()
            self._runner.state_changed()
        if core.is_removed and self.health.error_of(Condition.REMOVED) is None:
            error = EvictedError(f"node {self.node_id} ({self.lives.addr}) was removed from its cluster")
            self.health.note(Condition.REMOVED, error)
            self._fail_waiters(error)
            self._runner.state_changed()

    # -- the end of slow work

    def end_write(self, batch: Batch, failure: BaseException | None) -> None:
        """`batch` is durable, or what became of it is unknown; or the disk refuses it for now, and is asked again."""
        writes = self.writes
        if isinstance(failure, DiskRefusedError) and not self.health.is_over:
            writes.put_off(self.options.election_ticks)
            self.vigil.note_write(failure)
            return
        writes.end()
        if failure is not None:
            self.fail(as_raft_error(failure, "writing the log failed"))
        if self.health.is_over:
            return
        self.vigil.note_write(None)
        for item in batch:
            if isinstance(item, SnapshotMark):
                self._runner.release_log(self.core.compact(item.index))
                continue
            writes.note_durable(item.token)
            self.core.persisted(item.token)
            if item.snapshot is not None:
                self.applying.add_restore(item.snapshot.index)
            self._post(item.messages_after)
        while (messages := writes.take_released()) is not None:
            self._post(messages)
        if writes.begin_prepare():
            self._runner.prepare_log()

    def end_apply(self, answers: Sequence[Answer], error: BaseException | None) -> None:
        """Tell those who wait how far applying came."""
        applying, calls = self.applying, self.calls
        session_id, config = calls.session_id, applying.applied_config
        applying.note_applied()
        self.core.log.unapplied_bytes = applying.backlog_bytes
        self._await_deadline()
        calls.answer(answers, self.ticks)  # first, for the session may be closed after them
        was_restored = self.snapshots.take_restored()
        calls.follow_session(applying.machine, was_restored)
        self.feed.follow_sessions(applying.machine, calls.session_id)
        self.lives.applied()
        self.upgrades.applied()
        if applying.applied_config is not config:
            is_news = applying.applied_index > self._seen.stored_index
            for level, text, fields in events.of_members(config, applying.applied_config, is_news):
                self._runner.say(level, text, None, fields)
        if (session_id, config) != (calls.session_id, applying.applied_config):
            self._runner.state_changed()
        self.digests.applied(was_restored)
        calls.follow_pieces(applying.machine, self.ticks)
        if was_restored:
            index = self.snapshots.restored_index
            if index > self._seen.first_snapshot:
                text = f"node {self.node_id}: the State was restored from the leader's snapshot, up to entry {index}"
                fields = logs.what("snapshot-restored", node=self.node_id, index=index)
                self._runner.say(logging.WARNING, text, None, fields)
            calls.answer_recorded(applying.machine.sessions)
        self.reads.applied(applying.applied_index)
        if error is None:
            return
        if isinstance(error, UnknownOperationError | OutdatedError):
            self.halt(error)
        else:
            if applying.is_restoring:
                what = (
                    f"the State could not be restored from a snapshot, as of which entries are gone: {error!r}; "
                    "it is tried again at the next start, with repaired code"
                )
            else:
                what = (
                    f"applying stopped at entry {applying.applied_index + 1}, where the State raised {error!r}; "
                    "it resumes at that entry after a restart with repaired code"
                )
            halted = ApplyHaltedError(what)
            halted.__cause__ = error
            self.halt(halted)

    def _restore(self) -> None:
        """Have the State begin by the stored snapshot.  Raises StartFailedError for whatever it raises."""
        try:
            self.snapshots.restore(0)
        except RaftError:
            raise
        except Exception as error:
            failed = StartFailedError(
                f"the State could not be restored from the snapshot in this directory: {error!r}; "
                "it is tried again at the next start, with repaired code"
            )
            failed.__cause__ = error  # by itself `from` would not say so, compiled
            raise failed from error

    def _await_deadline(self) -> None:
        """Have the core know what the State waits for, as of what is applied."""
        deadlines = self.applying.deadlines
        self.core.await_deadline(deadlines.next_ms, self.applying.applied_index)
        trouble = deadlines.take_trouble()
        if trouble is not None:
            self._runner.say(logging.WARNING, f"node {self.node_id}: {trouble}")
        warning = self.applying.warning
        if warning != self._seen.warning:
            self._seen = self._seen._replace(warning=warning)
            level = logging.INFO if warning is None else logging.WARNING
            text = f"node {self.node_id}: {warning or 'the State warns of nothing any more'}"
            self._runner.say(level, text, None, logs.what("state-warning", node=self.node_id))

    def end_snapshot(self, saved: Capture | None, error: Exception | None) -> None:
        """A snapshot was saved, or superseded (both None), or failed: then the log goes on without it, and grows."""
        if error is not None:
            self.records.snapshot_failures += 1
            self.snapshots.end(_SNAPSHOT_RETRY * self.options.election_ticks)
            unsaved = StorageError(f"taking a snapshot failed: {error!r}; the log grows until one succeeds")
            unsaved.__cause__ = error
            self.vigil.begin(Condition.UNSAVED, unsaved)
            return
        self.snapshots.end()
        self.vigil.end(Condition.UNSAVED)
        if saved is not None:
            index = saved.header.index
            fields = logs.what("snapshot-taken", node=self.node_id, index=index)
            self._runner.say(logging.INFO, f"node {self.node_id}: a snapshot was stored, up to {index}", None, fields)
            self.writes.add(SnapshotMark(saved.header.index, saved.header.term))

    # -- trouble

    def fail(self, error: RaftError) -> None:
        """Stop taking part for good: no vote, no acknowledgement, nothing served.  The process lives on."""
        if not self.health.is_over:
            fields = logs.what("failed", node=self.node_id)
            self._runner.say(logging.ERROR, f"node {self.node_id} stops taking part: {error}", error, fields)
            is_superseded = isinstance(error, SupersededError)
            self.health.note(Condition.SUPERSEDED if is_superseded else Condition.FAILED, error)
            self.vigil.judge_fitness()
            self.writes.clear()
            self._runner.members_changed()  # nothing is said to them any more
            if is_superseded:
                self._runner.end_directory(str(error))
            self._fail_waiters(self.health.refusal())
            self.feed.note_news()

    def halt(self, error: RaftError) -> None:
        """Apply no more and serve no more; keep voting for the others, and storing while memory allows."""
        fields = logs.what("halted", node=self.node_id)
        self._runner.say(logging.ERROR, f"node {self.node_id}: {error}", error.__cause__, fields)
        self.health.note(Condition.HALTED, error)
        self._fail_waiters(error)
        self.vigil.judge_fitness()

    def _fail_waiters(self, error: RaftError | None) -> None:
        assert error is not None, "who serves nobody says why"
        self.calls.fail(error)
        self.reads.fail(error)


def _calls_of(
    core: Raft,
    contexts: Contexts,
    life: Life,
    options: EngineOptions,
    inbox: Inbox,
    note_time: Callable[[], None],
    versions: Versions,
) -> Calls:
    retry_ticks, start_bytes = options.retry_ticks, options.start_bytes
    return Calls(core, contexts, life, retry_ticks, start_bytes, inbox.calls, inbox.finished, note_time, versions)


def _note_view(records: Records, core: Raft, seen: _Seen) -> None:
    """Count elections of this node's that ended, and leaders that it came to know."""
    is_new = core.role is not seen.role or core.term != seen.term
    if core.role is Role.LEADER and is_new:
        records.elections["won"] += 1
    elif seen.role is Role.CANDIDATE and is_new:
        records.elections["lost"] += 1
    records.note_lead(core.term, core.leader_id)


def let_waiters_go(engine: Engine) -> None:
    """Have whoever waits at `engine` wait elsewhere from now on: it cannot be started, and is stopped next."""
    core, contexts, inbox = engine.core, Contexts(Random(0)), Inbox(engine.health)
    engine.calls = _calls_of(core, contexts, engine.lives.own, engine.options, inbox, engine.time.note, FIRST)
    engine.reads = Reads(core, contexts, engine.options.retry_ticks, inbox, engine.time.note)


def _note_damage(engine: Engine, why: str, cause: Exception | None = None) -> None:
    """The stored snapshot cannot be read, as whoever needs it says: another one is to be taken."""
    # Of no use to those who need it, nor to a restart; the State here is whole.
    error = StorageError(f"the stored snapshot cannot be read: {why}; another is being taken")
    error.__cause__ = cause
    engine.vigil.begin(Condition.UNSAVED, error)
    engine.snapshots.want()


def would_install(engine: Engine, message: Message) -> bool:
    """Whether the snapshot that `message` announces would be installed."""
    return not engine.health.is_over and wants_snapshot(engine.core, message.term, message.index, message.log_term)


def _recover_core(loaded: Loaded, options: EngineOptions, random: Random, applied_index: int) -> Raft:
    """The algorithm as of what was stored.

    applied_index: of a live State, 0 of one that starts anew: what it applied is committed, though the
                   hard state, which need not say so, does not.
    """
    snapshot = loaded.snapshot
    meta = SnapshotMeta()
    if snapshot is not None:
        meta = SnapshotMeta(snapshot.index, snapshot.term, decode_config(snapshot.config), snapshot.time_ms)
    settings = Settings(
        loaded.node_id,
        random,
        election_ticks=options.election_ticks,
        max_uncommitted_bytes=options.max_uncommitted_bytes,
        start_bytes=options.start_bytes,
        trailing_entries=options.trailing_entries,
        trailing_bytes=options.trailing_bytes,
        max_pinned_entries=options.max_pinned_entries,
        max_pinned_bytes=options.max_pinned_bytes,
        # The tick that is under way when a leader is heard may be almost over.
        promise_ns=(options.election_ticks - 1) * options.tick_ns,
        tick_ns=options.tick_ns,
        tick_ms=options.tick_ms,
        uses_leases=options.lease_reads,
    )
    hard_state = loaded.hard_state._replace(commit=max(loaded.hard_state.commit, applied_index))
    try:
        core = Raft(settings, hard_state, meta, loaded.entries)
    except ViolationError as violation:
        raise ConsensusError(f"the log of node {loaded.node_id} cannot be gone on from: {violation}") from violation
    core.log.delivered_index = max(core.log.delivered_index, applied_index)
    if applied_index > max(loaded.hard_state.commit, meta.index):
        # What the State of this process knows already its next one is to know as well.
        core.output.note_written(max(loaded.hard_state.commit, meta.index))
        core.output.note_due(applied_index)
    return core


def as_raft_error(error: BaseException, what: str) -> RaftError:
    """`error` itself, or one of ours that says what happened."""
    if isinstance(error, RaftError):
        return error
    wrapped = (
        StorageError(f"{what}: {error!r}") if isinstance(error, OSError) else NodeFailedError(f"{what}: {error!r}")
    )
    wrapped.__cause__ = error
    return wrapped
