"""What is done once in a cluster: a migration, a first set-up."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from raftsvc.callables import check_function
from raftsvc.errors import ConfigurationError, NotApplied, OutcomeUnknown, RaftError
from raftsvc.kv import ConflictError, Hold, KeyValue, LostError, if_held, if_not_modified
from raftsvc.kv import set as set_key
from raftsvc.recipes.failures import said_by

DONE, FAILED, RUNNING, DIED, NEVER = "done", "failed", "running", "died", "never"
AGAIN, RAISE = "again", "raise"

_PAUSE_SECONDS = 0.2
_LOOK_SECONDS = 5.0
_LEAST_LOOK_SECONDS = 1.0
"""However little time others are given to end it: whether it is done has to be asked."""


class OnceError(RaftError):
    """It was begun before and did not succeed, and is not to be tried again by itself: look, and `reset` it.

    how: "failed": it raised; "died": who ran it was not heard of again, so it may have done some, or all.
    """

    http_status = 409
    http_detail = "This was begun before and did not succeed."

    def __init__(self, name: str, how: str, said: str) -> None:
        super().__init__(
            f"{name!r} was begun before and {how}{': ' if said else ''}{said}; look what it did, then reset it"
        )
        self.how = how


class Once:
    """Something that succeeds at most once in a cluster, for ever, or until `reset`.  See `KeyValue.once`."""

    def __init__(self, store: KeyValue, name: str, ttl: float = 15.0) -> None:
        """See `KeyValue.claim`."""
        self._store = store
        self._name = f"once:{name}"
        self._ttl = ttl

    def run(
        self,
        function: Callable[[], object],
        *,
        after_failure: str = AGAIN,
        after_death: str = AGAIN,
        timeout: float | None = None,
    ) -> bool:
        """Have `function` called unless it succeeded before; whether this call did it.

        See `KeyValue.once`.
        """
        check_function(function, "what is done once")
        for choice in (after_failure, after_death):
            if choice not in (AGAIN, RAISE):
                raise ConfigurationError(
                    f"after a failure, or a death, it is done {AGAIN!r} or {RAISE!r}, not {choice!r:.100}"
                )
        look_seconds = _LOOK_SECONDS if timeout is None else max(min(timeout, _LOOK_SECONDS), _LEAST_LOOK_SECONDS)
        if self.look(look_seconds)["state"] == DONE:
            return False
        hold = self._store.claim(self._name, ttl=self._ttl, timeout=timeout)
        if hold is None:
            raise TimeoutError(f"another has been running {self._name!r} for {timeout:g} s")
        try:
            found = self.look(is_held=True)
            if found["state"] == DONE:
                return False
            if {FAILED: after_failure, DIED: after_death}.get(found["state"]) == RAISE:
                raise OnceError(self._name, str(found["state"]), str(found.get("error", "")))
            version = self._note(hold, {"state": RUNNING, "fence": hold.fence})
            try:
                function()
            except BaseException as error:
                said = f"{type(error).__name__}: {said_by(error)}"[:500]
                with suppress(RaftError):  # else it is listed as one that died, or was reset meanwhile
                    self._note(hold, {"state": FAILED, "error": said}, version)
                raise
            self._note_success(hold, version)
        finally:
            hold.release()
        return True

    def look(self, timeout: float = _LOOK_SECONDS, *, is_held: bool = False) -> dict[str, Any]:
        """How it stands: its "state" is "never", "running", "done", "failed" (with its "error") or "died".

        is_held: whether the caller is who may run it, so that nobody else does.
        """
        while True:
            value = self._store.get(self._name, timeout)
            found: dict[str, Any] = {"state": NEVER} if value is None else value.json()
            if found["state"] != RUNNING:
                return found
            if is_held or found["fence"] not in [claim.fence for claim in self._store.claims(self._name, timeout)]:
                if self._store.get(self._name, timeout) == value:  # else who ran it ended in between
                    return {**found, "state": DIED}
                continue
            return found

    def _note_success(self, hold: Hold, version: int) -> None:
        """As long as it takes: what was done must not be done again because nobody could be told in time.

        Not where it was reset meanwhile: that it was to be done anew is what somebody asked for.
        """
        while True:
            try:
                self._note(hold, {"state": DONE}, version)
                return
            except ConflictError:  # it was reset, or this was noted before, and nobody could be told so
                return
            except OutcomeUnknown:
                if hold.lost.wait(_PAUSE_SECONDS):
                    raise
            except NotApplied as error:
                if hold.lost.wait(_PAUSE_SECONDS):  # not as if nothing had been done, and to do it again were safe
                    raise LostError(
                        self._name, "it was done, which could not be recorded before, so another may do it again"
                    ) from error

    def reset(self, timeout: float = 10.0) -> None:
        """Have it done anew by whoever comes next; where it runs, by whoever comes after that, however that ends."""
        self._store.delete(self._name, timeout=timeout)

    def _note(self, hold: Hold, what: dict[str, object], version: int | None = None) -> int:
        """Only as long as this one may run it: one that was frozen and taken for dead records nothing.

        version: of what was noted before, which it is only put in the place of; None: of whatever is there.

        Returns the version of it.
        """
        conditions = [if_held(hold), *([] if version is None else [if_not_modified(self._name, version)])]
        return self._store.transaction([*conditions, set_key(self._name, json.dumps(what).encode())])
