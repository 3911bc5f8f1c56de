"""The one node of a process, for extensions of frameworks, whose parts find it by themselves.

Frameworks have settings, and load an application in many processes that serve nothing: commands, shells, the parent of
a reloader.  So settings are looked at where an application is made, and nothing is started before the store is wanted:
by the first request, or by whoever calls.  A process has one node, however many applications are in it: those that say
the same directory share it, and others are refused.  Where no settings were given, the environment's hold.  A process
that was forked has none of its parent's threads: there the store is another, begun when it is wanted.

In a test, or to try something, `RAFTSVC_DIR` may be `:temporary:`: a cluster of this process alone, in a directory that
is gone when the process ends, and of which nothing else need be said.
"""

from __future__ import annotations

import atexit
import difflib
import inspect
import os
import shutil
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from raftsvc.errors import ConfigurationError, ExistingClusterError, StoppedError
from raftsvc.kv import KeyValue, KeyValueState
from raftsvc.kv.environment import options_from_env, start_from_env
from raftsvc.service import start

TEMPORARY: Final = ":temporary:"
"""For RAFTSVC_DIR: a directory that is made for this process, and gone with it."""
_PREFIX: Final = "RAFTSVC_"
_LONE_ADDR: Final = "127.0.0.1:1"
"""Where nobody reaches a node that has no others, and listens nowhere."""
_WAIT_SECONDS: Final = 30.0
"""How long a request waits for another that is starting the node."""


def environ_of(settings: Mapping[str, object]) -> dict[str, str]:
    """The environment, and over it what settings say whose names begin by `RAFTSVC_`; a list has commas between.

    settings: of any names; a value is a text, a path, a list of texts, or None for what is not said.

    Raises ConfigurationError for another one.
    """
    environ = dict(os.environ)
    for name, value in settings.items():
        if not name.startswith(_PREFIX) or value is None:
            continue
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        elif isinstance(value, list | tuple | set | frozenset) and all(isinstance(each, str) for each in value):
            value = ",".join(value)
        if not isinstance(value, str):
            raise ConfigurationError(f"the setting {name} is a text, or a list of texts, not {type(value).__name__}")
        environ[name] = value
    return environ


class OneNode:
    """The node of this process, once it was wanted.  Thread-safe."""

    def __init__(self) -> None:
        self._environ: dict[str, str] | None = None
        self._options: dict[str, Any] = {}
        self._homes: dict[int, _Home] = {}

    @property
    def environ(self) -> Mapping[str, str]:
        """What says how the node is started."""
        return os.environ if self._environ is None else self._environ

    @property
    def is_configured(self) -> bool:
        """Whether settings were given, or the environment names a directory."""
        return self._environ is not None or bool(os.environ.get(_PREFIX + "DIR", "").strip())

    @property
    def has_settings(self) -> bool:
        """Whether settings were given."""
        return self._environ is not None

    @property
    def listens(self) -> bool:
        """Whether the node has a port of its own; if not, the application serves its peers, under /raft/."""
        if self.is_temporary:
            return True
        return bool(options_from_env(self.environ, self._options)["listen"])

    @property
    def is_temporary(self) -> bool:
        """Whether it is gone with its process."""
        return _is_temporary(self.environ, self._options)

    def configure(self, environ: Mapping[str, str], options: Mapping[str, Any]) -> None:
        """Have it started by these, as by `raftsvc.kv.start_from_env`, once it is wanted.

        Raises ConfigurationError if they make no sense, or something else was said before, of which a node that is
        temporary heeds nothing but options.
        """
        _check_names(options)
        if not _is_temporary(environ, options):
            options_from_env(environ, options)
        former = None if self._environ is None else _directory(self._environ, self._options)
        if former is not None and former != _directory(environ, options):
            raise ConfigurationError(
                f"a process has one node, and this one's is in {former}: an application with its node in "
                f"{_directory(environ, options)} takes a process of its own"
            )
        if former is not None and former != TEMPORARY:
            other = _differing(self._environ or {}, self._options, environ, options)
            if other:
                raise ConfigurationError(
                    f"a process has one node, and of the one in {former} two applications say different things by "
                    f"{', '.join(other)}: have them say the same"
                )
        if former is None or self._home().store is None:
            self._environ, self._options = dict(environ), dict(options)

    def store(self) -> KeyValue:
        """The store of the node, which is started if it was not.

        Raises what `raftsvc.kv.start_from_env` does; StoppedError if another thread is starting it, for long, or ended
        it before it was started.
        """
        while True:
            home = self._home()
            if home.store is not None:
                return home.store
            # Reentrant, for a handler of a signal may call this on top of what the main thread does here.
            if not home.lock.acquire(timeout=_WAIT_SECONDS):
                raise StoppedError(f"the node of this process is being started, and was not within {_WAIT_SECONDS:g} s")
            try:
                if home.is_ended:  # while this waited
                    continue
                return self._begin(home) if home.store is None else home.store
            finally:
                home.lock.release()

    def stop(self) -> None:
        """End it, if it was started in this process, and forget the settings, as from one test to the next."""
        self._environ, self._options = None, {}
        self.end()

    def end(self) -> None:
        """End it, if it was started in this process; by the same settings another begins when it is wanted.

        Raises StoppedError if another thread is starting it, for long, which then ends it once it is started.
        """
        home = self._homes.pop(os.getpid(), None)
        if home is None:
            return
        home.is_ended = True  # before this waits, maybe in vain: whoever is starting it sees it afterwards
        if not home.lock.acquire(timeout=_WAIT_SECONDS):
            raise StoppedError(
                f"the node of this process is being started, and was not within {_WAIT_SECONDS:g} s: it is ended then"
            )
        try:
            home.end()
        finally:
            home.lock.release()

    def forget_parents(self) -> None:
        """In a process that was forked: a temporary node of its parent's is no reason to refuse it another."""
        for pid in self._homes.keys() - {os.getpid()}:
            del self._homes[pid]

    def _home(self) -> _Home:
        pid = os.getpid()
        home = self._homes.get(pid)
        return home if home is not None else self._homes.setdefault(pid, _Home(pid))

    def _begin(self, home: _Home) -> KeyValue:
        """Start it, under its lock; end it again if that was asked for meanwhile, be it by a handler of a signal."""
        try:
            home.store = store = self._start(home)
        finally:
            if home.is_ended:
                home.end()
        if home.is_ended:
            raise StoppedError("the node of this process was ended before it was started")
        return store

    def _start(self, home: _Home) -> KeyValue:
        if not self.is_configured:
            raise ConfigurationError(
                "no node was configured in this process: RAFTSVC_ADDR, RAFTSVC_DIR and so on, as settings or in the "
                f"environment; or RAFTSVC_DIR={TEMPORARY!r} for a test"
            )
        if not self.is_temporary:
            return start_from_env(self.environ, **self._options)
        if any(other.directory is not None for other in self._homes.values()):
            raise ConfigurationError(
                f"a node in {TEMPORARY!r} is for one process alone, and this one was forked from it: say a directory"
            )
        return _start_alone(home.make_directory(), self._options)


class _Home:
    """What one process has.

    store: None until it was started.
    directory: that was made for it; None: none was.
    is_ended:  it has no other store than the one that was, or will be, ended.
    """

    def __init__(self, pid: int) -> None:
        self.lock = threading.RLock()
        self.store: KeyValue | None = None
        self.directory: str | None = None
        self.is_ended = False
        self._pid = pid

    def make_directory(self) -> str:
        """One that is gone when this process ends, after the node, which has its own way of ending by then."""
        if self.directory is None:
            self.directory = tempfile.mkdtemp(prefix="raftsvc-")
            atexit.register(self.remove)
        return self.directory

    def end(self) -> None:
        """End what was started."""
        try:
            if self.store is not None:
                self.store.service.stop()
        finally:
            self.remove()

    def remove(self) -> None:
        """Remove the directory, if this process made it."""
        if self.directory is not None and os.getpid() == self._pid:
            shutil.rmtree(self.directory, ignore_errors=True)
            atexit.unregister(self.remove)  # which would keep the store, and all that is in it


def _directory(environ: Mapping[str, str], options: Mapping[str, Any]) -> str:
    directory: str = os.fspath(options.get("dir", environ.get(_PREFIX + "DIR", ""))).strip()
    return directory if directory == TEMPORARY else os.path.realpath(directory)


def _is_temporary(environ: Mapping[str, str], options: Mapping[str, Any]) -> bool:
    return _directory(environ, options) == TEMPORARY


def _check_names(options: Mapping[str, Any]) -> None:
    """Raise ConfigurationError for an option that `raftsvc.start` has not."""
    known = inspect.signature(start).parameters
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.6)
            raise ConfigurationError(f"start has no option {name!r}" + (f": was {near[0]} meant?" if near else ""))


def _differing(
    one: Mapping[str, str], its: Mapping[str, Any], other: Mapping[str, str], others: Mapping[str, Any]
) -> list[str]:
    """The names of what two applications say differently, of what is not the directory."""
    found = []
    for name in sorted({name for name in {*one, *other} if name.startswith(_PREFIX)} - {_PREFIX + "DIR"}):
        # But for this one, what is empty is as good as what is not said.
        empty = None if name == _PREFIX + "LISTEN" else ""
        if one.get(name, empty) != other.get(name, empty):
            found.append(name)
    nothing = object()
    names = sorted({*its, *others} - {"dir"})
    return found + [name for name in names if its.get(name, nothing) != others.get(name, nothing)]


def _start_alone(directory: str, options: Mapping[str, Any]) -> KeyValue:
    """A cluster of one, in the empty `directory`."""
    alone: dict[str, Any] = {"laddr": _LONE_ADDR, "insecure": True, "lock_timeout": 10.0, **options, "dir": directory}
    state = alone.setdefault("state", KeyValueState())
    service = start(**alone)
    try:
        with suppress(ExistingClusterError):  # by a start before, that came no further
            service.init()
    except BaseException:
        service.stop()
        raise
    return KeyValue(service, state)


one_node: Final = OneNode()
"""The one of this process."""
