"""Backup, restore, recovery from a lost majority, and looking into the directory of a stopped node.

    inspect, verify     what is in a directory, and whether it is whole
    back_up             what a stopped node has, as a file; of a node that runs: `Service.backup`
    restore             a new cluster from a backup
    survey, recover     a majority is lost: what is left, and a new cluster from that

Nothing here runs a node.  What is made is a directory, which `raftsvc.start` is given.
"""

from raftsvc.rescue.backups import (
    Backup,
    BackupFile,
    Writable,
    back_up,
    back_up_snapshot,
    back_up_stored,
    check_target,
    save_backup,
    write_backup,
)
from raftsvc.rescue.inspection import Described, Inspection, described, inspect, verify
from raftsvc.rescue.making import Remade
from raftsvc.rescue.recovery import Loss, Survey, Survivor, recover, recovered, survey
from raftsvc.rescue.restoring import restore

__all__ = [
    "Backup",
    "BackupFile",
    "Described",
    "Inspection",
    "Loss",
    "Remade",
    "Survey",
    "Survivor",
    "Writable",
    "back_up",
    "back_up_snapshot",
    "back_up_stored",
    "check_target",
    "described",
    "inspect",
    "recover",
    "recovered",
    "restore",
    "save_backup",
    "survey",
    "verify",
    "write_backup",
]
