"""Readers on their way to an index: a read is current once all that was committed when it came is applied.

`Reads` gathers readers so that one round of the leader serves all that wait (R11).  It is
used under the lock of its node, save for what `handoff.Inbox` says, and never blocks.
"""

from __future__ import annotations

from collections.abc import Callable

from raftsvc.core.raft import Raft, ReadState
from raftsvc.errors import RaftError
from raftsvc.member.calls import Contexts
from raftsvc.member.handoff import Inbox
from raftsvc.member.waiters import Read


class Reads:
    """Readers in three stages: those who just came, those whose index is being asked for, those who wait for it."""

    def __init__(
        self,
        core: Raft,
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
        self._new: list[Read] = []
        self._asked: list[Read] = []
        self._context = 0
        self._asked_tick = 0
        self._applying: list[Read] = []

    def __len__(self) -> int:
        return len(self._new) + len(self._asked) + len(self._applying)

    @property
    def is_due(self) -> bool:
        """Whether `ask` has somebody to ask for, and nobody to wait for.  Callable without the lock."""
        # Each is looked at once, in the order in which reads move; as `Calls.has_unsent`.
        return (bool(self._inbox.reads) or bool(self._new)) and not self._inbox.is_asking

    def _take_in(self) -> None:
        inbox = self._inbox.reads
        while inbox:
            self._new.append(inbox[0])
            inbox.popleft()  # last: whoever looks without the lock finds it here or there

    def withdraw(self, read: Read) -> bool:
        """Give up on `read`; False if it was finished in the meantime."""
        self._take_in()
        for reads in (self._new, self._asked, self._applying):
            if read in reads:
                reads.remove(read)
                return True
        return False

    def ask(self, tick: int) -> None:
        """Ask one index for all readers that came since the last was asked for (R11)."""
        self._take_in()
        if self._context and tick - self._asked_tick >= self._retry_ticks:
            self.ask_again(tick)  # the answer may be lost
        elif not self._context and self._new:
            context = self._contexts.take()
            self._note_time()  # after they came: a lease must hold then, not before
            if self._core.read_index(context):
                self._context, self._asked_tick = context, tick
                self._inbox.is_asking = True
                self._asked, self._new = self._new, []

    def ask_again(self, tick: int) -> None:
        """The leader that was asked may be deposed: a new request for all who wait."""
        self._new = self._asked + self._new
        self._asked = []
        self._end_request()
        self.ask(tick)

    def _end_request(self) -> None:
        self._context = 0
        self._inbox.is_asking = False

    def hear(self, state: ReadState, applied_index: int) -> None:
        """An index was confirmed; a late one, of a request that was given up, says nothing."""
        if state.context != self._context:
            return
        reads, self._asked = self._asked, []
        self._end_request()
        for read in reads:
            read.index = state.index
        self._applying += reads
        # Applied is looked at after the index is known, never before.
        self.applied(applied_index)

    def applied(self, index: int) -> None:
        """Everything up to `index` is applied."""
        if self._applying:
            done = [read for read in self._applying if read.index <= index]
            self._applying = [read for read in self._applying if read.index > index]
            self._inbox.finished.add_reads(done)

    def fail(self, error: RaftError) -> None:
        """Finish every read with `error`."""
        self._take_in()
        reads = self._new + self._asked + self._applying
        self._new, self._asked, self._applying = [], [], []
        self._end_request()
        for read in reads:
            read.error = error
        self._inbox.finished.add_reads(reads)
