"""What people come for: locks, elections, what is done once or at times, who is there, queues, limits and the like.

Each is reached by a method of `KeyValue`, stands on that and on nothing else of the library, and has its guarantees.
"""

from raftsvc.recipes.barrier import Attendance, Barrier, Meeting
from raftsvc.recipes.counter import Counter
from raftsvc.recipes.election import Election
from raftsvc.recipes.jobs import Jobs, PastRun
from raftsvc.recipes.leases import Lease
from raftsvc.recipes.limits import Limit
from raftsvc.recipes.locks import Lock, ReadWriteLock
from raftsvc.recipes.once import Once, OnceError
from raftsvc.recipes.party import Party
from raftsvc.recipes.queue import Item, Queue
from raftsvc.recipes.scheduler import JobRun, current_run

__all__ = [
    "Attendance",
    "Barrier",
    "Counter",
    "Election",
    "Item",
    "JobRun",
    "Jobs",
    "Lease",
    "Limit",
    "Lock",
    "Meeting",
    "Once",
    "OnceError",
    "Party",
    "PastRun",
    "Queue",
    "ReadWriteLock",
    "current_run",
]
