"""How old what a reader is shown may be.

A node knows that it is current by asking: one round, for which `wait_read` waits.  Heartbeats of a
leader would be no such proof, for it may be deposed, and not know yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from raftsvc.clocks import now_seconds
from raftsvc.errors import ConfigurationError, ReadTimeoutError
from raftsvc.kv.holds import Claim
from raftsvc.kv.pages import Value
from raftsvc.kv.runs import Planned, Run
from raftsvc.mainthread import do_elsewhere, is_main_thread
from raftsvc.timeouts import check_timeout

T = TypeVar("T")


def check_max_age(max_age: float | None) -> None:
    """Raise ConfigurationError if it is none."""
    if max_age is None:
        return
    if isinstance(max_age, bool) or not isinstance(max_age, (int, float)) or not max_age >= 0.0:
        raise ConfigurationError(f"max_age is a number of seconds, 0 or more, not {max_age!r:.100}")


class Asked(Protocol):
    """Who can tell whether this node is current."""

    def wait_read(self, timeout: float = 5.0) -> None:
        """Return once reads of the local State see every write that finished before this call."""


class Shown(Protocol):
    """The store at some moment."""

    def get(self, key: str) -> Value | None: ...
    def get_many(self, keys: Iterable[str]) -> dict[str, Value]: ...
    def list(
        self, prefix: str = "", limit: int | None = None, after: str = "", max_bytes: int | None = None
    ) -> dict[str, Value]: ...
    def claims(self, name: str) -> Sequence[Claim]: ...
    def item_counts(self, queue: str) -> tuple[int, int]: ...
    def job(self, name: str) -> tuple[Planned | None, Sequence[Run]]: ...
    def job_names(self, prefix: str = "") -> Sequence[str]: ...
    def allowed(self) -> frozenset[str]: ...


class Reader(Protocol):
    """Who shows it."""

    @property
    def present(self) -> Shown:
        """What is known, maybe not the latest."""

    def read(self, look: Callable[[Shown], T], max_age: float | None, timeout: float) -> T:
        """What `look` returns, once nothing that it is shown has been out of date for longer than `max_age`."""


class Freshness:
    """What is known of how current this node is.  Thread-safe."""

    __slots__ = ("_asked", "_current_at")

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._current_at = float("-inf")
        """When it was last asked for a bounded age whether this node is current, and it was."""

    def read(self, look: Callable[[], T], max_age: float | None, timeout: float) -> T:
        """What `look` returns, once nothing that it shows has been out of date for longer than `max_age` seconds.

        None: nothing that was out of date when this was called.  Raises ReadTimeoutError if nobody confirms it in time.
        """
        check_timeout(timeout)
        if max_age is None:
            if is_main_thread():
                return do_elsewhere(lambda: self.read(look, None, timeout), timeout, ReadTimeoutError)
            self._asked.wait_read(timeout)
            return look()
        check_max_age(max_age)
        asked_at = now_seconds()
        if asked_at - self._current_at > max_age:
            self._asked.wait_read(timeout)
            self._current_at = asked_at  # as of when it was asked, not answered
        return look()


class ReaderHere:
    """Who shows the State of this process, as current as it is known to be."""

    __slots__ = ("freshness", "present")

    def __init__(self, freshness: Freshness, present: Shown) -> None:
        self.freshness = freshness
        self.present = present

    def read(self, look: Callable[[Shown], T], max_age: float | None, timeout: float) -> T:
        """See `Reader`."""
        return self.freshness.read(lambda: look(self.present), max_age, timeout)
