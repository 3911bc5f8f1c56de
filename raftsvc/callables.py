"""Functions of an application's that are called by threads: what can be none is refused where it is given."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from typing import Any, TypeVar

from raftsvc.errors import ConfigurationError

T = TypeVar("T")


def check_function(function: T, what: str) -> T:
    """It, if it can be called, and has done what it does once it returns, as far as one can see.

    what: it is, as a sentence begins.  Raises ConfigurationError.
    """
    if not callable(function):
        raise ConfigurationError(f"{what} is a function, which is called, and {function!r:.100} cannot be")
    called: Callable[..., Any] = function
    while isinstance(called, partial):
        called = called.func
    kinds = (iscoroutinefunction, isgeneratorfunction, isasyncgenfunction)
    if any(is_kind(each) for is_kind in kinds for each in (called, type(called).__call__)):
        raise ConfigurationError(
            f"{what} runs in a thread, and nobody would await, or go through, what {function!r:.100} makes"
        )
    return function
