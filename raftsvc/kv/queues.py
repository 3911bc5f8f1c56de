"""What is said of a queue: another item comes, somebody is done with one, and what somebody was given.

An item is handed out as any other claim on a name is granted (`kv.holds`), and stands where `kv.items` says.
"""

from __future__ import annotations

from typing import NamedTuple

from raftsvc.kv.holds import Holds, size_of
from raftsvc.kv.items import ITEM_BYTES, name_of, unpacked


class Item(NamedTuple):
    """What somebody was given.

    name:  of the item, in the whole store.
    id:    of the item: the order of a queue is that of its ids.
    value: what it says.
    tries: how often it was given to somebody, this time included; not those times that nobody had asked for any more.
    fence: rises each time that it is handed out.
    """

    name: str
    id: int
    value: bytes
    tries: int
    fence: int


def put(holds: Holds, queue: str, data: bytes, max_tries: int, index: int) -> int:
    """Have another item at the end of a queue; returns its id."""
    item = holds.items.put(queue, data, max_tries, index)
    holds.grant(queue)
    return item


def ack(holds: Holds, queue: str, lease: str, number: int) -> bool:
    """Who has an item by that claim is done with it: there is neither any more.  Whether there was."""
    claim = holds.claim_of(queue, lease, number)
    if claim is None or not claim.item:
        return False
    holds.drop(queue, lease, number)
    holds.items.remove(queue, claim.item)
    holds.grant(queue)
    return True


def item_of(holds: Holds, queue: str, lease: str, number: int) -> Item | None:
    """What was given to that claim."""
    claim = holds.claim_of(queue, lease, number)
    if claim is None or not claim.item:
        return None
    data, version = holds.items.get(queue, claim.item)
    _, failures, fence = unpacked(version)
    return Item(name_of(queue, claim.item), claim.item, data, failures + 1, holds.items.base + fence)


def freed_bytes(holds: Holds, queue: str, lease: str, number: int) -> int:
    """How much smaller all is at least once who has an item by that claim is done with it."""
    claim = holds.claim_of(queue, lease, number)
    if claim is None or not claim.item:
        return 0
    data, _ = holds.items.get(queue, claim.item)
    return growth_bytes(queue, data) + size_of(queue, claim.data)


def growth_bytes(queue: str, data: bytes) -> int:
    """How much larger all is by another item."""
    return ITEM_BYTES + len(name_of(queue, 0).encode()) + len(data)
