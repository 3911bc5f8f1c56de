"""What members say of themselves, asked of each by one of them, for an operator who is on its host.

Nothing is decided by it.  Who does not answer in time is told with why.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Mapping
from typing import Any

from raftsvc.transport import Network, UnansweredError, ask_status

logger = logging.getLogger("raftsvc")

_ID = re.compile("[0-9]{1,19}")
MOST_ASKED = 32
"""Members that are asked at once."""
MEMBER_SECONDS = 3.0
"""The longest that one of them may take."""


def ask_members(network: Network, addrs: Mapping[int, str], timeout: float) -> dict[str, object]:
    """By id what each says: `status`, and `seconds` that it took; or `why` not.  JSON-compatible.

    addrs: where each is reached; empty: that is not known.
    """
    found: dict[int, dict[str, object]] = {i: {"why": "it did not answer in time"} for i in addrs}
    deadline = time.monotonic() + min(timeout, MEMBER_SECONDS)
    threads = []
    for number, addr in list(addrs.items())[:MOST_ASKED]:
        thread = threading.Thread(target=_ask, args=(network, number, addr, found), name="raftsvc-survey", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            found[number] = {"why": f"no thread can be started to ask it: {error}"}
        else:
            threads.append(thread)
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return {str(number): dict(told) for number, told in found.copy().items()}


def ask_cluster(
    network: Network, node_id: int, addrs: Mapping[int, str], index: int, timeout: float
) -> dict[str, object]:
    """As `ask_members`, of all but `node_id`, and of those that came since, as members say that are ahead of it.

    index: up to which entry the node knows what is committed.
    """
    deadline = time.monotonic() + timeout
    found = ask_members(network, {i: addr for i, addr in addrs.items() if i != node_id}, timeout)
    came: dict[int, str] = {}
    for told in found.values():
        status = told.get("status") if isinstance(told, Mapping) else None
        if isinstance(status, Mapping):
            came |= {i: addr for i, addr in _listed_ahead(status, index).items() if i not in addrs}
    left = deadline - time.monotonic()
    return {**found, **ask_members(network, came, left)} if came else found


def _listed_ahead(status: Mapping[str, Any], index: int) -> dict[int, str]:
    """The members that a status lists, if it is of somebody who knows more entries."""
    listed, commit_index = status.get("members"), status.get("commit_index")
    if not isinstance(commit_index, int) or commit_index <= index or not isinstance(listed, Mapping):
        return {}
    return {
        int(number): str(member.get("addr") or "")
        for number, member in listed.items()
        if _ID.fullmatch(str(number)) and isinstance(member, Mapping)
    }


def _ask(network: Network, number: int, addr: str, found: dict[int, dict[str, object]]) -> None:
    try:
        if not addr:
            raise UnansweredError("where it is reached is not known")
        status, seconds = ask_status(network, addr, MEMBER_SECONDS)
        found[number] = _told(number, status, seconds)
    except UnansweredError as error:
        found[number] = {"why": str(error)}
    except Exception as error:
        logger.exception("asking member %d at %s failed", number, addr)
        found[number] = {"why": f"asking it failed: {error!r}"}


def _told(number: int, status: Mapping[str, Any], seconds: float) -> dict[str, object]:
    if status.get("node_id") != number:
        return {"why": f"at its address answers member {status.get('node_id')}"}
    return {"status": status, "seconds": seconds}
