"""The systems that are compared, by name, in the order in which a round takes them."""

from benchmarks.systems.base import System, Web
from benchmarks.systems.etcd import EtcdGrpcSystem, EtcdJsonSystem
from benchmarks.systems.raft import RaftLeaseSystem, RaftPureSystem, RaftSystem
from benchmarks.systems.syncobj import (
    SyncObjJournalSystem,
    SyncObjSystem,
    SyncObjTunedJournalSystem,
    SyncObjTunedSystem,
)

SYSTEMS: dict[str, type[System]] = {
    system.name: system
    for system in (
        RaftSystem,
        RaftLeaseSystem,
        RaftPureSystem,
        EtcdGrpcSystem,
        EtcdJsonSystem,
        SyncObjTunedSystem,
        SyncObjTunedJournalSystem,
        SyncObjSystem,
        SyncObjJournalSystem,
    )
}

__all__ = ["SYSTEMS", "System", "Web"]
