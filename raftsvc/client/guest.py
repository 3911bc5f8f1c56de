"""In the place of a Service, in a process that is not to have a node: a client of the node of this host.

What a client can do is done; what takes a node, or a State that is kept current here, is refused where it is called.
"""

from __future__ import annotations

import os
from typing import Any, NoReturn

from raftsvc.client.connection import Connection
from raftsvc.errors import ConfigurationError

_OF_NODES = frozenset(
    {
        "add_listener",
        "aio",
        "evict",
        "init",
        "is_live",
        "is_ready",
        "join",
        "log_time",
        "operator_app",
        "propose_async",
        "propose_many",
    }
    | {"transfer", "wait_applied", "wait_formed", "watch_file", "wsgi_app"}
)


class Guest(Connection):
    """A client of whoever owns a directory of this host.

    is_leader: no.
    """

    is_leader = False

    def __init__(self, directory: str | os.PathLike[str], who: str) -> None:
        """who: this process is, which is why it has no node."""
        super().__init__([os.path.abspath(directory)], None)
        self._who = who

    def err(self) -> None:
        """None: whether the node can be reached, a call says."""

    def stop(self) -> None:
        """See `close`."""
        self.close()

    def __getattr__(self, name: str) -> Any:
        if name not in _OF_NODES:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

        def refuse(*args: object, **kwargs: object) -> NoReturn:
            raise ConfigurationError(
                f"{name} takes a node, and this process, {self._who}, has none: it is a client of the one in its "
                "directory. Call it where the server calls, or only there"
            )

        if name == "aio":
            refuse()  # it is no method
        return refuse
