"""Many effects as some transactions, none of which is too large, for caches that write or delete much at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from raftsvc.kv import Effect, KeyValue

BATCH_OPERATIONS: Final = 100
_BATCH_BYTES: Final = 128 * 1024


def do_all(store: KeyValue, effects: Iterable[Effect], timeout: float) -> None:
    """Do them, a hundred or 128 KiB at a time, each time all or none.  Raises what `KeyValue.transaction` does."""
    for batch in _batches(effects):
        store.transaction(batch, timeout)


def _batches(effects: Iterable[Effect]) -> Iterator[list[Effect]]:
    batch: list[Effect] = []
    size = 0
    for effect in effects:
        more = len(effect.key) + len(effect.data)
        if batch and (len(batch) >= BATCH_OPERATIONS or size + more > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(effect)
        size += more
    if batch:
        yield batch
