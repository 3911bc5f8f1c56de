"""The node of this process, by the settings of the project; nothing is started before the store is used."""

from __future__ import annotations

from typing import Final

from django.conf import settings
from werkzeug.local import LocalProxy

from raftsvc.ext.nodes import environ_of, one_node
from raftsvc.kv import KeyValue

PREFIX: Final = "RAFTSVC_"


def environ_of_settings() -> dict[str, str]:
    """The environment, and over it the settings `RAFTSVC_*`.  Raises ConfigurationError for a value of another type."""
    return environ_of({name: getattr(settings, name) for name in dir(settings) if name.startswith(PREFIX)})


def configure() -> None:
    """Have the node started by the settings, once it is wanted; settings are read once in a process.

    Raises ConfigurationError if they make no sense.
    """
    if not one_node.has_settings:
        environ = environ_of_settings()
        if environ.get(PREFIX + "DIR", "").strip():  # else the node says that it was not configured, and how it is
            one_node.configure(environ, {})


def start() -> KeyValue:
    """Start the node, if it was not, and return its store; in a command: a client of the server's node.

    Raises what `raftsvc.kv.start_from_env` does; StoppedError if another thread is starting it, for long.
    """
    configure()
    return one_node.store()


kv: KeyValue = LocalProxy(start)  # type: ignore[assignment]
"""The store.  Its `service` is the node's Service."""
