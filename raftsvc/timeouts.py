"""How long a caller waits: what can be meant by that, and what cannot."""

from __future__ import annotations

import threading

from raftsvc.errors import ConfigurationError

_MAX_SECONDS = threading.TIMEOUT_MAX


def check_timeout(timeout: object) -> None:
    """Raise ConfigurationError unless it is a finite number of seconds; one that is not above 0 is over already.

    Asked before anything is done: what cannot be added to the time of day would else be found out half-way.
    """
    if type(timeout) is float and timeout < _MAX_SECONDS:  # as most are
        return
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise ConfigurationError(f"a timeout is a number of seconds, not {timeout!r:.100}")
    if not timeout < _MAX_SECONDS:  # nor is NaN
        raise ConfigurationError(f"a timeout is a finite number of seconds, not {timeout!r:.100}")
