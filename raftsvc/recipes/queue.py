"""Queues: work that is handed to whoever comes first, until somebody says that it is done."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

from raftsvc.errors import ConfigurationError, NotApplied, OutcomeUnknown, StoppedError
from raftsvc.kv import Hold, KeyValue, LostError, Operation, if_held, instructions
from raftsvc.kv.items import DEAD
from raftsvc.kv.leases import as_waited, may_pass
from raftsvc.kv.queues import Item as Given

_LOOK_SECONDS = 30.0
_PAUSE_SECONDS = 0.2


class Queue:
    """Work for whoever comes first.  Made by `KeyValue.queue`.

        mail = store.queue("mail")
        mail.put(b"to: you")
        while item := mail.get(timeout=30):
            with item:  # acknowledged at its end, or given back if something is raised
                send(item.value)

    What was put is durable, and stays until it is acknowledged, which only who has it can: it is never handed out again
    after that, and never lost before.  One has an item at a time.  It is handed out again if whoever had it gave it
    back, died or was not heard of for `ttl`, or had it for `within` seconds: so what was begun may be done twice, or by
    two at once where one was frozen.  What must not happen twice even then is done with `Item.ack(kv.set(...))`, or
    looks at `Item.fence`.

    First in, first out: items are handed out in the order in which they were put, and to those who wait in the order in
    which they came, wherever they wait.  What comes back is handed out again at once, before all that came later.
    A `get` waits without asking again, and whoever is granted an item is woken, and nobody else.

    ttl:       in seconds, as in `KeyValue.claim`: so long after a process died others have what it had.
    within:    in seconds, counted by the clocks of who has it from when he got it, None: for as long as he lives.  A
               process gives back by itself what one of its threads had for longer.
    max_tries: for what is put by this object: what was handed out and came back so often is put into the queue `dead`
               instead, as it is.  None: it comes back for ever, and may hold up all that come later.
    """

    def __init__(
        self,
        store: KeyValue,
        name: str,
        ttl: float = 15.0,
        within: float | None = None,
        max_tries: int | None = None,
    ) -> None:
        """See `KeyValue.queue`."""
        self._store = store
        self._given = name
        self._name = f"queue:{name}"
        self._ttl = ttl
        self._within = within
        self._max_tries = max_tries

    def put(self, value: bytes | bytearray | memoryview, *operations: Operation, timeout: float = 10.0) -> int:
        """Have another item at its end; returns its id, which is higher than that of any before.

        operations: conditions, and effects on keys, of the same transaction: all of it happens, or nothing.

        Raises as `KeyValue.transaction`: after OutcomeUnknown it may be there, and to put it again makes two of it.
        """
        return self.put_many([value], *operations, timeout=timeout)[0]

    def put_many(
        self, values: Iterable[bytes | bytearray | memoryview], *operations: Operation, timeout: float = 10.0
    ) -> list[int]:
        """As `put`, of several, all of them or none; returns their ids."""
        if isinstance(values, (str, bytes, bytearray, memoryview)) or not isinstance(values, Iterable):
            raise TypeError(f"these are several values, such as a list has, and not {values!r:.100}")
        items = [instructions.put(self._name, value, self._max_tries) for value in values]
        if not items:
            raise ValueError("there is nothing to put")
        last = self._store.perform([*operations, *items], timeout).answer
        assert isinstance(last, int), "the cluster keeps an int"
        return [*range(last - len(items) + 1, last + 1)]

    def get(self, blocking: bool = True, timeout: float | None = None) -> Item | None:
        """Be handed out the first item that nobody has; None if there was none in time, or, unless `blocking`, at once.

        timeout: in seconds; None: wait for however long it takes; 0: as unless `blocking`.  Raises as `KeyValue.claim`.
        """
        blocking, timeout = as_waited(blocking, timeout)
        taken = self._store.take(
            self._name, within=self._within, ttl=self._ttl, data=None, blocking=blocking, timeout=timeout
        )
        return None if taken is None else Item(self._store, self._name, *taken)

    def __iter__(self) -> Iterator[Item]:
        """One item after the other, waiting for each without end."""
        while True:
            item = self.get(timeout=_LOOK_SECONDS)
            if item is not None:
                yield item

    def counts(self, timeout: float = 5.0, *, max_age: float | None = None) -> tuple[int, int]:
        """How many items nobody has, and how many somebody, as of a moment no earlier than this call."""
        return self._store.items(self._name, timeout, max_age=max_age)

    def __len__(self) -> int:
        """How many items are in it, those included that somebody has."""
        return sum(self.counts())

    def __bool__(self) -> bool:
        """It is one, whatever is in it."""
        return True

    @property
    def dead(self) -> Queue:
        """The queue of what came back `max_tries` times: items of their own, with new ids, that are tried for ever."""
        return Queue(self._store, f"{self._given}{DEAD}", self._ttl, self._within)


class Item:
    """What this process was handed out, and nobody else has.

    value: what was put.
    id:    rises along the queue, and no other item ever has it.
    tries: how often it was handed out to somebody and came back, and this time.
    """

    def __init__(self, store: KeyValue, queue: str, hold: Hold, given: Given) -> None:
        self.value = given.value
        self.id = given.id
        self.tries = given.tries
        self._given = given
        self._store = store
        self._queue = queue
        self._hold = hold
        self._is_settled = False  # whoever has it said what becomes of it
        self._wanted: tuple[Operation, ...] = ()  # to be done with it, as was asked last and may yet be done
        self._unknown: list[list[Operation]] = []  # what was asked, each time that nobody answered

    @property
    def name(self) -> str:
        """In the whole store, for `kv.if_held(item)`."""
        return self._given.name

    @property
    def fence(self) -> int:
        """Higher than that of whoever was handed out this item before."""
        return self._given.fence

    @property
    def is_held(self) -> bool:
        """Whether it is this one's, as of now, by the clocks of this machine."""
        return self._hold.is_held

    @property
    def lost(self) -> threading.Event:
        """Set once it counts as lost: it is, or will be, handed out to another."""
        return self._hold.lost

    def ensure_held(self) -> None:
        """Raise LostError unless it is this one's, as of now."""
        self._hold.ensure_held()

    def extend(self, within: float) -> None:
        """Have it for so many seconds from now on, and not as the queue says.  Raises LostError if it is lost."""
        self.ensure_held()
        if instructions.ttl_ms_of(within) == 0:
            raise ConfigurationError("an item is extended by some seconds, of which None is none")
        self._hold.limit(within)

    def ack(self, *operations: Operation, timeout: float = 10.0) -> None:
        """It is done, and gone.

        operations: conditions, and effects on keys, of the same transaction: so what the work comes to is
                    stored once, however often it was done.

        Raises LostError, and nothing is done, if it is another's meanwhile, or was acknowledged; else as
        `KeyValue.transaction`.  After OutcomeUnknown the same may be asked again as long as it `is_held`; a LostError
        that comes later leaves open whether it was done.
        The cluster judges whether it is this one's: so work that ends after it counts as lost here, because the
        Service is being stopped, is acknowledged as long as nobody else was handed it.
        """
        if not self._hold.is_wanted or not self._hold.lease.is_here:
            raise LostError(self.name)
        wanted = [if_held(self), *operations, instructions.ack(self._queue, *self._hold.place[1:])]
        try:
            self._store.transaction(wanted, timeout)
        except OutcomeUnknown:
            self._wanted = operations
            self._unknown.append(wanted)
            raise
        except NotApplied:
            self._wanted = operations
            raise
        except LostError as lost:
            # Under a lease that lasts, only what was asked before can have ended it.
            is_this = bool(self._unknown) and all(each == wanted for each in self._unknown)
            if lost.name != self.name or not is_this or not self.is_held:
                raise
        self._is_settled = True
        self._hold.forget()

    def nack(self, timeout: float = 5.0) -> bool:
        """It is not done: have it handed out again, at once; whether it was this one's up to now.

        What cannot be told within `timeout` seconds is told later, and does not count as a try then.
        """
        self._is_settled = True
        return self._hold.release(timeout)

    def __enter__(self) -> Item:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Acknowledge it, unless that was done or it was given back; if something was raised, give it back.

        What was asked of `ack` in the `with`, and not heard of, is asked again as it was.  Raises LostError if it was
        handed to another meanwhile, or that it is done could not be told; OutcomeUnknown; and else what `ack`
        raises; then it is handed out again.
        """
        if kind is not None:
            self.nack()
        elif not self._is_settled:
            try:
                self._acknowledge()
            except BaseException:
                self.nack(_PAUSE_SECONDS)  # else nobody would have it as long as this process lives
                raise

    def _acknowledge(self) -> None:
        """As long as it takes: what was done must not be done again because nobody could be told in time."""
        while True:
            try:
                return self.ack(*self._wanted)
            except (NotApplied, OutcomeUnknown) as error:
                if may_pass(error) and not self.lost.wait(_PAUSE_SECONDS):
                    continue
                if isinstance(error, OutcomeUnknown) or not (may_pass(error) or isinstance(error, StoppedError)):
                    raise
                # Not as if nothing had been done, and to do it again were safe.
                raise LostError(self.name, "it was done, and nobody could be told: it is handed out again") from error
