"""A replicated key-value store: `KeyValueState` is what is replicated, `KeyValue` what an application calls."""

from raftsvc.kv.client import ConflictError, KeyValue
from raftsvc.kv.state import KeyValueState, Value, allow, delete, disallow, if_not_exists, if_not_modified, set_value

__all__ = [
    "ConflictError",
    "KeyValue",
    "KeyValueState",
    "Value",
    "allow",
    "delete",
    "disallow",
    "if_not_exists",
    "if_not_modified",
    "set_value",
]
