"""A turn with the engine: the node's lock, driving under it, and what is carried out once it is free.

Whoever brings the engine something does so in a turn, and drives: sends what may be sent,
and writes what must be durable unless somebody is writing already, in which case the
work is left to join the next batch.  What the engine asks for meanwhile, its `Runner`
gathers in `Errands`; whom to wake for the rest, `handoff.duties` says.  All of that
is done when the lock is let go.

Lock order: node lock > outbox lock > log-writer lock.  Nothing blocks under the
node lock: no disk, no socket, no code of the State, no handler of log records.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import NamedTuple

from raftsvc import logs
from raftsvc.errors import RaftError
from raftsvc.member.engine import Engine, as_raft_error
from raftsvc.member.errands import Errands, Said
from raftsvc.member.handoff import Amount, Hands, Present, Signal, duties
from raftsvc.member.waiters import Waiter
from raftsvc.transport import Peer

logger = logging.getLogger("raftsvc.node")


class _Effects(NamedTuple):
    """What is to be done without the lock."""

    peers: Collection[Peer] = ()
    finished: Sequence[Waiter] = ()
    signals: Sequence[Signal] = ()
    said: Sequence[Said] = ()

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
        for level, message, error, fields in self.said:
            with suppress(Exception):  # of a handler, which is not ours
                logs.tell(logger, level, message, fields, error)


class Turn:
    """The node's lock as a context; what its holder caused is carried out once it is free again.

    An exception that is none of ours came from somewhere in the middle: nobody knows what
    of the engine is still true, so it takes no further part, whichever thread it was.
    Handlers of signals raise in the main thread alone, which takes no turns (`raftsvc.mainthread`).

    lock:    guards the engine and everything of its node.  First in the lock order.
    changed: leader, configuration, session, disk or failure.
    durable: something was written.
    """

    __slots__ = ("_engine", "_errands", "apply_work", "changed", "durable", "hands", "lock", "log_work")

    def __init__(self, lock: threading.Lock, changed: threading.Condition, engine: Engine, errands: Errands) -> None:
        self.lock = lock
        self.changed = changed
        self.durable = threading.Condition(lock)
        self.log_work = Signal()
        self.apply_work = Signal()
        self.hands = Hands()
        self._engine = engine
        self._errands = errands

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            if isinstance(error, Exception) and not isinstance(error, RaftError):
                self.fail(error, "an error of the library itself")
            effects = self._take_effects()
        finally:
            self.lock.release()
        effects.carry_out()

    def drive(self, inline: bool) -> None:
        """Do what the engine has ready.  Called, and returns, in a turn; the lock is let go during a write.

        inline: this thread writes one batch itself if nobody is writing; what
                comes up meanwhile is left to the log thread.
        """
        engine = self._engine
        engine.advance()
        if inline and engine.writes.is_due:
            self._write_batch()
            engine.advance()
        if engine.health.is_over:
            self.wake_all()

    def run_log(self) -> None:
        """The log thread: writes when no caller is about to, and drives for callers that do not."""
        engine = self._engine
        while not engine.health.is_over:
            self.log_work.wait(1.0)
            with self:
                self.drive(inline=True)
                while engine.writes.is_due:
                    self.drive(inline=True)

    def _write_batch(self) -> None:
        """Make everything queued durable with one fsync, the lock released meanwhile."""
        engine = self._engine
        batch = engine.writes.begin()
        effects = self._take_effects()
        self.lock.release()
        failure: BaseException | None = None
        try:
            effects.carry_out()  # the others write while we do
            engine.writes.write(batch)
        except BaseException as error:  # given to the engine, whatever it is: what was written is unknown
            failure = error
        self.lock.acquire()
        engine.end_write(batch, failure)
        self.durable.notify_all()
        if failure is not None and not isinstance(failure, Exception):
            raise failure

    def pause(self) -> None:
        """In a turn that is going to wait: carry out what it caused."""
        effects = self._take_effects()
        self.lock.release()
        try:
            effects.carry_out()
        finally:
            self.lock.acquire()

    def present(self) -> Present:
        """What decides who does what next; counted only where it is asked for."""
        engine, hands = self._engine, self.hands
        amount = Amount.NOTHING if hands.are_full else engine.applying.amount()
        return Present(
            engine.writes.is_due,
            amount,
            amount == Amount.LITTLE and bool(engine.calls or engine.reads),
            engine.snapshots.is_due,
            hands.is_applying,
            hands.helper is not None,
            hands.applies_later,
            hands.is_quick,
        )

    def _take_effects(self) -> _Effects:
        engine, errands = self._engine, self._errands
        peers, errands.unflushed = errands.unflushed, set()
        said: Sequence[Said] = ()
        if errands.said:
            said, errands.said = errands.said, []
        finished = engine.inbox.finished.take()
        signals: list[Signal] = []
        if errands.is_feed_due:
            errands.is_feed_due = False
            signals += errands.feeders
        if engine.writes.is_due or engine.applying.is_due or engine.snapshots.is_due:  # else there is nothing to decide
            wakes_log, asks_caller, wakes_apply = duties(self.present())
            if wakes_log:
                signals.append(self.log_work)
            helper = engine.calls.parked() if asks_caller else None
            if helper is not None:
                self.hands.helper = helper
                finished.append(helper)
            elif wakes_apply:
                signals.append(self.apply_work)
        return _Effects(peers, finished, signals, said)

    def fail(self, error: BaseException, what: str) -> None:
        """Have the node take no further part."""
        self._engine.fail(as_raft_error(error, what))
        self.wake_all()

    def wake_all(self) -> None:
        """Everybody looks what has become of the node."""
        self.changed.notify_all()
        self.durable.notify_all()
        self.log_work.set()
        self.apply_work.set()
