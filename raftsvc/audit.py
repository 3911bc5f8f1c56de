"""Who had what done to the cluster: a line each in the log `raftsvc.audit`, once it is over.

Actions come by an operator's key or page (`raftsvc.operator`), and from other processes of this host by the directory
(`raftsvc.visitors`).
"""

from __future__ import annotations

import json
import logging
from typing import Final

from raftsvc.errors import (
    ConfigurationError,
    ExistingClusterError,
    ForkedError,
    InsideStateError,
    LastMemberError,
    MembershipUnchangedError,
    NotLeaderError,
    NotTransferredError,
    OverloadedError,
    RaftError,
    UninitializedError,
    UnknownPeerError,
)

audit = logging.getLogger("raftsvc.audit")
"""Each line is of the level WARNING, or the default configuration of logging would drop it."""

DONE, REFUSED, UNKNOWN, FORBIDDEN = "done", "refused", "unknown", "forbidden"
"""How an action may end; UNKNOWN: it may have taken effect, or may yet."""
_UNCHANGED: Final = (
    MembershipUnchangedError,
    NotTransferredError,
    UnknownPeerError,
    LastMemberError,
    NotLeaderError,
    ConfigurationError,
    ExistingClusterError,
    OverloadedError,
    UninitializedError,
    ForkedError,
    InsideStateError,
)


def outcome_of(error: RaftError) -> str:
    """How an action ended that raised it."""
    return REFUSED if isinstance(error, _UNCHANGED) else UNKNOWN


def write_audit(name: str, way: str, origin: str, what: str, outcome: str, detail: str, seconds: float) -> None:
    """Write a line; nothing in it breaks it."""
    audit.warning(
        "operator=%s way=%s from=%s action=%s outcome=%s seconds=%.3f detail=%s",
        *(json.dumps(each[:300]) for each in (name, way, origin, what, outcome)),
        seconds,
        json.dumps(detail[:600]),
    )
