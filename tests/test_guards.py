"""What durability and agreement rest on is looked at in any interpreter: under -O nothing of it is left out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import pytest

from raftsvc.core.log import Log, SnapshotMeta, ViolationError
from raftsvc.core.membership import Configuration, Member
from raftsvc.core.messages import EntryKind, HardState, Message, MessageKind, make_entry
from raftsvc.core.raft import Raft, Settings
from raftsvc.member.handoff import Hands, Inbox
from raftsvc.member.health import Condition, Health
from raftsvc.member.machine import Machine
from raftsvc.member.writes import Writes
from raftsvc.storage.snapshot import IncomingSnapshot
from tests.service.harness import ListState
from tests.storage.faults import Disk

THREE = Configuration({n: Member(f"m{n}:1", True) for n in (1, 2, 3)})
ENTRIES = [make_entry(n, 1, EntryKind.NORMAL, b"") for n in (1, 2, 3)]
LATER = make_entry(4, 5, EntryKind.NORMAL, b"")


def a_log() -> Log:
    return Log(SnapshotMeta(), ENTRIES, 2)


def a_node() -> Raft:
    return Raft(Settings(1, Random(1)), HardState(5, 2, 2), SnapshotMeta(0, 0, THREE), ENTRIES)


def writes() -> Writes:
    health = Health()
    nothing: Any = None
    return Writes(nothing, Inbox(health), health)


def two_write_at_a_time() -> None:
    queue = writes()
    queue.begin()
    queue.begin()


def a_batch_ends_before_an_earlier_one() -> None:
    queue = writes()
    queue.note_durable(2)
    queue.note_durable(1)


def a_snapshot_is_finished_that_is_not_all_there() -> None:
    disk = Disk()
    disk.add_dirs("/node")
    IncomingSnapshot(disk, "/node/snap.part", 1, (1, 1, 100, 1), lambda index: None).finish()


def what_is_not_here_is_acknowledged() -> None:
    with mock.patch.object(Log, "merge"):
        a_node().step(Message(MessageKind.APPEND, 1, 2, term=5, index=3, log_term=1, entries=[LATER]))


def a_vote_is_given_twice() -> None:
    node = a_node()
    node.vote_for(3)


GUARDS: dict[Callable[[], object], type[Exception]] = {
    lambda: a_log().advance_commit(4): ViolationError,
    lambda: a_log().restore(SnapshotMeta(2, 1)): ViolationError,
    lambda: a_log().compact(3, 0): ViolationError,
    lambda: Log(SnapshotMeta(9, 1), ENTRIES, 0): ViolationError,
    lambda: Log(SnapshotMeta(2, 1), ENTRIES[2:], 0).entries_from(1, 99): ViolationError,
    what_is_not_here_is_acknowledged: ViolationError,
    a_vote_is_given_twice: ViolationError,
    lambda: a_node().enter_term(5): ViolationError,
    lambda: Machine(ListState()).apply(ENTRIES[1:], []): RuntimeError,
    two_write_at_a_time: RuntimeError,
    lambda: writes().end(): RuntimeError,
    lambda: writes().put_off(1): RuntimeError,
    a_batch_ends_before_an_earlier_one: RuntimeError,
    a_snapshot_is_finished_that_is_not_all_there: RuntimeError,
    lambda: Hands().end(): RuntimeError,
    lambda: Health().clear(Condition.HALTED): RuntimeError,
}


def look() -> None:
    for number, (what, error) in enumerate(GUARDS.items()):
        try:
            what()
        except error:
            continue
        sys.exit(f"guard {number} holds nothing: {what}")
    sys.stdout.write(f"{len(GUARDS)} hold\n")


@pytest.mark.parametrize("flags", [[], ["-O"]], ids=["", "without asserts"])
def test_what_may_never_happen_is_refused_and_not_gone_on_from(flags: list[str]) -> None:
    root = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, *flags, "-m", "tests.test_guards"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == f"{len(GUARDS)} hold\n", done.stdout + done.stderr


if __name__ == "__main__":
    look()
