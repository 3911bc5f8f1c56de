"""Having a session opened: which one a process works under, and whether the log knows of it.

The owner of a member's directory opens one with each start, which tells the cluster of its life.  An attached
process opens one of its own, and keeps it when it becomes the owner; then the life is told beside it.
"""

from __future__ import annotations

from raftsvc.core.messages import EntryKind, Life
from raftsvc.core.versions import Versions
from raftsvc.member.envelopes import wrap_open
from raftsvc.member.machine import Machine


class Opening:
    """The session of one process, and the attempts to have it opened.

    session_id:   0 while it is not open, as far as is applied here.
    nonce:        by which it is known.
    tick, tries:  when the next attempt is due, and how many there were.
    """

    __slots__ = (
        "_has_own",
        "_is_announced",
        "_seen_changes",
        "_seen_index",
        "_versions",
        "life",
        "nonce",
        "session_id",
        "tick",
        "tries",
    )

    def __init__(self, life: Life, versions: Versions) -> None:
        """life: this start of the node; of an attached process one without a counter, whose nonce is the session's.

        versions: what the code of this process knows.
        """
        self.life = life
        self._versions = versions
        self.nonce = life.nonce
        self.session_id = 0
        self._has_own = not life.counter  # a session that is not the owner's
        self._is_announced = False  # the life, to the cluster
        self._seen_index = 0
        self._seen_changes = -1  # of the sessions, when they were looked at last
        self.tick = 0
        self.tries = 0

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to be opened."""
        return self._is_announced and self.session_id > 0

    def follow(self, machine: Machine, node_id: int) -> bool:
        """Learn what is open as of what is applied; whether the session that there was has been closed."""
        sessions, former = machine.sessions, self.session_id
        self._seen_index = machine.applied_index
        if sessions.changes == self._seen_changes:
            return False  # as after almost every batch
        self._seen_changes = sessions.changes
        self._is_announced = not self.life.counter or sessions.life_of(node_id) == self.life
        if not self._has_own:
            self.session_id = sessions.owner_of(node_id) if self._is_announced else 0
        elif sessions.get(former, self.nonce) is None:
            self.session_id = sessions.find(node_id, self.nonce)
        if self.is_done:
            self.tries = 0
        return self._has_own and former > 0 and former != self.session_id

    def look_again(self) -> None:
        """Life or nonce are others, and what is open may not be theirs."""
        self._seen_changes = -1

    def proposals(self, node_id: int) -> list[tuple[EntryKind, bytes]]:
        """What opens it."""
        wanted = [] if self._is_announced else [self.life]
        if self._has_own and not self.session_id:
            wanted.append(Life(0, self.nonce))
        return [
            (EntryKind.NORMAL, wrap_open(node_id, life.nonce, life.counter, self._seen_index, self._versions))
            for life in wanted
        ]
