"""What simulated clients need of a process, whether it owns its node's directory or is attached to who does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from raftsvc.member.applying import Applying
from raftsvc.member.calls import Calls
from raftsvc.member.reads import Reads
from raftsvc.member.waiters import Call, Read
from raftsvc.testing.replica import Replica
from raftsvc.testing.schedule import Lifetime


class ServingEngine(Protocol):
    """What serves callers in a process."""

    calls: Calls
    reads: Reads
    applying: Applying

    @property
    def node_id(self) -> int: ...
    def submit(self, call: Call) -> bool: ...
    def submit_read(self, read: Read) -> bool: ...
    def is_current(self) -> bool: ...


class Serving(Protocol):
    """A process that clients call in."""

    @property
    def name(self) -> str: ...
    @property
    def life(self) -> Lifetime: ...
    @property
    def replica(self) -> Replica: ...
    @property
    def engine(self) -> ServingEngine: ...
    def do(self, step: Callable[[Any], None]) -> None: ...
