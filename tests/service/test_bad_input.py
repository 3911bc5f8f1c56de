"""Whatever an application gives for a parameter, it is told what is wrong with it at the call, and nothing is done.

The parameters are those that the classes have; what is no sense for one of them is all of `ODD` but what `LEGAL`
says. So a method that is new is in these tests, and a parameter that is new has to be described.
"""

from __future__ import annotations

import inspect
import linecache
import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import raftsvc
from raftsvc import kv
from raftsvc.kv.instructions import Code

from .face import methods_of, parameters_in, parameters_of, value_of
from .harness import PATIENCE, SECRET, FaultyFiles, free_address, in_background

PACKAGE = str(Path(raftsvc.__file__).parent)


class Strange:
    """Of no use for anything."""


ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    7,
    2**70,
    1.5,
    math.nan,
    math.inf,
    -math.inf,
    1j,
    "",
    "text",
    "\ud800",
    "x" * 5000,
    b"",
    b"bytes",
    [],
    [None],
    ["text", 7],
    {},
    {"a": 1},
    Strange(),
    Strange,
    lambda: None,
]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_bytes(value: Any) -> bool:
    return isinstance(value, bytes)


def is_key(value: Any) -> bool:
    return is_text(value) and value != "\ud800" and 0 < len(value) <= 1024


def is_name(value: Any) -> bool:
    return is_key(value)  # what is added to it is short


def is_address(value: Any) -> bool:
    return False


def is_list(is_item: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | dict) and all(map(is_item, value))


NEVER = threading.TIMEOUT_MAX
RECIPES = ("election", "lock", "once", "party", "rwlock", "semaphore")
LEGAL: dict[str, Callable[[Any], bool]] = {
    "addr": is_address,
    "after_death": lambda value: False,
    "path": lambda value: False,
    "watch_file.name": lambda value: value == "text",
    "use": callable,
    "after_failure": lambda value: False,
    "blocking": lambda value: isinstance(value, bool),
    "data": lambda value: value is None or is_bytes(value),
    "file": is_text,
    "function": callable,
    "held": lambda value: False,
    "known": lambda value: isinstance(value, list),
    "size": lambda value: is_whole(value, 1, 2**31 - 1),
    "units": lambda value: is_whole(value, 1, 1),
    "after": is_text,
    "boot_url": is_address,
    "change": callable,
    "default": lambda value: True,
    "delta": lambda value: is_whole(value, -(2**63), 2**63 - 1),
    "environ": lambda value: True,  # what a server gives
    "index": is_whole,
    "initial": lambda value: is_whole(value, -(2**63), 2**63 - 1),
    "instruction": is_bytes,
    "instructions": is_list(is_bytes),
    "key": is_key,
    "keys": is_list(is_text),
    "limit": lambda value: value is None or is_whole(value, 0),
    "max_bytes": lambda value: value is None or is_whole(value, 0),
    "id": lambda value: value is None,
    "listener": callable,
    "max_age": lambda value: value is None or (is_number(value) and value >= 0),
    "name": lambda value: False,
    "node_addr": lambda value: False,
    "operations": is_list(lambda value: False),
    "cost": lambda value: is_whole(value, 1, 10),
    "keep": lambda value: isinstance(value, bool),
    "lease": lambda value: value is None,
    "max_tries": lambda value: value is None or is_whole(value, 1, 65535),
    "n": lambda value: is_whole(value, 1, 10**6),
    "per": lambda value: is_number(value) and 0.001 <= value <= 36525 * 24 * 3600,
    "together": lambda value: isinstance(value, bool),
    "within": lambda value: value is None or (is_number(value) and 0.001 <= value <= 36525 * 24 * 3600),
    "prefix": is_text,
    "replace": lambda value: isinstance(value, bool),
    "size_bytes": lambda value: value is None or is_whole(value, 1, 2**63 - 1),
    "start_response": lambda value: True,
    "threads": lambda value: is_whole(value, 1, 1000),
    "timeout": lambda value: is_number(value) and value < NEVER,
    "ttl": lambda value: value is None or (is_number(value) and 0.001 <= value <= 36525 * 24 * 3600),
    "value": is_bytes,
    "version": lambda value: is_whole(value, 0, 2**64 - 1),
    # Where a method means something else by a name.
    **{
        f"{method}.ttl": lambda value: is_number(value) and 1 <= value <= 36525 * 24 * 3600
        for method in ("claim", "duty", "jobs", "lease", "meeting", "queue", "take", "ticket", *RECIPES)
    },
    **{f"{method}.name": is_key for method in ("claim", "claims", "items", "take", "ticket", "wait_claims")},
    **{f"{method}.name": is_name for method in ("barrier", "counter", "limit", "meeting", "queue", *RECIPES)},
    **{
        f"{method}.timeout": lambda value: value is None or (is_number(value) and value < NEVER)
        for method in ("claim", "once", "take")
    },
    "watch.after": lambda value: value is None or is_whole(value, 0, 2**63 - 1),
    "set_json.value": lambda value: True,  # what has no such form `json` says
    "__contains__.key": lambda value: True,  # there is none such, as for other mappings
    "disallow.addr": is_key,
    "transfer.addr": lambda value: value is None,
}
"""What is something for it, of all that is odd."""
READING = {"__getitem__", "get", "get_json", "get_many", "get_many_stale", "get_stale"}
"""What is asked for any text, and finds nothing where that can be no key."""


def is_legal(method: str, parameter: str, value: Any) -> bool:
    if parameter == "key" and method in READING and is_text(value):
        return True
    return LEGAL.get(f"{method}.{parameter}", LEGAL[parameter])(value)


def is_ours(error: BaseException) -> bool:
    """Whether it is raised by us, in so many words, and not what Python says of a step in between."""
    if isinstance(error, raftsvc.RaftError):
        return True
    innermost = inspect.getinnerframes(error.__traceback__)[-1]  # type: ignore[arg-type]
    line = linecache.getline(innermost.filename, innermost.lineno).strip()
    return isinstance(error, TypeError | ValueError) and innermost.filename.startswith(PACKAGE) and "raise" in line


def complaints(call: Callable[..., Any], name: str, parameters: list[inspect.Parameter]) -> Iterator[str]:
    """What is wrong with how a method takes what is odd for one of its parameters."""
    good = {parameter.name: value_of(name, parameter) for parameter in parameters}
    for parameter in parameters:
        for odd in ODD:
            if is_legal(name, parameter.name, odd):
                continue
            given = {**good, parameter.name: odd}
            positional = [given.pop(p.name) for p in parameters if p.kind is p.POSITIONAL_ONLY]
            what = f"{name}({parameter.name}={odd!r:.40})"
            began = time.monotonic()
            try:
                answer = call(*positional, **given)
            except KeyError:
                yield f"{what}: KeyError"
            except Exception as error:
                if not is_ours(error):
                    yield f"{what}: {error!r}"
                elif len(str(error)) < 15 or len(str(error)) > 1500:
                    yield f"{what}: says {error}"
            else:
                yield f"{what}: answers {answer!r:.80}"
            if time.monotonic() - began > PATIENCE / 4:
                yield f"{what}: took {time.monotonic() - began:.1f} s"


class Wired:
    """A node with a store and a part, and what it has written."""

    def __init__(self, path: Path) -> None:
        self.files = FaultyFiles()
        states = raftsvc.States(kv=kv.KeyValueState())
        self.service = raftsvc.start(free_address(), path, None, states, secret=SECRET, files=self.files)
        self.service.init()
        part = states.part("kv", self.service)
        store = kv.KeyValue(part, states["kv"])
        store.set("a", b"1", timeout=PATIENCE)
        self.faces: dict[str, Any] = {
            "Service": self.service,
            "Part": part,
            "KeyValue": store,
            "namespace": store.namespace("below/"),
        }

    def written(self) -> tuple[object, int]:
        return self.service.status()["last_index"], self.files.syncs


@pytest.fixture(scope="module")
def wired(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wired]:
    made = Wired(tmp_path_factory.mktemp("wired") / "n")
    yield made
    made.service.stop()


CASES = [
    (face, name)
    for face, cls in {
        "Service": raftsvc.Service,
        "Part": raftsvc.Part,
        "KeyValue": kv.KeyValue,
        "namespace": kv.KeyValue,
    }.items()
    for name in methods_of(cls)
    if parameters_of(cls, name)
]


@pytest.mark.parametrize("is_main", [True, False], ids=["main thread", "another"])
@pytest.mark.parametrize(("face", "name"), CASES, ids=[f"{face}.{name}" for face, name in CASES])
def test_what_makes_no_sense_is_refused_at_the_call_and_nothing_is_done(
    wired: Wired, face: str, name: str, is_main: bool
) -> None:
    def look() -> list[str]:
        thing = wired.faces[face]
        return list(complaints(getattr(thing, name), name, parameters_of(type(thing), name)))

    before = wired.written()
    found = look() if is_main else in_background(look)()
    assert not found, "\n".join(found)
    assert wired.written() == before
    assert wired.service.err() is None


OPERATIONS = [name for name in kv.__all__ if inspect.isfunction(getattr(kv, name)) and name != "start_from_env"]


@pytest.mark.parametrize("name", OPERATIONS)
def test_so_is_what_makes_no_operation(name: str) -> None:
    function = getattr(kv, name)
    found = list(complaints(function, name, parameters_in(function)))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "operation",
    [
        *(kv.Condition(odd, 0) for odd in (7, None, b"a", "\ud800")),
        *(kv.Condition("a", odd) for odd in ("1", -1, 1.5, 2**70)),
        *(kv.Effect(Code.SET, odd, b"1") for odd in (7, None, "\ud800", "x" * 70_000)),
        *(kv.Effect(Code.SET, "a", odd) for odd in (7, None, "text", ["1"])),
        *(kv.Effect(Code.SET_EXPIRING, "a", b"1", odd) for odd in ("1", -1, 1.5, 2**70)),
        *(kv.Effect(odd, "a", b"1") for odd in ("set", None, -1, 2**70)),
    ],
    ids=repr,
)
def test_so_is_what_was_made_an_operation_by_hand(wired: Wired, operation: Any) -> None:
    before = wired.written()
    for store in (wired.faces["KeyValue"], wired.faces["namespace"]):
        for operations in ([operation], [kv.set("a", b"2"), operation]):
            with pytest.raises((TypeError, ValueError)) as refused:
                store.transaction(operations)
            assert is_ours(refused.value), repr(refused.value)
    assert wired.written() == before


def test_so_is_what_is_put_together_of_the_wrong_parts(wired: Wired) -> None:
    service, state, states = wired.faces["Service"], kv.KeyValueState(), raftsvc.States(a=kv.KeyValueState())
    for odd in ODD:
        for make in (
            lambda odd=odd: kv.KeyValue(odd, state),
            lambda odd=odd: kv.KeyValue(service, odd),
            lambda odd=odd: states.part("a", odd),
        ):
            with pytest.raises(raftsvc.ConfigurationError):
                make()
        if not is_text(odd):
            with pytest.raises(raftsvc.ConfigurationError):
                kv.KeyValue(service, state, odd)
            with pytest.raises(raftsvc.ConfigurationError):
                states.part(odd, service)
            with pytest.raises(raftsvc.ConfigurationError):
                raftsvc.canonical_addr(odd)
        with pytest.raises(raftsvc.ConfigurationError):
            raftsvc.start(free_address(), "/nowhere/at/all", state=raftsvc.States(a=odd), secret=SECRET)
    with pytest.raises(raftsvc.ConfigurationError, match="KeyValueState"):
        kv.KeyValue(service, states)  # type: ignore[arg-type]
    with pytest.raises(KeyError):
        states.part("b", service)
