"""The node of this process, by the settings of the project; nothing is started before the store is used."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from multiprocessing.util import Finalize
from typing import Any, Final

from django.conf import settings
from werkzeug.local import LocalProxy

from raftsvc.ext.nodes import TEMPORARY, environ_of, one_node
from raftsvc.kv import KeyValue

PREFIX: Final = "RAFTSVC_"
_AFTER_OTHERS: Final = -100
_tested_in: Final[set[int]] = set()
"""The processes, by their ids, that are ready to have a node for tests."""
_readying: Final = threading.RLock()


def environ_of_settings() -> dict[str, str]:
    """The environment, and over it the settings `RAFTSVC_*`.  Raises ConfigurationError for a value of another type."""
    return environ_of({name: getattr(settings, name) for name in dir(settings) if name.startswith(PREFIX)})


def is_tested() -> bool:
    """Whether a runner of tests has this process, or will, `manage.py test` and pytest-django among them.

    From its first line on: what an application makes of the store while it is loaded (`kv.namespace("a/")`) is kept.
    """
    state: Any = getattr(sys.modules.get("django.test.utils"), "_TestState", None)
    is_begun = hasattr(state, "saved_data")
    is_command = sys.argv[1:2] == ["test"] and "django.core.management" in sys.modules
    return is_begun or is_command or "pytest_django" in sys.modules


def configure() -> None:
    """Have the node started by the settings, once it is wanted; settings are read once in a process.

    In tests it is a temporary one, whatever they say of a directory: what tests write and delete is not the server's.

    Raises ConfigurationError if they make no sense.
    """
    if not one_node.has_settings:
        environ = environ_of_settings()
        if is_tested():
            environ[PREFIX + "DIR"] = TEMPORARY
        if environ.get(PREFIX + "DIR", "").strip():  # else the node says that it was not configured, and how it is
            one_node.configure(environ, {})


def start() -> KeyValue:
    """Start the node, if it was not, and return its store; in a command: a client of the server's node.

    Raises what `raftsvc.kv.start_from_env` does; StoppedError if another thread is starting it, for long.
    """
    configure()
    if is_tested() and os.getpid() not in _tested_in:
        _begin_tests()
    return one_node.store()


def _begin_tests() -> None:
    """Have each process of `test --parallel` its own cluster, as it has its own databases, whatever its parent has."""
    with _readying:
        if os.getpid() in _tested_in:
            return
        if not one_node.is_temporary:  # a module that was imported before tests began said so, or even used it
            one_node.stop()
            configure()
        if multiprocessing.parent_process() is not None:
            one_node.forget_parents()
            Finalize(None, one_node.end, exitpriority=_AFTER_OTHERS)  # such a process may end without what atexit does
        _tested_in.add(os.getpid())


class _Store(LocalProxy[KeyValue]):
    """Whoever looks through a module for classes, as loaders of tests do, is answered without the node."""

    __slots__ = ()
    __class__ = KeyValue


kv: KeyValue = _Store(start)  # type: ignore[assignment]
"""The store.  Its `service` is the node's Service."""
