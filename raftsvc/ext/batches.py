"""Much at once in steps, none of which is too large, for extensions that write, delete or forget much."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from raftsvc.kv import Effect, KeyValue, delete

BATCH_OPERATIONS: Final = 100
_BATCH_BYTES: Final = 128 * 1024
_LISTED_BYTES: Final = 1024 * 1024
"""Of values that are looked at to delete them; an answer by the socket of a directory has 3 MB at most."""


def do_all(store: KeyValue, effects: Iterable[Effect], timeout: float) -> None:
    """Do them, a hundred or 128 KiB at a time, each time all or none.  Raises what `KeyValue.transaction` does.

    timeout: in seconds, for each time.
    """
    for batch in _batches(effects):
        store.transaction(batch, timeout)


def delete_below(
    store: KeyValue, prefix: str, timeout: float, beside: Callable[[str], Sequence[str]] = lambda name: ()
) -> Iterator[str]:
    """Delete what is below `prefix`, and name each, in steps: what is added meanwhile may stay.

    beside: what else goes with a key, in the same step.

    Raises what `KeyValue.list` and `KeyValue.transaction` do, each of which may take `timeout` seconds.
    """
    after = ""
    while names := list(store.list(prefix, timeout, limit=BATCH_OPERATIONS // 2, after=after, max_bytes=_LISTED_BYTES)):
        store.transaction([delete(each) for name in names for each in (name, *beside(name))], timeout)
        yield from names
        after = names[-1]


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
