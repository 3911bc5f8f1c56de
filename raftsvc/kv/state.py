"""The replicated state of the key-value store.

Has transactions applied (`kv.applying`), and answers reads of what this node
has applied.  What makes a read linearizable, and who proposes transactions, is `KeyValue`.

Invariants:
- Reads take the lock under which a transaction takes effect, or a frozen view made under it: nobody sees half of one.
- The main thread never holds the lock (`raftsvc.mainthread`), and nobody waits for it in a
  forked child, where whoever held it at the fork is no more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from heapq import nsmallest
from itertools import islice
from typing import NamedTuple, TypeVar

from raftsvc.addresses import same_addr
from raftsvc.errors import ConfigurationError, NodeFailedError
from raftsvc.kv.applying import Applying
from raftsvc.kv.events import MAX_EVENT_BYTES, MAX_EVENTS, Compacted, Happened, happened
from raftsvc.kv.expiry import NEVER
from raftsvc.kv.history import Change, Cursor, Signal, wake
from raftsvc.kv.holds import Claim, standing
from raftsvc.kv.instructions import allow, disallow, encode
from raftsvc.kv.orders import CLOCK, DIED, DONE, FAILED, MISSED, PLANS, RUNNING, is_order
from raftsvc.kv.orders import decode as decode_order
from raftsvc.kv.pages import Page, Value, records_of
from raftsvc.kv.queries import (
    ALLOWED,
    CLAIM,
    CLAIMS,
    COUNTS,
    ITEM,
    JOB,
    JOBS,
    LIST,
    Question,
    encode_item,
    encode_job,
    encode_names,
    encode_values,
)
from raftsvc.kv.queues import Item, item_of
from raftsvc.kv.runs import Planned, Run, Told, jobs_of
from raftsvc.kv.snapshots import decode_snapshot, encode_snapshot
from raftsvc.kv.transactions import OF_LEASES, OF_THE_CLUSTER, decode
from raftsvc.mainthread import do_elsewhere, is_main_thread
from raftsvc.process import HomeProcess, NoHome, give_way
from raftsvc.state import BaseState

_NUMBER = re.compile("[0-9]{1,20}")
_LOOK_SECONDS = 10.0
"""For a look at what is in memory."""
_SHOWN_HOLDERS = 5
_SHOWN_CHARACTERS = 100

_FULL, _HAS_ROOM = 0.8, 0.75

T = TypeVar("T")


class Clock(NamedTuple):
    """What a process knows of the time.

    is_wanted: whether clocks are to be told.
    votes:     whether the clock of the member counts.
    told:      what each voter's clock showed, and
    voters:    how many there are.
    told_ms:   the log time at which any was told last, and
    now_ms:    what time it was then, in milliseconds since 1970, as the log has it; None: that is not known.
    """

    is_wanted: bool
    votes: bool
    told: tuple[Told, ...]
    voters: int
    told_ms: int
    now_ms: int | None


def _beginning_of(data: bytes) -> str:
    return data[: 4 * _SHOWN_CHARACTERS].decode(errors="replace")[:_SHOWN_CHARACTERS]


def _is_away(home: HomeProcess | None) -> bool:
    """Whether the caller is on the main thread, and has others look; raises ForkedError in a forked child."""
    if home is not None:
        home.check()
    return is_main_thread()


def _look_elsewhere(look: Callable[[], T]) -> T:
    return do_elsewhere(look, _LOOK_SECONDS, NodeFailedError)


def _undone(found: dict[str, Value], changes: list[Change]) -> dict[str, Value]:
    """The keys in order as they were before `changes`."""
    if not changes:
        return found
    for _, _, key, _, former in reversed(changes):
        if former is None:
            found.pop(key, None)
        else:
            found[key] = Value(*former)
    return dict(sorted(found.items()))


def _number_of(text: str) -> int | None:
    """What a question says; None: no claim has such a number."""
    return int(text) if _NUMBER.fullmatch(text) else None


def _found(pages: list[Page], prefix: str, after: str) -> Iterator[tuple[str, Value]]:
    """The keys on `pages` that start with `prefix` and come after `after`, in order, each with its value."""
    for page in pages:
        give_way()
        for key, data, version in records_of(page):
            if key.startswith(prefix) and key > after:
                yield key, Value(data, version)


_STATES = {RUNNING: "running", DONE: "done", FAILED: "failed", DIED: "died", MISSED: "missed"}


def _told_of_run(runs: Sequence[Run]) -> dict[str, object]:
    """For people, of the latest, if there is any."""
    if not runs:
        return {"state": "not run yet", "at_ms": 0, "who": ""}
    run = runs[-1]
    at_ms = run.ended_ms or run.began_ms or run.slot_ms
    return {"state": _STATES[run.state], "at_ms": at_ms, "who": _beginning_of(run.who)}


class KeyValueState(BaseState):
    """A State of keys and values.  Reads are of this node alone, and may be stale: see KeyValue.

    A new node may join only if its address is in the allowed list, exactly as it
    advertises it; the list is empty at first.

    max_events, max_event_bytes: how much of what changed last is kept here for `KeyValue.watch`: so many changes of
                                 a key, and so many bytes of keys, of values, and of those that they replaced.  It is
                                 each process's own business.
    """

    is_key_value_store = True
    """By which a node knows that it may bring it what clients wrote for such a store; see `raftsvc.visitors`."""

    def __init__(self, *, max_events: int = MAX_EVENTS, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        super().__init__()
        for name, value in (("max_events", max_events), ("max_event_bytes", max_event_bytes)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ConfigurationError(f"{name} is a number, 0 or more, not {value!r}")
        self._applying = Applying(max_events, max_event_bytes)
        self._is_nearly_full = False
        self.companion: object = None
        """What the stores on it share, of this process."""
        self.timekeeping: Callable[[], None] | None = None
        """Called, quick and under no lock, after each batch as long as this process is to tell its clock."""
        self._home: HomeProcess | None = None  # the process whose node applies, once there is one

    # -- applying

    def apply(self, data: bytes, index: int) -> object:
        """Like `apply_at` at the beginning of log time, for whoever has none."""
        return self.apply_at(data, index, 0)

    def apply_at(self, data: bytes, index: int, time_ms: int) -> object:
        """Apply a transaction, after what is due by `time_ms` has expired.

        Returns the number that its last INCR made; of a DELETE or TOUCH that is all of it whether there was
        such a key; else True, or what `Content.transact` or `Content.order` says.  Raises Rejected if one of its
        conditions does not hold, it adds to what is no number, or the content would grow too large, or if `data` is no
        transaction.
        """
        return self._applying.apply_at(data, index, time_ms)

    def set_voters(self, voters: frozenset[int]) -> None:
        """Those members vote from here on; their clocks tell what time it is for jobs."""

        def note() -> None:
            with self._applying.lock:
                self._applying.content.runs.clocks.set_voters(voters)

        if is_main_thread():  # at the start of a process
            _look_elsewhere(note)
        else:
            note()

    def pass_time(self, index: int, time_ms: int) -> None:
        """Have what is due by `time_ms` expire."""
        self._applying.pass_time(index, time_ms)

    def begin_anew(self, index: int, time_ms: int) -> None:
        """Have all leases end, with what is held, waited for, run and kept under them."""
        self._applying.begin_anew(index, time_ms)

    def applied_index(self) -> int:
        """The index up to which this state reflects the log."""
        return self._applying.applied_index

    def set_applied_index(self, index: int) -> None:
        """Everything up to `index` has been applied: whoever waits for it is told now."""
        applying = self._applying
        woken = applying.settle(index)
        if woken:
            wake(woken)
        if self.timekeeping is not None and applying.content.runs.is_wanted:
            self.timekeeping()

    def next_deadline(self) -> int | None:
        """The log time at which the next key expires."""
        content = self._applying.content
        next_ms = min(content.expiries.next_ms, content.holds.next_ms)
        return None if next_ms == NEVER else next_ms

    def empty_write(self) -> bytes:
        """A transaction without conditions and effects."""
        return encode(())

    def set_peer_addr(self, node_id: int, addr: str) -> None:
        """Member `node_id` is reached at `addr`; the first thing that the node of a process says."""
        self._home = HomeProcess()
        super().set_peer_addr(node_id, addr)

    def refuse_reads(self, why: str) -> None:
        """Have all reads raise ConfigurationError, which says `why`: no node applies anything here.

        Raises it, and changes nothing, if one does.
        """
        if self._home is not None and not isinstance(self._home, NoHome):
            self._home.check()
            raise ConfigurationError("a node applies to this State already: give start another one")
        self._home = NoHome(why)

    # -- reading

    def get(self, key: str) -> Value | None:
        """The value of `key` here.  Raises ForkedError in a child of the process that applies, as all reads.

        And as all reads ConfigurationError in a process that has no node.
        """
        if _is_away(self._home):
            return _look_elsewhere(partial(self.get, key))
        with self._applying.lock:
            return self._applying.content.keys.get(key)

    def get_many(self, keys: Iterable[str]) -> dict[str, Value]:
        """The values, all of one moment, of those `keys` that exist."""
        wanted = list(keys)
        if _is_away(self._home):
            return _look_elsewhere(partial(self.get_many, wanted))
        with self._applying.lock:
            found = [(key, self._applying.content.keys.get(key)) for key in wanted]
        return {key: value for key, value in found if value is not None}

    def list(
        self, prefix: str = "", limit: int | None = None, after: str = "", max_bytes: int | None = None
    ) -> dict[str, Value]:
        """The keys that start with `prefix` and come after `after`, in order, with their values, all of one moment.

        limit:     how many at most, the first of them.
        max_bytes: no more once their values have more than so many bytes.
        """
        if _is_away(self._home):
            return _look_elsewhere(partial(self.list, prefix, limit, after, max_bytes))
        with self._applying.lock:
            pages = self._applying.content.keys.freeze(prefix, after)
        found: dict[str, Value] = {}
        left = max_bytes
        for key, value in islice(_found(pages, prefix, after), limit):
            found[key] = value
            if left is not None:
                left -= len(value.data)
                if left < 0:
                    break
        return found

    # -- claims

    def claims(self, name: str) -> Sequence[Claim]:
        """All claims on a name here, who holds first, then who waits, in the order in which they came to."""
        if _is_away(self._home):
            return _look_elsewhere(partial(self.claims, name))
        with self._applying.lock:
            return self._applying.content.holds.claims(name)

    def fence_of(self, place: tuple[str, str, int], signal: Signal | None = None) -> int | None:
        """The fence of a claim (name, lease, number), 0 if it waits, None: there is none.

        signal: set once that changed, unless it is held now.
        """
        if _is_away(self._home):
            return _look_elsewhere(partial(self.fence_of, place, signal))
        with self._applying.lock:
            claim = self._applying.content.holds.claim_of(*place)
            if signal is not None and (claim is None or not claim.fence):
                self._applying.waiters.wait(place, signal)
            return None if claim is None else claim.fence

    def item_of(self, place: tuple[str, str, int]) -> Item | None:
        """What was given to a claim (queue, lease, number) on a queue."""
        if _is_away(self._home):
            return _look_elsewhere(partial(self.item_of, place))
        with self._applying.lock:
            return item_of(self._applying.content.holds, *place)

    def item_counts(self, queue: str) -> tuple[int, int]:
        """How many items of it nobody has, and how many somebody."""
        if _is_away(self._home):
            return _look_elsewhere(partial(self.item_counts, queue))
        with self._applying.lock:
            return self._applying.content.holds.items.counts(queue)

    def await_claims(self, place: str | tuple[str, str, int], signal: Signal, *, is_over: bool = False) -> None:
        """Have it set once something happens to claims on a name, or to one; or not any more."""
        if _is_away(self._home):
            _look_elsewhere(partial(self.await_claims, place, signal, is_over=is_over))
            return
        with self._applying.lock:
            (self._applying.waiters.leave if is_over else self._applying.waiters.wait)(place, signal)

    # -- jobs

    def job_names(self, prefix: str = "") -> Sequence[str]:
        """Of the jobs here those that start so, in their order."""
        if _is_away(self._home):
            return _look_elsewhere(partial(self.job_names, prefix))
        with self._applying.lock:
            return list(self._applying.content.runs.names(prefix))

    def job(self, name: str) -> tuple[Planned | None, Sequence[Run]]:
        """What is known of a job here, and its runs, the latest last."""
        if _is_away(self._home):
            return _look_elsewhere(partial(self.job, name))
        with self._applying.lock:
            return self._applying.content.runs.planned(name), self._applying.content.runs.runs(name)

    def clock(self, node_id: int) -> Clock:
        """What is known of the time here, and of the clock of that member."""
        if _is_away(self._home):
            return _look_elsewhere(partial(self.clock, node_id))
        with self._applying.lock:
            runs = self._applying.content.runs
            clocks = runs.clocks
            told = tuple(clocks.in_order())
            told_ms = max([each.at_ms for each in told], default=0)
            votes = node_id in clocks.voters
            return Clock(runs.is_wanted, votes, told, len(clocks.voters), told_ms, clocks.now_ms(told_ms))

    # -- operators

    def overview(self, limit: int) -> dict[str, object]:
        """Locks and the like, jobs, and who may join, of each `limit` at most; see `raftsvc.OperatedState`.

        Of those who hold something a few are named, by the beginning of what they said of themselves: it is shown over
        and over, and who may write says how much that is.
        """
        if _is_away(self._home):
            return _look_elsewhere(partial(self.overview, limit))
        with self._applying.lock:
            content = self._applying.content
            stand = standing(content.holds, limit, _SHOWN_HOLDERS)
            known, allowed = jobs_of(content.runs), content.allowed
        first = nsmallest(limit, known)
        with self._applying.lock:
            runs = self._applying.content.runs
            last = [(name, runs.runs(name)[-1:]) for name in first]
        locks = [
            {
                "name": each.name,
                "holders": [_beginning_of(holder.data) for holder in each.holders],
                "held": each.held,
                "waiting": each.waiting,
                "fence": max([holder.fence for holder in each.holders], default=0),
            }
            for each in stand
        ]
        jobs: list[dict[str, object]] = [{"name": name, **_told_of_run(runs)} for name, runs in last]
        return {"locks": locks, "jobs": jobs, "allowed": nsmallest(limit, allowed)}

    def admission(self, addr: str, is_allowed: bool) -> bytes:
        """The instruction after which a node at `addr` may join, or may not.  Raises ConfigurationError."""
        return encode([allow(addr) if is_allowed else disallow(addr)])

    # -- connected clients

    def query(self, data: bytes) -> bytes:
        """Answer a question of `kv.queries`; raises Rejected."""
        question = Question.decode(data)
        if question.kind == ALLOWED:
            return encode_names(self.allowed())
        if question.kind == CLAIMS:
            claims = self.claims(question.names[0])
            return encode_values({f"{n:06}": Value(claim.data, claim.fence) for n, claim in enumerate(claims)})
        if question.kind == CLAIM:
            name, lease, number = question.names
            found = _number_of(number)
            fence = None if found is None else self.fence_of((name, lease, found))
            return encode_values({} if fence is None else {name: Value(b"", fence)})
        if question.kind == ITEM:
            name, lease, number = question.names
            found = _number_of(number)
            return encode_item(None if found is None else self.item_of((name, lease, found)))
        if question.kind == COUNTS:
            ready, taken = self.item_counts(question.names[0])
            return encode_values({"ready": Value(b"", ready), "taken": Value(b"", taken)})
        if question.kind == JOB:
            return encode_job(*self.job(question.names[0]))
        if question.kind == JOBS:
            return encode_names(self.job_names(question.names[0]))
        if question.kind == LIST:
            prefix, after = question.names
            return encode_values(self.list(prefix, question.limit, after, question.max_bytes))
        return encode_values(self.get_many(question.names))

    def scope(self, data: bytes, is_query: bool) -> Iterable[str] | None:
        """The keys and names that a transaction or a question is about, or the prefix; None: the whole cluster."""
        if is_query:
            question = Question.decode(data)
            return None if question.kind == ALLOWED else question.scope
        if is_order(data):
            order = decode_order(data)
            if order.kind == PLANS:
                return [plan.job for plan in order.plans]
            return None if order.kind == CLOCK else [order.job]
        conditions, effects = decode(data)
        if any(code in OF_THE_CLUSTER for code, *_ in effects):
            return None
        named = [key for code, key, *_ in effects if code not in OF_LEASES]  # whose ids only their owners know
        return [key for _, key, _ in conditions] + named

    # -- watches

    def list_at(self, prefix: str = "", after: str = "", limit: int | None = None) -> tuple[dict[str, Value], int]:
        """As `list`, and the index up to which all that was applied is in it, and nothing after it."""
        if _is_away(self._home):
            return _look_elsewhere(partial(self.list_at, prefix, after, limit))
        with self._applying.lock:
            pages = self._applying.content.keys.freeze(prefix, after)
            changes = [
                each for each in self._applying.content.changes if each[2].startswith(prefix) and each[2] > after
            ]
            index = self._applying.complete
        found = _found(pages, prefix, after)
        if limit is None:
            return _undone(dict(found), changes), index
        # As many more as there are changes, each of which may take one out.
        some = dict(islice(found, limit + len(changes)))
        return dict(islice(_undone(some, changes).items(), limit)), index

    def complete_index(self) -> int:
        """The last entry all of which was applied here."""
        _is_away(self._home)
        return self._applying.complete

    def check_process(self) -> None:
        """Raise ForkedError in a child of the process that applies."""
        _is_away(self._home)

    def advance(self, cursor: Cursor, after: int, cut: int = 0) -> tuple[Happened, int]:
        """Some of what happened below the cursor's prefix after entry `after`, whole entries; and up to which this is.

        Nothing: nothing did, up to what is applied, and the cursor waits: its signal, which was armed before, is set
        once there is more.  cut: characters of keys that are left out.  Raises Compacted.
        """
        if _is_away(self._home):
            return _look_elsewhere(partial(self.advance, cursor, after, cut))
        prefix = cursor.prefix
        applying = self._applying
        history = applying.history
        while True:
            with applying.lock:
                history.leave(cursor, applying.complete)
                after = max(after, cursor.idle_until)
                changes = history.some_after(after)
                if changes is None:
                    raise Compacted(
                        f"what changed after entry {after} is kept only from {history.floor} on: "
                        "list anew, and go on there",
                        history.floor,
                    )
                if not changes:
                    history.wait(cursor)
                    return [], max(after, applying.complete)
            found = happened(changes, prefix, cut)
            after = changes[-1][0]
            if found:
                return found, after

    def place_of(self, cursor: Cursor) -> int:
        """Up to which index nothing happened that it waits for, or waited for last."""
        if _is_away(self._home):
            return _look_elsewhere(partial(self.place_of, cursor))
        with self._applying.lock:
            return self._applying.complete if cursor.is_waiting else cursor.idle_until

    def leave(self, cursor: Cursor) -> None:
        """It is read no more."""
        if _is_away(self._home):
            _look_elsewhere(partial(self.leave, cursor))
            return
        with self._applying.lock:
            self._applying.history.leave(cursor, self._applying.complete)

    def wake_all(self) -> None:
        """Have everybody who waits for more look how things are."""
        if _is_away(self._home):
            _look_elsewhere(self.wake_all)
            return
        with self._applying.lock:
            woken = self._applying.history.wake_all(self._applying.complete) + self._applying.waiters.take_all()
        wake(woken)

    # -- for people

    def __len__(self) -> int:
        """How many keys there are here."""
        if _is_away(self._home):
            return _look_elsewhere(self.__len__)
        with self._applying.lock:
            return len(self._applying.content.keys)

    def report(self) -> dict[str, object]:
        """How many there are here of each kind, how large all is, and may grow (`kv.max_state_bytes`)."""
        _is_away(self._home)
        content = self._applying.content
        leases, claims = content.holds.counts()
        jobs, runs = content.runs.counts()
        return {
            "keys": len(content.keys),
            "leases": leases,
            "claims": claims,
            "jobs": jobs,
            "runs": runs,
            "items": len(content.holds.items),
            "limits": len(content.limits),
            "size_bytes": content.size_bytes,
            "max_bytes": content.max_bytes or None,
        }

    def warning(self) -> str | None:
        """That it is nearly as large as it may be: from four fifths on, until it is under three quarters."""
        content = self._applying.content
        if not content.max_bytes and not self._is_nearly_full:
            return None
        share = content.size_bytes / content.max_bytes if content.max_bytes else 0.0
        if share >= _FULL:
            self._is_nearly_full = True
        elif share < _HAS_ROOM:
            self._is_nearly_full = False
        if not self._is_nearly_full:
            return None
        return (
            f"the key-value store holds more than {_FULL:.0%} of the {content.max_bytes} bytes that it may "
            "(kv.max_state_bytes): delete something, or raise that, before writes are refused"
        )

    def allowed(self) -> frozenset[str]:
        """The addresses that may join, as known here."""
        _is_away(self._home)
        return self._applying.content.allowed

    def is_allowed_member(self, addr: str) -> bool:
        """Whether `addr`, however spelled, is in the allowed list."""
        _is_away(self._home)
        return same_addr(addr) in self._applying.content.allowed

    # -- snapshots

    def snapshot(self) -> tuple[bytes, int]:
        """The whole state in one bytes object; `snapshot_chunks` needs less memory."""
        chunks, index = self.snapshot_chunks()
        return b"".join(chunks), index

    def snapshot_chunks(self) -> tuple[Iterator[bytes], int]:
        """The state as of now, in pieces of about 64 KiB, and its applied index.

        Copies nothing but a list of pages.  While the pieces are consumed, what was
        replaced meanwhile is held too, each page until it has been passed: at worst,
        with every key written to, the former values and about 30 bytes a key.
        """
        if self._home is not None:
            self._home.check()
        with self._applying.lock:
            return encode_snapshot(self._applying.content), self._applying.applied_index

    def restore_snapshot(self, data: bytes, index: int) -> None:
        """Become what `snapshot` returned; raises MalformedSnapshotError and changes nothing if it did not."""
        self.restore_chunks(iter((data,)), index)

    def restore_chunks(self, chunks: Iterator[bytes], index: int) -> None:
        """Become the state whose pieces, cut anywhere, are `chunks`.

        Readers see the former state until the new one is complete, so both are
        held for that time.  Raises MalformedSnapshotError and changes nothing if
        they are no snapshot, and whatever `chunks` raises.
        """
        restored = decode_snapshot(chunks, index)

        def replace() -> None:
            wake(self._applying.replace(restored, index))

        if is_main_thread():  # at the start of a process
            _look_elsewhere(replace)
        else:
            replace()


def check_readable(state: KeyValueState) -> None:
    """Raise ConfigurationError if no node of this process applies anything to it, ever."""
    if isinstance(state._home, NoHome):
        state._home.check()


def value_of(state: KeyValueState, key: str) -> Value | None:
    """As `state.get`, for who is not on the main thread, and was told just now that this process applies."""
    applying = state._applying
    with applying.lock:
        return applying.content.keys.get(key)
