"""For tests: a deterministic simulator of whole clusters, and a linearizability checker.

    from raftsvc.testing import simulate

    simulate(seed=4711)                             # the library with registers
    simulate(seed=4711, workload=MyWorkload())      # with a State of yours

`simulate` runs a cluster, its disks, its network, its clients and a nemesis in one
thread and in virtual time, checks the promises of Raft after every step, and at
the end that the clients' history is linearizable and that everybody is served once
nothing goes wrong any more.  A seed that fails raises SimulationFailed with a trace, and
fails in the same way each time.  From the shell:

    python -m raftsvc.testing --seeds 1000
    python -m raftsvc.testing --replay 4711 > trace

`check` judges histories from elsewhere: see `raftsvc.testing.linearizability`.

The simulator runs what a node does below its threads (`raftsvc.member.engine`) and so reaches
behind the public face, as `raftsvc.member.node` does.
"""

from raftsvc.testing.disk import PowerLoss, SimulatedDisk
from raftsvc.testing.faults import KINDS, Faults
from raftsvc.testing.invariants import Violation
from raftsvc.testing.linearizability import KeyValueModel, Model, Operation, Verdict, check
from raftsvc.testing.report import Report, SimulationFailed
from raftsvc.testing.simulation import simulate
from raftsvc.testing.workload import (
    Action,
    DamagingWorkload,
    RegisterState,
    RegisterWorkload,
    VersionedWorkload,
    Workload,
)

__all__ = [
    "KINDS",
    "Action",
    "DamagingWorkload",
    "Faults",
    "KeyValueModel",
    "Model",
    "Operation",
    "PowerLoss",
    "RegisterState",
    "RegisterWorkload",
    "Report",
    "SimulatedDisk",
    "SimulationFailed",
    "Verdict",
    "VersionedWorkload",
    "Violation",
    "Workload",
    "check",
    "simulate",
]
