"""Attempts to change the membership, on their way to a leader's log.  Used under the lock of the node."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from raftsvc.core.membership import ConfChange
from raftsvc.core.messages import Message
from raftsvc.core.raft import ProposalRefused, Raft, Refusal, Role
from raftsvc.member.calls import Contexts, refusal_of


class ChangeAttempt:
    """A membership change on its way, and why it was refused if it was.

    config_index: where the configuration stands that was in force where it was refused.
    """

    __slots__ = ("config_index", "context", "refusal")

    def __init__(self, context: int) -> None:
        self.context = context
        self.refusal: Refusal | None = None
        self.config_index = 0


class Changes:
    """The attempts of one node that are under way."""

    __slots__ = ("_attempts", "_contexts", "_core", "_note_time", "_state_changed")

    def __init__(
        self, core: Raft, contexts: Contexts, state_changed: Callable[[], None], note_time: Callable[[], None]
    ) -> None:
        """state_changed: wakes those who wait for what becomes of an attempt.  note_time: see `Timekeeper.note`."""
        self._note_time = note_time
        self._core = core
        self._state_changed = state_changed
        self._contexts = contexts
        self._attempts: dict[int, ChangeAttempt] = {}

    def attempt(self, change: ConfChange) -> ChangeAttempt:
        """Try once to have `change` appended by the leader; to be ended by `end`."""
        attempt = ChangeAttempt(self._contexts.take())
        self._attempts[attempt.context] = attempt
        if self._core.role is Role.LEADER:
            self._note_time()
            try:
                self._core.propose((change.as_proposal(),))
            except ProposalRefused as refused:
                attempt.refusal = refused.refusal
                attempt.config_index = self._core.log.configs.latest_index
        else:
            self._core.forward((change.as_proposal(),), attempt.context)
        return attempt

    def suggest(self, change: ConfChange) -> None:
        """Have `change` proposed, and hear no more of it: what shows that it was in vain is that it is still wanted."""
        if self._core.role is Role.LEADER:
            self._note_time()
            with suppress(ProposalRefused):
                self._core.propose((change.as_proposal(),))
        elif self._core.leader_id:
            self._core.forward((change.as_proposal(),), 0, self._core.leader_id)

    def end(self, attempt: ChangeAttempt) -> None:
        """Hear no more of it."""
        self._attempts.pop(attempt.context, None)

    def hear(self, m: Message) -> bool:
        """Take a leader's answer, the last to that attempt; whether it is to an attempt."""
        attempt = self._attempts.pop(m.context, None)
        if attempt is None:
            return False
        if m.reject:
            attempt.refusal = refusal_of(m)
            attempt.config_index = m.index
            self._state_changed()
        return True

    def clear(self) -> None:
        """The leader that they were sent to is gone."""
        self._attempts.clear()
