"""Of the schedulers of many processes one acts: what those of APScheduler and of Celery have in common."""

from __future__ import annotations

from typing import Final

from raftsvc.kv import Hold, KeyValue

_CALL_SECONDS: Final = 2.0


def come_to_act(store: KeyValue, election: str, ttl: float, seconds: float) -> Hold | None:
    """Lead that election, if it is not led by another for the next `seconds`.

    Who waits only looks: nothing is written while another leads, however many wait for however long.

    Raises as `KeyValue.claims` and `KeyValue.claim`.
    """
    name = f"election:{election}"
    known = store.claims(name, _CALL_SECONDS)
    if known:
        known = store.wait_claims(name, known, seconds)
    return None if known else store.claim(name, ttl=ttl, blocking=False, timeout=_CALL_SECONDS)
