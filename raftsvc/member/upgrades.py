"""When the effective version rises: once every member is known to know more.

What a member's code knows is in the log: whoever opens a session says it (`sessions.Session.versions`),
so it is known of each of its lives from an entry on.  The leader raises the version to the least of
what all members reported, voters and learners.  That is a change of the configuration, of which
there is one at a time, so nobody is let in beside it who knows less (`core.membership`).

A report counts for the life that made it.  Of a member that was started since, which shows by what
it says, nothing is known until its new session is open; nor while entries that open or void one
are in the log and not applied here.  So at the entry that raises the version every member has
reported it before, in the log and by its latest life there.  A member that is started with older code after that
meets the raise, and stops.

Used under the lock of the node.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

from raftsvc.core.membership import ConfChange
from raftsvc.core.messages import ENTRY_OVERHEAD_BYTES, EntryKind, Life, kind_of
from raftsvc.core.raft import ProposalRefused, Raft, Role
from raftsvc.core.versions import Versions, latest, least
from raftsvc.member.envelopes import OPEN, VOID
from raftsvc.member.lives import Lives
from raftsvc.member.machine import Machine
from raftsvc.member.sessions import VOID_LIFE

_REPORTING: Final = (bytes([OPEN]), bytes([VOID]))
_MOST_UNAPPLIED: Final = 10_000
"""Entries that are looked through for sessions; behind more it is waited."""


class Upgrades:
    """What one node knows of the members' versions, and, while it leads, does about it."""

    __slots__ = ("_core", "_lives", "_machine", "_note_time", "_reports", "_seen_changes", "effective", "own")

    def __init__(self, core: Raft, machine: Machine, lives: Lives, note_time: Callable[[], None]) -> None:
        """note_time: see `Timekeeper.note`."""
        self._core = core
        self._machine = machine
        self._lives = lives
        self._note_time = note_time
        self._seen_changes = -1
        self._reports: dict[int, tuple[Life, Versions | None]] = {}
        self.own = machine.own
        self.effective = machine.versions
        """As of what is applied."""

    def applied(self) -> None:
        """Entries were applied, or a snapshot was: what do they say of versions?"""
        machine = self._machine
        if machine.life_changes == self._seen_changes:
            return
        self._seen_changes = machine.life_changes
        if machine.versions != self.effective:
            self.effective = machine.versions
            # That it is committed is written down at once, so that older code that is started here next is refused
            # by what the log says, and does not find it out only as it applies.
            self._core.output.note_due(machine.applied_index)
        self._reports = {i: (machine.life_of(i), machine.sessions.versions_of(i)) for i in machine.config.members}

    def tick(self) -> None:
        """As leader, raise the version if all members know more."""
        core = self._core
        if core.role is not Role.LEADER or not self._is_more_known:
            return
        config = core.config
        reports = [self._report_of(i) for i in config.members]
        known = [report for report in reports if report is not None]
        if len(known) < len(reports):
            return
        target = least(known)
        if target != config.versions and target.covers(config.versions) and not self._may_reports_change:
            self._note_time()
            with suppress(ProposalRefused):  # another change is not committed yet: the next tick tries again
                core.propose((ConfChange.to_raise(target).as_proposal(),))

    def held_back_by(self) -> dict[int, str]:
        """The members that keep what others know from becoming effective, and why."""
        if not self._is_more_known:
            return {}
        wanted = self._latest_known
        held = {}
        for i in sorted(self._core.config.members):
            report = self._report_of(i)
            if self._reports.get(i, (Life(), None))[0] == VOID_LIFE:
                held[i] = "nothing that it says counts, for its directory was copied or put back: evict it"
            elif report is None:
                held[i] = "it has not said yet what its code knows"
            elif not report.covers(wanted):
                held[i] = f"its code knows {report}"
        return held

    @property
    def _latest_known(self) -> Versions:
        return latest([self.effective, *(report for _, report in self._reports.values() if report is not None)])

    @property
    def _is_more_known(self) -> bool:
        """Whether anybody reported more than what is effective."""
        return self._latest_known != self.effective

    def _report_of(self, member: int) -> Versions | None:
        """What the latest life of the member that is known reported, as far as that is applied here; None: nothing."""
        life, report = self._reports.get(member, (Life(), None))
        current = self._lives.own if member == self._core.node_id else self._lives.highest(member)
        return report if life == current else None

    @property
    def _may_reports_change(self) -> bool:
        """Whether the log holds what is not applied, and says something else of who speaks for a member."""
        log = self._core.log
        if log.applied_index < log.offset or log.last_index - log.applied_index > _MOST_UNAPPLIED:
            return True  # a snapshot that was received is yet to be applied, or much else
        if log.applied_index == log.last_index:
            return False
        return any(
            kind_of(entry) is EntryKind.NORMAL and entry[ENTRY_OVERHEAD_BYTES : ENTRY_OVERHEAD_BYTES + 1] in _REPORTING
            for entry in log.entries_from(log.applied_index + 1, 1 << 62)
        )
