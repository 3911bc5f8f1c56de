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
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from raftsvc.attached import sockets
from raftsvc.attached.asking import Questions
from raftsvc.attached.frames import Decoder, encode
from raftsvc.attached.replica import FeedBrokenError, Replica
from raftsvc.core.messages import MalformedError
from raftsvc.errors import NodeFailedError, OutdatedError, RaftError, StoppedError, StorageError
from raftsvc.member.applying import Work
from raftsvc.member.attachment import Ask, Said, Told, Unreadable
from raftsvc.member.engine import EngineOptions
from raftsvc.member.live import Live, NotContinuedError
from raftsvc.member.participant import Callers as CallersOf
from raftsvc.member.participant import Participant
from raftsvc.member.waiters import Call, Read, Waiter
from raftsvc.process import close_in_children
from raftsvc.state import State
from raftsvc.storage import Files, Store, noted_holder

logger = logging.getLogger("raftsvc.attached")

_POLL_SECONDS = 0.01
_MAX_POLL_SECONDS = 0.25
_CONNECT_SECONDS = 1.0
_READ_BYTES = 256 * 1024
_HANDOVER_SECONDS = 10.0
_UNREADABLE_SECONDS = 0.5
"""After which the stored snapshot is looked at again."""
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
        likeness: str = "",
    ) -> None:
        self._directory = directory
        self._files = files
        self._succession = succession
        self._tick_seconds = tick_seconds
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        seed = random.Random(secrets.randbits(256))
        self.replica = Replica(Store(directory, files), state, options, seed, os.getpid(), likeness)
        self._handover = _Handover(self.changed)
        self.stopping = threading.Event()
        self._pipe = _Pipe()
        self.questions = Questions(self._say)
        self.state_thread = 0
        self._threads: list[threading.Thread] = []
        self.is_welcomed = threading.Event()
        self.is_answered = threading.Event()  # by whoever owns the directory

    @property
    def successor(self) -> Participant | None:
        """The node of this process, once it has one."""
        return self._handover.successor

    def is_settled(self) -> bool:
        """Under `lock`: wait until nobody takes over just now; False where that is this thread, or lasts too long."""
        return self._handover.await_end()

    # -- life

    def start(self) -> None:
        """Start the threads; raises RuntimeError if there can be none."""
        for name, run in (("attached", self._run), ("attached-ticks", self._run_ticks)):
            thread = threading.Thread(target=self._guarded, args=(run,), name=f"raftsvc-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def status(self) -> dict[str, object]:
        """Of this process alone, for people and monitors."""
        replica = self.replica
        with self.lock:
            return {
                "is_attached": replica.link.is_fed,
                "applied_index": replica.applying.applied_index,
                "unapplied_bytes": replica.applying.backlog_bytes,
                "waiting_calls": len(replica.calls),
                "waiting_reads": len(replica.reads),
                "conditions": replica.health.conditions(),
            }

    @property
    def are_alive(self) -> bool:
        """Whether the threads are at work."""
        return all(thread.is_alive() for thread in self._threads)

    def stop(self, error: RaftError) -> None:
        """End the threads and fail every waiter with what is known; bounded, idempotent."""
        self.stopping.set()
        with self.lock:
            is_ours = self._handover.await_end() and self.successor is None
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
            if not self._handover.await_end() or self.successor is not None:
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
        while not self.stopping.wait(self._tick_seconds) and self.successor is None:
            now = time.monotonic()
            if now - last < 0.5 * self._tick_seconds:
                continue
            last = now
            self.do(self.replica.tick)

    # -- doing something

    def do(self, step: Callable[[], object]) -> None:
        """One step of the replica, and all that follows from it at once."""
        with self.lock:
            if self._handover.is_over_or_under_way:
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
                self._pipe.send(b"".join(map(encode, said)))

    # -- the owner

    def _run(self) -> None:
        """Until this process owns the directory, or ends."""
        pause = _POLL_SECONDS
        free_since: float | None = None
        while not self.stopping.is_set() and not self.replica.health.is_over:
            connection = sockets.connect(self._directory, _CONNECT_SECONDS)
            if connection is not None:
                pause, free_since = _POLL_SECONDS, None
                self._attend(connection)
                continue
            if self._may_contend(free_since):
                if self._contend():
                    return
                free_since = None
            elif free_since is None:
                free_since = time.monotonic()
            self.stopping.wait(pause * random.uniform(0.5, 1.0))
            pause = min(1.2 * pause, _MAX_POLL_SECONDS)

    def _may_contend(self, free_since: float | None) -> bool:
        if not self.replica.health.may_apply:
            return False
        if self._succession.is_draining() or self.replica.link.is_unlike:  # others go first
            return free_since is not None and time.monotonic() - free_since > _DRAINING_SECONDS
        return True

    def _contend(self) -> bool:
        """Own the directory, if it is free; whether there is nothing more to do here."""
        started = time.monotonic()
        store = Store(self._directory, self._files)
        if not store.own(None):
            self.replica.link.holder = noted_holder(self._directory)
            return False
        try:
            live = self._open(store)
        except BaseException as error:
            store.close()
            return self._give_up(error)
        with self.lock:
            is_stopping = self.stopping.is_set()
            if not is_stopping:
                self._handover.begin()
        if is_stopping:
            store.close()
            return True
        try:
            # From here on the store is the node's, which may be in the middle of a write: it alone closes it.
            successor = self._succession.take_over(store, live)
        except BaseException as error:
            with self.lock:
                self.replica.take_back()
                self._handover.end(None)
            return self._give_up(error)
        with self.lock:
            self._handover.end(successor)
        self._settle()
        if live is None:
            self.stopping.set()  # nobody waits here, for there was no node yet
        logger.info(
            "process %d owns %s now, after %.0f ms", os.getpid(), self._directory, 1e3 * (time.monotonic() - started)
        )
        return True

    def _give_up(self, error: BaseException) -> bool:
        """This process did not take over; whether it never will."""
        if isinstance(error, NotContinuedError | OutdatedError):
            self.do(partial(self.replica.halt, error))
            return True
        if not isinstance(error, RaftError | OSError):
            raise error
        if self.stopping.is_set() or isinstance(error, StoppedError):
            return True
        logger.error("this process could not take over %s; it is tried again", self._directory, exc_info=error)
        self.stopping.wait(1.0)
        return False

    def _open(self, store: Store) -> Live | None:
        """What is live here and goes on from what is stored; None if the directory is no member's."""
        replica = self.replica
        if not store.is_initialized or store.founded.is_silent:
            if replica.applying.applied_index:
                raise NotContinuedError(f"{self._directory} is empty by now, and was a member's")
            return None
        self._apply()
        live = replica.live.opened(store, secrets.randbits(64))
        if live.is_behind:
            with self.lock:
                replica.read_snapshot()
            self._apply()
            live = replica.live._replace(loaded=live.loaded)
        replica.health.check_able()
        return live

    def _note_unreadable(self, error: OSError | StorageError) -> None:
        """Have the owner take another snapshot, and look at that a little later."""
        logger.info("the snapshot in %s cannot be read yet: %s", self._directory, error)
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
                    logger.exception("not all of what the owner of %s runs could be started yet", self._directory)
            if self.stopping.wait(1.0):
                break
        self.is_answered.set()  # nobody has to welcome it any more
        self.is_welcomed.set()

    def _attend(self, connection: socket.socket) -> None:
        """Be fed until the connection is over."""
        decoder = Decoder()
        replica = self.replica
        replica.owner_pid = sockets.peer_pid(connection) or 0
        replica.link.was_asked = True
        self._pipe.begin(connection)
        try:
            self._say_hello()
            while not self.stopping.is_set() and not replica.link.is_left and not replica.health.is_over:
                data = self._pipe.receive(self._tick_seconds)
                if data is None:
                    continue
                if not data:
                    break
                self._hear(decoder.feed(data))
                self.do(lambda: None)
                self._apply()
                self._go_on()
        except (MalformedError, FeedBrokenError) as error:
            logger.error("the owner of %s is left: %s", self._directory, error)
            self.stopping.wait(1.0)
        except OSError as error:
            logger.info("the connection to the owner of %s is over: %s", self._directory, error)
        finally:
            self._pipe.close()
            self.questions.lose()
            self.do(replica.lost)

    def _hear(self, said: Sequence[Said]) -> None:
        self.is_answered.set()
        with self.lock:
            for each in said:
                if isinstance(each, Told):
                    self.questions.hear(each)
                else:
                    self.replica.hear(each)
        self._log_remarks()

    def _say(self, ask: Ask) -> bool:
        """Send it; False if there is no connection."""
        with self._pipe.lock:
            return self._pipe.send(encode(ask))

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


class _Handover:
    """What an attached process becomes.  Used under the lock of its worker.

    While it is under way what callers brought is the node's, which starts without that lock: for what it says is
    handled by code of the application's, and may ask this process something.
    """

    __slots__ = ("_changed", "_thread", "successor")

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._thread = 0
        self.successor: Participant | None = None

    @property
    def is_over_or_under_way(self) -> bool:
        """Whether nothing here is the replica's any more, or may not be."""
        return self.successor is not None or self._thread != 0

    def begin(self) -> None:
        """This thread takes over."""
        self._thread = threading.get_ident()

    def end(self, successor: Participant | None) -> None:
        """It did; None: it did not, and all is as before."""
        self.successor = successor
        self._thread = 0
        self._changed.notify_all()

    def await_end(self) -> bool:
        """Wait until nobody takes over just now; False where that is this thread, or it takes all too long."""
        if not self._thread:
            return True
        if self._thread == threading.get_ident():
            return False
        return self._changed.wait_for(lambda: not self._thread, _HANDOVER_SECONDS)


class _Pipe:
    """The connection to the owner: read by one thread, written to by whoever has something to say."""

    def __init__(self) -> None:
        close_in_children(self)
        self.lock = threading.Lock()  # who sends; before the lock of the replica
        self._connection: socket.socket | None = None
        self._unsent = bytearray()

    def take_descriptors(self) -> Iterable[int]:
        """See `raftsvc.process.HoldsDescriptors`."""
        connection, self._connection = self._connection, None
        return [connection.detach()] if connection is not None else []

    def begin(self, connection: socket.socket) -> None:
        """It is there."""
        with self.lock:
            connection.setblocking(False)
            self._connection = connection
            self._unsent.clear()

    def send(self, data: bytes) -> bool:
        """Send, or keep what does not leave at once; under `lock`.  False if there is no connection."""
        if self._connection is None:
            return False
        self._unsent += data
        self._push()
        return True

    def _push(self) -> None:
        connection, unsent = self._connection, self._unsent
        while connection is not None and unsent:
            try:
                sent = connection.send(unsent)
            except BlockingIOError:
                return
            except OSError:
                return  # who reads sees the end
            del unsent[:sent]

    def receive(self, timeout: float) -> bytes | None:
        """The next bytes, none at the end; None after `timeout` seconds without any.  Sends what was left meanwhile."""
        connection = self._connection
        if connection is None:
            return b""
        poll = select.poll()
        poll.register(connection, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        found = poll.poll(1e3 * timeout)
        if any(events & select.POLLOUT for _, events in found):
            with self.lock:
                self._push()
        if not any(events & ~select.POLLOUT for _, events in found):
            return None
        try:
            return connection.recv(_READ_BYTES)
        except BlockingIOError:
            return None

    def end(self) -> None:
        """Have who reads see the end."""
        connection = self._connection
        if connection is not None:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """It is over."""
        with self.lock:
            connection, self._connection = self._connection, None
            self._unsent.clear()
        if connection is not None:
            connection.close()


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
        with worker.lock:
            self._check_settled()
            later = self._of_node()
            if later is None:
                self._check_running()
                worker.replica.submit(call)
                worker.replica.advance()
                finished = worker.replica.inbox.finished.take()
        if later is not None:
            later.submit(call, leaves_work)
            return
        worker.flush()
        _wake(finished)

    def await_outcome(self, call: Call, deadline: float) -> bool:
        """Wait until `call` is finished; False if it was not by `deadline`, and is given up."""
        worker = self._worker
        while not call.is_finished:
            if call.wait(deadline - time.monotonic()):
                continue
            with worker.lock:
                if not worker.is_settled():
                    call.unsettled += 1  # whatever becomes of it, nobody waits for it any more
                    call.stage = "this process is about to own its directory"
                    return False
                later = self._of_node()
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
            self._check_settled()
            later = self._of_node()
            if later is None:
                self._check_running()
                worker.replica.submit_read(read)
                worker.replica.advance()
        if later is not None:
            later.submit_read(read)
            return
        worker.flush()

    def submit_expectation(self, read: Read, index: int) -> None:
        """Have `read` finished once `index` is applied here."""
        worker = self._worker
        with worker.lock:
            self._check_settled()
            later = self._of_node()
            if later is None:
                self._check_running()
                replica = worker.replica
                replica.health.check_able()
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
            if not worker.is_settled():
                read.stage = "this process is about to own its directory"
                return False
            later = self._of_node()
            if later is None:
                read.stage = self._stage(read)
                return not worker.replica.reads.withdraw(read)
        return later.await_read(read, deadline)

    def _check_settled(self) -> None:
        if not self._worker.is_settled():
            raise NodeFailedError("this process is about to own its directory, and serves nobody until it does")

    def _check_running(self) -> None:
        if self._worker.stopping.is_set():
            raise StoppedError("the Service was stopped")

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


def _wake(finished: Sequence[Waiter]) -> None:
    for waiter in finished:
        waiter.wake()
