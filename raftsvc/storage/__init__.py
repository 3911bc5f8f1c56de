"""All that a node keeps on disk: its id, its snapshot, its write-ahead log, and the lock on their directory.

Knows bytes and records, not roles.  `Store` is the face of this package; every
operation goes through `Files`, so that tests can make a disk fail or forget.
"""

from raftsvc.storage.files import PASSING, Files
from raftsvc.storage.lock import held_by, holder_of, noted_holder
from raftsvc.storage.renewal import ORIGIN, Made, Renewal
from raftsvc.storage.segments import Ahead
from raftsvc.storage.snapshot import IncomingSnapshot, SnapshotHeader, StoredSnapshot
from raftsvc.storage.store import Loaded, Store, read_log_ahead
from raftsvc.storage.wal import Wal

__all__ = [
    "ORIGIN",
    "PASSING",
    "Ahead",
    "Files",
    "IncomingSnapshot",
    "Loaded",
    "Made",
    "Renewal",
    "SnapshotHeader",
    "Store",
    "StoredSnapshot",
    "Wal",
    "held_by",
    "holder_of",
    "noted_holder",
    "read_log_ahead",
]
