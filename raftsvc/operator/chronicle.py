"""What happened lately, as far as this process saw it: for the page alone, bounded, and gone with the process.

What the node itself notices (who leads, who belongs to the cluster, what is wrong) is noted as it happens; how other
members are, as whoever looks at the page comes to know it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from raftsvc.operator.survey import UNKNOWN, UNREACHED, Seen

MAX_EVENTS: Final = 100
_MAX_TEXT: Final = 500
NOTE, TROUBLE, OVER, ACTION = "note", "trouble", "over", "action"
"""Kinds of events: a change, something wrong, that that is over, what an operator did."""


class Chronicle:
    """The latest events.  Thread-safe."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        """now: seconds since 1970; for people."""
        self._now = now
        self._lock = threading.Lock()  # guards all below
        self._events: deque[dict[str, object]] = deque(maxlen=MAX_EVENTS)
        self._members: Mapping[int, str] = {}
        self._error: str | None = None
        self._seen: dict[int, tuple[bool, frozenset[str]]] = {}

    def note(self, kind: str, text: str) -> None:
        """That happened now."""
        with self._lock:
            self._add(kind, text)

    def _add(self, kind: str, text: str) -> None:
        self._events.append({"at_ms": int(self._now() * 1000), "kind": kind, "text": text[:_MAX_TEXT]})

    def events(self) -> list[dict[str, object]]:
        """The latest last; JSON-compatible."""
        with self._lock:
            return list(self._events)

    def hear(self, event: Any) -> None:
        """What the Service tells its listeners: a `raftsvc.Event`."""
        with self._lock:
            if event.kind == "leader":
                who = f"{event.leader_addr} leads" if event.leader_addr else "no leader is known"
                self._add(NOTE if event.leader_addr else TROUBLE, f"{who} (term {event.term})")
            elif event.kind == "members":
                self._note_members(event.members)
            elif event.kind == "error":
                error = None if event.error is None else f"{type(event.error).__name__}: {event.error}"
                if error is not None:
                    self._add(TROUBLE, f"this node: {error}")
                elif self._error is not None:
                    self._add(OVER, "this node: what was wrong is over")
                self._error = error
            elif event.kind == "stopped":
                self._add(TROUBLE, "this node takes no part any more")

    def _note_members(self, members: Mapping[int, str]) -> None:
        before, self._members = self._members, dict(members)
        for node_id, addr in members.items():
            if node_id not in before:
                self._add(NOTE, f"member {node_id} at {addr} belongs to the cluster")
            elif before[node_id] != addr:
                self._add(NOTE, f"member {node_id} is at {addr or 'an unknown address'} now")
        for node_id in before:
            if node_id not in members:
                self._add(NOTE, f"member {node_id}, which was at {before[node_id]}, belongs to it no more")

    def compare(self, own_id: int | None, members: Sequence[Seen]) -> None:
        """Note what is another way with other members than it was when somebody looked last."""
        with self._lock:
            for member in members:
                if member.id == own_id or member.state == UNKNOWN:
                    continue
                is_lost, conditions = member.state == UNREACHED, frozenset(member.conditions)
                was_lost, former = self._seen.get(member.id, (False, frozenset()))
                self._seen[member.id] = is_lost, former if is_lost else conditions
                name = f"member {member.id} at {member.addr}"
                if is_lost != was_lost:
                    text = f"{name} does not answer: {member.why}" if is_lost else f"{name} answers again"
                    self._add(TROUBLE if is_lost else OVER, text)
                if not is_lost:
                    for condition in sorted(conditions - former):
                        self._add(TROUBLE, f"{name}: {condition}")
                    for condition in sorted(former - conditions):
                        self._add(OVER, f"{name}: {condition} is over")
            known = {member.id for member in members}
            self._seen = {node_id: seen for node_id, seen in self._seen.items() if node_id in known}
