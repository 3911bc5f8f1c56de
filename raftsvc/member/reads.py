"""Readers on their way to an index: a read is current once all that was committed when it came is applied.

`Reads` gathers readers so that one round of the leader serves all that wait (R11).  It is
used under the lock of its node, save for what `handoff.Inbox` says, and never blocks.

A request may be lost, so it is made again after a while; that takes nothing back.  Requests
are numbered, and the answer to one serves all who had come when it was made, whichever
leader gives it and however late: what it confirms was committed no earlier than that.
So a network on which answers take longer than the next request only makes readers wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from raftsvc.core.raft import ReadState
from raftsvc.errors import RaftError
from raftsvc.member.calls import Carrier, Contexts
from raftsvc.member.handoff import Inbox
from raftsvc.member.waiters import Read


class Reads:
    """Readers in three stages: those who just came, those whose index is being asked for, those who wait for it."""

    def __init__(
        self,
        core: Carrier,
        contexts: Contexts,
        retry_ticks: int,
        inbox: Inbox,
        note_time: Callable[[], None],
    ) -> None:
        """note_time: has the core know what time it is now."""
        self._core = core
        self._contexts = contexts
        self._retry_ticks = retry_ticks
        self._note_time = note_time
        self._inbox = inbox
        # Each as the keys of a dict, in their order: many may give up at once, and each has to be found for that.
        self._new: dict[Read, None] = {}
        self._asked: deque[tuple[int, dict[Read, None]]] = deque()
        """Those being asked for, with the first request that each batch is in; the latest is for all of them."""
        self._latest = 0
        self._asked_tick = 0
        self._applying: dict[Read, None] = {}

    def become_owner(self, core: Carrier, contexts: Contexts, note_time: Callable[[], None]) -> None:
        """This process owns the node from now on: whom it asked for before it asks for anew."""
        self._core = core
        self._contexts = contexts
        self._note_time = note_time
        self._new = dict.fromkeys([read for _, reads in self._asked for read in reads] + list(self._new))
        self._asked.clear()  # their numbers, and its own, have no order
        self._inbox.is_asking = False

    def __len__(self) -> int:
        return len(self._new) + sum([len(reads) for _, reads in self._asked]) + len(self._applying)

    @property
    def request_count(self) -> int:
        """How many requests there are whose answers are waited for."""
        return len(self._asked)

    @property
    def is_due(self) -> bool:
        """Whether `ask` has somebody to ask for, and nobody to wait for.  Callable without the lock."""
        # Each is looked at once, in the order in which reads move; as `Calls.has_unsent`.
        return (bool(self._inbox.reads) or bool(self._new)) and not self._inbox.is_asking

    def _take_in(self) -> None:
        inbox = self._inbox.reads
        while inbox:
            self._new[inbox[0]] = None
            inbox.popleft()  # last: whoever looks without the lock finds it here or there

    def withdraw(self, read: Read) -> bool:
        """Give up on `read`; False if it was finished in the meantime."""
        self._take_in()
        for reads in (self._new, *[reads for _, reads in self._asked], self._applying):
            if read in reads:
                del reads[read]
                self._forget_requests_for_nobody()
                return True
        return False

    def _forget_requests_for_nobody(self) -> None:
        """All who were first asked for by a request gave up.  The last stays: its answer, or a tick, ends it."""
        if self._asked:
            *before, last = self._asked
            self._asked = deque([*[batch for batch in before if batch[1]], last])

    def ask(self, tick: int) -> None:
        """Ask one index for all readers that came since the last was asked for (R11)."""
        self._take_in()
        if self._asked and tick - self._asked_tick >= self._retry_ticks:
            self.ask_again(tick)  # the answer may be lost
        elif not self._asked and self._new:
            self._request(tick)

    def ask_again(self, tick: int) -> None:
        """The leader that was asked may be deposed: one more request, for all who wait."""
        self._take_in()
        while self._asked and not self._asked[-1][1]:
            self._asked.pop()
        if self._asked or self._new:
            self._request(tick)
        self._inbox.is_asking = bool(self._asked)

    def _request(self, tick: int) -> None:
        context = self._contexts.take()
        self._note_time()  # after they came: a lease must hold then, not before
        if not self._core.read_index(context):
            return  # no leader is known; once one is, all are asked for
        self._latest, self._asked_tick = context, tick
        if self._new or not self._asked:
            self._asked.append((context, self._new))
            self._new = {}
        self._inbox.is_asking = True

    def hear(self, state: ReadState, applied_index: int) -> None:
        """An index was confirmed, for those who were first asked for by this request or an earlier one."""
        asked, latest = self._asked, self._latest
        if not asked or not asked[0][0] <= state.context <= latest:
            return  # the answer to a former life of this node, or to nobody any more
        while asked and asked[0][0] <= state.context:
            reads = asked.popleft()[1]
            for read in reads:
                read.index = state.index
            self._applying.update(reads)
        self._inbox.is_asking = bool(asked)
        # Applied is looked at after the index is known, never before.
        self.applied(applied_index)

    def applied(self, index: int) -> None:
        """Everything up to `index` is applied."""
        if self._applying:
            done = [read for read in self._applying if read.index <= index]
            self._applying = {read: None for read in self._applying if read.index > index}
            self._inbox.finished.add_reads(done)

    def expect(self, read: Read, index: int, applied_index: int) -> None:
        """Have `read` finished once `index` is applied here, whoever leads."""
        read.index = index
        self._applying[read] = None
        self.applied(applied_index)

    def fail(self, error: RaftError) -> None:
        """Finish every read with `error`."""
        self._take_in()
        reads = [*self._new, *[read for _, batch in self._asked for read in batch], *self._applying]
        self._new, self._applying = {}, {}
        self._asked.clear()
        self._inbox.is_asking = False
        for read in reads:
            read.error = error
        self._inbox.finished.add_reads(reads)
