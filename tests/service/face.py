"""What an application can call, as the classes have it, and something sensible for each parameter.

Nothing here names a method, so tests that go over all of them leave out none that is new; a parameter
that is new has to be given a value below.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Sequence
from typing import Any

import raftsvc
from raftsvc import kv
from raftsvc.kv.history import Cursor, Signal
from raftsvc.kv.queries import ALLOWED, Question

from .harness import PATIENCE

_SPECIAL = {"__call__", "__contains__", "__delitem__", "__getitem__", "__len__", "__setitem__"}
OF_THE_NODE = (
    raftsvc.BaseState,
    raftsvc.ElectorateState,
    raftsvc.OperatedState,
    raftsvc.ReportingState,
    raftsvc.RestoredState,
    raftsvc.State,
    raftsvc.StreamingState,
    raftsvc.VersionedState,
    raftsvc.WaitingState,
)
"""Which of its methods a State has for its node, and not for the application."""
NOBODY = "127.0.0.1:1"
"""Where no member is, and nobody listens."""
BRIEF = 0.05
"""In seconds; to wait for what nobody does."""


def request_for(path: str) -> dict[str, Any]:
    return {"REQUEST_METHOD": "GET", "PATH_INFO": f"/raft/{path}", "wsgi.multithread": False}


VALUES: dict[str, Any] = {
    "addr": NOBODY,
    "after_death": "again",
    "after_failure": "again",
    "blocking": False,
    "after": "",
    "boot_url": NOBODY,
    "change": lambda former: b"1",
    "data": Question(ALLOWED).encode(),
    "default": None,
    "cursor": Cursor("", Signal()),
    "cut": 0,
    "delta": 1,
    "function": lambda: None,
    "environ": request_for("livez"),
    "file": io.BytesIO(),
    "index": 0,
    "held": kv.Hold(None, "a", 1),  # type: ignore[arg-type]
    "initial": 0,
    "is_query": True,
    "instruction": b"main",
    "instructions": [b"main", b"main"],
    "key": "a",
    "keys": ["a"],
    "known": [kv.Claimant(1, b"")],
    "limit": 1,
    "max_bytes": 1,
    "listener": lambda event: None,
    "max_age": 0.0,
    "name": "kv",
    "node_addr": NOBODY,
    "node_id": 1,
    "operations": [kv.set("a", b"1")],
    "cost": 1,
    "keep": True,
    "lease": None,
    "max_tries": 3,
    "n": 10,
    "per": 60.0,
    "path": __file__,
    "queue": "a",
    "together": False,
    "within": 60.0,
    "place": ("a", "0" * 16, 1),
    "prefix": "",
    "is_over": True,
    "signal": Signal(),
    "size": 1,
    "units": 1,
    "use": lambda data: "nothing",
    "replace": False,
    "size_bytes": 10**6,
    "start_response": lambda status, headers: None,
    "threads": 2,
    "timeout": PATIENCE,
    "ttl": 3600.0,
    "value": b"1",
    "version": 0,
    "why": "nobody applies to it",
    # Where a method means something else by a name.
    "set_json.value": 1,
    "advance.after": 0,
    "watch.after": 0,
    "claim.data": b"main",
    "claim.timeout": BRIEF,  # what nobody lets go of is asked for again
    "election.data": b"main",
    "meeting.data": b"main",
    "take.data": b"main",
    "take.name": "queue",
    "take.timeout": BRIEF,
    "wait_changed.timeout": BRIEF,
    "lock.data": b"main",
    "ticket.data": b"main",
    "ticket.id": "0" * 16,
    "rwlock.data": b"main",
    "watch_file.name": "file",
}


def methods_of(cls: type, but: Sequence[type] = ()) -> list[str]:
    """The public methods of a class of ours and its properties, and what Python calls; none that one of `but` has."""
    others = {name for other in (object, *but) for name in dir(other)}
    return [
        name
        for name, member in inspect.getmembers(cls)
        if (not name.startswith("_") or name in _SPECIAL)
        and (inspect.isroutine(member) or isinstance(member, property))
        and name not in others
    ]


def parameters_of(cls: type, name: str) -> list[inspect.Parameter]:
    """Those that a caller gives; `*conditions` may be none."""
    member = getattr(cls, name)
    return [] if isinstance(member, property) else parameters_in(member)[1:]


def parameters_in(function: Any) -> list[inspect.Parameter]:
    """The same of a function."""
    found = inspect.signature(function).parameters.values()
    return [parameter for parameter in found if parameter.kind is not parameter.VAR_POSITIONAL]


def value_of(name: str, parameter: inspect.Parameter) -> Any:
    """Something sensible for it."""
    special = f"{name}.{parameter.name}"
    return VALUES[special] if special in VALUES else VALUES[parameter.name]


def calls_of(cls: type, *, whole: bool = True, but: Sequence[type] = ()) -> dict[str, Callable[[Any], object]]:
    """A call of each method, by its name; of those that have optional parameters with all, or with `timeout` alone."""

    def call_of(name: str) -> Callable[[Any], object]:
        if isinstance(getattr(cls, name), property):
            return lambda thing: getattr(thing, name)
        positional, named = [], {}
        for parameter in parameters_of(cls, name):
            if whole or parameter.default is parameter.empty or parameter.name == "timeout":
                value = value_of(name, parameter)
                if parameter.kind is parameter.POSITIONAL_ONLY:
                    positional.append(value)
                else:
                    named[parameter.name] = value
        return lambda thing: getattr(thing, name)(*positional, **named)

    return {name: call_of(name) for name in methods_of(cls, but)}
