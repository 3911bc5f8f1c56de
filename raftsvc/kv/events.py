"""What whoever watches the key-value store is told: what happened to a key, or that too much did (`kv.history`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from raftsvc.errors import RaftError
from raftsvc.kv.history import Change
from raftsvc.kv.pages import Value

_KINDS = ("set", "delete", "expire")

MAX_EVENTS = 10_000
MAX_EVENT_BYTES = 16 * 1024 * 1024


class Compacted(RaftError):
    """What is asked for from `index` on is not kept any more, or is of another cluster.  List anew, and go on there.

    kept_after: the oldest position from which this process has all; None: of that cluster it has nothing.
    """

    http_status = 410
    http_detail = "What happened since then is not kept any more; list anew."

    def __init__(self, message: str, kept_after: int | None) -> None:
        super().__init__(message)
        self.kept_after = kept_after


@dataclass(frozen=True, slots=True)
class Event:
    """One key changed.

    kind:     "set": it was written, by a counter too; "delete"; "expire": its time was over.
    key:      which.
    value:    what it has now; None: there is no such key any more.
    index:    of the log entry that did it: the version of what was written.
    previous: what it had before, with its version; None: there was no such key.
    is_listed: whether this is not how it came about, but what there is, or is no more, as it was found by listing:
               what `KeyValue.on_change` tells first, and where something was missed.  Then there is no `previous`.
    """

    kind: str
    key: str
    value: bytes | None
    index: int
    previous: Value | None
    is_listed: bool = False


Happened: TypeAlias = list[tuple[int, list[Event]]]
"""The events of some entries, each with its index."""


def event_of(change: Change, cut: int) -> Event:
    """The event, with the first `cut` characters of the key left out."""
    index, kind, key, value, former = change
    return Event(_KINDS[kind], key[cut:], value, index, None if former is None else Value(*former))


def happened(changes: Iterable[Change], prefix: str, cut: int) -> Happened:
    """The events of those changes that are of keys below `prefix`, with so many of their characters left out."""
    found: Happened = []
    for change in changes:
        index, key = change[0], change[2]
        if key.startswith(prefix) and len(key) > cut:
            if not found or found[-1][0] != index:
                found.append((index, []))
            found[-1][1].append(event_of(change, cut))
    return found
