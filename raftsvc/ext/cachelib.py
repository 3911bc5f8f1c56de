"""A cache of the whole cluster for cachelib, hence for Flask-Caching and Flask-Session.

    CACHE_TYPE = "raftsvc.ext.cachelib.RaftCache"
    CACHE_OPTIONS = {"key_file": "/etc/app/cache.key"}

Every process has the same entries, and sees what any other has written.  What a cache may keep is pickled, so whoever
may write the store could have any code run where it is read: hence each value is signed, together with the key that it
is stored by, with a key that the cluster does not know.  Pickles are made, checked and read in the process that calls,
and the cluster has bytes.  Whole numbers are stored as such, and counted by the cluster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import timedelta
from hashlib import sha256
from typing import Any, Final, TypeAlias

from cachelib.base import BaseCache

from raftsvc.errors import ConfigurationError
from raftsvc.ext.batches import delete_below, do_all
from raftsvc.ext.signing import Signing
from raftsvc.ext.urls import Place
from raftsvc.kv import ConflictError, KeyValue, delete, if_not_exists
from raftsvc.kv import set as set_effect

PREFIX: Final = "cache/"
"""All that caches have is below it, so that none clears what is something else's."""
MIN_KEY_BYTES: Final = 16
_LONGEST_SECONDS: Final = 100 * 365 * 24 * 3600.0
_LONGEST_KEY_BYTES: Final = 600
"""A key of the store has 1,024 at most, of which some are the prefix."""
_LONGEST_PREFIX_BYTES: Final = 400

Timeout: TypeAlias = "int | timedelta | None"


class RaftCache(BaseCache):
    """What `cachelib.BaseCache` says, over a store that is linearizable; every method is thread-safe.

    It raises what the store raises (`raftsvc.RaftError`) where the cluster cannot be asked or does not answer; what is
    there, and cannot be read by these keys, or any more, is as if it were not there, and the log says so.
    """

    def __init__(
        self,
        default_timeout: int | timedelta = 300,
        ignore_delete_many_errors: bool = True,
        key_prefix: str | Callable[[], str] | None = "",
        *,
        key: str | Sequence[str] | None = None,
        key_file: str | None = None,
        url: str = "raftsvc://",
        max_age: float | None = None,
        wait: float = 5.0,
    ) -> None:
        """Asks nobody, and starts nothing: the first call of another method does.

        default_timeout: in seconds; 0: for ever.
        ignore_delete_many_errors: for the sake of cachelib; deleting many either does it all or raises.
        key_prefix: of all that this cache has, below `cache/`; a function is called for each use.
        key:      what values are signed with, at least 16 bytes; of several, during a rotation, the first signs.
        key_file: a file that has them, a line for each, in the place of `key`.
        url:      which cluster, see `raftsvc.ext.urls`.
        max_age:  in seconds: what is read may be as old; None: each read asks the others.
        wait:     in seconds, how long a call may take; one that does much, each of its steps.

        Raises ConfigurationError, a ValueError.
        """
        super().__init__(_seconds(default_timeout))
        self.ignore_delete_many_errors = ignore_delete_many_errors
        self._key_prefix = key_prefix if callable(key_prefix) else _checked_prefix(key_prefix or "")
        keys = _keys(key, key_file)
        self._signing = Signing("raftsvc.ext.cachelib", lambda: keys)
        self._place = Place(url)
        if self._place.options:
            raise ConfigurationError(f"{sorted(self._place.options)} are no options of a cache's URL")
        self._max_age = max_age
        self._wait = wait

    def get(self, key: str) -> Any:
        """Its value; None if there is none."""
        name = self._name(key)
        value = self._store().get(name, self._wait, max_age=self._max_age)
        return None if value is None else self._signing.read(name, value.data)

    def get_many(self, *keys: str) -> list[Any]:
        """Their values, all of one moment; None for those that have none."""
        names = [self._name(key) for key in keys]
        found = self._store().get_many(names, self._wait, max_age=self._max_age)
        return [self._signing.read(name, found[name].data) if name in found else None for name in names]

    def set(self, key: str, value: Any, timeout: Timeout = None) -> bool:
        """Have it there; a negative `timeout` is over at once."""
        name = self._name(key)
        ttl = self._ttl(timeout)
        if ttl is not None and ttl < 0:
            self._store().delete(name, timeout=self._wait)
        else:
            self._store().set(name, self._signing.write(name, value), ttl=ttl, timeout=self._wait)
        return True

    def add(self, key: str, value: Any, timeout: Timeout = None) -> bool:
        """Have it there unless the key has a value; whether it had none.  Of many who ask at once one is told so."""
        name = self._name(key)
        ttl = self._ttl(timeout)
        if ttl is not None and ttl < 0:
            return self._store().get(name, self._wait) is None
        data = self._signing.write(name, value)
        try:
            self._store().set(name, data, if_not_exists(name), ttl=ttl, timeout=self._wait)
        except ConflictError:
            return False
        return True

    def set_many(self, mapping: dict[str, Any], timeout: Timeout = None) -> list[Any]:
        """Have all there, a hundred or 128 KiB at a time, each time all or none; returns the keys."""
        ttl = self._ttl(timeout)
        effects = []
        for key, value in mapping.items():
            name = self._name(key)
            is_over = ttl is not None and ttl < 0
            effects.append(delete(name) if is_over else set_effect(name, self._signing.write(name, value), ttl))
        do_all(self._store(), effects, self._wait)
        return list(mapping)

    def delete(self, key: str) -> bool:
        """Have none; whether there was one."""
        return self._store().delete(self._name(key), timeout=self._wait)

    def delete_many(self, *keys: str) -> list[Any]:
        """Have none of them, a hundred at a time, each time all or none; returns the keys."""
        do_all(self._store(), [delete(self._name(key)) for key in keys], self._wait)
        return list(keys)

    def has(self, key: str) -> bool:
        """Whether it has a value, be it one that cannot be read."""
        return self._store().get(self._name(key), self._wait, max_age=self._max_age) is not None

    def clear(self) -> bool:
        """Delete what is below this cache's prefix, in steps: what is added meanwhile may stay."""
        for _ in delete_below(self._store(), self._name(""), self._wait):
            pass
        return True

    def inc(self, key: str, delta: int = 1) -> int:
        """Add to a whole number; returns what it became.  One write, exactly once, however many count at once.

        A key without a value counts as 0, and lives for the default timeout.  Raises `raftsvc.kv.CounterError` if it
        has another value than a whole number of 64 bits.
        """
        ttl = self._ttl(None)
        if ttl is not None and ttl < 0:
            ttl = 0.001
        return self._store().incr(self._name(key), delta, ttl=ttl, timeout=self._wait)

    def dec(self, key: str, delta: int = 1) -> int:
        """Take from a whole number, as `inc`."""
        return self.inc(key, -delta)

    def _name(self, key: str) -> str:
        prefix = _checked_prefix(self._key_prefix()) if callable(self._key_prefix) else self._key_prefix
        return f"{PREFIX}{prefix}{_short(str(key))}"

    def _ttl(self, timeout: Timeout) -> float | None:
        """In seconds; None: for ever; negative: over."""
        seconds = _seconds(self.default_timeout if timeout is None else timeout)
        return None if seconds == 0 else min(seconds, _LONGEST_SECONDS)

    def _store(self) -> KeyValue:
        return self._place.kept()


def _keys(key: str | Sequence[str] | None, path: str | None) -> list[bytes]:
    if (key is None) == (path is None):
        raise ConfigurationError(
            "values are signed with a key that all processes have and nobody else: say key= or key_file= "
            "(of Flask-Caching by CACHE_OPTIONS), and not both; secrets.token_hex() makes a good one"
        )
    if path is not None:
        try:
            with open(path, encoding="utf-8") as file:
                key = file.read().split()
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"the key of the cache is not to be read from {path!r}: {error}") from error
    several = [key] if isinstance(key, str) else list(key or ())
    if not several or not all(isinstance(each, str) and len(each.encode()) >= MIN_KEY_BYTES for each in several):
        raise ConfigurationError(f"a key of the cache is a text of at least {MIN_KEY_BYTES} bytes")
    return [each.encode() for each in several]


def _seconds(timeout: float | timedelta) -> int:
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    return math.ceil(seconds) if seconds > 0 else math.floor(seconds)  # only 0 itself is for ever


def _checked_prefix(prefix: str) -> str:
    """Raises ConfigurationError for text that begins no key."""
    try:
        if len(prefix.encode()) <= _LONGEST_PREFIX_BYTES:
            return prefix
    except UnicodeEncodeError:
        pass
    raise ConfigurationError(
        f"the prefix of a cache is text of at most {_LONGEST_PREFIX_BYTES} bytes as UTF-8, not {prefix!r:.100}"
    )


def _short(key: str) -> str:
    """A key as it is, or what stands for it: it may be what a client sent, of any length, and no UTF-8."""
    try:
        if len(key.encode()) <= _LONGEST_KEY_BYTES:
            return key
    except UnicodeEncodeError:
        pass
    return f"sha256:{sha256(key.encode(errors='surrogatepass')).hexdigest()}"
