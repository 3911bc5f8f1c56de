"""gunicorn's hooks: the node's own port is bound once in the master, and the node leaves before its worker does.

In `gunicorn.conf.py`, where the environment says which port (`raftsvc.kv.start_from_env`):

    from raftsvc.ext.gunicorn import *

or, to say more, or beside hooks of one's own:

    from raftsvc.ext.gunicorn import Hooks

    node = Hooks(listen="0.0.0.0:8001")
    on_starting, on_reload, pre_exec = node.on_starting, node.on_reload, node.pre_exec

    def worker_exit(server, worker):
        node.worker_exit(server, worker)
        ...  # one's own

With `preload_app` the application cannot start its node as it is imported, for that is in the master. Have it done
in a function, give that to `Hooks(start=...)`, and `post_worker_init = node.post_worker_init` calls it in each worker.

All works without them as well: then each owner binds the port itself, and others are refused connections there from the
death of one owner until the next has done so.  A hook that cannot do its part says so in gunicorn's log, and is as good
as absent; but for `on_starting`, which raises what is wrong with the configuration.

The master has raftsvc loaded, so a new version of it comes by a restart, or by USR2, and not by HUP.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import Any

from raftsvc import ports
from raftsvc.addresses import check_listen
from raftsvc.errors import ConfigurationError
from raftsvc.kv.environment import listen_from_env
from raftsvc.service import stop_all

__all__ = ["on_reload", "on_starting", "pre_exec", "worker_exit"]

_BIND_SECONDS = 5.0
"""How long the port may still be that of a server that is ending, before gunicorn starts without it."""
_PAUSE_SECONDS = 0.1


class Hooks:
    """The hooks, each a method with gunicorn's name for it."""

    def __init__(self, listen: str | None = None, start: Callable[[], object] | None = None) -> None:
        """listen: of `raftsvc.start`, spelled alike; None: as the environment says.

        start: called in each worker once it has loaded the application; for one that is loaded before (`preload_app`),
               and cannot start the node as it is imported.

        Raises ConfigurationError.
        """
        if listen is not None:
            check_listen("listen", listen)
        self._listen = listen
        self._start = start

    def on_starting(self, server: Any) -> None:
        """In the master, before it forks: bind the port, or take it from the master before this one (USR2).

        Raises ConfigurationError.
        """
        ports.adopt(os.environ)
        server.cfg.env_orig.pop(ports.VARIABLE, None)
        listen = self._address()
        deadline = time.monotonic() + _BIND_SECONDS
        while True:
            try:
                ports.keep(listen)
                return
            except (OSError, ValueError) as error:
                is_taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
                if not is_taken or time.monotonic() >= deadline:
                    _warn(server, listen, error)
                    return
            time.sleep(_PAUSE_SECONDS)

    def on_reload(self, server: Any) -> None:
        """In the master, before it forks the new workers: bind another port, if the node has another by now."""
        listen = None
        try:
            listen = self._address()
            ports.keep(listen)
        except (ConfigurationError, OSError, ValueError) as error:  # which would end gunicorn
            _warn(server, listen, error)

    def pre_exec(self, server: Any) -> None:
        """In the process that becomes the next master (USR2): hand the port on."""
        ports.hand_on(server.cfg.env_orig)

    def post_worker_init(self, worker: Any) -> None:
        """In a worker that has loaded the application: start the node, if that is to be done here."""
        if self._start is not None:
            self._start()

    def worker_exit(self, server: Any, worker: Any) -> None:
        """In a worker that is about to end, however that came: its node leaves first, within gunicorn's grace."""
        stop_all(float(worker.cfg.graceful_timeout))

    def _address(self) -> str:
        """Which port; empty for none."""
        listen = self._listen if self._listen is not None else listen_from_env(os.environ)
        if listen is None:
            raise ConfigurationError(
                "which port is the node's? The environment says neither RAFTSVC_ADDR nor RAFTSVC_LISTEN: give the "
                'hooks what start has, raftsvc.ext.gunicorn.Hooks(listen="0.0.0.0:8001")'
            )
        return listen


def _warn(server: Any, listen: str | None, error: Exception) -> None:
    server.log.warning(
        "raftsvc: the node's port%s is not kept by the master, and each owner binds it by itself: %s",
        f" {listen}" if listen else "",
        error,
    )


_by_environment = Hooks()
on_starting = _by_environment.on_starting
on_reload = _by_environment.on_reload
pre_exec = _by_environment.pre_exec
worker_exit = _by_environment.worker_exit
