"""What people come for: locks, elections, what is done once, who is there.  Each is reached by a method of `KeyValue`.

All stand on `KeyValue.claim`, and on nothing else of the library; its guarantees are theirs.
"""

from raftsvc.recipes.election import Election
from raftsvc.recipes.locks import Lock, ReadWriteLock
from raftsvc.recipes.once import Once, OnceError
from raftsvc.recipes.party import Party

__all__ = ["Election", "Lock", "Once", "OnceError", "Party", "ReadWriteLock"]
