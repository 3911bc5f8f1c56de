"""Sessions of the whole cluster: `SESSION_ENGINE = "raftsvc.ext.django.sessions"`.

A session is one key, which lives as long as the session does.  It is signed JSON, as with Django's own engines, by
SESSION_SERIALIZER.  Saving one that was deleted meanwhile, by a log-out for instance, does not bring it back: it is
written on the condition that it still is as this process knows it, and where another wrote it meanwhile, once more on
the condition that it is as that left it.  Of two requests that save the same session the later one stands, as with
Django's own engines.

Every method raises RaftError where the cluster has no majority.  After OutcomeUnknown what was saved, created or
deleted may be so, or may yet be: a session that was to be flushed may be there still.
"""

from __future__ import annotations

import time
from typing import Any, Final

from django.contrib.sessions.backends.base import CreateError, SessionBase, UpdateError

from raftsvc.ext.django.node import start
from raftsvc.kv import ConflictError, if_not_exists, if_not_modified

PREFIX: Final = "django/session/"
_WAIT_SECONDS: Final = 5.0
_SHORTEST_SECONDS: Final = 0.001
_LONGEST_SECONDS: Final = 100 * 365 * 24 * 3600.0
_LONGEST_KEY: Final = 256


class SessionStore(SessionBase):
    """One session.  The methods whose names begin by `a` do the same in a thread."""

    def __init__(self, session_key: str | None = None) -> None:
        """session_key: as its cookie has it; None: a new one."""
        super().__init__(session_key)
        self._version = 0
        """That was read or written last; 0: none was."""

    def exists(self, session_key: str | None) -> bool:
        """Whether there is such a session."""
        return session_key is not None and start().get(PREFIX + session_key, _WAIT_SECONDS) is not None

    def load(self) -> dict[str, Any]:
        """What it has; nothing, under no key, if there is none."""
        value = None if self.session_key is None else start().get(PREFIX + self.session_key, _WAIT_SECONDS)
        if value is None:
            self._session_key = None
            return {}
        self._version = value.version
        data: dict[str, Any] = self.decode(value.data.decode(errors="replace"))
        return data

    def create(self) -> None:
        """Have it saved under a new key."""
        while True:
            self._session_key = self._get_new_session_key()
            try:
                self.save(must_create=True)
            except CreateError:
                continue
            self.modified = True
            return

    def save(self, must_create: bool = False) -> None:
        """Have it there; raises CreateError if it must be new and is not, UpdateError if it is no more."""
        if self.session_key is None:
            self.create()
            return
        data = self.encode(self._get_session(no_load=must_create)).encode()
        if self.session_key is None:  # there is none to be loaded
            raise UpdateError
        name = PREFIX + self.session_key
        age = min(float(self.get_expiry_age()), _LONGEST_SECONDS)
        if must_create:
            self._create(name, data, age)
        elif age > 0:
            self._replace(name, data, max(age, _SHORTEST_SECONDS))
        elif not start().delete(name, timeout=_WAIT_SECONDS):
            raise UpdateError

    def delete(self, session_key: str | None = None) -> None:
        """Have none; of no key given, this one."""
        if session_key is None:
            session_key = self.session_key
        if session_key is not None:
            start().delete(PREFIX + session_key, timeout=_WAIT_SECONDS)

    @classmethod
    def clear_expired(cls) -> None:
        """Nothing: a session ends by itself."""

    def _validate_session_key(self, key: str | None) -> bool:
        """Whether there may be such a session: what a cookie has may be of any length."""
        return key is not None and len(key) <= _LONGEST_KEY and bool(super()._validate_session_key(key))

    def _create(self, name: str, data: bytes, age: float) -> None:
        store = start()
        if age <= 0:
            if store.get(name, _WAIT_SECONDS) is not None:
                raise CreateError
            return
        ttl = max(age, _SHORTEST_SECONDS)
        try:
            self._version = store.set(name, data, if_not_exists(name), ttl=ttl, timeout=_WAIT_SECONDS)
        except ConflictError as error:
            raise CreateError from error

    def _replace(self, name: str, data: bytes, age: float) -> None:
        """Replace whatever is there, whoever wrote it; a conflict says what that is, or that there is none."""
        store = start()
        ends_at = time.monotonic() + _WAIT_SECONDS
        version = self._version
        if not version:
            value = store.get(name, _WAIT_SECONDS)
            version = 0 if value is None else value.version
        while version:
            remaining = max(ends_at - time.monotonic(), 0.0)
            try:
                self._version = store.set(name, data, if_not_modified(name, version), ttl=age, timeout=remaining)
                return
            except ConflictError as error:
                if error.version and time.monotonic() >= ends_at:
                    raise
                version = error.version
        self._version = 0
        raise UpdateError
