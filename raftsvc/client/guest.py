"""In the place of a Service, in a process that is not to have a node: a client of the node of this host.

What a client can do is done.  What an application says while it is loaded, such as who is to be told of what, is taken
and comes to nothing, so that it can be loaded.  What takes a node, or a State that is kept current here, is refused
where it is called.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from raftsvc.aio import AsyncService
from raftsvc.callables import check_function
from raftsvc.client.connection import Connection
from raftsvc.errors import ConfigurationError
from raftsvc.options import check_watched
from raftsvc.timeouts import check_timeout
from raftsvc.watched import watched_file

logger = logging.getLogger("raftsvc")

_OF_NODES = frozenset(
    {
        "evict",
        "init",
        "is_live",
        "is_ready",
        "join",
        "log_time",
        "propose_async",
        "propose_many",
        "transfer",
        "wait_applied",
        "wsgi_app",
    }
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

    @property
    def aio(self) -> AsyncService:
        """What it does, for coroutines; see `Service.aio`."""
        return AsyncService(self)

    def wait_formed(self, timeout: float = 60.0) -> None:
        """Return at once: here is no node for which there was anything to wait, and each call waits for itself."""
        check_timeout(timeout)

    def pass_over(self, what: str) -> None:
        """Have the log say of what was declared that nothing comes of it in this process."""
        logger.info("%s: not in this process, %s, which is a client of the server's node", what, self._who)

    def add_listener(self, listener: Callable[[Any], object]) -> Callable[[], None]:
        """It is told nothing, for here is no node of which it could be told; returns what does nothing."""
        check_function(listener, "a listener")
        self.pass_over("what is to be told of events")
        return _nothing

    def watch_file(self, name: str, path: str | os.PathLike[str], use: Callable[[bytes], str]) -> Callable[[], None]:
        """Have what is in the file used now, once; see `Service.watch_file`."""
        check_watched(name, path, use)
        watched_file(name, os.fspath(path), use)
        return _nothing

    @property
    def operator_app(self) -> Unserved:
        """What can be mounted, and is not served."""
        return Unserved(partial(self._refuse, "operator_app"))

    def _refuse(self, name: str, *args: object, **kwargs: object) -> NoReturn:
        raise ConfigurationError(
            f"{name} takes a node, and this process, {self._who}, has none: it is a client of the one in its "
            "directory. Call it where the server calls, or only there"
        )

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., object]) -> NoReturn:
        """In the place of the WSGI callable that a Service is; raises ConfigurationError."""
        self._refuse("wsgi_app")

    def __getattr__(self, name: str) -> Any:
        if name not in _OF_NODES:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return partial(self._refuse, name)


class Unserved:
    """In the place of a WSGI application of a node, where nobody serves."""

    def __init__(self, refuse: Callable[..., NoReturn]) -> None:
        self._refuse = refuse

    def limited(self, *, read_only: bool = False, who: object = None) -> Unserved:
        """As of `Service.operator_app`."""
        return self

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., object]) -> NoReturn:
        """Raise ConfigurationError."""
        self._refuse()


def _nothing() -> None:
    pass
