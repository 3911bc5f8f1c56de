"""A cache of the whole cluster for Django.

    CACHES = {"default": {"BACKEND": "raftsvc.ext.django.RaftCache", "LOCATION": "", "OPTIONS": {"max_age": 1.0}}}

Every process has the same entries, and sees what any other has written.  Whole numbers are stored as such and counted
by the cluster: `incr` is one write, exactly once.  Anything else is pickled and signed by the calling process
(`raftsvc.ext.signing`).  Nothing is culled: entries end by their timeouts, and the store has a limit of its own
(`kv.max_state_bytes`).

Where the cluster has no majority, or does not answer in time, every method raises what the store does (`RaftError`):
a cache that answered then as if it were empty would have counters start over, and locks made of `add` granted twice.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache
from django.core.exceptions import ImproperlyConfigured
from django.utils.encoding import force_bytes

from raftsvc.errors import ConfigurationError
from raftsvc.ext.batches import delete_below, do_all
from raftsvc.ext.django.node import start
from raftsvc.ext.parts import as_part
from raftsvc.ext.signing import MAX_NUMBER, MIN_NUMBER, Signing
from raftsvc.kv import ConflictError, CounterError, Effect, delete, if_not_exists, if_not_modified
from raftsvc.kv import set as set_effect

PREFIX: Final = "django/cache/"
"""All that caches have is below it, so that none clears what is something else's."""
_MAX_NAME_BYTES: Final = 1024
_KEPT_CHARACTERS: Final = 100
_WAIT_SECONDS: Final = 5.0
_SHORTEST_SECONDS: Final = 0.001
_LONGEST_SECONDS: Final = 100 * 365 * 24 * 3600.0
_MISSING: Final = object()
_OPTIONS: Final = frozenset({"max_age", "wait", "MAX_ENTRIES", "CULL_FREQUENCY"})


def _keys() -> list[bytes]:
    return [force_bytes(key) for key in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)]


_signing: Final = Signing("raftsvc.ext.django.cache", _keys)


class RaftCache(BaseCache):
    """What `BaseCache` says, over a store that is linearizable; every method is thread-safe, and may raise RaftError.

    What is there, and cannot be read by this project's keys, or any more, is as if it were not there to whoever reads,
    and the log says so; `add` leaves it as it is.  The methods whose names begin by `a` do the same in a thread.
    """

    def __init__(self, location: str, params: dict[str, Any]) -> None:
        """Asks nobody, and starts nothing.

        location: caches of the same are one, and `clear` empties it, whatever their KEY_PREFIX and VERSION.
        params:   as Django's; of OPTIONS
                  max_age: in seconds, reads may be as old; None: each asks the others.
                  wait:    in seconds, how long a call may take, 5 unless it is said.

        Raises ImproperlyConfigured.
        """
        super().__init__(params)
        options = params.get("OPTIONS") or {}
        if unknown := sorted(map(str, options.keys() - _OPTIONS)):
            raise ImproperlyConfigured(f"OPTIONS of the cache: {unknown} are none of {sorted(_OPTIONS)}")
        self._max_age = _seconds("max_age", options.get("max_age"))
        self._wait = _seconds("wait", options.get("wait")) or _WAIT_SECONDS
        self._prefix = f"{PREFIX}{as_part(str(location or ''))}/"

    def get_backend_timeout(self, timeout: Any = DEFAULT_TIMEOUT) -> float | None:
        """In seconds from now on, as the cluster counts them; None: for ever; 0: over."""
        if timeout is DEFAULT_TIMEOUT:
            timeout = self.default_timeout
        if timeout is None:
            return None
        return 0.0 if timeout <= 0 else min(max(float(timeout), _SHORTEST_SECONDS), _LONGEST_SECONDS)

    def add(self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Have it there unless the key has a value; whether it had none.  Of many who ask at once one is told so."""
        name = self._name(key, version)
        ttl = self.get_backend_timeout(timeout)
        data = _signing.write(name, value)
        if ttl == 0:
            return start().get(name, self._wait) is None
        try:
            start().set(name, data, if_not_exists(name), ttl=ttl, timeout=self._wait)
        except ConflictError:
            return False
        return True

    def get(self, key: str, default: Any = None, version: int | None = None) -> Any:
        """Its value; `default` if there is none."""
        return self._read(self._name(key, version), default)

    def set(self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        """Have it there; with a timeout of 0 or less, have none."""
        name = self._name(key, version)
        start().transaction([self._effect(name, value, self.get_backend_timeout(timeout))], self._wait)

    def touch(self, key: str, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Have it live for `timeout` from now on; whether there is one."""
        name = self._name(key, version)
        ttl = self.get_backend_timeout(timeout)
        if ttl == 0:
            return start().delete(name, timeout=self._wait)
        return start().touch(name, ttl, timeout=self._wait)

    def delete(self, key: str, version: int | None = None) -> bool:
        """Have none; whether there was one."""
        return start().delete(self._name(key, version), timeout=self._wait)

    def has_key(self, key: str, version: int | None = None) -> bool:
        """Whether it has a value that can be read."""
        return self._read(self._name(key, version), _MISSING) is not _MISSING

    def get_many(self, keys: Iterable[str], version: int | None = None) -> dict[str, Any]:
        """The values of those that have one, all of one moment."""
        names = {self._name(key, version): key for key in keys}
        found = start().get_many(list(names), self._wait, max_age=self._max_age)
        values = {key: _signing.read(name, found[name].data, _MISSING) for name, key in names.items() if name in found}
        return {key: value for key, value in values.items() if value is not _MISSING}

    def set_many(
        self, data: Mapping[str, Any], timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[str]:
        """Have all there, a hundred or 128 KiB at a time, each time all or none; returns an empty list, or raises."""
        ttl = self.get_backend_timeout(timeout)
        effects = [self._effect(self._name(key, version), value, ttl) for key, value in data.items()]
        do_all(start(), effects, self._wait)
        return []

    def delete_many(self, keys: Iterable[str], version: int | None = None) -> None:
        """Have none of them, a hundred at a time, each time all or none."""
        do_all(start(), [delete(self._name(key, version)) for key in keys], self._wait)

    def incr(self, key: str, delta: int = 1, version: int | None = None) -> int:
        """Add to a whole number; returns what it became.  One write, exactly once; its time to live stays.

        Raises ValueError if there is none, TypeError if the value is no whole number of 64 bits or `delta` is none,
        OverflowError if the sum would be none.
        """
        if type(delta) is not int:
            raise TypeError(f"delta is a whole number, not {delta!r:.100}")
        name = self._name(key, version)
        # A key that is not there counts as the number beyond which there is none, so it cannot be counted.
        initial = MAX_NUMBER if delta > 0 else MIN_NUMBER
        ends_at = time.monotonic() + self._wait
        while True:
            try:
                if delta and _is_counted(delta):
                    return start().incr(name, delta, initial, timeout=self._wait)
            except CounterError:
                if time.monotonic() >= ends_at:
                    raise
            value = self._read(name, _MISSING, is_latest=True)
            if value is _MISSING:
                raise ValueError(f"Key {key!r} not found")
            if type(value) is not int:
                raise TypeError(f"{key!r} has no whole number, but a value of the type {type(value).__name__}")
            if not all(map(_is_counted, (value, delta, value + delta))):
                raise OverflowError(f"{key!r} is counted within 64 bits: {value} and {delta} leave them")
            if not delta:
                return value
            # It was written after it could not be counted, and can be by now.

    def decr(self, key: str, delta: int = 1, version: int | None = None) -> int:
        """Take from a whole number, as `incr`."""
        return self.incr(key, -delta, version)

    def incr_version(self, key: str, delta: int = 1, version: int | None = None) -> int:
        """Move it to another version, where it lives for the default timeout; returns that.

        One transaction, so no other's write in between is lost.  Raises ValueError if there is none.
        """
        old = self.version if version is None else version
        old_name, name = self._name(key, old), self._name(key, old + delta)
        ends_at = time.monotonic() + self._wait
        while True:
            found = start().get(old_name, self._wait)
            value = _MISSING if found is None else _signing.read(old_name, found.data, _MISSING)
            if found is None or value is _MISSING:
                raise ValueError(f"Key {key!r} not found")
            effect = self._effect(name, value, self.get_backend_timeout())
            is_as_read = if_not_modified(old_name, found.version)
            try:
                start().transaction([is_as_read, delete(old_name), effect], self._wait)
            except ConflictError:
                if time.monotonic() >= ends_at:
                    raise
            else:
                return old + delta

    # -- what BaseCache does in several steps, and this in one

    async def aget_many(self, keys: Iterable[str], version: int | None = None) -> dict[str, Any]:
        """As `get_many`."""
        return await sync_to_async(self.get_many)(keys, version)

    async def aset_many(
        self, data: Mapping[str, Any], timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[str]:
        """As `set_many`."""
        return await sync_to_async(self.set_many)(data, timeout, version)

    async def adelete_many(self, keys: Iterable[str], version: int | None = None) -> None:
        """As `delete_many`."""
        await sync_to_async(self.delete_many)(keys, version)

    async def aincr(self, key: str, delta: int = 1, version: int | None = None) -> int:
        """As `incr`."""
        return await sync_to_async(self.incr)(key, delta, version)

    async def aincr_version(self, key: str, delta: int = 1, version: int | None = None) -> int:
        """As `incr_version`."""
        return await sync_to_async(self.incr_version)(key, delta, version)

    def clear(self) -> None:
        """Delete all of its location, in steps: what is added meanwhile may stay."""
        for _ in delete_below(start(), self._prefix, self._wait):
            pass

    def _name(self, key: str, version: int | None) -> str:
        """What it is stored by: of a key too long for the store, its beginning and its digest, which is no key's."""
        made = str(self.make_and_validate_key(key, version=version))
        name = f"{self._prefix}={made}"
        if len(name.encode("utf-8", "surrogatepass")) <= _MAX_NAME_BYTES:
            return name
        digest = hashlib.sha256(made.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{self._prefix}#{made[:_KEPT_CHARACTERS]}#{digest}"

    def _effect(self, name: str, value: Any, ttl: float | None) -> Effect:
        data = _signing.write(name, value)
        return delete(name) if ttl == 0 else set_effect(name, data, ttl)

    def _read(self, name: str, default: Any, is_latest: bool = False) -> Any:
        value = start().get(name, self._wait, max_age=None if is_latest else self._max_age)
        return default if value is None else _signing.read(name, value.data, default)


def _is_counted(number: int) -> bool:
    return MIN_NUMBER <= number <= MAX_NUMBER


def _seconds(name: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _LONGEST_SECONDS:
        error = ConfigurationError(f"{name} is a number of seconds above 0, not {value!r:.100}")
        raise ImproperlyConfigured(f"OPTIONS of the cache: {error}") from error
    return float(value)
