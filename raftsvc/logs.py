"""What happened, as lines of the log with fields that programs read, and the last of them kept for an operator.

A record of an event has `raftsvc_event`, its name, and others that begin by `raftsvc_`; docs/events.md has all of them.
The last ones of this process are kept whatever the configuration of the log lets pass, for `raftsvc sysdump`.
No field, and no text, is a secret, a key or a value.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping
from typing import Final

KEPT: Final = 500
EVENTS: Final = {
    "leader": "another node leads, or the first that this one hears of",
    "leader-unknown": "this node knows no leader for now",
    "quorum-lost": "no leader was heard for three election timeouts: there is no majority, or not for this node",
    "quorum-regained": "a leader is heard again",
    "condition": "something is wrong with the node: `raftsvc_condition` says what",
    "condition-over": "it is over",
    "failed": "the node takes no further part",
    "halted": "the node applies no more",
    "doubled": "of a member there are two, or one that went back",
    "state-warning": "the State warns of something, or not any more",
    "member-added": "a node is a member now",
    "member-removed": "a member was removed",
    "member-moved": "a member is reached elsewhere",
    "voter-added": "a member votes now",
    "version-raised": "another version is effective",
    "snapshot-taken": "a snapshot was stored",
    "snapshot-restored": "the State started from a snapshot that the leader sent",
    "founded": "this node founded a cluster",
    "joined": "this node joined a cluster",
    "resumed": "this node goes on as the member that its directory is of",
    "formed": "this node is a member of a cluster that formed itself",
    "forming": "the cluster is not formed yet, and whom it waits for has changed",
    "taken-over": "this process owns the directory of another that ended",
    "stopped": "this node was stopped",
    "clock-off": "the clock of this machine is far from those of the voters",
    "clock-near": "it is near them again",
    "peer-lost": "a member is not reached",
    "peer-reached": "it is reached again",
    "file-renewed": "what is new in a file that is watched is used",
    "file-refused": "what is new in it is wrong, and not used",
    "file-outdated": "what is in it is in use, and others will refuse it",
    "file-mended": "it is as it should be again",
    "certificate-expires": "the certificate in use expires within two weeks",
}
"""All there are, and what each means."""

NOTHING: Final[Mapping[str, object]] = {}
"""The fields of what is no event."""
_kept: deque[dict[str, object]] = deque(maxlen=KEPT)  # appended to by any thread; each is never changed


def what(event: str, **fields: object) -> dict[str, object]:
    """The fields of the record of an event, for `extra`."""
    found: dict[str, object] = {"raftsvc_event": event}
    for name, value in fields.items():
        found["raftsvc_" + name] = value
    return found


def tell(
    logger: logging.Logger,
    level: int,
    text: str,
    fields: Mapping[str, object],
    error: BaseException | None = None,
) -> None:
    """Log a line, whose fields are those of `what`, and keep it."""
    _kept.append({"time": time.time(), "level": logging.getLevelName(level), "text": text, **fields})
    logger.log(level, "%s", text, exc_info=error, extra=dict(fields))


def kept() -> list[dict[str, object]]:
    """The last ones of this process, the oldest first; JSON-compatible as far as their fields are."""
    return list(_kept)
