"""Flask: a node by the settings of an application.

    from flask import Flask
    from raftsvc.ext.flask import Raft

    raft = Raft()

    def create_app():
        app = Flask(__name__)
        app.config.from_prefixed_env()  # FLASK_RAFTSVC_DIR and so on; RAFTSVC_DIR in the environment will do too
        raft.init_app(app)

        @app.post("/visits")
        def visit():
            return {"visits": raft.kv.incr("visits")}

        return app

Settings have the names of `raftsvc.kv.start_from_env`: `RAFTSVC_ADDR`, `RAFTSVC_DIR`, `RAFTSVC_INITIAL_CLUSTER` (a
text, or a list) and so on; what is no setting is looked for in the environment.  `init_app` looks whether they make
sense, and starts nothing: the node starts with the first request that this process serves, which waits a while for the
cluster to be formed; or by `raft.start()` in the module that only the server loads, which is better: the nodes find
each other then without a request.  So a factory may run in `flask routes`, `flask shell` and both processes of a
reloader.  In a command of Flask `raft.kv` is a client of the server's node.

With `RAFTSVC_DIR=":temporary:"` an application in a test has a cluster of its own process alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import click
from flask import Flask, current_app
from flask.cli import with_appcontext
from werkzeug.local import LocalProxy
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from raftsvc.answers import error_response
from raftsvc.errors import ConfigurationError, RaftError, StartFailedError
from raftsvc.ext.nodes import TEMPORARY, environ_of, one_node
from raftsvc.kv import KeyValue

__all__ = ["Raft", "current_raft"]

_EXTENSION: Final = "raftsvc"
_MOUNT: Final = "/raft"
_FORMING_SECONDS: Final = 5.0
"""How long a request waits for a cluster that is not formed yet, once in a process."""
_begun_in: Final[set[int]] = set()
"""The processes, by their ids, in which requests need not wait any more."""


class Raft:
    """The node of this process, for any number of applications that share it.  Thread-safe.

    app:     as of `init_app`; None: that is called later, and for each application.
    options: more of `raftsvc.start`, such as `election_timeout=2.0`; what is said here comes before a setting.
    """

    def __init__(self, app: Flask | None = None, **options: Any) -> None:
        """Raises what `init_app` does."""
        self._options = options
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Have `app` start the node with its first request, answer errors by what they mean, and know `flask raft`.

        Where the node has no port of its own (`RAFTSVC_LISTEN` is empty), its peers are served under /raft/, before
        anything of the application.  Settings are read here, once; nothing is started.

        Raises ConfigurationError if settings make no sense, or say something else of the node than those of another
        application of this process; RuntimeError if `app` has a Raft already.
        """
        if _EXTENSION in app.extensions:
            raise RuntimeError(
                "this application has a Raft already: import that one, or use current_raft, and call init_app once"
            )
        one_node.configure(environ_of(app.config), self._options)
        app.extensions[_EXTENSION] = self
        app.register_error_handler(RaftError, error_response)
        app.before_request(partial(_begin, app))
        app.cli.add_command(_command)
        app.shell_context_processor(lambda: {"kv": LocalProxy(one_node.store)})
        if not one_node.listens:
            mounted = DispatcherMiddleware(app.wsgi_app, {_MOUNT: _Peers(app)})
            app.wsgi_app = mounted  # type: ignore[method-assign]

    def start(self) -> KeyValue:
        """Start the node, if it was not, and return its store.  Raises what `raftsvc.kv.start_from_env` does.

        StoppedError, if another thread is starting it, and takes long.
        """
        return one_node.store()

    @property
    def kv(self) -> KeyValue:
        """The store; starts the node, if it was not, as `start` does.  Its `service` is the node's Service."""
        return one_node.store()


class _Peers:
    """What the node's peers ask, where the application's server has their requests."""

    def __init__(self, app: Flask) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        try:
            service = _begun(self._app).service
        except RaftError as error:
            return error_response(error)(environ, start_response)
        answer: Iterable[bytes] = service(environ, start_response)
        return answer


def _begun(app: Flask) -> KeyValue:
    """The store, for a request.  That a node cannot be started is for its operator, and no fault of a client's."""
    try:
        return one_node.store()
    except RaftError as error:
        app.logger.error("the node of raftsvc cannot be started: %s", error)
        if isinstance(error, ConfigurationError):
            raise StartFailedError(f"the node of this process cannot be started: {error}") from error
        raise


def _begin(app: Flask) -> None:
    """Before each request: the node is there.  Those of the first moments wait for its cluster to be formed."""
    store = _begun(app)
    if os.getpid() not in _begun_in:
        with suppress(RaftError):  # which whoever uses the store is told
            store.service.wait_formed(_FORMING_SECONDS)
        _begun_in.add(os.getpid())


class _Through(click.Command):
    """A command whose arguments are another's to read: its flags, `--help`, and what comes after `--`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep them as they are."""
        ctx.args = list(args)
        return []


@click.command(
    "raft",
    cls=_Through,
    add_help_option=False,
    short_help="The node of this application: status, members, backup and all else that raftsvc can do.",
)
@with_appcontext
def _command() -> None:
    """Whatever `raftsvc` does, by the settings of the application: `flask raft status`."""
    from raftsvc.commands.main import main  # which only this takes

    environ = environ_of(current_app.config)
    if one_node.is_temporary:  # unless the arguments say of which node, there is none
        environ.pop("RAFTSVC_DIR", None)
        click.echo(f"RAFTSVC_DIR is {TEMPORARY}: the node is of its process alone, and no command reaches it", err=True)
    raise SystemExit(main(click.get_current_context().args, environ))


def _current() -> Raft:
    found = current_app.extensions.get(_EXTENSION)
    if not isinstance(found, Raft):
        raise RuntimeError("this application has no Raft: Raft(app), or init_app(app) in its factory")
    return found


current_raft: Raft = LocalProxy(_current)  # type: ignore[assignment]
"""The Raft of the application that serves the request."""
