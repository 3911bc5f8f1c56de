"""Of the schedulers of many processes one acts: what those of APScheduler and of Celery have in common."""

from __future__ import annotations

from hashlib import sha256
from typing import Final

from raftsvc.kv import Hold, KeyValue

_CALL_SECONDS: Final = 2.0
_MAX_PART_BYTES: Final = 400
"""Of a key, of which there are two beside what is ours."""


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


def as_part(text: str) -> str:
    """As what is between two slashes of a key: no two texts are the same there, and no long one is too long."""
    part = text.replace("%", "%25").replace("/", "%2F")
    data = part.encode(errors="surrogatepass")
    is_plain = len(data) <= _MAX_PART_BYTES and part == data.decode(errors="replace")
    return part if is_plain else f"%{sha256(data).hexdigest()}"
