"""What only a member does, asked of the one on this host by its directory, as its user may.

Whoever may open the socket in the directory may do all that the node's own process does: it has the same user, who
can read the directory and stop the process anyway.  From elsewhere, with whatever key, nobody may.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from raftsvc.client.attempts import LostError, NotSentError
from raftsvc.client.neighbors import Neighbor
from raftsvc.errors import NotApplied, OutcomeUnknown, ReadTimeoutError

_LOOKS = frozenset({"status", "members", "dump"})
"""What changes nothing."""


class Owner:
    """The process that owns a directory just now.  Thread-safe; every call ends by its timeout, in seconds.

    Beside what the methods of `Service` of the same names raise, each raises NotApplied if nobody was asked, and
    OutcomeUnknown if no answer came: it may be done, or may yet be; of what only looks, ReadTimeoutError.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """directory: of a node that has a port of its own (`listen=`)."""
        self._neighbor = Neighbor(os.path.abspath(directory))

    def status(self, timeout: float = 5.0) -> dict[str, object]:
        """A picture of the node, also of one that belongs to no cluster yet; see `Service.status`."""
        return self._do("status", {}, timeout)

    def init(self, timeout: float = 10.0) -> None:
        """Have the node found a cluster of which it is the only member."""
        self._do("init", {}, timeout)

    def join(self, boot_url: str, timeout: float = 60.0) -> None:
        """Have the node join the cluster of which a member is at `boot_url`."""
        self._do("join", {"boot_url": boot_url}, timeout)

    def evict(self, addr: str, timeout: float = 60.0, *, replace: bool = False) -> None:
        """Remove the member at `addr`, or of that id; see `Service.evict`."""
        self._do("evict", {"addr": addr, "replace": replace}, timeout)

    def transfer(self, addr: str | None = None, timeout: float = 10.0) -> None:
        """Have the node, which has to lead, hand that over; see `Service.transfer`."""
        self._do("transfer", {"addr": addr}, timeout)

    def members(self, timeout: float = 5.0) -> dict[str, dict[str, object]]:
        """What each member says of itself, asked by the owner, by its id.

        `status`, as `Service.status` has it, and the `seconds` of one answer; or `why` there is none.
        """
        return {i: told for i, told in self._do("members", {}, timeout).items() if isinstance(told, dict)}

    def dump(self, timeout: float = 10.0) -> dict[str, object]:
        """What a bug report needs of the owner's process and of the members, without secrets; see `raftsvc.facts`."""
        return self._do("dump", {}, timeout)

    def drain(self, timeout: float = 10.0, *, undo: bool = False) -> None:
        """Have the node lead no more, and its processes be not ready, until it is started anew, or `undo`."""
        self._do("drain", {"undo": undo}, timeout)

    def backup(self, file: str, timeout: float = 3600.0) -> dict[str, object]:
        """Have the owner write a backup to that file, an absolute path; what that says of itself: `Service.backup`."""
        return self._do("backup", {"file": file}, timeout)

    def store(self, index: int | None, is_whole: bool, timeout: float) -> tuple[int, int]:
        """Have the owner store its State in the directory; of which entry that is, and the node's id.

        index: of it, or later; None: that has all which was written before.
        is_whole: what is stored is read to its end, and stored anew if it is damaged.
        """
        told = self._do("store", {"index": index, "is_whole": is_whole}, timeout)
        return int(str(told["index"])), int(str(told["node"]))

    def _do(self, what: str, arguments: Mapping[str, object], timeout: float) -> dict[str, object]:
        try:
            return self._neighbor.do(what, arguments, timeout)
        except NotSentError as error:
            raise NotApplied(f"nobody was asked: {error}") from error
        except LostError as error:
            if what in _LOOKS:
                raise ReadTimeoutError(f"the process of the node does not answer: {error}") from error
            raise OutcomeUnknown(f"whether it is done is not known: {error}") from error
