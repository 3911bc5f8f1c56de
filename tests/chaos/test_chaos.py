"""A short chaos run; `make chaos` runs long ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.cluster import Trouble
from tests.chaos.holding import Notes, Witness
from tests.chaos.run import Run, make_links

pytest.importorskip("flask")
pytest.importorskip("gunicorn")
pytestmark = pytest.mark.processes


@pytest.mark.parametrize(
    ("workers", "has_listener", "lease_reads", "kinds"),
    [
        (1, True, False, ["kill -9", "leader cut off", "fsync hangs", "member replaced"]),
        (1, False, True, ["stop longer than election", "fsync fails", "one-way cut", "clock jumps"]),
        (1, True, False, ["members trade places", "all at new addresses", "forked children", "narrow links"]),
        (2, True, False, ["kill -9 of an owner", "owner stopped", "killed as it reloads", "kill -9 of workers"]),
    ],
)
def test_real_processes_keep_every_promise_under_faults(
    tmp_path: Path, workers: int, has_listener: bool, lease_reads: bool, kinds: list[str]
) -> None:
    run = Run(tmp_path, 3, 1, make_links(3, "proxies"), has_listener, lease_reads, workers, has_witness=workers > 1)
    least = {"acknowledged writes": 50, "reads": 20}
    if workers > 1:  # no lock has two holders, and no run two beginnings
        least |= {"locks held": 10, "turns kept": 10, "runs begun": 5}
    try:
        outcome = run.go(12.0, kinds, least)
    except Trouble as trouble:
        tails = "\n".join(f"{node.log}:\n{node.log.read_text()[-3000:]}" for node in run.cluster.nodes)
        pytest.fail(f"{trouble}\n{tails}")
    assert all(outcome.counts[what] > count for what, count in least.items())


def test_what_must_not_happen_with_locks_and_runs_is_seen(tmp_path: Path) -> None:
    witness = Witness(tmp_path / "witness")
    try:
        notes = Notes(str(witness.path))
        assert notes.tell("use", "a", 7, 1, 10.0, 11.0, 3)
        assert notes.tell("use", "a", 9, 2, 12.0, 13.0, 4)
        assert not notes.tell("use", "a", 7, 1, 10.0, 11.5, 0), "by its fence"
        assert notes.tell("run", 100, 1, 1) and notes.tell("run", 101, 1, 2) and notes.tell("run", 101, 2, 1)
        assert witness.judge() == []
        notes.tell("use", "a", 7, 1, 10.0, 12.5, 5)
        notes.tell("use", "b", 7, 3, 10.0, 12.5, 6)
        notes.tell("use", "b", 7, 4, 10.0, 12.5, 6)
        notes.tell("run", 101, 2, 3)
        found = witness.judge()
        assert [each.split()[0] for each in found] == ["lock", "run", "lock", "lock"]
        assert "until 12.5, with 9 from 12.0" in found[2]
        assert "granted at 9 to who asked at 4, after 5" in found[3]
    finally:
        witness.close()
    assert not notes.tell("run", 1, 1, 1)
