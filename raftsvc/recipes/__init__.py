"""What people come for: locks, elections, what is done once or at times, who is there.

Each is reached by a method of `KeyValue`.  All stand on `KeyValue.claim`, and on nothing else of the library but jobs,
which stand on `KeyValue.duty`; their guarantees are theirs.
"""

from raftsvc.recipes.election import Election
from raftsvc.recipes.jobs import Jobs, PastRun
from raftsvc.recipes.locks import Lock, ReadWriteLock
from raftsvc.recipes.once import Once, OnceError
from raftsvc.recipes.party import Party
from raftsvc.recipes.scheduler import JobRun, current_run

__all__ = [
    "Election",
    "JobRun",
    "Jobs",
    "Lock",
    "Once",
    "OnceError",
    "Party",
    "PastRun",
    "ReadWriteLock",
    "current_run",
]
