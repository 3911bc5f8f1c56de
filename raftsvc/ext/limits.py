"""A storage of the whole cluster for `limits`, hence for Flask-Limiter: limits that all processes count by together.

    import raftsvc.ext.limits  # which makes the scheme known

    storage = limits.storage.storage_from_string("raftsvc://")

The URL says which cluster (`raftsvc.ext.urls`).  What is asked by each of the three strategies is decided by the
cluster, so of many who ask at once, anywhere, no more are let in than may be:

    fixed window             one write for each hit, allowed or not, which counts in the cluster itself
    moving window            one write for each hit that is allowed: a key that lives as long as the window, written if
                             no other was since what the decision was made by; else it is made again
    sliding window counter   likewise, of one record

Who has the State reads there what he decides by, and asks the others only before he refuses: that is a read, and
writes nothing.  Of n who hit one moving or sliding window at the same moment each may have to try n times.

Fixed and moving windows end by log time, see `KeyValue`: never early, and later by as much as nobody led.  The sliding
window counter is weighed by the clock of the process that asks, as in the other storages of limits, and so is what
is shown, such as how much is left and when a window ends: the clocks of hosts should agree.
"""

from __future__ import annotations

import hashlib
import random
import struct
import time
from collections.abc import Callable
from math import floor
from typing import Final, NamedTuple, TypeAlias
from urllib.parse import quote

from limits.storage.base import MovingWindowSupport, SlidingWindowCounterSupport, Storage

from raftsvc.errors import ConfigurationError, RaftError
from raftsvc.ext.batches import delete_below
from raftsvc.ext.urls import SCHEME, Place
from raftsvc.kv import ConflictError, KeyValue, Operation, Value, delete, if_not_modified, incr
from raftsvc.kv import set as set_effect

PREFIX: Final = "limits/"
"""All that is counted is below it."""
_FIXED, _ENDS, _MOVING, _SLIDING = (f"{PREFIX}{kind}/" for kind in ("fixed", "ends", "moving", "sliding"))
_LONGEST_NAME: Final = 800
_FIRST_PAUSE_SECONDS: Final = 0.002
_LONGEST_PAUSE_SECONDS: Final = 0.1
_ENTRY: Final = struct.Struct(">QQ")
"""Of a moving window's entry: how many it is, and when it was made, in milliseconds by the clock of who did."""
_RECORD: Final = struct.Struct(">QQQQ")

Shown: TypeAlias = dict[str, Value]


class Window(NamedTuple):
    """The record of a sliding window counter, moments in milliseconds.

    began:    when the current window did.
    at:       when it was written; nobody goes on before that, however his clock is.
    current:  hits in the current window, and
    previous: in the one before.
    """

    began: int
    at: int
    current: int = 0
    previous: int = 0

    def shifted(self, now: int, expiry: int) -> Window:
        """As it is by then, windows being `expiry` milliseconds long."""
        now = max(now, self.at)
        passed = (now - self.began) // expiry
        if passed == 0:
            return self._replace(at=now)
        if passed == 1:
            return Window(self.began + expiry, now, 0, self.current)
        return Window(now, now)

    def weight(self, expiry: int) -> float:
        """How much is used."""
        return self.previous * (self.began + expiry - self.at) / expiry + self.current


class RaftStorage(Storage, MovingWindowSupport, SlidingWindowCounterSupport):
    """See `limits.storage.Storage`; thread-safe.  Raises what the store raises: `raftsvc.RaftError`."""

    STORAGE_SCHEME: list[str] | None = [SCHEME]  # noqa: RUF012 - as limits says it

    def __init__(self, uri: str | None = None, wrap_exceptions: bool = False, **options: float | str | bool) -> None:
        """Asks nobody, and starts nothing: the first call of another method does.

        options: `wait`, in seconds, how long each call may take, 5 unless it is said here or in the URL.

        Raises ConfigurationError, a ValueError.
        """
        super().__init__(uri, wrap_exceptions)
        self._place = Place(uri or f"{SCHEME}://")
        said = {**self._place.options, **options}
        try:
            self._wait = float(said.pop("wait", 5.0))
        except ValueError as error:
            raise ConfigurationError(f"wait is in seconds: {error}") from error
        if said:
            raise ConfigurationError(f"{sorted(said)} are no options of this storage")

    @property
    def base_exceptions(self) -> type[Exception] | tuple[type[Exception], ...]:
        """Those of the store."""
        return RaftError

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Count so many, one write; returns how many there are in the window, which the first of them begins."""
        name = _quoted(key)
        ends = _now_ms() + int(expiry * 1000)
        # Both are made by one write and live as long as each other; the end is written where there is none.
        counted = [incr(_ENDS + name, 0, ends, ttl=expiry), incr(_FIXED + name, amount, ttl=expiry)]
        answer = self._store().perform(counted, self._wait).answer
        assert isinstance(answer, int), "the cluster keeps an int"
        return answer

    def get(self, key: str) -> int:
        """How many there are in the fixed window."""
        name = _quoted(key)
        shown = self._store().get_many([_FIXED + name, _ENDS + name], self._wait)
        if len(shown) < 2 or int(shown[_ENDS + name].data) <= _now_ms():
            return 0
        return int(shown[_FIXED + name].data)

    def get_expiry(self, key: str) -> float:
        """When the fixed window ends, as an epoch, by the clock of who began it; if there is none, it is now."""
        value = self._store().get(_ENDS + _quoted(key), self._wait)
        return time.time() if value is None else int(value.data) / 1000

    def check(self) -> bool:
        """Whether the cluster answers."""
        try:
            self._store().get(PREFIX, self._wait)
        except RaftError:
            return False
        return True

    def reset(self) -> int | None:
        """Forget all; returns of how many windows.  What is counted meanwhile may be forgotten, or not."""
        store = self._store()
        count = len(list(delete_below(store, _FIXED, self._wait, lambda name: [_ENDS + name.removeprefix(_FIXED)])))
        for kind in (_MOVING, _SLIDING):
            names = delete_below(store, kind, self._wait)
            count += len({name.removeprefix(kind).partition("/")[0] for name in names})
        return count

    def clear(self, key: str) -> None:
        """Forget the fixed and the moving window of that key."""
        name = _quoted(key)
        store = self._store()
        store.transaction([delete(_FIXED + name), delete(_ENDS + name)], self._wait)
        for _ in delete_below(store, f"{_MOVING}{name}/", self._wait):
            pass

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Whether there is room for so many in the moving window; if there is, they are in it."""
        head = f"{_MOVING}{_quoted(key)}/"

        def step(shown: Shown) -> list[Operation] | None:
            if _counted(head, shown) + amount > limit:
                return None
            version = shown[head].version if head in shown else 0
            entry = f"{head}{version:020d}"
            return [
                if_not_modified(head, version),
                set_effect(head, b"", ttl=expiry),  # which lives as long as the newest entry
                set_effect(entry, _ENTRY.pack(amount, _now_ms()), ttl=expiry),
            ]

        return amount <= limit and self._decide(head, step)

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """When the oldest entry of the moving window was made, as an epoch, and how many are in it."""
        head = f"{_MOVING}{_quoted(key)}/"
        shown = self._store().list(head, self._wait)
        entries = [_ENTRY.unpack(value.data) for name, value in shown.items() if name != head]
        since = _now_ms() - expiry * 1000
        entries = [(amount, made) for amount, made in entries if made > since]
        oldest = min((made for _, made in entries), default=None)
        return time.time() if oldest is None else oldest / 1000, sum(amount for amount, _ in entries)

    def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Whether there is room for so many by the weighed count of two windows; if there is, they are counted."""
        name = f"{_SLIDING}{_quoted(key)}/"

        def step(shown: Shown) -> list[Operation] | None:
            window = _window(shown.get(name), expiry * 1000)
            if floor(window.weight(expiry * 1000)) + amount > limit:
                return None
            window = window._replace(current=window.current + amount)
            version = shown[name].version if name in shown else 0
            return [if_not_modified(name, version), set_effect(name, _RECORD.pack(*window), ttl=2 * expiry)]

        return amount <= limit and self._decide(name, step)

    def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """Hits in the window before and how long it counts still, hits in this window and how long it does."""
        window = _window(self._store().get(f"{_SLIDING}{_quoted(key)}/", self._wait), expiry * 1000)
        if not (window.current or window.previous):
            return 0, 0.0, 0, 0.0
        left = (window.began - window.at) / 1000 + expiry
        return window.previous, left if window.previous else 0.0, window.current, left + expiry

    def clear_sliding_window(self, key: str, expiry: int) -> None:
        """Forget both windows."""
        self._store().delete(f"{_SLIDING}{_quoted(key)}/", timeout=self._wait)

    def _decide(self, prefix: str, step: Callable[[Shown], list[Operation] | None]) -> bool:
        """Whether what `step` makes of what there is below `prefix` was done; None refuses.

        Raises ConflictError if others came first, one after the other, until the time was over.
        """
        store = self._store()
        ends_at = time.monotonic() + self._wait
        is_current = not store.is_here
        pause = _FIRST_PAUSE_SECONDS
        while True:
            left = max(ends_at - time.monotonic(), 0.0)
            # What is decided by is checked by the write; a refusal is not, and takes what is current.
            operations = step(store.list(prefix, left) if is_current else store.list_stale(prefix))
            if operations is None and is_current:
                return False
            if operations is None:
                is_current = True
                continue
            try:
                store.transaction(operations, left)
                return True
            except ConflictError:
                wait = random.uniform(0.0, pause)
                if time.monotonic() + wait >= ends_at:
                    raise
            time.sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            is_current = not store.is_here  # the refusal was applied here, and with it what came before it

    def _store(self) -> KeyValue:
        return self._place.kept()


def _quoted(key: str) -> str:
    """A name without slashes, so that none is the beginning of another's; of a long one what stands for it."""
    name = quote(key, safe="", errors="surrogatepass")
    return name if len(name) <= _LONGEST_NAME else hashlib.sha256(name.encode()).hexdigest()


def _now_ms() -> int:
    return int(time.time() * 1000)


def _counted(head: str, shown: Shown) -> int:
    return sum(_ENTRY.unpack(value.data)[0] for name, value in shown.items() if name != head)


def _window(value: Value | None, expiry_ms: int) -> Window:
    now = _now_ms()
    found = Window(now, now) if value is None else Window(*_RECORD.unpack(value.data))
    return found.shifted(now, expiry_ms)
