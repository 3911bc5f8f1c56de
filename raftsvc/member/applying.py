"""The apply queue: committed entries on their way through the machine, and how far they came.

`apply` runs the State's code and is called without the lock, by one thread at a time; all
else under it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from raftsvc.core.membership import Configuration
from raftsvc.core.messages import Entry
from raftsvc.member.deadlines import Deadlines
from raftsvc.member.handoff import Amount
from raftsvc.member.health import Health
from raftsvc.member.machine import Answer, Machine
from raftsvc.member.snapshots import Snapshots
from raftsvc.state import ReportingState

_FEW_ENTRIES: Final = 16
_FEW_BYTES: Final = 64 * 1024
_MUCH_BYTES = 1024 * 1024
_MUCH_ENTRIES: Final = 1024


@dataclass(frozen=True, slots=True)
class Restore:
    """To be done instead of applying: the State restarts from the stored snapshot, at least at `index`."""

    index: int


Work = Sequence[Sequence[Entry] | Restore]


class Applying:
    """What is to be applied at one node."""

    __slots__ = (
        "_backlog_bytes",
        "_health",
        "_is_under_way",
        "_reporting",
        "_snapshots",
        "_taken_bytes",
        "_waiting",
        "applied_config",
        "applied_index",
        "applied_time_ms",
        "deadlines",
        "is_restoring",
        "machine",
        "max_backlog_bytes",
        "warning",
    )

    def __init__(self, machine: Machine, snapshots: Snapshots, health: Health, max_backlog_bytes: int) -> None:
        self.max_backlog_bytes = max_backlog_bytes
        self.machine = machine
        self._snapshots = snapshots
        self._health = health
        self._waiting: deque[Sequence[Entry] | Restore] = deque()
        self._backlog_bytes = 0
        self._taken_bytes = 0
        self._is_under_way = False
        self.deadlines = Deadlines(machine)
        self.is_restoring = False
        """Or, once applying stopped, whether that was in a snapshot, and not in an entry."""
        self._reporting = machine.state if isinstance(machine.state, ReportingState) else None
        self.warning: str | None = None
        """What the State said last that people should see to."""
        self._ask()
        self.applied_index = 0
        """As of the last batch that ended; the machine may be ahead.  May be looked at without the lock."""
        self.applied_time_ms = 0
        self.applied_config = Configuration()
        self.note_applied()

    @property
    def is_due(self) -> bool:
        """Whether something waits to be applied, and may be."""
        return bool(self._waiting) and self._health.may_apply

    @property
    def is_at_work(self) -> bool:
        """Whether something is being applied, or waits for it."""
        return (self._is_under_way or bool(self._waiting)) and self._health.may_apply

    @property
    def is_overfull(self) -> bool:
        """Whether so much waits that the log has to wait too: the State is slower than the cluster."""
        return self._backlog_bytes > self.max_backlog_bytes

    @property
    def backlog_bytes(self) -> int:
        """How much is committed and not known to be applied."""
        return self._backlog_bytes

    def amount(self) -> Amount:
        """How much waits to be applied; a restart of the State counts as more than many entries."""
        waiting = self._waiting
        if not waiting or not self._health.may_apply:
            return Amount.NOTHING
        count = sum([_MUCH_ENTRIES + 1 if isinstance(items, Restore) else len(items) for items in waiting])
        if self._backlog_bytes > _MUCH_BYTES or count > _MUCH_ENTRIES:
            return Amount.MUCH
        return Amount.LITTLE if self._backlog_bytes <= _FEW_BYTES and count <= _FEW_ENTRIES else Amount.MORE

    def add(self, entries: Sequence[Entry]) -> None:
        """Have committed entries applied."""
        self._waiting.append(entries)
        self._backlog_bytes += sum(map(len, entries))

    def add_restore(self, index: int) -> None:
        """Have the State restart from the stored snapshot, which covers `index`."""
        self._waiting.append(Restore(index))

    def begin(self) -> Work:
        """Take everything that waits to be applied."""
        work, self._waiting = self._waiting, deque()
        self._taken_bytes = self._backlog_bytes
        self._is_under_way = True
        return work

    def apply(self, work: Work) -> tuple[list[Answer], BaseException | None]:
        """Apply `work`: the answers so far, and what the State raised, at which applying stops."""
        answers: list[Answer] = []
        try:
            for items in work:
                if isinstance(items, Restore):
                    self.is_restoring = True
                    self._snapshots.restore(items.index)
                    self.is_restoring = False
                else:
                    self.machine.apply(items, answers)
                    self._snapshots.bytes_since += sum(map(len, items))
            self._ask()
        except BaseException as error:  # of the State, whatever it is: applying stops at this entry
            return answers, error
        return answers, None

    def _ask(self) -> None:
        """Ask the State what it waits for, and what is to be said of it."""
        self.deadlines.ask()
        reporting: Any = self._reporting  # what it returns may be anything, whatever it should be
        if reporting is not None:
            try:
                warning: object = reporting.warning()
                if warning is None:
                    self.warning = None
                elif isinstance(warning, str):
                    self.warning = str(warning) or None
                else:
                    self.warning = f"warning() of the State returned {warning!r}"
            except Exception as error:  # of the State, whatever it is: what is applied stays applied
                self.warning = f"warning() of the State raised {error!r}"

    def note_applied(self) -> None:
        """A batch ended."""
        if self.machine.applied_index < self.applied_index:
            raise RuntimeError(f"applied is entry {self.machine.applied_index}, and was entry {self.applied_index}")
        self.applied_index = self.machine.applied_index
        self.applied_time_ms = self.machine.applied_time_ms
        self.applied_config = self.machine.config
        self._backlog_bytes -= self._taken_bytes
        self._taken_bytes = 0
        self._is_under_way = False
