"""An attached process with its threads: a member of the cluster as far as the application can tell.

It stands in the place of the node (`raftsvc.member.participant`) until it owns the directory; then a node
takes over what it has, and whoever waits here waits there.

One lock guards the replica.  Nothing blocks under it: what is to be said to the owner is sent by whoever caused it
without waiting, and what does not leave at once by the thread that reads.

Threads:
    raftsvc-attached        attaches, hears the owner and applies; takes over when the directory is free
    raftsvc-attached-ticks  counts time
"""

from __future__ import annotations

import logging
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from raftsvc import logs
from raftsvc.attached import sockets
from raftsvc.attached.asking import Questions
from raftsvc.attached.frames import Decoder, encode
from raftsvc.attached.heir import Heir
from raftsvc.attached.pipe import Pipe
from raftsvc.attached.replica import FeedBrokenError, Replica, note_trouble, unnamed
from raftsvc.core.messages import MalformedError
from raftsvc.errors import NodeFailedError, OutcomeUnknown, OutdatedError, RaftError, StoppedError, StorageError
from raftsvc.member.applying import Work
from raftsvc.member.attachment import Ask, Farewell, Prepare, Prepared, Said, Told, Unreadable, Welcome
from raftsvc.member.engine import EngineOptions
from raftsvc.member.health import Condition
from raftsvc.member.live import Live, NotContinuedError
from raftsvc.member.participant import Callers as CallersOf
from raftsvc.member.participant import Participant
from raftsvc.member.waiters import Call, Read, Waiter
from raftsvc.state import State
from raftsvc.storage import PASSING, Files, Store, holder_of, noted_holder

logger = logging.getLogger("raftsvc.attached")

_POLL_SECONDS = 0.01
_MAX_POLL_SECONDS = 0.25
_CONNECT_SECONDS = 1.0
_HANDOVER_SECONDS = 10.0
_UNREADABLE_SECONDS = 0.5
"""After which the stored snapshot is looked at again."""
_MOVING = "this process is about to own its directory"
_CHUNK_BYTES = 64 * 1024
_SHORT_SECONDS = 1.0
"""A connection that lasts no longer is not made again without a pause."""
_DESCRIBE_SECONDS = 10.0
"""How often it is looked for who has the lock of the directory."""
_DRAINING_SECONDS = 1.0
"""How much later than others one contends whose server is shutting down, or that differs from the former owner."""


class Succession(NamedTuple):
    """What makes the owner of a process that has the directory.

    is_draining: whether this process is about to end.
    take_over:   a node on the store, which is owned, with what is live; None if the directory is nobody's yet.
                 Raises what keeps it from being one.  Whatever comes of it, the store is not its caller's any more.
    settle:      have what else an owner runs; called again if it raises.
    welcome:     this process is attached from now on, the first time.
    """

    is_draining: Callable[[], bool]
    take_over: Callable[[Store, Live | None], Participant | None]
    settle: Callable[[], None]
    welcome: Callable[[], None]


class Worker:
    """What runs an attached replica.

    directory: that is shared.
    handover:  what becomes of it.
    changed:   notified whenever something may have changed.
    questions: to the owner, of people.
    """

    def __init__(
        self,
        directory: str,
        files: Files | None,
        state: State,
        options: EngineOptions,
        tick_seconds: float,
        succession: Succession,
        likeness: Callable[[], str] = unnamed,
    ) -> None:
        self.directory = directory
        self._files = files
        self._succession = succession
        self.tick_seconds = tick_seconds
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        seed = random.Random(secrets.randbits(256))
        self.replica = Replica(Store(directory, files), state, options, seed, os.getpid(), likeness)
        self.stopping = threading.Event()
        self._pipe = Pipe()
        self.handover = Handover(self.changed, Heir(directory, files, partial(_tell_prepared, self._pipe)))
        self.replica.core.is_clogged = self._pipe.is_clogged
        self.questions = Questions(self._say)
        self.state_thread = 0
        self._threads: list[threading.Thread] = []
        self.is_welcomed = threading.Event()
        self.is_answered = threading.Event()  # by whoever owns the directory

    @property
    def successor(self) -> Participant | None:
        """The node of this process, once it has one."""
        return self.handover.successor

    # -- life

    def start(self) -> None:
        """Start the threads; raises RuntimeError if there can be none."""
        for name, run in (("attached", _Search(self).run), ("attached-ticks", self._run_ticks)):
            thread = threading.Thread(target=self._guarded, args=(run,), name=f"raftsvc-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)

    @property
    def are_alive(self) -> bool:
        """Whether the threads are at work."""
        return all(thread.is_alive() for thread in self._threads)

    def stop(self, error: RaftError) -> None:
        """End the threads and fail every waiter with what is known; bounded, idempotent."""
        self.stopping.set()
        with self.lock:
            is_ours = self.handover.await_end() and self.successor is None
            if is_ours:
                self.replica.stop(error)
            finished = self.replica.inbox.finished.take() if is_ours else []
            self.changed.notify_all()
        _wake(finished)
        self._pipe.end()
        self._log_remarks()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(5.0)
        self.handover.heir.end()

    def _guarded(self, run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as error:  # a thread's top level: nobody above could tell
            logger.exception("a thread of an attached process failed")
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Serve nobody any more."""
        from_ours = error if isinstance(error, RaftError) else StorageError(f"this process failed: {error!r}")
        with self.lock:
            if not self.handover.await_end() or self.successor is not None:
                return
            self.replica.fail(from_ours)
            finished = self.replica.inbox.finished.take()
            self.changed.notify_all()
        _wake(finished)
        self._log_remarks()

    def _log_remarks(self) -> None:
        """Under no lock: whoever handles what is logged may ask this process something."""
        remarks = self.replica.remarks
        while remarks:
            with suppress(IndexError):  # another thread took the last
                logger.error("%s", remarks.popleft())

    def _run_ticks(self) -> None:
        last = time.monotonic()
        while not self.stopping.wait(self.tick_seconds) and self.successor is None:
            now = time.monotonic()
            if now - last < 0.5 * self.tick_seconds:
                continue
            last = now
            self.do(self.replica.tick)
            if self.replica.core.is_silent:  # calls are given up meanwhile, and what is not is sent again
                with self._pipe.lock:
                    self._pipe.take_back()

    # -- doing something

    def do(self, step: Callable[[], object]) -> None:
        """One step of the replica, and all that follows from it at once."""
        with self.lock:
            if self.handover.is_over_or_under_way:
                return
            step()
            self.replica.advance()
            finished = self.replica.inbox.finished.take()
            self.changed.notify_all()
        self.flush()
        _wake(finished)
        self._log_remarks()

    def flush(self) -> None:
        """Send what is to be said, in its order, as far as that leaves at once."""
        if self.replica.core.outbox:
            with self._pipe.lock:
                with self.lock:
                    outbox = self.replica.core.outbox
                    said = list(outbox)
                    outbox.clear()
                for chunk in _chunks(said):
                    self._pipe.send(chunk, is_asked=True)

    # -- the owner

    def own(self) -> Store | None:
        """The directory, if it is free.  Raises what keeps this process from looking, RaftError or OSError."""
        store = Store(self.directory, self._files)
        if store.own(None):
            return store
        self.replica.link.holder = noted_holder(self.directory)
        return None

    def take_over(self, store: Store) -> bool:
        """Be the owner of the directory of `store`, which is owned; whether there is nothing more to do here."""
        started = time.monotonic()
        try:
            live = self._open(store)
        except BaseException as error:
            store.close()
            return self._give_up(error)
        with self.lock:
            is_stopping = self.stopping.is_set()
            if not is_stopping:
                self.handover.begin()
        if is_stopping:
            store.close()
            return True
        try:
            # From here on the store is the node's, which may be in the middle of a write: it alone closes it.
            successor = self._succession.take_over(store, live)
        except BaseException as error:
            with self.lock:
                self.replica.take_back()
            _end_handover(self, None)
            return self._give_up(error)
        _end_handover(self, successor)
        self._settle()
        if live is None:
            self.stopping.set()  # nobody waits here, for there was no node yet
        text = f"process {os.getpid()} owns {self.directory} now, after {1e3 * (time.monotonic() - started):.0f} ms"
        logs.tell(logger, logging.WARNING, text, logs.what("taken-over", node=self.replica.node_id, pid=os.getpid()))
        return True

    def _give_up(self, error: BaseException) -> bool:
        """This process did not take over; whether it never will."""
        if isinstance(error, NotContinuedError):
            self.fail(error)  # started anew it is what the directory says
            return True
        if isinstance(error, OutdatedError):
            self.do(partial(self.replica.halt, error))
            return True
        if not isinstance(error, RaftError | OSError):
            raise error
        if self.stopping.is_set() or isinstance(error, StoppedError):
            return True
        if self.note_trouble(error):
            logger.error("this process could not take over %s; it is tried again", self.directory, exc_info=error)
        self.stopping.wait(1.0)
        return False

    def note_trouble(self, error: RaftError | OSError) -> bool:
        """What keeps this process for now from an owner, or from being one; whether it is another than before."""
        trouble = error if isinstance(error, RaftError) else NodeFailedError(f"{self.directory}: {error}")
        with self.lock:
            is_new = note_trouble(self.replica, trouble)
            self.changed.notify_all()
        return is_new

    def _open(self, store: Store) -> Live | None:
        """What is live here and goes on from what is stored; None if the directory is no member's."""
        replica = self.replica
        if not store.is_initialized or store.founded.is_silent:
            if replica.applying.applied_index:
                raise NotContinuedError(f"{self.directory} is empty by now, and was a member's")
            return None
        self._apply()
        live = replica.live.opened(store, secrets.randbits(64), self.handover.heir.take())
        if live.is_behind:
            replica.snapshots.check_stored()  # if it is damaged, one whose State is ahead of it may take over
            with self.lock:
                replica.read_snapshot()
            self._apply()
            live = replica.live._replace(loaded=live.loaded)
            if live.is_behind and replica.health.may_apply:
                raise StorageError(f"the snapshot in {self.directory} could not be opened")
        replica.health.check_able()
        return live

    def _note_unreadable(self, error: OSError | StorageError) -> None:
        """Have the owner take another snapshot, and look at that a little later."""
        logger.info("the snapshot in %s cannot be read yet: %s", self.directory, error)
        if not (isinstance(error, OSError) and error.errno in PASSING):  # which is this process's own trouble
            with self._pipe.lock:
                self._pipe.send(encode(Unreadable(str(error))))
        self.stopping.wait(_UNREADABLE_SECONDS)

    def _settle(self) -> None:
        """Have the owner's other threads, its socket and its port: the node runs, and is not given up for them."""
        told = ""
        while True:
            try:
                self._succession.settle()
                break
            except Exception as error:
                if str(error) != told:
                    told = str(error)
                    logger.exception("not all of what the owner of %s runs could be started yet", self.directory)
            if self.stopping.wait(1.0):
                break
        self.is_answered.set()  # nobody has to welcome it any more
        self.is_welcomed.set()

    def attend(self, connection: socket.socket, inode: tuple[int, int]) -> Ended:
        """Be fed until the connection is over.

        inode: of the socket in the directory, right before the connection was made.
        """
        decoder = Decoder()
        replica = self.replica
        replica.owner_pid = sockets.peer_pid(connection) or 0
        replica.link.was_asked = True
        silence = _Silence(self, inode)
        store: Store | None = None
        was_welcomed = False
        self._pipe.begin(connection)
        try:
            self._say_hello()
            while not self.stopping.is_set() and not replica.link.is_left and not replica.health.is_over:
                was_clogged = self._pipe.is_clogged()
                data = self._pipe.receive(self.tick_seconds)
                if was_clogged:
                    self.do(lambda: None)
                if data is None:
                    if silence.is_to_be_left():
                        store = silence.store
                        break
                    continue
                if not data:
                    break
                self._hear(decoder.feed(data))
                self.do(lambda: None)
                self._apply()
                self._go_on()
        except (MalformedError, FeedBrokenError) as error:
            logger.error("the owner of %s is left: %s", self.directory, error)
            self.stopping.wait(1.0)
        except OSError as error:
            logger.info("the connection to the owner of %s is over: %s", self.directory, error)
        finally:
            was_welcomed = replica.link.was_welcomed
            self._pipe.close()
            self.questions.lose()
            self.do(replica.lost)
        return Ended(store, was_welcomed)

    def is_last(self) -> bool:
        """Whether others go first where the directory is free."""
        return self._succession.is_draining() or self.replica.link.is_unlike

    def _hear(self, said: Sequence[Said]) -> None:
        self.is_answered.set()
        is_asked = False
        with self.lock:
            for each in said:
                if isinstance(each, Told):
                    self.questions.hear(each)
                elif isinstance(each, Prepare):
                    is_asked = True
                else:
                    self.replica.hear(each)
                if isinstance(each, Farewell):
                    self.handover.heir.let_go_first(each.heir)
                elif isinstance(each, Welcome):
                    self.handover.heir.drop()
        self._log_remarks()
        if is_asked:
            replica = self.replica
            is_willing = replica.link.is_fed and replica.may_own and not self.is_last()
            if is_willing:  # it is heard, which takes no time, and done, which may
                with self._pipe.lock:
                    self._pipe.send(encode(Prepare()))
            self.handover.heir.prepare(is_willing)

    def _say(self, ask: Ask) -> bool:
        """Send it; False if there is no connection, or it takes nothing now."""
        if self.replica.core.is_silent or self._pipe.is_clogged():
            return False
        with self._pipe.lock:
            return self._pipe.send(encode(ask), is_asked=True)

    def _say_hello(self) -> None:
        self._apply()
        with self._pipe.lock:
            self._pipe.send(encode(self.replica.hello()))

    def _apply(self) -> None:
        """Apply all that is there."""
        replica = self.replica
        while replica.applying.is_due:
            with self.lock:
                work: Work = replica.applying.begin()
            self.state_thread = threading.get_ident()
            try:
                answers, error = replica.applying.apply(work)
            finally:
                self.state_thread = 0
            self.do(lambda: replica.end_apply(work, answers, error))  # noqa: B023 - it is called at once

    def _go_on(self) -> None:
        link = self.replica.link
        if link.needs_snapshot:
            try:
                self.replica.snapshots.check_stored()
            except (OSError, StorageError) as error:
                self._note_unreadable(error)
            else:
                with self.lock:
                    self.replica.read_snapshot()
                self._apply()
        if link.needs_hello and self.replica.health.may_apply:
            link.needs_hello = False
            self.stopping.wait(_POLL_SECONDS)  # the stored one may be a moment behind the log
            self._say_hello()
        if link.is_fed and not self.is_welcomed.is_set():
            self.is_welcomed.set()
            self._succession.welcome()


class Ended(NamedTuple):
    """A connection to an owner.

    store:        the directory, which this process owns: whoever listened there does not any more.
    was_welcomed: whether it was taken in, or told what it waits for.
    """

    store: Store | None
    was_welcomed: bool


class _Search:
    """How an attached process comes to the owner of the directory, again and again, or has it itself."""

    __slots__ = ("_free_since", "_pause", "_worker")

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._pause = _POLL_SECONDS
        self._free_since: float | None = None

    def run(self) -> None:
        """Until this process owns the directory, or ends."""
        worker = self._worker
        while not worker.stopping.is_set() and not worker.replica.health.is_over:
            store: Store | None = None
            trouble: RaftError | OSError | None = None
            try:
                inode = sockets.inode_of(worker.directory)
                connection = sockets.connect(worker.directory, _CONNECT_SECONDS)
                if connection is not None:
                    store = self._attend(connection, inode)
                    if store is None:
                        continue
            except (OSError, RaftError) as error:
                trouble = error  # whether somebody owns the directory its lock says, whoever listens there
            if store is None and self._may_contend():
                try:
                    store = worker.own()
                except (OSError, RaftError) as error:
                    trouble = trouble or error
            if store is not None and worker.take_over(store):
                return
            if store is None and trouble is not None and worker.note_trouble(trouble):
                logger.error("the owner of %s cannot be reached; it is tried again: %s", worker.directory, trouble)
            self._rest()

    def _attend(self, connection: socket.socket, inode: tuple[int, int]) -> Store | None:
        began = time.monotonic()
        self._free_since = None
        ended = self._worker.attend(connection, inode)
        if ended.was_welcomed and time.monotonic() - began > _SHORT_SECONDS:
            self._pause = _POLL_SECONDS
        elif ended.store is None:  # it may go on like that for ever
            self._rest()
        return ended.store

    def _may_contend(self) -> bool:
        worker = self._worker
        if not worker.replica.may_own or worker.handover.heir.waits:
            return False
        if worker.is_last():
            self._free_since = self._free_since or time.monotonic()
            return time.monotonic() - self._free_since > _DRAINING_SECONDS
        return True

    def _rest(self) -> None:
        self._worker.stopping.wait(self._pause * random.uniform(0.5, 1.0))
        self._pause = min(1.2 * self._pause, _MAX_POLL_SECONDS)


class _Silence:
    """What is looked at while the owner does not answer: it may live, or have left its socket to another process.

    A forked child may have that, without the lock: so the lock alone says whether somebody owns the directory.
    """

    __slots__ = ("_described_at", "_inode", "_look_at", "_since", "_worker", "store")

    def __init__(self, worker: Worker, inode: tuple[int, int]) -> None:
        self._worker = worker
        self._inode = inode
        self._since = 0.0
        self._look_at = 0.0
        self._described_at = 0.0
        self.store: Store | None = None
        """The directory, once this process owns it."""

    def is_to_be_left(self) -> bool:
        """Whether another socket stands there, or nobody owned the directory; looked at now and then."""
        worker, replica = self._worker, self._worker.replica
        now = time.monotonic()
        if replica.health.error_of(Condition.OWNER_SILENT) is None:
            self._since = 0.0
            return False
        self._since = self._since or now
        if now < self._look_at:
            return False
        self._look_at = now + replica.core.settings.election_ticks * worker.tick_seconds
        if sockets.inode_of(worker.directory) not in (self._inode, (0, 0)):
            return True
        if replica.may_own and (not worker.is_last() or now - self._since > _DRAINING_SECONDS):
            with suppress(OSError, RaftError):  # it is tried again
                self.store = worker.own()
        if self.store is None:
            self._describe(now)
        return self.store is not None

    def _describe(self, now: float) -> None:
        """Have the holder of the lock named, if that is not the owner that does not answer."""
        replica = self._worker.replica
        if _is_there(replica.owner_pid) or now < self._described_at + _DESCRIBE_SECONDS:
            return
        self._described_at = now
        with suppress(OSError):
            replica.link.keeper = holder_of(self._worker.directory)


def _tell_prepared(pipe: Pipe, is_ready: bool) -> None:
    with pipe.lock:
        pipe.send(encode(Prepared(is_ready)))


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return pid != 0


class Handover:
    """What an attached process becomes.  Used under the lock of its worker.

    While it is under way what callers brought is the node's, which starts without that lock: for what it says is
    handled by code of the application's, and may ask this process something.
    """

    __slots__ = ("_changed", "_thread", "expected", "heir", "successor")

    def __init__(self, changed: threading.Condition, heir: Heir) -> None:
        self._changed = changed
        self.heir = heir
        """What is done about it before the owner has left; needs no lock."""
        self._thread = 0
        self.expected: list[tuple[Read, int]] = []
        """Who came meanwhile, and for which entry each waits."""
        self.successor: Participant | None = None

    @property
    def is_over_or_under_way(self) -> bool:
        """Whether nothing here is the replica's any more, or may not be."""
        return self.successor is not None or self._thread != 0

    @property
    def is_under_way(self) -> bool:
        """Whether this process is about to own the directory: what callers brought may be its node's."""
        return self.successor is None and self._thread != 0

    @property
    def is_here(self) -> bool:
        """Whether this thread takes over."""
        return self._thread == threading.get_ident()

    def begin(self) -> None:
        """This thread takes over."""
        self._thread = threading.get_ident()

    def end(self, successor: Participant | None) -> None:
        """It did; None: it did not, and all is as before."""
        self.successor = successor
        self._thread = 0
        self._changed.notify_all()

    def take_expected(self) -> list[tuple[Read, int]]:
        """Those who are to be sent on their way, now that it is over."""
        expected, self.expected = self.expected, []
        return expected

    def await_end(self) -> bool:
        """Wait until nobody takes over just now; False where that is this thread, or it takes all too long."""
        if not self._thread:
            return True
        if self.is_here:
            return False
        return self._changed.wait_for(lambda: not self._thread, _HANDOVER_SECONDS)


class Callers:
    """The ways of callers through an attached process; from when it owns the directory, through its node."""

    __slots__ = ("_worker",)

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def _of_node(self) -> CallersOf | None:
        successor = self._worker.successor
        return successor.callers if successor is not None else None

    def submit(self, call: Call, leaves_work: bool = False) -> None:
        """Send `call` on its way; it is finished with an outcome or an error unless withdrawn first."""
        worker = self._worker
        finished: Sequence[Waiter] = ()
        with worker.lock:
            later = self._of_node()
            if later is None:
                self._check_running()
                worker.replica.submit(call)
                if not worker.handover.is_under_way:  # else whoever has what was brought here looks at its next tick
                    worker.replica.advance()
                    finished = worker.replica.inbox.finished.take()
        if later is not None:
            later.submit(call, leaves_work)
            return
        worker.flush()
        _wake(finished)

    def await_outcome(self, call: Call, deadline: float) -> bool:
        """Wait until `call` is finished; False if it was not by `deadline`, and is given up.

        Raises OutcomeUnknown where it cannot be withdrawn.
        """
        worker = self._worker
        while not call.is_finished:
            if call.wait(deadline - time.monotonic()):
                continue
            with worker.lock:
                later = self._of_node()
                if later is None and worker.handover.is_under_way:
                    raise OutcomeUnknown(f"not applied here in time; it may have been, or may yet be: {_MOVING}")
                if later is None:
                    call.stage = self._stage(call)
                    return not worker.replica.calls.withdraw(call)
            return later.await_outcome(call, deadline)
        later = self._of_node()
        return later.await_outcome(call, deadline) if later is not None else True

    def is_current(self) -> bool:
        """Whether what is applied here is current as of now, as far as that is known without waiting."""
        later = self._of_node()
        return later.is_current() if later is not None else False

    def submit_read(self, read: Read) -> None:
        """Have `read` finished once what is applied here is current as of now."""
        worker = self._worker
        with worker.lock:
            later = self._of_node()
            if later is None:
                self._check_running()
                worker.replica.submit_read(read)
                if not worker.handover.is_under_way:
                    worker.replica.advance()
        if later is not None:
            later.submit_read(read)
            return
        worker.flush()

    def submit_expectation(self, read: Read, index: int) -> None:
        """Have `read` finished once `index` is applied here."""
        worker = self._worker
        finished: Sequence[Waiter] = ()
        with worker.lock:
            later = self._of_node()
            if later is None:
                self._check_running()
                replica = worker.replica
                replica.health.check_able()
                if worker.handover.is_under_way:
                    worker.handover.expected.append((read, index))
                    return
                replica.reads.expect(read, index, replica.applying.applied_index)
                finished = replica.inbox.finished.take()
        if later is not None:
            later.submit_expectation(read, index)
            return
        _wake(finished)

    def await_read(self, read: Read, deadline: float) -> bool:
        """Wait until `read` is finished; False if it was not by `deadline`, and is given up."""
        worker = self._worker
        if read.wait(deadline - time.monotonic()):
            return True
        with worker.lock:
            later = self._of_node()
            if later is None and worker.handover.is_under_way:
                read.stage = _MOVING
                return False
            if later is None:
                read.stage = self._stage(read)
                return not worker.replica.reads.withdraw(read)
        return later.await_read(read, deadline)

    def _check_running(self) -> None:
        if self._worker.stopping.is_set():
            raise StoppedError("the Service was stopped")
        if self._worker.handover.is_here:
            raise NodeFailedError("this process is about to own its directory, and this thread sees to that")

    def _stage(self, waiter: Waiter) -> str:
        """What one that is about to be given up waits for."""
        replica = self._worker.replica
        applied = replica.applying.applied_index
        error = replica.health.err()
        reason = f" ({error})" if error is not None else ""
        if isinstance(waiter, Read) and waiter.index:
            return f"the read needs entry {waiter.index} applied here, where {applied} are{reason}"
        if not replica.link.is_fed:
            return f"this process is not attached to the owner of its directory{reason}"
        if not replica.core.leader_id:
            return f"no leader is known to the owner of the directory, process {replica.owner_pid}{reason}"
        if isinstance(waiter, Call) and waiter.unsettled:
            return (
                f"it was handed to the owner of the directory, process {replica.owner_pid}, and is not applied here, "
                f"where {applied} are{reason}"
            )
        return f"the owner of the directory, process {replica.owner_pid}, has not brought it to the leader{reason}"


def _end_handover(worker: Worker, successor: Participant | None) -> None:
    with worker.lock:
        worker.handover.end(successor)
        expected = worker.handover.take_expected()
    for read, index in expected:
        try:
            Callers(worker).submit_expectation(read, index)
        except RaftError as error:
            read.error = error
            read.wake()


def _chunks(said: Sequence[Said]) -> Iterator[bytes]:
    """The bytes of it, not too little at once."""
    chunk: list[bytes] = []
    size = 0
    for frame in map(encode, said):
        chunk.append(frame)
        size += len(frame)
        if size >= _CHUNK_BYTES:
            yield b"".join(chunk)
            chunk, size = [], 0
    if chunk:
        yield b"".join(chunk)


def _wake(finished: Sequence[Waiter]) -> None:
    for waiter in finished:
        waiter.wake()
