"""Applying, with threads: the apply thread, and the callers and writers who apply instead of it.

One at a time, the lock of the node let go meanwhile, as `handoff.Hands` knows.  Snapshots of
our own are captured in between, and saved by a thread of their own.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import partial

from raftsvc.measures import Records
from raftsvc.member.applying import Restore, Work
from raftsvc.member.engine import Engine
from raftsvc.member.handoff import Amount, applies_little, may_apply
from raftsvc.member.snapshots import Capture
from raftsvc.member.threads import Threads
from raftsvc.member.turns import Turn
from raftsvc.member.waiters import Call

_QUICK_APPLY_SECONDS = 0.002
# A snapshot's thread is at work a quarter of its time at most.  Unpaced, it kept single threads
# from the interpreter and the processor for up to 240 ms (`python -m benchmarks costs snapshot`).
_SNAPSHOT_REST = 3.0
_MAX_REST_SECONDS = 0.05


class Applier:
    """Who applies at one node, and how."""

    __slots__ = ("_engine", "_threads", "_turn")

    def __init__(self, engine: Engine, turn: Turn, threads: Threads) -> None:
        self._engine = engine
        self._turn = turn
        self._threads = threads

    def run(self) -> None:
        """The apply thread: applies unless a caller that waits for it does, and captures snapshots."""
        health = self._engine.health
        while health.may_apply:
            self._turn.apply_work.wait(1.0)
            # A snapshot that is due first: there may always be something to apply.
            while self._take_snapshot() or self._apply_batch():
                pass

    def _apply_batch(self) -> bool:
        """Apply everything that waits for it; whether there was anything."""
        with self._turn.lock:
            work = self._take_work()
        if work is None:
            return False
        self.apply(work)
        return True

    # -- of those who are there anyway; in their turn they take, after it they apply

    def take_work(self) -> Work | None:
        """What a caller that drove may apply at once, if there is something; he then does, after his turn."""
        applying, hands = self._engine.applying, self._turn.hands
        if applying.is_due and may_apply(applying.amount(), hands.are_full, hands.is_quick):
            return self._take_work()
        return None

    def take_little_work(self) -> Work | None:
        """As `take_work`, for a thread that others wait for."""
        engine, applying = self._engine, self._engine.applying
        if applying.is_due and applies_little(applying.amount(), bool(engine.calls or engine.reads)):
            return self.take_work()
        return None

    def help(self, call: Call) -> None:
        """Apply what the caller of `call` was woken for, unless it has become too much since."""
        with self._turn.lock:
            if self._engine.applying.amount() == Amount.MUCH:
                self.leave_to_thread()
            work = self._take_work() if self._turn.hands.helper is call else None
        if work is not None:
            try:
                self.apply(work)
            except Exception:
                if not call.is_finished:  # as in `Callers.submit`
                    raise

    def leave_to_thread(self) -> None:
        """Who was asked to help does not."""
        self._turn.hands.helper = None
        self._turn.apply_work.set()

    def _take_work(self) -> Work | None:
        """What waits to be applied, unless somebody applies; the caller does so, the lock released."""
        hands = self._turn.hands
        hands.helper = None
        if hands.is_applying or not self._engine.applying.is_due:
            return None
        hands.begin()
        return self._engine.applying.begin()

    def apply(self, work: Work) -> None:
        """Apply what was taken, and tell those who wait for it."""
        engine, turn = self._engine, self._turn
        started = time.monotonic()
        answers, error = engine.applying.apply(work)
        with turn:
            took = time.monotonic() - started
            _note_applied(engine.records, work, took)
            turn.hands.end()
            turn.hands.is_quick = took < _QUICK_APPLY_SECONDS
            engine.end_apply(answers, error)
            turn.drive(inline=False)

    # -- snapshots

    def _take_snapshot(self) -> bool:
        """If one is due, capture the State, while nothing is applied, and have it saved by a thread of its own."""
        engine, turn = self._engine, self._turn
        with turn.lock:
            if turn.hands.is_applying or not engine.snapshots.is_due:
                return False
            turn.hands.begin()
        capture: Capture | None = None
        failure: Exception | None = None
        started = time.monotonic()
        try:
            capture = engine.snapshots.capture()
        except Exception as error:
            failure = error
        with turn:
            engine.records.snapshots["capture"].note(time.monotonic() - started)
            turn.hands.end()
            if capture is None:
                engine.end_snapshot(None, failure)
            else:
                try:
                    self._threads.start("snapshot", partial(self._save_snapshot, capture))
                except RuntimeError as refusal:
                    engine.end_snapshot(None, refusal)
        return True

    def _save_snapshot(self, capture: Capture) -> None:
        saved: Capture | None = None
        failure: Exception | None = None
        started = time.monotonic()
        try:
            if self._engine.snapshots.save(capture._replace(chunks=self._unhurried(capture.chunks))):
                saved = capture
        except Exception as error:
            failure = error
        with self._turn:
            self._engine.records.snapshots["save"].note(time.monotonic() - started)
            self._engine.end_snapshot(saved, failure)
            self._turn.drive(inline=False)

    def _unhurried(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The same pieces, with a rest after each in proportion to how long it took, until the node stops."""
        started = time.monotonic()
        for chunk in chunks:
            yield chunk
            rest = _SNAPSHOT_REST * (time.monotonic() - started)
            self._threads.stopping.wait(min(rest, _MAX_REST_SECONDS))
            started = time.monotonic()


def _note_applied(records: Records, work: Work, seconds: float) -> None:
    """What was applied took so long; the State's restart from a snapshot is none of what it usually takes."""
    count = 0
    is_restored = False
    for items in work:
        if isinstance(items, Restore):
            is_restored = True
        else:
            count += len(items)
    records.entries += count
    (records.snapshots["restore"] if is_restored else records.batches).note(seconds)
