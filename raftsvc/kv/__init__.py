"""A ready-made key-value store on a raftsvc node.

    store = kv.start_from_env()  # RAFTSVC_ADDR and the like, see raftsvc.kv.environment

    state = kv.KeyValueState()  # or by hand
    service = raftsvc.start(laddr, dir, state=state, secret=...)
    store = kv.KeyValue(service, state)

    version = store.set("jobs/7", b"todo", kv.if_not_exists("jobs/7"))
    store.transaction([kv.if_not_modified("jobs/7", version), kv.set("jobs/7", b"mine"), kv.delete("queue/7")])
    store.get("jobs/7").data
    store.set("session/7", b"...", ttl=3600)
    store.incr("visits")

Keys are text of at most 1,024 bytes, values are bytes; a whole transaction must fit
`max_instruction_bytes`.  Everything is in memory on each node.
"""

from raftsvc.kv.client import (
    Claimant,
    ClaimSizeError,
    ConflictError,
    CounterError,
    KeyValue,
    QuotaExceeded,
    Replication,
)
from raftsvc.kv.environment import start_from_env
from raftsvc.kv.events import Compacted, Event
from raftsvc.kv.instructions import (
    Condition,
    Effect,
    Operation,
    allow,
    delete,
    disallow,
    if_held,
    if_not_exists,
    if_not_modified,
    incr,
    max_state_bytes,
    set,  # noqa: A004 - read as kv.set
    touch,
)
from raftsvc.kv.leases import Hold, LostError
from raftsvc.kv.pages import Value
from raftsvc.kv.snapshots import MalformedSnapshotError
from raftsvc.kv.state import KeyValueState
from raftsvc.kv.tickets import Ticket
from raftsvc.kv.watching import Mirror, Watch

__all__ = [
    "ClaimSizeError",
    "Claimant",
    "Compacted",
    "Condition",
    "ConflictError",
    "CounterError",
    "Effect",
    "Event",
    "Hold",
    "KeyValue",
    "KeyValueState",
    "LostError",
    "MalformedSnapshotError",
    "Mirror",
    "Operation",
    "QuotaExceeded",
    "Replication",
    "Ticket",
    "Value",
    "Watch",
    "allow",
    "delete",
    "disallow",
    "if_held",
    "if_not_exists",
    "if_not_modified",
    "incr",
    "max_state_bytes",
    "set",
    "start_from_env",
    "touch",
]
