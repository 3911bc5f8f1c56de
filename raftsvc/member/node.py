"""One running node: an engine, and the threads, the lock and the peers around it.

The node owns the only lock over the engine.  Whoever brings it something (a
caller, a message, a tick) hands it to the engine under that lock and then drives:
sends what may be sent, and writes what must be durable unless somebody is writing
already, in which case the work is left to join the next batch.  So a lone caller
writes its own entry without handing it to another thread, and under load each
write covers everything that came meanwhile.  What comes while callers are being
woken is left to the last of them, or to what that one brings next (`calls.Finished`).

Threads, all daemons, none dependent on the thread that started the node:
    raftsvc-ticker    counts time, watches the disk, repeats what may have been lost
    raftsvc-log       writes when no caller is about to, and drives for callers that do not
    raftsvc-apply     applies committed entries, unless a caller that waits for one does
    raftsvc-snapshot  while a snapshot is written
    raftsvc-release   while old segments of the log are deleted
    raftsvc-prepare   while the log's next segment is made
    raftsvc-send-N, raftsvc-stream-N, raftsvc-transfer-N    see transport

A caller on the main thread neither drives nor applies: what a handler of signals
raises there, KeyboardInterrupt for one, could come in the middle of anything.

Lock order: node lock > outbox lock > log-writer lock.  Nothing blocks under the
node lock: no disk, no socket, no code of the State, no handler of log records.
"""

from __future__ import annotations

import logging
import os
import random
import secrets
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from raftsvc.core.membership import ConfChange, Configuration, ConfOp
from raftsvc.core.messages import NO_NODE, Message
from raftsvc.core.raft import ProposalRefused, Refusal, Role
from raftsvc.errors import OverloadedError, RaftError, StoppedError, StorageError
from raftsvc.member.calls import Call, Read, Waiter
from raftsvc.member.engine import Capture, Engine, EngineOptions, Work, as_raft_error
from raftsvc.state import State
from raftsvc.storage import Store, held_by
from raftsvc.transport import Network, Peer, SnapshotChunk

logger = logging.getLogger("raftsvc.node")

MAX_STRANGERS = 16
_QUICK_APPLY_SECONDS = 0.002
_LEAST_TICK = 0.95  # of its length; a wait that ends earlier counts for none
_STOP_SECONDS = 5.0
"""How long `stop` waits for threads, and for a disk that hangs."""
# A snapshot's thread is at work a quarter of its time at most.  Unpaced, it kept single threads
# from the interpreter and the processor for up to 240 ms (`python -m benchmarks costs snapshot`).
_SNAPSHOT_REST = 3.0
_MAX_REST_SECONDS = 0.05


class NodeOptions(NamedTuple):
    """What shapes a node; see `raftsvc.start` for the meaning of each."""

    election_timeout: float = 1.0
    engine: EngineOptions = EngineOptions()
    clock: Callable[[], float] = lambda: time.monotonic()
    lease_clock: Callable[[], int] = lambda: read_boot_clock()


def read_boot_clock() -> int:
    """Nanoseconds by the clock that goes on while the machine is suspended.

    That is CLOCK_BOOTTIME on Linux, and CLOCK_MONOTONIC on macOS, where `time.monotonic`
    stands still during sleep.  Raises AttributeError where there is neither.
    """
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME if sys.platform == "linux" else time.CLOCK_MONOTONIC)


def _may_be_interrupted() -> bool:
    """Whether a handler of signals may raise in this thread, at any point."""
    return threading.get_ident() == threading.main_thread().ident


_let_others_run: Callable[[], None] = getattr(os, "sched_yield", lambda: None)
"""Have whoever waits for this processor go first: 1 µs if there is nobody."""


class _Signal:
    """A wake-up for one thread, remembered until it looks; half the cost of an Event.

    Given without a lock that the thread then needs: with a Condition it would wake
    only to wait for that.
    """

    __slots__ = ("_lock", "is_set")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self.is_set = False
        """Whether the thread has not looked yet, and will."""

    def set(self) -> None:
        if not self.is_set:
            self.is_set = True
            with suppress(RuntimeError):  # somebody else did at the same moment
                self._lock.release()

    def wait(self, timeout: float) -> None:
        self._lock.acquire(timeout=timeout)
        self.is_set = False


class _Turn:
    """The node's lock as a context; what its holder caused is carried out once it is free again.

    An exception that is none of ours came from somewhere in the middle: nobody knows what
    of the engine is still true, so it takes no further part, whichever thread it was.  On the
    main thread it may be that of a handler of signals, which comes where a turn waits.
    """

    __slots__ = ("_node",)

    def __init__(self, node: Node) -> None:
        self._node = node

    def __enter__(self) -> None:
        self._node._lock.acquire()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        node = self._node
        try:
            if isinstance(error, Exception) and not (isinstance(error, RaftError) or _may_be_interrupted()):
                node._fail(error, "an error of the library itself")
            effects = node._take_effects()
        finally:
            node._lock.release()
        effects.carry_out()


class _Effects(NamedTuple):
    """What is to be done without the lock."""

    peers: Collection[Peer] = ()
    finished: Sequence[Waiter] = ()
    signals: Sequence[_Signal] = ()
    said: Sequence[tuple[int, str, BaseException | None]] = ()

    def carry_out(self) -> None:
        """Other nodes first, for they are furthest away; trouble with one is not that of who waits."""
        for peer in self.peers:
            try:
                peer.flush()
            except Exception:  # what was to be sent is repeated
                logger.exception("sending failed")
        for waiter in self.finished:
            waiter.wake()
        for signal in self.signals:
            signal.set()
        for level, message, error in self.said:
            with suppress(Exception):  # of a handler, which is not ours
                logger.log(level, "%s", message, exc_info=error)


class Node:
    """A member of a cluster, running from construction (`start`) until `stop`."""

    def __init__(self, addr: str, store: Store, state: State, network: Network, options: NodeOptions) -> None:
        """Recover from `store`, which is initialized; nothing runs before `start`.

        Raises StorageError if what is stored cannot be trusted, and whatever the
        State raises if it cannot be restored.
        """
        self.addr = addr
        self._store = store
        self._network = network
        self._options = options
        self._tick_seconds = options.election_timeout / options.engine.election_ticks
        seed = random.Random(secrets.randbits(256))
        engine_options = options.engine._replace(tick_ns=int(1e9 * _LEAST_TICK * self._tick_seconds))
        self._engine = Engine(addr, store, state, engine_options, seed, self)
        self.node_id = self._engine.node_id
        self.cluster_id = self._engine.cluster_id

        self._lock = threading.Lock()
        """Guards the engine and everything below.  First in the lock order."""
        self._changed = threading.Condition(self._lock)  # leader, configuration, session, disk or failure
        self._log_work = _Signal()
        self._apply_work = _Signal()
        self._turn = _Turn(self)
        self._durable = threading.Condition(self._lock)

        self._threads: list[threading.Thread] = []
        self._essential_threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._peers: dict[int, Peer] = {}
        self._unflushed: set[Peer] = set()
        self._said: list[tuple[int, str, BaseException | None]] = []
        self._is_applying = False
        self._applies_later = False  # a thread that writes is going to apply, if that is little
        self._is_apply_quick = True  # the last batch; else callers are not asked to apply what is others'
        self._helper: Call | None = None  # its caller was woken to apply
        self._incoming_lock = threading.Lock()  # one snapshot is received at a time; never taken under the node lock

    # -- life

    def start(self) -> None:
        """Start the threads; a sole voter elects itself at once."""
        with self._turn:
            self._engine.start()
        for name, run in (("ticker", self._run_ticker), ("log", self._run_log), ("apply", self._run_apply)):
            self._essential_threads.append(self._spawn(name, run))

    def _spawn(self, name: str, run: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                run()
            except BaseException as error:  # a thread's top level: nobody above could tell
                logger.exception("thread raftsvc-%s failed", name)
                with self._turn:
                    self._fail(error, f"thread raftsvc-{name} failed")

        thread = threading.Thread(target=guarded, name=f"raftsvc-{name}", daemon=True)
        self._threads = [t for t in self._threads if t.is_alive()]
        self._threads.append(thread)
        thread.start()
        return thread

    def _spawn_job(self, name: str, run: Callable[[], None]) -> None:
        """As `_spawn`, for what is not missed if there can be no more threads."""
        try:
            self._spawn(name, run)
        except RuntimeError as error:
            self.say(logging.ERROR, f"thread raftsvc-{name} cannot be started: {error}")

    def _fail(self, error: BaseException, what: str) -> None:
        self._engine.fail(as_raft_error(error, what))
        self._wake_all()

    def _wake_all(self) -> None:
        self._changed.notify_all()
        self._durable.notify_all()
        self._log_work.set()
        self._apply_work.set()

    def hand_over(self, timeout: float) -> None:
        """If this node leads, let the most advanced live voter take over, waiting at most `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._turn:
            core = self._engine.core
            if core.role is not Role.LEADER or self._engine.is_over:
                return
            if not self._engine.step_aside():
                return
            self._drive(inline=False)
            self._pause()
            while (leader := core.leader) is not None and leader.transfer_target and not self._engine.is_over:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return
                self._changed.wait(min(remaining, self._tick_seconds))

    def stop(self, error: RaftError) -> None:
        """End all threads and fail every waiter with what is known; bounded, idempotent."""
        with self._turn:
            self._stopping.set()
            self._engine.stop(error)
            self._wake_all()
            peers, self._peers = list(self._peers.values()), {}
        for peer in peers:
            peer.stop()
        deadline = time.monotonic() + _STOP_SECONDS
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        if not self._close_store(deadline):
            logger.error(
                "a write to the disk still hangs; files and the directory lock stay open until the process ends"
            )

    def _close_store(self, deadline: float) -> bool:
        # A descriptor that is closed while it is written to may be another file's by then.
        with held_by(deadline, self._incoming_lock) as is_quiet:
            with self._lock:
                while self._engine.is_writing and time.monotonic() < deadline:
                    self._durable.wait(0.05)
                is_quiet = is_quiet and not self._engine.is_writing
            return is_quiet and self._store.close(deadline - time.monotonic())

    # -- what a caller may ask

    def check_able(self) -> None:
        """Raise what keeps this node from serving an application, if anything does."""
        self._engine.check_able()

    def err(self) -> RaftError | None:
        """What keeps this node from operating normally, or None."""
        return self._engine.err()

    def is_live(self) -> bool:
        """Whether every thread that the node needs is at work; halted applying is not mended by a restart."""
        return all(thread.is_alive() for thread in self._essential_threads) or self._engine.halted is not None

    def status(self) -> dict[str, object]:
        """A picture of the node for people and monitors."""
        with self._lock:
            return self._engine.status()

    def is_settled(self) -> bool:
        """Whether this node is a voter that knows its leader."""
        core = self._engine.core
        return core.leader_id != NO_NODE and self.node_id in core.committed_config.voters

    @property
    def leader_addr(self) -> str | None:
        """Where the leader is reached, if one is known."""
        core = self._engine.core
        with self._lock:
            member = core.config.members.get(core.leader_id)
        return member.addr if member else None

    @property
    def is_leader(self) -> bool:
        """Whether this node believes that it leads."""
        return self._engine.core.role is Role.LEADER

    @property
    def applied_config(self) -> Configuration:
        """The configuration as of the entries applied here."""
        return self._engine.applied_config

    def standing_of(self, node_id: int) -> str:
        """`member`, `removed` or `unknown`, by what is committed here."""
        with self._lock:
            config = self._engine.core.committed_config
        if node_id in config.members:
            return "member"
        return "removed" if config.was_removed(node_id) else "unknown"

    def wait_until(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Wait until `condition`, of leader, membership or failure, holds; whether it did."""
        deadline = time.monotonic() + timeout
        with self._lock:
            while not condition():
                remaining = deadline - time.monotonic()
                if remaining <= 0 or self._engine.is_over:
                    return condition()
                self._changed.wait(min(remaining, self._tick_seconds))
        return True

    # -- what callers wait for; see calls

    def submit(self, call: Call) -> None:
        """Send `call` on its way; it is finished with an outcome or an error unless withdrawn first."""
        self._check_running()
        if not self._engine.submit(call) or self._is_left_to_others():
            return
        try:
            with self._turn:
                self._drive(inline=True)
                work = self._take_work() if self._may_apply() else None
            if work is not None:
                self._apply(work)
        except Exception:
            if not call.is_finished:
                raise
            # Else the engine failed, and told every caller what is known of the outcome.

    def await_outcome(self, call: Call, deadline: float) -> bool:
        """Wait until `call` is finished; False if it was not by `deadline`, and is given up.

        A caller that waits is the first to be woken when something can be applied: most
        likely its own instruction is among it, and no other thread has to be woken before.
        """
        may_help = not _may_be_interrupted()
        try:
            while not call.is_finished:
                call.is_parked = may_help
                is_woken = call.wait(deadline - time.monotonic())
                call.is_parked = False
                if not is_woken:
                    with self._lock:
                        return not self._engine.calls.withdraw(call)
                if self._helper is call:
                    self._help(call)
            return True
        finally:
            call.is_parked = False
            if call.is_finished:
                self._note_awake()
            if self._helper is call:  # it was asked to help, and is on its way out
                self._leave_to_apply_thread()

    def is_current(self) -> bool:
        """Whether what is applied here is current as of now, as far as that is known without waiting."""
        if not self._engine.is_current():
            return False
        self._check_running()
        self._engine.check_able()
        return True

    def submit_read(self, read: Read) -> None:
        """Have `read` finished once what is applied here is current as of now."""
        self._check_running()
        if self._engine.submit_read(read) and not self._is_left_to_others():
            try:
                with self._turn:
                    self._drive(inline=False)
            except Exception:
                if self._withdraw_read(read):
                    raise
                # Else as for a call.

    def _is_left_to_others(self) -> bool:
        """Whether the log thread sees to what was submitted.  If it is gone the engine is over.

        It does so for the main thread, and where it is about to look anyway: two that
        drive would be in each other's way.  Not while a write goes on, for it may be at that,
        and neither a read nor what is forwarded needs the disk.
        """
        if self._engine.is_over:
            return False
        if self._log_work.is_set and not self._engine.is_writing:
            return True
        if not _may_be_interrupted():
            return False
        self._log_work.set()
        return True

    def await_read(self, read: Read, deadline: float) -> bool:
        """Wait until `read` is finished; False if it was not by `deadline`, and is given up."""
        if not read.wait(deadline - time.monotonic()) and self._withdraw_read(read):
            return False
        self._note_awake()
        return True

    def _withdraw_read(self, read: Read) -> bool:
        """Give up on `read`; False if it was finished in the meantime."""
        with self._lock:
            return self._engine.reads.withdraw(read)

    def _note_awake(self) -> None:
        if not self._engine.note_awake():
            return
        if not self._engine.is_writing or _may_be_interrupted():
            self._log_work.set()  # this caller has waited long enough
            return
        with suppress(Exception), self._turn:  # the node has failed then, and this caller has its outcome
            self._drive(inline=False)

    def _check_running(self) -> None:
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
        change.encode()  # what cannot be is refused here, not in the middle of a turn
        engine = self._engine
        with self._turn:
            while not is_done(engine.applied_config):
                if engine.is_over or engine.halted or time.monotonic() >= deadline:
                    return last
                attempt = engine.attempt_change(change)
                self._drive(inline=False)
                self._pause()
                retry_tick = engine.ticks + engine.retry_ticks
                while not is_done(engine.applied_config) and attempt.refusal is None and engine.ticks < retry_tick:
                    remaining = deadline - time.monotonic()
                    if remaining <= 0 or self._stopping.is_set():
                        break
                    self._changed.wait(min(remaining, self._tick_seconds))
                engine.end_attempt(attempt)
                if attempt.refusal is not None:
                    last = attempt.refusal
                    invalid += last is Refusal.INVALID_CHANGE
                    if invalid > 3:
                        return last
                    # An earlier attempt may have had just that effect, and is applied here soon.
                    self._changed.wait(self._tick_seconds)
            return None

    # -- driving the engine

    def _drive(self, inline: bool) -> None:
        """Do what the engine has ready.  Called, and returns, in a turn; the lock is let go during a write.

        inline: this thread writes one batch itself if nobody is writing; what
                comes up meanwhile is left to the log thread.
        """
        engine = self._engine
        engine.advance()
        if inline and engine.has_writes:
            self._write_batch()
            engine.advance()
        if engine.failure is not None:
            self._wake_all()

    def _take_effects(self) -> _Effects:
        engine = self._engine
        peers, self._unflushed = self._unflushed, set()
        said: Sequence[tuple[int, str, BaseException | None]] = ()
        if self._said:
            said, self._said = self._said, []
        finished = engine.take_finished()
        signals = []
        if engine.has_writes:
            signals.append(self._log_work)
        if not self._is_applying and self._helper is None:
            if engine.has_work and self._is_apply_quick and not engine.has_much_work and not engine.snapshot_due:
                self._helper = engine.calls.parked()
            if self._helper is not None:
                finished.append(self._helper)
            elif (engine.has_work and not (self._applies_later and engine.has_little_work)) or engine.snapshot_due:
                signals.append(self._apply_work)
        return _Effects(peers, finished, signals, said)

    def _may_apply(self) -> bool:
        """Whether a caller may apply at once what can be applied: nobody does, and it is known to be quick."""
        return (
            self._engine.has_work
            and not self._is_applying
            and self._helper is None
            and self._is_apply_quick
            and not self._engine.has_much_work
        )

    def _pause(self) -> None:
        """In a turn that is going to wait: carry out what it caused."""
        effects = self._take_effects()
        self._lock.release()
        try:
            effects.carry_out()
        finally:
            self._lock.acquire()

    def _write_batch(self) -> None:
        """Make everything queued durable with one fsync, the lock released meanwhile."""
        engine = self._engine
        batch = engine.begin_write()
        effects = self._take_effects()
        self._lock.release()
        failure: BaseException | None = None
        try:
            effects.carry_out()  # the others write while we do
            engine.write(batch)
        except BaseException as error:  # given to the engine, whatever it is: what was written is unknown
            failure = error
        self._lock.acquire()
        engine.end_write(batch, failure)
        self._durable.notify_all()
        if failure is not None and not isinstance(failure, Exception):
            raise failure

    def _run_log(self) -> None:
        while not self._engine.is_over:
            self._log_work.wait(1.0)
            with self._turn:
                self._drive(inline=True)
                while self._engine.has_writes:
                    self._drive(inline=True)

    # -- what the engine asks; see engine.Runner.  All under the lock.

    def post(self, peer_id: int, messages: Sequence[Message]) -> bool:
        """Put messages into their peer's outbox; a member that has none yet hears them when they are repeated."""
        peer = self._peers.get(peer_id)
        if peer is None:
            return True
        self._unflushed.add(peer)
        return peer.queue(messages)

    def send_snapshot(self, message: Message) -> bool:
        """Begin to transfer the stored snapshot."""
        peer = self._peers.get(message.to_id)
        return peer is not None and peer.send_snapshot(message, self._store.open_snapshot)

    def release_log(self, index: int) -> None:
        """Delete old segments, on a thread of its own."""
        self._spawn_job("release", partial(self._release, index))

    def _release(self, index: int) -> None:
        try:
            self._engine.release(index)
        except StorageError as error:
            logger.error("node %d: %s; the log grows until it succeeds, at a later snapshot", self.node_id, error)

    def prepare_log(self) -> None:
        """Make the log's next segment, on a thread of its own."""

        def prepare() -> None:
            while not self._stopping.is_set() and self._engine.prepare():
                pass

        self._spawn_job("prepare", prepare)

    def state_changed(self) -> None:
        """Wake those who wait for leader, configuration, session or health."""
        self._changed.notify_all()

    def log_work(self) -> None:
        """Nothing to do: as for `apply_work`, or the turn writes itself."""

    def apply_work(self) -> None:
        """Nothing to do: the end of each turn wakes the apply thread if there is work."""

    def now(self) -> int:
        """What leases are measured by."""
        return self._options.lease_clock()

    def say(self, level: int, message: str, error: BaseException | None = None) -> None:
        """Log it at the end of the turn."""
        self._said.append((level, message, error))

    def members_changed(self) -> None:
        """Have a sender for each member, for those being told of their removal, and for no one else."""
        if self._stopping.is_set():
            return
        wanted = self._engine.peers
        for peer_id, member in wanted.items():
            peer = self._peers.get(peer_id)
            try:
                if peer is None:
                    self._peers[peer_id] = self._network.open_peer(self, peer_id, member.addr)
                elif peer.addr != member.addr:
                    peer.move(member.addr)
            except RuntimeError as error:  # no thread can be started; the ticker tries again
                self._peers.pop(peer_id, None)
                self.say(logging.ERROR, f"nothing can be sent to node {peer_id}: {error}")
        leaving = set(self._engine.core.progress)
        for peer_id in set(self._peers) - set(wanted) - leaving:
            if not self._peers[peer_id].is_responding:
                self._peers.pop(peer_id).stop(wait=False)

    # -- time

    def _run_ticker(self) -> None:
        clock = self._options.clock
        last = clock()
        while not self._stopping.wait(self._tick_seconds):
            now = clock()
            if 0.0 <= now - last < _LEAST_TICK * self._tick_seconds:
                continue  # what was promised in ticks lasts that long (R14)
            # However long it was, one tick: a process that was paused must not
            # campaign the moment it wakes, before it hears its leader.  One too if
            # the clock went back, or there would be none until it is where it was.
            with self._turn:
                self._engine.tick()
                if self._engine.ticks % self._options.engine.election_ticks == 0:
                    self.members_changed()
                    self._correct_address()
                self._drive(inline=False)
            last = clock()

    def _correct_address(self) -> None:
        """Announce that this member is reached at another address than the cluster recorded."""
        core = self._engine.core
        member = core.config.members.get(self.node_id)
        if member is None or member.addr == self.addr or core.config.id_of(self.addr) is not None:
            return
        change = ConfChange(ConfOp.SET_ADDRESS, self.node_id, self.addr)
        if core.role is Role.LEADER:
            with suppress(ProposalRefused):
                core.propose((change.as_proposal(),))
        else:
            # A leader that looks for this node at the old address is not known here.
            known = core.leader_id
            for peer_id in [known] if known else core.config.voters - {self.node_id}:
                core.forward((change.as_proposal(),), 0, peer_id)

    # -- applying

    def _run_apply(self) -> None:
        engine = self._engine
        while not engine.is_over and engine.halted is None:
            self._apply_work.wait(1.0)
            # A snapshot that is due first: there may always be something to apply.
            while self._take_snapshot() or self._apply_batch():
                pass

    def _apply_batch(self) -> bool:
        """Apply everything that waits for it, the lock released meanwhile; whether there was anything."""
        with self._lock:
            work = self._take_work()
        if work is None:
            return False
        self._apply(work)
        return True

    def _help(self, call: Call) -> None:
        """Apply what the caller of `call` was woken for, unless it has become too much since."""
        with self._lock:
            if self._engine.has_much_work:
                self._leave_to_apply_thread()
            work = self._take_work() if self._helper is call else None
        if work is not None:
            try:
                self._apply(work)
            except Exception:
                if not call.is_finished:  # as in `submit`
                    raise

    def _leave_to_apply_thread(self) -> None:
        self._helper = None
        self._apply_work.set()

    def _take_work(self) -> Work | None:
        """What waits to be applied, unless somebody applies; the caller does so, the lock released."""
        self._helper = None
        if not self._engine.has_work or self._is_applying:
            return None
        self._is_applying = True
        return self._engine.begin_apply()

    def _apply(self, work: Work) -> None:
        engine = self._engine
        started = time.monotonic()
        answers, error = engine.apply(work)
        with self._turn:
            self._is_applying = False
            self._is_apply_quick = time.monotonic() - started < _QUICK_APPLY_SECONDS
            engine.end_apply(answers, error)
            self._drive(inline=False)

    def _take_snapshot(self) -> bool:
        """If one is due, capture the State, while nothing is applied, and have it saved by a thread of its own."""
        engine = self._engine
        with self._lock:
            if self._is_applying or not engine.snapshot_due:
                return False
            self._is_applying = True
        capture: Capture | None = None
        failure: Exception | None = None
        try:
            capture = engine.capture()
        except Exception as error:
            failure = error
        with self._turn:
            self._is_applying = False
            if capture is None:
                engine.end_snapshot(None, failure)
            else:
                try:
                    self._spawn("snapshot", partial(self._save_snapshot, capture))
                except RuntimeError as error:
                    engine.end_snapshot(None, error)
        return True

    def _save_snapshot(self, capture: Capture) -> None:
        saved: Capture | None = None
        failure: Exception | None = None
        try:
            if self._engine.save(capture._replace(chunks=self._unhurried(capture.chunks))):
                saved = capture
        except Exception as error:
            failure = error
        with self._turn:
            self._engine.end_snapshot(saved, failure)
            self._drive(inline=False)

    def _unhurried(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The same pieces, with a rest after each in proportion to how long it took, until the node stops."""
        started = time.monotonic()
        for chunk in chunks:
            yield chunk
            rest = _SNAPSHOT_REST * (time.monotonic() - started)
            self._stopping.wait(min(rest, _MAX_REST_SECONDS))
            started = time.monotonic()

    # -- peers

    def receive(self, from_id: int, messages: Sequence[Message]) -> list[Message]:
        """Step messages that came in a request of `from_id`; return the replies for it.

        Waits, at most an election timeout, until what the replies promise is durable.
        """
        with self._turn:
            if self._stopping.is_set():
                return []
            peer = self._peers.get(from_id)
            if peer is None:
                # A leader that this node has not heard of yet is answered all the same.
                if len(self._peers) >= MAX_STRANGERS + len(self._engine.core.config.members):
                    return []
                peer = self._peers[from_id] = self._network.open_peer(self, from_id, None)
            with peer.responding():
                self._engine.step(messages)
                self._drive(inline=True)
                self._pause()
                self._await_durable(from_id)
                return peer.take_replies()

    def receive_replies(self, from_id: int, messages: Sequence[Message]) -> None:
        """Step messages that came in the response of `from_id` to a request of ours."""
        with self._turn:
            self._engine.step(messages)
            self._drive(inline=False)

    def receive_stream(self, from_id: int, messages: Sequence[Message]) -> None:
        """Step messages that came through a stream of `from_id`; replies leave by its outbox once they may.

        This thread writes to the log if nobody does, then applies what is little, and waits
        for nothing else.  In this order: the peer waits for the one, and for the other nobody.
        """
        with self._turn:
            self._engine.step(messages)
            self._applies_later = self._is_apply_quick
            self._drive(inline=True)
            self._applies_later = False
            work = self._take_work() if self._may_apply() and self._engine.has_little_work else None
        if work is not None:
            _let_others_run()
            self._apply(work)

    def _await_durable(self, peer_id: int) -> None:
        """Wait until what is held back for `peer_id` may leave, an election timeout at most."""
        engine = self._engine
        token = engine.token_awaited_by(peer_id)
        deadline = time.monotonic() + self._options.election_timeout
        while engine.durable_token < token and not engine.is_over:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return
            self._durable.wait(remaining)

    def report_unreachable(self, peer_id: int) -> None:
        """Messages to `peer_id` were lost."""
        with self._turn:
            self._engine.report_unreachable(peer_id)

    def report_removed(self, peer_id: int) -> None:
        """`peer_id`, a member, says that this node was removed."""
        with self._turn:
            self._engine.report_removed(peer_id)
            self._drive(inline=False)

    # -- snapshots to and from peers

    def report_snapshot(
        self, peer_id: int, succeeded: bool, replies: Sequence[Message], damage: Exception | None = None
    ) -> None:
        """The transfer of a snapshot to `peer_id` ended; `damage` is why the stored one cannot be read, if so."""
        with self._turn:
            self._engine.report_snapshot(peer_id, succeeded, replies, damage)
            self._drive(inline=False)

    def receive_chunk(self, from_id: int, chunk: SnapshotChunk) -> tuple[int, list[Message]]:
        """Take a piece of a snapshot.  Returns the offset wanted next, and replies once it is complete.

        Raises OverloadedError while another snapshot is being received or
        installed, and MalformedError if the data is not what was announced.
        """
        with self._lock:
            wanted = self._engine.wants(chunk.message)
        if not wanted:  # the core's answer says why: a newer term, or we have all that
            if self._incoming_lock.acquire(blocking=False):
                self._engine.drop_incoming()
                self._incoming_lock.release()
            return chunk.size_bytes, self.receive(from_id, [chunk.message])
        if not self._incoming_lock.acquire(timeout=self._options.election_timeout):
            raise OverloadedError("another snapshot is being received")
        try:
            offset = self._engine.receive_chunk(chunk)
            replies = self.receive(from_id, [chunk.message]) if offset == chunk.size_bytes else []
            return offset, replies
        finally:
            self._incoming_lock.release()
